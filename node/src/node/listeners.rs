//! The node's three listeners: bound before any work, answering from the first moment, serving once the node belongs
//! to a cluster.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use roost_proto::admin::admin_server::AdminServer;
use roost_proto::v1::messaging_server::MessagingServer;

use super::founding::Founding;
use super::health::NodeHealth;
use crate::config::{self, Config};
use crate::edge::admin::AdminService;
use crate::edge::grpc::MessagingService;
use crate::edge::{Seat, http};
use crate::metrics::{Exposition, UPKEEP_INTERVAL};
use crate::peer::server::Server;

/// Room that a frame takes beyond the largest body: ids, names, numbers.
const FRAME_OVERHEAD_BYTES: usize = 64 * 1024;

/// Larger frames end the connection, so bodies far over the bound still get their `TOO_LARGE`.
const FRAME_BYTES_MIN: usize = 8 * 1024 * 1024;

/// Between two looks at the readiness for the standard health service.
const READINESS_TICK: Duration = Duration::from_millis(250);

/// How long connections may take to end when the node stops.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The bound ports.
pub(crate) struct Bound {
    client: TcpListener,
    peer: TcpListener,
    http: TcpListener,
}

impl Bound {
    /// Binds all ports or none.
    ///
    /// # Errors
    /// Names the port that is in use, and the setting that moves it.
    pub(crate) async fn bind(listen: &config::Listen) -> anyhow::Result<Self> {
        let bind = |key: &'static str, address: std::net::SocketAddr| async move {
            TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address} (listen.{key}); is another process there?")
            })
        };
        Ok(Self {
            client: bind("client", listen.client).await?,
            peer: bind("peer", listen.peer).await?,
            http: bind("http", listen.http).await?,
        })
    }
}

/// The listeners' tasks.
pub(crate) struct Serving {
    pub(crate) peers: Server,
    pub(crate) clients: Arc<Seat>,
    tasks: JoinSet<()>,
}

impl Serving {
    /// Starts answering on all ports; until it serves, clients and other nodes are told that the node is not ready, except
    /// for introductions.
    pub(crate) async fn start(
        bound: Bound,
        founding: &Arc<Founding>,
        health: &Arc<NodeHealth>,
        exposition: Arc<Exposition>,
        config: &Config,
        shutdown: &CancellationToken,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let peers = Server::new(
            Arc::clone(founding) as Arc<_>,
            config.peer.clone(),
            shutdown.clone(),
        );
        let peer_server = peers.clone();
        tasks.spawn(async move { report("peer", peer_server.run(bound.peer).await) });

        let clients = Arc::new(Seat::default());
        let (reporter, health_service) = tonic_health::server::health_reporter();
        report_readiness(&reporter, false).await;
        let (stopped, followed) = (shutdown.clone(), Arc::clone(health));
        tasks.spawn(async move {
            let follow = follow_readiness(&reporter, &followed);
            stopped.run_until_cancelled(follow).await;
        });
        let routes = client_routes(&clients, config, health_service);
        let incoming = TcpIncoming::from(bound.client).with_nodelay(Some(true));
        let stopped = shutdown.clone().cancelled_owned();
        tasks.spawn(async move {
            report(
                "client",
                routes.serve_with_incoming_shutdown(incoming, stopped).await,
            );
        });

        let http = http::routes(Arc::clone(health) as Arc<_>, Arc::clone(&exposition));
        let stopped = shutdown.clone().cancelled_owned();
        tasks.spawn(async move {
            report(
                "http",
                axum::serve(bound.http, http)
                    .with_graceful_shutdown(stopped)
                    .await,
            );
        });
        let stopped = shutdown.clone();
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
            while stopped.run_until_cancelled(tick.tick()).await.is_some() {
                exposition.upkeep();
            }
        });
        Self {
            peers,
            clients,
            tasks,
        }
    }

    /// Waits until the listeners have ended, for a bounded time: a peer's stream may stay open for as long as the peer.
    pub(crate) async fn finish(mut self) {
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        drop(tokio::time::timeout(CLOSE_WITHIN, ended).await);
    }
}

fn client_routes<H: tonic_health::pb::health_server::Health>(
    clients: &Arc<Seat>,
    config: &Config,
    health: tonic_health::pb::health_server::HealthServer<H>,
) -> tonic::transport::server::Router {
    let frame_bytes_max =
        (config.queue.body_bytes_max as usize * 2 + FRAME_OVERHEAD_BYTES).max(FRAME_BYTES_MIN);
    let messaging = MessagingServer::new(MessagingService::new(Arc::clone(clients)))
        .max_decoding_message_size(frame_bytes_max);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(roost_proto::CLIENT_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let compiled = "the descriptors were compiled with this program";
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_millis(config.session.keep_alive_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(
            config.session.keep_alive_timeout_ms,
        )))
        .add_service(messaging)
        .add_service(AdminServer::new(AdminService::new(Arc::clone(clients))))
        .add_service(health)
        .add_service(reflection().build_v1().expect(compiled))
        // What generic clients of some years ago ask for.
        .add_service(reflection().build_v1alpha().expect(compiled))
}

/// Tells the standard health service what the readiness probe says, at once when the node begins to stop.
async fn follow_readiness(reporter: &HealthReporter, health: &NodeHealth) {
    loop {
        report_readiness(reporter, http::Probes::ready(health).is_ok()).await;
        // Ended early by the beginning of a drain.
        let _ = tokio::time::timeout(READINESS_TICK, health.changed()).await;
    }
}

/// For the node as a whole, whose name is empty, and for each service that clients know.
async fn report_readiness(reporter: &HealthReporter, ready: bool) {
    let status = match ready {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    for service in [
        "",
        MessagingServer::<MessagingService>::NAME,
        AdminServer::<AdminService>::NAME,
    ] {
        reporter.set_service_status(service, status).await;
    }
}

fn report<E: std::fmt::Display>(listener: &'static str, ended: Result<(), E>) {
    if let Err(error) = ended {
        tracing::error!(listener, %error, "a listener ended");
    }
}

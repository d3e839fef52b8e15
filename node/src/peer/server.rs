//! The listener for other nodes. It answers introductions from the first moment, and opens links once the node serves.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use roost_proto::peer::peer_server::{Peer, PeerServer};
use roost_proto::peer::{Frame, Introduction};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::grpc::{CLUSTER, LEVELS, NODE, VERSION, WANTED, WINDOW_BYTES};
use super::serving::Serving;
use super::{Lane, LinkId, MESSAGE_BYTES_MAX, Service};
use crate::config;
use crate::types::NodeId;
use crate::versions::{self, PEER_WIRE, PEER_WIRE_MIN};

/// What only the node itself knows: which cluster it is in, and with whom.
pub trait Doorkeeper: Send + Sync + 'static {
    /// Whether a node of a cluster may open a link to the node that it wants.
    ///
    /// # Errors
    /// The reason, which the other side logs.
    fn admit(&self, cluster_id: &str, node: NodeId, wanted: NodeId) -> Result<(), String>;

    /// Answers an introduction with one's own.
    fn introduce(&self, introduction: Introduction) -> BoxFuture<'_, Introduction>;
}

/// The server for other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    doorkeeper: Arc<dyn Doorkeeper>,
    service: OnceLock<Arc<dyn Service>>,
    bounds: config::Peer,
    next_link: AtomicU64,
    shutdown: CancellationToken,
}

impl Server {
    /// A server that refuses links until [`Server::serve`]. Cancelling `shutdown` closes all of them.
    #[must_use]
    pub fn new(
        doorkeeper: Arc<dyn Doorkeeper>,
        bounds: config::Peer,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            doorkeeper,
            service: OnceLock::new(),
            bounds,
            next_link: AtomicU64::new(LinkId::FIRST_FROM_OTHERS),
            shutdown,
        }))
    }

    /// Opens links from now on. Only the first call counts.
    pub fn serve(&self, service: Arc<dyn Service>) {
        let _ = self.0.service.set(service);
    }

    /// Listens until shutdown.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let bounds = &self.0.bounds;
        let shutdown = self.0.shutdown.clone();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let peers = PeerServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_millis(bounds.keep_alive_ms)))
            .http2_keepalive_timeout(Some(Duration::from_millis(bounds.keep_alive_timeout_ms)))
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(peers)
            .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
            .await
    }

    fn open(
        &self,
        lane: Lane,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        let from = self.admit(&request)?;
        let service = self.0.service.get().ok_or_else(not_serving)?;
        let link = LinkId(self.0.next_link.fetch_add(1, Ordering::Relaxed));
        let address = request
            .remote_addr()
            .map(|address: SocketAddr| address.to_string());
        tracing::debug!(node = %from, lane = lane.as_str(), address, "link opened");
        let (serving, frames) = Serving::new(
            from,
            lane,
            link,
            Arc::clone(service),
            &self.0.bounds,
            self.0.shutdown.child_token(),
        );
        let incoming = request.into_inner();
        let incoming = incoming.scan((), |(), frame| std::future::ready(frame.ok()));
        tokio::spawn(serving.run(incoming));
        Ok(Response::new(frames.map(Ok).boxed()))
    }

    /// Who opens the link, if he may.
    fn admit(&self, request: &Request<Streaming<Frame>>) -> Result<NodeId, Status> {
        let text = |key| {
            let value = request
                .metadata()
                .get(key)
                .and_then(|value| value.to_str().ok());
            value.ok_or_else(|| Status::invalid_argument(format!("a link opens with {key}")))
        };
        let number = |key| {
            let value = text(key)?.parse::<u32>();
            value.map_err(|_| Status::invalid_argument(format!("{key} is no number")))
        };
        let node = |key| {
            let id = NodeId::parse(text(key)?);
            id.map_err(|error| Status::invalid_argument(error.to_string()))
        };
        let wire = number(VERSION)?;
        if wire < PEER_WIRE_MIN {
            return Err(Status::failed_precondition(format!(
                "wire version {wire} is too old for this node, which speaks {PEER_WIRE_MIN} to {PEER_WIRE}"
            )));
        }
        let [level_min, level] = LEVELS;
        versions::check_levels(number(level_min)?, number(level)?)
            .map_err(|reason| Status::failed_precondition(format!("the caller: {reason}")))?;
        let from = node(NODE)?;
        self.0
            .doorkeeper
            .admit(text(CLUSTER)?, from, node(WANTED)?)
            .map_err(Status::permission_denied)?;
        Ok(from)
    }
}

type FrameStream = BoxStream<'static, Result<Frame, Status>>;

#[tonic::async_trait]
impl Peer for Server {
    type ControlStream = FrameStream;
    type TrafficStream = FrameStream;
    type BulkStream = FrameStream;

    async fn introduce(
        &self,
        request: Request<Introduction>,
    ) -> Result<Response<Introduction>, Status> {
        let answer = self.0.doorkeeper.introduce(request.into_inner()).await;
        Ok(Response::new(answer))
    }

    async fn control(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        self.open(Lane::Control, request)
    }

    async fn traffic(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        self.open(Lane::Traffic, request)
    }

    async fn bulk(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<FrameStream>, Status> {
        self.open(Lane::Bulk, request)
    }
}

fn not_serving() -> Status {
    Status::unavailable("this node does not serve yet")
}

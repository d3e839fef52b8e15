//! One node: built in order of dependence, stopped in reverse.

mod addresses;
mod core;
mod founding;
mod health;
mod identity;
mod keeper;
mod listeners;
mod local;
mod rebuild;
mod renewal;
mod supervisor;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use roost_proto::storage::ClusterState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::edge::Served;
use crate::peer::Links;
use crate::peer::grpc::Dialer;
use crate::replica::clock::system_wall_clock;
use crate::router::placement::Placement;
use crate::storage::rocks::damage;
use crate::storage::{self, Store, syncer::Syncer};
use crate::types::NodeId;
use crate::{metrics, sabotage, telemetry};
use addresses::Addresses;
use founding::Founding;
use keeper::Keeper;
use listeners::{Bound, Serving};
use rebuild::Opened;

pub use self::core::{Condemn, Core, Ground};
pub use health::NodeHealth;

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// It had to: a failing disk, or data that it must not serve. The log says which.
    Failed,
}

/// Runs a node until it is told to stop (SIGTERM, Ctrl-C, or a closed standard input where configured).
///
/// # Errors
/// What keeps it from starting: a port in use, data of another cluster or format, a damaged disk.
pub async fn run(config: Config) -> anyhow::Result<Ended> {
    let config = Arc::new(config);
    telemetry::init(&config.log)?;
    let exposition = Arc::new(metrics::install()?);
    metrics::set_bounds(&config);
    for (key, address) in config.insecure_listeners() {
        tracing::warn!(key, %address, "listening beyond loopback without encryption (insecure = true)");
    }
    if let Some(sabotage) = sabotage::chosen() {
        tracing::error!(
            name = sabotage.name(),
            "this node breaks a promise on purpose"
        );
    }
    let bound = Bound::bind(&config.listen).await?;
    let stop = stop_signal(config.exit_with_stdin);
    let failed = CancellationToken::new();
    make_data_dir(&config.data_dir)?;
    let Opened { store, kept } = rebuild::open(&config)?;
    let condemn = condemner(&config);
    let syncer = start_syncer(Arc::clone(&store), failed.clone())?;
    let health = NodeHealth::new(&config, Arc::clone(&syncer));
    let founding = Founding::load(Arc::clone(&config), Arc::clone(&store), kept);
    let founding = founding.inspect_err(|error| condemn_if_damaged(error, &*condemn))?;
    tracing::info!(node = %founding.identity(), name = config.name, "starts");

    let shutdown = CancellationToken::new();
    let serving = Serving::start(bound, &founding, &health, exposition, &config, &shutdown).await;
    let running = async {
        let cluster = founding.wait(&health).await?;
        let node = build(
            Disk {
                config: &config,
                store,
                syncer,
                failed: failed.clone(),
                condemn: Arc::clone(&condemn),
            },
            cluster,
            &founding,
            &health,
            &shutdown,
        )
        .await?;
        serve(&node, &serving);
        health.joined(&node.replicas);
        Ok::<_, anyhow::Error>(node)
    };
    let node = tokio::select! {
        node = running => Some(node.inspect_err(|error| condemn_if_damaged(error, &*condemn))?),
        () = stop.cancelled() => None,
        () = failed.cancelled() => None,
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = failed.cancelled() => {}
    }
    // After a failed sync nothing that this process says is worth anything any more.
    if let Some(node) = node
        && !failed.is_cancelled()
    {
        health.stopping();
        node.drain(&config.session).await;
    }
    shutdown.cancel();
    if !failed.is_cancelled() {
        serving.finish().await;
    }
    Ok(if failed.is_cancelled() {
        Ended::Failed
    } else {
        Ended::Stopped
    })
}

/// What a node stands on.
struct Disk<'a> {
    config: &'a Arc<Config>,
    store: Arc<dyn Store>,
    syncer: Arc<Syncer>,
    /// Cancelled when the store has failed and the process has to end.
    failed: CancellationToken,
    condemn: Arc<Condemn>,
}

/// A node that belongs to a cluster: its core, on this machine's disk, network and clock.
async fn build(
    disk: Disk<'_>,
    cluster: ClusterState,
    founding: &Arc<Founding>,
    health: &Arc<NodeHealth>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Core> {
    let config = disk.config;
    let me = founding.identity();
    let placement = Arc::new(Placement::from_state(&cluster)?);
    let placements = watch::Sender::new(Arc::clone(&placement));
    let addresses = Arc::new(Addresses {
        founding: Arc::clone(founding),
        placements: placements.subscribe(),
    });
    let links = open_links(config, me, &placement.cluster_id, &addresses, shutdown);
    addresses.greet().await?;
    let stop = shutdown.clone();
    tokio::spawn(async move { stop.run_until_cancelled(addresses.look_for_others()).await });
    let ground = Ground {
        me,
        store_id: founding.store_id(),
        record: founding.record(),
        config: Arc::clone(config),
        store: Arc::clone(&disk.store),
        syncer: Arc::clone(&disk.syncer),
        links,
        wall: system_wall_clock(),
        cluster,
        placements,
        health: Arc::clone(health),
        condemn: disk.condemn,
        store_failed: disk.failed,
    };
    let core = Core::build(ground, shutdown).await?;
    let keeper = Keeper {
        config: Arc::clone(config),
        store: disk.store,
        syncer: disk.syncer,
        replicas: Arc::clone(&core.replicas),
        disk_low: health.disk_low_flag(),
    };
    keeper.start(shutdown);
    Ok(core)
}

/// Lets other nodes and clients in.
fn serve(core: &Core, serving: &Serving) {
    serving.peers.serve(Arc::clone(&core.service) as Arc<_>);
    serving.clients.take(Served {
        sessions: Arc::clone(&core.sessions),
        router: Arc::clone(&core.router),
        peers: Arc::clone(&core.peers),
    });
}

fn open_links(
    config: &Config,
    me: NodeId,
    cluster_id: &str,
    addresses: &Arc<Addresses>,
    shutdown: &CancellationToken,
) -> Links {
    let addresses = Arc::clone(addresses);
    let resolve = Arc::new(move |node| addresses.of(node));
    let dialer = Dialer::new(me, cluster_id.to_owned(), config.peer.clone(), resolve);
    Links::new(
        me,
        config.peer.clone(),
        Arc::new(dialer),
        rand::random(),
        shutdown.clone(),
    )
}

fn condemner(config: &Config) -> Arc<Condemn> {
    let path = keeper::store_path(config);
    Arc::new(move |error| damage::condemn(&path, &error.to_string()))
}

/// Damage in the node's own rows is no replica's, and would keep every start from succeeding.
fn condemn_if_damaged(error: &anyhow::Error, condemn: &Condemn) {
    if let Some(error @ storage::Error::Corrupt { .. }) = error.downcast_ref() {
        condemn(error);
    }
}

fn make_data_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the data directory {}", path.display()))
}

fn start_syncer(store: Arc<dyn Store>, failed: CancellationToken) -> anyhow::Result<Arc<Syncer>> {
    let syncer = Syncer::start(store, move |error| {
        tracing::error!(%error, "a sync failed; the node ends");
        failed.cancel();
    });
    Ok(Arc::new(
        syncer.context("cannot start the syncer's thread")?,
    ))
}

/// Cancelled when the process is told to stop.
fn stop_signal(exit_with_stdin: bool) -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        let terminated = async {
            match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                Ok(mut signal) => drop(signal.recv().await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = terminated => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        told.cancel();
    });
    if exit_with_stdin {
        let told = stop.clone();
        // A thread of its own: reading standard input cannot be cancelled, and must not hold up the runtime's end.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            told.cancel();
        });
    }
    stop
}

//! One node: built in order of dependence, stopped in reverse.

mod addresses;
mod founding;
mod health;
mod identity;
mod keeper;
mod listeners;
mod local;
mod rebuild;
mod renewal;
mod supervisor;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use roost_proto::storage::{ClusterState, LocalReplica, ReplicaState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::controller::{self, Controller};
use crate::edge::Served;
use crate::edge::peer::PeerService;
use crate::peer::grpc::Dialer;
use crate::peer::{Links, Peers};
use crate::replica::clock::{Vitals, system_wall_clock};
use crate::replica::{Context, LevelOf, OutboxSignals, Replicas};
use crate::router::placement::Placement;
use crate::router::{Router, outbox};
use crate::session::Sessions;
use crate::storage::rocks::damage;
use crate::storage::{self, Store, syncer::Syncer};
use crate::types::{NodeId, ReplicaId, ShardId};
use crate::{metrics, telemetry};
use addresses::Addresses;
use founding::Founding;
use health::NodeHealth;
use keeper::Keeper;
use listeners::{Bound, Serving};
use rebuild::Opened;
use renewal::Renewals;
use supervisor::Supervisor;

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
        let node = Node::build(
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
        node.serve(&serving);
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
        node.drain(&config).await;
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

/// A node that belongs to a cluster.
struct Node {
    me: NodeId,
    peers: Arc<dyn Peers>,
    replicas: Arc<Replicas>,
    router: Arc<Router>,
    sessions: Arc<Sessions>,
    service: Arc<PeerService>,
}

impl Node {
    async fn build(
        disk: Disk<'_>,
        cluster: ClusterState,
        founding: &Arc<Founding>,
        health: &Arc<NodeHealth>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let Disk {
            config,
            store,
            syncer,
            failed,
            condemn,
        } = disk;
        let me = founding.identity();
        let placement = Arc::new(Placement::from_state(&cluster)?);
        let (placement_sender, placements) = watch::channel(Arc::clone(&placement));
        let addresses = Arc::new(Addresses {
            founding: Arc::clone(founding),
            placements: placements.clone(),
        });
        let links = open_links(config, me, &placement.cluster_id, &addresses, shutdown);
        let peers: Arc<dyn Peers> = Arc::new(links.clone());
        let vitals = Arc::new(Vitals::default());
        let wall = system_wall_clock();
        let disk_low = health.disk_low_handle();
        let no_room = no_majority_has_room(&disk_low, &vitals, placement.nodes().len());
        let cluster_changed = keeper::cluster_keeper(Arc::clone(&store), placement_sender);
        let outbox_signals = Arc::new(OutboxSignals::default());
        let replicas = Arc::new(Replicas::new(Context {
            config: Arc::clone(config),
            store: Arc::clone(&store),
            syncer: Arc::clone(&syncer),
            peers: Arc::clone(&peers),
            wall: Arc::clone(&wall),
            vitals: Arc::clone(&vitals),
            nodes: placement.nodes().len(),
            shards: placement.shards,
            disk_low: no_room,
            feature_level: announced_levels(&placements),
            outbox: Arc::clone(&outbox_signals),
            cluster_changed: Arc::clone(&cluster_changed),
        }));
        let service = Arc::new(PeerService::new(
            Arc::clone(&replicas),
            Arc::clone(health) as Arc<_>,
            Arc::clone(&wall),
        ));
        links.serve_here(Arc::clone(&service) as Arc<_>);
        addresses.greet().await?;
        let stop = shutdown.clone();
        tokio::spawn(async move { stop.run_until_cancelled(addresses.look_for_others()).await });
        let locals = local::all(&*store)?;
        for local in &locals {
            open_replica(&replicas, &placement, &*store, local).await?;
        }
        // Before anybody can ask: a node in the middle of its rebuild is at no moment ready.
        health.rebuilds(rebuild::progress(me, &placement, &locals));
        let router = Arc::new(Router::new(
            Arc::clone(&peers),
            Arc::clone(&replicas),
            placements,
        ));
        let sessions = Sessions::new(Arc::clone(&router), config);
        let pump = outbox::run(
            Arc::clone(&router),
            Arc::clone(&replicas),
            outbox_signals,
            shutdown.clone(),
        );
        tokio::spawn(pump);
        let controller = Controller {
            me,
            peers: Arc::clone(&peers),
            replicas: Arc::clone(&replicas),
            router: Arc::clone(&router),
            vitals,
            wall,
            clock_offset_max_ms: config.replica.clock_offset_max_ms,
            disk_low,
            clock_warning: clock_warning(health),
            plan: cluster.plan.unwrap_or_default(),
            record: founding.record(),
            cluster_changed,
        };
        tokio::spawn(controller.run(shutdown.clone()));
        let supervisor = Supervisor {
            renewals: Renewals {
                me,
                store_id: founding.store_id(),
                store: Arc::clone(&store),
                replicas: Arc::clone(&replicas),
                router: Arc::clone(&router),
                leading: Arc::default(),
            },
            health: Arc::clone(health),
            data_dir: config.data_dir.clone(),
            condemn,
            store_failed: failed.clone(),
        };
        tokio::spawn(supervisor.run(shutdown.clone()));
        let keeper = Keeper {
            config: Arc::clone(config),
            store,
            syncer,
            replicas: Arc::clone(&replicas),
            disk_low: health.disk_low_flag(),
        };
        keeper.start(shutdown);
        Ok(Self {
            me,
            peers,
            replicas,
            router,
            sessions,
            service,
        })
    }

    /// Lets other nodes and clients in.
    fn serve(&self, serving: &Serving) {
        serving.peers.serve(Arc::clone(&self.service) as Arc<_>);
        serving.clients.take(Served {
            sessions: Arc::clone(&self.sessions),
            router: Arc::clone(&self.router),
            peers: Arc::clone(&self.peers),
        });
    }

    /// Stops taking sessions, hands leaderships over, tells sessions where to go.
    async fn drain(&self, config: &Config) {
        let within = Duration::from_millis(config.session.drain_ms);
        let hand_over =
            controller::hand_over_all(self.me, &self.replicas, &self.router, &*self.peers);
        // What was not handed over in time is elected elsewhere, a moment later.
        let _ = tokio::time::timeout(within, async {
            tokio::join!(self.sessions.drain(within), hand_over)
        })
        .await;
        for replica in self.replicas.all() {
            self.replicas.close(replica.shard()).await;
        }
        tracing::info!("drained");
    }
}

/// Where the controller says that this node's clock is off, or no longer.
fn clock_warning(health: &Arc<NodeHealth>) -> Arc<dyn Fn(Option<String>) + Send + Sync> {
    let health = Arc::clone(health);
    Arc::new(move |warning| health.note("clock", warning))
}

/// Whether new messages are refused: this node's disk is below its reserve, or those of so many others that no majority
/// has room.
fn no_majority_has_room(
    here: &Arc<dyn Fn() -> bool + Send + Sync>,
    vitals: &Arc<Vitals>,
    nodes: usize,
) -> Arc<dyn Fn() -> bool + Send + Sync> {
    let (here, vitals) = (Arc::clone(here), Arc::clone(vitals));
    Arc::new(move || here() || 2 * (nodes - vitals.nodes_without_room().min(nodes)) <= nodes)
}

/// What the other nodes understand, as the meta shard has it.
fn announced_levels(placements: &watch::Receiver<Arc<Placement>>) -> LevelOf {
    let placements = placements.clone();
    Arc::new(move |node| {
        let placement = placements.borrow();
        let node = placement.nodes().get(&node);
        node.map_or(0, |node| node.feature_level)
    })
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

async fn open_replica(
    replicas: &Arc<Replicas>,
    placement: &Placement,
    store: &dyn Store,
    local: &LocalReplica,
) -> anyhow::Result<()> {
    if local.state() != ReplicaState::Active {
        return Ok(());
    }
    let shard = ShardId(local.shard);
    let members: BTreeMap<ReplicaId, NodeId> = placement.replicas(shard).iter().copied().collect();
    // Only a founding replica founds; one that was renewed is added by its shard's leader.
    let members = members
        .contains_key(&ReplicaId(local.replica))
        .then_some(members);
    match replicas.open(local, members).await {
        Ok(_) => Ok(()),
        Err(error) => match error.damage() {
            // The node goes on with its other replicas; the supervisor has this one renewed.
            Some(reason) => {
                tracing::error!(%shard, replica = local.replica, reason, "a replica is damaged; it does not start");
                Ok(local::mark_failed(
                    store,
                    shard,
                    ReplicaId(local.replica),
                    reason,
                )?)
            }
            None => Err(error).with_context(|| format!("shard {shard} does not open")),
        },
    }
}

/// Has the next start refuse the store, and rebuild the node where it can.
type Condemn = dyn Fn(&storage::Error) + Send + Sync;

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

//! The part of a node that knows nothing of files, sockets and the machine's clock: replicas, router, sessions, and what
//! looks after them.
//!
//! [`run`](super::run) builds it over RocksDB, gRPC and the system's clock. The simulation builds it over memory, a few
//! nodes in one thread and many lives of each: what is wired here is what it tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use roost_proto::storage::{ClusterState, LocalReplica, NodeRecord, ReplicaState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::health::NodeHealth;
use super::keeper::cluster_keeper;
use super::renewal::Renewals;
use super::supervisor::Supervisor;
use super::{local, rebuild};
use crate::config::{self, Config};
use crate::controller::{self, Controller};
use crate::edge::peer::PeerService;
use crate::peer::{Links, Peers};
use crate::replica::clock::{Vitals, WallClock};
use crate::replica::{Context, LevelOf, OutboxSignals, Replicas};
use crate::router::placement::Placement;
use crate::router::{Router, outbox};
use crate::session::Sessions;
use crate::storage::{self, Store, syncer::Syncer};
use crate::types::{NodeId, ReplicaId, ShardId};

/// Has the next start refuse the store, and rebuild the node where it can.
pub type Condemn = dyn Fn(&storage::Error) + Send + Sync;

/// What a core stands on.
pub struct Ground {
    /// This node.
    pub me: NodeId,
    /// Drawn with the store: an order to open a new replica names it.
    pub store_id: u64,
    /// What the meta shard is to know of this node.
    pub record: NodeRecord,
    /// The settings.
    pub config: Arc<Config>,
    /// The node's store.
    pub store: Arc<dyn Store>,
    /// The node's one syncer, over the same store.
    pub syncer: Arc<Syncer>,
    /// The links to the other nodes.
    pub links: Links,
    /// The wall clock.
    pub wall: WallClock,
    /// The cluster as this node last heard of it.
    pub cluster: ClusterState,
    /// The placement in `cluster`, and from now on the newest.
    pub placements: watch::Sender<Arc<Placement>>,
    /// What others are told of this node.
    pub health: Arc<NodeHealth>,
    /// Refuses the store at the next start.
    pub condemn: Arc<Condemn>,
    /// Cancelled when the store has failed and the process has to end.
    pub store_failed: CancellationToken,
}

/// A node that belongs to a cluster. It serves nobody yet.
pub struct Core {
    /// This node.
    pub me: NodeId,
    /// All nodes, this one among them.
    pub peers: Arc<dyn Peers>,
    /// The replicas here.
    pub replicas: Arc<Replicas>,
    /// The way to every shard's leader.
    pub router: Arc<Router>,
    /// The sessions here.
    pub sessions: Arc<Sessions>,
    /// What other nodes ask.
    pub service: Arc<PeerService>,
}

impl Core {
    /// Opens the replicas on the disk and starts everything; it ends with `stop`.
    ///
    /// # Errors
    /// A store that fails, or that another version wrote. A replica that is damaged is out, and is renewed.
    pub async fn build(ground: Ground, stop: &CancellationToken) -> anyhow::Result<Self> {
        let Ground {
            me,
            config,
            store,
            syncer,
            links,
            wall,
            placements,
            health,
            ..
        } = ground;
        let placement = Arc::clone(&placements.borrow());
        let known = placements.subscribe();
        let peers: Arc<dyn Peers> = Arc::new(links.clone());
        let vitals = Arc::new(Vitals::default());
        let disk_low = health.disk_low_handle();
        let cluster_changed = cluster_keeper(Arc::clone(&store), placements);
        let outbox_signals = Arc::new(OutboxSignals::default());
        let replicas = Arc::new(Replicas::new(Context {
            config: Arc::clone(&config),
            store: Arc::clone(&store),
            syncer,
            peers: Arc::clone(&peers),
            wall: Arc::clone(&wall),
            vitals: Arc::clone(&vitals),
            nodes: placement.nodes().len(),
            shards: placement.shards,
            disk_low: no_majority_has_room(&disk_low, &vitals, placement.nodes().len()),
            feature_level: announced_levels(&known),
            outbox: Arc::clone(&outbox_signals),
            cluster_changed: Arc::clone(&cluster_changed),
        }));
        let service = Arc::new(PeerService::new(
            Arc::clone(&replicas),
            Arc::clone(&health) as Arc<_>,
            Arc::clone(&wall),
        ));
        links.serve_here(Arc::clone(&service) as Arc<_>);
        let locals = local::all(&*store)?;
        for local in &locals {
            open_replica(&replicas, &placement, &*store, local).await?;
        }
        // Before anybody can ask: a node in the middle of its rebuild is at no moment ready.
        health.rebuilds(rebuild::progress(me, &placement, &locals));
        let router = Arc::new(Router::new(
            Arc::clone(&peers),
            Arc::clone(&replicas),
            known,
        ));
        let sessions = Sessions::new(Arc::clone(&router), &config);
        let pump = outbox::run(
            Arc::clone(&router),
            Arc::clone(&replicas),
            outbox_signals,
            stop.clone(),
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
            clock_warning: clock_warning(&health),
            plan: ground.cluster.plan.unwrap_or_default(),
            record: ground.record,
            cluster_changed,
        };
        tokio::spawn(controller.run(stop.clone()));
        let supervisor = Supervisor {
            renewals: Renewals {
                me,
                store_id: ground.store_id,
                store,
                replicas: Arc::clone(&replicas),
                router: Arc::clone(&router),
                leading: Arc::default(),
            },
            health,
            data_dir: config.data_dir.clone(),
            condemn: ground.condemn,
            store_failed: ground.store_failed,
        };
        tokio::spawn(supervisor.run(stop.clone()));
        Ok(Self {
            me,
            peers,
            replicas,
            router,
            sessions,
            service,
        })
    }

    /// Stops taking sessions, hands leaderships over, tells sessions where to go.
    pub async fn drain(&self, config: &config::Session) {
        let within = Duration::from_millis(config.drain_ms);
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

//! Three nodes, built as `roost::node` builds one, with a store and a network in memory and without listeners.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost::config::Config;
use roost::controller::Controller;
use roost::edge::peer::{Health, PeerService};
use roost::peer::Peers;
use roost::peer::memory::Network;
use roost::raft::Keep;
use roost::replica::clock::{Vitals, WallClock};
use roost::replica::{Context, OutboxSignals, Replicas};
use roost::router::placement::Placement;
use roost::router::{Router, outbox};
use roost::session::Sessions;
use roost::storage::keys::{self, Key};
use roost::storage::memory::MemoryStore;
use roost::storage::syncer::Syncer;
use roost::storage::{Batch, Column, Read as _, Store, value};
use roost::types::{NodeId, ReplicaId, ShardId};
use roost_proto::storage::{ClusterState, LocalReplica, NodeRecord, Plan, ReplicaState};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many nodes.
pub(super) const NODES: usize = 3;
const SHARDS: u32 = 4;
/// Larger bodies are refused for good.
pub(super) const BODY_BYTES_MAX: usize = 1024;
/// A Tuesday noon.
const EPOCH_MS: u64 = 20_000 * 86_400_000 + 43_200_000;
/// Between two purges of the logs, so that a node which was away for longer needs a snapshot.
const COLLECT: Duration = Duration::from_secs(2);

/// The cluster. Nodes are numbered from 0.
pub(super) struct Cluster {
    pub(super) network: Network,
    plan: Plan,
    /// The wall clock's start.
    start: Instant,
    nodes: RefCell<Vec<Node>>,
    disks_lie: Cell<bool>,
}

struct Node {
    id: NodeId,
    disk: MemoryStore,
    /// How far its wall clock is from the virtual one.
    offset_ms: u64,
    running: Option<Running>,
}

struct Running {
    /// The process: everything ends with it.
    life: CancellationToken,
    replicas: Arc<Replicas>,
    router: Arc<Router>,
    sessions: Arc<Sessions>,
}

impl Cluster {
    /// A founded cluster whose nodes all run. `offsets_ms` are the errors of their wall clocks.
    pub(super) async fn start(seed: u64, offsets_ms: [u64; NODES]) -> Self {
        roost::raft::seed(seed);
        let ids: Vec<NodeId> = (1..=NODES as u128)
            .map(|number| NodeId::from_bytes(number.to_be_bytes()))
            .collect();
        let records = ids.iter().map(|id| NodeRecord {
            id: id.to_string(),
            name: id.to_string(),
            ..NodeRecord::default()
        });
        let plan = roost::cluster::plan(
            "simulated".to_owned(),
            records.collect(),
            SHARDS,
            NODES as u32,
            bytes::Bytes::new(),
        );
        let cluster = Self {
            network: Network::new(seed, Config::default().peer),
            plan: plan.expect("three nodes make a cluster"),
            start: Instant::now(),
            nodes: RefCell::default(),
            disks_lie: Cell::new(false),
        };
        cluster.network.delay(0..=3);
        for (id, offset_ms) in ids.into_iter().zip(offsets_ms) {
            let node = Node {
                id,
                disk: cluster.founded_disk(id),
                offset_ms,
                running: None,
            };
            cluster.nodes.borrow_mut().push(node);
        }
        for number in 0..NODES {
            cluster.power_on(number).await;
        }
        cluster
    }

    /// What founding leaves on a disk.
    fn founded_disk(&self, id: NodeId) -> MemoryStore {
        let disk = MemoryStore::new();
        let mut batch = Batch::default();
        let id = id.to_string();
        for shard in &self.plan.placement {
            for replica in shard.replicas.iter().filter(|replica| replica.node == id) {
                let mut local = LocalReplica {
                    replica: replica.replica,
                    shard: shard.shard,
                    ..LocalReplica::default()
                };
                local.set_state(ReplicaState::Active);
                batch.put_row(&Key::Replica(ReplicaId(replica.replica)), &local);
            }
        }
        disk.write(batch).expect("the store is whole");
        disk.sync().expect("the store is whole");
        disk
    }

    /// A node's id.
    pub(super) fn id(&self, number: usize) -> NodeId {
        self.nodes.borrow()[number].id
    }

    /// Whether a node runs.
    pub(super) fn is_up(&self, number: usize) -> bool {
        self.nodes.borrow()[number].running.is_some()
    }

    /// A running node's router.
    pub(super) fn router(&self, number: usize) -> Option<Arc<Router>> {
        let nodes = self.nodes.borrow();
        Some(Arc::clone(&nodes[number].running.as_ref()?.router))
    }

    /// A running node's sessions, and what ends with the node.
    pub(super) fn door(&self, number: usize) -> Option<(Arc<Sessions>, CancellationToken)> {
        let nodes = self.nodes.borrow();
        let running = nodes[number].running.as_ref()?;
        Some((Arc::clone(&running.sessions), running.life.child_token()))
    }

    /// Whether disks, from now on and after every crash, claim to sync and do not.
    pub(super) fn lie_about_syncs(&self, lie: bool) {
        self.disks_lie.set(lie);
        for node in &*self.nodes.borrow() {
            node.disk.lie_about_syncs(lie);
        }
    }

    /// Batches that a node's crash could lose now.
    pub(super) fn unsynced(&self, number: usize) -> usize {
        self.nodes.borrow()[number].disk.unsynced()
    }

    /// Power loss: the first `keep` unsynced batches survive.
    pub(super) fn crash(&self, number: usize, keep: usize) {
        let mut nodes = self.nodes.borrow_mut();
        let node = &mut nodes[number];
        let Some(dead) = node.running.take() else {
            return;
        };
        node.disk = node.disk.crash(keep);
        node.disk.lie_about_syncs(self.disks_lie.get());
        self.network.crash(node.id);
        dead.life.cancel();
        // Tasks cannot be killed as a process can: they run on without disk and network until they notice.
        tokio::spawn(async move {
            for replica in dead.replicas.all() {
                dead.replicas.close(replica.shard()).await;
            }
        });
    }

    /// Starts a node over what is on its disk, unless it runs.
    pub(super) async fn power_on(&self, number: usize) {
        if self.is_up(number) {
            return;
        }
        let (id, disk, offset_ms) = {
            let nodes = self.nodes.borrow();
            let node = &nodes[number];
            (node.id, node.disk.clone(), node.offset_ms)
        };
        let start = self.start;
        let wall: WallClock = Arc::new(move || {
            let passed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            EPOCH_MS + offset_ms + passed
        });
        let running = self.build(id, disk, wall).await;
        self.nodes.borrow_mut()[number].running = Some(running);
    }

    /// As `roost::node` does.
    async fn build(&self, id: NodeId, disk: MemoryStore, wall: WallClock) -> Running {
        let life = CancellationToken::new();
        let config = Arc::new(config(id));
        let placement = Placement::from_state(&ClusterState {
            plan: Some(self.plan.clone()),
            ..ClusterState::default()
        });
        let placement = Arc::new(placement.expect("the plan is our own"));
        let (known, placements) = watch::channel(Arc::clone(&placement));
        let links = self.network.links(id, life.clone());
        let peers: Arc<dyn Peers> = Arc::new(links.clone());
        let vitals = Arc::new(Vitals::default());
        let store: Arc<dyn Store> = Arc::new(disk.clone());
        let outbox_signals = Arc::new(OutboxSignals::default());
        let disk_low: Arc<dyn Fn() -> bool + Send + Sync> = Arc::new(|| false);
        let cluster_changed: Arc<dyn Fn(ClusterState) + Send + Sync> =
            Arc::new(move |cluster| hear(&known, &cluster));
        let died = life.clone();
        let replicas = Arc::new(Replicas::new(Context {
            config: Arc::clone(&config),
            store: Arc::clone(&store),
            syncer: Arc::new(Syncer::inline(store, move |_| died.cancel())),
            peers: Arc::clone(&peers),
            wall: Arc::clone(&wall),
            vitals: Arc::clone(&vitals),
            nodes: NODES,
            shards: SHARDS,
            disk_low: Arc::clone(&disk_low),
            feature_level: Arc::new(|_| roost::versions::FEATURE_LEVEL),
            outbox: Arc::clone(&outbox_signals),
            cluster_changed: Arc::clone(&cluster_changed),
        }));
        let service = Arc::new(PeerService::new(
            Arc::clone(&replicas),
            Arc::new(Well),
            Arc::clone(&wall),
        ));
        links.serve_here(Arc::clone(&service) as Arc<_>);
        open_replicas(&replicas, &placement, &disk).await;
        let router = Arc::new(Router::new(
            Arc::clone(&peers),
            Arc::clone(&replicas),
            placements,
        ));
        let sessions = Sessions::new(Arc::clone(&router), &config);
        tokio::spawn(outbox::run(
            Arc::clone(&router),
            Arc::clone(&replicas),
            outbox_signals,
            life.clone(),
        ));
        let controller = Controller {
            me: id,
            clock_warning: Arc::new(|_| {}),
            plan: self.plan.clone(),
            record: placement.nodes()[&id].clone(),
            peers,
            replicas: Arc::clone(&replicas),
            router: Arc::clone(&router),
            vitals,
            wall,
            clock_offset_max_ms: config.replica.clock_offset_max_ms,
            disk_low,
            cluster_changed,
        };
        tokio::spawn(controller.run(life.clone()));
        let heartbeat = Duration::from_millis(config.raft.heartbeat_ms);
        let beats = heartbeats(Arc::clone(&replicas), heartbeat);
        let purges = purges(Arc::clone(&replicas));
        for work in [
            Box::pin(beats) as futures::future::BoxFuture<'static, ()>,
            Box::pin(purges),
        ] {
            let life = life.clone();
            tokio::spawn(async move { life.run_until_cancelled(work).await });
        }
        self.network.serve(id, service);
        Running {
            life,
            replicas,
            router,
            sessions,
        }
    }
}

fn config(id: NodeId) -> Config {
    let mut config = Config {
        name: id.to_string(),
        ..Config::default()
    };
    config.cluster.shards = SHARDS;
    config.queue.body_bytes_max = BODY_BYTES_MAX as u64;
    // Small, so that windows fill.
    config.session.window_entries = 16;
    config.session.request_timeout_ms = 4_000;
    config.replica.propose_timeout_ms = 2_000;
    config
}

async fn open_replicas(replicas: &Arc<Replicas>, placement: &Placement, disk: &MemoryStore) {
    let rows: Vec<_> = disk.scan(Column::Node, keys::replicas()).collect();
    for row in rows {
        let (key, bytes) = row.expect("the disk lives");
        let local: LocalReplica = value::decode("a replica", &key, bytes).expect("it is whole");
        let members: BTreeMap<ReplicaId, NodeId> = placement
            .replicas(ShardId(local.shard))
            .iter()
            .copied()
            .collect();
        let opened = replicas.open(&local, Some(members)).await;
        opened.expect("what a crash leaves can be opened");
    }
}

fn hear(known: &watch::Sender<Arc<Placement>>, cluster: &ClusterState) {
    let newer = Placement::from_state(cluster).expect("the plan is our own");
    known.send_if_modified(|known| {
        let rises = newer.epoch > known.epoch;
        if rises {
            *known = Arc::new(newer);
        }
        rises
    });
}

async fn heartbeats(replicas: Arc<Replicas>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        for replica in replicas.all() {
            replica.group().heartbeat().await;
        }
    }
}

async fn purges(replicas: Arc<Replicas>) {
    loop {
        tokio::time::sleep(COLLECT).await;
        for replica in replicas.all() {
            let keep = Keep {
                age: COLLECT * 2,
                bytes: 64 * 1024,
            };
            // A node that lost its disk in the middle of it ends anyway.
            drop(replica.group().collect(keep).await);
        }
    }
}

/// A node that complains of nothing.
struct Well;

impl Health for Well {
    fn ready(&self) -> bool {
        true
    }

    fn disk_low(&self) -> bool {
        false
    }

    fn leaving(&self) -> bool {
        false
    }

    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

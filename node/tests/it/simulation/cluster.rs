//! Three nodes: the core of each as `roost::node` builds it, over a disk, a network and a clock in memory, without
//! listeners.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use roost::config::Config;
use roost::node::{Core, Ground, NodeHealth};
use roost::peer::memory::Network;
use roost::raft::{Keep, View};
use roost::replica::Replicas;
use roost::replica::clock::WallClock;
use roost::router::Router;
use roost::router::placement::Placement;
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

use super::disk::Watched;
use super::observer::Observer;
use super::sameness;

/// How many nodes.
pub(super) const NODES: usize = 3;
const SHARDS: u32 = 4;
/// Larger bodies are refused for good.
pub(super) const BODY_BYTES_MAX: usize = 1024;
/// Small, so that windows fill.
pub(super) const WINDOW_ENTRIES_MAX: u64 = 16;
/// How far a sound clock may be ahead.
pub(super) const CLOCK_ERROR_MAX_MS: u64 = 2_000;
/// A Tuesday noon.
const EPOCH_MS: u64 = 20_000 * 86_400_000 + 43_200_000;
/// Between two purges of the logs, so that a node which was away for longer needs a snapshot.
const COLLECT: Duration = Duration::from_secs(2);

/// The cluster. Nodes are numbered from 0.
pub(super) struct Cluster {
    pub(super) network: Network,
    pub(super) observer: RefCell<Observer>,
    pub(super) truncations: Arc<AtomicU64>,
    plan: Plan,
    /// The wall clock's start.
    start: Instant,
    nodes: RefCell<Vec<Node>>,
    disks_lie: Cell<bool>,
}

struct Node {
    id: NodeId,
    disk: MemoryStore,
    /// Drawn with the disk.
    store_id: u64,
    /// How far its wall clock is from the virtual one.
    offset_ms: Arc<AtomicI64>,
    running: Option<Running>,
}

struct Running {
    /// The process: everything ends with it.
    life: CancellationToken,
    core: Core,
}

impl Cluster {
    /// A founded cluster whose nodes all run. `offsets_ms` are the errors of their wall clocks.
    pub(super) async fn start(seed: u64, offsets_ms: [u64; NODES]) -> Self {
        roost::raft::seed(seed);
        let ids: Vec<NodeId> = (1..=NODES as u128)
            .map(|number| NodeId::from_bytes(number.to_be_bytes()))
            .collect();
        let records = ids.iter().copied().map(record);
        let plan = roost::cluster::plan(
            "simulated".to_owned(),
            records.collect(),
            SHARDS,
            NODES as u32,
            bytes::Bytes::new(),
        );
        let cluster = Self {
            network: Network::new(seed, Config::default().peer),
            observer: RefCell::default(),
            truncations: Arc::default(),
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
                store_id: 1,
                offset_ms: Arc::new(AtomicI64::new(offset_ms.cast_signed())),
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

    /// Nodes that run and have ended themselves.
    pub(super) fn ended(&self) -> Vec<usize> {
        let nodes = self.nodes.borrow();
        let ended = |node: &Node| {
            let running = node.running.as_ref();
            running.is_some_and(|running| running.life.is_cancelled())
        };
        (0..NODES).filter(|&number| ended(&nodes[number])).collect()
    }

    /// A running node's router.
    pub(super) fn router(&self, number: usize) -> Option<Arc<Router>> {
        let nodes = self.nodes.borrow();
        Some(Arc::clone(&nodes[number].running.as_ref()?.core.router))
    }

    /// A running node's sessions, and what ends with the node.
    pub(super) fn door(&self, number: usize) -> Option<(Arc<Sessions>, CancellationToken)> {
        let nodes = self.nodes.borrow();
        let running = nodes[number].running.as_ref()?;
        Some((
            Arc::clone(&running.core.sessions),
            running.life.child_token(),
        ))
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

    /// Rows of queues on a node's disk.
    pub(super) fn entry_keys(&self, number: usize) -> Vec<bytes::Bytes> {
        let disk = self.nodes.borrow()[number].disk.clone();
        let rows = disk.scan(Column::State, everything());
        let keys = rows.filter_map(|row| row.ok().map(|(key, _)| key));
        keys.filter(|key| matches!(Key::decode(Column::State, key), Ok(Key::Entry(..))))
            .collect()
    }

    /// Flips a bit of a row on a node's disk.
    pub(super) fn flip_bit(&self, number: usize, key: &[u8]) {
        self.nodes.borrow()[number]
            .disk
            .flip_bit(Column::State, key);
    }

    /// Sets a node's wall clock.
    pub(super) fn move_clock(&self, number: usize, by_ms: i64) {
        let nodes = self.nodes.borrow();
        nodes[number].offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Power loss: the first `keep` unsynced batches survive.
    pub(super) fn crash(&self, number: usize, keep: usize) {
        let mut nodes = self.nodes.borrow_mut();
        let node = &mut nodes[number];
        let Some(Running { life, core }) = node.running.take() else {
            return;
        };
        node.disk = node.disk.crash(keep);
        node.disk.lie_about_syncs(self.disks_lie.get());
        self.network.crash(node.id);
        life.cancel();
        // Tasks cannot be killed as a process can: they run on without disk and network until they notice.
        tokio::spawn(async move {
            for replica in core.replicas.all() {
                core.replicas.close(replica.shard()).await;
            }
        });
    }

    /// The disk of a node that is down is empty; of its own life only the node id is known, as by the file beside a
    /// real node's store.
    pub(super) fn wipe(&self, number: usize) {
        let node = &mut self.nodes.borrow_mut()[number];
        assert!(
            node.running.is_none(),
            "only a node that is down loses its disk"
        );
        node.disk = MemoryStore::new();
        node.disk.lie_about_syncs(self.disks_lie.get());
        node.store_id += 1;
    }

    /// Starts a node over what is on its disk, unless it runs.
    pub(super) async fn power_on(&self, number: usize) {
        if self.is_up(number) {
            return;
        }
        let running = self.build(number).await;
        self.nodes.borrow_mut()[number].running = Some(running);
    }

    async fn build(&self, number: usize) -> Running {
        let (id, disk, store_id, wall) = {
            let nodes = self.nodes.borrow();
            let node = &nodes[number];
            (node.id, node.disk.clone(), node.store_id, self.wall(node))
        };
        let life = CancellationToken::new();
        let config = Arc::new(config(id));
        let cached = value::get(&disk, &Key::ClusterCache).expect("nobody damages this row");
        let cluster: ClusterState = cached.unwrap_or(ClusterState {
            plan: Some(self.plan.clone()),
            ..ClusterState::default()
        });
        let placement = Placement::from_state(&cluster).expect("the plan is our own");
        let store: Arc<dyn Store> = Arc::new(Watched {
            disk,
            truncations: Arc::clone(&self.truncations),
        });
        let died = life.clone();
        let syncer = Arc::new(Syncer::inline(Arc::clone(&store), move |_| died.cancel()));
        let health = NodeHealth::new(&config, Arc::clone(&syncer));
        let ground = Ground {
            me: id,
            store_id,
            record: record(id),
            config: Arc::clone(&config),
            store,
            syncer,
            links: self.network.links(id, life.clone()),
            wall,
            cluster,
            placements: watch::Sender::new(Arc::new(placement)),
            health: Arc::clone(&health),
            condemn: Arc::new(|error| panic!("a node's own rows are damaged: {error}")),
            store_failed: life.clone(),
        };
        let core = Core::build(ground, &life).await;
        let core = core.expect("what a crash leaves can be opened");
        health.joined(&core.replicas);
        let heartbeat = Duration::from_millis(config.raft.heartbeat_ms);
        let beats = heartbeats(Arc::clone(&core.replicas), heartbeat);
        let purges = purges(Arc::clone(&core.replicas));
        for work in [
            Box::pin(beats) as futures::future::BoxFuture<'static, ()>,
            Box::pin(purges),
        ] {
            let life = life.clone();
            tokio::spawn(async move { life.run_until_cancelled(work).await });
        }
        self.network.serve(id, Arc::clone(&core.service) as Arc<_>);
        Running { life, core }
    }

    fn wall(&self, node: &Node) -> WallClock {
        let (start, offset_ms) = (self.start, Arc::clone(&node.offset_ms));
        Arc::new(move || {
            let passed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            (EPOCH_MS + passed).saturating_add_signed(offset_ms.load(Ordering::Relaxed))
        })
    }

    /// Notes what every replica says of itself.
    pub(super) fn observe(&self) {
        let mut observer = self.observer.borrow_mut();
        for node in &*self.nodes.borrow() {
            let running = node.running.iter();
            for replica in running.flat_map(|running| running.core.replicas.all()) {
                let state = replica.group().state();
                observer.look(replica.id(), node.store_id, &state.borrow());
            }
        }
    }

    /// Replicas in service that the founding plan does not know.
    pub(super) fn renewed(&self) -> u64 {
        let founded = self.plan.next_replica;
        let newest = self.placements().into_iter().max_by_key(|p| p.epoch);
        let newest = newest.unwrap_or_default();
        let ids: BTreeSet<ReplicaId> = newest
            .all_shards()
            .flat_map(|shard| newest.replicas(shard))
            .map(|(id, _)| *id)
            .collect();
        ids.iter().filter(|id| id.0 >= founded).count() as u64
    }

    /// Whether every node runs, and every replica that the cluster wants is there and needs no renewal.
    pub(super) fn is_whole(&self) -> bool {
        self.lacks().is_empty()
    }

    /// What a whole cluster has and this one lacks.
    pub(super) fn lacks(&self) -> Vec<String> {
        let nodes = self.nodes.borrow();
        let mut lacks = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            for (key, bytes) in node
                .disk
                .scan(Column::Node, keys::replicas())
                .filter_map(Result::ok)
            {
                let local: LocalReplica =
                    value::decode("a replica", &key, bytes).expect("nobody damages this row");
                if matches!(local.state(), ReplicaState::Failed | ReplicaState::Lost) {
                    lacks.push(format!("node {number} has {local:?}"));
                }
            }
            let Some(running) = node.running.as_ref() else {
                lacks.push(format!("node {number} is down"));
                continue;
            };
            let placement = running.core.router.placement();
            if placement.epoch == 0 {
                lacks.push(format!("node {number} knows no placement"));
            }
            for renewal in placement.renewals() {
                lacks.push(format!("node {number} sees {renewal:?}"));
            }
            for shard in placement.all_shards() {
                let wanted = placement.replicas(shard).iter();
                for (id, _) in wanted.filter(|(_, on)| *on == node.id) {
                    let here = running.core.replicas.get(shard);
                    let here = here.map(|replica| replica.id());
                    if here != Some(*id) {
                        lacks.push(format!(
                            "node {number} has {here:?} of shard {shard} in place of {id}"
                        ));
                    }
                }
            }
        }
        lacks
    }

    /// As the running nodes know it.
    fn placements(&self) -> Vec<Arc<Placement>> {
        let nodes = self.nodes.borrow();
        let running = nodes.iter().filter_map(|node| node.running.as_ref());
        running.map(|node| node.core.router.placement()).collect()
    }

    /// What is wrong with the replicas of each shard: nothing if all have applied the same and hold the same.
    pub(super) fn compare(&self) -> Compared {
        let mut shards: BTreeMap<ShardId, Vec<(Option<u64>, View)>> = BTreeMap::new();
        for running in self
            .nodes
            .borrow()
            .iter()
            .filter_map(|n| n.running.as_ref())
        {
            for replica in running.core.replicas.all() {
                let applied = replica.group().state().borrow().last_applied;
                let of_shard = shards.entry(replica.shard()).or_default();
                of_shard.push((applied, replica.view()));
            }
        }
        let mut compared = Compared::default();
        for (shard, replicas) in shards {
            let same = |pair: &[(Option<u64>, View)]| pair[0].0 == pair[1].0;
            if replicas.len() != NODES || !replicas.windows(2).all(same) {
                compared.behind.push(shard);
                continue;
            }
            let states: Vec<_> = replicas.iter().map(|(_, v)| sameness::rows(v)).collect();
            let equal = |pair: &[Result<sameness::Rows, _>]| match (&pair[0], &pair[1]) {
                (Ok(one), Ok(other)) => one == other,
                _ => false,
            };
            if !states.windows(2).all(equal) {
                compared.different.push(shard);
            }
        }
        compared
    }

    /// Everything on a node's disk.
    pub(super) fn dump(&self, number: usize, mut row: impl FnMut(&[u8], &[u8])) {
        let disk = self.nodes.borrow()[number].disk.clone();
        for column in [Column::Node, Column::Log, Column::State] {
            for (key, value) in disk.scan(column, everything()).filter_map(Result::ok) {
                row(&key, &value);
            }
        }
    }
}

/// How the replicas of the shards stand to each other.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Not all have applied the same, yet.
    pub(super) behind: Vec<ShardId>,
    /// All have applied the same, and their states differ.
    pub(super) different: Vec<ShardId>,
}

/// All keys of a column.
fn everything() -> std::ops::Range<bytes::Bytes> {
    // Replica ids are counted from 1 and kinds are far below.
    bytes::Bytes::new()..bytes::Bytes::from_static(&[u8::MAX; 9])
}

fn record(id: NodeId) -> NodeRecord {
    NodeRecord {
        id: id.to_string(),
        name: id.to_string(),
        feature_level: roost::versions::FEATURE_LEVEL,
        ..NodeRecord::default()
    }
}

fn config(id: NodeId) -> Config {
    let mut config = Config {
        name: id.to_string(),
        // Nothing is there, and nothing is made there.
        data_dir: PathBuf::from("/nonexistent/simulated"),
        ..Config::default()
    };
    config.cluster.shards = SHARDS;
    config.queue.body_bytes_max = BODY_BYTES_MAX as u64;
    config.session.window_entries = WINDOW_ENTRIES_MAX as u32;
    // Half as many heartbeats as usual: most of what a quiet cluster does is to send them.
    config.raft.heartbeat_ms = 100;
    config.raft.election_min_ms = 400;
    config.raft.election_max_ms = 600;
    config.session.request_timeout_ms = 4_000;
    config.replica.propose_timeout_ms = 2_000;
    config
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

//! Three nodes with one replica each, in one thread, with a network of the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use roost_proto::peer::{
    AttachRequest, AttachResponse, Detach, Grant, Request, Response, request, response,
};
use roost_proto::storage::{Batch, DeviceOutcome, Outcome, outcome};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::{Group, GroupConfig, Keep, Pace, Role, Timing};
use crate::peer::{self, Attachment, Lane, Peers, PushSink};
use crate::shard::{Applied, Effects, Machine, Txn};
use crate::storage::keys::Key;
use crate::storage::memory::MemoryStore;
use crate::storage::syncer::Syncer;
use crate::storage::{Column, Store, value};
use crate::types::{NodeId, ReplicaId, ShardId};
use crate::versions::FEATURE_LEVEL;

/// Counts batches: the row of each holds its time, and the outcome is the number so far.
pub(super) struct Counter;

impl Machine for Counter {
    fn apply(&self, txn: &mut Txn<'_>, batch: &Batch) -> Result<Applied, crate::storage::Error> {
        let total = Key::Applied(txn.home()).encode();
        let before = match txn.get(&total)? {
            Some(value) => value::decode::<roost_proto::storage::Applied>("total", &total, value)?,
            None => roost_proto::storage::Applied::default(),
        };
        let accounts = before.accounts + 1;
        let after = roost_proto::storage::Applied { accounts, ..before };
        let after = value::encode(&total, &after);
        txn.put(total, after);
        // Rows of some size, so that a snapshot has several chunks.
        let row = Key::Entry(txn.home(), "counter", batch.time_ms).encode();
        let value = value::seal(&row, &vec![7; 3_000]);
        txn.put(row, value);
        // And one that is only a key.
        txn.put(Key::Trim(txn.home(), "counter").encode(), Bytes::new());
        let outcome = Outcome {
            outcome: Some(outcome::Outcome::Device(DeviceOutcome {
                device: u32::try_from(accounts).unwrap(),
                incarnation: 0,
            })),
        };
        Ok(Applied {
            outcomes: vec![outcome],
            effects: Effects::default(),
        })
    }
}

/// The batch that the counter counts under this number.
pub(super) fn batch(number: u64) -> Bytes {
    batch_of(number, FEATURE_LEVEL)
}

/// The same, of a feature level.
pub(super) fn batch_of(number: u64, feature_level: u32) -> Bytes {
    let batch = Batch {
        time_ms: number,
        feature_level,
        ..Batch::default()
    };
    batch.encode_to_vec().into()
}

pub(super) fn node(number: u64) -> NodeId {
    NodeId::from_bytes(u128::from(number).to_be_bytes())
}

/// Something to check at every answer that leaves a node.
pub(super) type AtAnswer = Arc<dyn Fn(u64, &MemoryStore, &Request) + Send + Sync>;

#[derive(Clone, Default)]
pub(super) struct Net(Arc<Mutex<Wires>>);

#[derive(Default)]
struct Wires {
    up: BTreeMap<NodeId, (u64, Arc<Group>, MemoryStore)>,
    /// Directed: nothing passes from the first to the second.
    cut: BTreeSet<(NodeId, NodeId)>,
    at_answer: Option<AtAnswer>,
    /// Nodes whose processes have died, as everybody's links find out at once.
    lost: watch::Sender<BTreeSet<NodeId>>,
}

/// One node's view of the net.
struct Plug {
    from: NodeId,
    net: Net,
}

const ONE_WAY: Duration = Duration::from_micros(500);

impl Peers for Plug {
    fn call(
        &self,
        to: NodeId,
        _: Lane,
        deadline: Duration,
        request: Request,
    ) -> BoxFuture<'_, Result<Response, peer::Error>> {
        let passed = async move {
            tokio::time::sleep(ONE_WAY).await;
            let Some((number, group, store)) = self.net.reach(self.from, to) else {
                return Err(peer::Error::Unreachable(to));
            };
            let Some(request::Request::Raft(raft)) = request.request.clone() else {
                return Err(peer::Error::Unreachable(to));
            };
            let answer = group.handle(raft).await;
            let at_answer = self.net.0.lock().at_answer.clone();
            if let Some(check) = at_answer {
                check(number, &store, &request);
            }
            tokio::time::sleep(ONE_WAY).await;
            if self.net.reach(to, self.from).is_none() {
                return Err(peer::Error::TimedOut(to));
            }
            let response = match answer {
                Ok(response) => response::Response::Raft(response),
                Err(failure) => response::Response::Failure(failure),
            };
            Ok(Response {
                response: Some(response),
            })
        };
        async move {
            let answered = tokio::time::timeout(deadline, passed).await;
            answered.unwrap_or(Err(peer::Error::TimedOut(to)))
        }
        .boxed()
    }

    fn attach(
        &self,
        node: NodeId,
        _: Duration,
        _: AttachRequest,
        _: PushSink,
    ) -> BoxFuture<'_, Result<(Attachment, AttachResponse), peer::Error>> {
        async move { Err(peer::Error::Unreachable(node)) }.boxed()
    }

    fn grant(&self, _: NodeId, _: Grant) {}

    fn detach(&self, _: NodeId, _: Detach) {}

    fn lost(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.net.0.lock().lost.subscribe()
    }
}

impl Net {
    fn reach(&self, from: NodeId, to: NodeId) -> Option<(u64, Arc<Group>, MemoryStore)> {
        let wires = self.0.lock();
        let open = !wires.cut.contains(&(from, to)) && wires.up.contains_key(&from);
        open.then(|| wires.up.get(&to).cloned()).flatten()
    }
}

/// A node that runs.
struct Node {
    group: Arc<Group>,
    ticker: JoinHandle<()>,
}

/// The cluster. Nodes and their first replicas have the same numbers.
pub(super) struct Cluster {
    pub net: Net,
    disks: BTreeMap<u64, MemoryStore>,
    /// The replica on each node.
    replicas: BTreeMap<u64, ReplicaId>,
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    /// Nodes 1 to 3, with a group that has a leader.
    pub(super) async fn start(seed: u64) -> Self {
        Self::start_of(3, seed).await
    }

    /// Nodes 1 to `nodes`, with a group that has a leader.
    pub(super) async fn start_of(nodes: u64, seed: u64) -> Self {
        super::super::seed(seed);
        let mut cluster = Self {
            net: Net::default(),
            disks: BTreeMap::new(),
            replicas: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        let members: BTreeMap<ReplicaId, NodeId> = (1..=nodes)
            .map(|number| (ReplicaId(number), node(number)))
            .collect();
        for number in 1..=nodes {
            cluster.disks.insert(number, MemoryStore::new());
            cluster.replicas.insert(number, ReplicaId(number));
            cluster.open(number).await;
            let group = cluster.group(number);
            group.initialize(members.clone()).await.unwrap();
            group.initialize(members.clone()).await.unwrap();
        }
        cluster.leader().await;
        cluster
    }

    pub(super) fn group(&self, number: u64) -> Arc<Group> {
        self.nodes[&number].group.clone()
    }

    pub(super) fn disk(&self, number: u64) -> MemoryStore {
        self.disks[&number].clone()
    }

    pub(super) fn at_answer(&self, check: AtAnswer) {
        self.net.0.lock().at_answer = Some(check);
    }

    /// Opens a node's replica over what is on its disk.
    pub(super) async fn open(&mut self, number: u64) {
        let disk = self.disk(number);
        let replica = self.replicas[&number];
        let store: Arc<dyn Store> = Arc::new(disk.clone());
        let group = Group::open(GroupConfig {
            shard: ShardId(0),
            replica,
            syncer: Arc::new(Syncer::inline(store.clone(), |_| ())),
            store,
            machine: Arc::new(Counter),
            peers: Arc::new(Plug {
                from: node(number),
                net: self.net.clone(),
            }),
            timing: Timing::LOCAL,
            log_cache_bytes_max: 1 << 20,
            pace: Arc::new(Pace::new(1 << 40, 2)),
            effects: Arc::new(|_| ()),
        });
        let group = Arc::new(group.await.unwrap());
        let wires = (number, group.clone(), disk);
        {
            let mut net = self.net.0.lock();
            net.up.insert(node(number), wires);
            net.lost.send_if_modified(|lost| lost.remove(&node(number)));
        }
        let ticking = group.clone();
        let ticker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Timing::LOCAL.heartbeat).await;
                ticking.heartbeat().await;
            }
        });
        self.nodes.insert(number, Node { group, ticker });
    }

    /// The process dies, which the others notice, and unsynced batches are lost but the first `keep`.
    pub(super) async fn crash(&mut self, number: u64, keep: usize) {
        let node_id = node(number);
        {
            let mut net = self.net.0.lock();
            net.up.remove(&node_id);
            net.lost.send_if_modified(|lost| lost.insert(node_id));
        }
        let Some(dead) = self.nodes.remove(&number) else {
            return;
        };
        dead.ticker.abort();
        let disk = self.disks[&number].crash(keep);
        self.disks.insert(number, disk);
        dead.group.shutdown().await;
    }

    /// The disk is gone; the node gets a new one with a replica that has never been.
    pub(super) async fn replace(&mut self, number: u64, replica: ReplicaId) {
        self.crash(number, 0).await;
        self.disks.insert(number, MemoryStore::new());
        self.replicas.insert(number, replica);
        self.open(number).await;
    }

    pub(super) fn cut(&self, from: u64, to: u64) {
        self.net.0.lock().cut.insert((node(from), node(to)));
    }

    /// Nothing passes between a node and the others, either way.
    pub(super) fn isolate(&self, number: u64) {
        for other in self.nodes.keys().filter(|other| **other != number) {
            self.cut(number, *other);
            self.cut(*other, number);
        }
    }

    pub(super) fn heal(&self) {
        self.net.0.lock().cut.clear();
    }

    /// The number of the node that leads and serves, once a majority agrees.
    pub(super) async fn leader(&self) -> u64 {
        let found = async {
            loop {
                for (number, node) in &self.nodes {
                    if node.group.state().borrow().serves()
                        && node.group.confirm_read().await.is_ok()
                    {
                        return *number;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found)
            .await
            .expect("a majority is up, so somebody leads")
    }

    /// Proposes until it is accepted, wherever the leader is.
    pub(super) async fn accept(&self, number: u64) -> Outcome {
        let accepted = async {
            loop {
                let group = self.group(self.leader().await);
                let proposed = group.propose(batch(number));
                let limit = Duration::from_secs(2);
                if let Ok(Ok(mut outcomes)) = tokio::time::timeout(limit, proposed).await {
                    return outcomes.remove(0);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), accepted)
            .await
            .expect("a majority is up")
    }

    /// Numbers in a node's applied state.
    pub(super) fn numbers(&self, number: u64) -> BTreeSet<u64> {
        let view = self.group(number).view();
        let range = crate::storage::keys::entries_of_user(view.home(), "counter");
        let rows: Vec<_> = view
            .store()
            .scan(Column::State, range)
            .map(|row| row.unwrap())
            .collect();
        let number = |key: &Bytes| match Key::decode(Column::State, key).unwrap() {
            Key::Entry(_, _, number) => number,
            other => panic!("{other:?}"),
        };
        rows.iter().map(|(key, _)| number(key)).collect()
    }

    /// Waits until a node has applied what the leader has.
    pub(super) async fn catches_up(&self, number: u64) {
        let leader = self.leader().await;
        let wanted = self.group(leader).state().borrow().last_applied;
        let mut state = self.group(number).state();
        let caught_up = state.wait_for(|state| state.last_applied >= wanted);
        tokio::time::timeout(Duration::from_secs(60), caught_up)
            .await
            .expect("the leader replicates")
            .expect("the group lives");
    }

    /// Purges a node's log as far as it goes.
    pub(super) async fn purge(&self, number: u64) -> Option<u64> {
        let keep = Keep {
            age: Duration::ZERO,
            bytes: 0,
        };
        self.group(number).collect(keep).await.unwrap()
    }

    pub(super) fn term(&self, number: u64) -> u64 {
        self.group(number).state().borrow().term
    }

    pub(super) fn role(&self, number: u64) -> Role {
        self.group(number).state().borrow().role
    }
}

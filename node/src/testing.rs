//! What tests of several modules stand on: a group of one replica in memory, and a node whose peers follow a script.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use roost_proto::peer::{
    AttachRequest, AttachResponse, Detach, Failure, Grant, Request, Response, ShardRequest,
    ShardResponse, request, response, shard_request, shard_response,
};
use roost_proto::storage::{
    AddDevice, ClusterState, Command, Limits, NodeRecord, Outcome, Send, SendItem, command,
};
use roost_proto::v1::Kind;
use tokio::sync::watch;

use crate::config::Config;
use crate::peer::{self, Attachment, Lane, Peers, PushSink};
use crate::raft::{Group, GroupConfig, Timing};
use crate::replica::clock::{ShardClock, Vitals};
use crate::replica::{self, Bounds, Context, Parts, Replicas};
use crate::router::placement::Placement;
use crate::router::{Room, Router};
use crate::shard::UserShard;
use crate::storage::Store;
use crate::storage::memory::MemoryStore;
use crate::storage::syncer::Syncer;
use crate::types::{NodeId, ReplicaId, ShardId};

/// The only shard.
pub(crate) const SHARD: ShardId = ShardId(0);
/// A Tuesday noon.
pub(crate) const NOON_MS: u64 = 20_000 * 86_400_000 + 43_200_000;

/// A node by its number.
pub(crate) fn node(number: u8) -> NodeId {
    NodeId::from_random([number; 16])
}

/// A group of one replica that leads.
pub(crate) async fn leader() -> Arc<Group> {
    let group = follower().await;
    let members = BTreeMap::from([(group.replica(), node(1))]);
    group.initialize(members).await.unwrap();
    let mut state = group.state();
    state.wait_for(|state| state.serves()).await.unwrap();
    group
}

/// A group of one replica that nobody has founded.
pub(crate) async fn follower() -> Arc<Group> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let group = Group::open(GroupConfig {
        shard: SHARD,
        replica: ReplicaId(1),
        syncer: Arc::new(Syncer::inline(Arc::clone(&store), |_| ())),
        store,
        machine: Arc::new(UserShard {
            shard: SHARD,
            shards: 1,
        }),
        peers: Arc::new(Script::new(|_, _| None)),
        timing: Timing::LOCAL,
        log_cache_bytes_max: 1 << 20,
        pace: Arc::default(),
        effects: Arc::new(|_| ()),
    });
    Arc::new(group.await.unwrap())
}

/// A clock that stands at noon.
pub(crate) fn noon() -> Arc<ShardClock> {
    Arc::new(ShardClock::new(Arc::new(|| NOON_MS), |_| true))
}

/// What a replica of a group is made of, on a node that is well.
pub(crate) fn parts(group: &Arc<Group>) -> Parts {
    Parts {
        shard: SHARD,
        clock: noon(),
        limits: limits(),
        bounds: Bounds {
            batch_entries_max: 4,
            batch_bytes_max: 1 << 20,
            pending_max: 100,
            pending_bytes_max: 1 << 20,
            timeout: Duration::from_secs(5),
        },
        attachments_max: 1,
        outbox: Arc::default(),
        disk_low: Arc::new(|| false),
        disk_hangs: watch::channel(false).1,
        feature_level: Arc::new(|_| crate::versions::FEATURE_LEVEL),
        group: Arc::clone(group),
    }
}

/// Bounds that no test meets.
pub(crate) fn limits() -> Limits {
    Limits {
        queue_entries_max: 1_000,
        queue_bytes_max: 1 << 20,
        dedup_window_ms: 7 * 86_400_000,
        sender_ids_max: 1_000,
        chains_max: 16,
        devices_max: 8,
        outbox_rows_max: 1_000,
        receipt_bytes_max: 1 << 20,
        receipt_age_max_ms: 30 * 86_400_000,
    }
}

/// Adds a user's device.
pub(crate) fn add(user: &str) -> command::Command {
    command::Command::AddDevice(AddDevice {
        user: user.to_owned(),
        name: "phone".to_owned(),
        key_hash: bytes::Bytes::new(),
    })
}

/// Messages of 10 bytes from Alice's first device, at these positions of chain 1.
pub(crate) fn messages(to: &str, positions: std::ops::RangeInclusive<u64>) -> command::Command {
    let items = positions.map(|position| SendItem {
        id: format!("m{position}"),
        chain: 1,
        position,
        kind: Kind::Data.into(),
        body: bytes::Bytes::from_static(b"ten bytes!"),
        sent_at_ms: NOON_MS,
        ttl_ms: 86_400_000,
        ..SendItem::default()
    });
    command::Command::Send(Send {
        from: "alice".to_owned(),
        device: 1,
        to: to.to_owned(),
        items: items.collect(),
    })
}

/// Proposes commands as one batch.
pub(crate) async fn propose(group: &Group, commands: Vec<command::Command>) -> Vec<Outcome> {
    let batch = roost_proto::storage::Batch {
        time_ms: NOON_MS,
        limits: Some(limits()),
        feature_level: crate::versions::FEATURE_LEVEL,
        commands: commands
            .into_iter()
            .map(|command| Command {
                command: Some(command),
            })
            .collect(),
    };
    group.propose(batch.encode_to_vec().into()).await.unwrap()
}

type Answer = Box<dyn Fn(NodeId, &Request) -> Option<Response> + std::marker::Send + Sync>;

/// Other nodes that answer as a test says.
pub(crate) struct Script {
    answer: Answer,
    calls: Mutex<Vec<(NodeId, Request)>>,
    /// How long each answer takes.
    delay: Duration,
    /// Attachments made so far, if any may be.
    attached: Option<Mutex<Vec<(AttachRequest, PushSink)>>>,
    grants: Mutex<Vec<Grant>>,
}

impl Script {
    /// `None` is a node that cannot be reached.
    pub(crate) fn new(
        answer: impl Fn(NodeId, &Request) -> Option<Response> + std::marker::Send + Sync + 'static,
    ) -> Self {
        Self {
            answer: Box::new(answer),
            calls: Mutex::default(),
            delay: Duration::from_millis(1),
            attached: None,
            grants: Mutex::default(),
        }
    }

    /// The same, and whoever attaches is attached.
    pub(crate) fn attaching(mut self) -> Self {
        self.attached = Some(Mutex::default());
        self
    }

    /// The newest attachment's request and the way to its session.
    pub(crate) fn newest_attachment(&self) -> (AttachRequest, PushSink) {
        let attached = self.attached.as_ref().unwrap().lock();
        attached.last().cloned().unwrap()
    }

    /// The requests of all attachments so far.
    pub(crate) fn attachments(&self) -> Vec<AttachRequest> {
        let attached = self.attached.as_ref().unwrap().lock();
        attached
            .iter()
            .map(|(request, _)| request.clone())
            .collect()
    }

    /// Breaks all links.
    pub(crate) fn drop_attachments(&self) {
        self.attached.as_ref().unwrap().lock().clear();
    }

    /// The grants so far.
    pub(crate) fn granted(&self) -> Vec<Room> {
        let grants = self.grants.lock();
        let rooms = grants.iter().map(|grant| Room {
            entries: grant.entries,
            bytes: grant.bytes,
            notices: grant.notices,
        });
        rooms.collect()
    }

    /// Whom the calls so far went to.
    pub(crate) fn called(&self) -> Vec<NodeId> {
        self.calls.lock().iter().map(|(node, _)| *node).collect()
    }

    /// The commands proposed so far.
    pub(crate) fn proposed(&self) -> Vec<command::Command> {
        let calls = self.calls.lock();
        let commands = calls.iter().filter_map(|(_, request)| command_of(request));
        commands.collect()
    }
}

/// The command in a request, if it proposes one.
pub(crate) fn command_of(request: &Request) -> Option<command::Command> {
    match &request.request {
        Some(request::Request::Shard(ShardRequest {
            request: Some(shard_request::Request::Propose(proposal)),
            ..
        })) => Command::decode(&proposal.command[..]).unwrap().command,
        _ => None,
    }
}

/// An outcome as a leader answers it.
pub(crate) fn answered(outcome: roost_proto::storage::outcome::Outcome) -> Option<Response> {
    let outcome = Outcome {
        outcome: Some(outcome),
    };
    Some(Response {
        response: Some(response::Response::Shard(ShardResponse {
            response: Some(shard_response::Response::Outcome(outcome)),
        })),
    })
}

/// A failure as a node answers it.
pub(crate) fn failed(error: replica::Error) -> Option<Response> {
    Some(Response {
        response: Some(response::Response::Failure(Failure::from(error))),
    })
}

impl Peers for Script {
    fn call(
        &self,
        node: NodeId,
        _: Lane,
        _: Duration,
        request: Request,
    ) -> BoxFuture<'_, Result<Response, peer::Error>> {
        let answer = (self.answer)(node, &request);
        self.calls.lock().push((node, request));
        async move {
            tokio::time::sleep(self.delay).await;
            answer.ok_or(peer::Error::Unreachable(node))
        }
        .boxed()
    }

    fn attach(
        &self,
        node: NodeId,
        _: Duration,
        request: AttachRequest,
        pushes: PushSink,
    ) -> BoxFuture<'_, Result<(Attachment, AttachResponse), peer::Error>> {
        async move {
            tokio::time::sleep(self.delay).await;
            let attached = self.attached.as_ref();
            let attached = attached.ok_or(peer::Error::Unreachable(node))?;
            attached.lock().push((request, pushes));
            Ok((Attachment(1), AttachResponse::default()))
        }
        .boxed()
    }

    fn grant(&self, _: NodeId, grant: Grant) {
        self.grants.lock().push(grant);
    }

    fn detach(&self, _: NodeId, _: Detach) {}

    fn lost(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        watch::channel(BTreeSet::new()).1
    }
}

/// The router of a node that holds no replica, in a cluster of three, with one shard.
pub(crate) fn router(script: &Arc<Script>) -> Arc<Router> {
    router_over(replicas(script), script)
}

/// As [`router`], with replicas that may be opened.
pub(crate) fn router_over(replicas: Arc<Replicas>, script: &Arc<Script>) -> Arc<Router> {
    let nodes = (1..=3).map(|number| NodeRecord {
        id: node(number).to_string(),
        ..NodeRecord::default()
    });
    let plan = crate::cluster::plan(
        "tested".to_owned(),
        nodes.collect(),
        1,
        3,
        bytes::Bytes::new(),
    );
    let placement = Placement::from_state(&ClusterState {
        plan: Some(plan.unwrap()),
        ..ClusterState::default()
    });
    // Nobody says that it changes; what was said last stays.
    let (_, placements) = watch::channel(Arc::new(placement.unwrap()));
    Arc::new(Router::new(
        Arc::clone(script) as Arc<_>,
        replicas,
        placements,
    ))
}

/// The replicas of a node in a cluster of three, with one shard; none yet.
pub(crate) fn replicas(script: &Arc<Script>) -> Arc<Replicas> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Arc::new(Replicas::new(Context {
        config: Arc::new(Config::default()),
        syncer: Arc::new(Syncer::inline(Arc::clone(&store), |_| ())),
        store,
        peers: Arc::clone(script) as Arc<_>,
        wall: Arc::new(|| NOON_MS),
        vitals: Arc::new(Vitals::default()),
        nodes: 3,
        shards: 1,
        disk_low: Arc::new(|| false),
        feature_level: Arc::new(|_| crate::versions::FEATURE_LEVEL),
        outbox: Arc::default(),
        cluster_changed: Arc::new(|_| ()),
    }))
}

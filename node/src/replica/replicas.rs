//! All replicas of this node, by shard and by id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use roost_proto::peer::{
    AttachRequest, AttachResponse, Detach, Grant, RaftRequest, RaftResponse, ShardResponse,
    shard_request,
};
use roost_proto::storage::{ClusterState, Limits, LocalReplica};
use tokio::sync::watch;

use super::clock::{ShardClock, Vitals, WallClock};
use super::cut_off::CutOff;
use super::{Bounds, Error, LevelOf, OutboxSignals, Parts, Replica, Target};
use crate::config::Config;
use crate::meta::MetaShard;
use crate::peer::{LinkId, Peers};
use crate::raft::{FoundError, Group, GroupConfig, Pace, Timing};
use crate::shard::{Effects, Machine, UserShard};
use crate::storage::{Store, syncer::Syncer};
use crate::types::{NodeId, ReplicaId, ShardId};

/// What replicas are opened with.
pub struct Context {
    /// The settings.
    pub config: Arc<Config>,
    /// The node's store.
    pub store: Arc<dyn Store>,
    /// The node's one syncer.
    pub syncer: Arc<Syncer>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// The wall clock.
    pub wall: WallClock,
    /// What is known of the others' clocks and disks.
    pub vitals: Arc<Vitals>,
    /// Number of nodes of the cluster.
    pub nodes: usize,
    /// Number of user shards.
    pub shards: u32,
    /// Whether this node's disk is below its reserve.
    pub disk_low: Arc<dyn Fn() -> bool + Send + Sync>,
    /// What the other nodes understand.
    pub feature_level: LevelOf,
    /// Tells the outbox pump.
    pub outbox: Arc<OutboxSignals>,
    /// Hears of every change of the cluster that the meta shard's replica here applies.
    pub cluster_changed: Arc<dyn Fn(ClusterState) + Send + Sync>,
}

/// All replicas of this node.
pub struct Replicas {
    pub(super) context: Context,
    pub(super) by_shard: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    /// The state generation last seen of each replica: a rise is an installed snapshot.
    pub(super) generations: Mutex<BTreeMap<ReplicaId, u32>>,
    pub(super) pace: Arc<Pace>,
    disk_hangs: watch::Sender<bool>,
    pub(super) cut_off: Mutex<CutOff>,
}

impl Replicas {
    /// None yet.
    #[must_use]
    pub fn new(context: Context) -> Self {
        let raft = &context.config.raft;
        let pace = Pace::new(raft.snapshot_bytes_per_second, raft.snapshots_max);
        Self {
            pace: Arc::new(pace),
            context,
            by_shard: RwLock::default(),
            generations: Mutex::default(),
            disk_hangs: watch::Sender::default(),
            cut_off: Mutex::default(),
        }
    }

    /// Heartbeats of every shard that this node leads, at once, so that they travel together.
    pub async fn heartbeat(&self) {
        for replica in self.all() {
            replica.group().heartbeat().await;
        }
    }

    /// A sync of the store takes longer than it may, or no longer. Whoever waits for a leader here is told to ask
    /// elsewhere, and nobody is served until it is over.
    pub fn set_disk_hangs(&self, hangs: bool) {
        self.disk_hangs.send_if_modified(|known| {
            let modified = *known != hangs;
            *known = hangs;
            modified
        });
    }

    /// Opens a replica that is on this node's disk and starts it. `members` founds a group that has no log yet; every
    /// founding member names the same.
    ///
    /// # Errors
    /// What the group says: damage, an unknown format, a failing disk.
    pub async fn open(
        self: &Arc<Self>,
        local: &LocalReplica,
        members: Option<BTreeMap<ReplicaId, NodeId>>,
    ) -> Result<Arc<Replica>, OpenError> {
        let (shard, id) = (ShardId(local.shard), ReplicaId(local.replica));
        let config = &self.context.config;
        let machine: Arc<dyn Machine> = match shard {
            ShardId::META => Arc::new(MetaShard),
            _ => Arc::new(UserShard {
                shard,
                shards: self.context.shards,
            }),
        };
        let performer = Arc::downgrade(self);
        let group = Group::open(GroupConfig {
            shard,
            replica: id,
            store: Arc::clone(&self.context.store),
            syncer: Arc::clone(&self.context.syncer),
            peers: Arc::clone(&self.context.peers),
            machine,
            timing: timing(&config.raft),
            log_cache_bytes_max: self.log_cache_bytes_max(),
            pace: Arc::clone(&self.pace),
            effects: Arc::new(move |effects| {
                if let Some(replicas) = performer.upgrade() {
                    replicas.perform(shard, effects);
                }
            }),
        })
        .await?;
        let group = Arc::new(group);
        let replica = Replica::start(
            id,
            Parts {
                shard,
                group: Arc::clone(&group),
                clock: Arc::new(self.shard_clock()),
                limits: self.limits(),
                bounds: self.bounds(),
                attachments_max: config.replica.attachments_max,
                outbox: Arc::clone(&self.context.outbox),
                disk_low: Arc::clone(&self.context.disk_low),
                disk_hangs: self.disk_hangs.subscribe(),
                feature_level: Arc::clone(&self.context.feature_level),
            },
        );
        self.by_shard.write().insert(shard, Arc::clone(&replica));
        if let Some(members) = members {
            match group.initialize(members).await {
                // Stopped at once: it has met damage, or died. Its supervisor sees which.
                Ok(()) | Err(FoundError::Stopped) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(replica)
    }

    /// The replica of a shard.
    #[must_use]
    pub fn get(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.by_shard.read().get(&shard).cloned()
    }

    /// All replicas.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Replica>> {
        self.by_shard.read().values().cloned().collect()
    }

    /// Takes a replica out of service and stops it.
    pub async fn close(&self, shard: ShardId) {
        let replica = self.by_shard.write().remove(&shard);
        if let Some(replica) = replica {
            replica.stop().await;
        }
    }

    /// Answers a request for a shard's leader.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn handle(
        &self,
        shard: ShardId,
        request: shard_request::Request,
    ) -> Result<ShardResponse, Error> {
        self.get(shard)
            .ok_or(Error::NoReplica)?
            .handle(request)
            .await
    }

    /// Attaches a session to a shard that this node leads.
    ///
    /// # Errors
    /// See [`Error`]; a refusal is in the response.
    pub async fn attach(
        &self,
        request: AttachRequest,
        target: Target,
    ) -> Result<AttachResponse, Error> {
        let replica = self.get(ShardId(request.shard)).ok_or(Error::NoReplica)?;
        replica.attach(request, target).await
    }

    /// More room in a session's window.
    pub fn grant(&self, link: LinkId, grant: &Grant) {
        if let Some(replica) = self.get(ShardId(grant.shard)) {
            replica.delivery().grant(link, grant);
        }
    }

    /// A session has gone; of which shard, only the attachments know.
    pub fn detach(&self, link: LinkId, detach: &Detach) {
        for replica in self.by_shard.read().values() {
            replica.delivery().detach(link, detach.attachment);
        }
    }

    /// A link has gone, with all sessions behind it.
    pub fn link_closed(&self, link: LinkId) {
        for replica in self.by_shard.read().values() {
            replica.delivery().link_closed(link);
        }
    }

    /// Answers another replica's Raft request, if it is for a replica that is here.
    ///
    /// # Errors
    /// [`Error::NoReplica`]: this id was never here, or has failed.
    pub async fn raft(&self, request: RaftRequest) -> Result<RaftResponse, Error> {
        let replica = self
            .by_id(ReplicaId(request.replica))
            .ok_or(Error::NoReplica)?;
        replica.group().handle(request).await.map_err(Error::from)
    }

    /// Takes over leadership: the leader has paused and knows that this replica has caught up.
    ///
    /// # Errors
    /// [`Error::NoReplica`].
    pub async fn elect(&self, id: ReplicaId) -> Result<(), Error> {
        self.by_id(id)
            .ok_or(Error::NoReplica)?
            .group()
            .elect()
            .await
            .map_err(|_| Error::NoReplica)
    }

    fn by_id(&self, id: ReplicaId) -> Option<Arc<Replica>> {
        self.by_shard
            .read()
            .values()
            .find(|replica| replica.id() == id)
            .cloned()
    }

    fn perform(&self, shard: ShardId, mut effects: Effects) {
        if let Some(cluster) = effects.cluster.take() {
            (self.context.cluster_changed)(cluster);
        }
        // A replica that is still being opened has nobody attached.
        if let Some(replica) = self.get(shard) {
            replica.perform(effects);
        }
    }

    fn shard_clock(&self) -> ShardClock {
        let vitals = Arc::clone(&self.context.vitals);
        let nodes = self.context.nodes;
        let within_ms = self.context.config.replica.clock_offset_max_ms;
        ShardClock::new(Arc::clone(&self.context.wall), move |wall_ms| {
            vitals.clock_confirmed(nodes, wall_ms, within_ms)
        })
    }

    /// One replica's share of the node's log cache: each shard and the meta shard may have a replica here.
    fn log_cache_bytes_max(&self) -> usize {
        let shares = u64::from(self.context.shards) + 1;
        usize::try_from(self.context.config.raft.log_cache_bytes / shares).unwrap_or(usize::MAX)
    }

    fn limits(&self) -> Limits {
        let queue = &self.context.config.queue;
        Limits {
            queue_entries_max: queue.entries_max,
            queue_bytes_max: queue.bytes_max,
            dedup_window_ms: queue.dedup_window_ms,
            sender_ids_max: queue.sender_ids_max,
            chains_max: queue.chains_max,
            devices_max: queue.devices_max,
            outbox_rows_max: queue.outbox_rows_max,
            receipt_bytes_max: queue.receipt_bytes_max,
            receipt_age_max_ms: queue.ttl_max_ms,
        }
    }

    fn bounds(&self) -> Bounds {
        let config = &self.context.config;
        Bounds {
            batch_entries_max: config.raft.batch_entries_max,
            batch_bytes_max: config.raft.batch_bytes_max,
            pending_max: config.replica.pending_proposals_max,
            pending_bytes_max: config.replica.pending_bytes_max,
            timeout: Duration::from_millis(config.replica.propose_timeout_ms),
        }
    }
}

/// Why a replica does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Damage, an unknown format, or a failing disk.
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
    /// The plan and the disk disagree.
    #[error(transparent)]
    Founding(#[from] crate::raft::FoundError),
}

impl OpenError {
    /// Set when the replica is damaged: it has to be renewed, and the node goes on without it.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        match self {
            Self::Storage(error @ crate::storage::Error::Corrupt { .. }) => Some(error.to_string()),
            Self::Storage(_) | Self::Founding(_) => None,
        }
    }
}

fn timing(raft: &crate::config::Raft) -> Timing {
    Timing {
        heartbeat: Duration::from_millis(raft.heartbeat_ms),
        election_min: Duration::from_millis(raft.election_min_ms),
        election_max: Duration::from_millis(raft.election_max_ms),
        snapshot_life: Duration::from_millis(raft.snapshot_life_max_ms),
        ..Timing::LOCAL
    }
}

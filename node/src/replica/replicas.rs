//! All replicas of this node, by shard and by id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use roost_proto::peer::{
    AttachRequest, AttachResponse, Detach, Grant, RaftRequest, RaftResponse, ReplicaStatus,
    ShardResponse, shard_request,
};
use roost_proto::storage::{ClusterState, Limits, LocalReplica};
use tokio::sync::watch;

use super::clock::{ShardClock, Vitals, WallClock};
use super::{Bounds, Error, LevelOf, OutboxSignals, Parts, Replica, Target};
use crate::config::Config;
use crate::peer::{LinkId, Peers};
use crate::raft::{FoundError, Group, GroupConfig, Pace, Role, Timing};
use crate::shard::{Effects, Machine, UserShard};
use crate::storage::{Store, syncer::Syncer};
use crate::types::{NodeId, ReplicaId, ShardId};
use crate::{meta::MetaShard, metrics};

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
    context: Context,
    by_shard: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    /// The state generation last seen of each replica: a rise is an installed snapshot.
    generations: Mutex<BTreeMap<ReplicaId, u32>>,
    pace: Arc<Pace>,
    disk_hangs: watch::Sender<bool>,
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

    /// What every replica is and how far it has come, for the operator.
    #[must_use]
    pub fn status(&self) -> Vec<ReplicaStatus> {
        let wall_ms = (self.context.wall)();
        self.all()
            .iter()
            .map(|replica| status(replica, wall_ms))
            .collect()
    }

    /// Whether every replica here follows a leader, or leads, and has applied nearly all that it knows of.
    ///
    /// # Errors
    /// What is waited for, in words for an operator.
    pub fn readiness(&self) -> Result<(), String> {
        /// Entries that a replica may lag and still be ready.
        const LAG_MAX: u64 = 1_000;
        if self.by_shard.read().is_empty() {
            return Err("no replica serves on this node".to_owned());
        }
        for replica in self.all() {
            let shard = replica.shard();
            let (lag, receiving) = (replica.group().lag_entries(), replica.group().receiving());
            let state = replica.group().state();
            let state = state.borrow();
            if let Some(failed) = &state.failed {
                return Err(format!(
                    "the replica of shard {shard} has failed: {failed:?}"
                ));
            }
            if state.leader.is_none() {
                return Err(format!(
                    "shard {shard} has no leader that this node knows of"
                ));
            }
            if let Some(receiving) = receiving {
                return Err(format!(
                    "the replica of shard {shard} is catching up by snapshot, {} bytes so far",
                    receiving.bytes
                ));
            }
            match lag {
                None => {
                    return Err(format!(
                        "the replica of shard {shard} has not heard from its leader yet"
                    ));
                }
                Some(lag) if lag > LAG_MAX => {
                    return Err(format!("the replica of shard {shard} is catching up"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Brings the gauges of every shard up to date.
    pub fn measure(&self) {
        let all = self.all();
        metrics::SENDING_SNAPSHOTS
            .handle()
            .set(self.pace.sending() as f64);
        let receiving = all
            .iter()
            .filter(|replica| replica.group().receiving().is_some());
        metrics::RECEIVING_SNAPSHOTS
            .handle()
            .set(receiving.count() as f64);
        for replica in all {
            let shard = replica.shard();
            let lag = replica.group().lag_entries();
            let state = replica.group().state();
            let state = state.borrow();
            metrics::RAFT_ROLE.of(shard).set(role_code(state.role));
            let seen = self
                .generations
                .lock()
                .insert(replica.id(), state.generation);
            let installed = seen.map_or(0, |seen| state.generation.saturating_sub(seen));
            metrics::SNAPSHOTS.handle().increment(u64::from(installed));
            metrics::RAFT_TERM.of(shard).set(state.term as f64);
            // While that is unknown, what its own log holds; the node is not ready until then.
            let lag = lag.unwrap_or_else(|| {
                let (last, applied) = (state.last_log, state.last_applied);
                last.unwrap_or_default()
                    .saturating_sub(applied.unwrap_or_default())
            });
            metrics::RAFT_LAG.of(shard).set(lag as f64);
            let appends = replica.group().waiting_appends();
            metrics::WAITING_APPENDS.of(shard).set(appends as f64);
            let log_bytes = replica.group().log_bytes();
            metrics::LOG_BYTES.of(shard).set(log_bytes as f64);
            let view = replica.view();
            let reader = super::reader(&view);
            // A leader's word: followers would count every queue again.
            let leads = state.role == Role::Leader;
            let applied = if leads {
                reader.applied().unwrap_or_default()
            } else {
                Default::default()
            };
            let oldest = if leads {
                reader.oldest_accepted_ms().ok().flatten()
            } else {
                None
            };
            let age_ms = oldest.map_or(0, |oldest| (self.context.wall)().saturating_sub(oldest));
            metrics::QUEUE_ENTRIES
                .of(shard)
                .set(applied.queued_entries as f64);
            metrics::QUEUE_BYTES
                .of(shard)
                .set(applied.queued_bytes as f64);
            metrics::RECEIPT_BYTES
                .of(shard)
                .set(applied.receipt_bytes as f64);
            metrics::OLDEST_ENTRY_AGE
                .of(shard)
                .set(age_ms as f64 / 1_000.0);
            let rows: u64 = match leads {
                true => reader
                    .outbox_heads()
                    .unwrap_or_default()
                    .iter()
                    .map(|(_, head)| head.rows)
                    .sum(),
                false => 0,
            };
            metrics::OUTBOX_ROWS.of(shard).set(rows as f64);
        }
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

fn status(replica: &Replica, wall_ms: u64) -> ReplicaStatus {
    let state = replica.group().state();
    let state = state.borrow();
    let view = replica.view();
    let reader = super::reader(&view);
    let applied = reader.applied().unwrap_or_default();
    ReplicaStatus {
        shard: replica.shard().0,
        replica: replica.id().0,
        role: role_name(state.role).to_owned(),
        term: state.term,
        applied: state.last_applied.unwrap_or_default(),
        last_log: state.last_log.unwrap_or_default(),
        queued_entries: applied.queued_entries,
        queued_bytes: applied.queued_bytes,
        oldest_ms: reader
            .oldest_accepted_ms()
            .ok()
            .flatten()
            .map_or(0, |oldest| wall_ms.saturating_sub(oldest)),
        leader: state.role == Role::Leader,
        snapshot_bytes: replica.group().receiving().map(|receiving| receiving.bytes),
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "failed",
    }
}

/// As the metric's help says.
fn role_code(role: Role) -> f64 {
    match role {
        Role::Stopped => 0.0,
        Role::Learner => 1.0,
        Role::Follower => 2.0,
        Role::Candidate => 3.0,
        Role::Leader => 4.0,
    }
}

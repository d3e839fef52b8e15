//! The replicas of this node: proposing, confirmed reads, leadership and delivery.
//!
//! A [`Replica`] is one shard's copy here; [`Replicas`] holds all of them and is what the router and other nodes ask.
//! Nothing here knows where other shards live: that is the router's.

mod barrier;
mod chores;
pub mod clock;
mod cut_off;
mod delivery;
mod error;
mod hand_over;
mod leadership;
#[cfg(test)]
mod leadership_tests;
#[cfg(test)]
mod level_tests;
mod outbox_signals;
pub mod proposal;
mod proposer;
mod reads;
mod replicas;
mod report;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roost_proto::peer::{
    AttachRequest, AttachResponse, ShardResponse, shard_request, shard_response,
};
use roost_proto::storage::{Limits, Outcome, Proposal, command};
use roost_proto::v1::{self, Code};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use delivery::{Target, body_bytes};
pub use error::Error;
pub use outbox_signals::OutboxSignals;
pub use proposer::Bounds;
pub use replicas::{Context, Replicas};

use crate::metrics;
use crate::raft::{Group, Role, View};
use crate::sabotage::{self, Break};
use crate::shard::{Effects, UserFill, read::Reader};
use crate::types::{NodeId, ReplicaId, ShardId, UserId};
use crate::versions;
use barrier::Barrier;
use clock::ShardClock;
use delivery::Delivery;
use proposer::Proposer;

/// A leader whose quorum has been silent for longer than this serves no attachment and no read; its followers may have
/// elected another.
const QUORUM_SILENCE_MAX: Duration = Duration::from_secs(1);

/// The newest feature level that a node has announced.
pub type LevelOf = Arc<dyn Fn(NodeId) -> u32 + Send + Sync>;

/// One shard's copy on this node.
pub struct Replica {
    shard: ShardId,
    id: ReplicaId,
    group: Arc<Group>,
    proposer: Proposer,
    barrier: Barrier,
    delivery: Arc<Delivery>,
    clock: Arc<ShardClock>,
    outbox: Arc<OutboxSignals>,
    /// Entries wait for deletion; chores look.
    trims: Notify,
    disk_low: Arc<dyn Fn() -> bool + Send + Sync>,
    disk_hangs: watch::Receiver<bool>,
    /// See [`Replica::leader`].
    leader: watch::Sender<Option<NodeId>>,
    feature_level: LevelOf,
    damage: Arc<Mutex<Option<String>>>,
    stop: CancellationToken,
}

/// What a replica needs besides its group.
pub struct Parts {
    /// Its shard.
    pub shard: ShardId,
    /// Its Raft group, opened.
    pub group: Arc<Group>,
    /// Shard time.
    pub clock: Arc<ShardClock>,
    /// What the state machine is told with every batch.
    pub limits: Limits,
    /// Of the proposer.
    pub bounds: Bounds,
    /// Attachments and watches of the shard.
    pub attachments_max: usize,
    /// Tells the outbox pump.
    pub outbox: Arc<OutboxSignals>,
    /// Whether this node's disk is below its reserve.
    pub disk_low: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether a sync of this node's store takes longer than it may.
    pub disk_hangs: watch::Receiver<bool>,
    /// What the nodes of the voters understand.
    pub feature_level: LevelOf,
}

impl Replica {
    /// Starts the replica's tasks.
    #[must_use]
    pub fn start(id: ReplicaId, parts: Parts) -> Arc<Self> {
        let stop = CancellationToken::new();
        let group = parts.group;
        let proposer = Proposer::start(
            parts.shard,
            Arc::clone(&group),
            Arc::clone(&parts.clock),
            parts.limits,
            parts.bounds,
            stop.clone(),
        );
        let damage = Arc::new(Mutex::new(None));
        let replica = Arc::new(Self {
            shard: parts.shard,
            id,
            proposer,
            barrier: Barrier::start(parts.shard, Arc::clone(&group), stop.clone()),
            delivery: Delivery::start(
                parts.shard,
                Arc::clone(&group),
                Arc::clone(&parts.clock),
                parts.attachments_max,
                Arc::clone(&damage),
                stop.clone(),
            ),
            group,
            clock: parts.clock,
            outbox: parts.outbox,
            trims: Notify::new(),
            damage,
            disk_low: parts.disk_low,
            disk_hangs: parts.disk_hangs,
            leader: watch::Sender::default(),
            feature_level: parts.feature_level,
            stop,
        });
        let leadership = Arc::clone(&replica);
        tokio::spawn(async move {
            leadership
                .stop
                .run_until_cancelled(leadership.follow_leadership())
                .await
        });
        let chores = Arc::clone(&replica);
        tokio::spawn(async move { chores.stop.run_until_cancelled(chores::run(&chores)).await });
        replica
    }

    /// Its shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Its Raft group.
    #[must_use]
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Whether it leads, has applied everything from before its term, has heard from a quorum lately, and has a disk that
    /// answers.
    #[must_use]
    pub fn serves(&self) -> bool {
        let state = self.group.state();
        let state = state.borrow();
        state.role == Role::Leader
            && self.damage.lock().is_none()
            && state.applied_own_term
            && !*self.disk_hangs.borrow()
            && (sabotage::on(Break::StaleReads)
                || state
                    .quorum_age
                    .is_some_and(|age| age <= QUORUM_SILENCE_MAX))
    }

    /// The applied state, as it is now. Only a leader's confirmed read may be shown to anybody.
    #[must_use]
    pub fn view(&self) -> View {
        self.group.view()
    }

    /// Answers a request for the shard's leader.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn handle(&self, request: shard_request::Request) -> Result<ShardResponse, Error> {
        self.unless_disk_hangs(self.answer(request)).await
    }

    async fn answer(&self, request: shard_request::Request) -> Result<ShardResponse, Error> {
        let response = match request {
            shard_request::Request::Propose(proposal) => {
                proposal::check(&proposal)?;
                shard_response::Response::Outcome(self.propose_encoded(proposal).await?)
            }
            shard_request::Request::Authenticate(request) => {
                shard_response::Response::Authenticated(self.authenticate(&request).await?)
            }
            shard_request::Request::ListUsers(request) => {
                shard_response::Response::Users(self.list_users(&request).await?)
            }
            shard_request::Request::ReadCluster(_) => {
                shard_response::Response::Cluster(self.read_cluster().await?)
            }
        };
        Ok(ShardResponse {
            response: Some(response),
        })
    }

    /// Proposes a command and waits until it is applied here.
    ///
    /// # Errors
    /// [`Error::DiskLow`] for new messages below the disk reserve; see [`Error`].
    pub async fn propose(&self, command: command::Command) -> Result<Outcome, Error> {
        self.propose_encoded(proposal::encode(command)).await
    }

    async fn propose_encoded(&self, proposal: Proposal) -> Result<Outcome, Error> {
        if proposal.sends && (self.disk_low)() {
            return Err(Error::DiskLow);
        }
        if proposal.sends {
            self.wait_for_time()?;
        }
        self.check_level(proposal.feature_level)?;
        self.proposer.propose(proposal).await
    }

    /// Attaches a session; see [`Delivery::attach`].
    ///
    /// # Errors
    /// [`Error::NotLeader`] and the like. A refusal is in the response.
    pub async fn attach(
        &self,
        request: AttachRequest,
        target: Target,
    ) -> Result<AttachResponse, Error> {
        self.unless_disk_hangs(self.barrier.confirm()).await?;
        if !self.serves() {
            return Err(Error::NotLeader { leader: None });
        }
        let user =
            UserId::parse(&request.user).map_err(|error| Error::Internal(error.to_string()))?;
        let row = reader(&self.view())
            .user(user.as_str())
            .map_err(|error| self.read_failed(error))?
            .filter(|row| !row.removed);
        let device = row
            .as_ref()
            .and_then(|row| row.devices.iter().find(|d| d.device == request.device));
        let (Some(row), Some(device)) = (&row, device) else {
            return Ok(refused(Code::Unauthenticated, "no such account or device"));
        };
        let mut request = request;
        if let Some(cursor) = &mut request.cursor {
            if cursor.incarnation != row.incarnation || cursor.seq >= row.next_seq {
                return Ok(refused(
                    Code::BadCursor,
                    "the cursor is of another queue; leave it out to start afresh",
                ));
            }
            cursor.seq = cursor.seq.max(device.cursor_seq);
        }
        let newest = row.next_revision.saturating_sub(1);
        let receipts_after = match (request.receipts_after, request.cursor) {
            (Some(after), _) => after.min(newest),
            (None, Some(_)) => device.receipt_revision,
            (None, None) => newest,
        };
        let attached = self.delivery.attach(user, &request, receipts_after, target);
        Ok(AttachResponse {
            error: attached.err(),
            cursor: request.cursor,
            receipts_after,
        })
    }

    /// The attachments of this shard.
    #[must_use]
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// Performs, at the leader, what apply hinted at. Elsewhere nobody is attached, and rows wait for the leader.
    pub fn perform(&self, effects: Effects) {
        let told = effects.receipts.iter().map(|(user, _)| user);
        self.delivery.wake(effects.woken.iter().chain(told));
        for (user, device) in &effects.removed {
            self.delivery.remove_device(user, *device);
        }
        if !effects.trims.is_empty() {
            self.trims.notify_one();
        }
        if self.group.state().borrow().role == Role::Leader {
            count(&effects);
            for destination in effects.outbox {
                self.outbox.raise(self.shard, destination);
            }
        }
    }

    /// Notes what a read outside apply met. Damage takes the replica out of service: its supervisor looks.
    pub(crate) fn read_failed(&self, error: crate::storage::Error) -> Error {
        if matches!(error, crate::storage::Error::Corrupt { .. }) {
            self.damage.lock().get_or_insert_with(|| error.to_string());
        }
        Error::Internal(error.to_string())
    }

    /// Damage that a read has met.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        self.damage.lock().clone()
    }

    /// Ends the replica's tasks and its group, attachments first.
    pub async fn stop(&self) {
        self.delivery.close();
        self.stop.cancel();
        self.group.shutdown().await;
    }

    /// A command goes into the log only when every voter understands it. Otherwise it may be asked again: the voters are
    /// being upgraded, or another leads who knows the command.
    fn check_level(&self, level: u32) -> Result<(), Error> {
        let state = self.group.state();
        let state = state.borrow();
        let voters = state.voters.iter().map(|id| state.members.get(id));
        let levels = voters.map(|node| node.map_or(0, |node| (self.feature_level)(*node)));
        match level <= versions::common_level(levels) {
            true => Ok(()),
            false => Err(Error::Internal(
                "not every voter of the shard understands such a command yet".to_owned(),
            )),
        }
    }

    /// Until shard time has met the wall clock, a leader is none for whatever depends on the time: the router tries again.
    fn wait_for_time(&self) -> Result<(), Error> {
        let settled = self.clock.is_settled();
        settled
            .then_some(())
            .ok_or(Error::NotLeader { leader: None })
    }

    fn term_led(&self) -> Result<u64, Error> {
        let state = self.group.state();
        let state = state.borrow();
        let leads = state.role == Role::Leader;
        leads
            .then_some(state.term)
            .ok_or(Error::NotLeader { leader: None })
    }
}

fn count(effects: &Effects) {
    metrics::FORGOTTEN_RECEIPTS
        .handle()
        .increment(effects.forgotten_receipts);
    for fill in &effects.senders {
        metrics::SENDER_IDS.handle().record(fill.ids as f64);
        metrics::SENDER_CHAINS.handle().record(fill.chains as f64);
    }
    for fill in &effects.users {
        match *fill {
            UserFill::ReadMarks(marks) => metrics::READ_MARKS.handle().record(marks as f64),
            UserFill::ReadsAhead(marks) => metrics::READS_AHEAD.handle().record(marks as f64),
            UserFill::DeliveredAhead(ranges) => {
                metrics::DELIVERED_AHEAD.handle().record(ranges as f64);
            }
            UserFill::Devices(devices) => metrics::DEVICES.handle().record(devices as f64),
        }
    }
    for (_, receipt) in &effects.receipts {
        metrics::RECEIPTS
            .of(receipt.status().as_str_name())
            .increment(1);
        let expired = receipt
            .expired
            .iter()
            .map(|range| range.last - range.first + 1);
        metrics::EXPIRED_ENTRIES.handle().increment(expired.sum());
    }
}

/// Reads a view.
#[must_use]
pub fn reader(view: &View) -> Reader<'_> {
    Reader::new(view.store().as_ref(), view.home())
}

fn refused(code: Code, message: &str) -> AttachResponse {
    AttachResponse {
        error: Some(refusal(code, message)),
        ..AttachResponse::default()
    }
}

fn refusal(code: Code, message: &str) -> v1::Error {
    v1::Error {
        code: code.into(),
        message: message.to_owned(),
        ..v1::Error::default()
    }
}

impl From<crate::raft::ReadError> for Error {
    fn from(error: crate::raft::ReadError) -> Self {
        match error {
            crate::raft::ReadError::NotLeader { hint } => Self::NotLeader { leader: hint },
            crate::raft::ReadError::NoQuorum => Self::NotLeader { leader: None },
            crate::raft::ReadError::Stopped => Self::NoReplica,
        }
    }
}

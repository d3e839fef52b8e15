//! One replica of a shard: its Raft group as the layers above see it.
//!
//! Promises: a proposal is answered only after it is applied, and it is applied only after it is durable on a majority;
//! votes and log entries are durable before they are answered. Never retries, never gathers, never looks at a wall
//! clock: the layer above decides what is proposed, when, and for how long it waits. Heartbeats are *not* sent by the
//! group itself: the node's one ticker calls [`Group::heartbeat`] of all its groups every [`Timing::heartbeat`], so that
//! they travel together, and stops when the disk hangs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use parking_lot::Mutex;
use roost_proto::peer::failure::Reason;
use roost_proto::peer::{Failure, RaftRequest, RaftResponse};
use roost_proto::storage::Outcome;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::collect::{Collector, Keep};
use super::contact::Contact;
use super::election::Election;
use super::fault::Fault;
use super::inbox::{self, Inbox, Receiving};
use super::log_store::LogStore;
use super::network::Network;
use super::pace::Pace;
use super::state::{self, Role, State};
use super::state_machine::{EffectSink, StateMachine};
use super::states::{States, View};
use super::timing::Timing;
use super::types::{Command, Raft};
use crate::peer::Peers;
use crate::shard::Machine;
use crate::storage::syncer::Syncer;
use crate::storage::{self, Store};
use crate::types::{NodeId, ReplicaId, ShardId};

/// What a group is made of.
pub struct GroupConfig {
    /// For logs only.
    pub shard: ShardId,
    /// Which replica. Its row, if it has one, names the generation of its state.
    pub replica: ReplicaId,
    /// The node's store.
    pub store: Arc<dyn Store>,
    /// The node's syncer, over the same store.
    pub syncer: Arc<Syncer>,
    /// What applies batches.
    pub machine: Arc<dyn Machine>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// The same in the whole cluster.
    pub timing: Timing,
    /// Bytes of its newest log entries that stay in memory.
    pub log_cache_bytes_max: usize,
    /// How fast the node sends snapshots.
    pub pace: Arc<Pace>,
    /// Takes the effects of what is applied; see [`EffectSink`].
    pub effects: EffectSink,
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead, or lost the lead before the proposal was committed. It may still be committed, if
    /// it had left this replica: propose it again with the ids unchanged.
    #[error("this replica does not lead the shard")]
    NotLeader {
        /// Who does, if that is known.
        hint: Option<NodeId>,
    },
    /// Its fate is unknown. Propose it again with the ids unchanged.
    #[error("the fate of the proposal is unknown")]
    Unknown,
    /// The group has stopped; it was not proposed.
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a read could not be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This replica does not lead.
    #[error("this replica does not lead the shard")]
    NotLeader {
        /// Who does, if that is known.
        hint: Option<NodeId>,
    },
    /// A majority did not answer within a heartbeat interval.
    #[error("a majority of the shard's replicas does not answer")]
    NoQuorum,
    /// The group has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a group could not be brought to life with its first members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoundError {
    /// The members do not name this replica.
    #[error("the founding members do not name this replica")]
    NotAMember,
    /// The group has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// The group has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the replica has stopped")]
pub struct Stopped;

/// One replica's group. End it by [`Group::shutdown`].
pub struct Group {
    pub(super) replica: ReplicaId,
    pub(super) raft: Raft,
    pub(super) state: watch::Receiver<State>,
    /// Held during a change of members: one at a time.
    pub(super) change: tokio::sync::Mutex<()>,
    states: Arc<States>,
    log: LogStore,
    inbox: Inbox,
    collector: Mutex<Collector>,
    contact: Contact,
    timing: Timing,
    follower: JoinHandle<()>,
    election: JoinHandle<()>,
}

/// How long a collection waits for openraft to look at the state.
const LOOK_MAX: Duration = Duration::from_secs(5);

impl Group {
    /// Reads the replica's log and state, makes them durable, and takes part in the group from then on.
    ///
    /// # Errors
    /// [`storage::Error::Corrupt`]: the replica is damaged and has to be renewed. Others: the node has to end.
    pub async fn open(config: GroupConfig) -> Result<Self, storage::Error> {
        let replica = config.replica;
        let fault = Fault::default();
        let states = Arc::new(States::open(config.store.clone(), config.shard, replica)?);
        let log = LogStore::open(
            replica,
            config.store,
            config.syncer,
            fault.clone(),
            config.log_cache_bytes_max,
        )
        .await?;
        let machine = StateMachine::open(
            states.clone(),
            log.clone(),
            config.machine,
            config.effects,
            fault.clone(),
        )?;
        let contact = Contact::new(replica);
        let network = Network {
            replica,
            peers: config.peers,
            timing: config.timing,
            fault: fault.clone(),
            pace: config.pace,
            contact: contact.clone(),
        };
        let opened_last = log.last().map(|id| id.index);
        let settings = Arc::new(config.timing.config(&config.shard.to_string()));
        let opened = Raft::new(replica.0, settings, network.clone(), log.clone(), machine).await;
        let raft = opened.map_err(|fatal| {
            fault.first().unwrap_or_else(|| storage::Error::Corrupt {
                what: "log and state",
                detail: fatal.to_string(),
            })
        })?;
        let timing = config.timing;
        let (state, follow) =
            state::follow(&raft, states.clone(), fault, contact.clone(), opened_last);
        let election = Election {
            raft: raft.clone(),
            log: log.clone(),
            network,
            contact: contact.clone(),
            timing,
        };
        Ok(Self {
            replica,
            inbox: Inbox::new(
                raft.clone(),
                log.clone(),
                states.clone(),
                contact.clone(),
                timing,
            ),
            collector: Mutex::new(Collector::new(log.extent())),
            follower: tokio::spawn(follow),
            election: tokio::spawn(election.run()),
            change: tokio::sync::Mutex::default(),
            raft,
            state,
            states,
            log,
            contact,
            timing,
        })
    }

    /// Which replica this is.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Brings a new group to life. Every founding member calls it with the same members; again, or on a group that
    /// lives already, it does nothing.
    ///
    /// # Errors
    /// [`FoundError`].
    pub async fn initialize(&self, members: BTreeMap<ReplicaId, NodeId>) -> Result<(), FoundError> {
        if !members.contains_key(&self.replica) {
            return Err(FoundError::NotAMember);
        }
        let members: BTreeMap<u64, NodeId> = members
            .into_iter()
            .map(|(replica, node)| (replica.0, node))
            .collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(FoundError::NotAMember)
            }
            Err(RaftError::Fatal(_)) => Err(FoundError::Stopped),
        }
    }

    /// Proposes an encoded `storage.Batch` and waits until this replica has applied it. It waits for as long as there
    /// is no majority: give up waiting by dropping the future, and the fate is unknown.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, batch: Bytes) -> Result<Vec<Outcome>, ProposeError> {
        let answer = self.raft.client_write_ff(Command(batch)).await;
        let answer = answer.map_err(|_| ProposeError::Stopped)?;
        match answer.await {
            Ok(Ok(written)) => Ok(written.data.0),
            Ok(Err(ClientWriteError::ForwardToLeader(to))) => Err(ProposeError::NotLeader {
                hint: to.leader_node,
            }),
            // Only changes of members are refused this way.
            Ok(Err(ClientWriteError::ChangeMembershipError(_))) | Err(_) => {
                Err(ProposeError::Unknown)
            }
        }
    }

    /// Returns when everything that was accepted before this call, anywhere, is in [`Group::view`]: a majority has
    /// confirmed that this replica leads, and it has applied what was committed. It costs a round of heartbeats, so
    /// share one among the reads that wait.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn confirm_read(&self) -> Result<(), ReadError> {
        match self.raft.ensure_linearizable().await {
            Ok(_) => self.own_term_is_applied().await,
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                Err(ReadError::NotLeader {
                    hint: to.leader_node,
                })
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                Err(ReadError::NoQuorum)
            }
            Err(RaftError::Fatal(_)) => Err(ReadError::Stopped),
        }
    }

    /// openraft takes a leader that was restarted within its term for one that knows all that it has committed.
    async fn own_term_is_applied(&self) -> Result<(), ReadError> {
        let mut state = self.state();
        let applied = state.wait_for(|state| state.role != Role::Leader || state.applied_own_term);
        let applied = tokio::time::timeout(self.timing.election_max, applied).await;
        let state = applied
            .map_err(|_| ReadError::NoQuorum)?
            .map_err(|_| ReadError::Stopped)?;
        match state.role {
            Role::Leader => Ok(()),
            _ => Err(ReadError::NotLeader {
                hint: state.leader.map(|(_, node)| node),
            }),
        }
    }

    /// The applied state as it is on this replica; see [`Group::confirm_read`] for when it may be served.
    #[must_use]
    pub fn view(&self) -> View {
        self.states.view()
    }

    /// What this group is, and how that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Entries known to be in this log or committed by a leader that this replica has not applied. `None` while it may be
    /// behind by anything: if it follows, until a leader has spoken since it was opened; if it leads, as it does at once
    /// when it led before, until a majority has answered.
    #[must_use]
    pub fn lag_entries(&self) -> Option<u64> {
        let state = self.state.borrow();
        let own = state.last_log.unwrap_or_default();
        let known = match (state.role, self.inbox.known_committed()) {
            (Role::Leader, _) if state.quorum_age.is_some() => own,
            (Role::Leader, _) | (_, 0) => return None,
            (_, committed) => own.max(committed),
        };
        Some(known.saturating_sub(state.last_applied.unwrap_or_default()))
    }

    /// Appends that came and are not answered yet.
    #[must_use]
    pub fn waiting_appends(&self) -> usize {
        self.inbox.waiting_appends()
    }

    /// The snapshot that this replica is receiving, if one is on its way.
    #[must_use]
    pub fn receiving(&self) -> Option<Receiving> {
        self.inbox.receiving()
    }

    /// Answers another replica. A request for another replica id is refused: what was said to a replica that is gone
    /// must never reach the one that took its place.
    ///
    /// # Errors
    /// The failure to send back.
    pub async fn handle(&self, request: RaftRequest) -> Result<RaftResponse, Failure> {
        if request.replica != self.replica.0 {
            return Err(inbox::failure(
                Reason::NoReplica,
                "another replica lives here",
            ));
        }
        self.inbox.handle(request).await
    }

    /// Sends heartbeats to all members, if this replica leads. Returns at once.
    pub async fn heartbeat(&self) {
        if self.state.borrow().role == Role::Leader {
            // A group that has stopped has nobody to tell.
            let _ = self.raft.trigger().heartbeat().await;
        }
    }

    /// Stands for election now, and asks nobody before. To hand over: pause proposals at the leader, wait there for
    /// [`Group::caught_up`] of the target, then call this at the target. The old leader grants it at once, unless it has
    /// led for less than [`Timing::election_min`]; other replicas only when they have not heard of a leader for as long.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn elect(&self) -> Result<(), Stopped> {
        self.raft.trigger().elect().await.map_err(|_| Stopped)
    }

    /// For how long a leader may hold proposals back while it hands over: whoever dies meanwhile costs no more than a
    /// leader that does.
    #[must_use]
    pub fn hand_over_max(&self) -> Duration {
        self.timing.patience(true)
    }

    /// Returns true when `target` holds everything that this leader's log holds; false when this replica does not lead
    /// (any more). Without a pause in proposals it may never return.
    pub async fn caught_up(&self, target: ReplicaId) -> bool {
        let mut state = self.state();
        let reached = state
            .wait_for(|state| state.role != Role::Leader || state.caught_up(target))
            .await;
        reached.is_ok_and(|state| state.role == Role::Leader)
    }

    /// Whether another replica has answered this one within the longest election timeout: a leader's heartbeats go out
    /// several times within it, so one that has not is dead, cut off, or frozen.
    #[must_use]
    pub fn hears(&self, target: ReplicaId) -> bool {
        self.contact
            .answered_within(target, self.timing.election_max)
    }

    /// For how long this replica has heard neither of a leader nor of a majority of the voters. One that leads and is heard
    /// by nobody learns nothing from its own signs.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let majority = self.contact.quorum_silence();
        match self.state.borrow().role {
            Role::Leader => majority,
            _ => majority.min(self.contact.leader_at().elapsed()),
        }
    }

    /// Purges what the log need not keep; returns up to which index it asked openraft to, if there was anything. Call
    /// it several times within [`Keep::age`]: an entry counts as old as the call before it was written.
    ///
    /// # Errors
    /// What the store reports while generations that were replaced or never finished are removed.
    pub async fn collect(&self, keep: Keep) -> Result<Option<u64>, storage::Error> {
        self.inbox.forget_silent().await?;
        self.states.sweep()?;
        let target = {
            let now = Instant::now();
            self.collector.lock().target(self.log.extent(), keep, now)
        };
        // What was not applied cannot go; a group that never applied anything has no snapshot either.
        let applied = self.state.borrow().last_applied;
        let (Some(target), Some(applied)) = (target, applied) else {
            return Ok(None);
        };
        let upto = target.min(applied);
        if self.raft.trigger().snapshot().await.is_err() {
            return Ok(None);
        }
        let wait = self.raft.wait(Some(LOOK_MAX));
        let looked = |metrics: &openraft::RaftMetrics<u64, NodeId>| {
            metrics.snapshot.is_some_and(|id| id.index >= upto)
        };
        if wait
            .metrics(looked, "the state was looked at")
            .await
            .is_err()
        {
            return Ok(None);
        }
        if self.raft.trigger().purge_log(upto).await.is_err() {
            return Ok(None);
        }
        self.collector.lock().purged(upto);
        Ok(Some(upto))
    }

    /// Bytes of log that it keeps, as far as they were written since it was opened.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.collector.lock().kept_bytes(self.log.extent())
    }

    /// Stops the group and waits until it writes nothing more; then the same replica may be opened again.
    pub async fn shutdown(&self) {
        self.states.close();
        if self.raft.shutdown().await.is_err() {
            tracing::warn!(replica = %self.replica, "the group had already died");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.states.close();
        self.follower.abort();
        self.election.abort();
    }
}

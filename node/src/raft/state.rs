//! What a group says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;

use super::contact::Contact;
use super::fault::Fault;
use super::states::States;
use super::types::{Raft, Vote};
use crate::storage::Error;
use crate::types::{NodeId, ReplicaId};

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Proposes.
    Leader,
    /// Votes.
    Follower,
    /// Votes, and stands for election.
    Candidate,
    /// Follows without a vote: not yet a member, or being added.
    Learner,
    /// Over; [`State::failed`] says whether it had to be.
    Stopped,
}

/// Why a group stopped by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The log or the state is damaged: the replica never votes or acknowledges again, and has to be renewed.
    Corrupt(String),
    /// The store failed, or was written by a newer version: the node has to end.
    Store(String),
    /// Its core died of something else, a bug. The supervisor may open the group again.
    Died(String),
}

/// A group as its replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What this replica is.
    pub role: Role,
    /// The newest term it has seen. **Not unique to a leader**: in openraft two replicas may lead in one term, one
    /// after the other, first the lower replica id. What must be unique and rise is (term, replica id).
    pub term: u64,
    /// Who leads, if that is known.
    pub leader: Option<(ReplicaId, NodeId)>,
    /// Index of the last entry in its log.
    pub last_log: Option<u64>,
    /// Index of the last entry in its state.
    pub last_applied: Option<u64>,
    /// Leader only: its state holds the first entry of its own term, and with it everything accepted before; after a
    /// restart within its term all that its log held then. Earlier it must serve neither reads nor attachments.
    pub applied_own_term: bool,
    /// Leader only: how long ago a majority was heard of, when this was written. Its change wakes nobody.
    pub quorum_age: Option<Duration>,
    /// Leader only: up to which index each other replica's log is known to agree.
    pub matched: BTreeMap<ReplicaId, Option<u64>>,
    /// All members with the nodes they live on.
    pub members: BTreeMap<ReplicaId, NodeId>,
    /// The members that vote; during a change those of both sets.
    pub voters: Vec<ReplicaId>,
    /// Index up to which the log has been purged.
    pub purged: Option<u64>,
    /// The generation of the state in use. It rises when a snapshot is installed, without effects for what it changed.
    pub generation: u32,
    /// Set when the group stopped by itself.
    pub failed: Option<Failed>,
}

impl State {
    /// Whether this replica leads and may serve.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.role == Role::Leader && self.applied_own_term
    }

    /// Whether a replica's log is so near to this leader's that a short pause lets it catch up.
    #[must_use]
    pub fn nearly_caught_up(&self, replica: ReplicaId) -> bool {
        /// What a follower appends in a few round trips.
        const NEAR_ENTRIES: u64 = 1_000;
        let matched = self.matched.get(&replica).copied().flatten();
        self.role == Role::Leader
            && self.last_log.is_some()
            && matched.map(|index| index + NEAR_ENTRIES) >= self.last_log
    }

    /// Whether a replica's log is known to hold everything that this leader's holds.
    #[must_use]
    pub fn caught_up(&self, replica: ReplicaId) -> bool {
        let matched = self.matched.get(&replica).copied().flatten();
        self.role == Role::Leader && self.last_log.is_some() && matched == self.last_log
    }
}

/// The vote and the last index that a replica was opened with.
///
/// A leader that is opened again within its term leads at once. It may have committed, and told, all that its log holds,
/// but its state is only as new as what reached the disk beside the log, and openraft would confirm reads of that.
#[derive(Clone, Copy, Debug)]
struct Opened {
    vote: Vote,
    last_log: Option<u64>,
}

/// Follows openraft's metrics until the group ends. Returns the first state and the task.
pub(super) fn follow(
    raft: &Raft,
    states: Arc<States>,
    fault: Fault,
    contact: Contact,
    opened_last: Option<u64>,
) -> (watch::Receiver<State>, impl Future<Output = ()> + use<>) {
    let mut metrics = raft.metrics();
    let members = Arc::clone(&metrics.borrow_and_update().membership_config);
    contact.set_members(&members);
    let opened = Opened {
        vote: metrics.borrow().vote,
        last_log: opened_last,
    };
    let first = describe(&metrics.borrow(), &states, &fault, opened);
    let (sender, receiver) = watch::channel(first);
    let task = async move {
        loop {
            let died = metrics.changed().await.is_err();
            let mut state = {
                let metrics = metrics.borrow_and_update();
                contact.set_members(&metrics.membership_config);
                describe(&metrics, &states, &fault, opened)
            };
            if died && state.role != Role::Stopped {
                state.role = Role::Stopped;
                state.failed = Some(Failed::Died("its core panicked".to_owned()));
            }
            let over = state.role == Role::Stopped;
            sender.send_if_modified(|last| {
                // That time passes is no news: whoever asks sees it, and nobody is woken for it.
                last.quorum_age = state.quorum_age;
                let modified = *last != state;
                *last = state;
                modified
            });
            if over {
                return;
            }
        }
    };
    (receiver, task)
}

fn describe(
    metrics: &RaftMetrics<u64, NodeId>,
    states: &States,
    fault: &Fault,
    opened: Opened,
) -> State {
    let membership = metrics.membership_config.membership();
    let role = match metrics.state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Stopped,
    };
    let leads = role == Role::Leader;
    // Not the term alone: two replicas may lead in one term, one after the other.
    let applied_by = metrics.last_applied.map(|id| id.leader_id);
    let last_applied = metrics.last_applied.map(|id| id.index);
    let in_opened_term = metrics.vote.leader_id == opened.vote.leader_id;
    let has_caught_up = !in_opened_term || last_applied >= opened.last_log;
    let replication = metrics.replication.iter().flatten();
    State {
        role,
        term: metrics.current_term,
        leader: metrics.current_leader.and_then(|leader| {
            let node = membership.get_node(&leader)?;
            Some((ReplicaId(leader), *node))
        }),
        last_log: metrics.last_log_index,
        last_applied,
        applied_own_term: leads && has_caught_up && applied_by == Some(metrics.vote.leader_id),
        quorum_age: metrics.millis_since_quorum_ack.map(Duration::from_millis),
        matched: replication
            .filter(|(id, _)| **id != metrics.id)
            .map(|(id, matched)| (ReplicaId(*id), matched.map(|id| id.index)))
            .collect(),
        members: membership
            .nodes()
            .map(|(id, node)| (ReplicaId(*id), *node))
            .collect(),
        voters: membership.voter_ids().map(ReplicaId).collect(),
        purged: metrics.purged.map(|id| id.index),
        generation: states.home().generation,
        failed: metrics
            .running_state
            .as_ref()
            .err()
            .and_then(|fatal| failed(fatal, fault)),
    }
}

fn failed(fatal: &openraft::error::Fatal<u64>, fault: &Fault) -> Option<Failed> {
    match (fatal, fault.first()) {
        (_, Some(error @ Error::Corrupt { .. })) => Some(Failed::Corrupt(error.to_string())),
        (_, Some(error)) => Some(Failed::Store(error.to_string())),
        (openraft::error::Fatal::Stopped, None) => None,
        (fatal, None) => Some(Failed::Died(fatal.to_string())),
    }
}

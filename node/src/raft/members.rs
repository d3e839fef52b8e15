//! Changing who belongs to a group, one change at a time.

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};

use super::group::Group;
use super::state::{Role, State};
use crate::types::{NodeId, ReplicaId};

/// How far behind a learner may be when it gets its vote. It does not hold up commits: the others are a majority.
const VOTER_LAG_MAX: u64 = 64;

/// Why the members did not change. Ask again: what was done already is found done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This replica does not lead, or lost the lead on the way.
    #[error("this replica does not lead the shard")]
    NotLeader {
        /// Who does, if that is known.
        hint: Option<NodeId>,
    },
    /// Another change is under way.
    #[error("another change of the shard's members is under way")]
    Busy,
    /// The leader cannot be the one that leaves: hand the lead over first.
    #[error("the replica to be replaced leads the shard; hand over first")]
    Leads,
    /// The group has no replica on that node.
    #[error("the shard has no replica on that node")]
    NotAMember,
    /// The group has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

impl Group {
    /// Replaces whatever replicas the group has on `node` by `new`, which lives there: adds it as a learner, waits until
    /// it has caught up, swaps the votes, removes the others, also one that was itself to take a place and was lost on the
    /// way. `new` must be open on its node. It waits for as long as the new replica needs, and goes on from where it was
    /// when it is called again.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn renew(&self, new: ReplicaId, node: NodeId) -> Result<(), ChangeError> {
        let Ok(_one_at_a_time) = self.change.try_lock() else {
            return Err(ChangeError::Busy);
        };
        let others = |state: &State| -> BTreeSet<u64> {
            let here = state.members.iter().filter(|(_, at)| **at == node);
            here.map(|(id, _)| id.0).filter(|id| *id != new.0).collect()
        };
        let state = self.leading()?;
        if others(&state).contains(&self.replica.0) {
            return Err(ChangeError::Leads);
        }
        if !state.members.contains_key(&new) {
            if others(&state).is_empty() {
                return Err(ChangeError::NotAMember);
            }
            let learner = BTreeMap::from([(new.0, node)]);
            self.apply_change(ChangeMembers::AddNodes(learner), true)
                .await?;
        }
        // A new replica has its vote before the old one leaves, and may be the next leader: then it has nobody to follow.
        if new != self.replica {
            self.near(new).await?;
        }
        let state = self.leading()?;
        let gone = others(&state);
        let mut voters: BTreeSet<u64> = state.voters.iter().map(|id| id.0).collect();
        voters.retain(|id| !gone.contains(id));
        voters.insert(new.0);
        // Also when the votes stand already: this ends a change that a former leader left half done, and removes an
        // old replica that lost its vote but not its place.
        let swap = ChangeMembers::ReplaceAllVoters(voters);
        self.apply_change(swap, false).await?;
        let gone = others(&self.leading()?);
        if !gone.is_empty() {
            self.apply_change(ChangeMembers::RemoveNodes(gone), false)
                .await?;
        }
        Ok(())
    }

    fn leading(&self) -> Result<State, ChangeError> {
        let state = self.state.borrow().clone();
        match state.role {
            Role::Leader => Ok(state),
            Role::Stopped => Err(ChangeError::Stopped),
            _ => Err(ChangeError::NotLeader {
                hint: state.leader.map(|(_, node)| node),
            }),
        }
    }

    async fn near(&self, learner: ReplicaId) -> Result<(), ChangeError> {
        let near = |state: &State| {
            let matched = state.matched.get(&learner).copied().flatten();
            matched.is_some_and(|matched| Some(matched + VOTER_LAG_MAX) >= state.last_log)
        };
        let mut state = self.state();
        let reached = state.wait_for(|state| state.role != Role::Leader || near(state));
        reached.await.map_err(|_| ChangeError::Stopped)?;
        self.leading().map(drop)
    }

    async fn apply_change(
        &self,
        change: ChangeMembers<u64, NodeId>,
        retain: bool,
    ) -> Result<(), ChangeError> {
        let written = self.raft.change_membership(change, retain).await;
        let written = written.map_err(|error| match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => ChangeError::NotLeader {
                hint: to.leader_node,
            },
            RaftError::APIError(ClientWriteError::ChangeMembershipError(_)) => ChangeError::Busy,
            RaftError::Fatal(_) => ChangeError::Stopped,
        })?;
        // Until the state says what this change made of it.
        let mut state = self.state();
        let index = Some(written.log_id.index);
        let seen =
            state.wait_for(|state| state.role != Role::Leader || state.last_applied >= index);
        seen.await.map_err(|_| ChangeError::Stopped)?;
        Ok(())
    }
}

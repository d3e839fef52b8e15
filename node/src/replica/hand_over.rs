//! Handing leadership to another replica: pause proposals, wait until it has caught up, elect there.
//!
//! Without the pause it does not work: the target's log must be as long as the leader's when it asks for votes.

use std::time::Duration;

use roost_proto::peer::{HandOver, Request, request, response};

use super::{Error, Replica};
use crate::peer::{Lane, Peers};
use crate::raft::Role;
use crate::types::{NodeId, ReplicaId};

impl Replica {
    /// Hands leadership to another voter of the shard; returns once somebody else leads.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the target has not been heard of lately, and nothing was paused for it, or if it did not take
    /// over in time; this replica then goes on leading, or follows whoever was elected.
    pub async fn hand_over(
        &self,
        peers: &dyn Peers,
        node: NodeId,
        target: ReplicaId,
    ) -> Result<(), Error> {
        if self.group.state().borrow().role != Role::Leader {
            return Ok(());
        }
        // A target that is frozen would hold the proposals back for nothing.
        if !self.group.hears(target) {
            return Err(Error::Unknown);
        }
        // Clients notice nothing but this delay.
        let pause_max = self.group.hand_over_max();
        self.proposer.set_paused(true);
        let handing = self.hand_over_paused(peers, node, target, pause_max);
        let handed = tokio::time::timeout(pause_max, handing).await;
        self.proposer.set_paused(false);
        handed.unwrap_or(Err(Error::Unknown))
    }

    async fn hand_over_paused(
        &self,
        peers: &dyn Peers,
        node: NodeId,
        target: ReplicaId,
        pause_max: Duration,
    ) -> Result<(), Error> {
        if !self.group.caught_up(target).await {
            return Ok(());
        }
        let request = Request {
            request: Some(request::Request::HandOver(HandOver { replica: target.0 })),
        };
        let answer = peers
            .call(node, Lane::Control, pause_max, request)
            .await
            .map_err(|_| Error::Unknown)?;
        if !matches!(answer.response, Some(response::Response::HandOver(_))) {
            return Err(Error::Unknown);
        }
        let mut states = self.group.state();
        // The group lives as long as this replica.
        drop(
            states
                .wait_for(|state| state.role != Role::Leader && state.leader.is_some())
                .await,
        );
        Ok(())
    }
}

//! Renewing replicas of this node under new ids, and leading the renewals of others.
//!
//! A replica that failed or was lost is asked for at the meta shard, which gives out a new id for the same node and
//! store. The node opens that empty; the shard's leader adds it, waits until it has caught up, and swaps the votes. Every
//! step is found again after a restart: what is out by its row, the rest by the meta shard's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roost_proto::storage::{FinishRenewal, LocalReplica, RenewReplica, Renewal, command, outcome};

use super::local;
use crate::metrics;
use crate::replica::{Replica, Replicas};
use crate::router::Router;
use crate::storage::Store;
use crate::types::{NodeId, ReplicaId, ShardId};

/// How long the meta shard may take to answer in one round.
const META_WITHIN: Duration = Duration::from_secs(5);
/// How long a new replica may take to catch up before the renewal is begun anew from where it is.
const RENEWAL_MAX: Duration = Duration::from_secs(600);
/// Between two looks whether a renewal still stands as it was ordered.
const LOOK: Duration = Duration::from_secs(1);

/// What renewals need.
pub(crate) struct Renewals {
    pub(crate) me: NodeId,
    /// Only what was ordered for this store is opened.
    pub(crate) store_id: u64,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) router: Arc<Router>,
    /// Shards whose renewal this node is leading at the moment.
    pub(crate) leading: Arc<Mutex<BTreeSet<ShardId>>>,
}

/// The meta shard does not answer: the rest of the round would only wait for it again.
pub(crate) struct MetaSilent;

impl Renewals {
    /// A replica that is out and that nobody has replaced yet is asked for; one that was replaced leaves no rows.
    pub(crate) async fn follow_up(
        &self,
        local: &LocalReplica,
    ) -> anyhow::Result<Result<(), MetaSilent>> {
        let placement = self.router.placement();
        let shard = ShardId(local.shard);
        let renewals = placement.renewals();
        let under_way = renewals
            .iter()
            .any(|renewal| renewal.old_replica == local.replica);
        if under_way {
            return Ok(Ok(()));
        }
        let placed = placement
            .replicas(shard)
            .iter()
            .any(|(id, _)| id.0 == local.replica);
        let to_be_placed = renewals
            .iter()
            .any(|renewal| renewal.new_replica == local.replica);
        if !placed && !to_be_placed {
            local::forget(&*self.store, local)?;
            tracing::info!(
                replica = local.replica,
                "the rows of a replaced replica are deleted"
            );
            return Ok(Ok(()));
        }
        let ask = RenewReplica {
            shard: shard.0,
            replica: local.replica,
            reason: local.reason.clone(),
            store: self.store_id,
        };
        let command = command::Command::RenewReplica(ask);
        let answer = self.router.propose(ShardId::META, command, META_WITHIN);
        match answer.await.map(|outcome| outcome.outcome) {
            Ok(Some(outcome::Outcome::Renew(renewed))) => {
                tracing::info!(%shard, old = local.replica, new = renewed.new_replica, "a replica will be renewed");
            }
            Ok(other) => {
                tracing::warn!(%shard, ?other, "the meta shard refuses to renew a replica")
            }
            // Asked again in the next round.
            Err(error) => {
                tracing::warn!(%shard, %error, "cannot ask for a renewal");
                return Ok(Err(MetaSilent));
            }
        }
        Ok(Ok(()))
    }

    /// The row of a new replica that is to be opened here: once, on the meta shard's order to this store.
    pub(crate) fn ordered(
        &self,
        renewal: &Renewal,
        locals: &[LocalReplica],
    ) -> Option<LocalReplica> {
        let ordered = renewal.node == self.me.to_string() && renewal.store == self.store_id;
        let known = locals
            .iter()
            .any(|local| local.replica == renewal.new_replica);
        (ordered && !known).then(|| local::active(renewal.shard, renewal.new_replica))
    }

    /// At the shard's leader: one change of members at a time, in a task of its own, because it waits for the catch-up.
    pub(crate) fn lead(&self, renewal: &Renewal) {
        let shard = ShardId(renewal.shard);
        let Some(replica) = self.replicas.get(shard).filter(|replica| replica.serves()) else {
            return;
        };
        let Ok(node) = NodeId::parse(&renewal.node) else {
            return;
        };
        if !self.leading.lock().insert(shard) {
            return;
        }
        let (router, leading, renewal) = (
            Arc::clone(&self.router),
            Arc::clone(&self.leading),
            renewal.clone(),
        );
        tokio::spawn(async move {
            tokio::select! {
                () = carry_through(&router, &replica, &renewal, node) => {}
                // Another is to take the place by now: this one would be waited for in vain.
                () = withdrawn(&router, &renewal) => {}
            }
            leading.lock().remove(&shard);
        });
    }
}

async fn carry_through(router: &Router, replica: &Replica, renewal: &Renewal, node: NodeId) {
    let shard = ShardId(renewal.shard);
    let (old, new) = (renewal.old_replica, ReplicaId(renewal.new_replica));
    match tokio::time::timeout(RENEWAL_MAX, replica.group().renew(new, node)).await {
        Ok(Ok(())) => {
            let finish = FinishRenewal {
                shard: shard.0,
                old_replica: old,
                new_replica: new.0,
            };
            let command = command::Command::FinishRenewal(finish);
            let finished = router.propose(ShardId::META, command, META_WITHIN);
            // Unanswered: the renewal stands in the meta shard still, and is found done in the next round.
            if finished.await.is_ok() {
                metrics::RENEWALS.handle().increment(1);
                tracing::info!(%shard, old, %new, "a replica was renewed");
            }
        }
        Ok(Err(error)) => tracing::warn!(%shard, old, %new, %error, "a renewal waits"),
        Err(_) => {
            tracing::warn!(%shard, old, %new, "a renewal takes long; it goes on from where it is")
        }
    }
}

/// Returns when the meta shard no longer orders this renewal.
async fn withdrawn(router: &Router, renewal: &Renewal) {
    while router.placement().renewals().contains(renewal) {
        tokio::time::sleep(LOOK).await;
    }
}

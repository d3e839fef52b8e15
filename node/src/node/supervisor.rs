//! Watches over this node's replicas: starts one again whose core died, takes a damaged one out of service for good,
//! and carries its renewal through.
//!
//! A damaged replica never votes or acknowledges again under its id (contract C9). Its node asks the meta shard for a
//! new id on the same node, opens that empty, and the shard's leader adds it, waits until it has caught up, and swaps
//! the votes. Every step is found again after a restart: the failed replica by its row, the rest by the meta shard's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roost_proto::storage::{
    FinishRenewal, LocalReplica, RenewReplica, Renewal, ReplicaState, command, outcome,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::founding::local_replicas;
use super::health::NodeHealth;
use crate::metrics;
use crate::raft::Failed;
use crate::replica::{Replica, Replicas};
use crate::router::Router;
use crate::storage::keys::{self, Key};
use crate::storage::{self, Batch, Column, Store};
use crate::types::{NodeId, ReplicaId, ShardId};

/// Between two rounds.
const TICK: Duration = Duration::from_secs(1);
/// How long the meta shard may take to answer in one round.
const META_WITHIN: Duration = Duration::from_secs(5);
/// How long a new replica may take to catch up before the renewal is begun anew from where it is.
const RENEWAL_MAX: Duration = Duration::from_secs(600);

/// What the supervisor works with.
pub(crate) struct Supervisor {
    pub(crate) me: NodeId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) router: Arc<Router>,
    pub(crate) health: Arc<NodeHealth>,
    /// Ends the process: the store itself has failed.
    pub(crate) store_failed: CancellationToken,
    /// Shards whose renewal this node is leading at the moment.
    pub(crate) renewing: Arc<Mutex<BTreeSet<ShardId>>>,
}

impl Supervisor {
    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            if let Err(error) = self.round().await {
                tracing::error!(%error, "cannot look after this node's replicas");
            }
        }
    }

    async fn round(&self) -> anyhow::Result<()> {
        for replica in self.replicas.all() {
            let failed = replica.group().state().borrow().failed.clone();
            match failed.or_else(|| replica.damage().map(Failed::Corrupt)) {
                None => {}
                Some(Failed::Corrupt(reason)) => self.retire_damaged(&replica, reason).await?,
                Some(Failed::Store(reason)) => {
                    tracing::error!(shard = %replica.shard(), reason, "the store failed; the node ends");
                    self.store_failed.cancel();
                }
                Some(Failed::Died(reason)) => self.restart(&replica, &reason).await?,
            }
        }
        let locals = local_replicas(&*self.store)?;
        let failed = locals
            .iter()
            .filter(|local| local.state() == ReplicaState::Failed);
        let damaged: Vec<String> = failed
            .clone()
            .map(|local| format!("shard {}: {}", ShardId(local.shard), local.reason))
            .collect();
        let warning =
            (!damaged.is_empty()).then(|| format!("damaged replicas: {}", damaged.join("; ")));
        self.health.note("damage", warning);
        metrics::CORRUPT_REPLICAS
            .handle()
            .set(failed.clone().count() as f64);
        let placement = self.router.placement();
        for renewal in placement.renewals() {
            if renewal.node == self.me.to_string() {
                self.open_renewed(renewal, &locals).await?;
            }
            self.lead_renewal(renewal);
        }
        for local in failed {
            self.follow_up(local).await?;
        }
        Ok(())
    }

    /// Out of service before anything else: what it says from now on is worth nothing.
    async fn retire_damaged(&self, replica: &Replica, reason: String) -> anyhow::Result<()> {
        tracing::error!(shard = %replica.shard(), replica = %replica.id(), reason, "a replica is damaged; it stops");
        self.replicas.close(replica.shard()).await;
        mark_failed(&*self.store, replica.shard(), replica.id(), reason)?;
        Ok(())
    }

    async fn restart(&self, replica: &Replica, reason: &str) -> anyhow::Result<()> {
        tracing::error!(shard = %replica.shard(), reason, "a replica's core died; it is started again");
        metrics::RESTARTS.handle().increment(1);
        self.replicas.close(replica.shard()).await;
        let row = LocalReplica {
            replica: replica.id().0,
            shard: replica.shard().0,
            ..LocalReplica::default()
        };
        self.open(&row).await
    }

    /// A failed replica that nobody has replaced yet is reported; one that was replaced leaves no rows.
    async fn follow_up(&self, local: &LocalReplica) -> anyhow::Result<()> {
        let placement = self.router.placement();
        let shard = ShardId(local.shard);
        if placement
            .renewals()
            .iter()
            .any(|renewal| renewal.old_replica == local.replica)
        {
            return Ok(());
        }
        let placed = placement
            .replicas(shard)
            .iter()
            .any(|(id, _)| id.0 == local.replica);
        if !placed {
            return self.forget(local);
        }
        let ask = RenewReplica {
            shard: shard.0,
            replica: local.replica,
            reason: local.reason.clone(),
        };
        let answer = self
            .router
            .propose(
                ShardId::META,
                command::Command::RenewReplica(ask),
                META_WITHIN,
            )
            .await;
        match answer.map(|outcome| outcome.outcome) {
            Ok(Some(outcome::Outcome::Renew(renewed))) => {
                tracing::info!(%shard, old = local.replica, new = renewed.new_replica, "a replica will be renewed");
            }
            Ok(other) => {
                tracing::warn!(%shard, ?other, "the meta shard refuses to renew a replica")
            }
            // Asked again in the next round.
            Err(error) => tracing::warn!(%shard, %error, "cannot ask for a renewal"),
        }
        Ok(())
    }

    /// A replica id is opened on its node once, on the meta shard's order.
    async fn open_renewed(&self, renewal: &Renewal, locals: &[LocalReplica]) -> anyhow::Result<()> {
        if locals
            .iter()
            .any(|local| local.replica == renewal.new_replica)
        {
            return Ok(());
        }
        let mut row = LocalReplica {
            replica: renewal.new_replica,
            shard: renewal.shard,
            ..LocalReplica::default()
        };
        row.set_state(ReplicaState::Active);
        let mut batch = Batch::default();
        batch.put_row(&Key::Replica(ReplicaId(row.replica)), &row);
        self.store.write(batch)?;
        self.store.sync()?;
        self.open(&row).await
    }

    async fn open(&self, row: &LocalReplica) -> anyhow::Result<()> {
        match self.replicas.open(row, None).await {
            Ok(_) => Ok(()),
            Err(error) => match error.damage() {
                Some(reason) => Ok(mark_failed(
                    &*self.store,
                    ShardId(row.shard),
                    ReplicaId(row.replica),
                    reason,
                )?),
                None => Err(error.into()),
            },
        }
    }

    /// At the shard's leader: one change of members at a time, in a task of its own, because it waits for the catch-up.
    fn lead_renewal(&self, renewal: &Renewal) {
        let shard = ShardId(renewal.shard);
        let Some(replica) = self.replicas.get(shard).filter(|replica| replica.serves()) else {
            return;
        };
        let Ok(node) = NodeId::parse(&renewal.node) else {
            return;
        };
        if !self.renewing.lock().insert(shard) {
            return;
        }
        let (router, renewing, renewal) = (
            Arc::clone(&self.router),
            Arc::clone(&self.renewing),
            renewal.clone(),
        );
        tokio::spawn(async move {
            let (old, new) = (
                ReplicaId(renewal.old_replica),
                ReplicaId(renewal.new_replica),
            );
            let renewed =
                tokio::time::timeout(RENEWAL_MAX, replica.group().renew(old, new, node)).await;
            match renewed {
                Ok(Ok(())) => {
                    let finish = FinishRenewal {
                        shard: shard.0,
                        old_replica: old.0,
                    };
                    let command = command::Command::FinishRenewal(finish);
                    // Unanswered: the renewal stands in the meta shard still, and is found done in the next round.
                    if router
                        .propose(ShardId::META, command, META_WITHIN)
                        .await
                        .is_ok()
                    {
                        metrics::RENEWALS.handle().increment(1);
                        tracing::info!(%shard, %old, %new, "a replica was renewed");
                    }
                }
                Ok(Err(error)) => tracing::warn!(%shard, %old, %new, %error, "a renewal waits"),
                Err(_) => {
                    tracing::warn!(%shard, %old, %new, "a renewal takes long; it goes on from where it is")
                }
            }
            renewing.lock().remove(&shard);
        });
    }

    fn forget(&self, local: &LocalReplica) -> anyhow::Result<()> {
        let id = ReplicaId(local.replica);
        let mut batch = Batch::default();
        batch.delete_range(Column::Log, keys::replica_log_range(id));
        batch.delete_range(Column::State, keys::replica_state_range(id));
        let mut row = local.clone();
        row.set_state(ReplicaState::Retired);
        batch.put_row(&Key::Replica(id), &row);
        self.store.write(batch)?;
        tracing::info!(replica = %id, "the rows of a replaced replica are deleted");
        Ok(())
    }
}

/// Writes durably that a replica has failed, so that no restart brings it back.
///
/// # Errors
/// What the store reports.
pub(crate) fn mark_failed(
    store: &dyn Store,
    shard: ShardId,
    id: ReplicaId,
    reason: String,
) -> Result<(), storage::Error> {
    let mut row = LocalReplica {
        replica: id.0,
        shard: shard.0,
        generation: 0,
        reason,
        ..LocalReplica::default()
    };
    row.set_state(ReplicaState::Failed);
    let mut batch = Batch::default();
    batch.put_row(&Key::Replica(id), &row);
    store.write(batch)?;
    store.sync()
}

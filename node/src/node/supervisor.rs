//! Watches over this node's replicas: starts one again whose core died, takes a damaged one out of service for good,
//! notices what was lost with a former store, and has what is out renewed.
//!
//! A damaged replica never votes or acknowledges again under its id (contract C9). Damage in the node's own rows is
//! nobody's in particular: the store is condemned, the node ends, and its next start rebuilds it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use roost_proto::storage::{LocalReplica, ReplicaState};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::core::Condemn;
use super::health::NodeHealth;
use super::renewal::Renewals;
use super::{local, rebuild};
use crate::metrics;
use crate::raft::Failed;
use crate::replica::Replica;
use crate::router::placement::Placement;
use crate::sabotage::{self, Break};
use crate::storage;
use crate::types::{ReplicaId, ShardId};

/// Between two rounds.
const TICK: Duration = Duration::from_secs(1);

/// What the supervisor works with.
pub(crate) struct Supervisor {
    pub(crate) renewals: Renewals,
    pub(crate) health: Arc<NodeHealth>,
    pub(crate) data_dir: PathBuf,
    /// Refuses the store from now on: the node's own rows are damaged.
    pub(crate) condemn: Arc<Condemn>,
    /// Ends the process: the store itself has failed.
    pub(crate) store_failed: CancellationToken,
}

impl Supervisor {
    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            if let Err(error) = self.round().await {
                tracing::error!(%error, "cannot look after this node's replicas");
                if let Some(error @ storage::Error::Corrupt { .. }) = error.downcast_ref() {
                    (self.condemn)(error);
                    self.store_failed.cancel();
                }
            }
        }
    }

    async fn round(&self) -> anyhow::Result<()> {
        let Renewals {
            me,
            store_id,
            store,
            replicas,
            router,
            ..
        } = &self.renewals;
        for replica in replicas.all() {
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
        let placement = router.placement();
        let mut locals = local::all(&**store)?;
        let mut lost = rebuild::lost(*me, *store_id, &placement, &locals);
        if !lost.is_empty() {
            if sabotage::on(Break::IdReused) {
                for row in &lost {
                    self.open(&local::active(row.shard, row.replica)).await?;
                }
                let opened = lost.iter().map(|row| local::active(row.shard, row.replica));
                lost = opened.collect();
            }
            local::write(&**store, &lost)?;
            tracing::error!(
                replicas = lost.len(),
                "replicas were lost with a former store; they will be renewed"
            );
            locals.extend(lost);
        }
        self.report(&placement, &locals);
        for renewal in placement.renewals() {
            if let Some(row) = self.renewals.ordered(renewal, &locals) {
                local::write(&**store, std::slice::from_ref(&row))?;
                self.open(&row).await?;
            }
            self.renewals.lead(renewal);
        }
        for local in locals.iter().filter(|local| local::is_out(local)) {
            if self.renewals.follow_up(local).await?.is_err() {
                break;
            }
        }
        // What the meta shard says is here is here: the former store holds nothing that is needed any more.
        if placement.epoch > 0 && !locals.iter().any(local::is_out) {
            self.delete_aside().await;
        }
        Ok(())
    }

    fn report(&self, placement: &Placement, locals: &[LocalReplica]) {
        let in_state = |state| locals.iter().filter(move |local| local.state() == state);
        let damaged: Vec<String> = in_state(ReplicaState::Failed)
            .map(|local| format!("shard {}: {}", ShardId(local.shard), local.reason))
            .collect();
        metrics::CORRUPT_REPLICAS.handle().set(damaged.len() as f64);
        let lost = in_state(ReplicaState::Lost).count();
        metrics::LOST_REPLICAS.handle().set(lost as f64);
        let warning =
            (!damaged.is_empty()).then(|| format!("damaged replicas: {}", damaged.join("; ")));
        self.health.note("damage", warning);
        let progress = rebuild::progress(self.renewals.me, placement, locals);
        self.health.rebuilds(progress);
    }

    async fn delete_aside(&self) {
        if !rebuild::is_aside(&self.data_dir) {
            return;
        }
        let data_dir = self.data_dir.clone();
        let deleted = tokio::task::spawn_blocking(move || rebuild::delete_aside(&data_dir)).await;
        match deleted {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => {
                tracing::info!("the node is rebuilt; the store that was set aside is deleted")
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the store that was set aside cannot be deleted")
            }
            Err(error) => tracing::warn!(%error, "the deletion of the store set aside ended early"),
        }
    }

    /// Out of service before anything else: what it says from now on is worth nothing.
    async fn retire_damaged(&self, replica: &Replica, reason: String) -> anyhow::Result<()> {
        tracing::error!(shard = %replica.shard(), replica = %replica.id(), reason, "a replica is damaged; it stops");
        self.renewals.replicas.close(replica.shard()).await;
        let store = &*self.renewals.store;
        local::mark_failed(store, replica.shard(), replica.id(), reason)?;
        Ok(())
    }

    async fn restart(&self, replica: &Replica, reason: &str) -> anyhow::Result<()> {
        tracing::error!(shard = %replica.shard(), reason, "a replica's core died; it is started again");
        metrics::RESTARTS.handle().increment(1);
        self.renewals.replicas.close(replica.shard()).await;
        self.open(&local::active(replica.shard().0, replica.id().0))
            .await
    }

    async fn open(&self, row: &LocalReplica) -> anyhow::Result<()> {
        match self.renewals.replicas.open(row, None).await {
            Ok(_) => Ok(()),
            Err(error) => match error.damage() {
                Some(reason) => Ok(local::mark_failed(
                    &*self.renewals.store,
                    ShardId(row.shard),
                    ReplicaId(row.replica),
                    reason,
                )?),
                None => Err(error.into()),
            },
        }
    }
}

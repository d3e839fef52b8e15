//! The rows of this node's replicas: which are here, which failed, which were lost.

use roost_proto::storage::{LocalReplica, ReplicaState};

use crate::storage::keys::{self, Key};
use crate::storage::{self, Batch, Column, Store, value};
use crate::types::{ReplicaId, ShardId};

/// The replicas on this node's disk, whatever state they are in.
///
/// # Errors
/// What the store reports.
pub(crate) fn all(store: &dyn Store) -> Result<Vec<LocalReplica>, storage::Error> {
    let rows = store.scan(Column::Node, keys::replicas());
    rows.map(|row| {
        let (key, bytes) = row?;
        value::decode("a replica of this node", &key, bytes)
    })
    .collect()
}

/// A replica that serves, or will.
pub(crate) fn active(shard: u32, replica: u64) -> LocalReplica {
    in_state(shard, replica, ReplicaState::Active)
}

/// A replica that was in a store that is gone.
pub(crate) fn lost(shard: u32, replica: u64) -> LocalReplica {
    LocalReplica {
        reason: "lost with its store".to_owned(),
        ..in_state(shard, replica, ReplicaState::Lost)
    }
}

/// Whether it waits for its renewal.
pub(crate) fn is_out(local: &LocalReplica) -> bool {
    matches!(local.state(), ReplicaState::Failed | ReplicaState::Lost)
}

/// Writes rows durably.
///
/// # Errors
/// What the store reports.
pub(crate) fn write(store: &dyn Store, rows: &[LocalReplica]) -> Result<(), storage::Error> {
    let mut batch = Batch::default();
    for row in rows {
        batch.put_row(&Key::Replica(ReplicaId(row.replica)), row);
    }
    store.write(batch)?;
    store.sync()
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
    let failed = LocalReplica {
        reason,
        ..in_state(shard.0, id.0, ReplicaState::Failed)
    };
    write(store, &[failed])
}

/// Deletes what a replaced replica had; only that it was here is kept.
///
/// # Errors
/// What the store reports.
pub(crate) fn forget(store: &dyn Store, local: &LocalReplica) -> Result<(), storage::Error> {
    let id = ReplicaId(local.replica);
    let mut batch = Batch::default();
    batch.delete_range(Column::Log, keys::replica_log_range(id));
    batch.delete_range(Column::State, keys::replica_state_range(id));
    let mut row = local.clone();
    row.set_state(ReplicaState::Retired);
    batch.put_row(&Key::Replica(id), &row);
    store.write(batch)
}

fn in_state(shard: u32, replica: u64, state: ReplicaState) -> LocalReplica {
    LocalReplica {
        replica,
        shard,
        state: state.into(),
        ..LocalReplica::default()
    }
}

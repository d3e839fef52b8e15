//! The replicated state machine of a user shard: queues, devices, chains, receipts, outbox.
//!
//! Pure: the same log gives the same bytes on every replica. No clock, randomness, network or task lives here; the
//! proposer puts all of that into the command.
//!
//! `machine` only dispatches; one file per table does the work, each on a [`Txn`]. A command that is refused as a whole
//! has changed nothing. Every command does a bounded amount of work; what is left over is a row (`Trim`, a due
//! `Expiry`), answered with `more`, and done by the next command of the same kind.

mod delivered;
mod expiry;
mod machine;
mod outbox;
mod queue;
pub mod read;
mod receipts;
pub(crate) mod refusal;
mod senders;
mod step;
#[cfg(test)]
mod tests;
pub mod txn;
mod users;

pub use delivered::DELIVERED_AHEAD_MAX;
pub use expiry::{EXPIRE_STEP_ENTRIES_MAX, EXPIRY_POSTPONED_MS, EXPIRY_ROUNDING_MS};
pub use machine::UserShard;
pub use outbox::OUTBOX_TRIM_STEP_ROWS_MAX;
pub use queue::{ACK_STEP_ENTRIES_MAX, TRIM_STEP_ENTRIES_MAX, entry_bytes};
pub use receipts::{READ_MARKS_MAX, READS_AHEAD_MAX, RECEIPT_STEP_ROWS_MAX, receipt_bytes};
pub use senders::SWEEP_STEP_ROWS_MAX;
pub use txn::{KnownRows, Txn};

use roost_proto::storage::{ClusterState, Outcome};
use roost_proto::v1::Receipt;

use crate::types::{DeviceId, ShardId, UserId};

/// What applying one batch gave.
#[derive(Debug, Default)]
pub struct Applied {
    /// One a command, in order.
    pub outcomes: Vec<Outcome>,
    /// Hints for the leader.
    pub effects: Effects,
}

/// Hints that only the leader performs. What *must* happen is a row, and a new leader starts by scanning the rows.
#[derive(Debug, Default)]
pub struct Effects {
    /// Queues with new entries, or with entries gone that an attachment may be waiting at.
    pub woken: Vec<UserId>,
    /// Receipts as they were written, for watches.
    pub receipts: Vec<(UserId, Receipt)>,
    /// Destinations with new outbox rows.
    pub outbox: Vec<ShardId>,
    /// Devices that no longer exist; their attachments end.
    pub removed: Vec<(UserId, DeviceId)>,
    /// Receipts dropped at their bound, though a device may not have had them.
    pub forgotten_receipts: u64,
    /// What is remembered about the sender devices that sent something.
    pub senders: Vec<SenderFill>,
    /// How full what is bounded for each user is, where it may have grown.
    pub users: Vec<UserFill>,
    /// Users with entries left to delete.
    pub trims: Vec<UserId>,
    /// The cluster as it is now, if it changed; meta shard only.
    pub cluster: Option<ClusterState>,
}

/// How full what is remembered about one sender device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderFill {
    /// Ids, of all recipients in this shard.
    pub ids: u64,
    /// Chains with the recipient of this command.
    pub chains: usize,
}

/// How full something is that is bounded for each user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserFill {
    /// Conversations with a read mark, of [`READ_MARKS_MAX`].
    ReadMarks(u64),
    /// Read marks that wait for earlier entries, of [`READS_AHEAD_MAX`].
    ReadsAhead(usize),
    /// Ranges acknowledged ahead of the delivered mark, of [`DELIVERED_AHEAD_MAX`].
    DeliveredAhead(usize),
    /// Devices, of `devices_max`.
    Devices(usize),
}

/// A replicated state machine: a user shard's, or the meta shard's.
pub trait Machine: Send + Sync + 'static {
    /// Applies one batch. Reads and writes go through `txn` only, so that the caller can commit them together with
    /// the log position.
    ///
    /// # Errors
    /// Only what the store reports; a refusal is an outcome.
    fn apply(
        &self,
        txn: &mut Txn<'_>,
        batch: &roost_proto::storage::Batch,
    ) -> Result<Applied, crate::storage::Error>;
}

//! Every key layout, in one enum.
//!
//! Keys are big-endian, so byte order is number order. Text within a key ends with a NUL byte, which no identifier may
//! contain, so `a` sorts before `ab` and no key is a prefix of another of its kind. The first byte after the replica
//! (and generation) is the kind's ordinal: **frozen**, never reused. State is kept by replica id rather than by shard,
//! because a renewed replica lives beside the damaged one it replaces, and by generation, because a snapshot is
//! installed beside the state it replaces.

mod codec;
mod ranges;
#[cfg(test)]
mod tests;

use roost_proto::v1::Status;

pub use self::ranges::{
    deletions, entries_all, entries_of, entries_of_user, expiry_until, home_range, inbound_marks,
    log_entries, outbox_heads, outbox_index_of, outbox_of, queue_of, read_marks_of,
    receipt_index_of, receipts_of, replica_log_range, replica_state_range, replicas, sender_uses,
    senders, senders_of, sent_ids_before, sent_ids_of_day, sent_ids_of_pair, sent_ids_to, trims,
    users,
};
use super::Column;
use crate::types::{DeviceId, ReplicaId, ShardId};

/// Where a replica's applied state lives: the replica and its state generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Home {
    /// The replica.
    pub replica: ReplicaId,
    /// Rises by one with every installed snapshot.
    pub generation: u32,
}

/// Every key. The doc of each variant gives layout, value and lifetime; `R` is the replica id (8 bytes), `G` the
/// generation (4 bytes), `user` and other text end with NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// Node, `1`: `storage.NodeIdentity`. Written once with the store.
    Identity,
    /// Node, `2`: `storage.Plan`. Written once, when the cluster is created or joined.
    Plan,
    /// Node, `3 R`: `storage.LocalReplica`. For ever: an id that was once here is never taken for a new one.
    Replica(ReplicaId),
    /// Node, `4`: the newest `storage.ClusterState` heard of. Overwritten.
    ClusterCache,
    /// Node, `5`: `storage.Number`, how many syncs this store has begun. Overwritten by every sync; the store itself
    /// uses it to tell damage from a torn tail.
    SyncMark,
    /// Node, `6 column(1) length(2) start`: the end of a range in which rows with messages were deleted. Until they are in
    /// no file any more; the store itself keeps these.
    Deleted(Column, &'a [u8]),

    /// Log, `R 1`: the vote (raft codec). Overwritten; synced before it is answered.
    Vote(ReplicaId),
    /// Log, `R 2`: the last purged log id (raft codec). Overwritten.
    Purged(ReplicaId),
    /// Log, `R 3 index(8)`: a log entry (raft codec). Until purged or truncated.
    LogEntry(ReplicaId, u64),

    /// State, `R G 1`: `storage.Applied`. Overwritten by every batch.
    Applied(Home),
    /// State, `R G 2`: last applied log id and membership (raft codec). Overwritten by every batch.
    RaftState(Home),
    /// State, `R G 3 user`: `storage.User`. For ever; a removed account keeps its incarnation.
    User(Home, &'a str),
    /// State, `R G 4 user seq(8)`: `storage.Entry`. Until every device has acknowledged it or it expires.
    Entry(Home, &'a str, u64),
    /// State, `R G 5 due_ms(8) user`: empty. At most one a user (`User.expiry_due_ms`), none for an empty queue.
    Expiry(Home, u64, &'a str),
    /// State, `R G 6 day(4) recipient sender device(4) id`: `storage.SentId`. Until its day leaves the window.
    SentId(Home, SentId<'a>),
    /// State, `R G 7 recipient sender device(4)`: `storage.Sender`. Until its last day leaves the window.
    Sender(Home, &'a str, &'a str, DeviceId),
    /// State, `R G 8 sender device(4)`: `storage.SenderUse`. As Sender.
    SenderUse(Home, &'a str, DeviceId),
    /// State, `R G 9 reader sender`: `storage.ReadMarkRow`. While the reader's account exists.
    ReadMark(Home, &'a str, &'a str),
    /// State, `R G 10 user revision(8)`: `storage.ReceiptRow`. Until every device of the user has acknowledged it.
    Receipt(Home, &'a str, u64),
    /// State, `R G 11 user peer status(1)`: `storage.Number`, the revision of the one watermark row. With that row.
    ReceiptIndex(Home, &'a str, &'a str, Status),
    /// State, `R G 12 destination(4) number(8)`: `storage.OutboxRow`. Until the destination has committed it.
    Outbox(Home, ShardId, u64),
    /// State, `R G 13 destination(4) to peer status(1)`: `storage.Number`, the one watermark row. With that row.
    OutboxIndex(Home, ShardId, &'a str, &'a str, Status),
    /// State, `R G 14 destination(4)`: `storage.OutboxHead`. For ever.
    OutboxHead(Home, ShardId),
    /// State, `R G 15 source(4) incarnation(8)`: `storage.Number`, all rows up to it are applied. For ever.
    InboundMark(Home, ShardId, u64),
    /// State, `R G 16 user`: empty. While entries that nobody needs any more wait for their deletion.
    Trim(Home, &'a str),
    /// State, `R G 17`: `storage.ClusterState`; meta shard only. Overwritten.
    Cluster(Home),
}

/// The parts of a remembered id's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentId<'a> {
    /// Day of acceptance since the Unix epoch, in shard time.
    pub day: u32,
    /// Whose queue.
    pub recipient: &'a str,
    /// Who sent.
    pub sender: &'a str,
    /// From which device.
    pub device: DeviceId,
    /// The client's id.
    pub id: &'a str,
}

//! Half-open key ranges: what scans, deletions and reclaiming go over. All are of the state column, except
//! [`replicas`] and [`deletions`] (node column) and those whose name says log.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::codec::{Writer, ordinal};
use super::{Home, Key};
use crate::types::{DeviceId, ReplicaId, ShardId};

/// A replica and a generation, before the kind.
const HOME_BYTES: usize = size_of::<u64>() + size_of::<u32>();

/// Node column: every replica that lives, or lived, here.
#[must_use]
pub fn replicas() -> Range<Bytes> {
    prefix(Writer::node(ordinal::REPLICA))
}

/// Node column: what was deleted and may still be in files.
#[must_use]
pub fn deletions() -> Range<Bytes> {
    prefix(Writer::node(ordinal::DELETED))
}

/// Log column: vote, purge marker and log of a replica.
#[must_use]
pub fn replica_log_range(replica: ReplicaId) -> Range<Bytes> {
    prefix(Writer::replica(replica))
}

/// Log column: entries with these indexes.
#[must_use]
pub fn log_entries(replica: ReplicaId, indexes: Range<u64>) -> Range<Bytes> {
    Key::LogEntry(replica, indexes.start).encode()..Key::LogEntry(replica, indexes.end).encode()
}

/// All state of a replica, in all generations.
#[must_use]
pub fn replica_state_range(replica: ReplicaId) -> Range<Bytes> {
    prefix(Writer::replica(replica))
}

/// All state of a replica in one generation.
#[must_use]
pub fn home_range(home: Home) -> Range<Bytes> {
    prefix(Writer::home(home))
}

/// Users in order, from the start or behind one.
#[must_use]
pub fn users(home: Home, after: Option<&str>) -> Range<Bytes> {
    let all = prefix(Writer::state(home, ordinal::USER));
    match after {
        Some(user) => behind(Writer::state(home, ordinal::USER).text(user))..all.end,
        None => all,
    }
}

/// Entries of a user with these sequence numbers.
#[must_use]
pub fn entries_of(home: Home, user: &str, seqs: Range<u64>) -> Range<Bytes> {
    Key::Entry(home, user, seqs.start).encode()..Key::Entry(home, user, seqs.end).encode()
}

/// All entries of a user.
#[must_use]
pub fn entries_of_user(home: Home, user: &str) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::ENTRY).text(user))
}

/// The range of the queue that a key is an entry of, if it is an entry. Entries are written once: by contract of the
/// shard's machine no key of one is ever set while it is there.
#[must_use]
pub fn queue_of(key: &Bytes) -> Option<Range<Bytes>> {
    let is_entry = key.get(HOME_BYTES) == Some(&ordinal::ENTRY);
    let start = key.len().checked_sub(size_of::<u64>())?;
    is_entry.then(|| key.slice(..start)..after(&key[..start]))
}

/// All entries of all users.
#[must_use]
pub fn entries_all(home: Home) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::ENTRY))
}

/// Expiry rows due at this time or before.
#[must_use]
pub fn expiry_until(home: Home, due_ms: u64) -> Range<Bytes> {
    let all = prefix(Writer::state(home, ordinal::EXPIRY));
    match due_ms.checked_add(1) {
        Some(end) => all.start..Writer::state(home, ordinal::EXPIRY).u64(end).finish(),
        None => all,
    }
}

/// Remembered ids of one day.
#[must_use]
pub fn sent_ids_of_day(home: Home, day: u32) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::SENT_ID).u32(day))
}

/// Remembered ids of all days before this one.
#[must_use]
pub fn sent_ids_before(home: Home, day: u32) -> Range<Bytes> {
    let kind = || Writer::state(home, ordinal::SENT_ID);
    kind().finish()..kind().u32(day).finish()
}

/// Remembered ids of one day and recipient.
#[must_use]
pub fn sent_ids_to(home: Home, day: u32, recipient: &str) -> Range<Bytes> {
    prefix(
        Writer::state(home, ordinal::SENT_ID)
            .u32(day)
            .text(recipient),
    )
}

/// Remembered ids of one day from a sender's device to a recipient.
#[must_use]
pub fn sent_ids_of_pair(
    home: Home,
    day: u32,
    recipient: &str,
    sender: &str,
    device: DeviceId,
) -> Range<Bytes> {
    prefix(
        Writer::state(home, ordinal::SENT_ID)
            .u32(day)
            .text(recipient)
            .text(sender)
            .u32(device.0),
    )
}

/// All sender rows.
#[must_use]
pub fn senders(home: Home) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::SENDER))
}

/// Sender rows of one recipient.
#[must_use]
pub fn senders_of(home: Home, recipient: &str) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::SENDER).text(recipient))
}

/// What each sender device costs.
#[must_use]
pub fn sender_uses(home: Home) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::SENDER_USE))
}

/// Read marks of one reader.
#[must_use]
pub fn read_marks_of(home: Home, reader: &str) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::READ_MARK).text(reader))
}

/// Receipts of a user behind a revision.
#[must_use]
pub fn receipts_of(home: Home, user: &str, after_revision: u64) -> Range<Bytes> {
    let of_user = || Writer::state(home, ordinal::RECEIPT).text(user);
    behind(of_user().u64(after_revision))..prefix(of_user()).end
}

/// The watermark index of a user's receipts.
#[must_use]
pub fn receipt_index_of(home: Home, user: &str) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::RECEIPT_INDEX).text(user))
}

/// Outbox rows for a destination, from this number on.
#[must_use]
pub fn outbox_of(home: Home, destination: ShardId, from_number: u64) -> Range<Bytes> {
    let of_destination = prefix(Writer::state(home, ordinal::OUTBOX).u32(destination.0));
    Key::Outbox(home, destination, from_number).encode()..of_destination.end
}

/// The watermark index of the outbox rows for a destination.
#[must_use]
pub fn outbox_index_of(home: Home, destination: ShardId) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::OUTBOX_INDEX).u32(destination.0))
}

/// One head for each destination that ever had rows.
#[must_use]
pub fn outbox_heads(home: Home) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::OUTBOX_HEAD))
}

/// What was applied from each source.
#[must_use]
pub fn inbound_marks(home: Home) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::INBOUND_MARK))
}

/// Users with entries left to delete.
#[must_use]
pub fn trims(home: Home) -> Range<Bytes> {
    prefix(Writer::state(home, ordinal::TRIM))
}

/// Everything that starts with these bytes.
fn prefix(start: Writer) -> Range<Bytes> {
    let start = start.finish();
    let end = after(&start);
    start..end
}

/// Behind everything that starts with these bytes.
fn after(start: &[u8]) -> Bytes {
    match start.iter().rposition(|&byte| byte != u8::MAX) {
        Some(last) => {
            let mut end = BytesMut::from(&start[..=last]);
            end[last] += 1;
            end.freeze()
        }
        None => behind_all(),
    }
}

/// The first possible key behind this one.
fn behind(key: Writer) -> Bytes {
    key.u8(0).finish()
}

/// Behind every key: the kind's ordinal at the latest is no 0xff.
fn behind_all() -> Bytes {
    let mut end = BytesMut::new();
    end.put_bytes(u8::MAX, 16);
    end.freeze()
}

//! The queue of a user: entries, cursors, acks, deletion.
//!
//! Seqs are dense from 1 within an incarnation. An entry is *needed* until every device has acknowledged it:
//! `User.done_seq` moves at once, and what reads give moves with it; the rows behind it are deleted in bounded steps,
//! the first of them in the same command, the others by `Trim` (a row until all are gone).

use roost_proto::storage::{Ack, AckOutcome, Entry, Outcome, User, outcome};
use roost_proto::v1::{Code, Cursor, Envelope};

use super::refusal::refused;
use super::step::Step;
use super::{UserFill, delivered, expiry};
use crate::sabotage::{self, Break};
use crate::storage::keys::{self, Key};
use crate::storage::{Column, Error};

/// How far one ack moves a cursor.
pub const ACK_STEP_ENTRIES_MAX: u64 = 4096;

/// How many entries one command deletes from behind `done_seq`.
pub const TRIM_STEP_ENTRIES_MAX: usize = 4096;

/// What the tables need to know of an entry; the body stays where it is.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) seq: u64,
    pub(super) from: String,
    pub(super) device: u32,
    pub(super) id: String,
    pub(super) bytes: u64,
    pub(super) accepted_ms: u64,
    pub(super) expires_ms: u64,
}

/// The bytes that an entry counts for in its queue. From fields that no version will change, so that what was added
/// is what is taken away.
#[must_use]
pub fn entry_bytes(envelope: &Envelope) -> u64 {
    (envelope.body.len() + envelope.id.len() + envelope.from.len()) as u64
}

/// Whether a queue has room for one more entry.
pub(super) fn has_room(step: &Step<'_, '_>, user: &User, bytes: u64) -> bool {
    user.entries < step.limits.queue_entries_max
        && user.bytes.saturating_add(bytes) <= step.limits.queue_bytes_max
}

/// Adds an entry and gives its seq. The caller stores `user`.
pub(super) fn append(
    step: &mut Step<'_, '_>,
    name: &str,
    user: &mut User,
    envelope: Envelope,
    ttl_ms: u64,
) -> u64 {
    let seq = user.next_seq;
    let bytes = entry_bytes(&envelope);
    let accepted_ms = step.now();
    let expires_ms = accepted_ms.saturating_add(ttl_ms);
    user.next_seq += 1;
    user.entries += 1;
    user.bytes += bytes;
    step.sums.queued_entries += 1;
    step.sums.queued_bytes += bytes;
    expiry::note(step, name, user, expires_ms);
    let entry = Entry {
        envelope: Some(envelope),
        accepted_ms,
        expires_ms,
    };
    let home = step.home();
    step.txn.put_row(&Key::Entry(home, name, seq), &entry);
    step.wake(name);
    seq
}

/// Moves a device's cursor, tells the senders of what has been delivered by it, deletes what nobody needs any more.
pub(super) fn ack(step: &mut Step<'_, '_>, ack: &Ack) -> Result<Outcome, Error> {
    let Some((mut user, at)) = device(step, &ack.user, ack.device)? else {
        return Ok(refused(Code::Unauthenticated, "no such device"));
    };
    let wanted = ack.cursor.unwrap_or_default();
    let beyond = wanted.seq >= user.next_seq && !sabotage::on(Break::CursorUnchecked);
    if wanted.incarnation != user.incarnation || beyond {
        return Ok(refused(
            Code::BadCursor,
            "the cursor is not one of this queue",
        ));
    }
    // What has expired at the head of the queue is behind every cursor.
    let start = user.devices[at].cursor_seq.max(user.done_seq);
    let seq = wanted.seq.min(start.saturating_add(ACK_STEP_ENTRIES_MAX));
    if seq > user.devices[at].cursor_seq {
        user.devices[at].cursor_seq = seq;
        delivered::add(&mut user, start + 1, seq);
        if !begin_settling(step, &ack.user, &mut user)? {
            return Ok(refused(
                Code::Overloaded,
                "too many receipts wait for another shard",
            ));
        }
        leave_rest(step, &ack.user, &mut user);
        if !user.delivered_ahead.is_empty() {
            step.note_user(UserFill::DeliveredAhead(user.delivered_ahead.len()));
        }
    }
    let cursor = Cursor {
        incarnation: user.incarnation,
        seq: user.devices[at].cursor_seq.max(user.done_seq),
    };
    let more = cursor.seq < wanted.seq;
    step.txn.put_user(&ack.user, user);
    Ok(Outcome {
        outcome: Some(outcome::Outcome::Ack(AckOutcome {
            cursor: Some(cursor),
            more,
        })),
    })
}

/// A user that exists, and the place of one of its devices.
pub(super) fn device(
    step: &mut Step<'_, '_>,
    name: &str,
    device: u32,
) -> Result<Option<(User, usize)>, Error> {
    let user = step.txn.user(name)?.filter(|user| !user.removed);
    Ok(user.and_then(|user| {
        let at = user.devices.iter().position(|d| d.device == device)?;
        Some((user, at))
    }))
}

/// Moves `done_seq` to the slowest device's cursor, deletes a first step, tells the senders. The caller stores `user`.
pub(super) fn settle(step: &mut Step<'_, '_>, name: &str, user: &mut User) -> Result<(), Error> {
    begin_settling(step, name, user)?;
    leave_rest(step, name, user);
    Ok(())
}

/// As [`settle`]; false, with nothing written, if the outbox has no room for what senders must be told. Deletes before it
/// tells: what goes is read once for both.
fn begin_settling(step: &mut Step<'_, '_>, name: &str, user: &mut User) -> Result<bool, Error> {
    // Without devices nothing moves: entries wait for one to be added, or expire.
    let cursors = user.devices.iter().map(|device| device.cursor_seq);
    let needed_by = match sabotage::on(Break::DeletedEarly) {
        true => cursors.max(),
        false => cursors.min(),
    };
    if let Some(slowest) = needed_by {
        user.done_seq = user.done_seq.max(slowest);
    }
    let before = user.trimmed_seq;
    if !trim_entries(step, name, user)? {
        return Ok(false);
    }
    delivered::advance(step, name, user)?;
    Ok(delivered::tell(step, name, user)? || user.trimmed_seq > before)
}

/// The caller stores `user`.
fn leave_rest(step: &mut Step<'_, '_>, name: &str, user: &mut User) {
    if !is_settled(user) {
        leave_trim(step, name, user);
    }
}

/// Whether all entries that nobody needs are deleted, and all senders told.
pub(super) fn is_settled(user: &User) -> bool {
    let mut reads = user.reads_ahead.iter();
    user.trimmed_seq == user.done_seq
        && user.told_seq == user.delivered_seq
        && reads.all(|ahead| ahead.up_to_seq > user.delivered_seq)
}

/// Deletes a bounded number of entries from behind `done_seq`. What no device has acknowledged (its last one was
/// removed) is reported to its senders as expired; false if the outbox has no room for that. The caller stores `user`.
pub(super) fn trim_entries(
    step: &mut Step<'_, '_>,
    name: &str,
    user: &mut User,
) -> Result<bool, Error> {
    if user.trimmed_seq == user.done_seq {
        return Ok(true);
    }
    let (first, last) = (user.trimmed_seq + 1, user.done_seq);
    let gone = known(step, name, first, last, TRIM_STEP_ENTRIES_MAX)?;
    if !delivered::report(step, name, user, &gone)? {
        return Ok(false);
    }
    for entry in &gone {
        remove(step, name, user, entry);
    }
    user.trimmed_seq = match gone.last() {
        Some(entry) if gone.len() == TRIM_STEP_ENTRIES_MAX => entry.seq,
        _ => user.done_seq,
    };
    Ok(true)
}

/// Remembers that a user has rows left to delete. The caller stores `user`.
pub(super) fn leave_trim(step: &mut Step<'_, '_>, name: &str, user: &mut User) {
    let home = step.home();
    if !user.trimming {
        user.trimming = true;
        step.txn.put_empty(&Key::Trim(home, name));
    }
    step.will_trim(name);
}

/// Deletes one entry. The caller stores `user`.
pub(super) fn remove(step: &mut Step<'_, '_>, name: &str, user: &mut User, entry: &Known) {
    let home = step.home();
    step.txn.delete_row(&Key::Entry(home, name, entry.seq));
    // Crash rather than diverge: a count that does not fit is a bug in this module.
    let less = |sum: u64, by: u64| sum.checked_sub(by).expect("what is removed was counted");
    user.entries = less(user.entries, 1);
    user.bytes = less(user.bytes, entry.bytes);
    step.sums.queued_entries = less(step.sums.queued_entries, 1);
    step.sums.queued_bytes = less(step.sums.queued_bytes, entry.bytes);
    if user.entries == 0 {
        expiry::clear(step, name, user);
    }
}

/// The entries there are among these seqs, at most `max`.
pub(super) fn known(
    step: &Step<'_, '_>,
    name: &str,
    first: u64,
    last: u64,
    max: usize,
) -> Result<Vec<Known>, Error> {
    let range = keys::entries_of(step.home(), name, first..last.saturating_add(1));
    let rows = step.txn.scan(range).take(max);
    rows.map(|row| row.and_then(|(key, value)| read(&key, value)))
        .collect()
}

fn read(key: &[u8], value: bytes::Bytes) -> Result<Known, Error> {
    let parsed = Key::decode(Column::State, key)?;
    let entry: Entry = crate::storage::value::decode(parsed.what(), key, value)?;
    let seq = match parsed {
        Key::Entry(_, _, seq) => seq,
        _ => 0,
    };
    let envelope = entry.envelope.unwrap_or_default();
    Ok(Known {
        seq,
        bytes: entry_bytes(&envelope),
        from: envelope.from,
        device: envelope.device,
        id: envelope.id,
        accepted_ms: entry.accepted_ms,
        expires_ms: entry.expires_ms,
    })
}

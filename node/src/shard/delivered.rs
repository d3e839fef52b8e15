//! What has been delivered, and the word that senders get: *delivered* when the first device has acknowledged an entry,
//! *expired* when it goes without that.
//!
//! Watermarks say "everything up to here", and a device that was added later acknowledges entries behind others that
//! nobody has had yet. So what is delivered is a mark (`User.delivered_seq`) and, beyond it, a few ranges: the mark
//! moves only over what is acknowledged or gone, and a sender is told *delivered* only up to the mark. What is gone
//! unacknowledged has been reported as expired before the mark passes it, so that a watermark never speaks of it.

use std::collections::BTreeMap;

use roost_proto::storage::{SentId as SentIdRow, User};
use roost_proto::v1::{Range, Receipt, Status};

use super::queue::{self, ACK_STEP_ENTRIES_MAX, Known};
use super::step::{Step, day};
use super::{outbox, receipts};
use crate::storage::Error;
use crate::storage::keys::{Key, SentId};
use crate::types::DeviceId;

/// How many ranges beyond the mark a user can have: as many devices, present and past, added while entries waited.
pub const DELIVERED_AHEAD_MAX: usize = 64;

/// Whether some device has acknowledged an entry that is still there.
pub(super) fn covers(user: &User, seq: u64) -> bool {
    let ahead = || user.delivered_ahead.iter();
    seq <= user.delivered_seq || ahead().any(|range| (range.first..=range.last).contains(&seq))
}

/// Whether one more device may be added: each may add a range.
pub(super) fn has_room(user: &User) -> bool {
    user.delivered_ahead.len() + user.devices.len() < DELIVERED_AHEAD_MAX
}

/// Notes what a device has acknowledged. The mark moves by [`advance`].
pub(super) fn add(user: &mut User, first: u64, last: u64) {
    if first > last {
        return;
    }
    let mut joined = Range { first, last };
    user.delivered_ahead.retain(|range| {
        let apart = range.last + 1 < joined.first || joined.last + 1 < range.first;
        if !apart {
            joined.first = joined.first.min(range.first);
            joined.last = joined.last.max(range.last);
        }
        apart
    });
    let at = user
        .delivered_ahead
        .partition_point(|range| range.last < joined.first);
    user.delivered_ahead.insert(at, joined);
}

/// Moves the mark over what is acknowledged or gone. The caller stores `user`.
pub(super) fn advance(step: &Step<'_, '_>, name: &str, user: &mut User) -> Result<(), Error> {
    user.delivered_seq = user.delivered_seq.max(user.trimmed_seq);
    user.told_seq = user.told_seq.max(user.trimmed_seq);
    while let Some(&Range { first, last }) = user.delivered_ahead.first() {
        let between = user.delivered_seq + 1..first;
        if !between.is_empty() && !queue::known(step, name, between.start, first - 1, 1)?.is_empty()
        {
            break;
        }
        user.delivered_seq = user.delivered_seq.max(last);
        user.delivered_ahead.remove(0);
    }
    Ok(())
}

/// Tells the senders up to the mark, a bounded step, and what they were read of it. False, with nothing written, if the outbox has no room. The caller
/// stores `user`.
pub(super) fn tell(step: &mut Step<'_, '_>, name: &str, user: &mut User) -> Result<bool, Error> {
    let reads = receipts::due_reads(step, name, user)?;
    if user.told_seq == user.delivered_seq && reads.is_empty() {
        return Ok(true);
    }
    let max = ACK_STEP_ENTRIES_MAX as usize;
    let entries = queue::known(step, name, user.told_seq + 1, user.delivered_seq, max)?;
    let told_seq = match entries.last() {
        Some(entry) if entries.len() == max => entry.seq,
        _ => user.delivered_seq,
    };
    let reads_up_to: Vec<_> = reads
        .iter()
        .map(|(from, receipt)| (from.clone(), receipt.up_to_seq))
        .collect();
    let mut receipts = marks(name, user, entries.iter());
    receipts.extend(reads);
    if !outbox::owe(step, receipts)? {
        return Ok(false);
    }
    user.told_seq = told_seq;
    receipts::reads_told(step, name, user, reads_up_to.into_iter());
    Ok(true)
}

/// Tells the senders of entries that are about to go, ascending: *expired* for what no device has acknowledged, with
/// its ids marked so, and *delivered* where that was not told yet. False, with nothing written, if the outbox has no
/// room.
pub(super) fn report(
    step: &mut Step<'_, '_>,
    name: &str,
    user: &User,
    gone: &[Known],
) -> Result<bool, Error> {
    let lost = || gone.iter().filter(|entry| !covers(user, entry.seq));
    let untold = gone
        .iter()
        .filter(|e| e.seq > user.told_seq && covers(user, e.seq));
    // The word that something has expired comes before a watermark that covers it.
    let mut receipts = expiries(name, user, lost());
    receipts.extend(marks(name, user, untold));
    if !outbox::owe(step, receipts)? {
        return Ok(false);
    }
    for entry in lost() {
        mark_id(step, name, entry)?;
    }
    Ok(true)
}

/// A watermark for each sender, at its last entry.
fn marks<'k>(
    name: &str,
    user: &User,
    entries: impl Iterator<Item = &'k Known>,
) -> Vec<(String, Receipt)> {
    let last: BTreeMap<&str, u64> = entries.map(|e| (e.from.as_str(), e.seq)).collect();
    let receipts = last.into_iter().map(|(sender, up_to_seq)| {
        let receipt = Receipt {
            peer: name.to_owned(),
            status: Status::Delivered.into(),
            incarnation: user.incarnation,
            up_to_seq,
            ..Receipt::default()
        };
        (sender.to_owned(), receipt)
    });
    receipts.collect()
}

/// For each sender the ranges of its entries.
fn expiries<'k>(
    name: &str,
    user: &User,
    entries: impl Iterator<Item = &'k Known>,
) -> Vec<(String, Receipt)> {
    let mut ranges: BTreeMap<&str, Vec<Range>> = BTreeMap::new();
    for entry in entries {
        extend(ranges.entry(&entry.from).or_default(), entry.seq);
    }
    let receipts = ranges.into_iter().map(|(sender, expired)| {
        let receipt = Receipt {
            peer: name.to_owned(),
            status: Status::Expired.into(),
            incarnation: user.incarnation,
            expired,
            ..Receipt::default()
        };
        (sender.to_owned(), receipt)
    });
    receipts.collect()
}

/// Adds a seq behind all others.
fn extend(ranges: &mut Vec<Range>, seq: u64) {
    match ranges.last_mut() {
        Some(range) if range.last + 1 == seq => range.last = seq,
        _ => ranges.push(Range {
            first: seq,
            last: seq,
        }),
    }
}

/// From now on the id's stored answer is that its message has expired. No row comes back by this: an id that is
/// forgotten stays so.
fn mark_id(step: &mut Step<'_, '_>, recipient: &str, entry: &Known) -> Result<(), Error> {
    let id = SentId {
        day: day(entry.accepted_ms),
        recipient,
        sender: &entry.from,
        device: DeviceId(entry.device),
        id: &entry.id,
    };
    let key = Key::SentId(step.home(), id);
    if let Some(row) = step.txn.row::<SentIdRow>(&key)? {
        let expired = true;
        step.txn.put_row(&key, &SentIdRow { expired, ..row });
    }
    Ok(())
}

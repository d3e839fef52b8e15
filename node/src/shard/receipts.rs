//! What a user is told of its own messages, and the marks by which it tells others.
//!
//! A user's receipts have their own space and never meet a full queue: one row per (peer, status) for watermarks, at a
//! revision that rises with every move. *Expired* rows are added, not merged. Rows go when every device has
//! acknowledged their revision. At the bound, and when they are older than any message lives, the oldest rows go for a
//! device that never acknowledges them: it is told that it has missed everything up to `User.forgotten_revision`, and
//! asks by the ids of what it has open. So nothing goes in silence, and nothing grows without end.
//!
//! A *read* mark is a row of the reader, and a watermark for the sender. One beyond `User.delivered_seq` is kept, and
//! told as that moves.

use bytes::Bytes;
use roost_proto::storage::{
    Number, OutboxItem, Outcome, Read, ReadAhead, ReadMarkRow, ReceiptAck, ReceiptRow, User,
};
use roost_proto::v1::{Code, Receipt, Status};

use super::UserFill;
use super::outbox::{self, is_watermark};
use super::queue;
use super::refusal::{done, refused};
use super::step::Step;
use crate::storage::keys::{self, Key};
use crate::storage::{Column, Error, value};
use crate::types::UserId;

/// How many receipt rows, or read marks, one command deletes.
pub const RECEIPT_STEP_ROWS_MAX: usize = 1024;

/// How many rows are read at a time to make room for a new receipt.
const ROOM_STEP_ROWS: usize = 32;

/// How many rows make room for one new receipt, at most. Enough for the largest: an *expired* one of as many ranges as
/// one step of expiry looks at entries.
const ROOM_ROWS_MAX: usize = 4096;

/// In how many conversations a user can have a read mark that waits for earlier entries to be delivered.
pub const READS_AHEAD_MAX: usize = 64;

/// In how many conversations a user can have a read mark.
pub const READ_MARKS_MAX: u64 = 100_000;

/// Marks a conversation read up to a place that this device has acknowledged.
pub(super) fn read(step: &mut Step<'_, '_>, read: &Read) -> Result<Outcome, Error> {
    let Some((mut user, at)) = queue::device(step, &read.user, read.device)? else {
        return Ok(refused(Code::Unauthenticated, "no such device"));
    };
    if UserId::parse(&read.from).is_err() {
        return Ok(refused(Code::Invalid, "no valid user"));
    }
    let up_to = read.up_to.unwrap_or_default();
    if up_to.incarnation != user.incarnation {
        return Ok(refused(
            Code::BadCursor,
            "the cursor is not one of this queue",
        ));
    }
    if up_to.seq > user.devices[at].cursor_seq {
        return Ok(refused(
            Code::NotDelivered,
            "only what was delivered can be read",
        ));
    }
    let key = Key::ReadMark(step.home(), &read.user, &read.from);
    let mark: Option<ReadMarkRow> = step.txn.row(&key)?;
    // A new device may be ahead of what earlier ones still wait for; *read* says more than *delivered*, so it waits, too.
    let told_seq = up_to.seq.min(user.delivered_seq);
    let before_seq = mark.map_or(0, |mark| mark.up_to_seq);
    let waits = up_to.seq > user.delivered_seq && waiting(&user, &read.from) < up_to.seq;
    if told_seq <= before_seq && !waits {
        return Ok(done(false));
    }
    if mark.is_none() && user.read_marks >= READ_MARKS_MAX {
        return Ok(refused(Code::QueueFull, "too many read marks"));
    }
    if waits && !wait(&mut user, &read.from, up_to.seq) {
        return Ok(refused(
            Code::Overloaded,
            "too many read marks wait for earlier entries to be delivered",
        ));
    }
    let receipts = match told_seq > before_seq {
        true => vec![(read.from.clone(), read_receipt(&read.user, &user, told_seq))],
        false => Vec::new(),
    };
    if !outbox::owe(step, receipts)? {
        return Ok(refused(
            Code::Overloaded,
            "too many receipts wait for another shard",
        ));
    }
    let up_to_seq = told_seq.max(before_seq);
    step.txn.put_row(&key, &ReadMarkRow { up_to_seq });
    if mark.is_none() {
        user.read_marks += 1;
        step.note_user(UserFill::ReadMarks(user.read_marks));
    }
    if waits {
        step.note_user(UserFill::ReadsAhead(user.reads_ahead.len()));
    }
    step.txn.put_user(&read.user, user);
    Ok(done(false))
}

/// The read marks that waited and that the delivered mark lets go further, with their receipts.
pub(super) fn due_reads(
    step: &Step<'_, '_>,
    name: &str,
    user: &User,
) -> Result<Vec<(String, Receipt)>, Error> {
    let mut due = Vec::new();
    for ahead in &user.reads_ahead {
        let up_to_seq = ahead.up_to_seq.min(user.delivered_seq);
        let mark = Key::ReadMark(step.home(), name, &ahead.from);
        let mark: Option<ReadMarkRow> = step.txn.row(&mark)?;
        if up_to_seq > mark.map_or(0, |mark| mark.up_to_seq) {
            due.push((ahead.from.clone(), read_receipt(name, user, up_to_seq)));
        }
    }
    Ok(due)
}

/// Notes that these have been told. The caller stores `user`.
pub(super) fn reads_told(
    step: &mut Step<'_, '_>,
    name: &str,
    user: &mut User,
    told: impl Iterator<Item = (String, u64)>,
) {
    for (from, up_to_seq) in told {
        let key = Key::ReadMark(step.home(), name, &from);
        step.txn.put_row(&key, &ReadMarkRow { up_to_seq });
    }
    let delivered_seq = user.delivered_seq;
    user.reads_ahead
        .retain(|ahead| ahead.up_to_seq > delivered_seq);
}

/// Moves a device's receipt revision, and deletes what every device has.
pub(super) fn ack(step: &mut Step<'_, '_>, ack: &ReceiptAck) -> Result<Outcome, Error> {
    let Some((mut user, at)) = queue::device(step, &ack.user, ack.device)? else {
        return Ok(refused(Code::Unauthenticated, "no such device"));
    };
    if ack.revision >= user.next_revision {
        return Ok(refused(Code::BadCursor, "no such revision"));
    }
    if ack.revision <= user.devices[at].receipt_revision {
        return Ok(done(false));
    }
    let trimmed = match user.trimming {
        // Something of what all devices had before may be left.
        true => 0,
        false => had_by_all(&user).unwrap_or_default(),
    };
    user.devices[at].receipt_revision = ack.revision;
    if !trim_from(step, &ack.user, &mut user, trimmed)? {
        queue::leave_trim(step, &ack.user, &mut user);
    }
    step.txn.put_user(&ack.user, user);
    Ok(done(false))
}

/// Starts deleting the rows that every device has acknowledged. The caller stores `user`.
pub(super) fn settle(step: &mut Step<'_, '_>, name: &str, user: &mut User) -> Result<(), Error> {
    if !trim(step, name, user)? {
        queue::leave_trim(step, name, user);
    }
    Ok(())
}

/// Deletes a bounded number of rows that nobody needs any more: those that every device has, or all of a removed
/// account. True if that was the rest.
pub(super) fn trim(step: &mut Step<'_, '_>, name: &str, user: &mut User) -> Result<bool, Error> {
    trim_from(step, name, user, 0)
}

/// As [`trim`], where nothing up to a revision is left: to look there anew would meet all that was ever deleted.
fn trim_from(
    step: &mut Step<'_, '_>,
    name: &str,
    user: &mut User,
    trimmed: u64,
) -> Result<bool, Error> {
    let up_to = match had_by_all(user) {
        Some(revision) => revision,
        None if user.removed => user.next_revision,
        None => return Ok(true),
    };
    let home = step.home();
    let start = keys::receipts_of(home, name, trimmed).start;
    let end = keys::receipts_of(home, name, up_to).start;
    let rows = rows(step, start..end, RECEIPT_STEP_ROWS_MAX)?;
    let ended = rows.len() < RECEIPT_STEP_ROWS_MAX;
    for (key, row) in rows {
        forget(step, name, user, key, &row.receipt.unwrap_or_default())?;
    }
    Ok(ended)
}

/// The revision up to which every device has the receipts; nothing without devices.
fn had_by_all(user: &User) -> Option<u64> {
    let devices = user.devices.iter();
    devices.map(|device| device.receipt_revision).min()
}

/// Deletes a bounded number of the read marks of a removed account. True if that was the rest.
pub(super) fn trim_marks(step: &mut Step<'_, '_>, name: &str) -> Result<bool, Error> {
    let range = keys::read_marks_of(step.home(), name);
    let rows = step.txn.scan(range).take(RECEIPT_STEP_ROWS_MAX);
    let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
    let ended = rows.len() < RECEIPT_STEP_ROWS_MAX;
    for (key, _) in rows {
        step.txn.delete(key);
    }
    Ok(ended)
}

/// Gives a user a receipt that another shard, or this one, owed it. False if the user does not exist.
pub(super) fn merge(step: &mut Step<'_, '_>, item: &OutboxItem) -> Result<bool, Error> {
    if !step.owns(&item.to) {
        return Ok(false);
    }
    let Some(mut user) = step.txn.user(&item.to)?.filter(|user| !user.removed) else {
        return Ok(false);
    };
    let Some(receipt) = item.receipt.clone() else {
        return Ok(false);
    };
    if UserId::parse(&receipt.peer).is_err() {
        return Ok(false);
    }
    let home = step.home();
    let revision = user.next_revision;
    if is_watermark(receipt.status()) {
        let index = Key::ReceiptIndex(home, &item.to, &receipt.peer, receipt.status());
        if let Some(Number { number }) = step.txn.row(&index)? {
            let key = Key::Receipt(home, &item.to, number);
            let old: ReceiptRow = step.txn.row(&key)?.unwrap_or_default();
            let old = old.receipt.unwrap_or_default();
            if (receipt.incarnation, receipt.up_to_seq) <= (old.incarnation, old.up_to_seq) {
                return Ok(true);
            }
            // An earlier incarnation's speaks of other messages: it stays until it is acknowledged.
            if receipt.incarnation == old.incarnation {
                step.txn.delete_row(&key);
                count_out(step, &mut user, &old);
            }
        }
        step.txn.put_row(&index, &Number { number: revision });
    }
    make_room(step, &item.to, &mut user, receipt_bytes(&receipt))?;
    let receipt = Receipt {
        revision,
        ..receipt
    };
    let row = ReceiptRow {
        receipt: Some(receipt.clone()),
        written_ms: step.now(),
    };
    count_in(step, &mut user, &receipt);
    step.txn
        .put_row(&Key::Receipt(home, &item.to, revision), &row);
    user.next_revision += 1;
    step.txn.put_user(&item.to, user);
    step.show_receipt(&item.to, receipt);
    Ok(true)
}

/// What a receipt counts for. From fields that no version will change, so that what was added is what is taken away.
#[must_use]
pub fn receipt_bytes(receipt: &Receipt) -> u64 {
    /// Of a row's key and of what every receipt has.
    const EACH: usize = 64;
    /// Two seqs.
    const RANGE: usize = 16;
    (EACH + receipt.peer.len() + RANGE * receipt.expired.len()) as u64
}

/// Drops the oldest rows until there is room for one more, and of those that are older than any message a bounded
/// number. The caller stores `user`.
fn make_room(
    step: &mut Step<'_, '_>,
    name: &str,
    user: &mut User,
    bytes: u64,
) -> Result<(), Error> {
    let oldest_ms = step.now().saturating_sub(step.limits.receipt_age_max_ms);
    let max = step.limits.receipt_bytes_max;
    let full = |user: &User| user.receipt_bytes.saturating_add(bytes) > max;
    let old = (1..oldest_ms).contains(&user.receipts_since_ms);
    if !full(user) && !old {
        return Ok(());
    }
    for _ in 0..ROOM_ROWS_MAX / ROOM_STEP_ROWS {
        let range = keys::receipts_of(step.home(), name, user.forgotten_revision);
        let rows = rows(step, range, ROOM_STEP_ROWS)?;
        let last = rows.len() < ROOM_STEP_ROWS;
        for (key, row) in rows {
            user.receipts_since_ms = row.written_ms;
            if !full(user) && row.written_ms >= oldest_ms {
                return Ok(());
            }
            let receipt = row.receipt.unwrap_or_default();
            user.forgotten_revision = receipt.revision;
            forget(step, name, user, key, &receipt)?;
            step.forgotten_receipts += 1;
        }
        if last {
            break;
        }
    }
    Ok(())
}

fn rows(
    step: &Step<'_, '_>,
    range: std::ops::Range<Bytes>,
    max: usize,
) -> Result<Vec<(Bytes, ReceiptRow)>, Error> {
    let rows = step.txn.scan(range).take(max);
    rows.map(|row| {
        let (key, value) = row?;
        let what = Key::decode(Column::State, &key)?.what();
        let row = value::decode(what, &key, value)?;
        Ok((key, row))
    })
    .collect()
}

fn count_in(step: &mut Step<'_, '_>, user: &mut User, receipt: &Receipt) {
    let bytes = receipt_bytes(receipt);
    user.receipt_bytes += bytes;
    step.sums.receipt_bytes += bytes;
    if user.receipts_since_ms == 0 {
        user.receipts_since_ms = step.now();
    }
}

fn count_out(step: &mut Step<'_, '_>, user: &mut User, receipt: &Receipt) {
    // Crash rather than diverge: a count that does not fit is a bug in this module.
    let less = |sum: u64| {
        sum.checked_sub(receipt_bytes(receipt))
            .expect("what is removed was counted")
    };
    user.receipt_bytes = less(user.receipt_bytes);
    step.sums.receipt_bytes = less(step.sums.receipt_bytes);
    if user.receipt_bytes == 0 {
        user.receipts_since_ms = 0;
    }
}

/// How far a conversation was read beyond the delivered mark.
fn waiting(user: &User, from: &str) -> u64 {
    let waiting = user.reads_ahead.iter().find(|ahead| ahead.from == from);
    waiting.map_or(0, |ahead| ahead.up_to_seq)
}

/// False if too many wait already.
fn wait(user: &mut User, from: &str, up_to_seq: u64) -> bool {
    if let Some(ahead) = user.reads_ahead.iter_mut().find(|ahead| ahead.from == from) {
        ahead.up_to_seq = up_to_seq;
        return true;
    }
    let room = user.reads_ahead.len() < READS_AHEAD_MAX;
    if room {
        let from = from.to_owned();
        user.reads_ahead.push(ReadAhead { from, up_to_seq });
    }
    room
}

fn read_receipt(reader: &str, user: &User, up_to_seq: u64) -> Receipt {
    Receipt {
        peer: reader.to_owned(),
        status: Status::Read.into(),
        incarnation: user.incarnation,
        up_to_seq,
        ..Receipt::default()
    }
}

/// Deletes a row, and its index row if that still points here. The caller stores `user`.
fn forget(
    step: &mut Step<'_, '_>,
    name: &str,
    user: &mut User,
    key: Bytes,
    receipt: &Receipt,
) -> Result<(), Error> {
    step.txn.delete(key);
    count_out(step, user, receipt);
    if !is_watermark(receipt.status()) {
        return Ok(());
    }
    let index = Key::ReceiptIndex(step.home(), name, &receipt.peer, receipt.status());
    let standing: Option<Number> = step.txn.row(&index)?;
    if standing.is_some_and(|row| row.number == receipt.revision) {
        step.txn.delete_row(&index);
    }
    Ok(())
}

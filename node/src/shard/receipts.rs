//! What a user is told of its own messages, and the marks by which it tells others.
//!
//! A user's receipts have their own space and never meet a full queue: one row per (peer, status) for watermarks, at a
//! revision that rises with every move. *Expired* rows are added, not merged. Rows go when every device has
//! acknowledged their revision. A *read* mark is a row of the reader, and a watermark for the sender.

use roost_proto::storage::{
    Number, OutboxItem, Outcome, Read, ReadMarkRow, ReceiptAck, ReceiptRow, User,
};
use roost_proto::v1::{Code, Receipt, Status};

use super::outbox::{self, is_watermark};
use super::queue;
use super::refusal::{done, refused};
use super::step::Step;
use crate::storage::keys::{self, Key};
use crate::storage::{Column, Error, value};
use crate::types::UserId;

/// How many receipt rows, or read marks, one command deletes.
pub const RECEIPT_STEP_ROWS_MAX: usize = 1024;

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
    // A new device may be ahead of what earlier ones still wait for; *read* says more than *delivered*, so it waits, too.
    let up_to_seq = up_to.seq.min(user.delivered_seq);
    let key = Key::ReadMark(step.home(), &read.user, &read.from);
    let mark: Option<ReadMarkRow> = step.txn.row(&key)?;
    if up_to_seq <= mark.map_or(0, |mark| mark.up_to_seq) {
        return Ok(done(false));
    }
    if mark.is_none() && user.read_marks >= READ_MARKS_MAX {
        return Ok(refused(Code::QueueFull, "too many read marks"));
    }
    let receipt = Receipt {
        peer: read.user.clone(),
        status: Status::Read.into(),
        incarnation: user.incarnation,
        up_to_seq,
        ..Receipt::default()
    };
    if !outbox::owe(step, vec![(read.from.clone(), receipt)])? {
        return Ok(refused(
            Code::Overloaded,
            "too many receipts wait for another shard",
        ));
    }
    step.txn.put_row(&key, &ReadMarkRow { up_to_seq });
    if mark.is_none() {
        user.read_marks += 1;
        step.txn.put_user(&read.user, user);
    }
    Ok(done(false))
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
    user.devices[at].receipt_revision = ack.revision;
    settle(step, &ack.user, &mut user)?;
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
pub(super) fn trim(step: &mut Step<'_, '_>, name: &str, user: &User) -> Result<bool, Error> {
    let needed_by = user.devices.iter().map(|device| device.receipt_revision);
    let up_to = match needed_by.min() {
        Some(revision) => revision,
        None if user.removed => user.next_revision,
        None => return Ok(true),
    };
    let home = step.home();
    let start = keys::receipts_of(home, name, 0).start;
    let end = keys::receipts_of(home, name, up_to).start;
    let rows: Vec<_> = step
        .txn
        .scan(start..end)
        .take(RECEIPT_STEP_ROWS_MAX)
        .collect::<Result<_, _>>()?;
    let ended = rows.len() < RECEIPT_STEP_ROWS_MAX;
    for (key, value) in rows {
        let what = Key::decode(Column::State, &key)?.what();
        let row: ReceiptRow = value::decode(what, &key, value)?;
        forget(step, name, key, &row.receipt.unwrap_or_default())?;
    }
    Ok(ended)
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
            }
        }
        step.txn.put_row(&index, &Number { number: revision });
    }
    let receipt = Receipt {
        revision,
        ..receipt
    };
    let row = ReceiptRow {
        receipt: Some(receipt.clone()),
    };
    step.txn
        .put_row(&Key::Receipt(home, &item.to, revision), &row);
    user.next_revision += 1;
    step.txn.put_user(&item.to, user);
    step.show_receipt(&item.to, receipt);
    Ok(true)
}

/// Deletes a row, and its index row if that still points here.
fn forget(
    step: &mut Step<'_, '_>,
    name: &str,
    key: bytes::Bytes,
    receipt: &Receipt,
) -> Result<(), Error> {
    step.txn.delete(key);
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

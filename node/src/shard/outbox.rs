//! What this shard owes other shards, and what others owed it.
//!
//! Rows are numbered per destination, sent in order by the leader's pump, and trimmed once the destination has
//! committed them. A watermark has one row per (destination, user, peer, status): one that moves takes a new number and
//! its old row goes, so a copy of the old row on its way does no harm; only a new incarnation of the peer leaves the
//! old one's row standing. *Expired* rows are never merged with earlier
//! ones, so the word that a message has expired never comes after a watermark that covers it. A shard's receipts for
//! users of its own take the same way.

use std::collections::BTreeMap;

use roost_proto::storage::{
    Inbound, InboundOutcome, Number, OutboxHead, OutboxItem, OutboxRow, OutboxTrim, Outcome,
    outcome,
};
use roost_proto::v1::{Receipt, Status};

use super::receipts;
use super::refusal::done;
use super::step::Step;
use crate::storage::keys::{self, Key};
use crate::storage::{Column, Error, value};
use crate::types::ShardId;

/// How many rows one command trims.
pub const OUTBOX_TRIM_STEP_ROWS_MAX: usize = 4096;

/// Owes each of these users a receipt. False, with nothing written, if a destination has no room for a new row; a
/// watermark that moves needs none.
pub(super) fn owe(
    step: &mut Step<'_, '_>,
    receipts: Vec<(String, Receipt)>,
) -> Result<bool, Error> {
    let mut standing = Vec::with_capacity(receipts.len());
    let mut wanted: BTreeMap<ShardId, u64> = BTreeMap::new();
    for (to, receipt) in &receipts {
        let old = replaceable(step, to, receipt)?;
        *wanted.entry(step.shard_of(to)).or_default() += u64::from(old.is_none());
        standing.push(old);
    }
    for (destination, rows) in wanted {
        let taken = head(step, destination)?.rows;
        if rows > 0 && taken.saturating_add(rows) > step.limits.outbox_rows_max {
            return Ok(false);
        }
    }
    for ((to, receipt), old) in receipts.into_iter().zip(standing) {
        owe_one(step, to, receipt, old)?;
    }
    Ok(true)
}

/// Removes what the destination has committed, a bounded step.
pub(super) fn trim(step: &mut Step<'_, '_>, trim: &OutboxTrim) -> Result<Outcome, Error> {
    let destination = ShardId(trim.destination);
    let mut head = head(step, destination)?;
    let number = trim.number.min(head.next_number - 1);
    if number <= head.trimmed_number {
        return Ok(done(false));
    }
    let rows = rows_up_to(step, destination, head.trimmed_number + 1, number)?;
    let more = rows.len() == OUTBOX_TRIM_STEP_ROWS_MAX;
    let last = rows.last().map_or(number, |&(number, _)| number);
    for (number, item) in rows {
        forget(step, destination, number, &item)?;
        head.rows -= 1;
    }
    head.trimmed_number = if more { last } else { number };
    let more = head.trimmed_number < number;
    put_head(step, destination, head);
    Ok(done(more))
}

/// Applies rows of another shard, each once: a row at or below the source's mark has been applied before.
pub(super) fn inbound(step: &mut Step<'_, '_>, inbound: &Inbound) -> Result<Outcome, Error> {
    let source = ShardId(inbound.source);
    let key = Key::InboundMark(step.home(), source, inbound.source_incarnation);
    let before: Number = step.txn.row(&key)?.unwrap_or_default();
    let (mut number, mut dropped) = (before.number, 0);
    for row in &inbound.items {
        if row.number <= number {
            continue;
        }
        number = row.number;
        let Some(item) = &row.item else { continue };
        if !receipts::merge(step, item)? {
            dropped += 1;
        }
    }
    if number > before.number {
        step.txn.put_row(&key, &Number { number });
    }
    Ok(Outcome {
        outcome: Some(outcome::Outcome::Inbound(InboundOutcome {
            number,
            dropped,
        })),
    })
}

/// Whether a receipt is one that moves instead of piling up.
pub(super) fn is_watermark(status: Status) -> bool {
    matches!(status, Status::Delivered | Status::Read)
}

/// Writes a receipt in the place of the row that it replaces, if any.
fn owe_one(
    step: &mut Step<'_, '_>,
    to: String,
    receipt: Receipt,
    old: Option<(u64, Receipt)>,
) -> Result<(), Error> {
    let home = step.home();
    let destination = step.shard_of(&to);
    let mut head = head(step, destination)?;
    if let Some((number, old)) = old {
        if receipt.up_to_seq <= old.up_to_seq {
            return Ok(());
        }
        step.txn.delete_row(&Key::Outbox(home, destination, number));
        head.rows -= 1;
    }
    let number = head.next_number;
    head.next_number += 1;
    head.rows += 1;
    if is_watermark(receipt.status()) {
        let index = Key::OutboxIndex(home, destination, &to, &receipt.peer, receipt.status());
        step.txn.put_row(&index, &Number { number });
    }
    let receipt = Some(receipt);
    let item = Some(OutboxItem { to, receipt });
    let key = Key::Outbox(home, destination, number);
    step.txn.put_row(&key, &OutboxRow { item });
    put_head(step, destination, head);
    step.will_pump(destination);
    Ok(())
}

/// The row of the same conversation, status and incarnation that a watermark moves on. One of an earlier incarnation
/// stays: it speaks of other messages.
fn replaceable(
    step: &Step<'_, '_>,
    to: &str,
    receipt: &Receipt,
) -> Result<Option<(u64, Receipt)>, Error> {
    let destination = step.shard_of(to);
    let Some(number) = standing(step, destination, to, receipt)? else {
        return Ok(None);
    };
    let row: Option<OutboxRow> = step
        .txn
        .row(&Key::Outbox(step.home(), destination, number))?;
    let old = row.and_then(|row| row.item?.receipt);
    Ok(old
        .filter(|old| old.incarnation == receipt.incarnation)
        .map(|old| (number, old)))
}

/// The number of the newest row of this watermark's conversation and status.
fn standing(
    step: &Step<'_, '_>,
    destination: ShardId,
    to: &str,
    receipt: &Receipt,
) -> Result<Option<u64>, Error> {
    if !is_watermark(receipt.status()) {
        return Ok(None);
    }
    let index = Key::OutboxIndex(
        step.home(),
        destination,
        to,
        &receipt.peer,
        receipt.status(),
    );
    let number: Option<Number> = step.txn.row(&index)?;
    Ok(number.map(|row| row.number))
}

fn rows_up_to(
    step: &Step<'_, '_>,
    destination: ShardId,
    first: u64,
    last: u64,
) -> Result<Vec<(u64, OutboxItem)>, Error> {
    let start = keys::outbox_of(step.home(), destination, first).start;
    let end = keys::outbox_of(step.home(), destination, last.saturating_add(1)).start;
    let rows = step.txn.scan(start..end).take(OUTBOX_TRIM_STEP_ROWS_MAX);
    rows.map(|row| {
        let (key, value) = row?;
        let parsed = Key::decode(Column::State, &key)?;
        let row: OutboxRow = value::decode(parsed.what(), &key, value)?;
        let number = match parsed {
            Key::Outbox(_, _, number) => number,
            _ => 0,
        };
        Ok((number, row.item.unwrap_or_default()))
    })
    .collect()
}

/// Deletes a row, and its index row if that still points here.
fn forget(
    step: &mut Step<'_, '_>,
    destination: ShardId,
    number: u64,
    item: &OutboxItem,
) -> Result<(), Error> {
    let home = step.home();
    step.txn.delete_row(&Key::Outbox(home, destination, number));
    let Some(receipt) = &item.receipt else {
        return Ok(());
    };
    if standing(step, destination, &item.to, receipt)? == Some(number) {
        let (to, peer) = (&item.to, &receipt.peer);
        let index = Key::OutboxIndex(home, destination, to, peer, receipt.status());
        step.txn.delete_row(&index);
    }
    Ok(())
}

fn head(step: &mut Step<'_, '_>, destination: ShardId) -> Result<OutboxHead, Error> {
    let key = Key::OutboxHead(step.home(), destination);
    let head: Option<OutboxHead> = step.txn.hot(&key)?;
    Ok(head.unwrap_or(OutboxHead {
        next_number: 1,
        ..OutboxHead::default()
    }))
}

fn put_head(step: &mut Step<'_, '_>, destination: ShardId, head: OutboxHead) {
    let key = Key::OutboxHead(step.home(), destination);
    step.txn.put_hot(&key, head);
}

//! What a sender device has going with a recipient: its chains, its remembered ids, and what they cost.
//!
//! Once: the id is looked up first, and its stored answer given. In order: only the chain's next position is taken. A
//! final answer made here (accepted or refused) consumes the position and is remembered under the id; a retryable one
//! changes nothing. Ids are forgotten by the day, when they are by their own age too old to be accepted again.
//!
//! An id costs one row of about 105 bytes before compression (with phone numbers and a UUID: 86 of key, 19 of value)
//! for the window and up to a day; rows of one pair lie together, so compression takes most of the key. A chain mark
//! costs about 25 bytes in the pair's row, which itself has about 55 bytes of key and 4 for each day with ids.

use roost_proto::storage::{
    Chain, DayUse, Outcome, ReadMarkRow, Send, SendItem, SendOutcome, Sender, SenderUse,
    SentId as SentIdRow, SweepPosition, User, outcome,
};
use roost_proto::v1::{Code, Cursor, Envelope, Error as Refusal, SendAnswer, Status};

use super::refusal::{done, refusal};
use super::step::{CLOCK_AHEAD_MAX_MS, DAY_MS, Step};
use super::{SenderFill, delivered, queue};
use crate::sabotage::{self, Break};
use crate::storage::keys::{self, Key, SentId};
use crate::storage::{Column, Error};
use crate::types::{DeviceId, UserId, check_message_id};

/// How many sender rows one sweep command looks at.
pub const SWEEP_STEP_ROWS_MAX: usize = 4096;

/// A hint with retryable refusals that pass by themselves.
const RETRY_AFTER_MS: u64 = 1000;

/// Takes messages of one sender device to one recipient, in order.
pub(super) fn send(step: &mut Step<'_, '_>, send: &Send) -> Result<Outcome, Error> {
    let mut answers = Vec::with_capacity(send.items.len());
    if UserId::parse(&send.from).is_err() {
        let invalid = || refusal(Code::Invalid, "no valid sender");
        answers.extend(
            send.items
                .iter()
                .map(|item| answer(item, &send.to, invalid())),
        );
    } else {
        let mut pair = Pair::load(step, send)?;
        for item in &send.items {
            answers.push(pair.take(step, item)?);
        }
        pair.store(step);
    }
    Ok(Outcome {
        outcome: Some(outcome::Outcome::Send(SendOutcome { answers })),
    })
}

/// Deletes ids of days that have left the window, and rows of senders that have been silent for as long.
pub(super) fn sweep(step: &mut Step<'_, '_>) -> Result<Outcome, Error> {
    let home = step.home();
    if step.sums.swept_day < step.sums.first_id_day {
        let before = keys::sent_ids_before(home, step.sums.first_id_day);
        step.txn.delete_range(before);
        step.sums.swept_day = step.sums.first_id_day;
    }
    step.txn.flush();
    let from = step.sums.sweep.take().unwrap_or_default();
    let next = match from.uses {
        false => match sweep_senders(step, &from)? {
            None => Some(SweepPosition {
                uses: true,
                ..SweepPosition::default()
            }),
            next => next,
        },
        true => sweep_uses(step, &from)?,
    };
    let more = next.is_some();
    step.sums.sweep = next;
    Ok(done(more))
}

/// One sender device and one recipient, while a command works on them.
struct Pair<'a> {
    from: &'a str,
    device: DeviceId,
    to: &'a str,
    recipient: Option<User>,
    sender: Sender,
    usage: SenderUse,
    changed: bool,
}

impl<'a> Pair<'a> {
    fn load(step: &mut Step<'_, '_>, send: &'a Send) -> Result<Self, Error> {
        let home = step.home();
        let (from, device, to) = (&send.from, DeviceId(send.device), &send.to);
        let sender: Option<Sender> = step.txn.hot(&Key::Sender(home, to, from, device))?;
        let usage: Option<SenderUse> = step.txn.hot(&Key::SenderUse(home, from, device))?;
        let mut pair = Self {
            from,
            device,
            to,
            recipient: step.txn.user(to)?,
            sender: sender.unwrap_or_default(),
            usage: usage.unwrap_or_default(),
            changed: false,
        };
        prune(step, &mut pair.sender);
        prune_use(step, &mut pair.usage);
        Ok(pair)
    }

    /// Writes back what was changed; a command of retryable refusals leaves no trace.
    fn store(self, step: &mut Step<'_, '_>) {
        if !self.changed {
            return;
        }
        step.note_sender(SenderFill {
            ids: self.usage.days.iter().map(|day| day.ids).sum(),
            chains: self.sender.chains.len(),
        });
        let home = step.home();
        let sender = Key::Sender(home, self.to, self.from, self.device);
        step.txn.put_hot(&sender, self.sender);
        let usage = Key::SenderUse(home, self.from, self.device);
        step.txn.put_hot(&usage, self.usage);
        if let Some(user) = self.recipient {
            step.txn.put_user(self.to, user);
        }
    }

    fn take(&mut self, step: &mut Step<'_, '_>, item: &SendItem) -> Result<SendAnswer, Error> {
        if !is_valid(item) {
            let invalid = refusal(
                Code::Invalid,
                "no valid id, chain, position or time to live",
            );
            return Ok(answer(item, self.to, invalid));
        }
        if let Some(row) = self.remembered(step, &item.id)? {
            // Sent again in a new chain, or deliberately under an old id: what comes behind it must find its turn.
            if item.position == self.expected(item).unwrap_or(1) {
                self.advance(step, item);
                self.changed = true;
            }
            return self.stored_answer(step, item, row);
        }
        if let Err(refused) = self.check_turn(step, item) {
            return Ok(answer(item, self.to, refused));
        }
        match self.decide(step, item)? {
            Err(refused) if refused.retryable => Ok(answer(item, self.to, refused)),
            result => self.consume(step, item, result),
        }
    }

    fn remembered(&self, step: &Step<'_, '_>, id: &str) -> Result<Option<SentIdRow>, Error> {
        if sabotage::on(Break::NoDedup) {
            return Ok(None);
        }
        for &day in self.sender.days.iter().rev() {
            if let Some(row) = step.txn.row(&self.id_key(step, day, id))? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    fn id_key<'k>(&'k self, step: &Step<'_, '_>, day: u32, id: &'k str) -> Key<'k> {
        let sent = SentId {
            day,
            recipient: self.to,
            sender: self.from,
            device: self.device,
            id,
        };
        Key::SentId(step.home(), sent)
    }

    /// The position that an item's chain wants next, if the chain is known.
    fn expected(&self, item: &SendItem) -> Option<u64> {
        let known = self.sender.chains.iter().find(|c| c.chain == item.chain);
        known.map(|chain| chain.next_position)
    }

    /// Whether it is this item's turn in its chain, and its sender's to be remembered.
    fn check_turn(&self, step: &Step<'_, '_>, item: &SendItem) -> Result<(), Refusal> {
        if sabotage::on(Break::NoOrder) {
            return Ok(());
        }
        let known = self.expected(item);
        let expected = known.unwrap_or(1);
        if item.position < expected {
            return Err(refusal(
                Code::AlreadyAnswered,
                "the position was answered, and the answer is no longer kept",
            ));
        }
        if item.position > expected {
            let gap = match known {
                Some(_) => refusal(Code::PositionGap, "an earlier position is missing"),
                None => refusal(
                    Code::UnknownChain,
                    "open a new chain for what is unanswered",
                ),
            };
            let expected_position = known.unwrap_or(0);
            return Err(Refusal {
                expected_position,
                ..gap
            });
        }
        if item.sent_at_ms > step.now().saturating_add(CLOCK_AHEAD_MAX_MS) {
            return Err(retry_later(refusal(
                Code::ClockAhead,
                "the sending time lies in the future",
            )));
        }
        let ids: u64 = self.usage.days.iter().map(|day| day.ids).sum();
        if ids >= step.limits.sender_ids_max {
            return Err(retry_later(refusal(
                Code::Overloaded,
                "this device has sent as much as can be remembered",
            )));
        }
        Ok(())
    }

    /// Accepts the message into the queue, or says why not.
    fn decide(
        &mut self,
        step: &mut Step<'_, '_>,
        item: &SendItem,
    ) -> Result<Result<Cursor, Refusal>, Error> {
        if item.refuse() != Code::Unspecified {
            return Ok(Err(refusal(
                item.refuse(),
                "the message is out of the server's bounds",
            )));
        }
        if item.sent_at_ms < oldest_id_ms(step) {
            return Ok(Err(refusal(
                Code::IdTooOld,
                "the id may have been forgotten",
            )));
        }
        let Some(user) = self.recipient.as_mut().filter(|user| !user.removed) else {
            return Ok(Err(refusal(Code::NotFound, "no such user")));
        };
        let envelope = Envelope {
            id: item.id.clone(),
            from: self.from.to_owned(),
            device: self.device.0,
            kind: item.kind,
            body: item.body.clone(),
            sent_at_ms: item.sent_at_ms,
        };
        let bytes = queue::entry_bytes(&envelope);
        if !queue::has_room(step, user, bytes) {
            // What every device has acknowledged may still wait for its deletion; that is no reason for a final no.
            let waiting = user.trimmed_seq < user.done_seq;
            return Ok(Err(match waiting {
                true => retry_later(refusal(Code::Overloaded, "the queue is being cleared")),
                false => refusal(Code::QueueFull, "the recipient's queue is full"),
            }));
        }
        let seq = queue::append(step, self.to, user, envelope, item.ttl_ms);
        let incarnation = user.incarnation;
        Ok(Ok(Cursor { incarnation, seq }))
    }

    /// Takes the position and remembers the answer.
    fn consume(
        &mut self,
        step: &mut Step<'_, '_>,
        item: &SendItem,
        result: Result<Cursor, Refusal>,
    ) -> Result<SendAnswer, Error> {
        let today = step.today();
        let row = SentIdRow {
            place: result.as_ref().ok().copied(),
            error: result.err(),
            expired: false,
        };
        step.txn.put_row(&self.id_key(step, today, &item.id), &row);
        if self.sender.days.last() != Some(&today) {
            self.sender.days.push(today);
        }
        match self.usage.days.last_mut().filter(|last| last.day == today) {
            Some(last) => last.ids += 1,
            None => self.usage.days.push(DayUse { day: today, ids: 1 }),
        }
        self.advance(step, item);
        self.changed = true;
        Ok(match row.place {
            // Nobody has had it yet, let alone read it.
            Some(_) => self.accepted(item, row.place, Status::Accepted),
            None => answer(item, self.to, row.error.unwrap_or_default()),
        })
    }

    fn advance(&mut self, step: &Step<'_, '_>, item: &SendItem) {
        let moved = Chain {
            chain: item.chain,
            next_position: item.position.saturating_add(1),
            used_ms: step.now(),
        };
        let chains = &mut self.sender.chains;
        if let Some(known) = chains.iter_mut().find(|known| known.chain == item.chain) {
            *known = moved;
            return;
        }
        let max = step.limits.chains_max.max(1) as usize;
        while chains.len() >= max {
            let idle = chains
                .iter()
                .enumerate()
                .min_by_key(|(_, c)| (c.used_ms, c.chain));
            let at = idle.map_or(0, |(at, _)| at);
            chains.remove(at);
        }
        chains.push(moved);
    }

    /// The answer that is remembered, with the status as it is now.
    fn stored_answer(
        &self,
        step: &Step<'_, '_>,
        item: &SendItem,
        row: SentIdRow,
    ) -> Result<SendAnswer, Error> {
        let Some(place) = row.place else {
            return Ok(answer(item, self.to, row.error.unwrap_or_default()));
        };
        let status = self.status(step, place, row.expired)?;
        Ok(self.accepted(item, Some(place), status))
    }

    fn accepted(&self, item: &SendItem, place: Option<Cursor>, status: Status) -> SendAnswer {
        SendAnswer {
            id: item.id.clone(),
            to: self.to.to_owned(),
            status: status.into(),
            place,
            error: None,
        }
    }

    fn status(&self, step: &Step<'_, '_>, place: Cursor, expired: bool) -> Result<Status, Error> {
        // Watermarks cover what has expired, and do not speak of it.
        if expired {
            return Ok(Status::Expired);
        }
        let Some(user) = &self.recipient else {
            return Ok(Status::Accepted);
        };
        if place.incarnation != user.incarnation {
            // An account begins anew only after all that was undelivered was marked as expired.
            return Ok(Status::Delivered);
        }
        let mark = Key::ReadMark(step.home(), self.to, self.from);
        let mark: Option<ReadMarkRow> = step.txn.row(&mark)?;
        Ok(if mark.is_some_and(|mark| place.seq <= mark.up_to_seq) {
            Status::Read
        } else if delivered::covers(user, place.seq) {
            Status::Delivered
        } else {
            Status::Accepted
        })
    }
}

/// The oldest sending time that is still taken: within the window, and within what has not been forgotten.
fn oldest_id_ms(step: &Step<'_, '_>) -> u64 {
    let window = step.now().saturating_sub(step.limits.dedup_window_ms);
    let kept = match step.sums.first_id_day {
        0 => 0,
        // An id may have been made this much after the moment of its acceptance.
        day => u64::from(day) * DAY_MS + CLOCK_AHEAD_MAX_MS,
    };
    window.max(kept)
}

fn is_valid(item: &SendItem) -> bool {
    check_message_id(&item.id).is_ok() && item.chain > 0 && item.position > 0 && item.ttl_ms > 0
}

fn answer(item: &SendItem, to: &str, error: Refusal) -> SendAnswer {
    SendAnswer {
        id: item.id.clone(),
        to: to.to_owned(),
        status: Status::Refused.into(),
        place: None,
        error: Some(error),
    }
}

fn retry_later(error: Refusal) -> Refusal {
    Refusal {
        retry_after_ms: RETRY_AFTER_MS,
        ..error
    }
}

/// Takes out what counts as forgotten.
fn prune(step: &Step<'_, '_>, sender: &mut Sender) {
    let (now, window) = (step.now(), step.limits.dedup_window_ms);
    sender.days.retain(|&day| day >= step.sums.first_id_day);
    sender
        .chains
        .retain(|chain| chain.used_ms.saturating_add(window) >= now);
}

fn prune_use(step: &Step<'_, '_>, usage: &mut SenderUse) {
    usage.days.retain(|use_| use_.day >= step.sums.first_id_day);
}

/// Goes through sender rows from a place on; answers where the next step goes on, if not at the end.
fn sweep_senders(
    step: &mut Step<'_, '_>,
    from: &SweepPosition,
) -> Result<Option<SweepPosition>, Error> {
    let home = step.home();
    let all = keys::senders(home);
    let device = DeviceId(from.device);
    let start = match from.recipient.is_empty() {
        true => all.start,
        false => behind(&Key::Sender(home, &from.recipient, &from.sender, device)),
    };
    let rows = rows(step, start..all.end)?;
    let mut last = None;
    let full = rows.len() == SWEEP_STEP_ROWS_MAX;
    for key in rows {
        let Key::Sender(_, recipient, sender, device) = Key::decode(Column::State, &key)? else {
            continue;
        };
        let key = Key::Sender(home, recipient, sender, device);
        let mut row: Sender = step.txn.hot(&key)?.unwrap_or_default();
        prune(step, &mut row);
        if row == Sender::default() {
            step.txn.delete_hot::<Sender>(&key);
        }
        last = Some(SweepPosition {
            uses: false,
            recipient: recipient.to_owned(),
            sender: sender.to_owned(),
            device: device.0,
        });
    }
    Ok(last.filter(|_| full))
}

/// As [`sweep_senders`], for what sender devices cost.
fn sweep_uses(
    step: &mut Step<'_, '_>,
    from: &SweepPosition,
) -> Result<Option<SweepPosition>, Error> {
    let home = step.home();
    let all = keys::sender_uses(home);
    let start = match from.sender.is_empty() {
        true => all.start,
        false => behind(&Key::SenderUse(home, &from.sender, DeviceId(from.device))),
    };
    let rows = rows(step, start..all.end)?;
    let mut last = None;
    let full = rows.len() == SWEEP_STEP_ROWS_MAX;
    for key in rows {
        let Key::SenderUse(_, sender, device) = Key::decode(Column::State, &key)? else {
            continue;
        };
        let key = Key::SenderUse(home, sender, device);
        let mut row: SenderUse = step.txn.hot(&key)?.unwrap_or_default();
        prune_use(step, &mut row);
        if row == SenderUse::default() {
            step.txn.delete_hot::<SenderUse>(&key);
        }
        last = Some(SweepPosition {
            uses: true,
            sender: sender.to_owned(),
            device: device.0,
            ..SweepPosition::default()
        });
    }
    Ok(last.filter(|_| full))
}

fn rows(
    step: &Step<'_, '_>,
    range: std::ops::Range<bytes::Bytes>,
) -> Result<Vec<bytes::Bytes>, Error> {
    let rows = step.txn.scan(range).take(SWEEP_STEP_ROWS_MAX);
    rows.map(|row| row.map(|(key, _)| key)).collect()
}

/// The smallest key behind one: no key is a prefix of another of its kind.
fn behind(key: &Key<'_>) -> bytes::Bytes {
    let mut bytes = key.encode().to_vec();
    bytes.push(0);
    bytes.into()
}

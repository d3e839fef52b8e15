//! Messages whose delivery is waited for, settled by receipts and, where receipts may have been missed, by asking: the
//! same message sent again under the same id gets its stored answer with the status as it is now.
//!
//! Receipts are pushed from each `Watching` notice on until the connection ends: one *watch*. A receipt can come before
//! the answer to its message, so what receipts said during the present watch is kept, bounded, and a message that was
//! sent during that watch needs no asking. All others are asked about, and until the answer comes no receipt counts for
//! them: a mark speaks only of what had not been reported expired before.

use std::collections::{HashMap, VecDeque};

use roost_proto::v1::{self, Status};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::{Error, Refusal};
use crate::message::{Answer, Cursor, Receipt};

/// Conversations whose receipts are kept; beyond it all are forgotten and what is open is asked about.
const MARKS_MAX: usize = 4096;
/// Expired ranges kept per conversation, likewise.
const EXPIRED_MAX: usize = 1024;

pub(crate) type Reply = oneshot::Sender<Result<Answer, Error>>;

#[derive(Debug)]
pub(crate) struct Ticks {
    /// Open messages by (recipient, id).
    open: HashMap<(String, String), Open>,
    /// Open messages to be asked about.
    ask: VecDeque<(String, String)>,
    asking: usize,
    /// What receipts said during this watch, by (peer, incarnation).
    marks: HashMap<(String, u64), Marks>,
    /// Rises with every watch; `watching` says whether one is on.
    watch: u64,
    watching: bool,
    not_before: Option<Instant>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Open {
    answer: Answer,
    waiting: Vec<(Status, Reply, OwnedSemaphorePermit)>,
    asked: Asked,
    /// Its status was known at a moment of the present watch: receipts settle it.
    covered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    No,
    Queued,
    /// During this watch.
    InFlight(u64),
}

#[derive(Debug, Default)]
struct Marks {
    delivered: u64,
    read: u64,
    expired: Vec<(u64, u64)>,
}

impl Marks {
    fn status(&self, seq: u64) -> Status {
        if self.expired.iter().any(|(a, b)| (*a..=*b).contains(&seq)) {
            Status::Expired
        } else if seq <= self.read {
            Status::Read
        } else if seq <= self.delivered {
            Status::Delivered
        } else {
            Status::Accepted
        }
    }
}

impl Ticks {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            open: HashMap::new(),
            ask: VecDeque::new(),
            asking: 0,
            marks: HashMap::new(),
            watch: 0,
            watching: false,
            not_before: None,
            backoff,
        }
    }

    /// The watch that is on; 0 for none.
    pub(crate) fn watch(&self) -> u64 {
        if self.watching { self.watch } else { 0 }
    }

    /// Waits until the message has come as far as `status`, or never will.
    pub(crate) fn wait(
        &mut self,
        answer: Answer,
        status: Status,
        reply: Reply,
        permit: OwnedSemaphorePermit,
    ) {
        let key = (answer.to.clone(), answer.id.clone());
        let covered = self.watching && answer.origin.watch == self.watch;
        let open = self.open.entry(key.clone()).or_insert_with(|| Open {
            answer: answer.clone(),
            waiting: Vec::new(),
            asked: Asked::No,
            covered: false,
        });
        open.covered |= covered;
        let covered = open.covered;
        if answer.status as i32 > open.answer.status as i32 {
            open.answer = answer;
        }
        open.waiting.push((status, reply, permit));
        let status = marked(&self.marks, open);
        advance(open, status);
        if open.waiting.is_empty() {
            self.remove(&key);
        } else if !covered {
            self.enqueue(&key);
        }
    }

    /// Receipts are watched from here on: ask about everything open.
    pub(crate) fn watching(&mut self) {
        self.watch += 1;
        self.watching = true;
        self.forget_marks();
    }

    /// Receipts went by, or are no longer kept: the same, while the watch goes on.
    pub(crate) fn missed(&mut self) {
        self.watch += 1;
        self.forget_marks();
    }

    pub(crate) fn receipt(&mut self, receipt: &Receipt) {
        let key = (receipt.peer.clone(), receipt.incarnation);
        if self.marks.len() >= MARKS_MAX && !self.marks.contains_key(&key) {
            self.missed();
        }
        let marks = self.marks.entry(key).or_default();
        match receipt.status {
            Status::Delivered => marks.delivered = marks.delivered.max(receipt.up_to_seq),
            Status::Read => marks.read = marks.read.max(receipt.up_to_seq),
            Status::Expired => marks.expired.extend(&receipt.expired),
            _ => return,
        }
        let overflow = marks.expired.len() > EXPIRED_MAX;
        self.settle(receipt);
        if overflow {
            self.missed();
        }
    }

    fn settle(&mut self, receipt: &Receipt) {
        let mut done = Vec::new();
        for (key, open) in &mut self.open {
            if key.0 != receipt.peer {
                continue;
            }
            advance(open, marked(&self.marks, open));
            if open.waiting.is_empty() {
                done.push(key.clone());
            }
        }
        for key in done {
            self.remove(&key);
        }
    }

    pub(crate) fn has_next(&self, now: Instant) -> bool {
        self.watching && !self.ask.is_empty() && self.not_before.is_none_or(|until| until <= now)
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.ask.is_empty())
    }

    /// Questions on their way.
    pub(crate) fn asking(&self) -> usize {
        self.asking
    }

    /// The next question. Its body is empty: the server either knows the id, or knows its position as taken.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        in_flight: impl Fn(&str, &str) -> bool,
    ) -> Option<v1::Send> {
        while self.has_next(now) {
            let key = self.ask.pop_front()?;
            let Some(open) = self.open.get_mut(&key) else {
                continue;
            };
            if in_flight(&key.0, &key.1) {
                // The same message is being sent; its answer would be mistaken for ours.
                self.ask.push_back(key);
                self.not_before = Some(now + self.backoff.pause());
                return None;
            }
            open.asked = Asked::InFlight(self.watch);
            self.asking += 1;
            let origin = open.answer.origin;
            return Some(v1::Send {
                id: key.1,
                to: key.0,
                chain: origin.chain,
                position: origin.position,
                kind: origin.kind,
                body: bytes::Bytes::new(),
                sent_at_ms: origin.sent_at_ms,
                ttl_ms: 0,
            });
        }
        None
    }

    /// Whether this answer is to a question of ours.
    pub(crate) fn is_asking(&self, to: &str, id: &str) -> bool {
        self.asking > 0
            && self
                .open
                .get(&(to.to_owned(), id.to_owned()))
                .is_some_and(|open| matches!(open.asked, Asked::InFlight(_)))
    }

    /// The refusal, if the question is to be asked again.
    pub(crate) fn answer(&mut self, answer: v1::SendAnswer, now: Instant) -> Option<Refusal> {
        let key = (answer.to.clone(), answer.id.clone());
        let open = self.open.get_mut(&key)?;
        let current = open.asked == Asked::InFlight(self.watch);
        open.asked = Asked::No;
        self.asking -= 1;
        let status = answer.status();
        match answer.error.map(Refusal::from) {
            Some(refusal) if refusal.retryable && !forgotten(refusal.code) => {
                let pause = self.backoff.pause();
                let pause = pause.max(refusal.retry_after.unwrap_or_default());
                self.not_before = Some(now + pause);
                self.enqueue(&key);
                return Some(refusal);
            }
            Some(refusal) => {
                for (_, reply, _) in open.waiting.drain(..) {
                    let _ = reply.send(Err(Error::Refused(refusal.clone())));
                }
            }
            None => {
                self.backoff.reset();
                self.not_before = None;
                open.answer.place = answer.place.map(Cursor::from).or(open.answer.place);
                advance(open, status);
                open.covered = current;
                advance(open, marked(&self.marks, open));
            }
        }
        if open.waiting.is_empty() {
            self.remove(&key);
        } else if !current {
            self.enqueue(&key);
        }
        None
    }

    pub(crate) fn disconnected(&mut self) {
        self.watching = false;
        self.asking = 0;
        self.not_before = None;
        self.ask.clear();
        self.marks.clear();
        for open in self.open.values_mut() {
            open.asked = Asked::No;
            open.covered = false;
        }
    }

    pub(crate) fn fail(&mut self, error: &Error) {
        for (_, open) in self.open.drain() {
            for (_, reply, _) in open.waiting {
                let _ = reply.send(Err(error.clone()));
            }
        }
        self.ask.clear();
        self.asking = 0;
    }

    fn forget_marks(&mut self) {
        self.marks.clear();
        for open in self.open.values_mut() {
            open.covered = false;
        }
        let keys: Vec<_> = self.open.keys().cloned().collect();
        for key in keys {
            self.enqueue(&key);
        }
    }

    fn enqueue(&mut self, key: &(String, String)) {
        if let Some(open) = self.open.get_mut(key)
            && open.asked == Asked::No
        {
            open.asked = Asked::Queued;
            self.ask.push_back(key.clone());
        }
    }

    fn remove(&mut self, key: &(String, String)) {
        // An answer to a question that is still on its way finds nobody, so it no longer counts.
        if let Some(open) = self.open.remove(key)
            && matches!(open.asked, Asked::InFlight(_))
        {
            self.asking -= 1;
        }
    }
}

/// What the receipts of the present watch say of it.
fn marked(marks: &HashMap<(String, u64), Marks>, open: &Open) -> Status {
    open.answer
        .place
        .filter(|_| open.covered)
        .and_then(|place| {
            let marks = marks.get(&(open.answer.to.clone(), place.incarnation))?;
            Some(marks.status(place.seq))
        })
        .unwrap_or(Status::Accepted)
}

/// The server has neither the id nor the position any more.
fn forgotten(code: v1::Code) -> bool {
    matches!(code, v1::Code::UnknownChain | v1::Code::PositionGap)
}

/// Statuses only rise: accepted, delivered, read; expired is an end of its own.
fn advance(open: &mut Open, status: Status) {
    if status as i32 > open.answer.status as i32 {
        open.answer.status = status;
    }
    for (wanted, reply, permit) in std::mem::take(&mut open.waiting) {
        if open.answer.has_reached(wanted) {
            let _ = reply.send(Ok(open.answer.clone()));
        } else {
            open.waiting.push((wanted, reply, permit));
        }
    }
}

//! Messages whose delivery is waited for, settled by receipts and, where receipts may have been missed, by asking: the
//! same message sent again under the same id gets its stored answer with the status as it is now.
//!
//! Receipts are pushed from each `Watching` notice on until the connection ends: one *watch*. A receipt can come before
//! the answer to its message, so what receipts said during the present watch is kept, bounded, and a message that was
//! sent during that watch needs no asking. All others are asked about, and until the answer comes no receipt counts for
//! them: a mark speaks only of what had not been reported expired before.

use std::collections::HashMap;

use roost_proto::v1::{self, Status};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::bounds::Permit;
use crate::error::{Error, Refusal};
use crate::message::{Answer, Cursor, Receipt};
use crate::questions::Questions;
use crate::window::Window;

/// Conversations whose receipts are kept; beyond it all are forgotten and what is open is asked about.
const MARKS_MAX: usize = 4096;
/// Expired ranges kept per conversation, likewise.
const EXPIRED_MAX: usize = 1024;

pub(crate) type Reply = oneshot::Sender<Result<Answer, Error>>;

#[derive(Debug)]
pub(crate) struct Ticks {
    /// Open messages by (recipient, id).
    open: HashMap<(String, String), Open>,
    questions: Questions,
    /// What receipts said during this watch, by (peer, incarnation).
    marks: HashMap<(String, u64), Marks>,
    /// Rises with every watch; `watching` says whether one is on.
    watch: u64,
    watching: bool,
}

#[derive(Debug)]
struct Open {
    answer: Answer,
    waiting: Vec<(Status, Reply, Permit)>,
    /// Its status was known at a moment of the present watch: receipts settle it.
    covered: bool,
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
            questions: Questions::new(backoff),
            marks: HashMap::new(),
            watch: 0,
            watching: false,
        }
    }

    /// The watch that is on; 0 for none.
    pub(crate) fn watch(&self) -> u64 {
        if self.watching { self.watch } else { 0 }
    }

    /// Waits until the message has come as far as `status`, or never will.
    pub(crate) fn wait(&mut self, answer: Answer, status: Status, reply: Reply, permit: Permit) {
        let key = (answer.to.clone(), answer.id.clone());
        let covered = self.watching && answer.origin.watch == self.watch;
        let open = self.open.entry(key.clone()).or_insert_with(|| Open {
            answer: answer.clone(),
            waiting: Vec::new(),
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
            self.questions.push(&key.0, &key.1);
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

    pub(crate) fn has_next(&mut self, now: Instant, window: &Window) -> bool {
        self.watching && self.questions.has_next(now, window)
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.questions.wakes_at()
    }

    /// The next question, which counts in `window`. Its body is empty: the server either knows the id, or knows its
    /// position as taken.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        window: &mut Window,
        is_being_sent: impl Fn(&str, &str) -> bool,
    ) -> Option<v1::Send> {
        if !self.watching {
            return None;
        }
        let (to, id) = self
            .questions
            .next(now, self.watch, window, is_being_sent)?;
        let key = (to.to_string(), id);
        let origin = self.open.get(&key)?.answer.origin;
        let (to, id) = key;
        Some(v1::Send {
            id,
            to,
            chain: origin.chain,
            position: origin.position,
            kind: origin.kind,
            body: bytes::Bytes::new(),
            sent_at_ms: origin.sent_at_ms,
            ttl_ms: 0,
        })
    }

    /// Whether this answer is to a question of ours.
    pub(crate) fn is_asking(&self, to: &str, id: &str) -> bool {
        self.questions.is_asked(to, id)
    }

    /// The refusal, if the question is to be asked again.
    pub(crate) fn answer(&mut self, answer: v1::SendAnswer, now: Instant) -> Option<Refusal> {
        let key = (answer.to.clone(), answer.id.clone());
        let watch = self.questions.answered(&key.0, &key.1)?;
        let Some(open) = self.open.get_mut(&key) else {
            // Receipts were faster.
            self.questions.progress(&key.0);
            return None;
        };
        let current = watch == self.watch;
        let status = answer.status();
        match answer.error.map(Refusal::from) {
            Some(refusal) if refusal.retryable && !forgotten(refusal.code) => {
                self.questions.again(&key.0, &key.1, &refusal, now);
                return Some(refusal);
            }
            Some(refusal) => {
                for (_, reply, _) in open.waiting.drain(..) {
                    let _ = reply.send(Err(Error::Refused(refusal.clone())));
                }
            }
            None => {
                open.answer.place = answer.place.map(Cursor::from).or(open.answer.place);
                advance(open, status);
                open.covered = current;
                advance(open, marked(&self.marks, open));
            }
        }
        let settled = open.waiting.is_empty();
        self.questions.progress(&key.0);
        if settled {
            self.remove(&key);
        } else if !current {
            self.questions.push(&key.0, &key.1);
        }
        None
    }

    /// The window has room again for what goes to this recipient.
    pub(crate) fn resume(&mut self, to: &str) {
        self.questions.resume(to);
    }

    pub(crate) fn disconnected(&mut self) {
        self.watching = false;
        self.questions.clear();
        self.marks.clear();
        for open in self.open.values_mut() {
            open.covered = false;
        }
    }

    pub(crate) fn fail(&mut self, error: &Error) {
        for (_, open) in self.open.drain() {
            for (_, reply, _) in open.waiting {
                let _ = reply.send(Err(error.clone()));
            }
        }
        self.questions.clear();
    }

    fn forget_marks(&mut self) {
        self.marks.clear();
        for ((to, id), open) in &mut self.open {
            open.covered = false;
            self.questions.push(to, id);
        }
    }

    fn remove(&mut self, key: &(String, String)) {
        self.open.remove(key);
        self.questions.forget(&key.0, &key.1);
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

//! One conversation: what is unanswered in it, in order and numbered, sent, sent again.
//!
//! Nothing overtakes. After a retryable refusal the conversation stands still until everything it has on its way is
//! answered, pauses, and then goes on from its first unanswered message, ids unchanged. When the server does not know the
//! chain any more, or wants a position of it that lies before all that is unanswered, it goes on under a new chain: always
//! safe, because ids are what makes a message one.

use std::collections::{HashSet, VecDeque};

use roost_proto::v1::{self, Code, Status};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::bounds::Permit;
use crate::clock::ServerClock;
use crate::error::{Error, Refusal};
use crate::message::{Answer, Origin, Outgoing};

pub(crate) type Reply = oneshot::Sender<Result<Answer, Error>>;

/// What an answer asks of the rest of the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Nobody waits for this answer: an earlier one was as good.
    Stray,
    /// Final, and handed to the caller.
    Settled,
    /// To be sent again, after a pause, for this reason.
    Retry(Refusal),
    /// The server's clock was measured wrongly, or is wrong: greet another server, then send again.
    Remeasure(Refusal),
}

#[derive(Debug)]
pub(crate) struct Conversation {
    chain: u64,
    next_position: u64,
    unanswered: VecDeque<Pending>,
    /// Of what is unanswered: most ids are new, and a look at each would cost the square of the window.
    ids: HashSet<String>,
    /// Everything before this index has been sent on this connection.
    next: usize,
    in_flight: usize,
    /// Set while it stands still.
    stall: Option<Stall>,
    backoff: Backoff,
}

#[derive(Debug, Default)]
struct Stall {
    until: Option<Instant>,
    new_chain: bool,
    expected: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Pending {
    message: Outgoing,
    position: u64,
    in_flight: bool,
    watch: u64,
    /// On the server's clock, as it was when the message was first sent.
    sent_at_ms: Option<u64>,
    /// What it was before the server found it ahead of its clock.
    sent_at_max: Option<u64>,
    replies: Vec<Reply>,
    _permits: Vec<Permit>,
}

impl Conversation {
    pub(crate) fn new(chain: u64, backoff: Backoff) -> Self {
        Self {
            chain,
            next_position: 1,
            unanswered: VecDeque::new(),
            ids: HashSet::new(),
            next: 0,
            in_flight: 0,
            stall: None,
            backoff,
        }
    }

    /// The unanswered message with this id.
    pub(crate) fn twin(&mut self, id: &str) -> Option<&mut Pending> {
        if !self.ids.contains(id) {
            return None;
        }
        self.unanswered
            .iter_mut()
            .find(|pending| pending.message.id == id)
    }

    pub(crate) fn push(&mut self, message: Outgoing, reply: Reply, permit: Permit) {
        self.ids.insert(message.id.clone());
        self.unanswered.push_back(Pending {
            message,
            position: self.next_position,
            in_flight: false,
            watch: 0,
            sent_at_ms: None,
            sent_at_max: None,
            replies: vec![reply],
            _permits: vec![permit],
        });
        self.next_position += 1;
    }

    /// Whether nothing is unanswered.
    pub(crate) fn is_idle(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// Whether [`send`](Self::send) would find something.
    pub(crate) fn has_next(&self) -> bool {
        self.stall.is_none() && self.next < self.unanswered.len()
    }

    /// Whether this message waits for its answer on this connection.
    pub(crate) fn is_in_flight(&self, id: &str) -> bool {
        self.find(id).is_some()
    }

    /// When its pause ends, if it stands still and has nothing on its way; without an instant it ends at once.
    pub(crate) fn pause(&self) -> Option<Option<Instant>> {
        let stall = self.stall.as_ref().filter(|_| self.in_flight == 0)?;
        Some(stall.until)
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.unanswered
            .iter()
            .take(self.next)
            .position(|pending| pending.in_flight && pending.message.id == id)
    }

    /// The next message.
    pub(crate) fn send(&mut self, to: &str, clock: ServerClock, watch: u64) -> Option<v1::Send> {
        if !self.has_next() {
            return None;
        }
        let pending = self.unanswered.get_mut(self.next)?;
        self.next += 1;
        self.in_flight += 1;
        let message = &pending.message;
        pending.in_flight = true;
        pending.watch = watch;
        let sent_at_ms = pending
            .sent_at_ms
            .or(message.sent_at_ms)
            .unwrap_or_else(|| clock.at(message.made));
        let sent_at_ms = sent_at_ms.min(pending.sent_at_max.unwrap_or(u64::MAX));
        pending.sent_at_ms = Some(sent_at_ms);
        Some(v1::Send {
            id: message.id.clone(),
            to: to.to_owned(),
            chain: self.chain,
            position: pending.position,
            kind: message.kind as i32,
            body: message.body.clone(),
            sent_at_ms,
            ttl_ms: message.ttl_ms,
        })
    }

    pub(crate) fn answer(&mut self, answer: v1::SendAnswer, now: Instant) -> Taken {
        let Some(index) = self.find(&answer.id) else {
            return Taken::Stray;
        };
        self.in_flight -= 1;
        let status = answer.status();
        let expected = answer.error.as_ref().map(|error| error.expected_position);
        let refusal = answer.error.map(Refusal::from);
        let pending = &mut self.unanswered[index];
        pending.in_flight = false;
        let refusal = match (status, refusal) {
            (Status::Refused, refusal) => refusal.unwrap_or_else(|| {
                Refusal::of(Code::Internal, "the server refused without a reason")
            }),
            (Status::Unspecified, _) => {
                Refusal::of(Code::Internal, "the server answered without a status")
            }
            (status, _) => {
                self.backoff.reset();
                self.settle(index, status, answer.place, None);
                return Taken::Settled;
            }
        };
        if refusal.retryable {
            return self.stand_still(refusal, expected, now);
        }
        if refusal.code == Code::Internal {
            // Nothing is known about its position: what follows must not depend on it.
            self.stall.get_or_insert_default().new_chain = true;
        }
        self.backoff.reset();
        self.settle(index, Status::Refused, None, Some(refusal));
        Taken::Settled
    }

    fn settle(
        &mut self,
        index: usize,
        status: Status,
        place: Option<v1::Cursor>,
        error: Option<Refusal>,
    ) {
        let Some(pending) = self.unanswered.remove(index) else {
            return;
        };
        self.next -= 1;
        self.ids.remove(&pending.message.id);
        let answer = Answer {
            id: pending.message.id,
            to: pending.message.to,
            status,
            place: place.map(Into::into),
            error,
            origin: Origin {
                chain: self.chain,
                position: pending.position,
                sent_at_ms: pending.sent_at_ms.unwrap_or_default(),
                kind: pending.message.kind as i32,
                watch: pending.watch,
            },
        };
        for reply in pending.replies {
            let _ = reply.send(Ok(answer.clone()));
        }
    }

    fn stand_still(&mut self, refusal: Refusal, expected: Option<u64>, now: Instant) -> Taken {
        // One pause for a burst of refusals: those behind the first say POSITION_GAP because of it.
        let first = self.stall.is_none();
        let stall = self.stall.get_or_insert_default();
        let positions = matches!(refusal.code, Code::PositionGap | Code::UnknownChain);
        match refusal.code {
            Code::PositionGap => stall.expected = expected,
            Code::UnknownChain => stall.new_chain = true,
            _ => {}
        }
        if first || (!positions && stall.until.is_none()) {
            // A question of numbers needs no pause, unless it comes again and again.
            let pause = self.backoff.pause();
            let pause = pause.max(refusal.retry_after.unwrap_or_default());
            stall.until = (!positions || !self.backoff.is_first()).then(|| now + pause);
        }
        if refusal.code == Code::ClockAhead {
            for pending in &mut self.unanswered {
                // Only ever lower: a later time would let an id outlive what the server remembers of it.
                pending.sent_at_max = pending.sent_at_ms.take().or(pending.sent_at_max);
            }
            Taken::Remeasure(refusal)
        } else {
            Taken::Retry(refusal)
        }
    }

    /// Begins again at the first unanswered message; nothing is on its way.
    pub(crate) fn rewind(&mut self) {
        (self.next, self.in_flight) = (0, 0);
        for pending in &mut self.unanswered {
            pending.in_flight = false;
        }
        let Some(stall) = self.stall.take() else {
            return;
        };
        let first = self.unanswered.front().map(|pending| pending.position);
        let before_all =
            matches!((first, stall.expected), (Some(first), Some(expected)) if expected < first);
        if stall.new_chain || before_all {
            self.renumber();
        }
    }

    /// Refuses what is too large and was never sent, and gives how many those were. Nothing is on its way.
    pub(crate) fn refuse_unsent_above(&mut self, bytes_max: usize) -> usize {
        let before = self.unanswered.len();
        for pending in std::mem::take(&mut self.unanswered) {
            let unsent = pending.sent_at_ms.is_none() && pending.sent_at_max.is_none();
            if !unsent || pending.message.body.len() <= bytes_max {
                self.unanswered.push_back(pending);
                continue;
            }
            self.ids.remove(&pending.message.id);
            let answer = too_large(pending.message);
            for reply in pending.replies {
                let _ = reply.send(Ok(answer.clone()));
            }
        }
        let refused = before - self.unanswered.len();
        if refused > 0 {
            // Their positions are nobody's now.
            self.renumber();
        }
        refused
    }

    /// Everything unanswered gets this error.
    pub(crate) fn fail(self, error: &Error) {
        for reply in self
            .unanswered
            .into_iter()
            .flat_map(|pending| pending.replies)
        {
            let _ = reply.send(Err(error.clone()));
        }
    }

    fn renumber(&mut self) {
        self.chain = draw_chain();
        self.next_position = 1;
        for pending in &mut self.unanswered {
            pending.position = self.next_position;
            self.next_position += 1;
        }
    }
}

impl Pending {
    /// Another caller waits for the same answer.
    pub(crate) fn join(&mut self, reply: Reply, permit: Permit) {
        self.replies.push(reply);
        self._permits.push(permit);
    }
}

/// The answer to a message that is not worth sending.
pub(crate) fn too_large(message: Outgoing) -> Answer {
    let why = "the body is larger than the server takes";
    Answer {
        id: message.id,
        to: message.to,
        status: Status::Refused,
        place: None,
        error: Some(Refusal::of(Code::TooLarge, why)),
        origin: Origin {
            chain: 0,
            position: 0,
            sent_at_ms: 0,
            kind: message.kind as i32,
            watch: 0,
        },
    }
}

/// Never 0.
pub(crate) fn draw_chain() -> u64 {
    rand::random_range(1..=u64::MAX)
}

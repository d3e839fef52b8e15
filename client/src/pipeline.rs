//! What has been handed to the client and is not answered: per conversation in order, numbered, sent, sent again.
//!
//! Within a conversation nothing overtakes. After a retryable refusal the conversation stands still until everything it
//! has on its way is answered, pauses, and then goes on from its first unanswered message, ids unchanged. Other
//! conversations go on meanwhile. When the server does not know the chain any more, or wants a position of it that lies
//! before all that is unanswered, the conversation goes on under a new chain: always safe, because ids are what makes a
//! message one.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use roost_proto::v1::{self, Code, Status};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::{Error, Refusal};
use crate::message::{Answer, Origin, Outgoing};

/// Conversations whose chain is kept while nothing is unanswered in them.
const IDLE_CONVERSATIONS_MAX: usize = 4096;

pub(crate) type Reply = oneshot::Sender<Result<Answer, Error>>;

/// The server's clock, as far as one greeting tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerClock {
    pub(crate) server_ms: u64,
    pub(crate) at: Instant,
}

impl ServerClock {
    fn at(&self, instant: Instant) -> u64 {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match instant.checked_duration_since(self.at) {
            Some(since) => self.server_ms.saturating_add(ms(since)),
            None => self
                .server_ms
                .saturating_sub(ms(self.at.duration_since(instant))),
        }
    }
}

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
pub(crate) struct Pipeline {
    conversations: HashMap<Arc<str>, Conversation>,
    /// Conversations that may have something to send, in turn.
    ready: VecDeque<Arc<str>>,
    /// Conversations that stand still and have nothing on its way, by the end of their pause.
    paused: BTreeSet<(Instant, Arc<str>)>,
    /// For conversations that begin.
    chain: u64,
    backoff: Backoff,
    in_flight: usize,
    pending: usize,
    /// What the server takes as a body, once a greeting has told.
    body_bytes_max: Option<usize>,
}

#[derive(Debug)]
struct Conversation {
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
    queued: bool,
}

#[derive(Debug, Default)]
struct Stall {
    until: Option<Instant>,
    new_chain: bool,
    expected: Option<u64>,
}

#[derive(Debug)]
struct Pending {
    message: Outgoing,
    position: u64,
    in_flight: bool,
    watch: u64,
    /// On the server's clock, as it was when the message was first sent.
    sent_at_ms: Option<u64>,
    /// What it was before the server found it ahead of its clock.
    sent_at_max: Option<u64>,
    replies: Vec<Reply>,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Pipeline {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            conversations: HashMap::new(),
            ready: VecDeque::new(),
            paused: BTreeSet::new(),
            chain: draw_chain(),
            backoff,
            in_flight: 0,
            pending: 0,
            body_bytes_max: None,
        }
    }

    /// The server takes bodies of this many bytes: what is larger is refused here, and never sent, because a frame
    /// beyond the server's bound would end the stream and everything else on it. What has been sent before may have
    /// been accepted, under another bound: only the server can answer it.
    pub(crate) fn limit_bodies(&mut self, bytes_max: usize) {
        self.body_bytes_max = Some(bytes_max);
        for conversation in self.conversations.values_mut() {
            self.pending -= conversation.refuse_unsent_above(bytes_max);
        }
    }

    /// Takes a message. The permit is given back with the answer. An id that waits for its answer is not sent twice:
    /// both callers get that answer.
    pub(crate) fn push(
        &mut self,
        message: Outgoing,
        reply: Reply,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let to: Arc<str> = message.to.as_str().into();
        self.forget_idle();
        let (chain, backoff) = (self.chain, self.backoff);
        let conversation = self
            .conversations
            .entry(Arc::clone(&to))
            .or_insert_with(|| Conversation::new(chain, backoff));
        let twin = conversation.twin(&message.id);
        if let Some(twin) = twin {
            twin.replies.push(reply);
            twin._permits.extend(permit);
            return;
        }
        if self
            .body_bytes_max
            .is_some_and(|max| message.body.len() > max)
        {
            // It takes no position: what comes behind it goes on.
            let _ = reply.send(Ok(too_large(message)));
            return;
        }
        conversation.push(message, reply, permit);
        self.pending += 1;
        self.enqueue(&to);
    }

    /// The next message to send, if there is any now.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        clock: ServerClock,
        watch: u64,
    ) -> Option<v1::Send> {
        self.wake(now);
        while let Some(to) = self.ready.pop_front() {
            let Some(conversation) = self.conversations.get_mut(&to) else {
                continue;
            };
            conversation.queued = false;
            let Some(send) = conversation.send(&to, clock, watch) else {
                continue;
            };
            self.in_flight += 1;
            self.enqueue(&to);
            return Some(send);
        }
        None
    }

    /// Whether [`next`](Self::next) would find something.
    pub(crate) fn has_next(&mut self, now: Instant) -> bool {
        self.wake(now);
        while let Some(to) = self.ready.front() {
            match self.conversations.get_mut(to) {
                Some(conversation) if conversation.has_next() => return true,
                Some(conversation) => conversation.queued = false,
                None => {}
            }
            self.ready.pop_front();
        }
        false
    }

    /// When a pause ends, if one is on.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.paused.first().map(|(until, _)| *until)
    }

    /// Messages sent on this connection and not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether this message waits for its answer on this connection.
    pub(crate) fn is_in_flight(&self, to: &str, id: &str) -> bool {
        self.conversations
            .get(to)
            .and_then(|conversation| conversation.find(id))
            .is_some()
    }

    pub(crate) fn answer(&mut self, answer: v1::SendAnswer, now: Instant) -> Taken {
        let Some((to, conversation)) = self
            .conversations
            .get_key_value(answer.to.as_str())
            .map(|(to, _)| Arc::clone(to))
            .and_then(|to| Some((Arc::clone(&to), self.conversations.get_mut(&to)?)))
        else {
            return Taken::Stray;
        };
        let Some(index) = conversation.find(&answer.id) else {
            return Taken::Stray;
        };
        conversation.in_flight -= 1;
        self.in_flight -= 1;
        let taken = conversation.answer(index, answer, now);
        if taken == Taken::Settled {
            self.pending -= 1;
        }
        self.settle_stall(&to, now);
        taken
    }

    /// The connection is gone: everything unanswered goes out again on the next, in order.
    pub(crate) fn disconnected(&mut self) {
        self.in_flight = 0;
        self.paused.clear();
        self.ready.clear();
        let mut names: Vec<Arc<str>> = Vec::with_capacity(self.conversations.len());
        for (to, conversation) in &mut self.conversations {
            conversation.queued = false;
            conversation.rewind();
            if !conversation.unanswered.is_empty() {
                names.push(Arc::clone(to));
            }
        }
        for to in names {
            self.enqueue(&to);
        }
    }

    /// Everything unanswered gets this error.
    pub(crate) fn fail(&mut self, error: &Error) {
        for (_, conversation) in self.conversations.drain() {
            for reply in conversation
                .unanswered
                .into_iter()
                .flat_map(|pending| pending.replies)
            {
                let _ = reply.send(Err(error.clone()));
            }
        }
        self.ready.clear();
        self.paused.clear();
        (self.in_flight, self.pending) = (0, 0);
    }

    fn enqueue(&mut self, to: &Arc<str>) {
        if let Some(conversation) = self.conversations.get_mut(to)
            && !conversation.queued
            && conversation.has_next()
        {
            conversation.queued = true;
            self.ready.push_back(Arc::clone(to));
        }
    }

    /// A conversation that stands still and has nothing on its way begins its pause.
    fn settle_stall(&mut self, to: &Arc<str>, now: Instant) {
        if let Some(conversation) = self.conversations.get(to)
            && let Some(stall) = &conversation.stall
            && conversation.in_flight == 0
        {
            self.paused
                .insert((stall.until.unwrap_or(now), Arc::clone(to)));
        }
    }

    /// Ends the pauses that are over.
    fn wake(&mut self, now: Instant) {
        while self.paused.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, to)) = self.paused.pop_first() else {
                return;
            };
            if let Some(conversation) = self.conversations.get_mut(&to) {
                conversation.rewind();
            }
            self.enqueue(&to);
        }
    }

    /// A conversation that was forgotten begins again under another chain: its positions are not known any more.
    fn forget_idle(&mut self) {
        if self.conversations.len() < IDLE_CONVERSATIONS_MAX.max(2 * self.pending) {
            return;
        }
        self.conversations
            .retain(|_, conversation| !conversation.unanswered.is_empty());
        self.chain = draw_chain();
    }
}

impl Conversation {
    fn new(chain: u64, backoff: Backoff) -> Self {
        Self {
            chain,
            next_position: 1,
            unanswered: VecDeque::new(),
            ids: HashSet::new(),
            next: 0,
            in_flight: 0,
            stall: None,
            backoff,
            queued: false,
        }
    }

    /// The unanswered message with this id.
    fn twin(&mut self, id: &str) -> Option<&mut Pending> {
        if !self.ids.contains(id) {
            return None;
        }
        self.unanswered
            .iter_mut()
            .find(|pending| pending.message.id == id)
    }

    fn push(&mut self, message: Outgoing, reply: Reply, permit: Option<OwnedSemaphorePermit>) {
        self.ids.insert(message.id.clone());
        self.unanswered.push_back(Pending {
            message,
            position: self.next_position,
            in_flight: false,
            watch: 0,
            sent_at_ms: None,
            sent_at_max: None,
            replies: vec![reply],
            _permits: permit.into_iter().collect(),
        });
        self.next_position += 1;
    }

    fn has_next(&self) -> bool {
        self.stall.is_none() && self.next < self.unanswered.len()
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.unanswered
            .iter()
            .take(self.next)
            .position(|pending| pending.in_flight && pending.message.id == id)
    }

    fn send(&mut self, to: &str, clock: ServerClock, watch: u64) -> Option<v1::Send> {
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

    fn answer(&mut self, index: usize, answer: v1::SendAnswer, now: Instant) -> Taken {
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
    fn rewind(&mut self) {
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
    fn refuse_unsent_above(&mut self, bytes_max: usize) -> usize {
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

    fn renumber(&mut self) {
        self.chain = draw_chain();
        self.next_position = 1;
        for pending in &mut self.unanswered {
            pending.position = self.next_position;
            self.next_position += 1;
        }
    }
}

/// The answer to a message that is not worth sending.
fn too_large(message: Outgoing) -> Answer {
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
fn draw_chain() -> u64 {
    rand::random_range(1..=u64::MAX)
}

//! What has been handed to the client and is not answered: all conversations, each in its turn.
//!
//! A conversation that stands still, pauses or has its share of the window on its way is passed over; the others go on
//! meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use roost_proto::v1;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::bounds::Permit;
use crate::clock::ServerClock;
use crate::conversation::{Conversation, Reply, Taken, draw_chain, too_large};
use crate::error::Error;
use crate::message::Outgoing;
use crate::turns::Turns;
use crate::window::Window;

/// Conversations whose chain is kept while nothing is unanswered in them.
const IDLE_CONVERSATIONS_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) struct Pipeline {
    conversations: HashMap<Arc<str>, Conversation>,
    turns: Turns,
    /// For conversations that begin.
    chain: u64,
    backoff: Backoff,
    pending: usize,
    /// What the server takes as a body, once a greeting has told.
    body_bytes_max: Option<usize>,
}

impl Pipeline {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            conversations: HashMap::new(),
            turns: Turns::default(),
            chain: draw_chain(),
            backoff,
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
    pub(crate) fn push(&mut self, message: Outgoing, reply: Reply, permit: Permit) {
        let to: Arc<str> = message.to.as_str().into();
        self.forget_idle();
        let (chain, backoff) = (self.chain, self.backoff);
        let conversation = self
            .conversations
            .entry(Arc::clone(&to))
            .or_insert_with(|| Conversation::new(chain, backoff));
        if let Some(twin) = conversation.twin(&message.id) {
            twin.join(reply, permit);
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

    /// The next message to send, if there is any now; it counts in `window`.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        clock: ServerClock,
        watch: u64,
        window: &mut Window,
    ) -> Option<v1::Send> {
        if !self.has_next(now, window) {
            return None;
        }
        let to = self.turns.pop()?;
        let send = self.conversations.get_mut(&to)?.send(&to, clock, watch)?;
        window.sent(&to);
        self.enqueue(&to);
        Some(send)
    }

    /// Whether [`next`](Self::next) would find something.
    pub(crate) fn has_next(&mut self, now: Instant, window: &Window) -> bool {
        self.wake(now);
        let conversations = &self.conversations;
        let speaks = |to: &str| conversations.get(to).is_some_and(Conversation::has_next);
        self.turns.has_next(window, speaks)
    }

    /// When a pause ends, if one is on.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.turns.wakes_at()
    }

    /// Whether this message waits for its answer on this connection.
    pub(crate) fn is_in_flight(&self, to: &str, id: &str) -> bool {
        self.conversations
            .get(to)
            .is_some_and(|conversation| conversation.is_in_flight(id))
    }

    pub(crate) fn answer(&mut self, answer: v1::SendAnswer, now: Instant) -> Taken {
        let Some(to) = self.name(&answer.to) else {
            return Taken::Stray;
        };
        let Some(conversation) = self.conversations.get_mut(&to) else {
            return Taken::Stray;
        };
        let taken = conversation.answer(answer, now);
        if taken == Taken::Settled {
            self.pending -= 1;
        }
        if let Some(until) = conversation.pause() {
            self.turns.pause(&to, until.unwrap_or(now));
        }
        taken
    }

    /// The window has room again for what goes to this recipient.
    pub(crate) fn resume(&mut self, to: &str) {
        if let Some(to) = self.name(to) {
            self.enqueue(&to);
        }
    }

    /// The connection is gone: everything unanswered goes out again on the next, in order.
    pub(crate) fn disconnected(&mut self) {
        self.turns.clear();
        for (to, conversation) in &mut self.conversations {
            conversation.rewind();
            if conversation.has_next() {
                self.turns.enqueue(to);
            }
        }
    }

    /// Everything unanswered gets this error.
    pub(crate) fn fail(&mut self, error: &Error) {
        for (_, conversation) in self.conversations.drain() {
            conversation.fail(error);
        }
        self.turns.clear();
        self.pending = 0;
    }

    fn name(&self, to: &str) -> Option<Arc<str>> {
        let (to, _) = self.conversations.get_key_value(to)?;
        Some(Arc::clone(to))
    }

    fn enqueue(&mut self, to: &Arc<str>) {
        let conversation = self.conversations.get(to);
        if conversation.is_some_and(Conversation::has_next) {
            self.turns.enqueue(to);
        }
    }

    /// Ends the pauses that are over.
    fn wake(&mut self, now: Instant) {
        while let Some(to) = self.turns.wake(now) {
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
            .retain(|_, conversation| !conversation.is_idle());
        self.chain = draw_chain();
    }
}

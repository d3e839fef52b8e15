//! Questions about open messages, on their way and waiting to go: each conversation in its turn, and after a retryable
//! refusal each pauses alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::Refusal;
use crate::turns::Turns;
use crate::window::Window;

#[derive(Debug)]
pub(crate) struct Questions {
    /// Those with a question, on its way or waiting.
    conversations: HashMap<Arc<str>, Conversation>,
    turns: Turns,
    backoff: Backoff,
}

#[derive(Debug)]
struct Conversation {
    /// By message id; in which order they go does not matter.
    waiting: BTreeSet<String>,
    /// With the watch under which each went out.
    on_their_way: HashMap<String, u64>,
    paused: bool,
    backoff: Backoff,
}

impl Conversation {
    fn has_next(&self) -> bool {
        !self.paused && !self.waiting.is_empty()
    }
}

impl Questions {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            conversations: HashMap::new(),
            turns: Turns::default(),
            backoff,
        }
    }

    /// Is to be asked, unless it is being asked already.
    pub(crate) fn push(&mut self, to: &str, id: &str) {
        let to = self.name(to).unwrap_or_else(|| to.into());
        let backoff = self.backoff;
        let conversation = self
            .conversations
            .entry(Arc::clone(&to))
            .or_insert_with(|| Conversation {
                waiting: BTreeSet::new(),
                on_their_way: HashMap::new(),
                paused: false,
                backoff,
            });
        if !conversation.on_their_way.contains_key(id) {
            conversation.waiting.insert(id.to_owned());
            self.enqueue(&to);
        }
    }

    /// Nobody wants to know any more; a question on its way is still answered.
    pub(crate) fn forget(&mut self, to: &str, id: &str) {
        if let Some(conversation) = self.conversations.get_mut(to) {
            conversation.waiting.remove(id);
        }
        self.drop_idle(to);
    }

    /// Whether [`next`](Self::next) would find something.
    pub(crate) fn has_next(&mut self, now: Instant, window: &Window) -> bool {
        self.wake(now);
        let conversations = &self.conversations;
        let speaks = |to: &str| conversations.get(to).is_some_and(Conversation::has_next);
        self.turns.has_next(window, speaks)
    }

    /// Recipient and id of the next question, which goes out under this watch. A message that `is_being_sent` waits: the
    /// answer to it would be mistaken for the question's.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        watch: u64,
        window: &mut Window,
        is_being_sent: impl Fn(&str, &str) -> bool,
    ) -> Option<(Arc<str>, String)> {
        while self.has_next(now, window) {
            let to = self.turns.pop()?;
            let conversation = self.conversations.get_mut(&to)?;
            let id = conversation.waiting.pop_first()?;
            if is_being_sent(&to, &id) {
                conversation.waiting.insert(id);
                self.pause(&to, now, None);
                continue;
            }
            conversation.on_their_way.insert(id.clone(), watch);
            window.sent(&to);
            self.enqueue(&to);
            return Some((to, id));
        }
        None
    }

    /// When a pause ends, if one is on.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.turns.wakes_at()
    }

    /// Whether this is on its way.
    pub(crate) fn is_asked(&self, to: &str, id: &str) -> bool {
        self.conversations
            .get(to)
            .is_some_and(|conversation| conversation.on_their_way.contains_key(id))
    }

    /// It is not on its way any more; returns the watch under which it went out. To be followed by
    /// [`again`](Self::again) or [`progress`](Self::progress).
    pub(crate) fn answered(&mut self, to: &str, id: &str) -> Option<u64> {
        self.conversations.get_mut(to)?.on_their_way.remove(id)
    }

    /// Asks again, after a pause of the whole conversation.
    pub(crate) fn again(&mut self, to: &str, id: &str, refusal: &Refusal, now: Instant) {
        self.push(to, id);
        if let Some(to) = self.name(to) {
            self.pause(&to, now, Some(refusal));
        }
    }

    /// The conversation gets answers.
    pub(crate) fn progress(&mut self, to: &str) {
        if let Some(conversation) = self.conversations.get_mut(to) {
            conversation.backoff.reset();
        }
        self.drop_idle(to);
    }

    /// The window has room again for what goes to this recipient.
    pub(crate) fn resume(&mut self, to: &str) {
        if let Some(to) = self.name(to) {
            self.enqueue(&to);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.conversations.clear();
        self.turns.clear();
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

    fn pause(&mut self, to: &Arc<str>, now: Instant, refusal: Option<&Refusal>) {
        let Some(conversation) = self.conversations.get_mut(to) else {
            return;
        };
        // One pause for a burst of refusals.
        if conversation.paused {
            return;
        }
        conversation.paused = true;
        let hint = refusal.and_then(|refusal| refusal.retry_after);
        let pause = conversation.backoff.pause().max(hint.unwrap_or_default());
        self.turns.pause(to, now + pause);
    }

    /// Ends the pauses that are over.
    fn wake(&mut self, now: Instant) {
        while let Some(to) = self.turns.wake(now) {
            if let Some(conversation) = self.conversations.get_mut(&to) {
                conversation.paused = false;
            }
            self.enqueue(&to);
            self.drop_idle(&to);
        }
    }

    fn drop_idle(&mut self, to: &str) {
        let idle = |conversation: &Conversation| {
            conversation.waiting.is_empty()
                && conversation.on_their_way.is_empty()
                && !conversation.paused
        };
        if self.conversations.get(to).is_some_and(idle) {
            self.conversations.remove(to);
        }
    }
}

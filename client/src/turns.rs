//! Whose turn it is: conversations that may have something to say, one after the other, and those that pause.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use crate::window::Window;

#[derive(Debug, Default)]
pub(crate) struct Turns {
    ready: VecDeque<Arc<str>>,
    /// What stands in `ready`, once each.
    queued: HashSet<Arc<str>>,
    /// By the end of their pause.
    paused: BTreeSet<(Instant, Arc<str>)>,
}

impl Turns {
    /// Puts it behind the others, unless it stands there already.
    pub(crate) fn enqueue(&mut self, conversation: &Arc<str>) {
        if self.queued.insert(Arc::clone(conversation)) {
            self.ready.push_back(Arc::clone(conversation));
        }
    }

    /// Whether it is the turn of one that speaks and has room in the window. Whoever cannot loses its turn, and is to be
    /// enqueued when it can: with an answer, after its pause, on the next connection.
    pub(crate) fn has_next(&mut self, window: &Window, speaks: impl Fn(&str) -> bool) -> bool {
        while window.has_room()
            && let Some(first) = self.ready.front()
        {
            if speaks(first) && window.has_room_for(first) {
                return true;
            }
            self.pop();
        }
        false
    }

    /// Whose turn it is; it does not come again by itself.
    pub(crate) fn pop(&mut self) -> Option<Arc<str>> {
        let conversation = self.ready.pop_front()?;
        self.queued.remove(&conversation);
        Some(conversation)
    }

    /// Nothing of it before `until`; [`wake`](Self::wake) tells when that is over.
    pub(crate) fn pause(&mut self, conversation: &Arc<str>, until: Instant) {
        self.paused.insert((until, Arc::clone(conversation)));
    }

    /// One whose pause is over.
    pub(crate) fn wake(&mut self, now: Instant) -> Option<Arc<str>> {
        self.paused.first().filter(|(until, _)| *until <= now)?;
        self.paused
            .pop_first()
            .map(|(_, conversation)| conversation)
    }

    /// When the next pause is over, if one is on.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.paused.first().map(|(until, _)| *until)
    }

    pub(crate) fn clear(&mut self) {
        self.ready.clear();
        self.queued.clear();
        self.paused.clear();
    }
}

//! What callers may have in hand: so much in all, and of that a share for one conversation, so that one which stands
//! still never takes the room of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Below this many known conversations nobody looks for those that are over.
const SWEEP_MIN: usize = 64;

#[derive(Debug)]
pub(crate) struct Bound {
    all: Arc<Semaphore>,
    conversation_max: usize,
    conversations: Mutex<Conversations>,
}

#[derive(Debug)]
struct Conversations {
    /// Alive while something of the conversation has room, or waits for it.
    room: HashMap<Box<str>, Weak<Semaphore>>,
    sweep_at: usize,
}

/// Room for one; dropping it gives the room back.
#[derive(Debug)]
pub(crate) struct Permit {
    _all: OwnedSemaphorePermit,
    _share: OwnedSemaphorePermit,
}

impl Bound {
    pub(crate) fn new(max: usize, conversation_max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self {
            all: Arc::new(Semaphore::new(max)),
            conversation_max: conversation_max.min(max),
            conversations: Mutex::new(Conversations {
                room: HashMap::new(),
                sweep_at: SWEEP_MIN,
            }),
        }
    }

    /// Waits for room; first in the conversation's own share, where it holds nothing that others could use.
    pub(crate) async fn room(&self, conversation: &str) -> Result<Permit, AcquireError> {
        let share = self.share(conversation).acquire_owned().await?;
        let all = Arc::clone(&self.all).acquire_owned().await?;
        Ok(Permit {
            _all: all,
            _share: share,
        })
    }

    fn share(&self, conversation: &str) -> Arc<Semaphore> {
        let mut conversations = self
            .conversations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = conversations.room.get(conversation);
        if let Some(share) = known.and_then(Weak::upgrade) {
            return share;
        }
        conversations.sweep();
        let share = Arc::new(Semaphore::new(self.conversation_max));
        let weak = Arc::downgrade(&share);
        conversations.room.insert(conversation.into(), weak);
        share
    }
}

impl Conversations {
    /// Forgets those of which nothing is left, whenever there are twice as many as the last time.
    fn sweep(&mut self) {
        if self.room.len() >= self.sweep_at {
            self.room.retain(|_, share| share.strong_count() > 0);
            self.sweep_at = SWEEP_MIN.max(2 * self.room.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn now(bound: &Bound, conversation: &str) -> Option<Permit> {
        bound
            .room(conversation)
            .now_or_never()
            .map(|permit| permit.expect("never closed"))
    }

    /// A conversation that has taken its share waits, and others do not; what it gives back it may take again.
    #[test]
    fn a_share_leaves_room_for_others() {
        let bound = Bound::new(5, 2);
        let first = now(&bound, "bob");
        let second = now(&bound, "bob");
        assert!(first.is_some() && second.is_some());
        assert!(now(&bound, "bob").is_none(), "its share is taken");
        let others: Vec<_> = ["carol", "dave", "erin"].map(|to| now(&bound, to)).into();
        assert!(others.iter().all(Option::is_some));
        assert!(now(&bound, "frank").is_none(), "five in all");
        drop(first);
        assert!(now(&bound, "bob").is_some());
    }

    #[test]
    fn conversations_that_are_over_are_forgotten() {
        let bound = Bound::new(10, 2);
        let kept = now(&bound, "kept");
        for number in 0..10 * SWEEP_MIN {
            assert!(now(&bound, &number.to_string()).is_some());
        }
        let conversations = bound.conversations.lock().expect("not poisoned");
        assert!(conversations.room.len() <= SWEEP_MIN);
        assert!(conversations.room.contains_key("kept"));
        drop((conversations, kept));
    }
}

//! What is on its way to the server and not answered, as the server's greeting bounds it: in all, and to each recipient.
//!
//! One recipient's share is what keeps a conversation that gets no answers (its shard has no majority) from taking the
//! room of all others.

use std::collections::HashMap;

#[derive(Debug)]
pub(crate) struct Window {
    max: usize,
    conversation_max: usize,
    total: usize,
    conversations: HashMap<Box<str>, usize>,
}

impl Window {
    /// Room for one, until a greeting says more.
    pub(crate) fn new() -> Self {
        Self {
            max: 1,
            conversation_max: 1,
            total: 0,
            conversations: HashMap::new(),
        }
    }

    /// What the server says; it says 0 of a conversation when it has no bound of its own for it.
    pub(crate) fn limit(&mut self, max: u32, conversation_max: u32) {
        self.max = (max as usize).max(1);
        self.conversation_max = match conversation_max as usize {
            0 => self.max,
            share => share,
        };
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    pub(crate) fn has_room(&self) -> bool {
        self.total < self.max
    }

    pub(crate) fn has_room_for(&self, to: &str) -> bool {
        let on_its_way = self.conversations.get(to).copied().unwrap_or(0);
        self.has_room() && on_its_way < self.conversation_max
    }

    pub(crate) fn sent(&mut self, to: &str) {
        self.total += 1;
        match self.conversations.get_mut(to) {
            Some(on_its_way) => *on_its_way += 1,
            None => {
                self.conversations.insert(to.into(), 1);
            }
        }
    }

    pub(crate) fn answered(&mut self, to: &str) {
        let Some(on_its_way) = self.conversations.get_mut(to) else {
            return;
        };
        self.total -= 1;
        *on_its_way -= 1;
        if *on_its_way == 0 {
            self.conversations.remove(to);
        }
    }

    /// Nothing will be answered any more: the connection is gone.
    pub(crate) fn clear(&mut self) {
        self.total = 0;
        self.conversations.clear();
    }
}

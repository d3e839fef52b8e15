//! Read marks: watermarks per conversation, one on its way each, sent once the acknowledgement before them is committed.

use std::collections::BTreeMap;

use roost_proto::v1;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::bounds::Permit;
use crate::error::{Error, Refusal};
use crate::message::Cursor;

pub(crate) type Reply = oneshot::Sender<Result<Cursor, Error>>;

#[derive(Debug)]
pub(crate) struct Reads {
    /// Bounded by the permits that each waiting mark holds.
    conversations: BTreeMap<String, Conversation>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Conversation {
    in_flight: Option<Cursor>,
    not_before: Option<Instant>,
    backoff: Backoff,
    waiting: Vec<(Cursor, Reply, Permit)>,
}

impl Conversation {
    /// The furthest mark that waits and may be sent.
    fn open(&self, committed: Option<Cursor>) -> Option<Cursor> {
        self.waiting
            .iter()
            .map(|(cursor, ..)| *cursor)
            .filter(|cursor| Some(*cursor) <= committed)
            .max()
    }

    fn has_next(&self, committed: Option<Cursor>, now: Instant) -> bool {
        self.in_flight.is_none()
            && self.not_before.is_none_or(|until| until <= now)
            && self.open(committed).is_some()
    }

    fn settle(&mut self, up_to: Cursor, result: &Result<Cursor, Error>) {
        for (cursor, reply, permit) in std::mem::take(&mut self.waiting) {
            if cursor <= up_to {
                let _ = reply.send(result.clone());
            } else {
                self.waiting.push((cursor, reply, permit));
            }
        }
    }
}

impl Reads {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            conversations: BTreeMap::new(),
            backoff,
        }
    }

    pub(crate) fn push(&mut self, from: String, up_to: Cursor, reply: Reply, permit: Permit) {
        let backoff = self.backoff;
        self.conversations
            .entry(from)
            .or_insert_with(|| Conversation {
                in_flight: None,
                not_before: None,
                backoff,
                waiting: Vec::new(),
            })
            .waiting
            .push((up_to, reply, permit));
    }

    pub(crate) fn has_next(&self, committed: Option<Cursor>, now: Instant) -> bool {
        self.conversations
            .values()
            .any(|conversation| conversation.has_next(committed, now))
    }

    pub(crate) fn next(&mut self, committed: Option<Cursor>, now: Instant) -> Option<v1::ReadMark> {
        let (from, conversation) = self
            .conversations
            .iter_mut()
            .find(|(_, conversation)| conversation.has_next(committed, now))?;
        let up_to = conversation.open(committed)?;
        conversation.in_flight = Some(up_to);
        Some(v1::ReadMark {
            from: from.clone(),
            up_to: Some(up_to.into()),
        })
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.conversations
            .values()
            .filter_map(|conversation| conversation.not_before)
            .min()
    }

    pub(crate) fn answer(&mut self, answer: v1::ReadAnswer, now: Instant) {
        let Some(conversation) = self.conversations.get_mut(&answer.from) else {
            return;
        };
        let Some(asked) = conversation.in_flight.take() else {
            return;
        };
        match answer.error.map(Refusal::from) {
            None => {
                conversation.not_before = None;
                conversation.backoff.reset();
                let up_to = answer.up_to.map_or(asked, Cursor::from);
                conversation.settle(asked, &Ok(up_to));
            }
            Some(refusal) if refusal.retryable => {
                let pause = conversation.backoff.pause();
                let pause = pause.max(refusal.retry_after.unwrap_or_default());
                conversation.not_before = Some(now + pause);
            }
            Some(refusal) => conversation.settle(asked, &Err(Error::Refused(refusal))),
        }
        if conversation.waiting.is_empty() {
            self.conversations.remove(&answer.from);
        }
    }

    pub(crate) fn disconnected(&mut self) {
        for conversation in self.conversations.values_mut() {
            conversation.in_flight = None;
            conversation.not_before = None;
        }
    }

    pub(crate) fn fail(&mut self, error: &Error) {
        for (_, conversation) in std::mem::take(&mut self.conversations) {
            for (_, reply, _) in conversation.waiting {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

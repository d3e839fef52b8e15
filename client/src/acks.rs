//! The cumulative acknowledgement: one on its way at a time, the newest wish next, until it is committed.

use roost_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::{Error, Refusal};
use crate::message::Cursor;

/// What the caller wants acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) cursor: Option<Cursor>,
    pub(crate) receipts: Option<u64>,
}

pub(crate) type Reply = oneshot::Sender<Result<Cursor, Error>>;

#[derive(Debug)]
pub(crate) struct Acks {
    wanted: watch::Receiver<Wanted>,
    committed: Option<Cursor>,
    /// How far this session has handed entries to us: it takes no acknowledgement beyond.
    handed: Option<Cursor>,
    /// How far any session has.
    received: Option<Cursor>,
    /// How far this session has been told. It makes room by what it is told, so also what others have committed is said.
    said: Option<Cursor>,
    in_flight: Option<Cursor>,
    /// Refused for good: not asked for again.
    refused: Option<(Cursor, Refusal)>,
    receipts_sent: Option<u64>,
    not_before: Option<Instant>,
    backoff: Backoff,
    /// Bounded by the permits.
    waiting: Vec<(Cursor, Reply, OwnedSemaphorePermit)>,
}

impl Acks {
    pub(crate) fn new(wanted: watch::Receiver<Wanted>, backoff: Backoff) -> Self {
        Self {
            wanted,
            committed: None,
            handed: None,
            received: None,
            said: None,
            in_flight: None,
            refused: None,
            receipts_sent: None,
            not_before: None,
            backoff,
            waiting: Vec::new(),
        }
    }

    /// The device's cursor, as the greeting tells it.
    pub(crate) fn connected(&mut self, committed: Option<Cursor>) {
        if let Some(committed) = committed {
            self.handed(committed);
            self.said = Some(committed);
            self.commit(committed);
        }
    }

    /// This session has handed over everything up to here.
    pub(crate) fn handed(&mut self, up_to: Cursor) {
        self.handed = self.handed.max(Some(up_to));
        self.received = self.received.max(self.handed);
    }

    pub(crate) fn disconnected(&mut self) {
        self.handed = None;
        self.said = None;
        self.in_flight = None;
        self.receipts_sent = None;
        self.not_before = None;
    }

    /// Everything up to here is safely the caller's.
    pub(crate) fn wanted(&self) -> Option<Cursor> {
        self.wanted.borrow().cursor
    }

    pub(crate) fn committed(&self) -> Option<Cursor> {
        self.committed
    }

    /// Whether nothing is left to be said.
    pub(crate) fn is_done(&self) -> bool {
        self.open().is_none()
    }

    /// Answers once everything up to `cursor` is committed.
    pub(crate) fn wait(&mut self, cursor: Cursor, reply: Reply, permit: OwnedSemaphorePermit) {
        self.waiting.push((cursor, reply, permit));
        self.settle();
    }

    pub(crate) fn next(&mut self, now: Instant) -> Option<v1::Ack> {
        if !self.has_next(now) {
            return None;
        }
        let cursor = self.due()?;
        self.in_flight = Some(cursor);
        Some(v1::Ack {
            cursor: Some(cursor.into()),
        })
    }

    pub(crate) fn has_next(&self, now: Instant) -> bool {
        self.in_flight.is_none()
            && self.due().is_some()
            && self.not_before.is_none_or(|until| until <= now)
    }

    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.due().is_some())
    }

    pub(crate) fn has_receipts(&self) -> bool {
        self.wanted.borrow().receipts > self.receipts_sent
    }

    pub(crate) fn next_receipts(&mut self) -> Option<v1::ReceiptAck> {
        let revision = self.wanted.borrow().receipts;
        if revision <= self.receipts_sent {
            return None;
        }
        self.receipts_sent = revision;
        revision.map(|revision| v1::ReceiptAck { revision })
    }

    /// The refusal, if the acknowledgement was refused for good.
    pub(crate) fn answer(&mut self, answer: v1::AckAnswer, now: Instant) -> Option<Refusal> {
        let asked = self.in_flight.take();
        let before = self.committed;
        let Some(refusal) = answer.error.map(Refusal::from) else {
            if let Some(committed) = answer.cursor {
                self.commit(committed.into());
            }
            if self.committed >= asked {
                self.said = self.said.max(asked);
            }
            if self.committed > before {
                self.backoff.reset();
                self.not_before = None;
            } else if self.committed < asked {
                self.not_before = Some(now + self.backoff.pause());
            }
            return None;
        };
        if refusal.retryable {
            let pause = self.backoff.pause();
            self.not_before = Some(now + pause.max(refusal.retry_after.unwrap_or_default()));
            return None;
        }
        // What is wanted beyond what was asked for would be refused for the same reason, again and again.
        let asked = asked.max(self.wanted())?;
        self.refused = Some((asked, refusal.clone()));
        self.settle();
        Some(refusal)
    }

    pub(crate) fn fail(&mut self, error: &Error) {
        for (_, reply, _) in self.waiting.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// What is wanted and neither committed nor refused.
    fn open(&self) -> Option<Cursor> {
        self.unrefused()
            .filter(|wanted| Some(*wanted) > self.committed)
    }

    fn unrefused(&self) -> Option<Cursor> {
        let refused = self.refused.as_ref().map(|(cursor, _)| *cursor);
        self.wanted().filter(|wanted| Some(*wanted) > refused)
    }

    /// What may be said of it in this session. What only an earlier one handed over comes again first.
    fn due(&self) -> Option<Cursor> {
        let wanted = self.unrefused()?;
        // What nobody ever handed over is the server's to refuse.
        let due = match Some(wanted) <= self.received {
            true => self.handed.map_or(wanted, |handed| wanted.min(handed)),
            false => wanted,
        };
        (Some(due) > self.said).then_some(due)
    }

    fn commit(&mut self, committed: Cursor) {
        self.committed = self.committed.max(Some(committed));
        self.settle();
    }

    fn settle(&mut self) {
        for (cursor, reply, permit) in std::mem::take(&mut self.waiting) {
            match (&self.committed, &self.refused) {
                (Some(committed), _) if *committed >= cursor => {
                    let _ = reply.send(Ok(*committed));
                }
                (_, Some((refused, refusal))) if *refused >= cursor => {
                    let _ = reply.send(Err(Error::Refused(refusal.clone())));
                }
                _ => self.waiting.push((cursor, reply, permit)),
            }
        }
    }
}

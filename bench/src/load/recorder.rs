//! What one generator process counts.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::bodies::Bodies;
use crate::latency::{Counts, Latencies};

/// Counts and latencies since the measurement began. Shared by all tasks of the process, which is one thread.
pub(crate) struct Recorder {
    pub(super) bodies: Bodies,
    inner: RefCell<Inner>,
}

struct Inner {
    done: u64,
    refused: u64,
    accepted: Latencies,
    delivered: Latencies,
    told: Latencies,
    worst: Latencies,
    lost: u64,
    twice: u64,
}

/// What a process counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Messages that went the whole way that the job is about.
    pub(crate) done: u64,
    /// Refusals, those included after which a message was sent again.
    pub(crate) refused: u64,
    /// From due to *accepted*.
    pub(crate) accepted: Counts,
    /// From due to the receiver.
    pub(crate) delivered: Counts,
    /// From due to the sender's *delivered*.
    pub(crate) told: Counts,
    /// Of each careful pair, the longest from due to the receiver.
    pub(crate) worst: Counts,
    /// Accepted, and never at the receiver of a careful pair.
    pub(crate) lost: u64,
    /// Handed over again to the receiver of a careful pair.
    pub(crate) twice: u64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            bodies: Bodies::new(),
            inner: RefCell::new(Inner {
                done: 0,
                refused: 0,
                accepted: Latencies::new(),
                delivered: Latencies::new(),
                told: Latencies::new(),
                worst: Latencies::new(),
                lost: 0,
                twice: 0,
            }),
        }
    }

    pub(super) fn done(&self) -> u64 {
        self.inner.borrow().done
    }

    pub(super) fn clear(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.done = 0;
        inner.refused = 0;
        inner.accepted.clear();
        inner.delivered.clear();
        inner.told.clear();
    }

    pub(super) fn outcome(&self) -> Outcome {
        let inner = self.inner.borrow();
        Outcome {
            done: inner.done,
            refused: inner.refused,
            accepted: inner.accepted.counts(),
            delivered: inner.delivered.counts(),
            told: inner.told.counts(),
            worst: inner.worst.counts(),
            lost: inner.lost,
            twice: inner.twice,
        }
    }

    /// So many messages have gone the whole way.
    pub(super) fn count(&self, messages: u64) {
        self.inner.borrow_mut().done += messages;
    }

    pub(super) fn refused(&self) {
        self.inner.borrow_mut().refused += 1;
    }

    pub(super) fn accepted(&self, due: Instant) {
        self.inner.borrow_mut().accepted.record(due.elapsed());
    }

    /// The receiver has this body.
    ///
    /// # Errors
    /// When no sender of this process made it.
    pub(super) fn delivered(&self, body: &[u8]) -> Result<()> {
        let due = self.bodies.due(body);
        let due = due.context("a body that no sender here made")?;
        self.inner.borrow_mut().delivered.record(due.elapsed());
        Ok(())
    }

    pub(super) fn told(&self, due: Instant) {
        self.inner.borrow_mut().told.record(due.elapsed());
    }

    pub(super) fn twice(&self) {
        self.inner.borrow_mut().twice += 1;
    }

    /// A careful pair is through: its longest delivery, and what never came.
    pub(super) fn pair_ended(&self, worst: Duration, lost: u64) {
        let mut inner = self.inner.borrow_mut();
        inner.worst.record(worst);
        inner.lost += lost;
    }
}

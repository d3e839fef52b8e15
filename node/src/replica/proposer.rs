//! Proposing: whatever waits rides in one Raft entry, and one entry at a time is on its way.
//!
//! Batching decides everything here: one proposal in flight with all that waited behind it gives several times the
//! throughput of one command an entry. What nobody waits for waits for company. Order: commands are applied in the order
//! they were queued.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use roost_proto::storage::{EncodedBatch, Limits, Outcome, Proposal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::ShardClock;
use super::error::Error;
use crate::metrics;
use crate::raft::{Group, ProposeError};
use crate::types::ShardId;

/// How large a proposal and the queue before it may grow.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Items (messages count each, other commands one) in one proposal.
    pub batch_entries_max: usize,
    /// Bytes in one proposal, unless a single command is larger.
    pub batch_bytes_max: u64,
    /// Commands that wait.
    pub pending_max: usize,
    /// Bytes that wait.
    pub pending_bytes_max: u64,
    /// How long a proposal may take until its fate is called unknown.
    pub timeout: Duration,
}

/// What to tell a caller who came when the queue was full, milliseconds.
const OVERLOAD_RETRY_MS: u64 = 50;

/// How long after a proposal began the next one waits for company, if nobody waits for what it holds.
const GATHER: Duration = Duration::from_millis(50);

/// The way into a shard's log.
pub(super) struct Proposer {
    queue: mpsc::Sender<Waiting>,
    pending_bytes: Arc<AtomicU64>,
    paused: watch::Sender<bool>,
    bounds: Bounds,
}

struct Waiting {
    proposal: Proposal,
    reply: oneshot::Sender<Result<Outcome, Error>>,
}

impl Waiting {
    fn bytes(&self) -> u64 {
        self.proposal.command.len() as u64
    }

    fn is_urgent(&self) -> bool {
        !self.proposal.may_wait
    }
}

impl Proposer {
    /// Starts the task that proposes; it ends with `stop`.
    pub(super) fn start(
        shard: ShardId,
        group: Arc<Group>,
        clock: Arc<ShardClock>,
        limits: Limits,
        bounds: Bounds,
        stop: CancellationToken,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(bounds.pending_max);
        let (paused, is_paused) = watch::channel(false);
        let pending_bytes = Arc::new(AtomicU64::new(0));
        let task = Task {
            group,
            clock,
            limits,
            bounds,
            waiting,
            is_paused,
            pending_bytes: Arc::clone(&pending_bytes),
            carried: VecDeque::new(),
            last_began: Instant::now(),
            pending_gauge: metrics::PENDING_PROPOSALS.of(shard),
            bytes_gauge: metrics::PENDING_BYTES.of(shard),
        };
        tokio::spawn(async move { stop.run_until_cancelled(task.run()).await });
        Self {
            queue,
            pending_bytes,
            paused,
            bounds,
        }
    }

    /// Proposes a command and waits until it is applied here.
    ///
    /// # Errors
    /// [`Error::Overloaded`] without having queued it; otherwise what became of the proposal.
    pub(super) async fn propose(&self, proposal: Proposal) -> Result<Outcome, Error> {
        let (reply, outcome) = oneshot::channel();
        let waiting = Waiting { proposal, reply };
        let bytes = waiting.bytes();
        let before = self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        let queued =
            before <= self.bounds.pending_bytes_max && self.queue.try_send(waiting).is_ok();
        if !queued {
            self.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(if self.queue.is_closed() {
                Error::Stopping
            } else {
                Error::Overloaded {
                    retry_after_ms: OVERLOAD_RETRY_MS,
                }
            });
        }
        outcome.await.unwrap_or(Err(Error::Unknown))
    }

    /// Holds proposals back, or lets them go on, around a hand-over of leadership.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
    }
}

struct Task {
    group: Arc<Group>,
    clock: Arc<ShardClock>,
    limits: Limits,
    bounds: Bounds,
    waiting: mpsc::Receiver<Waiting>,
    is_paused: watch::Receiver<bool>,
    pending_bytes: Arc<AtomicU64>,
    /// Taken from the queue for the next batch, or too much for the last; at most one batch's worth.
    carried: VecDeque<Waiting>,
    /// When the last proposal began.
    last_began: Instant,
    pending_gauge: ::metrics::Gauge,
    bytes_gauge: ::metrics::Gauge,
}

impl Task {
    async fn run(mut self) {
        let batch_commands = metrics::BATCH_COMMANDS.handle();
        let latency = metrics::PROPOSE_LATENCY.handle();
        while self.gather().await {
            // Fails only when the proposer itself is gone, and then nobody waits.
            if self.is_paused.wait_for(|paused| !paused).await.is_err() {
                return;
            }
            self.take_what_came();
            let (proposals, replies) = self.next_batch();
            batch_commands.record(proposals.len() as f64);
            self.last_began = Instant::now();
            let outcomes = self.propose(proposals).await;
            latency.record(self.last_began.elapsed());
            answer(replies, outcomes);
        }
    }

    /// Waits for something to propose: what nobody waits for only so that more comes along, for [`GATHER`] after the last
    /// proposal. False when nothing will come any more.
    async fn gather(&mut self) -> bool {
        let until = self.last_began + GATHER;
        let mut taken = Vec::new();
        let mut urgent = self.carried.iter().any(Waiting::is_urgent);
        while !urgent && self.room() > 0 {
            let more = self.waiting.recv_many(&mut taken, self.room());
            let came = match self.carried.is_empty() {
                true => more.await,
                false => match tokio::time::timeout_at(until, more).await {
                    Ok(came) => came,
                    Err(_) => return true,
                },
            };
            if came == 0 {
                return false;
            }
            urgent = taken.iter().any(Waiting::is_urgent);
            self.carried.extend(taken.drain(..));
        }
        true
    }

    fn take_what_came(&mut self) {
        while self.room() > 0
            && let Ok(more) = self.waiting.try_recv()
        {
            self.carried.push_back(more);
        }
    }

    fn room(&self) -> usize {
        self.bounds
            .batch_entries_max
            .saturating_sub(self.carried.len())
    }

    fn next_batch(&mut self) -> (Vec<Proposal>, Vec<oneshot::Sender<Result<Outcome, Error>>>) {
        let (mut items, mut bytes) = (0, 0);
        let (mut proposals, mut replies) = (Vec::new(), Vec::new());
        while let Some(next) = self.carried.front() {
            items += next.proposal.items as usize;
            bytes += next.bytes();
            let full = items > self.bounds.batch_entries_max || bytes > self.bounds.batch_bytes_max;
            if full && !proposals.is_empty() {
                break;
            }
            let next = self.carried.pop_front().expect("front was there");
            self.pending_bytes
                .fetch_sub(next.bytes(), Ordering::Relaxed);
            // A caller who has gone does not want it any more; its client will send it again.
            if !next.reply.is_closed() {
                proposals.push(next.proposal);
                replies.push(next.reply);
            }
        }
        self.pending_gauge
            .set((self.waiting.len() + self.carried.len()) as f64);
        self.bytes_gauge
            .set(self.pending_bytes.load(Ordering::Relaxed) as f64);
        (proposals, replies)
    }

    async fn propose(&self, proposals: Vec<Proposal>) -> Result<Vec<Outcome>, Error> {
        if proposals.is_empty() {
            return Ok(Vec::new());
        }
        let levels = proposals.iter().map(|proposal| proposal.feature_level);
        let batch = EncodedBatch {
            time_ms: self.clock.now_ms(),
            limits: Some(self.limits),
            feature_level: levels.max().unwrap_or_default(),
            commands: proposals
                .into_iter()
                .map(|proposal| proposal.command)
                .collect(),
        };
        let batch = Bytes::from(batch.encode_to_vec());
        metrics::BATCH_BYTES.handle().record(batch.len() as f64);
        let proposed = tokio::time::timeout(self.bounds.timeout, self.group.propose(batch)).await;
        match proposed {
            Ok(Ok(outcomes)) => Ok(outcomes),
            Ok(Err(ProposeError::NotLeader { hint })) => Err(Error::NotLeader { leader: hint }),
            Ok(Err(ProposeError::Stopped)) => Err(Error::NoReplica),
            Ok(Err(ProposeError::Unknown)) | Err(_) => {
                metrics::UNKNOWN_PROPOSALS.handle().increment(1);
                Err(Error::Unknown)
            }
        }
    }
}

fn answer(
    replies: Vec<oneshot::Sender<Result<Outcome, Error>>>,
    outcomes: Result<Vec<Outcome>, Error>,
) {
    match outcomes {
        Ok(outcomes) => {
            assert_eq!(outcomes.len(), replies.len(), "apply answers every command");
            for (reply, outcome) in replies.into_iter().zip(outcomes) {
                // Nobody waits any more: the client will ask again under the same id.
                drop(reply.send(Ok(outcome)));
            }
        }
        Err(error) => {
            for reply in replies {
                drop(reply.send(Err(error.clone())));
            }
        }
    }
}

#[cfg(test)]
#[path = "proposer_tests.rs"]
mod tests;

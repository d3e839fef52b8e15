//! Proposing: whatever waits rides in one Raft entry, and one entry at a time is on its way.
//!
//! Batching decides everything here: one proposal in flight with all that waited behind it gives several times the
//! throughput of one command an entry. Order: commands are applied in the order they were queued.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use roost_proto::storage::{Batch, Command, Limits, Outcome, command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::clock::ShardClock;
use super::error::Error;
use crate::metrics;
use crate::raft::{Group, ProposeError};
use crate::types::ShardId;
use crate::versions::level_of;

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

/// The way into a shard's log.
pub(super) struct Proposer {
    queue: mpsc::Sender<Waiting>,
    pending_bytes: Arc<AtomicU64>,
    paused: watch::Sender<bool>,
    bounds: Bounds,
}

struct Waiting {
    command: Command,
    weight: Weight,
    reply: oneshot::Sender<Result<Outcome, Error>>,
}

#[derive(Clone, Copy)]
struct Weight {
    items: usize,
    bytes: u64,
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
    pub(super) async fn propose(&self, command: Command) -> Result<Outcome, Error> {
        let weight = Weight::of(&command);
        let waiting = self
            .pending_bytes
            .fetch_add(weight.bytes, Ordering::Relaxed);
        let (reply, outcome) = oneshot::channel();
        let queued = waiting <= self.bounds.pending_bytes_max
            && self
                .queue
                .try_send(Waiting {
                    command,
                    weight,
                    reply,
                })
                .is_ok();
        if !queued {
            self.pending_bytes
                .fetch_sub(weight.bytes, Ordering::Relaxed);
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

impl Weight {
    fn of(command: &Command) -> Self {
        let items = match &command.command {
            Some(command::Command::Send(send)) => send.items.len().max(1),
            Some(command::Command::Inbound(inbound)) => inbound.items.len().max(1),
            _ => 1,
        };
        Self {
            items,
            bytes: command.encoded_len() as u64,
        }
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
    /// Taken from the queue, but too much for the last batch; at most one batch's worth.
    carried: VecDeque<Waiting>,
    pending_gauge: ::metrics::Gauge,
    bytes_gauge: ::metrics::Gauge,
}

impl Task {
    async fn run(mut self) {
        let batch_commands = metrics::BATCH_COMMANDS.handle();
        let latency = metrics::PROPOSE_LATENCY.handle();
        let mut taken = Vec::new();
        loop {
            let room = self
                .bounds
                .batch_entries_max
                .saturating_sub(self.carried.len());
            if self.carried.is_empty() && self.waiting.recv_many(&mut taken, room).await == 0 {
                return;
            }
            while taken.len() < room
                && let Ok(more) = self.waiting.try_recv()
            {
                taken.push(more);
            }
            self.carried.extend(taken.drain(..));
            // Fails only when the proposer itself is gone, and then nobody waits.
            if self.is_paused.wait_for(|paused| !paused).await.is_err() {
                return;
            }
            let (commands, replies) = self.next_batch();
            batch_commands.record(commands.len() as f64);
            let started = tokio::time::Instant::now();
            let outcomes = self.propose(commands).await;
            latency.record(started.elapsed());
            answer(replies, outcomes);
        }
    }

    fn next_batch(&mut self) -> (Vec<Command>, Vec<oneshot::Sender<Result<Outcome, Error>>>) {
        let (mut items, mut bytes) = (0, 0);
        let (mut commands, mut replies) = (Vec::new(), Vec::new());
        while let Some(next) = self.carried.front() {
            items += next.weight.items;
            bytes += next.weight.bytes;
            let full = items > self.bounds.batch_entries_max || bytes > self.bounds.batch_bytes_max;
            if full && !commands.is_empty() {
                break;
            }
            let next = self.carried.pop_front().expect("front was there");
            self.pending_bytes
                .fetch_sub(next.weight.bytes, Ordering::Relaxed);
            // A caller who has gone does not want it any more; its client will send it again.
            if !next.reply.is_closed() {
                commands.push(next.command);
                replies.push(next.reply);
            }
        }
        self.pending_gauge
            .set((self.waiting.len() + self.carried.len()) as f64);
        self.bytes_gauge
            .set(self.pending_bytes.load(Ordering::Relaxed) as f64);
        (commands, replies)
    }

    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Error> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let batch = Batch {
            time_ms: self.clock.now_ms(),
            limits: Some(self.limits),
            feature_level: commands
                .iter()
                .filter_map(level_of)
                .max()
                .unwrap_or_default(),
            commands,
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

//! The outbox pump: carries rows of shards that this node leads to the shards they are for.
//!
//! Rows go in order, are applied there once (the destination keeps a mark for each source), and are trimmed here only
//! after that has committed. Each (source, destination) is pumped by itself, so one dead destination holds up nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use roost_proto::storage::{Inbound, InboundItem, OutboxItem, OutboxTrim, command, outcome};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Error, Router};
use crate::metrics;
use crate::replica::{OutboxSignals, Replica, Replicas};
use crate::sabotage::{self, Break};
use crate::shard::receipt_bytes;
use crate::types::ShardId;

/// Rows in one command to the destination.
const ROWS_MAX: usize = 256;
/// Bytes of receipts in one command to the destination, unless a single one is larger: a row may name thousands of
/// ranges, and the command has to fit among the proposals that wait there.
const ROWS_BYTES_MAX: u64 = 32 * 1024;
/// How long one attempt to reach the destination may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// First and longest wait after a failed attempt.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Of every shard, until shards can be restored from a backup: then it rises, so that marks of the lost rows do not hide
/// the new ones.
const SHARD_INCARNATION: u64 = 1;

/// Nobody waits for the removal of rows that have arrived: it waits for others for so long, or until there are so many.
/// Whoever leads next carries them once more, and they are known there.
const TRIM_AFTER: Duration = Duration::from_millis(200);
const TRIM_ROWS: u64 = 1024;

type Pair = (ShardId, ShardId);

/// Runs until `stop`: one task for each pair that has rows.
pub async fn run(
    router: Arc<Router>,
    replicas: Arc<Replicas>,
    signals: Arc<OutboxSignals>,
    stop: CancellationToken,
) {
    let pumps = Arc::new(Pumps::default());
    while let Some(pair) = stop.run_until_cancelled(signals.next()).await {
        let Some(signalled) = pumps.begin(pair) else {
            continue;
        };
        let (router, replicas, pumps, stop) = (
            Arc::clone(&router),
            Arc::clone(&replicas),
            Arc::clone(&pumps),
            stop.clone(),
        );
        tokio::spawn(async move {
            let pumping = async {
                loop {
                    if let Some(replica) = replicas.get(pair.0) {
                        let pump = Pump::new(&router, &replica, pair.1);
                        pump.run(&signalled).await;
                    }
                    if pumps.end(pair) {
                        break;
                    }
                }
            };
            stop.run_until_cancelled(pumping).await;
        });
    }
}

/// Which pairs are being pumped, and how each is told that it was signalled again. Bounded by the shards led here times
/// all shards.
#[derive(Default)]
struct Pumps(Mutex<BTreeMap<Pair, Arc<Signalled>>>);

#[derive(Default)]
struct Signalled {
    again: AtomicBool,
    notice: Notify,
}

impl Pumps {
    /// Something if a pump has to be started.
    fn begin(&self, pair: Pair) -> Option<Arc<Signalled>> {
        let mut running = self.0.lock();
        if let Some(signalled) = running.get(&pair) {
            signalled.again.store(true, Ordering::Relaxed);
            signalled.notice.notify_one();
            return None;
        }
        let signalled = Arc::<Signalled>::default();
        running.insert(pair, Arc::clone(&signalled));
        count(&running);
        Some(signalled)
    }

    /// True if the pump may end; false if it has to look again.
    fn end(&self, pair: Pair) -> bool {
        let mut running = self.0.lock();
        let again = running.get(&pair);
        let again = again.is_some_and(|signalled| signalled.again.swap(false, Ordering::Relaxed));
        if !again {
            running.remove(&pair);
            count(&running);
        }
        !again
    }
}

fn count(running: &BTreeMap<Pair, Arc<Signalled>>) {
    metrics::RUNNING_PUMPS.handle().set(running.len() as f64);
}

/// Carries the rows of one shard for another.
struct Pump<'a> {
    router: &'a Router,
    replica: &'a Replica,
    destination: ShardId,
    /// The destination has committed everything up to here.
    arrived: u64,
    /// And that has been removed up to here.
    trimmed: u64,
    /// When the first row arrived that has not been removed.
    since: Instant,
}

impl<'a> Pump<'a> {
    fn new(router: &'a Router, replica: &'a Replica, destination: ShardId) -> Self {
        Self {
            router,
            replica,
            destination,
            arrived: 0,
            trimmed: 0,
            since: Instant::now(),
        }
    }

    /// Carries rows until none is left, or this node no longer leads the source: the next leader scans them.
    async fn run(mut self, signalled: &Signalled) {
        let mut back_off = BACK_OFF.0;
        while self.replica.group().state().borrow().role == crate::raft::Role::Leader {
            match self.step(signalled).await {
                Ok(true) => back_off = BACK_OFF.0,
                Ok(false) => return,
                Err(error) => {
                    let source = self.replica.shard();
                    tracing::debug!(%source, destination = %self.destination, %error, "outbox waits");
                    metrics::OUTBOX_RETRIES.handle().increment(1);
                    tokio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    /// Carries one batch, or removes what has arrived; false if there was nothing of both.
    async fn step(&mut self, signalled: &Signalled) -> Result<bool, Error> {
        let waiting = self.arrived - self.trimmed;
        if waiting >= TRIM_ROWS || (waiting > 0 && self.since.elapsed() >= TRIM_AFTER) {
            self.trim().await?;
            return Ok(true);
        }
        if self.carry().await? {
            return Ok(true);
        }
        if waiting == 0 {
            return Ok(false);
        }
        // Ends early for rows that have come meanwhile.
        drop(tokio::time::timeout_at(self.since + TRIM_AFTER, signalled.notice.notified()).await);
        Ok(true)
    }

    /// Carries one batch; false if there was nothing.
    async fn carry(&mut self) -> Result<bool, Error> {
        let rows = self.rows()?;
        if rows.is_empty() {
            return Ok(false);
        }
        let items = first_rows(rows).map(|(number, item)| InboundItem {
            number,
            item: Some(item),
        });
        let inbound = Inbound {
            source: self.replica.shard().0,
            source_incarnation: SHARD_INCARNATION,
            items: items.collect(),
        };
        if sabotage::on(Break::OutboxTrimmed) {
            return self.forget(inbound).await;
        }
        let inbound = command::Command::Inbound(inbound);
        let proposed = self.router.propose(self.destination, inbound, ATTEMPT);
        let Some(outcome::Outcome::Inbound(answer)) = proposed.await?.outcome else {
            return Err(Error::Internal(
                "the destination refused outbox rows".to_owned(),
            ));
        };
        metrics::DROPPED_OUTBOX_ROWS
            .handle()
            .increment(answer.dropped);
        if self.arrived == self.trimmed {
            self.since = Instant::now();
        }
        self.arrived = self.arrived.max(answer.number);
        Ok(true)
    }

    /// What has not arrived yet.
    fn rows(&mut self) -> Result<Vec<(u64, OutboxItem)>, Error> {
        let damaged = |error: crate::storage::Error| Error::Internal(error.to_string());
        let view = self.replica.view();
        let reader = crate::replica::reader(&view);
        if self.arrived == 0 {
            // From there on, because rows that were removed cost a reader as much as rows.
            let head = reader.outbox_head(self.destination).map_err(damaged)?;
            self.trimmed = head.trimmed_number;
            self.arrived = self.trimmed;
        }
        reader
            .outbox(self.destination, self.arrived + 1, ROWS_MAX)
            .map_err(damaged)
    }

    /// Removes the rows that the destination has committed.
    async fn trim(&mut self) -> Result<(), Error> {
        let trim = OutboxTrim {
            destination: self.destination.0,
            number: self.arrived,
        };
        let trimmed = self.replica.propose(command::Command::OutboxTrim(trim));
        let trimmed = trimmed.await;
        trimmed.map_err(|error| Error::Internal(error.to_string()))?;
        self.trimmed = self.arrived;
        Ok(())
    }

    /// [`Break::OutboxTrimmed`]: what is sent counts as arrived.
    async fn forget(&mut self, inbound: Inbound) -> Result<bool, Error> {
        self.arrived = inbound
            .items
            .last()
            .map_or(self.arrived, |item| item.number);
        let inbound = command::Command::Inbound(inbound);
        let within = Duration::from_millis(10);
        drop(self.router.propose(self.destination, inbound, within).await);
        self.trim().await?;
        Ok(true)
    }
}

/// As many as go into one command.
fn first_rows(rows: Vec<(u64, OutboxItem)>) -> impl Iterator<Item = (u64, OutboxItem)> {
    let mut bytes = 0;
    rows.into_iter().take_while(move |(_, item)| {
        let first = bytes == 0;
        bytes += item.receipt.as_ref().map_or(1, receipt_bytes);
        first || bytes <= ROWS_BYTES_MAX
    })
}

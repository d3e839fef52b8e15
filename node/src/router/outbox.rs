//! The outbox pump: carries rows of shards that this node leads to the shards they are for.
//!
//! Rows go in order, are applied there once (the destination keeps a mark for each source), and are trimmed here only
//! after that has committed. Each (source, destination) is pumped by itself, so one dead destination holds up nobody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roost_proto::storage::{Inbound, InboundItem, OutboxItem, OutboxTrim, command, outcome};
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
        if !pumps.begin(pair) {
            continue;
        }
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
                        drain(&router, &replica, pair.1).await;
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

/// Which pairs are being pumped, and which of them were signalled again meanwhile. Bounded by the shards led here times
/// all shards.
#[derive(Default)]
struct Pumps(Mutex<(BTreeSet<Pair>, BTreeSet<Pair>)>);

impl Pumps {
    /// True if a pump has to be started.
    fn begin(&self, pair: Pair) -> bool {
        let (running, again) = &mut *self.0.lock();
        let first = running.insert(pair);
        if first {
            count(running);
        } else {
            again.insert(pair);
        }
        first
    }

    /// True if the pump may end; false if it has to look again.
    fn end(&self, pair: Pair) -> bool {
        let (running, again) = &mut *self.0.lock();
        let ends = !again.remove(&pair);
        if ends {
            running.remove(&pair);
            count(running);
        }
        ends
    }
}

fn count(running: &BTreeSet<Pair>) {
    metrics::RUNNING_PUMPS.handle().set(running.len() as f64);
}

/// Carries rows until none is left, or this node no longer leads the source: the next leader scans them.
async fn drain(router: &Router, replica: &Replica, destination: ShardId) {
    let mut back_off = BACK_OFF.0;
    while replica.group().state().borrow().role == crate::raft::Role::Leader {
        match carry(router, replica, destination).await {
            Ok(true) => back_off = BACK_OFF.0,
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(source = %replica.shard(), %destination, %error, "outbox waits");
                metrics::OUTBOX_RETRIES.handle().increment(1);
                tokio::time::sleep(back_off).await;
                back_off = (back_off * 2).min(BACK_OFF.1);
            }
        }
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

/// Carries one batch; false if there was nothing.
async fn carry(router: &Router, replica: &Replica, destination: ShardId) -> Result<bool, Error> {
    let view = replica.view();
    let damaged = |error: crate::storage::Error| Error::Internal(error.to_string());
    let reader = crate::replica::reader(&view);
    let rows = reader.outbox(destination, 0, ROWS_MAX).map_err(damaged)?;
    if rows.is_empty() {
        return Ok(false);
    }
    let inbound = Inbound {
        source: replica.shard().0,
        source_incarnation: SHARD_INCARNATION,
        items: first_rows(rows)
            .map(|(number, item)| InboundItem {
                number,
                item: Some(item),
            })
            .collect(),
    };
    if sabotage::on(Break::OutboxTrimmed) {
        return forget(router, replica, destination, inbound).await;
    }
    let outcome = router
        .propose(destination, command::Command::Inbound(inbound), ATTEMPT)
        .await?;
    let Some(outcome::Outcome::Inbound(answer)) = outcome.outcome else {
        return Err(Error::Internal(
            "the destination refused outbox rows".to_owned(),
        ));
    };
    metrics::DROPPED_OUTBOX_ROWS
        .handle()
        .increment(answer.dropped);
    trim(replica, destination, answer.number).await?;
    Ok(true)
}

/// [`Break::OutboxTrimmed`]: what is sent counts as arrived.
async fn forget(
    router: &Router,
    replica: &Replica,
    destination: ShardId,
    inbound: Inbound,
) -> Result<bool, Error> {
    let last = inbound.items.last().map_or(0, |item| item.number);
    let command = command::Command::Inbound(inbound);
    let sent = router.propose(destination, command, Duration::from_millis(10));
    drop(sent.await);
    trim(replica, destination, last).await?;
    Ok(true)
}

/// Removes the rows that the destination has committed.
async fn trim(replica: &Replica, destination: ShardId, number: u64) -> Result<(), Error> {
    let trim = OutboxTrim {
        destination: destination.0,
        number,
    };
    let trimmed = replica.propose(command::Command::OutboxTrim(trim)).await;
    let trimmed = trimmed.map(drop);
    trimmed.map_err(|error| Error::Internal(error.to_string()))
}

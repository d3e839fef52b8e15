//! Reads that a quorum confirms, gathered: whoever waits while one confirmation is under way shares the next.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use crate::metrics;
use crate::raft::Group;
use crate::sabotage::{self, Break};
use crate::types::ShardId;

/// Readers that wait; beyond it they are told to come back.
const WAITING_MAX: usize = 16 * 1024;

/// What to tell a reader who came when too many waited, milliseconds.
const OVERLOAD_RETRY_MS: u64 = 50;

/// The way to a confirmed read of one shard.
pub(super) struct Barrier {
    waiting: mpsc::Sender<oneshot::Sender<Result<(), Error>>>,
}

impl Barrier {
    /// Starts the task that confirms; it ends with `stop`.
    pub(super) fn start(shard: ShardId, group: Arc<Group>, stop: CancellationToken) -> Self {
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let fill = metrics::WAITING_READS.of(shard);
        tokio::spawn(async move { stop.run_until_cancelled(run(group, queue, fill)).await });
        Self { waiting }
    }

    /// Returns once a quorum has confirmed, after this call began, that this replica leads, and everything committed
    /// before is applied here.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::Overloaded`], [`Error::Stopping`].
    pub(super) async fn confirm(&self) -> Result<(), Error> {
        if sabotage::on(Break::StaleReads) {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.waiting.try_send(reply).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded {
                retry_after_ms: OVERLOAD_RETRY_MS,
            },
            mpsc::error::TrySendError::Closed(_) => Error::Stopping,
        })?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }
}

async fn run(
    group: Arc<Group>,
    mut queue: mpsc::Receiver<oneshot::Sender<Result<(), Error>>>,
    fill: ::metrics::Gauge,
) {
    let mut readers = Vec::new();
    while queue.recv_many(&mut readers, WAITING_MAX).await > 0 {
        // Those who come meanwhile are counted with the next round.
        fill.set(readers.len() as f64);
        let confirmed = group.confirm_read().await.map_err(Error::from);
        for reader in readers.drain(..) {
            // A reader who has gone needs no answer.
            drop(reader.send(confirmed.clone()));
        }
        fill.set(queue.len() as f64);
    }
}

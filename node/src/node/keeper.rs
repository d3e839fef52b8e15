//! The node's housekeeping: heartbeats, room on the disk, logs and deleted rows, the cluster as it was last heard of.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use roost_proto::storage::ClusterState;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::metrics;
use crate::raft::Keep;
use crate::replica::Replicas;
use crate::router::placement::Placement;
use crate::storage::keys::Key;
use crate::storage::rocks::{Options, disk_space};
use crate::storage::{Batch, Store, syncer::Syncer};

/// Between two looks at the disk, and at the store.
const DISK_TICK: Duration = Duration::from_secs(1);
/// Looks at the logs within the age that they may reach.
const COLLECTIONS_PER_AGE: u32 = 8;
/// Removals of deleted rows from all files within their bound: a log may keep a message for half of the bound, and then it
/// may just miss one removal and wait in the next for a snapshot to end.
const RECLAIMS_PER_BOUND: u32 = 6;

/// What the housekeeping works with.
pub(crate) struct Keeper {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) disk_low: Arc<AtomicBool>,
}

impl Keeper {
    /// Starts all of it; it ends with `stop`.
    pub(crate) fn start(self, stop: &CancellationToken) {
        let keeper = Arc::new(self);
        let beats = Arc::clone(&keeper);
        spawn(stop, async move { beats.heartbeats().await });
        let disk = Arc::clone(&keeper);
        spawn(stop, async move { disk.watch_disk().await });
        let store = Arc::clone(&keeper);
        spawn(stop, async move { store.measure_store().await });
        let logs = Arc::clone(&keeper);
        spawn(stop, async move { logs.collect_logs().await });
        spawn(stop, async move { keeper.reclaim().await });
    }

    /// One tick for all replicas. None while a sync is outstanding for too long: this node could not acknowledge anything,
    /// so others take over, and whoever waits here is told so.
    async fn heartbeats(&self) {
        let stall = Duration::from_millis(self.config.storage.sync_stall_ms);
        let mut tick = tokio::time::interval(Duration::from_millis(self.config.raft.heartbeat_ms));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stalled = false;
        loop {
            tick.tick().await;
            let stalls = self
                .syncer
                .outstanding_since()
                .is_some_and(|since| since.elapsed() > stall);
            if stalls && !stalled {
                tracing::warn!(
                    "a sync takes long; the node stops its heartbeats so that others lead"
                );
                metrics::SYNC_STALLS.handle().increment(1);
            }
            stalled = stalls;
            self.replicas.set_disk_hangs(stalled);
            if !stalled {
                self.replicas.heartbeat().await;
            }
            self.replicas.look_around();
        }
    }

    async fn watch_disk(&self) {
        let mut tick = tokio::time::interval(DISK_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut syncs = self.syncer.stats();
        loop {
            tick.tick().await;
            match disk_space(&self.config.data_dir) {
                Ok(space) => {
                    let reserve = u64::from(self.config.storage.disk_reserve_percent);
                    let low = space.available_bytes.saturating_mul(100)
                        < space.total_bytes.saturating_mul(reserve);
                    if low != self.disk_low.swap(low, Ordering::Relaxed) {
                        tracing::warn!(
                            low,
                            available = space.available_bytes,
                            "room on the disk changed"
                        );
                    }
                    metrics::DISK_FREE_BYTES
                        .handle()
                        .set(space.available_bytes as f64);
                    let ratio = space.available_bytes as f64 / space.total_bytes.max(1) as f64;
                    metrics::DISK_FREE_RATIO.handle().set(ratio);
                }
                Err(error) => tracing::warn!(%error, "cannot ask how full the disk is"),
            }
            let now = self.syncer.stats();
            measure_syncs(&syncs, &now);
            syncs = now;
            metrics::PENDING_SYNCS
                .handle()
                .set(self.syncer.waiting() as f64);
            self.replicas.measure();
        }
    }

    /// Apart from all else and in a thread of its own, because it waits for as long as the disk hangs.
    async fn measure_store(&self) {
        let mut tick = tokio::time::interval(DISK_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let store = Arc::clone(&self.store);
            match tokio::task::spawn_blocking(move || store.fill()).await {
                Ok(Ok(fill)) => {
                    metrics::BLOCK_CACHE_BYTES
                        .handle()
                        .set(fill.block_cache_bytes as f64);
                    metrics::WRITE_BUFFER_BYTES
                        .handle()
                        .set(fill.write_buffer_bytes as f64);
                    metrics::WAL_BYTES.handle().set(fill.wal_bytes as f64);
                    metrics::DELETED_RANGES
                        .handle()
                        .set(fill.deleted_ranges as f64);
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot ask how full the store is"),
                Err(error) => tracing::error!(%error, "a look at the store ended early"),
            }
        }
    }

    async fn collect_logs(&self) {
        let age = Duration::from_millis(self.config.raft.log_age_max_ms);
        let mut tick = tokio::time::interval(age / COLLECTIONS_PER_AGE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let replicas = self.replicas.all();
            let lengths = replicas.iter().map(|replica| replica.group().log_bytes());
            let bytes = longest_kept(lengths.collect(), self.config.raft.log_bytes_max);
            for replica in replicas {
                if let Err(error) = replica.group().collect(Keep { age, bytes }).await {
                    tracing::error!(shard = %replica.shard(), %error, "cannot purge a log");
                }
            }
        }
    }

    /// Removes deleted rows from every file, within the bound that contract C5 states.
    async fn reclaim(&self) {
        let bound = Duration::from_millis(self.config.storage.reclaim_ms);
        let period = bound / RECLAIMS_PER_BOUND;
        // Not at once: damage in a file is better met by the replica that reads it, which is then renewed, than by a
        // compaction, after which RocksDB writes nothing more and the whole node has to end.
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let store = Arc::clone(&self.store);
            let started = std::time::Instant::now();
            let reclaimed = tokio::task::spawn_blocking(move || store.reclaim()).await;
            metrics::RECLAIM_LATENCY.handle().record(started.elapsed());
            match reclaimed {
                Ok(Ok(reclaimed)) => {
                    metrics::RECLAIMED_RANGES
                        .handle()
                        .increment(reclaimed.ranges as u64);
                    metrics::REWRITTEN_BYTES
                        .handle()
                        .increment(reclaimed.rewritten_bytes);
                    metrics::WAITING_RANGES
                        .handle()
                        .set(reclaimed.waiting as f64);
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "deleted rows are still in files");
                    // If a compaction met damage, RocksDB takes no more writes: an idle node must notice, too, and end.
                    self.syncer.request(Box::new(|| ()));
                }
                Err(error) => tracing::error!(%error, "the removal of deleted rows ended early"),
            }
        }
    }
}

/// How long a log may be so that all together take `most` bytes and no log that is shorter loses anything.
fn longest_kept(mut lengths: Vec<u64>, most: u64) -> u64 {
    lengths.sort_unstable();
    let (mut left, mut logs) = (most, lengths.len() as u64);
    for length in lengths {
        if length > left / logs {
            return left / logs;
        }
        left -= length;
        logs -= 1;
    }
    most
}

/// Hears of the cluster as the meta shard has it: keeps the newest on disk and tells whoever watches.
pub(crate) fn cluster_keeper(
    store: Arc<dyn Store>,
    placement: watch::Sender<Arc<Placement>>,
) -> Arc<dyn Fn(ClusterState) + Send + Sync> {
    Arc::new(move |cluster| {
        let newer = match Placement::from_state(&cluster) {
            Ok(newer) => newer,
            Err(error) => {
                return tracing::error!(%error, "the meta shard holds a placement that is none");
            }
        };
        let replaced = placement.send_if_modified(|known| {
            let rises = newer.epoch > known.epoch;
            if rises {
                *known = Arc::new(newer);
            }
            rises
        });
        if replaced {
            let mut batch = Batch::default();
            batch.put_row(&Key::ClusterCache, &cluster);
            // A cache: without it the node asks again.
            if let Err(error) = store.write(batch) {
                tracing::warn!(%error, "cannot keep the cluster's placement");
            }
        }
    })
}

/// The store's settings from the node's.
pub(crate) fn store_options(config: &Config) -> Options {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Options {
        block_cache_bytes: bytes(config.storage.block_cache_bytes),
        write_buffer_bytes: bytes(config.storage.write_buffer_bytes),
        wal_bytes_max: config.storage.max_wal_bytes,
        ..Options::default()
    }
}

/// Where the store's files are.
pub(crate) fn store_path(config: &Config) -> PathBuf {
    config.data_dir.join("store")
}

fn measure_syncs(before: &crate::storage::syncer::Stats, now: &crate::storage::syncer::Stats) {
    let syncs = now.syncs - before.syncs;
    if syncs > 0 {
        let answered = (now.answered - before.answered) as f64 / syncs as f64;
        // The mean over the last second, counted as often as there were syncs.
        for _ in 0..syncs {
            metrics::SYNC_CALLBACKS.handle().record(answered);
        }
    }
}

fn spawn(stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(work).await });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_logs_are_purged_first() {
        assert_eq!(longest_kept(vec![], 100), 100);
        assert_eq!(longest_kept(vec![10, 20, 70], 100), 100);
        assert_eq!(longest_kept(vec![90, 10, 20], 100), 70);
        assert_eq!(longest_kept(vec![90, 10, 80], 100), 45);
        assert_eq!(longest_kept(vec![50, 50, 50, 50], 100), 25);
    }
}

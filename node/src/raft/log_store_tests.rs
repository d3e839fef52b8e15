//! The log over the store in memory: recovery, damage, gaps, and what a crash leaves.

#![allow(clippy::unwrap_used)]

use openraft::EntryPayload;
use openraft::storage::RaftLogStorageExt as _;
use openraft::testing::log_id;

use super::super::types::Command;
use super::*;
use crate::storage::memory::MemoryStore;

const REPLICA: ReplicaId = ReplicaId(9);

fn entry(index: u64) -> Entry {
    Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Normal(Command(vec![0; 100].into())),
    }
}

async fn open(disk: &MemoryStore) -> Result<LogStore, Error> {
    let store: Arc<dyn Store> = Arc::new(disk.clone());
    let syncer = Arc::new(Syncer::inline(store.clone(), |error| panic!("{error}")));
    LogStore::open(REPLICA, store, syncer, Fault::default(), 1 << 20).await
}

/// A log with entries 0 to 9.
async fn ten() -> (MemoryStore, LogStore) {
    let disk = MemoryStore::new();
    let mut log = open(&disk).await.unwrap();
    log.blocking_append((0..10).map(entry)).await.unwrap();
    (disk, log)
}

fn indexes(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.log_id.index).collect()
}

fn key(index: u64) -> Bytes {
    Key::LogEntry(REPLICA, index).encode()
}

fn is_corrupt<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Corrupt { .. }))
}

#[tokio::test]
async fn appended_entries_and_votes_survive_a_crash() {
    let (disk, mut log) = ten().await;
    let vote = Vote::new_committed(3, 9);
    log.save_vote(&vote).await.unwrap();
    let mut log = open(&disk.crash(0)).await.unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (0..10).map(entry).collect::<Vec<_>>());
}

/// What recovery read is durable before anybody can answer on the strength of it.
#[tokio::test]
async fn what_was_recovered_is_synced_at_open() {
    let disk = MemoryStore::new();
    let log = open(&disk).await.unwrap();
    log.write_entries([entry(0)]).unwrap();
    let disk = disk.crash(1);
    assert_eq!(disk.unsynced(), 1);
    open(&disk).await.unwrap();
    assert_eq!(disk.unsynced(), 0);
}

#[tokio::test]
async fn purge_and_truncation_are_found_again() {
    let (disk, mut log) = ten().await;
    log.purge(log_id(1, 1, 3)).await.unwrap();
    log.truncate(log_id(1, 1, 8)).await.unwrap();
    log.sync().await.unwrap();
    for mut log in [log, open(&disk.crash(0)).await.unwrap()] {
        let entries = log.try_get_log_entries(0..100).await.unwrap();
        assert_eq!(indexes(&entries), [4, 5, 6, 7]);
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(1, 1, 3)));
        assert_eq!(state.last_log_id, Some(log_id(1, 1, 7)));
    }
}

#[tokio::test]
async fn an_append_is_bounded_in_bytes_and_never_empty() {
    let disk = MemoryStore::new();
    let mut log = open(&disk).await.unwrap();
    let large = |index| Entry {
        log_id: log_id(1, 1, index),
        payload: EntryPayload::Normal(Command(vec![0; APPEND_BYTES_MAX * 2 / 5].into())),
    };
    log.blocking_append((0..6).map(large)).await.unwrap();
    // From the store as well as from the cache.
    for start in [0, 4] {
        let entries = log.limited_get_log_entries(start, 6).await.unwrap();
        assert_eq!(indexes(&entries), [start, start + 1]);
    }
    let huge = Entry {
        log_id: log_id(1, 1, 6),
        payload: EntryPayload::Normal(Command(vec![0; APPEND_BYTES_MAX * 2].into())),
    };
    log.blocking_append([huge]).await.unwrap();
    let entries = log.limited_get_log_entries(6, 7).await.unwrap();
    assert_eq!(indexes(&entries), [6]);
}

#[tokio::test]
async fn a_damaged_entry_is_refused_at_open_and_when_read() {
    let (disk, log) = ten().await;
    disk.flip_bit(Column::Log, &key(5));
    assert!(is_corrupt(&log.0.scan(0, 10, usize::MAX)));
    assert!(is_corrupt(&open(&disk.crash(0)).await));
}

#[tokio::test]
async fn a_gap_is_refused_at_open_and_when_read() {
    let (disk, log) = ten().await;
    let mut batch = Batch::default();
    batch.delete(Column::Log, key(5));
    disk.write(batch).unwrap();
    assert!(is_corrupt(&log.0.scan(0, 10, usize::MAX)));
    assert!(is_corrupt(&log.0.scan(4, 6, usize::MAX)));
    assert!(is_corrupt(&open(&disk).await));
}

/// Entries in front of the log's first one are a gap too: only the purge marker may explain their absence.
#[tokio::test]
async fn a_missing_beginning_is_refused() {
    let (disk, _) = ten().await;
    let mut batch = Batch::default();
    batch.delete(Column::Log, key(0));
    disk.write(batch).unwrap();
    assert!(is_corrupt(&open(&disk).await));
}

#[tokio::test]
async fn an_append_that_would_leave_a_gap_is_refused() {
    let (_, log) = ten().await;
    assert!(is_corrupt(&log.write_entries([entry(11)])));
    assert!(is_corrupt(&log.write_entries([entry(9)])));
    log.write_entries([entry(10)]).unwrap();
}

#[tokio::test]
async fn a_damaged_vote_is_refused() {
    let (disk, mut log) = ten().await;
    log.save_vote(&Vote::new(1, 2)).await.unwrap();
    disk.flip_bit(Column::Log, &Key::Vote(REPLICA).encode());
    assert!(log.read_vote().await.is_err());
    assert!(matches!(log.0.fault.first(), Some(Error::Corrupt { .. })));
}

/// openraft purges the log behind a snapshot without waiting for its install. The purge is left to the install's
/// batch, or a crash in between would leave a state that the log no longer reaches.
#[tokio::test]
async fn the_purge_behind_a_snapshot_comes_with_its_install() {
    let (_, mut log) = ten().await;
    let upto = log_id(2, 1, 20);
    log.begin_install(Some(upto));
    log.purge(upto).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_purged_log_id, None);
    log.clear_for_snapshot(Batch::default(), upto).unwrap();
    log.end_install();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(upto));
    assert_eq!(state.last_log_id, Some(upto));
    assert!(log.try_get_log_entries(..).await.unwrap().is_empty());
}

//! A replica's log and vote, in openraft's storage interface.
//!
//! Promises: an append is answered, and a vote returns, only after a sync that covers it. What the log holds is a run
//! of consecutive entries behind the purge marker; a gap or a checksum that fails is an error, never skipped. All
//! entries are read once when the log is opened, and made durable before the replica speaks. Never reads in front of
//! the purge marker, where deleted entries would have to be stepped over.

mod cache;

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use self::cache::Cache;
use super::codec::{self, entry_bytes, read_sealed};
use super::fault::Fault;
use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::sabotage::{self, Break};
use crate::storage::keys::{Key, log_entries};
use crate::storage::syncer::Syncer;
use crate::storage::{Batch, Column, Error, Store, value};
use crate::types::ReplicaId;

/// Bytes of entries in one append, at most; one entry always fits.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// Handle to a replica's log; clones share it.
#[derive(Clone)]
pub(super) struct LogStore(Arc<Shared>);

struct Shared {
    replica: ReplicaId,
    store: Arc<dyn Store>,
    syncer: Arc<Syncer>,
    fault: Fault,
    /// Held while the store is written or scanned, so that no reader sees half of a change.
    log: RwLock<Log>,
    /// The snapshot that is being installed, if one is: its batch also clears the log up to there.
    installing: Mutex<Option<LogId>>,
}

/// What is known of the log without reading it.
struct Log {
    purged: Option<LogId>,
    /// The first entry there, if any.
    first: Option<u64>,
    /// The last entry there, or what was purged.
    last: Option<LogId>,
    cache: Cache,
    /// Bytes of all entries ever appended here, and of those recovered: the difference between two moments is what
    /// was appended in between.
    appended_bytes: u64,
}

/// How far a log reaches, for its collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub last: Option<u64>,
    pub purged: Option<u64>,
    pub appended_bytes: u64,
}

impl LogStore {
    /// Reads the whole log, refuses it if it is damaged, and makes it durable.
    pub(super) async fn open(
        replica: ReplicaId,
        store: Arc<dyn Store>,
        syncer: Arc<Syncer>,
        fault: Fault,
        cache_bytes_max: usize,
    ) -> Result<Self, Error> {
        let log = recover(replica, store.as_ref(), Cache::new(cache_bytes_max))?;
        let opened = Self(Arc::new(Shared {
            replica,
            store,
            syncer,
            fault,
            log: RwLock::new(log),
            installing: Mutex::new(None),
        }));
        opened.sync().await?;
        Ok(opened)
    }

    pub(super) fn extent(&self) -> Extent {
        let log = self.0.log.read();
        Extent {
            last: log.last.map(|id| id.index),
            purged: log.purged.map(|id| id.index),
            appended_bytes: log.appended_bytes,
        }
    }

    /// The last entry, or what was purged; durable or not.
    pub(super) fn last(&self) -> Option<LogId> {
        self.0.log.read().last
    }

    /// Whether no sync has been under way for longer than this: a vote would be durable in time.
    pub(super) fn syncs_within(&self, time: Duration) -> bool {
        let since = self.0.syncer.outstanding_since();
        since.is_none_or(|since| since.elapsed() <= time)
    }

    /// A snapshot up to `upto` will be handed to openraft, which purges the log up to there without waiting for the
    /// install. A crash in between would leave a state that the log no longer reaches, so that purge is left to
    /// [`LogStore::clear_for_snapshot`].
    pub(super) fn begin_install(&self, upto: Option<LogId>) {
        *self.0.installing.lock() = upto;
    }

    /// The install is over, by success or not.
    pub(super) fn end_install(&self) {
        *self.0.installing.lock() = None;
    }

    /// Writes `batch`, which switches to a snapshot up to `upto`, together with the clearing of the log up to there.
    pub(super) fn clear_for_snapshot(&self, mut batch: Batch, upto: LogId) -> Result<(), Error> {
        let mut log = self.0.log.write();
        self.0.purge_into(&log, &mut batch, upto);
        self.0.store.write(batch)?;
        log.purge(upto);
        Ok(())
    }

    /// Returns when everything written so far is durable.
    pub(super) async fn sync(&self) -> Result<(), Error> {
        let (done, synced) = oneshot::channel();
        self.0.syncer.request(Box::new(move || {
            // Nobody waits any more: nobody needs the answer.
            let _ = done.send(());
        }));
        // A sync that fails is never answered, because it ends the process.
        synced.await.map_err(|_| Error::Io {
            action: "syncing",
            message: "the syncer has ended".to_owned(),
        })
    }

    fn read(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let shared = &self.0;
        let log = shared.log.read();
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        // openraft may ask beyond either end; within the log nothing may be missing.
        let (Some(first), Some(last)) = (log.first, log.last) else {
            return Ok(Vec::new());
        };
        let (start, end) = (start.max(first), end.min(last.index + 1));
        if start >= end {
            return Ok(Vec::new());
        }
        match log.cache.read(start..end, bytes_max) {
            Some(entries) => Ok(entries),
            None => shared.scan(start, end, bytes_max),
        }
    }
}

impl Shared {
    /// Entries of a range that the log has, fewer if they exceed the bytes. Every one is checked.
    fn scan(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for row in self
            .store
            .scan(Column::Log, log_entries(self.replica, start..end))
        {
            let (key, value) = row?;
            let entry = open_entry(&key, value, start + entries.len() as u64)?;
            bytes += entry_bytes(&entry);
            if bytes > bytes_max && !entries.is_empty() {
                return Ok(entries);
            }
            entries.push(entry);
        }
        match entries.len() as u64 == end - start {
            true => Ok(entries),
            false => Err(gap(start + entries.len() as u64)),
        }
    }

    fn purge_into(&self, log: &Log, batch: &mut Batch, upto: LogId) {
        let marker = Key::Purged(self.replica).encode();
        let value = value::seal(&marker, &codec::encode(&upto));
        batch.put(Column::Log, marker, value);
        let behind_marker = log.purged.map_or(0, |purged| purged.index + 1);
        let first = log.first.unwrap_or(behind_marker);
        let end = upto.index.saturating_add(1).max(first);
        batch.delete_range(Column::Log, log_entries(self.replica, first..end));
    }

    fn fail(&self, subject: ErrorSubject<u64>, verb: ErrorVerb, error: Error) -> StorageError {
        self.fault.report(subject, verb, error)
    }
}

impl Log {
    fn purge(&mut self, upto: LogId) {
        self.purged = Some(upto);
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
            self.first = None;
        } else {
            self.first = self.first.map(|first| first.max(upto.index + 1));
        }
        self.cache.purge(upto.index);
    }

    fn truncate(&mut self, from: u64, last: Option<LogId>) {
        self.last = last;
        if self.first.is_some_and(|first| first >= from) {
            self.first = None;
        }
        self.cache.truncate(from);
    }

    fn append(&mut self, entry: Entry) {
        self.first.get_or_insert(entry.log_id.index);
        self.last = Some(entry.log_id);
        self.appended_bytes += entry_bytes(&entry) as u64;
        self.cache.push(entry);
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(range, usize::MAX)
            .map_err(|error| self.0.fail(ErrorSubject::Logs, ErrorVerb::Read, error))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(start..end, APPEND_BYTES_MAX)
            .map_err(|error| self.0.fail(ErrorSubject::Logs, ErrorVerb::Read, error))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let log = self.0.log.read();
        Ok(LogState {
            last_purged_log_id: log.purged,
            last_log_id: log.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        if sabotage::on(Break::VoteNotSaved) {
            return Ok(());
        }
        let key = Key::Vote(self.0.replica).encode();
        let mut batch = Batch::default();
        let value = value::seal(&key, &codec::encode(vote));
        batch.put(Column::Log, key, value);
        let written = match self.0.store.write(batch) {
            Ok(()) => self.sync().await,
            Err(error) => Err(error),
        };
        written.map_err(|error| self.0.fail(ErrorSubject::Vote, ErrorVerb::Write, error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        read_sealed(self.0.store.as_ref(), &Key::Vote(self.0.replica))
            .map_err(|error| self.0.fail(ErrorSubject::Vote, ErrorVerb::Read, error))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.write_entries(entries)
            .map_err(|error| self.0.fail(ErrorSubject::Logs, ErrorVerb::Write, error))?;
        let durable = Box::new(move || callback.log_io_completed(Ok(())));
        self.0.syncer.request(durable);
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.truncate_from(log_id.index)
            .map_err(|error| self.0.fail(ErrorSubject::Logs, ErrorVerb::Delete, error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        if *self.0.installing.lock() == Some(log_id) {
            return Ok(());
        }
        self.purge_upto(log_id)
            .map_err(|error| self.0.fail(ErrorSubject::Logs, ErrorVerb::Delete, error))
    }
}

impl LogStore {
    fn write_entries(&self, entries: impl IntoIterator<Item = Entry>) -> Result<(), Error> {
        let mut log = self.0.log.write();
        let mut batch = Batch::default();
        let mut next = log.last.map(|id| id.index + 1);
        let mut written = Vec::new();
        for entry in entries {
            let index = entry.log_id.index;
            if log.purged.is_some_and(|purged| index <= purged.index) {
                // The state holds it already; openraft's suite asks for this, openraft itself never does.
                continue;
            }
            if next.is_some_and(|next| next != index) {
                return Err(gap(index));
            }
            next = Some(index + 1);
            let key = Key::LogEntry(self.0.replica, index).encode();
            let value = value::seal(&key, &codec::encode(&entry));
            batch.put(Column::Log, key, value);
            written.push(entry);
        }
        self.0.store.write(batch)?;
        written.into_iter().for_each(|entry| log.append(entry));
        Ok(())
    }

    fn truncate_from(&self, from: u64) -> Result<(), Error> {
        let mut log = self.0.log.write();
        let last = match (log.first, from.checked_sub(1)) {
            (Some(first), Some(previous)) if first <= previous => {
                let kept = self.0.scan(previous, from, usize::MAX)?;
                kept.last().map(|entry| entry.log_id)
            }
            _ => log.purged,
        };
        let mut batch = Batch::default();
        batch.delete_range(Column::Log, log_entries(self.0.replica, from..u64::MAX));
        self.0.store.write(batch)?;
        log.truncate(from, last);
        Ok(())
    }

    fn purge_upto(&self, upto: LogId) -> Result<(), Error> {
        let mut log = self.0.log.write();
        if log.purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.0.purge_into(&log, &mut batch, upto);
        self.0.store.write(batch)?;
        log.purge(upto);
        Ok(())
    }
}

fn recover(replica: ReplicaId, store: &dyn Store, cache: Cache) -> Result<Log, Error> {
    let purged: Option<LogId> = read_sealed(store, &Key::Purged(replica))?;
    let mut log = Log {
        purged,
        first: None,
        last: purged,
        cache,
        appended_bytes: 0,
    };
    let first = purged.map_or(0, |id| id.index + 1);
    let rows = store.scan(Column::Log, log_entries(replica, first..u64::MAX));
    for (index, row) in (first..).zip(rows) {
        let (key, value) = row?;
        let entry = open_entry(&key, value, index)?;
        if Some(entry.log_id) <= log.last {
            return Err(corrupt("its entries are not in order"));
        }
        log.append(entry);
    }
    Ok(log)
}

fn open_entry(key: &Bytes, value: Bytes, index: u64) -> Result<Entry, Error> {
    const WHAT: &str = "log entry";
    let entry: Entry = codec::decode(WHAT, value::open(WHAT, key, value)?)?;
    match entry.log_id.index == index {
        true => Ok(entry),
        false => Err(gap(index)),
    }
}

fn gap(index: u64) -> Error {
    corrupt(&format!(
        "the entry at index {index} is not where it belongs"
    ))
}

fn corrupt(detail: &str) -> Error {
    Error::Corrupt {
        what: "log",
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
#[path = "log_store_tests.rs"]
mod tests;

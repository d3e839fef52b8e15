//! A node's disk in memory, watched: which logs are cut back is seen here.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use roost::storage::keys::Key;
use roost::storage::memory::MemoryStore;
use roost::storage::{Batch, Column, Error, Fill, Op, Read, Reclaimed, Rows, Store};

/// See the module. Every life of a node gets its own, over what the last one left.
pub(super) struct Watched {
    pub(super) disk: MemoryStore,
    /// Over all nodes.
    pub(super) truncations: Arc<AtomicU64>,
}

impl Watched {
    /// Whether an operation takes entries from the end of a log. A purge takes them from its start.
    fn truncates(&self, op: &Op) -> bool {
        let Op::DeleteRange(Column::Log, range) = op else {
            return false;
        };
        let Ok(Key::LogEntry(_, u64::MAX)) = Key::decode(Column::Log, &range.end) else {
            return false;
        };
        self.disk.scan(Column::Log, range.clone()).next().is_some()
    }
}

impl Read for Watched {
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.disk.get(column, key)
    }

    fn scan(&self, column: Column, range: Range<Bytes>) -> Rows<'_> {
        self.disk.scan(column, range)
    }

    fn last(&self, column: Column, range: Range<Bytes>) -> Result<Option<(Bytes, Bytes)>, Error> {
        self.disk.last(column, range)
    }
}

impl Store for Watched {
    fn write(&self, batch: Batch) -> Result<(), Error> {
        let truncations = batch.0.iter().filter(|op| self.truncates(op)).count();
        self.truncations
            .fetch_add(truncations as u64, Ordering::Relaxed);
        self.disk.write(batch)
    }

    fn sync(&self) -> Result<(), Error> {
        self.disk.sync()
    }

    fn freeze(&self) -> Arc<dyn Read> {
        self.disk.freeze()
    }

    fn reclaim(&self) -> Result<Reclaimed, Error> {
        self.disk.reclaim()
    }

    fn fill(&self) -> Result<Fill, Error> {
        self.disk.fill()
    }
}

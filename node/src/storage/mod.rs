//! What a node keeps: one ordered key-value store for all of its replicas, with three columns.
//!
//! The interface is narrow on purpose (write a batch, sync, read, scan, freeze) because it has two implementations:
//! `rocks` for real nodes and `memory`, which forgets unsynced writes on a crash, for tests that run a whole
//! cluster in one thread. Writes become visible at once and durable only by [`Store::sync`]; after a crash a prefix of
//! all batches, in the order they were written, is there. Nobody calls `sync` but the node's one `syncer`.

pub mod keys;
pub mod memory;
pub mod rocks;
pub mod syncer;
pub mod value;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// A key space of its own within the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Column {
    /// The node's own facts: identity, plan, its replicas.
    Node,
    /// Raft logs and votes of all replicas.
    Log,
    /// Applied state of all replicas.
    State,
}

/// One change in a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put(Column, Bytes, Bytes),
    /// Removes a key, if there.
    Delete(Column, Bytes),
    /// Removes all keys of a half-open range.
    DeleteRange(Column, Range<Bytes>),
}

/// Changes that become visible, and durable, together; applied in order.
#[derive(Clone, Debug, Default)]
pub struct Batch(pub Vec<Op>);

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, column: Column, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.0.push(Op::Put(column, key.into(), value.into()));
    }

    /// Sets a row that is kept as a protobuf message.
    pub fn put_row(&mut self, key: &keys::Key<'_>, row: &impl prost::Message) {
        let bytes = key.encode();
        let value = value::encode(&bytes, row);
        self.put(key.column(), bytes, value);
    }

    /// Removes a key, if there.
    pub fn delete(&mut self, column: Column, key: impl Into<Bytes>) {
        self.0.push(Op::Delete(column, key.into()));
    }

    /// Removes all keys of a half-open range.
    pub fn delete_range(&mut self, column: Column, range: Range<Bytes>) {
        self.0.push(Op::DeleteRange(column, range));
    }
}

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The device or the engine failed; the process must end, because what was written is now unknown.
    #[error(
        "the store failed at {action}: {message}; check the disk and its mount, then start the node again"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The engine's own words.
        message: String,
    },
    /// A value does not carry its checksum. It is never served and never removed as if it were garbage.
    #[error("damaged {what}: {detail}; the replica stops and has to be renewed")]
    Corrupt {
        /// Which kind of row, never its content.
        what: &'static str,
        /// What did not fit.
        detail: String,
    },
    /// Written by a version of Roost that this one does not know.
    #[error(
        "{what} has format version {version}, and this node knows up to {known}; run a newer roost"
    )]
    UnknownFormat {
        /// Which kind of row.
        what: &'static str,
        /// What stands on disk.
        version: u32,
        /// The newest version that this build knows.
        known: u32,
    },
}

/// An iterator over rows in key order.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), Error>> + Send + 'a>;

/// Reading, from the live store or from a frozen view of it.
pub trait Read: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// [`Error::Io`] and, where the engine's own checksums fail, [`Error::Corrupt`].
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Bytes>, Error>;

    /// All rows of a half-open range, ascending. Bounded by the range: it does not touch keys outside.
    fn scan(&self, column: Column, range: Range<Bytes>) -> Rows<'_>;

    /// The last row of a half-open range.
    ///
    /// # Errors
    /// As [`Read::get`].
    fn last(&self, column: Column, range: Range<Bytes>) -> Result<Option<(Bytes, Bytes)>, Error>;
}

/// What one [`Store::reclaim`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Ranges whose deleted rows are in no file any more.
    pub ranges: usize,
    /// Ranges that wait, because a frozen view is older than their deletion or reads the files that they are in.
    pub waiting: usize,
    /// Bytes of the table files that were written for it and stayed.
    pub rewritten_bytes: u64,
}

/// How full the bounds of a store are; all 0 where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Bytes of blocks of table files that are kept in memory.
    pub block_cache_bytes: u64,
    /// Bytes of memory for writes that are in no table file yet, over all columns.
    pub write_buffer_bytes: u64,
    /// Bytes of all files of the write-ahead log.
    pub wal_bytes: u64,
    /// Ranges whose deleted rows may be in files.
    pub deleted_ranges: usize,
}

/// The store of one node.
pub trait Store: Read + 'static {
    /// Makes a batch visible, all of it or nothing. It is durable after the next [`Store::sync`].
    ///
    /// # Errors
    /// [`Error::Io`].
    fn write(&self, batch: Batch) -> Result<(), Error>;

    /// Makes every batch written before this call durable. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`]: what had been written is now unknown, and the process must end.
    fn sync(&self) -> Result<(), Error>;

    /// A view that later writes do not change. It pins deleted rows on disk: keep it for a bounded time.
    fn freeze(&self) -> Arc<dyn Read>;

    /// Removes deleted messages from every file, write-ahead log included (contract C5): queue entries, and ranges of any
    /// rows. What a frozen view may still need waits for the next call. Costs what was deleted, not what is there. Blocks
    /// for long; call it from a thread of its own.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn reclaim(&self) -> Result<Reclaimed, Error>;

    /// How full its bounds are, for metrics. Looks at files and so may block as long as the disk hangs.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn fill(&self) -> Result<Fill, Error>;
}

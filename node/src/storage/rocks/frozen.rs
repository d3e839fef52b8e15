//! A view of the database at one moment, which owns what it reads.
//!
//! RocksDB's snapshot borrows the database, and `Arc<dyn Read>` must own it; `self_cell` holds owner and borrower
//! together soundly, without unsafe code of ours. The alternatives were a thread that holds each snapshot and answers
//! reads, or a checkpoint on disk opened as a second database: both dearer.

// The macro's own: it forgets the guard that would free a cell whose builder panicked.
#![allow(clippy::mem_forget)]

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, IteratorMode};

use super::{Column, Engine, Error, Read, Rows, read_error, rows, within};

type Snapshot<'a> = rocksdb::SnapshotWithThreadMode<'a, DB>;

self_cell::self_cell!(
    struct Cell {
        owner: Arc<Engine>,
        #[covariant]
        dependent: Snapshot,
    }
);

pub(super) struct Frozen(Cell);

impl Frozen {
    pub(super) fn of(engine: Arc<Engine>) -> Self {
        Self(Cell::new(engine, |engine| engine.db.snapshot()))
    }

    fn iterator(
        &self,
        column: Column,
        range: &Range<Bytes>,
        mode: IteratorMode<'_>,
    ) -> Option<Rows<'_>> {
        // A frozen view is read through once, for a snapshot: it must not push the rows in use out of the cache.
        let options = within(range, false)?;
        let family = self.0.borrow_owner().family(column);
        let snapshot = self.0.borrow_dependent();
        Some(rows(snapshot.iterator_cf_opt(family, options, mode)))
    }
}

impl Read for Frozen {
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let family = self.0.borrow_owner().family(column);
        let value = self.0.borrow_dependent().get_cf(family, key);
        Ok(value.map_err(read_error)?.map(Bytes::from))
    }

    fn scan(&self, column: Column, range: Range<Bytes>) -> Rows<'_> {
        self.iterator(column, &range, IteratorMode::Start)
            .unwrap_or_else(|| Box::new(std::iter::empty()))
    }

    fn last(&self, column: Column, range: Range<Bytes>) -> Result<Option<(Bytes, Bytes)>, Error> {
        let rows = self.iterator(column, &range, IteratorMode::End);
        rows.and_then(|mut rows| rows.next()).transpose()
    }
}

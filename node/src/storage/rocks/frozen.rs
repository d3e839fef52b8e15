//! A view of the database at one moment, which owns what it reads.
//!
//! RocksDB's snapshot borrows the database, and `Arc<dyn Read>` must own it; `self_cell` holds owner and borrower
//! together soundly, without unsafe code of ours. The alternatives were a thread that holds each snapshot and answers
//! reads, or a checkpoint on disk opened as a second database: both dearer.

// The macro's own: it forgets the guard that would free a cell whose builder panicked.
#![allow(clippy::mem_forget)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
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

/// Fields drop in order: only when RocksDB's snapshot is gone does nobody look any more.
pub(super) struct Frozen {
    cell: Cell,
    _number: Number,
}

struct Number {
    engine: Arc<Engine>,
    number: u64,
}

impl Drop for Number {
    fn drop(&mut self) {
        self.engine.views.0.lock().live.remove(&self.number);
    }
}

/// Which frozen views there are; they are numbered as they are made.
#[derive(Default)]
pub(super) struct Views(Mutex<Numbers>);

#[derive(Default)]
struct Numbers {
    next: u64,
    live: BTreeSet<u64>,
}

impl Views {
    /// The number of the next view.
    pub(super) fn next(&self) -> u64 {
        self.0.lock().next
    }

    /// The number of the oldest view that is looked at, or else of the next.
    pub(super) fn oldest(&self) -> u64 {
        let numbers = self.0.lock();
        let oldest = numbers.live.first().copied();
        oldest.unwrap_or(numbers.next)
    }

    /// Whether there is any.
    pub(super) fn are_read(&self) -> bool {
        !self.0.lock().live.is_empty()
    }

    fn add(&self) -> u64 {
        let mut numbers = self.0.lock();
        let number = numbers.next;
        numbers.next += 1;
        numbers.live.insert(number);
        number
    }
}

impl Frozen {
    pub(super) fn of(engine: Arc<Engine>) -> Self {
        // A deletion that is noted before this view and written behind it would not be waited for.
        let pause = engine.deleted.pause();
        let number = engine.views.add();
        let cell = Cell::new(Arc::clone(&engine), |engine| engine.db.snapshot());
        drop(pause);
        let _number = Number { engine, number };
        Self { cell, _number }
    }

    fn iterator(
        &self,
        column: Column,
        range: &Range<Bytes>,
        mode: IteratorMode<'_>,
    ) -> Option<Rows<'_>> {
        // A frozen view is read through once, for a snapshot: it must not push the rows in use out of the cache.
        let options = within(range, false)?;
        let family = self.cell.borrow_owner().family(column);
        let snapshot = self.cell.borrow_dependent();
        Some(rows(snapshot.iterator_cf_opt(family, options, mode)))
    }
}

impl Read for Frozen {
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let family = self.cell.borrow_owner().family(column);
        let value = self.cell.borrow_dependent().get_cf(family, key);
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

//! The view that one batch is applied through: the state before it, under what it has written so far.
//!
//! Rows that many commands of a batch touch (users, senders, outbox heads, the applied row) are *hot*: decoded once,
//! kept decoded while the batch is applied, and encoded once at its end. All others are encoded as they are put.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::iter::Peekable;
use std::ops::Range;

use bytes::Bytes;
use prost::Message;
use roost_proto::storage::{Applied, OutboxHead, Sender, SenderUse, User};

use crate::storage::keys::{Home, Key};
use crate::storage::{self, Column, Op, Read, Rows, value};

/// Reads through, collects writes. Rows are addressed by encoded key in the state column.
pub struct Txn<'a> {
    store: &'a dyn Read,
    home: Home,
    /// Removed before anything in `written` was set.
    dropped: Vec<Range<Bytes>>,
    written: BTreeMap<Bytes, Option<Bytes>>,
    /// Removed, and then set anew, both in this batch. To the store that is another row under an old key.
    replaced: BTreeSet<Bytes>,
    hot: HotRows,
}

/// A row kept decoded while a batch is applied. Implemented for the rows that batches touch again and again.
pub trait HotRow: Message + Default + Clone + Sized {
    #[doc(hidden)]
    fn table(hot: &mut HotRows) -> &mut Hot<Self>;
}

#[doc(hidden)]
pub type Hot<V> = BTreeMap<Bytes, HotValue<V>>;

#[doc(hidden)]
pub struct HotValue<V> {
    value: Option<V>,
    changed: bool,
}

#[doc(hidden)]
#[derive(Default)]
pub struct HotRows {
    applied: Hot<Applied>,
    users: Hot<User>,
    senders: Hot<Sender>,
    uses: Hot<SenderUse>,
    heads: Hot<OutboxHead>,
}

macro_rules! hot_rows {
    ($($row:ty => $table:ident),*) => {$(
        impl HotRow for $row {
            fn table(hot: &mut HotRows) -> &mut Hot<Self> {
                &mut hot.$table
            }
        }
    )*};
}

hot_rows!(Applied => applied, User => users, Sender => senders, SenderUse => uses, OutboxHead => heads);

impl<'a> Txn<'a> {
    /// A view of a replica's state.
    #[must_use]
    pub fn new(store: &'a dyn Read, home: Home) -> Self {
        Self {
            store,
            home,
            dropped: Vec::new(),
            written: BTreeMap::new(),
            replaced: BTreeSet::new(),
            hot: HotRows::default(),
        }
    }

    /// Where the state lives.
    #[must_use]
    pub fn home(&self) -> Home {
        self.home
    }

    /// Everything written: removed ranges first, then rows that were replaced, then single rows in key order.
    #[must_use]
    pub fn into_ops(mut self) -> Vec<Op> {
        self.flush();
        let ranges = self.dropped.into_iter();
        let ranges = ranges.map(|range| Op::DeleteRange(Column::State, range));
        let replaced = self.replaced.into_iter();
        let replaced = replaced.map(|key| Op::Delete(Column::State, key));
        let rows = self.written.into_iter().map(|(key, value)| match value {
            Some(value) => Op::Put(Column::State, key, value),
            None => Op::Delete(Column::State, key),
        });
        ranges.chain(replaced).chain(rows).collect()
    }

    /// The value of a key, as this batch sees it. Not for hot rows.
    ///
    /// # Errors
    /// What the store reports.
    pub fn get(&self, key: &Bytes) -> Result<Option<Bytes>, storage::Error> {
        match self.written.get(key) {
            Some(value) => Ok(value.clone()),
            None if is_dropped(&self.dropped, key) => Ok(None),
            None => self.store.get(Column::State, key),
        }
    }

    /// Sets a key. Not for hot rows.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        match self.written.entry(key) {
            btree_map::Entry::Vacant(row) => drop(row.insert(Some(value))),
            btree_map::Entry::Occupied(mut row) => {
                if row.get().is_none() {
                    self.replaced.insert(row.key().clone());
                }
                row.insert(Some(value));
            }
        }
    }

    /// Removes a key, if there. Not for hot rows.
    pub fn delete(&mut self, key: Bytes) {
        self.written.insert(key, None);
    }

    /// Removes all keys of a half-open range. Not for hot rows.
    pub fn delete_range(&mut self, range: Range<Bytes>) {
        if range.start < range.end {
            self.written.retain(|key, _| !range.contains(key));
            self.dropped.push(range);
        }
    }

    /// All rows of a half-open range, ascending, as this batch sees them. Hot rows need [`Txn::flush`] before.
    #[must_use]
    pub fn scan(&self, range: Range<Bytes>) -> Scan<'_> {
        // A map's range panics on reversed ends; an empty one is what is meant.
        let end = range.end.max(range.start.clone());
        let range = range.start..end;
        Scan {
            written: self.written.range(range.clone()).peekable(),
            stored: self.store.scan(Column::State, range).peekable(),
            dropped: &self.dropped,
        }
    }

    /// Encodes the hot rows that have changed, so that scans see them.
    pub fn flush(&mut self) {
        flush(&mut self.hot.applied, &mut self.written);
        flush(&mut self.hot.users, &mut self.written);
        flush(&mut self.hot.senders, &mut self.written);
        flush(&mut self.hot.uses, &mut self.written);
        flush(&mut self.hot.heads, &mut self.written);
    }

    /// A decoded row. Not for hot rows.
    ///
    /// # Errors
    /// What the store reports, and damage to the row.
    pub fn row<M: Message + Default>(&self, key: &Key<'_>) -> Result<Option<M>, storage::Error> {
        let bytes = key.encode();
        let value = self.get(&bytes)?;
        value
            .map(|value| value::decode(key.what(), &bytes, value))
            .transpose()
    }

    /// Sets a row. Not for hot rows.
    pub fn put_row(&mut self, key: &Key<'_>, row: &impl Message) {
        let key = key.encode();
        let value = value::encode(&key, row);
        self.put(key, value);
    }

    /// Sets a row that is all key.
    pub fn put_empty(&mut self, key: &Key<'_>) {
        let key = key.encode();
        let value = value::seal(&key, b"");
        self.put(key, value);
    }

    /// Removes a row, if there. Not for hot rows.
    pub fn delete_row(&mut self, key: &Key<'_>) {
        self.delete(key.encode());
    }

    /// A hot row.
    ///
    /// # Errors
    /// As [`Txn::row`].
    pub fn hot<R: HotRow>(&mut self, key: &Key<'_>) -> Result<Option<R>, storage::Error> {
        let bytes = key.encode();
        if let Some(known) = R::table(&mut self.hot).get(&bytes) {
            return Ok(known.value.clone());
        }
        let value: Option<R> = self.row(key)?;
        let known = HotValue {
            value: value.clone(),
            changed: false,
        };
        R::table(&mut self.hot).insert(bytes, known);
        Ok(value)
    }

    /// Sets a hot row.
    pub fn put_hot<R: HotRow>(&mut self, key: &Key<'_>, row: R) {
        self.set_hot(key, Some(row));
    }

    /// Removes a hot row, if there.
    pub fn delete_hot<R: HotRow>(&mut self, key: &Key<'_>) {
        self.set_hot::<R>(key, None);
    }

    /// A user's row.
    ///
    /// # Errors
    /// As [`Txn::row`].
    pub fn user(&mut self, name: &str) -> Result<Option<User>, storage::Error> {
        self.hot(&Key::User(self.home, name))
    }

    /// Sets a user's row.
    pub fn put_user(&mut self, name: &str, user: User) {
        self.put_hot(&Key::User(self.home, name), user);
    }

    fn set_hot<R: HotRow>(&mut self, key: &Key<'_>, value: Option<R>) {
        let changed = true;
        let value = HotValue { value, changed };
        R::table(&mut self.hot).insert(key.encode(), value);
    }
}

/// See [`Txn::scan`].
pub struct Scan<'a> {
    written: Peekable<btree_map::Range<'a, Bytes, Option<Bytes>>>,
    stored: Peekable<Rows<'a>>,
    dropped: &'a [Range<Bytes>],
}

impl Iterator for Scan<'_> {
    type Item = Result<(Bytes, Bytes), storage::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let stored = match self.stored.peek() {
                Some(Ok((key, _))) => Some(key),
                Some(Err(_)) => return self.stored.next(),
                None => None,
            };
            let written = self.written.peek().map(|&(key, _)| key);
            let stored_first = match (stored, written) {
                (None, None) => return None,
                (Some(stored), Some(written)) => stored < written,
                (stored, None) => stored.is_some(),
                (None, Some(_)) => false,
            };
            if stored_first {
                let row = self.stored.next()?;
                if !matches!(&row, Ok((key, _)) if is_dropped(self.dropped, key)) {
                    return Some(row);
                }
            } else {
                if stored == written {
                    self.stored.next();
                }
                let (key, value) = self.written.next()?;
                if let Some(value) = value {
                    return Some(Ok((key.clone(), value.clone())));
                }
            }
        }
    }
}

fn is_dropped(dropped: &[Range<Bytes>], key: &Bytes) -> bool {
    dropped.iter().any(|range| range.contains(key))
}

fn flush<R: HotRow>(rows: &mut Hot<R>, written: &mut BTreeMap<Bytes, Option<Bytes>>) {
    for (key, row) in rows.iter_mut().filter(|(_, row)| row.changed) {
        row.changed = false;
        let value = row.value.as_ref().map(|value| value::encode(key, value));
        written.insert(key.clone(), value);
    }
}

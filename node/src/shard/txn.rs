//! The view that one batch is applied through: the state before it, under what it has written so far.
//!
//! Rows that many commands of a batch touch (users, senders, outbox heads, the applied row) are *hot*: decoded once,
//! kept decoded while the batch is applied, and encoded once at its end. All others are encoded as they are put. The hot
//! rows of earlier batches are remembered ([`KnownRows`]), because most batches touch the same ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
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
    known: KnownRows,
}

/// A row kept decoded while a batch is applied. Implemented for the rows that batches touch again and again.
pub trait HotRow: Message + Default + Clone + Sized {
    #[doc(hidden)]
    fn table(hot: &mut HotRows) -> &mut Hot<Self>;
    #[doc(hidden)]
    fn known(known: &mut KnownRows) -> &mut Known<Self>;
}

/// Hot rows as the last batches left them. They are the rows of one state and no other: whoever switches to another
/// state, or does not write what a batch has made, begins anew with none.
#[derive(Debug, Default)]
pub struct KnownRows {
    applied: Known<Applied>,
    users: Known<User>,
    senders: Known<Sender>,
    uses: Known<SenderUse>,
    heads: Known<OutboxHead>,
    /// Of all of them, encoded; kept up to [`KNOWN_BYTES_MAX`].
    bytes: usize,
}

/// Beyond it known rows are forgotten, all at once: which of them would be wanted next is anybody's guess.
pub const KNOWN_BYTES_MAX: usize = 256 * 1024;

#[doc(hidden)]
pub type Known<V> = HashMap<Bytes, V>;

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
    ($($row:ty => $table:ident),*) => {
        $(
            impl HotRow for $row {
                fn table(hot: &mut HotRows) -> &mut Hot<Self> {
                    &mut hot.$table
                }
                fn known(known: &mut KnownRows) -> &mut Known<Self> {
                    &mut known.$table
                }
            }
        )*

        impl KnownRows {
            /// Takes over what a batch has touched, as it left it.
            fn learn(&mut self, hot: HotRows) {
                $(learn(&mut self.$table, hot.$table, &mut self.bytes);)*
                if self.bytes > KNOWN_BYTES_MAX {
                    *self = Self::default();
                }
            }
        }
    };
}

hot_rows!(Applied => applied, User => users, Sender => senders, SenderUse => uses, OutboxHead => heads);

impl KnownRows {
    /// What they hold, encoded; at most [`KNOWN_BYTES_MAX`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<'a> Txn<'a> {
    /// A view of a replica's state.
    #[must_use]
    pub fn new(store: &'a dyn Read, home: Home) -> Self {
        Self::with_known(store, home, KnownRows::default())
    }

    /// A view of a replica's state of which some rows are known.
    #[must_use]
    pub fn with_known(store: &'a dyn Read, home: Home, known: KnownRows) -> Self {
        Self {
            store,
            home,
            dropped: Vec::new(),
            written: BTreeMap::new(),
            replaced: BTreeSet::new(),
            hot: HotRows::default(),
            known,
        }
    }

    /// Where the state lives.
    #[must_use]
    pub fn home(&self) -> Home {
        self.home
    }

    /// Everything written: removed ranges first, then rows that were replaced, then single rows in key order.
    #[must_use]
    pub fn into_ops(self) -> Vec<Op> {
        self.finish().0
    }

    /// As [`Txn::into_ops`], with the rows that are known once all that is written.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Op>, KnownRows) {
        self.flush();
        self.known.learn(self.hot);
        let ranges = self.dropped.into_iter();
        let ranges = ranges.map(|range| Op::DeleteRange(Column::State, range));
        let replaced = self.replaced.into_iter();
        let replaced = replaced.map(|key| Op::Delete(Column::State, key));
        let rows = self.written.into_iter().map(|(key, value)| match value {
            Some(value) => Op::Put(Column::State, key, value),
            None => Op::Delete(Column::State, key),
        });
        (ranges.chain(replaced).chain(rows).collect(), self.known)
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
        let value: Option<R> = match R::known(&mut self.known).remove(&bytes) {
            Some(known) => {
                self.known.bytes -= known_bytes(&bytes, &known);
                Some(known)
            }
            None => self.row(key)?,
        };
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
        let bytes = key.encode();
        if let Some(known) = R::known(&mut self.known).remove(&bytes) {
            self.known.bytes -= known_bytes(&bytes, &known);
        }
        let changed = true;
        let value = HotValue { value, changed };
        R::table(&mut self.hot).insert(bytes, value);
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

fn learn<R: HotRow>(known: &mut Known<R>, hot: Hot<R>, bytes: &mut usize) {
    for (key, row) in hot {
        if let Some(row) = row.value {
            *bytes += known_bytes(&key, &row);
            known.insert(key, row);
        }
    }
}

fn known_bytes(key: &[u8], row: &impl Message) -> usize {
    key.len() + row.encoded_len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::types::ReplicaId;

    const HOME: Home = Home {
        replica: ReplicaId(1),
        generation: 0,
    };

    fn user(entries: u64) -> User {
        User {
            entries,
            ..User::default()
        }
    }

    fn entries(txn: &mut Txn<'_>, name: &str) -> Option<u64> {
        let user: Option<User> = txn.hot(&Key::User(HOME, name)).unwrap();
        user.map(|user| user.entries)
    }

    /// Goal: what the last batch left is what the next one sees, without a look at the store. Method: nothing is written to
    /// the store.
    #[test]
    fn known_rows_are_those_that_the_last_batch_left() {
        let store = MemoryStore::new();
        let mut txn = Txn::new(&store, HOME);
        for (name, count) in [("ann", 1), ("bob", 2), ("eve", 3)] {
            txn.put_hot(&Key::User(HOME, name), user(count));
        }
        let (_, known) = txn.finish();

        let mut txn = Txn::with_known(&store, HOME, known);
        assert_eq!(entries(&mut txn, "ann"), Some(1));
        txn.put_hot(&Key::User(HOME, "bob"), user(20));
        txn.delete_hot::<User>(&Key::User(HOME, "eve"));
        let (ops, known) = txn.finish();
        assert_eq!(ops.len(), 2, "what was only read is not written");

        let mut txn = Txn::with_known(&store, HOME, known);
        let seen = ["ann", "bob", "eve"].map(|name| entries(&mut txn, name));
        assert_eq!(seen, [Some(1), Some(20), None]);
    }

    #[test]
    fn known_rows_are_bounded_and_counted() {
        let store = MemoryStore::new();
        let mut known = KnownRows::default();
        let mut most = 0;
        for number in 0..20_000 {
            let mut txn = Txn::with_known(&store, HOME, known);
            txn.put_hot(&Key::User(HOME, &format!("user{number}")), user(1));
            known = txn.finish().1;
            let users = known.users.iter();
            let bytes: usize = users.map(|(key, row)| known_bytes(key, row)).sum();
            assert_eq!(known.bytes(), bytes);
            most = most.max(bytes);
        }
        assert!(
            (KNOWN_BYTES_MAX / 2..=KNOWN_BYTES_MAX).contains(&most),
            "{most}"
        );
    }
}

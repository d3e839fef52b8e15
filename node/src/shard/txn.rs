//! The view that one batch is applied through: the state before it, under what it has written so far.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::storage::keys::Home;
use crate::storage::{self, Column, Op, Read};

/// Reads through, collects writes. Rows are addressed by encoded key in the state column.
pub struct Txn<'a> {
    store: &'a dyn Read,
    home: Home,
    written: BTreeMap<Bytes, Option<Bytes>>,
}

impl<'a> Txn<'a> {
    /// A view of a replica's state.
    #[must_use]
    pub fn new(store: &'a dyn Read, home: Home) -> Self {
        Self {
            store,
            home,
            written: BTreeMap::new(),
        }
    }

    /// Where the state lives.
    #[must_use]
    pub fn home(&self) -> Home {
        self.home
    }

    /// Everything written, in key order.
    #[must_use]
    pub fn into_ops(self) -> Vec<Op> {
        self.written
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => Op::Put(Column::State, key, value),
                None => Op::Delete(Column::State, key),
            })
            .collect()
    }

    /// The value of a key, as this batch sees it.
    ///
    /// # Errors
    /// What the store reports.
    pub fn get(&self, key: &Bytes) -> Result<Option<Bytes>, storage::Error> {
        match self.written.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(Column::State, key),
        }
    }

    /// Sets a key.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.written.insert(key, Some(value));
    }

    /// Removes a key, if there.
    pub fn delete(&mut self, key: Bytes) {
        self.written.insert(key, None);
    }
}

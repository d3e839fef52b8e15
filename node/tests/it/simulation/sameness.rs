//! Replicas of one shard that have applied the same entries hold the same state, row by row.

use std::collections::BTreeMap;

use bytes::Bytes;
use roost::raft::View;
use roost::storage::keys::home_range;
use roost::storage::{Column, Error, value};

/// What a replica's state holds: keys without the home that they stand in, payloads without their seal.
pub(super) type Rows = BTreeMap<Bytes, Bytes>;

/// All rows of a state.
///
/// # Errors
/// The first that is damaged.
pub(super) fn rows(view: &View) -> Result<Rows, Error> {
    let range = home_range(view.home());
    let prefix = range.start.len();
    let rows = view.store().scan(Column::State, range);
    rows.map(|row| {
        let (key, value) = row?;
        let payload = match value.is_empty() {
            true => Bytes::new(),
            false => value::open("row", &key, value)?,
        };
        Ok((key.slice(prefix..), payload))
    })
    .collect()
}

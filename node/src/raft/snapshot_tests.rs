//! Transfers of a state, whole and damaged.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use openraft::testing::log_id;
use proptest::prelude::*;

use super::super::codec::{self, decode_message, encode_message};
use super::super::types::StoredMembership;
use super::*;
use crate::storage::Store as _;
use crate::storage::keys::Key;
use crate::storage::memory::MemoryStore;
use crate::types::{ReplicaId, ShardId};

const FROM: Home = Home {
    replica: ReplicaId(1),
    generation: 0,
};
const TO: Home = Home {
    replica: ReplicaId(2),
    generation: 7,
};

/// A state with rows of these sizes; every third is only a key.
fn state(sizes: &[usize]) -> (MemoryStore, Frozen) {
    let store = MemoryStore::new();
    let progress = Progress {
        applied: Some(log_id(3, 1, 99)),
        membership: StoredMembership::default(),
    };
    let mut batch = Batch::default();
    let mut put = |key: Key<'_>, payload: Option<Vec<u8>>| {
        let key = key.encode();
        let value = payload.map_or(Bytes::new(), |payload| value::seal(&key, &payload));
        batch.put(Column::State, key, value);
    };
    put(
        Key::RaftState(FROM),
        Some(codec::encode(&progress).to_vec()),
    );
    for (seq, size) in sizes.iter().enumerate() {
        let payload = (seq % 3 != 2).then(|| vec![u8::try_from(seq % 251).unwrap(); *size]);
        put(Key::Entry(FROM, "user", seq as u64), payload);
    }
    store.write(batch).unwrap();
    let states = States::open(Arc::new(store.clone()), ShardId(0), FROM.replica).unwrap();
    let Handle::Frozen(frozen) = *current(&states).unwrap().snapshot else {
        unreachable!("a look at the state is frozen");
    };
    (store, frozen)
}

fn chunks(frozen: Frozen) -> Vec<Chunk> {
    let mut sender = Sender::new(frozen, Vote::new_committed(3, 1), Instant::now());
    let mut chunks = Vec::new();
    while let Some(chunk) = sender.next().unwrap() {
        chunks.push(decode_message("chunk", encode_message(&chunk)).unwrap());
    }
    chunks
}

fn receive(store: &MemoryStore, chunks: Vec<Chunk>) -> Result<Option<Received>, Error> {
    let states = States::open(Arc::new(store.clone()), ShardId(0), TO.replica).unwrap();
    let mut receiver = Receiver::new(TO, &chunks[0]);
    let mut received = None;
    for chunk in chunks {
        received = receiver.accept(&states, chunk)?;
    }
    Ok(received)
}

/// Rows by what stands behind the home, opened.
fn rows(store: &MemoryStore, home: Home) -> BTreeMap<Bytes, Option<Bytes>> {
    let rows = store.scan(Column::State, home_range(home));
    rows.map(|row| {
        let (key, value) = row.unwrap();
        let payload = (!value.is_empty()).then(|| value::open("row", &key, value).unwrap());
        (key.slice(home_bytes(home)..), payload)
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_state_arrives_whole(sizes in prop::collection::vec(0_usize..150_000, 0..12)) {
        let (source, frozen) = state(&sizes);
        let target = MemoryStore::new();
        let chunks = chunks(frozen);
        for chunk in &chunks {
            let bytes: usize = chunk.rows.iter().map(|(_, value)| value.as_ref().map_or(0, Bytes::len)).sum();
            prop_assert!(bytes <= CHUNK_BYTES_MAX + 150_000);
        }
        let received = receive(&target, chunks).unwrap().expect("the last chunk ends it");
        prop_assert_eq!(received.home, TO);
        prop_assert_eq!(received.progress.applied, Some(log_id(3, 1, 99)));
        prop_assert_eq!(rows(&source, FROM), rows(&target, TO));
    }

    /// Whatever is left out, swapped or changed on the way, the state is not taken.
    #[test]
    fn a_changed_transfer_is_refused(which: prop::sample::Index, how in 0..5) {
        let (_, frozen) = state(&[200_000; 9]);
        let mut chunks = chunks(frozen);
        prop_assert!(chunks.len() > 3);
        // Not the first: a transfer that begins later is refused by the inbox.
        let at = 1 + which.index(chunks.len() - 1);
        match how {
            0 => { chunks.remove(at); }
            1 => { chunks[at].rows.pop(); }
            2 => chunks[at].stream ^= 1,
            3 => chunks[at].progress.applied = None,
            _ => chunks[at].rows.push((Bytes::from_static(b"\x04more"), None)),
        }
        let taken = receive(&MemoryStore::new(), chunks);
        prop_assert!(!matches!(taken, Ok(Some(_))));
    }
}

#[test]
fn a_damaged_row_is_not_sent() {
    let (store, _) = state(&[10; 3]);
    store.flip_bit(Column::State, &Key::Entry(FROM, "user", 1).encode());
    let states = States::open(Arc::new(store.clone()), ShardId(0), FROM.replica).unwrap();
    let Handle::Frozen(frozen) = *current(&states).unwrap().snapshot else {
        unreachable!("a look at the state is frozen");
    };
    let mut sender = Sender::new(frozen, Vote::default(), Instant::now());
    assert!(matches!(sender.next(), Err(Error::Corrupt { .. })));
}

/// A frozen view holds still while the state goes on.
#[test]
fn a_snapshot_is_of_one_moment() {
    let (store, frozen) = state(&[10; 3]);
    let mut batch = Batch::default();
    batch.delete_range(Column::State, home_range(FROM));
    store.write(batch).unwrap();
    let received = receive(&MemoryStore::new(), chunks(frozen)).unwrap();
    assert!(received.is_some());
}

/// What an install left unfinished is gone after the next start, and a view keeps its generation alive.
#[test]
fn generations_come_and_go() {
    let (store, frozen) = state(&[10; 3]);
    let states = States::open(Arc::new(store.clone()), ShardId(0), FROM.replica).unwrap();
    let left_over = states.reserve();
    copy(frozen, left_over, &states).unwrap();
    assert!(!rows(&store, left_over).is_empty());
    let states = States::open(Arc::new(store.clone()), ShardId(0), FROM.replica).unwrap();
    assert!(rows(&store, left_over).is_empty());
    assert!(!rows(&store, FROM).is_empty());

    let view = states.view();
    states.switch(states.reserve());
    states.sweep().unwrap();
    assert!(!rows(&store, FROM).is_empty());
    drop(view);
    states.sweep().unwrap();
    assert!(rows(&store, FROM).is_empty());
}

/// A worker that outlives its group writes nothing into the state of the group that was opened in its place.
#[test]
fn a_closed_state_is_not_written() {
    let store = MemoryStore::new();
    let states = States::open(Arc::new(store.clone()), ShardId(0), FROM.replica).unwrap();
    states.close();
    let mut batch = Batch::default();
    batch.put(Column::State, home_range(FROM).start, "late");
    assert!(states.write(batch).is_err());
    assert_eq!(store.unsynced(), 1, "only what opening wrote");
}

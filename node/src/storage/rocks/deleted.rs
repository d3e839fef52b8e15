//! Where messages have been deleted and may still be in files: a note for each queue, and for each deleted range.
//!
//! A note is made before the deletion is written, and its row (`Key::Deleted`) is written with it, so a restart knows
//! what was left to do. It goes when [`reclaim`](super::reclaim) has been over its range. In memory a queue's note is as
//! narrow as what was deleted; its row names the whole queue, so that it is written once and not with every ack. Rows
//! without a message (receipts, indexes) have no note: their bytes go when RocksDB compacts by itself.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Range;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::super::keys::{self, Key};
use super::super::{Batch, Column, Error, Op, Rows, value};

/// Beyond it each note is merged with its neighbour, and reclaiming goes over what lies between them, too.
pub(super) const NOTES_MAX: usize = 32_768;

/// See the module.
#[derive(Default)]
pub(super) struct Deleted {
    notes: Mutex<Notes>,
    /// Shared by whoever notes a deletion until it is written; exclusive where no deletion may be under way.
    writes: RwLock<()>,
}

#[derive(Default)]
struct Notes {
    /// By column, and where the range of their row starts.
    made: BTreeMap<(Column, Bytes), Note>,
    /// The ends of those that are being reclaimed: a new row in the place of one of them must not reach less far.
    taken: BTreeMap<(Column, Bytes), Bytes>,
}

#[derive(Clone, Debug)]
struct Note {
    /// What was deleted.
    range: Range<Bytes>,
    /// Where its row ends.
    row_end: Bytes,
    /// The number of the next frozen view when the last of it was deleted: older ones need it.
    views: u64,
}

/// A range to go over.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) column: Column,
    pub(super) range: Range<Bytes>,
    start: Bytes,
    note: Note,
}

impl Deleted {
    /// Reads the notes that a former process left.
    pub(super) fn load(&self, rows: Rows<'_>) -> Result<(), Error> {
        let mut notes = self.notes.lock();
        for row in rows {
            let (key, value) = row?;
            let Key::Deleted(column, start) = Key::decode(Column::Node, &key)? else {
                continue;
            };
            let end = value::open("note of a deletion", &key, value)?;
            let start = Bytes::copy_from_slice(start);
            let note = Note {
                range: start.clone()..end.clone(),
                row_end: end,
                views: 0,
            };
            notes.made.insert((column, start), note);
        }
        Ok(())
    }

    /// Notes a batch's deletions, and adds the notes' rows to it. Hold what it returns until the batch is written.
    pub(super) fn note(
        &self,
        batch: &mut Batch,
        next_view: u64,
    ) -> Option<RwLockReadGuard<'_, ()>> {
        let deletes = |op: &Op| !matches!(op, Op::Put(..));
        if !batch.0.iter().any(deletes) {
            return None;
        }
        let writes = self.writes.read();
        let mut notes = self.notes.lock();
        let mut rows = Batch::default();
        for op in &batch.0 {
            match op {
                Op::Delete(Column::State, key) => {
                    if let Some(queue) = keys::queue_of(key) {
                        notes.entry_deleted(queue, key, next_view, &mut rows);
                    }
                }
                Op::DeleteRange(column @ (Column::Log | Column::State), range)
                    if range.start < range.end =>
                {
                    notes.range_deleted(*column, range, next_view, &mut rows);
                }
                _ => {}
            }
        }
        if notes.made.len() > NOTES_MAX {
            notes.merge_neighbours(&mut rows);
        }
        batch.0.extend(rows.0);
        Some(writes)
    }

    /// How many notes there are, without those that are being reclaimed.
    pub(super) fn notes(&self) -> usize {
        self.notes.lock().made.len()
    }

    /// While this is held no deletion is between its note and its write.
    pub(super) fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.writes.write()
    }

    /// Takes out what no view older than this one needs, and says how many others there are.
    pub(super) fn take(&self, oldest_view: u64) -> (Vec<Taken>, usize) {
        let _pause = self.pause();
        let mut notes = self.notes.lock();
        let (free, pinned): (BTreeMap<_, _>, _) = mem::take(&mut notes.made)
            .into_iter()
            .partition(|(_, note)| note.views <= oldest_view);
        notes.made = pinned;
        let waiting = notes.made.len();
        let ends = free.iter();
        notes.taken = ends
            .map(|(key, note)| (key.clone(), note.row_end.clone()))
            .collect();
        let taken = free.into_iter().map(|((column, start), note)| Taken {
            column,
            range: note.range.clone(),
            start,
            note,
        });
        (taken.collect(), waiting)
    }

    /// Ends what [`Deleted::take`] began: the rows of what is reclaimed go, unless more has been deleted there.
    pub(super) fn settle<E>(
        &self,
        taken: &[Taken],
        write: impl FnOnce(Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        let _pause = self.pause();
        let mut notes = self.notes.lock();
        notes.taken.clear();
        let mut batch = Batch::default();
        for taken in taken {
            let again = notes.made.get(&(taken.column, taken.start.clone()));
            if again.is_none() {
                batch.delete(Column::Node, row_key(taken.column, &taken.start));
            }
        }
        write(batch)
    }

    /// Ends it without success: what was taken is noted again. Its rows are there still.
    pub(super) fn put_back(&self, taken: Vec<Taken>) {
        let mut notes = self.notes.lock();
        notes.taken.clear();
        for taken in taken {
            let key = (taken.column, taken.start);
            let note = match notes.made.remove(&key) {
                Some(newer) => merged(taken.note, newer),
                None => taken.note,
            };
            notes.made.insert(key, note);
        }
    }
}

impl Notes {
    fn entry_deleted(&mut self, queue: Range<Bytes>, key: &Bytes, views: u64, rows: &mut Batch) {
        let place = (Column::State, queue.start);
        if let Some(note) = self.made.get_mut(&place) {
            if *key < note.range.start {
                note.range.start = key.clone();
            }
            note.views = views;
            let end = behind(key);
            if end > note.range.end {
                note.range.end = end;
            }
            return;
        }
        let note = Note {
            range: key.clone()..behind(key),
            row_end: queue.end,
            views,
        };
        self.insert(place, note, rows);
    }

    /// One range behind the other, as a log is purged, makes one note.
    fn range_deleted(
        &mut self,
        column: Column,
        range: &Range<Bytes>,
        views: u64,
        rows: &mut Batch,
    ) {
        let place = (column, range.start.clone());
        let before = self.made.range(..=&place).next_back();
        let joined = before
            .filter(|((of, _), note)| *of == column && note.range.end >= range.start)
            .map(|(place, note)| (place.clone(), note.clone()));
        let new = Note {
            range: range.clone(),
            row_end: range.end.clone(),
            views,
        };
        match joined {
            Some((place, note)) => self.insert(place, merged(note, new), rows),
            None => self.insert(place, new, rows),
        }
    }

    fn insert(&mut self, place: (Column, Bytes), mut note: Note, rows: &mut Batch) {
        if let Some(end) = self.taken.get(&place) {
            note.row_end = note.row_end.max(end.clone());
        }
        let key = row_key(place.0, &place.1);
        let value = value::seal(&key, &note.row_end);
        rows.put(Column::Node, key, value);
        self.made.insert(place, note);
    }

    fn merge_neighbours(&mut self, rows: &mut Batch) {
        let mut notes = mem::take(&mut self.made).into_iter().peekable();
        while let Some((place, note)) = notes.next() {
            match notes.next_if(|((column, _), _)| *column == place.0) {
                Some(((column, start), other)) => {
                    rows.delete(Column::Node, row_key(column, &start));
                    self.insert(place, merged(note, other), rows);
                }
                None => {
                    self.made.insert(place, note);
                }
            }
        }
    }
}

fn merged(one: Note, other: Note) -> Note {
    Note {
        range: one.range.start.min(other.range.start)..one.range.end.max(other.range.end),
        row_end: one.row_end.max(other.row_end),
        views: one.views.max(other.views),
    }
}

fn row_key(column: Column, start: &[u8]) -> Bytes {
    Key::Deleted(column, start).encode()
}

fn behind(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::keys::Home;
    use super::super::super::memory::MemoryStore;
    use super::super::super::{Read as _, Store as _};
    use super::*;
    use crate::types::ReplicaId;

    const HOME: Home = Home {
        replica: ReplicaId(1),
        generation: 0,
    };

    fn entry(user: usize) -> Bytes {
        Key::Entry(HOME, &format!("{user:06}"), 7).encode()
    }

    fn covers(deleted: &Deleted, key: &Bytes) -> bool {
        let notes = deleted.notes.lock();
        let mut notes = notes.made.values();
        notes.any(|note| note.range.contains(key))
    }

    /// Goal: the bound holds, and nothing is forgotten, neither in memory nor by a restart. Method: entries of more users
    /// than there may be notes, every hundredth looked for; the rows are kept in a store that a second instance reads.
    #[test]
    fn beyond_the_bound_notes_are_merged_and_cover_the_same() {
        let (deleted, store) = (Deleted::default(), MemoryStore::new());
        let users = NOTES_MAX + NOTES_MAX / 2;
        for user in 0..users {
            let mut batch = Batch::default();
            batch.delete(Column::State, entry(user));
            drop(deleted.note(&mut batch, 0).unwrap());
            store.write(batch).unwrap();
            assert!(deleted.notes.lock().made.len() <= NOTES_MAX);
        }
        let again = Deleted::default();
        let rows = || store.scan(Column::Node, keys::deletions());
        again.load(rows()).unwrap();
        assert_eq!(rows().count(), deleted.notes.lock().made.len());
        for user in (0..users).step_by(100) {
            assert!(covers(&deleted, &entry(user)), "user {user}");
            assert!(covers(&again, &entry(user)), "user {user} after a restart");
        }
        let (taken, waiting) = deleted.take(0);
        assert_eq!((taken.len(), waiting), (rows().count(), 0));
        deleted.settle(&taken, |batch| store.write(batch)).unwrap();
        assert_eq!(rows().count(), 0);
    }

    /// Goal: what is deleted while a removal is under way is not forgotten with it, nor what that removal had to do, should
    /// it not end. Method: a note that covers two queues is taken; one of them is deleted from again; a restart.
    #[test]
    fn a_deletion_during_a_removal_keeps_its_note() {
        let (deleted, store) = (Deleted::default(), MemoryStore::new());
        let note = |batch: &mut Batch| drop(deleted.note(batch, 0));
        let mut batch = Batch::default();
        batch.delete_range(Column::State, entry(1)..entry(5));
        note(&mut batch);
        store.write(batch).unwrap();
        let (taken, _) = deleted.take(0);
        let mut batch = Batch::default();
        batch.delete_range(Column::State, entry(1)..entry(2));
        note(&mut batch);
        store.write(batch).unwrap();
        let again = Deleted::default();
        again
            .load(store.scan(Column::Node, keys::deletions()))
            .unwrap();
        assert!(covers(&again, &entry(4)));
        deleted.settle(&taken, |batch| store.write(batch)).unwrap();
        assert!(covers(&deleted, &entry(1)) && !covers(&deleted, &entry(4)));
        let rows = store.scan(Column::Node, keys::deletions());
        assert_eq!(rows.count(), 1);
    }

    #[test]
    fn a_log_that_is_purged_step_by_step_has_one_note() {
        let deleted = Deleted::default();
        for step in 0..100 {
            let mut batch = Batch::default();
            let range = keys::log_entries(HOME.replica, step * 10..step * 10 + 10);
            batch.delete_range(Column::Log, range);
            drop(deleted.note(&mut batch, step));
        }
        let (none, waiting) = deleted.take(98);
        assert_eq!((none.len(), waiting), (0, 1));
        let (taken, _) = deleted.take(99);
        assert_eq!(taken[0].range, keys::log_entries(HOME.replica, 0..1000));
    }
}

//! A store in memory that forgets unsynced writes on a crash, and fails when told to. For tests.
//!
//! A handle is one process's view of the disk: [`MemoryStore::crash`] ends it, so that tasks which outlive their node
//! in a test can write nothing more, and gives the handle of the next process. What the crash kept of the unsynced
//! batches is *visible* to that process but durable only after its own first sync, as with a page cache: a second
//! crash may still take it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::keys::queue_of;
use super::{Batch, Column, Error, Fill, Op, Read, Reclaimed, Rows, Store};

type Map = BTreeMap<Bytes, Bytes>;

/// See the module.
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    disk: Mutex<Disk>,
    unblocked: Condvar,
}

#[derive(Default)]
struct Disk {
    durable: View,
    visible: View,
    /// Written and not synced, in order: `visible` is `durable` with these applied.
    unsynced: Vec<Batch>,
    syncs: u64,
    /// The process is dead: nothing it does reaches the disk any more.
    crashed: bool,
    syncs_blocked: bool,
    syncs_fail: bool,
    syncs_lie: bool,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Kills the process: the first `keep` unsynced batches survive, what came after is lost. This handle and its
    /// clones fail from now on; the answer is the disk as the next process finds it, without the faults.
    #[must_use]
    pub fn crash(&self, keep: usize) -> Self {
        let mut disk = self.shared.disk.lock();
        disk.crashed = true;
        self.shared.unblocked.notify_all();
        let mut next = Disk {
            durable: disk.durable.clone(),
            visible: disk.durable.clone(),
            ..Disk::default()
        };
        next.visible.flipped = disk.visible.flipped.clone();
        for batch in disk.unsynced.iter().take(keep) {
            next.visible.apply(batch);
            next.unsynced.push(batch.clone());
        }
        Self {
            shared: Arc::new(Shared {
                disk: Mutex::new(next),
                unblocked: Condvar::new(),
            }),
        }
    }

    /// What a crash now would leave at least.
    #[must_use]
    pub fn durable(&self) -> Arc<dyn Read> {
        Arc::new(self.shared.disk.lock().durable.clone())
    }

    /// How many batches a crash now could lose.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.shared.disk.lock().unsynced.len()
    }

    /// How many syncs have succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared.disk.lock().syncs
    }

    /// Every sync from now on fails, or works again.
    pub fn fail_syncs(&self, fail: bool) {
        self.shared.disk.lock().syncs_fail = fail;
    }

    /// Every sync from now on hangs, or those that hang go on.
    pub fn block_syncs(&self, block: bool) {
        self.shared.disk.lock().syncs_blocked = block;
        self.shared.unblocked.notify_all();
    }

    /// Every sync from now on claims success and does nothing: what a test of durability has to notice.
    pub fn lie_about_syncs(&self, lie: bool) {
        self.shared.disk.lock().syncs_lie = lie;
    }

    /// Reads of this key give a value with one bit flipped, from now on and after every crash, until it is written
    /// again.
    pub fn flip_bit(&self, column: Column, key: &[u8]) {
        let key = Bytes::copy_from_slice(key);
        let mut disk = self.shared.disk.lock();
        Arc::make_mut(&mut disk.visible.flipped).insert((column, key));
    }

    fn alive(&self, action: &'static str) -> Result<MutexGuard<'_, Disk>, Error> {
        let disk = self.shared.disk.lock();
        match disk.crashed {
            false => Ok(disk),
            true => Err(io(action, "this process has crashed")),
        }
    }
}

impl Read for MemoryStore {
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.alive("reading")?.visible.get(column, key)
    }

    fn scan(&self, column: Column, range: Range<Bytes>) -> Rows<'_> {
        match self.alive("reading") {
            Ok(disk) => Box::new(disk.visible.rows(column, range)),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn last(&self, column: Column, range: Range<Bytes>) -> Result<Option<(Bytes, Bytes)>, Error> {
        self.alive("reading")?.visible.last(column, range)
    }
}

impl Store for MemoryStore {
    fn write(&self, batch: Batch) -> Result<(), Error> {
        let mut disk = self.alive("writing")?;
        disk.visible.apply(&batch);
        disk.unsynced.push(batch);
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        let mut disk = self.alive("syncing")?;
        // What is written while a sync hangs is not covered by it.
        let covered = disk.unsynced.len();
        while disk.syncs_blocked && !disk.crashed {
            self.shared.unblocked.wait(&mut disk);
        }
        if disk.crashed || disk.syncs_fail {
            return Err(io("syncing", "the test's disk fails"));
        }
        disk.syncs += 1;
        if disk.syncs_lie {
            return Ok(());
        }
        // Two syncs may have waited at the same time.
        let covered = covered.min(disk.unsynced.len());
        let batches: Vec<Batch> = disk.unsynced.drain(..covered).collect();
        for batch in &batches {
            disk.durable.apply(batch);
        }
        Ok(())
    }

    fn freeze(&self) -> Arc<dyn Read> {
        Arc::new(self.shared.disk.lock().visible.clone())
    }

    /// Nothing to do: what is deleted here is gone.
    fn reclaim(&self) -> Result<Reclaimed, Error> {
        self.alive("reclaiming").map(|_| Reclaimed::default())
    }

    /// Nothing here has a bound.
    fn fill(&self) -> Result<Fill, Error> {
        self.alive("measuring").map(|_| Fill::default())
    }
}

/// Contents at one moment. Cloning shares the maps; the next write to a shared map copies it.
#[derive(Clone, Default)]
struct View {
    node: Arc<Map>,
    log: Arc<Map>,
    state: Arc<Map>,
    flipped: Arc<BTreeSet<(Column, Bytes)>>,
}

impl View {
    fn map(&self, column: Column) -> &Arc<Map> {
        match column {
            Column::Node => &self.node,
            Column::Log => &self.log,
            Column::State => &self.state,
        }
    }

    fn map_mut(&mut self, column: Column) -> &mut Map {
        Arc::make_mut(match column {
            Column::Node => &mut self.node,
            Column::Log => &mut self.log,
            Column::State => &mut self.state,
        })
    }

    fn apply(&mut self, batch: &Batch) {
        for op in &batch.0 {
            match op {
                Op::Put(column, key, value) => {
                    self.mend(*column, key);
                    let before = self.map_mut(*column).insert(key.clone(), value.clone());
                    let is_entry = *column == Column::State && queue_of(key).is_some();
                    assert!(
                        !is_entry || before.is_none(),
                        "an entry is set twice: the store of a real node would not delete it whole"
                    );
                }
                Op::Delete(column, key) => {
                    self.map_mut(*column).remove(key);
                }
                Op::DeleteRange(column, range) => {
                    let map = self.map_mut(*column);
                    let gone: Vec<Bytes> = keys_in(map, range).cloned().collect();
                    for key in gone {
                        map.remove(&key);
                    }
                }
            }
        }
    }

    fn mend(&mut self, column: Column, key: &Bytes) {
        if !self.flipped.is_empty() {
            Arc::make_mut(&mut self.flipped).remove(&(column, key.clone()));
        }
    }

    fn rows(&self, column: Column, range: Range<Bytes>) -> ViewRows {
        ViewRows {
            view: self.clone(),
            column,
            next: Bound::Included(range.start),
            end: range.end,
        }
    }

    fn served(&self, column: Column, key: &Bytes, value: &Bytes) -> Bytes {
        if self.flipped.is_empty() || !self.flipped.contains(&(column, key.clone())) {
            return value.clone();
        }
        let mut damaged = value.to_vec();
        let middle = damaged.len() / 2;
        if let Some(byte) = damaged.get_mut(middle) {
            *byte ^= 1;
        }
        damaged.into()
    }
}

impl Read for View {
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let row = self.map(column).get_key_value(key);
        Ok(row.map(|(key, value)| self.served(column, key, value)))
    }

    fn scan(&self, column: Column, range: Range<Bytes>) -> Rows<'_> {
        Box::new(self.rows(column, range))
    }

    fn last(&self, column: Column, range: Range<Bytes>) -> Result<Option<(Bytes, Bytes)>, Error> {
        let map = self.map(column);
        let last = keys_in(map, &range).next_back();
        Ok(last.map(|key| (key.clone(), self.served(column, key, &map[key]))))
    }
}

/// A scan. It owns its view, so that writes go on beside it; each step is one look-up.
struct ViewRows {
    view: View,
    column: Column,
    next: Bound<Bytes>,
    end: Bytes,
}

impl Iterator for ViewRows {
    type Item = Result<(Bytes, Bytes), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (Bound::Included(from) | Bound::Excluded(from)) = &self.next else {
            return None;
        };
        // `BTreeMap::range` panics on a range that runs backwards.
        if *from >= self.end {
            return None;
        }
        let rest = (self.next.clone(), Bound::Excluded(self.end.clone()));
        let (key, value) = self.view.map(self.column).range(rest).next()?;
        let row = (key.clone(), self.view.served(self.column, key, value));
        self.next = Bound::Excluded(row.0.clone());
        Some(Ok(row))
    }
}

fn keys_in<'a>(map: &'a Map, range: &Range<Bytes>) -> impl DoubleEndedIterator<Item = &'a Bytes> {
    let end = range.end.clone().max(range.start.clone());
    map.range(range.start.clone()..end).map(|(key, _)| key)
}

fn io(action: &'static str, message: &str) -> Error {
    Error::Io {
        action,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn put(store: &MemoryStore, key: &'static str) {
        let mut batch = Batch::default();
        batch.put(Column::State, key, "value");
        store.write(batch).unwrap();
    }

    fn keys(store: &dyn Read) -> Vec<String> {
        let all = Bytes::new()..Bytes::from_static(b"\xff");
        let rows = store.scan(Column::State, all).map(|row| row.unwrap().0);
        rows.map(|key| String::from_utf8(key.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let store = MemoryStore::new();
        put(&store, "a");
        store.sync().unwrap();
        put(&store, "b");
        put(&store, "c");
        assert_eq!((store.syncs(), store.unsynced()), (1, 2));
        let next = store.crash(1);
        assert_eq!(keys(&next), ["a", "b"]);
        // Not yet synced by the new process, so a second crash may take it.
        assert_eq!(keys(&next.crash(0)), ["a"]);
    }

    #[test]
    fn after_a_crash_the_old_process_does_nothing() {
        let store = MemoryStore::new();
        let next = store.crash(0);
        assert!(store.write(Batch::default()).is_err());
        assert!(store.sync().is_err());
        assert!(store.get(Column::Node, b"a").is_err());
        assert!(keys(&next).is_empty());
    }

    #[test]
    fn a_frozen_view_and_a_running_scan_do_not_change() {
        let store = MemoryStore::new();
        put(&store, "a");
        put(&store, "b");
        let frozen = store.freeze();
        let mut scan = store.scan(
            Column::State,
            Bytes::from_static(b"a")..Bytes::from_static(b"z"),
        );
        assert_eq!(scan.next().unwrap().unwrap().0, "a");
        put(&store, "c");
        assert_eq!(scan.count(), 1);
        assert_eq!(keys(&*frozen), ["a", "b"]);
        assert_eq!(keys(&store), ["a", "b", "c"]);
    }

    #[test]
    fn a_batch_is_applied_in_order() {
        let store = MemoryStore::new();
        put(&store, "a");
        let mut batch = Batch::default();
        batch.put(Column::State, "b", "1");
        batch.delete_range(
            Column::State,
            Bytes::from_static(b"a")..Bytes::from_static(b"c"),
        );
        batch.put(Column::State, "b", "2");
        store.write(batch).unwrap();
        assert_eq!(keys(&store), ["b"]);
        let range = Bytes::from_static(b"a")..Bytes::from_static(b"c");
        let last = store.last(Column::State, range).unwrap().unwrap();
        assert_eq!(last, (Bytes::from("b"), Bytes::from("2")));
    }

    #[test]
    fn faults_are_seen() {
        let store = MemoryStore::new();
        put(&store, "a");
        store.fail_syncs(true);
        assert!(store.sync().is_err());
        store.fail_syncs(false);
        store.lie_about_syncs(true);
        store.sync().unwrap();
        assert_eq!(store.unsynced(), 1);
        store.flip_bit(Column::State, b"a");
        let damaged = store.get(Column::State, b"a").unwrap().unwrap();
        assert_ne!(damaged, "value");
        put(&store, "a");
        assert_eq!(store.get(Column::State, b"a").unwrap().unwrap(), "value");
    }

    /// A sync that hangs goes on when it is let go, and fails when its process dies.
    #[test]
    fn a_hanging_sync_ends_by_release_or_crash() {
        let store = MemoryStore::new();
        put(&store, "a");
        store.block_syncs(true);
        let sync = || {
            let store = store.clone();
            std::thread::spawn(move || store.sync())
        };
        let released = sync();
        store.block_syncs(false);
        released.join().unwrap().unwrap();
        assert_eq!(store.unsynced(), 0);
        store.block_syncs(true);
        let killed = sync();
        let _next = store.crash(0);
        assert!(killed.join().unwrap().is_err());
    }
}

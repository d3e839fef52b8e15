//! A crash is a copy of the data directory taken while the store is open: exactly what a kill leaves behind.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use tempfile::TempDir;

use super::*;
use crate::storage::keys::Home;
use crate::storage::memory::MemoryStore;
use crate::types::ReplicaId;

fn open(dir: &Path) -> Result<RocksStore, OpenError> {
    RocksStore::open(dir, &Options::default())
}

fn put(store: &dyn Store, column: Column, key: &str, value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(column, key.to_owned(), Bytes::copy_from_slice(value));
    store.write(batch).unwrap();
}

fn all() -> Range<Bytes> {
    Bytes::new()..Bytes::from_static(b"\xff")
}

fn keys(store: &dyn Read, column: Column) -> Vec<String> {
    let rows = store.scan(column, all()).map(|row| row.unwrap().0);
    rows.map(|key| String::from_utf8(key.to_vec()).unwrap())
        .collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

/// What a kill at this moment leaves.
fn crashed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files(dir) {
        let to = copy.path().join(file.strip_prefix(dir).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&file, to).unwrap();
    }
    copy
}

fn wals(dir: &Path) -> Vec<PathBuf> {
    let mut wals = files(dir);
    wals.retain(|file| file.extension().is_some_and(|ext| ext == "log"));
    wals.retain(|file| file.metadata().unwrap().len() > 0);
    wals
}

fn flip_bit(file: &Path, byte: usize, bit: u32) {
    let mut bytes = fs::read(file).unwrap();
    bytes[byte] ^= 1 << bit;
    fs::write(file, bytes).unwrap();
}

fn is_corrupt(result: &Result<RocksStore, OpenError>) -> bool {
    matches!(result, Err(OpenError::Store(Error::Corrupt { .. })))
}

/// Everything but RocksDB's own log and lock, which any opening touches.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = files(dir);
    files.retain(|file| {
        let name = file.file_name().unwrap().to_str().unwrap();
        !name.starts_with("LOG") && name != "LOCK"
    });
    let read = |file: PathBuf| (file.clone(), fs::read(file).unwrap());
    files.into_iter().map(read).collect()
}

/// Goal: what the interface promises, both implementations keep.
#[test]
fn both_stores_behave_alike() {
    let dir = tempfile::tempdir().unwrap();
    let stores: [Box<dyn Store>; 2] = [
        Box::new(open(dir.path()).unwrap()),
        Box::new(MemoryStore::new()),
    ];
    for store in stores {
        let store = &*store;
        for key in ["a", "b", "c", "d"] {
            put(store, Column::State, key, key.as_bytes());
        }
        put(store, Column::Log, "b", b"other");
        let frozen = store.freeze();
        let mut batch = Batch::default();
        batch.delete(Column::State, "a");
        batch.put(Column::State, "c", "overwritten in the same batch");
        batch.delete_range(Column::State, "c".into().."d".into());
        batch.delete_range(Column::State, "z".into().."d".into());
        batch.put(Column::State, "e", "e");
        store.write(batch).unwrap();
        store.sync().unwrap();

        assert_eq!(keys(store, Column::State), ["b", "d", "e"]);
        assert_eq!(keys(store, Column::Log), ["b"]);
        assert_eq!(keys(&*frozen, Column::State), ["a", "b", "c", "d"]);
        let get = |read: &dyn Read, key: &str| read.get(Column::State, key.as_bytes()).unwrap();
        assert_eq!(get(store, "c"), None);
        assert_eq!(get(&*frozen, "c"), Some("c".into()));
        let range = Bytes::from("b")..Bytes::from("e");
        let last = |read: &dyn Read| read.last(Column::State, range.clone()).unwrap().unwrap();
        assert_eq!(last(store), ("d".into(), "d".into()));
        assert_eq!(last(&*frozen), ("d".into(), "d".into()));
        let within = store.scan(Column::State, range.clone());
        assert_eq!(
            within.map(|row| row.unwrap().0).collect::<Vec<_>>(),
            ["b", "d"]
        );
        let backwards = Bytes::from("e")..Bytes::from("b");
        assert_eq!(store.scan(Column::State, backwards.clone()).count(), 0);
        assert_eq!(store.last(Column::State, backwards).unwrap(), None);
        let empty = Bytes::from("x")..Bytes::from("y");
        assert_eq!(store.last(Column::State, empty).unwrap(), None);
        store.reclaim().unwrap();
        assert_eq!(keys(store, Column::State), ["b", "d", "e"]);
    }
}

#[test]
fn a_crash_keeps_what_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Column::State, "synced", b"");
    store.sync().unwrap();
    put(&store, Column::State, "unsynced", b"");
    let after = crashed(dir.path());
    let store = open(after.path()).unwrap();
    assert_eq!(keys(&store, Column::State), ["synced"]);
    drop(store);
    // And recovery itself is durable: another crash right after it changes nothing.
    let again = crashed(after.path());
    assert_eq!(
        keys(&open(again.path()).unwrap(), Column::State),
        ["synced"]
    );
}

#[test]
fn a_directory_has_one_owner_until_the_last_view_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Column::Node, "a", b"");
    assert!(matches!(open(dir.path()), Err(OpenError::InUse(_))));
    let frozen = store.freeze();
    drop(store);
    assert!(frozen.get(Column::Node, b"a").unwrap().is_some());
    assert!(matches!(open(dir.path()), Err(OpenError::InUse(_))));
    drop(frozen);
    assert!(open(dir.path()).is_ok());
}

/// A directory with synced writes in its WAL, and behind them unsynced ones that reached the file.
struct Written {
    dir: TempDir,
    wal: PathBuf,
    /// Where the synced part of the WAL ends.
    synced_bytes: usize,
}

const SYNCED_ROWS: usize = 30;
const UNSYNCED_ROWS: usize = 40;
/// A sync mark in the WAL: the record's header (7), the batch's (12), tag, column, key and value.
const LAST_RECORD_BYTES: usize = 7 + 12 + 2 + 2 + 8;

fn written() -> Written {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for row in 0..SYNCED_ROWS {
        put(&store, Column::State, &format!("synced {row:02}"), b"value");
        store.sync().unwrap();
    }
    let synced_bytes = fs::metadata(&wals(dir.path())[0]).unwrap().len() as usize;
    // Over RocksDB's buffer of 1 MiB, so that some of it gets to the file without a sync.
    for row in 0..UNSYNCED_ROWS {
        let key = format!("unsynced {row:02}");
        put(&store, Column::State, &key, &vec![7; 100_000]);
    }
    let dir = crashed(dir.path());
    let [wal] = <[PathBuf; 1]>::try_from(wals(dir.path())).unwrap();
    assert!(fs::metadata(&wal).unwrap().len() as usize > synced_bytes + 1_000_000);
    Written {
        dir,
        wal,
        synced_bytes,
    }
}

impl Written {
    fn copy(&self) -> (TempDir, PathBuf) {
        let dir = crashed(self.dir.path());
        let wal = dir
            .path()
            .join(self.wal.strip_prefix(self.dir.path()).unwrap());
        (dir, wal)
    }
}

/// Goal: damage to what was synced is refused, and the evidence stays. Method: one bit flipped in every eleventh byte
/// of the synced part of the WAL, and every bit of its last record, header included; all files compared before and
/// after. (One flipped bit in a record's type once hung RocksDB's recovery: see `frames`.)
#[test]
fn damage_to_what_was_synced_is_refused_and_left_alone() {
    let written = written();
    let (dir, wal) = written.copy();
    // The unsynced part has served: what is compared and replayed so often should be small.
    let file = File::options().write(true).open(&wal).unwrap();
    file.set_len(written.synced_bytes as u64 + 10_000).unwrap();
    let before = contents(dir.path());
    let refused = |byte: usize, bit: u32| {
        flip_bit(&wal, byte, bit);
        assert!(is_corrupt(&open(dir.path())), "byte {byte} bit {bit}");
        flip_bit(&wal, byte, bit);
        assert!(contents(dir.path()) == before, "byte {byte} bit {bit}");
    };
    for byte in (0..written.synced_bytes).step_by(11) {
        refused(byte, byte as u32 % 8);
    }
    for byte in written.synced_bytes - LAST_RECORD_BYTES..written.synced_bytes {
        (0..8).for_each(|bit| refused(byte, bit));
    }
    assert!(open(dir.path()).is_ok(), "undamaged it opens");
}

/// Goal: a torn tail is recovered. Method: behind the synced part, bits flipped, the file cut, pages zeroed.
#[test]
fn damage_behind_what_was_synced_is_a_torn_tail() {
    let written = written();
    let end = fs::metadata(&written.wal).unwrap().len() as usize;
    let tear = |how: &dyn Fn(&Path)| {
        let (dir, wal) = written.copy();
        how(&wal);
        let store = open(dir.path()).unwrap();
        let keys = keys(&store, Column::State);
        let synced = keys.iter().filter(|key| key.starts_with("synced")).count();
        assert_eq!(synced, SYNCED_ROWS);
        // What is left of the rest is a prefix.
        for (row, key) in keys[SYNCED_ROWS..].iter().enumerate() {
            assert_eq!(*key, format!("unsynced {row:02}"));
        }
        keys.len() - SYNCED_ROWS
    };
    let whole = tear(&|_| {});
    assert!(whole >= 10);
    let first = written.synced_bytes;
    for byte in [
        first,
        first + 4,
        first + 6,
        first + 7,
        first + 5000,
        end - 1,
    ] {
        assert!(tear(&|wal| flip_bit(wal, byte, 3)) <= whole, "byte {byte}");
    }
    for length in [first, first + 1, first + 8, first + 500_000, end - 1] {
        let cut = |wal: &Path| {
            let file = File::options().write(true).open(wal).unwrap();
            file.set_len(length as u64).unwrap();
        };
        assert!(tear(&cut) < whole + 1, "cut at {length}");
    }
    let zeroed_page = |wal: &Path| {
        let mut bytes = fs::read(wal).unwrap();
        let page = first.next_multiple_of(4096) + 4096;
        bytes[page..page + 4096].fill(0);
        fs::write(wal, bytes).unwrap();
    };
    assert_eq!(tear(&zeroed_page), 0);
    let zeros_behind = |wal: &Path| {
        let mut bytes = fs::read(wal).unwrap();
        bytes.truncate(first);
        bytes.resize(first + 1_000_000, 0);
        fs::write(wal, bytes).unwrap();
    };
    assert_eq!(tear(&zeros_behind), 0);
}

/// Goal: a hole in the synced part that begins and ends between records is noticed. Method: zeros from the start of a
/// record to the end of its block, with sound records behind it.
#[test]
fn a_hole_between_records_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Column::State, "a", b"");
    store.sync().unwrap();
    let hole = fs::metadata(&wals(dir.path())[0]).unwrap().len() as usize;
    // To the last byte of the block: header, batch header, tag, column, key and lengths take 26 bytes more.
    put(&store, Column::State, "b", &vec![7; 32 * 1024 - hole - 27]);
    store.sync().unwrap();
    put(&store, Column::State, "c", b"");
    store.sync().unwrap();
    let damaged = crashed(dir.path());
    let wal = &wals(damaged.path())[0];
    let mut bytes = fs::read(wal).unwrap();
    bytes[hole..32 * 1024].fill(0);
    assert!(bytes.len() > 32 * 1024);
    fs::write(wal, bytes).unwrap();
    assert!(is_corrupt(&open(damaged.path())));
}

#[test]
fn a_synced_wal_that_is_cut_or_gone_is_refused() {
    let written = written();
    let (dir, wal) = written.copy();
    let file = File::options().write(true).open(&wal).unwrap();
    file.set_len(written.synced_bytes as u64 - 1).unwrap();
    assert!(is_corrupt(&open(dir.path())));
    fs::remove_file(&wal).unwrap();
    assert!(is_corrupt(&open(dir.path())));
    fs::remove_file(dir.path().join("db/CURRENT")).unwrap();
    assert!(is_corrupt(&open(dir.path())));
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert!(is_corrupt(&open(dir.path())), "it is not made anew");
    let (dir, _) = written.copy();
    fs::remove_file(dir.path().join("SYNCED")).unwrap();
    assert!(is_corrupt(&open(dir.path())));
}

/// Goal: damage in an older WAL file is refused too, when some columns have moved on to table files and others have
/// not. Method: each file of several is damaged, in the middle or by removal.
#[test]
fn damage_in_any_wal_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for round in 0..3 {
        for row in 0..10 {
            put(&store, Column::Log, &format!("{round}-{row}"), &[1; 100]);
            put(&store, Column::State, &format!("{round}-{row}"), &[1; 100]);
            store.sync().unwrap();
        }
        // A new WAL file; the log column still needs the old one.
        let state = store.engine.family(Column::State);
        store.engine.db.flush_cf(state).unwrap();
    }
    put(&store, Column::Log, "last", b"");
    store.sync().unwrap();
    let count = wals(dir.path()).len();
    assert!(count >= 3, "{count} WAL files");
    for at in 0..count {
        let damaged = crashed(dir.path());
        let wal = &wals(damaged.path())[at];
        let middle = fs::metadata(wal).unwrap().len() as usize / 2;
        flip_bit(wal, middle, 0);
        assert!(is_corrupt(&open(damaged.path())), "flip in WAL {at}");
        fs::remove_file(wal).unwrap();
        assert!(is_corrupt(&open(damaged.path())), "WAL {at} removed");
    }
    let sound = crashed(dir.path());
    assert_eq!(keys(&open(sound.path()).unwrap(), Column::Log).len(), 31);
}

#[test]
fn damage_in_a_table_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Column::State, "key", &[5; 1000]);
    settle(&store);
    drop(store);
    for table in files(dir.path()) {
        if table.extension().is_some_and(|ext| ext == "sst") {
            flip_bit(&table, 10, 0);
        }
    }
    let served = open(dir.path()).map(|store| store.get(Column::State, b"key"));
    assert!(matches!(
        served,
        Err(OpenError::Store(Error::Corrupt { .. })) | Ok(Err(Error::Corrupt { .. }))
    ));
}

const HOME: Home = Home {
    replica: ReplicaId(1),
    generation: 0,
};

/// Bodies of random bytes, which no compression hides.
struct Bodies(BTreeMap<u64, Vec<u8>>);

impl Bodies {
    fn of(count: u64, bytes: usize) -> Self {
        // No piece of one set is one of another.
        let mut random = StdRng::seed_from_u64(count);
        let body = |at| {
            let mut body = vec![0; bytes];
            random.fill_bytes(&mut body);
            (at, body)
        };
        Self((0..count).map(body).collect())
    }

    fn put(&self, store: &RocksStore, column: Column, key: impl Fn(u64) -> Bytes) {
        for (at, body) in &self.0 {
            let mut batch = Batch::default();
            batch.put(column, key(*at), body.clone());
            store.write(batch).unwrap();
        }
    }

    /// How many are in some file, by their middle: a record's fragments or a block's end may cut the rest.
    fn found(&self, dir: &Path) -> usize {
        let mut heads: BTreeMap<&[u8], u64> = BTreeMap::new();
        for (at, body) in &self.0 {
            let parts = [&body[20..36], &body[body.len() - 100..][..16]];
            heads.extend(parts.map(|part| (part, *at)));
        }
        let mut found: BTreeSet<u64> = BTreeSet::new();
        for file in files(dir) {
            let bytes = fs::read(file).unwrap();
            found.extend(bytes.windows(16).filter_map(|window| heads.get(window)));
        }
        found.len()
    }
}

/// Eight entries a user.
fn entry(at: u64) -> Bytes {
    Key::Entry(HOME, &format!("{:06}", at / 8), at % 8 + 1).encode()
}

fn delete(store: &RocksStore, entries: impl IntoIterator<Item = u64>) {
    let mut batch = Batch::default();
    for at in entries {
        batch.delete(Column::State, entry(at));
    }
    store.write(batch).unwrap();
    store.sync().unwrap();
}

/// All of it to table files of the last level.
fn settle(store: &RocksStore) {
    for column in [Column::Node, Column::Log, Column::State] {
        let family = store.engine.family(column);
        store.engine.db.flush_cf(family).unwrap();
        let everything = (None::<&[u8]>, None::<&[u8]>);
        let mut options = rocksdb::CompactOptions::default();
        options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        store
            .engine
            .db
            .compact_range_cf_opt(family, everything.0, everything.1, &options);
    }
}

/// The table files of the state column, with their bytes.
fn state_files(store: &RocksStore) -> BTreeMap<String, u64> {
    let files = store.engine.db.live_files().unwrap().into_iter();
    let files = files.filter(|file| file.column_family_name == options::name(Column::State));
    files.map(|file| (file.name, file.size as u64)).collect()
}

fn small_files() -> Options {
    Options {
        table_file_bytes: 64 << 10,
        first_level_bytes: 128 << 10,
        ..Options::default()
    }
}

/// Goal: deleted bodies leave every file (contract C5). Method: random bodies are looked for in all bytes of all files,
/// before and after; in the WAL, in table files, and among rows that stay.
#[test]
fn reclaimed_rows_are_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let mut bodies = Bodies::of(200, 500);
    let log = |at| Key::LogEntry(HOME.replica, at).encode();
    bodies.put(&store, Column::Log, log);
    let later = Bodies(bodies.0.split_off(&100));
    bodies.put(&store, Column::State, entry);
    // Half of them in table files on the last level, half in the WAL.
    settle(&store);
    later.put(&store, Column::State, entry);
    bodies.0.extend(later.0);
    store.sync().unwrap();
    assert_eq!(bodies.found(dir.path()), 200);
    let mut batch = Batch::default();
    batch.delete_range(Column::Log, keys::log_entries(HOME.replica, 0..200));
    store.write(batch).unwrap();
    delete(&store, 0..190);
    assert_eq!(bodies.found(dir.path()), 200);
    let reclaimed = store.reclaim().unwrap();
    assert_eq!(
        (reclaimed.ranges, reclaimed.waiting),
        (1 + 190_usize.div_ceil(8), 0)
    );
    let kept = Bodies(bodies.0.split_off(&190));
    assert_eq!(bodies.found(dir.path()), 0);
    assert_eq!(kept.found(dir.path()), 10);
    assert_eq!(
        store.scan(Column::State, keys::home_range(HOME)).count(),
        10
    );
    // It is done, and costs nothing more.
    assert_eq!(store.reclaim().unwrap(), Reclaimed::default());
}

/// Goal: what nobody has deleted is not rewritten. Method: 6 MB of queues in a hundred table files of the last level; a
/// few entries in two places are deleted; nearly all files must be the same afterwards, and the bodies gone.
#[test]
fn queues_that_nobody_reads_are_not_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::open(dir.path(), &small_files()).unwrap();
    let bodies = Bodies::of(6_000, 1_000);
    bodies.put(&store, Column::State, entry);
    settle(&store);
    let before = state_files(&store);
    let bytes: u64 = before.values().sum();
    assert!(before.len() > 50 && bytes > 6_000_000, "{before:?}");

    let gone: Vec<u64> = (1_000..1_010).chain(4_000..4_003).collect();
    delete(&store, gone.clone());
    let reclaimed = store.reclaim().unwrap();
    let after = state_files(&store);
    let same: u64 = before
        .iter()
        .filter(|(name, _)| after.contains_key(*name))
        .map(|(_, bytes)| bytes)
        .sum();
    assert!(
        same * 10 > bytes * 9,
        "{same} of {bytes} bytes stay, {reclaimed:?}"
    );
    assert!(reclaimed.rewritten_bytes * 10 < bytes, "{reclaimed:?}");
    let deleted = Bodies(gone.iter().map(|at| (*at, bodies.0[at].clone())).collect());
    assert_eq!(deleted.found(dir.path()), 0);
    assert_eq!(
        store.scan(Column::State, keys::home_range(HOME)).count(),
        6_000 - 13
    );
}

/// Goal: messages that come and go between two removals cost no rewriting, whatever stands beside them. Method: as above,
/// and one more entry for each user, written and deleted in memory.
#[test]
fn entries_that_live_shortly_rewrite_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::open(dir.path(), &small_files()).unwrap();
    Bodies::of(6_000, 1_000).put(&store, Column::State, entry);
    settle(&store);
    let before = state_files(&store);
    let short = |at: u64| Key::Entry(HOME, &format!("{at:06}"), 9).encode();
    let bodies = Bodies::of(750, 200);
    bodies.put(&store, Column::State, short);
    store.sync().unwrap();
    assert_eq!(bodies.found(dir.path()), 750);
    for at in 0..750 {
        let mut batch = Batch::default();
        batch.delete(Column::State, short(at));
        store.write(batch).unwrap();
    }
    let reclaimed = store.reclaim().unwrap();
    assert_eq!(reclaimed.ranges, 750);
    assert_eq!(bodies.found(dir.path()), 0);
    let after = state_files(&store);
    let gone: Vec<_> = before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .collect();
    assert!(gone.is_empty(), "{gone:?} were rewritten");
}

/// Goal: each fill is that of its own bound. Method: 4 MB of bodies go from memory and log into table files, are read, and
/// some are deleted; each step must show where the bytes are.
#[test]
fn fills_show_where_the_bytes_are() {
    const BYTES: u64 = 4_000_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let before = store.fill().unwrap();
    Bodies::of(400, 10_000).put(&store, Column::State, entry);
    store.sync().unwrap();
    let written = store.fill().unwrap();
    // RocksDB takes memory in pieces of 1 MiB, of which one may have been there.
    assert!(
        written.write_buffer_bytes > before.write_buffer_bytes + BYTES / 2,
        "{before:?}, {written:?}"
    );
    assert!(
        written.wal_bytes > before.wal_bytes + BYTES,
        "{before:?}, {written:?}"
    );
    let wals = wals(dir.path()).into_iter();
    let on_disk: u64 = wals.map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(written.wal_bytes, on_disk);

    settle(&store);
    let flushed = store.fill().unwrap();
    assert!(flushed.write_buffer_bytes < BYTES / 2, "{flushed:?}");
    assert_eq!(
        store.scan(Column::State, keys::home_range(HOME)).count(),
        400
    );
    let read = store.fill().unwrap();
    assert!(
        read.block_cache_bytes > flushed.block_cache_bytes + BYTES / 2,
        "{flushed:?}, {read:?}"
    );

    // The entries of four users.
    delete(&store, 0..32);
    assert_eq!(store.fill().unwrap().deleted_ranges, 4);
    store.reclaim().unwrap();
    let reclaimed = store.fill().unwrap();
    assert_eq!(reclaimed.deleted_ranges, 0);
    assert!(reclaimed.wal_bytes < BYTES / 2, "{reclaimed:?}");
}

/// Goal: a restart forgets no deletion. Method: a crash between deletion and reclaiming; the copy reclaims.
#[test]
fn what_was_deleted_before_a_crash_is_reclaimed_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let bodies = Bodies::of(80, 500);
    bodies.put(&store, Column::State, entry);
    settle(&store);
    delete(&store, 0..40);
    store
        .engine
        .db
        .flush_cf(store.engine.family(Column::State))
        .unwrap();
    let after = crashed(dir.path());
    let again = open(after.path()).unwrap();
    assert_eq!(bodies.found(after.path()), 80);
    assert_eq!(again.reclaim().unwrap().ranges, 5);
    assert_eq!(bodies.found(after.path()), 40);
    drop(again);
    assert_eq!(
        open(after.path()).unwrap().reclaim().unwrap(),
        Reclaimed::default()
    );
}

/// Goal: files that a frozen view is reading are no failure, and are not forgotten. Method: a view from behind the deletion
/// that is in the middle of its rows, so that RocksDB keeps the files.
#[test]
fn files_that_a_view_reads_are_reclaimed_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let bodies = Bodies::of(16, 500);
    bodies.put(&store, Column::State, entry);
    settle(&store);
    delete(&store, 0..8);
    let view = store.freeze();
    let mut rows = view.scan(Column::State, keys::home_range(HOME));
    assert!(rows.next().unwrap().is_ok());
    for _ in 0..2 {
        let reclaimed = store.reclaim().unwrap();
        assert_eq!((reclaimed.ranges, reclaimed.waiting), (0, 1));
    }
    drop(rows);
    drop(view);
    assert_eq!(store.reclaim().unwrap().ranges, 1);
    assert_eq!(bodies.found(dir.path()), 8);
}

/// Goal: what a frozen view needs waits for it, and is not forgotten. Method: a view from before the deletion, and one
/// from behind it, which holds nothing up.
#[test]
fn what_a_view_needs_is_reclaimed_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let bodies = Bodies::of(16, 500);
    bodies.put(&store, Column::State, entry);
    let view = store.freeze();
    delete(&store, 0..8);
    let _later = store.freeze();
    let waits = Reclaimed {
        waiting: 1,
        ..Reclaimed::default()
    };
    assert_eq!(store.reclaim().unwrap(), waits);
    assert!(view.get(Column::State, &entry(3)).unwrap().is_some());
    drop(view);
    assert_eq!(store.reclaim().unwrap().ranges, 1);
    assert_eq!(bodies.found(dir.path()), 8);
}

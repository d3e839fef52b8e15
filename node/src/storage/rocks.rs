//! The store of a real node: one RocksDB with three column families and one write-ahead log (WAL) for all of them.
//!
//! In its directory it owns `db/` (RocksDB), `LOCK` (held while open), `SYNCED` (see [`sync_mark`]), after a failed sync
//! `SYNC_FAILED`, and after damage that is no single replica's `DAMAGED`.
//!
//! **What recovery promises.** After a crash a prefix of all batches is there, and at least all that a returned
//! [`Store::sync`] covered; otherwise the store refuses to open and changes nothing. RocksDB alone cannot do that: by
//! default it cuts the WAL at the first bad record and opens "fine", whether that record was torn by the crash or was
//! synced long ago and has been damaged since. Its other modes judge by position, and a torn tail of several pages,
//! which the kernel writes in any order, looks like damage to them. So every sync first writes its number as a row,
//! and after it `SYNCED` gets that number: if the row is behind the file, synced writes are missing.
//!
//! **What it cannot tell.** `SYNCED` is itself synced only once a second. After a power loss, damage to what was
//! synced in the last second before it is taken for a torn tail; after a kill nothing is. Damage in table files is
//! found when they are read, not at the start.

pub mod damage;
mod deleted;
mod device;
mod fill;
mod frames;
mod frozen;
mod options;
mod reclaim;
pub(crate) mod steps;
mod sync_mark;
#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{ColumnFamily, DB, ErrorKind, IteratorMode, ReadOptions, WriteBatch};
use roost_proto::storage::Number;

use self::deleted::Deleted;
pub use self::device::{DiskSpace, disk_space};
use self::frozen::{Frozen, Views};
pub use self::options::Options;
use self::sync_mark::SyncMark;
use super::keys::{self, Key};
use super::{Batch, Column, Error, Fill, Op, Read, Reclaimed, Rows, Store, value};

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{0} is in use by another process; stop that node, or give this one its own data directory"
    )]
    InUse(PathBuf),
    /// A sync failed here before, and the device still does not keep what it is given.
    #[error(
        "a write to {path} was lost before, and the device still fails its test ({detail}); free space on it or \
         replace it"
    )]
    DeviceFails {
        /// The data directory.
        path: PathBuf,
        /// What the test met.
        detail: String,
    },
    /// The operating system refused a file.
    #[error(
        "{action} {path} failed: {source}; check that the disk is mounted and writable for this user"
    )]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Damaged, or the engine failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl OpenError {
    /// Set when the store is damaged, rather than unreachable, in use or of a newer version.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        match self {
            Self::Store(error @ Error::Corrupt { .. }) => Some(error.to_string()),
            _ => None,
        }
    }
}

/// See the module. Dropping the last handle, and every frozen view, closes the directory.
pub struct RocksStore {
    engine: Arc<Engine>,
    sync: Mutex<Syncs>,
    dir: PathBuf,
}

/// What frozen views keep open too. Fields drop in order: the lock goes after the database.
struct Engine {
    db: DB,
    views: Views,
    deleted: Deleted,
    /// Files that a view was reading when they were to go.
    read_files: Mutex<Vec<PathBuf>>,
    _lock: File,
}

struct Syncs {
    mark: SyncMark,
    /// After a failure the state of the device is unknown: a later "success" would say nothing about earlier writes.
    failed: Option<Error>,
}

impl RocksStore {
    /// Opens a data directory, or makes one. What recovery read is durable when this returns.
    ///
    /// # Errors
    /// See [`OpenError`]. A damaged directory is left as it is.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, OpenError> {
        fs::create_dir_all(dir).map_err(file_error("making", dir))?;
        steps::passed("the directory is there");
        let lock = lock(dir)?;
        steps::passed("the store is locked");
        device::check_after_failure(dir)?;
        damage::check(dir)?;
        let db_dir = dir.join("db");
        let database_exists = db_dir.join("CURRENT").exists();
        let mark = SyncMark::open(dir, database_exists)?;
        steps::passed("the sync mark is there");
        check(&db_dir, options, mark.number())?;
        let db = DB::open_cf_descriptors(&options.database(), &db_dir, options.columns());
        let store = Self {
            engine: Arc::new(Engine {
                db: db.map_err(|error| engine_error("opening", error))?,
                views: Views::default(),
                deleted: Deleted::default(),
                read_files: Mutex::default(),
                _lock: lock,
            }),
            sync: Mutex::new(Syncs { mark, failed: None }),
            dir: dir.to_owned(),
        };
        steps::passed("the database is there");
        store.sync()?;
        steps::passed("the first sync is done");
        let notes = store.scan(Column::Node, keys::deletions());
        store.engine.deleted.load(notes)?;
        Ok(store)
    }

    /// Remembers on disk, as far as it goes, that the device lost a write, or that the store is damaged.
    fn failed(&self, action: &'static str, error: rocksdb::Error) -> Error {
        let damaged = error.kind() == ErrorKind::Corruption;
        let error = write_error(action, error);
        match damaged {
            true => damage::condemn(&self.dir, &error.to_string()),
            false => device::note_failure(&self.dir, &error),
        }
        error
    }
}

impl Engine {
    fn family(&self, column: Column) -> &ColumnFamily {
        family(&self.db, column)
    }

    fn write(&self, batch: &Batch) -> Result<(), rocksdb::Error> {
        let mut writes = WriteBatch::default();
        for op in &batch.0 {
            match op {
                Op::Put(column, key, value) => writes.put_cf(self.family(*column), key, value),
                // Set once and removed once: both are gone when they meet, and need not reach the last level for it.
                Op::Delete(column @ Column::State, key) if keys::queue_of(key).is_some() => {
                    writes.single_delete_cf(self.family(*column), key);
                }
                Op::Delete(column, key) => writes.delete_cf(self.family(*column), key),
                Op::DeleteRange(column, range) => {
                    // RocksDB refuses a backward range, and with it the whole batch.
                    if range.start < range.end {
                        writes.delete_range_cf(self.family(*column), &range.start, &range.end);
                    }
                }
            }
        }
        self.db.write(writes)
    }
}

impl Read for RocksStore {
    fn get(&self, column: Column, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let value = self.engine.db.get_cf(self.engine.family(column), key);
        Ok(value.map_err(read_error)?.map(Bytes::from))
    }

    fn scan(&self, column: Column, range: Range<Bytes>) -> Rows<'_> {
        let Some(options) = within(&range, true) else {
            return Box::new(std::iter::empty());
        };
        let family = self.engine.family(column);
        rows(
            self.engine
                .db
                .iterator_cf_opt(family, options, IteratorMode::Start),
        )
    }

    fn last(&self, column: Column, range: Range<Bytes>) -> Result<Option<(Bytes, Bytes)>, Error> {
        let Some(options) = within(&range, true) else {
            return Ok(None);
        };
        let family = self.engine.family(column);
        rows(
            self.engine
                .db
                .iterator_cf_opt(family, options, IteratorMode::End),
        )
        .next()
        .transpose()
    }
}

impl Store for RocksStore {
    fn write(&self, mut batch: Batch) -> Result<(), Error> {
        let Engine { deleted, views, .. } = &*self.engine;
        let _noted = deleted.note(&mut batch, views.next());
        let written = self.engine.write(&batch);
        written.map_err(|error| self.failed("writing", error))
    }

    fn sync(&self) -> Result<(), Error> {
        let mut sync = self.sync.lock();
        if let Some(error) = &sync.failed {
            return Err(error.clone());
        }
        let result = self.sync_once(&mut sync.mark);
        sync.failed = result.as_ref().err().cloned();
        result
    }

    fn freeze(&self) -> Arc<dyn Read> {
        Arc::new(Frozen::of(Arc::clone(&self.engine)))
    }

    fn reclaim(&self) -> Result<Reclaimed, Error> {
        reclaim::reclaim(&self.engine, &self.dir.join("db"))
    }

    fn fill(&self) -> Result<Fill, Error> {
        fill::fill(&self.engine, &self.dir.join("db"))
    }
}

impl RocksStore {
    fn sync_once(&self, mark: &mut SyncMark) -> Result<(), Error> {
        let number = mark.number() + 1;
        let key = Key::SyncMark.encode();
        let row = value::encode(&key, &Number { number });
        let family = self.engine.family(Column::Node);
        // After a background error RocksDB takes no more writes, so this row notices it too.
        self.engine
            .db
            .put_cf(family, &key, row)
            .and_then(|()| self.engine.db.flush_wal(true))
            .map_err(|error| self.failed("syncing", error))?;
        mark.record(number)
            .inspect_err(|error| device::note_failure(&self.dir, error))
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(file_error("opening", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(file_error("locking", &path)(source)),
    }
}

/// Refuses a database that is damaged or lacks something synced, and leaves it as it is.
fn check(db_dir: &Path, options: &Options, synced: u64) -> Result<(), OpenError> {
    if !db_dir.exists() {
        return match synced {
            0 => Ok(()),
            _ => Err(lost("the database is gone".to_owned())),
        };
    }
    let disarmed = frames::disarm(db_dir).map_err(file_error("checking", db_dir))?;
    // Before the first sync nothing was promised, and a crash may have left the database half made.
    let checked = match synced {
        0 => Ok(()),
        _ => check_synced_writes(db_dir, options, synced),
    };
    if checked.is_err() {
        disarmed
            .restore()
            .map_err(file_error("restoring", db_dir))?;
    }
    checked
}

/// Recovers into memory, changing nothing on disk, and looks whether all that was synced is there: a real opening
/// would cut the WAL and delete the evidence. It costs a second replay, bounded by [`Options::wal_bytes_max`].
fn check_synced_writes(db_dir: &Path, options: &Options, synced: u64) -> Result<(), OpenError> {
    if !db_dir.join("CURRENT").exists() {
        return Err(lost("the database is gone".to_owned()));
    }
    let db =
        DB::open_cf_descriptors_read_only(&options.database(), db_dir, options.columns(), false)
            .map_err(|error| engine_error("opening", error))?;
    let key = Key::SyncMark.encode();
    let row = db.get_cf(family(&db, Column::Node), &key);
    let found = match row.map_err(read_error)? {
        Some(row) => value::decode::<Number>("sync mark", &key, row.into())?.number,
        None => 0,
    };
    if found < synced {
        return Err(lost(format!(
            "recovery reaches sync {found}, and sync {synced} had succeeded"
        )));
    }
    Ok(())
}

fn lost(detail: String) -> OpenError {
    OpenError::Store(Error::Corrupt {
        what: "write-ahead log",
        detail,
    })
}

fn family(db: &DB, column: Column) -> &ColumnFamily {
    db.cf_handle(options::name(column))
        .expect("the database was opened with all of its columns")
}

/// Options for an iterator that stays within a range; `None` if there is nothing in it.
fn within(range: &Range<Bytes>, fill_cache: bool) -> Option<ReadOptions> {
    if range.start >= range.end {
        return None;
    }
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(&range.start[..]);
    options.set_iterate_upper_bound(&range.end[..]);
    options.fill_cache(fill_cache);
    Some(options)
}

type Row = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>;

fn rows<'a>(iterator: impl Iterator<Item = Row> + Send + 'a) -> Rows<'a> {
    Box::new(iterator.map(|row| {
        row.map(|(key, value)| (key.into(), value.into()))
            .map_err(read_error)
    }))
}

fn read_error(error: rocksdb::Error) -> Error {
    engine_error("reading", error)
}

/// Damage that stands in the way of writing is not one replica's: RocksDB writes nothing more at all, and the node has to
/// end.
fn write_error(action: &'static str, error: rocksdb::Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::Corruption => "a database file is damaged: ",
        _ => "",
    };
    Error::Io {
        action,
        message: format!("{kind}{}", error.into_string()),
    }
}

fn engine_error(action: &'static str, error: rocksdb::Error) -> Error {
    match error.kind() {
        ErrorKind::Corruption => Error::Corrupt {
            what: "database file",
            detail: error.into_string(),
        },
        _ => Error::Io {
            action,
            message: error.into_string(),
        },
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::File {
        action,
        path,
        source,
    }
}

//! Getting deleted messages out of every file, at a cost of what was deleted.
//!
//! A deletion only hides a row. Its bytes stay in the WAL until all columns have flushed what that WAL file holds, and
//! in table files until a compaction has carried the deletion down to them. Only ranges with a [note](super::deleted)
//! are compacted, and RocksDB looks first whether a file has any row there at all: entries are removed by
//! `SingleDelete`, so one that came and went within one memtable leaves neither itself nor a tombstone. What is left to
//! do are the messages that had been written to table files before they were deleted, and the files next to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rocksdb::{BottommostLevelCompaction, CompactOptions, FlushOptions, properties};

use super::super::keys::Key;
use super::deleted::Taken;
use super::{Column, Engine, Error, Reclaimed, engine_error, write_error};

/// Flushes of all columns until the old WAL must be gone, or be on its way.
const FLUSHES_MAX: u32 = 3;
/// How long old files may take to go after their rows have moved; RocksDB deletes them behind our back.
const CHECKS_MAX: u32 = 500;
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// The same while a frozen view is being read: whoever reads a file keeps it until he is done with it.
const READ_CHECKS_MAX: u32 = 25;

pub(super) fn reclaim(engine: &Engine, db_dir: &Path) -> Result<Reclaimed, Error> {
    engine.read_files.lock().retain(|file| file.exists());
    if !engine.read_files.lock().is_empty() && engine.views.are_read() {
        // All of it is done but for these files: rewriting what was rewritten would not make them go.
        return Ok(Reclaimed {
            waiting: engine.deleted.notes(),
            ..Reclaimed::default()
        });
    }
    let (taken, waiting) = engine.deleted.take(engine.views.oldest());
    if taken.is_empty() {
        return Ok(Reclaimed {
            waiting,
            ..Reclaimed::default()
        });
    }
    match remove(engine, db_dir, &taken) {
        Ok(Removed {
            rewritten_bytes,
            still_read: true,
        }) => {
            let waiting = waiting + taken.len();
            engine.deleted.put_back(taken);
            Ok(Reclaimed {
                ranges: 0,
                waiting,
                rewritten_bytes,
            })
        }
        Ok(Removed {
            rewritten_bytes, ..
        }) => {
            engine
                .deleted
                .settle(&taken, |batch| engine.write(&batch))
                .map_err(|error| write_error("noting what was reclaimed", error))?;
            Ok(Reclaimed {
                ranges: taken.len(),
                waiting,
                rewritten_bytes,
            })
        }
        Err(error) => {
            engine.deleted.put_back(taken);
            Err(error)
        }
    }
}

struct Removed {
    /// Bytes of the table files that were written.
    rewritten_bytes: u64,
    /// Files with deleted rows are there for as long as a frozen view reads them.
    still_read: bool,
}

fn remove(engine: &Engine, db_dir: &Path, taken: &[Taken]) -> Result<Removed, Error> {
    let mut old = end_wal(engine, db_dir)?;
    old.append(&mut engine.read_files.lock());
    let failed_before = failures(engine)?;
    let before = table_files(engine)?;
    for taken in taken {
        compact(engine, taken);
    }
    // RocksDB's binding does not say whether a compaction worked.
    if failures(engine)? > failed_before {
        return Err(Error::Io {
            action: "reclaiming deleted rows",
            message: "a compaction failed; RocksDB's own log says why".to_owned(),
        });
    }
    let after = table_files(engine)?;
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    old.extend(gone.map(|name| db_dir.join(name.trim_start_matches('/'))));
    let gone = wait_until_gone(engine, old)?;
    let new = after.iter().filter(|(name, _)| !before.contains_key(*name));
    Ok(Removed {
        rewritten_bytes: new.map(|(_, bytes)| bytes).sum(),
        still_read: !gone,
    })
}

/// Moves all rows from the WAL to table files, and gives the WAL files that are about to go.
///
/// A file goes when no column needs it. A column with nothing new in memory lets go only at the moment when another one
/// begins a new file, and not even then while it is just being flushed for another reason: a file was then left behind
/// until that column's next flush. So one column always has something new, it goes last, and while a file stays all of it
/// is done again.
fn end_wal(engine: &Engine, db_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut old = wal_files(db_dir)?;
    for _ in 0..FLUSHES_MAX {
        flush(engine, Column::Log)?;
        flush(engine, Column::State)?;
        // Of a row that there never is: something new, of which nothing stays.
        let never = Key::Deleted(Column::Node, b"").encode();
        let touched = engine.db.delete_cf(engine.family(Column::Node), never);
        touched.map_err(|error| write_error("flushing", error))?;
        flush(engine, Column::Node)?;
        old.retain(|file| file.exists());
        if old.is_empty() {
            break;
        }
        thread::sleep(CHECK_INTERVAL);
    }
    Ok(old)
}

fn flush(engine: &Engine, column: Column) -> Result<(), Error> {
    let mut wait = FlushOptions::default();
    wait.set_wait(true);
    let flushed = engine.db.flush_cf_opt(engine.family(column), &wait);
    flushed.map_err(|error| write_error("flushing", error))
}

fn compact(engine: &Engine, taken: &Taken) {
    let mut options = CompactOptions::default();
    // Without force the last level, where old rows are, is left alone.
    options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
    options.set_exclusive_manual_compaction(false);
    let (start, last) = (&taken.range.start[..], last_before(&taken.range.end));
    let family = engine.family(taken.column);
    engine
        .db
        .compact_range_cf_opt(family, Some(start), Some(last), &options);
}

/// The last possible key before this one: RocksDB's ranges for compactions include their ends, and the row at the end
/// may be a live one in a file that needs no rewriting.
fn last_before(end: &[u8]) -> Vec<u8> {
    /// No text and no number in a key has so many in a row.
    const BEHIND_ALL: [u8; 16] = [u8::MAX; 16];
    match end.split_last() {
        None => Vec::new(),
        Some((0, before)) => before.to_vec(),
        Some((last, before)) => [before, &[last - 1], &BEHIND_ALL].concat(),
    }
}

fn failures(engine: &Engine) -> Result<u64, Error> {
    let failures = engine.db.property_int_value(properties::BACKGROUND_ERRORS);
    let failures = failures.map_err(|error| engine_error("counting failures", error))?;
    Ok(failures.unwrap_or_default())
}

/// Names and bytes.
fn table_files(engine: &Engine) -> Result<BTreeMap<String, u64>, Error> {
    let files = engine.db.live_files();
    let files = files.map_err(|error| engine_error("listing files", error))?;
    Ok(files
        .into_iter()
        .map(|file| (file.name, file.size as u64))
        .collect())
}

/// The WAL files with something in them. An empty one may be the current one, and stay.
pub(super) fn wal_files(db_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(db_dir)? {
            let path = entry?.path();
            let is_wal = path.extension().is_some_and(|ext| ext == "log");
            // It may be deleted between listing and looking.
            if is_wal && path.metadata().is_ok_and(|metadata| metadata.len() > 0) {
                files.push(path);
            }
        }
        Ok(files)
    };
    list().map_err(|error| Error::Io {
        action: "listing files",
        message: error.to_string(),
    })
}

/// Whether they went; those that a frozen view reads do not.
fn wait_until_gone(engine: &Engine, mut files: Vec<PathBuf>) -> Result<bool, Error> {
    for checks in 0..CHECKS_MAX {
        files.retain(|file| file.exists());
        if files.is_empty() {
            return Ok(true);
        }
        if checks >= READ_CHECKS_MAX && engine.views.are_read() {
            *engine.read_files.lock() = files;
            return Ok(false);
        }
        thread::sleep(CHECK_INTERVAL);
    }
    let names = files.iter().filter_map(|file| file.file_name());
    let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
    let message = format!("old files are still there: {}", names.join(", "));
    *engine.read_files.lock() = files;
    Err(Error::Io {
        action: "reclaiming deleted rows",
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::last_before;

    #[test]
    fn the_last_key_before_an_end_is_before_it_and_behind_all_others() {
        assert_eq!(last_before(b"a\0"), b"a");
        let last = last_before(&[1, 2, 5]);
        assert!(last < vec![1, 2, 5]);
        for before in [&[1, 2, 4][..], &[1, 2, 4, 250], &[1, 2, 4, 255, 255, 255]] {
            assert!(before < &last[..]);
        }
    }
}

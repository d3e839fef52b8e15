//! Getting deleted rows out of every file.
//!
//! A deletion only hides a row. Its bytes stay in the WAL until all columns have flushed what that WAL file holds, and
//! in table files until a compaction has carried the deletion down to the last level. Rows that a frozen view or a
//! running scan still needs stay until those end and reclaiming runs again.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rocksdb::{BottommostLevelCompaction, CompactOptions, FlushOptions, LiveFile};

use super::{Column, Engine, Error, engine_error, options, write_error};

/// How long old files may take to go after their rows have moved; RocksDB deletes them behind our back.
const CHECKS_MAX: u32 = 500;
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

pub(super) fn reclaim(
    engine: &Engine,
    db_dir: &Path,
    ranges: &[(Column, Range<Bytes>)],
) -> Result<(), Error> {
    let mut old = wal_files(db_dir)?;
    flush(engine)?;
    for file in live_files(engine)? {
        if ranges.iter().any(|range| overlaps(&file, range)) {
            old.push(db_dir.join(file.name.trim_start_matches('/')));
        }
    }
    for (column, range) in ranges {
        compact(engine, *column, range);
    }
    wait_until_gone(old)
}

/// All columns: a WAL file goes only when nothing in it is needed by any of them.
fn flush(engine: &Engine) -> Result<(), Error> {
    let mut wait = FlushOptions::default();
    wait.set_wait(true);
    for column in [Column::Node, Column::Log, Column::State] {
        let flushed = engine.db.flush_cf_opt(engine.family(column), &wait);
        flushed.map_err(|error| write_error("flushing", error))?;
    }
    Ok(())
}

/// RocksDB's binding does not say whether it worked; [`wait_until_gone`] sees it.
fn compact(engine: &Engine, column: Column, range: &Range<Bytes>) {
    let mut options = CompactOptions::default();
    // Without force the last level, where old rows are, is left alone.
    options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
    options.set_exclusive_manual_compaction(false);
    let (start, end) = (Some(&range.start), Some(&range.end));
    let family = engine.family(column);
    engine.db.compact_range_cf_opt(family, start, end, &options);
}

fn live_files(engine: &Engine) -> Result<Vec<LiveFile>, Error> {
    let files = engine.db.live_files();
    files.map_err(|error| engine_error("listing files", error))
}

fn overlaps(file: &LiveFile, (column, range): &(Column, Range<Bytes>)) -> bool {
    let starts_before_end = file.start_key.as_ref().is_none_or(|key| key < &range.end);
    let ends_behind_start = file.end_key.as_ref().is_none_or(|key| key >= &range.start);
    file.column_family_name == options::name(*column) && starts_before_end && ends_behind_start
}

/// The WAL files with something in them. An empty one may be the current one, and stay.
fn wal_files(db_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(db_dir)? {
            let path = entry?.path();
            // It may be deleted between listing and looking.
            let bytes = path.metadata().map_or(0, |metadata| metadata.len());
            if path.extension().is_some_and(|ext| ext == "log") && bytes > 0 {
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

fn wait_until_gone(mut files: Vec<PathBuf>) -> Result<(), Error> {
    for _ in 0..CHECKS_MAX {
        files.retain(|file| file.exists());
        if files.is_empty() {
            return Ok(());
        }
        thread::sleep(CHECK_INTERVAL);
    }
    Err(Error::Io {
        action: "reclaiming deleted rows",
        message: format!("{} old files are still there", files.len()),
    })
}

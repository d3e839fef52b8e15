//! A store that cannot be trusted any more: the mark that says so, and setting the store aside.
//!
//! Damage that a compaction or a flush meets is no single replica's, and RocksDB writes nothing more after it. The next
//! start might not notice, and would end the same way later; so the mark `DAMAGED` stays in the store's directory, and
//! refuses every opening. A store that is set aside keeps all of its files, the mark among them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::{Error, OpenError, file_error, lock, steps};

/// Its text is for the operator.
const MARK_NAME: &str = "DAMAGED";

/// Leaves the mark that refuses this store from now on. Best effort: without it the damage is met again.
pub fn condemn(dir: &Path, reason: &str) {
    let written = File::create(dir.join(MARK_NAME)).and_then(|mut file| {
        writeln!(file, "{reason}")?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    });
    if let Err(error) = written {
        tracing::error!(%error, "the mark of a damaged store could not be written");
    }
}

/// Refuses a store that was found damaged before.
pub(super) fn check(dir: &Path) -> Result<(), OpenError> {
    let mark = dir.join(MARK_NAME);
    match fs::read(&mark) {
        Ok(reason) => Err(OpenError::Store(Error::Corrupt {
            what: "store",
            detail: String::from_utf8_lossy(&reason).trim().to_owned(),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_error("reading", &mark)(error)),
    }
}

/// Moves a store out of the way, whole, by one durable rename. Nothing may stand at `aside`.
///
/// # Errors
/// [`OpenError::InUse`], or what the system says.
pub fn set_aside(dir: &Path, aside: &Path) -> Result<(), OpenError> {
    // Held until it is done: whoever opened the store meanwhile keeps it.
    let _lock = lock(dir)?;
    fs::rename(dir, aside).map_err(file_error("setting aside", dir))?;
    steps::passed("the store is set aside");
    let parent = aside.parent().unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(file_error("syncing", parent))?;
    steps::passed("that it is set aside is durable");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{Options, RocksStore};
    use super::*;

    #[test]
    fn a_condemned_store_is_refused_until_it_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (store, aside) = (dir.path().join("store"), dir.path().join("aside"));
        drop(RocksStore::open(&store, &Options::default()).unwrap());
        condemn(&store, "met by a compaction");
        for _ in 0..2 {
            let refused = RocksStore::open(&store, &Options::default()).err().unwrap();
            assert!(refused.damage().unwrap().contains("met by a compaction"));
        }
        set_aside(&store, &aside).unwrap();
        drop(RocksStore::open(&store, &Options::default()).unwrap());
        assert!(aside.join(MARK_NAME).exists());
    }

    #[test]
    fn a_store_in_use_is_not_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("store"), dir.path().join("aside"));
        let _store = RocksStore::open(&path, &Options::default()).unwrap();
        let refused = set_aside(&path, &aside).err().unwrap();
        assert!(matches!(refused, OpenError::InUse(_)), "{refused}");
        assert!(!aside.exists());
    }
}

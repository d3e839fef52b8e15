//! The device under a data directory: how full it is, and whether it keeps what it is given.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rustix::fs::{Advice, fadvise, statvfs};

use super::{Error, OpenError, file_error};

/// There after a failed write or sync. Its text is for the operator.
const FAILURE_NAME: &str = "SYNC_FAILED";
const TEST_NAME: &str = "DEVICE_TEST";
const TEST_BYTES: usize = 1 << 20;

/// Room on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that this process may still write.
    pub available_bytes: u64,
    /// The size of the file system.
    pub total_bytes: u64,
}

/// Room on the device that holds this path.
///
/// # Errors
/// [`Error::Io`] if the system does not say.
pub fn disk_space(path: &Path) -> Result<DiskSpace, Error> {
    let stat = statvfs(path).map_err(|error| Error::Io {
        action: "asking for disk space",
        message: error.to_string(),
    })?;
    Ok(DiskSpace {
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// Leaves the mark that makes the next start test the device. Best effort: the device may take no write at all.
pub(super) fn note_failure(dir: &Path, error: &Error) {
    let text = format!(
        "{error}\nThe next start tests this device, and removes this file if the test passes.\n"
    );
    let written = File::create(dir.join(FAILURE_NAME)).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    });
    if let Err(error) = written {
        tracing::error!(%error, "the mark of a failed sync could not be written");
    }
}

/// After a failed sync: tests the device, and removes the mark if it passes.
pub(super) fn check_after_failure(dir: &Path) -> Result<(), OpenError> {
    let mark = dir.join(FAILURE_NAME);
    if !mark.exists() {
        return Ok(());
    }
    write_and_read_back(&dir.join(TEST_NAME)).map_err(|error| OpenError::DeviceFails {
        path: dir.to_owned(),
        detail: error.to_string(),
    })?;
    tracing::warn!("a sync failed here before; the device has passed its test, starting");
    fs::remove_file(&mark).map_err(file_error("removing", &mark))
}

fn write_and_read_back(path: &Path) -> io::Result<()> {
    let result = write_and_compare(path);
    // Also after a failure: a full disk must not stay fuller by its test.
    let removed = fs::remove_file(path);
    result.and(removed)
}

fn write_and_compare(path: &Path) -> io::Result<()> {
    // A pattern in which no two pages are the same.
    let written: Vec<u8> = (0..TEST_BYTES as u32 / 4)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes())
        .collect();
    let mut file = File::create(path)?;
    file.write_all(&written)?;
    file.sync_all()?;
    drop(file);
    let mut file = File::open(path)?;
    // Out of the page cache, which would answer for the device.
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut read = Vec::with_capacity(TEST_BYTES);
    file.read_to_end(&mut read)?;
    match read == written {
        true => Ok(()),
        false => Err(io::Error::other(
            "it gave back other bytes than were written",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn space_is_plausible() {
        let space = disk_space(Path::new("/")).unwrap();
        assert!(space.total_bytes > 0 && space.available_bytes <= space.total_bytes);
        assert!(disk_space(Path::new("/no/such/place")).is_err());
    }

    #[test]
    fn a_good_device_passes_and_the_mark_goes() {
        let dir = tempfile::tempdir().unwrap();
        let error = Error::Io {
            action: "syncing",
            message: "for a test".to_owned(),
        };
        note_failure(dir.path(), &error);
        assert!(dir.path().join(FAILURE_NAME).exists());
        check_after_failure(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// A directory in the place of the test's file stands for a device that takes no writes.
    #[test]
    fn a_device_that_fails_is_refused_and_the_mark_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FAILURE_NAME), "").unwrap();
        fs::create_dir(dir.path().join(TEST_NAME)).unwrap();
        for _ in 0..2 {
            assert!(matches!(
                check_after_failure(dir.path()),
                Err(OpenError::DeviceFails { .. })
            ));
        }
        assert!(dir.path().join(FAILURE_NAME).exists());
    }
}

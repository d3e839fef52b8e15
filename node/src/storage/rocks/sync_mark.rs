//! The file `SYNCED`: the number of the last sync that succeeded.
//!
//! Written after every sync, in place, and itself synced only once a second: the kernel keeps it across a kill, and
//! after a power loss it may be older than the truth, which proves less but never too much. Two slots take turns, so
//! that a torn write leaves the one before.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Error, OpenError, file_error, lost, steps};

const NAME: &str = "SYNCED";
/// Slots lie in pages of their own, and a page is written whole or not at all.
const SLOT_DISTANCE_BYTES: u64 = 4096;
const SLOT_BYTES: usize = 12;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct SyncMark {
    file: File,
    number: u64,
    synced_at: Instant,
}

impl SyncMark {
    /// Reads the file, or makes it for a new database.
    pub(super) fn open(dir: &Path, database_exists: bool) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        if !path.exists() {
            if database_exists {
                return Err(lost("the file SYNCED is gone".to_owned()));
            }
            create(dir).map_err(file_error("making", &path))?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(file_error("opening", &path))?;
        let number = newest(&file)
            .map_err(file_error("reading", &path))?
            .ok_or_else(|| lost("the file SYNCED is damaged".to_owned()))?;
        Ok(Self {
            file,
            number,
            synced_at: Instant::now(),
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Notes that this sync has succeeded.
    pub(super) fn record(&mut self, number: u64) -> Result<(), Error> {
        assert!(number > self.number, "sync numbers rise");
        self.number = number;
        write_slot(&self.file, number).map_err(io_error)?;
        if self.synced_at.elapsed() >= SYNC_INTERVAL {
            self.file.sync_data().map_err(io_error)?;
            self.synced_at = Instant::now();
        }
        Ok(())
    }
}

/// Whole or not at all: a file that is there has a slot that fits.
fn create(dir: &Path) -> io::Result<()> {
    let unfinished = dir.join("SYNCED.new");
    let file = File::create(&unfinished)?;
    file.set_len(2 * SLOT_DISTANCE_BYTES)?;
    write_slot(&file, 0)?;
    file.sync_all()?;
    steps::passed("the sync mark is written");
    fs::rename(unfinished, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

fn newest(file: &File) -> io::Result<Option<u64>> {
    let mut newest = None;
    for slot in 0..2 {
        let mut bytes = [0; SLOT_BYTES];
        match file.read_exact_at(&mut bytes, slot * SLOT_DISTANCE_BYTES) {
            Ok(()) => newest = newest.max(decode(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

fn write_slot(file: &File, number: u64) -> io::Result<()> {
    file.write_all_at(&encode(number), number % 2 * SLOT_DISTANCE_BYTES)
}

fn encode(number: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let (head, tail) = slot.split_at_mut(8);
    head.copy_from_slice(&number.to_be_bytes());
    tail.copy_from_slice(&checksum(head).to_be_bytes());
    slot
}

fn decode(slot: [u8; SLOT_BYTES]) -> Option<u64> {
    let number = u64::from_be_bytes(*slot.first_chunk()?);
    (encode(number) == slot).then_some(number)
}

/// Not the plain CRC, for which an empty page might be a valid zero.
fn checksum(number: &[u8]) -> u32 {
    !crc32c::crc32c(number)
}

fn io_error(error: io::Error) -> Error {
    Error::Io {
        action: "noting a sync",
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_last_sync_is_remembered_and_a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut mark = SyncMark::open(dir.path(), false).unwrap();
        assert_eq!(mark.number(), 0);
        mark.record(1).unwrap();
        mark.record(2).unwrap();
        assert_eq!(SyncMark::open(dir.path(), true).unwrap().number(), 2);
        mark.file.write_all_at(b"torn", 0).unwrap();
        assert_eq!(SyncMark::open(dir.path(), true).unwrap().number(), 1);
        mark.file
            .write_all_at(b"torn", SLOT_DISTANCE_BYTES)
            .unwrap();
        assert!(SyncMark::open(dir.path(), true).is_err());
    }

    #[test]
    fn an_empty_slot_is_no_mark() {
        assert_eq!(decode([0; SLOT_BYTES]), None);
        assert_eq!(decode(encode(0)), Some(0));
    }

    #[test]
    fn a_database_without_the_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SyncMark::open(dir.path(), true).is_err());
    }
}

//! Two headers in RocksDB's log files that its reader does not survive, found before it reads them.
//!
//! WAL and MANIFEST are blocks of 32 KiB, filled with records: checksum (4 bytes), length (2, little-endian), type (1),
//! payload; see RocksDB's `db/log_format.h`. The reader looks at the type before the checksum, and
//! - a type that only recycled files have, in a file that is none, makes it read the same header again for ever, so
//!   that one flipped bit hangs the start instead of being refused (facebook/rocksdb#11968 is the same loop);
//! - a header of zeros makes it skip the rest of the block without a word, and go on behind the hole.
//!
//! We write neither. [`disarm`] gives such a header a type that no version knows: then its checksum fails, and
//! recovery ends there as at any damaged record. [`Disarmed::restore`] puts the old types back.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const BLOCK_BYTES: usize = 32 * 1024;
const HEADER_BYTES: usize = 7;
const TYPE_OFFSET: usize = 6;
const UNKNOWN_TYPE: u8 = 0x7f;

/// Headers that were changed.
pub(super) struct Disarmed(Vec<Header>);

struct Header {
    file: PathBuf,
    type_offset: u64,
    original: u8,
}

/// Looks through all WAL and MANIFEST files, and changes what would hang or mislead RocksDB.
pub(super) fn disarm(db_dir: &Path) -> io::Result<Disarmed> {
    let mut disarmed = Disarmed(Vec::new());
    for entry in fs::read_dir(db_dir)? {
        let path = entry?.path();
        let is_manifest = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"MANIFEST-"));
        if is_manifest {
            // Its tail may be zeros after a power loss, and what follows is never read without being referred to.
            disarmed.look_through(&path, is_recycled)?;
        } else if path.extension().is_some_and(|ext| ext == "log") {
            disarmed.look_through(&path, |header| is_recycled(header) || is_zero(header))?;
        }
    }
    disarmed.write(|_| UNKNOWN_TYPE)?;
    Ok(disarmed)
}

impl Disarmed {
    /// Puts back what was there, so that a refused directory is as it was.
    pub(super) fn restore(self) -> io::Result<()> {
        self.write(|header| header.original)
    }

    fn look_through(&mut self, path: &Path, bad: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        let mut block_offset = 0;
        loop {
            block.clear();
            file.by_ref()
                .take(BLOCK_BYTES as u64)
                .read_to_end(&mut block)?;
            if block.is_empty() {
                return Ok(());
            }
            if let Some((offset, original)) = first_bad_type(&block, &bad) {
                self.0.push(Header {
                    file: path.to_owned(),
                    type_offset: block_offset + offset as u64,
                    original,
                });
            }
            block_offset += block.len() as u64;
        }
    }

    fn write(&self, new_type: impl Fn(&Header) -> u8) -> io::Result<()> {
        for header in &self.0 {
            let file = File::options().write(true).open(&header.file)?;
            file.write_all_at(&[new_type(header)], header.type_offset)?;
        }
        Ok(())
    }
}

/// Where the first bad header of a block has its type, and what it is. The reader drops the rest of a block behind a
/// bad record, so there is never a second one to find; checksums are left to it.
fn first_bad_type(block: &[u8], bad: impl Fn(&[u8]) -> bool) -> Option<(usize, u8)> {
    let mut at = 0;
    while let Some(header) = block.get(at..at + HEADER_BYTES) {
        if bad(header) {
            return Some((at + TYPE_OFFSET, header[TYPE_OFFSET]));
        }
        at += HEADER_BYTES + payload_bytes(header);
    }
    None
}

fn payload_bytes(header: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([header[4], header[5]]))
}

/// The types of `db/log_format.h` whose headers are longer, because they carry the file's number.
fn is_recycled(header: &[u8]) -> bool {
    matches!(header[TYPE_OFFSET], 5..=8 | 11 | 131)
}

fn is_zero(header: &[u8]) -> bool {
    header[TYPE_OFFSET] == 0 && payload_bytes(header) == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn record(kind: u8, payload: usize) -> Vec<u8> {
        let mut record = vec![9, 9, 9, 9, payload as u8, 0, kind];
        record.resize(HEADER_BYTES + payload, 1);
        record
    }

    /// A block that ends in a trailer too short for a header, then a second block.
    fn file(second: &[u8]) -> Vec<u8> {
        let mut bytes = vec![9, 9, 9, 9];
        bytes.extend(((BLOCK_BYTES - HEADER_BYTES - 5) as u16).to_le_bytes());
        bytes.push(1);
        bytes.resize(BLOCK_BYTES - 5, 1);
        bytes.resize(BLOCK_BYTES, 0);
        bytes.extend_from_slice(second);
        bytes
    }

    #[test]
    fn bad_headers_are_changed_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, second: Vec<u8>, changed: Option<usize>| {
            let path = dir.path().join(name);
            let bytes = file(&second);
            fs::write(&path, &bytes).unwrap();
            let disarmed = disarm(dir.path()).unwrap();
            let mut expected = bytes.clone();
            if let Some(at) = changed {
                expected[BLOCK_BYTES + at] = UNKNOWN_TYPE;
            }
            assert!(fs::read(&path).unwrap() == expected, "{name}");
            disarmed.restore().unwrap();
            assert!(fs::read(&path).unwrap() == bytes, "{name}");
            fs::remove_file(&path).unwrap();
        };
        check("000001.log", [record(1, 20), record(4, 0)].concat(), None);
        check(
            "000002.log",
            [record(1, 20), record(5, 3)].concat(),
            Some(33),
        );
        check(
            "000003.log",
            [record(1, 20), vec![0; 50]].concat(),
            Some(33),
        );
        check(
            "MANIFEST-000004",
            [record(1, 20), record(6, 3)].concat(),
            Some(33),
        );
        check(
            "MANIFEST-000005",
            [record(1, 20), vec![0; 50]].concat(),
            None,
        );
        check("000006.sst", [record(1, 20), record(5, 3)].concat(), None);
        check("000007.log", record(1, 20)[..5].to_vec(), None);
    }
}

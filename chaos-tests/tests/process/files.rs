//! Message bodies in the raw files of a data directory.
//!
//! Bodies are random bytes: no compression makes them shorter, so they stand in table files as they are, and none is
//! found by chance.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
pub(crate) use roost_chaos_tests::lab::files;

/// A word of a body is looked for at every so many bytes of it, so a longer piece of it is always found.
const MARK_EVERY: usize = 64;
const WORD_BYTES: usize = 8;

/// Bodies of so many random bytes.
pub(crate) fn random_bodies(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    let body = || {
        let mut body = vec![0; bytes];
        rand::fill(&mut body[..]);
        body
    };
    (0..count).map(|_| body()).collect()
}

/// What to look for.
pub(crate) struct Marks {
    words: HashMap<[u8; WORD_BYTES], usize>,
    /// By the first two bytes, because most places hold nothing.
    starts: Vec<bool>,
}

/// A piece of a body.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) body: usize,
}

impl Marks {
    pub(crate) fn of(bodies: &[Vec<u8>]) -> Self {
        let mut words = HashMap::new();
        let mut starts = vec![false; 1 << 16];
        for (body, bytes) in bodies.iter().enumerate() {
            let words_of_body = bytes.chunks(MARK_EVERY).filter_map(<[u8]>::first_chunk);
            for word in words_of_body {
                words.insert(*word, body);
                starts[start(word)] = true;
            }
        }
        Self { words, starts }
    }

    /// How many places one copy of all bodies has.
    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// Every place in a directory, however deep, and which bodies they are of.
    pub(crate) fn find(&self, directory: &Path) -> Result<(Vec<Place>, BTreeSet<usize>)> {
        let mut places = Vec::new();
        for file in files(directory)? {
            let bytes = match fs::read(&file) {
                Ok(bytes) => bytes,
                // The node deletes files while we look.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| file.display().to_string()),
            };
            for (offset, word) in bytes.windows(WORD_BYTES).enumerate() {
                if !self.starts[start(word)] {
                    continue;
                }
                if let Some(&body) = self.words.get(word) {
                    let (file, offset) = (file.clone(), offset as u64);
                    places.push(Place { file, offset, body });
                }
            }
        }
        let bodies = places.iter().map(|place| place.body).collect();
        Ok((places, bodies))
    }
}

fn start(word: &[u8]) -> usize {
    usize::from(word[0]) << 8 | usize::from(word[1])
}

/// Flips one bit. Again, and the file is as it was.
pub(crate) fn flip_bit(file: &Path, offset: u64) -> Result<()> {
    let open = File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    open.read_exact_at(&mut byte, offset)?;
    open.write_all_at(&[byte[0] ^ 1], offset)?;
    Ok(())
}

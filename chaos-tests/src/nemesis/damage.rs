//! Bytes on a node's disk that are not what it wrote: bits flipped, ends cut off, in its write-ahead log and its tables.
//!
//! Nothing is turned back. The node must notice, say so, and renew what is damaged from the others.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Fault, Field, Step};
use crate::lab::{files, until};

/// For damage to be met: by a compaction of everything, at the latest.
const MET_LIMIT: Duration = Duration::from_secs(45);
/// What a node's log says of it.
const WORD: &str = "damaged";
/// How a table file names the column that it is of.
const STATE: &[u8] = b"namestate";

/// Which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The write-ahead log, in what was synced.
    Log,
    /// Every table of applied states.
    Tables,
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wound {
    /// One bit of it is flipped.
    Flip,
    /// Its second half is cut off.
    Cut,
}

/// Files of a node, damaged while it is dead or while it runs.
#[derive(Debug)]
pub struct Damage {
    part: Part,
    wound: Wound,
    running: bool,
    node: u16,
    struck: BTreeSet<PathBuf>,
    /// How long the node's log was before.
    said: usize,
}

impl Damage {
    /// While the node is dead: it finds the damage when it starts, or later.
    #[must_use]
    pub fn dead(part: Part, wound: Wound) -> Self {
        Self {
            part,
            wound,
            running: false,
            node: 0,
            struck: BTreeSet::new(),
            said: 0,
        }
    }

    /// While the node runs, in every file that it makes, until it has noticed.
    #[must_use]
    pub fn running(part: Part, wound: Wound) -> Self {
        Self {
            running: true,
            ..Self::dead(part, wound)
        }
    }

    /// Damages every such file that is not yet.
    fn strike(&mut self, directory: &Path) -> Result<()> {
        let found = match self.part {
            Part::Log => log(directory)?.into_iter().collect(),
            Part::Tables => tables(directory)?,
        };
        for file in found {
            if self.struck.contains(&file) {
                continue;
            }
            match wound(&file, self.wound) {
                Ok(()) => self.struck.insert(file),
                // A running node removes files while we look.
                Err(error) if self.running && gone(&error) => continue,
                Err(error) => return Err(error).context(file.display().to_string()),
            };
        }
        Ok(())
    }

    fn has_said_so(&self, field: &Field) -> Result<Option<String>> {
        let said = field.lab.log(self.node)?.split_off(self.said);
        let line = said.lines().find(|line| line.contains(WORD));
        Ok(line.map(ToOwned::to_owned))
    }
}

impl Fault for Damage {
    fn name(&self) -> String {
        let part = match self.part {
            Part::Log => "the synced write-ahead log",
            Part::Tables => "the tables",
        };
        let whose = if self.running { "running" } else { "dead" };
        match self.wound {
            Wound::Flip => format!("a bit flipped in {part} of a {whose} node"),
            Wound::Cut => format!("half cut off {part} of a {whose} node"),
        }
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = match self.running {
                true => field.any_leader().await?.0,
                false => field.any_node(),
            };
            let directory = field.lab.cluster.node(self.node).data_dir();
            if self.part == Part::Tables {
                until(MET_LIMIT, "tables that can be damaged", async || {
                    Ok((!tables(&directory)?.is_empty()).then_some(()))
                })
                .await?;
            }
            if !self.running {
                field.lab.cluster.node_mut(self.node).kill().await?;
            }
            self.said = field.lab.log(self.node)?.len();
            self.strike(&directory)?;
            field
                .lab
                .fault(format!("{} {:?}", self.name(), self.struck));
            if !self.running {
                ensure!(!self.struck.is_empty(), "there was nothing to damage");
                field.start(&[self.node])?;
            }
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let directory = field.lab.cluster.node(self.node).data_dir();
            let what = format!("node {} says that it is damaged", self.node);
            let words = until(MET_LIMIT, &what, async || {
                // What it has in memory hides the damage; what it writes anew it reads from the file.
                if self.running && field.lab.cluster.node_mut(self.node).is_running() {
                    self.strike(&directory)?;
                }
                self.has_said_so(field)
            });
            let words = words.await?;
            Ok(format!(
                "{} files damaged; node {} says: {words}",
                self.struck.len(),
                self.node
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        // It heals itself, if somebody starts it when it has ended: that it becomes whole is waited for after every fault.
        Box::pin(async move { field.start(&[self.node]) })
    }
}

/// The write-ahead log with the most in it.
fn log(directory: &Path) -> Result<Option<PathBuf>> {
    let logs = files(directory)?.into_iter();
    let logs = logs.filter(|file| file.extension().is_some_and(|extension| extension == "log"));
    Ok(logs.max_by_key(|file| fs::metadata(file).map_or(0, |file| file.len())))
}

/// Table files of applied states: their properties name the column.
fn tables(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files(directory)?;
    found.retain(|file| {
        let is_table = file.extension().is_some_and(|extension| extension == "sst");
        is_table
            && fs::read(file).is_ok_and(|bytes| bytes.windows(STATE.len()).any(|at| at == STATE))
    });
    Ok(found)
}

fn wound(file: &Path, wound: Wound) -> Result<()> {
    let open = File::options().read(true).write(true).open(file)?;
    let bytes = open.metadata()?.len();
    match wound {
        Wound::Cut => Ok(open.set_len(bytes / 2)?),
        Wound::Flip => {
            // Rows come first in a table; what finds them stands behind.
            let at = bytes / 3;
            let mut byte = [0];
            open.read_exact_at(&mut byte, at)?;
            Ok(open.write_all_at(&[byte[0] ^ 0x10], at)?)
        }
    }
}

fn gone(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| {
        matches!(
            error.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_wound_changes_one_bit_or_the_length() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("1.sst");
        fs::write(&file, [7; 90]).unwrap();
        wound(&file, Wound::Flip).unwrap();
        let bytes = fs::read(&file).unwrap();
        let changed: u32 = bytes.iter().map(|byte| (byte ^ 7).count_ones()).sum();
        assert_eq!((bytes.len(), changed), (90, 1));
        wound(&file, Wound::Cut).unwrap();
        assert_eq!(fs::read(&file).unwrap().len(), 45);
    }

    #[test]
    fn only_tables_of_states_and_the_fullest_log_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        fs::create_dir(&store).unwrap();
        for (name, bytes) in [
            ("1.log", &b"x"[..]),
            ("2.log", b"xyz"),
            ("3.sst", b"..namestate.."),
            ("4.sst", b"..namelog.."),
        ] {
            fs::write(store.join(name), bytes).unwrap();
        }
        assert_eq!(tables(directory.path()).unwrap(), [store.join("3.sst")]);
        assert_eq!(log(directory.path()).unwrap(), Some(store.join("2.log")));
    }
}

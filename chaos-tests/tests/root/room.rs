//! A small file system in memory that can be filled to the brim.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::tools::run;

/// Pages go one by one when the last of them are taken.
const PAGE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;
const BALLAST: &str = "ballast";
/// Written where nothing must fit any more.
const CANARY: &str = "canary";

/// A mounted file system of a fixed size; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    mount: PathBuf,
}

impl Room {
    /// Mounts so many MiB on `mount`.
    pub(crate) fn create(mount: PathBuf, size_mib: u64) -> Result<Self> {
        fs::create_dir_all(&mount)?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_mib}m"), "tmpfs"])
            .arg(&mount))?;
        Ok(Self { mount })
    }

    /// Fills it until less than this share is free, and proves it.
    pub(crate) fn fill_below(&self, percent: u64) -> Result<()> {
        let mut ballast = self.ballast()?;
        loop {
            let (available, total) = self.space()?;
            if available * 100 < total * percent {
                return Ok(());
            }
            // Half a per cent at a time: what is left is for the node.
            ballast.write_all(&vec![b'b'; total as usize / 200])?;
        }
    }

    /// Fills it to the last page, and proves it by a canary that does not fit.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut ballast = self.ballast()?;
        for bytes in [CHUNK_BYTES, PAGE_BYTES] {
            let chunk = vec![b'b'; bytes];
            while !is_full(ballast.write_all(&chunk))? {}
        }
        let canary = self.mount.join(CANARY);
        let full = is_full(fs::write(&canary, vec![b'c'; 2 * PAGE_BYTES]))?;
        fs::remove_file(canary)?;
        ensure!(full, "{} is not full", self.mount.display());
        Ok(())
    }

    /// Bytes that are free.
    pub(crate) fn available(&self) -> Result<u64> {
        self.space().map(|(available, _)| available)
    }

    /// Takes back what was filled in.
    pub(crate) fn free(&self) -> Result<()> {
        fs::remove_file(self.mount.join(BALLAST)).context("no ballast")
    }

    fn ballast(&self) -> Result<File> {
        let path = self.mount.join(BALLAST);
        let file = File::options().create(true).append(true).open(path);
        file.context("the ballast")
    }

    /// Bytes that are free, and bytes altogether, as `df` counts them.
    fn space(&self) -> Result<(u64, u64)> {
        let output = Command::new("df")
            .args(["--output=avail,size", "--block-size=1"])
            .arg(&self.mount)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(available), Some(total)) => Ok((available, total)),
            _ => bail!("df says: {text}"),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount));
    }
}

/// Whether a write met the end of the room; another failure is one of the test.
fn is_full(written: std::io::Result<()>) -> Result<bool> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The mark that a failed write or sync leaves.
pub(crate) fn failure_mark(data_dir: &Path) -> PathBuf {
    data_dir.join("store/SYNC_FAILED")
}

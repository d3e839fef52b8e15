//! A small ext4 file system in a file, that can lose power: what was not synced is gone, journal and all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::tools::run;

/// The file is sparse.
const SIZE_BYTES: u64 = 1 << 30;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`, for every directory named. One process for all, so that they
/// go within microseconds; in Perl, which every Debian has, because an ioctl is not safe Rust.
const SHUTDOWN: &str = r#"
    my @open = map { open(my $d, "<", $_) or die "$_: $!"; $d } @ARGV;
    my $flag = pack("L", 2);
    for (@open) { ioctl($_, 0x8004587d, $flag) or die "ioctl: $!"; }
"#;
/// Written before power is lost and never synced: its absence afterwards proves the fault.
const CANARY: &str = "canary";
const CANARY_BYTES: usize = 1 << 16;

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes a file system in `image` and mounts it on `mount`.
    pub(crate) fn create(image: PathBuf, mount: PathBuf) -> Result<Self> {
        let root = fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own));
        ensure!(root? == 0, "power loss needs root: it mounts file systems");
        File::create(&image)?.set_len(SIZE_BYTES)?;
        fs::create_dir_all(&mount)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&image))?;
        let disk = Self { image, mount };
        disk.mount()?;
        // The node wants an empty directory.
        fs::remove_dir(disk.mount.join("lost+found"))?;
        run(&mut Command::new("sync"))?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&self.image)
            .arg(&self.mount))
    }

    /// Writes the canary, and does not sync it.
    pub(crate) fn write_canary(&self) -> Result<()> {
        fs::write(self.mount.join(CANARY), vec![b'c'; CANARY_BYTES]).context("the canary")
    }

    /// Mounts again what has lost power. Nobody may have files open on it.
    pub(crate) fn power_on(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.mount))?;
        self.mount()?;
        let canary = fs::read(self.mount.join(CANARY)).unwrap_or_default();
        ensure!(
            canary != vec![b'c'; CANARY_BYTES],
            "{} has kept what was never synced: no power was lost",
            self.mount.display()
        );
        let _ = fs::remove_file(self.mount.join(CANARY));
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount));
    }
}

/// All lose power at once.
pub(crate) fn power_off(disks: &[Disk]) -> Result<()> {
    let mounts = disks.iter().map(|disk| disk.mount.as_path());
    run(Command::new("perl")
        .args(["-e", SHUTDOWN])
        .args(mounts.map(Path::as_os_str)))
}

/// Goal: the fault is a real one. Method: one file synced and one not; after the loss the first is there.
#[test]
fn what_was_synced_survives_and_the_rest_does_not() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = Disk::create(
        directory.path().join("image"),
        directory.path().join("mount"),
    )?;
    let kept = disk.mount.join("kept");
    let file = File::create(&kept)?;
    std::io::Write::write_all(&mut &file, b"synced")?;
    file.sync_all()?;
    disk.write_canary()?;
    let disks = [disk];
    power_off(&disks)?;
    drop(file);
    disks[0].power_on()?;
    ensure!(fs::read(&kept)? == b"synced", "the synced file is damaged");
    Ok(())
}

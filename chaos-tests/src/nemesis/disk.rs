//! Disks that lose power, fill up or fail, and the mounts that let them.
//!
//! Each node's data lies on an ext4 file system of its own, in a file. Power is lost with `EXT4_IOC_SHUTDOWN`, without a
//! flush of the journal: what was not synced is gone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;

use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::lab::{Lab, within};

/// The file is sparse.
const SIZE_BYTES: u64 = 1 << 30;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`, for every directory named. One process for all, so that they
/// go within microseconds; in Perl, which every Debian has, because an ioctl is not safe Rust.
const SHUTDOWN: &str = r#"
    my @open = map { open(my $d, "<", $_) or die "$_: $!"; $d } @ARGV;
    my $flag = pack("L", 2);
    for (@open) { ioctl($_, 0x8004587d, $flag) or die "ioctl: $!"; }
"#;
/// Written before power is lost and never synced.
pub(super) const CANARY: &str = "canary";
const CANARY_BYTES: usize = 1 << 16;
/// More than a full disk takes.
const PROBE_BYTES: usize = 1 << 20;
/// How often a disk is filled again, because the node has made room on it, before it counts as one that does not fill.
const FULL_PROBES: usize = 5;
/// What fills a disk.
const FILLER: &str = "filler";

/// Gives every node of a cluster that has not started a disk of its own.
///
/// # Errors
/// Without root, or when a command fails.
pub async fn prepare(lab: &Lab) -> Result<()> {
    for node in lab.cluster.nodes() {
        let image = image(lab, node.name());
        File::create(&image)?.set_len(SIZE_BYTES)?;
        fs::create_dir_all(node.data_dir())?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&image))
        .await?;
        mount(&image, &node.data_dir()).await?;
        // The node wants an empty directory.
        fs::remove_dir(node.data_dir().join("lost+found"))?;
    }
    Ok(())
}

fn image(lab: &Lab, name: &str) -> PathBuf {
    lab.directory().join(format!("{name}.ext4"))
}

async fn mount(image: &Path, at: &Path) -> Result<()> {
    let mut mount = Command::new("mount");
    run(mount.args(["-o", "loop"]).arg(image).arg(at)).await
}

/// Takes off what [`prepare`] has put on: a directory in use cannot be removed.
///
/// # Errors
/// When something has files open on a disk.
pub async fn take_off(lab: &Lab) -> Result<()> {
    for node in lab.cluster.nodes() {
        run(Command::new("umount").arg(node.data_dir())).await?;
    }
    Ok(())
}

/// Takes a disk off and puts it on again, as after a reboot. Nobody may have files open on it.
async fn mount_again(lab: &Lab, k: u16) -> Result<()> {
    let node = lab.cluster.node(k);
    run(Command::new("umount").arg(node.data_dir())).await?;
    mount(&image(lab, node.name()), &node.data_dir()).await
}

pub(super) async fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{:?}", command.as_std());
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot start {shown}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}", errors.trim());
    Ok(())
}

/// The power of one node, or of all at the same moment.
#[derive(Debug)]
pub struct PowerLoss {
    all: bool,
    dark: Vec<u16>,
}

impl PowerLoss {
    /// Of one node.
    #[must_use]
    pub fn one() -> Self {
        Self {
            all: false,
            dark: Vec::new(),
        }
    }

    /// Of all.
    #[must_use]
    pub fn all() -> Self {
        Self {
            all: true,
            dark: Vec::new(),
        }
    }
}

impl Fault for PowerLoss {
    fn name(&self) -> String {
        let whose = if self.all { "all nodes" } else { "a node" };
        format!("power loss of {whose}")
    }

    fn keeps_majority(&self) -> bool {
        !self.all
    }

    fn victims(&self) -> Vec<u16> {
        self.dark.clone()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            let count = if self.all { field.nodes() } else { 1 };
            self.dark = field.any_nodes(count);
            field.lab.fault(format!("power loss of {:?}", self.dark));
            let mut shutdown = Command::new("perl");
            shutdown.args(["-e", SHUTDOWN]);
            for k in &self.dark {
                let directory = field.lab.cluster.node(*k).data_dir();
                fs::write(directory.join(CANARY), vec![b'c'; CANARY_BYTES])?;
                shutdown.arg(directory);
            }
            run(&mut shutdown).await?;
            for k in &self.dark {
                let node = field.lab.cluster.node_mut(*k);
                // Without its disk it may have ended already.
                if node.is_running() {
                    node.kill().await?;
                } else {
                    node.wait().await?;
                }
            }
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            for k in &self.dark {
                mount_again(&field.lab, *k).await?;
                let canary = field.lab.cluster.node(*k).data_dir().join(CANARY);
                let kept = fs::read(&canary).unwrap_or_default();
                ensure!(
                    kept != vec![b'c'; CANARY_BYTES],
                    "the disk of node {k} has kept what was never synced: no power was lost"
                );
                let _ = fs::remove_file(canary);
            }
            Ok(format!(
                "what was never synced is gone from the disks of nodes {:?}",
                self.dark
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { field.start(&self.dark) })
    }
}

/// A disk without room.
#[derive(Debug, Default)]
pub struct Full {
    node: u16,
}

impl Fault for Full {
    fn name(&self) -> String {
        "disk full".to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            let filler = field.lab.cluster.node(self.node).data_dir().join(FILLER);
            field.lab.fault(format!("disk of node {} full", self.node));
            fill(&filler).await;
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let directory = field.lab.cluster.node(self.node).data_dir();
            let (probe, filler) = (directory.join(CANARY), directory.join(FILLER));
            for _ in 0..FULL_PROBES {
                let refused = fs::write(&probe, vec![b'c'; PROBE_BYTES]);
                let _ = fs::remove_file(&probe);
                if let Err(error) = refused {
                    return Ok(format!("a probe file on node {}: {error}", self.node));
                }
                // The node itself has just freed something.
                fill(&filler).await;
            }
            bail!("the disk of node {} still takes files", self.node);
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            // What the node frees does not stay free.
            fill(&field.lab.cluster.node(self.node).data_dir().join(FILLER)).await;
            Ok(true)
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field
                .lab
                .fault(format!("disk of node {} has room", self.node));
            let node = field.lab.cluster.node(self.node);
            fs::remove_file(node.data_dir().join(FILLER))?;
            // A node that had to write and could not may have ended, as the contract lets it.
            field.start(&[self.node])
        })
    }
}

/// Until nothing more goes in; first in large steps, then in small ones.
async fn fill(filler: &Path) {
    let target = format!("of={}", filler.display());
    for step in ["bs=1M", "bs=4k"] {
        let mut fill = Command::new("dd");
        fill.args(["if=/dev/zero", step, "oflag=append", "conv=notrunc,fsync"]);
        // It ends when there is no room: that is no success, and what is wanted.
        let _ = run(fill.arg(&target)).await;
    }
}

/// A file system that lets nobody write any more.
#[derive(Debug, Default)]
pub struct ReadOnly {
    node: u16,
}

impl Fault for ReadOnly {
    fn name(&self) -> String {
        "file system read-only".to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        vec![self.node]
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            field
                .lab
                .fault(format!("disk of node {} read-only", self.node));
            let directory = field.lab.cluster.node(self.node).data_dir();
            let mut abort = Command::new("mount");
            run(abort.args(["-o", "remount,abort"]).arg(directory)).await
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let node = field.lab.cluster.node_mut(self.node);
            let refused = fs::write(node.data_dir().join(CANARY), b"c");
            let Err(error) = refused else {
                bail!("the disk of node {} still takes files", self.node);
            };
            let ended = within(
                EFFECT_LIMIT,
                "the end of a node that cannot write",
                node.wait(),
            );
            let status = ended.await??;
            ensure!(
                !status.success(),
                "node {} ended as if all were well",
                self.node
            );
            Ok(format!(
                "a probe file on node {}: {error}; the node ended: {status}",
                self.node
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            mount_again(&field.lab, self.node).await?;
            field.start(&[self.node])
        })
    }
}

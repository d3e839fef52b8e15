//! Disks that lose power, fill up, stand still or fail, and the mounts that let them.
//!
//! Each node's data lies on an ext4 file system of its own, in a file. Power is lost with `EXT4_IOC_SHUTDOWN`, without a
//! flush of the journal: what was not synced is gone. Failing syncs are made by `strace`, which answers a node's calls
//! in the kernel's place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::{EFFECT_LIMIT, Fault, Field, Step};
use crate::lab::{Lab, until, within};

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
const CANARY: &str = "canary";
const CANARY_BYTES: usize = 1 << 16;
/// More than a full disk takes.
const PROBE_BYTES: usize = 1 << 20;
/// What fills a disk.
const FILLER: &str = "filler";
/// A sync that takes longer stands still.
const STANDSTILL: Duration = Duration::from_secs(1);
/// One stall of a slow disk, and the time between two.
const STALL: Duration = Duration::from_millis(500);

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

/// Takes a disk off and puts it on again, as after a reboot. Nobody may have files open on it.
async fn mount_again(lab: &Lab, k: u16) -> Result<()> {
    let node = lab.cluster.node(k);
    run(Command::new("umount").arg(node.data_dir())).await?;
    mount(&image(lab, node.name()), &node.data_dir()).await
}

async fn run(command: &mut Command) -> Result<()> {
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
        Box::pin(async move { field.start_all().await })
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
            let probe = field.lab.cluster.node(self.node).data_dir().join(CANARY);
            let refused = fs::write(&probe, vec![b'c'; PROBE_BYTES]);
            let _ = fs::remove_file(probe);
            let Err(error) = refused else {
                bail!("the disk of node {} still takes files", self.node);
            };
            Ok(format!("a probe file on node {}: {error}", self.node))
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
            field.start_all().await
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

/// A disk that answers nothing: all the time, or half a second again and again.
#[derive(Debug)]
pub struct Frozen {
    node: u16,
    stalls: bool,
    probe: Option<Child>,
    count: usize,
}

impl Frozen {
    /// Until it is healed.
    #[must_use]
    pub fn hung() -> Self {
        Self {
            node: 0,
            stalls: false,
            probe: None,
            count: 0,
        }
    }

    /// In stalls.
    #[must_use]
    pub fn stalling() -> Self {
        Self {
            stalls: true,
            ..Self::hung()
        }
    }

    async fn freeze(&self, field: &Field, flag: &str) -> Result<()> {
        let directory = field.lab.cluster.node(self.node).data_dir();
        run(Command::new("fsfreeze").arg(flag).arg(directory)).await
    }

    fn write(&self, field: &Field) -> Result<Child> {
        let canary = field.lab.cluster.node(self.node).data_dir().join(CANARY);
        let mut write = Command::new("dd");
        let target = format!("of={}", canary.display());
        write.args(["if=/dev/zero", "bs=4k", "count=1", "conv=fsync", &target]);
        write.stdin(Stdio::null()).stderr(Stdio::null());
        Ok(write.spawn()?)
    }

    /// One stall; a write begun in it does not end before it.
    async fn stall(&mut self, field: &Field) -> Result<()> {
        self.freeze(field, "--freeze").await?;
        let start = Instant::now();
        let written = self.write(field);
        sleep(STALL).await;
        self.freeze(field, "--unfreeze").await?;
        let mut written = written?;
        within(EFFECT_LIMIT, "the end of a stall", written.wait()).await??;
        ensure!(start.elapsed() >= STALL, "a write went through a stall");
        self.count += 1;
        Ok(())
    }
}

impl Fault for Frozen {
    fn name(&self) -> String {
        match self.stalls {
            true => format!("disk that stalls for {STALL:?} again and again"),
            false => "disk that hangs".to_owned(),
        }
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            field
                .lab
                .fault(format!("disk of node {} frozen", self.node));
            if self.stalls {
                return self.stall(field).await;
            }
            self.freeze(field, "--freeze").await?;
            self.probe = Some(self.write(field)?);
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let Some(probe) = &mut self.probe else {
                return Ok(format!("a write on node {} waited {STALL:?}", self.node));
            };
            ensure!(
                timeout(STANDSTILL, probe.wait()).await.is_err(),
                "a write on node {} went through",
                self.node
            );
            Ok(format!(
                "a write on node {} stands still for {STANDSTILL:?} and more",
                self.node
            ))
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            if self.stalls {
                self.stall(field).await?;
            }
            Ok(true)
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault(format!("disk of node {} moves", self.node));
            if let Some(mut probe) = self.probe.take() {
                self.freeze(field, "--unfreeze").await?;
                within(EFFECT_LIMIT, "the end of the probe", probe.wait()).await??;
            }
            field.start_all().await
        })
    }
}

/// Every sync of a node fails.
#[derive(Debug, Default)]
pub struct SyncErrors {
    node: u16,
    strace: Option<Child>,
}

impl Fault for SyncErrors {
    fn name(&self) -> String {
        "syncs that fail".to_owned()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_leader().await?.0;
            let process = field.lab.cluster.node(self.node).pid();
            let process = process.context("no process")?.to_string();
            field.lab.fault(format!("syncs of node {} fail", self.node));
            let strace = Command::new("strace")
                .args(["-f", "-p", &process, "-e", "trace=fsync,fdatasync", "-e"])
                .arg("inject=fsync,fdatasync:error=EIO")
                .arg("-o")
                .arg(trace(field))
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn();
            self.strace = Some(strace.context("starting strace")?);
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let node = field.lab.cluster.node_mut(self.node);
            let ended = within(
                EFFECT_LIMIT,
                "the end of a node that cannot sync",
                node.wait(),
            );
            let status = ended.await??;
            let calls = fs::read_to_string(trace(field))?;
            let failed = calls
                .lines()
                .filter(|call| call.contains("INJECTED"))
                .count();
            ensure!(failed > 0, "no sync has failed");
            ensure!(
                !status.success(),
                "node {} ended as if all were well",
                self.node
            );
            Ok(format!(
                "{failed} syncs of node {} failed, and it ended: {status}",
                self.node
            ))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            if let Some(mut strace) = self.strace.take() {
                // It ends with the process it watches.
                within(EFFECT_LIMIT, "the end of strace", strace.wait()).await??;
            }
            fs::remove_file(trace(field))?;
            field.start_all().await
        })
    }
}

fn trace(field: &Field) -> PathBuf {
    field.lab.directory().join("failing-syncs")
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
            field.start_all().await
        })
    }
}

/// A node that starts again over an empty disk. Its old disk is put back in the end.
#[derive(Debug, Default)]
pub struct Wiped {
    node: u16,
}

impl Wiped {
    fn aside(&self, field: &Field) -> PathBuf {
        field.lab.directory().join(format!("old-{}", self.node))
    }

    /// Moves everything from one directory to another.
    fn move_all(from: &Path, to: &Path) -> Result<()> {
        let moved = std::process::Command::new("cp")
            .arg("-a")
            .arg(from.join("."))
            .arg(to)
            .status()?;
        ensure!(moved.success(), "copying {} failed", from.display());
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            match path.is_dir() {
                true => fs::remove_dir_all(path)?,
                false => fs::remove_file(path)?,
            }
        }
        Ok(())
    }
}

impl Fault for Wiped {
    fn name(&self) -> String {
        "disk wiped, node started again".to_owned()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            // Not the one whose token the administrator reads.
            self.node = field.nodes();
            field.lab.fault(format!("disk of node {} wiped", self.node));
            let aside = self.aside(field);
            let node = field.lab.cluster.node_mut(self.node);
            node.kill().await?;
            fs::create_dir_all(&aside)?;
            Self::move_all(&node.data_dir(), &aside)?;
            node.start()?;
            Ok(())
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let node = field.lab.cluster.node(self.node);
            let why = until(
                EFFECT_LIMIT,
                "the wiped node says why it is not ready",
                async || {
                    let Ok(answer) = node.get("/readyz").await else {
                        return Ok(None);
                    };
                    ensure!(answer.status != 200, "the wiped node calls itself ready");
                    let why = answer.body.trim().to_owned();
                    // What it says in its first moment is true of every node.
                    Ok(Some(why).filter(|why| !why.is_empty() && !why.contains("is starting")))
                },
            );
            Ok(format!("node {} is not ready: {}", self.node, why.await?))
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            let answer = field.lab.cluster.node(self.node).get("/readyz").await?;
            ensure!(answer.status != 200, "the wiped node calls itself ready");
            Ok(true)
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            let aside = self.aside(field);
            let node = field.lab.cluster.node_mut(self.node);
            node.kill().await?;
            let directory = node.data_dir();
            let gone = field.lab.directory().join("gone");
            fs::create_dir_all(&gone)?;
            Self::move_all(&directory, &gone)?;
            Self::move_all(&aside, &directory)?;
            fs::remove_dir_all(gone)?;
            field.start_all().await
        })
    }
}

/// One bit of a dead node's write-ahead log, in what it had synced. The node must notice, and rebuild itself from the
/// others; nothing is turned back.
#[derive(Debug, Default)]
pub struct FlippedLog {
    node: u16,
    file: PathBuf,
    at: u64,
}

impl FlippedLog {
    fn flip(&self) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = File::options().read(true).write(true).open(&self.file)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.at)?;
        byte[0] ^= 0x10;
        Ok(file.write_all_at(&byte, self.at)?)
    }
}

impl Fault for FlippedLog {
    fn name(&self) -> String {
        "a bit flipped in the synced write-ahead log".to_owned()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.node = field.any_node();
            let node = field.lab.cluster.node_mut(self.node);
            node.kill().await?;
            let logs = write_ahead_logs(&node.data_dir())?;
            let largest = logs.into_iter().max_by_key(|(_, bytes)| *bytes);
            let (file, bytes) = largest.context("there is no write-ahead log")?;
            self.file = file;
            self.at = bytes / 2;
            field
                .lab
                .fault(format!("a bit flipped on node {}", self.node));
            self.flip()
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let before = field.lab.log(self.node)?.len();
            let node = field.lab.cluster.node_mut(self.node);
            node.start()?;
            let what = format!("node {} says that it is damaged", self.node);
            let words = until(EFFECT_LIMIT, &what, async || {
                let said = field.lab.log(self.node)?.split_off(before);
                let mut lines = said.lines();
                let line = lines.find(|line| line.contains("damaged"));
                Ok(line.map(ToOwned::to_owned))
            });
            Ok(format!("node {} says: {}", self.node, words.await?))
        })
    }

    fn heal<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a> {
        // It heals itself: that it becomes ready is waited for after every fault.
        Box::pin(async { Ok(()) })
    }
}

fn write_ahead_logs(directory: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(write_ahead_logs(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let bytes = fs::metadata(&path)?.len();
            found.push((path, bytes));
        }
    }
    Ok(found)
}

//! Syncs that fail or hang, in a real node: strace takes hold of the thread that syncs and answers in the kernel's place,
//! or holds the call back. Letting go heals the device at once.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::until;

/// Longer than any test takes: the fault ends when it is healed.
const HANG: &str = "delay_enter=600s";
const FAIL: &str = "error=EIO";
/// The node's one thread that syncs.
const THREAD: &str = "syncer";
const LIMIT: Duration = Duration::from_secs(10);

/// A fault under way; healed when dropped.
#[derive(Debug)]
pub(crate) struct Fault {
    tracer: Child,
    trace: PathBuf,
}

impl Fault {
    /// From now on every sync of the node fails. `directory` takes the trace.
    pub(crate) async fn fail(pid: u32, directory: &Path) -> Result<Self> {
        Self::inject(pid, FAIL, directory).await
    }

    /// From now on no sync of the node returns.
    pub(crate) async fn hang(pid: u32, directory: &Path) -> Result<Self> {
        Self::inject(pid, HANG, directory).await
    }

    async fn inject(pid: u32, what: &str, directory: &Path) -> Result<Self> {
        let trace = directory.join(format!("syncs-of-{pid}.strace"));
        let thread = thread_of(pid)?;
        let tracer = Command::new("strace")
            .args(["-p", &thread.to_string(), "-e", "trace=fdatasync", "-e"])
            .arg(format!("inject=fdatasync:{what}"))
            .arg("-o")
            .arg(&trace)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start strace: apt-get install strace")?;
        let fault = Self { tracer, trace };
        until(LIMIT, "strace has hold of the thread", async || {
            Ok((tracer_of(pid, thread)? == fault.tracer.id()).then_some(()))
        })
        .await?;
        Ok(fault)
    }

    /// The proof that a sync has failed: the trace says that the answer was not the kernel's.
    pub(crate) fn prove_failed(&self) -> Result<()> {
        let trace = fs::read_to_string(&self.trace)?;
        let failed = trace.contains("EIO") && trace.contains("(INJECTED)");
        ensure!(failed, "no sync has failed: {trace}");
        Ok(())
    }

    /// The device is well again.
    pub(crate) fn heal(self) {
        drop(self);
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        // The kernel lets go of the thread when its tracer dies.
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}

/// To put before a node that starts on a device where every sync fails; `trace` takes the proof.
pub(crate) fn failing_device(trace: &Path) -> Vec<OsString> {
    let words = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-e",
        "trace=fsync,fdatasync",
        "-e",
        "inject=fsync,fdatasync:error=EIO",
        "-e",
        "signal=none",
        "-o",
    ];
    words
        .into_iter()
        .map(OsString::from)
        .chain([trace.into()])
        .collect()
}

fn thread_of(pid: u32) -> Result<u32> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        if fs::read_to_string(task.path().join("comm"))?.trim() == THREAD {
            return Ok(task.file_name().to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("process {pid} has no thread {THREAD}")
}

fn tracer_of(pid: u32, thread: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    Ok(line.context("no TracerPid")?.trim().parse()?)
}

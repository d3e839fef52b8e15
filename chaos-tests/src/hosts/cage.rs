//! The private world of one run: mount, network and process namespaces of its own.
//!
//! Interfaces, mounts and processes made in there are gone with its first process, by whatever that ends, so that a
//! failed or killed run leaves nothing behind. The program starts itself again inside; the outer one only waits. It
//! never touches the machine's own network.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};

const INSIDE_VARIABLE: &str = "ROOST_CHAOS_INSIDE";
/// What is returned when the one who started us has gone.
const ORPHANED: i32 = 130;

/// Whether this process is already inside.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(INSIDE_VARIABLE).is_some() && std::process::id() == 1
}

/// Where control groups for memory are made.
#[must_use]
pub fn memory_groups() -> PathBuf {
    PathBuf::from("/sys/fs/cgroup/memory")
}

/// What this run's control group is called: control groups are the one thing that no namespace takes away, so the outer
/// process does.
#[must_use]
pub fn group_name() -> String {
    let outer = env::var(INSIDE_VARIABLE).unwrap_or_default();
    format!("roost-chaos-{outer}")
}

/// Whether this process may make namespaces, mounts and packet rules.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs this program again, with these arguments, inside; says whether it ended well.
///
/// # Errors
/// When there is no root, or the namespaces cannot be made.
pub fn enter(arguments: &[OsString]) -> Result<bool> {
    ensure!(
        is_root(),
        "network namespaces with packet rules need root; without it choose --hosts proxy"
    );
    let program = env::current_exe().context("cannot find this program's own file")?;
    let outer = std::process::id().to_string();
    let mut child = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .arg(program)
        .args(arguments)
        .env(INSIDE_VARIABLE, &outer)
        // Held open until this process ends: the inner one sees the end of it and goes.
        .stdin(Stdio::piped())
        .spawn()
        .context("starting unshare (Debian's package util-linux)")?;
    let stdin = child.stdin.take();
    let status = child.wait()?;
    drop(stdin);
    // There is none unless the run died with a limit in force.
    let _ = fs::remove_dir(memory_groups().join(format!("roost-chaos-{outer}")));
    Ok(status.success())
}

/// Ends this process, and with it everything inside, when the outer one has gone.
pub fn end_with_the_outer() {
    thread::spawn(|| {
        let mut nothing = [0; 64];
        while std::io::stdin()
            .read(&mut nothing)
            .is_ok_and(|read| read > 0)
        {}
        std::process::exit(ORPHANED);
    });
}

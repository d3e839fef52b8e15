//! `chaos`: the cluster under attack, by the binary of the same name, with everything on this machine that it needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages;
use crate::story;
use crate::workspace::{Workspace, output, run};

/// What faults are made with, and the Debian package of each. They are looked for as files, some of them libraries.
const TOOLS: &[(&str, &str)] = &[
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/iptables-nft", "iptables"),
    ("/usr/sbin/ip /sbin/ip /usr/bin/ip", "iproute2"),
    ("/usr/bin/strace", "strace"),
    ("/usr/sbin/mkfs.ext4 /sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/bin/unshare", "util-linux"),
    (
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 /usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "libfaketime",
    ),
];
/// Faults that need nothing of the above.
const WITHOUT_ROOT: [&str; 2] = ["--hosts", "proxy"];

/// Builds what is needed and attacks it; the options are those of the chaos binary, `features` words for cargo.
///
/// # Errors
///
/// When something is missing that cannot be installed from here, or the cluster broke a promise.
pub(crate) fn run_with(workspace: &Workspace, options: &[&str], features: &[&str]) -> Result<()> {
    let needs_tools = !options.windows(2).any(|two| two == WITHOUT_ROOT)
        && !["--list", "--table"]
            .iter()
            .any(|quiet| options.contains(quiet));
    if needs_tools {
        packages::install(&missing())?;
    }
    let binaries = story::build(workspace, features)?;
    let mut chaos = Command::new(binaries.join("chaos"));
    chaos.args(options).env("ROOST_BIN", binaries.join("roost"));
    // The matrix and its table are files of the checkout.
    chaos.current_dir(&workspace.root);
    if options.contains(&"--matrix") {
        chaos.args(["--commit", commit(workspace)?.trim()]);
    }
    if !options.contains(&"--out") {
        chaos.arg("--out").arg(workspace.target.join("chaos"));
    }
    run(&mut chaos).context("the cluster did not pass")
}

/// What is under test, with a mark when it is not what was committed.
fn commit(workspace: &Workspace) -> Result<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude", "*"]);
    output(git.current_dir(&workspace.root)).context("the commit under test")
}

fn missing() -> Vec<&'static str> {
    let absent = |files: &str| !files.split(' ').any(|file| Path::new(file).exists());
    let tools = TOOLS.iter().filter(|(files, _)| absent(files));
    tools.map(|(_, package)| *package).collect()
}

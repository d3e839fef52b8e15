//! `up` and `demo`: a cluster to look at.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{PROFILE, Workspace, run};

/// Of every package that has some: cargo gives shared dependencies the features that the packages chosen ask for, and with
/// fewer of them would compile those once more.
const BINARIES: [&str; 3] = ["roost", "chaos", "demo"];

/// Builds the binaries of the workspace and says where they are; `features` are words for cargo.
pub(crate) fn build(workspace: &Workspace, features: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked", "--workspace", "--profile", PROFILE]);
    cargo.args(features);
    for binary in BINARIES {
        cargo.args(["--bin", binary]);
    }
    run(&mut cargo)?;
    Ok(workspace.binaries())
}

/// Plays the story: messages accepted, a node killed, nothing lost.
pub(crate) fn demo(workspace: &Workspace) -> Result<()> {
    let binaries = build(workspace, &[])?;
    run(Command::new(binaries.join("demo")).env("ROOST_BIN", binaries.join("roost")))
        .context("the demo failed")
}

/// Becomes `roost dev`.
pub(crate) fn dev(workspace: &Workspace, options: &[&str]) -> Result<()> {
    let roost = build(workspace, &[])?.join("roost");
    let shown = roost.display();
    // It says itself what to type: it knows its ports and directory.
    println!(
        "\nNow a cluster of three nodes runs here until Ctrl-C. What it says to type needs this first:\n\n  \
         alias roost={shown}\n"
    );
    let error = Command::new(&roost)
        .arg("dev")
        .args(options)
        .current_dir(&workspace.root)
        .exec();
    bail!("cannot start {shown}: {error}")
}

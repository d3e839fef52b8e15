//! `up` and `demo`: a cluster to look at.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{PROFILE, Workspace, run};

/// Builds the named binaries of the workspace and says where they are.
///
/// They are chosen from the whole workspace, never with `--package`: so every command here agrees with the tests on
/// the features of shared dependencies, and nothing is compiled twice.
pub(crate) fn build(workspace: &Workspace, binaries: &[&str]) -> Result<PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked", "--workspace", "--profile", PROFILE]);
    for binary in binaries {
        cargo.args(["--bin", binary]);
    }
    run(&mut cargo)?;
    Ok(workspace.binaries())
}

/// Plays the story: messages accepted, a node killed, nothing lost.
pub(crate) fn demo(workspace: &Workspace) -> Result<()> {
    let binaries = build(workspace, &["roost", "demo"])?;
    run(Command::new(binaries.join("demo")).env("ROOST_BIN", binaries.join("roost")))
        .context("the demo failed")
}

/// Becomes `roost dev`.
pub(crate) fn dev(workspace: &Workspace, options: &[&str]) -> Result<()> {
    let roost = build(workspace, &["roost"])?.join("roost");
    let shown = roost.display();
    println!(
        "
Now a cluster of three nodes runs here until Ctrl-C. In another terminal:

  alias roost={shown}
  roost account add +15550001 --device phone
  roost account add +15550002 --device phone
  roost send --as +15550001 --to +15550002 \"hello\"        # one tick: on disk on a majority of replicas
  roost listen --as +15550002 --count 1 --server http://127.0.0.1:7403
  roost send --as +15550001 --to +15550002 \"again\" --until delivered
  roost status
"
    );
    let error = Command::new(&roost)
        .arg("dev")
        .args(options)
        .current_dir(&workspace.root)
        .exec();
    bail!("cannot start {shown}: {error}")
}

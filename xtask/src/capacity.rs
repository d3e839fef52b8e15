//! `capacity`: how many nodes a number of users needs, by the binary of the same name.

use std::process::Command;

use anyhow::{Context, Result};

use crate::story;
use crate::workspace::{Workspace, run};

/// Builds the model and runs it; the options are its own.
///
/// # Errors
///
/// When it does not build, or a document does not have its tables.
pub(crate) fn run_with(workspace: &Workspace, options: &[&str]) -> Result<()> {
    let binaries = story::build(workspace, &["--bin", "capacity"])?;
    let mut capacity = Command::new(binaries.join("capacity"));
    // Documents are named as files of the checkout.
    capacity.args(options).current_dir(&workspace.root);
    run(&mut capacity).context("capacity")
}

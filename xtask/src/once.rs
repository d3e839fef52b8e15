//! The proof that RocksDB's C++ is compiled once per machine: what people and editors run, in mixed order, in a target
//! directory that nobody has used, compiles none of it.
//!
//! It counts the objects that the build scripts of RocksDB's package have left. The workspace is built whole in the
//! default profile, as a bare `cargo build` does; of the others only RocksDB itself.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::rocksdb;
use crate::workspace::{Workspace, run, shown};

/// What people, an editor, tests and bench run.
const COMMANDS: [&[&str]; 6] = [
    &["build", "--release", "--package", "librocksdb-sys"],
    &["check", "--workspace", "--all-targets"],
    &["build"],
    &["build", "--profile", "fast", "--package", "rocksdb"],
    &["test", "--no-run", "--package", "roost-proto"],
    &["build", "--release", "--package", "rocksdb"],
];
/// Their profiles, as directories.
const PROFILES: [&str; 3] = ["debug", "fast", "release"];

/// Runs all of it, and counts after each.
///
/// # Errors
///
/// When a command fails, or one object was compiled.
pub(crate) fn prove(workspace: &Workspace) -> Result<()> {
    let target = workspace.target.join("rocksdb-once");
    if target.exists() {
        fs::remove_dir_all(&target)
            .with_context(|| format!("cannot remove {}", target.display()))?;
    }
    for words in COMMANDS {
        let mut cargo = workspace.cargo();
        cargo
            .args(words)
            .args(["--locked", "--quiet"])
            .env("CARGO_TARGET_DIR", &target);
        run(&mut cargo)?;
        let objects: usize = PROFILES
            .iter()
            .map(|profile| rocksdb::objects(&target.join(profile)))
            .sum();
        println!(
            "{objects} objects of RocksDB compiled after {}",
            shown(&cargo)
        );
        if objects > 0 {
            bail!(
                "RocksDB was compiled again: does .cargo/config.toml include .cargo/rocksdb.toml?"
            );
        }
    }
    fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
}

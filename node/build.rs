//! Names the commit that the binary is built from, for `roost --version`, and refuses to link a library of RocksDB that
//! was compiled for another version than the lockfile's.

use std::path::{Path, PathBuf};
use std::process::Command;

const ROCKSDB_LIBRARY: &str = "ROCKSDB_LIB_DIR";
const LOCKFILE: &str = "../Cargo.lock";

fn main() {
    // The log of HEAD grows with every commit and checkout; without a repository there is nothing to watch.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    check_rocksdb();
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    println!(
        "cargo:rustc-env=ROOST_COMMIT={}",
        commit.as_deref().unwrap_or("unknown")
    );
}

/// `cargo xtask` keeps libraries below `roost/rocksdb`, in directories whose names begin with the version, and
/// `.cargo/rocksdb.toml` names one. After an update of RocksDB that one is of yesterday until xtask runs again; linked, it
/// would fail in the strangest ways. A library that somebody chose himself is his to keep right.
fn check_rocksdb() {
    println!("cargo:rerun-if-env-changed={ROCKSDB_LIBRARY}");
    println!("cargo:rerun-if-changed={LOCKFILE}");
    let Some(library) = std::env::var_os(ROCKSDB_LIBRARY).map(PathBuf::from) else {
        return;
    };
    let ours = library
        .parent()
        .is_some_and(|shelf| shelf.ends_with("roost/rocksdb"));
    let key = library.file_name().unwrap_or_default().to_string_lossy();
    let lock = std::fs::read_to_string(LOCKFILE).unwrap_or_default();
    let mut lines = lock.lines();
    let named = lines.any(|line| line == "name = \"librocksdb-sys\"");
    let version = lines
        .next()
        .and_then(|line| line.strip_prefix("version = "));
    if let (true, true, Some(version)) = (ours, named, version.map(|text| text.trim_matches('"')))
        && !key.starts_with(&format!("{version}-"))
    {
        println!(
            "cargo::error=the lockfile wants librocksdb-sys {version}, and .cargo/rocksdb.toml names a library compiled \
             for another version ({key}): run `cargo xtask rocksdb`, which compiles the new one once for this machine"
        );
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

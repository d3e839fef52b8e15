//! RocksDB's static library: compiled once per machine, linked by every profile of every checkout.
//!
//! The library lies in the user's cache directory under a key of what it depends on: crate version, architecture,
//! compiler. `.cargo/rocksdb.toml`, which git ignores and the committed `.cargo/config.toml` includes when it is there,
//! tells every cargo command of this checkout where, so that a bare `cargo build`, an editor's check, tests and bench
//! never compile it again, in whatever order they run.
//!
//! A missing library is taken from this checkout's target directory when a bare `cargo build` has compiled it there
//! already, and else compiled in a package of its own. A library appears under its name only when it is whole, and two
//! builds at once wait for each other.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::compiler;
use crate::progress::{Progress, minutes};
use crate::workspace::{ROCKSDB_VARIABLES, Workspace, cargo};

const PACKAGE: &str = "librocksdb-sys";
const LIBRARY: &str = "librocksdb.a";
/// Profiles of this workspace; each compiles the C++ optimised.
const PROFILES: [&str; 3] = ["debug", "fast", "release"];
const LOG_LINES_SHOWN: usize = 30;

/// Makes sure that the library is there and every cargo command here finds it; says where it is.
///
/// # Errors
///
/// When it cannot be compiled; the log is named.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(directory) = &workspace.own_rocksdb {
        println!(
            "linking RocksDB from {}, as ROCKSDB_LIB_DIR says",
            directory.display()
        );
        return Ok(directory.clone());
    }
    let version = workspace.locked_version(PACKAGE)?;
    let key = format!("{version}-{}-{}", env::consts::ARCH, compiler::version()?);
    let shelf = cache_directory()?.join("roost/rocksdb");
    let directory = shelf.join(&key);
    if !directory.join(LIBRARY).exists() {
        provide(workspace, &version, &shelf, &key)?;
    }
    write_config(workspace, &directory)?;
    Ok(directory)
}

fn cache_directory() -> Result<PathBuf> {
    let given = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let usual = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    given
        .or_else(usual)
        .context("neither XDG_CACHE_HOME nor HOME is set: where may a compiled library be kept?")
}

fn provide(workspace: &Workspace, version: &str, shelf: &Path, key: &str) -> Result<()> {
    let directory = shelf.join(key);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let _alone = lock(&shelf.join(format!("{key}.lock")))?;
    let library = directory.join(LIBRARY);
    if library.exists() {
        return Ok(());
    }
    if let Some(found) = harvest(&workspace.target, version) {
        println!(
            "keeping the RocksDB library that cargo has built in {}",
            found.display()
        );
        return place(&found, &library);
    }
    let scratch = shelf.join(format!("{key}.build"));
    place(&compile(workspace, version, &scratch)?, &library)?;
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("waiting for another build of RocksDB on this machine");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Copies under another name first: under its own a library is always whole.
fn place(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)
        .and_then(|_| File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// A library of this version that some cargo command has compiled to its end in `target`.
fn harvest(target: &Path, version: &str) -> Option<PathBuf> {
    PROFILES
        .iter()
        .find_map(|profile| finished(&target.join(profile), version))
}

/// The library in the target directory of one profile. Cargo writes `output` when a build script has succeeded, and
/// it names the version.
fn finished(profile: &Path, version: &str) -> Option<PathBuf> {
    let source = format!("{PACKAGE}-{version}");
    build_directories(profile).find_map(|build| {
        let output = fs::read(build.join("output")).ok()?;
        let library = build.join("out").join(LIBRARY);
        (String::from_utf8_lossy(&output).contains(&source) && library.exists()).then_some(library)
    })
}

fn build_directories(profile: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(profile.join("build"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PACKAGE));
    ours.map(|entry| entry.path())
}

/// Compiles the library in a package that has nothing but it, at the versions and features of this workspace.
fn compile(workspace: &Workspace, version: &str, scratch: &Path) -> Result<PathBuf> {
    write_scratch(workspace, scratch)?;
    println!(
        "compiling RocksDB {version} once for this machine: about 20 minutes on two cores, fewer on more\n\
         (log: {})",
        scratch.join("build.log").display()
    );
    let release = scratch.join("target/release");
    let total = source_count(version);
    let mut build = start(scratch)?;
    let mut progress = Progress::start();
    let status = loop {
        if let Some(status) = build.try_wait().context("cannot wait for cargo")? {
            break status;
        }
        progress.show(&state(&release, total));
        sleep(Duration::from_secs(1));
    };
    let took = progress.end();
    if !status.success() {
        bail!(
            "RocksDB did not compile ({status}); the end of {}",
            log_end(&scratch.join("build.log"))
        );
    }
    println!("RocksDB compiled in {}", minutes(took));
    finished(&release, version).context("cargo succeeded, yet there is no library of RocksDB")
}

fn write_scratch(workspace: &Workspace, scratch: &Path) -> Result<()> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)
            .with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    let root =
        fs::read_to_string(workspace.root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let manifest = scratch_manifest(&root)?;
    fs::create_dir_all(scratch.join("src"))
        .and_then(|()| fs::write(scratch.join("src/lib.rs"), ""))
        .and_then(|()| fs::write(scratch.join("Cargo.toml"), manifest))
        .and_then(|()| {
            fs::copy(
                workspace.root.join("Cargo.lock"),
                scratch.join("Cargo.lock"),
            )
        })
        .map(|_| ())
        .with_context(|| format!("cannot write {}", scratch.display()))
}

/// Features come from the workspace's own line, versions from its lockfile.
fn scratch_manifest(root: &str) -> Result<String> {
    let rocksdb = root.lines().find(|line| line.starts_with("rocksdb = "));
    let rocksdb = rocksdb
        .context("Cargo.toml has no line `rocksdb = ...` among the workspace's dependencies")?;
    Ok(format!(
        "[package]\nname = \"rocksdb-library\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [workspace]\n\n[dependencies]\n{rocksdb}\n"
    ))
}

fn start(scratch: &Path) -> Result<Child> {
    let log = File::create(scratch.join("build.log")).context("cannot make the build's log")?;
    let log_too = log.try_clone().context("cannot make the build's log")?;
    let mut command: Command = cargo();
    command
        .args(["build", "--release"])
        .current_dir(scratch)
        .env("CARGO_TARGET_DIR", scratch.join("target"));
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .spawn()
        .context("cannot start cargo")
}

fn state(release: &Path, total: Option<usize>) -> String {
    let objects = objects(release);
    match total {
        _ if objects == 0 => "fetching and compiling what it needs".to_owned(),
        Some(total) => format!("{objects} of {total} objects compiled"),
        None => format!("{objects} objects compiled"),
    }
}

/// How many objects of RocksDB the target directory of a profile has.
pub(crate) fn objects(profile: &Path) -> usize {
    build_directories(profile)
        .map(|build| object_count(&build.join("out")))
        .sum()
}

/// Objects lie in the directory or one below.
fn object_count(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    paths
        .map(|path| {
            if path.is_dir() {
                object_count(&path)
            } else {
                usize::from(is_object(&path))
            }
        })
        .sum()
}

fn is_object(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "o")
}

/// How many C++ files there are to compile, if the crate's source is where cargo usually keeps it.
fn source_count(version: &str) -> Option<usize> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/src"))
        .ok()?
        .filter_map(Result::ok);
    let list = format!("{PACKAGE}-{version}/rocksdb_lib_sources.txt");
    registries
        .filter_map(|registry| fs::read_to_string(registry.path().join(&list)).ok())
        .map(|list| list.lines().count())
        .next()
}

fn log_end(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
    format!("{}:\n{end}", log.display())
}

/// Written only when it changes, so that cargo sees nothing new.
fn write_config(workspace: &Workspace, directory: &Path) -> Result<()> {
    let directory = directory
        .to_str()
        .context("the cache directory's name is not UTF-8")?;
    let text = format!(
        "# Written by `cargo xtask`: this machine's static library of RocksDB.\n[env]\n{} = {directory:?}\n{} = \"1\"\n",
        ROCKSDB_VARIABLES[0], ROCKSDB_VARIABLES[1]
    );
    let file = workspace.rocksdb_config();
    if fs::read_to_string(&file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_package_takes_the_workspaces_features() {
        let root = "[workspace.dependencies]\nrand = \"1\"\nrocksdb = { version = \"1\", features = [\"lz4\"] }\n";
        let manifest = scratch_manifest(root).unwrap_or_default();
        assert!(
            manifest
                .ends_with("[dependencies]\nrocksdb = { version = \"1\", features = [\"lz4\"] }\n")
        );
        assert!(scratch_manifest("[workspace.dependencies]\n").is_err());
    }

    #[test]
    fn only_a_finished_library_of_the_version_is_harvested() -> Result<()> {
        let target = env::temp_dir().join(format!("xtask-harvest-{}", std::process::id()));
        let build = target.join("fast/build/librocksdb-sys-0123abcd");
        fs::create_dir_all(build.join("out"))?;
        fs::write(build.join("out").join(LIBRARY), "!<arch>\n")?;
        assert_eq!(harvest(&target, "0.1.0+2"), None, "still compiling");
        fs::write(
            build.join("output"),
            "cargo:cargo_manifest_dir=/src/librocksdb-sys-0.1.0+2\n",
        )?;
        assert_eq!(harvest(&target, "0.2.0+3"), None, "another version");
        assert_eq!(
            harvest(&target, "0.1.0+2"),
            Some(build.join("out").join(LIBRARY))
        );
        assert_eq!(objects(&target.join("fast")), 0);
        fs::create_dir_all(build.join("out/rocksdb"))?;
        fs::write(build.join("out/rocksdb/db.o"), "")?;
        assert_eq!(objects(&target.join("fast")), 1);
        fs::remove_dir_all(target)?;
        Ok(())
    }
}

//! What the system must have before RocksDB's bindings can be generated and its C++ compiled.
//!
//! It looks for the files themselves, not for package names, so that nothing is installed that is there in another
//! way. As root on Debian or Ubuntu it installs what is missing; otherwise it says the command and stops.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::compiler;
use crate::workspace::{output, run};

/// Makes sure that libclang and a C++ compiler are there.
///
/// # Errors
///
/// When something is missing and cannot be installed from here; the message is the command to type.
pub(crate) fn ensure() -> Result<()> {
    install(&missing())?;
    match missing().as_slice() {
        [] => Ok(()),
        still => bail!(
            "{} installed, yet not found; if it is elsewhere, set LIBCLANG_PATH or CXX",
            still.join(" ")
        ),
    }
}

/// Makes sure that the tests that need root have what they break syncs with.
///
/// # Errors
///
/// As [`ensure`].
pub(crate) fn ensure_strace() -> Result<()> {
    let found = output(Command::new("strace").arg("--version")).is_ok();
    install(if found { &[] } else { &["strace"] })
}

/// Installs these, or says the command.
///
/// # Errors
///
/// When they cannot be installed from here; the message is the command to type.
pub(crate) fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    let install =
        format!("apt-get update && apt-get install --no-install-recommends --yes {packages}");
    if !is_debian() {
        bail!(
            "missing on this system: {packages} (Debian's names); install their equivalents and try again"
        );
    }
    if !is_root() {
        bail!("missing packages; type this, then try again:\n\n  sudo sh -c '{install}'\n");
    }
    println!("installing {packages}");
    run(Command::new("sh")
        .args(["-c", &install])
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

fn missing() -> Vec<&'static str> {
    let mut packages = Vec::new();
    if !has_libclang() {
        packages.push("libclang-dev");
    }
    if compiler::version().is_err() {
        packages.push("g++");
    }
    packages
}

/// The bindings generator loads libclang when it runs, and needs the headers that come with it (`stddef.h`).
fn has_libclang() -> bool {
    let directories = library_directories();
    let library = directories
        .iter()
        .any(|directory| contains(directory, is_libclang));
    library
        && (env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_some()
            || directories.iter().any(|dir| has_headers(dir)))
}

/// Where libclang is looked for: what `LIBCLANG_PATH` says, else the usual places.
fn library_directories() -> Vec<PathBuf> {
    if let Some(path) = env::var_os("LIBCLANG_PATH") {
        let path = PathBuf::from(path);
        let parent = path.parent().map(Path::to_path_buf);
        return [Some(path), parent].into_iter().flatten().collect();
    }
    let mut directories: Vec<PathBuf> = ["/usr/local/lib", "/usr/lib64", "/usr/lib"]
        .map(PathBuf::from)
        .to_vec();
    for directory in entries(Path::new("/usr/lib")) {
        directories.push(directory.join("lib"));
        directories.push(directory);
    }
    directories
}

fn is_libclang(name: &str) -> bool {
    name == "libclang.so"
        || (name.starts_with("libclang.so.")
            || name.starts_with("libclang-") && name.contains(".so"))
            && !name.contains("-cpp")
}

fn has_headers(library_directory: &Path) -> bool {
    entries(&library_directory.join("clang"))
        .iter()
        .any(|version| version.join("include/stddef.h").exists())
}

fn contains(directory: &Path, wanted: fn(&str) -> bool) -> bool {
    entries(directory)
        .iter()
        .filter_map(|path| path.file_name())
        .filter_map(OsStr::to_str)
        .any(wanted)
}

/// What lies in `directory`; nothing when it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect()
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists()
}

/// Whether this may install packages and mount file systems.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_told_from_its_neighbours() {
        assert!(
            [
                "libclang.so",
                "libclang-14.so.1",
                "libclang.so.13",
                "libclang-14.0.6.so"
            ]
            .into_iter()
            .all(is_libclang)
        );
        assert!(
            ![
                "libclang-cpp.so.14",
                "libclangAST.a",
                "libclang.a",
                "libc.so"
            ]
            .into_iter()
            .any(is_libclang)
        );
    }
}

//! Which C++ compiler there is: part of the name of what it compiled.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::workspace::output;

/// The compiler by kind and version, such as `gcc-12.2.0`.
///
/// # Errors
///
/// When there is none.
pub(crate) fn version() -> Result<String> {
    let introduction = ask("--version")?;
    if introduction.contains("clang") {
        return Ok(format!("clang-{}", ask("-dumpversion")?.trim()));
    }
    Ok(format!("gcc-{}", ask("-dumpfullversion")?.trim()))
}

fn ask(question: &str) -> Result<String> {
    output(Command::new(program()).arg(question).env("LC_ALL", "C"))
}

/// The one that RocksDB's build script takes too.
fn program() -> OsString {
    env::var_os("CXX").unwrap_or_else(|| "c++".into())
}

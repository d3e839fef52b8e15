//! What people type: `cargo xtask up`, `demo`, `test`, `chaos`, `bench`, `capacity`.
//!
//! It makes a machine able to build Roost, runs what continuous integration runs, and starts the binaries that other
//! packages build. It depends on no other package of the workspace, so that it compiles in seconds before anything is
//! installed, and it writes nothing outside the target directory, the user's cache directory and
//! `.cargo/rocksdb.toml`, except the system packages it says it installs.
//!
//! One noun per file: [`workspace`] is this checkout and its cargo, [`packages`] what the system must have,
//! [`rocksdb`] the library compiled once per machine, [`dependencies`] the review of licences and duplicates, [`unused`] of what nobody uses,
//! [`once`] the proof of it, [`checks`] everything `test` runs, [`chaos`] the cluster under attack, [`bench`] what it costs, [`capacity`] how many
//! nodes that makes, [`story`] `up` and `demo`.

mod bench;
mod capacity;
mod chaos;
mod checks;
mod compiler;
mod dependencies;
mod licence;
mod once;
mod packages;
mod progress;
mod rocksdb;
mod story;
mod unused;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};
use workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  up [-- OPTIONS]   install what is missing, build, play the demo, then run `roost dev` (OPTIONS go to it)
  demo              play the demo: a node dies by kill -9 and no message is lost
  test [--full]     everything that continuous integration runs; --full adds what takes long
  chaos [OPTIONS]   break a cluster under load and check its promises; --list names the ways, --help the options
  bench [OPTIONS]   measure the release build: --row A,B, --json FILE, --quick; --help the options
  capacity          how many nodes a number of users needs; --write docs/CAPACITY.md, --check docs/CAPACITY.md
  build             build the roost binary and say where it is
  rocksdb           only make sure that RocksDB's static library is there, and say where
  rocksdb --prove   build in several ways, and show that none of RocksDB is compiled again";

const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["up"] => up(&[]),
        ["up", "--", options @ ..] => up(options),
        ["demo"] => demo(),
        ["test"] => test(false),
        ["test", "--full"] => test(true),
        ["chaos", options @ ..] => chaos(options),
        ["bench", options @ ..] => {
            ready().and_then(|workspace| bench::run_with(&workspace, options))
        }
        ["capacity", options @ ..] => {
            ready().and_then(|workspace| capacity::run_with(&workspace, options))
        }
        ["build"] => build(),
        ["rocksdb"] => library(),
        ["rocksdb", "--prove"] => ready().and_then(|workspace| once::prove(&workspace)),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// This checkout, with everything there that a build needs.
fn ready() -> Result<Workspace> {
    let workspace = Workspace::here()?;
    packages::ensure()?;
    rocksdb::ensure(&workspace)?;
    Ok(workspace)
}

fn up(options: &[&str]) -> Result<()> {
    let workspace = ready()?;
    story::demo(&workspace)?;
    story::dev(&workspace, options)
}

fn demo() -> Result<()> {
    story::demo(&ready()?)
}

fn test(full: bool) -> Result<()> {
    if checks::run_all(&ready()?, full)? {
        return Ok(());
    }
    bail!("not every check passed")
}

fn chaos(options: &[&str]) -> Result<()> {
    chaos::run_with(&ready()?, options, &[])
}

fn build() -> Result<()> {
    println!("{}", story::build(&ready()?, &[])?.join("roost").display());
    Ok(())
}

fn library() -> Result<()> {
    let workspace = Workspace::here()?;
    packages::ensure()?;
    println!("{}", rocksdb::ensure(&workspace)?.display());
    Ok(())
}

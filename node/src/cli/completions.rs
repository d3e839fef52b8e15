//! `roost completions`: scripts for shells.

use std::io;

use clap_complete::Shell;

use super::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// For this shell.
    shell: Shell,
}

pub(super) fn run(args: &Args, command: &mut clap::Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "roost", &mut script);
    io::Write::write_all(&mut io::stdout(), &script)?;
    Ok(Exit::Done)
}

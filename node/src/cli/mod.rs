//! The command line: what people and scripts type. One file per command; each turns its arguments into calls of the
//! client library, of `roost-local`, or of the node itself, and its outcome into lines and an exit code.
//!
//! Results go to standard output, everything else to standard error; an error is one line that says what to do.

mod account;
mod chat;
mod completions;
mod dev;
mod exit;
mod format;
mod input;
mod listen;
mod node;
mod send;
mod server;
mod signals;
mod status;
mod version;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use exit::{Exit, Failure};

/// A distributed message router that loses nothing.
#[derive(Debug, Parser)]
#[command(
    name = "roost",
    version = version::text(),
    after_help = exit::HELP,
    disable_help_subcommand = true,
    propagate_version = false
)]
struct Cli {
    #[command(flatten)]
    server: server::ServerArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node of a cluster.
    Node(node::Args),
    /// Run a local cluster of real node processes until Ctrl-C.
    Dev(dev::Args),
    /// Add, list and remove accounts and devices; needs the admin token.
    Account(account::Args),
    /// Send one message, or one per line of standard input.
    Send(send::Args),
    /// Receive messages, one line each.
    Listen(listen::Args),
    /// Talk to somebody.
    Chat(chat::Args),
    /// Show nodes, shards and queues; needs the admin token.
    Status(status::Args),
    /// Print a script that completes `roost` commands in a shell.
    Completions(completions::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = run(cli);
    if let Err(failure) = &result {
        eprintln!("roost: {failure}");
    }
    ExitCode::from(match result {
        Ok(exit) => exit.code(),
        Err(failure) => failure.exit().code(),
    })
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let server = cli.server;
    if let Command::Completions(args) = cli.command {
        return completions::run(&args, &mut Cli::command());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Node(args) => node::run(args).await,
            Command::Dev(args) => dev::run(args).await,
            Command::Account(args) => account::run(args, &server).await,
            Command::Send(args) => send::run(args, &server).await,
            Command::Listen(args) => listen::run(args, &server).await,
            Command::Chat(args) => chat::run(args, &server).await,
            Command::Status(args) => status::run(args, &server).await,
            Command::Completions(_) => Ok(Exit::Done),
        }
    });
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    result
}

/// Twice the processors: a worker that waits for the store, or for a processor that others hold, must not hold up the
/// heartbeats.
fn worker_threads() -> usize {
    const WORKERS_MIN: usize = 4;
    std::thread::available_parallelism()
        .map_or(WORKERS_MIN, |cores| WORKERS_MIN.max(2 * cores.get()))
}

/// Help and version were asked for, or nothing at all; everything else is a usage error, one line like any other.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("roost: {}", Failure::usage(what_is_wrong(error)));
    } else {
        // Without a terminal to print to there is nothing left to do.
        let _ = error.print();
    }
    match error.use_stderr() {
        true => ExitCode::from(Exit::Usage.code()),
        false => ExitCode::SUCCESS,
    }
}

/// The parser's words without its usage, which is in the help.
fn what_is_wrong(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let paragraphs = text.trim_start_matches("error: ").split("\n\n");
    let told: Vec<&str> = paragraphs
        .map(str::trim)
        .take_while(|paragraph| {
            !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information")
        })
        .collect();
    format!("{}; see --help", told.join("; "))
}

#[cfg(test)]
mod tests;

//! `roost node`: one node of a cluster, in this process.

use std::env;
use std::io::Write as _;
use std::path::PathBuf;

use super::exit::{Exit, Failure};
use crate::config::{self, Config};
use crate::node::{self, Ended};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Settings come from defaults, under the file, under variables like ROOST_RAFT__HEARTBEAT_MS=50, under --set. An unknown
setting is an error wherever it stands. SIGTERM and Ctrl-C drain the node and stop it.")]
pub(super) struct Args {
    /// The node's settings, as TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting over file and environment, for example raft.heartbeat_ms=50; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print all settings as they would be, the cluster token included, and do nothing else.
    #[arg(long)]
    dump_config: bool,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    // A variable that is no text sets nothing by chance: what is wrong in it is seen and refused.
    let environment = env::vars_os().map(|(name, value)| {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        (text(name), text(value))
    });
    let config = Config::load(args.config.as_deref(), environment, args.set)?;
    if args.dump_config {
        write!(std::io::stdout(), "{}", config.dump())?;
        return Ok(Exit::Done);
    }
    match node::run(config).await {
        Ok(Ended::Stopped) => Ok(Exit::Done),
        Ok(Ended::Failed) => Err(Failure::internal(
            "the node had to stop; its log says why, and what to check before it starts again",
        )),
        Err(error) => Err(Failure::internal(format!("{error:#}"))),
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self::usage(error.to_string())
    }
}

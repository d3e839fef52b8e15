//! The rows: one file each. A row starts an empty cluster, loads it, and says what it measured.

mod accept;
mod death;
mod growth;
mod idle;
mod online;
mod recovery;
mod storm;
mod window;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

pub(crate) use window::latencies;

use crate::results::Run;

/// How a run is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Shorter and smaller, to see that it works; its figures are rough.
    pub(crate) quick: bool,
    /// Generator processes.
    pub(crate) processes: u32,
    /// Messages under way for each sender in closed loop.
    pub(crate) window: usize,
    pub(crate) shards: u32,
    /// Where clusters keep their data.
    pub(crate) directory: PathBuf,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum Row {
    /// Accepting for users who are offline.
    A,
    /// Routing between nodes, both sides online.
    B,
    /// Idle sessions.
    C,
    /// Reconnect storm.
    D,
    /// Deliveries while a node dies.
    E,
    /// Growth: what a message costs as queues, users, shards and bodies grow.
    F,
    /// Recovery: a restart over much data.
    G,
}

impl Row {
    /// As it stands in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::D => "D",
            Self::E => "E",
            Self::F => "F",
            Self::G => "G",
        }
    }

    /// Measures it once.
    ///
    /// # Errors
    /// When the cluster or a generator fails: then there is no figure.
    pub(crate) async fn run(self, plan: &Plan) -> Result<Run> {
        match self {
            Self::A => accept::run(plan).await,
            Self::B => online::run(plan).await,
            Self::C => idle::run(plan).await,
            Self::D => storm::run(plan).await,
            Self::E => death::run(plan).await,
            Self::F => growth::run(plan).await,
            Self::G => recovery::run(plan).await,
        }
    }
}

impl Plan {
    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { 5 })
    }

    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs(if self.quick { 4 } else { 15 })
    }

    fn cluster(&self) -> PathBuf {
        self.directory.join("cluster")
    }
}

/// Users who send have numbers from here on, users who receive from 0.
pub(crate) const SENDERS_FROM: u32 = 50_000_000;

#[allow(clippy::print_stderr, reason = "progress, for who waits")]
pub(crate) fn progress(row: &str, what: &str) {
    eprintln!("[{row}] {what}");
}

//! What can go wrong with node processes, in words that say what to look at.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Why a cluster or a node could not be started, signalled or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster as described cannot exist.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else listens where a node should.
    #[error("port {} is in use ({address}, wanted by {node} for {purpose}): stop what listens there or choose another base port", address.port())]
    PortInUse {
        /// The address that was tried.
        address: SocketAddr,
        /// The node that wants it.
        node: String,
        /// What for: `client`, `peer` or `http`.
        purpose: &'static str,
    },
    /// No base port was found with all ports of a cluster free.
    #[error(
        "no free range of ports for {nodes} nodes between {from} and {to}: stop clusters that are no longer needed"
    )]
    NoFreePorts {
        /// How many nodes were to find room.
        nodes: u16,
        /// Lowest base port tried.
        from: u16,
        /// Highest base port tried.
        to: u16,
    },
    /// The extra TOML given for a node does not parse.
    #[error("the extra settings for {node} are not TOML: {source}")]
    Toml {
        /// The node whose config was being written.
        node: String,
        /// What the parser says.
        source: toml::de::Error,
    },
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The binary, or the command put before it, could not be started.
    #[error("cannot start {node} with {}: {source}", program.display())]
    Spawn {
        /// The node.
        node: String,
        /// The program that did not start.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The process could not be signalled or waited for.
    #[error("cannot {action} {node}: {source}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// The node.
        node: String,
        /// What the system says.
        source: io::Error,
    },
    /// The node has no process.
    #[error("{node} is not running")]
    NotRunning {
        /// The node.
        node: String,
    },
    /// The node has a process already.
    #[error("{node} is running already")]
    AlreadyRunning {
        /// The node.
        node: String,
    },
    /// The process ended before the node was ready.
    #[error("{node} ended before it was ready ({status}); the end of {}:\n{tail}", log.display())]
    Exited {
        /// The node.
        node: String,
        /// How it ended.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// The node did not become ready in time.
    #[error("{node} is not ready after {} s ({last}); the end of {}:\n{tail}", after.as_secs(), log.display())]
    NotReady {
        /// The node.
        node: String,
        /// How long it was waited for.
        after: Duration,
        /// What `/readyz` said last.
        last: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
}

impl Error {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { path, source }
    }
}

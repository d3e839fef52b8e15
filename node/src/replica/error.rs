//! Why a replica did not do what it was asked.

use roost_proto::peer::{Failure, failure::Reason};

use crate::types::NodeId;

/// Why a replica did not do what it was asked. All but [`Error::Internal`] may be asked again, ids unchanged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another replica leads, or none.
    #[error("this replica does not lead the shard")]
    NotLeader {
        /// The node that does, if known.
        leader: Option<NodeId>,
    },
    /// The shard has no replica on this node, or one that has failed.
    #[error("no replica of the shard serves on this node")]
    NoReplica,
    /// As many proposals wait as are allowed.
    #[error("too many proposals wait at the shard's leader")]
    Overloaded {
        /// When to come back, milliseconds.
        retry_after_ms: u64,
    },
    /// The leader's disk is below its reserve.
    #[error("the disk of the shard's leader is nearly full")]
    DiskLow,
    /// The proposal may or may not be committed.
    #[error("the fate of the proposal is unknown")]
    Unknown,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// A broken node or a bug.
    #[error("{0}")]
    Internal(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut failure = Failure {
            message: error.to_string(),
            ..Failure::default()
        };
        let reason = match error {
            Error::NotLeader { leader } => {
                failure.leader = leader.map(|node| node.to_string()).unwrap_or_default();
                Reason::NotLeader
            }
            Error::NoReplica => Reason::NoReplica,
            Error::Overloaded { retry_after_ms } => {
                failure.retry_after_ms = retry_after_ms;
                Reason::Overloaded
            }
            Error::DiskLow => Reason::DiskLow,
            Error::Unknown => Reason::Unknown,
            Error::Stopping => Reason::ShuttingDown,
            Error::Internal(_) => Reason::Internal,
        };
        failure.set_reason(reason);
        failure
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.reason() {
            Reason::NotLeader => Self::NotLeader {
                leader: NodeId::parse(&failure.leader).ok(),
            },
            Reason::NoReplica => Self::NoReplica,
            Reason::Overloaded => Self::Overloaded {
                retry_after_ms: failure.retry_after_ms,
            },
            Reason::DiskLow => Self::DiskLow,
            Reason::Unknown => Self::Unknown,
            Reason::ShuttingDown => Self::Stopping,
            Reason::Unspecified | Reason::Internal => Self::Internal(failure.message),
        }
    }
}

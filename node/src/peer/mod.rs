//! Links between nodes: calls with deadlines, and pushes for attachments, over long-lived streams.
//!
//! The interface is what the layers above need of a network: [`Peers`] to ask others, [`Service`] to be asked. [`Links`]
//! implements it once, over whatever [`Dial`] gives it: [`grpc`] between real nodes, [`memory`] inside tests that run a
//! whole cluster in one thread.
//!
//! Promises: what one side sends on one lane to one node arrives in that order or the link breaks; a broken link fails
//! its open calls and ends its attachments at once; a call is answered, or fails by its deadline. Never: a wait on one
//! call before the next is read, a queue without a bound. What waits to be sent goes out together in one frame.
//!
//! ```text
//! Links -> Calling -> Frames ~~ stream ~~> Serving -> Service
//!          Calling <~~ stream ~~ Frames <- Serving <-
//! ```

mod calling;
mod frames;
pub mod grpc;
mod links;
pub mod memory;
pub mod server;
mod serving;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use roost_proto::peer::{
    AttachRequest, AttachResponse, Detach, Failure, Grant, Push, Request, Response,
};
use tokio::sync::{mpsc, watch};

use crate::types::NodeId;

pub use frames::Frames;
pub use links::{Dial, DialError, Links};

/// Largest message, and so the largest frame, in either direction. A frame is at most `peer.frame_bytes_max` (8 MiB at
/// most) unless it holds one larger message, and the largest is an append of one proposal: `raft.batch_bytes_max` (8 MiB
/// at most) or a single command. Twice that leaves room for what encoding adds.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Which of a link's streams carries a call, so that none waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats, votes, hand-overs, clock readings.
    Control,
    /// Log entries, requests, deliveries.
    Traffic,
    /// Snapshots, limited in rate.
    Bulk,
}

impl Lane {
    /// The lane's word in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Traffic => "traffic",
            Self::Bulk => "bulk",
        }
    }
}

/// Why a call got no answer. Its fate is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No link, or it broke.
    #[error("node {0} cannot be reached")]
    Unreachable(NodeId),
    /// The deadline passed.
    #[error("node {0} did not answer in time")]
    TimedOut(NodeId),
    /// This side has as many calls open to that node as it allows.
    #[error("too many calls wait for node {0}")]
    Overloaded(NodeId),
    /// The request is over [`MESSAGE_BYTES_MAX`]: a bug of the caller, and the same again would fail again.
    #[error("a request for node {0} is larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge(NodeId),
    /// The other side answered, and made no attachment. Only from [`Peers::attach`]: [`Peers::call`] returns failures
    /// as the responses they are.
    #[error("node {0} made no attachment: {message}", message = .1.message)]
    Failed(NodeId, Failure),
}

/// Where an attachment's pushes arrive. Bounded by the windows that the session granted, for entries and for notices. When the link breaks the
/// sender is dropped, and the receiver ends: attach again.
pub type PushSink = mpsc::UnboundedSender<Push>;

/// The other nodes, as the layers above see them.
pub trait Peers: Send + Sync + 'static {
    /// Asks a node and waits for its answer, at most until the deadline.
    fn call(
        &self,
        node: NodeId,
        lane: Lane,
        deadline: Duration,
        request: Request,
    ) -> BoxFuture<'_, Result<Response, Error>>;

    /// Attaches at a node; pushes go to `pushes` until the answer is a refusal, [`Peers::detach`], or the link breaks.
    /// The implementation gives `request.attachment` a number unique on the link, which the returned handle carries. A
    /// push may come before the answer. Without an answer, or when the caller stops waiting, the attachment is undone.
    fn attach(
        &self,
        node: NodeId,
        deadline: Duration,
        request: AttachRequest,
        pushes: PushSink,
    ) -> BoxFuture<'_, Result<(Attachment, AttachResponse), Error>>;

    /// More room in an attachment's window. Best effort: a broken link ends the attachment anyway.
    fn grant(&self, node: NodeId, grant: Grant);

    /// The session has gone. Best effort, as [`Peers::grant`].
    fn detach(&self, node: NodeId, detach: Detach);

    /// The nodes whose control link broke, or never opened, and that could not be dialled since. A process that died is
    /// among them at once, because its host resets the link and refuses the next; a host that died, or a network, only
    /// when a dial has run out of time. It is no proof: the node may still reach this one.
    fn lost(&self) -> watch::Receiver<BTreeSet<NodeId>>;
}

/// An attachment's number on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment(pub u64);

/// Identifies the link and attachment that a push goes back over, on the leader's side. A broken link's attachments
/// are detached by [`Service::link_closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

impl LinkId {
    /// Links of other nodes are numbered from here; below are the node's links to itself.
    const FIRST_FROM_OTHERS: u64 = 3;

    /// The node's link to itself.
    fn here(lane: Lane) -> Self {
        Self(lane as u64)
    }
}

/// The sending side of an incoming link: pushes for its attachments. Bounded by the credit that the sessions granted.
pub type LinkPushes = mpsc::UnboundedSender<Push>;

/// What a node does with what other nodes ask.
pub trait Service: Send + Sync + 'static {
    /// Answers a request. Each runs in a task of its own, so that one slow shard holds up nobody; requests of one link
    /// are *started* in the order they were sent. Dropped when the caller's deadline passes.
    fn call(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response>;

    /// As [`Service::call`] for [`AttachRequest`], with the link that pushes go back over.
    fn attach(
        &self,
        from: NodeId,
        link: LinkId,
        pushes: LinkPushes,
        request: AttachRequest,
    ) -> BoxFuture<'static, Response>;

    /// More room in an attachment's window.
    fn grant(&self, link: LinkId, grant: Grant);

    /// The attachment's session has gone.
    fn detach(&self, link: LinkId, detach: Detach);

    /// The link broke: all its attachments are over.
    fn link_closed(&self, link: LinkId);
}

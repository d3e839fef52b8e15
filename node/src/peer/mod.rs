//! Links between nodes: calls with deadlines, and pushes for attachments, over long-lived streams.
//!
//! The interface is what the layers above need of a network, and has two implementations: `grpc` for real nodes and
//! the one inside tests that run a whole cluster in one thread.

use std::time::Duration;

use futures::future::BoxFuture;
use roost_proto::peer::{AttachRequest, AttachResponse, Detach, Grant, Push, Request, Response};
use tokio::sync::mpsc;

use crate::types::NodeId;

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
}

/// Where an attachment's pushes arrive. Bounded by the window that the session granted. When the link breaks the
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
    /// The implementation gives `request.attachment` a number unique on the link, which the returned handle carries.
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
}

/// An attachment's number on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment(pub u64);

/// Identifies the link and attachment that a push goes back over, on the leader's side. A broken link's attachments
/// are detached by [`Service::link_closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The sending side of an incoming link: pushes for its attachments. Unbounded, because each push is covered by the
/// credit that the session granted.
pub type LinkPushes = mpsc::UnboundedSender<Push>;

/// What a node does with what other nodes ask.
pub trait Service: Send + Sync + 'static {
    /// Answers a request. Each runs in a task of its own, so that one slow shard holds up nobody; requests of one link
    /// are *started* in the order they were sent.
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

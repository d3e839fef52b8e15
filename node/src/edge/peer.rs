//! What this node does with what other nodes ask.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use roost_proto::peer::{
    AttachRequest, ClockResponse, Detach, Failure, Grant, HandOverResponse, Request, Response,
    StatusResponse, failure::Reason, request::Request as Ask, response::Response as Answer,
};

use crate::peer::{LinkId, LinkPushes, Service};
use crate::replica::clock::WallClock;
use crate::replica::{Error, Replicas, Target};
use crate::types::{NodeId, ReplicaId, ShardId};

/// The service behind the peer listener, and behind calls of this node to itself.
pub struct PeerService {
    replicas: Arc<Replicas>,
    health: Arc<dyn Health>,
    wall: WallClock,
}

/// What others may know of this node as a whole.
pub trait Health: Send + Sync + 'static {
    /// Joined, caught up, placement known.
    fn ready(&self) -> bool;
    /// The disk is below its reserve.
    fn disk_low(&self) -> bool;
    /// The node is stopping.
    fn leaving(&self) -> bool;
    /// What an operator should know.
    fn warnings(&self) -> Vec<String>;
}

impl PeerService {
    /// Over this node's replicas.
    #[must_use]
    pub fn new(replicas: Arc<Replicas>, health: Arc<dyn Health>, wall: WallClock) -> Self {
        Self {
            replicas,
            health,
            wall,
        }
    }
}

impl Service for PeerService {
    fn call(&self, _from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let replicas = Arc::clone(&self.replicas);
        match request.request {
            Some(Ask::Raft(raft)) => {
                answer(async move { replicas.raft(raft).await.map(Answer::Raft) }).boxed()
            }
            Some(Ask::Shard(shard)) => answer(async move {
                let request = shard.request.ok_or_else(unknown_request)?;
                replicas
                    .handle(ShardId(shard.shard), request)
                    .await
                    .map(Answer::Shard)
            })
            .boxed(),
            // Whoever asks may not have heard yet; the leadership would move again at once.
            Some(Ask::HandOver(_)) if self.health.leaving() => {
                answer(async { Err(Error::NoReplica) }).boxed()
            }
            Some(Ask::HandOver(hand_over)) => answer(async move {
                replicas.elect(ReplicaId(hand_over.replica)).await?;
                Ok(Answer::HandOver(HandOverResponse {}))
            })
            .boxed(),
            Some(Ask::Clock(_)) => {
                let clock = ClockResponse {
                    wall_ms: (self.wall)(),
                    disk_low: self.health.disk_low(),
                    leaving: self.health.leaving(),
                };
                answer(async move { Ok(Answer::Clock(clock)) }).boxed()
            }
            Some(Ask::Status(_)) => {
                let status = StatusResponse {
                    ready: self.health.ready(),
                    replicas: self.replicas.status(),
                    warnings: self.health.warnings(),
                };
                answer(async move { Ok(Answer::Status(status)) }).boxed()
            }
            Some(Ask::Attach(_)) | None => answer(async { Err(unknown_request()) }).boxed(),
        }
    }

    fn attach(
        &self,
        _from: NodeId,
        link: LinkId,
        pushes: LinkPushes,
        request: AttachRequest,
    ) -> BoxFuture<'static, Response> {
        let replicas = Arc::clone(&self.replicas);
        answer(async move {
            replicas
                .attach(request, Target { link, pushes })
                .await
                .map(Answer::Attach)
        })
        .boxed()
    }

    fn grant(&self, link: LinkId, grant: Grant) {
        self.replicas.grant(link, &grant);
    }

    fn detach(&self, link: LinkId, detach: Detach) {
        self.replicas.detach(link, &detach);
    }

    fn link_closed(&self, link: LinkId) {
        self.replicas.link_closed(link);
    }
}

async fn answer(answered: impl Future<Output = Result<Answer, Error>>) -> Response {
    let response = answered
        .await
        .unwrap_or_else(|error| Answer::Failure(error.into()));
    Response {
        response: Some(response),
    }
}

/// A request of a later version.
fn unknown_request() -> Error {
    Error::Internal("this node does not know such a request".to_owned())
}

/// What a node answers while it has no replicas yet.
#[must_use]
pub fn not_ready() -> Response {
    let mut failure = Failure {
        message: "the node is starting".to_owned(),
        ..Failure::default()
    };
    failure.set_reason(Reason::NoReplica);
    Response {
        response: Some(Answer::Failure(failure)),
    }
}

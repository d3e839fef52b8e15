//! Who leads a shard, and asking there: whoever asks the router never learns that a leader moved.
//!
//! A request is retried inside, ids unchanged, as long as its deadline allows; so a request whose fate is unknown may
//! be applied twice, and every command is made to bear that.

pub mod outbox;
pub mod placement;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roost_proto::peer::{
    AttachRequest, AttachResponse, Detach, Grant, Push, Request, Response, ShardRequest, request,
    response, shard_request, shard_response,
};
use roost_proto::storage::{Outcome, command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::metrics;
use crate::peer::{self, Attachment, Lane, Peers};
use crate::replica::{self, Replicas, proposal};
use crate::types::{NodeId, ShardId};
use placement::Placement;

/// First wait before the next attempt.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
/// Longest wait before the next attempt.
const BACK_OFF_MAX: Duration = Duration::from_millis(200);
/// How long one node may take to answer before others are asked. A node that has lost its leadership is left earlier,
/// as soon as a replica here hears of it.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);

/// Why a request was given up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No leader answered within the deadline; the request's fate is unknown.
    #[error("shard {shard} has no leader that answers; is a majority of its nodes up?")]
    Unavailable {
        /// The shard.
        shard: ShardId,
    },
    /// The leader or the link to it is full.
    #[error("the shard's leader is overloaded")]
    Overloaded {
        /// When to come back, milliseconds.
        retry_after_ms: u64,
    },
    /// The leader takes no new messages.
    #[error("the disk of the shard's leader is nearly full")]
    DiskLow,
    /// A broken node or a bug.
    #[error("{0}")]
    Internal(String),
}

/// The way to every shard.
pub struct Router {
    peers: Arc<dyn Peers>,
    replicas: Arc<Replicas>,
    placement: watch::Receiver<Arc<Placement>>,
    /// Who led last, as far as this node knows; a hint.
    leaders: Mutex<BTreeMap<ShardId, NodeId>>,
}

impl Router {
    /// Needs nothing but the other nodes, the replicas here (for hints), and where shards live.
    #[must_use]
    pub fn new(
        peers: Arc<dyn Peers>,
        replicas: Arc<Replicas>,
        placement: watch::Receiver<Arc<Placement>>,
    ) -> Self {
        Self {
            peers,
            replicas,
            placement,
            leaders: Mutex::default(),
        }
    }

    /// Where shards live now.
    #[must_use]
    pub fn placement(&self) -> Arc<Placement> {
        Arc::clone(&self.placement.borrow())
    }

    /// The shard of a user.
    #[must_use]
    pub fn shard_of(&self, user: &crate::types::UserId) -> ShardId {
        ShardId::of(user, self.placement.borrow().shards)
    }

    /// See [`Replicas::cut_off`].
    #[must_use]
    pub fn cut_off(&self) -> watch::Receiver<bool> {
        self.replicas.cut_off()
    }

    /// Proposes a command at the shard's leader, wherever it is, and waits until it is committed and applied.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn propose(
        &self,
        shard: ShardId,
        command: command::Command,
        within: Duration,
    ) -> Result<Outcome, Error> {
        let request = shard_request::Request::Propose(proposal::encode(command));
        match self.request(shard, request, within).await? {
            shard_response::Response::Outcome(outcome) => Ok(outcome),
            _ => Err(unexpected()),
        }
    }

    /// Asks the shard's leader, wherever it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn request(
        &self,
        shard: ShardId,
        request: shard_request::Request,
        within: Duration,
    ) -> Result<shard_response::Response, Error> {
        let request = Request {
            request: Some(request::Request::Shard(ShardRequest {
                shard: shard.0,
                request: Some(request),
            })),
        };
        let answer = self.at_leader(shard, within, |node, limit| {
            let request = request.clone();
            async move { self.peers.call(node, Lane::Traffic, limit, request).await }
        });
        match answer.await?.response {
            Some(response::Response::Shard(response)) => response.response.ok_or_else(unexpected),
            _ => Err(unexpected()),
        }
    }

    /// Attaches at the user's shard's leader, wherever it is.
    ///
    /// # Errors
    /// See [`Error`]; a refusal is in the response.
    pub async fn attach(
        &self,
        request: AttachRequest,
        within: Duration,
    ) -> Result<(Attached, AttachResponse), Error> {
        let shard = ShardId(request.shard);
        let held: Mutex<Option<Attached>> = Mutex::default();
        let answer = self.at_leader(shard, within, |node, limit| {
            let request = request.clone();
            let held = &held;
            async move {
                // Bounded by the windows of `request`: entries and notices are pushed on credit, and one last push.
                let (sink, pushes) = mpsc::unbounded_channel();
                let (number, response) = self.peers.attach(node, limit, request, sink).await?;
                let peers = Arc::clone(&self.peers);
                *held.lock() = Some(Attached {
                    peers,
                    node,
                    number,
                    shard,
                    pushes,
                    news: self.news(shard, node),
                });
                Ok(Response {
                    response: Some(response::Response::Attach(response)),
                })
            }
        });
        let response = match answer.await?.response {
            Some(response::Response::Attach(response)) => response,
            _ => return Err(unexpected()),
        };
        let attached = held.into_inner().ok_or_else(unexpected)?;
        Ok((attached, response))
    }

    /// Tries nodes until one answers as the leader.
    async fn at_leader<A>(
        &self,
        shard: ShardId,
        within: Duration,
        attempt: impl Fn(NodeId, Duration) -> A,
    ) -> Result<Response, Error>
    where
        A: Future<Output = Result<Response, peer::Error>>,
    {
        let deadline = Instant::now() + within;
        let mut back_off = BACK_OFF_MIN;
        let (mut told, mut failed) = (None, None);
        for tries in 0usize.. {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let Some(node) = told.take().or_else(|| self.candidate(shard, tries, failed)) else {
                break;
            };
            let limit = left.min(ATTEMPT_MAX);
            let mut news = self.news(shard, node);
            let answer = tokio::select! {
                answer = attempt(node, limit) => answer,
                () = news.moved() => Err(peer::Error::TimedOut(node)),
            };
            match self.judge(shard, node, answer) {
                Verdict::Answer(response) => return Ok(response),
                Verdict::GiveUp(error) => return Err(error),
                Verdict::TryAt(leader) => {
                    told = Some(leader);
                    // The hint may be older than our own knowledge: two nodes could name each other for ever.
                    if tries % 2 == 0 {
                        continue;
                    }
                }
                Verdict::TryOther => {
                    self.leaders.lock().remove(&shard);
                    failed = Some(node);
                }
            }
            let rest = back_off.min(deadline.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = news.moved() => {}
            }
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
        metrics::FORWARDS.of("unavailable").increment(1);
        Err(Error::Unavailable { shard })
    }

    /// The leader if known, else one replica's node after the other. Not the node that has just `failed`, unless it is
    /// alone: a replica here whose disk hangs cannot learn of the next leader, and believes in the old one for as long.
    fn candidate(&self, shard: ShardId, tries: usize, failed: Option<NodeId>) -> Option<NodeId> {
        let known = self.leader_seen_here(shard);
        let known = known.or_else(|| self.leaders.lock().get(&shard).copied());
        if known.is_some() && known != failed {
            return known;
        }
        let placement = self.placement.borrow();
        let replicas = placement.replicas(shard);
        let turn = replicas.iter().cycle().skip(tries % replicas.len().max(1));
        let mut turn = turn.take(replicas.len()).map(|(_, node)| *node);
        let first = turn.next();
        turn.find(|_| first == failed).or(first)
    }

    fn leader_seen_here(&self, shard: ShardId) -> Option<NodeId> {
        *self.replicas.get(shard)?.leader().borrow()
    }

    /// What a replica here will learn of a shard's leadership. What it believes now is no news: it may be behind whoever
    /// named `node`.
    fn news(&self, shard: ShardId, node: NodeId) -> News {
        let leaders = self.replicas.get(shard).map(|replica| replica.leader());
        let before = leaders.as_ref().and_then(|leaders| *leaders.borrow());
        News {
            leaders,
            before,
            node,
        }
    }

    fn judge(
        &self,
        shard: ShardId,
        node: NodeId,
        answer: Result<Response, peer::Error>,
    ) -> Verdict {
        let failure = match answer {
            Err(peer::Error::Failed(_, failure)) => failure,
            Ok(Response {
                response: Some(response::Response::Failure(failure)),
            }) => failure,
            Ok(response) => {
                self.leaders.lock().insert(shard, node);
                metrics::FORWARDS.of("answered").increment(1);
                return Verdict::Answer(response);
            }
            Err(peer::Error::Overloaded(_)) => {
                metrics::FORWARDS.of("overloaded").increment(1);
                return Verdict::GiveUp(Error::Overloaded {
                    retry_after_ms: LINK_OVERLOAD_RETRY_MS,
                });
            }
            Err(_) => {
                metrics::FORWARDS.of("unreachable").increment(1);
                return Verdict::TryOther;
            }
        };
        match replica::Error::from(failure) {
            replica::Error::NotLeader {
                leader: Some(leader),
            } if leader != node => {
                metrics::FORWARDS.of("moved").increment(1);
                Verdict::TryAt(leader)
            }
            replica::Error::Overloaded { retry_after_ms } => {
                metrics::FORWARDS.of("overloaded").increment(1);
                Verdict::GiveUp(Error::Overloaded { retry_after_ms })
            }
            replica::Error::DiskLow => Verdict::GiveUp(Error::DiskLow),
            replica::Error::Internal(message) => {
                tracing::warn!(%shard, %node, message, "a node could not do what it was asked");
                metrics::FORWARDS.of("failed").increment(1);
                Verdict::TryOther
            }
            replica::Error::NotLeader { .. }
            | replica::Error::NoReplica
            | replica::Error::Unknown
            | replica::Error::Stopping => {
                metrics::FORWARDS.of("retried").increment(1);
                Verdict::TryOther
            }
        }
    }
}

/// What to tell a caller when the link to the leader is full, milliseconds.
const LINK_OVERLOAD_RETRY_MS: u64 = 50;

enum Verdict {
    Answer(Response),
    GiveUp(Error),
    TryAt(NodeId),
    TryOther,
}

/// Room that a session grants for pushes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Entries of its queue.
    pub entries: u32,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Receipts, and pushes that only name what has expired.
    pub notices: u32,
}

/// Hears of it when somebody else than `node` leads.
struct News {
    leaders: Option<watch::Receiver<Option<NodeId>>>,
    before: Option<NodeId>,
    node: NodeId,
}

impl News {
    /// Returns when a replica here learns that somebody else leads; never, without a replica here.
    async fn moved(&mut self) {
        let (before, node) = (self.before, self.node);
        let elsewhere = |leader: &Option<NodeId>| {
            *leader != before && leader.is_some_and(|leader| leader != node)
        };
        if let Some(leaders) = &mut self.leaders
            && leaders.wait_for(elsewhere).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// An attachment, from the session's side. Dropping it detaches.
pub struct Attached {
    peers: Arc<dyn Peers>,
    node: NodeId,
    number: Attachment,
    shard: ShardId,
    pushes: mpsc::UnboundedReceiver<Push>,
    news: News,
}

impl Attached {
    /// The next push; `None` when the link has broken, or somebody else leads who was elected without the knowledge of the
    /// leader here, which is cut off or frozen: attach again.
    pub async fn next(&mut self) -> Option<Push> {
        tokio::select! {
            biased;
            push = self.pushes.recv() => push,
            () = self.news.moved() => None,
        }
    }

    /// More room for pushes.
    pub fn grant(&self, room: Room) {
        let grant = Grant {
            attachment: self.number.0,
            entries: room.entries,
            bytes: room.bytes,
            shard: self.shard.0,
            notices: room.notices,
        };
        self.peers.grant(self.node, grant);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.peers.detach(
            self.node,
            Detach {
                attachment: self.number.0,
            },
        );
    }
}

fn unexpected() -> Error {
    Error::Internal("a node answered something else than it was asked".to_owned())
}

//! Raft's calls to other replicas, over the links between nodes.
//!
//! Heartbeats, votes and canvasses travel on the control lane, entries on the traffic lane, snapshots on the bulk lane, one chunk
//! at a time and at the node's pace, and only to who lacks something. Whatever kept an answer away makes openraft leave the other side alone for a moment: an error that it
//! would retry at once is never returned, because a link that is down fails at once.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{
    Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::SnapshotResponse;
use openraft::{ErrorSubject, ErrorVerb, RPCTypes, RaftNetwork, RaftNetworkFactory, Snapshot};
use roost_proto::peer::{RaftRequest, Request, raft_request, raft_response, request, response};
use tokio::sync::watch;
use tokio::time::Instant;

use super::codec::{decode_message, encode_message};
use super::contact::Contact;
use super::fault::Fault;
use super::pace::Pace;
use super::snapshot::{Answer, Chunk, Frozen, Handle, Sender};
use super::timing::{CHUNK_TRIES_MAX, Timing};
use super::types::{
    AppendRequest, AppendResponse, LogId, TypeConfig, Vote, VoteRequest, VoteResponse,
};
use crate::metrics;
use crate::peer::{Lane, Peers};
use crate::sabotage::{self, Break};
use crate::storage;
use crate::types::{NodeId, ReplicaId};

/// Makes the ends of links for one replica.
#[derive(Clone)]
pub(super) struct Network {
    pub replica: ReplicaId,
    pub peers: Arc<dyn Peers>,
    pub timing: Timing,
    pub fault: Fault,
    pub pace: Arc<Pace>,
    pub contact: Contact,
}

/// One replica's way to another.
pub(super) struct Link {
    replica: ReplicaId,
    target: u64,
    node: NodeId,
    peers: Arc<dyn Peers>,
    timing: Timing,
    fault: Fault,
    pace: Arc<Pace>,
    contact: Contact,
    /// When the last append began to which the other side agreed, unless one has failed since.
    agreed_at: Option<Instant>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Peer(#[from] crate::peer::Error),
    #[error("the other side cannot: {0}")]
    Failure(String),
    #[error(transparent)]
    Format(#[from] storage::Error),
    #[error("the answer is to another question")]
    Mismatch,
    #[error("a majority of the voters has been silent for too long to go on as their leader")]
    NoQuorum,
}

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the snapshot was refused: {0}")]
    Refused(String),
    #[error("the snapshot took longer than its life")]
    Expired,
    #[error("this node sends as many snapshots as it may already")]
    NoTurn,
}

type NetError = RPCError<u64, NodeId, RaftError<u64>>;
type SnapshotError = StreamingError<TypeConfig, Fatal<u64>>;

impl Network {
    pub(super) fn link(&self, target: u64, node: NodeId) -> Link {
        Link {
            replica: self.replica,
            target,
            node,
            peers: self.peers.clone(),
            timing: self.timing,
            fault: self.fault.clone(),
            pace: self.pace.clone(),
            contact: self.contact.clone(),
            agreed_at: None,
        }
    }

    /// The nodes that can no longer be reached; see [`Peers::lost`].
    pub(super) fn lost(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.peers.lost()
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &NodeId) -> Link {
        self.link(target, *node)
    }
}

impl Link {
    async fn call(
        &self,
        lane: Lane,
        deadline: Duration,
        body: raft_request::Body,
    ) -> Result<raft_response::Body, CallError> {
        let request = Request {
            request: Some(request::Request::Raft(RaftRequest {
                replica: self.target,
                body: Some(body),
            })),
        };
        let response = self.peers.call(self.node, lane, deadline, request).await?;
        match response.response {
            Some(response::Response::Raft(response)) => {
                self.contact.note_answer(ReplicaId(self.target));
                response.body.ok_or(CallError::Mismatch)
            }
            Some(response::Response::Failure(failure)) => {
                Err(CallError::Failure(format!("{:?}", failure.reason())))
            }
            _ => Err(CallError::Mismatch),
        }
    }

    fn error(&self, action: RPCTypes, timeout: Duration, error: &CallError) -> NetError {
        match error {
            CallError::Peer(crate::peer::Error::TimedOut(_)) => RPCError::Timeout(Timeout {
                action,
                id: self.replica.0,
                target: self.target,
                timeout,
            }),
            error => RPCError::Unreachable(Unreachable::new(error)),
        }
    }

    /// Appends, if a majority has been heard of lately. A leader that hears none must be replaced, and its followers would
    /// take an append for a sign that it leads: one that only sends would go on for ever. So it asks first who is there.
    async fn append(
        &self,
        request: &AppendRequest,
        deadline: Duration,
    ) -> Result<AppendResponse, CallError> {
        if self.is_alone() {
            let probe = VoteRequest::new(request.vote, request.prev_log_id);
            self.canvass(&probe, deadline).await?;
            if self.is_alone() {
                return Err(CallError::NoQuorum);
            }
        }
        let lane = match request.entries.is_empty() {
            true => Lane::Control,
            false => Lane::Traffic,
        };
        let body = raft_request::Body::Append(encode_message(request));
        match self.call(lane, deadline, body).await? {
            raft_response::Body::Append(bytes) => decoded("answer to an append", bytes),
            _ => Err(CallError::Mismatch),
        }
    }

    /// Whether an append would tell the other side nothing that it needs now. openraft sends one without entries after each
    /// commit, and until that is answered the next entries wait. But only a leader's state is read by anybody; followers
    /// may learn of a commit with the entries that follow, or with the next heartbeat. What openraft takes from the answer,
    /// that a follower is there and agrees, is then older than it thinks by half a heartbeat interval at most.
    fn is_needless(&self, request: &AppendRequest) -> bool {
        let fresh = |at: Instant| at.elapsed() < self.timing.heartbeat / 2;
        request.entries.is_empty() && self.agreed_at.is_some_and(fresh)
    }

    fn is_alone(&self) -> bool {
        self.contact.quorum_silence() > self.timing.quorum_silence_max()
    }

    /// Asks whether the other side wishes this replica well, should it stand for election. It changes nothing there, so
    /// it also finds out whether the other side answers at all.
    pub(super) async fn canvass(
        &self,
        request: &VoteRequest,
        deadline: Duration,
    ) -> Result<VoteResponse, CallError> {
        let body = raft_request::Body::Canvass(encode_message(request));
        match self.call(Lane::Control, deadline, body).await? {
            raft_response::Body::Canvass(bytes) => decoded("answer to a canvass", bytes),
            _ => Err(CallError::Mismatch),
        }
    }

    /// Asks whether the other side has everything that the state came from; if so, or if it follows another leader,
    /// gives the vote that ends the transfer before it has begun.
    ///
    /// openraft 0.9 finds out where two logs agree by sending entries. A leader that comes back quickly, with a log that
    /// has been purged to its end, has none to send: it takes a snapshot at once, for every follower of every shard,
    /// though none lacks anything. An append without entries asks just that, in Raft's own words.
    async fn lacks_nothing(
        &self,
        vote: Vote,
        upto: Option<LogId>,
        deadline: Duration,
    ) -> Result<Option<Vote>, CallError> {
        let probe = AppendRequest {
            vote,
            prev_log_id: upto,
            leader_commit: upto,
            entries: Vec::new(),
        };
        Ok(match self.append(&probe, deadline).await? {
            AppendResponse::Success => Some(vote),
            AppendResponse::HigherVote(higher) => Some(higher),
            AppendResponse::PartialSuccess(_) | AppendResponse::Conflict => None,
        })
    }

    async fn send_chunk(&self, chunk: &Chunk, deadline: Duration) -> Result<Answer, CallError> {
        let body = encode_message(chunk);
        self.pace.wait(body.len()).await;
        metrics::SENT_SNAPSHOT_BYTES
            .handle()
            .increment(body.len() as u64);
        let mut tries = 0;
        loop {
            tries += 1;
            let body = raft_request::Body::SnapshotChunk(body.clone());
            match self.call(Lane::Bulk, deadline, body).await {
                Ok(raft_response::Body::Snapshot(answer)) => {
                    return Ok(decode_message("answer to a snapshot", answer)?);
                }
                Ok(_) => return Err(CallError::Mismatch),
                Err(CallError::Peer(_)) if tries < CHUNK_TRIES_MAX => {
                    tokio::time::sleep(self.timing.backoff()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        frozen: Frozen,
        deadline: Duration,
    ) -> Result<SnapshotResponse<u64>, SnapshotError> {
        let upto = frozen.upto();
        let probed = self.lacks_nothing(vote, upto, deadline).await;
        if let Some(vote) = probed.map_err(|error| Unreachable::new(&error))? {
            return Ok(SnapshotResponse::new(vote));
        }
        let Some(_turn) = self.pace.turn() else {
            return Err(Unreachable::new(&SendError::NoTurn).into());
        };
        let expires = Instant::now() + self.timing.snapshot_life;
        let mut sender = Sender::new(frozen, vote, expires);
        loop {
            if sender.expired() {
                return Err(Unreachable::new(&SendError::Expired).into());
            }
            let chunk = sender.next().map_err(|error| {
                self.fault
                    .report(ErrorSubject::Snapshot(None), ErrorVerb::Read, error)
            })?;
            // The last chunk's answer ends the transfer, whatever it is.
            let Some(chunk) = chunk else {
                let refused = SendError::Refused("it never ended".to_owned());
                return Err(Unreachable::new(&refused).into());
            };
            let answer = self.send_chunk(&chunk, deadline).await;
            match answer.map_err(|error| Unreachable::new(&error))? {
                Answer::Next => {}
                Answer::Installed(vote) | Answer::HigherVote(vote) => {
                    return Ok(SnapshotResponse::new(vote));
                }
                Answer::Refused(reason) => {
                    return Err(Unreachable::new(&SendError::Refused(reason)).into());
                }
            }
        }
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendResponse, NetError> {
        if self.is_needless(&rpc) {
            return Ok(AppendResponse::Success);
        }
        // Not when its answer was read: that may have lain here for long.
        let begun = Instant::now();
        let answer = self.append(&rpc, option.hard_ttl()).await;
        let agreed = matches!(answer, Ok(AppendResponse::Success));
        self.agreed_at = agreed.then_some(begun);
        if answer.is_err() && sabotage::on(Break::CommitAlone) {
            return Ok(AppendResponse::Success);
        }
        answer.map_err(|error| self.error(RPCTypes::AppendEntries, option.hard_ttl(), &error))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, NetError> {
        let body = raft_request::Body::Vote(encode_message(&rpc));
        let answer = self.call(Lane::Control, option.hard_ttl(), body).await;
        answer
            .and_then(|answer| match answer {
                raft_response::Body::Vote(bytes) => decoded("answer to a vote", bytes),
                _ => Err(CallError::Mismatch),
            })
            .map_err(|error| self.error(RPCTypes::Vote, option.hard_ttl(), &error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, SnapshotError> {
        let Handle::Frozen(frozen) = *snapshot.snapshot else {
            return Err(ReplicationClosed::new("only a frozen state can be sent").into());
        };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, frozen, option.hard_ttl()) => sent,
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.timing.backoff()))
    }
}

fn decoded<T: super::codec::Code>(what: &'static str, bytes: Bytes) -> Result<T, CallError> {
    Ok(decode_message(what, bytes)?)
}

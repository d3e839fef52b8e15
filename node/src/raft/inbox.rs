//! What other replicas ask of this one: appends, votes, whether they should stand for election, chunks of snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use openraft::error::RaftError;
use openraft::{ServerState, Snapshot};
use roost_proto::peer::failure::Reason;
use roost_proto::peer::{Failure, RaftRequest, RaftResponse, raft_request, raft_response};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::codec::{decode_message, encode_message};
use super::contact::Contact;
use super::log_store::LogStore;
use super::snapshot::{self, Answer, Chunk, Handle, Received, Receiver};
use super::states::States;
use super::timing::Timing;
use super::types::{AppendRequest, Raft, Vote, VoteRequest, VoteResponse};
use crate::{metrics, storage};

/// Appends that may wait in a group at a time. A leader has one under way per follower, but gives it up after a
/// heartbeat interval and sends it again: while the disk hangs, the copies must not pile up.
const APPENDS_WAITING_MAX: usize = 8;

/// The receiving side of one replica.
pub(super) struct Inbox {
    raft: Raft,
    log: LogStore,
    states: Arc<States>,
    contact: Contact,
    timing: Timing,
    appends: Semaphore,
    /// One snapshot at a time; a newer transfer takes the place of an older one.
    incoming: Mutex<Incoming>,
    /// What of `incoming` others may see without waiting for a chunk to be written.
    receiving: parking_lot::Mutex<Option<Receiving>>,
    /// The highest index that a leader has said to be committed since this replica was opened; 0 if none has.
    known_committed: AtomicU64,
}

/// A snapshot on its way to this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receiving {
    /// Bytes of it that have come: a sign of progress.
    pub bytes: u64,
    /// When the last of them came.
    pub heard: Instant,
}

#[derive(Default)]
struct Incoming {
    receiver: Option<Receiver>,
    /// The transfer that ended last, and how.
    ended: Option<(u64, Answer)>,
}

impl Inbox {
    pub(super) fn new(
        raft: Raft,
        log: LogStore,
        states: Arc<States>,
        contact: Contact,
        timing: Timing,
    ) -> Self {
        Self {
            raft,
            log,
            states,
            contact,
            timing,
            appends: Semaphore::new(APPENDS_WAITING_MAX),
            incoming: Mutex::default(),
            receiving: parking_lot::Mutex::default(),
            known_committed: AtomicU64::new(0),
        }
    }

    pub(super) fn waiting_appends(&self) -> usize {
        APPENDS_WAITING_MAX - self.appends.available_permits()
    }

    pub(super) fn known_committed(&self) -> u64 {
        self.known_committed.load(Ordering::Relaxed)
    }

    /// The transfer under way; none that its sender has given up.
    pub(super) fn receiving(&self) -> Option<Receiving> {
        let receiving = *self.receiving.lock();
        let silence_max = self.timing.snapshot_silence_max();
        receiving.filter(|receiving| receiving.heard.elapsed() < silence_max)
    }

    /// Removes what has come of a transfer that its sender has given up: nobody would ever delete those rows, and a
    /// replica whose log reaches again gets no other snapshot in their place.
    pub(super) async fn forget_silent(&self) -> Result<(), storage::Error> {
        if self.receiving.lock().is_none() || self.receiving().is_some() {
            return Ok(());
        }
        self.give_up(&mut *self.incoming.lock().await)
    }

    pub(super) async fn handle(&self, request: RaftRequest) -> Result<RaftResponse, Failure> {
        let body = match request.body {
            Some(raft_request::Body::Append(bytes)) => {
                raft_response::Body::Append(self.append(bytes).await?)
            }
            Some(raft_request::Body::Vote(bytes)) => {
                raft_response::Body::Vote(self.vote(bytes).await?)
            }
            Some(raft_request::Body::Canvass(bytes)) => {
                raft_response::Body::Canvass(self.canvass(bytes)?)
            }
            Some(raft_request::Body::SnapshotChunk(bytes)) => {
                let answer = self.chunk(bytes).await?;
                raft_response::Body::Snapshot(encode_message(&answer))
            }
            None => return Err(failure(Reason::Internal, "an empty request")),
        };
        Ok(RaftResponse { body: Some(body) })
    }

    async fn append(&self, bytes: Bytes) -> Result<Bytes, Failure> {
        let Ok(_permit) = self.appends.try_acquire() else {
            return Err(failure(Reason::Overloaded, "earlier appends wait"));
        };
        let request: AppendRequest = decode_message("append", bytes).map_err(refused)?;
        let committed = request.leader_commit.map_or(0, |id| id.index);
        self.known_committed.fetch_max(committed, Ordering::Relaxed);
        self.note_leader(request.vote);
        let response = self.raft.append_entries(request).await.map_err(stopped)?;
        Ok(encode_message(&response))
    }

    async fn vote(&self, bytes: Bytes) -> Result<Bytes, Failure> {
        let request: VoteRequest = decode_message("vote", bytes).map_err(refused)?;
        let response = self.raft.vote(request).await.map_err(stopped)?;
        if response.vote_granted {
            self.contact.note_leader();
        }
        Ok(encode_message(&response))
    }

    /// Whether this replica wishes another one well that asks whether it should stand for election: no leader has given
    /// a sign for a while, or, if this is the leader, no majority; its log is as long as this one's; and this replica
    /// could give it its vote. Nothing changes here, and the core is not asked: it may wait for a disk.
    fn canvass(&self, bytes: Bytes) -> Result<Bytes, Failure> {
        let request: VoteRequest = decode_message("canvass", bytes).map_err(refused)?;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.running_state.is_err() {
            return Err(failure(Reason::NoReplica, "the replica has stopped"));
        }
        let silence = match metrics.state {
            ServerState::Leader => self.contact.quorum_silence(),
            _ => self.contact.leader_at().elapsed(),
        };
        let last = self.log.last();
        let wish = silence >= self.timing.quiet()
            && request.last_log_id >= last
            && self.log.syncs_within(self.timing.election_max);
        Ok(encode_message(&VoteResponse::new(metrics.vote, last, wish)))
    }

    /// Whoever appends or sends a snapshot leads, unless this replica knows better.
    fn note_leader(&self, vote: Vote) {
        let own = self.raft.metrics().borrow().vote;
        if vote.partial_cmp(&own).is_some_and(|order| order.is_ge()) {
            self.contact.note_leader();
        }
    }

    async fn chunk(&self, bytes: Bytes) -> Result<Answer, Failure> {
        // A damaged chunk is sent again by whoever gets this failure, from the beginning.
        let bytes_long = bytes.len() as u64;
        let chunk = decode_message("chunk of a snapshot", bytes).inspect_err(note_damage);
        let chunk: Chunk = chunk.map_err(refused)?;
        let own = self.raft.metrics().borrow().vote;
        // Votes are only partly ordered: refused is what is not at least as new.
        if chunk
            .vote
            .partial_cmp(&own)
            .is_none_or(|order| order.is_lt())
        {
            return Ok(Answer::HigherVote(own));
        }
        self.contact.note_leader();
        let mut incoming = self.incoming.lock().await;
        if let Some((stream, answer)) = &incoming.ended
            && *stream == chunk.stream
        {
            return Ok(answer.clone());
        }
        let stream = chunk.stream;
        metrics::RECEIVED_SNAPSHOT_BYTES
            .handle()
            .increment(bytes_long);
        let received = self.receive(&mut incoming, chunk).await;
        match incoming.receiver.is_some() {
            true => self.note(bytes_long),
            false => *self.receiving.lock() = None,
        }
        let answer = received?;
        if answer != Answer::Next {
            incoming.ended = Some((stream, answer.clone()));
        }
        Ok(answer)
    }

    async fn receive(&self, incoming: &mut Incoming, chunk: Chunk) -> Result<Answer, Failure> {
        let repeated = incoming.receiver.as_ref();
        if repeated.is_some_and(|receiver| receiver.is_repeated(&chunk)) {
            return Ok(Answer::Next);
        }
        if chunk.number == 0 {
            self.give_up(incoming).map_err(broken)?;
            incoming.receiver = Some(Receiver::new(self.states.reserve(), &chunk));
        }
        let Some(receiver) = &mut incoming.receiver else {
            return Ok(Answer::Refused("it did not begin here".to_owned()));
        };
        let vote = chunk.vote;
        match receiver.accept(&self.states, chunk) {
            Ok(None) => Ok(Answer::Next),
            Ok(Some(received)) => {
                incoming.receiver = None;
                self.install(vote, received).await
            }
            Err(error @ storage::Error::Corrupt { .. }) => {
                note_damage(&error);
                self.give_up(incoming).map_err(broken)?;
                Ok(Answer::Refused(error.to_string()))
            }
            Err(error) => Err(broken(error)),
        }
    }

    fn note(&self, bytes: u64) {
        let mut receiving = self.receiving.lock();
        let before = receiving.map_or(0, |receiving| receiving.bytes);
        *receiving = Some(Receiving {
            bytes: before + bytes,
            heard: Instant::now(),
        });
    }

    async fn install(&self, vote: Vote, received: Received) -> Result<Answer, Failure> {
        let home = received.home;
        let snapshot = Snapshot {
            meta: snapshot::meta(&received.progress),
            snapshot: Box::new(Handle::Received(received)),
        };
        self.log.begin_install(snapshot.meta.last_log_id);
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        self.log.end_install();
        let response = installed.map_err(|fatal| stopped(RaftError::Fatal(fatal)))?;
        // openraft may have found that it does not need it.
        self.states.abandon(home).map_err(broken)?;
        Ok(Answer::Installed(response.vote))
    }

    fn give_up(&self, incoming: &mut Incoming) -> Result<(), storage::Error> {
        *self.receiving.lock() = None;
        match incoming.receiver.take() {
            Some(receiver) => self.states.abandon(receiver.home()),
            None => Ok(()),
        }
    }
}

fn note_damage(error: &storage::Error) {
    metrics::REFUSED_SNAPSHOTS.handle().increment(1);
    tracing::warn!(%error, "a snapshot came damaged; it is refused, and must be sent again");
}

fn stopped(error: RaftError<u64>) -> Failure {
    failure(Reason::NoReplica, &error.to_string())
}

fn refused(error: storage::Error) -> Failure {
    failure(Reason::Internal, &error.to_string())
}

fn broken(error: storage::Error) -> Failure {
    failure(Reason::NoReplica, &error.to_string())
}

/// What is sent back instead of an answer.
pub(super) fn failure(reason: Reason, message: &str) -> Failure {
    Failure {
        reason: reason.into(),
        message: message.to_owned(),
        ..Failure::default()
    }
}

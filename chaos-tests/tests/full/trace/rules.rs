//! What must stand in the traces of three nodes: sync first, answer then.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use prost::Message as _;
use roost_proto::peer::message::Message;
use roost_proto::peer::raft_request::Body;
use roost_proto::peer::request::Request;
use roost_proto::peer::response::Response;
use roost_proto::peer::{Frame, raft_response};
use roost_proto::v1::server_frame::Frame as ServerAnswer;
use roost_proto::v1::{ServerFrame, Status};

use super::calls::Call;
use super::grpc::Direction;

/// In every error about a missing sync.
pub(super) const NOT_SYNCED: &str = "left before it was synced";
/// Of three nodes.
const MAJORITY: usize = 2;

/// Where a node listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) client: u16,
    pub(super) peer: u16,
}

/// How often each rule was seen to hold.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) accepted: usize,
    pub(super) appends: usize,
    pub(super) votes: usize,
}

/// One node's calls, sorted by what they mean.
#[derive(Debug)]
pub(super) struct NodeTrace {
    name: String,
    /// Writes to the write-ahead log.
    writes: Vec<Call>,
    syncs: Vec<Call>,
    /// Ids of accepted messages, and when the answer left.
    accepted: Vec<(String, u64)>,
    asked: Vec<Asked>,
}

/// A Raft request that came, and when its answer left.
#[derive(Debug)]
struct Asked {
    replica: u64,
    body: Body,
    came_us: u64,
    answered_us: u64,
}

impl NodeTrace {
    pub(super) fn new(name: &str, ports: Ports, calls: Vec<Call>) -> Self {
        let mut trace = Self {
            name: name.to_owned(),
            writes: Vec::new(),
            syncs: Vec::new(),
            accepted: Vec::new(),
            asked: Vec::new(),
        };
        let mut directions: HashMap<(String, bool), Direction> = HashMap::new();
        let mut open: HashMap<(String, u64), (u64, Body, u64)> = HashMap::new();
        for call in calls.into_iter().filter(|call| call.succeeded) {
            if call.name.contains("sync") {
                trace.syncs.push(call);
            } else if call.file.starts_with("TCP") {
                let sent = call.name.contains("write") || call.name.contains("send");
                let direction = directions.entry((call.file.clone(), sent)).or_default();
                for message in direction.take(&call.data) {
                    trace.message(ports, &call, sent, &message, &mut open);
                }
            } else if call.file.ends_with(".log") && call.name.contains("write") {
                trace.writes.push(call);
            }
        }
        trace
    }

    fn message(
        &mut self,
        ports: Ports,
        call: &Call,
        sent: bool,
        message: &[u8],
        open: &mut HashMap<(String, u64), (u64, Body, u64)>,
    ) {
        let own = |port: u16| call.file.contains(&format!(":{port}->"));
        if own(ports.client) && sent {
            if let Some(id) = accepted(message) {
                self.accepted.push((id, call.start_us));
            }
            return;
        }
        // Requests come, and answers leave, on connections that others have opened.
        let Some(frame) = own(ports.peer)
            .then(|| Frame::decode(message).ok())
            .flatten()
        else {
            return;
        };
        for message in frame
            .messages
            .into_iter()
            .filter_map(|message| message.message)
        {
            match message {
                Message::Call(asked) if !sent => {
                    let request = asked.request.and_then(|request| request.request);
                    if let Some(Request::Raft(raft)) = request
                        && let Some(body) = raft.body
                    {
                        let key = (call.file.clone(), asked.id);
                        open.insert(key, (raft.replica, body, call.start_us));
                    }
                }
                Message::Reply(reply) if sent => {
                    let response = reply.response.and_then(|response| response.response);
                    let key = (call.file.clone(), reply.id);
                    if let Some((replica, body, came_us)) = open.remove(&key)
                        && is_answer(response)
                    {
                        self.asked.push(Asked {
                            replica,
                            body,
                            came_us,
                            answered_us: call.start_us,
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// When the first write that holds `bytes` and began in this time was synced; `None` without such a write.
    fn synced(&self, bytes: &[u8], from_us: u64, to_us: u64) -> Option<u64> {
        let write = self.writes.iter().find(|write| {
            (from_us..=to_us).contains(&write.start_us) && contains(&write.data, bytes)
        })?;
        let mut syncs = self.syncs.iter();
        let sync = syncs.find(|sync| sync.file == write.file && sync.start_us >= write.end_us);
        Some(sync.map_or(u64::MAX, |sync| sync.end_us))
    }
}

fn accepted(message: &[u8]) -> Option<String> {
    match ServerFrame::decode(message).ok()?.frame? {
        ServerAnswer::Answer(answer) if answer.status() == Status::Accepted => Some(answer.id),
        _ => None,
    }
}

fn is_answer(response: Option<Response>) -> bool {
    let Some(Response::Raft(raft)) = response else {
        return false;
    };
    matches!(
        raft.body,
        Some(raft_response::Body::Append(_) | raft_response::Body::Vote(_))
    )
}

fn contains(data: &[u8], bytes: &[u8]) -> bool {
    data.windows(bytes.len()).any(|window| window == bytes)
}

/// Holds the traces against the rules; fails also when a rule was never put to the test.
pub(super) fn check(nodes: &[NodeTrace], ids: &[String]) -> Result<Seen> {
    let mut seen = Seen::default();
    for node in nodes {
        for (id, left_us) in &node.accepted {
            accepted_is_synced(nodes, id, *left_us)?;
            seen.accepted += 1;
        }
        for asked in &node.asked {
            match &asked.body {
                Body::Append(entries) => seen.appends += appends(node, asked, entries, ids)?,
                Body::Vote(_) => seen.votes += votes(node, asked)?,
                // Neither promises anything that a sync would have to come before.
                Body::SnapshotChunk(_) | Body::Canvass(_) => {}
            }
        }
    }
    ensure!(
        seen.accepted >= ids.len() && seen.appends >= ids.len() && seen.votes > 0,
        "the traces do not hold what they should: {seen:?}"
    );
    Ok(seen)
}

fn accepted_is_synced(nodes: &[NodeTrace], id: &str, left_us: u64) -> Result<()> {
    let synced = nodes.iter().filter(|node| {
        node.synced(id.as_bytes(), 0, left_us)
            .is_some_and(|synced_us| synced_us <= left_us)
    });
    let count = synced.count();
    ensure!(
        count >= MAJORITY,
        "the answer `accepted` to {id} {NOT_SYNCED}: {count} of {} nodes had done so",
        nodes.len()
    );
    Ok(())
}

/// A follower's answer to entries that it was sent; how many of our messages were among them.
fn appends(node: &NodeTrace, asked: &Asked, entries: &[u8], ids: &[String]) -> Result<usize> {
    let mut count = 0;
    for id in ids.iter().filter(|id| contains(entries, id.as_bytes())) {
        match node.synced(id.as_bytes(), 0, asked.answered_us) {
            Some(synced_us) if synced_us <= asked.answered_us => count += 1,
            _ => bail!(
                "the answer of {} to the entry of {id} {NOT_SYNCED}",
                node.name
            ),
        }
    }
    Ok(count)
}

/// A vote is written under the replica's id and the ordinal 1; a refused one need not be.
fn votes(node: &NodeTrace, asked: &Asked) -> Result<usize> {
    let mut key = vec![9];
    key.extend(asked.replica.to_be_bytes());
    key.push(1);
    match node.synced(&key, asked.came_us, asked.answered_us) {
        None => Ok(0),
        Some(synced_us) if synced_us <= asked.answered_us => Ok(1),
        Some(_) => bail!("a vote of {} {NOT_SYNCED}", node.name),
    }
}

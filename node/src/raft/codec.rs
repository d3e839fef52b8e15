//! Raft's own values, on disk and on the wire: a fixed layout, big-endian, behind one format byte.
//!
//! On disk a value gets its checksum from [`crate::storage::value`], which binds it to its key; a message on the wire
//! carries a checksum of its own, verified before anything is written. What a newer version wrote is
//! [`Error::UnknownFormat`], everything else that does not fit is [`Error::Corrupt`]: nothing is guessed, and trailing
//! bytes are refused. Commands stay the bytes that the proposer encoded.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use openraft::{CommittedLeaderId, EntryPayload};

use super::types::{
    AppendRequest, AppendResponse, Command, Entry, LogId, Membership, StoredMembership, Vote,
    VoteRequest, VoteResponse,
};
use crate::sabotage::{self, Break};
use crate::storage::keys::Key;
use crate::storage::{Error, Read, value};
use crate::types::NodeId;

/// The format that this build writes, and the newest it reads.
pub(super) const FORMAT: u8 = 1;

const CHECKSUM_BYTES: usize = 4;

/// A value in this codec.
pub(super) trait Code: Sized {
    /// Appends the value.
    fn put(&self, out: &mut BytesMut);
    /// Takes the value from the front; `None` if it does not stand there.
    fn read(input: &mut Bytes) -> Option<Self>;
}

/// A value behind its format byte, for the store.
pub(super) fn encode(value: &impl Code) -> Bytes {
    encode_with_room(value, 0).freeze()
}

/// What [`encode`] made.
pub(super) fn decode<T: Code>(what: &'static str, mut bytes: Bytes) -> Result<T, Error> {
    let corrupt = |detail: &str| Error::Corrupt {
        what,
        detail: detail.to_owned(),
    };
    match u8::read(&mut bytes) {
        None => return Err(corrupt("it is empty")),
        Some(FORMAT) => {}
        Some(version) => {
            return Err(Error::UnknownFormat {
                what,
                version: version.into(),
                known: FORMAT.into(),
            });
        }
    }
    let value = T::read(&mut bytes).ok_or_else(|| corrupt("it does not have its layout"))?;
    match bytes.is_empty() {
        true => Ok(value),
        false => Err(corrupt("bytes follow its end")),
    }
}

/// A value of this codec in the store, or in a frozen view of it.
pub(super) fn read_sealed<T: Code>(
    store: &(impl Read + ?Sized),
    key: &Key<'_>,
) -> Result<Option<T>, Error> {
    let bytes = key.encode();
    let Some(value) = store.get(key.column(), &bytes)? else {
        return Ok(None);
    };
    let payload = value::open(key.what(), &bytes, value)?;
    decode(key.what(), payload).map(Some)
}

/// A value behind its format byte and before its checksum, for the wire.
pub(super) fn encode_message(value: &impl Code) -> Bytes {
    let mut bytes = encode_with_room(value, CHECKSUM_BYTES);
    let checksum = crc32c::crc32c(&bytes);
    bytes.put_u32(checksum);
    bytes.freeze()
}

/// What [`encode_message`] made.
pub(super) fn decode_message<T: Code>(what: &'static str, mut bytes: Bytes) -> Result<T, Error> {
    let sound = bytes.len().checked_sub(CHECKSUM_BYTES).filter(|&end| {
        let stored = bytes.slice(end..).get_u32();
        stored == crc32c::crc32c(&bytes[..end]) || sabotage::on(Break::SnapshotUnchecked)
    });
    let Some(end) = sound else {
        return Err(Error::Corrupt {
            what,
            detail: "its checksum does not fit".to_owned(),
        });
    };
    bytes.truncate(end);
    decode(what, bytes)
}

fn encode_with_room(value: &impl Code, room: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(64 + room);
    out.put_u8(FORMAT);
    value.put(&mut out);
    out
}

/// How far a replica's state is: the row that every batch writes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The last entry that the state holds.
    pub applied: Option<LogId>,
    /// The newest membership up to there.
    pub membership: StoredMembership,
}

impl Code for u8 {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(*self);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        input.try_get_u8().ok()
    }
}

impl Code for u32 {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(*self);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        input.try_get_u32().ok()
    }
}

impl Code for u64 {
    fn put(&self, out: &mut BytesMut) {
        out.put_u64(*self);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        input.try_get_u64().ok()
    }
}

impl Code for bool {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(*self));
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        match u8::read(input)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Code for Bytes {
    fn put(&self, out: &mut BytesMut) {
        let length = u32::try_from(self.len()).expect("a value is bounded far below 4 GiB");
        out.put_u32(length);
        out.put_slice(self);
    }
    /// A slice of the input, which stays in memory as long as the slice does.
    fn read(input: &mut Bytes) -> Option<Self> {
        let length = usize::try_from(u32::read(input)?).ok()?;
        (length <= input.len()).then(|| input.split_to(length))
    }
}

impl<T: Code> Code for Option<T> {
    fn put(&self, out: &mut BytesMut) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        match bool::read(input)? {
            true => T::read(input).map(Some),
            false => Some(None),
        }
    }
}

impl<A: Code, B: Code> Code for (A, B) {
    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
        self.1.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some((A::read(input)?, B::read(input)?))
    }
}

impl<T: Code> Code for Vec<T> {
    fn put(&self, out: &mut BytesMut) {
        put_all(self.iter(), out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        // Not allocated ahead: the count is only a claim until the values have been read.
        (0..u32::read(input)?).map(|_| T::read(input)).collect()
    }
}

fn put_all<'a, T: Code + 'a>(values: impl ExactSizeIterator<Item = &'a T>, out: &mut BytesMut) {
    u32::try_from(values.len())
        .expect("lists are bounded far below four thousand million")
        .put(out);
    values.for_each(|value| value.put(out));
}

impl Code for NodeId {
    fn put(&self, out: &mut BytesMut) {
        out.put_slice(self.as_bytes());
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        let mut bytes = [0; 16];
        input.try_copy_to_slice(&mut bytes).ok()?;
        Some(Self::from_bytes(bytes))
    }
}

impl Code for LogId {
    fn put(&self, out: &mut BytesMut) {
        self.leader_id.term.put(out);
        self.leader_id.node_id.put(out);
        self.index.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        let leader = CommittedLeaderId::new(u64::read(input)?, u64::read(input)?);
        Some(Self::new(leader, u64::read(input)?))
    }
}

impl Code for Vote {
    fn put(&self, out: &mut BytesMut) {
        self.leader_id.term.put(out);
        self.leader_id.node_id.put(out);
        self.committed.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        let mut vote = Self::new(u64::read(input)?, u64::read(input)?);
        vote.committed = bool::read(input)?;
        Some(vote)
    }
}

impl Code for Membership {
    fn put(&self, out: &mut BytesMut) {
        let voters: Vec<Vec<u64>> = self
            .get_joint_config()
            .iter()
            .map(|config| config.iter().copied().collect())
            .collect();
        let nodes: Vec<(u64, NodeId)> = self.nodes().map(|(id, node)| (*id, *node)).collect();
        voters.put(out);
        nodes.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        let voters = Vec::<Vec<u64>>::read(input)?;
        let configs: Vec<BTreeSet<u64>> = voters
            .into_iter()
            .map(|config| config.into_iter().collect())
            .collect();
        let nodes: BTreeMap<u64, NodeId> = Vec::<(u64, NodeId)>::read(input)?.into_iter().collect();
        // A voter without a node would be given a made-up one.
        let complete = configs.iter().flatten().all(|id| nodes.contains_key(id));
        complete.then(|| Self::new(configs, nodes))
    }
}

impl Code for StoredMembership {
    fn put(&self, out: &mut BytesMut) {
        self.log_id().put(out);
        self.membership().put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(Self::new(Option::read(input)?, Membership::read(input)?))
    }
}

impl Code for Progress {
    fn put(&self, out: &mut BytesMut) {
        self.applied.put(out);
        self.membership.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(Self {
            applied: Option::read(input)?,
            membership: StoredMembership::read(input)?,
        })
    }
}

impl Code for Entry {
    fn put(&self, out: &mut BytesMut) {
        self.log_id.put(out);
        match &self.payload {
            EntryPayload::Blank => out.put_u8(0),
            EntryPayload::Normal(Command(bytes)) => {
                out.put_u8(1);
                bytes.put(out);
            }
            EntryPayload::Membership(membership) => {
                out.put_u8(2);
                membership.put(out);
            }
        }
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        let log_id = LogId::read(input)?;
        let payload = match u8::read(input)? {
            0 => EntryPayload::Blank,
            // Copied, so that an entry in the cache does not keep alive the frame that many of them came in.
            1 => EntryPayload::Normal(Command(Bytes::copy_from_slice(&Bytes::read(input)?))),
            2 => EntryPayload::Membership(Membership::read(input)?),
            _ => return None,
        };
        Some(Self { log_id, payload })
    }
}

impl Code for AppendRequest {
    fn put(&self, out: &mut BytesMut) {
        self.vote.put(out);
        self.prev_log_id.put(out);
        self.leader_commit.put(out);
        out.reserve(self.entries.iter().map(entry_bytes).sum());
        self.entries.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(Self {
            vote: Vote::read(input)?,
            prev_log_id: Option::read(input)?,
            leader_commit: Option::read(input)?,
            entries: Vec::read(input)?,
        })
    }
}

impl Code for AppendResponse {
    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Success => out.put_u8(0),
            Self::PartialSuccess(matching) => {
                out.put_u8(1);
                matching.put(out);
            }
            Self::Conflict => out.put_u8(2),
            Self::HigherVote(vote) => {
                out.put_u8(3);
                vote.put(out);
            }
        }
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(match u8::read(input)? {
            0 => Self::Success,
            1 => Self::PartialSuccess(Option::read(input)?),
            2 => Self::Conflict,
            3 => Self::HigherVote(Vote::read(input)?),
            _ => return None,
        })
    }
}

impl Code for VoteRequest {
    fn put(&self, out: &mut BytesMut) {
        self.vote.put(out);
        self.last_log_id.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(Self {
            vote: Vote::read(input)?,
            last_log_id: Option::read(input)?,
        })
    }
}

impl Code for VoteResponse {
    fn put(&self, out: &mut BytesMut) {
        self.vote.put(out);
        self.vote_granted.put(out);
        self.last_log_id.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(Self {
            vote: Vote::read(input)?,
            vote_granted: bool::read(input)?,
            last_log_id: Option::read(input)?,
        })
    }
}

/// What an entry counts where bytes are bounded: its command and a little for the rest.
pub(super) fn entry_bytes(entry: &Entry) -> usize {
    const AROUND: usize = 64;
    AROUND
        + match &entry.payload {
            EntryPayload::Normal(Command(bytes)) => bytes.len(),
            EntryPayload::Blank => 0,
            EntryPayload::Membership(membership) => membership.nodes().count() * 32,
        }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;

//! Snapshots: a frozen view of the state, streamed in bounded chunks, received into a generation of its own.
//!
//! Nothing is built ahead: a snapshot is the state as it is when somebody needs one. Every row is opened on the way
//! out, so damage is never passed on, and sealed again under its new key on the way in. A chunk carries its own
//! checksum and number, the last one the count and checksum of all rows; a chunk that is missing, damaged, or of an
//! unknown format ends the transfer, and a state that does not say of itself what the sender said is refused.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use openraft::Snapshot;
use tokio::time::Instant;

use super::codec::{Code, Progress};
use super::states::{States, read_progress};
use super::types::{LogId, SnapshotMeta, TypeConfig, Vote, random_id};
use crate::sabotage::{self, Break};
use crate::storage::keys::{Home, home_range};
use crate::storage::{Batch, Column, Error, Read, value};

/// Bytes of rows in a chunk; one row always fits.
pub(super) const CHUNK_BYTES_MAX: usize = 256 << 10;

const WHAT: &str = "row of a snapshot";

/// What openraft passes around as a snapshot's data.
pub(super) enum Handle {
    /// Not yet anything.
    Empty,
    /// On the sender's side.
    Frozen(Frozen),
    /// On the receiver's side: complete and verified.
    Received(Received),
}

/// The sender's view of its state.
pub(super) struct Frozen {
    view: Arc<dyn Read>,
    home: Home,
    progress: Progress,
}

impl Frozen {
    /// The last entry that the state came from.
    pub(super) fn upto(&self) -> Option<LogId> {
        self.progress.applied
    }
}

/// A state in a generation that waits to be switched to.
pub(super) struct Received {
    pub home: Home,
    pub progress: Progress,
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chunk {
    /// Drawn by the sender; tells one transfer from another.
    pub stream: u64,
    /// Counts from 0 within the transfer.
    pub number: u32,
    /// The leader that sends.
    pub vote: Vote,
    /// What the snapshot holds.
    pub progress: Progress,
    /// Key without the home that it stands in, and payload without its seal; none for rows that are only a key.
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    /// Set in the last chunk.
    pub total: Option<Total>,
}

/// What all chunks together must come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    rows: u64,
    checksum: u32,
}

/// The receiver's answer to a chunk.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// Go on.
    Next,
    /// The snapshot is in use, or was not needed.
    Installed(Vote),
    /// Another leader has been seen.
    HigherVote(Vote),
    /// This transfer is over.
    Refused(String),
}

/// The state as it is now.
pub(super) fn current(states: &States) -> Result<Snapshot<TypeConfig>, Error> {
    let (view, home, progress) = states.freeze()?;
    Ok(Snapshot {
        meta: meta(&progress),
        snapshot: Box::new(Handle::Frozen(Frozen {
            view,
            home,
            progress,
        })),
    })
}

/// openraft's description of a state.
pub(super) fn meta(progress: &Progress) -> SnapshotMeta {
    let applied = progress.applied.map(|id| id.to_string());
    SnapshotMeta {
        last_log_id: progress.applied,
        last_membership: progress.membership.clone(),
        snapshot_id: applied.unwrap_or_default(),
    }
}

/// The chunks of a snapshot, one after the other.
pub(super) struct Sender {
    frozen: Frozen,
    stream: u64,
    vote: Vote,
    number: u32,
    /// Where the next chunk begins.
    from: Bytes,
    total: Total,
    ended: bool,
    expires: Instant,
}

impl Sender {
    /// A new transfer. After `expires` there are no more chunks, so that the view does not pin deleted rows for ever.
    pub(super) fn new(frozen: Frozen, vote: Vote, expires: Instant) -> Self {
        Self {
            stream: random_id(),
            vote,
            number: 0,
            from: home_range(frozen.home).start,
            total: Total::default(),
            ended: false,
            expires,
            frozen,
        }
    }

    /// Whether the transfer has taken too long.
    pub(super) fn expired(&self) -> bool {
        Instant::now() >= self.expires
    }

    /// The next chunk; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, Error> {
        if self.ended {
            return Ok(None);
        }
        let rows = self.next_rows()?;
        let chunk = Chunk {
            stream: self.stream,
            number: self.number,
            vote: self.vote,
            progress: self.frozen.progress.clone(),
            rows,
            total: self.ended.then_some(self.total),
        };
        self.number += 1;
        Ok(Some(chunk))
    }

    fn next_rows(&mut self) -> Result<Vec<(Bytes, Option<Bytes>)>, Error> {
        let range = home_range(self.frozen.home);
        let home_bytes = home_bytes(self.frozen.home);
        let mut rows = Vec::new();
        let mut bytes = 0;
        for row in self
            .frozen
            .view
            .scan(Column::State, self.from.clone()..range.end)
        {
            let (key, value) = row?;
            if bytes >= CHUNK_BYTES_MAX {
                self.from = key;
                return Ok(rows);
            }
            let payload = match value.is_empty() {
                true => None,
                false => Some(value::open(WHAT, &key, value)?),
            };
            let key = key.slice(home_bytes..);
            self.total.add(&key, payload.as_ref());
            bytes += key.len() + payload.as_ref().map_or(0, Bytes::len);
            rows.push((key, payload));
        }
        self.ended = true;
        Ok(rows)
    }
}

impl Total {
    fn add(&mut self, key: &[u8], payload: Option<&Bytes>) {
        let checksum = crc32c::crc32c_append(self.checksum, key);
        self.checksum =
            payload.map_or(checksum, |payload| crc32c::crc32c_append(checksum, payload));
        self.rows += 1;
    }
}

/// The receiving end of one transfer.
pub(super) struct Receiver {
    home: Home,
    stream: u64,
    vote: Vote,
    progress: Progress,
    next: u32,
    total: Total,
}

impl Receiver {
    /// Begins with the first chunk, which is then given to [`Receiver::accept`].
    pub(super) fn new(home: Home, first: &Chunk) -> Self {
        Self {
            home,
            stream: first.stream,
            vote: first.vote,
            progress: first.progress.clone(),
            next: 0,
            total: Total::default(),
        }
    }

    /// Where the rows go.
    pub(super) fn home(&self) -> Home {
        self.home
    }

    /// Whether the chunk is the one taken in last: its answer was lost.
    pub(super) fn is_repeated(&self, chunk: &Chunk) -> bool {
        self.stream == chunk.stream && chunk.number.checked_add(1) == Some(self.next)
    }

    /// Writes a chunk's rows, without sync. Gives the state when it was the last one.
    pub(super) fn accept(
        &mut self,
        states: &States,
        chunk: Chunk,
    ) -> Result<Option<Received>, Error> {
        if (chunk.stream, chunk.number, chunk.vote) != (self.stream, self.next, self.vote) {
            return Err(refuse("a chunk is missing"));
        }
        if chunk.progress != self.progress {
            return Err(refuse("its chunks speak of different states"));
        }
        let mut batch = Batch::default();
        let prefix = home_range(self.home).start;
        for (suffix, payload) in chunk.rows {
            self.total.add(&suffix, payload.as_ref());
            let mut key = BytesMut::with_capacity(prefix.len() + suffix.len());
            key.extend_from_slice(&prefix);
            key.extend_from_slice(&suffix);
            let key = key.freeze();
            let value = payload.map_or(Bytes::new(), |payload| value::seal(&key, &payload));
            batch.put(Column::State, key, value);
        }
        states.write(batch)?;
        self.next += 1;
        match chunk.total {
            None => Ok(None),
            Some(total) => self.finish(states, total).map(Some),
        }
    }

    fn finish(&self, states: &States, total: Total) -> Result<Received, Error> {
        if total != self.total && !sabotage::on(Break::SnapshotUnchecked) {
            return Err(refuse(
                "its rows do not have the count or checksum that they should",
            ));
        }
        if read_progress(states.view().store().as_ref(), self.home)? != self.progress {
            return Err(refuse("its state is not the one that was announced"));
        }
        Ok(Received {
            home: self.home,
            progress: self.progress.clone(),
        })
    }
}

/// Takes in a snapshot without a network between.
pub(super) fn copy(frozen: Frozen, home: Home, states: &States) -> Result<Received, Error> {
    let mut sender = Sender::new(frozen, Vote::default(), Instant::now());
    let mut receiver = None;
    while let Some(chunk) = sender.next()? {
        let receiver = receiver.get_or_insert_with(|| Receiver::new(home, &chunk));
        if let Some(received) = receiver.accept(states, chunk)? {
            return Ok(received);
        }
    }
    Err(refuse("it has no end"))
}

/// The bytes of a home at the start of its keys.
fn home_bytes(home: Home) -> usize {
    home_range(home).start.len()
}

fn refuse(detail: &str) -> Error {
    Error::Corrupt {
        what: "snapshot",
        detail: detail.to_owned(),
    }
}

impl Code for Total {
    fn put(&self, out: &mut BytesMut) {
        self.rows.put(out);
        self.checksum.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(Self {
            rows: u64::read(input)?,
            checksum: u32::read(input)?,
        })
    }
}

impl Code for Chunk {
    fn put(&self, out: &mut BytesMut) {
        self.stream.put(out);
        self.number.put(out);
        self.vote.put(out);
        self.progress.put(out);
        self.total.put(out);
        self.rows.put(out);
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(Self {
            stream: u64::read(input)?,
            number: u32::read(input)?,
            vote: Vote::read(input)?,
            progress: Progress::read(input)?,
            total: Option::read(input)?,
            rows: Vec::read(input)?,
        })
    }
}

impl Code for Answer {
    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Next => 0_u8.put(out),
            Self::Installed(vote) => {
                1_u8.put(out);
                vote.put(out);
            }
            Self::HigherVote(vote) => {
                2_u8.put(out);
                vote.put(out);
            }
            Self::Refused(reason) => {
                3_u8.put(out);
                Bytes::copy_from_slice(reason.as_bytes()).put(out);
            }
        }
    }
    fn read(input: &mut Bytes) -> Option<Self> {
        Some(match u8::read(input)? {
            0 => Self::Next,
            1 => Self::Installed(Vote::read(input)?),
            2 => Self::HigherVote(Vote::read(input)?),
            3 => Self::Refused(String::from_utf8(Bytes::read(input)?.to_vec()).ok()?),
            _ => return None,
        })
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;

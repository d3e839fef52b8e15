//! Keys to bytes and back.

use bytes::{BufMut as _, Bytes, BytesMut};
use roost_proto::v1::Status;

use super::{Home, Key, SentId};
use crate::storage::{Column, Error};
use crate::types::{DeviceId, ReplicaId, ShardId};

/// The kinds' ordinals. Frozen: a number once given is never given to another kind.
pub(super) mod ordinal {
    pub(in super::super) const IDENTITY: u8 = 1;
    pub(in super::super) const PLAN: u8 = 2;
    pub(in super::super) const REPLICA: u8 = 3;
    pub(in super::super) const CLUSTER_CACHE: u8 = 4;
    pub(in super::super) const SYNC_MARK: u8 = 5;
    pub(in super::super) const DELETED: u8 = 6;

    pub(in super::super) const VOTE: u8 = 1;
    pub(in super::super) const PURGED: u8 = 2;
    pub(in super::super) const LOG_ENTRY: u8 = 3;

    pub(in super::super) const APPLIED: u8 = 1;
    pub(in super::super) const RAFT_STATE: u8 = 2;
    pub(in super::super) const USER: u8 = 3;
    pub(in super::super) const ENTRY: u8 = 4;
    pub(in super::super) const EXPIRY: u8 = 5;
    pub(in super::super) const SENT_ID: u8 = 6;
    pub(in super::super) const SENDER: u8 = 7;
    pub(in super::super) const SENDER_USE: u8 = 8;
    pub(in super::super) const READ_MARK: u8 = 9;
    pub(in super::super) const RECEIPT: u8 = 10;
    pub(in super::super) const RECEIPT_INDEX: u8 = 11;
    pub(in super::super) const OUTBOX: u8 = 12;
    pub(in super::super) const OUTBOX_INDEX: u8 = 13;
    pub(in super::super) const OUTBOX_HEAD: u8 = 14;
    pub(in super::super) const INBOUND_MARK: u8 = 15;
    pub(in super::super) const TRIM: u8 = 16;
    pub(in super::super) const CLUSTER: u8 = 17;
}

impl<'a> Key<'a> {
    /// The column that holds this kind of row.
    #[must_use]
    pub fn column(&self) -> Column {
        match self {
            Self::Identity
            | Self::Plan
            | Self::Replica(_)
            | Self::ClusterCache
            | Self::SyncMark
            | Self::Deleted(..) => Column::Node,
            Self::Vote(_) | Self::Purged(_) | Self::LogEntry(..) => Column::Log,
            _ => Column::State,
        }
    }

    /// The kind of row in words, for errors. Never its content.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Identity => "node identity",
            Self::Plan => "cluster plan",
            Self::Replica(_) => "replica record",
            Self::ClusterCache => "cached cluster state",
            Self::SyncMark => "sync mark",
            Self::Deleted(..) => "note of a deletion",
            Self::Vote(_) => "vote",
            Self::Purged(_) => "purge marker",
            Self::LogEntry(..) => "log entry",
            Self::Applied(_) => "applied state",
            Self::RaftState(_) => "raft state",
            Self::User(..) => "user",
            Self::Entry(..) => "queue entry",
            Self::Expiry(..) => "expiry row",
            Self::SentId(..) => "remembered id",
            Self::Sender(..) => "sender",
            Self::SenderUse(..) => "sender use",
            Self::ReadMark(..) => "read mark",
            Self::Receipt(..) => "receipt",
            Self::ReceiptIndex(..) => "receipt index",
            Self::Outbox(..) => "outbox row",
            Self::OutboxIndex(..) => "outbox index",
            Self::OutboxHead(..) => "outbox head",
            Self::InboundMark(..) => "inbound mark",
            Self::Trim(..) => "trim row",
            Self::Cluster(_) => "cluster state",
        }
    }

    /// The key's bytes within its column.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        use ordinal as o;
        match *self {
            Self::Identity => Writer::node(o::IDENTITY),
            Self::Plan => Writer::node(o::PLAN),
            Self::Replica(replica) => Writer::node(o::REPLICA).u64(replica.0),
            Self::ClusterCache => Writer::node(o::CLUSTER_CACHE),
            Self::SyncMark => Writer::node(o::SYNC_MARK),
            Self::Deleted(column, start) => Writer::node(o::DELETED)
                .u8(column_number(column))
                .sized(start),

            Self::Vote(replica) => Writer::log(replica, o::VOTE),
            Self::Purged(replica) => Writer::log(replica, o::PURGED),
            Self::LogEntry(replica, index) => Writer::log(replica, o::LOG_ENTRY).u64(index),

            Self::Applied(home) => Writer::state(home, o::APPLIED),
            Self::RaftState(home) => Writer::state(home, o::RAFT_STATE),
            Self::User(home, user) => Writer::state(home, o::USER).text(user),
            Self::Entry(home, user, seq) => Writer::state(home, o::ENTRY).text(user).u64(seq),
            Self::Expiry(home, due_ms, user) => {
                Writer::state(home, o::EXPIRY).u64(due_ms).text(user)
            }
            Self::SentId(home, sent) => Writer::state(home, o::SENT_ID)
                .u32(sent.day)
                .text(sent.recipient)
                .text(sent.sender)
                .u32(sent.device.0)
                .text(sent.id),
            Self::Sender(home, recipient, sender, device) => Writer::state(home, o::SENDER)
                .text(recipient)
                .text(sender)
                .u32(device.0),
            Self::SenderUse(home, sender, device) => Writer::state(home, o::SENDER_USE)
                .text(sender)
                .u32(device.0),
            Self::ReadMark(home, reader, sender) => {
                Writer::state(home, o::READ_MARK).text(reader).text(sender)
            }
            Self::Receipt(home, user, revision) => {
                Writer::state(home, o::RECEIPT).text(user).u64(revision)
            }
            Self::ReceiptIndex(home, user, peer, status) => Writer::state(home, o::RECEIPT_INDEX)
                .text(user)
                .text(peer)
                .status(status),
            Self::Outbox(home, destination, number) => Writer::state(home, o::OUTBOX)
                .u32(destination.0)
                .u64(number),
            Self::OutboxIndex(home, destination, to, peer, status) => {
                Writer::state(home, o::OUTBOX_INDEX)
                    .u32(destination.0)
                    .text(to)
                    .text(peer)
                    .status(status)
            }
            Self::OutboxHead(home, destination) => {
                Writer::state(home, o::OUTBOX_HEAD).u32(destination.0)
            }
            Self::InboundMark(home, source, incarnation) => Writer::state(home, o::INBOUND_MARK)
                .u32(source.0)
                .u64(incarnation),
            Self::Trim(home, user) => Writer::state(home, o::TRIM).text(user),
            Self::Cluster(home) => Writer::state(home, o::CLUSTER),
        }
        .finish()
    }

    /// The key that these bytes are, borrowing its text from them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they are not a key that [`Key::encode`] makes.
    pub fn decode(column: Column, bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(bytes);
        Self::read(column, &mut reader)
            .filter(|_| reader.0.is_empty())
            .ok_or_else(|| not_a(column_what(column)))
    }

    fn read(column: Column, reader: &mut Reader<'a>) -> Option<Self> {
        match column {
            Column::Node => Self::read_node(reader),
            Column::Log => Self::read_log(reader),
            Column::State => Self::read_state(reader),
        }
    }

    fn read_node(reader: &mut Reader<'a>) -> Option<Self> {
        Some(match reader.u8()? {
            ordinal::IDENTITY => Self::Identity,
            ordinal::PLAN => Self::Plan,
            ordinal::REPLICA => Self::Replica(ReplicaId(reader.u64()?)),
            ordinal::CLUSTER_CACHE => Self::ClusterCache,
            ordinal::SYNC_MARK => Self::SyncMark,
            ordinal::DELETED => Self::Deleted(reader.column()?, reader.sized()?),
            _ => return None,
        })
    }

    fn read_log(reader: &mut Reader<'a>) -> Option<Self> {
        let replica = ReplicaId(reader.u64()?);
        Some(match reader.u8()? {
            ordinal::VOTE => Self::Vote(replica),
            ordinal::PURGED => Self::Purged(replica),
            ordinal::LOG_ENTRY => Self::LogEntry(replica, reader.u64()?),
            _ => return None,
        })
    }

    fn read_state(r: &mut Reader<'a>) -> Option<Self> {
        let home = Home {
            replica: ReplicaId(r.u64()?),
            generation: r.u32()?,
        };
        Some(match r.u8()? {
            ordinal::APPLIED => Self::Applied(home),
            ordinal::RAFT_STATE => Self::RaftState(home),
            ordinal::USER => Self::User(home, r.text()?),
            ordinal::ENTRY => Self::Entry(home, r.text()?, r.u64()?),
            ordinal::EXPIRY => Self::Expiry(home, r.u64()?, r.text()?),
            ordinal::SENT_ID => Self::SentId(
                home,
                SentId {
                    day: r.u32()?,
                    recipient: r.text()?,
                    sender: r.text()?,
                    device: DeviceId(r.u32()?),
                    id: r.text()?,
                },
            ),
            ordinal::SENDER => Self::Sender(home, r.text()?, r.text()?, DeviceId(r.u32()?)),
            ordinal::SENDER_USE => Self::SenderUse(home, r.text()?, DeviceId(r.u32()?)),
            ordinal::READ_MARK => Self::ReadMark(home, r.text()?, r.text()?),
            ordinal::RECEIPT => Self::Receipt(home, r.text()?, r.u64()?),
            ordinal::RECEIPT_INDEX => Self::ReceiptIndex(home, r.text()?, r.text()?, r.status()?),
            ordinal::OUTBOX => Self::Outbox(home, ShardId(r.u32()?), r.u64()?),
            ordinal::OUTBOX_INDEX => {
                Self::OutboxIndex(home, ShardId(r.u32()?), r.text()?, r.text()?, r.status()?)
            }
            ordinal::OUTBOX_HEAD => Self::OutboxHead(home, ShardId(r.u32()?)),
            ordinal::INBOUND_MARK => Self::InboundMark(home, ShardId(r.u32()?), r.u64()?),
            ordinal::TRIM => Self::Trim(home, r.text()?),
            ordinal::CLUSTER => Self::Cluster(home),
            _ => return None,
        })
    }
}

fn column_what(column: Column) -> &'static str {
    match column {
        Column::Node => "key of the node column",
        Column::Log => "key of the log column",
        Column::State => "key of the state column",
    }
}

/// A column's number within a key. Frozen.
fn column_number(column: Column) -> u8 {
    match column {
        Column::Node => 0,
        Column::Log => 1,
        Column::State => 2,
    }
}

fn not_a(what: &'static str) -> Error {
    Error::Corrupt {
        what,
        detail: "no known layout fits".to_owned(),
    }
}

/// Builds a key, part by part. The ranges build their ends with it too.
pub(super) struct Writer(BytesMut);

impl Writer {
    pub(super) fn node(kind: u8) -> Self {
        Self(BytesMut::with_capacity(16)).u8(kind)
    }

    pub(super) fn log(replica: ReplicaId, kind: u8) -> Self {
        Self(BytesMut::with_capacity(17)).u64(replica.0).u8(kind)
    }

    pub(super) fn state(home: Home, kind: u8) -> Self {
        Self::home(home).u8(kind)
    }

    pub(super) fn home(home: Home) -> Self {
        Self::replica(home.replica).u32(home.generation)
    }

    pub(super) fn replica(replica: ReplicaId) -> Self {
        // Roomy enough for a kind, two phone numbers, a device and a UUID: no second allocation.
        Self(BytesMut::with_capacity(96)).u64(replica.0)
    }

    pub(super) fn u8(mut self, number: u8) -> Self {
        self.0.put_u8(number);
        self
    }

    pub(super) fn u32(mut self, number: u32) -> Self {
        self.0.put_u32(number);
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Self {
        self.0.put_u64(number);
        self
    }

    /// Identifiers are checked where they come in; one with a NUL could be taken for another's key.
    pub(super) fn text(mut self, text: &str) -> Self {
        debug_assert!(!text.contains('\0'), "identifiers hold no NUL");
        self.0.put_slice(text.as_bytes());
        self.u8(0)
    }

    /// Any bytes, behind their number.
    fn sized(self, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len()).expect("keys are short");
        let mut writer = self;
        writer.0.put_u16(length);
        writer.0.put_slice(bytes);
        writer
    }

    fn status(self, status: Status) -> Self {
        let number = u8::try_from(i32::from(status));
        self.u8(number.expect("the statuses of the wire are numbered below 256"))
    }

    pub(super) fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

/// Takes a key apart from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        std::str::from_utf8(text).ok()
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.array().map(u16::from_be_bytes)?;
        let (bytes, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        Some(bytes)
    }

    fn column(&mut self) -> Option<Column> {
        let number = self.u8()?;
        let mut columns = [Column::Node, Column::Log, Column::State].into_iter();
        columns.find(|column| column_number(*column) == number)
    }

    fn status(&mut self) -> Option<Status> {
        Status::try_from(i32::from(self.u8()?)).ok()
    }
}

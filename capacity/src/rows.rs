//! What rows take on one replica's disk, by the node's own encodings.

use roost::storage::keys::{Home, Key, SentId};
use roost::storage::value;
use roost::types::{DeviceId, ReplicaId, ShardId};
use roost_proto::storage;
use roost_proto::v1::{Cursor, Envelope};

const HOME: Home = Home {
    replica: ReplicaId(50_000),
    generation: 1,
};
const USER: &str = "+4915100000001";
const PEER: &str = "+4915100000002";
const DEVICE: DeviceId = DeviceId(1);
/// As long as a UUID, which clients use.
const ID: &str = "00000000-0000-4000-8000-000000000000";
/// A seq, or another number of a user who has had some thousands of messages.
const SEQ: u64 = 10_000;
const DAY: u32 = 20_000;
const TIME_MS: u64 = 1_700_000_000_000;
/// Days for which an id is remembered: the default of `queue.dedup_window_ms`, and the day that has begun.
pub(crate) const ID_DAYS: u32 = 8;

/// A name, what it is and its bytes, for each kind of row that there are many of.
pub(crate) fn all(body_bytes: usize) -> [(&'static str, &'static str, usize); 5] {
    [
        ("user_row_bytes", "a user with one device", user()),
        ("entry_row_bytes", "a message that waits", entry(body_bytes)),
        ("id_row_bytes", "a remembered id", sent_id()),
        (
            "conversation_row_bytes",
            "what is remembered of a conversation",
            sender() + sender_use(),
        ),
        (
            "shard_pair_row_bytes",
            "marks of a pair of shards",
            outbox_head() + inbound_mark(),
        ),
    ]
}

fn user() -> usize {
    let key = Key::User(HOME, USER).encode();
    let device = storage::Device {
        device: DEVICE.0,
        name: "phone".to_owned(),
        key_hash: vec![1_u8; 32].into(),
        cursor_seq: SEQ,
        receipt_revision: SEQ,
    };
    let user = storage::User {
        incarnation: 1,
        next_device: 2,
        devices: vec![device],
        next_seq: SEQ,
        done_seq: SEQ,
        trimmed_seq: SEQ,
        delivered_seq: SEQ,
        told_seq: SEQ,
        next_revision: SEQ,
        ..storage::User::default()
    };
    key.len() + value::encode(&key, &user).len()
}

fn entry(body_bytes: usize) -> usize {
    let key = Key::Entry(HOME, USER, SEQ).encode();
    let envelope = Envelope {
        id: ID.to_owned(),
        from: PEER.to_owned(),
        device: DEVICE.0,
        body: vec![1_u8; body_bytes].into(),
        sent_at_ms: TIME_MS,
        ..Envelope::default()
    };
    let entry = storage::Entry {
        envelope: Some(envelope),
        accepted_ms: TIME_MS,
        expires_ms: TIME_MS,
    };
    key.len() + value::encode(&key, &entry).len()
}

fn sent_id() -> usize {
    let sent = SentId {
        day: DAY,
        recipient: USER,
        sender: PEER,
        device: DEVICE,
        id: ID,
    };
    let key = Key::SentId(HOME, sent).encode();
    let place = Cursor {
        incarnation: 1,
        seq: SEQ,
    };
    let answer = storage::SentId {
        place: Some(place),
        ..storage::SentId::default()
    };
    key.len() + value::encode(&key, &answer).len()
}

fn sender() -> usize {
    let key = Key::Sender(HOME, USER, PEER, DEVICE).encode();
    let chain = storage::Chain {
        chain: u64::MAX,
        next_position: SEQ,
        used_ms: TIME_MS,
    };
    let sender = storage::Sender {
        chains: vec![chain],
        days: (0..ID_DAYS).map(|day| DAY + day).collect(),
    };
    key.len() + value::encode(&key, &sender).len()
}

fn sender_use() -> usize {
    let key = Key::SenderUse(HOME, PEER, DEVICE).encode();
    let day = |day| storage::DayUse {
        day: DAY + day,
        ids: 10,
    };
    let used = storage::SenderUse {
        days: (0..ID_DAYS).map(day).collect(),
    };
    key.len() + value::encode(&key, &used).len()
}

fn outbox_head() -> usize {
    let key = Key::OutboxHead(HOME, ShardId(1)).encode();
    let head = storage::OutboxHead {
        next_number: SEQ,
        rows: 1,
        trimmed_number: SEQ,
    };
    key.len() + value::encode(&key, &head).len()
}

fn inbound_mark() -> usize {
    let key = Key::InboundMark(HOME, ShardId(1), 1).encode();
    key.len() + value::encode(&key, &storage::Number { number: SEQ }).len()
}

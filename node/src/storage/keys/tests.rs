//! Golden bytes, round trips, order and ranges of all keys.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use roost_proto::v1::Status;

use super::*;
use crate::storage::{Column, Error};

const HOME: Home = Home {
    replica: ReplicaId(0x0102),
    generation: 3,
};

/// The kind's name and bytes for one key of every variant. **Frozen**: if a line has to change, data on disk is lost.
#[test]
fn layouts_are_frozen() {
    let sent = SentId {
        day: 7,
        recipient: "r",
        sender: "s",
        device: DeviceId(4),
        id: "i",
    };
    let (r, h) = (HOME.replica, HOME);
    let golden: [(Key<'_>, &str); 26] = [
        (Key::Identity, "01"),
        (Key::Plan, "02"),
        (Key::Replica(r), "03 0000000000000102"),
        (Key::ClusterCache, "04"),
        (Key::SyncMark, "05"),
        (Key::Deleted(Column::State, b"k"), "06 02 0001 6b"),
        (Key::Vote(r), "0000000000000102 01"),
        (Key::Purged(r), "0000000000000102 02"),
        (Key::LogEntry(r, 9), "0000000000000102 03 0000000000000009"),
        (Key::Applied(h), "0000000000000102 00000003 01"),
        (Key::RaftState(h), "0000000000000102 00000003 02"),
        (Key::User(h, "u"), "0000000000000102 00000003 03 7500"),
        (
            Key::Entry(h, "u", 9),
            "0000000000000102 00000003 04 7500 0000000000000009",
        ),
        (
            Key::Expiry(h, 9, "u"),
            "0000000000000102 00000003 05 0000000000000009 7500",
        ),
        (
            Key::SentId(h, sent),
            "0000000000000102 00000003 06 00000007 7200 7300 00000004 6900",
        ),
        (
            Key::Sender(h, "r", "s", DeviceId(4)),
            "0000000000000102 00000003 07 7200 7300 00000004",
        ),
        (
            Key::SenderUse(h, "s", DeviceId(4)),
            "0000000000000102 00000003 08 7300 00000004",
        ),
        (
            Key::ReadMark(h, "r", "s"),
            "0000000000000102 00000003 09 7200 7300",
        ),
        (
            Key::Receipt(h, "u", 9),
            "0000000000000102 00000003 0a 7500 0000000000000009",
        ),
        (
            Key::ReceiptIndex(h, "u", "p", Status::Read),
            "0000000000000102 00000003 0b 7500 7000 03",
        ),
        (
            Key::Outbox(h, ShardId(5), 9),
            "0000000000000102 00000003 0c 00000005 0000000000000009",
        ),
        (
            Key::OutboxIndex(h, ShardId(5), "t", "p", Status::Expired),
            "0000000000000102 00000003 0d 00000005 7400 7000 04",
        ),
        (
            Key::OutboxHead(h, ShardId(5)),
            "0000000000000102 00000003 0e 00000005",
        ),
        (
            Key::InboundMark(h, ShardId::META, 9),
            "0000000000000102 00000003 0f ffffffff 0000000000000009",
        ),
        (Key::Trim(h, "u"), "0000000000000102 00000003 10 7500"),
        (Key::Cluster(h), "0000000000000102 00000003 11"),
    ];
    for (key, hex) in &golden {
        assert_eq!(to_hex(&key.encode()), hex.replace(' ', ""), "{key:?}");
        assert_eq!(Key::decode(key.column(), &key.encode()).unwrap(), *key);
    }
    let kinds: BTreeSet<&str> = golden.iter().map(|(key, _)| key.what()).collect();
    assert_eq!(kinds.len(), golden.len(), "each kind has a name of its own");
}

#[test]
fn what_is_no_key_is_refused() {
    let entry = Key::Entry(HOME, "u", 9).encode();
    for end in 0..entry.len() {
        let key = Key::decode(Column::State, &entry[..end]);
        assert!(matches!(key, Err(Error::Corrupt { .. })), "{end}");
    }
    let longer = [&entry[..], b"x"].concat();
    assert!(Key::decode(Column::State, &longer).is_err());
    assert!(Key::decode(Column::Node, b"\x63").is_err());
}

/// The values of one key, so that it can be made, kept and compared without borrowing: `kind` picks the variant, the
/// others fill what it has.
#[derive(Clone, Debug)]
struct Parts {
    kind: u8,
    home: Home,
    texts: [String; 3],
    number: u64,
    small: u32,
    device: DeviceId,
    status: Status,
}

const KINDS: u8 = 26;

impl Parts {
    fn key(&self) -> Key<'_> {
        let (h, r) = (self.home, self.home.replica);
        let [a, b, c] = self.texts.each_ref().map(String::as_str);
        let shard = ShardId(self.small);
        match self.kind {
            0 => Key::Identity,
            1 => Key::Plan,
            2 => Key::Replica(r),
            3 => Key::ClusterCache,
            4 => Key::SyncMark,
            5 => Key::Vote(r),
            6 => Key::Purged(r),
            7 => Key::LogEntry(r, self.number),
            8 => Key::Applied(h),
            9 => Key::RaftState(h),
            10 => Key::User(h, a),
            11 => Key::Entry(h, a, self.number),
            12 => Key::Expiry(h, self.number, a),
            13 => Key::SentId(
                h,
                SentId {
                    day: self.small,
                    recipient: a,
                    sender: b,
                    device: self.device,
                    id: c,
                },
            ),
            14 => Key::Sender(h, a, b, self.device),
            15 => Key::SenderUse(h, a, self.device),
            16 => Key::ReadMark(h, a, b),
            17 => Key::Receipt(h, a, self.number),
            18 => Key::ReceiptIndex(h, a, b, self.status),
            19 => Key::Outbox(h, shard, self.number),
            20 => Key::OutboxIndex(h, shard, a, b, self.status),
            21 => Key::OutboxHead(h, shard),
            22 => Key::InboundMark(h, shard, self.number),
            23 => Key::Trim(h, a),
            24 => Key::Cluster(h),
            25 => Key::Deleted(Column::Log, a.as_bytes()),
            _ => unreachable!("KINDS says how many there are"),
        }
    }
}

/// What keys are to be ordered by: column, replica, generation, kind, then the parts in the order of the layout.
/// Texts compare as texts and numbers as numbers.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Number(u64),
    Text(&'a str),
    Bytes(&'a [u8]),
}

fn logical<'a>(key: &Key<'a>) -> Vec<Part<'a>> {
    use Part::{Bytes as B, Number as N, Text as T};
    let state = |home: Home, kind: u64, rest: Vec<Part<'a>>| {
        let head = [N(home.replica.0), N(home.generation.into()), N(kind)];
        head.into_iter().chain(rest).collect()
    };
    let status = |status: Status| N(i32::from(status) as u64);
    match *key {
        Key::Identity => vec![N(1)],
        Key::Plan => vec![N(2)],
        Key::Replica(r) => vec![N(3), N(r.0)],
        Key::ClusterCache => vec![N(4)],
        Key::SyncMark => vec![N(5)],
        Key::Deleted(_, start) => vec![N(6), N(1), N(start.len() as u64), B(start)],
        Key::Vote(r) => vec![N(r.0), N(1)],
        Key::Purged(r) => vec![N(r.0), N(2)],
        Key::LogEntry(r, index) => vec![N(r.0), N(3), N(index)],
        Key::Applied(h) => state(h, 1, vec![]),
        Key::RaftState(h) => state(h, 2, vec![]),
        Key::User(h, a) => state(h, 3, vec![T(a)]),
        Key::Entry(h, a, n) => state(h, 4, vec![T(a), N(n)]),
        Key::Expiry(h, n, a) => state(h, 5, vec![N(n), T(a)]),
        Key::SentId(h, s) => state(
            h,
            6,
            vec![
                N(s.day.into()),
                T(s.recipient),
                T(s.sender),
                N(s.device.0.into()),
                T(s.id),
            ],
        ),
        Key::Sender(h, a, b, d) => state(h, 7, vec![T(a), T(b), N(d.0.into())]),
        Key::SenderUse(h, a, d) => state(h, 8, vec![T(a), N(d.0.into())]),
        Key::ReadMark(h, a, b) => state(h, 9, vec![T(a), T(b)]),
        Key::Receipt(h, a, n) => state(h, 10, vec![T(a), N(n)]),
        Key::ReceiptIndex(h, a, b, s) => state(h, 11, vec![T(a), T(b), status(s)]),
        Key::Outbox(h, d, n) => state(h, 12, vec![N(d.0.into()), N(n)]),
        Key::OutboxIndex(h, d, a, b, s) => state(h, 13, vec![N(d.0.into()), T(a), T(b), status(s)]),
        Key::OutboxHead(h, d) => state(h, 14, vec![N(d.0.into())]),
        Key::InboundMark(h, d, n) => state(h, 15, vec![N(d.0.into()), N(n)]),
        Key::Trim(h, a) => state(h, 16, vec![T(a)]),
        Key::Cluster(h) => state(h, 17, vec![]),
    }
}

/// Few different values, and the extremes: keys that share a long head are where order and ranges go wrong.
fn parts() -> impl Strategy<Value = Parts> {
    let text = || prop_oneof![3 => "[ab]{0,3}", 1 => "\\PC{0,8}", 1 => Just("\u{1}".to_owned())];
    let number = || prop_oneof![3 => 0..3_u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1), 1 => any::<u64>()];
    let small = || prop_oneof![3 => 0..3_u32, 1 => Just(u32::MAX), 1 => any::<u32>()];
    let home = (number(), small()).prop_map(|(replica, generation)| Home {
        replica: ReplicaId(replica),
        generation,
    });
    let status = prop::sample::select(vec![
        Status::Unspecified,
        Status::Accepted,
        Status::Delivered,
        Status::Read,
        Status::Expired,
        Status::Refused,
    ]);
    (
        0..KINDS,
        home,
        [text(), text(), text()],
        number(),
        small(),
        small(),
        status,
    )
        .prop_map(|(kind, home, texts, number, small, device, status)| Parts {
            kind,
            home,
            texts,
            number,
            small,
            device: DeviceId(device),
            status,
        })
}

/// Two keys, mostly of one kind and one home.
fn pair() -> impl Strategy<Value = (Parts, Parts)> {
    (parts(), parts(), any::<[bool; 4]>()).prop_map(|(one, mut other, same)| {
        if same[0] || same[1] {
            other.kind = one.kind;
        }
        if same[2] || same[3] {
            other.home = one.home;
        }
        (one, other)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn decode_gives_back_what_was_encoded(parts in parts()) {
        let key = parts.key();
        let bytes = key.encode();
        prop_assert_eq!(Key::decode(key.column(), &bytes).unwrap(), key);
    }

    #[test]
    fn byte_order_is_logical_order((one, other) in pair()) {
        let (one, other) = (one.key(), other.key());
        if one.column() == other.column() {
            prop_assert_eq!(one.encode().cmp(&other.encode()), logical(&one).cmp(&logical(&other)));
        }
    }

    #[test]
    fn no_key_is_a_prefix_of_another((one, other) in pair()) {
        let (one, other) = (one.key(), other.key());
        if one.column() == other.column() && one != other {
            prop_assert!(!other.encode().starts_with(&one.encode()));
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
        for column in [Column::Node, Column::Log, Column::State] {
            if let Ok(key) = Key::decode(column, &bytes) {
                prop_assert_eq!(key.encode(), &bytes);
            }
        }
    }

    /// `one` gives a range its arguments, `other` is inside exactly if the range's description says so.
    #[test]
    fn ranges_contain_exactly_what_they_say((one, other) in pair()) {
        let (h, r) = (one.home, one.home.replica);
        let [a, b, _] = one.texts.each_ref().map(String::as_str);
        let (n, small, device) = (one.number, one.small, one.device);
        let up_to = n.saturating_add(2);
        let key = other.key();
        let bytes = key.encode();
        let column = key.column();
        let replica_of = match Key::decode(column, &bytes).unwrap() {
            Key::Vote(x) | Key::Purged(x) | Key::LogEntry(x, _) => Some(x),
            _ => (column == Column::State).then_some(other.home.replica),
        };
        let here = column == Column::State && other.home == h;
        let checks = [
            (Column::Node, replicas(), matches!(key, Key::Replica(_))),
            (Column::Node, deletions(), matches!(key, Key::Deleted(..))),
            (Column::Log, replica_log_range(r), replica_of == Some(r)),
            (Column::Log, log_entries(r, n..up_to),
                matches!(key, Key::LogEntry(x, i) if x == r && (n..up_to).contains(&i))),
            (Column::State, replica_state_range(r), replica_of == Some(r)),
            (Column::State, home_range(h), here),
            (Column::State, users(h, None), here && matches!(key, Key::User(..))),
            (Column::State, users(h, Some(a)), here && matches!(key, Key::User(_, u) if u > a)),
            (Column::State, entries_of(h, a, n..up_to),
                here && matches!(key, Key::Entry(_, u, s) if u == a && (n..up_to).contains(&s))),
            (Column::State, entries_of_user(h, a), here && matches!(key, Key::Entry(_, u, _) if u == a)),
            (Column::State, entries_all(h), here && matches!(key, Key::Entry(..))),
            (Column::State, expiry_until(h, n), here && matches!(key, Key::Expiry(_, due, _) if due <= n)),
            (Column::State, sent_ids_of_day(h, small), here && matches!(key, Key::SentId(_, s) if s.day == small)),
            (Column::State, sent_ids_before(h, small), here && matches!(key, Key::SentId(_, s) if s.day < small)),
            (Column::State, sent_ids_to(h, small, a),
                here && matches!(key, Key::SentId(_, s) if s.day == small && s.recipient == a)),
            (Column::State, sent_ids_of_pair(h, small, a, b, device),
                here && matches!(key, Key::SentId(_, s)
                    if s.day == small && s.recipient == a && s.sender == b && s.device == device)),
            (Column::State, senders(h), here && matches!(key, Key::Sender(..))),
            (Column::State, senders_of(h, a), here && matches!(key, Key::Sender(_, to, ..) if to == a)),
            (Column::State, sender_uses(h), here && matches!(key, Key::SenderUse(..))),
            (Column::State, read_marks_of(h, a), here && matches!(key, Key::ReadMark(_, reader, _) if reader == a)),
            (Column::State, receipts_of(h, a, n), here && matches!(key, Key::Receipt(_, u, rev) if u == a && rev > n)),
            (Column::State, receipt_index_of(h, a), here && matches!(key, Key::ReceiptIndex(_, u, ..) if u == a)),
            (Column::State, outbox_of(h, ShardId(small), n),
                here && matches!(key, Key::Outbox(_, d, number) if d.0 == small && number >= n)),
            (Column::State, outbox_index_of(h, ShardId(small)),
                here && matches!(key, Key::OutboxIndex(_, d, ..) if d.0 == small)),
            (Column::State, outbox_heads(h), here && matches!(key, Key::OutboxHead(..))),
            (Column::State, inbound_marks(h), here && matches!(key, Key::InboundMark(..))),
            (Column::State, trims(h), here && matches!(key, Key::Trim(..))),
        ];
        if column == Column::State {
            let queue = match key {
                Key::Entry(home, user, _) => Some(entries_of_user(home, user)),
                _ => None,
            };
            prop_assert_eq!(queue_of(&bytes), queue);
        }
        for (at, (of, range, inside)) in checks.into_iter().enumerate() {
            if of == column {
                prop_assert_eq!(range.contains(&bytes), inside, "range {}", at);
            }
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

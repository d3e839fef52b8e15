//! Round trips, damage, and golden bytes of the codec.

#![allow(clippy::unwrap_used)]

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn log_ids() -> impl Strategy<Value = LogId> {
    (any::<u64>(), any::<u64>(), any::<u64>())
        .prop_map(|(term, node, index)| LogId::new(CommittedLeaderId::new(term, node), index))
}

fn votes() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| {
        let mut vote = Vote::new(term, node);
        vote.committed = committed;
        vote
    })
}

fn memberships() -> impl Strategy<Value = Membership> {
    (
        btree_map(
            any::<u64>(),
            any::<[u8; 16]>().prop_map(NodeId::from_bytes),
            1..6,
        ),
        vec(vec(any::<prop::sample::Index>(), 1..4), 1..3),
    )
        .prop_map(|(nodes, configs)| {
            let ids: Vec<u64> = nodes.keys().copied().collect();
            let voters = |config: Vec<prop::sample::Index>| {
                config.iter().map(|index| *index.get(&ids)).collect()
            };
            Membership::new(configs.into_iter().map(voters).collect(), nodes)
        })
}

fn entries() -> impl Strategy<Value = Entry> {
    let payload = prop_oneof![
        Just(EntryPayload::Blank),
        vec(any::<u8>(), 0..300).prop_map(|bytes| EntryPayload::Normal(Command(bytes.into()))),
        memberships().prop_map(EntryPayload::Membership),
    ];
    (log_ids(), payload).prop_map(|(log_id, payload)| Entry { log_id, payload })
}

fn appends() -> impl Strategy<Value = AppendRequest> {
    (
        votes(),
        prop::option::of(log_ids()),
        prop::option::of(log_ids()),
        vec(entries(), 0..5),
    )
        .prop_map(
            |(vote, prev_log_id, leader_commit, entries)| AppendRequest {
                vote,
                prev_log_id,
                leader_commit,
                entries,
            },
        )
}

fn append_responses() -> impl Strategy<Value = AppendResponse> {
    // The type cannot be cloned, so no `Just`.
    prop_oneof![
        any::<()>().prop_map(|()| AppendResponse::Success),
        any::<()>().prop_map(|()| AppendResponse::Conflict),
        prop::option::of(log_ids()).prop_map(AppendResponse::PartialSuccess),
        votes().prop_map(AppendResponse::HigherVote),
    ]
}

fn stored<T: Code>(value: &T) -> T {
    decode("value", encode(value)).unwrap()
}

fn sent<T: Code>(value: &T) -> T {
    decode_message("message", encode_message(value)).unwrap()
}

proptest! {
    #[test]
    fn votes_come_back(vote in votes()) {
        prop_assert_eq!(stored(&vote), vote);
    }

    #[test]
    fn entries_come_back(entry in entries()) {
        prop_assert_eq!(stored(&entry), entry);
    }

    #[test]
    fn progress_comes_back(
        applied in prop::option::of(log_ids()),
        at in prop::option::of(log_ids()),
        membership in memberships(),
    ) {
        let progress = Progress { applied, membership: StoredMembership::new(at, membership) };
        prop_assert_eq!(stored(&progress), progress);
    }

    #[test]
    fn appends_come_back(append in appends()) {
        let back = sent(&append);
        prop_assert_eq!(back.vote, append.vote);
        prop_assert_eq!(back.prev_log_id, append.prev_log_id);
        prop_assert_eq!(back.leader_commit, append.leader_commit);
        prop_assert_eq!(back.entries, append.entries);
    }

    #[test]
    fn answers_come_back(
        response in append_responses(),
        vote in votes(),
        last_log_id in prop::option::of(log_ids()),
        vote_granted: bool,
    ) {
        prop_assert_eq!(sent(&response), response);
        let request = VoteRequest { vote, last_log_id };
        prop_assert_eq!(sent(&request), request);
        let response = VoteResponse { vote, vote_granted, last_log_id };
        prop_assert_eq!(sent(&response), response);
    }

    /// A bit that fell over on the way is seen before anything is written.
    #[test]
    fn a_flipped_bit_is_refused(append in appends(), bit: prop::sample::Index) {
        let mut bytes = encode_message(&append).to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let refused = matches!(
            decode_message::<AppendRequest>("append", bytes.into()),
            Err(Error::Corrupt { .. })
        );
        prop_assert!(refused);
    }

    /// Whatever arrives, decoding ends with a value or an error.
    #[test]
    fn nothing_panics(bytes in vec(any::<u8>(), 0..200)) {
        let mut formatted = vec![FORMAT];
        formatted.extend_from_slice(&bytes);
        let formatted = Bytes::from(formatted);
        let _ = decode::<Entry>("entry", formatted.clone());
        let _ = decode::<AppendRequest>("append", formatted.clone());
        let _ = decode::<Progress>("progress", formatted);
        let _ = decode_message::<AppendRequest>("append", bytes.into());
    }

    #[test]
    fn a_cut_entry_is_refused(entry in entries(), end: prop::sample::Index) {
        let bytes = encode(&entry);
        let cut = bytes.slice(..end.index(bytes.len()));
        let refused = matches!(decode::<Entry>("entry", cut), Err(Error::Corrupt { .. }));
        prop_assert!(refused);
    }
}

/// Golden bytes: the format on disk may not change by itself.
#[test]
fn the_layout_stands() {
    let mut vote = Vote::new(0x0102, 3);
    vote.committed = true;
    let mut expected = vec![FORMAT];
    expected.extend([0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3, 1]);
    assert_eq!(encode(&vote), expected);

    let entry = Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, 2), 3),
        payload: EntryPayload::Normal(Command(Bytes::from_static(b"x"))),
    };
    let mut expected = vec![FORMAT];
    for number in [1_u64, 2, 3] {
        expected.extend(number.to_be_bytes());
    }
    expected.extend([1, 0, 0, 0, 1, b'x']);
    assert_eq!(encode(&entry), expected);
}

#[test]
fn a_newer_format_is_told_apart_from_damage() {
    let mut bytes = encode(&Vote::new(1, 2)).to_vec();
    bytes[0] = FORMAT + 1;
    assert!(matches!(
        decode::<Vote>("vote", bytes.into()),
        Err(Error::UnknownFormat {
            what: "vote",
            version: 2,
            known: 1
        })
    ));
}

#[test]
fn a_voter_without_a_node_is_refused() {
    let mut out = BytesMut::new();
    vec![vec![1_u64]].put(&mut out);
    Vec::<(u64, NodeId)>::new().put(&mut out);
    assert!(Membership::read(&mut out.freeze()).is_none());
}

//! One behaviour at a time; `model` has them all at once.
#![allow(clippy::unwrap_used)]

mod harness;
mod model;
mod properties;

use roost_proto::storage::{OutboxTrim, Send, SendItem, SweepIds, Trim, command::Command};
use roost_proto::v1::{Code, Range, Status};

use super::{READS_AHEAD_MAX, UserFill, receipt_bytes};
use harness::*;

/// (to, status, up_to_seq, expired) of a row of the outbox.
type Owed = (String, Status, u64, Vec<(u64, u64)>);

fn owed(shard: &Shard) -> Vec<Owed> {
    let items = shard.outbox().into_iter();
    items
        .map(|(_, item)| {
            let receipt = item.receipt.unwrap();
            let expired = receipt.expired.iter().map(|r| (r.first, r.last)).collect();
            (item.to, receipt.status(), receipt.up_to_seq, expired)
        })
        .collect()
}

fn delivered(to: &str, up_to: u64) -> Owed {
    (to.into(), Status::Delivered, up_to, vec![])
}

fn expired(to: &str, ranges: &[(u64, u64)]) -> Owed {
    (to.into(), Status::Expired, 0, ranges.to_vec())
}

fn fill(shard: &mut Shard, positions: std::ops::RangeInclusive<u64>) {
    let send = Send {
        from: "alice".into(),
        device: 1,
        to: "bob".into(),
        items: positions.map(item).collect(),
    };
    for answer in shard.send(send) {
        assert_eq!(verdict(&answer), Ok(Status::Accepted));
    }
}

#[test]
fn the_same_id_gets_the_same_place_and_the_status_of_now() {
    let mut shard = Shard::new();
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Accepted));
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Accepted));
    assert_eq!(shard.seqs("bob"), [1]);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Delivered));
    assert_eq!(shard.done(read("bob", 1, "alice", 1)), Ok(false));
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Read));
    assert_eq!(shard.seqs("bob"), [0; 0]);
}

#[test]
fn a_full_ack_leaves_no_entry_and_no_expiry_row() {
    let mut shard = Shard::new();
    let before = shard.rows().len();
    fill(&mut shard, 1..=3);
    assert_eq!(shard.ack("bob", 1, 3), Ok((3, false)));
    // Three ids, the sender's two rows, one outbox row with index and head.
    assert_eq!(shard.rows().len(), before + 3 + 2 + 3);
    let sums = shard.read().applied().unwrap();
    assert_eq!((sums.queued_entries, sums.queued_bytes), (0, 0));
    assert_eq!(owed(&shard), [delivered("alice", 3)]);
}

#[test]
fn only_the_next_position_is_taken() {
    let mut shard = Shard::new();
    let mut later = item(3);
    assert_eq!(
        shard.say("alice", "bob", later.clone()),
        Err(Code::UnknownChain)
    );
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Accepted));
    assert_eq!(
        shard.say("alice", "bob", later.clone()),
        Err(Code::PositionGap)
    );
    later.position = 1;
    assert_eq!(shard.say("alice", "bob", later), Err(Code::AlreadyAnswered));
    assert_eq!(shard.say("alice", "bob", item(2)), Ok(Status::Accepted));
}

#[test]
fn a_final_refusal_takes_its_position_and_is_remembered() {
    let mut shard = Shard::new();
    shard.limits.queue_entries_max = 1;
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Accepted));
    assert_eq!(shard.say("alice", "bob", item(2)), Err(Code::QueueFull));
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    assert_eq!(shard.say("alice", "bob", item(2)), Err(Code::QueueFull));
    assert_eq!(shard.say("alice", "bob", item(3)), Ok(Status::Accepted));
    assert_eq!(shard.say("alice", "carol", item(1)), Err(Code::NotFound));
    shard.add("carol", "phone");
    assert_eq!(shard.say("alice", "carol", item(1)), Err(Code::NotFound));
    assert_eq!(shard.say("alice", "carol", item(2)), Ok(Status::Accepted));
}

/// A client that lost an answer sends the id again, in a new chain if it must: what is behind it must find its turn.
#[test]
fn a_remembered_id_takes_its_turn_in_a_new_chain() {
    let mut shard = Shard::new();
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Accepted));
    let new_chain = |position| SendItem {
        chain: 2,
        ..item(position)
    };
    assert_eq!(
        shard.say("alice", "bob", new_chain(1)),
        Ok(Status::Accepted)
    );
    assert_eq!(shard.seqs("bob"), [1]);
    assert_eq!(
        shard.say("alice", "bob", new_chain(2)),
        Ok(Status::Accepted)
    );
    assert_eq!(shard.seqs("bob"), [1, 2]);
}

#[test]
fn what_the_session_refuses_takes_its_position_and_is_remembered() {
    let mut shard = Shard::new();
    let too_large = SendItem {
        refuse: Code::TooLarge.into(),
        ..item(1)
    };
    assert_eq!(shard.say("alice", "bob", too_large), Err(Code::TooLarge));
    assert_eq!(shard.say("alice", "bob", item(1)), Err(Code::TooLarge));
    assert_eq!(shard.say("alice", "bob", item(2)), Ok(Status::Accepted));
}

#[test]
fn a_retryable_refusal_changes_nothing() {
    let mut shard = Shard::new();
    let before = shard.rows();
    let mut early = item(1);
    early.sent_at_ms = NOON_MS + 6 * 60 * 1000;
    assert_eq!(shard.say("alice", "bob", early), Err(Code::ClockAhead));
    assert_eq!(shard.say("alice", "bob", item(2)), Err(Code::UnknownChain));
    shard.limits.sender_ids_max = 0;
    assert_eq!(shard.say("alice", "bob", item(1)), Err(Code::Overloaded));
    assert_eq!(shard.rows(), before);
}

#[test]
fn after_the_window_a_retry_is_refused_never_accepted_twice() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=1);
    for days in 1..20 {
        shard.now_ms = NOON_MS + days * DAY_MS;
        if days % 3 == 0 {
            while shard.done(Command::SweepIds(SweepIds {})) == Ok(true) {}
        }
        let again = shard.say("alice", "bob", item(1));
        match days {
            ..=7 => assert_eq!(again, Ok(Status::Accepted)),
            // The first is refused by its age, on a new chain; then that answer is remembered, until it is forgotten.
            _ => assert_eq!(again, Err(Code::IdTooOld)),
        }
    }
    assert_eq!(shard.seqs("bob"), [1]);
}

#[test]
fn a_longer_window_does_not_bring_forgotten_ids_back() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=1);
    shard.now_ms += 10 * DAY_MS;
    while shard.done(Command::SweepIds(SweepIds {})) == Ok(true) {}
    shard.limits.dedup_window_ms = 30 * DAY_MS;
    assert_eq!(shard.say("alice", "bob", item(1)), Err(Code::IdTooOld));
}

#[test]
fn a_sweep_leaves_nothing_of_silent_senders() {
    let mut shard = Shard::new();
    let before = shard.rows().len();
    fill(&mut shard, 1..=1);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    shard.pump();
    shard.now_ms += 9 * DAY_MS;
    assert_eq!(shard.done(Command::SweepIds(SweepIds {})), Ok(true));
    assert_eq!(shard.done(Command::SweepIds(SweepIds {})), Ok(false));
    // Outbox head and inbound mark stay, and Alice's receipt with its index.
    assert_eq!(shard.rows().len(), before + 4);
}

#[test]
fn the_chain_idle_for_longest_makes_room() {
    let mut shard = Shard::new();
    shard.limits.chains_max = 2;
    for chain in [5, 4, 3] {
        shard.now_ms += 1;
        let mut opening = item(1);
        opening.chain = chain;
        opening.id = format!("c{chain}");
        assert_eq!(shard.say("alice", "bob", opening), Ok(Status::Accepted));
    }
    let second = |chain| {
        let mut second = item(2);
        second.chain = chain;
        second.id = format!("d{chain}");
        second
    };
    assert_eq!(
        shard.say("alice", "bob", second(5)),
        Err(Code::UnknownChain)
    );
    assert_eq!(shard.say("alice", "bob", second(4)), Ok(Status::Accepted));
    assert_eq!(shard.say("alice", "bob", second(3)), Ok(Status::Accepted));
}

#[test]
fn entries_wait_for_the_slowest_device() {
    let mut shard = Shard::new();
    shard.add("bob", "laptop");
    fill(&mut shard, 1..=2);
    assert_eq!(shard.ack("bob", 1, 2), Ok((2, false)));
    assert_eq!(shard.seqs("bob"), [1, 2]);
    assert_eq!(owed(&shard), [delivered("alice", 2)]);
    assert_eq!(shard.ack("bob", 2, 1), Ok((1, false)));
    assert_eq!(shard.seqs("bob"), [2]);
    assert_eq!(shard.done(remove_device("bob", "laptop")), Ok(false));
    assert_eq!(shard.seqs("bob"), [0; 0]);
    assert_eq!(shard.ack("bob", 2, 2), Err(Code::Unauthenticated));
}

#[test]
fn cursors_of_another_queue_are_refused() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=2);
    assert_eq!(shard.ack("bob", 1, 3), Err(Code::BadCursor));
    assert!(matches!(
        shard.one(ack("bob", 1, 2, 1)),
        roost_proto::storage::outcome::Outcome::Refused(error) if error.code() == Code::BadCursor
    ));
    assert_eq!(shard.ack("bob", 1, 2), Ok((2, false)));
    assert_eq!(shard.ack("bob", 1, 1), Ok((2, false)));
}

/// A device added behind a backlog acknowledges what it gets; nobody has had what came before, so the sender must not
/// be told that it was delivered.
#[test]
fn a_new_devices_ack_does_not_speak_for_what_came_before_it() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=2);
    shard.add("bob", "laptop");
    fill(&mut shard, 3..=4);
    assert_eq!(shard.ack("bob", 2, 3), Ok((3, false)));
    assert_eq!(owed(&shard), []);
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Accepted));
    assert_eq!(shard.say("alice", "bob", item(3)), Ok(Status::Delivered));
    assert_eq!(shard.done(read("bob", 2, "alice", 3)), Ok(false));
    assert_eq!(owed(&shard), []);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    let read = |up_to| ("alice".to_owned(), Status::Read, up_to, vec![]);
    assert_eq!(owed(&shard), [delivered("alice", 1), read(1)]);
    assert_eq!(shard.ack("bob", 1, 2), Ok((2, false)));
    assert_eq!(owed(&shard), [delivered("alice", 3), read(3)]);
}

#[test]
fn what_only_a_removed_device_was_to_get_is_reported_expired() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=2);
    shard.add("bob", "laptop");
    fill(&mut shard, 3..=4);
    assert_eq!(shard.ack("bob", 2, 4), Ok((4, false)));
    assert_eq!(shard.done(remove_device("bob", "phone")), Ok(false));
    assert_eq!(
        owed(&shard),
        [expired("alice", &[(1, 2)]), delivered("alice", 4)]
    );
    assert_eq!(shard.say("alice", "bob", item(2)), Ok(Status::Expired));
    assert_eq!(shard.say("alice", "bob", item(3)), Ok(Status::Delivered));
    assert_eq!(shard.seqs("bob"), [0; 0]);
}

#[test]
fn a_user_without_devices_keeps_entries_until_one_is_added() {
    let mut shard = Shard::new();
    assert_eq!(shard.done(remove_device("bob", "phone")), Ok(false));
    assert_eq!(shard.done(remove_device("bob", "phone")), Ok(false));
    fill(&mut shard, 1..=2);
    shard.add("bob", "laptop");
    assert_eq!(shard.user("bob").devices[0].cursor_seq, 0);
    assert_eq!(shard.user("bob").devices[0].device, 2);
    assert_eq!(shard.ack("bob", 2, 2), Ok((2, false)));
}

#[test]
fn what_expires_is_reported_once_and_skipped() {
    let mut shard = Shard::new();
    shard.add("bob", "laptop");
    for (position, ttl_ms) in [(1, TTL_MS), (2, 1000), (3, 1000), (4, TTL_MS), (5, 1000)] {
        let mut item = item(position);
        item.ttl_ms = ttl_ms;
        assert_eq!(shard.say("alice", "bob", item), Ok(Status::Accepted));
    }
    assert_eq!(shard.read().due_expiries(NOON_MS, 9).unwrap(), []);
    assert_eq!(shard.done(expire(&["bob"])), Ok(false));
    assert_eq!(shard.seqs("bob"), [1, 2, 3, 4, 5]);
    shard.now_ms += 2000;
    assert_eq!(shard.read().due_expiries(shard.now_ms, 9).unwrap().len(), 1);
    assert_eq!(shard.done(expire(&["bob", "alice"])), Ok(false));
    assert_eq!(owed(&shard), [expired("alice", &[(2, 3), (5, 5)])]);
    assert_eq!(shard.say("alice", "bob", item(2)), Ok(Status::Expired));
    let slice = shard.read().entries("bob", 1, 10, u64::MAX).unwrap();
    assert_eq!(shard.seqs("bob"), [1, 4]);
    assert_eq!(
        slice.skipped,
        [Range { first: 2, last: 3 }, Range { first: 5, last: 5 }]
    );
    assert_eq!(slice.next_seq, 6);
    assert_eq!(shard.ack("bob", 1, 5), Ok((5, false)));
    assert_eq!(
        owed(&shard),
        [expired("alice", &[(2, 3), (5, 5)]), delivered("alice", 4)]
    );
    assert_eq!(shard.say("alice", "bob", item(3)), Ok(Status::Expired));
    // The rest goes for the second device without a word: the first has had it.
    shard.now_ms += TTL_MS + DAY_MS;
    assert_eq!(shard.done(expire(&["bob"])), Ok(false));
    assert_eq!(owed(&shard).len(), 2);
    assert_eq!(shard.user("bob").done_seq, 5);
    assert_eq!(shard.user("bob").expiry_due_ms, 0);
    assert_eq!(shard.ack("bob", 2, 5), Ok((5, false)));
}

#[test]
fn a_long_queue_expires_in_bounded_steps() {
    let mut shard = Shard::new();
    let mut positions = 1..=10_000_u64;
    while !positions.is_empty() {
        let items = positions.by_ref().take(1000).map(|position| {
            let mut item = item(position);
            // Every second one stays.
            item.ttl_ms = if position % 2 == 0 { TTL_MS } else { 5000 };
            item
        });
        let send = Send {
            from: "alice".into(),
            device: 1,
            to: "bob".into(),
            items: items.collect(),
        };
        shard.send(send);
    }
    shard.now_ms += 60_000;
    assert_eq!(shard.done(expire(&["bob"])), Ok(true));
    assert_eq!(shard.done(expire(&["bob"])), Ok(true));
    assert_eq!(shard.done(expire(&["bob"])), Ok(false));
    assert_eq!(shard.user("bob").entries, 5000);
    assert!(shard.user("bob").expiry_due_ms >= NOON_MS + TTL_MS);
    let ranges: usize = owed(&shard).iter().map(|owed| owed.3.len()).sum();
    assert_eq!(ranges, 5000);
}

#[test]
fn acks_and_trims_go_in_bounded_steps() {
    let mut shard = Shard::new();
    shard.add("bob", "laptop");
    for start in (1..=10_000).step_by(1000) {
        fill(&mut shard, start..=start + 999);
    }
    assert_eq!(shard.ack("bob", 1, 10_000), Ok((4096, true)));
    assert_eq!(shard.ack("bob", 1, 10_000), Ok((8192, true)));
    assert_eq!(shard.ack("bob", 1, 10_000), Ok((10_000, false)));
    assert_eq!(owed(&shard), [delivered("alice", 10_000)]);
    assert_eq!(shard.done(remove_device("bob", "laptop")), Ok(false));
    // Logically gone at once.
    assert_eq!(shard.seqs("bob"), [0; 0]);
    assert_eq!(shard.user("bob").entries, 10_000 - 4096);
    assert_eq!(shard.read().trims(None, 9).unwrap(), shard.effects.trims);
    assert_eq!(shard.effects.trims.len(), 1);
    let trim = || Command::Trim(Trim { user: "bob".into() });
    // A queue that is only being cleared is no reason for a final refusal.
    shard.limits.queue_entries_max = 10;
    assert_eq!(
        shard.say("alice", "bob", item(10_001)),
        Err(Code::Overloaded)
    );
    assert_eq!(shard.done(trim()), Ok(true));
    assert_eq!(shard.done(trim()), Ok(false));
    assert_eq!(shard.read().trims(None, 9).unwrap(), []);
    assert_eq!(shard.user("bob").entries, 0);
    assert_eq!(
        shard.say("alice", "bob", item(10_001)),
        Ok(Status::Accepted)
    );
}

#[test]
fn a_removed_account_takes_everything_along() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=3);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    assert_eq!(shard.done(read("bob", 1, "alice", 1)), Ok(false));
    assert_eq!(shard.say("bob", "alice", item(1)), Ok(Status::Accepted));
    assert_eq!(shard.ack("alice", 1, 1), Ok((1, false)));
    shard.pump();
    assert_eq!(
        shard
            .read()
            .receipts("bob", 0, 9, u64::MAX)
            .unwrap()
            .receipts
            .len(),
        1
    );
    assert_eq!(shard.done(remove_account("bob")), Ok(false));
    assert_eq!(shard.done(remove_account("bob")), Ok(false));
    assert_eq!(owed(&shard), [expired("alice", &[(2, 3)])]);
    assert_eq!(
        shard
            .read()
            .receipts("bob", 0, 9, u64::MAX)
            .unwrap()
            .receipts,
        []
    );
    assert_eq!(shard.read().applied().unwrap().accounts, 1);
    assert_eq!(shard.say("alice", "bob", item(4)), Err(Code::NotFound));
    assert_eq!(shard.say("alice", "bob", item(3)), Ok(Status::Expired));
    shard.add("bob", "phone");
    let bob = shard.user("bob");
    assert_eq!((bob.incarnation, bob.devices[0].device), (2, 2));
    assert_eq!(shard.say("alice", "bob", item(1)), Ok(Status::Delivered));
    assert_eq!(shard.say("alice", "bob", item(5)), Ok(Status::Accepted));
    assert_eq!(shard.seqs("bob"), [1]);
    assert_eq!(shard.ack("bob", 2, 1), Err(Code::BadCursor));
}

/// A watermark of the new queue once took the place of the old one's that nobody had seen yet.
#[test]
fn a_new_incarnation_leaves_the_old_ones_ticks_standing() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=2);
    assert_eq!(shard.ack("bob", 1, 2), Ok((2, false)));
    assert_eq!(shard.done(remove_account("bob")), Ok(false));
    shard.add("bob", "phone");
    fill(&mut shard, 3..=3);
    assert!(matches!(
        shard.one(ack("bob", 2, 2, 1)),
        roost_proto::storage::outcome::Outcome::Ack(_)
    ));
    assert_eq!(owed(&shard), [delivered("alice", 2), delivered("alice", 1)]);
    shard.pump();
    let receipts = shard
        .read()
        .receipts("alice", 0, 9, u64::MAX)
        .unwrap()
        .receipts;
    let marks = receipts.iter().map(|r| (r.incarnation, r.up_to_seq));
    assert_eq!(marks.collect::<Vec<_>>(), [(1, 2), (2, 1)]);
    assert_eq!(shard.done(receipt_ack("alice", 1, 2)), Ok(false));
    assert_eq!(
        shard
            .read()
            .receipts("alice", 0, 9, u64::MAX)
            .unwrap()
            .receipts,
        []
    );
}

#[test]
fn adding_a_device_again_is_no_change() {
    let mut shard = Shard::new();
    let before = shard.rows();
    shard.add("bob", "phone");
    assert_eq!(shard.rows(), before);
    let other = roost_proto::storage::AddDevice {
        user: "bob".into(),
        name: "phone".into(),
        key_hash: bytes::Bytes::from_static(b"other"),
    };
    assert_eq!(
        shard.done(Command::AddDevice(other)),
        Err(Code::AlreadyExists)
    );
    shard.limits.devices_max = 1;
    assert_eq!(shard.done(add("bob", "laptop")), Err(Code::TooManyDevices));
    assert_eq!(shard.rows(), before);
}

#[test]
fn receipts_merge_into_one_row_a_kind() {
    let mut shard = Shard::new();
    for position in 1..=5 {
        fill(&mut shard, position..=position);
        assert_eq!(shard.ack("bob", 1, position), Ok((position, false)));
        if position % 2 == 0 {
            shard.pump();
        }
    }
    shard.pump();
    assert_eq!(shard.effects.receipts, []);
    let receipts = shard
        .read()
        .receipts("alice", 0, 9, u64::MAX)
        .unwrap()
        .receipts;
    assert_eq!(receipts.len(), 1);
    assert_eq!((receipts[0].revision, receipts[0].up_to_seq), (3, 5));
    assert_eq!(shard.done(receipt_ack("alice", 1, 4)), Err(Code::BadCursor));
    assert_eq!(shard.done(receipt_ack("alice", 1, 3)), Ok(false));
    assert_eq!(
        shard
            .read()
            .receipts("alice", 0, 9, u64::MAX)
            .unwrap()
            .receipts,
        []
    );
    assert_eq!(shard.outbox(), []);
}

#[test]
fn a_full_outbox_refuses_acks_and_changes_nothing() {
    let mut shard = Shard::new();
    shard.limits.outbox_rows_max = 1;
    fill(&mut shard, 1..=1);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    // The row that is there can move.
    fill(&mut shard, 2..=2);
    assert_eq!(shard.ack("bob", 1, 2), Ok((2, false)));
    assert_eq!(shard.say("bob", "alice", item(1)), Ok(Status::Accepted));
    let before = shard.rows();
    assert_eq!(shard.ack("alice", 1, 1), Err(Code::Overloaded));
    assert_eq!(
        shard.done(read("bob", 1, "alice", 2)),
        Err(Code::Overloaded)
    );
    assert_eq!(shard.rows(), before);
    // What is due waits, too, and comes back later.
    shard.now_ms += TTL_MS + DAY_MS;
    assert_eq!(shard.done(expire(&["alice"])), Ok(false));
    assert_eq!(shard.seqs("alice"), [1]);
    assert_eq!(shard.read().due_expiries(shard.now_ms, 9).unwrap(), []);
    shard.pump();
    shard.now_ms += 20_000;
    assert_eq!(shard.done(expire(&["alice"])), Ok(false));
    assert_eq!(owed(&shard), [expired("bob", &[(1, 1)])]);
}

#[test]
fn inbound_rows_are_applied_once() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=1);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    let (number, item) = shard.outbox().remove(0);
    let inbound = roost_proto::storage::Inbound {
        source: 0,
        source_incarnation: 1,
        items: vec![roost_proto::storage::InboundItem {
            number,
            item: Some(item),
        }],
    };
    shard.one(Command::Inbound(inbound.clone()));
    assert_eq!(shard.effects.receipts.len(), 1);
    let before = shard.rows();
    shard.one(Command::Inbound(inbound));
    assert_eq!(shard.effects.receipts, []);
    assert_eq!(shard.rows(), before);
    let trim = OutboxTrim {
        destination: 0,
        number: 100,
    };
    assert_eq!(shard.done(Command::OutboxTrim(trim)), Ok(false));
    let heads = shard.read().outbox_heads().unwrap();
    assert_eq!((heads[0].1.rows, heads[0].1.trimmed_number), (0, 1));
}

#[test]
fn read_is_refused_beyond_what_the_device_has() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=2);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    assert_eq!(
        shard.done(read("bob", 1, "alice", 2)),
        Err(Code::NotDelivered)
    );
    assert_eq!(shard.done(read("bob", 1, "alice", 1)), Ok(false));
    let before = shard.rows();
    assert_eq!(shard.done(read("bob", 1, "alice", 1)), Ok(false));
    assert_eq!(shard.rows(), before);
}

/// A mark beyond what is delivered in order was cut in silence, and never told.
#[test]
fn a_read_mark_ahead_of_what_is_delivered_is_told_later() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=2);
    shard.add("bob", "laptop");
    fill(&mut shard, 3..=3);
    // The laptop has what came behind two entries that only the phone is to get.
    assert_eq!(shard.ack("bob", 2, 3), Ok((3, false)));
    assert_eq!(shard.done(read("bob", 2, "alice", 3)), Ok(false));
    assert_eq!(owed(&shard), []);
    assert_eq!(shard.say("alice", "bob", item(3)), Ok(Status::Delivered));
    let before = shard.rows();
    assert_eq!(shard.done(read("bob", 2, "alice", 3)), Ok(false));
    assert_eq!(shard.rows(), before, "said again, it changes nothing");

    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    let read_up_to = |up_to| ("alice".to_owned(), Status::Read, up_to, vec![]);
    assert_eq!(owed(&shard), [delivered("alice", 1), read_up_to(1)]);
    assert_eq!(shard.ack("bob", 1, 3), Ok((3, false)));
    assert_eq!(owed(&shard), [delivered("alice", 3), read_up_to(3)]);
    assert_eq!(shard.say("alice", "bob", item(3)), Ok(Status::Read));
    assert!(shard.user("bob").reads_ahead.is_empty());
}

#[test]
fn read_marks_that_wait_have_a_bound() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=1);
    shard.add("bob", "laptop");
    assert_eq!(shard.effects.users, [UserFill::Devices(2)]);
    fill(&mut shard, 2..=2);
    assert_eq!(shard.ack("bob", 2, 2), Ok((2, false)));
    assert_eq!(shard.effects.users, [UserFill::DeliveredAhead(1)]);
    for sender in 0..READS_AHEAD_MAX {
        let from = format!("sender{sender}");
        assert_eq!(shard.done(read("bob", 2, &from, 2)), Ok(false));
        let fills = [
            UserFill::ReadMarks(sender as u64 + 1),
            UserFill::ReadsAhead(sender + 1),
        ];
        assert_eq!(shard.effects.users, fills);
    }
    let before = shard.rows();
    assert_eq!(
        shard.done(read("bob", 2, "alice", 2)),
        Err(Code::Overloaded)
    );
    assert_eq!(shard.rows(), before);
    assert_eq!(shard.done(read("bob", 2, "sender7", 2)), Ok(false));
    assert_eq!(shard.ack("bob", 1, 2), Ok((2, false)));
    assert_eq!(shard.done(read("bob", 2, "alice", 2)), Ok(false));
}

/// One sender's device that acknowledges, and one that never does.
fn expire_again_and_again(shard: &mut Shard, times: u64) {
    for position in 1..=times {
        let mut item = item(position);
        item.sent_at_ms = shard.now_ms;
        item.ttl_ms = 1000;
        assert_eq!(shard.say("alice", "bob", item), Ok(Status::Accepted));
        shard.now_ms += 10_000;
        assert_eq!(shard.done(expire(&["bob"])), Ok(false));
        shard.pump();
    }
}

/// Receipts for a device that never acknowledges them grew without end.
#[test]
fn receipts_have_a_bound_and_who_misses_some_is_told() {
    let mut shard = Shard::new();
    shard.limits.receipt_bytes_max = 400;
    expire_again_and_again(&mut shard, 50);
    let alice = shard.user("alice");
    assert!(alice.receipt_bytes <= 400 && alice.receipt_bytes > 300);
    assert_eq!(
        shard.read().applied().unwrap().receipt_bytes,
        alice.receipt_bytes
    );
    let read = shard.read().receipts("alice", 0, 99, u64::MAX).unwrap();
    let first = read.receipts.first().unwrap().revision;
    assert_eq!(read.missed_up_to, first - 1, "nothing goes in silence");
    let seen: u64 = read.receipts.iter().map(receipt_bytes).sum();
    assert_eq!(seen, alice.receipt_bytes);
    let last = read.receipts.last().unwrap().revision;
    assert_eq!(last, 50);
    // Whoever has had them all is told nothing of the sort.
    let read = shard
        .read()
        .receipts("alice", first - 1, 99, u64::MAX)
        .unwrap();
    assert_eq!((read.missed_up_to, read.receipts.len()), (0, 4));
    assert_eq!(shard.done(receipt_ack("alice", 1, last)), Ok(false));
    let alice = shard.user("alice");
    assert_eq!((alice.receipt_bytes, alice.receipts_since_ms), (0, 0));
    assert_eq!(shard.read().applied().unwrap().receipt_bytes, 0);
}

#[test]
fn receipts_older_than_any_message_make_way_for_new_ones() {
    let mut shard = Shard::new();
    expire_again_and_again(&mut shard, 3);
    shard.now_ms += shard.limits.receipt_age_max_ms - 15_000;
    // The first of them is too old, the others just not.
    fill_now(&mut shard, 4);
    assert_eq!(shard.ack("bob", 1, 4), Ok((4, false)));
    shard.pump();
    let read = shard.read().receipts("alice", 0, 99, u64::MAX).unwrap();
    let revisions: Vec<_> = read.receipts.iter().map(|r| r.revision).collect();
    assert_eq!((read.missed_up_to, revisions), (1, vec![2, 3, 4]));
}

fn fill_now(shard: &mut Shard, position: u64) {
    let mut item = item(position);
    item.sent_at_ms = shard.now_ms;
    item.chain = position;
    item.position = 1;
    assert_eq!(shard.say("alice", "bob", item), Ok(Status::Accepted));
}

/// A watch that has not read yet what every device has: the rows are gone, and it must know.
#[test]
fn what_every_device_has_counts_as_missed_by_who_reads_later() {
    let mut shard = Shard::new();
    fill(&mut shard, 1..=1);
    assert_eq!(shard.ack("bob", 1, 1), Ok((1, false)));
    shard.pump();
    assert_eq!(shard.done(receipt_ack("alice", 1, 1)), Ok(false));
    let read = shard.read().receipts("alice", 0, 99, u64::MAX).unwrap();
    assert_eq!((read.missed_up_to, read.receipts.len()), (1, 0));
    let read = shard.read().receipts("alice", 1, 99, u64::MAX).unwrap();
    assert_eq!(read.missed_up_to, 0);
}

#[test]
fn nonsense_is_refused_without_a_panic() {
    let mut shard = Shard::new();
    let before = shard.rows();
    for user in ["", "a\0b", "Not Valid"] {
        assert_eq!(shard.ack(user, 1, 1), Err(Code::Invalid));
        assert_eq!(shard.done(expire(&[user])), Ok(false));
        assert_eq!(shard.say(user, "bob", item(1)), Err(Code::Invalid));
    }
    for id in ["", "a\0b"] {
        let mut bad = item(1);
        bad.id = id.into();
        assert_eq!(shard.say("alice", "bob", bad), Err(Code::Invalid));
    }
    let spoils: [fn(&mut roost_proto::storage::SendItem); 3] = [
        |item| item.chain = 0,
        |item| item.position = 0,
        |item| item.ttl_ms = 0,
    ];
    for spoil in spoils {
        let mut bad = item(1);
        spoil(&mut bad);
        assert_eq!(shard.say("alice", "bob", bad), Err(Code::Invalid));
    }
    assert_eq!(shard.rows(), before);
    let mut eternal = item(1);
    eternal.ttl_ms = u64::MAX;
    assert_eq!(shard.say("alice", "bob", eternal), Ok(Status::Accepted));
}

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use roost_proto::storage::{AckOutcome, Done};

use super::*;
use crate::config::Config;
use crate::testing::{SHARD, Script, answered, command_of, router};

/// Commits acknowledgements in steps of this many, and everything else.
fn committing(step: u64) -> Arc<Script> {
    let reached = AtomicU64::new(0);
    Arc::new(Script::new(move |_, request| match command_of(request)? {
        command::Command::Ack(ack) => {
            let wanted = ack.cursor.unwrap();
            let seq = wanted.seq.min(reached.load(Ordering::Relaxed) + step);
            reached.store(seq, Ordering::Relaxed);
            answered(outcome::Outcome::Ack(AckOutcome {
                cursor: Some(Cursor { seq, ..wanted }),
                more: seq < wanted.seq,
            }))
        }
        _ => answered(outcome::Outcome::Done(Done { more: false })),
    }))
}

fn acks(script: &Arc<Script>) -> Acks {
    let config = Config::default();
    let identity = Identity {
        user: UserId::parse("bob").unwrap(),
        device: 2,
        shard: SHARD,
    };
    let settings = Settings {
        node: String::new(),
        session: config.session,
        queue: config.queue,
    };
    Acks::new(router(script), Arc::new(identity), &settings)
}

fn cursor(seq: u64) -> Cursor {
    Cursor {
        incarnation: 1,
        seq,
    }
}

fn mark(seq: u64) -> ReadMark {
    ReadMark {
        from: "alice".to_owned(),
        up_to: Some(cursor(seq)),
    }
}

/// What was proposed, in short.
fn said(script: &Script) -> Vec<String> {
    let commands = script.proposed().into_iter();
    let said = commands.map(|command| match command {
        command::Command::Ack(ack) => {
            assert_eq!((ack.user.as_str(), ack.device), ("bob", 2));
            format!("ack {}", ack.cursor.unwrap().seq)
        }
        command::Command::Read(read) => format!("read {}", read.up_to.unwrap().seq),
        command::Command::ReceiptAck(ack) => format!("receipts {}", ack.revision),
        other => panic!("not a session's own: {other:?}"),
    });
    said.collect()
}

async fn acked(acks: &mut Acks) -> u64 {
    match acks.next().await {
        Frame::Ack(AckAnswer {
            cursor: Some(cursor),
            error: None,
        }) => cursor.seq,
        other => panic!("not a committed ack: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn acks_that_wait_are_one() {
    let script = committing(100);
    let mut acks = acks(&script);
    for seq in [5, 7, 6] {
        acks.ack(cursor(seq));
    }
    assert_eq!(acked(&mut acks).await, 7);
    assert!(acks.is_idle());
    assert_eq!(said(&script), ["ack 7"]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_meanwhile_waits_and_order_stays() {
    let script = committing(100);
    let mut acks = acks(&script);
    acks.ack(cursor(1));
    assert!(acks.next().now_or_never().is_none(), "it is on its way");
    acks.ack(cursor(2));
    acks.ack(cursor(3));
    assert_eq!(acks.read(mark(3)), None);
    acks.receipts(8);
    acks.receipts(9);
    acks.ack(cursor(4));
    assert_eq!(acked(&mut acks).await, 1, "what was dropped goes on");
    assert_eq!(acked(&mut acks).await, 4);
    assert!(matches!(acks.next().await, Frame::Read(answer) if answer.error.is_none()));
    assert!(acks.next().now_or_never().is_none());
    acks.ack(cursor(5));
    assert_eq!(acked(&mut acks).await, 5, "receipts have no answer");
    assert_eq!(said(&script), ["ack 1", "ack 4", "read 3", "ack 5"]);
    assert!(!acks.is_idle(), "receipts wait for others of their kind");
    let later = tokio::time::timeout(RECEIPTS_AFTER * 2, acks.next()).await;
    assert!(later.is_err() && acks.is_idle(), "{later:?}");
    assert_eq!(said(&script)[4..], ["receipts 9"]);
}

/// However busy a session is, its receipts are not held back for ever.
#[tokio::test(start_paused = true)]
async fn receipts_that_are_due_come_first() {
    let script = committing(100);
    let mut acks = acks(&script);
    acks.receipts(3);
    tokio::time::sleep(RECEIPTS_AFTER).await;
    acks.ack(cursor(1));
    acks.ack(Cursor {
        incarnation: 2,
        seq: 1,
    });
    assert_eq!((acked(&mut acks).await, acked(&mut acks).await), (1, 1));
    assert_eq!(said(&script), ["receipts 3", "ack 1", "ack 1"]);
}

/// A client that says one thing after the other while nothing is answered holds a bounded queue.
#[tokio::test(start_paused = true)]
async fn frames_that_alternate_do_not_pile_up() {
    let script = committing(10_000);
    let mut acks = acks(&script);
    for seq in 1..=10_000 {
        acks.ack(cursor(seq));
        acks.receipts(seq);
        drop(acks.read(mark(seq)));
    }
    assert!(acks.waiting.len() <= WAITING_MAX, "{}", acks.waiting.len());
    assert_eq!(acked(&mut acks).await, 10_000);
}

#[tokio::test(start_paused = true)]
async fn an_ack_of_another_incarnation_is_its_own() {
    let script = committing(100);
    let mut acks = acks(&script);
    acks.ack(Cursor {
        incarnation: 2,
        seq: 1,
    });
    acks.ack(cursor(9));
    assert_eq!((acked(&mut acks).await, acked(&mut acks).await), (1, 9));
}

#[tokio::test(start_paused = true)]
async fn a_long_ack_goes_in_steps_and_is_answered_once() {
    let script = committing(10);
    let mut acks = acks(&script);
    acks.ack(cursor(25));
    assert_eq!(acked(&mut acks).await, 25);
    assert_eq!(said(&script), ["ack 25", "ack 25", "ack 25"]);
}

#[tokio::test(start_paused = true)]
async fn too_many_read_marks_are_refused_and_wrong_ones() {
    let script = committing(10);
    let mut acks = acks(&script);
    for seq in 1..=WAITING_MAX as u64 {
        assert_eq!(acks.read(mark(seq)), None);
    }
    let refused = acks.read(mark(999)).unwrap().error.unwrap();
    assert_eq!(
        (refused.code(), refused.retryable),
        (Code::Overloaded, true)
    );
    let wrong = ReadMark {
        from: "Alice".to_owned(),
        ..mark(1)
    };
    let refused = acks.read(wrong).unwrap().error.unwrap();
    assert_eq!((refused.code(), refused.retryable), (Code::Invalid, false));
}

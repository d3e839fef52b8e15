#![allow(clippy::unwrap_used)]

use futures::FutureExt as _;
use futures::future::join_all;
use roost_proto::storage::{Ack, command, outcome};

use super::*;
use crate::replica::proposal::encode;
use crate::testing::{SHARD, add, follower, leader, limits, messages, noon};

const BOUNDS: Bounds = Bounds {
    batch_entries_max: 4,
    batch_bytes_max: 1 << 20,
    pending_max: 100,
    pending_bytes_max: 1 << 20,
    timeout: Duration::from_secs(5),
};

fn start(group: &Arc<Group>, bounds: Bounds) -> Proposer {
    Proposer::start(
        SHARD,
        Arc::clone(group),
        noon(),
        limits(),
        bounds,
        CancellationToken::new(),
    )
}

/// Nobody waits for it.
fn ack() -> command::Command {
    command::Command::Ack(Ack::default())
}

fn entries(group: &Group) -> u64 {
    group.state().borrow().last_log.unwrap()
}

/// Proposes what was held back until all of it waits; says how many log entries it took.
async fn at_once(bounds: Bounds, commands: Vec<command::Command>) -> u64 {
    let group = leader().await;
    let proposer = start(&group, bounds);
    proposer.set_paused(true);
    let before = entries(&group);
    let proposed = join_all(commands.into_iter().map(|c| proposer.propose(encode(c))));
    let (outcomes, ()) = futures::join!(proposed, async { proposer.set_paused(false) });
    assert!(outcomes.iter().all(Result::is_ok));
    let mut state = group.state();
    let settled = state.wait_for(|state| state.last_applied == state.last_log);
    settled.await.unwrap();
    entries(&group) - before
}

#[tokio::test(start_paused = true)]
async fn what_waits_rides_together_up_to_the_bounds() {
    let users = |count: usize| (0..count).map(|n| add(&format!("user{n}"))).collect();
    assert_eq!(at_once(BOUNDS, users(10)).await, 3, "4, 4 and 2");
    let messages = vec![
        add("bob"),
        messages("bob", 1..=3),
        messages("bob", 4..=6),
        messages("bob", 7..=20),
    ];
    assert_eq!(
        at_once(BOUNDS, messages).await,
        3,
        "messages count each, and one command is never cut"
    );
    let small = Bounds {
        batch_bytes_max: 1,
        ..BOUNDS
    };
    assert_eq!(at_once(small, users(3)).await, 3, "bytes count too");
}

#[tokio::test(start_paused = true)]
async fn commands_are_applied_in_the_order_they_came() {
    let group = leader().await;
    let proposer = start(&group, BOUNDS);
    let commands = (1..=20).map(|n| match n {
        1 => add("bob"),
        n => messages("bob", n - 1..=n - 1),
    });
    let outcomes = join_all(commands.map(|c| proposer.propose(encode(c)))).await;
    let places: Vec<u64> = outcomes
        .into_iter()
        .skip(1)
        .map(|outcome| match outcome.unwrap().outcome {
            Some(outcome::Outcome::Send(send)) => send.answers[0].place.unwrap().seq,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(places, (1..=19).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_recovers() {
    let group = leader().await;
    let by_count = Bounds {
        pending_max: 2,
        ..BOUNDS
    };
    let by_bytes = Bounds {
        pending_bytes_max: 20,
        ..BOUNDS
    };
    for bounds in [by_count, by_bytes] {
        let proposer = start(&group, bounds);
        proposer.set_paused(true);
        // Nothing here waits, so the task has not taken anything yet.
        let mut held = vec![];
        let refused = loop {
            let mut proposed = Box::pin(proposer.propose(encode(add("bob"))));
            match proposed.as_mut().now_or_never() {
                None => held.push(proposed),
                Some(outcome) => break outcome,
            }
            assert!(held.len() < 10);
        };
        assert!(matches!(refused, Err(Error::Overloaded { .. })));
        assert_eq!(held.len(), 2);
        proposer.set_paused(false);
        assert!(join_all(held).await.iter().all(Result::is_ok));
        assert_eq!(proposer.pending_bytes.load(Ordering::Relaxed), 0);
        assert!(proposer.propose(encode(add("bob"))).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_proposals_back() {
    let group = leader().await;
    let proposer = start(&group, BOUNDS);
    proposer.set_paused(true);
    let held = proposer.propose(encode(add("bob")));
    let held = tokio::time::timeout(Duration::from_secs(60), held).await;
    assert!(held.is_err());
    let before = entries(&group);
    proposer.set_paused(false);
    // The one that nobody waits for any more is not proposed.
    let outcome = proposer.propose(encode(messages("bob", 1..=1))).await;
    let Some(outcome::Outcome::Send(send)) = outcome.unwrap().outcome else {
        panic!("not a send's outcome");
    };
    assert!(send.answers[0].error.is_some(), "bob was never added");
    assert_eq!(entries(&group), before + 1);
}

#[tokio::test(start_paused = true)]
async fn only_a_leader_proposes() {
    let group = follower().await;
    let proposer = start(&group, BOUNDS);
    let refused = proposer.propose(encode(add("bob"))).await;
    assert!(
        matches!(refused, Err(Error::NotLeader { leader: None })),
        "{refused:?}"
    );
    group.shutdown().await;
    let refused = proposer.propose(encode(add("bob"))).await;
    assert!(matches!(refused, Err(Error::NoReplica)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_waits_for_company_and_not_for_long() {
    let group = leader().await;
    let proposer = start(&group, BOUNDS);
    tokio::time::sleep(GATHER).await;
    let began = Instant::now();
    assert!(proposer.propose(encode(ack())).await.is_ok());
    assert!(began.elapsed() < GATHER, "an idle shard proposes at once");

    let before = entries(&group);
    let early = proposer.propose(encode(ack()));
    let later = async {
        tokio::time::sleep(GATHER / 5).await;
        proposer.propose(encode(ack())).await
    };
    let (early, later) = futures::join!(early, later);
    assert!(early.is_ok() && later.is_ok());
    assert!(began.elapsed() >= GATHER, "a busy one gathers");
    assert_eq!(entries(&group), before + 1);

    let (before, began) = (entries(&group), Instant::now());
    let patient = proposer.propose(encode(ack()));
    let urgent = async {
        tokio::time::sleep(GATHER / 5).await;
        proposer.propose(encode(add("bob"))).await
    };
    let (patient, urgent) = futures::join!(patient, urgent);
    assert!(patient.is_ok() && urgent.is_ok());
    assert!(began.elapsed() < GATHER, "it rides with what is urgent");
    assert_eq!(entries(&group), before + 1);
}

#![allow(clippy::unwrap_used)]

use roost_proto::peer::response::Response as Answer;
use roost_proto::storage::{Done, outcome};

use super::*;
use crate::testing::{SHARD, Script, add, answered, failed, node, router};

const WITHIN: Duration = Duration::from_secs(5);

fn done() -> Option<Response> {
    answered(outcome::Outcome::Done(Done { more: false }))
}

fn not_leader(leader: Option<NodeId>) -> Option<Response> {
    failed(replica::Error::NotLeader { leader })
}

async fn ask(router: &Router) -> Result<Outcome, Error> {
    router.propose(SHARD, add("bob"), WITHIN).await
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_followed_at_once_and_remembered() {
    let script = Arc::new(Script::new(|at, _| match at == node(3) {
        true => done(),
        false => not_leader(Some(node(3))),
    }));
    let router = router(&script);
    router.leaders.lock().insert(SHARD, node(1));
    let started = Instant::now();
    ask(&router).await.unwrap();
    assert_eq!(script.called(), [node(1), node(3)]);
    assert!(started.elapsed() < BACK_OFF_MIN, "{:?}", started.elapsed());
    ask(&router).await.unwrap();
    assert_eq!(script.called()[2..], [node(3)]);
}

/// Two nodes that name each other do not keep anybody busy.
#[tokio::test(start_paused = true)]
async fn hints_that_go_in_a_circle_are_followed_slowly() {
    let script = Arc::new(Script::new(|at, _| {
        not_leader(Some(node(if at == node(1) { 2 } else { 1 })))
    }));
    let started = Instant::now();
    let error = ask(&router(&script)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(started.elapsed() >= WITHIN);
    let calls = script.called().len() as u32;
    assert!(
        calls <= 2 * (WITHIN.as_millis() / BACK_OFF_MAX.as_millis()) as u32 + 12,
        "{calls}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_every_replica_is_asked_until_the_deadline() {
    let script = Arc::new(Script::new(|_, _| None));
    let started = Instant::now();
    let error = ask(&router(&script)).await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { shard } if shard == SHARD),
        "{error}"
    );
    let took = started.elapsed();
    assert!(took >= WITHIN && took < WITHIN + BACK_OFF_MAX, "{took:?}");
    for number in 1..=3 {
        assert!(script.called().contains(&node(number)), "node {number}");
    }
}

/// A node whose disk hangs cannot learn that others lead by now: the replica here would be asked for ever. Method: it
/// is what placement and memory name first, and never answers; the others know who leads.
#[tokio::test(start_paused = true)]
async fn a_leader_that_has_just_failed_is_not_asked_again_at_once() {
    let placed = router(&Arc::new(Script::new(|_, _| None)));
    for tries in 0..6 {
        for silent in 1..=3 {
            placed.leaders.lock().insert(SHARD, node(silent));
            let next = placed.candidate(SHARD, tries, Some(node(silent))).unwrap();
            assert_ne!(next, node(silent), "try {tries}");
            let hinted = placed.candidate(SHARD, tries, None).unwrap();
            assert_eq!(hinted, node(silent), "a hint counts until it fails");
        }
    }
}

/// What passes is waited for: no leader yet, a fate that is unknown, a node that starts or stops, a broken one.
#[tokio::test(start_paused = true)]
async fn what_passes_is_asked_again() {
    let passing = || {
        [
            replica::Error::NotLeader { leader: None },
            replica::Error::Unknown,
            replica::Error::NoReplica,
            replica::Error::Stopping,
            replica::Error::Internal("broken".to_owned()),
        ]
    };
    let left = Mutex::new(passing().to_vec());
    let script = Arc::new(Script::new(move |_, _| match left.lock().pop() {
        Some(error) => failed(error),
        None => done(),
    }));
    ask(&router(&script)).await.unwrap();
    assert_eq!(script.called().len(), passing().len() + 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_leader_refuses_is_not_asked_again() {
    for (refusal, expected) in [
        (
            replica::Error::Overloaded { retry_after_ms: 70 },
            Error::Overloaded { retry_after_ms: 70 },
        ),
        (replica::Error::DiskLow, Error::DiskLow),
    ] {
        let script = Arc::new(Script::new(move |_, _| failed(refusal.clone())));
        let error = ask(&router(&script)).await.unwrap_err();
        assert_eq!(error.to_string(), expected.to_string());
        assert_eq!(script.called().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_another_question_is_an_error() {
    let script = Arc::new(Script::new(|_, _| {
        Some(Response {
            response: Some(Answer::HandOver(roost_proto::peer::HandOverResponse {})),
        })
    }));
    let error = ask(&router(&script)).await.unwrap_err();
    assert!(matches!(error, Error::Internal(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_nobody_places_is_unavailable_at_once() {
    let script = Arc::new(Script::new(|_, _| done()));
    let asked = router(&script)
        .propose(ShardId(99), add("bob"), WITHIN)
        .await;
    assert!(matches!(asked, Err(Error::Unavailable { .. })));
    assert!(script.called().is_empty());
}

#![allow(clippy::unwrap_used)]

use roost_proto::storage::SendOutcome;
use roost_proto::v1::Cursor;

use super::*;
use crate::config::Config;
use crate::testing::{SHARD, Script, answered, command_of, failed, router};

/// Accepts everything.
fn accepting() -> Arc<Script> {
    Arc::new(Script::new(|_, request| {
        let Some(command::Command::Send(send)) = command_of(request) else {
            return None;
        };
        let answers = send.items.iter().map(|item| SendAnswer {
            id: item.id.clone(),
            to: send.to.clone(),
            status: Status::Accepted.into(),
            place: Some(Cursor::default()),
            error: None,
        });
        answered(outcome::Outcome::Send(SendOutcome {
            answers: answers.collect(),
        }))
    }))
}

fn sends(script: &Arc<Script>) -> Sends {
    let mut config = Config::default();
    config.session.in_flight_max = 5;
    config.session.request_timeout_ms = 1_000;
    config.queue.body_bytes_max = 10;
    config.queue.ttl_max_ms = 60_000;
    config.queue.ttl_default_ms = 30_000;
    let identity = Identity {
        user: UserId::parse("alice").unwrap(),
        device: 3,
        shard: SHARD,
    };
    let settings = Settings {
        node: String::new(),
        session: config.session,
        queue: config.queue,
    };
    Sends::new(router(script), Arc::new(identity), &settings)
}

fn send(to: &str, position: u64) -> Send {
    Send {
        id: format!("{to}{position}"),
        to: to.to_owned(),
        chain: 1,
        position,
        kind: Kind::Text.into(),
        body: bytes::Bytes::from_static(b"hello"),
        ..Send::default()
    }
}

/// The ids of each batch so far, with its recipient.
fn batches(script: &Script) -> Vec<(String, Vec<String>)> {
    let commands = script.proposed().into_iter();
    let batches = commands.map(|command| match command {
        command::Command::Send(send) => {
            assert_eq!((send.from.as_str(), send.device), ("alice", 3));
            (send.to, send.items.into_iter().map(|i| i.id).collect())
        }
        other => panic!("not a send: {other:?}"),
    });
    batches.collect()
}

fn code(answer: Option<SendAnswer>) -> Code {
    let answer = answer.expect("answered at once");
    assert_eq!(answer.status(), Status::Refused);
    answer.error.unwrap().code()
}

async fn all(sends: &mut Sends) -> Vec<String> {
    let mut ids = Vec::new();
    while !sends.is_idle() {
        ids.extend(sends.next().await.into_iter().map(|answer| answer.id));
    }
    ids
}

#[tokio::test(start_paused = true)]
async fn a_conversation_has_one_batch_on_its_way_and_others_do_not_wait() {
    let script = accepting();
    let mut sends = sends(&script);
    for (to, position) in [("bob", 1), ("bob", 2), ("carol", 1), ("bob", 3)] {
        assert_eq!(sends.push(send(to, position)), None);
    }
    let answered = all(&mut sends).await;
    let batch = |to: &str, ids: &[&str]| {
        (
            to.to_owned(),
            ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>(),
        )
    };
    let mut batches = batches(&script);
    assert_eq!(batches.pop(), Some(batch("bob", &["bob2", "bob3"])));
    batches.sort();
    assert_eq!(
        batches,
        [batch("bob", &["bob1"]), batch("carol", &["carol1"])]
    );
    let of_bob: Vec<&String> = answered.iter().filter(|id| id.starts_with("bob")).collect();
    assert_eq!(of_bob, ["bob1", "bob2", "bob3"]);
    assert!(sends.conversations.is_empty(), "nothing is left behind");
}

#[tokio::test(start_paused = true)]
async fn more_than_the_bound_is_refused_until_something_is_answered() {
    let script = accepting();
    let mut sends = sends(&script);
    for position in 1..=5 {
        assert_eq!(sends.push(send("bob", position)), None);
    }
    assert_eq!(code(sends.push(send("bob", 6))), Code::Overloaded);
    assert_eq!(sends.next().await.len(), 1);
    assert_eq!(sends.push(send("bob", 6)), None);
    assert_eq!(code(sends.push(send("bob", 7))), Code::Overloaded);
    assert_eq!(all(&mut sends).await.len(), 5);
    assert_eq!(sends.in_flight, 0);
}

/// A recipient whose shard does not answer has his share in flight, and the others the rest.
#[tokio::test(start_paused = true)]
async fn one_recipient_leaves_room_for_others() {
    let script = accepting();
    let mut sends = sends(&script);
    sends.settings.session.conversation_in_flight_max = 3;
    for position in 1..=3 {
        assert_eq!(sends.push(send("bob", position)), None);
    }
    assert_eq!(code(sends.push(send("bob", 4))), Code::Overloaded);
    assert_eq!(sends.push(send("carol", 1)), None);
    assert_eq!(sends.push(send("dave", 1)), None);
    assert_eq!(code(sends.push(send("erin", 1))), Code::Overloaded);
    // Answers make room, in the conversation too; what was refused took no position and comes again.
    while sends
        .conversations
        .contains_key(&UserId::parse("bob").unwrap())
    {
        sends.next().await;
    }
    for position in 4..=6 {
        assert_eq!(sends.push(send("bob", position)), None);
    }
    assert_eq!(code(sends.push(send("bob", 7))), Code::Overloaded);
    all(&mut sends).await;
    assert!(sends.conversations.is_empty(), "nothing is left behind");
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_so_many_messages() {
    let script = accepting();
    let mut sends = sends(&script);
    sends.settings.session.in_flight_max = 1_000;
    for position in 1..=BATCH_ITEMS as u64 + 11 {
        assert_eq!(sends.push(send("bob", position)), None);
    }
    all(&mut sends).await;
    let sizes: Vec<usize> = batches(&script).iter().map(|(_, ids)| ids.len()).collect();
    assert_eq!(sizes, [1, BATCH_ITEMS, 10]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_take_a_position_is_refused_at_once() {
    let script = accepting();
    let mut sends = sends(&script);
    let wrong: [fn(&mut Send); 4] = [
        |send| send.id.clear(),
        |send| send.chain = 0,
        |send| send.position = 0,
        |send| send.to = "Bob".to_owned(),
    ];
    for wrong in wrong {
        let mut send = send("bob", 1);
        wrong(&mut send);
        assert_eq!(code(sends.push(send)), Code::Invalid);
    }
    assert!(sends.is_idle());
    assert_eq!(sends.in_flight, 0);
}

/// A refusal that takes a position goes through apply, without the body.
#[tokio::test(start_paused = true)]
async fn what_is_out_of_bounds_is_refused_in_its_place() {
    let script = accepting();
    let mut sends = sends(&script);
    let mut long = send("bob", 1);
    long.body = bytes::Bytes::from(vec![0; 11]);
    let mut late = send("bob", 2);
    late.ttl_ms = 60_001;
    let mut odd = send("bob", 3);
    odd.kind = Kind::Unspecified.into();
    for send in [long, late, odd, send("bob", 4)] {
        assert_eq!(sends.push(send), None);
    }
    all(&mut sends).await;
    let mut items = Vec::new();
    for command in script.proposed() {
        if let command::Command::Send(send) = command {
            items.extend(send.items);
        }
    }
    let refused: Vec<Code> = items.iter().map(SendItem::refuse).collect();
    assert_eq!(
        refused,
        [
            Code::TooLarge,
            Code::Invalid,
            Code::Invalid,
            Code::Unspecified
        ]
    );
    assert!(items[..3].iter().all(|item| item.body.is_empty()));
    assert_eq!(items[3].ttl_ms, 30_000, "the default");
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_everything_is_refused_and_may_come_again() {
    let script = Arc::new(Script::new(|_, _| {
        failed(crate::replica::Error::NotLeader { leader: None })
    }));
    let mut sends = sends(&script);
    assert_eq!(sends.push(send("bob", 1)), None);
    let answers = sends.next().await;
    let error = answers[0].error.clone().unwrap();
    assert_eq!((error.code(), error.retryable), (Code::Unavailable, true));
    assert_eq!(
        (answers[0].id.as_str(), answers[0].to.as_str()),
        ("bob1", "bob")
    );
}

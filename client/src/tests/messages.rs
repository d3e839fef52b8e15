//! Sends: order, positions, refusals, windows.

use std::time::Duration;

use roost_proto::v1::{Code, Status};

use super::server::{Server, error, gap, soon};
use crate::{Client, Error, Options, SendHandle, SendOptions};

async fn send(client: &Client, ids: &str) -> Vec<SendHandle> {
    let mut handles = Vec::new();
    for id in ids.chars() {
        let options = SendOptions::default().id(id);
        let handle = soon(client.send("bob", "hello", options)).await;
        handles.push(handle.expect("taken"));
    }
    handles
}

async fn send_to(client: &Client, to: &str, id: &str) -> SendHandle {
    let options = SendOptions::default().id(id);
    soon(client.send(to, "hello", options))
        .await
        .expect("taken")
}

async fn send_body(client: &Client, id: &str, body: &'static str) -> SendHandle {
    let options = SendOptions::default().id(id);
    soon(client.send("bob", body, options))
        .await
        .expect("taken")
}

/// E.g. `"a:1 b:QUEUE_FULL"`.
async fn answers(handles: Vec<SendHandle>) -> String {
    let mut words = Vec::new();
    for handle in handles {
        let answer = soon(handle).await.expect("an answer");
        words.push(match (answer.place, answer.error) {
            (Some(place), None) => format!("{}:{}", answer.id, place.seq),
            (_, Some(refusal)) => format!("{}:{}", answer.id, refusal.code.as_str_name()),
            (None, None) => panic!("neither place nor error"),
        });
    }
    words.join(" ")
}

/// The connection breaks with answers outstanding: what is unanswered goes out again, in order, unchanged, and every
/// caller gets one answer.
#[tokio::test]
async fn a_new_session_gets_what_is_unanswered() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "abcd").await;
    let mut first = server.welcome().await;
    let (words, sends) = first.hear_sends(4).await;
    assert_eq!(words, "a1 b2 c3 d4");
    first.accept(&sends[0], 1).await;
    first.accept(&sends[2], 3).await;
    let (mut handles, rest) = {
        let mut rest = handles;
        let head = vec![rest.remove(0), rest.remove(1)];
        (head, rest)
    };
    assert_eq!(answers(std::mem::take(&mut handles)).await, "a:1 c:3");
    drop(first);

    let mut second = server.welcome().await;
    let (words, again) = second.hear_sends(2).await;
    assert_eq!(words, "b2 d4");
    assert_eq!((&again[0], &again[1]), (&sends[1], &sends[3]));
    second.accept(&again[0], 2).await;
    second.accept(&again[1], 4).await;
    assert_eq!(answers(rest).await, "b:2 d:4");
}

/// An overload in the middle: those behind it get gaps, and all go out again from there, once, when all are answered.
#[tokio::test]
async fn a_gap_is_filled_from_the_expected_position() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "abc").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(3).await;
    session.accept(&sends[0], 1).await;
    session.refuse(&sends[1], error(Code::Overloaded)).await;
    session.hear_nothing_for(Duration::from_millis(60)).await;
    session.refuse(&sends[2], gap(2)).await;
    let (words, again) = session.hear_sends(2).await;
    assert_eq!(words, "b2 c3");
    assert_eq!(again[0].chain, sends[0].chain);
    session.accept(&again[0], 2).await;
    session.accept(&again[1], 3).await;
    assert_eq!(answers(handles).await, "a:1 b:2 c:3");
}

/// A server that has forgotten the chain: a new one, from position 1, ids unchanged, in order.
#[tokio::test]
async fn an_unknown_chain_is_replaced() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "abc").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(3).await;
    session.accept(&sends[0], 1).await;
    session.refuse(&sends[1], error(Code::UnknownChain)).await;
    session.refuse(&sends[2], error(Code::UnknownChain)).await;
    let (words, again) = session.hear_sends(2).await;
    assert_eq!(words, "b1 c2");
    assert_ne!(again[0].chain, sends[0].chain);
    assert_eq!(again[0].chain, again[1].chain);
    for (seq, send) in (2..).zip(&again) {
        session.accept(send, seq).await;
    }
    assert_eq!(answers(handles).await, "a:1 b:2 c:3");
    // What follows stays on the new chain.
    let more = send(&client, "d").await;
    let (words, next) = session.hear_sends(1).await;
    assert_eq!((words.as_str(), next[0].chain), ("d3", again[0].chain));
    session.accept(&next[0], 4).await;
    assert_eq!(answers(more).await, "d:4");
}

/// Stored answers of an earlier run, or a refusal before the shard, take no position: the server then wants a position
/// that lies before everything unanswered.
#[tokio::test]
async fn positions_that_were_never_taken_start_a_new_chain() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "abc").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(3).await;
    session.refuse(&sends[0], error(Code::TooLarge)).await;
    session.refuse(&sends[1], gap(1)).await;
    session.refuse(&sends[2], gap(1)).await;
    let (words, again) = session.hear_sends(2).await;
    assert_eq!(words, "b1 c2");
    assert_ne!(again[0].chain, sends[0].chain);
    session.accept(&again[0], 1).await;
    session.accept(&again[1], 2).await;
    assert_eq!(answers(handles).await, "a:TOO_LARGE b:1 c:2");
}

#[tokio::test]
async fn the_pipeline_goes_on_behind_a_refusal() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "abc").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(3).await;
    session.accept(&sends[0], 1).await;
    session.refuse(&sends[1], error(Code::QueueFull)).await;
    session.accept(&sends[2], 2).await;
    assert_eq!(answers(handles).await, "a:1 b:QUEUE_FULL c:2");
    session.hear_nothing_for(Duration::from_millis(60)).await;
}

/// One recipient's trouble is not another's.
#[tokio::test]
async fn conversations_stand_still_alone() {
    let mut server = Server::start().await;
    let client = server.client();
    let bob = send(&client, "a").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(1).await;
    let mut overloaded = error(Code::Overloaded);
    overloaded.retry_after_ms = 600_000;
    session.refuse(&sends[0], overloaded).await;
    let carol = send_to(&client, "carol", "x").await;
    let send = session.hear_send().await;
    assert_eq!((send.to.as_str(), send.position), ("carol", 1));
    session.accept(&send, 1).await;
    assert_eq!(answers(vec![carol]).await, "x:1");
    drop(bob);
}

/// The server's window bounds what is on its way, the client's own bound what callers may hand over.
#[tokio::test]
async fn windows_are_kept() {
    let mut server = Server::start().await;
    let options = Options {
        pending_max: 3,
        ..server.options()
    };
    let client = Client::connect(options).expect("sound options");
    let mut session = server.accept().await;
    session.welcome(2, 0).await;
    let handles = send(&client, "abc").await;
    let (words, sends) = session.hear_sends(2).await;
    assert_eq!(words, "a1 b2");
    session.hear_nothing_for(Duration::from_millis(60)).await;
    let fourth = client.send("bob", "hello", SendOptions::default().id("d"));
    tokio::pin!(fourth);
    let early = tokio::time::timeout(Duration::from_millis(60), &mut fourth).await;
    assert!(early.is_err(), "the fourth waits for room");

    session.accept(&sends[0], 1).await;
    let fourth = soon(fourth).await.expect("taken");
    let (words, third) = session.hear_sends(1).await;
    assert_eq!(words, "c3");
    session.accept(&sends[1], 2).await;
    session.accept(&third[0], 3).await;
    let (words, last) = session.hear_sends(1).await;
    assert_eq!(words, "d4");
    session.accept(&last[0], 4).await;
    assert_eq!(answers(handles).await, "a:1 b:2 c:3");
    assert_eq!(answers(vec![fourth]).await, "d:4");
}

/// A conversation that gets no answers has its share of the server's window on its way, and others go on in the rest;
/// with an answer it goes on too.
#[tokio::test]
async fn a_conversation_without_answers_leaves_room_in_the_window() {
    let mut server = Server::start().await;
    let client = server.client();
    let session = server.accept();
    let handles = send(&client, "abcd").await;
    let mut session = session.await;
    session.welcome_sharing(3, 2).await;
    let (words, sends) = session.hear_sends(2).await;
    assert_eq!(words, "a1 b2");
    session.hear_nothing_for(Duration::from_millis(60)).await;
    for id in ["x", "y"] {
        let carol = send_to(&client, "carol", id).await;
        let send = session.hear_send().await;
        assert_eq!((send.to.as_str(), send.id.as_str()), ("carol", id));
        session.accept(&send, 1).await;
        assert_eq!(answers(vec![carol]).await, format!("{id}:1"));
    }
    session.accept(&sends[0], 1).await;
    let (words, _) = session.hear_sends(1).await;
    assert_eq!(words, "c3");
    drop(handles);
}

/// The same for what callers may hand over: who sends to another recipient does not wait.
#[tokio::test]
async fn a_conversation_without_answers_leaves_room_for_other_callers() {
    let mut server = Server::start().await;
    let client = Client::connect(Options {
        pending_max: 3,
        conversation_pending_max: 2,
        ..server.options()
    });
    let client = client.expect("sound options");
    let mut session = server.welcome().await;
    let handles = send(&client, "ab").await;
    let (_, sends) = session.hear_sends(2).await;
    let third = client.send("bob", "hello", SendOptions::default().id("c"));
    tokio::pin!(third);
    let early = tokio::time::timeout(Duration::from_millis(60), &mut third).await;
    assert!(early.is_err(), "the third to Bob waits for room");
    let carol = send_to(&client, "carol", "x").await;
    let send = session.hear_send().await;
    session.accept(&send, 1).await;
    assert_eq!(answers(vec![carol]).await, "x:1");
    session.accept(&sends[0], 1).await;
    let third = soon(third).await.expect("taken");
    drop((handles, third));
}

/// Two callers, one id: one message on the wire, the same answer for both.
#[tokio::test]
async fn an_id_waits_for_its_answer_once() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "aa").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(1).await;
    session.accept(&sends[0], 1).await;
    assert_eq!(answers(handles).await, "a:1 a:1");
    session.hear_nothing_for(Duration::from_millis(60)).await;
}

/// The clock was measured at a node whose clock is wrong: another greeting, another measure, the same id.
#[tokio::test]
async fn a_clock_ahead_is_measured_again() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "a").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(1).await;
    session.refuse(&sends[0], error(Code::ClockAhead)).await;
    let mut session = server.welcome().await;
    let (words, again) = session.hear_sends(1).await;
    assert_eq!(words, "a1");
    assert!(again[0].sent_at_ms <= 1_000_000);
    session.accept(&again[0], 1).await;
    assert_eq!(answers(handles).await, "a:1");
}

#[tokio::test]
async fn what_is_unanswered_at_the_end_says_why() {
    let mut server = Server::start().await;
    let client = server.client();
    let handles = send(&client, "ab").await;
    let mut session = server.welcome().await;
    let (_, sends) = session.hear_sends(2).await;
    session.answer(&sends[0], Status::Read, 1).await;
    session.goodbye(Code::Unauthenticated, &[]).await;
    let mut results = Vec::new();
    for handle in handles {
        results.push(soon(handle).await);
    }
    assert!(matches!(&results[0], Ok(answer) if answer.status == Status::Read));
    assert!(matches!(&results[1], Err(Error::Unauthenticated(_))));
    let late = client.send("bob", "late", SendOptions::default()).await;
    match late {
        Ok(handle) => assert!(matches!(soon(handle).await, Err(Error::Unauthenticated(_)))),
        Err(error) => assert!(matches!(error, Error::Unauthenticated(_))),
    }
}

/// A body larger than the server takes is refused at once and never sent, whether it was handed over before the
/// greeting or after it; what comes behind it goes on, on the same session.
#[tokio::test]
async fn a_body_that_is_too_large_is_refused_here() {
    let mut server = Server::start().await;
    let client = server.client();
    let early = vec![
        send_body(&client, "a", "hello").await,
        send_body(&client, "b", "more than ten").await,
        send_body(&client, "c", "hello").await,
    ];
    let mut session = server.welcome().await;
    let (words, sends) = session.hear_sends(2).await;
    assert_eq!(words, "a1 c2");
    session.accept(&sends[0], 1).await;
    session.accept(&sends[1], 2).await;
    assert_eq!(answers(early).await, "a:1 b:TOO_LARGE c:2");

    let late = vec![
        send_body(&client, "d", "more than ten").await,
        send_body(&client, "e", "ten bytes!").await,
    ];
    let (words, sends) = session.hear_sends(1).await;
    assert_eq!(words, "e3");
    session.accept(&sends[0], 3).await;
    assert_eq!(answers(late).await, "d:TOO_LARGE e:3");
}

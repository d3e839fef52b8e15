//! Waiting for delivered and read.

use std::time::Duration;

use roost_proto::v1::{self, Status, server_frame};

use super::server::{Server, Session, error, place, soon};
use crate::{Answer, Client, Error, SendOptions};

async fn watching() -> (Server, Client, Session) {
    let mut server = Server::start().await;
    let client = Client::connect(server.options().watch()).expect("sound options");
    let session = server.welcome().await;
    assert!(session.hello.watch && session.hello.attach.is_none());
    (server, client, session)
}

/// Sends `id` and has it accepted at `seq`.
async fn sent(client: &Client, session: &mut Session, id: &str, seq: u64) -> (v1::Send, Answer) {
    let options = SendOptions::default().id(id);
    let handle = client.send("bob", "hello", options).await.expect("taken");
    let send = session.hear_send().await;
    session.accept(&send, seq).await;
    (send, soon(handle).await.expect("accepted"))
}

/// The watch may not have seen everything: it asks at once; then receipts settle the rest.
#[tokio::test]
async fn receipts_settle_what_is_open() {
    let (_server, client, mut session) = watching().await;
    session.watching().await;
    let (_, first) = sent(&client, &mut session, "a", 1).await;
    let (_, second) = sent(&client, &mut session, "b", 2).await;
    let serve = async {
        // Sent before or after the notice was taken in: asked about or not, the answer is the same.
        session.receipt(Status::Delivered, 1).await;
        session.receipt(Status::Read, 2).await;
        loop {
            let send = session.hear_send().await;
            session.answer(&send, Status::Accepted, 0).await;
        }
    };
    let wait = async {
        let first = soon(client.wait_status(&first, Status::Delivered)).await;
        let second = soon(client.wait_status(&second, Status::Read)).await;
        (
            first.expect("settled").status,
            second.expect("settled").status,
        )
    };
    tokio::select! {
        (first, second) = wait => {
            assert!(first == Status::Delivered || first == Status::Read);
            assert_eq!(second, Status::Read);
        }
        () = serve => {}
    }
}

/// A receipt may overtake the answer to its message.
#[tokio::test]
async fn a_receipt_before_its_answer_counts() {
    let (_server, client, mut session) = watching().await;
    session.watching().await;
    // Taken in for sure: an answer came behind it.
    sent(&client, &mut session, "a", 1).await;
    let options = SendOptions::default().id("b");
    let handle = client.send("bob", "hello", options).await.expect("taken");
    let send = session.hear_send().await;
    session.receipt(Status::Delivered, 2).await;
    session.accept(&send, 2).await;
    let answer = soon(handle).await.expect("accepted");
    let settled = soon(client.wait_status(&answer, Status::Delivered)).await;
    assert_eq!(settled.expect("settled").status, Status::Delivered);
}

/// Receipts may have been missed before each notice: what is open is asked about under the same id, without its body.
#[tokio::test]
async fn each_watch_asks_about_what_is_open() {
    let (mut server, client, mut session) = watching().await;
    session.watching().await;
    sent(&client, &mut session, "a", 1).await;
    let (send, answer) = sent(&client, &mut session, "b", 2).await;
    let wait = soon(client.wait_status(&answer, Status::Delivered));
    let serve = async {
        drop(session);
        let mut session = server.welcome().await;
        session.watching().await;
        let question = session.hear_send().await;
        assert_eq!((&question.id, question.chain), (&send.id, send.chain));
        assert_eq!(question.position, send.position);
        assert!(question.body.is_empty());
        session.answer(&question, Status::Accepted, 2).await;
        // Again, after a change of leader.
        session.watching().await;
        let question = session.hear_send().await;
        session.answer(&question, Status::Delivered, 2).await;
        session
    };
    let (settled, _session) = tokio::join!(wait, serve);
    assert_eq!(settled.expect("settled").status, Status::Delivered);
}

/// A conversation whose questions get no answer, or a refusal, holds up its own questions only.
#[tokio::test]
async fn questions_wait_in_their_own_conversation() {
    let (mut server, client, mut session) = watching().await;
    let mut open = Vec::new();
    for (to, id) in [("bob", "a"), ("bob", "b"), ("bob", "c"), ("carol", "x")] {
        let options = SendOptions::default().id(id);
        let handle = client.send(to, "hello", options).await.expect("taken");
        let send = session.hear_send().await;
        session.accept(&send, 1).await;
        open.push(soon(handle).await.expect("accepted"));
    }
    drop(session);
    let mut session = server.accept().await;
    session.welcome_sharing(3, 2).await;
    session.watching().await;
    let waits = open
        .iter()
        .map(|answer| client.wait_status(answer, Status::Delivered));
    let mut waits: Vec<_> = waits.map(Box::pin).collect();
    let carols = waits.pop().expect("four waits");
    let bobs = futures::future::join_all(waits);
    let serve = async {
        let mut of_bob = Vec::new();
        for _ in 0..3 {
            let question = session.hear_send().await;
            if question.to == "carol" {
                session.answer(&question, Status::Delivered, 1).await;
            } else {
                of_bob.push(question);
            }
        }
        session.hear_nothing_for(Duration::from_millis(60)).await;
        of_bob
    };
    // Two of Bob's three are on their way for good; Carol's is asked and answered beside them.
    let asked = tokio::select! {
        _ = bobs => panic!("nothing of Bob's was answered"),
        (settled, asked) = async { tokio::join!(soon(carols), soon(serve)) } => {
            assert_eq!(settled.expect("settled").status, Status::Delivered);
            asked
        }
    };
    assert_eq!(asked.len(), 2, "{asked:?}");

    // Refused, they pause for long; what is open in another conversation is asked about all the same.
    let mut overloaded = error(v1::Code::Overloaded);
    overloaded.retry_after_ms = 600_000;
    for question in &asked {
        session.refuse(question, overloaded.clone()).await;
    }
    session.watching().await;
    let again = open.last().expect("Carol's");
    let wait = soon(client.wait_status(again, Status::Delivered));
    let serve = async {
        loop {
            let question = session.hear_send().await;
            if question.to == "carol" {
                session.answer(&question, Status::Delivered, 1).await;
                return;
            }
            session.refuse(&question, overloaded.clone()).await;
        }
    };
    let (settled, ()) = tokio::join!(wait, soon(serve));
    assert_eq!(settled.expect("settled").status, Status::Delivered);
}

/// A watermark speaks only of what had not been reported expired before: a message of an earlier watch waits for its
/// answer.
#[tokio::test]
async fn a_mark_does_not_hide_an_expiry() {
    let (mut server, client, mut session) = watching().await;
    session.watching().await;
    sent(&client, &mut session, "a", 1).await;
    let (_, answer) = sent(&client, &mut session, "b", 2).await;
    drop(session);
    let wait = soon(client.wait_status(&answer, Status::Delivered));
    let serve = async {
        let mut session = server.welcome().await;
        session.watching().await;
        session.receipt(Status::Delivered, 3).await;
        let question = session.hear_send().await;
        session.answer(&question, Status::Expired, 2).await;
        session
    };
    let (settled, _session) = tokio::join!(wait, serve);
    assert_eq!(settled.expect("settled").status, Status::Expired);
}

#[tokio::test]
async fn an_expired_message_is_told() {
    let (_server, client, mut session) = watching().await;
    session.watching().await;
    sent(&client, &mut session, "a", 1).await;
    let (_, answer) = sent(&client, &mut session, "b", 2).await;
    let wait = soon(client.wait_status(&answer, Status::Read));
    let serve = session.say(server_frame::Frame::Receipts(v1::Receipts {
        receipts: vec![v1::Receipt {
            peer: "bob".to_owned(),
            status: Status::Expired as i32,
            incarnation: place(0).incarnation,
            expired: vec![v1::Range { first: 2, last: 2 }],
            ..v1::Receipt::default()
        }],
        missed_up_to: 0,
    }));
    let (settled, ()) = tokio::join!(wait, serve);
    assert_eq!(settled.expect("settled").status, Status::Expired);
}

/// Receipts were dropped, or this watch was too slow for them: what is open is asked about, and no watermark speaks of it
/// before the answer.
#[tokio::test]
async fn what_was_missed_is_asked_about() {
    let (_server, client, mut session) = watching().await;
    session.watching().await;
    sent(&client, &mut session, "a", 1).await;
    let (_, answer) = sent(&client, &mut session, "b", 2).await;
    let wait = soon(client.wait_status(&answer, Status::Delivered));
    let serve = async {
        let missed = v1::Receipts {
            receipts: Vec::new(),
            missed_up_to: 7,
        };
        session.say(server_frame::Frame::Receipts(missed)).await;
        session.receipt(Status::Delivered, 3).await;
        let question = session.hear_send().await;
        assert_eq!(question.id, "b");
        session.answer(&question, Status::Expired, 2).await;
        session
    };
    let (settled, _session) = tokio::join!(wait, serve);
    assert_eq!(settled.expect("settled").status, Status::Expired);
}

/// A question that no server can answer any more ends the wait.
#[tokio::test]
async fn a_forgotten_message_ends_the_wait() {
    let (mut server, client, mut session) = watching().await;
    let (_, answer) = sent(&client, &mut session, "a", 1).await;
    let wait = soon(client.wait_status(&answer, Status::Delivered));
    let serve = async {
        drop(session);
        let mut session = server.welcome().await;
        session.watching().await;
        let question = session.hear_send().await;
        session.refuse(&question, error(v1::Code::Overloaded)).await;
        let question = session.hear_send().await;
        session.refuse(&question, error(v1::Code::IdTooOld)).await;
        session
    };
    let (settled, _session) = tokio::join!(wait, serve);
    assert!(matches!(settled, Err(Error::Refused(refusal)) if refusal.code == v1::Code::IdTooOld));
}

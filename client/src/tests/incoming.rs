//! The own queue: every entry once, acknowledgements, read marks.

use std::time::Duration;

use futures::StreamExt as _;
use roost_proto::v1::{self, Code, client_frame, server_frame};

use super::server::{Server, Session, error, place, soon};
use crate::{AttachOptions, Client, Cursor, Error, Event, Incoming};

fn attached(server: &Server) -> Client {
    let options = server.options().attach(AttachOptions::default());
    Client::connect(options).expect("sound options")
}

fn cursor(seq: u64) -> Cursor {
    place(seq).into()
}

async fn take(client: &Client, count: usize) -> Vec<u64> {
    let entries = client.entries().take(count);
    let entries: Vec<Incoming> = soon(entries.collect()).await;
    entries.iter().map(|entry| entry.cursor().seq).collect()
}

async fn hear_ack(session: &mut Session) -> u64 {
    match session.hear().await {
        client_frame::Frame::Ack(ack) => ack.cursor.expect("a cursor").seq,
        other => panic!("expected an ack, not {other:?}"),
    }
}

async fn commit(session: &Session, seq: u64) {
    session
        .say(server_frame::Frame::Ack(v1::AckAnswer {
            cursor: Some(place(seq)),
            error: None,
        }))
        .await;
}

/// After a reconnect the server hands over again what was not acknowledged; the caller sees each entry once.
#[tokio::test]
async fn entries_that_come_again_are_dropped() {
    let mut server = Server::start().await;
    let client = attached(&server);
    let mut session = server.welcome().await;
    assert_eq!(session.hello.attach.expect("attached").cursor, None);
    session.entries([1, 2, 3]).await;
    assert_eq!(take(&client, 3).await, [1, 2, 3]);
    client.ack(cursor(1));
    assert_eq!(hear_ack(&mut session).await, 1);
    drop(session);

    let session = server.accept().await;
    let attach = session.hello.attach.expect("attached");
    assert_eq!(
        attach.cursor,
        Some(place(1)),
        "what the caller has said is safe"
    );
    session.welcome(100, 1).await;
    session.entries([2, 3, 4]).await;
    session.entries([4, 5]).await;
    assert_eq!(take(&client, 2).await, [4, 5]);
}

/// A session takes no acknowledgement of what only an earlier one has handed over: that was refused for good, when a client
/// acknowledged right after a reconnect. Found by kills under load.
#[tokio::test]
async fn what_an_earlier_session_handed_over_is_acknowledged_when_it_has_come_again() {
    let mut server = Server::start().await;
    let client = attached(&server);
    let session = server.welcome().await;
    session.entries([1, 2, 3]).await;
    assert_eq!(take(&client, 3).await, [1, 2, 3]);
    drop(session);

    let mut session = server.welcome().await;
    client.ack(cursor(3));
    session.hear_nothing_for(Duration::from_millis(60)).await;
    for seqs in [&[1, 2][..], &[3]] {
        session.entries(seqs.iter().copied()).await;
        let last = seqs[seqs.len() - 1];
        assert_eq!(hear_ack(&mut session).await, last);
        commit(&session, last).await;
    }
    assert_eq!(soon(client.acked(cursor(3))).await, Ok(cursor(3)));
}

/// One acknowledgement on its way at a time, then the newest; closing waits until it is committed.
#[tokio::test]
async fn closing_flushes_acknowledgements() {
    let mut server = Server::start().await;
    let client = attached(&server);
    let mut session = server.welcome().await;
    session.entries(1..=5).await;
    assert_eq!(take(&client, 5).await.len(), 5);
    client.ack(cursor(1));
    assert_eq!(hear_ack(&mut session).await, 1);
    for seq in 2..=5 {
        client.ack(cursor(seq));
    }
    let closing = tokio::spawn(client.close());
    session.hear_nothing_for(Duration::from_millis(60)).await;
    commit(&session, 1).await;
    assert_eq!(hear_ack(&mut session).await, 5);
    assert!(!closing.is_finished());
    commit(&session, 5).await;
    soon(closing).await.expect("closed");
}

/// The cursor of an answer is behind what has expired, and so may be ahead of what was asked for. The server frees a window by
/// what it is told: a client that took the answer for its own word never had room again.
#[tokio::test]
async fn what_is_committed_already_is_acknowledged_all_the_same() {
    let mut server = Server::start().await;
    let client = attached(&server);
    let mut session = server.welcome().await;
    session.entries([1, 2, 3]).await;
    assert_eq!(take(&client, 3).await, [1, 2, 3]);
    client.ack(cursor(1));
    assert_eq!(hear_ack(&mut session).await, 1);
    commit(&session, 3).await;
    client.ack(cursor(3));
    assert_eq!(hear_ack(&mut session).await, 3);
}

/// Refused for good once, not once for each part of it.
#[tokio::test]
async fn a_refused_part_of_an_acknowledgement_ends_all_of_it() {
    let mut server = Server::start().await;
    let client = attached(&server);
    let session = server.welcome().await;
    session.entries([1, 2, 3]).await;
    assert_eq!(take(&client, 3).await, [1, 2, 3]);
    drop(session);
    let mut session = server.welcome().await;
    client.ack(cursor(3));
    session.entries([1, 2]).await;
    assert_eq!(hear_ack(&mut session).await, 2);
    session
        .say(server_frame::Frame::Ack(v1::AckAnswer {
            cursor: Some(place(2)),
            error: Some(error(Code::Unauthenticated)),
        }))
        .await;
    let refused = soon(client.acked(cursor(3))).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    session.hear_nothing_for(Duration::from_millis(60)).await;
}

#[tokio::test]
async fn a_refused_acknowledgement_is_told_and_not_repeated() {
    let mut server = Server::start().await;
    let client = attached(&server);
    let mut events = client.events();
    let mut session = server.welcome().await;
    client.ack(cursor(9));
    assert_eq!(hear_ack(&mut session).await, 9);
    session
        .say(server_frame::Frame::Ack(v1::AckAnswer {
            // The one that was asked for. It once passed for committed.
            cursor: Some(place(9)),
            error: Some(error(Code::BadCursor)),
        }))
        .await;
    let refused = soon(client.acked(cursor(9))).await;
    assert!(matches!(refused, Err(Error::Refused(refusal)) if refusal.code == Code::BadCursor));
    while let Some(event) = soon(events.next()).await {
        if matches!(event, Ok(Event::AckRefused(_))) {
            break;
        }
    }
    session.hear_nothing_for(Duration::from_millis(60)).await;
}

/// A read mark waits for the acknowledgement before it, and is retried when the server says so.
#[tokio::test]
async fn a_read_mark_follows_its_acknowledgement() {
    let mut server = Server::start().await;
    let client = attached(&server);
    let mut session = server.welcome().await;
    let marks = async { soon(client.mark_read("bob", cursor(2))).await };
    let serve = async {
        session.hear_nothing_for(Duration::from_millis(60)).await;
        client.ack(cursor(2));
        assert_eq!(hear_ack(&mut session).await, 2);
        commit(&session, 2).await;
        for failure in [Some(error(Code::Overloaded)), None] {
            let mark = session.hear().await;
            let client_frame::Frame::Read(mark) = mark else {
                panic!("expected a read mark, not {mark:?}");
            };
            assert_eq!(mark.up_to, Some(place(2)));
            session
                .say(server_frame::Frame::Read(v1::ReadAnswer {
                    from: mark.from,
                    up_to: mark.up_to,
                    error: failure,
                }))
                .await;
        }
    };
    let (marked, ()) = tokio::join!(marks, serve);
    assert_eq!(marked, Ok(cursor(2)));
}

/// The queue was restored, say: our cursor is of another incarnation. Read on from the server's, and say so.
#[tokio::test]
async fn a_refused_cursor_is_given_up() {
    let mut server = Server::start().await;
    let options = server.options().attach(AttachOptions {
        cursor: Some(cursor(70)),
        ..AttachOptions::default()
    });
    let client = Client::connect(options).expect("sound options");
    let mut events = client.events();
    let session = server.accept().await;
    session.goodbye(Code::BadCursor, &[]).await;
    let session = server.accept().await;
    assert_eq!(session.hello.attach.expect("attached").cursor, None);
    session.welcome(100, 2).await;
    session.entries([3]).await;
    assert_eq!(take(&client, 1).await, [3]);
    assert_eq!(soon(events.next()).await, Some(Ok(Event::CursorReset)));
}

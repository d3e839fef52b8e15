#![allow(clippy::unwrap_used)]

use futures::FutureExt as _;
use roost_proto::v1::{Entry, Envelope, Receipt, Receipts};

use super::*;
use crate::config::Config;
use crate::testing::{SHARD, Script, router};
use crate::types::UserId;

fn cursor(seq: u64) -> Cursor {
    Cursor {
        incarnation: 1,
        seq,
    }
}

/// A session with a window of three entries.
fn receive(script: &Arc<Script>) -> Receive {
    receive_when(script, false)
}

fn receive_when(script: &Arc<Script>, on_first_frame: bool) -> Receive {
    receive_within(script, on_first_frame, 3, 100)
}

fn receive_within(
    script: &Arc<Script>,
    on_first_frame: bool,
    window_entries: u32,
    window_bytes: u64,
) -> Receive {
    let config = Config::default();
    let identity = Identity {
        user: UserId::parse("bob").unwrap(),
        device: 1,
        shard: SHARD,
    };
    let settings = Settings {
        node: String::new(),
        session: config.session,
        queue: config.queue,
    };
    let wanted = Wanted {
        attach: Some(Start {
            cursor: cursor(0),
            window_entries,
            window_bytes,
            epoch: Epoch {
                counter: 5,
                ..Epoch::default()
            },
            client: Epoch {
                counter: 2,
                ..Epoch::default()
            },
            on_first_frame,
        }),
        watch: false,
    };
    Receive::new(router(script), Arc::new(identity), wanted, &settings)
}

fn entries(seqs: std::ops::RangeInclusive<u64>) -> Push {
    let entries = seqs.map(|seq| Entry {
        seq,
        envelope: Some(Envelope {
            body: bytes::Bytes::from_static(b"ten bytes!"),
            ..Envelope::default()
        }),
    });
    Push {
        push: Some(push::Push::Entries(Entries {
            incarnation: 1,
            entries: entries.collect(),
            skipped: Vec::new(),
        })),
        ..Push::default()
    }
}

fn room(entries: u32, bytes: u64) -> Room {
    Room {
        entries,
        bytes,
        notices: 0,
    }
}

fn receipts(revisions: std::ops::RangeInclusive<u32>) -> Push {
    let receipts = revisions.map(|revision| Receipt {
        revision: revision.into(),
        ..Receipt::default()
    });
    Push {
        push: Some(push::Push::Receipts(Receipts {
            receipts: receipts.collect(),
            missed_up_to: 0,
        })),
        ..Push::default()
    }
}

/// Lets it attach, until nothing more happens.
async fn settle(receive: &mut Receive) {
    let idle = tokio::time::timeout(Duration::from_secs(1), receive.next()).await;
    assert!(idle.is_err(), "nothing was pushed");
}

async fn attached(script: &Arc<Script>) -> Receive {
    let mut receive = receive(script);
    settle(&mut receive).await;
    let (request, pushes) = script.newest_attachment();
    assert_eq!((request.window_entries, request.window_bytes), (3, 100));
    pushes.send(entries(1..=3)).unwrap();
    let received = receive.next().await;
    assert!(matches!(received, Received::Frame(Frame::Entries(_))));
    receive
}

fn attaching() -> Arc<Script> {
    Arc::new(Script::new(|_, _| None).attaching())
}

#[tokio::test(start_paused = true)]
async fn an_ack_makes_room_and_only_for_what_was_handed_over() {
    let script = attaching();
    let mut receive = attached(&script).await;
    for wrong in [
        None,
        Some(cursor(4)),
        Some(Cursor {
            incarnation: 2,
            seq: 1,
        }),
    ] {
        let refused = receive.on_ack(wrong).unwrap_err().error.unwrap();
        assert_eq!(
            (refused.code(), refused.retryable),
            (Code::BadCursor, false)
        );
    }
    assert_eq!(receive.on_ack(Some(cursor(2))), Ok(cursor(2)));
    assert_eq!(receive.on_ack(Some(cursor(1))), Ok(cursor(1)), "again");
    assert_eq!(script.granted(), [room(2, 20)]);
}

#[tokio::test(start_paused = true)]
async fn room_is_granted_by_the_quarter() {
    let script = attaching();
    let mut receive = receive_within(&script, false, 12, 1000);
    settle(&mut receive).await;
    let (_, pushes) = script.newest_attachment();
    pushes.send(entries(1..=9)).unwrap();
    receive.next().await;
    for seq in 1..=9 {
        receive.on_ack(Some(cursor(seq))).unwrap();
    }
    assert_eq!(script.granted(), [room(3, 30); 3]);

    let mut receive = receive_within(&script, false, 100, 80);
    settle(&mut receive).await;
    let (_, pushes) = script.newest_attachment();
    pushes.send(entries(1..=3)).unwrap();
    receive.next().await;
    receive.on_ack(Some(cursor(1))).unwrap();
    receive.on_ack(Some(cursor(2))).unwrap();
    assert_eq!(
        script.granted().last(),
        Some(&room(2, 20)),
        "bytes count too"
    );
}

#[tokio::test(start_paused = true)]
async fn a_broken_link_is_attached_again_from_what_was_handed_over() {
    let script = attaching();
    let mut receive = attached(&script).await;
    receive.on_ack(Some(cursor(1))).unwrap();
    script.drop_attachments();
    settle(&mut receive).await;
    let (request, _) = script.newest_attachment();
    assert_eq!(request.cursor, Some(cursor(3)));
    assert_eq!((request.window_entries, request.window_bytes), (1, 80));
}

/// A client that acknowledged its full window while the session attached again was never sent anything more.
#[tokio::test(start_paused = true)]
async fn room_made_while_attaching_is_granted_afterwards() {
    let script = attaching();
    let mut receive = attached(&script).await;
    script.drop_attachments();
    assert!(receive.next().now_or_never().is_none(), "it attaches again");
    receive.on_ack(Some(cursor(3))).unwrap();
    assert!(script.granted().is_empty(), "there is nobody to grant to");
    settle(&mut receive).await;
    let (request, _) = script.newest_attachment();
    assert_eq!(request.window_entries, 0);
    assert_eq!(script.granted(), [room(3, 30)]);
}

/// Clients of a node that was cut off from the others stayed there for as long as that lasted, unanswered, though the others
/// were a majority. Found by a partition after a rolling restart, when all senders were on that node.
#[tokio::test(start_paused = true)]
async fn where_no_leader_is_found_the_client_is_sent_elsewhere() {
    let script = Arc::new(Script::new(|_, _| None));
    let mut receive = receive(&script);
    match receive.next().await {
        Received::Over(error) => {
            assert_eq!((error.code(), error.retryable), (Code::GoElsewhere, true));
        }
        Received::Frame(frame) => panic!("unexpected {frame:?}"),
    }
}

/// A session whose client had gone before the welcome came, and had connected elsewhere, displaced that newer session.
#[tokio::test(start_paused = true)]
async fn a_session_attaches_once_its_client_has_shown_that_it_is_there() {
    let script = attaching();
    let mut receive = receive_when(&script, true);
    settle(&mut receive).await;
    assert!(script.attachments().is_empty(), "nobody is there yet");
    receive.client_is_here();
    settle(&mut receive).await;
    receive.client_is_here();
    settle(&mut receive).await;
    let attachments = script.attachments();
    assert_eq!(attachments.len(), 1, "once");
    let counters = (attachments[0].client, attachments[0].epoch);
    assert_eq!(
        (counters.0.unwrap().counter, counters.1.unwrap().counter),
        (2, 5)
    );
}

#[tokio::test(start_paused = true)]
async fn receipts_are_granted_as_they_are_handed_on_and_go_on_where_they_were() {
    let script = attaching();
    let mut receive = attached(&script).await;
    let (first, pushes) = script.newest_attachment();
    assert_eq!(
        (first.window_notices, first.receipts_after),
        (WINDOW_NOTICES, None)
    );
    let quarter = WINDOW_NOTICES / 4;
    pushes.send(receipts(1..=quarter - 1)).unwrap();
    pushes.send(receipts(quarter..=quarter)).unwrap();
    receive.next().await;
    assert!(script.granted().is_empty(), "not one by one");
    receive.next().await;
    let granted = Room {
        notices: quarter,
        ..Room::default()
    };
    assert_eq!(script.granted(), [granted]);
    drop(pushes);
    script.drop_attachments();
    settle(&mut receive).await;
    let (again, _) = script.newest_attachment();
    assert_eq!(again.receipts_after, Some(quarter.into()));
}

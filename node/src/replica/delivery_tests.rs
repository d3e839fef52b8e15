#![allow(clippy::unwrap_used)]

use roost_proto::peer::{Push, push};
use roost_proto::storage::{Ack, Inbound, InboundItem, OutboxItem, ReceiptAck, command};
use roost_proto::v1::{Cursor, Receipt, Status};
use tokio::sync::mpsc;

use super::*;
use crate::testing::{NOON_MS, SHARD, add, leader, messages, noon, propose};

/// A shard with Alice and Bob, who has five messages.
async fn delivery() -> (Arc<Group>, Arc<Delivery>) {
    let group = leader().await;
    let commands = vec![add("alice"), add("bob"), messages("bob", 1..=5)];
    propose(&group, commands).await;
    let delivery = Delivery::start(
        SHARD,
        Arc::clone(&group),
        noon(),
        3,
        Arc::default(),
        CancellationToken::new(),
    );
    (group, delivery)
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

/// A session's side of an attachment.
struct Side(mpsc::UnboundedReceiver<Push>);

impl Side {
    async fn next(&mut self) -> push::Push {
        self.0.recv().await.unwrap().push.unwrap()
    }

    /// The seqs of the next push.
    async fn seqs(&mut self) -> Vec<u64> {
        match self.next().await {
            push::Push::Entries(entries) => entries.entries.iter().map(|e| e.seq).collect(),
            other => panic!("not entries: {other:?}"),
        }
    }

    /// The revisions of the receipts in the next push.
    async fn revisions(&mut self) -> Vec<u64> {
        match self.next().await {
            push::Push::Receipts(page) => page.receipts.iter().map(|r| r.revision).collect(),
            other => panic!("not receipts: {other:?}"),
        }
    }

    /// Nothing more comes, however long one waits.
    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(std::time::Duration::from_secs(60), self.0.recv())
            .await
            .is_err()
    }

    async fn ended(&mut self) -> Option<Code> {
        match self.next().await {
            push::Push::Ended(ended) => ended.error.map(|error| error.code()),
            other => panic!("not the end: {other:?}"),
        }
    }
}

/// Attaches as that link's only attachment; without a cursor it is a watch.
fn attach(
    delivery: &Delivery,
    name: &str,
    link: u64,
    request: AttachRequest,
) -> (Result<(), Code>, Side) {
    attach_at(delivery, name, link, request, 0)
}

/// The same, with receipts behind a revision.
fn attach_at(
    delivery: &Delivery,
    name: &str,
    link: u64,
    request: AttachRequest,
    receipts_after: u64,
) -> (Result<(), Code>, Side) {
    let (pushes, side) = mpsc::unbounded_channel();
    let request = AttachRequest {
        attachment: 1,
        device: 1,
        receipts: true,
        ..request
    };
    let target = Target {
        link: LinkId(link),
        pushes,
    };
    let attached = delivery.attach(user(name), &request, receipts_after, target);
    (attached.map_err(|error| error.code()), Side(side))
}

/// A queue from its beginning, with a window.
fn queue(entries: u32, bytes: u64) -> AttachRequest {
    AttachRequest {
        cursor: Some(Cursor {
            incarnation: 1,
            seq: 0,
        }),
        window_entries: entries,
        window_bytes: bytes,
        window_notices: 9,
        ..AttachRequest::default()
    }
}

fn session(epoch: Epoch) -> AttachRequest {
    AttachRequest {
        epoch: Some(epoch),
        ..queue(0, 0)
    }
}

fn delivered(peer: &str, up_to_seq: u64) -> Receipt {
    Receipt {
        peer: peer.to_owned(),
        status: Status::Delivered.into(),
        incarnation: 1,
        up_to_seq,
        ..Receipt::default()
    }
}

#[tokio::test(start_paused = true)]
async fn pushes_stop_at_the_window_and_go_on_with_a_grant() {
    let (_group, delivery) = delivery().await;
    let (attached, mut side) = attach(&delivery, "bob", 7, queue(2, 1_000));
    attached.unwrap();
    assert_eq!(side.seqs().await, [1, 2]);
    assert!(side.is_silent().await);
    let grant = |entries, bytes| Grant {
        attachment: 1,
        entries,
        bytes,
        ..Grant::default()
    };
    delivery.grant(LinkId(8), &grant(9, 9));
    assert!(side.is_silent().await, "a grant for somebody else");
    delivery.grant(LinkId(7), &grant(1, 10));
    assert_eq!(side.seqs().await, [3]);
    assert!(side.is_silent().await);
}

#[tokio::test(start_paused = true)]
async fn bytes_count_in_the_window_and_one_entry_always_goes() {
    let (_group, delivery) = delivery().await;
    let (_, mut side) = attach(&delivery, "bob", 7, queue(100, 1));
    assert_eq!(side.seqs().await, [1], "larger than the window");
    assert!(side.is_silent().await);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_grows_wakes_whoever_is_attached() {
    let (group, delivery) = delivery().await;
    let (_, mut side) = attach(&delivery, "bob", 7, queue(100, 1_000));
    assert_eq!(side.seqs().await, [1, 2, 3, 4, 5]);
    propose(&group, vec![messages("bob", 6..=6)]).await;
    delivery.wake([user("alice"), user("bob")].iter());
    assert_eq!(side.seqs().await, [6]);
    delivery.detach(LinkId(7), 1);
    assert!(side.0.recv().await.is_none(), "nobody is attached");
}

/// A client with packet loss was displaced by its own older session: that had authenticated first, but its request to
/// attach was on its way for longer than the newer session's.
#[tokio::test(start_paused = true)]
async fn the_session_that_authenticated_last_stays_whichever_attaches_first() {
    let (_group, delivery) = delivery().await;
    let [old, new] = [(); 2].map(|()| delivery.draw_epoch(1, ReplicaId(1)));
    let (attached, mut side) = attach(&delivery, "bob", 1, session(new));
    assert_eq!(attached, Ok(()));
    let (late, _) = attach(&delivery, "bob", 2, session(old));
    assert_eq!(late, Err(Code::Displaced));
    assert!(side.is_silent().await, "the newer one stays");

    // The same session over another link ends its own attachment and is not told that it is over.
    let (again, mut again_side) = attach(&delivery, "bob", 3, session(new));
    assert_eq!(again, Ok(()));
    assert_eq!(side.ended().await, None);

    let newest = delivery.draw_epoch(2, ReplicaId(1));
    let (newer, _side) = attach(&delivery, "bob", 4, session(newest));
    assert_eq!(newer, Ok(()));
    assert_eq!(again_side.ended().await, Some(Code::Displaced));
}

/// Two processes with one device's credentials do not fight: the one that began last stays, also when the other only
/// connects again.
#[tokio::test(start_paused = true)]
async fn of_two_clients_the_one_that_began_last_stays() {
    let (_group, delivery) = delivery().await;
    let [first, second, back] = [(); 3].map(|()| delivery.draw_epoch(1, ReplicaId(1)));
    let of = |client: Epoch, epoch: Epoch| AttachRequest {
        client: Some(client),
        ..session(epoch)
    };
    let (_, mut first_side) = attach(&delivery, "bob", 1, of(first, first));
    let (_, mut second_side) = attach(&delivery, "bob", 2, of(second, second));
    assert_eq!(first_side.ended().await, Some(Code::Displaced));
    let (refused, _) = attach(&delivery, "bob", 3, of(first, back));
    assert_eq!(refused, Err(Code::Displaced));
    assert!(second_side.is_silent().await);
    // While the other is away, nobody is in its way.
    delivery.detach(LinkId(2), 1);
    let (alone, _side) = attach(&delivery, "bob", 3, of(first, back));
    assert_eq!(alone, Ok(()));
}

/// openraft lets a leader that restarts go on in its term. What it drew before must not come again.
#[tokio::test(start_paused = true)]
async fn epochs_rise_also_when_a_leader_restarts_in_its_term() {
    let (group, before) = delivery().await;
    let mut old = (0..100).map(|_| before.draw_epoch(1, ReplicaId(1)));
    let last = old.nth(99).unwrap();
    let after = Delivery::start(
        SHARD,
        group,
        Arc::new(ShardClock::new(Arc::new(|| NOON_MS + 1), |_| true)),
        3,
        Arc::default(),
        CancellationToken::new(),
    );
    let next = after.draw_epoch(1, ReplicaId(1));
    assert!((next.term, next.counter) > (last.term, last.counter));
}

/// Alice is owed that Bob, and one after the other of the others, has had something.
async fn tell_alice(group: &Group, peers: std::ops::RangeInclusive<u64>) {
    let items = peers.map(|number| InboundItem {
        number,
        item: Some(OutboxItem {
            to: "alice".to_owned(),
            receipt: Some(delivered(&format!("peer{number}"), 3)),
        }),
    });
    let inbound = command::Command::Inbound(Inbound {
        source: 0,
        source_incarnation: 1,
        items: items.collect(),
    });
    propose(group, vec![inbound]).await;
}

fn wake(delivery: &Delivery, name: &str) {
    delivery.wake([user(name)].iter());
}

fn notices(window_notices: u32) -> AttachRequest {
    AttachRequest {
        window_notices,
        ..AttachRequest::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_displaces_nobody_and_sees_receipts_from_its_beginning_on() {
    let (group, delivery) = delivery().await;
    tell_alice(&group, 1..=1).await;
    let (_, mut device) = attach_at(&delivery, "alice", 1, queue(9, 999), 0);
    let (_, mut watch) = attach_at(&delivery, "alice", 2, notices(9), 1);
    assert_eq!(device.revisions().await, [1], "it has not acknowledged it");
    assert!(watch.is_silent().await);
    tell_alice(&group, 2..=2).await;
    wake(&delivery, "bob");
    assert!(watch.is_silent().await);
    wake(&delivery, "alice");
    assert_eq!(watch.revisions().await, [2]);
    assert_eq!(device.revisions().await, [2]);
    wake(&delivery, "alice");
    assert!(
        watch.is_silent().await && device.is_silent().await,
        "not twice"
    );
}

/// A watch that did not read had every receipt queued for it at the leader and at its own node.
#[tokio::test(start_paused = true)]
async fn receipts_come_as_fast_as_they_are_read() {
    let (group, delivery) = delivery().await;
    let (_, mut watch) = attach_at(&delivery, "alice", 1, notices(2), 0);
    tell_alice(&group, 1..=5).await;
    wake(&delivery, "alice");
    assert_eq!(watch.revisions().await, [1, 2]);
    assert!(watch.is_silent().await, "it has room for two");
    let grant = Grant {
        attachment: 1,
        notices: 9,
        ..Grant::default()
    };
    delivery.grant(LinkId(1), &grant);
    assert_eq!(watch.revisions().await, [3, 4, 5]);
}

/// Rows that all devices have acknowledged are gone; a watch that was behind must know that it has missed them.
#[tokio::test(start_paused = true)]
async fn a_watch_that_was_too_slow_is_told_that_it_has_missed_some() {
    let (group, delivery) = delivery().await;
    let (_, mut watch) = attach_at(&delivery, "alice", 1, notices(1), 0);
    tell_alice(&group, 1..=3).await;
    wake(&delivery, "alice");
    assert_eq!(watch.revisions().await, [1]);
    let ack = command::Command::ReceiptAck(ReceiptAck {
        user: "alice".to_owned(),
        device: 1,
        revision: 3,
    });
    propose(&group, vec![ack]).await;
    tell_alice(&group, 4..=4).await;
    let grant = Grant {
        attachment: 1,
        notices: 9,
        ..Grant::default()
    };
    delivery.grant(LinkId(1), &grant);
    let push::Push::Receipts(seen) = watch.next().await else {
        panic!("not receipts");
    };
    assert_eq!((seen.missed_up_to, seen.receipts.len()), (3, 1));
    assert_eq!(seen.receipts[0].revision, 4);
    assert!(watch.is_silent().await);
}

/// What has expired is told without a window of its own: a client that did not read had a push for each pass queued.
#[tokio::test(start_paused = true)]
async fn pushes_of_nothing_but_expired_entries_need_room_too() {
    let (group, delivery) = delivery().await;
    let request = AttachRequest {
        window_notices: 0,
        ..queue(9, 999)
    };
    let (_, mut side) = attach_at(&delivery, "bob", 1, request, 0);
    assert_eq!(side.seqs().await, [1, 2, 3, 4, 5]);
    propose(&group, vec![messages("bob", 6..=6)]).await;
    let ack = command::Command::Ack(Ack {
        user: "bob".to_owned(),
        device: 1,
        cursor: Some(Cursor {
            incarnation: 1,
            seq: 6,
        }),
    });
    propose(&group, vec![ack]).await;
    wake(&delivery, "bob");
    assert!(
        side.is_silent().await,
        "6 is gone, and that is all there is to say"
    );
    let grant = Grant {
        attachment: 1,
        notices: 1,
        ..Grant::default()
    };
    delivery.grant(LinkId(1), &grant);
    assert_eq!(side.seqs().await, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn attachments_end_with_their_device_link_and_leader() {
    let (_group, delivery) = delivery().await;
    let watch = AttachRequest::default;
    let (_, mut of_bob) = attach(&delivery, "bob", 1, watch());
    let (_, mut of_link) = attach(&delivery, "alice", 2, watch());
    let (_, mut last) = attach(&delivery, "alice", 3, watch());
    let (refused, _) = attach(&delivery, "alice", 4, watch());
    assert_eq!(refused, Err(Code::Overloaded), "three are the bound");

    delivery.remove_device(&user("bob"), DeviceId(1));
    assert_eq!(of_bob.ended().await, Some(Code::Unauthenticated));
    delivery.link_closed(LinkId(2));
    assert!(of_link.0.recv().await.is_none());
    delivery.end_all(None);
    assert_eq!(last.ended().await, None, "it attaches again elsewhere");
    assert_eq!(delivery.table.lock().counts(), (0, 0));
}

/// A session that attached just as a damaged replica stopped waited for ever: nobody pushed, and nobody told it to go.
#[tokio::test(start_paused = true)]
async fn nobody_attaches_once_the_replica_has_stopped() {
    let (_group, delivery) = delivery().await;
    let cursor = Some(Cursor {
        incarnation: 1,
        seq: 0,
    });
    let request = AttachRequest {
        cursor,
        ..AttachRequest::default()
    };
    let (first, mut side) = attach(&delivery, "bob", 1, request.clone());
    assert!(first.is_ok());
    delivery.close();
    assert_eq!(side.ended().await, None, "told to attach elsewhere");
    let (late, _side) = attach(&delivery, "bob", 2, request);
    assert_eq!(late, Err(Code::Unavailable));
}

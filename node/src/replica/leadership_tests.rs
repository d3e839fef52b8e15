//! What a leader is while its node's disk hangs.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{add, leader, node, parts};

fn add_bob() -> shard_request::Request {
    shard_request::Request::Propose(proposal::encode(add("bob")))
}

/// Goal: whoever waits for a leader whose disk hangs is sent elsewhere at once, and so is who comes, until it is over.
/// Found by sends that waited for the disk while others led long since. Method: a proposal that is held back, in place of
/// one whose sync does not return.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_hangs_sends_everybody_away() {
    let (hangs, disk_hangs) = watch::channel(false);
    let group = leader().await;
    let parts = Parts {
        disk_hangs,
        ..parts(&group)
    };
    let replica = Replica::start(group.replica(), parts);
    let mut known = replica.leader();
    known
        .wait_for(|leader| *leader == Some(node(1)))
        .await
        .unwrap();

    replica.proposer.set_paused(true);
    let waiting = Arc::clone(&replica);
    let waiting = tokio::spawn(async move { waiting.handle(add_bob()).await });
    tokio::task::yield_now().await;
    let began = tokio::time::Instant::now();
    hangs.send(true).unwrap();
    let answer = waiting.await.unwrap();
    assert!(matches!(answer, Err(Error::Unknown)), "{answer:?}");
    let answer = replica.handle(add_bob()).await;
    assert!(matches!(answer, Err(Error::Unknown)), "{answer:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    known.wait_for(Option::is_none).await.unwrap();
    assert!(!replica.serves());

    hangs.send(false).unwrap();
    replica.proposer.set_paused(false);
    known
        .wait_for(|leader| *leader == Some(node(1)))
        .await
        .unwrap();
    replica.handle(add_bob()).await.unwrap();
}

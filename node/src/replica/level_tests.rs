//! What the voters do not understand is not proposed.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{add, leader, parts};
use crate::versions::FEATURE_LEVEL;

/// A leader whose only voter announces a level.
async fn replica(announced: u32) -> Arc<Replica> {
    let group = leader().await;
    let parts = Parts {
        feature_level: Arc::new(move |_| announced),
        ..parts(&group)
    };
    Replica::start(group.replica(), parts)
}

async fn propose(announced: u32, asked: u32) -> Result<(), Error> {
    let replica = replica(announced).await;
    let before = replica.group().state().borrow().last_log;
    let proposal = Proposal {
        feature_level: asked,
        ..proposal::encode(add("bob"))
    };
    let request = shard_request::Request::Propose(proposal);
    let proposed = replica.handle(request).await.map(drop);
    let grown = replica.group().state().borrow().last_log > before;
    assert_eq!(grown, proposed.is_ok(), "a refused command leaves no entry");
    proposed
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_until_every_voter_understands_it() {
    assert!(propose(FEATURE_LEVEL, FEATURE_LEVEL).await.is_ok());
    assert!(propose(FEATURE_LEVEL + 1, FEATURE_LEVEL).await.is_ok());
    let older = propose(FEATURE_LEVEL - 1, FEATURE_LEVEL).await;
    assert!(matches!(older, Err(Error::Internal(_))), "{older:?}");
    // This build is a voter too, and does not understand what a newer one asks.
    let newer = propose(FEATURE_LEVEL + 1, FEATURE_LEVEL + 1).await;
    assert!(matches!(newer, Err(Error::Internal(_))), "{newer:?}");
}

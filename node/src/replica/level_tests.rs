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

async fn propose(announced: u32, command: Option<command::Command>) -> Result<(), Error> {
    let replica = replica(announced).await;
    let before = replica.group().state().borrow().last_log;
    let proposed = replica.propose(Command { command }).await.map(drop);
    let grown = replica.group().state().borrow().last_log > before;
    assert_eq!(grown, proposed.is_ok(), "a refused command leaves no entry");
    proposed
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_until_every_voter_understands_it() {
    assert!(propose(FEATURE_LEVEL, Some(add("bob"))).await.is_ok());
    assert!(propose(FEATURE_LEVEL + 1, Some(add("bob"))).await.is_ok());
    let older = propose(FEATURE_LEVEL - 1, Some(add("bob"))).await;
    assert!(matches!(older, Err(Error::Internal(_))), "{older:?}");
    // What a newer node sends has no command that this build can read.
    let unknown = propose(FEATURE_LEVEL + 1, None).await;
    assert!(matches!(unknown, Err(Error::Internal(_))), "{unknown:?}");
}

//! What the voters do not understand is not proposed.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{SHARD, add, leader, limits, noon};
use crate::versions::FEATURE_LEVEL;

/// A leader whose only voter announces a level.
async fn replica(announced: u32) -> Arc<Replica> {
    let group = leader().await;
    let parts = Parts {
        shard: SHARD,
        clock: noon(),
        limits: limits(),
        bounds: Bounds {
            batch_entries_max: 4,
            batch_bytes_max: 1 << 20,
            pending_max: 100,
            pending_bytes_max: 1 << 20,
            timeout: Duration::from_secs(5),
        },
        attachments_max: 1,
        outbox: Arc::default(),
        disk_low: Arc::new(|| false),
        feature_level: Arc::new(move |_| announced),
        group: Arc::clone(&group),
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

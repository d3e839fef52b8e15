//! Crashes that forget what was not synced, at any moment and of all replicas at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roost_proto::peer::{raft_request, request};

use super::cluster::Cluster;
use crate::storage::{Column, keys};
use crate::types::ReplicaId;

/// All replicas lose power after the last acceptance: everything accepted is there.
#[tokio::test(start_paused = true)]
async fn everything_accepted_survives_a_power_loss_of_all() {
    for seed in 0..10 {
        let mut cluster = Cluster::start(seed).await;
        let mut accepted = BTreeSet::new();
        for round in 0..3 {
            for number in 1..=5 {
                cluster.accept(round * 5 + number).await;
                accepted.insert(round * 5 + number);
            }
            for number in 1..=3 {
                // Some lose all that was not synced, some a part of it.
                let keep = usize::try_from((seed + number) % 3).unwrap();
                cluster.crash(number, keep).await;
            }
            for number in 1..=3 {
                cluster.open(number).await;
            }
        }
        let leader = cluster.leader().await;
        assert_eq!(cluster.numbers(leader), accepted, "seed {seed}");
    }
}

/// Replicas crash one after the other while batches are accepted; nothing accepted is missing anywhere in the end.
#[tokio::test(start_paused = true)]
async fn rolling_crashes_lose_nothing() {
    for seed in 0..10 {
        let mut cluster = Cluster::start(100 + seed).await;
        let mut next = 1;
        for round in 0..6 {
            let victim = (seed + round) % 3 + 1;
            cluster.accept(next).await;
            cluster
                .crash(victim, usize::try_from(round % 2).unwrap())
                .await;
            for _ in 0..4 {
                next += 1;
                cluster.accept(next).await;
            }
            if round % 2 == 0 {
                for number in (1..=3).filter(|number| *number != victim) {
                    cluster.purge(number).await;
                }
            }
            cluster.open(victim).await;
            next += 1;
        }
        let accepted: BTreeSet<u64> = (1..next).collect();
        for number in 1..=3 {
            cluster.catches_up(number).await;
            assert_eq!(
                cluster.numbers(number),
                accepted,
                "seed {seed} node {number}"
            );
        }
    }
}

/// Power is lost at any moment while a snapshot is received and installed: the replica opens again with the old state or
/// the new one, whole, and catches up.
#[tokio::test(start_paused = true)]
async fn a_snapshot_is_installed_whole_or_not_at_all() {
    let mut cluster = Cluster::start(12).await;
    let leader = cluster.leader().await;
    let away = leader % 3 + 1;
    cluster.crash(away, 0).await;
    let mut last = 0;
    let mut generations = BTreeSet::new();
    for moment_ms in (0..160).step_by(8) {
        for _ in 0..60 {
            last += 1;
            cluster.accept(last).await;
        }
        for number in (1..=3).filter(|number| *number != away) {
            cluster.catches_up(number).await;
            cluster.purge(number).await;
        }
        cluster.open(away).await;
        tokio::time::sleep(Duration::from_millis(moment_ms)).await;
        generations.insert(cluster.group(away).state().borrow().generation);
        let keep = usize::try_from(moment_ms / 8 % 5).unwrap();
        cluster.crash(away, keep).await;
    }
    assert!(
        generations.len() > 2,
        "some installs were in time: {generations:?}"
    );
    cluster.open(away).await;
    cluster.catches_up(away).await;
    assert_eq!(cluster.numbers(away), (1..=last).collect());
}

/// With a sync that only claims to have synced, the test above must notice: this is what it is for.
#[tokio::test(start_paused = true)]
async fn a_lying_disk_is_noticed() {
    let mut cluster = Cluster::start(1).await;
    for number in 1..=3 {
        cluster.disk(number).lie_about_syncs(true);
    }
    cluster.accept(1).await;
    for number in 1..=3 {
        cluster.crash(number, 0).await;
    }
    for number in 1..=3 {
        cluster.open(number).await;
    }
    let leader = cluster.leader().await;
    assert!(cluster.numbers(leader).is_empty());
}

/// At every answer to an append or a vote, a crash at that moment would lose no log entry and no vote: the log column
/// of the disk that a power loss leaves is the one that is visible.
#[tokio::test(start_paused = true)]
async fn votes_and_entries_are_synced_before_the_answer_leaves() {
    let mut cluster = Cluster::start(11).await;
    let checked = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counts = checked.clone();
    cluster.at_answer(Arc::new(move |number, disk, request| {
        let Some(request::Request::Raft(raft)) = &request.request else {
            return;
        };
        let kind = match raft.body {
            Some(raft_request::Body::Append(_)) => 0,
            Some(raft_request::Body::Vote(_)) => 1,
            _ => return,
        };
        let range = keys::replica_log_range(ReplicaId(number));
        let log = |disk: &dyn crate::storage::Read| -> Vec<_> {
            let rows = disk.scan(Column::Log, range.clone());
            rows.map(|row| row.unwrap()).collect()
        };
        let visible = log(disk);
        let durable = log(disk.durable().as_ref());
        assert_eq!(
            visible, durable,
            "node {number} answers before it is durable"
        );
        counts[kind].fetch_add(1, Ordering::Relaxed);
    }));
    for number in 1..=10 {
        cluster.accept(number).await;
    }
    let leader = cluster.leader().await;
    cluster.crash(leader, 0).await;
    cluster.accept(11).await;
    assert!(checked[0].load(Ordering::Relaxed) > 10);
    assert!(checked[1].load(Ordering::Relaxed) > 0);
}

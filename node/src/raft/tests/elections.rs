//! Who is elected, how soon, and who deposes nobody. Time is virtual: what is measured are the timers alone.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::{Role, Timing};
use super::cluster::Cluster;
use crate::types::ReplicaId;

/// Longer than every timer.
const LONG: Duration = Duration::from_secs(3);

fn others(number: u64) -> impl Iterator<Item = u64> {
    (1..=3).filter(move |other| *other != number)
}

/// Times of a hundred seeds, sorted.
async fn times(measure: impl AsyncFn(u64) -> Duration) -> Vec<Duration> {
    let mut times = Vec::new();
    for seed in 0..100 {
        times.push(measure(2_000 + seed).await);
    }
    times.sort();
    println!("median {:?}, longest {:?}", times[50], times[99]);
    times
}

/// A leader is accepted by all, in the same term as before.
async fn assert_undisturbed(cluster: &Cluster, leader: u64, term: u64, next: u64) {
    cluster.accept(next).await;
    for number in 1..=3 {
        cluster.catches_up(number).await;
        assert_eq!(cluster.term(number), term, "of replica {number}");
    }
    assert_eq!(cluster.role(leader), Role::Leader);
}

/// Goal: a killed leader is replaced well within what is promised, whatever the delays drawn, and survivors that tie do
/// not do so for ever.
#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_soon_replaced() {
    let times = times(async |seed| {
        let mut cluster = Cluster::start(seed).await;
        cluster.accept(1).await;
        sleep(Duration::from_millis(seed % 100 * 7)).await;
        let dead = cluster.leader().await;
        let killed = Instant::now();
        cluster.crash(dead, 0).await;
        cluster.accept(2).await;
        killed.elapsed()
    });
    let times = times.await;
    assert!(times[50] < Duration::from_millis(400), "{:?}", times[50]);
    assert!(times[99] < Duration::from_millis(900), "{:?}", times[99]);
}

/// The same for a leader that nobody can tell from a slow one: it is cut off, or frozen, or its host is dead.
#[tokio::test(start_paused = true)]
async fn a_silent_leader_is_replaced() {
    let times = times(async |seed| {
        let cluster = Cluster::start(seed).await;
        cluster.accept(1).await;
        sleep(Duration::from_millis(seed % 100 * 7)).await;
        let silent = cluster.leader().await;
        let cut = Instant::now();
        cluster.isolate(silent);
        cluster.accept(2).await;
        assert_ne!(cluster.leader().await, silent);
        cut.elapsed()
    });
    let times = times.await;
    assert!(times[50] < Duration::from_millis(800), "{:?}", times[50]);
    assert!(times[99] < Duration::from_millis(1_300), "{:?}", times[99]);
}

/// Goal: a replica that was cut off raises no term, and costs the group nothing when it is back. Found by shards that
/// were without a leader whenever a node came back after a cut.
#[tokio::test(start_paused = true)]
async fn who_comes_back_deposes_nobody() {
    for (seed, traffic) in [(1, true), (2, false), (3, true), (4, false)] {
        let cluster = Cluster::start(3_000 + seed).await;
        cluster.accept(1).await;
        let leader = cluster.leader().await;
        let away = others(leader).next().unwrap();
        cluster.catches_up(away).await;
        let term = cluster.term(leader);
        cluster.isolate(away);
        sleep(LONG).await;
        if traffic {
            cluster.accept(2).await;
            sleep(LONG).await;
        }
        cluster.heal();
        sleep(LONG).await;
        assert_undisturbed(&cluster, leader, term, 3).await;
    }
}

/// A follower to whom nothing comes, or nothing of the leader's, asks in vain: the others hear the leader.
#[tokio::test(start_paused = true)]
async fn a_deaf_follower_deposes_nobody() {
    for from_all in [true, false] {
        let cluster = Cluster::start(4_000).await;
        cluster.accept(1).await;
        let leader = cluster.leader().await;
        let deaf = others(leader).next().unwrap();
        cluster.catches_up(deaf).await;
        let term = cluster.term(leader);
        for other in others(deaf).filter(|other| from_all || *other == leader) {
            cluster.cut(other, deaf);
        }
        sleep(LONG).await;
        cluster.accept(2).await;
        assert_eq!(cluster.term(leader), term);
        cluster.heal();
        sleep(LONG).await;
        assert_undisturbed(&cluster, leader, term, 3).await;
    }
}

/// Goal: a leader that sends but hears nobody is replaced; its followers hear it all the time. Method: with proposals
/// that it sends again and again, and without.
#[tokio::test(start_paused = true)]
async fn a_deaf_leader_is_replaced() {
    for proposes in [true, false] {
        let cluster = Cluster::start(5_000).await;
        cluster.accept(1).await;
        let deaf = cluster.leader().await;
        for other in others(deaf) {
            cluster.cut(other, deaf);
        }
        let group = cluster.group(deaf);
        if proposes {
            let never = super::cluster::batch(9);
            tokio::spawn(async move { group.propose(never).await });
        }
        let cut = Instant::now();
        cluster.accept(2).await;
        assert_ne!(cluster.leader().await, deaf);
        let took = cut.elapsed();
        assert!(took < Duration::from_millis(1_500), "{took:?}");
        cluster.heal();
        cluster.catches_up(deaf).await;
    }
}

/// All cut from all: nobody can lead. As soon as they are connected again somebody does.
#[tokio::test(start_paused = true)]
async fn a_group_that_fell_apart_comes_together() {
    for seed in 0..20 {
        let cluster = Cluster::start(6_000 + seed).await;
        cluster.accept(1).await;
        (1..=3).for_each(|number| cluster.isolate(number));
        sleep(LONG + Duration::from_millis(seed * 13)).await;
        cluster.heal();
        let healed = Instant::now();
        cluster.accept(2).await;
        let took = healed.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        let terms: BTreeSet<u64> = (1..=3).map(|number| cluster.term(number)).collect();
        assert!(terms.iter().all(|term| *term <= 3), "{terms:?}");
    }
}

/// Only the survivor with the longer log can lead; the other may ask first, and again.
#[tokio::test(start_paused = true)]
async fn the_longer_log_is_elected() {
    for seed in 0..20 {
        let mut cluster = Cluster::start(7_000 + seed).await;
        cluster.accept(1).await;
        let leader = cluster.leader().await;
        let [behind, ahead] = others(leader).collect::<Vec<_>>()[..] else {
            panic!("three replicas")
        };
        cluster.isolate(behind);
        for number in 2..10 {
            cluster.accept(number).await;
        }
        cluster.catches_up(ahead).await;
        cluster.crash(leader, 0).await;
        cluster.heal();
        let killed = Instant::now();
        cluster.accept(10).await;
        assert_eq!(cluster.leader().await, ahead);
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        cluster.catches_up(behind).await;
    }
}

/// A survivor that voted for itself in later terms, in vain, holds nobody up: a canvass does not look at terms.
#[tokio::test(start_paused = true)]
async fn a_vote_in_a_later_term_holds_nobody_up() {
    for seed in 0..20 {
        let mut cluster = Cluster::start(8_000 + seed).await;
        cluster.accept(1).await;
        let leader = cluster.leader().await;
        let [ahead, late] = others(leader).collect::<Vec<_>>()[..] else {
            panic!("three replicas")
        };
        cluster.isolate(late);
        for number in 2..5 {
            cluster.accept(number).await;
            cluster.group(late).elect().await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        cluster.catches_up(ahead).await;
        assert!(cluster.term(late) > cluster.term(leader) + 1);
        cluster.crash(leader, 0).await;
        cluster.heal();
        let killed = Instant::now();
        cluster.accept(5).await;
        let took = killed.elapsed();
        assert!(took < Duration::from_millis(1_500), "{took:?}");
        assert_eq!(cluster.leader().await, ahead);
    }
}

/// Who votes alone asks nobody.
#[tokio::test(start_paused = true)]
async fn a_group_of_one_leads_again_at_once() {
    let mut cluster = Cluster::start_of(1, 9_000).await;
    cluster.accept(1).await;
    let term = cluster.term(1);
    sleep(LONG).await;
    assert_eq!(cluster.term(1), term, "and stays");
    cluster.crash(1, usize::MAX).await;
    cluster.open(1).await;
    let opened = Instant::now();
    cluster.accept(2).await;
    let took = opened.elapsed();
    assert!(took < Timing::LOCAL.election_min, "{took:?}");
}

/// A replica that has no vote never stands, however long nobody leads.
#[tokio::test(start_paused = true)]
async fn a_learner_never_stands() {
    let mut cluster = Cluster::start(9_100).await;
    cluster.accept(1).await;
    let lost = others(cluster.leader().await).next().unwrap();
    cluster.replace(lost, ReplicaId(17)).await;
    for other in others(lost) {
        cluster.crash(other, usize::MAX).await;
    }
    sleep(LONG).await;
    assert_eq!(cluster.role(lost), Role::Learner);
    assert_eq!(cluster.term(lost), 0);
}

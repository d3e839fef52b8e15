//! Shard time: what expiry and the dedup window are counted in.
//!
//! It advances with the leader's monotonic clock and follows its wall clock only within [`FOLLOW_MS`]. A larger jump,
//! as after hours without a leader, goes only to a time that a majority of the cluster's nodes confirms, so that one
//! wrong clock never expires a queue. It never goes back: the state machine sees to that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::sabotage::{self, Break};
use crate::types::NodeId;

/// How far shard time follows the leader's wall clock by itself, milliseconds.
pub const FOLLOW_MS: u64 = 5_000;

/// How old another node's clock reading may be to count.
const READING_AGE_MAX: Duration = Duration::from_secs(10);

/// Milliseconds since the Unix epoch by this node's wall clock; an argument, so that tests may lie.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The operating system's wall clock.
#[must_use]
pub fn system_wall_clock() -> WallClock {
    Arc::new(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            })
    })
}

/// What this node knows of the clocks and disks of the others. One a node, filled by its controller.
#[derive(Debug, Default)]
pub struct Vitals {
    others: Mutex<BTreeMap<NodeId, Noted>>,
}

#[derive(Debug, Clone, Copy)]
struct Noted {
    reading: Reading,
    at: Instant,
    /// What this node's wall clock showed then.
    own_wall_ms: u64,
}

/// What another node has said of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// Its wall clock when it was noted, milliseconds since the Unix epoch. Not its distance from ours: that would
    /// go on saying that a clock of ours which has jumped since is right.
    pub wall_ms: u64,
    /// Its disk is below its reserve.
    pub disk_low: bool,
    /// It is stopping.
    pub leaving: bool,
}

impl Vitals {
    /// Notes another node's reading, while this node's wall clock shows `own_wall_ms`.
    pub fn note(&self, node: NodeId, reading: Reading, own_wall_ms: u64) {
        let noted = Noted {
            reading,
            at: Instant::now(),
            own_wall_ms,
        };
        self.others.lock().insert(node, noted);
    }

    /// Whether a majority of `nodes` (all of the cluster) has a clock within `within_ms` of `wall_ms`, which is what this
    /// node's shows now, itself counted. What was read before this node's clock jumped does not count: the other may have
    /// been as wrong then as this one is now, and is asked again within a second.
    #[must_use]
    pub fn clock_confirmed(&self, nodes: usize, wall_ms: u64, within_ms: u64) -> bool {
        let near = self
            .fresh()
            .filter(|noted| noted.own_wall_ms.abs_diff(wall_ms) <= FOLLOW_MS)
            .filter(|noted| noted.reading.wall_ms.abs_diff(wall_ms) <= within_ms)
            .count();
        2 * (near + 1) > nodes
    }

    /// This node's clock, which shows `wall_ms` now, minus the median of all, milliseconds, if a majority of `nodes` has
    /// been heard of lately.
    #[must_use]
    pub fn clock_offset_ms(&self, nodes: usize, wall_ms: u64) -> Option<i64> {
        let clocks = self.fresh().map(|noted| noted.reading.wall_ms);
        let mut clocks: Vec<u64> = clocks.collect();
        clocks.push(wall_ms);
        if 2 * clocks.len() <= nodes {
            return None;
        }
        clocks.sort_unstable();
        let median = clocks[clocks.len() / 2];
        Some(wall_ms.cast_signed().wrapping_sub(median.cast_signed()))
    }

    /// How many other nodes have said lately that their disks are nearly full.
    #[must_use]
    pub fn nodes_without_room(&self) -> usize {
        self.fresh().filter(|noted| noted.reading.disk_low).count()
    }

    /// Whether a node has said lately that its disk has room and that it stays.
    #[must_use]
    pub fn may_lead(&self, node: NodeId) -> bool {
        let others = self.others.lock();
        others.get(&node).is_some_and(|Noted { reading, at, .. }| {
            is_fresh(*at) && !reading.disk_low && !reading.leaving
        })
    }

    /// Whether a node's clock was within `within_ms` of this node's when it was read.
    #[must_use]
    pub fn clock_within(&self, node: NodeId, within_ms: u64) -> bool {
        let others = self.others.lock();
        others
            .get(&node)
            .is_some_and(|noted| noted.reading.wall_ms.abs_diff(noted.own_wall_ms) <= within_ms)
    }

    /// What others have said lately, all clocks as they must show by now if they only went on.
    fn fresh(&self) -> impl Iterator<Item = Noted> {
        let others = self.others.lock();
        let fresh = others.values().filter(|noted| is_fresh(noted.at));
        let fresh: Vec<Noted> = fresh
            .map(|noted| {
                let passed = millis(noted.at.elapsed());
                let mut noted = *noted;
                noted.reading.wall_ms = noted.reading.wall_ms.saturating_add(passed);
                noted.own_wall_ms = noted.own_wall_ms.saturating_add(passed);
                noted
            })
            .collect();
        fresh.into_iter()
    }
}

fn is_fresh(at: Instant) -> bool {
    at.elapsed() < READING_AGE_MAX
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One shard's time at its leader.
pub struct ShardClock {
    wall: WallClock,
    confirmed: Box<dyn Fn(u64) -> bool + Send + Sync>,
    last: Mutex<Option<(u64, Instant)>>,
    settled: AtomicBool,
}

impl ShardClock {
    /// `confirmed` says whether a majority confirms what this node's wall clock shows now, milliseconds.
    #[must_use]
    pub fn new(wall: WallClock, confirmed: impl Fn(u64) -> bool + Send + Sync + 'static) -> Self {
        Self {
            wall,
            confirmed: Box::new(confirmed),
            last: Mutex::new(None),
            settled: AtomicBool::new(false),
        }
    }

    /// A new term of leadership begins from the time that the state has; 0 for a shard that never had one.
    pub fn begin(&self, state_time_ms: u64) {
        *self.last.lock() = Some((state_time_ms, Instant::now()));
        self.settled.store(false, Ordering::Relaxed);
    }

    /// Whether shard time has met the wall clock in this term. Before that, after a time without a leader or in a new
    /// cluster, it may still jump, and what was accepted before the jump would expire with it.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        // Reading it is what makes it meet the wall clock.
        let _ = self.now_ms();
        self.settled.load(Ordering::Relaxed)
    }

    /// Shard time now, milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let wall = (self.wall)();
        let mut last = self.last.lock();
        let steady = match *last {
            Some((ms, at)) => ms + millis(at.elapsed()),
            None => 0,
        };
        let near = wall.abs_diff(steady) <= FOLLOW_MS;
        let confirmed = near || (self.confirmed)(wall);
        let follows = near || (wall > steady && confirmed) || sabotage::on(Break::AnyClock);
        let now = if follows {
            wall.max(last.map_or(0, |(ms, _)| ms))
        } else {
            steady
        };
        // Also when it is ahead of a clock that is right: then it has no jump before it.
        if follows || confirmed {
            self.settled.store(true, Ordering::Relaxed);
        }
        *last = Some((now, Instant::now()));
        now
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn clock(wall: &Arc<AtomicU64>, confirmed: &Arc<AtomicBool>) -> ShardClock {
        let (wall, confirmed) = (Arc::clone(wall), Arc::clone(confirmed));
        ShardClock::new(Arc::new(move || wall.load(Ordering::Relaxed)), move |_| {
            confirmed.load(Ordering::Relaxed)
        })
    }

    /// Goal: one wrong clock moves nothing; a confirmed one may jump. Method: paused time, a wall clock set by hand.
    #[tokio::test(start_paused = true)]
    async fn jumps_need_a_majority() {
        let wall = Arc::new(AtomicU64::new(1_000_000));
        let confirmed = Arc::new(AtomicBool::new(false));
        let clock = clock(&wall, &confirmed);
        clock.begin(1_000_000);
        assert_eq!(clock.now_ms(), 1_000_000);

        wall.store(1_000_000 + FOLLOW_MS, Ordering::Relaxed);
        assert_eq!(
            clock.now_ms(),
            1_000_000 + FOLLOW_MS,
            "small steps are followed"
        );

        wall.store(u64::MAX / 2, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.now_ms(), 1_000_010 + FOLLOW_MS, "a jump is not");

        wall.store(10, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.now_ms(), 1_000_020 + FOLLOW_MS, "nor one back");

        wall.store(90_000_000, Ordering::Relaxed);
        confirmed.store(true, Ordering::Relaxed);
        assert_eq!(clock.now_ms(), 90_000_000, "a confirmed jump is");
    }

    /// A new cluster, or one that was down for long, accepts nothing under a time that is about to jump: it would expire
    /// at once. Found by sends that were refused as too old because one shard's time had jumped and another's had not.
    #[tokio::test(start_paused = true)]
    async fn time_is_settled_once_it_has_met_the_wall_clock() {
        let wall = Arc::new(AtomicU64::new(90_000_000));
        let confirmed = Arc::new(AtomicBool::new(false));
        let clock = clock(&wall, &confirmed);
        clock.begin(0);
        assert!(!clock.is_settled());
        confirmed.store(true, Ordering::Relaxed);
        assert!(clock.is_settled());
        confirmed.store(false, Ordering::Relaxed);
        assert!(clock.is_settled(), "for the rest of the term");
        clock.begin(80_000_000);
        assert!(!clock.is_settled(), "but not in the next");
        clock.begin(100_000_000);
        assert!(!clock.is_settled(), "this clock may be slow");
        confirmed.store(true, Ordering::Relaxed);
        assert!(clock.is_settled(), "it is not, and nothing will jump");
        assert_eq!(clock.now_ms(), 100_000_000);
    }

    /// A node that is stopping would get its leaderships back from the others while it still answers them.
    #[tokio::test(start_paused = true)]
    async fn who_leaves_or_has_no_room_may_not_lead() {
        let vitals = Vitals::default();
        let node = NodeId::from_random([1; 16]);
        assert!(!vitals.may_lead(node), "nothing is known of it");
        let well = Reading::default();
        for (reading, may) in [
            (well, true),
            (
                Reading {
                    leaving: true,
                    ..well
                },
                false,
            ),
            (
                Reading {
                    disk_low: true,
                    ..well
                },
                false,
            ),
            (well, true),
        ] {
            vitals.note(node, reading, 0);
            assert_eq!(vitals.may_lead(node), may, "{reading:?}");
        }
        assert!(
            !vitals.clock_within(NodeId::from_random([2; 16]), 10),
            "not heard of"
        );
        for (own_wall_ms, within) in [(0, true), (10, true), (11, false)] {
            vitals.note(node, Reading { wall_ms: 0, ..well }, own_wall_ms);
            assert_eq!(vitals.clock_within(node, 10), within, "{own_wall_ms}");
        }
        tokio::time::advance(READING_AGE_MAX).await;
        assert!(!vitals.may_lead(node), "it has not been heard of lately");
    }

    fn showing(wall_ms: u64) -> Reading {
        Reading {
            wall_ms,
            ..Reading::default()
        }
    }

    /// A leader's clock that jumped was once confirmed by readings from before its jump: what its shard had accepted
    /// would have expired. Method: paused time, the others' clocks noted once, ours jumping between two looks.
    #[tokio::test(start_paused = true)]
    async fn readings_from_before_a_jump_do_not_confirm_it() {
        const TEN_YEARS_MS: u64 = 315_360_000_000;
        let vitals = Vitals::default();
        let now = 1_000_000_000_000;
        for n in 0..2u8 {
            vitals.note(NodeId::from_random([n; 16]), showing(now), now);
        }
        assert!(vitals.clock_confirmed(3, now, 30_000));
        assert!(!vitals.clock_confirmed(3, now + TEN_YEARS_MS, 30_000));
        assert_eq!(
            vitals.clock_offset_ms(3, now + TEN_YEARS_MS),
            Some(TEN_YEARS_MS.cast_signed())
        );
        assert!(!vitals.clock_confirmed(3, now - TEN_YEARS_MS, 30_000));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(
            vitals.clock_offset_ms(3, now + 5_000),
            Some(0),
            "the others' clocks went on"
        );
    }

    /// Another node's clock was wrong for a while, and then this one's, by as much: what had been read of the other confirmed
    /// the jump, and shard time was ten minutes ahead of everybody. Found by the simulation.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_as_wrong_as_ours_is_now_does_not_confirm_it() {
        const TEN_MINUTES_MS: u64 = 600_000;
        let vitals = Vitals::default();
        let (node, now) = (NodeId::from_random([1; 16]), 1_000_000_000_000);
        vitals.note(node, showing(now + TEN_MINUTES_MS), now);
        assert!(!vitals.clock_confirmed(3, now + TEN_MINUTES_MS, 30_000));
        vitals.note(node, showing(now + TEN_MINUTES_MS), now + TEN_MINUTES_MS);
        assert!(
            vitals.clock_confirmed(3, now + TEN_MINUTES_MS, 30_000),
            "asked since, it does"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_majority_is_counted_with_oneself() {
        let vitals = Vitals::default();
        let nodes: Vec<NodeId> = (0..2u8).map(|n| NodeId::from_random([n; 16])).collect();
        let now = 1_000_000;
        assert!(vitals.clock_confirmed(1, now, 30_000));
        assert!(!vitals.clock_confirmed(3, now, 30_000));
        vitals.note(nodes[0], showing(now + 40_000), now);
        vitals.note(nodes[1], showing(now + 41_000), now);
        assert!(
            !vitals.clock_confirmed(3, now, 30_000),
            "both others disagree"
        );
        assert_eq!(
            vitals.clock_offset_ms(3, now),
            Some(-40_000),
            "so this one is slow"
        );
        vitals.note(nodes[1], showing(now - 20), now);
        assert!(vitals.clock_confirmed(3, now, 30_000));
        tokio::time::advance(READING_AGE_MAX).await;
        assert!(
            !vitals.clock_confirmed(3, now + 10_000, 30_000),
            "old readings do not count"
        );
    }
}

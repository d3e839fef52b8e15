//! How much of a log is kept: by size and by age, whichever ends earlier.
//!
//! Age wins over the tail that slow followers would like: what was deleted from the state must not live on in the log
//! (contract C5). A follower that comes too late takes a snapshot.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::log_store::Extent;

/// What a log may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Entries older than this go.
    pub age: Duration,
    /// Beyond this the oldest go.
    pub bytes: u64,
}

/// The age of entries that were there when the log was opened is not known. They count as old after this time, which
/// is what a restarted cluster has to catch up from its logs.
const RECOVERED_AGE_MAX: Duration = Duration::from_secs(60);

/// Samples kept; when there are more, every second one is merged into the next.
const SAMPLES_MAX: usize = 256;

/// Remembers when which part of a log was written, one sample for each look at it.
#[derive(Debug)]
pub(super) struct Collector {
    samples: VecDeque<Sample>,
    /// Everything ever written, when the last entry that has gone was written.
    purged_bytes: u64,
    last_look: Instant,
    /// The last index when the log was opened.
    recovered: Option<u64>,
    opened: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Entries up to here, and behind the sample before ...
    index: u64,
    /// ... were written after this.
    since: Instant,
    /// Everything ever written, when this was the last entry.
    appended_bytes: u64,
}

impl Collector {
    pub(super) fn new(extent: Extent) -> Self {
        let now = Instant::now();
        let mut collector = Self {
            samples: VecDeque::new(),
            purged_bytes: 0,
            last_look: now,
            recovered: extent.last,
            opened: now,
        };
        collector.look(extent, now);
        collector
    }

    /// Up to which index the log has to go.
    pub(super) fn target(&mut self, extent: Extent, keep: Keep, now: Instant) -> Option<u64> {
        self.look(extent, now);
        let old = |sample: &Sample| match self.recovered {
            Some(recovered) if sample.index <= recovered => {
                now.duration_since(self.opened) >= keep.age.min(RECOVERED_AGE_MAX)
            }
            _ => now.duration_since(sample.since) >= keep.age,
        };
        let too_much =
            |sample: &Sample| extent.appended_bytes - sample.appended_bytes >= keep.bytes;
        let target = self
            .samples
            .iter()
            .rfind(|sample| old(sample) || too_much(sample))
            .map(|sample| sample.index)?;
        (Some(target) > extent.purged).then_some(target)
    }

    /// Forgets samples of entries that are gone.
    pub(super) fn purged(&mut self, upto: u64) {
        let gone = self.samples.iter().rfind(|sample| sample.index <= upto);
        self.purged_bytes = gone.map_or(self.purged_bytes, |sample| sample.appended_bytes);
        self.samples.retain(|sample| sample.index > upto);
    }

    /// Bytes that the log keeps; what was there when it was opened and is not counted by `extent` is left out.
    pub(super) fn kept_bytes(&self, extent: Extent) -> u64 {
        extent.appended_bytes.saturating_sub(self.purged_bytes)
    }

    fn look(&mut self, extent: Extent, now: Instant) {
        let since = std::mem::replace(&mut self.last_look, now);
        let Some(index) = extent.last else { return };
        // A log that was truncated and has not grown back to where it was.
        while self.samples.back().is_some_and(|last| last.index > index) {
            self.samples.pop_back();
        }
        if self.samples.back().is_some_and(|last| last.index == index) {
            return;
        }
        self.samples.push_back(Sample {
            index,
            since,
            appended_bytes: extent.appended_bytes,
        });
        if self.samples.len() > SAMPLES_MAX {
            self.thin_out();
        }
    }

    fn thin_out(&mut self) {
        let all: Vec<Sample> = self.samples.drain(..).collect();
        // The older time of the two, so that nothing is kept for longer than it may be.
        self.samples = all
            .chunks(2)
            .map(|pair| Sample {
                since: pair[0].since,
                ..pair[pair.len() - 1]
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep {
        age: Duration::from_secs(600),
        bytes: 1_000,
    };

    fn extent(last: u64, appended_bytes: u64) -> Extent {
        Extent {
            last: Some(last),
            purged: None,
            appended_bytes,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_the_look_before() {
        let mut collector = Collector::new(Extent::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(collector.target(extent(10, 10), KEEP, at(100)), None);
        assert_eq!(collector.target(extent(20, 20), KEEP, at(200)), None);
        // Up to 10 may have been written at 0, up to 20 at 100.
        assert_eq!(collector.target(extent(20, 20), KEEP, at(599)), None);
        assert_eq!(collector.target(extent(20, 20), KEEP, at(600)), Some(10));
        assert_eq!(collector.target(extent(20, 20), KEEP, at(700)), Some(20));
        assert_eq!(collector.kept_bytes(extent(25, 25)), 25);
        collector.purged(20);
        assert_eq!(collector.target(extent(20, 20), KEEP, at(701)), None);
        assert_eq!(collector.kept_bytes(extent(25, 25)), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn size_ends_it_earlier() {
        let mut collector = Collector::new(Extent::default());
        let now = Instant::now();
        for step in 1..=10 {
            let target = collector.target(extent(step, step * 200), KEEP, now);
            assert_eq!(target, (step > 5).then(|| step - 5));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn recovered_entries_are_soon_old() {
        let mut collector = Collector::new(extent(50, 500));
        let now = Instant::now();
        assert_eq!(collector.target(extent(60, 600), KEEP, now), None);
        let later = now + RECOVERED_AGE_MAX;
        assert_eq!(collector.target(extent(60, 600), KEEP, later), Some(50));
    }

    #[tokio::test(start_paused = true)]
    async fn samples_are_bounded_and_keep_nothing_for_longer() {
        let mut collector = Collector::new(Extent::default());
        let start = Instant::now();
        let keep = Keep {
            bytes: u64::MAX,
            ..KEEP
        };
        for second in 1..=599 {
            let now = start + Duration::from_secs(second);
            assert_eq!(collector.target(extent(second, second), keep, now), None);
            assert!(collector.samples.len() <= SAMPLES_MAX);
        }
        let now = start + Duration::from_secs(600);
        let target = collector.target(extent(600, 600), keep, now);
        assert!(target >= Some(1), "{target:?}");
    }
}

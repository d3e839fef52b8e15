//! How long a group waits for what, and openraft's settings that follow from it.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

/// The times of a group. All replicas of a cluster use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of a leader; also how long an append may take before it is sent again.
    pub heartbeat: Duration,
    /// How long an election may take, and how long a replica that hears a leader grants no vote to another.
    pub election_min: Duration,
    /// Twice this is how long a replica bears its leader's silence. The difference of both is what chance adds.
    pub election_max: Duration,
    /// How long one chunk of a snapshot may take, the last one with its sync included.
    pub snapshot_chunk: Duration,
    /// How long one snapshot may take altogether. It pins deleted rows on the sender's disk for as long.
    pub snapshot_life: Duration,
}

impl Timing {
    /// For a local network.
    pub const LOCAL: Self = Self {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(200),
        election_max: Duration::from_millis(300),
        snapshot_chunk: Duration::from_secs(5),
        snapshot_life: Duration::from_secs(600),
    };

    /// For a network whose round trip takes up to `round_trip`.
    ///
    /// openraft 0.9 cancels an append after one heartbeat interval, so an append, which waits for a sync on the other
    /// side, has to fit into it: three round trips leave room for the sync and for a queue. What is derived from the
    /// heartbeat keeps its proportion to it.
    #[must_use]
    pub fn for_round_trip(round_trip: Duration) -> Self {
        let heartbeat = Self::LOCAL.heartbeat.max(round_trip * 3);
        Self {
            heartbeat,
            election_min: heartbeat * 4,
            election_max: heartbeat * 6,
            snapshot_chunk: Self::LOCAL.snapshot_chunk + round_trip * 10,
            ..Self::LOCAL
        }
    }

    /// How long there must have been no sign of a leader for a replica to wish another one well that asks whether it
    /// should stand. A little more than the time for which openraft grants no vote, so that the vote is granted, too.
    pub(super) fn quiet(&self) -> Duration {
        self.election_min * 5 / 4
    }

    /// For how long a replica bears no sign of a leader before it asks whether it should stand for election, without
    /// its share of chance, [`Timing::spread`]. Longer as long as there is hope: the leader may be slow, or the network.
    pub(super) fn patience(&self, hope: bool) -> Duration {
        match hope {
            true => self.election_max * 2,
            false => self.quiet(),
        }
    }

    /// A time drawn between nothing and this is added to each patience, so that two survivors seldom stand at once.
    pub(super) fn spread(&self) -> Duration {
        self.election_max - self.election_min
    }

    /// A leader that has not heard of a majority for so long gives no sign of leadership until it has.
    pub(super) fn quorum_silence_max(&self) -> Duration {
        self.election_max
    }

    /// How long the other side is left alone after it could not be reached. Two heartbeats, because during a longer
    /// pause a follower that came back would hear nothing and elect.
    pub(super) fn backoff(&self) -> Duration {
        self.heartbeat * 2
    }

    /// A receiver that has heard nothing of a snapshot for so long knows that its sender has given it up.
    pub(super) fn snapshot_silence_max(&self) -> Duration {
        (self.snapshot_chunk + self.backoff()) * (CHUNK_TRIES_MAX + 1)
    }

    pub(super) fn config(&self, shard: &str) -> Config {
        let millis = |duration: Duration| {
            u64::try_from(duration.as_millis()).expect("times are far below the end of time")
        };
        Config {
            cluster_name: shard.to_owned(),
            // Only the time that an append may take: heartbeats come from the node's ticker. Longer than the interval
            // between those, so that under load an append is not sent again while its sync is under way.
            heartbeat_interval: millis(self.heartbeat.max(self.election_min / 2)),
            // `election` stands for elections. For openraft these only mean how long a vote may take, and for how long
            // after a leader's sign none is granted.
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_min) + 1,
            install_snapshot_timeout: millis(self.snapshot_chunk),
            // The log store ends an append earlier, by bytes.
            max_payload_entries: APPEND_ENTRIES_MAX,
            // In 0.9.25 a follower gets a snapshot only when the log no longer reaches back to it, never for its
            // distance; this one would only matter to a blocking `add_learner`, which we do not use.
            replication_lag_threshold: u64::MAX,
            // Snapshots are views of the state as it is: there is nothing to build ahead of need, and what to purge is
            // decided by `collect`, node-wide.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_tick: true,
            enable_elect: false,
            // One ticker a node sends the heartbeats of all its groups at the same moment, so that they travel
            // together, and stops sending when the disk hangs.
            enable_heartbeat: false,
            ..Config::default()
        }
    }
}

/// How often a chunk of a snapshot is sent before the transfer is given up.
pub(super) const CHUNK_TRIES_MAX: u32 = 3;

/// Entries in one append, at most.
pub(super) const APPEND_ENTRIES_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_one_that_openraft_accepts() {
        for millis in [0, 1, 20, 200, 1_000] {
            let timing = Timing::for_round_trip(Duration::from_millis(millis));
            timing.config("0").validate().expect("valid");
        }
        assert_eq!(Timing::for_round_trip(Duration::ZERO), Timing::LOCAL);
    }
}

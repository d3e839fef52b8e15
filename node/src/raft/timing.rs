//! How long a group waits for what, and openraft's settings that follow from it.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use super::network::CHUNK_TRIES_MAX;

/// The times of a group. All replicas of a cluster use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of a leader; also how long an append may take before it is sent again.
    pub heartbeat: Duration,
    /// A follower elects after this long without a leader, and the lease it had granted.
    pub election_min: Duration,
    /// The upper end of the same; also the lease.
    pub election_max: Duration,
    /// How long one chunk of a snapshot may take, the last one with its sync included.
    pub snapshot_chunk: Duration,
    /// How long one snapshot may take altogether. It pins deleted rows on the sender's disk for as long.
    pub snapshot_life: Duration,
}

impl Timing {
    /// For a local network. Measured: a killed leader is replaced after 0.64 s at the median, 0.94 s at most.
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

    /// How long a group may be without a leader before the watchdog elects, after a delay drawn afresh each time up to
    /// [`Timing::election_max`]. openraft 0.9 draws its random timeout once an instance, so that two survivors may tie
    /// again and again.
    #[must_use]
    pub fn leaderless_max(&self) -> Duration {
        // One second on a local network.
        self.heartbeat * 20
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
            // between those, so that under load an append is not sent again while its sync is under way; not much longer,
            // because openraft looks at its election timer every 1.5 of it.
            heartbeat_interval: millis(self.heartbeat.max(self.election_min / 2)),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
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
            enable_elect: true,
            // One ticker a node sends the heartbeats of all its groups at the same moment, so that they travel
            // together, and stops sending when the disk hangs.
            enable_heartbeat: false,
            ..Config::default()
        }
    }
}

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
        assert_eq!(Timing::LOCAL.leaderless_max(), Duration::from_secs(1));
    }
}

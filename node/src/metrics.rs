//! Every metric of the node, in one place.
//!
//! Names are `roost_<module>_<thing>_<unit>`, in base units; counters, and only they, end in `_total`. A metric has at
//! most one label, and its values are bounded: a shard's number, or a word that stands in the source ([`Label`] takes
//! nothing else). Never a user, an id of a message or an address. Gauges of a shard are set by its leader and set to 0
//! by whoever stops leading, so that sums over nodes count nothing twice.
//!
//! Where something is counted often, keep the handle: `let sent = metrics::FRAME_MESSAGES.handle();`.

mod kind;
mod list;
#[cfg(test)]
mod tests;

use std::time::Duration;

use ::metrics::{KeyName, Recorder, with_recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use self::list::ALL;
use crate::config::Config;

pub use self::kind::{Counter, Definition, Gauge, Histogram, Label};
pub use self::list::*;

/// Between two calls of [`Exposition::upkeep`].
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What `/metrics` answers with.
#[derive(Clone)]
pub struct Exposition(PrometheusHandle);

impl Exposition {
    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps histograms small; to be called every [`UPKEEP_INTERVAL`], also when nobody asks for `/metrics`.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Collects all metrics of this process from now on. Call it once, before any handle is made.
///
/// # Errors
/// When something collects them already.
pub fn install() -> Result<Exposition, BuildError> {
    let handle = builder()?.install_recorder()?;
    with_recorder(|recorder| describe(recorder));
    Ok(Exposition(handle))
}

/// Exposes the bounds whose fill other metrics show.
pub fn set_bounds(config: &Config) {
    for (bound, limit) in [
        ("session.sessions_max", config.session.sessions_max as f64),
        (
            "session.in_flight_max",
            f64::from(config.session.in_flight_max),
        ),
        (
            "session.conversation_in_flight_max",
            f64::from(config.session.conversation_in_flight_max),
        ),
        (
            "session.window_entries",
            f64::from(config.session.window_entries),
        ),
        ("session.window_bytes", config.session.window_bytes as f64),
        (
            "session.outgoing_frames_max",
            config.session.outgoing_frames_max as f64,
        ),
        ("queue.entries_max", config.queue.entries_max as f64),
        ("queue.bytes_max", config.queue.bytes_max as f64),
        ("queue.sender_ids_max", config.queue.sender_ids_max as f64),
        ("queue.chains_max", f64::from(config.queue.chains_max)),
        (
            "queue.receipt_bytes_max",
            config.queue.receipt_bytes_max as f64,
        ),
        ("queue.devices_max", f64::from(config.queue.devices_max)),
        ("queue.outbox_rows_max", config.queue.outbox_rows_max as f64),
        (
            "replica.pending_proposals_max",
            config.replica.pending_proposals_max as f64,
        ),
        (
            "replica.pending_bytes_max",
            config.replica.pending_bytes_max as f64,
        ),
        (
            "replica.attachments_max",
            config.replica.attachments_max as f64,
        ),
        ("raft.log_bytes_max", config.raft.log_bytes_max as f64),
        ("raft.log_cache_bytes", config.raft.log_cache_bytes as f64),
        ("raft.snapshots_max", config.raft.snapshots_max as f64),
        ("peer.open_calls_max", config.peer.open_calls_max as f64),
        (
            "storage.block_cache_bytes",
            config.storage.block_cache_bytes as f64,
        ),
        (
            "storage.write_buffer_bytes",
            config.storage.write_buffer_bytes as f64,
        ),
        ("storage.max_wal_bytes", config.storage.max_wal_bytes as f64),
    ] {
        BOUND.of(bound).set(limit);
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    ALL.iter()
        .filter(|(_, metric)| !metric.buckets.is_empty())
        .try_fold(PrometheusBuilder::new(), |builder, (_, metric)| {
            builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), metric.buckets)
        })
}

fn describe(recorder: &dyn Recorder) {
    for (kind, metric) in ALL {
        let (name, help) = (KeyName::from_const_str(metric.name), metric.help.into());
        match *kind {
            "Counter" => recorder.describe_counter(name, Some(metric.unit), help),
            "Gauge" => recorder.describe_gauge(name, Some(metric.unit), help),
            _ => recorder.describe_histogram(name, Some(metric.unit), help),
        }
    }
}

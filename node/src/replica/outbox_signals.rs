//! Which shards led here have outbox rows for which others: from the replicas to the pump.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::metrics;
use crate::types::ShardId;

/// Signals that the pump has not taken yet. One for each (source, destination), however often it is raised, so bounded
/// by the shards led here times all shards.
#[derive(Debug)]
pub struct OutboxSignals {
    raised: Mutex<BTreeSet<(ShardId, ShardId)>>,
    some: Notify,
    fill: ::metrics::Gauge,
}

impl Default for OutboxSignals {
    fn default() -> Self {
        Self {
            raised: Mutex::default(),
            some: Notify::new(),
            fill: metrics::OUTBOX_SIGNALS.handle(),
        }
    }
}

impl OutboxSignals {
    /// A shard that this node leads has rows for a destination.
    pub fn raise(&self, source: ShardId, destination: ShardId) {
        {
            let mut raised = self.raised.lock();
            raised.insert((source, destination));
            self.fill.set(raised.len() as f64);
        }
        self.some.notify_one();
    }

    /// The next signal; waits for one. For one caller.
    pub async fn next(&self) -> (ShardId, ShardId) {
        loop {
            if let Some(pair) = self.take() {
                return pair;
            }
            // What is raised between looking and waiting leaves its notice.
            self.some.notified().await;
        }
    }

    fn take(&self) -> Option<(ShardId, ShardId)> {
        let mut raised = self.raised.lock();
        let pair = raised.pop_first()?;
        self.fill.set(raised.len() as f64);
        Some(pair)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[tokio::test]
    async fn each_pair_is_signalled_once_until_it_is_taken() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let signals = ::metrics::with_local_recorder(&recorder, OutboxSignals::default);
        let waiting = || {
            let text = recorder.handle().render();
            let mut lines = text.lines();
            let fill = lines.find_map(|line| line.strip_prefix("roost_replica_outbox_signals "));
            fill.map(str::to_owned)
        };
        for _ in 0..3 {
            signals.raise(ShardId(1), ShardId(2));
            signals.raise(ShardId(1), ShardId(1));
        }
        assert_eq!(waiting().as_deref(), Some("2"));
        assert_eq!(signals.next().await, (ShardId(1), ShardId(1)));
        assert_eq!(waiting().as_deref(), Some("1"));
        assert_eq!(signals.next().await, (ShardId(1), ShardId(2)));
        assert_eq!(waiting().as_deref(), Some("0"));
        assert_eq!(signals.next().now_or_never(), None);
        signals.raise(ShardId(1), ShardId(2));
        assert_eq!(signals.next().await, (ShardId(1), ShardId(2)));
    }
}

//! Which shards led here have outbox rows for which others: from the replicas to the pump.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::types::ShardId;

/// Signals that the pump has not taken yet. One for each (source, destination), however often it is raised, so bounded
/// by the shards led here times all shards.
#[derive(Debug, Default)]
pub struct OutboxSignals {
    raised: Mutex<BTreeSet<(ShardId, ShardId)>>,
    some: Notify,
}

impl OutboxSignals {
    /// A shard that this node leads has rows for a destination.
    pub fn raise(&self, source: ShardId, destination: ShardId) {
        self.raised.lock().insert((source, destination));
        self.some.notify_one();
    }

    /// The next signal; waits for one. For one caller.
    pub async fn next(&self) -> (ShardId, ShardId) {
        loop {
            if let Some(pair) = self.raised.lock().pop_first() {
                return pair;
            }
            // What is raised between looking and waiting leaves its notice.
            self.some.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn each_pair_is_signalled_once_until_it_is_taken() {
        let signals = OutboxSignals::default();
        for _ in 0..3 {
            signals.raise(ShardId(1), ShardId(2));
            signals.raise(ShardId(1), ShardId(1));
        }
        assert_eq!(signals.next().await, (ShardId(1), ShardId(1)));
        assert_eq!(signals.next().await, (ShardId(1), ShardId(2)));
        assert_eq!(signals.next().now_or_never(), None);
        signals.raise(ShardId(1), ShardId(2));
        assert_eq!(signals.next().await, (ShardId(1), ShardId(2)));
    }
}

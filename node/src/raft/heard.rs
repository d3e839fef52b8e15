//! When this replica last had an answer from each of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::ReplicaId;

/// See the module. Cheap to clone; as many rows as the group has, or has had, members.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<Mutex<BTreeMap<ReplicaId, Instant>>>);

impl Heard {
    /// It has answered just now.
    pub(super) fn note(&self, replica: ReplicaId) {
        self.0.lock().insert(replica, Instant::now());
    }

    /// Whether it has answered within this time.
    pub(super) fn within(&self, replica: ReplicaId, time: Duration) -> bool {
        let heard = self.0.lock().get(&replica).copied();
        heard.is_some_and(|at| at.elapsed() <= time)
    }
}

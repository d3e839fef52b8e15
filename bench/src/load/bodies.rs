//! Bodies: what end-to-end encryption leaves, bytes by chance that no compression makes smaller.

use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

/// The body's first bytes say when the message was due.
pub(super) const DUE_BYTES: usize = 8;
/// The largest body that a server takes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Bodies begin at different places of this much chance.
const POOL_BYTES: usize = 4 * BODY_BYTES_MAX;

/// Makes bodies, and reads when they were due.
pub(crate) struct Bodies {
    epoch: Instant,
    pool: Vec<u8>,
}

impl Bodies {
    pub(crate) fn new() -> Self {
        let mut pool = Vec::with_capacity(POOL_BYTES + BODY_BYTES_MAX);
        while pool.len() < POOL_BYTES + BODY_BYTES_MAX {
            pool.extend_from_slice(Uuid::new_v4().as_bytes());
        }
        Self {
            epoch: Instant::now(),
            pool,
        }
    }

    /// A body of so many bytes, at least those that say when it was due. `seed` chooses the rest.
    pub(super) fn make(&self, due: Instant, seed: u64, bytes: usize) -> Bytes {
        let bytes = bytes.clamp(DUE_BYTES, BODY_BYTES_MAX);
        let start = (seed % POOL_BYTES as u64) as usize;
        let mut body = self.pool[start..start + bytes].to_vec();
        let nanos = due.saturating_duration_since(self.epoch).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        body[..DUE_BYTES].copy_from_slice(&nanos.to_be_bytes());
        body.into()
    }

    /// When a body made by this process was due; `None` if it is too short to be one.
    pub(super) fn due(&self, body: &[u8]) -> Option<Instant> {
        let nanos = u64::from_be_bytes(*body.first_chunk::<DUE_BYTES>()?);
        self.epoch.checked_add(Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_when_it_was_due() {
        let bodies = Bodies::new();
        let due = Instant::now() + Duration::from_millis(7);
        for bytes in [0, 256, BODY_BYTES_MAX] {
            let body = bodies.make(due, u64::MAX, bytes);
            assert_eq!(body.len(), bytes.max(DUE_BYTES));
            assert_eq!(bodies.due(&body), Some(due));
        }
        assert_eq!(bodies.due(b"short"), None);
    }

    #[test]
    fn bodies_differ() {
        let bodies = Bodies::new();
        let due = Instant::now();
        assert_ne!(bodies.make(due, 1, 64), bodies.make(due, 2, 64));
    }
}

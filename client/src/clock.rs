//! The server's clock, as far as one greeting tells.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerClock {
    pub(crate) server_ms: u64,
    pub(crate) at: Instant,
}

impl ServerClock {
    /// Milliseconds since the Unix epoch.
    pub(crate) fn at(&self, instant: Instant) -> u64 {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match instant.checked_duration_since(self.at) {
            Some(since) => self.server_ms.saturating_add(ms(since)),
            None => self
                .server_ms
                .saturating_sub(ms(self.at.duration_since(instant))),
        }
    }
}

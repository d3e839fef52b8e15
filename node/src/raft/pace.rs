//! How fast a node sends snapshots: a few at a time and at one rate, all of its replicas together.
//!
//! A node that was away needs a state of every shard at once. Sent as fast as they can be read, they would take the
//! network, and the disk of the receiving node, from messages. And all at once none might end within its life: so who
//! gets no turn holds no view of its state meanwhile, and asks again with a newer one.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

/// The node's one; see the module.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    at_once_max: usize,
    turns: Semaphore,
    /// When the next bytes may go.
    next: Mutex<Option<Instant>>,
}

/// One snapshot may be sent for as long as it lives.
#[derive(Debug)]
pub(super) struct Turn<'a>(#[allow(dead_code, reason = "held")] SemaphorePermit<'a>);

impl Default for Pace {
    fn default() -> Self {
        Self::new(32 << 20, 2)
    }
}

impl Pace {
    /// So many bytes a second, and so many snapshots at a time.
    #[must_use]
    pub fn new(bytes_per_second: u64, at_once_max: usize) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            at_once_max,
            turns: Semaphore::new(at_once_max),
            next: Mutex::default(),
        }
    }

    /// Snapshots that are being sent.
    #[must_use]
    pub fn sending(&self) -> usize {
        self.at_once_max - self.turns.available_permits()
    }

    /// A turn, if one is free.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        self.turns.try_acquire().ok().map(Turn)
    }

    /// Returns when so many more bytes may go.
    pub(super) async fn wait(&self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let at = {
            let mut next = self.next.lock();
            let now = Instant::now();
            // What was not used is not saved up.
            let at = next.map_or(now, |next| next.max(now));
            *next = Some(at + takes);
            at
        };
        sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_senders_share_one_rate() {
        let pace = Pace::new(1_000, 2);
        let began = Instant::now();
        let send = async || {
            for _ in 0..50 {
                pace.wait(100).await;
            }
        };
        tokio::join!(send(), send());
        // The first of a hundred goes at once.
        let took = began.elapsed();
        assert!(
            (Duration::from_millis(9_900)..Duration::from_secs(10)).contains(&took),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_saves_nothing_up() {
        let pace = Pace::new(1_000, 1);
        pace.wait(1_000).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let began = Instant::now();
        for _ in 0..3 {
            pace.wait(1_000).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(2));
    }

    #[test]
    fn turns_are_few_and_come_back() {
        let pace = Pace::new(1_000, 2);
        let turns = (pace.turn(), pace.turn());
        assert!(turns.0.is_some() && turns.1.is_some() && pace.turn().is_none());
        assert_eq!(pace.sending(), 2);
        drop(turns);
        assert!(pace.turn().is_some());
        assert_eq!(pace.sending(), 0);
    }
}

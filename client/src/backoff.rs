//! How long to pause after a failure: exponential, bounded, with jitter.

use std::time::Duration;

use rand::Rng;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            failures: 0,
        }
    }

    /// Something succeeded: the next pause is a short one.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether there was exactly one failure since the last success.
    pub(crate) fn is_first(&self) -> bool {
        self.failures == 1
    }

    /// The pause after one more failure, between half and all of the exponential step.
    pub(crate) fn pause(&mut self) -> Duration {
        let step = self
            .min
            .saturating_mul(1u32 << self.failures.min(20))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(1));
        let mut backoff = Backoff::new(min, max);
        let first = backoff.pause();
        assert!(first >= min / 2 && first <= min, "{first:?}");
        for _ in 0..100 {
            assert!(backoff.pause() <= max);
        }
        assert!(backoff.pause() >= max / 2);
        backoff.reset();
        assert!(backoff.pause() <= min);
    }
}

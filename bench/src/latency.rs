//! Latencies, from a microsecond to some minutes with three significant digits, that can be sent and added.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const DIGITS: u8 = 3;
/// An hour: longer than any run.
const MICROS_MAX: u64 = 3_600_000_000;

/// A distribution of latencies in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// The same on its way between processes: each value that occurred, and how often.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts(Vec<(u64, u64)>);

impl Latencies {
    pub(crate) fn new() -> Self {
        let empty = Histogram::new_with_bounds(1, MICROS_MAX, DIGITS);
        Self(empty.expect("these bounds are allowed"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros);
    }

    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many milliseconds are not exceeded by this share of all.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub(crate) fn counts(&self) -> Counts {
        let recorded = self.0.iter_recorded();
        Counts(
            recorded
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
        )
    }

    pub(crate) fn add(&mut self, counts: &Counts) -> Result<()> {
        for (value, count) in &counts.0 {
            self.0.record_n(*value, *count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_processes_saw_is_added() -> Result<()> {
        let mut halves = [Latencies::new(), Latencies::new()];
        for millis in 1..=1000u64 {
            halves[(millis % 2) as usize].record(Duration::from_millis(millis));
        }
        let mut all = Latencies::new();
        halves.iter().try_for_each(|half| all.add(&half.counts()))?;
        for (quantile, expected_ms) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let error = (all.quantile_ms(quantile) - expected_ms).abs() / expected_ms;
            assert!(error < 0.001, "{quantile}: {}", all.quantile_ms(quantile));
        }
        Ok(())
    }
}

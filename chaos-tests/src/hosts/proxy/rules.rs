//! What is done to links at the moment. Every connection looks at it and wakes when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use super::super::Delay;
use super::super::flip::Bits;

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// Nothing passes from the first to the second.
    pub(super) cut: BTreeSet<(u16, u16)>,
    /// By the host that receives.
    late: BTreeMap<u16, Arc<Late>>,
    /// By the host that receives.
    squeezed: BTreeMap<u16, Arc<Narrow>>,
    /// By the host that receives.
    pub(super) flips: BTreeMap<u16, Arc<Bits>>,
}

#[derive(Debug)]
struct Late {
    delay: Delay,
    chance: Mutex<StdRng>,
}

/// Room for so many bytes a second, shared by all connections to a host.
#[derive(Debug)]
pub(super) struct Narrow {
    bytes_per_second: f64,
    free_at: Mutex<Instant>,
}

impl Rules {
    pub(super) fn delay(&mut self, to: u16, delay: Delay, seed: u64) {
        let chance = Mutex::new(StdRng::seed_from_u64(seed));
        self.late.insert(to, Arc::new(Late { delay, chance }));
    }

    pub(super) fn squeeze(&mut self, to: u16, bits_per_second: u64) {
        let narrow = Narrow {
            bytes_per_second: bits_per_second as f64 / 8.0,
            free_at: Mutex::new(Instant::now()),
        };
        self.squeezed.insert(to, Arc::new(narrow));
    }

    pub(super) fn is_cut(&self, from: u16, to: u16) -> bool {
        self.cut.contains(&(from, to))
    }

    /// How late what is now on its way to a host comes.
    pub(super) fn lateness(&self, to: u16) -> Duration {
        self.late.get(&to).map_or(Duration::ZERO, |late| {
            let mut chance = late.chance.lock().unwrap_or_else(PoisonError::into_inner);
            chance.random_range(late.delay.least..=late.delay.most)
        })
    }

    pub(super) fn narrow(&self, to: u16) -> Option<Arc<Narrow>> {
        self.squeezed.get(&to).cloned()
    }
}

impl Narrow {
    /// When so many bytes are through.
    pub(super) fn take(&self, bytes: usize) -> Instant {
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = (*free_at).max(Instant::now()) + took;
        *free_at
    }
}

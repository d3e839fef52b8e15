//! Packets that arrive late: every packet that comes to a host is held and let go when its time has come.
//!
//! Each packet draws a delay of its own between two bounds, so that packets overtake each other. What is held when the
//! thread is told to stop is let go at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};
use rand::Rng as _;
use rand::rngs::StdRng;

/// How exact the times are.
const TICK: Duration = Duration::from_micros(500);

/// How late packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// At least.
    pub least: Duration,
    /// At most.
    pub most: Duration,
}

/// Holds packets until told to stop.
pub(super) fn hold(mut queue: Queue, delay: Delay, mut chance: StdRng, stop: &AtomicBool) {
    let mut due: BinaryHeap<Reverse<(Instant, u64)>> = BinaryHeap::new();
    let mut held: BTreeMap<u64, Message> = BTreeMap::new();
    let mut next = 0;
    loop {
        let stopping = stop.load(Ordering::SeqCst);
        loop {
            match queue.recv() {
                Ok(packet) => {
                    let late = chance.random_range(delay.least..=delay.most);
                    due.push(Reverse((Instant::now() + late, next)));
                    held.insert(next, packet);
                    next += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The kernel had no room for a packet: it is lost, as on a full link.
                Err(_) => break,
            }
        }
        let now = Instant::now();
        while let Some(Reverse((at, number))) = due.peek().copied()
            && (at <= now || stopping)
        {
            due.pop();
            if let Some(mut packet) = held.remove(&number) {
                packet.set_verdict(Verdict::Accept);
                // A packet that the kernel no longer knows was dropped with its connection.
                let _ = queue.verdict(packet);
            }
        }
        if stopping {
            return;
        }
        thread::sleep(TICK);
    }
}

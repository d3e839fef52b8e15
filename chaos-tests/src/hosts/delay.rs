//! Packets that arrive late: a thread takes every packet that comes to a host and lets it go when its time has come.
//!
//! Each packet draws a delay of its own between two bounds, so that packets overtake each other. What is held when the
//! thread is told to stop is let go at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nfq::{Message, Queue, Verdict};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The number by which packet rules find the thread, in each host's own namespace.
pub(super) const QUEUE: u16 = 7;
/// Packets held in the kernel, at most; beyond it packets are dropped, as a full router would.
const HELD_MAX: u32 = 100_000;
/// How exact the times are.
const TICK: Duration = Duration::from_micros(500);
/// Only the verdict matters, not what is in a packet.
const COPIED_BYTES: u16 = 32;

/// How late packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// At least.
    pub least: Duration,
    /// At most.
    pub most: Duration,
}

/// The thread that delays what comes to one host; ends when dropped.
#[derive(Debug)]
pub(super) struct Delayer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Delayer {
    /// Starts in the network namespace at `path`.
    pub(super) fn start(path: &str, delay: Delay, seed: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = mpsc::channel();
        let (path, stopped) = (path.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let opened = open(&path);
            let queue = opened.map_err(|error| {
                // Told to whoever waits; without him nobody wants to know.
                let _ = ready.send(Err(error));
            });
            if let Ok(queue) = queue {
                let _ = ready.send(Ok(()));
                hold(queue, delay, StdRng::seed_from_u64(seed), &stopped);
            }
        });
        let started = is_ready.recv();
        started.map_err(|_| anyhow!("the thread that delays packets died"))??;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Delayer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(path: &str) -> Result<Queue> {
    let namespace = File::open(path).with_context(|| format!("no network namespace {path}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let mut queue = Queue::open().context("opening the packet queue")?;
    queue.bind(QUEUE).context("binding the packet queue")?;
    queue.set_queue_max_len(QUEUE, HELD_MAX)?;
    queue.set_copy_range(QUEUE, COPIED_BYTES)?;
    queue.set_recv_gso(QUEUE, true)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

fn hold(mut queue: Queue, delay: Delay, mut chance: StdRng, stop: &AtomicBool) {
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

//! Packets handed to a thread of this process, and back: the kernel's packet queue of one host.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use nfq::Queue;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The number by which packet rules find the thread, in each host's own namespace.
pub(super) const NUMBER: u16 = 7;
/// Packets held in the kernel, at most; beyond it packets are dropped, as a full router would.
const HELD_MAX: u32 = 100_000;

/// How much of a packet the thread sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Hardly anything; several packets of a connection may come as one.
    Head,
    /// All of it, one by one, with right checksums.
    Whole,
}

/// The thread that takes what comes to one host; ends when dropped.
#[derive(Debug)]
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts in the network namespace at `path`. `work` ends soon after it is told to stop.
    pub(super) fn start(
        path: &str,
        view: View,
        work: impl FnOnce(Queue, &AtomicBool) + Send + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = mpsc::channel();
        let (path, stopped) = (path.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let opened = open(&path, view);
            let queue = opened.map_err(|error| {
                // Told to whoever waits; without him nobody wants to know.
                let _ = ready.send(Err(error));
            });
            if let Ok(queue) = queue {
                let _ = ready.send(Ok(()));
                work(queue, &stopped);
            }
        });
        let started = is_ready.recv();
        started.map_err(|_| anyhow!("the thread that takes packets died"))??;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(path: &str, view: View) -> Result<Queue> {
    let namespace = File::open(path).with_context(|| format!("no network namespace {path}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let (copied_bytes, joined) = match view {
        View::Head => (32, true),
        View::Whole => (u16::MAX, false),
    };
    let mut queue = Queue::open().context("opening the packet queue")?;
    queue.bind(NUMBER).context("binding the packet queue")?;
    queue.set_queue_max_len(NUMBER, HELD_MAX)?;
    queue.set_copy_range(NUMBER, copied_bytes)?;
    queue.set_recv_gso(NUMBER, joined)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

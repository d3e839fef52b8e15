//! The one place that syncs the store: whoever waits is answered after one common sync.
//!
//! Group commit across all shards of a node. A request covers every batch written before it. Answers are given in the
//! order of the requests, on the syncer's thread, so a callback only passes the word on and never blocks. After a
//! failed sync nobody is answered, ever: what was written is unknown, and the process must end.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Error, Store};
use crate::metrics;
use crate::sabotage::{self, Break};

/// Between the beginnings of two syncs. A disk that syncs faster would be asked several times for what one sync could
/// do, each time with wake-ups on every node; a slower one never waits for this.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Told when what it waited for is durable. Must not block.
pub type Callback = Box<dyn FnOnce() + Send>;

/// What the syncer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Requests that they answered.
    pub answered: u64,
    /// How long the last sync took.
    pub last_sync: Duration,
}

/// See the module. Dropping it answers what still waits, after a last sync; a disk that hangs holds it up.
pub struct Syncer {
    shared: Arc<Shared>,
    /// `None` when it syncs within each request.
    thread: Option<JoinHandle<()>>,
}

type OnFailure = Box<dyn FnOnce(Error) + Send>;

struct Shared {
    store: Arc<dyn Store>,
    /// Bounded by the callers: a replica has one append, one vote and one snapshot under way at most.
    queue: Mutex<Queue>,
    work: Condvar,
    failed: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Callback>,
    stopping: bool,
    sync_began: Option<Instant>,
    stats: Stats,
    on_failure: Option<OnFailure>,
}

impl Syncer {
    /// A syncer with a thread of its own. `on_failure` ends the process.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        store: Arc<dyn Store>,
        on_failure: impl FnOnce(Error) + Send + 'static,
    ) -> std::io::Result<Self> {
        let mut syncer = Self::inline(store, on_failure);
        let shared = Arc::clone(&syncer.shared);
        let thread = thread::Builder::new().name("syncer".to_owned());
        syncer.thread = Some(thread.spawn(move || shared.run())?);
        Ok(syncer)
    }

    /// A syncer that syncs and answers within each request, for tests that run everything in one thread.
    #[must_use]
    pub fn inline(store: Arc<dyn Store>, on_failure: impl FnOnce(Error) + Send + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                queue: Mutex::new(Queue {
                    on_failure: Some(Box::new(on_failure)),
                    ..Queue::default()
                }),
                work: Condvar::new(),
                failed: AtomicBool::new(false),
            }),
            thread: None,
        }
    }

    /// Calls back when every batch written before this call is durable; never, if that fails.
    pub fn request(&self, callback: Callback) {
        self.shared.queue.lock().waiting.push(callback);
        match self.thread {
            Some(_) => {
                self.shared.work.notify_one();
            }
            None => self.shared.sync_waiting(),
        }
    }

    /// Since when a sync has been under way, if one is: over a second, and this node must stop its heartbeats.
    #[must_use]
    pub fn outstanding_since(&self) -> Option<Instant> {
        self.shared.queue.lock().sync_began
    }

    /// How many requests wait, not counting those that a sync under way will answer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().waiting.len()
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.queue.lock().stats
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.queue.lock().stopping = true;
        self.shared.work.notify_one();
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A callback may hold the last handle; the thread cannot wait for itself, and ends on its own.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the syncer's thread panicked");
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut last_began: Option<Instant> = None;
        while self.wait_for_work() && !self.failed.load(Ordering::Acquire) {
            if let Some(last_began) = last_began {
                thread::sleep(INTERVAL_MIN.saturating_sub(last_began.elapsed()));
            }
            last_began = Some(Instant::now());
            self.sync_waiting();
        }
    }

    /// False when there will be none.
    fn wait_for_work(&self) -> bool {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() && !queue.stopping {
            self.work.wait(&mut queue);
        }
        !queue.waiting.is_empty()
    }

    /// One sync for all that wait now; what comes meanwhile waits for the next.
    fn sync_waiting(&self) {
        if self.failed.load(Ordering::Acquire) {
            return;
        }
        let began = Instant::now();
        let callbacks = {
            let mut queue = self.queue.lock();
            queue.sync_began = Some(began);
            mem::take(&mut queue.waiting)
        };
        let synced = match sabotage::on(Break::NoSync) {
            true => Ok(()),
            false => self.store.sync(),
        };
        match synced {
            Ok(()) => self.answer(callbacks, began.elapsed()),
            Err(error) => self.fail(error),
        }
    }

    fn answer(&self, callbacks: Vec<Callback>, took: Duration) {
        metrics::SYNC_LATENCY.handle().record(took);
        {
            let mut queue = self.queue.lock();
            queue.sync_began = None;
            queue.stats.syncs += 1;
            queue.stats.answered += callbacks.len() as u64;
            queue.stats.last_sync = took;
        }
        for callback in callbacks {
            callback();
        }
    }

    /// `sync_began` stays: until the process has ended, this node's sync is outstanding.
    fn fail(&self, error: Error) {
        self.failed.store(true, Ordering::Release);
        let on_failure = self.queue.lock().on_failure.take();
        if let Some(on_failure) = on_failure {
            on_failure(error);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc;

    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::storage::{Batch, Column};

    fn put(store: &MemoryStore) {
        let mut batch = Batch::default();
        batch.put(Column::Log, "key", "value");
        store.write(batch).unwrap();
    }

    fn never_fails(error: Error) {
        panic!("{error}");
    }

    #[test]
    fn inline_syncs_within_the_request() {
        let store = MemoryStore::new();
        let syncer = Syncer::inline(Arc::new(store.clone()), never_fails);
        put(&store);
        let (answer, answers) = mpsc::channel();
        let then = store.clone();
        syncer.request(Box::new(move || answer.send(then.unsynced()).unwrap()));
        assert_eq!(answers.try_recv(), Ok(0));
        assert_eq!((store.syncs(), syncer.stats().answered), (1, 1));
        assert_eq!(syncer.outstanding_since(), None);
    }

    /// While one sync hangs, requests gather, nobody is answered, and the hang can be seen; one more sync answers
    /// them all, in order.
    #[test]
    fn what_waits_together_is_synced_together() {
        const REQUESTS: usize = 100;
        let store = MemoryStore::new();
        let syncer = Syncer::start(Arc::new(store.clone()), never_fails).unwrap();
        let (answer, answers) = mpsc::channel();
        let request = |number: usize| {
            put(&store);
            let answer = answer.clone();
            syncer.request(Box::new(move || answer.send(number).unwrap()));
        };
        store.block_syncs(true);
        request(0);
        while syncer.outstanding_since().is_none() {
            thread::yield_now();
        }
        (1..REQUESTS).for_each(request);
        assert_eq!(syncer.waiting(), REQUESTS - 1);
        assert!(answers.try_recv().is_err());
        store.block_syncs(false);
        for number in 0..REQUESTS {
            assert_eq!(answers.recv().unwrap(), number);
        }
        assert_eq!((store.syncs(), store.unsynced()), (2, 0));
        assert_eq!(syncer.stats().answered, REQUESTS as u64);
    }

    #[test]
    fn after_a_failure_nobody_is_answered() {
        let store = MemoryStore::new();
        let (failure, failures) = mpsc::channel();
        let syncer = Syncer::start(Arc::new(store.clone()), move |error| {
            failure.send(error).unwrap();
        })
        .unwrap();
        let (answer, answers) = mpsc::channel();
        let again = answer.clone();
        store.fail_syncs(true);
        syncer.request(Box::new(move || answer.send(()).unwrap()));
        assert!(matches!(failures.recv().unwrap(), Error::Io { .. }));
        store.fail_syncs(false);
        syncer.request(Box::new(move || again.send(()).unwrap()));
        assert!(syncer.outstanding_since().is_some());
        drop(syncer);
        assert!(answers.try_recv().is_err());
    }

    #[test]
    fn stopping_answers_what_waits() {
        let store = MemoryStore::new();
        let syncer = Syncer::start(Arc::new(store.clone()), never_fails).unwrap();
        let (answer, answers) = mpsc::channel();
        put(&store);
        syncer.request(Box::new(move || answer.send(()).unwrap()));
        drop(syncer);
        assert!(answers.try_recv().is_ok());
        assert_eq!(store.unsynced(), 0);
    }
}

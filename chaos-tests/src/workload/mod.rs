//! Ordinary users, driven by a seed: every device sends to everybody else in pipelines, over several clients one after
//! the other, and receives in turns of being online and away, with and without the cursor it kept.
//!
//! The seed fixes what each device does, not how the devices interleave. [`run`] ends when every device has everything
//! that was accepted for its user, with the first client that fails, or at the deadline; then the history says that the
//! devices were drained, so that the checker names what is missing. [`Load`] is the same with no end of its own, and
//! with the odd people that a service has: senders who repeat themselves, readers who are slow or die before they
//! acknowledge, users who do not come for their messages until they have expired or their queue is full.

mod absent;
mod listener;
mod sender;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use roost_client::{Credentials, Options};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::history::History;

pub use absent::Absent;

/// What the devices do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Messages that each device sends.
    pub messages: usize,
    /// Messages that a device has under way at once, at most.
    pub pipeline: usize,
    /// Clients that each device sends with, one after the other.
    pub clients: usize,
    /// For the whole run.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Messages accepted.
    pub accepted: u64,
    /// Entries received, counted once for each device.
    pub received: u64,
}

/// How far a load has come.
#[derive(Debug, Default)]
pub struct Progress {
    accepted: AtomicU64,
    delivered: AtomicU64,
}

impl Progress {
    /// Messages accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Entries received so far, again after a crash included.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::SeqCst)
    }
}

/// Who takes part, and how far things are.
struct Stage {
    history: History,
    servers: Vec<String>,
    /// Accepted for each user.
    users: BTreeMap<String, AtomicU64>,
    senders_left: watch::Sender<usize>,
    stop: watch::Receiver<bool>,
    progress: Arc<Progress>,
    deadline: Instant,
    plan: Plan,
    /// Messages a second that one device sends; `None`: as fast as answers come.
    rate: Option<f64>,
    /// Whether people are odd.
    odd: bool,
}

/// Lets every device of `cast` send and receive.
///
/// # Errors
/// When a client is over, or not everything that was accepted has come by the deadline.
pub async fn run(
    history: &History,
    servers: &[String],
    cast: &[Credentials],
    plan: Plan,
) -> Result<Totals> {
    let (_running, stop) = watch::channel(false);
    let stage = Stage::new(history, servers, cast, plan, stop);
    play(Arc::new(stage), cast.to_vec()).await
}

/// A load that goes on until it is told to stop.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    progress: Arc<Progress>,
    playing: tokio::task::JoinHandle<Result<Totals>>,
}

impl Load {
    /// Starts it: so many messages a second of all devices together, or as many as the cluster takes.
    #[must_use]
    pub fn start(
        history: &History,
        servers: &[String],
        cast: &[Credentials],
        plan: Plan,
        rate: Option<f64>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut stage = Stage::new(history, servers, cast, plan, stopped);
        stage.rate = rate.map(|rate| rate / cast.len() as f64);
        stage.odd = true;
        let progress = Arc::clone(&stage.progress);
        let playing = tokio::spawn(play(Arc::new(stage), cast.to_vec()));
        Self {
            stop,
            progress,
            playing,
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether it has ended before it was told to, which only a failure does.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.playing.is_finished()
    }

    /// Lets nobody send anything new, and waits until everybody has everything.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn finish(self) -> Result<Totals> {
        self.stop.send_replace(true);
        self.playing.await?
    }
}

async fn play(stage: Arc<Stage>, cast: Vec<Credentials>) -> Result<Totals> {
    let mut tasks: JoinSet<Result<u64>> = JoinSet::new();
    for (index, device) in (0..).zip(cast) {
        let (own, sending) = (Arc::clone(&stage), device.clone());
        tasks.spawn(async move { sender::play(&own, index, &sending).await });
        let own = Arc::clone(&stage);
        tasks.spawn(async move { listener::play(&own, index, &device).await });
    }
    let mut received = 0;
    // The first that fails ends the run: what it was about would never be complete.
    while let Some(ended) = tasks.join_next().await {
        received += ended
            .map_err(|error| anyhow!("a client's task died: {error}"))?
            .with_context(|| format!("seed {}", stage.plan.seed))?;
    }
    let accepted = stage.users.values().map(|user| user.load(Ordering::SeqCst));
    Ok(Totals {
        accepted: accepted.sum(),
        received,
    })
}

impl Stage {
    fn new(
        history: &History,
        servers: &[String],
        cast: &[Credentials],
        plan: Plan,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            history: history.clone(),
            servers: servers.to_vec(),
            users: cast
                .iter()
                .map(|device| (device.user.clone(), AtomicU64::new(0)))
                .collect(),
            senders_left: watch::Sender::new(cast.len()),
            stop,
            progress: Arc::default(),
            deadline: Instant::now() + plan.limit,
            plan,
            rate: None,
            odd: false,
        }
    }

    fn chance(&self, role: u64, index: u64) -> StdRng {
        StdRng::seed_from_u64(self.plan.seed ^ (role << 32) ^ index)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    fn options(&self, device: &Credentials) -> Options {
        Options::new(self.servers.clone(), device.clone())
    }

    fn accepted_for(&self, user: &str) -> u64 {
        self.users[user].load(Ordering::SeqCst)
    }
}

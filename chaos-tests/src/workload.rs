//! Ordinary users, driven by a seed: every device sends to everybody else in pipelines, over several clients one after
//! the other, and receives in turns of being online and away, with and without the cursor it kept.
//!
//! The seed fixes what each device does, not how the devices interleave. A run ends when every device has everything
//! that was accepted for its user, with the first client that fails, or at the deadline; then the history says that the
//! devices were drained, so that the checker names what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use roost_client::{Answer, Credentials, Cursor, Incoming, Options, Status};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::history::History;
use crate::witness::{Pending, Witness, drained};

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

/// The longest body, in bytes.
const BODY_BYTES_MAX: usize = 200;
/// Entries that a device takes before it goes away, at most.
const TURN_ENTRIES_MAX: usize = 100;
/// A device goes away when nothing comes for so long.
const TURN_IDLE: Duration = Duration::from_millis(500);

/// Who takes part, and how far things are.
struct Stage<'a> {
    history: &'a History,
    servers: &'a [String],
    users: BTreeMap<&'a str, AtomicU64>,
    senders_left: watch::Sender<usize>,
    deadline: Instant,
    plan: Plan,
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
    let stage = Stage {
        history,
        servers,
        users: cast
            .iter()
            .map(|device| (device.user.as_str(), AtomicU64::new(0)))
            .collect(),
        senders_left: watch::Sender::new(cast.len()),
        deadline: Instant::now() + plan.limit,
        plan,
    };
    let senders = (0..).zip(cast).map(|(i, device)| sender(&stage, i, device));
    let listeners = (0..)
        .zip(cast)
        .map(|(i, device)| listener(&stage, i, device));
    // The first that fails ends the run: what it was about would never be complete.
    let senders = try_join_all(senders);
    let (_, received) = futures::try_join!(senders, try_join_all(listeners))
        .with_context(|| format!("seed {}", plan.seed))?;
    let accepted = stage.users.values().map(|user| user.load(Ordering::SeqCst));
    Ok(Totals {
        accepted: accepted.sum(),
        received: received.into_iter().sum(),
    })
}

impl Stage<'_> {
    fn chance(&self, role: u64, index: u64) -> StdRng {
        StdRng::seed_from_u64(self.plan.seed ^ (role << 32) ^ index)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn options(&self, device: &Credentials) -> Options {
        Options::new(self.servers.to_vec(), device.clone())
    }
}

async fn sender(stage: &Stage<'_>, index: u64, device: &Credentials) -> Result<()> {
    let result = send_all(stage, index, device).await;
    stage.senders_left.send_modify(|left| *left -= 1);
    result.with_context(|| format!("device {} of {}", device.device, device.user))
}

async fn send_all(stage: &Stage<'_>, index: u64, device: &Credentials) -> Result<()> {
    let mut chance = stage.chance(1, index);
    let plan = stage.plan;
    let others: Vec<&str> = stage.users.keys().copied().collect();
    let mut others = others;
    others.retain(|user| *user != device.user);
    for client in 0..plan.clients {
        let witness = Witness::connect(stage.history, stage.options(device).watch())?;
        let share = plan.messages / plan.clients;
        let answers = pipeline(stage, &witness, &mut chance, &others, client, share).await?;
        if chance.random_bool(0.5) {
            settle(stage, &witness, &answers).await?;
        }
        witness.close().await;
    }
    Ok(())
}

/// Sends `count` messages to anybody, and gives the answers of the accepted ones.
async fn pipeline(
    stage: &Stage<'_>,
    witness: &Witness,
    chance: &mut StdRng,
    others: &[&str],
    client: usize,
    count: usize,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::with_capacity(count);
    let mut under_way = FuturesUnordered::new();
    for number in 0..count {
        if under_way.len() >= stage.plan.pipeline {
            answers.extend(under_way.next().await);
        }
        let to = others[chance.random_range(0..others.len())];
        let mut body = vec![0; chance.random_range(1..=BODY_BYTES_MAX)];
        chance.fill(&mut body[..]);
        let pending: Pending = witness
            .send(to, &format!("{client}-{number}"), body, None)
            .await?;
        under_way.push(witness.answer(pending, stage.left()));
    }
    while let Some(answer) = under_way.next().await {
        answers.push(answer);
    }
    let answers: Vec<Answer> = answers.into_iter().collect::<Result<_>>()?;
    for answer in &answers {
        if !answer.is_accepted() {
            bail!("{} was refused: {:?}", answer.id, answer.error);
        }
        stage.users[answer.to.as_str()].fetch_add(1, Ordering::SeqCst);
    }
    Ok(answers)
}

async fn settle(stage: &Stage<'_>, witness: &Witness, answers: &[Answer]) -> Result<()> {
    for answer in answers {
        witness
            .wait_status(answer, Status::Delivered, stage.left())
            .await?;
    }
    witness.settled();
    Ok(())
}

/// What a device keeps while it is away.
#[derive(Default)]
struct Kept {
    cursor: Option<Cursor>,
    seen: BTreeSet<Cursor>,
}

async fn listener(stage: &Stage<'_>, index: u64, device: &Credentials) -> Result<u64> {
    let mut chance = stage.chance(2, index);
    let mut kept = Kept::default();
    let mut result = Ok(());
    while result.is_ok() && !complete(stage, device, &kept) {
        result = turn(stage, &mut chance, device, &mut kept).await;
        if stage.left().is_zero() {
            break;
        }
    }
    drained(stage.history, device);
    let (received, accepted) = (kept.seen.len() as u64, accepted(stage, device));
    result.with_context(|| format!("device {} of {}", device.device, device.user))?;
    if received < accepted {
        bail!(
            "device {} of {} has {received} of {accepted} entries at the deadline",
            device.device,
            device.user
        );
    }
    Ok(received)
}

fn accepted(stage: &Stage<'_>, device: &Credentials) -> u64 {
    stage.users[device.user.as_str()].load(Ordering::SeqCst)
}

fn complete(stage: &Stage<'_>, device: &Credentials, kept: &Kept) -> bool {
    *stage.senders_left.borrow() == 0 && kept.seen.len() as u64 >= accepted(stage, device)
}

/// Online for some entries, then away; what it has may be left unacknowledged, unless nothing new came.
async fn turn(
    stage: &Stage<'_>,
    chance: &mut StdRng,
    device: &Credentials,
    kept: &mut Kept,
) -> Result<()> {
    let cursor = kept.cursor.filter(|_| chance.random_bool(0.5));
    let witness = Witness::listen(stage.history, stage.options(device), cursor)?;
    let quota = chance.random_range(1..=TURN_ENTRIES_MAX);
    let before = kept.seen.len();
    for _ in 0..quota {
        let Some(incoming) = next(stage, &witness, device, kept).await else {
            break;
        };
        let cursor = incoming.cursor();
        if matches!(incoming, Incoming::Delivery(_)) {
            kept.seen.insert(cursor);
        }
        kept.cursor = kept.cursor.max(Some(cursor));
        if chance.random_bool(0.1) {
            witness.ack_soon(cursor);
        }
    }
    let leave_some = kept.seen.len() > before && chance.random_bool(0.3);
    if let (false, Some(cursor)) = (leave_some, kept.cursor) {
        witness.ack(cursor, stage.left()).await?;
    }
    witness.close().await;
    Ok(())
}

/// The next item, unless nothing comes for a while, or nothing more is to come.
async fn next(
    stage: &Stage<'_>,
    witness: &Witness,
    device: &Credentials,
    kept: &Kept,
) -> Option<Incoming> {
    let mut senders_left = stage.senders_left.subscribe();
    let finished = async {
        // The sender of the watch lives as long as the stage.
        let _ = senders_left.wait_for(|left| *left == 0).await;
        if !complete(stage, device, kept) {
            std::future::pending::<()>().await;
        }
    };
    let taken = async {
        tokio::select! {
            biased;
            incoming = timeout(TURN_IDLE, witness.next()) => incoming.ok().flatten(),
            () = finished => None,
        }
    };
    timeout_at(stage.deadline, taken).await.ok().flatten()
}

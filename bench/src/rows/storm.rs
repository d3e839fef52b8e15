//! Row D: many users with waiting messages connect at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::window::mib;
use super::{Plan, SENDERS_FROM, progress};
use crate::fleet::Fleet;
use crate::load::{Choice, Job, Order, Pace, Sends, Storm};
use crate::procfs::usage;
use crate::results::Run;
use crate::roost::Roost;
use crate::users::Users;

const SENDERS: Users = Users::new(SENDERS_FROM, 10);
const MESSAGES: u64 = 10;
const BODY_BYTES: usize = 256;
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(100);
/// Lets what filling left behind come to rest.
const REST: Duration = Duration::from_secs(5);

pub(super) async fn run(plan: &Plan) -> Result<Run> {
    let users = Users::new(0, if plan.quick { 2_000 } else { 10_000 });
    let roost = Roost::start(&plan.cluster(), plan.shards).await?;
    roost.add(SENDERS).await?;
    roost.add(users).await?;
    let fill = Job::Sends(Sends {
        servers: roost.servers(),
        senders: SENDERS,
        recipients: users,
        choice: Choice::InTurn,
        body_bytes: BODY_BYTES,
        pace: Pace::Window(plan.window),
        messages: Some(MESSAGES * u64::from(users.count)),
    });
    let mut fleet = Fleet::start(&fill, 1).await?;
    fleet.order(Order::Go).await?;
    fleet
        .finished(LIMIT, |time, done| say(time, done, "waiting"))
        .await?;
    fleet.stop().await?;
    tokio::time::sleep(REST).await;

    let storm = Job::Storm(Storm {
        servers: roost.servers(),
        users,
        messages: MESSAGES,
    });
    let mut fleet = Fleet::start(&storm, plan.processes).await?;
    let before = usage(&roost.pids())?;
    let peak = Peak::watch(roost.pids());
    let start = Instant::now();
    fleet.order(Order::Go).await?;
    fleet
        .finished(LIMIT, |time, done| say(time, done, "delivered"))
        .await?;
    let took = start.elapsed();
    let after = usage(&roost.pids())?;
    let peak_bytes = peak.bytes();
    fleet.stop().await?;
    roost.stop().await?;

    let messages = MESSAGES as f64 * f64::from(users.count);
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    let mut run = Run::default();
    run.add("all delivered and acknowledged", "s", took.as_secs_f64());
    run.add(
        "memory grown",
        "MiB",
        mib(peak_bytes.saturating_sub(before.memory_bytes)),
    );
    run.add("server processor", "CPU-s", cpu);
    run.add("per server CPU-second", "msg/CPU-s", messages / cpu);
    run.add("users", "users", f64::from(users.count));
    Ok(run)
}

fn say(time: Duration, done: u64, what: &str) {
    progress("D", &format!("{:3.0} s: {done} {what}", time.as_secs_f64()));
}

/// The most memory that some processes had together, as often as it was looked.
struct Peak {
    bytes: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Peak {
    fn watch(pids: Vec<u32>) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(LOOK);
            while let Ok(usage) = usage(&pids) {
                seen.fetch_max(usage.memory_bytes, Ordering::Relaxed);
                tick.tick().await;
            }
        });
        Self { bytes, task }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.task.abort();
    }
}

//! Row F: what a message costs as things grow. Each figure is messages per server CPU-second, as in row A.

use std::time::Duration;

use anyhow::Result;

use super::{Plan, SENDERS_FROM, progress, window};
use crate::fleet::Fleet;
use crate::load::{Choice, Job, Order, Pace, Sends};
use crate::results::Run;
use crate::roost::Roost;
use crate::users::Users;

const SENDERS: Users = Users::new(SENDERS_FROM, 50);
const BODY_BYTES: usize = 256;
const USERS: u32 = 20_000;
/// Whose queues grow.
const DEEP_USERS: u32 = 16;
const FILL_LIMIT: Duration = Duration::from_secs(400);

/// What is tried: small enough with `--quick` to see that it works, and in full.
struct Steps {
    depths: &'static [u64],
    users: &'static [u32],
    shards: &'static [u32],
    bodies: &'static [usize],
}

const QUICK: Steps = Steps {
    depths: &[10, 1_000],
    users: &[1_000, 10_000],
    shards: &[32],
    bodies: &[16, 4_096],
};
const FULL: Steps = Steps {
    depths: &[10, 1_000, 10_000, 90_000],
    users: &[1_000, 100_000, 1_000_000],
    shards: &[1, 8, 32, 128],
    bodies: &[16, 256, 4_096, 65_536],
};

pub(super) async fn run(plan: &Plan) -> Result<Run> {
    let steps = if plan.quick { QUICK } else { FULL };
    let mut run = Run::default();
    depths(plan, steps.depths, &mut run).await?;
    for users in steps.users {
        let roost = start(plan, plan.shards, *users).await?;
        let job = sends(&roost, *users, BODY_BYTES, plan.window);
        add(&mut run, format!("{users} users"), &roost, &job, plan).await?;
        roost.stop().await?;
    }
    for shards in steps.shards {
        let roost = start(plan, *shards, USERS).await?;
        let job = sends(&roost, USERS, BODY_BYTES, plan.window);
        add(&mut run, format!("{shards} shards"), &roost, &job, plan).await?;
        roost.stop().await?;
    }
    let roost = start(plan, plan.shards, USERS).await?;
    for bytes in steps.bodies {
        // No more bytes under way than a session's window would hold of 1 KiB bodies.
        let window = plan.window.min((64 << 10) / bytes.max(&64)).max(2);
        let job = sends(&roost, USERS, *bytes, window);
        add(
            &mut run,
            format!("bodies of {bytes} bytes"),
            &roost,
            &job,
            plan,
        )
        .await?;
    }
    roost.stop().await?;
    Ok(run)
}

/// The same users' queues, ever deeper.
async fn depths(plan: &Plan, depths: &[u64], run: &mut Run) -> Result<()> {
    let roost = start(plan, plan.shards, DEEP_USERS).await?;
    let mut filled = 0;
    for depth in depths {
        let target = depth * u64::from(DEEP_USERS);
        let job = Sends {
            choice: Choice::InTurn,
            messages: Some(target.saturating_sub(filled)),
            ..of(&roost, DEEP_USERS, BODY_BYTES, plan.window)
        };
        let mut fleet = Fleet::start(&Job::Sends(job), 1).await?;
        fleet.order(Order::Go).await?;
        let say = |_, done| progress("F", &format!("{done} queued towards a depth of {depth}"));
        fleet.finished(FILL_LIMIT, say).await?;
        fleet.stop().await?;
        let job = sends(&roost, DEEP_USERS, BODY_BYTES, plan.window);
        let what = format!("queues of {depth} entries");
        filled = target.max(filled) + add(run, what, &roost, &job, plan).await?;
    }
    roost.stop().await
}

async fn start(plan: &Plan, shards: u32, users: u32) -> Result<Roost> {
    progress("F", &format!("{shards} shards, {users} users"));
    let roost = Roost::start(&plan.cluster(), shards).await?;
    roost.add(SENDERS).await?;
    roost.add(Users::new(0, users)).await?;
    Ok(roost)
}

fn sends(roost: &Roost, users: u32, body_bytes: usize, window: usize) -> Job {
    Job::Sends(of(roost, users, body_bytes, window))
}

fn of(roost: &Roost, users: u32, body_bytes: usize, window: usize) -> Sends {
    Sends {
        servers: roost.servers(),
        senders: SENDERS,
        recipients: Users::new(0, users),
        choice: Choice::Any,
        body_bytes,
        pace: Pace::Window(window),
        messages: None,
    }
}

/// Measures a step; returns about how many messages that added.
async fn add(run: &mut Run, what: String, roost: &Roost, job: &Job, plan: &Plan) -> Result<u64> {
    let (measured, total) = window::measure("F", roost, job, plan).await?;
    let per_cpu = measured.get("per server CPU-second").unwrap_or_default();
    run.add(what, "msg/CPU-s", per_cpu);
    let warm = plan.warm_up().as_secs_f64() / plan.measured().as_secs_f64();
    Ok((total.done as f64 * (1.0 + warm)) as u64)
}

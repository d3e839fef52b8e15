//! Row C: what a session costs that is attached and does nothing.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Plan, progress};
use crate::fleet::Fleet;
use crate::load::{Idle, Job, Order};
use crate::procfs::usage;
use crate::results::Run;
use crate::roost::Roost;
use crate::users::Users;

/// Lets what opening left behind come to rest.
const REST: Duration = Duration::from_secs(5);

pub(super) async fn run(plan: &Plan) -> Result<Run> {
    let sessions = if plan.quick { 2_000 } else { 10_000 };
    let users = Users::new(0, sessions);
    let roost = Roost::start(&plan.cluster(), plan.shards).await?;
    roost.add(users).await?;
    tokio::time::sleep(REST).await;
    let before = usage(&roost.pids())?;
    let start = Instant::now();
    let job = Job::Idle(Idle {
        servers: roost.servers(),
        users,
    });
    let mut fleet = Fleet::start(&job, plan.processes).await?;
    let opened = start.elapsed();
    let open = usage(&roost.pids())?;
    progress(
        "C",
        &format!("{sessions} sessions are open after {opened:.1?}"),
    );
    fleet.order(Order::Go).await?;
    fleet.run_for(REST, |_, _| ()).await?;
    let rested = usage(&roost.pids())?;
    fleet.run_for(plan.measured(), |_, _| ()).await?;
    let after = usage(&roost.pids())?;
    fleet.stop().await?;
    roost.stop().await?;

    let count = f64::from(sessions);
    let grown = after.memory_bytes.saturating_sub(before.memory_bytes);
    let login = open.cpu - before.cpu;
    let idle = after.cpu - rested.cpu;
    let mut run = Run::default();
    run.add("memory of a session", "bytes", grown as f64 / count);
    run.add(
        "processor of a login",
        "ms",
        login.as_secs_f64() * 1000.0 / count,
    );
    run.add(
        "processor while idle, all nodes",
        "cores",
        idle.as_secs_f64() / plan.measured().as_secs_f64(),
    );
    run.add("sessions", "sessions", count);
    Ok(run)
}

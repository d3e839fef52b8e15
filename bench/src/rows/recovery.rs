//! Row G: all nodes die by SIGKILL over much data, and start again.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Plan, SENDERS_FROM, progress};
use crate::fleet::Fleet;
use crate::load::{Choice, Job, Order, Pace, Sends};
use crate::results::Run;
use crate::roost::Roost;
use crate::users::Users;

const SENDERS: Users = Users::new(SENDERS_FROM, 10);
/// So many that no queue comes near its bound.
const RECIPIENTS: Users = Users::new(0, 1_000);
const BODY_BYTES: usize = 64 << 10;
/// Bodies of this size under way for each sender.
const WINDOW: usize = 8;
const GIB: u64 = 1 << 30;
const FILL_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn run(plan: &Plan) -> Result<Run> {
    let sizes: &[u64] = if plan.quick { &[1] } else { &[1, 5] };
    let mut roost = Roost::start(&plan.cluster(), plan.shards).await?;
    roost.add(SENDERS).await?;
    roost.add(RECIPIENTS).await?;
    let mut run = Run::default();
    let mut filled = 0;
    for size in sizes {
        fill(&roost, size * GIB - filled).await?;
        filled = size * GIB;
        let held = roost.disk_bytes()? as f64 / roost.replicas() / GIB as f64;
        roost.cluster.kill_all().await?;
        let start = Instant::now();
        roost.cluster.start_all()?;
        roost.cluster.wait_ready().await?;
        let took = start.elapsed().as_secs_f64();
        progress(
            "G",
            &format!("ready after {took:.1} s over {size} GiB of bodies a node"),
        );
        run.add(format!("ready over {size} GiB of bodies a node"), "s", took);
        run.add(
            format!("files of a node with {size} GiB of bodies"),
            "GiB",
            held,
        );
    }
    roost.stop().await?;
    Ok(run)
}

async fn fill(roost: &Roost, bytes: u64) -> Result<()> {
    let job = Job::Sends(Sends {
        servers: roost.servers(),
        senders: SENDERS,
        recipients: RECIPIENTS,
        choice: Choice::InTurn,
        body_bytes: BODY_BYTES,
        pace: Pace::Window(WINDOW),
        messages: Some(bytes / BODY_BYTES as u64),
    });
    let mut fleet = Fleet::start(&job, 1).await?;
    fleet.order(Order::Go).await?;
    let say = |time: Duration, done: u64| {
        if time.as_secs().is_multiple_of(5) {
            let mib = (done * BODY_BYTES as u64) >> 20;
            progress(
                "G",
                &format!("{:3.0} s: {mib} MiB of bodies", time.as_secs_f64()),
            );
        }
    };
    fleet.finished(FILL_LIMIT, say).await?;
    fleet.stop().await.map(drop)
}

//! Row B: messages between users who are both online, at different nodes: at saturation, and at 1,000 a second.
//!
//! A message counts when its sender has been told *delivered*: it is accepted, handed over, acknowledged, deleted, and
//! its receipt is on a majority of the disks of the sender's shard.

use anyhow::Result;

use super::{Plan, SENDERS_FROM, window};
use crate::load::{Job, Pace, Pairs};
use crate::results::Run;
use crate::roost::Roost;
use crate::users::Users;

const PAIRS: u32 = 50;
const BODY_BYTES: usize = 256;
const PER_SECOND: f64 = 1000.0;

pub(super) async fn run(plan: &Plan) -> Result<Run> {
    let roost = Roost::start(&plan.cluster(), plan.shards).await?;
    let mut run = Run::default();
    // Other users each time: a receiver's queue begins empty.
    for (n, prefix, pace) in [
        (0, "", Pace::Window(plan.window)),
        (1, "1,000/s: ", Pace::PerSecond(PER_SECOND)),
    ] {
        let senders = Users::new(SENDERS_FROM + n * PAIRS, PAIRS);
        let receivers = Users::new(n * PAIRS, PAIRS);
        roost.add(senders).await?;
        roost.add(receivers).await?;
        let job = Job::Pairs(Pairs {
            servers: roost.servers(),
            senders,
            receivers,
            body_bytes: BODY_BYTES,
            pace,
        });
        let (measured, _) = window::measure("B", &roost, &job, plan).await?;
        run.extend(prefix, measured);
    }
    run.add("under way, a sender", "messages", plan.window as f64);
    roost.stop().await?;
    Ok(run)
}

//! Row A: messages for users who are offline, at saturation.

use anyhow::Result;

use super::{Plan, SENDERS_FROM, progress, window};
use crate::load::{Choice, Job, Pace, Sends};
use crate::results::Run;
use crate::roost::Roost;
use crate::users::Users;

const SENDERS: Users = Users::new(SENDERS_FROM, 50);
const RECIPIENTS: Users = Users::new(0, 20_000);
const BODY_BYTES: usize = 256;

pub(super) async fn run(plan: &Plan) -> Result<Run> {
    let roost = Roost::start(&plan.cluster(), plan.shards).await?;
    progress("A", &format!("adding {} accounts", RECIPIENTS.count));
    roost.add(SENDERS).await?;
    roost.add(RECIPIENTS).await?;
    let job = Job::Sends(Sends {
        servers: roost.servers(),
        senders: SENDERS,
        recipients: RECIPIENTS,
        choice: Choice::Any,
        body_bytes: BODY_BYTES,
        pace: Pace::Window(plan.window),
        messages: None,
    });
    let (mut run, _) = window::measure("A", &roost, &job, plan).await?;
    run.add("under way, a sender", "messages", plan.window as f64);
    roost.stop().await?;
    Ok(run)
}

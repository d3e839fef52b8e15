//! Row E: one of three nodes dies by SIGKILL under load, with a third of the sessions and of the leaders.

use std::time::Duration;

use anyhow::Result;

use super::{Plan, SENDERS_FROM, progress};
use crate::fleet::Fleet;
use crate::load::{Careful, Job, Order};
use crate::results::Run;
use crate::roost::Roost;
use crate::users::Users;

const PAIRS: u32 = 50;
const BODY_BYTES: usize = 256;
const PER_SECOND: f64 = 1000.0;
/// Before the node dies, and after.
const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_secs(8);
const VICTIM: u16 = 2;
const LIMIT: Duration = Duration::from_secs(90);

pub(super) async fn run(plan: &Plan) -> Result<Run> {
    let mut roost = Roost::start(&plan.cluster(), plan.shards).await?;
    let (senders, receivers) = (Users::new(SENDERS_FROM, PAIRS), Users::new(0, PAIRS));
    roost.add(senders).await?;
    roost.add(receivers).await?;
    let seconds = (BEFORE + AFTER).as_secs_f64();
    let job = Job::Careful(Careful {
        servers: roost.servers(),
        senders,
        receivers,
        body_bytes: BODY_BYTES,
        per_second: PER_SECOND,
        messages: (PER_SECOND * seconds) as u64,
    });
    let mut fleet = Fleet::start(&job, 1).await?;
    fleet.order(Order::Go).await?;
    let say = |time: Duration, done: u64| {
        progress(
            "E",
            &format!("{:3.0} s: {done} delivered", time.as_secs_f64()),
        );
    };
    fleet.run_for(BEFORE, say).await?;
    roost.cluster.node_mut(VICTIM).kill().await?;
    progress("E", &format!("node-{VICTIM} is dead"));
    fleet.finished(LIMIT, say).await?;
    let total = fleet.stop().await?;
    roost.stop().await?;

    let mut run = Run::default();
    run.add("accepted and lost", "messages", total.lost as f64);
    run.add("handed over twice", "messages", total.twice as f64);
    run.add("delivered", "messages", total.done as f64);
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let gap = total.worst.quantile_ms(quantile) / 1000.0;
        run.add(format!("longest wait of a pair {name}"), "s", gap);
    }
    run.add("delivered p50", "ms", total.delivered.quantile_ms(0.5));
    run.add("delivered p99", "ms", total.delivered.quantile_ms(0.99));
    Ok(run)
}

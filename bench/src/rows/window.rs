//! One measurement under load: warm-up, then a window in which everything is counted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Plan, progress};
use crate::fleet::{Fleet, Total};
use crate::latency::Latencies;
use crate::load::{Job, Order};
use crate::procfs;
use crate::results::Run;
use crate::roost::Roost;

/// Loads the cluster and measures; the figures common to all loads are in the run.
///
/// # Errors
/// When a generator or a node fails, or nothing was done.
pub(super) async fn measure(
    row: &str,
    roost: &Roost,
    job: &Job,
    plan: &Plan,
) -> Result<(Run, Total)> {
    let mut fleet = Fleet::start(job, plan.processes).await?;
    fleet.order(Order::Go).await?;
    fleet.run_for(plan.warm_up(), |_, _| ()).await?;

    let disk_before = roost.disk_bytes()?;
    let before = roost.sample().await?;
    let own_before = own(&fleet)?;
    let start = Instant::now();
    fleet.order(Order::Measure).await?;
    let pids = roost.pids();
    fleet
        .run_for(plan.measured(), |time, done| {
            let cpu = procfs::usage(&pids).map(|usage| usage.cpu - before.usage.cpu);
            let cpu = cpu.unwrap_or_default().as_secs_f64();
            let rate = done as f64 / time.as_secs_f64();
            progress(
                row,
                &format!(
                    "{:3.0} s: {rate:.0} msg/s, {:.0} per server CPU-second",
                    time.as_secs_f64(),
                    done as f64 / cpu.max(0.01)
                ),
            );
        })
        .await?;
    let after = roost.sample().await?;
    let own_cpu = own(&fleet)? - own_before;
    let took = start.elapsed().as_secs_f64();
    let total = fleet.stop().await?;
    let disk = roost.disk_bytes()?.saturating_sub(disk_before);
    ensure!(total.done > 0, "no message was done in {took:.0} s");

    let messages = total.done as f64;
    let cpu = (after.usage.cpu - before.usage.cpu).as_secs_f64();
    let replicas = roost.replicas();
    let written = after.usage.written_bytes - before.usage.written_bytes;
    let mut run = Run::default();
    run.add("rate", "msg/s", messages / took);
    run.add("per server CPU-second", "msg/CPU-s", messages / cpu);
    run.add("server processor", "cores", cpu / took);
    run.add("generator's share", "cores", own_cpu.as_secs_f64() / took);
    latencies(&mut run, "accepted", &total.accepted);
    latencies(&mut run, "delivered", &total.delivered);
    latencies(&mut run, "told", &total.told);
    run.add(
        "refused and sent again",
        "per message",
        total.refused as f64 / messages,
    );
    run.add(
        "fsyncs, all nodes",
        "per message",
        (after.syncs - before.syncs) / messages,
    );
    run.add(
        "written to disk, a replica",
        "bytes per message",
        written as f64 / messages / replicas,
    );
    run.add(
        "held on disk, a replica",
        "bytes per message",
        disk as f64 / messages / replicas,
    );
    run.add(
        "on the wire, clients and nodes",
        "bytes per message",
        (after.loopback_bytes - before.loopback_bytes) as f64 / messages,
    );
    run.add("memory, all nodes", "MiB", mib(after.usage.memory_bytes));
    Ok((run, total))
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Processor time of the generators and of this process.
fn own(fleet: &Fleet) -> Result<Duration> {
    let mut pids = fleet.pids();
    pids.push(std::process::id());
    Ok(procfs::usage(&pids)?.cpu)
}

pub(crate) fn latencies(run: &mut Run, what: &str, latencies: &Latencies) {
    if latencies.is_empty() {
        return;
    }
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        run.add(
            format!("{what} {name}"),
            "ms",
            latencies.quantile_ms(quantile),
        );
    }
}

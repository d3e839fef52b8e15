//! Queued messages cost disk, not memory.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use roost_chaos_tests::cli::Cli;
use roost_chaos_tests::lab::{Lab, Setup};

const SENDERS: usize = 4;
const RECIPIENTS_EACH: usize = 5;
/// In each queue, below every bound of one.
const ENTRIES: usize = 50_000;
const IDLE_KIB_MAX: u64 = 200_000_000 / 1024;
const GROWTH_KIB_MAX: u64 = 100_000_000 / 1024;

/// Goal: an idle node with 32 shards stays under 200 MB, and a million queued entries add less than 100 MB to any node,
/// at its highest and not only afterwards. Method: default settings; the kernel's own count of each process before, and
/// its high-water mark after, twenty queues of 50,000 entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_queued_entries_cost_disk_not_memory() -> Result<()> {
    let lab = Lab::start(Setup::nodes(3).shards(32).alone()).await?;
    let cli = Cli::new(&lab.cluster, lab.directory())?;
    let sender = |number| format!("+15551{number:04}");
    let recipient = |number, nth| format!("+15552{number:02}{nth:02}");
    for number in 0..SENDERS {
        add(&cli, &sender(number)).await?;
        for nth in 0..RECIPIENTS_EACH {
            add(&cli, &recipient(number, nth)).await?;
        }
    }
    let mut before = Vec::new();
    for k in 1..=3 {
        let idle = resident_kib(&lab, k, "VmRSS:")?;
        ensure!(idle < IDLE_KIB_MAX, "node {k} has {idle} KiB when idle");
        before.push(idle);
    }

    let lines: String = (0..ENTRIES).map(|line| format!("{line}\n")).collect();
    let all = (0..SENDERS).map(|number| {
        let (cli, lines) = (&cli, &lines);
        async move {
            for nth in 0..RECIPIENTS_EACH {
                let (from, to) = (sender(number), recipient(number, nth));
                let words = ["send", "--as", &from, "--to", &to, "--timeout", "5m"];
                cli.run_with_input(&words, lines.as_bytes())
                    .await?
                    .expect(0)?;
            }
            anyhow::Ok(())
        }
    });
    try_join_all(all).await?;
    for number in 0..SENDERS {
        for nth in 0..RECIPIENTS_EACH {
            lab.wait_queued(&recipient(number, nth), ENTRIES as u64)
                .await?;
        }
    }

    for (k, idle) in (1..=3).zip(before) {
        let highest = resident_kib(&lab, k, "VmHWM:")?;
        let growth = highest.saturating_sub(idle);
        println!("node {k}: {idle} KiB idle, {highest} KiB at most: {growth} KiB more");
        ensure!(growth < GROWTH_KIB_MAX, "node {k} grew by {growth} KiB");
    }
    lab.pass().await
}

async fn add(cli: &Cli, user: &str) -> Result<()> {
    let words = ["account", "add", user, "--device", "phone"];
    cli.run(&words).await?.expect(0).map(drop)
}

/// A line of `/proc/PID/status`.
fn resident_kib(lab: &Lab, k: u16, line: &str) -> Result<u64> {
    let pid = lab.cluster.node(k).pid().context("the node runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|text| text.strip_prefix(line));
    let kib = found.and_then(|rest| rest.split_whitespace().next());
    Ok(kib.context("the kernel tells it")?.parse()?)
}

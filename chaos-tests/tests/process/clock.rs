//! A wrong wall clock on one node.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup, until};
use roost_chaos_tests::witness::{Witness, drained};
use tokio::process::Command;
use tokio::time::timeout;

use crate::files::random_bodies;
use crate::{ANN, BOB, CAROL, LIMIT};

/// The library that lies about the time (Debian's `libfaketime`).
const FAKE_TIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const INSTALL_LIMIT: Duration = Duration::from_secs(120);
const WRONG: u16 = 3;
const MESSAGES: usize = 20;

/// Goal: a clock ten years ahead on one node expires nothing, stops nobody, is measured, and its node leads nothing.
/// Method: messages to two users who are offline; one node starts again with a clock ten years ahead; more messages
/// through it and through another node; it leads nothing any more; another node dies, so that it must
/// take part; everything is delivered, some of it through the node with the wrong clock.
#[tokio::test]
async fn a_clock_ten_years_ahead_expires_nothing() -> Result<()> {
    install_fake_time().await?;
    let mut lab = Lab::start(Setup::nodes(3).shards(4).alone()).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let offline = [
        lab.add_device(BOB, "phone").await?,
        lab.add_device(CAROL, "phone").await?,
    ];
    let bodies = random_bodies(MESSAGES, 100);
    let right = Witness::connect(&lab.history, lab.through(1, &ann))?;
    for to in [BOB, CAROL] {
        right.send_all(to, "before", &bodies, LIMIT).await?;
    }

    lab.kill(WRONG).await?;
    let env = &mut lab.cluster.node_mut(WRONG).overrides_mut().env;
    for (name, value) in [
        ("LD_PRELOAD", FAKE_TIME),
        ("FAKETIME", "+10y"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ] {
        env.insert(name.into(), value.into());
    }
    lab.restart(WRONG).await?;
    let ahead = until(LIMIT, "the node's clock is measured", async || {
        let offset = lab.metric(WRONG, "roost_node_clock_offset_seconds").await?;
        Ok(offset.filter(|offset| *offset > 0.0))
    });
    println!(
        "node {WRONG} says that its clock is {} s ahead",
        ahead.await?
    );

    let wrong = Witness::connect(&lab.history, lab.through(WRONG, &ann))?;
    for to in [BOB, CAROL] {
        wrong.send_all(to, "through-wrong", &bodies, LIMIT).await?;
        right.send_all(to, "through-right", &bodies, LIMIT).await?;
    }
    until(LIMIT, "the node leads nothing", async || {
        let status = lab.admin_through(1)?.status().await?;
        let name = lab.cluster.node(WRONG).name();
        let node = status.nodes.iter().find(|node| node.name == name);
        let node = node.context("the node is known")?;
        let mut leaders = status.shards.iter().map(|shard| &shard.leader);
        let settled = leaders.all(|leader| !leader.is_empty() && *leader != node.id);
        Ok(settled.then(|| println!("it leads nothing; warnings: {:?}", status.warnings)))
    })
    .await?;

    lab.kill(1).await?;
    let last = Witness::connect(&lab.history, lab.through(WRONG, &ann))?;
    for to in [BOB, CAROL] {
        last.send_all(to, "last", &bodies, LIMIT).await?;
    }
    for (device, k) in offline.iter().zip([2, WRONG]) {
        let listener = Witness::listen(&lab.history, lab.through(k, device), None)?;
        let deliveries = listener.receive(4 * MESSAGES, LIMIT).await?;
        listener
            .ack(deliveries[4 * MESSAGES - 1].cursor(), LIMIT)
            .await?;
        drained(&lab.history, device);
    }
    lab.pass().await
}

async fn install_fake_time() -> Result<()> {
    if !Path::new(FAKE_TIME).exists() {
        let mut apt = Command::new("apt-get");
        apt.args([
            "install",
            "-y",
            "-q",
            "--no-install-recommends",
            "libfaketime",
        ])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
        // What counts is whether it is there.
        let _ = timeout(INSTALL_LIMIT, apt.status()).await;
    }
    ensure!(
        Path::new(FAKE_TIME).exists(),
        "{FAKE_TIME} is needed, and only root can install it: apt-get install libfaketime"
    );
    Ok(())
}

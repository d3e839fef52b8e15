//! Leaderships under a load that takes every processor.
//!
//! Measured on two processors, 32 shards: none moves, also beside ten other processes that want the same processors. What does move is what the founding left: a shard's first leader is whoever was first,
//! and a few seconds later each shard that is not led by its preferred node is handed over to it. So that comes first.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use roost_chaos_tests::lab::{Lab, Setup, until};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::Credentials;
use tokio::time::Instant;

const SENDERS: usize = 8;
const SHARDS: u32 = 32;
/// Messages that each sender has under way.
const PIPELINE: usize = 256;
const BODY_BYTES: usize = 256;
const LOAD: Duration = Duration::from_secs(25);
/// For the leaders of all shards to be where they belong before the load begins.
const SETTLING: Duration = Duration::from_secs(60);
/// Each node of three leads a third, the meta shard among them.
const LEADS_EACH: usize = SHARDS as usize / 3;
/// New leaders under load that are no alarm: a loaded machine may stall for longer than any timeout.
const CHANGES_MAX: usize = SHARDS as usize / 4;
const LIMIT: Duration = Duration::from_secs(60);
/// What a node says when one of its replicas begins to lead.
const LEADS: &str = " leads ";

/// Goal: a saturated cluster keeps its leaders, and loses nothing. Method: eight senders in pipelines to eight users who
/// are offline, for 25 s; each new leader is counted by the nodes' logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saturated_nodes_keep_their_leaders() -> Result<()> {
    let roomy = "[queue]\nentries_max = 100_000_000\nbytes_max = 60_000_000_000\n";
    let setup = Setup::nodes(3).shards(SHARDS).toml(roomy).alone();
    let lab = Lab::start(setup).await?;
    let mut pairs = Vec::new();
    for number in 0..SENDERS {
        let sender = lab
            .add_device(&format!("+1555100{number}"), "phone")
            .await?;
        let receiver = lab
            .add_device(&format!("+1555200{number}"), "phone")
            .await?;
        pairs.push((sender, receiver));
    }
    let admin = lab.admin()?;
    until(SETTLING, "leaders spread evenly", async || {
        let mut led = BTreeMap::new();
        for shard in admin.status().await?.shards {
            *led.entry(shard.leader).or_insert(0) += 1;
        }
        Ok((led.len() == 3 && led.values().all(|led| *led >= LEADS_EACH)).then_some(()))
    })
    .await?;
    let before = leaders_begun(&lab)?;
    let loads = pairs.iter().map(|(from, to)| load(&lab, from, to));
    let accepted = try_join_all(loads).await?;
    let changes = leaders_begun(&lab)? - before;
    let total: usize = accepted.iter().sum();
    println!("{changes} changes of leaders, {total} messages accepted in {LOAD:?}");
    for ((_, receiver), accepted) in pairs.iter().zip(accepted) {
        let listener = Witness::listen(&lab.history, lab.anywhere(receiver), None)?;
        listener.receive(accepted, LIMIT).await?;
        drained(&lab.history, receiver);
        listener.close().await;
    }
    ensure!(changes <= CHANGES_MAX, "{changes} changes of leaders");
    lab.pass().await
}

async fn load(lab: &Lab, from: &Credentials, to: &Credentials) -> Result<usize> {
    let sender = Witness::connect(&lab.history, lab.anywhere(from))?;
    let ends = Instant::now() + LOAD;
    let mut under_way = FuturesUnordered::new();
    let (mut sent, mut accepted) = (0, 0);
    loop {
        while under_way.len() < PIPELINE && Instant::now() < ends {
            sent += 1;
            let body = vec![b'x'; BODY_BYTES];
            let pending = sender
                .send(&to.user, &format!("m-{sent}"), body, None)
                .await?;
            under_way.push(sender.answer(pending, LIMIT));
        }
        let Some(answer) = under_way.next().await else {
            return Ok(accepted);
        };
        let answer = answer?;
        ensure!(answer.is_accepted(), "{answer:?}");
        accepted += 1;
    }
}

fn leaders_begun(lab: &Lab) -> Result<usize> {
    let mut begun = 0;
    for k in 1..=3 {
        begun += lab.log(k)?.matches(LEADS).count();
    }
    Ok(begun)
}

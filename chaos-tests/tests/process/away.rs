//! A node that was away for longer than the others' logs reach.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup, until, within};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::Credentials;
use tokio::sync::watch;

use crate::files::{Marks, random_bodies};
use crate::{ANN, LIMIT};

/// With the meta shard three leaderships for each node, so that each leads some user's shard.
const SHARDS: u32 = 8;
/// A leadership that could not be handed over is left alone for a minute.
const LEADS_WITHIN: Duration = Duration::from_secs(90);
const AWAY: u16 = 3;
const BODY_BYTES: usize = 4 << 10;
/// Old entries leave the logs, and then the files, within seconds.
const SHORT_LOGS: &str =
    "[raft]\nlog_age_max_ms = 1000\nsnapshot_life_max_ms = 3000\n[storage]\nreclaim_ms = 4000\n";

/// Goal: a node that comes back after its peers have purged what it lacks catches up by snapshot while traffic goes on,
/// and then is as good as any. Method: one user in every shard; messages while one node is dead, until their bodies
/// stand only once in the files of its peers: in the queues, no longer in the logs; the node starts under traffic and
/// every replica of it catches up; then each other node dies in turn, so that it must vote and lead; everybody gets
/// everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_away_for_longer_than_the_log_comes_back_by_snapshot() -> Result<()> {
    let setup = Setup::nodes(3).shards(SHARDS).alone().toml(SHORT_LOGS);
    let mut lab = Lab::start(setup).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let mut users = Vec::new();
    for shard in 0..SHARDS {
        let mut names = (0..).map(|number| format!("+1555000{number:04}"));
        let user = names.find(|user| user != ANN && lab.shard_of(user) == shard);
        let user = user.context("some name is of every shard")?;
        users.push(lab.add_device(&user, "phone").await?);
    }
    let sender = Witness::connect(&lab.history, lab.anywhere(&ann))?;
    let mut sent = to_all(&sender, &users, "before", &random_bodies(20, BODY_BYTES)).await?;

    lab.kill(AWAY).await?;
    let bodies = random_bodies(20, BODY_BYTES);
    let marks = Marks::of(&bodies);
    sent += to_all(&sender, &users, "away", &bodies).await?;
    for k in (1..=3).filter(|k| *k != AWAY) {
        until(LIMIT, "the logs are purged", async || {
            let (places, _) = marks.find(&lab.cluster.node(k).data_dir())?;
            Ok((places.len() == marks.len() * users.len()).then_some(()))
        })
        .await?;
    }

    let back = watch::Sender::new(false);
    let traffic = async {
        let mut sent = 0;
        let few = random_bodies(10, BODY_BYTES);
        for round in 0.. {
            sent += to_all(&sender, &users, &format!("returning-{round}"), &few).await?;
            if *back.borrow() {
                break;
            }
        }
        anyhow::Ok(sent)
    };
    let returns = async {
        lab.restart(AWAY).await?;
        caught_up(&lab).await?;
        back.send_replace(true);
        anyhow::Ok(())
    };
    let both = within(LIMIT, "the return", async {
        futures::try_join!(traffic, returns)
    });
    sent += both.await??.0;

    until(
        LEADS_WITHIN,
        "the node that was away leads again",
        async || Ok((led_by(&lab, AWAY, &users).await? > 0).then_some(())),
    )
    .await?;
    let mut led = 0;
    let few = random_bodies(20, BODY_BYTES);
    for victim in (1..=3).filter(|k| *k != AWAY) {
        lab.kill(victim).await?;
        sent += to_all(&sender, &users, &format!("without-{victim}"), &few).await?;
        led += led_by(&lab, AWAY, &users).await?;
        lab.restart(victim).await?;
        caught_up(&lab).await?;
    }
    ensure!(led > 0, "node {AWAY} led nothing while another was dead");
    let each = sent / users.len();
    for user in &users {
        let listener = Witness::listen(&lab.history, lab.through(AWAY, user), None)?;
        let deliveries = listener.receive(each, LIMIT).await?;
        listener.ack(deliveries[each - 1].cursor(), LIMIT).await?;
        drained(&lab.history, user);
    }
    lab.pass().await
}

/// Of how many of these users' shards a node leads.
async fn led_by(lab: &Lab, node: u16, users: &[Credentials]) -> Result<usize> {
    let mut led = 0;
    for user in users {
        led += usize::from(lab.leader_of(&user.user).await? == node);
    }
    Ok(led)
}

/// The same messages to each, and how many that were.
async fn to_all(
    sender: &Witness,
    users: &[Credentials],
    name: &str,
    bodies: &[Vec<u8>],
) -> Result<usize> {
    let all = users
        .iter()
        .map(|user| sender.send_all(&user.user, name, bodies, LIMIT));
    futures::future::try_join_all(all).await?;
    Ok(bodies.len() * users.len())
}

/// Waits until every shard has a leader, three replicas, and none far behind.
async fn caught_up(lab: &Lab) -> Result<()> {
    const LAG_MAX: u64 = 20;
    until(
        Duration::from_secs(30),
        "every replica has caught up",
        async || {
            let status = lab.admin()?.status().await?;
            let near = status.shards.iter().all(|shard| {
                let replicas = &shard.replicas;
                !shard.leader.is_empty()
                    && replicas.len() == 3
                    && replicas.iter().all(|replica| {
                        replica.lag_entries <= LAG_MAX
                            && ["leader", "follower"].contains(&&*replica.role)
                    })
            });
            Ok(near.then_some(()))
        },
    )
    .await
}

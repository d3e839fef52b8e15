//! The workload of many users while nodes die, again and again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use roost_chaos_tests::lab::{Lab, Setup, within};
use roost_chaos_tests::workload::{self, Plan};
use tokio::time::sleep;

const SEED: u64 = 7;
const KILLS: usize = 20;
const LIMIT: Duration = Duration::from_secs(600);

/// Goal: the contract holds for everybody while any node may die at any moment. Method: the seeded workload, ticks and
/// all, in rounds; in each a random node is killed with -9 after a random part of a second and started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_under_twenty_kills() -> Result<()> {
    let mut chance = StdRng::seed_from_u64(SEED);
    let mut lab = Lab::start(Setup::nodes(3).alone()).await?;
    let users = ["+15550001", "+15550002", "+15550003", "+15550004"];
    for round in 0..KILLS {
        let mut cast = Vec::new();
        for user in users {
            // New devices each round, because a device's message ids are for ever.
            let user = format!("{user}{round:02}");
            for name in ["phone", "laptop"] {
                cast.push(lab.add_device(&user, name).await?);
            }
        }
        let plan = Plan {
            seed: SEED + round as u64,
            messages: 400,
            pipeline: 32,
            clients: 4,
            limit: Duration::from_secs(90),
        };
        let history = lab.history.clone();
        let urls = lab.cluster.client_urls();
        let load = workload::run(&history, &urls, &cast, plan);
        let victim = chance.random_range(1..=3);
        let after = Duration::from_millis(chance.random_range(0..800));
        let kill = async {
            sleep(after).await;
            lab.kill(victim).await?;
            lab.restart(victim).await
        };
        within(LIMIT, "a round", async { futures::try_join!(load, kill) })
            .await?
            .with_context(|| {
                format!("seed {SEED}, round {round}, kill of node {victim} after {after:?}")
            })?;
        lab.check()
            .with_context(|| format!("seed {SEED}, round {round}"))?;
    }
    lab.pass().await
}

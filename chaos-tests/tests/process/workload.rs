//! Many users at once, without faults: what the checker says of an ordinary day.

use anyhow::{Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup};
use roost_chaos_tests::workload::{self, Plan};

use crate::{ANN, BOB, CAROL, LIMIT};

/// Goal: conversations both ways between users with several devices, who come and go, keep every promise. Method: the
/// seeded workload on three nodes, its history checked.
#[tokio::test]
async fn an_ordinary_day_keeps_every_promise() -> Result<()> {
    let lab = Lab::start(Setup::nodes(3).alone()).await?;
    let mut cast = Vec::new();
    for (user, device) in [
        (ANN, "phone"),
        (ANN, "laptop"),
        (BOB, "phone"),
        (BOB, "laptop"),
        (CAROL, "phone"),
    ] {
        cast.push(lab.add_device(user, device).await?);
    }
    let plan = Plan {
        seed: 1,
        messages: 300,
        pipeline: 32,
        clients: 3,
        limit: LIMIT,
    };
    let totals = workload::run(&lab.history, &lab.cluster.client_urls(), &cast, plan).await?;
    ensure!(totals.accepted == 1500, "{totals:?}");
    lab.pass().await
}

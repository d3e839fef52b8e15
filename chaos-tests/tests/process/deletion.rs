//! Deleted on delivery: what every device has is in no file any more.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::lab::{Lab, Setup, until};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::Credentials;
use tokio::time::Instant;

use crate::files::{Marks, random_bodies};
use crate::{ANN, BOB, LIMIT};

const MESSAGES: usize = 20;
const BODY_BYTES: usize = 8 << 10;
/// `storage.reclaim_ms` of the test.
const RECLAIM: Duration = Duration::from_secs(4);
/// A busy machine gets so many times the bound.
const RECLAIMS_MAX: u32 = 4;
/// Removals from files that must have begun and ended while a device was away.
const RECLAIMS_SEEN: f64 = 3.0;

/// Goal: an entry stays until both devices of its user have acknowledged it; then its body is in no file of any node
/// within the bound. Method: bodies of random bytes, looked for in all files (write-ahead log, tables, node logs), which
/// finds them before the last acknowledgement, also after several removals of deleted rows, and not after it.
#[tokio::test]
async fn bodies_are_in_no_file_once_every_device_has_them() -> Result<()> {
    let toml = format!(
        "[storage]\nreclaim_ms = {}\n[raft]\nlog_age_max_ms = 1000\nsnapshot_life_max_ms = 2000\n",
        RECLAIM.as_millis()
    );
    let lab = Lab::start(Setup::nodes(3).shards(4).alone().toml(toml)).await?;
    let ann = lab.add_device(ANN, "phone").await?;
    let phone = lab.add_device(BOB, "phone").await?;
    let laptop = lab.add_device(BOB, "laptop").await?;
    let bodies = random_bodies(MESSAGES, BODY_BYTES);
    let marks = Marks::of(&bodies);
    let sender = Witness::connect(&lab.history, lab.anywhere(&ann))?;
    sender.send_all(BOB, "m", &bodies, LIMIT).await?;

    take(&lab, &phone).await?;
    for k in 1..=3 {
        let count = "roost_storage_reclaim_latency_seconds_count";
        let before = lab.metric(k, count).await?.unwrap_or_default();
        until(LIMIT, "removals of deleted rows", async || {
            let ended = lab.metric(k, count).await?.unwrap_or_default();
            Ok((ended - before >= RECLAIMS_SEEN).then_some(()))
        })
        .await?;
    }
    ensure!(
        lab.queued_entries(BOB).await? == MESSAGES as u64,
        "the laptop's entries are gone"
    );
    for node in lab.cluster.nodes() {
        let (_, found) = marks.find(&node.data_dir())?;
        ensure!(
            found.len() == MESSAGES,
            "{} bodies of {MESSAGES} are found in the files of {}: the search proves nothing",
            found.len(),
            node.name()
        );
    }

    take(&lab, &laptop).await?;
    let acknowledged = Instant::now();
    let everything = lab.directory().join("cluster");
    let gone = until(
        RECLAIM * RECLAIMS_MAX,
        "bodies are still in files",
        async || {
            let (places, _) = marks.find(&everything)?;
            Ok(places.is_empty().then(|| acknowledged.elapsed()))
        },
    );
    match gone.await {
        Ok(after) => println!(
            "gone from every file {after:?} after the last ack, with a bound of {RECLAIM:?}"
        ),
        Err(late) => {
            let (places, _) = marks.find(&everything)?;
            let first = places.first().context("they went a moment later")?;
            return Err(late).context(format!(
                "{} places, one of them at {} of {}",
                places.len(),
                first.offset,
                first.file.display()
            ));
        }
    }
    for device in [&phone, &laptop] {
        drained(&lab.history, device);
    }
    lab.pass().await
}

async fn take(lab: &Lab, device: &Credentials) -> Result<()> {
    let witness = Witness::listen(&lab.history, lab.anywhere(device), None)?;
    let deliveries = witness.receive(MESSAGES, LIMIT).await?;
    let last = deliveries.last().context("nothing came")?;
    witness.ack(last.cursor(), LIMIT).await?;
    witness.close().await;
    Ok(())
}

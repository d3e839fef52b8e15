//! Power loss of all nodes at once: what was accepted was on the disk.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::stream::{FuturesUnordered, StreamExt as _};
use roost_chaos_tests::lab::{Lab, Setup};
use roost_chaos_tests::witness::{Witness, drained};
use roost_client::Credentials;
use roost_local::Config;

use crate::disk::{Disk, power_off};

const ANN: &str = "+15550001";
const USERS: [&str; 2] = ["+15550002", "+15550003"];
const LIMIT: Duration = Duration::from_secs(60);
/// Power goes when so many have been accepted, with more under way.
const ACCEPTED: usize = 1_000;
const PIPELINE: usize = 64;
/// Nothing says more than a path of a library that makes every sync do nothing (Debian's `eatmydata`).
const NO_SYNC: &str = "/usr/lib/x86_64-linux-gnu/libeatmydata.so";

/// A cluster whose nodes each have a disk of their own.
struct Stage {
    lab: Lab,
    disks: Vec<Disk>,
}

async fn stage(adapt: impl FnOnce(Config) -> Config) -> Result<Stage> {
    // The small file systems hold nothing else: no reserve is needed, and none is tested here.
    let setup = Setup::nodes(3)
        .alone()
        .toml("[storage]\ndisk_reserve_percent = 0\n");
    let lab = Lab::prepare(setup, adapt)?;
    let disks = lab
        .cluster
        .nodes()
        .iter()
        .map(|node| {
            let image = lab.directory().join(format!("{}.ext4", node.name()));
            Disk::create(image, node.data_dir())
        })
        .collect::<Result<Vec<_>>>()?;
    let mut stage = Stage { lab, disks };
    stage.lab.cluster.start_all()?;
    stage.lab.cluster.wait_ready().await?;
    Ok(stage)
}

impl Stage {
    /// Sends until enough is accepted, takes the power from all three right then, and gives it back.
    async fn lose_power_under_load(&mut self) -> Result<Vec<Credentials>> {
        let lab = &mut self.lab;
        let ann = lab.add_device(ANN, "phone").await?;
        let mut offline = Vec::new();
        for user in USERS {
            offline.push(lab.add_device(user, "phone").await?);
        }
        let sender = Witness::connect(&lab.history, lab.anywhere(&ann))?;
        let mut under_way = FuturesUnordered::new();
        let (mut sent, mut accepted) = (0, 0);
        while accepted < ACCEPTED {
            while under_way.len() < PIPELINE {
                sent += 1;
                let body = format!("message {sent} {}", "x".repeat(100));
                let to = USERS[sent % USERS.len()];
                let pending = sender.send(to, &format!("m-{sent}"), body, None).await?;
                under_way.push(sender.answer(pending, LIMIT));
            }
            let answer = under_way.next().await.context("nothing is under way")??;
            ensure!(answer.is_accepted(), "{answer:?}");
            accepted += 1;
            if accepted == ACCEPTED - PIPELINE {
                for disk in &self.disks {
                    disk.write_canary()?;
                }
            }
        }
        lab.fault("power loss of all");
        power_off(&self.disks)?;
        lab.cluster.kill_all().await?;
        for disk in &self.disks {
            disk.power_on()?;
        }
        Ok(offline)
    }

    async fn start_and_listen(&mut self, offline: &[Credentials]) -> Result<()> {
        let lab = &mut self.lab;
        lab.cluster.start_all()?;
        lab.cluster.wait_ready().await?;
        for device in offline {
            let queued = lab.queued_entries(&device.user).await? as usize;
            let listener = Witness::listen(&lab.history, lab.anywhere(device), None)?;
            listener.receive(queued, LIMIT).await?;
            drained(&lab.history, device);
        }
        lab.check()
    }

    fn a_node_refuses_its_store(&self) -> Result<bool> {
        for node in self.lab.cluster.nodes() {
            if self.lab.log(node.number())?.contains("damaged") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Goal: *accepted* means on stable storage on a majority. Method: a pipeline of messages to two users who are offline;
/// right after the thousandth *accepted* all three file systems are shut down without a flush of their journals; a file
/// that was never synced must be gone from each, and every accepted message must come.
#[tokio::test]
async fn nothing_accepted_is_lost_with_the_power_of_all_nodes() -> Result<()> {
    let mut stage = stage(|config| config).await?;
    let offline = stage.lose_power_under_load().await?;
    stage.start_and_listen(&offline).await?;
    let Stage { lab, disks } = stage;
    drop(disks);
    lab.pass().await
}

/// Goal: the test above can fail. Method: the same with nodes whose syncs do nothing; then something must be missing, or
/// the cluster must not come up.
#[tokio::test]
async fn without_syncs_power_loss_is_noticed() -> Result<()> {
    ensure!(
        std::path::Path::new(NO_SYNC).exists() || install_no_sync(),
        "{NO_SYNC} is needed: apt-get install libeatmydata1"
    );
    let mut stage = stage(|config| {
        (1..=3).fold(config, |config, k| {
            let mut overrides = roost_local::Overrides::default();
            overrides.env.insert("LD_PRELOAD".into(), NO_SYNC.into());
            config.node(k, overrides)
        })
    })
    .await?;
    let offline = stage.lose_power_under_load().await?;
    let Err(noticed) = stage.start_and_listen(&offline).await else {
        bail!(
            "nothing was lost although nothing was synced: the test of power loss proves nothing"
        );
    };
    let noticed = format!("{noticed:#}");
    // Accounts are as durable as messages. Any other failure would be one of the test.
    let lost = ["violations of the contract", "is not among the accounts"];
    ensure!(
        lost.iter().any(|loss| noticed.contains(loss)) || stage.a_node_refuses_its_store()?,
        "neither the history nor a node shows the loss: {noticed}"
    );
    println!("without syncs the loss was noticed, as it should be: {noticed}");
    let Stage { lab, disks } = stage;
    drop(disks);
    lab.forget().await
}

fn install_no_sync() -> bool {
    let mut apt = std::process::Command::new("apt-get");
    apt.args([
        "install",
        "-y",
        "-q",
        "--no-install-recommends",
        "libeatmydata1",
    ]);
    apt.output().is_ok_and(|output| output.status.success())
}

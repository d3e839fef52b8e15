//! `roost dev`: a cluster for one's own desk.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::cli::{self, Cli};
use roost_chaos_tests::lab::{binary, within};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::{ANN, BOB, LIMIT};

/// For the nodes to notice that their parent is dead.
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);

fn dev(data_dir: &Path, base_port: u16, more: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command
        .args(["dev", "--base-port", &base_port.to_string(), "--data-dir"])
        .arg(data_dir)
        .args(more)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// Starts it, and waits until it says that its nodes are ready.
pub(crate) async fn start(data_dir: &Path, base_port: u16, more: &[&str]) -> Result<Child> {
    let mut child = dev(data_dir, base_port, more)?.spawn()?;
    let stdout = child.stdout.take().context("standard output is a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = within(LIMIT, "a first line of roost dev", lines.next_line()).await??;
    if line.as_deref().is_none_or(|line| !line.contains("ready")) {
        let errors = child.wait_with_output().await?.stderr;
        anyhow::bail!("{line:?}: {}", String::from_utf8_lossy(&errors));
    }
    // The rest is for people; a closed pipe must not stop the cluster.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(child)
}

async fn refused(mut command: Command) -> Result<String> {
    let output = within(LIMIT, "the end of roost dev", command.output()).await??;
    ensure!(!output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Goal: what a newcomer does first works, and goes on after a crash of everything. Method: start, two accounts, a
/// message; a second `dev` on the same ports is refused and names one; kill -9 of `dev` alone takes its nodes along; the
/// next run with another number of shards is refused, and the one after that still has the message.
#[tokio::test]
async fn dev_starts_dies_whole_and_goes_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data_dir = directory.path().join("dev");
    let base_port = roost_local::free_base_port(3)?;
    let shards = ["--shards", "4"];
    let mut running = start(&data_dir, base_port, &shards).await?;
    let urls: Vec<String> = (1..=3)
        .map(|k| format!("http://127.0.0.1:{}", base_port + k))
        .collect();
    let cli = Cli::at(&urls, directory.path(), data_dir.join("admin.token"))?;
    for user in [ANN, BOB] {
        let add = ["account", "add", user, "--device", "phone"];
        cli.run(&add).await?.expect(cli::OK)?;
    }
    cli.run(&["send", "--as", ANN, "--to", BOB, "hello"])
        .await?
        .expect(cli::OK)?;

    let told = refused(dev(&directory.path().join("other"), base_port, &shards)?).await?;
    let ports = (1..=3).flat_map(|k| [0, 100, 200].map(|kind| base_port + kind + k));
    let mut ports = ports.map(|port| port.to_string());
    ensure!(
        ports.any(|port| told.contains(&port)),
        "no port is named: {told}"
    );

    running.kill().await?;
    nodes_are_gone(base_port).await?;
    let told = refused(dev(&data_dir, base_port, &["--shards", "8"])?).await?;
    ensure!(told.contains("shards"), "{told}");

    let mut running = start(&data_dir, base_port, &[]).await?;
    let listen = ["listen", "--as", BOB, "--count", "1", "--json"];
    let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
    ensure!(came[0]["body"] == "hello", "{came:?}");
    running.kill().await?;
    nodes_are_gone(base_port).await
}

/// Waits until nobody listens on any of the nodes' ports.
pub(crate) async fn nodes_are_gone(base_port: u16) -> Result<()> {
    let deadline = Instant::now() + ORPHAN_LIMIT;
    let ports = (1..=3).flat_map(|k| [0, 100, 200].map(|kind| base_port + kind + k));
    for port in ports {
        while TcpListener::bind(("127.0.0.1", port)).is_err() {
            let late = Instant::now() >= deadline;
            ensure!(
                !late,
                "port {port} is still in use {ORPHAN_LIMIT:?} after the death of roost dev"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

//! `roost dev`: a cluster for one's own desk.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roost_chaos_tests::cli::{self, Cli};
use roost_chaos_tests::lab::{binary, within};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
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

/// Calls to the nodes of a `dev`, on which Ann and Bob have accounts from now on.
async fn with_accounts(data_dir: &Path, base_port: u16, nodes: u16) -> Result<Cli> {
    let urls: Vec<String> = (1..=nodes)
        .map(|k| format!("http://127.0.0.1:{}", base_port + k))
        .collect();
    let directory = data_dir.parent().context("it lies in a directory")?;
    let cli = Cli::at(&urls, directory, data_dir.join("admin.token"))?;
    for user in [ANN, BOB] {
        let add = ["account", "add", user, "--device", "phone"];
        cli.run(&add).await?.expect(cli::OK)?;
    }
    Ok(cli)
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
    let cli = with_accounts(&data_dir, base_port, 3).await?;
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

/// What a `dev` says about its nodes.
struct Told {
    lines: Lines<BufReader<ChildStderr>>,
    so_far: Vec<String>,
}

impl Told {
    fn by(dev: &mut Child) -> Result<Self> {
        let stderr = dev.stderr.take().context("standard error is a pipe")?;
        Ok(Self {
            lines: BufReader::new(stderr).lines(),
            so_far: Vec::new(),
        })
    }

    /// The next line with these words.
    async fn line(&mut self, words: &str) -> Result<String> {
        let what = format!("{words:?} from roost dev");
        loop {
            let line = within(LIMIT, &what, self.lines.next_line()).await??;
            let line = line.with_context(|| format!("{what}, which said {:?}", self.so_far))?;
            self.so_far.push(line.clone());
            if line.contains(words) {
                return Ok(line);
            }
        }
    }
}

/// The process of node `k` of a `dev`: its child that was started with that node's config.
fn process_of(dev: &Child, k: u16) -> Result<Option<Pid>> {
    let dev = dev.id().context("roost dev has ended")?.to_string();
    let config = format!("node-{k}.toml");
    for process in fs::read_dir("/proc")? {
        let directory = process?.path();
        let stat = fs::read_to_string(directory.join("stat"));
        let words = fs::read(directory.join("cmdline"));
        // No process, or one that has ended meanwhile.
        let (Ok(stat), Ok(words)) = (stat, words) else {
            continue;
        };
        // The number; the name in brackets, which may hold anything; the state; the parent.
        let mut behind_name = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let words = String::from_utf8_lossy(&words);
        let is_it = words.trim_end_matches('\0').ends_with(&config);
        if is_it && behind_name.nth(1) == Some(dev.as_str()) {
            let number = stat.split(' ').next().unwrap_or_default();
            return Ok(Pid::from_raw(number.parse()?));
        }
    }
    Ok(None)
}

/// kill -9; returns which process it was.
fn kill_node(dev: &Child, k: u16) -> Result<Pid> {
    let process = process_of(dev, k)?.with_context(|| format!("no process runs node {k}"))?;
    kill_process(process, Signal::KILL)?;
    Ok(process)
}

/// Goal: with `--respawn` a node that dies is reported and comes back with what it had, each time, and Ctrl-C still ends
/// everything. Method: one node; twice a message for somebody offline and kill -9 of the node, which another process must
/// run when `dev` says so, and which then has the message; SIGINT to `dev`.
#[tokio::test]
async fn a_dead_node_is_started_again_on_demand() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data_dir = directory.path().join("dev");
    let base_port = roost_local::free_base_port(1)?;
    let more = ["--nodes", "1", "--shards", "4", "--respawn"];
    let mut running = start(&data_dir, base_port, &more).await?;
    let mut told = Told::by(&mut running)?;
    let cli = with_accounts(&data_dir, base_port, 1).await?;
    for text in ["first", "second"] {
        let send = ["send", "--as", ANN, "--to", BOB, text, "--timeout", "60s"];
        cli.run(&send).await?.expect(cli::OK)?;
        let killed = kill_node(&running, 1)?;
        let end = told.line("node-1 has ended").await?;
        ensure!(
            end.contains("signal: 9") && end.contains("it will be started again"),
            "{end}"
        );
        told.line("node-1 is started again").await?;
        let now = process_of(&running, 1)?;
        ensure!(now.is_some_and(|now| now != killed), "{now:?} runs node 1");
        let listen = ["listen", "--as", BOB, "--count", "1", "--json"];
        let came = cli.run(&listen).await?.expect(cli::OK)?.json()?;
        ensure!(came[0]["body"] == text, "{came:?}");
    }
    cli::interrupt(&running)?;
    let status = within(LIMIT, "the end of roost dev", running.wait()).await??;
    ensure!(status.code() == Some(cli::OK), "{status}");
    nodes_are_gone(base_port).await
}

/// Goal: without `--respawn` a node that dies is reported, stays dead, and the others go on; when none is left, so does
/// `dev`. Method: kill -9 of one of three, a message through the others, then kill -9 of those; nothing may have been
/// started again, and `dev` ends by itself with its exit code for that.
#[tokio::test]
async fn a_dead_node_stays_dead_unless_asked() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data_dir = directory.path().join("dev");
    let base_port = roost_local::free_base_port(3)?;
    let mut running = start(&data_dir, base_port, &["--shards", "4"]).await?;
    let mut told = Told::by(&mut running)?;
    let cli = with_accounts(&data_dir, base_port, 3).await?;
    for k in [2, 1, 3] {
        kill_node(&running, k)?;
        let end = told.line(&format!("node-{k} has ended")).await?;
        ensure!(
            end.contains("signal: 9") && end.contains("it is not started again (see --respawn)"),
            "{end}"
        );
        if k == 2 {
            let send = ["send", "--as", ANN, "--to", BOB, "on", "--timeout", "60s"];
            cli.run(&send).await?.expect(cli::OK)?;
            let now = process_of(&running, k)?;
            ensure!(now.is_none(), "{now:?} runs node {k}");
        }
    }
    told.line("no node is running any more").await?;
    let status = within(LIMIT, "the end of roost dev", running.wait()).await??;
    ensure!(status.code() == Some(cli::INTERNAL), "{status}");
    let mut told = told.so_far.iter();
    ensure!(
        !told.any(|line| line.contains("is started again")),
        "a node was started again"
    );
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

//! Processes for real, with this test binary itself in the part of the node.
//!
//! The "roost" that the clusters here run is a shell script that runs [`fake_node`] in a process of its own: it answers
//! `/readyz` and exits at the end of its standard input, which is all that this crate asks of a node.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{Cluster, Config, Error, free_base_port};

type TestResult = Result<(), Box<dyn std::error::Error>>;

const FAKE_CONFIG: &str = "ROOST_LOCAL_FAKE_CONFIG";
const PARENT_DIR: &str = "ROOST_LOCAL_PARENT_DIR";
const PATIENCE: Duration = Duration::from_secs(20);

/// Not a test: the node that the script starts. Alone it does nothing.
#[test]
#[ignore = "plays the node for the other tests"]
fn fake_node() -> TestResult {
    let Some(config) = std::env::var_os(FAKE_CONFIG) else {
        return Ok(());
    };
    let config: toml::Table = fs::read_to_string(config)?.parse()?;
    let address = config["listen"]["http"].as_str().ok_or("listen.http")?;
    let listener = TcpListener::bind(address)?;
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        exit(0);
    });
    println!("fake node on {address}");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nready\n")?;
    }
    Ok(())
}

/// Not a test: a process that has a cluster until it is killed.
#[tokio::test]
#[ignore = "plays the parent that dies"]
async fn parent() -> TestResult {
    let Some(dir) = std::env::var_os(PARENT_DIR) else {
        return Ok(());
    };
    let dir = PathBuf::from(dir);
    let cluster = Cluster::start(config(&dir)?.nodes(2)).await?;
    let pids: Vec<String> = cluster
        .nodes()
        .iter()
        .filter_map(|node| node.pid())
        .map(|pid| pid.to_string())
        .collect();
    fs::write(dir.join("pids.tmp"), pids.join("\n"))?;
    fs::rename(dir.join("pids.tmp"), dir.join("pids"))?;
    sleep(PATIENCE).await;
    Ok(())
}

fn config(dir: &Path) -> Result<Config, Box<dyn std::error::Error>> {
    let test_binary = std::env::current_exe()?;
    let fake = format!(
        "[ \"$1 $2\" = \"node --config\" ] || exit 64\n\
         export {FAKE_CONFIG}=\"$3\"\n\
         exec '{}' --exact tests::fake_node --ignored --nocapture",
        test_binary.display()
    );
    let config = Config::new(script(dir, &fake)?, dir.join("data"));
    Ok(config.base_port(free_base_port(3)?).ready_timeout(PATIENCE))
}

/// Written by a process of its own: a descriptor open for writing here would be inherited by whatever another test
/// starts at that moment, and the script could not be executed ("text file busy").
fn script(dir: &Path, body: &str) -> std::io::Result<PathBuf> {
    let path = dir.join("roost");
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let status = Command::new("sh")
        .args(["-c", write, "sh", body])
        .arg(&path)
        .status()?;
    status
        .success()
        .then_some(path)
        .ok_or_else(|| std::io::Error::other("cannot write the script"))
}

/// The state of a process as proc(5) names it: `Z` is a zombie that nobody has waited for.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

async fn becomes(pid: u32, wanted: impl Fn(u32) -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !wanted(pid) && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    wanted(pid)
}

async fn gone(pid: u32) -> bool {
    becomes(pid, |pid| !alive(pid)).await
}

#[tokio::test]
async fn a_cluster_starts_answers_and_stops() -> TestResult {
    let dir = TempDir::new()?;
    let mut cluster = Cluster::start(config(dir.path())?).await?;
    assert_eq!(cluster.client_urls().len(), 3);
    assert_eq!(cluster.node(2).get("/readyz").await?.body, "ready\n");
    let pids: Vec<u32> = cluster
        .nodes()
        .iter()
        .filter_map(|node| node.pid())
        .collect();
    cluster.stop(PATIENCE).await?;
    assert!(pids.len() == 3 && !pids.into_iter().any(alive));
    Ok(())
}

#[tokio::test]
async fn a_killed_node_starts_again_over_its_data() -> TestResult {
    let dir = TempDir::new()?;
    let mut cluster = Cluster::start(config(dir.path())?.nodes(2)).await?;
    let before = cluster.node(1).pid();
    assert!(matches!(
        cluster.node_mut(1).start(),
        Err(Error::AlreadyRunning { .. })
    ));
    assert_eq!(cluster.node_mut(1).kill().await?.signal(), Some(9));
    assert!(matches!(
        cluster.node(1).pause(),
        Err(Error::NotRunning { .. })
    ));
    cluster.start_all()?;
    cluster.wait_ready().await?;
    assert_ne!(cluster.node(1).pid(), before);
    Ok(())
}

#[tokio::test]
async fn a_paused_node_is_silent_until_it_goes_on() -> TestResult {
    let dir = TempDir::new()?;
    let cluster = Cluster::start(config(dir.path())?.nodes(1)).await?;
    let node = cluster.node(1);
    node.pause()?;
    let pid = node.pid().ok_or("it runs")?;
    // The signal is on its way until the process next runs, on a busy machine for a moment.
    assert!(becomes(pid, |pid| state(pid) == Some('T')).await);
    let answer = timeout(Duration::from_millis(300), node.get("/readyz")).await;
    assert!(answer.is_err(), "{answer:?}");
    node.resume()?;
    assert_eq!(node.get("/readyz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_paused_node_can_be_terminated() -> TestResult {
    let dir = TempDir::new()?;
    let mut cluster = Cluster::start(config(dir.path())?.nodes(1)).await?;
    cluster.node(1).pause()?;
    assert_eq!(
        cluster.node_mut(1).terminate(PATIENCE).await?.signal(),
        Some(15)
    );
    Ok(())
}

/// Waiting for the end of a node must not be what ends it: the pipe to its standard input stays open. And an end is
/// told also when another question has noticed it first.
#[tokio::test]
async fn a_node_that_dies_is_noticed_and_one_that_lives_is_left_alone() -> TestResult {
    let dir = TempDir::new()?;
    let mut cluster = Cluster::start(config(dir.path())?.nodes(2)).await?;
    assert!(
        timeout(Duration::from_millis(300), cluster.next_exit())
            .await
            .is_err()
    );
    let victim = cluster
        .node(2)
        .pid()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .ok_or("no process")?;
    kill_process(victim, Signal::KILL)?;
    while cluster.node_mut(2).is_running() {
        sleep(Duration::from_millis(10)).await;
    }
    let (k, status) = timeout(PATIENCE, cluster.next_exit()).await??;
    assert_eq!((k, status.signal()), (2, Some(9)));
    assert!(cluster.node_mut(1).is_running());
    assert!(!cluster.node_mut(2).is_running());
    Ok(())
}

#[tokio::test]
async fn a_dropped_cluster_leaves_no_process() -> TestResult {
    let dir = TempDir::new()?;
    let cluster = Cluster::start(config(dir.path())?.nodes(1)).await?;
    let pid = cluster.node(1).pid().ok_or("no process")?;
    drop(cluster);
    assert!(gone(pid).await);
    Ok(())
}

/// `kill -9` of the parent runs none of our code, so only the closed pipe can end the nodes, and only if no node
/// inherited the pipe of another.
#[tokio::test]
async fn nodes_end_when_their_parent_is_killed() -> TestResult {
    let dir = TempDir::new()?;
    let mut parent = Command::new(std::env::current_exe()?)
        .args(["--exact", "tests::parent", "--ignored"])
        .env(PARENT_DIR, dir.path())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
    while !dir.path().join("pids").exists() && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    let pids = fs::read_to_string(dir.path().join("pids"))?;
    parent.kill()?;
    parent.wait()?;
    for pid in pids.lines() {
        assert!(
            gone(pid.parse()?).await,
            "process {pid} outlived its parent"
        );
    }
    assert_eq!(pids.lines().count(), 2);
    Ok(())
}

#[tokio::test]
async fn a_node_that_fails_shows_the_end_of_its_log() -> TestResult {
    let dir = TempDir::new()?;
    let binary = script(
        dir.path(),
        "echo 'data_dir: of another cluster' >&2; exit 64",
    )?;
    let config = Config::new(binary, dir.path().join("data"))
        .nodes(1)
        .base_port(free_base_port(1)?);
    let error = Cluster::start(config)
        .await
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(
        error.contains("exit status: 64") && error.contains("of another cluster"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_never_ready_is_an_error() -> TestResult {
    let dir = TempDir::new()?;
    let binary = script(dir.path(), "echo waiting for node-2; exec sleep 60")?;
    let config = Config::new(binary, dir.path().join("data"))
        .nodes(1)
        .base_port(free_base_port(1)?);
    let error = Cluster::start(config.ready_timeout(Duration::from_secs(1)))
        .await
        .err();
    let error = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(
        error.contains("not ready after 1 s") && error.contains("waiting for node-2"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_prefix_and_an_environment_reach_the_process() -> TestResult {
    let dir = TempDir::new()?;
    let mut cluster = Cluster::prepare(config(dir.path())?.nodes(1))?;
    let node = cluster.node_mut(1);
    node.overrides_mut()
        .env
        .insert("COLOUR".into(), "green".into());
    node.overrides_mut().prefix = ["sh", "-c", "echo prefix $COLOUR; \"$@\"", "sh"]
        .map(Into::into)
        .to_vec();
    node.start()?;
    node.wait_ready().await?;
    assert!(fs::read_to_string(node.log_file())?.contains("prefix green"));
    // The shell does not replace itself here: the signal has to reach what it started as well.
    node.kill().await?;
    assert!(node.get("/readyz").await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_missing_binary_is_named() -> TestResult {
    let dir = TempDir::new()?;
    let config = Config::new(dir.path().join("no-roost"), dir.path().join("data"))
        .base_port(free_base_port(3)?);
    let error = Cluster::start(config)
        .await
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(error.contains("no-roost"), "{error}");
    Ok(())
}

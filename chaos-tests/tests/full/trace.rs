//! Every system call of three real nodes: nothing is answered before it is on the disk.

mod calls;
mod grpc;
mod rules;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use roost_chaos_tests::lab::{Lab, Setup};
use roost_chaos_tests::witness::{Witness, drained};
use roost_local::{Config, Overrides};

use rules::{NodeTrace, Ports};

const ANN: &str = "+15550001";
const BOB: &str = "+15550002";
const LIMIT: Duration = Duration::from_secs(60);
const MESSAGES: usize = 40;
/// What is traced: files and sockets written and read, and syncs.
const CALLS: &str = "trace=write,writev,pwrite64,pwritev,sendto,sendmsg,read,readv,recvfrom,recvmsg,fsync,fdatasync";
/// Longer than anything a node writes at once.
const BYTES_SHOWN: &str = "4194304";
/// A library that makes every sync do nothing (Debian's `libeatmydata1`).
const NO_SYNC: &str = "/usr/lib/x86_64-linux-gnu/libeatmydata.so";

/// Goal: each vote and each entry is synced before its answer leaves the socket, and *accepted* leaves only when two of
/// three nodes have synced the message. Method: three nodes under strace; messages one by one; a kill of the leader, so
/// that votes are asked for; more messages; then the traces are held against the three rules.
#[tokio::test]
async fn each_vote_and_entry_is_synced_before_its_answer() -> Result<()> {
    let seen = trace(&[]).await?;
    println!(
        "{} accepted answers, {} append answers and {} granted votes were each preceded by their sync",
        seen.accepted, seen.appends, seen.votes
    );
    Ok(())
}

/// Goal: the test above can fail. Method: the same with nodes whose syncs do nothing.
#[tokio::test]
async fn a_trace_without_syncs_is_noticed() -> Result<()> {
    install("libeatmydata1", NO_SYNC)?;
    match trace(&[("LD_PRELOAD", NO_SYNC)]).await {
        Ok(_) => {
            bail!("every answer seemed to be synced although nothing was: the trace proves nothing")
        }
        Err(error) => {
            let told = format!("{error:#}");
            ensure!(told.contains(rules::NOT_SYNCED), "{told}");
            println!("without syncs: {told}");
            Ok(())
        }
    }
}

async fn trace(env: &[(&str, &str)]) -> Result<rules::Seen> {
    install("strace", "/usr/bin/strace")?;
    let setup = Setup::nodes(3).shards(1).alone();
    let traces = tempfile::tempdir()?;
    let file = |k: u16| traces.path().join(format!("node-{k}.strace"));
    let mut lab = Lab::prepare(setup, |config| {
        (1..=3)
            .fold(config, |config: Config, k| {
                let overrides = Overrides {
                    prefix: strace(file(k)),
                    env: env
                        .iter()
                        .map(|(name, value)| (name.into(), value.into()))
                        .collect(),
                    ..Overrides::default()
                };
                config.node(k, overrides)
            })
            // A traced node is slow.
            .ready_timeout(LIMIT)
            .toml("[raft]\nheartbeat_ms = 300\nelection_min_ms = 1200\nelection_max_ms = 1800\n")
    })?;
    lab.cluster.start_all()?;
    lab.cluster.wait_ready().await?;
    let ids = messages_and_a_kill(&mut lab).await?;
    let nodes: Vec<NodeTrace> = lab
        .cluster
        .nodes()
        .iter()
        .map(|node| {
            let text = fs::read_to_string(file(node.number())).context("no trace")?;
            let ports = Ports {
                client: node.client_address().port(),
                peer: node.peer_address().port(),
            };
            Ok(NodeTrace::new(node.name(), ports, calls::parse(&text)))
        })
        .collect::<Result<_>>()?;
    let seen = rules::check(&nodes, &ids)?;
    lab.pass().await?;
    Ok(seen)
}

async fn messages_and_a_kill(lab: &mut Lab) -> Result<Vec<String>> {
    let ann = lab.add_device(ANN, "phone").await?;
    let bob = lab.add_device(BOB, "phone").await?;
    let sender = Witness::connect(&lab.history, lab.anywhere(&ann))?;
    let mut ids = Vec::new();
    for number in 0..MESSAGES {
        if number == MESSAGES / 2 {
            let leader = lab.leader_of(BOB).await?;
            lab.kill(leader).await?;
        }
        let id = format!("traced-message-{number:04}");
        // Several times, because the log may break one copy over two of its blocks.
        let pending = sender
            .send(BOB, &id, [id.as_str(); 4].join(" "), None)
            .await?;
        sender.answer(pending, LIMIT).await?;
        ids.push(id);
    }
    let listener = Witness::listen(&lab.history, lab.anywhere(&bob), None)?;
    listener.receive(MESSAGES, LIMIT).await?;
    drained(&lab.history, &bob);
    // What strace has not written yet it writes at its end.
    lab.cluster.kill_all().await?;
    Ok(ids)
}

fn strace(file: PathBuf) -> Vec<std::ffi::OsString> {
    let words = [
        "strace",
        "-f",
        "-yy",
        "-xx",
        "-ttt",
        "-T",
        "-s",
        BYTES_SHOWN,
        "-e",
        CALLS,
        "-e",
        "signal=none",
        "-o",
    ];
    words
        .iter()
        .map(Into::into)
        .chain([file.into_os_string()])
        .collect()
}

fn install(package: &str, file: &str) -> Result<()> {
    if !std::path::Path::new(file).exists() {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "-q", "--no-install-recommends", package]);
        let done = apt.output().is_ok_and(|output| output.status.success());
        ensure!(done, "{file} is needed: apt-get install {package}");
    }
    Ok(())
}

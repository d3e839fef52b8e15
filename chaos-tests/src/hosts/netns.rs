//! Hosts as network namespaces on one bridge, inside a [`cage`](super::cage): real addresses, real packets.
//!
//! What happens to a host's incoming packets is one `nft` table, written whole whenever it changes. Connections are
//! reset with `ss -K`, which sends a real reset to the other side.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket as StdUdpSocket};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;
use tokio::process::Command;

use super::delay::{self, Delay};
use super::flip::Bits;
use super::queue::{self, View, Worker};
use super::{CLIENTS, Weather, cage, garble};

const PROBE_PORT: u16 = 9;
/// Host numbers are the last byte of an address; the clients' is the bridge's own.
const HOSTS_MAX: u16 = 100;
const TABLE: &str = "chaos";

/// The address of a host.
#[must_use]
pub fn address(k: u16) -> Ipv4Addr {
    let last = if k == CLIENTS { 254 } else { k as u8 };
    Ipv4Addr::new(10, 77, 0, last)
}

/// All hosts, and the bridge between them.
#[derive(Debug)]
pub struct Network {
    nodes: u16,
    weather: BTreeMap<u16, Weather>,
    workers: BTreeMap<u16, Worker>,
    squeezed: BTreeSet<u16>,
    sockets: Vec<UdpSocket>,
}

impl Network {
    /// Makes the bridge and a host for each node.
    ///
    /// # Errors
    /// Outside a cage, or when a command fails.
    pub async fn create(nodes: u16) -> Result<Self> {
        ensure!(
            cage::is_inside(),
            "network namespaces are made inside a cage only"
        );
        ensure!(nodes <= HOSTS_MAX, "at most {HOSTS_MAX} hosts");
        // A private place for the names, so that none is left in the machine's own.
        sh("mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns").await?;
        let clients = address(CLIENTS);
        sh(&format!(
            "ip link set lo up && ip link add br0 type bridge && ip addr add {clients}/24 dev br0 && ip link set br0 up"
        ))
        .await?;
        for k in 1..=nodes {
            let (name, address) = (name(k), address(k));
            sh(&format!(
                "ip netns add {name} && ip link add v{k} type veth peer name e0 netns {name} \
                 && ip link set v{k} master br0 up && ip -n {name} addr add {address}/24 dev e0 \
                 && ip -n {name} link set e0 up && ip -n {name} link set lo up"
            ))
            .await?;
        }
        let sockets = (0..=nodes).map(probe_socket).collect::<Result<_>>()?;
        Ok(Self {
            nodes,
            weather: BTreeMap::new(),
            workers: BTreeMap::new(),
            squeezed: BTreeSet::new(),
            sockets,
        })
    }

    pub(super) fn nodes(&self) -> u16 {
        self.nodes
    }

    pub(super) fn socket(&self, k: u16) -> &UdpSocket {
        &self.sockets[usize::from(k)]
    }

    /// What is put before a command that is to run on host `k`.
    #[must_use]
    pub fn prefix(&self, k: u16) -> Vec<OsString> {
        match k {
            CLIENTS => Vec::new(),
            _ => vec!["nsenter".into(), format!("--net={}", path(k)).into()],
        }
    }

    /// Changes what happens to the packets that come to host `k`.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub async fn change<T>(
        &mut self,
        k: u16,
        change: impl FnOnce(&mut Weather) -> T,
    ) -> Result<()> {
        let weather = self.weather.entry(k).or_default();
        change(weather);
        let rules = rules(weather);
        self.nft(k, &rules).await
    }

    /// Takes away everything that was done to packets.
    ///
    /// # Errors
    /// When a host refuses.
    pub async fn heal(&mut self) -> Result<()> {
        for k in std::mem::take(&mut self.weather).into_keys() {
            self.nft(k, &rules(&Weather::default())).await?;
        }
        for (k, worker) in std::mem::take(&mut self.workers) {
            // First no packet goes there any more, then what is there is let go.
            self.run(k, &["iptables-nft", "-F", "INPUT"]).await?;
            tokio::task::spawn_blocking(move || drop(worker)).await?;
        }
        for k in std::mem::take(&mut self.squeezed) {
            self.run(
                CLIENTS,
                &["tc", "qdisc", "del", "dev", &format!("v{k}"), "root"],
            )
            .await?;
        }
        Ok(())
    }

    /// Lets every packet that comes to host `k` come late.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn delay(&mut self, k: u16, delay: Delay, seed: u64) -> Result<()> {
        let start = move || {
            Worker::start(&path(k), View::Head, move |queue, stop| {
                delay::hold(queue, delay, StdRng::seed_from_u64(seed), stop);
            })
        };
        self.hand_to(k, start).await
    }

    /// Lets a few bits of the snapshots that come to host `k` arrive wrong.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn flip(&mut self, k: u16, bits: Arc<Bits>) -> Result<()> {
        let start = move || {
            Worker::start(&path(k), View::Whole, move |queue, stop| {
                garble::snapshots(queue, bits, stop);
            })
        };
        self.hand_to(k, start).await
    }

    /// Starts a thread and hands it every packet that comes to host `k`.
    async fn hand_to(
        &mut self,
        k: u16,
        start: impl FnOnce() -> Result<Worker> + Send + 'static,
    ) -> Result<()> {
        let started = tokio::task::spawn_blocking(start);
        self.workers.insert(k, started.await??);
        let number = queue::NUMBER.to_string();
        let rule = [
            "iptables-nft",
            "-A",
            "INPUT",
            "-i",
            "e0",
            "-j",
            "NFQUEUE",
            "--queue-num",
            &number,
        ];
        self.run(k, &rule).await.map(drop)
    }

    /// Lets host `k` receive no more than so many bits a second.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn squeeze(&mut self, k: u16, bits_per_second: u64) -> Result<()> {
        let (device, rate) = (format!("v{k}"), format!("{bits_per_second}bit"));
        let words = [
            "tc", "qdisc", "add", "dev", &device, "root", "tbf", "rate", &rate, "burst", "16kb",
            "latency", "100ms",
        ];
        self.run(CLIENTS, &words).await?;
        self.squeezed.insert(k);
        Ok(())
    }

    /// Ends every connection of host `k` to another host.
    ///
    /// # Errors
    /// When `ss` refuses.
    pub async fn reset(&self, k: u16) -> Result<usize> {
        let net = format!("{}/24", Ipv4Addr::new(10, 77, 0, 0));
        let killed = self.run(k, &["ss", "-K", "-H", "-t", "dst", &net]).await?;
        Ok(killed.lines().filter(|line| line.contains("ESTAB")).count())
    }

    async fn nft(&self, k: u16, rules: &str) -> Result<()> {
        let mut command = self.command(k, &["nft", "-f", "-"]);
        feed(&mut command, rules).await.map(drop)
    }

    async fn run(&self, k: u16, words: &[&str]) -> Result<String> {
        feed(&mut self.command(k, words), "").await
    }

    fn command(&self, k: u16, words: &[&str]) -> Command {
        let mut all = self.prefix(k);
        all.extend(words.iter().map(OsString::from));
        let mut command = Command::new(&all[0]);
        command.args(&all[1..]);
        command
    }
}

fn name(k: u16) -> String {
    format!("host-{k}")
}

fn path(k: u16) -> String {
    format!("/run/netns/{}", name(k))
}

/// The table of a host, which replaces the one before in one step.
fn rules(weather: &Weather) -> String {
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
    text += &format!("table inet {TABLE} {{ chain input {{ type filter hook input priority 0;\n");
    for from in &weather.cut {
        let _ = writeln!(text, "ip saddr {} counter drop", address(*from));
    }
    if weather.loss_percent > 0 {
        let _ = writeln!(
            text,
            "iif e0 numgen random mod 100 < {} counter drop",
            weather.loss_percent
        );
    }
    text + "}\n}\n"
}

/// A socket belongs to the namespace in which it was opened, whichever thread uses it afterwards.
fn probe_socket(k: u16) -> Result<UdpSocket> {
    let open = move || -> Result<StdUdpSocket> {
        if k != CLIENTS {
            let namespace = File::open(path(k))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        let socket = StdUdpSocket::bind(SocketAddrV4::new(address(k), PROBE_PORT))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let opened = thread::spawn(open).join();
    let socket = opened
        .map_err(|_| anyhow!("the thread that opens the probe of host {k} died"))?
        .with_context(|| format!("the probe of host {k}"))?;
    Ok(UdpSocket::from_std(socket)?)
}

pub(super) async fn sh(script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    feed(command.args(["-c", script]), "").await
}

/// Runs a command with this on its standard input and gives what it prints.
async fn feed(command: &mut Command, input: &str) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_names_who_is_cut() {
        let cut = [2, CLIENTS].into();
        let text = rules(&Weather {
            cut,
            loss_percent: 7,
        });
        assert!(text.contains("ip saddr 10.77.0.2 counter drop"), "{text}");
        assert!(text.contains("ip saddr 10.77.0.254 counter drop"), "{text}");
        assert!(text.contains("mod 100 < 7 counter drop"), "{text}");
        assert!(!rules(&Weather::default()).contains("drop"), "{text}");
    }
}

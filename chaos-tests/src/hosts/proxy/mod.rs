//! Hosts as ports of the loopback address, with a relay in this process on every link: nodes and clients are told the
//! relay's addresses, and each connection through it is known by both its ends. Needs no root and no tool.
//!
//! What is done to a link is done to the bytes of each direction: they are held while it is cut, let go late, or let go
//! only so fast. What TCP itself does with packets (losses, packets that overtake each other) cannot be had this way.
//! Clients have an address of their own at each node; which node a connection between nodes comes from the [`owner`]
//! finds out.

mod owner;
mod pass;
mod rules;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use roost_local::{Cluster, Config, Overrides};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::flip::Bits;
use super::probe::{self, Arrivals};
use super::{CLIENTS, Delay};
use pass::Passage;
use rules::Rules;

/// What such hosts do not do; a run says so in its report.
pub(super) const CANNOT: &[&str] = &[
    "packets that are lost, or overtake each other: a relay has streams",
    "disks that lose power, fill up, stand still, or fail; file systems that become read-only",
    "limits of memory",
    "clocks, where libfaketime is not installed",
    "anything on systems without Linux's /proc, by which the nodes' connections are told apart",
];

/// The relays of one cluster.
#[derive(Debug)]
pub struct Network {
    ends: Vec<End>,
    rules: watch::Sender<Rules>,
    passage: Arc<Passage>,
    relays: JoinSet<()>,
}

/// The relay's side of one node.
#[derive(Debug)]
struct End {
    client: SocketAddr,
    peer: SocketAddr,
    listeners: Option<(TcpListener, TcpListener)>,
}

impl Network {
    /// Takes the addresses for so many nodes; nothing passes before [`Network::open`].
    ///
    /// # Errors
    /// When no port is free.
    pub async fn create(nodes: u16) -> Result<Self> {
        let mut ends = Vec::new();
        for _ in 1..=nodes {
            ends.push(End::take().await?);
        }
        let (rules, watched) = watch::channel(Rules::default());
        Ok(Self {
            ends,
            passage: Arc::new(Passage::new(watched)),
            rules,
            relays: JoinSet::new(),
        })
    }

    pub(super) fn nodes(&self) -> u16 {
        self.ends.len() as u16
    }

    /// A cluster whose nodes tell everybody the relay's addresses.
    #[must_use]
    pub fn adapt(&self, config: Config) -> Config {
        let peers: Vec<String> = self
            .ends
            .iter()
            .map(|end| format!("\"{}\"", end.peer))
            .collect();
        (1..).zip(&self.ends).fold(config, |config, (k, end)| {
            let toml = format!(
                "[advertise]\nclient = \"{}\"\npeer = \"{}\"\n[cluster]\ninitial_nodes = [{}]\n",
                end.client,
                end.peer,
                peers.join(", ")
            );
            config.node(
                k,
                Overrides {
                    toml,
                    ..Overrides::default()
                },
            )
        })
    }

    /// Lets connections through to where the nodes really listen.
    pub fn open(&mut self, cluster: &Cluster) {
        for (k, end) in (1..).zip(&mut self.ends) {
            let Some((clients, peers)) = end.listeners.take() else {
                continue;
            };
            let node = cluster.node(k);
            let (passage, target) = (Arc::clone(&self.passage), node.client_address());
            self.relays.spawn(relay(passage, clients, k, target, true));
            let (passage, target) = (Arc::clone(&self.passage), node.peer_address());
            self.relays.spawn(relay(passage, peers, k, target, false));
        }
    }

    /// Where clients find the nodes.
    #[must_use]
    pub fn client_urls(&self) -> Vec<String> {
        let addresses = self.ends.iter().map(|end| end.client);
        addresses
            .map(|address| format!("http://{address}"))
            .collect()
    }

    /// Holds everything from one host to the other.
    pub fn cut(&self, from: u16, to: u16) {
        self.rules.send_modify(|rules| {
            rules.cut.insert((from, to));
        });
    }

    /// Lets everything that comes to host `k` come late, in order.
    pub fn delay(&self, k: u16, delay: Delay, seed: u64) {
        self.rules.send_modify(|rules| rules.delay(k, delay, seed));
    }

    /// Lets host `k` receive no more than so many bits a second.
    pub fn squeeze(&self, k: u16, bits_per_second: u64) {
        self.rules
            .send_modify(|rules| rules.squeeze(k, bits_per_second));
    }

    /// Lets a few bits of snapshots that come to host `k` arrive wrong.
    pub fn flip(&self, k: u16, bits: Arc<Bits>) {
        self.rules.send_modify(|rules| {
            rules.flips.insert(k, bits);
        });
    }

    /// Makes every link whole and fast again. What was held goes on its way.
    pub fn heal(&self) {
        self.rules.send_replace(Rules::default());
    }

    /// Ends every connection of host `k` with a reset on both sides.
    #[must_use]
    pub fn reset(&self, k: u16) -> usize {
        self.passage.reset(k)
    }

    /// Sends probes over a connection of its own from one host to the other.
    ///
    /// # Errors
    /// When there is no such connection.
    pub async fn probe(
        &self,
        from: u16,
        to: u16,
        packets: usize,
        bytes: usize,
        patience: Duration,
    ) -> Result<Arrivals> {
        let ((mut near, front), (back, mut far)) = (pair().await?, pair().await?);
        let passage = Arc::clone(&self.passage);
        let carried = tokio::spawn(async move { passage.carry(from, to, front, back).await });
        let arrivals = probe::stream(&mut near, &mut far, packets, bytes, patience).await;
        carried.abort();
        arrivals
    }
}

impl End {
    async fn take() -> Result<Self> {
        let clients = listen().await?;
        let peers = listen().await?;
        Ok(Self {
            client: clients.local_addr()?,
            peer: peers.local_addr()?,
            listeners: Some((clients, peers)),
        })
    }
}

async fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    listener.context("a port for a relay")
}

/// Both ends of a connection.
async fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = listen().await?;
    let (near, far) = futures::try_join!(
        TcpStream::connect(listener.local_addr()?),
        listener.accept()
    )?;
    near.set_nodelay(true)?;
    Ok((near, far.0))
}

/// Takes connections to node `k` for as long as the run lasts.
async fn relay(
    passage: Arc<Passage>,
    listener: TcpListener,
    k: u16,
    target: SocketAddr,
    from_clients: bool,
) {
    let mut connections = JoinSet::new();
    loop {
        // Without a free descriptor there is none to take; whoever connects tries again.
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (passage, relay) = (Arc::clone(&passage), listener.local_addr());
        connections.spawn(async move {
            let source = match (from_clients, relay) {
                (true, _) => Some(CLIENTS),
                (false, Ok(relay)) => owner::of(from, relay).await,
                (false, Err(_)) => None,
            };
            // Nobody's: its process has died meanwhile.
            if let Some(source) = source {
                passage.bring(source, k, stream, target).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    async fn arrived(network: &Network, from: u16, to: u16) -> usize {
        let arrivals = network.probe(from, to, 5, probe::PACKET_BYTES, PATIENCE);
        arrivals.await.unwrap().packets.len()
    }

    /// Goal: one direction is cut and the other is not, for new connections and for those that are there. Method: probes
    /// both ways while it is cut and after the heal, and a connection that was made before.
    #[tokio::test]
    async fn a_cut_holds_one_direction_until_it_is_healed() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let network = Network::create(2).await.unwrap();
        let ((mut near, front), (back, mut far)) = (pair().await.unwrap(), pair().await.unwrap());
        let passage = Arc::clone(&network.passage);
        tokio::spawn(async move { passage.carry(1, 2, front, back).await });
        network.cut(1, 2);
        assert_eq!(arrived(&network, 1, 2).await, 0);
        assert_eq!(arrived(&network, 2, 1).await, 5);
        near.write_all(b"held").await.unwrap();
        far.write_all(b"back").await.unwrap();
        let mut word = [0; 4];
        near.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"back");
        let held = tokio::time::timeout(PATIENCE, far.read_exact(&mut word)).await;
        assert!(held.is_err(), "it came through the cut");
        network.heal();
        far.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"held");
        assert_eq!(arrived(&network, 1, 2).await, 5);
    }

    #[tokio::test]
    async fn what_is_delayed_comes_late_and_in_order() {
        let network = Network::create(2).await.unwrap();
        let least = Duration::from_millis(40);
        let most = Duration::from_millis(80);
        network.delay(2, Delay { least, most }, 1);
        let late = network.probe(1, 2, 50, probe::PACKET_BYTES, 20 * PATIENCE);
        let late = late.await.unwrap();
        assert!(late.all() && late.overtaken() == 0, "{late:?}");
        assert!(late.fastest().unwrap() >= least, "{late:?}");
        assert_eq!(arrived(&network, 2, 1).await, 5);
    }

    #[tokio::test]
    async fn what_is_squeezed_takes_its_time() {
        let network = Network::create(2).await.unwrap();
        network.squeeze(2, 800_000);
        let squeezed = network.probe(1, 2, 200, 1_000, PATIENCE).await.unwrap();
        assert!(!squeezed.all(), "{squeezed:?}");
    }

    #[tokio::test]
    async fn a_reset_ends_both_sides_and_only_of_that_host() {
        use tokio::io::AsyncReadExt as _;
        let network = Network::create(3).await.unwrap();
        let mut ends = Vec::new();
        for to in [2, 3] {
            let ((near, front), (back, far)) = (pair().await.unwrap(), pair().await.unwrap());
            let passage = Arc::clone(&network.passage);
            tokio::spawn(async move { passage.carry(1, to, front, back).await });
            ends.push((near, far));
        }
        // Both are known once something has passed.
        for (near, far) in &mut ends {
            use tokio::io::AsyncWriteExt as _;
            near.write_all(b"x").await.unwrap();
            far.read_exact(&mut [0]).await.unwrap();
        }
        assert_eq!(network.reset(3), 1);
        let error = ends[1].0.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(ends[1].1.read(&mut [0]).await.is_err());
        assert!(
            ends[0]
                .0
                .try_read(&mut [0])
                .is_err_and(|error| { error.kind() == std::io::ErrorKind::WouldBlock })
        );
    }
}

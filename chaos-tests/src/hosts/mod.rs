//! Where nodes run, and what can be done to the links between them.
//!
//! Hosts are counted from 1, one for each node; host 0 is where the clients are. [`netns`] gives every node a network
//! namespace with an address of its own and breaks real packets; it needs root. [`cage`] is the private world of one
//! run, so that nothing is left behind, however the run ends. [`proxy`] needs nothing: every link goes through a relay in
//! this process. What a back end cannot do it refuses, by name.

pub mod cage;
pub mod delay;
pub mod flip;
mod garble;
pub mod netns;
pub mod probe;
pub mod proxy;
mod queue;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use roost_local::{Cluster, Config, Overrides};

pub use delay::Delay;
pub use flip::Bits;
pub use netns::Network as Netns;
pub use probe::{Arrivals, PACKET_BYTES};
pub use proxy::Network as Proxy;

/// The clients' host.
pub const CLIENTS: u16 = 0;

/// Which back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Network namespaces on a bridge.
    Netns,
    /// Loopback, with a relay on every link.
    Proxy,
}

impl Kind {
    /// Whether packets can be lost and overtake each other, disks fail and memory be limited.
    #[must_use]
    pub fn is_root(self) -> bool {
        self == Self::Netns
    }
}

/// What a host's incoming packets go through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Packets from these hosts never arrive.
    pub cut: BTreeSet<u16>,
    /// So many of a hundred packets are lost.
    pub loss_percent: u8,
}

/// The hosts of one run.
#[derive(Debug)]
pub enum Hosts {
    /// Network namespaces.
    Netns(Netns),
    /// Relays.
    Proxy(Proxy),
}

impl Hosts {
    /// Makes hosts for so many nodes.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub async fn create(kind: Kind, nodes: u16) -> Result<Self> {
        match kind {
            Kind::Netns => Ok(Self::Netns(Netns::create(nodes).await?)),
            Kind::Proxy => Ok(Self::Proxy(Proxy::create(nodes).await?)),
        }
    }

    /// A cluster whose nodes run on these hosts.
    #[must_use]
    pub fn adapt(&self, config: Config, nodes: u16) -> Config {
        match self {
            Self::Netns(network) => (1..=nodes).fold(config, |config, k| {
                config.node(
                    k,
                    Overrides {
                        host: Some(IpAddr::V4(netns::address(k))),
                        prefix: network.prefix(k),
                        ..Overrides::default()
                    },
                )
            }),
            Self::Proxy(network) => network.adapt(config),
        }
    }

    /// Lets traffic through, once it is known where each node listens.
    pub fn open(&mut self, cluster: &Cluster) {
        match self {
            Self::Netns(_) => {}
            Self::Proxy(network) => network.open(cluster),
        }
    }

    /// Whether packets can overtake each other.
    #[must_use]
    pub fn reorders(&self) -> bool {
        matches!(self, Self::Netns(_))
    }

    /// Where clients find the nodes.
    #[must_use]
    pub fn client_urls(&self, cluster: &Cluster) -> Vec<String> {
        match self {
            Self::Netns(_) => cluster.client_urls(),
            Self::Proxy(network) => network.client_urls(),
        }
    }

    /// What a run on these hosts does not test.
    #[must_use]
    pub fn cannot(&self) -> &'static [&'static str] {
        match self {
            Self::Netns(_) => &[],
            Self::Proxy(_) => proxy::CANNOT,
        }
    }

    /// How many nodes there are hosts for.
    #[must_use]
    pub fn nodes(&self) -> u16 {
        match self {
            Self::Netns(network) => network.nodes(),
            Self::Proxy(network) => network.nodes(),
        }
    }

    /// Lets nothing from host `from` arrive at host `to`.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn cut(&mut self, from: u16, to: u16) -> Result<()> {
        match self {
            Self::Netns(network) => network.change(to, |weather| weather.cut.insert(from)).await,
            Self::Proxy(network) => {
                network.cut(from, to);
                Ok(())
            }
        }
    }

    /// Lets nothing pass between two groups of hosts, in either direction.
    ///
    /// # Errors
    /// When a host refuses.
    pub async fn part(&mut self, one: &[u16], other: &[u16]) -> Result<()> {
        for &a in one {
            for &b in other {
                self.cut(a, b).await?;
                self.cut(b, a).await?;
            }
        }
        Ok(())
    }

    /// Loses so many of a hundred packets that come to host `k`.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn lose(&mut self, k: u16, percent: u8) -> Result<()> {
        match self {
            Self::Netns(network) => {
                let change = |weather: &mut Weather| weather.loss_percent = percent;
                network.change(k, change).await
            }
            Self::Proxy(_) => bail!("no packets can be lost on hosts of the kind proxy"),
        }
    }

    /// Lets every packet that comes to host `k` come late, each by as much as the seed draws for it.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn delay(&mut self, k: u16, delay: Delay, seed: u64) -> Result<()> {
        match self {
            Self::Netns(network) => network.delay(k, delay, seed).await,
            Self::Proxy(network) => {
                network.delay(k, delay, seed);
                Ok(())
            }
        }
    }

    /// Lets host `k` receive no more than so many bits a second.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn squeeze(&mut self, k: u16, bits_per_second: u64) -> Result<()> {
        match self {
            Self::Netns(network) => network.squeeze(k, bits_per_second).await,
            Self::Proxy(network) => {
                network.squeeze(k, bits_per_second);
                Ok(())
            }
        }
    }

    /// Lets a few bits of the snapshots that come to host `k` arrive wrong, under right checksums of the network.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn flip(&mut self, k: u16, bits: Arc<Bits>) -> Result<()> {
        match self {
            Self::Netns(network) => network.flip(k, bits).await,
            Self::Proxy(network) => {
                network.flip(k, bits);
                Ok(())
            }
        }
    }

    /// Makes every link whole and fast again.
    ///
    /// # Errors
    /// When a host refuses.
    pub async fn heal(&mut self) -> Result<()> {
        match self {
            Self::Netns(network) => network.heal().await,
            Self::Proxy(network) => {
                network.heal();
                Ok(())
            }
        }
    }

    /// Ends with a reset every connection that host `k` has to another host, and says how many those were.
    ///
    /// # Errors
    /// When the host refuses.
    pub async fn reset(&self, k: u16) -> Result<usize> {
        match self {
            Self::Netns(network) => network.reset(k).await,
            Self::Proxy(network) => Ok(network.reset(k)),
        }
    }

    /// Sends probe packets of so many bytes from one host to another and says what arrived within `patience` after the last.
    ///
    /// # Errors
    /// When they cannot be sent.
    pub async fn probe(
        &self,
        from: u16,
        to: u16,
        packets: usize,
        bytes: usize,
        patience: Duration,
    ) -> Result<Arrivals> {
        match self {
            Self::Netns(network) => {
                let (from, to) = (network.socket(from), network.socket(to));
                probe::send(from, to, packets, bytes, patience).await
            }
            Self::Proxy(network) => network.probe(from, to, packets, bytes, patience).await,
        }
    }
}

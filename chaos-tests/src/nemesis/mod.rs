//! What breaks things: every fault is injected, proves that it is there, and is healed.
//!
//! A fault that had no effect is an error, as one that the hosts cannot inject: nothing is ever skipped. What a fault
//! strikes is drawn from the run's seed when it is made or injected, so that a seed repeats a run as far as real
//! processes allow.

pub mod clock;
pub mod disk;
pub mod memory;
pub mod network;
pub mod process;
pub mod weather;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::LocalBoxFuture;
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::hosts::{Arrivals, Hosts, PACKET_BYTES};
use crate::lab::{Lab, until};

/// How long a probe is waited for on a link that should be whole, or must be dead.
const PROBE_PATIENCE: Duration = Duration::from_millis(300);
const PROBE_PACKETS: usize = 10;
/// For an effect to show: a new leader, a dead process.
pub(crate) const EFFECT_LIMIT: Duration = Duration::from_secs(20);

/// What faults act on.
#[derive(Debug)]
pub struct Field {
    /// The cluster.
    pub lab: Lab,
    /// Where it runs.
    pub hosts: Hosts,
    /// What is left to chance.
    pub chance: StdRng,
    /// Users, so that a leader can be asked for.
    pub users: Vec<String>,
}

/// A step of a fault.
pub type Step<'a, T = ()> = LocalBoxFuture<'a, Result<T>>;

/// Something that goes wrong, and right again.
pub trait Fault {
    /// What it is and, once it is injected, whom it strikes.
    fn name(&self) -> String;

    /// Whether a majority of every shard's replicas stays up and connected.
    fn keeps_majority(&self) -> bool {
        true
    }

    /// Does it.
    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a>;

    /// Shows that it is there, or fails; gives what was seen.
    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String>;

    /// Called again and again while it lasts; says whether it has done all it wants to do.
    fn go_on<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async { Ok(true) })
    }

    /// Undoes it; what it took the nodes to recover is waited for by the caller.
    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a>;
}

impl Field {
    /// How many nodes there are.
    #[must_use]
    pub fn nodes(&self) -> u16 {
        self.hosts.nodes()
    }

    /// Any node.
    pub fn any_node(&mut self) -> u16 {
        let nodes = self.nodes();
        self.chance.random_range(1..=nodes)
    }

    /// So many different nodes, in any order.
    pub fn any_nodes(&mut self, count: u16) -> Vec<u16> {
        let mut nodes: Vec<u16> = (1..=self.nodes()).collect();
        while nodes.len() > usize::from(count) {
            let place = self.chance.random_range(0..nodes.len());
            nodes.swap_remove(place);
        }
        nodes
    }

    /// All nodes but these.
    #[must_use]
    pub fn others(&self, nodes: &[u16]) -> Vec<u16> {
        (1..=self.nodes())
            .filter(|node| !nodes.contains(node))
            .collect()
    }

    /// A node that leads a shard, and a user of that shard.
    ///
    /// # Errors
    /// When nobody leads it in time.
    pub async fn any_leader(&mut self) -> Result<(u16, String)> {
        let place = self.chance.random_range(0..self.users.len());
        let user = self.users[place].clone();
        Ok((self.lab.leader_of(&user).await?, user))
    }

    /// Probes a link with a few packets.
    ///
    /// # Errors
    /// When they cannot be sent.
    pub async fn probe(&self, from: u16, to: u16) -> Result<Arrivals> {
        self.hosts
            .probe(from, to, PROBE_PACKETS, PACKET_BYTES, PROBE_PATIENCE)
            .await
    }

    /// That nothing passes from one host to the other.
    ///
    /// # Errors
    /// When something does.
    pub async fn prove_cut(&self, from: u16, to: u16) -> Result<()> {
        let arrivals = self.probe(from, to).await?;
        ensure!(
            arrivals.none(),
            "the link from host {from} to host {to} is not cut: {} of {} packets came",
            arrivals.packets.len(),
            arrivals.sent
        );
        Ok(())
    }

    /// That everything passes from one host to the other.
    ///
    /// # Errors
    /// When something does not.
    pub async fn prove_whole(&self, from: u16, to: u16) -> Result<()> {
        let arrivals = self.probe(from, to).await?;
        ensure!(
            arrivals.all(),
            "the link from host {from} to host {to} is not whole: {} of {} packets came",
            arrivals.packets.len(),
            arrivals.sent
        );
        Ok(())
    }

    /// That every link, of nodes and clients, is whole.
    ///
    /// # Errors
    /// When one is not.
    pub async fn prove_all_whole(&self) -> Result<()> {
        for from in 0..=self.nodes() {
            for to in (0..=self.nodes()).filter(|to| *to != from) {
                self.prove_whole(from, to).await?;
            }
        }
        Ok(())
    }

    /// Waits until another node than these leads the user's shard, as nodes that they do not stop see it.
    ///
    /// # Errors
    /// When none does in time.
    pub async fn wait_other_leader(&self, user: &str, than: &[u16]) -> Result<u16> {
        let shard = self.lab.shard_of(user);
        let what = format!("a new leader of shard {shard}, not one of nodes {than:?}");
        until(EFFECT_LIMIT, &what, async || {
            for k in self.others(than) {
                // Who has just become the majority may not answer yet.
                if let Ok(Some(leader)) = self.lab.leader_seen_by(k, shard).await
                    && !than.contains(&leader)
                {
                    return Ok(Some(leader));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Starts every node that does not run, and waits until all are ready.
    ///
    /// # Errors
    /// When one does not become ready.
    pub async fn start_all(&mut self) -> Result<()> {
        self.lab.cluster.start_all()?;
        self.lab
            .cluster
            .wait_ready()
            .await
            .context("after the heal")
    }
}

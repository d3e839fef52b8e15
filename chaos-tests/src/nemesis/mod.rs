//! What breaks things: every fault is injected, proves that it is there, and is healed.
//!
//! A fault that had no effect is an error, as one that the hosts cannot inject: nothing is ever skipped. What a fault
//! strikes is drawn from the run's seed when it is made or injected, so that a seed repeats a run as far as real
//! processes allow.

pub mod calls;
pub mod clock;
pub mod damage;
pub mod disk;
pub mod frozen;
pub mod memory;
pub mod network;
pub mod process;
pub mod rivals;
pub mod together;
pub mod transit;
pub mod weather;
pub mod wiped;

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
/// For shards to have all their replicas again.
const WHOLE_LIMIT: Duration = Duration::from_secs(90);
/// What a node that rebuilds itself keeps of its old store until it has all of it anew. Its disk is damage enough until then.
const SET_ASIDE: &str = "store.damaged";
/// How often nodes that end by themselves are started again.
const STARTS_MAX: usize = 4;

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
    /// Nodes that a fault has struck already, which another one leaves alone.
    pub struck: Vec<u16>,
    /// Replicas of each shard.
    pub replicas: usize,
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

    /// Nodes that it keeps to itself while it lasts, once it is injected.
    fn victims(&self) -> Vec<u16> {
        Vec::new()
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

    /// Any node that no other fault has struck.
    pub fn any_node(&mut self) -> u16 {
        let whole = self.others(&self.struck);
        whole[self.chance.random_range(0..whole.len())]
    }

    /// So many different nodes, in any order, of those that no other fault has struck.
    pub fn any_nodes(&mut self, count: u16) -> Vec<u16> {
        let mut nodes = self.others(&self.struck);
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

    /// A node that leads a shard, and a user of that shard; none that another fault has struck.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn any_leader(&mut self) -> Result<(u16, String)> {
        let place = self.chance.random_range(0..self.users.len());
        let mut users = self.users.clone();
        users.rotate_left(place);
        until(
            EFFECT_LIMIT,
            "a leader that nothing has struck",
            async || {
                for user in &users {
                    let leader = self.lab.leader_of(user).await?;
                    if !self.struck.contains(&leader) {
                        return Ok(Some((leader, user.clone())));
                    }
                }
                Ok(None)
            },
        )
        .await
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

    /// Starts those of these nodes that do not run. That they become ready is waited for after every fault.
    ///
    /// # Errors
    /// When a process does not start.
    pub fn start(&mut self, nodes: &[u16]) -> Result<()> {
        for k in nodes {
            let node = self.lab.cluster.node_mut(*k);
            if !node.is_running() {
                node.start().context("after the heal")?;
            }
        }
        Ok(())
    }

    /// Waits until every node is ready and every shard has all its replicas again, each of which votes. A node that ends
    /// meanwhile because of what it finds on its disk is started again, as a service manager would.
    ///
    /// # Errors
    /// When that is not so in time.
    pub async fn wait_whole(&mut self) -> Result<()> {
        let mut starts_left = STARTS_MAX;
        while let Err(error) = self.lab.cluster.wait_ready().await {
            let ended: Vec<u16> = (1..=self.nodes())
                .filter(|k| !self.lab.cluster.node_mut(*k).is_running())
                .collect();
            if ended.is_empty() || starts_left == 0 {
                return Err(error.into());
            }
            starts_left -= 1;
            self.lab
                .fault(format!("nodes {ended:?} ended and are started again"));
            self.start(&ended)?;
        }
        until(WHOLE_LIMIT, "no node keeps a damaged store", async || {
            let nodes = self.lab.cluster.nodes().iter();
            let mut aside = nodes.map(|node| node.data_dir().join(SET_ASIDE));
            Ok((!aside.any(|store| store.exists())).then_some(()))
        })
        .await?;
        until(
            WHOLE_LIMIT,
            "every shard has all its replicas",
            async || {
                // Who has just become ready may not answer yet.
                let Ok(status) = self.lab.admin()?.status().await else {
                    return Ok(None);
                };
                let whole = status.shards.iter().all(|shard| {
                    let votes = |role: &str| matches!(role, "leader" | "follower");
                    let voting = shard.replicas.iter().filter(|replica| votes(&replica.role));
                    voting.count() == self.replicas && shard.replicas.len() == self.replicas
                });
                Ok(whole.then_some(()))
            },
        )
        .await
    }
}

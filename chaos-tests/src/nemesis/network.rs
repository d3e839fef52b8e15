//! Links that are cut, one way or both, for a while or again and again, and connections that are reset.
//!
//! Clients reach every node throughout, unless a fault says otherwise: so they try the wrong side of a partition too.

use anyhow::{Context as _, Result, ensure};

use super::{Fault, Field, Step};

/// How the nodes are parted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A majority and the rest see nothing of each other.
    Halves,
    /// A node that leads a shard sees no other node.
    IsolateLeader,
    /// Nothing that a leader sends arrives at other nodes, and everything that they send arrives at it.
    OneWayOut,
    /// Nothing that other nodes send arrives at a leader, and everything that it sends arrives at them.
    OneWayIn,
    /// Two halves that see only one node in common, which sees both.
    Bridge,
}

/// A partition that stays until it is healed.
#[derive(Debug)]
pub struct Partition {
    shape: Shape,
    /// Every cut, from and to.
    cuts: Vec<(u16, u16)>,
    /// A leader that was cut off, and a user whose shard it led.
    cut_off: Option<(u16, String)>,
}

impl Partition {
    /// In this shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            cuts: Vec::new(),
            cut_off: None,
        }
    }

    async fn plan(&mut self, field: &mut Field) -> Result<()> {
        self.cuts.clear();
        match self.shape {
            Shape::Halves => {
                // What is struck already is part of the minority.
                let mut few = field.struck.clone();
                few.extend(field.any_nodes((field.nodes() - 1) / 2));
                few.truncate(usize::from(field.nodes() - 1) / 2);
                let many = field.others(&few);
                self.cut_both(&few, &many);
            }
            Shape::Bridge => {
                let bridge = field.any_node();
                let mut others = field.others(&[bridge]);
                let half = others.split_off(others.len() / 2);
                self.cut_both(&others, &half);
            }
            Shape::IsolateLeader | Shape::OneWayIn | Shape::OneWayOut => {
                let (leader, user) = field.any_leader().await?;
                for other in field.others(&[leader]) {
                    if self.shape != Shape::OneWayOut {
                        self.cuts.push((other, leader));
                    }
                    if self.shape != Shape::OneWayIn {
                        self.cuts.push((leader, other));
                    }
                }
                self.cut_off = Some((leader, user));
            }
        }
        Ok(())
    }

    fn cut_both(&mut self, one: &[u16], other: &[u16]) {
        for &a in one {
            for &b in other {
                self.cuts.extend([(a, b), (b, a)]);
            }
        }
    }

    async fn apply(&self, field: &mut Field) -> Result<()> {
        field.lab.fault(format!("cut {:?}", self.cuts));
        for (from, to) in &self.cuts {
            field.hosts.cut(*from, *to).await?;
        }
        Ok(())
    }

    /// Every cut link is dead and every other one is whole.
    async fn prove_links(&self, field: &Field) -> Result<String> {
        for from in 0..=field.nodes() {
            for to in (0..=field.nodes()).filter(|to| *to != from) {
                if self.cuts.contains(&(from, to)) {
                    field.prove_cut(from, to).await?;
                } else {
                    field.prove_whole(from, to).await?;
                }
            }
        }
        Ok(format!(
            "no probe packet passed on {} one-way links, all passed elsewhere",
            self.cuts.len()
        ))
    }
}

impl Fault for Partition {
    fn name(&self) -> String {
        match self.shape {
            Shape::Halves => "partition into halves",
            Shape::IsolateLeader => "a leader isolated",
            Shape::OneWayOut => "one-way cut: nothing comes out of a leader",
            Shape::OneWayIn => "one-way cut: nothing comes in to a leader",
            Shape::Bridge => "bridge: one node sees both sides",
        }
        .to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        self.cut_off.iter().map(|(leader, _)| *leader).collect()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.plan(field).await?;
            self.apply(field).await
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            let links = self.prove_links(field).await?;
            let Some((leader, user)) = &self.cut_off else {
                return Ok(links);
            };
            let new = field.wait_other_leader(user, &[*leader]).await?;
            Ok(format!("{links}; node {new} leads what node {leader} led"))
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault("all links whole");
            field.hosts.heal().await?;
            field.prove_all_whole().await
        })
    }
}

/// A leader whose links come and go.
#[derive(Debug)]
pub struct Flapping {
    partition: Partition,
    is_cut: bool,
    turns: usize,
}

impl Default for Flapping {
    fn default() -> Self {
        Self {
            partition: Partition::new(Shape::IsolateLeader),
            is_cut: false,
            turns: 0,
        }
    }
}

impl Flapping {
    /// Cuts what is whole, joins what is cut, and looks whether it is so.
    async fn turn(&mut self, field: &mut Field) -> Result<()> {
        if self.is_cut {
            field.lab.fault("all links whole");
            field.hosts.heal().await?;
        } else {
            self.partition.apply(field).await?;
        }
        self.is_cut = !self.is_cut;
        self.turns += 1;
        let (from, to) = *self.partition.cuts.first().context("no link is chosen")?;
        if self.is_cut {
            field.prove_cut(from, to).await
        } else {
            field.prove_whole(from, to).await
        }
    }
}

impl Fault for Flapping {
    fn name(&self) -> String {
        "flapping links of a leader".to_owned()
    }

    fn victims(&self) -> Vec<u16> {
        self.partition.victims()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            self.partition.plan(field).await?;
            self.turn(field).await
        })
    }

    fn prove<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            self.turn(field).await?;
            self.turn(field).await?;
            Ok(format!(
                "{} turns so far, each seen by probe packets",
                self.turns
            ))
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            self.turn(field).await?;
            Ok(true)
        })
    }

    fn heal<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            field.lab.fault("all links whole");
            field.hosts.heal().await?;
            field.prove_all_whole().await
        })
    }
}

/// Every connection between hosts, of nodes and clients, ends with a reset, again and again.
#[derive(Debug, Default)]
pub struct Resets {
    rounds: usize,
    connections: usize,
}

impl Resets {
    async fn round(&mut self, field: &mut Field) -> Result<()> {
        let node = field.any_node();
        let ended = field.hosts.reset(node).await?;
        field
            .lab
            .fault(format!("{ended} connections of node {node} reset"));
        self.rounds += 1;
        self.connections += ended;
        Ok(())
    }
}

impl Fault for Resets {
    fn name(&self) -> String {
        "connection resets".to_owned()
    }

    fn inject<'a>(&'a mut self, field: &'a mut Field) -> Step<'a> {
        Box::pin(async move { self.round(field).await })
    }

    fn prove<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a, String> {
        Box::pin(async move {
            ensure!(self.connections > 0, "no connection was there to be reset");
            Ok(format!("{} connections reset at once", self.connections))
        })
    }

    fn go_on<'a>(&'a mut self, field: &'a mut Field) -> Step<'a, bool> {
        Box::pin(async move {
            self.round(field).await?;
            Ok(true)
        })
    }

    fn heal<'a>(&'a mut self, _field: &'a mut Field) -> Step<'a> {
        Box::pin(async move {
            ensure!(self.connections > 0, "no connection was ever reset");
            Ok(())
        })
    }
}

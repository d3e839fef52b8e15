//! Placement at size: the node's own function over many nodes and shards, before and after nodes come and go.
//!
//! The set of a cluster's nodes is fixed today, so "after" is what placing anew would ask for, not what a cluster does.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use roost::cluster::place;
use roost::types::{NodeId, ShardId};
use roost_proto::storage::ShardPlacement;

use crate::model::COPIES;
use crate::proposal;
use crate::table::{Table, count, number};

/// Zones that the nodes are dealt out to, in turn.
pub(crate) const ZONES: u32 = 3;

/// Nodes and shards; the last is what the zones are shown for.
const SIZES: [(u32, u32); 3] = [(10, 256), (100, 2_048), (1_000, 16_384)];

/// The nodes of each shard, the user shards in order and the meta shard last; the preferred leader first.
pub(crate) type Placed = Vec<Vec<NodeId>>;

/// Least, mean and most of something over nodes.
struct Spread {
    least: usize,
    mean: f64,
    most: usize,
}

/// What has to be done to come from one placement to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moves {
    /// That a node gets and did not have.
    pub(crate) replicas: usize,
    /// Shards with another preferred leader.
    pub(crate) leaders: usize,
}

/// What a change of the nodes asks for.
struct Change {
    /// Replicas on the nodes that come or go: nobody can move fewer.
    least: usize,
    moves: Moves,
}

/// What a placement is worth when zones are lost.
struct Zones {
    /// Shards whose replicas are in one, two, three zones.
    shards: [usize; COPIES],
    /// Shards without a majority after the zone is lost that harms most of them, and those without any replica.
    without_majority: usize,
    without_replica: usize,
}

/// One size.
pub(crate) struct Simulated {
    nodes: usize,
    shards: usize,
    replicas: Spread,
    leaders: Spread,
    leaves: Change,
    joins: Change,
    zone_leaves: Change,
    zones: Zones,
    /// What [`proposal`] does instead.
    mended: Moves,
    mended_replicas: Spread,
    mended_leaders: Spread,
    zones_proposed: Zones,
}

/// All sizes.
///
/// # Errors
/// When a placement names a node that is none.
pub(crate) fn run() -> Result<Vec<Simulated>> {
    SIZES
        .iter()
        .map(|&(nodes, shards)| simulate(nodes, shards))
        .collect()
}

fn simulate(count: u32, shards: u32) -> Result<Simulated> {
    let nodes: Vec<NodeId> = (1..=count).map(node).collect();
    let before = placed(&place(&nodes, shards, COPIES as u32))?;
    let changed = |nodes: &[NodeId]| -> Result<Change> {
        let after = placed(&place(nodes, shards, COPIES as u32))?;
        let here: BTreeSet<NodeId> = nodes.iter().copied().collect();
        Ok(Change {
            least: held(&before, |node| !here.contains(node))
                + held(&after, |node| number_of(*node) > count),
            moves: moves(&before, &after),
        })
    };
    let without_one: Vec<NodeId> = (1..=count)
        .filter(|&number| number != count / 2)
        .map(node)
        .collect();
    let with_one: Vec<NodeId> = (1..=count + 1).map(node).collect();
    let without_zone: Vec<NodeId> = nodes
        .iter()
        .copied()
        .filter(|node| zone_of(*node) != 0)
        .collect();
    let ids: Vec<ShardId> = (0..shards).map(ShardId).chain([ShardId::META]).collect();
    let mended = proposal::mend(&before, &ids, &without_one);
    Ok(Simulated {
        nodes: nodes.len(),
        shards: ids.len() - 1,
        replicas: replicas(&before, &nodes),
        leaders: leaders(&before, &nodes),
        leaves: changed(&without_one)?,
        joins: changed(&with_one)?,
        zone_leaves: changed(&without_zone)?,
        zones: zones(&before),
        mended: moves(&before, &mended),
        mended_replicas: replicas(&mended, &without_one),
        mended_leaders: leaders(&mended, &without_one),
        zones_proposed: zones(&proposal::place_in_zones(&nodes, &ids)),
    })
}

/// A node with this number; the ring knows only hashes, so that numbers are as good as random ids.
pub(crate) fn node(number: u32) -> NodeId {
    NodeId::from_random(u128::from(number).to_be_bytes())
}

fn number_of(node: NodeId) -> u32 {
    let [.., a, b, c, d] = *node.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

pub(crate) fn zone_of(node: NodeId) -> u32 {
    number_of(node) % ZONES
}

fn placed(placement: &[ShardPlacement]) -> Result<Placed> {
    let nodes = |shard: &ShardPlacement| -> Result<Vec<NodeId>> {
        let ids = shard.replicas.iter().map(|replica| {
            NodeId::parse(&replica.node).with_context(|| format!("shard {}", shard.shard))
        });
        ids.collect()
    };
    placement.iter().map(nodes).collect()
}

/// Replicas on such nodes.
fn held(placed: &Placed, such: impl Fn(&NodeId) -> bool) -> usize {
    placed.iter().flatten().filter(|node| such(node)).count()
}

fn moves(before: &Placed, after: &Placed) -> Moves {
    let shards = || before.iter().zip(after);
    let new = shards().map(|(before, after)| {
        let new = after.iter().filter(|node| !before.contains(node));
        new.count()
    });
    Moves {
        replicas: new.sum(),
        leaders: shards()
            .filter(|(before, after)| before.first() != after.first())
            .count(),
    }
}

fn replicas(placed: &Placed, nodes: &[NodeId]) -> Spread {
    spread(placed.iter().flatten().copied(), nodes)
}

fn leaders(placed: &Placed, nodes: &[NodeId]) -> Spread {
    spread(
        placed.iter().filter_map(|shard| shard.first().copied()),
        nodes,
    )
}

fn spread(held: impl Iterator<Item = NodeId>, nodes: &[NodeId]) -> Spread {
    let mut counts: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (*node, 0)).collect();
    for node in held {
        *counts.entry(node).or_default() += 1;
    }
    let sum: usize = counts.values().sum();
    Spread {
        least: counts.values().min().copied().unwrap_or(0),
        mean: sum as f64 / counts.len().max(1) as f64,
        most: counts.values().max().copied().unwrap_or(0),
    }
}

fn zones(placed: &Placed) -> Zones {
    let mut shards = [0; COPIES];
    let mut without_majority = [0; ZONES as usize];
    let mut without_replica = [0; ZONES as usize];
    for holders in placed {
        let mut in_zone = [0; ZONES as usize];
        for holder in holders {
            in_zone[zone_of(*holder) as usize] += 1;
        }
        let different = in_zone.iter().filter(|&&held| held > 0).count();
        shards[different - 1] += 1;
        for (zone, held) in in_zone.into_iter().enumerate() {
            let stays = holders.len() - held;
            without_majority[zone] += usize::from(stays <= holders.len() / 2);
            without_replica[zone] += usize::from(stays == 0);
        }
    }
    Zones {
        shards,
        without_majority: without_majority.into_iter().max().unwrap_or(0),
        without_replica: without_replica.into_iter().max().unwrap_or(0),
    }
}

/// Balance, and what changes of the nodes ask for.
pub(crate) fn placement_table(simulated: &[Simulated]) -> String {
    let names = simulated
        .iter()
        .map(|one| format!("{} nodes, {} shards", count(one.nodes), count(one.shards)));
    let headings: Vec<String> = std::iter::once(String::new()).chain(names).collect();
    let mut table = Table::of_numbers(&headings);
    let mut row = |what: &str, cell: &dyn Fn(&Simulated) -> String| {
        table.row(what, simulated.iter().map(cell));
    };
    row("replicas a node: least, mean, most", &|one| {
        one.replicas.shown()
    });
    row("preferred leaders a node: least, mean, most", &|one| {
        one.leaders.shown()
    });
    row("a node leaves: it had replicas", &|one| {
        count(one.leaves.least)
    });
    row("placed anew: replicas moved", &|one| one.leaves.moved());
    row("placed anew: preferred leaders changed", &|one| {
        one.leaves.led(one.shards)
    });
    row("a node joins: it gets replicas", &|one| {
        count(one.joins.least)
    });
    row("placed anew: replicas moved", &|one| one.joins.moved());
    row("placed anew: preferred leaders changed", &|one| {
        one.joins.led(one.shards)
    });
    row("a third of the nodes leaves: they had replicas", &|one| {
        count(one.zone_leaves.least)
    });
    row("placed anew: replicas moved", &|one| {
        one.zone_leaves.moved()
    });
    row("placed anew: preferred leaders changed", &|one| {
        one.zone_leaves.led(one.shards)
    });
    row(
        "proposal, a node leaves: replicas moved, preferred leaders changed",
        &|one| {
            let Moves { replicas, leaders } = one.mended;
            format!("{}, {}", count(replicas), count(leaders))
        },
    );
    row("then replicas a node: least, mean, most", &|one| {
        one.mended_replicas.shown()
    });
    row("then preferred leaders a node: least, mean, most", &|one| {
        one.mended_leaders.shown()
    });
    table.finish()
}

/// What zones are worth at the largest size, as placement is and as it could be.
pub(crate) fn zones_table(simulated: &[Simulated]) -> String {
    let headings = ["", "as it is", "proposal"].map(str::to_owned);
    let mut table = Table::of_numbers(&headings);
    let Some(one) = simulated.last() else {
        return table.finish();
    };
    let both = [&one.zones, &one.zones_proposed];
    for (at, what) in ["one zone", "two zones", "three zones"].iter().enumerate() {
        let cells = both.map(|zones| part(zones.shards[at], one.shards));
        table.row(&format!("shards with replicas in {what}"), cells);
    }
    table.row(
        "a zone is lost: shards without a majority",
        both.map(|zones| part(zones.without_majority, one.shards)),
    );
    table.row(
        "a zone is lost: shards without a replica",
        both.map(|zones| part(zones.without_replica, one.shards)),
    );
    table.finish()
}

impl Spread {
    fn shown(&self) -> String {
        format!("{}, {}, {}", self.least, number(self.mean), self.most)
    }
}

impl Change {
    fn moved(&self) -> String {
        let times = self.moves.replicas as f64 / self.least.max(1) as f64;
        format!("{} ({times:.2} times)", count(self.moves.replicas))
    }

    fn led(&self, shards: usize) -> String {
        part(self.moves.leaders, shards)
    }
}

fn part(some: usize, all: usize) -> String {
    let percent = some as f64 / all.max(1) as f64 * 100.0;
    format!("{} ({percent:.1}%)", count(some))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(count: u32) -> Vec<ShardId> {
        (0..count).map(ShardId).chain([ShardId::META]).collect()
    }

    #[test]
    fn a_node_keeps_its_number() {
        assert_eq!([1, 255, 1_001].map(|n| number_of(node(n))), [1, 255, 1_001]);
    }

    /// Goal: the proposal moves what was lost and nothing else, and stays balanced.
    #[test]
    fn mending_moves_only_what_was_lost() -> Result<()> {
        let nodes: Vec<NodeId> = (1..=20).map(node).collect();
        let before = placed(&place(&nodes, 128, COPIES as u32))?;
        let mended = proposal::mend(&before, &shards(128), &nodes[1..]);
        let lost = held(&before, |node| *node == nodes[0]);
        assert_eq!(moves(&before, &mended).replicas, lost);
        assert!(mended.iter().all(|holders| holders.len() == COPIES));
        assert!(replicas(&mended, &nodes[1..]).most <= (129_usize * COPIES).div_ceil(19) + 1);
        Ok(())
    }

    /// Goal: with zones no zone holds a majority of any shard.
    #[test]
    fn zones_hold_one_replica_of_each_shard() {
        let nodes: Vec<NodeId> = (1..=30).map(node).collect();
        let zones = zones(&proposal::place_in_zones(&nodes, &shards(64)));
        assert_eq!((zones.shards, zones.without_majority), ([0, 0, 65], 0));
    }
}

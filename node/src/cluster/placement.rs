//! From the ring to a placement: each shard's replicas and preferred leader, with bounded load.

use std::collections::{BTreeSet, VecDeque};

use roost_proto::storage::{ReplicaPlacement, ShardPlacement};

use super::ring::Ring;
use crate::types::{NodeId, ShardId};

/// Places every user shard and, last, the meta shard: on `replication_factor` nodes each, or on all if there are
/// fewer. The preferred leader comes first; replica ids count from 1 in the order of the answer.
#[must_use]
pub fn place(nodes: &[NodeId], shards: u32, replication_factor: u32) -> Vec<ShardPlacement> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    nodes.dedup();
    let copies = (replication_factor as usize).min(nodes.len());
    let shards: Vec<ShardId> = (0..shards).map(ShardId).chain([ShardId::META]).collect();
    let mut held = spread(&nodes, &shards, copies);
    even_leaders(&mut held, nodes.len());
    let mut replica = 0;
    let placed = shards.iter().zip(held).map(|(shard, holders)| {
        let replicas = holders.into_iter().map(|holder| {
            replica += 1;
            let node = nodes[holder].to_string();
            ReplicaPlacement { replica, node }
        });
        ShardPlacement {
            shard: shard.0,
            replicas: replicas.collect(),
        }
    });
    placed.collect()
}

/// The most replicas that a node may hold: its even share, rounded up. No slack: with the few shards of a cluster it
/// would let the ring's chance leave a node without any.
#[must_use]
pub fn load_max(nodes: usize, shards: usize, copies: usize) -> usize {
    (shards * copies).div_ceil(nodes.max(1))
}

/// For each shard the indexes of its nodes, in order of the ring's preference, none over its load.
fn spread(nodes: &[NodeId], shards: &[ShardId], copies: usize) -> Vec<Vec<usize>> {
    let ring = Ring::new(nodes);
    let load_max = load_max(nodes.len(), shards.len(), copies);
    let mut room = vec![load_max; nodes.len()];
    let mut left = load_max * nodes.len();
    let mut held = Vec::with_capacity(shards.len());
    for (placed, &shard) in shards.iter().enumerate() {
        let after = shards.len() - placed - 1;
        // What the shards after this one can still use, beyond what they need. A node with more room than there are
        // shards to come costs nothing; each other one costs one of these, so that no later shard finds too few nodes.
        let usable: usize = match after >= load_max {
            true => left,
            false => room.iter().map(|&room| room.min(after)).sum(),
        };
        let mut spare = usable - after * copies;
        let mut holders = Vec::with_capacity(copies);
        for node in ring.preference(shard) {
            // With many nodes the walk over all of them would be nearly all of the work.
            if holders.len() == copies {
                break;
            }
            let Ok(at) = nodes.binary_search(&node) else {
                continue;
            };
            let scarce = room[at] <= after;
            if room[at] == 0 || (scarce && spare == 0) {
                continue;
            }
            spare -= usize::from(scarce);
            room[at] -= 1;
            left -= 1;
            holders.push(at);
        }
        held.push(holders);
    }
    held
}

/// Puts each shard's leader first so that nodes lead as evenly as the placement allows: while a node leads two more
/// than another, leaderships move along the shortest chain of shards between such two.
fn even_leaders(held: &mut [Vec<usize>], nodes: usize) {
    // The shards that each node leads, in order: to look for them among all would cost nodes times shards for each move.
    let mut led = vec![BTreeSet::new(); nodes];
    for (shard, holders) in held.iter().enumerate() {
        if let Some(&first) = holders.first() {
            led[first].insert(shard);
        }
    }
    // Each chain makes the sum of squares smaller, so this ends; the bound is for the reader.
    for _ in 0..held.len() * nodes {
        let least = led.iter().map(BTreeSet::len).min().unwrap_or(0);
        let moved =
            (0..nodes).any(|from| led[from].len() >= least + 2 && move_one(held, &mut led, from));
        if !moved {
            return;
        }
    }
}

/// Moves one leadership away from a node, to one that leads at least two fewer. False if there is no way.
fn move_one(held: &mut [Vec<usize>], led: &mut [BTreeSet<usize>], from: usize) -> bool {
    // How each node was reached: the shard whose leadership would move there.
    let mut reached: Vec<Option<usize>> = vec![None; led.len()];
    let mut waiting = VecDeque::from([from]);
    while let Some(node) = waiting.pop_front() {
        if led[node].len() + 2 <= led[from].len() {
            let mut node = node;
            while node != from {
                let Some(shard) = reached[node] else { break };
                let before = held[shard][0];
                lead(&mut held[shard], node);
                led[before].remove(&shard);
                led[node].insert(shard);
                node = before;
            }
            return true;
        }
        for &shard in &led[node] {
            for &next in &held[shard][1..] {
                if next != from && reached[next].is_none() {
                    reached[next] = Some(shard);
                    waiting.push_back(next);
                }
            }
        }
    }
    false
}

/// Puts a node first, and leaves the others in order.
fn lead(holders: &mut [usize], node: usize) {
    if let Some(at) = holders.iter().position(|&holder| holder == node) {
        holders[..=at].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn node(seed: u8) -> NodeId {
        NodeId::from_random([seed; 16])
    }

    /// Golden: the nodes (by their number here) of 32 shards and the meta shard.
    #[test]
    fn three_nodes_and_32_shards_are_placed_as_ever() {
        let nodes = [node(1), node(2), node(3)];
        let placed = place(&nodes, 32, 3);
        let number = |id: &str| nodes.iter().position(|n| n.to_string() == id).unwrap() + 1;
        let words: Vec<String> = placed
            .iter()
            .map(|shard| {
                let nodes = shard.replicas.iter().map(|r| number(&r.node).to_string());
                nodes.collect()
            })
            .collect();
        assert_eq!(words.join(" "), GOLDEN);
        assert_eq!(placed[32].shard, ShardId::META.0);
        assert_eq!(placed[32].replicas[2].replica, 99);
    }

    const GOLDEN: &str = "213 231 312 321 312 213 213 213 213 132 213 321 132 213 123 132 132 \
        132 123 312 213 132 123 132 213 312 123 312 312 312 231 312 321";

    #[test]
    fn no_nodes_hold_nothing() {
        assert!(
            place(&[], 4, 3)
                .iter()
                .all(|shard| shard.replicas.is_empty())
        );
    }

    proptest! {
        /// Every shard has distinct nodes, as many as it should; load is bounded; where a shard has a choice, leaders
        /// are even; replica ids are never given twice.
        #[test]
        fn placements_keep_their_promises(
            seeds in prop::collection::btree_set(any::<u8>(), 1..12),
            bits in 0_u32..8,
            replication_factor in 1_u32..6,
        ) {
            let nodes: Vec<_> = seeds.into_iter().map(node).collect();
            let shards = 1_usize << bits;
            let placed = place(&nodes, shards as u32, replication_factor);
            let copies = (replication_factor as usize).min(nodes.len());
            prop_assert_eq!(placed.len(), shards + 1);
            let (mut load, mut leads) = (BTreeMap::new(), BTreeMap::new());
            let mut replicas = BTreeSet::new();
            for node in &nodes {
                leads.insert(node.to_string(), 0_usize);
            }
            for shard in &placed {
                let distinct: BTreeSet<_> = shard.replicas.iter().map(|r| &r.node).collect();
                prop_assert_eq!(distinct.len(), copies);
                prop_assert_eq!(shard.replicas.len(), copies);
                *leads.get_mut(&shard.replicas[0].node).unwrap() += 1;
                for replica in &shard.replicas {
                    prop_assert!(replicas.insert(replica.replica));
                    *load.entry(replica.node.clone()).or_insert(0_usize) += 1;
                }
            }
            prop_assert_eq!(replicas.last().copied(), Some(replicas.len() as u64));
            let bound = load_max(nodes.len(), shards + 1, copies);
            prop_assert!(load.values().all(|&load| load <= bound));
            if copies >= 3.min(nodes.len()) {
                let (most, least) = (leads.values().max().unwrap(), leads.values().min().unwrap());
                prop_assert!(most - least <= if copies == nodes.len() { 1 } else { 2 }, "{:?}", leads);
            }
        }

        #[test]
        fn the_order_of_the_nodes_makes_no_difference(
            nodes in Just((1..8).map(node).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let sorted: Vec<_> = (1..8).map(node).collect();
            prop_assert_eq!(place(&nodes, 16, 3), place(&sorted, 16, 3));
        }
    }
}

//! What placement could do instead: keep what stands, and know zones. Not what a node does; the simulation says what it
//! would bring. Both keep the node's own bound of load as long as a shard finds its nodes within it.

use std::collections::{BTreeMap, BTreeSet};

use roost::cluster::Ring;
use roost::cluster::placement::load_max;
use roost::types::{NodeId, ShardId};

use crate::model::COPIES;
use crate::simulation::{Placed, zone_of};

/// The placement after nodes have left: whatever was on one of them goes to the node that the ring prefers of those that
/// have room, and a leadership to whoever of the others leads least. Nothing else moves.
pub(crate) fn mend(before: &Placed, shards: &[ShardId], left: &[NodeId]) -> Placed {
    let ring = Ring::new(left);
    let most = load_max(left.len(), shards.len(), COPIES);
    let here: BTreeSet<NodeId> = left.iter().copied().collect();
    let mut load: BTreeMap<NodeId, usize> = left.iter().map(|node| (*node, 0)).collect();
    let mut leads = load.clone();
    for holders in before {
        for (at, holder) in holders.iter().enumerate() {
            if here.contains(holder) {
                *load.entry(*holder).or_default() += 1;
                *leads.entry(*holder).or_default() += usize::from(at == 0);
            }
        }
    }
    let mended = before.iter().zip(shards).map(|(holders, shard)| {
        let mut after = holders.clone();
        after.retain(|holder| here.contains(holder));
        // Who leads must have the state, so none of the newcomers.
        if after.first() != holders.first() {
            let least = (0..after.len()).min_by_key(|&at| leads[&after[at]]);
            if let Some(at) = least {
                *leads.entry(after[at]).or_default() += 1;
                after[..=at].rotate_right(1);
            }
        }
        for most in [most, usize::MAX] {
            for node in ring.preference(*shard) {
                if after.len() == COPIES {
                    break;
                }
                if !after.contains(&node) && load[&node] < most {
                    *load.entry(node).or_default() += 1;
                    after.push(node);
                }
            }
        }
        after
    });
    mended.collect()
}

/// Places shards with no two replicas in one zone: in the ring's order. Leaders are not evened
/// out, as nothing here looks at them.
pub(crate) fn place_in_zones(nodes: &[NodeId], shards: &[ShardId]) -> Placed {
    let ring = Ring::new(nodes);
    let most = load_max(nodes.len(), shards.len(), COPIES);
    let mut load: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (*node, 0)).collect();
    let placed = shards.iter().map(|shard| {
        let mut holders: Vec<NodeId> = Vec::with_capacity(COPIES);
        for most in [most, usize::MAX] {
            for node in ring.preference(*shard) {
                if holders.len() == COPIES {
                    break;
                }
                let zone_is_free = holders.iter().all(|held| zone_of(*held) != zone_of(node));
                if zone_is_free && load[&node] < most {
                    *load.entry(node).or_default() += 1;
                    holders.push(node);
                }
            }
        }
        holders
    });
    placed.collect()
}

//! The hash ring: for each shard all nodes, in an order of preference that changes little when a node comes or goes.
//!
//! The `consistent_hash` crate keeps the ring; the hash is ours, XXH3-64 over bytes that we spell out, because the
//! standard library's `Hash` promises no stability.

use std::hash::{Hash, Hasher};

use consistent_hash::{Node, RingHash, StaticHashRing};
use xxhash_rust::xxh3::xxh3_64;

use crate::types::{NodeId, ShardId};

/// Points of each node on the ring.
pub const VIRTUAL_NODES: u32 = 256;

/// A ring over a set of nodes.
pub struct Ring(StaticHashRing<'static, NodeKey, (), ExplicitHash>);

impl Ring {
    /// The order in which nodes are given, and doubles, make no difference.
    #[must_use]
    pub fn new(nodes: &[NodeId]) -> Self {
        let mut nodes = nodes.to_vec();
        // Here rather than there: the crate drops doubles, but puts what is left out of order.
        nodes.sort_unstable();
        nodes.dedup();
        let nodes = nodes.into_iter().map(|id| {
            let node = Node::new(NodeKey(id));
            node.quantity(VIRTUAL_NODES as usize)
        });
        Self(StaticHashRing::new(ExplicitHash, nodes))
    }

    /// All nodes, each once, the most wanted first.
    pub fn preference(&self, shard: ShardId) -> impl Iterator<Item = NodeId> + '_ {
        self.0
            .calc_candidates(&ShardKey(shard))
            .map(|node| node.key.0)
    }
}

/// Hashed as `n`, the 16 bytes of the id; a virtual node adds its number (4 bytes, little-endian).
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct NodeKey(NodeId);

/// Hashed as `s`, the shard's number (4 bytes, little-endian).
struct ShardKey(ShardId);

impl Hash for NodeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(b"n");
        state.write(self.0.as_bytes());
    }
}

impl Hash for ShardKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(b"s");
        state.write(&self.0.0.to_le_bytes());
    }
}

struct ExplicitHash;

impl RingHash for ExplicitHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut bytes = Collected::default();
        item.hash(&mut bytes);
        bytes.finish()
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let number = u32::try_from(vnode_seq).expect("a node has few virtual nodes");
        let mut bytes = Collected::default();
        node_key.hash(&mut bytes);
        bytes.write(&number.to_le_bytes());
        bytes.finish()
    }
}

/// Our keys write nothing but byte slices, so this sees exactly the bytes that their docs name.
#[derive(Default)]
struct Collected(Vec<u8>);

impl Hasher for Collected {
    fn finish(&self) -> u64 {
        xxh3_64(&self.0)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values: what is hashed, and how, may not change by itself.
    #[test]
    fn the_hash_is_stable() {
        let node = NodeKey(NodeId::from_random([1; 16]));
        let mut spelled = b"n".to_vec();
        spelled.extend_from_slice(node.0.as_bytes());
        spelled.extend_from_slice(&[5, 0, 0, 0]);
        assert_eq!(ExplicitHash.hash_vnode(&node, 5), xxh3_64(&spelled));
        let shard = ExplicitHash.hash_item(&ShardKey(ShardId(0x0102)));
        assert_eq!(shard, xxh3_64(&[b's', 2, 1, 0, 0]));
        assert_eq!(shard, GOLDEN_SHARD_HASH);
        assert_eq!(ExplicitHash.hash_vnode(&node, 5), GOLDEN_NODE_HASH);
    }

    const GOLDEN_SHARD_HASH: u64 = 1_656_904_873_114_429_539;
    const GOLDEN_NODE_HASH: u64 = 17_760_699_869_469_003_682;

    #[test]
    fn every_node_once_and_in_an_order_that_survives_a_loss() {
        let nodes: Vec<_> = (1..=5).map(|n| NodeId::from_random([n; 16])).collect();
        let (all, fewer) = (Ring::new(&nodes), Ring::new(&nodes[1..]));
        for shard in (0..64).map(ShardId) {
            let mut order: Vec<_> = all.preference(shard).collect();
            assert_eq!(order.len(), 5);
            order.retain(|node| *node != nodes[0]);
            assert_eq!(order, fewer.preference(shard).collect::<Vec<_>>());
        }
    }
}

//! What a cluster's creation decides, as one value that every founding node keeps.

use std::collections::BTreeSet;

use bytes::Bytes;
use roost_proto::storage::{NodeRecord, Plan};

use super::placement::place;
use crate::types::NodeId;

/// Why these settings make no cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No power of two, or zero.
    #[error("cluster.shards is {0}: it must be a power of two")]
    Shards(u32),
    /// Zero.
    #[error("cluster.replication_factor is 0: it must be at least 1")]
    ReplicationFactor,
    /// No node, or one twice.
    #[error("a cluster is created from one or more nodes, each named once")]
    Nodes,
    /// A record without a node id.
    #[error("a founding node gave no valid node id")]
    NodeId,
}

/// The plan of a new cluster. The same bytes on every node that is given the same arguments, in whatever order.
///
/// # Errors
/// [`PlanError`] names the setting that does not fit.
pub fn plan(
    cluster_id: String,
    mut nodes: Vec<NodeRecord>,
    shards: u32,
    replication_factor: u32,
    admin_token_hash: Bytes,
) -> Result<Plan, PlanError> {
    if !shards.is_power_of_two() {
        return Err(PlanError::Shards(shards));
    }
    if replication_factor == 0 {
        return Err(PlanError::ReplicationFactor);
    }
    let ids: Result<BTreeSet<NodeId>, _> = nodes.iter().map(|n| NodeId::parse(&n.id)).collect();
    let ids = ids.map_err(|_| PlanError::NodeId)?;
    if ids.is_empty() || ids.len() != nodes.len() {
        return Err(PlanError::Nodes);
    }
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    let ids: Vec<NodeId> = ids.into_iter().collect();
    let placement = place(&ids, shards, replication_factor);
    let replicas = placement.iter().flat_map(|shard| &shard.replicas);
    let last_replica = replicas.map(|replica| replica.replica).max();
    Ok(Plan {
        cluster_id,
        shards,
        replication_factor,
        nodes,
        next_replica: last_replica.unwrap_or(0) + 1,
        placement,
        admin_token_hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seed: u8) -> NodeRecord {
        NodeRecord {
            id: NodeId::from_random([seed; 16]).to_string(),
            ..NodeRecord::default()
        }
    }

    fn make(nodes: Vec<NodeRecord>, shards: u32, factor: u32) -> Result<Plan, PlanError> {
        plan("c".to_owned(), nodes, shards, factor, Bytes::new())
    }

    #[test]
    fn the_same_nodes_in_any_order_make_the_same_plan() {
        let plan = make(vec![record(1), record(2), record(3)], 4, 3).expect("fits");
        assert_eq!(
            make(vec![record(3), record(1), record(2)], 4, 3),
            Ok(plan.clone())
        );
        assert_eq!((plan.next_replica, plan.placement.len()), (16, 5));
    }

    #[test]
    fn what_makes_no_cluster_is_named() {
        assert_eq!(make(vec![record(1)], 3, 1), Err(PlanError::Shards(3)));
        assert_eq!(make(vec![record(1)], 0, 1), Err(PlanError::Shards(0)));
        assert_eq!(
            make(vec![record(1)], 4, 0),
            Err(PlanError::ReplicationFactor)
        );
        assert_eq!(make(vec![], 4, 1), Err(PlanError::Nodes));
        assert_eq!(
            make(vec![record(1), record(1)], 4, 1),
            Err(PlanError::Nodes)
        );
        assert_eq!(
            make(vec![NodeRecord::default()], 4, 1),
            Err(PlanError::NodeId)
        );
    }
}

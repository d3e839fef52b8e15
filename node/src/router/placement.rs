//! Where shards live, as the meta shard last said: a value that is replaced whole.

use std::collections::BTreeMap;

use roost_proto::storage::{ClusterState, NodeRecord, Renewal};

use crate::types::{Invalid, NodeId, ReplicaId, ShardId};

/// Which nodes hold which shard. The shard's own committed membership is the truth; this is where to look first.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Rises with every change.
    pub epoch: u64,
    /// Names this cluster.
    pub cluster_id: String,
    /// Number of user shards.
    pub shards: u32,
    /// SHA-256 of the admin token.
    pub admin_token_hash: Vec<u8>,
    replicas: BTreeMap<ShardId, Vec<(ReplicaId, NodeId)>>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    renewals: Vec<Renewal>,
}

impl Placement {
    /// From the meta shard's row.
    ///
    /// # Errors
    /// [`Invalid::Node`]: a node id that is none, so another program wrote it.
    pub fn from_state(state: &ClusterState) -> Result<Self, Invalid> {
        let plan = state.plan.clone().unwrap_or_default();
        let mut replicas = BTreeMap::new();
        for shard in &plan.placement {
            let of_shard = shard
                .replicas
                .iter()
                .map(|replica| Ok((ReplicaId(replica.replica), NodeId::parse(&replica.node)?)))
                .collect::<Result<Vec<_>, Invalid>>()?;
            replicas.insert(ShardId(shard.shard), of_shard);
        }
        let nodes = plan
            .nodes
            .into_iter()
            .map(|node| Ok((NodeId::parse(&node.id)?, node)))
            .collect::<Result<_, Invalid>>()?;
        Ok(Self {
            epoch: state.epoch,
            cluster_id: plan.cluster_id,
            shards: plan.shards,
            admin_token_hash: plan.admin_token_hash.to_vec(),
            replicas,
            nodes,
            renewals: state.renewals.clone(),
        })
    }

    /// A shard's replicas, the preferred leader first.
    #[must_use]
    pub fn replicas(&self, shard: ShardId) -> &[(ReplicaId, NodeId)] {
        self.replicas.get(&shard).map_or(&[], Vec::as_slice)
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.nodes
    }

    /// Replicas that are being replaced on their own nodes.
    #[must_use]
    pub fn renewals(&self) -> &[Renewal] {
        &self.renewals
    }

    /// Every shard, the meta shard last.
    pub fn all_shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.replicas.keys().copied()
    }

    /// The user shards.
    pub fn user_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(ShardId)
    }
}

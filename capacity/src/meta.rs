//! What the meta shard has to carry: its one row, who reads it, and what writes it.

use anyhow::Result;
use roost::cluster::plan;
use roost::controller::{REFRESH, TICK};
use roost::storage::keys::{Home, Key};
use roost::storage::value;
use roost::types::ReplicaId;
use roost_proto::storage::{ClusterState, NodeRecord};

use crate::model::{COPIES, Sizing};
use crate::simulation::node;
use crate::table::{Table, count, number};

const MEGA: f64 = 1e6;
/// The cluster of the simulation: nodes and shards.
const LARGEST: (usize, u32) = (1_000, 16_384);
/// Changes for each renewed replica: it is begun, and it is finished.
const CHANGES_OF_RENEWAL: f64 = 2.0;

/// The most between two nodes: one for each lane.
const CONNECTIONS: f64 = 3.0;

/// The meta shard of one cluster.
struct Meta {
    nodes: usize,
    shards: u32,
    row_bytes: f64,
}

impl Meta {
    fn of(nodes: usize, shards: u32) -> Result<Self> {
        let records = (1..=nodes).map(record).collect();
        let token_hash = vec![1_u8; 32].into();
        let cluster_id = "00000000-0000-4000-8000-000000000000".to_owned();
        let plan = plan(cluster_id, records, shards, COPIES as u32, token_hash)?;
        let state = ClusterState {
            plan: Some(plan),
            epoch: 1,
            renewals: Vec::new(),
        };
        let home = Home {
            replica: ReplicaId(1),
            generation: 1,
        };
        let row = value::encode(&Key::Cluster(home).encode(), &state);
        Ok(Self {
            nodes,
            shards,
            row_bytes: row.len() as f64,
        })
    }

    /// Sent by the meta shard's leader, bytes a second: every other node asks for the whole row, changed or not.
    fn read_per_s(&self) -> f64 {
        (self.nodes as f64 - 1.0) * self.row_bytes / REFRESH.as_secs_f64()
    }

    fn changes_of_rebuild(&self) -> f64 {
        let replicas = f64::from(self.shards + 1) * COPIES as f64 / self.nodes as f64;
        replicas * CHANGES_OF_RENEWAL
    }

    /// Written by the meta shard's replicas for so many changes, bytes.
    fn written(&self, changes: f64) -> f64 {
        changes * self.row_bytes * COPIES as f64
    }

    /// Questions for the time, in the whole cluster: every node asks every other.
    fn clocks_per_s(&self) -> f64 {
        let nodes = self.nodes as f64;
        nodes * (nodes - 1.0) / TICK.as_secs_f64()
    }
}

/// A node's record, as long as they are.
fn record(number: usize) -> NodeRecord {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    NodeRecord {
        id: node(number).to_string(),
        name: format!("node-{number}"),
        peer_address: format!("roost-{number}.roost.example:7500"),
        client_address: format!("roost-{number}.roost.example:7400"),
        feature_level_min: 1,
        feature_level: 1,
    }
}

/// The meta shard of each size, and of the simulation's cluster.
///
/// # Errors
/// When a size makes no cluster.
pub(crate) fn table(sizings: &[Sizing]) -> Result<String> {
    let sizes = sizings.iter().map(|one| (one.nodes, one.shards()));
    let clusters = sizes
        .chain([LARGEST])
        .map(|(nodes, shards)| Meta::of(nodes, shards))
        .collect::<Result<Vec<Meta>>>()?;
    let names = clusters.iter().map(|meta| {
        format!(
            "{} nodes, {} shards",
            count(meta.nodes),
            count(meta.shards as usize)
        )
    });
    let headings: Vec<String> = std::iter::once(String::new()).chain(names).collect();
    let mut table = Table::of_numbers(&headings);
    let mut row = |what: &str, cell: &dyn Fn(&Meta) -> f64| {
        table.row(what, clusters.iter().map(|meta| number(cell(meta))));
    };
    row("the row, MB", &|meta| meta.row_bytes / MEGA);
    row("read from its leader, MB/s", &|meta| {
        meta.read_per_s() / MEGA
    });
    row("changes when a node's replicas are all renewed", &|meta| {
        meta.changes_of_rebuild()
    });
    row("written for these, its three replicas, MB", &|meta| {
        meta.written(meta.changes_of_rebuild()) / MEGA
    });
    row("changes when every node gets a new version", &|meta| {
        meta.nodes as f64
    });
    row("written for these, MB", &|meta| {
        meta.written(meta.nodes as f64) / MEGA
    });
    row(
        "questions for the time a second, the whole cluster",
        &|meta| meta.clocks_per_s(),
    );
    row("connections of a node with others, at the most", &|meta| {
        CONNECTIONS * (meta.nodes as f64 - 1.0)
    });
    Ok(table.finish())
}

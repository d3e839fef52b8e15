//! Where the other nodes are, also after they have moved.
//!
//! The meta shard records every node's addresses, and a node whose own have changed proposes that (`controller`). But it
//! must be found before it can say so there, and all nodes may have moved at once. So a node that starts introduces
//! itself wherever others may be, at the recorded addresses and those of `cluster.initial_nodes`, before any replica of
//! it speaks: who is asked notes where the asker is, who answers is noted too, and nobody who shows another
//! `cluster.token` or is no node of this cluster. Whoever has not been heard of is looked for until he is.
//!
//! What was heard is tried before what is recorded, never instead of it: a link names the node that it wants, so an
//! address that is old, or another's by now, costs an attempt and no more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::founding::Founding;
use crate::router::placement::Placement;
use crate::types::NodeId;

/// How long an address may take to answer: a silent one holds up the start for so long.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Between two rounds of looking for nodes that have not been heard of.
const ROUND: Duration = Duration::from_secs(1);

/// The addresses of the nodes of this cluster.
pub(crate) struct Addresses {
    pub(crate) founding: Arc<Founding>,
    pub(crate) placements: watch::Receiver<Arc<Placement>>,
}

impl Addresses {
    /// Where a node may listen for others, the likeliest first.
    pub(crate) fn of(&self, node: NodeId) -> Vec<String> {
        let placement = self.placements.borrow();
        let recorded = placement
            .nodes()
            .get(&node)
            .map(|node| node.peer_address.clone());
        let mut addresses: Vec<String> = self
            .founding
            .heard(node)
            .into_iter()
            .chain(recorded)
            .collect();
        addresses.dedup();
        addresses
    }

    /// Introduces this node to all others, and notes who answers.
    ///
    /// # Errors
    /// When another process runs on a copy of this node's data directory.
    pub(crate) async fn greet(&self) -> anyhow::Result<()> {
        for (address, answer) in self.founding.ask(self.everywhere(), ANSWER_WITHIN).await {
            if let Some(answer) = answer {
                self.founding.hear(&address, &answer)?;
            }
        }
        Ok(())
    }

    /// Goes on until every other node has been heard of.
    pub(crate) async fn look_for_others(&self) {
        while !self.all_heard() {
            tokio::time::sleep(ROUND).await;
            if let Err(error) = self.greet().await {
                tracing::error!(%error, "another node shows this node's identity");
            }
        }
    }

    fn all_heard(&self) -> bool {
        let me = self.founding.identity();
        let placement = self.placements.borrow();
        let mut others = placement.nodes().keys().filter(|node| **node != me);
        others.all(|node| self.founding.heard(*node).is_some())
    }

    /// Also this node's own recorded address, should it have another now: there a copy would answer.
    fn everywhere(&self) -> BTreeSet<String> {
        let placement = self.placements.borrow();
        let recorded = placement
            .nodes()
            .values()
            .map(|node| node.peer_address.clone());
        let own = self.founding.record().peer_address;
        let everywhere = recorded.chain(self.founding.founders());
        everywhere.filter(|address| *address != own).collect()
    }
}

//! One round of asking: what the answers come to. Pure.

use std::collections::BTreeMap;

use anyhow::bail;
use roost_proto::peer::Introduction;
use roost_proto::storage::{NodeRecord, Plan};

use crate::auth::AdminToken;
use crate::versions;

/// What the answers of one round come to.
pub(super) enum Round {
    /// A cluster that names this node.
    Join(Box<Plan>, AdminToken),
    /// All are empty and agree, and this node is the first.
    Create(Vec<NodeRecord>),
    /// Not yet, because of this.
    Wait(String),
}

/// Judges what the founders have answered to `mine`, in the order of their addresses; whoever did not answer has no answer.
///
/// # Errors
/// Settings that can never fit, a copied data directory, another cluster than the one this node was of.
pub(super) fn judge(
    mine: &Introduction,
    answers: Vec<(String, Option<Introduction>)>,
) -> anyhow::Result<Round> {
    let me = mine.node.as_ref().map_or("", |node| &node.id);
    let my_cluster = (!mine.cluster_id.is_empty()).then_some(&*mine.cluster_id);
    for (address, answer) in &answers {
        let Some(answer) = answer else { continue };
        check_copy(mine, address, answer)?;
        if let Err(reason) = check_versions(answer) {
            return Ok(Round::Wait(format!("the node at {address}: {reason}")));
        }
        if answer.token_hash != mine.token_hash {
            return Ok(Round::Wait(format!(
                "the node at {address} has another cluster.token"
            )));
        }
    }
    let known = answers.iter().find_map(|(address, answer)| {
        let answer = answer.as_ref()?;
        Some((address, answer.plan.clone()?, &answer.admin_token))
    });
    if let Some((address, plan, token)) = known {
        if let Some(cluster_id) = my_cluster
            && plan.cluster_id != cluster_id
        {
            bail!(
                "the node at {address} belongs to cluster {}, and this one to {cluster_id}",
                plan.cluster_id
            );
        }
        return Ok(if plan.nodes.iter().any(|node| node.id == me) {
            Round::Join(Box::new(plan), AdminToken::parse(token)?)
        } else {
            Round::Wait(format!(
                "the node at {address} belongs to cluster {}, which does not know this node: its disk is empty, so it \
                 is a new node, and a cluster does not take in new nodes yet",
                plan.cluster_id
            ))
        });
    }
    if let Some(cluster_id) = my_cluster {
        return Ok(Round::Wait(format!(
            "rebuilding: no node of cluster.initial_nodes answers that knows cluster {cluster_id}. Start the other nodes. \
             If all of them say this, their stores were damaged at once: what was set aside stays, delete nothing, and \
             see \"All nodes are damaged\" in docs/OPERATIONS.md"
        )));
    }
    for (address, answer) in &answers {
        let Some(answer) = answer else {
            return Ok(Round::Wait(format!(
                "the node at {address} does not answer"
            )));
        };
        // Its data may be all that is left of that cluster.
        if !answer.cluster_id.is_empty() {
            return Ok(Round::Wait(format!(
                "the node at {address} belongs to cluster {} and has lost its store; no other is founded with it",
                answer.cluster_id
            )));
        }
        let agrees = (
            answer.shards,
            answer.replication_factor,
            &answer.initial_nodes,
        ) == (mine.shards, mine.replication_factor, &mine.initial_nodes);
        if !agrees {
            return Ok(Round::Wait(format!(
                "the node at {address} has other settings in [cluster]: shards, replication_factor and initial_nodes \
                 must be the same on all"
            )));
        }
    }
    let nodes: Vec<NodeRecord> = answers
        .into_iter()
        .filter_map(|(_, answer)| answer?.node)
        .collect();
    let distinct: BTreeMap<&str, &NodeRecord> =
        nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    if distinct.len() < nodes.len() {
        return Ok(Round::Wait(
            "two addresses in cluster.initial_nodes lead to the same node".to_owned(),
        ));
    }
    match nodes.first() {
        Some(first) if first.id == me => Ok(Round::Create(nodes)),
        Some(first) => Ok(Round::Wait(format!(
            "node {} creates the cluster",
            first.name
        ))),
        None => bail!("cluster.initial_nodes names nobody"),
    }
}

/// # Errors
/// A copied data directory: the answer is of this node, and of another process.
pub(super) fn check_copy(
    mine: &Introduction,
    address: &str,
    answer: &Introduction,
) -> anyhow::Result<()> {
    let id = |of: &Introduction| of.node.as_ref().map(|node| node.id.clone());
    if id(answer) == id(mine) && answer.instance != mine.instance {
        bail!(
            "the node at {address} runs on a copy of this data directory; each node needs its own"
        );
    }
    Ok(())
}

/// Whether this node can work with another, by the versions that both understand.
///
/// # Errors
/// Why it cannot.
pub(super) fn check_versions(other: &Introduction) -> Result<(), String> {
    let node = other.node.clone().unwrap_or_default();
    versions::check_levels(node.feature_level_min, node.feature_level)
}

//! `roost status`: the cluster as one of its nodes sees it.

use std::io::Write as _;

use roost_proto::admin::StatusResponse;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::server::{AdminArgs, ServerArgs};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// One JSON object: cluster_id, epoch, nodes, shards, queues.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, server: &ServerArgs) -> Result<Exit, Failure> {
    let status = args.admin.admin(server)?.status().await?;
    for warning in &status.warnings {
        eprintln!("warning: {warning}");
    }
    let text = if args.json {
        to_json(&status).to_string()
    } else {
        to_text(&status)
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(Exit::Done)
}

/// The fields are a contract with scripts.
pub(super) fn to_json(status: &StatusResponse) -> Value {
    let nodes: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": node.id,
                "name": node.name,
                "address": node.address,
                "ready": node.ready,
                "version": { "feature_level_min": node.feature_level_min, "feature_level": node.feature_level },
            })
        })
        .collect();
    let shards: Vec<Value> = status
        .shards
        .iter()
        .map(|shard| {
            let replicas: Vec<Value> = shard
                .replicas
                .iter()
                .map(|replica| {
                    let mut shown = json!({
                        "node": replica.node,
                        "role": replica.role,
                        "lag_entries": replica.lag_entries,
                    });
                    if let Some(bytes) = replica.snapshot_bytes {
                        shown["snapshot_bytes"] = bytes.into();
                    }
                    shown
                })
                .collect();
            json!({
                "id": shard.id,
                "leader": (!shard.leader.is_empty()).then_some(&shard.leader),
                "term": shard.term,
                "replicas": replicas,
            })
        })
        .collect();
    let queues = status.queues.unwrap_or_default();
    json!({
        "cluster_id": status.cluster_id,
        "epoch": status.epoch,
        "nodes": nodes,
        "shards": shards,
        "queues": {
            "entries": queues.entries,
            "bytes": queues.bytes,
            "oldest_ms": queues.oldest_ms,
        },
    })
}

fn to_text(status: &StatusResponse) -> String {
    let name = |id: &str| {
        let node = status.nodes.iter().find(|node| node.id == id);
        node.map_or_else(|| id.to_owned(), |node| node.name.clone())
    };
    let mut text = format!("cluster {} epoch {}\n", status.cluster_id, status.epoch);
    for node in &status.nodes {
        let ready = if node.ready { "ready" } else { "NOT READY" };
        text += &format!("node {} {} {ready}\n", node.name, node.address);
    }
    for shard in &status.shards {
        let leader = match shard.leader.as_str() {
            "" => "NONE".to_owned(),
            id => name(id),
        };
        let shard_name = crate::types::ShardId(shard.id);
        text += &format!("shard {shard_name} leader {leader} term {}", shard.term);
        for replica in &shard.replicas {
            text += &format!(" | {} {}", name(&replica.node), replica.role);
            if let Some(bytes) = replica.snapshot_bytes {
                text += &format!(" takes a snapshot, {bytes} bytes so far,");
            }
            if replica.lag_entries > 0 {
                text += &format!(" {} behind", replica.lag_entries);
            }
        }
        text.push('\n');
    }
    let queues = status.queues.unwrap_or_default();
    text += &format!(
        "queues {} messages {} bytes oldest {}\n",
        queues.entries,
        queues.bytes,
        humantime::format_duration(std::time::Duration::from_millis(queues.oldest_ms)),
    );
    text
}

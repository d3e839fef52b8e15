//! The meta shard's state machine: cluster id, nodes, replica ids, placement. Pure, as `shard` is.
//!
//! All of it is one row. Every change raises the epoch. The set of nodes is fixed by the plan; the one membership
//! change is renewing a replica on its own node. A replica id is given out once and never again.

use roost_proto::storage::{
    Applied as AppliedRow, Batch, ClusterState, Command, FinishRenewal, Found, NodeRecord, Outcome,
    RenewOutcome, RenewReplica, Renewal, ReplicaPlacement, UpdateNode, command::Command as Kind,
    outcome,
};
use roost_proto::v1::Code;

use crate::shard::refusal::{done, refused};
use crate::shard::{Applied, Effects, Machine, Txn};
use crate::storage::Error;
use crate::storage::keys::Key;

/// The state machine of the meta shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetaShard;

impl Machine for MetaShard {
    fn apply(&self, txn: &mut Txn<'_>, batch: &Batch) -> Result<Applied, Error> {
        let (applied_key, cluster_key) = (Key::Applied(txn.home()), Key::Cluster(txn.home()));
        let mut applied: AppliedRow = txn.hot(&applied_key)?.unwrap_or_default();
        applied.time_ms = applied.time_ms.max(batch.time_ms);
        txn.put_hot(&applied_key, applied);

        let before: ClusterState = txn.row(&cluster_key)?.unwrap_or_default();
        let mut cluster = before.clone();
        let outcomes = batch.commands.iter();
        let outcomes = outcomes
            .map(|command| dispatch(&mut cluster, command))
            .collect();
        let mut effects = Effects::default();
        if cluster != before {
            txn.put_row(&cluster_key, &cluster);
            effects.cluster = Some(cluster);
        }
        Ok(Applied { outcomes, effects })
    }
}

fn dispatch(cluster: &mut ClusterState, command: &Command) -> Outcome {
    match &command.command {
        Some(Kind::Found(command)) => found(cluster, command),
        Some(Kind::UpdateNode(command)) => update_node(cluster, command),
        Some(Kind::RenewReplica(command)) => renew(cluster, command),
        Some(Kind::FinishRenewal(command)) => finish_renewal(cluster, command),
        _ => refused(Code::Internal, "a command for a user shard"),
    }
}

/// The first plan stands.
fn found(cluster: &mut ClusterState, found: &Found) -> Outcome {
    match (&cluster.plan, &found.plan) {
        (_, None) => refused(Code::Invalid, "no plan"),
        (None, Some(plan)) => {
            cluster.plan = Some(plan.clone());
            cluster.epoch = 1;
            done(false)
        }
        // Its nodes and placement may have changed since; the rest says whether it is the same cluster.
        (Some(known), Some(plan)) if known.cluster_id == plan.cluster_id => done(false),
        _ => refused(Code::AlreadyExists, "another cluster was founded here"),
    }
}

fn update_node(cluster: &mut ClusterState, update: &UpdateNode) -> Outcome {
    let Some(node) = &update.node else {
        return refused(Code::Invalid, "no node");
    };
    let Some(known) = node_record(cluster, &node.id) else {
        return refused(Code::NotFound, "no node of this cluster has this id");
    };
    if known != node {
        *known = node.clone();
        cluster.epoch += 1;
    }
    done(false)
}

fn node_record<'c>(cluster: &'c mut ClusterState, id: &str) -> Option<&'c mut NodeRecord> {
    let plan = cluster.plan.as_mut()?;
    plan.nodes.iter_mut().find(|known| known.id == id)
}

fn renew(cluster: &mut ClusterState, renew: &RenewReplica) -> Outcome {
    let under_way = cluster
        .renewals
        .iter()
        .find(|known| (known.shard, known.old_replica) == (renew.shard, renew.replica));
    if let Some(known) = under_way {
        return renewed(known.new_replica);
    }
    // A replica that fails while it is still to take another's place is replaced in that role.
    let replacing = cluster
        .renewals
        .iter()
        .position(|known| (known.shard, known.new_replica) == (renew.shard, renew.replica));
    let node = placed(cluster, renew.shard, renew.replica).map(|known| known.node.clone());
    if replacing.is_none() && node.is_none() {
        return refused(Code::NotFound, "the shard has no such replica");
    }
    let Some(plan) = cluster.plan.as_mut() else {
        return refused(Code::NotFound, "no cluster was founded here");
    };
    let new_replica = plan.next_replica;
    plan.next_replica += 1;
    match replacing {
        Some(at) => {
            cluster.renewals[at].new_replica = new_replica;
            cluster.renewals[at].store = renew.store;
        }
        None => cluster.renewals.push(Renewal {
            shard: renew.shard,
            old_replica: renew.replica,
            new_replica,
            node: node.unwrap_or_default(),
            reason: renew.reason.clone(),
            store: renew.store,
        }),
    }
    cluster.epoch += 1;
    renewed(new_replica)
}

fn finish_renewal(cluster: &mut ClusterState, finish: &FinishRenewal) -> Outcome {
    let wanted = (finish.shard, finish.old_replica, finish.new_replica);
    let under_way = cluster
        .renewals
        .iter()
        .position(|known| (known.shard, known.old_replica, known.new_replica) == wanted);
    // Finished before, never begun, or another is to take the place by now: there is nothing to change.
    let Some(at) = under_way else {
        return done(false);
    };
    let renewal = cluster.renewals.remove(at);
    if let Some(replica) = placed(cluster, finish.shard, finish.old_replica) {
        replica.replica = renewal.new_replica;
    }
    cluster.epoch += 1;
    done(false)
}

fn placed(cluster: &mut ClusterState, shard: u32, replica: u64) -> Option<&mut ReplicaPlacement> {
    let plan = cluster.plan.as_mut()?;
    let placement = plan
        .placement
        .iter_mut()
        .find(|known| known.shard == shard)?;
    let mut replicas = placement.replicas.iter_mut();
    replicas.find(|known| known.replica == replica)
}

fn renewed(new_replica: u64) -> Outcome {
    Outcome {
        outcome: Some(outcome::Outcome::Renew(RenewOutcome { new_replica })),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use roost_proto::storage::Plan;

    use super::*;
    use crate::cluster::plan;
    use crate::storage::keys::Home;
    use crate::storage::memory::MemoryStore;
    use crate::storage::{Batch as Writes, Store as _};
    use crate::types::{NodeId, ReplicaId};

    const HOME: Home = Home {
        replica: ReplicaId(1),
        generation: 1,
    };

    fn record(seed: u8) -> NodeRecord {
        NodeRecord {
            id: NodeId::from_random([seed; 16]).to_string(),
            ..NodeRecord::default()
        }
    }

    fn founding(cluster: &str) -> Plan {
        let nodes = vec![record(1), record(2), record(3)];
        plan(cluster.to_owned(), nodes, 2, 3, bytes::Bytes::new()).unwrap()
    }

    /// Applies one command, and gives its outcome and the cluster if it changed.
    fn apply(store: &MemoryStore, command: Kind) -> (outcome::Outcome, Option<ClusterState>) {
        let command = Some(command);
        let batch = Batch {
            commands: vec![Command { command }],
            ..Batch::default()
        };
        let mut txn = Txn::new(store, HOME);
        let mut applied = MetaShard.apply(&mut txn, &batch).unwrap();
        store.write(Writes(txn.into_ops())).unwrap();
        let outcome = applied.outcomes.remove(0).outcome.unwrap();
        (outcome, applied.effects.cluster)
    }

    fn found(store: &MemoryStore, cluster: &str) -> (outcome::Outcome, Option<ClusterState>) {
        let plan = Some(founding(cluster));
        apply(store, Kind::Found(Found { plan }))
    }

    fn code(outcome: &outcome::Outcome) -> Option<Code> {
        match outcome {
            outcome::Outcome::Refused(error) => Some(error.code()),
            _ => None,
        }
    }

    #[test]
    fn the_first_plan_stands() {
        let store = MemoryStore::new();
        let cluster = found(&store, "one").1.unwrap();
        assert_eq!((cluster.epoch, cluster.plan), (1, Some(founding("one"))));
        let (again, change) = found(&store, "one");
        assert_eq!((code(&again), change), (None, None));
        let (other, change) = found(&store, "two");
        assert_eq!((code(&other), change), (Some(Code::AlreadyExists), None));
    }

    #[test]
    fn only_known_nodes_change_their_addresses() {
        let store = MemoryStore::new();
        found(&store, "one");
        let moved = NodeRecord {
            peer_address: "10.0.0.1:7500".to_owned(),
            ..record(2)
        };
        let update = |node: &NodeRecord| {
            let node = Some(node.clone());
            apply(&store, Kind::UpdateNode(UpdateNode { node }))
        };
        let cluster = update(&moved).1.unwrap();
        assert_eq!(cluster.epoch, 2);
        assert!(cluster.plan.unwrap().nodes.contains(&moved));
        assert_eq!(update(&moved).1, None);
        let (refused, change) = update(&record(9));
        assert_eq!((code(&refused), change), (Some(Code::NotFound), None));
    }

    #[test]
    fn a_renewal_gives_an_id_that_was_never_used() {
        let store = MemoryStore::new();
        let plan = found(&store, "one").1.unwrap().plan.unwrap();
        let (shard, old) = (
            plan.placement[1].shard,
            plan.placement[1].replicas[2].clone(),
        );
        let renew = |replica| {
            let reason = "damaged".to_owned();
            let renew = RenewReplica {
                shard,
                replica,
                reason,
                store: 100 + replica,
            };
            apply(&store, Kind::RenewReplica(renew))
        };
        let (outcome, cluster) = renew(old.replica);
        let given = outcome::Outcome::Renew(RenewOutcome {
            new_replica: plan.next_replica,
        });
        assert_eq!(outcome, given);
        let cluster = cluster.unwrap();
        assert_eq!((cluster.epoch, cluster.renewals.len()), (2, 1));
        assert_eq!(cluster.renewals[0].node, old.node);
        assert_eq!(renew(old.replica), (given, None));
        // The new one fails before it is in place.
        let cluster = renew(plan.next_replica).1.unwrap();
        let renewal = &cluster.renewals[0];
        let third = plan.next_replica + 1;
        assert_eq!(
            (renewal.old_replica, renewal.new_replica),
            (old.replica, third)
        );
        assert_eq!(renewal.store, 100 + plan.next_replica);

        let finish = |new_replica| {
            let finish = FinishRenewal {
                shard,
                old_replica: old.replica,
                new_replica,
            };
            apply(&store, Kind::FinishRenewal(finish))
        };
        // The word of a leader that has not heard of it yet.
        assert_eq!(finish(plan.next_replica).1, None);
        let cluster = finish(third).1.unwrap();
        let placed = &cluster.plan.unwrap().placement[1].replicas[2];
        assert_eq!((placed.replica, &placed.node), (third, &old.node));
        assert_eq!((cluster.epoch, cluster.renewals.len()), (4, 0));
        assert_eq!(finish(third).1, None);
        assert_eq!(code(&renew(old.replica).0), Some(Code::NotFound));
        let next = renew(third).1.unwrap();
        assert_eq!(next.renewals[0].new_replica, third + 1);
    }
}

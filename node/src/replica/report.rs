//! What the replicas of a node tell its operator: status, readiness, gauges.

use roost_proto::peer::ReplicaStatus;

use super::{Replica, Replicas};
use crate::metrics;
use crate::raft::Role;

impl Replicas {
    /// What every replica is and how far it has come, for the operator.
    #[must_use]
    pub fn status(&self) -> Vec<ReplicaStatus> {
        let wall_ms = (self.context.wall)();
        self.all()
            .iter()
            .map(|replica| status(replica, wall_ms))
            .collect()
    }

    /// Whether every replica here follows a leader, or leads, and has applied nearly all that it knows of.
    ///
    /// # Errors
    /// What is waited for, in words for an operator.
    pub fn readiness(&self) -> Result<(), String> {
        /// Entries that a replica may lag and still be ready.
        const LAG_MAX: u64 = 1_000;
        if self.by_shard.read().is_empty() {
            return Err("no replica serves on this node".to_owned());
        }
        for replica in self.all() {
            let shard = replica.shard();
            let (lag, receiving) = (replica.group().lag_entries(), replica.group().receiving());
            let state = replica.group().state();
            let state = state.borrow();
            if let Some(failed) = &state.failed {
                return Err(format!(
                    "the replica of shard {shard} has failed: {failed:?}"
                ));
            }
            if state.leader.is_none() {
                return Err(format!(
                    "shard {shard} has no leader that this node knows of"
                ));
            }
            if let Some(receiving) = receiving {
                return Err(format!(
                    "the replica of shard {shard} is catching up by snapshot, {} bytes so far",
                    receiving.bytes
                ));
            }
            match lag {
                None => {
                    return Err(format!(
                        "the replica of shard {shard} has not heard from its leader yet"
                    ));
                }
                Some(lag) if lag > LAG_MAX => {
                    return Err(format!("the replica of shard {shard} is catching up"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Brings the gauges of every shard up to date.
    pub fn measure(&self) {
        let all = self.all();
        metrics::SENDING_SNAPSHOTS
            .handle()
            .set(self.pace.sending() as f64);
        let receiving = all
            .iter()
            .filter(|replica| replica.group().receiving().is_some());
        metrics::RECEIVING_SNAPSHOTS
            .handle()
            .set(receiving.count() as f64);
        for replica in all {
            let shard = replica.shard();
            let lag = replica.group().lag_entries();
            let state = replica.group().state();
            let state = state.borrow();
            metrics::RAFT_ROLE.of(shard).set(role_code(state.role));
            let seen = self
                .generations
                .lock()
                .insert(replica.id(), state.generation);
            let installed = seen.map_or(0, |seen| state.generation.saturating_sub(seen));
            metrics::SNAPSHOTS.handle().increment(u64::from(installed));
            metrics::RAFT_TERM.of(shard).set(state.term as f64);
            // While that is unknown, what its own log holds; the node is not ready until then.
            let lag = lag.unwrap_or_else(|| {
                let (last, applied) = (state.last_log, state.last_applied);
                last.unwrap_or_default()
                    .saturating_sub(applied.unwrap_or_default())
            });
            metrics::RAFT_LAG.of(shard).set(lag as f64);
            let appends = replica.group().waiting_appends();
            metrics::WAITING_APPENDS.of(shard).set(appends as f64);
            let log_bytes = replica.group().log_bytes();
            metrics::LOG_BYTES.of(shard).set(log_bytes as f64);
            let view = replica.view();
            let reader = super::reader(&view);
            // A leader's word: followers would count every queue again.
            let leads = state.role == Role::Leader;
            let applied = if leads {
                reader.applied().unwrap_or_default()
            } else {
                Default::default()
            };
            let oldest = if leads {
                reader.oldest_accepted_ms().ok().flatten()
            } else {
                None
            };
            let age_ms = oldest.map_or(0, |oldest| (self.context.wall)().saturating_sub(oldest));
            metrics::QUEUE_ENTRIES
                .of(shard)
                .set(applied.queued_entries as f64);
            metrics::QUEUE_BYTES
                .of(shard)
                .set(applied.queued_bytes as f64);
            metrics::RECEIPT_BYTES
                .of(shard)
                .set(applied.receipt_bytes as f64);
            metrics::OLDEST_ENTRY_AGE
                .of(shard)
                .set(age_ms as f64 / 1_000.0);
            let rows: u64 = match leads {
                true => reader
                    .outbox_heads()
                    .unwrap_or_default()
                    .iter()
                    .map(|(_, head)| head.rows)
                    .sum(),
                false => 0,
            };
            metrics::OUTBOX_ROWS.of(shard).set(rows as f64);
        }
    }
}

fn status(replica: &Replica, wall_ms: u64) -> ReplicaStatus {
    let state = replica.group().state();
    let state = state.borrow();
    let view = replica.view();
    let reader = super::reader(&view);
    let applied = reader.applied().unwrap_or_default();
    ReplicaStatus {
        shard: replica.shard().0,
        replica: replica.id().0,
        role: role_name(state.role).to_owned(),
        term: state.term,
        applied: state.last_applied.unwrap_or_default(),
        last_log: state.last_log.unwrap_or_default(),
        queued_entries: applied.queued_entries,
        queued_bytes: applied.queued_bytes,
        oldest_ms: reader
            .oldest_accepted_ms()
            .ok()
            .flatten()
            .map_or(0, |oldest| wall_ms.saturating_sub(oldest)),
        leader: state.role == Role::Leader,
        snapshot_bytes: replica.group().receiving().map(|receiving| receiving.bytes),
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "failed",
    }
}

/// As the metric's help says.
fn role_code(role: Role) -> f64 {
    match role {
        Role::Stopped => 0.0,
        Role::Learner => 1.0,
        Role::Follower => 2.0,
        Role::Candidate => 3.0,
        Role::Leader => 4.0,
    }
}

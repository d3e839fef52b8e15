//! What replicas say of themselves while a run goes on, and what they must never say.

use std::collections::{BTreeMap, BTreeSet};

use roost::raft::{Role, State};
use roost::types::ReplicaId;

/// Looks at every replica again and again.
#[derive(Default)]
pub(super) struct Observer {
    led: BTreeSet<(ReplicaId, u64)>,
    stood: BTreeSet<(ReplicaId, u64)>,
    terms: BTreeMap<ReplicaId, u64>,
    generations: BTreeMap<ReplicaId, u32>,
    stores: BTreeMap<ReplicaId, u64>,
    pub(super) snapshots: u64,
    /// Replicas whose term was higher before: they have forgotten a vote.
    pub(super) forgetful: BTreeSet<ReplicaId>,
    /// Replicas that came back on another store than their own.
    pub(super) reused: BTreeSet<ReplicaId>,
}

impl Observer {
    pub(super) fn look(&mut self, replica: ReplicaId, store_id: u64, state: &State) {
        if *self.stores.entry(replica).or_insert(store_id) != store_id {
            self.reused.insert(replica);
        }
        match state.role {
            Role::Leader => drop(self.led.insert((replica, state.term))),
            Role::Candidate => drop(self.stood.insert((replica, state.term))),
            _ => {}
        }
        let term = self.terms.entry(replica).or_default();
        // A group that is just being opened has not read its vote.
        if state.term > 0 && state.term < *term {
            self.forgetful.insert(replica);
        }
        *term = (*term).max(state.term);
        let known = self.generations.insert(replica, state.generation);
        self.snapshots += u64::from(state.generation.saturating_sub(known.unwrap_or(0)));
    }

    /// Leaders that came to be.
    pub(super) fn elections(&self) -> u64 {
        self.led.len() as u64
    }

    /// Candidates that did not come to lead.
    pub(super) fn lost_votes(&self) -> u64 {
        self.stood.difference(&self.led).count() as u64
    }
}

//! Whether this node is cut off from the others, as its replicas see it.

use std::time::Duration;

use tokio::sync::watch;

use super::Replicas;
use crate::raft::Role;

/// Looks in a row that must find the node cut off. A node that was frozen finds that everybody has been silent for long,
/// before it has read what they said meanwhile.
const LOOKS: u32 = 4;

/// What a node knows of being cut off.
#[derive(Default)]
pub(super) struct CutOff {
    looks: u32,
    known: watch::Sender<bool>,
}

impl CutOff {
    fn note(&mut self, silent: bool) {
        self.looks = match silent {
            true => self.looks.saturating_add(1),
            false => 0,
        };
        let cut_off = self.looks >= LOOKS;
        let changed = self.known.send_if_modified(|known| {
            let changed = *known != cut_off;
            *known = cut_off;
            changed
        });
        match (changed, cut_off) {
            (true, true) => tracing::warn!("no other node is heard; clients are sent elsewhere"),
            (true, false) => tracing::info!("other nodes are heard again"),
            (false, _) => {}
        }
    }
}

impl Replicas {
    /// Whether no replica here has heard of a leader, or, if it leads, of a majority, for longer than followers bear
    /// silence. The others have elected by then, or cannot be reached from anywhere: clients are better served by them.
    #[must_use]
    pub fn cut_off(&self) -> watch::Receiver<bool> {
        self.cut_off.lock().known.subscribe()
    }

    /// Looks whether that is so now. Called with every heartbeat.
    pub fn look_around(&self) {
        let silence_max = 3 * Duration::from_millis(self.context.config.raft.election_max_ms);
        let silences = self.all().into_iter().filter_map(|replica| {
            let group = replica.group();
            let stopped = group.state().borrow().role == Role::Stopped;
            (!stopped).then(|| group.silence())
        });
        // A node without replicas cannot tell.
        let silent = silences.min().is_some_and(|least| least > silence_max);
        self.cut_off.lock().note(silent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_after_a_pause_is_not_believed() {
        let mut cut_off = CutOff::default();
        let known = cut_off.known.subscribe();
        for silent in [true, true, true, false, true, true, true] {
            cut_off.note(silent);
            assert!(!*known.borrow());
        }
        cut_off.note(true);
        assert!(*known.borrow());
        cut_off.note(false);
        assert!(!*known.borrow());
    }
}

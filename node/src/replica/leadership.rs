//! Terms of leadership: how a replica begins to serve, how it ends, and when it must not although it leads.

use tokio::sync::watch;

use super::{Error, Replica, reader};
use crate::raft::Role;
use crate::types::NodeId;

impl Replica {
    /// The node that leads the shard, as far as this replica knows. Nobody while this node's disk hangs: the replica
    /// cannot learn of its own successor then.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.leader.subscribe()
    }

    /// Does what only a leader can, unless the node's disk hangs. Then nothing can be committed or confirmed here, and
    /// whoever waits had better ask the next leader than wait for this disk.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the disk hangs; and those of `work`.
    pub(super) async fn unless_disk_hangs<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut hangs = self.disk_hangs.clone();
        tokio::select! {
            done = work => done,
            Ok(_) = hangs.wait_for(|hangs| *hangs) => Err(Error::Unknown),
        }
    }

    /// Begins and ends terms of leadership. What must happen is a row: a new leader starts by scanning them.
    pub(super) async fn follow_leadership(&self) {
        let mut states = self.group.state();
        let mut disk_hangs = self.disk_hangs.clone();
        let mut leading = None;
        loop {
            let hangs = *disk_hangs.borrow_and_update();
            let (term, leads, leader) = {
                let state = states.borrow_and_update();
                let leads = state.role == Role::Leader && state.applied_own_term;
                // A replica that has stopped remembers the last leader for ever.
                let knows = state.role != Role::Stopped && !hangs;
                let leader = state.leader.filter(|_| knows).map(|(_, node)| node);
                (state.term, leads && !hangs, leader)
            };
            self.leader.send_if_modified(|known| {
                let modified = *known != leader;
                *known = leader;
                modified
            });
            if leading.is_some_and(|led| !leads || led != term) {
                self.delivery.end_all(leader);
                leading = None;
            }
            if leads && leading.is_none() {
                leading = Some(term);
                self.begin_term(term);
            }
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                Ok(()) = disk_hangs.changed() => {}
            }
        }
    }

    fn begin_term(&self, term: u64) {
        let view = self.view();
        let reader = reader(&view);
        match reader
            .applied()
            .and_then(|applied| Ok((applied, reader.outbox_heads()?)))
        {
            Ok((applied, heads)) => {
                self.clock.begin(applied.time_ms);
                for (destination, head) in heads {
                    if head.rows > 0 {
                        self.outbox.raise(self.shard, destination);
                    }
                }
            }
            Err(error) => {
                tracing::error!(shard = %self.shard, %error, "a new leader cannot read its state")
            }
        }
        self.trims.notify_one();
        tracing::info!(shard = %self.shard, term, "leads");
    }
}

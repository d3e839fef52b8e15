//! Delivery at a shard's leader: pushes entries and receipts to whoever is attached, as far as its credit goes.
//!
//! Everything is read from the state: a slow session costs its own queue and rows that stand there anyway, and nothing
//! is read for it beyond the credit that it granted. Who is attached is soft state ([`table`]): a new leader starts with
//! nobody, and sessions attach again from where they are.

mod attached;
mod table;

use std::sync::Arc;

use parking_lot::Mutex;
use roost_proto::peer::{AttachRequest, Grant};
use roost_proto::v1::{self, Code, Epoch};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::clock::ShardClock;
use crate::metrics;
use crate::peer::{LinkId, LinkPushes};
use crate::raft::Group;
use crate::storage;
use crate::types::{DeviceId, NodeId, ReplicaId, ShardId, UserId};
use attached::{Attached, refusal};
use table::Table;

pub use attached::body_bytes;

/// Where an attachment's pushes go.
pub struct Target {
    /// The link that it came over.
    pub link: LinkId,
    /// Its pushes.
    pub pushes: LinkPushes,
}

/// All attachments of one shard at this node.
pub struct Delivery {
    shard: ShardId,
    group: Arc<Group>,
    clock: Arc<ShardClock>,
    attachments_max: usize,
    /// Where damage that a read meets is noted; the replica's supervisor looks.
    damage: Arc<Mutex<Option<String>>>,
    table: Mutex<Table>,
    epoch: Mutex<Epoch>,
    woken: Notify,
}

impl Delivery {
    /// Starts the task that pushes; it ends with `stop`.
    pub fn start(
        shard: ShardId,
        group: Arc<Group>,
        clock: Arc<ShardClock>,
        attachments_max: usize,
        damage: Arc<Mutex<Option<String>>>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let delivery = Arc::new(Self {
            shard,
            group,
            clock,
            attachments_max,
            damage,
            table: Mutex::default(),
            epoch: Mutex::default(),
            woken: Notify::new(),
        });
        let task = Arc::clone(&delivery);
        tokio::spawn(async move { stop.run_until_cancelled(task.run()).await });
        delivery
    }

    /// The epoch of a new session, above all that were drawn before, here or by an earlier leader. The caller has had
    /// it confirmed, since the session asked, that `replica` leads in this term.
    pub fn draw_epoch(&self, term: u64, replica: ReplicaId) -> Epoch {
        /// Epochs for each millisecond.
        const FOR_EACH_MS: u64 = 1_024;
        // A leader that restarts may go on in its term; what it has drawn is forgotten, but shard time is not.
        let counter = self.clock.now_ms().saturating_mul(FOR_EACH_MS);
        let mut last = self.epoch.lock();
        *last = Epoch {
            term: last.term.max(term),
            replica: replica.0,
            counter: counter.max(last.counter + 1),
        };
        *last
    }

    /// Registers an attachment or watch. The caller has checked leadership, device and cursor by a confirmed read;
    /// receipts begin behind the revision `receipts_after`.
    ///
    /// # Errors
    /// `DISPLACED` if a newer attachment of the device is there, `OVERLOADED` at the bound.
    pub fn attach(
        &self,
        user: UserId,
        request: &AttachRequest,
        receipts_after: u64,
        target: Target,
    ) -> Result<(), v1::Error> {
        let attached = Attached::new(request, receipts_after, target);
        let mut table = self.table.lock();
        table.add(user, attached, self.attachments_max)?;
        self.measure(&table);
        drop(table);
        self.woken.notify_one();
        Ok(())
    }

    /// More room in a session's window.
    pub fn grant(&self, link: LinkId, grant: &Grant) {
        let granted = self.table.lock().grant(link, grant);
        if granted {
            self.woken.notify_one();
        }
    }

    /// The session has gone.
    pub fn detach(&self, link: LinkId, number: u64) {
        let mut table = self.table.lock();
        table.remove(link, number);
        self.measure(&table);
    }

    /// The link has gone, with all sessions behind it.
    pub fn link_closed(&self, link: LinkId) {
        let mut table = self.table.lock();
        table.remove_link(link);
        self.measure(&table);
    }

    /// Queues or receipts of these users changed; those that somebody is attached to are looked at.
    pub fn wake<'u>(&self, users: impl Iterator<Item = &'u UserId>) {
        let mut table = self.table.lock();
        let mut woken = false;
        for user in users {
            woken |= table.wake(user);
        }
        drop(table);
        if woken {
            self.woken.notify_one();
        }
    }

    /// A device was removed: its sessions are over.
    pub fn remove_device(&self, user: &UserId, device: DeviceId) {
        let mut table = self.table.lock();
        for attached in table.take(user, |attached| attached.device == device) {
            let why = refusal(Code::Unauthenticated, "the device was removed", false);
            attached.end(Some(why), None);
        }
        self.measure(&table);
    }

    /// Leadership was lost: everybody attaches again, at the new leader if it is known.
    pub fn end_all(&self, leader: Option<NodeId>) {
        let mut table = self.table.lock();
        for attached in table.take_all() {
            attached.end(None, leader);
        }
        self.measure(&table);
    }

    /// As [`Delivery::end_all`], and nobody attaches here any more: an attach that is on its way comes too late.
    pub fn close(&self) {
        self.table.lock().close();
        self.end_all(None);
    }

    async fn run(&self) {
        loop {
            self.woken.notified().await;
            // One user at a time, so that the table is never locked for long.
            while let Some(user) = self.next_woken() {
                if let Err(error) = self.pump(&user) {
                    // Sessions go on asking, and find the shard's next leader once this replica has stopped.
                    tracing::error!(shard = %self.shard, %error, "cannot read a queue for delivery");
                    self.damage.lock().get_or_insert_with(|| error.to_string());
                    self.end_all(None);
                }
                tokio::task::yield_now().await;
            }
        }
    }

    fn next_woken(&self) -> Option<UserId> {
        self.table.lock().next_woken()
    }

    /// Pushes one page to each attachment of a user.
    fn pump(&self, user: &UserId) -> Result<(), storage::Error> {
        let view = self.group.view();
        let reader = super::reader(&view);
        let mut table = self.table.lock();
        let mut more = false;
        for attached in table.of(user) {
            more |= attached.push_entries(&reader, &self.clock, user)?;
            more |= attached.push_receipts(&reader, user)?;
        }
        if more {
            table.wake(user);
        }
        Ok(())
    }

    fn measure(&self, table: &Table) {
        let (attachments, watches) = table.counts();
        metrics::WATCHES.of(self.shard).set(watches as f64);
        metrics::ATTACHMENTS.of(self.shard).set(attachments as f64);
    }
}

#[cfg(test)]
#[path = "delivery_tests.rs"]
mod tests;

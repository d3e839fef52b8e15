//! Attachments at a shard's leader: who wants which queue from where, and pushing it there within the window.
//!
//! Soft state only: the attachment *is* the presence. A new leader starts with none and sessions attach again from
//! their cursor. A slow device costs its own queue: nothing is read for it beyond the credit that it granted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use roost_proto::peer::{AttachRequest, Ended, Grant, Push, push};
use roost_proto::v1::{self, Code, Epoch, Receipt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::clock::ShardClock;
use crate::metrics;
use crate::peer::{LinkId, LinkPushes};
use crate::raft::Group;
use crate::raft::View;
use crate::storage;
use crate::types::{DeviceId, NodeId, ReplicaId, ShardId, UserId};

/// Entries in one push.
const PAGE_ENTRIES: usize = 128;
/// Bytes of bodies in one push, unless a single entry is larger.
const PAGE_BYTES: u64 = 256 * 1024;
/// Receipts in one push.
const PAGE_RECEIPTS: usize = 256;

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
    woken: Notify,
}

#[derive(Default)]
struct Table {
    /// The replica has stopped: nobody would push anything any more.
    closed: bool,
    epoch: Epoch,
    users: BTreeMap<UserId, Vec<Attached>>,
    /// Which user an attachment number on a link belongs to.
    numbers: BTreeMap<(LinkId, u64), UserId>,
    /// Users with something to push; a subset of `users`.
    woken: BTreeSet<UserId>,
}

struct Attached {
    link: LinkId,
    number: u64,
    pushes: LinkPushes,
    device: DeviceId,
    rank: Rank,
    queue: Option<QueueState>,
    receipts: ReceiptState,
}

struct QueueState {
    incarnation: u64,
    next_seq: u64,
    credit_entries: i64,
    credit_bytes: i64,
}

enum ReceiptState {
    /// Not wanted.
    Off,
    /// An attached device: rows after this revision, from the state.
    After(u64),
    /// A watch: as they are written.
    Live,
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
        let mut table = self.table.lock();
        // A leader that restarts may go on in its term; what it has drawn is forgotten, but shard time is not.
        let counter = self.clock.now_ms().saturating_mul(FOR_EACH_MS);
        table.epoch = Epoch {
            term: table.epoch.term.max(term),
            replica: replica.0,
            counter: counter.max(table.epoch.counter + 1),
        };
        table.epoch
    }

    /// Registers an attachment or watch. The caller has checked leadership, device and cursor by a confirmed read;
    /// `receipts_after` is the device's acknowledged revision.
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
        let device = DeviceId(request.device);
        let mut table = self.table.lock();
        if table.closed {
            return Err(refusal(Code::Unavailable, "the replica has stopped", true));
        }
        if table.numbers.len() >= self.attachments_max {
            return Err(refusal(
                Code::Overloaded,
                "too many devices are attached at this shard",
                true,
            ));
        }
        let rank = Rank::of(request);
        let queue = request.cursor.map(|cursor| QueueState {
            incarnation: cursor.incarnation,
            next_seq: cursor.seq + 1,
            credit_entries: i64::from(request.window_entries),
            credit_bytes: i64::try_from(request.window_bytes).unwrap_or(i64::MAX),
        });
        if queue.is_some() {
            table.displace(&user, device, rank)?;
        }
        let receipts = match (&queue, request.receipts) {
            (_, false) => ReceiptState::Off,
            (Some(_), true) => ReceiptState::After(receipts_after),
            (None, true) => ReceiptState::Live,
        };
        table
            .numbers
            .insert((target.link, request.attachment), user.clone());
        table.users.entry(user.clone()).or_default().push(Attached {
            link: target.link,
            number: request.attachment,
            pushes: target.pushes,
            device,
            rank,
            queue,
            receipts,
        });
        table.woken.insert(user);
        self.measure(&table);
        drop(table);
        self.woken.notify_one();
        Ok(())
    }

    /// More room in a session's window.
    pub fn grant(&self, link: LinkId, grant: &Grant) {
        let mut table = self.table.lock();
        let Some(user) = table.numbers.get(&(link, grant.attachment)).cloned() else {
            return;
        };
        for attached in table.users.get_mut(&user).into_iter().flatten() {
            if attached.is(link, grant.attachment)
                && let Some(queue) = &mut attached.queue
            {
                queue.credit_entries += i64::from(grant.entries);
                queue.credit_bytes += i64::try_from(grant.bytes).unwrap_or(i64::MAX);
            }
        }
        table.woken.insert(user);
        drop(table);
        self.woken.notify_one();
    }

    /// The session has gone.
    pub fn detach(&self, link: LinkId, number: u64) {
        let mut table = self.table.lock();
        table.remove_number(link, number);
        self.measure(&table);
    }

    /// The link has gone, with all sessions behind it.
    pub fn link_closed(&self, link: LinkId) {
        let mut table = self.table.lock();
        table.remove(|attached| attached.link == link);
        self.measure(&table);
    }

    /// Queues changed; those that somebody is attached to are looked at.
    pub fn wake(&self, users: Vec<UserId>) {
        let mut table = self.table.lock();
        let before = table.woken.len();
        for user in users {
            if table.users.contains_key(&user) {
                table.woken.insert(user);
            }
        }
        let grown = table.woken.len() > before;
        drop(table);
        if grown {
            self.woken.notify_one();
        }
    }

    /// Receipts were written: watches see them now, attached devices by their rows.
    pub fn receipts(&self, receipts: Vec<(UserId, Receipt)>) {
        let mut table = self.table.lock();
        for (user, receipt) in receipts {
            let Some(attached) = table.users.get(&user) else {
                continue;
            };
            for watch in attached
                .iter()
                .filter(|a| matches!(a.receipts, ReceiptState::Live))
            {
                watch.push(push::Push::Receipts(v1::Receipts {
                    receipts: vec![receipt.clone()],
                }));
            }
            table.woken.insert(user);
        }
        drop(table);
        self.woken.notify_one();
    }

    /// A device was removed: its sessions are over.
    pub fn remove_device(&self, user: &UserId, device: DeviceId) {
        let mut table = self.table.lock();
        for attached in table.users.get(user).into_iter().flatten() {
            if attached.device == device {
                attached.end(
                    Some(refusal(
                        Code::Unauthenticated,
                        "the device was removed",
                        false,
                    )),
                    None,
                );
            }
        }
        let numbers: Vec<_> = table
            .users
            .get(user)
            .into_iter()
            .flatten()
            .filter(|attached| attached.device == device)
            .map(|attached| (attached.link, attached.number))
            .collect();
        table.remove(|attached| numbers.contains(&(attached.link, attached.number)));
        self.measure(&table);
    }

    /// Leadership was lost: everybody attaches again, at the new leader if it is known.
    pub fn end_all(&self, leader: Option<NodeId>) {
        let mut table = self.table.lock();
        for attached in table.users.values().flatten() {
            attached.end(None, leader);
        }
        table.users.clear();
        table.numbers.clear();
        table.woken.clear();
        self.measure(&table);
    }

    /// As [`Delivery::end_all`], and nobody attaches here any more: an attach that is on its way comes too late.
    pub fn close(&self) {
        self.table.lock().closed = true;
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
        self.table.lock().woken.pop_first()
    }

    fn pump(&self, user: &UserId) -> Result<(), storage::Error> {
        let view = self.group.view();
        let mut table = self.table.lock();
        let mut more = false;
        for attached in table.users.get_mut(user).into_iter().flatten() {
            more |= attached.push_entries(&view, &self.clock, user)?;
            more |= attached.push_receipts(&view, user)?;
        }
        if more {
            table.woken.insert(user.clone());
        }
        Ok(())
    }

    fn measure(&self, table: &Table) {
        let watches = table
            .users
            .values()
            .flatten()
            .filter(|a| a.queue.is_none())
            .count();
        metrics::WATCHES.of(self.shard).set(watches as f64);
        metrics::ATTACHMENTS
            .of(self.shard)
            .set((table.numbers.len() - watches) as f64);
    }
}

impl Table {
    /// Ends an older attachment of the device, or refuses the new one if it is the older.
    fn displace(&mut self, user: &UserId, device: DeviceId, rank: Rank) -> Result<(), v1::Error> {
        let same_device = |a: &Attached| a.queue.is_some() && a.device == device;
        let attached = self.users.get(user).into_iter().flatten();
        for other in attached.filter(|a| same_device(a)) {
            if other.rank > rank {
                return Err(displaced());
            }
            // The same session attaching again, over a link that has not noticed yet, is not told that it is over.
            let error = (other.rank != rank).then(displaced);
            other.end(error, None);
        }
        let gone = |a: &Attached| same_device(a);
        let numbers: Vec<_> = self
            .users
            .get(user)
            .into_iter()
            .flatten()
            .filter(|a| gone(a))
            .map(|a| (a.link, a.number))
            .collect();
        for (link, number) in numbers {
            self.remove_number(link, number);
        }
        Ok(())
    }

    fn remove_number(&mut self, link: LinkId, number: u64) {
        let Some(user) = self.numbers.remove(&(link, number)) else {
            return;
        };
        if let Some(attached) = self.users.get_mut(&user) {
            attached.retain(|a| !a.is(link, number));
            if attached.is_empty() {
                self.users.remove(&user);
                self.woken.remove(&user);
            }
        }
    }

    fn remove(&mut self, gone: impl Fn(&Attached) -> bool) {
        let numbers: Vec<_> = self
            .users
            .values()
            .flatten()
            .filter(|attached| gone(attached))
            .map(|attached| (attached.link, attached.number))
            .collect();
        for (link, number) in numbers {
            self.remove_number(link, number);
        }
    }
}

impl Attached {
    fn is(&self, link: LinkId, number: u64) -> bool {
        self.link == link && self.number == number
    }

    fn push(&self, push: push::Push) {
        // A closed link is about to be reported by `link_closed`.
        drop(self.pushes.send(Push {
            attachment: self.number,
            push: Some(push),
        }));
    }

    fn end(&self, error: Option<v1::Error>, leader: Option<NodeId>) {
        let leader = leader.map(|node| node.to_string()).unwrap_or_default();
        self.push(push::Push::Ended(Ended { error, leader }));
    }

    /// Pushes one page; true if there may be another.
    fn push_entries(
        &mut self,
        view: &View,
        clock: &ShardClock,
        user: &UserId,
    ) -> Result<bool, storage::Error> {
        let Some(queue) = &mut self.queue else {
            return Ok(false);
        };
        if queue.credit_entries <= 0 || queue.credit_bytes <= 0 {
            return Ok(false);
        }
        let max_entries =
            PAGE_ENTRIES.min(usize::try_from(queue.credit_entries).unwrap_or(PAGE_ENTRIES));
        let max_bytes = PAGE_BYTES.min(queue.credit_bytes.unsigned_abs());
        let page =
            super::reader(view).entries(user.as_str(), queue.next_seq, max_entries, max_bytes)?;
        if page.next_seq == queue.next_seq {
            return Ok(false);
        }
        let now_ms = clock.now_ms();
        let latency = metrics::DELIVERY_LATENCY.handle();
        let entries: Vec<v1::Entry> = page
            .entries
            .into_iter()
            .map(|(seq, entry)| {
                latency.record(now_ms.saturating_sub(entry.accepted_ms) as f64 / 1_000.0);
                v1::Entry {
                    seq,
                    envelope: entry.envelope,
                }
            })
            .collect();
        let bytes: usize = entries.iter().map(body_bytes).sum();
        queue.next_seq = page.next_seq;
        queue.credit_entries -= entries.len() as i64;
        queue.credit_bytes -= bytes as i64;
        let entries = v1::Entries {
            incarnation: queue.incarnation,
            entries,
            skipped: page.skipped,
        };
        self.push(push::Push::Entries(entries));
        Ok(true)
    }

    fn push_receipts(&mut self, view: &View, user: &UserId) -> Result<bool, storage::Error> {
        let ReceiptState::After(after) = self.receipts else {
            return Ok(false);
        };
        let receipts = super::reader(view).receipts(user.as_str(), after, PAGE_RECEIPTS)?;
        let Some(last) = receipts.last() else {
            return Ok(false);
        };
        self.receipts = ReceiptState::After(last.revision);
        self.push(push::Push::Receipts(v1::Receipts { receipts }));
        Ok(true)
    }
}

/// What an entry counts in a session's window.
#[must_use]
pub fn body_bytes(entry: &v1::Entry) -> usize {
    entry
        .envelope
        .as_ref()
        .map_or(0, |envelope| envelope.body.len())
}

/// Which of a device's attachments is the newer one: that of the client that began last, and of one client's that of
/// its last session. Nothing depends on which of them arrives first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    client: (u64, u64, u64),
    session: (u64, u64, u64),
}

impl Rank {
    fn of(request: &AttachRequest) -> Self {
        /// Two replicas may lead in one term, one after the other, the lower id first.
        fn order(epoch: Epoch) -> (u64, u64, u64) {
            (epoch.term, epoch.replica, epoch.counter)
        }
        let session = request.epoch.unwrap_or_default();
        Self {
            client: order(request.client.unwrap_or(session)),
            session: order(session),
        }
    }
}

fn displaced() -> v1::Error {
    refusal(
        Code::Displaced,
        "the device is attached from elsewhere now",
        false,
    )
}

fn refusal(code: Code, message: &str, retryable: bool) -> v1::Error {
    v1::Error {
        code: code.into(),
        message: message.to_owned(),
        retryable,
        ..v1::Error::default()
    }
}

#[cfg(test)]
#[path = "delivery_tests.rs"]
mod tests;

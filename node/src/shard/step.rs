//! What every table's code works on while one batch is applied: the rows, the time, the limits, the hints.

use std::collections::BTreeSet;

use roost_proto::storage::{Applied as AppliedRow, Batch, Limits};
use roost_proto::v1::Receipt;

use super::{Effects, SenderFill, Txn, UserFill, UserShard};
use crate::storage::Error;
use crate::storage::keys::{Home, Key};
use crate::types::{DeviceId, ShardId, UserId};

/// A day in milliseconds: ids are remembered, and forgotten, by the day.
pub(super) const DAY_MS: u64 = 86_400_000;

/// How far a sender's idea of the time may run ahead of the shard's.
pub(super) const CLOCK_AHEAD_MAX_MS: u64 = 5 * 60 * 1000;

/// One batch being applied.
pub(super) struct Step<'t, 's> {
    pub(super) txn: &'t mut Txn<'s>,
    pub(super) limits: Limits,
    /// Sums over the shard, written back at the end.
    pub(super) sums: AppliedRow,
    place: UserShard,
    woken: BTreeSet<String>,
    trims: BTreeSet<String>,
    outbox: BTreeSet<ShardId>,
    receipts: Vec<(UserId, Receipt)>,
    removed: Vec<(UserId, DeviceId)>,
    pub(super) forgotten_receipts: u64,
    senders: Vec<SenderFill>,
    users: Vec<UserFill>,
}

impl<'t, 's> Step<'t, 's> {
    pub(super) fn begin(
        place: UserShard,
        txn: &'t mut Txn<'s>,
        batch: &Batch,
    ) -> Result<Self, Error> {
        let mut sums: AppliedRow = txn.hot(&Key::Applied(txn.home()))?.unwrap_or_default();
        let limits = batch.limits.unwrap_or_default();
        sums.time_ms = sums.time_ms.max(batch.time_ms);
        sums.first_id_day = sums
            .first_id_day
            .max(first_day(sums.time_ms, limits.dedup_window_ms));
        Ok(Self {
            txn,
            limits,
            sums,
            place,
            woken: BTreeSet::new(),
            trims: BTreeSet::new(),
            outbox: BTreeSet::new(),
            receipts: Vec::new(),
            removed: Vec::new(),
            forgotten_receipts: 0,
            senders: Vec::new(),
            users: Vec::new(),
        })
    }

    pub(super) fn finish(self) -> Effects {
        let home = self.txn.home();
        self.txn.put_hot(&Key::Applied(home), self.sums);
        Effects {
            woken: parsed(self.woken),
            receipts: self.receipts,
            outbox: self.outbox.into_iter().collect(),
            removed: self.removed,
            forgotten_receipts: self.forgotten_receipts,
            senders: self.senders,
            users: self.users,
            trims: parsed(self.trims),
            cluster: None,
        }
    }

    pub(super) fn home(&self) -> Home {
        self.txn.home()
    }

    /// Shard time in milliseconds.
    pub(super) fn now(&self) -> u64 {
        self.sums.time_ms
    }

    /// Today, in days since the Unix epoch.
    pub(super) fn today(&self) -> u32 {
        day(self.now())
    }

    /// The shard of a user.
    pub(super) fn shard_of(&self, user: &str) -> ShardId {
        ShardId::of_str(user, self.place.shards)
    }

    /// Whether this is a well-formed user id whose rows live here.
    pub(super) fn owns(&self, user: &str) -> bool {
        UserId::parse(user).is_ok() && self.shard_of(user) == self.place.shard
    }

    pub(super) fn wake(&mut self, user: &str) {
        insert(&mut self.woken, user);
    }

    pub(super) fn will_trim(&mut self, user: &str) {
        insert(&mut self.trims, user);
    }

    pub(super) fn will_pump(&mut self, destination: ShardId) {
        self.outbox.insert(destination);
    }

    pub(super) fn show_receipt(&mut self, user: &str, receipt: Receipt) {
        if let Ok(user) = UserId::parse(user) {
            self.receipts.push((user, receipt));
        }
    }

    pub(super) fn note_sender(&mut self, fill: SenderFill) {
        self.senders.push(fill);
    }

    pub(super) fn note_user(&mut self, fill: UserFill) {
        self.users.push(fill);
    }

    pub(super) fn device_removed(&mut self, user: &str, device: u32) {
        if let Ok(user) = UserId::parse(user) {
            self.removed.push((user, DeviceId(device)));
        }
    }
}

/// The day of a time, in days since the Unix epoch.
pub(super) fn day(time_ms: u64) -> u32 {
    u32::try_from(time_ms / DAY_MS).unwrap_or(u32::MAX)
}

/// The first day whose ids must still be remembered. An id may be made up to [`CLOCK_AHEAD_MAX_MS`] after the moment
/// of its acceptance, so by its own age it may be retried for that much longer than the window.
fn first_day(now_ms: u64, window_ms: u64) -> u32 {
    let slack = window_ms.saturating_add(CLOCK_AHEAD_MAX_MS);
    day(now_ms.saturating_sub(slack))
}

fn insert(users: &mut BTreeSet<String>, user: &str) {
    if !users.contains(user) {
        users.insert(user.to_owned());
    }
}

fn parsed(users: BTreeSet<String>) -> Vec<UserId> {
    users.iter().filter_map(|u| UserId::parse(u).ok()).collect()
}

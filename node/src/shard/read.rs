//! What the layers above read of a shard's state, outside apply. Only a leader that has applied the first entry of its
//! own term may answer from it.
//!
//! A queue is read through its user's row: entries at or below `done_seq` are gone, whether deleted yet or not.

use roost_proto::storage::{Applied, Entry, OutboxHead, OutboxItem, OutboxRow, ReceiptRow, User};
use roost_proto::v1::{Range, Receipt, Receipts};
use xxhash_rust::xxh3::Xxh3;

use super::{entry_bytes, receipt_bytes};
use crate::storage::keys::{self, Home, Key};
use crate::storage::{Column, Error, Read, value};
use crate::types::{ShardId, UserId};

/// How many queues [`Reader::oldest_accepted_ms`] looks into.
pub const OLDEST_QUEUES_MAX: usize = 16;

/// Reads one replica's state.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    store: &'a dyn Read,
    home: Home,
}

/// A piece of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// In order of seq.
    pub entries: Vec<(u64, Entry)>,
    /// Seqs from where the reading began up to `next_seq` that are not there: they have expired.
    pub skipped: Vec<Range>,
    /// Where to read on; the queue's end if there is nothing more.
    pub next_seq: u64,
    /// It ended at a bound, so there may be more.
    pub is_full: bool,
}

impl<'a> Reader<'a> {
    /// Of the live store or a frozen view.
    #[must_use]
    pub fn new(store: &'a dyn Read, home: Home) -> Self {
        Self { store, home }
    }

    /// Shard time, and the sums over all users.
    ///
    /// # Errors
    /// What the store reports, and damage to the row; so for all of these.
    pub fn applied(&self) -> Result<Applied, Error> {
        Ok(value::get(self.store, &Key::Applied(self.home))?.unwrap_or_default())
    }

    /// A user's row; removed accounts have one, too.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn user(&self, name: &str) -> Result<Option<User>, Error> {
        value::get(self.store, &Key::User(self.home, name))
    }

    /// A user's queue from a seq on: at most so many entries and bytes ([`entry_bytes`]), but one entry whatever its
    /// size. Nothing for a removed or unknown user.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn entries(
        &self,
        name: &str,
        from_seq: u64,
        entries_max: usize,
        bytes_max: u64,
    ) -> Result<Slice, Error> {
        let mut slice = Slice {
            next_seq: from_seq.max(1),
            ..Slice::default()
        };
        let Some(user) = self.user(name)?.filter(|user| !user.removed) else {
            return Ok(slice);
        };
        slice.skip_to(user.done_seq + 1);
        let mut bytes = 0;
        let rest = keys::entries_of(self.home, name, slice.next_seq..user.next_seq);
        if slice.next_seq >= user.next_seq || entries_max == 0 {
            return Ok(slice);
        }
        for row in self.store.scan(Column::State, rest) {
            let (key, value) = row?;
            let parsed = Key::decode(Column::State, &key)?;
            let Key::Entry(_, _, seq) = parsed else {
                continue;
            };
            let entry: Entry = value::decode(parsed.what(), &key, value)?;
            bytes += entry.envelope.as_ref().map_or(0, entry_bytes);
            if !slice.entries.is_empty() && bytes > bytes_max {
                slice.is_full = true;
                return Ok(slice);
            }
            slice.skip_to(seq);
            slice.next_seq = seq + 1;
            slice.entries.push((seq, entry));
            if slice.entries.len() == entries_max {
                slice.is_full = true;
                return Ok(slice);
            }
        }
        slice.skip_to(user.next_seq);
        Ok(slice)
    }

    /// A user's receipts behind a revision, in order: at most so many, and bytes ([`receipt_bytes`]), but one whatever
    /// its size.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn receipts(
        &self,
        name: &str,
        after_revision: u64,
        max: usize,
        bytes_max: u64,
    ) -> Result<Receipts, Error> {
        // Most who are looked at for new entries have no new receipts, and one row says so.
        let user = self.user(name)?.unwrap_or_default();
        if user.next_revision <= after_revision.saturating_add(1) {
            return Ok(Receipts::default());
        }
        let mut receipts: Vec<Receipt> = Vec::new();
        let mut bytes = 0;
        let range = keys::receipts_of(self.home, name, after_revision);
        for row in self.store.scan(Column::State, range).take(max) {
            let (key, value) = row?;
            let row: ReceiptRow = value::decode("receipt", &key, value)?;
            let receipt = row.receipt.unwrap_or_default();
            bytes += receipt_bytes(&receipt);
            if !receipts.is_empty() && bytes > bytes_max {
                break;
            }
            receipts.push(receipt);
        }
        // Behind the rows: what is deleted while they are read counts as missed, not as never there.
        let user = self.user(name)?.unwrap_or_default();
        let settled = user.devices.iter().map(|device| device.receipt_revision);
        let gone = user.forgotten_revision.max(settled.min().unwrap_or(0));
        let missed_up_to = if after_revision < gone { gone } else { 0 };
        receipts.retain(|receipt| receipt.revision > missed_up_to);
        Ok(Receipts {
            receipts,
            missed_up_to,
        })
    }

    /// What waits for a destination, from a number on, in order.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn outbox(
        &self,
        destination: ShardId,
        from_number: u64,
        max: usize,
    ) -> Result<Vec<(u64, OutboxItem)>, Error> {
        let range = keys::outbox_of(self.home, destination, from_number);
        let rows = self.rows(range, max, |parsed, key, value| {
            let row: OutboxRow = value::decode("outbox row", key, value)?;
            Ok(match parsed {
                Key::Outbox(_, _, number) => row.item.map(|item| (number, item)),
                _ => None,
            })
        });
        Ok(rows?.into_iter().flatten().collect())
    }

    /// How far the rows for a destination go, and are removed.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn outbox_head(&self, destination: ShardId) -> Result<OutboxHead, Error> {
        let key = Key::OutboxHead(self.home, destination);
        Ok(value::get(self.store, &key)?.unwrap_or_default())
    }

    /// Every destination that ever had rows.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn outbox_heads(&self) -> Result<Vec<(ShardId, OutboxHead)>, Error> {
        let range = keys::outbox_heads(self.home);
        let rows = self.rows(range, usize::MAX, |parsed, key, value| {
            let head: OutboxHead = value::decode("outbox head", key, value)?;
            Ok(match parsed {
                Key::OutboxHead(_, destination) => Some((destination, head)),
                _ => None,
            })
        });
        Ok(rows?.into_iter().flatten().collect())
    }

    /// Users whose queues may hold something that has expired by `now_ms`, the longest due first.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn due_expiries(&self, now_ms: u64, max: usize) -> Result<Vec<UserId>, Error> {
        self.names(keys::expiry_until(self.home, now_ms), max)
    }

    /// Users with rows left to delete, in order, behind a user if given.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn trims(&self, after: Option<&UserId>, max: usize) -> Result<Vec<UserId>, Error> {
        let mut range = keys::trims(self.home);
        if let Some(user) = after {
            // No key is a prefix of another of its kind, so this is the smallest one behind.
            let key = Key::Trim(self.home, user.as_str()).encode();
            range.start = [&key[..], &[0]].concat().into();
        }
        self.names(range, max)
    }

    /// Accounts in order, behind a user if given. Removed ones are left out.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn list_users(
        &self,
        after: Option<&UserId>,
        max: usize,
    ) -> Result<Vec<(UserId, User)>, Error> {
        let range = keys::users(self.home, after.map(UserId::as_str));
        let mut users = Vec::new();
        for row in self.store.scan(Column::State, range) {
            if users.len() == max {
                break;
            }
            let (key, value) = row?;
            let user: User = value::decode("user", &key, value)?;
            if let (false, Some(name)) = (user.removed, name_of(&key)?) {
                users.push((name, user));
            }
        }
        Ok(users)
    }

    /// When the oldest entry was accepted, cheaply: the heads of the [`OLDEST_QUEUES_MAX`] queues that expire first.
    /// Exact when all messages have the same time to live; a message with a longer one may be older.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn oldest_accepted_ms(&self) -> Result<Option<u64>, Error> {
        let mut oldest: Option<u64> = None;
        for user in self.due_expiries(u64::MAX, OLDEST_QUEUES_MAX)? {
            for (_, entry) in self.entries(user.as_str(), 1, 1, u64::MAX)?.entries {
                let accepted_ms = entry.accepted_ms;
                oldest = Some(oldest.map_or(accepted_ms, |known| known.min(accepted_ms)));
            }
        }
        Ok(oldest)
    }

    /// A hash over every row that apply writes, independent of replica and generation: the same log gives the same one
    /// on every replica, however it was cut into batches. Reads everything; for tests and for comparing replicas.
    ///
    /// # Errors
    /// As [`Reader::applied`].
    pub fn digest(&self) -> Result<u128, Error> {
        let all = keys::home_range(self.home);
        let mut rows = Xxh3::new();
        for row in self.store.scan(Column::State, all.clone()) {
            let (key, value) = row?;
            let parsed = Key::decode(Column::State, &key)?;
            // Written beside apply, and it names log indexes.
            if matches!(parsed, Key::RaftState(_)) {
                continue;
            }
            let payload = value::open(parsed.what(), &key, value)?;
            for part in [&key[all.start.len()..], &payload[..]] {
                rows.update(&(part.len() as u64).to_le_bytes());
                rows.update(part);
            }
        }
        Ok(rows.digest128())
    }

    fn names(
        &self,
        range: std::ops::Range<bytes::Bytes>,
        max: usize,
    ) -> Result<Vec<UserId>, Error> {
        let rows = self.rows(range, max, |_, key, _| name_of(key));
        Ok(rows?.into_iter().flatten().collect())
    }

    fn rows<T>(
        &self,
        range: std::ops::Range<bytes::Bytes>,
        max: usize,
        read: impl Fn(Key<'_>, &[u8], bytes::Bytes) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let rows = self.store.scan(Column::State, range).take(max);
        rows.map(|row| {
            let (key, value) = row?;
            read(Key::decode(Column::State, &key)?, &key, value)
        })
        .collect()
    }
}

impl Slice {
    fn skip_to(&mut self, seq: u64) {
        if seq > self.next_seq {
            self.skipped.push(Range {
                first: self.next_seq,
                last: seq - 1,
            });
            self.next_seq = seq;
        }
    }
}

/// The user that a row of a table with one user a key is about.
fn name_of(key: &[u8]) -> Result<Option<UserId>, Error> {
    Ok(match Key::decode(Column::State, key)? {
        Key::User(_, user) | Key::Trim(_, user) | Key::Expiry(_, _, user) => {
            UserId::parse(user).ok()
        }
        _ => None,
    })
}

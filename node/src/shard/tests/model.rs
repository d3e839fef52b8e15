//! What a shard should do, in maps and sets, without bounds on work, rows or watermarks.

use std::collections::{BTreeMap, BTreeSet};

use roost_proto::storage::{Limits, SendItem};
use roost_proto::v1::{Code, Status};

use super::harness::DAY_MS;
use crate::shard::EXPIRY_POSTPONED_MS;

const AHEAD_MS: u64 = 5 * 60 * 1000;

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) now_ms: u64,
    first_day: u64,
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) pairs: BTreeMap<(String, String, u32), Pair>,
    uses: BTreeMap<(String, u32), BTreeMap<u64, u64>>,
    /// Every message ever accepted.
    pub(crate) messages: BTreeMap<Place, Message>,
}

/// (recipient, incarnation, seq)
pub(crate) type Place = (String, u64, u64);

#[derive(Clone, Default)]
pub(crate) struct User {
    pub(crate) incarnation: u64,
    pub(crate) removed: bool,
    pub(crate) next_device: u32,
    pub(crate) devices: Vec<Device>,
    pub(crate) next_seq: u64,
    /// Seqs that are still needed.
    pub(crate) queue: BTreeSet<u64>,
    pub(crate) done_seq: u64,
    due_ms: Option<u64>,
    read: BTreeMap<String, u64>,
}

#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) device: u32,
    pub(crate) name: String,
    pub(crate) cursor: u64,
}

#[derive(Default)]
pub(crate) struct Pair {
    pub(crate) ids: BTreeMap<String, (u64, Result<Place, Code>)>,
    pub(crate) chains: BTreeMap<u64, (u64, u64)>,
}

impl Pair {
    fn advance(&mut self, limits: &Limits, item: &SendItem, now_ms: u64) {
        let full = self.chains.len() == limits.chains_max as usize;
        if full && !self.chains.contains_key(&item.chain) {
            let idle = self
                .chains
                .iter()
                .min_by_key(|(chain, (_, used))| (*used, **chain));
            let idle = *idle.unwrap().0;
            self.chains.remove(&idle);
        }
        self.chains.insert(item.chain, (item.position + 1, now_ms));
    }
}

pub(crate) struct Message {
    pub(crate) from: String,
    expires_ms: u64,
    bytes: u64,
    pub(crate) acked: bool,
    pub(crate) expired: bool,
}

impl Model {
    pub(crate) fn advance_to(&mut self, now_ms: u64, limits: &Limits) {
        self.now_ms = now_ms;
        let day = (now_ms - limits.dedup_window_ms - AHEAD_MS) / DAY_MS;
        self.first_day = self.first_day.max(day);
    }

    fn user(&mut self, name: &str) -> Option<&mut User> {
        self.users.get_mut(name).filter(|user| !user.removed)
    }

    pub(crate) fn send(
        &mut self,
        limits: &Limits,
        from: &str,
        device: u32,
        to: &str,
        item: &SendItem,
    ) -> Result<Status, Code> {
        let (now_ms, first_day) = (self.now_ms, self.first_day);
        let key = (to.to_owned(), from.to_owned(), device);
        let pair = self.pairs.entry(key).or_default();
        pair.ids.retain(|_, (day, _)| *day >= first_day);
        let window_ms = limits.dedup_window_ms;
        pair.chains
            .retain(|_, (_, used_ms)| *used_ms + window_ms >= now_ms);
        if let Some((_, answer)) = pair.ids.get(&item.id) {
            let answer = answer.clone();
            if item.position == pair.chains.get(&item.chain).map_or(1, |(next, _)| *next) {
                pair.advance(limits, item, now_ms);
            }
            return answer.map(|place| self.status(&place));
        }
        match pair.chains.get(&item.chain) {
            Some((next, _)) if item.position < *next => return Err(Code::AlreadyAnswered),
            Some((next, _)) if item.position > *next => return Err(Code::PositionGap),
            None if item.position > 1 => return Err(Code::UnknownChain),
            _ => {}
        }
        if item.sent_at_ms > now_ms + AHEAD_MS {
            return Err(Code::ClockAhead);
        }
        let days = self.uses.entry((from.to_owned(), device)).or_default();
        days.retain(|day, _| *day >= first_day);
        if days.values().sum::<u64>() >= limits.sender_ids_max {
            return Err(Code::Overloaded);
        }
        *days.entry(now_ms / DAY_MS).or_default() += 1;
        pair.advance(limits, item, now_ms);
        let answer = self.accept(limits, from, to, item);
        let key = (to.to_owned(), from.to_owned(), device);
        let row = (now_ms / DAY_MS, answer.clone());
        let ids = &mut self.pairs.get_mut(&key).unwrap().ids;
        ids.insert(item.id.clone(), row);
        answer.map(|_| Status::Accepted)
    }

    fn accept(
        &mut self,
        limits: &Limits,
        from: &str,
        to: &str,
        item: &SendItem,
    ) -> Result<Place, Code> {
        if item.refuse() != Code::Unspecified {
            return Err(item.refuse());
        }
        let now_ms = self.now_ms;
        let kept_ms = self.first_day * DAY_MS + AHEAD_MS;
        if item.sent_at_ms < kept_ms.max(now_ms - limits.dedup_window_ms) {
            return Err(Code::IdTooOld);
        }
        let bytes = (item.body.len() + item.id.len() + from.len()) as u64;
        let held = self.held_bytes(to);
        let user = self.user(to).ok_or(Code::NotFound)?;
        if user.queue.len() as u64 >= limits.queue_entries_max
            || held + bytes > limits.queue_bytes_max
        {
            return Err(Code::QueueFull);
        }
        let place = (to.to_owned(), user.incarnation, user.next_seq);
        let expires_ms = now_ms + item.ttl_ms;
        user.queue.insert(user.next_seq);
        user.next_seq += 1;
        user.due_ms = Some(user.due_ms.unwrap_or(u64::MAX).min(expires_ms));
        let message = Message {
            from: from.to_owned(),
            expires_ms,
            bytes,
            acked: false,
            expired: false,
        };
        self.messages.insert(place.clone(), message);
        Ok(place)
    }

    pub(crate) fn held_bytes(&self, name: &str) -> u64 {
        let Some(user) = self.users.get(name) else {
            return 0;
        };
        let held = user.queue.iter();
        held.map(|seq| self.messages[&(name.to_owned(), user.incarnation, *seq)].bytes)
            .sum()
    }

    fn status(&self, place: &Place) -> Status {
        let message = &self.messages[place];
        let user = &self.users[&place.0];
        // A mark beyond what is delivered waits for it.
        let read = user.read.get(&message.from).copied().unwrap_or(0);
        let read = read.min(self.unacked_from(&place.0) - 1);
        if message.expired {
            Status::Expired
        } else if place.1 == user.incarnation && place.2 <= read {
            Status::Read
        } else if message.acked {
            Status::Delivered
        } else {
            Status::Accepted
        }
    }

    pub(crate) fn ack(
        &mut self,
        name: &str,
        device: u32,
        incarnation: u64,
        seq: u64,
    ) -> Result<u64, Code> {
        let user = self.user(name).ok_or(Code::Unauthenticated)?;
        let done_seq = user.done_seq;
        let known = user.devices.iter_mut().find(|d| d.device == device);
        let known = known.ok_or(Code::Unauthenticated)?;
        if incarnation != user.incarnation || seq >= user.next_seq {
            return Err(Code::BadCursor);
        }
        let before = known.cursor;
        known.cursor = before.max(seq);
        let after = known.cursor;
        let acked: Vec<u64> = user.queue.range(before + 1..after + 1).copied().collect();
        for seq in acked {
            let place = (name.to_owned(), incarnation, seq);
            self.messages.get_mut(&place).unwrap().acked = true;
        }
        self.settle(name);
        Ok(after.max(done_seq).max(self.users[name].done_seq))
    }

    pub(crate) fn read(
        &mut self,
        name: &str,
        device: u32,
        from: &str,
        incarnation: u64,
        seq: u64,
    ) -> Result<(), Code> {
        let user = self.user(name).ok_or(Code::Unauthenticated)?;
        let known = user.devices.iter().find(|d| d.device == device);
        let known = known.ok_or(Code::Unauthenticated)?;
        if incarnation != user.incarnation {
            return Err(Code::BadCursor);
        }
        if seq > known.cursor {
            return Err(Code::NotDelivered);
        }
        let mark = user.read.entry(from.to_owned()).or_default();
        *mark = (*mark).max(seq);
        Ok(())
    }

    /// The first seq that no device has acknowledged and that is still there.
    fn unacked_from(&self, name: &str) -> u64 {
        let Some(user) = self.users.get(name) else {
            return 1;
        };
        let acked = |seq: &u64| self.messages[&(name.to_owned(), user.incarnation, *seq)].acked;
        let first = user.queue.iter().copied().find(|seq| !acked(seq));
        first.unwrap_or(user.next_seq)
    }

    pub(crate) fn add_device(
        &mut self,
        limits: &Limits,
        name: &str,
        device: &str,
    ) -> Result<(u32, u64), Code> {
        let user = self.users.entry(name.to_owned()).or_insert(User {
            removed: true,
            next_device: 1,
            ..User::default()
        });
        if user.removed {
            *user = User {
                incarnation: user.incarnation + 1,
                next_device: user.next_device,
                next_seq: 1,
                ..User::default()
            };
        }
        if let Some(known) = user.devices.iter().find(|known| known.name == device) {
            return Ok((known.device, user.incarnation));
        }
        if user.devices.len() >= limits.devices_max as usize {
            return Err(Code::TooManyDevices);
        }
        let cursor = match user.devices.is_empty() {
            true => user.done_seq,
            false => user.next_seq - 1,
        };
        user.devices.push(Device {
            device: user.next_device,
            name: device.to_owned(),
            cursor,
        });
        user.next_device += 1;
        Ok((user.next_device - 1, user.incarnation))
    }

    pub(crate) fn remove_device(&mut self, name: &str, device: &str) -> Result<(), Code> {
        let user = self.users.get_mut(name).ok_or(Code::NotFound)?;
        let before = user.devices.len();
        user.devices.retain(|known| known.name != device);
        if user.devices.len() < before {
            self.settle(name);
        }
        Ok(())
    }

    pub(crate) fn remove_account(&mut self, name: &str) -> Result<(), Code> {
        let user = self.users.get_mut(name).ok_or(Code::NotFound)?;
        if user.removed {
            return Ok(());
        }
        user.removed = true;
        user.devices.clear();
        user.read.clear();
        user.due_ms = None;
        for seq in std::mem::take(&mut user.queue) {
            let place = (name.to_owned(), user.incarnation, seq);
            let message = self.messages.get_mut(&place).unwrap();
            message.expired = !message.acked;
        }
        user.done_seq = user.next_seq - 1;
        Ok(())
    }

    pub(crate) fn expire(&mut self, name: &str) {
        let (now_ms, told) = (self.now_ms, self.unacked_from(name));
        let Some(user) = self.users.get_mut(name).filter(|user| !user.removed) else {
            return;
        };
        if user.due_ms.is_none_or(|due_ms| due_ms > now_ms) {
            return;
        }
        let (mut next_ms, before) = (u64::MAX, user.queue.len());
        for seq in user.queue.clone() {
            let place = (name.to_owned(), user.incarnation, seq);
            let message = self.messages.get_mut(&place).unwrap();
            if message.expires_ms > now_ms {
                next_ms = next_ms.min(message.expires_ms);
            } else if message.acked && seq > told {
                next_ms = next_ms.min(now_ms + EXPIRY_POSTPONED_MS);
            } else {
                message.expired = !message.acked;
                user.queue.remove(&seq);
            }
        }
        user.due_ms = Some(next_ms).filter(|_| !user.queue.is_empty());
        if user.queue.len() < before {
            user.done_seq = match user.queue.first() {
                Some(first) => user.done_seq.max(first - 1),
                None => user.next_seq - 1,
            };
            self.settle(name);
        }
    }

    /// Deletes what no device needs any more.
    fn settle(&mut self, name: &str) {
        let Some(user) = self.users.get_mut(name) else {
            return;
        };
        if let Some(slowest) = user.devices.iter().map(|device| device.cursor).min() {
            user.done_seq = user.done_seq.max(slowest);
        }
        while let Some(seq) = user.queue.first().copied().filter(|s| *s <= user.done_seq) {
            let place = (name.to_owned(), user.incarnation, seq);
            let message = self.messages.get_mut(&place).unwrap();
            message.expired = !message.acked;
            user.queue.remove(&seq);
        }
        if user.queue.is_empty() {
            user.due_ms = None;
        }
    }
}

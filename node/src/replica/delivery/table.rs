//! Who is attached at this leader: the attachment *is* the presence.

use std::collections::{BTreeMap, BTreeSet};

use roost_proto::peer::Grant;
use roost_proto::v1::{self, Code};

use super::attached::{Attached, refusal};
use crate::peer::LinkId;
use crate::types::UserId;

/// Attachments by user, and by their number on a link.
#[derive(Default)]
pub(super) struct Table {
    /// The replica has stopped: nobody would push anything any more.
    closed: bool,
    users: BTreeMap<UserId, Vec<Attached>>,
    /// Which user an attachment number on a link belongs to.
    numbers: BTreeMap<(LinkId, u64), UserId>,
    /// Users with something to push; a subset of `users`.
    woken: BTreeSet<UserId>,
    watches: usize,
}

impl Table {
    /// Adds an attachment, in the place of an older one of the device.
    ///
    /// # Errors
    /// `DISPLACED` if it is itself the older, `OVERLOADED` when there are `max`, `UNAVAILABLE` once closed.
    pub(super) fn add(
        &mut self,
        user: UserId,
        attached: Attached,
        max: usize,
    ) -> Result<(), v1::Error> {
        if self.closed {
            return Err(refusal(Code::Unavailable, "the replica has stopped", true));
        }
        let rivals = || {
            let same_user = self.users.get(&user).into_iter().flatten();
            same_user.filter(|other| attached.excludes(other))
        };
        if rivals().any(|other| other.rank > attached.rank) {
            return Err(displaced());
        }
        if self.numbers.len() - rivals().count() >= max {
            return Err(refusal(
                Code::Overloaded,
                "too many devices are attached at this shard",
                true,
            ));
        }
        for other in self.take(&user, |other| attached.excludes(other)) {
            // The same session attaching again, over a link that has not noticed yet, is not told that it is over.
            let why = (other.rank != attached.rank).then(displaced);
            other.end(why, None);
        }
        self.numbers
            .insert((attached.link, attached.number), user.clone());
        self.watches += usize::from(attached.is_watch());
        self.users.entry(user.clone()).or_default().push(attached);
        self.woken.insert(user);
        Ok(())
    }

    /// The attachments of a user.
    pub(super) fn of(&mut self, user: &UserId) -> impl Iterator<Item = &mut Attached> {
        self.users.get_mut(user).into_iter().flatten()
    }

    /// Takes out those of a user that match.
    pub(super) fn take(
        &mut self,
        user: &UserId,
        matches: impl Fn(&Attached) -> bool,
    ) -> Vec<Attached> {
        let Some(attached) = self.users.get_mut(user) else {
            return Vec::new();
        };
        let taken: Vec<_> = attached
            .extract_if(.., |attached| matches(attached))
            .collect();
        if attached.is_empty() {
            self.users.remove(user);
            self.woken.remove(user);
        }
        for attached in &taken {
            self.numbers.remove(&(attached.link, attached.number));
            self.watches -= usize::from(attached.is_watch());
        }
        taken
    }

    /// Takes out all of them.
    pub(super) fn take_all(&mut self) -> Vec<Attached> {
        self.numbers.clear();
        self.woken.clear();
        self.watches = 0;
        std::mem::take(&mut self.users)
            .into_values()
            .flatten()
            .collect()
    }

    pub(super) fn remove(&mut self, link: LinkId, number: u64) {
        if let Some(user) = self.numbers.get(&(link, number)).cloned() {
            self.take(&user, |attached| attached.is(link, number));
        }
    }

    pub(super) fn remove_link(&mut self, link: LinkId) {
        let of_link = self.numbers.range((link, 0)..=(link, u64::MAX));
        let users: BTreeSet<UserId> = of_link.map(|(_, user)| user.clone()).collect();
        for user in users {
            self.take(&user, |attached| attached.link == link);
        }
    }

    /// False if there is no such attachment (any more).
    pub(super) fn grant(&mut self, link: LinkId, grant: &Grant) -> bool {
        let Some(user) = self.numbers.get(&(link, grant.attachment)).cloned() else {
            return false;
        };
        for attached in self.of(&user) {
            if attached.is(link, grant.attachment) {
                attached.grant(grant);
            }
        }
        self.woken.insert(user);
        true
    }

    /// A user is to be looked at; false if nobody is attached to it, or it is woken already.
    pub(super) fn wake(&mut self, user: &UserId) -> bool {
        self.users.contains_key(user) && self.woken.insert(user.clone())
    }

    pub(super) fn next_woken(&mut self) -> Option<UserId> {
        self.woken.pop_first()
    }

    /// From now on nobody is added.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Attachments of devices, and watches.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.numbers.len() - self.watches, self.watches)
    }
}

fn displaced() -> v1::Error {
    refusal(
        Code::Displaced,
        "the device is attached from elsewhere now",
        false,
    )
}

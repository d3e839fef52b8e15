//! Whom this replica has heard of, and when: what decides whether it stands for election, whether it wishes another one
//! well that does, and whether it may go on as a leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::types::{Membership, StoredMembership};
use crate::types::ReplicaId;

/// See the module. Cheap to clone; as many rows as the group has, or has had, members.
#[derive(Clone, Debug)]
pub(super) struct Contact {
    me: ReplicaId,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
struct Seen {
    /// Nobody could have been heard of before: counts as if everybody had been heard of then.
    opened: Instant,
    /// When each of the others last answered.
    answers: BTreeMap<ReplicaId, Instant>,
    /// When a leader, or a candidate with this replica's vote, last gave a sign.
    leader: Instant,
    members: Arc<StoredMembership>,
}

impl Contact {
    pub(super) fn new(me: ReplicaId) -> Self {
        let opened = Instant::now();
        let seen = Seen {
            opened,
            answers: BTreeMap::new(),
            leader: opened,
            members: Arc::default(),
        };
        Self {
            me,
            seen: Arc::new(Mutex::new(seen)),
        }
    }

    /// Another replica has answered just now.
    pub(super) fn note_answer(&self, replica: ReplicaId) {
        self.seen.lock().answers.insert(replica, Instant::now());
    }

    /// A leader has given a sign just now, or somebody who has this replica's vote.
    pub(super) fn note_leader(&self) {
        self.seen.lock().leader = Instant::now();
    }

    /// Who votes from now on.
    pub(super) fn set_members(&self, members: &Arc<StoredMembership>) {
        self.seen.lock().members = Arc::clone(members);
    }

    /// Whether another replica has answered within this time.
    pub(super) fn answered_within(&self, replica: ReplicaId, time: Duration) -> bool {
        let at = self.seen.lock().answers.get(&replica).copied();
        at.is_some_and(|at| at.elapsed() <= time)
    }

    /// Since when there has been no sign of a leader.
    pub(super) fn leader_at(&self) -> Instant {
        self.seen.lock().leader
    }

    /// For how long no majority of the voters, this replica counted, has answered. During a change of members both sets
    /// need one.
    pub(super) fn quorum_silence(&self) -> Duration {
        let seen = self.seen.lock();
        let age = |id: &u64| match *id == self.me.0 {
            true => Duration::ZERO,
            false => seen
                .answers
                .get(&ReplicaId(*id))
                .unwrap_or(&seen.opened)
                .elapsed(),
        };
        let sets = seen.members.membership().get_joint_config();
        let silences = sets.iter().filter(|set| !set.is_empty()).map(|set| {
            let mut ages: Vec<Duration> = set.iter().map(age).collect();
            ages.sort_unstable();
            ages[ages.len() / 2]
        });
        silences.max().unwrap_or_default()
    }
}

/// Whether those whom `has` names are a majority of the voters, during a change of members of both sets.
pub(super) fn is_majority(members: &Membership, has: impl Fn(ReplicaId) -> bool) -> bool {
    members.get_joint_config().iter().all(|set| {
        let count = set.iter().filter(|id| has(ReplicaId(**id))).count();
        2 * count > set.len()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn members(sets: &[&[u64]]) -> StoredMembership {
        let sets: Vec<BTreeSet<u64>> = sets
            .iter()
            .map(|set| set.iter().copied().collect())
            .collect();
        let all = sets.iter().flatten().copied();
        let nodes: BTreeMap<u64, crate::types::NodeId> = all
            .map(|id| (id, crate::types::NodeId::from_bytes([0; 16])))
            .collect();
        StoredMembership::new(None, Membership::new(sets, nodes))
    }

    /// The majority's silence is that of its most silent member.
    #[tokio::test(start_paused = true)]
    async fn silence_is_that_of_a_majority() {
        let contact = Contact::new(ReplicaId(1));
        assert_eq!(contact.quorum_silence(), Duration::ZERO, "nobody votes yet");
        contact.set_members(&Arc::new(members(&[&[1, 2, 3]])));
        tokio::time::advance(SECOND).await;
        assert_eq!(contact.quorum_silence(), SECOND, "since it was opened");
        contact.note_answer(ReplicaId(2));
        assert_eq!(contact.quorum_silence(), Duration::ZERO);
        tokio::time::advance(SECOND).await;
        contact.note_answer(ReplicaId(9));
        assert_eq!(contact.quorum_silence(), SECOND, "a learner counts nothing");
        contact.set_members(&Arc::new(members(&[&[1]])));
        assert_eq!(contact.quorum_silence(), Duration::ZERO, "alone");
    }

    /// While 3 is replaced by 4, 2 alone completes both majorities, and neither 3 nor 4 does.
    #[tokio::test(start_paused = true)]
    async fn during_a_change_both_majorities_count() {
        let contact = Contact::new(ReplicaId(1));
        contact.set_members(&Arc::new(members(&[&[1, 2, 3], &[1, 2, 4]])));
        tokio::time::advance(SECOND).await;
        contact.note_answer(ReplicaId(4));
        assert_eq!(contact.quorum_silence(), SECOND);
        contact.note_answer(ReplicaId(2));
        assert_eq!(contact.quorum_silence(), Duration::ZERO);

        let members = members(&[&[1, 2, 3], &[1, 2, 4]]);
        let majority = |has: &[u64]| is_majority(members.membership(), |id| has.contains(&id.0));
        assert!(majority(&[1, 2]));
        assert!(!majority(&[1, 4]));
        assert!(majority(&[1, 3, 4]));
    }
}

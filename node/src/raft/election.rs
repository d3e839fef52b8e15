//! When a replica stands for election.
//!
//! openraft's own timer is off: it is drawn once an instance, so that two survivors may tie again and again, and it asks
//! nobody before it raises the term, so that a replica which comes back after a cut deposes a leader that is well.
//! Here the time is drawn afresh each time, and runs from the last sign of a leader that *arrived*: a core that waits for
//! a hung disk has heard nothing. Then comes the **canvass**, which other designs call pre-vote (Ongaro's thesis, section
//! 9.6): "should I stand?", asked of all voters. Only with a majority that wishes it well does a replica stand.
//!
//! A canvass changes nothing at anybody, so safety is openraft's as before: all that is new is that elections begin less
//! often. They still begin whenever they are needed. A voter wishes a replica well if it has heard of no leader for a
//! while and lacks nothing of the replica's log; it does not look at terms, because a vote given to somebody who died
//! must not hold the group up. Among the voters that are up and connected the one with the longest log is therefore
//! wished well by all, as soon as they have no leader, and its election is decided by the votes alone.
//!
//! A leader that hears no majority gives no sign of leadership (`network`) and wishes others well, too. So nobody can be
//! kept from being replaced by signs that only arrive one way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;
use tokio::time::Instant;

use super::contact::{Contact, is_majority};
use super::log_store::LogStore;
use super::network::Network;
use super::timing::Timing;
use super::types::{Raft, StoredMembership, Vote, VoteRequest, random_below};
use crate::types::{NodeId, ReplicaId};

/// One replica's election timer.
pub(super) struct Election {
    pub raft: Raft,
    pub log: LogStore,
    pub network: Network,
    pub contact: Contact,
    pub timing: Timing,
}

impl Election {
    /// Until the group ends.
    pub(super) async fn run(self) {
        let metrics = self.raft.metrics();
        let mut lost = self.network.lost();
        // Not before this, whatever has been heard.
        let mut rested_at = Instant::now();
        loop {
            let spread = self.draw(self.timing.spread());
            loop {
                let due = self.due(&metrics.borrow(), &lost.borrow_and_update());
                if matches!(due, Due::Over) {
                    return;
                }
                let at = match due {
                    Due::At(at) => (at + spread).max(rested_at),
                    Due::Never | Due::Over => Instant::now() + self.timing.election_max,
                };
                if matches!(due, Due::At(_)) && at <= Instant::now() {
                    break;
                }
                // What makes it sooner than this, other than a lost link, may be noticed a little late.
                let look_at = at.min(Instant::now() + self.timing.election_max);
                tokio::select! {
                    () = tokio::time::sleep_until(look_at) => {}
                    () = changed(&mut lost) => {}
                }
            }
            self.stand().await;
            rested_at = Instant::now() + self.timing.election_min / 2;
        }
    }

    /// When patience ends, without its share of chance.
    fn due(&self, metrics: &RaftMetrics<u64, NodeId>, lost: &BTreeSet<NodeId>) -> Due {
        if metrics.running_state.is_err() || metrics.state == ServerState::Shutdown {
            return Due::Over;
        }
        let members = metrics.membership_config.membership();
        let votes = members.voter_ids().any(|id| id == metrics.id);
        if !votes || metrics.state == ServerState::Leader {
            return Due::Never;
        }
        let heard_at = self.contact.leader_at();
        if members.voter_ids().count() == 1 {
            return Due::At(heard_at);
        }
        // A vote that is not committed is a candidate's: nobody leads.
        let leader = Some(metrics.vote.leader_id.node_id).filter(|_| metrics.vote.is_committed());
        let node = leader.and_then(|leader| members.get_node(&leader));
        let hope = node.is_some_and(|node| !lost.contains(node));
        Due::At(heard_at + self.timing.patience(hope))
    }

    /// Asks the voters, and stands if they wish it well.
    async fn stand(&self) {
        let before = self.contact.leader_at();
        if !self.log.syncs_within(self.timing.election_max) || !self.is_wished_well().await {
            return;
        }
        // Somebody was faster, or has come back.
        if self.contact.leader_at() != before {
            return;
        }
        self.contact.note_leader();
        // An error says that the group has stopped, which is seen in the next round.
        let _ = self.raft.trigger().elect().await;
    }

    /// Whether a majority of the voters wishes this replica well.
    async fn is_wished_well(&self) -> bool {
        let (request, members) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let vote = Vote::new(metrics.current_term + 1, metrics.id);
            let request = VoteRequest::new(vote, self.log.last());
            (request, Arc::clone(&metrics.membership_config))
        };
        let me = self.network.replica;
        let mut wishes = BTreeSet::from([me]);
        let mut answers: FuturesUnordered<_> = others(&members, me)
            .into_iter()
            .map(|(id, node)| {
                let (link, request) = (self.network.link(id.0, node), &request);
                async move {
                    let answer = link.canvass(request, self.timing.election_min).await;
                    answer.is_ok_and(|answer| answer.vote_granted).then_some(id)
                }
            })
            .collect();
        loop {
            if is_majority(members.membership(), |id| wishes.contains(&id)) {
                return true;
            }
            match answers.next().await {
                Some(wish) => wishes.extend(wish),
                None => return false,
            }
        }
    }

    fn draw(&self, below: Duration) -> Duration {
        let micros = u64::try_from(below.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(random_below(micros))
    }
}

/// When a replica is to ask whether it should stand.
enum Due {
    /// Then, if nothing is heard until then.
    At(Instant),
    /// It leads, or does not vote.
    Never,
    /// The group has ended.
    Over,
}

fn others(members: &StoredMembership, me: ReplicaId) -> BTreeMap<ReplicaId, NodeId> {
    let voters = members.voter_ids().map(ReplicaId);
    let at = |id: ReplicaId| Some((id, *members.membership().get_node(&id.0)?));
    voters.filter(|id| *id != me).filter_map(at).collect()
}

/// Returns when other nodes were lost or are back; never, when nobody says so.
async fn changed(lost: &mut watch::Receiver<BTreeSet<NodeId>>) {
    if lost.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

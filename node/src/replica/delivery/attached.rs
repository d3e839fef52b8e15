//! One attachment or watch: where it is in the queue and in the receipts, its credit, and pushing to it.

use roost_proto::peer::{AttachRequest, Ended, Grant, Push, push};
use roost_proto::v1::{self, Code, Epoch};

use super::Target;
use crate::metrics;
use crate::peer::{LinkId, LinkPushes};
use crate::replica::clock::ShardClock;
use crate::shard::read::Reader;
use crate::storage;
use crate::types::{DeviceId, NodeId, UserId};

/// Entries in one push.
const PAGE_ENTRIES: usize = 128;
/// Bytes of bodies, or of receipts, in one push, unless a single entry or receipt is larger.
const PAGE_BYTES: u64 = 256 * 1024;
/// Receipts in one push.
const PAGE_RECEIPTS: usize = 256;

/// A session's place at the leader.
pub(super) struct Attached {
    pub(super) link: LinkId,
    pub(super) number: u64,
    pub(super) device: DeviceId,
    pub(super) rank: Rank,
    pushes: LinkPushes,
    queue: Option<QueueState>,
    /// Receipts behind this revision are still to be pushed, if it wants any.
    receipts_after: Option<u64>,
    /// Receipts, and pushes that only name what has expired: what the window does not count.
    credit_notices: i64,
}

struct QueueState {
    incarnation: u64,
    next_seq: u64,
    credit_entries: i64,
    credit_bytes: i64,
}

/// Which of a device's attachments is the newer one: that of the client that began last, and of one client's that of
/// its last session. Nothing depends on which of them arrives first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
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

impl Attached {
    /// As a session asks for it.
    pub(super) fn new(request: &AttachRequest, receipts_after: u64, target: Target) -> Self {
        let queue = request.cursor.map(|cursor| QueueState {
            incarnation: cursor.incarnation,
            next_seq: cursor.seq + 1,
            credit_entries: i64::from(request.window_entries),
            credit_bytes: i64::try_from(request.window_bytes).unwrap_or(i64::MAX),
        });
        Self {
            link: target.link,
            number: request.attachment,
            device: DeviceId(request.device),
            rank: Rank::of(request),
            pushes: target.pushes,
            queue,
            receipts_after: request.receipts.then_some(receipts_after),
            credit_notices: i64::from(request.window_notices),
        }
    }

    pub(super) fn is(&self, link: LinkId, number: u64) -> bool {
        self.link == link && self.number == number
    }

    /// Sees receipts and displaces nobody.
    pub(super) fn is_watch(&self) -> bool {
        self.queue.is_none()
    }

    /// Only one attachment of a device can be.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        !self.is_watch() && !other.is_watch() && self.device == other.device
    }

    pub(super) fn grant(&mut self, grant: &Grant) {
        self.credit_notices += i64::from(grant.notices);
        if let Some(queue) = &mut self.queue {
            queue.credit_entries += i64::from(grant.entries);
            queue.credit_bytes += i64::try_from(grant.bytes).unwrap_or(i64::MAX);
        }
    }

    /// Its last push. Without an error the session attaches again.
    pub(super) fn end(&self, error: Option<v1::Error>, leader: Option<NodeId>) {
        let leader = leader.map(|node| node.to_string()).unwrap_or_default();
        self.push(push::Push::Ended(Ended { error, leader }));
    }

    /// Pushes one page; true if there may be another.
    pub(super) fn push_entries(
        &mut self,
        reader: &Reader<'_>,
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
        let page = reader.entries(user.as_str(), queue.next_seq, max_entries, max_bytes)?;
        if page.next_seq == queue.next_seq {
            return Ok(false);
        }
        if page.entries.is_empty() {
            if self.credit_notices <= 0 {
                return Ok(false);
            }
            self.credit_notices -= 1;
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
        Ok(page.is_full)
    }

    /// As [`Attached::push_entries`], for receipts.
    pub(super) fn push_receipts(
        &mut self,
        reader: &Reader<'_>,
        user: &UserId,
    ) -> Result<bool, storage::Error> {
        let Some(after) = self.receipts_after else {
            return Ok(false);
        };
        let max = PAGE_RECEIPTS.min(usize::try_from(self.credit_notices).unwrap_or(0));
        if max == 0 {
            return Ok(false);
        }
        let page = reader.receipts(user.as_str(), after, max, PAGE_BYTES)?;
        let last = page.receipts.last().map(|receipt| receipt.revision);
        let reached = last.unwrap_or(page.missed_up_to);
        if reached <= after {
            return Ok(false);
        }
        self.receipts_after = Some(reached);
        self.credit_notices -= notices(&page);
        self.push(push::Push::Receipts(page));
        Ok(true)
    }

    fn push(&self, push: push::Push) {
        // A closed link is about to be reported by `link_closed`.
        drop(self.pushes.send(Push {
            attachment: self.number,
            push: Some(push),
        }));
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

/// What a push of receipts counts.
fn notices(receipts: &v1::Receipts) -> i64 {
    receipts.receipts.len().max(1) as i64
}

pub(super) fn refusal(code: Code, message: &str, retryable: bool) -> v1::Error {
    v1::Error {
        code: code.into(),
        message: message.to_owned(),
        retryable,
        ..v1::Error::default()
    }
}

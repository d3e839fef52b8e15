//! What goes in and out of a client.

use bytes::Bytes;
use roost_proto::v1::{self, Kind, Status};
use tokio::time::Instant;

use crate::error::Refusal;

/// A place in a user's queue; ordered by incarnation, then seq.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Cursor {
    /// Rises when the queue is restored, force-recovered or re-created.
    pub incarnation: u64,
    /// Dense within the incarnation, from 1.
    pub seq: u64,
}

impl From<v1::Cursor> for Cursor {
    fn from(cursor: v1::Cursor) -> Self {
        Self {
            incarnation: cursor.incarnation,
            seq: cursor.seq,
        }
    }
}

impl From<Cursor> for v1::Cursor {
    fn from(cursor: Cursor) -> Self {
        Self {
            incarnation: cursor.incarnation,
            seq: cursor.seq,
        }
    }
}

/// The final answer to one send: accepted (or further), or refused for good.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The message's id.
    pub id: String,
    /// Its recipient.
    pub to: String,
    /// How far it has come: `Accepted` or beyond, `Expired`, or `Refused`.
    pub status: Status,
    /// The entry's place in the recipient's queue, if it was accepted.
    pub place: Option<Cursor>,
    /// Why it was refused.
    pub error: Option<Refusal>,
    pub(crate) origin: Origin,
}

impl Answer {
    /// Whether the message is in the recipient's queue, or has been.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(
            self.status,
            Status::Accepted | Status::Delivered | Status::Read | Status::Expired
        )
    }

    /// Whether it has come as far as `status`, or will never (expired, refused).
    #[must_use]
    pub fn has_reached(&self, status: Status) -> bool {
        self.status as i32 >= status as i32 && self.status != Status::Unspecified
    }
}

/// How a message was sent: what is needed to ask for its status under the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) chain: u64,
    pub(crate) position: u64,
    pub(crate) sent_at_ms: u64,
    pub(crate) kind: i32,
    /// The watch under which it was last handed to the server; 0 for none.
    pub(crate) watch: u64,
}

/// One item of the own queue. Numbers never repeat and never go back within an incarnation.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// An entry.
    Delivery(Delivery),
    /// These have expired before this device acknowledged them.
    Skipped {
        /// The queue's incarnation.
        incarnation: u64,
        /// First of the range.
        first: u64,
        /// Last of the range, which belongs to it.
        last: u64,
    },
    /// These were neither handed over nor named as expired: another session of this device has acknowledged them.
    Missing {
        /// The queue's incarnation.
        incarnation: u64,
        /// First of the range.
        first: u64,
        /// Last of the range, which belongs to it.
        last: u64,
    },
}

impl Incoming {
    /// The place of its end: what to acknowledge once it is safe.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let (incarnation, seq) = match self {
            Self::Delivery(delivery) => (delivery.incarnation, delivery.seq),
            Self::Skipped {
                incarnation, last, ..
            }
            | Self::Missing {
                incarnation, last, ..
            } => (*incarnation, *last),
        };
        Cursor { incarnation, seq }
    }
}

/// An entry of the own queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The queue's incarnation.
    pub incarnation: u64,
    /// Its number in the queue.
    pub seq: u64,
    /// The message.
    pub envelope: v1::Envelope,
}

impl Delivery {
    /// Its place: what to acknowledge once it is safe.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            incarnation: self.incarnation,
            seq: self.seq,
        }
    }
}

/// What became of messages that this user sent to `peer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Rises with every receipt of this user; see [`Client::ack_receipts`](crate::Client::ack_receipts).
    pub revision: u64,
    /// The recipient of the messages.
    pub peer: String,
    /// `Delivered`, `Read` or `Expired`.
    pub status: Status,
    /// The incarnation of the peer's queue that the numbers speak of.
    pub incarnation: u64,
    /// Delivered, read: every accepted message up to this seq that was not reported expired before.
    pub up_to_seq: u64,
    /// Expired: exactly these ranges, both ends included.
    pub expired: Vec<(u64, u64)>,
}

impl From<v1::Receipt> for Receipt {
    fn from(receipt: v1::Receipt) -> Self {
        Self {
            revision: receipt.revision,
            status: receipt.status(),
            incarnation: receipt.incarnation,
            up_to_seq: receipt.up_to_seq,
            expired: receipt.expired.iter().map(|r| (r.first, r.last)).collect(),
            peer: receipt.peer,
        }
    }
}

/// What happens to the session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A session stands.
    Connected {
        /// The name of the node that serves it.
        node: String,
    },
    /// There is none, and the client makes another.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// Receipts are watched from here on.
    Watching,
    /// Receipts up to this revision were dropped before this client had them. What is waited for is asked about; a
    /// caller that keeps statuses itself sends its open messages again under their ids.
    ReceiptsMissed {
        /// Acknowledge it like any other.
        up_to: u64,
    },
    /// An acknowledgement was refused for good.
    AckRefused(Refusal),
    /// The server does not take the client's cursor; the queue is read on from where the server has it.
    CursorReset,
    /// The client is over.
    Ended(crate::Error),
}

/// A message on its way into the pipeline.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) id: String,
    pub(crate) to: String,
    pub(crate) kind: Kind,
    pub(crate) body: Bytes,
    pub(crate) ttl_ms: u64,
    pub(crate) made: Instant,
    /// Given by the caller; otherwise `made` on the server's clock.
    pub(crate) sent_at_ms: Option<u64>,
}

//! What waits to be sent on one stream, and how it becomes frames.
//!
//! Whatever waits when the stream can take more goes out as one frame, bounded in messages and bytes: under load a frame
//! holds hundreds of messages, on an idle link one message leaves at once. The queue itself has no bound of its own,
//! because each message in it is covered by one: a call by the caller's credit and a reply by the callee's, both held
//! until the message has left; a push by the window its session granted; a grant or detach by what it answers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use prost::Message as _;
use roost_proto::peer::message::Message as Kind;
use roost_proto::peer::{Frame, Message, Push};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::config;
use crate::metrics;

/// A message that waits, with what covers it.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) message: Kind,
    pub(super) credit: Credit,
}

/// What keeps the queue bounded; given back when the message has left.
#[derive(Debug)]
pub(super) enum Credit {
    /// Shared with the call that waits for its answer. Once that has given up, the message is not sent at all.
    Call(Arc<OwnedSemaphorePermit>),
    /// Held from the call's arrival until its answer has left.
    Reply(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit),
    /// Bounded by what it answers.
    Covered,
    /// As [`Credit::Covered`], for what nothing else counts.
    Counted(#[allow(dead_code, reason = "held for its drop")] Counted),
}

/// Counts one in a gauge as long as it lives.
#[derive(Debug)]
pub(super) struct Counted(::metrics::Gauge);

impl Counted {
    pub(super) fn new(gauge: &::metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Waiting {
    fn is_abandoned(&self) -> bool {
        matches!(&self.credit, Credit::Call(shared) if Arc::strong_count(shared) == 1)
    }
}

/// The sending side of one stream; [`Dial`](super::Dial) carries it to the other node. It ends when the link closes.
#[derive(Debug)]
pub struct Frames {
    queue: mpsc::UnboundedReceiver<Waiting>,
    pushes: mpsc::UnboundedReceiver<Push>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Taken from the queues and not yet in a frame: at most twice `messages_max`.
    taken: VecDeque<Waiting>,
    /// Others were let go first since something came.
    has_yielded: bool,
    messages_max: usize,
    bytes_max: usize,
    messages: ::metrics::Histogram,
    bytes: ::metrics::Histogram,
}

impl Frames {
    pub(super) fn new(
        queue: mpsc::UnboundedReceiver<Waiting>,
        pushes: mpsc::UnboundedReceiver<Push>,
        closed: CancellationToken,
        bounds: &config::Peer,
    ) -> Self {
        Self {
            queue,
            pushes,
            closed: Box::pin(closed.cancelled_owned()),
            taken: VecDeque::new(),
            has_yielded: false,
            messages_max: bounds.frame_messages_max,
            bytes_max: bounds.frame_bytes_max,
            messages: metrics::FRAME_MESSAGES.handle(),
            bytes: metrics::FRAME_BYTES.handle(),
        }
    }

    /// Takes what waits. Ready once something was taken, or, with `false`, when nothing more will come.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut waiting = Vec::new();
        let mut pushes = Vec::new();
        let queue = self
            .queue
            .poll_recv_many(cx, &mut waiting, self.messages_max);
        // Both are asked each time, so that neither starves the other; a closed one only ends with the queue.
        let _ = self
            .pushes
            .poll_recv_many(cx, &mut pushes, self.messages_max);
        let pushes = pushes.into_iter().map(|push| Waiting {
            message: Kind::Push(push),
            credit: Credit::Covered,
        });
        self.taken.extend(waiting);
        self.taken.extend(pushes);
        match queue {
            _ if !self.taken.is_empty() => Poll::Ready(true),
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The next frame of what was taken, unless all of it was abandoned.
    fn frame(&mut self) -> Option<Frame> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        while let Some(waiting) = self.taken.pop_front() {
            if waiting.is_abandoned() {
                continue;
            }
            let length = encoded_len(&waiting.message);
            let is_full = messages.len() == self.messages_max || bytes + length > self.bytes_max;
            if is_full && !messages.is_empty() {
                self.taken.push_front(waiting);
                break;
            }
            bytes += length;
            messages.push(Message {
                message: Some(waiting.message),
            });
        }
        if messages.is_empty() {
            return None;
        }
        self.messages.record(messages.len() as f64);
        self.bytes.record(bytes as f64);
        Some(Frame { messages })
    }
}

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let this = self.get_mut();
        if this.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        loop {
            if this.taken.is_empty() && !ready!(this.poll_take(cx)) {
                return Poll::Ready(None);
            }
            // Who runs next may have something to send, too: under load a frame then holds many messages, and the idle lose
            // nothing.
            if !std::mem::replace(&mut this.has_yielded, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let _ = this.poll_take(cx);
            this.has_yielded = false;
            if let Some(frame) = this.frame() {
                return Poll::Ready(Some(frame));
            }
        }
    }
}

/// Bytes of a message within a frame, with its tag and length.
pub(super) fn encoded_len(message: &Kind) -> usize {
    /// Of the message in its frame and of the kind in its message: a tag and a length each.
    const AROUND: usize = 12;
    let kind = match message {
        Kind::Call(call) => call.encoded_len(),
        Kind::Reply(reply) => reply.encoded_len(),
        Kind::Push(push) => push.encoded_len(),
        Kind::Grant(grant) => grant.encoded_len(),
        Kind::Detach(detach) => detach.encoded_len(),
    };
    kind + AROUND
}

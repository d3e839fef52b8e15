//! The calling side of one open link: calls by number, attachments by number, until the link closes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use roost_proto::peer::message::Message as Kind;
use roost_proto::peer::push::Push as PushKind;
use roost_proto::peer::{Call, Detach, Frame, Grant, Push, Reply, Request, Response};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::frames::{Counted, Credit, Frames, Waiting, encoded_len};
use super::{Error, MESSAGE_BYTES_MAX, PushSink};
use crate::config;
use crate::metrics;
use crate::types::NodeId;

/// One open link, as its caller sees it.
#[derive(Debug)]
pub(super) struct Calling {
    node: NodeId,
    outgoing: mpsc::UnboundedSender<Waiting>,
    /// Nothing once the link has closed, so that nothing can be added that nobody would end.
    open: Mutex<Option<Open>>,
    closed: CancellationToken,
    /// Grants and detaches of all links of the node that wait to leave.
    waiting_grants: ::metrics::Gauge,
}

/// What waits for the other side. Ordered maps, so that a closing link ends them in the same order every time.
#[derive(Debug, Default)]
struct Open {
    calls: BTreeMap<u64, oneshot::Sender<Response>>,
    attachments: BTreeMap<u64, PushSink>,
}

impl Calling {
    /// A link to `node`, and what it sends. `closed` ends both.
    pub(super) fn new(
        node: NodeId,
        bounds: &config::Peer,
        closed: CancellationToken,
    ) -> (Arc<Self>, Frames) {
        // Bounded by `peer.open_calls_max`: a call holds its credit; grants and detaches by the pushes and attachments that
        // they answer.
        let (outgoing, queue) = mpsc::unbounded_channel();
        // Bounded by nobody's sending: only the serving side pushes.
        let (_, pushes) = mpsc::unbounded_channel();
        let frames = Frames::new(queue, pushes, closed.clone(), bounds);
        let calling = Self {
            node,
            outgoing,
            open: Mutex::new(Some(Open::default())),
            closed,
            waiting_grants: metrics::WAITING_GRANTS.handle(),
        };
        (Arc::new(calling), frames)
    }

    /// Calls and waits for the answer, at most until the deadline.
    pub(super) async fn call(
        &self,
        id: u64,
        deadline: Duration,
        request: Request,
        credit: OwnedSemaphorePermit,
    ) -> Result<Response, Error> {
        let call = Kind::Call(Call {
            id,
            deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
            request: Some(request),
        });
        if encoded_len(&call) > MESSAGE_BYTES_MAX {
            return Err(Error::TooLarge(self.node));
        }
        let (answer, answered) = oneshot::channel();
        // While this lives the message is worth sending; it is dropped with this future, also by a caller who gives up.
        let credit = Arc::new(credit);
        let _open_call = self.open_call(id, answer)?;
        self.send(call, Credit::Call(Arc::clone(&credit)));
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(Error::Unreachable(self.node)),
            Err(_) => Err(Error::TimedOut(self.node)),
        }
    }

    /// Where pushes of an attachment go from now on. Undone by dropping what is returned, unless it is kept.
    pub(super) fn open_attachment(
        self: &Arc<Self>,
        number: u64,
        pushes: PushSink,
    ) -> Result<OpenAttachment, Error> {
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Error::Unreachable(self.node))?;
        open.attachments.insert(number, pushes);
        Ok(OpenAttachment {
            calling: Some(Arc::clone(self)),
            number,
        })
    }

    /// Ends an attachment here and tells the other side.
    pub(super) fn detach(&self, number: u64) {
        self.forget_attachment(number);
        self.send_counted(Kind::Detach(Detach { attachment: number }));
    }

    /// Lets more pushes come.
    pub(super) fn grant(&self, grant: Grant) {
        self.send_counted(Kind::Grant(grant));
    }

    fn send_counted(&self, message: Kind) {
        let counted = Counted::new(&self.waiting_grants);
        self.send(message, Credit::Counted(counted));
    }

    pub(super) fn send(&self, message: Kind, credit: Credit) {
        // Fails once the link has closed, and then nothing waits for it.
        let _ = self.outgoing.send(Waiting { message, credit });
    }

    /// Takes what the other side sent. Never waits.
    pub(super) fn receive(&self, frame: Frame) {
        for message in frame.messages {
            match message.message {
                Some(Kind::Reply(reply)) => self.receive_reply(reply),
                Some(Kind::Push(push)) => self.receive_push(push),
                _ => tracing::debug!(node = %self.node, "a message that only callers send"),
            }
        }
    }

    /// Fails every call and ends every attachment.
    pub(super) fn close(&self) {
        self.closed.cancel();
        let open = self.open.lock().take();
        drop(open);
    }

    fn open_call(&self, id: u64, answer: oneshot::Sender<Response>) -> Result<OpenCall<'_>, Error> {
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Error::Unreachable(self.node))?;
        open.calls.insert(id, answer);
        Ok(OpenCall { calling: self, id })
    }

    fn receive_reply(&self, reply: Reply) {
        let call = self.with_open(|open| open.calls.remove(&reply.id));
        match call {
            Some(call) => {
                // The caller may have given up at this very moment.
                let _ = call.send(reply.response.unwrap_or_default());
            }
            None => metrics::LATE_REPLIES.handle().increment(1),
        }
    }

    fn receive_push(&self, push: Push) {
        let number = push.attachment;
        let is_last = matches!(push.push, Some(PushKind::Ended(_)));
        // Late pushes of an attachment that is over are nobody's.
        let Some(sink) = self.with_open(|open| open.attachments.get(&number).cloned()) else {
            return;
        };
        if sink.send(push).is_err() {
            self.detach(number);
        } else if is_last {
            self.forget_attachment(number);
        }
    }

    fn forget_attachment(&self, number: u64) {
        drop(self.with_open(|open| open.attachments.remove(&number)));
    }

    /// What `look` finds, dropped by the caller and so outside the lock.
    fn with_open<T>(&self, look: impl FnOnce(&mut Open) -> Option<T>) -> Option<T> {
        self.open.lock().as_mut().and_then(look)
    }
}

/// Removes a call from the link, however its caller stops waiting.
struct OpenCall<'a> {
    calling: &'a Calling,
    id: u64,
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        drop(self.calling.with_open(|open| open.calls.remove(&self.id)));
    }
}

/// An attachment that is undone on drop, because its caller stopped waiting or it was refused.
pub(super) struct OpenAttachment {
    calling: Option<Arc<Calling>>,
    number: u64,
}

impl OpenAttachment {
    /// It was welcomed: it lives until it is detached, ended by the other side, or the link closes.
    pub(super) fn keep(mut self) {
        self.calling = None;
    }
}

impl Drop for OpenAttachment {
    fn drop(&mut self) {
        if let Some(calling) = self.calling.take() {
            calling.detach(self.number);
        }
    }
}

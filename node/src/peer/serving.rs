//! The serving side of one open link: each call in a task of its own, answers and pushes into one stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use roost_proto::peer::message::Message as Kind;
use roost_proto::peer::request::Request as Asked;
use roost_proto::peer::response::Response as Answer;
use roost_proto::peer::{Call, Detach, Failure, Frame, Push, Reply, Response, failure::Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::frames::{Credit, Frames, Waiting, encoded_len};
use super::{Lane, LinkId, MESSAGE_BYTES_MAX, Service};
use crate::config;
use crate::metrics;
use crate::types::NodeId;

/// The longest that a call may keep its task, whatever deadline it came with.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// What a caller over its credit is told to wait.
const OVERLOADED_RETRY_MS: u64 = 50;

/// One open link, as the node that was called sees it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Serving {
    from: NodeId,
    link: LinkId,
    service: Arc<dyn Service>,
    outgoing: mpsc::UnboundedSender<Waiting>,
    pushes: mpsc::UnboundedSender<Push>,
    credits: Arc<Semaphore>,
    /// Attachments whose answer is not there yet; true once they have been detached meanwhile.
    attaching: Arc<Mutex<BTreeMap<u64, bool>>>,
    closed: CancellationToken,
    served: ::metrics::Gauge,
}

impl Serving {
    /// A link from `from`, and what it sends back. `closed` ends both.
    pub(super) fn new(
        from: NodeId,
        lane: Lane,
        link: LinkId,
        service: Arc<dyn Service>,
        bounds: &config::Peer,
        closed: CancellationToken,
    ) -> (Self, Frames) {
        // Bounded by `peer.open_calls_max`: a reply holds its call's credit until it has left, and a refusal for want of
        // credit that of its caller.
        let (outgoing, queue) = mpsc::unbounded_channel();
        // Bounded by the windows of the link's attachments, `replica.attachments_max` of each shard.
        let (pushes, pushed) = mpsc::unbounded_channel();
        let frames = Frames::new(queue, pushed, closed.clone(), bounds);
        let serving = Self {
            from,
            link,
            service,
            outgoing,
            pushes,
            credits: Arc::new(Semaphore::new(bounds.open_calls_max)),
            attaching: Arc::default(),
            closed,
            served: metrics::SERVED_CALLS.of(lane.as_str()),
        };
        (serving, frames)
    }

    /// Takes what the caller sends until its stream ends or the link closes.
    pub(super) async fn run(self, mut frames: impl Stream<Item = Frame> + Unpin) {
        while let Some(Some(frame)) = self.closed.run_until_cancelled(frames.next()).await {
            self.receive(frame);
        }
        self.closed.cancel();
        self.service.link_closed(self.link);
    }

    /// Never waits: what takes time is spawned.
    fn receive(&self, frame: Frame) {
        for message in frame.messages {
            match message.message {
                Some(Kind::Call(call)) => self.receive_call(call),
                Some(Kind::Grant(grant)) => self.service.grant(self.link, grant),
                Some(Kind::Detach(detach)) => self.receive_detach(detach),
                _ => tracing::debug!(node = %self.from, "a message that only callees send"),
            }
        }
    }

    fn receive_call(&self, call: Call) {
        let Ok(credit) = Arc::clone(&self.credits).try_acquire_owned() else {
            // Itself bounded by the credit that the caller, who counts the call as open, has for it.
            return self.reply(call.id, overloaded(), Credit::Covered);
        };
        let deadline = Duration::from_millis(call.deadline_ms.into()).min(DEADLINE_MAX);
        let request = call.request.unwrap_or_default();
        match request.request {
            Some(Asked::Attach(attach)) => {
                let number = attach.attachment;
                self.attaching.lock().insert(number, false);
                let pushes = self.pushes.clone();
                let answer = self.service.attach(self.from, self.link, pushes, attach);
                let serving = self.clone();
                tokio::spawn(async move {
                    serving.answer(call.id, deadline, answer, credit).await;
                    serving.settle_attachment(number);
                });
            }
            Some(_) => {
                let answer = self.service.call(self.from, request);
                let serving = self.clone();
                tokio::spawn(
                    async move { serving.answer(call.id, deadline, answer, credit).await },
                );
            }
            None => self.reply(
                call.id,
                failure(
                    Reason::Internal,
                    "an unknown request: run the same version on every node",
                ),
                Credit::Reply(credit),
            ),
        }
    }

    /// After the deadline nobody waits for the answer any more.
    async fn answer(
        &self,
        id: u64,
        deadline: Duration,
        answer: BoxFuture<'static, Response>,
        credit: OwnedSemaphorePermit,
    ) {
        let _served = Served::new(&self.served);
        if let Ok(response) = tokio::time::timeout(deadline, answer).await {
            self.reply(id, response, Credit::Reply(credit));
        }
    }

    fn receive_detach(&self, detach: Detach) {
        if let Some(detached) = self.attaching.lock().get_mut(&detach.attachment) {
            *detached = true;
            return;
        }
        self.service.detach(self.link, detach);
    }

    /// The caller may have given up, or the link closed, while the attachment was being made.
    fn settle_attachment(&self, number: u64) {
        let detached = self.attaching.lock().remove(&number).unwrap_or(false);
        if detached || self.closed.is_cancelled() {
            self.service
                .detach(self.link, Detach { attachment: number });
        }
    }

    fn reply(&self, id: u64, response: Response, credit: Credit) {
        let reply = |response| {
            Kind::Reply(Reply {
                id,
                response: Some(response),
            })
        };
        let mut message = reply(response);
        if encoded_len(&message) > MESSAGE_BYTES_MAX {
            message = reply(failure(
                Reason::Internal,
                "the answer is too large for a message",
            ));
        }
        // Fails once the link has closed, and then the caller knows.
        let _ = self.outgoing.send(Waiting { message, credit });
    }
}

/// Counts a call as long as it is served.
struct Served<'a>(&'a ::metrics::Gauge);

impl<'a> Served<'a> {
    fn new(gauge: &'a ::metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn overloaded() -> Response {
    let mut response = failure(Reason::Overloaded, "too many calls are open on this link");
    if let Some(Answer::Failure(failure)) = &mut response.response {
        failure.retry_after_ms = OVERLOADED_RETRY_MS;
    }
    response
}

fn failure(reason: Reason, message: &str) -> Response {
    Response {
        response: Some(Answer::Failure(Failure {
            reason: reason.into(),
            message: message.to_owned(),
            ..Failure::default()
        })),
    }
}

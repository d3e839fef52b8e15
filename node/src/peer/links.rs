//! The links of one node to all others, and to itself: opened at first use, kept, opened again when broken.
//!
//! One task per node and lane dials and reads. At first use and right after a break calls wait in the link's queue, in
//! order and within their deadlines, while it is dialled; after a failed attempt they fail at once until one succeeds, so
//! that a dead node costs nobody time. A node's calls to itself take the same path without a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use roost_proto::peer::request::Request as Asked;
use roost_proto::peer::response::Response as Answer;
use roost_proto::peer::{
    AttachRequest, AttachResponse, Detach, Failure, Frame, Grant, Request, Response,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::calling::Calling;
use super::frames::{Counted, Frames};
use super::serving::Serving;
use super::{Attachment, Error, Lane, LinkId, Peers, PushSink, Service};
use crate::config;
use crate::metrics;
use crate::types::NodeId;

/// Opens streams to other nodes.
pub trait Dial: Send + Sync + 'static {
    /// Opens one stream: carries `frames` there, returns what comes back. The stream ends when the link breaks.
    fn dial(
        &self,
        node: NodeId,
        lane: Lane,
        frames: Frames,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Frame>, DialError>>;
}

/// Why a stream could not be opened; the next attempt may succeed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody has said where the node listens.
    #[error("its address is not known")]
    UnknownAddress,
    /// No connection.
    #[error("no connection to {address}: {reason}")]
    NoConnection {
        /// Where.
        address: String,
        /// The transport's reason.
        reason: String,
    },
    /// The other side does not want this link.
    #[error("{address} refuses the link: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// The other side's reason.
        reason: String,
    },
}

/// All links of a node. Cheap to clone.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    me: NodeId,
    bounds: config::Peer,
    dial: Arc<dyn Dial>,
    here: OnceLock<Arc<dyn Service>>,
    /// One for each node and lane that was ever called: as many as the cluster has nodes, three times.
    links: Mutex<BTreeMap<(NodeId, Lane), Arc<Link>>>,
    next_number: AtomicU64,
    /// See [`Peers::lost`].
    lost: watch::Sender<BTreeSet<NodeId>>,
    seed: u64,
    shutdown: CancellationToken,
}

struct Link {
    /// Nothing after a failed attempt, until one succeeds.
    open: Mutex<Option<Arc<Calling>>>,
    credits: Arc<Semaphore>,
    open_calls: ::metrics::Gauge,
}

impl Links {
    /// The links of node `me`. `seed` draws the jitter between attempts. Cancelling `shutdown` closes them for good.
    #[must_use]
    pub fn new(
        me: NodeId,
        bounds: config::Peer,
        dial: Arc<dyn Dial>,
        seed: u64,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            me,
            bounds,
            dial,
            here: OnceLock::new(),
            links: Mutex::default(),
            next_number: AtomicU64::new(1),
            lost: watch::Sender::default(),
            seed,
            shutdown,
        }))
    }

    /// Who answers this node's calls to itself. Until then they find it unreachable; only the first call counts.
    pub fn serve_here(&self, service: Arc<dyn Service>) {
        let _ = self.0.here.set(service);
    }

    fn link(&self, node: NodeId, lane: Lane) -> Arc<Link> {
        let mut links = self.0.links.lock();
        let link = links.entry((node, lane)).or_insert_with(|| {
            let (calling, frames) = self.0.prepare(node);
            let link = Arc::new(Link {
                open: Mutex::new(Some(Arc::clone(&calling))),
                credits: Arc::new(Semaphore::new(self.0.bounds.open_calls_max)),
                open_calls: metrics::OPEN_CALLS.of(lane.as_str()),
            });
            let keeper = Keeper {
                inner: Arc::clone(&self.0),
                link: Arc::clone(&link),
                node,
                lane,
            };
            tokio::spawn(keeper.run(calling, frames));
            link
        });
        Arc::clone(link)
    }

    /// The open link, if there is one.
    fn open(&self, node: NodeId, lane: Lane) -> Option<Arc<Calling>> {
        let links = self.0.links.lock();
        links.get(&(node, lane))?.open.lock().clone()
    }

    fn number(&self) -> u64 {
        self.0.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Calls over a link that `opened` may look at first.
    async fn ask<T>(
        &self,
        node: NodeId,
        lane: Lane,
        deadline: Duration,
        request: Request,
        opened: impl FnOnce(&Arc<Calling>) -> Result<T, Error> + Send,
    ) -> Result<(T, Response), Error> {
        let link = self.link(node, lane);
        let credit = Arc::clone(&link.credits)
            .try_acquire_owned()
            .map_err(|_| Error::Overloaded(node))?;
        let _open_call = Counted::new(&link.open_calls);
        let calling = link.open.lock().clone().ok_or(Error::Unreachable(node))?;
        let opened = opened(&calling)?;
        let response = calling
            .call(self.number(), deadline, request, credit)
            .await?;
        Ok((opened, response))
    }
}

impl Peers for Links {
    fn call(
        &self,
        node: NodeId,
        lane: Lane,
        deadline: Duration,
        request: Request,
    ) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async move {
            let asked = self.ask(node, lane, deadline, request, |_| Ok(())).await;
            asked
                .map(|((), response)| response)
                .inspect_err(count_failure)
        })
    }

    fn attach(
        &self,
        node: NodeId,
        deadline: Duration,
        mut request: AttachRequest,
        pushes: PushSink,
    ) -> BoxFuture<'_, Result<(Attachment, AttachResponse), Error>> {
        Box::pin(async move {
            let number = self.number();
            request.attachment = number;
            let request = Request {
                request: Some(Asked::Attach(request)),
            };
            let asked = self
                .ask(node, Lane::Traffic, deadline, request, |calling| {
                    calling.open_attachment(number, pushes)
                })
                .await;
            let (open, response) = asked.inspect_err(count_failure)?;
            let response = match response.response {
                Some(Answer::Attach(response)) => response,
                Some(Answer::Failure(failure)) => return Err(Error::Failed(node, failure)),
                _ => return Err(Error::Failed(node, Failure::default())),
            };
            if response.error.is_none() {
                open.keep();
            }
            Ok((Attachment(number), response))
        })
    }

    fn grant(&self, node: NodeId, grant: Grant) {
        if let Some(calling) = self.open(node, Lane::Traffic) {
            calling.grant(grant);
        }
    }

    fn detach(&self, node: NodeId, detach: Detach) {
        if let Some(calling) = self.open(node, Lane::Traffic) {
            calling.detach(detach.attachment);
        }
    }

    fn lost(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.0.lost.subscribe()
    }
}

impl Inner {
    /// A link that calls can wait in, before it is dialled.
    fn prepare(&self, node: NodeId) -> (Arc<Calling>, Frames) {
        Calling::new(node, &self.bounds, self.shutdown.child_token())
    }

    async fn dial(
        &self,
        node: NodeId,
        lane: Lane,
        frames: Frames,
    ) -> Result<BoxStream<'static, Frame>, DialError> {
        metrics::REDIALS.of(lane.as_str()).increment(1);
        if node != self.me {
            return self.dial.dial(node, lane, frames).await;
        }
        let service = self.here.get().ok_or(DialError::UnknownAddress)?;
        let (link, closed) = (LinkId::here(lane), self.shutdown.child_token());
        let (serving, back) =
            Serving::new(node, lane, link, Arc::clone(service), &self.bounds, closed);
        tokio::spawn(serving.run(frames));
        Ok(back.boxed())
    }
}

/// Keeps one link open.
struct Keeper {
    inner: Arc<Inner>,
    link: Arc<Link>,
    node: NodeId,
    lane: Lane,
}

impl Keeper {
    /// Until shutdown.
    async fn run(self, calling: Arc<Calling>, frames: Frames) {
        let shutdown = self.inner.shutdown.clone();
        shutdown
            .run_until_cancelled(self.keep(calling, frames))
            .await;
        if let Some(calling) = self.publish(None) {
            calling.close();
        }
    }

    /// Dials, reads until the link breaks, and dials again.
    async fn keep(&self, mut calling: Arc<Calling>, mut frames: Frames) {
        let mut backoff = Backoff::new(&self.inner, self.node, self.lane);
        loop {
            match self.inner.dial(self.node, self.lane, frames).await {
                Ok(incoming) => {
                    let opened = Instant::now();
                    self.note(false);
                    self.publish(Some(Arc::clone(&calling)));
                    self.read(&calling, incoming).await;
                    if opened.elapsed() >= backoff.max() {
                        backoff.reset();
                        let (next, next_frames) = self.inner.prepare(self.node);
                        // First the new one, so that who is woken by the end finds it.
                        self.publish(Some(Arc::clone(&next)));
                        calling.close();
                        (calling, frames) = (next, next_frames);
                        continue;
                    }
                    // Opened and broken at once: not dialled in a tight loop either.
                    self.publish(None);
                }
                Err(error) => {
                    self.note(true);
                    // Said once until the next success.
                    if self.publish(None).is_some() {
                        let (node, lane) = (self.node, self.lane.as_str());
                        tracing::warn!(%node, lane, %error, "no link");
                    }
                }
            }
            calling.close();
            backoff.wait().await;
            (calling, frames) = self.inner.prepare(self.node);
        }
    }

    async fn read(&self, calling: &Calling, mut incoming: BoxStream<'static, Frame>) {
        let _open_link = Counted::new(&metrics::LINKS.of(self.lane.as_str()));
        while let Some(frame) = incoming.next().await {
            calling.receive(frame);
        }
    }

    /// Whether the node is lost.
    fn note(&self, lost: bool) {
        if self.lane == Lane::Control {
            self.inner.lost.send_if_modified(|nodes| match lost {
                true => nodes.insert(self.node),
                false => nodes.remove(&self.node),
            });
        }
    }

    /// What callers find from now on; returns what they found before.
    fn publish(&self, calling: Option<Arc<Calling>>) -> Option<Arc<Calling>> {
        std::mem::replace(&mut *self.link.open.lock(), calling)
    }
}

/// Waits between attempts: doubled each time up to the bound, and half of each drawn at random, so that nodes do not
/// dial a returning one all at once.
struct Backoff {
    next_ms: u64,
    min_ms: u64,
    max_ms: u64,
    random: SmallRng,
}

impl Backoff {
    fn new(inner: &Inner, node: NodeId, lane: Lane) -> Self {
        let low = node.as_bytes().iter().fold(0, |sum: u64, &byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        Self {
            next_ms: inner.bounds.redial_min_ms,
            min_ms: inner.bounds.redial_min_ms,
            max_ms: inner.bounds.redial_max_ms,
            random: SmallRng::seed_from_u64(inner.seed ^ low ^ lane as u64),
        }
    }

    fn max(&self) -> Duration {
        Duration::from_millis(self.max_ms)
    }

    fn reset(&mut self) {
        self.next_ms = self.min_ms;
    }

    async fn wait(&mut self) {
        let wait_ms = self
            .random
            .random_range(self.next_ms.div_ceil(2)..=self.next_ms);
        self.next_ms = (self.next_ms * 2).min(self.max_ms);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

fn count_failure(error: &Error) {
    let reason = match error {
        Error::Unreachable(_) => "unreachable",
        Error::TimedOut(_) => "timed_out",
        Error::Overloaded(_) => "overloaded",
        Error::TooLarge(_) => "too_large",
        Error::Failed(..) => "failed",
    };
    metrics::FAILED_CALLS.of(reason).increment(1);
}

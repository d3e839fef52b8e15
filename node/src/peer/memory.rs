//! A network inside one process, on tokio's time: nodes that a test can slow down, cut off in one direction, or crash.
//!
//! It behaves as connections do: what is sent on a link arrives in order or the link breaks. A cut holds frames back,
//! and when it lasts longer than [`Network::BREAK_AFTER`] all links between the two nodes break, in both directions, as
//! they do when no ping is answered. With the clock paused, one thread and a seed, every run is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use roost_proto::peer::{Frame, Message, message, raft_request, request};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::serving::Serving;
use super::{Dial, DialError, Frames, Lane, LinkId, Links, Service};
use crate::config;
use crate::types::NodeId;

/// The network. Cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Tells held frames to look again; wakes them in order, which a simulation needs.
    healed: Notify,
    bounds: config::Peer,
}

struct State {
    nodes: BTreeMap<NodeId, Arc<dyn Service>>,
    cut: BTreeSet<(NodeId, NodeId)>,
    delay_ms: RangeInclusive<u64>,
    /// The share of snapshot chunks in which a bit flips on the way, and how many did.
    flips: (f64, u64),
    /// Open links, by who dialled whom.
    links: Vec<(NodeId, NodeId, CancellationToken)>,
    next_link: u64,
    random: SmallRng,
}

impl Network {
    /// How long a cut may last until links break, as the real ones do by unanswered pings.
    pub const BREAK_AFTER: Duration = Duration::from_millis(1500);

    /// A network without nodes and without delay.
    #[must_use]
    pub fn new(seed: u64, bounds: config::Peer) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                nodes: BTreeMap::new(),
                cut: BTreeSet::new(),
                delay_ms: 0..=0,
                flips: (0.0, 0),
                links: Vec::new(),
                next_link: LinkId::FIRST_FROM_OTHERS,
                random: SmallRng::seed_from_u64(seed),
            }),
            healed: Notify::new(),
            bounds,
        }))
    }

    /// The links of a node; what others ask it goes to the service given to [`Network::serve`].
    #[must_use]
    pub fn links(&self, me: NodeId, shutdown: CancellationToken) -> Links {
        let dialer = Dialer {
            me,
            network: self.clone(),
        };
        let seed = self.0.state.lock().random.random();
        Links::new(me, self.0.bounds.clone(), Arc::new(dialer), seed, shutdown)
    }

    /// Lets a node be called by others; again after a crash.
    pub fn serve(&self, node: NodeId, service: Arc<dyn Service>) {
        self.0.state.lock().nodes.insert(node, service);
    }

    /// The node is gone: its links break at once, and nobody reaches it until it serves again.
    pub fn crash(&self, node: NodeId) {
        self.0.state.lock().nodes.remove(&node);
        self.break_links(|from, to| from == node || to == node);
    }

    /// Every frame from now on takes this long, drawn anew for each; order within a link stays.
    pub fn delay(&self, delay_ms: RangeInclusive<u64>) {
        self.0.state.lock().delay_ms = delay_ms;
    }

    /// From now on this share of the chunks of snapshots arrives with a bit flipped.
    pub fn flip_bits_of_snapshots(&self, share: f64) {
        self.0.state.lock().flips.0 = share;
    }

    /// How many chunks of snapshots arrived with a bit flipped.
    #[must_use]
    pub fn flipped_bits(&self) -> u64 {
        self.0.state.lock().flips.1
    }

    /// Nothing gets from one node to the other until [`Network::heal`]; the other direction stays, until links break.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        if !self.0.state.lock().cut.insert((from, to)) {
            return;
        }
        let network = self.clone();
        tokio::spawn(async move {
            let healed = network.passable(from, to);
            if tokio::time::timeout(Self::BREAK_AFTER, healed)
                .await
                .is_err()
            {
                network.break_links(|a, b| (a, b) == (from, to) || (a, b) == (to, from));
            }
        });
    }

    /// Cuts both directions.
    pub fn part(&self, a: NodeId, b: NodeId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Ends every cut.
    pub fn heal(&self) {
        self.0.state.lock().cut.clear();
        self.0.healed.notify_waiters();
    }

    /// Breaks all links between two nodes, once; they may be dialled again at once.
    pub fn reset(&self, a: NodeId, b: NodeId) {
        self.break_links(|from, to| (from, to) == (a, b) || (from, to) == (b, a));
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.0.state.lock().cut.contains(&(from, to))
    }

    fn break_links(&self, matches: impl Fn(NodeId, NodeId) -> bool) {
        let mut broken = Vec::new();
        self.0.state.lock().links.retain(|(from, to, closed)| {
            let breaks = matches(*from, *to);
            if breaks {
                broken.push(closed.clone());
            }
            !breaks && !closed.is_cancelled()
        });
        for closed in broken {
            closed.cancel();
        }
    }

    fn draw_delay(&self) -> Duration {
        let mut state = self.0.state.lock();
        let delay_ms = state.delay_ms.clone();
        Duration::from_millis(state.random.random_range(delay_ms))
    }

    /// What is sent from one node to the other, when it arrives.
    fn carry(
        &self,
        from: NodeId,
        to: NodeId,
        closed: CancellationToken,
        frames: impl Stream<Item = Frame> + Send + Unpin + 'static,
    ) -> BoxStream<'static, Frame> {
        let arriving = self.stamp(frames, closed.clone());
        let network = self.clone();
        stream::unfold(
            (arriving, network, closed),
            move |(mut arriving, network, closed)| async move {
                let arrival = closed.run_until_cancelled(async {
                    let (at, frame) = arriving.recv().await?;
                    tokio::time::sleep_until(at).await;
                    network.passable(from, to).await;
                    Some(frame)
                });
                let frame = arrival.await.flatten()?;
                Some((frame, (arriving, network, closed)))
            },
        )
        .boxed()
    }

    /// Takes frames as they are sent and says when each arrives, never before the one ahead of it. What is on its way is
    /// bounded by the credit of what it holds.
    fn stamp(
        &self,
        mut frames: impl Stream<Item = Frame> + Send + Unpin + 'static,
        closed: CancellationToken,
    ) -> mpsc::UnboundedReceiver<(Instant, Frame)> {
        // Bounded by what covers the messages in the frames.
        let (sent, arriving) = mpsc::unbounded_channel();
        let network = self.clone();
        tokio::spawn(async move {
            let mut last = Instant::now();
            while let Some(Some(mut frame)) = closed.run_until_cancelled(frames.next()).await {
                network.flip_bits(&mut frame);
                last = last.max(Instant::now() + network.draw_delay());
                if sent.send((last, frame)).is_err() {
                    break;
                }
            }
        });
        arriving
    }

    fn flip_bits(&self, frame: &mut Frame) {
        let State { flips, random, .. } = &mut *self.0.state.lock();
        for chunk in frame.messages.iter_mut().filter_map(snapshot_chunk) {
            if flips.0 > 0.0 && random.random_bool(flips.0) {
                let mut bytes = chunk.to_vec();
                let bit = random.random_range(0..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                *chunk = bytes.into();
                flips.1 += 1;
            }
        }
    }

    async fn passable(&self, from: NodeId, to: NodeId) {
        loop {
            // Before looking, so that no change between looking and waiting is missed.
            let healed = self.0.healed.notified();
            if !self.is_cut(from, to) {
                return;
            }
            healed.await;
        }
    }
}

struct Dialer {
    me: NodeId,
    network: Network,
}

impl Dialer {
    async fn open(
        &self,
        node: NodeId,
        lane: Lane,
        frames: Frames,
    ) -> Result<BoxStream<'static, Frame>, DialError> {
        let network = &self.network;
        // There and back, as a handshake goes.
        tokio::time::sleep(network.draw_delay() + network.draw_delay()).await;
        let bounds = &network.0.bounds;
        if network.is_cut(self.me, node) || network.is_cut(node, self.me) {
            tokio::time::sleep(Duration::from_millis(bounds.connect_timeout_ms)).await;
            return Err(no_connection(node, "cut off"));
        }
        let closed = CancellationToken::new();
        let (service, link) = {
            let mut state = network.0.state.lock();
            let service = state.nodes.get(&node).cloned();
            let service = service.ok_or_else(|| no_connection(node, "not there"))?;
            let link = LinkId(state.next_link);
            state.next_link += 1;
            state.links.push((self.me, node, closed.clone()));
            (service, link)
        };
        let (serving, back) = Serving::new(self.me, lane, link, service, bounds, closed.clone());
        tokio::spawn(serving.run(network.carry(self.me, node, closed.clone(), frames)));
        Ok(network.carry(node, self.me, closed, back))
    }
}

impl Dial for Dialer {
    fn dial(
        &self,
        node: NodeId,
        lane: Lane,
        frames: Frames,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Frame>, DialError>> {
        Box::pin(self.open(node, lane, frames))
    }
}

/// The chunk of a snapshot in a message, if it carries one.
fn snapshot_chunk(message: &mut Message) -> Option<&mut Bytes> {
    let Some(message::Message::Call(call)) = &mut message.message else {
        return None;
    };
    match call.request.as_mut()?.request.as_mut()? {
        request::Request::Raft(raft) => match raft.body.as_mut()? {
            raft_request::Body::SnapshotChunk(chunk) => Some(chunk),
            _ => None,
        },
        _ => None,
    }
}

fn no_connection(node: NodeId, reason: &str) -> DialError {
    DialError::NoConnection {
        address: node.to_string(),
        reason: reason.to_owned(),
    }
}

//! Sessions: one connection of a device, whatever protocol it speaks.
//!
//! A session is one task. It sends ([`sends`]), receives ([`receive`]: its attachment and window) and acknowledges
//! ([`acks`]); the edge only turns bytes into [`ClientFrame`]s and [`ServerFrame`]s back. It holds nothing that is not
//! in a shard already: when it dies, the client goes on at any other node from its cursor and its unanswered ids.

mod acks;
mod hello;
mod outgoing;
mod receive;
mod refusal;
mod sends;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use roost_proto::v1::{
    ClientFrame, Code, Goodbye, Pong, client_frame::Frame as In, server_frame::Frame as Out,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{self, Config};
use crate::metrics;
use crate::router::Router;
use acks::Acks;
pub use outgoing::Frames;
use outgoing::Outgoing;
use receive::{Receive, Received};
use sends::Sends;

/// All sessions of this node.
pub struct Sessions {
    router: Arc<Router>,
    settings: Settings,
    open: AtomicUsize,
    /// Sessions are told to go elsewhere.
    drain: CancellationToken,
    tasks: TaskTracker,
}

/// What sessions are told by the config.
#[derive(Clone)]
struct Settings {
    node: String,
    session: config::Session,
    queue: config::Queue,
}

/// Why a session ended, as a metric label.
type Reason = &'static str;

impl Sessions {
    /// None yet.
    #[must_use]
    pub fn new(router: Arc<Router>, config: &Config) -> Arc<Self> {
        let settings = Settings {
            node: config.name.clone(),
            session: config.session.clone(),
            queue: config.queue.clone(),
        };
        Arc::new(Self {
            router,
            settings,
            open: AtomicUsize::new(0),
            drain: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Runs one session in a task of its own, until the client goes, what it is to read is dropped, or the node drains.
    pub fn spawn<S, E>(self: &Arc<Self>, incoming: S) -> Frames
    where
        S: Stream<Item = Result<ClientFrame, E>> + Send + Unpin + 'static,
        E: Send + 'static,
    {
        let (outgoing, frames) = outgoing::channel(self.settings.session.outgoing_frames_max);
        let sessions = Arc::clone(self);
        self.tasks.spawn(async move {
            let open = sessions.open.fetch_add(1, Ordering::Relaxed);
            metrics::SESSIONS.handle().increment(1.0);
            let reason = match open < sessions.settings.session.sessions_max {
                true => sessions.run(incoming, &outgoing).await,
                false => {
                    sessions.go_elsewhere(&outgoing, "the node has as many sessions as it takes")
                }
            };
            sessions.open.fetch_sub(1, Ordering::Relaxed);
            metrics::SESSIONS.handle().decrement(1.0);
            metrics::SESSIONS_ENDED.of(reason).increment(1);
        });
        frames
    }

    /// Tells every session to go elsewhere and waits until they have gone, at most `within`.
    pub async fn drain(&self, within: Duration) {
        self.drain.cancel();
        self.tasks.close();
        // What has not gone by then is cut when the listener closes; nothing is lost by it.
        drop(tokio::time::timeout(within, self.tasks.wait()).await);
    }

    async fn run<S, E>(&self, mut incoming: S, outgoing: &Outgoing) -> Reason
    where
        S: Stream<Item = Result<ClientFrame, E>> + Unpin,
    {
        let why = {
            let session = self.serve(&mut incoming, outgoing);
            tokio::select! {
                reason = session => return reason,
                why = self.cannot_serve() => why,
            }
        };
        self.go_elsewhere(outgoing, why)
    }

    /// Returns when other nodes are better for a client than this one, and says why.
    async fn cannot_serve(&self) -> &'static str {
        let mut cut_off = self.router.cut_off();
        tokio::select! {
            () = self.drain.cancelled() => "the node is stopping",
            Ok(_) = cut_off.wait_for(|cut_off| *cut_off) => "this node hears no other node",
        }
    }

    async fn serve<S, E>(&self, incoming: &mut S, outgoing: &Outgoing) -> Reason
    where
        S: Stream<Item = Result<ClientFrame, E>> + Unpin,
    {
        let opened = match hello::open(&self.router, &self.settings, incoming).await {
            Ok(Some(opened)) => opened,
            Ok(None) => return "closed",
            Err(error) => {
                let reason = reason_of(error.code());
                outgoing.send(Out::Goodbye(Goodbye {
                    error: Some(error),
                    ..Goodbye::default()
                }));
                return reason;
            }
        };
        outgoing.send(Out::Welcome(opened.welcome));
        let identity = Arc::new(opened.identity);
        let mut session = Session {
            sends: Sends::new(
                Arc::clone(&self.router),
                Arc::clone(&identity),
                &self.settings,
            ),
            acks: Acks::new(
                Arc::clone(&self.router),
                Arc::clone(&identity),
                &self.settings,
            ),
            receive: Receive::new(
                Arc::clone(&self.router),
                identity,
                opened.wanted,
                &self.settings,
            ),
            outgoing,
        };
        session.run(incoming).await
    }

    fn go_elsewhere(&self, outgoing: &Outgoing, why: &str) -> Reason {
        /// Sessions of a stopping node spread their return over this.
        const JITTER_MS: u64 = 1_000;
        let placement = self.router.placement();
        let servers = placement
            .nodes()
            .values()
            .filter(|node| node.name != self.settings.node)
            .map(|node| node.client_address.clone())
            .collect();
        outgoing.send(Out::Goodbye(Goodbye {
            error: Some(refusal::retryable(Code::GoElsewhere, why, 0)),
            servers,
            after_ms: rand::random_range(0..JITTER_MS),
        }));
        "go_elsewhere"
    }
}

struct Session<'a> {
    sends: Sends,
    acks: Acks,
    receive: Receive,
    outgoing: &'a Outgoing,
}

impl Session<'_> {
    async fn run<S, E>(&mut self, incoming: &mut S) -> Reason
    where
        S: Stream<Item = Result<ClientFrame, E>> + Unpin,
    {
        loop {
            let answer = tokio::select! {
                frame = incoming.next() => match frame {
                    Some(Ok(frame)) => match self.on_frame(frame) {
                        Ok(answer) => answer,
                        Err(goodbye) => return self.end(goodbye),
                    },
                    Some(Err(_)) => return "broken",
                    None => return self.finish().await,
                },
                answers = self.sends.next() => {
                    for answer in answers {
                        self.outgoing.send(Out::Answer(answer));
                    }
                    None
                }
                answer = self.acks.next() => Some(answer),
                received = pushed(&mut self.receive, self.outgoing) => match received {
                    Received::Frame(frame) => Some(frame),
                    Received::Over(error) => return self.end(error),
                },
            };
            if let Some(answer) = answer {
                self.outgoing.send(answer);
            }
            if self.outgoing.is_over() {
                return self.end(refusal::retryable(
                    Code::SlowConsumer,
                    "the client does not read what it is sent",
                    0,
                ));
            }
        }
    }

    /// The client has closed its sending side: what it sent is still answered.
    async fn finish(&mut self) -> Reason {
        while !self.sends.is_idle() || !self.acks.is_idle() {
            let answers = tokio::select! {
                answers = self.sends.next() => answers.into_iter().map(Out::Answer).collect(),
                answer = self.acks.next() => vec![answer],
            };
            for answer in answers {
                self.outgoing.send(answer);
            }
        }
        "closed"
    }

    fn on_frame(&mut self, frame: ClientFrame) -> Result<Option<Out>, roost_proto::v1::Error> {
        self.receive.client_is_here();
        Ok(match frame.frame {
            Some(In::Send(send)) => self.sends.push(send).map(Out::Answer),
            Some(In::Ack(ack)) => self.receive.on_ack(ack.cursor).map_or_else(
                |refused| Some(Out::Ack(refused)),
                |cursor| {
                    self.acks.ack(cursor);
                    None
                },
            ),
            Some(In::Read(mark)) => self.acks.read(mark).map(Out::Read),
            Some(In::ReceiptAck(ack)) => {
                if self.receive.is_attached() {
                    self.acks.receipts(ack.revision);
                }
                None
            }
            Some(In::Ping(ping)) => Some(Out::Pong(Pong { nonce: ping.nonce })),
            Some(In::Hello(_)) => {
                return Err(refusal::last(Code::Invalid, "a session says hello once"));
            }
            // A frame of a later version: ignoring it could lose a message.
            None => {
                return Err(refusal::last(
                    Code::Invalid,
                    "this server does not know such a frame",
                ));
            }
        })
    }

    fn end(&self, error: roost_proto::v1::Error) -> Reason {
        let reason = reason_of(error.code());
        self.outgoing.send_last(Out::Goodbye(Goodbye {
            error: Some(error),
            ..Goodbye::default()
        }));
        reason
    }
}

/// What is pushed next, once the client has read so much that there is room for it.
async fn pushed(receive: &mut Receive, outgoing: &Outgoing) -> Received {
    outgoing.room().await;
    receive.next().await
}

fn reason_of(code: Code) -> Reason {
    match code {
        Code::Unauthenticated => "unauthenticated",
        Code::Displaced => "displaced",
        Code::SlowConsumer => "slow_consumer",
        Code::Unavailable => "unavailable",
        Code::BadCursor => "bad_cursor",
        _ => "refused",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use roost_proto::storage::{LocalReplica, ReplicaState};

    use super::*;
    use crate::testing::{SHARD, Script, node, replicas, router_over};
    use crate::types::ReplicaId;

    /// Goal: a node that is cut off keeps nobody, and takes nobody. Found by partitions: its clients waited for leaders that
    /// only others could hear. Method: a node whose one replica is in a group of three, and two that never answer.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_hears_no_other_sends_everybody_elsewhere() {
        let script = Arc::new(Script::new(|_, _| None));
        let replicas = replicas(&script);
        let local = LocalReplica {
            shard: SHARD.0,
            replica: 1,
            state: ReplicaState::Active.into(),
            ..LocalReplica::default()
        };
        let members = (1..=3).map(|number| (ReplicaId(number.into()), node(number)));
        let members: BTreeMap<_, _> = members.collect();
        replicas.open(&local, Some(members)).await.unwrap();
        let sessions = Sessions::new(
            router_over(Arc::clone(&replicas), &script),
            &Config::default(),
        );
        let connect = || {
            sessions.spawn(futures::stream::pending::<
                Result<ClientFrame, std::io::Error>,
            >())
        };
        let mut before = connect();
        tokio::time::sleep(Duration::from_millis(850)).await;
        for _ in 0..10 {
            replicas.look_around();
        }
        assert!(
            futures::poll!(before.next()).is_pending(),
            "an election takes as long"
        );
        tokio::time::sleep(Duration::from_millis(150)).await;
        for _ in 0..10 {
            replicas.look_around();
        }
        for mut frames in [before, connect()] {
            match frames.next().await.unwrap().frame {
                Some(Out::Goodbye(goodbye)) => {
                    let error = goodbye.error.unwrap();
                    assert_eq!((error.code(), error.retryable), (Code::GoElsewhere, true));
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

//! Both transports under one fake service: gRPC over loopback in real time, and the network in memory in paused time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{BoxFuture, join_all};
use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use roost_proto::peer::message::Message as Kind;
use roost_proto::peer::push::Push as PushKind;
use roost_proto::peer::raft_request::Body;
use roost_proto::peer::request::Request as Asked;
use roost_proto::peer::response::Response as Answer;
use roost_proto::peer::{
    Ended, Introduction, RaftRequest, RaftResponse, failure::Reason, push, raft_response,
};
use roost_proto::v1::Entries;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::calling::Calling;
use super::frames::Credit;
use super::grpc::Dialer;
use super::memory::Network;
use super::server::{Doorkeeper, Server};
use super::*;
use crate::config;
use crate::versions::PEER_WIRE;

const CLUSTER: &str = "5a4f2c6e-0000-4000-8000-000000000000";
/// Longer than any test may take; a deadline that must not be reached.
const LONG: Duration = Duration::from_secs(20);

/// The replica of a request that is never answered.
const NEVER: u64 = 1;

fn node(number: u8) -> NodeId {
    NodeId::from_random([number; 16])
}

fn bounds() -> config::Peer {
    config::Peer {
        redial_min_ms: 1,
        redial_max_ms: 20,
        ..config::Peer::default()
    }
}

/// Echoes, except what is never answered; remembers what came.
#[derive(Default)]
struct Fake {
    seen: Mutex<Vec<u64>>,
    grants: Mutex<Vec<Grant>>,
    attached: Mutex<Vec<(u64, LinkPushes)>>,
    events: Mutex<Option<mpsc::UnboundedSender<String>>>,
}

impl Fake {
    fn events(&self) -> mpsc::UnboundedReceiver<String> {
        let (sender, events) = mpsc::unbounded_channel();
        *self.events.lock() = Some(sender);
        events
    }

    fn tell(&self, event: String) {
        if let Some(events) = self.events.lock().as_ref() {
            let _ = events.send(event);
        }
    }

    fn push(&self, push: Push) {
        let attached = self.attached.lock();
        let (_, pushes) = attached.last().expect("attached");
        pushes.send(push).expect("open");
    }
}

impl Service for Fake {
    fn call(&self, _: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let Some(Asked::Raft(raft)) = request.request else {
            return Box::pin(async { Response::default() });
        };
        self.seen.lock().push(raft.replica);
        Box::pin(async move {
            if raft.replica == NEVER {
                std::future::pending::<()>().await;
            }
            let Some(Body::Append(bytes)) = raft.body else {
                return Response::default();
            };
            Response {
                response: Some(Answer::Raft(RaftResponse {
                    body: Some(raft_response::Body::Append(bytes)),
                })),
            }
        })
    }

    fn attach(
        &self,
        _: NodeId,
        _: LinkId,
        pushes: LinkPushes,
        request: AttachRequest,
    ) -> BoxFuture<'static, Response> {
        self.attached.lock().push((request.attachment, pushes));
        let never = u64::from(request.shard) == NEVER;
        self.tell(format!("attach {}", request.user));
        Box::pin(async move {
            if never {
                std::future::pending::<()>().await;
            }
            Response {
                response: Some(Answer::Attach(AttachResponse::default())),
            }
        })
    }

    fn grant(&self, _: LinkId, grant: Grant) {
        self.tell(format!("grant {}", grant.entries));
        self.grants.lock().push(grant);
    }

    fn detach(&self, _: LinkId, _: Detach) {
        self.tell("detach".to_owned());
    }

    fn link_closed(&self, _: LinkId) {
        self.tell("closed".to_owned());
    }
}

impl Doorkeeper for Fake {
    fn admit(&self, cluster_id: &str, _: NodeId, wanted: NodeId) -> Result<(), String> {
        match cluster_id == CLUSTER && wanted == node(2) {
            true => Ok(()),
            false => Err("another cluster, or another node".to_owned()),
        }
    }

    fn introduce(&self, introduction: Introduction) -> BoxFuture<'_, Introduction> {
        Box::pin(async move {
            Introduction {
                wire_version: PEER_WIRE,
                ..introduction
            }
        })
    }
}

/// A node that listens on loopback.
struct Listening {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Listening {
    async fn start(fake: &Arc<Fake>, address: &str, bounds: config::Peer) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shutdown = CancellationToken::new();
        let server = Server::new(fake.clone(), bounds, shutdown.clone());
        server.serve(fake.clone());
        let task = tokio::spawn(server.run(listener));
        Self {
            address,
            shutdown,
            task,
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("served");
    }
}

fn dial(address: SocketAddr, cluster: &str, bounds: config::Peer) -> Links {
    let resolve = Arc::new(move |_| vec![address.to_string()]);
    let dialer = Dialer::new(node(1), cluster.to_owned(), bounds.clone(), resolve);
    Links::new(
        node(1),
        bounds,
        Arc::new(dialer),
        7,
        CancellationToken::new(),
    )
}

async fn pair() -> (Arc<Fake>, Listening, Links) {
    let fake = Arc::new(Fake::default());
    let listening = Listening::start(&fake, "127.0.0.1:0", bounds()).await;
    let links = dial(listening.address, CLUSTER, bounds());
    (fake, listening, links)
}

fn raft(replica: u64) -> Request {
    Request {
        request: Some(Asked::Raft(RaftRequest {
            replica,
            body: Some(Body::Append(replica.to_be_bytes().to_vec().into())),
        })),
    }
}

fn echo(replica: u64) -> Response {
    Response {
        response: Some(Answer::Raft(RaftResponse {
            body: Some(raft_response::Body::Append(
                replica.to_be_bytes().to_vec().into(),
            )),
        })),
    }
}

fn ended(attachment: Attachment) -> Push {
    Push {
        attachment: attachment.0,
        push: Some(PushKind::Ended(Ended::default())),
    }
}

async fn call(links: &Links, replica: u64) -> Result<Response, Error> {
    links
        .call(node(2), Lane::Traffic, LONG, raft(replica))
        .await
}

/// Calls until it works, at a caller's pace: a paused clock moves only while nobody runs.
async fn call_until_up(links: &Links) {
    while call(links, 5).await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn calls_are_answered_in_few_frames_and_started_in_order() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = ::metrics::set_default_local_recorder(&recorder);
    let (fake, listening, links) = pair().await;
    let wanted: Vec<u64> = (100..1100).collect();
    let answers = join_all(wanted.iter().map(|&replica| call(&links, replica))).await;
    for (replica, answer) in wanted.iter().zip(answers) {
        assert_eq!(answer.expect("answered"), echo(*replica));
    }
    assert_eq!(*fake.seen.lock(), wanted, "started in the order sent");
    let text = recorder.handle().render();
    let frames = text
        .lines()
        .find_map(|line| line.strip_prefix("roost_peer_frame_messages_count "))
        .expect("counted");
    let frames: u64 = frames.parse().expect("a number");
    // Both directions: 1,000 calls and 1,000 answers.
    assert!(frames < 200, "{frames} frames for 2,000 messages");
    listening.stop().await;
}

#[tokio::test]
async fn a_slow_call_holds_up_nobody_and_ends_by_its_deadline() {
    let (_fake, listening, links) = pair().await;
    let deadline = Duration::from_millis(300);
    let slow = links.call(node(2), Lane::Traffic, deadline, raft(NEVER));
    let quick = async {
        for replica in 10..20 {
            assert_eq!(call(&links, replica).await, Ok(echo(replica)));
        }
        Instant::now()
    };
    let started = Instant::now();
    let (slow, quick_done) = tokio::join!(slow, quick);
    assert_eq!(slow, Err(Error::TimedOut(node(2))));
    assert!(started.elapsed() >= deadline);
    assert!(
        quick_done < Instant::now(),
        "the quick ones did not wait for it"
    );
    listening.stop().await;
}

#[tokio::test]
async fn a_broken_link_fails_its_calls_at_once_and_ends_its_attachments() {
    let (fake, listening, links) = pair().await;
    let mut events = fake.events();
    let (pushes, mut pushed) = mpsc::unbounded_channel();
    links
        .attach(node(2), LONG, AttachRequest::default(), pushes)
        .await
        .expect("attached");
    assert_eq!(events.recv().await.as_deref(), Some("attach "));
    let started = Instant::now();
    let stop = async {
        // The call has arrived.
        while !fake.seen.lock().contains(&NEVER) {
            tokio::task::yield_now().await;
        }
        listening.stop().await;
    };
    let (answer, ()) = tokio::join!(call(&links, NEVER), stop);
    assert_eq!(answer, Err(Error::Unreachable(node(2))));
    assert!(started.elapsed() < LONG / 2, "not by the deadline");
    assert!(pushed.recv().await.is_none(), "the attachment has ended");
    assert_eq!(events.recv().await.as_deref(), Some("closed"));
}

#[tokio::test]
async fn a_link_is_dialled_again_when_the_server_is_back() {
    let (fake, listening, links) = pair().await;
    call(&links, 5).await.expect("up");
    let address = listening.address;
    listening.stop().await;
    let again = Listening::start(&fake, &address.to_string(), bounds()).await;
    tokio::time::timeout(LONG, call_until_up(&links))
        .await
        .expect("dialled again");
    again.stop().await;
}

/// Goal: a process that is gone is known to be lost without a deadline, and no longer when it is back.
#[tokio::test]
async fn who_refuses_connections_is_lost_until_it_is_back() {
    let (fake, listening, links) = pair().await;
    let mut lost = links.lost();
    let asked = links.call(node(2), Lane::Control, LONG, raft(5));
    asked.await.expect("up");
    assert!(lost.borrow_and_update().is_empty());
    let address = listening.address;
    listening.stop().await;
    let is_lost = lost.wait_for(|lost| lost.contains(&node(2)));
    let is_lost = tokio::time::timeout(LONG, is_lost).await;
    assert!(is_lost.expect("known").is_ok());
    let again = Listening::start(&fake, &address.to_string(), bounds()).await;
    let is_back = tokio::time::timeout(LONG, lost.wait_for(BTreeSet::is_empty)).await;
    assert!(is_back.expect("known").is_ok());
    again.stop().await;
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let (_fake, listening, _) = pair().await;
    let stranger = dial(listening.address, "other", bounds());
    assert_eq!(call(&stranger, 5).await, Err(Error::Unreachable(node(2))));
    listening.stop().await;
}

/// Goal: a node that has moved is found, and another that listens where it was is not taken for it. Method: two
/// addresses, the first another node's; then only that one.
#[tokio::test]
async fn a_link_goes_to_the_wanted_node_wherever_it_is() {
    let (_fake, listening, _) = pair().await;
    let shut = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let nobody = shut.local_addr().expect("bound").to_string();
    drop(shut);
    let here = listening.address.to_string();
    let links = |addresses: Vec<String>| {
        let resolve = Arc::new(move |_| addresses.clone());
        let dialer = Dialer::new(node(1), CLUSTER.to_owned(), bounds(), resolve);
        let stop = CancellationToken::new();
        Links::new(node(1), bounds(), Arc::new(dialer), 7, stop)
    };
    let found = links(vec![nobody, here.clone()]);
    tokio::time::timeout(LONG, call_until_up(&found))
        .await
        .expect("the second address is tried");
    let wrong = links(vec![here]);
    let asked = wrong.call(node(3), Lane::Traffic, LONG, raft(5)).await;
    assert_eq!(
        asked,
        Err(Error::Unreachable(node(3))),
        "node 2 listens there"
    );
    listening.stop().await;
}

#[tokio::test]
async fn a_node_answers_introductions_before_it_serves() {
    let fake = Arc::new(Fake::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let shutdown = CancellationToken::new();
    let server = Server::new(fake, bounds(), shutdown.clone());
    let task = tokio::spawn(server.clone().run(listener));

    let text = address.to_string();
    let answer = grpc::introduce(
        &text,
        LONG,
        Introduction {
            shards: 32,
            ..Introduction::default()
        },
    )
    .await;
    let answer = answer.expect("introduced");
    assert_eq!((answer.shards, answer.wire_version), (32, PEER_WIRE));

    let links = dial(address, CLUSTER, bounds());
    assert_eq!(
        call(&links, 5).await,
        Err(Error::Unreachable(node(2))),
        "not yet"
    );
    server.serve(Arc::new(Fake::default()));
    tokio::time::timeout(LONG, call_until_up(&links))
        .await
        .expect("serves now");

    shutdown.cancel();
    task.await.expect("no panic").expect("served");
    let nobody = grpc::introduce(&text, LONG, Introduction::default()).await;
    assert!(
        matches!(nobody, Err(grpc::FoundingError::NoConnection { .. })),
        "{nobody:?}"
    );
}

#[tokio::test]
async fn over_its_credit_a_caller_is_told_so_on_either_side() {
    let fake = Arc::new(Fake::default());
    let few = |open_calls_max| config::Peer {
        open_calls_max,
        ..bounds()
    };
    let listening = Listening::start(&fake, "127.0.0.1:0", few(1)).await;
    let caller = dial(listening.address, CLUSTER, few(2));
    let never = || caller.call(node(2), Lane::Traffic, Duration::from_secs(2), raft(NEVER));
    let over = async {
        while fake.seen.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        // One is served; the second is over the callee's bound.
        let Ok(Response {
            response: Some(Answer::Failure(failure)),
        }) = call(&caller, 5).await
        else {
            panic!("answered with a failure");
        };
        assert_eq!(failure.reason(), Reason::Overloaded);
        // Two are open at the caller; the third is over its own bound.
        let mut second = never();
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(call(&caller, 6).await, Err(Error::Overloaded(node(2))));
        // Another lane has its own credit.
        let control = caller.call(node(2), Lane::Control, LONG, raft(7)).await;
        assert_eq!(control, Ok(echo(7)));
    };
    let (first, ()) = tokio::join!(never(), over);
    assert_eq!(first, Err(Error::TimedOut(node(2))));
    assert_eq!(
        *fake.seen.lock(),
        [NEVER, 7],
        "what was refused was never started"
    );
    listening.stop().await;
}

#[tokio::test]
async fn pushes_and_grants_travel_until_the_attachment_ends() {
    let (fake, listening, links) = pair().await;
    let mut events = fake.events();
    let (pushes, mut pushed) = mpsc::unbounded_channel();
    let (attachment, answer) = links
        .attach(node(2), LONG, AttachRequest::default(), pushes)
        .await
        .expect("attached");
    assert_eq!(answer.error, None);
    events.recv().await;
    for count in 1..=100 {
        fake.push(Push {
            attachment: attachment.0,
            push: Some(push::Push::Entries(Entries {
                incarnation: count,
                ..Entries::default()
            })),
        });
    }
    for count in 1..=100 {
        let push = pushed.recv().await.expect("pushed");
        let Some(push::Push::Entries(entries)) = push.push else {
            panic!("another push");
        };
        assert_eq!(entries.incarnation, count, "in order");
    }
    links.grant(
        node(2),
        Grant {
            attachment: attachment.0,
            entries: 9,
            bytes: 0,
            shard: 1,
            notices: 0,
        },
    );
    assert_eq!(events.recv().await.as_deref(), Some("grant 9"));
    links.detach(
        node(2),
        Detach {
            attachment: attachment.0,
        },
    );
    assert_eq!(events.recv().await.as_deref(), Some("detach"));
    assert!(pushed.recv().await.is_none(), "detached");

    let (pushes, mut pushed) = mpsc::unbounded_channel();
    let (attachment, _) = links
        .attach(node(2), LONG, AttachRequest::default(), pushes)
        .await
        .expect("attached");
    fake.push(ended(attachment));
    assert!(pushed.recv().await.is_some(), "the end itself");
    assert!(pushed.recv().await.is_none(), "and nothing more");
    listening.stop().await;
}

/// The other side may have made the attachment although nobody heard of it.
#[tokio::test(start_paused = true)]
async fn an_attachment_that_nobody_waits_for_is_undone() {
    let network = Network::new(1, bounds());
    let fake = Arc::new(Fake::default());
    network.serve(node(2), fake.clone());
    let links = network.links(node(1), CancellationToken::new());
    let mut events = fake.events();
    let request = AttachRequest {
        shard: NEVER as u32,
        ..AttachRequest::default()
    };
    let (pushes, mut pushed) = mpsc::unbounded_channel();
    let answer = links
        .attach(node(2), Duration::from_millis(100), request, pushes)
        .await;
    assert_eq!(answer.expect_err("no answer"), Error::TimedOut(node(2)));
    assert!(pushed.recv().await.is_none());
    assert_eq!(events.recv().await.as_deref(), Some("attach "));
    assert_eq!(events.recv().await.as_deref(), Some("detach"));
}

#[tokio::test(start_paused = true)]
async fn a_node_calls_itself_without_a_network() {
    let network = Network::new(1, bounds());
    let links = network.links(node(1), CancellationToken::new());
    let to_itself = || links.call(node(1), Lane::Control, LONG, raft(8));
    assert_eq!(
        to_itself().await,
        Err(Error::Unreachable(node(1))),
        "nobody serves yet"
    );
    links.serve_here(Arc::new(Fake::default()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(to_itself().await, Ok(echo(8)));
}

#[tokio::test(start_paused = true)]
async fn a_short_cut_delays_and_a_long_one_breaks() {
    let network = Network::new(1, bounds());
    network.serve(node(2), Arc::new(Fake::default()));
    let links = network.links(node(1), CancellationToken::new());
    network.delay(5..=5);
    call(&links, 5).await.expect("up");
    let started = Instant::now();
    call(&links, 5).await.expect("up");
    assert_eq!(
        started.elapsed(),
        Duration::from_millis(10),
        "there and back"
    );

    for (from, to) in [(node(1), node(2)), (node(2), node(1))] {
        network.cut(from, to);
        let heal = async {
            tokio::time::sleep(Network::BREAK_AFTER / 2).await;
            network.heal();
        };
        let (answer, ()) = tokio::join!(call(&links, 6), heal);
        assert_eq!(answer, Ok(echo(6)), "late, and not lost");

        network.cut(from, to);
        let started = Instant::now();
        assert_eq!(call(&links, 6).await, Err(Error::Unreachable(node(2))));
        assert_eq!(started.elapsed(), Network::BREAK_AFTER);
        network.heal();
        tokio::time::timeout(LONG, call_until_up(&links))
            .await
            .expect("healed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_breaks_links_until_the_node_serves_again() {
    let network = Network::new(1, bounds());
    let fake = Arc::new(Fake::default());
    network.serve(node(2), fake.clone());
    let links = network.links(node(1), CancellationToken::new());
    call(&links, 5).await.expect("up");
    let crash = async { network.crash(node(2)) };
    let (answer, ()) = tokio::join!(call(&links, NEVER), crash);
    assert_eq!(answer, Err(Error::Unreachable(node(2))));
    network.serve(node(2), fake);
    tokio::time::timeout(LONG, call_until_up(&links))
        .await
        .expect("served again");
}

/// Goal: the same seed gives the same times, as simulation needs it.
#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let network = Network::new(seed, bounds());
            network.serve(node(2), Arc::new(Fake::default()));
            network.delay(1..=50);
            let links = network.links(node(1), CancellationToken::new());
            let started = Instant::now();
            let mut times = Vec::new();
            for replica in 10..40 {
                call(&links, replica).await.expect("up");
                times.push(started.elapsed());
            }
            times
        })
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[tokio::test]
async fn frames_are_bounded_in_messages_and_bytes_and_skip_the_abandoned() {
    let few = config::Peer {
        frame_messages_max: 4,
        frame_bytes_max: 1024,
        ..bounds()
    };
    let closed = CancellationToken::new();
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = ::metrics::set_default_local_recorder(&recorder);
    let (calling, mut frames) = Calling::new(node(2), &few, closed.clone());
    let waiting_grants = || {
        let text = recorder.handle().render();
        let mut lines = text.lines();
        let fill = lines.find_map(|line| line.strip_prefix("roost_peer_waiting_grants "));
        fill.map(str::to_owned)
    };
    let detach = |attachment| Kind::Detach(Detach { attachment });
    for number in 0..6 {
        calling.detach(number);
    }
    assert_eq!(waiting_grants().as_deref(), Some("6"));
    let large = Kind::Push(Push {
        push: Some(PushKind::Ended(Ended {
            leader: "x".repeat(5000),
            error: None,
        })),
        ..Push::default()
    });
    calling.send(large, Credit::Covered);
    let credits = Arc::new(tokio::sync::Semaphore::new(1));
    let credit = Arc::new(credits.clone().try_acquire_owned().expect("free"));
    calling.send(detach(99), Credit::Call(credit.clone()));
    drop(credit);
    calling.send(detach(7), Credit::Covered);

    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 8 {
        sizes.push(frames.next().await.expect("a frame").messages.len());
    }
    assert_eq!(
        sizes,
        [4, 2, 1, 1],
        "four, the rest taken with the large one, the large one alone, the last"
    );
    assert_eq!(waiting_grants().as_deref(), Some("0"));
    assert_eq!(
        credits.available_permits(),
        1,
        "given back with the abandoned call"
    );
    let waiting = futures::poll!(frames.next());
    assert!(waiting.is_pending());
    closed.cancel();
    assert!(frames.next().await.is_none());
}

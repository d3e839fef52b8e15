//! A real gRPC server in this process; each session is handed to the test, which reads and writes its frames.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use roost_proto::v1::messaging_server::{Messaging, MessagingServer};
use roost_proto::v1::{self, ClientFrame, ServerFrame, client_frame, server_frame};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{Client, Credentials, Options};

/// What a test waits for comes within this, or the test has failed.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Server {
    pub(super) address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The server's side of one session. Dropping it ends the session.
pub(super) struct Session {
    pub(super) hello: v1::Hello,
    inbound: Streaming<ClientFrame>,
    outbound: mpsc::Sender<Result<ServerFrame, Status>>,
}

struct Service(mpsc::Sender<Session>);

#[tonic::async_trait]
impl Messaging for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ServerFrame, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<ClientFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(client_frame::Frame::Hello(hello)) =
            inbound.message().await?.and_then(|frame| frame.frame)
        else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (outbound, frames) = mpsc::channel(64);
        let session = Session {
            hello,
            inbound,
            outbound,
        };
        self.0
            .send(session)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (sender, sessions) = mpsc::channel(8);
        let serve = tonic::transport::Server::builder()
            .add_service(MessagingServer::new(Service(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move {
            let _ = serve.await;
        });
        Self {
            address,
            sessions,
            task,
        }
    }

    /// The next session, before its greeting.
    pub(super) async fn accept(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv())
            .await
            .expect("a session in time")
            .expect("the server runs")
    }

    /// The next session, greeted, with room for many messages and the cursor at the start.
    pub(super) async fn welcome(&mut self) -> Session {
        let session = self.accept().await;
        session.welcome(100, 0).await;
        session
    }

    pub(super) fn options(&self) -> Options {
        options(vec![self.address.to_string()])
    }

    pub(super) fn client(&self) -> Client {
        Client::connect(self.options()).expect("sound options")
    }
}

pub(super) fn options(servers: Vec<String>) -> Options {
    let credentials = Credentials {
        user: "alice".to_owned(),
        device: 1,
        device_name: "phone".to_owned(),
        key: Bytes::from_static(b"key"),
        servers: Vec::new(),
    };
    Options {
        backoff_min: Duration::from_millis(2),
        backoff_max: Duration::from_millis(20),
        ..Options::new(servers, credentials)
    }
}

impl Session {
    /// With a window of which one conversation may have all.
    pub(super) async fn welcome(&self, in_flight_max: u32, committed: u64) {
        self.greet(in_flight_max, 0, committed, None).await;
    }

    /// Greeted as a session of this epoch.
    pub(super) async fn welcome_as(
        &self,
        in_flight_max: u32,
        committed: u64,
        epoch: Option<v1::Epoch>,
    ) {
        self.greet(in_flight_max, 0, committed, epoch).await;
    }

    /// With a window of which one conversation may have this share.
    pub(super) async fn welcome_sharing(&self, in_flight_max: u32, conversation: u32) {
        self.greet(in_flight_max, conversation, 0, None).await;
    }

    async fn greet(
        &self,
        in_flight_max: u32,
        conversation: u32,
        committed: u64,
        epoch: Option<v1::Epoch>,
    ) {
        self.say(server_frame::Frame::Welcome(v1::Welcome {
            epoch,
            node: "node-1".to_owned(),
            server_time_ms: 1_000_000,
            cursor: Some(place(committed)),
            in_flight_max,
            conversation_in_flight_max: conversation,
            body_bytes_max: 10,
            ..v1::Welcome::default()
        }))
        .await;
    }

    pub(super) async fn say(&self, frame: server_frame::Frame) {
        self.outbound
            .send(Ok(ServerFrame { frame: Some(frame) }))
            .await
            .expect("the client is there");
    }

    pub(super) async fn goodbye(self, code: v1::Code, servers: &[String]) {
        self.say(server_frame::Frame::Goodbye(v1::Goodbye {
            error: Some(error(code)),
            servers: servers.to_vec(),
            after_ms: 0,
        }))
        .await;
    }

    /// The next frame but pings, which are answered.
    pub(super) async fn hear(&mut self) -> client_frame::Frame {
        loop {
            let frame = timeout(PATIENCE, self.inbound.message())
                .await
                .expect("a frame in time")
                .expect("the session lives")
                .expect("the session goes on");
            match frame.frame.expect("a known frame") {
                client_frame::Frame::Ping(ping) => {
                    let pong = v1::Pong { nonce: ping.nonce };
                    self.say(server_frame::Frame::Pong(pong)).await;
                }
                frame => return frame,
            }
        }
    }

    pub(super) async fn hear_send(&mut self) -> v1::Send {
        match self.hear().await {
            client_frame::Frame::Send(send) => send,
            other => panic!("expected a send, not {other:?}"),
        }
    }

    /// The next `count` sends; their ids and positions as `"a1 b2"`, and the frames.
    pub(super) async fn hear_sends(&mut self, count: usize) -> (String, Vec<v1::Send>) {
        let mut sends = Vec::new();
        for _ in 0..count {
            sends.push(self.hear_send().await);
        }
        let words: Vec<String> = sends
            .iter()
            .map(|send| format!("{}{}", send.id, send.position))
            .collect();
        (words.join(" "), sends)
    }

    /// Until the client ends the session.
    pub(super) async fn answer_pings(&mut self) {
        while let Ok(Some(frame)) = self.inbound.message().await {
            if let Some(client_frame::Frame::Ping(ping)) = frame.frame {
                let pong = v1::Pong { nonce: ping.nonce };
                self.say(server_frame::Frame::Pong(pong)).await;
            }
        }
    }

    /// The next frame, whatever it is, unanswered.
    pub(super) async fn hear_any(&mut self) -> client_frame::Frame {
        let frame = timeout(PATIENCE, self.inbound.message()).await;
        let frame = frame.expect("a frame in time").expect("the session lives");
        frame.and_then(|frame| frame.frame).expect("a known frame")
    }

    /// The client keeps quiet, pings apart.
    pub(super) async fn hear_nothing_for(&mut self, pause: Duration) {
        let heard = timeout(pause, self.hear()).await;
        assert!(heard.is_err(), "unexpected {heard:?}");
    }

    pub(super) async fn accept(&self, send: &v1::Send, seq: u64) {
        self.answer(send, v1::Status::Accepted, seq).await;
    }

    pub(super) async fn answer(&self, send: &v1::Send, status: v1::Status, seq: u64) {
        self.say(server_frame::Frame::Answer(v1::SendAnswer {
            id: send.id.clone(),
            to: send.to.clone(),
            status: status as i32,
            place: Some(place(seq)),
            error: None,
        }))
        .await;
    }

    pub(super) async fn refuse(&self, send: &v1::Send, error: v1::Error) {
        self.say(server_frame::Frame::Answer(v1::SendAnswer {
            id: send.id.clone(),
            to: send.to.clone(),
            status: v1::Status::Refused as i32,
            place: None,
            error: Some(error),
        }))
        .await;
    }

    pub(super) async fn entries(&self, seqs: impl IntoIterator<Item = u64>) {
        let entry = |seq| v1::Entry {
            seq,
            envelope: Some(v1::Envelope {
                id: format!("m{seq}"),
                from: "bob".to_owned(),
                ..v1::Envelope::default()
            }),
        };
        self.say(server_frame::Frame::Entries(v1::Entries {
            incarnation: 1,
            entries: seqs.into_iter().map(entry).collect(),
            skipped: Vec::new(),
        }))
        .await;
    }

    pub(super) async fn receipt(&self, status: v1::Status, up_to_seq: u64) {
        self.say(server_frame::Frame::Receipts(v1::Receipts {
            receipts: vec![v1::Receipt {
                revision: up_to_seq,
                peer: "bob".to_owned(),
                status: status as i32,
                incarnation: 1,
                up_to_seq,
                expired: Vec::new(),
            }],
            missed_up_to: 0,
        }))
        .await;
    }

    pub(super) async fn watching(&self) {
        self.say(server_frame::Frame::Watching(v1::Watching {}))
            .await;
    }
}

pub(super) fn place(seq: u64) -> v1::Cursor {
    v1::Cursor {
        incarnation: 1,
        seq,
    }
}

pub(super) fn error(code: v1::Code) -> v1::Error {
    v1::Error {
        code: code as i32,
        retryable: (32..64).contains(&(code as i32)),
        ..v1::Error::default()
    }
}

pub(super) fn gap(expected_position: u64) -> v1::Error {
    v1::Error {
        expected_position,
        ..error(v1::Code::PositionGap)
    }
}

/// Fails instead of waiting for ever.
pub(super) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("in time")
}

//! One session on the wire: connect, greet, and two streams of frames.

use std::time::Duration;

use roost_proto::v1::messaging_client::MessagingClient;
use roost_proto::v1::{self, ClientFrame, Code, ServerFrame, client_frame, server_frame};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::error::{Error, Refusal};

/// Frames between the client's task and the transport.
const OUTBOUND_FRAMES: usize = 64;
/// The largest frame taken; a server sends no more bodies at once than the window.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// What the server may send ahead of our reading.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) outbound: mpsc::Sender<ClientFrame>,
    pub(crate) inbound: Streaming<ServerFrame>,
}

/// Why there is no session, or no more.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Try again.
    Lost(String),
    /// Try again where and when the server says.
    Elsewhere {
        reason: String,
        servers: Vec<String>,
        after: Duration,
    },
    /// Attach again without a cursor.
    BadCursor(Refusal),
    /// Never try again.
    Final(Error),
}

impl Connection {
    /// Connects and says hello; the first frame that comes back is a welcome.
    pub(crate) async fn open(
        server: String,
        hello: v1::Hello,
        limit: Duration,
    ) -> Result<(Self, v1::Welcome), Failure> {
        match timeout(limit, Self::greet(&server, hello)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Lost(format!(
                "{server} did not answer within {limit:?}"
            ))),
        }
    }

    async fn greet(server: &str, hello: v1::Hello) -> Result<(Self, v1::Welcome), Failure> {
        let lost =
            |error: &dyn std::error::Error| Failure::Lost(format!("{server}: {}", root(error)));
        let channel = Endpoint::from_shared(server.to_owned())
            .map_err(|_| Failure::Final(Error::Invalid(format!("{server} is not a URL"))))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .connect()
            .await
            .map_err(|error| lost(&error))?;
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES);
        let hello = ClientFrame {
            frame: Some(client_frame::Frame::Hello(hello)),
        };
        if outbound.send(hello).await.is_err() {
            return Err(Failure::Lost("the transport is closed".to_owned()));
        }
        let mut inbound = MessagingClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .session(ReceiverStream::new(frames))
            .await
            .map_err(|status| of_status(server, &status))?
            .into_inner();
        let first = inbound
            .message()
            .await
            .map_err(|status| of_status(server, &status))?;
        match first.and_then(|frame| frame.frame) {
            Some(server_frame::Frame::Welcome(welcome)) => {
                Ok((Self { outbound, inbound }, welcome))
            }
            Some(server_frame::Frame::Goodbye(goodbye)) => Err(of_goodbye(goodbye)),
            Some(_) => Err(Failure::Lost(format!("{server} did not greet"))),
            None => Err(Failure::Lost(format!("{server} ended the session"))),
        }
    }
}

pub(crate) fn of_goodbye(goodbye: v1::Goodbye) -> Failure {
    let refusal = goodbye.error.map(Refusal::from);
    let elsewhere = |reason: String, pause: Option<Duration>| Failure::Elsewhere {
        reason,
        servers: goodbye.servers,
        after: Duration::from_millis(goodbye.after_ms).max(pause.unwrap_or_default()),
    };
    match refusal {
        None => elsewhere("the server said goodbye".to_owned(), None),
        Some(refusal) => match refusal.code {
            Code::Unauthenticated => Failure::Final(Error::Unauthenticated(refusal)),
            Code::Displaced => Failure::Final(Error::Displaced),
            Code::BadCursor => Failure::BadCursor(refusal),
            // A broken node: another one may do.
            Code::Internal | Code::Unspecified => elsewhere(refusal.to_string(), None),
            _ if refusal.retryable => elsewhere(refusal.to_string(), refusal.retry_after),
            _ => Failure::Final(Error::Ended(refusal)),
        },
    }
}

pub(crate) fn of_status(server: &str, status: &tonic::Status) -> Failure {
    let refusal = |code| Refusal::of(code, status.message());
    match status.code() {
        tonic::Code::Unauthenticated => {
            Failure::Final(Error::Unauthenticated(refusal(Code::Unauthenticated)))
        }
        tonic::Code::InvalidArgument => Failure::Final(Error::Ended(refusal(Code::Invalid))),
        code => Failure::Lost(format!("{server}: {code:?}: {}", status.message())),
    }
}

/// The innermost cause: "transport error" alone tells nobody anything.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

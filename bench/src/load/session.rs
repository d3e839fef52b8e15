//! One session on the wire, without retries: what breaks ends the run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use roost_client::wire::v1::messaging_client::MessagingClient;
use roost_client::wire::v1::{
    Attach, ClientFrame, Hello, ServerFrame, client_frame::Frame as Out, server_frame::Frame as In,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::users;

/// A frame may hold a whole window of bodies.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// For connecting and greeting; a storm of sessions takes its time.
const OPEN_WITHIN: Duration = Duration::from_secs(60);

/// A session that has been greeted.
pub(crate) struct Session {
    /// As full as its user lets it get: each bounds what it has under way.
    outbound: mpsc::UnboundedSender<ClientFrame>,
    inbound: Streaming<ServerFrame>,
    clock: ServerClock,
}

/// The server's clock, as the greeting told it.
#[derive(Clone, Copy)]
struct ServerClock {
    greeted: Instant,
    time_ms: u64,
}

impl Session {
    /// Connects as this user's device, and attaches if told to.
    ///
    /// # Errors
    /// When the server does not welcome it.
    pub(crate) async fn open(server: &str, user: u32, attach: bool) -> Result<Self> {
        let opening = tokio::time::timeout(OPEN_WITHIN, Self::greet(server, user, attach));
        let opened = opening.await.context("the server took too long");
        opened
            .flatten()
            .with_context(|| format!("a session at {server}"))
    }

    async fn greet(server: &str, user: u32, attach: bool) -> Result<Self> {
        let channel = Endpoint::from_shared(server.to_owned())?
            .tcp_nodelay(true)
            .connect()
            .await?;
        let (outbound, frames) = mpsc::unbounded_channel();
        outbound.send(frame(Out::Hello(Hello {
            user: users::name(user),
            device: users::DEVICE,
            key: users::key(user),
            attach: attach.then(Attach::default),
            watch: false,
            client: "bench".to_owned(),
        })))?;
        let mut inbound = MessagingClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .session(UnboundedReceiverStream::new(frames))
            .await?
            .into_inner();
        match inbound.message().await?.and_then(|frame| frame.frame) {
            Some(In::Welcome(welcome)) => Ok(Self {
                outbound,
                inbound,
                clock: ServerClock {
                    greeted: Instant::now(),
                    time_ms: welcome.server_time_ms,
                },
            }),
            Some(In::Goodbye(goodbye)) => bail!("refused: {:?}", goodbye.error),
            other => bail!("no welcome but {other:?}"),
        }
    }

    /// The server's clock now, milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        let since = self.clock.greeted.elapsed().as_millis();
        self.clock.time_ms + u64::try_from(since).unwrap_or(u64::MAX)
    }

    /// # Errors
    /// When the session is over.
    pub(crate) fn send(&self, out: Out) -> Result<()> {
        self.outbound
            .send(frame(out))
            .context("the session is over")
    }

    /// The next frame. May be dropped and called again.
    ///
    /// # Errors
    /// When the session is over.
    pub(crate) async fn next(&mut self) -> Result<In> {
        match self.inbound.message().await?.and_then(|frame| frame.frame) {
            Some(In::Goodbye(goodbye)) => bail!("the server said goodbye: {:?}", goodbye.error),
            Some(frame) => Ok(frame),
            None => bail!("the server ended the session"),
        }
    }
}

fn frame(out: Out) -> ClientFrame {
    ClientFrame { frame: Some(out) }
}

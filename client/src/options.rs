//! What a caller may choose, with the defaults.

use std::time::Duration;

use roost_proto::v1::Kind;

use crate::credentials::Credentials;
use crate::error::Error;
use crate::message::Cursor;

/// How a client connects and how much it holds.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs (`http://host:port`) or `host:port`; at least one. The client starts at any of them.
    pub servers: Vec<String>,
    /// Who connects.
    pub credentials: Credentials,
    /// Receive the device's queue. A newer attachment of the same device displaces an older one.
    pub attach: Option<AttachOptions>,
    /// See receipts as they come; displaces nobody and moves no cursor.
    pub watch: bool,
    /// Name and version of the software, for the operator.
    pub software: String,
    /// Messages handed to the client and not answered, at most; beyond it [`send`](crate::Client::send) waits.
    pub pending_max: usize,
    /// The same for messages to one recipient, so that a conversation that stands still leaves room for the others.
    pub conversation_pending_max: usize,
    /// Messages whose delivery is waited for, at most; beyond it
    /// [`wait_status`](crate::Client::wait_status) waits for room first.
    pub open_max: usize,
    /// The same for messages to one recipient.
    pub conversation_open_max: usize,
    /// For a connection with its greeting.
    pub connect_timeout: Duration,
    /// A ping goes out when the server was silent this long.
    pub ping_after: Duration,
    /// A connection on which nothing came for this long is given up. More than `ping_after`.
    pub silence_max: Duration,
    /// A message without any answer on a living connection for this long makes the client connect anew.
    pub answer_timeout: Duration,
    /// The pause after a first failure; doubled, with jitter, up to `backoff_max`.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// How long [`close`](crate::Client::close) waits for acknowledgements to be committed.
    pub close_timeout: Duration,
}

impl Options {
    /// Sends only, with the defaults.
    pub fn new(servers: Vec<String>, credentials: Credentials) -> Self {
        Self {
            servers,
            credentials,
            attach: None,
            watch: false,
            software: concat!("roost-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            pending_max: 1024,
            conversation_pending_max: 256,
            open_max: 16_384,
            conversation_open_max: 4096,
            connect_timeout: Duration::from_secs(3),
            ping_after: Duration::from_secs(3),
            silence_max: Duration::from_secs(8),
            answer_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(3),
            close_timeout: Duration::from_secs(5),
        }
    }

    /// Also receives the device's queue.
    #[must_use]
    pub fn attach(self, attach: AttachOptions) -> Self {
        Self {
            attach: Some(attach),
            ..self
        }
    }

    /// Also sees receipts.
    #[must_use]
    pub fn watch(self) -> Self {
        Self {
            watch: true,
            ..self
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Invalid(what.to_owned()));
        if self.servers.is_empty() {
            return wrong("name at least one server");
        }
        let bounds = [
            self.pending_max,
            self.conversation_pending_max,
            self.open_max,
            self.conversation_open_max,
        ];
        if bounds.contains(&0) {
            return wrong(
                "pending_max, open_max and their shares for one conversation are at least 1",
            );
        }
        if self.silence_max <= self.ping_after {
            return wrong("silence_max is longer than ping_after");
        }
        if self.backoff_min.is_zero() || self.backoff_max < self.backoff_min {
            return wrong("backoff_min is positive and backoff_max no shorter");
        }
        Ok(())
    }
}

/// How the queue is received.
#[derive(Clone, Copy, Debug)]
pub struct AttachOptions {
    /// Everything up to here is safely the caller's; `None`: up to where the server has the device's cursor.
    pub cursor: Option<Cursor>,
    /// Entries that may be unacknowledged at the client, at most.
    pub window_entries: u32,
    /// The same in bytes of bodies; 0: the server's default.
    pub window_bytes: u64,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            cursor: None,
            window_entries: 256,
            window_bytes: 0,
        }
    }
}

/// What a message may have beside recipient and body.
#[derive(Clone, Debug)]
pub struct SendOptions {
    /// 1 to 64 bytes, unique for this device and recipient; `None` draws one.
    pub id: Option<String>,
    /// What the body is.
    pub kind: Kind,
    /// `None`: the server's default.
    pub ttl: Option<Duration>,
    /// When the id was made, milliseconds since the Unix epoch, for callers that keep ids across restarts: the server
    /// refuses an id that is too old to be remembered, instead of accepting it twice. `None`: now.
    pub sent_at_ms: Option<u64>,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            id: None,
            kind: Kind::Text,
            ttl: None,
            sent_at_ms: None,
        }
    }
}

impl SendOptions {
    /// Under this id.
    #[must_use]
    pub fn id(self, id: impl Into<String>) -> Self {
        Self {
            id: Some(id.into()),
            ..self
        }
    }

    /// The body is this.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Lives this long.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self {
            ttl: Some(ttl),
            ..self
        }
    }
}

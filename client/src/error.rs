//! Why a session ended, and why a server refused something.

use std::fmt;
use std::time::Duration;

use roost_proto::v1::{self, Code};

/// What a server answered instead of doing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable; `docs/PROTOCOL.md` says what each means.
    pub code: Code,
    /// For people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long the server asks to wait before that.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.as_str_name())?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// A refusal that this library makes itself.
    pub(crate) fn of(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: is_retryable(code),
            retry_after: None,
        }
    }
}

impl From<v1::Error> for Refusal {
    fn from(error: v1::Error) -> Self {
        let code = error.code();
        Self {
            code,
            retryable: error.retryable || is_retryable(code),
            retry_after: (error.retry_after_ms > 0)
                .then(|| Duration::from_millis(error.retry_after_ms)),
            message: error.message,
        }
    }
}

/// Codes 32 to 63 are retryable, whatever they will be.
fn is_retryable(code: Code) -> bool {
    (32..64).contains(&(code as i32))
}

/// Why a client is over, or an operation did not happen. What is not retryable has ended the client for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Unknown user, unknown device or wrong key; or the device has been removed.
    #[error(
        "the server does not accept these credentials ({0}): add the device again, or use another's"
    )]
    Unauthenticated(Refusal),
    /// A newer session of the same device receives the queue now.
    #[error("another session of this device has taken over the queue")]
    Displaced,
    /// The server ended the session for a reason that no retry mends.
    #[error("the server ended the session: {0}")]
    Ended(Refusal),
    /// The server refused the operation.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// No server answers; the client goes on trying.
    #[error("no server can be reached: {0}")]
    Unreachable(String),
    /// The options make no sense.
    #[error("{0}")]
    Invalid(String),
    /// The client has been closed, or dropped.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// Whether the same operation may succeed later, with the same client.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(refusal) => refusal.retryable,
            Self::Unauthenticated(_)
            | Self::Displaced
            | Self::Ended(_)
            | Self::Invalid(_)
            | Self::Closed => false,
        }
    }
}

/// What stands in the way at the moment, while the client goes on trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no session; why the last attempt failed or the last session ended.
    Disconnected(String),
    /// There is a session; the last retryable refusal since something succeeded.
    Refused(Refusal),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected(why) => write!(f, "no session: {why}"),
            Self::Refused(refusal) => write!(f, "{refusal}"),
        }
    }
}

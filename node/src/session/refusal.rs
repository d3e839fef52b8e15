//! Errors as clients see them.

use roost_proto::v1::{Code, Error};

use crate::router;

/// The same request will never succeed.
pub(super) fn last(code: Code, message: &str) -> Error {
    Error {
        code: code.into(),
        message: message.to_owned(),
        ..Error::default()
    }
}

/// Send it again, ids unchanged, after this many milliseconds (0: at the client's own pace).
pub(super) fn retryable(code: Code, message: &str, retry_after_ms: u64) -> Error {
    Error {
        retryable: true,
        retry_after_ms,
        ..last(code, message)
    }
}

/// What the router could not do.
pub(super) fn from_router(error: &router::Error) -> Error {
    /// No majority: coming back at once would not help.
    const UNAVAILABLE_RETRY_MS: u64 = 500;
    /// By then a leader whose own disk is low has handed over. If all are low, it is not so often that it burdens them.
    const DISK_LOW_RETRY_MS: u64 = 1_000;
    let message = error.to_string();
    match error {
        router::Error::Unavailable { .. } => {
            retryable(Code::Unavailable, &message, UNAVAILABLE_RETRY_MS)
        }
        router::Error::Overloaded { retry_after_ms } => {
            retryable(Code::Overloaded, &message, *retry_after_ms)
        }
        router::Error::DiskLow => retryable(Code::DiskLow, &message, DISK_LOW_RETRY_MS),
        router::Error::Internal(_) => {
            tracing::error!(%error, "a request failed inside");
            retryable(
                Code::Internal,
                "the server failed; its log says how",
                UNAVAILABLE_RETRY_MS,
            )
        }
    }
}

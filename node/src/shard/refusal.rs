//! How the state machine says no. Whether to retry follows from the code alone: codes from 32 to 63 are retryable.

use std::ops::RangeInclusive;

use roost_proto::storage::{Outcome, outcome};
use roost_proto::v1::{Code, Error};

const RETRYABLE: RangeInclusive<i32> = 32..=63;

/// An error as it goes into an answer. The message speaks to people and never quotes content.
pub(crate) fn refusal(code: Code, message: &str) -> Error {
    Error {
        code: code.into(),
        message: message.to_owned(),
        retryable: RETRYABLE.contains(&i32::from(code)),
        ..Error::default()
    }
}

/// A whole command refused; it has changed nothing.
pub(crate) fn refused(code: Code, message: &str) -> Outcome {
    Outcome {
        outcome: Some(outcome::Outcome::Refused(refusal(code, message))),
    }
}

/// A command done, with more of the same to do or not.
pub(crate) fn done(more: bool) -> Outcome {
    Outcome {
        outcome: Some(outcome::Outcome::Done(roost_proto::storage::Done { more })),
    }
}

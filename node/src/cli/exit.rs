//! Exit codes, and what becomes of every error.

use std::fmt;
use std::io;

use roost_client::{AdminError, Code, CredentialsError, Error, Refusal, Trouble};

/// Shown below `roost --help`.
pub(super) const HELP: &str = "\
Exit codes:
  0   done
  1   refused for good (the message says why)
  2   internal error
  4   time ran out; nothing is known about what is unanswered: try again under the same id
  64  usage or configuration
  69  no server answers, or none has a majority
  77  credentials or admin token";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    Refused,
    Internal,
    TimedOut,
    Usage,
    Unavailable,
    Credentials,
}

impl Exit {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Internal => 2,
            Self::TimedOut => 4,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Credentials => 77,
        }
    }
}

/// Why a command did not do what it was asked: one line for people, one code for scripts.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Internal, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Time ran out while this stood in the way: the servers', or nobody's fault that we know of.
    pub(super) fn timed_out(what: &str, trouble: Option<&Trouble>) -> Self {
        let no_majority = |refusal: &Refusal| refusal.code == Code::Unavailable;
        match trouble {
            None => Self::new(Exit::TimedOut, what),
            Some(Trouble::Refused(refusal)) if !no_majority(refusal) => {
                Self::new(Exit::TimedOut, format!("{what} ({refusal})"))
            }
            Some(Trouble::Refused(refusal)) => Self::new(
                Exit::Unavailable,
                format!("{what}: no majority of servers ({refusal}); see `roost status`"),
            ),
            Some(Trouble::Disconnected(why)) => Self::new(
                Exit::Unavailable,
                format!("{what}: no server ({why}); check --server, or start `roost dev`"),
            ),
        }
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever a server said.
        for (i, line) in self.message.lines().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            f.write_str(line.trim())?;
        }
        Ok(())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Unauthenticated(_) => Exit::Credentials,
            Error::Refused(refusal) => return refusal.clone().into(),
            Error::Displaced | Error::Ended(_) => Exit::Refused,
            Error::Unreachable(_) => Exit::Unavailable,
            Error::Invalid(_) => Exit::Usage,
            _ => Exit::Internal,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.code {
            Code::Unauthenticated => Exit::Credentials,
            Code::Unavailable => Exit::Unavailable,
            Code::Internal => Exit::Internal,
            _ => Exit::Refused,
        };
        Self::new(exit, refusal.to_string())
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        let exit = match &error {
            AdminError::Unauthenticated(_) => Exit::Credentials,
            AdminError::Refused(_) => Exit::Refused,
            AdminError::Unavailable(_) => Exit::Unavailable,
            AdminError::Invalid(_) => Exit::Usage,
            _ => Exit::Internal,
        };
        let hint = match exit {
            Exit::Credentials => "; check --admin-token",
            Exit::Unavailable => "; check --server, or start `roost dev`",
            _ => "",
        };
        Self::new(exit, format!("{error}{hint}"))
    }
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Self {
        let exit = match &error {
            CredentialsError::Name(_)
            | CredentialsError::Ambiguous { .. }
            | CredentialsError::Exists(_) => Exit::Usage,
            _ => Exit::Credentials,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::internal(format!("cannot write the output: {error}"))
    }
}

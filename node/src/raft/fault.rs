//! What the store reported to a group, kept apart from openraft's own errors, which forget its kind.

use std::sync::Arc;

use openraft::{AnyError, ErrorSubject, ErrorVerb, StorageIOError};
use parking_lot::Mutex;

use super::types::StorageError;
use crate::storage::Error;

/// The first error that a group's log or state met. openraft stops the group at that moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Fault(Arc<Mutex<Option<Error>>>);

impl Fault {
    /// Remembers the error and says it in openraft's words.
    pub(super) fn report(
        &self,
        subject: ErrorSubject<u64>,
        verb: ErrorVerb,
        error: Error,
    ) -> StorageError {
        let source = AnyError::new(&error);
        self.0.lock().get_or_insert(error);
        StorageIOError::new(subject, verb, source).into()
    }

    pub(super) fn first(&self) -> Option<Error> {
        self.0.lock().clone()
    }
}

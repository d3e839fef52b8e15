//! What this binary is and what it understands.

use std::sync::LazyLock;

use crate::storage::value;
use crate::versions::{CLIENT_WIRE, FEATURE_LEVEL, PEER_WIRE};

static TEXT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{} (commit {})\nfeature level {FEATURE_LEVEL}\nwire format {CLIENT_WIRE}\npeer wire format {PEER_WIRE}\nstorage format {}",
        env!("CARGO_PKG_VERSION"),
        env!("ROOST_COMMIT"),
        value::VERSION,
    )
});

/// The package's version with the commit it was built from, and the versions of all formats.
pub(super) fn text() -> &'static str {
    &TEXT
}

//! What this binary is and what it understands.

use std::sync::LazyLock;

use crate::storage::value;

/// Rises when nodes learn a command that older ones do not understand.
const FEATURE_LEVEL: u32 = 1;
/// The `roost.v1` package on the wire.
const WIRE_FORMAT: u32 = 1;

static TEXT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{} (commit {})\nfeature level {FEATURE_LEVEL}\nwire format {WIRE_FORMAT}\nstorage format {}",
        env!("CARGO_PKG_VERSION"),
        env!("ROOST_COMMIT"),
        value::VERSION,
    )
});

/// The package's version with the commit it was built from, and the versions of all formats.
pub(super) fn text() -> &'static str {
    &TEXT
}

//! What needs root: file systems that lose power or fill, syncs that fail or hang.
//!
//! Without root these tests fail and say so; `cargo xtask test` leaves them out, and says so, when it is not root.

mod disk;
mod failing_syncs;
mod full_disk;
mod power_loss;
mod room;
mod syncs;
mod tools;

use std::time::Duration;

/// For any one step of a test, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The exit code of a node that had to stop.
const INTERNAL: i32 = 2;

const ANN: &str = "+15550001";
const BOB: &str = "+15550002";
const CAROL: &str = "+15550003";

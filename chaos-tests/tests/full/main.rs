//! What takes minutes: kills without end, and every system call of the real binary.
//!
//! Run by `cargo xtask test --full`; the binary under test comes from `ROOST_BIN`.

mod kills;
mod memory;
mod saturation;
mod trace;

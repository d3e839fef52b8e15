//! What needs root: file systems that lose power.
//!
//! Without root these tests fail and say so; `cargo xtask test` leaves them out, and says so, when it is not root.

mod disk;
mod power_loss;

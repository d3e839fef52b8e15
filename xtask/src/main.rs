//! What people type: `cargo xtask up`, `demo`, `test`.

fn main() {}

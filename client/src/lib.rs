//! The Rust client library of Roost.

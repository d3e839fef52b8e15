//! The client against a server whose every frame the test writes.

mod incoming;
mod messages;
mod server;
mod sessions;
mod ticking;

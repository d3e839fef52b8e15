//! Roost, a distributed message router: messages roost here until their receiver comes home.
//!
//! Start with `docs/MESSAGE_PATH.md`, which walks one message through these modules. Lowest layer first; a module uses
//! only what stands above it in this list, and a test holds it so.

pub mod config;
pub mod metrics;
pub mod sabotage;
pub mod telemetry;
pub mod types;
pub mod versions;

pub mod auth;
pub mod cluster;
pub mod peer;
pub mod storage;

pub mod meta;
pub mod shard;

pub mod raft;

pub mod replica;

pub mod router;

pub mod controller;
pub mod session;

pub mod edge;

pub mod cli;
pub mod node;

#[cfg(test)]
mod testing;

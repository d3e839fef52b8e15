//! Groups over the store in memory: openraft's own suite, and three replicas in one thread.

#![allow(clippy::unwrap_used)]

mod cluster;
mod elections;
mod power_loss;
mod replicas;
mod suite;

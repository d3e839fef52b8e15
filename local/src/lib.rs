//! A cluster of real Roost node processes on one host.
//!
//! [`Config`] says what the cluster looks like and which `roost` binary runs it, [`Cluster`] starts it and stops it,
//! [`Node`] is one process: started, made ready, signalled, killed, started again over the same data.
//!
//! It writes each node's config as text and speaks to a node only through signals, its log file and its HTTP port. It
//! never links the node, never reads a node's data, and never leaves a process behind: dropping a [`Cluster`] kills its
//! nodes, and when this process dies by whatever cause, `kill -9` included, each node reads the end of its standard
//! input and exits (`exit_with_stdin`).
//!
//! Nodes are counted from 1. With the default base port 7400, node 2 serves clients on 7402, peers on 7502 and HTTP
//! (health, metrics) on 7602.

mod cluster;
mod config;
mod error;
mod http;
mod log;
mod node;
mod ports;
#[cfg(test)]
mod tests;

pub use cluster::Cluster;
pub use config::{Config, Overrides};
pub use error::Error;
pub use http::Answer;
pub use node::Node;
pub use ports::free_base_port;

//! Roost seen from outside: a workload of ordinary clients, the history of what they saw, and the checker that holds
//! it against the contract.
//!
//! Start with [`checker`]: it says in code what Roost promises. [`history`] is its input. Nothing here knows the node's inside; it is reached through the client library and the
//! command line, as users reach it.

pub mod checker;
pub mod history;

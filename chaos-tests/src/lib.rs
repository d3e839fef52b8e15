//! Roost seen from outside: a workload of ordinary clients, the history of what they saw, and the checker that holds
//! it against the contract.
//!
//! Start with [`checker`]: it says in code what Roost promises. [`history`] is its input; a [`witness`] is a client that
//! writes one, [`workload`] lets many of them act, [`lab`] is the cluster they act on, [`cli`] the command line instead
//! of the library. Nothing here knows the node's inside; it is reached as users reach it.

pub mod checker;
pub mod cli;
pub mod history;
pub mod lab;
pub mod witness;
pub mod workload;

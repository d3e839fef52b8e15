//! Roost seen from outside: a workload of ordinary clients, the history of what they saw, and the checker that holds
//! it against the contract.
//!
//! Start with [`checker`]: it says in code what Roost promises. [`history`] is its input; a [`witness`] is a client that
//! writes one, [`workload`] lets many of them act, [`lab`] is the cluster they act on, [`cli`] the command line instead
//! of the library. [`hosts`] are where nodes run when links are to be broken, a [`nemesis`] breaks things and proves it, a
//! [`runner`] puts all of it together (`cargo xtask chaos`). Nothing here knows the node's inside; it is reached as users reach it.

pub mod checker;
pub mod cli;
pub mod history;
pub mod hosts;
pub mod lab;
pub mod nemesis;
pub mod runner;
pub mod witness;
pub mod workload;

//! Real node processes on this host, seen through the client library and the command line.
//!
//! The binary under test comes from `ROOST_BIN`; without it every test here fails. What takes minutes is in
//! `tests/full`, what needs root in `tests/root`.

mod addresses;
mod away;
mod bounds;
mod clock;
mod command_line;
mod damage;
mod deletion;
mod demo;
mod dev;
mod devices;
mod examples;
mod expiry;
mod files;
mod health;
mod kills;
mod repeats;
mod rolling;
mod terminal;
mod text;
mod workload;

use std::time::Duration;

/// For any one step of a test, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

const ANN: &str = "+15550001";
const BOB: &str = "+15550002";
const CAROL: &str = "+15550003";

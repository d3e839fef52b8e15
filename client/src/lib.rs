//! The Rust client library of Roost.
//!
//! [`Client::connect`] starts one background task that owns one session with the cluster and makes it anew for as long
//! as the client lives: on any server of the list, with all that is unanswered sent again in order, ids unchanged.
//! [`Client::send`] answers when the message is accepted (fsynced on a majority of the recipient's shard) or refused for
//! good; what may be retried is retried inside. [`Client::entries`] yields every entry of the queue once;
//! [`Client::ack`] says what is safe. [`Admin`] is what an operator may ask.
//!
//! It promises, while the process lives: order per conversation, every answer once, every entry once. It never drops
//! anything silently, never retries under another id, and keeps nothing on disk but [`Credentials`].
//!
//! Nothing in it grows without end: [`Options`] names what callers may have in hand, in all and of one conversation, and
//! the server's greeting what may be on its way. A conversation that stands still fills its own share and no other's.
//!
//! Inside, the state of a session is pure and moved by frames and instants (`state`, made of `pipeline`, `inbox`, `acks`,
//! `reads` and `ticks`); `driver` owns the task, the connection and the clock.

mod acks;
mod admin;
mod backoff;
mod bounds;
mod client;
mod clock;
mod connection;
mod conversation;
mod credentials;
mod driver;
mod error;
mod inbox;
mod message;
mod options;
mod pipeline;
mod questions;
mod reads;
mod servers;
mod state;
mod streams;
#[cfg(test)]
mod tests;
mod ticks;
mod turns;
mod window;

pub use admin::{Admin, AdminError};
pub use client::{Client, SendHandle};
pub use credentials::{Credentials, CredentialsError, NewDevice};
pub use error::{Error, Refusal, Trouble};
pub use message::{Answer, Cursor, Delivery, Event, Incoming, Receipt};
pub use options::{AttachOptions, Options, SendOptions};
pub use roost_proto::admin::StatusResponse;
pub use roost_proto::v1::{Code, Envelope, Kind, Status};
pub use streams::{Entries, Events, Lagged, Receipts};

/// The protocol as it is on the wire, for programs that do without this library's care, such as load generators.
pub mod wire {
    pub use roost_proto::{admin, v1};
}

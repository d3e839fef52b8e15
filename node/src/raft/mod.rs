//! Consensus: openraft behind an interface of our own.
//!
//! Start with [`Group`]: one replica of a shard. `types` says what openraft is instantiated with, `codec` how its values
//! look on disk and wire, `log_store` and `state_machine` keep them, `states` and `snapshot` move whole states,
//! `network` asks other replicas and `inbox` answers them, `contact` remembers whom this replica heard of and `election`
//! when it stands, `state` tells the layers above, `members` changes the group, `collect` decides what the log keeps,
//! `pace` how fast states are sent.
//!
//! Promises: openraft's types stay in here, every byte on disk and wire is our own, and whatever is answered is durable.

mod codec;
mod collect;
mod contact;
mod election;
mod fault;
mod group;
mod inbox;
mod log_store;
mod members;
mod network;
mod pace;
mod snapshot;
mod state;
mod state_machine;
mod states;
mod timing;
mod types;

#[cfg(test)]
mod tests;

pub use collect::Keep;
pub use group::{FoundError, Group, GroupConfig, ProposeError, ReadError, Stopped};
pub use inbox::Receiving;
pub use members::ChangeError;
pub use pace::Pace;
pub use state::{Failed, Role, State};
pub use state_machine::EffectSink;
pub use states::View;
pub use timing::Timing;
pub use types::seed;

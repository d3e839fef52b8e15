//! Which nodes should hold which shard. Pure: the same nodes give the same answer everywhere and for ever.
//!
//! The ring is a wish, placement in the meta shard the target, a shard's own committed membership the truth.

pub mod placement;
pub mod plan;
mod ring;

pub use placement::place;
pub use plan::{PlanError, plan};
pub use ring::{Ring, VIRTUAL_NODES};

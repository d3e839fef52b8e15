//! Listeners: each translates a protocol and holds no policy.

pub mod admin;
pub mod grpc;
pub mod http;
pub mod peer;

use std::sync::{Arc, OnceLock};

use crate::peer::Peers;
use crate::router::Router;
use crate::session::Sessions;

/// What clients' listeners serve, once the node belongs to a cluster. They answer from the first moment, and until
/// then that the node is not ready.
#[derive(Default)]
pub struct Seat(OnceLock<Served>);

/// A node that belongs to a cluster, as listeners see it.
pub struct Served {
    /// Its sessions.
    pub sessions: Arc<Sessions>,
    /// The way to every shard.
    pub router: Arc<Router>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
}

impl Seat {
    /// The node serves from now on. Only the first call counts.
    pub fn take(&self, served: Served) {
        drop(self.0.set(served));
    }

    /// What is served.
    ///
    /// # Errors
    /// `UNAVAILABLE` while the node waits for its cluster.
    pub fn served(&self) -> Result<&Served, tonic::Status> {
        self.0.get().ok_or_else(|| {
            tonic::Status::unavailable("the node waits for its cluster; see /readyz")
        })
    }
}

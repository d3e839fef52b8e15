//! Sessions that attach and then do nothing.

use anyhow::Result;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::task::JoinSet;

use super::session::Session;
use super::{Idle, Load, OPENING_AT_A_TIME, server};

/// All of them, open for as long as this lives.
pub(super) struct Open {
    sessions: Vec<Session>,
}

impl Open {
    pub(super) async fn new(job: Idle) -> Result<Self> {
        let sessions = stream::iter(job.users.iter())
            .map(|user| Session::open(server(&job.servers, user), user, true))
            .buffer_unordered(OPENING_AT_A_TIME)
            .try_collect()
            .await?;
        Ok(Self { sessions })
    }
}

impl Load for Open {
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>) {
        for mut session in self.sessions {
            // Nothing comes; it ends only when the session does, and that ends the run.
            tasks.spawn_local(async move { session.next().await.map(drop) });
        }
    }
}

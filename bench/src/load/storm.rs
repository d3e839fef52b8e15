//! Users who all connect at once and take what waits for them.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::receiver::Receiver;
use super::recorder::Recorder;
use super::session::Session;
use super::{Load, Storm, server};

/// Connections that are being made at the same time: a listener's backlog is 1,024.
const CONNECTING_MAX: usize = 900;

/// All users, away.
pub(super) struct Open {
    job: Storm,
    recorder: Rc<Recorder>,
}

impl Open {
    pub(super) fn new(job: Storm, recorder: Rc<Recorder>) -> Self {
        Self { job, recorder }
    }
}

impl Load for Open {
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>) {
        let Self { job, recorder } = *self;
        let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
        let (all, stay) = tokio::sync::watch::channel(());
        for user in job.users.iter() {
            let at = server(&job.servers, user).to_owned();
            let (recorder, connecting) = (Rc::clone(&recorder), Arc::clone(&connecting));
            let (done, mut stay) = (all.clone(), stay.clone());
            tasks.spawn_local(async move {
                let permit = connecting.acquire_owned().await?;
                let session = Session::open(&at, user, true).await?;
                drop(permit);
                let receiver = Receiver::new(session, Rc::clone(&recorder));
                let session = receiver.take(job.messages).await?;
                recorder.count(job.messages);
                // Whoever is done stays connected until all are.
                drop(done);
                while stay.changed().await.is_ok() {}
                drop(session);
                Ok(())
            });
        }
    }
}

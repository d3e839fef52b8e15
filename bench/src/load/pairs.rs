//! Pairs that are both there: what the whole way costs, to the sender's *delivered* and its acknowledgement.

use std::rc::Rc;

use anyhow::Result;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::task::JoinSet;

use super::recorder::Recorder;
use super::sender::{Recipients, Sender, Until};
use super::sends::paces;
use super::session::Session;
use super::{Load, OPENING_AT_A_TIME, Pairs, server};
use crate::users::Users;

/// All pairs of this process, connected and attached.
pub(super) struct Open {
    job: Pairs,
    senders: Vec<Session>,
    receivers: Vec<Session>,
    recorder: Rc<Recorder>,
}

impl Open {
    pub(super) async fn new(job: Pairs, recorder: Rc<Recorder>) -> Result<Self> {
        let senders = attached(&job.servers, job.senders, 0).await?;
        // One server further than the sender: a message crosses from one node to another.
        let receivers = attached(&job.servers, job.receivers, 1).await?;
        Ok(Self {
            job,
            senders,
            receivers,
            recorder,
        })
    }
}

async fn attached(servers: &[String], users: Users, shift: u32) -> Result<Vec<Session>> {
    stream::iter((0u32..).zip(users.iter()))
        .map(|(n, user)| Session::open(server(servers, n + shift), user, true))
        .buffered(OPENING_AT_A_TIME)
        .try_collect()
        .await
}

impl Load for Open {
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>) {
        let job = self.job;
        for session in self.receivers {
            let receiver = super::receiver::Receiver::new(session, Rc::clone(&self.recorder));
            tasks.spawn_local(receiver.run());
        }
        let paces = paces(job.pace, self.senders.len());
        let pairs = self
            .senders
            .into_iter()
            .zip(job.receivers.iter())
            .zip(paces);
        for ((session, to), pace) in pairs {
            let sender = Sender {
                session,
                recorder: Rc::clone(&self.recorder),
                recipients: Recipients {
                    users: Users::new(to, 1),
                    by_chance: false,
                    state: 0,
                },
                body_bytes: job.body_bytes,
                pace,
                until: Until::Told,
                left: None,
            };
            tasks.spawn_local(sender.run());
        }
    }
}

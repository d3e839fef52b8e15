//! Senders whose recipients are not there: what accepting costs.

use std::rc::Rc;

use anyhow::Result;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::recorder::Recorder;
use super::sender::{Recipients, Sender, SenderPace, Until};
use super::session::Session;
use super::{Choice, Load, OPENING_AT_A_TIME, Pace, Sends, pacer, server};

/// All senders of this process, connected.
pub(super) struct Open {
    job: Sends,
    sessions: Vec<Session>,
    recorder: Rc<Recorder>,
}

impl Open {
    pub(super) async fn new(job: Sends, recorder: Rc<Recorder>) -> Result<Self> {
        let sessions = stream::iter(job.senders.iter())
            .map(|user| Session::open(server(&job.servers, user), user, false))
            .buffered(OPENING_AT_A_TIME)
            .try_collect()
            .await?;
        Ok(Self {
            job,
            sessions,
            recorder,
        })
    }
}

impl Load for Open {
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>) {
        let Self {
            job,
            sessions,
            recorder,
        } = *self;
        let paces = paces(job.pace, sessions.len());
        let count = sessions.len() as u64;
        for (n, (session, pace)) in (0u64..).zip(sessions.into_iter().zip(paces)) {
            let (by_chance, state) = match job.choice {
                // Multiplied by an odd number far apart, so that no two senders choose alike.
                Choice::Any => (true, (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                Choice::InTurn => (false, n * u64::from(job.recipients.count) / count),
            };
            let sender = Sender {
                session,
                recorder: Rc::clone(&recorder),
                recipients: Recipients {
                    users: job.recipients,
                    by_chance,
                    state,
                },
                body_bytes: job.body_bytes,
                pace,
                until: Until::Accepted,
                left: job.messages.map(|messages| share(messages, count, n)),
            };
            tasks.spawn_local(sender.run());
        }
    }
}

/// Of `all`, what the `n`th of `count` gets.
fn share(all: u64, count: u64, n: u64) -> u64 {
    all / count + u64::from(n < all % count)
}

/// One pace for each sender; in open loop they take turns.
pub(super) fn paces(pace: Pace, senders: usize) -> Vec<SenderPace> {
    match pace {
        Pace::Window(window) => (0..senders).map(|_| SenderPace::Window(window)).collect(),
        Pace::PerSecond(rate) => {
            let (turns, dues): (Vec<_>, Vec<_>) =
                (0..senders).map(|_| mpsc::unbounded_channel()).unzip();
            pacer::start(rate, turns);
            dues.into_iter().map(SenderPace::Due).collect()
        }
    }
}

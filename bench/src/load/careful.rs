//! Pairs that use the client library, because what happens to them breaks sessions. Each message is accounted for.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use roost_client::{
    Answer, AttachOptions, Client, Credentials, Entries, Error, Incoming, Options, SendOptions,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::recorder::Recorder;
use super::sender::SenderPace;
use super::sends::paces;
use super::{Careful, Load, Pace};
use crate::users;

/// Without any news for so long, what is still missing is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// All pairs of this process, connected.
pub(super) struct Open {
    job: Careful,
    pairs: Vec<(Client, Client)>,
    recorder: Rc<Recorder>,
}

impl Open {
    pub(super) async fn new(job: Careful, recorder: Rc<Recorder>) -> Result<Self> {
        let mut pairs = Vec::new();
        for (sender, receiver) in job.senders.iter().zip(job.receivers.iter()) {
            let sender = Client::connect(options(&job, sender))?;
            let attached = options(&job, receiver).attach(AttachOptions::default());
            pairs.push((sender, Client::connect(attached)?));
        }
        for (sender, receiver) in &pairs {
            sender.ready().await?;
            receiver.ready().await?;
        }
        Ok(Self {
            job,
            pairs,
            recorder,
        })
    }
}

fn options(job: &Careful, user: u32) -> Options {
    let credentials = Credentials {
        user: users::name(user),
        device: users::DEVICE,
        device_name: "bench".to_owned(),
        key: users::key(user),
        servers: Vec::new(),
    };
    Options::new(job.servers.clone(), credentials)
}

impl Load for Open {
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>) {
        let Self {
            job,
            pairs,
            recorder,
        } = *self;
        let paces = paces(Pace::PerSecond(job.per_second), pairs.len());
        let each = job.messages / pairs.len().max(1) as u64;
        let pairs = pairs.into_iter().zip(job.receivers.iter()).zip(paces);
        for (((sender, receiver), to), pace) in pairs {
            let pair = Pair {
                sender,
                to: users::name(to),
                entries: receiver.entries(),
                receiver,
                recorder: Rc::clone(&recorder),
                body_bytes: job.body_bytes,
                messages: vec![Message::default(); each as usize],
                answers: FuturesUnordered::new(),
            };
            tasks.spawn_local(pair.run(pace));
        }
    }
}

struct Pair {
    sender: Client,
    to: String,
    receiver: Client,
    entries: Entries,
    recorder: Rc<Recorder>,
    body_bytes: usize,
    messages: Vec<Message>,
    answers: FuturesUnordered<LocalBoxFuture<'static, (usize, Result<Answer, Error>)>>,
}

#[derive(Clone, Default)]
struct Message {
    due: Option<Instant>,
    accepted: bool,
    seen: bool,
}

impl Pair {
    async fn run(mut self, pace: SenderPace) -> Result<()> {
        let SenderPace::Due(mut dues) = pace else {
            anyhow::bail!("a careful pair works in open loop");
        };
        let mut worst = Duration::ZERO;
        let mut news = Instant::now();
        let (mut sent, mut open) = (0, self.messages.len());
        while open > 0 && news.elapsed() < PATIENCE {
            tokio::select! {
                due = next(&mut dues), if sent < self.messages.len() => {
                    self.send(sent, due?).await?;
                    sent += 1;
                }
                Some((n, answer)) = self.answers.next() => {
                    let message = &mut self.messages[n];
                    ensure!(answer?.is_accepted(), "a message was refused for good");
                    message.accepted = true;
                    self.recorder.accepted(message.due.context("it was sent")?);
                    open -= usize::from(message.seen);
                }
                Some(incoming) = self.entries.next() => {
                    if let Some(n) = self.take(incoming)? {
                        let message = &mut self.messages[n];
                        let due = message.due.context("it was sent")?;
                        worst = worst.max(due.elapsed());
                        open -= usize::from(message.accepted);
                    }
                }
                () = tokio::time::sleep(PATIENCE) => break,
            }
            news = Instant::now();
        }
        let accepted = self.messages.iter().filter(|message| message.accepted);
        let lost = accepted.filter(|message| !message.seen).count();
        self.recorder.pair_ended(worst, lost as u64);
        Ok(())
    }

    async fn send(&mut self, n: usize, due: Instant) -> Result<()> {
        let message = &mut self.messages[n];
        message.due = Some(due);
        let mut body = self
            .recorder
            .bodies
            .make(due, n as u64, self.body_bytes)
            .to_vec();
        body.extend_from_slice(&u32::try_from(n)?.to_be_bytes());
        let sending = self
            .sender
            .send(&self.to, Bytes::from(body), SendOptions::default());
        let handle = sending.await?;
        self.answers
            .push(Box::pin(async move { (n, handle.await) }));
        Ok(())
    }

    /// Which message came for the first time.
    fn take(&mut self, incoming: Incoming) -> Result<Option<usize>> {
        self.receiver.ack(incoming.cursor());
        let Incoming::Delivery(delivery) = incoming else {
            anyhow::bail!("entries are missing or have expired");
        };
        let body = &delivery.envelope.body;
        let n = body
            .last_chunk::<4>()
            .context("a body that no sender here made")?;
        let n = u32::from_be_bytes(*n) as usize;
        let message = self
            .messages
            .get_mut(n)
            .context("a message that was never sent")?;
        if std::mem::replace(&mut message.seen, true) {
            self.recorder.twice();
            return Ok(None);
        }
        self.recorder.delivered(body)?;
        self.recorder.count(1);
        Ok(Some(n))
    }
}

async fn next(dues: &mut mpsc::UnboundedReceiver<Instant>) -> Result<Instant> {
    dues.recv().await.context("the pacer ended")
}

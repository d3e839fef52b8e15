//! The load of one generator process: what the coordinator orders, and what comes back.
//!
//! A generator is this same program, called `bench worker`. It reads its [`Job`] as one line of JSON from standard input,
//! opens its sessions, and then does what the next lines say ([`Order`]); it writes an [`Event`] a line. It runs in one
//! thread, because its own processor time is taken from what it measures.

mod bodies;
mod careful;
mod conversation;
mod idle;
mod pacer;
mod pairs;
mod receiver;
mod recorder;
mod rivals;
mod sender;
mod sends;
mod session;
mod storm;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::task::{JoinSet, LocalSet};

pub(crate) use recorder::Outcome;
use recorder::Recorder;
pub(crate) use rivals::{Nats, Protocol, RivalPairs, RivalSends};

use crate::users::Users;

/// Between two words about progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Sessions of one process that are being opened at the same time.
const OPENING_AT_A_TIME: usize = 64;

/// What one generator process does. Senders and pairs are spread over the servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Messages for users who are not there.
    Sends(Sends),
    /// Messages from each sender to a receiver of its own, who is attached at another server.
    Pairs(Pairs),
    /// Sessions that attach and then do nothing.
    Idle(Idle),
    /// Users with waiting messages who all connect at once, take them and acknowledge them.
    Storm(Storm),
    /// Pairs whose sessions may break: each message is accounted for.
    Careful(Careful),
    /// As [`Job::Sends`], to another system.
    RivalSends(RivalSends),
    /// As [`Job::Pairs`], through another system.
    RivalPairs(RivalPairs),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sends {
    pub(crate) servers: Vec<String>,
    pub(crate) senders: Users,
    pub(crate) recipients: Users,
    pub(crate) choice: Choice,
    pub(crate) body_bytes: usize,
    pub(crate) pace: Pace,
    /// Messages of all senders together, after which the job is finished; for ever, if not said.
    pub(crate) messages: Option<u64>,
}

/// Whom a sender sends to next.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Choice {
    /// Anybody, by chance.
    Any,
    /// One after the other, so that each gets as much.
    InTurn,
}

/// How fast.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Pace {
    /// Closed loop: each sender has so many messages under way, always.
    Window(usize),
    /// Open loop: so many messages a second, all senders together, whether or not the server keeps up. Latencies count
    /// from when a message was due, so that a stall of the server is not left out of them.
    PerSecond(f64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pairs {
    pub(crate) servers: Vec<String>,
    pub(crate) senders: Users,
    pub(crate) receivers: Users,
    pub(crate) body_bytes: usize,
    pub(crate) pace: Pace,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) servers: Vec<String>,
    pub(crate) users: Users,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Storm {
    pub(crate) servers: Vec<String>,
    pub(crate) users: Users,
    /// Messages that wait for each user.
    pub(crate) messages: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Careful {
    pub(crate) servers: Vec<String>,
    pub(crate) senders: Users,
    pub(crate) receivers: Users,
    pub(crate) body_bytes: usize,
    /// Open loop: of all senders together.
    pub(crate) per_second: f64,
    /// Of all senders together; then the job is finished.
    pub(crate) messages: u64,
}

impl Job {
    /// The same work, divided among so many processes at most.
    pub(crate) fn split(&self, parts: u32) -> Vec<Self> {
        match self {
            Self::Sends(job) => {
                let senders = job.senders.split(parts);
                let (count, share) = (senders.len() as u64, 1.0 / senders.len() as f64);
                let sends = senders.into_iter().map(|senders| Sends {
                    senders,
                    pace: job.pace.share(share),
                    messages: job.messages.map(|messages| messages / count),
                    ..job.clone()
                });
                sends.map(Self::Sends).collect()
            }
            Self::Pairs(job) => {
                let both = job.senders.split(parts).into_iter();
                let both = both.zip(job.receivers.split(parts));
                let share = 1.0 / f64::from(parts.clamp(1, job.senders.count.max(1)));
                let pairs = both.map(|(senders, receivers)| Pairs {
                    senders,
                    receivers,
                    pace: job.pace.share(share),
                    ..job.clone()
                });
                pairs.map(Self::Pairs).collect()
            }
            Self::Idle(job) => {
                let users = job.users.split(parts).into_iter();
                users
                    .map(|users| {
                        Self::Idle(Idle {
                            users,
                            ..job.clone()
                        })
                    })
                    .collect()
            }
            Self::Storm(job) => {
                let users = job.users.split(parts).into_iter();
                users
                    .map(|users| {
                        Self::Storm(Storm {
                            users,
                            ..job.clone()
                        })
                    })
                    .collect()
            }
            // One process: a crash of the cluster is not what loads the generator.
            Self::Careful(_) => vec![self.clone()],
            Self::RivalSends(job) => {
                let senders = job.senders.split(parts).into_iter();
                let sends = senders.map(|senders| RivalSends {
                    senders,
                    ..job.clone()
                });
                sends.map(Self::RivalSends).collect()
            }
            Self::RivalPairs(job) => {
                let both = job.senders.split(parts).into_iter();
                let both = both.zip(job.receivers.split(parts));
                let pairs = both.map(|(senders, receivers)| RivalPairs {
                    senders,
                    receivers,
                    ..job.clone()
                });
                pairs.map(Self::RivalPairs).collect()
            }
        }
    }
}

impl Pace {
    fn share(self, share: f64) -> Self {
        match self {
            Self::Window(window) => Self::Window(window),
            Self::PerSecond(rate) => Self::PerSecond(rate * share),
        }
    }
}

/// What the coordinator says after the job.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Begin.
    Go,
    /// Forget what was counted so far: the warm-up is over.
    Measure,
    /// Say what was counted, and end.
    Stop,
}

/// What a generator says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// All sessions that the job begins with are open.
    Ready,
    /// Messages done since the measurement began.
    Progress(u64),
    /// A job that ends by itself has ended.
    Finished,
    /// The answer to [`Order::Stop`].
    Outcome(Outcome),
}

/// A job with its sessions open.
trait Load {
    /// Starts the tasks that do it. The job is finished when all of them have ended.
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>);
}

/// Does the job that stands on standard input.
///
/// # Errors
/// When a session breaks, or the server does what it must not.
pub(crate) async fn worker() -> Result<()> {
    LocalSet::new().run_until(work()).await
}

async fn work() -> Result<()> {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let job = next_line(&mut orders).await?.context("no job came")?;
    let recorder = Rc::new(Recorder::new());
    let load = open(job, &recorder).await?;
    say(&Event::Ready)?;
    let mut load = Some(load);
    let mut tasks = JoinSet::new();
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            order = next_line(&mut orders) => match order? {
                Some(Order::Go) => load.take().context("told to go twice")?.go(&mut tasks),
                Some(Order::Measure) => recorder.clear(),
                Some(Order::Stop) => return say(&Event::Outcome(recorder.outcome())),
                // The coordinator has gone: nobody wants the answer.
                None => bail!("the coordinator ended"),
            },
            Some(ended) = tasks.join_next() => {
                ended??;
                if tasks.is_empty() {
                    say(&Event::Finished)?;
                }
            }
            _ = progress.tick() => say(&Event::Progress(recorder.done()))?,
        }
    }
}

async fn open(job: Job, recorder: &Rc<Recorder>) -> Result<Box<dyn Load>> {
    let recorder = Rc::clone(recorder);
    Ok(match job {
        Job::Sends(job) => Box::new(sends::Open::new(job, recorder).await?),
        Job::Pairs(job) => Box::new(pairs::Open::new(job, recorder).await?),
        Job::Idle(job) => Box::new(idle::Open::new(job).await?),
        Job::Storm(job) => Box::new(storm::Open::new(job, recorder)),
        Job::Careful(job) => Box::new(careful::Open::new(job, recorder).await?),
        Job::RivalSends(job) => Box::new(rivals::Senders::new(job, recorder).await?),
        Job::RivalPairs(job) => Box::new(rivals::Both::new(job, recorder).await?),
    })
}

async fn next_line<T: for<'a> Deserialize<'a>>(
    lines: &mut Lines<BufReader<Stdin>>,
) -> Result<Option<T>> {
    let line = lines.next_line().await?;
    Ok(line.map(|line| serde_json::from_str(&line)).transpose()?)
}

#[allow(clippy::print_stdout, reason = "standard output is the way back")]
fn say(event: &Event) -> Result<()> {
    println!("{}", serde_json::to_string(event)?);
    Ok(())
}

/// The server of the `n`th session.
fn server(servers: &[String], n: u32) -> &str {
    &servers[n as usize % servers.len()]
}

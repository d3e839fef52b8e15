//! The same loads for other systems, each by its own protocol: as many connections, as much under way, the same bodies.

mod mqtt;
mod nats;

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::recorder::Recorder;
use super::sender::Recipients;
use super::{Load, server};
use crate::users::Users;
use mqtt::Mqtt;
pub(crate) use nats::Nats;

/// What a rival speaks.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Protocol {
    /// NATS, with acknowledgements by JetStream.
    Nats,
    /// MQTT 3.1.1, quality of service 1.
    Mqtt,
}

/// Messages for users who are not there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RivalSends {
    pub(crate) protocol: Protocol,
    /// `host:port` each.
    pub(crate) servers: Vec<String>,
    pub(crate) senders: Users,
    pub(crate) recipients: Users,
    pub(crate) body_bytes: usize,
    pub(crate) window: usize,
}

/// Messages from each sender to a receiver of its own who is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RivalPairs {
    pub(crate) protocol: Protocol,
    /// `host:port` each.
    pub(crate) servers: Vec<String>,
    pub(crate) senders: Users,
    pub(crate) receivers: Users,
    pub(crate) body_bytes: usize,
    pub(crate) window: usize,
}

/// One connection that publishes, or receives, or both.
enum Wire {
    Nats(Nats),
    Mqtt(Mqtt),
}

/// What comes in.
enum News {
    /// The server has taken what was published in this slot.
    Accepted(usize),
    /// A message for whoever subscribed here; it has been acknowledged.
    Delivered(Vec<u8>),
    /// Nothing that matters.
    Nothing,
}

impl Wire {
    async fn open(protocol: Protocol, server: &str, user: u32) -> Result<Self> {
        Ok(match protocol {
            Protocol::Nats => Self::Nats(Nats::open(server, user).await?),
            Protocol::Mqtt => Self::Mqtt(Mqtt::open(server, user, true).await?),
        })
    }

    fn publish(&mut self, slot: usize, to: u32, body: &[u8]) -> Result<()> {
        match self {
            Self::Nats(nats) => nats.publish(slot, to, body),
            Self::Mqtt(mqtt) => mqtt.publish(slot, to, body),
        }
    }

    /// Sends what was written, and waits for the next news.
    async fn next(&mut self) -> Result<News> {
        match self {
            Self::Nats(nats) => nats.next().await,
            Self::Mqtt(mqtt) => mqtt.next().await,
        }
    }
}

/// Publishers, connected.
pub(super) struct Senders {
    job: RivalSends,
    wires: Vec<Wire>,
    recorder: Rc<Recorder>,
}

impl Senders {
    pub(super) async fn new(job: RivalSends, recorder: Rc<Recorder>) -> Result<Self> {
        if matches!(job.protocol, Protocol::Mqtt) {
            for user in job.recipients.iter() {
                Mqtt::leave_subscription(server(&job.servers, user), user).await?;
            }
        }
        let mut wires = Vec::new();
        for user in job.senders.iter() {
            wires.push(Wire::open(job.protocol, server(&job.servers, user), user).await?);
        }
        Ok(Self {
            job,
            wires,
            recorder,
        })
    }
}

impl Load for Senders {
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>) {
        for (n, wire) in (1u64..).zip(self.wires) {
            let recipients = Recipients {
                users: self.job.recipients,
                by_chance: true,
                state: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            let publisher = Publisher {
                wire,
                recipients,
                body_bytes: self.job.body_bytes,
                window: self.job.window,
                counts: true,
                recorder: Rc::clone(&self.recorder),
            };
            tasks.spawn_local(publisher.run());
        }
    }
}

/// Pairs, connected and subscribed.
pub(super) struct Both {
    job: RivalPairs,
    senders: Vec<Wire>,
    receivers: Vec<Wire>,
    recorder: Rc<Recorder>,
}

impl Both {
    pub(super) async fn new(job: RivalPairs, recorder: Rc<Recorder>) -> Result<Self> {
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for (n, (sender, receiver)) in (0u32..).zip(job.senders.iter().zip(job.receivers.iter())) {
            let mut wire = Wire::open(job.protocol, server(&job.servers, n + 1), receiver).await?;
            match &mut wire {
                Wire::Mqtt(mqtt) => mqtt.subscribe(receiver).await?,
                Wire::Nats(_) => bail!("pairs are not measured with NATS"),
            }
            receivers.push(wire);
            senders.push(Wire::open(job.protocol, server(&job.servers, n), sender).await?);
        }
        Ok(Self {
            job,
            senders,
            receivers,
            recorder,
        })
    }
}

impl Load for Both {
    fn go(self: Box<Self>, tasks: &mut JoinSet<Result<()>>) {
        for wire in self.receivers {
            tasks.spawn_local(receive(wire, Rc::clone(&self.recorder)));
        }
        for (wire, to) in self.senders.into_iter().zip(self.job.receivers.iter()) {
            let publisher = Publisher {
                wire,
                recipients: Recipients {
                    users: Users::new(to, 1),
                    by_chance: false,
                    state: 0,
                },
                body_bytes: self.job.body_bytes,
                window: self.job.window,
                counts: false,
                recorder: Rc::clone(&self.recorder),
            };
            tasks.spawn_local(publisher.run());
        }
    }
}

async fn receive(mut wire: Wire, recorder: Rc<Recorder>) -> Result<()> {
    loop {
        if let News::Delivered(body) = wire.next().await? {
            recorder.delivered(&body)?;
            recorder.count(1);
        }
    }
}

struct Publisher {
    wire: Wire,
    recipients: Recipients,
    body_bytes: usize,
    window: usize,
    /// Whether *accepted* is what counts; otherwise the receiver counts.
    counts: bool,
    recorder: Rc<Recorder>,
}

impl Publisher {
    async fn run(mut self) -> Result<()> {
        let mut free: Vec<usize> = (0..self.window).collect();
        let mut dues = vec![Instant::now(); self.window];
        loop {
            while let Some(slot) = free.pop() {
                let (due, to) = (Instant::now(), self.recipients.next());
                dues[slot] = due;
                let bodies = &self.recorder.bodies;
                let body = bodies.make(due, self.recipients.state ^ slot as u64, self.body_bytes);
                self.wire.publish(slot, to, &body)?;
            }
            if let News::Accepted(slot) = self.wire.next().await? {
                let due = dues.get(slot).context("an answer to nothing")?;
                self.recorder.accepted(*due);
                self.recorder.count(u64::from(self.counts));
                free.push(slot);
            }
        }
    }
}

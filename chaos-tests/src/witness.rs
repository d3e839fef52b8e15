//! A client of the library whose every call, answer and delivery goes into the history.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::try_join_all;
use roost_client::{
    Answer, AttachOptions, Client, Credentials, Cursor, Incoming, Options, SendHandle, SendOptions,
    Status,
};
use tokio::sync::Mutex;

use crate::history::{ClientRun, Device, Digest, Event, History, Place, Tick};
use crate::lab::{device, within};

/// Entries that [`Witness::receive`] leaves unacknowledged; below the client's window.
const ACK_EVERY: usize = 100;

/// A client under observation; its number in the history lasts as long as it does.
#[derive(Debug)]
pub struct Witness {
    client: Client,
    run: ClientRun,
    history: History,
    /// Held from the record of a send until the client has it, so that the history has the client's order.
    sending: Mutex<()>,
}

/// A message that has been handed to the client and is not answered yet.
#[derive(Debug)]
pub struct Pending {
    to: String,
    handle: SendHandle,
}

impl Witness {
    /// Starts a client.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn connect(history: &History, options: Options) -> Result<Self> {
        let device = device(&options.credentials);
        let cursor = options.attach.and_then(|attach| attach.cursor).map(place);
        // The number stands in the history before the first thing that the client can do.
        let run = history.start_client(&device, cursor);
        Ok(Self {
            client: Client::connect(options)?,
            run,
            history: history.clone(),
            sending: Mutex::new(()),
        })
    }

    /// Starts a client that receives from `cursor`; without one from wherever the server has the device's.
    ///
    /// # Errors
    /// As [`Witness::connect`].
    pub fn listen(history: &History, options: Options, cursor: Option<Cursor>) -> Result<Self> {
        let attach = AttachOptions {
            cursor,
            ..AttachOptions::default()
        };
        Self::attach(history, options, attach)
    }

    /// Starts a client that receives in this way.
    ///
    /// # Errors
    /// As [`Witness::connect`].
    pub fn attach(history: &History, options: Options, attach: AttachOptions) -> Result<Self> {
        Self::connect(history, options.attach(attach))
    }

    /// The client itself, for what leaves no trace in a history.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its number in the history.
    #[must_use]
    pub fn run(&self) -> ClientRun {
        self.run
    }

    /// Hands a message to the client.
    ///
    /// # Errors
    /// When the client is over.
    pub async fn send(
        &self,
        to: &str,
        id: &str,
        body: impl Into<Bytes>,
        ttl: Option<Duration>,
    ) -> Result<Pending> {
        let body = body.into();
        let _in_order = self.sending.lock().await;
        self.history.record(Event::Sent {
            client: self.run,
            to: to.to_owned(),
            id: id.to_owned(),
            body: Digest::of(&body),
            ttl_ms: ttl.map(|ttl| ttl.as_millis() as u64),
        });
        let options = SendOptions {
            ttl,
            ..SendOptions::default().id(id)
        };
        let handle = self.client.send(to, body, options).await?;
        Ok(Pending {
            to: to.to_owned(),
            handle,
        })
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// When the client is over, or the time runs out.
    pub async fn answer(&self, pending: Pending, limit: Duration) -> Result<Answer> {
        let Pending { to, handle } = pending;
        let id = handle.id().to_owned();
        let answer = within(limit, &format!("the answer to {id}"), handle).await??;
        self.record_answer(&to, &id, &answer);
        Ok(answer)
    }

    /// Sends bodies in one pipeline, under the ids `prefix-1`, `prefix-2`, ..., and waits until all are accepted.
    ///
    /// # Errors
    /// When one is refused, the client is over, or the time runs out.
    pub async fn send_all(
        &self,
        to: &str,
        prefix: &str,
        bodies: &[Vec<u8>],
        limit: Duration,
    ) -> Result<Vec<Answer>> {
        let mut pending = Vec::with_capacity(bodies.len());
        for (number, body) in (1..).zip(bodies) {
            let id = format!("{prefix}-{number}");
            pending.push(self.send(to, &id, body.clone(), None).await?);
        }
        let answers = pending
            .into_iter()
            .map(|pending| self.answer(pending, limit));
        let answers = try_join_all(answers).await?;
        match answers.iter().find(|answer| !answer.is_accepted()) {
            Some(refused) => bail!("{} was refused: {:?}", refused.id, refused.error),
            None => Ok(answers),
        }
    }

    fn record_answer(&self, to: &str, id: &str, answer: &Answer) {
        let (client, to, id) = (self.run, to.to_owned(), id.to_owned());
        match (answer.place, &answer.error) {
            (Some(at), _) => {
                let place = place(at);
                self.history.record(Event::Accepted {
                    client,
                    to,
                    id,
                    place,
                });
                self.record_tick(answer);
            }
            (None, error) => self.history.record(Event::Refused {
                client,
                to,
                id,
                code: error
                    .as_ref()
                    .map_or("NO_CODE", |error| error.code.as_str_name())
                    .to_owned(),
                retryable: error.as_ref().is_some_and(|error| error.retryable),
            }),
        }
    }

    fn record_tick(&self, answer: &Answer) {
        let tick = match answer.status {
            Status::Delivered => Tick::Delivered,
            Status::Read => Tick::Read,
            Status::Expired => Tick::Expired,
            Status::Accepted | Status::Refused | Status::Unspecified => return,
        };
        self.history.record(Event::Ticked {
            client: self.run,
            to: answer.to.clone(),
            id: answer.id.clone(),
            tick,
        });
    }

    /// Waits until a message has come as far as `status`, or has expired.
    ///
    /// # Errors
    /// When it does not in time, or the client is over.
    pub async fn wait_status(
        &self,
        answer: &Answer,
        status: Status,
        limit: Duration,
    ) -> Result<Answer> {
        let what = format!("{status:?} of {}", answer.id);
        let answer = within(limit, &what, self.client.wait_status(answer, status))
            .await?
            .with_context(|| what.clone())?;
        self.record_tick(&answer);
        Ok(answer)
    }

    /// Records that this client has waited for every tick that it is owed.
    pub fn settled(&self) {
        self.history.record(Event::Settled { client: self.run });
    }

    /// The next item of the queue; `None` when the client is over.
    pub async fn next(&self) -> Option<Incoming> {
        let incoming = self.client.entries().next().await?;
        let client = self.run;
        match &incoming {
            Incoming::Delivery(delivery) => self.history.record(Event::Delivered {
                client,
                place: place(delivery.cursor()),
                from: Device {
                    user: delivery.envelope.from.clone(),
                    device: delivery.envelope.device,
                },
                id: delivery.envelope.id.clone(),
                body: Digest::of(&delivery.envelope.body),
            }),
            Incoming::Skipped {
                incarnation,
                first,
                last,
            } => self.history.record(Event::Skipped {
                client,
                first: Place {
                    incarnation: *incarnation,
                    seq: *first,
                },
                last: *last,
            }),
            // Nobody else acknowledges for a witnessed device: the checker sees a gap, as it should.
            Incoming::Missing { .. } => {}
        }
        Some(incoming)
    }

    /// Receives until `count` entries have come, and gives them in the order in which they came. Acknowledges only so
    /// often that the client's window does not fill.
    ///
    /// # Errors
    /// When they do not come in time, saying how many did.
    pub async fn receive(
        &self,
        count: usize,
        limit: Duration,
    ) -> Result<Vec<roost_client::Delivery>> {
        let mut deliveries = Vec::new();
        let receive = async {
            while deliveries.len() < count {
                match self.next().await {
                    Some(Incoming::Delivery(delivery)) => {
                        deliveries.push(delivery);
                        if deliveries.len() % ACK_EVERY == 0 {
                            self.ack_soon(deliveries[deliveries.len() - 1].cursor());
                        }
                    }
                    Some(_) => {}
                    None => return Err(self.client.ended().await),
                }
            }
            Ok(())
        };
        let received = within(limit, &format!("{count} entries"), receive).await;
        received.with_context(|| format!("{} came", deliveries.len()))??;
        Ok(deliveries)
    }

    /// Acknowledges everything up to here and waits until that is committed.
    ///
    /// # Errors
    /// When it is refused, or not committed in time.
    pub async fn ack(&self, cursor: Cursor, limit: Duration) -> Result<()> {
        self.ack_soon(cursor);
        within(limit, "the commit of an ack", self.client.acked(cursor)).await??;
        self.history.record(Event::AckCommitted {
            client: self.run,
            cursor: place(cursor),
        });
        Ok(())
    }

    /// Acknowledges everything up to here and goes on.
    pub fn ack_soon(&self, cursor: Cursor) {
        self.history.record(Event::AckCalled {
            client: self.run,
            cursor: place(cursor),
        });
        self.client.ack(cursor);
    }

    /// Marks everything of `from` up to here as read and waits until that is committed.
    ///
    /// # Errors
    /// When it is refused, or not committed in time.
    pub async fn mark_read(&self, from: &str, cursor: Cursor, limit: Duration) -> Result<()> {
        let at = place(cursor);
        self.history.record(Event::ReadCalled {
            client: self.run,
            from: from.to_owned(),
            cursor: at,
        });
        let marked = self.client.mark_read(from, cursor);
        within(limit, "the commit of a read mark", marked).await??;
        self.history.record(Event::ReadCommitted {
            client: self.run,
            from: from.to_owned(),
            cursor: at,
        });
        Ok(())
    }

    /// Ends the session.
    pub async fn close(self) {
        self.client.close().await;
    }
}

fn place(cursor: Cursor) -> Place {
    Place {
        incarnation: cursor.incarnation,
        seq: cursor.seq,
    }
}

/// Records that a device has listened to the end.
pub fn drained(history: &History, credentials: &Credentials) {
    history.record(Event::Drained {
        device: device(credentials),
    });
}

//! The lines of a history, sorted by message, device and client. Adds nothing and judges nothing.

use std::collections::BTreeMap;

use super::MessageKey;
use crate::history::{ClientRun, Device, Digest, Event, Place, Record, Tick};

/// When: the line's number, which orders cause and effect, and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct When {
    pub(super) line: usize,
    pub(super) at_us: u64,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) messages: BTreeMap<MessageKey, Message>,
    pub(super) devices: BTreeMap<Device, Life>,
    pub(super) clients: BTreeMap<ClientRun, Client>,
    pub(super) deliveries: Vec<Delivery>,
    /// By user.
    acks: BTreeMap<String, Vec<Mark>>,
    /// Who asked for what, by device.
    asked: BTreeMap<Device, Vec<(ClientRun, Mark)>>,
    /// What is known to be committed, by device.
    committed: BTreeMap<Device, Vec<Mark>>,
    /// By reader and sender.
    reads: BTreeMap<(String, String), Vec<Mark>>,
}

#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) sends: Vec<Sending>,
    pub(super) answers: Vec<(When, Answer)>,
}

#[derive(Debug)]
pub(super) struct Sending {
    pub(super) when: When,
    pub(super) client: ClientRun,
    pub(super) body: Digest,
    pub(super) ttl_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted(Place),
    Refused { code: String, retryable: bool },
}

#[derive(Debug, Default)]
pub(super) struct Life {
    pub(super) added: Option<When>,
    pub(super) removed: Option<When>,
    pub(super) drained: Option<When>,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) device: Device,
    pub(super) started: When,
    pub(super) cursor: Option<Place>,
    /// In the order handed over; a message sent again stands where it stood first.
    pub(super) sent: Vec<MessageKey>,
    pub(super) incoming: Vec<(When, Incoming)>,
    pub(super) ticks: Vec<(When, MessageKey, Tick)>,
    pub(super) settled: Option<When>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Incoming {
    Entry(Place),
    Skipped(Place, u64),
}

/// A cursor that a client moved: asked for, or known to be committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) when: When,
    pub(super) cursor: Place,
    pub(super) committed: bool,
}

#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) client: ClientRun,
    pub(super) device: Device,
    pub(super) message: MessageKey,
    pub(super) place: Place,
    pub(super) body: Digest,
}

impl Facts {
    pub(super) fn gather(history: &[Record]) -> Self {
        let mut facts = Self::default();
        for (line, record) in history.iter().enumerate() {
            let at_us = record.at_us;
            facts.add(When { line, at_us }, &record.event);
        }
        facts
    }

    fn add(&mut self, when: When, event: &Event) {
        match event {
            Event::DeviceAdded { device } => self.life(device).added = Some(when),
            Event::DeviceRemoved { device } => self.life(device).removed = Some(when),
            Event::Drained { device } => self.life(device).drained = Some(when),
            Event::Fault { .. }
            | Event::FaultBegins { .. }
            | Event::FaultProved { .. }
            | Event::FaultEnds
            | Event::Recovered => {}
            Event::Started {
                client,
                device,
                cursor,
            } => {
                let run = Client::new(device.clone(), when, *cursor);
                self.clients.insert(*client, run);
                // A cursor says what is safe, and so is an acknowledgement too.
                if let Some(cursor) = cursor {
                    self.ack(when, *client, *cursor, false);
                }
            }
            Event::Sent {
                client,
                to,
                id,
                body,
                ttl_ms,
            } => {
                let key = self.key(*client, to, id);
                let sends = &self.message(key.clone()).sends;
                if sends.iter().all(|send| send.client != *client) {
                    self.client(*client).sent.push(key.clone());
                }
                self.message(key).sends.push(Sending {
                    when,
                    client: *client,
                    body: body.clone(),
                    ttl_ms: *ttl_ms,
                });
            }
            Event::Accepted {
                client,
                to,
                id,
                place,
            } => self.answer(when, *client, to, id, Answer::Accepted(*place)),
            Event::Refused {
                client,
                to,
                id,
                code,
                retryable,
            } => {
                let answer = Answer::Refused {
                    code: code.clone(),
                    retryable: *retryable,
                };
                self.answer(when, *client, to, id, answer);
            }
            Event::Delivered {
                client,
                place,
                from,
                id,
                body,
            } => self.delivery(when, *client, *place, from, id, body),
            Event::Skipped {
                client,
                first,
                last,
            } => self
                .client(*client)
                .incoming
                .push((when, Incoming::Skipped(*first, *last))),
            Event::AckCalled { client, cursor } => self.ack(when, *client, *cursor, false),
            Event::AckCommitted { client, cursor } => self.ack(when, *client, *cursor, true),
            Event::ReadCalled {
                client,
                from,
                cursor,
            } => self.read(when, *client, from, *cursor, false),
            Event::ReadCommitted {
                client,
                from,
                cursor,
            } => self.read(when, *client, from, *cursor, true),
            Event::Ticked {
                client,
                to,
                id,
                tick,
            } => {
                let key = self.key(*client, to, id);
                self.client(*client).ticks.push((when, key, *tick));
            }
            Event::Settled { client } => self.client(*client).settled = Some(when),
        }
    }

    fn life(&mut self, device: &Device) -> &mut Life {
        self.devices.entry(device.clone()).or_default()
    }

    /// A client that acts before it starts is a mistake of who wrote the history, not of the system under test.
    fn client(&mut self, client: ClientRun) -> &mut Client {
        self.clients
            .get_mut(&client)
            .unwrap_or_else(|| panic!("{client:?} acts in the history before it starts"))
    }

    fn key(&mut self, client: ClientRun, to: &str, id: &str) -> MessageKey {
        MessageKey {
            from: self.client(client).device.clone(),
            to: to.to_owned(),
            id: id.to_owned(),
        }
    }

    fn message(&mut self, key: MessageKey) -> &mut Message {
        self.messages.entry(key).or_default()
    }

    fn answer(&mut self, when: When, client: ClientRun, to: &str, id: &str, answer: Answer) {
        let key = self.key(client, to, id);
        self.message(key).answers.push((when, answer));
    }

    fn delivery(
        &mut self,
        when: When,
        client: ClientRun,
        place: Place,
        from: &Device,
        id: &str,
        body: &Digest,
    ) {
        let run = self.client(client);
        run.incoming.push((when, Incoming::Entry(place)));
        let device = run.device.clone();
        self.deliveries.push(Delivery {
            client,
            message: MessageKey {
                from: from.clone(),
                to: device.user.clone(),
                id: id.to_owned(),
            },
            device,
            place,
            body: body.clone(),
        });
    }

    fn ack(&mut self, when: When, client: ClientRun, cursor: Place, committed: bool) {
        let device = self.client(client).device.clone();
        let mark = Mark {
            when,
            cursor,
            committed,
        };
        let of_user = self.acks.entry(device.user.clone());
        of_user.or_default().push(mark);
        let asked = self.asked.entry(device.clone()).or_default();
        asked.push((client, mark));
        if committed {
            self.committed.entry(device).or_default().push(mark);
        }
    }

    fn read(&mut self, when: When, client: ClientRun, from: &str, cursor: Place, committed: bool) {
        let reader = self.client(client).device.user.clone();
        let marks = self.reads.entry((reader, from.to_owned())).or_default();
        marks.push(Mark {
            when,
            cursor,
            committed,
        });
    }

    /// Acknowledgements by any device of a user.
    pub(super) fn acks(&self, user: &str) -> impl Iterator<Item = Mark> + '_ {
        self.acks.get(user).into_iter().flatten().copied()
    }

    /// Whether another client of the device asked before to have a place acknowledged.
    pub(super) fn another_asked(
        &self,
        device: &Device,
        client: ClientRun,
        place: Place,
        before: When,
    ) -> bool {
        let mut asked = self.asked.get(device).into_iter().flatten();
        asked.any(|(by, mark)| *by != client && mark.when < before && mark.covers(place))
    }

    /// Whether a device's acknowledgement of a place was committed before.
    pub(super) fn is_committed(&self, device: &Device, place: Place, before: When) -> bool {
        let mut marks = self.committed.get(device).into_iter().flatten();
        marks.any(|mark| mark.when < before && mark.covers(place))
    }

    /// Read marks of a user for messages from `sender`.
    pub(super) fn reads(&self, user: &str, sender: &str) -> impl Iterator<Item = Mark> + '_ {
        let key = (user.to_owned(), sender.to_owned());
        self.reads.get(&key).into_iter().flatten().copied()
    }
}

impl Client {
    fn new(device: Device, started: When, cursor: Option<Place>) -> Self {
        Self {
            device,
            started,
            cursor,
            sent: Vec::new(),
            incoming: Vec::new(),
            ticks: Vec::new(),
            settled: None,
        }
    }
}

impl Message {
    /// The first place that an answer gave.
    pub(super) fn accepted(&self) -> Option<(When, Place)> {
        self.answers.iter().find_map(|(when, answer)| match answer {
            Answer::Accepted(place) => Some((*when, *place)),
            Answer::Refused { .. } => None,
        })
    }

    pub(super) fn refused_for_good(&self) -> bool {
        let mut answers = self.answers.iter();
        answers.any(|(_, answer)| {
            matches!(
                answer,
                Answer::Refused {
                    retryable: false,
                    ..
                }
            )
        })
    }

    pub(super) fn first_sent(&self) -> Option<When> {
        self.sends.first().map(|send| send.when)
    }

    /// Whether its time to live may have run out by then. Without one of its own it lives longer than any history.
    pub(super) fn may_have_expired(&self, at_us: u64) -> bool {
        self.sends.iter().any(|send| {
            send.ttl_ms
                .is_some_and(|ttl_ms| send.when.at_us + ttl_ms * 1000 <= at_us)
        })
    }
}

impl Mark {
    pub(super) fn covers(&self, place: Place) -> bool {
        self.cursor.incarnation == place.incarnation && self.cursor.seq >= place.seq
    }
}

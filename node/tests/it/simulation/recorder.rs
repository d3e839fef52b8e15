//! The history of a run, in memory and on virtual time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roost_chaos_tests::history::{ClientRun, Device, Event, Place, Record};
use tokio::time::Instant;

/// Takes what happens, in the order in which it is seen.
pub(super) struct Recorder {
    start: Instant,
    records: RefCell<Vec<Record>>,
    clients: Cell<u64>,
    /// Where accepted messages stand, by recipient, and when they may expire, if they may.
    accepted: RefCell<BTreeMap<String, BTreeMap<Place, Option<u64>>>>,
    /// When messages with a short time to live may expire, microseconds, by recipient and id.
    ends: RefCell<BTreeMap<(String, String), u64>>,
    /// Up to where a reader has read a sender's messages for certain.
    read: RefCell<BTreeMap<(String, String), Place>>,
    devices: RefCell<BTreeMap<ClientRun, Device>>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            records: RefCell::default(),
            clients: Cell::new(1),
            accepted: RefCell::default(),
            ends: RefCell::default(),
            read: RefCell::default(),
            devices: RefCell::default(),
        }
    }

    pub(super) fn record(&self, event: Event) {
        let at_us = self.now_us();
        match &event {
            Event::Sent {
                to,
                id,
                ttl_ms: Some(ttl_ms),
                ..
            } => {
                let ends = at_us + ttl_ms * 1_000;
                self.ends
                    .borrow_mut()
                    .insert((to.clone(), id.clone()), ends);
            }
            Event::Accepted { to, id, place, .. } => {
                let ends = self.ends.borrow().get(&(to.clone(), id.clone())).copied();
                let mut accepted = self.accepted.borrow_mut();
                accepted.entry(to.clone()).or_default().insert(*place, ends);
            }
            _ => {}
        }
        if let Event::ReadCommitted {
            client,
            from,
            cursor,
        } = &event
        {
            let reader = self.devices.borrow()[client].user.clone();
            let mut read = self.read.borrow_mut();
            let mark = read.entry((reader, from.clone())).or_insert(*cursor);
            *mark = (*mark).max(*cursor);
        }
        self.records.borrow_mut().push(Record { at_us, event });
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Records that a client starts, and numbers it.
    pub(super) fn start_client(&self, device: &Device, cursor: Option<Place>) -> ClientRun {
        let client = ClientRun(self.clients.replace(self.clients.get() + 1));
        self.devices.borrow_mut().insert(client, device.clone());
        self.record(Event::Started {
            client,
            device: device.clone(),
            cursor,
        });
        client
    }

    /// Records what is done to the cluster.
    pub(super) fn fault(&self, what: String) {
        self.record(Event::Fault { what });
    }

    /// Whether something was accepted for a user, cannot have expired, and is not among what its device has seen.
    pub(super) fn misses(&self, user: &str, seen: &BTreeSet<Place>) -> bool {
        let now_us = self.now_us();
        let accepted = self.accepted.borrow();
        let mut owed = accepted.get(user).into_iter().flatten();
        owed.any(|(place, ends)| ends.is_none_or(|ends| now_us < ends) && !seen.contains(place))
    }

    /// Whether `reader` has read what `sender` wrote him there, for certain.
    pub(super) fn is_read(&self, reader: &str, sender: &str, at: Place) -> bool {
        let read = self.read.borrow();
        let mark = read.get(&(reader.to_owned(), sender.to_owned()));
        mark.is_some_and(|mark| *mark >= at)
    }

    /// How many messages were accepted.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.borrow().values().map(BTreeMap::len).sum()
    }

    /// Everything.
    pub(super) fn into_records(self) -> Vec<Record> {
        self.records.into_inner()
    }
}

/// Writes a history to a file, for people.
pub(super) fn keep(name: &str, records: &[Record]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("simulation-{name}.jsonl"));
    let lines: Vec<String> = records.iter().map(line).collect();
    std::fs::write(&path, lines.join("\n")).expect("the target directory can be written");
    path
}

/// The lines that speak of messages named in `violations`, and the faults between them; at most `most`.
pub(super) fn about(records: &[Record], violations: &[String], most: usize) -> Vec<String> {
    let named = |record: &&Record| {
        let id = match &record.event {
            Event::Sent { id, .. }
            | Event::Accepted { id, .. }
            | Event::Refused { id, .. }
            | Event::Delivered { id, .. }
            | Event::Ticked { id, .. } => id,
            Event::Fault { .. } => return true,
            _ => return false,
        };
        let id = format!("message {id} of ");
        violations.iter().any(|violation| violation.contains(&id))
    };
    records.iter().filter(named).take(most).map(line).collect()
}

/// A record as it stands in a file.
pub(super) fn line(record: &Record) -> String {
    serde_json::to_string(record).expect("records are plain data")
}

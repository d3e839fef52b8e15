//! What happened, in the order in which it was seen from outside: every call before it is made, every answer and
//! delivery after it has come, one JSON object a line.
//!
//! The order of lines is the evidence: a cause that was recorded before its effect was there before it. Bodies are kept
//! as digests only. The file is written through at once, so that it is there when a test dies.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// A device, as the server names it in what it delivers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Device {
    /// The account.
    pub user: String,
    /// The number that the account gave it.
    pub device: u32,
}

/// One run of a client: a client of the library from connect to drop, or one call of the command line. Numbers are
/// unique within a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientRun(pub u64);

/// A place in a user's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The queue's incarnation; 0 throughout where the client does not tell.
    pub incarnation: u64,
    /// The number within it.
    pub seq: u64,
}

/// What stands for a body: its 128-bit XXH3, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    /// The digest of a body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(format!("{:032x}", xxh3_128(body)))
    }
}

/// How far a message has come, in the order in which ticks may follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tick {
    /// In the recipient's queue.
    Accepted,
    /// Acknowledged by one of the recipient's devices.
    Delivered,
    /// Marked read.
    Read,
    /// Its time ran out before any device acknowledged it.
    Expired,
}

/// One thing that happened. Calls are recorded before they are made, answers after they have come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The server has answered that the device exists.
    DeviceAdded {
        /// Which.
        device: Device,
    },
    /// The removal of a device is about to be asked for.
    DeviceRemoved {
        /// Which.
        device: Device,
    },
    /// A client starts.
    Started {
        /// Its number.
        client: ClientRun,
        /// Whose.
        device: Device,
        /// Everything up to here it says is safe, which acknowledges it; `None`: wherever the server has the device's cursor.
        cursor: Option<Place>,
    },
    /// A message is handed to a client; a client's order of these is the order promised to the recipient.
    Sent {
        /// By.
        client: ClientRun,
        /// Recipient.
        to: String,
        /// Message id.
        id: String,
        /// Body.
        body: Digest,
        /// Time to live, if one was chosen.
        ttl_ms: Option<u64>,
    },
    /// It is in the recipient's queue.
    Accepted {
        /// To.
        client: ClientRun,
        /// Recipient.
        to: String,
        /// Message id.
        id: String,
        /// Where.
        place: Place,
    },
    /// It is not, and the client was told so.
    Refused {
        /// To.
        client: ClientRun,
        /// Recipient.
        to: String,
        /// Message id.
        id: String,
        /// The stable name of the reason.
        code: String,
        /// Whether the answer invites to try again.
        retryable: bool,
    },
    /// An entry has come.
    Delivered {
        /// To.
        client: ClientRun,
        /// Where it stood.
        place: Place,
        /// Who sent it.
        from: Device,
        /// Under which id.
        id: String,
        /// Body.
        body: Digest,
    },
    /// The client was told that these have expired.
    Skipped {
        /// Who was told.
        client: ClientRun,
        /// First of the range.
        first: Place,
        /// Its last seq, which belongs to it.
        last: u64,
    },
    /// The client acknowledges everything up to here.
    AckCalled {
        /// Who.
        client: ClientRun,
        /// Up to here.
        cursor: Place,
    },
    /// The server has committed the acknowledgement.
    AckCommitted {
        /// Whose.
        client: ClientRun,
        /// Up to here.
        cursor: Place,
    },
    /// The client says that everything from a sender up to here is read.
    ReadCalled {
        /// Who.
        client: ClientRun,
        /// Whose messages.
        from: String,
        /// Up to here in the own queue.
        cursor: Place,
    },
    /// The server has committed the read mark.
    ReadCommitted {
        /// Whose.
        client: ClientRun,
        /// Whose messages.
        from: String,
        /// Up to here in the own queue.
        cursor: Place,
    },
    /// The sender has learned how far a message has come.
    Ticked {
        /// Who learned it.
        client: ClientRun,
        /// Recipient.
        to: String,
        /// Message id.
        id: String,
        /// How far.
        tick: Tick,
    },
    /// The device has listened for as long as anything could still come: what was accepted before must be there.
    Drained {
        /// Which.
        device: Device,
    },
    /// The client has waited for every tick that it is owed.
    Settled {
        /// Which.
        client: ClientRun,
    },
    /// Something was done to the cluster; for people who read the history.
    Fault {
        /// What.
        what: String,
    },
    /// A fault is about to be injected.
    FaultBegins {
        /// Its name.
        fault: String,
        /// Whether a majority of every shard's replicas stays up and connected.
        majority: bool,
    },
    /// The fault is there.
    FaultProved {
        /// What was seen of it.
        proof: String,
    },
    /// The fault is about to be healed.
    FaultEnds,
    /// Every node is ready again, every link whole.
    Recovered,
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Since the start of the history.
    pub at_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// A history that is being written. Clones write to the same one.
#[derive(Clone)]
pub struct History {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    start: Instant,
    file: Mutex<File>,
    clients: AtomicU64,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("History").field(&self.inner.path).finish()
    }
}

impl History {
    /// An empty history in a new file.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                start: Instant::now(),
                file: Mutex::new(File::create(path)?),
                clients: AtomicU64::new(1),
            }),
        })
    }

    /// Where it is written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Adds a line.
    ///
    /// # Panics
    /// When the line cannot be written: a history with holes proves nothing.
    pub fn record(&self, event: Event) {
        let mut file = self
            .inner
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that times rise with the lines.
        let record = Record {
            at_us: self.inner.start.elapsed().as_micros() as u64,
            event,
        };
        let mut line = serde_json::to_vec(&record).expect("records are plain data");
        line.push(b'\n');
        file.write_all(&line)
            .expect("the history's file can be written");
    }

    /// Records that a client starts, and numbers it.
    #[must_use]
    pub fn start_client(&self, device: &Device, cursor: Option<Place>) -> ClientRun {
        let client = ClientRun(self.inner.clients.fetch_add(1, Ordering::Relaxed));
        self.record(Event::Started {
            client,
            device: device.clone(),
            cursor,
        });
        client
    }

    /// What has been written so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn records(&self) -> io::Result<Vec<Record>> {
        read(&self.inner.path)
    }
}

/// Reads a history that was written before.
///
/// # Errors
/// When it cannot be read, or a line is not a record.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    BufReader::new(File::open(path)?)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is read back is what was recorded. Method: one record of the two most nested kinds, there and back.
    #[test]
    fn a_history_reads_back_as_written() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let history = History::create(&directory.path().join("history.jsonl"))?;
        let device = Device {
            user: "+15550001".to_owned(),
            device: 1,
        };
        let place = Place {
            incarnation: 1,
            seq: 7,
        };
        let client = history.start_client(&device, Some(place));
        let delivered = Event::Delivered {
            client,
            place,
            from: device.clone(),
            id: "a".to_owned(),
            body: Digest::of(b"hello"),
        };
        history.record(delivered.clone());
        let records = history.records()?;
        let events: Vec<Event> = records.iter().map(|record| record.event.clone()).collect();
        let started = Event::Started {
            client,
            device,
            cursor: Some(place),
        };
        assert_eq!(events, [started, delivered]);
        assert!(records[0].at_us <= records[1].at_us);
        Ok(())
    }
}

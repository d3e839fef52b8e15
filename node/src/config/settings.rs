//! Every setting: unit, default, bounds, and what happens at the bound.
//!
//! Integers whose name ends in `_ms` are milliseconds, in `_bytes` or `bytes_max` bytes. Settings marked *agreed* must
//! be the same on every founding node and stand for ever once the cluster exists. Settings of the queue may differ
//! between nodes: the leader's travel with each batch.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Error;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Declares a section: each field with its default and, for numbers, the range that `check_ranges` enforces.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr $(, within $range:expr)?;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            /// Refuses a number outside its range; `section` is the table's name, with its dot.
            #[allow(unused_variables, dead_code, reason = "a section may hold no number")]
            pub(super) fn check_ranges(&self, section: &str) -> Result<(), Error> {
                $($(within(section, stringify!($field), self.$field, $range)?;)?)*
                Ok(())
            }
        }
    };
}

section! {
    /// Everything a node can be told.
    Config {
        /// Where the node keeps everything. Made with mode 0700 when missing.
        data_dir: PathBuf = PathBuf::from("roost-data");
        /// What people call the node. It may change; the identity is made with the data directory.
        name: String = "node-1".to_owned();
        /// Allows listening beyond loopback although nothing is encrypted yet. Without it such a node does not start.
        insecure: bool = false;
        /// Ends the process when its standard input closes, so that a node never outlives whoever started it.
        exit_with_stdin: bool = false;
        /// Where the node listens.
        listen: Listen = Listen::default();
        /// Where others are told to find it.
        advertise: Advertise = Advertise::default();
        /// What the cluster's creation decides.
        cluster: Cluster = Cluster::default();
        /// Consensus within a shard.
        raft: Raft = Raft::default();
        /// Bounds of users' queues.
        queue: Queue = Queue::default();
        /// Bounds of clients' sessions.
        session: Session = Session::default();
        /// The disk.
        storage: Storage = Storage::default();
        /// Proposals and deliveries of one shard's leader.
        replica: Replica = Replica::default();
        /// Links to other nodes.
        peer: Peer = Peer::default();
        /// What the node writes to standard error.
        log: Log = Log::default();
    }
}

section! {
    /// Where the node listens, each `address:port`; beyond loopback only with `insecure`.
    Listen {
        /// For clients and administrators (gRPC).
        client: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7400));
        /// For other nodes (gRPC).
        peer: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7500));
        /// For health and metrics.
        http: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7600));
    }
}

section! {
    /// Where others are told to find this node, each `host:port`; empty means as it listens. Must be said when the node
    /// listens on every address (`0.0.0.0`), because that is no place to go to.
    Advertise {
        /// For clients.
        client: String = String::new();
        /// For other nodes.
        peer: String = String::new();
    }
}

section! {
    /// What the cluster's creation decides. *Agreed.*
    Cluster {
        /// Peer addresses (`host:port`) of all founding nodes, this one among them. Empty: a cluster of this node alone.
        initial_nodes: Vec<String> = Vec::new();
        /// Shared by the founding nodes, so that a stranger at one of their addresses founds nothing with them. Not empty
        /// when `listen.peer` is beyond loopback.
        token: Token = Token::default();
        /// Number of user shards, a power of two.
        shards: u32 = 32, within 1..=65_536;
        /// Replicas of each shard, on as many nodes; a cluster of one node has one whatever stands here.
        replication_factor: u32 = 3, within 1..=7;
    }
}

section! {
    /// Consensus within a shard. The defaults are for round trips of a few milliseconds; scale all three times together
    /// for longer ones.
    Raft {
        /// Between two heartbeats of a leader; an append that is not answered within this, or half of `election_min_ms`
        /// if that is longer, is sent again.
        heartbeat_ms: u64 = 50, within 10..=10_000;
        /// How long an election may take at least, and how long a follower that hears its leader grants no vote to others.
        election_min_ms: u64 = 200, within 30..=60_000;
        /// Twice this is how long a follower bears silence, and a time drawn up to the difference of both, before it asks
        /// the others whether it should stand for election; less when it knows that its leader's process is dead.
        election_max_ms: u64 = 300, within 31..=120_000;
        /// Log entries older than this are purged, even when a follower still needs them; it then takes a snapshot.
        /// At most half of `storage.reclaim_ms`, which it is part of.
        log_age_max_ms: u64 = 20 * MINUTE, within SECOND..=DAY;
        /// Bytes of log of all replicas of the node together; beyond it the longest logs are purged first.
        log_bytes_max: u64 = 512 * MIB, within MIB..=1024 * GIB;
        /// Bytes of the newest log entries that the node keeps in memory, shared equally among as many replicas as there
        /// are shards. Older entries, and larger ones, are read from the store.
        log_cache_bytes: u64 = 8 * MIB, within 64 * KIB..=64 * GIB;
        /// Commands in one proposal. What waits beyond it goes into the next.
        batch_entries_max: usize = 256, within 1..=65_536;
        /// Bytes in one proposal, unless a single command is larger.
        batch_bytes_max: u64 = MIB, within KIB..=8 * MIB;
        /// A snapshot still under way after this is given up and begun anew, because it pins deleted rows on disk.
        snapshot_life_max_ms: u64 = 10 * MINUTE, within SECOND..=DAY;
        /// Bytes of snapshots that the node sends in a second, all of its replicas together, so that they do not hold up
        /// messages. A state that does not fit into `snapshot_life_max_ms` at this rate, shared by `snapshots_max`, never
        /// arrives.
        snapshot_bytes_per_second: u64 = 32 * MIB, within MIB..=64 * GIB;
        /// Snapshots that the node sends at a time; further ones wait for their turn.
        snapshots_max: usize = 2, within 1..=1024;
    }
}

section! {
    /// Bounds of users' queues and of what is remembered about senders.
    Queue {
        /// Entries in one user's queue; beyond it senders get the final `QUEUE_FULL`.
        entries_max: u64 = 100_000, within 1..=100_000_000;
        /// Bytes in one user's queue; beyond it senders get the final `QUEUE_FULL`.
        bytes_max: u64 = 64 * MIB, within KIB..=64 * GIB;
        /// Time to live of a message whose sender named none.
        ttl_default_ms: u64 = 30 * DAY, within 1..=3650 * DAY;
        /// Longest time to live; a longer one is refused as `INVALID`.
        ttl_max_ms: u64 = 30 * DAY, within 1..=3650 * DAY;
        /// Bytes of one message's body; beyond it senders get the final `TOO_LARGE`.
        body_bytes_max: u64 = 64 * KIB, within 1..=MIB;
        /// How long a message id is remembered; an older send is refused with `ID_TOO_OLD`. Rounded up to whole days.
        dedup_window_ms: u64 = 7 * DAY, within MINUTE..=365 * DAY;
        /// Ids remembered per sender device and shard; beyond it senders get the retryable `OVERLOADED`.
        sender_ids_max: u64 = 1_000_000, within 1..=1_000_000_000;
        /// Chains remembered per sender device and recipient; beyond it the one idle for longest is dropped, and its
        /// client gets `UNKNOWN_CHAIN`.
        chains_max: u32 = 64, within 1..=4096;
        /// Devices of one user; beyond it adding one is refused with `TOO_MANY_DEVICES`.
        devices_max: u32 = 32, within 1..=64;
        /// Bytes of receipts that wait for a user's devices; beyond it the oldest go, as do those older than `ttl_max_ms`
        /// when new ones come, and a device that had not acknowledged them is told that it has missed some.
        receipt_bytes_max: u64 = MIB, within 128 * KIB..=GIB;
        /// Outbox rows from one shard to another; beyond it acks that would add one get the retryable `OVERLOADED`.
        outbox_rows_max: u64 = 1_000_000, within 1..=1_000_000_000;
    }
}

section! {
    /// Bounds of clients' sessions.
    Session {
        /// Sessions on this node; beyond it new ones are told to go elsewhere.
        sessions_max: usize = 100_000, within 1..=10_000_000;
        /// Sends of one session that wait for their answer; beyond it the session gets the retryable `OVERLOADED`.
        in_flight_max: u32 = 1024, within 1..=65_536;
        /// The same for sends to one recipient, so that one whose shard does not answer leaves room for the others.
        conversation_in_flight_max: u32 = 256, within 1..=65_536;
        /// Entries on their way to a client that names no window of its own, and the most that one may name. A full
        /// window stops the pushes until the client acknowledges.
        window_entries: u32 = 1024, within 1..=65_536;
        /// Bytes of bodies on their way to a client, as `window_entries`. A single larger entry still goes.
        window_bytes: u64 = 4 * MIB, within KIB..=GIB;
        /// Answers and receipts that wait for a client which does not read; beyond it the session ends with
        /// `SLOW_CONSUMER`.
        outgoing_frames_max: usize = 4096, within 16..=1_048_576;
        /// Between two pings on an idle connection.
        keep_alive_ms: u64 = 30 * SECOND, within 100..=HOUR;
        /// A connection that answers no ping for this long is closed.
        keep_alive_timeout_ms: u64 = 20 * SECOND, within 100..=HOUR;
        /// A connection that has not said hello by then is closed.
        hello_timeout_ms: u64 = 10 * SECOND, within 10..=10 * MINUTE;
        /// How long a request may be retried inside before the client gets the retryable `UNAVAILABLE`.
        request_timeout_ms: u64 = 10 * SECOND, within 100..=10 * MINUTE;
        /// How long stopping waits for sessions to be told where to go, and for leaders to be handed over.
        drain_ms: u64 = 10 * SECOND, within 0..=10 * MINUTE;
    }
}

section! {
    /// The disk.
    Storage {
        /// Share of the file system kept free; below it the node sheds leaderships and refuses sends with the retryable
        /// `DISK_LOW`. 0 turns it off.
        disk_reserve_percent: u32 = 10, within 0..=90;
        /// Bytes of blocks that the store keeps in memory.
        block_cache_bytes: u64 = 24 * MIB, within MIB..=1024 * GIB;
        /// Bytes of recent writes that the store keeps in memory, all columns together, until they go to files.
        write_buffer_bytes: u64 = 16 * MIB, within MIB..=64 * GIB;
        /// Bytes of write-ahead log; beyond it the oldest memory goes to files so that the log can be cut.
        max_wal_bytes: u64 = 256 * MIB, within MIB..=1024 * GIB;
        /// When a delivered message is gone from every file of the data directory, at the latest (contract C5).
        reclaim_ms: u64 = HOUR, within 2 * SECOND..=30 * DAY;
        /// A sync outstanding for longer than this stops the node's heartbeats, so that others take over, and whoever waits
        /// for the node is told to ask elsewhere. About as long as followers bear silence, `raft.election_max_ms` twice.
        sync_stall_ms: u64 = 600, within 100..=MINUTE;
    }
}

section! {
    /// Proposals and deliveries of one shard's leader.
    Replica {
        /// Commands that wait to be proposed, per shard; beyond it callers get the retryable `OVERLOADED`.
        pending_proposals_max: usize = 4096, within 1..=1_048_576;
        /// Bytes of commands that wait to be proposed, per shard; as `pending_proposals_max`.
        pending_bytes_max: u64 = 16 * MIB, within 64 * KIB..=GIB;
        /// How long a proposal may take until its caller is told that its fate is unknown.
        propose_timeout_ms: u64 = 5 * SECOND, within 10..=10 * MINUTE;
        /// Attachments and watches of one shard; beyond it new ones get the retryable `OVERLOADED`.
        attachments_max: usize = 100_000, within 1..=10_000_000;
        /// How far a leader's wall clock may be from that of a majority before shard time ignores it.
        clock_offset_max_ms: u64 = 30 * SECOND, within SECOND..=HOUR;
    }
}

section! {
    /// Links to other nodes.
    Peer {
        /// Calls open to one node on one of its streams; beyond it callers get `OVERLOADED`, on either side.
        open_calls_max: usize = 8192, within 1..=1_048_576;
        /// Messages in one frame. What waits beyond it goes into the next.
        frame_messages_max: usize = 1024, within 1..=65_536;
        /// Bytes in one frame, unless a single message is larger.
        frame_bytes_max: usize = 1024 * 1024, within 1024..=8 * 1024 * 1024;
        /// How long opening a connection may take.
        connect_timeout_ms: u64 = SECOND, within 10..=MINUTE;
        /// First wait before a broken link is dialled again; doubled, with jitter, each time.
        redial_min_ms: u64 = 20, within 1..=MINUTE;
        /// Longest wait before a broken link is dialled again.
        redial_max_ms: u64 = 250, within 1..=10 * MINUTE;
        /// Between two pings on a link.
        keep_alive_ms: u64 = 500, within 50..=MINUTE;
        /// A link that answers no ping for this long is broken.
        keep_alive_timeout_ms: u64 = 1500, within 50..=10 * MINUTE;
    }
}

section! {
    /// What the node writes to standard error. Never a body, key or phone number, at any level.
    Log {
        /// Which events, in `tracing`'s filter syntax: `info`, or `info,roost::peer=debug`. openraft is off by default: it
        /// logs every heartbeat, and what matters of it is in the metrics.
        filter: String = "info,openraft=off".to_owned();
        /// As text or as one JSON object a line.
        format: LogFormat = LogFormat::Text;
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// A shared secret: shown by `--dump-config`, whose output is a config, and by nothing else.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// The secret itself, to be hashed.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

fn within<T: PartialOrd + fmt::Display>(
    section: &str,
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::OutOfRange {
        key: format!("{section}{field}"),
        value: value.to_string(),
        min: range.start().to_string(),
        max: range.end().to_string(),
    })
}

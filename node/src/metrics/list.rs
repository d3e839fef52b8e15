//! The list: every metric, by subject, with its bound in its help where it is one that shows a fill.

use ::metrics::Unit;

use super::kind::{Counter, Definition, Gauge, Histogram};

/// Waits and round trips: 0.5 ms to 10 s.
const LATENCY_SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];
/// Delivery waits for people: up to 30 days.
const DELIVERY_SECONDS: &[f64] = &[
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.5,
    1.0,
    5.0,
    60.0,
    600.0,
    3600.0,
    86_400.0,
    604_800.0,
    2_592_000.0,
];
/// How many went together.
const COUNT: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0,
];
/// What is remembered for days.
const IDS: &[f64] = &[
    1.0,
    10.0,
    100.0,
    1_000.0,
    10_000.0,
    100_000.0,
    250_000.0,
    500_000.0,
    750_000.0,
    1_000_000.0,
    10_000_000.0,
    100_000_000.0,
];
/// How large it was: 64 bytes to 16 MiB.
const BYTES: &[f64] = &[
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

macro_rules! metrics {
    ($($kind:ident $name:ident = $text:literal, $unit:ident $(, by $label:literal)? $(, in $buckets:ident)?; $help:literal)*) => {
        $(
            #[doc = $help]
            #[doc = concat!("\n\n`", $text, "`", $(", by ", $label)?)]
            pub const $name: $kind = $kind(Definition {
                name: $text,
                help: $help,
                unit: Unit::$unit,
                label: metrics!(@or $($label)?),
                buckets: metrics!(@buckets $($buckets)?),
            });
        )*
        /// Every metric, with the name of its kind.
        pub(super) const ALL: &[(&str, Definition)] = &[$((stringify!($kind), $name.0)),*];
    };
    (@or $label:literal) => { Some($label) };
    (@or) => { None };
    (@buckets $buckets:ident) => { $buckets };
    (@buckets) => { &[] };
}

metrics! {
    // Sessions: what clients see.
    Histogram ACCEPT_LATENCY = "roost_session_accept_latency_seconds", Seconds, in LATENCY_SECONDS;
        "From a send's arrival at its session to its accepted."
    Histogram DELIVERY_LATENCY = "roost_session_delivery_latency_seconds", Seconds, in DELIVERY_SECONDS;
        "From accepted until an entry was handed to a device; long for devices that were away."
    Gauge SESSIONS = "roost_session_open_sessions", Count;
        "Sessions on this node, bounded by session.sessions_max."
    Counter SESSIONS_ENDED = "roost_session_ended_sessions_total", Count, by "reason";
        "Sessions that ended, by reason."
    Gauge IN_FLIGHT_SENDS = "roost_session_in_flight_sends", Count;
        "Sends of all sessions that wait for their answer, each session bounded by session.in_flight_max."
    Gauge WINDOW_ENTRIES = "roost_session_window_entries", Count;
        "Entries handed to clients and not acknowledged, each session bounded by session.window_entries."
    Gauge WINDOW_BYTES = "roost_session_window_bytes", Bytes;
        "Bytes handed to clients and not acknowledged, each session bounded by session.window_bytes."
    Gauge OUTGOING_FRAMES = "roost_session_outgoing_frames", Count;
        "Frames of all sessions that wait for clients to read, each session bounded by session.outgoing_frames_max."
    Gauge WAITING_MARKS = "roost_session_waiting_marks", Count;
        "Acknowledgements and read marks of all sessions that wait to be proposed, bounded by 256 a session."
    Counter REFUSED_SENDS = "roost_session_refused_sends_total", Count, by "code";
        "Sends refused, by code, retryable refusals among them."

    // Shards: what their leaders keep.
    Gauge QUEUE_ENTRIES = "roost_shard_queue_entries", Count, by "shard";
        "Entries in all queues of a shard, each queue bounded by queue.entries_max."
    Gauge QUEUE_BYTES = "roost_shard_queue_bytes", Bytes, by "shard";
        "Bytes in all queues of a shard, each queue bounded by queue.bytes_max."
    Gauge RECEIPT_BYTES = "roost_shard_receipt_bytes", Bytes, by "shard";
        "Bytes of receipts that wait for devices in a shard, each user bounded by queue.receipt_bytes_max."
    Counter FORGOTTEN_RECEIPTS = "roost_shard_forgotten_receipts_total", Count;
        "Receipts dropped at queue.receipt_bytes_max or queue.ttl_max_ms; devices that had not acknowledged them are told."
    Histogram SENDER_IDS = "roost_shard_sender_ids", Count, in IDS;
        "Ids remembered of a sender device, each time that it sends, bounded by queue.sender_ids_max."
    Histogram SENDER_CHAINS = "roost_shard_sender_chains", Count, in COUNT;
        "Chains remembered of a sender device and recipient, each time that it sends, bounded by queue.chains_max."
    Histogram READ_MARKS = "roost_shard_read_marks", Count, in IDS;
        "Read marks of a user, each time that it reads in a new conversation, bounded by 100000."
    Histogram READS_AHEAD = "roost_shard_waiting_read_marks", Count, in COUNT;
        "Read marks of a user that wait for earlier entries, each time that one has to wait, bounded by 64."
    Histogram DELIVERED_AHEAD = "roost_shard_delivered_ranges", Count, in COUNT;
        "Ranges that a user's devices acknowledged ahead of the delivered mark, each time that an acknowledgement leaves some, bounded by 64."
    Histogram DEVICES = "roost_shard_user_devices", Count, in COUNT;
        "Devices of a user, each time that one is added, bounded by queue.devices_max."
    Gauge OLDEST_ENTRY_AGE = "roost_shard_oldest_entry_age_seconds", Seconds, by "shard";
        "Age of the oldest entry of a shard; 0 without any."
    Gauge OUTBOX_ROWS = "roost_shard_outbox_rows", Count, by "shard";
        "Outbox rows of a shard, each destination bounded by queue.outbox_rows_max."
    Counter EXPIRED_ENTRIES = "roost_shard_expired_entries_total", Count;
        "Entries whose time to live ran out before any device had them, as told to their senders."
    Counter RECEIPTS = "roost_shard_receipts_total", Count, by "status";
        "Receipts written for senders, by status."

    // Replicas: proposing and delivering.
    Gauge PENDING_PROPOSALS = "roost_replica_pending_proposals", Count, by "shard";
        "Commands that wait to be proposed, bounded by replica.pending_proposals_max."
    Gauge PENDING_BYTES = "roost_replica_pending_bytes", Bytes, by "shard";
        "Bytes of commands that wait to be proposed, bounded by replica.pending_bytes_max."
    Histogram BATCH_COMMANDS = "roost_replica_batch_commands", Count, in COUNT;
        "Commands in one proposal."
    Histogram BATCH_BYTES = "roost_replica_batch_bytes", Bytes, in BYTES;
        "Bytes in one proposal."
    Histogram PROPOSE_LATENCY = "roost_replica_propose_latency_seconds", Seconds, in LATENCY_SECONDS;
        "From proposing a batch to its being applied at the leader."
    Counter UNKNOWN_PROPOSALS = "roost_replica_unknown_proposals_total", Count;
        "Proposals whose fate stayed unknown; their callers send them again."
    Gauge WAITING_READS = "roost_replica_waiting_reads", Count, by "shard";
        "Readers that wait for a quorum to confirm the leader, bounded by 16384 a shard."
    Gauge ATTACHMENTS = "roost_replica_attachments", Count, by "shard";
        "Attachments of devices at a shard's leader, with watches bounded by replica.attachments_max."
    Gauge WATCHES = "roost_replica_watches", Count, by "shard";
        "Watches at a shard's leader."
    Gauge OUTBOX_SIGNALS = "roost_replica_outbox_signals", Count;
        "Signals of outbox rows that wait for the pump, bounded by the shards led here times all shards."
    Gauge CORRUPT_REPLICAS = "roost_replica_corrupt_replicas", Count;
        "Replicas of this node that stopped because of damage and wait for their renewal. Not 0: look at the disk."
    Gauge LOST_REPLICAS = "roost_replica_lost_replicas", Count;
        "Replicas of this node that were lost with its store and wait for their renewal. Not 0: the node is rebuilding."
    Counter RENEWALS = "roost_replica_renewals_total", Count;
        "Replicas of this node that were renewed under a new id."
    Counter RESTARTS = "roost_replica_restarts_total", Count;
        "Replicas of this node whose Raft core died and was started again."

    // Raft.
    Gauge RAFT_ROLE = "roost_raft_role_code", Count, by "shard";
        "This node's part in a shard: 0 none or failed, 1 learner, 2 follower, 3 candidate, 4 leader."
    Gauge RAFT_TERM = "roost_raft_current_term", Count, by "shard";
        "The shard's term as this node knows it."
    Gauge LOG_BYTES = "roost_raft_log_bytes", Bytes, by "shard";
        "Log that this node's replica keeps, as far as written since it was opened; all together bounded by raft.log_bytes_max."
    Gauge LOG_CACHE_BYTES = "roost_raft_log_cache_bytes", Bytes;
        "Log entries of all replicas of the node in memory, bounded by raft.log_cache_bytes."
    Gauge KNOWN_ROWS_BYTES = "roost_raft_known_rows_bytes", Bytes;
        "Rows of the states of all replicas of the node that stay decoded in memory, bounded by 256 KiB for each replica."
    Gauge WAITING_APPENDS = "roost_raft_waiting_appends", Count, by "shard";
        "Appends that wait at this node's replica of a shard, bounded by 8."
    Counter SNAPSHOTS = "roost_raft_installed_snapshots_total", Count;
        "Snapshots that replicas of this node installed because the log no longer reached them."
    Counter REFUSED_SNAPSHOTS = "roost_raft_refused_snapshots_total", Count;
        "Snapshots that came damaged to replicas of this node: they were not used, and are sent again."
    Counter SENT_SNAPSHOT_BYTES = "roost_raft_sent_snapshot_bytes_total", Bytes;
        "Bytes of snapshots that this node sent, bounded per second by raft.snapshot_bytes_per_second."
    Counter RECEIVED_SNAPSHOT_BYTES = "roost_raft_received_snapshot_bytes_total", Bytes;
        "Bytes of snapshots that came to replicas of this node: grows while they catch up."
    Gauge SENDING_SNAPSHOTS = "roost_raft_sending_snapshots", Count;
        "Snapshots that this node is sending, bounded by raft.snapshots_max."
    Gauge RECEIVING_SNAPSHOTS = "roost_raft_receiving_snapshots", Count;
        "Replicas of this node that are catching up by snapshot."
    Gauge RAFT_LAG = "roost_raft_lag_entries", Count, by "shard";
        "Log entries that this replica knows of, or knows to be committed, and has not applied."

    // Storage.
    Histogram SYNC_LATENCY = "roost_storage_sync_latency_seconds", Seconds, in LATENCY_SECONDS;
        "One fsync of the write-ahead log."
    Histogram SYNC_CALLBACKS = "roost_storage_sync_callbacks", Count, in COUNT;
        "Callers answered by one fsync: what group commit gains."
    Gauge PENDING_SYNCS = "roost_storage_pending_syncs", Count;
        "Callers that wait for the next fsync; bounded, because each replica waits with one append and one vote."
    Counter SYNC_STALLS = "roost_storage_sync_stalls_total", Count;
        "Times that a sync took longer than storage.sync_stall_ms and the node stopped its heartbeats."
    Gauge DISK_FREE_BYTES = "roost_storage_disk_free_bytes", Bytes;
        "Free on the file system of the data directory."
    Gauge DISK_FREE_RATIO = "roost_storage_disk_free_ratio", Count;
        "Free share of the file system; sends are refused below storage.disk_reserve_percent."
    Gauge BLOCK_CACHE_BYTES = "roost_storage_block_cache_bytes", Bytes;
        "Blocks of table files in memory, bounded by storage.block_cache_bytes."
    Gauge WRITE_BUFFER_BYTES = "roost_storage_write_buffer_bytes", Bytes;
        "Writes in memory that are in no table file yet, bounded by storage.write_buffer_bytes."
    Gauge WAL_BYTES = "roost_storage_wal_bytes", Bytes;
        "All files of the write-ahead log, bounded by storage.max_wal_bytes."
    Gauge DELETED_RANGES = "roost_storage_deleted_ranges", Count;
        "Ranges whose deleted rows may be in files, without those being reclaimed at the moment, bounded by 32768."
    Histogram RECLAIM_LATENCY = "roost_storage_reclaim_latency_seconds", Seconds, in LATENCY_SECONDS;
        "One removal of deleted rows from all files."
    Counter RECLAIMED_RANGES = "roost_storage_reclaimed_ranges_total", Count;
        "Ranges of keys whose deleted rows are in no file any more."
    Counter REWRITTEN_BYTES = "roost_storage_rewritten_bytes_total", Bytes;
        "Bytes of table files that removals of deleted rows have written."
    Gauge WAITING_RANGES = "roost_storage_waiting_ranges", Count;
        "Ranges with deleted rows that wait for a snapshot to end."

    // Router.
    Counter FORWARDS = "roost_router_forwards_total", Count, by "outcome";
        "Requests sent to a shard's leader, by outcome: each retry counts."
    Gauge RUNNING_PUMPS = "roost_router_running_pumps", Count;
        "Pumps that carry outbox rows, bounded by the shards led here times all shards."
    Counter OUTBOX_RETRIES = "roost_router_outbox_retries_total", Count;
        "Times that outbox rows could not be carried to their destination at once, and are tried again."
    Counter DROPPED_OUTBOX_ROWS = "roost_router_dropped_outbox_rows_total", Count;
        "Outbox rows that their destination refused for good, because the user is gone."

    // Links between nodes.
    Gauge LINKS = "roost_peer_connected_links", Count, by "lane";
        "Streams that this node has open to others; each other node is one of each lane."
    Counter REDIALS = "roost_peer_redials_total", Count, by "lane";
        "Streams dialled, the first time included."
    Gauge OPEN_CALLS = "roost_peer_open_calls", Count, by "lane";
        "Calls of this node that wait for an answer, bounded by peer.open_calls_max for each other node."
    Gauge SERVED_CALLS = "roost_peer_served_calls", Count, by "lane";
        "Calls of other nodes that this node is answering, bounded by peer.open_calls_max for each of them."
    Gauge WAITING_GRANTS = "roost_peer_waiting_grants", Count;
        "Grants and detaches that wait to leave, bounded by one for each push and attachment that they answer."
    Counter FAILED_CALLS = "roost_peer_failed_calls_total", Count, by "reason";
        "Calls that got no answer, by reason: unreachable, timed_out, overloaded, too_large, failed."
    Counter LATE_REPLIES = "roost_peer_late_replies_total", Count;
        "Answers dropped because their call's deadline had passed."
    Histogram FRAME_MESSAGES = "roost_peer_frame_messages", Count, in COUNT;
        "Messages in one frame: what batching gains."
    Histogram FRAME_BYTES = "roost_peer_frame_bytes", Bytes, in BYTES;
        "Bytes of one frame between two nodes."

    // The node as a whole.
    Gauge CLOCK_OFFSET = "roost_node_clock_offset_seconds", Seconds;
        "This node's wall clock minus that of the majority."
    Gauge READY = "roost_node_ready_flag", Count;
        "1 while the node is ready."
    Gauge BOUND = "roost_config_bound_limit", Count, by "bound";
        "A configured bound, by its setting: divide the matching gauge by it to see how full it is."
}

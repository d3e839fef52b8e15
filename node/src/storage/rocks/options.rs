//! How RocksDB is set up, and why.

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType,
    DBRecoveryMode, LogLevel,
};

use super::Column;

const MIB: usize = 1 << 20;

/// The bounds of a node's store. The defaults keep an idle node small: about 100 MiB here at most.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blocks of table files kept in memory, their indexes and filters included.
    pub block_cache_bytes: usize,
    /// Writes kept in memory before they become table files, over all columns.
    pub write_buffer_bytes: usize,
    /// The write-ahead log: how much a start has to replay, twice.
    pub wal_bytes_max: u64,
    /// Table files kept open.
    pub open_files_max: i32,
    /// The size of a table file: the least that is rewritten around one deleted row.
    pub table_file_bytes: u64,
    /// The size of the first level that is sorted as a whole, the least that each reclaiming rewrites.
    pub first_level_bytes: u64,
    /// Threads that flush and compact.
    pub background_jobs_max: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            block_cache_bytes: 32 * MIB,
            write_buffer_bytes: 48 * MIB,
            wal_bytes_max: 128 * MIB as u64,
            open_files_max: 512,
            table_file_bytes: 8 * MIB as u64,
            first_level_bytes: 64 * MIB as u64,
            background_jobs_max: 2,
        }
    }
}

/// Look-ups of single rows read one block each.
const BLOCK_BYTES: usize = 8 * 1024;

/// Pieces of filters and indexes, as they are cached.
const METADATA_BLOCK_BYTES: usize = 4 * 1024;

/// Table files of logs that wait to be merged.
const LOG_FILES: i32 = 16;

/// Of a write buffer, for the filter of its keys: some ten bits a row of 100 bytes.
const MEMTABLE_FILTER_RATIO: f64 = 0.015;

impl Options {
    pub(super) fn database(&self) -> rocksdb::Options {
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // A prefix of all batches, cut at the first bad record; `rocks` then checks that the prefix is long enough.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        // A closed WAL file that was synced and is missing or too short is noticed by RocksDB itself.
        options.set_track_and_verify_wals_in_manifest(true);
        // One write(2) a sync instead of one a batch. What a kill takes from this buffer was never synced.
        options.set_manual_wal_flush(true);
        options.set_max_total_wal_size(self.wal_bytes_max);
        // No WAL file is kept or used again after its rows are in table files: a deleted body must go from disk.
        options.set_wal_ttl_seconds(0);
        options.set_wal_size_limit_mb(0);
        options.set_recycle_log_file_num(0);
        options.set_db_write_buffer_size(self.write_buffer_bytes);
        options.set_max_open_files(self.open_files_max);
        options.set_max_background_jobs(self.background_jobs_max);
        // Spreads write-back, so that a sync of the WAL does not queue behind a whole table file.
        options.set_bytes_per_sync(MIB as u64);
        options.set_paranoid_checks(true);
        // At info level RocksDB's own log tells keys, and so phone numbers, of compacted ranges.
        options.set_log_level(LogLevel::Warn);
        options.set_keep_log_file_num(3);
        options.set_max_log_file_size(MIB);
        options
    }

    pub(super) fn columns(&self) -> Vec<ColumnFamilyDescriptor> {
        let cache = Cache::new_lru_cache(self.block_cache_bytes);
        [
            // The sync mark is overwritten hundreds of times a second: room, so that it is seldom flushed alone.
            (Column::Node, 8 * MIB),
            (Column::Log, 24 * MIB),
            (Column::State, 24 * MIB),
        ]
        .map(|(column, write_buffer_bytes)| {
            let mut options = column_options(&cache, write_buffer_bytes);
            options.set_target_file_size_base(self.table_file_bytes);
            options.set_max_bytes_for_level_base(self.first_level_bytes);
            if column == Column::Log {
                // Logs are purged from the front and seldom read: what is compacted late is mostly gone by then.
                options.set_level_zero_file_num_compaction_trigger(LOG_FILES);
                options.set_level_zero_slowdown_writes_trigger(LOG_FILES * 2);
                options.set_level_zero_stop_writes_trigger(LOG_FILES * 3);
            }
            ColumnFamilyDescriptor::new(name(column), options)
        })
        .into()
    }
}

/// A column's name in the database. Frozen.
pub(super) fn name(column: Column) -> &'static str {
    match column {
        Column::Node => "node",
        Column::Log => "log",
        Column::State => "state",
    }
}

fn column_options(cache: &Cache, write_buffer_bytes: usize) -> rocksdb::Options {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(cache);
    tables.set_block_size(BLOCK_BYTES);
    // Ten bits a key: one useless read in a hundred look-ups of a message id that was never seen.
    tables.set_bloom_filter(10.0, false);
    // Within the cache's bound, or a million queued entries would cost memory outside of it.
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In small pieces: the filter of a whole table file is larger than a slice of the cache, so that with a few hundred
    // thousand entries each look-up read and checked it anew, and accepting became ten times slower.
    tables.set_partition_filters(true);
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_metadata_block_size(METADATA_BLOCK_BYTES);
    tables.set_pin_top_level_index_and_filter(true);
    let mut options = rocksdb::Options::default();
    options.set_block_based_table_factory(&tables);
    options.set_write_buffer_size(write_buffer_bytes);
    // Writes go on while several are being flushed; all of them together are bounded by `write_buffer_bytes`.
    options.set_max_write_buffer_number(4);
    // What fills the disk are bodies, which are encrypted and do not shrink. Keys do, and for them the fast one is enough:
    // with Zstandard on the last level compactions took a sixth of the processor under load, half of that in it.
    options.set_compression_type(DBCompressionType::Lz4);
    // Most look-ups are for ids and pairs that were never seen, and need not search a skip list of long keys for it.
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_RATIO);
    options
}

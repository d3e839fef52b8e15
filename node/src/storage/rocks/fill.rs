//! How full the bounds of the database are.
//!
//! Asked without a column, RocksDB tells of its own default one, which has a cache and memory of its own and no rows of
//! ours. So each question names a column.

use std::path::Path;

use rocksdb::properties::{self, PropName};

use super::reclaim::wal_files;
use super::{Column, Engine, Error, Fill, engine_error};

pub(super) fn fill(engine: &Engine, db_dir: &Path) -> Result<Fill, Error> {
    let mut write_buffer_bytes = 0;
    for column in [Column::Node, Column::Log, Column::State] {
        write_buffer_bytes += property(engine, column, properties::CUR_SIZE_ALL_MEM_TABLES)?;
    }
    let mut wal_bytes = 0;
    for file in wal_files(db_dir)? {
        // It may be deleted between listing and looking.
        wal_bytes += file.metadata().map_or(0, |metadata| metadata.len());
    }
    Ok(Fill {
        // All columns share one cache.
        block_cache_bytes: property(engine, Column::State, properties::BLOCK_CACHE_USAGE)?,
        write_buffer_bytes,
        wal_bytes,
        deleted_ranges: engine.deleted.notes(),
    })
}

fn property(engine: &Engine, column: Column, name: &PropName) -> Result<u64, Error> {
    let family = engine.family(column);
    let value = engine.db.property_int_value_cf(family, name);
    let value = value.map_err(|error| engine_error("measuring", error))?;
    Ok(value.unwrap_or_default())
}

//! The newest entries of a log, in memory, so that replication and apply do not read the store.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use openraft::EntryPayload;

use super::super::codec::entry_bytes;
use super::super::types::{Command, Entry};

/// A run of consecutive entries that ends with the log's last.
pub(super) struct Cache {
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// Of all caches of the node together.
    fill: ::metrics::Gauge,
}

impl Cache {
    /// Keeps so many bytes; an entry that is larger stays in the store alone.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            fill: crate::metrics::LOG_CACHE_BYTES.handle(),
        }
    }

    /// Takes in the entry behind the last one.
    pub(super) fn push(&mut self, mut entry: Entry) {
        if let EntryPayload::Normal(Command(bytes)) = &mut entry.payload {
            // It is a slice of the frame that it came in, which may be many times as large and would live as long.
            *bytes = Bytes::copy_from_slice(bytes);
        }
        let bytes = entry_bytes(&entry);
        self.bytes += bytes;
        self.fill.increment(bytes as f64);
        self.entries.push_back(entry);
        while self.bytes > self.bytes_max {
            self.pop_front();
        }
    }

    /// The entries of a range, fewer if they exceed the bytes but at least one; `None` if the first is not here.
    pub(super) fn read(&self, range: Range<u64>, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.first()?;
        let skip = usize::try_from(range.start.checked_sub(first)?).ok()?;
        let count = usize::try_from(range.end - range.start).ok()?;
        // The run ends with the log, so a range within the log ends within the run.
        if skip + count > self.entries.len() {
            return None;
        }
        let mut bytes = 0;
        let entries = self.entries.iter().skip(skip).take(count);
        let fitting = entries.enumerate().take_while(|(nth, entry)| {
            bytes += entry_bytes(entry);
            *nth == 0 || bytes <= bytes_max
        });
        Some(fitting.map(|(_, entry)| entry.clone()).collect())
    }

    /// Forgets entries up to this index.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.first().is_some_and(|first| first <= upto) {
            self.pop_front();
        }
    }

    /// Forgets entries from this index on.
    pub(super) fn truncate(&mut self, from: u64) {
        while self
            .entries
            .back()
            .is_some_and(|entry| entry.log_id.index >= from)
        {
            if let Some(entry) = self.entries.pop_back() {
                self.took_out(&entry);
            }
        }
    }

    fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.took_out(&entry);
        }
    }

    fn took_out(&mut self, entry: &Entry) {
        let bytes = entry_bytes(entry);
        self.bytes -= bytes;
        self.fill.decrement(bytes as f64);
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.fill.decrement(self.bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use openraft::LogId;
    use openraft::testing::log_id;

    use super::*;

    const BYTES_MAX: usize = 1 << 20;

    fn entry(index: u64, bytes: usize) -> Entry {
        let log_id: LogId<u64> = log_id(1, 1, index);
        Entry {
            log_id,
            payload: EntryPayload::Normal(Command(vec![0; bytes].into())),
        }
    }

    fn indexes(entries: Option<Vec<Entry>>) -> Option<Vec<u64>> {
        entries.map(|entries| entries.iter().map(|entry| entry.log_id.index).collect())
    }

    #[test]
    fn it_keeps_the_newest_within_its_bytes() {
        let mut cache = Cache::new(BYTES_MAX);
        (5..15).for_each(|index| cache.push(entry(index, BYTES_MAX / 4)));
        assert!(cache.bytes <= BYTES_MAX);
        assert_eq!(indexes(cache.read(5..15, usize::MAX)), None);
        assert_eq!(indexes(cache.read(13..15, usize::MAX)), Some(vec![13, 14]));
        cache.push(entry(15, BYTES_MAX * 2));
        assert_eq!(indexes(cache.read(15..16, 0)), None);
        assert_eq!(cache.bytes, 0);
        cache.push(entry(16, 100));
        assert_eq!(indexes(cache.read(16..17, 0)), Some(vec![16]));
    }

    #[test]
    fn it_follows_purge_and_truncation() {
        let mut cache = Cache::new(BYTES_MAX);
        (0..10).for_each(|index| cache.push(entry(index, 100)));
        cache.purge(3);
        cache.truncate(8);
        assert_eq!(indexes(cache.read(3..8, usize::MAX)), None);
        assert_eq!(
            indexes(cache.read(4..8, usize::MAX)),
            Some(vec![4, 5, 6, 7])
        );
        assert_eq!(indexes(cache.read(4..9, usize::MAX)), None);
        assert_eq!(indexes(cache.read(4..8, 400)), Some(vec![4, 5]));
        cache.truncate(0);
        assert_eq!(cache.bytes, 0);
    }
}

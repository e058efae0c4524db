//! What the engine counts of its own work: the three amplifications and what explains them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters, since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) written: Counter,
    pub(super) flushed: Counter,
    pub(super) compacted: Counter,
    pub(super) compaction_read: Counter,
    pub(super) gets: Counter,
    pub(super) table_probes: Counter,
    pub(super) filter_skips: Counter,
    pub(super) cache_hits: Counter,
    pub(super) cache_misses: Counter,
    pub(super) block_reads: Counter,
    pub(super) manifest_repairs: Counter,
    pub(super) tombstones_dropped: Counter,
    pub(super) reclaims: Counter,
    pub(super) moves: Counter,
    pub(super) demanded: Counter,
    pub(super) unread: Counter,
    pub(super) exports_ended: Counter,
    pub(super) given_up: Counter,
}

/// A snapshot of what the engine did since it was opened, and of what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of keys and values taken from the writer.
    pub written_bytes: u64,
    /// Bytes of tables written by flushes.
    pub flushed_bytes: u64,
    /// Bytes of tables written by compactions.
    pub compacted_bytes: u64,
    /// Bytes of tables read by compactions.
    pub compaction_read_bytes: u64,
    /// Point reads.
    pub gets: u64,
    /// Tables they looked into.
    pub table_probes: u64,
    /// Of these, how many the filter answered.
    pub filter_skips: u64,
    /// Blocks found in the cache.
    pub cache_hits: u64,
    /// Blocks not found there.
    pub cache_misses: u64,
    /// Blocks read from files for readers.
    pub block_reads: u64,
    /// Bytes in the cache now.
    pub cache_bytes: u64,
    /// Bytes of entries in memory now, frozen ones included, with their overhead.
    pub memtable_bytes: u64,
    /// Frozen memtables that wait for their flush.
    pub frozen: usize,
    /// Number and bytes of the tables of each level.
    pub levels: Vec<(usize, u64)>,
    /// Bytes of the largest level below level 0, or of the largest table in level 0.
    pub largest_run_bytes: u64,
    /// Manifest slots that had to be written again when the store was opened: one that a crash
    /// tore, or one that rotted.
    pub manifest_repairs: u64,
    /// Files of tables that are open now.
    pub open_files: usize,
    /// Entries in tables, tombstones and hidden entries among them.
    pub table_entries: u64,
    /// Tombstones in tables.
    pub tombstones: u64,
    /// Tombstones that flushes and compactions left out, because nothing older could lie under them.
    pub tombstones_dropped: u64,
    /// Compactions that were made for the space they give back, though no level was too large.
    pub reclaims: u64,
    /// Tables that went one level down as they were.
    pub moves: u64,
    /// Compactions that were made because a compaction of everything was asked for.
    pub demanded: u64,
    /// Flushes and compactions that were begun anew because the disk did not give back what they had written.
    pub unread: u64,
    /// Exports that were ended because they held too much of what the store does not have any more.
    pub exports_ended: u64,
    /// Tables of a damaged store that were given up for their room.
    pub given_up: u64,
    /// The disk is full, or was and the reserve is not whole again.
    pub disk_full: bool,
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl Stats {
    /// Bytes written to tables for each byte taken from the writer.
    pub fn write_amplification(&self) -> f64 {
        ratio(self.flushed_bytes + self.compacted_bytes, self.written_bytes)
    }

    /// Blocks read from files for each point read.
    pub fn read_amplification(&self) -> f64 {
        ratio(self.block_reads, self.gets)
    }

    /// Bytes of all tables for each byte of the largest sorted run among them, in which no key
    /// stands twice: at most so many times what the keys that are there need.
    pub fn space_amplification(&self) -> f64 {
        let all = self.levels.iter().map(|(_, bytes)| bytes).sum();
        ratio(all, self.largest_run_bytes)
    }
}

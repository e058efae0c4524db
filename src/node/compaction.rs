//! When the front of the log goes: the log stays near its limit whatever happens.
//!
//! The store holds everything up to its *flushed* index durably; the log in front of that is needed
//! only by followers that lag. From half of the limit on the store is asked to flush and the log is
//! cut behind what every member has acknowledged; beyond the limit it is cut at the flushed index,
//! and whoever needed what went gets a snapshot. So a member that is down for good keeps the log
//! longer, up to the limit, and never beyond.
//!
//! A node whose store is damaged flushes nothing, and its log cannot be cut. It takes no entries beyond the limit,
//! but goes on to vote and to answer heartbeats; what it misses comes again, or with a newer snapshot.
//!
//! The log's file goes by whole segments. What is on disk stays within the limit, three segments
//! (the one being written, the one that holds the cut, the spare), and what is written while one
//! flush lasts.
//!
//! Left out: who does it. This only says what is to be done, from numbers.

use crate::raft::Index;

/// Steps between two looks: this part of the limit must have been written.
const LOOKS_PER_LIMIT: u64 = 16;

/// Watches the log's size and the store's flushed index.
#[derive(Debug)]
pub(super) struct Compaction {
    limit: u64,
    bytes: u64,
    /// Bytes at the last look.
    looked_at: u64,
    flushed: Index,
    /// Flushed index at the last look.
    looked_flushed: Index,
    /// The store was asked to flush up to here.
    asked: Index,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// The log may forget everything up to here.
    pub(super) through: Option<Index>,
    /// The store is to flush.
    pub(super) flush: bool,
}

impl Compaction {
    /// Keeps the log near so many bytes.
    pub(super) fn new(limit: u64) -> Compaction {
        Compaction { limit, bytes: 0, looked_at: 0, flushed: 0, looked_flushed: 0, asked: 0 }
    }

    /// So many bytes of log are in use.
    pub(super) fn log_bytes(&mut self, bytes: u64) {
        self.bytes = bytes;
        // It shrinks without a cut when a snapshot takes its place.
        self.looked_at = self.looked_at.min(bytes);
    }

    /// Whether the log is as long as it may be: a node that cannot apply, as its store is damaged, takes no more.
    pub(super) fn is_beyond(&self) -> bool {
        self.bytes > self.limit
    }

    /// The store holds everything up to here durably.
    pub(super) fn flushed(&mut self, index: Index) {
        self.flushed = self.flushed.max(index);
    }

    /// The store is known to hold everything up to here durably.
    pub(super) fn flushed_index(&self) -> Index {
        self.flushed
    }

    /// Whether there is anything to look at: on most turns of the raft loop there is not.
    pub(super) fn is_due(&self) -> bool {
        let step = (self.limit / LOOKS_PER_LIMIT).max(1);
        let news = self.flushed > self.looked_flushed || self.bytes >= self.looked_at + step;
        news && self.bytes > self.limit / 2
    }

    /// What is to be done now. `first` is the log's first index, `shared` what every member has,
    /// `applied` what the store holds, durably or not.
    pub(super) fn look(&mut self, first: Index, shared: Index, applied: Index) -> Cut {
        if !self.is_due() {
            return Cut::default();
        }
        // The store's background may be heard before the applier.
        let flushed = self.flushed.min(applied);
        (self.looked_at, self.looked_flushed) = (self.bytes, flushed);
        let pinned = self.bytes <= self.limit;
        let through = if pinned { flushed.min(shared) } else { flushed };
        let flush = flushed < applied && self.asked <= flushed;
        if flush {
            self.asked = applied;
        }
        Cut { through: (through >= first).then_some(through), flush }
    }

    /// The log was cut: from here on it has so many bytes.
    pub(super) fn cut(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.looked_at = bytes;
    }
}

#[cfg(test)]
#[path = "tests/compaction.rs"]
mod tests;

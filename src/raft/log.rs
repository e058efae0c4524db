//! What the core knows of the replicated log: the term of every index, the entries near the end,
//! the configurations, and how much of it is durable.
//!
//! The entries themselves live in the log file; kept here are runs of equal terms (a few words for
//! any length of log, enough for every check of the protocol) and a bounded cache of the newest
//! entries (enough for every follower and applier that keeps up). Who lags reads from the file.
//!
//! Invariants:
//! - `base <= durable <= last` and `base <= handed <= last`;
//! - `runs` covers `base + 1 ..= last`, indexes and terms both strictly ascending;
//! - `cache` is contiguous and ends at `last`; everything behind `persist_from` is in it;
//! - `configurations` is ascending, never empty, its first element at or below `base`.

use super::Configuration;
use super::types::{Entry, Index, Payload, SnapshotMark, Term};
use std::collections::VecDeque;
use std::sync::Arc;

/// The log as the core sees it.
#[derive(Clone, Debug)]
pub(super) struct Log {
    pub(super) base: Index,
    pub(super) base_term: Term,
    pub(super) runs: Vec<(Index, Term)>,
    pub(super) last: Index,
    pub(super) cache: VecDeque<Entry>,
    pub(super) cache_bytes: usize,
    pub(super) cache_bytes_max: usize,
    pub(super) configurations: Vec<(Index, Arc<Configuration>)>,
    pub(super) durable: Index,
    /// First index that was not yet given to the log writer.
    pub(super) persist_from: Index,
    /// A snapshot that replaced the log, until the log writer is told.
    pub(super) reset: Option<SnapshotMark>,
    /// Requests given to the log writer and not yet durable: each makes the log durable up to an
    /// index, of what was not truncated since.
    pub(super) pending: VecDeque<(u64, Index)>,
}

/// What recovery found in the log file and beside it.
#[derive(Clone, Debug, Default)]
pub struct RestoredLog {
    /// Index before the first entry that is still there; 0 for a whole log.
    pub base: Index,
    /// Term of that index.
    pub base_term: Term,
    /// First index and term of each run of equal terms behind `base`.
    pub runs: Vec<(Index, Term)>,
    /// Last index.
    pub last: Index,
    /// Configurations: the one in force at `base`, then those in the log, ascending.
    pub configurations: Vec<(Index, Arc<Configuration>)>,
}

impl Log {
    pub(super) fn new(restored: RestoredLog, cache_bytes_max: usize) -> Log {
        let log = Log {
            base: restored.base,
            base_term: restored.base_term,
            runs: restored.runs,
            last: restored.last,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            configurations: restored.configurations,
            durable: restored.last,
            persist_from: restored.last + 1,
            reset: None,
            pending: VecDeque::new(),
        };
        log.assert_invariants();
        log
    }

    pub(super) fn base(&self) -> Index {
        self.base
    }

    pub(super) fn base_term(&self) -> Term {
        self.base_term
    }

    pub(super) fn last_index(&self) -> Index {
        self.last
    }

    pub(super) fn last_term(&self) -> Term {
        self.runs.last().map_or(self.base_term, |run| run.1)
    }

    /// Everything up to here is on this node's disk.
    pub(super) fn durable(&self) -> Index {
        self.durable
    }

    /// Term of an index, none when it lies before `base` or behind the end.
    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base {
            return Some(self.base_term);
        }
        if index < self.base || index > self.last {
            return None;
        }
        let behind = self.runs.partition_point(|run| run.0 <= index);
        self.runs.get(behind.checked_sub(1)?).map(|run| run.1)
    }

    /// Whether a log that ends so is at least as up to date as this one (paper 5.4.1).
    pub(super) fn is_up_to_date(&self, last_index: Index, last_term: Term) -> bool {
        (last_term, last_index) >= (self.last_term(), self.last)
    }

    /// The greatest index at or below `index` whose term is not above `term`, with its term: the
    /// last place where a log in which `index` has `term` can agree with this one.
    pub(super) fn last_agreeing(&self, index: Index, term: Term) -> (Index, Term) {
        let mut index = index.min(self.last);
        for &(first, run_term) in self.runs.iter().rev() {
            if first > index {
                continue;
            }
            if run_term <= term {
                return (index, run_term);
            }
            index = first - 1;
        }
        let base = self.base.min(index);
        // Where not even the base agrees, the place lies in front of it: that takes a snapshot.
        if self.base_term <= term { (base, self.base_term) } else { (base.saturating_sub(1), 0) }
    }

    /// The configuration in force: the latest in the log, committed or not (paper section 6).
    pub(super) fn configuration(&self) -> &Arc<Configuration> {
        &self.configurations[self.configurations.len() - 1].1
    }

    /// Index of the entry that holds the configuration in force.
    pub(super) fn configuration_index(&self) -> Index {
        self.configurations[self.configurations.len() - 1].0
    }

    /// The configurations that matter: the one in force at `base` and those behind it, ascending.
    pub(super) fn configurations(&self) -> &[(Index, Arc<Configuration>)] {
        &self.configurations
    }

    /// Appends one entry behind the end.
    pub(super) fn append(&mut self, entry: Entry) {
        assert_eq!(entry.index, self.last + 1, "entries are appended without a gap");
        assert!(entry.term >= self.last_term(), "terms never decrease along the log");
        if self.runs.last().is_none_or(|run| run.1 != entry.term) {
            self.runs.push((entry.index, entry.term));
        }
        if let Payload::Configuration(c) = &entry.payload {
            self.configurations.push((entry.index, Arc::clone(c)));
        }
        self.last = entry.index;
        self.cache_bytes += entry.weight();
        self.cache.push_back(entry);
    }

    /// Removes `from` and everything behind it, configurations included.
    pub(super) fn truncate(&mut self, from: Index) {
        assert!(from > self.base, "what a snapshot covers is never truncated");
        while self.runs.last().is_some_and(|run| run.0 >= from) {
            self.runs.pop();
        }
        while self.configurations.len() > 1
            && self.configurations[self.configurations.len() - 1].0 >= from
        {
            self.configurations.pop();
        }
        while self.cache.back().is_some_and(|e| e.index >= from) {
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry.weight();
            }
        }
        self.last = from - 1;
        self.durable = self.durable.min(self.last);
        // What an older request writes from here on is not to stay, even when the same entries
        // come back later: between the two the platter loses them (the ABA race of asynchronous
        // log writes), so that comparing terms on completion would not do.
        for (_, index) in &mut self.pending {
            *index = (*index).min(self.last);
        }
        self.persist_from = self.persist_from.min(from);
    }

    /// Entries from `first` while they fit `bytes_max` (at least one), none when they are not all
    /// in the cache.
    pub(super) fn cached(&self, first: Index, last: Index, bytes_max: usize) -> Option<Vec<Entry>> {
        let offset = usize::try_from(first.checked_sub(self.cache_first())?).ok()?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.cache.range(offset.min(self.cache.len())..) {
            bytes += entry.weight();
            if entry.index > last || (bytes > bytes_max && !entries.is_empty()) {
                break;
            }
            entries.push(entry.clone());
        }
        Some(entries)
    }

    /// First index that is in memory; all before it are durable.
    pub(super) fn cache_first(&self) -> Index {
        self.last + 1 - self.cache.len() as Index
    }

    /// Whether there is something that the log writer was not given yet.
    pub(super) fn has_unpersisted(&self) -> bool {
        self.persist_from <= self.last || self.reset.is_some()
    }

    /// Forgets the entries up to `through`, which the store holds durably; who needs them gets a
    /// snapshot.
    pub(super) fn compact(&mut self, through: Index) {
        let Some(term) = self.term_at(through).filter(|_| through > self.base) else { return };
        assert!(through <= self.durable, "what goes is in the store, so it was durable here");
        let behind = self.runs.partition_point(|run| run.0 <= through);
        let cut = self.runs.drain(..behind).next_back();
        let goes_on = self.runs.first().is_none_or(|run| run.0 > through + 1);
        if through < self.last
            && goes_on
            && let Some((_, term)) = cut
        {
            self.runs.insert(0, (through + 1, term));
        }
        let in_force = self.configurations.partition_point(|c| c.0 <= through);
        self.configurations.drain(..in_force.saturating_sub(1));
        (self.base, self.base_term) = (through, term);
        while self.cache.front().is_some_and(|e| e.index <= through) {
            if let Some(entry) = self.cache.pop_front() {
                self.cache_bytes -= entry.weight();
            }
        }
    }

    /// The store holds durably what the log has up to `index`; the log writer may still be at it.
    pub(super) fn hold(&mut self, index: Index) {
        assert!(index <= self.last, "the log has it");
        self.durable = self.durable.max(index);
    }

    /// Becomes the empty log behind a snapshot. What older requests write is void with the rest.
    pub(super) fn reset(&mut self, mark: SnapshotMark) {
        (self.base, self.base_term) = (mark.index, mark.term);
        self.runs.clear();
        self.last = mark.index;
        self.cache.clear();
        self.cache_bytes = 0;
        self.configurations = vec![(mark.index, Arc::clone(&mark.configuration))];
        self.durable = mark.index;
        self.persist_from = mark.index + 1;
        self.pending.clear();
        self.reset = Some(mark);
    }

    /// Hands the new entries to request `seq` of the log writer.
    pub(super) fn take_unpersisted(&mut self, seq: u64) -> Vec<Entry> {
        let offset = (self.persist_from.max(self.cache_first()) - self.cache_first()) as usize;
        let entries: Vec<Entry> = self.cache.range(offset..).cloned().collect();
        self.persist_from = self.last + 1;
        self.pending.push_back((seq, self.last));
        entries
    }

    /// Everything up to request `seq` is durable, except what was truncated since.
    pub(super) fn persisted(&mut self, seq: u64) {
        while let Some(&(pending, index)) = self.pending.front() {
            if pending > seq {
                break;
            }
            self.pending.pop_front();
            self.durable = self.durable.max(index);
        }
    }

    /// Lets go of cached entries over the budget that are durable; whoever comes for them later
    /// reads the log file.
    pub(super) fn trim_cache(&mut self) {
        while self.cache_bytes > self.cache_bytes_max
            && self.cache.front().is_some_and(|e| e.index <= self.durable)
        {
            if let Some(entry) = self.cache.pop_front() {
                self.cache_bytes -= entry.weight();
            }
        }
    }

    /// Checks the invariants of the type; a failure is a bug of ours.
    pub(super) fn assert_invariants(&self) {
        assert!(self.base <= self.durable && self.durable <= self.last, "base <= durable <= last");
        let mut before = (self.base, self.base_term);
        for &run in &self.runs {
            assert!(run.0 > before.0 || (run.0 == before.0 + 1), "runs ascend");
            assert!(run.1 > before.1 || (before.1 == self.base_term && run.1 == before.1));
            before = run;
        }
        assert!(before.0 <= self.last, "runs end within the log");
        assert_eq!(self.runs.is_empty(), self.last == self.base, "runs cover the log");
        assert!(self.persist_from >= self.cache_first(), "what is not durable is cached");
        assert!(self.cache_first() <= self.durable + 1, "what is not in memory is durable");
        assert!(self.cache.back().is_none_or(|e| e.index == self.last), "cache ends at the end");
        let first = self.configurations.first().expect("there is always a configuration");
        assert!(first.0 <= self.base, "a configuration is in force at the base");
        assert!(self.configurations.is_sorted_by(|a, b| a.0 < b.0), "configurations ascend");
        assert!(self.configuration_index() <= self.last, "configurations lie in the log");
    }
}

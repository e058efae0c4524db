//! The jobs of the background: a memtable that is flushed, tables that are compacted, a step at a time.
//!
//! A job only writes new tables. What becomes of them, and when it is durable, is the worker's.
//!
//! # When a tombstone goes
//!
//! A tombstone hides older entries of its key. It is written again, into whatever table takes its place, unless no
//! table behind that one may hold its key. What lies behind is: for a flush every table, since older memtables were
//! flushed before; for a compaction every table of the levels below its output. Tables that are merged themselves
//! do not count, because the merge shows only the newest entry of a key. "May hold" is asked of the range of keys that a
//! table says it has, so the answer errs to the safe side. Readers are no concern of it: a view, a
//! snapshot and a backup read the tables of their own version, which nothing changes.

use super::LsmError;
use super::block::Item;
use super::engine::Frozen;
use super::memtable::MemCursor;
use super::merge::{LevelCursor, Merge, Source};
use super::outputs::{Bench, Outputs, size_of};
use super::table::{Start, Table, TableCursor};
use super::version::{Pick, Version};
use std::sync::Arc;

/// A table of a compaction ends before it meets more than so many full tables of the level behind it: whoever
/// compacts it later reads all of these in one go, and a table of tombstones meets a hundred times its size.
const MEETS_MAX: u64 = 25;

/// Writes a frozen memtable to tables of level 0.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) frozen: Arc<Frozen>,
    /// All tables that hold what is older.
    base: Arc<Version>,
    cursor: MemCursor,
    pub(super) outputs: Outputs,
}

impl Flush {
    pub(super) fn new(frozen: Arc<Frozen>, base: Arc<Version>) -> Flush {
        // Only the newest version of each key: older ones are seen by views that share the
        // memtable itself.
        let cursor = MemCursor::new(Arc::clone(&frozen.table), u64::MAX, Start::End, false);
        Flush { frozen, base, cursor, outputs: Outputs::default() }
    }

    /// Writes a piece; true when all is written.
    pub(super) fn step(&mut self, bench: &Bench<'_>) -> Result<bool, LsmError> {
        let mut left = bench.shared.options.step_bytes;
        while self.cursor.is_valid() {
            let (key, item) = (self.cursor.key(), self.cursor.item());
            let size = size_of(key, item);
            if item != Item::Tombstone || self.base.may_hold(key) {
                self.outputs.add(bench, key, item)?;
            } else {
                bench.shared.shelf.counters.tombstones_dropped.add(1);
            }
            self.cursor.advance();
            left = left.saturating_sub(size);
            if left == 0 {
                return Ok(false);
            }
        }
        self.outputs.end_table()?;
        Ok(true)
    }
}

/// Merges tables into the next level.
#[derive(Debug)]
pub(super) struct Compaction {
    pub(super) pick: Pick,
    /// The version it was picked from; the levels below its output stay as they are meanwhile.
    base: Arc<Version>,
    merge: Merge,
    pub(super) outputs: Outputs,
    /// How many tables of the level behind its output lie in front of where it is, and the bytes of those that the
    /// table being written meets.
    passed: usize,
    met_bytes: u64,
    /// It is a piece of another one and ends with this key.
    pub(super) until: Option<Pieces>,
}

/// How far a compaction in pieces has come: the level below it holds all that its upper tables say
/// up to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    level: usize,
    /// Numbers of the upper tables.
    upper: Vec<u64>,
    through: Vec<u8>,
}

impl Compaction {
    pub(super) fn new(pick: Pick, base: Arc<Version>) -> Result<Compaction, LsmError> {
        Compaction::behind(Start::End, pick, base, None)
    }

    /// What is left of a compaction in pieces, behind what is done of it: the next piece, which
    /// replaces one table of the lower level, or the last.
    pub(super) fn piece(
        mut pick: Pick,
        base: Arc<Version>,
        done: Option<&Pieces>,
    ) -> Result<Compaction, LsmError> {
        let numbers: Vec<u64> = pick.inputs[0].iter().map(|t| t.meta.number).collect();
        let done = done.filter(|done| done.level == pick.level && done.upper == numbers);
        let start = done.map_or(Start::End, |done| Start::Behind(&done.through));
        let is_left = |t: &&Arc<Table>| done.is_none_or(|done| t.meta.largest > done.through);
        let mut lower: Vec<_> = pick.inputs[1].iter().filter(is_left).cloned().collect();
        let until = (lower.len() > 1).then(|| {
            lower.truncate(1);
            Pieces { level: pick.level, upper: numbers, through: lower[0].meta.largest.clone() }
        });
        pick.inputs[1] = Arc::new(lower);
        Compaction::behind(start, pick, base, until)
    }

    fn behind(
        start: Start<'_>,
        pick: Pick,
        base: Arc<Version>,
        until: Option<Pieces>,
    ) -> Result<Compaction, LsmError> {
        let [upper, lower] = &pick.inputs;
        let mut sources = Vec::with_capacity(upper.len() + 1);
        for table in upper.iter() {
            let cursor = TableCursor::new(Arc::clone(table), start, false, true)?;
            sources.push(Source::Table(cursor));
        }
        sources.push(Source::Level(LevelCursor::new(lower, start, false, true)?));
        let merge = Merge::new(sources, false);
        let (outputs, passed, met_bytes) = (Outputs::default(), 0, 0);
        Ok(Compaction { pick, base, merge, outputs, passed, met_bytes, until })
    }

    /// Merges a piece; true when all is written.
    pub(super) fn step(&mut self, bench: &Bench<'_>) -> Result<bool, LsmError> {
        let options = bench.shared.options;
        let below = self.pick.level + 1;
        let base = Arc::clone(&self.base);
        let behind = base.levels.get(below + 1).map_or(&[][..], |level| level);
        let mut left = options.step_bytes;
        while self.merge.is_valid() {
            let (key, item) = (self.merge.key(), self.merge.item());
            if self.until.as_ref().is_some_and(|until| key > until.through.as_slice()) {
                break;
            }
            left = left.saturating_sub(size_of(key, item));
            // A tombstone goes when nothing older can lie under it.
            if item != Item::Tombstone || base.may_hold_below(below, key) {
                while let Some(table) = behind.get(self.passed)
                    && table.meta.largest.as_slice() < key
                {
                    self.passed += 1;
                    self.met_bytes += table.meta.bytes;
                }
                if self.met_bytes > MEETS_MAX * options.table_bytes {
                    self.outputs.end_table()?;
                    self.met_bytes = 0;
                }
                self.outputs.add(bench, key, item)?;
                if self.outputs.bytes() >= options.table_bytes {
                    self.outputs.end_table()?;
                    self.met_bytes = 0;
                }
            } else {
                bench.shared.shelf.counters.tombstones_dropped.add(1);
            }
            self.merge.advance()?;
            if left == 0 {
                return Ok(false);
            }
        }
        self.outputs.end_table()?;
        Ok(true)
    }
}

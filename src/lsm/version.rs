//! A version: the tables that make up the store at one time, and the choice of what to compact.
//!
//! Versions are immutable and shared; a flush or a compaction makes a new one. A table lives as
//! long as a version that names it, and its file as long as the table (see [`Table`]).

use super::LsmError;
use super::manifest::{LEVELS, State};
use super::table::{Lookup, Table, TableMeta};
use std::sync::Arc;

/// Tables of level 0 that call for a compaction: each of them costs every read a look.
pub(super) const LEVEL0_TRIGGER: usize = 4;
/// How much larger a level is than the one above.
pub(super) const LEVEL_RATIO: u64 = 10;

/// The tables of a level, shared by the versions in which it is the same.
pub(super) type Level = Arc<Vec<Arc<Table>>>;

/// The tables of each level: newest first in level 0, where they overlap; ascending and apart in
/// the others.
#[derive(Clone, Debug, Default)]
pub(super) struct Version {
    /// Every write up to this index is in the tables, none after.
    pub(super) applied: u64,
    pub(super) levels: [Level; LEVELS],
}

/// What a compaction merges: tables of `level` and of the one below.
#[derive(Debug)]
pub(super) struct Pick {
    pub(super) level: usize,
    pub(super) inputs: [Level; 2],
}

impl Pick {
    /// All that it merges.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.inputs.iter().flat_map(|tables| tables.iter())
    }
}

/// Adds up a level.
pub(super) fn bytes_of(tables: &[Arc<Table>]) -> u64 {
    tables.iter().map(|t| t.meta.bytes).sum()
}

/// What a level may hold before it is compacted.
pub(super) fn target(level: usize, level1_bytes: u64) -> u64 {
    (1..level).fold(level1_bytes, |bytes, _| bytes.saturating_mul(LEVEL_RATIO))
}

impl Version {
    /// All tables.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.levels.iter().flat_map(|level| level.iter())
    }

    /// Damage that was met in one of them.
    pub(super) fn damage(&self) -> Option<LsmError> {
        self.tables().find_map(|table| table.damage())
    }

    /// Looks a key up in the tables, newest first.
    pub(super) fn get(&self, key: &[u8], hash: u64) -> Result<Lookup, LsmError> {
        for table in self.levels[0].iter() {
            if table.meta.overlaps(key, key) {
                match table.get(key, hash)? {
                    Lookup::Absent => {}
                    found => return Ok(found),
                }
            }
        }
        for tables in &self.levels[1..] {
            let at = tables.partition_point(|t| t.meta.largest.as_slice() < key);
            if let Some(table) = tables.get(at).filter(|t| t.meta.smallest.as_slice() <= key) {
                match table.get(key, hash)? {
                    Lookup::Absent => {}
                    found => return Ok(found),
                }
            }
        }
        Ok(Lookup::Absent)
    }

    /// Whether some table below `level` may hold the key: a tombstone must then stay.
    pub(super) fn may_hide_below(&self, level: usize, key: &[u8]) -> bool {
        self.levels[level + 1..].iter().any(|tables| {
            let at = tables.partition_point(|t| t.meta.largest.as_slice() < key);
            tables.get(at).is_some_and(|t| t.meta.smallest.as_slice() <= key)
        })
    }

    /// The version with these tables of a compaction replaced by others in the level below.
    pub(super) fn replaced(&self, pick: &Pick, outputs: &[Arc<Table>]) -> Version {
        let mut version = self.clone();
        for (i, inputs) in pick.inputs.iter().enumerate() {
            let gone = |t: &Arc<Table>| inputs.iter().any(|g| g.meta.number == t.meta.number);
            Arc::make_mut(&mut version.levels[pick.level + i]).retain(|t| !gone(t));
        }
        let below = Arc::make_mut(&mut version.levels[pick.level + 1]);
        below.extend(outputs.iter().cloned());
        below.sort_by(|a, b| a.meta.smallest.cmp(&b.meta.smallest));
        version
    }

    /// The version with a flushed table on top.
    pub(super) fn flushed(&self, table: Arc<Table>) -> Version {
        let mut version = self.clone();
        Arc::make_mut(&mut version.levels[0]).insert(0, table);
        version
    }

    /// Bytes of the largest set of tables in which no key stands twice.
    pub(super) fn largest_run_bytes(&self) -> u64 {
        let tables = self.levels[0].iter().map(|t| t.meta.bytes);
        tables.chain(self.levels[1..].iter().map(|l| bytes_of(l))).max().unwrap_or(0)
    }

    /// How urgent the compaction of each level is; from 1 on it is due.
    fn score(&self, level: usize, level1_bytes: u64) -> f64 {
        if level == 0 {
            return self.levels[0].len() as f64 / LEVEL0_TRIGGER as f64;
        }
        bytes_of(&self.levels[level]) as f64 / target(level, level1_bytes) as f64
    }

    /// Bytes that lie above the sizes the levels should have: the work that waits.
    pub(super) fn debt(&self, level1_bytes: u64) -> u64 {
        let over = |level: usize| {
            bytes_of(&self.levels[level]).saturating_sub(target(level, level1_bytes))
        };
        (1..LEVELS - 1).map(over).sum()
    }

    /// What should be compacted next, if anything is due.
    pub(super) fn pick(&self, level1_bytes: u64, pointers: &[Vec<u8>; LEVELS]) -> Option<Pick> {
        let (score, level) = (0..LEVELS - 1)
            .map(|level| (self.score(level, level1_bytes), level))
            .max_by(|a, b| a.0.total_cmp(&b.0))?;
        if score < 1.0 {
            return None;
        }
        let upper = if level == 0 { self.oldest_cluster() } else { self.after(level, pointers) };
        self.pick_of(level, upper)
    }

    /// What should be compacted while the disk is full: whatever may give space back, though it is
    /// not due. That is level 0, which may hide what lies below, then tombstones above something.
    pub(super) fn pick_for_space(&self) -> Option<Pick> {
        if let Some(pick) = self.pick_of(0, self.oldest_cluster()) {
            return Some(pick);
        }
        let below = |level: usize| {
            let hiding = self.levels[level].iter().filter(|t| t.meta.tombstones > 0);
            let mut picks = hiding.filter_map(|t| self.pick_of(level, vec![Arc::clone(t)]));
            picks.find(|pick| !pick.inputs[1].is_empty())
        };
        (1..LEVELS - 1).find_map(below)
    }

    fn pick_of(&self, level: usize, upper: Vec<Arc<Table>>) -> Option<Pick> {
        let smallest = upper.iter().map(|t| t.meta.smallest.as_slice()).min()?;
        let largest = upper.iter().map(|t| t.meta.largest.as_slice()).max()?;
        let overlaps = |t: &&Arc<Table>| t.meta.overlaps(smallest, largest);
        let lower = self.levels[level + 1].iter().filter(overlaps).cloned().collect();
        Some(Pick { level, inputs: [upper, lower].map(Arc::new) })
    }

    /// The oldest table of level 0 with all that overlap it, directly or by another: no table that
    /// stays overlaps them, so that all of them may go below what stays.
    fn oldest_cluster(&self) -> Vec<Arc<Table>> {
        let mut rest = self.levels[0].to_vec();
        let mut cluster: Vec<Arc<Table>> = rest.pop().into_iter().collect();
        let touches = |cluster: &[Arc<Table>], meta: &TableMeta| {
            cluster.iter().any(|t| t.meta.overlaps(&meta.smallest, &meta.largest))
        };
        while let Some(at) = rest.iter().position(|t| touches(&cluster, &t.meta)) {
            cluster.push(rest.remove(at));
        }
        // Newest first, as the merge ranks them.
        cluster.sort_by_key(|t| std::cmp::Reverse(t.meta.number));
        cluster
    }

    /// The table behind the one that was compacted last: round and round through the level.
    fn after(&self, level: usize, pointers: &[Vec<u8>; LEVELS]) -> Vec<Arc<Table>> {
        let tables = &self.levels[level];
        let at = tables.partition_point(|t| t.meta.smallest <= pointers[level]);
        tables.get(at).or_else(|| tables.first()).cloned().into_iter().collect()
    }

    /// As the manifest says it.
    pub(super) fn state(&self, next_file: u64, pointers: [Vec<u8>; LEVELS]) -> State {
        let metas = |tables: &Level| tables.iter().map(|t| t.meta.clone()).collect();
        State {
            applied: self.applied,
            next_file,
            pointers,
            levels: self.levels.each_ref().map(metas),
        }
    }
}

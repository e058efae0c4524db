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
/// A compaction is made for its space when at least one part in so many of what it reads comes back. Less is what
/// levels of growing size cost anyway.
const RECLAIM_PARTS: f64 = 8.0;
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

/// Those of a level below level 0 that have keys in a closed range.
fn overlapping<'t>(tables: &'t [Arc<Table>], smallest: &[u8], largest: &[u8]) -> &'t [Arc<Table>] {
    let from = tables.partition_point(|t| t.meta.largest.as_slice() < smallest);
    let tables = &tables[from..];
    &tables[..tables.partition_point(|t| t.meta.smallest.as_slice() <= largest)]
}

/// Bytes, entries that are no tombstones, and tombstones.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    bytes: u64,
    puts: u64,
    tombstones: u64,
}

impl Sum {
    fn of<'t>(tables: impl IntoIterator<Item = &'t Arc<Table>>) -> Sum {
        tables.into_iter().fold(Sum::default(), |sum, table| {
            let TableMeta { bytes, entries, tombstones, .. } = table.meta;
            Sum {
                bytes: sum.bytes + bytes,
                puts: sum.puts + entries.saturating_sub(tombstones),
                tombstones: sum.tombstones + tombstones,
            }
        })
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

/// The first and the last key of some tables.
fn range_of(tables: &[Arc<Table>]) -> Option<(&[u8], &[u8])> {
    let smallest = tables.iter().map(|t| t.meta.smallest.as_slice()).min()?;
    let largest = tables.iter().map(|t| t.meta.largest.as_slice()).max()?;
    Some((smallest, largest))
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

    /// Whether some table may hold the key: a tombstone on top of all of them must then stay.
    pub(super) fn may_hold(&self, key: &[u8]) -> bool {
        self.levels[0].iter().any(|t| t.meta.overlaps(key, key)) || self.may_hold_below(0, key)
    }

    /// Whether some table below `level` may hold the key: a tombstone above must then stay.
    pub(super) fn may_hold_below(&self, level: usize, key: &[u8]) -> bool {
        self.levels[level + 1..].iter().any(|tables| !overlapping(tables, key, key).is_empty())
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

    /// How many tables of one space lie in level 0, of that which has most, and that space: no read looks into more.
    pub(super) fn level0_depth(&self) -> (usize, u8) {
        let space = |table: &Arc<Table>| table.meta.smallest.first().copied().unwrap_or(0);
        // Asked at every batch: there are few tables, and nothing is allocated.
        let spaces = || self.levels[0].iter().map(space);
        let depth = |of: u8| spaces().filter(|space| *space == of).count();
        spaces().map(|space| (depth(space), space)).max().unwrap_or((0, 0))
    }

    /// How urgent the compaction of each level is; from 1 on it is due.
    fn score(&self, level: usize, level1_bytes: u64) -> f64 {
        if level == 0 {
            return self.level0_depth().0 as f64 / LEVEL0_TRIGGER as f64;
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
        let upper = match level {
            0 => {
                let space = Some(self.level0_depth().1);
                let its = |t: &Arc<Table>| t.meta.smallest.first().copied() == space;
                self.cluster(self.levels[0].iter().rposition(its)?)
            }
            _ => self.after(level, pointers),
        };
        self.pick_of(level, upper)
    }

    /// What should be compacted for the space that it gives back, when nothing else is due: tables whose tombstones
    /// hide much of what lies below them, or nothing any more.
    pub(super) fn pick_to_reclaim(&self) -> Option<Pick> {
        let mut best: Option<(f64, usize, Vec<Arc<Table>>)> = None;
        let mut consider = |level: usize, upper: Vec<Arc<Table>>| {
            let gain = self.gain(level, &upper);
            if gain * RECLAIM_PARTS >= 1.0 && best.as_ref().is_none_or(|(most, ..)| gain > *most) {
                best = Some((gain, level, upper));
            }
        };
        for level in 0..LEVELS - 1 {
            let tables = self.levels[level].iter().enumerate();
            for (at, table) in tables.filter(|(_, t)| t.meta.tombstones > 0) {
                consider(
                    level,
                    if level == 0 { self.cluster(at) } else { vec![Arc::clone(table)] },
                );
            }
        }
        let (_, level, upper) = best?;
        self.pick_of(level, upper)
    }

    /// What a compaction of everything does next with those tables of a level that have a number below `numbers`: what
    /// lies above something goes down, and so does what has tombstones.
    pub(super) fn pick_on_demand(&self, level: usize, numbers: u64) -> Option<Pick> {
        let tables = self.levels[level].iter().enumerate().rev();
        let mut old = tables.filter(|(_, t)| t.meta.number < numbers);
        old.find_map(|(at, table)| {
            let upper = if level == 0 { self.cluster(at) } else { vec![Arc::clone(table)] };
            let (smallest, largest) = range_of(&upper)?;
            let below = &self.levels[level + 1..];
            let lies_above = below.iter().any(|t| !overlapping(t, smallest, largest).is_empty());
            let has_tombstones = upper.iter().any(|t| t.meta.tombstones > 0);
            (lies_above || has_tombstones || upper.len() > 1).then_some(upper)
        })
        .and_then(|upper| self.pick_of(level, upper))
    }

    /// Bytes that tombstones of these tables would give back, there and further down, for each byte that is read to
    /// bring them one level down: an estimate, since what a tombstone hides, if anything, is not known.
    fn gain(&self, level: usize, upper: &[Arc<Table>]) -> f64 {
        let own = Sum::of(upper);
        let Some((smallest, largest)) = range_of(upper).filter(|_| own.tombstones > 0) else {
            return 0.0;
        };
        let level_sum = |level: usize| Sum::of(overlapping(&self.levels[level], smallest, largest));
        let lower = level_sum(level + 1);
        let below = (level + 1..LEVELS).map(level_sum).fold(Sum::default(), |a, b| Sum {
            bytes: a.bytes + b.bytes,
            puts: a.puts + b.puts,
            tombstones: a.tombstones + b.tombstones,
        });
        let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
        let hidden = below.bytes as f64 * share(own.tombstones, below.puts).min(1.0);
        // Those that nothing lies under go themselves.
        let ends = (below.bytes == lower.bytes) as u64 as f64;
        let own_bytes = own.bytes as f64 * share(own.tombstones, own.puts + own.tombstones);
        (hidden + ends * own_bytes) / (own.bytes + lower.bytes).max(1) as f64
    }

    /// Bytes that so many tombstones on top may hide, if that is worth a compaction.
    pub(super) fn hidden_by(&self, tombstones: u64) -> Option<u64> {
        let all = Sum::of(self.tables());
        let hidden = all.bytes as f64 * (tombstones as f64 / all.puts.max(1) as f64).min(1.0);
        (hidden * RECLAIM_PARTS >= all.bytes as f64).then_some(hidden as u64)
    }

    /// Whether a compaction may hand its table down as it is: it meets nothing, and rewriting it would not rid it of
    /// many tombstones.
    pub(super) fn moves(&self, pick: &Pick) -> bool {
        let ([table], []) = (pick.inputs[0].as_slice(), pick.inputs[1].as_slice()) else {
            return false;
        };
        table.meta.tombstones == 0 || {
            let TableMeta { smallest, largest, .. } = &table.meta;
            let below = &self.levels[pick.level + 1..];
            below.iter().any(|tables| !overlapping(tables, smallest, largest).is_empty())
        }
    }

    /// What should be compacted while the disk is full: whatever may give space back, though it is
    /// not due. That is level 0, which may hide what lies below, then tombstones above something.
    pub(super) fn pick_for_space(&self) -> Option<Pick> {
        if let Some(oldest) = self.levels[0].len().checked_sub(1) {
            return self.pick_of(0, self.cluster(oldest));
        }
        let below = |level: usize| {
            let hiding = self.levels[level].iter().filter(|t| t.meta.tombstones > 0);
            let mut picks = hiding.filter_map(|t| self.pick_of(level, vec![Arc::clone(t)]));
            picks.find(|pick| !pick.inputs[1].is_empty())
        };
        (1..LEVELS - 1).find_map(below)
    }

    fn pick_of(&self, level: usize, upper: Vec<Arc<Table>>) -> Option<Pick> {
        let (smallest, largest) = range_of(&upper)?;
        let lower = overlapping(&self.levels[level + 1], smallest, largest).to_vec();
        Some(Pick { level, inputs: [upper, lower].map(Arc::new) })
    }

    /// A table of level 0 with all that overlap it, directly or by another: no table that
    /// stays overlaps them, so that all of them may go below what stays.
    fn cluster(&self, at: usize) -> Vec<Arc<Table>> {
        let mut rest = self.levels[0].to_vec();
        let mut cluster = vec![rest.remove(at)];
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

//! Compactions of everything, on demand: level by level from the top, in pieces as any other, when nothing else is due.
//!
//! What is written meanwhile is not waited for: of each level only those tables go down that were there when its turn came.

use super::engine::{Reader, Shared};
use super::manifest::LEVELS;
use super::version::{Pick, Version, bytes_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What readers ask for, and how far it is.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// How many were asked for, and how many of these are done.
    asked: AtomicU64,
    done: AtomicU64,
    /// What lies above this level is done of the present one.
    level: AtomicUsize,
}

/// The one that the worker makes.
#[derive(Debug, Default)]
pub(super) struct Demanded {
    present: Option<Present>,
}

#[derive(Debug)]
struct Present {
    /// It was asked for by all up to this one.
    asked: u64,
    /// The level whose tables are brought down.
    level: usize,
    /// Tables with this number, or a higher one, came to be while that was done.
    numbers: u64,
}

impl Demanded {
    /// The next piece of what was asked for; none when all is done.
    pub(super) fn pick(&mut self, shared: &Shared, base: &Version) -> Option<Pick> {
        let demand = &shared.demand;
        let asked = demand.asked.load(Ordering::Acquire);
        if self.present.is_none() && demand.done.load(Ordering::Acquire) < asked {
            self.present = Some(Present { asked, level: 0, numbers: shared.next_file_now() });
        }
        while let Some(present) = &mut self.present {
            demand.level.store(present.level, Ordering::Relaxed);
            if let Some(pick) = base.pick_on_demand(present.level, present.numbers) {
                return Some(pick);
            }
            present.level += 1;
            present.numbers = shared.next_file_now();
            if present.level == LEVELS - 1 {
                demand.level.store(0, Ordering::Relaxed);
                demand.done.store(present.asked, Ordering::Release);
                self.present = None;
            }
        }
        None
    }
}

impl Reader {
    /// Has everything compacted that is in tables now, when nothing else is due: until no key stands twice and no
    /// tombstone is left. See [`Reader::compaction_left`].
    pub fn compact(&self) {
        self.shared.demand.asked.fetch_add(1, Ordering::AcqRel);
        self.shared.shelf.bell.ring();
    }

    /// How much a compaction of everything still has to bring down, in bytes, nearly; none when none is under way, or
    /// when damage is in its way.
    pub fn compaction_left(&self) -> Option<u64> {
        let demand = &self.shared.demand;
        let version = Arc::clone(&self.shared.sources().version);
        let is_done = demand.done.load(Ordering::Acquire) == demand.asked.load(Ordering::Acquire);
        if is_done || version.damage().is_some() {
            return None;
        }
        let level = demand.level.load(Ordering::Relaxed);
        let deepest = version.levels.iter().rposition(|tables| !tables.is_empty()).unwrap_or(0);
        let above = &version.levels[level.min(deepest)..deepest];
        Some(above.iter().map(|tables| bytes_of(tables)).sum())
    }
}

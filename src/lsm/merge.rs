//! Walks over everything at once: memtables and levels merged by key, in either direction.
//!
//! A walk has one direction for life. Of several entries for a key the one of the newest source
//! counts. The sources stand in order of their keys; the first one is advanced and put back in its
//! place, which most often is where it was, so that a step costs about one comparison.

use super::LsmError;
use super::block::Item;
use super::memtable::MemCursor;
use super::table::{Start, TableCursor};
use super::version::Level;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

/// A walk over tables that lie apart: one after the other, each opened when it is reached.
#[derive(Debug)]
pub(super) struct LevelCursor {
    tables: Level,
    /// Which of them are not yet reached.
    rest: Range<usize>,
    current: Option<TableCursor>,
    reverse: bool,
    window: bool,
}

impl LevelCursor {
    /// Walks over tables that ascend and lie apart.
    pub(super) fn new(
        tables: &Level,
        start: Start<'_>,
        reverse: bool,
        window: bool,
    ) -> Result<LevelCursor, LsmError> {
        let rest = match start {
            Start::End => 0..tables.len(),
            Start::At(key) | Start::Behind(key) if reverse => {
                0..tables.partition_point(|t| t.meta.smallest.as_slice() <= key)
            }
            Start::At(key) | Start::Behind(key) => {
                tables.partition_point(|t| t.meta.largest.as_slice() < key)..tables.len()
            }
        };
        let tables = Arc::clone(tables);
        let mut cursor = LevelCursor { tables, rest, current: None, reverse, window };
        cursor.enter(start)?;
        Ok(cursor)
    }

    /// Opens tables until one has an entry.
    fn enter(&mut self, mut start: Start<'_>) -> Result<(), LsmError> {
        while !self.current.as_ref().is_some_and(TableCursor::is_valid) {
            let next = if self.reverse { self.rest.next_back() } else { self.rest.next() };
            let Some(table) = next.and_then(|at| self.tables.get(at)) else { break };
            let table = Arc::clone(table);
            self.current = Some(TableCursor::new(table, start, self.reverse, self.window)?);
            start = Start::End;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), LsmError> {
        if let Some(current) = &mut self.current {
            current.advance()?;
        }
        self.enter(Start::End)
    }
}

/// One source of a walk.
#[derive(Debug)]
pub(super) enum Source {
    Mem(MemCursor),
    Table(TableCursor),
    Level(LevelCursor),
}

impl Source {
    fn is_valid(&self) -> bool {
        match self {
            Source::Mem(cursor) => cursor.is_valid(),
            Source::Table(cursor) => cursor.is_valid(),
            Source::Level(level) => level.current.as_ref().is_some_and(TableCursor::is_valid),
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Source::Mem(cursor) => cursor.key(),
            Source::Table(cursor) => cursor.key(),
            Source::Level(level) => level.current.as_ref().map_or(&[], TableCursor::key),
        }
    }

    fn item(&self) -> Item<'_> {
        match self {
            Source::Mem(cursor) => cursor.item(),
            Source::Table(cursor) => cursor.item(),
            Source::Level(level) => {
                level.current.as_ref().map_or(Item::Tombstone, TableCursor::item)
            }
        }
    }

    fn advance(&mut self) -> Result<(), LsmError> {
        match self {
            Source::Mem(cursor) => {
                cursor.advance();
                Ok(())
            }
            Source::Table(cursor) => cursor.advance(),
            Source::Level(level) => level.advance(),
        }
    }
}

/// The merged walk; shows each key once, tombstones included. Invariant: `sources` holds those
/// that are not at their end, by key in the walk's direction, then newest first.
#[derive(Debug)]
pub(super) struct Merge {
    /// Rank (0 is newest) and source. The next one last, where it is cheap to take out.
    sources: Vec<(usize, Box<Source>)>,
    reverse: bool,
    /// What was stepped over because something newer hides it: see [`work_of`].
    hidden: u64,
}

/// Bytes of an entry that cost as much work as the entry itself: a block.
const BYTES_PER_WORK: usize = 4 << 10;

/// What it costs to step over an entry.
fn work_of(item: Item<'_>) -> u64 {
    match item {
        Item::Put { value, .. } => 1 + (value.len() / BYTES_PER_WORK) as u64,
        Item::Tombstone => 1,
    }
}

impl Merge {
    /// Merges sources, newest first.
    pub(super) fn new(sources: Vec<Source>, reverse: bool) -> Merge {
        let mut merge = Merge { sources: Vec::with_capacity(sources.len()), reverse, hidden: 0 };
        for (rank, source) in sources.into_iter().enumerate().filter(|(_, s)| s.is_valid()) {
            merge.sources.push((rank, Box::new(source)));
            merge.settle();
        }
        merge
    }

    pub(super) fn is_valid(&self) -> bool {
        !self.sources.is_empty()
    }

    pub(super) fn key(&self) -> &[u8] {
        self.sources.last().map_or(&[], |(_, source)| source.key())
    }

    pub(super) fn item(&self) -> Item<'_> {
        self.sources.last().map_or(Item::Tombstone, |(_, source)| source.item())
    }

    /// Work that hidden entries have cost.
    pub(super) fn hidden(&self) -> u64 {
        self.hidden
    }

    /// Goes on to the next key.
    pub(super) fn advance(&mut self) -> Result<(), LsmError> {
        // Older entries for this key stand right behind: they are hidden.
        while let [.., (_, older), (_, first)] = self.sources.as_mut_slice()
            && older.key() == first.key()
        {
            self.hidden += work_of(older.item());
            older.advance()?;
            let at = self.sources.len() - 2;
            if self.sources[at].1.is_valid() {
                self.sink(at);
            } else {
                self.sources.remove(at);
            }
        }
        if let Some((_, first)) = self.sources.last_mut() {
            first.advance()?;
            if first.is_valid() {
                self.settle();
            } else {
                self.sources.pop();
            }
        }
        Ok(())
    }

    fn settle(&mut self) {
        self.sink(self.sources.len() - 1);
    }

    /// Moves the source at a place away from the end until all behind it come first.
    fn sink(&mut self, mut at: usize) {
        while at > 0 && self.compare(&self.sources[at], &self.sources[at - 1]) == Ordering::Greater
        {
            self.sources.swap(at, at - 1);
            at -= 1;
        }
    }

    fn compare(&self, a: &(usize, Box<Source>), b: &(usize, Box<Source>)) -> Ordering {
        let keys = a.1.key().cmp(b.1.key());
        let keys = if self.reverse { keys.reverse() } else { keys };
        keys.then(a.0.cmp(&b.0))
    }
}

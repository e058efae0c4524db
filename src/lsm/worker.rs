//! The background: flushes and compactions as step objects, driven by a thread or a simulator.
//!
//! [`Worker::step`] does a bounded piece of the most urgent job. A job writes new tables, syncs
//! them and their names, writes the manifest, and only then shows the new version and gives up the
//! files it replaced: whatever the moment of a crash, a manifest names only complete files.

use super::LsmError;
use super::block::Item;
use super::engine::{Frozen, Shared};
use super::manifest::LEVELS;
use super::memtable::MemCursor;
use super::merge::{LevelCursor, Merge, Source};
use super::table::{Start, Table, TableBuilder, TableCursor, TableMeta, table_name};
use super::version::{Pick, Version};
use crate::env::Disk;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A piece of a job; there may be more.
    Worked,
    /// Damage was met in a table that was to be compacted: [`super::Reader::damage`] says what.
    /// Nothing is compacted from now on, until a snapshot is installed; flushes go on.
    Damaged,
    /// Nothing was to be done.
    Idle,
}

/// What the owner of a [`Worker::run`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Every batch up to this index is durable in tables.
    Flushed(u64),
    /// As [`Step::Damaged`].
    Damaged,
}

/// Does the engine's background work. Invariant: it alone changes the version and writes the
/// manifest, so the current version is the manifest's.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    pointers: [Vec<u8>; LEVELS],
    /// Snapshots that had been installed when the jobs were begun: of an older state they are void.
    epoch: u64,
    flush: Option<Flush>,
    compaction: Option<Compaction>,
}

/// Writes a frozen memtable to a table.
#[derive(Debug)]
struct Flush {
    frozen: Arc<Frozen>,
    cursor: MemCursor,
    builder: Option<TableBuilder>,
}

/// Merges tables into the next level.
#[derive(Debug)]
struct Compaction {
    pick: Pick,
    /// The version it was picked from; the levels below its output stay as they are meanwhile.
    base: Arc<Version>,
    merge: Merge,
    builder: Option<TableBuilder>,
    outputs: Vec<TableMeta>,
}

/// What jobs need to make tables.
struct Bench<'w> {
    shared: &'w Shared,
    disk: &'w dyn Disk,
}

impl Bench<'_> {
    fn builder(&mut self) -> Result<TableBuilder, LsmError> {
        self.shared.new_table(self.disk, self.shared.next_file())
    }
}

impl Flush {
    fn new(frozen: Arc<Frozen>) -> Flush {
        // Only the newest version of each key: older ones are seen by views that share the
        // memtable itself.
        let cursor = MemCursor::new(Arc::clone(&frozen.table), u64::MAX, Start::End, false);
        Flush { frozen, cursor, builder: None }
    }

    /// Writes a piece; true when all is written.
    fn step(&mut self, bench: &mut Bench<'_>) -> Result<bool, LsmError> {
        let step = bench.shared.options.step_bytes;
        let start = self.builder.as_ref().map_or(0, TableBuilder::bytes);
        while self.cursor.is_valid() {
            let builder = match &mut self.builder {
                Some(builder) => builder,
                none => none.insert(bench.builder()?),
            };
            builder.add(self.cursor.key(), self.cursor.item())?;
            self.cursor.advance();
            if builder.bytes() >= start + step {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Compaction {
    fn new(pick: Pick, base: Arc<Version>) -> Result<Compaction, LsmError> {
        let [upper, lower] = &pick.inputs;
        let mut sources = Vec::with_capacity(upper.len() + 1);
        for table in upper.iter() {
            let cursor = TableCursor::new(Arc::clone(table), Start::End, false, true)?;
            sources.push(Source::Table(cursor));
        }
        sources.push(Source::Level(LevelCursor::new(lower, Start::End, false, true)?));
        let merge = Merge::new(sources, false);
        Ok(Compaction { pick, base, merge, builder: None, outputs: Vec::new() })
    }

    /// Merges a piece; true when all is written.
    fn step(&mut self, bench: &mut Bench<'_>) -> Result<bool, LsmError> {
        let options = bench.shared.options;
        let mut done = 0;
        while self.merge.is_valid() {
            let (key, item) = (self.merge.key(), self.merge.item());
            done += key.len() as u64 + 8;
            if let Item::Put { value, .. } = item {
                done += value.len() as u64;
            }
            let below = self.pick.level + 1;
            // A tombstone goes when nothing older can lie under it.
            if item != Item::Tombstone || self.base.may_hide_below(below, key) {
                let builder = match &mut self.builder {
                    Some(builder) => builder,
                    none => none.insert(bench.builder()?),
                };
                builder.add(key, item)?;
                if builder.bytes() >= options.table_bytes {
                    self.end_table()?;
                }
            }
            self.merge.advance()?;
            if done >= options.step_bytes {
                return Ok(false);
            }
        }
        self.end_table()?;
        Ok(true)
    }

    fn end_table(&mut self) -> Result<(), LsmError> {
        if let Some(builder) = self.builder.take() {
            self.outputs.push(builder.finish()?);
        }
        Ok(())
    }
}

struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.shelf.bell.close();
    }
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Arc<dyn Disk>,
        pointers: [Vec<u8>; LEVELS],
    ) -> Worker {
        Worker { shared, disk, pointers, epoch: 0, flush: None, compaction: None }
    }

    /// Does a piece of work: a flush first, since memory waits for it, then compaction.
    ///
    /// # Errors
    /// Whatever a file gives. It is final: every later step and write fails too.
    pub fn step(&mut self) -> Result<Step, LsmError> {
        if self.shared.failed.load(Ordering::Acquire) {
            return Err(LsmError::Failed);
        }
        let step = self.piece();
        if step.is_err() {
            self.shared.failed.store(true, Ordering::Release);
        }
        step
    }

    /// Works until the engine is dropped, sleeping while there is nothing to do: the body of the
    /// background thread.
    ///
    /// # Errors
    /// As [`Worker::step`].
    pub fn run(&mut self, mut tell: impl FnMut(News)) -> Result<(), LsmError> {
        // Whoever waits for the worker is not left waiting when it fails, or panics.
        let _close = CloseAtEnd(Arc::clone(&self.shared));
        let mut told = self.shared.flushed.load(Ordering::Acquire);
        while !self.shared.shelf.bell.is_closed() {
            match self.step()? {
                Step::Worked => {}
                Step::Damaged => tell(News::Damaged),
                Step::Idle => self.shared.shelf.bell.wait(),
            }
            let now = self.shared.flushed.load(Ordering::Acquire);
            if now > told {
                told = now;
                tell(News::Flushed(now));
            }
        }
        Ok(())
    }

    fn piece(&mut self) -> Result<Step, LsmError> {
        if self.epoch != self.shared.manifest().epoch {
            self.begin_anew()?;
        }
        // Behind that: jobs that were given up held tables of the old state.
        self.take_out_trash()?;
        let mut bench = Bench { shared: &self.shared, disk: self.disk.as_ref() };
        if self.flush.is_none() {
            let sources = self.shared.sources();
            self.flush = sources.frozen.last().map(|frozen| Flush::new(Arc::clone(frozen)));
        }
        if let Some(flush) = &mut self.flush {
            if flush.step(&mut bench)? {
                self.end_flush()?;
            }
            return Ok(Step::Worked);
        }
        if let Some(compaction) = &mut self.compaction {
            match compaction.step(&mut bench) {
                Ok(false) => {}
                Ok(true) => self.end_compaction()?,
                Err(LsmError::Damaged { .. }) => return self.spoiled(),
                Err(e) => return Err(e),
            }
            return Ok(Step::Worked);
        }
        let base = Arc::clone(&self.shared.sources().version);
        if base.damage().is_some() {
            return Ok(Step::Idle);
        }
        let Some(pick) = base.pick(self.shared.options.level1_bytes, &self.pointers) else {
            return Ok(Step::Idle);
        };
        // A table that meets nothing below goes down as it is.
        if let ([_], []) = (pick.inputs[0].as_slice(), pick.inputs[1].as_slice()) {
            self.replace(&pick, &pick.inputs[0])?;
        } else {
            match Compaction::new(pick, base) {
                Ok(compaction) => self.compaction = Some(compaction),
                Err(LsmError::Damaged { .. }) => return self.spoiled(),
                Err(e) => return Err(e),
            }
        }
        Ok(Step::Worked)
    }

    /// A table that is compacted is damaged, which it knows of itself from now on: none of it is
    /// copied on.
    fn spoiled(&mut self) -> Result<Step, LsmError> {
        self.give_up()?;
        Ok(Step::Damaged)
    }

    /// A snapshot took the place of what the jobs work on.
    fn begin_anew(&mut self) -> Result<(), LsmError> {
        self.give_up()?;
        self.pointers = Default::default();
        self.epoch = self.shared.manifest().epoch;
        Ok(())
    }

    /// Gives up the jobs under way: what they wrote is of no use.
    fn give_up(&mut self) -> Result<(), LsmError> {
        let flushing = self.flush.take().and_then(|flush| flush.builder);
        let (compacting, outputs) =
            self.compaction.take().map_or((None, Vec::new()), |c| (c.builder, c.outputs));
        let unfinished = flushing.iter().chain(&compacting).map(TableBuilder::number);
        let numbers = unfinished.chain(outputs.iter().map(|meta| meta.number));
        let paths = numbers.map(|number| self.shared.dir.join(table_name(number)));
        let paths: Vec<_> = paths.collect();
        drop((flushing, compacting));
        for path in paths {
            self.disk.remove(&path).map_err(|e| LsmError::io(&path, 0, e))?;
        }
        Ok(())
    }

    fn take_out_trash(&self) -> Result<(), LsmError> {
        let trash = std::mem::take(
            &mut *self.shared.shelf.trash.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for path in trash {
            match self.disk.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(LsmError::io(&path, 0, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn open_table(&self, meta: TableMeta) -> Result<Arc<Table>, LsmError> {
        let identity = self.shared.options.identity;
        let shelf = &self.shared.shelf;
        Table::open(&self.shared.dir, identity, meta, shelf).map(Arc::new)
    }

    fn sync_names(&self) -> Result<(), LsmError> {
        let dir = &self.shared.dir;
        self.disk.sync_dir(dir).map_err(|e| LsmError::io(dir, 0, e))
    }

    fn end_flush(&mut self) -> Result<(), LsmError> {
        let shared = Arc::clone(&self.shared);
        let mut manifest = shared.manifest();
        if manifest.epoch != self.epoch {
            return Ok(());
        }
        let Some(Flush { frozen, builder, .. }) = self.flush.take() else { return Ok(()) };
        let mut version = self.shared.sources().version.as_ref().clone();
        if let Some(builder) = builder {
            let meta = builder.finish()?;
            self.shared.shelf.counters.flushed.add(meta.bytes);
            self.sync_names()?;
            version = version.flushed(self.open_table(meta)?);
        }
        version.applied = frozen.applied;
        let state = version.state(shared.next_file_now(), self.pointers.clone());
        manifest.slots.write(&state)?;
        self.shared.install(version, true);
        // Last: whoever sees it finds the tables in the version.
        self.shared.flushed.store(frozen.applied, Ordering::Release);
        Ok(())
    }

    fn end_compaction(&mut self) -> Result<(), LsmError> {
        if self.shared.manifest().epoch != self.epoch {
            return Ok(());
        }
        let Some(Compaction { pick, outputs, .. }) = self.compaction.take() else {
            return Ok(());
        };
        let counters = &self.shared.shelf.counters;
        counters.compacted.add(outputs.iter().map(|t| t.bytes).sum());
        counters.compaction_read.add(pick.tables().map(|t| t.meta.bytes).sum());
        self.sync_names()?;
        let outputs: Result<Vec<_>, _> = outputs.into_iter().map(|m| self.open_table(m)).collect();
        let outputs = outputs?;
        if self.replace(&pick, &outputs)? {
            pick.tables().for_each(|table| table.doom());
        } else {
            outputs.iter().for_each(|table| table.doom());
        }
        Ok(())
    }

    /// Makes the version with the outputs of a compaction durable, then current; false when a
    /// snapshot came before.
    fn replace(&mut self, pick: &Pick, outputs: &[Arc<Table>]) -> Result<bool, LsmError> {
        let shared = Arc::clone(&self.shared);
        let mut manifest = shared.manifest();
        if manifest.epoch != self.epoch {
            return Ok(false);
        }
        if let Some(last) = pick.inputs[0].last().filter(|_| pick.level > 0) {
            self.pointers[pick.level].clone_from(&last.meta.largest);
        }
        let version = self.shared.sources().version.replaced(pick, outputs);
        let state = version.state(shared.next_file_now(), self.pointers.clone());
        manifest.slots.write(&state)?;
        self.shared.install(version, false);
        Ok(true)
    }
}

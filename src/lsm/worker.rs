//! The background: flushes and compactions as step objects, driven by a thread or a simulator.
//!
//! [`Worker::step`] does a bounded piece of the most urgent job. A job writes new tables, syncs
//! them and their names, writes the manifest, and only then shows the new version and gives up the
//! files it replaced: whatever the moment of a crash, a manifest names only complete files.
//!
//! # A full disk
//!
//! A job that finds no space for a table is given up: its files go, and what it was made from is
//! still there. If a compaction held much of the space, it and the next ones are made in pieces: as
//! soon as one table of the lower level is merged, its successors take its place and it goes,
//! while the tables above, which say the same of those keys, stay until all are done. So a
//! compaction of any size needs the room of a table or two.
//! If that does not help, the reserve is given up, too, and the disk counts as full until that
//! could be filled again. Meanwhile compactions are chosen for what they give back.
//!
//! # A file that somebody else holds
//!
//! A scanner or a backup may have a file open that is to go, and then some systems do not remove it. It means nothing
//! any more, so it stays and is tried again now and then; no other table gets its name.
//!
//! # What is final
//!
//! What follows the first sync of the names of finished tables is final, full disk or not: it must
//! not be done twice. The manifest's slots have been made long enough before.

use super::LsmError;
use super::demand::Demanded;
use super::engine::Shared;
use super::jobs::{Compaction, Flush, Pieces};
use super::manifest::{LEVELS, Manifest};
use super::outputs::Bench;
use super::reserve::Reserve;
use super::table::{Table, TableMeta, table_name};
use super::version::{Pick, Version, bytes_of};
use crate::env::{Disk, is_held};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Pause before work that found no space is tried again.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two pieces of the reserve: other work is more urgent.
const RESERVE_PAUSE: Duration = Duration::from_millis(20);
/// The background rests for so long before a memtable is flushed for what it hides.
const REST_PAUSE: Duration = Duration::from_secs(5);
/// Pause before files that somebody else holds are tried again.
const HELD_PAUSE: Duration = Duration::from_secs(1);
/// Busy or not, a piece of the reserve is written after so many pieces of work.
const WORK_PER_RESERVE: u64 = 8;
/// Busy, so many pieces of work lie between two attempts to remove what somebody else holds.
const WORK_PER_HELD: u64 = 64;
/// Compactions that found no space in a row, from which on the pause before the next one does not
/// double any more: each may write much in vain.
const DOUBLINGS_MAX: u32 = 4;
/// Compactions that are made in pieces after one that found no space as a whole: it wrote in vain.
const TIGHT_COMPACTIONS: u32 = 64;
/// Jobs in a row whose new tables the disk does not give back before that is an error: others lie elsewhere on it.
const UNREAD_MAX: u32 = 8;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A piece of a job; there may be more.
    Worked,
    /// Damage was met in a table that was to be compacted: [`super::Reader::damage`] says what.
    /// Nothing is compacted from now on, until a snapshot is installed; flushes go on.
    Damaged,
    /// A piece of the reserve was written, which is not urgent.
    Reserved,
    /// The disk is full and nothing can be done about it now: something is to be tried again after
    /// a pause.
    Full,
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
    /// Whether the disk is full: see [`Worker::news`].
    Full(bool),
    /// As [`Worker::wants_flush`].
    WantsFlush,
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
    /// What of a compaction in pieces is done.
    pieces: Option<Pieces>,
    demanded: Demanded,
    reserve: Reserve,
    /// Pieces of work since the last piece of the reserve.
    worked: u64,
    /// Files that somebody else holds, to be removed later, and pieces of work since they were tried.
    held: Vec<PathBuf>,
    since_held: u64,
    /// An error is final from here on: names or manifest may be half-written.
    committing: bool,
    /// Jobs in a row whose new tables could not be read back.
    unread: u32,
    /// Compactions in a row that found no space, and pauses before the next is tried.
    in_vain: u32,
    rest: u32,
    /// Compactions that are still to be made in pieces though the disk is not full.
    tight: u32,
    /// What the owner was last told.
    told_full: bool,
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
        let reserve = Reserve::new(Arc::clone(&disk), &shared.dir, shared.options.reserve_bytes);
        Worker {
            shared,
            disk,
            pointers,
            epoch: 0,
            flush: None,
            compaction: None,
            pieces: None,
            demanded: Demanded::default(),
            reserve,
            worked: 0,
            held: Vec::new(),
            since_held: 0,
            committing: false,
            unread: 0,
            in_vain: 0,
            rest: 0,
            tight: 0,
            told_full: false,
        }
    }

    /// Does a piece of work: a flush first, since memory waits for it, then compaction, then the
    /// reserve.
    ///
    /// # Errors
    /// Whatever a file gives, but for a full disk while nothing is half-changed. It is final: every
    /// later step and write fails too.
    pub fn step(&mut self) -> Result<Step, LsmError> {
        if self.shared.failed.load(Ordering::Acquire) {
            return Err(LsmError::Failed);
        }
        let step = match self.work() {
            Err(e) if e.is_out_of_space() && !self.committing => self.out_of_space(),
            step => step,
        };
        if step.is_err() {
            self.shared.failed.store(true, Ordering::Release);
        }
        step
    }

    /// Works until the engine is dropped, sleeping while there is nothing to do: the body of the
    /// background thread. `tell` hears whether the disk is full: see [`Worker::news`].
    ///
    /// # Errors
    /// As [`Worker::step`].
    pub fn run(&mut self, mut tell: impl FnMut(News)) -> Result<(), LsmError> {
        // Whoever waits for the worker is not left waiting when it fails, or panics.
        let _close = CloseAtEnd(Arc::clone(&self.shared));
        let mut told = self.shared.flushed.load(Ordering::Acquire);
        while !self.shared.shelf.bell.is_closed() {
            let step = self.step()?;
            if let Some(full) = self.news(step) {
                tell(News::Full(full));
            }
            if step == Step::Damaged {
                tell(News::Damaged);
            }
            let now = self.shared.flushed.load(Ordering::Acquire);
            if now > told {
                told = now;
                tell(News::Flushed(now));
            }
            let bell = &self.shared.shelf.bell;
            match step {
                Step::Worked | Step::Damaged => {}
                Step::Reserved => drop(bell.wait_at_most(RESERVE_PAUSE)),
                Step::Full => drop(bell.wait_at_most(FULL_PAUSE)),
                Step::Idle if !self.held.is_empty() => drop(bell.wait_at_most(HELD_PAUSE)),
                Step::Idle if self.shared.tombstones_in_memory() == 0 => bell.wait(),
                Step::Idle => {
                    let rung = bell.wait_at_most(REST_PAUSE);
                    if !rung && self.wants_flush() {
                        tell(News::WantsFlush);
                    }
                }
            }
        }
        Ok(())
    }

    /// How many files are to go and stay for now, since somebody else holds them. With any left the worker has something
    /// to try again after a pause, though a step said that nothing is to be done.
    pub fn held_files(&self) -> usize {
        self.held.len()
    }

    /// Whether the memtable should be flushed though it is not full: it hides much of what is on disk, which cannot
    /// be given back before. Asked when nothing was to be done for a while.
    pub fn wants_flush(&self) -> bool {
        self.shared.hides_in_memory()
    }

    /// What the owner is to hear after a step: whether the disk is full. At each change; and, as
    /// long as it is full, whenever nothing but a flush of what is in memory could still help: what
    /// was deleted gives no space back before that.
    pub fn news(&mut self, step: Step) -> Option<bool> {
        let full = self.shared.full.load(Ordering::Acquire);
        let stuck = step == Step::Full && self.shared.sources().frozen.is_empty();
        let news = self.told_full != full || stuck;
        self.told_full = full;
        news.then_some(full)
    }

    /// Whether the compaction that is under way is a piece of another.
    #[cfg(test)]
    pub(super) fn is_in_pieces(&self) -> bool {
        self.compaction.as_ref().is_some_and(|compaction| compaction.until.is_some())
    }

    fn work(&mut self) -> Result<Step, LsmError> {
        if self.shared.lacking.load(Ordering::Acquire) {
            self.give_up_whole_compaction();
            self.shared.full.store(true, Ordering::Release);
            self.reserve.give_up()?;
        }
        match self.piece()? {
            Step::Idle if !self.held.is_empty() => {
                // It is asked again after a pause.
                self.since_held = WORK_PER_HELD;
                self.keep_reserve()
            }
            Step::Damaged => Ok(Step::Damaged),
            Step::Worked => {
                self.worked += 1;
                let full = self.shared.full.load(Ordering::Acquire);
                if self.worked.is_multiple_of(WORK_PER_RESERVE) && !full {
                    self.keep_reserve()?;
                }
                Ok(Step::Worked)
            }
            _ => self.keep_reserve(),
        }
    }

    /// Fills the reserve. Once that is whole the disk is not full any more.
    fn keep_reserve(&mut self) -> Result<Step, LsmError> {
        if self.shared.lacking.load(Ordering::Acquire) {
            return Ok(self.full());
        }
        match self.reserve.fill(self.shared.options.step_bytes) {
            Ok(false) => Ok(Step::Reserved),
            Ok(true) => {
                (self.in_vain, self.rest) = (0, 0);
                let was_full = self.shared.full.swap(false, Ordering::AcqRel);
                Ok(if was_full { Step::Worked } else { Step::Idle })
            }
            Err(e) if e.is_out_of_space() && self.give_up_whole_compaction() => Ok(Step::Worked),
            // What it has it keeps: only what is missing is tried again.
            Err(e) if e.is_out_of_space() => Ok(self.full()),
            Err(e) => Err(e),
        }
    }

    fn full(&mut self) -> Step {
        self.shared.full.store(true, Ordering::Release);
        self.rest = self.rest.saturating_sub(1);
        Step::Full
    }

    /// No space was left for what a job wrote: it is given up, and begun anew with what the reserve
    /// gives; or later.
    fn out_of_space(&mut self) -> Result<Step, LsmError> {
        let compacting = self.flush.is_none() && self.compaction.is_some();
        let whole = self.give_up_whole_compaction();
        self.give_up();
        self.take_out_trash()?;
        if whole {
            return Ok(Step::Worked);
        }
        self.shared.full.store(true, Ordering::Release);
        if self.reserve.give_up()? {
            return Ok(Step::Worked);
        }
        if compacting {
            self.in_vain = (self.in_vain + 1).min(DOUBLINGS_MAX);
            self.rest = 1 << self.in_vain;
        }
        Ok(Step::Full)
    }

    /// Gives up a compaction that is not made in pieces, and holds much space perhaps; true when
    /// there was one.
    fn give_up_whole_compaction(&mut self) -> bool {
        let full = self.shared.full.load(Ordering::Acquire);
        let whole = self.compaction.is_some() && self.tight == 0 && !full;
        if whole {
            self.give_up();
            self.tight = TIGHT_COMPACTIONS;
        }
        whole
    }

    /// Gives the jobs up: what they have written goes to the trash, what they work on stays as it
    /// is, and they can be begun anew.
    fn give_up(&mut self) {
        let flush = self.flush.take().map(|flush| flush.outputs.into_begun());
        let compaction = self.compaction.take().map(|compaction| compaction.outputs.into_begun());
        let numbers = flush.into_iter().chain(compaction).flatten();
        let paths = numbers.map(|number| self.shared.dir.join(table_name(number)));
        self.shared.shelf.trash.lock().unwrap_or_else(PoisonError::into_inner).extend(paths);
    }

    fn piece(&mut self) -> Result<Step, LsmError> {
        if self.epoch != self.shared.manifest().epoch {
            self.begin_anew();
        }
        self.shared.bound_exports();
        // Behind that: jobs and exports that were given up held tables of the old state.
        self.take_out_trash()?;
        let bench = Bench { shared: &self.shared, disk: self.disk.as_ref() };
        if self.flush.is_none() {
            let sources = self.shared.sources();
            let oldest = sources.frozen.last();
            self.flush =
                oldest.map(|frozen| Flush::new(Arc::clone(frozen), Arc::clone(&sources.version)));
        }
        if let Some(flush) = &mut self.flush {
            if flush.step(&bench)? {
                self.end_flush()?;
            }
            return Ok(Step::Worked);
        }
        if let Some(compaction) = &mut self.compaction {
            match compaction.step(&bench) {
                Ok(false) => {}
                Ok(true) => self.end_compaction()?,
                Err(LsmError::Damaged { .. }) => return Ok(self.spoiled()),
                Err(e) => return Err(e),
            }
            return Ok(Step::Worked);
        }
        let base = Arc::clone(&self.shared.sources().version);
        if base.damage().is_some() {
            return Ok(Step::Idle);
        }
        let full = self.shared.full.load(Ordering::Acquire);
        let pick = match full {
            true if self.rest > 0 => None,
            true => base.pick_for_space(),
            false => base.pick(self.shared.options.level1_bytes, &self.pointers),
        };
        let pick = match pick {
            None if !full => self.not_due(&base),
            pick => pick,
        };
        let Some(pick) = pick else { return Ok(Step::Idle) };
        if base.moves(&pick) {
            self.shared.shelf.counters.moves.add(1);
            self.replace(&pick, &pick.inputs[0], &[])?;
        } else {
            let begun = match full || self.tight > 0 {
                true => Compaction::piece(pick, base, self.pieces.as_ref()),
                false => Compaction::new(pick, base),
            };
            match begun {
                Ok(compaction) => self.compaction = Some(compaction),
                Err(LsmError::Damaged { .. }) => return Ok(self.spoiled()),
                Err(e) => return Err(e),
            }
        }
        Ok(Step::Worked)
    }

    /// What is compacted though no level is too large: everything, on demand; else what gives space back.
    fn not_due(&mut self, base: &Version) -> Option<Pick> {
        let counters = &self.shared.shelf.counters;
        if let Some(pick) = self.demanded.pick(&self.shared, base) {
            counters.demanded.add(1);
            return Some(pick);
        }
        let pick = base.pick_to_reclaim();
        counters.reclaims.add(u64::from(pick.is_some()));
        pick
    }

    /// A table that is compacted is damaged, which it knows of itself from now on: none of it is
    /// copied on.
    fn spoiled(&mut self) -> Step {
        self.give_up();
        Step::Damaged
    }

    /// A snapshot took the place of what the jobs work on: what they wrote is of no use.
    fn begin_anew(&mut self) {
        self.give_up();
        self.pieces = None;
        self.pointers = Default::default();
        self.epoch = self.shared.manifest().epoch;
    }

    fn take_out_trash(&mut self) -> Result<(), LsmError> {
        let shared = Arc::clone(&self.shared);
        let trash = || shared.shelf.trash.lock().unwrap_or_else(PoisonError::into_inner);
        let mut paths = std::mem::take(&mut *trash());
        self.since_held += 1;
        if self.since_held > WORK_PER_HELD {
            self.since_held = 0;
            paths.append(&mut self.held);
        }
        while let Some(path) = paths.pop() {
            match self.disk.remove(&path) {
                Err(e) if is_held(&e) => self.held.push(path),
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    let error = LsmError::io(&path, 0, e);
                    paths.push(path);
                    trash().append(&mut paths);
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens the tables that a job wrote. None when one of them cannot be read back: what they were made from is
    /// still there, and the job is begun anew.
    fn open_made(&mut self, metas: Vec<TableMeta>) -> Result<Option<Vec<Arc<Table>>>, LsmError> {
        let open = |meta| {
            let Shared { dir, shelf, .. } = self.shared.as_ref();
            Table::open(dir, meta, shelf).map(Arc::new)
        };
        match metas.into_iter().map(open).collect() {
            Ok(made) => {
                self.unread = 0;
                Ok(Some(made))
            }
            Err(LsmError::Damaged { .. }) if self.unread < UNREAD_MAX => {
                self.unread += 1;
                self.shared.shelf.counters.unread.add(1);
                self.give_up();
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn sync_names(&self) -> Result<(), LsmError> {
        let dir = &self.shared.dir;
        self.disk.sync_dir(dir).map_err(|e| LsmError::io(dir, 0, e))
    }

    /// Makes a version with these new tables durable. Only before the first sync may it fail and be
    /// tried again, with other tables.
    fn commit(
        &mut self,
        slots: &mut Manifest,
        version: &Version,
        pointers: &[Vec<u8>; LEVELS],
        made: &[Arc<Table>],
    ) -> Result<(), LsmError> {
        let state = version.state(self.shared.next_file_now(), pointers.clone());
        if let Err(e) = slots.make_room(&state) {
            made.iter().for_each(|table| table.doom());
            return Err(e);
        }
        self.committing = true;
        if !made.is_empty() {
            self.sync_names()?;
        }
        slots.write(&state)?;
        self.committing = false;
        Ok(())
    }

    fn end_flush(&mut self) -> Result<(), LsmError> {
        let shared = Arc::clone(&self.shared);
        let mut manifest = shared.manifest();
        if manifest.epoch != self.epoch {
            return Ok(());
        }
        let Some(flush) = &mut self.flush else { return Ok(()) };
        let frozen = Arc::clone(&flush.frozen);
        let metas = flush.outputs.take_tables();
        let Some(made) = self.open_made(metas)? else { return Ok(()) };
        let mut version = self.shared.sources().version.as_ref().clone();
        for table in &made {
            version = version.flushed(Arc::clone(table));
        }
        version.applied = frozen.applied;
        let pointers = self.pointers.clone();
        self.commit(&mut manifest.slots, &version, &pointers, &made)?;
        self.flush = None;
        shared.shelf.counters.flushed.add(bytes_of(&made));
        shared.install(version, true);
        // Last: whoever sees it finds the tables in the version.
        shared.flushed.store(frozen.applied, Ordering::Release);
        Ok(())
    }

    fn end_compaction(&mut self) -> Result<(), LsmError> {
        if self.shared.manifest().epoch != self.epoch {
            return Ok(());
        }
        let Some(compaction) = &mut self.compaction else { return Ok(()) };
        let metas = compaction.outputs.take_tables();
        let Some(made) = self.open_made(metas)? else { return Ok(()) };
        // It stays the worker's job until it is done, so that it can be given up.
        let Some(Compaction { pick, until, .. }) = &self.compaction else { return Ok(()) };
        let (until, empty) = (until.clone(), Arc::default());
        let [upper, lower] = &pick.inputs;
        let upper = if until.is_some() { &empty } else { upper };
        let gone = Pick { level: pick.level, inputs: [upper, lower].map(Arc::clone) };
        let read = pick.tables().map(|t| t.meta.bytes).sum();
        if !self.replace(&gone, &made, &made)? {
            made.iter().for_each(|table| table.doom());
            return Ok(());
        }
        let counters = &self.shared.shelf.counters;
        counters.compacted.add(bytes_of(&made));
        counters.compaction_read.add(read);
        gone.tables().for_each(|table| table.doom());
        if until.is_none() {
            self.tight = self.tight.saturating_sub(1);
        }
        self.pieces = until;
        self.compaction = None;
        self.in_vain = 0;
        Ok(())
    }

    /// Makes the version with the outputs of a compaction, some of them new, durable, then current;
    /// false when a snapshot came before.
    fn replace(
        &mut self,
        pick: &Pick,
        outputs: &[Arc<Table>],
        made: &[Arc<Table>],
    ) -> Result<bool, LsmError> {
        let shared = Arc::clone(&self.shared);
        let mut manifest = shared.manifest();
        if manifest.epoch != self.epoch {
            return Ok(false);
        }
        let mut pointers = self.pointers.clone();
        if let Some(last) = pick.inputs[0].last().filter(|_| pick.level > 0) {
            pointers[pick.level].clone_from(&last.meta.largest);
        }
        let version = self.shared.sources().version.replaced(pick, outputs);
        self.commit(&mut manifest.slots, &version, &pointers, made)?;
        self.pointers = pointers;
        self.shared.install(version, false);
        Ok(true)
    }
}

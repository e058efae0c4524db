//! Writing and reading: the engine in front of its worker.

use super::bell::Bell;
use super::block::{Item, Seed, key_hash};
use super::builder::{TableBuilder, TableOptions};
use super::cache::Cache;
use super::counters::{Counters, Stats};
use super::demand::Demand;
use super::files::Files;
use super::manifest::{LEVELS, Manifest};
use super::memtable::{Entry, MemCursor, Memtable};
use super::merge::{LevelCursor, Merge, Source};
use super::pace::{Debt, Owed};
use super::room::Pins;
use super::snapshot::Staged;
use super::table::{Lookup, Shelf, Start, Table, TableCursor, table_number};
use super::version::{Version, bytes_of};
use super::{Class, KEY_BYTES_MAX, LsmError, Options, VALUE_BYTES_MAX, Worker};
use crate::env::{Disk, is_held};
use std::fmt;
use std::ops::{Bound, ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// At rest a memtable is flushed for what its tombstones hide from this part of level 1 on: less is not worth the
/// syncs.
const HIDDEN_PARTS: u64 = 128;

const _: () = assert!(KEY_BYTES_MAX < u32::MAX as usize);

/// One key's new state, blind.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Key spaces never meet; they sort by this.
    pub space: u8,
    /// The key.
    pub key: &'a [u8],
    /// Revision and value, or none to remove the key.
    pub value: Option<(u64, &'a [u8])>,
}

/// A frozen memtable and the applied index it reaches to.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) table: Arc<Memtable>,
    pub(super) applied: u64,
}

/// All there is to read.
#[derive(Debug)]
pub(super) struct Sources {
    active: Arc<Memtable>,
    /// Newest first.
    pub(super) frozen: Vec<Arc<Frozen>>,
    pub(super) version: Arc<Version>,
}

/// The current sources, and how far the active memtable is to be read.
#[derive(Debug)]
struct Current {
    sources: Arc<Sources>,
    applied: u64,
}

/// What writer, readers and worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) dir: PathBuf,
    pub(super) shelf: Arc<Shelf>,
    current: RwLock<Current>,
    /// Applied index of the durable manifest.
    pub(super) flushed: AtomicU64,
    /// Bytes above the levels' sizes.
    debt: AtomicU64,
    /// No table has this number yet, or a higher one.
    next_file: AtomicU64,
    /// Whoever changes the version holds it: the worker at the end of a job, or whoever installs a
    /// snapshot.
    manifest: Mutex<Writing>,
    pub(super) failed: AtomicBool,
    /// The disk is full, or was and the reserve is not whole again.
    pub(super) full: AtomicBool,
    /// Somebody else on this disk lacks space.
    pub(super) lacking: AtomicBool,
    /// Compactions of everything that were asked for.
    pub(super) demand: Demand,
    /// What exports read.
    pub(super) pins: Pins,
}

/// What goes with the writing of the manifest.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) slots: Manifest,
    /// Snapshots installed since the store was opened.
    pub(super) epoch: u64,
}

impl Shared {
    /// A number for a new table.
    pub(super) fn next_file(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins a table of this store.
    pub(super) fn new_table(&self, disk: &dyn Disk, number: u64) -> Result<TableBuilder, LsmError> {
        let Options { identity, block_bytes, partition_bytes, sync_bytes, .. } = self.options;
        let table = TableOptions { block_bytes, partition_bytes, sync_bytes };
        TableBuilder::create(disk, &self.dir, Seed { identity, number }, table)
    }

    /// No table has this number yet, or a higher one.
    pub(super) fn next_file_now(&self) -> u64 {
        self.next_file.load(Ordering::Relaxed)
    }

    /// The right to change the version.
    pub(super) fn manifest(&self) -> MutexGuard<'_, Writing> {
        // Whoever panicked under it wrote a state or none: the slots are whole.
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> (Arc<Sources>, u64) {
        // Under the lock nothing happens but assignments.
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&current.sources), current.applied)
    }

    pub(super) fn sources(&self) -> Arc<Sources> {
        self.current().0
    }

    /// Replaces the sources. What they were is dropped outside of the lock.
    pub(super) fn replace(&self, change: impl FnOnce(&Sources) -> Sources) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let new = Arc::new(change(&current.sources));
        let old = std::mem::replace(&mut current.sources, new);
        drop(current);
        drop(old);
    }

    /// Tombstones in the memtable that is written to.
    pub(super) fn tombstones_in_memory(&self) -> u64 {
        self.sources().active.tombstones()
    }

    /// Whether what these may hide on disk is worth a flush: it is much of all that is there, and not little.
    pub(super) fn hides_in_memory(&self) -> bool {
        let sources = self.sources();
        let tombstones = sources.active.tombstones();
        let least = self.options.level1_bytes / HIDDEN_PARTS;
        tombstones > 0
            && sources.frozen.is_empty()
            && sources.version.hidden_by(tombstones).is_some_and(|hidden| hidden >= least)
    }

    /// Puts a version in place, and takes the oldest frozen memtable away when its data are there.
    pub(super) fn install(&self, version: Version, flushed: bool) {
        self.debt.store(version.debt(self.options.level1_bytes), Ordering::Relaxed);
        let version = Arc::new(version);
        self.replace(|sources| {
            let mut frozen = sources.frozen.clone();
            if flushed {
                frozen.pop();
            }
            Sources { active: Arc::clone(&sources.active), frozen, version }
        });
    }
}

/// The store, for its one writer. Dropping it ends the worker, and loses what was not flushed.
#[derive(Debug)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
    active: Arc<Memtable>,
    applied: u64,
    scratch: Vec<u8>,
    owed: Owed,
}

impl Engine {
    /// Opens the store in `dir` (which exists), or begins one. Files that no manifest names are
    /// removed. The worker is to be driven by [`Worker::run`] or [`Worker::step`]. A table that is
    /// damaged or missing is kept, and what is damaged of it is not read: see [`Reader::damage`].
    ///
    /// # Errors
    /// [`LsmError::Damaged`] for a manifest that no crash can have left, and the disk's.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
    ) -> Result<(Engine, Worker), LsmError> {
        let (manifest, state, repairs) =
            Manifest::open(&disk, dir, options.identity, options.must_exist)?;
        let shelf = Arc::new(Shelf {
            cache: Cache::new(options.cache_bytes),
            files: Files::new(Arc::clone(&disk), options.open_files_max),
            counters: Counters::default(),
            trash: Mutex::default(),
            bell: Bell::default(),
        });
        shelf.counters.manifest_repairs.add(repairs);
        let mut version = Version { applied: state.applied, ..Version::default() };
        for (tables, metas) in version.levels.iter_mut().zip(state.levels) {
            for meta in metas {
                let table = Table::open_or_quarantine(dir, meta, &shelf)?;
                Arc::make_mut(tables).push(Arc::new(table));
            }
        }
        let known = |number| version.tables().any(|t| t.meta.number == number);
        let mut next_file = state.next_file;
        for name in disk.list(dir).map_err(|e| LsmError::io(dir, 0, e))? {
            let Some(number) = table_number(&name).filter(|number| !known(*number)) else {
                continue;
            };
            let path = dir.join(name);
            match disk.remove(&path) {
                Err(e) if is_held(&e) => {
                    // It goes later, and until then no other table gets its name.
                    next_file = next_file.max(number.saturating_add(1));
                    shelf.trash.lock().unwrap_or_else(PoisonError::into_inner).push(path);
                }
                removed => removed.map_err(|e| LsmError::io(&path, 0, e))?,
            }
        }
        let active = Arc::new(Memtable::default());
        let debt = AtomicU64::new(version.debt(options.level1_bytes));
        let sources =
            Sources { active: Arc::clone(&active), frozen: Vec::new(), version: Arc::new(version) };
        let shared = Arc::new(Shared {
            options,
            dir: dir.to_path_buf(),
            shelf,
            current: RwLock::new(Current { sources: Arc::new(sources), applied: state.applied }),
            flushed: AtomicU64::new(state.applied),
            debt,
            next_file: AtomicU64::new(next_file),
            manifest: Mutex::new(Writing { slots: manifest, epoch: 0 }),
            failed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            lacking: AtomicBool::new(false),
            demand: Demand::default(),
            pins: Pins::default(),
        });
        let worker = Worker::new(Arc::clone(&shared), disk, state.pointers);
        let engine = Engine {
            shared,
            active,
            applied: state.applied,
            scratch: Vec::new(),
            owed: Owed::default(),
        };
        Ok((engine, worker))
    }

    /// Index of the last batch. After opening: of the last batch that was flushed.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Every batch up to this index is durable in tables; the log in front is not needed.
    pub fn flushed(&self) -> u64 {
        self.shared.flushed.load(Ordering::Acquire)
    }

    /// A handle for reading.
    pub fn reader(&self) -> Reader {
        Reader { shared: Arc::clone(&self.shared) }
    }

    /// Makes a batch of changes, at most one per key, and moves the applied index, at once. Reads
    /// nothing and waits for no file.
    ///
    /// # Errors
    /// [`LsmError::Rejected`], nothing done, when `applied` does not grow or a key or value is too
    /// long; [`LsmError::Failed`] after the worker failed.
    pub fn write<'a>(
        &mut self,
        applied: u64,
        changes: impl IntoIterator<Item = Change<'a>>,
    ) -> Result<(), LsmError> {
        if self.shared.failed.load(Ordering::Acquire) {
            return Err(LsmError::Failed);
        }
        if applied <= self.applied || applied == u64::MAX {
            return Err(LsmError::Rejected { what: "an applied index that does not grow" });
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for Change { space, key, value } in changes {
            let value_len = value.map_or(0, |(_, value)| value.len());
            if key.len() > KEY_BYTES_MAX || value_len > VALUE_BYTES_MAX {
                return Err(LsmError::Rejected { what: "a key or value that is too long" });
            }
            bytes += (1 + key.len() + value_len) as u64;
            entries.push(Entry::new((space, key), value, applied, &mut self.scratch));
        }
        if self.scratch.capacity() > self.shared.options.memtable_bytes / 8 {
            self.scratch = Vec::new();
        }
        let clean = self.active.tombstones() == 0;
        self.owed.add(self.active.insert(entries));
        if clean && self.active.tombstones() > 0 {
            // From now on the worker looks now and then what they hide.
            self.shared.shelf.bell.ring();
        }
        self.shared.shelf.counters.written.add(bytes);
        // Published: from here on views see the batch, all of it.
        self.shared.current.write().unwrap_or_else(PoisonError::into_inner).applied = applied;
        self.applied = applied;
        if self.active.charge() >= self.shared.options.memtable_bytes {
            self.flush();
        }
        Ok(())
    }

    /// Freezes the memtable, so that the worker flushes it; [`Engine::flushed`] then reaches what
    /// [`Engine::applied`] is now.
    pub fn flush(&mut self) {
        let sources = self.shared.sources();
        let flushed = sources.version.applied;
        let reached = sources.frozen.first().map_or(flushed, |frozen| frozen.applied);
        if self.applied == reached {
            return;
        }
        self.active = Arc::new(Memtable::default());
        let applied = self.applied;
        self.shared.replace(|sources| {
            let frozen = Frozen { table: Arc::clone(&sources.active), applied };
            let mut all = vec![Arc::new(frozen)];
            all.extend(sources.frozen.iter().cloned());
            let version = Arc::clone(&sources.version);
            Sources { active: Arc::clone(&self.active), frozen: all, version }
        });
        self.shared.shelf.bell.ring();
    }

    /// How long the writer should wait before it asks again, in microseconds: nothing while the worker keeps up,
    /// smoothly more as its debt grows, 50 ms at most. A writer who asks until nothing is left before it writes on pays
    /// for what its batches take in memory, however large they are; one who does not pays the rest later. Nothing is
    /// owed any more once the worker has caught up.
    pub fn take_delay_us(&mut self) -> u64 {
        let Engine { shared, active, owed, .. } = self;
        owed.take_us(|| {
            let sources = shared.sources();
            let frozen: usize = sources.frozen.iter().map(|f| f.table.charge()).sum();
            let levels = shared.debt.load(Ordering::Relaxed);
            Debt {
                memtables: (frozen + active.charge()) as f64 / shared.options.memtable_bytes as f64,
                level0: sources.version.level0_depth().0,
                levels: levels as f64 / shared.options.level1_bytes as f64,
            }
        })
    }

    /// Waits until the worker, which runs on a thread of its own, has nothing left to do; returns at
    /// once when it failed. For measurements and tests.
    pub fn wait_until_idle(&self) {
        self.shared.shelf.bell.wait_for_silence();
    }

    /// Puts a snapshot in the place of everything, durably and all at once; what was not flushed is
    /// gone with the rest. Views made before go on showing what they showed.
    ///
    /// # Errors
    /// [`LsmError::Damaged`], nothing done, when a table of the snapshot cannot be read back; the disk's. The store is
    /// then to be opened again, and holds the old contents or the new.
    pub fn install(&mut self, staged: Staged) -> Result<(), LsmError> {
        let shared = Arc::clone(&self.shared);
        let mut manifest = shared.manifest();
        if shared.failed.load(Ordering::Acquire) {
            return Err(LsmError::Failed);
        }
        manifest.slots.make_room(&staged.state())?;
        let version = staged.version(&shared).inspect_err(|e| {
            let goes_on = e.class() != Class::Stop || e.is_out_of_space();
            shared.failed.fetch_or(!goes_on, Ordering::AcqRel);
        })?;
        let applied = version.applied;
        let state = version.state(shared.next_file_now(), Default::default());
        let written = manifest.slots.write(&state);
        if written.is_err() {
            shared.failed.store(true, Ordering::Release);
        }
        written?;
        manifest.epoch += 1;
        shared.debt.store(version.debt(shared.options.level1_bytes), Ordering::Relaxed);
        shared.flushed.store(applied, Ordering::Release);
        self.active = Arc::new(Memtable::default());
        self.applied = applied;
        let (active, version) = (Arc::clone(&self.active), Arc::new(version));
        let new = Arc::new(Sources { active, frozen: Vec::new(), version });
        let mut current = shared.current.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut current.sources, new);
        current.applied = applied;
        drop(current);
        old.version.tables().for_each(|table| table.doom());
        drop(manifest);
        shared.shelf.bell.ring();
        Ok(())
    }

    /// What the engine did and holds.
    pub fn stats(&self) -> Stats {
        self.reader().stats()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.shelf.bell.close();
    }
}

/// A handle from which any thread takes views.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
}

impl Reader {
    /// The latest cut.
    pub fn view(&self) -> View {
        let (sources, applied) = self.shared.current();
        View { sources, applied, shelf: Arc::clone(&self.shared.shelf) }
    }

    /// Closes the files of tables that nobody reads just now, so that others get their descriptors; gives how many.
    /// They are opened again when they are read.
    pub fn close_files(&self) -> usize {
        self.shared.shelf.files.close_all()
    }

    /// Damage that was met in a table of the store: blocks that are damaged are not served, and nothing is
    /// compacted, until [`Engine::install`] puts a snapshot in the place of everything.
    pub fn damage(&self) -> Option<LsmError> {
        self.shared.sources().version.damage()
    }

    /// What the engine did and holds.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.shelf.counters;
        let sources = self.shared.sources();
        let frozen: usize = sources.frozen.iter().map(|f| f.table.charge()).sum();
        let tables = || sources.version.tables();
        Stats {
            written_bytes: counters.written.get(),
            flushed_bytes: counters.flushed.get(),
            compacted_bytes: counters.compacted.get(),
            compaction_read_bytes: counters.compaction_read.get(),
            gets: counters.gets.get(),
            table_probes: counters.table_probes.get(),
            filter_skips: counters.filter_skips.get(),
            cache_hits: counters.cache_hits.get(),
            cache_misses: counters.cache_misses.get(),
            block_reads: counters.block_reads.get(),
            cache_bytes: self.shared.shelf.cache.bytes() as u64,
            memtable_bytes: (sources.active.charge() + frozen) as u64,
            frozen: sources.frozen.len(),
            levels: sources.version.levels.iter().map(|l| (l.len(), bytes_of(l))).collect(),
            largest_run_bytes: sources.version.largest_run_bytes(),
            manifest_repairs: counters.manifest_repairs.get(),
            open_files: self.shared.shelf.files.open(),
            table_entries: tables().map(|t| t.meta.entries).sum(),
            tombstones: tables().map(|t| t.meta.tombstones).sum(),
            tombstones_dropped: counters.tombstones_dropped.get(),
            reclaims: counters.reclaims.get(),
            moves: counters.moves.get(),
            demanded: counters.demanded.get(),
            unread: counters.unread.get(),
            exports_ended: counters.exports_ended.get(),
            given_up: counters.given_up.get(),
            disk_full: self.is_disk_full(),
        }
    }

    /// Whether the disk is full, or was and the reserve is not whole again: what is written may
    /// stay in memory for long, so that data should not grow.
    pub fn is_disk_full(&self) -> bool {
        self.shared.full.load(Ordering::Acquire)
    }

    /// Somebody else who writes to this disk lacks space, or does not any more. As long as that is
    /// so, the disk counts as full and the reserve is left to them.
    pub fn lacks_space(&self, lacks: bool) {
        if self.shared.lacking.swap(lacks, Ordering::AcqRel) != lacks {
            self.shared.shelf.bell.ring();
        }
    }
}

/// One consistent cut. It keeps the memory and files that it shows for as long as it lives, and
/// keeps nobody waiting.
#[derive(Clone)]
pub struct View {
    sources: Arc<Sources>,
    applied: u64,
    shelf: Arc<Shelf>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View(applied {})", self.applied)
    }
}

/// A key's value, lent by the block or memtable it lies in.
#[derive(Debug)]
pub struct Found {
    revision: u64,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Entry(Entry),
    Block(Arc<super::block::Block>, Range<usize>),
}

impl Found {
    /// The write that stored it.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        match &self.held {
            Held::Entry(entry) => match entry.item() {
                Item::Put { value, .. } => value,
                Item::Tombstone => &[],
            },
            Held::Block(block, range) => block.slice(range.clone()),
        }
    }
}

/// Which keys a scan shows. Bounds that hold nothing between them are fine.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Where to look.
    pub space: u8,
    /// The lower bound, in either direction.
    pub lower: Bound<&'a [u8]>,
    /// The upper bound, in either direction.
    pub upper: Bound<&'a [u8]>,
    /// From the upper bound down.
    pub reverse: bool,
}

/// What a scan shows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The write that stored it.
    pub revision: u64,
}

impl View {
    /// What the tables of a version show, without an engine.
    pub(super) fn of_tables(version: Version, shelf: Arc<Shelf>) -> View {
        let applied = version.applied;
        let (active, version) = (Arc::new(Memtable::default()), Arc::new(version));
        let sources = Arc::new(Sources { active, frozen: Vec::new(), version });
        View { sources, applied, shelf }
    }

    /// Every batch up to this index is in the cut, none after.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Looks a key up.
    ///
    /// # Errors
    /// [`LsmError::Damaged`] when a block on the way is not what was written; the disk's.
    pub fn get(&self, space: u8, key: &[u8]) -> Result<Option<Found>, LsmError> {
        self.shelf.counters.gets.add(1);
        let mut full = Vec::with_capacity(1 + key.len());
        full.push(space);
        full.extend_from_slice(key);
        let frozen = self.sources.frozen.iter().map(|f| &f.table);
        for table in std::iter::once(&self.sources.active).chain(frozen) {
            if let Some(entry) = table.get(&full, self.applied) {
                return Ok(match entry.item() {
                    Item::Tombstone => None,
                    Item::Put { revision, .. } => {
                        Some(Found { revision, held: Held::Entry(entry) })
                    }
                });
            }
        }
        Ok(match self.sources.version.get(&full, key_hash(&full))? {
            Lookup::Absent | Lookup::Tombstone => None,
            Lookup::Put { revision, block, value } => {
                Some(Found { revision, held: Held::Block(block, value) })
            }
        })
    }

    /// Shows the keys between two bounds, in order, until the visitor breaks off.
    ///
    /// # Errors
    /// As [`View::get`]; what was shown before the error is right.
    pub fn scan(
        &self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), LsmError> {
        self.scan_within(scan, u64::MAX, visit).map(|_| ())
    }

    /// The same, and no longer than until so much work went into what is not shown: a tombstone or a hidden entry is
    /// one, and one more for each 4 KiB of it. Then it gives the key, there or not, up to which it has come: that and
    /// all in front of it were shown, if they are there.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub fn scan_within(
        &self,
        scan: &Scan<'_>,
        work_max: u64,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Vec<u8>>, LsmError> {
        let in_space = |bound: Bound<&[u8]>| bound.map(|key| [&[scan.space], key].concat());
        let lower = match in_space(scan.lower) {
            Bound::Unbounded => Bound::Included(vec![scan.space]),
            bound => bound,
        };
        let upper = match (in_space(scan.upper), scan.space.checked_add(1)) {
            (Bound::Unbounded, Some(next)) => Bound::Excluded(vec![next]),
            (bound, _) => bound,
        };
        let inside_lower = |key: &[u8]| match &lower {
            Bound::Included(bound) => key >= bound.as_slice(),
            Bound::Excluded(bound) => key > bound.as_slice(),
            Bound::Unbounded => true,
        };
        let inside_upper = |key: &[u8]| match &upper {
            Bound::Included(bound) => key <= bound.as_slice(),
            Bound::Excluded(bound) => key < bound.as_slice(),
            Bound::Unbounded => true,
        };
        let start = match if scan.reverse { &upper } else { &lower } {
            Bound::Included(key) => Start::At(key),
            Bound::Excluded(key) => Start::Behind(key),
            Bound::Unbounded => Start::End,
        };
        let may_show =
            |t: &Arc<Table>| inside_lower(&t.meta.largest) && inside_upper(&t.meta.smallest);
        let mut merge = self.merge(start, scan.reverse, &may_show)?;
        let mut tombstones = 0;
        while merge.is_valid() {
            let key = merge.key();
            if if scan.reverse { !inside_lower(key) } else { !inside_upper(key) } {
                break;
            }
            match merge.item() {
                Item::Tombstone => tombstones += 1,
                Item::Put { revision, value } => {
                    if visit(Row { key: &key[1..], value, revision }).is_break() {
                        break;
                    }
                }
            }
            if tombstones + merge.hidden() >= work_max {
                return Ok(Some(key[1..].to_vec()));
            }
            merge.advance()?;
        }
        Ok(None)
    }

    fn merge(
        &self,
        start: Start<'_>,
        reverse: bool,
        may_show: &dyn Fn(&Arc<Table>) -> bool,
    ) -> Result<Merge, LsmError> {
        let Sources { active, frozen, version } = self.sources.as_ref();
        let mut sources = Vec::with_capacity(1 + frozen.len() + version.levels[0].len() + LEVELS);
        for table in std::iter::once(active).chain(frozen.iter().map(|f| &f.table)) {
            let cursor = MemCursor::new(Arc::clone(table), self.applied, start, reverse);
            sources.push(Source::Mem(cursor));
        }
        for table in version.levels[0].iter().filter(|t| may_show(t)) {
            let cursor = TableCursor::new(Arc::clone(table), start, reverse, false)?;
            sources.push(Source::Table(cursor));
        }
        for tables in version.levels[1..].iter().filter(|tables| !tables.is_empty()) {
            sources.push(Source::Level(LevelCursor::new(tables, start, reverse, false)?));
        }
        Ok(Merge::new(sources, reverse))
    }
}

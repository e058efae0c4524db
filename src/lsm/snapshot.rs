//! A store's contents on their way to another store.
//!
//! [`Export`] is the tables of one version: it holds their files for as long as it lives, copies
//! nothing, and nobody waits for it. What it is made of is said by a manifest; the tables are read
//! as the bytes they are. [`Import`] is the other end: it says which piece it lacks next, keeps what
//! it is given in files of its own, and when it has all, reads every block and checks it. [`Staged`] is the result,
//! until [`super::Engine::install`] moves the tables into the store as they are: their checksums stay those of the
//! store that wrote them, which the manifest says of each. So there is never more than one copy of what is fetched,
//! beside the store that it replaces.
//!
//! Pieces are found again by content: a table is known by the identity of the store that wrote it
//! and its number there, and is whole when its footer is there. So after a broken connection, or a restart
//! of either side, only what is missing is fetched. A table that turns out to be damaged on this
//! side is fetched once more.
//!
//! Left out: connections and pace, which are the owner's.

use super::LsmError;
use super::bytes::Malformed;
use super::cache::Cache;
use super::counters::Counters;
use super::engine::{Engine, Reader, Shared};
use super::files::Files;
use super::manifest::{self, LEVELS, State};
use super::memtable::{Entry, MemCursor, Memtable};
use super::outputs::{Bench, Outputs, size_of};
use super::room::Pin;
use super::table::{Shelf, Start, Table, TableCursor, TableMeta, table_name};
use super::version::Version;
use crate::env::{Disk, DiskFile, Open};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Directory of the tables that are being fetched, within a data directory.
pub const INCOMING_DIR: &str = "incoming";
/// Largest piece that is asked for at once, bytes.
pub const PIECE_BYTES_MAX: usize = 256 << 10;
/// What stands for the slot in the checksum of a manifest that travels.
pub(super) const TRAVELLING_SLOT: usize = 2;
/// Open files of an import: its own few tables at a time.
const OPEN_FILES: usize = 32;

/// The tables of one version. They stay readable for as long as this lives, unless their room is needed
/// (see docs/architecture.md, "Room").
#[derive(Clone)]
pub struct Export {
    pin: Arc<Pin>,
    applied: u64,
    manifest: Arc<[u8]>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Export(applied {})", self.applied)
    }
}

impl Reader {
    /// What is durable now.
    pub fn export(&self) -> Export {
        let version = Arc::clone(&self.shared.sources().version);
        let state = version.state(0, Default::default());
        let identity = self.shared.options.identity;
        let manifest = manifest::encode(&state, identity, TRAVELLING_SLOT, 0).into();
        Export { applied: version.applied, pin: self.shared.pins.hold(version), manifest }
    }

    /// Every batch up to this index is in what [`Reader::export`] would give now.
    pub fn exportable(&self) -> u64 {
        self.shared.sources().version.applied
    }
}

impl Export {
    /// Every batch up to this index is in it, none after.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Which tables it is made of, for [`Reader::import`].
    pub fn manifest(&self) -> Vec<u8> {
        self.manifest.to_vec()
    }

    /// Whether there is such a piece: not when it has ended.
    pub fn holds(&self, piece: Piece) -> bool {
        self.table(piece).is_some()
    }

    fn table(&self, piece: Piece) -> Option<Arc<Table>> {
        let version = self.pin.version()?;
        let table = version.tables().find(|t| t.meta.number == piece.table)?;
        let end = piece.offset.checked_add(piece.len as u64)?;
        let fits = piece.len <= PIECE_BYTES_MAX && end <= table.meta.bytes;
        fits.then(|| Arc::clone(table))
    }

    /// A piece of a table, as long as was asked for. With the first piece of a table all of it is
    /// checked: damage is not passed on.
    ///
    /// # Errors
    /// [`LsmError::Rejected`] for a table or a range that is not there, or when it has ended;
    /// [`LsmError::Damaged`] for a table that is damaged anywhere; the disk's.
    pub fn read(&self, piece: Piece) -> Result<Vec<u8>, LsmError> {
        let table = self.table(piece).ok_or(LsmError::Rejected { what: "no such piece" })?;
        if piece.offset == 0 {
            table.check()?;
        }
        let mut bytes = vec![0; piece.len];
        table.fill(&mut bytes, piece.offset)?;
        Ok(bytes)
    }
}

/// A range of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The table's number where it comes from.
    pub table: u64,
    /// Where it begins, bytes.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
}

/// Fetched tables on their way into a store.
///
/// Invariant: the first `checked` tables of the manifest were read from front to back, and are what it says.
pub struct Import {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: State,
    shelf: Arc<Shelf>,
    /// What is not whole yet, and how far the first of it has come.
    missing: VecDeque<TableMeta>,
    file: Option<(Arc<dyn DiskFile>, u64)>,
    checked: usize,
    /// The next one, as far as it was read.
    check: Option<Check>,
}

impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Import(applied {}, {} tables missing)", self.state.applied, self.missing.len())
    }
}

/// Fetched tables that nothing names yet, where they were fetched to, and what goes on top of them.
#[derive(Debug)]
pub struct Staged {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    applied: u64,
    levels: Box<[Vec<TableMeta>; LEVELS]>,
    /// A table of this store.
    extra: Option<Box<TableMeta>>,
    /// Numbers of tables in this store that nobody names.
    begun: Vec<u64>,
}

/// An entry that a snapshot gets beside what it brought, or in place of that: space, key, revision,
/// value.
pub type Extra<'a> = (u8, &'a [u8], u64, &'a [u8]);

/// What a step of sealing came to.
#[derive(Debug)]
pub enum Sealed {
    /// There is more to do.
    Working,
    /// A fetched table was damaged: it was removed, and [`Import::missing`] names it again.
    Damaged,
    /// Everything is here, durably, and was checked.
    Done(Staged),
}

impl Engine {
    /// Begins to take in a snapshot that a manifest describes, or goes on with one: `dir`, which is
    /// made, keeps what was fetched before.
    ///
    /// # Errors
    /// [`LsmError::Damaged`] for a manifest that is none; the disk's.
    pub fn import(
        &self,
        disk: Arc<dyn Disk>,
        dir: &Path,
        manifest: &[u8],
    ) -> Result<Import, LsmError> {
        self.reader().import(disk, dir, manifest)
    }
}

impl Reader {
    /// As [`Engine::import`].
    ///
    /// # Errors
    /// As there.
    pub fn import(
        &self,
        disk: Arc<dyn Disk>,
        dir: &Path,
        manifest: &[u8],
    ) -> Result<Import, LsmError> {
        let bad = |Malformed(what)| LsmError::damaged(dir, 0, what);
        let identity = manifest::identity_of(manifest).map_err(bad)?;
        let (_, state) = manifest::decode(manifest, identity, TRAVELLING_SLOT).map_err(bad)?;
        plausible(&state).map_err(bad)?;
        disk.create_dir(dir).map_err(|e| LsmError::io(dir, 0, e))?;
        let shelf = Arc::new(Shelf {
            cache: Cache::new(0),
            files: Files::new(Arc::clone(&disk), OPEN_FILES),
            counters: Counters::default(),
            trash: Mutex::default(),
            bell: super::bell::Bell::default(),
        });
        let mut import = Import {
            shared: Arc::clone(&self.shared),
            disk,
            dir: dir.to_path_buf(),
            missing: state.levels.iter().flatten().cloned().collect(),
            state,
            shelf,
            file: None,
            checked: 0,
            check: None,
        };
        import.keep_what_is_whole()?;
        Ok(import)
    }
}

/// Whether the tables of a manifest from elsewhere can be fetched side by side, added up, and taken over as they are.
pub(super) fn plausible(state: &State) -> Result<(), Malformed> {
    let (mut numbers, mut origins, mut bytes) = (BTreeSet::new(), BTreeSet::new(), 0u64);
    for table in state.levels.iter().flatten() {
        if !numbers.insert(table.number) || !origins.insert((table.written_by, table.written_as)) {
            return Err(Malformed("the manifest names a table twice"));
        }
        if table.smallest > table.largest {
            return Err(Malformed("a table of the manifest ends before it begins"));
        }
        let sum = bytes.checked_add(table.bytes);
        bytes = sum.ok_or(Malformed("the manifest's tables are larger than any disk"))?;
    }
    let apart = |level: &Vec<TableMeta>| level.windows(2).all(|t| t[0].largest < t[1].smallest);
    if !state.levels[1..].iter().all(apart) {
        return Err(Malformed("tables of a level of the manifest overlap"));
    }
    Ok(())
}

/// A table that is read from front to back.
struct Check {
    cursor: TableCursor,
    meta: TableMeta,
    entries: u64,
    /// The key before, none in front of the first.
    last: Option<Vec<u8>>,
}

impl Check {
    /// Reads a piece of so many bytes; true at the end.
    fn step(&mut self, bytes: u64) -> Result<bool, LsmError> {
        let mut left = bytes;
        while self.cursor.is_valid() {
            if left == 0 {
                return Ok(false);
            }
            let key = self.cursor.key();
            left = left.saturating_sub(size_of(key, self.cursor.item()));
            let in_order = match &mut self.last {
                Some(last) => {
                    let ascends = key > last.as_slice();
                    last.clear();
                    last.extend_from_slice(key);
                    ascends
                }
                none => *none.insert(key.to_vec()) == self.meta.smallest,
            };
            if !in_order {
                return Err(self.cursor.unsound("its keys are not those that the manifest says"));
            }
            self.entries += 1;
            self.cursor.advance()?;
        }
        if self.entries != self.meta.entries || self.last.as_ref() != Some(&self.meta.largest) {
            return Err(self.cursor.unsound("its entries are not those that the manifest says"));
        }
        Ok(true)
    }
}

impl Import {
    /// Index that the snapshot reaches to.
    pub fn applied(&self) -> u64 {
        self.state.applied
    }

    /// Bytes of all its tables, and of those that are still missing.
    pub fn bytes(&self) -> (u64, u64) {
        let all = self.state.levels.iter().flatten().map(|t| t.bytes).sum();
        let here = self.file.as_ref().map_or(0, |(_, at)| *at);
        (all, self.missing.iter().map(|t| t.bytes).sum::<u64>() - here)
    }

    /// Tables of an earlier try stay when they are of this snapshot and have their footer, which is
    /// checked against the identity of the store that wrote them; all else is removed.
    fn keep_what_is_whole(&mut self) -> Result<(), LsmError> {
        let names = self.disk.list(&self.dir).map_err(|e| LsmError::io(&self.dir, 0, e))?;
        for name in names {
            let at = self.missing.iter().position(|t| fetched_name(t) == name);
            let whole = at.is_some_and(|at| self.open(self.missing[at].clone()).is_ok());
            if let Some(at) = at {
                self.shelf.files.forget(self.missing[at].number);
            }
            match at {
                Some(at) if whole => drop(self.missing.remove(at)),
                _ => self.remove(&name)?,
            }
        }
        Ok(())
    }

    fn open(&self, meta: TableMeta) -> Result<Arc<Table>, LsmError> {
        Table::open_file(self.dir.join(fetched_name(&meta)), meta, &self.shelf).map(Arc::new)
    }

    fn remove(&self, name: &str) -> Result<(), LsmError> {
        let path = self.dir.join(name);
        match self.disk.remove(&path) {
            // Lost, which is one of the reasons to remove a table.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(|e| LsmError::io(&path, 0, e)),
        }
    }

    /// The next piece to fetch; none when all is here.
    pub fn missing(&self) -> Option<Piece> {
        let table = self.missing.front()?;
        let offset = self.file.as_ref().map_or(0, |(_, at)| *at);
        let len = (table.bytes - offset).min(PIECE_BYTES_MAX as u64) as usize;
        Some(Piece { table: table.number, offset, len })
    }

    /// Takes the piece that [`Import::missing`] named. A table has its name once it is durable: what an earlier
    /// process wrote and could not sync looks whole, and may not be on the disk.
    ///
    /// # Errors
    /// [`LsmError::Rejected`] for another one; the disk's.
    pub fn put(&mut self, piece: Piece, bytes: &[u8]) -> Result<(), LsmError> {
        if self.missing() != Some(piece) || bytes.len() != piece.len {
            return Err(LsmError::Rejected { what: "a piece that was not asked for" });
        }
        let Some(meta) = self.missing.front() else { return Ok(()) };
        let (path, whole) = (self.dir.join(PART_FILE), self.dir.join(fetched_name(meta)));
        let io = |e| LsmError::io(&path, piece.offset, e);
        let (file, at) = match self.file.take() {
            Some(open) => open,
            None => {
                self.remove(PART_FILE)?;
                (self.disk.open(&path, Open::CreateNew).map_err(io)?, 0)
            }
        };
        file.write_all_at(bytes, at).map_err(io)?;
        let at = at + bytes.len() as u64;
        if at < meta.bytes {
            self.file = Some((file, at));
            return Ok(());
        }
        file.sync_all().map_err(io)?;
        drop(file);
        self.disk.rename(&path, &whole).map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)?;
        self.missing.pop_front();
        Ok(())
    }

    /// Reads a piece of what was fetched, which must be all, and checks it. At the end writes the table with `extra`,
    /// which goes in front of what it brought.
    ///
    /// # Errors
    /// [`LsmError::Rejected`] when a piece is missing; the disk's, after which it may be tried again.
    pub fn seal(&mut self, extra: &[Extra<'_>]) -> Result<Sealed, LsmError> {
        if !self.missing.is_empty() {
            return Err(LsmError::Rejected { what: "to seal what was not fetched" });
        }
        let meta = self.state.levels.iter().flatten().nth(self.checked).cloned();
        let Some(meta) = meta else { return self.stage(extra).map(Sealed::Done) };
        match self.check_step(&meta) {
            Err(LsmError::Damaged { .. }) => {
                self.check = None;
                self.shelf.files.forget(meta.number);
                self.remove(&fetched_name(&meta))?;
                self.missing.push_back(meta);
                Ok(Sealed::Damaged)
            }
            step => step.map(|()| Sealed::Working),
        }
    }

    fn check_step(&mut self, meta: &TableMeta) -> Result<(), LsmError> {
        let mut check = match self.check.take() {
            Some(check) => check,
            None => {
                let cursor = TableCursor::new(self.open(meta.clone())?, Start::End, false, true)?;
                Check { cursor, meta: meta.clone(), entries: 0, last: None }
            }
        };
        if check.step(self.shared.options.step_bytes)? {
            self.checked += 1;
            self.shelf.files.forget(meta.number);
        } else {
            self.check = Some(check);
        }
        Ok(())
    }

    fn stage(&mut self, extra: &[Extra<'_>]) -> Result<Staged, LsmError> {
        let Import { shared, disk, dir, state, .. } = self;
        let mut levels = state.levels.clone();
        // Tables of level 0 are numbered by age, and what goes on top of them is newer.
        levels[0].reverse();
        levels.iter_mut().flatten().for_each(|table| table.number = shared.next_file());
        levels[0].reverse();
        let mut staged = Staged {
            shared: Arc::clone(shared),
            disk: Arc::clone(disk),
            dir: dir.clone(),
            applied: state.applied,
            levels: Box::new(levels),
            extra: None,
            begun: Vec::new(),
        };
        let memtable = Arc::new(Memtable::default());
        let mut scratch = Vec::new();
        let entries = extra.iter().map(|&(space, key, revision, value)| {
            Entry::new((space, key), Some((revision, value)), 1, &mut scratch)
        });
        memtable.insert(entries.collect());
        let mut cursor = MemCursor::new(memtable, u64::MAX, Start::End, false);
        let bench = Bench { shared, disk: disk.as_ref() };
        // A space is all that they have: one table.
        let mut outputs = Outputs::default();
        let mut written = Ok(());
        while cursor.is_valid() && written.is_ok() {
            written = outputs.add(&bench, cursor.key(), cursor.item());
            cursor.advance();
        }
        let written = written.and_then(|()| outputs.end_table());
        staged.extra = outputs.take_tables().pop().map(Box::new);
        staged.begun = outputs.into_begun();
        written?;
        // What may lack space gets it before the first file takes its place.
        shared.manifest().slots.make_room(&staged.state())?;
        Ok(staged)
    }

    /// Removes what was fetched, once it is installed or of no use.
    ///
    /// # Errors
    /// The disk's.
    pub fn discard(self) -> Result<(), LsmError> {
        let names = self.disk.list(&self.dir).map_err(|e| LsmError::io(&self.dir, 0, e))?;
        names.iter().try_for_each(|name| match self.remove(name) {
            // The next import removes it.
            Err(e) if e.is_held() => Ok(()),
            removed => removed,
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        throw_away(&self.shared, std::mem::take(&mut self.begun));
    }
}

/// Leaves tables that nobody will name for the worker to remove.
fn throw_away(shared: &Shared, tables: Vec<u64>) {
    if tables.is_empty() {
        return;
    }
    let paths = tables.into_iter().map(|number| shared.dir.join(table_name(number)));
    shared.shelf.trash.lock().unwrap_or_else(PoisonError::into_inner).extend(paths);
    shared.shelf.bell.ring();
}

/// Name of a table that is being fetched.
const PART_FILE: &str = "part";

/// Name of a fetched table: by what seeds its checksums, since another sender may have the same one.
fn fetched_name(meta: &TableMeta) -> String {
    format!("fetched-{:016x}-{:08}", meta.written_by, meta.written_as)
}

impl Staged {
    /// Index that it reaches to.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The store as its manifest would describe it, but for the next number.
    pub(super) fn state(&self) -> State {
        let mut levels = self.levels.as_ref().clone();
        levels[0].splice(..0, self.extra.as_deref().cloned());
        State { applied: self.applied, levels, ..State::default() }
    }

    /// Moves the tables into the store, and gives what the store would be: still nothing names them.
    pub(super) fn version(mut self, shared: &Arc<Shared>) -> Result<Version, LsmError> {
        if !Arc::ptr_eq(shared, &self.shared) {
            return Err(LsmError::Rejected {
                what: "a snapshot that was staged for another store",
            });
        }
        for meta in self.levels.iter().flatten() {
            let from = self.dir.join(fetched_name(meta));
            let to = shared.dir.join(table_name(meta.number));
            self.begun.push(meta.number);
            self.disk.rename(&from, &to).map_err(|e| LsmError::read(&from, 0, e))?;
        }
        for dir in [&shared.dir, &self.dir] {
            self.disk.sync_dir(dir).map_err(|e| LsmError::io(dir, 0, e))?;
        }
        let mut version = Version { applied: self.applied, ..Version::default() };
        for (tables, metas) in version.levels.iter_mut().zip(self.state().levels) {
            for meta in metas {
                let table = Table::open(&shared.dir, meta, &shared.shelf)?;
                Arc::make_mut(tables).push(Arc::new(table));
            }
        }
        self.begun.clear();
        Ok(version)
    }
}

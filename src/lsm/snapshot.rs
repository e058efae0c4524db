//! A store's contents on their way to another store.
//!
//! [`Export`] is the tables of one version: it holds their files for as long as it lives, copies
//! nothing, and nobody waits for it. What it is made of is said by a manifest; the tables are read
//! as the bytes they are. [`Import`] is the other end: it says which piece it lacks next, keeps what
//! it is given in files of its own, and when it has all, merges them into tables of this store,
//! which checks every block on the way. [`Staged`] is the result: tables that nothing names yet,
//! until [`super::Engine::install`] makes them the store.
//!
//! Pieces are found again by content: a table is known by the identity of the store that wrote it
//! and its number, and is whole when its footer is there. So after a broken connection, or a restart
//! of either side, only what is missing is fetched. A table that turns out to be damaged on this
//! side is fetched once more.
//!
//! Left out: connections and pace, which are the owner's.

use super::LsmError;
use super::block::Item;
use super::bytes::Malformed;
use super::cache::Cache;
use super::counters::Counters;
use super::engine::{Engine, Reader, Shared};
use super::files::Files;
use super::manifest::{self, LEVELS, State};
use super::memtable::{Entry, MemCursor, Memtable};
use super::merge::{LevelCursor, Merge, Source};
use super::outputs::{Bench, Outputs, size_of};
use super::table::{Shelf, Start, Table, TableCursor, TableMeta, table_name, table_number};
use super::version::{Version, bytes_of, target};
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

/// The tables of one version. They stay readable for as long as this lives.
#[derive(Clone)]
pub struct Export {
    version: Arc<Version>,
    identity: u64,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Export(applied {})", self.version.applied)
    }
}

impl Reader {
    /// What is durable now.
    pub fn export(&self) -> Export {
        let version = Arc::clone(&self.shared.sources().version);
        Export { version, identity: self.shared.options.identity }
    }
}

impl Export {
    /// Every batch up to this index is in it, none after.
    pub fn applied(&self) -> u64 {
        self.version.applied
    }

    /// Which tables it is made of, for [`Reader::import`].
    pub fn manifest(&self) -> Vec<u8> {
        manifest::encode(
            &self.version.state(0, Default::default()),
            self.identity,
            TRAVELLING_SLOT,
            0,
        )
    }

    /// Whether there is such a piece.
    pub fn holds(&self, piece: Piece) -> bool {
        let table = self.version.tables().find(|t| t.meta.number == piece.table);
        let end = piece.offset.checked_add(piece.len as u64);
        piece.len <= PIECE_BYTES_MAX
            && table.is_some_and(|t| end.is_some_and(|end| end <= t.meta.bytes))
    }

    /// A piece of a table, as long as was asked for. With the first piece of a table all of it is
    /// checked: damage is not passed on.
    ///
    /// # Errors
    /// [`LsmError::Rejected`] for a table or a range that is not there; [`LsmError::Damaged`] for a
    /// table that is damaged anywhere; the disk's.
    pub fn read(&self, piece: Piece) -> Result<Vec<u8>, LsmError> {
        let table = self.version.tables().find(|t| t.meta.number == piece.table);
        let table = table.filter(|_| self.holds(piece));
        let table = table.ok_or(LsmError::Rejected { what: "no such piece" })?;
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
pub struct Import {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Of the store that it comes from.
    identity: u64,
    state: State,
    shelf: Arc<Shelf>,
    /// What is not whole yet, and how far the first of it has come.
    missing: VecDeque<TableMeta>,
    file: Option<(Arc<dyn DiskFile>, u64)>,
    /// What is still to be merged.
    sealing: Option<Merge>,
    /// Tables made in this store, which nobody names.
    outputs: Outputs,
}

impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Import(applied {}, {} tables missing)", self.state.applied, self.missing.len())
    }
}

/// Tables that nothing names yet.
#[derive(Debug)]
pub struct Staged {
    shared: Arc<Shared>,
    applied: u64,
    tables: Vec<TableMeta>,
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
    /// Everything is in tables of this store, durably.
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
            identity,
            missing: state.levels.iter().flatten().cloned().collect(),
            state,
            shelf,
            file: None,
            sealing: None,
            outputs: Outputs::default(),
        };
        import.keep_what_is_whole()?;
        Ok(import)
    }
}

/// Whether the tables of a manifest from elsewhere can be fetched side by side and added up.
pub(super) fn plausible(state: &State) -> Result<(), Malformed> {
    let (mut numbers, mut bytes) = (BTreeSet::new(), 0u64);
    for table in state.levels.iter().flatten() {
        if !numbers.insert(table.number) {
            return Err(Malformed("the manifest names a table twice"));
        }
        let sum = bytes.checked_add(table.bytes);
        bytes = sum.ok_or(Malformed("the manifest's tables are larger than any disk"))?;
    }
    Ok(())
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
    /// checked against the identity of the store they come from; all else is removed.
    fn keep_what_is_whole(&mut self) -> Result<(), LsmError> {
        let names = self.disk.list(&self.dir).map_err(|e| LsmError::io(&self.dir, 0, e))?;
        for name in names {
            let number = table_number(&name);
            let at = self.missing.iter().position(|t| Some(t.number) == number);
            let whole = at.is_some_and(|at| self.open(self.missing[at].clone()).is_ok());
            if let Some(number) = number {
                self.shelf.files.forget(number);
            }
            match at {
                Some(at) if whole => drop(self.missing.remove(at)),
                _ => self.remove(&name)?,
            }
        }
        Ok(())
    }

    fn open(&self, meta: TableMeta) -> Result<Arc<Table>, LsmError> {
        Table::open(&self.dir, self.identity, meta, &self.shelf).map(Arc::new)
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

    /// Takes the piece that [`Import::missing`] named.
    ///
    /// # Errors
    /// [`LsmError::Rejected`] for another one; the disk's.
    pub fn put(&mut self, piece: Piece, bytes: &[u8]) -> Result<(), LsmError> {
        if self.missing() != Some(piece) || bytes.len() != piece.len {
            return Err(LsmError::Rejected { what: "a piece that was not asked for" });
        }
        let Some(meta) = self.missing.front() else { return Ok(()) };
        let path = self.dir.join(table_name(meta.number));
        let io = |e| LsmError::io(&path, piece.offset, e);
        let (file, at) = match self.file.take() {
            Some(open) => open,
            None => (self.disk.open(&path, Open::CreateNew).map_err(io)?, 0),
        };
        file.write_all_at(bytes, at).map_err(io)?;
        let at = at + bytes.len() as u64;
        if at < meta.bytes {
            self.file = Some((file, at));
            return Ok(());
        }
        file.sync_all().map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)?;
        self.missing.pop_front();
        Ok(())
    }

    /// Does a piece of the merging into tables of this store; everything must have been fetched.
    /// `extra` goes in front of what it brought; the first call counts.
    ///
    /// # Errors
    /// [`LsmError::Rejected`] when a piece is missing; the disk's, after which it begins anew.
    pub fn seal(&mut self, extra: &[Extra<'_>]) -> Result<Sealed, LsmError> {
        if !self.missing.is_empty() {
            return Err(LsmError::Rejected { what: "to seal what was not fetched" });
        }
        let step = self.seal_step(extra);
        if step.is_err() {
            throw_away(&self.shared, std::mem::take(&mut self.outputs).into_begun());
        }
        match step {
            Err(LsmError::Damaged { path, .. }) if path.parent() == Some(&self.dir) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let number = table_number(&name);
                let mut all = self.state.levels.iter().flatten();
                let meta = all.find(|t| Some(t.number) == number).cloned();
                number.inspect(|&number| self.shelf.files.forget(number));
                self.remove(&name)?;
                self.missing.extend(meta);
                Ok(Sealed::Damaged)
            }
            step => step,
        }
    }

    fn seal_step(&mut self, extra: &[Extra<'_>]) -> Result<Sealed, LsmError> {
        let mut merge = match self.sealing.take() {
            Some(merge) => merge,
            None => self.begin_sealing(extra)?,
        };
        let options = self.shared.options;
        let bench = Bench { shared: &self.shared, disk: self.disk.as_ref() };
        let mut done = 0;
        while merge.is_valid() && done < options.step_bytes {
            let (key, item) = (merge.key(), merge.item());
            done += size_of(key, item);
            // Nothing lies below: a tombstone has done its work.
            if item != Item::Tombstone {
                self.outputs.add(&bench, key, item)?;
                if self.outputs.bytes() >= options.table_bytes {
                    self.outputs.end_table()?;
                }
            }
            merge.advance()?;
        }
        if merge.is_valid() {
            self.sealing = Some(merge);
            return Ok(Sealed::Working);
        }
        self.outputs.end_table()?;
        let store = &self.shared.dir;
        self.disk.sync_dir(store).map_err(|e| LsmError::io(store, 0, e))?;
        let tables = std::mem::take(&mut self.outputs).take_tables();
        let (shared, applied) = (Arc::clone(&self.shared), self.state.applied);
        Ok(Sealed::Done(Staged { shared, applied, tables }))
    }

    fn begin_sealing(&self, extra: &[Extra<'_>]) -> Result<Merge, LsmError> {
        let memtable = Arc::new(Memtable::default());
        let mut scratch = Vec::new();
        let entries = extra.iter().map(|&(space, key, revision, value)| {
            Entry::new((space, key), Some((revision, value)), 1, &mut scratch)
        });
        memtable.insert(entries.collect());
        let mut sources = vec![Source::Mem(MemCursor::new(memtable, u64::MAX, Start::End, false))];
        for (level, metas) in self.state.levels.iter().enumerate() {
            let mut tables = Vec::with_capacity(metas.len());
            for meta in metas {
                tables.push(self.open(meta.clone())?);
            }
            if level == 0 {
                for table in tables {
                    sources.push(Source::Table(TableCursor::new(table, Start::End, false, true)?));
                }
            } else if !tables.is_empty() {
                let tables = Arc::new(tables);
                sources.push(Source::Level(LevelCursor::new(&tables, Start::End, false, true)?));
            }
        }
        Ok(Merge::new(sources, false))
    }

    /// Removes what was fetched, once it is installed or of no use.
    ///
    /// # Errors
    /// The disk's.
    pub fn discard(self) -> Result<(), LsmError> {
        let names = self.disk.list(&self.dir).map_err(|e| LsmError::io(&self.dir, 0, e))?;
        names.iter().try_for_each(|name| self.remove(name))
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        throw_away(&self.shared, std::mem::take(&mut self.outputs).into_begun());
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        throw_away(&self.shared, self.tables.drain(..).map(|table| table.number).collect());
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

impl Staged {
    /// Index that it reaches to.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The store as it would be: one run of tables, in the first level that has room for it.
    pub(super) fn version(mut self, shared: &Arc<Shared>) -> Result<Version, LsmError> {
        if !Arc::ptr_eq(shared, &self.shared) {
            return Err(LsmError::Rejected {
                what: "a snapshot that was staged for another store",
            });
        }
        let open = |meta: TableMeta| {
            Table::open(&shared.dir, shared.options.identity, meta, &shared.shelf).map(Arc::new)
        };
        let tables: Vec<Arc<Table>> =
            self.tables.iter().cloned().map(open).collect::<Result<_, _>>()?;
        self.tables.clear();
        let bytes = bytes_of(&tables);
        let fits = |level: &usize| bytes <= target(*level, shared.options.level1_bytes);
        let level = (1..LEVELS - 1).find(fits).unwrap_or(LEVELS - 1);
        let mut version = Version { applied: self.applied, ..Version::default() };
        version.levels[level] = Arc::new(tables);
        Ok(version)
    }
}

//! The simulated disk of one node.
//!
//! # Fault model
//!
//! - A write goes to the cache at once. It is made of sectors of [`SECTOR_BYTES`]; each is written
//!   whole or not at all.
//! - `sync_data` and `sync_all` put every earlier write to that file on the platter. A created or
//!   removed name is on the platter after `sync_dir`.
//! - A directory is durable when it is made ([`Disk::create_dir`] says so); one in whose making the power fails is there or
//!   not, and what is not there holds no files.
//! - A killed process loses nothing: the cache belongs to the system.
//! - A power loss keeps, of every sector written since the last sync, the old content or that of
//!   any of the writes since, chosen sector by sector: unsynced writes are lost, torn and reordered.
//!   Of every name changed since the last `sync_dir` it keeps the old state or the new.
//! - The power may fail in the middle of an operation: [`SimDisk::fail_power_in`] counts operations
//!   down, and the one it hits is torn; all later ones fail and touch nothing.
//! - [`Trouble`] makes one later operation fail with an error. After a failed sync the unsynced
//!   writes of the file are in doubt: a power loss may take them even if a later sync succeeds.
//! - A write that fails is done in part: some of it, from its begin to the end of some sector, is there.
//! - A sync may find no space for what the file has become longer by since its last one (delayed allocation); its
//!   unsynced writes are in doubt then, too. What lies within a file's durable length has its space.
//! - A file may be held by somebody else for a while: it is not removed, and the error says so.
//! - A disk has a bandwidth ([`SimDisk::pace`]), and an open may wait for a descriptor, since `env` does:
//!   [`SimDisk::take_busy_us`] says how long whoever used it was busy.
//! - The disk may be full for a while: [`SimDisk::limit`] says how much room is left, what makes a
//!   file longer takes of it, a removed file gives back, and when nothing is left no file is made.
//! - Bits flip only in what [`SimDisk::flip`] is told, behind everyone's back.
//! - A sector that [`SimDisk::spoil`] is told of cannot be read (EIO), by this process and all later ones, until it
//!   is written again or its file is removed.
//!
//! Not modelled: a disk that lies about syncs, reads that return different bytes twice, an open that is refused for want
//! of a descriptor: `env` gives that error to commands only, which keep no reserve.

mod rot;
mod trouble;

pub use trouble::Trouble;

use super::dice::Dice;
use super::moments::{DiskStep, FileKind, Moment};
use crate::env::{DirLock, Disk, DiskFile, Open, held, unreadable};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A disk; clones share it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

struct State {
    dice: Dice,
    /// By path: bytes are compared faster than the components of a path.
    names: BTreeMap<OsString, usize>,
    /// The names as the platter has them, where that differs.
    unsynced_names: BTreeMap<OsString, Option<usize>>,
    files: Vec<File>,
    power_fails_in: Option<u64>,
    /// The power fails at such a step, after so many others like it.
    power_fails_at: Option<(Moment, u64)>,
    dark: bool,
    /// When the power last failed in the middle of an operation.
    failed_at: Option<Moment>,
    trouble: Option<Trouble>,
    /// Removes that fail, and opens that wait, before others.
    held: u64,
    starved: u64,
    bytes_a_second: Option<u64>,
    busy_us: u64,
    seen: BTreeMap<&'static str, u64>,
    /// Directories that were asked for: whether each is there, and whether that is certain. Others are there.
    dirs: BTreeMap<OsString, Dir>,
    /// Bytes that all files together may have.
    capacity: Option<usize>,
    /// How often each trouble struck.
    pub(super) struck: BTreeMap<Trouble, u64>,
    /// The trouble that struck last.
    last_struck: Option<Trouble>,
    /// Of what kind the file was whose read failed in this life and would not again.
    read_struck: Vec<FileKind>,
    syncs: u64,
    /// Reads that met a sector that cannot be read.
    spoiled_reads: u64,
    between: Option<Look>,
}

/// What is known of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dir {
    There,
    /// The power failed while it was made: it is there, or not.
    InDoubt,
    /// It was lost.
    Gone,
}

/// What is done before every operation on a file.
pub type Look = Box<dyn FnMut() + Send>;

#[derive(Clone, Default)]
struct File {
    kind: FileKind,
    bytes: Vec<u8>,
    /// Length on the platter.
    durable_len: usize,
    /// Where the last write began, and the last one that was synced.
    last_write: usize,
    last_synced: usize,
    /// Sectors that cannot be read, by where they begin.
    spoiled: BTreeSet<usize>,
    /// Earlier content of sectors written since the last sync, oldest first.
    undo: Vec<(usize, Vec<u8>)>,
    /// The same for writes whose sync failed: the system takes them for clean, and only writing
    /// the sector again and syncing that makes it durable.
    doubtful: Vec<(usize, Vec<u8>)>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct SimFile(SimDisk, usize);

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.last_write = offset;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let first = offset / SECTOR_BYTES * SECTOR_BYTES;
        for at in (first..end).step_by(SECTOR_BYTES) {
            let to = (at + SECTOR_BYTES).min(self.bytes.len());
            self.undo.extend(self.doubtful.extract_if(.., |entry| entry.0 == at));
            self.undo.push((at, self.bytes[at..to].to_vec()));
            self.spoiled.remove(&at);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }

    fn sync_failed(&mut self) {
        self.doubtful.append(&mut self.undo);
    }

    fn sync(&mut self) {
        self.undo.clear();
        self.durable_len = self.bytes.len();
        self.last_synced = self.last_write;
    }

    /// What a power loss leaves.
    fn lose(&mut self, dice: &mut Dice) {
        // Walking back through the writes of a sector, each is undone or ends the walk.
        let mut kept: BTreeMap<usize, bool> = BTreeMap::new();
        for (at, old) in self.undo.drain(..).rev().chain(self.doubtful.drain(..).rev()) {
            let kept = kept.entry(at).or_insert(false);
            *kept |= dice.chance(1, 2);
            if !*kept {
                let to = (at + old.len()).min(self.bytes.len());
                self.bytes[at..to].copy_from_slice(&old[..to - at]);
            }
        }
        let len =
            dice.between(self.durable_len.min(self.bytes.len()) as u64, self.bytes.len() as u64);
        self.bytes.truncate(len as usize);
        self.durable_len = self.bytes.len();
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(dice: Dice) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            dice,
            names: BTreeMap::new(),
            unsynced_names: BTreeMap::new(),
            files: Vec::new(),
            power_fails_in: None,
            power_fails_at: None,
            dark: false,
            failed_at: None,
            trouble: None,
            held: 0,
            starved: 0,
            bytes_a_second: None,
            busy_us: 0,
            seen: BTreeMap::new(),
            dirs: BTreeMap::new(),
            capacity: None,
            struck: BTreeMap::new(),
            last_struck: None,
            read_struck: Vec::new(),
            syncs: 0,
            spoiled_reads: 0,
            between: None,
        })))
    }

    /// The files as the system shows them now, on a disk of their own that never fails: to look at.
    pub fn copy(&self) -> SimDisk {
        let copy = SimDisk::new(Dice::new(0));
        let (state, mut to) = (self.state(), copy.state());
        for (path, &id) in &state.names {
            let bytes = state.files[id].bytes.clone();
            let at = to.files.len();
            to.names.insert(path.clone(), at);
            let File { kind, spoiled, .. } = state.files[id].clone();
            to.files.push(File {
                kind,
                durable_len: bytes.len(),
                bytes,
                spoiled,
                ..File::default()
            });
        }
        to.dirs.clone_from(&state.dirs);
        drop(to);
        copy
    }

    /// A disk of its own with what a loss of power would leave here now.
    pub fn image(&self, dice: Dice) -> SimDisk {
        let image = SimDisk::new(dice);
        let (state, mut to) = (self.state(), image.state());
        to.names.clone_from(&state.names);
        to.unsynced_names.clone_from(&state.unsynced_names);
        to.dirs.clone_from(&state.dirs);
        to.files.clone_from(&state.files);
        drop(to);
        image.power_lost();
        image
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power fails in the middle of the operation that many changes from now.
    pub fn fail_power_in(&self, changes: u64) {
        self.state().power_fails_in = Some(changes);
    }

    /// The power does not fail any more.
    pub fn spare_power(&self) {
        let mut state = self.state();
        (state.power_fails_in, state.power_fails_at) = (None, None);
    }

    /// The power fails in the middle of such a step, after so many others like it, in this life or a later
    /// one.
    pub fn fail_power_at(&self, moment: Moment, skip: u64) {
        self.state().power_fails_at = Some((moment, skip));
    }

    /// When the power failed in the middle of an operation; told once.
    pub fn take_failed_at(&self) -> Option<Moment> {
        self.state().failed_at.take()
    }

    /// Whether the power failed.
    pub fn is_dark(&self) -> bool {
        self.state().dark
    }

    /// Does something before every operation on a file, reads included, from now on. What that itself does
    /// on this disk counts as no operation.
    pub fn look_between(&self, look: Option<Look>) {
        self.state().between = look;
    }

    /// An operation is about to be done.
    fn before_operation(&self) {
        let mut state = self.state();
        if state.dark {
            return;
        }
        let Some(mut look) = state.between.take() else { return };
        drop(state);
        self.beside(&mut look);
        self.state().between = Some(look);
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The process is gone, the system is not: everything written is still there.
    pub fn killed(&self) {
        let mut state = self.state();
        state.power_fails_in = None;
        state.trouble = None;
        state.read_struck = Vec::new();
        state.dark = false;
    }

    /// The power is gone: what was not synced is there or not, piece by piece.
    pub fn power_lost(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        for file in &mut state.files {
            file.lose(&mut state.dice);
        }
        for (path, old) in std::mem::take(&mut state.unsynced_names) {
            if state.dice.chance(1, 2) {
                match old {
                    Some(id) => state.names.insert(path, id),
                    None => state.names.remove(&path),
                };
            }
        }
        for dir in state.dirs.values_mut().filter(|dir| **dir == Dir::InDoubt) {
            *dir = if state.dice.chance(1, 2) { Dir::There } else { Dir::Gone };
            if *dir == Dir::Gone {
                *state.seen.entry("directories lost").or_default() += 1;
            }
        }
        drop(guard);
        self.killed();
    }

    /// Paths and lengths of all files.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let state = self.state();
        state.names.iter().map(|(path, &id)| (path.into(), state.files[id].bytes.len())).collect()
    }

    /// The bytes of a file, none when it is not there.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.get(path.as_os_str()).map(|&id| state.files[id].bytes.clone())
    }

    /// Whether a power loss would change nothing in the files with that in their names.
    pub fn is_durable(&self, name: &str) -> bool {
        let state = self.state();
        let files = state.names.iter().filter(|(path, _)| path.to_string_lossy().contains(name));
        files
            .map(|(_, &id)| &state.files[id])
            .all(|file| file.undo.is_empty() && file.doubtful.is_empty())
    }
}

impl State {
    fn used(&self) -> usize {
        self.names.values().map(|&id| self.files[id].bytes.len()).sum()
    }

    /// Whether there is no room for so many bytes more.
    fn is_full_for(&mut self, bytes: usize) -> bool {
        let full = self.capacity.is_some_and(|capacity| self.used() + bytes > capacity);
        if full {
            self.count(Trouble::Full);
        }
        full || self.strikes(Trouble::Full)
    }

    /// Whether there is power for an operation that changes nothing.
    fn light(&self) -> io::Result<()> {
        if self.dark { Err(dark()) } else { Ok(()) }
    }

    /// Whether that directory is there.
    fn in_directory(&self, dir: Option<&Path>) -> io::Result<()> {
        let gone = |dir: &Path| self.dirs.get(dir.as_os_str()) == Some(&Dir::Gone);
        if dir.is_some_and(gone) { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }

    /// The same for one that changes something: the power may fail in the middle of it.
    fn changes(&mut self, step: DiskStep, file: FileKind) -> io::Result<Power> {
        self.light()?;
        let moment = Moment { step, file };
        let by_count = match &mut self.power_fails_in {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        let by_aim = match &mut self.power_fails_at {
            Some((at, 0)) => *at == moment,
            Some((at, skip)) if *at == moment => {
                *skip -= 1;
                false
            }
            _ => false,
        };
        if by_count || by_aim {
            (self.dark, self.failed_at) = (true, Some(moment));
            self.power_fails_at = None;
            return Ok(Power::FailsNow);
        }
        Ok(Power::On)
    }
}

#[derive(PartialEq, Eq)]
enum Power {
    On,
    FailsNow,
}

fn dark() -> io::Error {
    io::Error::other("simulated power loss")
}

fn eio() -> io::Error {
    io::Error::other("simulated input/output error")
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        self.before_operation();
        let mut state = self.state();
        let kind = FileKind::of(path);
        state.in_directory(path.parent())?;
        let power = match mode {
            Open::CreateNew => state.changes(DiskStep::Create, kind)?,
            _ => {
                state.light()?;
                Power::On
            }
        };
        let id = match (state.names.get(path.as_os_str()).copied(), mode) {
            (Some(_), Open::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(id), _) => id,
            (None, Open::CreateNew) => {
                if state.is_full_for(1) {
                    return Err(full());
                }
                let id = state.files.len();
                state.files.push(File { kind, ..File::default() });
                state.names.insert(path.into(), id);
                state.unsynced_names.entry(path.into()).or_insert(None);
                id
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        if power == Power::FailsNow {
            return Err(dark());
        }
        state.takes_descriptor();
        drop(state);
        Ok(Arc::new(SimFile(self.clone(), id)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.light()?;
        state.in_directory(Some(dir))?;
        let name = |path: &OsString| {
            let path = Path::new(path);
            let name = (path.parent() == Some(dir)).then(|| path.file_name()).flatten()?;
            Some(name.to_string_lossy().into_owned())
        };
        Ok(state.names.keys().filter_map(name).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.dirs.get(dir.as_os_str()) == Some(&Dir::There) {
            return state.light();
        }
        // Its name is made durable, too: only a power failure within leaves that open.
        let power = state.changes(DiskStep::CreateDir, FileKind::of(dir))?;
        let known = if power == Power::FailsNow { Dir::InDoubt } else { Dir::There };
        state.dirs.insert(dir.into(), known);
        if power == Power::FailsNow { Err(dark()) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.before_operation();
        let mut state = self.state();
        let power = state.changes(DiskStep::Remove, FileKind::of(path))?;
        if power == Power::On && state.names.contains_key(path.as_os_str()) && state.is_held() {
            return Err(held());
        }
        let id = state.names.remove(path.as_os_str()).ok_or(io::ErrorKind::NotFound)?;
        state.unsynced_names.entry(path.into()).or_insert(Some(id));
        if power == Power::FailsNow { Err(dark()) } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before_operation();
        let mut state = self.state();
        state.in_directory(to.parent())?;
        let power = state.changes(DiskStep::Create, FileKind::of(to))?;
        let id = state.names.remove(from.as_os_str()).ok_or(io::ErrorKind::NotFound)?;
        state.unsynced_names.entry(from.into()).or_insert(Some(id));
        state.files[id].kind = FileKind::of(to);
        let old = state.names.insert(to.into(), id);
        state.unsynced_names.entry(to.into()).or_insert(old);
        if power == Power::FailsNow { Err(dark()) } else { Ok(()) }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.before_operation();
        let mut state = self.state();
        if state.changes(DiskStep::SyncNames, FileKind::of(dir))? == Power::FailsNow {
            return Err(dark());
        }
        if state.strikes(Trouble::Sync) {
            return Err(eio());
        }
        state.unsynced_names.retain(|path, _| Path::new(path).parent() != Some(dir));
        Ok(())
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        self.state().light()?;
        Ok(DirLock { guard: Box::new(()), path: dir.join("lock") })
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.before_operation();
        let mut state = self.0.state();
        state.light()?;
        if state.strikes(Trouble::Read) {
            let kind = state.files[self.1].kind;
            state.read_struck.push(kind);
            return Err(unreadable());
        }
        state.moves(buf.len());
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let first = at / SECTOR_BYTES * SECTOR_BYTES;
        if state.files[self.1].spoiled.range(first..at.saturating_add(buf.len())).next().is_some() {
            state.spoiled_reads += 1;
            return Err(unreadable());
        }
        let bytes = &state.files[self.1].bytes;
        let found = at.checked_add(buf.len()).and_then(|end| bytes.get(at..end));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.before_operation();
        let mut guard = self.0.state();
        let state = &mut *guard;
        let power = state.changes(DiskStep::Write, state.files[self.1].kind)?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        if power == Power::On && state.strikes(Trouble::Write) {
            let part = state.part(at, buf.len());
            state.files[self.1].write(at, &buf[..part]);
            return Err(eio());
        }
        let grows = (at + buf.len()).saturating_sub(state.files[self.1].bytes.len());
        if grows > 0 && state.is_full_for(grows) {
            let room = state.capacity.map_or(grows, |all| all.saturating_sub(state.used()));
            // Behind the end there may be a gap in front of the bytes.
            let fits = buf.len().saturating_sub(grows) + room.min(grows - 1);
            let part = state.part(at, fits.min(buf.len()));
            state.files[self.1].write(at, &buf[..part]);
            return Err(full());
        }
        state.moves(buf.len());
        state.files[self.1].write(at, buf);
        if power == Power::FailsNow { Err(dark()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.before_operation();
        let mut state = self.0.state();
        let kind = state.files[self.1].kind;
        if state.changes(DiskStep::Sync, kind)? == Power::FailsNow {
            return Err(dark());
        }
        if state.strikes(Trouble::Sync) {
            state.files[self.1].sync_failed();
            return Err(eio());
        }
        let grown = state.files[self.1].bytes.len() > state.files[self.1].durable_len;
        if grown && state.strikes(Trouble::FullSync) {
            state.files[self.1].sync_failed();
            return Err(full());
        }
        state.syncs += 1;
        state.files[self.1].sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.0.state();
        state.light()?;
        Ok(state.files[self.1].bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests;

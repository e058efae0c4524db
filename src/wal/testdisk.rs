//! A disk in memory for tests: it records every operation and can tell what would be on the
//! platter after a crash at any of them.
//!
//! The model: a write is made of sectors of 512 bytes; until the file is synced each of them may
//! be there or not, whatever the order of the writes. A created or removed name is certain after
//! a sync of the directory, until then either way is possible, for each name by itself.

use crate::env::{DirLock, Disk, DiskFile, Open, held, unreadable};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// Numbers for tests: splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Debug)]
enum Op {
    Create(PathBuf, usize),
    Remove(PathBuf),
    Write(usize, u64, Vec<u8>),
    Sync(usize),
    /// A sync that failed: the system calls the pages clean and never writes them.
    Drop(usize),
    SyncDir,
}

/// Which operation fails from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Read,
    Write,
    Sync,
    /// No file can grow.
    Full,
    /// No file can be removed: somebody else holds it.
    Held,
}

/// What is on the platter: names and contents.
#[derive(Clone, Debug, Default)]
struct Image {
    names: BTreeMap<PathBuf, usize>,
    files: Vec<Vec<u8>>,
}

#[derive(Default)]
struct State {
    /// Durable at the start.
    base: Image,
    /// As the running process sees it.
    now: Image,
    ops: Vec<Op>,
    fault: Option<Fault>,
    /// Bytes that all files together may have.
    capacity: Option<usize>,
    before_read: Option<Box<dyn FnOnce() + Send>>,
    /// Bytes that cannot be read, by file and place, until they are written again.
    spoiled: BTreeSet<(usize, usize)>,
}

/// The disk; clones share it.
#[derive(Clone, Default)]
pub(crate) struct TestDisk(Arc<Mutex<State>>);

impl fmt::Debug for TestDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestDisk({} operations)", self.ops())
    }
}

#[derive(Debug)]
struct TestFile(TestDisk, usize);

fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let at = offset as usize;
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Image {
    fn rename(&mut self, op: &Op) {
        match op {
            Op::Create(path, id) => {
                self.names.insert(path.clone(), *id);
            }
            Op::Remove(path) => {
                self.names.remove(path);
            }
            _ => {}
        }
    }
}

impl State {
    fn used(&self) -> usize {
        self.now.names.values().map(|&id| self.now.files[id].len()).sum()
    }
}

impl TestDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// As the trait object that components take.
    pub(crate) fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Operations so far that change something.
    pub(crate) fn ops(&self) -> usize {
        self.state().ops.len()
    }

    /// A disk as it may be after a crash behind the first `n` operations. Seed 0 loses all that
    /// is not synced, seed 1 keeps all of it, others toss a coin for each.
    pub(crate) fn crashed(&self, n: usize, seed: u64) -> TestDisk {
        let state = self.state();
        let mut image = state.base.clone();
        image.files.resize(state.now.files.len(), Vec::new());
        let mut writes: Vec<(usize, u64, &[u8])> = Vec::new();
        let mut names: Vec<&Op> = Vec::new();
        for op in &state.ops[..n] {
            match op {
                Op::Create(..) | Op::Remove(_) => names.push(op),
                Op::Write(id, offset, bytes) => writes.push((*id, *offset, bytes)),
                Op::Sync(id) => writes.retain(|(of, offset, bytes)| {
                    if of == id {
                        put(&mut image.files[*of], *offset, bytes);
                    }
                    of != id
                }),
                Op::Drop(id) => writes.retain(|(of, ..)| of != id),
                Op::SyncDir => names.drain(..).for_each(|op| image.rename(op)),
            }
        }
        let mut dice = Dice(seed);
        let mut keep = || match seed {
            0 => false,
            1 => true,
            _ => dice.below(2) == 0,
        };
        for op in names {
            if keep() {
                image.rename(op);
            }
        }
        for (id, mut offset, mut bytes) in writes {
            while !bytes.is_empty() {
                let len = (SECTOR - offset as usize % SECTOR).min(bytes.len());
                let (piece, rest) = bytes.split_at(len);
                if keep() {
                    put(&mut image.files[id], offset, piece);
                }
                offset += len as u64;
                bytes = rest;
            }
        }
        TestDisk::of(image)
    }

    /// What the operation with this number did, counted from 1, and the name of its file.
    pub(crate) fn operation(&self, n: usize) -> (&'static str, String) {
        let state = self.state();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let made = |id: &usize| {
            let path = state.ops.iter().find_map(|op| match op {
                Op::Create(path, made) if made == id => Some(path),
                _ => None,
            });
            let known = || state.base.names.iter().find(|(_, found)| *found == id).map(|f| f.0);
            path.or_else(known).map_or(String::new(), |path| name(path))
        };
        match &state.ops[n - 1] {
            Op::Create(path, _) => ("create", name(path)),
            Op::Remove(path) => ("remove", name(path)),
            Op::Write(id, ..) => ("write", made(id)),
            Op::Sync(id) => ("sync", made(id)),
            Op::Drop(id) => ("failed sync", made(id)),
            Op::SyncDir => ("sync directory", String::new()),
        }
    }

    /// Sectors of the last operation of the first `n`, when that is a write.
    pub(crate) fn sectors(&self, n: usize) -> usize {
        match self.state().ops[..n].last() {
            Some(Op::Write(_, offset, bytes)) => {
                let first = *offset as usize / SECTOR;
                (*offset as usize + bytes.len()).div_ceil(SECTOR) - first
            }
            _ => 0,
        }
    }

    /// A disk as it may be after a crash within the write that ends the first `n` operations:
    /// everything before it is there, and of its sectors the first `kept`, or all but those.
    pub(crate) fn torn(&self, n: usize, kept: usize, front: bool) -> TestDisk {
        let disk = self.crashed(n - 1, 1);
        let state = self.state();
        if let Some(Op::Write(id, offset, bytes)) = state.ops[..n].last() {
            let at = ((*offset as usize / SECTOR + kept) * SECTOR).max(*offset as usize);
            let (head, tail) = bytes.split_at((at - *offset as usize).min(bytes.len()));
            let (piece, offset) =
                if front { (head, *offset) } else { (tail, offset + head.len() as u64) };
            let mut torn = disk.state();
            put(&mut torn.base.files[*id], offset, piece);
            put(&mut torn.now.files[*id], offset, piece);
        }
        disk
    }

    /// The disk as the next process sees it when this one was killed behind the first `n`
    /// operations: all of them, and what was not synced still is not.
    pub(crate) fn killed(&self, n: usize) -> TestDisk {
        let disk = self.crashed(n, 1);
        let state = self.state();
        disk.state().base = state.base.clone();
        disk.state().ops = state.ops[..n].to_vec();
        disk
    }

    /// A copy of the disk as the process sees it, with nothing unsynced.
    pub(crate) fn copy(&self) -> TestDisk {
        TestDisk::of(self.state().now.clone())
    }

    fn of(image: Image) -> TestDisk {
        let state = State { base: image.clone(), now: image, ..State::default() };
        TestDisk(Arc::new(Mutex::new(state)))
    }

    /// Lets every operation of that kind fail, or none.
    pub(crate) fn fail(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Leaves room for so many bytes more than all files have now, or for any number.
    pub(crate) fn limit(&self, room: Option<usize>) {
        let mut state = self.state();
        let used = state.used();
        state.capacity = room.map(|room| used + room);
    }

    /// Runs this in the middle of the next read.
    pub(crate) fn before_read(&self, act: impl FnOnce() + Send + 'static) {
        self.state().before_read = Some(Box::new(act));
    }

    /// Paths of all files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.state().now.names.keys().cloned().collect()
    }

    /// Contents of a file.
    pub(crate) fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.now.files[state.now.names[path]].clone()
    }

    /// Changes a file behind everyone's back.
    pub(crate) fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = state.now.names[path];
        change(&mut state.now.files[id]);
    }

    /// That byte of a file cannot be read any more (EIO).
    pub(crate) fn spoil(&self, path: &Path, at: usize) {
        let mut state = self.state();
        let id = state.now.names[path];
        state.spoiled.insert((id, at));
    }

    fn check(&self, fault: Fault) -> io::Result<()> {
        if self.state().fault == Some(fault) { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

impl Disk for TestDisk {
    fn open(&self, path: &Path, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let id = match (state.now.names.get(path).copied(), mode) {
            (Some(_), Open::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(id), _) => id,
            (None, Open::CreateNew) => {
                let id = state.now.files.len();
                state.now.files.push(Vec::new());
                state.now.names.insert(path.to_path_buf(), id);
                state.ops.push(Op::Create(path.to_path_buf(), id));
                id
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        drop(state);
        Ok(Arc::new(TestFile(self.clone(), id)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let name = |p: &PathBuf| {
            (p.parent() == Some(dir)).then(|| p.file_name().unwrap().to_str().unwrap().to_string())
        };
        Ok(self.state().now.names.keys().filter_map(name).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.fault == Some(Fault::Held) && state.now.names.contains_key(path) {
            return Err(held());
        }
        state.now.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.ops.push(Op::Remove(path.to_path_buf()));
        Ok(())
    }

    /// Two operations: a crash leaves either name, both or none.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let id = state.now.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.now.names.insert(to.to_path_buf(), id);
        state.ops.extend([Op::Create(to.to_path_buf(), id), Op::Remove(from.to_path_buf())]);
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.check(Fault::Sync)?;
        self.state().ops.push(Op::SyncDir);
        Ok(())
    }

    fn lock(&self, _dir: &Path) -> io::Result<DirLock> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl DiskFile for TestFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.check(Fault::Read)?;
        let act = self.0.state().before_read.take();
        if let Some(act) = act {
            act();
        }
        let state = self.0.state();
        let at = offset as usize;
        let places = (self.1, at)..(self.1, at + buf.len());
        if state.spoiled.range(places).next().is_some() {
            return Err(unreadable());
        }
        let bytes = state.now.files[self.1].get(at..at + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.check(Fault::Write)?;
        let mut state = self.0.state();
        let end = offset as usize + buf.len();
        let grows = end.saturating_sub(state.now.files[self.1].len());
        let full = state.capacity.is_some_and(|capacity| state.used() + grows > capacity);
        if grows > 0 && (full || state.fault == Some(Fault::Full)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut state.now.files[self.1], offset, buf);
        state.spoiled.retain(|(id, at)| *id != self.1 || !(offset as usize..end).contains(at));
        state.ops.push(Op::Write(self.1, offset, buf.to_vec()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        if let Err(e) = self.0.check(Fault::Sync) {
            self.0.state().ops.push(Op::Drop(self.1));
            return Err(e);
        }
        self.0.state().ops.push(Op::Sync(self.1));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.state().now.files[self.1].len() as u64)
    }
}

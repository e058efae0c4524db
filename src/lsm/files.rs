//! Open files of tables: as many as may be, whatever the number of tables.
//!
//! A table of some MiB needs its file only to read a block that is not in the cache. A file is
//! opened when it is read and stays open until others need its place: one that was read since the
//! hand of the clock came by last stays for another round. A read under way holds its file by an
//! `Arc`, so that at most as many more are open as there are readers.

use crate::env::{Disk, DiskFile, Open};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    /// By table: the file, and whether it was read since the hand came by.
    open: HashMap<u64, (Arc<dyn DiskFile>, bool)>,
    /// The tables of `open`, each once, in the order in which the hand comes by; and some that were
    /// forgotten since.
    ring: VecDeque<u64>,
}

/// The open files. Invariant: never more than the bound.
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    open_max: usize,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Files({} open)", self.open())
    }
}

impl Files {
    /// Opens files on this disk; a bound of nothing is one of one.
    pub(super) fn new(disk: Arc<dyn Disk>, open_max: usize) -> Files {
        Files { disk, state: Mutex::default(), open_max: open_max.max(1) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked under the lock left at worst a file closed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a table, opened if it is not.
    pub(super) fn get(&self, table: u64, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some((file, used)) = self.state().open.get_mut(&table) {
            *used = true;
            return Ok(Arc::clone(file));
        }
        // Not under the lock: others read on meanwhile. If two open it, one of them counts.
        let file = self.disk.open(path, Open::Read)?;
        let mut state = self.state();
        if state.open.insert(table, (Arc::clone(&file), false)).is_none() {
            state.ring.push_back(table);
        }
        while state.open.len() > self.open_max {
            state.close_one();
        }
        Ok(file)
    }

    /// Closes the file of a table that nobody reads any more.
    pub(super) fn forget(&self, table: u64) {
        let mut state = self.state();
        if state.open.remove(&table).is_some() {
            state.ring.retain(|other| *other != table);
        }
    }

    /// Closes all that nobody reads just now; how many those were. They are opened again when they are read.
    pub(super) fn close_all(&self) -> usize {
        let mut state = self.state();
        let closed = state.open.len();
        *state = State::default();
        closed
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.state().open.len()
    }
}

impl State {
    fn close_one(&mut self) {
        while let Some(table) = self.ring.pop_front() {
            match self.open.get_mut(&table) {
                Some((_, used)) if *used => {
                    *used = false;
                    self.ring.push_back(table);
                }
                Some(_) => {
                    self.open.remove(&table);
                    return;
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::testdisk::TestDisk;

    #[test]
    fn files_stay_within_their_bound_and_one_in_use_stays_open() {
        // A hundred files are read in turn and one of them all the time; its contents never move.
        let disk = TestDisk::default();
        let path = |i: u64| std::path::PathBuf::from(format!("/d/{i}"));
        for i in 0..100 {
            disk.open(&path(i), Open::CreateNew).unwrap().write_all_at(&[i as u8], 0).unwrap();
        }
        let files = Files::new(disk.shared(), 10);
        let first = files.get(0, &path(0)).unwrap();
        let mut reopened = 0;
        for i in (1..100).chain(1..100) {
            let mut byte = [0];
            files.get(i, &path(i)).unwrap().read_exact_at(&mut byte, 0).unwrap();
            assert_eq!(byte[0], i as u8);
            reopened += u64::from(!Arc::ptr_eq(&first, &files.get(0, &path(0)).unwrap()));
            assert!(files.open() <= 10);
        }
        assert_eq!(reopened, 0);
        files.forget(0);
        assert_eq!(files.open(), 9);
        assert_eq!((files.close_all(), files.open()), (9, 0));
        assert!(!Arc::ptr_eq(&first, &files.get(0, &path(0)).unwrap()));
    }
}

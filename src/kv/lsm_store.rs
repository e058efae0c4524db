//! The store for data larger than memory: the engine of [`crate::lsm`] behind this module's traits.
//!
//! It translates words: a key space is a byte in front of the key, an error keeps its path and
//! offset. It drives nothing: whoever opens the store gets the engine's worker and runs it, on a
//! thread or step by step.

use super::machine::{CONFIGURATION_KEY, INSTALLED_KEY, TERM_KEY};
use super::store::{Change, Reader, Row, Scan, Space, Store, StoreError, View};
use super::types::{Found, Revision};
use crate::env::Disk;
use crate::lsm::{self, LsmError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The term of the last entry of a backup in the cluster that begins from it.
const RESTORED_TERM: u64 = 1;

/// A durable ordered map of any size.
#[derive(Debug)]
pub struct LsmStore {
    engine: lsm::Engine,
}

/// Reads an [`LsmStore`].
#[derive(Clone, Debug)]
pub struct LsmReader {
    reader: lsm::Reader,
}

/// One cut of an [`LsmStore`]. Nobody waits for it.
#[derive(Clone, Debug)]
pub struct LsmView {
    view: lsm::View,
}

/// The byte of a space: they sort like [`Space`], and batches come sorted.
fn byte(space: Space) -> u8 {
    match space {
        Space::Meta => 0,
        Space::User => 1,
    }
}

impl From<LsmError> for StoreError {
    fn from(error: LsmError) -> StoreError {
        match error {
            LsmError::Io { path, offset, source } => StoreError::Io { path, offset, source },
            LsmError::Damaged { path, offset, what } => StoreError::Damaged { path, offset, what },
            // Both leave a machine whose sessions may be ahead of the store.
            LsmError::Rejected { .. } | LsmError::Failed => StoreError::Failed,
        }
    }
}

impl LsmStore {
    /// Opens the store in `dir` (which exists), or begins one. What it holds is what was flushed:
    /// the log is to be replayed from behind [`View::applied`].
    ///
    /// # Errors
    /// As [`lsm::Engine::open`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: lsm::Options,
    ) -> Result<(LsmStore, lsm::Worker), StoreError> {
        let (engine, worker) = lsm::Engine::open(disk, dir, options)?;
        Ok((LsmStore { engine }, worker))
    }

    /// Index of the last batch; after opening, of the last one that was flushed.
    pub fn applied(&self) -> Revision {
        self.engine.applied()
    }

    /// Takes a backup in place of everything, durably and all at once, with this configuration in
    /// its byte form in place of its own, and with the mark that says that a snapshot was installed. Terms begin anew:
    /// its last entry counts as of term 1, for nobody of the new cluster has voted in any.
    /// `incoming` is a directory for the time that takes; what is in it is removed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a table of the backup is; the disk's. After an error, as after a
    /// crash, it is the old contents or the new ones.
    pub fn restore(
        &mut self,
        disk: Arc<dyn Disk>,
        incoming: &Path,
        backup: &lsm::Backup,
        configuration: &[u8],
    ) -> Result<(), StoreError> {
        let mut import = self.engine.import(disk, incoming, backup.manifest())?;
        while let Some(piece) = import.missing() {
            import.put(piece, &backup.read(piece)?)?;
        }
        let (space, index) = (byte(Space::Meta), import.applied());
        let term = RESTORED_TERM.to_le_bytes();
        let extra = [
            (space, CONFIGURATION_KEY, index, configuration),
            (space, INSTALLED_KEY, index, &b""[..]),
            (space, TERM_KEY, index, &term[..]),
        ];
        let staged = loop {
            match import.seal(&extra)? {
                lsm::Sealed::Working => {}
                lsm::Sealed::Damaged => {
                    return Err(backup.damaged(0, "a table in the backup is damaged").into());
                }
                lsm::Sealed::Done(staged) => break staged,
            }
        };
        self.engine.install(staged)?;
        Ok(import.discard()?)
    }
}

impl Store for LsmStore {
    type Reader = LsmReader;

    fn reader(&self) -> LsmReader {
        LsmReader { reader: self.engine.reader() }
    }

    fn write(&mut self, applied: Revision, changes: Vec<Change<'_>>) -> Result<(), StoreError> {
        let changes = changes.iter().map(|Change { space, key, value }| lsm::Change {
            space: byte(*space),
            key,
            value: value.as_ref().map(|(revision, value)| (*revision, value.as_ref())),
        });
        Ok(self.engine.write(applied, changes)?)
    }

    type Snapshot = lsm::Staged;

    fn flushed(&self) -> Revision {
        self.engine.flushed()
    }

    fn flush(&mut self) {
        self.engine.flush();
    }

    fn install(&mut self, snapshot: lsm::Staged) -> Result<(), StoreError> {
        Ok(self.engine.install(snapshot)?)
    }

    fn take_rest_us(&mut self) -> u64 {
        self.engine.take_delay_us()
    }
}

impl LsmReader {
    /// What is durable now, for another node.
    pub fn export(&self) -> lsm::Export {
        self.reader.export()
    }

    /// As [`lsm::Reader::exportable`].
    pub fn exportable(&self) -> Revision {
        self.reader.exportable()
    }

    /// As [`lsm::Reader::give_up_table`].
    ///
    /// # Errors
    /// As there.
    pub fn give_up_table(&self, disk: &dyn Disk) -> Result<Option<(PathBuf, u64)>, StoreError> {
        Ok(self.reader.give_up_table(disk)?)
    }

    /// Begins or resumes to take in what another node's [`LsmReader::export`] says it is made of.
    ///
    /// # Errors
    /// As [`lsm::Reader::import`].
    pub fn import(
        &self,
        disk: Arc<dyn Disk>,
        dir: &Path,
        manifest: &[u8],
    ) -> Result<lsm::Import, StoreError> {
        Ok(self.reader.import(disk, dir, manifest)?)
    }

    /// Does a piece of [`lsm::Import::seal`], with the mark that says that a snapshot was installed.
    ///
    /// # Errors
    /// As there.
    pub fn seal(import: &mut lsm::Import) -> Result<lsm::Sealed, StoreError> {
        let index = import.applied();
        Ok(import.seal(&[(byte(Space::Meta), INSTALLED_KEY, index, b"")])?)
    }

    /// Damage that was met in the store; it is not served. See [`lsm::Reader::damage`].
    pub fn damage(&self) -> Option<StoreError> {
        self.reader.damage().map(StoreError::from)
    }

    /// As [`lsm::Reader::is_disk_full`].
    pub fn is_disk_full(&self) -> bool {
        self.reader.is_disk_full()
    }

    /// As [`lsm::Reader::close_files`].
    pub fn close_files(&self) -> usize {
        self.reader.close_files()
    }

    /// As [`lsm::Reader::lacks_space`].
    pub fn lacks_space(&self, lacks: bool) {
        self.reader.lacks_space(lacks);
    }

    /// As [`lsm::Reader::compact`].
    pub fn compact(&self) {
        self.reader.compact();
    }

    /// As [`lsm::Reader::compaction_left`].
    pub fn compaction_left(&self) -> Option<u64> {
        self.reader.compaction_left()
    }

    /// What the engine did and holds.
    pub fn stats(&self) -> lsm::Stats {
        self.reader.stats()
    }
}

impl LsmView {
    /// What the tables of a store show that is only looked at.
    ///
    /// # Errors
    /// As [`lsm::inspect::Inspection::view`].
    pub fn of(
        inspection: &lsm::inspect::Inspection,
        disk: &Arc<dyn Disk>,
    ) -> Result<LsmView, StoreError> {
        Ok(LsmView { view: inspection.view(disk)? })
    }
}

/// Space and key of a key as tables and manifest hold it; no space for one that none of ours wrote.
pub fn split_stored_key(stored: &[u8]) -> (Option<Space>, &[u8]) {
    match stored.split_first() {
        Some((0, key)) => (Some(Space::Meta), key),
        Some((1, key)) => (Some(Space::User), key),
        _ => (None, stored),
    }
}

impl Reader for LsmReader {
    type View<'a> = LsmView;

    fn view(&self) -> LsmView {
        LsmView { view: self.reader.view() }
    }
}

impl View for LsmView {
    fn applied(&self) -> Revision {
        self.view.applied()
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Found>, StoreError> {
        let found = self.view.get(byte(space), key)?;
        Ok(found.map(|f| Found { value: f.value().to_vec(), revision: f.revision() }))
    }

    fn value_len(&self, space: Space, key: &[u8]) -> Result<Option<usize>, StoreError> {
        Ok(self.view.get(byte(space), key)?.map(|found| found.value().len()))
    }

    fn revision(&self, space: Space, key: &[u8]) -> Result<Option<Revision>, StoreError> {
        Ok(self.view.get(byte(space), key)?.map(|found| found.revision()))
    }

    fn scan(
        &self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.scan_within(scan, u64::MAX, visit).map(|_| ())
    }

    fn scan_within(
        &self,
        scan: &Scan<'_>,
        work_max: u64,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Scan { space, lower, upper, reverse } = *scan;
        let scan = lsm::Scan { space: byte(space), lower, upper, reverse };
        Ok(self.view.scan_within(&scan, work_max, &mut |lsm::Row { key, value, revision }| {
            visit(Row { key, value, revision })
        })?)
    }
}

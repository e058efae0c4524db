//! Segment files made before they are needed.
//!
//! A file written full of zeros and synced has all its blocks: overwriting them changes no
//! metadata, which makes `fdatasync` about twice as cheap. The work comes in small steps, so that
//! a background thread yields between them and a simulator can do other things meanwhile.
//! File names say nothing about the order of segments (the header does), so that a spare becomes a
//! segment without a rename and without a directory sync.

use super::error::WalError;
use crate::env::{Disk, DiskFile, Open};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of zeros written in one step: a millisecond or so of a disk's time.
const STEP_BYTES: u64 = 256 * 1024;

const PREFIX: &str = "log-";

/// The file of that slot.
pub(super) fn file_name(slot: u64) -> String {
    format!("{PREFIX}{slot:08}")
}

/// The slot of a file's name, when it is a log file.
pub(super) fn slot_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let plain = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// A file of full length that is part of no log.
#[derive(Clone, Debug)]
pub struct Spare {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
}

/// The making of one spare.
#[derive(Debug)]
pub struct Preparer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    bytes: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Create,
    Fill(Arc<dyn DiskFile>, u64),
    SyncDir(Arc<dyn DiskFile>),
}

impl Preparer {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, slot: u64, bytes: u64) -> Preparer {
        let path = dir.join(file_name(slot));
        Preparer { disk, dir: dir.to_path_buf(), path, bytes, stage: Stage::Create }
    }

    /// Does one bounded step; the spare once it is finished and durable, to be handed to
    /// [`super::Wal::prepared`].
    ///
    /// # Errors
    /// Whatever the disk says. The half-made file is removed: it may hold the last free bytes. One
    /// that cannot be removed goes when the log is next opened. A further step begins anew.
    pub fn step(&mut self) -> Result<Option<Spare>, WalError> {
        let result = self.advance();
        if result.is_err() && !matches!(self.stage, Stage::Create) {
            // Its blocks are free only when it is closed, too.
            self.stage = Stage::Create;
            let _ = self.disk.remove(&self.path);
        }
        result
    }

    fn advance(&mut self) -> Result<Option<Spare>, WalError> {
        match &mut self.stage {
            Stage::Create => {
                let file = self
                    .disk
                    .open(&self.path, Open::CreateNew)
                    .map_err(|e| WalError::io("create", &self.path, e))?;
                self.stage = Stage::Fill(file, 0);
                Ok(None)
            }
            Stage::Fill(file, written) => {
                let n = STEP_BYTES.min(self.bytes - *written);
                if n > 0 {
                    file.write_all_at(&vec![0; n as usize], *written)
                        .map_err(|e| WalError::io("write", &self.path, e))?;
                    *written += n;
                } else {
                    file.sync_all().map_err(|e| WalError::io("sync", &self.path, e))?;
                    self.stage = Stage::SyncDir(Arc::clone(file));
                }
                Ok(None)
            }
            Stage::SyncDir(file) => {
                self.disk.sync_dir(&self.dir).map_err(|e| WalError::io("sync", &self.dir, e))?;
                Ok(Some(Spare { path: self.path.clone(), file: Arc::clone(file) }))
            }
        }
    }

    /// All steps at once.
    pub(super) fn finish(mut self) -> Result<Spare, WalError> {
        loop {
            if let Some(spare) = self.step()? {
                return Ok(spare);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SPARES_WANTED;
    use super::super::testdisk::{Fault, TestDisk};
    use super::super::tests::{command, open, persist, voted};

    /// Whoever asks before each write whether a segment is needed, and makes it, never has the log
    /// fail for want of space: on a full disk it learns that before anything is written, and when
    /// there is space again the same write is done.
    #[test]
    fn a_segment_that_is_needed_can_be_made_before_the_log_needs_it() {
        for len in [1, 300, 2500, 7000] {
            let disk = TestDisk::default();
            let mut wal = open(&disk).unwrap().0;
            let mut put_off = 0;
            for index in 1..60 {
                // Now and then an entry is replaced, which may take a segment of its own.
                let term = index / 10 + 1;
                let at = if index % 10 == 0 { wal.last_index() } else { wal.last_index() + 1 };
                let requests = [persist(voted(term, 1), vec![command(at.max(1), term, len)])];
                disk.fail(Some(Fault::Full));
                while wal.needs_segment(&requests) {
                    assert!(wal.make_spare().unwrap_err().is_out_of_space());
                    // With as many as are usually kept, what is lacking is lacking for this write only.
                    assert_eq!(wal.lacks_space(), wal.spares.len() < SPARES_WANTED);
                    disk.fail(None);
                    wal.make_spare().unwrap();
                    disk.fail(Some(Fault::Full));
                    put_off += 1;
                }
                wal.write(&requests).unwrap();
                assert!(!wal.lacks_space());
            }
            assert!(put_off >= 1, "{len}");
            disk.fail(None);
            let last = wal.last_index();
            assert_eq!(open(&disk).unwrap().0.last_index(), last);
        }
    }
}

//! Room that is kept for bad times: a file that is really written and means nothing.
//!
//! On a full disk deletes need space before they give any back: a flush and a compaction write
//! before they remove. The standard library has no way to ask how much space is left, so the room
//! is held by a file. Whoever runs out of space gives the file up, which frees all of it at once,
//! and it is filled again, a step at a time, when the work goes on. What could be filled is kept
//! while the rest is missing: an attempt that fails costs one write, not all of them.
//!
//! The contents look random, so that no file system keeps them in less than their length. Their
//! value is nothing: they are never read, and one that a crash cut is simply made longer.

use super::LsmError;
use crate::env::{Disk, DiskFile, Open, is_held};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the file, within the store's directory.
pub(super) const RESERVE_FILE: &str = "reserve";
/// Synced each time this much was written: one sync of everything would hold up the log's.
const SYNC_BYTES: u64 = 4 << 20;

/// The file while it is open, to be made longer.
#[derive(Debug)]
struct Filling {
    file: Arc<dyn DiskFile>,
    len: u64,
    unsynced: u64,
}

/// The file. Invariant: `whole` says that all of it is there.
#[derive(Debug)]
pub(super) struct Reserve {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    bytes: u64,
    filling: Option<Filling>,
    whole: bool,
}

impl Reserve {
    /// A reserve of so many bytes; with none it is whole at once. What is on disk is looked at with
    /// the first step.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, bytes: u64) -> Reserve {
        let path = dir.join(RESERVE_FILE);
        let dir = dir.to_path_buf();
        Reserve { disk, dir, path, bytes, filling: None, whole: false }
    }

    /// Writes up to so many bytes of it; true when it is whole.
    ///
    /// # Errors
    /// The disk's. What was filled stays, unless a sync failed: then nobody knows what is there.
    pub(super) fn fill(&mut self, step_bytes: u64) -> Result<bool, LsmError> {
        if self.whole {
            return Ok(true);
        }
        let filling = match self.filling.take() {
            Some(filling) => Some(filling),
            None => self.begin()?,
        };
        let Some(Filling { file, len, unsynced }) = filling else {
            self.whole = true;
            return Ok(true);
        };
        let n = step_bytes.min(self.bytes - len);
        if n > 0 {
            if let Err(e) = file.write_all_at(&noise(len, n as usize), len) {
                self.filling = Some(Filling { file, len, unsynced });
                return Err(LsmError::io(&self.path, len, e));
            }
            if unsynced + n < SYNC_BYTES {
                self.filling = Some(Filling { file, len: len + n, unsynced: unsynced + n });
                return Ok(false);
            }
        }
        if let Err(e) = file.sync_all() {
            drop(file);
            self.give_up()?;
            return Err(LsmError::io(&self.path, len, e));
        }
        if n > 0 {
            self.filling = Some(Filling { file, len: len + n, unsynced: 0 });
            return Ok(false);
        }
        self.disk.sync_dir(&self.dir).map_err(|e| LsmError::io(&self.dir, 0, e))?;
        self.whole = true;
        Ok(true)
    }

    /// What an earlier process left, to go on with; none when that is all of it.
    fn begin(&self) -> Result<Option<Filling>, LsmError> {
        let io = |e| LsmError::io(&self.path, 0, e);
        let found = match self.disk.open(&self.path, Open::Write) {
            Ok(file) => Some((Arc::clone(&file), file.len().map_err(io)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(io(e)),
        };
        match found {
            Some((_, len)) if len == self.bytes => return Ok(None),
            Some((file, len)) if len < self.bytes => {
                return Ok(Some(Filling { file, len, unsynced: 0 }));
            }
            Some((file, _)) => {
                drop(file);
                match self.disk.remove(&self.path) {
                    // It is longer than it has to be, and may stay so.
                    Err(e) if is_held(&e) => return Ok(None),
                    removed => removed.map_err(io)?,
                }
            }
            None => {}
        }
        if self.bytes == 0 {
            return Ok(None);
        }
        let file = self.disk.open(&self.path, Open::CreateNew).map_err(io)?;
        Ok(Some(Filling { file, len: 0, unsynced: 0 }))
    }

    /// Removes it; true when that gave something back. Held by somebody else it stays, and counts for what it is.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn give_up(&mut self) -> Result<bool, LsmError> {
        // Its blocks are free only when it is closed, too.
        self.filling = None;
        self.whole = false;
        match self.disk.remove(&self.path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound || is_held(&e) => Ok(false),
            Err(e) => Err(LsmError::io(&self.path, 0, e)),
        }
    }
}

/// Bytes that do not compress (xorshift64), other ones at every place.
fn noise(at: u64, len: usize) -> Vec<u8> {
    let mut state = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

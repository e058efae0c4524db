//! Segment files made before they are needed, and how long a segment must be.
//!
//! A file written full of zeros and synced has all its blocks: overwriting them changes no
//! metadata, which makes `fdatasync` about twice as cheap. The work comes in small steps, so that
//! a background thread yields between them and a simulator can do other things meanwhile.
//! File names say nothing about the order of segments (the header does), so that a spare becomes a
//! segment without a rename and without a directory sync.
//!
//! Spares have the usual length. A batch that the usual segment has no room for gets a segment that
//! is as long as it must be; such a file is removed when compaction frees it.

use super::Wal;
use super::error::WalError;
use super::format::{self, BATCH_HEADER_BYTES};
use super::shape::Segment;
use crate::env::{Disk, DiskFile, Open};
use crate::raft::codec::entry_len;
use crate::raft::{Configuration, Payload, Persist};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of zeros written in one step: a millisecond or so of a disk's time.
const STEP_BYTES: u64 = 256 * 1024;

const PREFIX: &str = "log-";

/// Spares that [`Wal::prepare`] keeps ready: one being taken while the next is made.
const SPARES_WANTED: usize = 2;

/// Files that compaction keeps for reuse; what is more is removed. At the default size 64 MiB.
pub(super) const SPARES_MAX: usize = 4;

const _: () = assert!(SPARES_WANTED <= SPARES_MAX);

/// Segments beyond its limit that a log may have while its front waits for a flush: docs/architecture.md, "A log
/// with a limit".
const SEGMENTS_OVER_LIMIT: u64 = 3;

/// Files that a log keeps open, at most and as a rule: its segments, the spares, and one that is being made.
pub fn files_max(limit_bytes: u64, segment_bytes: u64) -> u64 {
    limit_bytes.div_ceil(segment_bytes) + SEGMENTS_OVER_LIMIT + SPARES_MAX as u64 + 1
}

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
    pub(super) bytes: u64,
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
                let (path, file) = (self.path.clone(), Arc::clone(file));
                Ok(Some(Spare { path, file, bytes: self.bytes }))
            }
        }
    }

    /// All steps at once.
    pub fn finish(mut self) -> Result<Spare, WalError> {
        loop {
            if let Some(spare) = self.step()? {
                return Ok(spare);
            }
        }
    }
}

impl Wal {
    /// A job that makes a spare segment, when one is wanted; its outcome goes to
    /// [`Wal::prepared`]. After a failure none is wanted until a segment was begun or given up.
    pub fn prepare(&mut self) -> Option<Preparer> {
        let usual = self.usual_bytes();
        if self.no_spares || self.spares_of(usual) + self.preparing >= SPARES_WANTED {
            return None;
        }
        self.preparing += 1;
        Some(self.preparer(usual))
    }

    /// Takes what came of a [`Preparer`]. A failure is not the log's: it makes its own segment
    /// when it has to, and fails then if the disk still does. It is given back, to be reported.
    pub fn prepared(&mut self, outcome: Result<Spare, WalError>) -> Option<WalError> {
        self.preparing = self.preparing.saturating_sub(1);
        match outcome {
            Ok(spare) => {
                self.no_space = false;
                self.spares.push(spare);
                None
            }
            Err(e) => {
                self.no_space = e.is_out_of_space();
                self.no_spares = true;
                Some(e)
            }
        }
    }

    /// Whether a spare is wanted and could not be made for want of space: the log is about to meet
    /// the end of the disk.
    pub fn lacks_space(&self) -> bool {
        self.no_space && self.spares_of(self.usual_bytes()) < SPARES_WANTED
    }

    /// Length of a segment that writing these may need beside the spares there are. It may ask for
    /// one too many, never for one too few.
    pub fn needs_segment(&self, requests: &[Persist]) -> Option<u64> {
        let (mut rolls, mut last, mut bytes, mut largest) = (0, self.shape.last, 0, 0);
        // Records that need a segment to themselves, and the largest of them.
        let (mut alone, mut longest, mut total) = (0, 0, 0);
        let mut header_bytes = self.header_bytes;
        let mut meets = |index, configuration: &Arc<Configuration>| {
            let len = self.header_len(Some(&(index, Arc::clone(configuration))));
            header_bytes = header_bytes.max(format::aligned(len));
        };
        for Persist { reset, entries, .. } in requests {
            if let Some(mark) = reset {
                rolls += 1;
                meets(mark.index, &mark.configuration);
            }
            if let (Some(first), Some(end)) = (entries.first(), entries.last()) {
                rolls += usize::from(first.index <= last);
                last = end.index;
            }
            for entry in entries {
                if let Payload::Configuration(configuration) = &entry.payload {
                    meets(entry.index, configuration);
                }
                let record = (format::ENTRY_RECORD_BYTES + entry_len(entry)) as u64;
                if BATCH_HEADER_BYTES as u64 + record > self.batch_limit {
                    alone += 1;
                    longest = record.max(longest);
                    total += record + format::ALIGN_BYTES;
                } else {
                    bytes += record;
                    largest = record.max(largest);
                }
            }
            // It may be torn into batches of its own: hard state, mark of a snapshot, entries.
            bytes += 4 * format::ALIGN_BYTES;
        }
        if self.current.offset + total + bytes > self.current.end {
            // Each batch may need one. It is full but for a record, and any two are more than full;
            // but one in front of a record that stands alone may be short.
            let batch = (self.batch_limit / 2).max(self.batch_limit.saturating_sub(largest));
            rolls += usize::try_from(bytes.div_ceil(batch)).unwrap_or(usize::MAX) + alone;
        } else if rolls == 0 {
            return None;
        }
        let long = self.segment_len(header_bytes, BATCH_HEADER_BYTES as u64 + longest);
        let usual = self.segment_len(header_bytes, self.batch_limit);
        if self.spares_of(long) < alone {
            return Some(long);
        }
        (self.spares_of(usual) < rolls + alone).then_some(usual)
    }

    /// The same for the record that [`Wal::compact`] writes.
    pub fn needs_segment_to_cut(&self) -> Option<u64> {
        if self.current.offset + 2 * format::ALIGN_BYTES <= self.current.end {
            return None;
        }
        let usual = self.segment_len(self.header_bytes, self.batch_limit);
        (self.spares_of(usual) == 0).then_some(usual)
    }

    /// Makes a spare of that length now. A failure is not the log's.
    ///
    /// # Errors
    /// The disk's.
    pub fn make_spare(&mut self, bytes: u64) -> Result<(), WalError> {
        let made = self.preparer(bytes).finish();
        self.no_space = made.as_ref().is_err_and(WalError::is_out_of_space);
        self.spares.push(made?);
        Ok(())
    }

    /// There may be space again: [`Wal::prepare`] is to try.
    pub fn hope(&mut self) {
        self.no_spares = false;
    }

    /// Length of a segment that has room for a batch: at least the usual one.
    pub(super) fn segment_len(&self, header_bytes: u64, batch_bytes: u64) -> u64 {
        let used = format::aligned(header_bytes) + format::aligned(batch_bytes);
        let bytes = (used + format::ALIGN_BYTES).next_multiple_of(format::PAGE_BYTES);
        bytes.max(self.options.segment_bytes)
    }

    /// Length of the segments that are made in advance.
    fn usual_bytes(&self) -> u64 {
        self.segment_len(self.header_bytes, self.batch_limit)
    }

    /// How many spares are that long.
    fn spares_of(&self, bytes: u64) -> usize {
        self.spares.iter().filter(|spare| spare.bytes >= bytes).count()
    }

    /// The shortest spare that is long enough, or one that is made now.
    pub(super) fn take_spare(&mut self, bytes: u64) -> Result<Spare, WalError> {
        let fit = self.spares.iter().enumerate().filter(|(_, spare)| spare.bytes >= bytes);
        match fit.min_by_key(|(_, spare)| spare.bytes).map(|(at, _)| at) {
            Some(at) => Ok(self.spares.remove(at)),
            None => self.preparer(bytes).finish(),
        }
    }

    fn preparer(&mut self, bytes: u64) -> Preparer {
        let slot = self.next_slot;
        self.next_slot += 1;
        Preparer::new(Arc::clone(&self.disk), &self.dir, slot, bytes)
    }

    /// Keeps freed files of the usual length as spares and removes the others. A file that cannot
    /// be removed is harmless: the next opening finds that it is not needed, and tries again.
    pub(super) fn recycle(&mut self, freed: Vec<Segment>) -> Result<(), WalError> {
        self.no_spares &= freed.is_empty();
        let mut removed = false;
        for Segment { path, file, .. } in freed {
            let len = file.len().map_err(|e| WalError::io("measure", &path, e))?;
            if self.spares.len() < SPARES_MAX && len == self.usual_bytes() {
                self.spares.push(Spare { path, file, bytes: len });
            } else {
                drop(file);
                removed |= self.disk.remove(&path).is_ok();
            }
        }
        if removed {
            self.disk.sync_dir(&self.dir).map_err(|e| WalError::io("sync", &self.dir, e))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testdisk::{Fault, TestDisk};
    use super::super::tests::{command, open, persist, voted};
    use super::SPARES_WANTED;

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
                while let Some(bytes) = wal.needs_segment(&requests) {
                    assert!(wal.make_spare(bytes).unwrap_err().is_out_of_space());
                    // With as many as are usually kept, what is lacking is lacking for this write only.
                    assert_eq!(wal.lacks_space(), wal.spares.len() < SPARES_WANTED);
                    disk.fail(None);
                    wal.make_spare(bytes).unwrap();
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

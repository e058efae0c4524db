//! The log writer: what the raft loop wants durable becomes batches, each with one write and one sync, and
//! the log's front goes when it is not needed any more.
//!
//! While one batch is written the next one accumulates. Spare segments are made by the owner, in the
//! background; this says when. When the disk is full the writer waits for space, so that the store
//! can give up its reserve, but only so long: then it writes all the same, and fails if the disk still does.
//!
//! Nothing is told to be durable before [`Wal::write`] has returned. After an error nothing is known, and the
//! node stops.

use crate::raft::{Index, Persist};
use crate::wal::{Preparer, Spare, Wal, WalError};
use std::collections::VecDeque;
use std::fmt;

/// Requests written as one batch at most: bounds the memory of one write.
pub const BATCH_REQUESTS_MAX: usize = 256;

/// Without space a spare segment is ordered again after so long.
const SPARE_PAUSE_US: u64 = 1_000_000;

/// A batch waits for space for so many attempts, with this pause between two, before it is written all the same.
const SPACE_TRIES_MAX: u32 = 200;
const SPACE_STEP_US: u64 = 10_000;

/// What a log writer is told.
#[derive(Debug)]
pub enum LogEvent {
    /// Make this durable, after everything before it.
    Persist(Persist),
    /// The log up to there is not needed any more: the state there is durable in the store.
    Compact(Index),
    /// What came of an ordered spare segment.
    Spare(Result<Spare, WalError>),
}

/// What came of one step.
#[derive(Debug)]
pub struct LogEffects {
    /// A batch that is durable now.
    pub written: Option<Written>,
    /// The log was cut.
    pub cut: Option<Cut>,
    /// Bytes in use in the log.
    pub log_bytes: u64,
    /// A spare segment is to be made; its outcome comes back as [`LogEvent::Spare`].
    pub order: Option<Preparer>,
    /// No spare segment could be made, which harms nothing yet: for a person to hear of.
    pub spare_failed: Option<WalError>,
    /// The log is about to meet the end of the disk, or waits for space: the store's reserve is for it.
    pub lacks_space: bool,
}

/// A durable batch.
#[derive(Debug)]
pub struct Written {
    /// Number of its last request: everything up to it is durable.
    pub seq: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// The requests.
    pub batch: Vec<Persist>,
}

/// The front of the log is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Up to where it was not needed.
    pub through: Index,
    /// Segments that went: only whole ones do.
    pub segments: usize,
}

/// The log cannot be written or cut. The node stops.
#[derive(Debug)]
pub struct LogError {
    doing: &'static str,
    source: WalError,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log cannot be {}, nothing more is promised: {}", self.doing, self.source)
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Owns the log.
///
/// Invariant: what is in `requests` was not written, and is in the order in which it came.
#[derive(Debug)]
pub struct LogWriter {
    wal: Wal,
    batch_requests_max: usize,
    requests: VecDeque<Persist>,
    through: Option<Index>,
    spare_failed: Option<WalError>,
    /// Attempts to find space for the next batch.
    space_tries: u32,
    /// When the next one is due.
    next_try_us: u64,
    /// The cut that waits for space is tried at this time.
    next_cut_us: u64,
    /// When a spare is ordered again, while there is no space for one.
    next_order_us: Option<u64>,
}

impl LogWriter {
    /// A writer of this log, of so many requests at once: [`BATCH_REQUESTS_MAX`] in production.
    pub fn new(wal: Wal, batch_requests_max: usize) -> LogWriter {
        assert!(batch_requests_max > 0, "a batch holds something");
        LogWriter {
            wal,
            batch_requests_max,
            requests: VecDeque::new(),
            through: None,
            spare_failed: None,
            space_tries: 0,
            next_try_us: 0,
            next_cut_us: 0,
            // The first one is due at once.
            next_order_us: Some(0),
        }
    }

    /// Takes note of an event; [`LogWriter::step`] acts on it.
    pub fn handle(&mut self, event: LogEvent) {
        match event {
            LogEvent::Persist(persist) => self.requests.push_back(persist),
            LogEvent::Compact(index) => self.through = self.through.max(Some(index)),
            LogEvent::Spare(made) => {
                let lacked_space = self.wal.lacks_space();
                let failed = self.wal.prepared(made);
                // Said once, not with every attempt.
                self.spare_failed = failed.filter(|e| !(lacked_space && e.is_out_of_space()));
            }
        }
    }

    /// Does what is due: one cut, and one batch. Effects may be acted on at once.
    ///
    /// # Errors
    /// The log's. It takes no further step.
    pub fn step(&mut self, now_us: u64) -> Result<LogEffects, LogError> {
        let cut = self.cut(now_us).map_err(|source| LogError { doing: "cut", source })?;
        let written = self.write(now_us).map_err(|source| LogError { doing: "written", source })?;
        let order = self.order(now_us);
        Ok(LogEffects {
            written,
            cut,
            log_bytes: self.wal.bytes(),
            order,
            spare_failed: self.spare_failed.take(),
            lacks_space: self.lacks_space(),
        })
    }

    /// When [`LogWriter::step`] is due although nothing happens; it is due after events, too. The past when it
    /// is due now.
    pub fn next_step_us(&self) -> u64 {
        let batch = if self.requests.is_empty() { u64::MAX } else { self.next_try_us };
        let cut = self.through.map_or(u64::MAX, |_| self.next_cut_us);
        self.next_order_us.unwrap_or(u64::MAX).min(batch).min(cut)
    }

    /// The requests that the next step writes, if there is space. After an error nothing is known of them.
    pub fn batch(&self) -> impl Iterator<Item = &Persist> {
        self.requests.iter().take(self.batch_requests_max)
    }

    fn lacks_space(&self) -> bool {
        self.wal.lacks_space() || self.space_tries > 0
    }

    /// A cut needs a record in the log. On a full disk it waits for the room, for as long as that takes: the log
    /// only stays longer (seed 400000369).
    fn cut(&mut self, now_us: u64) -> Result<Option<Cut>, WalError> {
        let Some(through) = self.through else { return Ok(None) };
        if let Some(bytes) = self.wal.needs_segment_to_cut() {
            if now_us < self.next_cut_us {
                return Ok(None);
            }
            match self.wal.make_spare(bytes) {
                Err(e) if e.is_out_of_space() => {
                    self.next_cut_us = now_us + SPARE_PAUSE_US;
                    return Ok(None);
                }
                made => made?,
            }
        }
        (self.through, self.next_cut_us) = (None, 0);
        let segments = self.wal.compact(through)?;
        Ok(Some(Cut { through, segments }))
    }

    fn write(&mut self, now_us: u64) -> Result<Option<Written>, WalError> {
        let count = self.batch().count();
        let batch = &self.requests.make_contiguous()[..count];
        if batch.is_empty() {
            return Ok(None);
        }
        while let Some(bytes) = self.wal.needs_segment(batch) {
            if now_us < self.next_try_us {
                return Ok(None);
            }
            match self.wal.make_spare(bytes) {
                Ok(()) => {}
                Err(e) if e.is_out_of_space() && self.space_tries < SPACE_TRIES_MAX => {
                    self.space_tries += 1;
                    self.next_try_us = now_us + SPACE_STEP_US;
                    return Ok(None);
                }
                // Tried long enough: what the batch finds counts.
                Err(e) if e.is_out_of_space() => break,
                Err(e) => return Err(e),
            }
        }
        let durable = self.wal.write(batch)?;
        (self.space_tries, self.next_try_us) = (0, 0);
        let batch = self.requests.drain(..count).collect();
        Ok(Some(Written { seq: durable.seq, bytes: durable.bytes, batch }))
    }

    /// Orders a spare segment when one is wanted; without space only now and then.
    fn order(&mut self, now_us: u64) -> Option<Preparer> {
        self.next_order_us = match self.next_order_us {
            _ if !self.wal.lacks_space() => None,
            Some(at_us) if now_us < at_us => Some(at_us),
            at_us => {
                if at_us.is_some() {
                    self.wal.hope();
                }
                Some(now_us + SPARE_PAUSE_US)
            }
        };
        self.wal.prepare()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::{Entry, HardState, Payload};
    use crate::wal::testdisk::{Fault, TestDisk};
    use crate::wal::{self, SEGMENT_BYTES_MIN};
    use std::path::Path;
    use std::sync::Arc;

    fn writer(disk: &TestDisk, batch_requests_max: usize) -> LogWriter {
        let options =
            wal::Options { segment_bytes: SEGMENT_BYTES_MIN, identity: 1, must_exist: false };
        let (wal, _) = Wal::open(disk.shared(), Path::new("/log"), options).unwrap();
        LogWriter::new(wal, batch_requests_max)
    }

    /// One request that brings one entry.
    fn persist(seq: u64) -> LogEvent {
        let payload = Payload::Command(Arc::from(vec![b'x'; 2_000]));
        let hard_state = Some(HardState { term: 1, vote: None });
        let entries = vec![Entry { index: seq, term: 1, payload }];
        LogEvent::Persist(Persist { seq, hard_state, reset: None, entries })
    }

    fn made(order: Preparer) -> LogEvent {
        LogEvent::Spare(order.finish())
    }

    /// More is asked for than a batch holds: the rest is told as durable when it is written, not before,
    /// and the next step is due at once.
    #[test]
    fn a_batch_is_bounded_and_vouches_for_itself_alone() {
        let mut writer = writer(&TestDisk::default(), 2);
        (1..=5).for_each(|seq| writer.handle(persist(seq)));
        let mut told = Vec::new();
        while writer.next_step_us() == 0 {
            let written = writer.step(0).unwrap().written.unwrap();
            assert_eq!(written.seq, writer.wal.last_index());
            told.push((written.seq, written.batch.len()));
        }
        assert_eq!(told, [(2, 2), (4, 2), (5, 1)]);
    }

    /// Fills the log up to where the next request needs a segment for which there is no space.
    fn full(disk: &TestDisk) -> (LogWriter, u64) {
        let mut writer = writer(disk, BATCH_REQUESTS_MAX);
        disk.fail(Some(Fault::Full));
        for seq in 1.. {
            writer.handle(persist(seq));
            let effects = writer.step(0).unwrap();
            // None can be made, either.
            let made = effects.order.map(made);
            made.into_iter().for_each(|made| writer.handle(made));
            if effects.written.is_none() {
                assert!(effects.lacks_space);
                return (writer, seq);
            }
        }
        unreachable!("the disk is full")
    }

    /// The disk is full. The batch waits and is tried at its pace, not more often, whatever else is told
    /// meanwhile; when there is space it is written.
    #[test]
    fn a_batch_waits_for_space() {
        let disk = TestDisk::default();
        let (mut writer, seq) = full(&disk);
        assert_eq!(writer.next_step_us(), SPACE_STEP_US);
        let before = disk.ops();
        writer.handle(persist(seq + 1));
        assert!(writer.step(SPACE_STEP_US - 1).unwrap().written.is_none());
        assert_eq!(disk.ops(), before, "it is not tried yet");
        assert!(writer.step(SPACE_STEP_US).unwrap().written.is_none());
        assert_eq!(writer.next_step_us(), 2 * SPACE_STEP_US);
        disk.fail(None);
        let effects = writer.step(2 * SPACE_STEP_US).unwrap();
        assert_eq!(effects.written.unwrap().seq, seq + 1);
    }

    /// The log is to be cut on a full disk, and has no room for the record that says so. The cut waits, longer than
    /// any batch would, and is made when there is space.
    #[test]
    fn a_cut_waits_for_space() {
        let disk = TestDisk::default();
        let mut writer = writer(&disk, BATCH_REQUESTS_MAX);
        let last = 2 * SEGMENT_BYTES_MIN / 2_000;
        for seq in 1..=last {
            writer.handle(persist(seq));
            assert!(writer.step(0).unwrap().written.is_some());
        }
        disk.fail(Some(Fault::Full));
        let mut seq = last;
        while writer.wal.needs_segment_to_cut().is_none() {
            seq += 1;
            let hard_state = Some(HardState { term: seq, vote: None });
            let entries = Vec::new();
            writer.wal.write(&[Persist { seq, hard_state, reset: None, entries }]).unwrap();
        }
        writer.handle(LogEvent::Compact(last));
        for _ in 0..2 * SPACE_TRIES_MAX {
            let effects = writer.step(writer.next_step_us()).unwrap();
            assert!(effects.cut.is_none() && effects.lacks_space);
        }
        disk.fail(None);
        let mut step = || writer.step(writer.next_step_us()).unwrap().cut;
        let cut = (0..3).find_map(|_| step()).unwrap();
        assert!(cut.through == last && cut.segments > 0);
    }

    /// It waits only so long. Then it writes, and the error of the disk ends the node; nothing is told
    /// as durable on the way.
    #[test]
    fn a_disk_that_stays_full_ends_the_node() {
        let (mut writer, _) = full(&TestDisk::default());
        let mut steps = 1;
        let e = loop {
            match writer.step(writer.next_step_us()) {
                Ok(effects) => assert!(effects.written.is_none() && effects.lacks_space),
                Err(e) => break e,
            }
            steps += 1;
        };
        assert_eq!(steps, SPACE_TRIES_MAX);
        assert!(e.source.is_out_of_space(), "{e}");
        assert_eq!(writer.batch().count(), 1, "nothing is known of it");
    }

    /// No spare could be made for want of space. It is said once, and one is ordered again every second
    /// until there is space.
    #[test]
    fn a_spare_is_ordered_again_when_there_may_be_space() {
        let disk = TestDisk::default();
        let mut writer = writer(&disk, BATCH_REQUESTS_MAX);
        disk.fail(Some(Fault::Full));
        let order = writer.step(0).unwrap().order.unwrap();
        writer.handle(made(order));
        let effects = writer.step(5).unwrap();
        assert!(effects.order.is_none() && effects.lacks_space && effects.spare_failed.is_some());
        assert_eq!(writer.next_step_us(), 5 + SPARE_PAUSE_US);
        let order = writer.step(5 + SPARE_PAUSE_US).unwrap().order.unwrap();
        writer.handle(made(order));
        let effects = writer.step(6 + SPARE_PAUSE_US).unwrap();
        assert!(effects.lacks_space && effects.spare_failed.is_none(), "said once");
        disk.fail(None);
        let mut now_us = 2 * SPARE_PAUSE_US;
        while writer.lacks_space() {
            now_us += SPARE_PAUSE_US;
            let order = writer.step(now_us).unwrap().order;
            order.into_iter().for_each(|order| writer.handle(made(order)));
        }
        assert!(!writer.step(now_us).unwrap().lacks_space);
    }
}

//! The write-ahead log: Raft's entries and hard state, durable. The only one in the system.
//!
//! A plain component: no thread, no channel, no clock. The server's log thread and the simulator's
//! actor drive the same [`Wal`]; files are reached through [`crate::env::Disk`] alone. The bytes
//! are specified in docs/formats.md, "Log".
//!
//! # How it works
//!
//! * **Group commit.** [`Wal::write`] encodes all queued requests as one *batch*: one positioned
//!   write, one `fdatasync`. Exactly one batch is in flight, so that the batch is the unit in
//!   which the tail can be torn, and a bad batch with a good one behind it is damage.
//! * **Segments** are files of one usual length, written with zeros before use and recycled when
//!   compaction frees them. A batch that no such segment has room for gets a longer one: what a
//!   log can hold does not follow from how it was opened. The log identity, the segment number and the offset seed every
//!   checksum: bytes of a file's former life, or written to the wrong place, never pass.
//! * **No rename, no directory sync on the way.** Which file is which segment stands in its
//!   header. The number of the oldest live segment is logged before a file is given up, so that
//!   a file that is missing or unreadable at either end is noticed.
//! * **A header stands alone**: it repeats the hard state, the active configuration, and index and
//!   term in front of the segment, and is durable before the segment's first batch is written.
//!   An entry that replaces one of an older segment begins a new segment whose header says where
//!   the log was cut; so the header of the oldest segment is always true.
//! * **A segment says that it has a successor.** Once the successor's header is durable, an *end
//!   mark* in the last sector of the segment before it is made durable, too, and only then is
//!   anything written behind that header. So the newest segment cannot go missing unnoticed.
//! * **Failure is final.** After a failed write or sync every call fails: a sync that failed may
//!   have dropped the pages it could not write, so that a second one proves nothing.
//!
//! Left out on purpose: compression (values are compressed better in tables), a cache (the core
//! keeps recent entries), several batches in flight (the tail could not be told from damage).

mod error;
mod format;
mod identity;
pub mod inspect;
mod look;
mod reader;
mod recover;
mod recovered;
mod shape;
mod spare;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod length_tests;
#[cfg(test)]
pub(crate) mod testdisk;
#[cfg(test)]
mod tests;

pub use error::{ReadError, WAY_OUT, WalError};
pub use identity::{Identity, IdentityCopy, MembersSecret, holds_log};
pub use reader::LogReader;
pub use recovered::{Cut, Recovered};
pub use spare::{Preparer, Spare, files_max};

use crate::env::{Disk, DiskFile};
use crate::raft::codec::entry_len;
use crate::raft::{Configuration, Entry, HardState, Index, Payload, Persist, SnapshotMark, Term};
use format::{BATCH_HEADER_BYTES, Header, Place, Start};
use reader::lock;
use shape::{Places, Segment, Shape, hard_state_follows};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Directory of the log within a data directory.
pub const LOG_DIR: &str = "log";

/// Default length of a segment: a roll every second or so at full speed.
pub const SEGMENT_BYTES_DEFAULT: u64 = 16 << 20;

/// Smallest length of a segment: a header and a batch of some use.
pub const SEGMENT_BYTES_MIN: u64 = 8 << 10;

/// Largest length of a segment; keeps lengths and offsets far within 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Largest record: a segment holds it behind the largest header. Far above what any node proposes or
/// takes from a peer.
pub const RECORD_BYTES_MAX: u64 = SEGMENT_BYTES_MAX / 2;

/// Capacity of the encode buffer that is kept between batches.
const BUFFER_KEPT_BYTES: usize = 1 << 20;

const _: () = assert!(SEGMENT_BYTES_MAX < u32::MAX as u64);
const _: () = {
    let header_and_marks = format::HEADER_BYTES_MAX as u64 + 2 * format::PAGE_BYTES;
    assert!(RECORD_BYTES_MAX + header_and_marks <= SEGMENT_BYTES_MAX);
};
const _: () = assert!(SEGMENT_BYTES_MIN.is_multiple_of(format::PAGE_BYTES));
const _: () = assert!(SEGMENT_BYTES_DEFAULT.is_multiple_of(format::PAGE_BYTES));

/// How a log is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Usual length of new segments; a multiple of 4096 between [`SEGMENT_BYTES_MIN`] and
    /// [`SEGMENT_BYTES_MAX`]. It bounds no record, and may differ from one opening to the next.
    pub segment_bytes: u64,
    /// The log's random identity, for ever; seeds the checksums.
    pub identity: u64,
    /// The log was made before: an empty directory is damage, never a fresh start.
    pub must_exist: bool,
}

/// What one call made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// `seq` of the last request.
    pub seq: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// The segment that is written to.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    number: u64,
    /// Where batches end at the latest and the end mark goes.
    end: u64,
    /// Where the next batch goes.
    offset: u64,
    /// Index before the segment's first entry: nothing at or before it is replaced from here.
    prev: Index,
}

/// What the batch in the buffer says, to be taken in once it is durable.
#[derive(Debug, Default)]
struct Staged {
    hard_state: Option<HardState>,
    first_segment: Option<u64>,
    /// First and last entry; contiguous.
    entries: Option<(Index, Index)>,
    runs: Vec<(Index, Term)>,
    configurations: Vec<(Index, Arc<Configuration>)>,
}

/// The log, for its one writer.
///
/// Invariants: what `shape` and `places` tell is durable; `buffer` begins with the room of a batch
/// header; `staged` describes the rest of `buffer`; entries in one batch are contiguous and none
/// in the current segment is at or below `current.prev`.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    shape: Shape,
    places: Arc<Mutex<Places>>,
    current: Current,
    /// Sequence number of the next batch.
    next_seq: u64,
    /// Number of the oldest segment of the log.
    first_segment: u64,
    buffer: Vec<u8>,
    /// Bytes of the longest header that the next segment may have, padded.
    header_bytes: u64,
    /// Bytes up to which requests are gathered in one batch: what the usual segment has room for. A
    /// record that is larger is a batch of its own.
    batch_limit: u64,
    staged: Staged,
    spares: Vec<Spare>,
    preparing: usize,
    /// A spare could not be made, and nothing has changed since that lets hope for the next.
    no_spares: bool,
    /// The last one could not be made for want of space.
    no_space: bool,
    next_slot: u64,
    /// `seq` of the last request that is durable.
    last_request: u64,
    poisoned: bool,
}

impl Wal {
    /// Opens the log in `dir`, or begins one. Only a torn tail is cut; everything else that does
    /// not fit together is refused.
    ///
    /// # Errors
    /// [`WalError::Damaged`] for whatever no crash can have caused, [`WalError::Foreign`],
    /// [`WalError::Version`], [`WalError::Rejected`] for options out of bounds, and the disk's.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
    ) -> Result<(Wal, Recovered), WalError> {
        let size = options.segment_bytes;
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&size)
            || !size.is_multiple_of(format::PAGE_BYTES)
        {
            return Err(WalError::Rejected { what: "segment size" });
        }
        recover::open(disk, dir, options)
    }

    /// Makes the requests durable, in order, with one write and one sync (a few more only when
    /// they do not fit into one segment or replace each other's entries). When it returns all of
    /// it is durable; after an error nothing is known and every later call fails.
    ///
    /// # Errors
    /// The disk's, [`WalError::TooLarge`], [`WalError::Rejected`], [`WalError::Poisoned`].
    pub fn write(&mut self, requests: &[Persist]) -> Result<Durable, WalError> {
        self.guarded(|wal| {
            let mut bytes = 0;
            for request in requests {
                if let Some(hard_state) = request.hard_state {
                    bytes += wal.stage_hard_state(hard_state)?;
                }
                if let Some(SnapshotMark { index, term, configuration }) = &request.reset {
                    bytes += wal.flush()?;
                    wal.begin_anew(*index, *term, configuration)?;
                }
                for entry in &request.entries {
                    bytes += wal.stage_entry(entry)?;
                }
            }
            bytes += wal.flush()?;
            if let Some(last) = requests.last() {
                wal.last_request = last.seq;
            }
            Ok(Durable { seq: wal.last_request, bytes })
        })
    }

    /// Drops the segments all of whose entries are at or below `through`; their files are kept as
    /// spares or removed. Returns how many went. The caller has the state at `through` durably.
    ///
    /// # Errors
    /// As [`Wal::write`].
    pub fn compact(&mut self, through: Index) -> Result<usize, WalError> {
        self.guarded(|wal| {
            let first = {
                let places = lock(&wal.places);
                let kept = places.segments.iter().rev().find(|s| s.prev.0 <= through);
                kept.map(|s| (s.number, s.prev))
            };
            let Some((number, base)) = first.filter(|f| f.0 > wal.first_segment) else {
                return Ok(0);
            };
            // The files are given up only when it is durable that they are not needed.
            format::put_first_segment(&mut wal.buffer, number);
            wal.staged.first_segment = Some(number);
            wal.flush()?;
            wal.shape.rebase(base);
            let freed = lock(&wal.places).drop_before(number);
            let count = freed.len();
            wal.recycle(freed)?;
            Ok(count)
        })
    }

    /// Replaces the whole log by a snapshot that reaches to `index`: the next entry is the one
    /// behind it. The caller has installed that snapshot durably.
    ///
    /// # Errors
    /// As [`Wal::write`].
    pub fn reset(
        &mut self,
        index: Index,
        term: Term,
        configuration: &Arc<Configuration>,
    ) -> Result<(), WalError> {
        self.guarded(|wal| wal.begin_anew(index, term, configuration))
    }

    fn begin_anew(
        &mut self,
        index: Index,
        term: Term,
        configuration: &Arc<Configuration>,
    ) -> Result<(), WalError> {
        let configuration = Some((index, Arc::clone(configuration)));
        self.roll(Start::Reset, (index, term), configuration, format::ALIGN_BYTES)?;
        // A batch behind the header, before older segments go: from then on a header that
        // cannot be read is known to be damage.
        self.stage_hard_state(self.shape.hard_state)?;
        self.flush()?;
        let freed = lock(&self.places).drop_before(self.current.number);
        self.recycle(freed)
    }

    /// A handle that reads what is durable, from any thread.
    pub fn reader(&self) -> LogReader {
        LogReader { places: Arc::clone(&self.places) }
    }

    /// Index of the first entry; one more than the last when there is none.
    pub fn first_index(&self) -> Index {
        self.shape.base.0 + 1
    }

    /// Index of the last entry, or of the one before the first when there is none.
    pub fn last_index(&self) -> Index {
        self.shape.last
    }

    /// Term of a durable entry, or of the one before the first.
    pub fn term(&self, index: Index) -> Option<Term> {
        self.shape.term(index)
    }

    /// The durable hard state.
    pub fn hard_state(&self) -> HardState {
        self.shape.hard_state
    }

    /// Bytes of the live log on disk, without spares and unused ends of segments.
    pub fn bytes(&self) -> u64 {
        lock(&self.places).bytes()
    }

    /// Runs a change; whatever error it meets, the log takes no further call.
    fn guarded<T>(
        &mut self,
        change: impl FnOnce(&mut Wal) -> Result<T, WalError>,
    ) -> Result<T, WalError> {
        if self.poisoned {
            return Err(WalError::Poisoned);
        }
        let result = change(self);
        self.poisoned = result.is_err();
        result
    }

    fn stage_hard_state(&mut self, hard_state: HardState) -> Result<u64, WalError> {
        let before = self.staged.hard_state.unwrap_or(self.shape.hard_state);
        if !hard_state_follows(before, hard_state) {
            return Err(WalError::Rejected { what: "a term or vote that goes back" });
        }
        let bytes = self.make_room(32)?;
        format::put_hard_state(&mut self.buffer, hard_state);
        self.staged.hard_state = Some(hard_state);
        Ok(bytes)
    }

    fn stage_entry(&mut self, entry: &Entry) -> Result<u64, WalError> {
        let rejected = |what| Err(WalError::Rejected { what });
        let (index, record) = (entry.index, format::ENTRY_RECORD_BYTES + entry_len(entry));
        let last = self.staged.entries.map_or(self.shape.last, |(_, last)| last);
        let mut bytes = 0;
        if index == 0 || index > last + 1 {
            return rejected("a gap between entries");
        }
        if index <= last {
            if index <= self.shape.base.0 {
                return rejected("an entry in front of the log's first");
            }
            // Entries within one batch never replace each other, a hard state is durable before
            // entries go because of it, and a segment never replaces what stands before it: its
            // header would be wrong.
            bytes += self.flush()?;
            if index <= self.current.prev {
                self.roll_truncated(index - 1, (BATCH_HEADER_BYTES + record) as u64)?;
            }
        }
        bytes += self.make_room(record)?;
        let prev_term = match self.staged.runs.last() {
            Some(run) => run.1,
            None => self.shape.term(index - 1).unwrap_or(0),
        };
        if entry.term < prev_term {
            return rejected("a term that goes back");
        }
        format::put_entry(&mut self.buffer, entry);
        if self.staged.runs.last().is_none_or(|run| run.1 != entry.term) {
            self.staged.runs.push((index, entry.term));
        }
        if let Payload::Configuration(configuration) = &entry.payload {
            self.staged.configurations.push((index, Arc::clone(configuration)));
        }
        let first = self.staged.entries.map_or(index, |(first, _)| first);
        self.staged.entries = Some((first, index));
        Ok(bytes)
    }

    /// Flushes when a record of `need` bytes would make the batch too large.
    fn make_room(&mut self, need: usize) -> Result<u64, WalError> {
        if need as u64 > RECORD_BYTES_MAX {
            return Err(WalError::TooLarge { bytes: need, limit: RECORD_BYTES_MAX });
        }
        if (self.buffer.len() + need) as u64 > self.batch_limit { self.flush() } else { Ok(0) }
    }

    /// The header of the next segment may repeat any of the configurations. If hardly anything fits
    /// beside it, segments are longer.
    fn update_batch_limit(&mut self) {
        let longest = self.shape.configurations.iter().map(|c| self.header_len(Some(c))).max();
        self.header_bytes = format::aligned(longest.unwrap_or(format::ALIGN_BYTES));
        let usual = self.options.segment_bytes;
        let beside = format::data_end(usual).saturating_sub(self.header_bytes);
        self.batch_limit = beside.max(usual / 2);
    }

    fn header_len(&self, configuration: Option<&(Index, Arc<Configuration>)>) -> u64 {
        self.next_header(Start::Continue, (0, 0), configuration.cloned()).encode().len() as u64
    }

    /// Writes and syncs the batch in the buffer, then takes it in. Returns the bytes written.
    fn flush(&mut self) -> Result<u64, WalError> {
        let end = self.buffer.len() as u64;
        if end <= BATCH_HEADER_BYTES as u64 {
            return Ok(0);
        }
        if self.current.offset + end > self.current.end {
            match self.staged.entries {
                Some((first, _)) if first <= self.shape.last => {
                    self.roll_truncated(first - 1, end)?;
                }
                _ => {
                    let prev = (self.shape.last, self.shape.last_term());
                    let configuration = self.shape.configurations.back().cloned();
                    self.roll(Start::Continue, prev, configuration, end)?;
                }
            }
        }
        let offset = self.current.offset;
        let place = Place { identity: self.options.identity, segment: self.current.number, offset };
        format::seal_batch(&mut self.buffer, place, self.next_seq);
        let padded = format::padded(offset + end, self.current.end) - offset;
        self.buffer.resize(padded as usize, 0);
        self.put(offset)?;

        self.next_seq += 1;
        let len = format::aligned(end);
        self.current.offset += len;
        let mut new_configuration = false;
        let Staged { hard_state, first_segment, entries, runs, configurations } = &mut self.staged;
        lock(&self.places).add_batch(self.current.number, offset, len, *entries);
        if let Some((first, last)) = entries.take() {
            if first <= self.shape.last {
                self.shape.truncate(first - 1);
            }
            for (index, term) in runs.drain(..) {
                if self.shape.runs.back().is_none_or(|run| run.1 != term) {
                    self.shape.runs.push_back((index, term));
                }
            }
            new_configuration = !configurations.is_empty();
            self.shape.configurations.extend(configurations.drain(..));
            self.shape.last = last;
        }
        self.shape.hard_state = hard_state.take().unwrap_or(self.shape.hard_state);
        self.first_segment = first_segment.take().unwrap_or(self.first_segment);
        if new_configuration {
            self.update_batch_limit();
        }
        self.clear_buffer();
        Ok(padded)
    }

    /// One positioned write of the buffer, one sync.
    fn put(&self, offset: u64) -> Result<(), WalError> {
        let Current { path, file, .. } = &self.current;
        file.write_all_at(&self.buffer, offset).map_err(|e| WalError::io("write", path, e))?;
        file.sync_data().map_err(|e| WalError::io("sync", path, e))
    }

    fn clear_buffer(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT_BYTES);
        self.buffer.resize(BATCH_HEADER_BYTES, 0);
    }

    /// Begins a segment in front of which the log ends at `to`, with room for such a batch.
    fn roll_truncated(&mut self, to: Index, batch_bytes: u64) -> Result<(), WalError> {
        let prev = (to, self.shape.term(to).unwrap_or(0));
        let configuration = self.shape.configuration_at(to).cloned();
        self.roll(Start::Truncate, prev, configuration, batch_bytes)
    }

    fn next_header(
        &self,
        start: Start,
        prev: (Index, Term),
        configuration: Option<(Index, Arc<Configuration>)>,
    ) -> Header {
        let number = self.current.number + 1;
        Header {
            start,
            identity: self.options.identity,
            number,
            bytes: self.options.segment_bytes,
            first_seq: self.next_seq,
            first_segment: if start == Start::Reset { number } else { self.first_segment },
            prev,
            hard_state: self.shape.hard_state,
            configuration,
        }
    }

    /// Begins the next segment, with room for such a batch; its header is durable when this returns, and behind that the end
    /// mark of the segment before. In this order a header without a mark is a roll that was cut
    /// off, and a mark without a header is damage.
    fn roll(
        &mut self,
        start: Start,
        prev: (Index, Term),
        configuration: Option<(Index, Arc<Configuration>)>,
        batch_bytes: u64,
    ) -> Result<(), WalError> {
        let mut header = self.next_header(start, prev, configuration.clone());
        let bytes = header.encode().len();
        if bytes > format::HEADER_BYTES_MAX {
            let limit = format::HEADER_BYTES_MAX as u64;
            return Err(WalError::TooLarge { bytes, limit });
        }
        let spare = self.take_spare(self.segment_len(bytes as u64, batch_bytes))?;
        header.bytes = spare.bytes;
        let segment = write_header(&header, spare)?;
        let Current { path, file, number, end, .. } = &self.current;
        write_end_mark(file.as_ref(), path, self.options.identity, *number, *end)?;
        match start {
            Start::Continue => {}
            Start::Truncate => self.shape.truncate(prev.0),
            Start::Reset => {
                self.shape.reset(prev, configuration);
                self.update_batch_limit();
            }
        }
        self.no_spares = false;
        self.first_segment = header.first_segment;
        self.current = Current {
            path: segment.path.clone(),
            file: Arc::clone(&segment.file),
            number: header.number,
            end: format::data_end(header.bytes),
            offset: segment.used,
            prev: prev.0,
        };
        let mut places = lock(&self.places);
        places.segments.push_back(segment);
        match start {
            Start::Continue => {}
            Start::Truncate => places.truncate(prev.0),
            Start::Reset => places.reset(prev.0),
        }
        Ok(())
    }
}

/// Writes a segment's header over a spare and syncs it. The zeros behind it blank the place of
/// the first batch.
fn write_header(header: &Header, spare: Spare) -> Result<Segment, WalError> {
    let mut bytes = header.encode();
    let used = format::aligned(bytes.len() as u64);
    let padded = format::padded(bytes.len() as u64, format::data_end(header.bytes));
    bytes.resize(padded as usize, 0);
    let Spare { path, file, .. } = spare;
    file.write_all_at(&bytes, 0).map_err(|e| WalError::io("write", &path, e))?;
    file.sync_data().map_err(|e| WalError::io("sync", &path, e))?;
    Ok(Segment { number: header.number, path, file, prev: header.prev, used })
}

/// Writes and syncs the mark that the segment behind this one was begun, whose header is durable.
fn write_end_mark(
    file: &dyn DiskFile,
    path: &Path,
    identity: u64,
    segment: u64,
    end: u64,
) -> Result<(), WalError> {
    let mark = format::end_mark(Place { identity, segment, offset: end });
    file.write_all_at(&mark, end).map_err(|e| WalError::io("write", path, e))?;
    file.sync_data().map_err(|e| WalError::io("sync", path, e))
}

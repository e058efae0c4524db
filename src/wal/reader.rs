//! Reading entries back while the log is being written.
//!
//! For peers that lag and for the applier after a restart. A reader holds the shared lock only to
//! learn where entries lie; it reads with positioned reads on the shared files and checks every
//! checksum again. Nothing is cached here: the recent entries are in the core's memory anyway.

use super::error::ReadError;
use super::format::{self, BatchHeader, Place, Record, Records};
use super::shape::{Places, Segment, Span};
use crate::raft::{Entry, Index};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A handle for reading the durable log; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(super) places: Arc<Mutex<Places>>,
}

/// What a read found out under the lock.
struct Found {
    span: Span,
    segment: Segment,
    identity: u64,
    truncations: u64,
}

impl LogReader {
    /// First index in the log; one more than [`LogReader::last_index`] when it is empty.
    pub fn first_index(&self) -> Index {
        self.lock().first
    }

    /// Last durable index.
    pub fn last_index(&self) -> Index {
        self.lock().last
    }

    /// Contiguous entries from `first` to at most `last`: at least one, and as many as weigh no
    /// more than `max_bytes` together.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] and [`ReadError::Beyond`] when `first` is not in the log,
    /// [`ReadError::Changed`] when entries became void during the read; damage and failed reads
    /// name file and offset.
    pub fn read(
        &self,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut entries = Vec::new();
        let mut budget = max_bytes;
        let mut next = first;
        let mut seen = None;
        loop {
            let found = match self.find(next) {
                Ok(found) => found,
                // The log may end, be truncated or be compacted behind what was read already.
                Err(_) if !entries.is_empty() => return self.settle(entries, seen),
                Err(e) => return Err(e),
            };
            if *seen.get_or_insert(found.truncations) != found.truncations {
                return Err(ReadError::Changed);
            }
            let to = found.span.last.min(last.max(first));
            let full = match read_span(&found, next, to, &mut budget, &mut entries) {
                Ok(full) => full,
                Err(e) => return Err(self.explain(&found, next, e)),
            };
            next = entries.last().map_or(next, |e| e.index + 1);
            if full || next > last {
                return self.settle(entries, seen);
            }
        }
    }

    fn find(&self, index: Index) -> Result<Found, ReadError> {
        let places = self.lock();
        if index < places.first {
            return Err(ReadError::Compacted { first_index: places.first });
        }
        let (span, segment) =
            places.find(index).ok_or(ReadError::Beyond { last_index: places.last })?;
        Ok(Found {
            span,
            segment: segment.clone(),
            identity: places.identity,
            truncations: places.truncations,
        })
    }

    /// Hands out entries only if none of them can have become void meanwhile.
    fn settle(&self, entries: Vec<Entry>, seen: Option<u64>) -> Result<Vec<Entry>, ReadError> {
        if seen == Some(self.lock().truncations) { Ok(entries) } else { Err(ReadError::Changed) }
    }

    /// A segment may be recycled under a reader: what then looks like damage is not.
    fn explain(&self, found: &Found, next: Index, error: ReadError) -> ReadError {
        let places = self.lock();
        if places.truncations != found.truncations {
            return ReadError::Changed;
        }
        if next < places.first {
            return ReadError::Compacted { first_index: places.first };
        }
        error
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        lock(&self.places)
    }
}

/// The lock guards plain data that is whole between any two statements that can panic.
pub(super) fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads entries `next..=to` of one span; true when the budget is used up.
fn read_span(
    found: &Found,
    mut next: Index,
    to: Index,
    budget: &mut usize,
    entries: &mut Vec<Entry>,
) -> Result<bool, ReadError> {
    let Found { span, segment, identity, .. } = found;
    let mut bytes = vec![0; usize::try_from(span.len).unwrap_or(usize::MAX)];
    segment.file.read_exact_at(&mut bytes, span.offset).map_err(|source| ReadError::Io {
        path: segment.path.clone(),
        offset: span.offset,
        source,
    })?;
    let mut at = 0;
    while at < bytes.len() {
        let offset = span.offset + at as u64;
        let damaged = |what| ReadError::Damaged { path: segment.path.clone(), offset, what };
        let rest = &bytes[at..];
        let total = BatchHeader::decode(rest).map_or(usize::MAX, |h| h.total());
        let batch = rest.get(..total).ok_or(damaged("batch length"))?;
        let place = Place { identity: *identity, segment: segment.number, offset };
        if !format::batch_is_sound(batch, place) {
            return Err(damaged("batch checksum"));
        }
        let mut records = Records::of(batch);
        while let Some(record) = records.take().map_err(|e| damaged(e.0))? {
            let Record::Entry(raw) = record else { continue };
            if raw.index < next {
                continue;
            }
            if raw.index > next {
                return Err(damaged("entry index"));
            }
            let entry = raw.decode().map_err(|e| damaged(e.0))?;
            let weight = entry.weight();
            if weight > *budget && !entries.is_empty() {
                return Ok(true);
            }
            *budget = budget.saturating_sub(weight);
            entries.push(entry);
            if next == to {
                return Ok(*budget == 0);
            }
            next += 1;
        }
        at += format::aligned(total as u64) as usize;
    }
    let (path, offset) = (segment.path.clone(), span.offset);
    Err(ReadError::Damaged { path, offset, what: "entries are missing" })
}

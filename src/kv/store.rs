//! What the state machine needs of a storage engine.
//!
//! One writer, the applier, hands over whole batches of blind changes; any number of readers look
//! at consistent cuts. The in-memory map (`memory`) is the model of this contract; an engine for
//! data larger than memory stands behind the same three traits.
//!
//! The contract:
//! - [`Store::write`] is atomic: after a crash and for every reader either all of a batch is there
//!   or nothing, and the applied index moves with it. It reads nothing.
//! - A [`View`] is one cut: what it answers never changes while it lives.
//! - A store need not be durable at once: after a crash it may be at an older applied index, and
//!   the log is replayed from there.
//!
//! Left out on purpose: a way to read under the write, because the machine keeps what a batch
//! changed itself (a blind write is what makes an engine fast); and iterators, because a visitor
//! lends keys and values without copies whatever the engine looks like inside.

use super::bytes::Malformed;
use super::machine::INSTALLED_KEY;
use super::types::{Found, Revision};
use crate::env::{Findings, is_held, is_out_of_space};
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};

/// Two key spaces that change together and never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// What the state machine remembers beside the keys: sessions, the configuration.
    Meta,
    /// The keys of the users.
    User,
}

/// One key's new state, blind: what was there before does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// Where the key lives.
    pub space: Space,
    /// The key.
    pub key: Cow<'a, [u8]>,
    /// The writer's revision and the value, or none to remove the key.
    pub value: Option<(Revision, Cow<'a, [u8]>)>,
}

/// A storage engine, held by its one writer.
pub trait Store: Send + 'static {
    /// What readers hold.
    type Reader: Reader;

    /// A handle for reading.
    fn reader(&self) -> Self::Reader;

    /// Makes a batch of changes, at most one per key, sorted by (space, key), and moves the applied
    /// index, all at once. An error leaves the store unusable until it is opened again.
    fn write(&mut self, applied: Revision, changes: Vec<Change<'_>>) -> Result<(), StoreError>;

    /// A snapshot of another store of this kind, fetched and checked, ready to take this one's place.
    type Snapshot: Send + 'static;

    /// Everything up to this index is durable here.
    fn flushed(&self) -> Revision;

    /// Begins to make everything durable that was written until now; [`Store::flushed`] shows when
    /// it is.
    fn flush(&mut self);

    /// Takes the snapshot's contents and applied index in place of its own, durably and all at
    /// once. After an error, as after a crash, it is the old contents or the new ones; the old ones when the error says
    /// that it [changed nothing](StoreError::changed_nothing).
    fn install(&mut self, snapshot: Self::Snapshot) -> Result<(), StoreError>;

    /// How long the writer should rest before it asks again, in microseconds, so that the store's own work keeps up
    /// with what was written: nothing at most times, smoothly more as that piles up. Each rest is owed once; what is
    /// left when the writer writes on is owed with what it writes then.
    fn take_rest_us(&mut self) -> u64 {
        0
    }
}

/// A handle from which any thread takes views.
pub trait Reader: Clone + Send + Sync + 'static {
    /// The cut it gives.
    type View<'a>: View
    where
        Self: 'a;

    /// The latest cut. Held no longer than one answer takes: it may keep the writer waiting.
    fn view(&self) -> Self::View<'_>;
}

/// One consistent cut.
pub trait View {
    /// Every write up to this index is in the cut, none after.
    fn applied(&self) -> Revision;

    /// A key's value and revision.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Found>, StoreError>;

    /// A key's revision.
    fn revision(&self, space: Space, key: &[u8]) -> Result<Option<Revision>, StoreError>;

    /// How many bytes a key's value has.
    fn value_len(&self, space: Space, key: &[u8]) -> Result<Option<usize>, StoreError> {
        Ok(self.get(space, key)?.map(|found| found.value.len()))
    }

    /// Shows the keys between two bounds, in order, until the visitor breaks off.
    fn scan(
        &self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// The same, and no longer than until so much work went into what is not shown: a deleted key or an older version
    /// is one, and one more for each 4 KiB of it. Then it gives the key, there or not, up to which it has come: that
    /// and all in front of it were shown, if they are there.
    fn scan_within(
        &self,
        scan: &Scan<'_>,
        work_max: u64,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Which keys a scan shows. Bounds that hold nothing between them are fine.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Where to look.
    pub space: Space,
    /// The lower bound, in either direction.
    pub lower: Bound<&'a [u8]>,
    /// The upper bound, in either direction.
    pub upper: Bound<&'a [u8]>,
    /// From the upper bound down.
    pub reverse: bool,
}

impl Scan<'_> {
    /// Every key of a space, ascending.
    pub fn all(space: Space) -> Scan<'static> {
        Scan { space, lower: Bound::Unbounded, upper: Bound::Unbounded, reverse: false }
    }

    /// Whether no key can lie between the bounds.
    pub fn is_empty(&self) -> bool {
        match (self.lower, self.upper) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
            (
                Bound::Included(lower) | Bound::Excluded(lower),
                Bound::Included(upper) | Bound::Excluded(upper),
            ) => lower >= upper,
        }
    }
}

/// What a scan shows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The write that stored it.
    pub revision: Revision,
}

/// A store that cannot be read or written. Class: stop. Nothing more may be applied or answered
/// from it; a node opens it again, and replays the log, in a new process.
#[derive(Debug)]
pub enum StoreError {
    /// The disk refused.
    Io {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// What was read is not what was written.
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// The state machine's own record in [`Space::Meta`] does not decode.
    BadRecord {
        /// The record's key.
        key: Vec<u8>,
        /// What does not fit.
        source: Malformed,
    },
    /// An earlier batch failed; the state in memory may be ahead of the store.
    Failed,
}

impl StoreError {
    /// Whether what is on disk is not what was written: a snapshot from a peer puts that right.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::Damaged { .. } | StoreError::BadRecord { .. })
    }

    /// Whether there was no space for what was to be written.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if is_out_of_space(source))
    }

    /// Whether a file could not be removed since somebody else holds it, which passes.
    pub fn is_held(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if is_held(source))
    }

    /// Whether a snapshot that was not installed for it left the store as it was: a table of the snapshot is damaged,
    /// or there was no space.
    pub fn changed_nothing(&self) -> bool {
        self.is_damage() || self.is_out_of_space()
    }

    /// As something that was found on disk; `dir` is the store's, for an error that names no file.
    pub fn found(&self, dir: &Path, findings: &mut Findings) {
        match self {
            StoreError::Io { path, offset, source } => {
                findings.problem(path, *offset, format!("cannot read it: {source}"));
            }
            StoreError::Damaged { path, offset, what } => findings.problem(path, *offset, *what),
            StoreError::BadRecord { .. } | StoreError::Failed => {
                findings.problem(dir, 0, self.to_string());
            }
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Io { path, offset, source } => {
                write!(f, "{} at offset {offset}: {source}", path.display())
            }
            StoreError::Damaged { path, offset, what } => {
                write!(f, "{} is damaged at offset {offset}: {what}", path.display())
            }
            StoreError::BadRecord { key, source } => {
                write!(f, "the store's record {} is damaged: {source}", key.escape_ascii())
            }
            StoreError::Failed => write!(f, "the store failed earlier and was not opened again"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Io { source, .. } => Some(source),
            StoreError::BadRecord { source, .. } => Some(source),
            StoreError::Damaged { .. } | StoreError::Failed => None,
        }
    }
}

/// A number that is equal for equal states, within one build: a hash over the applied index and every key,
/// revision and value of both spaces in order, each with its length in front; [`INSTALLED_KEY`] is left out,
/// which concerns one node. A full scan: for tests and for comparing replicas, not for every day.
pub fn fingerprint(view: &impl View) -> Result<u64, StoreError> {
    fingerprint_with(view, &mut |_, _| {})
}

/// The same, and every row that goes into it is shown, with its space.
pub fn fingerprint_with(
    view: &impl View,
    seen: &mut dyn FnMut(Space, Row<'_>),
) -> Result<u64, StoreError> {
    let mut hash = Mixer(0);
    hash.number(view.applied());
    for space in [Space::Meta, Space::User] {
        let mut rows = 0;
        view.scan(&Scan::all(space), &mut |row| {
            if (space, row.key) == (Space::Meta, INSTALLED_KEY) {
                return ControlFlow::Continue(());
            }
            hash.bytes(row.key);
            hash.number(row.revision);
            hash.bytes(row.value);
            rows += 1;
            seen(space, row);
            ControlFlow::Continue(())
        })?;
        hash.number(rows);
    }
    Ok(hash.0)
}

/// Hashes eight bytes at a time: the two halves of a product, folded. Not for hostile input.
struct Mixer(u64);

impl Mixer {
    /// Bytes, with their length in front.
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.number(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.number(u64::from_le_bytes(last));
    }

    fn number(&mut self, number: u64) {
        // The first digits of pi and of e: nothing but that they have no pattern matters.
        let product = u128::from(self.0 ^ number ^ 0x243f_6a88_85a3_08d3)
            * u128::from(0xb7e1_5162_8aed_2a6bu64);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Bound::{Excluded, Included, Unbounded};

    #[test]
    fn a_key_lies_between_itself_and_itself_when_both_bounds_include_it() {
        // With either bound excluded nothing does; an open side holds something always.
        let (j, k): (&[u8], &[u8]) = (b"j", b"k");
        let is_empty =
            |lower, upper| Scan { space: Space::User, lower, upper, reverse: false }.is_empty();
        assert!(!is_empty(Included(k), Included(k)) && !is_empty(Included(j), Included(k)));
        assert!(is_empty(Included(k), Included(j)));
        for (lower, upper) in [
            (Included(k), Excluded(k)),
            (Excluded(k), Included(k)),
            (Excluded(k), Excluded(k)),
            (Excluded(k), Included(j)),
        ] {
            assert!(is_empty(lower, upper), "{lower:?} {upper:?}");
        }
        assert!(!is_empty(Excluded(j), Excluded(k)));
        assert!(!is_empty(Unbounded, Excluded(k)) && !is_empty(Excluded(k), Unbounded));
    }
}

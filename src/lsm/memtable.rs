//! The memtable: the newest writes, in order, for one writer and any number of readers.
//!
//! An ordered set behind a reader-writer lock. Every version of a key is an element of its own,
//! ordered by key and then newest first, and nothing is ever changed or removed: a reader that
//! looks at a *cut* ignores what is newer. So consistency does not need the lock, and both sides
//! hold it briefly: the writer for [`WRITE_CHUNK`] insertions (tens of microseconds), a reader for
//! one lookup or for [`READ_CHUNK_MAX`] keys of a walk, whose bytes it shares instead of copying.
//! A lock-free list would need `unsafe`; an immutable tree would copy a path for each write.
//! The first bytes of a key lie in the element itself, so that most comparisons touch no other
//! memory. Left out: removing versions that no cut can see; a flush does.

use super::block::Item;
use super::table::Start;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering as Atomic};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Insertions under one hold of the lock.
const WRITE_CHUNK: usize = 32;
/// Keys that a walk takes under one hold of the lock. It begins with one, since most end early and
/// each costs a look at memory far away, and takes more each time.
const READ_CHUNK_MAX: usize = 64;
const READ_CHUNK_FIRST: usize = 1;
const READ_CHUNK_GROWTH: usize = 4;
/// Versions that a walk looks at under one hold of the lock: those that an old cut does not show may
/// be many in a row.
const LOOKS_MAX: usize = 256;
/// Versions of one key that a walk steps over before it searches instead.
const STEPS_MAX: usize = 8;

/// Memory of an entry beside its bytes: its place in the set (with the set's free room), and the
/// allocation's own.
const OVERHEAD_BYTES: usize = 128;

/// One version of a key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The first bytes of the key, as a number that sorts like them.
    prefix: u128,
    /// The key and, behind it, the value.
    bytes: Arc<[u8]>,
    key_len: u32,
    put: bool,
    revision: u64,
    /// The batch it came with, as its applied index.
    batch: u64,
}

fn prefix_of(key: &[u8]) -> u128 {
    let mut prefix = [0; 16];
    let len = key.len().min(16);
    prefix[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(prefix)
}

impl Entry {
    /// A version; `scratch` is memory to reuse.
    pub(super) fn new(
        parts: (u8, &[u8]),
        value: Option<(u64, &[u8])>,
        batch: u64,
        scratch: &mut Vec<u8>,
    ) -> Entry {
        scratch.clear();
        scratch.push(parts.0);
        scratch.extend_from_slice(parts.1);
        let key_len = scratch.len();
        let prefix = prefix_of(scratch);
        if let Some((_, value)) = value {
            scratch.extend_from_slice(value);
        }
        Entry {
            prefix,
            bytes: Arc::from(&scratch[..]),
            // Longer keys were refused.
            key_len: key_len as u32,
            put: value.is_some(),
            revision: value.map_or(0, |(revision, _)| revision),
            batch,
        }
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..self.key_len as usize]
    }

    pub(super) fn item(&self) -> Item<'_> {
        if self.put {
            let value = &self.bytes[self.key_len as usize..];
            Item::Put { revision: self.revision, value }
        } else {
            Item::Tombstone
        }
    }

    fn charge(&self) -> usize {
        self.bytes.len() + OVERHEAD_BYTES
    }
}

/// A place in the order: a key, and a batch within its versions (newest first).
trait Place {
    fn place(&self) -> (u128, &[u8], u64);
}

impl Place for Entry {
    fn place(&self) -> (u128, &[u8], u64) {
        (self.prefix, self.key(), self.batch)
    }
}

/// A place that is sought.
struct Probe<'a>(u128, &'a [u8], u64);

impl Place for Probe<'_> {
    fn place(&self) -> (u128, &[u8], u64) {
        (self.0, self.1, self.2)
    }
}

#[inline]
fn compare(a: (u128, &[u8], u64), b: (u128, &[u8], u64)) -> Ordering {
    let keys = || a.1.cmp(b.1);
    a.0.cmp(&b.0).then_with(keys).then_with(|| b.2.cmp(&a.2))
}

impl<'a> Borrow<dyn Place + 'a> for Entry {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

macro_rules! ordered_by_place {
    ($type:ty) => {
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other) == Ordering::Equal
            }
        }
        impl Eq for $type {}
        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $type {
            fn cmp(&self, other: &Self) -> Ordering {
                compare(self.place(), other.place())
            }
        }
    };
}
ordered_by_place!(Entry);
ordered_by_place!(dyn Place + '_);

/// The set and its size.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    set: RwLock<BTreeSet<Entry>>,
    charge: AtomicUsize,
    tombstones: AtomicU64,
}

impl Memtable {
    /// Takes the versions of one batch in, and gives the memory they take. Readers see them once the batch is
    /// published as a cut.
    pub(super) fn insert(&self, entries: Vec<Entry>) -> usize {
        let charge = entries.iter().map(Entry::charge).sum();
        let tombstones = entries.iter().filter(|entry| !entry.put).count() as u64;
        let mut entries = entries.into_iter();
        while entries.len() > 0 {
            // Whoever panicked under the lock ran out of memory between two insertions.
            let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
            set.extend(entries.by_ref().take(WRITE_CHUNK));
        }
        self.charge.fetch_add(charge, Atomic::Relaxed);
        if tombstones > 0 {
            self.tombstones.fetch_add(tombstones, Atomic::Relaxed);
        }
        charge
    }

    /// Versions in it that say that a key is gone.
    pub(super) fn tombstones(&self) -> u64 {
        self.tombstones.load(Atomic::Relaxed)
    }

    /// Memory it takes, nearly.
    pub(super) fn charge(&self) -> usize {
        self.charge.load(Atomic::Relaxed)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeSet<Entry>> {
        self.set.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version of a key in a cut.
    pub(super) fn get(&self, key: &[u8], cut: u64) -> Option<Entry> {
        newest(&self.read(), prefix_of(key), key, cut).cloned()
    }
}

/// The newest version of a key in a cut.
fn newest<'s>(set: &'s BTreeSet<Entry>, prefix: u128, key: &[u8], cut: u64) -> Option<&'s Entry> {
    let probe = Probe(prefix, key, cut);
    let from: Bound<&dyn Place> = Bound::Included(&probe);
    set.range::<dyn Place, _>((from, Bound::Unbounded)).next().filter(|e| e.key() == key)
}

/// A walk over a memtable's keys in a cut, in one direction.
#[derive(Debug)]
pub(super) struct MemCursor {
    table: Arc<Memtable>,
    cut: u64,
    reverse: bool,
    chunk: usize,
    taken: VecDeque<Entry>,
    done: bool,
}

impl MemCursor {
    pub(super) fn new(
        table: Arc<Memtable>,
        cut: u64,
        start: Start<'_>,
        reverse: bool,
    ) -> MemCursor {
        let chunk = READ_CHUNK_FIRST;
        let taken = VecDeque::new();
        let mut cursor = MemCursor { table, cut, reverse, chunk, taken, done: false };
        cursor.take_chunk(start);
        cursor
    }

    pub(super) fn is_valid(&self) -> bool {
        !self.taken.is_empty()
    }

    pub(super) fn key(&self) -> &[u8] {
        self.taken.front().map_or(&[], Entry::key)
    }

    pub(super) fn item(&self) -> Item<'_> {
        self.taken.front().map_or(Item::Tombstone, Entry::item)
    }

    pub(super) fn advance(&mut self) {
        let Some(last) = self.taken.pop_front() else { return };
        if self.taken.is_empty() && !self.done {
            self.chunk = (READ_CHUNK_GROWTH * self.chunk).min(READ_CHUNK_MAX);
            self.take_chunk(Start::Behind(last.key()));
        }
    }

    fn take_chunk(&mut self, start: Start<'_>) {
        let table = Arc::clone(&self.table);
        let mut last = self.take_some(&table.read(), start);
        // Nothing shown so far, but there is more: let others have the lock, then go on.
        while self.taken.is_empty() {
            let Some(entry) = last else { return };
            last = self.take_some(&table.read(), Start::Behind(entry.key()));
        }
    }

    /// Takes what is visible until the chunk is full, the set ends or enough was looked at; returns
    /// the entry that it went up to, unless the set ended.
    fn take_some(&mut self, set: &BTreeSet<Entry>, start: Start<'_>) -> Option<Entry> {
        let mut looks = 0;
        // Where to search on: before or behind all versions of a key.
        let mut from = match start {
            Start::End => None,
            Start::At(key) => Some((prefix_of(key), key, self.reverse)),
            Start::Behind(key) => Some((prefix_of(key), key, !self.reverse)),
        };
        loop {
            let probe = from
                .map(|(prefix, key, behind)| Probe(prefix, key, if behind { 0 } else { u64::MAX }));
            let bound: Bound<&dyn Place> = match &probe {
                Some(probe) => Bound::Included(probe),
                None => Bound::Unbounded,
            };
            let on = if self.reverse {
                let range = set.range::<dyn Place, _>((Bound::Unbounded, bound)).rev();
                self.take_run(set, range, &mut looks)
            } else {
                self.take_run(set, set.range::<dyn Place, _>((bound, Bound::Unbounded)), &mut looks)
            };
            match on {
                Some(entry) if self.taken.len() >= self.chunk || looks >= LOOKS_MAX => {
                    return Some(entry.clone());
                }
                Some(entry) => from = Some((entry.prefix, entry.key(), !self.reverse)),
                None => {
                    self.done = true;
                    return None;
                }
            }
        }
    }

    /// Takes what is visible until the chunk is full, enough was looked at, or a key has so many
    /// versions that the walk should go on behind it by searching; returns the last key's entry
    /// then, and nothing at the set's end.
    fn take_run<'s>(
        &mut self,
        set: &BTreeSet<Entry>,
        range: impl Iterator<Item = &'s Entry>,
        looks: &mut usize,
    ) -> Option<&'s Entry> {
        let mut range = range.peekable();
        loop {
            let first = range.next()?;
            *looks += 1;
            // The versions of one key: newest first, or oldest first when walking back.
            let mut best = Some(first).filter(|e| e.batch <= self.cut);
            let mut steps = 0;
            let same = |e: &&Entry| e.prefix == first.prefix && e.key() == first.key();
            while let Some(entry) = range.next_if(same) {
                if entry.batch <= self.cut && (self.reverse || best.is_none()) {
                    best = Some(entry);
                }
                steps += 1;
                *looks += 1;
                if steps == STEPS_MAX {
                    let found = newest(set, first.prefix, first.key(), self.cut);
                    self.taken.extend(found.cloned());
                    return Some(first);
                }
            }
            self.taken.extend(best.cloned());
            if self.taken.len() >= self.chunk || *looks >= LOOKS_MAX {
                return Some(first);
            }
        }
    }
}

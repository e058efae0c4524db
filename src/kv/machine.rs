//! Applying committed entries: the one place where the keys change.
//!
//! [`Machine::apply`] takes a whole committed batch and makes one atomic store write of it. The
//! store's writes are blind, so what the batch has changed so far is kept here, in an overlay in
//! front of the store's view; a condition, an increment or a read looks there first. A plain put
//! reads nothing at all, and its value is copied once, into the store.
//!
//! Equal logs give equal states and equal outcomes, however they are cut into batches. What an entry reads is in
//! memory until its outcome is part of the digest, and longer only where somebody waits for the outcome; so
//! commands of a few bytes that read large values take no more memory than one of them, also when a whole log of
//! them is applied again. Nothing here
//! looks at a flag; what must be bounded in apply ([`RESULT_BYTES_MAX`], the sessions' bounds) is a
//! constant of the replicated state. Left out: when to apply, and whom to answer.

use super::bytes::Malformed;
use super::codec::{CommandRef, OpRef, WriteRef, put_outcome};
use super::sessions::{SessionBounds, Sessions};
use super::store::{Change, Reader, Space, Store, StoreError, View};
use super::types::{Found, OpResult, Outcome, Revision, Test};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Bytes of values that the reads of one write may have found before a further read that finds
/// something is refused: bounds an answer to this and one value more.
pub const RESULT_BYTES_MAX: usize = 4 << 20;

/// Key in [`Space::Meta`] of the last applied configuration, as [`Committed::Configuration`] gave
/// it.
pub const CONFIGURATION_KEY: &[u8] = b"c";

/// Key in [`Space::Meta`] of the term of the last applied entry, eight bytes little-endian. Its
/// revision is the first index of that term.
pub const TERM_KEY: &[u8] = b"t";

/// Key in [`Space::Meta`] of the rolling digest, four bytes little-endian: CRC-32 (IEEE) over the
/// digest before, the entry's index, what it carries, and its outcome. Equal logs give equal digests
/// wherever outcomes are equal. Its revision is the last applied index.
pub const DIGEST_KEY: &[u8] = b"d";

/// Entries between two digests that are given out for comparison.
pub const DIGEST_EVERY: u64 = 4096;

/// Key in [`Space::Meta`] that says that the store's contents came as a snapshot and nothing was
/// applied since: the log may not have been told yet. It concerns one node, and is no part of what
/// replicas have in common.
pub const INSTALLED_KEY: &[u8] = b"i";

/// Memory for the byte form of an outcome that is kept for the next one.
const OUTCOME_BYTES_KEPT: usize = 64 << 10;

/// Longest decimal `i64`: nineteen digits and a sign.
const NUMBER_BYTES_MAX: usize = 20;

/// What a row takes in the store's memory beside its bytes, about.
const ROW_BYTES: usize = 128;

/// What a committed entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed<'a> {
    /// A command, in its byte form.
    Command(&'a [u8]),
    /// A configuration; its bytes are kept with the data, not looked into.
    Configuration(&'a [u8]),
    /// The entry that opens a term, and the term. Nothing for the keys; it is remembered so that the
    /// store alone says which place in the log it stands for.
    Term(u64),
}

/// Which place in the log a store stands for: what a snapshot of it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the last applied entry.
    pub index: Revision,
    /// Its term; 0 when nothing is applied.
    pub term: u64,
    /// The last applied configuration in its byte form, none when there was none.
    pub configuration: Option<Vec<u8>>,
    /// The contents came as a snapshot, and nothing was applied since.
    pub installed: bool,
}

/// The place that a view stands for.
///
/// # Errors
/// The store's; [`StoreError::BadRecord`] when the term is not eight bytes.
pub fn place(view: &impl View) -> Result<Place, StoreError> {
    let term = match view.get(Space::Meta, TERM_KEY)? {
        None => 0,
        Some(found) => u64::from_le_bytes(found.value.try_into().map_err(|_| {
            let source = Malformed("a term");
            StoreError::BadRecord { key: TERM_KEY.to_vec(), source }
        })?),
    };
    let configuration = view.get(Space::Meta, CONFIGURATION_KEY)?.map(|found| found.value);
    let installed = view.revision(Space::Meta, INSTALLED_KEY)?.is_some();
    Ok(Place { index: view.applied(), term, configuration, installed })
}

/// How many client sessions a view holds; each record is decoded.
///
/// # Errors
/// The store's; [`StoreError::BadRecord`] for one that does not decode.
pub fn session_count(view: &impl View) -> Result<usize, StoreError> {
    Ok(Sessions::load(view, SessionBounds::STANDARD)?.len())
}

/// The replicated state machine on a store.
///
/// Invariant: between calls the sessions in memory are those in the store, and `applied` is the
/// store's applied index.
#[derive(Debug)]
pub struct Machine<S: Store> {
    store: S,
    reader: S::Reader,
    sessions: Sessions,
    applied: Revision,
    /// The store says [`INSTALLED_KEY`].
    installed: bool,
    digest: u32,
    digest_every: u64,
    /// The last digest at a multiple of that, not given out yet.
    told: Option<(Revision, u32)>,
    /// Nothing is applied until a snapshot is installed.
    failed: bool,
    /// A write whose reads meet damage is left out.
    skips_damage: bool,
    /// Those that were.
    skipped: Vec<(Revision, StoreError)>,
}

impl<S: Store> Machine<S> {
    /// Continues from what a store holds. When the part of it that is needed here is damaged, nothing
    /// is applied until a snapshot is installed: see [`Machine::is_spoiled`].
    ///
    /// # Errors
    /// The store's, but for damage of its files.
    pub fn open(store: S) -> Result<Machine<S>, StoreError> {
        Machine::open_bounded(store, SessionBounds::STANDARD)
    }

    /// The same, with other bounds of sessions than production has.
    ///
    /// # Errors
    /// As [`Machine::open`].
    pub fn open_bounded(store: S, bounds: SessionBounds) -> Result<Machine<S>, StoreError> {
        let reader = store.reader();
        let view = reader.view();
        let (loaded, failed) = match Loaded::from(&view, bounds) {
            Ok(loaded) => (loaded, false),
            Err(StoreError::Damaged { .. }) => {
                let sessions = Sessions::new(bounds);
                (Loaded { sessions, installed: false, digest: 0 }, true)
            }
            Err(e) => return Err(e),
        };
        let applied = view.applied();
        drop(view);
        let Loaded { sessions, installed, digest } = loaded;
        let (digest_every, told) = (DIGEST_EVERY, None);
        Ok(Machine {
            store,
            reader,
            sessions,
            applied,
            installed,
            digest,
            digest_every,
            told,
            failed,
            skips_damage: false,
            skipped: Vec::new(),
        })
    }

    /// Gives digests out more or less often than at every [`DIGEST_EVERY`]th index.
    pub fn set_digest_every(&mut self, entries: u64) {
        self.digest_every = entries;
    }

    /// How often digests are given out: at every index that is a multiple of it.
    pub fn digest_every(&self) -> u64 {
        self.digest_every
    }

    /// The state's digest at the applied index.
    pub fn digest(&self) -> u32 {
        self.digest
    }

    /// The latest digest for comparison with other replicas, and the index that it stands for, once.
    pub fn take_digest(&mut self) -> Option<(Revision, u32)> {
        self.told.take()
    }

    /// Whether a write whose reads meet damage is left out from now on, where it would else end the batch in front of
    /// it: it changes nothing and has no outcome. That is for the only replica there is, since others would apply it.
    pub fn skip_damage(&mut self, skip: bool) {
        self.skips_damage = skip;
    }

    /// The writes that were left out since the last call, ascending, and what each met.
    pub fn take_skipped(&mut self) -> Vec<(Revision, StoreError)> {
        std::mem::take(&mut self.skipped)
    }

    /// Nothing more is applied until a snapshot is installed.
    pub fn is_spoiled(&self) -> bool {
        self.failed
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> Revision {
        self.applied
    }

    /// A handle for reading, for any thread.
    pub fn reader(&self) -> S::Reader {
        self.reader.clone()
    }

    /// How much it remembers of sessions.
    pub fn session_bounds(&self) -> SessionBounds {
        self.sessions.bounds()
    }

    /// How many client sessions there are.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Takes a snapshot in place of everything (see [`Store::install`]), unless it is older, or is
    /// as old and not wanted `again`, in place of what is damaged. Whether it was taken.
    ///
    /// # Errors
    /// The store's. After one that [changed nothing](StoreError::changed_nothing) all is as before; after another
    /// one nothing more is applied, see [`Machine::is_spoiled`].
    pub fn install(
        &mut self,
        snapshot: S::Snapshot,
        index: Revision,
        again: bool,
    ) -> Result<bool, StoreError> {
        if index < self.applied || (index == self.applied && !again) {
            return Ok(false);
        }
        let failed = std::mem::replace(&mut self.failed, true);
        self.store
            .install(snapshot)
            .inspect_err(|e| self.failed = failed || !e.changed_nothing())?;
        let view = self.reader.view();
        self.applied = view.applied();
        let loaded = Loaded::from(&view, self.sessions.bounds())?;
        (self.sessions, self.installed) = (loaded.sessions, loaded.installed);
        (self.digest, self.told) = (loaded.digest, None);
        drop(view);
        self.failed = false;
        Ok(true)
    }

    /// How long the writer should rest (see [`Store::take_rest_us`]).
    pub fn take_rest_us(&mut self) -> u64 {
        self.store.take_rest_us()
    }

    /// The store, to look at.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store, to flush it or to take a snapshot.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives the store back.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Applies committed entries: each index with what it carries, without a gap, from
    /// `applied() + 1`. Gives one outcome per command, with its index, in order. When this returns,
    /// readers see all of it. After an error nothing more is applied, and the state is that of the
    /// store when it is opened again.
    ///
    /// # Panics
    /// On a gap or a repeated index: an entry lost or applied twice is worse than a stop.
    pub fn apply<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (Revision, Committed<'a>)>,
    ) -> Result<Vec<(Revision, Outcome)>, StoreError> {
        self.apply_some(entries, |_| true, usize::MAX)
    }

    /// The same for as many of the entries, at least one, as there is `room` for: bytes that they read, that the
    /// outcomes given hold, and that the batch takes of the store's memory, about; the last entry is the first that uses
    /// it up. A session's record, which may be much longer than the write that changes it, counts too.
    /// [`Machine::applied`] says how far it came. Outcomes are given, and kept in memory, only of the indexes that are
    /// `wanted`.
    ///
    /// # Errors
    /// As [`Machine::apply`].
    ///
    /// # Panics
    /// As [`Machine::apply`].
    pub fn apply_some<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (Revision, Committed<'a>)>,
        wanted: impl Fn(Revision) -> bool,
        room: usize,
    ) -> Result<Vec<(Revision, Outcome)>, StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        let outcomes = self.apply_batch(entries, wanted, room);
        self.failed = outcomes.is_err();
        outcomes
    }

    fn apply_batch<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (Revision, Committed<'a>)>,
        wanted: impl Fn(Revision) -> bool,
        room: usize,
    ) -> Result<Vec<(Revision, Outcome)>, StoreError> {
        let view = self.reader.view();
        let (changed, undo) = (BTreeMap::new(), Vec::new());
        let mut overlay = Overlay { view: &view, changed, undo, read: 0 };
        let mut outcomes = Vec::new();
        let mut skipped = Vec::new();
        let mut configuration = None;
        let mut term = None;
        let mut applied = self.applied;
        let (mut digest, mut told) = (self.digest, self.told);
        let mut bytes_of_outcome = Vec::new();
        // Of commands, and of outcomes that are given.
        let (mut bytes, mut kept) = (0, 0);
        for (index, committed) in entries {
            assert_eq!(index, applied + 1, "entries are applied in order and without a gap");
            applied = index;
            match committed {
                Committed::Term(number) => term = Some((index, number.to_le_bytes())),
                Committed::Configuration(bytes) => configuration = Some((index, bytes)),
                Committed::Command(bytes) => {
                    let outcome = match CommandRef::decode(bytes) {
                        Ok(command) => self.sessions.run(&mut overlay, index, &command),
                        Err(_) => Ok(Outcome::Malformed),
                    };
                    bytes_of_outcome.clear();
                    bytes_of_outcome.shrink_to(OUTCOME_BYTES_KEPT);
                    match outcome {
                        Ok(outcome) => {
                            put_outcome(&mut bytes_of_outcome, &outcome);
                            if wanted(index) {
                                kept += outcome.memory();
                                outcomes.push((index, outcome));
                            }
                        }
                        Err(e) if e.is_damage() && self.skips_damage => {
                            overlay.roll_back();
                            skipped.push((index, e));
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
            digest = next_digest(digest, index, &committed, &bytes_of_outcome);
            if index.is_multiple_of(self.digest_every) {
                told = Some((index, digest));
            }
            if let Committed::Command(command) = committed {
                bytes += command.len();
            }
            let rows = overlay.changed.len() * ROW_BYTES;
            if bytes + rows + self.sessions.changed_bytes() + kept + overlay.read >= room {
                break;
            }
        }
        if applied == self.applied {
            return Ok(outcomes);
        }
        let changed = overlay.changed;
        drop(view);
        let mut changes = Vec::with_capacity(changed.len() + 1);
        if let Some((index, bytes)) = configuration {
            changes.push(Change {
                space: Space::Meta,
                key: Cow::Borrowed(CONFIGURATION_KEY),
                value: Some((index, Cow::Borrowed(bytes))),
            });
        }
        let digest_bytes = digest.to_le_bytes();
        changes.push(Change {
            space: Space::Meta,
            key: Cow::Borrowed(DIGEST_KEY),
            value: Some((applied, Cow::Borrowed(&digest_bytes))),
        });
        if self.installed {
            changes.push(Change {
                space: Space::Meta,
                key: Cow::Borrowed(INSTALLED_KEY),
                value: None,
            });
        }
        self.sessions.take_changes(&mut changes);
        if let Some((index, bytes)) = &term {
            changes.push(Change {
                space: Space::Meta,
                key: Cow::Borrowed(TERM_KEY),
                value: Some((*index, Cow::Borrowed(bytes))),
            });
        }
        changes.extend(changed.into_iter().map(|(key, value)| Change {
            space: Space::User,
            key: Cow::Borrowed(key),
            value,
        }));
        self.store.write(applied, changes)?;
        self.skipped.append(&mut skipped);
        self.applied = applied;
        self.installed = false;
        (self.digest, self.told) = (digest, told);
        Ok(outcomes)
    }
}

/// What a machine keeps in memory of its store.
struct Loaded {
    sessions: Sessions,
    installed: bool,
    digest: u32,
}

impl Loaded {
    fn from(view: &impl View, bounds: SessionBounds) -> Result<Loaded, StoreError> {
        let sessions = Sessions::load(view, bounds)?;
        let installed = view.revision(Space::Meta, INSTALLED_KEY)?.is_some();
        let digest = match view.get(Space::Meta, DIGEST_KEY)? {
            None => 0,
            Some(found) => u32::from_le_bytes(found.value.try_into().map_err(|_| {
                let source = Malformed("a digest");
                StoreError::BadRecord { key: DIGEST_KEY.to_vec(), source }
            })?),
        };
        Ok(Loaded { sessions, installed, digest })
    }
}

/// The digest behind an entry: over the one before, index, kind, what it carries, and its outcome.
fn next_digest(before: u32, index: Revision, committed: &Committed<'_>, outcome: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(&index.to_le_bytes());
    match committed {
        Committed::Term(term) => {
            hasher.update(&[1]);
            hasher.update(&term.to_le_bytes());
        }
        Committed::Configuration(bytes) => {
            hasher.update(&[2]);
            hasher.update(bytes);
        }
        Committed::Command(bytes) => {
            hasher.update(&[3]);
            hasher.update(bytes);
            hasher.update(outcome);
        }
    }
    hasher.finalize()
}

impl Sessions {
    fn run<'a, V: View>(
        &mut self,
        overlay: &mut Overlay<'a, '_, V>,
        index: Revision,
        command: &CommandRef<'a>,
    ) -> Result<Outcome, StoreError> {
        match command {
            CommandRef::OpenSession => Ok(self.open(index)),
            CommandRef::CloseSession { session } => Ok(self.close(*session)),
            CommandRef::ReleaseSession { session, sequence } => {
                Ok(self.release(index, *session, *sequence))
            }
            CommandRef::Write(write) => {
                let Some(stamp) = &write.stamp else { return overlay.write(index, write) };
                if let Some(outcome) = self.recall(index, stamp)? {
                    return Ok(outcome);
                }
                let outcome = overlay.write(index, write)?;
                self.remember(stamp, &outcome);
                Ok(outcome)
            }
        }
    }
}

/// A key's state after this batch so far: revision and value, or none when it is gone.
type Slot<'a> = Option<(Revision, Cow<'a, [u8]>)>;

/// The store's view with the batch's changes in front.
struct Overlay<'a, 'v, V> {
    view: &'v V,
    changed: BTreeMap<&'a [u8], Slot<'a>>,
    /// What the current write replaced in `changed`, latest last.
    undo: Vec<(&'a [u8], Option<Slot<'a>>)>,
    /// Bytes of values that were read so far.
    read: usize,
}

impl<'a, V: View> Overlay<'a, '_, V> {
    fn write(&mut self, index: Revision, write: &WriteRef<'a>) -> Result<Outcome, StoreError> {
        self.undo.clear();
        for (position, condition) in (0..).zip(&write.conditions) {
            let found = self.revision(condition.key)?;
            let holds = match condition.test {
                Test::Absent => found.is_none(),
                Test::Present => found.is_some(),
                Test::Revision(revision) => found == Some(revision),
            };
            if !holds {
                return Ok(Outcome::ConditionFalse { condition: position, found });
            }
        }
        let mut results = Vec::with_capacity(write.ops.len());
        let mut room = RESULT_BYTES_MAX;
        for (position, op) in (0..).zip(&write.ops) {
            match self.op(index, position, op, &mut room)? {
                Ok(result) => results.push(result),
                Err(refusal) => {
                    self.roll_back();
                    return Ok(refusal);
                }
            }
        }
        Ok(Outcome::Done { revision: index, results })
    }

    /// Does one operation; the inner error refuses the whole write.
    fn op(
        &mut self,
        index: Revision,
        position: u32,
        op: &OpRef<'a>,
        room: &mut usize,
    ) -> Result<Result<OpResult, Outcome>, StoreError> {
        Ok(Ok(match *op {
            OpRef::Put { key, value } => {
                self.set(key, Some((index, Cow::Borrowed(value))));
                OpResult::Put
            }
            OpRef::Delete { key } => {
                let existed = self.revision(key)?.is_some();
                if existed {
                    self.set(key, None);
                }
                OpResult::Deleted { existed }
            }
            OpRef::Increment { key, by } => {
                let before = match self.get(key)? {
                    None => 0,
                    Some(found) => match parse_number(&found.value) {
                        Some(number) => number,
                        None => return Ok(Err(Outcome::NotANumber { op: position })),
                    },
                };
                let Some(value) = before.checked_add(by) else {
                    return Ok(Err(Outcome::Overflow { op: position }));
                };
                self.set(key, Some((index, Cow::Owned(value.to_string().into_bytes()))));
                OpResult::Number { value }
            }
            OpRef::Get { key } => {
                let found = self.get(key)?;
                if let Some(found) = &found {
                    if *room == 0 {
                        return Ok(Err(Outcome::ResultsTooLarge { op: position }));
                    }
                    *room = room.saturating_sub(found.value.len());
                }
                OpResult::Got { found }
            }
        }))
    }

    fn revision(&self, key: &'a [u8]) -> Result<Option<Revision>, StoreError> {
        match self.changed.get(key) {
            Some(slot) => Ok(slot.as_ref().map(|(revision, _)| *revision)),
            None => self.view.revision(Space::User, key),
        }
    }

    fn get(&mut self, key: &'a [u8]) -> Result<Option<Found>, StoreError> {
        let found = match self.changed.get(key) {
            Some(slot) => slot
                .as_ref()
                .map(|(revision, value)| Found { value: value.to_vec(), revision: *revision }),
            None => self.view.get(Space::User, key)?,
        };
        self.read = self.read.saturating_add(found.as_ref().map_or(0, |found| found.value.len()));
        Ok(found)
    }

    fn set(&mut self, key: &'a [u8], slot: Slot<'a>) {
        let before = self.changed.insert(key, slot);
        self.undo.push((key, before));
    }

    fn roll_back(&mut self) {
        while let Some((key, before)) = self.undo.pop() {
            match before {
                Some(slot) => self.changed.insert(key, slot),
                None => self.changed.remove(key),
            };
        }
    }
}

/// A decimal `i64` in the one form that an increment writes: no plus, no leading zero, no `-0`.
fn parse_number(bytes: &[u8]) -> Option<i64> {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let plain = match digits {
        [] | [b'0', _, ..] => false,
        [b'0'] => bytes.len() == 1,
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    if !plain || bytes.len() > NUMBER_BYTES_MAX {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

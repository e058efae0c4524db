//! Client sessions (thesis 6.3): what makes a retried write take effect once.
//!
//! The table is part of the replicated state: it changes only by applied commands, its bounds are
//! constants, and whom it forgets depends on log indexes alone. It lives in memory, and each session
//! as one record in [`Space::Meta`], written in the same batch as the keys that its writes changed.
//! docs/formats.md, "Session record", is the specification of the record.
//!
//! What a session forgets it refuses for ever: every sequence below `forgotten_below` is answered
//! [`Outcome::SequenceForgotten`], done before or not. So a forgotten write can never be done twice.
//!
//! **Whose place is taken.** A session is *held* by the connection that opened or used it last. When that ends, the
//! node says so ([`Command::ReleaseSession`](super::Command::ReleaseSession)), and the session is kept until its place is
//! needed, but at least for [`SessionBounds::released_entries`]: its client may come back by another connection, and
//! then holds it again. A session that is held loses its place only when nobody has used it for
//! [`SessionBounds::held_entries`]: its node may have stopped, or its client hangs. When every place is taken and no
//! session is that old, opening one more is refused ([`Outcome::SessionsFull`]). What one connection holds is bounded
//! (`api/holding.rs`), so many connections are needed to fill the table, and they must stay.
//!
//! Left out: expiry by time, since replicas share no clock: entries are counted. And whose sessions they are: a client
//! is its connections.

use super::bytes::{Input, Malformed, put_blob, put_varint};
use super::codec::{put_outcome, take_outcome};
use super::store::{Change, Scan, Space, StoreError, View};
use super::types::{Outcome, Revision, SessionStamp};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};

/// How much is remembered. The same on every replica, whatever its flags: tests and the simulator alone differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionBounds {
    /// Most sessions.
    pub sessions: usize,
    /// A session that no connection holds keeps its place for so many entries behind the last one that named it.
    pub released_entries: u64,
    /// A session that a connection holds keeps it for so many.
    pub held_entries: u64,
    /// Most results of one session; one more and the lowest sequence is forgotten.
    pub results: usize,
    /// Most bytes of one session's results, each with 48 more.
    pub session_bytes: usize,
    /// Longest outcome, in its byte form, that is remembered whole.
    pub outcome_bytes: usize,
}

impl SessionBounds {
    /// The bounds of version 1 of the replicated state.
    pub const STANDARD: SessionBounds = SessionBounds {
        // As many as connections that a node may have.
        sessions: 4096,
        // A session that was opened and released has taken two entries, so half of the places can be kept like that.
        released_entries: 4096,
        // A client that is busy uses its session far more often; one that idles keeps it unless every place is taken.
        held_entries: 64 * 4096,
        // A client with more writes in flight waits for the first of them.
        results: 1024,
        // With 4096 sessions: at most 256 MiB, when every client is at its worst.
        session_bytes: 64 << 10,
        // Enough for every outcome without values but the largest batches' (16 Ki operations).
        outcome_bytes: 16 << 10,
    };
}

/// What a remembered result costs in memory beside its bytes.
const RESULT_OVERHEAD_BYTES: usize = 48;

/// A sequence that cannot be forgotten, as nothing lies above it; so it is never taken.
const SEQUENCE_RESERVED: u64 = u64::MAX;

const _: () = {
    let b = SessionBounds::STANDARD;
    assert!(b.outcome_bytes + RESULT_OVERHEAD_BYTES <= b.session_bytes);
    assert!(b.sessions * b.session_bytes <= 256 << 20);
    // Clients that open sessions and leave never fill the table.
    assert!(b.released_entries / 2 < b.sessions as u64);
    assert!(b.released_entries <= b.held_entries);
    // The smallest results fill the count before they fill the bytes.
    assert!(b.results * (RESULT_OVERHEAD_BYTES + 16) <= b.session_bytes);
};

/// First byte of a session record's key in [`Space::Meta`]; the id follows, big endian.
const RECORD_PREFIX: u8 = b's';
const RECORD_KEY_BYTES: usize = 9;
/// Last byte of the record of a session that is released.
const RELEASED: u8 = 1;

/// The sessions of the replicated state.
///
/// Invariants: `held` and `released` together hold exactly the sessions of `by_id`, each under the index of the entry
/// that named it last, in the one that it says; no session exceeds its bounds; no result lies below its session's
/// `forgotten_below`.
#[derive(Debug)]
pub(super) struct Sessions {
    bounds: SessionBounds,
    by_id: BTreeMap<u64, Session>,
    held: BTreeMap<Revision, u64>,
    released: BTreeMap<Revision, u64>,
    /// Changed, begun or forgotten since the last [`Sessions::take_changes`].
    dirty: BTreeSet<u64>,
    /// About how long the records of those are.
    dirty_bytes: usize,
}

#[derive(Debug)]
struct Session {
    /// Log index of the last command that named it; unique, as an entry names one session.
    used: Revision,
    /// A connection holds it.
    held: bool,
    forgotten_below: u64,
    /// Outcomes in their byte form, by sequence.
    results: BTreeMap<u64, Box<[u8]>>,
    /// What the results count against [`SessionBounds::session_bytes`].
    bytes: usize,
}

impl Session {
    fn new(used: Revision) -> Session {
        Session { used, held: true, forgotten_below: 1, results: BTreeMap::new(), bytes: 0 }
    }

    /// The highest sequence that it has come to, 0 for none.
    fn reached(&self) -> u64 {
        let last = self.results.last_key_value().map_or(0, |(&sequence, _)| sequence);
        last.max(self.forgotten_below.saturating_sub(1))
    }

    fn insert(&mut self, sequence: u64, outcome: Box<[u8]>) {
        self.bytes += outcome.len() + RESULT_OVERHEAD_BYTES;
        let before = self.results.insert(sequence, outcome);
        assert!(before.is_none(), "a sequence was done twice");
    }

    fn forget_below(&mut self, sequence: u64) {
        if sequence <= self.forgotten_below {
            return;
        }
        self.forgotten_below = sequence;
        while let Some(first) = self.results.first_entry() {
            if *first.key() >= sequence {
                break;
            }
            self.bytes -= first.remove().len() + RESULT_OVERHEAD_BYTES;
        }
    }

    fn shrink(&mut self, bounds: &SessionBounds) {
        while self.results.len() > bounds.results || self.bytes > bounds.session_bytes {
            let Some((&lowest, _)) = self.results.first_key_value() else { break };
            self.forget_below(lowest + 1);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.bytes);
        put_varint(&mut out, self.forgotten_below);
        put_varint(&mut out, self.results.len() as u64);
        let mut next = self.forgotten_below;
        for (&sequence, outcome) in &self.results {
            put_varint(&mut out, sequence - next);
            put_blob(&mut out, outcome);
            // The reserved sequence is never in here.
            next = sequence + 1;
        }
        if !self.held {
            out.push(RELEASED);
        }
        out
    }

    fn decode(used: Revision, bytes: &[u8]) -> Result<Session, Malformed> {
        let mut input = Input(bytes);
        let mut session = Session::new(used);
        session.forgotten_below = input.varint("session watermark")?;
        let count = input.count(SessionBounds::STANDARD.results, 2, "session result count")?;
        let mut next = session.forgotten_below;
        for _ in 0..count {
            let sequence = next
                .checked_add(input.varint("session sequence")?)
                .filter(|&sequence| sequence != SEQUENCE_RESERVED)
                .ok_or(Malformed("session sequence"))?;
            let outcome = input.blob("session outcome")?;
            decode_outcome(outcome)?;
            session.insert(sequence, outcome.into());
            next = sequence + 1;
        }
        if !input.0.is_empty() {
            session.held = false;
            match input.u8("session state")? {
                RELEASED => {}
                _ => return Err(Malformed("session state")),
            }
        }
        input.end("session record length")?;
        Ok(session)
    }
}

fn decode_outcome(bytes: &[u8]) -> Result<Outcome, Malformed> {
    let mut input = Input(bytes);
    let outcome = take_outcome(&mut input)?;
    input.end("session outcome length")?;
    Ok(outcome)
}

fn record_key(session: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(RECORD_KEY_BYTES);
    key.push(RECORD_PREFIX);
    key.extend_from_slice(&session.to_be_bytes());
    key
}

impl Sessions {
    /// The bounds it keeps to.
    pub(super) fn bounds(&self) -> SessionBounds {
        self.bounds
    }

    /// None yet.
    pub(super) fn new(bounds: SessionBounds) -> Sessions {
        let (by_id, held, released) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Sessions { bounds, by_id, held, released, dirty: BTreeSet::new(), dirty_bytes: 0 }
    }

    /// Reads the sessions that a store holds.
    pub(super) fn load(view: &impl View, bounds: SessionBounds) -> Result<Sessions, StoreError> {
        let mut sessions = Sessions::new(bounds);
        let scan = Scan {
            lower: Bound::Included(&[RECORD_PREFIX]),
            upper: Bound::Excluded(&[RECORD_PREFIX + 1]),
            ..Scan::all(Space::Meta)
        };
        let mut bad = None;
        view.scan(&scan, &mut |row| {
            let read = (row.key[1..].try_into().map_err(|_| Malformed("session record key")))
                .and_then(|id| {
                    Ok((u64::from_be_bytes(id), Session::decode(row.revision, row.value)?))
                });
            let read = read.and_then(|(id, session)| {
                // Two sessions that one entry used last: no log does that.
                let used = session.used;
                if sessions.held.contains_key(&used) || sessions.released.contains_key(&used) {
                    return Err(Malformed("session record revision"));
                }
                sessions.place(session.held).insert(used, id);
                sessions.by_id.insert(id, session);
                Ok(())
            });
            match read {
                Ok(()) => ControlFlow::Continue(()),
                Err(source) => {
                    bad = Some(StoreError::BadRecord { key: row.key.to_vec(), source });
                    ControlFlow::Break(())
                }
            }
        })?;
        match bad {
            Some(error) => Err(error),
            None => Ok(sessions),
        }
    }

    /// How many sessions there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    fn place(&mut self, held: bool) -> &mut BTreeMap<Revision, u64> {
        if held { &mut self.held } else { &mut self.released }
    }

    /// Begins the session that is named after the log index of its command, in a free place or in that of a session
    /// that may be forgotten.
    pub(super) fn open(&mut self, index: Revision) -> Outcome {
        while self.by_id.len() >= self.bounds.sessions {
            let Some(session) = self.makes_room(index) else { return Outcome::SessionsFull };
            self.close(session);
        }
        self.by_id.insert(index, Session::new(index));
        self.held.insert(index, index);
        self.dirty.insert(index);
        Outcome::SessionOpened { session: index }
    }

    /// The session that gives its place to one that is opened at `index`: of those that are released the one that was
    /// named first, else of those that are held.
    fn makes_room(&self, index: Revision) -> Option<u64> {
        let old = |sessions: &BTreeMap<Revision, u64>, entries: u64| {
            let (&used, &session) = sessions.first_key_value()?;
            (index - used > entries).then_some(session)
        };
        old(&self.released, self.bounds.released_entries)
            .or_else(|| old(&self.held, self.bounds.held_entries))
    }

    /// Forgets a session.
    pub(super) fn close(&mut self, session: u64) -> Outcome {
        if let Some(closed) = self.by_id.remove(&session) {
            self.place(closed.held).remove(&closed.used);
            self.dirty.insert(session);
        }
        Outcome::SessionClosed
    }

    /// The connection that held a session, and has asked for sequences up to this one, has ended. Whoever has gone on
    /// beyond that holds it now.
    pub(super) fn release(&mut self, index: Revision, session: u64, sequence: u64) -> Outcome {
        let reached = self.by_id.get(&session).map(Session::reached);
        if reached.is_some_and(|reached| reached <= sequence) {
            self.names(index, session, false);
        }
        Outcome::SessionReleased
    }

    /// An entry names a session, which is held from then on or not.
    fn names(&mut self, index: Revision, id: u64, held: bool) -> Option<&mut Session> {
        let session = self.by_id.get_mut(&id)?;
        if self.dirty.insert(id) {
            self.dirty_bytes += session.bytes;
        }
        let (before, used) = (session.held, session.used);
        (session.held, session.used) = (held, index);
        self.place(before).remove(&used);
        self.place(held).insert(index, id);
        self.by_id.get_mut(&id)
    }

    /// What to answer a stamped write without doing it; or none when it is new: then it is done,
    /// and [`Sessions::remember`] follows.
    pub(super) fn recall(
        &mut self,
        index: Revision,
        stamp: &SessionStamp,
    ) -> Result<Option<Outcome>, StoreError> {
        let Some(session) = self.names(index, stamp.session, true) else {
            return Ok(Some(Outcome::SessionUnknown));
        };
        session.forget_below(stamp.answered_below);
        if stamp.sequence < session.forgotten_below || stamp.sequence == SEQUENCE_RESERVED {
            return Ok(Some(Outcome::SequenceForgotten));
        }
        session
            .results
            .get(&stamp.sequence)
            .map(|outcome| decode_outcome(outcome))
            .transpose()
            .map_err(|source| StoreError::BadRecord { key: record_key(stamp.session), source })
    }

    /// Remembers what became of a stamped write that [`Sessions::recall`] found new.
    pub(super) fn remember(&mut self, stamp: &SessionStamp, outcome: &Outcome) {
        let mut bytes = Vec::new();
        put_outcome(&mut bytes, outcome);
        if let Outcome::Done { revision, .. } = outcome
            && bytes.len() > self.bounds.outcome_bytes
        {
            bytes.clear();
            put_outcome(&mut bytes, &Outcome::ResultsForgotten { revision: *revision });
        }
        if let Some(session) = self.by_id.get_mut(&stamp.session) {
            session.insert(stamp.sequence, bytes.into_boxed_slice());
            session.shrink(&self.bounds);
        }
    }

    /// About how long the records are that changed since the last [`Sessions::take_changes`], in bytes.
    pub(super) fn changed_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// The records that changed since the last call, sorted by key. A record's revision is the
    /// index that used its session last, whatever batch it was written in.
    pub(super) fn take_changes(&mut self, changes: &mut Vec<Change<'_>>) {
        self.dirty_bytes = 0;
        for id in std::mem::take(&mut self.dirty) {
            changes.push(Change {
                space: Space::Meta,
                key: Cow::Owned(record_key(id)),
                value: self.by_id.get(&id).map(|s| (s.used, Cow::Owned(s.encode()))),
            });
        }
    }
}

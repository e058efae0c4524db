//! What the log says the keys held at every index, and what became of every write: a second, much
//! simpler reading of it, that shares no code with the state machine.
//!
//! Every outcome of the state machine is held against it, and every answer to a client: a write must
//! have the outcome that its place in the log gives it, a read must be what the keys held at one index.
//! That index lies between what was committed when the client began to ask and what is committed when it
//! is answered; so answers to calls on many keys are linearizable too.
//!
//! Which sessions there are is counted here, too. Left out: what a session remembers. Whether a stamped write is a
//! repetition is looked up by its stamp; that its sequence was forgotten is believed.

use super::checks::{Violation, violated};
use crate::kv::{
    Command, Condition, Found, Item, Limits, Op, OpResult, Outcome, Page, Query, Range, Reply,
    SessionBounds, SessionStamp, Test, Write, decode_command,
};
use crate::raft::Index;
use crate::wire::client::{Answer, Call, Consistency};
use std::collections::{BTreeMap, BTreeSet};

/// What a key held from an index on.
#[derive(Debug)]
struct Version {
    index: Index,
    value: Option<Vec<u8>>,
}

/// A session.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Index of the entry that named it last.
    used: Index,
    /// That said that nobody holds it any more.
    released: bool,
    /// The highest sequence that it has come to.
    reached: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The last index that is entered.
    last: Index,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// Writes that were done, and their results.
    done: BTreeMap<Index, (Write, Vec<OpResult>)>,
    sessions: BTreeMap<u64, Known>,
    bounds: SessionBounds,
    /// Sessions whose place another one took, those of them that were held, and what came for such ones: of a session,
    /// of a sequence.
    pub(super) forgotten: [u64; 4],
    /// Sessions that were not opened, for want of a place.
    pub(super) full: u64,
    /// Sessions that were released, and that stayed held because somebody else had gone on.
    pub(super) released: [u64; 2],
    /// What became of stamped writes, by session and sequence.
    stamped: BTreeMap<(u64, u64), Outcome>,
    /// Writes without a stamp whose values are their own.
    unstamped: BTreeSet<Vec<u8>>,
    /// The same, of which somebody was told that they have no effect.
    refused: BTreeSet<Vec<u8>>,
}

impl Ledger {
    /// Of a cluster that remembers so much of sessions.
    pub(super) fn new(bounds: SessionBounds) -> Ledger {
        let (last, full, forgotten, released) = (0, 0, [0; 4], [0; 2]);
        let (keys, done, sessions, stamped) = Default::default();
        let (unstamped, refused) = Default::default();
        Ledger {
            last,
            keys,
            done,
            sessions,
            bounds,
            forgotten,
            full,
            released,
            stamped,
            unstamped,
            refused,
        }
    }

    /// Enters the next command, and compares what the state machine says became of it.
    pub(super) fn enter(
        &mut self,
        index: Index,
        command: &[u8],
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        self.last = index;
        let write = match decode_command(command) {
            Ok(Command::Write(write)) => write,
            Ok(other) => {
                return self.sessions_change(index, &other, outcome);
            }
            Err(_) => return Ok(()),
        };
        if let Some(stamp) = &write.stamp {
            self.uses(index, stamp, outcome)?;
        }
        let own = match write.stamp.map(|stamp| (stamp.session, stamp.sequence)) {
            // Which sequences a session has forgotten is not known here.
            Some(_) if matches!(outcome, Outcome::SessionUnknown | Outcome::SequenceForgotten) => {
                return Ok(());
            }
            Some(stamp) => match self.stamped.get(&stamp) {
                Some(Outcome::Done { revision, .. })
                    if *outcome == (Outcome::ResultsForgotten { revision: *revision }) =>
                {
                    return Ok(());
                }
                Some(before) => before.clone(),
                None => {
                    let own = self.do_it(index, &write);
                    self.stamped.insert(stamp, own.clone());
                    own
                }
            },
            None => {
                self.is_new(index, command, &write)?;
                self.do_it(index, &write)
            }
        };
        if own != *outcome {
            let detail = format!("{index}: {write:?}: {outcome:?}, and not {own:?}");
            return violated("a write has the outcome of its place in the log", detail);
        }
        Ok(())
    }

    /// Sessions are opened, closed and released.
    fn sessions_change(
        &mut self,
        index: Index,
        command: &Command,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        match command {
            Command::OpenSession => return self.opens(index, outcome),
            Command::CloseSession { session } => drop(self.sessions.remove(session)),
            Command::ReleaseSession { session, sequence } => {
                if let Some(known) = self.sessions.get_mut(session) {
                    let elsewhere = known.reached > *sequence;
                    self.released[usize::from(elsewhere)] += 1;
                    if !elsewhere {
                        (known.used, known.released) = (index, true);
                    }
                }
            }
            Command::Write(_) => {}
        }
        Ok(())
    }

    /// A session is opened where there is a place, or one that may be taken back.
    fn opens(&mut self, index: Index, outcome: &Outcome) -> Result<(), Violation> {
        let SessionBounds { sessions, released_entries, held_entries, .. } = self.bounds;
        let mut victim = None;
        if self.sessions.len() >= sessions {
            let keeps =
                |known: &Known| if known.released { released_entries } else { held_entries };
            let may_go = self.sessions.iter().filter(|(_, k)| index > k.used + keeps(k));
            victim = may_go.min_by_key(|(_, k)| (!k.released, k.used)).map(|(id, k)| (*id, *k));
            let detail = || format!("{index}: {outcome:?}; {victim:?} of {:?}", self.sessions);
            match (*outcome == Outcome::SessionsFull, victim) {
                (true, Some(_)) => {
                    return violated("a session is opened where one may make room", detail());
                }
                (false, None) => return violated("no session goes within its age", detail()),
                (true, None) => {
                    self.full += 1;
                    return Ok(());
                }
                (false, Some(_)) => {}
            }
        }
        if let Some((session, known)) = victim {
            self.sessions.remove(&session);
            self.forgotten[0] += 1;
            self.forgotten[3] += u64::from(!known.released);
        }
        self.sessions.insert(index, Known { used: index, released: false, reached: 0 });
        Ok(())
    }

    /// A write names a session: that is known until its place was taken.
    fn uses(
        &mut self,
        index: Index,
        stamp: &SessionStamp,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        let known = self.sessions.get_mut(&stamp.session);
        if known.is_some() == (*outcome == Outcome::SessionUnknown) {
            let detail = format!("{index}: {stamp:?}: {known:?}; {outcome:?}");
            return match known {
                Some(_) => violated("no session goes within its age", detail),
                None => violated("a session whose place was taken is gone", detail),
            };
        }
        self.forgotten[1] += u64::from(known.is_none());
        self.forgotten[2] += u64::from(*outcome == Outcome::SequenceForgotten);
        if let Some(known) = known {
            (known.used, known.released) = (index, false);
            let below = stamp.answered_below.saturating_sub(1);
            let done = if *outcome == Outcome::SequenceForgotten { 0 } else { stamp.sequence };
            known.reached = known.reached.max(below).max(done);
        }
        Ok(())
    }

    /// A write without a stamp is in the log once: nobody may send it again once it may have arrived. Values
    /// of the clients' own keys are never used twice.
    fn is_new(&mut self, index: Index, command: &[u8], write: &Write) -> Result<(), Violation> {
        if !write.ops.iter().any(is_unique) {
            return Ok(());
        }
        if self.refused.contains(command) {
            return violated("what is refused has no effect", format!("{index}: {write:?}"));
        }
        if !self.unstamped.insert(command.to_vec()) {
            let detail = format!("{index}: {write:?}");
            return violated("a write without a session is done once", detail);
        }
        Ok(())
    }

    /// Somebody was told that a write without a stamp is surely not applied: it never is.
    pub(super) fn refused(&mut self, command: &[u8]) -> Result<(), Violation> {
        let Ok(Command::Write(write)) = decode_command(command) else { return Ok(()) };
        if write.ops.iter().any(is_unique) {
            if self.unstamped.contains(command) {
                return violated("what is refused has no effect", format!("{write:?}"));
            }
            self.refused.insert(command.to_vec());
        }
        Ok(())
    }

    /// Whether the log has that write at that index, and it was done.
    pub(super) fn did(&self, index: Index, write: &Write) -> bool {
        let same = |done: &Write| (&done.conditions, &done.ops) == (&write.conditions, &write.ops);
        self.done.get(&index).is_some_and(|(done, _)| same(done))
    }

    /// A log entry that is no command.
    pub(super) fn pass(&mut self, index: Index) {
        self.last = index;
    }

    fn do_it(&mut self, index: Index, write: &Write) -> Outcome {
        let before = index - 1;
        let changes = match self.evaluate(index, before, write) {
            Ok((changes, results)) => {
                self.done.insert(index, (write.clone(), results.clone()));
                let outcome = Outcome::Done { revision: index, results };
                (changes, outcome)
            }
            Err(outcome) => return outcome,
        };
        for (key, value) in changes.0 {
            self.keys.entry(key).or_default().push(Version { index, value });
        }
        changes.1
    }

    /// What a write at `index` does, if the keys are as they are at `at`.
    fn evaluate(&self, index: Index, at: Index, write: &Write) -> Result<Done, Outcome> {
        for (number, Condition { key, test }) in write.conditions.iter().enumerate() {
            let found = self.at(key, at).map(|(revision, _)| revision);
            let holds = match test {
                Test::Absent => found.is_none(),
                Test::Present => found.is_some(),
                Test::Revision(revision) => found == Some(*revision),
            };
            if !holds {
                return Err(Outcome::ConditionFalse { condition: number as u32, found });
            }
        }
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        let mut results = Vec::new();
        for (number, op) in write.ops.iter().enumerate() {
            let now = match changes.get(op.key()) {
                Some(changed) => changed.as_ref().map(|value| (index, value.clone())),
                None => self.at(op.key(), at).map(|(revision, value)| (revision, value.to_vec())),
            };
            results.push(match op {
                Op::Put { key, value } => {
                    changes.insert(key.clone(), Some(value.clone()));
                    OpResult::Put
                }
                Op::Delete { key } => {
                    changes.insert(key.clone(), None);
                    OpResult::Deleted { existed: now.is_some() }
                }
                Op::Get { .. } => {
                    let found = now.map(|(revision, value)| Found { value, revision });
                    OpResult::Got { found }
                }
                Op::Increment { key, by } => {
                    let before = match &now {
                        None => 0,
                        Some((_, value)) => {
                            number_of(value).ok_or(Outcome::NotANumber { op: number as u32 })?
                        }
                    };
                    let overflow = Outcome::Overflow { op: number as u32 };
                    let value = before.checked_add(*by).ok_or(overflow)?;
                    changes.insert(key.clone(), Some(value.to_string().into_bytes()));
                    OpResult::Number { value }
                }
            });
        }
        Ok((changes, results))
    }

    /// What a key held at an index, and since when.
    fn at(&self, key: &[u8], index: Index) -> Option<(Index, &[u8])> {
        let versions = self.keys.get(key)?;
        let behind = versions.partition_point(|version| version.index <= index);
        let version = &versions[behind.checked_sub(1)?];
        version.value.as_ref().map(|value| (version.index, value.as_slice()))
    }

    /// Whether a call that began when everything up to `from` was committed may be answered so now.
    pub(super) fn check(&self, call: &Call, from: Index, answer: &Answer) -> Result<(), Violation> {
        let explained = match (call, answer) {
            (Call::Write(write), Answer::Outcome(outcome)) => {
                self.explains_write(write, from, outcome)
            }
            (Call::Query { query, consistency }, Answer::Reply(reply)) => {
                let fresh = *consistency == Consistency::Linearizable;
                self.explains_reply(query, if fresh { from } else { 0 }, reply)
            }
            _ => true,
        };
        if explained {
            return Ok(());
        }
        let detail = format!("from {from} to {}: {call:?}: {answer:?}", self.last);
        violated("an answer is that of one moment", detail)
    }

    fn explains_write(&self, write: &Write, from: Index, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Done { revision, results } => {
                let same = |(done, gave): &(Write, Vec<OpResult>)| {
                    (&done.conditions, &done.ops, gave) == (&write.conditions, &write.ops, results)
                };
                *revision > from && self.done.get(revision).is_some_and(same)
            }
            Outcome::ResultsForgotten { revision } => *revision > from,
            Outcome::ConditionFalse { .. }
            | Outcome::NotANumber { .. }
            | Outcome::Overflow { .. } => (from..=self.last)
                .any(|at| self.evaluate(at + 1, at, write).is_err_and(|own| own == *outcome)),
            _ => true,
        }
    }

    fn explains_reply(&self, query: &Query, from: Index, reply: &Reply) -> bool {
        match (query, reply) {
            (Query::Get { key }, Reply::Value(found)) => {
                let found = found.as_ref().map(|f| (f.revision, f.value.as_slice()));
                // Only where the key changed it may be another.
                let versions = self.keys.get(key).map_or(&[][..], |versions| versions);
                let later = versions.iter().map(|v| v.index).filter(|&at| at > from);
                std::iter::once(from).chain(later).any(|at| self.at(key, at) == found)
            }
            (Query::Range(range), Reply::Page(page)) => {
                let at = page.revision;
                at >= from && at <= self.last && self.explains_page(range, page)
            }
            _ => false,
        }
    }

    /// Whether a page is that of its index, or the front of it: a node may end a page early, at any key, when it has
    /// met much that is deleted.
    fn explains_page(&self, range: &Range, page: &Page) -> bool {
        let whole = self.page(range, page.revision);
        let Some(cursor) = &page.cursor else { return *page == whole };
        let passed =
            |key: &[u8]| if range.reverse { key >= &cursor[..] } else { key <= &cursor[..] };
        let inside = cursor >= &range.start
            && (range.end.is_empty() || cursor < &range.end)
            && range.after.as_deref().is_none_or(|after| passed(after) && after != cursor);
        let items = whole.items.iter().take_while(|item| passed(&item.key));
        // Behind the last item of the whole page there may be more, which it may not step over.
        let on =
            whole.cursor.as_ref().map(|last| Range { after: Some(last.clone()), ..range.clone() });
        let next = on.map(|range| self.page(&Range { limit: 1, ..range }, page.revision));
        let next = next.as_ref().and_then(|page| page.items.first());
        !range.count_only
            && inside
            && items.eq(&page.items)
            && page.count == page.items.len() as u64
            && next.is_none_or(|item| !passed(&item.key))
    }

    /// A page as it was at an index.
    fn page(&self, range: &Range, at: Index) -> Page {
        let after = range.after.as_deref();
        let inside = |key: &[u8]| {
            let behind = match after {
                None => true,
                Some(after) if range.reverse => key < after,
                Some(after) => key > after,
            };
            key >= &range.start[..] && (range.end.is_empty() || key < &range.end[..]) && behind
        };
        let all = self.keys.keys().filter(|key| inside(key));
        let mut all: Vec<(&Vec<u8>, Index, &[u8])> = all
            .filter_map(|key| self.at(key, at).map(|(revision, value)| (key, revision, value)))
            .collect();
        if range.count_only {
            return Page { count: all.len() as u64, revision: at, ..Page::default() };
        }
        if range.reverse {
            all.reverse();
        }
        let limits = Limits::default();
        let bound = |asked: u32, own: usize| if asked == 0 { own } else { own.min(asked as usize) };
        let (keys_max, bytes_max) =
            (bound(range.limit, limits.max_page_keys), bound(range.bytes, limits.max_page_bytes));
        let mut items: Vec<Item> = Vec::new();
        let mut bytes = 0;
        let total = all.len();
        for (key, revision, value) in all {
            let value = if range.keys_only { Vec::new() } else { value.to_vec() };
            let size = key.len() + value.len();
            if items.len() == keys_max || (!items.is_empty() && bytes + size > bytes_max) {
                break;
            }
            bytes += size;
            items.push(Item { key: key.clone(), value, revision });
        }
        let more = items.len() < total;
        let cursor = items.last().filter(|_| more).map(|item| item.key.clone());
        Page { count: items.len() as u64, cursor, revision: at, items }
    }
}

/// Whether an operation writes what no other one does.
fn is_unique(op: &Op) -> bool {
    let Op::Put { key, .. } = op else { return false };
    key.starts_with(b"key-") || key.starts_with(b"filler-")
}

/// What a write changes, and its results.
type Done = (BTreeMap<Vec<u8>, Option<Vec<u8>>>, Vec<OpResult>);

/// A decimal `i64` as a person writes it.
fn number_of(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let number: i64 = text.parse().ok()?;
    // Without a plus sign, or zeros in front.
    (number.to_string() == text).then_some(number)
}

//! The search for an order of one key's calls.
//!
//! Depth first: at each point one of the calls that may come next is placed: those that were started
//! before any unplaced call was answered. What was tried (calls placed, state of the key) is
//! remembered, so that no such point is left twice (Lowe). What keeps real histories cheap:
//!
//! - A read that fits the present state is placed at once: it changes nothing, and later it might
//!   not fit (the same for everything else that changes nothing).
//! - Writes with known revisions follow one another by revision.
//! - A value that is still to be read is left only if another write can bring it back.
//! - A write that nobody will see is placed where the present state will not be seen either.
//! - Of equal calls the one that must come earliest is tried; so of writes whose values nobody reads.
//! - A write without known outcome is tried only where something may depend on it, and is not followed
//!   by a write that depends on nothing: it might as well never have been.

use super::{Answer, Call, End, Op};
use crate::kv::{Revision, Test};
use std::collections::{BTreeMap, BTreeSet};

/// What came of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is an order.
    Explained {
        /// States looked at.
        states: usize,
    },
    /// There is none.
    Unexplained,
    /// Too many states.
    Undecided,
}

/// A value, comparable in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Absent,
    Number(i64),
    Text(u32),
}

/// The key between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    value: Value,
    /// Of the write that stored the value, as far as it is known.
    revision: Option<Revision>,
    /// Every later revision is greater.
    floor: Revision,
}

/// The kind of all writes of values that nobody reads (any more).
const UNREAD: u32 = u32::MAX;

const FIRST: State = State { value: Value::Absent, revision: None, floor: 0 };

/// A call with its answer: a step from one state to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Read {
        value: Value,
        revision: Option<Revision>,
    },
    Put {
        value: Value,
    },
    Delete {
        existed: Option<bool>,
    },
    Cas {
        test: By,
        value: Value,
    },
    Mismatch {
        test: By,
        found: Option<Option<Revision>>,
    },
    Add {
        by: i64,
        sum: Option<i64>,
    },
    /// The answer belongs to another question.
    Nonsense,
}

/// [`Test`] with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Absent,
    Present,
    Revision(Revision),
}

#[derive(Debug)]
struct Item {
    called: u64,
    /// `u64::MAX` when open.
    returned: u64,
    open: bool,
    step: Step,
    told: Option<Revision>,
    /// Place among the answered calls, or among the open ones, by start.
    slot: usize,
    /// Equal calls have equal kinds.
    kind: u32,
    /// The earliest answer of the call and of those who read what it wrote.
    urgency: u64,
}

/// Searches an order for the calls of one key; each of them counts.
pub(super) fn search(calls: &[&Call], states_max: usize) -> Verdict {
    Search::new(calls).run(states_max)
}

#[derive(Default)]
struct Interned(BTreeMap<Vec<u8>, u32>);

impl Interned {
    fn value(&mut self, bytes: &[u8]) -> Value {
        let number = str::from_utf8(bytes).ok().and_then(|text| text.parse::<i64>().ok());
        // Only the one form that an increment writes is a number.
        if let Some(n) = number.filter(|n| n.to_string().as_bytes() == bytes) {
            return Value::Number(n);
        }
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        Value::Text(*self.0.entry(bytes.to_vec()).or_insert(next))
    }

    fn step(&mut self, call: &Call) -> Step {
        let answer = match &call.end {
            End::Answered { answer, .. } => Some(answer),
            End::Open | End::Refused => None,
        };
        match (&call.op, answer) {
            (Op::Get, Some(Answer::Found(found))) => match found {
                Some(seen) => {
                    Step::Read { value: self.value(&seen.value), revision: seen.revision }
                }
                None => Step::Read { value: Value::Absent, revision: None },
            },
            (Op::Put { value }, None | Some(Answer::Written { .. })) => {
                Step::Put { value: self.value(value) }
            }
            (Op::Delete, None) => Step::Delete { existed: None },
            (Op::Delete, Some(Answer::Deleted { existed, .. })) => {
                Step::Delete { existed: *existed }
            }
            (Op::Cas { test, value }, None | Some(Answer::Written { .. })) => {
                Step::Cas { test: by(*test), value: self.value(value) }
            }
            (Op::Cas { test, .. }, Some(Answer::Mismatch { found })) => {
                Step::Mismatch { test: by(*test), found: *found }
            }
            (Op::Increment { by }, None) => Step::Add { by: *by, sum: None },
            (Op::Increment { by }, Some(Answer::Number { value, .. })) => {
                Step::Add { by: *by, sum: Some(*value) }
            }
            _ => Step::Nonsense,
        }
    }
}

fn by(test: Test) -> By {
    match test {
        Test::Absent => By::Absent,
        Test::Present => By::Present,
        Test::Revision(revision) => By::Revision(revision),
    }
}

/// How many of each kind are not placed yet.
#[derive(Debug, Default)]
struct Left {
    answered: usize,
    readers: BTreeMap<Value, usize>,
    readers_of: BTreeMap<Revision, usize>,
    producers: BTreeMap<Value, usize>,
    /// Calls that depend on the state otherwise than by reading it.
    sensitive: usize,
}

fn count<K: Ord>(counts: &BTreeMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or(0)
}

fn change<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K, placed: bool) {
    let entry = counts.entry(key).or_default();
    *entry = if placed { *entry - 1 } else { *entry + 1 };
}

impl Left {
    fn change(&mut self, item: &Item, placed: bool) {
        let add = |n: &mut usize, by: bool| {
            *n = if placed { *n - usize::from(by) } else { *n + usize::from(by) }
        };
        add(&mut self.answered, !item.open);
        match item.step {
            Step::Read { value, revision } => {
                change(&mut self.readers, value, placed);
                if let Some(revision) = revision {
                    change(&mut self.readers_of, revision, placed);
                }
            }
            Step::Put { value } | Step::Cas { value, .. } => {
                change(&mut self.producers, value, placed);
            }
            Step::Delete { .. } => change(&mut self.producers, Value::Absent, placed),
            Step::Mismatch { .. } | Step::Add { .. } | Step::Nonsense => {}
        }
        add(&mut self.sensitive, sensitive(&item.step));
    }
}

fn sensitive(step: &Step) -> bool {
    match step {
        Step::Cas { .. } | Step::Mismatch { .. } | Step::Add { .. } => true,
        Step::Delete { existed } => existed.is_some(),
        Step::Read { .. } | Step::Put { .. } | Step::Nonsense => false,
    }
}

/// Invariants: `next` and `prev` link the items that are not placed, by start, through `head`;
/// `trail` holds the placed ones in their order; `left` counts the others.
struct Search {
    items: Vec<Item>,
    head: usize,
    next: Vec<usize>,
    prev: Vec<usize>,
    placed: Vec<bool>,
    /// Items of the answered calls by slot, and of the open ones.
    answered: Vec<usize>,
    open: Vec<usize>,
    trail: Vec<usize>,
    left: Left,
    /// The known revisions, ascending, and how many of their writes are placed.
    told: Vec<Revision>,
    told_placed: usize,
    /// Numbers may come from increments.
    adds: bool,
    state: State,
}

/// A point where a choice was made.
struct Choice {
    candidates: Vec<usize>,
    tried: usize,
    trail: usize,
    state: State,
}

impl Search {
    fn new(calls: &[&Call]) -> Search {
        let mut sorted: Vec<&Call> = calls.to_vec();
        // Equal starts in the order of their answers, so that the input's order does not matter much.
        sorted.sort_by_key(|call| (call.called, call.returned().unwrap_or(u64::MAX)));
        let mut values = Interned::default();
        let mut kinds: BTreeMap<(Step, Option<Revision>), u32> = BTreeMap::new();
        let (mut answered, mut open) = (Vec::new(), Vec::new());
        let mut first_read: BTreeMap<Value, u64> = BTreeMap::new();
        let mut items = Vec::with_capacity(sorted.len());
        for (at, call) in sorted.iter().enumerate() {
            let step = values.step(call);
            let (returned, told) = (call.returned().unwrap_or(u64::MAX), call.revision());
            let is_open = call.returned().is_none();
            let slots = if is_open { &mut open } else { &mut answered };
            slots.push(at);
            let slot = slots.len() - 1;
            let next = u32::try_from(kinds.len()).unwrap_or(u32::MAX);
            let kind = *kinds.entry((step, told)).or_insert(next);
            if let Step::Read { value, .. } = step {
                let first = first_read.entry(value).or_insert(u64::MAX);
                *first = returned.min(*first);
            }
            let (called, urgency) = (call.called, returned);
            items.push(Item { called, returned, open: is_open, step, told, slot, kind, urgency });
        }
        let mut left = Left::default();
        for item in &mut items {
            if let Step::Put { value } | Step::Cas { value, .. } = item.step {
                item.urgency =
                    first_read.get(&value).map_or(item.returned, |&r| r.min(item.returned));
            }
            left.change(item, false);
        }
        let head = items.len();
        let mut told: Vec<Revision> = items.iter().filter_map(|item| item.told).collect();
        told.sort_unstable();
        Search {
            head,
            next: (0..=head).map(|at| if at == head { 0 } else { at + 1 }).collect(),
            prev: (0..=head).map(|at| if at == 0 { head } else { at - 1 }).collect(),
            placed: vec![false; head],
            answered,
            open,
            trail: Vec::with_capacity(head),
            left,
            told,
            told_placed: 0,
            adds: items.iter().any(|item| matches!(item.step, Step::Add { .. })),
            state: FIRST,
            items,
        }
    }

    fn run(mut self, states_max: usize) -> Verdict {
        let unread = |value: &Value| *value != Value::Absent && !self.can_come(value);
        if self.left.readers.keys().any(unread) {
            return Verdict::Unexplained;
        }
        let mut seen: BTreeSet<Box<[u64]>> = BTreeSet::new();
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            self.place_what_changes_nothing();
            if self.left.answered == 0 {
                return Verdict::Explained { states: seen.len() };
            }
            let candidates =
                if seen.insert(self.fingerprint()) { self.candidates() } else { Vec::new() };
            if seen.len() > states_max {
                return Verdict::Undecided;
            }
            let (trail, state) = (self.trail.len(), self.state);
            choices.push(Choice { candidates, tried: 0, trail, state });
            // The next candidate of the last choice that has one.
            loop {
                let Some(choice) = choices.last_mut() else { return Verdict::Unexplained };
                let candidate = choice.candidates.get(choice.tried).copied();
                choice.tried += 1;
                let (trail, state) = (choice.trail, choice.state);
                self.unplace(trail);
                self.state = state;
                match candidate {
                    Some(at) => {
                        if let Some(state) = self.step(at) {
                            self.place(at, state);
                            break;
                        }
                    }
                    None => {
                        choices.pop();
                    }
                }
            }
        }
    }

    fn place(&mut self, at: usize, state: State) {
        let (next, prev) = (self.next[at], self.prev[at]);
        self.next[prev] = next;
        self.prev[next] = prev;
        self.placed[at] = true;
        self.trail.push(at);
        self.left.change(&self.items[at], true);
        self.told_placed += usize::from(self.items[at].told.is_some());
        self.state = state;
    }

    /// Takes back everything placed after the trail was this long.
    fn unplace(&mut self, trail: usize) {
        while self.trail.len() > trail {
            let Some(at) = self.trail.pop() else { return };
            let (next, prev) = (self.next[at], self.prev[at]);
            self.next[prev] = at;
            self.prev[next] = at;
            self.placed[at] = false;
            self.left.change(&self.items[at], false);
            self.told_placed -= usize::from(self.items[at].told.is_some());
        }
    }

    /// Calls that may be next as far as time is concerned: no unplaced call was answered before
    /// they were started.
    fn in_time(&self, mut visit: impl FnMut(usize)) {
        let mut bound = u64::MAX;
        let mut at = self.next[self.head];
        while at != self.head && self.items[at].called <= bound {
            bound = bound.min(self.items[at].returned);
            visit(at);
            at = self.next[at];
        }
    }

    fn place_what_changes_nothing(&mut self) {
        loop {
            let mut fitting = Vec::new();
            self.in_time(|at| {
                if !self.items[at].open && self.changes_nothing(at) {
                    fitting.push(at);
                }
            });
            let placed = self.trail.len();
            for at in fitting {
                // The step to a value that nobody will see changes the state's name only.
                if let Some(state) = self.step(at) {
                    self.place(at, state);
                }
            }
            if self.trail.len() == placed {
                return;
            }
        }
    }

    fn changes_nothing(&self, at: usize) -> bool {
        let item = &self.items[at];
        match item.step {
            Step::Read { .. } | Step::Mismatch { .. } => self.step(at) == Some(self.state),
            Step::Delete { existed: Some(false) } => {
                item.told.is_none() && self.state.value == Value::Absent
            }
            Step::Put { value } => {
                item.told.is_none() && self.is_unseen(&value) && self.is_unseen(&self.state.value)
            }
            Step::Delete { existed: None } => {
                let unseen = self.is_unseen(&Value::Absent) && self.is_unseen(&self.state.value);
                item.told.is_none() && unseen
            }
            Step::Delete { .. } | Step::Cas { .. } | Step::Add { .. } | Step::Nonsense => false,
        }
    }

    /// Whether no unplaced call depends on which value this is.
    fn is_unread(&self, value: &Value) -> bool {
        let counts = self.adds && matches!(value, Value::Number(_));
        !counts && count(&self.left.readers, value) == 0
    }

    /// Whether no unplaced call depends on the key having this value.
    fn is_unseen(&self, value: &Value) -> bool {
        self.left.sensitive == 0 && count(&self.left.readers, value) == 0
    }

    /// Calls to be tried, the most urgent first.
    fn candidates(&self) -> Vec<usize> {
        let mut found = Vec::new();
        self.in_time(|at| {
            if (!self.items[at].open || self.may_matter(at)) && self.step(at).is_some() {
                found.push(at);
            }
        });
        found.sort_by_key(|&at| (self.items[at].returned, at));
        let mut kinds = Vec::with_capacity(found.len());
        found.retain(|&at| {
            let item = &self.items[at];
            let kind = match item.step {
                Step::Put { value } if item.told.is_none() && self.is_unread(&value) => UNREAD,
                _ => item.kind,
            };
            let new = !kinds.contains(&kind);
            kinds.push(kind);
            new
        });
        found.sort_by_key(|&at| self.items[at].urgency);
        found
    }

    /// Whether anything could depend on this open write.
    fn may_matter(&self, at: usize) -> bool {
        let own = usize::from(sensitive(&self.items[at].step));
        let read = |value: &Value| count(&self.left.readers, value) > 0;
        self.left.sensitive > own
            || match self.items[at].step {
                Step::Put { value } | Step::Cas { value, .. } => read(&value),
                Step::Delete { .. } => read(&Value::Absent),
                _ => true,
            }
    }

    /// Whether the last call placed is an open one.
    fn after_open(&self) -> bool {
        self.trail.last().is_some_and(|&at| self.items[at].open)
    }

    /// The least known revision whose write is not placed.
    fn next_told(&self) -> Revision {
        self.told.get(self.told_placed).copied().unwrap_or(Revision::MAX)
    }

    /// Whether an unplaced write can bring this value about.
    fn can_come(&self, value: &Value) -> bool {
        count(&self.left.producers, value) > 0 || (self.adds && matches!(value, Value::Number(_)))
    }

    /// The state after this call, none when it cannot be next.
    fn step(&self, at: usize) -> Option<State> {
        let item = &self.items[at];
        let now = self.state;
        let blind = matches!(item.step, Step::Put { .. } | Step::Delete { existed: None });
        if blind && self.after_open() {
            return None;
        }
        match item.step {
            Step::Read { value, revision } => {
                let same = value == now.value;
                same.then_some(())?;
                revision.map_or(Some(now), |revision| self.bind(now, revision))
            }
            Step::Put { value } => self.written(now, value, item.told),
            Step::Delete { existed } => {
                let fits = existed.is_none_or(|existed| existed == (now.value != Value::Absent));
                fits.then_some(())?;
                self.written(now, Value::Absent, item.told)
            }
            Step::Cas { test, value } => {
                let now = self.passes(now, test)?;
                self.written(now, value, item.told)
            }
            Step::Mismatch { test, found } => self.fails(now, test, found),
            Step::Add { by, sum } => {
                let held = match now.value {
                    Value::Absent => 0,
                    Value::Number(n) => n,
                    Value::Text(_) => return None,
                };
                let new = held.checked_add(by).filter(|new| sum.is_none_or(|sum| sum == *new))?;
                self.written(now, Value::Number(new), item.told)
            }
            Step::Nonsense => None,
        }
    }

    /// The same state, its revision being known now.
    fn bind(&self, now: State, revision: Revision) -> Option<State> {
        match now.revision {
            Some(known) => (known == revision).then_some(now),
            None if revision > now.floor && revision < self.next_told() => {
                Some(State { revision: Some(revision), floor: revision, ..now })
            }
            None => None,
        }
    }

    fn passes(&self, now: State, test: By) -> Option<State> {
        match (test, now.value) {
            (By::Absent, Value::Absent) => Some(now),
            (By::Absent, _) | (_, Value::Absent) => None,
            (By::Present, _) => Some(now),
            (By::Revision(revision), _) => self.bind(now, revision),
        }
    }

    fn fails(&self, now: State, test: By, found: Option<Option<Revision>>) -> Option<State> {
        let absent = now.value == Value::Absent;
        match found {
            Some(None) => (absent && test != By::Absent).then_some(now),
            Some(Some(revision)) => {
                let fails = !absent && test != By::Present && test != By::Revision(revision);
                fails.then_some(())?;
                self.bind(now, revision)
            }
            None => {
                let fails = match test {
                    By::Absent => !absent,
                    By::Present => absent,
                    By::Revision(revision) => absent || now.revision != Some(revision),
                };
                fails.then_some(now)
            }
        }
    }

    fn written(&self, now: State, value: Value, told: Option<Revision>) -> Option<State> {
        let awaited = now.revision.is_some_and(|r| count(&self.left.readers_of, &r) > 0);
        let lost = value != now.value
            && count(&self.left.readers, &now.value) > 0
            && !self.can_come(&now.value);
        if awaited || lost {
            return None;
        }
        let revision = told.filter(|_| value != Value::Absent);
        match told {
            Some(r) if r <= now.floor || r != self.next_told() => None,
            Some(floor) => Some(State { value, revision, floor }),
            None => Some(State { value, revision, floor: now.floor }),
        }
    }

    /// Everything on which the rest of the search depends: the state, and what is placed. Of the
    /// answered calls all before the first unplaced one are placed, and none that was started after
    /// that one's answer.
    fn fingerprint(&self) -> Box<[u64]> {
        let (tag, value) = match self.state.value {
            value if value != Value::Absent && self.is_unread(&value) => (3, 0),
            Value::Absent => (0, 0),
            Value::Number(n) => (1, n.cast_unsigned()),
            Value::Text(id) => (2, u64::from(id)),
        };
        let mut at = self.next[self.head];
        while at != self.head && self.items[at].open {
            at = self.next[at];
        }
        let first = self.items.get(at).map_or(self.answered.len(), |item| item.slot);
        let tag = tag | u64::from(self.after_open()) << 8;
        let mut words =
            vec![tag, value, self.state.revision.unwrap_or(0), self.state.floor, first as u64];
        let end = self.answered.get(first).map_or(0, |&at| self.items[at].returned);
        let window = self.answered[first..].iter().take_while(|&&at| self.items[at].called <= end);
        put_bits(&mut words, window.map(|&at| self.placed[at]));
        put_bits(&mut words, self.open.iter().map(|&at| self.placed[at]));
        words.into_boxed_slice()
    }
}

/// Appends how many words of bits there are, and them.
fn put_bits(words: &mut Vec<u64>, bits: impl Iterator<Item = bool>) {
    let start = words.len();
    words.push(0);
    for (n, _) in bits.enumerate().filter(|(_, set)| *set) {
        words.resize(words.len().max(start + 2 + n / 64), 0);
        words[start + 1 + n / 64] |= 1 << (n % 64);
    }
    words[start] = (words.len() - start - 1) as u64;
}

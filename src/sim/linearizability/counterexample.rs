//! The smallest part of a history that shows what is wrong with it, for a person.

use super::search::{Verdict, search};
use super::{Answer, Call, End, Op};
use crate::kv::{Revision, Test};
use std::collections::BTreeMap;
use std::fmt;

/// Calls that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The key.
    pub key: Vec<u8>,
    /// What is wrong.
    pub why: String,
    /// The calls that show it, by start.
    pub calls: Vec<Call>,
    /// Position in `calls` of the one with which it went wrong.
    pub culprit: usize,
    /// Calls of the key, or of all keys when revisions are wrong.
    pub of: usize,
}

/// States looked at for one attempt to leave calls out.
const ATTEMPT_STATES_MAX: usize = 20_000;
/// States looked at for one beginning. Where that is not enough, the beginning shown is longer than
/// it need be.
const BEGINNING_STATES_MAX: usize = 20_000;
/// Calls looked at in all attempts together: some seconds, for histories that do not get smaller.
const ATTEMPTS_CALLS_MAX: usize = 300_000;
/// Calls that are printed at most, the last ones.
const PRINTED_MAX: usize = 32;
/// Bytes of a value that are printed.
const VALUE_PRINTED_MAX: usize = 32;

/// Finds a small part of these calls of one key that no order explains, there being none for all of
/// them; the key has `of` calls.
pub(super) fn shortest(calls: &[&Call], of: usize) -> Counterexample {
    // What is no order for a beginning is none for the whole: search the shortest beginning.
    let mut ends: Vec<u64> = calls.iter().filter_map(|call| call.returned()).collect();
    ends.sort_unstable();
    let (mut good, mut bad) = (0, ends.len());
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if unexplained(&beginning(calls, ends[middle - 1]), BEGINNING_STATES_MAX) {
            bad = middle;
        } else {
            good = middle;
        }
    }
    let end = ends.get(bad.wrapping_sub(1)).copied().unwrap_or(u64::MAX);
    let all = beginning(calls, end);
    let calls = smaller(&all);
    let answered = calls.iter().enumerate().filter(|(_, call)| call.returned().is_some());
    let culprit = answered.max_by_key(|(_, call)| call.returned()).map_or(0, |(at, _)| at);
    let culprit_call = calls.get(culprit);
    let key = culprit_call.map(|call| call.key.clone()).unwrap_or_default();
    let why = match culprit_call {
        Some(call) if unwritten(call, &calls) => "a value was read that nobody wrote".to_owned(),
        _ => "no order explains these calls".to_owned(),
    };
    Counterexample { key, why, calls, culprit, of }
}

/// What had happened until a moment: calls started later are left out, those answered later are
/// open.
fn beginning(calls: &[&Call], end: u64) -> Vec<Call> {
    let started = calls.iter().filter(|call| call.called <= end);
    let known = started.map(|call| match call.returned() {
        Some(at) if at > end => Call { end: End::Open, ..Call::clone(call) },
        _ => Call::clone(call),
    });
    let mut known: Vec<Call> = known.filter(Call::counts).collect();
    known.sort_by_key(|call| (call.called, call.returned().unwrap_or(u64::MAX)));
    known
}

fn unexplained(calls: &[Call], states_max: usize) -> bool {
    let calls: Vec<&Call> = calls.iter().collect();
    search(&calls, states_max) == Verdict::Unexplained
}

fn unwritten(read: &Call, calls: &[Call]) -> bool {
    let End::Answered { answer: Answer::Found(Some(seen)), .. } = &read.end else { return false };
    !calls.iter().any(|call| match &call.op {
        Op::Put { value } | Op::Cas { value, .. } => *value == seen.value,
        Op::Increment { .. } => true,
        Op::Get | Op::Delete => false,
    })
}

/// Leaves out whatever can be left out while the rest stays unexplained.
fn smaller(calls: &[Call]) -> Vec<Call> {
    // The attempts are made with calls that say less; `kept` names the calls as they were.
    let mut weak = calls.to_vec();
    for weaken in [weaken_delete, weaken_cas, weaken_increment] {
        let weaker: Vec<Call> = weak.iter().map(weaken).collect();
        if unexplained(&weaker, ATTEMPT_STATES_MAX) {
            weak = weaker;
        }
    }
    let mut kept: Vec<usize> = (0..calls.len()).collect();
    let mut units = units(&weak);
    let mut effort = 0;
    let mut stays_bad = |kept: &[usize], without: &[Vec<usize>]| {
        let mut without = without.concat();
        without.sort_unstable();
        let stays = |call: &usize| without.binary_search(call).is_err();
        let rest: Vec<usize> = kept.iter().copied().filter(stays).collect();
        let attempt: Vec<Call> = rest.iter().map(|&call| weak[call].clone()).collect();
        effort += attempt.len();
        let bad = effort <= ATTEMPTS_CALLS_MAX && unexplained(&attempt, ATTEMPT_STATES_MAX);
        bad.then_some(rest)
    };
    // What went wrong last mostly has to do with few other calls of late.
    let mut few = 2;
    while few < units.len() {
        let old = units.len() - few;
        if let Some(rest) = stays_bad(&kept, &units[..old]) {
            units.drain(..old);
            kept = rest;
            break;
        }
        few *= 4;
    }
    let mut size = units.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < units.len() {
            let last = (at + size).min(units.len());
            match stays_bad(&kept, &units[at..last]) {
                Some(rest) => {
                    units.drain(at..last);
                    kept = rest;
                }
                None => at = last,
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    kept.into_iter().map(|call| calls[call].clone()).collect()
}

/// A delete that does not say what it found: less to explain, so what is still unexplained was so
/// before.
fn weaken_delete(call: &Call) -> Call {
    let mut call = call.clone();
    if let End::Answered { answer: Answer::Deleted { existed, .. }, .. } = &mut call.end {
        *existed = None;
    }
    call
}

/// A conditional put that found its condition true is a put, for which there is less to explain.
fn weaken_cas(call: &Call) -> Call {
    let mut call = call.clone();
    if let (Op::Cas { value, .. }, End::Answered { answer: Answer::Written { .. }, .. }) =
        (&call.op, &call.end)
    {
        call.op = Op::Put { value: value.clone() };
    }
    call
}

/// An increment that told its sum is a put of the sum, for which there is less to explain.
fn weaken_increment(call: &Call) -> Call {
    let mut call = call.clone();
    if let End::Answered { answer: answer @ Answer::Number { .. }, .. } = &mut call.end
        && let Answer::Number { value, revision } = *answer
    {
        *answer = Answer::Written { revision };
        call.op = Op::Put { value: value.to_string().into_bytes() };
    }
    call
}

/// Calls that may be left out together: if the history had an order, so would the rest. That holds
/// for single reads, and, where writes do not depend on what they find, for all writes of a value
/// together with all reads of it. By their last calls.
fn units(calls: &[Call]) -> Vec<Vec<usize>> {
    let reads = |call: &Call| {
        let missed = matches!(&call.end, End::Answered { answer: Answer::Mismatch { .. }, .. });
        call.op == Op::Get || missed
    };
    let depends = |call: &Call| match (&call.op, &call.end) {
        (Op::Delete, End::Answered { answer: Answer::Deleted { existed, .. }, .. }) => {
            existed.is_some()
        }
        (op, _) => matches!(op, Op::Cas { .. } | Op::Increment { .. }),
    };
    let all = || calls.iter().enumerate();
    let single = all().filter(|(_, call)| reads(call)).map(|(at, _)| vec![at]);
    if calls.iter().any(depends) {
        return single.collect();
    }
    let mut by_value: BTreeMap<Option<&[u8]>, Vec<usize>> = BTreeMap::new();
    for (at, call) in all() {
        let value = match (&call.op, &call.end) {
            (Op::Put { value }, _) => Some(&value[..]),
            (_, End::Answered { answer: Answer::Found(Some(seen)), .. }) => Some(&seen.value[..]),
            _ => None,
        };
        by_value.entry(value).or_default().push(at);
    }
    // Reads of values that have to stay may still go one by one.
    let mut units: Vec<Vec<usize>> = by_value.into_values().chain(single).collect();
    units.sort_by_key(|unit| unit.last().copied());
    units
}

/// Two writes whose revisions do not grow with time, be they of different keys.
pub(super) fn revisions_against_time(history: &[Call]) -> Option<Counterexample> {
    let told = |call: &Call| Some((call.returned()?, call.revision()?));
    let writes: Vec<(u64, Revision, &Call)> =
        history.iter().filter_map(|call| told(call).map(|(at, r)| (at, r, call))).collect();
    let mut by_end = writes.clone();
    by_end.sort_by_key(|(at, ..)| *at);
    let mut by_start = writes;
    by_start.sort_by_key(|(_, _, call)| call.called);
    let mut ended = by_end.into_iter().peekable();
    let mut greatest: Option<(Revision, &Call)> = None;
    for (_, revision, call) in by_start {
        while let Some((_, r, before)) = ended.next_if(|(at, ..)| *at < call.called) {
            if greatest.is_none_or(|(most, _)| r > most) {
                greatest = Some((r, before));
            }
        }
        if let Some((most, before)) = greatest
            && most >= revision
        {
            return Some(Counterexample {
                key: call.key.clone(),
                why: format!("revisions go back: {most}, and after that {revision}"),
                calls: vec![before.clone(), call.clone()],
                culprit: 1,
                of: history.len(),
            });
        }
    }
    None
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.escape_ascii();
        writeln!(f, "key \"{key}\": {} ({} of {} calls)", self.why, self.calls.len(), self.of)?;
        writeln!(f, "  {:>10} {:>10}  who", "called", "answered")?;
        let skip = self.calls.len().saturating_sub(PRINTED_MAX);
        if skip > 0 {
            writeln!(f, "  ... {skip} earlier calls")?;
        }
        for (at, call) in self.calls.iter().enumerate().skip(skip) {
            let mark = if at == self.culprit { '>' } else { ' ' };
            let end = call.returned().map_or("?".to_owned(), |at| at.to_string());
            write!(f, "{mark} {:>10} {end:>10}  client {}: ", call.called, call.client)?;
            put_op(f, &call.op)?;
            put_end(f, &call.end)?;
            if call.key != self.key {
                write!(f, " (key \"{}\")", call.key.escape_ascii())?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn put_value(f: &mut fmt::Formatter<'_>, value: &[u8]) -> fmt::Result {
    let (head, more) = match value.get(..VALUE_PRINTED_MAX) {
        Some(head) if value.len() > VALUE_PRINTED_MAX => (head, "..."),
        _ => (value, ""),
    };
    write!(f, "\"{}\"{more}", head.escape_ascii())
}

fn put_op(f: &mut fmt::Formatter<'_>, op: &Op) -> fmt::Result {
    match op {
        Op::Get => f.write_str("get"),
        Op::Put { value } => f.write_str("put ").and_then(|()| put_value(f, value)),
        Op::Delete => f.write_str("delete"),
        Op::Cas { test, value } => {
            f.write_str("put ").and_then(|()| put_value(f, value))?;
            match test {
                Test::Absent => f.write_str(" if absent"),
                Test::Present => f.write_str(" if present"),
                Test::Revision(revision) => write!(f, " if revision {revision}"),
            }
        }
        Op::Increment { by } => write!(f, "increment by {by}"),
    }
}

fn put_end(f: &mut fmt::Formatter<'_>, end: &End) -> fmt::Result {
    let answer = match end {
        End::Open => return f.write_str(" -> outcome unknown"),
        End::Refused => return f.write_str(" -> refused"),
        End::Answered { answer, .. } => answer,
    };
    f.write_str(" -> ")?;
    let revision = match answer {
        Answer::Found(None) => return f.write_str("absent"),
        Answer::Found(Some(seen)) => {
            put_value(f, &seen.value)?;
            seen.revision
        }
        Answer::Written { revision } => {
            f.write_str("done")?;
            *revision
        }
        Answer::Deleted { existed, revision } => {
            f.write_str(match existed {
                Some(true) => "was there",
                Some(false) => "was not there",
                None => "done",
            })?;
            *revision
        }
        Answer::Number { value, revision } => {
            write!(f, "{value}")?;
            *revision
        }
        Answer::Mismatch { found } => {
            f.write_str("condition false")?;
            match found {
                Some(None) => return f.write_str(", absent"),
                Some(found) => *found,
                None => None,
            }
        }
    };
    revision.map_or(Ok(()), |revision| write!(f, ", revision {revision}"))
}

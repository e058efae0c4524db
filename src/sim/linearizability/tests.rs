//! Histories that are known to be good or bad, large ones, and tiny ones against a checker that
//! simply tries every order.

use super::*;
use proptest::prelude::*;
use std::time::Instant;

// ---- made-up histories ----

fn call(client: u64, op: Op, called: u64, end: End) -> Call {
    Call { client, key: b"k".to_vec(), op, called, end }
}

fn put(client: u64, value: &str, called: u64, at: u64) -> Call {
    let answer = Answer::Written { revision: None };
    let op = Op::Put { value: value.into() };
    call(client, op, called, End::Answered { at, answer })
}

fn get(client: u64, value: Option<&str>, called: u64, at: u64) -> Call {
    let found = value.map(|value| Seen { value: value.into(), revision: None });
    call(client, Op::Get, called, End::Answered { at, answer: Answer::Found(found) })
}

fn add(client: u64, sum: i64, called: u64, at: u64) -> Call {
    let answer = Answer::Number { value: sum, revision: None };
    call(client, Op::Increment { by: 1 }, called, End::Answered { at, answer })
}

fn told(mut call: Call, told: Revision) -> Call {
    if let End::Answered { answer, .. } = &mut call.end {
        match answer {
            Answer::Found(Some(Seen { revision, .. }))
            | Answer::Written { revision }
            | Answer::Deleted { revision, .. }
            | Answer::Number { revision, .. } => *revision = Some(told),
            Answer::Found(None) | Answer::Mismatch { .. } => {}
        }
    }
    call
}

fn ended(call: Call, end: End) -> Call {
    Call { end, ..call }
}

fn violation(history: &[Call]) -> Counterexample {
    match check(history) {
        Err(Failure::Violation(example)) => *example,
        other => panic!("a violation expected, not {other:?}"),
    }
}

#[test]
fn overlapping_calls_may_take_effect_in_either_order() {
    // Two writes overlap; one reader sees the one, a later reader the other.
    let history =
        [put(1, "a", 0, 10), put(2, "b", 0, 10), get(3, Some("b"), 1, 9), get(3, Some("a"), 9, 20)];
    let checked = check(&history).unwrap();
    assert_eq!((checked.keys, checked.answered, checked.open), (1, 4, 0));
}

#[test]
fn a_stale_read_is_found_and_shown() {
    // The first value is read again after the second write was answered. Noise on both sides.
    let mut history = vec![put(9, "x", 0, 1), get(9, Some("x"), 2, 3)];
    history.extend([put(1, "a", 10, 20), put(2, "b", 30, 40), get(3, Some("a"), 50, 60)]);
    history.extend([put(9, "y", 70, 80), get(9, Some("y"), 90, 95)]);
    let example = violation(&history);
    assert_eq!(example.calls, history[2..5], "{example}");
    assert_eq!(example.culprit, 2);
    let text = example.to_string();
    assert!(text.contains(">         50         60  client 3: get -> \"a\"\n"), "{text}");
}

#[test]
fn a_read_that_goes_back_and_forth_is_found() {
    // Each read overlaps both writes, but the three together need the first value twice.
    let writes = [put(1, "a", 0, 100), put(2, "b", 0, 100)];
    let reads = [get(3, Some("a"), 1, 2), get(3, Some("b"), 3, 4), get(3, Some("a"), 5, 6)];
    let history: Vec<Call> = writes.into_iter().chain(reads).collect();
    assert_eq!(check(&history[..4]).unwrap().answered, 4);
    assert_eq!(violation(&history).calls.len(), 5);
}

#[test]
fn a_lost_update_is_found() {
    // Two clients read the same revision, both put on top of it, both are told that it worked.
    let on_top = |client, value: &str, called, at| {
        let op = Op::Cas { test: Test::Revision(5), value: value.into() };
        call(client, op, called, End::Answered { at, answer: Answer::Written { revision: None } })
    };
    let base = told(put(1, "a", 0, 1), 5);
    let history = [base.clone(), on_top(2, "b", 2, 10), on_top(3, "c", 2, 10)];
    assert_eq!(violation(&history).calls.len(), 3);
    let missed = Answer::Mismatch { found: Some(Some(7)) };
    let missed = ended(history[2].clone(), End::Answered { at: 10, answer: missed });
    let good = [base, told(history[1].clone(), 7), missed];
    assert_eq!(check(&good).unwrap().answered, 3);
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    let example = violation(&[put(1, "a", 0, 1), get(2, Some("z"), 0, 5)]);
    assert!(example.why.contains("nobody wrote"), "{example}");
    assert_eq!(example.calls, [get(2, Some("z"), 0, 5)]);
}

#[test]
fn a_refused_write_must_not_be_seen() {
    // Of two writes one is refused and one is open; only the open one may be read.
    let refused = ended(put(1, "a", 0, 1), End::Refused);
    let open = ended(put(1, "a", 0, 1), End::Open);
    let read = get(2, Some("a"), 5, 6);
    assert_eq!(violation(&[refused, read.clone()]).calls, std::slice::from_ref(&read));
    let checked = check(&[open, read]).unwrap();
    assert_eq!((checked.answered, checked.open), (1, 1));
}

#[test]
fn an_open_write_may_come_late_or_never_but_not_twice() {
    // It is read after a later write was, which is fine; to be read on both sides of it is not.
    let open = ended(put(1, "a", 0, 1), End::Open);
    let late = [open.clone(), put(2, "b", 2, 3), get(3, Some("b"), 4, 5), get(3, Some("a"), 6, 7)];
    assert_eq!(check(&late).unwrap().open, 1);
    let twice = [open.clone(), get(3, Some("a"), 2, 3), put(2, "b", 4, 5), get(3, Some("a"), 6, 7)];
    assert_eq!(violation(&twice).calls.len(), 4);
    let never = [open, put(2, "b", 2, 3), get(3, Some("b"), 4, 5)];
    assert_eq!(check(&never).unwrap().answered, 2);
}

#[test]
fn an_increment_applied_twice_is_found() {
    // A retry after a lost answer that takes effect a second time. The open call explains one step.
    let open = ended(add(1, 0, 0, 1), End::Open);
    let good = [open.clone(), add(2, 1, 2, 3), add(2, 3, 4, 5), get(3, Some("3"), 6, 7)];
    assert_eq!(check(&good).unwrap().open, 1);
    let bad = [open, add(2, 1, 2, 3), add(2, 4, 4, 5)];
    assert_eq!(violation(&bad).culprit, 2);
    let lost = [add(1, 1, 0, 1), add(2, 1, 2, 3)];
    assert_eq!(violation(&lost).calls.len(), 2);
}

#[test]
fn a_delete_says_whether_the_key_was_there() {
    let delete = |existed, called, at| {
        let answer = Answer::Deleted { existed: Some(existed), revision: None };
        call(1, Op::Delete, called, End::Answered { at, answer })
    };
    let good = [put(1, "a", 0, 1), delete(true, 2, 3), delete(false, 4, 5), get(2, None, 6, 7)];
    assert_eq!(check(&good).unwrap().answered, 4);
    violation(&[put(1, "a", 0, 1), delete(true, 2, 3), delete(true, 4, 5)]);
    violation(&[put(1, "a", 0, 1), delete(true, 2, 3), get(2, Some("a"), 4, 5)]);
}

#[test]
fn revisions_grow_with_time_also_across_keys() {
    // The second write was started after the first was answered, and has a smaller revision.
    let other = Call { key: b"other".to_vec(), ..told(put(2, "b", 5, 6), 4) };
    let example = violation(&[told(put(1, "a", 0, 1), 7), other.clone()]);
    assert!(example.to_string().contains("(key \"k\")"), "{example}");
    let overlapping = Call { called: 0, ..other };
    assert_eq!(check(&[told(put(1, "a", 0, 1), 7), overlapping]).unwrap().keys, 2);
}

#[test]
fn a_read_of_an_open_write_settles_its_revision() {
    // Whoever reads it later must be told the same, and newer writes have greater revisions.
    let open = ended(put(1, "a", 0, 1), End::Open);
    let first = told(get(2, Some("a"), 2, 3), 5);
    let again = |revision| told(get(2, Some("a"), 4, 5), revision);
    assert_eq!(check(&[open.clone(), first.clone(), again(5)]).unwrap().answered, 2);
    violation(&[open.clone(), first.clone(), again(6)]);
    violation(&[open.clone(), first.clone(), told(put(3, "b", 6, 7), 4)]);
    assert_eq!(check(&[open, first, told(put(3, "b", 6, 7), 6)]).unwrap().answered, 2);
}

#[test]
fn an_answer_to_another_question_is_no_order() {
    let odd = End::Answered { at: 2, answer: Answer::Written { revision: None } };
    violation(&[call(1, Op::Get, 1, odd)]);
}

// ---- generated histories ----

/// Numbers from a seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A key as it really is: the truth that the answers of a generated history come from.
type Truth = BTreeMap<u64, (Vec<u8>, Revision)>;

fn execute(truth: &mut Truth, key: u64, op: &Op, revision: Revision, tell: bool) -> Answer {
    let told = Some(revision).filter(|_| tell);
    let held = truth.get(&key).cloned();
    match op {
        Op::Get => {
            Answer::Found(held.map(|(value, r)| Seen { value, revision: Some(r).filter(|_| tell) }))
        }
        Op::Put { value } => {
            truth.insert(key, (value.clone(), revision));
            Answer::Written { revision: told }
        }
        Op::Delete => {
            let existed = truth.remove(&key).is_some();
            Answer::Deleted { existed: Some(existed), revision: told }
        }
        Op::Cas { test, value } => {
            let holds = match test {
                Test::Absent => held.is_none(),
                Test::Present => held.is_some(),
                Test::Revision(wanted) => held.as_ref().is_some_and(|(_, r)| r == wanted),
            };
            if holds {
                truth.insert(key, (value.clone(), revision));
                Answer::Written { revision: told }
            } else {
                Answer::Mismatch { found: Some(held.map(|(_, r)| r)).filter(|_| tell) }
            }
        }
        Op::Increment { by } => {
            let text = held.map_or("0".to_owned(), |(v, _)| String::from_utf8(v).unwrap());
            let value = text.parse::<i64>().unwrap_or(0) + by;
            truth.insert(key, (value.to_string().into_bytes(), revision));
            Answer::Number { value, revision: told }
        }
    }
}

struct Shape {
    calls: usize,
    clients: u64,
    keys: u64,
    tell: bool,
    open_percent: u64,
    op: fn(&mut Dice, u64) -> Op,
}

/// A linearizable history: every call takes effect at one moment between its start and its answer;
/// open calls do so late, or never.
fn good_history(shape: &Shape, seed: u64) -> Vec<Call> {
    let mut dice = Dice(seed | 1);
    let mut free = vec![0; usize::try_from(shape.clients).unwrap()];
    let mut effects = Vec::new();
    let mut calls = Vec::new();
    for number in 0..shape.calls {
        let client = dice.below(shape.clients);
        let own = &mut free[usize::try_from(client).unwrap()];
        let called = *own + dice.below(20);
        let moment = called + dice.below(50);
        let at = moment + dice.below(50);
        *own = at + 1;
        let key = dice.below(shape.keys);
        let op = (shape.op)(&mut dice, number as u64);
        let open = dice.chance(shape.open_percent);
        if !open || dice.chance(50) {
            effects.push((if open { moment + dice.below(500) } else { moment }, number));
        }
        let end = if open { End::Open } else { End::Answered { at, answer: Answer::Found(None) } };
        let key = key.to_string().into_bytes();
        calls.push(Call { client, key, op, called, end });
    }
    effects.sort_unstable();
    let mut truth = Truth::new();
    for (revision, (_, number)) in (1..).zip(effects) {
        let call: &mut Call = &mut calls[number];
        let key = String::from_utf8(call.key.clone()).unwrap().parse().unwrap();
        let answered = execute(&mut truth, key, &call.op, revision, shape.tell);
        if let End::Answered { answer, .. } = &mut call.end {
            *answer = answered;
        }
    }
    calls
}

fn registers(dice: &mut Dice, number: u64) -> Op {
    match dice.below(20) {
        0 => Op::Delete,
        1..=9 => Op::Put { value: number.to_string().into_bytes() },
        _ => Op::Get,
    }
}

fn counters(dice: &mut Dice, _number: u64) -> Op {
    if dice.chance(60) { Op::Increment { by: 1 } } else { Op::Get }
}

/// Makes one late read return what the key held a while before.
fn with_stale_read(mut history: Vec<Call>) -> Vec<Call> {
    let mut old: BTreeMap<Vec<u8>, Answer> = BTreeMap::new();
    let middle = history.iter().map(|call| call.called).max().unwrap() / 2;
    let mut by_start: Vec<usize> = (0..history.len()).collect();
    by_start.sort_by_key(|&n| history[n].called);
    for n in by_start {
        let call = &mut history[n];
        let End::Answered { answer: answer @ Answer::Found(Some(_)), .. } = &mut call.end else {
            continue;
        };
        match old.get(&call.key) {
            None => {
                old.insert(call.key.clone(), answer.clone());
            }
            Some(before) if call.called > middle && before != answer => {
                *answer = before.clone();
                return history;
            }
            Some(_) => {}
        }
    }
    panic!("no read to make stale");
}

#[test]
fn large_histories_are_checked_in_seconds() {
    // 10^5 calls of 64 clients; few keys, many keys, with and without revisions, with open calls,
    // counters; then the same with one stale read in the middle.
    let shape =
        Shape { calls: 100_000, clients: 64, keys: 8, tell: true, open_percent: 1, op: registers };
    let shapes = [
        ("8 keys", Shape { ..shape }),
        ("8 keys, no revisions", Shape { tell: false, ..shape }),
        ("1 key", Shape { keys: 1, open_percent: 0, ..shape }),
        ("1 key, no revisions", Shape { keys: 1, open_percent: 0, tell: false, ..shape }),
        ("1000 keys", Shape { keys: 1000, ..shape }),
        ("counters", Shape { op: counters, ..shape }),
        ("counters, no revisions", Shape { op: counters, tell: false, calls: 20_000, ..shape }),
    ];
    for (name, shape) in shapes {
        let good = good_history(&shape, 7);
        let begun = Instant::now();
        let checked = check(&good);
        println!("{name}: {checked:?} in {:?}", begun.elapsed());
        checked.unwrap();
        let begun = Instant::now();
        let example = violation(&with_stale_read(good));
        println!("{name}, one stale read: {:?} {example}", begun.elapsed());
        // A counter needs its increments for an explanation, a register only what contradicts.
        assert!(name.contains("counters") || example.calls.len() == 3, "{example}");
    }
}

// ---- every order ----

/// Tries every order of every choice of open calls; one key.
fn by_brute_force(calls: &[Call]) -> bool {
    let calls: Vec<&Call> = calls.iter().filter(|call| call.counts()).collect();
    let mut placed = vec![false; calls.len()];
    any_order(&calls, &mut placed, &None, 0)
}

type Held = Option<(Vec<u8>, Option<Revision>)>;

fn any_order(calls: &[&Call], placed: &mut [bool], held: &Held, floor: Revision) -> bool {
    if calls.iter().zip(&*placed).all(|(call, placed)| *placed || call.end == End::Open) {
        return true;
    }
    for n in 0..calls.len() {
        let late = (0..calls.len())
            .any(|m| !placed[m] && calls[m].returned().is_some_and(|at| at < calls[n].called));
        if placed[n] || late {
            continue;
        }
        if let Some((held, floor)) = apply(calls[n], held, floor) {
            placed[n] = true;
            if any_order(calls, placed, &held, floor) {
                return true;
            }
            placed[n] = false;
        }
    }
    false
}

/// The key after a call, none when its answer does not fit.
fn apply(call: &Call, held: &Held, floor: Revision) -> Option<(Held, Revision)> {
    let answer = match &call.end {
        End::Answered { answer, .. } => Some(answer),
        _ => None,
    };
    let store = |value: Option<Vec<u8>>| {
        let told = call.revision();
        let grows = told.is_none_or(|told| told > floor);
        grows.then_some((value.map(|value| (value, told)), told.unwrap_or(floor)))
    };
    // What is held, if it can be of that revision.
    let of = |wanted: Revision| match held {
        Some((_, Some(known))) => (*known == wanted).then_some((held.clone(), floor)),
        Some((value, None)) if wanted > floor => {
            Some((Some((value.clone(), Some(wanted))), wanted))
        }
        _ => None,
    };
    match (&call.op, answer) {
        (Op::Get, Some(Answer::Found(found))) => match (found, held) {
            (None, None) => Some((None, floor)),
            (Some(seen), Some((value, _))) if seen.value == *value => {
                seen.revision.map_or(Some((held.clone(), floor)), of)
            }
            _ => None,
        },
        (Op::Put { value }, _) => store(Some(value.clone())),
        (Op::Delete, Some(Answer::Deleted { existed: Some(existed), .. }))
            if *existed != held.is_some() =>
        {
            None
        }
        (Op::Delete, _) => store(None),
        (Op::Cas { test, .. }, Some(Answer::Mismatch { found })) => match (found, test) {
            (Some(None), Test::Present | Test::Revision(_)) | (None, Test::Present) => {
                held.is_none().then_some((None, floor))
            }
            (Some(Some(found)), Test::Revision(wanted)) if found != wanted => of(*found),
            (Some(Some(found)), Test::Absent) => of(*found),
            (None, Test::Absent) => held.is_some().then_some((held.clone(), floor)),
            _ => None,
        },
        (Op::Cas { test, value }, _) => {
            let holds = match test {
                Test::Absent => held.is_none(),
                Test::Present => held.is_some(),
                Test::Revision(wanted) => {
                    let (_, floor) = of(*wanted)?;
                    if call.revision().is_some_and(|told| told <= floor) {
                        return None;
                    }
                    let (stored, after) = store(Some(value.clone()))?;
                    return Some((stored, after.max(floor)));
                }
            };
            holds.then(|| store(Some(value.clone())))?
        }
        (Op::Increment { by }, answer) => {
            let text = held.as_ref().map_or("0", |(value, _)| str::from_utf8(value).unwrap());
            let value = text.parse::<i64>().ok()? + by;
            match answer {
                Some(Answer::Number { value: told, .. }) if *told != value => None,
                _ => store(Some(value.to_string().into_bytes())),
            }
        }
        _ => None,
    }
}

fn everything(dice: &mut Dice, _number: u64) -> Op {
    let value = |dice: &mut Dice| vec![b'0' + u8::try_from(dice.below(3)).unwrap()];
    match dice.below(10) {
        0..=2 => Op::Put { value: value(dice) },
        3 => Op::Delete,
        4 => Op::Increment { by: 1 },
        5 => Op::Cas { test: Test::Absent, value: value(dice) },
        6 => Op::Cas { test: Test::Present, value: value(dice) },
        7 => Op::Cas { test: Test::Revision(1 + dice.below(5)), value: value(dice) },
        _ => Op::Get,
    }
}

fn without_revisions(dice: &mut Dice, number: u64) -> Op {
    loop {
        let op = everything(dice, number);
        if !matches!(op, Op::Cas { test: Test::Revision(_), .. }) {
            return op;
        }
    }
}

/// Changes what one client was told, so that the history is probably bad.
fn with_a_lie(history: &mut [Call], dice: &mut Dice) {
    let other = |dice: &mut Dice| 1 + dice.below(6);
    for _ in 0..20 {
        let at = usize::try_from(dice.below(history.len() as u64)).unwrap();
        let call = &mut history[at];
        let End::Answered { answer, .. } = &mut call.end else { continue };
        match answer {
            Answer::Found(None) => {
                *answer = Answer::Found(Some(Seen { value: b"1".to_vec(), revision: None }));
            }
            Answer::Found(Some(seen)) if dice.chance(50) => {
                seen.value = vec![b'0' + other(dice) as u8];
            }
            Answer::Found(Some(Seen { revision: Some(r), .. })) => *r = other(dice),
            Answer::Found(found) => *found = None,
            Answer::Written { revision: Some(r) } => *r = other(dice),
            Answer::Written { .. } => call.end = End::Refused,
            Answer::Deleted { existed, .. } => *existed = existed.map(|e| !e),
            Answer::Number { value, .. } => *value = i64::try_from(other(dice)).unwrap(),
            Answer::Mismatch { .. } => continue,
        }
        return;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// On tiny histories, good ones and spoiled ones, the search agrees with trying every order,
    /// and what is shown of a bad history is itself bad.
    #[test]
    fn agrees_with_trying_every_order(
        seed: u64,
        calls in 1..8_usize,
        clients in 1..5_u64,
        tell: bool,
        lies in 0..3,
    ) {
        let op = if tell { everything } else { without_revisions };
        let shape = Shape { calls, clients, keys: 1, tell, open_percent: 20, op };
        let mut history = good_history(&shape, seed);
        let mut dice = Dice(seed.rotate_left(32) | 1);
        (0..lies).for_each(|_| with_a_lie(&mut history, &mut dice));
        match check(&history) {
            Ok(_) => prop_assert!(by_brute_force(&history)),
            Err(Failure::Violation(example)) if example.why.contains("go back") => {
                prop_assert!(lies > 0);
            }
            Err(Failure::Violation(example)) => {
                prop_assert!(lies > 0, "{}", example);
                prop_assert!(!by_brute_force(&history), "{}", example);
                prop_assert!(!by_brute_force(&example.calls), "{}", example);
            }
            Err(e) => prop_assert!(false, "{}", e),
        }
    }
}

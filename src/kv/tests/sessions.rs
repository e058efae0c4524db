//! Client sessions: a retried write takes effect once, and what is forgotten is never done twice.

use super::machine::{
    SMALL, apply, apply_one, get, increment, open, print_of, put, value_of, write,
};
use crate::kv::machine::DIGEST_KEY;
use crate::kv::sessions::SessionBounds;
use crate::kv::*;
use std::ops::ControlFlow;

fn stamped(session: u64, sequence: u64, answered_below: u64, ops: Vec<Op>) -> Command {
    let stamp = Some(SessionStamp { session, sequence, answered_below });
    Command::Write(Write { stamp, ops, ..Write::default() })
}

fn number(revision: u64, value: i64) -> Outcome {
    Outcome::Done { revision, results: vec![OpResult::Number { value }] }
}

#[test]
fn a_retry_after_a_lost_answer_is_answered_as_the_first_time_and_adds_nothing() {
    // The client increments, loses the answer, and sends the same write twice more: once in the
    // same batch, once after the node came back from its store.
    let mut machine = open(SMALL);
    apply_one(&mut machine, Command::OpenSession);
    let add = stamped(1, 1, 1, vec![increment("n", 5)]);
    assert_eq!(apply(&mut machine, &[add.clone(), add.clone()]), [number(2, 5), number(2, 5)]);
    let mut machine = Machine::open(machine.into_store()).expect("what was written is read");
    assert_eq!(apply_one(&mut machine, add), number(2, 5));
    assert_eq!(value_of(&machine, "n"), Some(b"5".to_vec()));
}

#[test]
fn a_refusal_is_remembered_as_well() {
    // "Only if absent" failed, the answer was lost, and meanwhile the key went away. The retry must
    // hear of the refusal, not have its way: the client may have been told already.
    let mut machine = open(SMALL);
    let create = Command::Write(Write {
        stamp: Some(SessionStamp { session: 1, sequence: 1, answered_below: 1 }),
        conditions: vec![Condition { key: "k".into(), test: Test::Absent }],
        ops: vec![put("k", b"mine")],
    });
    apply(&mut machine, &[Command::OpenSession, write(vec![put("k", b"theirs")])]);
    let refused = Outcome::ConditionFalse { condition: 0, found: Some(2) };
    assert_eq!(apply_one(&mut machine, create.clone()), refused);
    apply_one(&mut machine, write(vec![Op::Delete { key: "k".into() }]));
    assert_eq!(apply_one(&mut machine, create), refused);
    assert_eq!(value_of(&machine, "k"), None);
}

#[test]
fn what_the_client_has_answered_is_forgotten_and_never_done_again() {
    // A duplicate of an old write arrives late, long after its answer: it may find nothing
    // remembered, but it must not be taken for a new write.
    let mut machine = open(SMALL);
    apply_one(&mut machine, Command::OpenSession);
    let first = stamped(1, 1, 1, vec![increment("n", 1)]);
    apply_one(&mut machine, first.clone());
    apply_one(&mut machine, stamped(1, 2, 2, vec![increment("n", 1)]));
    assert_eq!(apply_one(&mut machine, first), Outcome::SequenceForgotten);
    assert_eq!(value_of(&machine, "n"), Some(b"2".to_vec()));
}

#[test]
fn numbers_that_are_no_sequence_are_refused() {
    // 0 lies below every sequence; nothing lies above the last number, so it could never be
    // forgotten. Neither may slip through as a write that is done at each retry.
    let mut machine = open(SMALL);
    apply_one(&mut machine, Command::OpenSession);
    for sequence in [0, u64::MAX, u64::MAX] {
        let outcome = apply_one(&mut machine, stamped(1, sequence, 0, vec![increment("n", 1)]));
        assert_eq!(outcome, Outcome::SequenceForgotten);
    }
    let last = stamped(1, u64::MAX - 1, 0, vec![increment("n", 1)]);
    assert_eq!(apply_one(&mut machine, last.clone()), number(5, 1));
    assert_eq!(apply_one(&mut machine, last), number(5, 1));
    Machine::open(machine.into_store()).expect("the record of the last sequence is read");
}

#[test]
fn a_closed_or_unknown_session_is_told_so_and_nothing_is_done() {
    // After a close every copy of an old write must be refused; so must a made-up session.
    let mut machine = open(SMALL);
    apply_one(&mut machine, Command::OpenSession);
    let add = stamped(1, 1, 1, vec![increment("n", 1)]);
    apply_one(&mut machine, add.clone());
    for _ in 0..2 {
        let closed = apply_one(&mut machine, Command::CloseSession { session: 1 });
        assert_eq!(closed, Outcome::SessionClosed);
    }
    let made_up = stamped(77, 1, 1, vec![increment("n", 1)]);
    assert_eq!(
        apply(&mut machine, &[add, made_up]),
        [Outcome::SessionUnknown, Outcome::SessionUnknown]
    );
    assert_eq!(value_of(&machine, "n"), Some(b"1".to_vec()));
    // Nothing is left of it in the store.
    let reader = machine.reader();
    let view = reader.view();
    let mut left = Vec::new();
    let scanned = view.scan(&Scan::all(Space::Meta), &mut |row| {
        left.push(row.key.to_vec());
        ControlFlow::Continue(())
    });
    scanned.expect("memory does not fail");
    assert_eq!(left, [DIGEST_KEY]);
}

/// Fillers up to an index, and the outcome of opening a session there.
fn opened_at<S: Store>(machine: &mut Machine<S>, index: u64) -> Outcome {
    while machine.applied() + 1 < index {
        apply_one(machine, write(vec![put("filler", b"")]));
    }
    apply_one(machine, Command::OpenSession)
}

#[test]
fn a_held_session_makes_room_only_when_nobody_has_used_it_for_long() {
    // Three sessions fit, all of them held. The first is used (a retry is use), so of those that are old enough the
    // second goes, and before any is old enough nobody gets a place.
    let mut machine = open(SMALL);
    apply(&mut machine, &[Command::OpenSession, Command::OpenSession, Command::OpenSession]);
    let add = |session| stamped(session, 1, 1, vec![increment("n", 1)]);
    apply(&mut machine, &[add(1), add(2), add(3), add(1)]);
    assert_eq!(opened_at(&mut machine, 8), Outcome::SessionsFull);
    assert_eq!(opened_at(&mut machine, 11), Outcome::SessionsFull, "6 entries behind its last use");
    assert_eq!(opened_at(&mut machine, 12), Outcome::SessionOpened { session: 12 });
    assert_eq!(machine.session_count(), 3);
    assert_eq!(apply_one(&mut machine, add(2)), Outcome::SessionUnknown);
    assert_eq!(apply_one(&mut machine, add(1)), number(4, 1));
    // The order of use is in the store too: now 3 is the one to go.
    let mut machine = Machine::open_bounded(machine.into_store(), SMALL).expect("it is read");
    assert_eq!(opened_at(&mut machine, 15), Outcome::SessionOpened { session: 15 });
    assert_eq!(apply_one(&mut machine, add(3)), Outcome::SessionUnknown);
    assert_eq!(apply_one(&mut machine, add(1)), number(4, 1));
}

#[test]
fn a_released_session_goes_first_and_one_that_is_used_again_is_held_again() {
    // The connection of 2 has ended, then that of 1, whose client comes back. So 2 goes, although 3 was not used for
    // longer, and not before its grace is over.
    let mut machine = open(SMALL);
    apply(&mut machine, &[Command::OpenSession, Command::OpenSession, Command::OpenSession]);
    let add = |session| stamped(session, 1, 1, vec![increment("n", 1)]);
    let release = |session| Command::ReleaseSession { session, sequence: 1 };
    let outcomes = apply(&mut machine, &[release(1), add(1), release(2)]);
    assert_eq!(outcomes[2], Outcome::SessionReleased);
    assert_eq!(opened_at(&mut machine, 8), Outcome::SessionsFull);
    let mut machine = Machine::open_bounded(machine.into_store(), SMALL).expect("it is read");
    assert_eq!(opened_at(&mut machine, 9), Outcome::SessionOpened { session: 9 });
    assert_eq!(apply_one(&mut machine, add(2)), Outcome::SessionUnknown);
    assert!(matches!(apply_one(&mut machine, add(3)), Outcome::Done { .. }));
    assert!(matches!(apply_one(&mut machine, add(1)), Outcome::Done { .. }));
}

#[test]
fn a_late_release_does_not_let_go_of_what_another_connection_holds() {
    // A client writes by a connection that stalls, and goes on by another one. When the first is found to be dead, the
    // session stays held.
    let mut machine = open(SessionBounds { held_entries: 100, ..SMALL });
    apply(&mut machine, &[Command::OpenSession, Command::OpenSession, Command::OpenSession]);
    let add = |sequence, below| stamped(1, sequence, below, vec![increment("n", 1)]);
    let release = |session, sequence| Command::ReleaseSession { session, sequence };
    apply(&mut machine, &[add(1, 1), add(2, 1), release(1, 1), add(3, 3), release(1, 2)]);
    assert_eq!(opened_at(&mut machine, 20), Outcome::SessionsFull);
    // That one asked for the last.
    apply(&mut machine, &[release(1, 3), release(99, 9)]);
    assert_eq!(opened_at(&mut machine, 30), Outcome::SessionOpened { session: 30 });
    assert_eq!(apply_one(&mut machine, add(4, 4)), Outcome::SessionUnknown);
}

#[test]
fn who_opens_sessions_and_leaves_takes_nobodys_place_and_keeps_nobody_out() {
    // One client has a session, and is silent. Another one opens as many as it likes, with a new connection for each.
    // The first still has its session, and each time there was a place for one more.
    let max = SessionBounds::STANDARD.sessions;
    let mut machine = open(SessionBounds::STANDARD);
    apply_one(&mut machine, Command::OpenSession);
    for _ in 0..3 * max {
        let Outcome::SessionOpened { session } = apply_one(&mut machine, Command::OpenSession)
        else {
            panic!("no place at {}", machine.applied());
        };
        apply_one(&mut machine, Command::ReleaseSession { session, sequence: 0 });
    }
    assert_eq!(machine.session_count(), max);
    let mut machine = Machine::open(machine.into_store()).expect("it is read");
    assert_eq!(machine.session_count(), max);
    assert!(matches!(
        apply_one(&mut machine, stamped(1, 1, 1, vec![increment("n", 1)])),
        Outcome::Done { .. }
    ));
}

#[test]
fn the_standard_table_of_sessions_is_bounded() {
    // Clients open sessions and hold all of them: more than there is room for are refused, and none is forgotten.
    let max = SessionBounds::STANDARD.sessions;
    let mut machine = open(SessionBounds::STANDARD);
    let outcomes = apply(&mut machine, &vec![Command::OpenSession; max + 10]);
    assert!(outcomes[max..].iter().all(|outcome| *outcome == Outcome::SessionsFull));
    assert_eq!(machine.session_count(), max);
    let mut machine = Machine::open(machine.into_store()).expect("it is read");
    assert_eq!(machine.session_count(), max);
    assert!(matches!(
        apply_one(&mut machine, stamped(1, 1, 1, vec![increment("n", 1)])),
        Outcome::Done { .. }
    ));
}

#[test]
fn a_client_that_never_confirms_answers_loses_the_oldest_results_only() {
    // More writes in flight than a session remembers: the lowest sequence is forgotten, and from
    // then on refused, with everything below it.
    let max = SessionBounds::STANDARD.results as u64;
    let mut machine = open(SessionBounds::STANDARD);
    apply_one(&mut machine, Command::OpenSession);
    let add = |sequence| stamped(1, sequence, 0, vec![increment("n", 1)]);
    let batch: Vec<Command> = (2..=max + 2).map(add).collect();
    apply(&mut machine, &batch);
    let mut machine = Machine::open(machine.into_store()).expect("it is read");
    assert_eq!(
        apply(&mut machine, &[add(1), add(2), add(3)]),
        [Outcome::SequenceForgotten, Outcome::SequenceForgotten, number(3, 2)]
    );
    assert_eq!(value_of(&machine, "n"), Some((max + 1).to_string().into_bytes()));
}

#[test]
fn a_session_remembers_no_more_bytes_than_it_may() {
    // Results of 10 kB each: six fit the session's bytes, the seventh pushes the first one out.
    let mut machine = open(SessionBounds::STANDARD);
    apply(&mut machine, &[Command::OpenSession, write(vec![put("k", &[b'v'; 10_000])])]);
    let read = |sequence| stamped(1, sequence, 0, vec![get("k"), increment("n", 1)]);
    for sequence in 1..=7 {
        apply_one(&mut machine, read(sequence));
    }
    assert_eq!(apply_one(&mut machine, read(1)), Outcome::SequenceForgotten);
    assert!(matches!(apply_one(&mut machine, read(2)), Outcome::Done { revision: 4, .. }));
    assert_eq!(value_of(&machine, "n"), Some(b"7".to_vec()));
}

#[test]
fn results_too_large_to_remember_are_given_once_and_the_retry_hears_that_it_was_done() {
    // A stamped write reads a large value: the first answer has it, a retry learns the revision.
    let mut machine = open(SessionBounds::STANDARD);
    let large = vec![b'v'; SessionBounds::STANDARD.outcome_bytes];
    apply(&mut machine, &[Command::OpenSession, write(vec![put("k", &large)])]);
    let read = stamped(1, 1, 1, vec![get("k"), increment("n", 1)]);
    let outcomes = apply(&mut machine, &[read.clone(), read]);
    assert!(matches!(&outcomes[0], Outcome::Done { results, .. } if results.len() == 2));
    assert_eq!(outcomes[1], Outcome::ResultsForgotten { revision: 3 });
    assert_eq!(value_of(&machine, "n"), Some(b"1".to_vec()));
}

#[test]
fn a_session_record_of_version_1_stays_as_it_is() {
    // docs/formats.md, "Session record": stores written by an older program are opened by this one.
    let mut machine = open(SessionBounds::STANDARD);
    apply_one(&mut machine, Command::OpenSession);
    apply_one(&mut machine, stamped(1, 4, 3, vec![put("k", b"v")]));
    apply_one(&mut machine, stamped(1, 6, 3, vec![Op::Delete { key: "k".into() }]));
    let reader = machine.reader();
    let record = reader.view().get(Space::Meta, b"s\0\0\0\0\0\0\0\x01").expect("no failure");
    let value = vec![3, 2, 1, 4, 1, 2, 1, 1, 1, 4, 1, 3, 1, 3];
    assert_eq!(record, Some(Found { value: value.clone(), revision: 3 }));
    // Released, it has one byte more.
    apply_one(&mut machine, Command::ReleaseSession { session: 1, sequence: 6 });
    let record = reader.view().get(Space::Meta, b"s\0\0\0\0\0\0\0\x01").expect("no failure");
    let value = [value, vec![1]].concat();
    assert_eq!(record, Some(Found { value, revision: 4 }));
}

#[test]
fn a_damaged_session_record_is_named_and_not_read_past() {
    // Every cut of a record, and one that claims what no log can have made, must stop the node.
    let whole = [3, 2, 1, 4, 1, 2, 1, 1, 1, 4, 1, 3, 1, 3];
    let record = |id: u64| [&b"s"[..], &id.to_be_bytes()].concat();
    let opened = |records: Vec<(Vec<u8>, u64, &[u8])>| {
        let mut store = MemoryStore::default();
        let changes = records.into_iter().map(|(key, revision, value)| Change {
            space: Space::Meta,
            key: key.into(),
            value: Some((revision, value.into())),
        });
        store.write(3, changes.collect()).expect("memory does not fail");
        Machine::open(store).map(|machine| machine.session_count())
    };
    assert_eq!(opened(vec![(record(1), 3, &whole)]).expect("whole"), 1);
    let mut damaged: Vec<_> =
        (0..whole.len()).map(|cut| vec![(record(1), 3, &whole[..cut])]).collect();
    damaged.push(vec![(b"s12".to_vec(), 3, &whole)]);
    let (no_state, longer) = ([&whole[..], &[0]].concat(), [&whole[..], &[1, 1]].concat());
    damaged.push(vec![(record(1), 3, &no_state)]);
    damaged.push(vec![(record(1), 3, &longer)]);
    damaged.push(vec![(record(1), 3, &whole), (record(2), 3, &whole)]);
    for records in damaged {
        let key = records.last().map(|(key, ..)| key.clone());
        match opened(records) {
            Err(StoreError::BadRecord { key: named, .. }) => assert_eq!(Some(named), key),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn fingerprints_differ_when_only_a_remembered_result_does() {
    // Two replicas with equal keys but unequal sessions would answer a retry differently.
    let run = |sequence| {
        let mut machine = open(SMALL);
        let put = stamped(1, sequence, 1, vec![put("k", b"v")]);
        apply(&mut machine, &[Command::OpenSession, put]);
        print_of(&machine)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

//! Applying: against the model, in batches cut anywhere, and the cases worth a story.

use super::model::Model;
use super::strategies::any_command;
use crate::kv::codec::put_outcome;
use crate::kv::machine::{CONFIGURATION_KEY, RESULT_BYTES_MAX};
use crate::kv::sessions::SessionBounds;
use crate::kv::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::ops::ControlFlow;

/// Small, so that random runs reach every bound; in bytes the model does not count.
pub(super) const SMALL: SessionBounds = SessionBounds {
    sessions: 3,
    released_entries: 2,
    held_entries: 6,
    results: 2,
    session_bytes: 1 << 20,
    outcome_bytes: 1 << 20,
};

pub(super) fn open(bounds: SessionBounds) -> Machine<MemoryStore> {
    Machine::open_bounded(MemoryStore::default(), bounds).expect("memory does not fail")
}

/// Applies commands as one batch, right after what is applied.
pub(super) fn apply<S: Store>(machine: &mut Machine<S>, commands: &[Command]) -> Vec<Outcome> {
    let first = machine.applied() + 1;
    let bytes: Vec<Vec<u8>> = commands.iter().map(bytes_of).collect();
    let entries = (first..).zip(bytes.iter().map(|bytes| Committed::Command(bytes)));
    let outcomes = machine.apply(entries).expect("memory does not fail");
    let indexes: Vec<u64> = outcomes.iter().map(|(index, _)| *index).collect();
    assert_eq!(indexes, (first..).take(commands.len()).collect::<Vec<_>>());
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Applies commands step by step, each with so much room, right after what is applied: the outcomes that are wanted.
fn in_steps<S: Store>(
    machine: &mut Machine<S>,
    commands: &[Command],
    wanted: impl Fn(u64) -> bool,
    room: usize,
) -> Vec<(u64, Outcome)> {
    let bytes: Vec<Vec<u8>> = commands.iter().map(bytes_of).collect();
    let (first, mut outcomes) = (machine.applied() + 1, Vec::new());
    while machine.applied() + 1 < first + commands.len() as u64 {
        let next = machine.applied() + 1;
        let rest = (next..).zip(&bytes[(next - first) as usize..]);
        let rest = rest.map(|(index, bytes)| (index, Committed::Command(bytes)));
        outcomes.extend(machine.apply_some(rest, &wanted, room).expect("no failure"));
        assert!(machine.applied() >= next, "a step applies one entry at least");
    }
    outcomes
}

fn bytes_of(command: &Command) -> Vec<u8> {
    let mut out = Vec::new();
    encode_command(command, &mut out);
    out
}

pub(super) fn apply_one<S: Store>(machine: &mut Machine<S>, command: Command) -> Outcome {
    apply(machine, &[command]).remove(0)
}

pub(super) fn print_of<S: Store>(machine: &Machine<S>) -> u64 {
    fingerprint(&machine.reader().view()).expect("memory does not fail")
}

pub(super) fn put(key: &str, value: &[u8]) -> Op {
    Op::Put { key: key.into(), value: value.into() }
}

pub(super) fn get(key: &str) -> Op {
    Op::Get { key: key.into() }
}

pub(super) fn increment(key: &str, by: i64) -> Op {
    Op::Increment { key: key.into(), by }
}

pub(super) fn write(ops: Vec<Op>) -> Command {
    Command::Write(Write { ops, ..Write::default() })
}

pub(super) fn value_of<S: Store>(machine: &Machine<S>, key: &str) -> Option<Vec<u8>> {
    let found = machine.reader().view().get(Space::User, key.as_bytes());
    found.expect("memory does not fail").map(|found| found.value)
}

pub(super) fn rows_of<S: Store>(machine: &Machine<S>) -> Vec<Item> {
    let mut rows = Vec::new();
    let reader = machine.reader();
    let scanned = reader.view().scan(&Scan::all(Space::User), &mut |row| {
        rows.push(Item {
            key: row.key.to_vec(),
            value: row.value.to_vec(),
            revision: row.revision,
        });
        ControlFlow::Continue(())
    });
    scanned.expect("memory does not fail");
    rows
}

proptest! {
    #[test]
    fn the_machine_does_what_the_model_does_however_the_log_is_cut(
        commands in vec(any_command(), 1..60),
        cuts in vec(1usize..9, 1..8),
        reopen in 0usize..8,
    ) {
        // One machine takes entries one by one; one takes batches of random sizes and is opened
        // again from its store in between. Both and the model must agree on everything seen.
        let mut model = Model::new(SMALL);
        let expected: Vec<Outcome> = commands.iter().map(|c| model.apply(c)).collect();

        let mut single = open(SMALL);
        let outcomes: Vec<Outcome> =
            commands.iter().map(|c| apply_one(&mut single, c.clone())).collect();
        prop_assert_eq!(&outcomes, &expected);

        let mut batched = open(SMALL);
        let mut outcomes = Vec::new();
        let mut rest = &commands[..];
        for (batch, &size) in cuts.iter().cycle().enumerate() {
            if rest.is_empty() {
                break;
            }
            let (head, tail) = rest.split_at(size.min(rest.len()));
            outcomes.extend(apply(&mut batched, head));
            rest = tail;
            if batch == reopen {
                batched = Machine::open_bounded(batched.into_store(), SMALL)
                    .expect("what was written is read");
            }
        }
        prop_assert_eq!(&outcomes, &expected);

        // A third one applies as much as fits a little room, and is asked for every second outcome.
        let mut stepped = open(SMALL);
        let wanted = |index: u64| index.is_multiple_of(2);
        let outcomes = in_steps(&mut stepped, &commands, wanted, cuts[0]);
        let halves = (1..).zip(expected).filter(|(index, _)| wanted(*index));
        prop_assert_eq!(outcomes, halves.collect::<Vec<_>>());
        prop_assert_eq!((print_of(&stepped), stepped.digest()), (print_of(&single), single.digest()));

        prop_assert_eq!(rows_of(&batched), model.rows());
        prop_assert_eq!(batched.applied(), commands.len() as u64);
        prop_assert_eq!(print_of(&single), print_of(&batched));
    }

    #[test]
    fn random_bytes_in_a_committed_entry_change_nothing_or_are_a_command(
        bytes in vec(any::<u8>(), 0..40),
    ) {
        let mut machine = open(SMALL);
        let outcomes = machine.apply([(1, Committed::Command(&bytes))]).expect("no failure");
        let malformed = decode_command(&bytes).is_err();
        prop_assert_eq!(outcomes == [(1, Outcome::Malformed)], malformed);
        prop_assert_eq!(machine.applied(), 1);
        if malformed {
            prop_assert!(rows_of(&machine).is_empty());
        }
    }
}

#[test]
fn a_failed_operation_undoes_the_earlier_ones_of_its_write_only() {
    // The batch's first write stays; the second changes the same keys, then meets a text where it
    // wants a number, and must leave no trace: not even of what it put over the first one's value.
    let mut machine = open(SMALL);
    apply_one(&mut machine, write(vec![put("old", b"here")]));
    let outcomes = apply(
        &mut machine,
        &[
            write(vec![put("text", b"x"), put("n", b"1")]),
            write(vec![
                put("n", b"5"),
                put("n", b"6"),
                put("new", b"y"),
                Op::Delete { key: "old".into() },
                increment("text", 1),
            ]),
            write(vec![increment("n", 1), get("new"), get("old")]),
        ],
    );
    assert_eq!(outcomes[1], Outcome::NotANumber { op: 4 });
    let old = Found { value: b"here".to_vec(), revision: 1 };
    assert_eq!(
        outcomes[2],
        Outcome::Done {
            revision: 4,
            results: vec![
                OpResult::Number { value: 2 },
                OpResult::Got { found: None },
                OpResult::Got { found: Some(old) },
            ],
        }
    );
    assert_eq!(value_of(&machine, "n"), Some(b"2".to_vec()));
    assert_eq!(value_of(&machine, "new"), None);
}

#[test]
fn compare_and_set_sees_the_batch_it_is_in() {
    // Two clients read revision 1 and both want to replace it; their writes commit in one batch.
    let mut machine = open(SMALL);
    apply_one(&mut machine, write(vec![put("k", b"0")]));
    let swap = |value: &[u8]| {
        Command::Write(Write {
            conditions: vec![Condition { key: "k".into(), test: Test::Revision(1) }],
            ops: vec![put("k", value)],
            ..Write::default()
        })
    };
    let outcomes = apply(&mut machine, &[swap(b"first"), swap(b"second")]);
    assert_eq!(outcomes[0], Outcome::Done { revision: 2, results: vec![OpResult::Put] });
    assert_eq!(outcomes[1], Outcome::ConditionFalse { condition: 0, found: Some(2) });
    assert_eq!(value_of(&machine, "k"), Some(b"first".to_vec()));
}

#[test]
fn entries_without_a_command_move_the_applied_index_and_a_configuration_is_kept() {
    // A term's no-op and two membership changes pass through the log between writes. What a
    // snapshot needs, the last configuration, moves with the data.
    let mut machine = open(SMALL);
    let command = [0x01];
    let entries = [
        (1, Committed::Term(1)),
        (2, Committed::Configuration(b"one")),
        (3, Committed::Command(&command)),
        (4, Committed::Configuration(b"two")),
        (5, Committed::Term(1)),
    ];
    let outcomes = machine.apply(entries).expect("no failure");
    assert_eq!(outcomes, [(3, Outcome::SessionOpened { session: 3 })]);
    let reader = machine.reader();
    assert_eq!(reader.view().applied(), 5);
    let found = reader.view().get(Space::Meta, CONFIGURATION_KEY).expect("no failure");
    assert_eq!(found, Some(Found { value: b"two".to_vec(), revision: 4 }));
    // Users do not see any of it.
    assert_eq!(rows_of(&machine), []);
}

#[test]
#[should_panic(expected = "without a gap")]
fn a_lost_entry_stops_the_node() {
    // The caller skipped index 1: going on would make this replica differ from all others.
    let _ = open(SMALL).apply([(2, Committed::Term(1))]);
}

#[test]
fn a_reader_sees_a_batch_whole_and_its_view_does_not_move() {
    // A reader holds a cut while the applier works; in memory the applier waits for it, so the
    // batch is handed over from another thread.
    let mut machine = open(SMALL);
    apply_one(&mut machine, write(vec![put("a", b"1"), put("b", b"1")]));
    let reader = machine.reader();
    let view = reader.view();
    std::thread::scope(|scope| {
        let applier = scope.spawn(move || {
            apply(&mut machine, &[write(vec![put("a", b"2")]), write(vec![put("b", b"2")])]);
        });
        let read = |key: &[u8]| view.get(Space::User, key).expect("no failure").map(|f| f.value);
        assert_eq!(read(b"a"), Some(b"1".to_vec()));
        assert_eq!(read(b"b"), Some(b"1".to_vec()));
        assert_eq!(view.applied(), 1);
        drop(view);
        applier.join().expect("the batch is applied");
    });
    let view = reader.view();
    assert_eq!(view.applied(), 3);
    for key in [b"a", b"b"] {
        let found = view.get(Space::User, key).expect("no failure");
        assert_eq!(found.map(|f| f.value), Some(b"2".to_vec()));
    }
}

#[test]
fn reads_in_a_write_are_bounded_and_a_write_over_the_bound_changes_nothing() {
    // A small command asks for one large value again and again: it must not become an answer of
    // many times its size, and all replicas must refuse it at the same operation.
    let mut machine = open(SMALL);
    let half = vec![b'v'; RESULT_BYTES_MAX / 2];
    apply_one(&mut machine, write(vec![put("half", &half)]));
    let fits = apply_one(&mut machine, write(vec![get("half"), get("half"), get("absent")]));
    assert!(matches!(fits, Outcome::Done { results, .. } if results.len() == 3));
    let over = write(vec![put("x", b"x"), get("half"), get("half"), get("half")]);
    assert_eq!(apply_one(&mut machine, over), Outcome::ResultsTooLarge { op: 3 });
    assert_eq!(value_of(&machine, "x"), None);
}

/// A store whose disk fails at the second batch.
#[derive(Debug, Default)]
struct Failing {
    inner: MemoryStore,
    writes: u32,
}

impl Store for Failing {
    type Reader = MemoryReader;
    type Snapshot = std::convert::Infallible;

    fn flushed(&self) -> u64 {
        0
    }

    fn flush(&mut self) {}

    fn install(&mut self, snapshot: Self::Snapshot) -> Result<(), StoreError> {
        match snapshot {}
    }

    fn reader(&self) -> MemoryReader {
        self.inner.reader()
    }

    fn write(&mut self, applied: u64, changes: Vec<Change<'_>>) -> Result<(), StoreError> {
        self.writes += 1;
        if self.writes == 2 {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(StoreError::Io { path: "table".into(), offset: 7, source });
        }
        self.inner.write(applied, changes)
    }
}

#[test]
fn after_a_failed_write_nothing_more_is_applied() {
    // The sessions in memory are ahead of the store now: going on could answer a retry of a write
    // that never reached the store. Opening the store again continues from the first batch.
    let mut machine = Machine::open(Failing::default()).expect("empty");
    let command = [0x01];
    machine.apply([(1, Committed::Command(&command))]).expect("the first batch works");
    let error = machine.apply([(2, Committed::Command(&command))]).expect_err("the disk is full");
    assert!(error.to_string().starts_with("table at offset 7: "), "{error}");
    let again = machine.apply([(2, Committed::Command(&command))]);
    assert!(matches!(again, Err(StoreError::Failed)));
    let machine = Machine::open(machine.into_store()).expect("the store is whole");
    assert_eq!((machine.applied(), machine.session_count()), (1, 1));
}

#[test]
fn equal_logs_give_equal_digests_however_they_are_cut() {
    // One replica applies a log entry by entry, one at once, one from a store that was opened again
    // half-way. Another outcome of one entry, or another entry, shows for ever after.
    let set = |key: &str, value: &str| {
        let op = Op::Put { key: key.into(), value: value.into() };
        Command::Write(Write { ops: vec![op], ..Write::default() })
    };
    let log: Vec<Command> = (0..20).map(|n| set(&format!("k{}", n % 3), &n.to_string())).collect();
    let digest_of = |log: &[Command], cut: usize| {
        let mut machine = Machine::open(MemoryStore::default()).expect("empty");
        machine.set_digest_every(5);
        apply(&mut machine, &log[..cut]);
        let mut machine = Machine::open(machine.into_store()).expect("reopened");
        machine.set_digest_every(5);
        for command in &log[cut..] {
            apply(&mut machine, std::slice::from_ref(command));
        }
        machine.take_digest()
    };
    let (index, digest) = digest_of(&log, 0).expect("a digest");
    assert_eq!(index, 20);
    for cut in 1..20 {
        assert_eq!(digest_of(&log, cut), Some((20, digest)), "cut at {cut}");
    }
    let mut other = log.clone();
    other[3] = set("k0", "else");
    assert_ne!(digest_of(&other, 7), Some((20, digest)));
    let mut machine = Machine::open(MemoryStore::default()).expect("empty");
    machine.set_digest_every(5);
    apply(&mut machine, &log);
    assert_eq!(machine.take_digest(), Some((20, digest)), "the latest one, all at once");
    assert_eq!(machine.take_digest(), None, "once");
}

/// Commands of a few bytes read a large value, over and over. A step ends when they have read as much as there was room
/// for, whoever waits for the outcomes; those that nobody wants are not among what it gives, and take no room.
#[test]
fn a_step_ends_when_its_entries_have_read_enough() {
    let value = vec![b'v'; 1000];
    let mut machine = open(SessionBounds::STANDARD);
    apply_one(&mut machine, write(vec![put("large", &value), put("small", b"1")]));
    let reads: Vec<Vec<u8>> = vec![bytes_of(&write(vec![get("large")])); 10];
    let step = |machine: &mut Machine<MemoryStore>, wanted: bool, room: usize| {
        let next = machine.applied() + 1;
        let entries = (next..).zip(reads.iter().map(|bytes| Committed::Command(bytes)));
        let outcomes = machine.apply_some(entries, |_| wanted, room).expect("no failure");
        (machine.applied() + 1 - next, outcomes.len())
    };
    let takes = 1000 + reads[0].len();
    assert_eq!(step(&mut machine, false, 3 * takes), (3, 0), "three values were read");
    assert_eq!(step(&mut machine, false, 3 * takes + 1), (4, 0), "nothing is kept of them");
    let kept = 1000 + size_of::<OpResult>();
    assert_eq!(step(&mut machine, true, 2 * (takes + kept)), (2, 2), "read, and kept");
    assert_eq!(step(&mut machine, true, 1), (1, 1), "one at least");
    assert_eq!(step(&mut machine, true, usize::MAX), (10, 10));
    // A number that is too long for one is read, too, and so is what the batch itself has put there.
    let long = vec![bytes_of(&write(vec![increment("large", 1)])); 3];
    let next = machine.applied() + 1;
    let entries = (next..).zip(long.iter().map(|bytes| Committed::Command(bytes)));
    let outcomes = machine.apply_some(entries, |_| true, 1500).expect("no failure");
    assert_eq!(outcomes.len(), 2);
    let own = [write(vec![put("own", &value)]), write(vec![get("own")]), write(vec![get("own")])];
    assert_eq!(in_steps(&mut machine, &own, |_| false, 900), []);
}

#[test]
fn a_digest_is_over_index_kind_and_contents_and_told_at_its_multiples() {
    // By a second reading of the definition: replicas of different builds compare these numbers.
    let malformed = [0xff, 1];
    let mut outcome = Vec::new();
    put_outcome(&mut outcome, &Outcome::Malformed);
    let entries = [
        (1u8, Committed::Term(7), 7u64.to_le_bytes().to_vec()),
        (2, Committed::Configuration(b"members"), b"members".to_vec()),
        (3, Committed::Command(&malformed), [&malformed[..], &outcome].concat()),
        (1, Committed::Term(8), 8u64.to_le_bytes().to_vec()),
    ];
    let mut machine = open(SMALL);
    machine.set_digest_every(2);
    let mut expected = 0u32;
    for (i, (kind, committed, contents)) in entries.into_iter().enumerate() {
        let index = i as u64 + 1;
        let before =
            [&expected.to_le_bytes()[..], &index.to_le_bytes(), &[kind], &contents].concat();
        expected = crc32fast::hash(&before);
        machine.apply([(index, committed)]).expect("memory does not fail");
        let told = index.is_multiple_of(2).then_some((index, expected));
        assert_eq!(machine.take_digest(), told, "index {index}");
    }
}

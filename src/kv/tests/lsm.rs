//! The machine on the engine for data larger than memory: the same as on the map in memory.

use super::machine::{SMALL, apply, print_of, rows_of};
use super::model::Model;
use super::strategies::any_command;
use crate::kv::*;
use crate::lsm::{Options, Step, Worker};
use crate::wal::testdisk::TestDisk;
use proptest::collection::vec;
use proptest::prelude::*;
use std::path::Path;

/// So small that a few writes are flushed, and a few flushes compacted.
fn open_store(disk: &TestDisk) -> (LsmStore, Worker) {
    let options = Options {
        memtable_bytes: 1 << 10,
        cache_bytes: 1 << 14,
        table_bytes: 1 << 10,
        block_bytes: 128,
        level1_bytes: 2 << 10,
        ..Options::new(5)
    };
    LsmStore::open(disk.shared(), Path::new("/store"), options).expect("the disk is well")
}

/// A machine on an engine whose every write is frozen, and flushed when it may.
pub(super) fn open_lsm() -> Machine<LsmStore> {
    let (store, _) = open_store(&TestDisk::default());
    Machine::open_bounded(store, SMALL).expect("the disk is well")
}

#[test]
fn records_of_sessions_count_in_what_a_batch_takes() {
    // Forty clients that never confirm an answer have 60 kB remembered each, and all write 10 bytes at once. A batch of
    // one MiB ends with the record that reaches it, and no batch brings in much more.
    const CLIENTS: u64 = 40;
    let (store, _) = open_store(&TestDisk::default());
    let mut machine = Machine::open(store).expect("the disk is well");
    let stamped = |session, sequence, ops| {
        let stamp = Some(SessionStamp { session, sequence, answered_below: 0 });
        Command::Write(Write { stamp, ops, ..Write::default() })
    };
    let opened: Vec<Command> = (0..CLIENTS).map(|_| Command::OpenSession).collect();
    apply(&mut machine, &opened);
    let put = |key: &str, len: usize| Op::Put { key: key.into(), value: vec![b'v'; len] };
    apply(
        &mut machine,
        &[Command::Write(Write { ops: vec![put("k", 12_000)], ..Write::default() })],
    );
    for sequence in 1..=5 {
        let reads = |session| stamped(session, sequence, vec![Op::Get { key: "k".into() }]);
        apply(&mut machine, &(1..=CLIENTS).map(reads).collect::<Vec<_>>());
    }
    let write = |session| {
        let mut bytes = Vec::new();
        encode_command(&stamped(session, 6, vec![put("n", 10)]), &mut bytes);
        bytes
    };
    let writes: Vec<Vec<u8>> = (1..=CLIENTS).map(write).collect();
    let from = machine.applied();
    let memory = |machine: &Machine<LsmStore>| machine.store().reader().stats().memtable_bytes;
    let mut batches = Vec::new();
    while machine.applied() < from + CLIENTS {
        let done = machine.applied() - from;
        let rest = writes[done as usize..].iter().enumerate();
        let before = memory(&machine);
        let work = rest.map(|(at, bytes)| (from + done + 1 + at as u64, Committed::Command(bytes)));
        let outcomes = machine.apply_some(work, |_| true, 1 << 20).expect("the disk is well");
        assert_eq!(outcomes.len() as u64, machine.applied() - from - done);
        batches.push((outcomes.len(), memory(&machine) - before));
    }
    assert!(batches.len() == 3 && batches[0].0 == batches[1].0, "{batches:?}");
    assert!(batches.iter().all(|(_, bytes)| *bytes < (1 << 20) + (80 << 10)), "{batches:?}");
    assert!(batches[0].1 > 900 << 10, "{batches:?}");
}

proptest! {
    #[test]
    fn the_machine_on_the_engine_does_what_the_model_does_across_crashes(
        commands in vec(any_command(), 1..60),
        cuts in vec((1usize..9, 0usize..12, prop::bool::weighted(0.15)), 1..8),
    ) {
        // The log comes in batches of any size, while the worker gets on as it likes. Now and then
        // the process dies: the log is replayed from the index that the store was flushed at, and
        // everything comes out as the first time.
        let mut model = Model::new(SMALL);
        let expected: Vec<Outcome> = commands.iter().map(|c| model.apply(c)).collect();
        let disk = TestDisk::default();
        let (store, mut worker) = open_store(&disk);
        let mut machine = Machine::open_bounded(store, SMALL).expect("the disk is well");
        let mut crashes = 0;
        for &(size, steps, crash) in cuts.iter().cycle() {
            let from = machine.applied() as usize;
            if from == commands.len() {
                break;
            }
            let to = commands.len().min(from + size);
            prop_assert_eq!(&apply(&mut machine, &commands[from..to]), &expected[from..to]);
            if steps % 3 == 0 {
                machine.store_mut().flush();
            }
            for _ in 0..steps {
                worker.step().expect("the disk is well");
            }
            if crash && crashes < 4 {
                crashes += 1;
                let flushed = machine.store_mut().flushed();
                drop((machine, worker));
                let (store, again) = open_store(&disk);
                worker = again;
                machine = Machine::open_bounded(store, SMALL).expect("what was flushed is read");
                prop_assert_eq!(machine.applied(), flushed);
            }
        }
        prop_assert_eq!(rows_of(&machine), model.rows());
        let mut memory = Machine::open_bounded(MemoryStore::default(), SMALL).expect("empty");
        apply(&mut memory, &commands);
        prop_assert_eq!(print_of(&machine), print_of(&memory));
        while worker.step().expect("the disk is well") == Step::Worked {}
        prop_assert_eq!(print_of(&machine), print_of(&memory));
    }
}

#[test]
fn a_damaged_table_is_an_error_of_the_read_with_path_and_offset() {
    // One block of a table rots; the read that meets it fails and says where. Other blocks are served. A node that
    // starts with damage in what it needs itself applies nothing.
    let disk = TestDisk::default();
    let (store, mut worker) = open_store(&disk);
    let mut machine = Machine::open(store).expect("empty");
    let put = |key: &str| Op::Put { key: key.into(), value: vec![7; 300] };
    let write = Write { ops: vec![put("a"), put("z")], ..Write::default() };
    apply(&mut machine, &[Command::OpenSession, Command::Write(write)]);
    machine.store_mut().flush();
    while worker.step().expect("the disk is well") == Step::Worked {}
    let table = |name| disk.paths().into_iter().find(|p| p.ends_with(name)).expect("flushed");
    // One of the records beside the keys, one of the keys.
    let (records, path) = (table("table-00000001"), table("table-00000002"));
    disk.edit(&path, |bytes| bytes[100] ^= 1);
    let view = machine.reader().view();
    let error = view.get(Space::User, b"a").expect_err("damaged");
    let StoreError::Damaged { path: found, offset, .. } = error else { panic!("{error}") };
    assert_eq!((&found, offset), (&path, 0));
    assert!(view.get(Space::User, b"a").expect_err("again").is_damage());
    assert!(machine.reader().damage().is_some());
    drop((view, machine, worker));

    disk.edit(&records, |bytes| bytes.truncate(60));
    let (store, _worker) = open_store(&disk);
    assert!(Machine::open(store).expect("it opens").is_spoiled());
}

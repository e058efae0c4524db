//! A crash at every operation of a workload, with torn and lost pieces: nothing acknowledged is
//! lost, no promise goes back, and the log goes on.

use super::testdisk::TestDisk;
use super::tests::*;
use super::*;

/// A workload that was run to its end.
struct History {
    disk: TestDisk,
    /// For each acknowledged step: operations at its end, what the log must hold, first index.
    acknowledged: Vec<(usize, Model, Index)>,
    steps: Vec<Step>,
}

fn history(seed: u64, count: usize) -> History {
    let disk = TestDisk::default();
    let mut wal = open(&disk).unwrap().0;
    let mut model = Model::default();
    let steps = script(seed, count);
    let mut acknowledged = vec![(disk.ops(), model.clone(), 1)];
    for step in &steps {
        run(&mut wal, step).unwrap();
        model.step(step);
        model.check(&wal);
        acknowledged.push((disk.ops(), model.clone(), wal.first_index()));
    }
    History { disk, acknowledged, steps }
}

/// The states in which a crash may leave the log while `step` is being done.
fn between(before: &Model, step: Option<&Step>) -> Vec<Model> {
    let mut states = vec![before.clone()];
    let mut state = before.clone();
    match step {
        Some(Step::Write(requests)) => {
            for request in requests {
                state.hard_state = request.hard_state.unwrap_or(state.hard_state);
                states.push(state.clone());
                for entry in &request.entries {
                    state.entries.truncate((entry.index - state.base - 1) as usize);
                    states.push(state.clone());
                    state.put(entry);
                    states.push(state.clone());
                }
            }
        }
        Some(step) => {
            state.step(step);
            states.push(state);
        }
        None => {}
    }
    states
}

/// Opens after a crash, checks, goes on writing, and opens again.
fn check_crash(disk: &TestDisk, history: &History, n: usize, what: &str) {
    let done = history.acknowledged.iter().rposition(|a| a.0 <= n);
    let must_exist = done.is_some();
    let options = Options { must_exist, ..options() };
    let (mut wal, recovered) =
        Wal::open(disk.shared(), Path::new(DIR), options).unwrap_or_else(|e| panic!("{what}: {e}"));
    check_recovered(&wal, &recovered);
    let done = done.unwrap_or(0);
    let (_, before, first) = &history.acknowledged[done];
    let entries = read_all(&wal);
    let state = between(before, history.steps.get(done)).into_iter().find(|state| {
        let from = wal.first_index().checked_sub(state.base + 1);
        state.hard_state == wal.hard_state()
            && state.last() == wal.last_index()
            && from.and_then(|from| state.entries.get(from as usize..)) == Some(&entries[..])
    });
    let Some(mut state) = state else {
        let (range, step) = (wal.first_index()..=wal.last_index(), history.steps.get(done));
        panic!("{what}: log {range:?}, {:?} after {before:?} and {step:?}", wal.hard_state())
    };
    assert!(wal.first_index() >= *first, "{what}: compaction went back");
    let most = history.acknowledged.get(done + 1).map_or(*first, |a| a.2);
    assert!(wal.first_index() <= most, "{what}: too much was compacted");

    // Life goes on: enough for a roll, and a tail that is replaced.
    let term = state.hard_state.term.max(wal.term(wal.last_index()).unwrap()) + 1;
    for i in 0..4 {
        let entry = command(wal.last_index() + 1, term, 3000);
        let hard_state = (i == 0).then_some(HardState { term, vote: None });
        let step = Step::Write(vec![persist(hard_state, vec![entry])]);
        run(&mut wal, &step).unwrap_or_else(|e| panic!("{what}: {e}"));
        state.step(&step);
    }
    let step = Step::Write(vec![persist(None, vec![command(wal.last_index(), term + 1, 10)])]);
    run(&mut wal, &step).unwrap();
    state.step(&step);
    drop(wal);
    let (wal, recovered) = open(&disk.crashed(disk.ops(), 0))
        .unwrap_or_else(|e| panic!("{what}, second opening: {e}"));
    assert!(recovered.cut.is_none(), "{what}: all was synced, but something was cut");
    assert_eq!(
        read_all(&wal),
        state.entries[state.entries.len() - (wal.last_index() + 1 - wal.first_index()) as usize..]
    );
    assert_eq!(wal.last_index(), state.last());
}

/// The machine stops at any operation of the workload; pieces of what was not synced are lost.
#[test]
fn a_crash_at_every_operation_loses_nothing_acknowledged() {
    let mut cuts = 0;
    for seed in 1..=16 {
        let history = history(seed, 40);
        for n in 0..=history.disk.ops() {
            for crash in [0, 1, 2 + seed + n as u64, 1000 + n as u64] {
                let disk = history.disk.crashed(n, crash);
                cuts += usize::from(matches!(open(&disk.copy()), Ok((_, r)) if r.cut.is_some()));
                check_crash(&disk, &history, n, &format!("script {seed}, op {n}, crash {crash}"));
            }
            let killed = history.disk.killed(n);
            check_crash(&killed, &history, n, &format!("script {seed}, op {n}, killed"));
        }
    }
    assert!(cuts > 100, "torn tails must have been met, not {cuts}");
}

/// The machine stops inside a write: of its sectors the first so many are there, or all but those,
/// for every number of them.
#[test]
fn a_write_torn_at_every_sector_loses_nothing_acknowledged() {
    let mut torn = 0;
    for seed in 31..=38 {
        let history = history(seed, 30);
        for n in 1..=history.disk.ops() {
            for kept in 0..=history.disk.sectors(n) {
                for front in [true, false] {
                    let disk = history.disk.torn(n, kept, front);
                    let what = format!("script {seed}, op {n}, {kept} sectors, front {front}");
                    check_crash(&disk, &history, n - 1, &what);
                    torn += 1;
                }
            }
        }
    }
    assert!(torn > 1000, "writes must have been torn, not {torn}");
}

/// The machine stops again while it recovers, at any operation of that.
#[test]
fn a_crash_during_recovery_loses_nothing_either() {
    for seed in 21..=25 {
        let history = history(seed, 30);
        for n in (0..=history.disk.ops()).step_by(2) {
            for first in [history.disk.crashed(n, 5 + n as u64), history.disk.killed(n)] {
                let begin = first.ops();
                open(&first).unwrap();
                for m in begin..=first.ops() {
                    for crash in [0, 7 + m as u64] {
                        let what = format!("script {seed}, op {n}, recovery {m}, crash {crash}");
                        check_crash(&first.crashed(m, crash), &history, n, &what);
                    }
                }
            }
        }
    }
}

/// The identity is stored again and again; a crash at any operation leaves the old or the new
/// one, and one spoiled copy of a finished store loses nothing.
#[test]
fn an_identity_survives_a_crash_at_every_operation() {
    let dir = Path::new("/data");
    let disk = TestDisk::default();
    let mut stored = vec![(0, None)];
    for i in 1..=4u64 {
        let identity = Identity {
            cluster: 5,
            node: 1,
            identity: 77,
            created: i > 1,
            restoring: false,
            removed: false,
            denied: false,
            advertise: format!("host:{i}"),
            members: configuration(i).members.clone(),
            secret: (i > 2).then_some(MembersSecret { bytes: [i as u8; 32], sealed: i > 3 }),
        };
        identity.store(&disk, dir).unwrap();
        stored.push((disk.ops(), Some(identity)));
    }
    for n in 0..=disk.ops() {
        for crash in 0..6 {
            let disk = disk.crashed(n, crash);
            let done = stored.iter().rposition(|s| s.0 <= n).unwrap();
            let found = Identity::load(&disk, dir).unwrap();
            let new = stored.get(done + 1).map(|s| &s.1);
            assert!(found == stored[done].1 || Some(&found) == new, "op {n}, crash {crash}");
            // Loading has repaired what it found: either copy alone is enough now.
            for path in disk.paths() {
                let disk = disk.copy();
                disk.edit(&path, |bytes| bytes.iter_mut().for_each(|b| *b ^= 0x40));
                if found.is_some() {
                    assert_eq!(Identity::load(&disk, dir).unwrap(), found);
                }
            }
        }
    }
}

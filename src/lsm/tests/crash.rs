//! A crash at every file operation of flushes, compactions and manifest switches.

use super::*;
use crate::wal::testdisk::Fault;

/// A history that was run to its end: the disk, the state behind each applied index, and for each
/// moment (as a count of file operations) what was known to be flushed then.
fn history(seed: u64) -> (TestDisk, BTreeMap<u64, Model>, Vec<(usize, u64)>) {
    let mut dice = Dice(seed);
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut model = Model::new();
    let mut states = BTreeMap::from([(0, model.clone())]);
    let mut flushed = vec![(disk.ops(), 0)];
    for applied in 1..220 {
        write(&mut engine, &mut model, applied, &any_batch(&mut dice));
        states.insert(applied, model.clone());
        for _ in 0..dice.below(3) {
            worker.step().unwrap();
            flushed.push((disk.ops(), engine.flushed()));
        }
    }
    engine.flush();
    while worker.step().unwrap() == Step::Worked {
        flushed.push((disk.ops(), engine.flushed()));
    }
    let stats = engine.stats();
    assert!(stats.compacted_bytes > 0 && stats.levels[2].0 > 0, "{stats:?}");
    (disk, states, flushed)
}

/// Every disk that a crash at operation `n` may leave: without anything that was not synced, with all
/// of it, with some; and when it was a write, with that cut behind and in front of its sectors.
pub(super) fn images(disk: &TestDisk, n: usize) -> Vec<(String, TestDisk)> {
    let mut images: Vec<_> = [("nothing unsynced", 0), ("all", 1), ("some", 2 + n as u64)]
        .map(|(what, seed)| (what.to_owned(), disk.crashed(n, seed)))
        .into();
    let sectors = if n == 0 { 0 } else { disk.sectors(n) };
    for kept in 0..sectors {
        for (front, what) in [(true, "only"), (false, "all but")] {
            images.push((format!("{what} {kept} sectors"), disk.torn(n, kept, front)));
        }
    }
    images
}

#[test]
fn after_a_crash_at_every_operation_the_store_equals_the_model() {
    // Whatever was not synced is lost, kept, or torn; the store opens at a batch's end, not before
    // what it called flushed, equals the model there, and goes on.
    let mut operations = BTreeMap::new();
    for seed in [3, 4] {
        let (disk, states, flushed) = history(seed);
        for n in 0..=disk.ops() {
            if n > 0 {
                let (what, name) = disk.operation(n);
                let name = name.split_once('-').map_or("", |(kind, _)| kind).to_owned();
                *operations.entry((what, name)).or_insert(0) += 1;
            }
            let least = flushed.iter().rev().find(|(ops, _)| *ops <= n).map_or(0, |f| f.1);
            for (image, disk) in images(&disk, n) {
                let what = format!("history {seed}, operation {n}, {image}");
                let (mut engine, mut worker) =
                    open(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
                let applied = engine.applied();
                assert!(applied >= least, "{what}: {applied} is before {least}");
                let mut model = states[&applied].clone();
                assert_eq!(contents(&engine.reader().view(), false).unwrap(), model, "{what}");
                // Life goes on, and its work is durable.
                let batch = [((1, b"new".to_vec()), Some(vec![1; 99])), ((1, vec![]), None)];
                write(&mut engine, &mut model, applied + 1, &batch);
                engine.flush();
                drain(&mut worker);
                assert_eq!(engine.flushed(), applied + 1);
                let (engine, _) = open(&disk.crashed(disk.ops(), 0)).unwrap();
                assert_eq!(contents(&engine.reader().view(), true).unwrap(), model, "{what}");
            }
        }
    }
    // Everything that flush, compaction and switch do to files was crashed at; nothing is renamed.
    let kinds: Vec<(&str, &str)> = operations.keys().map(|(what, of)| (*what, &of[..])).collect();
    assert_eq!(
        kinds,
        [
            ("create", "manifest"),
            ("create", "table"),
            ("remove", "table"),
            ("sync", "manifest"),
            ("sync", "table"),
            ("sync directory", ""),
            ("write", "manifest"),
            ("write", "table"),
        ]
    );
    assert!(operations.values().all(|count| *count >= 4), "{operations:?}");
}

#[test]
fn a_crash_within_a_crash_leaves_the_store_whole() {
    // The machine stops while the store is opened again after a crash: at every operation that
    // opening does, be it to make the slots of the manifest alike or to remove orphans.
    let (disk, states, flushed) = history(5);
    let mut repairs = 0;
    for n in (0..=disk.ops()).step_by(2) {
        let least = flushed.iter().rev().find(|(ops, _)| *ops <= n).map_or(0, |f| f.1);
        for disk in [disk.crashed(n, 2 + n as u64), disk.killed(n)] {
            let first = disk.ops();
            let (engine, _worker) = open(&disk).unwrap();
            repairs += engine.stats().manifest_repairs;
            let applied = engine.applied();
            for m in first..=disk.ops() {
                for (image, disk) in images(&disk, m) {
                    let what = format!("operation {n}, then {m}, {image}");
                    let (engine, _) = open(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
                    let again = engine.applied();
                    assert!((least..=applied).contains(&again), "{what}: {again}");
                    let shown = contents(&engine.reader().view(), false).unwrap();
                    assert_eq!(shown, states[&again], "{what}");
                }
            }
        }
    }
    assert!(repairs > 10, "{repairs}");
}

#[test]
fn a_process_killed_and_started_again_syncs_what_the_first_one_did_not() {
    // The first process is killed, the second finds files whose names and data are not durable,
    // then the machine stops.
    let (disk, states, _) = history(7);
    for n in (0..=disk.ops()).step_by(3) {
        let disk = disk.killed(n);
        let (mut engine, mut worker) = open(&disk).unwrap();
        let applied = engine.applied();
        let mut model = states[&applied].clone();
        for i in 1..4 {
            write(&mut engine, &mut model, applied + i, &[((1, vec![9]), Some(vec![i as u8]))]);
            engine.flush();
            drain(&mut worker);
        }
        for seed in [0, n as u64 + 2] {
            let crashed = disk.crashed(disk.ops(), seed);
            let (engine, _) = open(&crashed).unwrap_or_else(|e| panic!("operation {n}: {e}"));
            assert_eq!(engine.applied(), applied + 3, "operation {n}");
            assert_eq!(contents(&engine.reader().view(), false).unwrap(), model, "operation {n}");
        }
    }
}

#[test]
fn a_failed_sync_is_final() {
    // The disk cannot sync: nothing is called flushed, and the store takes nothing more; what a
    // view showed it still shows.
    for fault in [Fault::Write, Fault::Sync] {
        let disk = TestDisk::default();
        let (mut engine, mut worker) = open(&disk).unwrap();
        let mut model = Model::new();
        write(&mut engine, &mut model, 1, &[((1, b"k".to_vec()), Some(b"v".to_vec()))]);
        engine.flush();
        disk.fail(Some(fault));
        let error = std::iter::repeat_with(|| worker.step()).find_map(Result::err).unwrap();
        assert_eq!(error.class(), Class::Stop, "{error}");
        disk.fail(None);
        assert!(matches!(worker.step(), Err(LsmError::Failed)));
        assert!(matches!(engine.write(2, []), Err(LsmError::Failed)));
        assert_eq!(engine.flushed(), 0);
        assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
        drop((engine, worker));
        let (engine, _) = open(&disk.crashed(disk.ops(), 1)).unwrap();
        assert_eq!(engine.applied(), 0);
    }
}

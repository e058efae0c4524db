//! Random histories against a sorted map, and the stories that deserve a test of their own.

use super::*;

/// What a scan should show.
fn wanted(model: &Model, scan: &Scan<'_>, limit: usize) -> Vec<Shown> {
    let above = |key: &[u8]| match scan.lower {
        Bound::Included(bound) => key >= bound,
        Bound::Excluded(bound) => key > bound,
        Bound::Unbounded => true,
    };
    let below = |key: &[u8]| match scan.upper {
        Bound::Included(bound) => key <= bound,
        Bound::Excluded(bound) => key < bound,
        Bound::Unbounded => true,
    };
    let mut rows: Vec<_> = model
        .iter()
        .filter(|((space, key), _)| *space == scan.space && above(key) && below(key))
        .map(|((_, key), (revision, value))| (key.clone(), *revision, value.clone()))
        .collect();
    if scan.reverse {
        rows.reverse();
    }
    rows.truncate(limit);
    rows
}

fn check_scan(view: &View, model: &Model, dice: &mut Dice) {
    let (from, to) = (any_key(dice).1, any_key(dice).1);
    fn bound<'k>(dice: &mut Dice, key: &'k [u8]) -> Bound<&'k [u8]> {
        match dice.below(3) {
            0 => Bound::Included(key),
            1 => Bound::Excluded(key),
            _ => Bound::Unbounded,
        }
    }
    let scan = Scan {
        space: any_key(dice).0,
        lower: bound(dice, &from),
        upper: bound(dice, &to),
        reverse: dice.below(2) == 0,
    };
    let limit = [1, 3, 20, usize::MAX][dice.below(4) as usize];
    assert_eq!(rows(view, &scan, limit).unwrap(), wanted(model, &scan, limit), "{scan:?}");
}

/// Reads a range page by page, each from behind the last key of the one before.
fn check_pages(view: &View, model: &Model, dice: &mut Dice) {
    let (space, reverse) = (any_key(dice).0, dice.below(2) == 0);
    let limit = 1 + dice.below(7) as usize;
    let end = any_key(dice).1;
    let mut cursor: Option<Vec<u8>> = None;
    let mut shown = Vec::new();
    let scan_from = |cursor: &Option<Vec<u8>>| -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let from = cursor.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let to = Bound::Included(end.clone());
        if reverse { (to, from) } else { (from, to) }
    };
    loop {
        let (lower, upper) = scan_from(&cursor);
        let (lower, upper) = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
        let page = rows(view, &Scan { space, lower, upper, reverse }, limit).unwrap();
        let Some((last, ..)) = page.last() else { break };
        cursor = Some(last.clone());
        shown.extend(page);
    }
    let (lower, upper) = scan_from(&None);
    let (lower, upper) = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
    assert_eq!(shown, wanted(model, &Scan { space, lower, upper, reverse }, usize::MAX));
}

/// What happened in random histories.
#[derive(Debug, Default)]
struct Happened {
    operations: u64,
    crashes: u64,
    deepest: usize,
}

/// Runs a random history. Operations are batches, reads, scans, flushes, steps of the worker, and
/// crashes at any file operation since the last.
fn history(seed: u64, count: u64, happened: &mut Happened) {
    let mut dice = Dice(seed);
    let mut disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut model = Model::new();
    // Since the last crash: the state behind each batch, and what was flushed at which operation.
    let mut states = vec![(0, model.clone())];
    let mut flushed = vec![(0, 0)];
    let mut held: Vec<(View, Model)> = Vec::new();
    for _ in 0..count {
        happened.operations += 1;
        match dice.below(40) {
            0..22 => {
                let applied = engine.applied() + 1 + dice.below(3);
                write(&mut engine, &mut model, applied, &any_batch(&mut dice));
                states.push((applied, model.clone()));
            }
            22..26 => {
                let key = any_key(&mut dice);
                let view = engine.reader().view();
                assert_eq!(view.applied(), engine.applied());
                assert_eq!(get(&view, &key).unwrap(), model.get(&key).cloned(), "{key:?}");
            }
            26..29 => check_scan(&engine.reader().view(), &model, &mut dice),
            29 => check_pages(&engine.reader().view(), &model, &mut dice),
            30 => held.push((engine.reader().view(), model.clone())),
            31 => {
                if let Some((view, model)) = held.last() {
                    check_scan(view, model, &mut dice);
                }
                if dice.below(3) == 0 && !held.is_empty() {
                    let at = dice.below(held.len() as u64) as usize;
                    let (view, model) = held.swap_remove(at);
                    let reverse = dice.below(2) == 0;
                    assert_eq!(contents(&view, reverse).unwrap(), model, "a held view moved");
                }
            }
            32 if dice.below(2) == 0 => engine.flush(),
            33 if dice.below(10) == 0 => {
                happened.crashes += 1;
                drop((engine, worker));
                held.clear();
                // At the end nothing is lost but what was not flushed.
                let ops = disk.ops();
                let at = if dice.below(3) == 0 { ops } else { dice.below(ops as u64 + 1) as usize };
                let least = flushed.iter().rev().find(|(ops, _)| *ops <= at).map_or(0, |f| f.1);
                disk = disk.crashed(at, dice.below(5));
                (engine, worker) = open(&disk).unwrap();
                let applied = engine.applied();
                assert!(applied >= least, "{applied} is before {least}");
                let at = states.iter().position(|(at, _)| *at == applied).unwrap();
                model = states.swap_remove(at).1;
                assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
                states = vec![(applied, model.clone())];
                flushed = vec![(0, applied)];
            }
            34 if dice.below(10) == 0 => drain(&mut worker),
            _ => {
                for _ in 0..dice.below(6) {
                    worker.step().unwrap();
                }
            }
        }
        if flushed.last().is_none_or(|(_, last)| *last != engine.flushed()) {
            flushed.push((disk.ops(), engine.flushed()));
        }
    }
    drain(&mut worker);
    assert_eq!(contents(&engine.reader().view(), true).unwrap(), model);
    let stats = engine.stats();
    assert!(stats.open_files <= options().open_files_max, "{stats:?}");
    let deepest = stats.levels.iter().rposition(|l| l.0 > 0).unwrap_or(0);
    happened.deepest = happened.deepest.max(deepest);
}

#[test]
fn random_histories_equal_a_sorted_map() {
    // Writes, reads, scans, held views, flushes, compactions and crashes in any order.
    let mut happened = Happened::default();
    for seed in 0..24 {
        history(seed, 1500, &mut happened);
    }
    assert!(happened.deepest >= 2, "the histories must reach below level 1");
    assert!(happened.crashes > 20, "{happened:?}");
}

#[test]
#[ignore = "long: a million operations, see docs/operations.md"]
fn a_million_random_operations_equal_a_sorted_map() {
    // As above, for longer.
    let mut happened = Happened::default();
    for seed in 1000..1020 {
        history(seed, 50_000, &mut happened);
    }
    assert!(happened.operations >= 1_000_000 && happened.crashes > 1000, "{happened:?}");
    println!("{happened:?}");
}

#[test]
fn what_was_deleted_leaves_no_trace_on_disk() {
    // Ten thousand keys are written and all deleted; when the dust has settled neither the keys
    // nor the tombstones take space.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let key = |i: u64| (i * 7919 % 2000).to_be_bytes();
    for i in 0..2000 {
        let key = key(i);
        engine
            .write(i + 1, [Change { space: 1, key: &key, value: Some((i + 1, b"value")) }])
            .unwrap();
        worker.step().unwrap();
    }
    for i in 0..2000 {
        let key = key(i);
        engine.write(i + 2001, [Change { space: 1, key: &key, value: None }]).unwrap();
        worker.step().unwrap();
    }
    // What is small enough may stay where it is; a later write below the trigger keeps it so.
    for i in 0..8 {
        let key = [i as u8];
        for key in [&[0][..], &key, &[255; 9]] {
            engine.write(engine.applied() + 1, [Change { space: 1, key, value: None }]).unwrap();
        }
        engine.flush();
        drain(&mut worker);
    }
    assert_eq!(contents(&engine.reader().view(), false).unwrap(), Model::new());
    let stats = engine.stats();
    let entries: u64 = stats.table_entries;
    assert!(entries < 2000, "{entries} entries are left: {stats:?}");
}

#[test]
fn a_walk_by_cursor_goes_on_across_flush_compaction_and_restart() {
    // A client reads a page, and before it asks for the next everything moves to other files.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut model = Model::new();
    for i in 0..300u64 {
        let key = (1, format!("key-{:04}", i * 37 % 300).into_bytes());
        write(&mut engine, &mut model, i + 1, &[(key, Some(i.to_le_bytes().to_vec()))]);
    }
    engine.flush();
    worker.step().unwrap();
    let mut seen = Vec::new();
    let mut last = Vec::new();
    loop {
        let scan = Scan {
            space: 1,
            lower: Bound::Excluded(&last),
            upper: Bound::Unbounded,
            reverse: false,
        };
        let page = rows(&engine.reader().view(), &scan, 7).unwrap();
        let Some(end) = page.last() else { break };
        last.clone_from(&end.0);
        seen.extend(page);
        if seen.len() == 70 {
            drain(&mut worker);
        } else if seen.len() == 140 {
            drop((engine, worker));
            (engine, worker) = open(&disk.copy()).unwrap();
        }
    }
    let all: Vec<_> = model.into_iter().map(|((_, key), (at, value))| (key, at, value)).collect();
    assert_eq!(seen, all);
}

#[test]
fn a_view_keeps_its_files_and_their_removal_waits_for_it() {
    // A slow reader holds a cut while all its tables are compacted away.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut model = Model::new();
    let mut dice = Dice(5);
    let mut fill = |engine: &mut Engine, worker: &mut Worker, model: &mut Model| {
        for _ in 0..150 {
            let applied = engine.applied() + 1;
            write(engine, model, applied, &any_batch(&mut dice));
            drain(worker);
        }
    };
    fill(&mut engine, &mut worker, &mut model);
    let (view, then) = (engine.reader().view(), model.clone());
    let files = |disk: &TestDisk| {
        disk.paths().iter().filter(|p| p.to_string_lossy().contains("table-")).count()
    };
    fill(&mut engine, &mut worker, &mut model);
    let tables = |engine: &Engine| engine.stats().levels.iter().map(|l| l.0).sum::<usize>();
    assert!(files(&disk) > tables(&engine), "the view's files must still be there");
    assert_eq!(contents(&view, true).unwrap(), then);
    drop(view);
    drain(&mut worker);
    assert_eq!(files(&disk), tables(&engine), "nobody needs more files than these");
    assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
}

#[test]
fn tables_that_meet_nothing_go_down_without_being_rewritten() {
    // Keys arrive in order, as a load does: each byte is written to a table once.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    for i in 0..3000u64 {
        let key = i.to_be_bytes();
        engine
            .write(i + 1, [Change { space: 1, key: &key, value: Some((i + 1, &[7; 50])) }])
            .unwrap();
        drain(&mut worker);
    }
    let stats = engine.stats();
    assert_eq!(stats.compacted_bytes, 0, "{stats:?}");
    assert!(stats.levels[2].0 > 0, "{stats:?}");
    assert!(stats.write_amplification() < 1.5, "{stats:?}");
}

#[test]
fn the_writer_is_slowed_smoothly_and_never_stopped() {
    // The worker does not get on; the advice grows step by step, up to its bound.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut delays = Vec::new();
    for i in 0..400u64 {
        let key = i.to_be_bytes();
        engine
            .write(i + 1, [Change { space: 1, key: &key, value: Some((i + 1, &[7; 850])) }])
            .unwrap();
        delays.push(engine.take_delay_us());
    }
    assert_eq!(delays[0], 0);
    assert!(delays.windows(2).all(|w| w[0] <= w[1]), "the debt only grew");
    let jump = delays.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    assert!((1..1500).contains(&jump), "a jump of {jump} us");
    assert!(*delays.last().unwrap() > 1000);
    drain(&mut worker);
    assert_eq!(engine.take_delay_us(), 0, "the debt is paid");
}

#[test]
fn what_is_more_than_one_wait_is_owed_until_the_worker_has_caught_up() {
    // Nine memtables in one batch: the writer is asked to wait again and again, and written on at once it owes more.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let batch = |engine: &mut Engine, applied: u64| {
        let keys: Vec<_> = (0..54u64).map(u64::to_be_bytes).collect();
        let change = |key| Change { space: 1, key, value: Some((applied, &[7; 900][..])) };
        engine.write(applied, keys.iter().map(|key| change(&key[..]))).unwrap();
    };
    let pay = |engine: &mut Engine| {
        let delays = std::iter::from_fn(|| Some(engine.take_delay_us()));
        delays.take_while(|&delay_us| delay_us > 0).collect::<Vec<_>>()
    };
    batch(&mut engine, 1);
    let one = pay(&mut engine);
    assert!(one.len() > 2 && one.iter().all(|&us| us <= 50_000), "{one:?}");
    batch(&mut engine, 2);
    batch(&mut engine, 3);
    let two = pay(&mut engine);
    assert!(2 * two.iter().sum::<u64>() > 3 * one.iter().sum::<u64>(), "{one:?} {two:?}");
    batch(&mut engine, 4);
    assert_eq!(engine.take_delay_us(), 50_000);
    drain(&mut worker);
    assert_eq!(engine.take_delay_us(), 0, "nothing is owed to a worker that has caught up");
}

#[test]
fn rules_of_the_interface_are_checked_before_anything_is_done() {
    // A caller that repeats an index or brings a giant key learns so, and the store goes on.
    let disk = TestDisk::default();
    let (mut engine, _worker) = open(&disk).unwrap();
    let put = |key| Change { space: 1, key, value: Some((1, &b"v"[..])) };
    engine.write(5, [put(b"a")]).unwrap();
    let long = vec![0; KEY_BYTES_MAX + 1];
    for result in [engine.write(5, [put(b"b")]), engine.write(6, [put(b"b"), put(&long)])] {
        assert_eq!(result.unwrap_err().class(), Class::Reject);
    }
    assert_eq!(engine.applied(), 5);
    engine.write(6, [put(b"c")]).unwrap();
    let view = engine.reader().view();
    assert!(view.get(1, b"b").unwrap().is_none());
    assert!(view.get(1, b"c").unwrap().is_some());
}

#[test]
fn a_batch_without_changes_moves_the_flushed_index() {
    // Only no-ops came since the last flush: the log in front of them may go all the same.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    engine.write(9, []).unwrap();
    engine.flush();
    drain(&mut worker);
    assert_eq!(engine.flushed(), 9);
    drop((engine, worker));
    assert_eq!(open(&disk.copy()).unwrap().0.applied(), 9);
}

//! Deletes give space and time back, and no key comes back for it.

use super::*;

const ALL: Scan<'static> =
    Scan { space: 1, lower: Bound::Unbounded, upper: Bound::Unbounded, reverse: false };

fn key(number: u64) -> Vec<u8> {
    format!("job-{number:06}").into_bytes()
}

/// Writes or deletes keys, a few a batch, with a record beside them as the state machine keeps one.
fn fill(
    engine: &mut Engine,
    worker: &mut Worker,
    numbers: impl IntoIterator<Item = u64>,
    value: Option<&[u8]>,
) {
    let keys: Vec<Vec<u8>> = numbers.into_iter().map(key).collect();
    for keys in keys.chunks(8) {
        let applied = engine.applied() + 1;
        let record = Change { space: 0, key: b"d", value: Some((applied, b"1234")) };
        let change = |key| Change { space: 1, key, value: value.map(|value| (applied, value)) };
        let changes = keys.iter().map(|key| change(key.as_slice()));
        engine.write(applied, std::iter::once(record).chain(changes)).unwrap();
        worker.step().unwrap();
    }
}

fn bytes(engine: &Engine) -> u64 {
    engine.stats().levels.iter().map(|(_, bytes)| bytes).sum()
}

/// Makes all that is in memory durable, and works until nothing is left to do.
fn settle(engine: &mut Engine, worker: &mut Worker) {
    engine.flush();
    drain(worker);
}

#[test]
fn what_was_deleted_gives_its_space_back_at_rest() {
    // Keys are written in order and all, or most, of them are deleted: nothing more is asked for.
    for left in [0, 100] {
        let disk = TestDisk::default();
        let (mut engine, mut worker) = open(&disk).unwrap();
        fill(&mut engine, &mut worker, 0..2000, Some(&[7; 50]));
        settle(&mut engine, &mut worker);
        let full = bytes(&engine);
        assert!(full > 100_000 && engine.stats().levels[2].0 > 0, "{:?}", engine.stats());
        fill(&mut engine, &mut worker, left..2000, None);
        settle(&mut engine, &mut worker);
        let stats = engine.stats();
        let room = (left + 8) * full / 2000;
        assert!(
            bytes(&engine) <= 2 * room,
            "{} of {full} bytes are left: {stats:?}",
            bytes(&engine)
        );
        assert!(stats.reclaims > 0 && stats.tombstones_dropped > 0, "{stats:?}");
        assert_eq!(rows(&engine.reader().view(), &ALL, usize::MAX).unwrap().len() as u64, left);
    }
}

#[test]
fn tombstones_in_memory_that_hide_most_of_the_store_call_for_a_flush() {
    // All keys are deleted and nobody writes any more: the memtable is far from full, and hides everything.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    fill(&mut engine, &mut worker, 0..30, Some(&[7; 200]));
    settle(&mut engine, &mut worker);
    let full = bytes(&engine);
    fill(&mut engine, &mut worker, [3], None);
    assert!(!worker.wants_flush(), "one of thirty is not worth it");
    fill(&mut engine, &mut worker, 0..30, None);
    drain(&mut worker);
    assert!(worker.wants_flush() && bytes(&engine) == full);
    settle(&mut engine, &mut worker);
    assert!(!worker.wants_flush() && bytes(&engine) < full / 10, "{:?}", engine.stats());
}

#[test]
fn a_tombstone_stays_as_long_as_an_older_value_may_lie_below() {
    // Values lie at the bottom; their keys are deleted, and the tombstones go down a step of the worker at a time.
    // After each step the keys are gone, here, in a view of before, and in a store that is opened then.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    fill(&mut engine, &mut worker, 0..600, Some(&[7; 50]));
    settle(&mut engine, &mut worker);
    engine.reader().compact();
    drain(&mut worker);
    let before = engine.reader().view();
    fill(&mut engine, &mut worker, (0..600).filter(|i| i % 3 > 0), None);
    engine.flush();
    let after = engine.reader().view();
    let gone = |view: &View| {
        let rows = rows(view, &ALL, usize::MAX).unwrap();
        assert_eq!(rows.len(), 200, "deleted keys are back, or others are gone");
        assert!(get(view, &(1, key(1))).unwrap().is_none());
    };
    let mut steps = 0;
    while worker.step().unwrap() == Step::Worked {
        steps += 1;
        gone(&engine.reader().view());
        gone(&after);
        if steps % 16 == 0 && engine.flushed() == engine.applied() {
            gone(&open(&disk.copy()).unwrap().0.reader().view());
        }
    }
    assert!(
        steps > 10 && engine.stats().tombstones_dropped >= 400,
        "{steps}: {:?}",
        engine.stats()
    );
    assert_eq!(engine.stats().tombstones, 0);
    assert_eq!(rows(&before, &ALL, usize::MAX).unwrap().len(), 600);
}

#[test]
fn a_scan_ends_after_bounded_work_and_goes_on_behind_it() {
    // A hundred keys among thousands that are deleted, in memory and in tables, in both directions: no piece passes
    // over more than was allowed, and the pieces show every key once.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    fill(&mut engine, &mut worker, 0..1500, Some(&[7; 50]));
    settle(&mut engine, &mut worker);
    for number in (0..1500).filter(|i| i % 15 > 0) {
        let key = key(number);
        let gone = Change { space: 1, key: &key, value: None };
        engine.write(engine.applied() + 1, [gone]).unwrap();
    }
    // Half of it: memtables are flushed before anything is compacted.
    let half = engine.applied() - 700;
    while engine.flushed() < half {
        worker.step().unwrap();
    }
    let view = engine.reader().view();
    for reverse in [false, true] {
        let (mut seen, mut pieces, mut empty) = (Vec::new(), 0, 0);
        let mut from: Option<Vec<u8>> = None;
        loop {
            let bound = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let (lower, upper) =
                if reverse { (Bound::Unbounded, bound) } else { (bound, Bound::Unbounded) };
            let mut shown = 0;
            let scan = Scan { lower, upper, reverse, ..ALL };
            let on = view.scan_within(&scan, 10, &mut |row| {
                shown += 1;
                seen.push(row.key.to_vec());
                ControlFlow::Continue(())
            });
            pieces += 1;
            empty += usize::from(shown == 0);
            assert!(shown <= 10, "{shown} keys between ten that are deleted");
            match on.unwrap() {
                Some(key) => from = Some(key),
                None => break,
            }
        }
        if reverse {
            seen.reverse();
        }
        assert_eq!(seen, (0..1500).step_by(15).map(key).collect::<Vec<_>>());
        assert!(pieces >= 1400 / 10 && empty > 0, "{pieces} pieces, {empty} of them empty");
    }
    // A large hidden value is work, too.
    let big = vec![7; 100 << 10];
    fill(&mut engine, &mut worker, [1], Some(&big));
    engine.flush();
    fill(&mut engine, &mut worker, [1], None);
    let few = Scan { upper: Bound::Included(b"job-000003"), ..ALL };
    let mut visit = |_: Row<'_>| ControlFlow::Continue(());
    let view = engine.reader().view();
    assert_eq!(view.scan_within(&few, 20, &mut visit).unwrap(), Some(key(2)));
    assert_eq!(view.scan_within(&few, 200, &mut visit).unwrap(), None);
}

#[test]
fn a_queue_keeps_its_cost() {
    // Keys are appended at one end and deleted at the other, forty times as many as there are at a time.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut most = (0, 0);
    for round in 0..400u64 {
        fill(&mut engine, &mut worker, round * 20..round * 20 + 20, Some(&[7; 50]));
        let gone = (round * 20).saturating_sub(200);
        fill(&mut engine, &mut worker, gone.saturating_sub(20)..gone, None);
        drain(&mut worker);
        if round > 40 {
            let stats = engine.stats();
            most = (most.0.max(bytes(&engine)), most.1.max(stats.tombstones));
        }
    }
    assert!(most.0 < 60_000, "{} bytes for 220 keys of 70", most.0);
    assert!(most.1 < 600, "{} tombstones", most.1);
}

#[test]
fn a_compaction_on_demand_leaves_each_key_once_and_no_tombstone() {
    // Random writes fill several levels; tables are then brought down to one sorted run, while writes go on.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let (mut model, mut dice) = (Model::new(), Dice(11));
    for _ in 0..600 {
        let applied = engine.applied() + 1;
        write(&mut engine, &mut model, applied, &any_batch(&mut dice));
        worker.step().unwrap();
    }
    settle(&mut engine, &mut worker);
    let reader = engine.reader();
    assert_eq!(reader.compaction_left(), None);
    reader.compact();
    assert!(reader.compaction_left().is_some_and(|left| left > 0), "{:?}", engine.stats());
    let mut lefts = Vec::new();
    while worker.step().unwrap() == Step::Worked {
        lefts.extend(reader.compaction_left());
    }
    assert_eq!(reader.compaction_left(), None);
    assert!(lefts.first() > lefts.last(), "{lefts:?}");
    let stats = engine.stats();
    assert_eq!((stats.table_entries, stats.tombstones), (model.len() as u64, 0), "{stats:?}");
    assert_eq!(contents(&reader.view(), false).unwrap(), model);
    // Asked for twice, and with writes meanwhile, it ends all the same.
    reader.compact();
    reader.compact();
    for _ in 0..200 {
        let applied = engine.applied() + 1;
        write(&mut engine, &mut model, applied, &any_batch(&mut dice));
        worker.step().unwrap();
    }
    drain(&mut worker);
    assert_eq!(reader.compaction_left(), None);
    assert_eq!(contents(&reader.view(), true).unwrap(), model);
}

#[test]
fn sorted_keys_go_down_unread_though_each_batch_writes_a_record_beside_them() {
    // As a load through a node does it: a table holds keys of one space, so those of the keys lie apart.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    for from in (0..4000).step_by(8) {
        fill(&mut engine, &mut worker, from..from + 8, Some(&[7; 50]));
        drain(&mut worker);
    }
    settle(&mut engine, &mut worker);
    let stats = engine.stats();
    assert!(stats.moves > 20 && stats.levels[2].0 > 0, "{stats:?}");
    assert!(stats.write_amplification() < 1.3, "{}: {stats:?}", stats.write_amplification());
}

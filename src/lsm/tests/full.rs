//! A full disk: work is put off, nothing is lost, and space comes back by deletes or by itself.

use super::reserve::{RESERVE_FILE, Reserve};
use super::*;
use crate::wal::testdisk::Fault;

const RESERVE_BYTES: u64 = 10 << 10;

fn open_with_reserve(disk: &TestDisk) -> (Engine, Worker) {
    let options = Options { reserve_bytes: RESERVE_BYTES, ..options() };
    Engine::open(disk.shared(), Path::new(DIR), options).unwrap()
}

/// Works until nothing is to be done, or nothing can be for want of space.
fn work(engine: &mut Engine, worker: &mut Worker) -> Step {
    loop {
        let step = worker.step().unwrap();
        if worker.news(step) == Some(true) {
            engine.flush();
        }
        if matches!(step, Step::Idle | Step::Full) {
            return step;
        }
    }
}

/// Everybody tries again, a few times.
fn retry(engine: &mut Engine, worker: &mut Worker) {
    for _ in 0..40 {
        work(engine, worker);
    }
}

fn tables(disk: &TestDisk) -> usize {
    disk.paths().iter().filter(|p| p.to_string_lossy().contains("table-")).count()
}

fn key(n: u64) -> (u8, Vec<u8>) {
    (1, format!("key-{n:04}").into_bytes())
}

#[test]
fn wherever_a_flush_runs_out_of_space_it_is_put_off_and_nothing_is_lost() {
    // With every amount of room that is less than a flush needs: the worker does not fail, leaves no
    // file behind, memory shows everything, a crash leaves the store whole; and with room again the
    // flush is done.
    let mut put_off = BTreeMap::new();
    for room in (0..16 << 10).step_by(61) {
        let disk = TestDisk::default();
        let (mut engine, mut worker) = open(&disk).unwrap();
        let mut model = Model::new();
        let batch: Vec<Put> = (0..40).map(|n| (key(n), Some(vec![n as u8; 50]))).collect();
        write(&mut engine, &mut model, 1, &batch);
        engine.flush();
        disk.limit(Some(room));
        let before = disk.bytes(&Path::new(DIR).join("manifest-0"));
        let full = work(&mut engine, &mut worker) == Step::Full;
        assert_eq!(engine.stats().disk_full, full, "room {room}");
        assert_eq!(engine.flushed(), u64::from(!full), "room {room}");
        assert_eq!(contents(&engine.reader().view(), false).unwrap(), model, "room {room}");
        if full {
            assert_eq!(tables(&disk), 0, "room {room}: the unfinished table is gone");
            let now = disk.bytes(&Path::new(DIR).join("manifest-0"));
            *put_off.entry(now.len() > before.len()).or_insert(0) += 1;
            write(&mut engine, &mut model, 2, &[(key(99), Some(vec![9]))]);
        }
        for seed in [0, 1, room as u64 + 2] {
            let (engine, _) = open(&disk.crashed(disk.ops(), seed)).unwrap();
            assert!(engine.applied() >= u64::from(!full), "room {room}");
        }
        disk.limit(None);
        engine.flush();
        assert_eq!(work(&mut engine, &mut worker), Step::Idle);
        assert!(!engine.stats().disk_full);
        let (engine, _) = open(&disk.crashed(disk.ops(), 0)).unwrap();
        assert_eq!(contents(&engine.reader().view(), true).unwrap(), model, "room {room}");
    }
    // Some had no space for the table, some for the manifest's first slot but not for its second.
    assert!(put_off.values().all(|&times| times > 3) && put_off.len() == 2, "{put_off:?}");
}

#[test]
fn a_full_disk_is_emptied_by_deletes_alone() {
    // Keys are stored until the disk is full. Then there is no room but the reserve; every second
    // key is deleted, compactions in pieces make that true on disk, the reserve is filled again and
    // the disk counts as full no more. Nobody made space from outside.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open_with_reserve(&disk);
    assert_eq!(work(&mut engine, &mut worker), Step::Idle);
    disk.limit(Some(48 << 10));
    let mut model = Model::new();
    let mut applied = 0;
    while !engine.stats().disk_full {
        applied += 1;
        write(&mut engine, &mut model, applied, &[(key(applied), Some(vec![applied as u8; 120]))]);
        work(&mut engine, &mut worker);
    }
    let stored = applied;
    assert!(stored > 200, "{stored}");
    for n in (1..stored).step_by(2) {
        applied += 1;
        write(&mut engine, &mut model, applied, &[(key(n), None)]);
        work(&mut engine, &mut worker);
    }
    retry(&mut engine, &mut worker);
    let stats = engine.stats();
    assert!(!stats.disk_full, "{stats:?}");
    assert_eq!(disk.bytes(&Path::new(DIR).join(RESERVE_FILE)).len() as u64, RESERVE_BYTES);
    engine.flush();
    retry(&mut engine, &mut worker);
    assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
    let (engine, _) = open(&disk.crashed(disk.ops(), 0)).unwrap();
    assert_eq!(contents(&engine.reader().view(), true).unwrap(), model);
}

#[test]
fn compactions_in_pieces_and_in_one_leave_the_same() {
    // The disk is full by spells, by its own account or by somebody else's; the worker goes from
    // compactions of one kind to the other, and jobs are given up anywhere. The store equals the
    // model all along, and after a crash anywhere.
    let mut pieces = 0;
    for seed in 0..30 {
        let mut dice = Dice(seed);
        let disk = TestDisk::default();
        let (mut engine, mut worker) = open_with_reserve(&disk);
        let mut model = Model::new();
        let mut states = BTreeMap::from([(0, model.clone())]);
        for applied in 1..400 {
            write(&mut engine, &mut model, applied, &any_batch(&mut dice));
            states.insert(applied, model.clone());
            match dice.below(24) {
                0 => disk.fail(Some(Fault::Full)),
                1 | 2 => disk.fail(None),
                3 => engine.reader().lacks_space(true),
                4 | 5 => engine.reader().lacks_space(false),
                6 => disk.limit(Some(dice.below(8 << 10) as usize)),
                7 | 8 => disk.limit(None),
                9 => engine.flush(),
                _ => {}
            }
            for _ in 0..dice.below(8) {
                let step = worker.step().unwrap();
                if worker.news(step) == Some(true) {
                    engine.flush();
                }
                pieces += u64::from(worker.is_in_pieces());
            }
            if dice.below(8) == 0 {
                assert_eq!(contents(&engine.reader().view(), false).unwrap(), model, "{seed}");
            }
        }
        for _ in 0..20 {
            let n = dice.below(disk.ops() as u64 + 1) as usize;
            let (engine, _) = open(&disk.crashed(n, dice.next())).unwrap();
            let shown = contents(&engine.reader().view(), true).unwrap();
            assert_eq!(shown, states[&engine.applied()], "{seed}, operation {n}");
        }
        disk.fail(None);
        disk.limit(None);
        engine.reader().lacks_space(false);
        engine.flush();
        retry(&mut engine, &mut worker);
        assert!(!engine.stats().disk_full && engine.flushed() == engine.applied());
        assert_eq!(contents(&engine.reader().view(), false).unwrap(), model, "{seed}");
        for (key, cell) in &model {
            let found = get(&engine.reader().view(), key).unwrap();
            assert_eq!(found.as_ref(), Some(cell), "{seed}");
        }
    }
    assert!(pieces > 100, "{pieces}");
}

#[test]
fn a_failure_after_the_first_sync_of_names_stays_final() {
    // The directory cannot be synced: whether the table's name is durable is not known, and a
    // second sync would prove nothing. That is no full disk, whatever else is.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open_with_reserve(&disk);
    work(&mut engine, &mut worker);
    write(&mut engine, &mut Model::new(), 1, &[(key(1), Some(vec![1]))]);
    engine.flush();
    disk.fail(Some(Fault::Sync));
    let error = std::iter::repeat_with(|| worker.step()).find_map(Result::err).unwrap();
    assert!(!error.is_out_of_space(), "{error}");
    assert!(matches!(worker.step(), Err(LsmError::Failed)));
}

#[test]
fn the_reserve_is_gone_on_with_after_a_crash_and_follows_its_setting() {
    // What is there of it counts after a restart; one of another length becomes what is asked for;
    // given up it is gone; and while nothing can be added it keeps what it has.
    let disk = TestDisk::default();
    let path = Path::new(DIR).join(RESERVE_FILE);
    let reserve = |bytes| Reserve::new(disk.shared(), Path::new(DIR), bytes);
    let fill = |reserve: &mut Reserve| while !reserve.fill(1 << 10).unwrap() {};
    let mut first = reserve(5000);
    assert!(!first.fill(1 << 10).unwrap() && !first.fill(1 << 10).unwrap());
    assert_eq!(disk.bytes(&path).len(), 2048);
    let mut second = reserve(5000);
    disk.limit(Some(1500));
    assert!(!second.fill(1 << 10).unwrap());
    assert!(second.fill(1 << 10).is_err_and(|e| e.is_out_of_space()));
    assert!(second.fill(1 << 10).is_err_and(|e| e.is_out_of_space()));
    assert_eq!(disk.bytes(&path).len(), 3072);
    disk.limit(None);
    fill(&mut second);
    let bytes = disk.bytes(&path);
    assert_eq!(bytes.len(), 5000);
    let mut seen = [0; 256];
    bytes.iter().for_each(|byte| seen[usize::from(*byte)] += 1);
    assert!(seen.iter().all(|times| *times < 60), "it does not compress: {seen:?}");
    let ops = disk.ops();
    fill(&mut reserve(5000));
    assert_eq!(disk.ops(), ops, "it was whole");
    fill(&mut reserve(9000));
    assert_eq!(disk.bytes(&path).len(), 9000);
    fill(&mut reserve(4000));
    assert_eq!(disk.bytes(&path).len(), 4000);
    assert!(second.give_up().unwrap());
    assert!(!second.give_up().unwrap());
    fill(&mut reserve(0));
    assert!(!disk.paths().contains(&path));
}

//! Bytes that changed on disk: noticed, with path and offset, and never served.

use super::*;

/// A store of a few tables in two levels, all flushed and compacted.
fn filled() -> (TestDisk, Model) {
    let (disk, engine, mut worker, model) = store_of(11, 139);
    drain(&mut worker);
    assert!(engine.stats().levels.iter().filter(|l| l.0 > 0).count() >= 2);
    (disk.copy(), model)
}

/// Opens and reads everything, every way there is; checks what comes without an error.
fn read_all(disk: &TestDisk, model: &Model) -> Result<(), LsmError> {
    let (engine, _) = open(disk)?;
    let view = engine.reader().view();
    let scans = [contents(&view, false), contents(&view, true)];
    let mut first = Ok(());
    for (key, cell) in model {
        match get(&view, key) {
            Ok(found) => assert_eq!(found.as_ref(), Some(cell), "a wrong value was served"),
            Err(e) => first = first.and(Err(e)),
        }
    }
    for scan in scans {
        match scan {
            Ok(all) => assert_eq!(&all, model, "a wrong scan was served"),
            Err(e) => first = first.and(Err(e)),
        }
    }
    first
}

#[test]
fn every_flipped_byte_of_a_table_is_noticed() {
    // Whichever byte of a table changes: opening or reading says so, and names the file.
    let (disk, model) = filled();
    read_all(&disk, &model).unwrap();
    for path in files(&disk, "table-").into_iter().take(3) {
        let len = disk.bytes(&path).len();
        for at in 0..len {
            let disk = disk.copy();
            disk.edit(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            let error = read_all(&disk, &model).expect_err("a flipped byte passed");
            match &error {
                LsmError::Damaged { path: found, offset, .. } => {
                    assert_eq!(found, &path);
                    assert!(*offset <= at as u64, "damage at {at} was placed at {offset}");
                }
                other => panic!("byte {at}: {other}"),
            }
            assert_eq!(error.class(), Class::Repair);
        }
    }
}

#[test]
fn a_damaged_manifest_slot_costs_nothing_and_two_are_refused() {
    // Whichever byte of either slot changes: the other one holds the same state, and opening
    // repairs the first, so that later the other may rot. Both damaged at once: refused.
    let (disk, model) = filled();
    let paths = files(&disk, "manifest-");
    assert_eq!(paths.len(), 2);
    let (engine, _) = open(&disk.copy()).unwrap();
    assert_eq!(engine.stats().manifest_repairs, 0);
    let applied = engine.applied();
    for (path, other) in [(&paths[0], &paths[1]), (&paths[1], &paths[0])] {
        let mut repairs = 0;
        for at in (0..disk.bytes(path).len()).step_by(5) {
            let disk = disk.copy();
            disk.edit(path, |bytes| bytes[at] ^= 0x10);
            // Rests of a longer manifest behind the checksum mean nothing.
            let expected = open(&disk).unwrap().0.stats().manifest_repairs;
            repairs += expected;
            disk.edit(other, |bytes| bytes[at] ^= 0x10);
            let (engine, _) = open(&disk).unwrap();
            assert_eq!(engine.stats().manifest_repairs, expected);
            assert_eq!(engine.applied(), applied);
            assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
        }
        assert!(repairs > 20, "{repairs}");
        let lost = disk.copy();
        crate::env::Disk::remove(&lost, path).unwrap();
        assert_eq!(open(&lost).unwrap().0.stats().manifest_repairs, 1);
        assert_eq!(files(&lost, "manifest-").len(), 2);
    }
    for path in &paths {
        disk.edit(path, |bytes| bytes[30] ^= 1);
    }
    let error = open(&disk).expect_err("no manifest is left");
    assert_eq!(error.class(), Class::Repair, "{error}");
    assert!(error.to_string().contains("manifest-"), "{error}");
}

#[test]
fn files_that_are_short_missing_or_exchanged_are_noticed() {
    // A file system that lost a file, cut one, or gave the bytes of one for another.
    let (disk, model) = filled();
    let tables = files(&disk, "table-");
    let cut = disk.copy();
    cut.edit(&tables[0], |bytes| bytes.truncate(bytes.len() - 1));
    assert_eq!(read_all(&cut, &model).unwrap_err().class(), Class::Repair);
    let lost = disk.copy();
    crate::env::Disk::remove(&lost, &tables[0]).unwrap();
    assert_eq!(read_all(&lost, &model).unwrap_err().class(), Class::Repair);
    for other in &tables[1..] {
        let exchanged = disk.copy();
        let bytes = disk.bytes(other);
        exchanged.edit(&tables[0], |old| *old = bytes);
        assert_eq!(read_all(&exchanged, &model).unwrap_err().class(), Class::Repair);
    }
    let foreign = Options { identity: 1, ..options() };
    let error = Engine::open(disk.shared(), Path::new(DIR), foreign).unwrap_err();
    assert_eq!(error.class(), Class::Repair, "another store's directory: {error}");
}

#[test]
fn an_empty_directory_is_a_fresh_start_only_when_it_may_be() {
    // A node that had data finds none: beginning anew would forget what was acknowledged.
    let disk = TestDisk::default();
    let must = Options { must_exist: true, ..options() };
    let error = Engine::open(disk.shared(), Path::new(DIR), must).unwrap_err();
    assert_eq!(error.class(), Class::Repair, "{error}");
    assert_eq!(open(&disk).unwrap().0.applied(), 0);
    Engine::open(disk.shared(), Path::new(DIR), must).unwrap();
}

#[test]
fn a_damaged_input_is_not_compacted_and_stays() {
    // Compacting a bad block away would make a hole that looks like health. Flushes go on meanwhile,
    // also after the store was opened again, and a table that is gone or short is no other case.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut model = Model::new();
    for i in 0..4u8 {
        let batch = [((1, vec![1]), Some(vec![i; 200])), ((1, vec![9]), Some(vec![i; 200]))];
        let applied = engine.applied() + 1;
        write(&mut engine, &mut model, applied, &batch);
        engine.flush();
        while engine.flushed() < applied {
            worker.step().unwrap();
        }
    }
    let path = files(&disk, "table-").remove(1);
    disk.edit(&path, |bytes| bytes[20] ^= 4);
    let met = std::iter::repeat_with(|| worker.step().unwrap()).find(|s| *s != Step::Worked);
    assert_eq!(met, Some(Step::Damaged));
    assert_eq!(worker.step().unwrap(), Step::Idle);
    let before = files(&disk, "table-");
    assert!(before.contains(&path));
    for (n, spoil) in [|_: &mut Vec<u8>| {}, |b: &mut Vec<u8>| b.truncate(30)].iter().enumerate() {
        let error = engine.reader().damage().unwrap();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert!(engine.reader().view().get(1, &[1]).is_ok(), "the newest value lies elsewhere");
        let (applied, key) = (engine.applied() + 1, vec![5 + n as u8]);
        write(&mut engine, &mut model, applied, &[((1, key.clone()), Some(vec![3; 9]))]);
        engine.flush();
        while worker.step().unwrap() != Step::Idle {}
        assert_eq!(engine.flushed(), applied);
        drop((engine, worker));
        disk.edit(&path, spoil);
        (engine, worker) = open(&disk).unwrap();
        // What is damaged in the middle is found when it is read.
        while worker.step().unwrap() != Step::Idle {}
        assert!(engine.reader().view().get(1, &key).unwrap().is_some());
    }
    assert!(before.iter().all(|table| files(&disk, "table-").contains(table)), "nothing went");
}

#[test]
fn a_byte_that_cannot_be_read_is_damage_of_its_table() {
    // A bad sector says EIO, at the start or later: the table is known to be damaged, with file and place, and what
    // lies elsewhere is served.
    let (disk, model) = filled();
    for path in files(&disk, "table-").into_iter().take(3) {
        for at in (0..disk.bytes(&path).len()).step_by(7) {
            let disk = disk.copy();
            disk.spoil(&path, at);
            let error = read_all(&disk, &model).expect_err("an unreadable byte passed");
            let LsmError::Damaged { path: found, offset, what } = &error else {
                panic!("byte {at}: {error}");
            };
            assert_eq!(found, &path);
            assert!(*offset <= at as u64 && what.contains("cannot read"), "{at}: {error}");
            assert_eq!(open(&disk).unwrap().0.applied(), 139);
        }
    }
}

#[test]
fn a_manifest_slot_that_cannot_be_read_is_written_again() {
    // The other slot holds the same. Both unreadable at once: refused.
    let (disk, model) = filled();
    let paths = files(&disk, "manifest-");
    // Behind what it says, too.
    let last = |path: &PathBuf| disk.bytes(path).len() - 1;
    for (path, at) in paths.iter().flat_map(|path| [(path, 9), (path, last(path))]) {
        let disk = disk.copy();
        disk.spoil(path, at);
        let (engine, _) = open(&disk).unwrap();
        assert_eq!(engine.stats().manifest_repairs, 1);
        assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
        drop(engine);
        assert_eq!(open(&disk).unwrap().0.stats().manifest_repairs, 0);
    }
    paths.iter().for_each(|path| disk.spoil(path, 9));
    let error = open(&disk).expect_err("no manifest can be read");
    assert!(error.to_string().contains("cannot read"), "{error}");
}

#[test]
fn a_new_table_that_cannot_be_read_back_is_written_again() {
    // The sectors that a flush or a compaction was given are bad: what it was made from is still there.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut model = Model::new();
    let mut dice = Dice(5);
    for applied in 1..60 {
        write(&mut engine, &mut model, applied, &any_batch(&mut dice));
        if applied % 7 == 0 {
            engine.flush();
            let newest = disk.clone();
            disk.before_read(move || {
                if let Some(path) = files(&newest, "table-").pop() {
                    newest.spoil(&path, newest.bytes(&path).len() - 3);
                }
            });
        }
        drain(&mut worker);
    }
    engine.flush();
    drain(&mut worker);
    assert!(engine.stats().unread >= 5, "{:?}", engine.stats());
    assert_eq!((engine.flushed(), engine.reader().damage().is_none()), (59, true));
    assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
    drop((engine, worker));
    assert_eq!(contents(&open(&disk).unwrap().0.reader().view(), false).unwrap(), model);
}

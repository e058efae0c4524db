//! Little room: what a damaged store gives up for its repair, and what exports may keep.

use super::*;
use crate::wal::testdisk::Fault;

/// A store with several tables in two levels.
fn filled(seed: u64) -> (TestDisk, Engine, Worker, Model) {
    let (disk, engine, mut worker, model) = store_of(seed, 139);
    drain(&mut worker);
    assert!(engine.stats().levels.iter().map(|level| level.0).sum::<usize>() >= 4);
    (disk, engine, worker, model)
}

#[test]
fn a_damaged_store_gives_up_table_after_table_and_a_sound_one_none() {
    // First the damaged one, then the others; each is a damaged table from then on, in this process and after a
    // start. What is in memory stays readable.
    let (disk, mut engine, mut worker, mut model) = filled(3);
    let reader = engine.reader();
    assert_eq!(reader.give_up_table(&disk).unwrap(), None, "nothing is damaged");
    let bad = files(&disk, "table-").remove(1);
    disk.edit(&bad, |bytes| bytes[7] ^= 1);
    assert_eq!(reader.give_up_table(&disk).unwrap(), None, "nobody has met the damage");
    assert!(contents(&reader.view(), false).is_err());
    let before = files(&disk, "table-").len();
    let (first, bytes) = reader.give_up_table(&disk).unwrap().expect("it is damaged");
    assert_eq!((&first, bytes > 0, files(&disk, "table-").len()), (&bad, true, before - 1));
    let applied = engine.applied() + 1;
    write(&mut engine, &mut model, applied, &[((1, b"new".to_vec()), Some(vec![1]))]);
    while reader.give_up_table(&disk).unwrap().is_some() {}
    assert_eq!((files(&disk, "table-").len(), engine.stats().given_up), (0, before as u64));
    assert!(reader.view().get(1, b"new").unwrap().is_some());
    engine.flush();
    while worker.step().unwrap() != Step::Idle {}
    drop((reader, engine, worker));
    let (engine, _) = open(&disk).unwrap();
    let error = engine.reader().damage().expect("files are missing").to_string();
    assert!(error.contains("missing"), "{error}");
    assert!(engine.reader().view().get(1, b"new").unwrap().is_some());
}

#[test]
fn nothing_is_read_from_a_table_that_was_given_up() {
    // Neither from its file nor from blocks that are in the cache since before: a key has one answer until the repair.
    let (disk, mut engine, mut worker, model) = filled(6);
    engine.flush();
    drain(&mut worker);
    let reader = engine.reader();
    disk.edit(&files(&disk, "table-").remove(0), |bytes| bytes[7] ^= 1);
    assert!(contents(&reader.view(), false).is_err());
    let get = |(space, key): &(u8, Vec<u8>)| reader.view().get(*space, key);
    assert!(model.keys().any(|key| get(key).is_ok_and(|found| found.is_some())));
    while reader.give_up_table(&disk).unwrap().is_some() {}
    for key in model.keys() {
        assert!(matches!(get(key), Err(LsmError::Damaged { .. })), "{key:?}");
    }
}

#[test]
fn a_read_that_fails_once_costs_no_table() {
    // The damage was an error that went away: what is given up is given up for what is there now.
    let (disk, engine, _, _) = filled(4);
    let bad = files(&disk, "table-").remove(0);
    disk.spoil(&bad, 3);
    assert!(contents(&engine.reader().view(), false).is_err());
    assert!(engine.reader().damage().is_some());
    let bytes = disk.bytes(&bad);
    disk.shared().open(&bad, crate::env::Open::Write).unwrap().write_all_at(&bytes, 0).unwrap();
    assert_eq!(engine.reader().give_up_table(&disk).unwrap(), None);
    assert!(files(&disk, "table-").contains(&bad));
}

#[test]
fn exports_keep_no_more_than_a_store_and_nothing_on_a_full_disk() {
    // Backups that nobody reads on pile up while everything is rewritten: the oldest ends, the latest stays; on a full
    // disk none keeps what the store does not have any more.
    let (disk, mut engine, mut worker, mut model) = filled(5);
    let mut exports = Vec::new();
    let store = |engine: &Engine| engine.stats().levels.iter().map(|l| l.1).sum::<u64>();
    let on_disk = |disk: &TestDisk| {
        files(disk, "table-").iter().map(|t| disk.bytes(t).len() as u64).sum::<u64>()
    };
    for round in 0..8u8 {
        exports.push(engine.reader().export());
        let begun = store(&engine);
        let keys: Vec<_> = model.keys().cloned().collect();
        for key in keys {
            let applied = engine.applied() + 1;
            write(&mut engine, &mut model, applied, &[(key, Some(vec![round; 30]))]);
        }
        engine.flush();
        drain(&mut worker);
        engine.reader().compact();
        drain(&mut worker);
        let now = store(&engine);
        assert!(on_disk(&disk) <= now + now.max(begun), "round {round}");
    }
    let piece = |export: &Export| {
        let state = manifest::decode(&export.manifest(), options().identity, 2).unwrap().1;
        let table = state.levels.iter().flatten().next().unwrap().clone();
        Piece { table: table.number, offset: 0, len: table.bytes as usize }
    };
    let first = exports.first().unwrap();
    assert!(!first.holds(piece(first)), "the oldest has ended");
    assert_eq!(first.read(piece(first)).unwrap_err().class(), Class::Reject);
    let last = exports.last().unwrap();
    assert!(last.read(piece(last)).is_ok(), "the latest is whole");
    assert!(engine.stats().exports_ended >= 5);
    disk.fail(Some(Fault::Full));
    engine.reader().lacks_space(true);
    let applied = engine.applied() + 1;
    write(&mut engine, &mut model, applied, &[((1, b"new".to_vec()), Some(vec![1]))]);
    for _ in 0..3 {
        worker.step().unwrap();
    }
    assert!(!last.holds(piece(last)), "its room is needed");
    assert_eq!(on_disk(&disk), store(&engine));
    disk.fail(None);
}

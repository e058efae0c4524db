//! Files that somebody else holds: they stay, cost nothing but their room, and go later.

use super::*;
use crate::wal::testdisk::Fault;

/// What the tables of the store are, by their files, and by what it says.
fn tables(disk: &TestDisk, engine: &Engine) -> (usize, usize) {
    let said = engine.stats().levels.iter().map(|level| level.0).sum();
    (files(disk, "table-").len(), said)
}

#[test]
fn a_table_that_is_held_goes_when_it_is_not_any_more() {
    // A scanner has every file open that the store gives up. The store goes on; once the scanner is gone so are the files.
    let (disk, mut engine, mut worker, mut model) = store_of(3, 200);
    disk.fail(Some(Fault::Held));
    for applied in engine.applied() + 1..engine.applied() + 200 {
        write(&mut engine, &mut model, applied, &any_batch(&mut Dice(applied)));
        drain(&mut worker);
    }
    let (there, named) = tables(&disk, &engine);
    assert!(worker.held_files() > 10, "{}", worker.held_files());
    assert_eq!(there, named + worker.held_files());
    disk.fail(None);
    assert_eq!(worker.step().unwrap(), Step::Idle, "it is asked again after a pause");
    drain(&mut worker);
    let (there, named) = tables(&disk, &engine);
    assert_eq!((there, worker.held_files()), (named, 0));
    assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
}

#[test]
fn a_start_leaves_what_is_held_alone_and_gives_its_name_to_no_other_table() {
    // A process died while it wrote a table, which a scanner then holds when the next one starts. That one opens, writes
    // tables of its own, and removes the other one later.
    let (disk, engine, worker, mut model) = store_of(5, 120);
    let next = engine.shared.next_file_now();
    drop((engine, worker));
    let half = Path::new(DIR).join(table::table_name(next + 1));
    disk.shared().open(&half, crate::env::Open::CreateNew).unwrap();
    disk.fail(Some(Fault::Held));
    let (mut engine, mut worker) = open(&disk).unwrap();
    for applied in engine.applied() + 1..engine.applied() + 100 {
        write(&mut engine, &mut model, applied, &any_batch(&mut Dice(applied)));
        drain(&mut worker);
    }
    assert!(disk.paths().contains(&half));
    disk.fail(None);
    worker.step().unwrap();
    drain(&mut worker);
    assert!(!disk.paths().contains(&half));
    assert_eq!(contents(&engine.reader().view(), false).unwrap(), model);
}

//! What the tests share: small sizes, so that a few hundred writes fill several levels, and the
//! model, a sorted map.

mod crash;
mod damage;
mod format;
mod full;
mod held;
mod model;
mod pace;
mod races;
mod reclaim;
mod room;
mod salvage;
mod snapshot;

use super::*;
use crate::lsm::manifest;
use crate::wal::testdisk::{Dice, TestDisk};
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};

const DIR: &str = "/data/store";

/// Space and key, with revision and value.
type Model = BTreeMap<(u8, Vec<u8>), (u64, Vec<u8>)>;

fn options() -> Options {
    Options {
        memtable_bytes: 6 << 10,
        cache_bytes: 32 << 10,
        open_files_max: 3,
        table_bytes: 2 << 10,
        block_bytes: 256,
        sync_bytes: 1 << 10,
        level1_bytes: 6 << 10,
        step_bytes: 700,
        ..Options::new(0x1122_3344_5566_7788)
    }
}

fn open(disk: &TestDisk) -> Result<(Engine, Worker), LsmError> {
    Engine::open(disk.shared(), Path::new(DIR), options())
}

/// Works until nothing is left to do.
fn drain(worker: &mut Worker) {
    while worker.step().unwrap() == Step::Worked {}
}

/// Key, revision and value, as a scan shows them.
type Shown = (Vec<u8>, u64, Vec<u8>);

/// A change in the model's terms.
type Put = ((u8, Vec<u8>), Option<Vec<u8>>);

/// Keys that meet often: short ones of few letters, some with a long shared front.
fn any_key(dice: &mut Dice) -> (u8, Vec<u8>) {
    let space = [0, 1, 1, 1, 255][dice.below(5) as usize];
    let mut key = match dice.below(3) {
        0 => Vec::new(),
        _ => b"a-long-shared-front/".to_vec(),
    };
    for _ in 0..dice.below(4) {
        key.push([0, b'a', b'b', b'c', 0xff][dice.below(5) as usize]);
    }
    (space, key)
}

fn any_batch(dice: &mut Dice) -> Vec<Put> {
    let mut batch = BTreeMap::new();
    for _ in 0..dice.below(6) {
        let value = match dice.below(10) {
            0..3 => None,
            3 => Some(vec![dice.next() as u8; 900]),
            _ => Some(vec![dice.next() as u8; dice.below(60) as usize]),
        };
        batch.insert(any_key(dice), value);
    }
    batch.into_iter().collect()
}

/// Writes a batch to both.
fn write(engine: &mut Engine, model: &mut Model, applied: u64, batch: &[Put]) {
    let changes = batch.iter().map(|((space, key), value)| Change {
        space: *space,
        key,
        value: value.as_ref().map(|value| (applied, value.as_slice())),
    });
    engine.write(applied, changes).unwrap();
    for (key, value) in batch {
        match value {
            Some(value) => model.insert(key.clone(), (applied, value.clone())),
            None => model.remove(key),
        };
    }
}

/// A store after the batches 1 to `batches` that the seed draws, all flushed, and no further: tombstones hide something.
fn store_of(seed: u64, batches: u64) -> (TestDisk, Engine, Worker, Model) {
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let mut model = Model::new();
    let mut dice = Dice(seed);
    for applied in 1..=batches {
        write(&mut engine, &mut model, applied, &any_batch(&mut dice));
        drain(&mut worker);
    }
    engine.flush();
    while engine.flushed() < engine.applied() {
        worker.step().unwrap();
    }
    assert!(engine.stats().levels.iter().filter(|level| level.0 > 0).count() >= 2);
    (disk, engine, worker, model)
}

/// Files with that in their names.
fn files(disk: &TestDisk, name: &str) -> Vec<PathBuf> {
    disk.paths().into_iter().filter(|p| p.to_string_lossy().contains(name)).collect()
}

fn rows(view: &View, scan: &Scan<'_>, limit: usize) -> Result<Vec<Shown>, LsmError> {
    let mut rows = Vec::new();
    view.scan(scan, &mut |row| {
        rows.push((row.key.to_vec(), row.revision, row.value.to_vec()));
        if rows.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(rows)
}

/// The whole store, by scans in one direction.
fn contents(view: &View, reverse: bool) -> Result<Model, LsmError> {
    let mut model = Model::new();
    for space in [0, 1, 255] {
        let scan = Scan { space, lower: Bound::Unbounded, upper: Bound::Unbounded, reverse };
        let mut rows = rows(view, &scan, usize::MAX)?;
        if reverse {
            rows.reverse();
        }
        assert!(rows.windows(2).all(|w| w[0].0 < w[1].0), "out of order");
        for (key, revision, value) in rows {
            model.insert((space, key), (revision, value));
        }
    }
    Ok(model)
}

fn get(view: &View, key: &(u8, Vec<u8>)) -> Result<Option<(u64, Vec<u8>)>, LsmError> {
    Ok(view.get(key.0, &key.1)?.map(|found| (found.revision(), found.value().to_vec())))
}

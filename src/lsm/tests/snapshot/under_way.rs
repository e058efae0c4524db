//! Snapshots that come while the store's background is at work: what it began of the old state is void.

use super::*;
use std::sync::{Arc, Mutex};

/// Runs `act` in the middle of the read that comes after `reads` others.
fn at_read(disk: &TestDisk, reads: usize, act: Box<dyn FnOnce() + Send>) {
    let again = disk.clone();
    disk.before_read(move || match reads {
        0 => act(),
        reads => at_read(&again, reads - 1, act),
    });
}

#[test]
fn a_job_that_is_under_way_does_not_bring_the_old_state_back() {
    // The snapshot is installed after each step of flushes and compactions in turn: their outputs
    // disappear, and after a crash the new state is there.
    let giver = Store::giver(20, 60);
    let (export, given) = (giver.export(), marked(&giver.model));
    let (mut flushing, mut compacting) = (0, 0);
    for steps in 0.. {
        let mut taker = Store::taker(21);
        let mut import = taker.import(&export.manifest()).unwrap();
        fetch(&mut import, &export);
        for _ in 0..120 {
            let batch = any_batch(&mut taker.dice);
            taker.write(&batch);
        }
        taker.engine.flush();
        let worked = (0..steps).all(|_| taker.worker.step().unwrap() == Step::Worked);
        if !worked {
            break;
        }
        let unnamed = files(&taker.disk, DIR).len() > named(&taker.engine);
        let frozen = taker.engine.stats().frozen > 0;
        flushing += usize::from(unnamed && frozen);
        compacting += usize::from(unnamed && !frozen);
        taker.engine.install(seal(&mut import)).unwrap();
        import.discard().unwrap();
        let disk = taker.disk.crashed(taker.disk.ops(), 0);
        let mut again = Store::on(disk, options().identity, 1);
        again.model = given.clone();
        again.check_contents();
        if steps % 2 == 0 {
            // The worker finds a new memtable at once.
            taker.model = given.clone();
            taker.write(&[((1, b"at once".to_vec()), Some(vec![1]))]);
            taker.settle();
            taker.check_contents();
        } else {
            taker.check(&given, export.applied());
        }
    }
    assert!(flushing > 5 && compacting > 5, "{flushing} {compacting}");
}

#[test]
fn a_snapshot_that_comes_within_a_step_of_a_compaction_wins() {
    // It is installed during each read that a chain of compactions makes, be it while they merge or
    // when their outputs are opened and about to be named.
    let giver = Store::giver(22, 60);
    let (export, given) = (giver.export(), marked(&giver.model));
    let mut reads = 0;
    loop {
        let mut taker = Store::taker(23);
        let mut import = taker.import(&export.manifest()).unwrap();
        fetch(&mut import, &export);
        let staged = seal(&mut import);
        for _ in 0..100 {
            let batch = any_batch(&mut taker.dice);
            taker.write(&batch);
        }
        taker.engine.flush();
        while taker.engine.stats().frozen > 0 {
            taker.worker.step().unwrap();
        }
        let Store { disk, engine, mut worker, dice, model } = taker;
        let engine = Arc::new(Mutex::new((engine, Some(staged))));
        let installs = Arc::clone(&engine);
        let act = move || {
            let (engine, staged) = &mut *installs.lock().unwrap();
            engine.install(staged.take().unwrap()).unwrap();
        };
        at_read(&disk, reads, Box::new(act));
        drain(&mut worker);
        // Lets go of what did not come to pass.
        disk.before_read(|| {});
        let (engine, staged) = Arc::into_inner(engine).unwrap().into_inner().unwrap();
        let mut taker = Store { disk, engine, worker, dice, model };
        if staged.is_some() {
            drop(staged);
            drain(&mut taker.worker);
            taker.check_contents();
            break;
        }
        taker.model = given.clone();
        taker.check_contents();
        let disk = taker.disk.crashed(taker.disk.ops(), 0);
        let mut again = Store::on(disk, options().identity, 1);
        again.model = given.clone();
        again.check_contents();
        if reads % 8 == 0 {
            taker.check(&given, export.applied());
        }
        reads += 1;
    }
    assert!(reads > 20, "{reads}");
}

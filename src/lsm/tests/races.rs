//! The engine as it runs: one writer, a worker on a thread of its own, readers on others.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn readers_see_whole_batches_while_writer_and_worker_run() {
    // Every batch writes the same number under eight keys; a reader that ever finds two different
    // numbers in one cut, by gets or by a scan, has seen half a batch.
    let disk = TestDisk::default();
    let (mut engine, mut worker) = open(&disk).unwrap();
    let keys: Vec<[u8; 1]> = (0..8).map(|i| [i * 31]).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let working = scope.spawn(move || worker.run(|_full| {}));
        let readers: Vec<_> = (0..2)
            .map(|reverse| {
                let (reader, keys, stop) = (engine.reader(), &keys, &stop);
                scope.spawn(move || {
                    let mut last = 0;
                    while !stop.load(Ordering::Acquire) {
                        let view = reader.view();
                        let at = view.applied();
                        assert!(at >= last, "a later view is earlier");
                        last = at;
                        let scan = Scan {
                            space: 1,
                            lower: Bound::Unbounded,
                            upper: Bound::Unbounded,
                            reverse: reverse == 1,
                        };
                        let shown = rows(&view, &scan, usize::MAX).unwrap();
                        assert_eq!(shown.len(), if at == 0 { 0 } else { keys.len() });
                        assert!(shown.iter().all(|(_, revision, _)| *revision == at));
                        for key in keys {
                            let found = view.get(1, key).unwrap();
                            assert_eq!(found.map_or(0, |f| f.revision()), at);
                        }
                    }
                })
            })
            .collect();
        for applied in 1..=3000u64 {
            let change = |key| Change { space: 1, key, value: Some((applied, &[5u8; 40][..])) };
            engine.write(applied, keys.iter().map(|key| change(&key[..]))).unwrap();
        }
        stop.store(true, Ordering::Release);
        for reader in readers {
            reader.join().unwrap();
        }
        drop(engine);
        working.join().unwrap().unwrap();
    });
}

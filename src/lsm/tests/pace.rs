//! Pacing on a disk of a given bandwidth, in simulated time: who writes, however much at once, waits as long as the
//! worker needs, and no longer.

use super::*;
use crate::env::{DirLock, Disk, DiskFile, Open};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes a second of the disk that is documented.
const BANDWIDTH: u64 = 60_000_000;
/// What a sync costs beside its bytes, in microseconds.
const SYNC_US: u64 = 2_000;
/// What an operation costs the writer's thread, in nanoseconds: its entry, and each of its bytes.
const OPERATION_NS: u64 = 1_000;

/// A disk in memory that adds up how long its operations take. It shows what was written, and forgets what was removed.
#[derive(Clone, Debug)]
struct PacedDisk(Arc<Mutex<Platter>>);

#[derive(Debug)]
struct Platter {
    names: BTreeMap<PathBuf, Arc<Mutex<Vec<u8>>>>,
    bytes_a_second: u64,
    busy_ns: u64,
}

#[derive(Debug)]
struct PacedFile(PacedDisk, Arc<Mutex<Vec<u8>>>);

impl PacedDisk {
    fn new(bytes_a_second: u64) -> PacedDisk {
        let platter = Platter { names: BTreeMap::new(), bytes_a_second, busy_ns: 0 };
        PacedDisk(Arc::new(Mutex::new(platter)))
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    fn works(&self, bytes: usize) {
        let mut platter = self.lock();
        platter.busy_ns += bytes as u64 * 1_000_000_000 / platter.bytes_a_second;
    }

    fn syncs(&self) {
        self.lock().busy_ns += SYNC_US * 1000;
    }

    /// How long the operations since the last call have taken, in nanoseconds.
    fn take_busy_ns(&self) -> u64 {
        std::mem::take(&mut self.lock().busy_ns)
    }
}

impl Disk for PacedDisk {
    fn open(&self, path: &Path, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut platter = self.lock();
        if mode == Open::CreateNew {
            platter.names.insert(path.to_path_buf(), Arc::default());
        }
        let bytes = platter.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(PacedFile(self.clone(), Arc::clone(bytes))))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let platter = self.lock();
        let inside = platter.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| path.file_name().unwrap().to_string_lossy().into()).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.lock().names.remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut platter = self.lock();
        let bytes = platter.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        platter.names.insert(to.to_path_buf(), bytes);
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.syncs();
        Ok(())
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        Ok(DirLock { guard: Box::new(()), path: dir.join("lock") })
    }
}

impl DiskFile for PacedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.works(buf.len());
        let bytes = self.1.lock().unwrap();
        let at = offset as usize;
        buf.copy_from_slice(bytes.get(at..at + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.works(buf.len());
        let (mut bytes, at) = (self.1.lock().unwrap(), offset as usize);
        let len = bytes.len().max(at + buf.len());
        bytes.resize(len, 0);
        bytes[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.syncs();
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.1.lock().unwrap().len() as u64)
    }
}

/// What is written: so many operations a batch, with values of that length.
#[derive(Clone, Copy, Debug)]
struct Load {
    batch: usize,
    value_bytes: usize,
    /// Bytes of keys and values in all.
    bytes: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
struct Paced {
    /// Most bytes that were in memtables.
    memory: u64,
    /// Of these in one batch, at most.
    batch: u64,
    /// Most tables in level 0.
    level0: usize,
    /// Longest wait between two batches.
    stall_us: u64,
    /// Bytes of keys and values taken in a second.
    rate: u64,
    write_amplification: f64,
}

/// A fiftieth of the usual sizes, so that a test that writes little fills several levels.
fn small_options() -> Options {
    Options {
        memtable_bytes: 640 << 10,
        table_bytes: 320 << 10,
        level1_bytes: 2560 << 10,
        sync_bytes: 80 << 10,
        step_bytes: 32 << 10,
        ..Options::new(7)
    }
}

/// Writer and worker, each as fast as it can, one event at a time in simulated time. The writer pays what it owes before
/// it goes on, as an owner does.
fn run(load: Load, bytes_a_second: u64) -> Paced {
    let disk = PacedDisk::new(bytes_a_second);
    let shared = Arc::new(disk.clone());
    let (mut engine, mut worker) = Engine::open(shared, Path::new(DIR), small_options()).unwrap();
    let mut dice = Dice(1);
    let values: Vec<u8> = (0..load.value_bytes + 256).map(|_| dice.next() as u8).collect();
    let (mut writer_ns, mut worker_ns, mut wrote_ns) = (0u64, 0u64, 0u64);
    let mut paced = Paced::default();
    let (mut written, mut applied) = (0, 0);
    disk.take_busy_ns();
    while written < load.bytes {
        if worker_ns <= writer_ns {
            let step = worker.step().unwrap();
            let busy_ns = disk.take_busy_ns();
            // It sleeps until the writer has written again.
            worker_ns = match step {
                Step::Worked => worker_ns + busy_ns.max(1000),
                _ => writer_ns + 1,
            };
            continue;
        }
        let delay_us = engine.take_delay_us();
        if delay_us > 0 {
            writer_ns += delay_us * 1000;
            continue;
        }
        paced.stall_us = paced.stall_us.max((writer_ns - wrote_ns) / 1000);
        applied += 1;
        let before = engine.stats().memtable_bytes;
        let mut keys: Vec<[u8; 16]> = (0..load.batch)
            .map(|_| {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&dice.next().to_be_bytes());
                key
            })
            .collect();
        keys.sort_unstable();
        let changes = keys.iter().map(|key| {
            let at = key[0] as usize;
            let value = &values[at..at + load.value_bytes];
            Change { space: 1, key, value: Some((applied, value)) }
        });
        engine.write(applied, changes).unwrap();
        let bytes = load.batch * (16 + load.value_bytes);
        written += bytes;
        writer_ns += (load.batch as u64) * OPERATION_NS + bytes as u64;
        wrote_ns = writer_ns;
        let stats = engine.stats();
        paced.batch = paced.batch.max(stats.memtable_bytes.saturating_sub(before));
        paced.memory = paced.memory.max(stats.memtable_bytes);
        paced.level0 = paced.level0.max(stats.levels[0].0);
    }
    paced.rate = written as u64 * 1_000_000_000 / writer_ns;
    paced.write_amplification = engine.stats().write_amplification();
    paced
}

/// However much comes at once, memory stays within four memtables and what one batch brings in, level 0 within what stops
/// the writer, and the writer takes as much as the disk carries, without a stall of seconds.
#[test]
fn memory_and_level_0_keep_their_bounds_at_any_batch_on_a_slow_disk() {
    let budget = small_options().memtable_bytes as u64;
    for (batch, value_bytes) in [(1, 4 << 10), (100, 4 << 10), (10_000, 100), (100, 64 << 10)] {
        let load = Load { batch, value_bytes, bytes: 24 << 20 };
        let paced = run(load, BANDWIDTH);
        assert!(paced.memory <= 4 * budget + paced.batch, "{load:?}: {paced:?}");
        assert!(paced.level0 <= 28, "{load:?}: {paced:?}");
        assert!(paced.stall_us < 2_000_000, "{load:?}: {paced:?}");
        assert!(paced.rate > 3_000_000, "{load:?}: {paced:?}");
    }
}

/// Prints the figures of docs/performance.md.
#[test]
#[ignore = "figures, not a check"]
fn figures_of_pacing() {
    println!(
        "| operations a batch | value | memtables peak | largest batch | level 0 peak | longest stall | taken | write amplification |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let budget = small_options().memtable_bytes as f64;
    for (batch, value_bytes) in [
        (1, 100),
        (100, 100),
        (10_000, 100),
        (1, 4 << 10),
        (100, 4 << 10),
        (1, 64 << 10),
        (100, 64 << 10),
    ] {
        let load = Load { batch, value_bytes, bytes: 64 << 20 };
        let paced = run(load, BANDWIDTH);
        println!(
            "| {batch} | {value_bytes} B | {:.1} budgets | {:.1} budgets | {} | {:.0} ms | {:.1} MB/s | {:.1} |",
            paced.memory as f64 / budget,
            paced.batch as f64 / budget,
            paced.level0,
            paced.stall_us as f64 / 1e3,
            paced.rate as f64 / 1e6,
            paced.write_amplification,
        );
    }
}

//! `kontiki bench --engine`: how fast the storage engine is by itself, without a cluster.
//!
//! The workloads are those of RocksDB's `db_bench` under the same names, so that
//! `scripts/engine-bench.sh` can run both and print ratios: keys are a number of eight bytes, big
//! endian, filled up to sixteen; one key a write; one thread reads or writes while the engine's
//! worker runs beside it. Like any owner of the engine the writer waits as long as
//! [`Engine::take_delay_us`] asks, and that is part of what is measured. A workload begins when the
//! background has finished with the one before.
//! Left out: several threads of readers, and latencies of single operations, since two looks at the
//! clock would cost as much as half a read; of writes the longest wait for 64 KiB is shown.

use super::bench::Random;
use super::config::{parse_integer, parse_size};
use super::exit::Exit;
use super::help;
use super::run::usage;
use crate::env::real::RealDisk;
use crate::lsm::{Change, Engine, LsmError, Options, STORE_DIR, Scan, Stats, Worker};
use std::ffi::OsStr;
use std::io::Write;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most keys.
const KEYS_MAX: u64 = 10_000_000_000;
/// Longest value, bytes.
const VALUE_BYTES_MAX: u64 = 1 << 20;
/// Largest memtable and cache, bytes.
const MEMORY_BYTES_MAX: u64 = 64 << 30;
/// Bytes of values to cut from, so that neighbours differ.
const VALUES_BYTES: usize = 1 << 20;
/// The writer asks each time it wrote this much how long to wait, bytes.
const PACE_BYTES: u64 = 64 << 10;
/// The key space that is used.
const SPACE: u8 = 1;
/// Seed of the checksums: the store does not outlive the run.
const IDENTITY: u64 = 1;

/// What is done, in the words of `db_bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workload {
    /// A new store; keys in random order, some of them more than once.
    FillRandom,
    /// A new store; keys in order.
    FillSeq,
    /// Reads keys of the range that was filled.
    ReadRandom,
    /// Reads keys that lie between those.
    ReadMissing,
    /// Seeks to a random place and takes one key.
    SeekRandom,
    /// Walks through everything.
    ReadSeq,
    /// Walks through everything, backwards.
    ReadReverse,
    /// As fillrandom, in the store as it is.
    Overwrite,
}

const WORKLOADS: [(&str, Workload); 8] = [
    ("fillrandom", Workload::FillRandom),
    ("fillseq", Workload::FillSeq),
    ("readrandom", Workload::ReadRandom),
    ("readmissing", Workload::ReadMissing),
    ("seekrandom", Workload::SeekRandom),
    ("readseq", Workload::ReadSeq),
    ("readreverse", Workload::ReadReverse),
    ("overwrite", Workload::Overwrite),
];

/// What runs when nothing is said.
const USUAL: &str = "fillseq,fillrandom,readrandom,readmissing,seekrandom,overwrite";

/// What a run is made of.
#[derive(Debug)]
struct Plan {
    dir: PathBuf,
    workloads: Vec<(&'static str, Workload)>,
    keys: u64,
    reads: u64,
    value_bytes: usize,
    options: Options,
}

/// Runs the subcommand. The directory is made, and removed in the end; one that holds something
/// is refused.
pub(super) fn run(
    args: &[impl AsRef<OsStr>],
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> Exit {
    let mut flags = getopts::Options::new();
    flags.optflag("", "engine", "").optflag("h", "help", "");
    for (name, hint) in [
        ("dir", "DIR"),
        ("workloads", "A,B.."),
        ("keys", "N"),
        ("reads", "N"),
        ("value", "SIZE"),
        ("memtable", "SIZE"),
        ("cache", "SIZE"),
    ] {
        flags.optopt("", name, "", hint);
    }
    let found = match flags.parse(args) {
        Ok(found) => found,
        Err(fail) => return usage(errors, &fail.to_string()),
    };
    if found.opt_present("help") {
        let text = help::help(Some("bench")).unwrap_or_default();
        let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        return if written.is_ok() { Exit::Done } else { Exit::Unavailable };
    }
    if let Some(word) = found.free.first() {
        return usage(errors, &format!("unexpected '{word}'"));
    }
    let plan = match plan_of(&found) {
        Ok(plan) => plan,
        Err(why) => return usage(errors, &why),
    };
    if let Err(why) = prepare(&plan.dir) {
        return usage(errors, &why);
    }
    let result = run_all(&plan, output);
    let removed = std::fs::remove_dir_all(&plan.dir);
    match result {
        Ok(()) if removed.is_ok() => Exit::Done,
        Ok(()) => {
            usage(errors, &format!("{}: cannot be removed", plan.dir.display()));
            Exit::Unavailable
        }
        Err(why) => {
            usage(errors, &why);
            Exit::Unavailable
        }
    }
}

fn plan_of(found: &getopts::Matches) -> Result<Plan, String> {
    let flag = |name: &'static str| move |why: String| format!("flag --{name}: {why}");
    let number = |name: &'static str, default: u64, max: u64| match found.opt_str(name) {
        None => Ok(default),
        Some(text) => parse_integer(&text, 1, max).map_err(flag(name)),
    };
    let size = |name: &'static str, default: u64, max: u64| match found.opt_str(name) {
        None => Ok(default),
        Some(text) => parse_size(&text)
            .and_then(|n| parse_integer(&n.to_string(), 0, max))
            .map_err(flag(name)),
    };
    let names = found.opt_str("workloads").unwrap_or_else(|| USUAL.to_owned());
    let known = |name: &str| {
        let entry = WORKLOADS.iter().find(|(known, _)| *known == name);
        entry.copied().ok_or_else(|| {
            let all = WORKLOADS.map(|(name, _)| name).join(", ");
            format!("flag --workloads: '{name}' is none of {all}")
        })
    };
    let workloads = names.split(',').map(known).collect::<Result<Vec<_>, _>>()?;
    let fills = |w: Workload| matches!(w, Workload::FillRandom | Workload::FillSeq);
    if !workloads.first().is_some_and(|(_, w)| fills(*w)) {
        return Err("flag --workloads: the first must be fillrandom or fillseq".to_owned());
    }
    let usual = Options::new(IDENTITY);
    let keys = number("keys", 1_000_000, KEYS_MAX)?;
    let memtable = size("memtable", usual.memtable_bytes as u64, MEMORY_BYTES_MAX)?;
    let cache = size("cache", usual.cache_bytes as u64, MEMORY_BYTES_MAX)?;
    Ok(Plan {
        dir: found.opt_str("dir").unwrap_or_else(|| "kontiki-bench".to_owned()).into(),
        workloads,
        keys,
        reads: number("reads", keys, KEYS_MAX)?,
        value_bytes: size("value", 256, VALUE_BYTES_MAX)? as usize,
        options: Options {
            memtable_bytes: memtable as usize,
            cache_bytes: cache as usize,
            ..usual
        },
    })
}

/// Makes the directory; one that is in use is left alone.
fn prepare(dir: &Path) -> Result<(), String> {
    let refuse = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir_all(dir).map_err(refuse)?;
    match std::fs::read_dir(dir).map_err(refuse)?.next() {
        None => Ok(()),
        Some(_) => Err(format!("{}: is not empty; name another with --dir", dir.display())),
    }
}

/// An engine with its worker on a thread.
struct Running {
    engine: Option<Engine>,
    worker: Option<JoinHandle<Result<(), LsmError>>>,
}

impl Running {
    /// Begins a new store.
    fn start(plan: &Plan) -> Result<Running, String> {
        let dir = plan.dir.join(STORE_DIR);
        let refuse = |e: std::io::Error| format!("{}: {e}", dir.display());
        std::fs::create_dir_all(&dir).map_err(refuse)?;
        let (engine, mut worker): (Engine, Worker) =
            Engine::open(Arc::new(RealDisk::default()), &dir, plan.options)
                .map_err(|e| e.to_string())?;
        let worker = std::thread::spawn(move || worker.run(|_| {}));
        Ok(Running { engine: Some(engine), worker: Some(worker) })
    }

    fn engine(&mut self) -> Result<&mut Engine, String> {
        self.engine.as_mut().ok_or_else(|| "the engine is closed".to_owned())
    }

    /// Ends the worker; says why it failed, if it did.
    fn stop(&mut self) -> Result<(), String> {
        self.engine = None;
        match self.worker.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error.to_string()),
            Some(Err(_)) => Err("the engine's worker panicked".to_owned()),
        }
    }
}

/// What a workload came to.
#[derive(Default)]
struct Outcome {
    operations: u64,
    found: Option<u64>,
    longest: Option<Duration>,
}

/// The part of a run that goes on from one workload to the next.
struct Bench<'p> {
    plan: &'p Plan,
    random: Random,
    values: Vec<u8>,
    applied: u64,
}

fn run_all(plan: &Plan, output: &mut dyn Write) -> Result<(), String> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let values = (0..VALUES_BYTES + plan.value_bytes).map(|_| (random.next() >> 56) as u8);
    let values = values.collect();
    let mut bench = Bench { plan, random, values, applied: 0 };
    let mut running: Option<Running> = None;
    for &(name, workload) in &plan.workloads {
        if matches!(workload, Workload::FillRandom | Workload::FillSeq) {
            if let Some(mut old) = running.take() {
                old.stop()?;
            }
            let dir = plan.dir.join(STORE_DIR);
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {e}", dir.display()));
                }
                _ => {}
            }
            bench.applied = 0;
        }
        let store = match &mut running {
            Some(store) => store,
            none => none.insert(Running::start(plan)?),
        };
        if let Err(error) = bench.one(name, workload, store.engine()?, output) {
            // The worker knows better why writing fails.
            return store.stop().and(Err(error));
        }
    }
    running.map_or(Ok(()), |mut store| store.stop())
}

impl Bench<'_> {
    fn one(
        &mut self,
        name: &str,
        workload: Workload,
        engine: &mut Engine,
        output: &mut dyn Write,
    ) -> Result<(), String> {
        let before = engine.stats();
        let started = Instant::now();
        let outcome = match workload {
            Workload::FillRandom | Workload::FillSeq | Workload::Overwrite => {
                self.write(engine, workload == Workload::FillSeq)
            }
            Workload::ReadRandom => self.get(engine, false),
            Workload::ReadMissing => self.get(engine, true),
            Workload::SeekRandom => self.seek(engine),
            Workload::ReadSeq => walk(engine, false),
            Workload::ReadReverse => walk(engine, true),
        };
        let outcome = outcome.map_err(|e| e.to_string())?;
        let took = started.elapsed();
        engine.wait_until_idle();
        let settled = started.elapsed();
        let text = report(name, &outcome, took, settled, &before, &engine.stats());
        let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        written.map_err(|e| format!("cannot write the results: {e}"))
    }

    fn write(&mut self, engine: &mut Engine, in_order: bool) -> Result<Outcome, LsmError> {
        let Plan { keys, value_bytes, .. } = *self.plan;
        let mut longest = Duration::ZERO;
        let (mut since, mut bytes) = (Instant::now(), 0);
        for i in 0..keys {
            let random = self.random.next();
            let key = key(if in_order { i } else { random % keys });
            let at = random as usize >> 8 & (VALUES_BYTES - 1);
            let value = &self.values[at..at + value_bytes];
            self.applied += 1;
            let change = Change { space: SPACE, key: &key, value: Some((self.applied, value)) };
            engine.write(self.applied, [change])?;
            bytes += (key.len() + value_bytes) as u64;
            if bytes >= PACE_BYTES {
                loop {
                    let delay_us = engine.take_delay_us();
                    if delay_us == 0 {
                        break;
                    }
                    std::thread::sleep(Duration::from_micros(delay_us));
                }
                let now = Instant::now();
                longest = longest.max(now - since);
                (since, bytes) = (now, 0);
            }
        }
        Ok(Outcome { operations: keys, longest: Some(longest), found: None })
    }

    fn get(&mut self, engine: &Engine, missing: bool) -> Result<Outcome, LsmError> {
        let Plan { keys, reads, .. } = *self.plan;
        let reader = engine.reader();
        let mut found = 0;
        for _ in 0..reads {
            let key = key(self.random.next() % keys);
            // One more byte: such keys lie within the tables' ranges and nowhere in them.
            let longer = [&key[..], b"0"].concat();
            let view = reader.view();
            let answer = view.get(SPACE, if missing { &longer } else { &key })?;
            found += u64::from(answer.is_some_and(|f| f.value().len() == self.plan.value_bytes));
        }
        Ok(Outcome { operations: reads, found: Some(found), longest: None })
    }

    fn seek(&mut self, engine: &Engine) -> Result<Outcome, LsmError> {
        let Plan { keys, reads, .. } = *self.plan;
        let reader = engine.reader();
        let mut found = 0;
        for _ in 0..reads {
            let sought = key(self.random.next() % keys);
            let (lower, upper) = (Bound::Included(&sought[..]), Bound::Unbounded);
            let scan = Scan { space: SPACE, lower, upper, reverse: false };
            reader.view().scan(&scan, &mut |row| {
                found += u64::from(row.key == sought);
                ControlFlow::Break(())
            })?;
        }
        Ok(Outcome { operations: reads, found: Some(found), longest: None })
    }
}

fn walk(engine: &Engine, reverse: bool) -> Result<Outcome, LsmError> {
    let (lower, upper) = (Bound::Unbounded, Bound::Unbounded);
    let scan = Scan { space: SPACE, lower, upper, reverse };
    let mut operations = 0;
    engine.reader().view().scan(&scan, &mut |_| {
        operations += 1;
        ControlFlow::Continue(())
    })?;
    Ok(Outcome { operations, ..Outcome::default() })
}

/// The number, big endian, and eight times the digit zero: what `db_bench` makes of a number.
fn key(number: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

fn report(
    name: &str,
    outcome: &Outcome,
    took: Duration,
    settled: Duration,
    before: &Stats,
    after: &Stats,
) -> String {
    let seconds = took.as_secs_f64();
    let operations = outcome.operations;
    let mut line = format!(
        "{name:<12} {:>9.0} ops/s {:>8.3} us/op",
        operations as f64 / seconds,
        seconds * 1e6 / operations.max(1) as f64,
    );
    if let Some(found) = outcome.found {
        line += &format!("  {found} of {operations} found");
        let reads = after.block_reads - before.block_reads;
        line += &format!(", {:.2} blocks read each", reads as f64 / operations as f64);
    }
    if let Some(longest) = outcome.longest {
        line += &format!(
            "  settled after {:.1} s, longest 64 KiB {:.1} ms, amplification: write {:.2}, space {:.2}",
            settled.as_secs_f64(),
            longest.as_secs_f64() * 1e3,
            after.write_amplification(),
            after.space_amplification(),
        );
    }
    if let Some(peak) = memory_peak() {
        line += &format!("  memory {} MiB", peak >> 20);
    }
    line + "\n"
}

/// The most memory that the process had so far, bytes, where the system says it.
fn memory_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(flags: &[&str]) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args: Vec<&str> = [&["--engine"], flags].concat();
        let exit = super::super::bench::run(&args, &mut out, &mut err);
        (exit, String::from_utf8_lossy(&out).into(), String::from_utf8_lossy(&err).into())
    }

    #[test]
    fn every_workload_does_what_its_name_says() {
        // Twenty thousand keys through memory, flushes and compactions; in a filled sequence every
        // key is found, in a random one about 63 of 100, of the missing none.
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("bench");
        let all = "fillseq,readrandom,readseq,fillrandom,readrandom,readmissing,seekrandom,\
                   readreverse,overwrite,readseq";
        let (exit, out, err) = bench(&[
            "--dir",
            inner.to_str().unwrap(),
            "--keys",
            "20000",
            "--memtable",
            "256KiB",
            "--cache",
            "1MiB",
            "--workloads",
            all,
        ]);
        assert_eq!(exit, Exit::Done, "{err}");
        let lines: Vec<&str> = out.lines().collect();
        let names: Vec<&str> = lines.iter().filter_map(|l| l.split_whitespace().next()).collect();
        assert_eq!(names, all.split(',').collect::<Vec<_>>(), "{out}");
        let found = |line: &str| -> u64 {
            let (head, _) = line.split_once(" of 20000 found").unwrap();
            head.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert_eq!(found(lines[1]), 20_000, "{out}");
        for i in [4, 6] {
            assert!((12_000..13_300).contains(&found(lines[i])), "{out}");
        }
        assert_eq!(found(lines[5]), 0, "{out}");
        for i in [0, 3, 8] {
            assert!(lines[i].contains("amplification: write "), "{out}");
        }
        assert!(!inner.exists(), "the directory must go in the end");
    }

    #[test]
    fn a_wrong_flag_or_a_directory_in_use_is_refused() {
        // Nothing is measured by mistake, and nobody's files are removed.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine"), "precious").unwrap();
        let used = dir.path().to_str().unwrap();
        for (flags, why) in [
            (&["--workloads", "fillsec"][..], "'fillsec' is none of fillrandom, "),
            (&["--workloads", "readseq"], "the first must be fillrandom or fillseq"),
            (&["--keys", "0"], "flag --keys: '0' is not a whole number"),
            (&["--clients", "3"], "clients"),
            (&["now"], "unexpected 'now'"),
            (&["--dir", used], "is not empty"),
        ] {
            let (exit, _, err) = bench(flags);
            assert_eq!(exit, Exit::Usage, "{err}");
            assert!(err.contains(why), "{err}");
        }
        assert_eq!(std::fs::read(dir.path().join("mine")).unwrap(), b"precious");
    }
}

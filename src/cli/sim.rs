//! `kontiki sim`: runs the simulator, with `--explore` every short run, or with `--replay` what real processes
//! have recorded.

use super::exit::Exit;
use super::{explore, replay};
use crate::sim::recording::{Recorded, record};
use crate::sim::{Failed, Options, Report, run};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

/// Seeds that may run at the same time; each takes some ten megabytes.
const JOBS_MAX: u64 = 1024;

/// Runs one seed or many. Exit code 1 when an invariant was broken.
pub fn sim(args: &[OsString]) -> Exit {
    if args.iter().any(|word| word == "--explore") {
        return explore::run(args);
    }
    if args.iter().any(|word| word == "--replay") {
        return replay::run(args);
    }
    let mut flags = getopts::Options::new();
    flags.optopt("", "seed", "run this seed", "N");
    flags.optopt("", "seeds", "run so many seeds, from 0 or from --seed", "COUNT");
    flags.optopt("", "jobs", "seeds run at the same time (by default one a core)", "N");
    flags.optopt("", "steps", "end the storm after so many steps", "N");
    flags.optopt("", "nodes", "nodes of the cluster (by default the seed decides)", "N");
    flags.optflag("", "stop", "stop at the first seed that fails");
    flags.optflag("", "trace", "print every step");
    flags.optopt("", "record", "record the nodes of one seed there", "DIR");
    let usage = |why: String| {
        eprintln!("kontiki sim: {why}");
        Exit::Usage
    };
    let found = match flags.parse(args) {
        Ok(found) => found,
        Err(e) => return usage(e.to_string()),
    };
    if let Some(word) = found.free.first() {
        return usage(format!("unexpected word '{word}'; see kontiki help sim"));
    }
    let number = |name: &str| match found.opt_str(name).map(|text| text.parse::<u64>()) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(e)) => Err(format!("flag --{name}: {e}")),
    };
    let numbers = || {
        Ok([number("seed")?, number("seeds")?, number("steps")?, number("nodes")?, number("jobs")?])
    };
    let [seed, seeds, steps, nodes, jobs] = match numbers() {
        Ok(numbers) => numbers,
        Err(why) => return usage(why),
    };
    if jobs.is_some_and(|n| !(1..=JOBS_MAX).contains(&n)) {
        return usage(format!("flag --jobs: 1 to {JOBS_MAX} seeds run at the same time"));
    }
    if nodes.is_some_and(|n| !(1..=9).contains(&n)) {
        return usage("flag --nodes: a cluster has 1 to 9 nodes here".to_string());
    }
    let trace = found.opt_present("trace");
    let defaults = Options::default();
    let options = Options { nodes, steps: steps.unwrap_or(defaults.steps), trace };
    match (seed, seeds, found.opt_str("record")) {
        (Some(seed), None, Some(dir)) => recorded(seed, &options, Path::new(&dir)),
        (_, _, Some(_)) => {
            usage("flag --record: one seed is recorded; name it with --seed".to_string())
        }
        (Some(seed), None, None) => one(seed, &options),
        (seed, seeds, None) => {
            let stop = found.opt_present("stop");
            let cores = || thread::available_parallelism().map_or(1, usize::from);
            let jobs = jobs.map_or_else(cores, |n| n as usize);
            many(seed.unwrap_or(0), seeds.unwrap_or(100), stop, jobs, &options)
        }
    }
}

fn one(seed: u64, options: &Options) -> Exit {
    tell(seed, run(seed, options))
}

/// Runs a seed and leaves recordings of its nodes, as `serve --record` makes them.
fn recorded(seed: u64, options: &Options, dir: &Path) -> Exit {
    let Recorded { files, verdict } = record(seed, options);
    let written = fs::create_dir_all(dir)
        .and_then(|()| files.iter().try_for_each(|f| fs::write(dir.join(&f.path), &f.bytes)));
    if let Err(e) = written {
        eprintln!("kontiki sim: cannot record in {}: {e}", dir.display());
        return Exit::Usage;
    }
    tell(seed, verdict)
}

fn tell(seed: u64, verdict: Result<Report, Box<Failed>>) -> Exit {
    match verdict {
        Ok(report) => {
            println!("seed {seed}: ok, trace hash {:016x}", report.hash);
            Exit::Done
        }
        Err(failed) => {
            for step in &failed.steps {
                println!("{step}");
            }
            println!("{}", failed.violation.detail);
            println!("seed {seed}: FAILED {}", failed.violation.invariant);
            Exit::ConditionFalse
        }
    }
}

fn many(first: u64, count: u64, stop: bool, jobs: usize, options: &Options) -> Exit {
    let started = Instant::now();
    let Totals { done, failed, report } = run_all(first, count, stop, jobs, options);
    print_totals(done, &report, started.elapsed().as_secs_f64());
    if failed == 0 {
        println!("{done} seeds: ok");
        Exit::Done
    } else {
        println!("{done} seeds: {failed} FAILED");
        Exit::ConditionFalse
    }
}

/// What many seeds have given together.
#[derive(Default)]
struct Totals {
    /// Seeds that were run.
    done: u64,
    /// Those of them that broke an invariant.
    failed: u64,
    report: Report,
}

/// Runs `count` seeds from `first` on, `jobs` at a time: each run is a world of its own. Prints those that
/// fail; with `stop` no seed is begun behind the first of them.
fn run_all(first: u64, count: u64, stop: bool, jobs: usize, options: &Options) -> Totals {
    let mut totals = Totals::default();
    let end = first.saturating_add(count);
    let next = AtomicU64::new(first);
    let stopped = AtomicBool::new(false);
    let (sender, results) = channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let sender = sender.clone();
            let (next, stopped) = (&next, &stopped);
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || sender.send((seed, run(seed, options))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (seed, result) in results {
            totals.done += 1;
            let report = result.unwrap_or_else(|f| {
                println!("{}", f.violation.detail);
                println!("seed {seed}: FAILED {}", f.violation.invariant);
                totals.failed += 1;
                stopped.store(stop, Ordering::Relaxed);
                f.report
            });
            totals.report.steps += report.steps;
            totals.report.simulated_us += report.simulated_us;
            for (name, times) in report.counters {
                *totals.report.counters.entry(name).or_default() += times;
            }
        }
    });
    totals
}

fn print_totals(seeds: u64, total: &Report, seconds: f64) {
    let simulated = total.simulated_us as f64 / 1e6;
    let sum =
        |names: &[&str]| names.iter().map(|n| total.counters.get(n).unwrap_or(&0)).sum::<u64>();
    for (name, times) in &total.counters {
        println!("{times:>12}  {name}");
    }
    let rows: BTreeMap<&str, u64> = BTreeMap::from([
        (
            "crashes",
            sum(&[
                "kill",
                "power loss",
                "killed within a write",
                "power lost within a write",
                "stopped by a disk error",
            ]),
        ),
        (
            "disk faults",
            sum(&[
                "read errors",
                "write errors",
                "sync errors",
                "full disks",
                "bit flip",
                "power lost within a write",
            ]),
        ),
        ("changes", sum(&["members changed"])),
        ("partitions", sum(&["one-way cut", "isolation"])),
    ]);
    println!("seeds {seeds}");
    println!("steps {}", total.steps);
    println!("simulated seconds {simulated:.0}");
    println!("simulated seconds per second {:.0}", simulated / seconds);
    println!("operations {}", sum(&["operations"]));
    for (name, times) in rows {
        println!("{name} {times}");
    }
    println!("elections {}", sum(&["elections"]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_do_not_depend_on_how_many_seeds_run_at_once() {
        let options = Options { steps: 2000, ..Options::default() };
        let [one, three] = [1, 3].map(|jobs| run_all(900, 5, false, jobs, &options));
        assert_eq!((one.done, one.failed), (5, 0));
        assert_eq!((three.done, three.failed), (5, 0));
        assert_eq!(one.report.steps, three.report.steps);
        assert_eq!(one.report.simulated_us, three.report.simulated_us);
        assert_eq!(one.report.counters, three.report.counters);
    }
}

//! `kontiki sim`: runs the simulator, or with `--explore` every short run.

use super::exit::Exit;
use super::explore;
use crate::sim::{Options, Report, run};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Instant;

/// Runs one seed or many. Exit code 1 when an invariant was broken.
pub fn sim(args: &[OsString]) -> Exit {
    if args.iter().any(|word| word == "--explore") {
        return explore::run(args);
    }
    let mut flags = getopts::Options::new();
    flags.optopt("", "seed", "run this seed", "N");
    flags.optopt("", "seeds", "run so many seeds, from 0 or from --seed", "COUNT");
    flags.optopt("", "steps", "end the storm after so many steps", "N");
    flags.optopt("", "nodes", "nodes of the cluster (by default the seed decides)", "N");
    flags.optflag("", "stop", "stop at the first seed that fails");
    flags.optflag("", "trace", "print every step");
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
    let numbers = || Ok((number("seed")?, number("seeds")?, number("steps")?, number("nodes")?));
    let (seed, seeds, steps, nodes) = match numbers() {
        Ok(numbers) => numbers,
        Err(why) => return usage(why),
    };
    if nodes.is_some_and(|n| !(1..=9).contains(&n)) {
        return usage("flag --nodes: a cluster has 1 to 9 nodes here".to_string());
    }
    let trace = found.opt_present("trace");
    let defaults = Options::default();
    let options = Options { nodes, steps: steps.unwrap_or(defaults.steps), trace };
    match (seed, seeds) {
        (Some(seed), None) => one(seed, &options),
        (seed, seeds) => {
            let stop = found.opt_present("stop");
            many(seed.unwrap_or(0), seeds.unwrap_or(100), stop, &options)
        }
    }
}

fn one(seed: u64, options: &Options) -> Exit {
    match run(seed, options) {
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

fn many(first: u64, count: u64, stop: bool, options: &Options) -> Exit {
    let started = Instant::now();
    let mut total = Report::default();
    let (mut done, mut failed) = (0_u64, 0_u64);
    for seed in first..first.saturating_add(count) {
        done += 1;
        let report = match run(seed, options) {
            Ok(report) => report,
            Err(f) => {
                println!("{}", f.violation.detail);
                println!("seed {seed}: FAILED {}", f.violation.invariant);
                failed += 1;
                f.report
            }
        };
        total.steps += report.steps;
        total.simulated_us += report.simulated_us;
        for (name, times) in report.counters {
            *total.counters.entry(name).or_default() += times;
        }
        if stop && failed > 0 {
            break;
        }
    }
    print_totals(done, &total, started.elapsed().as_secs_f64());
    if failed == 0 {
        println!("{done} seeds: ok");
        Exit::Done
    } else {
        println!("{done} seeds: {failed} FAILED");
        Exit::ConditionFalse
    }
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

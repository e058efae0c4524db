//! A sieve for tests: plants small changes in Kontiki's code, one at a time, and sees whether the unit tests of the module
//! and some hundred seeds of the simulator notice. All changes of a sample are in one build, each behind a switch.
//!
//! Which seeds and tests reach a change is known before it is tried. docs/simulation.md says what came of it;
//! `scripts/sieve.sh --help` what can be asked.

mod build;
mod find;
mod run;
mod weave;

#[cfg(test)]
mod tests;

use build::{Change, hash};
use run::{Plan, Verdict};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: scripts/sieve.sh [FLAGS] [MODULE...]

Draws small changes of the code (a comparison, a condition, a statement left out, a small number, a
function that returns at once), builds a copy of the tree with all of them, each behind a switch, and tries
them one by one: on the simulator and on the unit tests of the module. MODULE is a directory of src/
(by default raft node wal lsm kv client api).

    --self-test   only test the sieve itself
    --list        only print all changes that can be made
    --sample N    draw so many (default 100); those that do not compile are dropped
    --draw N      another number draws others (default 0)
    --only KEYS   these and no others: keys as they are printed, with commas between
    --seed N      first seed of the simulator (default 0)
    --seeds N     seeds that a change may survive (default 300)
    --minutes N   begin no change after so many (by default all are tried)
    --jobs N      changes that are tried at the same time (default 1)

A line for each change that survived: its key, place, and what is changed into what, how many seeds reach it
and in how many of those the trace differs. All verdicts are in sieve/verdicts.txt below CARGO_TARGET_DIR, where the
copy is, too. Exit code 0: the sieve went through, whatever survived; 1: it did not; 2: usage.
";

struct Flags {
    list: bool,
    sample: usize,
    draw: u64,
    only: Vec<u64>,
    seed: u64,
    seeds: u64,
    minutes: Option<u64>,
    jobs: usize,
    modules: Vec<String>,
}

fn flags() -> Result<Option<Flags>, String> {
    let mut f = Flags {
        list: false,
        sample: 100,
        draw: 0,
        only: Vec::new(),
        seed: 0,
        seeds: 300,
        minutes: None,
        jobs: 1,
        modules: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().unwrap_or_default();
            value.parse::<u64>().map_err(|_| format!("{word} wants a number"))
        };
        match word.as_str() {
            "-h" | "--help" => return Ok(None),
            "--list" => f.list = true,
            "--sample" => f.sample = number()? as usize,
            "--draw" => f.draw = number()?,
            "--seed" => f.seed = number()?,
            "--seeds" => f.seeds = number()?,
            "--minutes" => f.minutes = Some(number()?),
            "--jobs" => f.jobs = number()?.clamp(1, 1024) as usize,
            "--only" => {
                let keys = words.next().unwrap_or_default();
                let keys = keys.split(',').map(|k| u64::from_str_radix(k, 16));
                f.only = keys
                    .collect::<Result<_, _>>()
                    .map_err(|_| "--only wants keys, as --list prints them")?;
            }
            _ if word.starts_with('-') => {
                return Err(format!("unknown flag '{word}'; see scripts/sieve.sh --help"));
            }
            _ => f.modules.push(word),
        }
    }
    if f.modules.is_empty() {
        f.modules =
            ["raft", "node", "wal", "lsm", "kv", "client", "api"].map(str::to_owned).to_vec();
    }
    Ok(Some(f))
}

fn main() -> ExitCode {
    let flags = match flags() {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("scripts/sieve.sh: {why}");
            return ExitCode::from(2);
        }
    };
    match sieve(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("scripts/sieve.sh: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Those with the smallest hashes: the same ones as long as their code stays the same, whatever else changes.
fn draw(mut all: Vec<Change>, flags: &Flags) -> Vec<Change> {
    if flags.only.is_empty() {
        let number = flags.draw.to_string();
        all.sort_by_cached_key(|c| hash(&[&number, &c.key.to_string()]));
        all.truncate(flags.sample);
    } else {
        all.retain(|c| flags.only.contains(&c.key));
    }
    all.sort_by_key(|c| {
        (
            c.path.clone(),
            c.mutation.place.start,
            std::cmp::Reverse(c.mutation.place.end),
            c.mutation.kind,
        )
    });
    all
}

fn sieve(flags: &Flags) -> Result<(), String> {
    let began = Instant::now();
    let top = std::env::current_dir().map_err(|e| e.to_string())?;
    let (all, texts) = build::changes(&top, &flags.modules)?;
    if flags.list {
        let mut out = std::io::stdout().lock();
        // The reader may have closed the pipe.
        let _ = all.iter().try_for_each(|change| writeln!(out, "{}", change.describe()));
        return Ok(());
    }
    let possible = all.len();
    let mut sample = draw(all, flags);
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from);
    let target = if target.is_absolute() { target } else { top.join(target) }.join("sieve");
    std::fs::create_dir_all(&target).map_err(|e| format!("{}: {e}", target.display()))?;
    let drawn = sample.len();
    let programs = build::build(&top, &target, &mut sample, &texts)?;
    eprintln!("sieve: {possible} changes can be made, {drawn} drawn, {} compile", sample.len());
    let verdicts = target.join("verdicts.txt");
    let file = OpenOptions::new().create(true).write(true).truncate(true).open(&verdicts);
    let file = Mutex::new(file.map_err(|e| format!("{}: {e}", verdicts.display()))?);
    let tell = |change: &Change, verdict: &Verdict| {
        let words = words(verdict);
        if let Ok(mut file) = file.lock() {
            let _ = writeln!(file, "{words}: {}", change.describe());
        }
        if matches!(verdict, Verdict::Survived { .. }) {
            println!("{words}: {}", change.describe());
        }
    };
    let plan = Plan {
        first_seed: flags.seed,
        seeds: flags.seeds,
        jobs: flags.jobs,
        end: flags.minutes.map(|m| began + Duration::from_secs(60 * m)),
        work: target.join("work"),
    };
    let found = run::run(&programs, &sample, &plan, &tell)?;
    let count = |of: &dyn Fn(&Verdict) -> bool| found.iter().filter(|v| of(v)).count();
    let survived = count(&|v| matches!(v, Verdict::Survived { .. }));
    let unreached = count(&|v| *v == Verdict::Unreached);
    println!(
        "{} changes: {} caught by seeds, {} by unit tests, {} did not end, {survived} survived, {unreached} unreached; {} s",
        found.len(),
        count(&|v| matches!(v, Verdict::Seed { .. })),
        count(&|v| matches!(v, Verdict::Test { .. })),
        count(&|v| *v == Verdict::Timeout),
        began.elapsed().as_secs(),
    );
    Ok(())
}

fn words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Seed { seed, invariant } => format!("seed {seed} ({invariant})"),
        Verdict::Test { name } => format!("test {name}"),
        Verdict::Timeout => "no end".to_owned(),
        Verdict::Survived { seeds, differ, tested } => {
            let tested = if *tested { "unit tests reach it" } else { "no unit test reaches it" };
            format!("SURVIVED ({seeds} seeds reach it, {differ} differ; {tested})")
        }
        Verdict::Unreached => "unreached".to_owned(),
    }
}

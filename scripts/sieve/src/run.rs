//! Runs the unit tests and the seeds with one change after the other.
//!
//! First both run without any change, and the switches write down what they reach: whatever no test and no seed reaches
//! need not be tried, and a change is tried with those seeds alone that reach it, since the others cannot tell the difference.

use crate::build::{Change, Programs};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Seeds that are tried before the unit tests, which take longer: most bugs show in one of the first.
const SEEDS_BEFORE_TESTS: usize = 8;
/// Address space of a process, KiB: a change may allocate without an end.
const MEMORY_KIB: u64 = 8 << 20;

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Seed {
        seed: u64,
        invariant: String,
    },
    Test {
        name: String,
    },
    /// Something did not end.
    Timeout,
    Survived {
        /// Seeds that reach it.
        seeds: usize,
        /// Of those, the ones whose trace it changes.
        differ: usize,
        /// Whether the unit tests reach it.
        tested: bool,
    },
    /// No seed and no unit test of the module gets there.
    Unreached,
}

/// How a process ended, and what it said.
enum End {
    Passed(String),
    Failed(String),
    Timeout,
}

/// Runs a program with bounds on its time and memory.
fn bounded(
    program: &Path,
    words: &[String],
    env: (&str, &str),
    dir: &Path,
    cpu_s: u64,
    log: &Path,
) -> Result<End, String> {
    let out = File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
    let err = out.try_clone().map_err(|e| e.to_string())?;
    let temporary = log.with_extension("tmp");
    fs::create_dir_all(&temporary).map_err(|e| e.to_string())?;
    let script = "ulimit -t \"$1\"; ulimit -v \"$2\"; ulimit -c 0; shift 2; exec \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bounded", &cpu_s.to_string(), &MEMORY_KIB.to_string()]);
    command.arg(program).args(words).env(env.0, env.1).env("TMPDIR", &temporary).current_dir(dir);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = command.spawn().map_err(|e| format!("bash: {e}"))?;
    // On a busy machine the wall clock runs ahead of the processor's.
    let end = Instant::now() + Duration::from_secs(6 * cpu_s + 30);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break Some(status);
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let said = String::from_utf8_lossy(&fs::read(log).map_err(|e| e.to_string())?).into_owned();
    let _ = fs::remove_dir_all(&temporary);
    Ok(match status {
        Some(status) if status.success() => End::Passed(said),
        Some(status) if is_out_of_time(&status) => End::Timeout,
        Some(_) => End::Failed(said),
        None => End::Timeout,
    })
}

#[cfg(unix)]
fn is_out_of_time(status: &std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    // SIGXCPU, or SIGKILL by the hard limit.
    matches!(status.signal(), Some(24 | 9))
}

#[cfg(not(unix))]
fn is_out_of_time(_: &std::process::ExitStatus) -> bool {
    false
}

pub struct Plan {
    pub first_seed: u64,
    pub seeds: u64,
    pub jobs: usize,
    /// No change is begun after it.
    pub end: Option<Instant>,
    pub work: PathBuf,
}

/// What runs without a change.
struct Clean {
    /// Changes that each seed reaches, and its trace hash.
    seeds: Vec<(u64, BTreeSet<usize>, String)>,
    /// The unit tests of each module, the shortest first.
    tests: BTreeMap<String, Vec<Test>>,
    seed_limit_s: u64,
}

struct Test {
    name: String,
    reached: BTreeSet<usize>,
    took: Duration,
}

/// The verdicts on those of the sample for which there was time.
pub fn run(
    programs: &Programs,
    sample: &[Change],
    plan: &Plan,
    tell: &(dyn Fn(&Change, &Verdict) + Sync),
) -> Result<Vec<Verdict>, String> {
    fs::create_dir_all(&plan.work).map_err(|e| format!("{}: {e}", plan.work.display()))?;
    let clean = clean(programs, sample, plan)?;
    // In an order of their own, so that what there is no time for is not always of the same modules.
    let mut order: Vec<usize> = (0..sample.len()).collect();
    order.sort_by_key(|&n| sample[n].key);
    let verdicts = each(plan.jobs, sample.len(), &|i, worker| {
        if plan.end.is_some_and(|end| Instant::now() > end) {
            return Ok(None);
        }
        let number = order[i];
        let verdict = judge(
            programs,
            number,
            &sample[number],
            &clean,
            &plan.work.join(format!("worker{worker}")),
        )?;
        tell(&sample[number], &verdict);
        Ok(Some(verdict))
    })?;
    Ok(verdicts.into_iter().flatten().collect())
}

/// Does something for each number, some at a time.
fn each<T: Send>(
    jobs: usize,
    count: usize,
    work: &(dyn Fn(usize, usize) -> Result<T, String> + Sync),
) -> Result<Vec<T>, String> {
    let next = AtomicUsize::new(0);
    let done = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|worker| {
                let next = &next;
                scope.spawn(move || {
                    let mut done = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return Ok(done);
                        }
                        done.push((number, work(number, worker)?));
                    }
                })
            })
            .collect();
        let joined = workers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|_| Err("a worker panicked".into())));
        joined.collect::<Result<Vec<_>, String>>()
    })?;
    let mut done: Vec<(usize, T)> = done.into_iter().flatten().collect();
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, t)| t).collect())
}

fn seed_words(seed: u64) -> Vec<String> {
    vec!["sim".into(), "--seed".into(), seed.to_string()]
}

fn test_words(names: &[&str]) -> Vec<String> {
    let words = ["--exact", "--test-threads=2"].into_iter().chain(names.iter().copied());
    words.map(str::to_owned).collect()
}

fn reached(path: &Path) -> BTreeSet<usize> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}

fn clean(programs: &Programs, sample: &[Change], plan: &Plan) -> Result<Clean, String> {
    let modules: BTreeSet<&str> = sample.iter().map(Change::module).collect();
    let list = vec!["--list".to_owned(), "--format=terse".to_owned()];
    let listed = match bounded(
        &programs.tests,
        &list,
        ("SIEVE", "none"),
        &programs.tree,
        60,
        &plan.work.join("clean"),
    )? {
        End::Passed(said) => said,
        End::Failed(_) | End::Timeout => return Err("the unit tests cannot be listed".to_owned()),
    };
    let names: Vec<&str> = listed.lines().filter_map(|l| l.strip_suffix(": test")).collect();
    let mut tests = BTreeMap::new();
    for module in modules {
        let began = Instant::now();
        let own: Vec<&str> =
            names.iter().copied().filter(|n| n.split("::").next() == Some(module)).collect();
        let mut found =
            each(plan.jobs, own.len(), &|i, worker| clean_test(programs, own[i], plan, worker))?;
        found.sort_by_key(|t| t.took);
        eprintln!("sieve: {} tests of {module} take {} s", found.len(), began.elapsed().as_secs());
        tests.insert(module.to_owned(), found);
    }
    let began = Instant::now();
    let seeds = each(plan.jobs, plan.seeds as usize, &|i, worker| {
        let seed = plan.first_seed + i as u64;
        let file = plan.work.join(format!("reached.{worker}"));
        let _ = fs::remove_file(&file);
        let (env, log) =
            (file.to_string_lossy().into_owned(), plan.work.join(format!("clean{worker}")));
        match bounded(
            &programs.simulator,
            &seed_words(seed),
            ("SIEVE_REACHED", &env),
            &plan.work,
            120,
            &log,
        )? {
            End::Passed(said) => Ok((seed, reached(&file), said)),
            End::Failed(said) => {
                Err(format!("seed {seed} fails without a change: {}", last_line(&said)))
            }
            End::Timeout => Err(format!("seed {seed} does not end without a change")),
        }
    })?;
    let took = began.elapsed().as_secs_f64();
    eprintln!("sieve: {} seeds without a change take {took:.0} s", plan.seeds);
    let seed_limit_s = 8 + (20.0 * took * plan.jobs as f64 / plan.seeds.max(1) as f64) as u64;
    Ok(Clean { seeds, tests, seed_limit_s })
}

fn clean_test(programs: &Programs, name: &str, plan: &Plan, worker: usize) -> Result<Test, String> {
    let file = plan.work.join(format!("reached.{worker}"));
    let _ = fs::remove_file(&file);
    let (env, log) =
        (file.to_string_lossy().into_owned(), plan.work.join(format!("clean{worker}")));
    let began = Instant::now();
    match bounded(
        &programs.tests,
        &test_words(&[name]),
        ("SIEVE_REACHED", &env),
        &programs.tree,
        600,
        &log,
    )? {
        End::Passed(_) => {
            Ok(Test { name: name.to_owned(), reached: reached(&file), took: began.elapsed() })
        }
        End::Failed(said) => Err(format!("test {name} fails without a change:\n{said}")),
        End::Timeout => Err(format!("test {name} does not end without a change")),
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

fn judge(
    programs: &Programs,
    number: usize,
    change: &Change,
    clean: &Clean,
    log: &Path,
) -> Result<Verdict, String> {
    let module = change.module();
    let name = number.to_string();
    let tests: Vec<&Test> =
        clean.tests[module].iter().filter(|t| t.reached.contains(&number)).collect();
    let tested = !tests.is_empty();
    let of_seeds: Vec<&(u64, BTreeSet<usize>, String)> =
        clean.seeds.iter().filter(|(_, reached, _)| reached.contains(&number)).collect();
    if !tested && of_seeds.is_empty() {
        return Ok(Verdict::Unreached);
    }
    let mut differ = 0;
    let mut try_seed = |(seed, _, hash): &(u64, BTreeSet<usize>, String)| {
        let end = bounded(
            &programs.simulator,
            &seed_words(*seed),
            ("SIEVE", &name),
            log_dir(log),
            clean.seed_limit_s,
            log,
        )?;
        Ok::<_, String>(match end {
            End::Passed(said) => {
                differ += usize::from(said != *hash);
                None
            }
            End::Failed(said) => {
                let invariant = last_line(&said).rsplit_once("FAILED ").map_or("ended", |(_, i)| i);
                Some(Verdict::Seed { seed: *seed, invariant: invariant.to_owned() })
            }
            End::Timeout => Some(Verdict::Timeout),
        })
    };
    let (first, rest) = of_seeds.split_at(SEEDS_BEFORE_TESTS.min(of_seeds.len()));
    for seed in first {
        if let Some(verdict) = try_seed(seed)? {
            return Ok(verdict);
        }
    }
    // The short ones together, the long ones one by one.
    let (short, long) =
        tests.split_at(tests.partition_point(|t| t.took < Duration::from_millis(300)));
    for some in [short].into_iter().filter(|s| !s.is_empty()).chain(long.chunks(1)) {
        let names: Vec<&str> = some.iter().map(|t| t.name.as_str()).collect();
        let took: Duration = some.iter().map(|t| t.took).sum();
        let limit = 4 * took.as_secs() + 10;
        match bounded(
            &programs.tests,
            &test_words(&names),
            ("SIEVE", &name),
            &programs.tree,
            limit,
            log,
        )? {
            End::Passed(_) => {}
            End::Failed(said) => {
                let failed =
                    said.lines().find_map(|l| l.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
                return Ok(Verdict::Test { name: failed.unwrap_or("ended").to_owned() });
            }
            End::Timeout => return Ok(Verdict::Timeout),
        }
    }
    for seed in rest {
        if let Some(verdict) = try_seed(seed)? {
            return Ok(verdict);
        }
    }
    Ok(Verdict::Survived { seeds: of_seeds.len(), differ, tested })
}

fn log_dir(log: &Path) -> &Path {
    log.parent().unwrap_or(Path::new("."))
}

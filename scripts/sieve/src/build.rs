//! A copy of the tree with the changes of a sample in it, and its two programs: the simulator and the unit tests.

use crate::find::{self, Mutation};
use crate::weave::{Woven, weave};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Rounds of checking in which changes that do not compile are dropped.
const ROUNDS_MAX: usize = 25;

/// Files that only check, or serve the explorer alone.
const LEFT_OUT: [&str; 2] = ["src/raft/invariants.rs", "src/raft/canonical.rs"];

/// A change with its file. Its number is its index in the sample.
#[derive(Clone)]
pub struct Change {
    /// From the top of the tree, such as `src/raft/log.rs`.
    pub path: String,
    /// Stays as long as the code around it does: a hash of path, function, and what is changed into what.
    pub key: u64,
    pub mutation: Mutation,
}

impl Change {
    /// `src/raft/log.rs` is of `raft`.
    pub fn module(&self) -> &str {
        self.path.split('/').nth(1).unwrap_or_default()
    }

    pub fn describe(&self) -> String {
        let m = &self.mutation;
        format!("{:016x} {}:{} {}: {}", self.key, self.path, m.line, m.within, m.words)
    }
}

/// FNV-1a.
pub fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|p| p.bytes().chain([0xff]));
    let hashed = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    // The last bytes reach the upper bits.
    let mixed = (hashed ^ (hashed >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// All changes that can be made below some directories of `src/`, and the files' texts.
pub fn changes(
    top: &Path,
    modules: &[String],
) -> Result<(Vec<Change>, BTreeMap<String, String>), String> {
    let mut texts = BTreeMap::new();
    let mut for_tests = BTreeSet::new();
    for module in modules {
        let mut open = vec![PathBuf::from("src").join(module)];
        while let Some(dir) = open.pop() {
            let entries =
                fs::read_dir(top.join(&dir)).map_err(|e| format!("{}: {e}", dir.display()))?;
            for entry in entries {
                let entry = entry.map_err(|e| e.to_string())?;
                let path = dir.join(entry.file_name());
                if entry.path().is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let text = fs::read_to_string(entry.path())
                        .map_err(|e| format!("{}: {e}", path.display()))?;
                    for name in find::test_modules(&text) {
                        for_tests.insert(dir.join(&name));
                    }
                    texts.insert(path.to_string_lossy().replace('\\', "/"), text);
                }
            }
        }
    }
    let only_tests = |path: &str| {
        let path = Path::new(path);
        let own = path.with_extension("");
        LEFT_OUT.iter().any(|l| path == Path::new(l))
            || for_tests.iter().any(|t| own.starts_with(t))
            || path.components().any(|c| c.as_os_str() == "tests")
    };
    texts.retain(|path, _| !only_tests(path));
    let mut all = Vec::new();
    for (path, text) in &texts {
        let found = find::mutations(text).map_err(|e| format!("{path}:{e}"))?;
        let mut equals: BTreeMap<u64, usize> = BTreeMap::new();
        for mutation in found {
            let plain = hash(&[path, &mutation.within, &mutation.words]);
            let times = equals.entry(plain).or_default();
            let key =
                if *times == 0 { plain } else { hash(&[&plain.to_string(), &times.to_string()]) };
            *times += 1;
            all.push(Change { path: path.clone(), key, mutation });
        }
    }
    Ok((all, texts))
}

/// The programs of a sample.
pub struct Programs {
    pub simulator: PathBuf,
    pub tests: PathBuf,
    /// Where the tests run.
    pub tree: PathBuf,
}

/// Builds the sample. Changes that do not compile are removed from it.
pub fn build(
    top: &Path,
    target: &Path,
    sample: &mut Vec<Change>,
    texts: &BTreeMap<String, String>,
) -> Result<Programs, String> {
    let tree = target.join("tree");
    // Woven files are not written as they were in between: what is equal is not compiled again.
    let woven: BTreeSet<PathBuf> = texts.keys().map(|path| tree.join(path)).collect();
    for name in ["Cargo.toml", "Cargo.lock", "src", "tests", "docs", "README.md"] {
        copy(&top.join(name), &tree.join(name), &woven)?;
    }
    let lib = fs::read_to_string(top.join("src/lib.rs")).map_err(|e| format!("src/lib.rs: {e}"))?;
    put(&tree.join("src/lib.rs"), format!("{lib}\n#[doc(hidden)]\npub mod sieve;\n").as_bytes())?;
    // What did not compile once is not tried again.
    let dropped = target.join("dropped.txt");
    let keys = fs::read_to_string(&dropped).unwrap_or_default();
    let mut keys: BTreeSet<u64> =
        keys.lines().filter_map(|l| u64::from_str_radix(l, 16).ok()).collect();
    sample.retain(|c| !keys.contains(&c.key));
    for round in 1.. {
        let switch =
            include_str!("switch.rs").replace("; COUNT]", &format!("; {}]", sample.len().max(1)));
        put(&tree.join("src/sieve.rs"), switch.as_bytes())?;
        let mut woven = BTreeMap::new();
        for (path, text) in texts {
            let of_file: Vec<(usize, &Mutation)> = sample
                .iter()
                .enumerate()
                .filter(|(_, c)| c.path == *path)
                .map(|(i, c)| (i, &c.mutation))
                .collect();
            let made = weave(text, &of_file);
            put(&tree.join(path), made.text.as_bytes())?;
            let numbers: Vec<usize> = of_file.iter().map(|(i, _)| *i).collect();
            woven.insert(path.clone(), (made, numbers));
        }
        let complaints = check(&tree, target)?;
        if complaints.is_empty() {
            break;
        }
        let bad = blame(&complaints, &woven, sample, texts);
        if bad.is_empty() || round == ROUNDS_MAX {
            return Err(format!("the woven tree does not compile: {}", complaints[0].words));
        }
        eprintln!("sieve: round {round}: {} of {} changes do not compile", bad.len(), sample.len());
        keys.extend(bad.iter().map(|&n| sample[n].key));
        sample.retain(|c| !keys.contains(&c.key));
        let lines: String = keys.iter().map(|k| format!("{k:016x}\n")).collect();
        put(&dropped, lines.as_bytes())?;
    }
    cargo(&tree, target, &["build", "--profile", "mutant", "--bin", "kontiki"])?;
    let said = cargo(&tree, target, &["test", "--lib", "--no-run"])?;
    let tests = said
        .lines()
        .find_map(|l| l.trim().strip_prefix("Executable unittests src/lib.rs (")?.strip_suffix(')'))
        .ok_or("cargo does not say where the tests are")?;
    let tests = PathBuf::from(tests);
    let tests = if tests.is_absolute() { tests } else { tree.join(tests) };
    Ok(Programs { simulator: target.join("mutant/kontiki"), tests, tree })
}

/// Writes a file if it differs: its time decides what is compiled again.
fn put(path: &Path, bytes: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, bytes)).map_err(|e| format!("{}: {e}", path.display()))
}

fn copy(from: &Path, to: &Path, except: &BTreeSet<PathBuf>) -> Result<(), String> {
    let here = |e: std::io::Error| format!("{}: {e}", from.display());
    if !from.is_dir() {
        let own = except.contains(to) || to.ends_with("src/lib.rs");
        return if own { Ok(()) } else { put(to, &fs::read(from).map_err(here)?) };
    }
    for entry in fs::read_dir(from).map_err(here)? {
        let entry = entry.map_err(here)?;
        copy(&entry.path(), &to.join(entry.file_name()), except)?;
    }
    Ok(())
}

fn command(tree: &Path, target: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(words).current_dir(tree);
    command
        .env("CARGO_TARGET_DIR", target)
        .env("RUSTFLAGS", "-Awarnings")
        .env("CARGO_TERM_COLOR", "never");
    // Built once and run thousands of times.
    command
        .env("CARGO_PROFILE_MUTANT_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_MUTANT_CODEGEN_UNITS", "16");
    command.stdin(Stdio::null());
    command
}

fn cargo(tree: &Path, target: &Path, words: &[&str]) -> Result<String, String> {
    let output = command(tree, target, words).output().map_err(|e| format!("cargo: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("cargo {}:\n{said}", words.join(" ")))
    }
}

/// An error of the compiler: `src/raft/log.rs:12:5: error[E0308]: mismatched types`.
struct Complaint {
    path: String,
    line: usize,
    column: usize,
    words: String,
}

fn check(tree: &Path, target: &Path) -> Result<Vec<Complaint>, String> {
    let mut command = command(tree, target, &["check", "--lib", "--message-format", "short"]);
    let output = command.output().map_err(|e| format!("cargo: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<Complaint> = said.lines().filter_map(complaint).collect();
    if output.status.success() {
        return Ok(Vec::new());
    }
    if complaints.is_empty() { Err(format!("cargo check:\n{said}")) } else { Ok(complaints) }
}

fn complaint(line: &str) -> Option<Complaint> {
    let (place, words) = line.split_once(": error")?;
    let mut parts = place.rsplitn(3, ':');
    let column = parts.next()?.parse().ok()?;
    let number = parts.next()?.parse().ok()?;
    let path = parts.next()?.replace('\\', "/");
    Some(Complaint { path, line: number, column, words: format!("{line} {words}") })
}

/// Bytes before a line and column, both from 1.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let within: usize = text[before..].chars().take(column - 1).map(char::len_utf8).sum();
    before + within
}

/// The changes that are to blame: those in whose own text an error stands, else those of the innermost switch
/// around it, else all of the function.
fn blame(
    complaints: &[Complaint],
    woven: &BTreeMap<String, (Woven, Vec<usize>)>,
    sample: &[Change],
    texts: &BTreeMap<String, String>,
) -> BTreeSet<usize> {
    let mut bad = BTreeSet::new();
    for c in complaints {
        let Some((file, numbers)) = woven.get(&c.path) else { continue };
        let at = offset(&file.text, c.line, c.column);
        let all = || file.places.iter().zip(numbers);
        let own: Vec<usize> =
            all().filter(|((own, _), _)| own.contains(&at)).map(|(_, n)| *n).collect();
        if !own.is_empty() {
            bad.extend(own);
            continue;
        }
        let around = all().filter(|((_, switch), _)| switch.contains(&at));
        if let Some(least) = around.clone().map(|((_, s), _)| s.len()).min() {
            bad.extend(around.filter(|((_, s), _)| s.len() == least).map(|(_, n)| *n));
            continue;
        }
        // Lines have kept their numbers.
        let at = offset(&texts[&c.path], c.line, 1);
        bad.extend(numbers.iter().filter(|&&n| {
            let f = &sample[n].mutation.function;
            let line_of_end = offset_of_line_end(&texts[&c.path], at);
            f.start <= line_of_end && at <= f.end
        }));
    }
    bad
}

fn offset_of_line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |n| at + n)
}

//! House rules that a program can check: layout, the arrows between modules, what deterministic
//! code may not touch, and what nothing may contain. Each rule names every offender.
//!
//! A rule is a function from prepared sources to complaints of the form `path:line: what`, so that
//! each is also tried on a small sample that breaks it.

mod scan;

use scan::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, lines: beyond this there is usually a second idea inside.
const LINES_MAX: usize = 700;
/// What is deterministic: equal inputs give equal outputs, in production and in simulation.
const DETERMINISTIC: [&[&str]; 5] = [&["raft"], &["kv"], &["node"], &["api"], &["client", "core"]];
/// What meets the outside world, where an error is a value.
const OUTWARD: [&str; 8] = ["wal", "lsm", "wire", "server", "cli", "client", "node", "api"];
/// What may lie at the top beside dotfiles and what .gitignore names.
const TOP_LEVEL: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "docs",
    "rustfmt.toml",
    "scripts",
    "src",
    "tests",
];
const DEPENDENCIES: [&str; 2] = ["crc32fast", "getopts"];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files under a directory whose name ends so, as paths from the top, sorted.
fn files(dir: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(dir)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(top().join(&dir)) else { continue };
        for entry in entries {
            let entry = entry.expect("a directory of the repository");
            let path = dir.join(entry.file_name());
            if entry.path().is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn sources(dirs: &[&str]) -> Vec<Source> {
    let all: Vec<Source> = dirs
        .iter()
        .flat_map(|dir| files(dir, &["rs"]))
        .map(|path| Source::new(&path, &read(&path)))
        .collect();
    assert!(!all.is_empty(), "no source files under {dirs:?}");
    all
}

fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Complaints of a rule about one made-up file.
fn about(rule: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
    rule(&Source::new(path, text))
}

fn each(rule: impl Fn(&Source) -> Vec<String>, dirs: &[&str]) -> Vec<String> {
    sources(dirs).iter().flat_map(rule).collect()
}

// --- the rules ---

fn opens_with_its_purpose(s: &Source) -> Vec<String> {
    let first = s.text.lines().next().unwrap_or_default();
    if first.starts_with("//!") { vec![] } else { vec![format!("{}:1: no //! opening", s.path)] }
}

fn is_not_too_long(s: &Source) -> Vec<String> {
    let lines = s.text.lines().count();
    if lines <= LINES_MAX { vec![] } else { vec![format!("{}:{lines}: too many lines", s.path)] }
}

fn has_no_trailing_space(path: &str, text: &str) -> Vec<String> {
    let bad = |line: &str| line.ends_with([' ', '\t']);
    let lines = text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).enumerate();
    lines
        .filter(|(_, l)| bad(l))
        .map(|(i, _)| format!("{path}:{}: trailing space", i + 1))
        .collect()
}

fn is_deterministic(s: &Source) -> Vec<String> {
    if !DETERMINISTIC.iter().any(|of| s.module().starts_with(of)) {
        return vec![];
    }
    let banned = |segments: &[String]| {
        let has = |name: &str| segments.iter().any(|s| s == name);
        let outside = match segments {
            [a, b, ..] if a == "std" => ["thread", "net", "fs"].contains(&b.as_str()),
            [a, _, ..] => ["rand", "thread", "fs", "net"].contains(&a.as_str()),
            _ => false,
        };
        outside
            || ["Instant", "SystemTime", "HashMap", "HashSet", "RandomState"].into_iter().any(has)
    };
    let found = s.paths().into_iter().filter(|n| banned(&n.segments));
    found.map(|n| format!("{}:{}: {} here", s.path, n.line, n.segments.join("::"))).collect()
}

fn panics_on_nothing_from_outside(s: &Source) -> Vec<String> {
    if !s.module().first().is_some_and(|m| OUTWARD.contains(m)) {
        return vec![];
    }
    let raw: Vec<&str> = s.text.lines().collect();
    let reason = |line: &str| {
        line.split_once("// invariant:").is_some_and(|(_, why)| !why.trim().is_empty())
    };
    // The mark stands on the line itself or in the comment right above it.
    let marked = |number: usize| {
        let above = raw[..number - 1].iter().rev().take_while(|l| l.trim().starts_with("//"));
        reason(raw[number - 1]) || above.into_iter().any(|l| reason(l))
    };
    let panics = |code: &str| code.contains(".unwrap()") || code.contains(".expect(");
    let found = s.production().filter(|&(number, code)| panics(code) && !marked(number));
    found.map(|(n, _)| format!("{}:{n}: unwrap or expect without // invariant:", s.path)).collect()
}

fn holds_nothing_unfinished(s: &Source) -> Vec<String> {
    const MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];
    let mut complaints = Vec::new();
    for (i, code) in s.code.iter().enumerate() {
        for n in scan::paths(code) {
            let word = n.segments.last().map(String::as_str).unwrap_or_default();
            if word == "unsafe" || MACROS.contains(&word) && code.contains(&format!("{word}!")) {
                complaints.push(format!("{}:{}: {word}", s.path, i + 1));
            }
        }
    }
    complaints
}

/// `server/` neither looks at what a member is nor makes a rejection: both are decided in `node/`, where
/// the simulator runs it.
fn decides_nothing(s: &Source) -> Vec<String> {
    const WORDS: [&str; 8] = [
        " Reject {",
        "(Reject {",
        "RejectCode",
        "is_voter",
        ".voters",
        ".learners",
        "was_removed",
        "is_joint",
    ];
    let found = s.production().flat_map(|(n, code)| {
        let words = WORDS.iter().filter(move |w| code.contains(**w));
        words.map(move |w| (n, w.trim_matches([' ', '(', '{'])))
    });
    found.map(|(n, word)| format!("{}:{n}: {word} is for node/ to decide on", s.path)).collect()
}

fn knows_no_system(s: &Source) -> Vec<String> {
    if s.module().first() == Some(&"env") {
        return vec![];
    }
    const SYSTEMS: [&str; 4] = ["unix", "windows", "target_os", "target_family"];
    let asks = |code: &str| {
        let open = ["cfg(", "cfg!(", "cfg_attr("].iter().any(|c| code.contains(c));
        let words = scan::paths(code);
        open && words.iter().flat_map(|n| &n.segments).any(|w| SYSTEMS.contains(&w.as_str()))
    };
    let found = s.production().filter(|(_, code)| asks(code));
    found.map(|(n, _)| format!("{}:{n}: asks for the system outside env/", s.path)).collect()
}

/// What each module may import, as the table in src/lib.rs says.
fn arrows(lib: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut table = BTreeMap::new();
    let mut above = BTreeSet::new();
    for line in lib.lines().filter_map(|l| l.strip_prefix("//! | `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, _, imports, ..] = cells.as_slice() else { continue };
        let name = name.trim_end_matches('`').to_owned();
        let allowed = match *imports {
            "all of the above" => above.clone(),
            "nothing of ours" => BTreeSet::new(),
            names => {
                let words = names.split(|c: char| !c.is_alphanumeric() && c != '_');
                words.filter(|w| !w.is_empty()).map(str::to_owned).collect()
            }
        };
        above.insert(name.clone());
        table.insert(name, allowed);
    }
    table
}

/// The module at the top of the crate that a path leads to, if it leads there.
fn target<'a>(module: &[&str], segments: &'a [String]) -> Option<&'a str> {
    let supers = segments.iter().take_while(|s| *s == "super").count();
    match segments.first()?.as_str() {
        "crate" => segments.get(1).map(String::as_str),
        "super" if supers >= module.len() => segments.get(supers).map(String::as_str),
        _ => None,
    }
}

fn follows_the_arrows(table: &BTreeMap<String, BTreeSet<String>>, s: &Source) -> Vec<String> {
    let module = s.module();
    let Some(&own) = module.first() else { return vec![] };
    let Some(allowed) = table.get(own) else {
        return vec![format!("{}:1: module {own} is not in the table of src/lib.rs", s.path)];
    };
    let mut complaints = Vec::new();
    for n in s.paths() {
        if let Some(to) = target(&module, &n.segments)
            && to != own
            && !allowed.contains(to)
        {
            complaints.push(format!("{}:{}: {own} must not import {to}", s.path, n.line));
        }
    }
    complaints
}

/// Complaints about the dependencies that users of the crate would build.
fn depends_on_two(manifest: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut found = BTreeSet::new();
    let mut section = "";
    for (i, line) in manifest.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let here = |what: &str| format!("Cargo.toml:{}: {what}", i + 1);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']);
            let dependencies = section.contains("dependencies") && section != "dev-dependencies";
            if dependencies && section != "dependencies" {
                complaints.push(here("dependencies belong under [dependencies]"));
            }
        } else if let Some((name, _)) = line.split_once('=').filter(|_| section == "dependencies") {
            let name = name.trim().split('.').next().unwrap_or_default();
            if !DEPENDENCIES.contains(&name) {
                complaints.push(here(&format!("{name} is not one of {DEPENDENCIES:?}")));
            }
            found.insert(name);
        }
    }
    let missing = DEPENDENCIES.iter().filter(|d| !found.contains(*d));
    complaints.extend(missing.map(|d| format!("Cargo.toml:1: {d} is missing")));
    complaints
}

fn strays(names: &[String], ignored: &str) -> Vec<String> {
    let ignored: Vec<&str> = ignored.lines().map(|l| l.trim().trim_matches('/')).collect();
    let fine = |n: &str| TOP_LEVEL.contains(&n) || n.starts_with('.') || ignored.contains(&n);
    let stray = names.iter().filter(|n| !fine(n.as_str()));
    stray.map(|n| format!("{n}:1: does not belong at the top")).collect()
}

// --- the repository keeps them ---

#[test]
fn every_module_opens_with_its_purpose() {
    // A reader learns from the first line what a file is for.
    none(&each(opens_with_its_purpose, &["src"]));
    assert_eq!(about(opens_with_its_purpose, "src/a.rs", "use b;\n//! late\n").len(), 1);
}

#[test]
fn files_stay_short() {
    // Tests included: those move to a file beside.
    none(&each(is_not_too_long, &["src", "tests"]));
    assert_eq!(about(is_not_too_long, "src/a.rs", &"a\n".repeat(LINES_MAX)), [""; 0]);
    assert_eq!(about(is_not_too_long, "src/a.rs", &"a\n".repeat(LINES_MAX + 1)).len(), 1);
}

#[test]
fn no_line_ends_in_space() {
    // In code, scripts and pages alike.
    let kinds = ["rs", "sh", "ps1", "md", "toml"];
    let mut all: Vec<String> =
        ["src", "tests", "scripts", "docs"].iter().flat_map(|d| files(d, &kinds)).collect();
    all.extend(["README.md", "Cargo.toml", ".ci/run"].map(str::to_owned));
    none(&all.iter().flat_map(|p| has_no_trailing_space(p, &read(p))).collect::<Vec<_>>());
    assert_eq!(
        has_no_trailing_space("a", "b\nc \r\nd\t"),
        ["a:2: trailing space", "a:3: trailing space"]
    );
}

#[test]
fn deterministic_modules_touch_no_world() {
    // No clock, thread, socket, file, hash order or random source in raft/, kv/, node/ and what a
    // client decides.
    none(&each(is_deterministic, &["src"]));
    for line in [
        "use std::time::{Duration, Instant};",
        "let t = SystemTime::now();",
        "use std::{\n  fs, io};",
        "std::thread::sleep(d);",
        "use std::net::TcpStream;",
        "let m: HashMap<u8, u8>;",
        "use std::collections::{BTreeMap, HashSet};",
        "let r = rand::random();",
        "RandomState::new()",
    ] {
        assert_eq!(about(is_deterministic, "src/raft/a.rs", line).len(), 1, "{line}");
        assert_eq!(about(is_deterministic, "src/client/core/a.rs", line).len(), 1, "{line}");
        assert_eq!(about(is_deterministic, "src/server/a.rs", line), [""; 0]);
        assert_eq!(about(is_deterministic, "src/client/a.rs", line), [""; 0]);
    }
    let fine =
        "// HashMap\nuse std::time::Duration; let s = \"Instant\"; self.fs.read(); let rand = 1;";
    assert_eq!(about(is_deterministic, "src/kv/a.rs", fine), [""; 0]);
    let test = "#[cfg(test)]\nmod tests {\n use std::collections::HashMap; }";
    assert_eq!(about(is_deterministic, "src/kv/a.rs", test), [""; 0]);
}

#[test]
fn nothing_from_outside_can_panic() {
    // Errors of disk, network and input are values; what cannot fail says why.
    none(&each(panics_on_nothing_from_outside, &["src"]));
    let rule = panics_on_nothing_from_outside;
    for path in ["src/wal/a.rs", "src/client.rs", "src/node/b/c.rs"] {
        assert_eq!(
            about(rule, path, "x\n  .unwrap();"),
            [format!("{path}:2: unwrap or expect without // invariant:")]
        );
    }
    assert_eq!(about(rule, "src/wire/a.rs", "x.expect(\"y\"); // invariant:").len(), 1);
    assert_eq!(about(rule, "src/wire/a.rs", "x.expect(\"y\"); // invariant: just made"), [""; 0]);
    assert_eq!(about(rule, "src/wire/a.rs", "// invariant: just\n// made\nx.unwrap();"), [""; 0]);
    assert_eq!(about(rule, "src/wire/a.rs", "// invariant: far\n\nx.unwrap();").len(), 1);
    assert_eq!(about(rule, "src/wire/a.rs", "x.unwrap_or(1); // .unwrap()"), [""; 0]);
    assert_eq!(about(rule, "src/raft/a.rs", "x.unwrap();"), [""; 0]);
}

#[test]
fn nothing_is_left_unfinished_or_unsafe() {
    // In tests too.
    none(&each(holds_nothing_unfinished, &["src", "tests"]));
    let rule = holds_nothing_unfinished;
    for line in ["todo!()", "unimplemented!(\"x\")", "dbg!(1)", "std::todo!()", "unsafe { x }"] {
        assert_eq!(about(rule, "src/a.rs", line).len(), 1, "{line}");
    }
    assert_eq!(about(rule, "src/a.rs", "let todo = \"dbg!\"; // unsafe"), [""; 0]);
}

#[test]
fn only_env_knows_the_operating_system() {
    // Everything else runs the same code everywhere, the simulator included.
    none(&each(knows_no_system, &["src"]));
    for line in ["#[cfg(unix)]", "if cfg!(windows) {", "#[cfg(not(target_os = \"linux\"))]"] {
        assert_eq!(about(knows_no_system, "src/server/a.rs", line).len(), 1, "{line}");
        assert_eq!(about(knows_no_system, "src/env/real.rs", line), [""; 0]);
        assert_eq!(about(knows_no_system, "src/server/tests.rs", line), [""; 0]);
    }
    assert_eq!(about(knows_no_system, "src/a.rs", "fn windows() {}"), [""; 0]);
}

#[test]
fn the_server_decides_nothing_about_members() {
    none(&each(decides_nothing, &["src/server"]));
    let text = "fn f() { reject(Reject { code, message }); }\nfn g(r: &Reject) {}\n";
    let found = about(decides_nothing, "src/server/native.rs", text);
    assert_eq!(found, ["src/server/native.rs:1: Reject is for node/ to decide on"]);
    let text = "if configuration.is_voter(id) && code == RejectCode::Removed {}\n";
    assert_eq!(about(decides_nothing, "src/server/start.rs", text).len(), 2);
    let test = "#[cfg(test)]\nmod tests {\n    fn f() { Reject { code, message }; }\n}\n";
    assert!(about(decides_nothing, "src/server/join.rs", test).is_empty());
}

#[test]
fn imports_follow_the_table() {
    // The arrows between the modules point one way, as the table in src/lib.rs draws them.
    let table = arrows(&read("src/lib.rs"));
    assert!(table.len() >= 9, "the table of src/lib.rs is not understood: {table:?}");
    none(&each(|s| follows_the_arrows(&table, s), &["src"]));
}

#[test]
fn a_forbidden_import_is_seen_in_every_form() {
    // A small table, then each way to write the path.
    let table = arrows(
        "//! | `a` | x | nothing of ours |\n//! | `b` | y | `a` |\n//! | `c` | z | all of the above |\n",
    );
    assert_eq!(table["b"], BTreeSet::from(["a".to_owned()]));
    assert_eq!(table["c"], BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    let rule = |s: &Source| follows_the_arrows(&table, s);
    for (path, line) in [
        ("src/a.rs", "use crate::b;"),
        ("src/a/mod.rs", "use crate::{a::X, c::Y};"),
        ("src/a/mod.rs", "use super::b::X;"),
        ("src/a/d.rs", "super::super::c::f();"),
        ("src/d.rs", "fn f() {}"),
    ] {
        assert_eq!(about(rule, path, line).len(), 1, "{path} {line}");
    }
    for (path, line) in [
        ("src/b.rs", "use crate::{a, b::X};"),
        ("src/a/d.rs", "use super::b;"),
        ("src/a.rs", "// use crate::b;"),
        ("src/a.rs", "#[cfg(test)]\nmod tests { use crate::b; }"),
        ("src/lib.rs", "pub use crate::c;"),
    ] {
        assert_eq!(about(rule, path, line), [""; 0], "{path} {line}");
    }
}

#[test]
fn two_runtime_dependencies_and_no_more() {
    // Whoever builds the binary builds these two.
    none(&depends_on_two(&read("Cargo.toml")));
    let two = "[dependencies]\ncrc32fast = \"1\"\ngetopts.version = \"0.2\"\n";
    assert_eq!(depends_on_two(two), [""; 0]);
    assert_eq!(depends_on_two(&format!("{two}libc = \"1\"\n")).len(), 1);
    assert_eq!(depends_on_two(&format!("{two}[dev-dependencies]\nx = \"1\"\n")), [""; 0]);
    for other in ["[dependencies.x]", "[build-dependencies]", "[target.'cfg(unix)'.dependencies]"] {
        assert_eq!(depends_on_two(&format!("{two}{other}\n")).len(), 1, "{other}");
    }
    assert_eq!(depends_on_two("[dependencies]\ngetopts = \"1\"").len(), 1);
}

#[test]
fn the_top_holds_only_what_belongs_there() {
    // Five things, a licence and dotfiles; what git ignores does not count.
    let names: Vec<String> = fs::read_dir(top())
        .expect("the top of the repository")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    none(&strays(&names, &read(".gitignore")));
    let stray = strays(&["src".into(), ".ci".into(), "target".into(), "x.log".into()], "/target\n");
    assert_eq!(stray, ["x.log:1: does not belong at the top"]);
}

#[test]
fn the_changelog_is_kept() {
    // It moves with every change that users can see.
    let text = read("docs/changelog.md");
    assert!(text.contains("## Unreleased"), "docs/changelog.md:1: no section Unreleased");
}

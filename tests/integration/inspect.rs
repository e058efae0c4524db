//! `kontiki inspect` on the directory of a real node: refused while it runs, sound when it was
//! killed, and every kind of file damaged in turn.

use crate::support::cluster::{BINARY, Cluster, Setup, kontiki};
use crate::support::{contents, say, wait_for};
use std::fs;
use std::path::{Path, PathBuf};

/// Keys that are loaded: more log than its limit, and a few tables.
const KEYS: usize = 3000;
const VALUE_BYTES: usize = 600;

/// Exit code, standard output, standard error.
fn inspect(subject: &str, data: &Path, flags: &[&str]) -> (Option<i32>, String, String) {
    let ended = kontiki(BINARY)
        .args(["inspect", subject])
        .arg(data)
        .args(flags)
        .output()
        .expect("kontiki inspect");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ended.status.code(), text(&ended.stdout), text(&ended.stderr))
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("a file of the node");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("the same file, damaged");
}

/// Whether the log has two segments, each with several pages of batches in it.
fn has_two_segments_with_batches(data: &Path) -> bool {
    let (code, out, error) = inspect("wal", data, &[]);
    assert_eq!(code, Some(0), "{out}{error}");
    let used = |line: &str| line.split_whitespace().nth(4)?.parse::<u64>().ok();
    let live = out.lines().filter(|line| line.contains(" live "));
    live.filter_map(used).filter(|&used| used > 16 << 10).count() >= 2
}

#[test]
fn a_killed_node_is_inspected_damaged_and_inspected_again() {
    // An operator's whole way: in use, sound, damaged here and there, put back, and it serves again.
    let flags = ["--wal-limit", "1MiB", "--max-batch", "64KiB", "--max-value", "16KiB"];
    let flags = flags.into_iter().chain(["--memtable", "256KiB"]).map(str::to_owned).collect();
    let mut cluster = Cluster::with(1, Setup { flags, ..Setup::default() });
    let data = cluster.nodes[0].data.clone();
    let file = cluster.dir.path().join("lines");
    let line = |n: usize| format!("key-{:05}\t{}\n", n * 7919 % KEYS, "v".repeat(VALUE_BYTES));
    fs::write(&file, (0..KEYS).map(line).collect::<String>()).expect("a file to load");
    let loaded = cluster.cli().arg("load").arg(&file).output().expect("kontiki cli load");
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let tables = |data: &Path| -> Vec<PathBuf> {
        let names = fs::read_dir(data.join("store")).expect("the store's directory");
        let paths = names.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(|path| path.to_string_lossy().contains("table-")).collect()
    };
    wait_for("a table is written", || (!tables(&data).is_empty()).then_some(()));

    for subject in ["verify", "wal", "store", "identity"] {
        let (code, out, error) = inspect(subject, &data, &[]);
        assert_eq!((code, out.as_str()), (Some(3), ""), "{error}");
        assert!(error.contains("in use") && error.lines().count() == 1, "{error}");
    }
    let (code, out, _) = inspect("verify", &data, &["--json"]);
    assert_eq!(code, Some(3));
    assert!(out.starts_with("{\"error\":") && out.contains("\"class\":\"unavailable\""), "{out}");

    cluster.kill(0);
    // Just before, a flush may have let most of the log go. Then more is written.
    while !has_two_segments_with_batches(&data) {
        cluster.restart(0);
        let loaded = cluster.cli().arg("load").arg(&file).output().expect("kontiki cli load");
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        cluster.kill(0);
    }
    let before = contents(&data);
    let (code, out, error) = inspect("verify", &data, &[]);
    assert_eq!(code, Some(0), "{out}{error}");
    let totals = out.lines().last().unwrap_or_default().to_owned();
    // The kill may have left a table that no manifest names, which is a note and no loss.
    let is_named = |table: &PathBuf| !out.contains(&*table.to_string_lossy());
    let table = tables(&data).into_iter().find(is_named).expect("a table of the store");
    assert!(totals.starts_with("ok") && totals.contains(" tables, "), "{totals}");
    let (code, out, _) = inspect("verify", &data, &["--json"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.starts_with("{\"sound\":true,") && out.lines().count() == 1, "{out}");

    let (code, out, _) = inspect("identity", &data, &[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains(&cluster.nodes[0].address) && out.contains("agree"), "{out}");
    let (code, out, _) = inspect("wal", &data, &["--entries"]);
    assert_eq!(code, Some(0), "{out}");
    let live: Vec<&str> = out.lines().filter(|line| line.contains(" live ")).collect();
    assert!(live.len() >= 2, "several segments: {out}");
    let puts = out.lines().filter(|line| line.contains(": put key-")).count();
    assert!(puts > 0 && out.contains("and 1"), "{out}");
    let (code, out, _) = inspect("wal", &data, &["--entries", "--json"]);
    assert_eq!((code, out.lines().count()), (Some(0), 1));
    assert!(
        out.contains("\"entries\":[{\"index\":") && out.ends_with("}]}\n"),
        "the entries' array"
    );
    let (code, out, _) = inspect("store", &data, &[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("user:key-0") && out.contains("manifest-1: sequence "), "{out}");
    let (code, out, _) = inspect("store", &data, &["--json"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("\"space\":\"user\""), "{out}");
    assert!(contents(&data) == before, "an inspection has changed something");

    // Each kind of file in turn. A segment and a table stop the node or the read; of copies one is
    // enough, so that the others are said to heal.
    let segment = |n: usize| {
        let name = live[n].split(' ').next().expect("a file's name");
        data.join("log").join(name)
    };
    let places = [
        (segment(0), 40, false),
        (segment(1), 4096 + 30, false),
        (table, 100, false),
        (data.join("store/manifest-0"), 40, true),
        (data.join("identity-b"), 50, true),
    ];
    for (path, at, heals) in &places {
        flip(path, *at);
        let (code, out, error) = inspect("verify", &data, &[]);
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert_eq!(code, Some(1), "{name} at {at}: {out}{error}");
        let problem = out.lines().find(|l| l.starts_with("problem: ") && l.contains(&name));
        let problem = problem.unwrap_or_else(|| panic!("{name} at {at}: {out}"));
        assert!(problem.contains(" at offset "), "{problem}");
        assert_eq!(problem.contains("the next start"), *heals, "{problem}");
        let (code, out, _) = inspect("verify", &data, &["--json"]);
        assert_eq!(code, Some(1));
        assert!(out.contains("\"sound\":false") && out.contains(&name), "{out}");
        flip(path, *at);
    }
    for (path, at, _) in &places {
        flip(path, *at);
    }
    let (code, out, _) = inspect("verify", &data, &[]);
    assert_eq!(code, Some(1));
    assert_eq!(out.lines().filter(|l| l.starts_with("problem: ")).count(), places.len(), "{out}");
    for (path, bytes) in &before {
        fs::write(path, bytes).expect("what was there before");
    }
    let (code, out, _) = inspect("verify", &data, &[]);
    assert_eq!((code, out.lines().last()), (Some(0), Some(totals.as_str())), "{out}");
    cluster.restart(0);
    let got = cluster.cli().args(["get", "key-00007"]).output().expect("kontiki cli get");
    assert_eq!(got.stdout.len(), VALUE_BYTES + 1, "{}", String::from_utf8_lossy(&got.stderr));
    say("inspect", &totals);
}

#[test]
fn a_directory_that_is_none_is_left_alone() {
    // A slip of the pen: said clearly, exit code 2, and no lock file appears anywhere.
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("notes.txt"), "x").expect("a file");
    let absent = dir.path().join("absent");
    let file = dir.path().join("notes.txt");
    for (path, part) in [
        (dir.path(), "is no data directory: it has no identity"),
        (&absent, "there is no directory"),
        (&file, "there is no directory"),
    ] {
        for subject in ["verify", "wal", "store", "identity"] {
            let (code, out, error) = inspect(subject, path, &[]);
            assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
            assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        }
    }
    assert_eq!(contents(dir.path()).len(), 1);
    let words = |words: &[&str]| {
        let ended = kontiki(BINARY).arg("inspect").args(words).output().expect("kontiki inspect");
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    for (wrong, part) in [
        (&["verfy", "x"][..], "did you mean verify?"),
        (&["verify"][..], "one directory"),
        (&["verify", "x", "y"][..], "one directory"),
        (&["verify", "x", "--entries"][..], "belongs to wal"),
        (&["wal", "x", "--jsno"][..], "did you mean --json?"),
        (&[][..], "one directory"),
    ] {
        let (code, error) = words(wrong);
        assert_eq!(code, Some(2), "{wrong:?}: {error}");
        assert!(error.contains(part), "{wrong:?}: {error}");
    }
}

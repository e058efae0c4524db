//! What is saved of a damaged directory: rows of tables and of the log behind them.

use super::*;
use crate::kv::{
    Command, Condition, LsmStore, Op, SessionStamp, StoreOptions, Test, Write, encode_command,
};
use crate::raft::{HardState, Persist};
use crate::wal::testdisk::TestDisk;
use crate::wal::{self, Identity, Wal};
use std::path::PathBuf;

const DATA: &str = "/n";

fn encoded(command: &Command) -> Arc<[u8]> {
    let mut bytes = Vec::new();
    encode_command(command, &mut bytes);
    bytes.into()
}

fn command(conditions: Vec<Condition>, ops: Vec<Op>) -> Arc<[u8]> {
    encoded(&Command::Write(Write { conditions, ops, stamp: None }))
}

fn put(key: &str, value: &str) -> Arc<[u8]> {
    let op = Op::Put { key: key.into(), value: value.into() };
    command(Vec::new(), vec![op])
}

fn increment(key: &str) -> Arc<[u8]> {
    command(Vec::new(), vec![Op::Increment { key: key.into(), by: 1 }])
}

/// A data directory of which the store has applied the first `flushed` commands, and the log all.
fn directory(commands: &[Arc<[u8]>], flushed: usize) -> TestDisk {
    let disk = TestDisk::default();
    let shared = disk.shared();
    let data = Path::new(DATA);
    let own = Identity {
        cluster: 1,
        node: 1,
        identity: 9,
        created: true,
        restoring: false,
        removed: false,
        denied: false,
        advertise: String::new(),
        members: Vec::new(),
        secret: None,
    };
    own.store(shared.as_ref(), data).unwrap();
    let options = wal::Options { segment_bytes: 1 << 20, identity: 9, must_exist: false };
    let (mut wal, _) = Wal::open(disk.shared(), &data.join(LOG_DIR), options).unwrap();
    let entry = |(index, command): (Index, &Arc<[u8]>)| {
        let payload = Payload::Command(Arc::clone(command));
        Entry { index, term: 1, payload }
    };
    let entries: Vec<Entry> = (1..).zip(commands).map(entry).collect();
    let hard_state = Some(HardState { term: 1, vote: None });
    let persist = Persist { seq: 1, hard_state, reset: None, entries: entries.clone() };
    wal.write(&[persist]).unwrap();
    let dir = data.join(STORE_DIR);
    let (store, mut worker) = LsmStore::open(disk.shared(), &dir, StoreOptions::new(9)).unwrap();
    let mut machine = Machine::open(store).unwrap();
    apply_entries(&mut machine, &entries[..flushed]).unwrap();
    machine.store_mut().flush();
    while worker.step().unwrap() != crate::lsm::Step::Idle {}
    disk
}

/// Key to value and whether it is perhaps old.
fn saved(disk: &TestDisk) -> (BTreeMap<String, (String, bool)>, SaveReport) {
    let mut rows = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let report = save::<StoreError>(&disk.shared(), Path::new(DATA), &mut |row| {
        rows.insert(text(row.key), (text(row.value), row.perhaps_old));
        Ok(())
    });
    (rows, report.unwrap())
}

fn tables(disk: &TestDisk) -> Vec<PathBuf> {
    disk.paths().into_iter().filter(|p| p.to_string_lossy().contains("table-")).collect()
}

#[test]
fn a_sound_directory_is_saved_with_what_only_the_log_has() {
    // Nothing was ever flushed, or some, or all: the rows are the same.
    let commands = [put("a", "1"), put("b", "2"), increment("a"), put("c", "3"), increment("b")];
    for flushed in 0..=commands.len() {
        let disk = directory(&commands, flushed);
        let (rows, report) = saved(&disk);
        let latest = |value: &str| (value.to_owned(), false);
        let all = [("a", "2"), ("b", "3"), ("c", "3")].map(|(k, v)| (k.to_owned(), latest(v)));
        assert_eq!(rows, BTreeMap::from(all), "{flushed}");
        assert_eq!((report.rows, report.old_rows, report.index), (3, 0, 5));
        assert_eq!(report.findings.problem_count(), 0);
    }
}

#[test]
fn what_rests_on_lost_rows_is_told_from_what_does_not() {
    // The one table of the users is unreadable. Plain puts of the log are sure; an increment of a lost key is not, nor what
    // comes of a condition on one, until a plain put takes its place.
    let on = |key: &str| Condition { key: key.into(), test: Test::Absent };
    let commands = [
        put("a", "1"),
        put("b", "1"),
        put("c", "1"),
        put("new", "5"),
        increment("a"),
        command(vec![on("b")], vec![Op::Put { key: b"d".to_vec(), value: b"6".to_vec() }]),
        increment("c"),
        put("c", "7"),
    ];
    let disk = directory(&commands, 3);
    let largest = tables(&disk).into_iter().max_by_key(|p| disk.bytes(p).len()).unwrap();
    for table in tables(&disk) {
        disk.spoil(&table, 3);
    }
    let (rows, report) = saved(&disk);
    let old = |key: &str| rows.get(key).map(|(_, old)| *old);
    assert_eq!(rows.get("new"), Some(&("5".to_owned(), false)));
    assert_eq!(rows.get("c"), Some(&("7".to_owned(), false)));
    assert_eq!((old("a"), old("d")), (Some(true), Some(true)));
    let problems = report.findings.problems.iter().map(ToString::to_string);
    let problems: Vec<String> = problems.collect();
    let named =
        |p: &String| p.contains(&largest.display().to_string()) && p.contains("lost are keys");
    assert!(problems.iter().any(named), "{problems:?}");
}

#[test]
fn what_a_lost_session_wrote_is_not_called_the_latest() {
    // The records of sessions are unreadable, so that nobody can tell whether a stamped write of the log came before: the
    // keys that it writes are perhaps old. What has no stamp is sure.
    let stamped = |sequence, value: &str| {
        let op = Op::Put { key: b"a".to_vec(), value: value.into() };
        let stamp = Some(SessionStamp { session: 1, sequence, answered_below: sequence });
        encoded(&Command::Write(Write { conditions: Vec::new(), ops: vec![op], stamp }))
    };
    let commands = [
        encoded(&Command::OpenSession),
        stamped(1, "1"),
        put("b", "1"),
        stamped(2, "2"),
        put("b", "2"),
    ];
    let disk = directory(&commands, 3);
    let all = saved(&disk).0;
    let latest = |value: &str| Some((value.to_owned(), false));
    assert_eq!((all.get("a").cloned(), all.get("b").cloned()), (latest("2"), latest("2")));
    let records = tables(&disk).into_iter().min().unwrap();
    disk.spoil(&records, 3);
    let (rows, report) = saved(&disk);
    assert!(report.findings.problems.iter().any(|p| p.path == records));
    assert!(rows["a"].1, "perhaps old");
    assert_eq!(rows.get("b").cloned(), latest("2"));
}

//! A recorded run of real processes replays: what threads, disks and sockets did is something that the components do
//! and that the checks of the simulator allow.

use crate::support::cluster::{BINARY, Cluster, Setup, free_ports, kontiki};
use crate::support::load::{Run, client};
use crate::support::native::Native;
use crate::support::{say, wait_for};
use kontiki::kv::{Op, Outcome, Write};
use kontiki::node::Input;
use kontiki::node::recording::{Part, Record, RecordReader, RecordWriter, put_body, take_body};
use kontiki::wire::client::{Answer, Call};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

const CLIENTS: u64 = 4;
const KILLS: usize = 3;
/// Writes acknowledged between one kill and the next.
const WRITES_BETWEEN: u64 = 300;

/// Replays all recordings of a directory: exit code and what was printed.
fn replay(dir: &Path) -> (Option<i32>, String) {
    let output = kontiki(BINARY).args(["sim", "--replay"]).arg(dir).output().expect("a replay");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text + &String::from_utf8_lossy(&output.stderr))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("recordings");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

/// Copies the recordings, with a change to the first one in which `change` finds its place; the record's number.
fn changed(from: &Path, to: &Path, change: impl Fn(&mut Vec<Record>) -> Option<usize>) -> usize {
    fs::create_dir_all(to).expect("a directory");
    let mut place = None;
    for file in files(from) {
        let mut bytes = fs::read(&file).expect("a recording");
        if place.is_none() {
            let mut reader = RecordReader::new(&bytes).expect("a recording");
            let mut records = Vec::new();
            while let Ok(body) = reader.next_body().expect("a record") {
                records.push(take_body(body).expect("a record"));
            }
            place = change(&mut records);
            let mut writer = RecordWriter::default();
            for record in &records {
                let mut body = Vec::new();
                put_body(&mut body, record);
                writer.put(&body);
            }
            bytes = writer.take();
        }
        fs::write(to.join(file.file_name().expect("a name")), bytes).expect("a copy");
    }
    place.expect("a place for the change")
}

/// The first record from `first` on for which `is` holds.
fn find(records: &[Record], first: usize, is: impl Fn(&Record) -> bool) -> Option<usize> {
    (first..records.len()).find(|&at| is(&records[at]))
}

#[test]
fn a_run_with_three_leader_kills_replays() {
    // Four clients write and read through three nodes that record, while the leader is killed hard and started again,
    // three times. All recordings together replay. Then one recorded effect is changed, and one report of a sync is
    // put in front of the sync: each is named.
    let dir = tempfile::tempdir().expect("a directory");
    let recordings = dir.path().join("recordings");
    let mut flags = vec!["--record".to_owned(), recordings.display().to_string()];
    flags.extend(
        ["--wal-limit", "1MiB", "--max-value", "64KiB", "--max-batch", "128KiB"].map(str::to_owned),
    );
    let mut cluster = Cluster::with(3, Setup { flags, ..Setup::default() });
    let run = Run::new(cluster.addresses());
    thread::scope(|scope| {
        let stop = run.stopper();
        let run = &run;
        let doors = || run.addresses.iter().map(|a| Native::new(a)).collect();
        for number in 0..CLIENTS {
            let doors = doors();
            scope.spawn(move || client(run, number, doors));
        }
        for _ in 0..KILLS {
            run.more_writes(WRITES_BETWEEN);
            let leader = cluster.leader();
            cluster.kill(leader);
            run.more_writes(WRITES_BETWEEN);
            cluster.restart(leader);
        }
        run.more_writes(WRITES_BETWEEN);
        drop(stop);
    });
    drop(cluster);

    let (code, text) = replay(&recordings);
    assert_eq!(code, Some(0), "{text}");
    let count = |name: &str| {
        let line = text.lines().find(|line| line.trim_start().ends_with(&format!("  {name}")));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse::<usize>().ok()).unwrap_or(0)
    };
    assert_eq!(count("lives"), 3 + KILLS, "{text}");
    assert!(count("elections") > KILLS, "{text}");
    assert!(count("entries committed") > WRITES_BETWEEN as usize * KILLS, "{text}");
    assert!(count("entries applied") > 2 * count("entries committed"), "{text}");
    assert_eq!(count("entries applied"), count("entries applied and compared"), "{text}");
    assert!(text.ends_with(&format!("{} files: ok\n", 3 + KILLS)), "{text}");

    let spoiled = dir.path().join("effect");
    let at = changed(&recordings, &spoiled, |records| {
        let persists = |record: &Record| matches!(record, Record::Effects { prints, .. } if prints.iter().any(|p| p.part == Part::Persist));
        let at = find(records, 1000, persists)?;
        if let Record::Effects { prints, .. } = &mut records[at] {
            prints.iter_mut().for_each(|print| print.crc ^= 1);
        }
        Some(at)
    });
    let (code, named) = replay(&spoiled);
    assert_eq!(code, Some(1), "{named}");
    assert!(named.contains(&format!(" record {at} at ")), "{named}");
    assert!(named.ends_with(" files: FAILED the raft loop does the same\n"), "{named}");

    let spoiled = dir.path().join("promise");
    changed(&recordings, &spoiled, |records| {
        let writes = |r: &Record| matches!(r, Record::LogStep(step) if step.written.is_some());
        let told = |record: &Record| matches!(record, Record::Handled { input, .. } if matches!(**input, Input::Persisted { .. }));
        let written = find(records, 1000, writes)?;
        let told = find(records, written, told)?;
        let record = records.remove(written);
        records.insert(told, record);
        Some(told)
    });
    let (code, named) = replay(&spoiled);
    assert_eq!(code, Some(1), "{named}");
    let name = "nothing is told to be durable before it is written";
    assert!(named.ends_with(&format!(" files: FAILED {name}\n")), "{named}");
    say("recording", &text);
}

#[test]
fn a_recording_has_a_limit() {
    // A node alone is written to beyond the limit of its recording. Recording ends with a line in the log, and the node
    // goes on; what was recorded until then replays.
    let dir = tempfile::tempdir().expect("a directory");
    let recordings = dir.path().join("recordings");
    let mut flags = vec!["--record".to_owned(), recordings.display().to_string()];
    flags.extend(["--record-limit", "1MiB"].map(str::to_owned));
    let cluster = Cluster::with(1, Setup { flags, ..Setup::default() });
    let mut node = Native::new(&cluster.nodes[0].address);
    let mut put = |key: String| {
        let op = Op::Put { key: key.into_bytes(), value: vec![7; 100_000] };
        let write = Write { stamp: None, conditions: Vec::new(), ops: vec![op] };
        let answer = node.call(Call::Write(write));
        assert!(matches!(answer, Ok(Answer::Outcome(Outcome::Done { .. }))), "{answer:?}");
    };
    (0..12).for_each(|n| put(format!("before/{n}")));
    wait_for("recording ends", || cluster.log(0).contains("recording ends: ").then_some(()));
    (0..3).for_each(|n| put(format!("behind/{n}")));
    let text = cluster.log(0);
    assert!(text.contains("kontiki-1-0001.rec has reached --record-limit=1048576"), "{text}");
    drop(cluster);
    let bytes = fs::metadata(&files(&recordings)[0]).expect("a recording").len();
    assert!((1 << 20..(1 << 20) + 200_000).contains(&bytes), "{bytes}");
    let (code, text) = replay(&recordings);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ends with its limit (--record-limit)\n"), "{text}");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    // A file is where the recordings are to go: the node does not start, and says which path it is.
    let dir = tempfile::tempdir().expect("a directory");
    let (place, data) = (dir.path().join("taken"), dir.path().join("data"));
    fs::write(&place, "").expect("a file");
    let output = kontiki(BINARY)
        .args(["serve", "--listen", &format!("127.0.0.1:{}", free_ports(1)[0]), "--data"])
        .arg(&data)
        .arg("--record")
        .arg(&place)
        .output()
        .expect("its end");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains(&format!("cannot record in {}: ", place.display())), "{text}");
    assert!(!data.exists(), "nothing was made");
}

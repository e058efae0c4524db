//! Recordings of simulated runs, whole and spoiled, and what a replay says of them.

use super::*;
use crate::node::recording::{LogNote, LogStep, Part, RecordWriter, TaskNote, put_body};
use crate::sim::dice::Dice;
use crate::sim::recording::{Recorded, record};
use crate::sim::run::Options;

/// Seeds that are recorded and replayed.
const SEEDS: u64 = 28;
/// A seed of three nodes in which messages keep to connections, leaders change and snapshots are installed.
const ONE: u64 = 3;
/// A seed in which nodes are started again with what was durable.
const RESTARTS: u64 = 1;

fn recorded(seed: u64) -> Vec<File> {
    let Recorded { files, verdict } = record(seed, &Options::default());
    assert!(verdict.is_ok(), "seed {seed}");
    files
}

fn replayed(seed: u64, files: &[File]) -> Replayed {
    replay(files).unwrap_or_else(|e| panic!("seed {seed}: {e}"))
}

/// Whole runs of the simulator are recorded, with all their faults, and replayed: the components do the same again,
/// no check calls wrong what the simulator allows, and every message that arrives was sent. And again when each process
/// was killed before its last records were written.
#[test]
fn simulated_runs_replay_whole_and_torn() {
    let mut counters: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut dice, mut compared_whole) = (Dice::new(1), 0);
    for seed in 0..SEEDS {
        let mut files = recorded(seed);
        let whole = replayed(seed, &files);
        let of = |name: &str| whole.counters.get(name).copied().unwrap_or(0);
        assert_eq!((of(UNSENT), of(UNCOMMITTED)), (0, 0), "seed {seed}: everything is recorded");
        assert!(of("entries applied") > 0, "seed {seed}");
        // Behind damage, and behind a full disk, a replay cannot follow, and says so.
        let all = of("entries applied") == of("entries applied and compared");
        assert!(all || whole.notes.iter().any(|note| note.contains("not compared")), "seed {seed}");
        compared_whole += u64::from(all);
        for file in &mut files {
            let len = file.bytes.len();
            let lost = dice.between(1, 4_000) as usize;
            file.bytes.truncate(len.saturating_sub(lost).max(1));
        }
        let torn = replayed(seed, &files);
        for (name, times) in whole.counters.into_iter().chain(torn.counters) {
            *counters.entry(name).or_default() += times;
        }
    }
    assert!(compared_whole > SEEDS / 2, "{compared_whole} of {SEEDS}");
    for name in [
        "batches of log writers",
        "elections",
        "entries applied and compared",
        "messages that were sent and arrived",
        "snapshots installed",
        UNSENT,
        UNCOMMITTED,
    ] {
        assert!(counters.contains_key(name), "{name} never: {counters:?}");
    }
}

/// Only the recordings of one node are at hand: what it did is replayed, and what it has concluded from others is taken
/// for granted, which is said.
#[test]
fn one_node_is_replayed_alone() {
    let mut files = recorded(ONE);
    files.retain(|file| file.path.to_string_lossy().starts_with("kontiki-2-"));
    let replayed = replayed(ONE, &files);
    assert!(replayed.counters["entries applied"] > 0);
    let said = |note: &&String| note.contains("there is no recording of node");
    assert_eq!(replayed.notes.iter().filter(said).count(), 1, "{:?}", replayed.notes);
}

/// Reads a file, has its records changed, and writes it again.
fn changed(file: &File, change: impl FnOnce(&mut Vec<Record>)) -> File {
    let mut reader = RecordReader::new(&file.bytes).unwrap();
    let mut records = Vec::new();
    while let Ok(body) = reader.next_body().unwrap() {
        records.push(take_body(body).unwrap());
    }
    change(&mut records);
    let mut writer = RecordWriter::default();
    for record in &records {
        let mut body = Vec::new();
        put_body(&mut body, record);
        writer.put(&body);
    }
    File { path: file.path.clone(), bytes: writer.take() }
}

/// Replays the seed with a change of one of its files, of the first in which `change` finds its place; the name of what is broken, and
/// where.
fn broken_by(change: impl Fn(&mut Vec<Record>) -> Option<u64>) -> (Failure, u64) {
    let mut files = recorded(ONE);
    let mut at = None;
    for file in &mut files {
        let new = changed(file, |records| at = change(records));
        if at.is_some() {
            *file = new;
            break;
        }
    }
    let at = at.expect("a place for the change");
    match replay(&files) {
        Err(ReplayError::Failed(failure)) => (*failure, at),
        other => panic!("{other:?}"),
    }
}

/// The place of the `nth` record for which `is` holds.
fn place(records: &[Record], nth: usize, is: impl Fn(&Record) -> bool) -> Option<usize> {
    (0..records.len()).filter(|&at| is(&records[at])).nth(nth)
}

/// One checksum of one effect is another one: the replay names the record, the kind of effect, and what it gave.
#[test]
fn another_effect_is_named() {
    let (failure, at) = broken_by(|records| {
        let sends = |record: &Record| matches!(record, Record::Effects { prints, .. } if prints.iter().any(|p| p.part == Part::Sends));
        let at = place(records, 20, sends)?;
        if let Record::Effects { prints, .. } = &mut records[at] {
            prints.iter_mut().filter(|p| p.part == Part::Sends).for_each(|p| p.crc ^= 1);
        }
        Some(at as u64)
    });
    assert_eq!(failure.violation.invariant, "the raft loop does the same");
    assert_eq!(failure.record, at);
    assert!(failure.violation.detail.starts_with("Sends: recorded "), "{failure:?}");
}

/// The raft loop hears that a batch is durable, and promises what follows from it, before the log writer has written it.
#[test]
fn a_promise_before_its_sync_is_named() {
    let (failure, at) = broken_by(|records| {
        let writes =
            |record: &Record| matches!(record, Record::LogStep(step) if step.written.is_some());
        let written = place(records, 5, writes)?;
        let Record::LogStep(LogStep { written: Some((of, _)), .. }) = &records[written] else {
            panic!("it has written")
        };
        let told = |record: &Record| matches!(record, Record::Handled { input, .. } if matches!(**input, Input::Persisted { seq, .. } if seq == *of));
        let told = written + place(&records[written..], 0, told)?;
        let record = records.remove(written);
        records.insert(told, record);
        Some(told as u64 - 1)
    });
    let invariant = failure.violation.invariant;
    assert_eq!(invariant, "nothing is told to be durable before it is written");
    assert_eq!(failure.record, at);
}

/// The log writer gets two requests in another order than the raft loop gave them; and it says that it wrote one more
/// than it was asked for.
#[test]
fn what_the_log_writer_does_is_its_own() {
    let asks = |record: &Record| matches!(record, Record::LogEvent(LogNote::Persist { .. }));
    let (failure, _) = broken_by(|records| {
        let at = place(records, 7, asks)?;
        records.remove(at);
        Some(at as u64)
    });
    let invariant = failure.violation.invariant;
    assert!(
        invariant == "the log writer gets what the raft loop gives, in order"
            || invariant == "the log writer does the same",
        "{failure:?}"
    );
    let (failure, at) = broken_by(|records| {
        let writes =
            |record: &Record| matches!(record, Record::LogStep(step) if step.written.is_some());
        let at = place(records, 7, writes)?;
        if let Record::LogStep(step) = &mut records[at] {
            step.written = step.written.map(|(seq, count)| (seq + 1, count + 1));
        }
        Some(at as u64)
    });
    assert_eq!(failure.violation.invariant, "the log writer does the same");
    assert_eq!(failure.record, at);
}

/// A store came to another state than the entries make; and an applier was given entries that nobody has handed to it.
#[test]
fn what_the_applier_does_is_its_own() {
    let applies = |record: &Record| matches!(record, Record::Did(did) if did.applied.is_some());
    let (failure, at) = broken_by(|records| {
        let at = place(records, 5, applies)?;
        if let Record::Did(did) = &mut records[at] {
            did.digest ^= 1;
        }
        Some(at as u64)
    });
    assert_eq!(failure.violation.invariant, "the applier does the same");
    assert_eq!(failure.record, at);
    let tasks = |record: &Record| matches!(record, Record::Task(TaskNote::Apply { .. }));
    let (failure, at) = broken_by(|records| {
        let at = place(records, 5, tasks)?;
        if let Record::Task(TaskNote::Apply { last, .. }) = &mut records[at] {
            *last += 1;
        }
        Some(at as u64)
    });
    let invariant = failure.violation.invariant;
    assert_eq!(invariant, "the applier gets what the raft loop gives, in order");
    assert_eq!(failure.record, at);
}

/// A reader of a connection hands a message over twice. The core may well bear it; a connection does not do it.
#[test]
fn a_message_that_arrives_twice_is_named() {
    let (failure, at) = broken_by(|records| {
        let message = |record: &Record| matches!(record, Record::Handled { input, .. } if matches!(&**input, Input::Peer(_)));
        let at = place(records, 30, message)?;
        let Record::Handled { now_us, input } = &records[at] else { return None };
        let again = Record::Handled { now_us: *now_us, input: input.clone() };
        records.insert(at + 1, again);
        Some(at as u64 + 1)
    });
    assert_eq!(failure.violation.invariant, "what arrives was sent", "{failure:?}");
    // All wait for one another then, and clocks that run apart hide who was first.
    let place = format!(".rec record {at}");
    assert!(failure.violation.detail.contains(&place), "{failure:?}");
}

/// A node comes back with less than it had durable: with an older term, and with a shorter log.
#[test]
fn what_was_durable_outlives_the_process() {
    let files = recorded(RESTARTS);
    let lives = |spoil: &dyn Fn(&mut Start)| {
        let mut files = files.clone();
        let second = files.iter_mut().find(|f| f.path.to_string_lossy().ends_with("-0002.rec"));
        let second = second.expect("a second life");
        *second = changed(second, |records| {
            if let Some(Record::Start(start)) = records.first_mut() {
                spoil(start);
            }
        });
        match replay(&files) {
            Err(ReplayError::Failed(failure)) => failure.violation.invariant,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lives(&|start| start.restored.hard_state.term = 0), "hard state survives");
    let shorter = |start: &mut Start| {
        let log = &mut start.restored.log;
        log.last -= 1;
        let last = log.last;
        log.runs.retain(|run| run.0 <= last);
        log.configurations.retain(|c| c.0 <= last);
        start.restored.applied = start.restored.applied.min(last);
    };
    assert_eq!(lives(&shorter), "durable log survives");
}

/// Damage in the middle, files of two clusters, the same life twice, nothing at all: one error that names the file.
#[test]
fn what_cannot_be_replayed_is_said() {
    let files = recorded(ONE);
    let said = |files: &[File]| replay(files).unwrap_err().to_string();
    let mut flipped = files.clone();
    let middle = flipped[0].bytes.len() / 2;
    flipped[0].bytes[middle] ^= 4;
    let name = flipped[0].path.display().to_string();
    let e = said(&flipped);
    assert!(e.starts_with(&format!("{name}: record ")) && e.contains("is damaged"), "{e}");
    let twice = [files.clone(), files.clone()].concat();
    assert!(said(&twice).contains("both are life 1 of node 1"), "{}", said(&twice));
    let foreign = File { path: PathBuf::from("notes.txt"), bytes: b"hello".to_vec() };
    assert_eq!(
        said(&[foreign]),
        "notes.txt: it is no recording: kontiki serve --record makes them"
    );
    let other = changed(&files[0], |records| {
        if let Some(Record::Start(start)) = records.first_mut() {
            start.first.cluster += 1;
        }
    });
    let mixed = [vec![other], files].concat();
    assert!(said(&mixed).starts_with("the files are of several clusters: "), "{}", said(&mixed));
    assert_eq!(said(&[]), "there is no recording in these files");
}

//! A data directory made by the real components, and what looking through it finds: nothing while
//! it is sound, and every byte that is not what was written.

use super::*;
use crate::env::{Disk, Findings};
use crate::kv::{
    LsmStore, Op, Reader as _, Scan, SessionStamp, Space, Store as _, StoreError, StoreOptions,
    StoreWorker, View as _, store_inspect,
};
use crate::lsm::Step;
use crate::raft::{Entry, HardState, Payload};
use crate::wal::inspect::{FileState, Inspection, inspect};
use crate::wal::{Identity, LOG_DIR, LogReader, SEGMENT_BYTES_MIN};
use std::ops::ControlFlow;
use std::path::Path;

pub(super) const DATA: &str = "/data";
const OWN: u64 = 0x1122_3344_5566_7788;
/// Bytes of a sector, which an end mark fills.
const SECTOR: usize = 512;

pub(super) fn plan<'a>(data: &'a Path, identity: &'a Identity) -> Plan<'a> {
    Plan { data, identity, segment_bytes: SEGMENT_BYTES_MIN, store: options(), restore: None }
}

fn options() -> StoreOptions {
    StoreOptions {
        memtable_bytes: 6 << 10,
        table_bytes: 3 << 10,
        block_bytes: 256,
        sync_bytes: 1 << 10,
        level1_bytes: 6 << 10,
        ..StoreOptions::new(0)
    }
}

pub(super) fn identity() -> Identity {
    let member = |id| Member { id, identity: 0, address: format!("host:{id}") };
    Identity {
        cluster: 5,
        node: 1,
        identity: OWN,
        created: false,
        restoring: false,
        removed: false,
        denied: false,
        advertise: "host:1".into(),
        members: vec![member(1), member(2), member(3)],
        secret: None,
    }
}

/// A node's log and store, without the consensus core: entries are written, then applied.
pub(super) struct Machines {
    disk: TestDisk,
    wal: Wal,
    pub(super) machine: Machine<LsmStore>,
    worker: StoreWorker,
    index: Index,
    term: u64,
}

impl Machines {
    pub(super) fn new() -> Machines {
        let disk = TestDisk::default();
        identity().store(&disk, Path::new(DATA)).unwrap();
        Machines::open(&disk)
    }

    fn open(disk: &TestDisk) -> Machines {
        let data = Path::new(DATA);
        let own = Identity::load(disk, data).unwrap().unwrap();
        let opened = open(&disk.shared(), plan(data, &own), |_| {}).unwrap();
        let machine = Machine::open(opened.store).unwrap();
        let (index, term) = (opened.wal.last_index(), opened.wal.hard_state().term);
        Machines {
            disk: disk.clone(),
            wal: opened.wal,
            machine,
            worker: opened.worker,
            index,
            term,
        }
    }

    fn append(&mut self, hard_state: Option<HardState>, payloads: Vec<Payload>) {
        let first = self.index + 1;
        let entries: Vec<Entry> = (first..)
            .zip(payloads)
            .map(|(index, payload)| Entry { index, term: self.term, payload })
            .collect();
        self.index += entries.len() as u64;
        let request = Persist { seq: 1, hard_state, reset: None, entries: entries.clone() };
        self.wal.write(&[request]).unwrap();
        apply_entries(&mut self.machine, &entries).unwrap();
    }

    pub(super) fn disk(&self) -> TestDisk {
        self.disk.clone()
    }

    /// It has been in this term.
    pub(super) fn set_term(&mut self, term: u64) {
        self.term = term;
    }

    pub(super) fn lead(&mut self) {
        self.term += 1;
        let hard_state = HardState { term: self.term, vote: Some(1) };
        self.append(Some(hard_state), vec![Payload::Noop]);
    }

    pub(super) fn write(&mut self, write: Write) {
        let mut bytes = Vec::new();
        encode_command(&Command::Write(write), &mut bytes);
        self.append(None, vec![Payload::Command(Arc::from(bytes))]);
    }

    /// All that waits is flushed and compacted.
    pub(super) fn flush(&mut self) {
        self.machine.store_mut().flush();
        while self.worker.step().unwrap() == Step::Worked {}
    }
}

/// Several segments, spares of a former life, tables in two levels, a session; the last batch is
/// longer than a sector.
fn filled() -> Machines {
    let mut node = Machines::new();
    node.lead();
    let members = identity().members;
    let configuration = Arc::new(Configuration::of_voters(5, members));
    node.append(None, vec![Payload::Configuration(configuration)]);
    let mut bytes = Vec::new();
    encode_command(&Command::OpenSession, &mut bytes);
    node.append(None, vec![Payload::Command(Arc::from(bytes))]);
    let session = node.index;
    for n in 0..260u64 {
        if n % 80 == 40 {
            node.lead();
        }
        if n == 60 {
            let preparer = node.wal.prepare();
            if let Some(mut preparer) = preparer {
                let spare = std::iter::repeat_with(|| preparer.step().unwrap()).find_map(|s| s);
                node.wal.prepared(Ok(spare.unwrap()));
            }
        }
        let key = format!("key-{:03}", n * 37 % 120).into_bytes();
        let op = match n % 9 {
            8 => Op::Delete { key },
            _ => Op::Put { key, value: vec![n as u8; (n % 5 * 40) as usize] },
        };
        let sequence = n + 1;
        let stamp = SessionStamp { session, sequence, answered_below: sequence };
        let stamp = (n % 11 == 0).then_some(stamp);
        node.write(Write { stamp, ops: vec![op], ..Write::default() });
        if (100..112).contains(&n) {
            // Many small tables: the manifest is longer than it is in the end.
            node.machine.store_mut().flush();
            while node.machine.store().flushed() < node.index {
                node.worker.step().unwrap();
            }
        }
        if n % 50 == 49 {
            node.flush();
            let flushed = node.machine.store().flushed();
            node.wal.compact(flushed.saturating_sub(50)).unwrap();
        }
    }
    node.flush();
    let op = Op::Put { key: b"last".to_vec(), value: vec![7; 700] };
    node.write(Write { ops: vec![op], ..Write::default() });
    node
}

fn look(disk: &TestDisk) -> Report {
    verify(&disk.shared(), Path::new(DATA), &mut |_, _| {})
}

fn log_of(disk: &TestDisk) -> Inspection {
    let dir = Path::new(DATA).join(LOG_DIR);
    inspect(disk, &dir, OWN, true, &mut Findings::default(), &mut |_, _| {})
}

fn store_of(disk: &TestDisk) -> store_inspect::Inspection {
    let dir = Path::new(DATA).join(crate::kv::STORE_DIR);
    let mut findings = Findings::default();
    store_inspect::inspect(&disk.shared(), &dir, OWN, true, &mut findings).unwrap()
}

fn named(disk: &TestDisk, what: &str) -> Vec<PathBuf> {
    disk.paths().into_iter().filter(|path| path.to_string_lossy().contains(what)).collect()
}

fn flip(disk: &TestDisk, path: &Path, at: usize) {
    disk.edit(path, |bytes| bytes[at] ^= 1 << (at % 8));
}

/// Key, revision, value.
pub(super) type Shown = (Vec<u8>, u64, Vec<u8>);

/// Every entry of the log, and every row of the store.
type Contents = (Vec<Entry>, Vec<Shown>);

pub(super) fn rows(machine: &Machine<LsmStore>) -> Result<Vec<Shown>, StoreError> {
    let mut rows = Vec::new();
    for space in [Space::Meta, Space::User] {
        machine.reader().view().scan(&Scan::all(space), &mut |row| {
            rows.push((row.key.to_vec(), row.revision, row.value.to_vec()));
            ControlFlow::Continue(())
        })?;
    }
    Ok(rows)
}

fn entries(log: &LogReader) -> Vec<Entry> {
    let (first, last) = (log.first_index(), log.last_index());
    log.read(first, last, usize::MAX).unwrap()
}

/// What a node that is started here serves, or nothing when it refuses to start or to read.
fn served(disk: &TestDisk) -> Option<Contents> {
    let data = Path::new(DATA);
    let own = Identity::load(disk, data).ok()??;
    let opened = open(&disk.shared(), plan(data, &own), |_| {}).ok()?;
    let machine = Machine::open(opened.store).ok()?;
    Some((entries(&opened.wal.reader()), rows(&machine).ok()?))
}

/// What a flipped byte may come to, for the account that the test keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Carries {
    /// Something that was written and is checked.
    Data,
    /// Part of the newest segment's last batch.
    LastBatch,
    /// Zeros that fill up the sector behind a header or batch.
    Padding,
    /// The page behind the log's last batch, blank until the next.
    Page,
    /// What a former life or nobody left in a segment behind its last batch.
    Rest,
    /// A file that is part of no log.
    Spare,
    /// What is left of a longer manifest behind a shorter one.
    LongerManifest,
}

/// What every byte of a file is there for, by the account that looking through it gives.
fn account(disk: &TestDisk, path: &Path) -> Vec<Carries> {
    let len = disk.bytes(path).len();
    let mut map = vec![Carries::Data; len];
    if let Some(slot) = store_of(disk).slots.iter().find(|slot| slot.path == path) {
        map[slot.used as usize..].fill(Carries::LongerManifest);
    }
    let log = log_of(disk);
    if let Some(file) = log.files.iter().find(|file| file.path == path) {
        if file.state != FileState::Live {
            return vec![Carries::Spare; len];
        }
        let used = file.used as usize;
        let (last, newest) = match &log.last_batch {
            Some((newest, at)) if newest == path => (*at as usize, true),
            _ => (used, false),
        };
        map[used..].fill(Carries::Rest);
        if newest {
            map[last..used].fill(Carries::LastBatch);
            map[used..used.next_multiple_of(4096)].fill(Carries::Page);
        } else {
            map[len - SECTOR..].fill(Carries::Data);
        }
    }
    map
}

#[test]
fn every_flipped_byte_of_a_data_directory_is_found() {
    // One byte of a sound directory turns over. If it carries anything, it is named: as damage of
    // that very file, or for the last batch of the log, which cannot be told from a torn write, at
    // least as a note. What carries nothing is of six kinds, and no damage.
    let disk = filled().disk;
    let sound = look(&disk);
    assert_eq!(sound.findings, Findings::default());
    let serves = served(&disk.copy()).unwrap();
    let ops = disk.ops();
    let mut counts: BTreeMap<(&str, Carries, &str), u64> = BTreeMap::new();
    let mut compared = 0;
    for path in disk.paths() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let kind =
            ["identity", "log", "manifest", "table"].into_iter().find(|k| name.starts_with(k));
        let Some(kind) = kind else { panic!("a file that nobody knows: {name}") };
        let map = account(&disk, &path);
        // All of the small files; of the others the front, the end and a share of the rest.
        let share = match kind {
            "identity" => 1,
            "manifest" => 3,
            "table" => 11,
            _ => 17,
        };
        let places = (0..map.len()).filter(|&at| {
            let edge = at < 120 || at + 200 > map.len() && kind == "table";
            let mark = at + SECTOR >= map.len() && at + SECTOR < map.len() + 16;
            let last = map[at] == Carries::LastBatch && at % 3 == 0;
            edge || mark || last || at % share == 0
        });
        for at in places {
            flip(&disk, &path, at);
            let findings = look(&disk).findings;
            let blamed = findings.blames(&path);
            let note = findings.notes.iter().find(|note| note.path == path);
            let as_what = match (blamed, note) {
                (true, _) => "problem",
                (false, Some(_)) => "note",
                (false, None) => "nothing",
            };
            let place = format!("{name} at {at}: {findings:?}");
            for problem in findings.problems.iter().filter(|problem| problem.path == path) {
                assert!(problem.offset <= at as u64, "{place}");
            }
            let mut carries = map[at];
            if let Some(note) = note
                && note.what.contains("padding")
            {
                assert_eq!(note.offset, at as u64, "{place}");
                carries = Carries::Padding;
            }
            match carries {
                Carries::Data => assert!(blamed, "{place}"),
                Carries::LastBatch | Carries::Page => assert!(blamed || note.is_some(), "{place}"),
                Carries::Padding => assert!(!blamed && note.is_some(), "{place}"),
                Carries::Rest | Carries::Spare | Carries::LongerManifest => {
                    assert_eq!(findings.problem_count(), 0, "{place}");
                }
            }
            *counts.entry((kind, carries, as_what)).or_default() += 1;
            if at % 7 == 0 {
                // A node that starts here all the same serves what was there, or lacks the last
                // batch and has said so.
                compared += 1;
                match served(&disk.copy()) {
                    Some(now) if now == serves => {}
                    Some(now) => {
                        assert_eq!(carries, Carries::LastBatch, "{place}");
                        assert_eq!(now.0, serves.0[..serves.0.len() - 1], "{place}");
                        assert_eq!(now.1, serves.1, "{place}");
                    }
                    None => assert!(blamed, "refused, but: {place}"),
                }
            }
            flip(&disk, &path, at);
        }
    }
    assert_eq!(disk.ops(), ops, "looking changes nothing");
    assert_eq!(look(&disk), sound);
    let sum = |kind: &str, carries: Carries| -> u64 {
        counts.iter().filter(|(k, _)| k.0 == kind && k.1 == carries).map(|(_, n)| n).sum()
    };
    for kind in ["identity", "log", "manifest", "table"] {
        assert!(sum(kind, Carries::Data) >= 200, "{kind}: {counts:?}");
    }
    for (kind, carries) in [
        ("log", Carries::LastBatch),
        ("log", Carries::Padding),
        ("log", Carries::Page),
        ("log", Carries::Rest),
        ("log", Carries::Spare),
        ("manifest", Carries::LongerManifest),
    ] {
        assert!(sum(kind, carries) >= 10, "{kind} {carries:?}: {counts:?}");
    }
    assert!(compared > 300, "{compared}");
}

#[test]
fn a_sound_directory_is_summed_up() {
    // The totals are those of the components themselves.
    let node = filled();
    let Report { findings, totals } = look(&node.disk);
    assert_eq!(findings, Findings::default());
    assert_eq!(totals.log_range, Some((node.wal.first_index(), node.wal.last_index())));
    assert_eq!(totals.applied, Some(node.machine.store().flushed()));
    assert_eq!(totals.sessions, node.machine.session_count() as u64);
    let tables = named(&node.disk, "table-");
    assert_eq!(totals.store.tables, tables.len() as u64);
    let bytes: usize = tables.iter().map(|path| node.disk.bytes(path).len()).sum();
    assert_eq!(totals.store.bytes, bytes as u64);
    assert!(totals.segments >= 3 && totals.batches >= totals.log_entries, "{totals:?}");
    assert!(store_of(&node.disk).levels.iter().filter(|level| !level.is_empty()).count() >= 2);
}

#[test]
fn all_damage_is_named_at_once() {
    // A bad disk seldom spoils one place: two blocks of a table, another table, batches and a header
    // of several segments, a copy of the identity, a slot of the manifest.
    let disk = filled().disk;
    let tables = named(&disk, "table-");
    let segments: Vec<(PathBuf, u64)> = log_of(&disk)
        .files
        .iter()
        .filter(|file| file.state == FileState::Live)
        .map(|file| (file.path.clone(), file.used))
        .collect();
    let mut places = vec![(tables[0].clone(), 0), (tables[1].clone(), 3)];
    // Two blocks of one table: the walk goes on behind the first.
    let largest = tables.iter().max_by_key(|path| disk.bytes(path).len()).unwrap();
    places.push((largest.clone(), 700));
    places.push((largest.clone(), disk.bytes(largest).len() / 2));
    places.push((segments[0].0.clone(), 1024));
    places.push((segments[0].0.clone(), 3072));
    places.push((segments[1].0.clone(), 2048 + 17));
    // A header, and a batch behind it.
    places.push((segments[2].0.clone(), 60));
    places.push((segments[2].0.clone(), 4096));
    places.push((named(&disk, "identity-b")[0].clone(), 40));
    places.push((named(&disk, "manifest-0")[0].clone(), 40));
    places.iter().for_each(|(path, at)| flip(&disk, path, *at));
    let findings = look(&disk).findings;
    for (path, at) in &places {
        let here = |offset: u64| offset <= *at as u64 && *at as u64 - offset < 512;
        let whole =
            !path.to_string_lossy().contains("log-") && !path.to_string_lossy().contains("table-");
        let found = findings.problems.iter().any(|p| p.path == *path && (whole || here(p.offset)));
        let len = disk.bytes(path).len();
        assert!(found, "{} at {at} of {len}: {findings:?}", path.display());
    }
    assert_eq!(findings.problem_count(), places.len() as u64, "{findings:?}");
    let healed: Vec<&Path> =
        findings.problems.iter().filter(|p| p.healed).map(|p| p.path.as_path()).collect();
    assert_eq!(healed.len(), 2, "{healed:?}");
}

#[test]
fn what_a_crash_leaves_is_no_damage() {
    // Each is a note, and the directory is sound: a torn tail, an older slot and copy, a table that
    // no manifest names, a snapshot on its way.
    let mut node = filled();
    let before = node.disk.copy();
    node.write(Write { ops: vec![Op::Delete { key: b"last".to_vec() }], ..Write::default() });
    node.flush();
    let data = Path::new(DATA);
    let notes = |disk: &TestDisk| {
        let report = look(disk);
        assert!(report.is_sound(), "{report:?}");
        let notes = report.findings.notes;
        notes.into_iter().map(|note| (note.path, note.what)).collect::<Vec<_>>()
    };
    assert_eq!(notes(&node.disk), []);

    let older = node.disk.copy();
    let slot = named(&before, "manifest-1").remove(0);
    older.edit(&slot, |bytes| *bytes = before.bytes(&slot));
    let found = notes(&older);
    assert!(found.len() == 1 && found[0].0 == slot && found[0].1.contains("older"), "{found:?}");

    let older = node.disk.copy();
    let copy = named(&older, "identity-a").remove(0);
    let first = older.bytes(&copy);
    Identity::load(&older, data).unwrap().unwrap().store(&older, data).unwrap();
    older.edit(&copy, |bytes| *bytes = first);
    let found = notes(&older);
    assert!(found.len() == 1 && found[0].0 == copy && found[0].1.contains("older"), "{found:?}");

    let stray = node.disk.copy();
    for path in ["store/table-00009999", "store/notes.txt", "incoming/table-00000001"] {
        let path = data.join(path);
        stray.open(&path, crate::env::Open::CreateNew).unwrap().write_all_at(b"x", 0).unwrap();
    }
    let found = notes(&stray);
    assert_eq!(found.len(), 3, "{found:?}");
    for (part, word) in [("9999", "no manifest"), ("notes", "no file"), ("incoming", "1 files")] {
        let one = |(path, what): &(PathBuf, String)| {
            path.to_string_lossy().contains(part) && what.contains(word)
        };
        assert!(found.iter().any(one), "{part}: {found:?}");
    }

    // The last batch of `before` is longer than a sector: torn, it would be cut. When its front was
    // lost, nothing seems to stand there.
    let (path, at) = log_of(&before).last_batch.unwrap();
    for (lost, len, word) in [(SECTOR, SECTOR, "would be cut"), (0, 16, "behind the end")] {
        let torn = before.copy();
        torn.edit(&path, |bytes| bytes[at as usize + lost..][..len].fill(0));
        let found = notes(&torn);
        assert!(found.len() == 1 && found[0].1.contains(word), "{found:?}");
    }
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    // Each file is whole, but one is an older copy, another node's, gone, or too much.
    let mut node = filled();
    let before = node.disk.copy();
    for n in 0..60u8 {
        let op = Op::Put { key: vec![b'k', n], value: vec![n; 300] };
        node.write(Write { ops: vec![op], ..Write::default() });
    }
    node.flush();
    node.wal.compact(node.machine.store().flushed() - 20).unwrap();
    let op = Op::Put { key: b"behind".to_vec(), value: b"it".to_vec() };
    node.write(Write { ops: vec![op], ..Write::default() });
    let disk = &node.disk;
    let problems = |disk: &TestDisk| {
        let found = look(disk).findings.problems;
        found.into_iter().map(|p| (p.path, p.what)).collect::<Vec<_>>()
    };
    assert_eq!(problems(disk), []);

    // The log beside the store is an older copy.
    let apart = disk.copy();
    named(&apart, "log-").iter().for_each(|path| apart.remove(path).unwrap());
    for path in named(&before, "log-") {
        let file = apart.open(&path, crate::env::Open::CreateNew).unwrap();
        file.write_all_at(&before.bytes(&path), 0).unwrap();
    }
    let found = problems(&apart);
    assert!(found.len() == 1 && found[0].1.contains("older copy"), "{found:?}");

    // A table is gone, or short.
    let lost = disk.copy();
    let tables = named(&lost, "table-");
    lost.remove(&tables[0]).unwrap();
    lost.edit(&tables[1], |bytes| bytes.truncate(bytes.len() - 1));
    let found = problems(&lost);
    assert_eq!(found.iter().map(|f| &f.0).collect::<BTreeSet<_>>(), tables[..2].iter().collect());

    // A segment is gone; the newest is.
    let log = log_of(disk);
    let live: Vec<_> = log.files.iter().filter(|f| f.state == FileState::Live).collect();
    for gone in [live[1], live[live.len() - 1]] {
        let lost = disk.copy();
        lost.remove(&gone.path).unwrap();
        let what = format!("the log lacks segment {}", gone.number.unwrap());
        let found = problems(&lost);
        assert!(found.iter().any(|f| f.1 == what), "{what}: {found:?}");
    }

    // Damage at the front of the newest segment, in front of the word that the log begins later by
    // now: no file that is not needed any more is missed.
    let rotten = disk.copy();
    let newest = live[live.len() - 1];
    flip(&rotten, &newest.path, SECTOR + 30);
    let found = problems(&rotten);
    assert!(found.len() == 1 && found[0].0 == newest.path, "{found:?}");

    // The identity is that of another directory: nothing beside it is this node's.
    let other = disk.copy();
    named(&other, "identity-").iter().for_each(|path| other.remove(path).unwrap());
    Identity { identity: 1, created: true, ..identity() }.store(&other, Path::new(DATA)).unwrap();
    let found = problems(&other);
    for part in ["log-", "manifest-0", "manifest-1"] {
        assert!(found.iter().any(|f| f.0.to_string_lossy().contains(part)), "{part}: {found:?}");
    }

    // No copy of the identity can be read, or there is none; or nothing else is there.
    let copies = named(disk, "identity-");
    let spoiled = disk.copy();
    copies.iter().for_each(|path| flip(&spoiled, path, 30));
    assert_eq!(problems(&spoiled).iter().map(|f| f.0.clone()).collect::<Vec<_>>(), copies);
    copies.iter().for_each(|path| spoiled.remove(path).unwrap());
    assert_eq!(problems(&spoiled).len(), 1);
    let bare = TestDisk::default();
    Identity { created: true, ..identity() }.store(&bare, Path::new(DATA)).unwrap();
    let found = problems(&bare);
    for part in ["log", "manifest-0", "manifest-1"] {
        assert!(found.iter().any(|f| f.0.to_string_lossy().contains(part)), "{part}: {found:?}");
    }
}

#[test]
fn a_first_start_that_was_cut_off_is_sound_wherever_it_was() {
    // The machine stops at any operation of the first start, or of the writes behind it: no trace
    // of that is damage but for a copy that was half written, which the other one heals.
    let disk = TestDisk::default();
    identity().store(&disk, Path::new(DATA)).unwrap();
    let mut node = Machines::open(&disk);
    node.lead();
    for n in 0..30u8 {
        let op = Op::Put { key: vec![b'k', n], value: vec![n; 600] };
        node.write(Write { ops: vec![op], ..Write::default() });
    }
    node.flush();
    let (mut healed, mut refused) = (0, 0);
    for n in 0..=disk.ops() {
        for seed in 0..4 {
            let crashed = disk.crashed(n, seed);
            let found = look(&crashed).findings;
            assert!(found.problems.iter().all(|p| p.healed), "{n} {seed}: {found:?}");
            healed += found.problem_count();
            let own = Identity::load(&crashed, Path::new(DATA)).unwrap();
            refused += u64::from(own.is_none());
            if let Some(own) = own {
                open(&crashed.shared(), plan(Path::new(DATA), &own), |_| {}).unwrap();
                assert_eq!(look(&crashed).findings.problems, [], "{n} {seed}: opened and healed");
            }
        }
    }
    assert!(healed > 0 && refused > 0, "{healed} {refused}");
}

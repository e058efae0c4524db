//! The log as its users see it, against a model; and the frozen format.

use super::testdisk::{Dice, Fault, TestDisk};
use super::*;
use crate::raft::{Member, NodeId};
use proptest::prelude::*;

pub(super) const DIR: &str = "/data/log";
pub(super) const IDENTITY: u64 = 0x1122_3344_5566_7788;

pub(super) fn options() -> Options {
    Options { segment_bytes: SEGMENT_BYTES_MIN, identity: IDENTITY, must_exist: false }
}

pub(super) fn open(disk: &TestDisk) -> Result<(Wal, Recovered), WalError> {
    Wal::open(disk.shared(), Path::new(DIR), options())
}

pub(super) fn command(index: Index, term: Term, len: usize) -> Entry {
    let bytes: Vec<u8> = (0..len).map(|i| (index + term * 7 + i as u64) as u8 | 1).collect();
    Entry { index, term, payload: Payload::Command(Arc::from(bytes)) }
}

pub(super) fn configuration(index: Index) -> Arc<Configuration> {
    let member = |id| Member { id, identity: id * 11 + index, address: format!("host:{index}") };
    Arc::new(Configuration::of_voters(9, vec![member(1), member(2), member(3)]))
}

pub(super) fn persist(hard_state: Option<HardState>, entries: Vec<Entry>) -> Persist {
    Persist { seq: 1, hard_state, reset: None, entries }
}

pub(super) fn voted(term: Term, vote: NodeId) -> Option<HardState> {
    Some(HardState { term, vote: Some(vote) })
}

/// One thing that is done to a log.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Write(Vec<Persist>),
    Compact(Index),
    Reset(Index, Term),
    Prepare,
}

/// What the log must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) hard_state: HardState,
    pub(super) base: Index,
    pub(super) base_term: Term,
    /// Behind `base`; compaction leaves them here.
    pub(super) entries: Vec<Entry>,
    /// Nothing at or below is ever replaced.
    pub(super) applied: Index,
}

impl Model {
    pub(super) fn last(&self) -> Index {
        self.base + self.entries.len() as u64
    }

    pub(super) fn put(&mut self, entry: &Entry) {
        self.entries.truncate((entry.index - self.base - 1) as usize);
        self.entries.push(entry.clone());
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            Step::Write(requests) => {
                for request in requests {
                    self.hard_state = request.hard_state.unwrap_or(self.hard_state);
                    request.entries.iter().for_each(|e| self.put(e));
                }
            }
            Step::Compact(through) => self.applied = self.applied.max(*through),
            Step::Reset(index, term) => {
                self.entries.clear();
                self.base_term = *term;
                (self.base, self.applied) = (*index, *index);
            }
            Step::Prepare => {}
        }
    }

    /// A step that may follow, from three numbers.
    pub(super) fn choose(&self, kind: u64, a: u64, b: u64) -> Step {
        let last_term = self.entries.last().map_or(self.base_term.max(1), |e| e.term);
        let term = self.hard_state.term.max(last_term);
        match kind % 16 {
            0 => Step::Compact(self.applied + a % (self.last() - self.applied + 1)),
            1 if b.is_multiple_of(4) => Step::Reset(self.last() + a % 9, term + 1),
            2 | 3 => Step::Prepare,
            4 => Step::Write(vec![persist(voted(term + 1 + a % 2, b % 3 + 1), vec![])]),
            5..8 => {
                // A new leader's entries replace some of the tail, twice in one call.
                let from = self.applied + 1 + a % (self.last() - self.applied + 1);
                let (first, second) = (term + 1, term + 2);
                let run = |from: Index, n: u64, t| (from..from + n).map(move |i| command(i, t, 99));
                let again = from + b % 3;
                Step::Write(vec![
                    persist(voted(first, 1), run(from, 3, first).collect()),
                    persist(voted(second, 2), run(again, 1 + b % 4, second).collect()),
                ])
            }
            _ => {
                let mut next = self.last() + 1;
                let mut requests = Vec::new();
                for r in 0..=a % 3 {
                    let mut entries = Vec::new();
                    for i in 0..1 + b % 3 {
                        let len = (a * 37 + b * 11 + i * r * 97) % 1500;
                        entries.push(match len % 13 {
                            0 => Entry { index: next, term, payload: Payload::Noop },
                            1 => Entry {
                                index: next,
                                term,
                                payload: Payload::Configuration(configuration(next)),
                            },
                            // Now and then more than a segment has room for.
                            2 => command(next, term, 9000 + len as usize),
                            _ => command(next, term, len as usize),
                        });
                        next += 1;
                    }
                    requests.push(persist(None, entries));
                }
                Step::Write(requests)
            }
        }
    }

    /// That the log holds this, as far as it has not been compacted.
    pub(super) fn check(&self, wal: &Wal) {
        assert_eq!(wal.hard_state(), self.hard_state);
        assert_eq!(wal.last_index(), self.last());
        assert!(
            wal.first_index() > self.base && wal.first_index() <= self.applied.max(self.base) + 1
        );
        let entries = read_all(wal);
        let from = (wal.first_index() - self.base - 1) as usize;
        assert_eq!(entries, self.entries[from..]);
        for entry in &entries {
            assert_eq!(wal.term(entry.index), Some(entry.term));
        }
        if from > 0 {
            assert_eq!(wal.term(wal.first_index() - 1), Some(self.entries[from - 1].term));
        }
    }
}

pub(super) fn run(wal: &mut Wal, step: &Step) -> Result<(), WalError> {
    match step {
        Step::Write(requests) => wal.write(requests).map(|_| ()),
        Step::Compact(through) => wal.compact(*through).map(|_| ()),
        Step::Reset(index, term) => wal.reset(*index, *term, &configuration(*index)),
        Step::Prepare => {
            if let Some(preparer) = wal.prepare() {
                let outcome = preparer.finish();
                wal.prepared(outcome);
            }
            Ok(())
        }
    }
}

pub(super) fn read_all(wal: &Wal) -> Vec<Entry> {
    let (reader, mut next, last) = (wal.reader(), wal.first_index(), wal.last_index());
    let mut all = Vec::new();
    while next <= last {
        let some = reader.read(next, last, 1000).unwrap();
        next += some.len() as u64;
        all.extend(some);
    }
    all
}

/// What recovery tells agrees with the entries themselves.
pub(super) fn check_recovered(wal: &Wal, recovered: &Recovered) {
    let entries = read_all(wal);
    let mut terms: Vec<(Index, Term)> = Vec::new();
    let mut configurations = Vec::new();
    for entry in &entries {
        if terms.last().is_none_or(|run| run.1 != entry.term) {
            terms.push((entry.index, entry.term));
        }
        if let Payload::Configuration(c) = &entry.payload {
            configurations.push((entry.index, Arc::clone(c)));
        }
    }
    assert_eq!(recovered.terms, terms);
    assert_eq!(recovered.configurations, configurations);
    assert_eq!(recovered.first_index, wal.first_index());
    assert_eq!(recovered.last_index, wal.last_index());
    assert_eq!(recovered.hard_state, wal.hard_state());
    assert_eq!(Some(recovered.prev_term), wal.term(wal.first_index() - 1));
    assert_eq!(recovered.bytes, wal.bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written, replaced, compacted and reset: the log reads as the model does, also
    /// after it was closed and opened, and no clean reopening ever cuts anything.
    #[test]
    fn the_log_equals_a_model(steps in proptest::collection::vec((0u64..17, 0u64..100, 0u64..100), 1..60)) {
        let disk = TestDisk::default();
        let mut wal = open(&disk).unwrap().0;
        let mut model = Model::default();
        for (kind, a, b) in steps {
            if kind == 16 {
                drop(wal);
                let (again, recovered) = open(&disk).unwrap();
                prop_assert!(recovered.cut.is_none());
                check_recovered(&again, &recovered);
                wal = again;
            } else {
                let step = model.choose(kind, a, b);
                run(&mut wal, &step).unwrap();
                model.step(&step);
            }
            model.check(&wal);
        }
    }
}

pub(super) fn filled(count: u64, len: usize) -> (TestDisk, Wal) {
    let disk = TestDisk::default();
    let mut wal = open(&disk).unwrap().0;
    for index in 1..=count {
        wal.write(&[persist(None, vec![command(index, 1, len)])]).unwrap();
    }
    (disk, wal)
}

/// Ranges are contiguous, hold at least one entry, keep to the limit of bytes, and say clearly
/// when what is asked for is not there.
#[test]
fn ranges_keep_to_their_limits() {
    let (_, mut wal) = filled(60, 300);
    let reader = wal.reader();
    for (first, last, max) in [(1, 60, 0), (1, 60, 1), (7, 9, 1 << 20), (60, 99, 1000), (3, 3, 9)] {
        let entries = reader.read(first, last, max).unwrap();
        assert_eq!(entries[0], command(first, 1, 300));
        assert!(entries.len() == 1 || entries.iter().map(Entry::weight).sum::<usize>() <= max);
        assert!(entries.windows(2).all(|w| w[0].index + 1 == w[1].index));
        assert!(entries.last().unwrap().index <= last);
    }
    assert_eq!(reader.read(1, 60, 1 << 20).unwrap().len(), 60);
    assert_eq!(reader.read(1, 60, 348 * 10).unwrap().len(), 10);
    assert!(matches!(reader.read(61, 70, 9), Err(ReadError::Beyond { last_index: 60 })));
    assert!(wal.compact(50).unwrap() > 0);
    let first = wal.first_index();
    assert!(first > 1 && first <= 51);
    assert!(
        matches!(reader.read(first - 1, 60, 9), Err(ReadError::Compacted { first_index }) if first_index == first)
    );
    assert_eq!(reader.read(first, 60, 9).unwrap()[0].index, first);
}

/// While a follower's entries are read a new leader's replace them: the reader gets none of what
/// became void, but is told to ask again.
#[test]
fn a_read_that_meets_a_truncation_is_asked_again() {
    let (disk, mut wal) = filled(10, 50);
    let reader = wal.reader();
    disk.before_read(move || {
        wal.write(&[persist(voted(2, 1), vec![command(5, 2, 50)])]).unwrap();
    });
    assert!(matches!(reader.read(1, 10, 1 << 20), Err(ReadError::Changed)));
    let entries = reader.read(1, 10, 1 << 20).unwrap();
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[4].term, 2);
}

/// While a segment is read it is compacted away and its file written anew: the reader learns that
/// the entries are gone, and sees neither the new bytes nor damage.
#[test]
fn a_read_that_meets_a_recycled_file_says_compacted() {
    let (disk, mut wal) = filled(40, 300);
    let reader = wal.reader();
    disk.before_read(move || {
        wal.compact(40).unwrap();
        for index in 41..=90 {
            wal.write(&[persist(None, vec![command(index, 1, 300)])]).unwrap();
        }
    });
    assert!(matches!(reader.read(1, 40, 1 << 20), Err(ReadError::Compacted { .. })));
}

/// Rot under a running node is found by the reader, with file and offset.
#[test]
fn a_reader_checks_every_checksum() {
    let (disk, wal) = filled(3, 400);
    let path = disk.paths()[0].clone();
    disk.edit(&path, |bytes| bytes[512 + 100] ^= 1);
    let error = wal.reader().read(1, 3, 1 << 20).unwrap_err();
    assert!(matches!(&error, ReadError::Damaged { offset: 512, path: p, .. } if *p == path));
    disk.fail(Some(Fault::Read));
    assert!(matches!(wal.reader().read(1, 1, 1), Err(ReadError::Io { .. })));
}

/// A failed write or sync is final, also when the disk has recovered: the sync that failed may
/// have dropped what it could not write.
#[test]
fn a_failed_write_or_sync_is_final() {
    for fault in [Fault::Write, Fault::Sync] {
        let (disk, mut wal) = filled(3, 50);
        disk.fail(Some(fault));
        let request = [persist(None, vec![command(4, 1, 50)])];
        assert!(matches!(wal.write(&request), Err(WalError::Io { .. })));
        disk.fail(None);
        assert!(matches!(wal.write(&request), Err(WalError::Poisoned)));
        assert!(matches!(wal.compact(3), Err(WalError::Poisoned)));
        assert!(matches!(wal.reset(9, 1, &configuration(9)), Err(WalError::Poisoned)));
        assert_eq!(wal.last_index(), 3);
        assert_eq!(wal.reader().last_index(), 3);
    }
}

/// After a sync that failed the pages may be clean in the cache and absent on the platter. The
/// next opening writes the last batch again before it counts on it.
#[test]
fn the_last_batch_is_written_again_at_opening() {
    let (disk, mut wal) = filled(3, 50);
    disk.fail(Some(Fault::Sync));
    wal.write(&[persist(None, vec![command(4, 1, 50)])]).unwrap_err();
    disk.fail(None);
    let before = disk.ops();
    let (wal, _) = open(&disk).unwrap();
    assert_eq!(wal.last_index(), 4);
    // The disk has dropped what it could not sync: without the second write entry 4 is lost.
    assert!(disk.ops() > before);
    assert_eq!(open(&disk.crashed(disk.ops(), 0)).unwrap().1.last_index, 4);
}

/// What breaks the contract is refused before it is written.
#[test]
fn requests_that_do_not_follow_are_rejected() {
    let hard = |term, vote| persist(voted(term, vote), vec![]);
    let bad = [
        persist(None, vec![command(7, 3, 1)]),
        persist(None, vec![command(0, 3, 1)]),
        persist(None, vec![command(6, 1, 1)]),
        persist(None, vec![command(6, 3, 1), command(8, 3, 1)]),
        hard(2, 1),
        hard(3, 2),
    ];
    for request in bad {
        let disk = TestDisk::default();
        let mut wal = open(&disk).unwrap().0;
        let entries = (1..=5).map(|i| command(i, 2, 10)).collect();
        wal.write(&[persist(voted(3, 1), entries)]).unwrap();
        let ops = disk.ops();
        assert!(matches!(wal.write(&[request]), Err(WalError::Rejected { .. })));
        assert_eq!(disk.ops(), ops);
    }
}

/// All queued requests share one write and one sync; that is what makes a thousand clients cheap.
#[test]
fn a_group_is_one_write_and_one_sync() {
    let (disk, mut wal) = filled(1, 10);
    let requests: Vec<Persist> = (2..=12)
        .map(|i| Persist {
            seq: i,
            hard_state: voted(i, 1),
            reset: None,
            entries: vec![command(i, 1, 90)],
        })
        .collect();
    let ops = disk.ops();
    assert_eq!(wal.write(&requests).unwrap().seq, 12);
    assert_eq!(disk.ops(), ops + 2);
    assert_eq!(wal.write(&[]).unwrap(), Durable { seq: 12, bytes: 0 });
    assert_eq!(disk.ops(), ops + 2);
}

/// A log that runs long is compacted now and then: its files are used again and their number
/// stays bounded; no file is made while a spare is ready.
#[test]
fn freed_files_are_used_again() {
    let (disk, mut wal) = filled(1, 10);
    let mut most = 0;
    for index in 2..=600 {
        wal.write(&[persist(None, vec![command(index, 1, 900)])]).unwrap();
        if index % 20 == 0 {
            wal.compact(index - 5).unwrap();
        }
        most = most.max(disk.paths().len());
    }
    assert!(most <= 3 + spare::SPARES_MAX, "{most} files");
    assert!(wal.bytes() <= 8 * SEGMENT_BYTES_MIN);
    let mut wal = open(&disk).unwrap().0;
    assert!(wal.prepare().is_none(), "there are spares enough");
}

/// The map of a log of 256 MiB in the smallest batches stays within a mebibyte.
#[test]
fn the_index_of_tiny_batches_is_small() {
    let mut places = Places::new(IDENTITY);
    let total = 256u64 << 20;
    for index in 1..=total / format::ALIGN_BYTES {
        let at = index * format::ALIGN_BYTES;
        let (segment, offset) = (1 + at / SEGMENT_BYTES_DEFAULT, at % SEGMENT_BYTES_DEFAULT);
        places.add_batch(segment, offset, format::ALIGN_BYTES, Some((index, index)));
    }
    assert!(places.spans() * size_of::<shape::Span>() <= 1 << 20);
}

/// A snapshot replaces a log that ends before it; what comes next continues the snapshot.
#[test]
fn a_reset_log_goes_on_behind_the_snapshot() {
    let (disk, mut wal) = filled(20, 700);
    wal.reset(100, 7, &configuration(100)).unwrap();
    wal.write(&[persist(None, vec![command(101, 7, 10)])]).unwrap();
    let (wal, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.first_index, recovered.last_index, recovered.prev_term), (101, 101, 7));
    assert_eq!(recovered.configuration_before, Some((100, configuration(100))));
    assert_eq!(recovered.segments, 1);
    assert_eq!(read_all(&wal), [command(101, 7, 10)]);
}

/// Spares come in bounded steps, and a segment made of one needs neither rename nor directory
/// sync: three writes (header, end mark of the segment before, batch), each synced.
#[test]
fn a_prepared_spare_makes_a_roll_cheap() {
    let (disk, mut wal) = filled(1, 10);
    let mut preparer = wal.prepare().unwrap();
    let mut steps = 1;
    let spare = loop {
        match preparer.step().unwrap() {
            Some(spare) => break spare,
            None => steps += 1,
        }
    };
    assert!(steps >= 3);
    wal.prepared(Ok(spare));
    let ops = disk.ops();
    wal.write(&[persist(None, vec![command(2, 1, 7000)])]).unwrap();
    assert_eq!(wal.current.number, 2);
    assert_eq!(disk.ops(), ops + 6);
}

/// The disk is full: no spare can be made. The try leaves no file behind, and is not repeated with
/// every batch, but when a segment was begun or given up; the log goes on in what it has, and says
/// what happened when that is used up.
#[test]
fn a_full_disk_is_not_filled_with_half_made_spares() {
    let (disk, mut wal) = filled(1, 10);
    run(&mut wal, &Step::Prepare).unwrap();
    disk.fail(Some(Fault::Full));
    let files = disk.paths();
    let mut tries = Vec::new();
    let error = loop {
        let index = wal.last_index() + 1;
        if let Err(e) = wal.write(&[persist(None, vec![command(index, 1, 1000)])]) {
            break e;
        }
        if let Some(mut preparer) = wal.prepare() {
            let error = loop {
                match preparer.step() {
                    Ok(done) => assert!(done.is_none(), "the disk is full"),
                    Err(e) => break e,
                }
            };
            tries.push(wal.current.number);
            wal.prepared(Err(error));
        }
        assert_eq!(disk.paths(), files);
    };
    assert_eq!(tries, [1, 2], "one try for each segment");
    assert!(error.to_string().contains("log-0000000"), "{error}");
    assert!(matches!(error, WalError::Io { what: "write", .. }));
    assert_eq!(disk.paths(), files);

    disk.fail(None);
    let mut wal = open(&disk).unwrap().0;
    wal.prepared(Err(WalError::Poisoned));
    assert!(wal.prepare().is_none());
    assert_eq!(wal.compact(wal.last_index()).unwrap(), 1);
    assert!(wal.prepare().is_some(), "room was made");
}

/// The kind byte by which recovery finds configurations is where the codec puts it.
#[test]
fn configurations_are_recognised_without_decoding() {
    let entry = Entry { index: 1, term: 1, payload: Payload::Configuration(configuration(1)) };
    for (entry, is) in [(entry, true), (command(1, 1, 2), false)] {
        let mut batch = vec![0; BATCH_HEADER_BYTES];
        format::put_entry(&mut batch, &entry);
        let record = format::Records::of(&batch).take().unwrap();
        assert!(matches!(record, Some(format::Record::Entry(raw)) if raw.is_configuration == is));
    }
}

/// The bytes are frozen: docs/formats.md, "Log", shows this very log.
#[test]
fn the_log_format_is_frozen() {
    let disk = TestDisk::default();
    let mut wal = open(&disk).unwrap().0;
    let entry = Entry { index: 1, term: 1, payload: Payload::Command(Arc::from(&b"abc"[..])) };
    wal.write(&[persist(voted(1, 2), vec![entry])]).unwrap();
    let bytes = disk.bytes(&Path::new(DIR).join("log-00000001"));
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES_MIN);
    let hex = |range: std::ops::Range<usize>| -> String {
        bytes[range].iter().map(|b| format!("{b:02x}")).collect()
    };
    assert_eq!(hex(0..104), HEADER_HEX.replace(char::is_whitespace, ""));
    assert!(bytes[104..512].iter().all(|&b| b == 0));
    assert_eq!(hex(512..570), BATCH_HEX.replace(char::is_whitespace, ""));
    assert!(bytes[570..].iter().all(|&b| b == 0));
    wal.roll_truncated(1, 1).unwrap();
    let bytes = disk.bytes(&Path::new(DIR).join("log-00000001"));
    assert!(bytes[570..7680].iter().all(|&b| b == 0));
    let mark: String = bytes[7680..7692].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(mark, END_MARK_HEX.replace(char::is_whitespace, ""));
    assert!(bytes[7692..].iter().all(|&b| b == 0));
}

const HEADER_HEX: &str = "
    6b6f6e746c6f670a 01000000 471162f1 68000000 00000000 8877665544332211
    0100000000000000 0020000000000000 0100000000000000 0100000000000000 0000000000000000
    0000000000000000 0000000000000000 0000000000000000 0000000000000000";
const END_MARK_HEX: &str = "6b6f6e74656e640a a62a737e";
const BATCH_HEX: &str = "
    79b18a2f 2a000000 0100000000000000 01 0100000000000000 0200000000000000 02
    0100000000000000 0100000000000000 01 03000000 616263";

/// The bytes are frozen: docs/formats.md, "Identity", shows this very record.
#[test]
fn the_identity_format_is_frozen() {
    let member = Member { id: 1, identity: 0x77, address: "host:1".into() };
    let identity = Identity {
        cluster: 5,
        node: 1,
        identity: 0x77,
        created: true,
        restoring: false,
        removed: false,
        denied: false,
        advertise: "host:1".into(),
        members: vec![member],
        secret: Some(MembersSecret { bytes: [0xa5; 32], sealed: true }),
    };
    let disk = TestDisk::default();
    identity.store(&disk, Path::new("/data")).unwrap();
    let hex = |name: &str| -> String {
        disk.bytes(&Path::new("/data").join(name)).iter().map(|b| format!("{b:02x}")).collect()
    };
    let record = IDENTITY_HEX.replace(char::is_whitespace, "");
    assert_eq!(hex("identity-a"), record.replace("CRC", "872e5089"));
    assert_eq!(hex("identity-b"), record.replace("CRC", "0421783e"));
}

const IDENTITY_HEX: &str = "
    6b6f6e746e6f6465 02000000 CRC 7e000000 0100000000000000 0500000000000000 0100000000000000
    7700000000000000 01 06000000 686f73743a31 01000000 0100000000000000 7700000000000000
    06000000 686f73743a31 02 a5a5a5a5a5a5a5a5 a5a5a5a5a5a5a5a5 a5a5a5a5a5a5a5a5 a5a5a5a5a5a5a5a5";

/// The bytes are frozen: docs/formats.md, "Configuration", shows this very one.
#[test]
fn the_configuration_format_is_frozen() {
    let member = |id, identity, address: &str| Member { id, identity, address: address.into() };
    let c = Configuration::of_voters(9, vec![member(1, 7, "a:1"), member(2, 0, "b:2")]);
    let mut out = Vec::new();
    crate::raft::codec::put_configuration(&mut out, &c);
    let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, CONFIGURATION_HEX.replace(char::is_whitespace, ""));
}

const CONFIGURATION_HEX: &str = "
    0900000000000000 02000000 0100000000000000 0700000000000000 03000000 613a31
    0200000000000000 0000000000000000 03000000 623a32
    02000000 0100000000000000 0200000000000000 00000000 00000000 00000000 0200000000000000";

/// A real directory takes the same road: begun, closed, opened, compacted, identity and all.
#[test]
fn it_works_on_a_real_disk() {
    let data = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(crate::env::real::RealDisk::default());
    assert!(Identity::load(disk.as_ref(), data.path()).unwrap().is_none());
    let dir = data.path().join(LOG_DIR);
    let mut wal = Wal::open(Arc::clone(&disk), &dir, options()).unwrap().0;
    assert!(Identity::load(disk.as_ref(), data.path()).is_err(), "a log, but no identity");
    for index in 1..=50 {
        wal.write(&[persist(voted(index, 1), vec![command(index, index, 700)])]).unwrap();
    }
    assert!(wal.compact(45).unwrap() > 0);
    let entries = read_all(&wal);
    drop(wal);
    let must = Options { must_exist: true, ..options() };
    let (wal, recovered) = Wal::open(disk, &dir, must).unwrap();
    check_recovered(&wal, &recovered);
    assert_eq!(read_all(&wal), entries);
    assert_eq!(recovered.hard_state.term, 50);
}

/// What a group commit of 60 entries of 300 bytes costs, on a real disk and beside it; run with
/// `cargo test --release -- --ignored --nocapture group_commit_costs`.
#[test]
#[ignore = "a measurement"]
fn group_commit_costs() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let options = Options { segment_bytes: SEGMENT_BYTES_DEFAULT, ..options() };
    let null = Arc::new(NullDisk);
    let real: Arc<dyn Disk> = Arc::new(crate::env::real::RealDisk::default());
    for (name, disk) in [("no disk", null as Arc<dyn Disk>), ("real disk", real)] {
        let mut wal = Wal::open(disk, dir.path(), options).unwrap().0;
        let mut times = Vec::new();
        for round in 0..2000 {
            let next = wal.last_index() + 1;
            let requests: Vec<Persist> =
                (next..next + 60).map(|i| persist(None, vec![command(i, 1, 300)])).collect();
            let start = std::time::Instant::now();
            wal.write(&requests).unwrap();
            times.push(start.elapsed());
            if round % 600 == 599 {
                wal.compact(next - 1).unwrap();
            }
        }
        times.sort();
        println!("{name}: p50 {:?}, p99 {:?}", times[1000], times[1980]);
    }
}

/// Takes everything and keeps nothing.
#[derive(Debug, Default)]
struct NullDisk;

impl crate::env::Disk for NullDisk {
    fn open(&self, _: &Path, _: crate::env::Open) -> std::io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(NullDisk))
    }
    fn list(&self, _: &Path) -> std::io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn create_dir(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
    fn remove(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
    fn rename(&self, _: &Path, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
    fn lock(&self, _: &Path) -> std::io::Result<crate::env::DirLock> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl DiskFile for NullDisk {
    fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn sync_all(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn len(&self) -> std::io::Result<u64> {
        Ok(SEGMENT_BYTES_DEFAULT)
    }
}

/// Random sequences from a seed, for the crash tests.
pub(super) fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut dice = Dice(seed);
    let mut model = Model::default();
    (0..steps)
        .map(|_| {
            let step = model.choose(dice.below(16), dice.below(100), dice.below(100));
            model.step(&step);
            step
        })
        .collect()
}

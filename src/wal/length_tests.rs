//! Batches that are larger than the segments a log was opened with, and logs that are opened with
//! segments of another length than before.

use super::spare::SPARES_MAX;
use super::testdisk::{Fault, TestDisk};
use super::tests::{
    DIR, check_recovered, command, configuration, filled, open, options, persist, read_all, voted,
};
use super::*;
use crate::raft::Member;

/// Far more than a segment of the smallest length.
const LARGE: usize = 10 * SEGMENT_BYTES_MIN as usize + 123;

fn opened(disk: &TestDisk, segment_bytes: u64) -> (Wal, Recovered) {
    let options = Options { segment_bytes, ..options() };
    let (wal, recovered) = Wal::open(disk.shared(), Path::new(DIR), options).unwrap();
    check_recovered(&wal, &recovered);
    (wal, recovered)
}

/// A node with small segments gets from its leader what only large ones were made for: it holds it,
/// and starts again with it, whatever its flags say then.
#[test]
fn a_batch_that_no_segment_has_room_for_gets_a_longer_one() {
    let (disk, mut wal) = filled(3, 300);
    let mut entries: Vec<Entry> = (1..=3).map(|index| command(index, 1, 300)).collect();
    for index in 4..=20 {
        let len = if index % 3 == 0 { LARGE + index as usize } else { 10 };
        entries.push(command(index, 1, len));
        wal.write(&[persist(None, vec![entries[index as usize - 1].clone()])]).unwrap();
    }
    // All kinds in one call: small ones gathered, each large one by itself.
    let more: Vec<Entry> = (21..=30).map(|i| command(i, 1, [7, LARGE][i as usize % 2])).collect();
    wal.write(&[persist(None, more.clone())]).unwrap();
    entries.extend(more);
    assert_eq!(read_all(&wal), entries);
    for segment_bytes in [1 << 20, SEGMENT_BYTES_MIN, 5 * SEGMENT_BYTES_MIN, SEGMENT_BYTES_MIN] {
        drop(wal);
        wal = opened(&disk, segment_bytes).0;
        assert_eq!(read_all(&wal), entries, "{segment_bytes}");
        let next = command(wal.last_index() + 1, 1, LARGE);
        wal.write(&[persist(None, vec![next.clone()])]).unwrap();
        entries.push(next);
    }
    let error = wal.make_room(RECORD_BYTES_MAX as usize + 1).unwrap_err();
    assert!(matches!(error, WalError::TooLarge { limit: RECORD_BYTES_MAX, .. }), "{error}");
}

/// What takes the place of older entries is large: the segment that says where the log was cut has
/// room for it at once.
#[test]
fn a_large_entry_replaces_others() {
    let (disk, mut wal) = filled(40, 500);
    let number = wal.current.number;
    wal.write(&[persist(voted(2, 1), vec![command(3, 2, LARGE)])]).unwrap();
    assert_eq!(wal.current.number, number + 1);
    let (wal, recovered) = open(&disk).unwrap();
    assert!(recovered.cut.is_none());
    assert_eq!(read_all(&wal)[2..], [command(3, 2, LARGE)]);
}

/// Long segments are given up like any others. They are not kept as spares: each would hold the
/// room of many.
#[test]
fn long_segments_go_when_they_are_freed() {
    let (disk, mut wal) = filled(1, 10);
    for index in 2..=60 {
        wal.write(&[persist(None, vec![command(index, 1, LARGE)])]).unwrap();
        if index % 10 == 0 {
            wal.compact(index - 1).unwrap();
            let on_disk: usize = disk.paths().iter().map(|path| disk.bytes(path).len()).sum();
            assert!(
                on_disk <= 3 * LARGE + (2 + SPARES_MAX) * SEGMENT_BYTES_MIN as usize,
                "{on_disk}"
            );
        }
    }
    assert!(wal.spares.iter().all(|spare| spare.bytes == SEGMENT_BYTES_MIN));
}

/// Whoever asks before each write what segment is needed, and makes it, never has the log fail for
/// want of space, also when records are larger than segments, and beside small ones, and when they
/// replace others.
#[test]
fn a_long_segment_that_is_needed_can_be_made_before_the_log_needs_it() {
    for with in [1, 2, 3, 7] {
        let disk = TestDisk::default();
        let mut wal = open(&disk).unwrap().0;
        let (mut long, mut usual) = (0, 0);
        for round in 1..40 {
            let term = round / 5 + 1;
            let at = if round % 5 == 0 { wal.last_index() } else { wal.last_index() + 1 }.max(1);
            let len = |i: u64| if (i + round).is_multiple_of(with) { LARGE } else { 2500 };
            let entries = (0..1 + round % 4).map(|i| command(at + i, term, len(i))).collect();
            let requests = [persist(voted(term, 1), entries)];
            disk.fail(Some(Fault::Full));
            while let Some(bytes) = wal.needs_segment(&requests) {
                assert!(wal.make_spare(bytes).unwrap_err().is_out_of_space());
                disk.fail(None);
                wal.make_spare(bytes).unwrap();
                disk.fail(Some(Fault::Full));
                *(if bytes > SEGMENT_BYTES_MIN { &mut long } else { &mut usual }) += 1;
            }
            wal.write(&requests).unwrap();
            disk.fail(None);
            if round % 8 == 0 {
                wal.compact(wal.last_index()).unwrap();
            }
            assert!(wal.spares.len() < 40, "spares pile up");
        }
        assert!(long > 0 && usual > 0, "{with}: {long} {usual}");
        let last = wal.last_index();
        assert_eq!(open(&disk).unwrap().0.last_index(), last);
    }
}

/// A configuration that is longer than a segment stands in every header from then on.
#[test]
fn a_configuration_longer_than_a_segment_is_held_and_repeated() {
    let name = |id| format!("{id}.{}", "x".repeat(250));
    let member = |id| Member { id, identity: id, address: name(id) };
    let large = Arc::new(Configuration::of_voters(9, (1..=40).map(member).collect()));
    let (disk, mut wal) = filled(3, 10);
    let payload = Payload::Configuration(Arc::clone(&large));
    wal.write(&[persist(None, vec![Entry { index: 4, term: 1, payload }])]).unwrap();
    for index in 5..=60 {
        let request = [persist(None, vec![command(index, 1, 3000)])];
        assert!(wal.needs_segment(&request).is_none_or(|bytes| bytes < 4 * SEGMENT_BYTES_MIN));
        if let Some(preparer) = wal.prepare() {
            wal.prepared(preparer.finish());
        }
        wal.write(&request).unwrap();
    }
    wal.compact(50).unwrap();
    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.configuration_before, Some((4, Arc::clone(&large))));
    wal.reset(100, 7, &large).unwrap();
    wal.reset(200, 7, &configuration(200)).unwrap();
    wal.write(&[persist(None, vec![command(201, 7, 10)])]).unwrap();
    assert_eq!(open(&disk).unwrap().1.configuration_before, Some((200, configuration(200))));
}

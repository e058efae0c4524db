//! Rot, missing files and strangers: always noticed, never skipped, never taken for an end.

use super::testdisk::{Fault, TestDisk};
use super::tests::*;
use super::*;
use crate::env::Open;

/// A log of several segments; the last two batches are in the newest.
fn sample() -> (TestDisk, Wal, u64) {
    let disk = TestDisk::default();
    let mut wal = open(&disk).unwrap().0;
    let mut index = 0;
    for round in 1..=5 {
        for _ in 0..4 {
            index += 1;
            let request = persist(voted(round, 1), vec![command(index, round, 1700)]);
            wal.write(&[request]).unwrap();
        }
    }
    wal.compact(5).unwrap();
    wal.write(&[persist(None, vec![command(21, 5, 200)])]).unwrap();
    let last = wal.current.offset;
    wal.write(&[persist(None, vec![command(22, 5, 700)])]).unwrap();
    (disk, wal, last)
}

fn is_damage<T>(result: &Result<T, WalError>) -> bool {
    matches!(result, Err(WalError::Damaged { .. }))
}

/// One bit turns over somewhere on the disk. In the log it is damage, and the log is left as it
/// is; in the last batch it cannot be told from a torn write; elsewhere it changes nothing.
#[test]
fn a_flipped_bit_is_always_noticed() {
    let (disk, wal, last) = sample();
    let entries = read_all(&wal);
    let (mut refused, mut cut) = (0, 0);
    let live: Vec<(PathBuf, u64)> = {
        let places = lock(&wal.places);
        places.segments.iter().map(|s| (s.path.clone(), s.used)).collect()
    };
    for path in disk.paths() {
        let original = disk.bytes(&path);
        let used = live.iter().find(|l| l.0 == path).map_or(0, |l| l.1);
        let newest = path == wal.current.path;
        let mark = if used == 0 || newest { original.len() } else { original.len() - 512 };
        let places = (0..original.len()).filter(|&at| {
            at < 600 || at % 23 == 0 || newest && at % 5 == 0 || at >= mark && at < mark + 16
        });
        for at in places {
            let disk = disk.copy();
            disk.edit(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            let before = disk.bytes(&path);
            let result = open(&disk);
            let at = at as u64;
            if newest && at >= last && original[at as usize] != 0 && at < used {
                let (wal, recovered) = result.unwrap();
                assert_eq!(recovered.cut.unwrap().offset, last);
                assert_eq!(read_all(&wal), entries[..entries.len() - 1]);
                cut += 1;
            } else if (at < used || at >= mark as u64) && original[at as usize] != 0 {
                assert!(is_damage(&result), "{}: {at}: {:?}", path.display(), result.err());
                assert_eq!(disk.bytes(&path), before, "a refused log is left alone");
                assert_eq!(disk.ops(), 0);
                refused += 1;
            } else if let Ok((wal, _)) = result {
                let got = read_all(&wal);
                assert!(got == entries || newest && got == entries[..entries.len() - 1]);
            } else {
                // A zero byte of a header, batch or end mark.
                let at_used = at < used || at >= mark as u64;
                assert!(is_damage(&result) && at_used, "{}: {at}", path.display());
            }
        }
    }
    assert!(refused > 500 && cut > 50, "{refused} refused, {cut} cut");
}

/// The last batch fits into a sector, and one bit of it turns over: in its checksum, length,
/// number or records. Sectors are not torn, so this is damage and no torn write; what a former
/// life left there is neither.
#[test]
fn a_flipped_bit_in_a_last_batch_of_one_sector_is_damage() {
    let (disk, mut wal, _) = sample();
    for (index, len) in [(23, 400), (24, 0)] {
        let offset = wal.current.offset as usize;
        wal.write(&[persist(None, vec![command(index, 5, len)])]).unwrap();
        assert_eq!(wal.current.offset as usize, offset + 512);
        let total = 16 + 1 + 21 + len;
        for bit in 0..total * 8 {
            let disk = disk.copy();
            disk.edit(&wal.current.path, |bytes| bytes[offset + bit / 8] ^= 1 << (bit % 8));
            let result = open(&disk);
            assert!(
                matches!(&result, Err(WalError::Damaged { offset: at, .. }) if *at == offset as u64),
                "bit {bit}: {:?}",
                result.err()
            );
            assert_eq!(disk.ops(), 0, "a refused log is left alone");
        }
    }
    let offset = wal.current.offset as usize;
    disk.edit(&wal.current.path, |bytes| {
        bytes.copy_within(offset - 1024..offset - 512, offset - 512);
    });
    let cut = open(&disk).unwrap().1.cut.unwrap();
    assert_eq!((cut.offset, cut.bytes), (offset as u64 - 512, 512));
}

/// A longer last batch is cut: what is reported is that batch, not the rest of the file.
#[test]
fn a_cut_tells_the_length_of_the_batch() {
    let (disk, wal, last) = sample();
    disk.edit(&wal.current.path, |bytes| bytes[last as usize + 600] ^= 1);
    let cut = open(&disk).unwrap().1.cut.unwrap();
    assert_eq!((cut.offset, cut.bytes), (last, 16 + 1 + 21 + 700));
}

/// A whole sector in the middle turns to zeros: a blank header there is not the log's end.
#[test]
fn a_blank_sector_in_the_middle_is_damage() {
    let (disk, wal, last) = sample();
    let places = lock(&wal.places);
    for segment in &places.segments {
        for at in (0..segment.used).step_by(512) {
            if segment.path == wal.current.path && at >= last {
                continue;
            }
            let disk = disk.copy();
            disk.edit(&segment.path, |bytes| bytes[at as usize..][..512].fill(0));
            assert!(is_damage(&open(&disk)), "{}: {at}", segment.path.display());
        }
    }
}

/// A file of the log is missing, cut short, or there twice. Spares may go.
#[test]
fn a_missing_or_short_or_doubled_segment_is_damage() {
    let (disk, wal, _) = sample();
    let places = lock(&wal.places);
    assert!(places.segments.len() >= 3);
    for segment in &places.segments {
        let number = segment.number;
        let missing = disk.copy();
        missing.remove(&segment.path).unwrap();
        assert!(is_damage(&open(&missing)), "segment {number}");
        let zeros = disk.copy();
        zeros.edit(&segment.path, |bytes| bytes.fill(0));
        assert!(is_damage(&open(&zeros)), "segment {number}");
        let short = disk.copy();
        short.edit(&segment.path, |bytes| bytes.truncate(5000));
        assert!(is_damage(&open(&short)), "segment {number}");
        let double = disk.copy();
        let file = double.open(&Path::new(DIR).join("log-00000099"), Open::CreateNew).unwrap();
        file.write_all_at(&disk.bytes(&segment.path), 0).unwrap();
        assert!(is_damage(&open(&double)), "segment {number}");
    }
    for path in disk.paths().iter().filter(|p| places.segments.iter().all(|s| s.path != **p)) {
        let disk = disk.copy();
        disk.remove(path).unwrap();
        assert!(open(&disk).is_ok());
    }
}

/// The log was there once: an empty directory, or one with blank files only, is no fresh start.
#[test]
fn a_log_that_must_exist_is_never_begun_anew() {
    let must = Options { must_exist: true, ..options() };
    let disk = TestDisk::default();
    assert!(is_damage(&Wal::open(disk.shared(), Path::new(DIR), must)));
    assert_eq!(disk.paths().len(), 0);
    open(&disk).unwrap();
    assert!(Wal::open(disk.copy().shared(), Path::new(DIR), must).is_ok());
    let path = disk.paths()[0].clone();
    disk.edit(&path, |bytes| bytes.fill(0));
    assert!(is_damage(&Wal::open(disk.shared(), Path::new(DIR), must)));
    assert!(open(&disk).is_ok(), "a first start that was cut off");
}

/// A single segment whose header is gone, with entries in it, is damage, not a fresh start.
#[test]
fn entries_without_a_header_are_damage() {
    let disk = TestDisk::default();
    let mut wal = open(&disk).unwrap().0;
    wal.write(&[persist(None, vec![command(1, 1, 10)])]).unwrap();
    let path = disk.paths()[0].clone();
    for fill in [0, 0xa5] {
        disk.edit(&path, |bytes| bytes[..512].fill(fill));
        assert!(is_damage(&open(&disk)));
    }
}

/// A way in which a log comes to begin its newest segment.
type Way<'a> = &'a dyn Fn(&TestDisk, &mut Wal);

/// The newest segment goes missing, or turns to zeros, however the log came to begin it: rolled,
/// cut back, replaced by a snapshot, compacted to it, opened in the middle of the roll, in a new
/// file or a used one. Nothing of this is taken for a shorter log.
#[test]
fn a_newest_segment_that_is_gone_is_never_a_shorter_log() {
    let rolled = |wal: &mut Wal| {
        let number = wal.current.number;
        while wal.current.number == number {
            let entry = command(wal.last_index() + 1, 5, 1700);
            wal.write(&[persist(None, vec![entry])]).unwrap();
        }
    };
    let ways: [(&str, Way<'_>); 5] = [
        ("rolled", &|_, wal| rolled(wal)),
        ("cut back", &|_, wal| {
            wal.write(&[persist(None, vec![command(wal.current.prev, 9, 10)])]).unwrap();
        }),
        ("reset", &|_, wal| wal.reset(100, 7, &configuration(100)).unwrap()),
        ("compacted", &|_, wal| {
            rolled(wal);
            wal.compact(wal.last_index()).unwrap();
        }),
        ("opened", &|disk, wal| {
            let ops = disk.ops();
            wal.roll_truncated(wal.last_index() - 1, 1).unwrap();
            let offset = disk.bytes(&wal.current.path).len() as u64 - 512;
            assert!(disk.ops() > ops);
            // As if the machine had stopped in front of the mark.
            let before = lock(&wal.places).segments.iter().rev().nth(1).unwrap().path.clone();
            disk.edit(&before, |bytes| bytes[offset as usize..].fill(0));
            *wal = open(disk).unwrap().0;
        }),
    ];
    for (what, way) in ways {
        for spares in [true, false] {
            let (disk, mut wal, _) = sample();
            if !spares {
                wal.spares.clear();
            }
            way(&disk, &mut wal);
            let path = wal.current.path.clone();
            assert!(open(&disk.copy()).is_ok(), "{what}");
            let gone = disk.copy();
            gone.remove(&path).unwrap();
            let error = open(&gone).unwrap_err();
            assert!(matches!(&error, WalError::Damaged { path, .. } if path == Path::new(DIR)));
            assert!(error.to_string().contains("is missing"), "{what}: {error}");
            assert_eq!(gone.ops(), 1, "{what}: a refused log is left alone");
            let zeros = disk.copy();
            zeros.edit(&path, |bytes| bytes.fill(0));
            assert!(is_damage(&open(&zeros)), "{what}");
            let spoiled = disk.copy();
            spoiled.edit(&path, |bytes| bytes[..512].fill(0xa5));
            assert!(is_damage(&open(&spoiled)), "{what}");
        }
    }
}

/// The machine stops while the header of the newest segment is being written, in front of the end
/// mark: a spare again. With the mark it would be damage.
#[test]
fn a_torn_header_without_batches_is_cut() {
    let (disk, mut wal, _) = sample();
    let entries = read_all(&wal);
    wal.roll_truncated(22, 1).unwrap();
    let path = wal.current.path.clone();
    disk.edit(&path, |bytes| bytes[50] ^= 1);
    assert!(is_damage(&open(&disk.copy())));
    let before = lock(&wal.places).segments.iter().rev().nth(1).unwrap().path.clone();
    disk.edit(&before, |bytes| bytes[SEGMENT_BYTES_MIN as usize - 512..].fill(0));
    assert_eq!(open(&disk).unwrap().1.cut.unwrap().path, path);
    let (mut wal, recovered) = open(&disk).unwrap();
    assert!(recovered.cut.is_none(), "a cut is durable");
    assert_eq!(read_all(&wal), entries);
    wal.write(&[persist(None, vec![command(23, 5, 7000)])]).unwrap();
    let (wal, recovered) = open(&disk).unwrap();
    assert!(recovered.cut.is_none());
    assert_eq!(wal.last_index(), 23);
}

/// A snapshot has replaced the log and nothing was written since: the one header that says so
/// rots. A batch behind it shows that this is no torn header, and the log does not begin anew.
#[test]
fn a_rotten_header_after_a_reset_is_damage() {
    let (disk, mut wal, _) = sample();
    wal.spares.clear(); // a file that is blank behind its header
    wal.reset(100, 7, &configuration(100)).unwrap();
    for path in disk.paths().iter().filter(|p| **p != wal.current.path) {
        disk.remove(path).unwrap();
    }
    assert!(open(&disk.copy()).is_ok());
    for at in [0, 70, 99] {
        let disk = disk.copy();
        disk.edit(&wal.current.path, |bytes| bytes[at] ^= 1);
        assert!(is_damage(&open(&disk)), "{at}");
    }
}

/// The machine stops between the header of a reset and the batch behind it: the next opening
/// writes that batch before it gives up older files.
#[test]
fn a_reset_that_was_cut_off_is_completed() {
    let disk = TestDisk::default();
    let mut wal = open(&disk).unwrap().0;
    wal.write(&[persist(None, vec![command(1, 1, 10)])]).unwrap();
    wal.roll(format::Start::Reset, (100, 7), None, 1).unwrap();
    let path = wal.current.path.clone();
    let (wal, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.first_index, recovered.last_index), (101, 100));
    assert_eq!(wal.current.path, path);
    disk.edit(&path, |bytes| bytes[70] ^= 1);
    assert!(is_damage(&open(&disk)));
}

/// Another node's log, another version, a disk that cannot read: each has an error of its own.
#[test]
fn strangers_and_read_errors_are_told_apart() {
    let (disk, wal, _) = sample();
    let other = Options { identity: 1, ..options() };
    let result = Wal::open(disk.shared(), Path::new(DIR), other);
    assert!(matches!(result, Err(WalError::Foreign { found: IDENTITY, expected: 1, .. })));
    let ops = disk.ops();
    disk.fail(Some(Fault::Read));
    assert!(matches!(open(&disk), Err(WalError::Unread { .. })));
    assert_eq!(disk.ops(), ops);
    disk.fail(None);
    // A bad sector under a record: the file, the place and the way out, and nothing is cut.
    let bad = disk.copy();
    bad.spoil(&wal.current.path, 600);
    let error = open(&bad).unwrap_err().to_string();
    assert!(error.contains("at offset ") && error.contains("member replace"), "{error}");
    assert_eq!(bad.ops(), 0);
    disk.edit(&wal.current.path, |bytes| {
        bytes[8] = 2;
        let len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..12]);
        hasher.update(&bytes[16..len]);
        let sum = hasher.finalize().to_le_bytes();
        bytes[12..16].copy_from_slice(&sum);
    });
    assert!(matches!(open(&disk), Err(WalError::Version { found: 2, .. })));
    let odd = Options { segment_bytes: 10_000, ..options() };
    let result = Wal::open(disk.shared(), Path::new(DIR), odd);
    assert!(matches!(result, Err(WalError::Rejected { .. })));
}

/// The operator reads which file, which offset, and what to do.
#[test]
fn damage_names_file_offset_and_the_way_out() {
    let (disk, wal, _) = sample();
    let path = lock(&wal.places).segments[1].path.clone();
    disk.edit(&path, |bytes| bytes[512 + 30] ^= 1);
    let text = open(&disk).unwrap_err().to_string();
    for part in [path.to_str().unwrap(), "offset 512", "keep the data directory"] {
        assert!(text.contains(part), "{text}");
    }
}

/// Both copies of the identity are gone or spoiled though the node has lived: never a new node.
#[test]
fn a_lost_identity_is_refused() {
    let dir = Path::new("/data");
    let disk = TestDisk::default();
    assert!(Identity::load(&disk, dir).unwrap().is_none());
    let identity = Identity {
        cluster: 5,
        node: 1,
        identity: IDENTITY,
        created: false,
        restoring: false,
        removed: false,
        denied: false,
        advertise: "host:1".into(),
        members: Vec::new(),
        secret: None,
    };
    identity.store(&disk, dir).unwrap();
    let paths = disk.paths();
    open(&disk).unwrap();
    let spoiled = disk.copy();
    paths.iter().for_each(|path| spoiled.edit(path, |bytes| bytes[30] ^= 1));
    assert!(is_damage(&Identity::load(&spoiled, dir)));
    let gone = disk.copy();
    paths.iter().for_each(|path| gone.remove(path).unwrap());
    assert!(is_damage(&Identity::load(&gone, dir)));
    // One copy's bytes under the other's name are not believed either.
    let bytes = disk.bytes(&paths[0]);
    let misdirected = disk.copy();
    misdirected.edit(&paths[0], |b| b[30] ^= 1);
    misdirected.edit(&paths[1], |b| *b = bytes);
    assert!(is_damage(&Identity::load(&misdirected, dir)));
}

/// A directory that was made before there was a members' secret is read, and has none; what is stored then is of
/// today's version.
#[test]
fn an_identity_of_version_1_is_read() {
    let dir = Path::new("/data");
    let disk = TestDisk::default();
    for (name, crc) in [("identity-a", "28abeafc"), ("identity-b", "579ced1f")] {
        let hex = IDENTITY_1_HEX.replace(char::is_whitespace, "").replace("CRC", crc);
        let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let file = disk.open(&dir.join(name), Open::CreateNew).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }
    let identity = Identity::load(&disk, dir).unwrap().expect("it is there");
    assert_eq!((identity.cluster, identity.node, identity.identity), (5, 1, 0x77));
    assert_eq!(identity.secret, None);
    identity.store(&disk, dir).unwrap();
    assert_eq!(disk.bytes(&dir.join("identity-a"))[8..12], [2, 0, 0, 0]);
    assert_eq!(Identity::load(&disk, dir).unwrap(), Some(identity));
}

const IDENTITY_1_HEX: &str = "
    6b6f6e746e6f6465 01000000 CRC 5d000000 0100000000000000 0500000000000000 0100000000000000
    7700000000000000 01 06000000 686f73743a31 01000000 0100000000000000 7700000000000000
    06000000 686f73743a31";

//! A node that begins from a backup, with the machine stopping at every operation on the way.

use super::super::boot::restored;
use super::verify::{DATA, Machines, Shown, identity, plan, rows};
use super::*;
use crate::env::{Disk as _, Open};
use crate::kv::machine::{CONFIGURATION_KEY, INSTALLED_KEY, TERM_KEY};
use crate::kv::{Backup, BackupWriter, LsmError, LsmStore};
use crate::wal::Identity;
use std::path::Path;

const FILE: &str = "/aside/backup";

/// The backup of a store, in a file on a disk of its own.
fn backup_of(node: &Machines) -> TestDisk {
    let export = node.machine.reader().export();
    let manifest = export.manifest();
    let contents = crate::kv::Contents::of(&manifest).unwrap();
    let mut writer = BackupWriter::new(Vec::new(), 5, &manifest).unwrap();
    for piece in contents.pieces() {
        writer.put(&export.read(piece).unwrap()).unwrap();
    }
    let (bytes, len) = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, len);
    let aside = TestDisk::default();
    aside.open(Path::new(FILE), Open::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
    aside
}

/// Begins or goes on from the backup.
fn start(disk: &TestDisk, aside: &TestDisk) -> Result<(Machine<LsmStore>, Restored), BootError> {
    let data = Path::new(DATA);
    let own = Identity::load(disk, data)?.expect("it was stored");
    let backup = Backup::open(aside, Path::new(FILE)).unwrap();
    let restore = Some(&backup).filter(|_| own.restoring);
    let opened = open(&disk.shared(), Plan { restore, ..plan(data, &own) }, |_| {})?;
    let machine = Machine::open(opened.store)?;
    let restored = restored(&own, &opened.recovered, machine.applied());
    assert!(!Identity::load(disk, data)?.unwrap().restoring);
    Ok((machine, restored))
}

/// What the users see, and the sessions: without what is the node's own.
fn common(machine: &Machine<LsmStore>) -> Vec<Shown> {
    let mut rows = rows(machine).unwrap();
    rows.retain(|row| ![CONFIGURATION_KEY, INSTALLED_KEY, TERM_KEY].contains(&&row.0[..]));
    rows
}

#[test]
fn a_restore_that_is_cut_off_anywhere_is_completed() {
    // The machine stops at any operation of the start that restores. Started again with the backup it
    // has everything in it, its own members, and a log that goes on behind it; a start that was complete
    // needs the backup no more. Terms begin anew, however far the old cluster had come: no other could follow the
    // last that there is.
    let mut giver = Machines::new();
    giver.set_term((1 << 62) - 2);
    giver.lead();
    for n in 0..40u8 {
        let op = Op::Put { key: vec![b'k', n % 25], value: vec![n; 300] };
        giver.write(Write { ops: vec![op], ..Write::default() });
    }
    giver.flush();
    let aside = backup_of(&giver);
    let (wanted, applied) = (common(&giver.machine), giver.machine.applied());

    let disk = TestDisk::default();
    let member = |id| Member { id, identity: 0, address: format!("new:{id}") };
    let members = vec![member(1), member(2)];
    let own = Identity { cluster: 77, identity: 99, restoring: true, members, ..identity() };
    own.store(&disk, Path::new(DATA)).unwrap();
    let check = |disk: &TestDisk, what: &str| {
        let (machine, restored) = start(disk, &aside).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(common(&machine), wanted, "{what}");
        assert_eq!((machine.applied(), restored.applied), (applied, applied), "{what}");
        assert_eq!((restored.log.base, restored.log.last), (applied, applied), "{what}");
        assert_eq!((restored.log.base_term, restored.hard_state.term), (1, 1), "{what}");
        let configuration = &restored.log.configurations.last().expect("one").1;
        assert_eq!((configuration.cluster, &configuration.members), (77, &own.members), "{what}");
    };
    let stored = disk.ops();
    check(&disk, "without a crash");
    let mut cut_off = 0;
    for n in stored..=disk.ops() {
        for seed in 0..3 {
            let crashed = disk.crashed(n, seed);
            let own = Identity::load(&crashed, Path::new(DATA)).unwrap().expect("stored before");
            cut_off += usize::from(own.restoring);
            check(&crashed, &format!("operation {n}, seed {seed}"));
        }
    }
    assert!(cut_off > 100, "{cut_off}");
}

#[test]
fn a_spoiled_backup_is_known_before_anything_is_made_of_it() {
    // Every byte is turned over in turn, every length is cut: opening or checking it says so.
    let mut giver = Machines::new();
    giver.lead();
    let op = Op::Put { key: b"k".to_vec(), value: vec![1; 300] };
    giver.write(Write { ops: vec![op], ..Write::default() });
    giver.flush();
    let aside = backup_of(&giver);
    let whole = aside.bytes(Path::new(FILE));
    let look = |aside: &TestDisk| Backup::open(aside, Path::new(FILE)).and_then(|b| b.verify());
    look(&aside).unwrap();
    let damaged = |found: Result<(), LsmError>, what: &str| match found {
        Err(LsmError::Damaged { path, .. }) => assert_eq!(path, Path::new(FILE)),
        other => panic!("{what}: {other:?}"),
    };
    for at in 0..whole.len() {
        aside.edit(Path::new(FILE), |bytes| bytes[at] ^= 1 << (at % 8));
        damaged(look(&aside), &format!("byte {at}"));
        aside.edit(Path::new(FILE), |bytes| bytes.clone_from(&whole));
    }
    for len in 0..whole.len() {
        aside.edit(Path::new(FILE), |bytes| bytes.truncate(len));
        damaged(look(&aside), &format!("cut to {len}"));
        aside.edit(Path::new(FILE), |bytes| bytes.clone_from(&whole));
    }
    look(&aside).unwrap();
}

#[test]
fn a_backup_is_needed_until_a_node_has_begun_from_it() {
    // A new node needs the backup whole. A node that is there goes on without it when the file is gone, and does not look
    // at its contents; unless a crash has cut off what is taken from it.
    let mut giver = Machines::new();
    giver.lead();
    let op = Op::Put { key: b"k".to_vec(), value: vec![1; 300] };
    giver.write(Write { ops: vec![op], ..Write::default() });
    giver.flush();
    let aside = backup_of(&giver);
    let file = Path::new(FILE);
    let lines = |disk: &TestDisk, path, is_new| {
        let mut lines = Vec::new();
        let looked = Restore::look(disk, path, is_new, |warning, line| {
            lines.push((warning, line.to_string()));
        });
        looked.map(|restore| (restore.backup().is_some(), lines)).map_err(|(path, e)| {
            assert_eq!(path, file);
            e
        })
    };
    assert!(matches!(lines(&aside, None, true), Ok((false, lines)) if lines.is_empty()));
    let (is_there, said) = lines(&aside, Some(file), true).unwrap();
    assert!(is_there && said.len() == 1 && said[0].1.starts_with("checks the backup"), "{said:?}");

    let gone = TestDisk::default();
    assert!(matches!(lines(&gone, Some(file), true), Err(LsmError::Io { .. })));
    let (is_there, said) = lines(&gone, Some(file), false).unwrap();
    assert!(!is_there && said[0].0 && said[0].1.contains("is not there"), "{said:?}");

    // A bit of a table is turned over, which only reading all of it finds.
    let len = aside.bytes(file).len();
    aside.edit(file, |bytes| bytes[len / 2] ^= 1);
    assert!(matches!(lines(&aside, Some(file), true), Err(LsmError::Damaged { .. })));
    let restore = Restore::look(&aside, Some(file), false, |_, _| {}).unwrap();
    restore.check(&Identity { restoring: false, ..identity() }).unwrap();
    let (path, e) = restore.check(&Identity { restoring: true, ..identity() }).unwrap_err();
    assert!(path == file && matches!(e, LsmError::Damaged { .. }));
}

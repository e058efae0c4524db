//! What can be saved of a damaged store: every row that lies in a block that is whole.

use super::*;
use crate::env::Findings;
use crate::lsm::inspect::inspect;
use crate::lsm::salvage::{Lost, Salvaged};

/// A store of several levels, with deletes, as it lies on the disk.
fn filled(seed: u64) -> (TestDisk, Model) {
    let (disk, _, _, model) = store_of(seed, 199);
    (disk.copy(), model)
}

/// Rows by key, each with whether it may be old.
type Rows = BTreeMap<(u8, Vec<u8>), (u64, Vec<u8>, bool)>;

fn salvaged(disk: &TestDisk) -> (Rows, Vec<Lost>) {
    let (disk, mut findings) = (disk.shared(), Findings::default());
    let seen = inspect(&disk, Path::new(DIR), options().identity, true, &mut findings).unwrap();
    let mut rows = Rows::new();
    let mut last = Vec::new();
    let mut visit = |row: Salvaged<'_>| {
        assert!(last.as_slice() < row.key, "in order, each once");
        last = row.key.to_vec();
        let key = (row.key[0], row.key[1..].to_vec());
        rows.insert(key, (row.revision, row.value.to_vec(), row.perhaps_old));
        ControlFlow::Continue(())
    };
    let lost = seen.salvage(&disk, &mut visit).unwrap();
    (rows, lost)
}

fn covered(lost: &[Lost], (space, key): &(u8, Vec<u8>)) -> bool {
    let full = [&[*space], key.as_slice()].concat();
    lost.iter().any(|l| l.after.as_ref().is_none_or(|after| *after < full) && full <= l.through)
}

#[test]
fn a_sound_store_is_saved_as_it_is() {
    let (disk, model) = filled(1);
    let (rows, lost) = salvaged(&disk);
    assert_eq!(lost, []);
    assert!(rows.values().all(|(.., perhaps_old)| !perhaps_old));
    let sure: Model = rows.into_iter().map(|(key, (r, v, _))| (key, (r, v))).collect();
    assert_eq!(sure, model);
}

#[test]
fn whatever_byte_is_damaged_every_other_row_is_saved_and_none_passes_for_newer_than_it_is() {
    // Bits flip, sectors cannot be read, ends and files are missing, in each table in turn. A row that is said to be the
    // latest is; what is not there lies in a range that is said to be lost.
    let (disk, model) = filled(2);
    let tables = files(&disk, "table-");
    let (mut gone, mut old, mut whole) = (0, 0, 0);
    for path in &tables {
        let len = disk.bytes(path).len();
        for at in (0..len).step_by(23).chain([len - 1, len - 20]) {
            for kind in 0..4 {
                let disk = disk.copy();
                match kind {
                    0 => disk.edit(path, |bytes| bytes[at] ^= 1 << (at % 8)),
                    1 => disk.spoil(path, at),
                    2 if at % 5 == 0 => disk.edit(path, |bytes| bytes.truncate(at)),
                    3 if at == 0 => disk.shared().remove(path).unwrap(),
                    _ => continue,
                }
                let (rows, lost) = salvaged(&disk);
                assert!(!lost.is_empty() && lost.iter().all(|lost| lost.path == *path));
                for (key, (revision, value, perhaps_old)) in &rows {
                    let now = model.get(key);
                    let is_latest = now == Some(&(*revision, value.clone()));
                    assert!(is_latest || *perhaps_old, "{path:?} {at} {key:?}");
                    old += usize::from(!is_latest);
                }
                for key in model.keys().filter(|key| !rows.contains_key(*key)) {
                    assert!(covered(&lost, key), "{path:?} {at} {key:?}");
                    gone += 1;
                }
                whole += rows.len();
            }
        }
    }
    assert!(gone > 100 && old > 10 && whole > 10 * gone, "{gone} {old} {whole}");
}

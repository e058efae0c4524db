//! The bytes of the formats, frozen, and what holds of blocks and memtables by themselves.
//! docs/formats.md explains the examples.

use super::*;
use crate::lsm::block::{Block, BlockBuilder, BlockCursor, Item, Seed, key_hash, put_filter};

use crate::lsm::builder::{TableBuilder, TableOptions};
use crate::lsm::memtable::{Entry, MemCursor, Memtable};
use crate::lsm::table::{Start, TableMeta};
use std::sync::Arc;

/// A block of three entries.
const BLOCK: &str = "00060403016170706c65726564050100790105010262657272790000000001000000";

/// A table of the same; store 7, file 1.
const TABLE: &str = "\
    00060403016170706c65726564050100790105010262657272790000000001000000dd2029c9\
    00060300016265727279002200000000010000004c01254010107f04080000002d4a3b50\
    0006030001626572727926200000000001000000\
    60307b77\
    6b6f6e747461620a010000004a00000000000000140000000300000000000000\
    0100000000000000974ac08d";

/// The manifest that names it; store 7, slot 1.
const MANIFEST: &str = "\
    6b6f6e746d616e0a02000000070000000000000096000000\
    040000000000000009000000000000000200000000000000\
    000000000100000001000000000000008e00000000000000\
    03000000000000000100000000000000\
    0700000000000000010000000000000006000000016170706c6506000000016265727279\
    02000000016b00000000\
    0000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000\
    cee0b614";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn table_of(entries: &[(&[u8], Item<'_>)]) -> (TestDisk, TableMeta) {
    let disk = TestDisk::default();
    let seed = Seed { identity: 7, number: 1 };
    let options = TableOptions { block_bytes: 4096, partition_bytes: 4096, sync_bytes: 1 << 20 };
    let mut builder = TableBuilder::create(&disk, Path::new(DIR), seed, options).unwrap();
    for (key, item) in entries {
        builder.add(key, *item).unwrap();
    }
    let meta = builder.finish().unwrap();
    (disk, meta)
}

const EXAMPLE: [(&[u8], Item<'static>); 3] = [
    (b"\x01apple", Item::Put { revision: 3, value: b"red" }),
    (b"\x01apply", Item::Tombstone),
    (b"\x01berry", Item::Put { revision: 2, value: b"" }),
];

fn example() -> (TestDisk, TableMeta) {
    table_of(&EXAMPLE)
}

#[test]
fn a_block_of_version_1_stays_as_it_is() {
    // Written and read back.
    let mut builder = BlockBuilder::default();
    for (key, item) in EXAMPLE {
        builder.add(key, item);
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes);
    assert_eq!(hex(&bytes), BLOCK);
    let mut cursor = BlockCursor::new(Arc::new(Block::new(bytes.into()).unwrap()));
    cursor.seek_first().unwrap();
    for (key, item) in EXAMPLE {
        assert_eq!((cursor.key(), cursor.item()), (key, item));
        cursor.next().unwrap();
    }
    assert!(!cursor.is_valid());
}

#[test]
fn a_table_of_version_1_stays_as_it_is() {
    // Stores on disk outlive the program that wrote them.
    let (disk, _) = example();
    assert_eq!(hex(&disk.bytes(&Path::new(DIR).join("table-00000001"))), TABLE);
}

#[test]
fn a_manifest_of_version_2_stays_as_it_is() {
    // Written and read back; the same bytes in the other slot are no manifest.
    let (_, meta) = example();
    let mut state = manifest::State { applied: 9, next_file: 2, ..manifest::State::default() };
    state.levels[0].push(meta);
    state.pointers[1] = b"\x01k".to_vec();
    let bytes = manifest::encode(&state, 7, 1, 4);
    assert_eq!(hex(&bytes), MANIFEST);
    assert_eq!(manifest::decode(&bytes, 7, 1), Ok((4, state)));
    assert!(manifest::decode(&bytes, 7, 0).is_err());
    for len in 0..bytes.len() {
        assert!(manifest::decode(&bytes[..len], 7, 1).is_err(), "{len} bytes");
    }
}

#[test]
fn the_filter_lets_every_key_past_and_few_others() {
    // Ten bits a key: all that are there, and about one in a hundred of those that are not.
    assert_eq!(key_hash(b"\x01apple"), 0x3cf3_1ffc_dbe4_02c2);
    let key = |i: u32| format!("user{i:08}").into_bytes();
    let hashes: Vec<u64> = (0..2000).map(|i| key_hash(&key(i))).collect();
    let mut bytes = Vec::new();
    BlockBuilder::default().finish(&mut bytes);
    let start = bytes.len();
    put_filter(&mut bytes, &hashes);
    let len = (bytes.len() - start) as u32;
    assert_eq!(len, 2500);
    bytes.extend(len.to_le_bytes());
    let partition = Block::partition(bytes.into()).unwrap();
    assert!(hashes.iter().all(|hash| partition.may_contain(*hash)));
    let wrong = (2000..22_000).filter(|i| partition.may_contain(key_hash(&key(*i)))).count();
    assert!((100..300).contains(&wrong), "{wrong} of 20000");
}

#[test]
fn a_cursor_finds_every_place_of_a_block_and_walks_both_ways() {
    // Keys that are prefixes of one another across several restart points.
    let keys: Vec<Vec<u8>> = (1..60).map(|len| vec![b'k'; len]).collect();
    let mut builder = BlockBuilder::default();
    for key in &keys {
        builder.add(key, Item::Put { revision: key.len() as u64, value: key });
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes);
    let mut cursor = BlockCursor::new(Arc::new(Block::new(bytes.into()).unwrap()));
    for (i, key) in keys.iter().enumerate() {
        cursor.seek(key).unwrap();
        assert_eq!(cursor.key(), key.as_slice());
        cursor.prev().unwrap();
        assert_eq!(cursor.is_valid().then(|| cursor.key().len()), i.checked_sub(1).map(|i| i + 1));
        cursor.seek(&[key.as_slice(), &[0]].concat()).unwrap();
        assert_eq!(cursor.is_valid().then(|| cursor.key()), keys.get(i + 1).map(Vec::as_slice));
    }
}

#[test]
fn bytes_that_are_no_block_are_refused_without_a_panic() {
    // Behind a checksum this should not happen; a walk over garbage must end in an error all the
    // same, or in nothing.
    let mut dice = Dice(17);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..dice.below(40)).map(|_| dice.next() as u8 & 0x13).collect();
        bytes.extend([dice.below(3) as u8, 0, 0, 0]);
        let Ok(block) = Block::new(bytes.into()) else { continue };
        let mut cursor = BlockCursor::new(Arc::new(block));
        let mut steps = 0;
        let mut result = cursor.seek(&[dice.next() as u8 & 0x13]);
        while result.is_ok() && cursor.is_valid() && steps < 100 {
            result = if dice.below(2) == 0 { cursor.next() } else { cursor.prev() };
            steps += 1;
        }
        let _ = cursor.seek_last();
    }
}

#[test]
fn a_cut_of_a_memtable_shows_one_version_of_each_key_among_many() {
    // A hot key is written hundreds of times between two cold ones; every cut, in both directions
    // and from any start, sees exactly its own version, and a tombstone is a version.
    let table = Arc::new(Memtable::default());
    let mut scratch = Vec::new();
    for batch in 1..=200u64 {
        let value = batch.to_le_bytes();
        let hot = Some((batch, &value[..])).filter(|_| batch % 10 != 0);
        let mut entries = vec![Entry::new((1, b"hot"), hot, batch, &mut scratch)];
        if batch == 50 {
            entries.push(Entry::new((1, b"cold"), Some((50, b"c")), batch, &mut scratch));
            entries.push(Entry::new((1, b"ice"), Some((50, b"i")), batch, &mut scratch));
        }
        table.insert(entries);
    }
    for cut in [1, 9, 10, 49, 50, 51, 199, 200] {
        let mut wanted: Vec<(&[u8], u64)> = vec![(b"\x01hot", cut)];
        if cut >= 50 {
            wanted = vec![(b"\x01cold", 50), wanted[0], (b"\x01ice", 50)];
        }
        for reverse in [false, true] {
            let mut wanted = wanted.clone();
            if reverse {
                wanted.reverse();
            }
            for start in [Start::End, Start::Behind(wanted[0].0), Start::At(wanted[0].0)] {
                let skip = usize::from(matches!(start, Start::Behind(_)));
                let mut cursor = MemCursor::new(Arc::clone(&table), cut, start, reverse);
                for (key, revision) in &wanted[skip..] {
                    assert_eq!(cursor.key(), *key, "cut {cut}");
                    match cursor.item() {
                        Item::Put { revision: found, .. } => assert_eq!(found, *revision),
                        Item::Tombstone => assert_eq!(revision % 10, 0),
                    }
                    cursor.advance();
                }
                assert!(!cursor.is_valid());
            }
        }
        let found = table.get(b"\x01hot", cut).unwrap();
        assert_eq!(found.item() == Item::Tombstone, cut % 10 == 0);
    }
}

#[test]
fn an_old_cut_finds_its_keys_between_thousands_that_came_later() {
    // A slow reader's cut has ten keys; since then thousands were written around each of them. It
    // sees its own, in both directions, though no hold of the lock looks at more than a few hundred.
    let table = Arc::new(Memtable::default());
    let mut scratch = Vec::new();
    let old: Vec<u32> = (0..10).map(|i| i * 1000).collect();
    for i in &old {
        table.insert(vec![Entry::new((1, &i.to_be_bytes()), Some((1, b"old")), 1, &mut scratch)]);
    }
    for i in (0..10_000u32).filter(|i| i % 1000 != 0 || *i == 4000) {
        table.insert(vec![Entry::new((1, &i.to_be_bytes()), Some((2, b"new")), 2, &mut scratch)]);
    }
    for reverse in [false, true] {
        let mut cursor = MemCursor::new(Arc::clone(&table), 1, Start::End, reverse);
        let mut shown = Vec::new();
        while cursor.is_valid() {
            assert_eq!(cursor.item(), Item::Put { revision: 1, value: b"old" });
            shown.push(cursor.key().to_vec());
            cursor.advance();
        }
        let mut wanted: Vec<_> =
            old.iter().map(|i| [&[1], &i.to_be_bytes()[..]].concat()).collect();
        if reverse {
            wanted.reverse();
        }
        assert_eq!(shown, wanted);
    }
    let count = |cut| {
        let mut cursor = MemCursor::new(Arc::clone(&table), cut, Start::End, true);
        std::iter::from_fn(|| cursor.is_valid().then(|| cursor.advance())).count()
    };
    assert_eq!((count(0), count(1), count(2)), (0, 10, 10_000));
}

//! Looking through a store without opening it: both slots of the manifest, then every byte of every
//! table that the better one names.
//!
//! A table is walked in the order of its bytes, so that each of them lies under a checksum that was
//! looked at: data blocks follow one another without a gap, then the partition that names them, in
//! the end the top block and the footer. A damaged block is named and the walk goes on behind it.
//! Files are opened for reading only; a few blocks are in memory at a time, and one line for each
//! table, as in a store that is open.

use super::LsmError;
use super::bell::Bell;
use super::block::{Block, BlockCursor, CRC_BYTES, Handle, Item, key_hash};
use super::bytes::Malformed;
use super::cache::Cache;
use super::counters::Counters;
use super::engine::View;
use super::files::Files;
use super::manifest::{self, Slot, State, slot_path};
use super::reserve::RESERVE_FILE;
use super::table::{
    FOOTER_BYTES, Kind, Shelf, Table, TableMeta, Through, table_name, table_number,
};
use super::version::Version;
use crate::env::{Disk, Findings, Open};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Files of tables that are open at a time.
const OPEN_FILES: usize = 16;

const MISSING: &str = "the file is missing";

/// One of the two copies of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSeen {
    /// Its file.
    pub path: PathBuf,
    /// Its sequence number; none when it is missing or not what was written.
    pub sequence: Option<u64>,
    /// Bytes from its front that carry something.
    pub used: u64,
}

/// A store as its manifest says it is.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The two copies.
    pub slots: [SlotSeen; 2],
    /// Every write up to this index is in the tables, none after.
    pub applied: u64,
    /// No file has this number yet, or a higher one.
    pub next_file: u64,
    /// The tables of each level: newest first in level 0, ascending in the others.
    pub levels: Vec<Vec<TableMeta>>,
    /// Files in the directory that nothing names: name and length.
    pub unnamed: Vec<(String, u64)>,
    dir: PathBuf,
}

/// What a walk over tables came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Tables.
    pub tables: u64,
    /// Blocks whose checksum was right: data, partitions and tops.
    pub blocks: u64,
    /// Entries, tombstones among them.
    pub entries: u64,
    /// Entries that say that a key is gone.
    pub tombstones: u64,
    /// Bytes of the tables' files.
    pub bytes: u64,
    /// The greatest revision of an entry.
    pub revision_max: u64,
}

/// Reads both slots of the manifest in `dir` and compares them. None when neither can be read, or
/// when there is no store; `must_exist` says that the latter is damage.
pub fn inspect(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    identity: u64,
    must_exist: bool,
    findings: &mut Findings,
) -> Option<Inspection> {
    let mut seen = [0, 1].map(|slot| {
        let path = slot_path(dir, slot);
        (SlotSeen { path, sequence: None, used: 0 }, None)
    });
    let mut why: [Option<&'static str>; 2] = [None; 2];
    for (slot, (about, state)) in seen.iter_mut().enumerate() {
        match manifest::read_slot(disk.as_ref(), dir, identity, slot, Open::Read, &mut None) {
            Ok(Slot::Missing) => why[slot] = Some(MISSING),
            Ok(Slot::Bad(Malformed(what))) => why[slot] = Some(what),
            Ok(Slot::Good(sequence, found)) => {
                about.sequence = Some(sequence);
                about.used = manifest::used_bytes(&found, identity, slot, sequence);
                *state = Some(found);
            }
            Err(e) => report(findings, e),
        }
    }
    let names = match disk.list(dir) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => return None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            findings.problem(dir, 0, "the store's directory is missing");
            return None;
        }
        Err(e) => {
            findings.problem(dir, 0, format!("cannot list it: {e}"));
            return None;
        }
    };
    if names.is_empty() && !must_exist {
        return None;
    }
    let [(first, a), (second, b)] = seen;
    let any = a.is_some() || b.is_some();
    // The making of the first slot was cut off, when nothing else was there.
    let virgin = why[1] == Some(MISSING) && !names.iter().any(|name| table_number(name).is_some());
    if !any && !must_exist && virgin {
        findings.note(&first.path, 0, "the very first start was cut off");
        return None;
    }
    for (slot, what) in [&first, &second].into_iter().zip(why) {
        match what {
            Some(what) if any => {
                let what = format!("{what}; the other slot is whole, and the next start copies it");
                findings.healed(&slot.path, 0, what);
            }
            Some(what) => findings.problem(&slot.path, 0, what),
            None => {}
        }
    }
    let better = first.sequence >= second.sequence;
    if let (Some(a), Some(b)) = (&a, &b) {
        if first.sequence == second.sequence && a != b {
            let what = "both slots have the same sequence number and say different things";
            findings.problem(&second.path, 0, what);
        } else if first.sequence != second.sequence {
            let older = if better { &second } else { &first };
            let what = "the slot is older than the other: a write was cut off between the two, and \
                        the next start copies the newer one";
            findings.note(&older.path, 0, what);
        }
    }
    let chosen = if better { a.or(b) } else { b.or(a) };
    let State { applied, next_file, levels, .. } = *chosen?;
    let mut inspection = Inspection {
        slots: [first, second],
        applied,
        next_file,
        levels: levels.into(),
        unnamed: Vec::new(),
        dir: dir.to_path_buf(),
    };
    inspection.check_levels(findings);
    inspection.find_unnamed(disk.as_ref(), names, findings);
    Some(inspection)
}

impl Inspection {
    /// Where the store is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tables, level by level.
    pub fn tables(&self) -> impl Iterator<Item = &TableMeta> {
        self.levels.iter().flatten()
    }

    /// The slot that counts.
    fn manifest(&self) -> &Path {
        let [a, b] = &self.slots;
        if a.sequence >= b.sequence { &a.path } else { &b.path }
    }

    /// What the manifest says must fit together by itself.
    fn check_levels(&self, findings: &mut Findings) {
        let mut numbers = BTreeSet::new();
        let mut wrong = |what: String| findings.problem(self.manifest(), 0, what);
        for table in self.tables() {
            let name = table_name(table.number);
            if !numbers.insert(table.number) {
                wrong(format!("{name} is named twice"));
            }
            if table.number >= self.next_file {
                wrong(format!("{name} has a number that is not given out yet"));
            }
        }
        for (level, tables) in self.levels.iter().enumerate() {
            for pair in tables.windows(2) {
                let [a, b] = pair else { continue };
                let names = (table_name(a.number), table_name(b.number));
                if level == 0 && a.number <= b.number {
                    wrong(format!(
                        "{} stands in front of {} in level 0, and is older",
                        names.0, names.1
                    ));
                } else if level > 0 && a.largest >= b.smallest {
                    let what = format!("{} and {} overlap in level {level}", names.0, names.1);
                    wrong(what);
                }
            }
        }
    }

    fn find_unnamed(&mut self, disk: &dyn Disk, names: Vec<String>, findings: &mut Findings) {
        let named: BTreeSet<u64> = self.tables().map(|table| table.number).collect();
        for name in names {
            let path = self.dir.join(&name);
            if self.slots.iter().any(|slot| slot.path == path) || name == RESERVE_FILE {
                continue;
            }
            let number = table_number(&name);
            if number.is_some_and(|number| named.contains(&number)) {
                continue;
            }
            let len = disk.open(&path, Open::Read).and_then(|file| file.len());
            let len = len.unwrap_or_default();
            let what = match number {
                Some(_) => "no manifest names it; the next start removes it",
                None => "no file of a store",
            };
            findings.note(&path, 0, format!("{what} ({len} bytes)"));
            self.unnamed.push((name, len));
        }
    }

    /// What the tables hold, to be read like an open store.
    ///
    /// # Errors
    /// As [`super::Engine::open`] for the first table that cannot be opened; the disk's.
    pub fn view(&self, disk: &Arc<dyn Disk>) -> Result<View, LsmError> {
        let shelf = shelf(disk);
        let mut version = Version { applied: self.applied, ..Version::default() };
        for (tables, metas) in version.levels.iter_mut().zip(&self.levels) {
            for meta in metas {
                let table = Table::open(&self.dir, meta.clone(), &shelf)?;
                Arc::make_mut(tables).push(Arc::new(table));
            }
        }
        Ok(View::of_tables(version, shelf))
    }

    /// Walks over every table from its first to its last byte. `progress` hears how many tables,
    /// and bytes of them, are done.
    pub fn walk(
        &self,
        disk: &Arc<dyn Disk>,
        findings: &mut Findings,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Walked {
        let mut walked = Walked::default();
        for meta in self.tables() {
            let (before, tables) = (walked.bytes, walked.tables);
            match Table::open(&self.dir, meta.clone(), &shelf(disk)) {
                Ok(table) => {
                    let path = self.dir.join(table_name(meta.number));
                    let mut walk = Walk::new(&table, &path, &mut walked, findings);
                    walk.run(&mut |bytes| progress(tables, before + bytes));
                }
                Err(e) => report(findings, e),
            }
            walked.tables = tables + 1;
            walked.bytes = before + meta.bytes;
            progress(walked.tables, walked.bytes);
        }
        walked
    }
}

/// A walk over one table.
struct Walk<'a> {
    table: &'a Table,
    path: &'a Path,
    walked: &'a mut Walked,
    findings: &'a mut Findings,
    /// Where the next piece must begin.
    at: u64,
    /// The key before, none in front of the first.
    last: Option<Vec<u8>>,
    /// Entries and tombstones so far.
    counts: (u64, u64),
    /// No block was left out.
    whole: bool,
}

impl<'a> Walk<'a> {
    fn new(
        table: &'a Table,
        path: &'a Path,
        walked: &'a mut Walked,
        findings: &'a mut Findings,
    ) -> Walk<'a> {
        Walk { table, path, walked, findings, at: 0, last: None, counts: (0, 0), whole: true }
    }

    fn problem(&mut self, offset: u64, what: &str) {
        self.findings.problem(self.path, offset, what);
    }

    fn run(&mut self, progress: &mut dyn FnMut(u64)) {
        let (meta, top_at) = (&self.table.meta, self.table.top_at);
        let top = Arc::clone(&self.table.top);
        self.walked.blocks += 1;
        let walk = each_handle(&top, |key, handle| {
            self.partition(key, handle);
            progress(self.at.min(meta.bytes));
        });
        if let Err(Malformed(what)) = walk {
            self.problem(top_at.offset, what);
            self.whole = false;
        }
        let footer = meta.bytes.saturating_sub(FOOTER_BYTES as u64);
        if self.whole && (self.at != top_at.offset || end_of(top_at) != footer) {
            self.problem(
                top_at.offset,
                "bytes in front of the top block or the footer are no block's",
            );
        }
        if self.whole && self.counts != (meta.entries, meta.tombstones) {
            let what = format!(
                "it holds {} entries, {} of them tombstones; the manifest says {} and {}",
                self.counts.0, self.counts.1, meta.entries, meta.tombstones
            );
            self.problem(0, &what);
        }
        if self.whole && self.last.as_ref() != Some(&meta.largest) {
            self.problem(0, "its last key is not the one that the manifest says");
        }
    }

    /// A partition and the data blocks that it names.
    fn partition(&mut self, key: &[u8], handle: Handle) {
        let block = match self.table.read(handle, Kind::Partition, &mut Through::Cache) {
            Ok(block) => block,
            Err(e) => return self.leave_out(key, handle, e),
        };
        self.walked.blocks += 1;
        let mut window = Through::Window(0, Vec::new());
        let walk = each_handle(&block, |key, handle| self.data(&block, key, handle, &mut window));
        if let Err(Malformed(what)) = walk {
            self.problem(handle.offset, what);
            self.whole = false;
        }
        self.follows(handle);
        self.ends_with(key, handle);
    }

    /// A data block under a partition.
    fn data(&mut self, partition: &Block, key: &[u8], handle: Handle, window: &mut Through) {
        self.follows(handle);
        let block = match self.table.read(handle, Kind::Data, window) {
            Ok(block) => block,
            Err(e) => return self.leave_out(key, handle, e),
        };
        self.walked.blocks += 1;
        let mut cursor = BlockCursor::new(block);
        let mut step = cursor.seek_first();
        while step.is_ok() && cursor.is_valid() {
            self.entry(partition, cursor.key(), cursor.item(), handle.offset);
            step = cursor.next();
        }
        if let Err(Malformed(what)) = step {
            self.problem(handle.offset, what);
            self.whole = false;
        }
        self.ends_with(key, handle);
    }

    fn entry(&mut self, partition: &Block, key: &[u8], item: Item<'_>, offset: u64) {
        self.walked.entries += 1;
        self.counts.0 += 1;
        match item {
            Item::Tombstone => {
                self.walked.tombstones += 1;
                self.counts.1 += 1;
            }
            Item::Put { revision, .. } => {
                self.walked.revision_max = self.walked.revision_max.max(revision);
            }
        }
        let meta = &self.table.meta;
        match &self.last {
            Some(last) if last.as_slice() >= key => self.problem(offset, "keys do not ascend"),
            None if self.whole && key != meta.smallest => {
                self.problem(offset, "its first key is not the one that the manifest says");
            }
            _ => {}
        }
        if key < meta.smallest.as_slice() || key > meta.largest.as_slice() {
            self.problem(offset, "a key lies outside of what the manifest says");
        }
        if !partition.may_contain(key_hash(key)) {
            self.problem(offset, "the filter denies a key that is there");
        }
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key);
    }

    /// A block begins where the one before ended.
    fn follows(&mut self, handle: Handle) {
        if self.at != handle.offset {
            self.problem(handle.offset, "the block does not begin where the one before ended");
        }
        self.at = end_of(handle);
    }

    /// The index names the last key of what it stands for.
    fn ends_with(&mut self, key: &[u8], handle: Handle) {
        if self.last.as_deref() != Some(key) {
            self.problem(handle.offset, "the block does not end with the key that the index says");
        }
    }

    /// Goes on behind a block that cannot be read, as if it had held its last key alone.
    fn leave_out(&mut self, key: &[u8], handle: Handle, error: LsmError) {
        report(self.findings, error);
        self.whole = false;
        self.at = end_of(handle);
        self.last = Some(key.to_vec());
    }
}

/// Where the checksum of a block ends.
fn end_of(handle: Handle) -> u64 {
    handle.offset.saturating_add((handle.len + CRC_BYTES) as u64)
}

/// Shows each entry of an index block: the last key of what it stands for, and where that lies.
fn each_handle(block: &Arc<Block>, mut show: impl FnMut(&[u8], Handle)) -> Result<(), Malformed> {
    let mut cursor = BlockCursor::new(Arc::clone(block));
    cursor.seek_first()?;
    while cursor.is_valid() {
        show(cursor.key(), cursor.handle()?);
        cursor.next()?;
    }
    Ok(())
}

/// What reading tables needs: nothing is kept.
pub(super) fn shelf(disk: &Arc<dyn Disk>) -> Arc<Shelf> {
    Arc::new(Shelf {
        cache: Cache::new(0),
        files: Files::new(Arc::clone(disk), OPEN_FILES),
        counters: Counters::default(),
        trash: Mutex::default(),
        bell: Bell::default(),
    })
}

/// An error is a problem of the file it names.
fn report(findings: &mut Findings, error: LsmError) {
    match error {
        LsmError::Io { path, offset, source } => {
            findings.problem(&path, offset, format!("cannot read it: {source}"));
        }
        LsmError::Damaged { path, offset, what } => findings.problem(&path, offset, what),
        LsmError::Rejected { .. } | LsmError::Failed => {
            findings.problem(Path::new(""), 0, error.to_string());
        }
    }
}

//! Tables: immutable sorted files, written once from front to back and read by position.
//!
//! A table is data blocks, an index in two levels and a footer (docs/formats.md). The
//! lower level comes in *partitions*: the handles of a few hundred data blocks together with the
//! filter of their keys. Partitions go through the block cache like data, so that what stays in
//! memory for a table is its top block, about a thousandth of a thousandth of its data.
//! Left out: compression, since values are often compressed by their owners and a page of the
//! system's cache can then be served as it is.

use super::LsmError;
use super::bell::Bell;
use super::block::{BLOCK_BYTES_MAX, Block, BlockCursor, CRC_BYTES, Handle, Item, Seed};
use super::bytes::{Input, Malformed};
use super::cache::Cache;
use super::counters::Counters;
use super::error::lost;
use super::files::Files;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// First bytes of a footer.
pub(super) const MAGIC: [u8; 8] = *b"konttab\n";
/// Version of the format.
pub(super) const VERSION: u32 = 1;
/// Magic, version, top handle (offset, length), entries, tombstones, checksum.
pub(super) const FOOTER_BYTES: usize = 8 + 4 + 8 + 4 + 8 + 8 + 4;
/// What a compaction reads at once.
const AHEAD_BYTES: usize = 256 << 10;

/// What the manifest says of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMeta {
    /// Its file is called after it.
    pub number: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Entries, tombstones among them.
    pub entries: u64,
    /// Entries that say that a key is gone.
    pub tombstones: u64,
    /// Its first key, with the byte of its space in front.
    pub smallest: Vec<u8>,
    /// Its last key.
    pub largest: Vec<u8>,
    /// Identity of the store that wrote it, and the number that it has there: they seed its checksums. A table that
    /// came with a snapshot keeps them.
    pub written_by: u64,
    /// See `written_by`.
    pub written_as: u64,
}

impl TableMeta {
    fn seed(&self) -> Seed {
        Seed { identity: self.written_by, number: self.written_as }
    }

    /// Whether a key of the table may lie in a closed range.
    pub(super) fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        self.smallest.as_slice() <= largest && smallest <= self.largest.as_slice()
    }
}

/// Name of a table's file.
pub(super) fn table_name(number: u64) -> String {
    format!("table-{number:08}")
}

/// The number in a table's name, or none for another file.
pub(super) fn table_number(name: &str) -> Option<u64> {
    let number: u64 = name.strip_prefix("table-")?.parse().ok()?;
    (table_name(number) == name).then_some(number)
}

/// What reading needs beside the tables.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) cache: Cache,
    pub(super) files: Files,
    pub(super) counters: Counters,
    /// Files that nobody reads any more and that no durable manifest names.
    pub(super) trash: Mutex<Vec<PathBuf>>,
    /// Rung when there is something to do in the background.
    pub(super) bell: Bell,
}

/// An open table. When it is doomed and the last version that names it goes, its file goes to the
/// trash. Once damage was met in it, it is not compacted and not given to others; blocks that are whole are served.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) meta: TableMeta,
    path: PathBuf,
    seed: Seed,
    pub(super) top: Arc<Block>,
    /// Where that lies.
    pub(super) top_at: Handle,
    shelf: Arc<Shelf>,
    doomed: AtomicBool,
    /// Where damage was met first, and what it was.
    damage: OnceLock<(u64, &'static str)>,
    given_up: AtomicBool,
    /// Its footer and its top block were read: what they lead to may be.
    opened: bool,
}

/// Whether a block is kept in the cache, or read through a window that moves over the file.
#[derive(Debug)]
pub(super) enum Through {
    Cache,
    Window(u64, Vec<u8>),
}

/// What a table knows of a key.
#[derive(Debug)]
pub(super) enum Lookup {
    Absent,
    Tombstone,
    Put { revision: u64, block: Arc<Block>, value: Range<usize> },
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Partition,
}

impl Table {
    /// Opens a table that the manifest names; its footer must agree.
    pub(super) fn open(dir: &Path, meta: TableMeta, shelf: &Arc<Shelf>) -> Result<Table, LsmError> {
        Table::open_file(dir.join(table_name(meta.number)), meta, shelf)
    }

    /// The same, wherever its file is.
    pub(super) fn open_file(
        path: PathBuf,
        meta: TableMeta,
        shelf: &Arc<Shelf>,
    ) -> Result<Table, LsmError> {
        let damaged = |offset, what| LsmError::damaged(&path, offset, what);
        let unread = |offset| {
            let path = &path;
            move |e| LsmError::read(path, offset, e)
        };
        let file = shelf.files.get(meta.number, &path).map_err(unread(0))?;
        if file.len().map_err(unread(0))? != meta.bytes {
            return Err(damaged(meta.bytes, "the file has another length than the manifest says"));
        }
        let at = meta.bytes.checked_sub(FOOTER_BYTES as u64);
        let at = at.ok_or_else(|| damaged(0, "the file is too short"))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, at).map_err(unread(at))?;
        let seed = meta.seed();
        let bad = |Malformed(what)| damaged(at, what);
        let (body, crc) = footer.split_at(FOOTER_BYTES - CRC_BYTES);
        if body[..8] != MAGIC || Input::new(crc, 0).u32().map_err(bad)? != seed.crc(at, body) {
            return Err(damaged(at, "the footer's checksum does not fit"));
        }
        let mut input = Input::new(body, 8);
        if input.u32().map_err(bad)? != VERSION {
            return Err(damaged(at, "the table's format is not known here"));
        }
        let handle =
            Handle { offset: input.u64().map_err(bad)?, len: input.u32().map_err(bad)? as usize };
        let counts = (input.u64().map_err(bad)?, input.u64().map_err(bad)?);
        if counts != (meta.entries, meta.tombstones) {
            return Err(damaged(at, "the footer counts other entries than the manifest"));
        }
        let empty = Block::new(vec![0; 4].into()).map_err(bad)?;
        let mut table = Table::closed(path, seed, meta, shelf, (empty, handle));
        table.top = table.read(handle, Kind::Data, &mut Through::Window(0, Vec::new()))?;
        table.opened = true;
        Ok(table)
    }

    /// As [`Table::open`]; a table that is damaged is one from which nothing is read.
    pub(super) fn open_or_quarantine(
        dir: &Path,
        meta: TableMeta,
        shelf: &Arc<Shelf>,
    ) -> Result<Table, LsmError> {
        match Table::open(dir, meta.clone(), shelf) {
            Err(LsmError::Damaged { path, offset, what }) => {
                let seed = meta.seed();
                let empty = Block::new(vec![0; 4].into());
                let empty = empty.map_err(|_| LsmError::damaged(&path, offset, what))?;
                let nowhere = Handle { offset: 0, len: 0 };
                let table = Table::closed(path, seed, meta, shelf, (empty, nowhere));
                let _ = table.damage.set((offset, what));
                Ok(table)
            }
            opened => opened,
        }
    }

    fn closed(
        path: PathBuf,
        seed: Seed,
        meta: TableMeta,
        shelf: &Arc<Shelf>,
        (top, top_at): (Block, Handle),
    ) -> Table {
        let (shelf, doomed) = (Arc::clone(shelf), AtomicBool::new(false));
        let (top, damage) = (Arc::new(top), OnceLock::new());
        let given_up = AtomicBool::new(false);
        let opened = false;
        Table { meta, path, seed, top, top_at, shelf, doomed, damage, given_up, opened }
    }

    /// Nothing is read from it any more, and its file may go: the path.
    pub(super) fn give_up(&self) -> &Path {
        self.given_up.store(true, Ordering::Release);
        self.damaged(0, Malformed("its room was needed to repair the store"));
        self.shelf.files.forget(self.meta.number);
        &self.path
    }

    /// Whether [`Table::give_up`] came.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Whether damage was met in it, and is there when all of it is read again.
    pub(super) fn is_still_damaged(&self) -> bool {
        self.damage.get().is_some() && (self.is_given_up() || self.walk().is_err())
    }

    /// The damage that was met in it, as the error of every further read.
    pub(super) fn damage(&self) -> Option<LsmError> {
        let &(offset, what) = self.damage.get()?;
        Some(LsmError::damaged(&self.path, offset, what))
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// As a whole: nothing of a damaged table is copied on.
    fn sound(&self) -> Result<(), LsmError> {
        self.damage().map_or(Ok(()), Err)
    }

    /// Block by block: each has its own checksum, and those that are whole are served though others are damaged.
    fn readable(&self) -> Result<(), LsmError> {
        if self.opened && !self.is_given_up() { Ok(()) } else { self.sound() }
    }

    /// From now on nothing durable names the file.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Damage was met: the table is quarantined.
    pub(super) fn damaged(&self, offset: u64, Malformed(what): Malformed) -> LsmError {
        let _ = self.damage.set((offset, what));
        LsmError::damaged(&self.path, offset, what)
    }

    /// Reads a block and checks it.
    pub(super) fn read(
        &self,
        handle: Handle,
        kind: Kind,
        through: &mut Through,
    ) -> Result<Arc<Block>, LsmError> {
        let counters = &self.shelf.counters;
        if matches!(through, Through::Cache) {
            if let Some(block) = self.shelf.cache.get(self.meta.number, handle.offset) {
                counters.cache_hits.add(1);
                return Ok(block);
            }
            counters.cache_misses.add(1);
        }
        let damaged = |what| self.damaged(handle.offset, Malformed(what));
        let len = handle.len + CRC_BYTES;
        let end = handle.offset.checked_add(len as u64);
        if handle.len > BLOCK_BYTES_MAX || end.is_none_or(|end| end > self.meta.bytes) {
            return Err(damaged("a block's handle lies outside of the file"));
        }
        let mut bytes = vec![0; len];
        match through {
            Through::Cache => {
                counters.block_reads.add(1);
                self.load(&mut bytes, handle.offset)?;
            }
            Through::Window(start, window) => {
                let inside = |start: u64, window: &[u8]| {
                    let from = usize::try_from(handle.offset.checked_sub(start)?).ok()?;
                    Some(from..from + len).filter(|range| range.end <= window.len())
                };
                if inside(*start, window).is_none() {
                    let room = (self.meta.bytes - handle.offset).min(AHEAD_BYTES as u64);
                    *start = handle.offset;
                    window.resize(len.max(room as usize), 0);
                    self.load(window, handle.offset)?;
                }
                if let Some(range) = inside(*start, window) {
                    bytes.copy_from_slice(&window[range]);
                }
            }
        }
        let crc = self.seed.crc(handle.offset, &bytes[..handle.len]);
        if bytes[handle.len..] != crc.to_le_bytes() {
            return Err(damaged("a block's checksum does not fit"));
        }
        bytes.truncate(handle.len);
        let block = match kind {
            Kind::Data => Block::new(bytes.into()),
            Kind::Partition => Block::partition(bytes.into()),
        };
        let block = Arc::new(block.map_err(|Malformed(what)| damaged(what))?);
        if matches!(through, Through::Cache) {
            self.shelf.cache.insert(self.meta.number, handle.offset, &block);
        }
        Ok(block)
    }

    /// Reads everything in the file again, footer and index too, and checks it.
    pub(super) fn check(&self) -> Result<(), LsmError> {
        self.sound()?;
        match self.walk() {
            Err(LsmError::Damaged { offset, what, .. }) => {
                Err(self.damaged(offset, Malformed(what)))
            }
            walked => walked,
        }
    }

    fn walk(&self) -> Result<(), LsmError> {
        let table = Table::open_file(self.path.clone(), self.meta.clone(), &self.shelf)?;
        let mut cursor = TableCursor::new(Arc::new(table), Start::End, false, true)?;
        while cursor.is_valid() {
            cursor.advance()?;
        }
        Ok(())
    }

    /// The file's bytes as they are.
    pub(super) fn fill(&self, bytes: &mut [u8], offset: u64) -> Result<(), LsmError> {
        self.sound()?;
        self.load(bytes, offset)
    }

    fn load(&self, bytes: &mut [u8], offset: u64) -> Result<(), LsmError> {
        let unread = |offset: u64, e: io::Error| match lost(&e) {
            Some(what) => self.damaged(offset, Malformed(what)),
            None => LsmError::io(&self.path, offset, e),
        };
        let file = self.shelf.files.get(self.meta.number, &self.path);
        let file = file.map_err(|e| unread(0, e))?;
        file.read_exact_at(bytes, offset).map_err(|e| unread(offset, e))
    }

    /// Looks a key up; `hash` is its [`key_hash`].
    pub(super) fn get(&self, key: &[u8], hash: u64) -> Result<Lookup, LsmError> {
        self.readable()?;
        let counters = &self.shelf.counters;
        counters.table_probes.add(1);
        let mut cursor = BlockCursor::new(Arc::clone(&self.top));
        let bad = |offset| move |malformed| self.damaged(offset, malformed);
        cursor.seek(key).map_err(bad(self.meta.bytes))?;
        for kind in [Kind::Partition, Kind::Data] {
            if !cursor.is_valid() {
                return Ok(Lookup::Absent);
            }
            let handle = cursor.handle().map_err(bad(self.meta.bytes))?;
            let block = self.read(handle, kind, &mut Through::Cache)?;
            if kind == Kind::Partition && !block.may_contain(hash) {
                counters.filter_skips.add(1);
                return Ok(Lookup::Absent);
            }
            cursor.reset(block);
            cursor.seek(key).map_err(bad(handle.offset))?;
        }
        if !cursor.is_valid() || cursor.key() != key {
            return Ok(Lookup::Absent);
        }
        Ok(match (cursor.item(), cursor.value_range()) {
            (Item::Put { revision, .. }, Some((block, value))) => {
                Lookup::Put { revision, block, value }
            }
            _ => Lookup::Tombstone,
        })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.shelf.files.forget(self.meta.number);
        if *self.doomed.get_mut() {
            let mut trash = self.shelf.trash.lock().unwrap_or_else(PoisonError::into_inner);
            trash.push(std::mem::take(&mut self.path));
            drop(trash);
            self.shelf.bell.ring();
        }
    }
}

/// A walk over a table in one direction.
#[derive(Debug)]
pub(super) struct TableCursor {
    table: Arc<Table>,
    reverse: bool,
    through: Through,
    top: BlockCursor,
    partition: Option<BlockCursor>,
    data: Option<BlockCursor>,
    /// Where the data block lies, for errors.
    offset: u64,
}

/// Where a walk begins: at a key, behind it (in the walk's direction), or at the end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'a> {
    At(&'a [u8]),
    Behind(&'a [u8]),
    End,
}

impl TableCursor {
    /// Begins a walk; `window` reads past the cache.
    pub(super) fn new(
        table: Arc<Table>,
        start: Start<'_>,
        reverse: bool,
        window: bool,
    ) -> Result<TableCursor, LsmError> {
        if window { table.sound() } else { table.readable() }?;
        let through = if window { Through::Window(0, Vec::new()) } else { Through::Cache };
        let top = BlockCursor::new(Arc::clone(&table.top));
        let mut cursor =
            TableCursor { table, reverse, through, top, partition: None, data: None, offset: 0 };
        let at = cursor.table.meta.bytes;
        place(&mut cursor.top, start, reverse, false).map_err(|m| cursor.table.damaged(at, m))?;
        if cursor.top.is_valid() {
            cursor.enter_partition(start)?;
            cursor.enter_data(start)?;
        }
        cursor.settle()?;
        Ok(cursor)
    }

    pub(super) fn is_valid(&self) -> bool {
        self.data.as_ref().is_some_and(BlockCursor::is_valid)
    }

    /// What it shows is not what the table should hold.
    pub(super) fn unsound(&self, what: &'static str) -> LsmError {
        self.table.damaged(self.offset, Malformed(what))
    }

    pub(super) fn key(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], BlockCursor::key)
    }

    pub(super) fn item(&self) -> Item<'_> {
        self.data.as_ref().map_or(Item::Tombstone, BlockCursor::item)
    }

    pub(super) fn advance(&mut self) -> Result<(), LsmError> {
        if let Some(data) = &mut self.data {
            step(data, self.reverse).map_err(|m| self.table.damaged(self.offset, m))?;
        }
        self.settle()
    }

    fn enter_partition(&mut self, start: Start<'_>) -> Result<(), LsmError> {
        let at = self.table.meta.bytes;
        let handle = self.top.handle().map_err(|m| self.table.damaged(at, m))?;
        let block = self.table.read(handle, Kind::Partition, &mut self.through)?;
        let partition = renew(&mut self.partition, block);
        place(partition, start, self.reverse, false)
            .map_err(|m| self.table.damaged(handle.offset, m))
    }

    fn enter_data(&mut self, start: Start<'_>) -> Result<(), LsmError> {
        let Some(partition) = self.partition.as_ref().filter(|p| p.is_valid()) else {
            return Ok(());
        };
        let handle = partition.handle().map_err(|m| self.table.damaged(self.offset, m))?;
        self.offset = handle.offset;
        let block = self.table.read(handle, Kind::Data, &mut self.through)?;
        let data = renew(&mut self.data, block);
        place(data, start, self.reverse, true).map_err(|m| self.table.damaged(handle.offset, m))
    }

    /// Goes on to the next block until there is an entry, or to the end of the table.
    fn settle(&mut self) -> Result<(), LsmError> {
        while !self.is_valid() && self.top.is_valid() {
            let (at, reverse) = (self.table.meta.bytes, self.reverse);
            if let Some(partition) = self.partition.as_mut().filter(|p| p.is_valid()) {
                step(partition, reverse).map_err(|m| self.table.damaged(self.offset, m))?;
            }
            if !self.partition.as_ref().is_some_and(BlockCursor::is_valid) {
                step(&mut self.top, reverse).map_err(|m| self.table.damaged(at, m))?;
                if !self.top.is_valid() {
                    return Ok(());
                }
                self.enter_partition(Start::End)?;
            }
            self.enter_data(Start::End)?;
        }
        Ok(())
    }
}

fn renew(slot: &mut Option<BlockCursor>, block: Arc<Block>) -> &mut BlockCursor {
    match slot {
        Some(cursor) => {
            cursor.reset(block);
            cursor
        }
        None => slot.insert(BlockCursor::new(block)),
    }
}

fn step(cursor: &mut BlockCursor, reverse: bool) -> Result<(), Malformed> {
    if reverse { cursor.prev() } else { cursor.next() }
}

/// Puts a cursor where a walk begins in its block. In an index (`leaf` not set) that is the first
/// entry at or behind the key, in both directions: an index entry stands for all keys up to it.
fn place(
    cursor: &mut BlockCursor,
    start: Start<'_>,
    reverse: bool,
    leaf: bool,
) -> Result<(), Malformed> {
    let (key, skip) = match start {
        Start::End if reverse => return cursor.seek_last(),
        Start::End => return cursor.seek_first(),
        Start::At(key) => (key, false),
        Start::Behind(key) => (key, true),
    };
    cursor.seek(key)?;
    if reverse {
        if !cursor.is_valid() {
            cursor.seek_last()
        } else if leaf && (cursor.key() > key || skip) {
            cursor.prev()
        } else {
            Ok(())
        }
    } else if leaf && skip && cursor.is_valid() && cursor.key() == key {
        cursor.next()
    } else {
        Ok(())
    }
}

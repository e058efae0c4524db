//! What can be read of a store that is damaged and not open.
//!
//! Every block that is whole is read. A key may lie in several tables, and the newest entry counts; when a newer table has
//! lost a range that the key is in, that entry may be what was lost, and the one that was found is *old, perhaps*. So a
//! deleted key may come back, and the caller is told which rows these are.

use super::LsmError;
use super::block::{BlockCursor, Item};
use super::bytes::Malformed;
use super::inspect::{Inspection, shelf};
use super::table::{Kind, Table, Through};
use crate::env::Disk;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

/// Keys that a table has lost: behind `after`, up to `through`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The table's file.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Why.
    pub what: String,
    /// The key in front of them with the byte of its space, none when they begin with the table's first.
    pub after: Option<Vec<u8>>,
    /// The last of them, with the byte of its space.
    pub through: Vec<u8>,
    /// Tables with a lower rank have newer entries.
    rank: usize,
    first: Vec<u8>,
}

impl Lost {
    /// Whether it may have held that key, which has the byte of its space in front.
    pub fn covers(&self, key: &[u8]) -> bool {
        let behind =
            self.after.as_deref().map_or(key >= self.first.as_slice(), |after| key > after);
        behind && key <= self.through.as_slice()
    }
}

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salvaged<'a> {
    /// Its key, with the byte of its space.
    pub key: &'a [u8],
    /// The write that stored it.
    pub revision: u64,
    /// Its value.
    pub value: &'a [u8],
    /// A newer entry of the key may be lost, a delete among them.
    pub perhaps_old: bool,
}

impl Inspection {
    /// Shows every row that can be read, in the order of keys, until the visitor breaks off, and gives what is lost, in
    /// no order.
    ///
    /// # Errors
    /// The disk's, but for bytes that it cannot read.
    pub fn salvage(
        &self,
        disk: &Arc<dyn Disk>,
        visit: &mut dyn FnMut(Salvaged<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Lost>, LsmError> {
        // What is lost is known before the first row is shown.
        let mut lost = Vec::new();
        for mut table in self.sound_rows(disk, &mut lost)? {
            while table.is_valid() {
                table.advance(&mut lost)?;
            }
        }
        let mut tables = self.sound_rows(disk, &mut Vec::new())?;
        let next = |tables: &[SoundRows], at: usize| Reverse((tables[at].key().to_vec(), at));
        let valid = (0..tables.len()).filter(|&at| tables[at].is_valid());
        let mut heap: BinaryHeap<_> = valid.map(|at| next(&tables, at)).collect();
        let mut before: Option<Vec<u8>> = None;
        while let Some(Reverse((key, at))) = heap.pop() {
            let table = &mut tables[at];
            if before.as_ref() != Some(&key) {
                if let Item::Put { revision, value } = table.item() {
                    let newer = |lost: &Lost| lost.rank < table.rank && lost.covers(&key);
                    let perhaps_old = lost.iter().any(newer);
                    if visit(Salvaged { key: &key, revision, value, perhaps_old }).is_break() {
                        break;
                    }
                }
                before = Some(key);
            }
            table.advance(&mut Vec::new())?;
            if table.is_valid() {
                heap.push(next(&tables, at));
            }
        }
        Ok(lost)
    }

    /// All tables, the newest first, each at its first row.
    fn sound_rows(
        &self,
        disk: &Arc<dyn Disk>,
        lost: &mut Vec<Lost>,
    ) -> Result<Vec<SoundRows>, LsmError> {
        let shelf = shelf(disk);
        let mut all = Vec::new();
        let mut rank = 0;
        for (level, metas) in self.levels.iter().enumerate() {
            for meta in metas {
                match Table::open(self.dir(), meta.clone(), &shelf) {
                    Ok(table) => all.push(SoundRows::new(Arc::new(table), rank, lost)?),
                    Err(LsmError::Damaged { path, offset, what }) => lost.push(Lost {
                        path,
                        offset,
                        what: what.to_owned(),
                        after: None,
                        through: meta.largest.clone(),
                        rank,
                        first: meta.smallest.clone(),
                    }),
                    Err(e) => return Err(e),
                }
                rank += usize::from(level == 0);
            }
            rank += usize::from(level > 0);
        }
        Ok(all)
    }
}

/// A walk over the rows of a table that can be read.
struct SoundRows {
    table: Arc<Table>,
    rank: usize,
    top: BlockCursor,
    partition: Option<BlockCursor>,
    data: Option<BlockCursor>,
    /// The last key that the index says lies in front of the next block.
    before: Option<Vec<u8>>,
}

impl SoundRows {
    fn new(table: Arc<Table>, rank: usize, lost: &mut Vec<Lost>) -> Result<SoundRows, LsmError> {
        let top = BlockCursor::new(Arc::clone(&table.top));
        let mut rows = SoundRows { table, rank, top, partition: None, data: None, before: None };
        if let Err(Malformed(what)) = rows.top.seek_first() {
            let at = rows.table.top_at.offset;
            let through = rows.table.meta.largest.clone();
            rows.lose(at, what, through, lost);
        }
        rows.settle(lost)?;
        Ok(rows)
    }

    fn is_valid(&self) -> bool {
        self.data.as_ref().is_some_and(BlockCursor::is_valid)
    }

    fn key(&self) -> &[u8] {
        self.data.as_ref().map_or(&[], BlockCursor::key)
    }

    fn item(&self) -> Item<'_> {
        self.data.as_ref().map_or(Item::Tombstone, BlockCursor::item)
    }

    fn advance(&mut self, lost: &mut Vec<Lost>) -> Result<(), LsmError> {
        let key = self.key().to_vec();
        if let Some(Err(Malformed(what))) = self.data.as_mut().map(BlockCursor::next) {
            // What the block has behind this key.
            let through = self.before.replace(key).unwrap_or_default();
            self.data = None;
            self.lose(0, what, through, lost);
        }
        self.settle(lost)
    }

    /// Goes on to the next block that can be read until there is a row, or to the end.
    fn settle(&mut self, lost: &mut Vec<Lost>) -> Result<(), LsmError> {
        while !self.is_valid() {
            let kind = match &self.partition {
                Some(partition) if partition.is_valid() => Kind::Data,
                _ if self.top.is_valid() => Kind::Partition,
                _ => return Ok(()),
            };
            let index = match (&mut self.partition, kind) {
                (Some(partition), Kind::Data) => partition,
                _ => &mut self.top,
            };
            let through = index.key().to_vec();
            let handle = index.handle();
            let stepped = index.next();
            let read = handle.map_err(|m| self.table.damaged(0, m)).and_then(|handle| {
                self.table.read(handle, kind, &mut Through::Window(0, Vec::new()))
            });
            let begun = read.and_then(|block| {
                let mut cursor = BlockCursor::new(block);
                cursor.seek_first().map_err(|m| self.table.damaged(0, m))?;
                Ok(cursor)
            });
            match (begun, kind) {
                (Ok(cursor), Kind::Data) => {
                    self.data = Some(cursor);
                    self.before = Some(through);
                }
                (Ok(cursor), Kind::Partition) => self.partition = Some(cursor),
                (Err(LsmError::Damaged { offset, what, .. }), _) => {
                    self.lose(offset, what, through, lost);
                }
                (Err(e), _) => return Err(e),
            }
            if let Err(Malformed(what)) = stepped {
                // The rest of this index.
                let through = self.table.meta.largest.clone();
                self.lose(0, what, through, lost);
                (self.partition, self.data) = (None, None);
                return Ok(());
            }
        }
        Ok(())
    }

    fn lose(&mut self, offset: u64, what: &str, through: Vec<u8>, lost: &mut Vec<Lost>) {
        lost.push(Lost {
            path: self.table.path().to_path_buf(),
            offset,
            what: what.to_owned(),
            after: self.before.replace(through.clone()),
            through,
            rank: self.rank,
            first: self.table.meta.smallest.clone(),
        });
    }
}

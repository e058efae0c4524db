//! Writes a table, from front to back; docs/formats.md, "Table", is the specification.

use super::LsmError;
use super::block::{BlockBuilder, Handle, Item, Seed, key_hash, put_filter};
use super::table::{MAGIC, TableMeta, VERSION, table_name};
use crate::env::{Disk, DiskFile, Open};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes gathered before the system is asked to write.
const WRITE_BYTES: u64 = 256 << 10;

/// How tables are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableOptions {
    pub(super) block_bytes: usize,
    pub(super) partition_bytes: usize,
    pub(super) sync_bytes: u64,
}

/// Writes a table. What it wrote before an error is an orphan that the next opening removes.
#[derive(Debug)]
pub(super) struct TableBuilder {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    seed: Seed,
    options: TableOptions,
    /// Not yet written, from `offset` on.
    buffer: Vec<u8>,
    offset: u64,
    unsynced: u64,
    data: BlockBuilder,
    partition: BlockBuilder,
    top: BlockBuilder,
    hashes: Vec<u64>,
    entries: u64,
    tombstones: u64,
    smallest: Vec<u8>,
    largest: Vec<u8>,
}

impl TableBuilder {
    pub(super) fn create(
        disk: &dyn Disk,
        dir: &Path,
        seed: Seed,
        options: TableOptions,
    ) -> Result<TableBuilder, LsmError> {
        let path = dir.join(table_name(seed.number));
        let file = disk.open(&path, Open::CreateNew).map_err(|e| LsmError::io(&path, 0, e))?;
        Ok(TableBuilder {
            file,
            path,
            seed,
            options,
            buffer: Vec::with_capacity(WRITE_BYTES as usize + options.block_bytes),
            offset: 0,
            unsynced: 0,
            data: BlockBuilder::default(),
            partition: BlockBuilder::default(),
            top: BlockBuilder::default(),
            hashes: Vec::new(),
            entries: 0,
            tombstones: 0,
            smallest: Vec::new(),
            largest: Vec::new(),
        })
    }

    /// Adds an entry; keys ascend.
    pub(super) fn add(&mut self, key: &[u8], item: Item<'_>) -> Result<(), LsmError> {
        if self.entries == 0 {
            self.smallest.extend(key);
        }
        self.entries += 1;
        self.tombstones += u64::from(item == Item::Tombstone);
        self.hashes.push(key_hash(key));
        self.data.add(key, item);
        if self.data.len() >= self.options.block_bytes {
            self.end_block()?;
        }
        Ok(())
    }

    /// The space of its first key.
    pub(super) fn space(&self) -> Option<u8> {
        self.smallest.first().copied()
    }

    /// Length of the file if it ended now, nearly.
    pub(super) fn bytes(&self) -> u64 {
        self.offset + (self.buffer.len() + self.data.len()) as u64
    }

    /// Ends the file and makes it durable (its name is for the caller to sync).
    pub(super) fn finish(mut self) -> Result<TableMeta, LsmError> {
        if !self.data.is_empty() {
            self.end_block()?;
        }
        if !self.partition.is_empty() {
            self.end_partition();
        }
        let top = append(&mut self.buffer, self.offset, self.seed, |out| self.top.finish(out));
        let at = self.offset + self.buffer.len() as u64;
        let start = self.buffer.len();
        let out = &mut self.buffer;
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(top.offset.to_le_bytes());
        out.extend((top.len as u32).to_le_bytes());
        out.extend(self.entries.to_le_bytes());
        out.extend(self.tombstones.to_le_bytes());
        let crc = self.seed.crc(at, &out[start..]);
        out.extend(crc.to_le_bytes());
        self.write()?;
        self.file.sync_all().map_err(|e| LsmError::io(&self.path, self.offset, e))?;
        Ok(TableMeta {
            number: self.seed.number,
            bytes: self.offset,
            entries: self.entries,
            tombstones: self.tombstones,
            smallest: self.smallest,
            largest: self.largest,
            written_by: self.seed.identity,
            written_as: self.seed.number,
        })
    }

    fn end_block(&mut self) -> Result<(), LsmError> {
        self.largest.clear();
        self.largest.extend(self.data.last());
        let handle = append(&mut self.buffer, self.offset, self.seed, |out| self.data.finish(out));
        self.partition.add(&self.largest, Item::Put { revision: 0, value: &handle.encode() });
        if self.partition.len() >= self.options.partition_bytes {
            self.end_partition();
        }
        if self.buffer.len() as u64 >= self.options.sync_bytes.min(WRITE_BYTES) {
            self.write()?;
            if self.unsynced >= self.options.sync_bytes {
                // In pieces: one sync of everything at the end would hold up the log's.
                self.file.sync_data().map_err(|e| LsmError::io(&self.path, self.offset, e))?;
                self.unsynced = 0;
            }
        }
        Ok(())
    }

    fn end_partition(&mut self) {
        let (partition, hashes) = (&mut self.partition, &mut self.hashes);
        let handle = append(&mut self.buffer, self.offset, self.seed, |out| {
            partition.finish(out);
            let start = out.len();
            put_filter(out, hashes);
            let len = (out.len() - start) as u32;
            out.extend(len.to_le_bytes());
        });
        hashes.clear();
        self.top.add(&self.largest, Item::Put { revision: 0, value: &handle.encode() });
    }

    fn write(&mut self) -> Result<(), LsmError> {
        self.file
            .write_all_at(&self.buffer, self.offset)
            .map_err(|e| LsmError::io(&self.path, self.offset, e))?;
        self.offset += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Appends a block and its checksum; `base` is where the buffer begins in the file.
fn append(out: &mut Vec<u8>, base: u64, seed: Seed, fill: impl FnOnce(&mut Vec<u8>)) -> Handle {
    let start = out.len();
    fill(out);
    let handle = Handle { offset: base + start as u64, len: out.len() - start };
    let crc = seed.crc(handle.offset, &out[start..]);
    out.extend(crc.to_le_bytes());
    handle
}

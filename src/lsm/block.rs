//! Blocks: sorted entries with prefix-compressed keys, restart points and a checksum; and the
//! filter that says which keys cannot be there.
//!
//! docs/formats.md, "Store", is the specification. No input or output here. A checksum is seeded
//! with store, file and offset, so that a good block at a wrong place is a bad one.

use super::bytes::{Input, Malformed, put_varint};
use std::ops::Range;
use std::sync::Arc;

/// A key is written whole after so many entries, or so many bytes: less costs space, more costs
/// search. The bytes count where values are large: each entry that is passed is memory far away.
const RESTART_ENTRIES: usize = 16;
const RESTART_BYTES: usize = 512;

/// A table's filter spends this on a key: one in a hundred absent keys gets past.
pub(super) const FILTER_BITS_PER_KEY: usize = 10;

/// Bits looked at for a key: the best for ten a key is 6.9.
const FILTER_PROBES: u32 = 7;

/// Checksum behind each block.
pub(super) const CRC_BYTES: usize = 4;

/// Nothing larger is a block: the largest value with room for its key.
pub(super) const BLOCK_BYTES_MAX: usize = 32 << 20;

/// Where something lies in a file: offset, and length without the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) offset: u64,
    pub(super) len: usize,
}

impl Handle {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10);
        put_varint(&mut out, self.offset);
        put_varint(&mut out, self.len as u64);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Handle, Malformed> {
        let mut input = Input::new(bytes, 0);
        let handle = Handle { offset: input.varint()?, len: input.length()? };
        if input.is_empty() { Ok(handle) } else { Err(Malformed("a handle is too long")) }
    }
}

/// Whose file a checksum belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed {
    pub(super) identity: u64,
    pub(super) number: u64,
}

impl Seed {
    /// The checksum of a piece that lies at an offset of this file.
    pub(super) fn crc(self, offset: u64, bytes: &[u8]) -> u32 {
        let mut place = [0; 24];
        place[..8].copy_from_slice(&self.identity.to_le_bytes());
        place[8..16].copy_from_slice(&self.number.to_le_bytes());
        place[16..].copy_from_slice(&offset.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&place);
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// What an entry says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// The key is gone; hides older entries.
    Tombstone,
    /// The key has this value.
    Put {
        /// The write that stored it.
        revision: u64,
        /// The value.
        value: &'a [u8],
    },
}

/// Collects the entries of one block, in ascending order.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    out: Vec<u8>,
    restarts: Vec<u32>,
    last: Vec<u8>,
    since: usize,
}

impl BlockBuilder {
    pub(super) fn add(&mut self, key: &[u8], item: Item<'_>) {
        debug_assert!(self.restarts.is_empty() || self.last.as_slice() < key);
        let far = |restart: &u32| self.out.len() - *restart as usize >= RESTART_BYTES;
        let due = self.since == RESTART_ENTRIES || self.restarts.last().is_none_or(far);
        let shared = if due {
            self.restarts.push(self.out.len() as u32);
            self.since = 0;
            0
        } else {
            self.last.iter().zip(key).take_while(|(a, b)| a == b).count()
        };
        self.since += 1;
        put_varint(&mut self.out, shared as u64);
        put_varint(&mut self.out, (key.len() - shared) as u64);
        match item {
            Item::Tombstone => {
                self.out.push(0);
                self.out.extend(&key[shared..]);
            }
            Item::Put { revision, value } => {
                put_varint(&mut self.out, value.len() as u64 + 1);
                put_varint(&mut self.out, revision);
                self.out.extend(&key[shared..]);
                self.out.extend(value);
            }
        }
        self.last.truncate(shared);
        self.last.extend(&key[shared..]);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.restarts.is_empty()
    }

    /// The last key added.
    pub(super) fn last(&self) -> &[u8] {
        &self.last
    }

    /// Length of the block as it is now.
    pub(super) fn len(&self) -> usize {
        self.out.len() + 4 * self.restarts.len() + 4
    }

    /// Appends the block to `out` and begins anew.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend(&self.out);
        for restart in &self.restarts {
            out.extend(restart.to_le_bytes());
        }
        out.extend((self.restarts.len() as u32).to_le_bytes());
        self.out.clear();
        self.restarts.clear();
        self.last.clear();
        self.since = 0;
    }
}

/// A block in memory whose checksum was right.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Box<[u8]>,
    /// Where the restart offsets begin: entries end here.
    entries_end: usize,
    restarts: usize,
    filter: Range<usize>,
}

impl Block {
    /// A block of entries.
    pub(super) fn new(bytes: Box<[u8]>) -> Result<Block, Malformed> {
        let end = bytes.len();
        Block::parse(bytes, end, end..end)
    }

    /// A block of entries with a filter behind: a partition of an index.
    pub(super) fn partition(bytes: Box<[u8]>) -> Result<Block, Malformed> {
        const SHORT: Malformed = Malformed("a partition is too short for its filter");
        let end = bytes.len().checked_sub(4).ok_or(SHORT)?;
        let len = Input::new(&bytes, end).u32()? as usize;
        let start = end.checked_sub(len).ok_or(SHORT)?;
        Block::parse(bytes, start, start..end)
    }

    fn parse(bytes: Box<[u8]>, end: usize, filter: Range<usize>) -> Result<Block, Malformed> {
        const SHORT: Malformed = Malformed("a block is too short for its restart points");
        let count_at = end.checked_sub(4).ok_or(SHORT)?;
        let restarts = Input::new(&bytes, count_at).u32()? as usize;
        let entries_end =
            restarts.checked_mul(4).and_then(|len| count_at.checked_sub(len)).ok_or(SHORT)?;
        Ok(Block { bytes, entries_end, restarts, filter })
    }

    /// Bytes it takes in memory, nearly.
    pub(super) fn charge(&self) -> usize {
        self.bytes.len() + 96
    }

    /// Whether a key with this hash may lie under this partition.
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        filter_may_contain(&self.bytes[self.filter.clone()], hash)
    }

    pub(super) fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    fn restart(&self, i: usize) -> Result<usize, Malformed> {
        let at = Input::new(&self.bytes, self.entries_end + 4 * i).u32()? as usize;
        if at < self.entries_end { Ok(at) } else { Err(Malformed("a restart point lies outside")) }
    }
}

/// A place in a block. Invariant: when `valid`, `key` and the fields behind it are those of the
/// entry that begins at `at`.
#[derive(Debug)]
pub(super) struct BlockCursor {
    block: Arc<Block>,
    valid: bool,
    at: usize,
    next: usize,
    key: Vec<u8>,
    revision: u64,
    /// None for a tombstone.
    value: Option<Range<usize>>,
}

impl BlockCursor {
    pub(super) fn new(block: Arc<Block>) -> BlockCursor {
        BlockCursor {
            block,
            valid: false,
            at: 0,
            next: 0,
            key: Vec::new(),
            revision: 0,
            value: None,
        }
    }

    /// Turns to another block, keeping the memory.
    pub(super) fn reset(&mut self, block: Arc<Block>) {
        self.block = block;
        self.valid = false;
    }

    pub(super) fn is_valid(&self) -> bool {
        self.valid
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn item(&self) -> Item<'_> {
        match &self.value {
            None => Item::Tombstone,
            Some(range) => {
                Item::Put { revision: self.revision, value: &self.block.bytes[range.clone()] }
            }
        }
    }

    /// The block and where the value lies in it.
    pub(super) fn value_range(&self) -> Option<(Arc<Block>, Range<usize>)> {
        self.value.clone().map(|range| (Arc::clone(&self.block), range))
    }

    /// The handle that an index entry holds.
    pub(super) fn handle(&self) -> Result<Handle, Malformed> {
        match self.item() {
            Item::Put { value, .. } => Handle::decode(value),
            Item::Tombstone => Err(Malformed("an index entry without a handle")),
        }
    }

    /// Reads the entry at `at`; `self.key` is the key before it unless a restart point is there.
    fn read(&mut self, at: usize) -> Result<(), Malformed> {
        self.valid = false;
        if at >= self.block.entries_end {
            return Ok(());
        }
        let mut input = Input::new(&self.block.bytes[..self.block.entries_end], at);
        let shared = input.length()?;
        let unshared = input.length()?;
        let tag = input.length()?;
        self.revision = if tag == 0 { 0 } else { input.varint()? };
        if shared > self.key.len() {
            return Err(Malformed("a key shares more than there is"));
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(input.take(unshared)?);
        let start = input.at;
        self.value = match tag {
            0 => None,
            tag => {
                input.take(tag - 1)?;
                Some(start..input.at)
            }
        };
        self.at = at;
        self.next = input.at;
        self.valid = true;
        Ok(())
    }

    fn read_restart(&mut self, i: usize) -> Result<(), Malformed> {
        let at = self.block.restart(i)?;
        self.key.clear();
        self.read(at)
    }

    pub(super) fn seek_first(&mut self) -> Result<(), Malformed> {
        self.valid = false;
        if self.block.restarts == 0 { Ok(()) } else { self.read_restart(0) }
    }

    pub(super) fn seek_last(&mut self) -> Result<(), Malformed> {
        self.valid = false;
        if self.block.restarts == 0 {
            return Ok(());
        }
        self.read_restart(self.block.restarts - 1)?;
        while self.valid && self.next < self.block.entries_end {
            self.read(self.next)?;
        }
        Ok(())
    }

    /// Goes to the first entry at or behind `key`.
    pub(super) fn seek(&mut self, key: &[u8]) -> Result<(), Malformed> {
        self.valid = false;
        // The last restart point whose key lies before: what is sought begins at or behind it.
        let (mut low, mut high) = (0, self.block.restarts);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.block.restart(middle)?;
            let mut input = Input::new(&self.block.bytes[..self.block.entries_end], at);
            let _shared = input.length()?;
            let len = input.length()?;
            if input.length()? != 0 {
                input.varint()?;
            }
            if input.take(len)? < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if self.block.restarts == 0 {
            return Ok(());
        }
        self.read_restart(low.saturating_sub(1))?;
        while self.valid && self.key.as_slice() < key {
            self.read(self.next)?;
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Result<(), Malformed> {
        debug_assert!(self.valid);
        self.read(self.next)
    }

    /// Goes one entry back: on from the restart point in front.
    pub(super) fn prev(&mut self) -> Result<(), Malformed> {
        debug_assert!(self.valid);
        let end = self.at;
        let (mut low, mut high) = (0, self.block.restarts);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.block.restart(middle)? < end {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == 0 {
            self.valid = false;
            return Ok(());
        }
        self.read_restart(low - 1)?;
        while self.valid && self.next < end {
            self.read(self.next)?;
        }
        Ok(())
    }
}

/// The hash behind the filters: eight bytes at a time, multiplied and folded. Part of the format.
pub(super) fn key_hash(key: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = (key.len() as u64).wrapping_mul(MULTIPLIER);
    let mut chunks = key.chunks_exact(8);
    let mut mix = |word: u64| {
        hash = (hash ^ word).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    };
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        mix(u64::from_le_bytes(word));
    }
    let mut word = [0; 8];
    word[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(u64::from_le_bytes(word));
    mix(MULTIPLIER);
    hash
}

/// The bit of one probe: double hashing, the two halves of the hash being the two.
fn filter_bit(hash: u64, probe: u32, bits: u64) -> usize {
    let step = (hash >> 32) as u32 | 1;
    let at = (hash as u32).wrapping_add(step.wrapping_mul(probe));
    ((u64::from(at) * bits) >> 32) as usize
}

/// Appends the filter of these hashes.
pub(super) fn put_filter(out: &mut Vec<u8>, hashes: &[u64]) {
    let bytes = (hashes.len() * FILTER_BITS_PER_KEY).div_ceil(8).max(8);
    let start = out.len();
    out.resize(start + bytes, 0);
    let filter = &mut out[start..];
    for &hash in hashes {
        for probe in 0..FILTER_PROBES {
            let bit = filter_bit(hash, probe, bytes as u64 * 8);
            filter[bit / 8] |= 1 << (bit % 8);
        }
    }
}

fn filter_may_contain(filter: &[u8], hash: u64) -> bool {
    (0..FILTER_PROBES).all(|probe| {
        let bit = filter_bit(hash, probe, filter.len() as u64 * 8);
        filter.get(bit / 8).is_none_or(|byte| byte & (1 << (bit % 8)) != 0)
    })
}

//! The block cache: blocks of all tables, in a bounded number of bytes.
//!
//! Sharded, so that readers seldom meet; a shard is a table of slots that a clock hand goes round:
//! a block that was used since the hand's last visit stays. That is nearly least-recently-used and
//! needs no list to reorder on a hit. What is in use outlives its eviction by its `Arc`.

use super::block::Block;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shards: a few for each core of a large machine.
const SHARDS: usize = 16;

/// A table's number and an offset in it.
type Place = (u64, u64);

/// Hashes a [`Place`]; the places come from us, nobody can choose them.
#[derive(Debug, Default)]
struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[derive(Debug)]
struct Slot {
    place: Place,
    block: Arc<Block>,
    used: bool,
}

#[derive(Debug, Default)]
struct Shard {
    slots: Vec<Option<Slot>>,
    /// Slots that hold nothing.
    free: Vec<usize>,
    places: HashMap<Place, usize, BuildHasherDefault<PlaceHasher>>,
    hand: usize,
    bytes: usize,
}

/// A bounded cache of blocks. Invariant: no shard holds more than its part of the bound.
pub(super) struct Cache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("shard_bytes_max", &self.shard_bytes_max)
            .finish_non_exhaustive()
    }
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Cache {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Cache { shards, shard_bytes_max: bytes_max / SHARDS }
    }

    fn shard(&self, place: Place) -> MutexGuard<'_, Shard> {
        let mut hasher = PlaceHasher::default();
        hasher.write_u64(place.0);
        hasher.write_u64(place.1);
        let shard = (hasher.finish() >> 40) as usize % SHARDS;
        // A reader that panicked elsewhere under the lock has at worst lost a block.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, table: u64, offset: u64) -> Option<Arc<Block>> {
        let mut shard = self.shard((table, offset));
        let at = *shard.places.get(&(table, offset))?;
        let slot = shard.slots.get_mut(at)?.as_mut()?;
        slot.used = true;
        Some(Arc::clone(&slot.block))
    }

    /// Takes a block in, unless it is larger than a shard may be.
    pub(super) fn insert(&self, table: u64, offset: u64, block: &Arc<Block>) {
        let charge = block.charge();
        if charge > self.shard_bytes_max {
            return;
        }
        let place = (table, offset);
        let mut shard = self.shard(place);
        if shard.places.contains_key(&place) {
            return;
        }
        while shard.bytes + charge > self.shard_bytes_max {
            shard.evict();
        }
        shard.bytes += charge;
        // Where the hand was just now: a new block has a whole round to be used.
        let at = shard.free.pop().unwrap_or(shard.slots.len());
        if at == shard.slots.len() {
            shard.slots.push(None);
        }
        shard.slots[at] = Some(Slot { place, block: Arc::clone(block), used: false });
        shard.places.insert(place, at);
    }

    /// Bytes held now.
    pub(super) fn bytes(&self) -> usize {
        let lock =
            |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        self.shards.iter().map(lock).sum()
    }
}

impl Shard {
    /// Gives up the next block that was not used since the hand came by; there is one.
    fn evict(&mut self) {
        loop {
            let at = self.hand % self.slots.len();
            self.hand = at + 1;
            match &mut self.slots[at] {
                Some(slot) if slot.used => slot.used = false,
                slot => {
                    if let Some(gone) = slot.take() {
                        self.places.remove(&gone.place);
                        self.free.push(at);
                        self.bytes -= gone.block.charge();
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::{BlockBuilder, Item};
    use super::*;

    fn block(bytes: usize) -> Arc<Block> {
        let mut builder = BlockBuilder::default();
        builder.add(b"k", Item::Put { revision: 1, value: &vec![7; bytes] });
        let mut out = Vec::new();
        builder.finish(&mut out);
        Arc::new(Block::new(out.into()).unwrap())
    }

    #[test]
    fn a_cache_stays_within_its_bound_and_keeps_what_is_used() {
        // Ten thousand blocks pass through while one block is read again and again.
        let bound = 1 << 20;
        let cache = Cache::new(bound);
        cache.insert(0, 0, &block(1000));
        let mut hits = 0;
        for i in 1..10_000u64 {
            cache.insert(i, i * 7, &block(1000));
            hits += u64::from(cache.get(0, 0).is_some());
            assert!(cache.bytes() <= bound, "{} bytes", cache.bytes());
        }
        assert_eq!(hits, 9_999, "a block in constant use was evicted");
        assert!(cache.bytes() > bound / 2, "most of the room should be used");
        let there = (1..10_000u64).filter(|i| cache.get(*i, i * 7).is_some()).count();
        assert!((500..1000).contains(&there), "{there} blocks of a thousand bytes");
    }

    #[test]
    fn a_block_larger_than_a_shard_is_not_kept() {
        // One giant value must not push out everything else.
        let cache = Cache::new(1 << 16);
        cache.insert(1, 0, &block(1 << 16));
        assert!(cache.get(1, 0).is_none());
        assert_eq!(cache.bytes(), 0);
    }
}

//! Fingerprints: 128 bits in place of a state, and tables that keep each different thing once.
//!
//! Two different states are taken for one with the odds of a collision: for `n` states about
//! n^2 / 2^129, which is 10^-23 for a hundred million.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A fingerprint.
pub(super) type Print = u128;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): one to one, and every bit of the argument
/// moves about half of the result's.
fn mix(word: u64) -> u64 {
    let z = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The fingerprint of some words; `kind` tells apart what the same words mean in different places.
pub(super) fn print(kind: u64, words: &[u64]) -> Print {
    let (mut low, mut high) = (mix(kind + 1), mix(!kind));
    for &word in words.iter().chain([&(words.len() as u64)]) {
        low = mix(low ^ word);
        high = mix(high.rotate_left(23).wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    }
    Print::from(low) | Print::from(high) << 64
}

/// As many renamings are made use of: all of three nodes.
const RENAMINGS_MAX: usize = 6;

/// A fingerprint for each of [`renamings`], in their order; those behind them are 0.
pub(super) type Prints = [Print; RENAMINGS_MAX];

/// Every way to give the nodes `1..=n` each other's names, those of one class among themselves: in the
/// beginning they differ from all others. The first leaves them as they are. When there are too many,
/// those that leave node 1 its name: they are a group as well.
pub(super) fn renamings(n: u64, class: impl Fn(u64) -> u8) -> Vec<Vec<u64>> {
    let mut all = vec![vec![0]];
    for id in 1..=n {
        let longer = all.iter().flat_map(|names| {
            let like = (1..=n).filter(|&name| class(id) == class(name));
            let free = like.filter(|name| !names.contains(name));
            free.map(|name| [names.as_slice(), &[name]].concat())
        });
        all = longer.collect();
    }
    if all.len() > RENAMINGS_MAX {
        all.retain(|names| names[1] == 1);
    }
    assert!(all.len() <= RENAMINGS_MAX);
    all
}

/// A hasher for keys that are fingerprints or small: quick, and of no use against an adversary.
#[derive(Clone, Copy, Default)]
pub(super) struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = mix(self.0 ^ n);
    }

    fn write_u128(&mut self, n: u128) {
        self.0 = n as u64;
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
}

/// Makes the hashers of sets and maps.
pub(super) type MakeQuick = BuildHasherDefault<Quick>;

/// Things that are kept once each and named by a small number.
#[derive(Debug)]
pub(super) struct Table<T> {
    items: Vec<T>,
    numbers: HashMap<Print, u32, MakeQuick>,
}

impl<T> Table<T> {
    pub(super) fn new() -> Table<T> {
        Table { items: Vec::new(), numbers: HashMap::default() }
    }

    /// The number of the thing with that fingerprint; it is made when it is new.
    pub(super) fn number(&mut self, print: Print, make: impl FnOnce() -> T) -> u32 {
        *self.numbers.entry(print).or_insert_with(|| {
            self.items.push(make());
            (self.items.len() - 1) as u32
        })
    }

    pub(super) fn get(&self, number: u32) -> &T {
        &self.items[number as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }
}

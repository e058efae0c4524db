//! What the tests with real processes share: clusters, clients of each dialect, waiting.
//!
//! Nothing here waits for time to pass: it waits for something to happen, and fails when that takes
//! too long.

pub(crate) mod cluster;
pub(crate) mod hosts;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod mounted;
pub(crate) mod native;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod strace;
pub(crate) mod text;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that anything is waited for: far more than it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How often is looked whether it has happened.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Waits until `happened` gives something.
pub(crate) fn wait_for<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(it) = happened() {
            return it;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// All files below a directory.
pub(crate) fn contents(top: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![top.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// Numbers from a seed (xorshift64*).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// Says on standard error what a test did, or why it did not run.
pub(crate) fn say(test: &str, what: &str) {
    eprintln!("{test}: {what}");
}

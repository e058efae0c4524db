//! Room on a disk that holds little more than one store.
//!
//! Two things could hold a second one there. A damaged store is fetched again while the old one lies
//! beside it: table after table of that is given up as the repair needs its room, the damaged ones first.
//! From then on such a table is a damaged one whose file is missing, in this process and in later ones; it is
//! replaced with all others when the repair is installed. And a version that a backup or another node reads
//! ([`Export`](super::Export)) keeps tables that compactions have replaced: of these all exports together hold at most as
//! many bytes as the store has, or the latest of them, and none while the disk is full. Else the oldest of them ends,
//! and whoever reads it begins again with a newer one. The latest goes on to its end unless the disk is full.

use super::LsmError;
use super::engine::{Reader, Shared};
use super::version::Version;
use crate::env::{Disk, is_held};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Versions that exports read, the oldest first. Some have ended.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<Vec<Weak<Pin>>>);

/// A version that is held for an export, until the export ends or its room is needed.
#[derive(Debug)]
pub(super) struct Pin(Mutex<Option<Arc<Version>>>);

impl Pin {
    /// The version; none when its room was needed.
    pub(super) fn version(&self) -> Option<Arc<Version>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Pins {
    fn all(&self) -> MutexGuard<'_, Vec<Weak<Pin>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a version.
    pub(super) fn hold(&self, version: Arc<Version>) -> Arc<Pin> {
        let pin = Arc::new(Pin(Mutex::new(Some(version))));
        let mut all = self.all();
        all.retain(|pin| pin.strong_count() > 0);
        all.push(Arc::downgrade(&pin));
        pin
    }

    /// Ends the oldest until the others hold no more bytes of tables that the store does not have any more than it has
    /// itself, or the latest of them; on a full disk until they hold none. How many were ended.
    fn bound(&self, now: &Version, full: bool) -> u64 {
        let mut all = self.all();
        let mut ended = 0;
        let sum = |version: &Version| version.tables().map(|t| t.meta.bytes).sum::<u64>();
        let latest = all.iter().filter_map(|pin| pin.upgrade()?.version()).next_back();
        let latest_bytes = latest.map_or(0, |version| sum(&version));
        let bytes_max = if full { 0 } else { sum(now).max(latest_bytes) };
        let has: BTreeSet<u64> = now.tables().map(|t| t.meta.number).collect();
        loop {
            let held = |pin: &Weak<Pin>| pin.upgrade().and_then(|pin| Some((pin.version()?, pin)));
            let mut beyond = BTreeMap::new();
            let mut oldest = None;
            for (version, pin) in all.iter().filter_map(held) {
                let before = beyond.len();
                let gone = version.tables().filter(|t| !has.contains(&t.meta.number));
                beyond.extend(gone.map(|t| (t.meta.number, t.meta.bytes)));
                if beyond.len() > before {
                    oldest = oldest.or(Some(pin));
                }
            }
            let Some(pin) = oldest.filter(|_| beyond.values().sum::<u64>() > bytes_max) else {
                all.retain(|pin| held(pin).is_some());
                return ended;
            };
            let version = pin.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(version);
            ended += 1;
        }
    }
}

impl Shared {
    /// Ends exports that hold too much of what the store does not have any more.
    pub(super) fn bound_exports(&self) {
        if self.pins.all().is_empty() {
            return;
        }
        let version = Arc::clone(&self.sources().version);
        let full = self.full.load(Ordering::Acquire);
        let ended = self.pins.bound(&version, full);
        self.shelf.counters.exports_ended.add(ended);
    }
}

impl Reader {
    /// Gives a table of a damaged store up for the room that its file takes: a damaged one if there is one, else the
    /// largest. None when nothing is left, or when no damage is there now: what could not be read once is read again
    /// before. The file, and its bytes.
    ///
    /// # Errors
    /// The disk's.
    pub fn give_up_table(&self, disk: &dyn Disk) -> Result<Option<(PathBuf, u64)>, LsmError> {
        let version = Arc::clone(&self.shared.sources().version);
        if !version.tables().any(|table| table.is_still_damaged()) {
            return Ok(None);
        }
        let left = version.tables().filter(|table| !table.is_given_up());
        let Some(table) = left.max_by_key(|t| (t.damage().is_some(), t.meta.bytes)) else {
            return Ok(None);
        };
        let path = table.give_up().to_path_buf();
        match disk.remove(&path) {
            // The worker removes it when nobody else holds it any more.
            Err(e) if is_held(&e) => {
                let trash = &self.shared.shelf.trash;
                trash.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(LsmError::io(&path, 0, e)),
            _ => {}
        }
        self.shared.shelf.counters.given_up.add(1);
        Ok(Some((path, table.meta.bytes)))
    }
}

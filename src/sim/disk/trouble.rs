//! What a disk is made to do to those who use it: operations that fail, a disk that is full, and time that they take.

use super::{SECTOR_BYTES, SimDisk, State};
use crate::sim::moments::FileKind;
use std::collections::BTreeMap;

/// Removes that fail behind the first one, and opens that wait, at most.
const ROW_MAX: u64 = 6;
/// How long an open waits for a descriptor, in microseconds: shortest and longest.
const WAIT_US: (u64, u64) = (10_000, 400_000);

/// An operation that is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trouble {
    /// A read fails (EIO).
    Read,
    /// A write fails (EIO).
    Write,
    /// A sync fails (EIO).
    Sync,
    /// No space is left for a write that makes a file longer, or for a new file.
    Full,
    /// No space is left for what a file has become longer by since its last sync (delayed allocation): the sync fails.
    FullSync,
    /// Somebody else holds a file: it cannot be removed, nor the next few after it.
    Held,
    /// No descriptor is left for the next few opens. `env` waits for one, so that they take long.
    Descriptors,
}

impl SimDisk {
    /// The next operation of that kind fails.
    pub fn trouble(&self, trouble: Option<Trouble>) {
        let mut state = self.state();
        state.trouble = trouble;
        if trouble.is_none() {
            (state.held, state.starved) = (0, 0);
        }
    }

    /// All files together may become longer by so many bytes; none for any number.
    pub fn limit(&self, room: Option<usize>) {
        let mut state = self.state();
        let used = state.used();
        state.capacity = room.map(|room| used + room);
    }

    /// Whether a later operation is to fail, or none will be done at all.
    pub fn has_trouble(&self) -> bool {
        let state = self.state();
        state.dark || state.trouble.is_some()
    }

    /// How often each trouble struck so far.
    pub fn struck(&self) -> BTreeMap<Trouble, u64> {
        self.state().struck.clone()
    }

    /// The trouble that struck last.
    pub fn last_struck(&self) -> Option<Trouble> {
        self.state().last_struck
    }

    /// Of what kinds the files were whose reads failed in this life and would not again: seldom more than one. (Seed
    /// 820100426: the second failure hid that a table was quarantined for the first.)
    pub fn reads_struck(&self) -> Vec<FileKind> {
        self.state().read_struck.clone()
    }

    /// Whether a read failed in this life of what the store keeps, or the next one is to.
    pub fn may_be_unread(&self) -> bool {
        let state = self.state();
        state.trouble == Some(Trouble::Read) || state.read_struck.contains(&FileKind::Table)
    }

    /// What the store keeps was written anew.
    pub fn forget_read_struck(&self) {
        self.state().read_struck = Vec::new();
    }

    /// Its bandwidth from now on, in bytes a second; none for any.
    pub fn pace(&self, bytes_a_second: Option<u64>) {
        self.state().bytes_a_second = bytes_a_second;
    }

    /// How long the operations since the last call have taken, in microseconds.
    pub fn take_busy_us(&self) -> u64 {
        std::mem::take(&mut self.state().busy_us)
    }

    /// Looks at the disk as no process does: it takes no time there.
    pub fn beside<T>(&self, look: impl FnOnce() -> T) -> T {
        let busy_us = self.state().busy_us;
        let seen = look();
        self.state().busy_us = busy_us;
        seen
    }

    /// Counts of what went on beside the troubles, by name.
    pub fn seen(&self) -> BTreeMap<&'static str, u64> {
        self.state().seen.clone()
    }
}

impl State {
    /// Whether an operation fails that may have this trouble.
    pub(super) fn strikes(&mut self, trouble: Trouble) -> bool {
        let strikes = self.trouble == Some(trouble);
        if strikes {
            self.trouble = None;
            self.count(trouble);
        }
        strikes
    }

    pub(super) fn count(&mut self, trouble: Trouble) {
        self.last_struck = Some(trouble);
        *self.struck.entry(trouble).or_default() += 1;
    }

    pub(super) fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// So many bytes are read or written.
    pub(super) fn moves(&mut self, bytes: usize) {
        if let Some(rate) = self.bytes_a_second {
            self.busy_us += (bytes as u64 * 1_000_000).div_ceil(rate);
            self.saw("operations on a disk of little bandwidth");
        }
    }

    /// Whether a file cannot be removed now.
    pub(super) fn is_held(&mut self) -> bool {
        if self.strikes(Trouble::Held) {
            self.held = self.dice.below(ROW_MAX);
            return true;
        }
        let held = self.held > 0;
        if held {
            self.held -= 1;
            self.count(Trouble::Held);
        }
        held
    }

    /// A file is opened: with no descriptor left that takes a while.
    pub(super) fn takes_descriptor(&mut self) {
        if self.strikes(Trouble::Descriptors) {
            self.starved = self.dice.between(1, ROW_MAX);
        } else if self.starved > 0 {
            self.count(Trouble::Descriptors);
        }
        if self.starved > 0 {
            self.starved -= 1;
            self.busy_us += self.dice.log_between(WAIT_US.0, WAIT_US.1);
        }
    }

    /// How much is done all the same of a write to `at` that fails, and of which so many bytes could be done: it ends with a
    /// sector.
    pub(super) fn part(&mut self, at: usize, bytes: usize) -> usize {
        let end = at + self.dice.below(bytes as u64 + 1) as usize;
        let part = (end / SECTOR_BYTES * SECTOR_BYTES).saturating_sub(at);
        if part > 0 && part < bytes {
            self.saw("writes done in part");
        }
        part
    }
}

//! Saves what can be read of a data directory whose store is damaged: the rows of the tables, and what the log has behind
//! them, which is applied here once more, in memory.
//!
//! A row is *perhaps old* when a newer entry of its key may be among what is lost; and so is one that a write of the log
//! has made out of such a row. Left out: sessions and configurations, which the new cluster has of its own.

use super::applier::apply_entries;
use super::verify::check_identity;
use crate::env::{Disk, Findings};
use crate::kv::codec::OpRef;
use crate::kv::salvage::Salvaged;
use crate::kv::{
    Change, CommandRef, Machine, MemoryStore, Reader as _, STORE_DIR, Scan, Space, Store as _,
    StoreError, View as _, split_stored_key, store_inspect,
};
use crate::raft::{Entry, Index, Payload};
use crate::wal::LOG_DIR;
use crate::wal::inspect::inspect as inspect_log;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// A row that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRow<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// See the module.
    pub perhaps_old: bool,
}

/// A row that the log goes on from: space, key, revision, value.
type BaseRow = (Space, Vec<u8>, u64, Vec<u8>);

/// What was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveReport {
    /// What is damaged, and what is worth a word.
    pub findings: Findings,
    /// Rows that are the latest, up to `index`.
    pub rows: u64,
    /// Rows that are perhaps old.
    pub old_rows: u64,
    /// Index of the last entry of the log that is in them.
    pub index: Index,
}

/// Shows every row that can be read, in no order. No byte of the directory is changed.
///
/// # Errors
/// The disk's, but for bytes that it cannot read; those of `show`.
pub fn save<E: From<StoreError>>(
    disk: &Arc<dyn Disk>,
    data: &Path,
    show: &mut dyn FnMut(SavedRow<'_>) -> Result<(), E>,
) -> Result<SaveReport, E> {
    let mut report = SaveReport::default();
    let findings = &mut report.findings;
    // Without it no checksum of anything can be checked.
    let Some(own) = check_identity(disk.as_ref(), data, findings) else { return Ok(report) };
    let (identity, created) = (own.identity, own.created);
    let store = store_inspect::inspect(disk, &data.join(STORE_DIR), identity, created, findings);
    let applied = store.as_ref().map_or(0, |store| store.applied);
    let mut tail = BTreeMap::new();
    let log = data.join(LOG_DIR);
    inspect_log(disk.as_ref(), &log, identity, created, findings, &mut |placed, _| {
        // What was written again stands in the place of what it replaced.
        tail.split_off(&placed.entry.index);
        if placed.entry.index > applied {
            tail.insert(placed.entry.index, placed.entry);
        }
    });
    let first = tail.keys().next().copied();
    if let Some(first) = first.filter(|first| *first > applied + 1) {
        let what =
            format!("it begins at entry {first}, the tables end at {applied}: it is left out");
        findings.problem(&log, 0, what);
        tail.clear();
    }
    let entries: Vec<Entry> = (applied + 1..).map_while(|index| tail.remove(&index)).collect();
    report.index = applied + entries.len() as Index;
    let mut touched: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    for key in entries.iter().flat_map(keys_of) {
        touched.insert(key, false);
    }

    // What the log goes on from: all that it touches, and what the state machine remembers.
    let mut base: Vec<BaseRow> = Vec::new();
    let mut lost = Vec::new();
    if let Some(store) = &store {
        let SaveReport { rows, old_rows, .. } = &mut report;
        let mut shown = Ok(());
        let salvaged = store.salvage(disk, &mut |row: Salvaged<'_>| {
            let (space, key) = split_stored_key(row.key);
            let space = space.unwrap_or(Space::Meta);
            let is_touched = touched.contains_key(key);
            if space == Space::Meta || is_touched {
                if space == Space::User {
                    touched.insert(key.to_vec(), row.perhaps_old);
                }
                base.push((space, key.to_vec(), row.revision, row.value.to_vec()));
                return ControlFlow::Continue(());
            }
            *if row.perhaps_old { &mut *old_rows } else { &mut *rows } += 1;
            shown = show(SavedRow { key, value: row.value, perhaps_old: row.perhaps_old });
            if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        lost = salvaged.map_err(StoreError::from)?;
        shown?;
    }
    // Then nobody can tell which writes of the log came twice: those with a stamp are left out.
    let sessions_lost =
        lost.iter().any(|lost| split_stored_key(&lost.through).0 == Some(Space::Meta));
    base.retain(|(space, ..)| *space == Space::User || !sessions_lost);
    for lost in &lost {
        let text = |key: &[u8]| split_stored_key(key).1.escape_ascii().to_string();
        let from = match &lost.after {
            Some(after) => format!("behind {}", text(after)),
            None => "from its first".to_owned(),
        };
        let what = format!("{}: lost are keys {from} up to {}", lost.what, text(&lost.through));
        report.findings.problem(&lost.path, lost.offset, what);
    }
    // A key that is not there may be lost.
    let is_lost = |key: &[u8]| {
        let stored = [&[1], key].concat();
        lost.iter().any(|lost| lost.covers(&stored))
    };
    let users = base.iter().filter(|(space, ..)| *space == Space::User);
    let found: BTreeSet<&[u8]> = users.map(|(_, key, ..)| key.as_slice()).collect();
    for (key, unsure) in &mut touched {
        *unsure |= !found.contains(key.as_slice()) && is_lost(key);
    }
    for entry in &entries {
        follow(entry, sessions_lost, &mut touched);
    }
    go_on(applied, &base, &entries, &touched, &mut report, show)?;
    Ok(report)
}

/// Applies the log, and shows the keys that it touches.
fn go_on<E: From<StoreError>>(
    applied: Index,
    base: &[BaseRow],
    entries: &[Entry],
    touched: &BTreeMap<Vec<u8>, bool>,
    report: &mut SaveReport,
    show: &mut dyn FnMut(SavedRow<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut store = MemoryStore::default();
    let changes = base.iter().map(|(space, key, revision, value)| Change {
        space: *space,
        key: Cow::Borrowed(key.as_slice()),
        value: Some((*revision, Cow::Borrowed(value.as_slice()))),
    });
    if applied > 0 {
        store.write(applied, changes.collect())?;
    }
    let mut machine = Machine::open(store)?;
    apply_entries(&mut machine, entries)?;
    let mut shown = Ok(());
    machine.reader().view().scan(&Scan::all(Space::User), &mut |row| {
        let perhaps_old = touched.get(row.key).copied().unwrap_or(false);
        *if perhaps_old { &mut report.old_rows } else { &mut report.rows } += 1;
        shown = show(SavedRow { key: row.key, value: row.value, perhaps_old });
        if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    shown
}

/// What an entry makes of which keys are unsure: a write that looks at one makes all that it writes unsure, and a plain put
/// or a delete makes its key sure. So does none with a stamp when the sessions are lost.
fn follow(entry: &Entry, sessions_lost: bool, unsure: &mut BTreeMap<Vec<u8>, bool>) {
    let Payload::Command(bytes) = &entry.payload else { return };
    let Ok(CommandRef::Write(write)) = CommandRef::decode(bytes) else { return };
    let is = |unsure: &BTreeMap<Vec<u8>, bool>, key: &[u8]| unsure.get(key) == Some(&true);
    let mut doubt = sessions_lost && write.stamp.is_some();
    doubt |= write.conditions.iter().any(|condition| is(unsure, condition.key));
    let mut written = BTreeSet::new();
    for op in &write.ops {
        match *op {
            OpRef::Put { key, .. } | OpRef::Delete { key } => drop(written.insert(key)),
            // It may refuse all of the write.
            OpRef::Increment { key, .. } => {
                doubt |= is(unsure, key) && !written.contains(key);
                written.insert(key);
            }
            OpRef::Get { .. } => {}
        }
    }
    for key in written {
        unsure.insert(key.to_vec(), doubt);
    }
}

/// The keys that an entry reads or writes.
fn keys_of(entry: &Entry) -> Vec<Vec<u8>> {
    let Payload::Command(bytes) = &entry.payload else { return Vec::new() };
    let Ok(CommandRef::Write(write)) = CommandRef::decode(bytes) else { return Vec::new() };
    let conditions = write.conditions.iter().map(|condition| condition.key);
    let ops = write.ops.iter().map(|op| match *op {
        OpRef::Put { key, .. }
        | OpRef::Delete { key }
        | OpRef::Increment { key, .. }
        | OpRef::Get { key } => key,
    });
    conditions.chain(ops).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
#[path = "tests/salvage.rs"]
mod tests;

//! The in-memory store: an ordered map for each space, behind one lock.
//!
//! It is the model that any other engine is compared with, and enough for data that fits memory;
//! after a restart the whole log is replayed into it. The write lock is held once per batch; a view
//! holds the read lock, so a reader keeps the applier waiting for at most one bounded page (a
//! count and a fingerprint scan everything: the one case in which a reader is felt). Nothing here
//! fails. Left out: durability, and views that outlive a write, which would need every old value.

use super::store::{Change, Reader, Row, Scan, Space, Store, StoreError, View};
use super::types::{Found, Revision};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// An ordered map in memory. Empty at applied index 0 when made.
#[derive(Debug, Default)]
pub struct MemoryStore {
    shared: Arc<RwLock<Tables>>,
}

/// Reads a [`MemoryStore`].
#[derive(Clone, Debug)]
pub struct MemoryReader {
    shared: Arc<RwLock<Tables>>,
}

/// One cut of a [`MemoryStore`]; the writer waits while it lives. A thread holds one at a time: a
/// second one would wait for a writer that waits for the first.
#[derive(Debug)]
pub struct MemoryView<'a> {
    tables: RwLockReadGuard<'a, Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    applied: Revision,
    meta: Table,
    user: Table,
}

type Table = BTreeMap<Box<[u8]>, Cell>;

#[derive(Debug)]
struct Cell {
    revision: Revision,
    value: Box<[u8]>,
}

impl Tables {
    fn table(&self, space: Space) -> &Table {
        match space {
            Space::Meta => &self.meta,
            Space::User => &self.user,
        }
    }
}

impl Store for MemoryStore {
    type Reader = MemoryReader;
    type Snapshot = std::convert::Infallible;

    /// Nothing here is durable.
    fn flushed(&self) -> Revision {
        0
    }

    fn flush(&mut self) {}

    fn install(&mut self, snapshot: Self::Snapshot) -> Result<(), StoreError> {
        match snapshot {}
    }

    fn reader(&self) -> MemoryReader {
        MemoryReader { shared: Arc::clone(&self.shared) }
    }

    fn write(&mut self, applied: Revision, changes: Vec<Change<'_>>) -> Result<(), StoreError> {
        // Old values are freed, and new ones copied, outside of the lock.
        let cells: Vec<_> = changes
            .into_iter()
            .map(|Change { space, key, value }| {
                let cell = value.map(|(revision, value)| Cell {
                    revision,
                    value: value.into_owned().into_boxed_slice(),
                });
                (space, key, cell)
            })
            .collect();
        let mut garbage = Vec::with_capacity(cells.len());
        // The only panic a writer can meet under the lock is running out of memory; a poisoned lock
        // says nothing that would make the tables wrong for a reader.
        let mut tables = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        for (space, key, cell) in cells {
            let table = match space {
                Space::Meta => &mut tables.meta,
                Space::User => &mut tables.user,
            };
            match cell {
                None => garbage.extend(table.remove(&*key)),
                Some(cell) => match table.get_mut(&*key) {
                    Some(old) => garbage.push(std::mem::replace(old, cell)),
                    None => {
                        table.insert(key.into_owned().into_boxed_slice(), cell);
                    }
                },
            }
        }
        tables.applied = applied;
        drop(tables);
        drop(garbage);
        Ok(())
    }
}

impl Reader for MemoryReader {
    type View<'a> = MemoryView<'a>;

    fn view(&self) -> MemoryView<'_> {
        MemoryView { tables: self.shared.read().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl View for MemoryView<'_> {
    fn applied(&self) -> Revision {
        self.tables.applied
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Found>, StoreError> {
        Ok(self
            .tables
            .table(space)
            .get(key)
            .map(|cell| Found { value: cell.value.to_vec(), revision: cell.revision }))
    }

    fn revision(&self, space: Space, key: &[u8]) -> Result<Option<Revision>, StoreError> {
        Ok(self.tables.table(space).get(key).map(|cell| cell.revision))
    }

    fn scan(
        &self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if scan.is_empty() {
            // The map would take such bounds for a bug.
            return Ok(());
        }
        let rows = self.tables.table(scan.space).range::<[u8], _>((scan.lower, scan.upper));
        let mut rows =
            rows.map(|(key, cell)| Row { key, value: &cell.value, revision: cell.revision });
        // Broken off by the visitor or at the end: both are what it asked for.
        let _ =
            if scan.reverse { rows.rev().try_for_each(visit) } else { rows.try_for_each(visit) };
        Ok(())
    }

    fn scan_within(
        &self,
        scan: &Scan<'_>,
        _work_max: u64,
        visit: &mut dyn FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        // Nothing that was deleted is left here.
        self.scan(scan, visit).map(|()| None)
    }
}

//! The tables that a flush, a compaction or an import writes, one behind the other.
//!
//! When a table ends for its size is the business of whoever writes.

use super::LsmError;
use super::block::Item;
use super::builder::TableBuilder;
use super::engine::Shared;
use super::table::TableMeta;
use crate::env::Disk;

/// What is needed to make tables.
pub(super) struct Bench<'w> {
    pub(super) shared: &'w Shared,
    pub(super) disk: &'w dyn Disk,
}

/// See the module. A table holds keys of one space only: so the few records beside the keys, which
/// every batch writes, do not make all tables overlap.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    builder: Option<TableBuilder>,
    /// Those that are whole.
    tables: Vec<TableMeta>,
    /// Numbers of all that were begun.
    begun: Vec<u64>,
}

impl Outputs {
    /// Adds the next entry, in a table of its key's space.
    pub(super) fn add(
        &mut self,
        bench: &Bench<'_>,
        key: &[u8],
        item: Item<'_>,
    ) -> Result<(), LsmError> {
        if self.builder.as_ref().is_some_and(|builder| builder.space() != key.first().copied()) {
            self.end_table()?;
        }
        let builder = match &mut self.builder {
            Some(builder) => builder,
            none => {
                let number = bench.shared.next_file();
                self.begun.push(number);
                none.insert(bench.shared.new_table(bench.disk, number)?)
            }
        };
        builder.add(key, item)
    }

    /// Bytes of the table that is being written.
    pub(super) fn bytes(&self) -> u64 {
        self.builder.as_ref().map_or(0, TableBuilder::bytes)
    }

    /// The next entry begins another table.
    pub(super) fn end_table(&mut self) -> Result<(), LsmError> {
        if let Some(builder) = self.builder.take() {
            self.tables.push(builder.finish()?);
        }
        Ok(())
    }

    /// Takes out the tables that are whole.
    pub(super) fn take_tables(&mut self) -> Vec<TableMeta> {
        std::mem::take(&mut self.tables)
    }

    /// Numbers of all tables that were begun, whole or not.
    pub(super) fn into_begun(self) -> Vec<u64> {
        self.begun
    }
}

/// What a step counts for an entry, bytes.
pub(super) fn size_of(key: &[u8], item: Item<'_>) -> u64 {
    let value = match item {
        Item::Put { value, .. } => value.len(),
        Item::Tombstone => 0,
    };
    (key.len() + value) as u64 + 8
}

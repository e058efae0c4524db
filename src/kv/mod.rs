//! The replicated state machine: what a committed command does to the keys.
//!
//! The types here are the words; [`codec`] their bytes (on [`bytes`]); [`limits`] what is refused before
//! it is proposed. [`machine`] applies committed commands, with client sessions, to a [`store`];
//! [`memory`] is the in-memory store, [`lsm_store`] the one for data larger than memory. [`query`] answers reads from a view of it.
//!
//! Everything here is deterministic: equal logs give equal states and equal outcomes on every
//! replica. So there is no clock, random source, hash map, file or thread, and no flag of a node
//! has a say in apply. Left out: durability and replication, which are the log's business.

pub mod bytes;
pub mod codec;
pub mod limits;
pub mod lsm_store;
pub mod machine;
pub mod memory;
pub mod query;
mod sessions;
pub mod store;
#[cfg(test)]
mod tests;
mod types;

pub use crate::lsm::inspect as store_inspect;
pub use crate::lsm::salvage;
pub use crate::lsm::{
    Backup, BackupWriter, Contents, Export, INCOMING_DIR, Import, LsmError, News,
    Options as StoreOptions, Piece, STORE_DIR, Sealed, Staged, Stats as StoreStats, TableMeta,
    Worker as StoreWorker,
};
pub use bytes::Malformed;
pub use codec::{CommandRef, decode_command, encode_command};
pub use limits::{BadLimits, Limits, NotTaken, TooLarge};
pub use lsm_store::{LsmReader, LsmStore, LsmView, split_stored_key};
pub use machine::{Committed, Machine, Place, place, session_count};
pub use memory::{MemoryReader, MemoryStore};
pub use query::answer;
pub use sessions::SessionBounds;
pub use store::{
    Change, Reader, Row, Scan, Space, Store, StoreError, View, fingerprint, fingerprint_with,
};
pub use types::*;

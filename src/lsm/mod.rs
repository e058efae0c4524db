//! The storage engine: ordered data far larger than memory, as a log-structured merge tree.
//!
//! Writes go to a *memtable* in memory. A full one is frozen and *flushed* to an immutable *table*
//! in level 0; *compactions* merge tables of one level into the next, ten times larger one. The
//! *manifest* says which tables there are and up to which applied index they hold everything.
//!
//! | file         | what it is                                                        |
//! |--------------|-------------------------------------------------------------------|
//! | `block`      | sorted entries, restart points, checksum, filter: bytes only      |
//! | `table`      | a file of blocks: reader, walk                                    |
//! | `builder`    | writes one                                                        |
//! | `cache`      | blocks in a bounded number of bytes                               |
//! | `files`      | open files in a bounded number                                    |
//! | `memtable`   | the newest writes, for one writer and many readers                |
//! | `manifest`   | two slots that hold the same                                      |
//! | `version`    | the tables at one time; what to compact next                      |
//! | `merge`      | walks over all of it                                              |
//! | `engine`     | [`Engine`] writes, [`Reader`] and [`View`] read                   |
//! | `pace`       | how long the writer waits                                         |
//! | `reserve`    | room for flushes and compactions on a full disk                   |
//! | `room`       | what goes when the disk holds little more than one store          |
//! | `salvage`    | what can be read of a store that is damaged                       |
//! | `snapshot`   | [`Export`] gives a version away, [`Import`] takes one in          |
//! | `backup`     | a version in one file                                             |
//! | `inspect`    | what a store that is not open holds, and all that is wrong        |
//! | `demand`     | compactions of everything that were asked for                     |
//! | `outputs`    | the tables that are written, one behind the other                 |
//! | `jobs`       | a flush and a compaction; when a tombstone goes                   |
//! | `worker`     | [`Worker`] flushes and compacts, a step at a time                 |
//!
//! What holds:
//! * **There is no log here.** A crash loses the memtables; the owner replays its own log from
//!   [`Engine::applied`], which moved atomically with the data at the last flush.
//! * **Tables hold one version of a key each.** A view shares the memtables and the version it was
//!   made with; it needs no old entries in new tables, and nobody keeps a list of views.
//! * **Readers take two short locks** (to share the current sources; in a memtable) and never wait
//!   for a flush, a compaction or a file that is written.
//! * **One worker** does all writing of files, so that manifests follow one another; a frozen
//!   memtable goes in front of a compaction that is under way.
//! * **Nothing stops the writer.** [`Engine::take_delay_us`] says how long to wait, smoothly more as
//!   work piles up; an owner that does not wait pays with memory.
//! * **A full disk is no failure** as long as nothing was half-changed: the job is given up, its
//!   files go, memory and tables stay, and the reserve makes room for another attempt.
//! * **A damaged block is never served**: checksums are seeded with store, file and offset.
//!
//! Left out on purpose: a write-ahead log, compression, snapshots by number (a view is one), more
//! than one compaction at a time (the two cores have other work), and range tombstones.

mod backup;
mod bell;
mod block;
mod builder;
mod bytes;
mod cache;
mod counters;
mod demand;
mod engine;
mod error;
mod files;
pub mod inspect;
mod jobs;
mod manifest;
mod memtable;
mod merge;
mod outputs;
mod pace;
mod reserve;
mod room;
pub mod salvage;
mod snapshot;
mod table;
mod version;
mod worker;

#[cfg(test)]
mod tests;

pub use backup::{Backup, BackupWriter, Contents};
pub use counters::Stats;
pub use engine::{Change, Engine, Found, Reader, Row, Scan, View};
pub use error::{Class, LsmError};
pub use snapshot::{Export, Extra, INCOMING_DIR, Import, PIECE_BYTES_MAX, Piece, Sealed, Staged};
pub use table::TableMeta;
pub use worker::{News, Step, Worker};

/// Directory of the store within a data directory.
pub const STORE_DIR: &str = "store";

/// Longest key, without its space: blocks and manifests hold whole keys.
pub const KEY_BYTES_MAX: usize = 64 << 10;

/// Longest value: one must fit a block and be copied in some milliseconds.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

const _: () =
    assert!(2 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) < 2 * block::BLOCK_BYTES_MAX + (1 << 20));

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The store's random identity, for ever; seeds the checksums.
    pub identity: u64,
    /// The store was made before: an empty directory is damage, never a fresh start.
    pub must_exist: bool,
    /// A memtable of this many bytes, overhead included, is frozen. At a steady load there are two
    /// of them, three or four at a peak, and what one batch brings in beside them.
    pub memtable_bytes: usize,
    /// Bound of the block cache, bytes.
    pub cache_bytes: usize,
    /// At most so many files of tables are open at a time.
    pub open_files_max: usize,
    /// Tables of compactions end at this size, bytes.
    pub table_bytes: u64,
    /// Data blocks end at this size, bytes: what one read of a key reads.
    pub block_bytes: usize,
    /// Partitions of a table's index end at this size, bytes: one is read whole for one key.
    pub partition_bytes: usize,
    /// Tables are synced each time this much was written, bytes.
    pub sync_bytes: u64,
    /// What level 1 may hold, bytes; each further level holds ten times the one above.
    pub level1_bytes: u64,
    /// How much a step of the worker does, bytes read or written.
    pub step_bytes: u64,
    /// Room that is kept for flushes and compactions on a full disk, bytes; none with 0. To write
    /// a memtable and a table of a compaction it must hold both.
    pub reserve_bytes: u64,
}

impl Options {
    /// The usual sizes for a store with this identity.
    pub fn new(identity: u64) -> Options {
        Options {
            identity,
            must_exist: false,
            memtable_bytes: 32 << 20,
            cache_bytes: 64 << 20,
            open_files_max: 256,
            table_bytes: 16 << 20,
            block_bytes: 4 << 10,
            partition_bytes: 4 << 10,
            sync_bytes: 4 << 20,
            level1_bytes: 128 << 20,
            step_bytes: 256 << 10,
            reserve_bytes: 0,
        }
    }
}

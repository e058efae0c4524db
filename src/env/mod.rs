//! What a node needs from the world: a disk, a clock, random numbers.
//!
//! Components take these as traits, so that the same code runs on a real machine and in the
//! simulator. Everything that differs between operating systems sits in [`real`], [`descriptors`] and [`allocator`]. Beside
//! them lies the word for what looking through files finds ([`Finding`]), which all storage code shares, and
//! [`resolve`], by which `client/` and `server/` come from a name to a connection in a bounded time.
//! Left out on purpose: all other sockets and threads. Those belong to `client/` and `server/`, because
//! components exchange events, not bytes.

pub mod allocator;
pub mod descriptors;
mod finding;
pub mod real;
pub mod resolve;

pub use finding::{FINDINGS_MAX, Finding, Findings};

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file system as the storage code sees it. Paths are complete paths.
///
/// A created, removed or renamed entry is durable only after [`Disk::sync_dir`] of its directory
/// (on systems where directories can be synced; elsewhere that is a no-op that succeeds).
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file for reading and writing; `create` makes it when absent.
    fn open(&self, path: &Path, mode: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Names of the files (not directories) in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents, and their names durable; fine when it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes creations, removals and renames in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the directory's exclusive lock for as long as the answer lives.
    fn lock(&self, dir: &Path) -> io::Result<DirLock>;
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// The file must exist; reads only.
    Read,
    /// The file must exist; reads and writes.
    Write,
    /// The file must not exist; it is made.
    CreateNew,
}

/// Whether an operation failed because no space is left for it, on the disk or for this user.
pub fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a file could not be removed because somebody else holds it: a scanner, a backup, an indexer. That passes.
pub fn is_held(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| real::HELD.contains(&code))
}

/// The error of such an attempt, for disks that are none.
pub fn held() -> io::Error {
    io::Error::from_raw_os_error(real::HELD[0])
}

/// Whether a read failed because the medium does not give back what lies there: a bad sector, or one whose
/// checksum the system or the device found wrong. Other bytes of the file may well be read.
pub fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| real::UNREADABLE.contains(&code))
}

/// The error of a read of such bytes, for disks that are none.
pub fn unreadable() -> io::Error {
    io::Error::from_raw_os_error(real::UNREADABLE[0])
}

/// An open file. Reads and writes name their offset; there is no cursor.
#[allow(clippy::len_without_is_empty)] // a length in bytes, not a collection
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buf` from `offset`; a file that ends before is [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the data of all finished writes durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes data and metadata durable (`fsync`).
    fn sync_all(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
}

/// An exclusive lock on a data directory, given back when dropped.
#[derive(Debug)]
pub struct DirLock {
    /// Keeps the lock: an open file, or whatever the simulator uses.
    pub guard: Box<dyn Guard>,
    /// The lock's file.
    pub path: PathBuf,
}

/// Anything that may guard a lock.
pub trait Guard: Send + Sync + fmt::Debug {}
impl<T: Send + Sync + fmt::Debug> Guard for T {}

/// Monotonic time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Microseconds since some start; never goes back.
    fn now_us(&self) -> u64;
}

/// A source of random numbers.
pub trait Random: Send + fmt::Debug {
    /// The next number.
    fn next_u64(&mut self) -> u64;

    /// So many bytes.
    fn bytes(&mut self) -> [u8; 32] {
        let numbers = std::array::from_fn::<u64, 4, _>(|_| self.next_u64());
        std::array::from_fn(|i| numbers[i / 8].to_le_bytes()[i % 8])
    }
}

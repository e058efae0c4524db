//! What can go wrong with the log, and what that means for the process.

use crate::env::is_out_of_space;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What the operator of a damaged node can do.
pub const WAY_OUT: &str = "nothing was cut or skipped; keep the data directory for inspection. The \
    others go on serving as long as they are a majority; replace the node with kontiki cli -a OTHER \
    member replace ID ADDRESS, and start it with an empty --data and --join OTHER. See \
    docs/operations.md, \"A wiped or damaged disk\"";

/// What comes in front of that when a read failed.
const UNREAD_WAY_OUT: &str = "look at the disk (the system's log names a bad sector) and start the node again. If it \
    fails again, the log is damaged: ";

/// Why the log cannot be opened or written.
///
/// Every one of these stops the process: nothing may be acknowledged after it, and none is ever
/// retried on the same [`super::Wal`].
#[derive(Debug)]
pub enum WalError {
    /// A read failed, which is never taken for an end of the file.
    Unread {
        /// The file.
        path: PathBuf,
        /// Byte offset of the read.
        offset: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// The operating system refused something else.
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What is on disk cannot have come about by a crash. Nothing was cut, skipped or changed.
    Damaged {
        /// The file (or the directory, when a file is missing).
        path: PathBuf,
        /// Byte offset in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The file belongs to the log of another node.
    Foreign {
        /// The file.
        path: PathBuf,
        /// Identity in its header.
        found: u64,
        /// Identity of this log.
        expected: u64,
    },
    /// The file was written by a program with another format.
    Version {
        /// The file.
        path: PathBuf,
        /// Version in its header.
        found: u32,
    },
    /// A request breaks the contract of [`crate::raft::Persist`]: a bug of the caller.
    Rejected {
        /// Which rule.
        what: &'static str,
    },
    /// A record does not fit into a segment.
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// Bytes that fit.
        limit: u64,
    },
    /// An earlier call failed; what is on disk is no longer known.
    Poisoned,
}

impl WalError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> WalError {
        WalError::Io { what, path: path.to_path_buf(), source }
    }

    /// Whether there was no space for what was to be written.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, WalError::Io { source, .. } if is_out_of_space(source))
    }

    pub(super) fn unread(path: &Path, offset: u64, source: io::Error) -> WalError {
        WalError::Unread { path: path.to_path_buf(), offset, source }
    }

    pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> WalError {
        WalError::Damaged { path: path.to_path_buf(), offset, what: what.into() }
    }
}

/// Says that a file of the log could not be read, and what helps when that does not go away.
fn unread(f: &mut fmt::Formatter<'_>, path: &Path, offset: u64, e: &io::Error) -> fmt::Result {
    write!(f, "cannot read {} at offset {offset}: {e}; {UNREAD_WAY_OUT}{WAY_OUT}", path.display())
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalError::Unread { path, offset, source } => unread(f, path, *offset, source),
            WalError::Io { what, path, source } => {
                write!(f, "cannot {what} {}: {source}", path.display())
            }
            WalError::Damaged { path, offset, what } => {
                write!(f, "{} is damaged at offset {offset}: {what}; {WAY_OUT}", path.display())
            }
            WalError::Foreign { path, found, expected } => write!(
                f,
                "{} belongs to another node's log (identity {found:016x}, expected {expected:016x})",
                path.display()
            ),
            WalError::Version { path, found } => {
                write!(f, "{} has format version {found}, which is not known here", path.display())
            }
            WalError::Rejected { what } => write!(f, "the log refuses a request: {what}"),
            WalError::TooLarge { bytes, limit } => {
                write!(f, "a log record of {bytes} bytes does not fit into {limit} bytes")
            }
            WalError::Poisoned => write!(f, "the log failed before and takes no more writes"),
        }
    }
}

impl std::error::Error for WalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            WalError::Io { source, .. } | WalError::Unread { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why entries cannot be read back.
#[derive(Debug)]
pub enum ReadError {
    /// The entries in front of `first_index` are gone; a snapshot is needed.
    Compacted {
        /// First index the log still has.
        first_index: u64,
    },
    /// The log does not reach that far.
    Beyond {
        /// Last durable index.
        last_index: u64,
    },
    /// The log was truncated or replaced meanwhile: ask again.
    Changed,
    /// The bytes are not what was written: the process stops.
    Damaged {
        /// The segment's file.
        path: PathBuf,
        /// Byte offset of the batch.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The disk refused to read: the process stops.
    Io {
        /// The segment's file.
        path: PathBuf,
        /// Byte offset of the read.
        offset: u64,
        /// Why it failed.
        source: io::Error,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Compacted { first_index } => {
                write!(f, "the log begins at {first_index} now")
            }
            ReadError::Beyond { last_index } => write!(f, "the log ends at {last_index}"),
            ReadError::Changed => write!(f, "the log changed while it was read"),
            ReadError::Damaged { path, offset, what } => {
                write!(f, "{} is damaged at offset {offset}: {what}; {WAY_OUT}", path.display())
            }
            ReadError::Io { path, offset, source } => unread(f, path, *offset, source),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReadError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

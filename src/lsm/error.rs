//! What can go wrong with the store's files, and what that means for the node.

use crate::env::{is_held, is_out_of_space, is_unreadable};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What has to happen after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The caller broke a rule; nothing was done and the store goes on.
    Reject,
    /// The disk refused: the process stops, a new one may find the disk well again.
    Stop,
    /// What is on disk is not what was written: this node must be repaired from its peers.
    Repair,
}

/// Why the store cannot be opened, read or written.
#[derive(Debug)]
pub enum LsmError {
    /// The operating system refused.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// What is on disk cannot have come about by a crash. It was not served.
    Damaged {
        /// The file (or the directory, when a file is missing).
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// A rule of the interface was broken: a bug of the caller.
    Rejected {
        /// Which one.
        what: &'static str,
    },
    /// An earlier flush or compaction failed; nothing more is taken until the store is opened
    /// again.
    Failed,
}

impl LsmError {
    pub(super) fn io(path: &Path, offset: u64, source: io::Error) -> LsmError {
        LsmError::Io { path: path.to_path_buf(), offset, source }
    }

    pub(super) fn damaged(path: &Path, offset: u64, what: &'static str) -> LsmError {
        LsmError::Damaged { path: path.to_path_buf(), offset, what }
    }

    /// A failed read. Bytes that are gone or cannot be read are damage of the file, which can be had elsewhere.
    pub(super) fn read(path: &Path, offset: u64, source: io::Error) -> LsmError {
        match lost(&source) {
            Some(what) => LsmError::damaged(path, offset, what),
            None => LsmError::io(path, offset, source),
        }
    }

    /// Whether there was no space for what was to be written.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, LsmError::Io { source, .. } if is_out_of_space(source))
    }

    /// Whether a file could not be removed since somebody else holds it, which passes.
    pub fn is_held(&self) -> bool {
        matches!(self, LsmError::Io { source, .. } if is_held(source))
    }

    /// What has to happen now.
    pub fn class(&self) -> Class {
        match self {
            LsmError::Rejected { .. } => Class::Reject,
            LsmError::Io { .. } | LsmError::Failed => Class::Stop,
            LsmError::Damaged { .. } => Class::Repair,
        }
    }
}

/// What a failed read says of the file, if it says that its bytes are lost: a file that is missing or ends too early
/// lost them, which no healthy disk does, and a bad sector does not give them back.
pub(super) fn lost(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("the file is missing"),
        io::ErrorKind::UnexpectedEof => Some("the file ends too early"),
        _ => is_unreadable(error).then_some("the disk cannot read it (input/output error)"),
    }
}

impl fmt::Display for LsmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LsmError::Io { path, offset, source } => {
                write!(f, "{} at offset {offset}: {source}", path.display())
            }
            LsmError::Damaged { path, offset, what } => {
                write!(f, "{} is damaged at offset {offset}: {what}", path.display())
            }
            LsmError::Rejected { what } => write!(f, "the store refuses a request: {what}"),
            LsmError::Failed => write!(f, "the store failed earlier and was not opened again"),
        }
    }
}

impl std::error::Error for LsmError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LsmError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

//! What a node is started with, and why one does not start.

use super::logging::Level;
use crate::kv::{Limits, LsmError};
use crate::node::BootError;
use crate::wal::WalError;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Data directory.
    pub data: PathBuf,
    /// `HOST:PORT` to listen on.
    pub listen: String,
    /// `HOST:PORT` under which the others reach this node.
    pub advertise: String,
    /// The first members in the order of their ids, or none for a cluster of one.
    pub peers: Vec<String>,
    /// A running cluster that is to take this node in; empty when none is.
    pub join: Vec<String>,
    /// A backup that a new cluster begins from.
    pub restore: Option<PathBuf>,
    /// The token, or two with a line end between them while it is changed; empty for none.
    pub token: Vec<u8>,
    /// Time between heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// Smallest time without a leader before an election, in milliseconds.
    pub election_timeout_ms: u64,
    /// Connections served at once.
    pub connections_max: usize,
    /// Bytes of writes that may be unanswered at once.
    pub inflight_bytes_max: usize,
    /// What a client may ask.
    pub limits: Limits,
    /// Bytes of log beyond which its front goes.
    pub wal_limit_bytes: u64,
    /// Bytes of the newest writes that are kept in memory before they go to a table.
    pub memtable_bytes: usize,
    /// Bytes on disk that are kept for when the disk is full.
    pub reserve_bytes: u64,
    /// Bytes of table blocks that are kept in memory.
    pub cache_bytes: usize,
    /// Directory of recordings of what the components get and do, and bytes of each.
    pub record: Option<(PathBuf, u64)>,
    /// Which lines are logged.
    pub log_level: Level,
}

/// Why a node does not start. Nothing was changed.
#[derive(Debug)]
pub enum StartError {
    /// Another process uses the data directory.
    InUse {
        /// The directory.
        data: PathBuf,
    },
    /// The operating system refused.
    Io {
        /// What was tried, with the path or address.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The address is taken or is not one of this machine.
    Listen {
        /// The address.
        address: String,
        /// Why it failed.
        source: io::Error,
    },
    /// What is on disk belongs to another node or cluster.
    Identity {
        /// What differs.
        what: String,
    },
    /// The backup cannot be used.
    Backup {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LsmError,
    },
    /// What is on disk cannot be used as it is.
    Boot(BootError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::InUse { data } => write!(
                f,
                "data directory {} is in use by another process; stop that one or choose another \
                 directory with --data",
                data.display()
            ),
            StartError::Io { what, source } => write!(f, "{what}: {source}"),
            StartError::Listen { address, source } => write!(
                f,
                "cannot listen on {address}: {source}; choose another address with --listen"
            ),
            StartError::Identity { what } => f.write_str(what),
            StartError::Backup { path, source } => write!(
                f,
                "cannot restore {}: {source}; nothing was changed, name a whole backup with --restore",
                path.display()
            ),
            StartError::Boot(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Io { source, .. } | StartError::Listen { source, .. } => Some(source),
            StartError::Boot(e) => Some(e),
            StartError::Backup { source, .. } => Some(source),
            StartError::InUse { .. } | StartError::Identity { .. } => None,
        }
    }
}

impl From<WalError> for StartError {
    fn from(e: WalError) -> StartError {
        StartError::Boot(e.into())
    }
}

impl From<BootError> for StartError {
    fn from(e: BootError) -> StartError {
        StartError::Boot(e)
    }
}

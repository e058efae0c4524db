//! Threads and sockets, and nothing else: every decision is made in `api/`, `node/`, `raft/`, `wal/`, `kv/`.
//!
//! | thread      | body                              | inbox                                                                 |
//! |-------------|-----------------------------------|-----------------------------------------------------------------------|
//! | listener    | `listener`                        | the listening socket                                                  |
//! | keeper      | `listener`                        | shortages of descriptors and threads                                  |
//! | connection  | `connection`                      | its socket; then the answers to what it asked                         |
//! | peer reader | `peer_in`                         | the decision to let it in; then the socket of one accepted connection |
//! | raft loop   | `raft_loop` `connections` `inbox` | `Input`                                                               |
//! | log writer  | `log_writer`                      | `Persist` and finished spares                                         |
//! | spare maker | `log_writer`                      | spares to make                                                        |
//! | peer sender | `peer_out` `peer_pump`            | `Command`, of one dialed connection                                   |
//! | probe       | `connections`                     | none: it asks who is at an address, and ends                          |
//! | answers     | `raft_loop`                       | refusals of the raft loop, to be written to sockets                   |
//! | applier     | `applier`                         | `ApplyTask`                                                           |
//! | snapshot    | `snapshots`                       | `ReceiverEvent`; while one is fetched, a connection of its own        |
//! | log         | `logging`                         | lines to be written to standard error                                 |
//! | store       | `store`                           | a bell: something to flush or to compact                              |
//! | recorder    | `recorder`, with `--record` only  | records of what the raft loop, log writer and applier get and do      |
//!
//! A thread that cannot go on (a failed fsync, a damaged log) ends the process: the node is
//! crash-only, and whoever was not answered was not promised anything.

mod applier;
mod connection;
mod connections;
mod handshakes;
mod inbox;
mod join;
mod listener;
mod log_writer;
pub mod logging;
mod mailbox;
mod options;
mod peer_in;
mod peer_out;
mod peer_pump;
mod raft_loop;
mod recorder;
mod snapshots;
mod sockets;
mod start;
mod store;
#[cfg(test)]
mod tests;

pub use options::{ServerOptions, StartError};
pub use start::start;

use crate::api::NodeState;
use crate::env::{Clock, DirLock, Disk};
use crate::kv::Staged;
use crate::node::{ApplyTask, ReceiverEvent};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A client as the components see it: where its answers go.
#[derive(Clone, Debug)]
pub struct ClientHandle(Arc<mailbox::Mailbox>);

impl ClientHandle {
    /// A number for it in a recording; another one may get it once this one is gone.
    fn number(&self) -> u64 {
        Arc::as_ptr(&self.0).addr() as u64
    }
}

/// What every thread of a node may look at.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What its connections look at.
    pub(crate) node: Arc<NodeState>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) raft: inbox::RaftInbox,
    /// The connections that other nodes have made.
    pub(crate) accepted: connections::AcceptedConnections,
    /// All connections that others have made.
    pub(crate) open: listener::OpenConnections,
    pub(crate) bulk_senders: connections::BulkSenders,
    pub(crate) disk: Arc<dyn Disk>,
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The inbox of the thread that fetches snapshots.
    pub(crate) snapshots: Sender<ReceiverEvent>,
    pub(crate) refusals: logging::Rate,
    /// Where the components' events go, with `--record`.
    pub(crate) recorder: Option<Arc<recorder::Recorder>>,
    pub(crate) _lock: DirLock,
}

/// The applier's inbox.
pub(crate) type ApplyQueue = Sender<ApplyTask<ClientHandle, Staged>>;

/// Locks that guard plain data stay usable whatever thread died.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Adds a record, with `--record`; `put` appends its body.
    pub(crate) fn record(&self, put: impl FnOnce(&mut Vec<u8>)) {
        if let Some(recorder) = &self.recorder {
            recorder.record(put);
        }
    }
}

/// The node cannot go on and must not promise anything more: says why and ends the process.
pub(crate) fn fatal(why: std::fmt::Arguments<'_>) -> ! {
    logging::log(logging::Level::Error, why);
    logging::flush();
    std::process::exit(1)
}

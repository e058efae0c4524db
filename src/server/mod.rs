//! Threads and sockets, and nothing else: every decision is made in `node/`, `raft/`, `wal/`, `kv/`.
//!
//! | thread      | body                              | inbox                                                                 |
//! |-------------|-----------------------------------|-----------------------------------------------------------------------|
//! | listener    | `listener`                        | the listening socket                                                  |
//! | connection  | `native` `text` `http`            | its socket; then the answers to what it asked                         |
//! | peer reader | `peer_in`                         | the decision to let it in; then the socket of one accepted connection |
//! | raft loop   | `raft_loop` `connections` `inbox` | `Input`                                                               |
//! | log writer  | `log_writer`                      | `Persist` and finished spares                                         |
//! | spare maker | `log_writer`                      | spares to make                                                        |
//! | peer sender | `peer_out` `peer_pump`            | `Command`, of one dialed connection                                   |
//! | probe       | `connections`                     | none: it asks who is at an address, and ends                          |
//! | answers     | `raft_loop`                       | refusals of the raft loop, to be written to sockets                   |
//! | applier     | `applier`                         | `ApplyTask`                                                           |
//! | snapshot    | `snapshots`                       | `ReceiverEvent`; while one is fetched, a connection of its own        |
//! | store       | `lsm::Worker::run`                | a bell: something to flush or to compact                              |
//!
//! A thread that cannot go on (a failed fsync, a damaged log) ends the process: the node is
//! crash-only, and whoever was not answered was not promised anything.

mod applier;
mod backup;
mod connection;
mod connections;
mod http;
mod inbox;
mod join;
mod listener;
mod log_writer;
pub mod logging;
mod mailbox;
mod members;
mod metrics;
mod native;
mod peer_frames;
mod peer_in;
mod peer_out;
mod peer_pump;
mod raft_loop;
mod snapshots;
mod sockets;
mod start;
#[cfg(test)]
mod tests;
mod text;
mod view;

pub use start::{ServerOptions, StartError, start};

use crate::env::{Clock, DirLock, Disk};
use crate::kv::{Limits, LsmReader, Staged};
use crate::node::{ApplyTask, ReceiverEvent, TransferProgress};
use crate::raft::{Member, NodeId};
use crate::wal::LogReader;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A client as the components see it: where its answers go.
#[derive(Clone, Debug)]
pub struct ClientHandle(Arc<mailbox::Mailbox>);

/// What every thread of a node may look at.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: NodeId,
    /// The members that the cluster was formed of.
    pub(crate) first: Vec<Member>,
    pub(crate) identity: u64,
    pub(crate) cluster: u64,
    pub(crate) address: String,
    pub(crate) token: Vec<u8>,
    pub(crate) limits: Limits,
    pub(crate) connections_max: usize,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) reader: LsmReader,
    pub(crate) log: LogReader,
    pub(crate) raft: inbox::RaftInbox,
    /// What the raft loop knows of the cluster.
    pub(crate) view: RwLock<Arc<view::ClusterView>>,
    /// The connections that other nodes have made.
    pub(crate) accepted: connections::AcceptedConnections,
    pub(crate) bulk_senders: connections::BulkSenders,
    pub(crate) connections: AtomicUsize,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) disk: Arc<dyn Disk>,
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The inbox of the thread that fetches snapshots.
    pub(crate) snapshots: Sender<ReceiverEvent>,
    /// How far a snapshot is on its way here, while one is fetched or installed.
    pub(crate) fetching: Mutex<Option<TransferProgress>>,
    /// Replicas were seen to differ.
    pub(crate) different: AtomicBool,
    /// A read has met damage in the store.
    pub(crate) damaged: AtomicBool,
    pub(crate) partial: sockets::PartialBytes,
    pub(crate) refusals: logging::Rate,
    pub(crate) _lock: DirLock,
}

/// The applier's inbox.
pub(crate) type ApplyQueue = Sender<ApplyTask<ClientHandle, Staged>>;

/// Locks that guard plain data stay usable whatever thread died.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The node cannot go on and must not promise anything more: says why and ends the process.
pub(crate) fn fatal(why: std::fmt::Arguments<'_>) -> ! {
    logging::log(logging::Level::Error, why);
    std::process::exit(1)
}

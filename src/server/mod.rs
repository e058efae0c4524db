//! Threads and sockets, and nothing else: every decision is made in `node/`, `raft/`, `wal/`, `kv/`.
//!
//! | thread        | body                    | inbox                                          |
//! |---------------|-------------------------|------------------------------------------------|
//! | listener      | `listener`              | the listening socket                           |
//! | connection    | `native` `text` `http`  | its socket; then the answers to what it asked  |
//! | peer reader   | `native`                | the socket of one inbound peer connection      |
//! | raft loop     | `raft_loop` `inbox`     | `Input`                                        |
//! | log writer    | `log_writer`            | `Persist` and finished spares                  |
//! | spare maker   | `log_writer`            | spares to make                                 |
//! | peer sender   | `peers`                 | what is to be sent                             |
//! | applier       | `applier`               | `Apply`                                        |
//! | snapshot      | `snapshots`             | a connection of its own, while one is fetched  |
//! | store         | `lsm::Worker::run`      | a bell: something to flush or to compact       |
//!
//! A thread that cannot go on (a failed fsync, a damaged log) ends the process: the node is
//! crash-only, and whoever was not answered was not promised anything.

mod applier;
mod backup;
mod connection;
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
mod peers;
mod pulse;
mod raft_loop;
mod snapshots;
mod sockets;
mod start;
#[cfg(test)]
mod tests;
mod text;

pub use start::{ServerOptions, StartError, start};

use crate::env::{Clock, DirLock, Disk};
use crate::kv::{Limits, LsmReader, Staged};
use crate::node::{Configurations, Promise, Work};
use crate::raft::{Configuration, Member, NodeId};
use crate::wal::LogReader;
use crate::wire::handshake::{Hello, PROTOCOL_VERSIONS, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

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
    /// Those that the raft loop goes by.
    pub(crate) configurations: RwLock<Configurations>,
    pub(crate) links: RwLock<BTreeMap<NodeId, Sender<peers::Outgoing>>>,
    /// The latest open inbound connection of each peer and disk: two may come under one id, and as long
    /// as nobody knows whose it is, either may have to be closed.
    pub(crate) inbound: Mutex<BTreeMap<(NodeId, u64), Inbound>>,
    /// How many there have been.
    pub(crate) inbound_so_far: AtomicU64,
    pub(crate) leader: AtomicU64,
    /// Term and last index of the log: never behind what this node has promised.
    pub(crate) promise: (AtomicU64, AtomicU64),
    /// Where nodes are reached that have dialed, by their own word, or that were heard of: members, which
    /// may have moved, and newcomers that this node did not know, of which there may be as many as members.
    pub(crate) dialed_from: Mutex<BTreeMap<NodeId, String>>,
    /// How far this node was when the process started, and which peers have heard that.
    pub(crate) began_at: Promise,
    pub(crate) greeted: Mutex<BTreeSet<NodeId>>,
    /// Peers with old copies of their disks: their identity, and what they are told.
    pub(crate) aside: Mutex<BTreeMap<NodeId, (u64, String)>>,
    pub(crate) connections: AtomicUsize,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) disk: Arc<dyn Disk>,
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The latest offer of a snapshot, while one is fetched or installed, and how far that is.
    pub(crate) fetching: Mutex<Option<snapshots::Fetching>>,
    /// Replicas were seen to differ.
    pub(crate) different: AtomicBool,
    /// A read has met damage in the store.
    pub(crate) damaged: AtomicBool,
    pub(crate) partial: sockets::PartialBytes,
    pub(crate) refusals: logging::Rate,
    pub(crate) _lock: DirLock,
}

/// An open inbound connection of a peer.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// Only the end of the latest one means anything.
    pub(crate) number: u64,
    /// Where the peer is reached, by its own word.
    pub(crate) address: String,
    /// To close it by.
    pub(crate) stream: TcpStream,
}

impl Inbound {
    pub(crate) fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    /// The configuration in force.
    pub(crate) fn configuration(&self) -> Arc<Configuration> {
        Arc::clone(self.configurations().in_force())
    }

    /// Who leads, and where that is; 0 and empty when either is not known.
    pub(crate) fn known_leader(&self) -> (NodeId, String) {
        let leader = self.leader.load(Ordering::Relaxed);
        let configuration = self.configuration();
        let member = configuration.member(leader);
        member.map_or_else(Default::default, |m| (leader, m.address.clone()))
    }

    /// The configurations that this node goes by or may go by.
    pub(crate) fn configurations(&self) -> RwLockReadGuard<'_, Configurations> {
        self.configurations.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to dial a node, a member or a newcomer: where the configuration says, and where it has
    /// said itself that it is reached, or somebody else. Both may be out of date.
    pub(crate) fn whom(&self, id: NodeId) -> Vec<Member> {
        let (identity, configured) = {
            let all = self.configurations();
            (all.identity_of(id), all.in_force().member(id).map(|m| m.address.clone()))
        };
        let said = lock(&self.dialed_from).get(&id).cloned();
        let said = said.filter(|at| Some(at) != configured.as_ref());
        let addresses = configured.into_iter().chain(said);
        addresses.map(|address| Member { id, identity, address }).collect()
    }

    /// Members and newcomers beside this node.
    pub(crate) fn others(&self) -> BTreeSet<NodeId> {
        let mut ids: BTreeSet<NodeId> = lock(&self.dialed_from).keys().copied().collect();
        ids.extend(self.configuration().members.iter().map(|m| m.id));
        ids.remove(&self.id);
        ids
    }

    /// How this node dials another one.
    pub(crate) fn hello(&self, role: Role, to: &Member, promise: Promise) -> Hello {
        Hello {
            version_min: PROTOCOL_VERSIONS.0,
            version_max: PROTOCOL_VERSIONS.1,
            role,
            cluster: self.cluster,
            from: self.id,
            to: to.id,
            identity: self.identity,
            to_identity: to.identity,
            address: self.address.clone(),
            token: self.token.clone(),
            term: promise.term,
            last_index: promise.index,
        }
    }

    /// What the next Hello to a peer says. The first one of a process speaks of its start: an old copy
    /// of a disk may have learned a newer term from others since, and must not hide behind it.
    pub(crate) fn shown_to(&self, peer: NodeId) -> Promise {
        if lock(&self.greeted).contains(&peer) { self.promise() } else { self.began_at }
    }

    /// How far this node is.
    pub(crate) fn promise(&self) -> Promise {
        let (term, index) = &self.promise;
        Promise { term: term.load(Ordering::Acquire), index: index.load(Ordering::Acquire) }
    }

    /// Why a peer (of that identity, if it is known) is set aside, if it is.
    pub(crate) fn is_aside(&self, peer: NodeId, identity: Option<u64>) -> Option<String> {
        let aside = lock(&self.aside);
        let (of, why) = aside.get(&peer)?;
        identity.is_none_or(|identity| identity == *of).then(|| why.clone())
    }
}

/// The applier's inbox.
pub(crate) type ApplyQueue = Sender<Work<ClientHandle, Staged>>;

/// Locks that guard plain data stay usable whatever thread died.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The node cannot go on and must not promise anything more: says why and ends the process.
pub(crate) fn fatal(why: std::fmt::Arguments<'_>) -> ! {
    logging::log(logging::Level::Error, why);
    std::process::exit(1)
}

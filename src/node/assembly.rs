//! The components of a node, made of what is on its disk and of what it is set to.
//!
//! [`super::open`] reads and checks what is on disk. Here that becomes a [`Node`], a [`LogWriter`], an [`Applier`] and
//! a [`SnapshotReceiver`], once for the threads of a process and for the actors of the simulator. What follows for
//! one part from what is set for another one is decided here, too: the length of segments, how much log is kept, how
//! much of a batch one message may carry.
//!
//! In two steps, since between them the caller looks at what was found: [`Assembly::new`], and
//! [`Assembly::into_parts`] with the time at which the components begin.
//!
//! Left out: threads, sockets, and `api::NodeState`, which is what connections look at.

use super::applier::Applier;
use super::boot::{BootError, Opened, first_configuration, restored};
use super::log_writer::{BATCH_REQUESTS_MAX, LogWriter};
use super::membership::MEMBERS_MAX;
use super::peers::PeersOptions;
use super::raft_loop::Node;
use super::recording;
use super::replica::{Replica, ReplicaOptions};
use super::snapshot_transfer::SnapshotReceiver;
use super::startup::to_show;
use super::view::ClusterView;
use crate::env::Disk;
use crate::kv::machine::DIGEST_EVERY;
use crate::kv::{Limits, LsmReader, LsmStore, Machine, SessionBounds, StoreWorker};
use crate::raft::{self, Configuration, Index, Raft, Restored};
use crate::wal::{self, Identity, LogReader, Wal};
use std::path::Path;
use std::sync::Arc;

/// What a node is set to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HOST:PORT` under which the others reach it.
    pub address: String,
    /// The tokens of which dialers must know one; empty for none.
    pub token: Vec<u8>,
    /// Where a running cluster may be found.
    pub seeds: Vec<String>,
    /// What a client may ask.
    pub limits: Limits,
    /// Bytes of writes that may be unanswered at once.
    pub inflight_bytes_max: usize,
    /// Bytes of log beyond which its front goes.
    pub wal_limit_bytes: u64,
    /// Of the consensus core; its id is that of the identity.
    pub raft: raft::Options,
    /// What production never changes.
    pub fixed: Fixed,
}

/// What is the same at every node in production. The simulator has smaller ones, so that bounds are met.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// Bytes of writes that are proposed together.
    pub batch_bytes_max: usize,
    /// Requests that the log writer takes at once.
    pub batch_requests_max: usize,
    /// Members that a cluster may have.
    pub members_max: usize,
    /// How much the state remembers of sessions.
    pub sessions: SessionBounds,
    /// Entries between two digests.
    pub digest_every: u64,
    /// About how many bytes a step of the applier takes; none for [`Applier`]'s own number.
    pub step_bytes_max: Option<usize>,
}

impl Fixed {
    /// Those of production.
    pub fn standard(raft: &raft::Options) -> Fixed {
        Fixed {
            batch_bytes_max: raft.append_bytes_max,
            batch_requests_max: BATCH_REQUESTS_MAX,
            members_max: MEMBERS_MAX,
            sessions: SessionBounds::STANDARD,
            digest_every: DIGEST_EVERY,
            step_bytes_max: None,
        }
    }
}

/// Segments are an eighth of the log's limit, so that its front goes in small steps; but each holds
/// the largest write twice over.
pub fn segment_bytes(wal_limit_bytes: u64, max_batch_bytes: usize) -> u64 {
    let least = (2 * max_batch_bytes as u64).max(wal::SEGMENT_BYTES_MIN);
    let bytes = (wal_limit_bytes / 8).clamp(least, wal::SEGMENT_BYTES_DEFAULT.max(least));
    bytes.next_multiple_of(wal::SEGMENT_BYTES_MIN)
}

/// The log goes by whole segments: a limit that the one being written can exceed by itself would be
/// exceeded for long, with nothing to give up, and whoever joins or lags be offered one snapshot after
/// the other.
pub fn log_limit(wal_limit_bytes: u64, max_batch_bytes: usize) -> u64 {
    wal_limit_bytes.max(2 * segment_bytes(wal_limit_bytes, max_batch_bytes))
}

/// What the components are made of.
#[derive(Debug)]
pub struct Assembly {
    settings: Settings,
    replica: ReplicaOptions,
    peers: PeersOptions,
    first: Configuration,
    restored: Restored,
    wal: Wal,
    machine: Machine<LsmStore>,
    worker: StoreWorker,
}

/// The components of a node, and what reads beside them.
#[derive(Debug)]
pub struct Parts<C> {
    /// The raft loop's.
    pub node: Node<C>,
    /// What the node shows at first.
    pub view: ClusterView,
    /// The log writer's.
    pub log_writer: LogWriter,
    /// Bytes in use in the log.
    pub log_bytes: u64,
    /// Reads the log.
    pub log: LogReader,
    /// The applier's.
    pub applier: Applier<LsmStore, C>,
    /// Reads the store.
    pub reader: LsmReader,
    /// Does the store's background work.
    pub worker: StoreWorker,
    /// Fetches snapshots.
    pub receiver: SnapshotReceiver,
}

impl Assembly {
    /// Reads the state that the store holds.
    ///
    /// # Errors
    /// Those of [`Machine::open_bounded`].
    pub fn new(
        identity: &Identity,
        opened: Opened,
        settings: Settings,
    ) -> Result<Assembly, BootError> {
        let Opened { wal, recovered, store, worker, .. } = opened;
        let mut machine = Machine::open_bounded(store, settings.fixed.sessions)?;
        machine.set_digest_every(settings.fixed.digest_every);
        let restored = restored(identity, &recovered, machine.applied());
        let replica = ReplicaOptions {
            inflight_bytes_max: settings.inflight_bytes_max,
            members_max: settings.fixed.members_max,
            limits: settings.limits,
            batch_bytes_max: settings.fixed.batch_bytes_max,
            identity: identity.identity,
            wal_limit_bytes: settings.wal_limit_bytes,
            address: settings.address.clone(),
        };
        let peers = PeersOptions {
            identity: identity.identity,
            address: settings.address.clone(),
            token: settings.token.clone(),
            // A directory without one got one when this node found out who it is.
            secret: identity.secret.map(to_show).unwrap_or_default(),
            seeds: settings.seeds.clone(),
        };
        let first = first_configuration(identity);
        Ok(Assembly { settings, replica, peers, first, restored, wal, machine, worker })
    }

    /// What the consensus core begins with.
    pub fn restored(&self) -> &Restored {
        &self.restored
    }

    /// The index up to which the store holds everything.
    pub fn applied(&self) -> Index {
        self.machine.applied()
    }

    /// What a recording of this life begins with.
    pub fn start(&self, life: u64, unix_us: u64, now_us: u64) -> recording::Start {
        recording::Start {
            program: env!("CARGO_PKG_VERSION").to_string(),
            life,
            unix_us,
            now_us,
            connections: true,
            first: self.first.clone(),
            raft: self.settings.raft.clone(),
            restored: self.restored.clone(),
            replica: self.replica.clone(),
            peers: self.peers.without_secrets(),
            batch_requests_max: self.settings.fixed.batch_requests_max as u64,
            holding: self.machine.is_spoiled(),
            digest: self.machine.digest(),
            digest_every: self.machine.digest_every(),
            sessions: self.machine.session_bounds(),
        }
    }

    /// The components, which begin now.
    pub fn into_parts<C: Clone>(self, disk: &Arc<dyn Disk>, data: &Path, now_us: u64) -> Parts<C> {
        let Assembly { settings, replica, peers, first, restored, wal, machine, worker } = self;
        let raft = Raft::new(settings.raft, restored, now_us);
        let node = Node::new(Replica::new(raft, replica), peers, now_us);
        let (log, reader, log_bytes) = (wal.reader(), machine.reader(), wal.bytes());
        let mut applier = Applier::new(machine, log.clone(), first);
        if let Some(bytes) = settings.fixed.step_bytes_max {
            applier = applier.in_steps_of(bytes);
        }
        Parts {
            view: ClusterView::of(&node),
            node,
            log_writer: LogWriter::new(wal, settings.fixed.batch_requests_max),
            log_bytes,
            log,
            applier,
            worker,
            receiver: SnapshotReceiver::new(Arc::clone(disk), data, reader.clone()),
            reader,
        }
    }
}

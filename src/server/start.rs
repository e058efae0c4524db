//! Bringing a node up: directory, identity, log, components, threads.
//!
//! What is on disk is read and, at the very first start, made by `node::open`.

use super::connections::{AcceptedConnections, BulkSenders};
use super::inbox::raft_inbox;
use super::listener::OpenConnections;
use super::logging::{self, Level, Rate, info, log, warning};
use super::recorder::{self, Recorder};
use super::{Shared, applier, fatal, join, listener, log_writer, raft_loop, snapshots};
use crate::api::NodeState;
use crate::api::places::{Budget, Demand, RESERVE_DESCRIPTORS};
use crate::env::descriptors::{self, RESERVE};
use crate::env::real::{LOCK_FILE, RealClock, RealDisk, RealRandom};
use crate::env::{Clock, DirLock, Disk, Random as _};
use crate::kv::limits::MAX_BATCH_BYTES_CEILING;
use crate::kv::{Backup, Limits, LsmError, Machine, News, StoreOptions};
use crate::node::recording::Start;
use crate::node::{
    Applier, ApplyTask, BATCH_REQUESTS_MAX, BootError, ClusterView, Input, LogWriter, MEMBERS_MAX,
    Node, Opened, Part, PeersOptions, Plan, Replica, ReplicaOptions, SnapshotReceiver, Startup,
    StartupEffect, StartupEvent, StartupOptions, first_configuration, open, restored, to_show,
};
use crate::raft::{self, Raft, is_near_the_last_term};
use crate::wal::{self, Identity, WalError};
use crate::wire::frame::{CLIENT_FRAME_MAX, PEER_FRAME_MAX};
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::mpsc::channel;
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, SystemTime};

// The largest write that any flags allow fits a frame of a client and of a peer, and what a frame of a
// peer holds fits the log.
const _: () = {
    assert!(2 * MAX_BATCH_BYTES_CEILING <= CLIENT_FRAME_MAX);
    assert!(2 * MAX_BATCH_BYTES_CEILING <= PEER_FRAME_MAX);
    assert!(PEER_FRAME_MAX as u64 <= wal::RECORD_BYTES_MAX);
    assert!(2 * MAX_BATCH_BYTES_CEILING as u64 <= wal::SEGMENT_BYTES_DEFAULT);
};

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

/// Brings a node up and serves. Returns the listener's thread, which never ends by itself.
pub fn start(options: ServerOptions) -> Result<JoinHandle<()>, StartError> {
    logging::set_level(options.log_level);
    logging::start();
    stop_on_panic();
    let clock: Arc<dyn Clock> = Arc::new(RealClock::default());
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let mut random = RealRandom::default();
    let listen = |e| StartError::Listen { address: options.listen.clone(), source: e };

    // The address first: a second node on the same port must not touch the first one's files.
    let listener = TcpListener::bind(&options.listen).map_err(listen)?;
    if let Some((dir, _)) = &options.record {
        recorder::prepare(dir).map_err(|e| cannot_record(dir, e))?;
    }
    let is_new = is_new(&*disk, &options.data);
    let backup = backup(&*disk, &options, is_new)?;
    let lock = lock_directory(&*disk, &options.data)?;
    let identity = identify(&*disk, &options, backup.as_ref(), &mut random)?;
    if let (Some(backup), Some(path)) = (backup.as_ref().filter(|_| !is_new), &options.restore)
        && identity.restoring
    {
        // It goes on with what a crash cut off; the file may have been spoiled since.
        let refused = |source| StartError::Backup { path: path.clone(), source };
        backup.verify().map_err(refused)?;
    }
    logging::set_node(identity.node);
    info!(
        "kontiki {} data={} cluster={:016x} identity={:016x} listen={} advertise={}",
        env!("CARGO_PKG_VERSION"),
        options.data.display(),
        identity.cluster,
        identity.identity,
        options.listen,
        options.advertise,
    );
    let started_us = clock.now_us();
    let segment_bytes = segment_bytes(options.wal_limit_bytes, options.limits.max_batch_bytes);
    let usual = StoreOptions::new(identity.identity);
    let budget = share_out(&options, &identity, segment_bytes, usual.open_files_max);
    let store = StoreOptions {
        open_files_max: budget.table_files,
        memtable_bytes: options.memtable_bytes,
        cache_bytes: options.cache_bytes,
        reserve_bytes: options.reserve_bytes,
        ..usual
    };
    let plan = Plan {
        data: &options.data,
        identity: &identity,
        segment_bytes,
        store,
        restore: backup.as_ref(),
    };
    let (mut parts, mut last_us) = (Vec::new(), started_us);
    let opened = open(&disk, plan, |part| {
        let now_us = clock.now_us();
        parts.push((part, now_us - last_us));
        last_us = now_us;
    })?;
    report(&opened, &parts, clock.now_us() - started_us);
    run(options, budget, &identity, opened, listener, lock, clock, disk, random.next_u64())
}

/// Shares out the descriptors that the system gives, and says what that means.
fn share_out(
    options: &ServerOptions,
    identity: &Identity,
    segment_bytes: u64,
    table_files: usize,
) -> Budget {
    let limit = descriptors::limit();
    let demand = Demand {
        connections: options.connections_max,
        table_files,
        log_files: wal::files_max(options.wal_limit_bytes, segment_bytes),
        peers: identity.members.len() as u64,
    };
    let budget = Budget::within(limit, demand);
    if let (Some(limit), false) = (limit, budget.is_whole) {
        info!(
            "the limit of descriptors is {limit}: at most {} connections of the {} that --max-connections allows \
             are served, and {} table files kept open; raise it (ulimit -n, LimitNOFILE= of systemd) or lower \
             --max-connections",
            budget.connections, options.connections_max, budget.table_files
        );
    }
    budget
}

/// Segments are an eighth of the log's limit, so that its front goes in small steps; but each holds
/// the largest write twice over.
fn segment_bytes(wal_limit_bytes: u64, max_batch_bytes: usize) -> u64 {
    let least = (2 * max_batch_bytes as u64).max(wal::SEGMENT_BYTES_MIN);
    let bytes = (wal_limit_bytes / 8).clamp(least, wal::SEGMENT_BYTES_DEFAULT.max(least));
    bytes.next_multiple_of(wal::SEGMENT_BYTES_MIN)
}

/// The log goes by whole segments: a limit that the one being written can exceed by itself would be
/// exceeded for long, with nothing to give up, and whoever joins or lags be offered one snapshot after
/// the other.
fn log_limit(wal_limit_bytes: u64, max_batch_bytes: usize) -> u64 {
    wal_limit_bytes.max(2 * segment_bytes(wal_limit_bytes, max_batch_bytes))
}

/// What was found on disk, and how long each part took.
fn report(opened: &Opened, parts: &[(Part, u64)], took_us: u64) {
    let Opened { recovered, store, .. } = opened;
    if let Some(cut) = &recovered.cut {
        warning!(
            "cut the tail of the log: a batch of {} bytes at offset {} of {} was not completely \
             written, or is damaged",
            cut.bytes,
            cut.offset,
            cut.path.display()
        );
    }
    if is_near_the_last_term(recovered.hard_state.term) {
        warning!(
            "this node was taken to term {}, and no other node can follow it there: among several nodes nobody will be \
             elected; make a new cluster of its data (docs/operations.md, \"A term that cannot grow\")",
            recovered.hard_state.term
        );
    }
    info!(
        "recovered log first={} last={} term={} segments={} bytes={} store applied={} replay={} ms={}{}",
        recovered.first_index,
        recovered.last_index,
        recovered.hard_state.term,
        recovered.segments,
        recovered.bytes,
        store.applied(),
        recovered.last_index - store.applied(),
        took_us / 1000,
        parts
            .iter()
            .map(|(part, us)| format!(" {}_ms={}", name(*part), us / 1000))
            .collect::<String>()
    );
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Log => "log",
        Part::Store => "store",
        Part::Restore => "restore",
    }
}

fn tell_space(full: bool) {
    if full {
        warning!(
            "the disk is full and the reserve in use: writes that add data are refused where this \
             node leads; reads and deletes go on"
        );
    } else {
        info!("the disk has space again and the reserve is whole: all writes are taken");
    }
}

/// A thread that panics has met a bug of ours: the node must not go on without it, half alive.
/// Release builds abort by themselves.
fn stop_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        logging::flush();
        report(panic);
        std::process::abort();
    }));
}

fn lock_directory(disk: &dyn Disk, data: &Path) -> Result<DirLock, StartError> {
    let io_error = |what: &str, path: &Path, source| StartError::Io {
        what: format!("cannot {what} {}", path.display()),
        source,
    };
    disk.create_dir(data).map_err(|e| io_error("create directory", data, e))?;
    disk.lock(data).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => StartError::InUse { data: data.to_path_buf() },
        _ => io_error("lock", &data.join(LOCK_FILE), e),
    })
}

/// Whether nothing was ever stored there.
fn is_new(disk: &dyn Disk, data: &Path) -> bool {
    match disk.list(data) {
        Ok(names) => names.iter().all(|name| name == LOCK_FILE),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

/// The backup to begin from, if one was named. For a new directory it is checked from end to end
/// before anything is made. A node that is there already needs none: its file may be gone.
fn backup(
    disk: &dyn Disk,
    options: &ServerOptions,
    is_new: bool,
) -> Result<Option<Backup>, StartError> {
    let Some(path) = &options.restore else { return Ok(None) };
    let opened = Backup::open(disk, path).and_then(|backup| {
        if is_new {
            info!("checks the backup {} applied={}", path.display(), backup.contents().applied);
            backup.verify()?;
        }
        Ok(backup)
    });
    match opened {
        Ok(backup) => Ok(Some(backup)),
        Err(LsmError::Io { source, .. }) if !is_new && source.kind() == io::ErrorKind::NotFound => {
            warning!("the backup {} is not there; goes on with the data", path.display());
            Ok(None)
        }
        Err(source) => Err(StartError::Backup { path: path.clone(), source }),
    }
}

/// Finds out who this node is, and does what that takes ([`Startup`] decides).
fn identify(
    disk: &dyn Disk,
    options: &ServerOptions,
    backup: Option<&Backup>,
    random: &mut RealRandom,
) -> Result<Identity, StartError> {
    let found = Identity::load(disk, &options.data)?;
    let startup_options = StartupOptions {
        data: options.data.display().to_string(),
        advertise: options.advertise.clone(),
        peers: options.peers.clone(),
        join: options.join.clone(),
        backup: backup.map(Backup::fingerprint),
        token: options.token.clone(),
        secret: random.secret(),
        own: random.next_u64(),
        cluster: random.next_u64(),
    };
    let mut startup = Startup::new(startup_options, found);
    let mut joining = None;
    loop {
        let event = match startup.next_effect() {
            StartupEffect::Store(identity) => {
                identity.store(disk, &options.data)?;
                StartupEvent::Stored
            }
            StartupEffect::AskPeer { address, greeting } => {
                StartupEvent::PeerAnswered(join::ask_peer(&address, *greeting).ok().flatten())
            }
            StartupEffect::AskCluster { addresses } => {
                StartupEvent::ClusterAnswered(join::cluster_at(&addresses, &options.token))
            }
            StartupEffect::Join { addresses, identity } => {
                let new = || join::client(&addresses, &options.token);
                match joining.get_or_insert_with(new).join(&options.advertise, identity) {
                    Ok(joined) => StartupEvent::Joined(joined),
                    Err(e) => StartupEvent::NotJoined { class: e.class, why: e.to_string() },
                }
            }
            StartupEffect::Say { warning, text } => {
                let level = if warning { Level::Warn } else { Level::Info };
                log(level, format_args!("{text}"));
                continue;
            }
            StartupEffect::Wait(us) => {
                thread::sleep(Duration::from_micros(us));
                StartupEvent::Waited
            }
            StartupEffect::Run(identity) => return Ok(identity),
            StartupEffect::Refuse(what) => return Err(StartError::Identity { what }),
        };
        startup.handle(event);
    }
}

fn cannot_record(dir: &Path, source: io::Error) -> StartError {
    StartError::Io { what: format!("cannot record in {}", dir.display()), source }
}

/// The system's clock, for a person who reads a recording: nothing goes by it.
fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[allow(clippy::too_many_arguments)] // the parts of a node, each used once
fn run(
    options: ServerOptions,
    budget: Budget,
    identity: &Identity,
    opened: Opened,
    listener: TcpListener,
    lock: DirLock,
    clock: Arc<dyn Clock>,
    disk: Arc<dyn Disk>,
    seed: u64,
) -> Result<JoinHandle<()>, StartError> {
    let Opened { wal, recovered, store, mut worker, .. } = opened;
    let machine = Machine::open(store).map_err(BootError::Store)?;
    let raft_options = raft::Options {
        election_timeout_us: options.election_timeout_ms * 1000,
        heartbeat_us: options.heartbeat_ms * 1000,
        ..raft::Options::new(identity.node, seed)
    };
    let replica_options = ReplicaOptions {
        inflight_bytes_max: options.inflight_bytes_max,
        members_max: MEMBERS_MAX,
        limits: options.limits,
        batch_bytes_max: raft_options.append_bytes_max,
        identity: identity.identity,
        wal_limit_bytes: log_limit(options.wal_limit_bytes, options.limits.max_batch_bytes),
        address: options.advertise.clone(),
    };
    let restored = restored(identity, &recovered, machine.applied());
    let (raft_inbox, raft_events) = raft_inbox();
    let (log_inbox, log_work) = channel();
    let (apply_inbox, apply_work) = channel();
    let (snapshot_inbox, snapshot_events) = channel();
    let reader = machine.reader();
    let receiver = SnapshotReceiver::new(Arc::clone(&disk), &options.data, reader);
    let now_us = clock.now_us();
    let peers_options = PeersOptions {
        identity: identity.identity,
        address: options.advertise.clone(),
        token: options.token.clone(),
        // A directory without one got one when this node found out who it is.
        secret: identity.secret.map(to_show).unwrap_or_default(),
        seeds: options.join,
    };
    let first = first_configuration(identity);
    let recorder = match &options.record {
        None => None,
        Some((dir, bytes_max)) => {
            let start = |life| Start {
                program: env!("CARGO_PKG_VERSION").to_string(),
                life,
                unix_us: unix_us(),
                now_us,
                connections: true,
                first: first.clone(),
                raft: raft_options.clone(),
                restored: restored.clone(),
                replica: replica_options.clone(),
                peers: peers_options.without_secrets(),
                batch_requests_max: BATCH_REQUESTS_MAX as u64,
                holding: machine.is_spoiled(),
                digest: machine.digest(),
                digest_every: machine.digest_every(),
                sessions: machine.session_bounds(),
            };
            let begun = Recorder::begin(dir, identity.node, *bytes_max, start);
            Some(begun.map_err(|e| cannot_record(dir, e))?)
        }
    };
    let raft = Raft::new(raft_options, restored, now_us);
    let members: Vec<String> =
        raft.configuration().members.iter().map(|m| format!("{}@{}", m.id, m.address)).collect();
    info!("members={}", members.join(","));
    let replica = Replica::new(raft, replica_options);
    let node = Node::new(replica, peers_options, now_us);
    let node_state = Arc::new(NodeState {
        address: options.advertise,
        token: options.token,
        limits: options.limits,
        connections_set: options.connections_max,
        connections_max: AtomicUsize::new(budget.connections),
        log_bytes: AtomicU64::new(wal.bytes()),
        ..NodeState::of(identity, machine.reader(), wal.reader(), ClusterView::of(&node))
    });
    let shared = Arc::new(Shared {
        node: node_state,
        clock,
        raft: raft_inbox,
        accepted: AcceptedConnections::default(),
        open: OpenConnections::new(budget.connections),
        bulk_senders: BulkSenders::default(),
        disk,
        data: options.data,
        snapshots: snapshot_inbox,
        refusals: Rate::default(),
        recorder,
        _lock: lock,
    });
    let work = Applier::new(machine, wal.reader(), first);
    let writer = LogWriter::new(wal, BATCH_REQUESTS_MAX);
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        let builder = Builder::new().name(name.into());
        let what = format!("cannot start thread {name}");
        builder.spawn(body).map_err(|source| StartError::Io { what, source })
    };
    let theirs = Arc::clone(&shared);
    spawn("keeper", Box::new(move || listener::keep(&theirs)))?;
    RESERVE.keep(RESERVE_DESCRIPTORS);
    let theirs = Arc::clone(&shared);
    let to_self = log_inbox.clone();
    spawn("log-writer", Box::new(move || log_writer::run(writer, &log_work, to_self, &theirs)))?;
    let (theirs, to_applier) = (Arc::clone(&shared), apply_inbox.clone());
    let background = move || {
        let mut was_full = false;
        let tell = |news| match news {
            News::Flushed(index) => {
                let _ = theirs.raft.send(Input::Flushed { index });
                let _ = to_applier.send(ApplyTask::Flushed);
            }
            News::Damaged => theirs.damage_met(),
            News::WantsFlush => drop(theirs.raft.send(Input::FlushWanted)),
            News::Full(full) => {
                if full != was_full {
                    tell_space(full);
                }
                was_full = full;
                let _ = theirs.raft.send(Input::DiskFull(full));
            }
        };
        if let Err(e) = worker.run(tell) {
            fatal(format_args!("the store's background work failed, the node stops: {e}"));
        }
    };
    spawn("store", Box::new(background))?;
    shared.damage_met();
    let theirs = Arc::clone(&shared);
    let to_applier = apply_inbox.clone();
    let fetch = move || snapshots::run(receiver, &snapshot_events, &to_applier, &theirs);
    spawn("snapshot", Box::new(fetch))?;
    let theirs = Arc::clone(&shared);
    spawn("applier", Box::new(move || applier::run(work, &apply_work, &theirs)))?;
    let theirs = Arc::clone(&shared);
    let body = move || raft_loop::run(node, raft_events, &log_inbox, &apply_inbox, &theirs);
    spawn("raft", Box::new(body))?;
    spawn("listener", Box::new(move || listener::run(&listener, &shared)))
}

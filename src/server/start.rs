//! Bringing a node up: its address, its directory, who it is, its components, their threads.
//!
//! Who the node is [`Startup`] decides, what is done with a backup [`Restore`]; what is on disk is read and, at the
//! very first start, made by [`open`], and becomes components in [`Assembly`]. Here they get sockets and threads.

use super::connections::{AcceptedConnections, BulkSenders};
use super::inbox::raft_inbox;
use super::listener::OpenConnections;
use super::logging::{self, Level, Rate, info, log};
use super::options::{ServerOptions, StartError};
use super::recorder::{self, Recorder};
use super::{Shared, applier, join, listener, log_writer, raft_loop, snapshots, store};
use crate::api::NodeState;
use crate::api::places::{Budget, Demand, RESERVE_DESCRIPTORS};
use crate::env::descriptors::{self, RESERVE};
use crate::env::real::{LOCK_FILE, RealClock, RealDisk, RealRandom};
use crate::env::{Clock, DirLock, Disk, Random as _};
use crate::kv::limits::MAX_BATCH_BYTES_CEILING;
use crate::kv::{Backup, LsmError, StoreOptions};
use crate::node::{
    Assembly, Fixed, Plan, Restore, Settings, Startup, StartupEffect, StartupEvent, StartupOptions,
    log_limit, open, segment_bytes,
};
use crate::raft;
use crate::wal::{self, Identity};
use crate::wire::frame::{CLIENT_FRAME_MAX, PEER_FRAME_MAX};
use std::io;
use std::net::TcpListener;
use std::path::Path;
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
    let restore = options.restore.as_deref();
    let no_backup =
        |(path, source): (&Path, LsmError)| StartError::Backup { path: path.to_path_buf(), source };
    let restore = Restore::look(&*disk, restore, is_new, say).map_err(no_backup)?;
    let lock = lock_directory(&*disk, &options.data)?;
    let identity = identify(&*disk, &options, restore.backup(), &mut random)?;
    restore.check(&identity).map_err(no_backup)?;
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
    let demand = Demand {
        connections: options.connections_max,
        table_files: usual.open_files_max,
        log_files: wal::files_max(options.wal_limit_bytes, segment_bytes),
        peers: identity.members.len() as u64,
    };
    let budget = Budget::within(descriptors::limit(), demand);
    budget.shortage(demand).iter().for_each(|line| say(false, line));
    let store = StoreOptions {
        open_files_max: budget.table_files,
        memtable_bytes: options.memtable_bytes,
        cache_bytes: options.cache_bytes,
        reserve_bytes: options.reserve_bytes,
        ..usual
    };
    let backup = restore.backup();
    let plan =
        Plan { data: &options.data, identity: &identity, segment_bytes, store, restore: backup };
    let (mut parts, mut last_us) = (Vec::new(), started_us);
    let opened = open(&disk, plan, |part| {
        let now_us = clock.now_us();
        parts.push((part, now_us - last_us));
        last_us = now_us;
    })?;
    let lines = opened.lines(&parts, clock.now_us() - started_us);
    lines.iter().for_each(|(warning, line)| say(*warning, line));
    let raft = raft::Options {
        election_timeout_us: options.election_timeout_ms * 1000,
        heartbeat_us: options.heartbeat_ms * 1000,
        ..raft::Options::new(identity.node, random.next_u64())
    };
    let settings = Settings {
        address: options.advertise.clone(),
        token: options.token.clone(),
        seeds: options.join.clone(),
        limits: options.limits,
        inflight_bytes_max: options.inflight_bytes_max,
        wal_limit_bytes: log_limit(options.wal_limit_bytes, options.limits.max_batch_bytes),
        fixed: Fixed::standard(&raft),
        raft,
    };
    let assembly = Assembly::new(&identity, opened, settings)?;
    let now_us = clock.now_us();
    let recorder = match &options.record {
        None => None,
        Some((dir, bytes_max)) => {
            let start = |life| assembly.start(life, unix_us(), now_us);
            let begun = Recorder::begin(dir, identity.node, *bytes_max, start);
            Some(begun.map_err(|e| cannot_record(dir, e))?)
        }
    };
    let parts = assembly.into_parts(&disk, &options.data, now_us);
    let members = &parts.node.replica().raft().configuration().members;
    let members: Vec<String> = members.iter().map(|m| format!("{}@{}", m.id, m.address)).collect();
    info!("members={}", members.join(","));
    let (raft, inputs) = raft_inbox();
    let (snapshots, snapshot_events) = channel();
    let shared = Arc::new(Shared {
        node: Arc::new(NodeState {
            address: options.advertise,
            token: options.token,
            limits: options.limits,
            connections_set: options.connections_max,
            connections_max: AtomicUsize::new(budget.connections),
            log_bytes: AtomicU64::new(parts.log_bytes),
            ..NodeState::of(&identity, parts.reader, parts.log, parts.view)
        }),
        clock,
        raft,
        accepted: AcceptedConnections::default(),
        open: OpenConnections::new(budget.connections),
        bulk_senders: BulkSenders::default(),
        disk,
        data: options.data,
        snapshots,
        refusals: Rate::default(),
        recorder,
        _lock: lock,
    });
    let (log_inbox, log_work) = channel();
    let (apply_inbox, apply_work) = channel();
    let spawn = |name: &str, body: Box<dyn FnOnce(Arc<Shared>) + Send>| {
        let what = format!("cannot start thread {name}");
        let shared = Arc::clone(&shared);
        let started = Builder::new().name(name.into()).spawn(move || body(shared));
        started.map_err(|source| StartError::Io { what, source })
    };
    spawn("keeper", Box::new(|shared| listener::keep(&shared)))?;
    RESERVE.keep(RESERVE_DESCRIPTORS);
    let (writer, to_self) = (parts.log_writer, log_inbox.clone());
    let body = move |shared: Arc<Shared>| log_writer::run(writer, &log_work, to_self, &shared);
    spawn("log-writer", Box::new(body))?;
    let (worker, to_applier) = (parts.worker, apply_inbox.clone());
    spawn("store", Box::new(move |shared| store::run(worker, &to_applier, &shared)))?;
    shared.damage_met();
    let (receiver, to_applier) = (parts.receiver, apply_inbox.clone());
    let body =
        move |shared: Arc<Shared>| snapshots::run(receiver, &snapshot_events, &to_applier, &shared);
    spawn("snapshot", Box::new(body))?;
    let applier = parts.applier;
    spawn("applier", Box::new(move |shared| applier::run(applier, &apply_work, &shared)))?;
    let node = parts.node;
    let body = move |shared: Arc<Shared>| {
        raft_loop::run(node, inputs, &log_inbox, &apply_inbox, &shared);
    };
    spawn("raft", Box::new(body))?;
    spawn("listener", Box::new(move |shared| listener::run(&listener, &shared)))
}

fn say(warning: bool, line: &str) {
    log(if warning { Level::Warn } else { Level::Info }, format_args!("{line}"));
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
                say(warning, &text);
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

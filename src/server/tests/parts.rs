//! What the server's tests share: pairs of sockets, and the shared state of a node without threads.

use super::super::connections::{AcceptedConnections, BulkSenders, Connections};
use super::super::inbox::{RaftEvents, raft_inbox};
use super::super::logging::Rate;
use super::super::sockets::PartialBytes;
use super::super::view::ClusterView;
use super::super::{ClientHandle, Shared, raft_loop};
use crate::env::{Clock, DirLock, real::RealClock};
use crate::kv::{
    Command, Committed, Limits, LsmStore, Machine, Op, StoreOptions, Write, encode_command,
};
use crate::node::{
    ConnectionId, Input, Node, PeerEffect, PeerEvent, PeersOptions, Replica, ReplicaOptions,
    WakeInterest,
};
use crate::raft::{self, Configuration, HardState, Member, NodeId, Raft, Restored, RestoredLog};
use crate::wal::testdisk::TestDisk;
use crate::wal::{self, Wal};
use crate::wire::handshake::{Hello, Reject, Welcome};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::Duration;

/// Both ends of a loopback connection.
pub(crate) fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    (accepted, dialed)
}

/// Node 1 of a cluster of two, whose node 2 is at `address`; and what reaches its raft loop.
pub(crate) fn node_one(address: &str, connections_max: usize) -> (Arc<Shared>, RaftEvents) {
    let (shared, events, _) = made(address, connections_max);
    (shared, events)
}

/// The same with a raft loop that runs, and neither writes a log nor applies anything.
pub(crate) fn running_node_one(address: &str) -> Arc<Shared> {
    let (shared, events, node) = made(address, 10);
    let theirs = Arc::clone(&shared);
    thread::spawn(move || {
        let ((log_writer, _log_work), (applier, _apply_work)) = (channel(), channel());
        raft_loop::run(node, events, &log_writer, &applier, &theirs);
    });
    shared
}

fn made(address: &str, connections_max: usize) -> (Arc<Shared>, RaftEvents, Node<ClientHandle>) {
    let member = |id, address: &str| Member { id, identity: 0, address: address.to_string() };
    let members = vec![member(1, "host:1"), member(2, address)];
    let options =
        wal::Options { segment_bytes: wal::SEGMENT_BYTES_MIN, identity: 1, must_exist: false };
    let (log, _) = Wal::open(TestDisk::default().shared(), Path::new("/log"), options).unwrap();
    let store =
        LsmStore::open(TestDisk::default().shared(), Path::new("/store"), StoreOptions::new(1));
    let mut machine = Machine::open(store.unwrap().0).unwrap();
    let op = Op::Put { key: BIG_KEY.to_vec(), value: vec![b'v'; BIG_VALUE_BYTES] };
    let mut put = Vec::new();
    encode_command(&Command::Write(Write { ops: vec![op], ..Write::default() }), &mut put);
    machine.apply([(1, Committed::Command(&put))]).unwrap();
    let (inbox, events) = raft_inbox();
    let clock: Arc<dyn Clock> = Arc::new(RealClock::default());
    let first = Arc::new(Configuration::of_voters(7, members.clone()));
    let (runs, configurations) = (Vec::new(), vec![(0, first)]);
    let restored_log = RestoredLog { base: 0, base_term: 0, runs, last: 0, configurations };
    let hard_state = HardState::default();
    let restored = Restored { hard_state, log: restored_log, applied: 0 };
    let replica_options = ReplicaOptions {
        inflight_bytes_max: 1 << 20,
        limits: Limits::default(),
        batch_bytes_max: 1 << 20,
        identity: 11,
        wal_limit_bytes: 1 << 30,
        address: "host:1".to_string(),
    };
    let peers_options = PeersOptions {
        identity: 11,
        address: "host:1".to_string(),
        token: Vec::new(),
        seeds: Vec::new(),
    };
    let now_us = clock.now_us();
    let core = Raft::new(raft::Options::new(1, 1), restored, now_us);
    let node = Node::new(Replica::new(core, replica_options), peers_options, now_us);
    let shared = Arc::new(Shared {
        id: 1,
        first: members,
        identity: 11,
        cluster: 7,
        address: "host:1".to_string(),
        token: Vec::new(),
        limits: Limits::default(),
        connections_max,
        clock,
        reader: machine.reader(),
        log: log.reader(),
        raft: inbox,
        view: RwLock::new(Arc::new(ClusterView::of(&node))),
        accepted: AcceptedConnections::default(),
        bulk_senders: BulkSenders::default(),
        connections: AtomicUsize::new(0),
        log_bytes: AtomicU64::new(0),
        disk: TestDisk::default().shared(),
        data: PathBuf::new(),
        snapshots: channel().0,
        fetching: Mutex::new(None),
        different: AtomicBool::new(false),
        damaged: AtomicBool::new(false),
        partial: PartialBytes::default(),
        refusals: Rate::default(),
        _lock: DirLock { guard: Box::new(()), path: PathBuf::new() },
    });
    (shared, events, node)
}

/// Waits for an input that `is` what the test waits for; gives up after ten seconds.
pub(crate) fn wait_for(
    shared: &Shared,
    events: &mut RaftEvents,
    mut is: impl FnMut(&Input<ClientHandle>) -> bool,
) -> bool {
    let interest = WakeInterest { writes: true, reads: true, applied: true };
    for _ in 0..1000 {
        let mut seen = false;
        events.wait(&shared.raft, interest, Duration::from_millis(10), |input| {
            seen |= is(&input);
        });
        if seen {
            return true;
        }
    }
    false
}

/// Waits for what happens on a connection, and gives what `of` makes of it.
pub(crate) fn wait_for_link<T>(
    shared: &Shared,
    events: &mut RaftEvents,
    of: impl Fn(&PeerEvent) -> Option<T>,
) -> T {
    let mut found = None;
    wait_for(shared, events, |input| {
        let Input::Link(event) = input else { return false };
        found = found.take().or_else(|| of(event));
        found.is_some()
    });
    found.expect("it happens in time")
}

/// A node has dialed: what it said.
pub(crate) fn accepted(shared: &Shared, events: &mut RaftEvents) -> (ConnectionId, Hello) {
    wait_for_link(shared, events, |event| match event {
        PeerEvent::Accepted { connection, hello, .. } => Some((*connection, Hello::clone(hello))),
        _ => None,
    })
}

/// An accepted connection ends.
pub(crate) fn wait_for_end(shared: &Shared, events: &mut RaftEvents, of: ConnectionId) {
    wait_for_link(shared, events, |event| {
        matches!(event, PeerEvent::AcceptedClosed { connection } if *connection == of).then_some(())
    });
}

/// Decides on a node that has dialed, in the raft loop's place.
pub(crate) fn decide(
    shared: &Arc<Shared>,
    connection: ConnectionId,
    decision: Result<Welcome, Reject>,
) {
    Connections::new(Arc::clone(shared)).act(match decision {
        Ok(welcome) => PeerEffect::Welcome { connection, welcome },
        Err(reject) => PeerEffect::Reject { connection, reject },
    });
}

/// The one key of the store, and how long its value is.
pub(crate) const BIG_KEY: &[u8] = b"big";
pub(crate) const BIG_VALUE_BYTES: usize = 100 << 10;

/// The peer of the tests.
pub(crate) const PEER: NodeId = 2;

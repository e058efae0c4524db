//! What the server's tests share: pairs of sockets, and the shared state of a node without threads.

use super::super::inbox::{RaftEvents, raft_inbox};
use super::super::logging::Rate;
use super::super::sockets::PartialBytes;
use super::super::{ClientHandle, Shared};
use crate::env::{Clock, DirLock, real::RealClock};
use crate::kv::{
    Command, Committed, Limits, LsmStore, Machine, Op, StoreOptions, Write, encode_command,
};
use crate::node::{Configurations, Input, Promise, Wants};
use crate::raft::{Configuration, Member, NodeId};
use crate::wal::testdisk::TestDisk;
use crate::wal::{self, Wal};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};
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
    let (raft, events) = raft_inbox();
    let clock: Arc<dyn Clock> = Arc::new(RealClock::default());
    let configuration = Arc::new(Configuration::of_voters(7, members.clone()));
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
        raft,
        configurations: RwLock::new(Configurations::settled(configuration)),
        links: RwLock::new(BTreeMap::new()),
        inbound: Mutex::new(BTreeMap::new()),
        inbound_so_far: AtomicU64::new(0),
        leader: AtomicU64::new(0),
        promise: Default::default(),
        dialed_from: Mutex::new(BTreeMap::new()),
        began_at: Promise::default(),
        greeted: Mutex::new(BTreeSet::new()),
        aside: Mutex::new(BTreeMap::new()),
        connections: AtomicUsize::new(0),
        log_bytes: AtomicU64::new(0),
        disk: TestDisk::default().shared(),
        data: PathBuf::new(),
        fetching: Mutex::new(None),
        different: AtomicBool::new(false),
        damaged: AtomicBool::new(false),
        partial: PartialBytes::default(),
        refusals: Rate::default(),
        _lock: DirLock { guard: Box::new(()), path: PathBuf::new() },
    });
    (shared, events)
}

/// Waits for an input that `is` what the test waits for; gives up after ten seconds.
pub(crate) fn wait_for(
    shared: &Shared,
    events: &mut RaftEvents,
    mut is: impl FnMut(&Input<ClientHandle>) -> bool,
) -> bool {
    let wants = Wants { writes: true, reads: true, applied: true };
    for _ in 0..1000 {
        let mut seen = false;
        let alive = events.wait(&shared.raft, wants, Duration::from_millis(10), |input| {
            seen |= is(&input);
        });
        if seen || !alive {
            return seen;
        }
    }
    false
}

/// The one key of the store, and how long its value is.
pub(crate) const BIG_KEY: &[u8] = b"big";
pub(crate) const BIG_VALUE_BYTES: usize = 100 << 10;

/// The peer of the tests.
pub(crate) const PEER: NodeId = 2;

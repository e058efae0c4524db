//! What the server's tests share: pairs of sockets, and the shared state of a node without threads.

use super::super::connections::{AcceptedConnections, BulkSenders, Connections};
use super::super::inbox::{RaftEvents, raft_inbox};
use super::super::listener::OpenConnections;
use super::super::logging::Rate;
use super::super::{ClientHandle, Shared, connection, raft_loop};
use crate::api::places::Places;
use crate::api::tests::node_of_two;
use crate::env::{Clock, DirLock, real::RealClock};
use crate::node::{ConnectionId, Input, Node, PeerEffect, PeerEvent, WakeInterest};
use crate::raft::NodeId;
use crate::wal::testdisk::TestDisk;
use crate::wire::handshake::{Reject, Welcome};
use crate::wire::proof::Presented;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Both ends of a loopback connection.
pub(crate) fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    (accepted, dialed)
}

/// Serves the near end of a connection, which has a place.
pub(crate) fn serve(ours: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let place = Places::new(1).arrive((), shared.clock.now_us()).place;
    connection::serve(&Arc::new(ours), shared, &place, false)
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
    let (inbox, events) = raft_inbox();
    let clock: Arc<dyn Clock> = Arc::new(RealClock::default());
    let (state, node) = node_of_two(address, connections_max, clock.now_us());
    let shared = Arc::new(Shared {
        node: Arc::new(state),
        clock,
        raft: inbox,
        accepted: AcceptedConnections::default(),
        open: OpenConnections::new(connections_max),
        bulk_senders: BulkSenders::default(),
        disk: TestDisk::default().shared(),
        data: PathBuf::new(),
        snapshots: channel().0,
        recorder: None,
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
pub(crate) fn accepted(shared: &Shared, events: &mut RaftEvents) -> (ConnectionId, Presented) {
    wait_for_link(shared, events, |event| match event {
        PeerEvent::Accepted { connection, presented } => {
            Some((*connection, Presented::clone(presented)))
        }
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
    presented: &Presented,
    decision: Result<Welcome, Reject>,
) {
    let frame = presented.answer(&decision, None);
    Connections::new(Arc::clone(shared)).act(match decision {
        Ok(_) => PeerEffect::Welcome { connection, frame },
        Err(reject) => PeerEffect::Reject { connection, reject, frame },
    });
}

/// The peer of the tests.
pub(crate) const PEER: NodeId = 2;

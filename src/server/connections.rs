//! The connections with other nodes as the raft loop holds them: it does what [`crate::node::Peers`]
//! decide, and hands on what is to be sent.
//!
//! Each dialed connection is a thread with an inbox ([`peer_out`]), each accepted one a thread that
//! waits for the decision about it ([`peer_in`]). What happens on them comes back as
//! [`PeerEvent`]s. Nothing is decided here.

use super::logging::{info, warning};
use super::peer_out::{self, Closing, Command};
use super::{Shared, fatal, lock};
use crate::client::Connection;
use crate::env::descriptors::{RESERVE, Shortage};
use crate::node::{ConnectionId, Input, Outgoing, PeerEffect, PeerEvent, PeerVerdict, to_keep};
use crate::raft::NodeId;
use crate::wal::Identity;
use crate::wire::handshake::{Lane, Reject};
use crate::wire::proof::Secret;
use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

/// How long a node may take to say who it is at an address that a person has named.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The dialed connections that may be in use for large frames, for answers to forwarded writes: the
/// applier's thread sends these.
pub(crate) type BulkSenders = RwLock<BTreeMap<NodeId, (ConnectionId, Sender<Command>)>>;

/// The dialed connections; owned by the raft loop.
pub(crate) struct Connections {
    shared: Arc<Shared>,
    dialed: BTreeMap<ConnectionId, Dialed>,
}

struct Dialed {
    peer: NodeId,
    inbox: Sender<Command>,
    closing: Arc<Closing>,
}

impl Connections {
    pub(crate) fn new(shared: Arc<Shared>) -> Connections {
        Connections { shared, dialed: BTreeMap::new() }
    }

    /// Does one thing that the peers want done.
    pub(crate) fn act(&mut self, effect: PeerEffect) {
        match effect {
            PeerEffect::Dial { connection, peer, address, greeting } => {
                match peer_out::start(&self.shared, connection, peer, address, *greeting) {
                    Ok((inbox, closing)) => {
                        self.dialed.insert(connection, Dialed { peer, inbox, closing });
                    }
                    Err(e) => {
                        RESERVE.report(Shortage::Threads);
                        let why = format!("cannot start a thread: {e}");
                        self.tell(PeerEvent::Closed { connection, why });
                    }
                }
            }
            PeerEffect::Open { connection, peer, lane } => {
                self.send(connection, Command::Open);
                if let Some(dialed) = self.dialed.get(&connection).filter(|_| lane == Lane::Bulk) {
                    let mut senders = write(&self.shared.bulk_senders);
                    senders.insert(peer, (connection, dialed.inbox.clone()));
                }
            }
            PeerEffect::Close { connection } => {
                if let Some(dialed) = self.forget(connection) {
                    dialed.closing.close();
                }
            }
            PeerEffect::Hasten { connection } => self.send(connection, Command::Hasten),
            PeerEffect::Welcome { connection, frame } => {
                self.shared.accepted.decide(connection, Decision { rejected: None, frame });
            }
            PeerEffect::Reject { connection, reject, frame } => {
                self.shared.accepted.decide(connection, Decision { rejected: Some(reject), frame });
            }
            PeerEffect::Keep { secret } => keep(&self.shared, secret),
            PeerEffect::Part { connection } => self.shared.accepted.close(connection),
            PeerEffect::Probe { address } => self.probe(address),
            PeerEffect::Say { warning: true, text } => warning!("{text}"),
            PeerEffect::Say { warning: false, text } => info!("{text}"),
            PeerEffect::Stop { verdict, why } => stop(&self.shared, verdict, &why),
        }
    }

    /// Sends on a dialed connection.
    pub(crate) fn transmit(&self, connection: ConnectionId, outgoing: Outgoing) {
        self.send(connection, Command::Send(outgoing));
    }

    /// The raft loop is about to hear of this.
    pub(crate) fn observe(&mut self, event: &PeerEvent) {
        if let PeerEvent::Closed { connection, .. } = event {
            self.forget(*connection);
        }
    }

    /// Lets go of a dialed connection: its thread ends once nobody can send to it.
    fn forget(&mut self, connection: ConnectionId) -> Option<Dialed> {
        let dialed = self.dialed.remove(&connection)?;
        let mut senders = write(&self.shared.bulk_senders);
        if senders.get(&dialed.peer).is_some_and(|(of, _)| *of == connection) {
            senders.remove(&dialed.peer);
        }
        Some(dialed)
    }

    fn send(&self, connection: ConnectionId, command: Command) {
        let unsent = match self.dialed.get(&connection) {
            Some(dialed) => dialed.inbox.send(command).err().map(|e| e.0),
            None => Some(command),
        };
        if let Some(command) = unsent {
            command.give_back(&self.shared);
        }
    }

    fn tell(&self, event: PeerEvent) {
        let _ = self.shared.raft.send(Input::Link(event));
    }

    fn probe(&self, address: String) {
        let shared = Arc::clone(&self.shared);
        let at = address.clone();
        let body = move || {
            let found =
                Connection::dial(&at, &shared.node.token, shared.node.cluster, PROBE_TIMEOUT);
            let node = found.ok().map(|connection| connection.welcome().node);
            let _ = shared.raft.send(Input::Link(PeerEvent::Probed { address: at, node }));
        };
        if thread::Builder::new().name("probe".into()).spawn(body).is_err() {
            RESERVE.report(Shortage::Threads);
            self.tell(PeerEvent::Probed { address, node: None });
        }
    }
}

/// This node must not go on, nor start again. Its data directory says so from now on: the peers that
/// know may have forgotten it the next time, or be down.
fn stop(shared: &Shared, verdict: PeerVerdict, why: &str) -> ! {
    let stored = Identity::load(&*shared.disk, &shared.data).and_then(|identity| {
        let Some(mut identity) = identity else { return Ok(()) };
        verdict.mark(&mut identity);
        identity.store(&*shared.disk, &shared.data)
    });
    if let Err(e) = stored {
        // It will be told again.
        warning!("cannot write down that this node is not to run again: {e}");
    }
    fatal(format_args!("{why}"))
}

/// Makes the members' secret durable. That is done twice in the life of a data directory.
fn keep(shared: &Shared, secret: Secret) {
    let stored = Identity::load(&*shared.disk, &shared.data).and_then(|identity| {
        let Some(identity) = identity else { return Ok(()) };
        let secret = Some(to_keep(secret));
        Identity { secret, ..identity }.store(&*shared.disk, &shared.data)
    });
    if let Err(e) = stored {
        fatal(format_args!("cannot keep the members' secret, the node stops: {e}"));
    }
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// What is decided about an accepted connection.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Why it is not let in, if it is not.
    pub(crate) rejected: Option<Reject>,
    /// The answer.
    pub(crate) frame: Vec<u8>,
}

/// The connections that other nodes have made to this one.
#[derive(Debug, Default)]
pub(crate) struct AcceptedConnections {
    /// How many there have been.
    so_far: AtomicU64,
    all: Mutex<BTreeMap<ConnectionId, Accepted>>,
}

#[derive(Debug)]
struct Accepted {
    /// To close it by.
    stream: Arc<TcpStream>,
    decision: Sender<Decision>,
}

impl AcceptedConnections {
    /// A node has dialed. Gives the number of the connection, and where the decision arrives.
    pub(crate) fn register(&self, stream: &Arc<TcpStream>) -> (ConnectionId, Receiver<Decision>) {
        let (decision, decided) = channel();
        let accepted = Accepted { stream: Arc::clone(stream), decision };
        let connection = self.so_far.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.all).insert(connection, accepted);
        (connection, decided)
    }

    /// A connection has ended.
    pub(crate) fn forget(&self, connection: ConnectionId) {
        lock(&self.all).remove(&connection);
    }

    fn decide(&self, connection: ConnectionId, decision: Decision) {
        if let Some(accepted) = lock(&self.all).get(&connection) {
            let _ = accepted.decision.send(decision);
        }
    }

    fn close(&self, connection: ConnectionId) {
        if let Some(accepted) = lock(&self.all).get(&connection) {
            let _ = accepted.stream.shutdown(Shutdown::Both);
        }
    }
}

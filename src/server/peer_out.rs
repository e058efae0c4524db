//! The thread of a connection that this node has dialed: the handshake, then what is to be sent.
//!
//! It tells the raft loop what happens ([`PeerEvent`]) and does what it is told ([`Command`]). It ends
//! when nobody can send to it any more. Whether the peer is alive is judged by
//! [`crate::node::Sender`], also while a write is blocked ([`super::peer_pump`]).

use super::handshakes::{handshake_reader, shake_hands};
use super::logging::debug;
use super::peer_pump::Pump;
use super::{Shared, lock};
use crate::api::budget::Share;
use crate::env::resolve::connect;
use crate::node::{ConnectionId, Input, Outgoing, PeerEvent};
use crate::raft::NodeId;
use crate::wire::proof::Greeting;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The name is resolved, and all its addresses are tried, within so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The whole handshake takes no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// The connection is in use from now on.
    Open,
    /// To be sent; only behind [`Command::Open`].
    Send(Outgoing),
    /// The answer to what the peer has forwarded, to be sent.
    Answer {
        /// The answer.
        outgoing: Outgoing,
        /// Its part of what unsent answers may hold.
        held: Share,
    },
    /// The next ping is due now.
    Hasten,
}

impl Command {
    /// It comes too late: nothing of it leaves this node.
    pub(super) fn give_back(self, shared: &Shared) {
        if let Command::Send(outgoing) = self
            && let Some(id) = outgoing.forward_id()
        {
            let _ = shared.raft.send(Input::ForwardUnsent { id });
        }
    }
}

/// Closes a dialed connection from outside, whatever its thread is doing.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    closed: AtomicBool,
    stream: Mutex<Option<Arc<TcpStream>>>,
}

impl Closing {
    pub(crate) fn close(&self) {
        // Before the stream is looked for: whoever puts one there looks here next.
        self.closed.store(true, Ordering::SeqCst);
        if let Some(stream) = lock(&self.stream).as_ref() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn watch(&self, stream: &Arc<TcpStream>) {
        *lock(&self.stream) = Some(Arc::clone(stream));
    }
}

/// Starts the thread of a connection.
///
/// # Errors
/// There is none to be had; nothing is told of the connection then.
pub(crate) fn start(
    shared: &Arc<Shared>,
    connection: ConnectionId,
    peer: NodeId,
    address: String,
    greeting: Greeting,
) -> io::Result<(Sender<Command>, Arc<Closing>)> {
    let (sender, inbox) = channel();
    let closing = Arc::new(Closing::default());
    let shared = Arc::clone(shared);
    let dialed = Dialed { shared, connection, peer, address, inbox, closing: Arc::clone(&closing) };
    thread::Builder::new().name(format!("to-peer-{peer}")).spawn(move || dialed.run(greeting))?;
    Ok((sender, closing))
}

struct Dialed {
    shared: Arc<Shared>,
    connection: ConnectionId,
    peer: NodeId,
    address: String,
    inbox: Receiver<Command>,
    closing: Arc<Closing>,
}

impl Dialed {
    fn run(self, greeting: Greeting) {
        if let Err(e) = self.talk(greeting) {
            self.tell(PeerEvent::Closed { connection: self.connection, why: e.to_string() });
        }
        // What is sent before the raft loop has heard of the end.
        while let Ok(command) = self.inbox.recv() {
            command.give_back(&self.shared);
        }
    }

    fn tell(&self, event: PeerEvent) {
        let _ = self.shared.raft.send(Input::Link(event));
    }

    /// Fine when the raft loop has let go of the connection.
    fn talk(&self, greeting: Greeting) -> io::Result<()> {
        let stream = Arc::new(connect(&self.address, CONNECT_TIMEOUT)?);
        self.closing.watch(&stream);
        if self.closing.is_closed() {
            return Ok(());
        }
        let mut reader = handshake_reader();
        let answered = shake_hands(&stream, &mut reader, greeting, HANDSHAKE_TIMEOUT)?;
        let (connection, peer) = (self.connection, self.peer);
        self.tell(PeerEvent::Answered { connection, answered: Box::new(answered) });
        while let Ok(command) = self.inbox.recv() {
            if let Command::Open = command {
                debug!("connected to peer={peer} address={}", self.address);
                let mut pump = Pump::new(&self.shared, connection, peer, &stream, reader)?;
                let ended = pump.run(&self.inbox, &self.closing);
                pump.give_back();
                return ended;
            }
            command.give_back(&self.shared);
        }
        Ok(())
    }
}

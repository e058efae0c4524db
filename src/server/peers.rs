//! The peer senders: one thread and one connection for what goes to each peer.
//!
//! A sender writes whatever is queued in one go. While it has no connection everything queued is
//! dropped: the consensus core sends again what matters, and a forwarded write is given back as
//! unsent, so that it can be forwarded anew. Connections are made anew with a growing pause.

use super::logging::{debug, info, warning};
use super::pulse::{Pulse, handshake_reader};
use super::{ClientHandle, Shared, fatal, lock, members, native};
use crate::env::real::WRITE_AT_ONCE;
use crate::env::resolve::connect;
use crate::kv::codec::put_outcome;
use crate::node::{Forward, Input, LOG_MESSAGE_BYTES, Refusal, Verdict, read_entries};
use crate::raft::{Configuration, Index, LogRead, Member, Message, NodeId};
use crate::wire::client::Class;
use crate::wire::frame::{PEER_FRAME_MAX, PREAMBLE};
use crate::wire::handshake::{self, Reject, RejectCode, Role};
use crate::wire::peer::{self, ForwardAnswer, ForwardResult, PeerFrame};
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What a sender is given.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// For the peer's consensus core.
    Message(Message),
    /// An AppendEntries whose entries are in the log file.
    FromLog(LogRead),
    /// A client's write, for the leader.
    Forward(Forward),
    /// What became of a write that the peer forwarded.
    ForwardAnswer {
        /// The peer's number for it.
        id: u64,
        /// What became of it.
        verdict: Verdict,
    },
    /// This node's digest at an index.
    Digest {
        /// The index.
        index: Index,
        /// The digest.
        digest: u32,
    },
    /// The peer has just dialed: do not wait before the next attempt to reach it, and see whether the
    /// connection to it is still one.
    Nudge,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The whole handshake takes no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that does not take a byte for so long is taken for dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Complaints remembered of one peer: a few for each address that it may be at.
const COMPLAINTS_MAX: usize = 32;
/// Bytes encoded before they are written: bounds the buffer, a write this long is long enough.
const WRITE_BYTES: usize = 1 << 20;

const _: () = assert!(LOG_MESSAGE_BYTES < PEER_FRAME_MAX);

/// Starts the sender for a peer.
pub(crate) fn spawn(shared: &Arc<Shared>, peer: NodeId) -> Sender<Outgoing> {
    let (sender, inbox) = channel();
    let shared = Arc::clone(shared);
    let (buffer, said) = (Vec::new(), BTreeSet::new());
    let link = Link { shared, peer, inbox, buffer, said, attempts: 0 };
    let builder = thread::Builder::new().name(format!("to-peer-{peer}"));
    if let Err(e) = builder.spawn(move || link.run()) {
        fatal(format_args!("cannot start a thread: {e}"));
    }
    sender
}

struct Link {
    shared: Arc<Shared>,
    peer: NodeId,
    inbox: Receiver<Outgoing>,
    buffer: Vec<u8>,
    /// What has been complained of since the peer was last reached, so that it is not repeated.
    said: BTreeSet<String>,
    attempts: u32,
}

/// The inbox is closed: the peer is no member any more.
struct Removed;

impl Link {
    fn run(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            match self.connect() {
                Ok((stream, pulse)) => {
                    pause = PAUSE_MIN;
                    self.said.clear();
                    let broken = self.pump(stream, pulse);
                    self.tell(Input::PeerLost { node: self.peer });
                    match broken {
                        Ok(e) => info!("connection to peer={} broke: {e}", self.peer),
                        Err(Removed) => return,
                    }
                }
                Err(e) => {
                    let text = e.to_string();
                    if self.is_new(&text) {
                        info!("cannot reach peer={}: {text}", self.peer);
                    }
                }
            }
            if self.pause(pause).is_err() {
                return;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whether this complaint has not been made yet.
    fn is_new(&mut self, complaint: &str) -> bool {
        if self.said.len() >= COMPLAINTS_MAX {
            self.said.clear();
        }
        self.said.insert(complaint.to_string())
    }

    fn tell(&self, input: Input<ClientHandle>) {
        let _ = self.shared.raft.send(input);
    }

    /// Waits, dropping what comes in.
    fn pause(&mut self, pause: Duration) -> Result<(), Removed> {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Outgoing::Nudge) | Err(RecvTimeoutError::Timeout) => return Ok(()),
                Ok(outgoing) => self.give_back(&outgoing),
                Err(RecvTimeoutError::Disconnected) => return Err(Removed),
            }
        }
    }

    fn give_back(&self, outgoing: &Outgoing) {
        if let Outgoing::Forward(forward) = outgoing {
            self.tell(Input::ForwardUnsent { id: forward.id });
        }
    }

    fn connect(&mut self) -> io::Result<(TcpStream, Pulse)> {
        let configuration = self.shared.configuration();
        // Where it is not found, it is looked for elsewhere the next time.
        let whom = self.shared.whom(self.peer);
        self.attempts = self.attempts.wrapping_add(1);
        let member = whom.get(self.attempts as usize % whom.len().max(1));
        let member = member.ok_or_else(|| io::Error::other("it is not a member"))?;
        let mut stream = connect(&member.address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        if let Some(why) = self.shared.is_aside(self.peer, None) {
            return Err(io::Error::other(why));
        }
        let promise = self.shared.shown_to(self.peer);
        let hello = self.shared.hello(Role::Peer, member, promise);
        self.buffer.clear();
        self.buffer.extend_from_slice(&PREAMBLE);
        handshake::put_hello(&mut self.buffer, &hello);
        self.flush(&mut stream)?;
        let mut reader = handshake_reader();
        let until = Instant::now() + HANDSHAKE_TIMEOUT;
        let answer = native::read_one_frame(&stream, &mut reader, until)?;
        match handshake::take_answer(&answer) {
            Ok(Ok(welcome)) => {
                if welcome.cluster != self.shared.cluster || welcome.node != self.peer {
                    return Err(io::Error::other("another node answers at its address"));
                }
                debug!("connected to peer={} address={}", self.peer, member.address);
                lock(&self.shared.greeted).insert(self.peer);
                self.tell(Input::PeerConnected { node: self.peer, identity: welcome.identity });
                Ok((stream, Pulse::new(reader, Instant::now())))
            }
            Ok(Err(reject)) => {
                let text = match of_reject(&reject, &configuration, &self.shared, member) {
                    Rejection::Wiped(why) => {
                        self.shared.remember_denial();
                        fatal(format_args!("{why}"))
                    }
                    Rejection::Removed(why) => {
                        self.shared.remember_removal();
                        fatal(format_args!("{why}"))
                    }
                    Rejection::Refused(text) => text,
                };
                if self.is_new(&text) {
                    warning!("peer={} {text}", self.peer);
                }
                Err(io::Error::other(text))
            }
            Err(e) => Err(io::Error::other(e.to_string())),
        }
    }

    /// Writes what comes in, and a ping now and then, until the connection breaks or the peer shows
    /// no sign of life.
    fn pump(&mut self, mut stream: TcpStream, mut pulse: Pulse) -> Result<io::Error, Removed> {
        loop {
            let now = Instant::now();
            if let Err(e) = pulse.beat(&stream, &mut self.buffer, now) {
                return Ok(e);
            }
            if let Some((leader, address)) = pulse.told.take() {
                members::heard_of(&self.shared, leader, &address);
            }
            // A ping does not wait for something to go with.
            let wait = if self.buffer.is_empty() { pulse.wait(now) } else { Duration::ZERO };
            let mut next = match self.inbox.recv_timeout(wait) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Err(Removed),
            };
            while let Some(outgoing) = next {
                if let Outgoing::Nudge = outgoing {
                    pulse.hasten(Instant::now());
                }
                self.encode(outgoing);
                next =
                    if self.buffer.len() < WRITE_BYTES { self.inbox.try_recv().ok() } else { None };
            }
            if let Err(e) = self.flush(&mut stream) {
                return Ok(e);
            }
        }
    }

    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        self.buffer.chunks(WRITE_AT_ONCE).try_for_each(|piece| stream.write_all(piece))?;
        self.buffer.clear();
        if self.buffer.capacity() > 4 * WRITE_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn encode(&mut self, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Message(message) => {
                peer::put_message(&mut self.buffer, &message);
            }
            Outgoing::FromLog(read) => self.send_from_log(&read),
            Outgoing::Forward(Forward { id, deadline_ms, command }) => {
                let forward = peer::Forward { id, deadline_ms, command };
                peer::put_forward(&mut self.buffer, &forward);
            }
            Outgoing::ForwardAnswer { id, verdict } => {
                let answer = ForwardAnswer { id, result: result_of(&verdict) };
                peer::put_forward_answer(&mut self.buffer, &answer);
            }
            Outgoing::Digest { index, digest } => {
                let frame = PeerFrame::Digest { index, digest };
                peer::put_peer_frame(&mut self.buffer, &frame);
            }
            Outgoing::Nudge => {}
        }
    }

    fn send_from_log(&mut self, read: &LogRead) {
        let (made, told) = read_entries(read, &self.shared.log);
        // Before the peer can answer.
        self.tell(Input::EntriesRead(told));
        match made {
            Ok(Some(message)) => {
                peer::put_message(&mut self.buffer, &message);
            }
            Ok(None) => {}
            Err(e) => warning!("cannot read entries for peer={}: {e}", self.peer),
        }
    }
}

/// What a reject means for this node.
#[derive(Debug, PartialEq, Eq)]
enum Rejection {
    /// This node must not go on: it would vote under the id of a directory that is gone.
    Wiped(String),
    /// The cluster has removed this node for ever.
    Removed(String),
    /// The peer does not talk to this node; the others may.
    Refused(String),
}

/// A peer that knows another directory under this node's id is to be believed as long as this
/// node's log does not bind the id to its own: what this node would vote or acknowledge may have
/// been promised otherwise. Once the log binds it, a majority has elected a leader that knew this
/// directory and has committed with it: then the peer is of another life of the cluster, and to
/// stop would only take away what is served.
fn of_reject(
    reject: &Reject,
    configuration: &Configuration,
    shared: &Shared,
    dialed: &Member,
) -> Rejection {
    let Reject { code, message } = reject;
    // Where it was reached: it may have moved since, or be no member that is known.
    let (peer, address) = (dialed.id, &dialed.address);
    let (id, own) = (shared.id, &shared.address);
    let data = shared.data.display();
    if *code == RejectCode::Removed {
        return Rejection::Removed(format!(
            "node {peer} at {address} says: {message}. This node stops, and {data} is of no use any \
             more; to take this machine in again start it with an empty --data and --join {address}"
        ));
    }
    let way_out = format!(
        "It must not vote under the old id. If the disk of node {id} is lost for ever, run: kontiki \
         cli -a {address} member replace {id} {own} -- and start this node with an empty --data \
         and --join {address}; see docs/operations.md, \"A wiped or damaged disk\""
    );
    if *code == RejectCode::OldCopy {
        return Rejection::Wiped(format!(
            "node {peer} at {address} says: {message}. {data} is an old copy of its disk. {way_out}"
        ));
    }
    if *code != RejectCode::WrongIdentity {
        return Rejection::Refused(format!("it refuses the connection: {message}"));
    }
    let identity = |id| configuration.member(id).map_or(0, |m| m.identity);
    if identity(id) == shared.identity {
        return Rejection::Refused(format!(
            "node {peer} at {address} has a data directory of another life of this cluster and is \
             left out ({message}); see docs/operations.md, \"A wiped or damaged disk\""
        ));
    }
    if identity(id) == 0 && identity(peer) != 0 {
        return Rejection::Refused(format!("it refuses the connection: {message}"));
    }
    Rejection::Wiped(format!(
        "node {peer} at {address} says: {message}. {data} is not the data directory that node {id} \
         of the cluster had: its disk was wiped or exchanged. {way_out}"
    ))
}

fn result_of(verdict: &Verdict) -> ForwardResult {
    match verdict {
        Verdict::Applied(outcome) => {
            let mut bytes = Vec::new();
            put_outcome(&mut bytes, outcome);
            ForwardResult::Applied(bytes)
        }
        Verdict::NotApplied(refusal) => {
            let class = match refusal {
                Refusal::Busy { .. } | Refusal::LeaderBusy => Class::Busy,
                Refusal::DiskFull { .. } => Class::DiskFull,
                _ => Class::Unavailable,
            };
            ForwardResult::Refused { class, message: refusal.to_string() }
        }
        Verdict::Unknown(why) => {
            ForwardResult::Refused { class: Class::Unknown, message: (*why).to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parts::{PEER, node_one};
    use super::*;

    /// What the rejection of the peer means to node 1 when its log binds these identities.
    fn rejected(own: u64, peer: u64) -> Rejection {
        let (shared, _events) = node_one("host:2", 1);
        let mut configuration = Configuration::clone(&shared.configuration());
        configuration.members[0].identity = own;
        configuration.members[1].identity = peer;
        let reject = Reject { code: RejectCode::WrongIdentity, message: "no".to_string() };
        of_reject(&reject, &configuration, &shared, &configuration.members[1])
    }

    /// A node that was away is told by one that was taken in meanwhile, or by one that has moved: the
    /// command that it names leads to where that is.
    #[test]
    fn the_way_out_names_the_address_that_was_dialed() {
        let (shared, _events) = node_one("host:2", 1);
        for (id, code) in [(4, RejectCode::Removed), (PEER, RejectCode::OldCopy)] {
            let reject = Reject { code, message: "no".to_string() };
            let dialed = Member { id, identity: 0, address: "there:9".to_string() };
            let (Rejection::Removed(text) | Rejection::Wiped(text)) =
                of_reject(&reject, &shared.configuration(), &shared, &dialed)
            else {
                panic!("goes on");
            };
            assert!(text.contains(&format!("node {id} at there:9 says")), "{text}");
            assert!(text.contains("--join there:9"), "{text}");
        }
    }

    /// A wiped node is told by a peer that remembers its old disk: it stops, for nothing in its log
    /// says that it is a member. Two wiped nodes have formed a cluster without the third, which
    /// comes back with its old disk: they go on, whether or not they had bound it.
    #[test]
    fn only_a_node_that_is_not_bound_stops_when_its_identity_is_denied() {
        assert!(matches!(rejected(0, 0), Rejection::Wiped(_)));
        assert!(matches!(rejected(99, 0), Rejection::Wiped(_)));
        // It has got the log from one that did not know whose disk it has; now its own says so, too.
        assert!(matches!(rejected(99, 22), Rejection::Wiped(_)));
        for peer in [0, 22] {
            let Rejection::Refused(text) = rejected(11, peer) else { panic!("stops") };
            assert!(text.contains("another life of this cluster"), "{text}");
        }
        assert!(matches!(rejected(0, 22), Rejection::Refused(_)));
    }

    /// A peer that is full, say, stops nobody.
    #[test]
    fn other_rejections_stop_nobody() {
        let (shared, _events) = node_one("host:2", 1);
        let reject = Reject { code: RejectCode::ForeignCluster, message: "no".to_string() };
        let configuration = shared.configuration();
        let meaning = of_reject(&reject, &configuration, &shared, &configuration.members[1]);
        assert_eq!(meaning, Rejection::Refused("it refuses the connection: no".to_string()));
    }
}

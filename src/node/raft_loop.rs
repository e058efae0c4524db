//! The raft loop's component: a replica and the node's connections, and what one tells the other.
//!
//! What happened on a connection goes to [`Peers`]; what follows from it for the consensus core, and
//! everything else, goes to the [`Replica`]. What the replica wants sent is given a connection here: a
//! message to a peer that has none is dropped, since the core sends again what matters, and a forwarded
//! write is given back at once.
//!
//! Once the node has come to a verdict about itself ([`PeerEffect::Stop`]) nothing leaves it any more.

use super::admin::AdminForward;
use super::changes::ChangeRefused;
use super::events::{Effects, Input};
use super::inbox::WakeInterest;
use super::peers::{ConnectionId, PeerEffect, Peers, PeersOptions, Told};
use super::replica::Replica;
use super::words::{Answer, Forward, Verdict};
use crate::raft::{Body, Index, LogRead, Message, NodeId};
use crate::wire::handshake::Lane;

/// What is sent on a dialed connection.
#[derive(Clone, Debug)]
pub enum Outgoing {
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
    /// What an operator asks, for the leader.
    Admin(AdminForward),
    /// What became of such a request that the peer has passed on.
    AdminAnswer {
        /// The peer's number for it.
        id: u64,
        /// The answer.
        result: Result<NodeId, ChangeRefused>,
    },
    /// This node's digest at an index.
    Digest {
        /// The index.
        index: Index,
        /// The digest.
        digest: u32,
    },
}

impl Outgoing {
    /// The answer to what a peer has forwarded.
    pub fn answer(id: u64, answer: Answer) -> Option<Outgoing> {
        match answer {
            Answer::Write(verdict) => Some(Outgoing::ForwardAnswer { id, verdict }),
            Answer::Transfer(result) | Answer::Changed(result) => {
                Some(Outgoing::AdminAnswer { id, result })
            }
            // Peers ask for nothing else.
            Answer::Read(_) | Answer::Status(_) | Answer::Flushed(_) => None,
        }
    }

    /// This node's number of what is forwarded: it is given back when it was not sent.
    pub fn forward_id(&self) -> Option<u64> {
        match self {
            Outgoing::Forward(forward) => Some(forward.id),
            Outgoing::Admin(forward) => Some(forward.id),
            _ => None,
        }
    }

    /// The lane that it travels on: nothing that must be on time waits behind something large.
    pub fn lane(&self) -> Lane {
        match self {
            Outgoing::Message(Message { body: Body::AppendEntries { .. }, .. })
            | Outgoing::FromLog(_)
            | Outgoing::Forward(_)
            | Outgoing::ForwardAnswer { .. }
            | Outgoing::Admin(_)
            | Outgoing::AdminAnswer { .. } => Lane::Bulk,
            Outgoing::Message(_) | Outgoing::Digest { .. } => Lane::Control,
        }
    }
}

/// What a node wants done, in the order of the fields. Everything may be done at once.
#[derive(Debug)]
pub struct NodeEffects<C> {
    /// For the owner of the connections.
    pub links: Vec<PeerEffect>,
    /// For the other threads of the node. Nothing in it is to be sent.
    pub replica: Effects<C>,
    /// For dialed connections that are in use.
    pub sends: Vec<(ConnectionId, Outgoing)>,
}

/// See the module.
#[derive(Debug)]
pub struct Node<C> {
    replica: Replica<C>,
    peers: Peers,
}

impl<C: Clone> Node<C> {
    /// A node that has just started.
    pub fn new(replica: Replica<C>, options: PeersOptions, now_us: u64) -> Node<C> {
        let mut peers = Peers::new(replica.raft(), options, now_us);
        peers.begin();
        Node { replica, peers }
    }

    /// The replica, for whoever watches.
    pub fn replica(&self) -> &Replica<C> {
        &self.replica
    }

    /// The connections, for whoever watches.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Something happened. Effects are taken with [`Node::effects`], once for many inputs.
    pub fn handle(&mut self, input: Input<C>, now_us: u64) {
        match input {
            Input::Link(event) => {
                self.peers.handle(event, self.replica.raft(), now_us);
                self.tell(now_us);
            }
            Input::Peer(message) => {
                self.peers.heard(&message, now_us);
                self.replica.handle(Input::Peer(message), now_us);
            }
            input => self.replica.handle(input, now_us),
        }
    }

    fn tell(&mut self, now_us: u64) {
        for told in self.peers.take_told() {
            let input = match told {
                Told::Connected { node, identity, lane: Lane::Bulk } => {
                    Input::PeerConnected { node, identity }
                }
                Told::Connected { node, identity, lane: Lane::Control } => {
                    Input::PeerReached { node, identity }
                }
                Told::LetIn { node, identity, address } => {
                    Input::PeerDialed { node, identity, address }
                }
                Told::Gone { node } => Input::PeerLost { node },
                Told::FlowLost { node } => Input::FlowLost { node },
            };
            self.replica.handle(input, now_us);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now_us: u64) {
        self.replica.tick(now_us);
        self.peers.tick(self.replica.raft(), now_us);
    }

    /// When [`Node::tick`] must be called next.
    pub fn next_tick_us(&self) -> u64 {
        self.replica.next_tick_us().min(self.peers.next_tick_us(self.replica.raft()))
    }

    /// What is worth waking for.
    pub fn wake_interest(&self) -> WakeInterest {
        self.replica.wake_interest()
    }

    /// Does what can be done now, and says what is to be done outside.
    pub fn effects(&mut self, now_us: u64) -> NodeEffects<C> {
        let mut replica = self.replica.effects();
        self.peers.follow(self.replica.raft());
        self.tell(now_us);
        let links = self.peers.take_effects();
        if self.peers.is_stopped() {
            return NodeEffects { links, replica: Effects::default(), sends: Vec::new() };
        }
        let mut sends = Vec::new();
        let mut send = |to: NodeId, outgoing: Outgoing| {
            let connection = self.peers.connection(to, outgoing.lane());
            sends.extend(connection.map(|connection| (connection, outgoing)));
            connection.is_some()
        };
        for message in std::mem::take(&mut replica.messages) {
            send(message.to, Outgoing::Message(message));
        }
        for read in std::mem::take(&mut replica.from_log) {
            send(read.message.to, Outgoing::FromLog(read));
        }
        if let Some((index, digest)) = replica.digest.take() {
            for id in self.peers.others() {
                send(id, Outgoing::Digest { index, digest });
            }
        }
        let mut unsent = Vec::new();
        for (to, forward) in std::mem::take(&mut replica.forwards) {
            let id = forward.id;
            if !send(to, Outgoing::Forward(forward)) {
                unsent.push(id);
            }
        }
        for (to, forward) in std::mem::take(&mut replica.admin) {
            let id = forward.id;
            if !send(to, Outgoing::Admin(forward)) {
                unsent.push(id);
            }
        }
        for id in unsent {
            self.replica.handle(Input::ForwardUnsent { id }, now_us);
        }
        NodeEffects { links, replica, sends }
    }
}

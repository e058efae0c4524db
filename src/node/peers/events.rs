//! What happens to [`super::Peers`], and what they want done.

use crate::raft::NodeId;
use crate::wal::Identity;
use crate::wire::handshake::{Lane, Reject};
use crate::wire::proof::{Answered, Greeting, Presented, Secret};

/// This node's number for a connection, of its own life: [`super::Peers`] number those that they dial,
/// the owner those that it accepts.
pub type ConnectionId = u64;

/// Something happened on a connection with another node.
#[derive(Clone, Debug)]
pub enum PeerEvent {
    /// A node dialed, and knows the token ([`crate::wire::proof`]). It is answered by
    /// [`PeerEffect::Welcome`] or [`PeerEffect::Reject`].
    Accepted {
        /// The owner's number, never used again.
        connection: ConnectionId,
        /// What it says, and shows.
        presented: Box<Presented>,
    },
    /// An accepted connection has ended.
    AcceptedClosed {
        /// Which.
        connection: ConnectionId,
    },
    /// The dialed node has answered the Hello.
    Answered {
        /// Which.
        connection: ConnectionId,
        /// Its answer, and what it shows.
        answered: Box<Answered>,
    },
    /// A dialed connection was not made, or has ended.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// Why, for a person.
        why: String,
    },
    /// A hastened ping on a dialed connection was not answered ([`super::Due::Silent`]).
    Silent {
        /// Which.
        connection: ConnectionId,
    },
    /// A pong says who leads, and where.
    LeaderNamed {
        /// The leader.
        leader: NodeId,
        /// Where it is.
        address: String,
    },
    /// Who answers at an address that was to be probed ([`PeerEffect::Probe`]); none when nobody does.
    Probed {
        /// The address.
        address: String,
        /// The node there.
        node: Option<NodeId>,
    },
}

/// Something is to be done with a connection.
#[derive(Clone, Debug)]
pub enum PeerEffect {
    /// Dial: answered by [`PeerEvent::Answered`] or [`PeerEvent::Closed`].
    Dial {
        /// The new connection.
        connection: ConnectionId,
        /// Whom.
        peer: NodeId,
        /// Where: all addresses of that name in turn.
        address: String,
        /// What to say, and to show.
        greeting: Box<Greeting>,
    },
    /// A dialed connection is in use from now on.
    Open {
        /// Which.
        connection: ConnectionId,
        /// With whom.
        peer: NodeId,
        /// What for.
        lane: Lane,
    },
    /// A dialed connection is of no use any more. Nothing more is told of it.
    Close {
        /// Which.
        connection: ConnectionId,
    },
    /// The next ping on a dialed connection is due now ([`super::Keepalive::hasten`]).
    Hasten {
        /// Which.
        connection: ConnectionId,
    },
    /// The dialer is let in. What it sends counts from now on.
    Welcome {
        /// Which.
        connection: ConnectionId,
        /// The answer's frame.
        frame: Vec<u8>,
    },
    /// The dialer is not let in.
    Reject {
        /// Which.
        connection: ConnectionId,
        /// The answer.
        reject: Reject,
        /// Its frame.
        frame: Vec<u8>,
    },
    /// The members' secret has changed: durable in the data directory before any later effect is done.
    Keep {
        /// It.
        secret: Secret,
    },
    /// An accepted connection is to be closed.
    Part {
        /// Which.
        connection: ConnectionId,
    },
    /// Ask who is at that address: answered by [`PeerEvent::Probed`].
    Probe {
        /// The address.
        address: String,
    },
    /// Something for a person. What is said again and again is bounded.
    Say {
        /// It needs a person's attention.
        warning: bool,
        /// The line.
        text: String,
    },
    /// This node must not go on, nor start again: nothing leaves it any more.
    Stop {
        /// What its data directory is to say from now on.
        verdict: Verdict,
        /// Why, and the way out.
        why: String,
    },
}

/// Why a data directory is of no use any more. It cannot be taken back, so it rests on evidence that
/// cannot be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The node was removed from the cluster.
    Removed,
    /// The disk was wiped or exchanged: another data directory is known under its id.
    Impostor,
    /// The disk is an old copy: it does not hold what the node has promised.
    RolledBack,
}

impl Verdict {
    /// Writes it down.
    pub fn mark(self, identity: &mut Identity) {
        match self {
            Verdict::Removed => identity.removed = true,
            Verdict::Impostor | Verdict::RolledBack => identity.denied = true,
        }
    }
}

/// What the replica is told of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node) enum Told {
    /// A dialed connection is in use.
    Connected { node: NodeId, identity: u64, lane: Lane },
    /// A node was let in; where it says that it is reached.
    LetIn { node: NodeId, identity: u64, address: String },
    /// The peer has closed its last connection for small frames: its process has ended, most likely.
    Gone { node: NodeId },
    /// What was under way between the two in bulk is lost.
    FlowLost { node: NodeId },
}

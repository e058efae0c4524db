//! What goes into a replica and what comes out: inputs and effects.

use super::admin::AdminForward;
use super::changes::ChangeRefused;
use super::digests::Difference;
use super::peers::PeerEvent;
use super::words::{Answer, Forward, ReplyTo, Request, Verdict};
use crate::raft::{
    Committed, Configuration, EntriesRead, Index, LogRead, Message, NodeId, Offer, Persist,
    RoleName, SnapshotMark, Term,
};
use std::sync::Arc;

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Input<C> {
    /// A client asks for something.
    Client {
        /// The client.
        client: C,
        /// Its requests, each with its number and the time by which it must be answered.
        requests: Vec<(u64, u64, Request)>,
    },
    /// A message from a peer.
    Peer(Message),
    /// A follower forwards writes.
    Forwarded {
        /// The follower.
        from: NodeId,
        /// The write.
        forward: Forward,
    },
    /// The leader says what became of a forwarded write.
    ForwardAnswered {
        /// Who says so.
        from: NodeId,
        /// This node's number for it.
        id: u64,
        /// What became of it.
        verdict: Verdict,
    },
    /// What was forwarded, a write or what an operator asked, never left this node.
    ForwardUnsent {
        /// This node's number for it.
        id: u64,
    },
    /// A follower passes on what an operator asked of it.
    AdminForwarded {
        /// The follower.
        from: NodeId,
        /// What is asked.
        forward: AdminForward,
    },
    /// The leader answers such a request.
    AdminAnswered {
        /// Who says so.
        from: NodeId,
        /// This node's number for it.
        id: u64,
        /// The answer.
        result: Result<NodeId, ChangeRefused>,
    },
    /// Something happened on a connection with another node: for [`super::Peers`].
    Link(PeerEvent),
    /// A connection to a peer for small frames was made, and its identity is known.
    PeerReached {
        /// The peer.
        node: NodeId,
        /// Its identity.
        identity: u64,
    },
    /// A connection to a peer for entries was made, and its identity is known: what was sent before may
    /// be lost.
    PeerConnected {
        /// The peer.
        node: NodeId,
        /// Its identity.
        identity: u64,
    },
    /// A peer has made a connection to this node. It comes before anything that the peer sends on it.
    PeerDialed {
        /// The peer.
        node: NodeId,
        /// Its identity.
        identity: u64,
        /// Where it says that it is reached.
        address: String,
    },
    /// The peer has closed its last connection for small frames: most likely its process has ended.
    /// Answers to forwards may be lost with it, and whoever waits is told that the outcome is unknown.
    /// That is pessimistic for the few that the peer is yet to answer, but waiting for the deadline
    /// would seldom help.
    PeerLost {
        /// The peer.
        node: NodeId,
    },
    /// A connection for entries and forwards has ended, whichever of the two: what was under way on it
    /// may be lost.
    FlowLost {
        /// The peer.
        node: NodeId,
    },
    /// What became of an entry of [`Effects::from_log`]: the sender says it. It comes
    /// before the answer to what is sent.
    EntriesRead(EntriesRead),
    /// The log writer has made everything up to this request durable.
    Persisted {
        /// Number of the request.
        seq: u64,
        /// Bytes in use in the log.
        log_bytes: u64,
    },
    /// The log writer has cut the log.
    Compacted {
        /// Bytes in use in the log.
        log_bytes: u64,
    },
    /// The applier has applied everything up to this index.
    Applied {
        /// The index.
        index: Index,
        /// The store holds everything up to here durably.
        flushed: Index,
    },
    /// The applier rests before it applies on, for the store has got more than it can put away
    /// ([`super::Applier::take_rest_us`]). A leader proposes nothing meanwhile: a read then finds everything
    /// that is committed applied, and does not wait for the rest to end.
    Rests {
        /// Until then, on the node's clock.
        until_us: u64,
    },
    /// The store's background has made everything up to here durable.
    Flushed {
        /// The index.
        index: Index,
    },
    /// Damage was met in the store.
    Damaged,
    /// A replica, this one or another, has this digest at this index.
    Digest {
        /// The replica.
        node: NodeId,
        /// The index.
        index: Index,
        /// The digest.
        digest: u32,
    },
    /// Whether this node's disk is full: at each change, and, as long as it is, whenever a flush of
    /// the store might help.
    DiskFull(bool),
    /// What the store's memory hides on disk is worth a flush, though nothing else calls for one.
    FlushWanted,
    /// The store holds a snapshot that ends there, durably; the log is to go on behind it.
    Installed {
        /// Where it ends.
        mark: SnapshotMark,
    },
}

/// What a replica wants done. Everything may be done at once.
#[derive(Debug)]
pub struct Effects<C> {
    /// For the log writer.
    pub persist: Option<Persist>,
    /// For the peers.
    pub messages: Vec<Message>,
    /// For the peers, once read from the log file: see [`super::Sender`].
    pub from_log: Vec<LogRead>,
    /// For the applier.
    pub apply: Option<Apply<C>>,
    /// For the applier: the store is to flush.
    pub flush: bool,
    /// For the applier: the store is damaged, and a snapshot is to be fetched in its place from
    /// whoever has one.
    pub repair: bool,
    /// For the log writer: the log up to here is not needed any more.
    pub compact: Option<Index>,
    /// The leader offers a snapshot that this node needs: it is to be fetched. It may be repeated.
    pub offer: Option<Offer>,
    /// For the leader.
    pub forwards: Vec<(NodeId, Forward)>,
    /// For the leader: what operators ask of it.
    pub admin: Vec<(NodeId, AdminForward)>,
    /// For all other members: this node's digest at an index.
    pub digest: Option<(Index, u32)>,
    /// Replicas differ, which must never be: for a person to hear of.
    pub difference: Option<Difference>,
    /// For whoever waits.
    pub answers: Vec<(ReplyTo<C>, Answer)>,
    /// The configuration in force, when it changed.
    pub configuration: Option<Arc<Configuration>>,
    /// The role or the leader changed: term, role, leader.
    pub role: Option<(Term, RoleName, Option<NodeId>)>,
}

impl<C> Default for Effects<C> {
    fn default() -> Effects<C> {
        Effects {
            persist: None,
            messages: Vec::new(),
            from_log: Vec::new(),
            apply: None,
            flush: false,
            repair: false,
            compact: None,
            offer: None,
            forwards: Vec::new(),
            admin: Vec::new(),
            digest: None,
            difference: None,
            answers: Vec::new(),
            configuration: None,
            role: None,
        }
    }
}

/// Committed entries and who waits for which of them.
#[derive(Debug)]
pub struct Apply<C> {
    /// The entries.
    pub committed: Committed,
    /// Ascending by index.
    pub waiters: Vec<(Index, ReplyTo<C>)>,
    /// This is the only member, and nobody else can make a damaged store whole: what does not need the damaged part is
    /// applied.
    pub alone: bool,
}

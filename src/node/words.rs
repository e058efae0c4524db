//! The words that the components of a node use among themselves.

use super::changes::{Change, ChangeRefused};
use super::status::Status;
use crate::kv::bytes::Malformed;
use crate::kv::{NotTaken, Outcome, TooLarge};
use crate::raft::{Index, NodeId};
use crate::wire::client::Class;
use std::fmt;
use std::sync::Arc;

/// Who waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyTo<C> {
    /// A client of this node.
    Client {
        /// The client.
        client: C,
        /// Its number for the request.
        request: u64,
    },
    /// A follower that forwarded what a client asked of it.
    Peer {
        /// The follower.
        node: NodeId,
        /// Its number for the request.
        id: u64,
    },
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is committed and was applied.
    Applied(Outcome),
    /// It did not take effect and never will.
    NotApplied(Refusal),
    /// It may or may not take effect.
    Unknown(&'static str),
}

/// Why something surely has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No leader was known in time.
    NoLeader,
    /// The node it was sent to does not lead (any more).
    NotLeader,
    /// Another entry was committed at the log index it had.
    Overwritten,
    /// This node holds as many bytes of unanswered writes as it may.
    Busy {
        /// The bound.
        bytes_max: usize,
    },
    /// The leader holds as many bytes of unanswered writes as it may.
    LeaderBusy,
    /// The store of this node is damaged.
    Damaged,
    /// It reads a key that lies in a damaged part of the store, and there is no other node.
    Unreadable,
    /// The deadline passed before it was begun.
    Deadline,
    /// The disk of the node that leads is full, and it would add data.
    DiskFull {
        /// That node.
        node: NodeId,
    },
    /// It is over a limit of the node that would have proposed it, which its flags set.
    TooLarge {
        /// That node, when it is not the one that was asked.
        leader: Option<NodeId>,
        /// What is too large.
        why: TooLarge,
    },
    /// Its bytes are no command.
    Malformed(Malformed),
}

impl Refusal {
    /// What a client may conclude from it.
    pub fn class(self) -> Class {
        match self {
            Refusal::Busy { .. } | Refusal::LeaderBusy => Class::Busy,
            Refusal::DiskFull { .. } => Class::DiskFull,
            Refusal::Unreadable => Class::Damaged,
            // An empty key is no matter of size.
            Refusal::TooLarge { why: TooLarge::EmptyKey, .. } | Refusal::Malformed(_) => {
                Class::Invalid
            }
            Refusal::TooLarge { .. } => Class::TooLarge,
            Refusal::NoLeader
            | Refusal::NotLeader
            | Refusal::Overwritten
            | Refusal::Damaged
            | Refusal::Deadline => Class::Unavailable,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoLeader => f.write_str("no leader is known; try again"),
            Refusal::NotLeader => f.write_str("this node does not lead (any more); try again"),
            Refusal::Overwritten => f.write_str("the leader changed before it was replicated"),
            Refusal::Busy { bytes_max } => write!(
                f,
                "busy: {bytes_max} bytes of unanswered writes are the limit (--inflight-bytes); \
                 try again later"
            ),
            Refusal::LeaderBusy => f.write_str("busy: the leader is at its limit; try again later"),
            Refusal::Damaged => {
                f.write_str("this node's store is damaged and is being repaired; ask another one")
            }
            Refusal::Unreadable => f.write_str(
                "what it reads lies in a damaged part of the store, which no other node has (the log names the \
                 file); nothing was changed; a plain put of the key takes its place",
            ),
            Refusal::Deadline => f.write_str("the deadline passed before it was begun"),
            Refusal::DiskFull { node } => write!(
                f,
                "the disk of node {node}, which leads, is full and its reserve in use: nothing that \
                 adds data is taken, reads and deletes go on; delete something or make space there"
            ),
            Refusal::TooLarge { leader: None, why } => why.fmt(f),
            Refusal::TooLarge { leader: Some(node), why } => {
                write!(f, "node {node}, which leads, does not take it: {why}")
            }
            Refusal::Malformed(Malformed(what)) => write!(f, "it is no command: {what}"),
        }
    }
}

impl From<NotTaken> for Refusal {
    fn from(why: NotTaken) -> Refusal {
        match why {
            NotTaken::TooLarge(why) => Refusal::TooLarge { leader: None, why },
            NotTaken::Malformed(why) => Refusal::Malformed(why),
        }
    }
}

/// What a client asks of the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Replicate and apply this command (byte form of `kv::codec`).
    Write(Arc<[u8]>),
    /// Say when a linearizable read may be served here.
    Read,
    /// Describe this node.
    Status,
    /// Hand leadership over, to anybody or to one node.
    Transfer(Option<NodeId>),
    /// Change who belongs to the cluster.
    Change(Change),
    /// Make everything durable in the store that is applied here now.
    Flush {
        /// Then drop the log in front of that, whoever still wanted it.
        cut: bool,
    },
}

/// What the replica tells a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Write`].
    Write(Verdict),
    /// To [`Request::Read`]: read now, or why not.
    Read(Result<(), Refusal>),
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Transfer`]: who takes over, or why nobody does.
    Transfer(Result<NodeId, ChangeRefused>),
    /// To [`Request::Change`], once it is complete: the member it is about, or why not.
    Changed(Result<NodeId, ChangeRefused>),
    /// To [`Request::Flush`]: up to which index the store holds everything durably, or why that
    /// is not so in time.
    Flushed(Result<Index, Refusal>),
}

/// A write that a follower passes to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The follower's number: not used twice in one life, and not by the next one.
    pub id: u64,
    /// Time left to begin it, in milliseconds.
    pub deadline_ms: u32,
    /// The command.
    pub command: Arc<[u8]>,
}

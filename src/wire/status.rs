//! What nodes say of themselves and of one another: members, and the status of one node.
//!
//! docs/protocol.md, "Status and members", is the specification.

use super::fields::{
    ADDRESS_BYTES_MAX, put_count, put_option, put_text, take_flag, take_list, take_option,
    take_text,
};
use super::proof::{SECRET_BYTES, Secret};
use crate::raft::codec::{Input, Malformed};
use crate::raft::{Index, Member, NodeId, Term};
use std::fmt;

/// Longest free text in a status: a version, a state.
pub const STATUS_TEXT_BYTES_MAX: usize = 256;

/// What a node is at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberRole {
    /// Leads its term.
    Leader,
    /// Votes and follows; also of a member that campaigns, when another node speaks of it.
    Follower,
    /// Receives the log and does not vote.
    Learner,
    /// Campaigns.
    Candidate,
}

impl MemberRole {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            MemberRole::Leader => "leader",
            MemberRole::Follower => "follower",
            MemberRole::Learner => "learner",
            MemberRole::Candidate => "candidate",
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            MemberRole::Leader => 1,
            MemberRole::Follower => 2,
            MemberRole::Learner => 3,
            MemberRole::Candidate => 4,
        }
    }

    pub(super) fn take(input: &mut Input<'_>) -> Result<MemberRole, Malformed> {
        Ok(match input.u8("member role")? {
            1 => MemberRole::Leader,
            2 => MemberRole::Follower,
            3 => MemberRole::Learner,
            4 => MemberRole::Candidate,
            _ => return Err(Malformed("member role")),
        })
    }
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One node's account of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node's id; 0 while it has none.
    pub id: NodeId,
    /// The identity of its data directory.
    pub identity: u64,
    /// Its cluster; 0 while it is in none.
    pub cluster: u64,
    /// Where it can be reached.
    pub address: String,
    /// What it is.
    pub role: MemberRole,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Greatest index it knows to be committed.
    pub commit: Index,
    /// Greatest index it has applied.
    pub applied: Index,
    /// Last index of its log.
    pub last_index: Index,
    /// First index its log still holds.
    pub first_index: Index,
    /// Bytes of its log on disk.
    pub log_bytes: u64,
    /// Open connections, of clients and peers.
    pub connections: u32,
    /// Version of the program.
    pub version: String,
    /// The other members, as the leader sees them; empty on other nodes.
    pub peers: Vec<PeerStatus>,
    /// How it is, in a few words for a person.
    pub state: String,
}

/// A member as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The member.
    pub id: NodeId,
    /// Greatest index known to be durable there.
    pub match_index: Index,
    /// Whether it has been heard of within an election timeout.
    pub reachable: bool,
}

/// Who belongs to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// All members, sorted by id.
    pub members: Vec<MemberInfo>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub id: NodeId,
    /// Where it can be reached.
    pub address: String,
    /// What it is, as far as the node asked knows.
    pub role: MemberRole,
    /// Whether it votes.
    pub voter: bool,
    /// The member whose place it takes once it has caught up.
    pub replaces: Option<NodeId>,
}

/// What a node must know to be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The cluster.
    pub cluster: u64,
    /// The node's id.
    pub id: NodeId,
    /// The members that the cluster was formed of: the configuration in front of the log.
    pub first: Vec<Member>,
    /// The members' secret. On the wire it is masked ([`JoinedPad`](super::proof::JoinedPad)). None for a member
    /// that must have it already.
    pub secret: Option<Secret>,
}

pub(super) fn put_joined(out: &mut Vec<u8>, joined: &Joined) {
    out.extend_from_slice(&joined.cluster.to_le_bytes());
    out.extend_from_slice(&joined.id.to_le_bytes());
    put_count(out, joined.first.len());
    for member in &joined.first {
        out.extend_from_slice(&member.id.to_le_bytes());
        out.extend_from_slice(&member.identity.to_le_bytes());
        put_text(out, &member.address, ADDRESS_BYTES_MAX);
    }
    out.push(joined.secret.map_or(0, |secret| 1 + u8::from(secret.sealed)));
    out.extend(joined.secret.iter().flat_map(|secret| secret.bytes));
}

pub(super) fn take_joined(input: &mut Input<'_>) -> Result<Joined, Malformed> {
    let (cluster, id) = (input.u64("cluster")?, input.u64("member id")?);
    let first = take_list(input, 8 + 8 + 4, usize::MAX, "member count", |input| {
        Ok(Member {
            id: input.u64("member id")?,
            identity: input.u64("member identity")?,
            address: take_text(input, ADDRESS_BYTES_MAX, "member address")?,
        })
    })?;
    let secret = |input: &mut Input<'_>, sealed| {
        let bytes = input.bytes(SECRET_BYTES, "members' secret")?;
        let bytes = bytes.try_into().map_err(|_| Malformed("members' secret"))?;
        Ok(Some(Secret { bytes, sealed }))
    };
    let secret = match input.u8("members' secret")? {
        0 => None,
        1 => secret(input, false)?,
        2 => secret(input, true)?,
        _ => return Err(Malformed("members' secret")),
    };
    Ok(Joined { cluster, id, first, secret })
}

pub(super) fn put_status(out: &mut Vec<u8>, status: &NodeStatus) {
    for field in [status.id, status.identity, status.cluster] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    put_text(out, &status.address, ADDRESS_BYTES_MAX);
    out.push(status.role.number());
    put_option(out, status.leader);
    for field in [
        status.term,
        status.commit,
        status.applied,
        status.last_index,
        status.first_index,
        status.log_bytes,
    ] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&status.connections.to_le_bytes());
    put_text(out, &status.version, STATUS_TEXT_BYTES_MAX);
    put_count(out, status.peers.len());
    for peer in &status.peers {
        out.extend_from_slice(&peer.id.to_le_bytes());
        out.extend_from_slice(&peer.match_index.to_le_bytes());
        out.push(u8::from(peer.reachable));
    }
    put_text(out, &status.state, STATUS_TEXT_BYTES_MAX);
}

pub(super) fn take_status(input: &mut Input<'_>) -> Result<NodeStatus, Malformed> {
    // Fields are evaluated in the order they are written here, which is their order on the wire.
    Ok(NodeStatus {
        id: input.u64("status id")?,
        identity: input.u64("status identity")?,
        cluster: input.u64("status cluster")?,
        address: take_text(input, ADDRESS_BYTES_MAX, "status address")?,
        role: MemberRole::take(input)?,
        leader: take_option(input, "status leader")?,
        term: input.u64("status term")?,
        commit: input.u64("status commit")?,
        applied: input.u64("status applied")?,
        last_index: input.u64("status last index")?,
        first_index: input.u64("status first index")?,
        log_bytes: input.u64("status log bytes")?,
        connections: input.u32("status connections")?,
        version: take_text(input, STATUS_TEXT_BYTES_MAX, "status version")?,
        peers: take_list(input, 8 + 8 + 1, usize::MAX, "status peers", |input| {
            Ok(PeerStatus {
                id: input.u64("peer id")?,
                match_index: input.u64("peer match index")?,
                reachable: take_flag(input, "peer reachable")?,
            })
        })?,
        state: take_text(input, STATUS_TEXT_BYTES_MAX, "status state")?,
    })
}

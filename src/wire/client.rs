//! Frames between a client and a node: requests with ids, answers in any order.
//!
//! docs/protocol.md, "Client frames", is the specification, with what a client may conclude from
//! each failure. A request is answered exactly once as long as its connection lives; a connection
//! that breaks leaves every write on it unknown. Left out: which node to ask and when to ask again
//! (`client`), and how a request is carried out (`node`).

use super::fields::{
    ADDRESS_BYTES_MAX, MESSAGE_BYTES_MAX, put_blob, put_count, put_option, put_text, take_flag,
    take_list, take_option, take_text,
};
use super::frame::{CLIENT_FRAME_MAX, kind, put_frame};
pub use super::status::{
    Joined, MemberInfo, MemberRole, Members, NodeStatus, PeerStatus, STATUS_TEXT_BYTES_MAX,
};

use super::kv::{
    put_outcome, put_query, put_reply, put_write, take_outcome, take_query, take_reply, take_write,
};
use super::status::{put_joined, put_status, take_joined, take_status};
use crate::kv::{Outcome, Query, Reply, Write};
use crate::raft::NodeId;
use crate::raft::codec::{Input, Malformed};
use std::fmt;

/// The id of an answer that belongs to no request but to the connection: it is about to close.
/// Clients number requests from 1.
pub const NO_REQUEST: u64 = 0;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it, from 1; not in use by another open request of the connection.
    pub id: u64,
    /// Milliseconds from arrival for which an answer is of use; 0 is the node's own bound.
    pub deadline_ms: u32,
    /// What is asked.
    pub call: Call,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Change keys; answered by [`Answer::Outcome`].
    Write(Write),
    /// Begin a session; answered by [`Answer::Outcome`].
    OpenSession,
    /// End a session; answered by [`Answer::Outcome`].
    CloseSession {
        /// The session.
        session: u64,
    },
    /// Read; answered by [`Answer::Reply`].
    Query {
        /// What to read.
        query: Query,
        /// How fresh it must be.
        consistency: Consistency,
    },
    /// Are you there? Answered by [`Answer::Pong`].
    Ping,
    /// How is this node? Answered by [`Answer::Status`].
    Status,
    /// Who belongs to the cluster? Answered by [`Answer::Members`].
    Members,
    /// Hand leadership over; answered by [`Answer::Ok`].
    Transfer {
        /// To whom; none leaves the choice to the leader.
        to: Option<NodeId>,
    },
    /// Flush this node's store and drop the log in front of what is flushed; answered by
    /// [`Answer::Ok`]. Then the node compacts all tables, which [`Call::Compaction`] follows.
    Compact,
    /// How far is the compaction of all tables at this node? Answered by [`Answer::Compaction`].
    Compaction,
    /// Begin a backup: a consistent cut that holds every write answered before; answered by
    /// [`Answer::Backup`]. It stays readable for as long as the connection lives, or until the next
    /// one is begun on it.
    Backup,
    /// A piece of a table of the backup begun on this connection; answered by [`Answer::Bytes`].
    Piece {
        /// The table's number.
        table: u64,
        /// Where the piece begins, bytes.
        offset: u64,
        /// Its length, bytes.
        len: u32,
    },
    /// Change who belongs to the cluster; answered by [`Answer::Joined`] when a node is taken in, else by
    /// [`Answer::Changed`].
    Change(Change),
}

/// A change that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Take a node in: as a learner that votes as soon as it has caught up.
    Join {
        /// `HOST:PORT` where it is reached.
        address: String,
        /// Its identity; zero when somebody else asks for it.
        identity: u64,
    },
    /// Let a learner vote now.
    Promote {
        /// The learner.
        id: NodeId,
        /// Also when it lacks more than a busy leader has under way.
        force: bool,
    },
    /// Let a member go for ever.
    Remove {
        /// The member.
        id: NodeId,
        /// Also when the voters that are left could not go on as long as some are not reachable.
        force: bool,
    },
    /// Take a node in and let a member go, in one step once the new one has caught up.
    Replace {
        /// The member that goes.
        old: NodeId,
        /// `HOST:PORT` where the new one is reached; that of the old one when its disk was lost.
        address: String,
    },
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write that was answered before it was asked.
    Linearizable,
    /// It sees some past state of the node asked; never an unacknowledged future of it.
    Stale,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The request's id, or [`NO_REQUEST`].
    pub id: u64,
    /// The answer.
    pub result: Result<Answer, Failure>,
}

/// A call that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a write or a session call.
    Outcome(Outcome),
    /// To a query.
    Reply(Reply),
    /// To a ping.
    Pong,
    /// To a status call.
    Status(NodeStatus),
    /// To a members call.
    Members(Members),
    /// To a transfer or a compaction.
    Ok,
    /// To the beginning of a backup: what it is made of (docs/formats.md, "Manifest").
    Backup {
        /// The manifest.
        manifest: Vec<u8>,
    },
    /// To a question for a piece of a backup.
    Bytes(Vec<u8>),
    /// To a join: the node is a member, as a learner at first.
    Joined(Joined),
    /// To a question for the compaction of all tables.
    Compaction {
        /// Bytes that are still to be brought down, nearly; none when no compaction is under way.
        left: Option<u64>,
        /// Bytes of all tables.
        bytes: u64,
    },
    /// To another change of the members, when it is complete: the member it was about, or is.
    Changed {
        /// The member.
        id: NodeId,
    },
}

/// A call that was not carried out, or of which that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the client may conclude.
    pub class: Class,
    /// For a person.
    pub message: String,
    /// Who leads, with the address, as far as the node knows: where to ask next.
    pub leader: Option<(NodeId, String)>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}

impl std::error::Error for Failure {}

/// What a client may conclude from a failure. All but [`Class::Unknown`] say that this request
/// surely had no effect and never will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A bound of the node is reached; surely not applied; the same again, later.
    Busy,
    /// A key, a value, a write or an answer is over a limit; not to be sent again.
    TooLarge,
    /// The request makes no sense; not to be sent again.
    Invalid,
    /// No leader or no quorum in time; surely not applied; again, here or at another node.
    Unavailable,
    /// The outcome is unknown: the request may have taken effect, or may yet.
    Unknown,
    /// The token does not allow it.
    Unauthorised,
    /// The disk is full and the request would add data; surely not applied; the same again only
    /// once there is space.
    DiskFull,
    /// What the request needs to read is damaged on the disk of a cluster of one, so that no other node has it;
    /// surely not applied; not to be sent again.
    Damaged,
}

impl Class {
    /// All classes, in the order of their numbers.
    pub const ALL: [Class; 8] = [
        Class::Busy,
        Class::TooLarge,
        Class::Invalid,
        Class::Unavailable,
        Class::Unknown,
        Class::Unauthorised,
        Class::DiskFull,
        Class::Damaged,
    ];

    /// Its number on the wire.
    pub fn number(self) -> u8 {
        match self {
            Class::Busy => 1,
            Class::TooLarge => 2,
            Class::Invalid => 3,
            Class::Unavailable => 4,
            Class::Unknown => 5,
            Class::Unauthorised => 6,
            Class::DiskFull => 7,
            Class::Damaged => 8,
        }
    }

    /// Its name for programs (`--json`).
    pub fn name(self) -> &'static str {
        match self {
            Class::Busy => "busy",
            Class::TooLarge => "too_large",
            Class::Invalid => "invalid",
            Class::Unavailable => "unavailable",
            Class::Unknown => "unknown",
            Class::Unauthorised => "unauthorised",
            Class::DiskFull => "disk_full",
            Class::Damaged => "damaged",
        }
    }

    /// Whether the request surely had no effect.
    pub fn surely_not_applied(self) -> bool {
        self != Class::Unknown
    }

    pub(super) fn take(input: &mut Input<'_>) -> Result<Class, Malformed> {
        let number = input.u8("failure class")?;
        Class::ALL.into_iter().find(|c| c.number() == number).ok_or(Malformed("failure class"))
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Busy => "busy",
            Class::TooLarge => "too large",
            Class::Invalid => "invalid",
            Class::Unavailable => "unavailable",
            Class::Unknown => "outcome unknown",
            Class::Unauthorised => "not authorised",
            Class::DiskFull => "disk full",
            Class::Damaged => "damaged",
        })
    }
}

/// Appends a request as a frame; gives the length of its body, which the node refuses above
/// [`CLIENT_FRAME_MAX`].
pub fn put_request(out: &mut Vec<u8>, request: &Request) -> usize {
    put_frame(out, |out| {
        out.push(kind::REQUEST);
        out.extend_from_slice(&request.id.to_le_bytes());
        out.extend_from_slice(&request.deadline_ms.to_le_bytes());
        put_call(out, &request.call);
    })
}

/// Appends a call, from its number on.
pub(super) fn put_call(out: &mut Vec<u8>, call: &Call) {
    match call {
        Call::Write(write) => {
            out.push(1);
            put_write(out, write);
        }
        Call::OpenSession => out.push(2),
        Call::CloseSession { session } => {
            out.push(3);
            out.extend_from_slice(&session.to_le_bytes());
        }
        Call::Query { query, consistency } => {
            out.push(4);
            out.push(match consistency {
                Consistency::Linearizable => 1,
                Consistency::Stale => 2,
            });
            put_query(out, query);
        }
        Call::Ping => out.push(5),
        Call::Status => out.push(6),
        Call::Members => out.push(7),
        Call::Transfer { to } => {
            out.push(8);
            put_option(out, *to);
        }
        Call::Compact => out.push(9),
        Call::Compaction => out.push(16),
        Call::Backup => out.push(10),
        Call::Piece { table, offset, len } => {
            out.push(11);
            out.extend_from_slice(&table.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        Call::Change(Change::Join { address, identity }) => {
            out.push(12);
            out.extend_from_slice(&identity.to_le_bytes());
            put_text(out, address, ADDRESS_BYTES_MAX);
        }
        Call::Change(Change::Promote { id, force }) => {
            out.push(13);
            out.extend_from_slice(&id.to_le_bytes());
            out.push(u8::from(*force));
        }
        Call::Change(Change::Remove { id, force }) => {
            out.push(14);
            out.extend_from_slice(&id.to_le_bytes());
            out.push(u8::from(*force));
        }
        Call::Change(Change::Replace { old, address }) => {
            out.push(15);
            out.extend_from_slice(&old.to_le_bytes());
            put_text(out, address, ADDRESS_BYTES_MAX);
        }
    }
}

/// Reads a request from a frame's body.
pub fn take_request(body: &[u8]) -> Result<Request, Malformed> {
    let mut input = Input(body);
    if input.u8("frame kind")? != kind::REQUEST {
        return Err(Malformed("client frame kind"));
    }
    let id = input.u64("request id")?;
    if id == NO_REQUEST {
        return Err(Malformed("request id"));
    }
    let deadline_ms = input.u32("deadline")?;
    let call = take_call(&mut input)?;
    input.end("request length")?;
    Ok(Request { id, deadline_ms, call })
}

/// Reads a call, from its number on.
pub(super) fn take_call(input: &mut Input<'_>) -> Result<Call, Malformed> {
    Ok(match input.u8("call")? {
        1 => Call::Write(take_write(input)?),
        2 => Call::OpenSession,
        3 => Call::CloseSession { session: input.u64("session")? },
        4 => {
            let consistency = match input.u8("consistency")? {
                1 => Consistency::Linearizable,
                2 => Consistency::Stale,
                _ => return Err(Malformed("consistency")),
            };
            Call::Query { query: take_query(input)?, consistency }
        }
        5 => Call::Ping,
        6 => Call::Status,
        7 => Call::Members,
        8 => {
            let to = take_option(input, "transfer target")?;
            if to == Some(0) {
                return Err(Malformed("transfer target"));
            }
            Call::Transfer { to }
        }
        9 => Call::Compact,
        16 => Call::Compaction,
        10 => Call::Backup,
        11 => Call::Piece {
            table: input.u64("table")?,
            offset: input.u64("offset")?,
            len: input.u32("length")?,
        },
        12 => {
            let identity = input.u64("identity")?;
            let address = take_text(input, ADDRESS_BYTES_MAX, "address")?;
            Call::Change(Change::Join { identity, address })
        }
        13 => {
            let id = input.u64("member id")?;
            Call::Change(Change::Promote { id, force: take_flag(input, "force")? })
        }
        14 => {
            let id = input.u64("member id")?;
            Call::Change(Change::Remove { id, force: take_flag(input, "force")? })
        }
        15 => {
            let old = input.u64("member id")?;
            let address = take_text(input, ADDRESS_BYTES_MAX, "address")?;
            Call::Change(Change::Replace { old, address })
        }
        _ => return Err(Malformed("call")),
    })
}

/// The id of a request that [`take_request`] refuses, as far as it can be read, for the answer
/// that says so; else [`NO_REQUEST`].
pub fn request_id(body: &[u8]) -> u64 {
    let mut input = Input(body);
    match input.u8("frame kind") {
        Ok(kind::REQUEST) => input.u64("request id").unwrap_or(NO_REQUEST),
        _ => NO_REQUEST,
    }
}

/// Appends a response as a frame. An answer that would pass [`CLIENT_FRAME_MAX`] is replaced by a
/// failure: too large for a read; for a write *unknown*, because it may well have been done.
pub fn put_response(out: &mut Vec<u8>, response: &Response) {
    let start = out.len();
    let len = put_frame(out, |out| put_response_body(out, response));
    if len > CLIENT_FRAME_MAX {
        out.truncate(start);
        let class = match response.result {
            Ok(Answer::Outcome(_)) => Class::Unknown,
            _ => Class::TooLarge,
        };
        let message = format!("an answer of {len} bytes, the limit is {CLIENT_FRAME_MAX}");
        let failure = Failure { class, message, leader: None };
        let response = Response { id: response.id, result: Err(failure) };
        put_frame(out, |out| put_response_body(out, &response));
    }
}

fn put_response_body(out: &mut Vec<u8>, response: &Response) {
    out.push(kind::RESPONSE);
    out.extend_from_slice(&response.id.to_le_bytes());
    match &response.result {
        Err(failure) => {
            out.push(0);
            out.push(failure.class.number());
            put_text(out, &failure.message, MESSAGE_BYTES_MAX);
            out.push(u8::from(failure.leader.is_some()));
            if let Some((id, address)) = &failure.leader {
                out.extend_from_slice(&id.to_le_bytes());
                put_text(out, address, ADDRESS_BYTES_MAX);
            }
        }
        Ok(Answer::Outcome(outcome)) => {
            out.push(1);
            put_outcome(out, outcome);
        }
        Ok(Answer::Reply(reply)) => {
            out.push(2);
            put_reply(out, reply);
        }
        Ok(Answer::Pong) => out.push(3),
        Ok(Answer::Status(status)) => {
            out.push(4);
            put_status(out, status);
        }
        Ok(Answer::Members(members)) => {
            out.push(5);
            put_count(out, members.members.len());
            for member in &members.members {
                out.extend_from_slice(&member.id.to_le_bytes());
                out.push(member.role.number());
                out.push(u8::from(member.voter));
                put_text(out, &member.address, ADDRESS_BYTES_MAX);
                put_option(out, member.replaces);
            }
        }
        Ok(Answer::Ok) => out.push(6),
        Ok(Answer::Backup { manifest }) => {
            out.push(7);
            put_blob(out, manifest);
        }
        Ok(Answer::Bytes(bytes)) => {
            out.push(8);
            put_blob(out, bytes);
        }
        Ok(Answer::Joined(joined)) => {
            out.push(9);
            put_joined(out, joined);
        }
        Ok(Answer::Changed { id }) => {
            out.push(10);
            out.extend_from_slice(&id.to_le_bytes());
        }
        Ok(Answer::Compaction { left, bytes }) => {
            out.push(11);
            out.push(u8::from(left.is_some()));
            out.extend(left.iter().flat_map(|left| left.to_le_bytes()));
            out.extend_from_slice(&bytes.to_le_bytes());
        }
    }
}

/// Reads a response from a frame's body.
pub fn take_response(body: &[u8]) -> Result<Response, Malformed> {
    let mut input = Input(body);
    if input.u8("frame kind")? != kind::RESPONSE {
        return Err(Malformed("client frame kind"));
    }
    let id = input.u64("request id")?;
    let result = match input.u8("answer")? {
        0 => {
            let class = Class::take(&mut input)?;
            let message = take_text(&mut input, MESSAGE_BYTES_MAX, "failure message")?;
            let leader = match take_flag(&mut input, "leader hint")? {
                true => Some((
                    input.u64("leader id")?,
                    take_text(&mut input, ADDRESS_BYTES_MAX, "leader address")?,
                )),
                false => None,
            };
            Err(Failure { class, message, leader })
        }
        1 => Ok(Answer::Outcome(take_outcome(&mut input)?)),
        2 => Ok(Answer::Reply(take_reply(&mut input)?)),
        3 => Ok(Answer::Pong),
        4 => Ok(Answer::Status(take_status(&mut input)?)),
        5 => {
            let bytes_min = 8 + 1 + 1 + 4 + 1;
            let members = take_list(&mut input, bytes_min, usize::MAX, "member count", |input| {
                let id = input.u64("member id")?;
                let role = MemberRole::take(input)?;
                let voter = take_flag(input, "voter")?;
                let address = take_text(input, ADDRESS_BYTES_MAX, "member address")?;
                let replaces = take_option(input, "replaced member")?;
                Ok(MemberInfo { id, address, role, voter, replaces })
            })?;
            Ok(Answer::Members(Members { members }))
        }
        6 => Ok(Answer::Ok),
        7 => Ok(Answer::Backup { manifest: input.blob("manifest")?.to_vec() }),
        8 => Ok(Answer::Bytes(input.blob("bytes")?.to_vec())),
        9 => Ok(Answer::Joined(take_joined(&mut input)?)),
        10 => Ok(Answer::Changed { id: input.u64("member id")? }),
        11 => {
            let left = match take_flag(&mut input, "compaction under way")? {
                true => Some(input.u64("bytes left")?),
                false => None,
            };
            Ok(Answer::Compaction { left, bytes: input.u64("bytes of tables")? })
        }
        _ => return Err(Malformed("answer")),
    };
    input.end("response length")?;
    Ok(Response { id, result })
}

//! Frames between members: the messages of `raft`, writes forwarded to the leader, signs of life.
//!
//! docs/protocol.md, "Peer frames", is the specification. Every frame stands alone: frames may be
//! lost, repeated or overtaken together with their connection, and `raft` copes. What decodes
//! is well-formed, not true: the core checks terms and indexes against its own state. Left out:
//! the snapshot stream, which has a connection of its own.

use super::client::{Call, Class, put_call, take_call};
use super::fields::{
    ADDRESS_BYTES_MAX, MESSAGE_BYTES_MAX, put_blob, put_count, put_option, put_text,
};
use super::fields::{take_flag, take_list, take_option, take_text};
use super::frame::{FRAME_HEADER_BYTES, kind, put_frame};
use crate::kv::TooLarge;
use crate::raft::codec::{
    ENTRY_HEADER_BYTES, Input, Malformed, entry_len, put_configuration, put_entry,
    take_configuration, take_entry,
};
use crate::raft::{AppendResult, Body, Entry, Index, Message, NodeId, Term};
use std::sync::Arc;

/// Greatest term and index taken from a peer. No cluster lives that long; a greater one is damage
/// or malice, and would run the core's arithmetic into its end.
pub const POSITION_MAX: u64 = 1 << 62;

/// What one peer sends another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerFrame {
    /// For the consensus core.
    Message(Message),
    /// A write for the leader.
    Forward(Forward),
    /// What became of it.
    ForwardAnswer(ForwardAnswer),
    /// What an operator asked of a follower and only the leader can do.
    Admin(Admin),
    /// What became of it.
    AdminAnswer(AdminAnswer),
    /// Are you there? The only frame that is answered on the connection it came by.
    Ping,
    /// Yes: everything before the ping has arrived. And who leads, as far as the sender knows, and
    /// where that is: the other side may never have heard of it. 0 and empty is unknown.
    Pong {
        /// Who leads.
        leader: NodeId,
        /// Where it is.
        address: String,
    },
    /// The sender's state machine has this digest at this index.
    Digest {
        /// The index.
        index: Index,
        /// The digest.
        digest: u32,
    },
}

/// A follower hands a client's write to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The follower's number for it, echoed in the answer.
    pub id: u64,
    /// Milliseconds from arrival for which an answer is of use; 0 is the leader's own bound.
    pub deadline_ms: u32,
    /// The command as the log will hold it; opaque here.
    pub command: Arc<[u8]>,
}

/// The leader's answer to a [`Forward`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAnswer {
    /// The number of the forwarded write.
    pub id: u64,
    /// What became of it.
    pub result: ForwardResult,
}

/// What became of a forwarded write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardResult {
    /// Applied, with the outcome in the store's own form; opaque here.
    Applied(Vec<u8>),
    /// Not done, or not known: the class says which.
    Refused {
        /// What the client may conclude.
        class: Class,
        /// For a person.
        message: String,
    },
    /// Not done: it is over a limit of the leader.
    TooLarge(TooLarge),
}

/// A follower hands a call of an operator to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The follower's number for it, echoed in the answer.
    pub id: u64,
    /// As in [`Forward`].
    pub deadline_ms: u32,
    /// A transfer of leadership or a change of the members, and no other.
    pub call: Call,
}

/// The leader's answer to an [`Admin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAnswer {
    /// The number of the call.
    pub id: u64,
    /// The node that takes over, or the member that it was about.
    pub result: Result<NodeId, (Class, String)>,
}

/// Everything of an AppendEntries but its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendHead {
    /// Sender.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// The leader's term.
    pub term: Term,
    /// As in [`Body::AppendEntries`].
    pub prev_index: Index,
    /// As in [`Body::AppendEntries`].
    pub prev_term: Term,
    /// As in [`Body::AppendEntries`].
    pub commit: Index,
    /// As in [`Body::AppendEntries`].
    pub round: u64,
}

const MESSAGE_FIXED_BYTES: usize = 1 + 3 * 8 + 1;
const APPEND_FIXED_BYTES: usize = MESSAGE_FIXED_BYTES + 4 * 8 + 4;

mod tag {
    pub(super) const REQUEST_PRE_VOTE: u8 = 1;
    pub(super) const PRE_VOTE_RESPONSE: u8 = 2;
    pub(super) const REQUEST_VOTE: u8 = 3;
    pub(super) const VOTE_RESPONSE: u8 = 4;
    pub(super) const APPEND_ENTRIES: u8 = 5;
    pub(super) const APPEND_RESPONSE: u8 = 6;
    pub(super) const HEARTBEAT: u8 = 7;
    pub(super) const HEARTBEAT_RESPONSE: u8 = 8;
    pub(super) const INSTALL_SNAPSHOT: u8 = 9;
    pub(super) const SNAPSHOT_RESPONSE: u8 = 10;
    pub(super) const TIMEOUT_NOW: u8 = 11;
    pub(super) const READ_INDEX: u8 = 12;
    pub(super) const READ_INDEX_RESPONSE: u8 = 13;
}

const MATCHED: u8 = 1;
const CONFLICT: u8 = 2;

const APPLIED: u8 = 1;
const REFUSED: u8 = 2;
const TOO_LARGE: u8 = 3;

const EMPTY_KEY: u8 = 1;
const KEY: u8 = 2;
const VALUE: u8 = 3;
const OPS: u8 = 4;
const BATCH: u8 = 5;
const BOUND: u8 = 6;

/// Appends any peer frame; gives the length of its body.
pub fn put_peer_frame(out: &mut Vec<u8>, frame: &PeerFrame) -> usize {
    match frame {
        PeerFrame::Message(message) => put_message(out, message),
        PeerFrame::Forward(forward) => put_forward(out, forward),
        PeerFrame::ForwardAnswer(answer) => put_forward_answer(out, answer),
        PeerFrame::Admin(Admin { id, deadline_ms, call }) => put_frame(out, |out| {
            out.push(kind::ADMIN);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&deadline_ms.to_le_bytes());
            put_call(out, call);
        }),
        PeerFrame::AdminAnswer(AdminAnswer { id, result }) => put_frame(out, |out| {
            out.push(kind::ADMIN_ANSWER);
            out.extend_from_slice(&id.to_le_bytes());
            match result {
                Ok(node) => {
                    out.push(APPLIED);
                    out.extend_from_slice(&node.to_le_bytes());
                }
                Err((class, message)) => {
                    out.push(REFUSED);
                    out.push(class.number());
                    put_text(out, message, MESSAGE_BYTES_MAX);
                }
            }
        }),
        PeerFrame::Ping => put_frame(out, |out| out.push(kind::PING)),
        PeerFrame::Pong { leader, address } => put_frame(out, |out| {
            out.push(kind::PONG);
            out.extend_from_slice(&leader.to_le_bytes());
            put_text(out, address, ADDRESS_BYTES_MAX);
        }),
        PeerFrame::Digest { index, digest } => put_frame(out, |out| {
            out.push(kind::DIGEST);
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(&digest.to_le_bytes());
        }),
    }
}

/// Bytes of the body of an AppendEntries frame with these entries, for filling frames up to
/// [`super::frame::PEER_FRAME_MAX`].
pub fn append_len<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> usize {
    APPEND_FIXED_BYTES + entries.into_iter().map(entry_len).sum::<usize>()
}

/// Appends an AppendEntries frame from entries that are encoded already (by
/// [`crate::raft::codec::put_entry`], one behind the other): a batch is encoded once, for the log
/// and for every peer. Gives the length of its body.
pub fn put_append_encoded(
    out: &mut Vec<u8>,
    head: &AppendHead,
    count: usize,
    encoded: &[u8],
) -> usize {
    out.reserve(FRAME_HEADER_BYTES + APPEND_FIXED_BYTES + encoded.len());
    put_frame(out, |out| {
        put_append_head(out, head, count);
        out.extend_from_slice(encoded);
    })
}

fn put_append_head(out: &mut Vec<u8>, head: &AppendHead, count: usize) {
    put_message_head(out, head.from, head.to, head.term, tag::APPEND_ENTRIES);
    put_numbers(out, [head.prev_index, head.prev_term, head.commit, head.round]);
    put_count(out, count);
}

fn put_message_head(out: &mut Vec<u8>, from: NodeId, to: NodeId, term: Term, tag: u8) {
    out.push(kind::MESSAGE);
    put_numbers(out, [from, to, term]);
    out.push(tag);
}

fn put_numbers<const N: usize>(out: &mut Vec<u8>, numbers: [u64; N]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Appends a message as a frame; gives the length of its body.
pub fn put_message(out: &mut Vec<u8>, message: &Message) -> usize {
    let &Message { from, to, term, ref body } = message;
    if let Body::AppendEntries { entries, .. } = body {
        out.reserve(FRAME_HEADER_BYTES + append_len(entries));
    }
    put_frame(out, |out| {
        let mut head = |tag| put_message_head(out, from, to, term, tag);
        match body {
            &Body::RequestPreVote { last_index, last_term } => {
                head(tag::REQUEST_PRE_VOTE);
                put_numbers(out, [last_index, last_term]);
            }
            &Body::PreVoteResponse { granted } => {
                head(tag::PRE_VOTE_RESPONSE);
                out.push(u8::from(granted));
            }
            &Body::RequestVote { last_index, last_term, transfer } => {
                head(tag::REQUEST_VOTE);
                put_numbers(out, [last_index, last_term]);
                out.push(u8::from(transfer));
            }
            &Body::VoteResponse { granted } => {
                head(tag::VOTE_RESPONSE);
                out.push(u8::from(granted));
            }
            &Body::AppendEntries { prev_index, prev_term, commit, round, ref entries } => {
                let head = AppendHead { from, to, term, prev_index, prev_term, commit, round };
                put_append_head(out, &head, entries.len());
                for entry in entries {
                    put_entry(out, entry);
                }
            }
            &Body::AppendResponse { result, round } => {
                head(tag::APPEND_RESPONSE);
                put_numbers(out, [round]);
                match result {
                    AppendResult::Matched { index } => {
                        out.push(MATCHED);
                        put_numbers(out, [index]);
                    }
                    AppendResult::Conflict { prev_index, hint_index, hint_term } => {
                        out.push(CONFLICT);
                        put_numbers(out, [prev_index, hint_index, hint_term]);
                    }
                }
            }
            &Body::Heartbeat { commit, commit_term, round } => {
                head(tag::HEARTBEAT);
                put_numbers(out, [commit, commit_term, round]);
            }
            &Body::HeartbeatResponse { round } => {
                head(tag::HEARTBEAT_RESPONSE);
                put_numbers(out, [round]);
            }
            Body::InstallSnapshot { last_index, last_term, configuration } => {
                head(tag::INSTALL_SNAPSHOT);
                put_numbers(out, [*last_index, *last_term]);
                put_configuration(out, configuration);
            }
            &Body::SnapshotResponse { last_index, installed } => {
                head(tag::SNAPSHOT_RESPONSE);
                put_numbers(out, [last_index]);
                out.push(u8::from(installed));
            }
            Body::TimeoutNow => head(tag::TIMEOUT_NOW),
            &Body::ReadIndex { id } => {
                head(tag::READ_INDEX);
                put_numbers(out, [id]);
            }
            &Body::ReadIndexResponse { id, index } => {
                head(tag::READ_INDEX_RESPONSE);
                put_numbers(out, [id]);
                put_option(out, index);
            }
        }
    })
}

/// Appends a forwarded write as a frame; gives the length of its body.
pub fn put_forward(out: &mut Vec<u8>, forward: &Forward) -> usize {
    put_frame(out, |out| {
        out.push(kind::FORWARD);
        out.extend_from_slice(&forward.id.to_le_bytes());
        out.extend_from_slice(&forward.deadline_ms.to_le_bytes());
        put_blob(out, &forward.command);
    })
}

/// Appends the answer to a forwarded write as a frame; gives the length of its body.
pub fn put_forward_answer(out: &mut Vec<u8>, answer: &ForwardAnswer) -> usize {
    put_frame(out, |out| {
        out.push(kind::FORWARD_ANSWER);
        out.extend_from_slice(&answer.id.to_le_bytes());
        match &answer.result {
            ForwardResult::Applied(outcome) => {
                out.push(APPLIED);
                put_blob(out, outcome);
            }
            ForwardResult::Refused { class, message } => {
                out.push(REFUSED);
                out.push(class.number());
                put_text(out, message, MESSAGE_BYTES_MAX);
            }
            ForwardResult::TooLarge(why) => {
                let (what, found, limit) = match *why {
                    TooLarge::EmptyKey => (EMPTY_KEY, 0, 0),
                    TooLarge::Key { bytes, limit } => (KEY, bytes, limit),
                    TooLarge::Value { bytes, limit } => (VALUE, bytes, limit),
                    TooLarge::Ops { count, limit } => (OPS, count, limit),
                    TooLarge::Batch { bytes, limit } => (BATCH, bytes, limit),
                    TooLarge::Bound { bytes, limit } => (BOUND, bytes, limit),
                };
                out.extend_from_slice(&[TOO_LARGE, what]);
                put_numbers(out, [found as u64, limit as u64]);
            }
        }
    })
}

fn take_too_large(input: &mut Input<'_>) -> Result<TooLarge, Malformed> {
    let what = input.u8("what is too large")?;
    let mut number = || {
        let number = input.u64("size")?;
        usize::try_from(number).map_err(|_| Malformed("size"))
    };
    let (bytes, limit) = (number()?, number()?);
    Ok(match what {
        EMPTY_KEY if bytes == 0 && limit == 0 => TooLarge::EmptyKey,
        KEY => TooLarge::Key { bytes, limit },
        VALUE => TooLarge::Value { bytes, limit },
        OPS => TooLarge::Ops { count: bytes, limit },
        BATCH => TooLarge::Batch { bytes, limit },
        BOUND => TooLarge::Bound { bytes, limit },
        _ => return Err(Malformed("what is too large")),
    })
}

/// Reads a peer frame from a frame's body.
pub fn take_peer_frame(body: &[u8]) -> Result<PeerFrame, Malformed> {
    let mut input = Input(body);
    let frame = match input.u8("frame kind")? {
        kind::MESSAGE => PeerFrame::Message(take_message(&mut input)?),
        kind::FORWARD => PeerFrame::Forward(Forward {
            id: input.u64("forward id")?,
            deadline_ms: input.u32("forward deadline")?,
            command: Arc::from(input.blob("forwarded command")?),
        }),
        kind::FORWARD_ANSWER => PeerFrame::ForwardAnswer(ForwardAnswer {
            id: input.u64("forward id")?,
            result: match input.u8("forward result")? {
                APPLIED => ForwardResult::Applied(input.blob("outcome")?.to_vec()),
                REFUSED => ForwardResult::Refused {
                    class: Class::take(&mut input)?,
                    message: take_text(&mut input, MESSAGE_BYTES_MAX, "failure message")?,
                },
                TOO_LARGE => ForwardResult::TooLarge(take_too_large(&mut input)?),
                _ => return Err(Malformed("forward result")),
            },
        }),
        kind::ADMIN => PeerFrame::Admin(Admin {
            id: input.u64("admin id")?,
            deadline_ms: input.u32("admin deadline")?,
            call: take_admin_call(&mut input)?,
        }),
        kind::ADMIN_ANSWER => PeerFrame::AdminAnswer(AdminAnswer {
            id: input.u64("admin id")?,
            result: match input.u8("admin result")? {
                APPLIED => Ok(input.u64("node id")?),
                REFUSED => {
                    let class = Class::take(&mut input)?;
                    Err((class, take_text(&mut input, MESSAGE_BYTES_MAX, "failure message")?))
                }
                _ => return Err(Malformed("admin result")),
            },
        }),
        kind::PING => PeerFrame::Ping,
        kind::PONG => PeerFrame::Pong {
            leader: input.u64("leader")?,
            address: take_text(&mut input, ADDRESS_BYTES_MAX, "leader's address")?,
        },
        kind::DIGEST => {
            PeerFrame::Digest { index: input.u64("digest index")?, digest: input.u32("digest")? }
        }
        _ => return Err(Malformed("peer frame kind")),
    };
    input.end("peer frame length")?;
    Ok(frame)
}

fn take_admin_call(input: &mut Input<'_>) -> Result<Call, Malformed> {
    match take_call(input)? {
        call @ (Call::Transfer { .. } | Call::Change(_)) => Ok(call),
        _ => Err(Malformed("admin call")),
    }
}

fn take_message(input: &mut Input<'_>) -> Result<Message, Malformed> {
    let from = input.u64("sender")?;
    let to = input.u64("receiver")?;
    if from == 0 || to == 0 {
        return Err(Malformed("message without sender or receiver"));
    }
    let term = take_position(input, "term")?;
    let body = match input.u8("message kind")? {
        tag::REQUEST_PRE_VOTE => Body::RequestPreVote {
            last_index: take_position(input, "last index")?,
            last_term: take_position(input, "last term")?,
        },
        tag::PRE_VOTE_RESPONSE => Body::PreVoteResponse { granted: take_flag(input, "granted")? },
        tag::REQUEST_VOTE => Body::RequestVote {
            last_index: take_position(input, "last index")?,
            last_term: take_position(input, "last term")?,
            transfer: take_flag(input, "transfer")?,
        },
        tag::VOTE_RESPONSE => Body::VoteResponse { granted: take_flag(input, "granted")? },
        tag::APPEND_ENTRIES => take_append(input, term)?,
        tag::APPEND_RESPONSE => {
            let round = input.u64("round")?;
            let result = match input.u8("append result")? {
                MATCHED => AppendResult::Matched { index: take_position(input, "matched index")? },
                CONFLICT => {
                    let prev_index = take_position(input, "previous index")?;
                    let hint_index = take_position(input, "hint index")?;
                    let hint_term = take_position(input, "hint term")?;
                    if hint_index > prev_index {
                        return Err(Malformed("hint index"));
                    }
                    AppendResult::Conflict { prev_index, hint_index, hint_term }
                }
                _ => return Err(Malformed("append result")),
            };
            Body::AppendResponse { result, round }
        }
        tag::HEARTBEAT => Body::Heartbeat {
            commit: take_position(input, "commit")?,
            commit_term: take_position(input, "commit term")?,
            round: input.u64("round")?,
        },
        tag::HEARTBEAT_RESPONSE => Body::HeartbeatResponse { round: input.u64("round")? },
        tag::INSTALL_SNAPSHOT => Body::InstallSnapshot {
            last_index: take_position(input, "last index")?,
            last_term: take_position(input, "last term")?,
            configuration: Arc::new(take_configuration(input)?),
        },
        tag::SNAPSHOT_RESPONSE => Body::SnapshotResponse {
            last_index: take_position(input, "last index")?,
            installed: take_flag(input, "installed")?,
        },
        tag::TIMEOUT_NOW => Body::TimeoutNow,
        tag::READ_INDEX => Body::ReadIndex { id: input.u64("read id")? },
        tag::READ_INDEX_RESPONSE => {
            let id = input.u64("read id")?;
            let index = take_option(input, "read index")?;
            if index.is_some_and(|index| index > POSITION_MAX) {
                return Err(Malformed("read index"));
            }
            Body::ReadIndexResponse { id, index }
        }
        _ => return Err(Malformed("message kind")),
    };
    Ok(Message { from, to, term, body })
}

/// Entries must follow one another, and terms may only grow up to the leader's (paper 5.3).
fn take_append(input: &mut Input<'_>, term: Term) -> Result<Body, Malformed> {
    let prev_index = take_position(input, "previous index")?;
    let prev_term = take_position(input, "previous term")?;
    let commit = take_position(input, "commit")?;
    let round = input.u64("round")?;
    let mut last = (prev_index, prev_term);
    let entries = take_list(input, ENTRY_HEADER_BYTES, usize::MAX, "entry count", |input| {
        let entry = take_entry(input)?;
        if entry.index != last.0 + 1 || entry.index > POSITION_MAX {
            return Err(Malformed("entry index"));
        }
        if entry.term < last.1 || entry.term > term {
            return Err(Malformed("entry term"));
        }
        last = (entry.index, entry.term);
        Ok(entry)
    })?;
    Ok(Body::AppendEntries { prev_index, prev_term, commit, round, entries })
}

/// Reads a term or an index.
fn take_position(input: &mut Input<'_>, what: &'static str) -> Result<u64, Malformed> {
    let position = input.u64(what)?;
    if position <= POSITION_MAX { Ok(position) } else { Err(Malformed(what)) }
}

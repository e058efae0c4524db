//! The raft loop's inputs as bytes. What comes in frames keeps the form that it has there.

use super::super::admin::Admin;
use super::super::events::Input;
use super::super::frames::{input_of, put_outgoing};
use super::super::peers::PeerEvent;
use super::super::raft_loop::Outgoing;
use super::super::words::Request;
use super::take_text;
use super::{put_bytes, put_numbers, put_option, put_pair, take_flag, take_option, take_pair};
use crate::raft::codec::{Input as Bytes, Malformed, put_configuration, take_configuration};
use crate::raft::{EntriesRead, NodeId, SnapshotMark};
use crate::wire::client::Call;
use crate::wire::frame::put_frame;
use crate::wire::handshake::{put_answer_fields, put_hello, take_answer, take_hello};
use crate::wire::peer::{self, PeerFrame, put_message, put_peer_frame, take_peer_frame};
use crate::wire::proof::{Answered, Presented, Proven, SECRET_BYTES, Secret, Shown};
use std::sync::Arc;

mod tag {
    pub(super) const CLIENT: u8 = 1;
    pub(super) const FRAME: u8 = 2;
    pub(super) const FORWARD_UNSENT: u8 = 3;
    pub(super) const LINK: u8 = 4;
    pub(super) const PEER_REACHED: u8 = 5;
    pub(super) const PEER_CONNECTED: u8 = 6;
    pub(super) const PEER_DIALED: u8 = 7;
    pub(super) const PEER_LOST: u8 = 8;
    pub(super) const FLOW_LOST: u8 = 9;
    pub(super) const ENTRIES_READ: u8 = 10;
    pub(super) const PERSISTED: u8 = 11;
    pub(super) const COMPACTED: u8 = 12;
    pub(super) const APPLIED: u8 = 13;
    pub(super) const FLUSHED: u8 = 14;
    pub(super) const DAMAGED: u8 = 15;
    pub(super) const DISK_FULL: u8 = 16;
    pub(super) const FLUSH_WANTED: u8 = 17;
    pub(super) const INSTALLED: u8 = 18;
    pub(super) const RESTS: u8 = 19;
}

mod request {
    pub(super) const WRITE: u8 = 1;
    pub(super) const READ: u8 = 2;
    pub(super) const STATUS: u8 = 3;
    pub(super) const ADMIN: u8 = 4;
    pub(super) const FLUSH: u8 = 5;
}

mod link {
    pub(super) const ACCEPTED: u8 = 1;
    pub(super) const ACCEPTED_CLOSED: u8 = 2;
    pub(super) const ANSWERED: u8 = 3;
    pub(super) const CLOSED: u8 = 4;
    pub(super) const SILENT: u8 = 5;
    pub(super) const LEADER_NAMED: u8 = 6;
    pub(super) const PROBED: u8 = 7;
}

/// Appends an input. `name` names a client.
pub fn put_input<C>(out: &mut Vec<u8>, input: &Input<C>, own: &Secret, name: &impl Fn(&C) -> u64) {
    let mut tagged = |tag: u8, numbers: &[u64]| {
        out.push(tag);
        put_numbers(out, numbers);
    };
    match input {
        Input::Client { client, requests } => {
            tagged(tag::CLIENT, &[name(client), requests.len() as u64]);
            for (request, deadline_us, what) in requests {
                put_numbers(out, &[*request, *deadline_us]);
                put_request(out, what);
            }
        }
        Input::Peer(message) => {
            tagged(tag::FRAME, &[message.from]);
            put_message(out, message);
        }
        Input::Forwarded { from, forward } => {
            tagged(tag::FRAME, &[*from]);
            put_outgoing(out, Outgoing::Forward(forward.clone()));
        }
        Input::ForwardAnswered { from, id, verdict } => {
            tagged(tag::FRAME, &[*from]);
            let verdict = verdict.clone();
            put_outgoing(out, Outgoing::ForwardAnswer { id: *id, verdict });
        }
        Input::ForwardUnsent { id } => tagged(tag::FORWARD_UNSENT, &[*id]),
        Input::AdminForwarded { from, forward } => {
            tagged(tag::FRAME, &[*from]);
            put_outgoing(out, Outgoing::Admin(forward.clone()));
        }
        Input::AdminAnswered { from, id, result } => {
            tagged(tag::FRAME, &[*from]);
            let result = result.clone();
            put_outgoing(out, Outgoing::AdminAnswer { id: *id, result });
        }
        Input::Digest { node, index, digest } => {
            tagged(tag::FRAME, &[*node]);
            put_outgoing(out, Outgoing::Digest { index: *index, digest: *digest });
        }
        Input::Link(event) => {
            tagged(tag::LINK, &[]);
            put_link(out, event, own);
        }
        Input::PeerReached { node, identity } => tagged(tag::PEER_REACHED, &[*node, *identity]),
        Input::PeerConnected { node, identity } => tagged(tag::PEER_CONNECTED, &[*node, *identity]),
        Input::PeerDialed { node, identity, address } => {
            tagged(tag::PEER_DIALED, &[*node, *identity]);
            put_bytes(out, address.as_bytes());
        }
        Input::PeerLost { node } => tagged(tag::PEER_LOST, &[*node]),
        Input::FlowLost { node } => tagged(tag::FLOW_LOST, &[*node]),
        Input::EntriesRead(EntriesRead { to, term, first, sent }) => {
            tagged(tag::ENTRIES_READ, &[*to, *term, *first]);
            put_pair(out, sent.map(|(last, bytes)| (last, bytes as u64)));
        }
        Input::Persisted { seq, log_bytes } => tagged(tag::PERSISTED, &[*seq, *log_bytes]),
        Input::Compacted { log_bytes } => tagged(tag::COMPACTED, &[*log_bytes]),
        Input::Applied { index, flushed } => tagged(tag::APPLIED, &[*index, *flushed]),
        Input::Rests { until_us } => tagged(tag::RESTS, &[*until_us]),
        Input::Flushed { index } => tagged(tag::FLUSHED, &[*index]),
        Input::Damaged => tagged(tag::DAMAGED, &[]),
        Input::DiskFull(full) => tagged(tag::DISK_FULL, &[u64::from(*full)]),
        Input::FlushWanted => tagged(tag::FLUSH_WANTED, &[]),
        Input::Installed { mark } => {
            tagged(tag::INSTALLED, &[mark.index, mark.term]);
            put_configuration(out, &mark.configuration);
        }
    }
}

/// Reads an input.
///
/// # Errors
/// It is none.
pub fn take_input(bytes: &mut Bytes<'_>) -> Result<Input<u64>, Malformed> {
    let tag = bytes.u8("input")?;
    let mut number = || bytes.u64("a number of an input");
    Ok(match tag {
        tag::CLIENT => {
            let (client, count) = (number()?, number()?);
            let mut requests = Vec::new();
            for _ in 0..count {
                let (request, deadline_us) = (bytes.u64("request")?, bytes.u64("deadline")?);
                requests.push((request, deadline_us, take_request(bytes)?));
            }
            Input::Client { client, requests }
        }
        tag::FRAME => {
            let from = number()?;
            match take_frame(bytes)? {
                // This node's own number is in the message.
                PeerFrame::Message(message) => Input::Peer(message),
                frame => match input_of(frame, from, 0) {
                    Ok(Some(input)) => input,
                    Ok(None) | Err(_) => return Err(Malformed("a frame of a peer")),
                },
            }
        }
        tag::FORWARD_UNSENT => Input::ForwardUnsent { id: number()? },
        tag::LINK => Input::Link(take_link(bytes)?),
        tag::PEER_REACHED => Input::PeerReached { node: number()?, identity: number()? },
        tag::PEER_CONNECTED => Input::PeerConnected { node: number()?, identity: number()? },
        tag::PEER_DIALED => {
            let (node, identity) = (number()?, number()?);
            Input::PeerDialed { node, identity, address: take_text(bytes, "address")? }
        }
        tag::PEER_LOST => Input::PeerLost { node: number()? },
        tag::FLOW_LOST => Input::FlowLost { node: number()? },
        tag::ENTRIES_READ => {
            let (to, term, first) = (number()?, number()?, number()?);
            let sent = match take_pair(bytes, "what was sent")? {
                None => None,
                Some((last, len)) => {
                    let len = usize::try_from(len).map_err(|_| Malformed("what was sent"))?;
                    Some((last, len))
                }
            };
            Input::EntriesRead(EntriesRead { to, term, first, sent })
        }
        tag::PERSISTED => Input::Persisted { seq: number()?, log_bytes: number()? },
        tag::COMPACTED => Input::Compacted { log_bytes: number()? },
        tag::APPLIED => Input::Applied { index: number()?, flushed: number()? },
        tag::RESTS => Input::Rests { until_us: number()? },
        tag::FLUSHED => Input::Flushed { index: number()? },
        tag::DAMAGED => Input::Damaged,
        tag::DISK_FULL => Input::DiskFull(number()? != 0),
        tag::FLUSH_WANTED => Input::FlushWanted,
        tag::INSTALLED => {
            let (index, term) = (number()?, number()?);
            let configuration = Arc::new(take_configuration(bytes)?);
            Input::Installed { mark: SnapshotMark { index, term, configuration } }
        }
        _ => return Err(Malformed("input")),
    })
}

/// The body of a frame: length and checksum stand before it, and the record has checksums of its own.
fn take_frame_body<'a>(bytes: &mut Bytes<'a>) -> Result<&'a [u8], Malformed> {
    let len = bytes.u32("length of a frame")? as usize;
    let _ = bytes.u32("checksum of a frame")?;
    bytes.bytes(len, "frame")
}

fn take_frame(bytes: &mut Bytes<'_>) -> Result<PeerFrame, Malformed> {
    take_peer_frame(take_frame_body(bytes)?)
}

fn put_request(out: &mut Vec<u8>, what: &Request) {
    let admin = |out: &mut Vec<u8>, what: Admin| {
        out.push(request::ADMIN);
        let call = match what {
            Admin::Transfer(to) => Call::Transfer { to },
            Admin::Change(change) => Call::Change(change),
        };
        put_peer_frame(out, &PeerFrame::Admin(peer::Admin { id: 0, deadline_ms: 0, call }));
    };
    match what {
        Request::Write(command) => {
            out.push(request::WRITE);
            put_bytes(out, command);
        }
        Request::Read => out.push(request::READ),
        Request::Status => out.push(request::STATUS),
        Request::Transfer(to) => admin(out, Admin::Transfer(*to)),
        Request::Change(change) => admin(out, Admin::Change(change.clone())),
        Request::Flush { cut } => out.extend_from_slice(&[request::FLUSH, u8::from(*cut)]),
    }
}

fn take_request(bytes: &mut Bytes<'_>) -> Result<Request, Malformed> {
    Ok(match bytes.u8("request")? {
        request::WRITE => Request::Write(Arc::from(bytes.blob("command")?)),
        request::READ => Request::Read,
        request::STATUS => Request::Status,
        request::ADMIN => match take_frame(bytes)? {
            PeerFrame::Admin(peer::Admin { call: Call::Transfer { to }, .. }) => {
                Request::Transfer(to)
            }
            PeerFrame::Admin(peer::Admin { call: Call::Change(change), .. }) => {
                Request::Change(change)
            }
            _ => return Err(Malformed("what an operator asks")),
        },
        request::FLUSH => Request::Flush { cut: take_flag(bytes, "flush")? },
        _ => return Err(Malformed("request")),
    })
}

fn put_proven(out: &mut Vec<u8>, Proven { token, member, sealed }: Proven) {
    out.extend([token, member, sealed].map(u8::from));
}

fn take_proven(bytes: &mut Bytes<'_>) -> Result<Proven, Malformed> {
    let mut flag = || take_flag(bytes, "what is proven");
    Ok(Proven { token: flag()?, member: flag()?, sealed: flag()? })
}

fn put_link(out: &mut Vec<u8>, event: &PeerEvent, own: &Secret) {
    let mut tagged = |tag: u8, numbers: &[u64]| {
        out.push(tag);
        put_numbers(out, numbers);
    };
    match event {
        PeerEvent::Accepted { connection, presented } => {
            tagged(link::ACCEPTED, &[*connection, u64::from(presented.version)]);
            let Shown { proven, offer } = presented.shown(own);
            put_proven(out, proven);
            put_hello(out, &presented.hello);
            put_option(out, offer.map(|(term, _)| term));
            out.extend(offer.iter().flat_map(|(_, pseudonym)| pseudonym));
        }
        PeerEvent::AcceptedClosed { connection } => tagged(link::ACCEPTED_CLOSED, &[*connection]),
        PeerEvent::Answered { connection, answered } => {
            tagged(link::ANSWERED, &[*connection]);
            put_proven(out, answered.proven);
            put_frame(out, |out| put_answer_fields(out, &answered.answer));
        }
        PeerEvent::Closed { connection, why } => {
            tagged(link::CLOSED, &[*connection]);
            put_bytes(out, why.as_bytes());
        }
        PeerEvent::Silent { connection } => tagged(link::SILENT, &[*connection]),
        PeerEvent::LeaderNamed { leader, address } => {
            tagged(link::LEADER_NAMED, &[*leader]);
            put_bytes(out, address.as_bytes());
        }
        PeerEvent::Probed { address, node } => {
            tagged(link::PROBED, &[]);
            put_bytes(out, address.as_bytes());
            put_option(out, *node);
        }
    }
}

fn take_link(bytes: &mut Bytes<'_>) -> Result<PeerEvent, Malformed> {
    let tag = bytes.u8("what happened on a connection")?;
    let number = |bytes: &mut Bytes<'_>| bytes.u64("connection");
    Ok(match tag {
        link::ACCEPTED => {
            let (connection, version) = (number(bytes)?, number(bytes)?);
            let version = u16::try_from(version).map_err(|_| Malformed("version"))?;
            let proven = take_proven(bytes)?;
            let hello = take_hello(take_frame_body(bytes)?)?;
            let offer = match take_option(bytes, "offer")? {
                None => None,
                Some(term) => {
                    let pseudonym = bytes.bytes(SECRET_BYTES, "offer")?;
                    Some((term, pseudonym.try_into().map_err(|_| Malformed("offer"))?))
                }
            };
            let presented = Presented::recorded(hello, version, Shown { proven, offer });
            PeerEvent::Accepted { connection, presented: Box::new(presented) }
        }
        link::ACCEPTED_CLOSED => PeerEvent::AcceptedClosed { connection: number(bytes)? },
        link::ANSWERED => {
            let connection = number(bytes)?;
            let proven = take_proven(bytes)?;
            let answer = take_answer(take_frame_body(bytes)?)?;
            let answered = Box::new(Answered::recorded(answer, proven));
            PeerEvent::Answered { connection, answered }
        }
        link::CLOSED => {
            let connection = number(bytes)?;
            PeerEvent::Closed { connection, why: take_text(bytes, "reason")? }
        }
        link::SILENT => PeerEvent::Silent { connection: number(bytes)? },
        link::LEADER_NAMED => {
            let leader: NodeId = number(bytes)?;
            PeerEvent::LeaderNamed { leader, address: take_text(bytes, "address")? }
        }
        link::PROBED => {
            let address = take_text(bytes, "address")?;
            PeerEvent::Probed { address, node: take_option(bytes, "node")? }
        }
        _ => return Err(Malformed("what happened on a connection")),
    })
}

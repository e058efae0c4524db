//! Between the words of `node` and the frames of the peer protocol, snapshots included.

use super::{
    Admin, AdminForward, ChangeRefused, Forward, Input, Outgoing, Refusal, SnapshotRequest,
    SnapshotResponse, Verdict,
};
use crate::kv::Piece;
use crate::kv::bytes::{Input as KvInput, Malformed};
use crate::kv::codec::{put_outcome, take_outcome};
use crate::kv::limits::MAX_BATCH_BYTES_CEILING;
use crate::raft::NodeId;
use crate::wire::client::{Call, Class};
use crate::wire::peer::{self, AdminAnswer, ForwardAnswer, ForwardResult, PeerFrame};
use crate::wire::snapshot::{SnapshotFrame, take_snapshot_frame};

/// A forwarded write is of a client, in the form of the log, which a segment must hold.
const FORWARD_BYTES_MAX: usize = 2 * MAX_BATCH_BYTES_CEILING;

/// Appends what is sent as a frame; an [`Outgoing::FromLog`] has to be read first.
pub fn put_outgoing(out: &mut Vec<u8>, outgoing: Outgoing) {
    match outgoing {
        Outgoing::Message(message) => peer::put_message(out, &message),
        Outgoing::FromLog(read) => peer::put_message(out, &read.message),
        Outgoing::Forward(Forward { id, deadline_ms, command }) => {
            peer::put_forward(out, &peer::Forward { id, deadline_ms, command })
        }
        Outgoing::ForwardAnswer { id, verdict } => {
            peer::put_forward_answer(out, &ForwardAnswer { id, result: result_of(&verdict) })
        }
        Outgoing::Admin(AdminForward { id, deadline_ms, what }) => {
            let admin = peer::Admin { id, deadline_ms, call: call_of(what) };
            peer::put_peer_frame(out, &PeerFrame::Admin(admin))
        }
        Outgoing::AdminAnswer { id, result } => {
            let result = result.map_err(|why| (why.class(), why.to_string()));
            peer::put_peer_frame(out, &PeerFrame::AdminAnswer(AdminAnswer { id, result }))
        }
        Outgoing::Digest { index, digest } => {
            peer::put_peer_frame(out, &PeerFrame::Digest { index, digest })
        }
    };
}

/// What a frame from node `from` says to node `to`; none for a ping, which is answered.
///
/// # Errors
/// No node that keeps to the protocol sends it.
pub fn input_of<C>(frame: PeerFrame, from: NodeId, to: NodeId) -> Result<Option<Input<C>>, String> {
    Ok(Some(match frame {
        PeerFrame::Message(message) => {
            if message.from != from || message.to != to {
                let text = "a message that is not between the two ends of the connection";
                return Err(text.to_string());
            }
            Input::Peer(message)
        }
        PeerFrame::Forward(peer::Forward { id, deadline_ms, command }) => {
            if command.len() > FORWARD_BYTES_MAX {
                return Err("a forwarded write no client can have made".to_string());
            }
            Input::Forwarded { from, forward: Forward { id, deadline_ms, command } }
        }
        PeerFrame::ForwardAnswer(answer) => {
            let verdict = verdict_of(from, answer.result).map_err(|e| e.to_string())?;
            Input::ForwardAnswered { from, id: answer.id, verdict }
        }
        PeerFrame::Admin(peer::Admin { id, deadline_ms, call }) => {
            let what = admin_of(call)?;
            Input::AdminForwarded { from, forward: AdminForward { id, deadline_ms, what } }
        }
        PeerFrame::AdminAnswer(AdminAnswer { id, result }) => {
            let result = result.map_err(|(class, why)| ChangeRefused::declined(class, why));
            Input::AdminAnswered { from, id, result }
        }
        PeerFrame::Digest { index, digest } => Input::Digest { node: from, index, digest },
        PeerFrame::Ping => return Ok(None),
        PeerFrame::Pong { .. } => return Err("a pong that nobody asked for".to_string()),
    }))
}

/// What a call asks of the leader.
fn admin_of(call: Call) -> Result<Admin, String> {
    match call {
        Call::Transfer { to } => Ok(Admin::Transfer(to)),
        Call::Change(change) => change.check_address().map(|()| Admin::Change(change)),
        _ => Err("no change of the members".to_string()),
    }
}

fn call_of(admin: Admin) -> Call {
    match admin {
        Admin::Transfer(to) => Call::Transfer { to },
        Admin::Change(change) => Call::Change(change),
    }
}

fn result_of(verdict: &Verdict) -> ForwardResult {
    match verdict {
        Verdict::Applied(outcome) => {
            let mut bytes = Vec::new();
            put_outcome(&mut bytes, outcome);
            ForwardResult::Applied(bytes)
        }
        Verdict::NotApplied(Refusal::TooLarge { why, .. }) => ForwardResult::TooLarge(*why),
        Verdict::NotApplied(refusal) => {
            let class = match refusal {
                Refusal::Busy { .. } | Refusal::LeaderBusy => Class::Busy,
                Refusal::DiskFull { .. } => Class::DiskFull,
                Refusal::Malformed(_) => Class::Invalid,
                _ => Class::Unavailable,
            };
            ForwardResult::Refused { class, message: refusal.to_string() }
        }
        Verdict::Unknown(why) => {
            ForwardResult::Refused { class: Class::Unknown, message: (*why).to_string() }
        }
    }
}

fn verdict_of(from: NodeId, result: ForwardResult) -> Result<Verdict, Malformed> {
    Ok(match result {
        ForwardResult::Applied(bytes) => Verdict::Applied(take_outcome(&mut KvInput(&bytes))?),
        ForwardResult::Refused { class: Class::Busy, .. } => {
            Verdict::NotApplied(Refusal::LeaderBusy)
        }
        ForwardResult::Refused { class: Class::DiskFull, .. } => {
            Verdict::NotApplied(Refusal::DiskFull { node: from })
        }
        ForwardResult::Refused { class: Class::Invalid, .. } => {
            Verdict::NotApplied(Refusal::Malformed(Malformed("refused by the leader")))
        }
        ForwardResult::TooLarge(why) => {
            Verdict::NotApplied(Refusal::TooLarge { leader: Some(from), why })
        }
        ForwardResult::Refused { class: Class::Unknown, .. } => {
            Verdict::Unknown("the leader does not know what became of it")
        }
        ForwardResult::Refused { .. } => Verdict::NotApplied(Refusal::NotLeader),
    })
}

/// The frame of a question.
#[must_use]
pub fn request_frame(request: SnapshotRequest) -> SnapshotFrame {
    match request {
        SnapshotRequest::Begin { index } => SnapshotFrame::Begin { index },
        SnapshotRequest::Piece(Piece { table, offset, len }) => {
            SnapshotFrame::Piece { table, offset, len: u32::try_from(len).unwrap_or(u32::MAX) }
        }
    }
}

/// The frame of an answer.
#[must_use]
pub fn response_frame(response: SnapshotResponse) -> SnapshotFrame {
    match response {
        SnapshotResponse::Begins { manifest } => SnapshotFrame::Begins { manifest },
        SnapshotResponse::Piece { piece: Piece { table, offset, .. }, bytes } => {
            SnapshotFrame::Bytes { table, offset, bytes }
        }
        SnapshotResponse::Gone => SnapshotFrame::Gone,
    }
}

/// The question that a frame's body asks.
///
/// # Errors
/// It asks none.
pub fn request_of(body: &[u8]) -> Result<SnapshotRequest, String> {
    match take_snapshot_frame(body).map_err(|e| e.to_string())? {
        SnapshotFrame::Begin { index } => Ok(SnapshotRequest::Begin { index }),
        SnapshotFrame::Piece { table, offset, len } => {
            Ok(SnapshotRequest::Piece(Piece { table, offset, len: len as usize }))
        }
        _ => Err("an answer where a question is expected".to_string()),
    }
}

/// The answer that a frame's body gives.
///
/// # Errors
/// It gives none.
pub fn response_of(body: &[u8]) -> Result<SnapshotResponse, String> {
    match take_snapshot_frame(body).map_err(|e| e.to_string())? {
        SnapshotFrame::Begins { manifest } => Ok(SnapshotResponse::Begins { manifest }),
        SnapshotFrame::Bytes { table, offset, bytes } => {
            let piece = Piece { table, offset, len: bytes.len() };
            Ok(SnapshotResponse::Piece { piece, bytes })
        }
        SnapshotFrame::Gone => Ok(SnapshotResponse::Gone),
        _ => Err("a question where an answer is expected".to_string()),
    }
}

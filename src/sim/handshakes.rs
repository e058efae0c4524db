//! What must hold of handshakes, and the byte forms that frames take now and then.

use super::checks::{Violation, violated};
use super::impostor::IMPOSTOR;
use super::moments::{DiskStep, FileKind, Moment};
use super::network::{End, Packet};
use super::node::{CLIENTS_TOKEN, ClientId, DATA, Up};
use super::world::World;
use crate::node::{
    ConnectionId, Input, Outgoing, PeerEvent, PeerVerdict, input_of, put_outgoing, to_keep,
};
use crate::raft::NodeId;
use crate::wal::Identity;
use crate::wire::frame::{FRAME_HEADER_BYTES, FrameReader, PEER_FRAME_MAX};
use crate::wire::handshake::{Reject, RejectCode, put_reject};
use crate::wire::peer::take_peer_frame;
use crate::wire::proof::{Answered, Dialer, Dialing, Listener, SECRET_BYTES, Secret};
use std::path::Path;

impl World {
    /// A node lets another one in, which has dialed in that life, if the connection is still there.
    pub(super) fn let_in(
        &mut self,
        to: NodeId,
        from: NodeId,
        dialed_in: Option<u64>,
    ) -> Result<(), Violation> {
        let life = self.nodes.get(&from).map_or(0, |n| n.life);
        self.note(to, "let in", [from, life, 0, 0]);
        if from == IMPOSTOR {
            return violated("who is no member is not let in", format!("by node {to}"));
        }
        let (Some(dialer), Some(other)) = (self.nodes.get(&from), self.nodes.get(&to)) else {
            return Ok(());
        };
        // A node that slept answers the disk from before, which was rightly a member. (Seed 5383, when sessions were
        // first released.)
        let is_late = dialed_in.is_none_or(|life| life < dialer.speaks_since);
        let old = other.wiped || other.old_copy;
        if dialer.known_to.contains(&to) && !old && !is_late {
            let detail = format!("node {from} is let in by node {to}");
            return violated("a wiped disk is not let in where the one before is known", detail);
        }
        let wiped = dialer.wiped && !old && !is_late;
        let up = other.up.as_ref();
        let newer = |up: &Up| up.node.replica().raft().configuration().member(from).is_none();
        if up.is_some_and(newer) {
            self.count("newer members let in");
        }
        if wiped {
            self.count("wiped disks let in by who did not know");
        }
        Ok(())
    }

    pub(super) fn check_reject(
        &mut self,
        node: NodeId,
        flow: u64,
        code: RejectCode,
    ) -> Result<(), Violation> {
        let Some(dialer) = self.network.flow(flow).map(|f| f.dialer.0) else { return Ok(()) };
        self.count(match code {
            RejectCode::Removed => "rejected: removed",
            RejectCode::WrongIdentity => "rejected: wrong identity",
            RejectCode::WrongNode => "rejected: wrong node",
            RejectCode::TooManyConnections => "rejected: too many connections",
            _ => "rejected otherwise",
        });
        let member = self.cluster.configuration().is_none_or(|c| c.member(dialer).is_some());
        if code == RejectCode::Removed && member {
            let detail = format!("node {dialer}, by node {node}");
            return violated("a removal is told once it is committed", detail);
        }
        Ok(())
    }

    /// A node has come to a verdict about itself.
    pub(super) fn stopped_by(
        &mut self,
        node: NodeId,
        verdict: PeerVerdict,
    ) -> Result<(), Violation> {
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        let detail = format!("node {node}");
        match verdict {
            PeerVerdict::Impostor if !n.wiped => {
                return violated("only a wiped node is stopped", detail);
            }
            PeerVerdict::Impostor => self.count("wiped nodes stopped"),
            PeerVerdict::RolledBack if !n.old_copy => {
                return violated("only an old copy is stopped", detail);
            }
            PeerVerdict::RolledBack => self.count("old copies noticed"),
            PeerVerdict::Removed
                if self.cluster.configuration().is_none_or(|c| c.member(node).is_some()) =>
            {
                return violated("a removal is told once it is committed", detail);
            }
            PeerVerdict::Removed => self.count("removed nodes told"),
        }
        if let Some(n) = self.nodes.get_mut(&node) {
            n.over = true;
        }
        self.stop(node, false);
        Ok(())
    }

    /// Whoever is no member, or has another disk than the member, is parted with as soon as a node knows.
    pub(super) fn check_strangers(&self, node: NodeId) -> Result<(), Violation> {
        let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else { return Ok(()) };
        let raft = up.node.replica().raft();
        let known = raft.configurations();
        let committed = known.iter().rfind(|(at, _)| *at <= raft.commit_index());
        let committed = committed.map_or(raft.configuration(), |(_, c)| c);
        let welcome = up.accepted.iter().filter(|(_, accepted)| accepted.welcome);
        for (&flow, accepted) in welcome {
            let from = accepted.from;
            let removed = committed.was_removed(from);
            let identity = raft.configuration().member(from).map_or(0, |m| m.identity);
            let Some(dialer) = self.nodes.get(&from) else { continue };
            let here = self.network.flow(flow).is_some_and(|f| f.dialer == (from, dialer.life));
            let impostor = here && dialer.wiped && identity != 0 && identity != dialer.identity;
            if removed || impostor {
                let detail = format!("node {node} keeps a connection of node {from}");
                return violated("strangers are parted with", detail);
            }
        }
        Ok(())
    }

    /// An old copy of a disk stops as soon as a voter has welcomed it: that one remembers more of it.
    pub(super) fn check_old_copy(&self, node: NodeId, by: &[NodeId]) -> Result<(), Violation> {
        let votes = |id: &&NodeId| self.cluster.configuration().is_some_and(|c| c.is_voter(**id));
        let stopped = self.nodes.get(&node).and_then(|n| n.up.as_ref());
        let stopped = stopped.is_none_or(|up| up.node.peers().is_stopped());
        match by.iter().find(votes) {
            Some(by) if self.is_old_copy(node) && !stopped => {
                violated("old copies are noticed", format!("node {node}, welcomed by {by}"))
            }
            _ => Ok(()),
        }
    }

    // ---- proofs ----

    /// A frame of a handshake arrives at the one that was dialed.
    pub(super) fn shakes_hands(
        &mut self,
        node: NodeId,
        flow: u64,
        frame: &[u8],
    ) -> Result<(), Violation> {
        let nonce = self.dice.bytes();
        let body = body_of(frame)?;
        self.overhear(node, flow, frame);
        let Some(accepted) = self.accepted(node, flow) else { return Ok(()) };
        let (from, welcome) = (accepted.from, accepted.welcome);
        if welcome {
            return violated("nodes keep to the protocol", "a second handshake".to_string());
        }
        let refused = match accepted.listener.take() {
            None => match Listener::new(&body, &nonce) {
                Ok((listener, challenge)) => {
                    accepted.listener = Some(listener);
                    self.put(flow, End::Acceptor, Packet::Handshake(challenge));
                    return Ok(());
                }
                Err(reject) => reject,
            },
            Some(listener) => match listener.proof(&body, CLIENTS_TOKEN) {
                Ok(presented) => {
                    self.shown_to_be_a_node(node, flow, &presented.hello);
                    let presented = Box::new(presented);
                    self.report(node, PeerEvent::Accepted { connection: flow, presented });
                    return Ok(());
                }
                Err(reject) => reject,
            },
        };
        if from != IMPOSTOR {
            return violated("a node is authentic", refused.message);
        }
        self.refuse_stranger(node, flow, &refused);
        Ok(())
    }

    fn refuse_stranger(&mut self, node: NodeId, flow: u64, reject: &Reject) {
        self.count("impostors without a proof refused");
        let mut frame = Vec::new();
        put_reject(&mut frame, reject);
        self.put(flow, End::Acceptor, Packet::Handshake(frame));
        self.end_accepted(node, flow, false);
    }

    /// A frame of a handshake arrives at the one that has dialed.
    pub(super) fn handshake_goes_on(
        &mut self,
        node: NodeId,
        connection: ConnectionId,
        flow: u64,
        frame: &[u8],
    ) -> Result<(), Violation> {
        let Some(dialed) = self.dialed(node, connection) else { return Ok(()) };
        let Some(dialer) = &mut dialed.dialer else {
            return violated("nodes keep to the protocol", "an answer to no handshake".to_string());
        };
        match goes_on(dialer, frame) {
            Ok(Dialing::Write(frame)) => self.put(flow, End::Dialer, Packet::Handshake(frame)),
            Ok(Dialing::Over(answered)) => {
                dialed.dialer = None;
                self.trace.detail(self.now_us, node, || format!("{connection}: {answered:?}"));
                if let Answered { answer: Err(reject), .. } = &*answered {
                    self.note(node, "rejected", [reject.code.number().into(), 0, 0, 0]);
                }
                self.report(node, PeerEvent::Answered { connection, answered });
            }
            Err(why) if self.is_impostor_at(flow, End::Acceptor) => {
                self.count("answers of impostors not believed");
                self.dial_ended(node, connection, &why)?;
            }
            Err(why) => return violated("nodes keep to the protocol", why),
        }
        Ok(())
    }

    /// A node makes the members' secret durable; false when its disk fails.
    pub(super) fn keep_secret(&mut self, node: NodeId, secret: Secret) -> Result<bool, Violation> {
        let Some(n) = self.nodes.get(&node) else { return Ok(false) };
        let (disk, data) = (n.disk.clone(), Path::new(DATA));
        if !self.quiet && self.dice.chance(1, 16) {
            let at = |step| Moment { step, file: FileKind::Identity };
            let moment = at(*self.dice.pick(&[DiskStep::Write, DiskStep::Sync]));
            disk.fail_power_at(moment, self.dice.below(2));
        }
        let kept = Identity::load(&disk, data).and_then(|identity| match identity {
            Some(identity) => {
                let secret = Some(to_keep(secret));
                Identity { secret, ..identity }.store(&disk, data)
            }
            None => Ok(()),
        });
        if kept.is_err() {
            self.count("members' secrets not kept");
            self.disk_failed(node, "disk error in keeping the members' secret");
            return Ok(false);
        }
        self.note(node, "secret kept", [u64::from(secret.sealed), 0, 0, 0]);
        if !secret.sealed {
            self.count("members' secrets taken from a leader");
            return Ok(true);
        }
        self.count("members' secrets sealed");
        self.sealed_by(node, secret.bytes)?;
        Ok(true)
    }

    /// A node holds a secret that is sealed: there is one.
    pub(super) fn sealed_by(
        &mut self,
        node: NodeId,
        bytes: [u8; SECRET_BYTES],
    ) -> Result<(), Violation> {
        let counts = self.nodes.get(&node).is_some_and(|n| !(n.wiped || n.old_copy));
        if counts && *self.sealed.get_or_insert(bytes) != bytes {
            return violated("members hold one secret", format!("node {node} seals another one"));
        }
        Ok(())
    }

    // ---- byte forms ----

    /// What a node is told by another one, in the frames of the wire.
    pub(super) fn framed(
        &mut self,
        outgoing: Outgoing,
        (from, to): (NodeId, NodeId),
    ) -> Result<Input<ClientId>, Violation> {
        let mut bytes = Vec::new();
        put_outgoing(&mut bytes, outgoing);
        take_frame(&bytes, |body| {
            let frame = take_peer_frame(body).map_err(|e| e.to_string())?;
            input_of(frame, from, to)?.ok_or("no input".to_string())
        })
    }
}

/// The body of a frame of a handshake.
pub(super) fn body_of(frame: &[u8]) -> Result<Vec<u8>, Violation> {
    take_frame(frame, |body| Ok(body.to_vec()))
}

/// What a dialer does next.
pub(super) fn goes_on(dialer: &mut Dialer, frame: &[u8]) -> Result<Dialing, String> {
    let body = frame.get(FRAME_HEADER_BYTES..).unwrap_or_default();
    dialer.heard(body).map_err(|e| e.to_string())
}

/// What the other side takes from a frame.
pub(super) fn take_frame<T>(
    bytes: &[u8],
    take: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, Violation> {
    let mut reader = FrameReader::new(PEER_FRAME_MAX);
    reader.feed(bytes);
    let taken = match reader.next_frame() {
        Ok(Some(body)) => take(body),
        Ok(None) => Err("an unfinished frame".to_string()),
        Err(e) => Err(e.to_string()),
    };
    taken.or_else(|e| violated("nodes keep to the protocol", e))
}

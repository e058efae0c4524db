//! Machines come and go, and what travels between them.

use super::checks::{Platter, Violation};
use super::disk::SimDisk;
use super::network::Packet;
use super::node::Start;
use super::world::{ANY_LIFE, Event, World};
use crate::kv::{Reader as _, View as _};
use crate::node::{Input, Promise};
use crate::raft::{Message, NodeId};

impl World {
    pub(super) fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if !(self.admits(from, to) && self.admits(to, from)) {
            self.count("strangers turned away");
            return;
        }
        let (connection, arrivals) = self.network.arrivals(self.now_us, from, to, &packet);
        let Some(life) = self.nodes.get(&to).map(|n| n.life) else { return };
        // To a process that is down, or to one that is not the one it was sent to: messages of the
        // core may arrive in the next life, forwards are bound to their connection.
        let life = if matches!(packet, Packet::Message(_)) { ANY_LIFE } else { life };
        let mut copies = vec![packet; arrivals.len()];
        for at_us in arrivals {
            let Some(packet) = copies.pop().map(Box::new) else { return };
            let delay_us = at_us - self.now_us;
            self.schedule(delay_us, to, life, Event::Arrive { from, connection, packet });
        }
    }

    pub(super) fn arrive(
        &mut self,
        node: NodeId,
        from: NodeId,
        connection: u64,
        packet: Packet,
    ) -> Result<(), Violation> {
        let now = self.network.line(from, node).connection;
        if self.nodes.get(&node).is_none_or(|n| n.up.is_none()) {
            return Ok(());
        }
        let input = match packet {
            Packet::Message(message) => Input::Peer(self.over_the_wire(message)),
            Packet::Forward(_)
            | Packet::ForwardAnswer { .. }
            | Packet::Ask(_)
            | Packet::Told(_)
            | Packet::Digest { .. }
                if now != connection =>
            {
                return Ok(());
            }
            Packet::Ask(ask) => return self.asked(node, from, ask),
            Packet::Told(told) => return self.told(node, from, told),
            Packet::Digest { index, digest } => {
                self.count("digests compared");
                Input::Digest { node: from, index, digest }
            }
            Packet::Forward(forward) => Input::Forwarded { from, forward },
            Packet::ForwardAnswer { id, verdict } => Input::ForwardAnswered { from, id, verdict },
        };
        self.input(node, input);
        Ok(())
    }

    /// Now and then a message takes the way through its byte form.
    fn over_the_wire(&mut self, message: Message) -> Message {
        use crate::wire::frame::FrameReader;
        use crate::wire::peer::{PeerFrame, put_message, take_peer_frame};
        if !self.dice.chance(1, 32) {
            return message;
        }
        let mut bytes = Vec::new();
        put_message(&mut bytes, &message);
        let mut reader = FrameReader::new(bytes.len());
        reader.feed(&bytes);
        match reader.next_frame().ok().flatten().map(take_peer_frame) {
            Some(Ok(PeerFrame::Message(decoded))) => decoded,
            // Shows as a lost message at best; the wire's own tests say more.
            _ => message,
        }
    }

    /// Both ends of a connection notice, sooner or later, that it is gone.
    pub(super) fn break_connection(&mut self, from: NodeId, to: NodeId) {
        self.network.line(from, to).connection += 1;
        for (at, other) in [(from, to), (to, from)] {
            let delay_us = self.dice.log_between(50, 20_000);
            let life = self.nodes.get(&at).map_or(0, |n| n.life);
            let lost = Event::Input(Input::PeerLost { node: other });
            self.schedule(delay_us, at, life, lost);
        }
        self.reconnect(from, to);
    }

    fn reconnect(&mut self, from: NodeId, to: NodeId) {
        let delay_us = self.dice.log_between(20_000, 500_000);
        if !(self.admits(from, to) && self.admits(to, from)) {
            return;
        }
        let identity = self.nodes.get(&to).map_or(0, |n| n.identity);
        let life = self.nodes.get(&from).map_or(0, |n| n.life);
        let connected = Event::Input(Input::PeerConnected { node: to, identity });
        self.schedule(delay_us, from, life, connected);
        let life = self.nodes.get(&to).map_or(0, |n| n.life);
        self.schedule(delay_us, to, life, Event::Dialed { from });
    }

    /// A handshake arrives, with what the dialer says of itself now.
    pub(super) fn dialed(&mut self, node: NodeId, from: NodeId) {
        let Some(dialer) = self.nodes.get(&from) else { return };
        let Some(up) = &dialer.up else { return };
        let promise = Promise::of(up.replica.raft());
        let (identity, address) = (dialer.identity, format!("node-{from}:1"));
        self.input(node, Input::PeerDialed { node: from, identity, address, promise });
    }

    /// The handshake, as the server makes it: whoever's identity is on record must have it.
    fn admits(&self, at: NodeId, other: NodeId) -> bool {
        let (Some(n), Some(other)) = (self.nodes.get(&at), self.nodes.get(&other)) else {
            return false;
        };
        let Some(up) = &n.up else { return true };
        let recorded = up.replica.raft().configuration().member(other.id).map_or(0, |m| m.identity);
        recorded == 0 || recorded == other.identity
    }

    /// Whether every other node runs and has the node's identity on its disk: only then is a wiped
    /// disk sure to be recognised (docs/architecture.md).
    fn is_known_to_all(&self, node: NodeId) -> bool {
        let Some(identity) = self.nodes.get(&node).map(|n| n.identity) else { return false };
        self.nodes.len() > 1
            && self.nodes.values().filter(|n| n.id != node).all(|n| {
                n.up.as_ref().is_some_and(|up| {
                    let raft = up.replica.raft();
                    let settled = raft.commit_index() == raft.last_index()
                        && raft.durable_index() == raft.last_index();
                    let member = raft.configuration().member(node);
                    settled && member.is_some_and(|m| m.identity == identity)
                })
            })
    }

    /// The node loses its disk and begins with an empty one under its old id, if it would be
    /// recognised.
    pub(super) fn wipe(&mut self, node: NodeId, down_us: u64) {
        if !self.is_known_to_all(node) {
            return;
        }
        self.count("disks lost");
        self.stop(node, true);
        if let Some(n) = self.nodes.get_mut(&node) {
            n.disk = SimDisk::new(self.dice.split());
            n.torn = None;
            n.flushed = 0;
            n.wiped = true;
        }
        self.platters.insert(node, Platter::default());
        self.start_in(down_us, node);
    }

    pub(super) fn start(&mut self, node: NodeId) -> Result<(), Violation> {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        if n.up.is_some() || n.refuses {
            return Ok(());
        }
        let Some(platter) = self.platters.get_mut(&node) else { return Ok(()) };
        match n.start(now_us, platter, self.cluster.committed_terms())? {
            Start::Running => {
                let (life, last) = (n.life, self.platters[&node].terms.len() as u64);
                self.note(node, "started", [life, last, 0, 0]);
                self.count("starts");
                let applied =
                    self.nodes[&node].up.as_ref().map_or(0, |up| up.reader.view().applied());
                if applied > 0 {
                    self.count("started from what was flushed");
                }
                let up = self.nodes[&node].up.as_ref();
                let damage = up.and_then(|up| up.reader.damage());
                if let Some(e) = damage {
                    self.count("started with a damaged store");
                    self.store_failed(node, "", &e)?;
                } else if self.dice.chance(1, 4) {
                    self.compare(node)?;
                }
                self.start_storing(node);
                self.wake_at(node, life, now_us + 1);
                let others: Vec<NodeId> = self.nodes.keys().copied().collect();
                for other in others.into_iter().filter(|&id| id != node) {
                    self.reconnect(node, other);
                    self.reconnect(other, node);
                }
            }
            Start::Refused => {
                self.note(node, "refused", [0; 4]);
                self.count("refused a damaged disk");
            }
            Start::Failed => {
                let dark = n.disk.is_dark();
                let what = ["disk error in recovery", "power lost within recovery"];
                self.count(what[usize::from(dark)]);
                self.stop(node, dark);
                let delay_us = self.dice.log_between(10_000, 1_000_000);
                self.schedule(delay_us, node, ANY_LIFE, Event::Start);
            }
        }
        Ok(())
    }

    /// Ends a process. The others hear of it, unless the whole machine went.
    pub(super) fn stop(&mut self, node: NodeId, power_lost: bool) {
        let Some(n) = self.nodes.get_mut(&node) else { return };
        n.stop(power_lost);
        self.note(node, "stopped", [u64::from(power_lost), 0, 0, 0]);
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|&id| id != node).collect();
        for other in others {
            for (from, to) in [(node, other), (other, node)] {
                self.network.line(from, to).connection += 1;
            }
            if !power_lost && !self.network.line(node, other).cut {
                let delay_us = self.dice.log_between(50, 5_000);
                let life = self.nodes[&other].life;
                self.schedule(delay_us, other, life, Event::Input(Input::PeerLost { node }));
            }
        }
    }
}

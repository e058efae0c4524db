//! The sending half of connections between nodes: what `server/`'s threads do with sockets, on simulated flows.
//!
//! Each dialed connection that is in use has a [`Sender`]. What waits for it goes there when it takes more, and one
//! packet after the other is written when the flow has room. Now and then a connection breaks while a forwarded write is
//! written, when a part of it has gone or all of it. Which forwards have left is written down here once more, and what the sender gives
//! back is checked against that.

use super::checks::{Violation, violated};
use super::links::LinkEvent;
use super::network::{End, Packet};
use super::world::{ANY_LIFE, Event, World};
use crate::node::{
    Admin, ConfigurationHistory, ConnectionId, Fetched, Input, Outgoing, PeerEvent, Queue, Sign,
    WRITE_BYTES,
};
use crate::raft::{Message, NodeId};
use crate::wal::ReadError;
use crate::wire::peer::PeerFrame;
use std::collections::{BTreeSet, VecDeque};

/// What a sender has queued, and the bytes of each.
#[derive(Debug, Default)]
pub(super) struct Packets(VecDeque<(Packet, usize)>);

impl Packets {
    fn push(&mut self, packet: Packet) -> usize {
        let bytes = packet.bytes();
        self.0.push_back((packet, bytes));
        bytes
    }
}

impl Queue for Packets {
    fn put(&mut self, outgoing: Outgoing) -> usize {
        self.push(Packet::Outgoing(outgoing))
    }

    fn put_ping(&mut self) -> usize {
        self.push(Packet::Ping)
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Bytes that a sender takes before all is written: as in production, or one frame or a few.
pub(super) const BATCHES: [usize; 3] = [1, 2_000, WRITE_BYTES];
/// One of so many forwards is written in part, or whole, before its connection breaks.
const BREAKS: u64 = 150;

impl World {
    pub(super) fn arrived_dialed(
        &mut self,
        node: NodeId,
        flow: u64,
        packet: Packet,
    ) -> Result<(), Violation> {
        let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
        if up.is_some_and(|up| up.transfer.flow == Some(flow)) {
            return self.arrived_for_receiver(node, packet);
        }
        let Some(connection) = self.network.flow(flow).map(|f| f.connection) else { return Ok(()) };
        let local_us = self.nodes.get(&node).map_or(0, |n| n.local_us(self.now_us));
        let Some(dialed) = self.dialed(node, connection) else { return Ok(()) };
        match (packet, &mut dialed.sender) {
            (Packet::Handshake(frame), _) => {
                self.handshake_goes_on(node, connection, flow, &frame)?;
            }
            (Packet::Pong { leader, address }, Some(sender)) => {
                sender.heard(local_us);
                let pong = PeerFrame::Pong { leader, address };
                match sender.heard_frame(pong, local_us) {
                    Ok(sign) => self.act_on_sign(node, connection, sign)?,
                    Err(why) => return violated("nodes keep to the protocol", why),
                }
            }
            (Packet::Fin, _) => self.dial_ended(node, connection, "closed")?,
            _ => {}
        }
        Ok(())
    }

    fn act_on_sign(
        &mut self,
        node: NodeId,
        connection: ConnectionId,
        sign: Option<Sign>,
    ) -> Result<(), Violation> {
        match sign {
            None => {}
            Some(Sign::Silent) => {
                self.count("connections in doubt");
                self.report(node, PeerEvent::Silent { connection });
            }
            Some(Sign::Dead(_)) => {
                self.count("dialed connections silent for too long");
                return self.dial_ended(node, connection, "no sign of life");
            }
            Some(Sign::Leader(leader, address)) => {
                let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
                let news = |h: &ConfigurationHistory| h.is_news(leader, &address);
                if up.is_some_and(|up| news(up.node.peers().history())) {
                    self.count("leaders heard of");
                }
                self.report(node, PeerEvent::LeaderNamed { leader, address });
            }
        }
        Ok(())
    }

    /// A dialed connection has ended, or was not made. What never left is given back, and nothing else is.
    pub(super) fn dial_ended(
        &mut self,
        node: NodeId,
        connection: ConnectionId,
        why: &str,
    ) -> Result<(), Violation> {
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return Ok(()) };
        let Some(dialed) = up.dialed.remove(&connection) else { return Ok(()) };
        if let Some(flow) = dialed.flow {
            self.close(flow, End::Dialer);
        }
        let mut given_back = BTreeSet::new();
        if let Some(sender) = dialed.sender {
            given_back.extend(sender.into_unsent());
        }
        given_back.extend(dialed.inbox.iter().filter_map(Outgoing::forward_id));
        if given_back != dialed.unsent {
            let detail = format!("node {node}: {given_back:?}, have not left: {:?}", dialed.unsent);
            return violated("what never left is given back, and nothing else", detail);
        }
        for id in given_back {
            self.count("forwards given back");
            self.input(node, Input::ForwardUnsent { id });
        }
        self.trace.detail(self.now_us, node, || format!("{connection} closed: {why}"));
        self.report(node, PeerEvent::Closed { connection, why: why.to_string() });
        Ok(())
    }

    pub(super) fn beat(&mut self, node: NodeId, connection: ConnectionId) -> Result<(), Violation> {
        let local_us = self.nodes.get(&node).map_or(0, |n| n.local_us(self.now_us));
        let now_us = self.now_us;
        let Some(dialed) = self.dialed(node, connection) else { return Ok(()) };
        if now_us < dialed.beats_at_us {
            return Ok(());
        }
        let Some(sender) = &mut dialed.sender else { return Ok(()) };
        let (sign, next_us) = (sender.poll(local_us), sender.next_us());
        self.act_on_sign(node, connection, sign)?;
        self.pump_in(node, connection, 1);
        let next_us = self.nodes.get(&node).map_or(0, |n| n.global_us(next_us));
        let delay_us = next_us.saturating_sub(self.now_us).max(1);
        self.beat_in(node, connection, delay_us);
        Ok(())
    }

    pub(super) fn beat_in(&mut self, node: NodeId, connection: ConnectionId, delay_us: u64) {
        let at_us = self.now_us + delay_us;
        if let Some(dialed) = self.dialed(node, connection) {
            dialed.beats_at_us = at_us;
            self.link(delay_us, node, LinkEvent::Beat { connection });
        }
    }

    pub(super) fn pump_in(&mut self, node: NodeId, connection: ConnectionId, delay_us: u64) {
        let Some(dialed) = self.dialed(node, connection) else { return };
        let sender = dialed.sender.as_ref();
        let due = sender.is_some_and(|sender| !sender.is_empty() || !dialed.inbox.is_empty());
        if due && !std::mem::replace(&mut dialed.pumped, true) {
            self.link(delay_us, node, LinkEvent::Pump { connection });
        }
    }

    /// The sender's thread writes one packet, if there is room.
    pub(super) fn pump(&mut self, node: NodeId, connection: ConnectionId) -> Result<(), Violation> {
        let Some(dialed) = self.dialed(node, connection) else { return Ok(()) };
        dialed.pumped = false;
        let Some(flow) = dialed.flow else { return Ok(()) };
        if !self.network.has_room(flow, End::Dialer) {
            return Ok(());
        }
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return Ok(()) };
        let Some(dialed) = up.dialed.get_mut(&connection) else { return Ok(()) };
        let Some(sender) = &mut dialed.sender else { return Ok(()) };
        let mut fetched = Vec::new();
        while sender.takes_more()
            && let Some(outgoing) = dialed.inbox.pop_front()
        {
            fetched.extend(sender.put(outgoing, &up.log));
        }
        let next = sender.queue().0.pop_front();
        let mut broken = None;
        if let Some((packet, bytes)) = &next {
            if let Packet::Outgoing(outgoing) = packet
                && let Some(id) = outgoing.forward_id()
            {
                dialed.unsent.remove(&id);
                let breaks = !self.quiet && self.dice.chance(1, BREAKS);
                broken = breaks.then(|| self.dice.between(1, *bytes as u64) as usize);
            }
            sender.took(broken.unwrap_or(*bytes));
        }
        for Fetched { told, queued } in fetched {
            self.input(node, Input::EntriesRead(told));
            match queued {
                Ok(true) => self.count("messages read from the log file"),
                Ok(false) => {}
                Err(ReadError::Io { .. }) => self.count("disk error in reading for a peer"),
                Err(_) => self.count("log changed in reading for a peer"),
            }
        }
        let Some((packet, bytes)) = next else { return Ok(()) };
        if broken.is_some_and(|written| written < bytes) {
            self.count("forwards written in part");
            return self.dial_ended(node, connection, "broken in a write");
        }
        match packet {
            Packet::Outgoing(Outgoing::Message(message)) if self.network.harsh => {
                self.stray(node, &message);
            }
            packet => self.put(flow, End::Dialer, packet),
        }
        if broken.is_some() {
            return self.dial_ended(node, connection, "broken behind a write");
        }
        self.pump_in(node, connection, 2);
        Ok(())
    }

    /// A message that keeps to no flow.
    fn stray(&mut self, from: NodeId, message: &Message) {
        let life = self.nodes.get(&from).map_or(0, |n| n.life);
        let to = message.to;
        for delay_us in self.network.copies(from, to) {
            let message = Box::new(message.clone());
            let stray = LinkEvent::Stray { from, life, message };
            self.schedule(delay_us, to, ANY_LIFE, Event::Link(stray));
        }
    }

    /// The raft loop, or the applier, has something for a dialed connection.
    pub(super) fn send_on(&mut self, node: NodeId, connection: ConnectionId, outgoing: Outgoing) {
        let hop_us = self.hop_us();
        match &outgoing {
            Outgoing::Forward(_) => self.count("writes forwarded"),
            Outgoing::Admin(forward) => self.count(match forward.what {
                Admin::Transfer(_) => "transfers passed on",
                Admin::Change(_) => "changes passed on",
            }),
            Outgoing::AdminAnswer { .. } => self.count("answers to what was passed on"),
            _ => {}
        }
        let Some(dialed) = self.dialed(node, connection) else { return };
        dialed.unsent.extend(outgoing.forward_id());
        dialed.inbox.push_back(outgoing);
        self.pump_in(node, connection, hop_us);
    }
}

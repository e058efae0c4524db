//! Connections between nodes: what `server/` does with sockets, on simulated flows.
//!
//! Everything that is decided is decided by [`crate::node::Peers`], [`Sender`] and [`Pongs`]. Here frames are
//! carried: what is sent on a dialed connection is the matter of [`super::senders`], and an accepted one is read as it
//! arrives.

use super::checks::Violation;
use super::impostor::{IMPOSTOR, IMPOSTOR_PLACE};
use super::network::{Arrival, End, Network, Packet};
use super::places::Visitor;
use super::senders::{BATCHES, Packets};
use super::world::{ANY_LIFE, Event, World};
use crate::node::{
    ConnectionId, Input, Outgoing, PeerEffect, PeerEvent, Pongs, SILENCE_MAX_US, Sender,
};
use crate::raft::{Message, NodeId};
use crate::wire::proof::{Dialer, Greeting, Listener};
use std::collections::{BTreeSet, VecDeque};

/// A dialed connection.
#[derive(Debug)]
pub(super) struct Dialed {
    /// None until the other side's machine has answered.
    pub(super) flow: Option<u64>,
    greeting: Option<Box<Greeting>>,
    /// While the handshake is under way.
    pub(super) dialer: Option<Dialer>,
    /// It is in use.
    pub(super) sender: Option<Sender<Packets>>,
    /// What the sender has not taken.
    pub(super) inbox: VecDeque<Outgoing>,
    /// Forwards that have not left.
    pub(super) unsent: BTreeSet<u64>,
    /// A look at the queue is scheduled.
    pub(super) pumped: bool,
    /// When its keepalive is looked at next.
    pub(super) beats_at_us: u64,
}

impl Dialed {
    /// Whose machine has answered.
    pub(super) fn acceptor(&self, network: &Network) -> Option<NodeId> {
        Some(network.flow(self.flow?)?.acceptor.0)
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) from: NodeId,
    /// Between Hello and proof.
    pub(super) listener: Option<Listener>,
    /// It was let in.
    pub(super) welcome: bool,
    pub(super) heard_us: u64,
    /// It is given up after a silence of so long.
    pub(super) patience_us: u64,
    /// For the frames of a peer, once it is let in.
    pub(super) pongs: Option<Pongs>,
}

/// Something happens to a connection.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The first packet of a dialer reaches the machine at an address.
    Knock { dialer: NodeId, life: u64, connection: ConnectionId },
    /// The dialer hears that nobody is there.
    Refused { connection: ConnectionId },
    /// The whole handshake takes no longer.
    Timeout { connection: ConnectionId },
    /// Something may have arrived at that end of a flow.
    Arrive { flow: u64, end: End },
    /// A dialed connection goes on writing.
    Pump { connection: ConnectionId },
    /// A dialed connection's keepalive is due.
    Beat { connection: ConnectionId },
    /// An accepted connection may have been silent for too long.
    Silence { flow: u64 },
    /// An end of a flow that is gone finds out.
    Lost { end: End, connection: ConnectionId, flow: u64 },
    /// A message that keeps to no flow.
    Stray { from: NodeId, life: u64, message: Box<Message> },
}

/// The whole handshake takes no longer, connecting included, in microseconds.
const HANDSHAKE_US: u64 = 3_000_000;

impl World {
    // ---- what others may know ----

    /// The other members of the configuration that a node has in force.
    pub(super) fn peers_of(&self, node: NodeId) -> Vec<NodeId> {
        let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else { return Vec::new() };
        let configuration = up.node.replica().raft().configuration();
        configuration.members.iter().map(|m| m.id).filter(|&id| id != node).collect()
    }

    pub(super) fn dialed(&mut self, node: NodeId, connection: ConnectionId) -> Option<&mut Dialed> {
        self.nodes.get_mut(&node)?.up.as_mut()?.dialed.get_mut(&connection)
    }

    pub(super) fn accepted(&mut self, node: NodeId, flow: u64) -> Option<&mut Accepted> {
        self.nodes.get_mut(&node)?.up.as_mut()?.accepted.get_mut(&flow)
    }

    pub(super) fn link(&mut self, delay_us: u64, node: NodeId, event: LinkEvent) {
        let life = self.nodes.get(&node).map_or(0, |n| n.life);
        self.schedule(delay_us, node, life, Event::Link(event));
    }

    /// Tells a node's raft loop.
    pub(super) fn report(&mut self, node: NodeId, event: PeerEvent) {
        self.input(node, Input::Link(event));
    }

    // ---- effects ----

    /// Does what a node's connections want done.
    pub(super) fn act_on_links(
        &mut self,
        node: NodeId,
        effects: Vec<PeerEffect>,
    ) -> Result<(), Violation> {
        for effect in effects {
            match effect {
                PeerEffect::Dial { connection, address, greeting, .. } => {
                    self.dial(node, connection, &address, greeting);
                }
                PeerEffect::Open { connection, .. } => {
                    let local_us = self.nodes.get(&node).map_or(0, |n| n.local_us(self.now_us));
                    let batch = *self.dice.pick(&BATCHES);
                    let Some(dialed) = self.dialed(node, connection) else { continue };
                    dialed.sender = Some(Sender::in_batches_of(batch, local_us));
                    let flow = dialed.flow;
                    self.check_opened(node, flow)?;
                    self.beat_in(node, connection, 1);
                    self.pump_in(node, connection, 1);
                }
                PeerEffect::Close { connection } => {
                    let up = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut());
                    let dialed = up.and_then(|up| up.dialed.remove(&connection));
                    if let Some(flow) = dialed.and_then(|d| d.flow) {
                        self.count("connections abandoned");
                        self.close(flow, End::Dialer);
                    }
                }
                PeerEffect::Hasten { connection } => {
                    let local_us = self.nodes.get(&node).map_or(0, |n| n.local_us(self.now_us));
                    if let Some(dialed) = self.dialed(node, connection)
                        && let Some(sender) = &mut dialed.sender
                    {
                        sender.hasten(local_us);
                        self.count("signs of life asked for at once");
                        self.beat_in(node, connection, 1);
                    }
                }
                PeerEffect::Welcome { connection: flow, frame } => {
                    let Some(accepted) = self.accepted(node, flow) else { continue };
                    accepted.welcome = true;
                    let from = accepted.from;
                    let life = self.network.flow(flow).map(|f| f.dialer.1);
                    self.let_in(node, from, life)?;
                    self.put(flow, End::Acceptor, Packet::Handshake(frame));
                }
                PeerEffect::Reject { connection: flow, reject, frame } => {
                    self.check_reject(node, flow, reject.code)?;
                    self.put(flow, End::Acceptor, Packet::Handshake(frame));
                    self.end_accepted(node, flow, false);
                }
                PeerEffect::Keep { secret } => {
                    if !self.keep_secret(node, secret)? {
                        return Ok(());
                    }
                }
                PeerEffect::Part { connection: flow } => {
                    if self.accepted(node, flow).is_some() {
                        self.count("strangers parted with");
                        self.end_accepted(node, flow, true);
                    }
                }
                PeerEffect::Probe { .. } => {}
                PeerEffect::Say { text, .. } => self.trace.detail(self.now_us, node, || text),
                PeerEffect::Stop { verdict, .. } => self.stopped_by(node, verdict)?,
            }
        }
        Ok(())
    }

    /// The machine at an address: one whose process has ended for good may still have it beside the one
    /// that has taken its place.
    pub(super) fn machine_at(&self, address: &str) -> Option<NodeId> {
        let there = || self.nodes.values().filter(|n| n.address == address && !n.gone);
        there().find(|n| n.up.is_some()).or(there().next()).map(|n| n.id)
    }

    fn dial(
        &mut self,
        node: NodeId,
        connection: ConnectionId,
        address: &str,
        greeting: Box<Greeting>,
    ) {
        let what = || format!("dials {address} {connection} {greeting:?}");
        self.trace.detail(self.now_us, node, what);
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let life = n.life;
        let Some(up) = &mut n.up else { return };
        let dialed = Dialed {
            flow: None,
            greeting: Some(greeting),
            dialer: None,
            sender: None,
            inbox: VecDeque::new(),
            unsent: BTreeSet::new(),
            pumped: false,
            beats_at_us: 0,
        };
        up.dialed.insert(connection, dialed);
        self.link(HANDSHAKE_US, node, LinkEvent::Timeout { connection });
        // Who is there now; a machine that is taken off by then answers nothing.
        let Some(target) = self.machine_at(address) else {
            self.count("dialed where nobody is any more");
            let delay_us = self.dice.log_between(100, 1_000_000);
            return self.link(delay_us, node, LinkEvent::Refused { connection });
        };
        if self.network.is_cut(node, target) {
            return;
        }
        let delay_us = self.network.delay_us(node, target);
        let knock = LinkEvent::Knock { dialer: node, life, connection };
        self.schedule(delay_us, target, ANY_LIFE, Event::Link(knock));
    }

    // ---- events ----

    pub(super) fn on_link(&mut self, node: NodeId, event: LinkEvent) -> Result<(), Violation> {
        match event {
            LinkEvent::Knock { dialer, life, connection } => {
                return self.knocked(node, (dialer, life), connection);
            }
            LinkEvent::Refused { connection } => {
                return self.dial_ended(node, connection, "refused");
            }
            LinkEvent::Timeout { connection } => {
                if self.dialed(node, connection).is_some_and(|d| d.sender.is_none()) {
                    self.count("handshakes given up");
                    return self.dial_ended(node, connection, "no answer");
                }
            }
            LinkEvent::Arrive { flow, end } => return self.arrive(node, flow, end),
            LinkEvent::Pump { connection } => return self.pump(node, connection),
            LinkEvent::Beat { connection } => return self.beat(node, connection),
            LinkEvent::Silence { flow } => self.silence(node, flow),
            LinkEvent::Lost { end: End::Dialer, connection, flow } => {
                let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
                if up.is_some_and(|up| up.transfer.flow == Some(flow)) {
                    return self.transfer_lost(node, "reset");
                }
                return self.dial_ended(node, connection, "reset");
            }
            LinkEvent::Lost { end: End::Acceptor, flow, .. } => self.end_accepted(node, flow, true),
            LinkEvent::Stray { from, life, message } => {
                let forgotten = self.nodes.get(&from).is_none_or(|n| life < n.speaks_since);
                if !forgotten {
                    let message = *message;
                    self.input(node, Input::Peer(message));
                }
            }
        }
        Ok(())
    }

    /// A dialer's first packet: the machine accepts, if the process listens.
    fn knocked(
        &mut self,
        node: NodeId,
        dialer: (NodeId, u64),
        connection: ConnectionId,
    ) -> Result<(), Violation> {
        let alive = |n: &super::node::SimNode| n.life == dialer.1 && n.up.is_some();
        if !self.nodes.get(&dialer.0).is_some_and(alive) {
            return Ok(());
        }
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        let (life, up) = (n.life, n.up.is_some());
        if self.network.is_cut(node, dialer.0) {
            return Ok(());
        }
        let delay_us = self.network.delay_us(node, dialer.0);
        if !up && !self.impostor_binds(dialer.0, node) {
            self.link(delay_us, dialer.0, LinkEvent::Refused { connection });
            return Ok(());
        }
        let acceptor = if up { (node, life) } else { IMPOSTOR_PLACE };
        let nonce = self.dice.bytes();
        let Some(dialed) = self.dialed(dialer.0, connection) else { return Ok(()) };
        let greeting = dialed.greeting.take();
        let flow = self.network.open(dialer, acceptor, connection);
        let mut hello = None;
        if let Some(dialed) = self.dialed(dialer.0, connection) {
            dialed.flow = Some(flow);
            if let Some(greeting) = greeting {
                let (dialer, frame) = Dialer::new(*greeting, nonce);
                (dialed.dialer, hello) = (Some(dialer), Some(frame));
            }
        }
        if up {
            self.accept(node, flow, dialer.0, SILENCE_MAX_US)?;
        }
        if let Some(hello) = hello {
            self.put(flow, End::Dialer, Packet::Handshake(hello));
        }
        Ok(())
    }

    /// Writes at an end of a flow.
    pub(super) fn put(&mut self, flow: u64, from: End, packet: Packet) {
        let due = self.network.write(self.now_us, flow, from, packet);
        self.await_arrival(flow, from.other(), due);
    }

    fn await_arrival(&mut self, flow: u64, end: End, due: Option<u64>) {
        let Some(delay_us) = due else { return };
        let Some(node) = self.network.flow(flow).map(|f| f.place(end).0) else { return };
        self.schedule(delay_us, node, ANY_LIFE, Event::Link(LinkEvent::Arrive { flow, end }));
    }

    /// One end closes.
    pub(super) fn close(&mut self, flow: u64, end: End) {
        let due = self.network.close(self.now_us, flow, end);
        self.await_arrival(flow, end.other(), due);
    }

    fn arrive(&mut self, node: NodeId, flow: u64, end: End) -> Result<(), Violation> {
        if node == IMPOSTOR {
            return self.arrived_at_impostor(flow, end);
        }
        let Some(place) = self.network.flow(flow).map(|f| f.place(end)) else { return Ok(()) };
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        let again = Event::Link(LinkEvent::Arrive { flow, end });
        if n.up.is_some() && n.life == place.1 && n.paused_until_us > self.now_us {
            let delay_us = n.paused_until_us - self.now_us + 1;
            self.schedule(delay_us, node, ANY_LIFE, again);
            return Ok(());
        }
        if n.up.is_some() && n.life != place.1 {
            // The machine is back, and knows nothing of it.
            self.reset(flow, Some(end.other()));
            return Ok(());
        }
        let (packet, next_us) = match self.network.arrive(self.now_us, flow, end) {
            Arrival::Nothing => return Ok(()),
            Arrival::Later(delay_us) => {
                self.schedule(delay_us, node, ANY_LIFE, again);
                return Ok(());
            }
            Arrival::Packet(packet, next_us) => (packet, next_us),
        };
        if let Some(delay_us) = next_us {
            self.schedule(delay_us, node, ANY_LIFE, again);
        }
        // Whoever writes there has room again.
        if end == End::Acceptor
            && let Some(f) = self.network.flow(flow)
        {
            let (dialer, connection) = (f.dialer.0, f.connection);
            self.pump_in(dialer, connection, 1);
        }
        match end {
            End::Acceptor => self.arrived_accepted(node, flow, packet),
            End::Dialer => self.arrived_dialed(node, flow, packet),
        }
    }

    // ---- the accepting side ----

    fn arrived_accepted(
        &mut self,
        node: NodeId,
        flow: u64,
        packet: Packet,
    ) -> Result<(), Violation> {
        let now_us = self.now_us;
        let Some((dialer, dialer_life)) = self.network.flow(flow).map(|f| f.dialer) else {
            return Ok(());
        };
        let Some(accepted) = self.accepted(node, flow) else { return Ok(()) };
        accepted.heard_us = now_us;
        let welcome = accepted.welcome;
        self.heard_of(node, Visitor::Node(flow));
        let local_us = self.nodes.get(&node).map_or(0, |n| n.local_us(now_us));
        let Some(accepted) = self.accepted(node, flow) else { return Ok(()) };
        if let Some(pongs) = accepted.pongs.as_mut().filter(|_| welcome) {
            let asked = matches!(packet, Packet::Ping);
            if asked {
                pongs.pinged(local_us);
            }
            if asked || pongs.is_due(local_us) {
                self.pong(node, flow);
            }
        }
        // What a disk that is lost has promised is under way no longer: whoever takes its place could
        // not keep it.
        let forgotten = dialer != IMPOSTOR
            && self.nodes.get(&dialer).is_none_or(|n| dialer_life < n.speaks_since);
        let input = match packet {
            _ if forgotten => return Ok(()),
            Packet::Handshake(frame) => return self.shakes_hands(node, flow, &frame),
            _ if !welcome => return Ok(()),
            // Most messages are spared the way through the codecs, for the sake of speed.
            Packet::Outgoing(Outgoing::Message(message)) if !self.dice.chance(1, 16) => {
                Input::Peer(message)
            }
            Packet::Outgoing(outgoing) => {
                if let Outgoing::Digest { .. } = &outgoing {
                    self.count("digests compared");
                }
                self.framed(outgoing, (dialer, node))?
            }
            Packet::Ping => return Ok(()),
            Packet::Fin => {
                self.end_accepted(node, flow, true);
                return Ok(());
            }
            Packet::SnapshotRequest(request) => return self.asked(node, flow, request),
            Packet::SnapshotResponse(_) | Packet::Pong { .. } => return Ok(()),
        };
        self.input(node, input);
        Ok(())
    }

    fn pong(&mut self, node: NodeId, flow: u64) {
        let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else { return };
        let raft = up.node.replica().raft();
        let leader = raft.leader().and_then(|id| raft.configuration().member(id));
        let (leader, address) = leader.map_or_else(Default::default, |m| (m.id, m.address.clone()));
        self.put(flow, End::Acceptor, Packet::Pong { leader, address });
    }

    fn silence(&mut self, node: NodeId, flow: u64) {
        let now_us = self.now_us;
        let Some(accepted) = self.accepted(node, flow) else { return };
        let until_us = accepted.heard_us + accepted.patience_us;
        if now_us < until_us {
            return self.link(until_us - now_us, node, LinkEvent::Silence { flow });
        }
        self.count("accepted connections silent for too long");
        self.end_accepted(node, flow, true);
    }

    // ---- ends ----

    /// A flow is gone; whoever is at these ends finds out: one, or both.
    pub(super) fn reset(&mut self, flow: u64, only: Option<End>) {
        let Some(gone) = self.network.reset(flow) else { return };
        for end in [End::Dialer, End::Acceptor] {
            if only.is_some_and(|only| only != end) {
                continue;
            }
            let (node, life) = gone.place(end);
            let delay_us = self.dice.log_between(50, 20_000);
            let lost = LinkEvent::Lost { end, connection: gone.connection, flow };
            self.schedule(delay_us, node, life, Event::Link(lost));
        }
    }

    /// Connections between two nodes break, in one direction of dialing.
    pub(super) fn break_connections(&mut self, from: NodeId, to: NodeId) {
        for (flow, end) in self.network.flows_of(from) {
            let other = self.network.flow(flow).map(|f| f.acceptor.0);
            if end == End::Dialer && other == Some(to) {
                self.reset(flow, None);
            }
        }
    }

    /// A process is gone, or the whole machine.
    pub(super) fn end_flows(&mut self, node: NodeId, power_lost: bool) {
        for (flow, end) in self.network.flows_of(node) {
            if power_lost {
                self.network.lose_power(flow, end);
            } else {
                self.close(flow, end);
            }
        }
    }

    // ---- people ----

    /// Members of which nobody runs any more that they know, and whom nobody finds because they have
    /// moved, are told by a person (`--join`) where the others are.
    pub(super) fn help_the_lost(&mut self) {
        let Some(configuration) = self.cluster.configuration().cloned() else { return };
        let runs = |n: &&super::node::SimNode| self.counts(n);
        let running: Vec<NodeId> = self.nodes.values().filter(runs).map(|n| n.id).collect();
        for &node in &running {
            let knows = self.peers_of(node);
            let moved = configuration.member(node).map(|m| &m.address)
                != self.nodes.get(&node).map(|n| &n.address);
            if !moved || running.iter().any(|id| knows.contains(id)) {
                continue;
            }
            for other in running.iter().filter(|&&id| id != node) {
                let address = self.nodes[other].address.clone();
                self.count("members helped by a person");
                self.report(node, PeerEvent::Probed { address, node: Some(*other) });
            }
        }
    }
}

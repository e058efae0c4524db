//! The impostor: it runs no node, reaches every machine, and knows every id and identity, as a client does; in
//! some runs it knows the token, too. What it never has is the members' secret.
//!
//! - It dials nodes in the name of a member, with what is to make them take it for that, to take its secret
//!   for the leader's, or to believe that their own disk is an old copy.
//! - It plays a recorded handshake again.
//! - It binds the address of a machine that is down. To who dials that it gives an answer of its own (a welcome,
//!   a removal, another disk), or hands the handshake on to another member, so that the one proves to the
//!   other.
//!
//! Whom it is let in by, and who takes it for a member, has a broken node (`handshakes.rs`), and so has a healthy
//! disk that is stopped by it. The one thing that it spares is a node whose secret is not sealed, when it knows
//! the token: that is all such a node can ask for.

use super::checks::{Violation, violated};
use super::dice::Dice;
use super::handshakes::{body_of, goes_on};
use super::links::LinkEvent;
use super::network::{Arrival, End, Packet, Place};
use super::node::CLIENTS_TOKEN;
use super::world::{ANY_LIFE, Event, World};
use crate::node::SILENCE_MAX_US;
use crate::raft::NodeId;
use crate::wire::frame::{FRAME_HEADER_BYTES, put_frame};
use crate::wire::handshake::{
    Hello, Lane, Reject, RejectCode, Remembered, Role, Welcome, put_answer_fields, put_hello,
    take_hello,
};
use crate::wire::proof::{Dialer, Dialing, Greeting, Keys, Listener, Secret};
use std::collections::BTreeMap;

/// The id of its machine: that of no node.
pub(super) const IMPOSTOR: NodeId = 1_000_000;
/// Its end of a flow.
pub(super) const IMPOSTOR_PLACE: Place = (IMPOSTOR, 0);

/// Pause between two things that it does, in microseconds.
const PAUSE_US: (u64, u64) = (200_000, 6_000_000);
/// A term and an index that nobody comes to.
const FAR: u64 = 1 << 40;

/// See the module.
#[derive(Debug)]
pub(super) struct Impostor {
    knows_token: bool,
    /// What is said on the flows that it has an end of.
    flows: BTreeMap<u64, Pose>,
    /// A Hello that it has overheard, on a flow to that node.
    hello: Option<(u64, NodeId, Vec<u8>)>,
    /// Hello and Proof of a handshake with that node.
    recorded: Option<(NodeId, Vec<u8>, Vec<u8>)>,
}

impl Impostor {
    pub(super) fn new(dice: &mut Dice) -> Impostor {
        let knows_token = dice.chance(1, 2);
        Impostor { knows_token, flows: BTreeMap::new(), hello: None, recorded: None }
    }
}

#[derive(Debug)]
enum Pose {
    /// It has dialed, as a member.
    Dials(Box<Dialer>),
    /// It has dialed, and has said a recorded Hello: what it says next.
    Replays(Vec<u8>),
    /// It has dialed with the Hello of who has dialed it on that flow.
    HandsOn { to: u64 },
    /// It was dialed, and answers by itself.
    Answers(Listener),
    /// It was dialed, and has the handshake done on that flow.
    HasDone { on: u64 },
}

impl World {
    /// Whether the impostor has that end.
    pub(super) fn is_impostor_at(&self, flow: u64, end: End) -> bool {
        self.network.flow(flow).is_some_and(|f| f.place(end) == IMPOSTOR_PLACE)
    }

    fn is_sealed(&self, node: NodeId) -> bool {
        let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
        up.and_then(|up| up.node.peers().keys().secret).is_some_and(|secret| secret.sealed)
    }

    fn spares(&self, node: NodeId) -> bool {
        self.quiet || self.impostor.knows_token && !self.is_sealed(node)
    }

    /// A node has a connection in use.
    pub(super) fn check_opened(&self, node: NodeId, flow: Option<u64>) -> Result<(), Violation> {
        match flow.is_some_and(|flow| self.is_impostor_at(flow, End::Acceptor)) {
            true => violated("who is no member is not taken for one", format!("by node {node}")),
            false => Ok(()),
        }
    }

    /// Whether it has bound the address of a machine that is down, where a node dials.
    pub(super) fn impostor_binds(&mut self, dialer: NodeId, _down: NodeId) -> bool {
        !self.spares(dialer) && self.dice.chance(1, 3)
    }

    /// A node hears a Hello on a flow, or a proof behind it.
    pub(super) fn overhear(&mut self, node: NodeId, flow: u64, frame: &[u8]) {
        if self.is_impostor_at(flow, End::Dialer) {
            return;
        }
        match self.impostor.hello.take() {
            Some((of, to, hello)) if of == flow => {
                self.impostor.recorded = Some((to, hello, frame.to_vec()));
            }
            heard => {
                let is_hello =
                    frame.get(FRAME_HEADER_BYTES) == Some(&crate::wire::frame::kind::HELLO);
                let news = is_hello && self.dice.chance(1, 4);
                let hello = news.then(|| (flow, node, frame.to_vec()));
                self.impostor.hello = hello.or(heard);
            }
        }
    }

    pub(super) fn impostor_acts(&mut self) -> Result<(), Violation> {
        let pause_us = self.dice.log_between(PAUSE_US.0, PAUSE_US.1);
        self.schedule(pause_us, 0, ANY_LIFE, Event::Impostor);
        let running: Vec<NodeId> =
            self.nodes.values().filter(|n| n.up.is_some()).map(|n| n.id).collect();
        if running.is_empty() {
            return Ok(());
        }
        if self.dice.chance(1, 3)
            && let Some((node, hello, proof)) = self.impostor.recorded.clone()
            && running.contains(&node)
            && !self.quiet
        {
            self.count("handshakes played again");
            return self.poses(node, hello, Pose::Replays(proof)).map(drop);
        }
        let node = *self.dice.pick(&running);
        if self.spares(node) {
            return Ok(());
        }
        let Some(greeting) = self.greeting_of_a_member(node) else { return Ok(()) };
        self.count("impostors in the name of a member");
        let (dialer, hello) = Dialer::new(greeting, self.dice.bytes());
        self.poses(node, hello, Pose::Dials(Box::new(dialer))).map(drop)
    }

    fn greeting_of_a_member(&mut self, node: NodeId) -> Option<Greeting> {
        let others: Vec<NodeId> = self.peers_of(node);
        let from = if others.is_empty() { return None } else { *self.dice.pick(&others) };
        let (own_address, own_identity) =
            (self.nodes[&node].address.clone(), self.nodes[&node].identity);
        let raft = self.nodes[&node].up.as_ref()?.node.replica().raft();
        let (cluster, term) = (raft.configuration().cluster, raft.term());
        let other = self.nodes.get(&from)?;
        let (identity, address) = (other.identity, other.address.clone());
        let hello = Hello {
            role: if self.dice.chance(1, 4) { Role::Snapshot } else { Role::Peer },
            from,
            to: node,
            identity,
            to_identity: own_identity,
            address: if self.dice.chance(1, 4) { own_address } else { address },
            lane: if self.dice.chance(1, 4) { Lane::Bulk } else { Lane::Control },
            remembered: Remembered { identity: own_identity, term: FAR, index: FAR },
            ..Hello::of_client(cluster)
        };
        let token = if self.impostor.knows_token { CLIENTS_TOKEN } else { b"a guess" };
        let secret = Some(Secret { bytes: self.dice.bytes(), sealed: self.dice.chance(1, 2) });
        let keys = Keys { token: token.to_vec(), secret };
        Some(Greeting { hello, keys, offers_in: Some(term) })
    }

    /// Dials a node, with these first words.
    fn poses(&mut self, node: NodeId, hello: Vec<u8>, pose: Pose) -> Result<u64, Violation> {
        let life = self.nodes.get(&node).map_or(0, |n| n.life);
        let flow = self.network.open(IMPOSTOR_PLACE, (node, life), 0);
        self.impostor.flows.insert(flow, pose);
        self.accept(node, flow, IMPOSTOR, SILENCE_MAX_US)?;
        self.put(flow, End::Dialer, Packet::Handshake(hello));
        Ok(flow)
    }

    /// Something may have arrived at its end of a flow.
    pub(super) fn arrived_at_impostor(&mut self, flow: u64, end: End) -> Result<(), Violation> {
        let again = |world: &mut World, delay_us| {
            let event = Event::Link(LinkEvent::Arrive { flow, end });
            world.schedule(delay_us, IMPOSTOR, ANY_LIFE, event);
        };
        let packet = match self.network.arrive(self.now_us, flow, end) {
            Arrival::Nothing => return Ok(()),
            Arrival::Later(delay_us) => {
                again(self, delay_us);
                return Ok(());
            }
            Arrival::Packet(packet, next_us) => {
                if let Some(delay_us) = next_us {
                    again(self, delay_us);
                }
                packet
            }
        };
        let pose = self.impostor.flows.remove(&flow);
        let Packet::Handshake(frame) = packet else {
            self.close(flow, end);
            return Ok(());
        };
        match (end, pose) {
            (End::Acceptor, None) => self.is_dialed(flow, &frame)?,
            (End::Acceptor, Some(Pose::Answers(listener))) => {
                let answer = self.made_up_answer(listener, &body_of(&frame)?);
                self.put(flow, end, Packet::Handshake(answer));
            }
            (End::Acceptor, Some(Pose::HasDone { on })) => {
                self.put(on, End::Dialer, Packet::Handshake(frame));
            }
            (End::Dialer, Some(Pose::Dials(mut dialer))) => match goes_on(&mut dialer, &frame) {
                Ok(Dialing::Write(frame)) => {
                    self.impostor.flows.insert(flow, Pose::Dials(dialer));
                    self.put(flow, end, Packet::Handshake(frame));
                }
                Ok(Dialing::Over(answered)) => {
                    if answered.answer.is_err() && answered.proven.token {
                        self.count("impostors with the token refused");
                    }
                    self.close(flow, end);
                }
                Err(_) => self.close(flow, end),
            },
            (End::Dialer, Some(Pose::Replays(proof))) => {
                self.put(flow, end, Packet::Handshake(proof));
            }
            (End::Dialer, Some(Pose::HandsOn { to })) => {
                self.count("handshakes handed on");
                self.put(to, End::Acceptor, Packet::Handshake(frame));
            }
            _ => self.close(flow, end),
        }
        Ok(())
    }

    /// It has bound an address, and is dialed there.
    fn is_dialed(&mut self, flow: u64, frame: &[u8]) -> Result<(), Violation> {
        let body = body_of(frame)?;
        let Ok(hello) = take_hello(&body) else {
            return violated(
                "nodes keep to the protocol",
                "a hello that does not decode".to_string(),
            );
        };
        self.count("addresses bound by the impostor");
        // To the node that is meant it would be a router.
        let others = |id: NodeId| id != hello.from && id != hello.to;
        let running = self.nodes.values().filter(|n| n.up.is_some() && others(n.id));
        let running: Vec<NodeId> = running.map(|n| n.id).collect();
        if !running.is_empty() && self.dice.chance(1, 3) {
            let to = *self.dice.pick(&running);
            let to_identity = self.nodes[&to].identity;
            let mut handed_on = Vec::new();
            put_hello(&mut handed_on, &Hello { to, to_identity, ..hello });
            let on = self.poses(to, handed_on, Pose::HandsOn { to: flow })?;
            self.impostor.flows.insert(flow, Pose::HasDone { on });
            return Ok(());
        }
        if let Ok((listener, challenge)) = Listener::new(&body, &self.dice.bytes()) {
            self.impostor.flows.insert(flow, Pose::Answers(listener));
            self.put(flow, End::Acceptor, Packet::Handshake(challenge));
        }
        Ok(())
    }

    /// An answer that is to hurt who has dialed.
    fn made_up_answer(&mut self, listener: Listener, proof: &[u8]) -> Vec<u8> {
        let hello = listener.hello().clone();
        let reject = |code| Err(Reject { code, message: "so it is".to_string() });
        let answer = match self.dice.below(3) {
            0 => reject(RejectCode::Removed),
            1 => reject(RejectCode::WrongIdentity),
            _ => Ok(Welcome {
                version: hello.version_max,
                cluster: hello.cluster,
                node: hello.to,
                identity: hello.to_identity.max(1),
                leader: 0,
                leader_address: String::new(),
                remembered: Remembered { identity: hello.identity, term: FAR, index: FAR },
            }),
        };
        let secret = Secret { bytes: self.dice.bytes(), sealed: true };
        if self.impostor.knows_token
            && let Ok(presented) = listener.proof(proof, CLIENTS_TOKEN)
        {
            return presented.answer(&answer, Some(&secret));
        }
        // It has seen the dialer's codes, and gives them back.
        let mut fields = Vec::new();
        put_answer_fields(&mut fields, &answer);
        let (token_code, member_code) = (&proof[2..34], &proof[proof.len() - 64..proof.len() - 32]);
        let mut out = Vec::new();
        put_frame(&mut out, |out| {
            for piece in [&fields, token_code, &[1], member_code] {
                out.extend_from_slice(piece);
            }
        });
        out
    }
}

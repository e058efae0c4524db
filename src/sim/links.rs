//! Connections between nodes: who dials whom, who is let in, and what those are told who are not.
//!
//! A connection goes in one direction, as between servers, and belongs to one life at each end.
//! Nothing is sent without one; its first word is the handshake, so that a peer has heard what a
//! process promises before anything else of it. What the handshake decides is `server/native.rs` in
//! short; what a node is to another one is decided by `node/standing.rs` in both.
//!
//! Messages under way when a connection breaks arrive nevertheless, in a later life of the receiver,
//! too: the core must stand more than TCP does to it.

use super::checks::{Violation, violated};
use super::network::QUIET_DELAY_US;
use super::node::SimNode;
use super::world::{Event, World};
use crate::node::{Configurations, Input, Promise, Standing};
use crate::raft::{Configuration, Member, NodeId};

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reject {
    /// One of the two has another identity than the other one has recorded.
    Identity,
    /// The dialer's disk is an old copy.
    OldCopy,
    /// The dialer was removed for ever.
    Removed,
    /// One of the two does not run any more.
    Down,
}

/// Time between two pings, in microseconds.
const PING_EVERY_US: u64 = 1_000_000;
/// Pauses between attempts to connect, in microseconds.
const PAUSE_US: (u64, u64) = (20_000, 1_000_000);

impl World {
    /// Whether there is a connection from one to the other between their present lives.
    pub(super) fn is_connected(&mut self, from: NodeId, to: NodeId) -> bool {
        let (Some(one), Some(other)) = (self.nodes.get(&from), self.nodes.get(&to)) else {
            return false;
        };
        from == to || self.network.line(from, to).up == Some((one.life, other.life))
    }

    /// The other members of the configuration that a node has in force.
    pub(super) fn peers_of(&self, node: NodeId) -> Vec<NodeId> {
        let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else { return Vec::new() };
        let configuration = up.replica.raft().configuration();
        configuration.members.iter().map(|m| m.id).filter(|&id| id != node).collect()
    }

    /// A node dials another one then, and again until it is let in.
    pub(super) fn dial_in(&mut self, delay_us: u64, from: NodeId, to: NodeId) {
        let Some(n) = self.nodes.get(&from).filter(|n| n.up.is_some()) else { return };
        let life = n.life;
        let line = self.network.line(from, to);
        line.turn += 1;
        let turn = line.turn;
        self.schedule(delay_us, from, life, Event::Dial { to, turn });
    }

    pub(super) fn dial(&mut self, from: NodeId, to: NodeId, turn: u64) {
        if self.is_connected(from, to) || self.network.line(from, to).turn != turn {
            return;
        }
        let Some(n) = self.nodes.get(&from) else { return };
        let Some(up) = &n.up else { return };
        let raft = up.replica.raft();
        let greeted = up.greeted.contains(&to);
        let (life, promise) = (n.life, if greeted { Promise::of(raft) } else { up.began });
        let recorded = raft.configuration().member(to).map(|m| &m.address);
        let addresses: Vec<String> = recorded.into_iter().chain(up.met.get(&to)).cloned().collect();
        if addresses.is_empty() {
            return;
        }
        let aside = up.aside.contains_key(&to);
        let pause_us = self.dice.log_between(PAUSE_US.0, PAUSE_US.1);
        self.schedule(pause_us, from, life, Event::Dial { to, turn });
        let Some(other) = self.nodes.get(&to).filter(|n| n.up.is_some()) else { return };
        let their_life = other.life;
        if !addresses.contains(&other.address) {
            self.count("dialed where nobody is any more");
            return;
        }
        if aside || self.network.is_cut(from, to) {
            return;
        }
        let delay_us = self.dice.log_between(QUIET_DELAY_US.0, QUIET_DELAY_US.1);
        self.schedule(delay_us, to, their_life, Event::Dialed { from, life, promise });
    }

    /// A handshake arrives, with what the dialer said of itself.
    pub(super) fn dialed(
        &mut self,
        to: NodeId,
        (from, life): (NodeId, u64),
        promise: Promise,
    ) -> Result<(), Violation> {
        let Some(dialer) = self.nodes.get(&from) else { return Ok(()) };
        if dialer.life != life || dialer.up.is_none() || self.is_connected(from, to) {
            return Ok(());
        }
        let delay_us = self.dice.log_between(QUIET_DELAY_US.0, QUIET_DELAY_US.1);
        if let Err(why) = self.admits(to, from) {
            self.schedule(delay_us, from, life, Event::Rejected { by: to, why });
            return Ok(());
        }
        let (dialer, other) = (&self.nodes[&from], &self.nodes[&to]);
        if dialer.known_to.contains(&to) && !(other.wiped || other.old_copy) {
            let detail = format!("node {from} is let in by node {to}");
            return violated("a wiped disk is not let in where the one before is known", detail);
        }
        let (identity, address) = (dialer.identity, dialer.address.clone());
        let theirs = address.clone();
        self.note(to, "let in", [from, promise.term, promise.index, 0]);
        self.input(to, Input::PeerDialed { node: from, identity, address, promise });
        let Some(n) = self.nodes.get_mut(&to) else { return Ok(()) };
        let (own, own_life) = (n.identity, n.life);
        if let Some(up) = &mut n.up {
            up.met.insert(from, theirs);
            if up.replica.raft().configuration().member(from).is_none() {
                self.count("newer members let in");
            }
        }
        let line = self.network.line(from, to);
        line.up = Some((life, own_life));
        let pong = Event::Pong { by: to, turn: line.turn };
        self.schedule(PING_EVERY_US, from, life, pong);
        if let Some(up) = self.nodes.get_mut(&from).and_then(|n| n.up.as_mut()) {
            up.greeted.insert(to);
        }
        let connected = Input::PeerConnected { node: to, identity: own };
        self.schedule(delay_us, from, life, Event::Input(connected));
        if !self.is_connected(to, from) {
            let delay_us = self.dice.log_between(100, 20_000);
            self.dial_in(delay_us, to, from);
        }
        Ok(())
    }

    /// A peer answers a ping and says who leads, as long as the connection of those attempts is one:
    /// a leader that was not known, or not there, is dialed (`server/members.rs`).
    pub(super) fn pong(&mut self, node: NodeId, by: NodeId, turn: u64) {
        if !self.is_connected(node, by) || self.network.line(node, by).turn != turn {
            return;
        }
        let life = self.nodes[&node].life;
        self.schedule(PING_EVERY_US, node, life, Event::Pong { by, turn });
        let Some(theirs) = self.nodes[&by].up.as_ref() else { return };
        let theirs = theirs.replica.raft();
        let leader = theirs.leader().and_then(|id| theirs.configuration().member(id)).cloned();
        let Some(Member { id, address, .. }) = leader else { return };
        let cut = self.network.is_cut(node, by) || self.network.is_cut(by, node);
        if !cut && self.heard_of(node, id, address) {
            self.count("leaders heard of");
        }
    }

    /// A node hears where another one is, from a third one or from a person; gives whether that is
    /// news.
    fn heard_of(&mut self, node: NodeId, other: NodeId, address: String) -> bool {
        if other == node || self.is_connected(other, node) {
            return false;
        }
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return false };
        if !Configurations::of(up.replica.raft()).is_news(other, &address)
            || up.met.get(&other).is_some_and(|known| *known == address)
        {
            return false;
        }
        up.met.insert(other, address);
        self.dial_in(0, node, other);
        true
    }

    /// Members of which nobody runs any more that they know, and whom nobody finds because they have
    /// moved, are told by a person (`--join`) where the others are.
    pub(super) fn help_the_lost(&mut self) {
        let Some(configuration) = self.cluster.configuration().cloned() else { return };
        let runs = |n: &&SimNode| self.counts(n);
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
                if self.heard_of(node, *other, address) {
                    self.count("members helped by a person");
                }
            }
        }
    }

    fn admits(&self, at: NodeId, dialer: NodeId) -> Result<(), Reject> {
        let (n, other) = (&self.nodes[&at], &self.nodes[&dialer]);
        let (Some(up), Some(theirs)) = (&n.up, &other.up) else { return Err(Reject::Down) };
        let raft = up.replica.raft();
        // Whom it wants to reach, it says.
        let wanted = Configurations::of(theirs.replica.raft()).identity_of(at);
        if wanted != 0 && wanted != n.identity {
            return Err(Reject::Identity);
        }
        match Configurations::of(raft).standing(dialer, other.identity) {
            Standing::Foreign => Err(Reject::Identity),
            Standing::Member if up.aside.get(&dialer) == Some(&other.identity) => {
                Err(Reject::OldCopy)
            }
            Standing::Member | Standing::Newer => Ok(()),
            Standing::Removed => Err(Reject::Removed),
        }
    }

    /// A handshake was refused: what that means to the dialer (`server/peers.rs`).
    pub(super) fn rejected(
        &mut self,
        node: NodeId,
        by: NodeId,
        why: Reject,
    ) -> Result<(), Violation> {
        self.note(node, "rejected", [by, why as u64, 0, 0]);
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        let Some(up) = &n.up else { return Ok(()) };
        let configuration = up.replica.raft().configuration();
        let identity = |id| configuration.member(id).map_or(0, |m| m.identity);
        let detail = format!("node {node}, by node {by}");
        match why {
            Reject::Down => return Ok(()),
            Reject::Identity
                if identity(node) == n.identity || identity(node) == 0 && identity(by) != 0 =>
            {
                self.count("foreign directories turned away");
                return Ok(());
            }
            Reject::Identity if !n.wiped => {
                return violated("only a wiped node is stopped", detail);
            }
            Reject::Identity => self.count("wiped nodes stopped"),
            Reject::OldCopy if !n.old_copy => {
                return violated("only an old copy is stopped", detail);
            }
            Reject::OldCopy => self.count("old copies noticed"),
            Reject::Removed
                if self.cluster.configuration().is_none_or(|c| c.member(node).is_some()) =>
            {
                return violated("a removal is told once it is committed", detail);
            }
            Reject::Removed => self.count("removed nodes told"),
        }
        if let Some(n) = self.nodes.get_mut(&node) {
            n.over = true;
        }
        self.stop(node, false);
        Ok(())
    }

    /// Both ends of a connection notice, sooner or later, that it is gone.
    pub(super) fn break_connection(&mut self, from: NodeId, to: NodeId) {
        let line = self.network.line(from, to);
        line.connection += 1;
        line.up = None;
        for (at, other) in [(from, to), (to, from)] {
            let delay_us = self.dice.log_between(50, 20_000);
            let life = self.nodes.get(&at).map_or(0, |n| n.life);
            let lost = Event::Input(Input::PeerLost { node: other });
            self.schedule(delay_us, at, life, lost);
        }
        let delay_us = self.dice.log_between(20_000, 500_000);
        self.dial_in(delay_us, from, to);
    }

    /// A peer came back with an old copy of its disk: it is told when it dials again.
    pub(super) fn set_aside(&mut self, node: NodeId, peer: NodeId) {
        if let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) {
            let identity = up.replica.raft().configuration().member(peer).map_or(0, |m| m.identity);
            up.aside.insert(peer, identity);
            self.break_connection(node, peer);
            self.break_connection(peer, node);
        }
    }

    /// Whoever turns out to have another disk than the member of its id is let in no more.
    fn part_with_strangers(&mut self, node: NodeId) {
        let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else { return };
        let all = Configurations::of(up.replica.raft());
        let foreign = |n: &&SimNode| all.standing(n.id, n.identity) == Standing::Foreign;
        let foreign: Vec<NodeId> = self.nodes.values().filter(foreign).map(|n| n.id).collect();
        for other in foreign {
            if self.is_connected(other, node) {
                self.count("strangers parted with");
                self.break_connection(other, node);
            }
        }
    }

    /// A node has another configuration in force: it parts with strangers and dials new members.
    pub(super) fn reconfigured(&mut self, node: NodeId, configuration: &Configuration) {
        self.part_with_strangers(node);
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return };
        up.met.retain(|&id, _| configuration.member(id).is_some() || id > configuration.last_id);
        let met: Vec<NodeId> = up.met.keys().copied().collect();
        // A machine that is about to begin is dialed, too.
        let mut others: Vec<NodeId> = self.nodes.keys().copied().collect();
        others.extend(configuration.members.iter().map(|m| m.id));
        others.sort_unstable();
        others.dedup();
        for id in others.into_iter().filter(|&id| id != node) {
            let member = configuration.member(id).is_some();
            if member && !self.is_connected(node, id) {
                let delay_us = self.dice.log_between(100, 20_000);
                self.dial_in(delay_us, node, id);
            } else if !member && !met.contains(&id) {
                for (from, to) in [(node, id), (id, node)] {
                    if self.is_connected(from, to) {
                        self.break_connection(from, to);
                    }
                }
            }
        }
        if !self.is_old_copy(node) {
            self.switch_off_old_copies();
        }
    }
}

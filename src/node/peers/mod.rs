//! Connections between nodes: who is dialed where and when, who is let in, what an answer to a
//! handshake means, and which nodes this one must part with.
//!
//! A connection is an ordered stream in one direction: a node sends on those that it has dialed and
//! receives on those that it has accepted. It has one of two lanes ([`Lane`]), so that a heartbeat
//! never waits behind a large value. What was written arrives in order or the connection ends, so
//! loss is what an end says, not what a clock says.
//!
//! Everything that arrives may be late, from a connection that its dialer has long given up. So:
//! - a node judges only itself by a handshake ([`rollback`]);
//! - a late connection takes nobody's place. All accepted connections of a peer count until they end,
//!   and the peer is gone when the last one has ended;
//! - a verdict that cannot be taken back ([`Verdict`]) needs evidence that cannot be late: the answer to
//!   this node's own Hello, or what a peer remembers of this very data directory. One peer's word is
//!   not enough for a removal where another can be asked.
//!
//! Ids and identities are no secret: every client can read them. So both sides of a handshake prove that they
//! are members ([`crate::wire::proof`]). Who does not is not let in, changes nothing about the connections of
//! the member that it names, and is not believed: no verdict rests on what it says.
//!
//! | file | idea |
//! |---|---|
//! | `status` | what a peer is, by the configurations in the log |
//! | `admission` | who is let in, and what a rejection means |
//! | `rollback` | a disk that was put back to an earlier state |
//! | `keepalive` | signs of life on one connection |
//! | `sealing` | how the members' secret, with which they prove themselves, comes about |
//! | `links` | dial targets, pauses, and replacing a connection in doubt |
//!
//! Left out: sockets, name resolution and bytes, which are the owner's; and the messages themselves.

mod admission;
mod events;
mod keepalive;
mod links;
mod rollback;
mod sealing;
mod status;
#[cfg(test)]
mod tests;

pub(super) use events::Told;
pub use events::{ConnectionId, PeerEffect, PeerEvent, Verdict};
pub use keepalive::{
    Due, HASTENED_PATIENCE_US, Keepalive, PING_EVERY_US, PONG_PATIENCE_US, SILENCE_MAX_US,
};
pub use rollback::LogPosition;
pub use status::{ConfigurationHistory, PeerStatus};

use super::MEMBERS_MAX;
use crate::raft::{Configuration, Message, NodeId, Raft, Term};
use crate::wire::handshake::{Hello, Lane, Local, Reject, RejectCode, Remembered, Role, Welcome};
use crate::wire::proof::{Answered, Greeting, Keys, Presented, Proven, Secret};
use admission::{Connected, Dialed, Meaning};
use links::Links;
use rollback::{Memory, Witness};
use sealing::Sealing;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What [`Peers`] are made with.
#[derive(Clone, Debug)]
pub struct PeersOptions {
    /// Random identity of this node's data directory.
    pub identity: u64,
    /// `HOST:PORT` under which the others reach this node.
    pub address: String,
    /// The tokens that dialers must know ([`crate::wire::proof::tokens`]); empty when there is none.
    pub token: Vec<u8>,
    /// The members' secret that the data directory holds.
    pub secret: Secret,
    /// Addresses where nodes run, for a node whose members may all have moved (`--join`).
    pub seeds: Vec<String>,
}

impl PeersOptions {
    /// The same for a recording: without the token, and with the secret's [pseudonym](Secret::pseudonym).
    #[must_use]
    pub fn without_secrets(&self) -> PeersOptions {
        PeersOptions { token: Vec::new(), secret: self.secret.pseudonym(), ..self.clone() }
    }
}

/// Accepted connections of one peer and lane: more than a network that delivers late hands over at
/// once, and one that is dead ends within [`SILENCE_MAX_US`].
const ACCEPTED_MAX: usize = 8;
/// Nodes that are no members as far as this node knows, and are let in: as many as may join.
const NEWCOMERS_MAX: usize = MEMBERS_MAX;

/// An accepted connection.
#[derive(Debug)]
struct Accepted {
    node: NodeId,
    identity: u64,
    role: Role,
    lane: Lane,
    address: String,
}

/// See the module.
///
/// Invariants: `accepted` holds the connections that were let in and have not ended; `said` holds
/// members and connected newcomers only; nothing is emitted once `stopped`.
#[derive(Debug)]
pub struct Peers {
    options: PeersOptions,
    id: NodeId,
    cluster: u64,
    history: ConfigurationHistory,
    memory: Memory,
    witness: Witness,
    /// What is kept, or is about to be ([`PeerEffect::Keep`]).
    secret: Secret,
    sealing: Sealing,
    links: Links,
    accepted: BTreeMap<ConnectionId, Accepted>,
    /// Where nodes say that they are reached, or others say so.
    said: BTreeMap<NodeId, String>,
    /// Who says that this node was removed.
    removed_by: BTreeSet<NodeId>,
    stopped: bool,
    effects: Vec<PeerEffect>,
    told: Vec<Told>,
    now_us: u64,
}

impl Peers {
    /// Those of a node that has just started.
    pub fn new(raft: &Raft, options: PeersOptions, now_us: u64) -> Peers {
        let history = ConfigurationHistory::of(raft);
        let core = raft.options();
        let seeds = options.seeds.clone();
        Peers {
            id: raft.id(),
            cluster: history.in_force().cluster,
            witness: Witness::new(options.identity, LogPosition::of(raft)),
            links: Links::new(core.heartbeat_us, core.election_timeout_us, seeds, now_us),
            history,
            secret: options.secret,
            sealing: Sealing::default(),
            memory: Memory::default(),
            accepted: BTreeMap::new(),
            said: BTreeMap::new(),
            removed_by: BTreeSet::new(),
            stopped: false,
            effects: Vec::new(),
            told: Vec::new(),
            now_us,
            options,
        }
    }

    // ---- what others may know ----

    /// The configurations that this node goes by or may go by.
    pub fn history(&self) -> &ConfigurationHistory {
        &self.history
    }

    /// Whether this node has come to a verdict about itself.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Addresses to dial a node at, a member or a newcomer: where the configuration says, and where it
    /// or somebody else has said. Both may be out of date.
    pub fn addresses_of(&self, id: NodeId) -> Vec<String> {
        // Where this node is, it has taken the other one's place.
        let elsewhere = |address: &String| *address != self.options.address;
        let configured = self.history.in_force().member(id).map(|m| m.address.clone());
        let said = self.said.get(&id).filter(|said| Some(*said) != configured.as_ref()).cloned();
        configured.into_iter().chain(said).filter(elsewhere).collect()
    }

    /// Members and newcomers beside this node.
    pub fn others(&self) -> BTreeSet<NodeId> {
        let members = self.history.in_force().members.iter().map(|m| m.id);
        members.chain(self.said.keys().copied()).filter(|id| *id != self.id).collect()
    }

    /// What this node remembers of another one.
    pub fn remembers(&self, node: NodeId) -> Remembered {
        self.memory.of(node)
    }

    /// The dialed connection in use to that node.
    pub fn connection(&self, node: NodeId, lane: Lane) -> Option<ConnectionId> {
        self.links.open(node, lane)
    }

    /// What this node shows of itself.
    pub fn keys(&self) -> Keys {
        Keys { token: self.options.token.clone(), secret: Some(self.secret) }
    }

    /// How this node dials another one, and offers nothing.
    pub fn greeting(&self, role: Role, to: NodeId, lane: Lane) -> Greeting {
        let hello = Hello {
            role,
            from: self.id,
            to,
            identity: self.options.identity,
            to_identity: self.history.identity_of(to),
            address: self.options.address.clone(),
            lane,
            remembered: self.memory.of(to),
            ..Hello::of_client(self.cluster)
        };
        Greeting { hello, keys: self.keys(), offers_in: None }
    }

    // ---- events ----

    /// Something happened on a connection.
    pub fn handle(&mut self, event: PeerEvent, raft: &Raft, now_us: u64) {
        self.now_us = now_us;
        if self.stopped {
            return;
        }
        match event {
            PeerEvent::Accepted { connection, presented } => {
                self.on_accepted(connection, &presented, raft);
            }
            PeerEvent::AcceptedClosed { connection } => self.on_accepted_closed(connection),
            PeerEvent::Answered { connection, answered } => {
                let Answered { answer, proven, .. } = *answered;
                match answer {
                    Ok(welcome) => self.on_welcome(connection, &welcome, proven, raft),
                    Err(reject) => self.on_reject(connection, &reject, proven),
                }
            }
            PeerEvent::Closed { connection, why } => {
                let closed = self.links.closed(connection, &why, now_us, &mut self.effects);
                if let Some((node, Lane::Bulk)) = closed {
                    self.told.push(Told::FlowLost { node });
                }
            }
            PeerEvent::Silent { connection } => self.links.replace(connection, now_us),
            PeerEvent::LeaderNamed { leader, address } => self.heard_of(leader, &address),
            PeerEvent::Probed { address, node } => {
                self.links.probed(&address, node.is_some());
                if let Some(node) = node {
                    self.heard_of(node, &address);
                }
            }
        }
    }

    /// A message is about to be handled.
    pub(super) fn heard(&mut self, message: &Message, now_us: u64) {
        self.memory.heard(message);
        self.links.heard(message.from, now_us);
    }

    /// The core has gone on: follows its configurations and remembers what followers hold.
    pub(super) fn follow(&mut self, raft: &Raft) {
        self.memory.committed(raft);
        if self.history.is_of(raft) {
            return;
        }
        self.history = ConfigurationHistory::of(raft);
        let history = &self.history;
        let stays = |id: NodeId| !history.committed().was_removed(id);
        self.said.retain(|id, _| stays(*id));
        self.witness.retain(stays);
        let connected: BTreeSet<NodeId> = self.accepted.values().map(|a| a.node).collect();
        self.memory.retain(|id| stays(id) && (history.is_member(id) || connected.contains(&id)));
        for (&connection, accepted) in &self.accepted {
            let status = history.status(accepted.node, accepted.identity);
            if matches!(status, PeerStatus::Removed | PeerStatus::Impostor) {
                self.effects.push(PeerEffect::Part { connection });
            }
        }
        self.follow_links();
    }

    /// Time has passed.
    pub fn tick(&mut self, raft: &Raft, now_us: u64) {
        self.now_us = now_us;
        if self.stopped {
            return;
        }
        self.go_on_sealing(raft);
        let due = self.links.due(raft, now_us, &mut self.effects);
        for (peer, lane) in due {
            let addresses = self.addresses_of(peer);
            let offers_in = self.offers_in(raft).filter(|_| lane == Lane::Control);
            let greeting = Greeting { offers_in, ..self.greeting(Role::Peer, peer, lane) };
            self.links.dial(peer, lane, &addresses, greeting, now_us, &mut self.effects);
        }
    }

    /// When [`Peers::tick`] must be called next.
    pub fn next_tick_us(&self, raft: &Raft) -> u64 {
        match self.stopped {
            true => u64::MAX,
            false => self.links.next_us(raft).min(self.seals_at_us(raft)),
        }
    }

    /// What is to be done.
    pub(super) fn take_effects(&mut self) -> Vec<PeerEffect> {
        std::mem::take(&mut self.effects)
    }

    /// The members' secret as this node holds it now.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What the replica is to hear.
    pub(super) fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    // ---- accepted connections ----

    fn on_accepted(&mut self, connection: ConnectionId, presented: &Presented, raft: &Raft) {
        let (hello, version) = (&*presented.hello, presented.version);
        let proven = presented.proven(&self.secret);
        if let Err(reject) = self.admits(hello, proven) {
            let answer = Err(reject);
            let frame = presented.answer(&answer, Some(&self.secret));
            if let Err(reject) = answer {
                self.effects.push(PeerEffect::Reject { connection, reject, frame });
            }
            return;
        }
        if self.stops_as_rolled_back(hello.from, &hello.address, &hello.remembered, raft) {
            return;
        }
        let Hello { from, identity, role, lane, .. } = *hello;
        self.memory.met(from, identity);
        self.take_offer(presented, proven, raft);
        let welcome = Ok(self.welcome(from, version, raft));
        let frame = presented.answer(&welcome, Some(&self.secret));
        self.effects.push(PeerEffect::Welcome { connection, frame });
        let address = hello.address.clone();
        let accepted = Accepted { node: from, identity, role, lane, address };
        let again = self.accepted.values().any(|a| (a.node, a.role, a.lane) == (from, role, lane));
        self.accepted.insert(connection, accepted);
        if role != Role::Peer || lane != Lane::Control {
            return;
        }
        let address = hello.address.clone();
        self.warn_of_address(from, &address);
        self.told.push(Told::LetIn { node: from, identity, address: address.clone() });
        if !again {
            // It could not answer before.
            self.told.push(Told::FlowLost { node: from });
        }
        self.said.insert(from, address);
        self.follow_links();
        // It may be another process than the one at the end of this node's connection to it.
        self.links.has_dialed(from, self.now_us, &mut self.effects);
    }

    /// Whether a node that dials with that Hello, and knows the token, is let in.
    ///
    /// # Errors
    /// What it is told when it is not.
    pub fn admits(&self, hello: &Hello, proven: Proven) -> Result<(), Reject> {
        let (cluster, node, identity) = (self.cluster, self.id, self.options.identity);
        let local = Local { cluster, node, identity };
        let connected = self
            .accepted
            .values()
            .filter(|a| a.role == Role::Peer)
            .map(|a| Connected { node: a.node, identity: a.identity, address: &a.address });
        let is_member = proven.member || !self.secret.sealed;
        admission::admit(
            hello,
            &local,
            &self.options.address,
            &self.history,
            is_member,
            connected,
        )?;
        let same = |a: &&Accepted| (a.node, a.role, a.lane) == (hello.from, hello.role, hello.lane);
        let newcomer = !self.history.is_member(hello.from) && !self.said.contains_key(&hello.from);
        let newcomers = self.said.keys().filter(|id| !self.history.is_member(**id)).count();
        if self.accepted.values().filter(same).count() >= ACCEPTED_MAX
            || newcomer && newcomers >= NEWCOMERS_MAX
        {
            let message = format!("too many connections of node {} or its like", hello.from);
            return Err(Reject::no_place(message));
        }
        Ok(())
    }

    fn welcome(&self, to: NodeId, version: u16, raft: &Raft) -> Welcome {
        let leader = raft.leader().and_then(|id| self.history.in_force().member(id));
        Welcome {
            version,
            cluster: self.cluster,
            node: self.id,
            identity: self.options.identity,
            leader: leader.map_or(0, |m| m.id),
            leader_address: leader.map_or(String::new(), |m| m.address.clone()),
            remembered: self.memory.of(to),
        }
    }

    fn warn_of_address(&mut self, from: NodeId, address: &str) {
        let now = self.history.in_force();
        let Some(other) = now.members.iter().find(|m| m.id != from && m.address == *address) else {
            return;
        };
        if now.member(from).is_some_and(|m| m.address != *address) {
            let text = format!(
                "peer={from} says that it is reached at {address}, which is the address of member {}: it has \
                 to be started with an --advertise of its own",
                other.id
            );
            self.effects.push(PeerEffect::Say { warning: true, text });
        }
    }

    fn on_accepted_closed(&mut self, connection: ConnectionId) {
        let Some(ended) = self.accepted.remove(&connection) else { return };
        let node = ended.node;
        let left = self
            .accepted
            .values()
            .any(|a| (a.node, a.role, a.lane) == (node, ended.role, ended.lane));
        if ended.role != Role::Peer || left {
            return;
        }
        match ended.lane {
            Lane::Bulk => self.told.push(Told::FlowLost { node }),
            Lane::Control => {
                if !self.history.is_member(node) {
                    self.memory.forget(node);
                    self.said.remove(&node);
                    self.follow_links();
                }
                self.told.push(Told::Gone { node });
            }
        }
    }

    // ---- dialed connections ----

    fn on_welcome(
        &mut self,
        connection: ConnectionId,
        welcome: &Welcome,
        proven: Proven,
        raft: &Raft,
    ) {
        let Some((peer, lane, address)) = self.links.dialing(connection) else {
            self.effects.push(PeerEffect::Close { connection });
            return;
        };
        let (proven, offered) = self.shown_to(connection, proven);
        if self.secret.sealed && !proven.member {
            let why = "who answers at its address does not hold the members' secret";
            self.links.refused(connection, why, true, self.now_us, &mut self.effects);
            return;
        }
        if (welcome.cluster, welcome.node) != (self.cluster, peer) {
            let why = "another node answers at its address";
            self.links.refused(connection, why, false, self.now_us, &mut self.effects);
            return;
        }
        if self.stops_as_rolled_back(peer, &address, &welcome.remembered, raft) {
            return;
        }
        self.memory.met(peer, welcome.identity);
        let history = &self.history;
        self.witness.welcomed(peer, |id| history.is_member(id));
        self.removed_by.remove(&peer);
        if proven.sealed {
            self.seal("another member says so");
        }
        if let Some(term) = offered.filter(|_| proven.member) {
            self.has_shown(peer, welcome.identity, term, raft);
        }
        self.links.welcomed(connection, self.now_us, &mut self.effects);
        self.told.push(Told::Connected { node: peer, identity: welcome.identity, lane });
    }

    /// What was shown to the greeting of that connection: it counts for the secret that this node holds now.
    fn shown_to(&self, connection: ConnectionId, proven: Proven) -> (Proven, Option<Term>) {
        match self.links.greeted(connection) {
            Some((bytes, offered)) if bytes == self.secret.bytes => (proven, offered),
            _ => (Proven { token: proven.token, ..Proven::default() }, None),
        }
    }

    fn on_reject(&mut self, connection: ConnectionId, reject: &Reject, proven: Proven) {
        let Some((peer, _, address)) = self.links.dialing(connection) else { return };
        let (proven, _) = self.shown_to(connection, proven);
        let believed = if self.secret.sealed { proven.member } else { proven.token };
        if !believed && matches!(reject.code, RejectCode::Removed | RejectCode::WrongIdentity) {
            let text = format!(
                "who answers at {address} says: {}. It has not shown that it is a member, and is not believed",
                reject.message
            );
            self.links.refused(connection, &text, true, self.now_us, &mut self.effects);
            return;
        }
        let dialed = Dialed {
            own: self.id,
            own_identity: self.options.identity,
            own_address: &self.options.address,
            peer,
            address: &address,
        };
        let text = match admission::meaning_of(reject, self.history.in_force(), &dialed) {
            Meaning::Stop(Verdict::Removed, why) => {
                self.removed_by.insert(peer);
                // Where nobody else can be asked one word has to do.
                if self.removed_by.len() >= self.others().len().min(2) {
                    return self.stop(Verdict::Removed, why);
                }
                format!("{why}. No other node has said so yet, and this one goes on until one does")
            }
            Meaning::Stop(verdict, why) => return self.stop(verdict, why),
            Meaning::Refused(text) => text,
        };
        self.links.refused(connection, &text, true, self.now_us, &mut self.effects);
    }

    /// Whether this node's disk turns out to be an old copy by what a peer remembers of it.
    fn stops_as_rolled_back(
        &mut self,
        peer: NodeId,
        address: &str,
        remembered: &Remembered,
        raft: &Raft,
    ) -> bool {
        let now = LogPosition::of(raft);
        let Some(lost) = self.witness.judge(peer, remembered, now) else { return false };
        let why = format!(
            "node {peer} at {address} remembers that this node, {}, had come to term {} and acknowledged \
             everything up to index {}, and the disk does not hold that any more: it is an old copy. {}",
            self.id,
            lost.term,
            lost.index,
            admission::way_out(self.id, &self.options.address, address)
        );
        self.stop(Verdict::RolledBack, why);
        true
    }

    fn stop(&mut self, verdict: Verdict, why: String) {
        self.stopped = true;
        self.told.clear();
        self.effects.clear();
        self.effects.push(PeerEffect::Stop { verdict, why });
    }

    // ---- addresses ----

    /// Where a node is, by somebody else's word: a peer says who leads, or a person where nodes run. A
    /// node that was away may never have heard of members that joined or have moved meanwhile, nor they
    /// of where it is now: it dials them, and is answered.
    fn heard_of(&mut self, id: NodeId, address: &str) {
        let dials = self.accepted.values().any(|a| a.node == id);
        let newcomers = self.said.keys().filter(|id| !self.history.is_member(**id)).count();
        let room = self.history.is_member(id) || newcomers < NEWCOMERS_MAX;
        if id != self.id && id != 0 && !dials && room && self.history.is_news(id, address) {
            self.said.insert(id, address.to_string());
            self.follow_links();
        }
    }

    /// One link for every other member, and for every newcomer. A member that leaves keeps its own
    /// until that is committed: a leader that leaves still needs the answers until then.
    fn follow_links(&mut self) {
        let mut peers = self.others();
        let kept = self.history.all_members();
        peers.extend(kept.filter(|id| *id != self.id));
        peers.retain(|id| !self.history.committed().was_removed(*id));
        let lost = self.links.follow(&peers, self.now_us, &mut self.effects);
        self.told.extend(lost.into_iter().map(|node| Told::FlowLost { node }));
    }

    /// Makes the links that a start begins with.
    pub(super) fn begin(&mut self) {
        self.follow_links();
    }
}

impl ConfigurationHistory {
    fn is_of(&self, raft: &Raft) -> bool {
        let open = raft.open_configurations().iter().map(|(_, configuration)| configuration);
        self.all().len() == open.len()
            && self.all().iter().zip(open).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    fn is_member(&self, id: NodeId) -> bool {
        self.all().iter().any(|c| c.member(id).is_some())
    }

    fn all_members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.all().iter().flat_map(|c: &Arc<Configuration>| c.members.iter().map(|m| m.id))
    }
}

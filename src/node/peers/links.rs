//! Links: one for each peer and lane that this node dials, with its targets, pauses and complaints.
//!
//! A link has at most one connection in use and one that is being made. A connection in doubt stays in
//! use until another one is welcomed: doubt is no evidence that it is dead, only reason to try.
//!
//! A peer that should be heard all the time (the leader by a follower, a follower by its leader, every
//! voter while nobody leads) and was not for a few heartbeats is asked for a sign of life at once
//! ([`PeerEffect::Hasten`]): a firewall may have forgotten the connection, and an election timeout should
//! find the new one made.

use super::events::{ConnectionId, PeerEffect};
use crate::raft::{NodeId, Raft, RoleName, Term};
use crate::wire::handshake::Lane;
use crate::wire::proof::{Greeting, SECRET_BYTES, Secret};
use std::collections::{BTreeMap, BTreeSet};

/// Pauses between two attempts, in microseconds; they double.
const PAUSE_MIN_US: u64 = 20_000;
const PAUSE_MAX_US: u64 = 1_000_000;
/// Different complaints that are made of one peer while it is not reached.
const COMPLAINTS_MAX: usize = 32;
/// Heartbeats that a peer may miss before it is asked for a sign of life.
const SILENT_HEARTBEATS: u64 = 3;
/// Pauses between two rounds of probes at the addresses that a person has named, in microseconds.
const PROBE_PAUSE_US: (u64, u64) = (500_000, 5_000_000);

/// An attempt to make a connection.
#[derive(Debug)]
struct Dialing {
    connection: ConnectionId,
    address: String,
    /// What the greeting shows, and in which term it offers that.
    secret: Option<Secret>,
    offers_in: Option<Term>,
}

impl Dialing {
    fn says_sealed(&self) -> bool {
        self.secret.is_some_and(|secret| secret.sealed)
    }
}

#[derive(Debug)]
struct Link {
    open: Option<ConnectionId>,
    /// The greeting of the open connection said that the members' secret is sealed.
    told_sealed: bool,
    dialing: Option<Dialing>,
    /// The open connection is in doubt: another one is to take its place.
    doubted: bool,
    next_dial_us: u64,
    pause_us: u64,
    /// When the last attempt failed.
    failed_us: u64,
    attempts: usize,
    /// Complaints since the peer was last reached, so that none is repeated.
    said: BTreeSet<String>,
}

impl Link {
    fn new(now_us: u64) -> Link {
        Link {
            open: None,
            told_sealed: false,
            dialing: None,
            doubted: false,
            next_dial_us: now_us,
            pause_us: PAUSE_MIN_US,
            failed_us: now_us,
            attempts: 0,
            said: BTreeSet::new(),
        }
    }

    /// Whether it waits for the next attempt.
    fn waits(&self) -> bool {
        self.dialing.is_none() && (self.open.is_none() || self.doubted)
    }

    fn is_new(&mut self, complaint: &str) -> bool {
        if self.said.len() >= COMPLAINTS_MAX {
            self.said.clear();
        }
        self.said.insert(complaint.to_string())
    }

    fn failed(&mut self, now_us: u64) {
        self.dialing = None;
        self.failed_us = now_us;
        self.next_dial_us = now_us + self.pause_us;
        self.pause_us = (2 * self.pause_us).min(PAUSE_MAX_US);
    }
}

/// When a peer was last heard, and asked for a sign of life since.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at_us: u64,
    hastened: bool,
}

/// All links of a node; see the module.
#[derive(Debug)]
pub(super) struct Links {
    links: BTreeMap<(NodeId, Lane), Link>,
    by_connection: BTreeMap<ConnectionId, (NodeId, Lane)>,
    heard: BTreeMap<NodeId, Heard>,
    next_connection: ConnectionId,
    heartbeat_us: u64,
    election_timeout_us: u64,
    seeds: Vec<String>,
    probe_at_us: u64,
    probe_pause_us: u64,
}

impl Links {
    pub(super) fn new(
        heartbeat_us: u64,
        election_timeout_us: u64,
        seeds: Vec<String>,
        now_us: u64,
    ) -> Links {
        Links {
            links: BTreeMap::new(),
            by_connection: BTreeMap::new(),
            heard: BTreeMap::new(),
            next_connection: 1,
            heartbeat_us,
            election_timeout_us,
            seeds,
            probe_at_us: now_us,
            probe_pause_us: PROBE_PAUSE_US.0,
        }
    }

    /// The connection in use.
    pub(super) fn open(&self, node: NodeId, lane: Lane) -> Option<ConnectionId> {
        self.links.get(&(node, lane))?.open
    }

    /// Whom a connection that is being made is to reach, and where.
    pub(super) fn dialing(&self, connection: ConnectionId) -> Option<(NodeId, Lane, String)> {
        let &(node, lane) = self.by_connection.get(&connection)?;
        let dialing = self.links.get(&(node, lane))?.dialing.as_ref()?;
        (dialing.connection == connection).then(|| (node, lane, dialing.address.clone()))
    }

    /// The secret that the greeting of a connection that is being made shows, and the term in which it offers it.
    pub(super) fn greeted(
        &self,
        connection: ConnectionId,
    ) -> Option<([u8; SECRET_BYTES], Option<Term>)> {
        let dialing = self.links.get(self.by_connection.get(&connection)?)?.dialing.as_ref()?;
        let secret = dialing.secret.filter(|_| dialing.connection == connection)?;
        Some((secret.bytes, dialing.offers_in))
    }

    /// Dials anew who was dialed before the members' secret was sealed, to say so.
    pub(super) fn tell_sealed(&mut self, now_us: u64) {
        let untold = |link: &&Link| !link.told_sealed && !link.doubted;
        let control = self.links.iter().filter(|((_, lane), _)| *lane == Lane::Control);
        let open: Vec<ConnectionId> =
            control.map(|(_, link)| link).filter(untold).filter_map(|link| link.open).collect();
        open.into_iter().for_each(|connection| self.replace(connection, now_us));
    }

    /// Makes the set of peers that are dialed that one. Gives those whose bulk connection was closed.
    pub(super) fn follow(
        &mut self,
        peers: &BTreeSet<NodeId>,
        now_us: u64,
        effects: &mut Vec<PeerEffect>,
    ) -> Vec<NodeId> {
        let mut lost = Vec::new();
        self.links.retain(|(node, lane), link| {
            if peers.contains(node) {
                return true;
            }
            let dialing = link.dialing.as_ref().map(|d| d.connection);
            for connection in link.open.into_iter().chain(dialing) {
                effects.push(PeerEffect::Close { connection });
                self.by_connection.remove(&connection);
            }
            if *lane == Lane::Bulk && link.open.is_some() {
                lost.push(*node);
            }
            false
        });
        self.heard.retain(|node, _| peers.contains(node));
        for &node in peers {
            for lane in [Lane::Control, Lane::Bulk] {
                self.links.entry((node, lane)).or_insert_with(|| Link::new(now_us));
            }
        }
        lost
    }

    // ---- attempts ----

    /// Links whose next attempt is due; asks silent peers for a sign of life.
    pub(super) fn due(
        &mut self,
        raft: &Raft,
        now_us: u64,
        effects: &mut Vec<PeerEffect>,
    ) -> Vec<(NodeId, Lane)> {
        self.ask_the_silent(raft, now_us, effects);
        if raft.leader().is_none() && !self.seeds.is_empty() && now_us >= self.probe_at_us {
            let probe = |address: &String| PeerEffect::Probe { address: address.clone() };
            effects.extend(self.seeds.iter().map(probe));
            self.probe_at_us = now_us + self.probe_pause_us;
            self.probe_pause_us = (2 * self.probe_pause_us).min(PROBE_PAUSE_US.1);
        }
        let due = |(key, link)| self.dials_at(key, link, raft).is_some_and(|at| now_us >= at);
        self.links.iter().filter(|(key, link)| due((**key, link))).map(|(key, _)| *key).collect()
    }

    /// When a link is dialed next, if that is a matter of time. While nobody leads no pause is longer
    /// than half an election timeout: who comes back then is needed. Bulk waits for the small frames,
    /// which find out whether the peer is there.
    fn dials_at(&self, (node, lane): (NodeId, Lane), link: &Link, raft: &Raft) -> Option<u64> {
        if !link.waits() {
            return None;
        }
        if lane == Lane::Bulk && self.open(node, Lane::Control).is_none() {
            return None;
        }
        Some(match raft.leader() {
            None => link.next_dial_us.min(link.failed_us + self.election_timeout_us / 2),
            Some(_) => link.next_dial_us,
        })
    }

    /// Dials a link at the next of its addresses.
    pub(super) fn dial(
        &mut self,
        peer: NodeId,
        lane: Lane,
        addresses: &[String],
        greeting: Greeting,
        now_us: u64,
        effects: &mut Vec<PeerEffect>,
    ) {
        let Some(link) = self.links.get_mut(&(peer, lane)) else { return };
        let Some(address) = addresses.get(link.attempts % addresses.len().max(1)).cloned() else {
            link.failed(now_us);
            return;
        };
        link.attempts = link.attempts.wrapping_add(1);
        let connection = self.next_connection;
        self.next_connection += 1;
        let (secret, offers_in) = (greeting.keys.secret, greeting.offers_in);
        link.dialing = Some(Dialing { connection, address: address.clone(), secret, offers_in });
        self.by_connection.insert(connection, (peer, lane));
        let greeting = Box::new(greeting);
        effects.push(PeerEffect::Dial { connection, peer, address, greeting });
    }

    /// A node that was probed; one that answered is not asked again.
    pub(super) fn probed(&mut self, address: &str, answered: bool) {
        if answered {
            self.seeds.retain(|seed| seed != address);
        }
    }

    // ---- what becomes of them ----

    /// The peer has taken a connection: it is in use from now on.
    pub(super) fn welcomed(
        &mut self,
        connection: ConnectionId,
        now_us: u64,
        effects: &mut Vec<PeerEffect>,
    ) {
        let Some(&(peer, lane)) = self.by_connection.get(&connection) else { return };
        let Some(link) = self.links.get_mut(&(peer, lane)) else { return };
        link.told_sealed = link.dialing.take().is_some_and(|dialing| dialing.says_sealed());
        if let Some(old) = link.open.replace(connection) {
            self.by_connection.remove(&old);
            effects.push(PeerEffect::Close { connection: old });
        }
        (link.doubted, link.pause_us) = (false, PAUSE_MIN_US);
        link.said.clear();
        effects.push(PeerEffect::Open { connection, peer, lane });
        self.heard.entry(peer).or_insert(Heard { at_us: now_us, hastened: false });
        if lane == Lane::Control
            && let Some(bulk) = self.links.get_mut(&(peer, Lane::Bulk))
        {
            bulk.next_dial_us = bulk.next_dial_us.min(now_us);
            // What has made one connection useless may have made the other one so.
            effects.extend(bulk.open.map(|connection| PeerEffect::Hasten { connection }));
        }
    }

    /// The peer has refused a connection, or it is not the peer.
    pub(super) fn refused(
        &mut self,
        connection: ConnectionId,
        why: &str,
        warning: bool,
        now_us: u64,
        effects: &mut Vec<PeerEffect>,
    ) {
        let Some((peer, lane)) = self.by_connection.remove(&connection) else { return };
        let Some(link) = self.links.get_mut(&(peer, lane)) else { return };
        link.failed(now_us);
        effects.push(PeerEffect::Close { connection });
        if link.is_new(why) {
            let text = format!("peer={peer} {why}");
            effects.push(PeerEffect::Say { warning, text });
        }
    }

    /// A connection has ended, or was not made. Gives whose it was, if it was in use.
    pub(super) fn closed(
        &mut self,
        connection: ConnectionId,
        why: &str,
        now_us: u64,
        effects: &mut Vec<PeerEffect>,
    ) -> Option<(NodeId, Lane)> {
        let (peer, lane) = self.by_connection.remove(&connection)?;
        let link = self.links.get_mut(&(peer, lane))?;
        if link.open == Some(connection) {
            link.open = None;
            link.doubted = false;
            link.next_dial_us = now_us + PAUSE_MIN_US;
            let text = format!("connection to peer={peer} broke: {why}");
            effects.push(PeerEffect::Say { warning: false, text });
            return Some((peer, lane));
        }
        if link.dialing.as_ref().is_some_and(|d| d.connection == connection) {
            link.failed(now_us);
            if link.is_new(why) {
                let text = format!("cannot reach peer={peer}: {why}");
                effects.push(PeerEffect::Say { warning: false, text });
            }
        }
        None
    }

    /// The open connection gave no sign of life: another one is tried beside it.
    pub(super) fn replace(&mut self, connection: ConnectionId, now_us: u64) {
        if let Some(link) = self.by_connection.get(&connection)
            && let Some(link) = self.links.get_mut(link)
            && link.open == Some(connection)
            && !link.doubted
        {
            link.doubted = true;
            link.next_dial_us = now_us;
            link.pause_us = PAUSE_MIN_US;
        }
    }

    /// The peer has just dialed: it is there.
    pub(super) fn has_dialed(&mut self, peer: NodeId, now_us: u64, effects: &mut Vec<PeerEffect>) {
        self.heard.insert(peer, Heard { at_us: now_us, hastened: false });
        for lane in [Lane::Control, Lane::Bulk] {
            let Some(link) = self.links.get_mut(&(peer, lane)) else { continue };
            if link.waits() {
                (link.next_dial_us, link.pause_us) = (now_us, PAUSE_MIN_US);
            }
            effects.extend(link.open.map(|connection| PeerEffect::Hasten { connection }));
        }
    }

    // ---- silence ----

    /// A message of that node has arrived.
    pub(super) fn heard(&mut self, from: NodeId, now_us: u64) {
        if let Some(heard) = self.heard.get_mut(&from) {
            *heard = Heard { at_us: now_us, hastened: false };
        }
    }

    /// Whether that node sends all the time, as far as this one knows.
    fn is_expected(&self, node: NodeId, raft: &Raft) -> bool {
        match raft.role() {
            RoleName::Leader => raft.configuration().member(node).is_some(),
            _ => raft.leader().is_none_or(|leader| leader == node),
        }
    }

    fn ask_the_silent(&mut self, raft: &Raft, now_us: u64, effects: &mut Vec<PeerEffect>) {
        let bound_us = SILENT_HEARTBEATS * self.heartbeat_us;
        let silent = |heard: &Heard| !heard.hastened && now_us >= heard.at_us + bound_us;
        let nodes = self.heard.iter().filter(|(_, heard)| silent(heard)).map(|(&node, _)| node);
        let nodes: Vec<NodeId> = nodes.filter(|node| self.is_expected(*node, raft)).collect();
        for node in nodes {
            if let Some(heard) = self.heard.get_mut(&node) {
                heard.hastened = true;
            }
            let open = self.open(node, Lane::Control);
            effects.extend(open.map(|connection| PeerEffect::Hasten { connection }));
        }
    }

    /// When [`Links::due`] may find something.
    pub(super) fn next_us(&self, raft: &Raft) -> u64 {
        let dials = self.links.iter().filter_map(|(key, link)| self.dials_at(*key, link, raft));
        let bound_us = SILENT_HEARTBEATS * self.heartbeat_us;
        let expected = self
            .heard
            .iter()
            .filter(|(node, heard)| !heard.hastened && self.is_expected(**node, raft));
        let silent = expected.map(|(_, heard)| heard.at_us + bound_us);
        let probes =
            (raft.leader().is_none() && !self.seeds.is_empty()).then_some(self.probe_at_us);
        dials.chain(silent).chain(probes).min().unwrap_or(u64::MAX)
    }
}

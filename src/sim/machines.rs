//! Machines come and go, and what travels between them.

use super::checks::{Platter, Violation, can_serve};
use super::disk::SimDisk;
use super::moments::Moment;
use super::node::Start;
use super::world::{ANY_LIFE, Event, World};
use crate::kv::{Reader as _, View as _};
use crate::node::{Input, LogPosition, PeerEvent};
use crate::raft::NodeId;
use crate::wal::Identity;
use std::collections::BTreeSet;

impl World {
    /// In some clusters of five one node hears nobody at first.
    pub(super) fn keep_one_away(&mut self) {
        let nodes = self.first.len() as NodeId;
        if nodes < 5 || !self.dice.chance(1, 2) {
            return;
        }
        let late = self.dice.between(1, nodes);
        self.count("nodes cut off from the beginning");
        for other in (1..=nodes).filter(|&other| other != late) {
            self.network.line(late, other).cut = true;
            self.network.line(other, late).cut = true;
        }
    }

    /// A first member that runs and has not heard what is committed of the others since the beginning.
    pub(super) fn late(&self) -> Option<NodeId> {
        let unaware = |id: NodeId| {
            let up = self.nodes.get(&id).and_then(|n| n.up.as_ref());
            up.is_some_and(|up| up.node.replica().raft().commit_index() == 0)
        };
        let configuration = self.cluster.configuration()?;
        let bound = configuration.members.iter().any(|m| m.identity != 0);
        self.first
            .iter()
            .map(|m| m.id)
            .find(|&id| bound && configuration.is_voter(id) && unaware(id))
    }

    /// Who would recognise the node if it came with an empty disk: every other one runs and has its
    /// identity on its disk (docs/architecture.md). In a larger cluster a few may have heard nothing yet,
    /// which let in whoever comes first, as long as they and the node are no majority.
    fn recognised_by(&self, node: NodeId) -> Option<BTreeSet<NodeId>> {
        let identity = self.nodes.get(&node)?.identity;
        let configuration = self.cluster.configuration()?;
        let (mut known, mut unaware) = (BTreeSet::new(), 0);
        for id in configuration.members.iter().map(|m| m.id).filter(|id| *id != node) {
            let raft = self.nodes.get(&id)?.up.as_ref()?.node.replica().raft();
            let here = raft.configuration();
            let settled = raft.commit_index() == raft.last_index()
                && raft.durable_index() == raft.last_index();
            match here.member(node).map(|m| m.identity) {
                Some(of) if of == identity && settled && **here == **configuration => {
                    known.insert(id);
                }
                Some(0) if !here.is_joint() && here.voters == configuration.voters => unaware += 1,
                _ => return None,
            }
        }
        let simple = !configuration.is_joint() && configuration.learners.is_empty();
        let majority = configuration.voters.len() / 2 + 1;
        let safe = unaware == 0 || (simple && unaware + 1 < majority);
        (safe && !known.is_empty()).then_some(known)
    }

    /// The node loses its disk and begins with an empty one under its old id, if it would be
    /// recognised.
    pub(super) fn wipe(&mut self, node: NodeId, down_us: u64) {
        let Some(known_to) = self.recognised_by(node) else { return };
        if !self.can_lose(node) || self.is_old_copy(node) {
            return;
        }
        self.count("disks lost");
        let first = self.first.len() as NodeId;
        if node > first || first < 3 {
            // Only the first members take an id by themselves, and one or two would be a cluster again.
            self.lose(node);
            return;
        }
        self.stop(node, true);
        if let Some(n) = self.nodes.get_mut(&node) {
            n.known_to = known_to;
            n.disk = SimDisk::new(self.dice.split());
            n.torn = None;
            n.copy = None;
            n.flushed = 0;
            n.wiped = true;
            n.speaks_since = n.life + 1;
        }
        self.platters.insert(node, Platter::default());
        self.start_in(down_us, node);
    }

    pub(super) fn start(&mut self, node: NodeId) -> Result<(), Violation> {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        // An old copy was noticed in one life or never starts another.
        n.gone |= n.old_copy;
        if n.up.is_some() || n.refuses || n.over || n.gone {
            return Ok(());
        }
        if self.finds_address_taken(node) {
            self.count("removed nodes kept from an address in use");
            self.lose(node);
            return Ok(());
        }
        let Some(identity) = self.startup(node)? else { return Ok(()) };
        // An earlier life may have ended while it made that durable.
        if let Ok(Identity { secret: Some(secret), .. }) = &identity
            && secret.sealed
        {
            self.sealed_by(node, secret.bytes)?;
        }
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let Some(platter) = self.platters.get_mut(&node) else { return Ok(()) };
        match n.start(identity, now_us, self.bounds, platter, self.cluster.committed_terms())? {
            Start::Running => {
                let (life, last) = (n.life, self.platters[&node].terms.len() as u64);
                self.note(node, "started", [life, last, 0, 0]);
                self.begin_recording(node);
                self.give_way(node);
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
                self.start_writing(node);
                self.wake_at(node, life, now_us + 1);
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
        let failed_at = self.nodes.get(&node).and_then(|n| n.disk.take_failed_at());
        if let Some(name) = failed_at.and_then(Moment::name) {
            self.count(name);
        }
        self.count_open_change(node);
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let (was_up, old_copy) = (n.up.is_some(), n.old_copy);
        n.manifest_hurt |= power_lost && !n.disk.is_durable("manifest-");
        // What looked damaged as a read failed is gone for good then.
        let given_up = n.up.as_ref().map_or(0, |up| up.reader.stats().given_up);
        n.store_flipped |= given_up > 0 && !n.store_repaired;
        n.stop(power_lost);
        self.note(node, "stopped", [u64::from(power_lost), 0, 0, 0]);
        if was_up {
            self.end_flows(node, power_lost);
            self.end_client_connections(node, power_lost);
            self.end_lines(node, power_lost);
        }
        // What it remembers of an old copy goes with it.
        if was_up && !old_copy {
            self.switch_off_old_copies();
        }
    }

    // ---- old copies of disks ----

    /// Keeps a copy of a running node's disk, as a loss of power would leave it now.
    pub(super) fn copy_disk(&mut self, node: NodeId) {
        let dice = self.dice.split();
        if let Some(n) = self.nodes.get_mut(&node)
            && n.up.is_some()
            && !n.has_damage()
            && !n.wiped
        {
            n.copy = Some(n.disk.image(dice));
        }
    }

    /// Whether that node runs on an old copy of its disk.
    pub(super) fn is_old_copy(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|n| n.old_copy)
    }

    /// Ends a node and starts it with the copy of its disk, if all others remember more of it: only
    /// then is it sure to be noticed (docs/architecture.md).
    pub(super) fn old_copy(&mut self, node: NodeId) -> Result<(), Violation> {
        let quiet = self.all_remember(node, LogPosition::default());
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        let fit = n.up.is_some() && !n.has_damage() && !n.wiped && !n.old_copy;
        if n.copy.is_none() || !fit || !quiet || !self.can_lose(node) {
            return Ok(());
        }
        self.stop(node, true);
        let (now_us, dice) = (self.now_us, self.dice.split());
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let Some(copy) = n.copy.take() else { return Ok(()) };
        let (own, flushed, torn) =
            (std::mem::replace(&mut n.disk, copy.image(dice)), n.flushed, n.torn.take());
        n.old_copy = true;
        let before = self.platters.get(&node).cloned().unwrap_or_default();
        let Some(identity) = self.startup(node)? else { return Ok(()) };
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let Some(platter) = self.platters.get_mut(&node) else { return Ok(()) };
        let started =
            n.start(identity, now_us, self.bounds, platter, self.cluster.committed_terms())?;
        let raft = n.up.as_ref().map(|up| up.node.replica().raft());
        let promise = raft.map(LogPosition::of);
        // Who was alone when the copy was made leads before anybody can say a word.
        let alone = raft.is_some_and(|raft| {
            let now = raft.configuration();
            let others = now.members.iter().map(|m| m.id).filter(|&id| id != node);
            can_serve(now, &others.collect::<Vec<_>>())
        });
        let applied = n.up.as_ref().map_or(0, |up| up.reader.view().applied());
        let noticed = matches!(started, Start::Running)
            && !alone
            && promise.is_some_and(|promise| self.all_remember(node, promise));
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        if !noticed {
            // It would pass for the disk that it is a copy of.
            (n.up, n.disk, n.flushed, n.torn, n.old_copy) = (None, own, flushed, torn, false);
            // What that start has repaired was on the copy.
            n.manifest_hurt = true;
            self.platters.insert(node, before);
            self.start_in(1_000, node);
            return Ok(());
        }
        (n.flushed, n.speaks_since) = (applied, n.life);
        let life = n.life;
        self.count("old copies of disks");
        self.begin_recording(node);
        self.note(node, "old copy", [life, 0, 0, 0]);
        self.start_storing(node);
        self.start_writing(node);
        self.wake_at(node, life, now_us + 1);
        Ok(())
    }

    /// Whether all other members run, have nothing open, and remember more of the node than that.
    fn all_remember(&self, node: NodeId, promise: LogPosition) -> bool {
        let configuration = self.cluster.configuration();
        let Some(configuration) = configuration.filter(|c| c.learners.is_empty()) else {
            return false;
        };
        let voters = &configuration.voters;
        let remembers = |id: &NodeId| {
            let Some(n) = self.nodes.get(id).filter(|n| n.paused_until_us <= self.now_us) else {
                return false;
            };
            n.up.as_ref().is_some_and(|up| {
                let raft = up.node.replica().raft();
                let (known, last) = (up.node.peers().remembers(node), raft.last_index());
                raft.is_settled()
                    && **raft.configuration() == **configuration
                    && (raft.commit_index(), raft.durable_index()) == (last, last)
                    && last == self.cluster.committed()
                    && (known.term > promise.term || known.index > promise.index)
                    && !up.inbox.iter().any(|i| match i {
                        Input::Peer(message) => message.from == node,
                        Input::Link(PeerEvent::Accepted { presented, .. }) => {
                            presented.hello.from == node
                        }
                        _ => false,
                    })
            })
        };
        let mut others = voters.iter().filter(|id| **id != node);
        voters.contains(&node) && voters.len() > 2 && others.all(remembers)
    }

    /// Whoever could tell an old copy is about to forget, or others are to join who cannot: its
    /// machine is switched off for good.
    pub(super) fn switch_off_old_copies(&mut self) {
        let copies = |n: &&super::node::SimNode| n.old_copy && n.up.is_some();
        let copies: Vec<NodeId> = self.nodes.values().filter(copies).map(|n| n.id).collect();
        for id in copies {
            self.count("old copies switched off");
            self.lose(id);
        }
    }

    /// Whether a node that was removed would listen where another process does. (A member's address is
    /// its own: see [`World::give_way`].)
    fn finds_address_taken(&self, node: NodeId) -> bool {
        let Some(address) = self.nodes.get(&node).map(|n| &n.address) else { return false };
        let removed = self.cluster.configuration().is_some_and(|c| c.member(node).is_none());
        removed
            && self.nodes.values().any(|n| n.id != node && n.up.is_some() && n.address == *address)
    }

    /// Two processes cannot listen at one address: a node that was removed, and may not know it yet, makes
    /// room for the one that starts in its place.
    fn give_way(&mut self, node: NodeId) {
        let Some(address) = self.nodes.get(&node).map(|n| n.address.clone()) else { return };
        let member = |id| self.cluster.configuration().is_none_or(|c| c.member(id).is_some());
        let in_the_way = |n: &&super::node::SimNode| {
            n.id != node && n.up.is_some() && n.address == address && !member(n.id)
        };
        let others: Vec<NodeId> = self.nodes.values().filter(in_the_way).map(|n| n.id).collect();
        for id in others {
            self.count("removed nodes switched off for another one");
            self.lose(id);
        }
    }

    /// A machine is gone, with its disk.
    pub(super) fn lose(&mut self, node: NodeId) {
        if let Some(n) = self.nodes.get_mut(&node) {
            n.gone = true;
        }
        self.stop(node, true);
    }
}

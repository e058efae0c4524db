//! How a process finds out who it is, by [`Startup`]: what it asks of others is answered at once, by the
//! nodes that run, or by nobody.

use super::checks::{Violation, violated};
use super::node::{CLIENTS_TOKEN, DATA};
use super::world::World;
use crate::node::{BootError, Startup, StartupEffect, StartupEvent, StartupOptions, cluster_of};
use crate::raft::NodeId;
use crate::wal::Identity;
use crate::wire::client::{Class, Joined};
use crate::wire::handshake::{Hello, Reject, RejectCode};
use crate::wire::proof::{Proven, Secret};
use std::path::Path;

impl World {
    /// Who the node is that starts; none when it waits to be taken in as another one. The first members
    /// know one another by their flags; all others have asked to be taken in.
    pub(super) fn startup(
        &mut self,
        node: NodeId,
    ) -> Result<Option<Result<Identity, BootError>>, Violation> {
        let Some(n) = self.nodes.get(&node) else { return Ok(None) };
        let (disk, data, own) = (n.disk.clone(), Path::new(DATA), n.identity);
        let found = match Identity::load(&disk, data) {
            Ok(found) => found,
            Err(e) => return Ok(Some(Err(e.into()))),
        };
        let is_new = found.is_none();
        let founds = self.first.iter().any(|m| m.id == node);
        let addresses: Vec<String> = self.first.iter().map(|m| m.address.clone()).collect();
        // A wiped directory gets a new number; a machine that was taken in has said its own.
        let own = if own == 0 || n.wiped { self.dice.roll().max(1) } else { own };
        let n = &self.nodes[&node];
        let options = StartupOptions {
            data: DATA.to_string(),
            advertise: n.address.clone(),
            peers: if founds { addresses.clone() } else { Vec::new() },
            join: if founds { Vec::new() } else { addresses },
            backup: None,
            token: CLIENTS_TOKEN.to_vec(),
            secret: self.dice.bytes(),
            own,
            cluster: 0,
        };
        // Nobody answers in time, or everybody who runs does.
        let answers = self.dice.chance(1, 2);
        let mut known = false;
        let was = found.clone();
        let mut startup = Startup::new(options, found);
        loop {
            let event = match startup.next_effect() {
                StartupEffect::Store(identity) => {
                    if was.as_ref().is_some_and(|was| is_another(was, &identity)) {
                        let detail = format!("node {node} becomes another one on its old disk");
                        return violated("a node starts on its own disk", detail);
                    }
                    match identity.store(&disk, data) {
                        Ok(()) => StartupEvent::Stored,
                        Err(e) => return Ok(Some(Err(e.into()))),
                    }
                }
                StartupEffect::AskPeer { address, greeting } => {
                    let hello = &greeting.hello;
                    let said = if answers { self.peer_says(node, &address, hello) } else { None };
                    known |= said.as_ref().is_some_and(|r| r.code == RejectCode::WrongIdentity);
                    StartupEvent::PeerAnswered(said)
                }
                StartupEffect::AskCluster { .. } => {
                    let up = self.nodes.values().find(|n| n.up.is_some()).filter(|_| answers);
                    let cluster = cluster_of(&self.first, None);
                    let found = up.map(|n| (n.address.clone(), cluster));
                    if found.is_some() {
                        self.count("found its cluster at the start");
                    }
                    StartupEvent::ClusterAnswered(found)
                }
                // A first member that was told that its disk is lost: it is replaced, or never comes back.
                StartupEffect::Join { .. } if founds => {
                    self.count("wiped disks told at the start");
                    self.lose(node);
                    return Ok(None);
                }
                StartupEffect::Join { .. } if self.dice.chance(1, 4) => {
                    self.count("asked to join again");
                    let why = "no leader".to_string();
                    StartupEvent::NotJoined { class: Class::Unavailable, why }
                }
                StartupEffect::Join { .. } => {
                    let (cluster, first) = (cluster_of(&self.first, None), self.first.clone());
                    let secret = Some(self.secret_for(node));
                    StartupEvent::Joined(Joined { cluster, id: node, first, secret })
                }
                StartupEffect::Wait(_) => StartupEvent::Waited,
                StartupEffect::Say { .. } => continue,
                // It was removed or replaced while its machine had an empty disk.
                StartupEffect::Refuse(_) if is_new => {
                    self.count("removed nodes told at the start");
                    self.lose(node);
                    return Ok(None);
                }
                StartupEffect::Refuse(why) => {
                    return violated(
                        "a node starts on its own disk",
                        format!("node {node}: {why}"),
                    );
                }
                StartupEffect::Run(_) if known => {
                    let detail = format!("node {node} runs under its old id");
                    return violated("a disk that is known to be lost is not started", detail);
                }
                StartupEffect::Run(identity) => return Ok(Some(Ok(identity))),
            };
            startup.handle(event);
        }
    }

    /// The members' secret that a member gives to a node that joins: any that runs, or the one that has answered
    /// before it went down.
    fn secret_for(&mut self, node: NodeId) -> Secret {
        let before = match self.sealed {
            Some(bytes) => Secret { bytes, sealed: true },
            None => Secret { bytes: self.dice.bytes(), sealed: false },
        };
        if self.nodes[&node].wiped {
            // It would be another member. Here it comes under its old id, and has nothing to show for that.
            return Secret { bytes: self.dice.bytes(), sealed: false };
        }
        let Some(configuration) = self.cluster.configuration().cloned() else { return before };
        let members = self.nodes.values().filter(|n| !n.wiped && !n.old_copy && n.id != node);
        let members = members.filter(|n| configuration.is_voter(n.id));
        let mut all: Vec<Secret> =
            members.filter_map(|n| n.up.as_ref()?.node.peers().keys().secret).collect();
        if all.is_empty() {
            all.push(before);
        }
        *self.dice.pick(&all)
    }

    /// How the node at an address rejects a Hello of that node; none when it lets it in, or nobody is there.
    fn peer_says(&mut self, node: NodeId, address: &str, hello: &Hello) -> Option<Reject> {
        let there = self.machine_at(address)?;
        if self.network.is_cut(node, there) {
            return None;
        }
        self.nodes[&there].up.as_ref()?.node.peers().admits(hello, Proven::default()).err()
    }
}

/// Whether what is written over an identity is that of another node.
fn is_another(was: &Identity, next: &Identity) -> bool {
    let same = next.identity == was.identity && next.node == was.node;
    was.node != 0 && !same
}

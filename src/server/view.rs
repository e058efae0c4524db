//! What the other threads know of the cluster: a view that the raft loop publishes, swapped whole.
//!
//! Who is a member, who is let in and who is dialed where is decided by [`crate::node::Peers`] in the
//! raft loop. The view is for hints (who leads), for what is shown to people, and for connections that
//! are no part of the links between nodes (snapshots). It may be a moment old.

use super::Shared;
use crate::node::{ConfigurationHistory, Node, Peers};
use crate::raft::{Configuration, NodeId};
use crate::wire::handshake::{Hello, Lane, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterView {
    pub(crate) history: ConfigurationHistory,
    /// Who leads; 0 when that is not known.
    pub(crate) leader: NodeId,
    /// All members and newcomers beside this node.
    pub(crate) others: BTreeMap<NodeId, OtherNode>,
}

/// How another node is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtherNode {
    /// Where it may be: all of them may be out of date.
    pub(crate) addresses: Vec<String>,
    /// The Hello of a connection that fetches a snapshot. What it says of rollbacks is as old as the
    /// view, which harms nobody.
    pub(crate) hello: Hello,
}

impl ClusterView {
    /// That of a node.
    pub(crate) fn of<C: Clone>(node: &Node<C>) -> ClusterView {
        let peers: &Peers = node.peers();
        let other = |id| OtherNode {
            addresses: peers.addresses_of(id),
            hello: peers.hello(Role::Snapshot, id, Lane::Control),
        };
        ClusterView {
            history: peers.history().clone(),
            leader: node.replica().raft().leader().unwrap_or(0),
            others: peers.others().into_iter().map(|id| (id, other(id))).collect(),
        }
    }

    /// Whether it may still be that of the node, if nothing has happened on a connection.
    pub(crate) fn fits<C: Clone>(&self, node: &Node<C>) -> bool {
        let history = node.peers().history();
        self.leader == node.replica().raft().leader().unwrap_or(0)
            && Arc::ptr_eq(self.history.in_force(), history.in_force())
            && Arc::ptr_eq(self.history.committed(), history.committed())
    }
}

impl Shared {
    /// The latest view.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes another view.
    pub(crate) fn publish(&self, view: Arc<ClusterView>) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// The configuration in force.
    pub(crate) fn configuration(&self) -> Arc<Configuration> {
        Arc::clone(self.view().history.in_force())
    }

    /// Who leads, and where that is; 0 and empty when either is not known.
    pub(crate) fn known_leader(&self) -> (NodeId, String) {
        let view = self.view();
        let member = view.history.in_force().member(view.leader);
        member.map_or_else(Default::default, |m| (m.id, m.address.clone()))
    }

    /// The same for an answer to a client.
    pub(crate) fn leader_hint(&self) -> Option<(NodeId, String)> {
        Some(self.known_leader()).filter(|(id, _)| *id != 0)
    }

    /// Members and newcomers beside this node.
    pub(crate) fn others(&self) -> BTreeSet<NodeId> {
        self.view().others.keys().copied().collect()
    }
}

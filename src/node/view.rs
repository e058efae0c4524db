//! What the other threads know of the cluster: a view that the raft loop publishes, swapped whole.
//!
//! Who is a member, who is let in and who is dialed where is decided by [`Peers`] in the
//! raft loop. The view is for hints (who leads), for what is shown to people, and for connections that
//! are no part of the links between nodes (snapshots). It may be a moment old.

use super::{ConfigurationHistory, Node, Peers};
use crate::raft::NodeId;
use crate::wire::handshake::{Lane, Role};
use crate::wire::proof::{Greeting, Keys};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The configurations that count.
    pub history: ConfigurationHistory,
    /// Who leads; 0 when that is not known.
    pub leader: NodeId,
    /// All members and newcomers beside this node.
    pub others: BTreeMap<NodeId, OtherNode>,
    /// What this node shows of itself.
    pub keys: Keys,
}

/// How another node is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherNode {
    /// Where it may be: all of them may be out of date.
    pub addresses: Vec<String>,
    /// What is said on a connection that fetches a snapshot. What it says of rollbacks is as old as the
    /// view, which harms nobody.
    pub greeting: Greeting,
}

impl ClusterView {
    /// That of a node.
    pub fn of<C: Clone>(node: &Node<C>) -> ClusterView {
        let peers: &Peers = node.peers();
        let other = |id| OtherNode {
            addresses: peers.addresses_of(id),
            greeting: peers.greeting(Role::Snapshot, id, Lane::Control),
        };
        ClusterView {
            history: peers.history().clone(),
            leader: node.replica().raft().leader().unwrap_or(0),
            others: peers.others().into_iter().map(|id| (id, other(id))).collect(),
            keys: peers.keys(),
        }
    }

    /// Whether it may still be that of the node, if nothing has happened on a connection.
    pub fn fits<C: Clone>(&self, node: &Node<C>) -> bool {
        let history = node.peers().history();
        self.leader == node.replica().raft().leader().unwrap_or(0)
            && Arc::ptr_eq(self.history.in_force(), history.in_force())
            && Arc::ptr_eq(self.history.committed(), history.committed())
            && self.keys.secret == node.peers().keys().secret
    }

    /// Members and newcomers beside this node.
    #[must_use]
    pub fn other_ids(&self) -> BTreeSet<NodeId> {
        self.others.keys().copied().collect()
    }
}

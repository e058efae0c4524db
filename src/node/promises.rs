//! What members have promised this node: the record that tells an old copy of a disk from the disk.
//!
//! A node's term never goes back, and what it has acknowledged and is committed stays in its log or
//! store. Every node remembers of every other the greatest of both that it was shown, and when a
//! connection is made the other side says how far it is. Whoever is behind its own promise comes with
//! an old copy of its disk, or with an older snapshot of the machine: what it would vote or
//! acknowledge now it may have promised otherwise. It is set aside, for as long as this node lives,
//! and is told so.
//!
//! Left out: remembering across a restart of *this* node. Whoever restarts together with the node
//! whose disk was exchanged knows nothing of it; docs/operations.md says so.

use crate::raft::{Body, Index, Message, NodeId, Raft, Term};
use std::collections::BTreeMap;

/// How far a node is: nothing of that can be taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Its term.
    pub term: Term,
    /// Last index of its log; of what it promised, the part that is known to be committed.
    pub index: Index,
}

impl Promise {
    /// How far this node is.
    pub fn of(raft: &Raft) -> Promise {
        Promise { term: raft.term(), index: raft.last_index() }
    }

    fn holds(self, remembered: Promise) -> bool {
        self.term >= remembered.term && self.index >= remembered.index
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Promises {
    remembered: BTreeMap<NodeId, Promise>,
    /// Who is set aside, by identity.
    aside: BTreeMap<NodeId, u64>,
}

impl Promises {
    /// Whether what comes from that node counts.
    pub(super) fn trusts(&self, node: NodeId) -> bool {
        !self.aside.contains_key(&node)
    }

    /// The greatest that node was shown to have promised.
    pub(super) fn remembers(&self, node: NodeId) -> Promise {
        self.remembered.get(&node).copied().unwrap_or_default()
    }

    /// A message is about to be handled: its sender can never forget its term.
    pub(super) fn heard(&mut self, message: &Message) {
        let of_nobody = matches!(
            message.body,
            Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true }
        );
        if !of_nobody {
            let remembered = self.remembered.entry(message.from).or_default();
            remembered.term = remembered.term.max(message.term);
        }
    }

    /// A leader knows what its followers hold of what is committed.
    pub(super) fn committed(&mut self, raft: &Raft) {
        for (id, matched) in raft.match_indexes() {
            let held = matched.min(raft.commit_index());
            let remembered = self.remembered.entry(id).or_default();
            remembered.index = remembered.index.max(held);
        }
    }

    /// A connection was made; what the other side has promised, if it is behind that.
    pub(super) fn met(&mut self, node: NodeId, identity: u64, promise: Promise) -> Option<Promise> {
        if self.aside.get(&node).is_some_and(|of| *of != identity) {
            self.aside.remove(&node);
        }
        let remembered = self.remembers(node);
        if promise.holds(remembered) {
            return None;
        }
        self.aside.insert(node, identity).is_none().then_some(remembered)
    }
}

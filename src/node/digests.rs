//! Digests of what replicas have applied, compared at equal indexes.
//!
//! The state machine keeps a rolling digest of every entry and its outcome (`kv::machine`). Each node
//! tells the others its digest at certain indexes, and compares what it is told with its own. Equal
//! logs must give equal outcomes: where two digests differ, a replica has computed something else,
//! which no checksum on disk would show.
//!
//! Left out: what becomes of it. A digest that differs once differs for ever; that a person hears of
//! it is the owner's business.

use super::membership::MEMBERS_MAX;
use crate::raft::{Index, NodeId};
use std::collections::BTreeMap;

/// Indexes of which digests are kept: a member that lags further is compared at its next ones.
const KEPT: usize = 64;

/// What nodes have at one index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The index.
    pub index: Index,
    /// The digest of each node that is known, ascending by node.
    pub digests: Vec<(NodeId, u32)>,
}

impl Difference {
    /// The nodes whose digest most others do not have; all of them when no digest has a majority.
    pub fn odd(&self) -> Vec<NodeId> {
        let with = |digest: u32| self.digests.iter().filter(|d| d.1 == digest).count();
        let most = self.digests.iter().find(|d| 2 * with(d.1) > self.digests.len()).map(|d| d.1);
        self.digests.iter().filter(|d| Some(d.1) != most).map(|d| d.0).collect()
    }
}

/// Nodes of which a digest is kept for an index: all members, and as many that are about to be.
const NODES_MAX: usize = 2 * MEMBERS_MAX;

/// What was heard so far. At most [`KEPT`] indexes, and [`NODES_MAX`] nodes for each.
#[derive(Debug, Default)]
pub(super) struct Digests {
    known: BTreeMap<Index, BTreeMap<NodeId, u32>>,
}

impl Digests {
    /// A node has this digest at this index. The difference that this shows, if any.
    pub(super) fn heard(&mut self, node: NodeId, index: Index, digest: u32) -> Option<Difference> {
        let here = self.known.entry(index).or_default();
        if here.len() >= NODES_MAX && !here.contains_key(&node) {
            return None;
        }
        let news = here.insert(node, digest) != Some(digest);
        let differ = here.values().any(|other| *other != digest);
        let digests = here.iter().map(|(&node, &digest)| (node, digest)).collect();
        while self.known.len() > KEPT {
            self.known.pop_first();
        }
        (news && differ).then_some(Difference { index, digests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_differs_is_named() {
        // Of three nodes one has another digest; before the third is heard nobody knows which.
        let mut digests = Digests::default();
        assert_eq!(digests.heard(1, 64, 7), None);
        let two = digests.heard(3, 64, 9).expect("they differ");
        assert_eq!(two.odd(), [1, 3]);
        assert_eq!(digests.heard(3, 64, 9), None, "it is told once");
        let three = digests.heard(2, 64, 7).expect("they differ still");
        assert_eq!(three.odd(), [3]);
        assert_eq!(three.digests, [(1, 7), (2, 7), (3, 9)]);
    }

    #[test]
    fn a_peer_of_many_names_fills_nothing() {
        let mut digests = Digests::default();
        for node in 1..1000 {
            digests.heard(node, 64, 7);
        }
        assert_eq!(digests.known[&64].len(), NODES_MAX);
        assert!(digests.heard(1, 64, 9).is_some(), "those that are known go on");
    }

    #[test]
    fn only_the_latest_indexes_are_kept() {
        // A node that was away for long tells of indexes that nobody remembers.
        let mut digests = Digests::default();
        (1..=1000).for_each(|index| assert_eq!(digests.heard(1, index, 1), None));
        assert_eq!(digests.known.len(), KEPT);
        assert_eq!(digests.heard(2, 1, 2), None);
        assert!(digests.heard(2, 1000, 2).is_some());
    }
}

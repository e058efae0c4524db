//! Rollback detection: a node whose disk was put back to an earlier state finds that out from its peers.
//!
//! A node's term never goes back, and what it has acknowledged and is committed stays in its log or
//! store. So every node remembers of each peer the greatest term and the greatest committed index that
//! the peer has shown, and says so in its Hello and Welcome. The peer compares this with itself. When
//! it is behind, its disk is an old copy, and what it would vote or acknowledge now it may have
//! promised otherwise: it stops, before anything it sends reaches the node that remembers.
//!
//! Only the node that a record is about judges by it. A record only grows, so one that arrives late
//! says too little and condemns nobody.
//!
//! What a peer remembers from before this process began is compared with the log position of that
//! moment: an old copy may have learned a newer term since. Until a peer has welcomed this process it
//! has heard nothing from it, so whatever it says is of that kind ([`Witness::judge`]).
//!
//! So a peer that has welcomed this process must not be forgotten: what it remembers of this life would count as from
//! before, and stop a healthy node. Those that were removed never come back, and members are few. Of others so many are
//! known; when one more has welcomed this process, whoever is not known to have done so is not believed any more.
//!
//! Left out: remembering across a restart of the node that remembers (docs/operations.md).

use super::NEWCOMERS_MAX;
use crate::raft::{Body, Index, Message, NodeId, Raft, Term};
use crate::wire::handshake::Remembered;
use std::collections::{BTreeMap, BTreeSet};

/// How far a node is. Nothing of it can be taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// Its term.
    pub term: Term,
    /// Last index of its log.
    pub index: Index,
}

impl LogPosition {
    /// How far this node is.
    pub fn of(raft: &Raft) -> LogPosition {
        LogPosition { term: raft.term(), index: raft.last_index() }
    }
}

/// What this node remembers of its peers, each under the identity that it last showed.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<NodeId, Remembered>);

impl Memory {
    /// What a Hello or Welcome to that node says.
    pub(super) fn of(&self, node: NodeId) -> Remembered {
        self.0.get(&node).copied().unwrap_or_default()
    }

    /// The peer has shown its identity. A record of another data directory is void.
    pub(super) fn met(&mut self, node: NodeId, identity: u64) {
        if identity != 0 && self.of(node).identity != identity {
            self.0.insert(node, Remembered { identity, term: 0, index: 0 });
        }
    }

    /// A message arrived: its sender can never forget its term. Pre-votes show a term that is nobody's.
    pub(super) fn heard(&mut self, message: &Message) {
        let of_nobody = matches!(
            message.body,
            Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true }
        );
        if !of_nobody && let Some(known) = self.0.get_mut(&message.from) {
            known.term = known.term.max(message.term);
        }
    }

    /// A leader knows what its followers hold of what is committed.
    pub(super) fn committed(&mut self, raft: &Raft) {
        for (id, matched) in raft.match_indexes() {
            if let Some(known) = self.0.get_mut(&id) {
                known.index = known.index.max(matched.min(raft.commit_index()));
            }
        }
    }

    /// Forgets a node.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// How many nodes something is remembered of.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets all nodes but these.
    pub(super) fn retain(&mut self, stays: impl Fn(NodeId) -> bool) {
        self.0.retain(|id, _| stays(*id));
    }
}

/// This node's own record, to which it holds what others remember.
#[derive(Debug)]
pub(super) struct Witness {
    identity: u64,
    /// How far this node was when the process began.
    began: LogPosition,
    /// Peers that have welcomed this process, and so may remember it: members, and at most [`NEWCOMERS_MAX`] others.
    welcomed_by: BTreeSet<NodeId>,
    /// Others have, too.
    and_others: bool,
}

impl Witness {
    pub(super) fn new(identity: u64, began: LogPosition) -> Witness {
        Witness { identity, began, welcomed_by: BTreeSet::new(), and_others: false }
    }

    /// What `peer` remembers of this node. Gives what this node does not hold any more, if its disk
    /// turns out to be an old copy.
    pub(super) fn judge(
        &self,
        peer: NodeId,
        remembered: &Remembered,
        now: LogPosition,
    ) -> Option<LogPosition> {
        let own = match self.welcomed_by.contains(&peer) {
            true => now,
            false if self.and_others => return None,
            false => self.began,
        };
        let ours = remembered.identity == self.identity;
        let behind = own.term < remembered.term || own.index < remembered.index;
        (ours && behind).then_some(LogPosition { term: remembered.term, index: remembered.index })
    }

    /// A peer has welcomed this process.
    pub(super) fn welcomed(&mut self, peer: NodeId, is_member: impl Fn(NodeId) -> bool) {
        let newcomers = self.welcomed_by.iter().filter(|id| !is_member(**id)).count();
        if is_member(peer) || newcomers < NEWCOMERS_MAX {
            self.welcomed_by.insert(peer);
        } else {
            self.and_others |= !self.welcomed_by.contains(&peer);
        }
    }

    /// Forgets all nodes but these; the others were removed, and are heard no more.
    pub(super) fn retain(&mut self, stays: impl Fn(NodeId) -> bool) {
        self.welcomed_by.retain(|id| stays(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: Term, index: Index) -> LogPosition {
        LogPosition { term, index }
    }

    fn said(term: Term, index: Index) -> Remembered {
        Remembered { identity: 11, term, index }
    }

    /// An old copy learns a newer term from the first peer that reaches it, before the one that
    /// remembers more says so. It must not hide behind that.
    #[test]
    fn what_was_learned_since_the_start_does_not_hide_an_old_copy() {
        let witness = Witness::new(11, at(3, 40));
        assert_eq!(witness.judge(2, &said(5, 40), at(9, 90)), Some(at(5, 40)));
        assert_eq!(witness.judge(2, &said(3, 41), at(9, 90)), Some(at(3, 41)));
        assert_eq!(witness.judge(2, &said(3, 40), at(3, 40)), None);
    }

    /// A peer that has welcomed this process remembers what it did since.
    #[test]
    fn what_this_process_promised_is_compared_with_the_present() {
        let mut witness = Witness::new(11, at(3, 40));
        witness.welcomed(2, |id| id <= 3);
        assert_eq!(witness.judge(2, &said(9, 90), at(9, 90)), None);
        assert_eq!(witness.judge(3, &said(9, 90), at(9, 90)), Some(at(9, 90)), "that one has not");
    }

    /// Who holds the members' secret runs one newcomer after the other, each of which welcomes this process. What is kept
    /// of them is bounded, members find room all the same, and a newcomer that is not known to have welcomed this process
    /// does not stop it by what it remembers of this life.
    #[test]
    fn newcomers_without_end_take_bounded_room_and_stop_nobody() {
        let mut witness = Witness::new(11, at(3, 40));
        let is_member = |id| id <= 3;
        let newcomers = NEWCOMERS_MAX as NodeId;
        for id in 100..100 + newcomers {
            witness.welcomed(id, is_member);
        }
        assert_eq!(witness.judge(2, &said(5, 40), at(9, 90)), Some(at(5, 40)), "all are known");
        for id in 100..10_000 {
            witness.welcomed(id, is_member);
        }
        witness.welcomed(2, is_member);
        assert_eq!(witness.welcomed_by.len(), NEWCOMERS_MAX + 1);
        assert_eq!(witness.judge(9_999, &said(9, 90), at(9, 90)), None);
        assert_eq!(witness.judge(2, &said(9, 91), at(9, 90)), Some(at(9, 91)));
        assert_eq!(witness.judge(100, &said(9, 91), at(9, 90)), Some(at(9, 91)));
        witness.retain(is_member);
        assert_eq!(witness.welcomed_by.len(), 1);
    }

    /// A record about another data directory, or none at all, says nothing about this one.
    #[test]
    fn a_record_of_another_disk_condemns_nobody() {
        let witness = Witness::new(11, at(0, 0));
        let other = Remembered { identity: 12, ..said(5, 5) };
        assert_eq!(witness.judge(2, &other, at(0, 0)), None);
        assert_eq!(witness.judge(2, &Remembered::default(), at(0, 0)), None);
    }
}

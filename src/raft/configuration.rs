//! Who belongs to the cluster and who votes: configurations, and the way from one to the next.
//!
//! Voters change by joint consensus only (paper section 6): the log first gets a configuration in
//! which majorities of the old voters *and* of the new ones are asked, and, once that is committed,
//! the new one alone. One way serves every change, of one voter or of many. What does not touch the
//! voters, learners and addresses, takes one entry.
//!
//! Left out: *when* a change may begin (`membership.rs`), and which changes are wise (the owner of
//! the core).

use super::types::{Index, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Small id, for ever.
    pub id: NodeId,
    /// Random number made with the data directory; zero while it is not known yet.
    pub identity: u64,
    /// `HOST:PORT` where peers and clients reach it: a hint that may change.
    pub address: String,
}

/// Who belongs to the cluster and who votes.
///
/// Invariants ([`Configuration::is_valid`]): `members` is sorted by id without repeats, and no id is
/// above `last_id`; every id in `voters`, `outgoing` and `learners` is in `members`; `learners` is
/// disjoint from both; `voters` is not empty; `replaces` goes from learners to other members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Configuration {
    /// Name of the cluster, made when it was formed.
    pub cluster: u64,
    /// All members, sorted by id.
    pub members: Vec<Member>,
    /// The voters; during joint consensus those of the new configuration (C_new).
    pub voters: BTreeSet<NodeId>,
    /// During joint consensus the voters of the old configuration (C_old), else empty.
    pub outgoing: BTreeSet<NodeId>,
    /// Members that receive the log and do not vote (thesis 4.2.1).
    pub learners: BTreeSet<NodeId>,
    /// Learners that are to take the place of a member as soon as they have caught up.
    pub replaces: BTreeMap<NodeId, NodeId>,
    /// Greatest id that was ever given: none is given twice.
    pub last_id: NodeId,
}

impl Configuration {
    /// A configuration in which every member votes.
    pub fn of_voters(cluster: u64, mut members: Vec<Member>) -> Configuration {
        members.sort_by_key(|m| m.id);
        members.dedup_by_key(|m| m.id);
        let voters = members.iter().map(|m| m.id).collect();
        let last_id = members.last().map_or(0, |m| m.id);
        Configuration { cluster, members, voters, last_id, ..Configuration::default() }
    }

    /// The member of that id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.id == id)
    }

    /// Whether `id` was a member once and is none any more.
    pub fn was_removed(&self, id: NodeId) -> bool {
        (1..=self.last_id).contains(&id) && self.member(id).is_none()
    }

    /// Whether `id` votes, in either half of a joint configuration.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether two majorities are asked at present (paper section 6, C_old,new).
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `has` holds for a majority of each active voter set.
    pub fn majority(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let of = |set: &BTreeSet<NodeId>| {
            set.is_empty() || set.iter().filter(|&&id| has(id)).count() > set.len() / 2
        };
        !self.voters.is_empty() && of(&self.voters) && of(&self.outgoing)
    }

    /// The largest index that a majority of each active voter set has reached.
    pub fn majority_index(&self, reached: impl Fn(NodeId) -> Index) -> Index {
        let of = |set: &BTreeSet<NodeId>| {
            let mut v: Vec<Index> = set.iter().map(|&id| reached(id)).collect();
            v.sort_unstable();
            // With the values ascending, the one at (n-1)/2 is reached by a majority of n.
            v.get(v.len().saturating_sub(1) / 2).copied().unwrap_or(Index::MAX)
        };
        if self.voters.is_empty() { 0 } else { of(&self.voters).min(of(&self.outgoing)) }
    }

    /// Whether the invariants of the type hold.
    pub fn is_valid(&self) -> bool {
        let known = |set: &BTreeSet<NodeId>| set.iter().all(|&id| self.member(id).is_some());
        self.members.is_sorted_by(|a, b| a.id < b.id)
            && self.members.iter().all(|m| (1..=self.last_id).contains(&m.id))
            && [&self.voters, &self.outgoing, &self.learners].into_iter().all(known)
            && !self.voters.is_empty()
            && self.learners.is_disjoint(&self.voters)
            && self.learners.is_disjoint(&self.outgoing)
            && self.replaces.iter().all(|(new, old)| {
                self.learners.contains(new) && new != old && self.member(*old).is_some()
            })
    }

    // ---- changes ----

    /// The same with one more member, a learner; its id is new.
    pub fn with_learner(&self, identity: u64, address: &str) -> Configuration {
        let mut next = self.clone();
        next.last_id += 1;
        next.members.push(Member { id: next.last_id, identity, address: address.to_string() });
        next.learners.insert(next.last_id);
        next
    }

    /// The same in which that learner votes, and whoever it replaces is gone.
    pub fn with_promoted(&self, learner: NodeId) -> Configuration {
        let mut next = self.clone();
        next.learners.remove(&learner);
        next.voters.insert(learner);
        match next.replaces.remove(&learner) {
            Some(old) => next.without(old),
            None => next,
        }
    }

    /// The same without a member.
    pub fn without(&self, id: NodeId) -> Configuration {
        let mut next = self.clone();
        next.members.retain(|m| m.id != id);
        next.voters.remove(&id);
        next.learners.remove(&id);
        next.replaces.retain(|&new, &mut old| new != id && old != id);
        next
    }

    /// What stands between `self`, in force, and `target`: both sets of voters decide (C_old,new).
    pub(super) fn joint_to(&self, target: &Configuration) -> Configuration {
        let mut joint = target.clone();
        joint.outgoing.clone_from(&self.voters);
        joint
            .members
            .extend(self.members.iter().filter(|m| target.member(m.id).is_none()).cloned());
        joint.members.sort_by_key(|m| m.id);
        joint
    }

    /// The configuration that a joint one leads to (C_new): who neither votes nor learns is gone.
    pub(super) fn after_joint(&self) -> Configuration {
        let mut next = Configuration { outgoing: BTreeSet::new(), ..self.clone() };
        next.members.retain(|m| self.voters.contains(&m.id) || self.learners.contains(&m.id));
        next.replaces.retain(|_, old| next.members.iter().any(|m| m.id == *old));
        next
    }

    /// Whether no decision of one can pass by the other: some set of voters of each, of which a
    /// majority is needed, cannot have majorities without a common node.
    pub(super) fn overlaps(&self, other: &Configuration) -> bool {
        fn sets(c: &Configuration) -> impl Iterator<Item = &BTreeSet<NodeId>> {
            [&c.voters, &c.outgoing].into_iter().filter(|set| !set.is_empty())
        }
        sets(self).any(|a| {
            sets(other).any(|b| {
                let common = a.intersection(b).count();
                let needs =
                    |set: &BTreeSet<NodeId>| (set.len() / 2 + 1).saturating_sub(set.len() - common);
                needs(a) + needs(b) > common
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ids: std::ops::RangeInclusive<u64>) -> Configuration {
        let member = |id| Member { id, identity: id, address: format!("host:{id}") };
        Configuration::of_voters(1, ids.map(member).collect())
    }

    /// A node is replaced: it is joint with old and new voters, and then the old one is gone. Its id
    /// is never given again.
    #[test]
    fn a_member_is_replaced_in_one_joint_step() {
        let now = of(1..=3);
        let mut next = now.with_learner(44, "host:4");
        assert!(next.is_valid() && next.learners == BTreeSet::from([4]));
        next.replaces.insert(4, 2);
        assert!(next.is_valid());
        let target = next.with_promoted(4);
        assert_eq!(target.voters, BTreeSet::from([1, 3, 4]));
        let joint = next.joint_to(&target);
        assert!(joint.is_valid() && joint.is_joint() && joint.members.len() == 4);
        assert!(joint.overlaps(&now) && joint.overlaps(&joint.after_joint()));
        let after = joint.after_joint();
        assert_eq!(after, target);
        assert!(after.was_removed(2) && !after.was_removed(4) && !after.was_removed(5));
        assert_eq!(after.without(4).with_learner(0, "x").last_id, 5);
    }

    /// Which pairs of configurations can decide past one another, told by trying every subset.
    #[test]
    fn configurations_overlap_when_no_two_majorities_are_apart() {
        let universe = 5_u32;
        let configuration = |bits: u32| {
            let ids = (0..universe).filter(|i| bits & (1 << i) != 0).map(|i| i + 1);
            let voters: BTreeSet<NodeId> = ids.map(u64::from).collect();
            Configuration { voters, ..Configuration::default() }
        };
        let quorum = |c: &Configuration, bits: u32| c.majority(|id| bits & (1 << (id - 1)) != 0);
        for a in 1..1 << universe {
            for b in 1..1 << universe {
                let (x, y) = (configuration(a), configuration(b));
                let everyone = (1_u32 << universe) - 1;
                let apart = (0..=everyone).any(|s| quorum(&x, s) && quorum(&y, everyone & !s));
                assert_eq!(x.overlaps(&y), !apart, "{a:b} {b:b}");
            }
        }
        // The way of the paper is safe even from one set of voters to another that shares none.
        let (now, target) = (of(1..=2), of(3..=5));
        assert!(!now.overlaps(&target));
        let joint = now.joint_to(&target);
        assert!(now.overlaps(&joint) && joint.overlaps(&target));
    }
}

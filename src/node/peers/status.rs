//! Classifies a peer as member, impostor, newer than us, or removed.
//!
//! The configurations in the log decide, of which only the first is known to be committed. Those
//! behind it may be undone, and what they undo may come back. A verdict that stops a node for good, or
//! lets one disk take the place of another, has to be right in either case.

use crate::raft::{Configuration, NodeId, Raft};
use std::sync::Arc;

/// The latest configuration that is known to be committed, and the later ones in the log. There is
/// always one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationHistory(Vec<Arc<Configuration>>);

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerStatus {
    /// A member, or it may be: no other data directory is known for good under its id.
    Member,
    /// Another data directory is known for good under its id. What the peer promises, the member may
    /// have promised otherwise.
    Impostor,
    /// Its id is above all ids that are known to be given, so it joined since. It may lead, and a node
    /// that is behind catches up only by talking to it.
    Newer,
    /// Its removal is committed. It may be told so.
    Removed,
}

impl ConfigurationHistory {
    /// Those of a node.
    pub fn of(raft: &Raft) -> ConfigurationHistory {
        let all = raft.open_configurations();
        ConfigurationHistory(
            all.iter().map(|(_, configuration)| Arc::clone(configuration)).collect(),
        )
    }

    /// A committed one that is in force.
    #[cfg(test)]
    pub fn settled(configuration: Arc<Configuration>) -> ConfigurationHistory {
        ConfigurationHistory(vec![configuration])
    }

    /// All of them, ascending.
    pub(super) fn all(&self) -> &[Arc<Configuration>] {
        &self.0
    }

    /// The one in force.
    pub fn in_force(&self) -> &Arc<Configuration> {
        &self.0[self.0.len() - 1]
    }

    /// The latest that is known to be committed.
    pub fn committed(&self) -> &Arc<Configuration> {
        &self.0[0]
    }

    /// The identity that is known under an id; 0 when none is. An entry that may yet be undone does not
    /// say to whom an id was given. But of a member from before, whose identity was not known, it does:
    /// a node that has just started knows of nothing that it is committed, and must not take an empty
    /// disk for the one that has voted.
    pub fn identity_of(&self, id: NodeId) -> u64 {
        if self.committed().member(id).is_none() {
            return 0;
        }
        let mut identities = self.0.iter().filter_map(|c| Some(c.member(id)?.identity));
        identities.find(|identity| *identity != 0).unwrap_or(0)
    }

    /// What node `id` of that identity is. Nothing but what is committed removes a node, or gives its
    /// id to somebody else: an entry of a leader that was overtaken may say so.
    pub fn status(&self, id: NodeId, identity: u64) -> PeerStatus {
        let fits = |known: u64| known == 0 || known == identity;
        if self.committed().member(id).is_some() {
            if fits(self.identity_of(id)) { PeerStatus::Member } else { PeerStatus::Impostor }
        } else if self.in_force().member(id).is_some_and(|m| fits(m.identity)) {
            PeerStatus::Member
        } else if id > self.committed().last_id {
            PeerStatus::Newer
        } else {
            PeerStatus::Removed
        }
    }

    /// Whether it is news that `id` is a member at `address`: it was taken in, or has moved, since.
    pub fn is_news(&self, id: NodeId, address: &str) -> bool {
        match self.in_force().member(id).or(self.committed().member(id)) {
            Some(member) => member.address != address,
            None => id > self.committed().last_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;

    fn identity(id: NodeId) -> u64 {
        100 + id
    }

    fn member(id: NodeId, identity: u64) -> Member {
        Member { id, identity, address: format!("host:{id}") }
    }

    /// Members 1 to 3, known by their disks.
    fn three() -> Configuration {
        Configuration::of_voters(7, (1..=3).map(|id| member(id, identity(id))).collect())
    }

    fn those<const N: usize>(all: [&Configuration; N]) -> ConfigurationHistory {
        ConfigurationHistory(all.map(|c| Arc::new(c.clone())).to_vec())
    }

    /// An entry that may yet be undone removes nobody, and gives nobody's id away. (Seed 12946: a node
    /// that was overtaken as leader had given the id of the next leader to somebody else in an entry
    /// that was never committed, and would not listen to it.)
    #[test]
    fn only_what_is_committed_is_held_against_a_node() {
        let all = three();
        let without = all.without(2);
        assert_eq!(those([&all, &without]).status(2, identity(2)), PeerStatus::Member);
        assert_eq!(those([&without]).status(2, identity(2)), PeerStatus::Removed);
        let now = those([&all]);
        assert_eq!(now.status(3, identity(3)), PeerStatus::Member);
        assert_eq!(now.status(3, 5), PeerStatus::Impostor);
        assert_eq!(now.status(4, 5), PeerStatus::Newer, "it may lead, and this node be far behind");
        let given = all.with_learner(6, "host:4");
        let open = those([&all, &given]);
        assert_eq!(open.status(4, 5), PeerStatus::Newer, "it may be another one's yet");
        assert_eq!(open.status(4, 6), PeerStatus::Member);
        assert_eq!(open.identity_of(4), 0);
        assert_eq!(those([&given]).status(4, 5), PeerStatus::Impostor);
        let unbound = those([&all.with_learner(0, "host:4")]);
        assert_eq!(unbound.status(4, 5), PeerStatus::Member, "nobody is known under it yet");
    }

    /// After a power failure nobody knows what is committed until somebody leads. The disk of node 2
    /// was exchanged meanwhile: whose log holds the binding of the one before does not let it in, nor
    /// takes it for the one that it wants to reach. (Seed 21186: it voted under the id of the disk that
    /// was gone.) Nor when node 2 was removed since: that may be undone. (5132)
    #[test]
    fn a_wiped_disk_is_noticed_before_anything_is_known_to_be_committed() {
        let first = Configuration::of_voters(7, (1..=3).map(|id| member(id, 0)).collect());
        let bound = three();
        for open in [those([&first, &bound]), those([&first, &bound, &bound.without(2)])] {
            assert_eq!(open.status(2, 5), PeerStatus::Impostor);
            assert_eq!(open.status(2, identity(2)), PeerStatus::Member);
            assert_eq!(open.identity_of(2), identity(2));
        }
        let beginning = those([&first]);
        assert_eq!(beginning.status(2, 5), PeerStatus::Member, "nobody is known");
        assert_eq!(beginning.identity_of(2), 0);
    }

    /// Where others say that a node is counts when it is not known, or not there; who was removed is no
    /// news. (Seed 26465: a node that had moved while it was cut off never found a leader that had been
    /// taken in meanwhile, nor that one the node.)
    #[test]
    fn members_that_were_taken_in_or_moved_are_news() {
        let all = three();
        let now = those([&all]);
        assert!(!now.is_news(2, "host:2"));
        assert!(now.is_news(2, "elsewhere:2"));
        assert!(now.is_news(4, "host:4"));
        let without = all.without(2);
        assert!(!those([&without]).is_news(2, "host:2"), "it was removed");
        assert!(!those([&all, &without]).is_news(2, "host:2"), "it is there, if that is undone");
    }
}

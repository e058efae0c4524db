//! How things are at one node, and how that is put into words for clients.

use crate::raft::{Configuration, Index, Member, NodeId, PeerProgress, RoleName, Term};
use crate::wire::client::{MemberInfo, MemberRole, Members};
use std::sync::Arc;

/// What a node knows of itself and, when it leads, of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// Its role.
    pub role: RoleName,
    /// Its store is damaged, and is to be replaced by a snapshot.
    pub repairing: bool,
    /// Its store is damaged, and it is the only member: it serves what is whole.
    pub hurt: bool,
    /// It leads, has committed in its term and so knows everything that is committed.
    pub leads_and_knows: bool,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Its commit index.
    pub commit: Index,
    /// Its applied index.
    pub applied: Index,
    /// Last index of its log.
    pub last_index: Index,
    /// The configuration in force.
    pub configuration: Arc<Configuration>,
    /// On a leader: what it knows of its followers.
    pub peers: Vec<PeerProgress>,
}

impl Status {
    /// The members as this node knows them.
    #[must_use]
    pub fn members(&self) -> Members {
        let of = |m: &Member| MemberInfo {
            id: m.id,
            address: m.address.clone(),
            role: self.role_of(m.id),
            voter: self.configuration.is_voter(m.id),
            replaces: self.configuration.replaces.get(&m.id).copied(),
        };
        Members { members: self.configuration.members.iter().map(of).collect() }
    }

    fn role_of(&self, id: NodeId) -> MemberRole {
        if self.leader == Some(id) {
            MemberRole::Leader
        } else if self.configuration.is_voter(id) {
            MemberRole::Follower
        } else {
            MemberRole::Learner
        }
    }

    /// What this node is to itself. One that campaigns follows nobody, and votes all the same.
    #[must_use]
    pub fn own_role(&self) -> MemberRole {
        match self.role {
            RoleName::Leader => MemberRole::Leader,
            _ if self.configuration.is_voter(self.id) => MemberRole::Follower,
            _ => MemberRole::Learner,
        }
    }

    /// What it does now, in a few words. `fetches` says how far a snapshot is that it fetches.
    #[must_use]
    pub fn words(&self, disk_full: bool, fetches: Option<String>) -> String {
        let state = match (self.role, self.leader) {
            _ if self.repairing => "repairing its store",
            _ if self.hurt => "serving what is whole of a damaged store",
            _ if disk_full => "disk full",
            (RoleName::Leader, _) if self.leads_and_knows => "serving",
            (RoleName::Leader, _) => "taking over",
            (RoleName::Follower, Some(_)) => "following",
            _ => "no leader known",
        };
        fetches.map_or(state.to_string(), |fetches| format!("{state}, {fetches}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: RoleName, leader: Option<NodeId>) -> Status {
        let member = |id| Member { id, identity: id, address: format!("host:{id}") };
        let mut configuration = Configuration::of_voters(7, vec![member(1), member(2)]);
        configuration.members.push(member(3));
        configuration.learners.insert(3);
        configuration.replaces.insert(3, 2);
        Status {
            id: 1,
            role,
            repairing: false,
            hurt: false,
            leads_and_knows: false,
            leader,
            term: 4,
            commit: 3,
            applied: 2,
            last_index: 5,
            configuration: Arc::new(configuration),
            peers: Vec::new(),
        }
    }

    #[test]
    fn members_have_the_roles_that_the_node_knows_of() {
        let members = status(RoleName::Follower, Some(2)).members().members;
        let roles: Vec<_> = members.iter().map(|m| (m.id, m.role, m.voter, m.replaces)).collect();
        use MemberRole::{Follower, Leader, Learner};
        assert_eq!(
            roles,
            [(1, Follower, true, None), (2, Leader, true, None), (3, Learner, false, Some(2))]
        );
        let own = |role, id| Status { id, ..status(role, None) }.own_role();
        assert_eq!(own(RoleName::Leader, 1), Leader);
        assert_eq!(own(RoleName::Follower, 1), Follower);
        assert_eq!(own(RoleName::Follower, 3), Learner);
    }

    #[test]
    fn the_state_names_what_matters_most() {
        let leader = status(RoleName::Leader, Some(1));
        assert_eq!(leader.words(false, None), "taking over");
        let serves = Status { leads_and_knows: true, ..leader };
        assert_eq!(serves.words(false, None), "serving");
        assert_eq!(serves.words(true, None), "disk full");
        let fetches = || Some("fetching a snapshot".to_string());
        let repairs = Status { repairing: true, ..serves };
        assert_eq!(repairs.words(true, fetches()), "repairing its store, fetching a snapshot");
        assert_eq!(status(RoleName::Follower, Some(2)).words(false, None), "following");
        assert_eq!(status(RoleName::Follower, None).words(false, None), "no leader known");
    }
}

//! Changes of the members in words: what is asked for, and why it is refused.

use crate::raft::{Configuration, NodeId, NotProposed};
use crate::wire::ADDRESS_BYTES_MAX;
pub use crate::wire::client::Change;
use crate::wire::client::Class;
use crate::wire::handshake::{Reject, RejectCode};
use std::fmt;

/// Why the members are not changed. Nothing was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeRefused {
    /// The only member's store is damaged: it could not be given to another one.
    Damaged,
    /// The core does not take it now.
    NotProposed(NotProposed),
    /// There is no member of that id, and never was.
    NoMember {
        /// The id.
        id: NodeId,
    },
    /// The member was removed before.
    WasRemoved {
        /// The id.
        id: NodeId,
    },
    /// A member is reached there already.
    AddressTaken {
        /// The member.
        id: NodeId,
        /// The address.
        address: String,
        /// It is a node of another data directory that asks; where the leader is reached then.
        asked_at: Option<String>,
    },
    /// The node that answers there is a member already, under another address.
    SameNode {
        /// The member.
        id: NodeId,
        /// Where it answered.
        address: String,
        /// Its address as a member.
        known_as: String,
    },
    /// A node of another cluster answers there.
    ForeignNode {
        /// Where it answered.
        address: String,
        /// What it said.
        said: String,
    },
    /// The node that is to replace a member votes already.
    ReplacedByVoter {
        /// The member.
        old: NodeId,
        /// The voter.
        id: NodeId,
    },
    /// The learner is to replace another member.
    Replaces {
        /// The learner.
        id: NodeId,
        /// That member.
        old: NodeId,
    },
    /// With the learner's vote too few of the voters could be reached.
    NeedsMore {
        /// The learner.
        id: NodeId,
        /// Voters that there would be.
        voters: usize,
        /// How many of them are reachable.
        reachable: usize,
    },
    /// It votes already.
    Votes {
        /// The id.
        id: NodeId,
    },
    /// Nobody would be left to vote.
    OnlyVoter {
        /// The id.
        id: NodeId,
    },
    /// Of the voters that would be left too few are reachable.
    LosesQuorum {
        /// The member that would go.
        id: NodeId,
        /// Voters that would be left.
        left: usize,
        /// How many of them are reachable.
        reachable: usize,
    },
    /// The learner has not caught up.
    Behind {
        /// The learner.
        id: NodeId,
        /// Entries that it lacks; none when it cannot be reached.
        entries: Option<u64>,
    },
    /// Another node is to replace that member.
    BeingReplaced {
        /// The member.
        id: NodeId,
        /// The learner that replaces it.
        by: NodeId,
    },
    /// The member that is to be replaced at its own address answers: its disk is not lost.
    Answers {
        /// The member.
        id: NodeId,
    },
    /// There are as many members as there may be.
    TooMany {
        /// The bound.
        members_max: usize,
    },
    /// It leads: leadership is being handed over first.
    HandsOver {
        /// To whom.
        to: NodeId,
    },
    /// Another leader was elected before it was committed, and its log does without.
    Overwritten,
    /// It was begun and not completed in time: it may yet be.
    Unknown,
    /// The leader was asked, through a follower, and has not answered: it may be done.
    NoAnswer,
    /// The leader refused what was asked through a follower.
    Declined {
        /// It may be asked again; else it cannot be done as it was asked.
        again: bool,
        /// The leader's reason.
        why: String,
    },
}

impl fmt::Display for ChangeRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeRefused::NotProposed(why) => why.fmt(f),
            ChangeRefused::Damaged => f.write_str(
                "the store of this only member is damaged and could not be given to another one; begin a new \
                 cluster from a backup (`kontiki serve --restore FILE`)",
            ),
            ChangeRefused::NoMember { id } => {
                write!(f, "there is no member {id}; `members` lists them")
            }
            ChangeRefused::WasRemoved { id } => {
                write!(f, "member {id} was removed before; ids are never given again")
            }
            ChangeRefused::AddressTaken { id, address, asked_at: None } => {
                write!(f, "{address} is the address of member {id} already")
            }
            ChangeRefused::AddressTaken { id, address, asked_at: Some(at) } => write!(
                f,
                "{address} is the address of member {id}, whose data directory is another one; if \
                 that is lost for ever, run: kontiki cli -a {at} member replace {id} {address}"
            ),
            ChangeRefused::SameNode { id, address, known_as } => write!(
                f,
                "{address} is member {id}, which the cluster reaches at {known_as}: one node is one member, \
                 whatever names it has; give the address of another node"
            ),
            ChangeRefused::ForeignNode { address, said } => write!(
                f,
                "the node at {address} holds data of another cluster ({said}); start it with an empty \
                 --data and with --join"
            ),
            ChangeRefused::ReplacedByVoter { old, id } => write!(
                f,
                "member {id} is there and votes already: it takes nobody's place. To let member {old} go \
                 run: member remove {old}"
            ),
            ChangeRefused::Replaces { id, old } => {
                write!(
                    f,
                    "member {id} is to replace member {old} already; give the new node another address"
                )
            }
            ChangeRefused::NeedsMore { id, voters, reachable } => write!(
                f,
                "with member {id} the cluster would have {voters} voters, of which {reachable} can be \
                 reached: less than a majority, and nothing would be served; bring the others back first"
            ),
            ChangeRefused::Votes { id } => write!(f, "member {id} votes already"),
            ChangeRefused::OnlyVoter { id } => {
                write!(f, "member {id} is the only one that votes: nobody would be left to serve")
            }
            ChangeRefused::LosesQuorum { id, left, reachable } => write!(
                f,
                "without member {id} the cluster would have {left} voters, of which {reachable} can \
                 be reached: less than a majority, and nothing would be served; bring the others \
                 back or replace them first, or add --force if you know that they come back"
            ),
            ChangeRefused::Behind { id, entries: Some(entries) } => write!(
                f,
                "member {id} lacks {entries} log entries; it votes by itself once it has caught up. \
                 With --force it votes now, and until it has caught up writes may have to wait for it"
            ),
            ChangeRefused::Behind { id, entries: None } => write!(
                f,
                "member {id} cannot be reached; it votes by itself once it is there and has caught up"
            ),
            ChangeRefused::BeingReplaced { id, by } => write!(
                f,
                "member {id} is being replaced by node {by}; remove that one first to change your mind"
            ),
            ChangeRefused::Answers { id } => write!(
                f,
                "member {id} answers at that address: its disk is not lost; give the new node an \
                 address of its own"
            ),
            ChangeRefused::TooMany { members_max } => {
                write!(f, "a cluster has {members_max} members at most")
            }
            ChangeRefused::HandsOver { to } => {
                write!(f, "it leads, and hands leadership to node {to} first; ask again")
            }
            ChangeRefused::Overwritten => {
                f.write_str("the leader changed before it was replicated; ask again")
            }
            ChangeRefused::Unknown => f.write_str(
                "it was begun and not completed in time; `members` shows what became of it",
            ),
            ChangeRefused::NoAnswer => f.write_str(
                "the leader was asked and has not answered: it may be done or not; `status` and \
                 `members` show it",
            ),
            ChangeRefused::Declined { why, .. } => f.write_str(why),
        }
    }
}

impl ChangeRefused {
    /// What a client may conclude from it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            // What cannot be done as it was asked is not asked again, here or elsewhere.
            ChangeRefused::NotProposed(
                NotProposed::NoSuccessor
                | NotProposed::NoVoter { .. }
                | NotProposed::Unreachable { .. },
            ) => Class::Invalid,
            ChangeRefused::NotProposed(
                NotProposed::NotLeader { .. }
                | NotProposed::Transferring
                | NotProposed::ChangeOpen
                | NotProposed::TooEarly,
            )
            | ChangeRefused::HandsOver { .. }
            | ChangeRefused::Overwritten
            | ChangeRefused::Declined { again: true, .. } => Class::Unavailable,
            ChangeRefused::Unknown | ChangeRefused::NoAnswer => Class::Unknown,
            _ => Class::Invalid,
        }
    }

    /// What the leader says to a follower, in the follower's words.
    #[must_use]
    pub fn declined(class: Class, why: String) -> ChangeRefused {
        match class {
            Class::Unknown => ChangeRefused::NoAnswer,
            Class::Busy | Class::Unavailable => ChangeRefused::Declined { again: true, why },
            _ => ChangeRefused::Declined { again: false, why },
        }
    }
}

impl From<NotProposed> for ChangeRefused {
    fn from(why: NotProposed) -> ChangeRefused {
        ChangeRefused::NotProposed(why)
    }
}

/// Who answers at an address that a person has named for a new member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// A node of this cluster.
    Node(NodeId),
    /// A node that rejects whoever is of this cluster, and what it says.
    Foreign(String),
}

impl Answerer {
    /// Of a rejection; none when it says nothing of whose node it is.
    #[must_use]
    pub fn of_reject(reject: Reject) -> Option<Answerer> {
        let foreign = reject.code == RejectCode::ForeignCluster;
        foreign.then_some(Answerer::Foreign(reject.message))
    }
}

impl Change {
    /// Whether it takes a node in that asks for itself, or for which somebody asks.
    #[must_use]
    pub fn joins(&self) -> bool {
        matches!(self, Change::Join { .. })
    }

    /// Whether a node joins by it that was none before.
    #[must_use]
    pub fn adds(&self) -> bool {
        matches!(self, Change::Join { .. } | Change::Replace { .. })
    }

    /// Whether the address that it names can be one.
    ///
    /// # Errors
    /// It is not of the form `HOST:PORT`, or too long.
    pub fn check_address(&self) -> Result<(), String> {
        let (Change::Join { address, .. } | Change::Replace { address, .. }) = self else {
            return Ok(());
        };
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|&port| port > 0);
        if port.is_none() || address.len() > ADDRESS_BYTES_MAX {
            return Err(format!("'{address}' is not of the form HOST:PORT"));
        }
        Ok(())
    }

    /// Where the new node is reached, if a person has named the address of one: whoever asks for itself
    /// (`Join` with an identity) is who it is.
    #[must_use]
    pub fn address_to_look_at(&self) -> Option<&str> {
        match self {
            Change::Join { address, identity: 0 } | Change::Replace { address, .. } => {
                Some(address)
            }
            _ => None,
        }
    }

    /// Whether the change may be asked of the leader, after what has answered at its address: two names
    /// of one machine are not two members.
    ///
    /// # Errors
    /// The node there is a member already under another address, or belongs to another cluster.
    pub fn check_answerer(
        &self,
        answerer: Answerer,
        configuration: &Configuration,
    ) -> Result<(), ChangeRefused> {
        let Some(address) = self.address_to_look_at() else { return Ok(()) };
        let address = address.to_string();
        match answerer {
            Answerer::Foreign(said) => Err(ChangeRefused::ForeignNode { address, said }),
            Answerer::Node(id) => match configuration.member(id) {
                // The leader says what becomes of an address that is a member's.
                Some(member) if member.address != address => {
                    let known_as = member.address.clone();
                    Err(ChangeRefused::SameNode { id, address, known_as })
                }
                _ => Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;

    /// A person names a node that is a member already, by its other name.
    #[test]
    fn one_node_under_two_names_is_not_taken_for_two_members() {
        let member = |id| Member { id, identity: 10 + id, address: format!("10.0.0.{id}:2380") };
        let now = Configuration::of_voters(7, (1..=3).map(member).collect());
        let address = "localhost:2380".to_string();
        let known_as = "10.0.0.2:2380".to_string();
        let refused = ChangeRefused::SameNode { id: 2, address: address.clone(), known_as };
        let join = Change::Join { address: address.clone(), identity: 0 };
        let replace = Change::Replace { old: 1, address: address.clone() };
        for change in [&join, &replace] {
            assert_eq!(change.check_answerer(Answerer::Node(2), &now), Err(refused.clone()));
            // A node that is to come, and one that is found where the cluster reaches it.
            assert_eq!(change.check_answerer(Answerer::Node(4), &now), Ok(()));
            let foreign = change.check_answerer(Answerer::Foreign("no".to_string()), &now);
            let said = "no".to_string();
            let address = address.clone();
            assert_eq!(foreign, Err(ChangeRefused::ForeignNode { address, said }));
        }
        let known = Change::Join { address: "10.0.0.2:2380".to_string(), identity: 0 };
        assert_eq!(known.check_answerer(Answerer::Node(2), &now), Ok(()));
        // A node that asks for itself has shown who it is.
        let itself = Change::Join { address, identity: 5 };
        assert_eq!(itself.check_answerer(Answerer::Node(2), &now), Ok(()));
    }
}

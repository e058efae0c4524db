//! Who belongs to the cluster and who leads: asking, and changing it.

use super::{Client, Error};
use crate::wire::client::{Answer, Call, Change, Class, Joined, MemberInfo};

impl Client {
    /// Who belongs to the cluster, as the connected node knows it. Their addresses are remembered.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn members(&mut self) -> Result<Vec<MemberInfo>, Error> {
        match self.ask(Call::Members)? {
            Answer::Members(members) => Ok(members.members),
            _ => Err(self.unexpected(Class::Unavailable, "to a question for the members")),
        }
    }

    /// Hands leadership to a member, or to the one the leader chooses.
    ///
    /// # Errors
    /// Class `Unknown` when it may have happened.
    pub fn transfer(&mut self, to: Option<u64>) -> Result<(), Error> {
        match self.ask(Call::Transfer { to })? {
            Answer::Ok => Ok(()),
            _ => Err(self.unexpected(Class::Unknown, "to a transfer")),
        }
    }

    /// Asks the cluster to take in the node at `address`, whose identity this is, or 0 when somebody
    /// else asks for it. Asking again is harmless.
    ///
    /// # Errors
    /// Class `Invalid` when it is refused for good; any other.
    pub fn join(&mut self, address: &str, identity: u64) -> Result<Joined, Error> {
        match self.ask(Call::Change(Change::Join { address: address.to_string(), identity }))? {
            Answer::Joined(joined) => Ok(joined),
            _ => Err(self.unexpected(Class::Unknown, "to a join")),
        }
    }

    /// Changes the members in one of the other ways; the member that it was about.
    ///
    /// # Errors
    /// Class `Unknown` when it may have happened, or may yet.
    pub fn change_members(&mut self, change: Change) -> Result<u64, Error> {
        match self.ask(Call::Change(change))? {
            Answer::Changed { id } => Ok(id),
            _ => Err(self.unexpected(Class::Unknown, "to a change of the members")),
        }
    }
}

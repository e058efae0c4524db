//! Who belongs to the cluster and who leads: asking, and changing it.

use super::{Client, Error, LEARNED_MAX, MEMBERS_EVERY, MEMBERS_WAIT, exchange};
use crate::wire::client::{Answer, Call, Class, Joined, MemberInfo, Request};
use std::time::Instant;

impl Client {
    /// Who belongs to the cluster, as the connected node knows it. Their addresses are remembered.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn members(&mut self) -> Result<Vec<MemberInfo>, Error> {
        match self.ask(Call::Members, true)? {
            Answer::Members(members) => {
                self.learn(&members.members);
                Ok(members.members)
            }
            _ => Err(self.unexpected(Class::Unavailable, "to a question for the members")),
        }
    }

    /// Hands leadership to a member, or to the one the leader chooses.
    ///
    /// # Errors
    /// Class `Unknown` when it may have happened.
    pub fn transfer(&mut self, to: Option<u64>) -> Result<(), Error> {
        match self.ask(Call::Transfer { to }, false)? {
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
        match self.ask(Call::Join { address: address.to_string(), identity }, true)? {
            Answer::Joined(joined) => Ok(joined),
            _ => Err(self.unexpected(Class::Unknown, "to a join")),
        }
    }

    /// Changes the members by one of the other calls for that; the member that it was about.
    ///
    /// # Errors
    /// Class `Unknown` when it may have happened, or may yet.
    pub fn change_members(&mut self, call: Call) -> Result<u64, Error> {
        match self.ask(call, false)? {
            Answer::Changed { id } => Ok(id),
            _ => Err(self.unexpected(Class::Unknown, "to a change of the members")),
        }
    }

    /// Asks for the members if that was long ago. Nothing may be open on the connection.
    pub(super) fn refresh_members(&mut self, until: Instant) {
        let since = self.members_at.get_or_insert_with(Instant::now);
        if since.elapsed() >= MEMBERS_EVERY {
            self.ask_members(until);
        }
    }

    /// Asks for the members in passing; an answer that does not come costs the connection.
    pub(super) fn ask_members(&mut self, until: Instant) {
        let Some(connection) = &mut self.connection else { return };
        let now = Instant::now();
        self.members_at = Some(now);
        let mut request = Request { id: 0, deadline_ms: 0, call: Call::Members };
        match exchange(connection, &mut request, until.min(now + MEMBERS_WAIT)) {
            Ok(Ok(Answer::Members(members))) => self.learn(&members.members),
            Ok(_) => {}
            Err(_) => self.connection = None,
        }
    }

    /// Those that are members are known from now on, and beside them those that were given.
    fn learn(&mut self, members: &[MemberInfo]) {
        let all = members.iter().map(|m| m.address.clone()).filter(|a| !a.is_empty());
        self.learned = all.take(LEARNED_MAX).collect();
    }
}

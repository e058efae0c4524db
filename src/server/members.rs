//! Changes of the members, as clients ask for them: what can be said without the leader, and the
//! answers in words of the wire.

use super::Shared;
use super::connection::failure;
use super::native::class_of;
use crate::client::{Cause, Connection, Error};
use crate::node::{Admin, Answerer, Change, ChangeRefused};
use crate::raft::NodeId;
use crate::wire::ADDRESS_BYTES_MAX;
use crate::wire::client::{Answer as Reply, Call, Class, Failure, Joined};
use std::time::Duration;

/// How long a new node may take to say who it is, when somebody else asks to take it in. One that is
/// not there yet is no reason to refuse.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// The change that a call asks for.
///
/// # Errors
/// The address is none, or the node that answers there is a member already or of another cluster.
pub(super) fn change_of(shared: &Shared, call: Call) -> Result<Change, Failure> {
    let invalid = |why: String| failure(Class::Invalid, why);
    let Admin::Change(change) = admin_of(call).map_err(invalid)? else {
        return Err(invalid("no change of the members".to_string()));
    };
    if let Some(address) = change.address_to_look_at()
        && let Some(answerer) = answerer(shared, address)
    {
        let checked = change.check_answerer(answerer, &shared.configuration());
        checked.map_err(|why| failure(class_of_refusal(&why), why.to_string()))?;
    }
    Ok(change)
}

/// What a call asks of the leader, also one that a follower passes on.
///
/// # Errors
/// It is nothing of that kind, or its address is none.
pub(super) fn admin_of(call: Call) -> Result<Admin, String> {
    let admin = match call {
        Call::Transfer { to } => Admin::Transfer(to),
        Call::Promote { id, force } => Admin::Change(Change::Promote { id, force }),
        Call::Remove { id, force } => Admin::Change(Change::Remove { id, force }),
        Call::Replace { old, address } => Admin::Change(Change::Replace { old, address }),
        Call::Join { address, identity } => Admin::Change(Change::Join { address, identity }),
        _ => return Err("no change of the members".to_string()),
    };
    if let Admin::Change(Change::Join { address, .. } | Change::Replace { address, .. }) = &admin {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|&port| port > 0);
        if port.is_none() || address.len() > ADDRESS_BYTES_MAX {
            return Err(format!("'{address}' is not of the form HOST:PORT"));
        }
    }
    Ok(admin)
}

/// The call that asks for it.
pub(super) fn call_of(admin: Admin) -> Call {
    match admin {
        Admin::Transfer(to) => Call::Transfer { to },
        Admin::Change(Change::Promote { id, force }) => Call::Promote { id, force },
        Admin::Change(Change::Remove { id, force }) => Call::Remove { id, force },
        Admin::Change(Change::Replace { old, address }) => Call::Replace { old, address },
        Admin::Change(Change::Join { address, identity }) => Call::Join { address, identity },
    }
}

/// What may be concluded from a refusal.
pub(super) fn class_of_refusal(why: &ChangeRefused) -> Class {
    match why {
        ChangeRefused::NotProposed(why) => class_of(*why),
        ChangeRefused::HandsOver { .. }
        | ChangeRefused::Overwritten
        | ChangeRefused::Declined { again: true, .. } => Class::Unavailable,
        ChangeRefused::Unknown | ChangeRefused::NoAnswer => Class::Unknown,
        _ => Class::Invalid,
    }
}

/// What the leader says to a follower, in the follower's words.
pub(super) fn refusal_of(class: Class, why: String) -> ChangeRefused {
    match class {
        Class::Unknown => ChangeRefused::NoAnswer,
        Class::Busy | Class::Unavailable => ChangeRefused::Declined { again: true, why },
        _ => ChangeRefused::Declined { again: false, why },
    }
}

/// Who answers there, if anybody does at once.
fn answerer(shared: &Shared, address: &str) -> Option<Answerer> {
    match Connection::dial(address, &shared.token, shared.cluster, LOOK_TIMEOUT) {
        Ok(connection) => Some(Answerer::Node(connection.welcome().node)),
        Err(Error { cause: Cause::Rejected(reject), .. }) => Answerer::of_reject(reject),
        Err(_) => None,
    }
}

/// What the client is told, once the replica has answered.
pub(super) fn reply_of(
    shared: &Shared,
    joins: bool,
    result: Result<NodeId, ChangeRefused>,
) -> Result<Reply, Failure> {
    match result {
        Ok(id) if joins => {
            let first = shared.first.clone();
            Ok(Reply::Joined(Joined { cluster: shared.cluster, id, first }))
        }
        Ok(id) => Ok(Reply::Changed { id }),
        Err(why) => {
            let class = class_of_refusal(&why);
            let leader = match why {
                ChangeRefused::HandsOver { to } => {
                    shared.configuration().member(to).map(|m| (m.id, m.address.clone()))
                }
                _ => shared.leader_hint(),
            };
            Err(Failure { class, message: why.to_string(), leader })
        }
    }
}

//! Changes of the members, as clients ask for them: what can be said without the leader, and the
//! answers in words of the wire.

use super::Shared;
use super::connection::failure;
use super::native::class_of;
use crate::client::{Cause, Connection};
use crate::node::{Change, ChangeRefused};
use crate::raft::NodeId;
use crate::wire::ADDRESS_BYTES_MAX;
use crate::wire::client::{Answer as Reply, Call, Class, Failure, Joined};
use crate::wire::handshake::{Reject, RejectCode};
use std::time::Duration;

/// How long a new node may take to say who it is, when somebody else asks to take it in. One that is
/// not there yet is no reason to refuse.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// The change that a call asks for.
///
/// # Errors
/// The address is none, or a node of another cluster answers there.
pub(super) fn change_of(shared: &Shared, call: Call) -> Result<Change, Failure> {
    let change = match call {
        Call::Promote { id, force } => Change::Promote { id, force },
        Call::Remove { id, force } => Change::Remove { id, force },
        Call::Replace { old, address } => Change::Replace { old, address },
        Call::Join { address, identity } => Change::Join { address, identity },
        _ => return Err(failure(Class::Invalid, "no change of the members".to_string())),
    };
    if let Change::Join { address, .. } | Change::Replace { address, .. } = &change {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|&port| port > 0);
        if port.is_none() || address.len() > ADDRESS_BYTES_MAX {
            let message = format!("'{address}' is not of the form HOST:PORT");
            return Err(failure(Class::Invalid, message));
        }
        let asked_itself = matches!(change, Change::Join { identity, .. } if identity != 0);
        if !asked_itself && let Some(message) = foreign(shared, address) {
            return Err(failure(Class::Invalid, message));
        }
    }
    Ok(change)
}

/// Whether a node of another cluster answers there, in words.
fn foreign(shared: &Shared, address: &str) -> Option<String> {
    let error = Connection::dial(address, &shared.token, shared.cluster, LOOK_TIMEOUT).err()?;
    let Cause::Rejected(Reject { code: RejectCode::ForeignCluster, message }) = error.cause else {
        return None;
    };
    Some(format!(
        "the node at {address} holds data of another cluster ({message}); start it with an empty \
         --data and with --join"
    ))
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
            let class = match why {
                ChangeRefused::NotProposed(why) => class_of(why),
                ChangeRefused::HandsOver { .. } | ChangeRefused::Overwritten => Class::Unavailable,
                ChangeRefused::Unknown => Class::Unknown,
                _ => Class::Invalid,
            };
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

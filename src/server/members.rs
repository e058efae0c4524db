//! Changes of the members, as clients ask for them: what can be said without the leader, and the
//! answers in words of the wire.

use super::connection::failure;
use super::native::class_of;
use super::{Shared, lock, peers};
use crate::client::{Cause, Connection};
use crate::node::{Change, ChangeRefused, MEMBERS_MAX, Promise, Standing};
use crate::raft::NodeId;
use crate::wal::Identity;
use crate::wire::ADDRESS_BYTES_MAX;
use crate::wire::client::{Answer as Reply, Call, Class, Failure, Joined};
use crate::wire::handshake::{Reject, RejectCode};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
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
                ChangeRefused::HandsOver { to } => to,
                _ => shared.leader.load(Ordering::Relaxed),
            };
            let configuration = shared.configuration();
            let leader = configuration.member(leader).map(|m| (m.id, m.address.clone()));
            Err(Failure { class, message: why.to_string(), leader })
        }
    }
}

impl Shared {
    /// The cluster has removed this node: from now on it does not even start.
    pub(super) fn remember_removal(&self) {
        self.remember(|identity| identity.removed = true);
    }

    /// This is not the disk that the node had: from now on it does not even start. Who knows that may
    /// have forgotten it the next time, or be down.
    pub(super) fn remember_denial(&self) {
        self.remember(|identity| identity.denied = true);
    }

    fn remember(&self, what: impl FnOnce(&mut Identity)) {
        let stored = Identity::load(&*self.disk, &self.data).and_then(|identity| {
            let Some(mut identity) = identity else { return Ok(()) };
            what(&mut identity);
            identity.store(&*self.disk, &self.data)
        });
        if let Err(e) = stored {
            // It will be told again.
            super::logging::warning!("cannot write down that this node is not to run again: {e}");
        }
    }
}

/// A node has dialed: it is to be answered where it says that it is reached, also when this node has
/// not heard of it or of its moving yet.
pub(super) fn answer(shared: &Arc<Shared>, id: NodeId, address: &str) {
    let is_member = shared.configuration().member(id).is_some();
    let mut dialed_from = lock(&shared.dialed_from);
    if !is_member && !dialed_from.contains_key(&id) && dialed_from.len() >= 2 * MEMBERS_MAX {
        return;
    }
    dialed_from.insert(id, address.to_string());
    drop(dialed_from);
    let mut links = shared.links.write().unwrap_or_else(PoisonError::into_inner);
    links.entry(id).or_insert_with(|| peers::spawn(shared, id));
}

/// The keys of [`Shared::inbound`] with this id.
fn all_disks_of(id: NodeId) -> RangeInclusive<(NodeId, u64)> {
    (id, 0)..=(id, u64::MAX)
}

/// Where a member is, by somebody else's word: a peer says who leads, or a person where nodes run. A
/// node that was away may never have heard of members that were taken in or have moved meanwhile, nor
/// they of where it is now: it dials them, and is answered.
pub(super) fn heard_of(shared: &Arc<Shared>, id: NodeId, address: &str) {
    let is_news = shared.configurations().is_news(id, address);
    let dials = lock(&shared.inbound).range(all_disks_of(id)).next().is_some();
    if id != shared.id && !dials && is_news {
        answer(shared, id, address);
    }
}

/// A connection has ended: a newcomer is forgotten with it.
pub(super) fn forget_newcomer(shared: &Shared, id: NodeId) {
    if shared.configuration().member(id).is_none() {
        lock(&shared.dialed_from).remove(&id);
        shared.links.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Whoever was removed, or turns out to have another disk than the member of that id, is parted with:
/// its connections are closed, and when it dials again it is told.
pub(super) fn part_with_strangers(shared: &Shared) {
    let all = shared.configurations().clone();
    let stays = |id: &NodeId| !all.committed().was_removed(*id);
    lock(&shared.dialed_from).retain(|id, _| stays(id));
    // A sender whose inbox is dropped ends.
    shared.links.write().unwrap_or_else(PoisonError::into_inner).retain(|id, _| stays(id));
    for (&(id, identity), inbound) in lock(&shared.inbound).iter() {
        let standing = all.standing(id, identity);
        if matches!(standing, Standing::Removed | Standing::Foreign) {
            inbound.close();
        }
    }
}

/// A peer came back with an old copy of its disk: it is told when it dials again, and nothing is sent
/// to it any more.
pub(super) fn set_aside(shared: &Shared, peer: NodeId, remembered: Promise) {
    let configuration = shared.configuration();
    let identity = configuration.member(peer).map_or(0, |m| m.identity);
    let why = format!(
        "node {peer} had come to term {} and acknowledged everything up to index {}, and its disk \
         does not hold that any more",
        remembered.term, remembered.index
    );
    super::logging::warning!("sets peer={peer} aside: {why}");
    lock(&shared.aside).insert(peer, (identity, why));
    lock(&shared.inbound).range(all_disks_of(peer)).for_each(|(_, inbound)| inbound.close());
    // A sender whose inbox is dropped ends; a new one finds out that it is not to dial.
    shared.links.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
}

//! After the majority of a cluster is lost for ever: one survivor becomes a cluster of one, with a
//! new name and with what it has.
//!
//! Nobody can tell what is missing: writes that were acknowledged by others and had not come here are
//! gone, and the last entries that are here may never have been acknowledged. So nothing in the system
//! ever does this by itself.
//!
//! The identity goes first: should this be cut off, the node has a name that nobody else knows, finds
//! no majority, and the same command again completes it. Then the log gets one more entry: a
//! configuration in which this node is alone. From there everything is as for any cluster of one.

use super::boot::{BootError, Plan, open, restored};
use crate::env::Disk;
use crate::kv::StoreOptions;
use crate::raft::{Configuration, Entry, HardState, Index, Member, NodeId, Payload, Persist, Term};
use crate::wal::{self, Identity, MembersSecret, WalError};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// What became of a survivor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescued {
    /// The cluster that is lost.
    pub before: u64,
    /// The new one.
    pub cluster: u64,
    /// The node; it keeps its id.
    pub node: NodeId,
    /// Where it is reached.
    pub address: String,
    /// Everything up to here was certainly committed.
    pub applied: Index,
    /// Last index of the log, and its term: entries behind `applied` count from now on, whether they
    /// were acknowledged or not.
    pub last: (Index, Term),
    /// The cluster had removed this node: what it has is of the time before.
    pub was_removed: bool,
    /// The other members, which are left out.
    pub left_out: Vec<Member>,
}

/// Why a survivor is left as it is.
#[derive(Debug)]
pub enum RecoverError {
    /// Log, store or identity cannot be used.
    Boot(BootError),
    /// The directory belongs to no member.
    NoMember,
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::Boot(e) => e.fmt(f),
            RecoverError::NoMember => {
                f.write_str("the directory holds no node that was a member of a cluster")
            }
        }
    }
}

impl std::error::Error for RecoverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RecoverError::Boot(e) => Some(e),
            RecoverError::NoMember => None,
        }
    }
}

impl From<WalError> for RecoverError {
    fn from(e: WalError) -> RecoverError {
        RecoverError::Boot(e.into())
    }
}

/// Makes the node in `data`, which does not run, a cluster of one with that name and members' secret, both random.
///
/// # Errors
/// When it was no member, or its disk is damaged: nothing was changed then. An error of the disk may
/// leave it half done; the same again completes it.
pub fn recover(
    disk: &Arc<dyn Disk>,
    data: &Path,
    (cluster, secret): (u64, [u8; 32]),
) -> Result<Rescued, RecoverError> {
    let identity = Identity::load(&**disk, data)?.ok_or(RecoverError::NoMember)?;
    if identity.node == 0 || !identity.created {
        return Err(RecoverError::NoMember);
    }
    let plan = Plan {
        data,
        identity: &identity,
        segment_bytes: wal::SEGMENT_BYTES_MIN,
        store: StoreOptions { reserve_bytes: 0, ..StoreOptions::new(identity.identity) },
        restore: None,
    };
    let mut opened = open(disk, plan, |_| {}).map_err(RecoverError::Boot)?;
    let applied = opened.store.applied();
    let found = restored(&identity, &opened.recovered, applied);
    let before = found.log.configurations.last().map(|(_, c)| Arc::clone(c)).unwrap_or_default();
    let last_term = found.log.runs.last().map_or(found.log.base_term, |run| run.1);
    let (last, node) = (found.log.last, identity.node);
    let own = Member { id: node, identity: identity.identity, address: identity.advertise.clone() };
    // Nobody of the cluster that is lost is a member of this one.
    let secret = Some(MembersSecret { bytes: secret, sealed: true });
    let new = Identity { cluster, removed: false, denied: false, secret, ..identity.clone() };
    new.store(&**disk, data)?;
    let mut alone = Configuration::of_voters(cluster, vec![own.clone()]);
    alone.last_id = before.last_id.max(node);
    // A term that nobody was in.
    let term = found.hard_state.term.max(last_term) + 1;
    let payload = Payload::Configuration(Arc::new(alone));
    let entries = vec![Entry { index: last + 1, term, payload }];
    let hard_state = Some(HardState { term, vote: None });
    opened.wal.write(&[Persist { seq: 0, hard_state, reset: None, entries }])?;
    Ok(Rescued {
        before: identity.cluster,
        cluster,
        node,
        address: own.address,
        applied,
        last: (last, last_term),
        was_removed: identity.removed,
        left_out: before.members.iter().filter(|m| m.id != node).cloned().collect(),
    })
}

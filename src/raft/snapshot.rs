//! Snapshots as the core sees them: what the log may forget, an offer to a follower that needs what
//! was forgotten, and a log that begins anew behind a snapshot (paper section 7).
//!
//! The snapshot itself, the store's files, never comes here. A leader offers one in place of entries
//! it does not have any more ([`Body::InstallSnapshot`] carries no data); the follower's owner
//! fetches it on a connection of its own, puts it into the store durably and all at once, and only
//! then calls [`Raft::install`]. So the store is never behind the log's beginning, not even for the
//! length of a crash.
//!
//! Differs from Figure 13: there are no chunks in messages of the core, and the snapshot that is
//! fetched may be newer than the one that was offered.

use super::core::{Raft, Role};
use super::types::{Body, Index, NodeId, SnapshotMark};

/// The leader offers a snapshot that this node needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Who has it.
    pub from: NodeId,
    /// It reaches at least to here.
    pub index: Index,
}

impl Raft {
    /// First index that the log still has.
    pub fn first_index(&self) -> Index {
        self.log.base() + 1
    }

    /// The index up to which every member is known to have the log: on a leader what the slowest
    /// one has acknowledged, elsewhere what is committed.
    pub fn shared_index(&self) -> Index {
        match &self.role {
            Role::Leader(leader) => {
                let matches = leader.progress.values().map(|p| p.match_index);
                matches.min().unwrap_or(self.log.durable()).min(self.log.durable())
            }
            _ => self.commit,
        }
    }

    /// The log up to `through` is not needed here: the store holds it durably. Followers that still
    /// need it are offered a snapshot.
    ///
    /// # Panics
    /// When `through` was not applied.
    pub fn compact(&mut self, through: Index) {
        assert!(through <= self.applied, "only what the store holds is forgotten");
        self.log.compact(through);
    }

    /// The leader has nothing older than a snapshot that ends at `index`.
    pub(super) fn on_snapshot_offer(&mut self, from: NodeId, index: Index) {
        if index > self.commit {
            self.wanted = Some(Offer { from, index });
            return;
        }
        // What is committed equals the leader's log. It says so when it is durable.
        let last_index = self.commit;
        let body = Body::SnapshotResponse { last_index, installed: true };
        self.send_when_durable(last_index, from, body);
    }

    /// The store holds a snapshot that ends there, durably. Where the log has that very entry it is
    /// kept; else nothing in it can be committed behind that place, and it begins anew (Figure 13,
    /// steps 6 and 7). False when this node was further already, and nothing was done.
    pub fn install(&mut self, mark: SnapshotMark, now_us: u64) -> bool {
        self.now_us = self.now_us.max(now_us);
        let index = mark.index;
        if index <= self.applied {
            return false;
        }
        if mark.term > self.hard.term {
            self.become_follower(mark.term, None);
        }
        if self.log.term_at(index) == Some(mark.term) {
            // Also what is behind it stays, durable or not: it may be committed, and answers for it
            // may wait for the disk already.
            self.log.hold(index);
        } else {
            // Who led or stood for election with another log at that place cannot go on doing so.
            if !matches!(self.role, Role::Follower { .. }) {
                self.become_follower(self.hard.term, None);
            }
            self.log.reset(mark);
        }
        self.commit = self.commit.max(index);
        self.handed = self.handed.max(index);
        self.applied = index;
        self.applying.retain(|batch| batch.0 > index);
        self.wanted = None;
        if let Role::Follower { leader: Some(leader) } = self.role {
            let body = Body::SnapshotResponse { last_index: index, installed: true };
            self.send_after_persist(leader, body);
        }
        true
    }
}

//! When the configuration may change, and what a leader does once a change is committed.
//!
//! Three rules (paper section 6, and the correction of 2015 to the thesis' changes):
//! - a leader begins a change only after it has committed an entry of its own term;
//! - one change at a time: not before the one in front of it is committed;
//! - whoever leads when C_old,new is committed appends C_new at once, without being asked; one that
//!   is not in C_new manages the cluster until that is committed, and then steps down.
//!
//! Left out: whether a change is wise (who is reachable, has caught up, or is there already). That is
//! policy, and the business of the core's owner.

use super::core::{Raft, Role};
use super::progress::Progress;
use super::types::{Body, Index, Payload};
use super::{Configuration, NotProposed};
use std::sync::Arc;

impl Raft {
    /// Whether this node may begin a change of the configuration now.
    pub fn may_change(&self) -> Result<(), NotProposed> {
        self.may_propose()?;
        if !self.leads_and_knows() {
            return Err(NotProposed::TooEarly);
        }
        if self.commit < self.log.configuration_index() || self.log.configuration().is_joint() {
            return Err(NotProposed::ChangeOpen);
        }
        Ok(())
    }

    /// Begins to change the configuration to `target`, by way of a joint one when other nodes vote
    /// then. Answers the index of the first entry of it; the change is done when
    /// [`Raft::is_settled`] from there on.
    ///
    /// # Panics
    /// When `target` is joint, breaks the invariants of its type, makes a voter a learner, is of
    /// another cluster, or forgets an id.
    pub fn propose_configuration(&mut self, target: Configuration) -> Result<Index, NotProposed> {
        self.may_change()?;
        let now = self.log.configuration();
        assert!(target.is_valid() && !target.is_joint(), "a target is whole");
        assert!(target.learners.is_disjoint(&now.voters), "no voter becomes a learner");
        assert!(target.cluster == now.cluster && target.last_id >= now.last_id);
        let next = if target.voters == now.voters { target } else { now.joint_to(&target) };
        self.append_configuration(next);
        Ok(self.log.last_index())
    }

    /// Everything about the configuration in force is committed, and nothing is left to do.
    pub fn is_settled(&self) -> bool {
        !self.log.configuration().is_joint() && self.commit >= self.log.configuration_index()
    }

    /// The latest configuration that is known to be committed.
    pub fn committed_configuration(&self) -> &Arc<Configuration> {
        &self.open_configurations()[0].1
    }

    /// That one and those behind it, with the indexes of their entries: one of them is in force, in the
    /// end.
    pub fn open_configurations(&self) -> &[(Index, Arc<Configuration>)] {
        let all = self.log.configurations();
        let behind = all.partition_point(|(index, _)| *index <= self.commit);
        &all[behind.saturating_sub(1)..]
    }

    /// Index of the entry that holds the configuration in force; 0 for that of the beginning.
    pub fn configuration_index(&self) -> Index {
        self.log.configuration_index()
    }

    pub(super) fn append_configuration(&mut self, next: Configuration) {
        self.append_as_leader(Payload::Configuration(Arc::new(next)));
        self.reconfigure_leader();
        // Whoever was waited for may not be asked any more.
        self.confirm_read_round();
    }

    /// Whether this node may stand for election. So may one that is to leave, as long as it does not
    /// know that to be committed: it may be the only one whose log suffices (thesis 4.2.2).
    pub(super) fn may_campaign(&self) -> bool {
        let id = self.options.id;
        match self.log.configurations() {
            [.., (_, before), (index, now)] if *index > self.commit => {
                before.is_voter(id) || now.is_voter(id)
            }
            _ => self.log.configuration().is_voter(id),
        }
    }

    /// A configuration is committed: a joint one is left for C_new, and whoever has no vote in C_new
    /// does not lead any longer than that.
    pub(super) fn settle_configuration(&mut self) {
        if !self.leads_and_knows() || self.commit < self.log.configuration_index() {
            return;
        }
        let now = Arc::clone(self.log.configuration());
        if now.is_joint() {
            self.append_configuration(now.after_joint());
        } else if !now.is_voter(self.options.id) {
            if let Some(to) = self.best_successor() {
                self.send(to, Body::TimeoutNow);
            }
            self.become_follower(self.hard.term, None);
        }
    }

    /// Makes the set of followers that are sent to that of the configuration in force.
    pub(super) fn reconfigure_leader(&mut self) {
        let configuration = Arc::clone(self.log.configuration());
        let (id, next, now_us) = (self.options.id, self.log.last_index() + 1, self.now_us);
        if let Role::Leader(leader) = &mut self.role {
            let next = next.min(leader.term_start);
            leader.progress.retain(|&peer, _| configuration.member(peer).is_some());
            for member in configuration.members.iter().filter(|m| m.id != id) {
                leader.progress.entry(member.id).or_insert_with(|| Progress::new(next, now_us));
            }
        }
    }
}

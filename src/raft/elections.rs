//! Votes: who is given one, and what is made of those that come (paper 5.2, 5.4.1; thesis 4.2.3, 9.6, 3.10).
//!
//! When a node stands, and what it becomes, is in `core.rs`; which later terms it takes over in `belief.rs`.

use super::core::{Raft, Role};
use super::types::{Body, HardState, Index, Message, NodeId, Term};

impl Raft {
    /// A leader was heard within the smallest election timeout, or this node leads.
    pub(super) fn hears_a_leader(&self) -> bool {
        match self.role {
            Role::Leader(_) => true,
            _ => self
                .leader_heard_us
                .is_some_and(|at| self.now_us < at + self.options.election_timeout_us),
        }
    }

    pub(super) fn on_request_pre_vote(
        &mut self,
        from: NodeId,
        term: Term,
        last: Index,
        last_term: Term,
    ) {
        let granted = term > self.hard.term
            && !self.hears_a_leader()
            && self.log.is_up_to_date(last, last_term);
        let body = Body::PreVoteResponse { granted };
        if granted {
            // Names the term it is for, which is nobody's yet, and promises nothing.
            self.outbox.push(Message { from: self.options.id, to: from, term, body });
        } else {
            self.send(from, body);
        }
    }

    pub(super) fn on_pre_vote_response(&mut self, from: NodeId, term: Term, granted: bool) {
        if granted && term != self.hard.term + 1 {
            return;
        }
        if let Role::PreCandidate { votes } = &mut self.role {
            votes.insert(from, granted);
            if self.wins() {
                self.become_candidate(false);
            }
        }
    }

    /// Figure 2, RequestVote RPC, receiver implementation.
    pub(super) fn on_request_vote(&mut self, from: NodeId, last: Index, last_term: Term) {
        let free = self.hard.vote.is_none_or(|vote| vote == from);
        let may = matches!(self.role, Role::Follower { leader: None } | Role::PreCandidate { .. })
            || self.hard.vote == Some(from);
        let granted = free && may && self.log.is_up_to_date(last, last_term);
        if granted {
            self.set_hard(HardState { vote: Some(from), ..self.hard });
            if let Role::PreCandidate { .. } = self.role {
                self.role = Role::Follower { leader: None };
            }
            self.reset_election_timer();
            self.send_after_persist(from, Body::VoteResponse { granted });
        } else {
            self.send(from, Body::VoteResponse { granted });
        }
    }

    pub(super) fn on_vote_response(&mut self, from: NodeId, granted: bool) {
        if let Role::Candidate { votes } = &mut self.role {
            votes.insert(from, granted);
            if self.wins() {
                self.become_leader();
            }
        }
    }

    pub(super) fn wins(&self) -> bool {
        match &self.role {
            Role::PreCandidate { votes } | Role::Candidate { votes } => {
                self.log.configuration().majority(|id| votes.get(&id) == Some(&true))
            }
            _ => false,
        }
    }

    /// Leadership is handed to this node (thesis 3.10).
    pub(super) fn on_timeout_now(&mut self, from: NodeId) {
        let from_leader = matches!(self.role, Role::Follower { leader: Some(l) } if l == from);
        if from_leader && self.may_campaign() {
            self.become_candidate(true);
        }
    }
}

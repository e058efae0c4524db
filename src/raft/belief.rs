//! Which later terms are believed.
//!
//! A node takes over the term of any message of a later one (paper 5.1) and never goes back. So one faulty peer
//! could take a cluster to the last term there is, in which nobody can be elected any more, or end every leader
//! it has. Three bounds, of which an honest cluster notices nothing:
//!
//! - In one life a node takes over terms up to [`TERM_JUMP_MAX`] above the one that it began with, and
//!   [`TERMS_PER_SECOND`] more with every second.
//! - A node without a vote in the configuration in force ends nobody's term while a leader is heard, and by an
//!   answer never. No learner is ever in a later term than the majority that made its leader. A
//!   follower whose configuration is old may not know the new leader as a voter: it believes it as soon as it
//!   has not heard the old one for an election timeout.
//! - An answer to a RequestVote raises nobody's term but a candidate's. What one that comes late says of another
//!   node's term, that node's next answer to a leader or its own candidacy says as well; repeated by a faulty voter it
//!   would end every leader.
//!
//! Left out: that a peer is who it says it is, which is the business of the handshake.

use super::core::{Raft, RoleName};
use super::types::{Body, Message, NUMBER_MAX, Term};

/// A node that was away for a hundred years of two elections a second has missed no more terms.
pub(super) const TERM_JUMP_MAX: Term = 1 << 32;
/// Elections in a second, with a wide margin: each takes an election timeout.
pub(super) const TERMS_PER_SECOND: Term = 1_000;

/// Whether a node in this term was taken so far that peers would soon not take a later one from it: no election among
/// several nodes leads out of it.
pub fn is_near_the_last_term(term: Term) -> bool {
    term >= NUMBER_MAX - TERM_JUMP_MAX
}

impl Raft {
    /// Whether the term of a message, which is later than this node's, is to be taken over.
    pub(super) fn believes(&self, message: &Message) -> bool {
        let seconds = self.now_us.saturating_sub(self.started_us) / 1_000_000;
        let latest = self.first_term + TERM_JUMP_MAX + TERMS_PER_SECOND.saturating_mul(seconds);
        if message.term > latest {
            return false;
        }
        if let Body::VoteResponse { .. } = message.body
            && self.role() != RoleName::Candidate
        {
            return false;
        }
        let configuration = self.configuration();
        if configuration.voters.is_empty() || configuration.is_voter(message.from) {
            return true;
        }
        match message.body {
            Body::AppendEntries { .. }
            | Body::Heartbeat { .. }
            | Body::InstallSnapshot { .. }
            | Body::RequestVote { .. }
            | Body::TimeoutNow => !self.hears_a_leader(),
            // Neither end of a pre-vote changes a term.
            Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true } => true,
            Body::PreVoteResponse { granted: false }
            | Body::VoteResponse { .. }
            | Body::AppendResponse { .. }
            | Body::HeartbeatResponse { .. }
            | Body::SnapshotResponse { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexResponse { .. } => false,
        }
    }
}

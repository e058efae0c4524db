//! What the replica answers, in the words of clients.

use super::state::{NodeState, failure};
use super::turn::Asked;
use crate::kv::{Outcome, SessionBounds};
use crate::node::{Answer, ChangeRefused, Verdict};
use crate::raft::NodeId;
use crate::wire::client::{Answer as Reply, Class, Failure, Joined};

/// What is told of a request that the replica did not answer.
pub(super) fn stopping() -> Failure {
    failure(Class::Unknown, "the node is stopping".to_string())
}

/// What became of a write.
pub(super) fn outcome_of(state: &NodeState, verdict: Verdict) -> Result<Outcome, Failure> {
    match verdict {
        Verdict::Applied(Outcome::Malformed) => {
            Err(failure(Class::Invalid, "the replicated command makes no sense".to_string()))
        }
        Verdict::Applied(Outcome::SessionsFull) => {
            let SessionBounds { sessions, held_entries, .. } = SessionBounds::STANDARD;
            let message = format!(
                "busy: {sessions} sessions are the limit, and the connections of clients hold nearly all of them, \
                 each used within the last {held_entries} entries of the log; end connections or close sessions that \
                 are not needed, or try again later"
            );
            Err(failure(Class::Busy, message))
        }
        Verdict::Applied(outcome) => Ok(outcome),
        Verdict::NotApplied(refusal) => Err(state.refused(refusal)),
        Verdict::Unknown(why) => Err(failure(Class::Unknown, why.to_string())),
    }
}

/// The reply to what was asked.
pub(super) fn reply_of(state: &NodeState, asked: &Asked, answer: Answer) -> Result<Reply, Failure> {
    match answer {
        Answer::Write(verdict) => outcome_of(state, verdict).map(Reply::Outcome),
        Answer::Status(status) => Ok(match asked {
            Asked::Members => Reply::Members(status.members()),
            _ => Reply::Status(state.status(&status)),
        }),
        Answer::Changed(result) => changed(state, asked, result),
        Answer::Transfer(Ok(_)) => Ok(Reply::Ok),
        Answer::Flushed(Ok(_)) => {
            // What was in memory is in tables now.
            if matches!(asked, Asked::Compact) {
                state.reader.compact();
            }
            Ok(Reply::Ok)
        }
        Answer::Transfer(Err(why)) => Err(failure(why.class(), why.to_string())),
        Answer::Flushed(Err(refusal)) => Err(state.refused(refusal)),
        Answer::Read(_) => Err(stopping()),
    }
}

fn changed(
    state: &NodeState,
    asked: &Asked,
    result: Result<NodeId, ChangeRefused>,
) -> Result<Reply, Failure> {
    match result {
        Ok(id) if matches!(asked, Asked::Join { .. }) => {
            // Asking again is the same question, so a member's number would give everybody the secret. One that
            // votes has it.
            let view = state.view();
            let itself = matches!(asked, Asked::Join { itself: true });
            let gives = itself && !view.history.in_force().is_voter(id);
            let secret = view.keys.secret.filter(|_| gives);
            Ok(Reply::Joined(Joined {
                cluster: state.cluster,
                id,
                first: state.first.clone(),
                secret,
            }))
        }
        Ok(id) => Ok(Reply::Changed { id }),
        Err(why) => {
            let leader = match why {
                ChangeRefused::HandsOver { to } => {
                    state.configuration().member(to).map(|m| (m.id, m.address.clone()))
                }
                _ => state.leader_hint(),
            };
            Err(Failure { class: why.class(), message: why.to_string(), leader })
        }
    }
}

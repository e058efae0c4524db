//! That messages which are removed from flight would have had no effect.
//!
//! What is removed is never seen to arrive, and a core that took, say, an acknowledgement of an
//! earlier term for one of its own would pass. So every message that was ever sent is given to every
//! state that its receiver was ever in, if the rule ([`Node::ignores`](super::world::Node::ignores))
//! calls it without effect there: whether the two can meet does not matter, as the rule does not ask
//! for it. Left out is a refused vote that comes to a candidate, of which the rule says why.

use super::super::checks::Violation;
use super::local::Act;
use super::space::{Event, Space};
use super::world::World;
use crate::raft::canonical::Names;
use crate::raft::{Body, Message, RoleName};

/// How far the check has come.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// By number of a node's state: the state of the cluster in which it was first met, if any.
    met_at: Vec<Option<u32>>,
    /// By number of a node's state: so many messages were tried on it.
    letters: Vec<u32>,
}

impl Space {
    /// The cluster was met in this state; `number` tells the way there.
    pub(super) fn met(&mut self, world: &World, number: u32) {
        for id in self.ids() {
            let node = world.nodes[id as usize - 1] as usize;
            let met_at = &mut self.tried.met_at;
            if met_at.len() <= node {
                met_at.resize(node + 1, None);
            }
            met_at[node].get_or_insert(number);
        }
    }

    /// Tries every pair that is new since the last time. An error comes with the number of a state
    /// of the cluster and the event that shows it there, were the message in flight.
    pub(super) fn ignored_has_no_effect(&mut self) -> Result<(), (Violation, u32, Event)> {
        let letters = self.letters.len() as u32;
        let mut tried = std::mem::take(&mut self.tried);
        tried.letters.resize(tried.met_at.len(), 0);
        for (number, met_at) in (0_u32..).zip(&tried.met_at) {
            let Some(met_at) = *met_at else { continue };
            let from = std::mem::replace(&mut tried.letters[number as usize], letters);
            for message in from..letters {
                let event = |node| Event::At { node, act: Act::Step { message, heard_last: 0 } };
                self.has_no_effect(number, message)
                    .map_err(|(violation, node)| (violation, met_at, event(node)))?;
            }
        }
        self.tried = tried;
        Ok(())
    }

    fn has_no_effect(&self, number: u32, m: u32) -> Result<(), (Violation, u8)> {
        let (node, message) = (self.nodes.get(number), &self.letters.get(m).message);
        let id = node.local.raft.id();
        let may_take_back = node.seen.role == RoleName::Candidate
            && matches!(message.body, Body::VoteResponse { granted: false });
        if message.to != id || may_take_back || !node.ignores(message, self.outlook(true)) {
            return Ok(());
        }
        let wrong = |detail| {
            let invariant = "a message without effect has none";
            (Violation { invariant, detail }, id as u8)
        };
        let step = self
            .act(&node.local, Act::Step { message: m, heard_last: 0 }, Some(message))
            .map_err(|v| wrong(format!("{message:?}: {}: {}", v.invariant, v.detail)))?;
        let bare = |local: &super::local::Local| {
            let (mut local, mut words) = (local.clone(), Vec::new());
            local.raft.let_go_of_held();
            local.words(Names(&[]), &mut words);
            words
        };
        if !step.effects.answers.is_empty() || bare(&step.local) != bare(&node.local) {
            return Err(wrong(format!("{message:?} changes its receiver, were it to arrive now")));
        }
        match step.effects.sent.iter().find(|sent| !refuses(sent)) {
            Some(sent) => {
                Err(wrong(format!("{message:?}, were it to arrive now, is answered by {sent:?}")))
            }
            None => Ok(()),
        }
    }
}

/// It says no more than in which term its sender is.
fn refuses(message: &Message) -> bool {
    matches!(
        message.body,
        Body::HeartbeatResponse { round: 0 }
            | Body::VoteResponse { granted: false }
            | Body::PreVoteResponse { granted: false }
            | Body::ReadIndexResponse { index: None, .. }
    )
}

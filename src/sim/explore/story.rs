//! Events in words, for whoever reads a path to a violation.

use super::local::Act;
use super::space::{Event, Space};
use super::world::World;
use crate::raft::{Body, Configuration, Entry, Message, NodeId, Payload};

impl Space {
    /// An event and its node afterwards, in words.
    pub(super) fn describe(&self, event: Event, after: Option<&World>) -> String {
        let message = |m: u32| brief(&self.letters.get(m).message);
        let (node, text) = match event {
            Event::At { act: Act::Step { message: m, .. }, node } => {
                (node, format!("arrives  {}", message(m)))
            }
            Event::Twice { node, message: m, .. } => {
                (node, format!("arrives, and may again  {}", message(m)))
            }
            Event::Lost { message: m } => return format!("lost  {}", message(m)),
            Event::At { node, act } => (node, format!("node {node}: {act:?}")),
        };
        let Some(world) = after else { return text };
        let n = self.at(world, NodeId::from(node));
        let (raft, disk) = (&n.local.raft, &n.local.platter);
        format!(
            "{text}\n       node {node}: {:?} of term {}, vote {:?}, log {:?}, commit {}, {}; on disk term {}, vote {:?}, {} entries",
            n.seen.role,
            raft.term(),
            raft.hard_state().vote.unwrap_or(0),
            n.seen.terms,
            n.seen.commit,
            voters(&n.seen.configuration),
            disk.hard.term,
            disk.hard.vote.unwrap_or(0),
            disk.log.len(),
        )
    }
}

/// The voters, in joint consensus the old ones first.
fn voters(c: &Configuration) -> String {
    match c.is_joint() {
        true => format!("voters {:?} and {:?}", c.outgoing, c.voters),
        false => format!("voters {:?}", c.voters),
    }
}

fn brief(message: &Message) -> String {
    let Message { from, to, term, body } = message;
    let body = match body {
        Body::AppendEntries { prev_index, prev_term, commit, round, entries } => {
            let entry = |e: &Entry| match &e.payload {
                Payload::Configuration(c) => format!("{} {}", e.term, voters(c)),
                _ => e.term.to_string(),
            };
            let terms = entries.iter().map(entry).collect::<Vec<_>>().join(", ");
            format!(
                "AppendEntries {{ after {prev_index} of term {prev_term}, terms [{terms}], commit {commit}, round {round} }}"
            )
        }
        body => format!("{body:?}"),
    };
    format!("{from} to {to}, term {term}: {body}")
}

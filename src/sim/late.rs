//! Messages that arrive when their term is over, and what must not come of them.
//!
//! A message of an earlier term does harm only where its receiver could take it for one of the present
//! term: a leader an acknowledgement, a node without a leader the entries of a former one. The counters
//! say how often that could have been.

use super::checks::{Violation, violated};
use super::node::SimNode;
use super::world::World;
use crate::raft::{AppendResult, Body, Entry, Message, NodeId, Raft, RoleName};

/// What a message of an earlier term could be taken for by the node that it reaches.
pub(super) fn mistakable(raft: &Raft, message: &Message) -> Option<&'static str> {
    if message.term >= raft.term() {
        return None;
    }
    match &message.body {
        Body::AppendResponse { result: AppendResult::Matched { index }, .. } => {
            let known = raft.match_indexes().find(|(peer, _)| *peer == message.from)?.1;
            (known < *index && *index <= raft.last_index()).then_some("old acknowledgements met")
        }
        Body::AppendEntries { entries, .. } if raft.role() != RoleName::Leader => {
            let differs = |e: &Entry| raft.term_at(e.index) != Some(e.term);
            if !entries.iter().any(differs) {
                return None;
            }
            match raft.leader() {
                None => Some("entries of an old leader met by a node without one"),
                Some(leader) if leader == message.from => {
                    Some("entries of a leader's earlier term met")
                }
                Some(_) => None,
            }
        }
        Body::VoteResponse { granted: true } if raft.role() == RoleName::Candidate => {
            Some("old votes met")
        }
        _ => None,
    }
}

impl World {
    /// What a leader newly believes that a follower holds is durable there.
    pub(super) fn check_beliefs(&mut self, node: NodeId) -> Result<(), Violation> {
        let World { nodes, platters, cluster, .. } = self;
        let Some(up) = nodes.get(&node).and_then(|n| n.up.as_ref()) else { return Ok(()) };
        let raft = up.node.replica().raft();
        let term = raft.term();
        for (peer, index) in raft.match_indexes() {
            let before = cluster.believed.insert((node, peer), (term, index));
            let news = before != Some((term, index));
            if !news || index == 0 {
                continue;
            }
            let Some(platter) = platters.get(&peer) else { continue };
            // What is lost with a disk was acknowledged all the same.
            let lost = |n: &SimNode| n.wiped || n.old_copy || n.has_damage();
            // In a later term it may have been replaced since.
            let moved_on = platter.hard.term > term;
            if nodes.get(&peer).is_some_and(lost) || moved_on {
                continue;
            }
            // What has gone from its log to its snapshot is committed.
            let committed = || cluster.committed_terms().get(index as usize - 1).copied();
            let ours = raft.term_at(index).or_else(committed);
            let held = platter.term(index);
            if held != ours {
                let detail = format!(
                    "node {node} leads term {term} and believes that node {peer} holds index {index} of \
                     {ours:?}; its disk holds {held:?}"
                );
                return violated("what a leader counts is durable", detail);
            }
        }
        Ok(())
    }
}

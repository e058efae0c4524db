//! ReadIndex on the leader (thesis 6.4): one round of acknowledgements serves every read that was
//! waiting when it was sent.
//!
//! A read may be served at the commit index of the moment it was registered, once this node is
//! known to have led *after* that moment: a majority answers a message that was sent later. No
//! read is registered before the term's no-op is committed, because only then does the leader's
//! commit index cover everything that earlier leaders acknowledged.

use super::core::{Raft, Role};
use super::leader::Leader;
use super::types::{Body, Index, NodeId};
use super::{ReadAnswer, ReadId};

/// Who asked for a read index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadRequest {
    /// This node.
    Local(ReadId),
    /// A follower, by its own number.
    Remote { node: NodeId, id: u64 },
}

/// A round that is under way.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) number: u64,
    pub(super) index: Index,
    pub(super) reads: Vec<ReadRequest>,
}

impl Raft {
    /// Asks where a linearizable read that begins now may be served. The answer comes in
    /// [`super::Ready::reads`]; it is `None` when no leader could be asked.
    pub fn read(&mut self, id: ReadId) {
        match &mut self.role {
            Role::Leader(leader) => leader.reads.push(ReadRequest::Local(id)),
            _ => self.reads_waiting.push(id),
        }
    }

    pub(super) fn on_read_index(&mut self, node: NodeId, id: u64) {
        let bound = self.options.remote_reads_max;
        if let Role::Leader(leader) = &mut self.role {
            if leader.progress.contains_key(&node) && leader.reads.len() < bound {
                leader.reads.push(ReadRequest::Remote { node, id });
            }
        } else {
            self.send(node, Body::ReadIndexResponse { id, index: None });
        }
    }

    /// Begins a round for every read that waits, unless one is under way.
    pub(super) fn start_read_round(&mut self) {
        let index = self.commit;
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.reads.is_empty() || leader.in_flight.is_some() || index < leader.term_start {
            return;
        }
        leader.round += 1;
        let reads = std::mem::take(&mut leader.reads);
        leader.in_flight = Some(Round { number: leader.round, index, reads });
        let peers: Vec<NodeId> = leader.progress.keys().copied().collect();
        for peer in peers {
            self.send_heartbeat(peer);
        }
        self.confirm_read_round();
    }

    /// Answers the round's reads once a majority has acknowledged it.
    pub(super) fn confirm_read_round(&mut self) {
        let (id, configuration) = (self.options.id, self.log.configuration());
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(round) = &leader.in_flight else { return };
        let heard = |peer| {
            peer == id || leader.progress.get(&peer).is_some_and(|p| p.round >= round.number)
        };
        if !configuration.majority(heard) {
            return;
        }
        if let Some(round) = leader.in_flight.take() {
            for read in round.reads {
                self.answer_read(read, Some(round.index));
            }
        }
    }

    fn answer_read(&mut self, read: ReadRequest, index: Option<Index>) {
        match read {
            ReadRequest::Local(id) => self.read_answers.push(ReadAnswer { id, index }),
            ReadRequest::Remote { node, id } => {
                self.send(node, Body::ReadIndexResponse { id, index });
                // The follower serves once it has applied so far: it is told of the commit at
                // once, not with the next heartbeat.
                let told = self.leader_state().and_then(|l| l.progress.get(&node));
                if told.is_some_and(|p| Some(p.commit_told) < index) {
                    self.send_heartbeat(node);
                }
            }
        }
    }

    /// A former leader cannot confirm anything.
    pub(super) fn fail_leader_reads(&mut self, leader: Leader) {
        let round = leader.in_flight.map(|round| round.reads).unwrap_or_default();
        for read in round.into_iter().chain(leader.reads) {
            self.answer_read(read, None);
        }
    }
}

//! The follower's side: taking entries, learning what is committed, handing it to the applier,
//! and asking the leader for read indexes.

use super::core::{Raft, Role};
use super::types::{AppendResult, Body, Entry, Index, NodeId, Term};
use super::{Committed, ReadAnswer, ReadId};

/// Reads that wait for the leader's answer to one ReadIndex request.
#[derive(Clone, Debug)]
pub(super) struct Forwarded {
    pub(super) id: u64,
    pub(super) leader: NodeId,
    pub(super) reads: Vec<ReadId>,
    pub(super) sent_us: u64,
}

impl Raft {
    /// Figure 2, AppendEntries RPC, receiver implementation, steps 2 to 5.
    pub(super) fn on_append_entries(
        &mut self,
        from: NodeId,
        prev_index: Index,
        prev_term: Term,
        leader_commit: Index,
        round: u64,
        entries: Vec<Entry>,
    ) {
        let contiguous = entries.iter().zip(prev_index + 1..).all(|(e, i)| e.index == i);
        let first_term = entries.first().map_or(prev_term, |e| e.term);
        let ordered = first_term >= prev_term && entries.is_sorted_by(|a, b| a.term <= b.term);
        let past_term = entries.last().is_some_and(|e| e.term > self.hard.term);
        // What is committed here equals the leader's (Leader Completeness); whoever says otherwise
        // is none. With that, what is appended below continues this log's terms, too.
        let differs = |index, term| {
            index <= self.commit && self.log.term_at(index).is_some_and(|ours| ours != term)
        };
        let contradicts =
            differs(prev_index, prev_term) || entries.iter().any(|e| differs(e.index, e.term));
        if !contiguous || !ordered || past_term || contradicts {
            return;
        }
        let matches = prev_index <= self.commit || self.log.term_at(prev_index) == Some(prev_term);
        if !matches {
            let (hint_index, hint_term) = self.log.last_agreeing(prev_index, prev_term);
            let result = AppendResult::Conflict { prev_index, hint_index, hint_term };
            self.send(from, Body::AppendResponse { result, round });
            return;
        }
        let last_new = prev_index + entries.len() as Index;
        for entry in entries {
            if entry.index <= self.commit || self.log.term_at(entry.index) == Some(entry.term) {
                continue;
            }
            if entry.index <= self.log.last_index() {
                self.log.truncate(entry.index);
            }
            self.log.append(entry);
        }
        let index = last_new.max(self.commit);
        self.advance_follower_commit(leader_commit.min(last_new));
        let body = Body::AppendResponse { result: AppendResult::Matched { index }, round };
        self.send_when_durable(index, from, body);
    }

    /// The leader names at most what it knows this log to match. It knows that from what was
    /// acknowledged, and the disk may have been exchanged for an old copy since: only the very entry
    /// that is named, by index and term, shows that all up to it is the leader's (Log Matching).
    pub(super) fn on_heartbeat(
        &mut self,
        from: NodeId,
        commit: Index,
        commit_term: Term,
        round: u64,
    ) {
        if self.log.term_at(commit) == Some(commit_term) {
            self.advance_follower_commit(commit);
        }
        self.send(from, Body::HeartbeatResponse { round });
    }

    fn advance_follower_commit(&mut self, commit: Index) {
        self.commit = self.commit.max(commit);
    }

    /// The next committed entries for the applier: durable here, in order, as many as it may owe.
    pub(super) fn take_committed(&mut self) -> Option<Committed> {
        let last = self.commit.min(self.log.durable());
        let owed: usize = self.applying.iter().map(|batch| batch.1).sum();
        if last <= self.handed || owed >= self.options.applying_bytes_max {
            return None;
        }
        let first = self.handed + 1;
        let bytes_max = self.options.applying_bytes_max - owed;
        let (last, weight, entries) = match self.log.cached(first, last, bytes_max) {
            Some(entries) => {
                let last = entries.last().map_or(last, |e| e.index);
                (last, entries.iter().map(Entry::weight).sum(), entries)
            }
            // From the log file: a piece that the applier reads in bounded steps.
            None => (last.min(first + self.options.replay_entries_max - 1), bytes_max, Vec::new()),
        };
        self.handed = last;
        self.applying.push_back((last, weight));
        Some(Committed { first, last, entries })
    }

    // ---- reads on a follower ----

    /// Sends every waiting read as one request, unless one is under way.
    pub(super) fn forward_reads(&mut self) {
        if self.reads_waiting.is_empty() || self.forwarded.is_some() {
            return;
        }
        let reads = std::mem::take(&mut self.reads_waiting);
        let Role::Follower { leader: Some(leader) } = self.role else {
            self.read_answers.extend(reads.into_iter().map(|id| ReadAnswer { id, index: None }));
            return;
        };
        let id = self.next_forward;
        self.next_forward = self.next_forward.wrapping_add(1);
        self.forwarded = Some(Forwarded { id, leader, reads, sent_us: self.now_us });
        self.send(leader, Body::ReadIndex { id });
    }

    /// A request or its answer may have been lost: asks again.
    pub(super) fn retry_forwarded_reads(&mut self) {
        let now_us = self.now_us;
        let patience_us = self.options.heartbeat_us;
        if let Some(f) = &mut self.forwarded
            && now_us >= f.sent_us + patience_us
        {
            f.sent_us = now_us;
            let (leader, id) = (f.leader, f.id);
            self.send(leader, Body::ReadIndex { id });
        }
    }

    pub(super) fn on_read_index_response(&mut self, from: NodeId, id: u64, index: Option<Index>) {
        if self.forwarded.as_ref().is_none_or(|f| f.id != id || f.leader != from) {
            return;
        }
        if let Some(f) = self.forwarded.take() {
            self.read_answers.extend(f.reads.into_iter().map(|id| ReadAnswer { id, index }));
        }
    }

    /// Whoever was asked does not lead any more, as far as this node knows.
    pub(super) fn fail_forwarded_reads(&mut self) {
        let waiting = std::mem::take(&mut self.reads_waiting);
        let asked = self.forwarded.take().map(|f| f.reads).unwrap_or_default();
        let failed = asked.into_iter().chain(waiting);
        self.read_answers.extend(failed.map(|id| ReadAnswer { id, index: None }));
    }
}

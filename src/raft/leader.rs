//! The leader's side: proposals, replication, the commit rule, heartbeats, CheckQuorum, transfer.

use super::core::{Raft, Role};
use super::progress::{Progress, ProgressState};
use super::reads::{ReadRequest, Round};
use super::types::{
    AppendResult, Body, Entry, Index, MESSAGE_OVERHEAD_BYTES, Message, NodeId, Payload,
    append_bytes,
};
use super::{EntriesRead, LogRead, NotProposed, PeerProgress};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What only a leader keeps.
#[derive(Clone, Debug)]
pub(super) struct Leader {
    pub(super) progress: BTreeMap<NodeId, Progress>,
    /// Index of the no-op that opened the term.
    pub(super) term_start: Index,
    pub(super) heartbeat_at_us: u64,
    pub(super) elected_us: u64,
    pub(super) transfer: Option<Transfer>,
    /// Number of the latest read round that was sent.
    pub(super) round: u64,
    pub(super) in_flight: Option<Round>,
    pub(super) reads: Vec<ReadRequest>,
}

/// Leadership is being handed over (thesis 3.10).
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) to: NodeId,
    pub(super) until_us: u64,
    pub(super) told: bool,
}

impl Leader {
    pub(super) fn new(term_start: Index, now_us: u64) -> Leader {
        Leader {
            progress: BTreeMap::new(),
            term_start,
            heartbeat_at_us: now_us,
            elected_us: now_us,
            transfer: None,
            round: 0,
            in_flight: None,
            reads: Vec::new(),
        }
    }
}

impl Raft {
    pub(super) fn leader_state(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    /// Appends commands to the log, in order; answers the index of the first. The term is
    /// [`Raft::term`]. They are committed when an entry of that index *and* term is handed to the
    /// applier, and will never be when another term shows up at that index.
    pub fn propose(
        &mut self,
        commands: impl IntoIterator<Item = Arc<[u8]>>,
    ) -> Result<Index, NotProposed> {
        self.may_propose()?;
        let first = self.log.last_index() + 1;
        for command in commands {
            self.append_as_leader(Payload::Command(command));
        }
        Ok(first)
    }

    /// Whether this node takes proposals.
    pub fn may_propose(&self) -> Result<(), NotProposed> {
        match self.leader_state() {
            None => Err(NotProposed::NotLeader { leader: self.leader() }),
            Some(leader) if leader.transfer.is_some() => Err(NotProposed::Transferring),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn append_as_leader(&mut self, payload: Payload) {
        let index = self.log.last_index() + 1;
        self.log.append(Entry { index, term: self.hard.term, payload });
    }

    // ---- time ----

    pub(super) fn tick_leader(&mut self) {
        let timeout_us = self.options.election_timeout_us;
        let Role::Leader(leader) = &mut self.role else { return };
        if self.now_us < leader.heartbeat_at_us {
            return;
        }
        if leader.transfer.is_some_and(|t| self.now_us >= t.until_us) {
            leader.transfer = None;
        }
        // CheckQuorum (thesis 6.2): a leader that cannot reach a majority does not stay one.
        let (id, now_us) = (self.options.id, self.now_us);
        let settled = now_us >= leader.elected_us + timeout_us;
        let reached = self.log.configuration().majority(|peer| {
            peer == id
                || leader.progress.get(&peer).is_some_and(|p| now_us < p.contact_us + timeout_us)
        });
        if settled && !reached {
            self.become_follower(self.hard.term, None);
            return;
        }
        // A leader whose own disk stalls hands over: its followers' disks may be better.
        if self.disk_stalls() {
            if let Some(to) = self.best_successor() {
                self.send(to, Body::TimeoutNow);
            }
            self.become_follower(self.hard.term, None);
            return;
        }
        self.broadcast_heartbeat();
    }

    pub(super) fn broadcast_heartbeat(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        leader.heartbeat_at_us = self.now_us + self.options.heartbeat_us;
        let patience_us = self.options.election_timeout_us / 2;
        let late = |p: &Progress| p.is_late(self.now_us, patience_us);
        let peers: Vec<(NodeId, bool)> =
            leader.progress.iter().map(|(&peer, p)| (peer, late(p))).collect();
        for (peer, late) in peers {
            if late {
                self.ask(peer);
            }
            self.send_heartbeat(peer);
        }
    }

    /// Asks a follower that gives no news what it has of all that was sent: with an AppendEntries
    /// without entries, behind everything that is under way. An announced snapshot is announced again.
    fn ask(&mut self, to: NodeId) {
        let commit = self.commit;
        let Role::Leader(leader) = &mut self.role else { return };
        let round = leader.round;
        let Some(p) = leader.progress.get_mut(&to) else { return };
        p.asks(self.now_us);
        let prev_index = p.next_index - 1;
        match self.log.term_at(prev_index) {
            Some(prev_term) if !matches!(p.state, ProgressState::Snapshot { .. }) => {
                let entries = Vec::new();
                let body = Body::AppendEntries { prev_index, prev_term, commit, round, entries };
                self.send(to, body);
            }
            // `replicate` announces it.
            _ => p.probe_from(p.next_index),
        }
    }

    /// A connection with `peer` broke, or was made anew: of what is under way everything or nothing
    /// may have arrived, and the same is true of the answers.
    pub(super) fn peer_changed(&mut self, peer: NodeId) {
        let now_us = self.now_us;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(p) = leader.progress.get_mut(&peer) else { return };
        p.probe_from(p.next_index);
        p.news(now_us);
        self.ask(peer);
    }

    pub(super) fn send_heartbeat(&mut self, to: NodeId) {
        let commit_index = self.commit;
        let Role::Leader(leader) = &mut self.role else { return };
        let round = leader.round;
        let Some(p) = leader.progress.get_mut(&to) else { return };
        let known = commit_index.min(p.match_index);
        // Of what was compacted the term is not known any more; a snapshot is on its way then.
        let (commit, commit_term) = match self.log.term_at(known) {
            Some(term) => (known, term),
            None => (0, 0),
        };
        p.commit_told = p.commit_told.max(commit);
        self.send(to, Body::Heartbeat { commit, commit_term, round });
    }

    // ---- replication ----

    /// Sends every follower what it lacks, as far as its window allows.
    pub(super) fn replicate(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let peers: Vec<NodeId> = leader.progress.keys().copied().collect();
        for peer in peers {
            while self.send_append(peer) {}
        }
    }

    /// Sends one AppendEntries if the follower lacks anything and may be sent to; whether more may
    /// follow.
    fn send_append(&mut self, to: NodeId) -> bool {
        let commit = self.commit;
        let last = self.log.last_index();
        let Role::Leader(leader) = &mut self.role else { return false };
        let Some(p) = leader.progress.get_mut(&to) else { return false };
        let probes = matches!(p.state, ProgressState::Probe { .. });
        let bytes_max =
            if probes { self.options.probe_bytes_max } else { self.options.append_bytes_max };
        let Some(room) = p.room(bytes_max, self.options.inflight_bytes_max) else { return false };
        if p.next_index > last {
            return false;
        }
        let prev_index = p.next_index - 1;
        let Some(prev_term) = self.log.term_at(prev_index) else {
            p.needs_snapshot(self.log.base(), self.now_us);
            let configuration = Arc::clone(self.log.configuration());
            let (last_index, last_term) = (self.log.base(), self.log.base_term());
            self.send(to, Body::InstallSnapshot { last_index, last_term, configuration });
            return false;
        };
        let (first, round) = (p.next_index, leader.round);
        let cached = self.log.cached(first, last, room.saturating_sub(MESSAGE_OVERHEAD_BYTES));
        let reads = cached.is_none() && !probes;
        let mut entries = cached.unwrap_or_default();
        let mut bytes = append_bytes(&entries);
        // Where the logs part is found out with no entry as well as with a large one, and without
        // reading any.
        if probes && bytes > room {
            entries.clear();
            bytes = append_bytes(&entries);
        }
        // What is larger than the window is sent when nothing else is under way.
        let fits = if reads { room == bytes_max } else { bytes <= room };
        if !fits && !p.window.is_empty() {
            return false;
        }
        let sent_last = entries.last().map_or(prev_index, |e| e.index);
        p.commit_told = p.commit_told.max(commit.min(sent_last));
        let body = Body::AppendEntries { prev_index, prev_term, commit, round, entries };
        let message = Message { from: self.options.id, to, term: self.hard.term, body };
        if reads {
            p.reads(first);
            // What is still in memory may not be in the file yet.
            let end = first.saturating_add(self.options.replay_entries_max);
            let last = end.min(self.log.cache_first()) - 1;
            let last_term = self.log.term_at(last).unwrap_or(0);
            self.from_log.push(LogRead { message, first, last, last_term });
            return false;
        }
        p.sent(sent_last, bytes, self.now_us);
        self.outbox.push(message);
        sent_last < last
    }

    /// What became of a [`LogRead`].
    pub fn entries_read(&mut self, read: &EntriesRead, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let (term, last) = (self.hard.term, self.log.last_index());
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(p) = leader.progress.get_mut(&read.to).filter(|_| read.term == term) else {
            return;
        };
        let sent = read.sent.filter(|sent| (read.first..=last).contains(&sent.0));
        p.read(read.first, sent, self.now_us);
    }

    pub(super) fn on_append_response(&mut self, from: NodeId, result: AppendResult, round: u64) {
        let (last, now_us) = (self.log.last_index(), self.now_us);
        let timeout_us = self.options.election_timeout_us;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(p) = leader.progress.get_mut(&from) else { return };
        p.heard(now_us, timeout_us);
        p.round = p.round.max(round.min(leader.round));
        match result {
            AppendResult::Matched { index } => {
                if index > last {
                    return;
                }
                if p.matched(index, now_us) {
                    self.advance_commit();
                    self.drive_transfer();
                }
            }
            AppendResult::Conflict { prev_index, hint_index, .. } if hint_index > prev_index => {}
            AppendResult::Conflict { prev_index, hint_index, hint_term } => {
                let stale = match p.state {
                    ProgressState::Probe { .. } => prev_index + 1 != p.next_index,
                    ProgressState::Replicate => prev_index <= p.match_index,
                    ProgressState::Snapshot { .. } => true,
                };
                if !stale {
                    let (agreed, _) = self.log.last_agreeing(hint_index, hint_term);
                    p.probe_from(agreed.min(hint_index) + 1);
                    p.news(now_us);
                }
            }
        }
        self.confirm_read_round();
    }

    pub(super) fn on_heartbeat_response(&mut self, from: NodeId, round: u64) {
        let (now_us, timeout_us) = (self.now_us, self.options.election_timeout_us);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(p) = leader.progress.get_mut(&from) else { return };
        p.heard(now_us, timeout_us);
        p.round = p.round.max(round.min(leader.round));
        self.confirm_read_round();
    }

    pub(super) fn on_snapshot_response(&mut self, from: NodeId, index: Index, installed: bool) {
        let (last, now_us) = (self.log.last_index(), self.now_us);
        let timeout_us = self.options.election_timeout_us;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(p) = leader.progress.get_mut(&from) else { return };
        p.heard(now_us, timeout_us);
        // Up to a snapshot's end everything is committed, and so equal here. One that is refused is
        // announced again with a heartbeat, not at once.
        if installed && index <= last && p.matched(index, now_us) {
            self.advance_commit();
        }
    }

    /// The commit rule (paper 5.3, 5.4.2): a majority holds it durably, and it is of this term.
    pub(super) fn advance_commit(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let (id, durable) = (self.options.id, self.log.durable());
        let reached = self.log.configuration().majority_index(|peer| {
            if peer == id {
                durable
            } else {
                leader.progress.get(&peer).map_or(0, |p| p.match_index)
            }
        });
        if reached > self.commit && self.log.term_at(reached) == Some(self.hard.term) {
            self.commit = reached;
        }
    }

    // ---- transfer of leadership ----

    /// Hands leadership to `to`, or to whoever is most up to date, if it is a voter that was heard
    /// within an election timeout. Proposals are refused until it
    /// is done or an election timeout has passed.
    pub fn transfer(&mut self, to: Option<NodeId>, now_us: u64) -> Result<NodeId, NotProposed> {
        self.now_us = self.now_us.max(now_us);
        self.may_propose()?;
        let to = to.or_else(|| self.best_successor()).ok_or(NotProposed::NoSuccessor)?;
        if to == self.options.id {
            return Ok(to);
        }
        if !self.log.configuration().voters.contains(&to) {
            return Err(NotProposed::NoVoter { id: to });
        }
        let progress = self.leader_state().and_then(|leader| leader.progress.get(&to));
        if !progress.is_some_and(|p| self.reaches(p)) {
            return Err(NotProposed::Unreachable { id: to });
        }
        let until_us = self.now_us + self.options.election_timeout_us;
        if let Role::Leader(leader) = &mut self.role {
            leader.transfer = Some(Transfer { to, until_us, told: false });
        }
        self.drive_transfer();
        Ok(to)
    }

    fn drive_transfer(&mut self) {
        let last = self.log.last_index();
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let ready = leader.progress.get(&transfer.to).is_some_and(|p| p.match_index == last);
        if ready && !transfer.told {
            transfer.told = true;
            let to = transfer.to;
            self.send(to, Body::TimeoutNow);
        }
    }

    /// The voter that is heard and has the most, so that it is ready soonest.
    pub(super) fn best_successor(&self) -> Option<NodeId> {
        let leader = self.leader_state()?;
        let voters = &self.configuration().voters;
        let voters = leader.progress.iter().filter(|(id, _)| voters.contains(id));
        let fitness = |p: &Progress| (p.match_index, p.contact_us);
        voters.filter(|(_, p)| self.reaches(p)).max_by_key(|(_, p)| fitness(p)).map(|(&id, _)| id)
    }

    fn reaches(&self, p: &Progress) -> bool {
        self.now_us < p.contact_us + self.options.election_timeout_us
    }

    // ---- what others may know ----

    /// Whether this node leads and has committed an entry of its own term, so that it knows
    /// everything that is committed.
    pub fn leads_and_knows(&self) -> bool {
        self.leader_state().is_some_and(|leader| self.commit >= leader.term_start)
    }

    /// How far each follower's log is known to match; nothing when this node does not lead.
    pub fn match_indexes(&self) -> impl Iterator<Item = (NodeId, Index)> + '_ {
        let progress = self.leader_state().into_iter().flat_map(|leader| &leader.progress);
        progress.map(|(&id, p)| (id, p.match_index))
    }

    /// What a leader knows of its followers; empty when this node does not lead.
    pub fn progress(&self) -> Vec<PeerProgress> {
        let of = |(&id, p): (&NodeId, &Progress)| PeerProgress {
            id,
            match_index: p.match_index,
            state: p.state,
            reachable: self.reaches(p),
            heard_us: p.contact_us,
        };
        self.leader_state().map(|l| l.progress.iter().map(of).collect()).unwrap_or_default()
    }
}

//! Terms, roles and elections: everything of Figure 2 that is not replication.
//!
//! There is one place where terms are handled ([`Raft::step`]) and one method per transition of
//! role (`become_*`). The leader's side of replication is in `leader.rs`, the follower's in
//! `follower.rs`, reads in `reads.rs`.

use super::follower::Forwarded;
use super::leader::Leader;
use super::log::{Log, RestoredLog};
use super::reads::ReadRequest;
use super::snapshot::Offer;
use super::types::{Body, HardState, Index, Message, NodeId, Payload, Persist, Term};
use super::{Configuration, Options, ReadAnswer, ReadId, Ready, Rng};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a node is at present (paper 5.1).
#[derive(Clone, Debug)]
pub(super) enum Role {
    /// Follows the leader of the term, once it has heard from one.
    Follower { leader: Option<NodeId> },
    /// Asks whether an election could be won, without disturbing anybody (thesis 9.6).
    PreCandidate { votes: BTreeMap<NodeId, bool> },
    /// Stands for election.
    Candidate { votes: BTreeMap<NodeId, bool> },
    /// Leads the term.
    Leader(Box<Leader>),
}

/// The name of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoleName {
    /// Follows, votes, waits.
    Follower,
    /// Asks for pre-votes.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// One node's consensus core.
#[derive(Clone, Debug)]
pub struct Raft {
    pub(super) options: Options,
    pub(super) rng: Rng,
    pub(super) hard: HardState,
    pub(super) log: Log,
    pub(super) role: Role,
    pub(super) commit: Index,
    /// Entries up to here were handed to the applier.
    pub(super) handed: Index,
    /// Weight of each batch handed to the applier and not yet applied: (last index, bytes).
    pub(super) applying: VecDeque<(Index, usize)>,
    pub(super) applied: Index,
    pub(super) now_us: u64,
    /// When the next election starts unless a leader is heard.
    pub(super) election_at_us: u64,
    /// When a leader of the present term was last heard; stickiness counts from here.
    pub(super) leader_heard_us: Option<u64>,
    /// The leader's connection broke: elections start sooner, for so many attempts until now.
    pub(super) leader_broke: Option<u32>,
    /// Number of the last request given to the log writer, and of the last one that is durable.
    pub(super) asked_seq: u64,
    pub(super) durable_seq: u64,
    /// When the oldest unanswered request was given to the log writer, by seq.
    pub(super) asked_at_us: VecDeque<(u64, u64)>,
    /// The hard state changed since the last request.
    pub(super) hard_changed: bool,
    /// The request that carries the present hard state.
    pub(super) hard_seq: u64,
    /// Messages that wait for a request to be durable, ascending by seq.
    pub(super) held: VecDeque<(u64, Message)>,
    pub(super) outbox: Vec<Message>,
    pub(super) from_log: Vec<super::LogRead>,
    pub(super) read_answers: Vec<ReadAnswer>,
    pub(super) reads_waiting: Vec<ReadId>,
    pub(super) forwarded: Option<Forwarded>,
    pub(super) next_forward: u64,
    /// The term that this life began with, and when.
    pub(super) first_term: Term,
    pub(super) started_us: u64,
    /// The leader offers a snapshot that this node needs.
    pub(super) wanted: Option<Offer>,
}

/// What a node begins with: what it kept on disk.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Term and vote.
    pub hard_state: HardState,
    /// The log.
    pub log: RestoredLog,
    /// Index that the state machine has applied durably.
    pub applied: Index,
}

impl Raft {
    /// A follower that continues from what is on disk.
    pub fn new(options: Options, restored: Restored, now_us: u64) -> Raft {
        let mut rng = Rng::new(options.seed);
        let next_forward = rng.next();
        let applied = restored.applied.max(restored.log.base);
        let log = Log::new(restored.log, options.cache_bytes_max);
        assert!(applied <= log.last_index(), "the store is never ahead of the log");
        let mut raft = Raft {
            options,
            rng,
            hard: restored.hard_state,
            log,
            role: Role::Follower { leader: None },
            commit: applied,
            handed: applied,
            applying: VecDeque::new(),
            applied,
            now_us,
            election_at_us: 0,
            leader_heard_us: None,
            leader_broke: None,
            asked_seq: 0,
            durable_seq: 0,
            asked_at_us: VecDeque::new(),
            hard_changed: false,
            hard_seq: 0,
            held: VecDeque::new(),
            outbox: Vec::new(),
            from_log: Vec::new(),
            read_answers: Vec::new(),
            reads_waiting: Vec::new(),
            forwarded: None,
            next_forward,
            first_term: restored.hard_state.term,
            started_us: now_us,
            wanted: None,
        };
        raft.reset_election_timer();
        if raft.is_alone() {
            raft.election_at_us = now_us;
        }
        raft
    }

    // ---- what others may know ----

    /// This node.
    pub fn id(&self) -> NodeId {
        self.options.id
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The seed it was given, which differs between the lives of a node.
    pub fn seed(&self) -> u64 {
        self.options.seed
    }

    /// The latest time that it was told, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The present term.
    pub fn term(&self) -> Term {
        self.hard.term
    }

    /// Term and vote.
    pub fn hard_state(&self) -> HardState {
        self.hard
    }

    /// The present role.
    pub fn role(&self) -> RoleName {
        match self.role {
            Role::Follower { .. } => RoleName::Follower,
            Role::PreCandidate { .. } => RoleName::PreCandidate,
            Role::Candidate { .. } => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        }
    }

    /// Who leads the present term, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower { leader } => *leader,
            Role::Leader(_) => Some(self.options.id),
            Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    /// Everything up to here is committed.
    pub fn commit_index(&self) -> Index {
        self.commit
    }

    /// Everything up to here is applied.
    pub fn applied_index(&self) -> Index {
        self.applied
    }

    /// Index of the last entry.
    pub fn last_index(&self) -> Index {
        self.log.last_index()
    }

    /// Everything up to here is on this node's disk.
    pub fn durable_index(&self) -> Index {
        self.log.durable()
    }

    /// Term of an index, none when the log does not hold it.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The configuration in force.
    pub fn configuration(&self) -> &Arc<Configuration> {
        self.log.configuration()
    }

    /// The configuration in force at the log's beginning and every later one in it, with the index
    /// of its entry.
    pub fn configurations(&self) -> &[(Index, Arc<Configuration>)] {
        self.log.configurations()
    }

    /// When [`Raft::tick`] must be called next, on the clock that `now_us` reads.
    pub fn next_tick_us(&self) -> u64 {
        match &self.role {
            Role::Leader(leader) => leader.heartbeat_at_us,
            _ => match &self.forwarded {
                Some(f) => self.election_at_us.min(f.sent_us + self.options.heartbeat_us),
                None => self.election_at_us,
            },
        }
    }

    // ---- events ----

    /// Time has passed.
    pub fn tick(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if let Role::Leader(_) = self.role {
            self.tick_leader();
            return;
        }
        self.retry_forwarded_reads();
        if self.now_us >= self.election_at_us {
            self.reset_election_timer();
            if self.may_campaign() && !self.disk_stalls() {
                self.become_pre_candidate();
            }
        }
    }

    /// A message arrived. It is data from outside: whatever it says, it is checked here.
    pub fn step(&mut self, message: Message, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let strange = message.to != self.options.id || message.from == self.options.id;
        if strange || !message.is_plausible() {
            return;
        }
        self.step_checked(message);
    }

    /// The one place where terms are handled (paper 5.1).
    fn step_checked(&mut self, message: Message) {
        if message.term > self.hard.term && !self.believes(&message) {
            return;
        }
        let Message { from, term, body, .. } = message;
        if term > self.hard.term {
            match body {
                // Neither end of a pre-vote changes its term (thesis 9.6).
                Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true } => {}
                // Disregarded while a leader is heard (thesis 4.2.3, 6.4.1).
                Body::RequestVote { transfer: false, .. } if self.hears_a_leader() => return,
                Body::AppendEntries { .. }
                | Body::Heartbeat { .. }
                | Body::InstallSnapshot { .. } => self.become_follower(term, Some(from)),
                _ => self.become_follower(term, None),
            }
        } else if term < self.hard.term {
            self.answer_stale(from, &body);
            return;
        }
        match body {
            Body::RequestPreVote { last_index, last_term } => {
                self.on_request_pre_vote(from, term, last_index, last_term);
            }
            Body::PreVoteResponse { granted } => self.on_pre_vote_response(from, term, granted),
            Body::RequestVote { last_index, last_term, .. } => {
                self.on_request_vote(from, last_index, last_term);
            }
            Body::VoteResponse { granted } => self.on_vote_response(from, granted),
            Body::AppendEntries { prev_index, prev_term, commit, round, entries } => {
                if self.follow(from) {
                    self.on_append_entries(from, prev_index, prev_term, commit, round, entries);
                }
            }
            Body::Heartbeat { commit, commit_term, round } => {
                if self.follow(from) {
                    self.on_heartbeat(from, commit, commit_term, round);
                }
            }
            Body::AppendResponse { result, round } => self.on_append_response(from, result, round),
            Body::HeartbeatResponse { round } => self.on_heartbeat_response(from, round),
            Body::InstallSnapshot { last_index, .. } => {
                if self.follow(from) {
                    self.on_snapshot_offer(from, last_index);
                }
            }
            Body::SnapshotResponse { last_index, installed } => {
                self.on_snapshot_response(from, last_index, installed);
            }
            Body::TimeoutNow => self.on_timeout_now(from),
            Body::ReadIndex { id } => self.on_read_index(from, id),
            Body::ReadIndexResponse { id, index } => self.on_read_index_response(from, id, index),
        }
    }

    /// Tells the sender of an old message that its term is over, so that a stale leader or
    /// candidate gives up; with PreVote it might never hear otherwise.
    fn answer_stale(&mut self, from: NodeId, body: &Body) {
        let answer = match body {
            Body::AppendEntries { .. } | Body::Heartbeat { .. } => {
                Body::HeartbeatResponse { round: 0 }
            }
            Body::RequestVote { .. } => Body::VoteResponse { granted: false },
            Body::RequestPreVote { .. } => Body::PreVoteResponse { granted: false },
            Body::ReadIndex { id } => Body::ReadIndexResponse { id: *id, index: None },
            _ => return,
        };
        self.send(from, answer);
    }

    /// Takes `from` for the leader of the present term; false when that cannot be.
    fn follow(&mut self, from: NodeId) -> bool {
        match self.role {
            // Election safety: nobody but a liar claims a term that this node leads.
            Role::Leader(_) => return false,
            Role::Follower { leader: Some(leader) } if leader != from => return false,
            Role::Follower { leader: Some(_) } => {}
            _ => self.become_follower(self.hard.term, Some(from)),
        }
        self.leader_heard_us = Some(self.now_us);
        self.leader_broke = None;
        self.reset_election_timer();
        true
    }

    /// The connection from `peer` was closed. When that is the leader's, waiting out the whole
    /// election timeout serves nobody, and neither does sending it anything until it is heard again.
    pub fn peer_lost(&mut self, peer: NodeId, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        match &mut self.role {
            Role::Follower { leader: Some(leader) } if *leader == peer => {
                self.become_follower(self.hard.term, None);
                self.leader_broke = Some(0);
                self.leader_heard_us = None;
                self.reset_election_timer();
            }
            Role::Leader(_) => self.peer_changed(peer),
            _ => {}
        }
    }

    /// What was under way to or from `peer` in bulk is lost.
    pub fn flow_lost(&mut self, peer: NodeId, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if let Role::Leader(_) = self.role {
            self.peer_changed(peer);
        }
    }

    /// `peer` can be reached by small messages, perhaps again: it hears from its leader at once.
    pub fn peer_reached(&mut self, peer: NodeId, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        self.send_heartbeat(peer);
    }

    /// A connection to `peer` was made: whatever was sent before it may be lost.
    pub fn peer_connected(&mut self, peer: NodeId, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if let Role::Leader(_) = self.role {
            self.peer_changed(peer);
            self.send_heartbeat(peer);
        }
    }

    /// The applier owes as much as it may: nothing more is handed to it for now.
    pub fn applier_is_full(&self) -> bool {
        self.applying.iter().map(|batch| batch.1).sum::<usize>() >= self.options.applying_bytes_max
    }

    /// The log writer has made everything up to request `seq` durable.
    pub fn persisted(&mut self, seq: u64, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        assert!(seq <= self.asked_seq, "only what was asked for becomes durable");
        self.durable_seq = self.durable_seq.max(seq);
        self.log.persisted(seq);
        while self.asked_at_us.front().is_some_and(|asked| asked.0 <= seq) {
            self.asked_at_us.pop_front();
        }
        while self.held.front().is_some_and(|held| held.0 <= self.durable_seq) {
            let Some((_, message)) = self.held.pop_front() else { break };
            // A promise of an earlier term is not kept waiting for: its term is over.
            if message.term != self.hard.term {
                continue;
            }
            if message.to == self.options.id {
                self.step_checked(message);
            } else {
                self.outbox.push(message);
            }
        }
        self.advance_commit();
    }

    /// The applier has applied everything up to `index`.
    pub fn applied(&mut self, index: Index) {
        assert!(index <= self.handed, "applied once handed");
        // A snapshot may have gone beyond it meanwhile.
        self.applied = self.applied.max(index);
        while self.applying.front().is_some_and(|batch| batch.0 <= index) {
            self.applying.pop_front();
        }
    }

    /// What there is to do. Its fields say what must be durable before which may be acted on.
    pub fn ready(&mut self) -> Ready {
        self.settle_configuration();
        if let Role::Leader(_) = self.role {
            self.start_read_round();
            self.replicate();
        } else {
            self.forward_reads();
        }
        let mut ready = Ready::default();
        if self.hard_changed || self.log.has_unpersisted() {
            self.asked_seq += 1;
            self.asked_at_us.push_back((self.asked_seq, self.now_us));
            ready.persist = Some(Persist {
                seq: self.asked_seq,
                hard_state: self.hard_changed.then_some(self.hard),
                reset: self.log.reset.take(),
                entries: self.log.take_unpersisted(self.asked_seq),
            });
            self.hard_changed = false;
        }
        ready.messages = std::mem::take(&mut self.outbox);
        ready.from_log = std::mem::take(&mut self.from_log);
        ready.reads = std::mem::take(&mut self.read_answers);
        ready.offer = self.wanted.take();
        ready.committed = self.take_committed();
        self.log.trim_cache();
        ready
    }

    // ---- messages ----

    /// Sends now, or as soon as the present term is durable: no message shows a term that its
    /// sender could forget.
    pub(super) fn send(&mut self, to: NodeId, body: Body) {
        let seq = if self.hard_changed { self.asked_seq + 1 } else { self.hard_seq };
        self.send_when(seq, to, body);
    }

    /// Sends when the log is durable up to `index`.
    pub(super) fn send_when_durable(&mut self, index: Index, to: NodeId, body: Body) {
        if index <= self.log.durable() {
            self.send(to, body);
        } else {
            self.send_after_persist(to, body);
        }
    }

    /// Sends when everything that is in the log and the hard state now is durable.
    pub(super) fn send_after_persist(&mut self, to: NodeId, body: Body) {
        let dirty = self.hard_changed || self.log.has_unpersisted();
        self.send_when(self.asked_seq + u64::from(dirty), to, body);
    }

    fn send_when(&mut self, seq: u64, to: NodeId, body: Body) {
        let message = Message { from: self.options.id, to, term: self.hard.term, body };
        if seq <= self.durable_seq && to != self.options.id {
            self.outbox.push(message);
            return;
        }
        // Ascending by seq; nearly always the last place.
        let at = self.held.partition_point(|held| held.0 <= seq);
        // Of two answers to the same leader the later says more: one message instead of many.
        if let Body::AppendResponse { result: super::AppendResult::Matched { index }, .. } =
            message.body
            && let Some((_, before)) = at.checked_sub(1).and_then(|i| self.held.get(i))
            && (before.to, before.term) == (to, message.term)
            && matches!(before.body, Body::AppendResponse {
                result: super::AppendResult::Matched { index: earlier }, .. } if earlier <= index)
            && self.held[at - 1].0 == seq
        {
            self.held[at - 1].1 = message;
            return;
        }
        self.held.insert(at, (seq, message));
    }

    pub(super) fn set_hard(&mut self, hard: HardState) {
        assert!(hard.term >= self.hard.term, "the term never goes back");
        if hard != self.hard {
            self.hard = hard;
            self.hard_changed = true;
            self.hard_seq = self.asked_seq + 1;
        }
    }

    /// The log writer has owed an answer for longer than an election timeout.
    pub(super) fn disk_stalls(&self) -> bool {
        self.asked_at_us
            .front()
            .is_some_and(|asked| self.now_us >= asked.1 + self.options.election_timeout_us)
    }

    // ---- roles ----

    pub(super) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        let vote = if term == self.hard.term { self.hard.vote } else { None };
        if term != self.hard.term {
            self.leader_heard_us = None;
        }
        self.set_hard(HardState { term, vote });
        if let Role::Leader(old) = std::mem::replace(&mut self.role, Role::Follower { leader }) {
            self.fail_leader_reads(*old);
        }
        self.fail_forwarded_reads();
        self.reset_election_timer();
    }

    fn become_pre_candidate(&mut self) {
        self.fail_forwarded_reads();
        self.leader_heard_us = None;
        self.role = Role::PreCandidate { votes: BTreeMap::from([(self.options.id, true)]) };
        if self.wins() {
            self.become_candidate(false);
            return;
        }
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        let term = self.hard.term + 1;
        for to in self.other_voters() {
            // Needs nothing durable: a pre-vote promises nothing at either end.
            let body = Body::RequestPreVote { last_index, last_term };
            self.outbox.push(Message { from: self.options.id, to, term, body });
        }
    }

    pub(super) fn become_candidate(&mut self, transfer: bool) {
        assert!(!matches!(self.role, Role::Leader(_)), "a leader does not campaign");
        self.fail_forwarded_reads();
        let id = self.options.id;
        self.set_hard(HardState { term: self.hard.term + 1, vote: Some(id) });
        self.leader_heard_us = None;
        self.role = Role::Candidate { votes: BTreeMap::new() };
        self.reset_election_timer();
        // Its own vote counts like any other: when it is durable.
        self.send_after_persist(id, Body::VoteResponse { granted: true });
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for to in self.other_voters() {
            self.send_after_persist(to, Body::RequestVote { last_index, last_term, transfer });
        }
    }

    pub(super) fn become_leader(&mut self) {
        assert!(matches!(self.role, Role::Candidate { .. }), "only a candidate is elected");
        assert_eq!(self.hard.vote, Some(self.options.id));
        self.leader_broke = None;
        let next = self.log.last_index() + 1;
        let mut leader = Leader::new(next, self.now_us);
        // They came since it began to stand, and there is nobody else to ask now.
        leader.reads.extend(self.reads_waiting.drain(..).map(ReadRequest::Local));
        self.role = Role::Leader(Box::new(leader));
        // Commits what came before, as soon as it is committed itself (paper 5.4.2, thesis 6.4).
        self.append_as_leader(Payload::Noop);
        self.reconfigure_leader();
        self.broadcast_heartbeat();
    }

    fn other_voters(&self) -> Vec<NodeId> {
        let c = self.log.configuration();
        let all = c.voters.union(&c.outgoing);
        all.copied().filter(|&id| id != self.options.id).collect()
    }

    fn is_alone(&self) -> bool {
        let id = self.options.id;
        self.log.configuration().is_voter(id) && self.other_voters().is_empty()
    }

    /// Waits a random time of one to two election timeouts (paper 5.2), less when the leader's
    /// connection was seen to break.
    pub(super) fn reset_election_timer(&mut self) {
        let base = self.options.election_timeout_us;
        let quick = self.leader_broke.map(|attempts| (base / 16) << attempts);
        let wait = match quick {
            Some(range) if range < base => {
                self.leader_broke = self.leader_broke.map(|attempts| attempts + 1);
                base / 256 + self.rng.below(range)
            }
            _ => base + self.rng.below(base),
        };
        self.election_at_us = self.now_us.saturating_add(wait);
    }

    /// Checks the invariants of the state; a failure is a bug of ours. See `invariants.rs`.
    pub(super) fn assert_log_invariants(&self) {
        self.log.assert_invariants();
        assert!(self.held.iter().is_sorted_by(|a, b| a.0 <= b.0), "held messages ascend");
        assert!(self.durable_seq <= self.asked_seq);
    }
}

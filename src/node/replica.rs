//! The raft loop's component: the consensus core, and everybody who waits for it.
//!
//! Writes wait in one queue until they can be begun: on the leader while the log writer is busy
//! (one batch in flight, everything else accumulates), on a follower until a leader is known. They
//! then wait by (index, term) on the leader, or by number on a follower that has forwarded them.
//!
//! Every request is answered exactly once, at the latest at its deadline:
//! - still queued: surely not applied;
//! - proposed, and another term was committed at its index: surely not applied;
//! - proposed or forwarded, and no word of it: unknown. Never a guess.
//!
//! While the disk of the leader is full, writes that would add data are refused before they are
//! proposed; whoever deletes is served. A follower cannot refuse what its leader has taken.
//!
//! Reads wait for a read index and then until that index is applied here; only then is the client
//! told to read, so that one wake-up serves it.

use super::compaction::Compaction;
use super::digests::{Difference, Digests};
use super::events::{Apply, Effects, Input, Wants};
use super::flushes::{Flushes, Flushing};
use super::membership::Membership;
use super::words::{Answer, Forward, Refusal, ReplyTo, Request, Status, Verdict};
use crate::kv::codec::CommandRef;
use crate::raft::{
    Committed, Configuration, Index, NodeId, NotProposed, Raft, ReadId, RoleName, Term,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Bounds of a [`Replica`].
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Bytes of writes that are queued, proposed or forwarded and not answered
    /// (`--inflight-bytes`), with a little for each. A single write is taken whatever its size.
    pub inflight_bytes_max: usize,
    /// Bytes proposed at once: one batch of the log writer.
    pub batch_bytes_max: usize,
    /// Random identity of this node's data directory.
    pub identity: u64,
    /// `HOST:PORT` under which the others reach this node.
    pub address: String,
    /// Bytes of log beyond which its front goes (`--wal-limit`).
    pub wal_limit_bytes: u64,
}

#[derive(Debug)]
struct Queued<C> {
    command: Arc<[u8]>,
    reply_to: ReplyTo<C>,
    deadline_us: u64,
}

#[derive(Debug)]
struct Proposed<C> {
    bytes: usize,
    reply_to: ReplyTo<C>,
    deadline_us: u64,
    /// The deadline has passed and the client was told so.
    answered: bool,
}

#[derive(Debug)]
struct Reading<C> {
    reply_to: ReplyTo<C>,
    deadline_us: u64,
}

/// A replica: see the module.
#[derive(Debug)]
pub struct Replica<C> {
    raft: Raft,
    options: ReplicaOptions,
    now_us: u64,
    queue: VecDeque<Queued<C>>,
    /// By index and term: after a change of leaders one index may be waited for twice.
    proposed: BTreeMap<(Index, Term), Proposed<C>>,
    forwarded: BTreeMap<u64, (NodeId, Queued<C>)>,
    /// Begins anywhere: an answer to a forward of a former life must not pass for one of this life.
    next_forward: u64,
    /// Nothing is forwarded before: the leader could not be reached just now.
    forward_at_us: u64,
    /// Sum of the [`weight`] of the three above.
    inflight_bytes: usize,
    /// Reads that wait for a read index; those without a number yet wait for a leader.
    reading: BTreeMap<ReadId, Reading<C>>,
    unasked: Vec<Reading<C>>,
    /// Who could not answer a read, in which term, and until when it is not asked again.
    read_pause: Option<(Term, Option<NodeId>, u64)>,
    next_read: ReadId,
    /// Reads that wait until an index is applied.
    applying_reads: Vec<(Index, Reading<C>)>,
    membership: Membership<C>,
    told_configuration: Option<Arc<Configuration>>,
    told_role: Option<(Term, RoleName, Option<NodeId>)>,
    answers: Vec<(ReplyTo<C>, Answer)>,
    expire_at_us: u64,
    compaction: Compaction,
    digests: Digests,
    /// To be told with the next effects.
    digest: Option<(Index, u32)>,
    difference: Option<Difference>,
    /// The store is damaged; `true` until the owner was told.
    repairing: Option<bool>,
    flushes: Flushes<C>,
    /// The store is to flush: asked since the last effects, or because that may give space back.
    flush: bool,
    disk_full: bool,
}

/// How often deadlines are looked at, in microseconds.
const EXPIRE_EVERY_US: u64 = 20_000;

/// Whoever could not be reached, or did not lead, is asked again after so long, in microseconds.
const RETRY_AFTER_US: u64 = EXPIRE_EVERY_US / 2;

/// Time a request may take when nobody names one, in microseconds.
pub const DEADLINE_US: u64 = 5_000_000;
/// Longest time a request may wait, whatever is named: it holds memory meanwhile. In microseconds.
pub const DEADLINE_US_MAX: u64 = 60_000_000;

/// What a write costs beside its command: its places in queue, map and log. Without it a flood of
/// the smallest writes would take many times the memory that the bound names.
const WRITE_OVERHEAD_BYTES: usize = 128;
const _: () = assert!(WRITE_OVERHEAD_BYTES >= crate::raft::ENTRY_OVERHEAD_BYTES);
const _: () = assert!(EXPIRE_EVERY_US < DEADLINE_US && DEADLINE_US < DEADLINE_US_MAX);

/// What a write counts for while it is not answered.
fn weight(command: &[u8]) -> usize {
    WRITE_OVERHEAD_BYTES + command.len()
}

impl<C: Clone> Replica<C> {
    /// A replica around a core.
    pub fn new(raft: Raft, options: ReplicaOptions) -> Replica<C> {
        let address = Some(options.address.clone());
        let membership = Membership::new(raft.id(), options.identity, address);
        let next_forward = raft.seed();
        let compaction = Compaction::new(options.wal_limit_bytes);
        Replica {
            raft,
            options,
            now_us: 0,
            queue: VecDeque::new(),
            proposed: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            next_forward,
            forward_at_us: 0,
            inflight_bytes: 0,
            reading: BTreeMap::new(),
            unasked: Vec::new(),
            read_pause: None,
            next_read: 1,
            applying_reads: Vec::new(),
            membership,
            told_configuration: None,
            told_role: None,
            answers: Vec::new(),
            expire_at_us: 0,
            compaction,
            digests: Digests::default(),
            digest: None,
            difference: None,
            repairing: None,
            flushes: Flushes::new(),
            flush: false,
            disk_full: false,
        }
    }

    /// The core, for whoever watches.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// What writes that are not answered count for at present (see
    /// [`ReplicaOptions::inflight_bytes_max`]).
    pub fn inflight_bytes(&self) -> usize {
        self.inflight_bytes
    }

    /// When [`Replica::tick`] must be called next.
    pub fn next_tick_us(&self) -> u64 {
        let waits = !(self.queue.is_empty()
            && self.proposed.is_empty()
            && self.forwarded.is_empty()
            && self.reading.is_empty()
            && self.unasked.is_empty()
            && self.flushes.is_empty()
            && !self.membership.is_waited_for()
            && self.repairing.is_none()
            && self.applying_reads.is_empty());
        let tick = self.raft.next_tick_us();
        if waits { tick.min(self.expire_at_us) } else { tick }
    }

    /// Time has passed.
    pub fn tick(&mut self, now_us: u64) {
        self.now_us = now_us;
        if now_us >= self.raft.next_tick_us() {
            self.raft.tick(now_us);
        }
        if now_us >= self.expire_at_us {
            if self.repairing.is_some() && self.raft.role() == RoleName::Leader {
                // To whoever can take over; without one there is nobody to lead better.
                let _ = self.raft.transfer(None, now_us);
            }
            self.expire_at_us = now_us + EXPIRE_EVERY_US;
            self.expire(now_us);
        }
    }

    /// Something happened. Effects are taken with [`Replica::effects`], once for many inputs.
    pub fn handle(&mut self, input: Input<C>, now_us: u64) {
        self.now_us = now_us;
        match input {
            Input::Client { client, requests } => {
                for (request, deadline_us, what) in requests {
                    let reply_to = ReplyTo::Client { client: client.clone(), request };
                    self.request(reply_to, deadline_us, what, now_us);
                }
            }
            Input::Peer(message) => self.raft.step(message, now_us),
            // The node's connections take these before they come here.
            Input::Link(_) => {}
            Input::Forwarded { from, forward } => self.on_forwarded(from, forward, now_us),
            Input::ForwardAnswered { from, id, verdict } => {
                if self.forwarded.get(&id).is_some_and(|(leader, _)| *leader == from) {
                    self.on_forward_answered(id, verdict);
                }
            }
            Input::ForwardUnsent { id } => {
                self.on_forward_answered(id, Verdict::NotApplied(Refusal::NotLeader));
            }
            Input::PeerReached { node, identity } => {
                self.membership.met(node, identity, None);
                self.raft.peer_reached(node, now_us);
            }
            Input::PeerConnected { node, identity } => {
                self.membership.met(node, identity, None);
                self.raft.peer_connected(node, now_us);
            }
            Input::PeerDialed { node, identity, address } => {
                self.membership.met(node, identity, Some(address));
            }
            Input::PeerLost { node } => {
                self.raft.peer_lost(node, now_us);
                self.fail_forwarded(|leader| leader == node);
            }
            Input::FlowLost { node } => {
                self.raft.flow_lost(node, now_us);
                self.fail_forwarded(|leader| leader == node);
            }
            Input::EntriesRead(read) => self.raft.entries_read(&read, now_us),
            Input::Persisted { seq, log_bytes } => {
                self.compaction.log_bytes(log_bytes);
                self.raft.persisted(seq, now_us);
            }
            Input::Compacted { log_bytes } => {
                self.compaction.cut(log_bytes);
                self.flushes.cut(&mut self.answers);
            }
            Input::Flushed { index } => self.compaction.flushed(index),
            Input::Digest { node, index, digest } => {
                if node == self.raft.id() {
                    self.digest = Some((index, digest));
                }
                let difference = self.digests.heard(node, index, digest);
                self.difference = difference.or(self.difference.take());
            }
            Input::Damaged => {
                self.repairing.get_or_insert(true);
            }
            Input::Applied { index, flushed } => {
                self.compaction.flushed(flushed);
                self.raft.applied(index);
            }
            Input::DiskFull(full) => {
                self.disk_full = full;
                self.flush |= full;
            }
            Input::Installed { mark } => {
                self.compaction.flushed(mark.index);
                self.repairing = None;
                if self.raft.install(mark, now_us) {
                    self.settle_installed();
                }
            }
        }
    }

    /// A snapshot took the place of entries that somebody waited for: they may be in it or not.
    fn settle_installed(&mut self) {
        let applied = self.raft.applied_index();
        let behind = self.proposed.split_off(&(applied + 1, 0));
        for (_, waiter) in std::mem::replace(&mut self.proposed, behind) {
            self.inflight_bytes -= waiter.bytes;
            if !waiter.answered {
                let verdict = Verdict::Unknown("a snapshot took the place of its log entry");
                self.answers.push((waiter.reply_to, Answer::Write(verdict)));
            }
        }
    }

    fn request(&mut self, reply_to: ReplyTo<C>, deadline_us: u64, what: Request, now_us: u64) {
        let leads = self.raft.role() == RoleName::Leader;
        match what {
            // What a leader commits now it could not answer.
            Request::Write(_) if self.repairing.is_some() && leads => {
                self.refuse(reply_to, Refusal::Damaged);
            }
            Request::Read if self.repairing.is_some() => {
                self.answers.push((reply_to, Answer::Read(Err(Refusal::Damaged))));
            }
            Request::Write(command) => {
                let bytes_max = self.options.inflight_bytes_max;
                // One is always taken, or a write that is larger than the bound would be told for
                // ever to try again.
                let fits = self.inflight_bytes + weight(&command) <= bytes_max;
                if !fits && self.inflight_bytes > 0 {
                    self.refuse(reply_to, Refusal::Busy { bytes_max });
                    return;
                }
                self.inflight_bytes += weight(&command);
                self.queue.push_back(Queued { command, reply_to, deadline_us });
            }
            Request::Read => self.unasked.push(Reading { reply_to, deadline_us }),
            Request::Status => {
                let status = Answer::Status(Box::new(self.status()));
                self.answers.push((reply_to, status));
            }
            Request::Transfer(to) => {
                let result = self.raft.transfer(to, now_us);
                self.answers.push((reply_to, Answer::Transfer(result)));
            }
            Request::Change(change) => {
                self.membership.ask(reply_to, deadline_us, change, now_us);
            }
            Request::Flush { cut } => {
                let index = self.raft.applied_index();
                self.flush = true;
                self.flushes.wait(Flushing { reply_to, deadline_us, index, cut });
            }
        }
    }

    /// Does what can be done now, and says what is to be done outside.
    pub fn effects(&mut self) -> Effects<C> {
        let mut effects = Effects::default();
        self.begin_writes(&mut effects.forwards);
        self.begin_reads();
        self.membership.turn(&mut self.raft, self.now_us, &mut self.answers);
        let ready = self.raft.ready();
        effects.persist = ready.persist;
        effects.messages = ready.messages;
        effects.from_log = ready.from_log;
        for answer in ready.reads {
            if let Some(reading) = self.reading.remove(&answer.id) {
                match answer.index {
                    Some(index) => self.applying_reads.push((index, reading)),
                    None => {
                        self.unasked.push(reading);
                        let (term, leader) = (self.raft.term(), self.raft.leader());
                        self.read_pause = Some((term, leader, self.now_us + RETRY_AFTER_US));
                    }
                }
            }
        }
        self.release_reads();
        effects.apply = ready.committed.map(|committed| self.attach_waiters(committed));
        effects.offer = ready.offer;
        effects.digest = self.digest.take();
        effects.difference = self.difference.take();
        effects.repair = self.repairing.as_mut().is_some_and(std::mem::take);
        effects.flush = std::mem::take(&mut self.flush);
        effects.compact = self.serve_flushed();
        effects.answers = std::mem::take(&mut self.answers);
        if self.compaction.is_due() {
            let raft = &self.raft;
            let (first, shared) = (raft.first_index(), raft.shared_index());
            let cut = self.compaction.look(first, shared, raft.applied_index());
            effects.flush |= cut.flush;
            if let Some(through) = cut.through.filter(|_| effects.compact.is_none()) {
                self.raft.compact(through);
                effects.compact = Some(through);
            }
        }
        self.tell_changes(&mut effects);
        effects
    }

    /// Settles with whoever waited for the store; says up to where the log goes for their sake.
    fn serve_flushed(&mut self) -> Option<Index> {
        let flushed = self.compaction.flushed_index().min(self.raft.applied_index());
        let cut = self.flushes.flushed(flushed, &mut self.answers);
        if cut && flushed >= self.raft.first_index() {
            self.raft.compact(flushed);
        }
        cut.then_some(flushed)
    }

    // ---- writes ----

    fn begin_writes(&mut self, forwards: &mut Vec<(NodeId, Forward)>) {
        if self.queue.is_empty() {
            return;
        }
        match self.raft.may_propose() {
            Ok(()) => {
                if self.disk_full {
                    self.refuse_growth();
                }
                // One batch in flight: what arrives meanwhile makes the next one larger.
                if self.may_begin_batch() && !self.queue.is_empty() {
                    self.propose_batch();
                }
            }
            Err(NotProposed::NotLeader { leader: Some(leader) }) => {
                self.forward_all(leader, forwards);
            }
            Err(_) => {}
        }
    }

    fn may_begin_batch(&self) -> bool {
        self.raft.commit_index() == self.raft.last_index()
    }

    /// What is worth waking for.
    pub fn wants(&self) -> Wants {
        let leads = self.raft.role() == RoleName::Leader;
        Wants {
            writes: !leads || self.may_begin_batch(),
            reads: !leads || self.reading.is_empty(),
            applied: !self.applying_reads.is_empty() || self.raft.applier_is_full(),
        }
    }

    /// What cannot be decoded counts as data.
    fn refuse_growth(&mut self) {
        let harmless = |bytes: &[u8]| CommandRef::decode(bytes).is_ok_and(|c| !c.adds_data());
        let queue = std::mem::take(&mut self.queue);
        for queued in queue {
            if harmless(&queued.command) {
                self.queue.push_back(queued);
            } else {
                self.inflight_bytes -= weight(&queued.command);
                self.refuse(queued.reply_to, Refusal::DiskFull { node: self.raft.id() });
            }
        }
    }

    fn propose_batch(&mut self) {
        let mut bytes = 0;
        let fits = |queued: &&Queued<C>| {
            bytes += weight(&queued.command);
            bytes <= self.options.batch_bytes_max
        };
        let count = self.queue.iter().take_while(fits).count().max(1);
        let commands = self.queue.iter().take(count).map(|q| Arc::clone(&q.command));
        let Ok(first) = self.raft.propose(commands) else { return };
        let term = self.raft.term();
        for (index, queued) in (first..).zip(self.queue.drain(..count)) {
            let waiter = Proposed {
                bytes: weight(&queued.command),
                reply_to: queued.reply_to,
                deadline_us: queued.deadline_us,
                answered: false,
            };
            self.proposed.insert((index, term), waiter);
        }
    }

    fn forward_all(&mut self, leader: NodeId, forwards: &mut Vec<(NodeId, Forward)>) {
        if self.now_us < self.forward_at_us {
            return;
        }
        while let Some(queued) = self.queue.pop_front() {
            // Forwarded once only: a chain of forwards could run in a circle.
            if let ReplyTo::Peer { .. } = queued.reply_to {
                self.inflight_bytes -= weight(&queued.command);
                self.refuse(queued.reply_to, Refusal::NotLeader);
                continue;
            }
            let id = self.next_forward;
            self.next_forward = self.next_forward.wrapping_add(1);
            // Never 0, which would leave it to the leader and give it longer than anybody waits.
            let left_ms = (queued.deadline_us.saturating_sub(self.now_us) / 1000).max(1);
            let deadline_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
            let command = Arc::clone(&queued.command);
            forwards.push((leader, Forward { id, deadline_ms, command }));
            self.forwarded.insert(id, (leader, queued));
        }
    }

    fn on_forwarded(&mut self, from: NodeId, forward: Forward, now_us: u64) {
        let reply_to = ReplyTo::Peer { node: from, id: forward.id };
        if self.raft.role() == RoleName::Leader {
            let wait_us = match forward.deadline_ms {
                0 => DEADLINE_US,
                ms => (u64::from(ms) * 1000).min(DEADLINE_US_MAX),
            };
            self.request(reply_to, now_us + wait_us, Request::Write(forward.command), now_us);
        } else {
            self.refuse(reply_to, Refusal::NotLeader);
        }
    }

    fn on_forward_answered(&mut self, id: u64, verdict: Verdict) {
        let Some((_, queued)) = self.forwarded.remove(&id) else { return };
        match verdict {
            // Surely not applied there: it may be tried again, not at once.
            Verdict::NotApplied(Refusal::NotLeader | Refusal::NoLeader | Refusal::Overwritten) => {
                self.queue.push_back(queued);
                self.forward_at_us = self.now_us + RETRY_AFTER_US;
            }
            verdict => {
                self.inflight_bytes -= weight(&queued.command);
                self.answers.push((queued.reply_to, Answer::Write(verdict)));
            }
        }
    }

    /// Nothing more will be heard of these.
    fn fail_forwarded(&mut self, is_gone: impl Fn(NodeId) -> bool) {
        let ids: Vec<u64> =
            self.forwarded.iter().filter(|(_, (l, _))| is_gone(*l)).map(|(&id, _)| id).collect();
        for id in ids {
            let why = "the connection to the leader broke after the write was sent to it";
            self.on_forward_answered(id, Verdict::Unknown(why));
        }
    }

    fn refuse(&mut self, reply_to: ReplyTo<C>, refusal: Refusal) {
        self.answers.push((reply_to, Answer::Write(Verdict::NotApplied(refusal))));
    }

    /// Finds who waits for the committed entries. An index alone names nobody: the term must be
    /// that of the proposal.
    fn attach_waiters(&mut self, committed: Committed) -> Apply<C> {
        let mut waiters = Vec::new();
        while let Some(first) = self.proposed.first_entry()
            && first.key().0 <= committed.last
        {
            let ((index, term), waiter) = first.remove_entry();
            self.inflight_bytes -= waiter.bytes;
            if waiter.answered {
                continue;
            }
            if self.raft.term_at(index) == Some(term) {
                waiters.push((index, waiter.reply_to));
            } else {
                self.refuse(waiter.reply_to, Refusal::Overwritten);
            }
        }
        Apply { committed, waiters }
    }

    // ---- reads ----

    fn begin_reads(&mut self) {
        if self.unasked.is_empty() || self.raft.leader().is_none() {
            return;
        }
        // Whoever says that it does not lead is not asked over and over; another leader is, at once.
        let whom = (self.raft.term(), self.raft.leader());
        if let Some((term, leader, until_us)) = self.read_pause
            && (term, leader) == whom
            && self.now_us < until_us
        {
            return;
        }
        for reading in std::mem::take(&mut self.unasked) {
            let id = self.next_read;
            self.next_read += 1;
            self.reading.insert(id, reading);
            self.raft.read(id);
        }
    }

    fn release_reads(&mut self) {
        let applied = self.raft.applied_index();
        if self.applying_reads.is_empty() {
            return;
        }
        let mut waiting = Vec::new();
        for (index, reading) in self.applying_reads.drain(..) {
            if index <= applied {
                self.answers.push((reading.reply_to, Answer::Read(Ok(()))));
            } else {
                waiting.push((index, reading));
            }
        }
        self.applying_reads = waiting;
    }

    // ---- time ----

    fn expire(&mut self, now_us: u64) {
        let answers = &mut self.answers;
        let inflight_bytes = &mut self.inflight_bytes;
        let leader_known = self.raft.leader().is_some();
        let refusal = if leader_known { Refusal::Deadline } else { Refusal::NoLeader };
        self.queue.retain(|queued| {
            let keep = now_us < queued.deadline_us;
            if !keep {
                *inflight_bytes -= weight(&queued.command);
                let verdict = Verdict::NotApplied(refusal);
                answers.push((queued.reply_to.clone(), Answer::Write(verdict)));
            }
            keep
        });
        for waiter in self.proposed.values_mut() {
            if !waiter.answered && now_us >= waiter.deadline_us {
                waiter.answered = true;
                let verdict = Verdict::Unknown("it was not committed before the deadline");
                answers.push((waiter.reply_to.clone(), Answer::Write(verdict)));
            }
        }
        // One that is answered and not in the log any more costs nothing. The index that would
        // settle it may not be reached for long: an idle cluster under another leader is enough.
        let raft = &self.raft;
        self.proposed.retain(|&(index, term), waiter| {
            let keep = !waiter.answered || raft.term_at(index) == Some(term);
            if !keep {
                *inflight_bytes -= waiter.bytes;
            }
            keep
        });
        let mut read_late = |reading: &Reading<C>| {
            let keep = now_us < reading.deadline_us;
            if !keep {
                answers.push((reading.reply_to.clone(), Answer::Read(Err(refusal))));
            }
            keep
        };
        self.reading.retain(|_, reading| read_late(reading));
        self.unasked.retain(&mut read_late);
        self.applying_reads.retain(|(_, reading)| read_late(reading));
        self.flushes.expire(now_us, answers);
        self.membership.expire(now_us, answers);
        let late: Vec<u64> = self
            .forwarded
            .iter()
            .filter(|(_, (_, queued))| now_us >= queued.deadline_us)
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            let why = "the leader did not answer before the deadline";
            self.on_forward_answered(id, Verdict::Unknown(why));
        }
    }

    // ---- status ----

    /// What this node knows.
    pub fn status(&self) -> Status {
        Status {
            id: self.raft.id(),
            role: self.raft.role(),
            repairing: self.repairing.is_some(),
            leads_and_knows: self.raft.leads_and_knows(),
            leader: self.raft.leader(),
            term: self.raft.term(),
            commit: self.raft.commit_index(),
            applied: self.raft.applied_index(),
            last_index: self.raft.last_index(),
            configuration: Arc::clone(self.raft.configuration()),
            peers: self.raft.progress(),
        }
    }

    fn tell_changes(&mut self, effects: &mut Effects<C>) {
        let configuration = self.raft.configuration();
        let same = self.told_configuration.as_ref().is_some_and(|c| Arc::ptr_eq(c, configuration));
        if !same {
            self.told_configuration = Some(Arc::clone(configuration));
            effects.configuration = Some(Arc::clone(configuration));
        }
        let role = (self.raft.term(), self.raft.role(), self.raft.leader());
        if self.told_role != Some(role) {
            // Writes forwarded to a leader of the past may still be answered by it: it knows their
            // fate. Only a broken connection or the deadline ends that wait.
            self.told_role = Some(role);
            effects.role = Some(role);
        }
    }
}

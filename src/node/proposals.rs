//! Writes on their way: queued, proposed or forwarded, until each is answered.
//!
//! They wait in one queue until they can be begun: on the leader while the log writer is busy, on a
//! follower until a leader is known. Then they wait by (index, term) on the leader, or by number on a
//! follower that has forwarded them. A forward is never forwarded again: a chain could run in a
//! circle.
//!
//! A leader that was overtaken may have the forwards it got in its log, and the next leader may commit
//! them: only the node that was asked can say that one surely has no effect. So when another node
//! leads, the one that was asked has a moment to say so, as it does when it hands leadership on; then
//! the outcome is unknown.

use super::words::{Answer, Forward, Refusal, ReplyTo, Verdict};
use crate::kv::codec::CommandRef;
use crate::raft::{Committed, Index, NodeId, NotProposed, Raft, RoleName, Term};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a write costs beside its command: its places in queue, map and log. Without it a flood of
/// the smallest writes would take many times the memory that the bound names.
const WRITE_OVERHEAD_BYTES: usize = 128;

const _: () = assert!(WRITE_OVERHEAD_BYTES >= crate::raft::ENTRY_OVERHEAD_BYTES);

/// What a write counts for while it is not answered.
pub(super) fn weight(command: &[u8]) -> usize {
    WRITE_OVERHEAD_BYTES + command.len()
}

/// Bounds of [`Proposals`], as in [`super::ReplicaOptions`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) inflight_bytes_max: usize,
    pub(super) batch_bytes_max: usize,
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
struct Forwarded<C> {
    leader: NodeId,
    write: Queued<C>,
    /// Another node leads: when the one that was asked is not waited for any longer.
    until_us: Option<u64>,
}

type Answers<C> = Vec<(ReplyTo<C>, Answer)>;

/// See the module.
#[derive(Debug)]
pub(super) struct Proposals<C> {
    bounds: Bounds,
    queue: VecDeque<Queued<C>>,
    /// By index and term: after a change of leaders one index may be waited for twice.
    proposed: BTreeMap<(Index, Term), Proposed<C>>,
    forwarded: BTreeMap<u64, Forwarded<C>>,
    /// Begins anywhere: an answer to a forward of a former life must not pass for one of this life.
    next_forward: u64,
    /// Nothing is forwarded before: the leader could not be reached just now.
    forward_at_us: u64,
    /// Nothing is proposed before: this node's applier rests.
    propose_at_us: u64,
    /// Sum of the [`weight`] of the three above.
    inflight_bytes: usize,
}

impl<C: Clone> Proposals<C> {
    /// None. Forwards are numbered from `first`, which differs from one life of a node to the next.
    pub(super) fn new(bounds: Bounds, first: u64) -> Proposals<C> {
        Proposals {
            bounds,
            queue: VecDeque::new(),
            proposed: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            next_forward: first,
            forward_at_us: 0,
            propose_at_us: 0,
            inflight_bytes: 0,
        }
    }

    /// What writes that are not answered count for.
    pub(super) fn inflight_bytes(&self) -> usize {
        self.inflight_bytes
    }

    /// Whether there are any.
    pub(super) fn are_waited_for(&self) -> bool {
        !(self.queue.is_empty() && self.proposed.is_empty() && self.forwarded.is_empty())
    }

    /// Somebody wants this written.
    pub(super) fn take(
        &mut self,
        reply_to: ReplyTo<C>,
        deadline_us: u64,
        command: Arc<[u8]>,
        answers: &mut Answers<C>,
    ) {
        let bytes_max = self.bounds.inflight_bytes_max;
        // One is always taken, or a write that is larger than the bound would be told for ever to
        // try again.
        let fits = self.inflight_bytes + weight(&command) <= bytes_max;
        if !fits && self.inflight_bytes > 0 {
            refuse(reply_to, Refusal::Busy { bytes_max }, answers);
            return;
        }
        self.inflight_bytes += weight(&command);
        self.queue.push_back(Queued { command, reply_to, deadline_us });
    }

    /// Begins what can be begun.
    pub(super) fn begin(
        &mut self,
        raft: &mut Raft,
        disk_full: bool,
        now_us: u64,
        forwards: &mut Vec<(NodeId, Forward)>,
        answers: &mut Answers<C>,
    ) {
        if self.queue.is_empty() {
            return;
        }
        match raft.may_propose() {
            Ok(()) => {
                if disk_full {
                    self.refuse_growth(raft.id(), answers);
                }
                // One batch in flight: what arrives meanwhile makes the next one larger.
                if self.may_begin_batch(raft, now_us) && !self.queue.is_empty() {
                    self.propose_batch(raft);
                }
            }
            Err(NotProposed::NotLeader { leader: Some(leader) }) => {
                self.forward_all(leader, now_us, forwards, answers);
            }
            Err(_) => {}
        }
    }

    fn refuse_growth(&mut self, node: NodeId, answers: &mut Answers<C>) {
        let harmless = |bytes: &[u8]| CommandRef::decode(bytes).is_ok_and(|c| !c.adds_data());
        for queued in std::mem::take(&mut self.queue) {
            if harmless(&queued.command) {
                self.queue.push_back(queued);
            } else {
                self.inflight_bytes -= weight(&queued.command);
                refuse(queued.reply_to, Refusal::DiskFull { node }, answers);
            }
        }
    }

    fn propose_batch(&mut self, raft: &mut Raft) {
        let mut bytes = 0;
        let fits = |queued: &&Queued<C>| {
            bytes += weight(&queued.command);
            bytes <= self.bounds.batch_bytes_max
        };
        let count = self.queue.iter().take_while(fits).count().max(1);
        let commands = self.queue.iter().take(count).map(|q| Arc::clone(&q.command));
        let Ok(first) = raft.propose(commands) else { return };
        let term = raft.term();
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

    fn forward_all(
        &mut self,
        leader: NodeId,
        now_us: u64,
        forwards: &mut Vec<(NodeId, Forward)>,
        answers: &mut Answers<C>,
    ) {
        if now_us < self.forward_at_us {
            return;
        }
        while let Some(write) = self.queue.pop_front() {
            // Forwarded once only: a chain of forwards could run in a circle.
            if let ReplyTo::Peer { .. } = write.reply_to {
                self.inflight_bytes -= weight(&write.command);
                refuse(write.reply_to, Refusal::NotLeader, answers);
                continue;
            }
            let id = self.next_forward;
            self.next_forward = self.next_forward.wrapping_add(1);
            let deadline_ms = left_ms(write.deadline_us, now_us);
            let command = Arc::clone(&write.command);
            forwards.push((leader, Forward { id, deadline_ms, command }));
            self.forwarded.insert(id, Forwarded { leader, write, until_us: None });
        }
    }

    /// Whether that node was asked by that number.
    pub(super) fn is_asked(&self, node: NodeId, id: u64) -> bool {
        self.forwarded.get(&id).is_some_and(|forwarded| forwarded.leader == node)
    }

    /// What became of a forward.
    pub(super) fn answered(
        &mut self,
        id: u64,
        verdict: Verdict,
        now_us: u64,
        answers: &mut Answers<C>,
    ) {
        let Some(Forwarded { write, .. }) = self.forwarded.remove(&id) else { return };
        match verdict {
            // Surely not applied there: it may be tried again, not at once.
            Verdict::NotApplied(Refusal::NotLeader | Refusal::NoLeader | Refusal::Overwritten) => {
                self.queue.push_back(write);
                self.forward_at_us = now_us + super::replica::RETRY_AFTER_US;
            }
            verdict => {
                self.inflight_bytes -= weight(&write.command);
                answers.push((write.reply_to, Answer::Write(verdict)));
            }
        }
    }

    /// Nothing more will be heard of those for which `is_over` holds.
    fn give_up(
        &mut self,
        why: &'static str,
        now_us: u64,
        answers: &mut Answers<C>,
        is_over: impl Fn(&Forwarded<C>) -> bool,
    ) {
        let over = self.forwarded.iter().filter(|(_, forwarded)| is_over(forwarded));
        let ids: Vec<u64> = over.map(|(&id, _)| id).collect();
        for id in ids {
            self.answered(id, Verdict::Unknown(why), now_us, answers);
        }
    }

    /// The connection with a node broke.
    pub(super) fn lost(&mut self, node: NodeId, now_us: u64, answers: &mut Answers<C>) {
        let why = "the connection to the leader broke after the write was sent to it";
        self.give_up(why, now_us, answers, |forwarded| forwarded.leader == node);
    }

    /// That node leads. Whoever else was asked is waited for until then.
    pub(super) fn led_by(&mut self, leader: NodeId, until_us: u64) {
        for forwarded in self.forwarded.values_mut() {
            forwarded.until_us = match forwarded.until_us {
                _ if forwarded.leader == leader => None,
                already => already.or(Some(until_us)),
            };
        }
    }

    /// No leader was known for long: what was not begun surely never was.
    pub(super) fn refuse_queued(&mut self, answers: &mut Answers<C>) {
        for queued in self.queue.drain(..) {
            self.inflight_bytes -= weight(&queued.command);
            refuse(queued.reply_to, Refusal::NoLeader, answers);
        }
    }

    /// A snapshot took the place of entries up to `applied` that somebody waited for: they may be in
    /// it or not.
    pub(super) fn installed(&mut self, applied: Index, answers: &mut Answers<C>) {
        let behind = self.proposed.split_off(&(applied + 1, 0));
        for (_, waiter) in std::mem::replace(&mut self.proposed, behind) {
            self.inflight_bytes -= waiter.bytes;
            if !waiter.answered {
                let verdict = Verdict::Unknown("a snapshot took the place of its log entry");
                answers.push((waiter.reply_to, Answer::Write(verdict)));
            }
        }
    }

    /// Finds who waits for the committed entries. An index alone names nobody: the term must be
    /// that of the proposal.
    pub(super) fn committed(
        &mut self,
        raft: &Raft,
        committed: &Committed,
        answers: &mut Answers<C>,
    ) -> Vec<(Index, ReplyTo<C>)> {
        let mut waiters = Vec::new();
        while let Some(first) = self.proposed.first_entry()
            && first.key().0 <= committed.last
        {
            let ((index, term), waiter) = first.remove_entry();
            self.inflight_bytes -= waiter.bytes;
            if waiter.answered {
                continue;
            }
            if raft.term_at(index) == Some(term) {
                waiters.push((index, waiter.reply_to));
            } else {
                refuse(waiter.reply_to, Refusal::Overwritten, answers);
            }
        }
        waiters
    }

    /// Answers those whose time is over; `refusal` is for those that were not begun.
    pub(super) fn expire(
        &mut self,
        raft: &Raft,
        refusal: Refusal,
        now_us: u64,
        answers: &mut Answers<C>,
    ) {
        let inflight_bytes = &mut self.inflight_bytes;
        self.queue.retain(|queued| {
            let keep = now_us < queued.deadline_us;
            if !keep {
                *inflight_bytes -= weight(&queued.command);
                refuse(queued.reply_to.clone(), refusal, answers);
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
        self.proposed.retain(|&(index, term), waiter| {
            let keep = !waiter.answered || raft.term_at(index) == Some(term);
            if !keep {
                *inflight_bytes -= waiter.bytes;
            }
            keep
        });
        let why = "another node leads by now, and the one that was asked has not answered";
        let is_over = |f: &Forwarded<C>| f.until_us.is_some_and(|until_us| now_us >= until_us);
        self.give_up(why, now_us, answers, is_over);
        let why = "the leader did not answer before the deadline";
        self.give_up(why, now_us, answers, |f| now_us >= f.write.deadline_us);
    }

    /// The applier rests until then.
    pub(super) fn rest(&mut self, until_us: u64) {
        self.propose_at_us = until_us;
    }

    /// When a batch may be begun that waits for the applier's rest to end.
    pub(super) fn rested_at_us(&self, raft: &Raft, now_us: u64) -> Option<u64> {
        let waits = !self.queue.is_empty() && raft.role() == RoleName::Leader;
        (waits && now_us < self.propose_at_us).then_some(self.propose_at_us)
    }

    /// Whether a write that came now could be begun.
    pub(super) fn wants_writes(&self, raft: &Raft, now_us: u64) -> bool {
        raft.role() != RoleName::Leader || self.may_begin_batch(raft, now_us)
    }

    fn may_begin_batch(&self, raft: &Raft, now_us: u64) -> bool {
        raft.commit_index() == raft.last_index() && now_us >= self.propose_at_us
    }
}

fn refuse<C>(reply_to: ReplyTo<C>, refusal: Refusal, answers: &mut Answers<C>) {
    answers.push((reply_to, Answer::Write(Verdict::NotApplied(refusal))));
}

/// Milliseconds until then. Never 0, which would leave it to the leader and give it longer than
/// anybody waits.
pub(super) fn left_ms(deadline_us: u64, now_us: u64) -> u32 {
    let left_ms = (deadline_us.saturating_sub(now_us) / 1000).max(1);
    u32::try_from(left_ms).unwrap_or(u32::MAX)
}

//! The raft loop's component: the consensus core, and everybody who waits for it.
//!
//! Writes wait in `proposals.rs`, linearizable reads in `reads.rs`, what operators ask of a leader in
//! `membership.rs`, and on its way there in `admin.rs`.
//!
//! Every request is answered exactly once, at the latest at its deadline:
//! - still queued: surely not applied; also as soon as no leader was known for two election timeouts;
//! - proposed, and another term was committed at its index: surely not applied;
//! - proposed or forwarded, and no word of it: unknown. Never a guess.
//!
//! A command is checked here against the limits of the node that proposes it, and nowhere else.
//! While the disk of the leader is full, writes that would add data are refused before they are
//! proposed; whoever deletes is served. A follower cannot refuse what its leader has taken.

use super::admin::{Admin, Forwards};
use super::changes::{Change, ChangeRefused};
use super::compaction::Compaction;
use super::digests::{Difference, Digests};
use super::events::{Apply, Effects, Input};
use super::flushes::{Flushes, Flushing};
use super::inbox::WakeInterest;
use super::membership::Membership;
use super::proposals::{Bounds, Proposals};
use super::reads::Reads;
use super::status::Status;
use super::words::{Answer, Forward, Refusal, ReplyTo, Request, Verdict};
use crate::kv::Limits;
use crate::raft::{Body, Committed, Configuration, Index, Message, NodeId, Raft, RoleName, Term};
use std::sync::Arc;

/// Bounds of a [`Replica`].
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Bytes of writes that are queued, proposed or forwarded and not answered
    /// (`--inflight-bytes`), with a little for each. A single write is taken whatever its size.
    pub inflight_bytes_max: usize,
    /// What may be proposed (`--max-value`, `--max-batch`).
    pub limits: Limits,
    /// Bytes proposed at once: one batch of the log writer.
    pub batch_bytes_max: usize,
    /// Random identity of this node's data directory.
    pub identity: u64,
    /// `HOST:PORT` under which the others reach this node.
    pub address: String,
    /// Most members of the cluster: [`super::MEMBERS_MAX`] in production.
    pub members_max: usize,
    /// Bytes of log beyond which its front goes (`--wal-limit`).
    pub wal_limit_bytes: u64,
}

/// A replica: see the module.
#[derive(Debug)]
pub struct Replica<C> {
    raft: Raft,
    limits: Limits,
    now_us: u64,
    proposals: Proposals<C>,
    reads: Reads<C>,
    admin: Forwards<C>,
    /// Since when no leader is known.
    leaderless_since_us: Option<u64>,
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
    /// The store is damaged, and nobody else is there to repair it: what is whole is served.
    hurt: bool,
    flushes: Flushes<C>,
    /// The store is to flush: asked since the last effects, or because that may give space back.
    flush: bool,
    disk_full: bool,
}

/// How often deadlines are looked at, in microseconds.
const EXPIRE_EVERY_US: u64 = 20_000;

/// Whoever could not be reached, or did not lead, is asked again after so long, in microseconds.
pub(super) const RETRY_AFTER_US: u64 = EXPIRE_EVERY_US / 2;

/// Time a request may take when nobody names one, in microseconds.
pub const DEADLINE_US: u64 = 5_000_000;
/// Longest time a request may wait, whatever is named: it holds memory meanwhile. In microseconds.
pub const DEADLINE_US_MAX: u64 = 60_000_000;

const _: () = assert!(EXPIRE_EVERY_US < DEADLINE_US && DEADLINE_US < DEADLINE_US_MAX);

impl<C: Clone> Replica<C> {
    /// A replica around a core.
    pub fn new(raft: Raft, options: ReplicaOptions) -> Replica<C> {
        let address = Some(options.address);
        let membership = Membership::new(raft.id(), options.identity, address, options.members_max);
        let first_forward = raft.seed();
        let bounds = Bounds {
            inflight_bytes_max: options.inflight_bytes_max,
            batch_bytes_max: options.batch_bytes_max,
        };
        let now_us = raft.now_us();
        let compaction = Compaction::new(options.wal_limit_bytes);
        Replica {
            raft,
            limits: options.limits,
            now_us,
            proposals: Proposals::new(bounds, first_forward),
            reads: Reads::new(),
            admin: Forwards::new(first_forward.wrapping_add(1 << 63)),
            leaderless_since_us: None,
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
            hurt: false,
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
        self.proposals.inflight_bytes()
    }

    /// When [`Replica::tick`] must be called next.
    pub fn next_tick_us(&self) -> u64 {
        let waits = self.proposals.are_waited_for()
            || self.reads.are_waited_for()
            || self.admin.are_waited_for()
            || self.membership.is_waited_for()
            || self.repairing.is_some()
            || !self.flushes.is_empty();
        let tick = self.raft.next_tick_us();
        let tick = if waits { tick.min(self.expire_at_us) } else { tick };
        let rested_us = self.proposals.rested_at_us(&self.raft, self.now_us);
        rested_us.map_or(tick, |rested_us| tick.min(rested_us))
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
            // To the leader that is as if it were lost. What counts as life comes in heartbeats.
            Input::Peer(message) if self.is_to_be_left(&message) => {}
            Input::Peer(message) => self.raft.step(message, now_us),
            // The node's connections take these before they come here.
            Input::Link(_) => {}
            Input::Forwarded { from, forward } => self.on_forwarded(from, forward, now_us),
            Input::ForwardAnswered { from, id, verdict } => {
                if self.proposals.is_asked(from, id) {
                    self.proposals.answered(id, verdict, now_us, &mut self.answers);
                }
            }
            Input::ForwardUnsent { id } => {
                let verdict = Verdict::NotApplied(Refusal::NotLeader);
                self.proposals.answered(id, verdict, now_us, &mut self.answers);
                self.admin.unsent(id, &mut self.answers);
            }
            Input::AdminForwarded { from, forward } => {
                let reply_to = ReplyTo::Peer { node: from, id: forward.id };
                let deadline_us = deadline_of(forward.deadline_ms, now_us);
                self.administer(reply_to, deadline_us, forward.what, now_us);
            }
            Input::AdminAnswered { from, id, result } => {
                self.admin.answered(from, id, result, &mut self.answers);
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
                self.proposals.lost(node, now_us, &mut self.answers);
                self.admin.lost(node, &mut self.answers);
            }
            Input::FlowLost { node } => {
                self.raft.flow_lost(node, now_us);
                self.proposals.lost(node, now_us, &mut self.answers);
                self.admin.lost(node, &mut self.answers);
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
            Input::Rests { until_us } => self.proposals.rest(until_us),
            Input::Flushed { index } => self.compaction.flushed(index),
            Input::Digest { node, index, digest } => {
                if node == self.raft.id() {
                    self.digest = Some((index, digest));
                }
                let difference = self.digests.heard(node, index, digest);
                self.difference = difference.or(self.difference.take());
            }
            Input::Damaged if self.is_alone() => self.hurt = true,
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
            Input::FlushWanted => self.flush = true,
            Input::Installed { mark } => {
                self.compaction.flushed(mark.index);
                self.repairing = None;
                if self.raft.install(mark, now_us) {
                    let applied = self.raft.applied_index();
                    self.proposals.installed(applied, &mut self.answers);
                }
            }
        }
    }

    /// Whether it brings entries for which the log of a node that cannot apply has no room.
    fn is_to_be_left(&self, message: &Message) -> bool {
        self.repairing.is_some()
            && self.compaction.is_beyond()
            && matches!(&message.body, Body::AppendEntries { entries, .. } if !entries.is_empty())
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
            Request::Write(_) if self.is_leaderless(now_us) => {
                self.refuse(reply_to, Refusal::NoLeader);
            }
            Request::Read if self.is_leaderless(now_us) => {
                self.answers.push((reply_to, Answer::Read(Err(Refusal::NoLeader))));
            }
            Request::Write(command) => {
                if let Err(why) = self.limits.check_command(&command) {
                    return self.refuse(reply_to, why.into());
                }
                self.proposals.take(reply_to, deadline_us, command, &mut self.answers);
            }
            Request::Read => self.reads.take(reply_to, deadline_us),
            Request::Status => {
                let status = Answer::Status(Box::new(self.status()));
                self.answers.push((reply_to, status));
            }
            Request::Transfer(to) => {
                self.administer(reply_to, deadline_us, Admin::Transfer(to), now_us);
            }
            // A new member could not be given what is damaged.
            Request::Change(change) if self.hurt && change.adds() => {
                self.answers.push((reply_to, Answer::Changed(Err(ChangeRefused::Damaged))));
            }
            Request::Change(change) => {
                self.administer(reply_to, deadline_us, Admin::Change(change), now_us);
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
        let (now_us, full) = (self.now_us, self.disk_full);
        let (forwards, answers) = (&mut effects.forwards, &mut self.answers);
        self.proposals.begin(&mut self.raft, full, now_us, forwards, answers);
        self.reads.begin(&mut self.raft, now_us);
        self.membership.turn(&mut self.raft, self.now_us, &mut self.answers);
        let ready = self.raft.ready();
        effects.persist = ready.persist;
        effects.messages = ready.messages;
        effects.from_log = ready.from_log;
        self.reads.answered(&self.raft, ready.reads, now_us);
        self.reads.release(self.raft.applied_index(), &mut self.answers);
        effects.apply = ready.committed.map(|committed| self.attach_waiters(committed));
        effects.offer = ready.offer;
        effects.admin = self.admin.take();
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

    /// What is worth waking for.
    pub fn wake_interest(&self) -> WakeInterest {
        let leads = self.raft.role() == RoleName::Leader;
        WakeInterest {
            reads: !leads || self.reads.none_is_asked(),
            applied: self.reads.wait_for_the_applier() || self.raft.applier_is_full(),
            writes: self.proposals.wants_writes(&self.raft, self.now_us),
        }
    }

    fn on_forwarded(&mut self, from: NodeId, forward: Forward, now_us: u64) {
        let reply_to = ReplyTo::Peer { node: from, id: forward.id };
        if self.raft.role() == RoleName::Leader {
            let deadline_us = deadline_of(forward.deadline_ms, now_us);
            self.request(reply_to, deadline_us, Request::Write(forward.command), now_us);
        } else {
            self.refuse(reply_to, Refusal::NotLeader);
        }
    }

    /// What only the leader can do: here, or there. What was passed on once is not passed on again.
    fn administer(&mut self, reply_to: ReplyTo<C>, deadline_us: u64, what: Admin, now_us: u64) {
        let own = self.raft.id();
        let elsewhere = self.raft.leader().filter(|&leader| leader != own);
        // Once this node is removed nobody answers it any more: its client asks the leader.
        let leaves = matches!(what, Admin::Change(Change::Remove { id, .. }) if id == own);
        match (&reply_to, elsewhere.filter(|_| !leaves)) {
            (ReplyTo::Client { .. }, Some(leader)) => {
                let asked = (reply_to, deadline_us, what);
                self.admin.send(leader, asked, now_us, &mut self.answers);
            }
            _ => match what {
                Admin::Transfer(to) => {
                    let result = self.raft.transfer(to, now_us).map_err(ChangeRefused::from);
                    self.answers.push((reply_to, Answer::Transfer(result)));
                }
                Admin::Change(change) => {
                    let answers = &mut self.answers;
                    self.membership.ask(reply_to, deadline_us, change, now_us, answers);
                }
            },
        }
    }

    fn refuse(&mut self, reply_to: ReplyTo<C>, refusal: Refusal) {
        self.answers.push((reply_to, Answer::Write(Verdict::NotApplied(refusal))));
    }

    fn attach_waiters(&mut self, committed: Committed) -> Apply<C> {
        let waiters = self.proposals.committed(&self.raft, &committed, &mut self.answers);
        Apply { committed, waiters, alone: self.is_alone() }
    }

    /// Nobody else has what this node has.
    fn is_alone(&self) -> bool {
        let configuration = self.raft.configuration();
        configuration.members.len() == 1 && !configuration.is_joint()
    }

    // ---- time ----

    /// No leader was known for two election timeouts: nobody knows when there will be one, and whoever
    /// waits is better off at another node.
    fn is_leaderless(&self, now_us: u64) -> bool {
        let patience_us = 2 * self.raft.options().election_timeout_us;
        let since_us = self.leaderless_since_us.filter(|_| self.raft.leader().is_none());
        since_us.is_some_and(|since_us| now_us >= since_us + patience_us)
    }

    fn expire(&mut self, now_us: u64) {
        if self.is_leaderless(now_us) {
            self.proposals.refuse_queued(&mut self.answers);
            self.reads.refuse_unasked(&mut self.answers);
        }
        let answers = &mut self.answers;
        let leader_known = self.raft.leader().is_some();
        let refusal = if leader_known { Refusal::Deadline } else { Refusal::NoLeader };
        self.proposals.expire(&self.raft, refusal, now_us, answers);
        self.reads.expire(refusal, now_us, answers);
        self.flushes.expire(now_us, answers);
        self.membership.expire(now_us, answers);
        self.admin.expire(now_us, answers);
    }

    // ---- status ----

    /// What this node knows.
    pub fn status(&self) -> Status {
        Status {
            id: self.raft.id(),
            role: self.raft.role(),
            repairing: self.repairing.is_some(),
            hurt: self.hurt,
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
        self.leaderless_since_us = match role.2 {
            Some(_) => None,
            None => self.leaderless_since_us.or(Some(self.now_us)),
        };
        if self.told_role != Some(role) {
            if let Some(leader) = role.2 {
                // What the former one knows of what it was asked it says soon, if it says anything.
                let until_us = self.now_us + self.raft.options().election_timeout_us / 2;
                self.proposals.led_by(leader, until_us);
                self.admin.led_by(leader, until_us);
            }
            self.told_role = Some(role);
            effects.role = Some(role);
        }
    }
}

/// When that many milliseconds are over; 0 leaves it to this node.
fn deadline_of(deadline_ms: u32, now_us: u64) -> u64 {
    let wait_us = match deadline_ms {
        0 => DEADLINE_US,
        ms => (u64::from(ms) * 1000).min(DEADLINE_US_MAX),
    };
    now_us + wait_us
}

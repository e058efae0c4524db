//! One node of an exploration: the core, its disk, and what the disk is yet to write.
//!
//! A node is a value. [`Local::act`] makes the node that one event leaves behind, together with what
//! it sends and answers, and checks everything that can be seen at one node alone: the invariants of
//! state and transition of the core, that every promise it lets out is on its platter, and that it
//! and its disk agree.
//!
//! The applier is quick and the log file is read at once: a slow one looks like a slow network.

use super::super::checks::{Violation, violated};
use super::Plant;
use super::prints::print;
use super::voters::{Decision, Set, change_by_the_rules, configuration, is_planted};
use crate::raft::canonical::{Ages, Names, entry_words, hard_words, persist_words};
use crate::raft::invariants::Watch;
use crate::raft::{
    AppendResult, Body, Configuration, EntriesRead, Entry, HardState, Index, LogRead, Message,
    NodeId, Options, Payload, Persist, Raft, ReadAnswer, Restored, RestoredLog, RoleName, Term,
};
use std::collections::VecDeque;
use std::sync::Arc;

/// What happens to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Act {
    /// A message arrives, by its number. Of a leader's followers `heard_last` was, if any: to whom it
    /// leaves the cluster, should it go now.
    Step { message: u32, heard_last: u8 },
    /// The election timer runs out.
    Timer,
    /// The election timer runs out, and as many pre-votes as are needed come in.
    Campaign,
    /// No leader was heard for an election timeout.
    Forget,
    /// A leader's heartbeat is due, or a follower asks for its read index again.
    Beat,
    /// Answers do not come: a leader asks what has arrived, a transfer is taken for failed.
    Late,
    /// A leader hears nobody for an election timeout.
    Silence,
    /// A leader's disk does not answer for an election timeout; `heard_last` is heard last.
    Stall { heard_last: u8 },
    /// The connection with `peer` breaks; a leader makes it anew.
    Break { peer: u8 },
    /// A client proposes.
    Propose { label: u8 },
    /// A client reads.
    Read { id: u8 },
    /// An operator hands leadership to `to`.
    Transfer { to: u8 },
    /// An operator has the leader change the configuration to these voters.
    Change { voters: Set },
    /// The disk completes the oldest `count` requests; `heard_last` as with a message.
    Persist { count: u8, heard_last: u8 },
    /// The power fails and comes back. The first `writes` requests were written, and of the next
    /// one the hard state and `torn` entries; `flushed`: the store keeps what it has applied.
    Crash { writes: u8, torn: Option<u8>, flushed: bool },
}

/// What is on a node's disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Platter {
    pub(super) hard: HardState,
    pub(super) log: Vec<Entry>,
    pub(super) applied: Index,
}

impl Platter {
    fn write(&mut self, persist: &Persist, entries_max: usize) -> Result<(), Violation> {
        if let Some(hard) = persist.hard_state {
            let grows = hard.term > self.hard.term
                || hard.term == self.hard.term
                    && (self.hard.vote.is_none() || self.hard.vote == hard.vote);
            if !grows {
                return violated("hard state monotonic", format!("{:?} to {hard:?}", self.hard));
            }
            self.hard = hard;
        }
        for entry in persist.entries.iter().take(entries_max) {
            let at = entry.index as usize - 1;
            if at > self.log.len() {
                return violated("a log without gaps", format!("{entry:?} is written"));
            }
            self.log.truncate(at);
            self.log.push(entry.clone());
        }
        Ok(())
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        match index.checked_sub(1) {
            None => Some(0),
            Some(at) => self.log.get(at as usize).map(|e| e.term),
        }
    }

    fn restored(&self, configuration: &Arc<Configuration>) -> Restored {
        let mut runs: Vec<(Index, Term)> = Vec::new();
        for e in &self.log {
            if runs.last().is_none_or(|run| run.1 != e.term) {
                runs.push((e.index, e.term));
            }
        }
        let last = self.log.len() as Index;
        let in_log = self.log.iter().filter_map(|e| match &e.payload {
            Payload::Configuration(c) => Some((e.index, Arc::clone(c))),
            _ => None,
        });
        let first = (0, Arc::clone(configuration));
        let configurations = std::iter::once(first).chain(in_log).collect();
        let log = RestoredLog { base: 0, base_term: 0, runs, last, configurations };
        Restored { hard_state: self.hard, log, applied: self.applied }
    }
}

/// What an event leaves behind.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) local: Local,
    pub(super) effects: Effects,
}

/// What others see of an event.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) sent: Vec<Message>,
    pub(super) answers: Vec<ReadAnswer>,
    /// In their order.
    pub(super) decisions: Vec<Decision>,
}

/// What is the same for all nodes and events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// What every node knows from the beginning.
    pub(super) first: &'a Arc<Configuration>,
    /// Nodes remember having heard a leader.
    pub(super) sticky: bool,
    /// Disks take no time.
    pub(super) quick: bool,
    pub(super) plant: Plant,
}

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) raft: Raft,
    pub(super) platter: Platter,
    pub(super) pending: VecDeque<Persist>,
    /// Greatest number of a ReadIndex request that it has ever sent.
    forwards: u64,
}

/// What the checks of the whole cluster look at.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) role: RoleName,
    pub(super) commit: Index,
    /// Terms along the log.
    pub(super) terms: Vec<Term>,
    /// For each index, everything up to it, content included.
    pub(super) log: Vec<u64>,
    /// The same on the platter.
    pub(super) disk: Vec<u64>,
    /// The configuration in force.
    pub(super) configuration: Arc<Configuration>,
}

/// Ids stay as they are: what is compared are logs of one state, not of states with other names.
fn chain<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u64> {
    let mut words = Vec::new();
    let link = |entry| {
        entry_words(entry, Names(&[]), &mut words);
        print(0, &words) as u64
    };
    entries.map(link).collect()
}

impl Local {
    /// A node with an empty disk.
    pub(super) fn new(id: NodeId, configuration: &Arc<Configuration>) -> Local {
        let platter = Platter::default();
        let raft = start(id, &platter, configuration, 1);
        Local { raft, platter, pending: VecDeque::new(), forwards: 0 }
    }

    /// Everything that later behaviour can depend on.
    pub(super) fn words(&self, names: Names<'_>, words: &mut Vec<u64>) {
        let Local { raft, platter: Platter { hard, log, applied }, pending, forwards } = self;
        raft.canonical(names, words);
        hard_words(hard, names, words);
        words.extend([log.len() as u64, *applied, *forwards, pending.len() as u64]);
        for entry in log {
            entry_words(entry, names, words);
        }
        for persist in pending {
            persist_words(persist, names, words);
        }
    }

    /// The log as the node has it: what is on the platter, and over it what is to be written.
    pub(super) fn entries(&self) -> Vec<&Entry> {
        let mut log: Vec<&Entry> = self.platter.log.iter().collect();
        for entry in self.pending.iter().flat_map(|p| &p.entries) {
            log.truncate(entry.index as usize - 1);
            log.push(entry);
        }
        log
    }

    /// What others may see.
    pub(super) fn seen(&self) -> Seen {
        let entries = self.entries();
        Seen {
            role: self.raft.role(),
            commit: self.raft.commit_index(),
            terms: entries.iter().map(|e| e.term).collect(),
            log: chain(entries.into_iter()),
            disk: chain(self.platter.log.iter()),
            configuration: Arc::clone(self.raft.configuration()),
        }
    }

    /// One event, and what follows from it at once. `message` is the one of [`Act::Step`].
    pub(super) fn act(
        &self,
        act: Act,
        message: Option<&Message>,
        rules: Rules<'_>,
    ) -> Result<Step, Violation> {
        let (mut local, plant) = (self.clone(), rules.plant);
        let now_us = Raft::explored_now_us();
        let (raft, none) = (&mut local.raft, Ages::default());
        let tick = |raft: &mut Raft, ages: Ages| {
            raft.set_ages(ages);
            raft.tick(now_us);
        };
        let heard = |raft: &mut Raft, last: u8| {
            let heard_last = (last != 0).then(|| NodeId::from(last));
            raft.set_ages(Ages { heard_last, leader_silent: !rules.sticky, ..none });
        };
        let mut watch = Watch::default();
        let observe = |watch: &mut Watch, raft: &Raft| match watch.observe(raft) {
            Err(detail) if !is_planted(plant, &detail) => {
                Err(Violation { invariant: "state of the core", detail })
            }
            _ => Ok(()),
        };
        observe(&mut watch, raft)?;
        let mut led = (raft.role() == RoleName::Leader).then(|| (raft.term(), raft.commit_index()));
        match act {
            Act::Step { heard_last, .. } => {
                if let Some(mut message) = message.cloned() {
                    if plant == Plant::ForgedTerms && message.term < raft.term() {
                        message.term = raft.term();
                    }
                    heard(raft, heard_last);
                    raft.step(message, now_us);
                }
            }
            Act::Timer => tick(raft, Ages { due: true, ..none }),
            Act::Beat => {
                let due = raft.role() == RoleName::Leader;
                tick(raft, Ages { due, answers_late: !due, ..none });
            }
            Act::Campaign => {
                tick(raft, Ages { due: true, ..none });
                let (to, term) = (raft.id(), raft.term() + 1);
                for from in 1..=rules.first.last_id {
                    if from != to && raft.role() == RoleName::PreCandidate {
                        let body = Body::PreVoteResponse { granted: true };
                        raft.step(Message { from, to, term, body }, now_us);
                    }
                }
            }
            Act::Forget => raft.set_ages(Ages { leader_silent: true, ..none }),
            Act::Late => tick(raft, Ages { due: true, answers_late: true, ..none }),
            Act::Silence => tick(raft, Ages { due: true, followers_silent: true, ..none }),
            Act::Stall { heard_last } => {
                let heard_last = Some(NodeId::from(heard_last));
                tick(raft, Ages { due: true, disk_stalls: true, heard_last, ..none });
            }
            Act::Break { peer } => match raft.role() {
                RoleName::Leader => raft.peer_connected(NodeId::from(peer), now_us),
                _ => raft.peer_lost(NodeId::from(peer), now_us),
            },
            Act::Propose { label } => {
                let _ = raft.propose([Arc::from([label].as_slice())]);
            }
            Act::Read { id } => raft.read(u64::from(id)),
            Act::Transfer { to } => {
                let _ = raft.transfer(Some(NodeId::from(to)), now_us);
            }
            Act::Change { voters } => {
                let target = configuration(rules.first.last_id, voters);
                if plant.changes_at_once() {
                    raft.change_at_once(target, plant == Plant::EarlyChanges);
                } else {
                    let _ = raft.propose_configuration(target);
                }
            }
            Act::Persist { count, heard_last } => {
                heard(raft, heard_last);
                local.write(usize::from(count))?;
            }
            Act::Crash { writes, torn, flushed } => {
                local.crash(usize::from(writes), torn.map(usize::from), flushed, plant)?;
                let first = local.forwards + 1;
                local.raft = start(self.raft.id(), &local.platter, rules.first, first);
                (watch, led) = (Watch::default(), None);
            }
        }
        observe(&mut watch, &local.raft)?;
        let mut effects = Effects::default();
        loop {
            local.decided(&mut led, &mut effects.decisions);
            local.absorb(plant, &mut led, &mut effects)?;
            observe(&mut watch, &local.raft)?;
            if !rules.quick || local.pending.is_empty() {
                break;
            }
            local.write(local.pending.len())?;
        }
        local.raft.set_ages(Ages { leader_silent: !rules.sticky, ..none });
        local.agrees_with_its_disk()?;
        change_by_the_rules(&local.raft, &local.entries(), rules.first, plant)?;
        for message in &effects.sent {
            local.keeps(message)?;
        }
        Ok(Step { local, effects })
    }

    /// Notes what the core has decided since, before anything else happens; `led` is the term that it
    /// led then and how much was committed.
    fn decided(&self, led: &mut Option<(Term, Index)>, decisions: &mut Vec<Decision>) {
        let (term, commit) = (self.raft.term(), self.raft.commit_index());
        let now = (self.raft.role() == RoleName::Leader).then_some((term, commit));
        if now.is_some() && now != *led {
            let configuration = Arc::clone(self.raft.configuration());
            decisions.push(Decision { term, commit, configuration });
        }
        *led = now;
    }

    /// The disk completes the oldest requests.
    fn write(&mut self, count: usize) -> Result<(), Violation> {
        let mut seq = None;
        for persist in self.pending.drain(..count) {
            self.platter.write(&persist, usize::MAX)?;
            seq = Some(persist.seq);
        }
        if let Some(seq) = seq {
            self.raft.persisted(seq, Raft::explored_now_us());
        }
        Ok(())
    }

    fn crash(
        &mut self,
        writes: usize,
        torn: Option<usize>,
        flushed: bool,
        plant: Plant,
    ) -> Result<(), Violation> {
        if flushed {
            self.platter.applied = self.raft.applied_index();
        }
        for (at, persist) in std::mem::take(&mut self.pending).iter().enumerate() {
            if at < writes {
                self.platter.write(persist, usize::MAX)?;
            } else if at == writes
                && let Some(entries) = torn
            {
                self.platter.write(persist, entries)?;
            }
        }
        match plant {
            Plant::ForgottenVotes => self.platter.hard.vote = None,
            Plant::LostEntry if self.platter.log.len() as Index > self.platter.applied => {
                self.platter.log.pop();
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the core's effects and gives them to its surroundings.
    fn absorb(
        &mut self,
        plant: Plant,
        led: &mut Option<(Term, Index)>,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        let Effects { sent, answers, decisions } = effects;
        loop {
            let ready = self.raft.ready();
            if ready.is_empty() {
                break;
            }
            if let Some(persist) = ready.persist {
                let seq = persist.seq;
                self.pending.push_back(persist);
                if plant == Plant::EarlyReports {
                    self.raft.persisted(seq, Raft::explored_now_us());
                    self.decided(led, decisions);
                }
            }
            sent.extend(ready.messages);
            for read in &ready.from_log {
                let message = self.read_log(read);
                let done = EntriesRead::of(read, message.as_ref());
                sent.extend(message);
                self.raft.entries_read(&done, Raft::explored_now_us());
            }
            answers.extend(ready.reads);
            if let Some(batch) = ready.committed {
                let log = self.entries();
                let same = batch.entries.iter().all(|e| log.get(e.index as usize - 1) == Some(&e));
                if batch.first != self.raft.applied_index() + 1 || !same {
                    return violated("applied in order, as in the log", format!("{batch:?}"));
                }
                self.raft.applied(batch.last);
            }
        }
        for message in &*sent {
            if let Body::ReadIndex { id } = message.body {
                self.forwards = self.forwards.max(id);
            }
        }
        Ok(())
    }

    /// Reads the log file for one AppendEntries, as the documentation of [`LogRead`] says.
    fn read_log(&self, read: &LogRead) -> Option<Message> {
        if self.platter.term_at(read.last) != Some(read.last_term) {
            return None;
        }
        let mut message = read.message.clone();
        if let Body::AppendEntries { entries, .. } = &mut message.body {
            *entries = self.platter.log.get(read.first as usize - 1..read.last as usize)?.to_vec();
        }
        Some(message)
    }

    fn agrees_with_its_disk(&self) -> Result<(), Violation> {
        let log = self.entries();
        let last = self.raft.last_index();
        let known =
            (1..=last).all(|i| log.get(i as usize - 1).map(|e| e.term) == self.raft.term_at(i));
        if !known || last != log.len() as Index {
            let terms: Vec<Term> = log.iter().map(|e| e.term).collect();
            return violated("the log is what was written", format!("last {last}, log {terms:?}"));
        }
        let durable = self.raft.durable_index();
        let held = (1..=durable).all(|i| self.platter.term_at(i) == self.raft.term_at(i));
        if !held || self.overwrites(durable) {
            return violated(
                "what is called durable is on the platter",
                format!("up to {durable}"),
            );
        }
        Ok(())
    }

    /// Whether something up to `index` is about to be written over.
    fn overwrites(&self, index: Index) -> bool {
        self.pending.iter().flat_map(|p| p.entries.first()).any(|e| e.index <= index)
    }

    /// Promise durability: what a message says is implied by what is on its sender's platter.
    fn keeps(&self, message: &Message) -> Result<(), Violation> {
        let (id, term, hard) = (self.raft.id(), message.term, self.platter.hard);
        let kept = match &message.body {
            Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true } => true,
            Body::RequestVote { .. } => hard == HardState { term, vote: Some(id) },
            Body::VoteResponse { granted: true } => {
                hard == HardState { term, vote: Some(message.to) }
            }
            Body::AppendResponse { result: AppendResult::Matched { index }, .. } => {
                hard.term >= term
                    && self.platter.term_at(*index).is_some()
                    && !self.overwrites(*index)
            }
            _ => hard.term >= term,
        };
        if kept {
            return Ok(());
        }
        let terms: Vec<Term> = self.platter.log.iter().map(|e| e.term).collect();
        violated(
            "promise durability",
            format!("{message:?} with {hard:?} and {terms:?} on the platter"),
        )
    }
}

fn start(id: NodeId, platter: &Platter, c: &Arc<Configuration>, reads_from: u64) -> Raft {
    let mut raft = Raft::new(Options::new(id, id), platter.restored(c), Raft::explored_now_us());
    raft.number_reads_from(reads_from);
    raft.set_ages(Ages::default());
    raft
}

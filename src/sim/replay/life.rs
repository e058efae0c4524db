//! One recorded life: its components, what is between them, and what the record says that they did.
//!
//! Between the threads of a process are queues. What a thread takes out of one must be what another one has put
//! in, in that order; and nobody may be told of something that was not done before.

use super::log::LogReplay;
use super::state::StateReplay;
use super::{Shared, key_of};
use crate::node::recording::{
    DidNote, LogNote, LogStep, Part, Print, Record, Start, TaskNote, of_effects,
};
use crate::node::{Apply, Input, Node, NodeEffects, Outgoing, Replica};
use crate::raft::invariants::Watch;
use crate::raft::{
    Body, Committed, Configuration, Index, NodeId, Persist, Raft, RoleName, SnapshotMark, Term,
};
use crate::sim::checks::{Violation, violated};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// For the applier.
#[derive(Debug)]
enum Task {
    Apply(Apply<u64>),
    Flush,
    Flushed,
    Hold,
    Install,
}

/// A life.
#[derive(Debug)]
pub(super) struct Life {
    start: Start,
    node: Node<u64>,
    watch: Watch,
    led: bool,
    now_us: u64,
    configuration: Option<Arc<Configuration>>,
    /// On its way to the log writer, and what that has not written.
    to_log: VecDeque<Persist>,
    to_cut: VecDeque<Index>,
    queued: VecDeque<Persist>,
    /// The log writer has made everything up to this request durable, and cut so often.
    written: u64,
    cuts: u64,
    log: Option<LogReplay>,
    /// On its way to the applier, and what that has not done.
    to_apply: VecDeque<Task>,
    tasks: VecDeque<Task>,
    applied: Index,
    installed: VecDeque<(Index, Term)>,
    /// The store is damaged: entries wait until a snapshot is installed.
    holding: bool,
    /// A batch in which writes were left out, until that is durable.
    withheld: Option<Apply<u64>>,
    state: StateReplay,
    /// The log writer is not replayed from here on.
    log_left_out: Option<String>,
}

impl Life {
    /// Builds the components.
    pub(super) fn begin(
        start: &Start,
        shared: &mut Shared,
        given: &BTreeSet<NodeId>,
    ) -> Result<Life, Violation> {
        let restored = start.restored.clone();
        let raft = Raft::new(start.raft.clone(), restored, start.now_us);
        let replica = Replica::new(raft, start.replica.clone());
        let node = Node::new(replica, start.peers.clone(), start.now_us);
        let log = match LogReplay::begin(&start.restored, start.batch_requests_max) {
            Ok(log) => log,
            Err(e) => {
                return violated("a log of what was found can be made", format!("an error: {e}"));
            }
        };
        let applied = start.restored.applied;
        let state = if start.holding {
            StateReplay::LeftOut("what it applies is not compared: its store was damaged".into())
        } else {
            StateReplay::at(applied, start.digest, log.reader(), start, shared)?
        };
        let mut life = Life {
            start: start.clone(),
            node,
            watch: Watch::default(),
            led: false,
            now_us: start.now_us,
            configuration: None,
            to_log: VecDeque::new(),
            to_cut: VecDeque::new(),
            queued: VecDeque::new(),
            written: 0,
            cuts: 0,
            log: Some(log),
            to_apply: VecDeque::new(),
            tasks: VecDeque::new(),
            applied,
            installed: VecDeque::new(),
            holding: start.holding,
            withheld: None,
            state,
            log_left_out: None,
        };
        life.follow_configuration(shared, given);
        Ok(life)
    }

    pub(super) fn number(&self) -> u64 {
        self.start.life
    }

    /// The time that its components were told last.
    pub(super) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The same by the system's clock.
    pub(super) fn wall_now_us(&self) -> u64 {
        self.at_wall(self.now_us)
    }

    /// When a record was made, by the system's clock.
    pub(super) fn wall_us(&self, record: &Record) -> u64 {
        self.at_wall(time_of(record).unwrap_or(self.now_us))
    }

    fn at_wall(&self, now_us: u64) -> u64 {
        self.start.unix_us.saturating_add(now_us.saturating_sub(self.start.now_us))
    }

    /// What was not replayed, and why.
    pub(super) fn left_out(&self) -> Option<String> {
        let state = match &self.state {
            StateReplay::LeftOut(why) => Some(why.clone()),
            StateReplay::Follows(_) => None,
        };
        let both: Vec<String> = state.into_iter().chain(self.log_left_out.clone()).collect();
        (!both.is_empty()).then(|| both.join("; "))
    }

    /// Replays a record.
    pub(super) fn step(
        &mut self,
        record: &Record,
        shared: &mut Shared,
        given: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        if let Some(now_us) = time_of(record) {
            self.now_us = self.now_us.max(now_us);
        }
        match record {
            Record::Handled { now_us, input } => self.handle(input, *now_us, shared),
            Record::Ticked { now_us } => {
                self.node.tick(*now_us);
                Ok(())
            }
            Record::Effects { now_us, prints } => self.effects(*now_us, prints, shared, given),
            Record::LogEvent(note) => self.log_told(*note),
            Record::LogStep(step) => self.log_stepped(step, shared),
            Record::Task(task) => self.applier_told(*task),
            Record::Did(did) => self.applier_did(did, shared),
            Record::Start(_) | Record::End(_) => {
                violated("a recording has one start", "another one".to_string())
            }
        }
    }

    fn id(&self) -> NodeId {
        self.start.raft.id
    }

    // ---- the raft loop ----

    fn handle(
        &mut self,
        input: &Input<u64>,
        now_us: u64,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        shared.count("inputs of the raft loop");
        match input {
            Input::Peer(message) => {
                let key = key_of(message);
                if let Some(lives) = shared.under_way.get_mut(&key) {
                    if !shared.repeats {
                        lives.pop();
                    }
                    if lives.is_empty() {
                        shared.under_way.remove(&key);
                    }
                    shared.count("messages that were sent and arrived");
                }
                // Whoever sends these leads, also when no record of it tells.
                if let Body::AppendEntries { .. }
                | Body::Heartbeat { .. }
                | Body::InstallSnapshot { .. } = &message.body
                {
                    shared.cluster.leads(message.from, message.term)?;
                }
            }
            Input::Persisted { seq, .. } if *seq > self.written => {
                let detail = format!("told of request {seq}, written is up to {}", self.written);
                return violated("nothing is told to be durable before it is written", detail);
            }
            Input::Applied { index, .. } if *index > self.applied => {
                let detail = format!("told of index {index}, applied is up to {}", self.applied);
                return violated("nothing is told to be applied before it is", detail);
            }
            Input::Compacted { .. } => {
                if self.cuts == 0 {
                    let detail = "told of a cut".to_string();
                    return violated("nothing is told to be cut before it is", detail);
                }
                self.cuts -= 1;
            }
            Input::Installed { mark } => {
                let at = (mark.index, mark.term);
                if self.installed.pop_front() != Some(at) {
                    let detail = format!("told of a snapshot up to {at:?}");
                    return violated("nothing is told to be installed before it is", detail);
                }
            }
            _ => {}
        }
        self.node.handle(input.clone(), now_us);
        Ok(())
    }

    fn effects(
        &mut self,
        now_us: u64,
        recorded: &[Print],
        shared: &mut Shared,
        given: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        let effects = self.node.effects(now_us);
        compare(recorded, &effects)?;
        let id = self.id();
        self.follow_configuration(shared, given);
        let raft = self.node.replica().raft();
        if let Err(detail) = self.watch.observe(raft) {
            return violated("core invariant", detail);
        }
        if raft.first_index() > shared.cluster.committed() + 1 {
            let term = |index| raft.term_at(index);
            shared.cluster.learn(raft.first_index() - 1, raft.term(), term, &[]);
        }
        let Shared { cluster, platters, entries, under_way, .. } = shared;
        cluster.core_stepped(raft, self.start.life, platters)?;
        let leads = raft.role() == RoleName::Leader;
        if leads && !std::mem::replace(&mut self.led, leads) {
            cluster.elected(raft, platters)?;
        }
        self.led = leads;
        let platter = platters.entry(id).or_default();
        if let Some(persist) = &effects.replica.persist {
            cluster.persists(raft, persist, platter)?;
            for entry in &persist.entries {
                entries.entry((entry.index, entry.term)).or_insert_with(|| entry.clone());
            }
        }
        cluster.configured(raft)?;
        for (_, outgoing) in &effects.sends {
            let message = match outgoing {
                Outgoing::Message(message) => message,
                Outgoing::FromLog(read) => &read.message,
                _ => continue,
            };
            cluster.leaves(raft, message, platter)?;
            if given.contains(&message.to) {
                under_way.entry(key_of(message)).or_default().push(self.start.life);
            }
        }
        if let Some(difference) = &effects.replica.difference {
            return violated("replicas have equal digests", format!("{difference:?}"));
        }
        let effects = effects.replica;
        self.to_apply.extend(effects.repair.then_some(Task::Hold));
        self.to_log.extend(effects.persist);
        self.to_apply.extend(effects.flush.then_some(Task::Flush));
        self.to_apply.extend(effects.apply.map(Task::Apply));
        self.to_cut.extend(effects.compact);
        Ok(())
    }

    /// Members of whom no recording is given may have done anything.
    fn follow_configuration(&mut self, shared: &mut Shared, given: &BTreeSet<NodeId>) {
        let configuration = self.node.replica().raft().configuration();
        if self.configuration.as_ref().is_some_and(|c| Arc::ptr_eq(c, configuration)) {
            return;
        }
        self.configuration = Some(Arc::clone(configuration));
        let missing = configuration.members.iter().find(|m| !given.contains(&m.id));
        if let Some(missing) = missing
            && !std::mem::replace(&mut shared.cluster.is_partial, true)
        {
            shared.notes.push(format!(
                "there is no recording of node {}: that a majority voted, or holds what is committed, is not checked",
                missing.id
            ));
        }
    }

    // ---- the log writer ----

    fn log_told(&mut self, note: LogNote) -> Result<(), Violation> {
        const ORDER: &str = "the log writer gets what the raft loop gives, in order";
        match note {
            LogNote::Persist { seq } => {
                let next = self.to_log.pop_front();
                let Some(persist) = next.filter(|persist| persist.seq == seq) else {
                    return violated(ORDER, format!("it got request {seq}"));
                };
                self.queued.push_back(persist.clone());
                if let Some(log) = &mut self.log {
                    log.persist(persist);
                }
            }
            LogNote::Compact { through } if self.to_cut.pop_front() != Some(through) => {
                return violated(ORDER, format!("it was told to cut through {through}"));
            }
            LogNote::Compact { .. } | LogNote::Spare { .. } => {
                if let Some(log) = &mut self.log {
                    log.event(note);
                }
            }
        }
        Ok(())
    }

    fn log_stepped(&mut self, step: &LogStep, shared: &mut Shared) -> Result<(), Violation> {
        if step.lacks_space && self.log.take().is_some() {
            let why = "its log writer is not compared from where the disk was full".to_string();
            self.log_left_out = Some(why);
        }
        if let Some(log) = &mut self.log {
            log.step(step)?;
        }
        self.cuts += u64::from(step.cut.is_some());
        let Some((seq, count)) = step.written else { return Ok(()) };
        shared.count("batches of log writers");
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > self.queued.len() {
            let detail = format!("{count} requests up to {seq}");
            return violated("only what was asked for is written", detail);
        }
        let batch: Vec<Persist> = self.queued.drain(..count).collect();
        if batch.last().is_some_and(|last| last.seq != seq) {
            let detail = format!("{count} requests up to {seq}");
            return violated("only what was asked for is written", detail);
        }
        self.written = seq;
        shared.platters.entry(self.id()).or_default().written(&batch);
        shared.look();
        Ok(())
    }

    // ---- the applier ----

    fn applier_told(&mut self, note: TaskNote) -> Result<(), Violation> {
        // These come from others than the raft loop.
        let elsewhere = match note {
            TaskNote::Install { .. } => Some(Task::Install),
            TaskNote::Flushed => Some(Task::Flushed),
            _ => None,
        };
        if let Some(task) = elsewhere {
            self.tasks.push_back(task);
            return Ok(());
        }
        let front = self.to_apply.front();
        let same = front.is_some_and(|task| match (task, note) {
            (Task::Apply(apply), TaskNote::Apply { first, last }) => {
                (apply.committed.first, apply.committed.last) == (first, last)
            }
            (Task::Flush, TaskNote::Flush) | (Task::Hold, TaskNote::Hold) => true,
            _ => false,
        });
        if same {
            self.tasks.extend(self.to_apply.pop_front());
            return Ok(());
        }
        // One flush more does no harm, whoever asked for it.
        if note == TaskNote::Flush {
            self.tasks.push_back(Task::Flush);
            return Ok(());
        }
        violated("the applier gets what the raft loop gives, in order", format!("it got {note:?}"))
    }

    fn applier_did(&mut self, did: &DidNote, shared: &mut Shared) -> Result<(), Violation> {
        const WHY: &str = "what it applies is not compared from where its store was damaged";
        if self.holding && did.answers.0 > 0 && did.applied.is_none() && did.installed.is_none() {
            self.let_waiters_go();
            return Ok(());
        }
        let withheld = self.withheld.is_some();
        let waits = |task: &Task| match task {
            Task::Apply(_) => self.holding || withheld,
            Task::Flushed => false,
            _ => withheld,
        };
        let next = self.tasks.iter().position(|task| !waits(task));
        let Some(task) = next.and_then(|next| self.tasks.remove(next)) else {
            return violated("the applier does what it was told", format!("{did:?}"));
        };
        if did.damaged {
            self.state.leave_out(WHY.to_string());
        }
        match task {
            Task::Apply(apply) if did.damaged && did.applied.is_none() => {
                // The only member left writes out: what it did is told behind a flush.
                self.withheld = Some(apply);
                Ok(())
            }
            Task::Flushed => match self.withheld.take_if(|_| did.applied.is_some()) {
                Some(apply) => self.applied(apply, did, shared),
                None => Ok(()),
            },
            Task::Flush => Ok(()),
            Task::Hold => {
                self.holding = true;
                self.let_waiters_go();
                self.state.leave_out(WHY.to_string());
                Ok(())
            }
            Task::Install => self.installed(did, shared),
            Task::Apply(apply) => self.applied(apply, did, shared),
        }
    }

    /// Whoever waits for what is held back was told so.
    fn let_waiters_go(&mut self) {
        for task in &mut self.tasks {
            if let Task::Apply(apply) = task {
                apply.waiters.clear();
            }
        }
    }

    fn installed(&mut self, did: &DidNote, shared: &mut Shared) -> Result<(), Violation> {
        let Some((index, term)) = did.installed else { return Ok(()) };
        shared.count("snapshots installed");
        if shared.cluster.committed() < index {
            let in_term = self.node.replica().raft().term();
            shared.cluster.learn(index, in_term, |at| (at == index).then_some(term), &[]);
        }
        let committed = shared.cluster.committed_terms();
        let known = committed.get(index as usize - 1).copied().unwrap_or(0);
        if known != 0 && known != term {
            let detail = format!("index {index} of term {term}, committed in term {known}");
            return violated("a snapshot ends with what is committed", detail);
        }
        let configuration = Arc::new(self.start.first.clone());
        let mark = SnapshotMark { index, term, configuration };
        let committed = committed.to_vec();
        shared.platters.entry(self.id()).or_default().installed(&mark, &committed);
        shared.look();
        self.installed.push_back((index, term));
        self.applied = index;
        self.holding = false;
        match &self.log {
            Some(log) => {
                self.state = StateReplay::at(index, did.digest, log.reader(), &self.start, shared)?;
            }
            None => self.state.leave_out(format!(
                "what it applies is not compared behind the snapshot at index {index}: its log is not replayed"
            )),
        }
        Ok(())
    }

    fn applied(
        &mut self,
        mut apply: Apply<u64>,
        did: &DidNote,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        let Some((applied, _)) = did.applied else {
            return violated("the applier does the same", format!("recorded {did:?}"));
        };
        let (first, last) = (apply.committed.first, apply.committed.last);
        // A snapshot took their place.
        if last <= self.applied && applied == last {
            return self.state.apply(apply, did);
        }
        if first > self.applied + 1 || applied < self.applied || applied > last {
            let detail = format!("{first} to {last}, behind {}: {applied}", self.applied);
            return violated("entries are applied in order and without a gap", detail);
        }
        if apply.committed.entries.is_empty() {
            match shared.committed(first, last) {
                Some(entries) => apply.committed.entries = entries,
                None => self.state.leave_out(format!(
                    "what it applies is not compared from index {first} on: some entry behind it is in none of the files"
                )),
            }
        }
        let new = apply.committed.entries.iter();
        let new: Vec<_> =
            new.filter(|e| e.index > self.applied && e.index <= applied).cloned().collect();
        shared.cluster.applies(self.start.raft.id, &new)?;
        *shared.counters.entry("entries applied").or_default() += applied - self.applied;
        self.applied = applied;
        if did.damaged {
            // What is left of it waits, in front of what came since.
            self.holding = true;
            apply.committed.entries.clear();
            apply.committed.first = applied + 1;
            self.tasks.push_front(Task::Apply(apply));
            self.let_waiters_go();
            return Ok(());
        }
        if let StateReplay::Follows(_) = &self.state {
            *shared.counters.entry("entries applied and compared").or_default() += new.len() as u64;
        }
        if applied < last {
            // A piece of it: the rest waits, in front of what came since.
            let Apply { committed, waiters, alone } = &mut apply;
            let behind = committed.entries.partition_point(|entry| entry.index <= applied);
            let entries = committed.entries.split_off(behind);
            let behind = waiters.partition_point(|waiter| waiter.0 <= applied);
            let rest = Apply {
                committed: Committed { first: applied + 1, last, entries },
                waiters: waiters.split_off(behind),
                alone: *alone,
            };
            committed.last = applied;
            self.tasks.push_front(Task::Apply(rest));
            shared.count("steps of apply that ended early");
        }
        self.state.apply(apply, did)
    }
}

/// The time in a record.
fn time_of(record: &Record) -> Option<u64> {
    match record {
        Record::Handled { now_us, .. }
        | Record::Ticked { now_us }
        | Record::Effects { now_us, .. } => Some(*now_us),
        Record::LogStep(step) => Some(step.now_us),
        Record::Did(did) => Some(did.now_us),
        Record::Start(start) => Some(start.now_us),
        Record::LogEvent(_) | Record::Task(_) | Record::End(_) => None,
    }
}

/// Every kind of effect must have the recorded checksum.
fn compare(recorded: &[Print], effects: &NodeEffects<u64>) -> Result<(), Violation> {
    let replayed = of_effects(effects, &|&client| client);
    if replayed == recorded {
        return Ok(());
    }
    let of = |prints: &[Print], part: Part| prints.iter().find(|p| p.part == part).map(|p| p.crc);
    let parts = recorded.iter().chain(&replayed).map(|print| print.part);
    let Some(part) = parts.filter(|&part| of(recorded, part) != of(&replayed, part)).min() else {
        return violated("the raft loop does the same", "the order of effects differs".to_string());
    };
    let show = |crc: Option<u32>| crc.map_or("nothing".to_string(), |crc| format!("{crc:08x}"));
    let replica = &effects.replica;
    let got = match part {
        Part::Links => format!("{:?}", effects.links),
        Part::Persist => format!("{:?}", replica.persist),
        Part::Apply => format!("{:?}", replica.apply),
        Part::Store => format!("flush {}, hold {}", replica.flush, replica.repair),
        Part::Compact => format!("{:?}", replica.compact),
        Part::Offer => format!("{:?}", replica.offer),
        Part::Difference => format!("{:?}", replica.difference),
        Part::Answers => format!("{:?}", replica.answers),
        Part::Configuration => format!("{:?}", replica.configuration),
        Part::Role => format!("{:?}", replica.role),
        Part::Sends => format!("{:?}", effects.sends),
    };
    let detail = format!(
        "{part:?}: recorded {}, replayed {}: {}",
        show(of(recorded, part)),
        show(of(&replayed, part)),
        super::shortened(&got)
    );
    violated("the raft loop does the same", detail)
}

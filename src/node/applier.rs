//! The applier: committed entries go into the state machine in order, and whoever waits for one is
//! answered.
//!
//! Entries that are not in the core's memory any more, as after a restart, are read from the log in
//! bounded pieces. Nothing is answered before its write can be read: a client that was told of its
//! write finds it.
//!
//! Outcomes are made for those who wait here, and for nobody else: a follower, and a node that applies its log again,
//! keep nothing of what commands read. What is committed together may be much more than the store or memory should take
//! at once: a step applies a piece of it ([`STEP_BYTES_MAX`]), and between two pieces the applier rests for as long as
//! the store asks ([`Applier::take_rest_us`]).
//!
//! When the store is damaged the applier *holds*: nothing is applied until a snapshot has taken the
//! place of the state. Entries that come meanwhile wait, in order; everything else is done. The only member of a
//! cluster has nobody to take a snapshot from: it leaves out the writes that need what is damaged, and says so.

use super::events::Apply;
use super::words::{Answer, Refusal, ReplyTo, Verdict};
use crate::kv::machine::CONFIGURATION_KEY;
use crate::kv::{
    Committed, Machine, Malformed, Outcome, Reader as _, Store, StoreError, View, place,
};
use crate::raft::{Configuration, Entry, Index, Payload, SnapshotMark, codec};
use crate::wal::{LogReader, ReadError};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// About how much a step takes: what its writes read, what the outcomes hold that somebody waits for, and what the store
/// gets. A thirtieth of the usual memtable, so that what is owed for it is waited for before much more is there.
const STEP_BYTES_MAX: usize = 1 << 20;
/// Bytes of entries read from the log at once: those of a step.
const REPLAY_BYTES_MAX: usize = STEP_BYTES_MAX;

/// Owns the state machine.
///
/// Invariant: `tasks` are in the order in which they came, and what is left of a task of which a piece was applied is the
/// first of them.
pub struct Applier<S: Store, C> {
    machine: Machine<S>,
    log: LogReader,
    first: Configuration,
    /// [`STEP_BYTES_MAX`].
    step_bytes_max: usize,
    holding: bool,
    tasks: VecDeque<ApplyTask<C, S::Snapshot>>,
    /// What came of a batch in which writes were left out, until the store is flushed up to its end.
    withheld: Option<(Index, ApplyEffects<C>)>,
}

impl<S: Store, C> fmt::Debug for Applier<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (applied, tasks) = (self.machine.applied(), self.tasks.len());
        let mut f = f.debug_struct("Applier");
        f.field("applied", &applied).field("tasks", &tasks).finish_non_exhaustive()
    }
}

/// What an applier is to do; in order.
#[derive(Debug)]
pub enum ApplyTask<C, Snapshot> {
    /// Committed entries.
    Apply(Apply<C>),
    /// The store is to flush.
    Flush,
    /// It has flushed something.
    Flushed,
    /// The store is damaged: nothing is applied until a snapshot is installed.
    Hold,
    /// A snapshot is to take the place of the state.
    Install {
        /// The snapshot.
        snapshot: Snapshot,
        /// Index that it reaches to.
        index: Index,
    },
}

/// What came of one task.
#[derive(Debug)]
pub struct ApplyEffects<C> {
    /// Entries were applied, or are behind what is.
    pub applied: Option<Applied>,
    /// For whoever waited.
    pub answers: Vec<(ReplyTo<C>, Answer)>,
    /// The state machine's digest at an index, to be compared with the others'.
    pub digest: Option<(Index, u32)>,
    /// Damage was met in the store: the applier holds.
    pub damage: Option<StoreError>,
    /// What became of a snapshot. None is fetched any more, unless `repair` asks for one.
    pub installed: Option<Installed>,
    /// The store is damaged, and holds everything up to here: a snapshot that reaches as far is to be
    /// fetched, from whoever has one.
    pub repair: Option<Index>,
}

/// How far a node has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Everything up to here is applied.
    pub index: Index,
    /// The store holds everything up to here durably.
    pub flushed: Index,
}

/// What became of a snapshot.
#[derive(Clone, Debug)]
pub enum Installed {
    /// It took the place of the state.
    Done {
        /// Where it ends, for the log that goes on behind it.
        mark: SnapshotMark,
        /// It took the place of a damaged store: the hold is over.
        repaired: bool,
    },
    /// This node was further already, and nothing was done.
    TooLate,
    /// The disk does not give back what was fetched ([`ApplyEffects::damage`] says where), or has no space for what
    /// names it: nothing was done.
    Unread,
}

impl<C> Default for ApplyEffects<C> {
    fn default() -> ApplyEffects<C> {
        ApplyEffects {
            applied: None,
            answers: Vec::new(),
            digest: None,
            damage: None,
            installed: None,
            repair: None,
        }
    }
}

/// Why the applier cannot go on. The node stops: a gap would be worse.
#[derive(Debug)]
pub enum ApplyError {
    /// A committed entry cannot be read back.
    Log(ReadError),
    /// The store failed.
    Store(StoreError),
    /// A snapshot cannot be installed. What is on disk is the old state or the new one.
    Install(StoreError),
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::Log(e) => write!(f, "a committed entry cannot be read back: {e}"),
            ApplyError::Store(e) => write!(f, "the store failed: {e}"),
            ApplyError::Install(e) => write!(f, "a snapshot cannot be installed: {e}"),
        }
    }
}

impl std::error::Error for ApplyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ApplyError::Log(e) => Some(e),
            ApplyError::Store(e) | ApplyError::Install(e) => Some(e),
        }
    }
}

impl<S: Store, C> Applier<S, C> {
    /// An applier that continues from what the machine has applied. `first` is the configuration the cluster
    /// began with.
    pub fn new(machine: Machine<S>, log: LogReader, first: Configuration) -> Applier<S, C> {
        let holding = machine.is_spoiled();
        let (tasks, step_bytes_max) = (VecDeque::new(), STEP_BYTES_MAX);
        Applier { machine, log, first, step_bytes_max, holding, tasks, withheld: None }
    }

    /// The same, with steps of another size: for the simulator, and for a replay, which is told what a step was.
    pub fn in_steps_of(mut self, bytes: usize) -> Applier<S, C> {
        self.step_bytes_max = bytes;
        self
    }

    /// How long to rest now, in microseconds, before this is asked again: while something is committed that could be
    /// applied, or nothing is to be done, the store may need time for what it has got. The writers slow down with the
    /// applier, as no more than a few batches may wait for it.
    pub fn take_rest_us(&mut self) -> u64 {
        match self.next_task() {
            _ if self.holding => 0,
            None | Some(ApplyTask::Apply(_)) => self.machine.take_rest_us(),
            Some(_) => 0,
        }
    }

    /// Nothing is applied now: the store is damaged.
    pub fn is_holding(&self) -> bool {
        self.holding
    }

    /// The state machine, for whoever reads.
    pub fn machine(&self) -> &Machine<S> {
        &self.machine
    }

    /// Something is to be done; [`Applier::step`] does it.
    pub fn handle(&mut self, task: ApplyTask<C, S::Snapshot>) {
        self.tasks.push_back(task);
    }

    /// What the next step does; none when there is nothing to do now, but perhaps to tell what was done.
    pub fn next_task(&self) -> Option<&ApplyTask<C, S::Snapshot>> {
        self.tasks.get(self.next_at()?)
    }

    fn next_at(&self) -> Option<usize> {
        if self.withheld.is_some() {
            return self.tasks.iter().position(|task| matches!(task, ApplyTask::Flushed));
        }
        let waits =
            |task: &ApplyTask<C, S::Snapshot>| self.holding && matches!(task, ApplyTask::Apply(_));
        self.tasks.iter().position(|task| !waits(task))
    }

    /// Does the next task, or a piece of it; none when there is nothing to do now. The caller waits first for as long as
    /// [`Applier::take_rest_us`] says.
    ///
    /// # Errors
    /// The node stops: a gap would be worse.
    pub fn step(&mut self) -> Result<Option<ApplyEffects<C>>, ApplyError> {
        if self.holding {
            let answers = self.let_waiters_go();
            if !answers.is_empty() {
                return Ok(Some(ApplyEffects { answers, ..ApplyEffects::default() }));
            }
        }
        let Some(task) = self.next_at().and_then(|at| self.tasks.remove(at)) else {
            return Ok(None);
        };
        match task {
            ApplyTask::Apply(apply) => self.apply_committed(apply).map(Some),
            ApplyTask::Flushed => {
                let flushed = self.machine.store().flushed();
                let told = self.withheld.take_if(|(index, _)| *index <= flushed);
                let (_, mut effects) = told.unwrap_or_default();
                effects.applied.iter_mut().for_each(|applied| applied.flushed = flushed);
                Ok(Some(effects))
            }
            ApplyTask::Flush => {
                self.machine.store_mut().flush();
                Ok(Some(ApplyEffects::default()))
            }
            ApplyTask::Hold => {
                self.holding = true;
                let (answers, repair) = (self.let_waiters_go(), Some(self.machine.applied()));
                Ok(Some(ApplyEffects { answers, repair, ..ApplyEffects::default() }))
            }
            ApplyTask::Install { snapshot, index } => {
                let (installed, damage) = match self.install(snapshot, index) {
                    Err(e) if e.is_damage() => (Installed::Unread, Some(e)),
                    Err(e) if e.is_out_of_space() => (Installed::Unread, None),
                    installed => (installed.map_err(ApplyError::Install)?, None),
                };
                // One that was on its way when the damage was met, and is too old; or one that is damaged, too.
                let repair = self.holding.then(|| self.machine.applied());
                let effects = ApplyEffects { damage, repair, ..ApplyEffects::default() };
                Ok(Some(ApplyEffects { installed: Some(installed), ..effects }))
            }
        }
    }

    /// Nobody knows when what is held back will be applied, nor can its outcome be told before: whoever waits for it is
    /// told so at once (seed 610001065: a client waited longer than its deadline).
    fn let_waiters_go(&mut self) -> Vec<(ReplyTo<C>, Answer)> {
        let why = Verdict::Unknown("it is committed, but the store is damaged and being repaired");
        let waiters = self.tasks.iter_mut().flat_map(|task| match task {
            ApplyTask::Apply(apply) => std::mem::take(&mut apply.waiters),
            _ => Vec::new(),
        });
        waiters.map(|(_, to)| (to, Answer::Write(why.clone()))).collect()
    }

    fn apply_committed(&mut self, apply: Apply<C>) -> Result<ApplyEffects<C>, ApplyError> {
        let Apply { mut committed, waiters, alone } = apply;
        if committed.first <= self.machine.applied() {
            return self.behind_a_snapshot(Apply { committed, waiters, alone });
        }
        self.machine.skip_damage(alone);
        assert!(waiters.is_sorted_by(|a, b| a.0 < b.0), "one waiter an index, ascending");
        let mut waiters = VecDeque::from(waiters);
        let mut answers = Vec::new();
        let mut skipped = None;
        let read;
        let entries = if committed.entries.is_empty() {
            read = self.read(committed.first, committed.last)?;
            &read[..]
        } else {
            &committed.entries[..]
        };
        let damage = self.apply(entries, &mut waiters, &mut answers, &mut skipped).err();
        let index = self.machine.applied();
        let applied = Some(Applied { index, flushed: self.machine.store().flushed() });
        let answered = waiters.front().is_none_or(|waiter| waiter.0 > index);
        if index < committed.last && damage.as_ref().is_none_or(StoreError::is_damage) {
            committed.entries.retain(|entry| entry.index > index);
            committed.first = index + 1;
            let waiters = Vec::from(std::mem::take(&mut waiters));
            self.tasks.push_front(ApplyTask::Apply(Apply { committed, waiters, alone }));
        }
        let Some(damage) = damage else {
            // Each waits for a command, and each command has an outcome: nobody is forgotten.
            assert!(answered && waiters.is_empty(), "every waiter is answered");
            let digest = self.machine.take_digest();
            let effects = ApplyEffects::default();
            let effects = ApplyEffects { applied, answers, digest, ..effects };
            return Ok(match skipped {
                None => effects,
                damage => self.withhold(index, effects, damage),
            });
        };
        if !damage.is_damage() {
            return Err(ApplyError::Store(damage));
        }
        self.holding = true;
        answers.extend(self.let_waiters_go());
        let (damage, effects) = (Some(damage), ApplyEffects::default());
        Ok(ApplyEffects { applied, answers, damage, ..effects })
    }

    /// Committed entries from the log: some of the first of them.
    fn read(&self, first: Index, last: Index) -> Result<Vec<Entry>, ApplyError> {
        loop {
            match self.log.read(first, last, REPLAY_BYTES_MAX) {
                Ok(entries) => return Ok(entries),
                // What is committed is never truncated, but what lay behind it was just now, by
                // a new leader. Each time it is asked again there is one truncation less to come.
                Err(ReadError::Changed) => {}
                Err(e) => return Err(ApplyError::Log(e)),
            }
        }
    }

    /// Writes were left out. Should the damage go away, as an error of a read may, another process would not leave them
    /// out of the same log; so nobody hears of anything behind them before the store is flushed, and no process
    /// applies them again.
    fn withhold(
        &mut self,
        index: Index,
        effects: ApplyEffects<C>,
        damage: Option<StoreError>,
    ) -> ApplyEffects<C> {
        self.withheld = Some((index, effects));
        self.machine.store_mut().flush();
        ApplyEffects { damage, ..ApplyEffects::default() }
    }

    /// Entries that were handed over before a snapshot was known to have taken their place. What is
    /// in it is not applied again, and whoever waited for that cannot be told what came of it.
    fn behind_a_snapshot(&mut self, apply: Apply<C>) -> Result<ApplyEffects<C>, ApplyError> {
        let Apply { mut committed, mut waiters, alone } = apply;
        let applied = self.machine.applied();
        let rest = waiters.partition_point(|waiter| waiter.0 <= applied);
        let rest = waiters.split_off(rest);
        let why = Verdict::Unknown("a snapshot took the place of its log entry");
        let told = waiters.into_iter().map(|(_, to)| (to, Answer::Write(why.clone()))).collect();
        if committed.last <= applied {
            let flushed = self.machine.store().flushed();
            let applied = Some(Applied { index: committed.last, flushed });
            return Ok(ApplyEffects { applied, answers: told, ..ApplyEffects::default() });
        }
        committed.entries.retain(|entry| entry.index > applied);
        committed.first = applied + 1;
        let mut done = self.apply_committed(Apply { committed, waiters: rest, alone })?;
        done.answers.extend(told);
        Ok(done)
    }

    /// Puts a snapshot in the place of the state, which ends a hold. What is damaged as soon as it is in place begins
    /// another one.
    fn install(&mut self, snapshot: S::Snapshot, index: Index) -> Result<Installed, StoreError> {
        let repaired = self.holding;
        let taken = self.machine.install(snapshot, index, self.holding);
        self.holding |= self.machine.is_spoiled();
        if !taken? {
            return Ok(Installed::TooLate);
        }
        self.holding = true;
        let mark = mark_of(&self.machine.reader().view(), &self.first)?;
        self.holding = false;
        Ok(Installed::Done { mark, repaired })
    }

    /// Applies entries while there is room, and answers who waits for them.
    fn apply(
        &mut self,
        entries: &[Entry],
        waiters: &mut VecDeque<(Index, ReplyTo<C>)>,
        answers: &mut Vec<(ReplyTo<C>, Answer)>,
        skipped: &mut Option<StoreError>,
    ) -> Result<(), StoreError> {
        let before = self.machine.applied();
        let wanted = |index| waiters.binary_search_by_key(&index, |waiter| waiter.0).is_ok();
        let outcomes = apply_some(&mut self.machine, entries, wanted, self.step_bytes_max)?;
        let applied = self.machine.applied();
        let mut answer = |index: Index, verdict: Verdict| {
            if waiters.front().is_some_and(|waiter| waiter.0 == index)
                && let Some((_, reply_to)) = waiters.pop_front()
            {
                answers.push((reply_to, Answer::Write(verdict)));
            }
        };
        let mut left_out = self.machine.take_skipped().into_iter().peekable();
        for (index, outcome) in outcomes {
            while let Some((at, e)) = left_out.next_if(|(at, _)| *at < index) {
                answer(at, Verdict::NotApplied(Refusal::Unreadable));
                *skipped = Some(e);
            }
            answer(index, Verdict::Applied(outcome));
        }
        for (at, e) in left_out {
            answer(at, Verdict::NotApplied(Refusal::Unreadable));
            *skipped = Some(e);
        }
        debug_assert!(applied > before, "each step gets on");
        Ok(())
    }
}

/// Applies contiguous entries of the log to a state machine, as one batch, and keeps no outcome.
///
/// # Errors
/// As [`Machine::apply`].
pub fn apply_entries<S: Store>(
    machine: &mut Machine<S>,
    entries: &[Entry],
) -> Result<(), StoreError> {
    apply_some(machine, entries, |_| false, usize::MAX).map(drop)
}

/// The same while there is room, as [`Machine::apply_some`].
fn apply_some<S: Store>(
    machine: &mut Machine<S>,
    entries: &[Entry],
    wanted: impl Fn(Index) -> bool,
    room: usize,
) -> Result<Vec<(Index, Outcome)>, StoreError> {
    let mut configurations = Vec::new();
    for entry in entries {
        if let Payload::Configuration(c) = &entry.payload {
            let mut bytes = Vec::new();
            codec::put_configuration(&mut bytes, c);
            configurations.push(bytes);
        }
    }
    let mut configurations = configurations.iter();
    let work = entries.iter().map(|entry| {
        let what = match &entry.payload {
            Payload::Noop => Committed::Term(entry.term),
            Payload::Command(bytes) => Committed::Command(bytes),
            Payload::Configuration(_) => configurations
                .next()
                .map_or(Committed::Configuration(&[]), |b| Committed::Configuration(b)),
        };
        (entry.index, what)
    });
    machine.apply_some(work, wanted, room)
}

/// Where a store's contents end, for the log that goes on behind them. `first` is the configuration
/// the cluster began with, in force until another one was applied.
///
/// # Errors
/// The store's, and [`StoreError::BadRecord`] for a configuration that does not decode.
pub fn mark_of(view: &impl View, first: &Configuration) -> Result<SnapshotMark, StoreError> {
    let place = place(view)?;
    let configuration = match &place.configuration {
        None => first.clone(),
        Some(bytes) => {
            let taken = codec::take_configuration(&mut codec::Input(bytes));
            taken.map_err(|_| StoreError::BadRecord {
                key: CONFIGURATION_KEY.to_vec(),
                source: Malformed("a configuration"),
            })?
        }
    };
    let configuration = Arc::new(configuration);
    Ok(SnapshotMark { index: place.index, term: place.term, configuration })
}

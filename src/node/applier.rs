//! The applier: committed entries go into the state machine in order, and whoever waits for one is
//! answered.
//!
//! Entries that are not in the core's memory any more, as after a restart, are read from the log in
//! bounded pieces. Nothing is answered before its write can be read: a client that was told of its
//! write finds it.
//!
//! When the store is damaged the applier *holds*: nothing is applied until a snapshot has taken the
//! place of the state. What comes meanwhile waits with the owner, in order.

use super::events::Apply;
use super::words::{Answer, ReplyTo, Verdict};
use crate::kv::machine::CONFIGURATION_KEY;
use crate::kv::{
    Committed, Machine, Malformed, Outcome, Reader as _, Store, StoreError, View, place,
};
use crate::raft::{Configuration, Entry, Index, Payload, SnapshotMark, codec};
use crate::wal::{LogReader, ReadError};
use std::fmt;
use std::sync::Arc;

/// Bytes of entries read from the log at once.
const REPLAY_BYTES_MAX: usize = 4 << 20;

/// Owns the state machine.
pub struct Applier<S: Store> {
    machine: Machine<S>,
    log: LogReader,
    holding: bool,
}

impl<S: Store> fmt::Debug for Applier<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier").field("applied", &self.machine.applied()).finish_non_exhaustive()
    }
}

/// What an applier is to do; in order.
#[derive(Debug)]
pub enum Work<C, Snapshot> {
    /// Committed entries.
    Apply(Apply<C>),
    /// The store is to flush.
    Flush,
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

/// What came of one piece of work.
#[derive(Debug)]
pub struct Applied<C> {
    /// Everything up to here is applied.
    pub index: Index,
    /// For whoever waited.
    pub answers: Vec<(ReplyTo<C>, Answer)>,
    /// How long to rest before the next piece of work, in microseconds, so that the store keeps up.
    pub rest_us: u64,
    /// The store holds everything up to here durably.
    pub flushed: Index,
    /// The state machine's digest at an index, to be compared with the others'.
    pub digest: Option<(Index, u32)>,
    /// Damage was met in the store: this is yet to be applied, once a snapshot is installed.
    pub held: Option<(Apply<C>, StoreError)>,
}

/// Why the applier cannot go on. The node stops: a gap would be worse.
#[derive(Debug)]
pub enum ApplyError {
    /// A committed entry cannot be read back.
    Log(ReadError),
    /// The store failed.
    Store(StoreError),
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::Log(e) => write!(f, "a committed entry cannot be read back: {e}"),
            ApplyError::Store(e) => write!(f, "the store failed: {e}"),
        }
    }
}

impl std::error::Error for ApplyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ApplyError::Log(e) => Some(e),
            ApplyError::Store(e) => Some(e),
        }
    }
}

impl<S: Store> Applier<S> {
    /// An applier that continues from what the machine has applied.
    pub fn new(machine: Machine<S>, log: LogReader) -> Applier<S> {
        let holding = machine.is_spoiled();
        Applier { machine, log, holding }
    }

    /// From now on nothing is applied until a snapshot is installed.
    pub fn hold(&mut self) {
        self.holding = true;
    }

    /// Nothing is to be applied now.
    pub fn is_holding(&self) -> bool {
        self.holding
    }

    /// The state machine, for whoever reads.
    pub fn machine(&self) -> &Machine<S> {
        &self.machine
    }

    /// Applies one piece of work; not to be called while it holds. What it gives to rest is the
    /// caller's to wait: the writers slow down with the applier, as no more than a few batches may
    /// wait for it.
    pub fn handle<C>(&mut self, apply: Apply<C>) -> Result<Applied<C>, ApplyError> {
        let Apply { mut committed, waiters } = apply;
        if committed.first <= self.machine.applied() {
            return self.behind_a_snapshot(Apply { committed, waiters });
        }
        assert!(waiters.is_sorted_by(|a, b| a.0 < b.0), "one waiter an index, ascending");
        let mut waiters = waiters.into_iter().peekable();
        let mut answers = Vec::with_capacity(waiters.len());
        let mut answer = |index: Index, outcome: Outcome| {
            if let Some((_, reply_to)) = waiters.next_if(|waiter| waiter.0 == index) {
                answers.push((reply_to, Answer::Write(Verdict::Applied(outcome))));
            }
        };
        let mut rest_us = 0;
        let mut damage = None;
        if committed.entries.is_empty() {
            let mut next = committed.first;
            while next <= committed.last && damage.is_none() {
                let entries = match self.log.read(next, committed.last, REPLAY_BYTES_MAX) {
                    Ok(entries) => entries,
                    // What is committed is never truncated, but what lay behind it was just now, by
                    // a new leader. Each time it is asked again there is one truncation less to come.
                    Err(ReadError::Changed) => continue,
                    Err(e) => return Err(ApplyError::Log(e)),
                };
                next += entries.len() as Index;
                match self.apply(&entries, &mut answer) {
                    Ok(more_us) => rest_us += more_us,
                    Err(e) => damage = Some(e),
                }
            }
        } else {
            match self.apply(&committed.entries, &mut answer) {
                Ok(us) => rest_us = us,
                Err(e) => damage = Some(e),
            }
        }
        let flushed = self.machine.store().flushed();
        let index = self.machine.applied();
        let Some(damage) = damage else {
            // Each waits for a command, and each command has an outcome: nobody is forgotten.
            assert!(waiters.next().is_none(), "every waiter is answered");
            let digest = self.machine.take_digest();
            return Ok(Applied { index, answers, rest_us, flushed, digest, held: None });
        };
        if !damage.is_damage() {
            return Err(ApplyError::Store(damage));
        }
        self.holding = true;
        committed.first = index + 1;
        let held = Some((Apply { committed, waiters: waiters.collect() }, damage));
        Ok(Applied { index, answers, rest_us, flushed, digest: None, held })
    }

    /// Entries that were handed over before a snapshot was known to have taken their place. What is
    /// in it is not applied again, and whoever waited for that cannot be told what came of it.
    fn behind_a_snapshot<C>(&mut self, apply: Apply<C>) -> Result<Applied<C>, ApplyError> {
        let Apply { mut committed, mut waiters } = apply;
        let applied = self.machine.applied();
        let rest = waiters.partition_point(|waiter| waiter.0 <= applied);
        let rest = waiters.split_off(rest);
        let why = Verdict::Unknown("a snapshot took the place of its log entry");
        let told = waiters.into_iter().map(|(_, to)| (to, Answer::Write(why.clone()))).collect();
        if committed.last <= applied {
            let flushed = self.machine.store().flushed();
            let index = committed.last;
            let (answers, digest) = (told, None);
            return Ok(Applied { index, answers, rest_us: 0, flushed, digest, held: None });
        }
        committed.entries.retain(|entry| entry.index > applied);
        committed.first = applied + 1;
        let mut done = self.handle(Apply { committed, waiters: rest })?;
        done.answers.extend(told);
        Ok(done)
    }

    /// Begins to make what was applied durable.
    pub fn flush(&mut self) {
        self.machine.store_mut().flush();
    }

    /// Puts a snapshot in the place of the state, which ends a hold. Gives where it ends, or none when
    /// this node was further already and nothing was done. `first` is the configuration the cluster began with.
    ///
    /// # Errors
    /// The store's; the node stops. What is on disk is the old state or the new one.
    pub fn install(
        &mut self,
        snapshot: S::Snapshot,
        index: Index,
        first: &Configuration,
    ) -> Result<Option<SnapshotMark>, ApplyError> {
        let taken = self.machine.install(snapshot, index, self.holding);
        if !taken.map_err(ApplyError::Store)? {
            return Ok(None);
        }
        self.holding = false;
        mark_of(&self.machine.reader().view(), first).map(Some).map_err(ApplyError::Store)
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        answer: &mut impl FnMut(Index, Outcome),
    ) -> Result<u64, StoreError> {
        let commands = entries.iter().map(|entry| match &entry.payload {
            Payload::Command(command) => command.len() as u64,
            _ => 0,
        });
        let bytes = commands.sum();
        for (index, outcome) in apply_entries(&mut self.machine, entries)? {
            answer(index, outcome);
        }
        Ok(self.machine.rest_us(bytes))
    }
}

/// Applies contiguous entries of the log to a state machine, as one batch.
///
/// # Errors
/// As [`Machine::apply`].
pub fn apply_entries<S: Store>(
    machine: &mut Machine<S>,
    entries: &[Entry],
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
    machine.apply(work)
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

//! The applier: committed entries go into the state machine in order, and whoever waits for one is
//! answered.
//!
//! Entries that are not in the core's memory any more, as after a restart, are read from the log in
//! bounded pieces. Nothing is answered before its write can be read: a client that was told of its
//! write finds it.

use super::replica::Apply;
use super::words::{Answer, ReplyTo, Verdict};
use crate::kv::{Committed, Machine, Outcome, Store, StoreError};
use crate::raft::{Entry, Index, Payload, codec};
use crate::wal::{LogReader, ReadError};
use std::fmt;

/// Bytes of entries read from the log at once.
const REPLAY_BYTES_MAX: usize = 4 << 20;

/// Owns the state machine.
pub struct Applier<S: Store> {
    machine: Machine<S>,
    log: LogReader,
}

impl<S: Store> fmt::Debug for Applier<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier").field("applied", &self.machine.applied()).finish_non_exhaustive()
    }
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
        Applier { machine, log }
    }

    /// The state machine, for whoever reads.
    pub fn machine(&self) -> &Machine<S> {
        &self.machine
    }

    /// Applies one piece of work. What it gives to rest is the caller's to wait: the writers slow
    /// down with the applier, as no more than a few batches may wait for it.
    pub fn handle<C>(&mut self, apply: Apply<C>) -> Result<Applied<C>, ApplyError> {
        let Apply { committed, waiters } = apply;
        assert!(waiters.is_sorted_by(|a, b| a.0 < b.0), "one waiter an index, ascending");
        let mut waiters = waiters.into_iter().peekable();
        let mut answers = Vec::with_capacity(waiters.len());
        let mut answer = |index: Index, outcome: Outcome| {
            if let Some((_, reply_to)) = waiters.next_if(|waiter| waiter.0 == index) {
                answers.push((reply_to, Answer::Write(Verdict::Applied(outcome))));
            }
        };
        let mut rest_us = 0;
        if committed.entries.is_empty() {
            let mut next = committed.first;
            while next <= committed.last {
                let entries = match self.log.read(next, committed.last, REPLAY_BYTES_MAX) {
                    Ok(entries) => entries,
                    // What is committed is never truncated, but what lay behind it was just now, by
                    // a new leader. Each time it is asked again there is one truncation less to come.
                    Err(ReadError::Changed) => continue,
                    Err(e) => return Err(ApplyError::Log(e)),
                };
                next += entries.len() as Index;
                rest_us += self.apply(&entries, &mut answer)?;
            }
        } else {
            rest_us = self.apply(&committed.entries, &mut answer)?;
        }
        // Each waits for a command, and each command has an outcome: nobody is forgotten.
        assert!(waiters.next().is_none(), "every waiter is answered");
        Ok(Applied { index: committed.last, answers, rest_us })
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        answer: &mut impl FnMut(Index, Outcome),
    ) -> Result<u64, ApplyError> {
        let mut configurations = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            if let Payload::Command(command) = &entry.payload {
                bytes += command.len() as u64;
            }
            if let Payload::Configuration(c) = &entry.payload {
                let mut bytes = Vec::new();
                codec::put_configuration(&mut bytes, c);
                configurations.push(bytes);
            }
        }
        let mut configurations = configurations.iter();
        let work = entries.iter().map(|entry| {
            let what = match &entry.payload {
                Payload::Noop => Committed::Nothing,
                Payload::Command(bytes) => Committed::Command(bytes),
                Payload::Configuration(_) => configurations
                    .next()
                    .map_or(Committed::Nothing, |b| Committed::Configuration(b)),
            };
            (entry.index, what)
        });
        for (index, outcome) in self.machine.apply(work).map_err(ApplyError::Store)? {
            answer(index, outcome);
        }
        Ok(self.machine.rest_us(bytes))
    }
}

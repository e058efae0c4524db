//! Is there one order of all calls that explains what every client saw?
//!
//! A history is linearizable if each call can be given a moment between its start and its answer at
//! which it took effect (Herlihy and Wing). Calls of different keys do not matter to one another
//! (linearizability is local), so each key is searched by itself, in the manner of Wing and Gong
//! with Lowe's memory of what was tried; see `search`. A call whose outcome is unknown may have
//! taken effect at any time after its start, or never; one that was refused never did.
//!
//! Revisions, where clients were told them, are held to grow with the order of the writes of a key,
//! and across keys with time. They also make the search short: at any moment only one of the writes
//! whose revision is known can be next.
//!
//! Left out: calls on several keys at once. No clock, no threads, no hashing: the same history gives
//! the same verdict, counterexample and effort.

mod counterexample;
mod search;
mod zones;

use crate::kv::{Revision, Test};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use counterexample::Counterexample;

/// What a client asked of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Get,
    /// Store a value.
    Put {
        /// The value.
        value: Vec<u8>,
    },
    /// Remove.
    Delete,
    /// Store a value if the key passes a test.
    Cas {
        /// The test.
        test: Test,
        /// The value.
        value: Vec<u8>,
    },
    /// Add to a decimal number; absent counts as 0.
    Increment {
        /// What to add.
        by: i64,
    },
}

/// A value that was read, and the write it came from where the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The value.
    pub value: Vec<u8>,
    /// Its revision.
    pub revision: Option<Revision>,
}

/// What a client was told. Revisions are optional: not every dialect tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Op::Get`]: the value, none when absent.
    Found(Option<Seen>),
    /// To [`Op::Put`], and to [`Op::Cas`] whose test held.
    Written {
        /// Revision of the write.
        revision: Option<Revision>,
    },
    /// To [`Op::Delete`].
    Deleted {
        /// The key was there.
        existed: Option<bool>,
        /// Revision of the write.
        revision: Option<Revision>,
    },
    /// To [`Op::Increment`]: the sum.
    Number {
        /// The sum.
        value: i64,
        /// Revision of the write.
        revision: Option<Revision>,
    },
    /// To [`Op::Cas`] whose test did not hold.
    Mismatch {
        /// Revision found instead, where told: none inside when the key was absent.
        found: Option<Option<Revision>>,
    },
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The outcome is not known (yet).
    Open,
    /// It surely had no effect.
    Refused,
    /// It was answered.
    Answered {
        /// When, in the unit of [`Call::called`].
        at: u64,
        /// How.
        answer: Answer,
    },
}

/// One call of one client on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who called; only for people who read counterexamples.
    pub client: u64,
    /// The key.
    pub key: Vec<u8>,
    /// What was asked.
    pub op: Op,
    /// When it was asked, in any unit that all calls share. Calls that touch at one instant count as
    /// concurrent.
    pub called: u64,
    /// How it ended.
    pub end: End,
}

impl Call {
    /// When it was answered, if it was.
    fn returned(&self) -> Option<u64> {
        match &self.end {
            End::Answered { at, .. } => Some(*at),
            End::Open | End::Refused => None,
        }
    }

    /// Whether it says anything: refused calls and reads without answer do not.
    fn counts(&self) -> bool {
        match self.end {
            End::Answered { .. } => true,
            End::Open => self.op != Op::Get,
            End::Refused => false,
        }
    }

    /// The revision that this call's own write was told to have.
    fn revision(&self) -> Option<Revision> {
        match &self.end {
            End::Answered {
                answer:
                    Answer::Written { revision }
                    | Answer::Deleted { revision, .. }
                    | Answer::Number { revision, .. },
                ..
            } => *revision,
            _ => None,
        }
    }
}

/// What a linearizable history consisted of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Keys.
    pub keys: usize,
    /// Calls that were answered.
    pub answered: usize,
    /// Writes without a known outcome.
    pub open: usize,
    /// States that the search looked at: its effort.
    pub states: usize,
}

/// Why a history does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No order explains it.
    Violation(Box<Counterexample>),
    /// The search gave up on a key after [`STATES_MAX`] states. Neither good nor bad.
    Undecided {
        /// The key.
        key: Vec<u8>,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Violation(example) => example.fmt(f),
            Failure::Undecided { key } => write!(
                f,
                "key \"{}\": undecided after {STATES_MAX} states; record fewer concurrent calls",
                key.escape_ascii()
            ),
        }
    }
}

impl std::error::Error for Failure {}

/// States looked at for one key before giving up: some seconds and some hundred megabytes.
pub const STATES_MAX: usize = 4_000_000;

/// Searches an order that explains the history, in whatever order its calls are given.
///
/// # Errors
/// When there is none, or the search was given up.
pub fn check(history: &[Call]) -> Result<Checked, Failure> {
    if let Some(example) = counterexample::revisions_against_time(history) {
        return Err(Failure::Violation(Box::new(example)));
    }
    let mut keys: BTreeMap<&[u8], Vec<&Call>> = BTreeMap::new();
    for call in history.iter().filter(|call| call.counts()) {
        keys.entry(&call.key).or_default().push(call);
    }
    let mut checked = Checked { keys: keys.len(), ..Checked::default() };
    for (key, calls) in keys {
        let answered = calls.iter().filter(|call| call.returned().is_some()).count();
        checked.answered += answered;
        checked.open += calls.len() - answered;
        if let Some(some) = zones::contradiction(&calls) {
            let some: BTreeSet<usize> = some.into_iter().collect();
            let some: Vec<&Call> = some.into_iter().map(|at| calls[at]).collect();
            let example = counterexample::shortest(&some, calls.len());
            return Err(Failure::Violation(Box::new(example)));
        }
        match search::search(&calls, STATES_MAX) {
            search::Verdict::Explained { states } => checked.states += states,
            search::Verdict::Undecided => return Err(Failure::Undecided { key: key.to_vec() }),
            search::Verdict::Unexplained => {
                let example = counterexample::shortest(&calls, calls.len());
                return Err(Failure::Violation(Box::new(example)));
            }
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests;

//! What opening a log found.

use super::shape::{Places, Shape};
use crate::raft::{Configuration, HardState, Index, Term};
use std::path::PathBuf;
use std::sync::Arc;

/// What the log held when it was opened.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Latest hard state.
    pub hard_state: HardState,
    /// Index of the first entry; one more than `last_index` when there is none.
    pub first_index: Index,
    /// Term of the entry before the first; zero when the log begins at 1.
    pub prev_term: Term,
    /// Index of the last entry, or of the one before the first.
    pub last_index: Index,
    /// First index of each run of entries of one term, ascending.
    pub terms: Vec<(Index, Term)>,
    /// The configurations among the entries, ascending.
    pub configurations: Vec<(Index, Arc<Configuration>)>,
    /// The latest configuration in front of the first entry, when the log knew one.
    pub configuration_before: Option<(Index, Arc<Configuration>)>,
    /// What was cut off the tail.
    pub cut: Option<Cut>,
    /// Segments in the log.
    pub segments: usize,
    /// Bytes in use in them.
    pub bytes: u64,
    /// Batches replayed.
    pub batches: u64,
}

impl Recovered {
    pub(super) fn of(shape: &Shape, places: &Places, cut: Option<Cut>, batches: u64) -> Recovered {
        let live = |c: &&(Index, Arc<Configuration>)| c.0 > shape.base.0;
        Recovered {
            hard_state: shape.hard_state,
            first_index: shape.base.0 + 1,
            prev_term: shape.base.1,
            last_index: shape.last,
            terms: shape.runs.iter().copied().collect(),
            configurations: shape.configurations.iter().filter(live).cloned().collect(),
            configuration_before: shape.configuration_at(shape.base.0).cloned(),
            cut,
            segments: places.segments.len(),
            bytes: places.bytes(),
            batches,
        }
    }

    /// Term of an entry that the log has, or of the one before its first.
    pub fn term(&self, index: Index) -> Option<Term> {
        match self.terms.iter().rev().find(|run| run.0 <= index) {
            Some(run) if index <= self.last_index => Some(run.1),
            _ => (index + 1 == self.first_index).then_some(self.prev_term),
        }
    }
}

/// A tail that was cut: a batch that was not completely written, or the last batch of several
/// sectors, damaged in a way that cannot be told from that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub path: PathBuf,
    /// Where the log ends now.
    pub offset: u64,
    /// Bytes of the batch that was there, as its header says; a sector when it says nothing that
    /// can be.
    pub bytes: u64,
}

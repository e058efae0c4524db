//! What each node was told is durable, and what of it must be there when its process starts again.

use super::checks::{Violation, violated};
use crate::raft::{HardState, Index, NodeId, Persist, SnapshotMark, Term};

/// What one node was told is durable: a lower bound of what its platter holds.
#[derive(Clone, Debug, Default)]
pub struct Platter {
    /// Term and vote.
    pub hard: HardState,
    /// Term of each index from 1; up to a snapshot's end, what is committed.
    pub terms: Vec<Term>,
    /// A snapshot up to there is in the store and the log was not told yet: what is written to it
    /// meanwhile is void, and so is what it is told of an earlier one.
    pub awaits_reset: Option<Index>,
}

impl Platter {
    /// These requests are durable.
    pub fn written(&mut self, batch: &[Persist]) {
        for request in batch {
            if let Some(hard) = request.hard_state {
                self.hard = hard;
            }
            if let Some(mark) = &request.reset
                && self.awaits_reset.is_none_or(|last| mark.index >= last)
            {
                self.terms.truncate(mark.index as usize);
                self.awaits_reset = None;
            }
            for entry in &request.entries {
                if self.awaits_reset.is_some() {
                    // The snapshot's last entry was on its way to the log: that goes on from there.
                    let end = (self.terms.len() as Index, self.terms.last().copied());
                    if (entry.index, Some(entry.term)) == end {
                        self.awaits_reset = None;
                    }
                    continue;
                }
                self.terms.truncate(entry.index as usize - 1);
                self.terms.push(entry.term);
            }
        }
    }

    /// A snapshot is durable in the store: the node holds everything up to there, whatever is in its
    /// log.
    pub fn installed(&mut self, mark: &SnapshotMark, committed: &[Term]) {
        if self.term(mark.index) != Some(mark.term) {
            self.terms = committed[..mark.index as usize].to_vec();
            self.awaits_reset = Some(mark.index);
        }
    }

    /// Term of an index, none when it does not hold that.
    pub(super) fn term(&self, index: Index) -> Option<Term> {
        self.terms.get((index as usize).checked_sub(1)?).copied()
    }

    pub(super) fn holds(&self, index: Index, term: Term) -> bool {
        self.term(index) == Some(term)
    }

    /// Compares with what a restart found. `torn` is the batch that was being written.
    pub fn survived(
        &self,
        node: NodeId,
        found: &Platter,
        torn: Option<&[Persist]>,
    ) -> Result<(), Violation> {
        let detail = || {
            let ends = |p: &Platter| (p.hard, p.terms.len(), p.terms.last().copied());
            format!("node {node} promised {:?}, found {:?}", ends(self), ends(found))
        };
        let torn = torn.unwrap_or_default();
        let mut allowed = vec![self.hard];
        allowed.extend(torn.iter().filter_map(|p| p.hard_state));
        if !allowed.contains(&found.hard) {
            return violated("hard state survives", detail());
        }
        let replaced = torn.iter().flat_map(|p| &p.entries).map(|e| e.index).min();
        let kept =
            replaced.map_or(self.terms.len(), |first| self.terms.len().min(first as usize - 1));
        if found.terms.len() < kept || found.terms[..kept] != self.terms[..kept] {
            return violated("durable log survives", detail());
        }
        if torn.is_empty() && self.awaits_reset.is_none() && found.terms.len() != self.terms.len() {
            return violated("nothing appears in the log", detail());
        }
        Ok(())
    }
}

impl Platter {
    /// The same for a process of which not everything is known: it was killed, and what it did last is in no record.
    /// It may hold more than it is known to have told, and its last entries may have been replaced by those of a
    /// later term; but for those that are committed.
    pub fn outlived(
        &self,
        node: NodeId,
        found: &Platter,
        committed: &[Term],
    ) -> Result<(), Violation> {
        let detail = || {
            let ends = |p: &Platter| (p.hard, p.terms.len(), p.terms.last().copied());
            format!("node {node} had {:?} durable, found {:?}", ends(self), ends(found))
        };
        let (had, has) = (self.hard, found.hard);
        let kept = had.term < has.term
            || had.term == has.term && (had.vote.is_none() || had.vote == has.vote);
        if !kept {
            return violated("hard state survives", detail());
        }
        let differs = |(ours, theirs): (&Term, &Term)| ours != theirs && *ours != 0 && *theirs != 0;
        let both = self.terms.iter().zip(&found.terms);
        let Some(at) = both.clone().position(differs) else {
            return match found.terms.len() < self.terms.len() {
                true => violated("durable log survives", detail()),
                false => Ok(()),
            };
        };
        let is_committed = committed.get(at).is_some_and(|term| *term == self.terms[at]);
        if is_committed || found.terms[at] < self.terms[at] {
            return violated("durable log survives", detail());
        }
        Ok(())
    }
}

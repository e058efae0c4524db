//! What a majority must show, where it is not certain in which order things happened.
//!
//! Of a process that was killed the last records are missing (see [`super::replay`]), and with them what tells which
//! of two other nodes was first. A commit may then be seen before the acknowledgements on which it rests. So it is
//! noted here, and must be shown by what all nodes have come to hold in the end.

use super::checks::{Platter, Violation, majority_of};
use crate::raft::{Configuration, HardState, Index, NodeId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a majority must have, or have had.
#[derive(Clone, Copy, Debug)]
pub(super) enum Claim {
    /// An entry.
    Entry {
        /// Its index.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// A vote, or a later term.
    Vote(HardState),
}

#[derive(Debug)]
struct Open {
    violation: Violation,
    claim: Claim,
    /// A majority of any of these will do.
    configurations: Vec<Arc<Configuration>>,
    shown_by: BTreeSet<NodeId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unproved {
    open: Vec<Open>,
}

impl Unproved {
    pub(super) fn add(
        &mut self,
        violation: Violation,
        claim: Claim,
        configurations: Vec<Arc<Configuration>>,
    ) {
        self.open.push(Open { violation, claim, configurations, shown_by: BTreeSet::new() });
    }

    /// Looks at what the nodes hold now.
    pub(super) fn look(&mut self, platters: &BTreeMap<NodeId, Platter>) {
        self.open.retain_mut(|open| {
            let shows = |platter: &Platter| match open.claim {
                Claim::Entry { index, term } => platter.holds(index, term),
                Claim::Vote(vote) => platter.hard == vote || platter.hard.term > vote.term,
            };
            let new = platters.iter().filter(|(_, platter)| shows(platter)).map(|(node, _)| *node);
            open.shown_by.extend(new);
            !open.is_shown_by(|node| open.shown_by.contains(&node))
        });
    }

    /// The end. What a node may have taken in after its last record counts, too: whatever is behind the end of its log.
    pub(super) fn end(&self, platters: &BTreeMap<NodeId, Platter>) -> Result<(), Violation> {
        for open in &self.open {
            let may_hold = |node: NodeId| match open.claim {
                Claim::Entry { index, .. } => {
                    platters.get(&node).is_none_or(|p| (p.terms.len() as Index) < index)
                }
                Claim::Vote(vote) => platters.get(&node).is_none_or(|p| p.hard.term <= vote.term),
            };
            if !open.is_shown_by(|node| open.shown_by.contains(&node) || may_hold(node)) {
                return Err(open.violation.clone());
            }
        }
        Ok(())
    }
}

impl Open {
    fn is_shown_by(&self, has: impl Fn(NodeId) -> bool) -> bool {
        self.configurations.iter().any(|c| majority_of(c, &has))
    }
}

//! Readers that look at a store in the middle of a step.
//!
//! On threads a reader comes at any moment of a flush, a compaction or an install; here one step is made at
//! a time. So now and then a reader looks between any two operations on files of a step, in two ways: with a
//! cut that it takes there, and with one that it has held since an earlier operation. Whatever it sees must
//! be the contents at the cut's applied index, as everybody sees them.
//!
//! Left out: what a step does in memory between two operations, which is one assignment under a lock, and
//! the writer's own inserts, behind which a cut does not look.

use super::checks::{Violation, violated};
use super::store::contents;
use super::world::World;
use crate::kv::{Reader as _, View as _};
use crate::raft::{Index, NodeId};
use std::sync::{Arc, Mutex, PoisonError};

/// Looks within one step: a scan of everything costs more than the step.
const LOOKS_MAX: u64 = 10;

/// What one look has seen: the cut's index and its contents, or why they cannot be read.
type Seen = Result<(Index, u64), String>;

/// What readers have seen within a step.
pub(super) struct Looks(Arc<Mutex<Vec<Seen>>>);

impl World {
    /// Lets readers look within the next step of a node's store, now and then: one of so many times.
    pub(super) fn look_within(&mut self, node: NodeId, one_of: u64) -> Option<Looks> {
        if !self.dice.chance(1, one_of) {
            return None;
        }
        // The first looks come soon or late in a step.
        let mut skip = self.dice.log_between(1, 64) - 1;
        let stride = self.dice.between(1, 8) as usize;
        let n = self.nodes.get(&node)?;
        let up = n.up.as_ref()?;
        // Damage is the business of other readers, and errors are that of the step.
        if n.store_is_hurt() || n.disk.has_trouble() {
            return None;
        }
        let all = Arc::new(Mutex::new(Vec::new()));
        let (seen, reader) = (Arc::clone(&all), up.reader.clone());
        let (mut held, mut left) = (None, LOOKS_MAX);
        n.disk.look_between(Some(Box::new(move || {
            if skip > 0 || left == 0 {
                skip = skip.saturating_sub(1);
                return;
            }
            left -= 1;
            let cut = reader.view();
            let before = held.replace(cut.clone());
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            for view in before.into_iter().chain([cut]) {
                let found = contents(&view, stride).map_err(|e| e.to_string());
                seen.push(found.map(|hash| (view.applied(), hash)));
            }
        })));
        Some(Looks(all))
    }

    /// The step is over: whatever was seen is what everybody sees at that index.
    pub(super) fn looked(&mut self, node: NodeId, looks: Option<Looks>) -> Result<(), Violation> {
        let Some(Looks(all)) = looks else { return Ok(()) };
        if let Some(n) = self.nodes.get(&node) {
            n.disk.look_between(None);
        }
        let all = std::mem::take(&mut *all.lock().unwrap_or_else(PoisonError::into_inner));
        for seen in all {
            self.count("looks within a step of the store");
            match seen {
                Ok((index, hash)) => self.same_as_everybody(node, index, hash)?,
                Err(e) => {
                    return violated("a reader within a step reads", format!("node {node}: {e}"));
                }
            }
        }
        Ok(())
    }
}

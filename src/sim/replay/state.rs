//! The applier of a recorded life: the component of production over the map in memory.
//!
//! The state that a process begins with is what its cluster's committed entries make of nothing. Where the recordings
//! hold all of those it is made so, and must have the digest that the process found in its store.

use super::Shared;
use crate::kv::{Machine, MemoryStore};
use crate::node::recording::{DidNote, Start};
use crate::node::{Applied, Applier, Apply, ApplyTask, apply_entries};
use crate::raft::Index;
use crate::sim::checks::{Violation, violated};
use crate::wal::LogReader;

/// What a life's applier is, as far as it can be replayed.
#[derive(Debug)]
pub(super) enum StateReplay {
    /// It goes along.
    Follows(Box<Applier<MemoryStore, u64>>),
    /// It does not, for this reason.
    LeftOut(String),
}

impl StateReplay {
    /// With the state behind `index`, which has this digest.
    pub(super) fn at(
        index: Index,
        digest: u32,
        log: LogReader,
        start: &Start,
        shared: &Shared,
    ) -> Result<StateReplay, Violation> {
        let left_out = |why: String| Ok(StateReplay::LeftOut(why));
        let Some(entries) = shared.committed(1, index) else {
            return left_out(format!(
                "what it applies is not compared: of the entries up to index {index} some are in none of the files"
            ));
        };
        let mut machine = match Machine::open_bounded(MemoryStore::default(), start.sessions) {
            Ok(machine) => machine,
            Err(e) => return left_out(format!("what it applies is not compared: {e}")),
        };
        if let Err(e) = apply_entries(&mut machine, &entries) {
            return left_out(format!("what it applies is not compared: {e}"));
        }
        if machine.digest() != digest {
            let detail = format!(
                "at index {index} the store has digest {digest:08x}, the entries up to there make {:08x}",
                machine.digest()
            );
            return violated("the state is what the entries make of nothing", detail);
        }
        machine.set_digest_every(start.digest_every);
        let _ = machine.take_digest();
        // It is given what one recorded step has applied.
        let applier = Applier::new(machine, log, start.first.clone()).in_steps_of(usize::MAX);
        Ok(StateReplay::Follows(Box::new(applier)))
    }

    /// Nothing of it is replayed from now on.
    pub(super) fn leave_out(&mut self, why: String) {
        if let StateReplay::Follows(_) = self {
            *self = StateReplay::LeftOut(why);
        }
    }

    /// It applies, which must come to the same.
    pub(super) fn apply(&mut self, apply: Apply<u64>, recorded: &DidNote) -> Result<(), Violation> {
        let StateReplay::Follows(applier) = self else { return Ok(()) };
        applier.handle(ApplyTask::Apply(apply));
        let effects = match applier.step() {
            Ok(Some(effects)) => effects,
            Ok(None) => return violated("the applier does the same", "it holds".to_string()),
            Err(e) => return violated("the applier does the same", format!("an error: {e}")),
        };
        let mut did = DidNote::of(&effects, applier.machine().digest(), recorded.now_us, |&c| c);
        // What the store has flushed is its own affair.
        if let (Some(Applied { index, .. }), Some((_, flushed))) =
            (effects.applied, recorded.applied)
        {
            did.applied = Some((index, flushed));
        }
        if did != *recorded {
            let detail = format!("recorded {recorded:?}; replayed {did:?}");
            return violated("the applier does the same", detail);
        }
        Ok(())
    }
}

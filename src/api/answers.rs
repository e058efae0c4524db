//! The answers to one set of requests, while they come in.
//!
//! A connection has one set under way. What the results of its writes hold, between the applier and the client, is part
//! of the budget of answers that are not sent ([`NodeState::answers`](super::NodeState::answers)). A write that was
//! done cannot be undone for want of room: who asked for it is told that it was done, without its results.

use super::budget::{Budget, Share};
use crate::kv::Outcome;
use crate::kv::limits::MAX_BATCH_BYTES_CEILING;
use crate::kv::machine::RESULT_BYTES_MAX;
use crate::node::{Answer, Verdict};
use std::sync::Arc;

/// What the answers of all clients may hold that are not sent yet, beside [`ANSWER_FREE_BYTES`] of each: some of the
/// largest, and a small part of a machine.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What the answers of one client may hold without asking: of small ones as many as are sent at once.
pub const ANSWER_FREE_BYTES: usize = 16 << 10;

// One answer finds room where nobody holds any, whatever the flags of a node let in: values of a write, and one more.
const _: () = assert!(2 * (RESULT_BYTES_MAX + MAX_BATCH_BYTES_CEILING) <= ANSWER_BYTES_MAX);

/// See the module.
///
/// Invariants: `missing` of `answers` are none; `bytes` is what the others hold, and `share` holds that.
#[derive(Debug)]
pub struct AnswerSet {
    /// Number of the first request.
    first: u64,
    answers: Vec<Option<Answer>>,
    missing: usize,
    bytes: usize,
    share: Share,
}

/// What became of an answer that was brought to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// Nobody waits for it: it belongs to another set, or came twice.
    Unwanted,
    /// Others are missing.
    Early,
    /// It was the last.
    Last,
}

impl AnswerSet {
    /// One of no requests.
    #[must_use]
    pub fn new(budget: &Arc<Budget>) -> AnswerSet {
        let (first, answers, share) = (0, Vec::new(), Share::new(budget));
        AnswerSet { first, answers, missing: 0, bytes: 0, share }
    }

    /// Begins a set of `count` requests numbered from `first`. Nothing may be under way.
    pub fn open(&mut self, first: u64, count: usize) {
        self.first = first;
        self.answers.clear();
        self.answers.resize(count, None);
        self.missing = count;
    }

    /// Number of the first request.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Answers that have not come.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// Takes the answer to a request.
    pub fn put(&mut self, number: u64, mut answer: Answer) -> Brought {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let Some(slot) = at.and_then(|at| self.answers.get_mut(at)).filter(|s| s.is_none()) else {
            return Brought::Unwanted;
        };
        admit(&mut answer, &mut self.bytes, &mut self.share);
        *slot = Some(answer);
        self.missing -= 1;
        if self.missing > 0 { Brought::Early } else { Brought::Last }
    }

    /// The answers that have come, in the order of their requests. The set is over.
    pub fn take(&mut self) -> Vec<Answer> {
        (self.missing, self.bytes) = (0, 0);
        self.share.release();
        self.answers.drain(..).flatten().collect()
    }
}

/// Counts what an answer holds to `bytes`, which `share` holds; where there is no room it loses its results.
pub fn admit(answer: &mut Answer, bytes: &mut usize, share: &mut Share) {
    let Answer::Write(Verdict::Applied(outcome)) = answer else { return };
    let all = bytes.saturating_add(outcome.memory());
    if share.hold(all) {
        *bytes = all;
    } else if let Outcome::Done { revision, .. } = *outcome {
        *outcome = Outcome::ResultsForgotten { revision };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Found, OpResult};

    fn read(len: usize, revision: u64) -> Answer {
        let found = Some(Found { value: vec![b'v'; len], revision: 1 });
        let results = vec![OpResult::Got { found }];
        Answer::Write(Verdict::Applied(Outcome::Done { revision, results }))
    }

    /// Two connections wait for writes that read, and share room for two values. The third answer comes without its
    /// results, as done; when one connection has taken its answers there is room again, and none is left behind.
    #[test]
    fn results_without_room_are_left_out_and_the_write_is_done() {
        let beside = size_of::<OpResult>();
        let budget = Budget::new(2 * (1000 + beside), 0);
        let (mut one, mut two) = (AnswerSet::new(&budget), AnswerSet::new(&budget));
        one.open(5, 2);
        two.open(9, 1);
        assert_eq!(one.put(6, read(1000, 70)), Brought::Early);
        assert_eq!(one.put(6, read(1, 70)), Brought::Unwanted);
        assert_eq!(one.put(7, read(1, 70)), Brought::Unwanted);
        assert_eq!(two.put(9, read(1000, 71)), Brought::Last);
        assert_eq!(one.put(5, read(1000, 72)), Brought::Last);
        let done =
            |revision| Answer::Write(Verdict::Applied(Outcome::ResultsForgotten { revision }));
        assert_eq!(one.take(), [done(72), read(1000, 70)]);
        one.open(7, 1);
        assert_eq!(one.put(7, read(1000, 73)), Brought::Last);
        assert_eq!(one.take(), [read(1000, 73)]);
        two.take();
        assert_eq!(budget.held(), 0);
    }
}

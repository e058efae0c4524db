//! Whoever waits until the store holds durably what was applied when they asked, and perhaps until
//! the log in front of that is gone.

use super::words::{Answer, Refusal, ReplyTo};
use crate::raft::Index;

/// Somebody who waits for the store to be durable.
#[derive(Debug)]
pub(super) struct Flushing<C> {
    pub(super) reply_to: ReplyTo<C>,
    pub(super) deadline_us: u64,
    /// Up to here; the store was asked.
    pub(super) index: Index,
    /// The log in front of that is to go.
    pub(super) cut: bool,
}

/// All who wait.
#[derive(Debug)]
pub(super) struct Flushes<C> {
    waiting: Vec<Flushing<C>>,
    /// Who waits until the log writer has cut the log, and what is flushed.
    cutting: Vec<(Flushing<C>, Index)>,
}

impl<C> Flushes<C> {
    /// Nobody.
    pub(super) fn new() -> Flushes<C> {
        Flushes { waiting: Vec::new(), cutting: Vec::new() }
    }

    /// Somebody waits from now on.
    pub(super) fn wait(&mut self, flushing: Flushing<C>) {
        self.waiting.push(flushing);
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.cutting.is_empty()
    }

    /// The store holds everything up to `flushed` durably: answers whoever waits for no more than
    /// that. True when somebody wants the log cut there.
    pub(super) fn flushed(
        &mut self,
        flushed: Index,
        answers: &mut Vec<(ReplyTo<C>, Answer)>,
    ) -> bool {
        let mut cut = false;
        for done in self.waiting.extract_if(.., |waiting| waiting.index <= flushed) {
            if done.cut {
                cut = true;
                self.cutting.push((done, flushed));
            } else {
                answers.push((done.reply_to, Answer::Flushed(Ok(flushed))));
            }
        }
        cut
    }

    /// The log writer has cut the log.
    pub(super) fn cut(&mut self, answers: &mut Vec<(ReplyTo<C>, Answer)>) {
        let told = self.cutting.drain(..);
        answers.extend(told.map(|(done, index)| (done.reply_to, Answer::Flushed(Ok(index)))));
    }

    /// Answers whoever waits no longer.
    pub(super) fn expire(&mut self, now_us: u64, answers: &mut Vec<(ReplyTo<C>, Answer)>) {
        // Also when only the cut is missing, which may wait for space.
        let cutting = self.cutting.extract_if(.., |(cutting, _)| now_us >= cutting.deadline_us);
        let cutting = cutting.map(|(late, _)| late);
        let waiting = self.waiting.extract_if(.., |waiting| now_us >= waiting.deadline_us);
        for late in waiting.chain(cutting) {
            answers.push((late.reply_to, Answer::Flushed(Err(Refusal::Deadline))));
        }
    }
}

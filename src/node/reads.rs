//! Linearizable reads on their way: until a leader is known, until it has named an index, and until
//! that index is applied here. Only then is the client told to read, so that one wake-up serves it.

use super::words::{Answer, Refusal, ReplyTo};
use crate::raft::{Index, NodeId, Raft, ReadAnswer, ReadId, Term};
use std::collections::BTreeMap;

#[derive(Debug)]
struct Reading<C> {
    reply_to: ReplyTo<C>,
    deadline_us: u64,
}

type Answers<C> = Vec<(ReplyTo<C>, Answer)>;

/// See the module.
#[derive(Debug)]
pub(super) struct Reads<C> {
    /// They wait for a leader.
    unasked: Vec<Reading<C>>,
    /// They wait for a read index.
    asked: BTreeMap<ReadId, Reading<C>>,
    /// They wait until an index is applied.
    applying: Vec<(Index, Reading<C>)>,
    next: ReadId,
    /// Who could not answer, in which term, and until when it is not asked again.
    pause: Option<(Term, Option<NodeId>, u64)>,
}

impl<C: Clone> Reads<C> {
    /// None.
    pub(super) fn new() -> Reads<C> {
        let (unasked, applying) = (Vec::new(), Vec::new());
        Reads { unasked, asked: BTreeMap::new(), applying, next: 1, pause: None }
    }

    /// Whether there are any.
    pub(super) fn are_waited_for(&self) -> bool {
        !(self.unasked.is_empty() && self.asked.is_empty() && self.applying.is_empty())
    }

    /// Whether none waits for a read index.
    pub(super) fn none_is_asked(&self) -> bool {
        self.asked.is_empty()
    }

    /// Whether any waits for the applier.
    pub(super) fn wait_for_the_applier(&self) -> bool {
        !self.applying.is_empty()
    }

    /// Somebody wants to read.
    pub(super) fn take(&mut self, reply_to: ReplyTo<C>, deadline_us: u64) {
        self.unasked.push(Reading { reply_to, deadline_us });
    }

    /// Asks for a read index, if anybody can be asked.
    pub(super) fn begin(&mut self, raft: &mut Raft, now_us: u64) {
        if self.unasked.is_empty() || raft.leader().is_none() {
            return;
        }
        // Whoever says that it does not lead is not asked over and over; another leader is, at once.
        let whom = (raft.term(), raft.leader());
        if let Some((term, leader, until_us)) = self.pause
            && (term, leader) == whom
            && now_us < until_us
        {
            return;
        }
        for reading in std::mem::take(&mut self.unasked) {
            let id = self.next;
            self.next += 1;
            self.asked.insert(id, reading);
            raft.read(id);
        }
    }

    /// Answers of the core.
    pub(super) fn answered(&mut self, raft: &Raft, found: Vec<ReadAnswer>, now_us: u64) {
        for answer in found {
            let Some(reading) = self.asked.remove(&answer.id) else { continue };
            match answer.index {
                Some(index) => self.applying.push((index, reading)),
                None => {
                    self.unasked.push(reading);
                    let until_us = now_us + super::replica::RETRY_AFTER_US;
                    self.pause = Some((raft.term(), raft.leader(), until_us));
                }
            }
        }
    }

    /// Releases those whose index is applied.
    pub(super) fn release(&mut self, applied: Index, answers: &mut Answers<C>) {
        if self.applying.is_empty() {
            return;
        }
        let mut waiting = Vec::new();
        for (index, reading) in self.applying.drain(..) {
            if index <= applied {
                answers.push((reading.reply_to, Answer::Read(Ok(()))));
            } else {
                waiting.push((index, reading));
            }
        }
        self.applying = waiting;
    }

    /// No leader was known for long.
    pub(super) fn refuse_unasked(&mut self, answers: &mut Answers<C>) {
        let refused =
            |reading: Reading<C>| (reading.reply_to, Answer::Read(Err(Refusal::NoLeader)));
        answers.extend(self.unasked.drain(..).map(refused));
    }

    /// Answers those whose time is over.
    pub(super) fn expire(&mut self, refusal: Refusal, now_us: u64, answers: &mut Answers<C>) {
        let mut read_late = |reading: &Reading<C>| {
            let keep = now_us < reading.deadline_us;
            if !keep {
                answers.push((reading.reply_to.clone(), Answer::Read(Err(refusal))));
            }
            keep
        };
        self.asked.retain(|_, reading| read_late(reading));
        self.unasked.retain(&mut read_late);
        self.applying.retain(|(_, reading)| read_late(reading));
    }
}

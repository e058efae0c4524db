//! What operators ask of a follower and only the leader can do: to hand leadership over, and to change
//! the members. A follower passes it on, once, and passes the answer back: whoever asks needs no
//! direct way to the leader.
//!
//! Every request is answered exactly once: by the leader's answer; as surely not done when it never
//! left this node; else, at the latest at its deadline, as one of which nobody knows.

use super::changes::{Change, ChangeRefused};
use super::proposals::left_ms;
use super::words::{Answer, ReplyTo};
use crate::raft::{NodeId, NotProposed};
use std::collections::BTreeMap;

/// Requests of this node's operators that are passed on and not answered. They are a person's.
const OPEN_MAX: usize = 64;

/// What only the leader can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Hand leadership over, to anybody or to one node.
    Transfer(Option<NodeId>),
    /// Change who belongs to the cluster.
    Change(Change),
}

impl Admin {
    /// The answer to it.
    pub(super) fn answer(&self, result: Result<NodeId, ChangeRefused>) -> Answer {
        match self {
            Admin::Transfer(_) => Answer::Transfer(result),
            Admin::Change(_) => Answer::Changed(result),
        }
    }
}

/// A request that a follower passes to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminForward {
    /// The follower's number: not used twice in one life, and not by the next one.
    pub id: u64,
    /// Time left to do it, in milliseconds.
    pub deadline_ms: u32,
    /// What is asked.
    pub what: Admin,
}

#[derive(Debug)]
struct Open<C> {
    leader: NodeId,
    what: Admin,
    reply_to: ReplyTo<C>,
    deadline_us: u64,
    /// Another node leads: when the one that was asked is not waited for any longer.
    until_us: Option<u64>,
}

type Answers<C> = Vec<(ReplyTo<C>, Answer)>;

/// Requests that were passed on.
#[derive(Debug)]
pub(super) struct Forwards<C> {
    next: u64,
    open: BTreeMap<u64, Open<C>>,
    out: Vec<(NodeId, AdminForward)>,
}

impl<C: Clone> Forwards<C> {
    /// None. They are numbered from `first`, which differs from one life of a node to the next and is
    /// far from the numbers of forwarded writes: what was not sent is given back by its number.
    pub(super) fn new(first: u64) -> Forwards<C> {
        Forwards { next: first, open: BTreeMap::new(), out: Vec::new() }
    }

    /// Whether there are any.
    pub(super) fn are_waited_for(&self) -> bool {
        !self.open.is_empty()
    }

    /// What is to be sent.
    pub(super) fn take(&mut self) -> Vec<(NodeId, AdminForward)> {
        std::mem::take(&mut self.out)
    }

    /// Passes a request on.
    pub(super) fn send(
        &mut self,
        leader: NodeId,
        (reply_to, deadline_us, what): (ReplyTo<C>, u64, Admin),
        now_us: u64,
        answers: &mut Answers<C>,
    ) {
        if self.open.len() >= OPEN_MAX {
            let refused = Err(ChangeRefused::NotProposed(NotProposed::ChangeOpen));
            answers.push((reply_to, what.answer(refused)));
            return;
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let deadline_ms = left_ms(deadline_us, now_us);
        self.out.push((leader, AdminForward { id, deadline_ms, what: what.clone() }));
        self.open.insert(id, Open { leader, what, reply_to, deadline_us, until_us: None });
    }

    /// A node answers. Only the one that was asked is believed.
    pub(super) fn answered(
        &mut self,
        from: NodeId,
        id: u64,
        result: Result<NodeId, ChangeRefused>,
        answers: &mut Answers<C>,
    ) {
        if self.open.get(&id).is_some_and(|open| open.leader == from)
            && let Some(open) = self.open.remove(&id)
        {
            answers.push((open.reply_to, open.what.answer(result)));
        }
    }

    /// One never left this node.
    pub(super) fn unsent(&mut self, id: u64, answers: &mut Answers<C>) {
        if let Some(open) = self.open.remove(&id) {
            let leader = Some(open.leader);
            let refused = Err(ChangeRefused::NotProposed(NotProposed::NotLeader { leader }));
            answers.push((open.reply_to, open.what.answer(refused)));
        }
    }

    /// The connection with a node broke.
    pub(super) fn lost(&mut self, node: NodeId, answers: &mut Answers<C>) {
        self.give_up(answers, |open| open.leader == node);
    }

    /// That node leads. Whoever else was asked is waited for until then.
    pub(super) fn led_by(&mut self, leader: NodeId, until_us: u64) {
        for open in self.open.values_mut() {
            open.until_us = match open.until_us {
                _ if open.leader == leader => None,
                already => already.or(Some(until_us)),
            };
        }
    }

    /// Answers those whose time is over.
    pub(super) fn expire(&mut self, now_us: u64, answers: &mut Answers<C>) {
        let over = |at_us: u64| now_us >= at_us;
        self.give_up(answers, |open| over(open.deadline_us) || open.until_us.is_some_and(over));
    }

    fn give_up(&mut self, answers: &mut Answers<C>, is_over: impl Fn(&Open<C>) -> bool) {
        self.open.retain(|_, open| {
            let over = is_over(open);
            if over {
                let unknown = open.what.answer(Err(ChangeRefused::NoAnswer));
                answers.push((open.reply_to.clone(), unknown));
            }
            !over
        });
    }
}

//! The raft loop's inbox, and the rule by which what comes wakes the loop.
//!
//! Waking a thread costs more than anything the raft loop does with one request. While a batch of
//! writes or a round of reads is under way a new request cannot be begun, and the loop is certain
//! to wake when the batch or the round is done: until then requests only queue up. The loop says
//! before it sleeps what is worth waking it for ([`WakeInterest`]). Everything else wakes it always.
//!
//! No wake-up is lost: the loop may sleep only when nothing is queued, and the first input after that which
//! is of interest wakes it. The owner keeps the inbox from changing between that look and the sleep.

use super::events::Input;
use super::words::Request;
use crate::raft::Index;
use std::collections::VecDeque;

/// Inputs of a kind that are taken at once before effects are looked at: keeps timers exact under load.
pub const INPUTS_MAX: usize = 4096;

/// What would be acted on at once if it came now. Anything else may wait in a queue until the
/// replica is next woken, which is certain to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WakeInterest {
    /// Writes of clients.
    pub writes: bool,
    /// Reads and other requests of clients.
    pub reads: bool,
    /// News of the applier.
    pub applied: bool,
}

impl WakeInterest {
    /// Whether an input is of interest.
    pub fn covers<C>(self, input: &Input<C>) -> bool {
        match input {
            Input::Client { requests, .. } => requests.iter().any(|(_, _, what)| match what {
                Request::Write(_) => self.writes,
                _ => self.reads,
            }),
            Input::Applied { .. } => self.applied,
            // It only keeps the loop from beginning something.
            Input::Rests { .. } => false,
            _ => true,
        }
    }
}

/// See the module.
///
/// Invariant: while the loop sleeps nothing is queued that is of interest.
#[derive(Debug)]
pub struct Inbox<C> {
    /// What wakes always.
    events: VecDeque<Input<C>>,
    requests: VecDeque<Input<C>>,
    /// The latest news of the applier, when it was not taken.
    applied: Option<(Index, Index)>,
    /// News of the applier that were taken reach so far.
    heard: Index,
    /// What wakes the loop, while it sleeps.
    asleep: Option<WakeInterest>,
}

impl<C> Default for Inbox<C> {
    fn default() -> Inbox<C> {
        Inbox {
            events: VecDeque::new(),
            requests: VecDeque::new(),
            applied: None,
            heard: 0,
            asleep: None,
        }
    }
}

impl<C> Inbox<C> {
    /// Queues an input. True when the loop sleeps and is to be woken for it: only once for each sleep.
    pub fn push(&mut self, input: Input<C>) -> bool {
        if matches!(input, Input::Applied { index, .. } if index <= self.heard) {
            return false;
        }
        let wakes = self.asleep.is_some_and(|interest| interest.covers(&input));
        if wakes {
            self.asleep = None;
        }
        match input {
            Input::Client { .. } => self.requests.push_back(input),
            // Of these only the last counts.
            Input::Applied { index, flushed } => self.applied = Some((index, flushed)),
            _ => self.events.push_back(input),
        }
        wakes
    }

    /// The loop is done and would sleep. Whether it may: not when something came meanwhile, wanted or not.
    pub fn sleep(&mut self, interest: WakeInterest) -> bool {
        let sleeps = self.is_empty();
        self.asleep = sleeps.then_some(interest);
        sleeps
    }

    /// The loop sleeps, and nothing has come that wakes it.
    pub fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    /// The loop is awake and takes what there is: events, news of the applier, requests, of each kind at most
    /// so many and in the order in which they came.
    pub fn take(&mut self, max: usize, into: &mut Vec<Input<C>>) {
        self.asleep = None;
        into.extend(self.events.drain(..max.min(self.events.len())));
        if let Some((index, flushed)) = self.applied.take() {
            self.heard = index;
            into.push(Input::Applied { index, flushed });
        }
        into.extend(self.requests.drain(..max.min(self.requests.len())));
    }

    /// Nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.requests.is_empty() && self.applied.is_none()
    }

    /// Inputs that are queued.
    pub fn len(&self) -> usize {
        self.events.len() + usize::from(self.applied.is_some()) + self.requests.len()
    }

    /// What is queued, but for news of the applier.
    pub fn iter(&self) -> impl Iterator<Item = &Input<C>> {
        self.events.iter().chain(&self.requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn write(client: u64) -> Input<u64> {
        Input::Client { client, requests: vec![(0, 0, Request::Write(Arc::from([])))] }
    }

    fn read(client: u64) -> Input<u64> {
        Input::Client { client, requests: vec![(0, 0, Request::Read)] }
    }

    fn taken(inbox: &mut Inbox<u64>, max: usize) -> Vec<String> {
        let mut taken = Vec::new();
        inbox.take(max, &mut taken);
        let name = |input| match input {
            Input::Client { client, .. } => format!("client {client}"),
            Input::Applied { index, flushed } => format!("applied {index} {flushed}"),
            Input::Damaged => "damaged".to_string(),
            other => panic!("{other:?}"),
        };
        taken.into_iter().map(name).collect()
    }

    /// A batch is under way: writes queue up and wake nobody, a read wakes, and then everything is taken.
    #[test]
    fn what_is_not_wanted_waits_for_what_is() {
        let mut inbox = Inbox::default();
        let reads = WakeInterest { reads: true, ..WakeInterest::default() };
        assert!(inbox.sleep(reads));
        assert!(!inbox.push(write(1)) && !inbox.push(Input::Applied { index: 3, flushed: 1 }));
        assert!(inbox.is_asleep());
        assert!(inbox.push(read(2)));
        assert!(!inbox.push(read(3)) && !inbox.push(Input::Damaged), "it is woken once");
        assert_eq!(
            taken(&mut inbox, 10),
            ["damaged", "applied 3 1", "client 1", "client 2", "client 3"]
        );
        assert!(inbox.sleep(reads));
        assert!(inbox.push(Input::Damaged), "wakes whatever is wanted");
    }

    /// Something came while the loop was at work: it looks again before it sleeps, wanted or not.
    #[test]
    fn the_loop_does_not_sleep_on_what_came_meanwhile() {
        let mut inbox = Inbox::default();
        assert!(!inbox.push(write(1)));
        assert!(!inbox.sleep(WakeInterest::default()) && !inbox.is_asleep());
        assert_eq!(taken(&mut inbox, 10), ["client 1"]);
        inbox.push(Input::Applied { index: 1, flushed: 0 });
        assert!(!inbox.sleep(WakeInterest::default()));
    }

    /// More came than is taken at once: the rest is next, in order. Of the applier's news only the last
    /// counts, and nothing is told twice.
    #[test]
    fn a_crowd_is_taken_in_turns() {
        let mut inbox = Inbox::default();
        for client in 0..5 {
            inbox.push(read(client));
        }
        for index in 1..4 {
            inbox.push(Input::Applied { index, flushed: 0 });
        }
        assert_eq!(taken(&mut inbox, 2), ["applied 3 0", "client 0", "client 1"]);
        assert!(!inbox.sleep(WakeInterest::default()));
        assert!(!inbox.push(Input::Applied { index: 3, flushed: 1 }));
        assert_eq!(taken(&mut inbox, 2), ["client 2", "client 3"]);
        assert_eq!(taken(&mut inbox, 2), ["client 4"]);
        assert!(inbox.sleep(WakeInterest::default()));
    }
}

//! Which address is dialed next.
//!
//! A client knows the addresses it was given and those it has learned. Attempts go in *rounds*: in one
//! round every address that may take this client has one attempt, the leader first where it is known.
//! Only when a round is over and an attempt in it took too long do attempts get more time: a node that
//! is gone must not use up the time of those that are not.

use super::super::error::Error;
use crate::wire::client::Class;
use crate::wire::handshake::Welcome;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most addresses that are kept, beside those given: more members than a cluster has.
pub(super) const LEARNED_MAX: usize = 64;

/// How long an address that did not answer is not dialed just because a node names it as leader,
/// microseconds.
const AVOID_US: u64 = 2_000_000;

/// What has come of an attempt that was no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Other addresses are still to be tried.
    GoesOn,
    /// Every address was tried, and each gave its reason.
    Over,
    /// Every address was tried, and at least one took too long.
    OverLate,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Directory {
    given: Vec<String>,
    learned: Vec<String>,
    /// Addresses that will never take this client, with the reason.
    barred: Vec<(String, Arc<Error>)>,
    /// Addresses that do not take its token, as far as the present call knows.
    refused: Vec<(String, Arc<Error>)>,
    /// Where the leader is believed to be.
    leader: Option<String>,
    /// Addresses that did not answer, and until when they are avoided.
    avoided: BTreeMap<String, u64>,
    /// Where a round begins.
    first: usize,
    /// What this round has tried.
    tried: Vec<String>,
    /// Something in this round took too long.
    late: bool,
    /// In this round a node had no place for this client.
    full: Option<Arc<Error>>,
    /// The cluster, once one has answered: a node of another one is never mistaken for it.
    cluster: u64,
}

impl Directory {
    pub(super) fn new(given: &[String]) -> Directory {
        Directory {
            given: given.to_vec(),
            learned: Vec::new(),
            barred: Vec::new(),
            refused: Vec::new(),
            leader: None,
            avoided: BTreeMap::new(),
            first: 0,
            tried: Vec::new(),
            late: false,
            full: None,
            cluster: 0,
        }
    }

    pub(super) fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Every address: those given, and those learned.
    pub(super) fn all(&self) -> Vec<String> {
        let learned = self.learned.iter().filter(|a| !self.given.contains(a));
        self.given.iter().chain(learned).cloned().collect()
    }

    /// Addresses that may take this client, in the order in which they are to be dialed.
    pub(super) fn candidates(&self) -> Vec<String> {
        let mut all = self.all();
        if !all.is_empty() {
            let first = self.first % all.len();
            all.rotate_left(first);
        }
        if let Some(leader) = &self.leader {
            all.retain(|a| a != leader);
            all.insert(0, leader.clone());
        }
        all.retain(|a| !self.is_closed_to_us(a));
        all
    }

    fn is_closed_to_us(&self, address: &str) -> bool {
        self.barred.iter().chain(&self.refused).any(|(a, _)| a == address)
    }

    /// The address to dial next, and among how many that are still to be tried in this round the
    /// time is to be shared. None when all were.
    pub(super) fn next(&self) -> Option<(String, usize)> {
        let mut candidates = self.candidates();
        candidates.retain(|a| !self.tried.contains(a));
        let left = candidates.len();
        candidates.into_iter().next().map(|address| (address, left))
    }

    /// Whether some address may take this client.
    pub(super) fn has_candidates(&self) -> bool {
        !self.candidates().is_empty()
    }

    /// Why no address takes this client, once that is so: a wrong token before all else, since that
    /// can be mended.
    pub(super) fn closed(&self) -> Option<Arc<Error>> {
        self.refused.first().or(self.barred.last()).map(|(_, error)| Arc::clone(error))
    }

    /// The token was refused somewhere, and nowhere taken.
    pub(super) fn refusal(&self) -> Option<Arc<Error>> {
        self.refused.first().map(|(_, error)| Arc::clone(error))
    }

    /// A full node stays full longer than a call waits: after a round this is told.
    pub(super) fn full(&self) -> Option<Arc<Error>> {
        self.full.clone()
    }

    /// A call begins: a token may have been taken up meanwhile.
    pub(super) fn begin(&mut self) {
        self.refused.clear();
        self.begin_round();
    }

    pub(super) fn begin_round(&mut self) {
        self.tried.clear();
        self.late = false;
        self.full = None;
    }

    /// An attempt at that address was no use; `late` when it took all its time.
    pub(super) fn tried(&mut self, address: &str, late: bool) -> Round {
        if !self.tried.iter().any(|a| a == address) {
            self.tried.push(address.to_owned());
        }
        self.late |= late;
        let candidates = self.candidates();
        if candidates.iter().any(|a| !self.tried.contains(a)) {
            return Round::GoesOn;
        }
        if self.late { Round::OverLate } else { Round::Over }
    }

    /// Dialing that address failed.
    pub(super) fn dial_failed(&mut self, address: &str, error: &Arc<Error>, now_us: u64) {
        self.is_silent(address, now_us);
        let closed = match error.class {
            Class::Unauthorised => Some(&mut self.refused),
            _ if error.bars_address() => Some(&mut self.barred),
            Class::Busy => {
                self.full = Some(Arc::clone(error));
                None
            }
            _ => None,
        };
        if let Some(closed) = closed
            && closed.len() < LEARNED_MAX
        {
            closed.push((address.to_owned(), Arc::clone(error)));
        }
    }

    /// The node at that address does not answer: it is not the leader that others take it for.
    pub(super) fn is_silent(&mut self, address: &str, now_us: u64) {
        if self.leader.as_deref() == Some(address) {
            self.leader = None;
        }
        self.avoided.retain(|_, until_us| *until_us > now_us);
        if self.avoided.len() < LEARNED_MAX {
            self.avoided.insert(address.to_owned(), now_us + AVOID_US);
        }
    }

    /// Whether a leader that a node names may be dialed: in a round it has one attempt like all
    /// others, so that two nodes that name each other do not keep the client from the third.
    pub(super) fn may_follow(&self, address: &str, now_us: u64) -> bool {
        let avoided = self.avoided.get(address).is_some_and(|until_us| *until_us > now_us);
        let tried = self.tried.iter().any(|a| a == address);
        !(address.is_empty() || avoided || tried || self.is_closed_to_us(address))
    }

    /// The leader is there, a node says.
    pub(super) fn leads(&mut self, address: &str) {
        self.leader = Some(address.to_owned());
        self.learn(address);
    }

    /// Nobody knows who leads; the next round begins behind the node at that address. Says whether
    /// there is another one to ask.
    pub(super) fn go_on_behind(&mut self, address: &str) -> bool {
        self.leader = None;
        if let Some(at) = self.all().iter().position(|a| a == address) {
            self.first = at + 1;
        }
        self.candidates().iter().any(|a| a != address)
    }

    /// A node at that address takes this client.
    pub(super) fn welcomed(&mut self, address: &str, welcome: &Welcome) {
        self.full = None;
        self.refused.clear();
        self.avoided.remove(address);
        if welcome.cluster != 0 {
            self.cluster = welcome.cluster;
        }
        self.learn(address);
        if welcome.leader != 0 && welcome.leader == welcome.node {
            self.leader = Some(address.to_owned());
        } else {
            self.learn(&welcome.leader_address);
        }
    }

    fn learn(&mut self, address: &str) {
        let known = self.given.iter().chain(&self.learned).any(|a| a == address);
        if !known && !address.is_empty() && self.learned.len() < LEARNED_MAX {
            self.learned.push(address.to_owned());
        }
    }

    /// Those that are members are known from now on, and beside them those that were given.
    pub(super) fn members(&mut self, addresses: impl Iterator<Item = String>) {
        self.learned = addresses.filter(|a| !a.is_empty()).take(LEARNED_MAX).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Directory {
        Directory::new(&["a", "b", "c"].map(str::to_owned))
    }

    #[test]
    fn a_leader_that_says_nothing_is_not_dialed_because_others_name_it() {
        // For some time, and it is not the first one any more; then it may be followed again.
        let mut directory = three();
        directory.leads("b");
        assert_eq!(directory.candidates(), ["b", "a", "c"]);
        assert!(directory.may_follow("b", 100));
        directory.is_silent("b", 100);
        assert_eq!(directory.candidates(), ["a", "b", "c"]);
        assert!(!directory.may_follow("b", 99 + AVOID_US));
        assert!(directory.may_follow("b", 100 + AVOID_US));
        // Another one's silence says nothing of the leader.
        directory.leads("c");
        directory.is_silent("a", 100);
        assert_eq!(directory.candidates(), ["c", "a", "b"]);
    }

    #[test]
    fn an_address_that_was_named_is_known_from_then_on() {
        // Once, after those that were given, and never an empty one.
        let mut directory = three();
        for named in ["x", "a", "x", ""] {
            directory.leads(named);
        }
        assert_eq!(directory.all(), ["a", "b", "c", "x"]);
    }

    #[test]
    fn a_round_begins_behind_who_knew_no_leader() {
        // And it is said whether there is anybody else to ask.
        let mut directory = three();
        directory.leads("c");
        assert!(directory.go_on_behind("a"));
        assert_eq!(directory.candidates(), ["b", "c", "a"]);
        assert!(directory.go_on_behind("c"));
        assert_eq!(directory.candidates(), ["a", "b", "c"]);
        let mut alone = Directory::new(&["a".to_owned()]);
        assert!(!alone.go_on_behind("a"));
        assert_eq!(alone.candidates(), ["a"]);
        assert!(!Directory::new(&[]).has_candidates());
    }
}

//! Admission by waiting time: how many requests of all connections may be under way.
//!
//! A node that is asked for more than it can do answers everybody late, unless it says no to some. What a request
//! waits for is the requests in front of it: by Little's law the wait is their number over the rate at which they
//! are answered. So a node takes [`FREE`] requests whatever happens, and beyond these as many as it answers in
//! [`WAIT_US`]; the rest is refused as busy before it costs anything, surely not applied. The rate is counted only
//! while more than [`FREE`] are under way: a node with less to do is not at its limit, and shows no limit.
//!
//! The bytes of writes have a bound of their own (`--inflight-bytes`), which holds for what other nodes pass on,
//! too. Not counted is what needs no other thread: reads of what is applied here, the state of the node, a backup.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests that are taken whatever they wait: as many connections with one request each are no overload, and a
/// machine that answers 10,000 a second answers these in 0.4 s.
const FREE: usize = 4096;
/// How long a request may wait for those in front of it, in microseconds: well below an election timeout, and many
/// times what a disk needs for a batch.
const WAIT_US: u64 = 100_000;
/// The rate is counted over so long, in microseconds: several batches, so that it does not go by one.
const WINDOW_US: u64 = 100_000;
/// Nobody was refused or nearly so for so long, in microseconds: what was answered meanwhile says nothing.
const LULL_US: u64 = 10 * WINDOW_US;

/// See the module. Counts of many threads; each is a bound and orders nothing.
#[derive(Debug)]
pub struct Load {
    free: usize,
    under_way: AtomicUsize,
    answered: AtomicU64,
    refused: AtomicU64,
    limit: AtomicUsize,
    window: Mutex<Window>,
}

/// A stretch of time in which more than `free` were under way.
#[derive(Debug)]
struct Window {
    began_us: u64,
    /// Answered before.
    answered: u64,
}

impl Default for Load {
    fn default() -> Load {
        Load::new(FREE)
    }
}

impl Load {
    /// One that always takes so many.
    #[must_use]
    pub fn new(free: usize) -> Load {
        Load {
            free,
            under_way: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            limit: AtomicUsize::new(free),
            window: Mutex::new(Window { began_us: 0, answered: 0 }),
        }
    }

    /// Requests that are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// As many may be under way at present.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Requests that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes one more, or not.
    fn take(&self, now_us: u64) -> bool {
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        if before < self.free {
            return true;
        }
        self.look(now_us);
        let takes = before < self.limit();
        if !takes {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        takes
    }

    /// More than the free ones are under way: sets the limit by the rate, once a window.
    fn look(&self, now_us: u64) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let passed_us = now_us.saturating_sub(window.began_us);
        if passed_us < WINDOW_US {
            return;
        }
        let answered = self.answered.load(Ordering::Relaxed);
        if passed_us < LULL_US {
            let in_time =
                answered.wrapping_sub(window.answered).saturating_mul(WAIT_US) / passed_us;
            let limit = usize::try_from(in_time).unwrap_or(usize::MAX).max(self.free);
            self.limit.store(limit, Ordering::Relaxed);
        }
        *window = Window { began_us: now_us, answered };
    }

    fn give_back(&self, count: usize) {
        if count > 0 {
            self.under_way.fetch_sub(count, Ordering::Relaxed);
            self.answered.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
}

/// What a turn of a connection has under way.
///
/// Invariant: `count` is part of the load's sum until this is settled or dropped.
#[derive(Debug)]
pub(super) struct Charge {
    load: Arc<Load>,
    count: usize,
}

impl Charge {
    /// Nothing yet.
    pub(super) fn new(load: &Arc<Load>) -> Charge {
        Charge { load: Arc::clone(load), count: 0 }
    }

    /// Takes one more request.
    ///
    /// # Errors
    ///
    /// What the client is told when too many are under way.
    pub(super) fn take(&mut self, now_us: u64) -> Result<(), String> {
        if self.load.take(now_us) {
            self.count += 1;
            return Ok(());
        }
        Err(format!(
            "busy: {} requests wait at this node, which is more than it answers in {} ms; try again later",
            self.load.under_way(),
            WAIT_US / 1000
        ))
    }

    /// Everything is answered, or waits for nobody but its client.
    pub(super) fn settle(&mut self) {
        self.load.give_back(std::mem::take(&mut self.count));
    }

    /// All of it, to be settled elsewhere.
    pub(super) fn hand_over(&mut self) -> Charge {
        Charge { load: Arc::clone(&self.load), count: std::mem::take(&mut self.count) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::super::NodeState;
    use super::super::tests::{Driver, get, put, request, state};
    use super::*;
    use crate::wire::client::{Call, Class, Consistency};

    const SECOND_US: u64 = 1_000_000;

    /// Clients ask for 20,000 requests a second, each in a turn of its own, of a node that answers 10,000, the
    /// oldest first. Gives how many of a second's requests were answered and refused in the last of `seconds`, and the longest wait.
    fn overload(load: &Arc<Load>, seconds: u64) -> (u64, u64, u64) {
        let mut queue = std::collections::VecDeque::new();
        let (mut answered, mut refused, mut longest_us) = (0, 0, 0);
        for now_us in (0..seconds * SECOND_US).step_by(50) {
            let last = now_us >= (seconds - 1) * SECOND_US;
            let mut charge = Charge::new(load);
            match charge.take(SECOND_US * 50 + now_us) {
                Ok(()) => queue.push_back((now_us, charge)),
                Err(_) => refused += u64::from(last),
            }
            if now_us % 100 == 0
                && let Some((since_us, _)) = queue.pop_front()
                && last
            {
                answered += 1;
                longest_us = longest_us.max(now_us - since_us);
            }
        }
        (answered, refused, longest_us)
    }

    /// Twice what a node can do: it does all it can, says no to the rest, and nobody waits much longer than the bound.
    #[test]
    fn twice_the_load_is_half_refused_and_waits_no_longer() {
        let load = Arc::new(Load::new(100));
        let (answered, refused, longest_us) = overload(&load, 3);
        assert_eq!((answered, refused), (10_000, 10_000));
        assert!((WAIT_US / 2..WAIT_US * 11 / 10).contains(&longest_us), "{longest_us}");
    }

    /// The node stalls, and those who wait become too many; it goes on, and takes as many as before.
    #[test]
    fn a_stall_leaves_no_limit_behind() {
        let load = Arc::new(Load::new(100));
        let mut held: Vec<Charge> = Vec::new();
        for at_us in (0..SECOND_US).step_by(1000) {
            let mut charge = Charge::new(&load);
            if charge.take(at_us).is_ok() {
                held.push(charge);
            }
        }
        assert_eq!((held.len(), load.under_way(), load.limit()), (100, 100, 100));
        assert_eq!(load.refused(), 900);
        drop(held);
        assert_eq!(load.under_way(), 0);
        let (answered, _, longest_us) = overload(&load, 2);
        assert_eq!(answered, 10_000);
        assert!((WAIT_US / 2..WAIT_US * 11 / 10).contains(&longest_us), "{longest_us}");
    }

    /// What is free is taken at any rate, and a burst after a lull is not judged by the lull.
    #[test]
    fn a_lull_says_nothing_of_the_rate() {
        let load = Arc::new(Load::new(2));
        let mut charge = Charge::new(&load);
        assert!(charge.take(0).is_ok() && charge.take(0).is_ok());
        assert!(charge.take(0).is_err(), "no rate is known");
        load.limit.store(50, Ordering::Relaxed);
        assert!(charge.take(3600 * SECOND_US).is_ok(), "the limit of before holds");
        assert_eq!(load.limit(), 50);
        let mut there = charge.hand_over();
        charge.settle();
        assert_eq!(load.under_way(), 3);
        there.settle();
        assert_eq!((load.under_way(), load.refused()), (0, 1));
    }

    fn state_with(free: usize) -> Arc<NodeState> {
        let state = Arc::into_inner(state()).unwrap();
        Arc::new(NodeState { load: Arc::new(Load::new(free)), ..state })
    }

    /// Six requests arrive together where three are taken: the others are answered first, as busy, and not put to
    /// the replica. What waits for nobody is served, and everything is given back.
    #[test]
    fn what_is_too_much_is_refused_before_the_rest_is_served() {
        let state = state_with(3);
        let mut client = Driver::native(Arc::clone(&state));
        let linearizable = || get(b"none", Consistency::Linearizable);
        let calls = [
            put("a"),
            linearizable(),
            put("c"),
            put("b"),
            linearizable(),
            Call::Ping,
            get(b"none", Consistency::Stale),
        ];
        let bytes: Vec<u8> = (1..).zip(calls).flat_map(|(id, call)| request(id, call)).collect();
        client.send(&bytes);
        let responses = client.responses();
        let class = |result: &Result<_, crate::wire::client::Failure>| {
            result.as_ref().err().map(|f| f.class)
        };
        let told: Vec<_> = responses.iter().map(|r| (r.id, class(&r.result))).collect();
        let busy = Some(Class::Busy);
        assert_eq!(told[..2], [(4, busy), (5, busy)]);
        assert_eq!(told.iter().map(|(id, _)| *id).collect::<Vec<_>>()[2..], [1, 2, 3, 6, 7]);
        assert!(told[2..].iter().all(|(_, class)| class.is_none_or(|class| class != Class::Busy)));
        assert_eq!(client.sets[0].len(), 3);
        assert_eq!((state.load.under_way(), state.load.refused()), (0, 2));
    }

    /// Commands are answered in their order, refused or not, and what whoever brings the answers writes is given back by them.
    #[test]
    fn a_text_client_is_refused_in_its_order() {
        let state = state_with(2);
        let mut client = Driver::new(Arc::clone(&state), false);
        client.send(b"SET a 1\r\nSET b 2\r\nSET c 3\r\nPING\r\nGET none\r\n");
        let text = client.text();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines[..2], ["+OK", "+OK"]);
        assert!(lines[2].starts_with("-TRYAGAIN busy: 2 requests wait"), "{text}");
        assert_eq!(lines[3..], ["+PONG", "$-1", ""]);
        for _ in 0..4 {
            client.send(b"SET a 1\r\nSET b 2\r\n");
            assert_eq!(client.text(), "+OK\r\n+OK\r\n");
            assert_eq!(state.load.under_way(), 0);
        }
        assert!(client.direct > 0);
    }
}

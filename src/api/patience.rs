//! How long, and with how much memory, a node waits for the rest of a request, and for a client to take its answers.

use super::NodeState;
use super::budget::{Budget, Share};
use crate::node::DEADLINE_US_MAX;
use crate::wire::frame::CLIENT_FRAME_MAX;
use std::fmt;
use std::sync::Arc;

/// A frame or command that has begun must be complete within so long, whole: an unfinished one
/// holds memory. The largest takes 1.1 s at 16 MiB over 128 Mbit/s; this allows 4.5 Mbit/s.
pub const REQUEST_TIMEOUT_US: u64 = 30_000_000;
/// A client that begins no request for so long gives its place to another. Longer than any deadline
/// of a request, and than people and pools leave a connection alone that they still need.
pub const IDLE_TIMEOUT_US: u64 = 600_000_000;
/// Memory that a connection may hold for input it has not finished without asking.
pub(super) const PARTIAL_FREE_BYTES: usize = 256 << 10;
/// What all client connections together may hold beyond that: some of the largest frames at once,
/// and a small part of a machine.
const PARTIAL_BYTES_MAX: usize = 256 << 20;
/// A client that takes no byte of its answers for so long is cut off.
pub const WRITE_TIMEOUT_US: u64 = 10_000_000;
/// While the answers of all clients hold nearly as much as they may, one that has not taken all of what is written to
/// it after so long is cut off: 1 MiB at 8 Mbit/s.
const SHORT_WRITE_TIMEOUT_US: u64 = 1_000_000;
/// What is said to a client whose unfinished request no memory is left for.
pub(super) const NO_ROOM: &str =
    "busy: the unfinished requests of all connections hold as much memory as they may";

const _: () = {
    assert!(REQUEST_TIMEOUT_US < IDLE_TIMEOUT_US);
    assert!(DEADLINE_US_MAX < IDLE_TIMEOUT_US);
    assert!(8 * CLIENT_FRAME_MAX <= PARTIAL_BYTES_MAX);
    assert!(SHORT_WRITE_TIMEOUT_US < WRITE_TIMEOUT_US);
};

/// The budget of what all clients hold for requests that are not complete.
pub(super) fn partial_budget() -> Arc<Budget> {
    Budget::new(PARTIAL_BYTES_MAX, PARTIAL_FREE_BYTES)
}

/// The patience with one client that takes what is written to it, from the beginning of one write.
#[derive(Clone, Copy, Debug)]
pub struct WritePatience {
    begun_us: u64,
    moved_us: u64,
}

/// Why a client is cut off that does not take its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooSlow {
    /// It takes nothing at all.
    Stalled,
    /// It is slow, and others need the memory; of which there is so much.
    Short {
        /// The bound, in bytes.
        bytes_max: usize,
    },
}

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TooSlow::Stalled => {
                write!(f, "it took no answer for {} s", WRITE_TIMEOUT_US / 1_000_000)
            }
            TooSlow::Short { bytes_max } => write!(
                f,
                "it did not take its answers within {} s, while those of all clients hold nearly as much memory as \
                 they may ({bytes_max} bytes); read faster, or ask for less at a time",
                SHORT_WRITE_TIMEOUT_US / 1_000_000
            ),
        }
    }
}

impl WritePatience {
    /// A write begins.
    #[must_use]
    pub fn new(now_us: u64) -> WritePatience {
        WritePatience { begun_us: now_us, moved_us: now_us }
    }

    /// The client has taken some of it.
    pub fn moved(&mut self, now_us: u64) {
        self.moved_us = now_us;
    }

    /// Why the client is to be cut off now, if it is.
    pub fn ends(&self, now_us: u64, answers: &Budget) -> Option<TooSlow> {
        let over = |since_us: u64, timeout_us| now_us.saturating_sub(since_us) >= timeout_us;
        if over(self.moved_us, WRITE_TIMEOUT_US) {
            return Some(TooSlow::Stalled);
        }
        let short = answers.is_short() && over(self.begun_us, SHORT_WRITE_TIMEOUT_US);
        short.then_some(TooSlow::Short { bytes_max: answers.max() })
    }
}

/// The patience with one client, and its share of what requests that are not complete may hold.
#[derive(Debug)]
pub(super) struct Patience {
    share: Share,
    /// When the request that is arriving must be complete; none when none has begun.
    until_us: Option<u64>,
}

impl Patience {
    pub(super) fn new(state: &NodeState) -> Patience {
        Patience { share: Share::new(&state.partial), until_us: None }
    }

    /// Until when more is waited for: a time once a request has `begun`, which holds `memory`. `fresh`
    /// when one was completed since the last call, so that what is held now is another one. None when
    /// there is no room for it.
    pub(super) fn with(
        &mut self,
        begun: bool,
        fresh: bool,
        memory: usize,
        now_us: u64,
    ) -> Option<Option<u64>> {
        if !begun || fresh {
            self.until_us = None;
        }
        if begun && self.until_us.is_none() {
            self.until_us = Some(now_us + REQUEST_TIMEOUT_US);
        }
        self.share.hold(if begun { memory } else { 0 }).then_some(self.until_us)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::state;
    use super::*;

    /// A client begins a request and trickles it on for ever; another one is idle. The first has a
    /// deadline that bytes do not move, the second has none here.
    #[test]
    fn a_request_that_has_begun_has_a_deadline_that_does_not_move() {
        let mut patience = Patience::new(&state());
        assert_eq!(patience.with(false, false, 0, 5), Some(None), "it may begin late");
        let until = Some(Some(100 + REQUEST_TIMEOUT_US));
        for now_us in 100..110 {
            assert_eq!(patience.with(true, false, 100, now_us), until);
        }
        // Had it completed one request and begun the next, the next would have its own time.
        assert_eq!(patience.with(true, true, 100, 110), Some(Some(110 + REQUEST_TIMEOUT_US)));
        assert_eq!(patience.with(false, true, 100, 120), Some(None));
    }

    /// Clients begin large requests and finish none. What they hold together is bounded; who holds
    /// little is not concerned, and what one held is free again when it is gone.
    #[test]
    fn unfinished_requests_share_a_bound() {
        let state = state();
        let most = PARTIAL_FREE_BYTES + PARTIAL_BYTES_MAX;
        let holds =
            |client: &mut Patience, begun, memory| client.with(begun, false, memory, 0).is_some();
        let another = || Patience::new(&state);
        let mut large = another();
        assert!(holds(&mut large, true, most / 2));
        assert!(holds(&mut large, true, most), "it alone may have all");
        assert!(holds(&mut another(), true, PARTIAL_FREE_BYTES));
        assert!(!holds(&mut another(), true, PARTIAL_FREE_BYTES + 1));
        assert!(holds(&mut large, false, most), "what is complete is not unfinished");
        assert!(holds(&mut another(), true, most));
        assert!(holds(&mut large, true, most));
        drop(large);
        assert_eq!(state.partial.held(), 0);
    }

    /// A client takes a byte now and then: it may go on for as long as it likes, until the memory for answers is short.
    /// One that takes nothing is cut off in any case.
    #[test]
    fn a_slow_client_is_cut_off_when_others_need_the_memory() {
        let budget = Budget::new(100, 0);
        let mut other = Share::new(&budget);
        let mut slow = WritePatience::new(0);
        for n in 1..100 {
            slow.moved(n * 1_000_000);
            assert_eq!(slow.ends(n * 1_000_000, &budget), None);
        }
        assert!(other.hold(75));
        assert_eq!(slow.ends(99_000_000, &budget), None, "a quarter is left");
        assert!(other.hold(76));
        assert_eq!(slow.ends(99_000_000, &budget), Some(TooSlow::Short { bytes_max: 100 }));
        let quick = WritePatience::new(98_000_001);
        assert_eq!(quick.ends(99_000_000, &budget), None, "it has its second");
        other.release();
        let stalled = WritePatience::new(0);
        assert_eq!(stalled.ends(WRITE_TIMEOUT_US - 1, &budget), None);
        assert_eq!(stalled.ends(WRITE_TIMEOUT_US, &budget), Some(TooSlow::Stalled));
    }
}

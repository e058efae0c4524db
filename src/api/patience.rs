//! How long, and with how much memory, a node waits for the rest of a request.

use super::NodeState;
use crate::node::DEADLINE_US_MAX;
use crate::wire::frame::CLIENT_FRAME_MAX;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A frame or command that has begun must be complete within so long, whole: an unfinished one
/// holds memory. The largest takes 1.1 s at 16 MiB over 128 Mbit/s; this allows 4.5 Mbit/s.
pub const REQUEST_TIMEOUT_US: u64 = 30_000_000;
/// A client that begins no request for so long gives its place to another. Longer than any deadline
/// of a request, and than people and pools leave a connection alone that they still need.
pub const IDLE_TIMEOUT_US: u64 = 600_000_000;
/// Memory that a connection may hold for input it has not finished without asking.
const PARTIAL_FREE_BYTES: usize = 256 << 10;
/// What all client connections together may hold beyond that: some of the largest frames at once,
/// and a small part of a machine.
const PARTIAL_BYTES_MAX: usize = 256 << 20;
/// What is said to a client whose unfinished request no memory is left for.
pub(super) const NO_ROOM: &str =
    "busy: the unfinished requests of all connections hold as much memory as they may";

const _: () = {
    assert!(REQUEST_TIMEOUT_US < IDLE_TIMEOUT_US);
    assert!(DEADLINE_US_MAX < IDLE_TIMEOUT_US);
    assert!(8 * CLIENT_FRAME_MAX <= PARTIAL_BYTES_MAX);
};

/// What all client connections hold for unfinished input beyond what each may hold freely.
#[derive(Debug, Default)]
pub struct PartialBytes(AtomicUsize);

/// The patience with one client, and its share of [`PartialBytes`].
///
/// Invariant: `charged` is part of the sum until this is dropped.
#[derive(Debug)]
pub(super) struct Patience {
    state: Arc<NodeState>,
    charged: usize,
    /// When the request that is arriving must be complete; none when none has begun.
    until_us: Option<u64>,
}

impl Patience {
    pub(super) fn new(state: Arc<NodeState>) -> Patience {
        Patience { state, charged: 0, until_us: None }
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
        let charge = if begun { memory.saturating_sub(PARTIAL_FREE_BYTES) } else { 0 };
        self.charge(charge).then_some(self.until_us)
    }

    fn charge(&mut self, charge: usize) -> bool {
        if charge == self.charged {
            return true;
        }
        // Relaxed: the sum is a bound, nothing is ordered by it.
        let PartialBytes(sum) = &self.state.partial;
        sum.fetch_sub(self.charged, Ordering::Relaxed);
        self.charged = charge;
        let before = sum.fetch_add(charge, Ordering::Relaxed);
        charge == 0 || before.saturating_add(charge) <= PARTIAL_BYTES_MAX
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.state.partial.0.fetch_sub(self.charged, Ordering::Relaxed);
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
        let mut patience = Patience::new(state());
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
        let another = || Patience::new(Arc::clone(&state));
        let mut large = another();
        assert!(holds(&mut large, true, most / 2));
        assert!(holds(&mut large, true, most), "it alone may have all");
        assert!(holds(&mut another(), true, PARTIAL_FREE_BYTES));
        assert!(!holds(&mut another(), true, PARTIAL_FREE_BYTES + 1));
        assert!(holds(&mut large, false, most), "what is complete is not unfinished");
        assert!(holds(&mut another(), true, most));
        assert!(holds(&mut large, true, most));
        drop(large);
        assert_eq!(state.partial.0.load(Ordering::Relaxed), 0);
    }
}

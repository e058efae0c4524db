//! Memory that all connections of clients share, with a bound: for requests that are not complete, and for answers
//! that are not sent.
//!
//! Each holder has a little of its own, which no bound counts, so that a client of small requests and answers meets
//! none. What it holds beyond that counts until it gives it back. A holder that finds no room gets nothing more and
//! keeps what it has; what then becomes of the request or the answer is its own affair.
//!
//! Left out: who gets room that becomes free. Nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module. Bytes that are held, and how many may be.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    max: usize,
    free: usize,
}

impl Budget {
    /// One of `max` bytes, beside `free` bytes of each holder.
    #[must_use]
    pub fn new(max: usize, free: usize) -> Arc<Budget> {
        Arc::new(Budget { held: AtomicUsize::new(0), max, free })
    }

    /// Bytes that are held beyond what each holder has of its own.
    pub fn held(&self) -> usize {
        // Relaxed, here and below: the sum is a bound, nothing is ordered by it.
        self.held.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Whether so many bytes more would find room now.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.held().saturating_add(bytes) <= self.max
    }

    /// Whether the bound is near: less than a quarter of it is left.
    pub fn is_short(&self) -> bool {
        self.held() > self.max - self.max / 4
    }
}

/// What one holder has of a [`Budget`].
///
/// Invariant: `charged` is part of the sum until this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    charged: usize,
}

impl Share {
    /// Nothing yet.
    #[must_use]
    pub fn new(budget: &Arc<Budget>) -> Share {
        Share { budget: Arc::clone(budget), charged: 0 }
    }

    /// The budget that it is a part of.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Holds `bytes` in all from now on, instead of what it held. False when there is no room: then it holds what it
    /// held before, and less is always granted.
    #[must_use]
    pub fn hold(&mut self, bytes: usize) -> bool {
        let charge = bytes.saturating_sub(self.budget.free);
        let Some(more) = charge.checked_sub(self.charged).filter(|&more| more > 0) else {
            self.budget.held.fetch_sub(self.charged - charge, Ordering::Relaxed);
            self.charged = charge;
            return true;
        };
        let before = self.budget.held.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.budget.max {
            self.budget.held.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.charged = charge;
        true
    }

    /// Gives all of it back.
    pub fn release(&mut self) {
        self.budget.held.fetch_sub(std::mem::take(&mut self.charged), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three holders, each with 10 bytes of its own, share 100: who finds no room keeps what it has, and what one gives
    /// back, or leaves behind when it goes, another may have.
    #[test]
    fn holders_share_a_bound() {
        let budget = Budget::new(100, 10);
        let (mut a, mut b, mut c) = (Share::new(&budget), Share::new(&budget), Share::new(&budget));
        assert!(a.hold(10) && budget.held() == 0, "its own");
        assert!(a.hold(70) && budget.held() == 60);
        assert!(!b.hold(51) && budget.held() == 60);
        assert!(b.hold(50) && budget.held() == 100 && budget.is_short());
        assert!(!b.hold(51) && budget.held() == 100, "it keeps what it has");
        assert!(c.hold(10) && !c.hold(11), "small ones meet no bound");
        assert!(a.hold(30) && budget.held() == 60 && !budget.is_short());
        assert!(budget.has_room(40) && !budget.has_room(41));
        drop(b);
        assert!(c.hold(90) && budget.held() == 100);
        c.release();
        a.release();
        assert_eq!(budget.held(), 0);
    }
}

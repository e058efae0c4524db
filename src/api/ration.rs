//! Rations: how often something may happen, whoever wants it; and what is said in the log when others decide how often.
//!
//! A [`Ration`] is a bucket of tokens: so many at once, and so many more with every second. Lines of the log are
//! written by one for each kind ([`Rationed`]). Lines that wait to be written have a bound ([`Backlog`]).
//!
//! Left out: clocks, locks, and who waits for whom.

const SECOND_US: u64 = 1_000_000;

/// So many at once, and so many more with every second.
#[derive(Clone, Debug)]
pub struct Ration {
    burst: u64,
    per_second: u64,
    /// What was taken and has not come back, in millionths of one, at `at_us`.
    taken: u64,
    at_us: u64,
}

impl Ration {
    /// Nothing of it is taken.
    #[must_use]
    pub const fn new(burst: u64, per_second: u64) -> Ration {
        Ration { burst, per_second, taken: 0, at_us: 0 }
    }

    /// Takes one, unless all are taken.
    #[must_use]
    pub fn take(&mut self, now_us: u64) -> bool {
        let since_us = now_us.saturating_sub(self.at_us);
        self.taken = self.taken.saturating_sub(since_us.saturating_mul(self.per_second));
        self.at_us = self.at_us.max(now_us);
        let room = self.taken + SECOND_US <= self.burst * SECOND_US;
        self.taken += if room { SECOND_US } else { 0 };
        room
    }
}

/// Lines of one kind: so many at once, and one a second from then on, with the number of those that were held back.
#[derive(Debug)]
pub struct Rationed {
    ration: Ration,
    held_back: u64,
}

impl Rationed {
    /// So many at once.
    #[must_use]
    pub const fn new(burst: u64) -> Rationed {
        Rationed { ration: Ration::new(burst, 1), held_back: 0 }
    }

    /// Whether a line may be written now; if so, how many were held back since the last one.
    pub fn pass(&mut self, now_us: u64) -> Option<u64> {
        if self.ration.take(now_us) {
            return Some(std::mem::take(&mut self.held_back));
        }
        self.held_back += 1;
        None
    }
}

/// Lines that wait to be written, at most so many bytes: what does not fit is dropped and counted, and the next one that
/// fits says so.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    /// Did not fit, since the last that did.
    dropped: u64,
}

impl Backlog {
    /// Adds a line, if it fits.
    pub fn put(&mut self, line: &str, bytes_max: usize) {
        if self.bytes.len() + line.len() > bytes_max {
            self.dropped += 1;
            return;
        }
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            let told = format!("{dropped} lines were dropped here: standard error took none\n");
            self.bytes.extend_from_slice(told.as_bytes());
        }
        self.bytes.extend_from_slice(line.as_bytes());
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that waits, to be written.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A burst at once, then as many as come back, however the time is cut; a clock that stands still gives nothing.
    #[test]
    fn a_ration_comes_back_with_time() {
        let mut ration = Ration::new(3, 4);
        let take = |ration: &mut Ration, us| (0..9).filter(|_| ration.take(us)).count();
        assert_eq!((take(&mut ration, 7), take(&mut ration, 7)), (3, 0));
        let slices = (0..100).filter(|n| ration.take(7 + n * SECOND_US / 100)).count();
        assert_eq!(slices, 3, "four a second, the fourth at its end");
        assert_eq!(take(&mut ration, 7 + SECOND_US), 1);
        assert_eq!(take(&mut ration, 900 * SECOND_US), 3);
    }

    /// Whatever causes a line may cause it a thousand times a second: a burst is written, then one a second, which
    /// says how many were not.
    #[test]
    fn lines_of_one_kind_are_rationed_behind_a_burst() {
        for burst in [1, 30] {
            let mut lines = Rationed::new(burst);
            let passed = (0..1000).filter(|_| lines.pass(5) == Some(0)).count();
            assert_eq!(passed as u64, burst);
            assert_eq!(lines.pass(5 + SECOND_US / 2), None);
            assert_eq!(lines.pass(5 + SECOND_US), Some(1001 - burst));
            assert_eq!(lines.pass(5 + SECOND_US), None);
            assert_eq!(lines.pass(5 + 2 * SECOND_US), Some(1));
            let later_us = 1000 * SECOND_US;
            assert_eq!((0..1000).filter(|_| lines.pass(later_us).is_some()).count() as u64, burst);
        }
    }

    /// What does not fit is counted where it is missing, once; what is taken makes room.
    #[test]
    fn lines_that_do_not_fit_are_counted_where_they_are_missing() {
        let mut backlog = Backlog::default();
        (0..5).for_each(|_| backlog.put("0123456\n", 20));
        assert_eq!(backlog.take(), b"0123456\n0123456\n");
        assert!(backlog.is_empty());
        (0..2).for_each(|_| backlog.put("next\n", 20));
        let told = "3 lines were dropped here: standard error took none\nnext\n";
        assert_eq!(String::from_utf8(backlog.take()).unwrap(), told);
        backlog.put("last\n", 20);
        assert_eq!(backlog.take(), b"1 lines were dropped here: standard error took none\nlast\n");
    }
}

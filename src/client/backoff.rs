//! Pauses between attempts: they grow, and vary so that clients do not come back in step.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// The first pause: a leader that is just busy is asked again at once, nearly.
const FIRST: Duration = Duration::from_millis(4);

/// The longest: an election takes about this long, and a client should notice its end.
const LONGEST: Duration = Duration::from_millis(200);

/// Doublings from the first pause to the longest and beyond.
const DOUBLINGS_MAX: u32 = 6;

const _: () = assert!(FIRST.as_millis() << DOUBLINGS_MAX >= LONGEST.as_millis());

/// Gives one pause after the other.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    step: u32,
}

impl Backoff {
    /// The next pause: half fixed, half random.
    pub(super) fn next(&mut self) -> Duration {
        let whole = (FIRST * (1 << self.step)).min(LONGEST);
        self.step = (self.step + 1).min(DOUBLINGS_MAX);
        // A fresh hasher of the standard library is keyed at random: enough to spread clients.
        let random = RandomState::new().build_hasher().finish();
        whole / 2 + (whole / 2).mul_f64((random >> 32) as f64 / f64::from(u32::MAX))
    }

    /// Something worked: the next pause is short again.
    pub(super) fn reset(&mut self) {
        self.step = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_over() {
        // A cluster that is down is asked ever more rarely, but often enough to see it come back.
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(pauses.iter().all(|p| *p <= LONGEST));
        assert!(pauses[8..].iter().all(|p| *p >= LONGEST / 2));
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}

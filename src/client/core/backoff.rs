//! Pauses between attempts: they grow, and vary so that clients do not come back in step.

/// The first pause, microseconds: a leader that is just busy is asked again at once, nearly.
const FIRST_US: u64 = 4_000;

/// The longest, microseconds: an election takes about this long, and a client should notice its end.
const LONGEST_US: u64 = 200_000;

/// Doublings from the first pause to the longest and beyond.
const DOUBLINGS_MAX: u32 = 6;

const _: () = assert!(FIRST_US << DOUBLINGS_MAX >= LONGEST_US);

/// Gives one pause after the other.
#[derive(Debug)]
pub(super) struct Backoff {
    step: u32,
    state: u64,
}

impl Backoff {
    /// Pauses that vary as the seed says.
    pub(super) fn new(seed: u64) -> Backoff {
        // The generator stands still at 0.
        Backoff { step: 0, state: seed | 1 }
    }

    /// The next pause, microseconds: half fixed, half random.
    pub(super) fn next_us(&mut self) -> u64 {
        let half_us = (FIRST_US << self.step).min(LONGEST_US) / 2;
        self.step = (self.step + 1).min(DOUBLINGS_MAX);
        // xorshift64* (Vigna 2016); its low bits are weak.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        half_us + random % (half_us + 1)
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
        let mut backoff = Backoff::new(7);
        let pauses: Vec<u64> = (0..12).map(|_| backoff.next_us()).collect();
        assert!(pauses[0] >= FIRST_US / 2 && pauses[0] <= FIRST_US);
        assert!(pauses.iter().all(|p| *p <= LONGEST_US));
        assert!(pauses[8..].iter().all(|p| *p >= LONGEST_US / 2));
        backoff.reset();
        assert!(backoff.next_us() <= FIRST_US);
    }

    #[test]
    fn two_clients_pause_differently() {
        // All clients of a leader that is gone are told at the same moment.
        let (mut one, mut other) = (Backoff::new(7), Backoff::new(8));
        let differ = (0..12).filter(|_| one.next_us() != other.next_us()).count();
        assert!(differ > 6, "{differ}");
    }
}

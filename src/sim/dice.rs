//! The one source of chance in a simulation.

/// A seeded generator: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Equal seeds give equal numbers.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.roll() % bound }
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `times` in `of` times.
    pub fn chance(&mut self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }

    /// A number from `low` to `high` whose logarithm is even: short waits are common, long ones
    /// happen.
    pub fn log_between(&mut self, low: u64, high: u64) -> u64 {
        let steps = (high / low.max(1)).max(1).ilog2() + 1;
        let scale = self.below(u64::from(steps));
        self.between(low << scale, (low << (scale + 1)).min(high.max(low << scale)))
    }

    /// One of the items; the slice is not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// A random number of a handshake, or a secret.
    pub fn bytes(&mut self) -> [u8; 32] {
        let numbers = std::array::from_fn::<u64, 4, _>(|_| self.roll());
        std::array::from_fn(|i| numbers[i / 8].to_le_bytes()[i % 8])
    }

    /// A generator of its own, so that one user of chance does not disturb another.
    pub fn split(&mut self) -> Dice {
        Dice(self.roll())
    }
}

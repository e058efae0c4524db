//! How long the writer waits, so that it does not run away from the worker.
//!
//! What a batch takes in memory is owed. What a byte of it costs follows from the debt of the moment: memtables that wait
//! for their flush, tables in level 0, and what lies above the sizes of the levels. Up to some debt nothing, then more with
//! its square, so that writer and worker meet where the disk carries what is written. docs/performance.md has figures.

/// Longest wait that is asked for at once, in microseconds: what its owner has to do meanwhile does not wait longer, and
/// the price is that of the moment.
const DELAY_MAX_US: u64 = 50_000;
/// Memtables, in units of their budget, at which the writer begins to wait, and at which it waits
/// in full: one that fills and one that is being flushed are no debt.
const MEMORY_DEBT: (f64, f64) = (1.5, 3.0);
/// The same for tables in level 0: reads look into all of them.
const LEVEL0_DEBT: (f64, f64) = (8.0, 24.0);
/// The same for bytes above the sizes of the levels, in units of level 1.
const LEVELS_DEBT: (f64, f64) = (4.0, 40.0);
/// What the levels above may add: in full debt the writer is let on with one MiB a second, beyond
/// it with less.
const PRESSURE_MAX: f64 = 4.0;

/// What waits for the worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Debt {
    /// Memory of all memtables, in units of the budget of one.
    pub(super) memtables: f64,
    /// Tables in level 0 that a read looks into.
    pub(super) level0: usize,
    /// Bytes above the sizes of the levels, in units of level 1.
    pub(super) levels: f64,
}

impl Debt {
    /// How long a byte in a memtable is to be waited for, in microseconds.
    fn us_a_byte(self) -> f64 {
        let pressure = [
            (self.memtables, MEMORY_DEBT),
            (self.level0 as f64, LEVEL0_DEBT),
            (self.levels, LEVELS_DEBT),
        ]
        .map(|(now, (from, to))| ((now - from) / (to - from)).clamp(0.0, PRESSURE_MAX))
        .into_iter()
        .fold(0.0, f64::max);
        pressure * pressure
    }
}

/// Bytes in memtables for which the writer has not waited yet.
#[derive(Debug, Default)]
pub(super) struct Owed(u64);

impl Owed {
    /// A batch took so many bytes.
    pub(super) fn add(&mut self, bytes: usize) {
        self.0 += bytes as u64;
    }

    /// How long to wait now, in microseconds, at that debt, which is asked for if anything is owed. What that does not pay
    /// stays owed.
    pub(super) fn take_us(&mut self, debt: impl FnOnce() -> Debt) -> u64 {
        if self.0 == 0 {
            return 0;
        }
        let us_a_byte = debt().us_a_byte();
        let owed_us = self.0 as f64 * us_a_byte;
        if owed_us <= DELAY_MAX_US as f64 {
            self.0 = 0;
            return owed_us as u64;
        }
        self.0 -= ((DELAY_MAX_US as f64 / us_a_byte) as u64).min(self.0);
        DELAY_MAX_US
    }
}

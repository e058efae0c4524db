//! What happened, step by step: a hash over all of it, and the last steps for people.

use std::collections::VecDeque;
use std::fmt;

/// One step. The words mean what `what` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Simulated time, in microseconds.
    pub time_us: u64,
    /// The node it happened at, 0 for the world.
    pub node: u64,
    /// What happened.
    pub what: &'static str,
    /// Details.
    pub words: [u64; 4],
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { time_us, node, what, words: [a, b, c, d] } = self;
        let (s, us) = (time_us / 1_000_000, time_us % 1_000_000);
        write!(f, "{s:4}.{us:06} node {node}  {what:<18} {a} {b} {c} {d}")
    }
}

/// Steps kept for a failure's report.
const KEPT: usize = 60;

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    count: u64,
    last: VecDeque<Step>,
    print: bool,
}

impl Trace {
    /// A trace; with `print` every step is printed as it happens.
    pub fn new(print: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, count: 0, last: VecDeque::new(), print }
    }

    /// Takes one step in.
    pub fn step(&mut self, step: Step) {
        let mut word = |word: u64| {
            // FNV-1a by words of 64 bits, mixed: order matters, every bit counts.
            self.hash = (self.hash ^ word).wrapping_mul(0x100_0000_01b3);
            self.hash ^= self.hash >> 29;
        };
        word(step.time_us);
        word(step.node);
        step.what.bytes().for_each(|b| word(u64::from(b)));
        step.words.into_iter().for_each(word);
        self.count += 1;
        if self.print {
            println!("{step}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(step);
    }

    /// Prints a line beside the steps, where they are printed; the hash knows nothing of it.
    pub fn detail(&self, time_us: u64, node: u64, line: impl FnOnce() -> String) {
        if self.print {
            let (s, us) = (time_us / 1_000_000, time_us % 1_000_000);
            println!("{s:4}.{us:06} node {node}  - {}", line());
        }
    }

    /// The hash over everything so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Steps so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last steps.
    pub fn last(&self) -> impl Iterator<Item = &Step> {
        self.last.iter()
    }
}

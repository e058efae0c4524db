//! What a leader knows of one follower, and how fast it may send.
//!
//! - **Probe**: where the logs part is not known, or messages were lost. One AppendEntries at a
//!   time; the answer moves `next_index`.
//! - **Replicate**: the logs agree up to `match_index`. Entries are sent ahead of the answers, up
//!   to a window in bytes; `next_index` runs ahead.
//! - **Snapshot**: what the follower needs was compacted away. Nothing is sent until it has the
//!   snapshot; its announcement is repeated now and then.
//!
//! Invariants: `match_index < next_index`; `window` is empty unless in Replicate; `window_bytes`
//! is its sum.

use super::types::Index;
use std::collections::VecDeque;

/// How a follower is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProgressState {
    /// One message at a time until the logs are known to agree.
    Probe {
        /// A message is under way and no answer has come.
        waiting: bool,
    },
    /// A window of messages ahead of their answers.
    Replicate,
    /// Waits for a snapshot that ends at this index.
    Snapshot {
        /// Last index of the snapshot.
        index: Index,
    },
}

/// A leader's view of one follower.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) match_index: Index,
    pub(super) next_index: Index,
    pub(super) state: ProgressState,
    /// Last index and bytes of each AppendEntries that is not answered.
    pub(super) window: VecDeque<(Index, usize)>,
    pub(super) window_bytes: usize,
    /// When an answer last moved `match_index`, the window was last empty, or a snapshot was
    /// announced.
    pub(super) moved_us: u64,
    /// When any message of this term last came from it.
    pub(super) contact_us: u64,
    /// Latest read round it has answered.
    pub(super) round: u64,
    /// Latest commit index it was told.
    pub(super) commit_told: Index,
}

impl Progress {
    pub(super) fn new(next_index: Index, now_us: u64) -> Progress {
        Progress {
            match_index: 0,
            next_index,
            state: ProgressState::Probe { waiting: false },
            window: VecDeque::new(),
            window_bytes: 0,
            moved_us: now_us,
            contact_us: now_us,
            round: 0,
            commit_told: 0,
        }
    }

    /// Whether one more AppendEntries may be sent now.
    pub(super) fn may_send(&self, window_bytes_max: usize) -> bool {
        match self.state {
            ProgressState::Probe { waiting } => !waiting,
            ProgressState::Replicate => self.window_bytes < window_bytes_max,
            ProgressState::Snapshot { .. } => false,
        }
    }

    /// An AppendEntries with entries up to `last` was sent.
    pub(super) fn sent(&mut self, last: Index, bytes: usize, now_us: u64) {
        match &mut self.state {
            ProgressState::Probe { waiting } => {
                *waiting = true;
                self.moved_us = now_us;
            }
            ProgressState::Replicate => {
                if self.window.is_empty() {
                    self.moved_us = now_us;
                }
                self.next_index = last + 1;
                self.window.push_back((last, bytes));
                self.window_bytes += bytes;
            }
            ProgressState::Snapshot { .. } => {}
        }
    }

    /// The follower has everything up to `index`; whether that is news.
    pub(super) fn matched(&mut self, index: Index, now_us: u64) -> bool {
        let news = index > self.match_index;
        self.match_index = self.match_index.max(index);
        self.next_index = self.next_index.max(self.match_index + 1);
        while self.window.front().is_some_and(|sent| sent.0 <= index) {
            if let Some((_, bytes)) = self.window.pop_front() {
                self.window_bytes -= bytes;
            }
        }
        if news {
            self.moved_us = now_us;
        }
        match self.state {
            ProgressState::Probe { .. } => {
                self.state = ProgressState::Replicate;
                self.next_index = self.match_index + 1;
            }
            ProgressState::Snapshot { index } if self.match_index >= index => {
                self.state = ProgressState::Replicate;
                self.next_index = self.match_index + 1;
            }
            ProgressState::Replicate | ProgressState::Snapshot { .. } => {}
        }
        news
    }

    /// Starts over from `next_index` with one message at a time.
    pub(super) fn probe_from(&mut self, next_index: Index) {
        self.state = ProgressState::Probe { waiting: false };
        self.next_index = next_index.max(self.match_index + 1);
        self.window.clear();
        self.window_bytes = 0;
    }

    /// Whatever is under way is taken for lost: a probe is repeated where it was, a window is
    /// sent again from what is known to match, a snapshot is announced again.
    pub(super) fn lost(&mut self) {
        match self.state {
            ProgressState::Probe { .. } | ProgressState::Snapshot { .. } => {
                self.probe_from(self.next_index);
            }
            ProgressState::Replicate => self.probe_from(self.match_index + 1),
        }
    }

    /// Waits for a snapshot.
    pub(super) fn needs_snapshot(&mut self, index: Index, now_us: u64) {
        self.probe_from(self.next_index);
        self.moved_us = now_us;
        self.state = ProgressState::Snapshot { index };
    }

    /// Something was sent and has not been answered.
    pub(super) fn is_waiting(&self) -> bool {
        match self.state {
            ProgressState::Probe { waiting } => waiting,
            ProgressState::Replicate => !self.window.is_empty(),
            ProgressState::Snapshot { .. } => true,
        }
    }

    pub(super) fn assert_invariants(&self) {
        assert!(self.match_index < self.next_index, "match_index < next_index");
        assert!(self.window.is_empty() || self.state == ProgressState::Replicate);
        assert_eq!(self.window_bytes, self.window.iter().map(|w| w.1).sum::<usize>());
        assert!(self.window.iter().is_sorted_by(|a, b| a.0 <= b.0), "the window ascends");
    }
}

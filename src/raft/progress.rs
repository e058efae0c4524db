//! What a leader knows of one follower, and how fast it may send.
//!
//! - **Probe**: it is not known up to where the logs agree, or what of the messages under way arrived.
//!   One small AppendEntries at a time; the answer moves `next_index`.
//! - **Replicate**: the logs agree up to `match_index`. Entries are sent ahead of the answers, up
//!   to a window in bytes; `next_index` runs ahead.
//! - **Snapshot**: what the follower needs was compacted away. Nothing is sent until it has the
//!   snapshot; its announcement is repeated now and then.
//!
//! A connection does not lose single messages: what was sent on it arrives, in order, or the connection
//! breaks. So no entry is ever sent again because time has passed. A leader that has heard no news for
//! long *asks*: by an AppendEntries without entries at the place where what it has sent ends, which
//! costs a hundred bytes and stands behind everything that is under way. The answer tells what
//! arrived, also on a network that does lose single messages. The same question follows a break, and
//! only what did not arrive is then sent again. Questions without news become rarer.
//!
//! An answer to a probe shows, in order, that nothing older is under way on that connection. So what is
//! under way never exceeds the window and one probe.
//!
//! Invariants: `match_index < next_index`; `window` is empty and nothing is read unless in Replicate;
//! `window_bytes` is its sum.

use super::types::Index;
use std::collections::VecDeque;

/// How often patience with a follower that gives no news doubles. Large, so that whoever is away for
/// long costs next to nothing, and bounded, so that it is not forgotten.
const PATIENCE_DOUBLINGS_MAX: u32 = 4;

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
    /// Entries from here on are being read from the log file. How many, and how large they are, is
    /// known when that is done; nothing more is sent before.
    pub(super) reading: Option<Index>,
    /// When an answer last brought news, the window was last empty, a snapshot was announced, or the
    /// follower was last asked how far it is.
    pub(super) moved_us: u64,
    /// How often it was asked, or told of a snapshot, since there was news.
    pub(super) asked: u32,
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
            reading: None,
            moved_us: now_us,
            asked: 0,
            contact_us: now_us,
            round: 0,
            commit_told: 0,
        }
    }

    /// Bytes that one more AppendEntries may have, at most `bytes_max`; none when nothing may be sent
    /// now. Small rests of the window are not filled: that would make ever smaller messages.
    pub(super) fn room(&self, bytes_max: usize, window_bytes_max: usize) -> Option<usize> {
        match self.state {
            ProgressState::Probe { waiting } => (!waiting).then_some(bytes_max),
            ProgressState::Replicate if self.reading.is_some() => None,
            ProgressState::Replicate if self.window.is_empty() => Some(bytes_max),
            ProgressState::Replicate => {
                let left = window_bytes_max.saturating_sub(self.window_bytes);
                (left > bytes_max / 4).then_some(left.min(bytes_max))
            }
            ProgressState::Snapshot { .. } => None,
        }
    }

    /// There is news of it: patience begins anew.
    pub(super) fn news(&mut self, now_us: u64) {
        self.moved_us = now_us;
        self.asked = 0;
    }

    /// Something of this term came from it. When it was silent for long, what it missed meanwhile is
    /// soon asked for, however rare the questions have become.
    pub(super) fn heard(&mut self, now_us: u64, silence_us: u64) {
        if now_us >= self.contact_us.saturating_add(silence_us) {
            self.asked = 0;
        }
        self.contact_us = now_us;
    }

    /// Whether so much time has passed without news that it is to be asked; the first time after
    /// `patience_us`.
    pub(super) fn is_late(&self, now_us: u64, patience_us: u64) -> bool {
        let patience_us = patience_us.saturating_mul(1 << self.asked.min(PATIENCE_DOUBLINGS_MAX));
        self.is_waiting() && now_us >= self.moved_us.saturating_add(patience_us)
    }

    /// It was asked how far it is, or is about to be told of the snapshot again.
    pub(super) fn asks(&mut self, now_us: u64) {
        self.moved_us = now_us;
        self.asked = self.asked.saturating_add(1);
        if let ProgressState::Probe { waiting } = &mut self.state {
            *waiting = true;
        }
    }

    /// An AppendEntries with entries up to `last` was sent.
    pub(super) fn sent(&mut self, last: Index, bytes: usize, now_us: u64) {
        match &mut self.state {
            ProgressState::Probe { waiting } => {
                *waiting = true;
                self.news(now_us);
            }
            ProgressState::Replicate => {
                if self.window.is_empty() {
                    self.news(now_us);
                }
                self.next_index = self.next_index.max(last + 1);
                self.window.push_back((last, bytes));
                self.window_bytes += bytes;
            }
            ProgressState::Snapshot { .. } => {}
        }
    }

    /// Entries from `first` on are read from the log file for it.
    pub(super) fn reads(&mut self, first: Index) {
        self.reading = Some(first);
    }

    /// What was read was sent: entries up to this index, of so many bytes; or nothing was, and it is
    /// asked after a while.
    pub(super) fn read(&mut self, first: Index, sent: Option<(Index, usize)>, now_us: u64) {
        if self.reading != Some(first) {
            return;
        }
        self.reading = None;
        match sent {
            // It has them by now, from messages of before.
            Some((last, _)) if last <= self.match_index => {}
            Some((last, bytes)) => self.sent(last, bytes, now_us),
            None => {
                self.probe_from(self.next_index);
                self.state = ProgressState::Probe { waiting: true };
                self.moved_us = now_us;
            }
        }
    }

    /// The follower has everything up to `index`; whether that is news.
    pub(super) fn matched(&mut self, index: Index, now_us: u64) -> bool {
        let (news, next_index) = (index > self.match_index, self.next_index);
        self.match_index = self.match_index.max(index);
        self.next_index = self.next_index.max(self.match_index + 1);
        while self.window.front().is_some_and(|sent| sent.0 <= index) {
            if let Some((_, bytes)) = self.window.pop_front() {
                self.window_bytes -= bytes;
            }
        }
        if news {
            self.news(now_us);
        }
        match self.state {
            // Not by an earlier answer, behind which more may be under way.
            ProgressState::Probe { .. } if index + 1 < next_index => {}
            ProgressState::Snapshot { index } if self.match_index < index => {}
            ProgressState::Replicate => {}
            ProgressState::Probe { .. } | ProgressState::Snapshot { .. } => {
                self.state = ProgressState::Replicate;
            }
        }
        news
    }

    /// Starts over from `next_index` with one message at a time.
    pub(super) fn probe_from(&mut self, next_index: Index) {
        self.state = ProgressState::Probe { waiting: false };
        self.next_index = next_index.max(self.match_index + 1);
        self.window.clear();
        self.window_bytes = 0;
        self.reading = None;
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
        let idle = self.window.is_empty() && self.reading.is_none();
        assert!(idle || self.state == ProgressState::Replicate, "a window only in Replicate");
        assert_eq!(self.window_bytes, self.window.iter().map(|w| w.1).sum::<usize>());
        assert!(self.window.iter().is_sorted_by(|a, b| a.0 <= b.0), "the window ascends");
    }
}

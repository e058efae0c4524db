//! What is known in memory of the log on disk: where entries lie, their terms, configurations.
//!
//! [`Shape`] belongs to the writer. [`Places`] is shared with the readers; both change only when
//! what they tell is durable.

use crate::env::DiskFile;
use crate::raft::{Configuration, HardState, Index, Term};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

/// Adjacent batches share a span up to this size: what a reader fetches at once. With it a log of
/// 256 MiB costs 4096 spans of 40 bytes.
pub(super) const SPAN_BYTES: u64 = 64 * 1024;

/// The log's terms, configurations and hard state.
///
/// Invariants: `runs` begin above `base`, ascend, and their terms ascend; `last >= base.0`;
/// `configurations` ascend and none is above `last`; at most one is at or below `base`.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    pub(super) hard_state: HardState,
    /// Index and term of the entry before the first one.
    pub(super) base: (Index, Term),
    pub(super) last: Index,
    /// First index of each run of entries of one term.
    pub(super) runs: VecDeque<(Index, Term)>,
    pub(super) configurations: VecDeque<(Index, Arc<Configuration>)>,
}

impl Shape {
    /// An empty log that goes on behind `base`.
    pub(super) fn reset(
        &mut self,
        base: (Index, Term),
        configuration: Option<(Index, Arc<Configuration>)>,
    ) {
        self.base = base;
        self.last = base.0;
        self.runs.clear();
        self.configurations = configuration.into_iter().collect();
    }

    /// Term of an entry that the log has, or of the one before its first.
    pub(super) fn term(&self, index: Index) -> Option<Term> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        if index < self.base.0 || index > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.0 <= index);
        after.checked_sub(1).and_then(|i| self.runs.get(i)).map(|run| run.1)
    }

    pub(super) fn last_term(&self) -> Term {
        self.runs.back().map_or(self.base.1, |run| run.1)
    }

    /// The latest configuration at or before `index`.
    pub(super) fn configuration_at(&self, index: Index) -> Option<&(Index, Arc<Configuration>)> {
        self.configurations.iter().rev().find(|c| c.0 <= index)
    }

    /// Appends one entry; the caller has checked that it follows.
    pub(super) fn append(&mut self, index: Index, term: Term) {
        debug_assert!(index == self.last + 1 && term >= self.last_term());
        if self.runs.back().is_none_or(|run| run.1 != term) {
            self.runs.push_back((index, term));
        }
        self.last = index;
    }

    /// Forgets everything behind `to`, which the log has.
    pub(super) fn truncate(&mut self, to: Index) {
        debug_assert!(to >= self.base.0 && to <= self.last);
        while self.runs.back().is_some_and(|run| run.0 > to) {
            self.runs.pop_back();
        }
        while self.configurations.back().is_some_and(|c| c.0 > to) {
            self.configurations.pop_back();
        }
        self.last = to;
    }

    /// Forgets everything up to and with `base`.
    pub(super) fn rebase(&mut self, base: (Index, Term)) {
        debug_assert!(base.0 >= self.base.0 && base.0 <= self.last);
        self.base = base;
        while self.runs.get(1).is_some_and(|run| run.0 <= base.0 + 1) {
            self.runs.pop_front();
        }
        if self.last == base.0 {
            self.runs.clear();
        } else if let Some(run) = self.runs.front_mut() {
            run.0 = run.0.max(base.0 + 1);
        }
        while self.configurations.get(1).is_some_and(|c| c.0 <= base.0) {
            self.configurations.pop_front();
        }
    }
}

/// Whether a hard state may follow another: terms grow, and a vote stands for its term.
pub(super) fn hard_state_follows(old: HardState, new: HardState) -> bool {
    new.term > old.term || (new.term == old.term && (old.vote.is_none() || old.vote == new.vote))
}

/// A segment of the live log.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Index and term before its first entry.
    pub(super) prev: (Index, Term),
    /// Bytes in use.
    pub(super) used: u64,
}

/// Entries `first..=last` in adjacent batches of one segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: Index,
    pub(super) last: Index,
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Where the durable entries lie.
///
/// Invariants: spans are contiguous, the first begins at `first`, the last ends at `last`; every
/// span's segment is in `segments`; segment numbers are contiguous.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) identity: u64,
    pub(super) first: Index,
    pub(super) last: Index,
    pub(super) segments: VecDeque<Segment>,
    spans: VecDeque<Span>,
    /// Whether the last span may grow: not after a truncation, or it would hold void entries.
    open: bool,
    /// Grows when entries become void, so that a reader in their midst notices.
    pub(super) truncations: u64,
}

impl Places {
    pub(super) fn new(identity: u64) -> Places {
        Places {
            identity,
            first: 1,
            last: 0,
            segments: VecDeque::new(),
            spans: VecDeque::new(),
            open: false,
            truncations: 0,
        }
    }

    /// Takes in a durable batch; its entries replace what is at and behind `entries.0`.
    pub(super) fn add_batch(
        &mut self,
        segment: u64,
        offset: u64,
        len: u64,
        entries: Option<(Index, Index)>,
    ) {
        if let Some(s) = self.segments.back_mut() {
            s.used = offset + len;
        }
        if let Some((first, _)) = entries
            && first <= self.last
        {
            self.truncate(first - 1);
        }
        let grown = match self.spans.back_mut() {
            Some(span)
                if self.open
                    && span.segment == segment
                    && span.offset + span.len == offset
                    && span.len + len <= SPAN_BYTES =>
            {
                span.len += len;
                if let Some((_, last)) = entries {
                    span.last = last;
                }
                true
            }
            _ => false,
        };
        if let Some((first, last)) = entries {
            debug_assert_eq!(first, self.last + 1);
            if !grown {
                self.spans.push_back(Span { first, last, segment, offset, len });
                self.open = true;
            }
            self.last = last;
        }
    }

    /// Forgets the entries behind `to`.
    pub(super) fn truncate(&mut self, to: Index) {
        while self.spans.back().is_some_and(|s| s.first > to) {
            self.spans.pop_back();
        }
        if let Some(span) = self.spans.back_mut() {
            span.last = span.last.min(to);
        }
        self.open = false;
        self.last = to;
        self.truncations += 1;
    }

    /// Forgets all segments in front of `number` and gives them back.
    pub(super) fn drop_before(&mut self, number: u64) -> Vec<Segment> {
        let mut freed = Vec::new();
        while self.segments.front().is_some_and(|s| s.number < number) {
            freed.extend(self.segments.pop_front());
        }
        while self.spans.front().is_some_and(|s| s.segment < number) {
            self.spans.pop_front();
        }
        if let Some(segment) = self.segments.front() {
            self.first = segment.prev.0 + 1;
        }
        freed
    }

    /// Forgets all entries: the log goes on behind `base`.
    pub(super) fn reset(&mut self, base: Index) {
        self.spans.clear();
        self.open = false;
        self.first = base + 1;
        self.last = base;
        self.truncations += 1;
    }

    /// The span that holds `index`, and its segment.
    pub(super) fn find(&self, index: Index) -> Option<(Span, &Segment)> {
        let span = *self.spans.get(self.spans.partition_point(|s| s.last < index))?;
        let front = self.segments.front()?.number;
        let at = usize::try_from(span.segment.checked_sub(front)?).ok()?;
        (span.first <= index).then_some((span, self.segments.get(at)?))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.used).sum()
    }

    #[cfg(test)]
    pub(super) fn spans(&self) -> usize {
        self.spans.len()
    }
}

//! The words of the protocol: terms, indexes, entries, configurations and messages.
//!
//! Names are those of the Raft paper (Ongaro & Ousterhout, extended version) and of Ongaro's
//! thesis. Every message states what must be durable at its sender before it may leave; the core
//! holds messages back until that is so (see [`super::Ready`]).

use super::configuration::Configuration;
use std::sync::Arc;

/// A member's small id, unique within a cluster for ever. Zero is never a member.
pub type NodeId = u64;

/// A term: a logical clock that only grows (paper section 5.1). Zero is before any election.
pub type Term = u64;

/// A position in the log, from 1. Zero is the empty log's end.
pub type Index = u64;

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the log, from 1.
    pub index: Index,
    /// Term of the leader that created the entry.
    pub term: Term,
    /// What the entry says.
    pub payload: Payload,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The entry that opens a leader's term, so that it may commit what came before (thesis 6.4).
    Noop,
    /// A command of the state machine; opaque here.
    Command(Arc<[u8]>),
    /// A membership; active from the moment it is in the log (paper section 6).
    Configuration(Arc<Configuration>),
}

impl Entry {
    /// Bytes this entry counts for in windows, caches and batches: payload plus a fixed overhead.
    pub fn weight(&self) -> usize {
        ENTRY_OVERHEAD_BYTES
            + match &self.payload {
                Payload::Noop => 0,
                Payload::Command(bytes) => bytes.len(),
                Payload::Configuration(c) => c.members.iter().map(|m| 32 + m.address.len()).sum(),
            }
    }
}

/// Bytes an entry counts for beside its payload: its header in a frame and in memory.
pub const ENTRY_OVERHEAD_BYTES: usize = 48;

/// Bytes an AppendEntries counts for beside its entries: its frame, its own numbers.
pub const MESSAGE_OVERHEAD_BYTES: usize = 96;

/// Bytes that an AppendEntries with these entries counts for.
pub(super) fn append_bytes(entries: &[Entry]) -> usize {
    MESSAGE_OVERHEAD_BYTES + entries.iter().map(Entry::weight).sum::<usize>()
}

/// What a node must never forget: the latest term it has seen and its vote in it (Figure 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// Latest term seen.
    pub term: Term,
    /// Candidate voted for in `term`, if any.
    pub vote: Option<NodeId>,
}

/// What the log writer must make durable, in the order of `seq`.
///
/// An entry at an index the log already holds replaces it and everything behind it (paper 5.3);
/// there is no other truncation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Number of this request within one life of the node, from 1, without gaps.
    pub seq: u64,
    /// New hard state, when it changed.
    pub hard_state: Option<HardState>,
    /// The log in front is void: the store holds a snapshot, and the entries below go on behind it.
    pub reset: Option<SnapshotMark>,
    /// Entries to append; contiguous.
    pub entries: Vec<Entry>,
}

/// Where a snapshot ends: it stands for the whole log up to there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMark {
    /// Last index it covers.
    pub index: Index,
    /// Term of that entry.
    pub term: Term,
    /// The configuration in force there.
    pub configuration: Arc<Configuration>,
}

/// A message between two members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Sender.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// Sender's term; for [`Body::RequestPreVote`] and a granted [`Body::PreVoteResponse`] the
    /// term the sender would campaign in.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// No term or index of an honest node comes near: a million a second reach it after a
/// hundred thousand years. Below it, sums of a number and a length do not overflow.
pub(super) const NUMBER_MAX: u64 = 1 << 62;

impl Message {
    /// Whether the numbers are such as a member can have; with absurd ones a broken peer could make
    /// counters overflow.
    pub(super) fn is_plausible(&self) -> bool {
        let numbers = match &self.body {
            Body::RequestPreVote { last_index, last_term }
            | Body::RequestVote { last_index, last_term, .. }
            | Body::InstallSnapshot { last_index, last_term, .. } => [*last_index, *last_term, 0],
            Body::AppendEntries { prev_index, prev_term, commit, .. } => {
                [*prev_index, *prev_term, *commit]
            }
            Body::AppendResponse { result: AppendResult::Matched { index }, .. } => [*index, 0, 0],
            Body::AppendResponse {
                result: AppendResult::Conflict { prev_index, hint_index, hint_term },
                ..
            } => [*prev_index, *hint_index, *hint_term],
            Body::Heartbeat { commit, commit_term, .. } => [*commit, *commit_term, 0],
            Body::SnapshotResponse { last_index, .. } => [*last_index, 0, 0],
            Body::ReadIndexResponse { index, .. } => [index.unwrap_or(0), 0, 0],
            // Rounds and the numbers of reads are compared and never counted on.
            Body::PreVoteResponse { .. }
            | Body::VoteResponse { .. }
            | Body::HeartbeatResponse { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. } => [0; 3],
        };
        self.from != 0 && self.term < NUMBER_MAX && numbers.iter().all(|&n| n < NUMBER_MAX)
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Would you vote for me? Changes nothing at either end (thesis 9.6).
    RequestPreVote {
        /// Index of the candidate's last entry.
        last_index: Index,
        /// Term of that entry.
        last_term: Term,
    },
    /// Answer to [`Body::RequestPreVote`].
    PreVoteResponse {
        /// Whether the sender would vote so.
        granted: bool,
    },
    /// Figure 2, RequestVote. The candidate's own vote is durable before this leaves.
    RequestVote {
        /// Index of the candidate's last entry.
        last_index: Index,
        /// Term of that entry.
        last_term: Term,
        /// The leader itself asked for this election: leader stickiness does not apply.
        transfer: bool,
    },
    /// Answer to [`Body::RequestVote`]; a granted vote is durable before this leaves.
    VoteResponse {
        /// Whether the vote was given.
        granted: bool,
    },
    /// Figure 2, AppendEntries: with entries, or to find out what the receiver has.
    AppendEntries {
        /// Index of the entry before the first one here.
        prev_index: Index,
        /// Term of that entry.
        prev_term: Term,
        /// Leader's commit index.
        commit: Index,
        /// Latest read round; the answer carries it back (see [`Body::Heartbeat`]).
        round: u64,
        /// New entries, contiguous, first at `prev_index + 1`.
        entries: Vec<Entry>,
    },
    /// Answer to [`Body::AppendEntries`]. With [`AppendResult::Matched`] everything up to that
    /// index is durable at the sender before this leaves.
    AppendResponse {
        /// Whether the follower's log continues the leader's.
        result: AppendResult,
        /// The request's round.
        round: u64,
    },
    /// "I lead": keeps followers quiet and confirms read rounds. Never waits for a disk.
    Heartbeat {
        /// Commit index as far as the receiver is known to match.
        commit: Index,
        /// Term of the entry there. A receiver that does not hold that very entry learns nothing:
        /// what the sender remembers of it may be older than its disk.
        commit_term: Term,
        /// Latest read round (thesis 6.4).
        round: u64,
    },
    /// Answer to [`Body::Heartbeat`].
    HeartbeatResponse {
        /// The request's round.
        round: u64,
    },
    /// Announces that the sender's log no longer holds what the receiver needs.
    InstallSnapshot {
        /// Last index the snapshot covers.
        last_index: Index,
        /// Term of that index.
        last_term: Term,
        /// Membership at that index.
        configuration: Arc<Configuration>,
    },
    /// The receiver of a snapshot has it durably, or has not.
    SnapshotResponse {
        /// Last index of the snapshot.
        last_index: Index,
        /// Whether it is installed durably.
        installed: bool,
    },
    /// Campaign at once: leadership is handed to you (thesis 3.10).
    TimeoutNow,
    /// A follower asks the leader for a read index (thesis 6.4).
    ReadIndex {
        /// Asker's number for the request.
        id: u64,
    },
    /// Answer to [`Body::ReadIndex`].
    ReadIndexResponse {
        /// The request's number.
        id: u64,
        /// Where to read, or none when the sender does not lead (any more).
        index: Option<Index>,
    },
}

/// What a follower says to AppendEntries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendResult {
    /// The follower's log equals the leader's up to here, durably.
    Matched {
        /// Last index of the request's range.
        index: Index,
    },
    /// The entry before the new ones is missing or has another term.
    Conflict {
        /// `prev_index` of the request that is refused.
        prev_index: Index,
        /// The greatest index at or before `prev_index` whose term is not above `prev_term`:
        /// nothing behind it can match, so that one answer skips a whole term (paper 5.3).
        hint_index: Index,
        /// Term of the follower's entry at `hint_index`.
        hint_term: Term,
    },
}

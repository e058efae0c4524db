//! The consensus core: Raft as in the extended paper (Ongaro & Ousterhout 2014, "the paper") and
//! Ongaro's dissertation ("the thesis"), sans-IO.
//!
//! Raft keeps one log the same on several nodes. The nodes elect a leader; the leader alone appends
//! to the log; an entry that a majority holds durably is *committed* and is never lost or replaced.
//! Every node applies the committed entries in order to its state machine, so all state machines go
//! through the same states.
//!
//! [`Raft`] is a plain struct. Events go in through methods ([`Raft::step`] for messages,
//! [`Raft::tick`] for time, [`Raft::propose`], [`Raft::read`], [`Raft::persisted`],
//! [`Raft::applied`], ...); effects come out of [`Raft::ready`]. It has no clock (time is an
//! argument), no disk, no network and no thread. Its random numbers come from the seed it is given.
//! So equal events give equal effects, and a simulator can run it.
//!
//! # Election
//!
//! Time is divided into *terms*, each with at most one leader. A node stores its term and the
//! candidate it voted for in that term ([`HardState`]); both only move forward. A node is a
//! follower until it has heard no leader for a randomised *election timeout*. Then
//! (`elections.rs`):
//!
//! 1. It asks the others whether they would vote for it in the next term (*PreVote*, thesis 9.6).
//!    Nobody's term changes yet, so a node that was cut off does not disturb a leader that works.
//! 2. When a majority would, it increments its term, votes for itself and sends RequestVote.
//! 3. A voter gives one vote a term, and only to a candidate whose log is at least as up to date as
//!    its own: a later last term, or the same last term and no shorter a log (paper 5.4.1). So
//!    every elected leader has every committed entry.
//! 4. A majority of votes makes the candidate leader. It appends an entry without content, a
//!    *no-op*, in its term.
//!
//! A message of a later term makes its receiver a follower in that term ([`Raft::step`];
//! `belief.rs` says which terms are not believed). A voter that heard a leader within the smallest
//! election timeout disregards RequestVote (*stickiness*, thesis 4.2.3). A leader that has not
//! heard a majority for an election timeout steps down (*CheckQuorum*, thesis 6.2). A leader hands
//! over on request with TimeoutNow, once the other has its whole log (thesis 3.10).
//!
//! # Replication
//!
//! The leader sends AppendEntries with new entries, and with the index and term of the entry in
//! front of them. A follower whose log does not hold that entry refuses and gives a hint, from
//! which the leader finds the last entry that both logs share, one term a round trip. A follower
//! that holds it appends, replacing entries that contradict what arrives. So if two logs hold an
//! entry with the same index and term, they are equal up to there (*Log Matching*, paper 5.3).
//! `progress.rs` says how fast the leader may send to one follower.
//!
//! The leader counts how many voters hold an entry durably, itself included. An entry *of its own
//! term* that a majority holds is committed, and with it everything in front of it (paper 5.4.2 and
//! figure 8 show why an earlier term's entry is not committed by counting). Followers learn the
//! commit index from AppendEntries and heartbeats; a heartbeat also carries the term of the entry
//! there, and a follower moves only if its own log holds that entry.
//!
//! # Reads
//!
//! A linearizable read needs no log entry (*ReadIndex*, thesis 6.4; `reads.rs`). The leader notes
//! its commit index, then shows by one round of heartbeats that a majority still takes it for the
//! leader, and serves the read once its state machine has applied up to the noted index. A new
//! leader serves no read before its no-op is committed, because only then does its commit index
//! cover everything that earlier leaders acknowledged. All reads that wait share one round. A
//! follower asks the leader for such an index and serves the read itself.
//!
//! # Membership
//!
//! Who votes is a [`Configuration`] in the log, in force from the moment it is appended, whether or
//! not it is committed; a truncation takes it back. Voters change by *joint consensus* (paper
//! section 6; `membership.rs`): first a configuration in which every decision needs a majority of
//! the old voters and one of the new voters, then, when that is committed, the new one alone.
//! Learners receive the log and have no vote.
//!
//! # Snapshots
//!
//! The log does not grow for ever: its front is dropped once the state machine holds it durably. A
//! follower that needs what was dropped is offered a snapshot (`snapshot.rs`). It fetches the state
//! machine's files from another node, outside the core, and the log begins anew behind them.
//!
//! # The contract
//!
//! Log writes are asynchronous, as in etcd-io/raft's `AsyncStorageWrites`: the core goes on while
//! they are under way. What depends on a write stays inside the core until [`Raft::persisted`]
//! reports that write. So everything in a [`Ready`] may be acted on at once and in any order;
//! [`Ready`] says of each field what is durable when it comes out:
//!
//! - a vote, the candidate's own included, counts or leaves when it is durable;
//! - an AppendEntries success leaves when everything it acknowledges is durable;
//! - no message shows a term that its sender could forget (a pre-vote speaks of a term that is
//!   nobody's yet, and promises nothing);
//! - a leader sends entries while its own disk still writes them, and counts itself only for what
//!   is durable;
//! - entries go to the applier when they are committed and durable here.
//!
//! **ABA.** Requests to the log writer are numbered, and a completion names the number. Say entry 7
//! of term 2 is being written when a new leader replaces it by entry 7 of term 3. The completion of
//! the first write then says nothing of what the log holds at 7. So a completion counts only for
//! indexes that were not truncated since its request, and a held answer whose term is over is
//! dropped.
//!
//! # Left out
//!
//! - Leases: no safety property depends on a clock.
//! - Whether a change of members is wise (who can be reached, who has caught up):
//!   `node/membership.rs` decides that.
//! - Which peer is who it says: the handshake proves it (`node/peers`).
//! - The snapshot's bytes, and their transfer: `node/snapshot_transfer.rs`.
//!
//! docs/architecture.md lists each difference from the paper, with its reason.

mod belief;
pub(crate) mod canonical;
pub mod codec;
mod configuration;
mod core;
mod elections;
mod follower;
pub mod invariants;
mod leader;
mod log;
mod membership;
mod progress;
mod reads;
mod snapshot;
mod types;

#[cfg(test)]
mod tests;

pub use self::belief::is_near_the_last_term;
pub use self::configuration::{Configuration, Member};
pub use self::core::{Raft, Restored, RoleName};
pub use self::log::RestoredLog;
pub use self::progress::ProgressState;
pub use self::snapshot::Offer;
pub use self::types::*;

use std::fmt;

/// What a core is made with. All bounds are per node.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node.
    pub id: NodeId,
    /// Smallest time without a leader before an election, in microseconds; the randomised range
    /// is one to two times this.
    pub election_timeout_us: u64,
    /// Time between heartbeats, in microseconds; well below the election timeout.
    pub heartbeat_us: u64,
    /// Largest AppendEntries, by [`Entry::weight`].
    pub append_bytes_max: usize,
    /// Largest AppendEntries while it is not known where the logs part.
    pub probe_bytes_max: usize,
    /// Unanswered AppendEntries per follower, in bytes: no more is sent than this, or one message.
    pub inflight_bytes_max: usize,
    /// Entries kept in memory behind what must be.
    pub cache_bytes_max: usize,
    /// Entries that the applier may owe.
    pub applying_bytes_max: usize,
    /// Entries of one piece that is read from the log file.
    pub replay_entries_max: u64,
    /// ReadIndex requests of followers that may wait.
    pub remote_reads_max: usize,
    /// Seed of the randomised timeouts and of the numbers of ReadIndex requests. It must differ
    /// from one life of a node to the next: else an answer to a request of a former life could
    /// pass for one to a request of this life, and a read be served too early.
    pub seed: u64,
}

impl Options {
    /// The defaults, for one node.
    pub fn new(id: NodeId, seed: u64) -> Options {
        Options {
            id,
            election_timeout_us: 500_000,
            heartbeat_us: 100_000,
            append_bytes_max: 1 << 20,
            probe_bytes_max: 64 << 10,
            inflight_bytes_max: 4 << 20,
            cache_bytes_max: 8 << 20,
            applying_bytes_max: 4 << 20,
            replay_entries_max: 2048,
            remote_reads_max: 4096,
            seed,
        }
    }
}

/// What there is to do.
///
/// Each field may be acted on at once, before, after or beside the others: what must be durable
/// first is durable when the field comes out. (etcd-io/raft's `Ready` has to be persisted before
/// its messages are sent; this one holds such messages back.)
#[derive(Debug, Default)]
pub struct Ready {
    /// For the log writer, in the order of [`Persist::seq`]. Nothing of it is durable yet. When all
    /// of it is, the writer says so with [`Raft::persisted`]; only then do the messages, commits
    /// and reads that rest on it come out.
    pub persist: Option<Persist>,
    /// For the peers. The sender's term, and every vote and acknowledgement in them, are durable
    /// here. The entries that a leader sends need not be: it does not count itself for them yet.
    pub messages: Vec<Message>,
    /// For the peers, too: AppendEntries whose entries have left memory and must be read from the
    /// log file first. They are durable here. [`Raft::entries_read`] says what became of each.
    pub from_log: Vec<LogRead>,
    /// For the applier: committed, and durable here, so that a crash leaves no store ahead of its
    /// own log. The applier answers with [`Raft::applied`].
    pub committed: Option<Committed>,
    /// Answers to [`Raft::read`]. An index in one is committed, and whoever leads is known to have
    /// led after the read was registered: the read may be served once the store has applied up to
    /// there.
    pub reads: Vec<ReadAnswer>,
    /// A snapshot to fetch. Nothing of it is durable here. When the store holds one durably,
    /// [`Raft::install`] goes on from there. The offer may be repeated.
    pub offer: Option<Offer>,
}

impl Ready {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.persist.is_none()
            && self.messages.is_empty()
            && self.from_log.is_empty()
            && self.committed.is_none()
            && self.reads.is_empty()
            && self.offer.is_none()
    }
}

/// An AppendEntries without its entries: they are in the log file.
///
/// The log may be truncated before they are read. The last one must then have `last_term`, or the
/// message must not be sent; when it does, all before it are those that were meant (Log Matching).
/// One message is sent, with as many entries from `first` on as fit one, and then, or when nothing
/// was sent, [`Raft::entries_read`] is told: only that says how many bytes are under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRead {
    /// The message, with no entries.
    pub message: Message,
    /// First index to read.
    pub first: Index,
    /// Last index to read, if so many fit.
    pub last: Index,
    /// Term that the log had at `last`.
    pub last_term: Term,
}

/// What became of a [`LogRead`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntriesRead {
    /// To whom the message goes.
    pub to: NodeId,
    /// Its term.
    pub term: Term,
    /// First index that was to be read.
    pub first: Index,
    /// Last index that is sent and what the message counts for in bytes; none when none is sent.
    pub sent: Option<(Index, usize)>,
}

impl EntriesRead {
    /// The message that was made of it is handed to the connection; or there is none.
    pub fn of(read: &LogRead, message: Option<&Message>) -> EntriesRead {
        let sent = message.and_then(|message| match &message.body {
            Body::AppendEntries { entries, .. } => {
                entries.last().map(|last| (last.index, types::append_bytes(entries)))
            }
            _ => None,
        });
        let Message { to, term, .. } = read.message;
        EntriesRead { to, term, first: read.first, sent }
    }
}

/// Committed entries, for the applier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// First index.
    pub first: Index,
    /// Last index.
    pub last: Index,
    /// The entries, or none when they are to be read from the log file.
    pub entries: Vec<Entry>,
}

/// The asker's number for a read.
pub type ReadId = u64;

/// Where a read may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAnswer {
    /// The number given to [`Raft::read`].
    pub id: ReadId,
    /// Serve once this index is applied; none when no leader could be asked.
    pub index: Option<Index>,
}

/// Why nothing was proposed. Nothing is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposed {
    /// Another node leads, or none is known to.
    NotLeader {
        /// The leader, if one is known.
        leader: Option<NodeId>,
    },
    /// Leadership is being handed over.
    Transferring,
    /// A change of the configuration is under way.
    ChangeOpen,
    /// Nothing of the leader's term is committed yet.
    TooEarly,
    /// There is nobody to hand leadership to.
    NoSuccessor,
    /// Leadership cannot go to this id: it is of no voter.
    NoVoter {
        /// The id.
        id: NodeId,
    },
    /// Leadership cannot go to this voter: it was not heard for an election timeout.
    Unreachable {
        /// The voter.
        id: NodeId,
    },
}

impl fmt::Display for NotProposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotProposed::NotLeader { leader: Some(id) } => write!(f, "node {id} leads"),
            NotProposed::NotLeader { leader: None } => f.write_str("no leader is known"),
            NotProposed::Transferring => f.write_str("leadership is being handed over"),
            NotProposed::ChangeOpen => {
                f.write_str("another change of the members is under way; try again when it is done")
            }
            NotProposed::TooEarly => {
                f.write_str("the leader has just been elected; try again in a moment")
            }
            NotProposed::NoSuccessor => f.write_str("no other voter is reachable that could lead"),
            NotProposed::NoVoter { id } => write!(f, "node {id} is no voter of this cluster"),
            NotProposed::Unreachable { id } => {
                write!(f, "node {id} is not reachable from the leader: it cannot take over")
            }
        }
    }
}

impl std::error::Error for NotProposed {}

/// What a leader knows of a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The follower.
    pub id: NodeId,
    /// Its log is known to match up to here.
    pub match_index: Index,
    /// How it is sent to.
    pub state: ProgressState,
    /// It was heard within an election timeout.
    pub reachable: bool,
    /// When it was last heard in this term, on the clock of the core's inputs, microseconds; when
    /// it became a follower if it never was.
    pub heard_us: u64,
}

/// SplitMix64 (Steele, Lea, Flood 2014): a small generator for randomised timeouts.
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 when that is 0.
    fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }
}

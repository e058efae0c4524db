//! The consensus core: Raft as in the extended paper (Ongaro & Ousterhout 2014) and Ongaro's
//! thesis, sans-IO.
//!
//! [`Raft`] is a plain struct. Events go in through methods ([`Raft::step`], [`Raft::tick`],
//! [`Raft::propose`], [`Raft::read`], [`Raft::persisted`], [`Raft::applied`], ...), effects come
//! out of [`Raft::ready`]. It has no clock (time is an argument), no disk, no network, no thread,
//! and its random numbers come from the seed it was given, so that equal events give equal effects.
//!
//! # The contract
//!
//! Log writes are asynchronous: the core goes on while they are under way. What a [`Ready`] holds
//! may be acted on in any order, at once, because everything that depends on a write stays inside
//! the core until [`Raft::persisted`] reports it:
//!
//! - a vote, the candidate's own included, counts or leaves when it is durable;
//! - an AppendEntries success leaves when everything it speaks of is durable;
//! - no message shows a term that its sender could forget (pre-votes speak of terms that are
//!   nobody's yet and promise nothing);
//! - a leader sends entries while its own disk still writes them, and counts itself only for what
//!   is durable;
//! - entries are handed to the applier when they are committed and durable here.
//!
//! Requests to the log writer are numbered. A completion names the number; it counts only for the
//! indexes that were not truncated since the request, because the writer is yet to write over
//! those. Held answers whose term is over are dropped.
//!
//! # What is here and what is not
//!
//! PreVote, CheckQuorum and leader stickiness; randomised timeouts, shortened when the leader's
//! connection is seen to break; conflict hints that skip a term per round trip; a window in bytes
//! per follower; batched ReadIndex on leader and followers; leadership transfer. Majorities are
//! asked of each half of a joint configuration, configurations roll back with the log; voters
//! change by joint consensus, learners without (`membership.rs`). Snapshots are
//! offered, and the log begins anew behind one; their data never come here (`snapshot.rs`).
//! There is no lease: no safety property depends on a clock.
//!
//! Differences from the paper are listed in docs/architecture.md.

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

/// What there is to do. Everything in it may be acted on at once.
#[derive(Debug, Default)]
pub struct Ready {
    /// For the log writer, which answers with [`Raft::persisted`].
    pub persist: Option<Persist>,
    /// For the peers. Whatever they promise is durable.
    pub messages: Vec<Message>,
    /// AppendEntries whose entries must be read from the log file first;
    /// [`Raft::entries_read`] says what became of each.
    pub from_log: Vec<LogRead>,
    /// For the applier, which answers with [`Raft::applied`].
    pub committed: Option<Committed>,
    /// Answers to [`Raft::read`].
    pub reads: Vec<ReadAnswer>,
    /// A snapshot to fetch; [`Raft::install`] goes on from there. It may be repeated.
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
/// One message is sent, with as many entries from `first` on as fit one, and then, or when nothing was
/// sent, [`Raft::entries_read`] is told: only that says how many bytes are under way.
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
    /// When it was last heard in this term, on the clock of the core's inputs, microseconds; when it
    /// became a follower if it never was.
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

//! The calls that are not answered yet, and which writes may be under way together.
//!
//! Writes in flight together have no order on the wire, so two that name the same key are never in
//! flight together: they take effect in the order given. What is in flight is bounded so that all
//! answers fit the buffers between client and node: neither can block the other.

use crate::kv::limits::write_bytes;
use crate::kv::{Op, SessionStamp, Write};
use crate::wire::client::{Call, Change, Request};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Most writes from the oldest unanswered to the newest: enough that the cluster always has a batch
/// to work on while another is on its way.
const WINDOW: u64 = 256;

/// As [`WINDOW`], for counting what is open.
pub(super) const OPEN_MAX: usize = WINDOW as usize;

/// Most bytes of writes in flight, unless one alone is larger: a node's share for one client.
const WINDOW_BYTES: usize = 1 << 20;

/// Most bytes of remembered results that a session is asked to hold at a time.
const RESULTS_BYTES: u64 = 48 << 10;

/// What a session holds before it forgets by itself: docs/formats.md, "Session record".
const SESSION_RESULTS: u64 = 1024;
/// The same in bytes.
const SESSION_BYTES: u64 = 64 << 10;

/// What one remembered result takes at most: what the session adds, kind, revision and count, and
/// for each operation a kind and a number.
const RESULT_FIXED_BYTES: u64 = 48 + 1 + 10 + 5;
const RESULT_OP_BYTES: u64 = 1 + 10;

const _: () = assert!(WINDOW <= SESSION_RESULTS && RESULTS_BYTES < SESSION_BYTES);

/// Whether a call may be sent again when its outcome is unknown (docs/protocol.md, "Failures").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Doing it twice does no harm, and its error is never `Unknown`.
    Harmless,
    /// Its stamp makes the cluster do it once.
    Stamped,
    /// Never.
    Never,
    /// Only on the connection that is there it makes sense, and once.
    Here,
    /// It is done as soon as there is a connection.
    Reach,
}

impl Repeat {
    /// What may be done with a call; a write with `sessions` gets a stamp.
    pub(super) fn of(call: &Call, sessions: bool) -> Repeat {
        match call {
            Call::Write(write) if write.stamp.is_some() || sessions => Repeat::Stamped,
            Call::Write(_)
            | Call::Transfer { .. }
            | Call::Change(
                Change::Promote { .. } | Change::Remove { .. } | Change::Replace { .. },
            ) => Repeat::Never,
            Call::Piece { .. } => Repeat::Here,
            Call::OpenSession
            | Call::CloseSession { .. }
            | Call::Query { .. }
            | Call::Ping
            | Call::Status
            | Call::Members
            | Call::Compact
            | Call::Compaction
            | Call::Backup
            | Call::Change(Change::Join { .. }) => Repeat::Harmless,
        }
    }

    /// Whether an answer that does not come costs time only, so that it may be asked for elsewhere.
    pub(super) fn is_safe(self) -> bool {
        matches!(self, Repeat::Harmless | Repeat::Stamped)
    }
}

/// A call that was taken and is not in flight.
#[derive(Debug)]
pub(super) struct Queued {
    /// The caller's number for it.
    pub(super) number: u64,
    pub(super) call: Call,
    pub(super) repeat: Repeat,
}

impl Queued {
    /// Whether this client is to stamp it.
    pub(super) fn is_ours(&self) -> bool {
        matches!(&self.call, Call::Write(write) if write.stamp.is_none())
            && self.repeat == Repeat::Stamped
    }
}

/// A call in flight. It is *in doubt* once a copy may have taken effect and was not answered with
/// an outcome; a refusal of a later copy does not end the doubt of an earlier one.
#[derive(Debug)]
pub(super) struct Pending {
    /// The caller's number for it.
    pub(super) number: u64,
    pub(super) request: Request,
    bytes: usize,
    /// Remembered result bytes of all writes before it, since the first one.
    results_before: u64,
    keys: Vec<u64>,
    /// The stamp is this client's, to be renewed when it is surely safe.
    pub(super) ours: bool,
    pub(super) repeat: Repeat,
    /// An earlier copy may have taken effect.
    pub(super) doubt: bool,
    /// The id of the copy that is open on the connection.
    pub(super) open: Option<u64>,
    /// When that one was sent.
    pub(super) sent_us: u64,
}

impl Pending {
    pub(super) fn stamp(&self) -> Option<SessionStamp> {
        if let Call::Write(write) = &self.request.call { write.stamp } else { None }
    }

    /// Whether an unknown outcome is an unknown outcome of the call.
    pub(super) fn may_be_in_doubt(&self) -> bool {
        matches!(self.repeat, Repeat::Stamped | Repeat::Never)
    }
}

/// All calls that were taken and are not answered.
///
/// Invariants: `keys` holds the keys of `pending`, which share none; all stamps of ours in
/// `pending` are of one session and grow with the ticket; `queue` is sorted by number.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// In flight, by the order in which they were begun.
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Not in flight: the next one, before it those whose stamp is of no more use and of which no
    /// copy took effect.
    pub(super) queue: VecDeque<Queued>,
    keys: BTreeSet<u64>,
    bytes: usize,
    results: u64,
    next_ticket: u64,
}

impl Calls {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.queue.is_empty()
    }

    /// Whether one more may be taken.
    pub(super) fn has_room(&self) -> bool {
        let Some((lowest, first)) = self.pending.first_key_value() else { return true };
        self.next_ticket - lowest < WINDOW
            && self.bytes < WINDOW_BYTES
            && self.results - first.results_before < RESULTS_BYTES
    }

    /// Whether a call may be in flight together with those that are.
    pub(super) fn fits(&self, call: &Call) -> bool {
        let Some((_, first)) = self.pending.first_key_value() else {
            return true;
        };
        let Call::Write(write) = call else { return true };
        self.bytes + write_bytes(write) <= WINDOW_BYTES
            && self.results - first.results_before + results_bytes(write) <= RESULTS_BYTES
            && key_hashes(write).iter().all(|key| !self.keys.contains(key))
    }

    /// Bytes of writes that are open on the connection.
    pub(super) fn open_bytes(&self) -> u64 {
        self.pending.values().filter(|p| p.open.is_some()).map(|p| p.bytes as u64).sum()
    }

    /// The lowest sequence of ours in flight.
    pub(super) fn lowest_sequence(&self) -> Option<u64> {
        let ours = self.pending.values().filter(|p| p.ours).find_map(Pending::stamp);
        ours.map(|stamp| stamp.sequence)
    }

    /// Begins a call.
    pub(super) fn take(&mut self, queued: Queued, ours: bool) {
        let Queued { number, call, repeat } = queued;
        let (mut bytes, mut keys) = (0, Vec::new());
        let results_before = self.results;
        if let Call::Write(write) = &call {
            (bytes, keys) = (write_bytes(write), key_hashes(write));
            self.results += results_bytes(write);
        }
        self.bytes += bytes;
        self.keys.extend(&keys);
        let request = Request { id: 0, deadline_ms: 0, call };
        let (doubt, open, sent_us) = (false, None, 0);
        let pending = Pending {
            number,
            request,
            bytes,
            results_before,
            keys,
            ours,
            repeat,
            doubt,
            open,
            sent_us,
        };
        self.pending.insert(self.next_ticket, pending);
        self.next_ticket += 1;
    }

    pub(super) fn remove(&mut self, ticket: u64) -> Option<Pending> {
        let pending = self.pending.remove(&ticket)?;
        self.bytes -= pending.bytes;
        for key in &pending.keys {
            self.keys.remove(key);
        }
        Some(pending)
    }

    /// Its stamp is of no use and no copy took effect: it gets a new one, before what comes later.
    pub(super) fn renew(&mut self, ticket: u64) {
        let Some(Pending { number, request, repeat, .. }) = self.remove(ticket) else { return };
        let mut call = request.call;
        if let Call::Write(write) = &mut call {
            write.stamp = None;
        }
        let at = self.queue.partition_point(|queued| queued.number < number);
        self.queue.insert(at, Queued { number, call, repeat });
    }
}

/// What the session will remember for a write, at most. One that reads counts as a whole window:
/// its answer may be large, and then nothing else should be in flight.
fn results_bytes(write: &Write) -> u64 {
    if write.ops.iter().any(|op| matches!(op, Op::Get { .. })) {
        return RESULTS_BYTES;
    }
    RESULT_FIXED_BYTES
        + write
            .ops
            .iter()
            .map(|op| if matches!(op, Op::Increment { .. }) { RESULT_OP_BYTES } else { 1 })
            .sum::<u64>()
}

/// Stand-ins for the keys of a write: two keys with one stand-in only wait for each other.
fn key_hashes(write: &Write) -> Vec<u64> {
    let hash = |key: &[u8]| {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    };
    let conditions = write.conditions.iter().map(|c| hash(&c.key));
    let mut hashes: Vec<u64> =
        conditions.chain(write.ops.iter().map(|op| hash(op.key()))).collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

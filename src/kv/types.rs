//! The words of the key-value store: writes, queries and what comes of them.
//!
//! A [`Command`] is what a log entry carries; applying it gives one [`Outcome`], the same on every
//! replica. A [`Query`] never enters the log; it is answered from a replica that has applied at
//! least the read index.

/// Position of a write in the history of the store: the log index that wrote it. Only grows.
pub type Revision = u64;

/// What a log entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Change keys.
    Write(Write),
    /// Begin a client session; its id is the revision of this command.
    OpenSession,
    /// Forget a session and its remembered results.
    CloseSession {
        /// The session.
        session: u64,
    },
    /// The connection that held a session has ended: it is forgotten when its place is needed.
    ReleaseSession {
        /// The session.
        session: u64,
        /// Highest sequence that the connection has asked for, 0 for none. A session that has come further is in use
        /// elsewhere, and stays held.
        sequence: u64,
    },
}

/// An atomic write: when every condition holds, every operation is done, in order; else none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// Whose retry is recognised, or none (see [`SessionStamp`]).
    pub stamp: Option<SessionStamp>,
    /// What must hold before anything is done.
    pub conditions: Vec<Condition>,
    /// What is done; later operations see the effect of earlier ones.
    pub ops: Vec<Op>,
}

/// Makes a write take effect at most once, however often it is sent (thesis 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionStamp {
    /// The session, as [`Outcome::SessionOpened`] named it.
    pub session: u64,
    /// Number of the write within the session, from 1, never used for two writes.
    pub sequence: u64,
    /// Every sequence below this one is answered at the client: its result may be forgotten.
    pub answered_below: u64,
}

/// Something a write demands of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: Vec<u8>,
    /// What must hold of it.
    pub test: Test,
}

/// What a condition demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// The key is not there.
    Absent,
    /// The key is there.
    Present,
    /// The key is there and was last written by this revision.
    Revision(Revision),
}

/// One operation of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Store a value. Blind: reads nothing.
    Put {
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// Remove a key; says whether it was there.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// Add to a value that is a decimal `i64`; an absent key counts as 0.
    Increment {
        /// The key.
        key: Vec<u8>,
        /// What to add.
        by: i64,
    },
    /// Read a key at this place in the write.
    Get {
        /// The key.
        key: Vec<u8>,
    },
}

impl Op {
    /// The key it is about.
    pub fn key(&self) -> &[u8] {
        match self {
            Op::Put { key, .. }
            | Op::Delete { key }
            | Op::Increment { key, .. }
            | Op::Get { key } => key,
        }
    }
}

/// What became of a command. Equal logs give equal outcomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write was done.
    Done {
        /// Its revision.
        revision: Revision,
        /// One result per operation.
        results: Vec<OpResult>,
    },
    /// A condition did not hold; nothing was done.
    ConditionFalse {
        /// Position of the first condition that failed.
        condition: u32,
        /// Revision of its key as found, none when the key is absent.
        found: Option<Revision>,
    },
    /// An increment met a value that is not a decimal `i64`; nothing was done.
    NotANumber {
        /// Position of the operation.
        op: u32,
    },
    /// An increment would leave the range of `i64`; nothing was done.
    Overflow {
        /// Position of the operation.
        op: u32,
    },
    /// The session is not known (any more); nothing was done by this command. Whether an earlier
    /// copy of it took effect is unknown.
    SessionUnknown,
    /// The sequence lies below what the client said is answered, or below what the session could
    /// remember (docs/formats.md, "Session record"), or is no sequence (0, `u64::MAX`); nothing was
    /// done by this command. Whether an earlier copy of it took effect is not known here.
    SequenceForgotten,
    /// A session was begun.
    SessionOpened {
        /// Its id.
        session: u64,
    },
    /// A session was forgotten, or was not there.
    SessionClosed,
    /// A session is not held any more, or is held elsewhere, or was not there.
    SessionReleased,
    /// No session was begun: every place is taken, and none may be taken back yet.
    SessionsFull,
    /// The command's bytes do not decode; nothing was done.
    Malformed,
    /// The write's reads found more than one answer may carry; nothing was done.
    ResultsTooLarge {
        /// Position of the operation that no longer fits.
        op: u32,
    },
    /// The write was done, once, but its results are not told: they were too large to remember for a retry, or the
    /// node that was asked holds as many answers as it may.
    ResultsForgotten {
        /// Its revision.
        revision: Revision,
    },
}

impl Outcome {
    /// Bytes of memory that its results take.
    pub fn memory(&self) -> usize {
        let Outcome::Done { results, .. } = self else { return 0 };
        let value = |result: &OpResult| match result {
            OpResult::Got { found: Some(found) } => found.value.len(),
            _ => 0,
        };
        std::mem::size_of_val(&results[..]) + results.iter().map(value).sum::<usize>()
    }
}

/// What one operation of a done write gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// The value is stored.
    Put,
    /// The key is gone; whether it was there.
    Deleted {
        /// It was there.
        existed: bool,
    },
    /// The new number.
    Number {
        /// Value after the increment.
        value: i64,
    },
    /// What a [`Op::Get`] found.
    Got {
        /// Value and revision, none when absent.
        found: Option<Found>,
    },
}

/// A value and the write it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Vec<u8>,
    /// The write that stored it.
    pub revision: Revision,
}

/// A read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// One key.
    Get {
        /// The key.
        key: Vec<u8>,
    },
    /// Keys in order.
    Range(Range),
}

/// A page of keys in order, from one consistent cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First key that may appear.
    pub start: Vec<u8>,
    /// First key that may not; empty means no bound.
    pub end: Vec<u8>,
    /// The last key of the page before: the answer continues exactly after it.
    pub after: Option<Vec<u8>>,
    /// At most this many keys; 0 means the store's own bound.
    pub limit: u32,
    /// At most about this many bytes of keys and values (at least one key); 0 means the store's own
    /// bound.
    pub bytes: u32,
    /// Descending order.
    pub reverse: bool,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count; `limit` and `bytes` do not apply, items stay empty.
    pub count_only: bool,
}

/// Answer to a [`Range`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys in the order asked for.
    pub items: Vec<Item>,
    /// There is more: pass it as [`Range::after`]. It is the last key of this page.
    pub cursor: Option<Vec<u8>>,
    /// Keys in `items`, or all that lie in the range when only a count was asked for.
    pub count: u64,
    /// The cut: every write up to this revision is in it, none after.
    pub revision: Revision,
}

/// One key of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Vec<u8>,
    /// The value; empty when values were left out.
    pub value: Vec<u8>,
    /// The write that stored it.
    pub revision: Revision,
}

/// What a query found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Query::Get`].
    Value(Option<Found>),
    /// To [`Query::Range`].
    Page(Page),
}

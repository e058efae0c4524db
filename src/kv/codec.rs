//! The byte forms of commands, and of what the wire protocol says about them.
//!
//! docs/formats.md, "Command" and the sections after it, are the specification. A command is
//! encoded once, before it is proposed; the same bytes are in the log, on the wire and here. Each
//! value has exactly one form: what decodes encodes to the same bytes again. [`CommandRef`]
//! borrows keys and values from the entry, so that applying a put copies them only into the store.
//! Left out: sizes that a flag may set. Those are checked before a command is proposed
//! (`limits`, by the replica that proposes it); here only constants count, since all replicas must decode alike.

use super::bytes::{Input, Malformed, put_blob, put_signed, put_varint};
use super::types::{
    Command, Condition, Found, Item, Op, OpResult, Outcome, Page, Query, Range, Reply,
    SessionStamp, Test, Write,
};

/// Most operations, and most conditions, of one write. A constant of the format: it bounds what
/// decoding takes (about 3 MiB), and a node that would decode differently would diverge.
pub const OPS_MAX: usize = 1 << 16;

/// Most keys of one page. A constant of the format, above anything a node's own bound may be.
pub const PAGE_ITEMS_MAX: usize = 1 << 20;

const COMMAND_OPEN_SESSION: u8 = 0x01;
const COMMAND_CLOSE_SESSION: u8 = 0x02;
const COMMAND_RELEASE_SESSION: u8 = 0x03;
/// The low three bits of a write's kind say which parts follow.
const COMMAND_WRITE: u8 = 0x10;
const WRITE_STAMP: u8 = 1;
const WRITE_CONDITIONS: u8 = 2;
const WRITE_OP_COUNT: u8 = 4;
const WRITE_FLAGS: u8 = WRITE_STAMP | WRITE_CONDITIONS | WRITE_OP_COUNT;
const _: () = assert!(COMMAND_WRITE & WRITE_FLAGS == 0);

const TEST_ABSENT: u8 = 1;
const TEST_PRESENT: u8 = 2;
const TEST_REVISION: u8 = 3;

const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_INCREMENT: u8 = 3;
const OP_GET: u8 = 4;

/// Least bytes of an operation or a condition: a kind and an empty key.
const OP_BYTES_MIN: usize = 2;

/// A command that borrows its keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandRef<'a> {
    /// See [`Command::Write`].
    Write(WriteRef<'a>),
    /// See [`Command::OpenSession`].
    OpenSession,
    /// See [`Command::CloseSession`].
    CloseSession {
        /// The session.
        session: u64,
    },
    /// See [`Command::ReleaseSession`].
    ReleaseSession {
        /// The session.
        session: u64,
        /// Highest sequence that was asked for.
        sequence: u64,
    },
}

/// A [`Write`] that borrows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteRef<'a> {
    /// See [`Write::stamp`].
    pub stamp: Option<SessionStamp>,
    /// See [`Write::conditions`].
    pub conditions: Vec<ConditionRef<'a>>,
    /// See [`Write::ops`].
    pub ops: Vec<OpRef<'a>>,
}

/// A [`Condition`] that borrows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConditionRef<'a> {
    /// The key.
    pub key: &'a [u8],
    /// What must hold of it.
    pub test: Test,
}

/// An [`Op`] that borrows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpRef<'a> {
    /// See [`Op::Put`].
    Put {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// See [`Op::Delete`].
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// See [`Op::Increment`].
    Increment {
        /// The key.
        key: &'a [u8],
        /// What to add.
        by: i64,
    },
    /// See [`Op::Get`].
    Get {
        /// The key.
        key: &'a [u8],
    },
}

/// Appends a command's byte form. More than [`OPS_MAX`] operations or conditions do not decode.
pub fn encode_command(command: &Command, out: &mut Vec<u8>) {
    match command {
        Command::OpenSession => out.push(COMMAND_OPEN_SESSION),
        Command::CloseSession { session } => {
            out.push(COMMAND_CLOSE_SESSION);
            put_varint(out, *session);
        }
        Command::ReleaseSession { session, sequence } => {
            out.push(COMMAND_RELEASE_SESSION);
            put_varint(out, *session);
            put_varint(out, *sequence);
        }
        Command::Write(write) => put_write(out, write),
    }
}

/// Decodes a whole command.
pub fn decode_command(bytes: &[u8]) -> Result<Command, Malformed> {
    Ok(CommandRef::decode(bytes)?.to_command())
}

fn put_write(out: &mut Vec<u8>, write: &Write) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(
        COMMAND_WRITE
            | flag(write.stamp.is_some(), WRITE_STAMP)
            | flag(!write.conditions.is_empty(), WRITE_CONDITIONS)
            | flag(write.ops.len() != 1, WRITE_OP_COUNT),
    );
    if let Some(stamp) = &write.stamp {
        put_varint(out, stamp.session);
        put_varint(out, stamp.sequence);
        put_varint(out, stamp.answered_below);
    }
    if !write.conditions.is_empty() {
        put_varint(out, write.conditions.len() as u64);
        for Condition { key, test } in &write.conditions {
            match test {
                Test::Absent => out.push(TEST_ABSENT),
                Test::Present => out.push(TEST_PRESENT),
                Test::Revision(revision) => {
                    out.push(TEST_REVISION);
                    put_varint(out, *revision);
                }
            }
            put_blob(out, key);
        }
    }
    if write.ops.len() != 1 {
        put_varint(out, write.ops.len() as u64);
    }
    for op in &write.ops {
        match op {
            Op::Put { key, value } => {
                out.push(OP_PUT);
                put_blob(out, key);
                put_blob(out, value);
            }
            Op::Delete { key } => {
                out.push(OP_DELETE);
                put_blob(out, key);
            }
            Op::Increment { key, by } => {
                out.push(OP_INCREMENT);
                put_blob(out, key);
                put_signed(out, *by);
            }
            Op::Get { key } => {
                out.push(OP_GET);
                put_blob(out, key);
            }
        }
    }
}

impl<'a> CommandRef<'a> {
    /// Decodes a whole command; left-over bytes are refused.
    pub fn decode(bytes: &'a [u8]) -> Result<CommandRef<'a>, Malformed> {
        let mut input = Input(bytes);
        let command = match input.u8("command kind")? {
            COMMAND_OPEN_SESSION => CommandRef::OpenSession,
            COMMAND_CLOSE_SESSION => CommandRef::CloseSession { session: input.varint("session")? },
            COMMAND_RELEASE_SESSION => CommandRef::ReleaseSession {
                session: input.varint("session")?,
                sequence: input.varint("session sequence")?,
            },
            kind if kind & !WRITE_FLAGS == COMMAND_WRITE => {
                CommandRef::Write(take_write(&mut input, kind & WRITE_FLAGS)?)
            }
            _ => return Err(Malformed("command kind")),
        };
        input.end("command length")?;
        Ok(command)
    }

    /// Whether it may make the data larger: what deletes, reads, or concerns a session only does not.
    pub fn adds_data(&self) -> bool {
        let adds = |op: &OpRef<'_>| matches!(op, OpRef::Put { .. } | OpRef::Increment { .. });
        matches!(self, CommandRef::Write(write) if write.ops.iter().any(adds))
    }

    /// The same command with copies of its keys and values.
    pub fn to_command(&self) -> Command {
        match self {
            CommandRef::OpenSession => Command::OpenSession,
            CommandRef::CloseSession { session } => Command::CloseSession { session: *session },
            CommandRef::ReleaseSession { session, sequence } => {
                Command::ReleaseSession { session: *session, sequence: *sequence }
            }
            CommandRef::Write(write) => Command::Write(Write {
                stamp: write.stamp,
                conditions: write
                    .conditions
                    .iter()
                    .map(|c| Condition { key: c.key.to_vec(), test: c.test })
                    .collect(),
                ops: write.ops.iter().map(|op| op.to_op()).collect(),
            }),
        }
    }
}

impl<'a> OpRef<'a> {
    /// The key that it is about.
    pub fn key(&self) -> &'a [u8] {
        match self {
            OpRef::Put { key, .. }
            | OpRef::Delete { key }
            | OpRef::Increment { key, .. }
            | OpRef::Get { key } => key,
        }
    }

    fn to_op(self) -> Op {
        match self {
            OpRef::Put { key, value } => Op::Put { key: key.to_vec(), value: value.to_vec() },
            OpRef::Delete { key } => Op::Delete { key: key.to_vec() },
            OpRef::Increment { key, by } => Op::Increment { key: key.to_vec(), by },
            OpRef::Get { key } => Op::Get { key: key.to_vec() },
        }
    }
}

fn take_write<'a>(input: &mut Input<'a>, flags: u8) -> Result<WriteRef<'a>, Malformed> {
    let mut write = WriteRef::default();
    if flags & WRITE_STAMP != 0 {
        write.stamp = Some(SessionStamp {
            session: input.varint("session")?,
            sequence: input.varint("sequence")?,
            answered_below: input.varint("answered below")?,
        });
    }
    if flags & WRITE_CONDITIONS != 0 {
        let count = input.count(OPS_MAX, OP_BYTES_MIN, "condition count")?;
        if count == 0 {
            return Err(Malformed("condition count"));
        }
        write.conditions.reserve_exact(count);
        for _ in 0..count {
            let test = match input.u8("condition kind")? {
                TEST_ABSENT => Test::Absent,
                TEST_PRESENT => Test::Present,
                TEST_REVISION => Test::Revision(input.varint("condition revision")?),
                _ => return Err(Malformed("condition kind")),
            };
            write.conditions.push(ConditionRef { key: input.blob("condition key")?, test });
        }
    }
    let count = if flags & WRITE_OP_COUNT != 0 {
        match input.count(OPS_MAX, OP_BYTES_MIN, "operation count")? {
            1 => return Err(Malformed("operation count")),
            count => count,
        }
    } else {
        1
    };
    write.ops.reserve_exact(count);
    for _ in 0..count {
        let kind = input.u8("operation kind")?;
        let key = input.blob("key")?;
        write.ops.push(match kind {
            OP_PUT => OpRef::Put { key, value: input.blob("value")? },
            OP_DELETE => OpRef::Delete { key },
            OP_INCREMENT => OpRef::Increment { key, by: input.signed("increment")? },
            OP_GET => OpRef::Get { key },
            _ => return Err(Malformed("operation kind")),
        });
    }
    Ok(write)
}

const OUTCOME_DONE: u8 = 1;
const OUTCOME_CONDITION_FALSE_ABSENT: u8 = 2;
const OUTCOME_CONDITION_FALSE_FOUND: u8 = 3;
const OUTCOME_NOT_A_NUMBER: u8 = 4;
const OUTCOME_OVERFLOW: u8 = 5;
const OUTCOME_SESSION_UNKNOWN: u8 = 6;
const OUTCOME_SEQUENCE_FORGOTTEN: u8 = 7;
const OUTCOME_SESSION_OPENED: u8 = 8;
const OUTCOME_SESSION_CLOSED: u8 = 9;
const OUTCOME_MALFORMED: u8 = 10;
const OUTCOME_RESULTS_TOO_LARGE: u8 = 11;
const OUTCOME_RESULTS_FORGOTTEN: u8 = 12;
const OUTCOME_SESSION_RELEASED: u8 = 13;
const OUTCOME_SESSIONS_FULL: u8 = 14;

const RESULT_PUT: u8 = 1;
const RESULT_DELETED_ABSENT: u8 = 2;
const RESULT_DELETED: u8 = 3;
const RESULT_NUMBER: u8 = 4;
const RESULT_GOT_ABSENT: u8 = 5;
const RESULT_GOT: u8 = 6;

/// Appends an outcome's byte form.
pub fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Done { revision, results } => {
            out.push(OUTCOME_DONE);
            put_varint(out, *revision);
            put_varint(out, results.len() as u64);
            for result in results {
                put_result(out, result);
            }
        }
        Outcome::ConditionFalse { condition, found: None } => {
            out.push(OUTCOME_CONDITION_FALSE_ABSENT);
            put_varint(out, u64::from(*condition));
        }
        Outcome::ConditionFalse { condition, found: Some(revision) } => {
            out.push(OUTCOME_CONDITION_FALSE_FOUND);
            put_varint(out, u64::from(*condition));
            put_varint(out, *revision);
        }
        Outcome::NotANumber { op } => {
            out.push(OUTCOME_NOT_A_NUMBER);
            put_varint(out, u64::from(*op));
        }
        Outcome::Overflow { op } => {
            out.push(OUTCOME_OVERFLOW);
            put_varint(out, u64::from(*op));
        }
        Outcome::SessionUnknown => out.push(OUTCOME_SESSION_UNKNOWN),
        Outcome::SequenceForgotten => out.push(OUTCOME_SEQUENCE_FORGOTTEN),
        Outcome::SessionOpened { session } => {
            out.push(OUTCOME_SESSION_OPENED);
            put_varint(out, *session);
        }
        Outcome::SessionClosed => out.push(OUTCOME_SESSION_CLOSED),
        Outcome::SessionReleased => out.push(OUTCOME_SESSION_RELEASED),
        Outcome::SessionsFull => out.push(OUTCOME_SESSIONS_FULL),
        Outcome::Malformed => out.push(OUTCOME_MALFORMED),
        Outcome::ResultsTooLarge { op } => {
            out.push(OUTCOME_RESULTS_TOO_LARGE);
            put_varint(out, u64::from(*op));
        }
        Outcome::ResultsForgotten { revision } => {
            out.push(OUTCOME_RESULTS_FORGOTTEN);
            put_varint(out, *revision);
        }
    }
}

fn put_result(out: &mut Vec<u8>, result: &OpResult) {
    match result {
        OpResult::Put => out.push(RESULT_PUT),
        OpResult::Deleted { existed: false } => out.push(RESULT_DELETED_ABSENT),
        OpResult::Deleted { existed: true } => out.push(RESULT_DELETED),
        OpResult::Number { value } => {
            out.push(RESULT_NUMBER);
            put_signed(out, *value);
        }
        OpResult::Got { found: None } => out.push(RESULT_GOT_ABSENT),
        OpResult::Got { found: Some(found) } => {
            out.push(RESULT_GOT);
            put_found(out, found);
        }
    }
}

/// Reads one outcome.
pub fn take_outcome(input: &mut Input<'_>) -> Result<Outcome, Malformed> {
    Ok(match input.u8("outcome kind")? {
        OUTCOME_DONE => {
            let revision = input.varint("outcome revision")?;
            let count = input.count(OPS_MAX, 1, "result count")?;
            let mut results = Vec::with_capacity(count);
            for _ in 0..count {
                results.push(take_result(input)?);
            }
            Outcome::Done { revision, results }
        }
        OUTCOME_CONDITION_FALSE_ABSENT => {
            Outcome::ConditionFalse { condition: input.varint32("condition")?, found: None }
        }
        OUTCOME_CONDITION_FALSE_FOUND => Outcome::ConditionFalse {
            condition: input.varint32("condition")?,
            found: Some(input.varint("condition revision")?),
        },
        OUTCOME_NOT_A_NUMBER => Outcome::NotANumber { op: input.varint32("operation")? },
        OUTCOME_OVERFLOW => Outcome::Overflow { op: input.varint32("operation")? },
        OUTCOME_SESSION_UNKNOWN => Outcome::SessionUnknown,
        OUTCOME_SEQUENCE_FORGOTTEN => Outcome::SequenceForgotten,
        OUTCOME_SESSION_OPENED => Outcome::SessionOpened { session: input.varint("session")? },
        OUTCOME_SESSION_CLOSED => Outcome::SessionClosed,
        OUTCOME_SESSION_RELEASED => Outcome::SessionReleased,
        OUTCOME_SESSIONS_FULL => Outcome::SessionsFull,
        OUTCOME_MALFORMED => Outcome::Malformed,
        OUTCOME_RESULTS_TOO_LARGE => Outcome::ResultsTooLarge { op: input.varint32("operation")? },
        OUTCOME_RESULTS_FORGOTTEN => {
            Outcome::ResultsForgotten { revision: input.varint("outcome revision")? }
        }
        _ => return Err(Malformed("outcome kind")),
    })
}

fn take_result(input: &mut Input<'_>) -> Result<OpResult, Malformed> {
    Ok(match input.u8("result kind")? {
        RESULT_PUT => OpResult::Put,
        RESULT_DELETED_ABSENT => OpResult::Deleted { existed: false },
        RESULT_DELETED => OpResult::Deleted { existed: true },
        RESULT_NUMBER => OpResult::Number { value: input.signed("number")? },
        RESULT_GOT_ABSENT => OpResult::Got { found: None },
        RESULT_GOT => OpResult::Got { found: Some(take_found(input)?) },
        _ => return Err(Malformed("result kind")),
    })
}

fn put_found(out: &mut Vec<u8>, found: &Found) {
    put_varint(out, found.revision);
    put_blob(out, &found.value);
}

fn take_found(input: &mut Input<'_>) -> Result<Found, Malformed> {
    let revision = input.varint("revision")?;
    Ok(Found { revision, value: input.blob("value")?.to_vec() })
}

const QUERY_GET: u8 = 1;
const QUERY_RANGE: u8 = 2;

const RANGE_AFTER: u8 = 1;
const RANGE_REVERSE: u8 = 2;
const RANGE_KEYS_ONLY: u8 = 4;
const RANGE_COUNT_ONLY: u8 = 8;
const RANGE_FLAGS: u8 = RANGE_AFTER | RANGE_REVERSE | RANGE_KEYS_ONLY | RANGE_COUNT_ONLY;

/// Appends a query's byte form.
pub fn put_query(out: &mut Vec<u8>, query: &Query) {
    match query {
        Query::Get { key } => {
            out.push(QUERY_GET);
            put_blob(out, key);
        }
        Query::Range(range) => {
            out.push(QUERY_RANGE);
            let flag = |set: bool, flag: u8| if set { flag } else { 0 };
            out.push(
                flag(range.after.is_some(), RANGE_AFTER)
                    | flag(range.reverse, RANGE_REVERSE)
                    | flag(range.keys_only, RANGE_KEYS_ONLY)
                    | flag(range.count_only, RANGE_COUNT_ONLY),
            );
            put_blob(out, &range.start);
            put_blob(out, &range.end);
            if let Some(after) = &range.after {
                put_blob(out, after);
            }
            put_varint(out, u64::from(range.limit));
            put_varint(out, u64::from(range.bytes));
        }
    }
}

/// Reads one query.
pub fn take_query(input: &mut Input<'_>) -> Result<Query, Malformed> {
    match input.u8("query kind")? {
        QUERY_GET => Ok(Query::Get { key: input.blob("key")?.to_vec() }),
        QUERY_RANGE => {
            let flags = input.u8("range flags")?;
            if flags & !RANGE_FLAGS != 0 {
                return Err(Malformed("range flags"));
            }
            Ok(Query::Range(Range {
                start: input.blob("range start")?.to_vec(),
                end: input.blob("range end")?.to_vec(),
                after: if flags & RANGE_AFTER != 0 {
                    Some(input.blob("range after")?.to_vec())
                } else {
                    None
                },
                limit: input.varint32("range limit")?,
                bytes: input.varint32("range bytes")?,
                reverse: flags & RANGE_REVERSE != 0,
                keys_only: flags & RANGE_KEYS_ONLY != 0,
                count_only: flags & RANGE_COUNT_ONLY != 0,
            }))
        }
        _ => Err(Malformed("query kind")),
    }
}

const REPLY_ABSENT: u8 = 1;
const REPLY_FOUND: u8 = 2;
const REPLY_PAGE: u8 = 3;

/// Least bytes of a page's item: empty key, empty value, revision.
const ITEM_BYTES_MIN: usize = 3;

/// Appends a reply's byte form.
pub fn put_reply(out: &mut Vec<u8>, reply: &Reply) {
    match reply {
        Reply::Value(None) => out.push(REPLY_ABSENT),
        Reply::Value(Some(found)) => {
            out.push(REPLY_FOUND);
            put_found(out, found);
        }
        Reply::Page(page) => {
            out.push(REPLY_PAGE);
            put_page(out, page);
        }
    }
}

/// Reads one reply.
pub fn take_reply(input: &mut Input<'_>) -> Result<Reply, Malformed> {
    match input.u8("reply kind")? {
        REPLY_ABSENT => Ok(Reply::Value(None)),
        REPLY_FOUND => Ok(Reply::Value(Some(take_found(input)?))),
        REPLY_PAGE => Ok(Reply::Page(take_page(input)?)),
        _ => Err(Malformed("reply kind")),
    }
}

/// Appends a page's byte form.
pub fn put_page(out: &mut Vec<u8>, page: &Page) {
    put_varint(out, page.revision);
    put_varint(out, page.count);
    match &page.cursor {
        None => out.push(0),
        Some(cursor) => {
            out.push(1);
            put_blob(out, cursor);
        }
    }
    put_varint(out, page.items.len() as u64);
    for item in &page.items {
        put_varint(out, item.revision);
        put_blob(out, &item.key);
        put_blob(out, &item.value);
    }
}

/// Reads one page.
pub fn take_page(input: &mut Input<'_>) -> Result<Page, Malformed> {
    let revision = input.varint("page revision")?;
    let count = input.varint("page count")?;
    let cursor = match input.u8("page cursor")? {
        0 => None,
        1 => Some(input.blob("page cursor")?.to_vec()),
        _ => return Err(Malformed("page cursor")),
    };
    let len = input.count(PAGE_ITEMS_MAX, ITEM_BYTES_MIN, "item count")?;
    let mut items = Vec::with_capacity(len);
    for _ in 0..len {
        let revision = input.varint("item revision")?;
        let key = input.blob("item key")?.to_vec();
        items.push(Item { key, value: input.blob("item value")?.to_vec(), revision });
    }
    Ok(Page { items, cursor, count, revision })
}

//! The client's form of the store's words: writes, outcomes, queries, replies.
//!
//! Fixed-width little endian, tags of one byte, `u32` lengths and counts. The log has a form of its
//! own; the two are versioned apart. docs/protocol.md, "Words of the store", is the specification.

use super::fields::{put_blob, put_count, put_option, take_flag, take_list, take_option};
use crate::kv::{
    Condition, Found, Item, Op, OpResult, Outcome, Page, Query, Range, Reply, SessionStamp, Test,
    Write,
};
use crate::raft::codec::{Input, Malformed};

/// Most operations of one write, most conditions, most results: an operation of a few bytes takes
/// about ten times as much memory when decoded, so bytes alone are no bound.
pub const WRITE_PARTS_MAX: usize = 1 << 16;

/// Appends a write.
pub fn put_write(out: &mut Vec<u8>, write: &Write) {
    let stamp = write.stamp.unwrap_or(NO_STAMP);
    for field in [stamp.session, stamp.sequence, stamp.answered_below] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    put_count(out, write.conditions.len());
    for condition in &write.conditions {
        let (tag, revision) = match condition.test {
            Test::Absent => (1, 0),
            Test::Present => (2, 0),
            Test::Revision(revision) => (3, revision),
        };
        out.push(tag);
        out.extend_from_slice(&revision.to_le_bytes());
        put_blob(out, &condition.key);
    }
    put_count(out, write.ops.len());
    for op in &write.ops {
        match op {
            Op::Put { key, value } => {
                out.push(1);
                put_blob(out, key);
                put_blob(out, value);
            }
            Op::Delete { key } => {
                out.push(2);
                put_blob(out, key);
            }
            Op::Increment { key, by } => {
                out.push(3);
                put_blob(out, key);
                out.extend_from_slice(&by.to_le_bytes());
            }
            Op::Get { key } => {
                out.push(4);
                put_blob(out, key);
            }
        }
    }
}

/// On the wire a session of 0 is none; no session has that id (it is a revision, from 1).
const NO_STAMP: SessionStamp = SessionStamp { session: 0, sequence: 0, answered_below: 0 };

/// Reads a write.
pub fn take_write(input: &mut Input<'_>) -> Result<Write, Malformed> {
    let stamp = SessionStamp {
        session: input.u64("session")?,
        sequence: input.u64("sequence")?,
        answered_below: input.u64("answered below")?,
    };
    let stamp = match (stamp.session, stamp.sequence) {
        (0, _) if stamp == NO_STAMP => None,
        (0, _) | (_, 0) => return Err(Malformed("session stamp")),
        _ => Some(stamp),
    };
    let conditions = take_list(input, 1 + 8 + 4, WRITE_PARTS_MAX, "condition count", |input| {
        let tag = input.u8("condition")?;
        let revision = input.u64("condition revision")?;
        let test = match (tag, revision) {
            (1, 0) => Test::Absent,
            (2, 0) => Test::Present,
            (3, revision) => Test::Revision(revision),
            _ => return Err(Malformed("condition")),
        };
        Ok(Condition { key: input.blob("condition key")?.to_vec(), test })
    })?;
    let ops = take_list(input, 1 + 4, WRITE_PARTS_MAX, "operation count", |input| {
        let tag = input.u8("operation")?;
        let key = input.blob("operation key")?.to_vec();
        Ok(match tag {
            1 => Op::Put { key, value: input.blob("value")?.to_vec() },
            2 => Op::Delete { key },
            3 => Op::Increment { key, by: take_i64(input, "increment")? },
            4 => Op::Get { key },
            _ => return Err(Malformed("operation")),
        })
    })?;
    Ok(Write { stamp, conditions, ops })
}

/// Appends an outcome.
pub fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Done { revision, results } => {
            out.push(1);
            out.extend_from_slice(&revision.to_le_bytes());
            put_count(out, results.len());
            for result in results {
                match result {
                    OpResult::Put => out.push(1),
                    OpResult::Deleted { existed } => {
                        out.extend_from_slice(&[2, u8::from(*existed)]);
                    }
                    OpResult::Number { value } => {
                        out.push(3);
                        out.extend_from_slice(&value.to_le_bytes());
                    }
                    OpResult::Got { found } => {
                        out.push(4);
                        put_found(out, found.as_ref());
                    }
                }
            }
        }
        Outcome::ConditionFalse { condition, found } => {
            out.push(2);
            out.extend_from_slice(&condition.to_le_bytes());
            put_option(out, *found);
        }
        Outcome::NotANumber { op } => {
            out.push(3);
            out.extend_from_slice(&op.to_le_bytes());
        }
        Outcome::Overflow { op } => {
            out.push(4);
            out.extend_from_slice(&op.to_le_bytes());
        }
        Outcome::SessionUnknown => out.push(5),
        Outcome::SequenceForgotten => out.push(6),
        Outcome::SessionOpened { session } => {
            out.push(7);
            out.extend_from_slice(&session.to_le_bytes());
        }
        Outcome::SessionClosed => out.push(8),
        Outcome::Malformed => out.push(9),
        Outcome::ResultsTooLarge { op } => {
            out.push(10);
            out.extend_from_slice(&op.to_le_bytes());
        }
        Outcome::ResultsForgotten { revision } => {
            out.push(11);
            out.extend_from_slice(&revision.to_le_bytes());
        }
        Outcome::SessionReleased => out.push(12),
        Outcome::SessionsFull => out.push(13),
    }
}

/// Reads an outcome.
pub fn take_outcome(input: &mut Input<'_>) -> Result<Outcome, Malformed> {
    Ok(match input.u8("outcome")? {
        1 => Outcome::Done {
            revision: input.u64("revision")?,
            results: take_list(input, 1, WRITE_PARTS_MAX, "result count", |input| {
                Ok(match input.u8("result")? {
                    1 => OpResult::Put,
                    2 => OpResult::Deleted { existed: take_flag(input, "existed")? },
                    3 => OpResult::Number { value: take_i64(input, "number")? },
                    4 => OpResult::Got { found: take_found(input)? },
                    _ => return Err(Malformed("result")),
                })
            })?,
        },
        2 => Outcome::ConditionFalse {
            condition: input.u32("condition position")?,
            found: take_option(input, "revision found")?,
        },
        3 => Outcome::NotANumber { op: input.u32("operation position")? },
        4 => Outcome::Overflow { op: input.u32("operation position")? },
        5 => Outcome::SessionUnknown,
        6 => Outcome::SequenceForgotten,
        7 => Outcome::SessionOpened { session: input.u64("session")? },
        8 => Outcome::SessionClosed,
        9 => Outcome::Malformed,
        10 => Outcome::ResultsTooLarge { op: input.u32("operation position")? },
        11 => Outcome::ResultsForgotten { revision: input.u64("revision")? },
        12 => Outcome::SessionReleased,
        13 => Outcome::SessionsFull,
        _ => return Err(Malformed("outcome")),
    })
}

const RANGE_AFTER: u8 = 1;
const RANGE_REVERSE: u8 = 2;
const RANGE_KEYS_ONLY: u8 = 4;
const RANGE_COUNT_ONLY: u8 = 8;
const RANGE_FLAGS: u8 = RANGE_AFTER | RANGE_REVERSE | RANGE_KEYS_ONLY | RANGE_COUNT_ONLY;

/// Appends a query.
pub fn put_query(out: &mut Vec<u8>, query: &Query) {
    match query {
        Query::Get { key } => {
            out.push(1);
            put_blob(out, key);
        }
        Query::Range(range) => {
            out.push(2);
            let flag = |set: bool, bit: u8| if set { bit } else { 0 };
            out.push(
                flag(range.after.is_some(), RANGE_AFTER)
                    | flag(range.reverse, RANGE_REVERSE)
                    | flag(range.keys_only, RANGE_KEYS_ONLY)
                    | flag(range.count_only, RANGE_COUNT_ONLY),
            );
            out.extend_from_slice(&range.limit.to_le_bytes());
            out.extend_from_slice(&range.bytes.to_le_bytes());
            put_blob(out, &range.start);
            put_blob(out, &range.end);
            if let Some(after) = &range.after {
                put_blob(out, after);
            }
        }
    }
}

/// Reads a query.
pub fn take_query(input: &mut Input<'_>) -> Result<Query, Malformed> {
    Ok(match input.u8("query")? {
        1 => Query::Get { key: input.blob("key")?.to_vec() },
        2 => {
            let flags = input.u8("range flags")?;
            if flags & !RANGE_FLAGS != 0 {
                return Err(Malformed("range flags"));
            }
            let limit = input.u32("range limit")?;
            let bytes = input.u32("range bytes")?;
            let start = input.blob("range start")?.to_vec();
            let end = input.blob("range end")?.to_vec();
            let after = match flags & RANGE_AFTER {
                0 => None,
                _ => Some(input.blob("range after")?.to_vec()),
            };
            Query::Range(Range {
                start,
                end,
                after,
                limit,
                bytes,
                reverse: flags & RANGE_REVERSE != 0,
                keys_only: flags & RANGE_KEYS_ONLY != 0,
                count_only: flags & RANGE_COUNT_ONLY != 0,
            })
        }
        _ => return Err(Malformed("query")),
    })
}

/// Appends a reply.
pub fn put_reply(out: &mut Vec<u8>, reply: &Reply) {
    match reply {
        Reply::Value(found) => {
            out.push(1);
            put_found(out, found.as_ref());
        }
        Reply::Page(page) => {
            out.push(2);
            out.extend_from_slice(&page.revision.to_le_bytes());
            out.extend_from_slice(&page.count.to_le_bytes());
            out.push(u8::from(page.cursor.is_some()));
            if let Some(cursor) = &page.cursor {
                put_blob(out, cursor);
            }
            put_count(out, page.items.len());
            for item in &page.items {
                out.extend_from_slice(&item.revision.to_le_bytes());
                put_blob(out, &item.key);
                put_blob(out, &item.value);
            }
        }
    }
}

/// Reads a reply.
pub fn take_reply(input: &mut Input<'_>) -> Result<Reply, Malformed> {
    Ok(match input.u8("reply")? {
        1 => Reply::Value(take_found(input)?),
        2 => {
            let revision = input.u64("page revision")?;
            let count = input.u64("page count")?;
            let cursor = match take_flag(input, "page cursor")? {
                true => Some(input.blob("page cursor")?.to_vec()),
                false => None,
            };
            // The bytes of an item in a frame are about a third of those in memory at the worst.
            let items = take_list(input, 8 + 4 + 4, usize::MAX, "item count", |input| {
                let revision = input.u64("item revision")?;
                let key = input.blob("item key")?.to_vec();
                let value = input.blob("item value")?.to_vec();
                Ok(Item { key, value, revision })
            })?;
            Reply::Page(Page { items, cursor, count, revision })
        }
        _ => return Err(Malformed("reply")),
    })
}

fn put_found(out: &mut Vec<u8>, found: Option<&Found>) {
    out.push(u8::from(found.is_some()));
    if let Some(found) = found {
        out.extend_from_slice(&found.revision.to_le_bytes());
        put_blob(out, &found.value);
    }
}

fn take_found(input: &mut Input<'_>) -> Result<Option<Found>, Malformed> {
    if !take_flag(input, "found")? {
        return Ok(None);
    }
    let revision = input.u64("value revision")?;
    Ok(Some(Found { value: input.blob("value")?.to_vec(), revision }))
}

fn take_i64(input: &mut Input<'_>, what: &'static str) -> Result<i64, Malformed> {
    Ok(input.u64(what)?.cast_signed())
}

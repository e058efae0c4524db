//! What is refused before it is proposed, and how large an answer may be.
//!
//! Limits may differ between nodes, since flags set them. They are therefore looked at once, by the
//! replica that proposes a command, whether a client or a follower sent it; never when a committed
//! command is replicated, stored, read back or applied. Every node holds what any flag can let in:
//! those bounds are constants, here and in `machine`.
//! An empty key is refused: it would sort before everything and an empty `end` of a range means
//! "no bound", so it could be stored but never be bounded by; it is a mistake more often than a key.

use super::bytes::Malformed;
use super::codec::{CommandRef, OPS_MAX, OpRef, PAGE_ITEMS_MAX, WriteRef};
use super::types::{Op, Query, Write};
use std::fmt;

/// Longest key. Keys are copied into indexes, cursors and answers, so they stay small against a
/// page and a block; not a flag, because formats lean on it.
pub const MAX_KEY_BYTES: usize = 8 << 10;
/// Longest value unless `--max-value` says otherwise: one value must not hold up the log, a peer
/// link or a page for longer than some milliseconds.
pub const DEFAULT_MAX_VALUE_BYTES: usize = 1 << 20;
/// Largest write unless `--max-batch` says otherwise: a few of the largest values.
pub const DEFAULT_MAX_BATCH_BYTES: usize = 4 << 20;
/// Largest `--max-batch`: one entry must fit a frame and a segment of the log with room to spare.
pub const MAX_BATCH_BYTES_CEILING: usize = 8 << 20;
/// Most operations, and most conditions, of one write: bounds the time that one command keeps the
/// applier from the next one (about ten milliseconds).
pub const DEFAULT_MAX_BATCH_OPS: usize = 16 << 10;
/// Most keys of one page.
pub const DEFAULT_MAX_PAGE_KEYS: usize = 10_000;
/// Most bytes of keys and values of one page (but for its first key): what a reader copies while it
/// holds a cut, and what a connection must be able to buffer.
pub const DEFAULT_MAX_PAGE_BYTES: usize = 1 << 20;
/// Most work of one page for what it does not show, in deleted keys, older versions and 4 KiB of these: a page
/// that meets nothing else takes a millisecond or two.
pub const DEFAULT_MAX_PAGE_WORK: u64 = 1024;

/// Keys that a count passes at once, for each [`Limits::max_page_work`]: some milliseconds' work.
pub const COUNT_STEP_PAGES: u64 = 16;

/// Most that a command's byte form adds to a write as a whole: kind, stamp and two counts.
pub const WRITE_OVERHEAD_BYTES: usize = 1 + 3 * 10 + 2 * 3;
/// Most that it adds to one operation or condition: kind, lengths, a number.
pub const OP_OVERHEAD_BYTES: usize = 1 + 5 + 10;
/// A bound of a range may be longer than a key by this: the first key behind `k` is `k` and a zero.
const RANGE_BOUND_SLACK_BYTES: usize = 1;

const _: () = {
    assert!(
        WRITE_OVERHEAD_BYTES + OP_OVERHEAD_BYTES + MAX_KEY_BYTES + DEFAULT_MAX_VALUE_BYTES
            <= DEFAULT_MAX_BATCH_BYTES
    );
    assert!(DEFAULT_MAX_BATCH_BYTES <= MAX_BATCH_BYTES_CEILING);
    assert!(DEFAULT_MAX_BATCH_OPS <= OPS_MAX);
    assert!(DEFAULT_MAX_PAGE_KEYS <= PAGE_ITEMS_MAX);
    // Three bytes of a count, see WRITE_OVERHEAD_BYTES; five of a length, see OP_OVERHEAD_BYTES.
    assert!(OPS_MAX < 1 << 21 && MAX_BATCH_BYTES_CEILING < 1 << 35);
    assert!(MAX_KEY_BYTES * 2 <= DEFAULT_MAX_PAGE_BYTES);
};

/// What a node accepts and how much it answers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key, in bytes.
    pub max_key_bytes: usize,
    /// Longest value, in bytes.
    pub max_value_bytes: usize,
    /// Most operations, and most conditions, of one write.
    pub max_batch_ops: usize,
    /// Largest write, in bytes as [`write_bytes`] counts them.
    pub max_batch_bytes: usize,
    /// Most keys of one page.
    pub max_page_keys: usize,
    /// Most bytes of keys and values of one page; its first key is always there.
    pub max_page_bytes: usize,
    /// Most work that a page does for what it does not show: see [`super::View::scan_within`].
    pub max_page_work: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_key_bytes: MAX_KEY_BYTES,
            max_value_bytes: DEFAULT_MAX_VALUE_BYTES,
            max_batch_ops: DEFAULT_MAX_BATCH_OPS,
            max_batch_bytes: DEFAULT_MAX_BATCH_BYTES,
            max_page_keys: DEFAULT_MAX_PAGE_KEYS,
            max_page_bytes: DEFAULT_MAX_PAGE_BYTES,
            max_page_work: DEFAULT_MAX_PAGE_WORK,
        }
    }
}

impl Limits {
    /// The limits for what `--max-value` and `--max-batch` say, in bytes.
    pub fn new(max_value_bytes: usize, max_batch_bytes: usize) -> Result<Limits, BadLimits> {
        if max_batch_bytes > MAX_BATCH_BYTES_CEILING {
            return Err(BadLimits::BatchOverCeiling { bytes: max_batch_bytes });
        }
        let beside_value = WRITE_OVERHEAD_BYTES + OP_OVERHEAD_BYTES + MAX_KEY_BYTES;
        let least = max_value_bytes.saturating_add(beside_value);
        if max_batch_bytes < least {
            return Err(BadLimits::BatchBelowValue { bytes: max_batch_bytes, least });
        }
        Ok(Limits { max_value_bytes, max_batch_bytes, ..Limits::default() })
    }

    /// Whether a command, in its byte form, may be proposed.
    pub fn check_command(&self, bytes: &[u8]) -> Result<(), NotTaken> {
        match CommandRef::decode(bytes).map_err(NotTaken::Malformed)? {
            CommandRef::Write(write) => self.check_write(&write).map_err(NotTaken::TooLarge),
            CommandRef::OpenSession
            | CommandRef::CloseSession { .. }
            | CommandRef::ReleaseSession { .. } => Ok(()),
        }
    }

    fn check_write(&self, write: &WriteRef<'_>) -> Result<(), TooLarge> {
        let most = write.ops.len().max(write.conditions.len());
        if most > self.max_batch_ops {
            return Err(TooLarge::Ops { count: most, limit: self.max_batch_ops });
        }
        let mut bytes = WRITE_OVERHEAD_BYTES;
        for condition in &write.conditions {
            self.check_key(condition.key)?;
            bytes += OP_OVERHEAD_BYTES + condition.key.len();
        }
        for op in &write.ops {
            self.check_key(op.key())?;
            bytes += OP_OVERHEAD_BYTES + op.key().len();
            if let OpRef::Put { value, .. } = op {
                if value.len() > self.max_value_bytes {
                    return Err(TooLarge::Value {
                        bytes: value.len(),
                        limit: self.max_value_bytes,
                    });
                }
                bytes += value.len();
            }
        }
        if bytes > self.max_batch_bytes {
            return Err(TooLarge::Batch { bytes, limit: self.max_batch_bytes });
        }
        Ok(())
    }

    /// Whether one operation may be part of a write.
    pub fn check_op(&self, op: &Op) -> Result<(), TooLarge> {
        self.check_key(op.key())?;
        match op {
            Op::Put { value, .. } if value.len() > self.max_value_bytes => {
                Err(TooLarge::Value { bytes: value.len(), limit: self.max_value_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Whether a query may be answered.
    pub fn check_query(&self, query: &Query) -> Result<(), TooLarge> {
        match query {
            Query::Get { key } => self.check_key(key),
            Query::Range(range) => {
                let limit = self.max_key_bytes + RANGE_BOUND_SLACK_BYTES;
                let after = range.after.as_deref().unwrap_or_default();
                let bytes = range.start.len().max(range.end.len()).max(after.len());
                if bytes > limit { Err(TooLarge::Bound { bytes, limit }) } else { Ok(()) }
            }
        }
    }

    fn check_key(&self, key: &[u8]) -> Result<(), TooLarge> {
        match key.len() {
            0 => Err(TooLarge::EmptyKey),
            bytes if bytes > self.max_key_bytes => {
                Err(TooLarge::Key { bytes, limit: self.max_key_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// A write's size in bytes as limits count it: never less than its byte form has.
pub fn write_bytes(write: &Write) -> usize {
    let conditions = write.conditions.iter().map(|c| OP_OVERHEAD_BYTES + c.key.len());
    WRITE_OVERHEAD_BYTES + conditions.chain(write.ops.iter().map(op_bytes)).sum::<usize>()
}

/// The part that an operation has in [`write_bytes`].
pub fn op_bytes(op: &Op) -> usize {
    let value = if let Op::Put { value, .. } = op { value.len() } else { 0 };
    OP_OVERHEAD_BYTES + op.key().len() + value
}

/// Why a command is not proposed. Class: reject; surely not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// Its bytes are no command.
    Malformed(Malformed),
    /// It is over a limit.
    TooLarge(TooLarge),
}

/// A write or query that is not accepted. Class: reject; surely not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLarge {
    /// A key has no bytes: the one thing that is too small.
    EmptyKey,
    /// A key is too long.
    Key {
        /// Its length.
        bytes: usize,
        /// The most it may be.
        limit: usize,
    },
    /// A value is too long.
    Value {
        /// Its length.
        bytes: usize,
        /// The most it may be.
        limit: usize,
    },
    /// A write does too many things.
    Ops {
        /// Its operations or conditions, whichever are more.
        count: usize,
        /// The most they may be.
        limit: usize,
    },
    /// A write is too large as a whole.
    Batch {
        /// Its size.
        bytes: usize,
        /// The most it may be.
        limit: usize,
    },
    /// A bound of a range is longer than any key.
    Bound {
        /// Its length.
        bytes: usize,
        /// The most it may be.
        limit: usize,
    },
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TooLarge::EmptyKey => write!(f, "an empty key is not allowed; give it a name"),
            TooLarge::Key { bytes, limit } => write!(
                f,
                "key of {bytes} bytes is over the limit of {limit}; use a shorter name or a hash"
            ),
            TooLarge::Value { bytes, limit } => write!(
                f,
                "value of {bytes} bytes is over the limit of {limit} (--max-value); \
                 store it in pieces"
            ),
            TooLarge::Ops { count, limit } => write!(
                f,
                "batch of {count} operations is over the limit of {limit}; send several batches"
            ),
            TooLarge::Batch { bytes, limit } => write!(
                f,
                "batch of {bytes} bytes is over the limit of {limit} (--max-batch); \
                 send several batches"
            ),
            TooLarge::Bound { bytes, limit } => write!(
                f,
                "range bound of {bytes} bytes is over the limit of {limit}; no key is that long, \
                 cut the bound"
            ),
        }
    }
}

impl std::error::Error for TooLarge {}

/// Flags that do not fit each other. Class: stop, before anything is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLimits {
    /// The largest value does not fit the largest batch.
    BatchBelowValue {
        /// What `--max-batch` says.
        bytes: usize,
        /// The least it must be.
        least: usize,
    },
    /// No batch may be as large.
    BatchOverCeiling {
        /// What `--max-batch` says.
        bytes: usize,
    },
}

impl fmt::Display for BadLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadLimits::BatchBelowValue { bytes, least } => write!(
                f,
                "--max-batch of {bytes} bytes cannot hold one value of --max-value; \
                 it must be at least {least}"
            ),
            BadLimits::BatchOverCeiling { bytes } => write!(
                f,
                "--max-batch of {bytes} bytes is over the most there can be, \
                 {MAX_BATCH_BYTES_CEILING}"
            ),
        }
    }
}

impl std::error::Error for BadLimits {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::codec::encode_command;
    use crate::kv::types::{Command, Condition, Range, Test};

    fn put(key: usize, value: usize) -> Op {
        Op::Put { key: vec![b'k'; key], value: vec![b'v'; value] }
    }

    fn write(ops: Vec<Op>) -> Write {
        Write { ops, ..Write::default() }
    }

    /// What is said of a write in its byte form; it is never larger than it counts for.
    fn check(limits: &Limits, write: Write) -> Result<(), NotTaken> {
        let counted = write_bytes(&write);
        let mut bytes = Vec::new();
        encode_command(&Command::Write(write), &mut bytes);
        assert!(bytes.len() <= counted);
        limits.check_command(&bytes)
    }

    #[test]
    fn what_just_fits_is_taken_and_one_byte_more_is_named_with_a_way_out() {
        let limits = Limits::default();
        let value = limits.max_value_bytes;
        assert_eq!(check(&limits, write(vec![put(MAX_KEY_BYTES, value)])), Ok(()));
        let refusals = [
            (
                write(vec![put(1, value + 1)]),
                "value of 1048577 bytes is over the limit of 1048576 (--max-value); \
                 store it in pieces",
            ),
            (
                write(vec![put(MAX_KEY_BYTES + 1, 0)]),
                "key of 8193 bytes is over the limit of 8192; use a shorter name or a hash",
            ),
            (write(vec![put(0, 1)]), "an empty key is not allowed; give it a name"),
            (
                write(vec![put(1, 0); 16385]),
                "batch of 16385 operations is over the limit of 16384; send several batches",
            ),
            (
                write(vec![put(1, value); 4]),
                "batch of 4194409 bytes is over the limit of 4194304 (--max-batch); \
                 send several batches",
            ),
            (
                Write {
                    conditions: vec![Condition { key: Vec::new(), test: Test::Absent }],
                    ..Write::default()
                },
                "an empty key is not allowed; give it a name",
            ),
        ];
        for (write, message) in refusals {
            let Err(NotTaken::TooLarge(why)) = check(&limits, write) else { panic!("{message}") };
            assert_eq!(why.to_string(), message);
        }
    }

    #[test]
    fn bytes_that_are_no_command_are_not_taken() {
        let limits = Limits::default();
        for bytes in [&b""[..], b"none", &[0xff; 9]] {
            assert!(matches!(limits.check_command(bytes), Err(NotTaken::Malformed(_))));
        }
        for command in [Command::OpenSession, Command::CloseSession { session: 7 }] {
            let mut bytes = Vec::new();
            encode_command(&command, &mut bytes);
            assert_eq!(limits.check_command(&bytes), Ok(()));
            bytes.push(0);
            assert!(limits.check_command(&bytes).is_err(), "left-over bytes");
        }
    }

    #[test]
    fn a_range_may_be_bounded_just_behind_the_longest_key() {
        // A client that walks without a cursor goes on at the last key and a zero byte.
        let limits = Limits::default();
        let range = |len| Query::Range(Range { start: vec![0xff; len], ..Range::default() });
        assert_eq!(limits.check_query(&range(MAX_KEY_BYTES + 1)), Ok(()));
        assert!(limits.check_query(&range(MAX_KEY_BYTES + 2)).is_err());
        assert_eq!(limits.check_query(&Query::Get { key: Vec::new() }), Err(TooLarge::EmptyKey));
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        // A value that may be stored must fit the write that stores it.
        assert!(matches!(Limits::new(4 << 20, 4 << 20), Err(BadLimits::BatchBelowValue { .. })));
        assert!(matches!(
            Limits::new(1, MAX_BATCH_BYTES_CEILING + 1),
            Err(BadLimits::BatchOverCeiling { .. })
        ));
        let limits = Limits::new(6 << 20, 7 << 20).expect("they fit");
        let largest = write(vec![put(MAX_KEY_BYTES, 6 << 20)]);
        assert_eq!(check(&limits, largest), Ok(()));
    }
}

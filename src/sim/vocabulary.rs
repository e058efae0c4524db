//! Everything that a client may ask of the keys: writes of several operations under several conditions,
//! and pages of keys in either direction, with limits and cursors. The ledger explains the answers.

use super::dice::Dice;
use crate::kv::{Condition, Op, Page, Query, Range, Revision, Test, Write};
use crate::wire::client::{Call, Consistency};

/// Keys that these writes are about: few, so that they meet.
const KEYS: u64 = 12;
/// Most operations, and most conditions, of a write.
const OPS_MAX: u64 = 8;
const CONDITIONS_MAX: u64 = 3;

/// What a client remembers for its next calls.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Revisions that it was told.
    revisions: Vec<Revision>,
    /// A page that is not the last, and the range that it is of.
    page: Option<(Range, Vec<u8>)>,
}

impl Memory {
    /// It was told a revision.
    pub(super) fn revision(&mut self, revision: Revision) {
        if self.revisions.len() >= 8 {
            self.revisions.remove(0);
        }
        self.revisions.push(revision);
    }

    /// It was given a page.
    pub(super) fn page(&mut self, range: &Range, page: &Page) {
        page.items.first().into_iter().for_each(|item| self.revision(item.revision));
        self.page = page.cursor.clone().map(|cursor| (range.clone(), cursor));
    }
}

/// A write of several operations.
pub(super) fn write(dice: &mut Dice, memory: &Memory) -> Call {
    let ops = (0..dice.between(1, OPS_MAX)).map(|_| op(dice)).collect();
    let conditions = if dice.chance(1, 2) { dice.between(1, CONDITIONS_MAX) } else { 0 };
    let conditions = (0..conditions).map(|_| condition(dice, memory)).collect();
    Call::Write(Write { stamp: None, conditions, ops })
}

fn op(dice: &mut Dice) -> Op {
    let key = key(dice);
    match dice.below(6) {
        0 | 1 => Op::Put { key, value: value(dice) },
        2 => Op::Delete { key },
        3 | 4 => Op::Increment { key, by: by(dice) },
        _ => Op::Get { key },
    }
}

fn key(dice: &mut Dice) -> Vec<u8> {
    format!("many-{}", dice.below(KEYS)).into_bytes()
}

/// A number, mostly, so that increments find one; and some that are none, or the largest.
fn value(dice: &mut Dice) -> Vec<u8> {
    match dice.below(8) {
        0 => b"word".to_vec(),
        1 => i64::MAX.to_string().into_bytes(),
        2 => Vec::new(),
        _ => dice.below(1_000).to_string().into_bytes(),
    }
}

fn by(dice: &mut Dice) -> i64 {
    match dice.below(8) {
        0 => i64::MAX,
        1 => i64::MIN,
        _ => dice.below(20) as i64 - 10,
    }
}

fn condition(dice: &mut Dice, memory: &Memory) -> Condition {
    let test = match dice.below(4) {
        0 if !memory.revisions.is_empty() => Test::Revision(*dice.pick(&memory.revisions)),
        1 => Test::Absent,
        _ => Test::Present,
    };
    Condition { key: key(dice), test }
}

/// A page of keys, or the next one.
pub(super) fn page(dice: &mut Dice, memory: &mut Memory) -> Call {
    let next = memory.page.take().filter(|_| dice.chance(2, 3));
    let range = match next {
        Some((range, cursor)) => Range { after: Some(cursor), ..range },
        None => range(dice),
    };
    let fresh = dice.chance(4, 5);
    let consistency = if fresh { Consistency::Linearizable } else { Consistency::Stale };
    Call::Query { query: Query::Range(range), consistency }
}

fn range(dice: &mut Dice) -> Range {
    let (start, end) = (bound(dice), bound(dice));
    let ordered = end.is_empty() || start <= end || dice.chance(1, 10);
    let (start, end) = if ordered { (start, end) } else { (end, start) };
    Range {
        start,
        end,
        // A cursor may lie anywhere.
        after: dice.chance(1, 6).then(|| bound(dice)),
        limit: if dice.chance(1, 2) { dice.between(1, 6) as u32 } else { 0 },
        bytes: if dice.chance(1, 4) { dice.between(1, 600) as u32 } else { 0 },
        reverse: dice.chance(1, 2),
        keys_only: dice.chance(1, 4),
        count_only: dice.chance(1, 8),
    }
}

/// Somewhere among all keys, those included that no client waits for: over several tables.
fn bound(dice: &mut Dice) -> Vec<u8> {
    match dice.below(6) {
        0 => Vec::new(),
        1 => format!("many-{}", dice.below(KEYS)).into_bytes(),
        2 => format!("key-{}", dice.below(4)).into_bytes(),
        3 => b"many-\0".to_vec(),
        _ => format!("filler-{:03}", dice.below(300)).into_bytes(),
    }
}

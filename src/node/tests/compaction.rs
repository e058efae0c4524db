//! When the log's front goes, from numbers alone.

use super::{Compaction, Cut};

const LIMIT: u64 = 1600;
/// What must be written between two looks.
const STEP: u64 = LIMIT / super::LOOKS_PER_LIMIT;
const NOTHING: Cut = Cut { through: None, flush: false };

/// A log of so many bytes in front of a store that holds everything up to `flushed`.
fn of(bytes: u64, flushed: u64) -> Compaction {
    let mut it = Compaction::new(LIMIT);
    it.log_bytes(bytes);
    it.flushed(flushed);
    it
}

#[test]
fn nothing_goes_below_half_of_the_limit() {
    // However much could go: up to half of the limit the log is left alone, one byte more is looked at.
    assert_eq!(of(LIMIT / 2, 90).look(1, 90, 100), NOTHING);
    assert_eq!(of(LIMIT / 2 + 1, 90).look(1, 90, 100), Cut { through: Some(90), flush: true });
}

#[test]
fn a_lagging_member_pins_the_log_up_to_the_limit_and_no_further() {
    // A member that stopped at 40 keeps what it needs as long as the log is within its limit.
    assert_eq!(of(LIMIT, 90).look(1, 40, 90).through, Some(40));
    assert_eq!(of(LIMIT, 90).look(41, 40, 90).through, None, "that much went before");
    assert_eq!(of(LIMIT + 1, 90).look(41, 40, 90).through, Some(90));
}

#[test]
fn nothing_goes_that_the_store_does_not_hold() {
    // All members have everything, the log is far too long, and the store has flushed up to 10.
    for bytes in [LIMIT, 10 * LIMIT] {
        assert_eq!(of(bytes, 10).look(1, 500, 500), Cut { through: Some(10), flush: true });
        assert_eq!(of(bytes, 10).look(11, 500, 500), Cut { through: None, flush: true });
    }
}

#[test]
fn a_flush_is_asked_for_once_until_it_is_done() {
    // The log grows on while the store flushes; the second flush is asked for behind the first.
    let mut it = of(LIMIT / 2 + 1, 0);
    assert!(it.look(1, 0, 100).flush);
    for look in 1..=20 {
        it.log_bytes(LIMIT / 2 + 1 + look * STEP);
        assert!(!it.look(1, 0, 100 + look).flush, "look {look}");
    }
    it.flushed(99);
    assert!(!it.look(1, 0, 150).flush, "a flush that was under way already did not reach it");
    it.flushed(100);
    assert_eq!(it.look(1, 0, 150), Cut { through: Some(100), flush: true });
}

#[test]
fn no_flush_is_asked_for_when_the_store_holds_everything() {
    assert_eq!(of(2 * LIMIT, 100).look(1, 100, 100), Cut { through: Some(100), flush: false });
}

#[test]
fn it_looks_again_after_a_part_of_the_limit_or_a_flush() {
    // Between two looks lies a sixteenth of the limit, unless the store got further.
    let mut it = of(LIMIT, 10);
    assert_eq!(it.look(1, 5, 10).through, Some(5));
    it.log_bytes(LIMIT + STEP - 1);
    assert_eq!(it.look(6, 5, 10), NOTHING);
    it.log_bytes(LIMIT + STEP);
    assert_eq!(it.look(6, 5, 10).through, Some(10));
    assert_eq!(it.look(11, 5, 10), NOTHING);
    it.flushed(20);
    assert_eq!(it.look(11, 5, 20).through, Some(20));
    // What the store said once it does not take back.
    it.flushed(15);
    it.log_bytes(4 * LIMIT);
    assert_eq!(it.look(1, 5, 20).through, Some(20));
}

#[test]
fn a_cut_begins_to_count_anew() {
    // After a cut the next look comes a part of the limit later, counted from what is left.
    let mut it = of(2 * LIMIT, 10);
    assert_eq!(it.look(1, 10, 10).through, Some(10));
    it.cut(LIMIT);
    it.log_bytes(LIMIT + STEP - 1);
    assert_eq!(it.look(11, 10, 90), NOTHING);
    it.log_bytes(LIMIT + STEP);
    assert_eq!(it.look(11, 10, 90), Cut { through: None, flush: true });
    it.cut(LIMIT / 2);
    it.flushed(95);
    assert_eq!(it.look(11, 95, 95), NOTHING, "half of the limit is not looked at");
}

#[test]
fn a_log_that_a_snapshot_replaced_counts_from_there() {
    // It was at twice its limit when a snapshot took its place; it is not left alone until then.
    let mut it = of(2 * LIMIT, 10);
    it.look(1, 10, 10);
    it.log_bytes(0);
    it.log_bytes(LIMIT / 2 + STEP);
    assert!(it.look(11, 10, 90).flush);
}

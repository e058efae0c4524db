//! Pages: against a filter of a sorted list, and walks by cursor in both directions.

use super::lsm::open_lsm;
use super::machine::{SMALL, apply_one, open, put, write};
use crate::kv::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Short keys of few letters, zero and 0xff among them: neighbours, prefixes, both ends.
fn key() -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(&[0u8, b'a', b'b', 0xff][..]), 0..4)
}

fn rows() -> impl Strategy<Value = Rows> {
    btree_map(key(), vec(any::<u8>(), 0..12), 0..40)
}

fn range() -> impl Strategy<Value = Range> {
    let bounds = (key(), prop_oneof![Just(Vec::new()), key()], option::of(key()));
    let sizes = (prop_oneof![Just(0), 1u32..8], prop_oneof![Just(0), 1u32..60]);
    (bounds, sizes, any::<(bool, bool)>(), prop::bool::weighted(0.2)).prop_map(
        |((start, end, after), (limit, bytes), (reverse, keys_only), count_only)| Range {
            start,
            end,
            after,
            limit,
            bytes,
            reverse,
            keys_only,
            count_only,
        },
    )
}

fn small_limits() -> Limits {
    Limits { max_page_keys: 5, max_page_bytes: 40, ..Limits::default() }
}

/// Writes the rows, one log entry each.
fn fill<S: Store>(mut machine: Machine<S>, rows: &Rows) -> Machine<S> {
    for (key, value) in rows {
        let op = Op::Put { key: key.clone(), value: value.clone() };
        apply_one(&mut machine, write(vec![op]));
    }
    machine
}

fn machine_of(rows: &Rows) -> Machine<MemoryStore> {
    fill(open(SMALL), rows)
}

fn page_of<S: Store>(machine: &Machine<S>, range: &Range, limits: &Limits) -> Page {
    let reader = machine.reader();
    let reply = answer(&reader.view(), &Query::Range(range.clone()), limits);
    match reply.expect("memory does not fail") {
        Reply::Page(page) => page,
        other => panic!("{other:?}"),
    }
}

/// Everything the range asks for, without regard to sizes.
fn wanted(rows: &Rows, range: &Range) -> Vec<Item> {
    let mut items: Vec<Item> = (1..)
        .zip(rows)
        .map(|(revision, (key, value))| Item { key: key.clone(), value: value.clone(), revision })
        .filter(|item| item.key >= range.start)
        .filter(|item| range.end.is_empty() || item.key < range.end)
        .collect();
    if range.reverse {
        items.reverse();
    }
    if let Some(after) = &range.after {
        items.retain(|item| if range.reverse { item.key < *after } else { item.key > *after });
    }
    if range.keys_only {
        items.iter_mut().for_each(|item| item.value.clear());
    }
    items
}

/// How many of these fit one page.
fn fitting(items: &[Item], range: &Range, limits: &Limits) -> usize {
    let least = |asked: u32, own: usize| if asked == 0 { own } else { own.min(asked as usize) };
    let keys = least(range.limit, limits.max_page_keys);
    let bytes = least(range.bytes, limits.max_page_bytes);
    let fits = |count: usize| {
        let size: usize = items[..count].iter().map(|i| i.key.len() + i.value.len()).sum();
        count <= 1 || (count <= keys && size <= bytes)
    };
    (0..=items.len()).rev().find(|&count| fits(count)).unwrap_or(0)
}

proptest! {
    #[test]
    fn a_page_is_the_front_of_the_filtered_list(rows in rows(), range in range()) {
        let machine = machine_of(&rows);
        let page = page_of(&machine, &range, &small_limits());
        let large = fill(open_lsm(), &rows);
        prop_assert_eq!(&page, &page_of(&large, &range, &small_limits()));
        let mut items = wanted(&rows, &range);
        prop_assert_eq!(page.revision, machine.applied());
        if range.count_only {
            prop_assert_eq!(page.count, items.len() as u64);
            prop_assert_eq!((page.items, page.cursor), (Vec::new(), None));
        } else {
            let fitting = fitting(&items, &range, &small_limits());
            let more = fitting < items.len();
            items.truncate(fitting);
            let cursor = items.last().filter(|_| more).map(|item| item.key.clone());
            prop_assert_eq!(page.cursor, cursor);
            prop_assert_eq!(page.count, items.len() as u64);
            prop_assert_eq!(page.items, items);
        }
    }

    #[test]
    fn a_walk_by_cursor_shows_every_key_once(rows in rows(), mut range in range()) {
        range.count_only = false;
        let machine = machine_of(&rows);
        let all = wanted(&rows, &range);
        let mut seen = Vec::new();
        loop {
            let page = page_of(&machine, &range, &small_limits());
            seen.extend(page.items);
            match page.cursor {
                Some(cursor) => range.after = Some(cursor),
                None => break,
            }
            prop_assert!(seen.len() <= all.len());
        }
        prop_assert_eq!(seen, all);
    }
}

/// However small its steps are, a count is what it is at once, in both directions and behind a cursor; and of the cut that
/// it began with.
#[test]
fn a_count_in_steps_is_the_count() {
    let mut machine = open(SMALL);
    let keys: Vec<Op> = (0..100).map(|n| put(&format!("k{n:02}"), b"v")).collect();
    apply_one(&mut machine, write(keys));
    let reader = machine.reader();
    for (start, end, after, reverse) in [
        ("", "", None, false),
        ("", "", None, true),
        ("k10", "k55", None, false),
        ("k10", "k55", Some("k20"), false),
        ("k10", "k55", Some("k20"), true),
        ("x", "", None, false),
    ] {
        let (start, end) = (start.into(), end.into());
        let after = after.map(|after: &str| after.into());
        let range = Range { start, end, after, reverse, count_only: true, ..Range::default() };
        let query = Query::Range(range.clone());
        let Ok(Reply::Page(whole)) = answer(&reader.view(), &query, &Limits::default()) else {
            panic!()
        };
        for work in [0, 1, 7, 99, 100, 101] {
            let mut counting = query::Counting::new(reader.view(), range.clone());
            let mut steps = 1;
            let page = loop {
                match counting.step(work).unwrap() {
                    Some(page) => break page,
                    None => steps += 1,
                }
            };
            assert_eq!(page, whole, "{range:?}, {work} at a time");
            assert!(steps >= whole.count / work.max(1), "{steps} steps of {work}");
        }
    }
}

#[test]
fn a_value_larger_than_the_page_is_a_page_of_its_own() {
    // The first key alone is over the byte bound: a page without it would never get on.
    let rows = Rows::from([(b"a".to_vec(), vec![0; 100]), (b"b".to_vec(), vec![])]);
    let machine = machine_of(&rows);
    let page = page_of(&machine, &Range { bytes: 1, ..Range::default() }, &Limits::default());
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.cursor, Some(b"a".to_vec()));
}

#[test]
fn pages_over_deleted_keys_end_early_and_a_walk_gets_on() {
    // Three of two hundred keys are left. A page passes over ten deleted ones at most; some are empty, and the cursor
    // of each is a key that is gone. A count is of everything.
    let mut machine = open_lsm();
    let key = |number: usize| format!("{number:03}").into_bytes();
    for number in 0..200 {
        apply_one(&mut machine, write(vec![Op::Put { key: key(number), value: b"v".to_vec() }]));
    }
    let left = [0, 117, 199];
    for number in (0..200).filter(|number| !left.contains(number)) {
        apply_one(&mut machine, write(vec![Op::Delete { key: key(number) }]));
    }
    let limits = Limits { max_page_work: 10, ..Limits::default() };
    for reverse in [false, true] {
        let mut range = Range { reverse, limit: 1, ..Range::default() };
        let (mut seen, mut pages, mut empty) = (Vec::new(), 0, 0);
        loop {
            let page = page_of(&machine, &range, &limits);
            assert!(page.items.len() <= 1 && page.count == page.items.len() as u64);
            pages += 1;
            empty += usize::from(page.items.is_empty());
            seen.extend(page.items.into_iter().map(|item| item.key));
            match page.cursor {
                Some(cursor) => range.after = Some(cursor),
                None => break,
            }
        }
        if reverse {
            seen.reverse();
        }
        assert_eq!(seen, left.map(key));
        assert!(empty > 10 && pages < 2 * 200 / 10 + 5, "{pages} pages, {empty} of them empty");
    }
    let count = Range { count_only: true, ..Range::default() };
    let page = page_of(&machine, &count, &limits);
    assert_eq!((page.count, page.cursor), (3, None));
}

#[test]
fn a_get_finds_the_value_with_its_revision_or_nothing() {
    // The revision is that of the last write of this key, not that of the store.
    let mut machine = open(SMALL);
    apply_one(&mut machine, write(vec![put("city", b"Oslo")]));
    apply_one(&mut machine, write(vec![put("other", b"x")]));
    let reader = machine.reader();
    let get = |key: &str| {
        answer(&reader.view(), &Query::Get { key: key.into() }, &Limits::default())
            .expect("memory does not fail")
    };
    let oslo = Found { value: b"Oslo".to_vec(), revision: 1 };
    assert_eq!(get("city"), Reply::Value(Some(oslo)));
    assert_eq!(get("cit"), Reply::Value(None));
}

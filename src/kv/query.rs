//! Reads: one key, or a page of keys in order, from one cut.
//!
//! A page is bounded by the query's own limits and by the node's, whichever is less. It also ends when it has passed
//! over much that is deleted, so that it costs a bounded amount of work whatever it meets; it then may be empty. Its
//! cursor is the key that it has come to, there or not, so that a walk by cursor always gets on. A count is no page:
//! it is of one cut, and costs what it counts; so it is done in steps ([`Counting`]), between which whoever asked may be
//! looked at. Whether a cut is fresh enough to answer
//! from (the read index) is decided before a query comes here.

use super::limits::Limits;
use super::store::{Scan, Space, StoreError, View};
use super::types::{Item, Page, Query, Range, Reply};
use std::ops::{Bound, ControlFlow};

/// Answers a query from a cut.
pub fn answer(view: &impl View, query: &Query, limits: &Limits) -> Result<Reply, StoreError> {
    Ok(match query {
        Query::Get { key } => Reply::Value(view.get(Space::User, key)?),
        Query::Range(range) if range.count_only => Reply::Page(count(view, range)?),
        Query::Range(range) => Reply::Page(page(view, range, limits)?),
    })
}

/// The keys a range asks for: a cursor moves one of its bounds, and a cursor that lies outside of
/// the range moves it to nothing or not at all.
fn scan_of(range: &Range) -> Scan<'_> {
    let mut lower = Bound::Included(range.start.as_slice());
    let mut upper = match range.end.as_slice() {
        [] => Bound::Unbounded,
        end => Bound::Excluded(end),
    };
    match range.after.as_deref() {
        Some(after) if range.reverse => {
            let inside = range.end.is_empty() || after < range.end.as_slice();
            upper = if inside { Bound::Excluded(after) } else { upper };
        }
        Some(after) if after >= range.start.as_slice() => lower = Bound::Excluded(after),
        _ => {}
    }
    Scan { space: Space::User, lower, upper, reverse: range.reverse }
}

fn count(view: &impl View, range: &Range) -> Result<Page, StoreError> {
    let mut page = Page::default();
    loop {
        if let Some(counted) = count_on(view, range, u64::MAX, &mut page)? {
            return Ok(counted);
        }
    }
}

/// Goes on with a count by so many keys, or as much work for what is not counted; the page when it is complete.
fn count_on(
    view: &impl View,
    range: &Range,
    work_max: u64,
    page: &mut Page,
) -> Result<Option<Page>, StoreError> {
    let after = page.cursor.take().or_else(|| range.after.clone());
    let rest = Range { start: range.start.clone(), end: range.end.clone(), after, ..*range };
    let mut left = work_max;
    let mut last = None;
    let passed = view.scan_within(&scan_of(&rest), work_max, &mut |row| {
        page.count += 1;
        left -= 1;
        if left == 0 {
            last = Some(row.key.to_vec());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    page.cursor = last.or(passed);
    if page.cursor.is_some() {
        return Ok(None);
    }
    page.revision = view.applied();
    Ok(Some(std::mem::take(page)))
}

/// A count that is under way, of one cut.
#[derive(Debug)]
pub struct Counting<V> {
    view: V,
    range: Range,
    /// What is counted so far, and the key behind which it goes on.
    page: Page,
}

impl<V: View> Counting<V> {
    /// Counts what lies in a range in this cut.
    pub fn new(view: V, range: Range) -> Counting<V> {
        Counting { view, range, page: Page::default() }
    }

    /// Keys that were counted so far.
    pub fn counted(&self) -> u64 {
        self.page.count
    }

    /// Goes on by so many keys, at least one, or as much work for what is not counted (as [`View::scan_within`]). The
    /// answer when it is complete.
    ///
    /// # Errors
    /// The store's.
    pub fn step(&mut self, work_max: u64) -> Result<Option<Page>, StoreError> {
        count_on(&self.view, &self.range, work_max.max(1), &mut self.page)
    }
}

fn page(view: &impl View, range: &Range, limits: &Limits) -> Result<Page, StoreError> {
    let bound = |asked: u32, own: usize| match asked {
        0 => own,
        asked => own.min(asked as usize),
    };
    let keys_max = bound(range.limit, limits.max_page_keys).max(1);
    let bytes_max = bound(range.bytes, limits.max_page_bytes);
    let mut items: Vec<Item> = Vec::new();
    let mut bytes = 0;
    let mut more = false;
    let passed = view.scan_within(&scan_of(range), limits.max_page_work, &mut |row| {
        let value = if range.keys_only { &[][..] } else { row.value };
        let size = row.key.len() + value.len();
        if items.len() == keys_max || (!items.is_empty() && bytes + size > bytes_max) {
            more = true;
            return ControlFlow::Break(());
        }
        bytes += size;
        items.push(Item { key: row.key.to_vec(), value: value.to_vec(), revision: row.revision });
        ControlFlow::Continue(())
    })?;
    let cursor = passed.or_else(|| items.last().filter(|_| more).map(|item| item.key.clone()));
    Ok(Page { count: items.len() as u64, cursor, revision: view.applied(), items })
}

//! A quick look for the common violations, before the search.
//!
//! A value that only one write can have stored was held from the first moment at which it must have
//! been there (an answer to the write or to a read of it) to the last (the start of a read): its
//! *zone*. Nothing else can have been there meanwhile. In the manner of Gibbons and Korach, who
//! show that for plain registers little more needs to hold. What passes is searched.

use super::{Answer, Call, End, Op};
use std::collections::BTreeMap;

/// A value's calls.
#[derive(Default)]
struct Cluster {
    writers: Vec<usize>,
    readers: Vec<usize>,
}

/// The value was held all the time between two moments.
struct Zone {
    first: u64,
    last: u64,
    /// The write, and the calls with those moments.
    shown_by: [usize; 3],
}

/// Some calls of one key that contradict one another, as positions; none does not say that there are
/// no others.
pub(super) fn contradiction(calls: &[&Call]) -> Option<Vec<usize>> {
    let mut clusters: BTreeMap<&[u8], Cluster> = BTreeMap::new();
    for (at, call) in calls.iter().enumerate() {
        match (&call.op, &call.end) {
            // Sums are values too, which any increment may bring about.
            (Op::Increment { .. }, _) => return None,
            (_, End::Answered { answer: Answer::Found(Some(seen)), .. }) => {
                clusters.entry(&seen.value).or_default().readers.push(at);
            }
            (_, End::Answered { answer: Answer::Mismatch { .. }, .. }) => {}
            (Op::Put { value } | Op::Cas { value, .. }, _) => {
                clusters.entry(value).or_default().writers.push(at);
            }
            (Op::Get | Op::Delete, _) => {}
        }
    }
    let mut zones = Vec::new();
    for cluster in clusters.values() {
        let &[writer] = &cluster.writers[..] else { continue };
        let too_early =
            |&&read: &&usize| calls[read].returned().is_some_and(|at| at < calls[writer].called);
        if let Some(&read) = cluster.readers.iter().find(too_early) {
            return Some(vec![writer, read]);
        }
        let all = || cluster.readers.iter().copied().chain([writer]);
        let end = |call: usize| calls[call].returned().unwrap_or(u64::MAX);
        let begins = all().min_by_key(|&call| end(call)).unwrap_or(writer);
        let ends = all().max_by_key(|&call| calls[call].called).unwrap_or(writer);
        let (first, last) = (end(begins), calls[ends].called);
        if first < last {
            zones.push(Zone { first, last, shown_by: [writer, begins, ends] });
        }
    }
    zones.sort_by_key(|zone| zone.first);
    // As long as no two zones overlap, the one in front is the one that ends last.
    if let Some(two) = zones.windows(2).find(|two| two[1].first < two[0].last) {
        return Some(two.iter().flat_map(|zone| zone.shown_by).collect());
    }
    calls.iter().enumerate().find_map(|(at, call)| {
        let returned = call.returned()?;
        let zone = &zones[zones.partition_point(|zone| zone.first < call.called).checked_sub(1)?];
        let inside = returned < zone.last && elsewhere(call) && !zone.shown_by.contains(&at);
        inside.then(|| zone.shown_by.into_iter().chain([at]).collect())
    })
}

/// Whether, when the call took effect, the key did not hold the value of a zone that the call is no
/// part of: it wrote another value, or found none.
fn elsewhere(call: &Call) -> bool {
    match &call.end {
        End::Answered { answer, .. } => match answer {
            Answer::Found(found) => found.is_none(),
            Answer::Written { .. } | Answer::Deleted { .. } => true,
            Answer::Number { .. } | Answer::Mismatch { .. } => false,
        },
        End::Open | End::Refused => false,
    }
}

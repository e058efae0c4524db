//! Everything of a node that lies on its disk, looked through offline: each file by itself, and
//! whether they belong together.
//!
//! The parts find what is wrong with them (`wal::inspect`, `kv::store_inspect`); here are the
//! references between them: one identity in all files, a store and a log that meet, terms and
//! configurations that say the same. Nothing is written, and nothing that a start would do is done;
//! what it would put right by itself is said to be so. Whoever calls holds the directory's lock.

use super::applier::mark_of;
use super::boot::{first_configuration, was_told};
use crate::env::{Disk, Findings};
use crate::kv::{
    CommandRef, INCOMING_DIR, LsmView, STORE_DIR, View, place, session_count, store_inspect,
};
use crate::raft::{Payload, SnapshotMark};
use crate::wal::inspect::{self as log_inspect, FileState};
use crate::wal::{Identity, IdentityCopy, LOG_DIR, Recovered, holds_log};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Segments of the log.
    pub segments: u64,
    /// Batches in them.
    pub batches: u64,
    /// Entries in them, replaced ones included.
    pub log_entries: u64,
    /// Bytes of the segments that carry something.
    pub log_bytes: u64,
    /// First and last index of the log; none when it cannot be told.
    pub log_range: Option<(u64, u64)>,
    /// Tables of the store, their blocks, entries, tombstones, bytes.
    pub store: store_inspect::Walked,
    /// Every write up to this index is in the store; none when it cannot be told.
    pub applied: Option<u64>,
    /// Client sessions in the store.
    pub sessions: u64,
}

/// What looking through a data directory came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, and what is worth a word.
    pub findings: Findings,
    /// What was looked at.
    pub totals: Totals,
}

impl Report {
    /// Nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.findings.problem_count() == 0
    }
}

/// Looks through the data directory `data`: every checksum, and every reference from file to file.
/// No byte is changed. `progress` hears how many tables, and bytes of them, are done.
pub fn verify(disk: &Arc<dyn Disk>, data: &Path, progress: &mut dyn FnMut(u64, u64)) -> Report {
    let mut report = Report::default();
    let Report { findings, totals } = &mut report;
    let Some(identity) = check_identity(disk.as_ref(), data, findings) else {
        return report;
    };
    let recovered = verify_log(disk.as_ref(), data, &identity, findings, totals);
    let dir = data.join(STORE_DIR);
    let (own, must_exist) = (identity.identity, identity.created);
    let store = store_inspect::inspect(disk, &dir, own, must_exist, findings);
    if let Some(store) = store {
        totals.applied = Some(store.applied);
        totals.store = store.walk(disk, findings, progress);
        if totals.store.revision_max > store.applied {
            let what = format!(
                "a table holds revision {}, but the manifest says that they reach to {}",
                totals.store.revision_max, store.applied
            );
            findings.problem(&dir, 0, what);
        }
        match LsmView::of(&store, disk) {
            Ok(view) => {
                match session_count(&view) {
                    Ok(count) => totals.sessions = count as u64,
                    Err(e) => e.found(&dir, findings),
                }
                match mark_of(&view, &first_configuration(&identity)) {
                    Ok(mark) => {
                        let together = Together { data, identity: &identity, mark, view: &view };
                        together.check(recovered.as_ref(), findings);
                    }
                    Err(e) => e.found(&dir, findings),
                }
            }
            Err(e) => e.found(&dir, findings),
        }
    }
    note_incoming(disk.as_ref(), data, findings);
    report
}

/// Looks at both copies of the identity, and gives the one that counts. None when there is none, or
/// none that can be read.
pub fn check_identity(disk: &dyn Disk, data: &Path, findings: &mut Findings) -> Option<Identity> {
    let copies = Identity::copies(disk, data).map(|(path, copy)| match copy {
        Ok(copy) => (path, copy),
        Err(e) => {
            findings.problem(&path, 0, e.to_string());
            (path, IdentityCopy::Bad("it cannot be read"))
        }
    });
    let [(path_a, a), (path_b, b)] = copies;
    const OTHER: &str = "the other copy is whole, and the next start writes this one again";
    match (a, b) {
        (IdentityCopy::Good(a, first), IdentityCopy::Good(b, second)) => {
            if a == b && first != second {
                let what = "both copies have the same number and say different things";
                findings.problem(&path_b, 0, what);
            } else if a != b {
                let older = if a < b { &path_a } else { &path_b };
                let what = "the copy is older than the other: a write was cut off between the two, \
                            and the next start copies the newer one";
                findings.note(older, 0, what);
            }
            Some(if a >= b { first } else { second })
        }
        (IdentityCopy::Good(_, identity), IdentityCopy::Absent) if !identity.created => {
            findings.note(&path_b, 0, "the file is missing: the very first start was cut off");
            Some(identity)
        }
        (IdentityCopy::Good(_, identity), other) => {
            findings.healed(&path_b, 0, format!("{}; {OTHER}", why(&other)));
            Some(identity)
        }
        (other, IdentityCopy::Good(_, identity)) => {
            findings.healed(&path_a, 0, format!("{}; {OTHER}", why(&other)));
            Some(identity)
        }
        (a, IdentityCopy::Absent) => {
            let what = "without it log and store cannot be checked";
            match holds_log(disk, data) {
                Ok(true) => {
                    let what = format!("{}, and {} is missing; {what}", why(&a), path_b.display());
                    findings.problem(&path_a, 0, what);
                }
                Ok(false) => findings.note(&path_a, 0, "the very first start was cut off"),
                Err(e) => findings.problem(data, 0, e.to_string()),
            }
            None
        }
        (a, b) => {
            let what = "without an identity log and store cannot be checked";
            findings.problem(&path_a, 0, format!("{}; {what}", why(&a)));
            findings.problem(&path_b, 0, format!("{}; {what}", why(&b)));
            None
        }
    }
}

fn why(copy: &IdentityCopy) -> String {
    match copy {
        IdentityCopy::Absent => "the file is missing".to_owned(),
        IdentityCopy::Bad(what) => format!("it is not what was written ({what})"),
        IdentityCopy::Good(..) => "it can be read".to_owned(),
    }
}

fn verify_log(
    disk: &dyn Disk,
    data: &Path,
    identity: &Identity,
    findings: &mut Findings,
    totals: &mut Totals,
) -> Option<Recovered> {
    let dir = data.join(LOG_DIR);
    let mut visit = |placed: log_inspect::Placed<'_>, findings: &mut Findings| {
        let entry = &placed.entry;
        match &entry.payload {
            Payload::Command(bytes) => {
                if let Err(e) = CommandRef::decode(bytes) {
                    let what = format!(
                        "the command of entry {} does not decode ({e}); applying it changes nothing",
                        entry.index
                    );
                    findings.note(placed.path, placed.offset, what);
                }
            }
            Payload::Noop | Payload::Configuration(_) => {}
        }
    };
    let (own, must_exist) = (identity.identity, identity.created);
    let log = log_inspect::inspect(disk, &dir, own, must_exist, findings, &mut visit);
    for file in log.files.iter().filter(|file| file.state == FileState::Live) {
        totals.segments += 1;
        totals.batches += file.batches;
        totals.log_entries += file.entries;
        totals.log_bytes += file.used;
    }
    let recovered = log.recovered?;
    totals.log_range = Some((recovered.first_index, recovered.last_index));
    let last_term = recovered.terms.last().map_or(recovered.prev_term, |run| run.1);
    if recovered.hard_state.term < last_term {
        let what = format!(
            "the log's last entry is of term {last_term}, but the hard state of term {}",
            recovered.hard_state.term
        );
        findings.problem(&dir, 0, what);
    }
    Some(recovered)
}

/// A store that can be read, beside the rest.
struct Together<'a, V> {
    data: &'a Path,
    identity: &'a Identity,
    mark: SnapshotMark,
    view: &'a V,
}

impl<V: View> Together<'_, V> {
    /// Whether log and store belong together (see `boot`).
    fn check(&self, recovered: Option<&Recovered>, findings: &mut Findings) {
        let SnapshotMark { index, term, configuration } = &self.mark;
        let (index, term) = (*index, *term);
        let dir = self.data.join(STORE_DIR);
        if configuration.cluster != self.identity.cluster {
            let what = format!(
                "the store's configuration is of cluster {:016x}, the identity of {:016x}",
                configuration.cluster, self.identity.cluster
            );
            findings.note(&dir, 0, what);
        }
        let installed = match place(self.view) {
            Ok(place) => place.installed,
            Err(e) => return e.found(&dir, findings),
        };
        let Some(recovered) = recovered else { return };
        if installed && !was_told(recovered, index, term) {
            let what = format!(
                "a snapshot up to index {index} was installed and the log was not told yet; the \
                 next start tells it"
            );
            return findings.note(&dir, 0, what);
        }
        let (first, last) = (recovered.first_index, recovered.last_index);
        if index + 1 < first || index > last {
            let what = format!(
                "the store holds everything up to index {index}, but the log beside it goes from \
                 {first} to {last}: one of them is an older copy or lost files"
            );
            return findings.problem(&dir, 0, what);
        }
        if let Some(logged) = recovered.term(index)
            && logged != term
        {
            let what = format!(
                "the store says that entry {index} is of term {term}, the log says {logged}"
            );
            findings.problem(&dir, 0, what);
        }
    }
}

/// A snapshot that is being fetched is no part of the node yet.
fn note_incoming(disk: &dyn Disk, data: &Path, findings: &mut Findings) {
    let dir = data.join(INCOMING_DIR);
    match disk.list(&dir) {
        Ok(names) if names.is_empty() => {}
        Ok(names) => {
            let what = format!(
                "{} files of a snapshot that was being fetched; nothing rests on them",
                names.len()
            );
            findings.note(&dir, 0, what);
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => findings.problem(&dir, 0, format!("cannot list it: {e}")),
    }
}

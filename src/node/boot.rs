//! From what is on disk to what the components begin with.
//!
//! The order matters for crashes during the very first start: the identity is stored, then log and
//! store are made, then the identity says that they were made. From then on a missing one is damage.
//!
//! A node that begins from a backup takes that into its store in between; the identity says that it
//! was to. What follows is as after a snapshot.
//!
//! The store remembers how far it holds everything durably; the log is replayed from there. So the
//! log must reach back to that index, and reach that index: only what is durable in the log is
//! applied (see `raft/follower.rs`), hence the store is never ahead of it. One exception: a crash
//! right after a snapshot was installed leaves a store that says so and a log that was not told
//! yet; then the log begins anew here.

use super::applier::mark_of;
use crate::env::Disk;
use crate::kv::{
    Backup, INCOMING_DIR, LsmStore, Reader as _, STORE_DIR, Store as _, StoreError, StoreOptions,
    StoreWorker, View, place,
};
use crate::raft::codec;
use crate::raft::{
    Configuration, HardState, Index, Persist, Restored, RestoredLog, Term, is_near_the_last_term,
};
use crate::wal::{self, Identity, LOG_DIR, Recovered, Wal, WalError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything of a node that lies on its disk.
#[derive(Debug)]
pub struct Opened {
    /// The log, for its writer.
    pub wal: Wal,
    /// What the log held.
    pub recovered: Recovered,
    /// The store, for the applier.
    pub store: LsmStore,
    /// Does the store's background work.
    pub worker: StoreWorker,
    /// A snapshot that a crash had kept from the log: what the log was told now.
    pub completed: Option<Persist>,
}

/// Why a node cannot begin with what is on its disk. Nothing was cut, skipped or made up. Class:
/// stop.
#[derive(Debug)]
pub enum BootError {
    /// The log or the identity cannot be used as it is.
    Log(WalError),
    /// The store cannot be used as it is.
    Store(StoreError),
    /// The store holds everything up to `applied`, and the log that should go on from there does
    /// not: one of the two is an older copy, or lost files.
    Apart {
        /// The data directory.
        data: PathBuf,
        /// The store's applied index.
        applied: Index,
        /// First index of the log.
        first: Index,
        /// Last index of the log.
        last: Index,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootError::Log(e) => e.fmt(f),
            BootError::Store(e @ StoreError::Damaged { .. }) => {
                write!(f, "{e}; {}", wal::WAY_OUT)
            }
            BootError::Store(e) => e.fmt(f),
            BootError::Apart { data, applied, first, last } => write!(
                f,
                "the store in {} holds everything up to index {applied}, but the log beside it goes \
                 from {first} to {last}: one of them is an older copy or lost files; {}",
                data.display(),
                wal::WAY_OUT
            ),
        }
    }
}

impl std::error::Error for BootError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BootError::Log(e) => Some(e),
            BootError::Store(e) => Some(e),
            BootError::Apart { .. } => None,
        }
    }
}

impl From<WalError> for BootError {
    fn from(e: WalError) -> BootError {
        BootError::Log(e)
    }
}

impl From<StoreError> for BootError {
    fn from(e: StoreError) -> BootError {
        BootError::Store(e)
    }
}

/// A part of [`open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The log was read and checked.
    Log,
    /// The store's manifest was read, and its tables were looked at.
    Store,
    /// A backup was taken into the store.
    Restore,
}

/// What [`open`] works with.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The data directory.
    pub data: &'a Path,
    /// Who the node is.
    pub identity: &'a Identity,
    /// Length of new segments of the log, bytes.
    pub segment_bytes: u64,
    /// How the store is opened; `identity` and `must_exist` are set here.
    pub store: StoreOptions,
    /// What a new node begins from; checked already.
    pub restore: Option<&'a Backup>,
}

impl Opened {
    /// What a person is told of it, warnings (`true`) among it; `parts` are the times that each part took, `took_us` all
    /// of it, in microseconds.
    pub fn lines(&self, parts: &[(Part, u64)], took_us: u64) -> Vec<(bool, String)> {
        let Opened { recovered, store, .. } = self;
        let mut lines = Vec::new();
        if let Some(cut) = &recovered.cut {
            let line = format!(
                "cut the tail of the log: a batch of {} bytes at offset {} of {} was not completely \
                 written, or is damaged",
                cut.bytes,
                cut.offset,
                cut.path.display()
            );
            lines.push((true, line));
        }
        if is_near_the_last_term(recovered.hard_state.term) {
            let line = format!(
                "this node was taken to term {}, and no other node can follow it there: among several nodes nobody will \
                 be elected; make a new cluster of its data (docs/operations.md, \"A term that cannot grow\")",
                recovered.hard_state.term
            );
            lines.push((true, line));
        }
        let name = |part| match part {
            Part::Log => "log",
            Part::Store => "store",
            Part::Restore => "restore",
        };
        let part = |(part, us): &(Part, u64)| format!(" {}_ms={}", name(*part), us / 1000);
        let line = format!(
            "recovered log first={} last={} term={} segments={} bytes={} store applied={} replay={} ms={}{}",
            recovered.first_index,
            recovered.last_index,
            recovered.hard_state.term,
            recovered.segments,
            recovered.bytes,
            store.applied(),
            recovered.last_index - store.applied(),
            took_us / 1000,
            parts.iter().map(part).collect::<String>()
        );
        lines.push((false, line));
        lines
    }
}

/// Opens log and store of a node in its data directory, or makes them at the very first start.
/// Says when a part is done, for whoever takes the time.
///
/// # Errors
/// Those of [`Wal::open`], [`LsmStore::open`], [`LsmStore::restore`] and [`Identity::store`], and
/// [`BootError::Apart`].
pub fn open(
    disk: &Arc<dyn Disk>,
    plan: Plan<'_>,
    mut done: impl FnMut(Part),
) -> Result<Opened, BootError> {
    let Plan { data, identity, segment_bytes, store, restore } = plan;
    let (own, must_exist) = (identity.identity, identity.created);
    let log = wal::Options { segment_bytes, identity: own, must_exist };
    let (mut wal, mut recovered) = Wal::open(Arc::clone(disk), &data.join(LOG_DIR), log)?;
    done(Part::Log);
    let dir = data.join(STORE_DIR);
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| StoreError::Io { path, offset: 0, source }
    };
    if !must_exist {
        disk.create_dir(&dir).map_err(io(&dir))?;
        disk.sync_dir(data).map_err(io(data))?;
    }
    let options = StoreOptions { identity: own, must_exist, ..store };
    let (mut store, worker) = LsmStore::open(Arc::clone(disk), &dir, options)?;
    done(Part::Store);
    // A restore that a crash cut off behind the install is complete.
    if let Some(backup) = restore
        && !must_exist
        && store.applied() == 0
    {
        let mut configuration = Vec::new();
        codec::put_configuration(&mut configuration, &first_configuration(identity));
        store.restore(Arc::clone(disk), &data.join(INCOMING_DIR), backup, &configuration)?;
        done(Part::Restore);
    }
    let completed = match complete(identity, &store.reader().view(), &mut wal, &mut recovered) {
        // The node will repair its store; whether log and store fit together is looked at next.
        Err(BootError::Store(StoreError::Damaged { .. })) => None,
        completed => completed?,
    };
    let (applied, first, last) = (store.applied(), recovered.first_index, recovered.last_index);
    if applied + 1 < first || applied > last {
        return Err(BootError::Apart { data: data.to_path_buf(), applied, first, last });
    }
    if !must_exist {
        Identity { created: true, restoring: false, ..identity.clone() }.store(&**disk, data)?;
    }
    Ok(Opened { wal, recovered, store, worker, completed })
}

/// Tells the log of a snapshot that was installed just before a crash.
fn complete(
    identity: &Identity,
    view: &impl View,
    wal: &mut Wal,
    recovered: &mut Recovered,
) -> Result<Option<Persist>, BootError> {
    if !place(view)?.installed {
        return Ok(None);
    }
    let mark = mark_of(view, &first_configuration(identity))?;
    let (index, term) = (mark.index, mark.term);
    if was_told(recovered, index, term) {
        return Ok(None);
    }
    // A term that was never seen here: nobody got a vote in it.
    let raised = recovered.hard_state.term < term;
    let hard_state = raised.then_some(HardState { term, vote: None });
    let configuration = Arc::clone(&mark.configuration);
    let told = Persist { seq: 0, hard_state, reset: Some(mark), entries: Vec::new() };
    wal.write(std::slice::from_ref(&told))?;
    recovered.hard_state = hard_state.unwrap_or(recovered.hard_state);
    (recovered.first_index, recovered.last_index, recovered.prev_term) = (index + 1, index, term);
    recovered.terms.clear();
    recovered.configurations.clear();
    recovered.configuration_before = Some((index, configuration));
    Ok(Some(told))
}

/// Whether a log knows of a snapshot that ends so.
pub(super) fn was_told(recovered: &Recovered, index: Index, term: Term) -> bool {
    // In front of the log: it was told, and was compacted since.
    recovered.term(index) == Some(term) || index + 1 < recovered.first_index
}

/// The configuration the cluster began with.
pub(super) fn first_configuration(identity: &Identity) -> Configuration {
    Configuration::of_voters(identity.cluster, identity.members.clone())
}

/// What the consensus core begins with. `applied` is the store's applied index.
pub(super) fn restored(identity: &Identity, recovered: &Recovered, applied: u64) -> Restored {
    let first = first_configuration(identity);
    let before = recovered.configuration_before.clone();
    let mut configurations = vec![before.unwrap_or_else(|| (0, Arc::new(first)))];
    configurations.extend(recovered.configurations.iter().cloned());
    Restored {
        hard_state: recovered.hard_state,
        log: RestoredLog {
            base: recovered.first_index - 1,
            base_term: recovered.prev_term,
            runs: recovered.terms.clone(),
            last: recovered.last_index,
            configurations,
        },
        applied,
    }
}

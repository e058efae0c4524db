//! One simulated node: the production components, their inboxes, and what outlives a crash.

use super::checks::{Platter, Violation, violated};
use super::dice::Dice;
use super::disk::SimDisk;
use super::links::{Accepted, Dialed};
use super::moments::{FileKind, Moment};
use super::places::{Lobby, Visitor};
use super::serving::Served;
use super::snapshots::Transfer;
use super::store::{Owed, held_ends_no_node, step_bytes, store_options};
use super::world::ClusterBounds;
use super::world::Event;
use crate::api::answers::ANSWER_BYTES_MAX;
use crate::api::budget::Budget;
use crate::api::{Load, NodeState};
use crate::env::Disk;
use crate::kv::limits::DEFAULT_MAX_PAGE_BYTES;
use crate::kv::{Limits, LsmReader, LsmStore, STORE_DIR, Staged, StoreError, StoreWorker};
use crate::lsm;
use crate::node::recording;
use crate::node::{
    Applier, ApplyTask, Assembly, BATCH_REQUESTS_MAX, BootError, ConnectionId, Fixed, Inbox,
    LogEvent, LogWriter, Node, Parts, Plan, Settings, SnapshotSender, open, verify,
};
use crate::raft::invariants::Watch;
use crate::raft::{self, Configuration, Index, NodeId, Persist, Restored, Term};
use crate::wal::{Identity, LOG_DIR, LogReader, Preparer, WalError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A client as the components see it: the number of its connection.
pub(super) type ClientId = u64;

/// What clients must show.
pub(super) const CLIENTS_TOKEN: &[u8] = b"clients";

/// The data directory of every node, each on its own disk.
pub(super) const DATA: &str = "data";

/// Small segments, so that a run rolls over several. A node's flags may be others at every start: what
/// was written with some is read with others.
const SEGMENT_BYTES: [u64; 4] = [8 << 10, 16 << 10, 16 << 10, 32 << 10];

/// Requests that a log writer takes at once: seldom so few in production that any are left for the next batch.
const BATCH_REQUESTS: [usize; 4] = [1, 3, BATCH_REQUESTS_MAX, BATCH_REQUESTS_MAX];

/// Requests that a node takes at any rate: in production more than the clients of a run have under way.
const LOADS: [usize; 4] = [1, 4, 4096, 4096];
/// Places for connections beside one for each client of the run: often so few that guests take the last.
const PLACES_BESIDE: [usize; 4] = [0, 1, 3, 1000];
/// What unsent answers may hold: as in production, or one page and a few values. A node's lives take turns.
const ANSWER_BYTES: [usize; 2] = [ANSWER_BYTES_MAX, DEFAULT_MAX_PAGE_BYTES + (192 << 10)];
/// And each client's beside that.
const ANSWER_FREE_BYTES: usize = 256;

/// Largest values that a node's flags may allow; clients write some of about these lengths.
pub(super) const VALUE_LIMITS_BYTES: [usize; 4] = [600, 6_000, 20_000, 40_000];

/// What a batch may have beside its largest value: the least that flags may say, and some.
const BATCH_BESIDE_VALUE_BYTES: usize = 9 << 10;

/// Entries between two digests: many in a run.
const DIGEST_EVERY: u64 = 32;

/// Log beyond which its front goes: a few segments.
const WAL_LIMIT_BYTES: u64 = 64 << 10;

/// A node.
#[derive(Debug)]
pub(super) struct SimNode {
    /// Its id.
    pub(super) id: NodeId,
    /// What outlives a crash.
    pub(super) disk: SimDisk,
    /// Number of the present life, or of the last one.
    pub(super) life: u64,
    /// The components, while the process runs.
    pub(super) up: Option<Up>,
    /// What the components of the last start began with.
    pub(super) begun: Option<Box<recording::Start>>,
    /// Its thread of execution stands still until then.
    pub(super) paused_until_us: u64,
    /// What it would have done meanwhile, and in which life.
    pub(super) put_off: Vec<(u64, Event)>,
    /// Its disk is damaged and it refuses to start.
    pub(super) refuses: bool,
    /// The number in its data directory, once it was started.
    pub(super) identity: u64,
    /// A copy of its identity was damaged: the other one is spared until a start has repaired that.
    /// A start that fails half-way may not have.
    pub(super) hurt: bool,
    /// It was told to stop for ever, and did.
    pub(super) over: bool,
    /// The machine is gone, with its disk.
    pub(super) gone: bool,
    /// It does not hear the others, or they do not hear it, for the rest of the run.
    pub(super) cut_off: bool,
    /// Where it is reached.
    pub(super) address: String,
    /// A copy of its disk, for later.
    pub(super) copy: Option<SimDisk>,
    /// Its disk is such a copy.
    pub(super) old_copy: bool,
    /// What it sent in earlier lives does not arrive any more.
    pub(super) speaks_since: u64,
    /// Its disk was lost: it is a stranger to the others.
    pub(super) wiped: bool,
    /// Who had the identity of the disk that was lost on theirs.
    pub(super) known_to: BTreeSet<NodeId>,
    /// A bit of its log or identity was turned over.
    pub(super) flipped: bool,
    /// A copy of its manifest is damaged, or may be torn: until a start has repaired that, the other one is
    /// all there is.
    pub(super) manifest_hurt: bool,
    /// A bit of its store was turned over, of what it has once, and that was not repaired yet.
    pub(super) store_flipped: bool,
    /// Its store said that everything up to here is durable.
    pub(super) flushed: Index,
    /// Its store was repaired in this life.
    pub(super) store_repaired: bool,
    /// Largest time its log writer may take at present, in microseconds.
    pub(super) sync_us_max: u64,
    /// What was asked of its disk until now is done then.
    pub(super) disk_free_us: u64,
    /// How fast its clock runs, in parts per million of true time.
    clock_ppm: u64,
    started_us: u64,
    /// The batch that was being written when the power failed.
    pub(super) torn: Option<Vec<Persist>>,
    /// What its flags allow in its present life.
    pub(super) limits: Limits,
    dice: Dice,
}

/// A running process.
#[derive(Debug)]
pub(super) struct Up {
    /// The raft loop's component.
    pub(super) node: Node<ClientId>,
    /// Connections that it has dialed, by its own numbers.
    pub(super) dialed: BTreeMap<ConnectionId, Dialed>,
    /// Connections that it has accepted, by the number of their flow.
    pub(super) accepted: BTreeMap<u64, Accepted>,
    /// Its inbox.
    pub(super) inbox: Inbox<ClientId>,
    /// A wake-up is on its way for something in it.
    pub(super) woken: bool,
    /// Something lies in it since then, or did when the node last looked.
    pub(super) queued_at_us: Option<u64>,
    /// When it is next woken.
    pub(super) wakes_at_us: Option<u64>,
    /// When the wake-ups are due that are in the queue of events, the earliest last.
    pub(super) wakes_queued_us: Vec<u64>,
    /// What the store's background has done.
    pub(super) background: lsm::Stats,
    /// Watches its core.
    pub(super) watch: Watch,
    /// Whether it led after its last step; since when, and by which configuration.
    pub(super) led: bool,
    pub(super) led_since_us: u64,
    pub(super) led_by: Option<Arc<Configuration>>,
    /// When it last took a message of each other node.
    pub(super) heard_us: BTreeMap<NodeId, u64>,
    /// Its raft loop was told that the applier rests until then, on its own clock.
    pub(super) rests_until_us: u64,
    /// The log writer's component.
    pub(super) log_writer: LogWriter,
    /// Its inbox.
    pub(super) to_log: VecDeque<LogEvent>,
    /// It is busy.
    pub(super) writing: bool,
    /// When it is next woken.
    pub(super) log_wakes_at_us: Option<u64>,
    /// It said last that it lacks space.
    pub(super) lacks_space: bool,
    /// Since when a batch has waited for space.
    pub(super) waits_since_us: Option<u64>,
    /// Spare segments in the making.
    pub(super) preparers: VecDeque<Preparer>,
    /// Reads the log file.
    pub(super) log: LogReader,
    /// The applier's component.
    pub(super) applier: Applier<LsmStore, ClientId>,
    /// What its last step put into memory.
    pub(super) owed: Owed,
    /// Its store's flag.
    pub(super) memtable_bytes: usize,
    /// Its inbox.
    pub(super) to_apply: VecDeque<ApplyTask<ClientId, Staged>>,
    /// It is busy.
    pub(super) applying: bool,
    /// Reads the store.
    pub(super) reader: LsmReader,
    /// The store's background.
    pub(super) worker: StoreWorker,
    /// It is busy.
    pub(super) storing: bool,
    /// It said last that the disk is full.
    pub(super) full: bool,
    /// Fetches snapshots.
    pub(super) transfer: Transfer,
    /// What its connections with clients look at.
    pub(super) state: Arc<NodeState>,
    /// Those connections.
    pub(super) served: BTreeMap<ClientId, Served>,
    /// Who has a place.
    pub(super) lobby: Lobby,
    /// What others fetch here, by the number of the flow.
    pub(super) senders: BTreeMap<u64, SnapshotSender>,
}

/// What came of starting a process.
pub(super) enum Start {
    /// It runs.
    Running,
    /// It found damage, said so, and changed nothing.
    Refused,
    /// The disk failed meanwhile: it may be tried again.
    Failed,
}

impl SimNode {
    /// A node that was never started, of that identity if it has one.
    pub(super) fn new(id: NodeId, identity: u64, address: String, mut dice: Dice) -> SimNode {
        let clock_ppm = dice.between(950_000, 1_050_000);
        let disk = SimDisk::new(dice.split());
        if dice.chance(1, 8) {
            // In the middle of its first start, which has steps that no other one has.
            disk.fail_power_at(dice.pick(&Moment::ALL[..Moment::FIRST_START]).0, 0);
        }
        SimNode {
            id,
            disk,
            life: 0,
            up: None,
            paused_until_us: 0,
            put_off: Vec::new(),
            refuses: false,
            identity,
            over: false,
            gone: false,
            cut_off: false,
            address,
            copy: None,
            old_copy: false,
            speaks_since: 0,
            wiped: false,
            known_to: BTreeSet::new(),
            hurt: false,
            flipped: false,
            manifest_hurt: false,
            store_flipped: false,
            store_repaired: false,
            flushed: 0,
            sync_us_max: 2_000,
            disk_free_us: 0,
            clock_ppm,
            started_us: 0,
            torn: None,
            begun: None,
            limits: Limits::default(),
            dice,
        }
    }

    /// Whether something on its disk may be damaged.
    pub(super) fn has_damage(&self) -> bool {
        self.flipped || self.store_is_hurt()
    }

    /// Whether something of its store may be damaged, or looks so since a read of it failed.
    pub(super) fn store_is_hurt(&self) -> bool {
        self.store_flipped || self.disk.reads_struck().contains(&FileKind::Table)
    }

    /// Whether it may need the others to make its store whole.
    pub(super) fn may_need_repair(&self) -> bool {
        self.store_flipped || self.disk.may_be_unread()
    }

    /// Whether damage at that path was made here: a bit of the log says nothing of the store, nor the other
    /// way round.
    fn excuses(&self, path: &Path) -> bool {
        let in_store = path.starts_with(Path::new(DATA).join(STORE_DIR));
        if in_store { self.store_is_hurt() } else { self.flipped }
    }

    /// What this process's clock shows.
    pub(super) fn local_us(&self, now_us: u64) -> u64 {
        (now_us - self.started_us) * self.clock_ppm / 1_000_000
    }

    /// When this process's clock will show that.
    pub(super) fn global_us(&self, local_us: u64) -> u64 {
        self.started_us + local_us.saturating_mul(1_000_000).div_ceil(self.clock_ppm)
    }

    /// Starts the process from what is on disk, as the node that [`crate::node::Startup`] says it is.
    /// `promised` is what it told others is durable.
    pub(super) fn start(
        &mut self,
        identity: Result<Identity, BootError>,
        now_us: u64,
        bounds: ClusterBounds,
        promised: &mut Platter,
        committed: &[Term],
    ) -> Result<Start, Violation> {
        self.life += 1;
        self.store_repaired = false;
        self.started_us = now_us;
        let value_bytes = *self.dice.pick(&VALUE_LIMITS_BYTES);
        if let Ok(limits) = Limits::new(value_bytes, value_bytes + BATCH_BESIDE_VALUE_BYTES) {
            let max_page_work = *self.dice.pick(&[1, 3, 20, limits.max_page_work]);
            self.limits = Limits { max_page_work, ..limits };
        }
        let segment_bytes = *self.dice.pick(&SEGMENT_BYTES);
        let batch_requests_max = *self.dice.pick(&BATCH_REQUESTS);
        let load = *self.dice.pick(&LOADS);
        let torn = self.torn.take();
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let data = Path::new(DATA);
        // What an inspection says and what a start does must agree.
        let copy: Arc<dyn Disk> = Arc::new(self.disk.copy());
        let inspected = verify(&copy, data, &mut |_, _| {}).findings;
        let damage = inspected.problems.iter().find(|problem| !problem.healed);
        if let Some(problem) = damage.filter(|problem| !self.excuses(&problem.path)) {
            return violated("no crash looks like damage", format!("node {}: {problem}", self.id));
        }
        let store = store_options(&mut self.dice);
        let memtable_bytes = store.memtable_bytes;
        let settings = Settings {
            address: self.address.clone(),
            token: CLIENTS_TOKEN.to_vec(),
            seeds: Vec::new(),
            limits: self.limits,
            inflight_bytes_max: 64 << 10,
            wal_limit_bytes: WAL_LIMIT_BYTES,
            raft: raft::Options {
                append_bytes_max: 4 << 10,
                probe_bytes_max: 1 << 10,
                inflight_bytes_max: 16 << 10,
                cache_bytes_max: 8 << 10,
                applying_bytes_max: 8 << 10,
                replay_entries_max: 16,
                ..raft::Options::new(self.id, self.dice.roll())
            },
            fixed: Fixed {
                batch_bytes_max: 8 << 10,
                batch_requests_max,
                members_max: bounds.members,
                sessions: bounds.sessions,
                digest_every: DIGEST_EVERY,
                step_bytes_max: Some(step_bytes(&mut self.dice)),
            },
        };
        let opened = identity.and_then(|identity| {
            let plan = Plan { data, identity: &identity, segment_bytes, store, restore: None };
            let opened = open(&disk, plan, |_| {})?;
            let completed = opened.completed.is_some();
            let assembly = Assembly::new(&identity, opened, settings)?;
            Ok((identity, assembly, completed))
        });
        let log = data.join(LOG_DIR);
        let mut problems = inspected.problems.iter().filter(|problem| !problem.healed);
        let in_log = problems.find(|problem| problem.path.starts_with(&log));
        if let (Some(problem), Ok(_)) = (in_log, &opened) {
            return violated("damage is refused", format!("node {}: {problem}", self.id));
        }
        let (identity, assembly, completed) = match opened {
            Ok(opened) => opened,
            Err(e) if is_damage(&e) && !self.disk.reads_struck().is_empty() => {
                // A read failed that would not again.
                self.torn = torn;
                return Ok(Start::Failed);
            }
            Err(e) if is_damage(&e) && damage.is_none() => {
                return violated(
                    "an inspection finds all damage",
                    format!("node {}: {e}", self.id),
                );
            }
            Err(e) if is_damage(&e) && damage.is_some_and(|d| self.excuses(&d.path)) => {
                self.refuses = true;
                return Ok(Start::Refused);
            }
            Err(e) if is_damage(&e) => {
                return violated("no crash looks like damage", format!("node {}: {e}", self.id));
            }
            Err(e) => {
                if let BootError::Store(e) = &e {
                    held_ends_no_node(self.id, e)?;
                }
                self.torn = torn;
                return Ok(Start::Failed);
            }
        };
        self.identity = identity.identity;
        // A repair whose sync failed is in the cache only: the platter still has the bad copy.
        self.hurt &= !self.disk.is_durable("identity-");
        self.manifest_hurt &= !self.disk.is_durable("manifest-");
        // No excuse: a damaged table is known to be one, and is named by the manifest all the same.
        if assembly.applied() < self.flushed && !self.old_copy {
            let detail = format!("node {}: {} of {}", self.id, assembly.applied(), self.flushed);
            return violated("what was flushed survives", detail);
        }
        let found = platter_of(assembly.restored(), committed);
        if !completed && !self.old_copy {
            promised.survived(self.id, &found, torn.as_deref())?;
        }
        *promised = found;
        let local_us = self.local_us(now_us);
        self.begun = Some(Box::new(assembly.start(self.life, now_us, local_us)));
        let parts = assembly.into_parts(&disk, data, local_us);
        let Parts { node, view, log_writer, log_bytes, log, applier, reader, worker, receiver } =
            parts;
        let state = NodeState {
            address: self.address.clone(),
            token: CLIENTS_TOKEN.to_vec(),
            limits: self.limits,
            log_bytes: AtomicU64::new(log_bytes),
            load: Arc::new(Load::new(load)),
            answers: Budget::new(ANSWER_BYTES[self.life as usize % 2], ANSWER_FREE_BYTES),
            ..NodeState::of(&identity, reader.clone(), log.clone(), view)
        };
        self.up = Some(Up {
            node,
            state: Arc::new(state),
            served: BTreeMap::new(),
            lobby: Lobby::new(bounds.visitors + *self.dice.pick(&PLACES_BESIDE)),
            dialed: BTreeMap::new(),
            accepted: BTreeMap::new(),
            inbox: Inbox::default(),
            // It looks when it starts.
            woken: true,
            queued_at_us: None,
            wakes_at_us: None,
            wakes_queued_us: Vec::new(),
            background: lsm::Stats::default(),
            watch: Watch::default(),
            led: false,
            led_since_us: 0,
            led_by: None,
            heard_us: BTreeMap::new(),
            rests_until_us: 0,
            to_log: VecDeque::new(),
            writing: false,
            log_wakes_at_us: None,
            lacks_space: false,
            waits_since_us: None,
            preparers: VecDeque::new(),
            transfer: Transfer::new(receiver),
            log,
            reader,
            worker,
            storing: false,
            full: false,
            senders: BTreeMap::new(),
            applier,
            owed: Owed::default(),
            memtable_bytes,
            log_writer,
            to_apply: VecDeque::new(),
            applying: false,
        });
        Ok(Start::Running)
    }

    /// The process is gone.
    pub(super) fn stop(&mut self, power_lost: bool) {
        self.up = None;
        self.paused_until_us = 0;
        self.put_off.clear();
        if power_lost {
            self.disk.power_lost();
        } else {
            self.disk.killed();
        }
    }
}

impl Up {
    /// A connection of a client has ended, and its place is free.
    pub(super) fn forget_client(&mut self, connection: ClientId) -> Option<Served> {
        let served = self.served.remove(&connection)?;
        self.lobby.leave(Visitor::Client(connection));
        Some(served)
    }
}

/// Whether it says that what is on disk cannot have come about by a crash.
fn is_damage(e: &BootError) -> bool {
    match e {
        BootError::Log(e) => matches!(
            e,
            WalError::Damaged { .. }
                | WalError::Unread { .. }
                | WalError::Foreign { .. }
                | WalError::Version { .. }
        ),
        BootError::Store(e) => {
            matches!(e, StoreError::Damaged { .. } | StoreError::BadRecord { .. })
        }
        BootError::Apart { .. } => true,
    }
}

/// In front of the log stands a snapshot: what everybody has committed.
pub(super) fn platter_of(restored: &Restored, committed: &[Term]) -> Platter {
    let base = restored.log.base as usize;
    let mut terms = committed[..base.min(committed.len())].to_vec();
    let runs = &restored.log.runs;
    for (at, &(first, term)) in runs.iter().enumerate() {
        let end = runs.get(at + 1).map_or(restored.log.last + 1, |next| next.0);
        terms.extend((first..end).map(|_| term));
    }
    Platter { hard: restored.hard_state, terms, awaits_reset: None }
}

//! The applier and the store of each node: what is applied, flushed, compacted, read back, and
//! compared with the model.
//!
//! The store's background is an actor of its own that makes one small step at a time, so that
//! crashes and disk errors fall between any two of them.

use super::checks::{Violation, violated};
use super::dice::Dice;
use super::ledger::Ledger;
use super::node::ClientId;
use super::world::{Event, World};
use crate::api::StoreTrouble;
use crate::kv::{
    Committed, Machine, MemoryStore, Reader as _, Scan, SessionBounds, Space, Store as _,
    StoreError, View, fingerprint, fingerprint_with,
};
use crate::lsm::{self, Step};
use crate::node::recording::{DidNote, Record, TaskNote, put_body};
use crate::node::{Applied, ApplyEffects, ApplyError, ApplyTask, Input};
use crate::raft::{Entry, Index, NodeId, Payload, codec};
use std::io::ErrorKind;
use std::ops::ControlFlow;

/// Longest rest that an applier takes at once.
const REST_US_MAX: u64 = 50_000;
/// Pause before the store tries again to remove what somebody else holds, in microseconds.
const HELD_PAUSE_US: u64 = 1_000_000;

/// Small sizes, so that a run flushes and compacts often, and has several of everything: memtables, tables,
/// blocks and partitions of an index. They are others at every start: whatever some have written, others
/// read.
pub(super) fn store_options(dice: &mut Dice) -> lsm::Options {
    let memtable_bytes = *dice.pick(&[2 << 10, 4 << 10, 4 << 10, 4 << 10, 24 << 10]);
    let table_bytes = *dice.pick(&[2 << 10, 4 << 10, 4 << 10, 12 << 10]);
    lsm::Options {
        memtable_bytes,
        cache_bytes: *dice.pick(&[0, 1 << 10, 4 << 10, 64 << 10]),
        open_files_max: *dice.pick(&[1, 3, 256]),
        table_bytes,
        block_bytes: *dice.pick(&[16, 64, 256, 256, 1 << 10]),
        partition_bytes: *dice.pick(&[16, 64, 256, 4 << 10]),
        sync_bytes: *dice.pick(&[256, 1 << 10, 1 << 20]),
        level1_bytes: *dice.pick(&[4 << 10, 8 << 10, 32 << 10]),
        step_bytes: *dice.pick(&[64, 256, 1 << 10, 1 << 10, 256 << 10]),
        // Room for the largest of both.
        reserve_bytes: 2 * memtable_bytes as u64 + table_bytes,
        ..lsm::Options::new(0)
    }
}

/// About how much of the store's memory an applier fills in one step, in bytes: less than is committed together now and
/// then, and more.
pub(super) fn step_bytes(dice: &mut Dice) -> usize {
    dice.log_between(256, 64 << 10) as usize
}

/// What a step of an applier put into memory, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owed {
    at_us: u64,
    bytes: u64,
}

impl Owed {
    /// How long the writer has to wait for that at least, when so many memtables were in memory all the time: nothing
    /// up to one and a half of them, a microsecond a byte at three, and more with the square.
    fn wait_us(self, memtables: f64) -> u64 {
        let pressure = ((memtables - 1.5) / 1.5).clamp(0.0, 4.0);
        (self.bytes as f64 * pressure * pressure) as u64
    }
}

/// The state machine over the map in memory, with nothing applied.
pub(super) fn empty_model(sessions: SessionBounds) -> Machine<MemoryStore> {
    Machine::open_bounded(MemoryStore::default(), sessions)
        .expect("the map in memory is empty and never fails")
}

/// What a store's contents are compared by: a full scan, and one key of `stride` of the users' asked
/// for by itself, which takes another way through the engine.
pub(super) fn contents(view: &impl View, stride: usize) -> Result<u64, StoreError> {
    let (mut rows, mut number) = (Vec::new(), 0);
    let hash = fingerprint_with(view, &mut |space, row| {
        number += usize::from(space == Space::User);
        if space == Space::User && number % stride == 0 {
            rows.push((row.key.to_vec(), row.value.to_vec(), row.revision));
        }
    })?;
    let mut alike = true;
    for (key, value, revision) in rows {
        let found = view.get(Space::User, &key)?;
        alike &= found.is_some_and(|f| f.value == value && f.revision == revision);
    }
    Ok(if alike { hash } else { !hash })
}

/// A key that a store shows and the model does not.
fn came_back(store: &impl View, model: &impl View) -> Result<Option<Vec<u8>>, StoreError> {
    let mut keys = Vec::new();
    store.scan(&Scan::all(Space::User), &mut |row| {
        keys.push(row.key.to_vec());
        ControlFlow::Continue(())
    })?;
    for key in keys {
        if model.revision(Space::User, &key)?.is_none() {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

impl World {
    // ---- the applier ----

    /// Lets the applier go on with what waits for it.
    pub(super) fn start_applying(&mut self, node: NodeId) {
        let hop_us = self.hop_us();
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let Some(up) = &mut n.up else { return };
        if !up.applying && (up.applier.next_task().is_some() || !up.to_apply.is_empty()) {
            up.applying = true;
            let life = n.life;
            self.schedule(hop_us, node, life, Event::Apply);
        }
    }

    pub(super) fn apply(&mut self, node: NodeId) -> Result<(), Violation> {
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else {
            return Ok(());
        };
        if up.applier.next_task().is_none() {
            if matches!(up.to_apply.front(), Some(ApplyTask::Install { .. }))
                && self.dice.chance(1, 3)
            {
                // A flush is to be under way when it is installed.
                up.to_apply.push_front(ApplyTask::Flush);
            }
            if let Some(task) = up.to_apply.pop_front() {
                if let Some(recordings) = &mut self.recordings {
                    let told = Record::Task(TaskNote::of(&task));
                    recordings.put(node, |out| put_body(out, &told));
                }
                up.applier.handle(task);
            }
        }
        let rest_us = up.applier.take_rest_us();
        if rest_us > 0 {
            self.count("writers slowed down");
            if rest_us == REST_US_MAX {
                self.count("writers slowed down again and again");
            }
            self.note(node, "rests", [rest_us, 0, 0, 0]);
            let now_us = self.now_us;
            let told = self.nodes.get(&node).map(|n| (n.life, n.local_us(now_us) + rest_us));
            let Some((life, until_us)) = told else { return Ok(()) };
            self.input(node, Input::Rests { until_us });
            self.schedule(rest_us, node, life, Event::Apply);
            return Ok(());
        }
        let memory = up.reader.stats().memtable_bytes;
        if let Some(ApplyTask::Apply(_)) = up.applier.next_task() {
            // No more was in memory at any time since then: a flush alone takes some away.
            let wait_us = up.owed.wait_us(memory as f64 / up.memtable_bytes as f64);
            let waited_us = self.now_us - up.owed.at_us;
            // Each rest is cut to whole microseconds.
            if waited_us + waited_us / 100 + 10 < wait_us {
                let detail = format!("node {node}: {waited_us} of {wait_us} us for {:?}", up.owed);
                return violated("a writer waits for what it owes", detail);
            }
        }
        let last = match up.applier.next_task() {
            Some(ApplyTask::Apply(apply)) => apply.committed.last,
            _ => 0,
        };
        let whose = match up.applier.next_task() {
            Some(ApplyTask::Install { .. }) => "disk error in installing a snapshot",
            _ => "disk error in the applier",
        };
        if let Some(ApplyTask::Apply(apply)) = up.applier.next_task() {
            let committed = &apply.committed;
            let mut read = Vec::new();
            // A snapshot may have overtaken some of it, and the log goes on behind that.
            let first = committed.first.max(up.applier.machine().applied() + 1);
            if committed.entries.is_empty() && first <= committed.last {
                match up.log.read(first, committed.last, usize::MAX) {
                    Ok(entries) => read = entries,
                    Err(_) => {
                        self.disk_failed(node, whose);
                        return Ok(());
                    }
                }
            }
            let entries = if read.is_empty() { &committed.entries[..] } else { &read[..] };
            self.cluster.applies(node, entries)?;
            follow(&mut self.model, &mut self.ledger, entries)?;
        }
        let installs = matches!(up.applier.next_task(), Some(ApplyTask::Install { .. }));
        let looks = if installs { self.look_within(node, 3) } else { None };
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let local_us = n.local_us(now_us);
        let Some(up) = n.up.as_mut() else { return Ok(()) };
        let step = up.applier.step();
        let bytes = up.reader.stats().memtable_bytes.saturating_sub(memory);
        if last > 0 {
            up.owed = Owed { at_us: now_us, bytes };
        }
        let in_pieces = last > up.applier.machine().applied() && !up.applier.is_holding();
        if let (Some(recordings), Ok(Some(effects))) = (&mut self.recordings, &step) {
            let (digest, now_us) = (up.applier.machine().digest(), local_us);
            let did = DidNote::of(effects, digest, now_us, |&client| client);
            recordings.put(node, |out| put_body(out, &Record::Did(did)));
        }
        if in_pieces && step.is_ok() {
            self.count("committed entries applied in pieces");
        }
        self.looked(node, looks)?;
        match step {
            Ok(Some(effects)) => self.apply_stepped(node, effects),
            // It holds: what came is to wait.
            Ok(None) => {
                self.count("entries held back for a repair");
                self.applier_is_free(node);
                Ok(())
            }
            Err(ApplyError::Store(e) | ApplyError::Install(e)) => {
                self.store_failed(node, whose, &e)
            }
            Err(ApplyError::Log(_)) => {
                self.disk_failed(node, whose);
                Ok(())
            }
        }
    }

    fn apply_stepped(
        &mut self,
        node: NodeId,
        mut effects: ApplyEffects<ClientId>,
    ) -> Result<(), Violation> {
        if let Some(e) = effects.damage.take() {
            self.count("damage met by the applier");
            self.store_failed(node, "", &e)?;
        }
        if let Some(installed) = effects.installed.take() {
            self.installed(node, installed)?;
        }
        if let Some(index) = effects.repair {
            self.repair(node, index)?;
        }
        let Some(Applied { index, .. }) = effects.applied else {
            self.deliver(node, effects.answers)?;
            self.applier_is_free(node);
            self.start_storing(node);
            return Ok(());
        };
        let words = [index, effects.answers.len() as u64, 0, 0];
        if self.dice.chance(1, 64) {
            self.compare(node)?;
        }
        self.note(node, "applied", words);
        let delay_us = self.hop_us() + self.disk_time_us(node);
        let Some(life) = self.nodes.get(&node).map(|n| n.life) else { return Ok(()) };
        self.schedule(delay_us, node, life, Event::Applied(effects));
        self.start_storing(node);
        Ok(())
    }

    /// How long what was just done on a node's disk takes from now on: behind what others do there.
    pub(super) fn disk_time_us(&mut self, node: NodeId) -> u64 {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return 0 };
        let busy_us = n.disk.take_busy_us();
        if busy_us == 0 {
            return 0;
        }
        n.disk_free_us = n.disk_free_us.max(now_us) + busy_us;
        n.disk_free_us - now_us
    }

    /// It goes on with what waits.
    fn applier_is_free(&mut self, node: NodeId) {
        if let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) {
            up.applying = false;
        }
        self.start_applying(node);
    }

    /// Those who wait hear of what was applied.
    pub(super) fn applied(
        &mut self,
        node: NodeId,
        effects: ApplyEffects<ClientId>,
    ) -> Result<(), Violation> {
        if let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) {
            up.applying = false;
        }
        self.deliver(node, effects.answers)?;
        if let Some((index, digest)) = effects.digest {
            self.input(node, Input::Digest { node, index, digest });
        }
        if let Some(Applied { index, flushed }) = effects.applied {
            self.input(node, Input::Applied { index, flushed });
        }
        self.start_applying(node);
        Ok(())
    }

    // ---- the store's background ----

    /// Wakes the store's worker.
    pub(super) fn start_storing(&mut self, node: NodeId) {
        let hop_us = self.hop_us();
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let Some(up) = &mut n.up else { return };
        if !up.storing {
            up.storing = true;
            let life = n.life;
            self.schedule(hop_us, node, life, Event::Store);
        }
    }

    pub(super) fn store(&mut self, node: NodeId) -> Result<(), Violation> {
        let looks = self.look_within(node, 24);
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let (life, slow_us) = (n.life, n.sync_us_max);
        let Some(up) = &mut n.up else { return Ok(()) };
        let held = up.worker.held_files();
        let step = up.worker.step();
        let removed = step.is_ok() && up.worker.held_files() < held;
        let busy_us = self.disk_time_us(node);
        if removed {
            self.count("held files removed later");
        }
        self.looked(node, looks)?;
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else {
            return Ok(());
        };
        let news = step.as_ref().ok().and_then(|step| up.worker.news(*step));
        if let Some(full) = news {
            self.tell_full(node, full);
        }
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let Some(up) = &mut n.up else { return Ok(()) };
        match step {
            Ok(Step::Idle) => {
                let tries_again = up.worker.held_files() > 0;
                up.storing = tries_again;
                if tries_again {
                    self.schedule(HELD_PAUSE_US, node, life, Event::Store);
                    return Ok(());
                }
                if up.worker.wants_flush() && self.dice.chance(1, 2) {
                    self.count("flushed for what it hides");
                    self.input(node, Input::FlushWanted);
                }
            }
            Ok(Step::Damaged) => {
                let damage = up.reader.damage();
                let delay_us = self.dice.log_between(60, slow_us);
                self.schedule(delay_us, node, life, Event::Store);
                self.count("damage met by a compaction");
                return match damage {
                    Some(e) => self.store_failed(node, "", &e),
                    None => violated("damage has a place", format!("node {node}")),
                };
            }
            Ok(Step::Full) => {
                self.count("work put off for want of space");
                let delay_us = self.dice.log_between(50_000, 1_000_000);
                self.schedule(delay_us, node, life, Event::Store);
            }
            Ok(Step::Worked | Step::Reserved) => {
                let now = up.reader.stats();
                let before = std::mem::replace(&mut up.background, now.clone());
                let flushed = up.applier.machine().store().flushed();
                let news = (flushed > n.flushed).then_some(flushed);
                n.flushed = n.flushed.max(flushed);
                if let Some(index) = news {
                    up.to_apply.push_back(ApplyTask::Flushed);
                    self.input(node, Input::Flushed { index });
                    self.start_applying(node);
                }
                let happened = [
                    ("memtables flushed", now.flushed_bytes > before.flushed_bytes),
                    ("tables compacted", now.compacted_bytes > before.compacted_bytes),
                    ("tables moved down", now.moves > before.moves),
                    ("compactions for their tombstones", now.reclaims > before.reclaims),
                    ("compactions on demand", now.demanded > before.demanded),
                    ("exports ended for their room", now.exports_ended > before.exports_ended),
                    ("new tables unread", now.unread > before.unread),
                    ("tombstones dropped", now.tombstones_dropped > before.tombstones_dropped),
                ];
                happened.into_iter().filter(|(_, did)| *did).for_each(|(what, _)| self.count(what));
                let delay_us = self.dice.log_between(60, slow_us) + busy_us;
                self.schedule(delay_us, node, life, Event::Store);
                // What a compaction dropped too early would show from now on.
                let merged = now.compaction_read_bytes > before.compaction_read_bytes;
                if merged && self.dice.chance(1, 8) {
                    self.compare(node)?;
                }
            }
            Err(e) => {
                return self.store_failed(node, "disk error in the store's background", &e.into());
            }
        }
        Ok(())
    }

    /// The store's background says whether the disk is full.
    fn tell_full(&mut self, node: NodeId, full: bool) {
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return };
        let was_full = std::mem::replace(&mut up.full, full);
        if was_full && !full {
            self.count("full disk recovered");
        }
        self.note(node, "disk full", [u64::from(full), 0, 0, 0]);
        self.input(node, Input::DiskFull(full));
    }

    /// A node's store cannot be read or written: the node stops. When it is damaged, which it may be
    /// only where a bit was turned over, it is repaired.
    pub(super) fn store_failed(
        &mut self,
        node: NodeId,
        whose: &'static str,
        error: &StoreError,
    ) -> Result<(), Violation> {
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        if !error.is_damage() {
            held_ends_no_node(node, error)?;
            self.disk_failed(node, whose);
            return Ok(());
        }
        let now = n.up.as_ref().is_some_and(|up| up.reader.damage().is_some());
        if n.store_repaired && !now && !n.store_is_hurt() {
            // A cut of the time before the repair, which somebody still fetches from.
            self.count("damage met in an old cut");
            return Ok(());
        }
        if !n.store_is_hurt() {
            return violated("no crash looks like damage", format!("node {node}: {error}"));
        }
        let up = n.up.as_ref();
        if up.is_some_and(|up| up.state.trouble(error) == StoreTrouble::Damaged) {
            self.count("damage met in the store");
            self.note(node, "damaged store", [0; 4]);
            self.input(node, Input::Damaged);
        }
        Ok(())
    }

    // ---- comparing ----

    /// Compares a node's store with the model and with what other nodes held at the same index.
    /// False when the node stopped of it, or its store has to be repaired first.
    pub(super) fn compare(&mut self, node: NodeId) -> Result<bool, Violation> {
        let stride = self.dice.between(1, 8) as usize;
        let Some(n) = self.nodes.get(&node) else { return Ok(false) };
        let Some(up) = n.up.as_ref() else { return Ok(false) };
        let view = up.reader.view();
        let index = view.applied();
        let now = match n.disk.beside(|| contents(&view, stride)) {
            Ok(now) => now,
            Err(e) => {
                self.store_failed(node, "disk error in a scan", &e)?;
                return Ok(false);
            }
        };
        self.count("stores compared");
        let same = self.same_as_everybody(node, index, now);
        if same.is_err()
            && index == self.model.applied()
            && let Ok(Some(key)) = came_back(&view, &self.model.reader().view())
        {
            let detail = format!("node {node} at {index}: {}", key.escape_ascii());
            return violated("no deleted key comes back", detail);
        }
        same.map(|()| true)
    }

    /// What a node's store holds at an applied index is what the model held there, and every other node.
    pub(super) fn same_as_everybody(
        &mut self,
        node: NodeId,
        index: Index,
        hash: u64,
    ) -> Result<(), Violation> {
        if index == self.model.applied() {
            self.count("stores compared with the model");
            let model = fingerprint(&self.model.reader().view());
            if !model.is_ok_and(|model| model == hash) {
                return violated("the store equals the model", format!("node {node} at {index}"));
            }
        }
        if *self.fingerprints.entry(index).or_insert(hash) != hash {
            return violated("replica equality", format!("node {node} at {index}"));
        }
        Ok(())
    }

    /// All running nodes have applied everything that is committed, and hold the same.
    pub(super) fn replicas_equal(&mut self) -> Result<bool, Violation> {
        let committed = self.cluster.committed();
        let running = |n: &&super::node::SimNode| self.counts(n);
        let ids: Vec<NodeId> = self.nodes.values().filter(running).map(|n| n.id).collect();
        let behind = |id: &NodeId| {
            let up = self.nodes.get(id).and_then(|n| n.up.as_ref());
            let repairs =
                |up: &super::node::Up| up.applier.is_holding() || up.reader.damage().is_some();
            up.is_some_and(|up| up.node.replica().raft().applied_index() < committed || repairs(up))
        };
        if ids.iter().any(behind) {
            return Ok(false);
        }
        for id in ids {
            if !self.compare(id)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Applies to the model what it has not seen yet, one entry at a time and by a mapping of its own: it shares
/// nothing with the applier that it checks.
/// What somebody else holds is removed later, and nothing needs its name meanwhile.
pub(super) fn held_ends_no_node(node: NodeId, error: &StoreError) -> Result<(), Violation> {
    let StoreError::Io { source, .. } = error else { return Ok(()) };
    if error.is_held() || source.kind() == ErrorKind::AlreadyExists {
        return violated("a held file ends no node", format!("node {node}: {error}"));
    }
    Ok(())
}

fn follow(
    model: &mut Machine<MemoryStore>,
    ledger: &mut Ledger,
    entries: &[Entry],
) -> Result<(), Violation> {
    let next = model.applied() + 1;
    for entry in entries.iter().filter(|e| e.index >= next) {
        let mut bytes = Vec::new();
        let what = match &entry.payload {
            Payload::Noop => Committed::Term(entry.term),
            Payload::Command(bytes) => Committed::Command(bytes),
            Payload::Configuration(c) => {
                codec::put_configuration(&mut bytes, c);
                Committed::Configuration(&bytes)
            }
        };
        let index: Index = entry.index;
        let outcomes = match model.apply([(index, what)]) {
            Ok(outcomes) => outcomes,
            Err(e) => return violated("the model applies", e.to_string()),
        };
        match (what, outcomes.first()) {
            (Committed::Command(bytes), Some((_, outcome))) => {
                ledger.enter(index, bytes, outcome)?;
            }
            _ => ledger.pass(index),
        }
    }
    Ok(())
}

//! The applier holds: whoever waits is answered all the same.

use super::*;
use crate::kv::{Change, MemoryReader, Revision, Store, StoreError};
use crate::raft::{Committed, Entry, Payload};
use std::sync::atomic::{AtomicBool, Ordering};

/// A store that is found to be damaged while it is told to be.
struct Fragile {
    store: MemoryStore,
    damaged: Arc<AtomicBool>,
}

impl Store for Fragile {
    type Reader = MemoryReader;
    /// An empty store at an applied index.
    type Snapshot = Revision;

    fn reader(&self) -> MemoryReader {
        self.store.reader()
    }

    fn write(&mut self, applied: Revision, changes: Vec<Change<'_>>) -> Result<(), StoreError> {
        if self.damaged.load(Ordering::Relaxed) {
            let path = PathBuf::from("/made/up");
            return Err(StoreError::Damaged { path, offset: 0, what: "a test wants it" });
        }
        self.store.write(applied, changes)
    }

    fn flushed(&self) -> Revision {
        0
    }

    fn flush(&mut self) {}

    fn install(&mut self, snapshot: Revision) -> Result<(), StoreError> {
        self.store.write(snapshot, Vec::new())
    }
}

struct Holding {
    applier: Applier<Fragile, Client>,
    damaged: Arc<AtomicBool>,
    answers: Vec<(Client, Answer)>,
}

impl Holding {
    fn new() -> Holding {
        let damaged = Arc::new(AtomicBool::new(false));
        let store = Fragile { store: MemoryStore::default(), damaged: Arc::clone(&damaged) };
        let options = wal::Options { segment_bytes: 1 << 20, identity: 1, must_exist: false };
        let disk = TestDisk::default();
        let (wal, _) = Wal::open(disk.shared(), &PathBuf::from("/log"), options).unwrap();
        let machine = Machine::open(store).unwrap();
        let applier = Applier::new(machine, wal.reader(), Configuration::default());
        Holding { applier, damaged, answers: Vec::new() }
    }

    /// Three writes are committed; the clients 1 and 3 wait for the first and the last.
    fn commit(&mut self) {
        let entry = |index: Index| {
            let payload = Payload::Command(put(&index.to_string(), "v"));
            Entry { index, term: 1, payload }
        };
        let committed = Committed { first: 1, last: 3, entries: (1..=3).map(entry).collect() };
        let waiter = |n| (n, ReplyTo::Client { client: n, request: n });
        let waiters = vec![waiter(1), waiter(3)];
        self.applier.handle(ApplyTask::Apply(Apply { committed, waiters, alone: false }));
    }

    /// Does all that can be done now.
    fn run(&mut self) {
        while let Some(effects) = self.applier.step().unwrap() {
            for (reply_to, answer) in effects.answers {
                let ReplyTo::Client { client, .. } = reply_to else { panic!("no peer waits") };
                self.answers.push((client, answer));
            }
        }
    }

    fn install(&mut self, index: Index) {
        self.applier.handle(ApplyTask::Install { snapshot: index, index });
    }

    /// Whether each client's write is known to be applied, in the order of the answers.
    fn known(&self) -> Vec<(Client, bool)> {
        let known = |answer: &Answer| match answer {
            Answer::Write(Verdict::Applied(_)) => true,
            Answer::Write(Verdict::Unknown(_)) => false,
            other => panic!("{other:?}"),
        };
        let mut all: Vec<_> = self.answers.iter().map(|(c, answer)| (*c, known(answer))).collect();
        all.sort_unstable();
        all
    }
}

/// Damage is met while three writes are applied, or just before. Whoever waits for one of them is told at once that its
/// outcome is not known, however long the repair takes; all of them are applied behind it.
#[test]
fn whoever_waits_when_a_hold_begins_is_answered_at_once() {
    for snapshot in 0..=3 {
        for met_before in [false, true] {
            let mut h = Holding::new();
            if met_before {
                h.applier.handle(ApplyTask::Hold);
                h.run();
            } else {
                h.damaged.store(true, Ordering::Relaxed);
            }
            h.commit();
            h.run();
            assert!(h.applier.is_holding());
            assert_eq!(h.known(), [(1, false), (3, false)], "{snapshot}, {met_before}");
            h.damaged.store(false, Ordering::Relaxed);
            h.install(snapshot);
            h.run();
            assert!(!h.applier.is_holding());
            assert_eq!((h.answers.len(), h.applier.machine().applied()), (2, 3));
        }
    }
}

/// Three writes are committed together and are more than a step takes. Each of them is a step of its own, whoever waits for
/// one is answered with it, and what was asked for behind them is done behind them.
#[test]
fn what_is_committed_together_is_applied_in_pieces() {
    let mut h = Holding::new();
    h.applier = h.applier.in_steps_of(1);
    h.commit();
    h.applier.handle(ApplyTask::Flush);
    for index in 1..=3 {
        assert!(matches!(h.applier.next_task(), Some(ApplyTask::Apply(_))));
        let effects = h.applier.step().unwrap().unwrap();
        assert_eq!(effects.applied.map(|applied| applied.index), Some(index));
        assert_eq!(effects.answers.len(), usize::from(index != 2), "the clients 1 and 3 wait");
    }
    assert!(matches!(h.applier.next_task(), Some(ApplyTask::Flush)));
    assert!(h.applier.step().unwrap().unwrap().applied.is_none());
    assert!(h.applier.step().unwrap().is_none());
}

/// A node that cannot apply cannot cut its log either. Beyond its bound it takes no entries; it still obeys the leader,
/// and what it missed comes when there is room again.
#[test]
fn the_log_of_a_node_with_a_damaged_store_keeps_its_bound() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    c.input(follower, Input::Damaged);
    c.input(follower, Input::Compacted { log_bytes: 1 << 41 });
    let (last, term) = {
        let raft = c.replica(follower).raft();
        (raft.last_index(), raft.term())
    };
    for key in ["a", "b", "c"] {
        let write = c.write(leader, key, SOON_US);
        c.advance(3 * ELECTION_US);
        assert!(c.revision(write) > last, "the others are a majority");
    }
    let raft = c.replica(follower).raft();
    assert_eq!((raft.last_index(), raft.term(), raft.leader()), (last, term, Some(leader)));
    c.input(follower, Input::Compacted { log_bytes: 0 });
    c.advance(3 * ELECTION_US);
    c.settle();
    let all = c.replica(leader).raft().last_index();
    assert_eq!(c.replica(follower).raft().last_index(), all);
}

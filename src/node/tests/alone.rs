//! The only member of a cluster has a damaged store: what is whole is served and written.

use super::*;
use crate::kv::{
    Condition, Found, LsmReader, LsmStore, Reader as _, StoreOptions, StoreWorker, Test, View as _,
};
use crate::raft::{Committed, Entry, Payload};

/// A node's store and applier, on a disk of which a block is unreadable.
struct Alone {
    disk: TestDisk,
    applier: Applier<LsmStore, Client>,
    worker: StoreWorker,
    reader: LsmReader,
    answers: Vec<(Client, Answer)>,
    damage: bool,
}

fn options() -> StoreOptions {
    StoreOptions { cache_bytes: 0, ..StoreOptions::new(1) }
}

impl Alone {
    fn on(disk: &TestDisk) -> Alone {
        let dir = PathBuf::from("/store");
        let (store, worker) = LsmStore::open(disk.shared(), &dir, options()).unwrap();
        let machine = Machine::open(store).unwrap();
        let reader = machine.reader();
        let log = wal::Options { segment_bytes: 1 << 20, identity: 1, must_exist: false };
        let (wal, _) = Wal::open(disk.shared(), &PathBuf::from("/log"), log).unwrap();
        let applier = Applier::new(machine, wal.reader(), Configuration::default());
        let (answers, damage) = (Vec::new(), false);
        Alone { disk: disk.clone(), applier, worker, reader, answers, damage }
    }

    /// Keys of some blocks, flushed; then a byte in the middle of the users' table cannot be read, and the process is
    /// another one. The key that lies there.
    fn hurt() -> (Alone, String) {
        let disk = TestDisk::default();
        let mut node = Alone::on(&disk);
        node.apply((0..60).map(|i| put(&format!("key{i:03}"), &"v".repeat(500))).collect(), true);
        node.flush();
        drop(node);
        let is_table = |p: &PathBuf| p.to_string_lossy().contains("table-");
        let tables = disk.paths().into_iter().filter(is_table);
        let table = tables.max_by_key(|p| disk.bytes(p).len()).unwrap();
        disk.spoil(&table, disk.bytes(&table).len() / 2);
        let node = Alone::on(&disk);
        let lost = (0..60).map(|i| format!("key{i:03}")).find(|key| node.get(key).is_err());
        (node, lost.expect("some key lies there"))
    }

    fn get(&self, key: &str) -> Result<Option<Found>, crate::kv::StoreError> {
        self.reader.view().get(crate::kv::Space::User, key.as_bytes())
    }

    /// Commits commands; each has a client that waits, called by its index.
    fn apply(&mut self, commands: Vec<Arc<[u8]>>, alone: bool) {
        let first = self.applier.machine().applied() + 1;
        let last = first + commands.len() as Index - 1;
        let entries = (first..).zip(commands).map(|(index, command)| {
            let payload = Payload::Command(command);
            Entry { index, term: 1, payload }
        });
        let committed = Committed { first, last, entries: entries.collect() };
        let waiters = (first..=last).map(|n| (n, ReplyTo::Client { client: n, request: n }));
        let waiters = waiters.collect();
        self.applier.handle(ApplyTask::Apply(Apply { committed, waiters, alone }));
        self.step();
    }

    fn step(&mut self) {
        while let Some(effects) = self.applier.step().unwrap() {
            self.damage |= effects.damage.is_some();
            self.answers.extend(effects.answers.into_iter().map(|(to, answer)| match to {
                ReplyTo::Client { client, .. } => (client, answer),
                ReplyTo::Peer { .. } => panic!("no peer asked"),
            }));
        }
    }

    /// The store's background does what there is, and the applier hears of it.
    fn flush(&mut self) {
        self.applier.handle(ApplyTask::Flush);
        self.step();
        while self.worker.step().unwrap() != crate::lsm::Step::Idle {}
        self.applier.handle(ApplyTask::Flushed);
        self.step();
    }
}

fn write(write: &Write) -> Arc<[u8]> {
    let mut bytes = Vec::new();
    encode_command(&Command::Write(write.clone()), &mut bytes);
    bytes.into()
}

/// Blocks that are whole are served beside the one that is not; writes that need that one are refused and change
/// nothing, whatever else they would do; all others are done, also of the key itself. Nobody is told before it is
/// durable which were left out, so that no later process does them after all.
#[test]
fn the_only_member_serves_and_writes_what_is_whole() {
    let (mut node, lost) = Alone::hurt();
    let served = (0..60).filter(|i| node.get(&format!("key{i:03}")).is_ok()).count();
    assert!((40..60).contains(&served), "{served}");
    let on_lost = Condition { key: lost.clone().into_bytes(), test: Test::Present };
    let other = Op::Put { key: b"other".to_vec(), value: b"1".to_vec() };
    let conditional = Write { conditions: vec![on_lost], ops: vec![other.clone()], stamp: None };
    let by = Op::Increment { key: lost.clone().into_bytes(), by: 1 };
    let half = Write { conditions: Vec::new(), ops: vec![other, by], stamp: None };
    node.apply(vec![put("new", "1"), write(&conditional), write(&half), put("last", "1")], true);
    assert!(node.damage && node.answers.is_empty(), "nobody is told yet");
    assert!(!node.applier.is_holding());
    node.flush();
    let refused = Answer::Write(Verdict::NotApplied(Refusal::Unreadable));
    let done = |answer: &Answer| matches!(answer, Answer::Write(Verdict::Applied(_)));
    let [(61, a), (62, b), (63, c), (64, d)] = &node.answers[..] else {
        panic!("{:?}", node.answers)
    };
    assert!(done(a) && done(d));
    assert_eq!((b, c), (&refused, &refused));
    assert_eq!(node.get("other").unwrap(), None);
    // A plain put takes the place of what is lost.
    node.apply(vec![put(&lost, "again")], true);
    assert_eq!(node.get(&lost).unwrap().unwrap().value, b"again");
    node.flush();
    let again = Alone::on(&node.disk);
    assert_eq!(again.applier.machine().applied(), 65);
    assert_eq!(again.get(&lost).unwrap().unwrap().value, b"again");
}

/// Where others have what is damaged nothing is left out: the applier holds until the store is repaired.
#[test]
fn a_member_among_others_leaves_nothing_out() {
    let (mut node, lost) = Alone::hurt();
    let by = Op::Increment { key: lost.into_bytes(), by: 1 };
    node.apply(vec![write(&Write { conditions: Vec::new(), ops: vec![by], stamp: None })], false);
    assert!(node.applier.is_holding() && node.damage);
    assert!(matches!(&node.answers[..], [(61, Answer::Write(Verdict::Unknown(_)))]));
}

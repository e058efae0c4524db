//! A receiver and the senders that it may ask, by hand: who is asked when a connection is refused, goes
//! silent or ends, and what is asked again.

use super::*;
use crate::kv::{
    Change, LsmReader, LsmStore, Reader as _, Space, Staged, Store as _, StoreOptions, StoreWorker,
    View as _,
};
use crate::lsm::Step;
use crate::raft::Offer;
use std::path::Path;

const DATA: &str = "/data";
/// Index that the senders' stores reach.
pub(crate) const REACHES: Index = 60;

pub(crate) struct Store {
    store: LsmStore,
    worker: StoreWorker,
}

impl Store {
    fn new(disk: &TestDisk, identity: u64) -> Store {
        let options = StoreOptions {
            memtable_bytes: 4 << 10,
            table_bytes: 3 << 10,
            block_bytes: 256,
            level1_bytes: 6 << 10,
            ..StoreOptions::new(identity)
        };
        let (store, worker) =
            LsmStore::open(disk.shared(), Path::new("/data/store"), options).unwrap();
        Store { store, worker }
    }

    /// One that was filled, up to [`REACHES`]; all of it is in tables.
    pub(crate) fn full(identity: u64) -> Store {
        let mut store = Store::new(&TestDisk::default(), identity);
        store.fill(1..=REACHES);
        store.store.flush();
        store.work();
        store
    }

    fn fill(&mut self, indexes: impl Iterator<Item = Index>) {
        for index in indexes {
            let key = format!("key {index}").into_bytes().into();
            let value = Some((index, vec![index as u8; 200].into()));
            let change = Change { space: Space::User, key, value };
            self.store.write(index, vec![change]).unwrap();
        }
    }

    fn work(&mut self) {
        while self.worker.step().unwrap() != Step::Idle {}
    }

    pub(crate) fn reader(&self) -> LsmReader {
        self.store.reader()
    }
}

/// A receiver on an empty store, and what became of it.
struct Fetching {
    receiver: SnapshotReceiver,
    _store: Store,
    others: BTreeSet<NodeId>,
    now_us: u64,
    /// Who was dialed.
    dialed: Vec<NodeId>,
    pieces: usize,
    closed: usize,
    installed: Option<(Staged, Index)>,
    lines: Vec<String>,
}

/// What the other end does.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Answers.
    Answers,
    /// Cannot be reached.
    Refuses,
    /// Takes so many questions, and says nothing to the next.
    Silent(usize),
    /// Has nothing.
    Empty,
    /// Closes behind so many answers.
    Breaks(usize),
    /// Turns a bit over in every piece.
    Spoils,
}

impl Fetching {
    fn new() -> Fetching {
        let disk = TestDisk::default();
        let store = Store::new(&disk, 1);
        let receiver = SnapshotReceiver::new(disk.shared(), Path::new(DATA), store.reader());
        Fetching {
            receiver,
            _store: store,
            others: BTreeSet::from([2, 3, 4]),
            now_us: 1,
            dialed: Vec::new(),
            pieces: 0,
            closed: 0,
            installed: None,
            lines: Vec::new(),
        }
    }

    fn tell(&mut self, event: ReceiverEvent) {
        self.receiver.handle(event, self.now_us).unwrap();
    }

    fn offered(&mut self, from: NodeId, index: Index) {
        self.tell(ReceiverEvent::Offered(Offer { from, index }));
    }

    /// Runs until it is done, or `until_us`, with what the end of each connection in turn does; the
    /// last one again and again.
    fn run(&mut self, senders: &BTreeMap<NodeId, &Store>, ends: &[End], until_us: u64) {
        let mut open: Option<(SnapshotSender, End, usize)> = None;
        while self.now_us < until_us && self.installed.is_none() {
            match self.receiver.poll(&self.others, self.now_us).unwrap() {
                ReceiverEffect::Dial { sender } => {
                    let end = ends[self.dialed.len().min(ends.len() - 1)];
                    self.dialed.push(sender);
                    if end == End::Refuses {
                        self.tell(ReceiverEvent::Lost { why: "refused".to_string() });
                        continue;
                    }
                    let reader = senders[&sender].reader();
                    open = Some((SnapshotSender::new(reader), end, 0));
                    self.tell(ReceiverEvent::Connected);
                }
                ReceiverEffect::Send(request) => {
                    self.now_us += 1_000;
                    let (sender, end, asked) = open.as_mut().expect("a connection");
                    *asked += 1;
                    let asked = *asked;
                    let mut response = match *end {
                        End::Silent(taken) if asked > taken => continue,
                        End::Breaks(taken) if asked > taken => {
                            self.tell(ReceiverEvent::Lost { why: "closed".to_string() });
                            continue;
                        }
                        End::Empty => SnapshotResponse::Gone,
                        _ => match sender.asked(request) {
                            SenderEffect::Send(response) => response,
                            other => panic!("{other:?}"),
                        },
                    };
                    if let (End::Spoils, SnapshotResponse::Piece { bytes, .. }) =
                        (*end, &mut response)
                    {
                        bytes[10] ^= 1;
                    }
                    self.pieces += usize::from(matches!(response, SnapshotResponse::Piece { .. }));
                    self.tell(ReceiverEvent::Answered(response));
                }
                ReceiverEffect::Close => (open, self.closed) = (None, self.closed + 1),
                ReceiverEffect::Install { snapshot, index } => {
                    self.installed = Some((snapshot, index));
                }
                ReceiverEffect::Say { text, .. } => self.lines.push(text),
                ReceiverEffect::Wait { until_us: u64::MAX } => return,
                ReceiverEffect::Wait { until_us } => self.now_us = self.now_us.max(until_us),
            }
        }
    }

    fn index(&self) -> Option<Index> {
        self.installed.as_ref().map(|(_, index)| *index)
    }
}

/// The leader offers, answers, and everything arrives; then the connection is closed, and nothing more
/// is wanted once the applier has it.
#[test]
fn an_offered_snapshot_is_fetched_from_the_leader() {
    let store = Store::full(3);
    let mut f = Fetching::new();
    f.offered(3, 40);
    f.run(&BTreeMap::from([(3, &store)]), &[End::Answers], 60_000_000);
    assert_eq!((f.index(), &f.dialed[..]), (Some(REACHES), &[3][..]));
    assert!(f.pieces > 2, "{}", f.pieces);
    assert_eq!(f.receiver.progress().unwrap().to_string(), "installing a snapshot");
    // Another offer meanwhile begins nothing.
    f.offered(2, 50);
    f.tell(ReceiverEvent::Installed);
    f.installed = None;
    f.run(&BTreeMap::new(), &[End::Refuses], 60_000_000);
    assert_eq!((f.closed, f.dialed.len(), f.receiver.progress()), (1, 1, None));
}

/// A firewall forgets the connection in the middle of a transfer. After two seconds without a byte
/// another one is made, with the same sender, and what is whole is not fetched again.
#[test]
fn a_silent_connection_is_given_up_soon_and_the_transfer_goes_on() {
    let store = Store::full(3);
    let senders = BTreeMap::from([(3, &store)]);
    let mut whole = Fetching::new();
    whole.offered(3, 40);
    whole.run(&senders, &[End::Answers], 60_000_000);
    let mut f = Fetching::new();
    f.offered(3, 40);
    f.run(&senders, &[End::Silent(4), End::Answers], 60_000_000);
    assert_eq!((f.index(), &f.dialed[..]), (Some(REACHES), &[3, 3][..]));
    assert_eq!(f.pieces, whole.pieces, "nothing twice");
    let took_us = f.now_us - whole.now_us;
    assert!((2_000_000..2_500_000).contains(&took_us), "{took_us}");
    assert!(f.lines.iter().any(|line| line.contains("no byte arrived")), "{:?}", f.lines);
}

/// A large answer on a slow link: bytes arrive all the time, and nothing is given up.
#[test]
fn bytes_that_arrive_are_life() {
    let store = Store::full(3);
    let mut f = Fetching::new();
    f.offered(3, 40);
    f.run(&BTreeMap::from([(3, &store)]), &[End::Silent(2)], 100_000);
    for _ in 0..30 {
        f.now_us += 1_000_000;
        f.tell(ReceiverEvent::Heard);
        let effect = f.receiver.poll(&f.others, f.now_us).unwrap();
        assert!(matches!(effect, ReceiverEffect::Wait { until_us } if until_us > f.now_us));
    }
    assert_eq!(f.dialed, [3]);
}

/// The leader cannot be reached from here, or has nothing that reaches far enough, or its store is
/// damaged: the others are asked in turn, the leader among them again, with pauses that grow.
#[test]
fn another_sender_is_tried_when_one_is_of_no_use() {
    let store = Store::full(4);
    let mut f = Fetching::new();
    f.offered(3, 40);
    let ends = [End::Refuses, End::Empty, End::Refuses, End::Answers];
    f.run(&BTreeMap::from([(2, &store), (3, &store), (4, &store)]), &ends, 60_000_000);
    assert_eq!((f.index(), &f.dialed[..]), (Some(REACHES), &[3, 2, 4, 3][..]));

    // Whoever has sent something is tried once more before that is given up.
    let mut f = Fetching::new();
    f.offered(3, 40);
    let ends = [End::Breaks(3), End::Refuses, End::Answers];
    f.run(&BTreeMap::from([(2, &store), (3, &store), (4, &store)]), &ends, 60_000_000);
    assert_eq!((f.index(), &f.dialed[..]), (Some(REACHES), &[3, 3, 2][..]));

    let mut f = Fetching::new();
    f.offered(3, 40);
    f.run(&BTreeMap::from([(2, &store), (3, &store), (4, &store)]), &[End::Empty], 3_600_000_000);
    assert_eq!(f.dialed[..4], [3, 2, 4, 3]);
    let dials = f.dialed.len();
    assert!((700..900).contains(&dials), "{dials} in an hour");
    let lines = f.lines.len();
    assert!((60..200).contains(&lines), "{lines} in an hour");
}

/// The leader dies while it is dialed, and another one offers a snapshot. That the dial fails is held against
/// the old leader alone: the new one is asked next, and once more after its first connection went silent.
#[test]
fn a_new_leader_is_not_passed_over_for_what_the_old_one_did() {
    let store = Store::full(4);
    let mut f = Fetching::new();
    f.offered(2, 40);
    while !matches!(f.receiver.poll(&f.others, f.now_us).unwrap(), ReceiverEffect::Dial { .. }) {}
    f.offered(3, 40);
    f.tell(ReceiverEvent::Lost { why: "no answer".to_string() });
    let ends = [End::Silent(0), End::Answers];
    f.run(&BTreeMap::from([(2, &store), (3, &store), (4, &store)]), &ends, 60_000_000);
    assert_eq!((f.index(), &f.dialed[..]), (Some(REACHES), &[3, 3][..]));
}

/// What arrives is damaged, as the sender's memory or a proxy is: that shows when it is merged. It is
/// not fetched from there in a circle.
#[test]
fn a_damaged_table_is_fetched_from_another_sender() {
    let (one, other) = (Store::full(3), Store::full(2));
    let senders = BTreeMap::from([(2, &other), (3, &one)]);
    let mut f = Fetching::new();
    f.offered(3, 40);
    f.run(&senders, &[End::Spoils, End::Answers], 60_000_000);
    assert_eq!((f.index(), &f.dialed[..]), (Some(REACHES), &[3, 2][..]));
    assert!(f.lines.iter().any(|line| line.contains("damaged")), "{:?}", f.lines);
}

/// A damaged store is repaired from any other node, whoever leads, and an offer that reaches less far
/// does not change what it needs.
#[test]
fn a_repair_asks_everybody() {
    let store = Store::full(4);
    let mut f = Fetching::new();
    f.others = BTreeSet::from([2, 4]);
    f.tell(ReceiverEvent::Damaged { index: REACHES });
    f.offered(3, 40);
    let ends = [End::Empty, End::Breaks(3), End::Answers];
    f.run(&BTreeMap::from([(2, &store), (4, &store)]), &ends, 60_000_000);
    assert_eq!((f.index(), &f.dialed[..]), (Some(REACHES), &[2, 4, 4][..]));
}

/// The log brings what was needed while no connection could be made: nothing more is fetched.
#[test]
fn a_transfer_ends_when_the_log_has_brought_what_it_was_for() {
    let mut f = Fetching::new();
    f.offered(3, 40);
    f.run(&BTreeMap::new(), &[End::Refuses], 1_000_000);
    f._store.fill(1..=40);
    let dials = f.dialed.len();
    f.run(&BTreeMap::new(), &[End::Refuses], 20_000_000);
    assert_eq!((f.dialed.len(), f.receiver.progress()), (dials, None));
}

/// What is asked for is applied and not in tables yet: it is made durable first. What was not applied
/// is not there, and neither is a piece that nobody described.
#[test]
fn a_sender_makes_durable_what_it_is_asked_for() {
    let mut store = Store::new(&TestDisk::default(), 2);
    store.fill(1..=5);
    let mut sender = SnapshotSender::new(store.reader());
    let begin = |index| SnapshotRequest::Begin { index };
    assert!(matches!(sender.asked(begin(6)), SenderEffect::Send(SnapshotResponse::Gone)));
    assert!(matches!(sender.asked(begin(5)), SenderEffect::Flush));
    // It could not: the receiver is to ask elsewhere, or later.
    assert_eq!(sender.flushed(), Some(SnapshotResponse::Gone));
    assert_eq!(sender.flushed(), None);
    assert!(matches!(sender.asked(begin(5)), SenderEffect::Flush));
    store.store.flush();
    store.work();
    assert!(matches!(sender.flushed(), Some(SnapshotResponse::Begins { .. })));
    assert_eq!(store.reader().view().applied(), 5);
    let piece = crate::kv::Piece { table: 99, offset: 0, len: 1 };
    let asked = sender.asked(SnapshotRequest::Piece(piece));
    assert!(matches!(asked, SenderEffect::Send(SnapshotResponse::Gone)));
}

//! What other nodes say: frames of the peer protocol, and both ends of a snapshot.

use super::mutation::{Form, framed};
use super::{Target, words};
use crate::api::tests::node_of_two;
use crate::kv::{LsmStore, Store as _, StoreOptions};
use crate::node::tests::snapshot_transfer::{REACHES, Store};
use crate::node::{
    Input, Node, ReceiverEffect, ReceiverEvent, SenderEffect, SnapshotReceiver, SnapshotRequest,
    SnapshotResponse, SnapshotSender, input_of, request_of, response_frame, response_of,
};
use crate::raft::Offer;
use crate::sim::dice::Dice;
use crate::wal::testdisk::TestDisk;
use crate::wire::frame::{CLIENT_FRAME_MAX, FRAME_HEADER_BYTES, FrameReader};
use crate::wire::peer::take_peer_frame;
use crate::wire::samples;
use crate::wire::snapshot::put_snapshot_frame;
use std::collections::BTreeSet;
use std::path::Path;

/// Examples of a strategy that the codecs' tests use.
const EXAMPLES: usize = 150;
/// Frames of node 2, which is a member and lies.
pub(super) struct Peer {
    node: Node<u64>,
    now_us: u64,
}

impl Peer {
    /// What the node wants done; its disk takes everything at once.
    fn effects(&mut self) {
        for _ in 0..8 {
            let effects = self.node.effects(self.now_us);
            let Some(persist) = effects.replica.persist else { return };
            let input = Input::Persisted { seq: persist.seq, log_bytes: 0 };
            self.node.handle(input, self.now_us);
        }
    }
}

impl Target for Peer {
    const NAME: &'static str = "peer";
    const FORM: Form = Form::Body;

    fn examples() -> Vec<Vec<u8>> {
        samples::bodies(samples::peer_frames(), EXAMPLES)
    }

    fn new() -> Peer {
        Peer { node: node_of_two("host:2", 10, 0).1, now_us: 0 }
    }

    fn take(&mut self, inputs: &[Vec<u8>], dice: &mut Dice) -> String {
        let mut end = String::new();
        let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
        reader.feed(&framed(inputs, dice));
        loop {
            let body = match reader.next_frame() {
                Ok(Some(body)) => body,
                Ok(None) => return end,
                Err(e) => return words(&e.to_string()),
            };
            self.now_us += dice.log_between(1, 200_000);
            let frame = match take_peer_frame(body) {
                Ok(frame) => frame,
                Err(e) => return words(&e.to_string()),
            };
            let kind = format!("{frame:?}");
            let kind: String = kind.split_whitespace().take(6).collect::<Vec<_>>().join(" ");
            end = match input_of(frame, 2, 1) {
                Ok(Some(input)) => {
                    self.node.handle(input, self.now_us);
                    words(&kind)
                }
                Ok(None) => "a ping".to_string(),
                Err(e) => words(&e),
            };
            self.effects();
            self.now_us = self.now_us.max(self.node.next_tick_us().min(self.now_us + 300_000));
            self.node.tick(self.now_us);
            self.effects();
        }
    }
}

/// A node that asks this one for a snapshot.
pub(super) struct Asker {
    sender: SnapshotSender,
    _store: Store,
}

impl Target for Asker {
    const NAME: &'static str = "snapshot-asker";
    const FORM: Form = Form::Body;

    fn examples() -> Vec<Vec<u8>> {
        samples::bodies(samples::snapshot_frames(REACHES), 20)
    }

    fn new() -> Asker {
        let store = Store::full(2);
        Asker { sender: SnapshotSender::new(store.reader()), _store: store }
    }

    fn take(&mut self, inputs: &[Vec<u8>], _: &mut Dice) -> String {
        let mut end = String::new();
        for input in inputs {
            end = match request_of(input) {
                Err(e) => words(&e),
                Ok(request) => match self.sender.asked(request) {
                    SenderEffect::Send(SnapshotResponse::Begins { .. }) => "begins".to_string(),
                    SenderEffect::Send(SnapshotResponse::Piece { bytes, .. }) => {
                        assert!(bytes.len() <= CLIENT_FRAME_MAX);
                        "a piece".to_string()
                    }
                    SenderEffect::Send(SnapshotResponse::Gone) => "gone".to_string(),
                    SenderEffect::Flush => {
                        self.sender.flushed();
                        "is to flush".to_string()
                    }
                    SenderEffect::Unreadable(e) => panic!("{e}"),
                },
            };
        }
        end
    }
}

/// A node that gives this one a snapshot, and changes what it sends.
pub(super) struct Giver {
    store: Store,
}

/// Questions that one conversation has at most: a receiver that is lied to begins anew for as long as it is let.
const QUESTIONS: usize = 60;

impl Target for Giver {
    const NAME: &'static str = "snapshot-giver";
    const FORM: Form = Form::Body;

    fn examples() -> Vec<Vec<u8>> {
        let mut sender = SnapshotSender::new(Store::full(2).reader());
        let mut bodies = Vec::new();
        let mut ask = |request| {
            let SenderEffect::Send(response) = sender.asked(request) else { panic!("unreadable") };
            let mut frame = Vec::new();
            put_snapshot_frame(&mut frame, &response_frame(response));
            bodies.push(frame[FRAME_HEADER_BYTES..].to_vec());
        };
        ask(SnapshotRequest::Begin { index: REACHES });
        ask(SnapshotRequest::Begin { index: REACHES + 1 });
        bodies
    }

    fn new() -> Giver {
        Giver { store: Store::full(2) }
    }

    /// The inputs take the place of answers, of which most are right.
    fn take(&mut self, inputs: &[Vec<u8>], dice: &mut Dice) -> String {
        let disk = TestDisk::default();
        let own = LsmStore::open(disk.shared(), Path::new("/data/store"), StoreOptions::new(1));
        let (own, _worker) = own.unwrap();
        let mut receiver = SnapshotReceiver::new(disk.shared(), Path::new("/data"), own.reader());
        receiver.handle(ReceiverEvent::Offered(Offer { from: 2, index: REACHES }), 1).unwrap();
        let mut sender = SnapshotSender::new(self.store.reader());
        let (mut inputs, mut asked, mut now_us) = (inputs.iter(), 0, 1);
        let (mut end, others) = ("silence".to_string(), BTreeSet::from([2]));
        while asked < QUESTIONS {
            match receiver.poll(&others, now_us).unwrap() {
                ReceiverEffect::Dial { .. } => {
                    receiver.handle(ReceiverEvent::Connected, now_us).unwrap();
                }
                ReceiverEffect::Send(request) => {
                    (asked, now_us) = (asked + 1, now_us + 1000);
                    let lie = if dice.chance(1, 3) { inputs.next() } else { None };
                    let response = match (lie.map(|body| response_of(body)), sender.asked(request))
                    {
                        (Some(Ok(response)), _) | (None, SenderEffect::Send(response)) => response,
                        (Some(Err(e)), _) => {
                            end = words(&e);
                            let lost = ReceiverEvent::Lost { why: e };
                            receiver.handle(lost, now_us).unwrap();
                            continue;
                        }
                        (None, other) => panic!("{other:?}"),
                    };
                    receiver.handle(ReceiverEvent::Answered(response), now_us).unwrap();
                }
                ReceiverEffect::Close => {}
                ReceiverEffect::Install { index, .. } => {
                    // What is installed was checked against its own sums.
                    assert_eq!(index, REACHES);
                    return format!("installed after {end}");
                }
                ReceiverEffect::Say { text, .. } => end = words(&text),
                ReceiverEffect::Wait { until_us } => {
                    (asked, now_us) = (asked + 1, now_us.max(until_us.min(now_us + 10_000_000)));
                }
            }
        }
        end
    }
}

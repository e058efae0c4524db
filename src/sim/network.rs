//! The simulated network: lines between machines, and flows on them that behave like TCP.
//!
//! A *line* is one direction between two machines. It may be cut, slow, lossy and late. A *flow* is a
//! connection: two ordered byte streams, each with a buffer. What was written arrives in order, once,
//! or the flow ends:
//! - a line has a bandwidth that all its flows share; a large packet holds up what is behind it;
//! - a writer that is ahead of the line by a buffer has to wait;
//! - on a cut line everything stalls and goes on when that is mended, as a sender repeats segments;
//! - loss on a line is delay of a flow, since segments are repeated;
//! - a firewall may forget a flow: it goes silent, while new ones pass;
//! - the end of a process closes its flows behind what it has written. The end of a machine closes
//!   nothing; the other side finds out by silence, or when the machine is back and knows nothing of it;
//! - each flow has delays of its own. So flows are accepted in another order than they were dialed, and
//!   what an abandoned one carried may arrive after what its successor carries.
//!
//! In *harsh* runs messages of the consensus core do not keep to flows: each may be lost, doubled and
//! overtaken, and may arrive in a later life of the receiver. The core stands more than TCP does to it.

use super::dice::Dice;
use crate::node::{ConnectionId, Outgoing, SnapshotRequest, SnapshotResponse};
use crate::raft::{Body, Entry, Message, NodeId};
use std::collections::{BTreeMap, VecDeque};

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// A frame of a handshake.
    Handshake(Vec<u8>),
    /// What one raft loop has for another.
    Outgoing(Outgoing),
    /// A node fetches a snapshot.
    SnapshotRequest(SnapshotRequest),
    /// It is answered.
    SnapshotResponse(SnapshotResponse),
    /// Is somebody there?
    Ping,
    /// Yes; and who leads, and where that is.
    Pong {
        /// The leader, 0 for unknown.
        leader: NodeId,
        /// Its address.
        address: String,
    },
    /// The sender writes no more.
    Fin,
}

/// What a packet counts for beside the bytes it carries.
const PACKET_BYTES: usize = 64;

impl Packet {
    /// What it counts for on a line.
    pub(super) fn bytes(&self) -> usize {
        PACKET_BYTES
            + match self {
                Packet::Outgoing(Outgoing::Message(Message {
                    body: Body::AppendEntries { entries, .. },
                    ..
                })) => entries.iter().map(Entry::weight).sum(),
                Packet::Outgoing(Outgoing::Forward(forward)) => forward.command.len(),
                Packet::SnapshotResponse(SnapshotResponse::Piece { bytes, .. }) => bytes.len(),
                Packet::SnapshotResponse(SnapshotResponse::Begins { manifest }) => manifest.len(),
                _ => 0,
            }
    }
}

/// One direction between two machines.
#[derive(Clone, Debug)]
pub struct Line {
    /// Nothing passes, and nobody is told.
    pub cut: bool,
    /// Of 1000 messages so many are lost, or segments repeated.
    pub loss: u64,
    /// Of 1000 messages so many arrive twice; harsh runs only.
    pub duplication: u64,
    /// Smallest and largest delay, in microseconds.
    pub delay_us: (u64, u64),
    /// Bytes a second; 0 for no bound.
    pub bandwidth: u64,
    /// When everything that was written until now has left.
    free_us: u64,
}

/// Delays on a quiet local network, in microseconds.
pub const QUIET_DELAY_US: (u64, u64) = (80, 1_500);
/// Bytes that a writer may be ahead of what has arrived.
const BUFFER_BYTES: usize = 16 << 10;
/// First and longest time after which a segment is repeated, in microseconds.
const REPEAT_US: (u64, u64) = (200_000, 1_600_000);

impl Default for Line {
    fn default() -> Line {
        Line {
            cut: false,
            loss: 0,
            duplication: 0,
            delay_us: QUIET_DELAY_US,
            bandwidth: 0,
            free_us: 0,
        }
    }
}

/// The number of all connections for snapshots: a node fetches on one at a time.
const SNAPSHOT: ConnectionId = ConnectionId::MAX;

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The one that has dialed.
    Dialer,
    /// The one that was dialed.
    Acceptor,
}

impl End {
    pub(super) fn other(self) -> End {
        match self {
            End::Dialer => End::Acceptor,
            End::Acceptor => End::Dialer,
        }
    }
}

/// A node in one of its lives.
pub(super) type Place = (NodeId, u64);

#[derive(Debug)]
struct Segment {
    packet: Packet,
    bytes: usize,
    /// When its first byte arrives, and when all of it is there.
    first_us: u64,
    due_us: u64,
}

/// One direction of a flow.
#[derive(Debug, Default)]
struct Stream {
    under_way: VecDeque<Segment>,
    bytes: usize,
    last_due_us: u64,
    repeats: u32,
    /// An arrival is scheduled.
    awaited: bool,
    /// The writer has said that it writes no more.
    finished: bool,
    /// The reader reads no more.
    deaf: bool,
}

/// A connection; see the module.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) dialer: Place,
    pub(super) acceptor: Place,
    /// The dialer's number for it.
    pub(super) connection: ConnectionId,
    forgotten: bool,
    streams: [Stream; 2],
}

impl Flow {
    pub(super) fn place(&self, end: End) -> Place {
        match end {
            End::Dialer => self.dialer,
            End::Acceptor => self.acceptor,
        }
    }

    /// What arrives at that end.
    fn stream(&mut self, to: End) -> &mut Stream {
        &mut self.streams[usize::from(to == End::Dialer)]
    }
}

/// What an arrival brings.
#[derive(Debug)]
pub(super) enum Arrival {
    /// Nothing more.
    Nothing,
    /// Nothing yet: again after so long.
    Later(u64),
    /// This; and the next thing, if there is one, after so long at the earliest.
    Packet(Packet, Option<u64>),
}

/// All lines and flows.
#[derive(Debug)]
pub struct Network {
    lines: BTreeMap<(NodeId, NodeId), Line>,
    flows: BTreeMap<u64, Flow>,
    next_flow: u64,
    dice: Dice,
    /// Packets of snapshots until a firewall forgets the connection that carries them.
    snapshot_goes_dark: Option<u64>,
    /// Messages of the core do not keep to flows.
    pub(super) harsh: bool,
    /// How often each thing happened.
    pub(super) counters: BTreeMap<&'static str, u64>,
}

impl Network {
    /// A quiet network.
    pub fn new(mut dice: Dice) -> Network {
        let harsh = dice.chance(1, 3);
        let (lines, flows, counters) = Default::default();
        let snapshot_goes_dark = None;
        Network { lines, flows, next_flow: 1, dice, snapshot_goes_dark, harsh, counters }
    }

    fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    // ---- lines ----

    /// The line between two nodes.
    pub fn line(&mut self, from: NodeId, to: NodeId) -> &mut Line {
        self.lines.entry((from, to)).or_default()
    }

    /// Whether something is cut between the two, in either direction.
    pub fn is_cut(&mut self, one: NodeId, other: NodeId) -> bool {
        self.line(one, other).cut || self.line(other, one).cut
    }

    /// Makes every line quiet again. Slow ones stay slow, flows stay, and forgotten ones stay forgotten.
    pub fn heal(&mut self) {
        for line in self.lines.values_mut() {
            let Line { bandwidth, free_us, .. } = *line;
            *line = Line { bandwidth, free_us, ..Line::default() };
        }
    }

    /// Every line loses so many of 1000 messages.
    pub(super) fn lose(&mut self, of_1000: u64) {
        self.lines.values_mut().for_each(|line| line.loss = of_1000);
    }

    /// Nothing is cut any more.
    pub fn reconnect(&mut self) {
        self.lines.values_mut().for_each(|line| line.cut = false);
    }

    /// Time that one packet takes to the other end of a line of which nothing is known but its delays.
    pub(super) fn delay_us(&mut self, from: NodeId, to: NodeId) -> u64 {
        let (least, most) = self.line(from, to).delay_us;
        self.dice.log_between(least, most)
    }

    /// Delays of the copies of a message that keeps to no flow; harsh runs only.
    pub(super) fn copies(&mut self, from: NodeId, to: NodeId) -> Vec<u64> {
        let line = self.lines.entry((from, to)).or_default().clone();
        if line.cut {
            self.count("messages stopped at a cut");
            return Vec::new();
        }
        let mut delays = vec![self.dice.log_between(line.delay_us.0, line.delay_us.1)];
        if line.duplication > 0 && self.dice.chance(line.duplication, 1000) {
            self.count("messages doubled");
            delays.push(self.dice.log_between(line.delay_us.0, 8 * line.delay_us.1));
        }
        if line.loss > 0 && self.dice.chance(line.loss, 1000) {
            self.count("messages lost");
            delays.pop();
        }
        delays
    }

    // ---- flows ----

    /// A connection is made.
    pub(super) fn open(&mut self, dialer: Place, acceptor: Place, connection: ConnectionId) -> u64 {
        let id = self.next_flow;
        self.next_flow += 1;
        let (forgotten, streams) = Default::default();
        self.flows.insert(id, Flow { dialer, acceptor, connection, forgotten, streams });
        id
    }

    /// A connection for a snapshot is made.
    pub(super) fn open_for_snapshot(&mut self, dialer: Place, acceptor: Place) -> u64 {
        self.open(dialer, acceptor, SNAPSHOT)
    }

    /// Whether bytes of something larger are arriving at that end.
    pub(super) fn is_arriving(&mut self, now_us: u64, id: u64, to: End) -> bool {
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        let (source, target) = (flow.place(to.other()).0, flow.place(to).0);
        let cut = self.lines.get(&(source, target)).is_some_and(|line| line.cut);
        let passes = !cut && !flow.forgotten;
        passes && flow.stream(to).under_way.front().is_some_and(|front| front.first_us <= now_us)
    }

    pub(super) fn flow(&self, id: u64) -> Option<&Flow> {
        self.flows.get(&id)
    }

    /// Flows with an end at that node.
    pub(super) fn flows_of(&self, node: NodeId) -> Vec<(u64, End)> {
        let ends = |(&id, flow): (&u64, &Flow)| {
            [End::Dialer, End::Acceptor]
                .into_iter()
                .filter(|end| flow.place(*end).0 == node)
                .map(|end| (id, end))
                .collect::<Vec<_>>()
        };
        self.flows.iter().flat_map(ends).collect()
    }

    /// Whether a writer at that end need not wait.
    pub(super) fn has_room(&mut self, id: u64, from: End) -> bool {
        let Some(flow) = self.flows.get_mut(&id) else { return true };
        let stream = flow.stream(from.other());
        let room = stream.bytes < BUFFER_BYTES;
        if !room {
            self.count("writes that had to wait");
        }
        room
    }

    /// Writes at one end. Gives when an arrival at the other end is to be looked at, if none is
    /// awaited yet.
    pub(super) fn write(&mut self, now_us: u64, id: u64, from: End, packet: Packet) -> Option<u64> {
        let flow = self.flows.get_mut(&id)?;
        let (source, target) = (flow.place(from).0, flow.place(from.other()).0);
        let line = self.lines.entry((source, target)).or_default();
        let bytes = packet.bytes();
        let takes_us = (bytes as u64 * 1_000_000).checked_div(line.bandwidth).unwrap_or(0);
        line.free_us = line.free_us.max(now_us) + takes_us;
        let mut due_us = line.free_us + self.dice.log_between(line.delay_us.0, line.delay_us.1);
        let repeated = line.loss > 0 && self.dice.chance(line.loss, 1000);
        if repeated {
            due_us += REPEAT_US.0;
        }
        if flow.connection == SNAPSHOT && !matches!(packet, Packet::Fin) {
            self.snapshot_goes_dark = match self.snapshot_goes_dark {
                Some(0) => {
                    flow.forgotten = true;
                    *self.counters.entry("snapshot connections forgotten").or_default() += 1;
                    None
                }
                packets => packets.map(|packets| packets - 1),
            };
        }
        let stream = flow.stream(from.other());
        if stream.finished {
            return None;
        }
        stream.finished = matches!(packet, Packet::Fin);
        due_us = due_us.max(stream.last_due_us + 1);
        stream.last_due_us = due_us;
        stream.bytes += bytes;
        let first_us = due_us - takes_us;
        stream.under_way.push_back(Segment { packet, bytes, first_us, due_us });
        let first = !std::mem::replace(&mut stream.awaited, true);
        if repeated {
            self.count("segments repeated");
        }
        first.then(|| due_us - now_us)
    }

    /// Takes what has arrived at that end, one packet at a time.
    pub(super) fn arrive(&mut self, now_us: u64, id: u64, to: End) -> Arrival {
        let Some(flow) = self.flows.get_mut(&id) else { return Arrival::Nothing };
        let (source, target) = (flow.place(to.other()).0, flow.place(to).0);
        let forgotten = flow.forgotten;
        let cut = self.lines.get(&(source, target)).is_some_and(|line| line.cut);
        let stream = flow.stream(to);
        let Some(front) = stream.under_way.front() else {
            stream.awaited = false;
            return Arrival::Nothing;
        };
        if cut || forgotten {
            let wait_us = (REPEAT_US.0 << stream.repeats.min(4)).min(REPEAT_US.1);
            stream.repeats += 1;
            self.count(if cut {
                "flows stalled at a cut"
            } else {
                "flows forgotten and written to"
            });
            return Arrival::Later(wait_us);
        }
        if front.due_us > now_us {
            return Arrival::Later(front.due_us - now_us);
        }
        stream.repeats = 0;
        let Some(segment) = stream.under_way.pop_front() else { return Arrival::Nothing };
        stream.bytes -= segment.bytes;
        if stream.deaf {
            return Arrival::Later(1);
        }
        let next_us = stream.under_way.front().map(|s| s.due_us.saturating_sub(now_us).max(1));
        stream.awaited = next_us.is_some();
        Arrival::Packet(segment.packet, next_us)
    }

    /// One end reads no more, and writes no more behind what it has written. Gives when an arrival at
    /// the other end is to be looked at, if none is awaited yet.
    pub(super) fn close(&mut self, now_us: u64, id: u64, end: End) -> Option<u64> {
        let due_us = self.write(now_us, id, end, Packet::Fin);
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.stream(end).deaf = true;
            let done = |s: &Stream| s.deaf && s.finished;
            if flow.streams.iter().all(done) {
                self.flows.remove(&id);
            }
        }
        due_us
    }

    /// The machine at one end has lost its power: part of what it has written has left it, and nothing
    /// says that it is gone.
    pub(super) fn lose_power(&mut self, id: u64, end: End) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.stream(end).deaf = true;
        let left = flow.stream(end.other()).under_way.len() as u64;
        let keep = self.dice.below(left + 1) as usize;
        let stream = flow.stream(end.other());
        stream.under_way.truncate(keep);
        stream.bytes = stream.under_way.iter().map(|s| s.bytes).sum();
        stream.finished = true;
    }

    /// The flow is gone at once, with everything under way.
    pub(super) fn reset(&mut self, id: u64) -> Option<Flow> {
        self.flows.remove(&id)
    }

    /// A firewall forgets the flows between two nodes, both ways.
    pub(super) fn forget(&mut self, one: NodeId, other: NodeId) {
        for flow in self.flows.values_mut() {
            let ends = (flow.dialer.0, flow.acceptor.0);
            flow.forgotten |= ends == (one, other) || ends == (other, one);
        }
    }

    /// The same for the connection on which snapshots travel next, or do now, behind so many packets.
    pub(super) fn forget_snapshot(&mut self, packets: u64) {
        self.snapshot_goes_dark = Some(packets);
    }

    /// All flows there are.
    pub(super) fn all_flows(&self) -> Vec<u64> {
        self.flows.keys().copied().collect()
    }
}

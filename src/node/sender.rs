//! The sending half of a dialed connection: what is queued, how much of it the network has taken, when the peer is asked
//! for a sign of life, and what never left this node when the connection breaks.
//!
//! What comes in is queued until that is [a batch](WRITE_BYTES); then all of it is written before more is taken, so
//! that what waits meanwhile waits where it came from. A ping goes behind what is queued: in the middle of a
//! frame it cannot be written. The other side, which hears bytes, answers them unasked ([`Pongs`]).
//!
//! When the connection ends, a forward of which no byte was taken never left this node and surely has no
//! effect. Of any other nobody here can say what became of it: the client that asked for it is told so, and
//! it is never sent again by the node.
//!
//! A [`Queue`] holds the frames: their bytes in production ([`Bytes`]), packets in the simulator.
//!
//! Left out: the socket, and what a write to it that failed has taken, which the system decides
//! (`FAILED_WRITE_TAKES_NOTHING` in `env::real`).

use super::frames::put_outgoing;
use super::link::{LOG_MESSAGE_BYTES, read_entries};
use super::peers::{Due, Keepalive, PING_EVERY_US};
use super::raft_loop::Outgoing;
use crate::raft::{EntriesRead, NodeId};
use crate::wal::{LogReader, ReadError};
use crate::wire::frame::PEER_FRAME_MAX;
use crate::wire::handshake::Lane;
use crate::wire::peer::{PeerFrame, put_peer_frame};

/// Bytes queued before they are written: bounds the queue, a write this long is long enough.
pub const WRITE_BYTES: usize = 1 << 20;
/// Memory for bytes that is kept when there are none.
const CAPACITY_KEPT: usize = 4 << 20;
const _: () = assert!(LOG_MESSAGE_BYTES < PEER_FRAME_MAX);

/// Frames in the order in which they are written.
pub trait Queue: Default {
    /// Queues what is sent, never an [`Outgoing::FromLog`]; gives its length in bytes.
    fn put(&mut self, outgoing: Outgoing) -> usize;
    /// Queues a ping; gives its length in bytes.
    fn put_ping(&mut self) -> usize;
    /// All of it is written.
    fn clear(&mut self);
}

/// The frames as bytes, one behind the other.
#[derive(Debug, Default)]
pub struct Bytes(Vec<u8>);

impl Queue for Bytes {
    fn put(&mut self, outgoing: Outgoing) -> usize {
        let before = self.0.len();
        put_outgoing(&mut self.0, outgoing);
        self.0.len() - before
    }

    fn put_ping(&mut self) -> usize {
        let before = self.0.len();
        put_peer_frame(&mut self.0, &PeerFrame::Ping);
        self.0.len() - before
    }

    fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(CAPACITY_KEPT);
    }
}

/// What was read from the log file to be sent.
#[derive(Debug)]
pub struct Fetched {
    /// For the replica, before the peer can answer.
    pub told: EntriesRead,
    /// Whether a message was queued: not when the log has changed since.
    pub queued: Result<bool, ReadError>,
}

/// What is found out about the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A hastened ping was not answered: another connection is to be tried, this one stays.
    Silent,
    /// The peer is gone, silent for so many microseconds: the connection is to be closed.
    Dead(u64),
    /// It says who leads, and where that is.
    Leader(NodeId, String),
}

/// See the module. Invariants: `taken <= held`; `forwards` ascends by place, and every place is below `held`.
#[derive(Debug)]
pub struct Sender<Q> {
    keepalive: Keepalive,
    queue: Q,
    /// Bytes of the queue since it was last empty, written or not.
    held: usize,
    /// So many of them the network has taken, or may have.
    taken: usize,
    /// Where each forward begins, and its number.
    forwards: Vec<(usize, u64)>,
    /// [`WRITE_BYTES`].
    write_bytes: usize,
}

impl<Q: Queue> Sender<Q> {
    /// The connection is in use from now on.
    pub fn new(now_us: u64) -> Sender<Q> {
        Sender::in_batches_of(WRITE_BYTES, now_us)
    }

    /// The same with batches of another size, for the simulator.
    pub fn in_batches_of(write_bytes: usize, now_us: u64) -> Sender<Q> {
        Sender {
            keepalive: Keepalive::new(now_us),
            queue: Q::default(),
            held: 0,
            taken: 0,
            forwards: Vec::new(),
            write_bytes,
        }
    }

    /// Nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.taken == self.held
    }

    /// Whether more is taken before what there is is written.
    pub fn takes_more(&self) -> bool {
        self.taken == 0 && self.held < self.write_bytes
    }

    /// Queues what is sent. What is in the log file is read first.
    pub fn put(&mut self, outgoing: Outgoing, log: &LogReader) -> Option<Fetched> {
        let Outgoing::FromLog(read) = outgoing else {
            if let Some(id) = outgoing.forward_id() {
                self.forwards.push((self.held, id));
            }
            self.held += self.queue.put(outgoing);
            return None;
        };
        let (made, told) = read_entries(&read, log);
        let queued = made.map(|message| match message {
            Some(message) => {
                self.held += self.queue.put(Outgoing::Message(message));
                true
            }
            None => false,
        });
        Some(Fetched { told, queued })
    }

    /// The network has taken so many bytes of what is queued, or may have.
    pub fn took(&mut self, bytes: usize) {
        assert!(bytes <= self.held - self.taken, "no more than there is");
        self.taken += bytes;
        if self.is_empty() {
            self.queue.clear();
            self.forwards.clear();
            (self.held, self.taken) = (0, 0);
        }
    }

    /// The frames that are queued.
    pub fn queue(&mut self) -> &mut Q {
        &mut self.queue
    }

    /// The connection has ended: the numbers of the forwards that never left this node.
    pub fn into_unsent(self) -> impl Iterator<Item = u64> {
        let Sender { taken, forwards, .. } = self;
        forwards.into_iter().filter(move |(begin, _)| *begin >= taken).map(|(_, id)| id)
    }

    // ---- signs of life ----

    /// When [`Sender::poll`] may find something, after all that has arrived was reported.
    pub fn next_us(&self) -> u64 {
        self.keepalive.next_us()
    }

    /// There is reason to doubt the connection, and what has arrived until now does not dispel it: asks at once.
    pub fn hasten(&mut self, now_us: u64) {
        self.keepalive.hasten(now_us);
    }

    /// Bytes have arrived.
    pub fn heard(&mut self, now_us: u64) {
        self.keepalive.heard(false, now_us);
    }

    /// A frame has arrived.
    ///
    /// # Errors
    /// Nothing but pongs comes on such a connection.
    pub fn heard_frame(&mut self, frame: PeerFrame, now_us: u64) -> Result<Option<Sign>, String> {
        let PeerFrame::Pong { leader, address } = frame else {
            return Err("the peer sends what is no pong".to_string());
        };
        self.keepalive.heard(true, now_us);
        Ok((leader != 0).then_some(Sign::Leader(leader, address)))
    }

    /// Queues a ping when one is due, and says what is found out.
    pub fn poll(&mut self, now_us: u64) -> Option<Sign> {
        match self.keepalive.poll(now_us) {
            Due::Nothing => None,
            Due::Ping => {
                self.held += self.queue.put_ping();
                None
            }
            Due::Silent => Some(Sign::Silent),
            Due::Dead(silent_us) => Some(Sign::Dead(silent_us)),
        }
    }
}

impl Sender<Bytes> {
    /// What is to be written next.
    pub fn queued(&self) -> &[u8] {
        &self.queue.0[self.taken..]
    }
}

/// The other side of it: when an accepted connection owes its dialer a pong.
#[derive(Debug)]
pub struct Pongs {
    lane: Lane,
    answered_us: u64,
}

impl Pongs {
    /// A connection was accepted.
    pub fn new(lane: Lane, now_us: u64) -> Pongs {
        Pongs { lane, answered_us: now_us }
    }

    /// Something has arrived, and the frames that are whole are taken: whether a pong is due though nobody has asked. The dialer's ping may
    /// wait behind frames that take long to arrive; what has arrived of them is answered in its place.
    #[must_use]
    pub fn is_due(&mut self, now_us: u64) -> bool {
        let due = self.lane == Lane::Bulk && now_us >= self.answered_us + PING_EVERY_US;
        if due {
            self.answered_us = now_us;
        }
        due
    }

    /// A ping has arrived, and is answered.
    pub fn pinged(&mut self, now_us: u64) {
        self.answered_us = now_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Forward;
    use crate::wal::testdisk::TestDisk;
    use crate::wal::{self, Wal};
    use std::path::Path;

    fn log() -> LogReader {
        let (segment_bytes, identity, must_exist) = (wal::SEGMENT_BYTES_MIN, 1, false);
        let options = wal::Options { segment_bytes, identity, must_exist };
        let disk = TestDisk::default();
        Wal::open(disk.shared(), Path::new("/log"), options).unwrap().0.reader()
    }

    fn forward(id: u64) -> Outgoing {
        Outgoing::Forward(Forward { id, deadline_ms: 5, command: vec![id as u8; 100].into() })
    }

    /// A connection with a ping, the forwards 1 to 3 and another frame, of whose bytes so many were taken.
    fn taken(count: usize, log: &LogReader) -> Sender<Bytes> {
        let mut sender = Sender::new(0);
        assert_eq!(sender.poll(0), None);
        (1..=3).for_each(|id| assert!(sender.put(forward(id), log).is_none()));
        sender.put(Outgoing::Digest { index: 1, digest: 2 }, log);
        // Byte by byte or at once, it is the same.
        if count.is_multiple_of(2) {
            sender.took(count);
        } else {
            (0..count).for_each(|_| sender.took(1));
        }
        sender
    }

    /// A connection breaks behind any byte. A forward is given back when not one byte of it was taken, and
    /// never otherwise.
    #[test]
    fn a_forward_is_given_back_only_when_no_byte_of_it_was_taken() {
        let log = log();
        let (frame, ping) = (Bytes::default().put(forward(1)), Bytes::default().put_ping());
        let all = taken(0, &log).queued().len();
        for count in 0..all {
            let unsent: Vec<u64> = taken(count, &log).into_unsent().collect();
            let begun = count.saturating_sub(ping).div_ceil(frame).min(3) as u64;
            assert_eq!(unsent, (begun + 1..=3).collect::<Vec<u64>>(), "{count} bytes taken");
        }
        let sender = taken(all, &log);
        assert!(sender.is_empty() && sender.queued().is_empty());
        assert_eq!(sender.into_unsent().count(), 0);
    }

    /// What is queued behind a flush counts from its own place.
    #[test]
    fn a_queue_that_was_emptied_begins_anew() {
        let log = log();
        let mut sender: Sender<Bytes> = Sender::new(0);
        sender.put(forward(1), &log);
        sender.took(sender.queued().len());
        sender.put(forward(2), &log);
        assert_eq!(sender.into_unsent().collect::<Vec<u64>>(), [2]);
    }

    /// A batch is full, and takes no more until all of it is written, however much of it was.
    #[test]
    fn no_more_is_taken_until_a_batch_is_written() {
        let log = log();
        let mut sender: Sender<Bytes> = Sender::in_batches_of(150, 0);
        sender.put(forward(1), &log);
        assert!(sender.takes_more());
        sender.put(forward(2), &log);
        let all = sender.queued().len();
        sender.took(all - 1);
        assert!(!sender.takes_more() && !sender.is_empty());
        sender.took(1);
        assert!(sender.takes_more() && sender.is_empty());
    }

    /// On the lane of large frames the pong does not wait for the ping; on the other one, where frames are small, it
    /// does.
    #[test]
    fn bytes_of_large_frames_are_answered_unasked() {
        let mut bulk = Pongs::new(Lane::Bulk, 0);
        assert!(!bulk.is_due(PING_EVERY_US - 1) && bulk.is_due(PING_EVERY_US));
        assert!(!bulk.is_due(2 * PING_EVERY_US - 1));
        bulk.pinged(2 * PING_EVERY_US - 1);
        assert!(!bulk.is_due(3 * PING_EVERY_US - 2) && bulk.is_due(3 * PING_EVERY_US - 1));
        assert!(!Pongs::new(Lane::Control, 0).is_due(9 * PING_EVERY_US));
    }
}

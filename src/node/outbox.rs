//! The bytes on their way to a peer on one connection: whole frames, how many of their bytes the network
//! has taken, and which of the frames are forwarded writes.
//!
//! When the connection ends, a forward of which no byte was taken never left this node and surely has no
//! effect. Of any other nobody here can say what became of it: the client that asked for it is told so, and
//! it is never sent again by the node.
//!
//! Left out: the socket, and what a write to it that failed has taken, which the system decides
//! (`FAILED_WRITE_TAKES_NOTHING` in `env::real`).

use super::frames::put_outgoing;
use super::raft_loop::Outgoing;
use crate::raft::Message;
use crate::wire::peer::{PeerFrame, put_message, put_peer_frame};

/// Memory for bytes that is kept when there are none.
const CAPACITY_KEPT: usize = 4 << 20;

/// See the module. Invariants: `taken` is at most the length of `bytes`; `forwards` ascends by place, and
/// every place is within `bytes`.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// So many of them the network has taken, or may have.
    taken: usize,
    /// Where each forward begins, and its number.
    forwards: Vec<(usize, u64)>,
}

impl Outbox {
    /// Queues what is sent as a frame; an [`Outgoing::FromLog`] has to be read first.
    pub fn put(&mut self, outgoing: Outgoing) {
        if let Some(id) = outgoing.forward_id() {
            self.forwards.push((self.bytes.len(), id));
        }
        put_outgoing(&mut self.bytes, outgoing);
    }

    /// Queues a message of the core.
    pub fn put_message(&mut self, message: &Message) {
        put_message(&mut self.bytes, message);
    }

    /// Queues a frame that carries nothing of a client.
    pub fn put_frame(&mut self, frame: &PeerFrame) {
        put_peer_frame(&mut self.bytes, frame);
    }

    /// How many bytes it holds: all since it was last empty, written or not.
    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.queued().is_empty()
    }

    /// What is to be written next.
    pub fn queued(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// The network has taken so many bytes of [`Outbox::queued`], or may have.
    pub fn took(&mut self, count: usize) {
        assert!(count <= self.queued().len(), "no more than there is");
        self.taken += count;
        if self.is_empty() {
            self.bytes.clear();
            self.forwards.clear();
            self.taken = 0;
            self.bytes.shrink_to(CAPACITY_KEPT);
        }
    }

    /// The connection has ended: the numbers of the forwards that never left this node.
    pub fn into_unsent(self) -> impl Iterator<Item = u64> {
        let Outbox { taken, forwards, .. } = self;
        forwards.into_iter().filter(move |(begin, _)| *begin >= taken).map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Forward;

    fn forward(id: u64) -> Outgoing {
        Outgoing::Forward(Forward { id, deadline_ms: 5, command: vec![id as u8; 100].into() })
    }

    /// An outbox with a ping, the forwards 1 to 3 and a ping, of whose bytes so many were taken.
    fn taken(count: usize) -> Outbox {
        let mut outbox = Outbox::default();
        outbox.put_frame(&PeerFrame::Ping);
        (1..=3).for_each(|id| outbox.put(forward(id)));
        outbox.put_frame(&PeerFrame::Ping);
        // Byte by byte or at once, it is the same.
        if count.is_multiple_of(2) {
            outbox.took(count);
        } else {
            (0..count).for_each(|_| outbox.took(1));
        }
        outbox
    }

    /// A connection breaks behind any byte. A forward is given back when not one byte of it was taken, and
    /// never otherwise: its first byte alone may have been the last that the peer needed to be sent.
    #[test]
    fn a_forward_is_given_back_only_when_no_byte_of_it_was_taken() {
        let (mut frame, mut ping) = (Outbox::default(), Outbox::default());
        frame.put(forward(1));
        ping.put_frame(&PeerFrame::Ping);
        let (frame, ping) = (frame.held(), ping.held());
        let all = 2 * ping + 3 * frame;
        for count in 0..all {
            let unsent: Vec<u64> = taken(count).into_unsent().collect();
            let begun = count.saturating_sub(ping).div_ceil(frame).min(3) as u64;
            assert_eq!(unsent, (begun + 1..=3).collect::<Vec<u64>>(), "{count} bytes taken");
        }
        let outbox = taken(all);
        assert!(outbox.is_empty() && outbox.held() == 0);
        assert_eq!(outbox.into_unsent().count(), 0);
    }

    /// What is queued behind a flush counts from its own place.
    #[test]
    fn an_outbox_that_was_emptied_begins_anew() {
        let mut outbox = Outbox::default();
        outbox.put(forward(1));
        outbox.took(outbox.held());
        outbox.put(forward(2));
        assert_eq!(outbox.into_unsent().collect::<Vec<u64>>(), [2]);
    }
}

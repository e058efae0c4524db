//! Signs of life of a peer connection: docs/protocol.md, "Ping and Pong".
//!
//! A peer that vanishes without a word (power, cable, a firewall that forgets) closes nothing, and
//! what is written to it disappears into buffers for minutes. The dialing side therefore asks, and
//! the other side counts on being asked.

use super::sockets::is_timeout;
use crate::raft::NodeId;
use crate::wire::frame::{FrameReader, HANDSHAKE_FRAME_MAX};
use crate::wire::peer::{PeerFrame, put_peer_frame, take_peer_frame};
use std::io::{self, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Time between two pings.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(1);
/// A peer that owes a pong for so long is gone.
pub(crate) const PONG_PATIENCE: Duration = Duration::from_secs(3);
/// An inbound peer connection on which nothing comes for so long is dead.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);

// One late ping or pong is no evidence, and the side that can tell more closes first.
const _: () = assert!(2 * PING_EVERY.as_millis() < PONG_PATIENCE.as_millis());
const _: () = assert!(PONG_PATIENCE.as_millis() < SILENCE_MAX.as_millis());

/// The dialing side's account of pings and pongs.
#[derive(Debug)]
pub(crate) struct Pulse {
    reader: FrameReader,
    next_ping: Instant,
    /// When the oldest ping without a pong was written. Counted from there and not from the last
    /// pong: a process that was stopped for a minute finds nothing wrong when it goes on.
    owed_since: Option<Instant>,
    /// Who leads and where that is, by the last pong; taken by whoever makes use of it.
    pub(crate) told: Option<(NodeId, String)>,
}

impl Pulse {
    /// A connection was made; `reader` has read the end of the handshake.
    pub(crate) fn new(reader: FrameReader, now: Instant) -> Pulse {
        Pulse { reader, next_ping: now, owed_since: None, told: None }
    }

    /// Time until [`Pulse::beat`] is due.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        self.next_ping.saturating_duration_since(now)
    }

    /// The peer has just dialed: it may be another process than the one at the end of this connection.
    /// The next beat is due now, and finds out.
    pub(crate) fn hasten(&mut self, now: Instant) {
        self.next_ping = now;
    }

    /// When it is due: takes the pongs that came, without blocking, and appends a ping.
    ///
    /// # Errors
    /// The connection is closed, broken or silent.
    pub(crate) fn beat(
        &mut self,
        stream: &TcpStream,
        out: &mut Vec<u8>,
        now: Instant,
    ) -> io::Result<()> {
        if now < self.next_ping {
            return Ok(());
        }
        self.take_pongs(stream)?;
        let owed = self.owed_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if owed >= PONG_PATIENCE {
            let text = format!("no sign of life for {} ms", owed.as_millis());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        put_peer_frame(out, &PeerFrame::Ping);
        self.owed_since.get_or_insert(now);
        self.next_ping = now + PING_EVERY;
        Ok(())
    }

    fn take_pongs(&mut self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let read = self.read_pongs(stream);
        stream.set_nonblocking(false)?;
        read
    }

    fn read_pongs(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        loop {
            while let Some(body) = self.reader.next_frame().map_err(io::Error::other)? {
                match take_peer_frame(body) {
                    Ok(PeerFrame::Pong { leader, address }) => {
                        self.owed_since = None;
                        self.told = (leader != 0).then_some((leader, address));
                    }
                    _ => return Err(io::Error::other("the peer sends what is no pong")),
                }
            }
            match stream.read(self.reader.space()) {
                Ok(0) => return Err(io::Error::other("the peer closed the connection")),
                Ok(n) => self.reader.filled(n),
                Err(e) if is_timeout(&e) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The reader that a handshake ends with, for [`Pulse::new`].
pub(crate) fn handshake_reader() -> FrameReader {
    FrameReader::new(HANDSHAKE_FRAME_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tests::parts::socket_pair;
    use super::*;
    use crate::wire::frame::PEER_FRAME_MAX;
    use std::io::Write as _;

    fn pong() -> Vec<u8> {
        let mut out = Vec::new();
        let pong = PeerFrame::Pong { leader: 3, address: "host:3".to_string() };
        put_peer_frame(&mut out, &pong);
        out
    }

    /// Beats once a second for `seconds`, and after each answers as `answer` says. Gives the second
    /// in which the connection was given up.
    fn run(seconds: u64, answer: impl Fn(u64) -> bool) -> Option<u64> {
        let (ours, theirs) = socket_pair();
        let start = Instant::now();
        let mut pulse = Pulse::new(handshake_reader(), start);
        for second in 0..seconds {
            let mut out = Vec::new();
            let now = start + Duration::from_secs(second);
            assert!(pulse.wait(now).is_zero());
            if pulse.beat(&ours, &mut out, now).is_err() {
                return Some(second);
            }
            assert_eq!(pulse.wait(now), PING_EVERY);
            let mut reader = FrameReader::new(PEER_FRAME_MAX);
            reader.feed(&out);
            let body = reader.next_frame().unwrap().unwrap();
            assert_eq!(take_peer_frame(body).unwrap(), PeerFrame::Ping);
            (&ours).write_all(&out).unwrap();
            if answer(second) {
                (&theirs).write_all(&pong()).unwrap();
                // Loopback delivers at once or soon: waits until the pong can be seen.
                ours.peek(&mut [0]).unwrap();
            }
        }
        None
    }

    /// The peer swallows everything and never answers, as if its machine had lost power: given up
    /// after three seconds.
    #[test]
    fn a_peer_that_swallows_bytes_is_given_up() {
        assert_eq!(run(10, |_| false), Some(3));
    }

    /// The peer answers, and dies later.
    #[test]
    fn a_peer_that_falls_silent_is_given_up() {
        assert_eq!(run(60, |second| second < 20), Some(23));
    }

    /// A peer that answers every other second only is slow, not gone.
    #[test]
    fn a_peer_that_answers_at_all_is_kept() {
        assert_eq!(run(60, |second| second % 2 == 1), None);
    }

    /// This process was stopped for a minute behind a pong. The peer owes nothing: it is asked, not
    /// judged.
    #[test]
    fn a_pause_of_our_own_is_not_the_peers_silence() {
        let (ours, theirs) = socket_pair();
        let start = Instant::now();
        let mut pulse = Pulse::new(handshake_reader(), start);
        let mut out = Vec::new();
        pulse.beat(&ours, &mut out, start).unwrap();
        (&theirs).write_all(&pong()).unwrap();
        ours.peek(&mut [0]).unwrap();
        let late = start + Duration::from_secs(60);
        pulse.beat(&ours, &mut out, late).unwrap();
        assert_eq!(pulse.told.take(), Some((3, "host:3".to_string())));
        assert!(pulse.beat(&ours, &mut out, late + PONG_PATIENCE).is_err());
    }

    /// A peer that closes is noticed with the next beat; one that sends anything but pongs is not
    /// listened to.
    #[test]
    fn a_closed_connection_and_a_wrong_frame_end_it() {
        let (ours, theirs) = socket_pair();
        let now = Instant::now();
        let mut pulse = Pulse::new(handshake_reader(), now);
        drop(theirs);
        ours.peek(&mut [0]).unwrap();
        assert!(pulse.beat(&ours, &mut Vec::new(), now).is_err());

        let (ours, theirs) = socket_pair();
        let mut pulse = Pulse::new(handshake_reader(), now);
        let mut ping = Vec::new();
        put_peer_frame(&mut ping, &PeerFrame::Ping);
        (&theirs).write_all(&ping).unwrap();
        ours.peek(&mut [0]).unwrap();
        assert!(pulse.beat(&ours, &mut Vec::new(), now).is_err());
    }
}

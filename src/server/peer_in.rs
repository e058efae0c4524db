//! The thread of a connection that another node has made: the peer half of the native protocol.
//!
//! The raft loop decides who is let in. Until its decision is here nothing is read behind the Hello.

use super::connections::Decision;
use super::handshakes::log_refused;
use super::logging::{debug, warning};
use super::sockets::{is_timeout, read, write_patiently};
use super::{Shared, snapshots};
use crate::node::{ConnectionId, Input, PeerEvent, Pongs, SILENCE_MAX_US, input_of};
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX};
use crate::wire::handshake::{Hello, Role};
use crate::wire::peer::{PeerFrame, put_peer_frame, take_peer_frame};
use crate::wire::proof::Presented;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// A connection on which nothing arrives for so long is dead.
pub(super) const SILENCE_MAX: Duration = Duration::from_micros(SILENCE_MAX_US);

/// Serves a node that has presented itself so. The handshake is done at `until`.
pub(super) fn serve(
    stream: &Arc<TcpStream>,
    reader: FrameReader,
    presented: Box<Presented>,
    until: Instant,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let (accepted, decided) = Accepted::register(stream, shared);
    let connection = accepted.connection;
    let hello = &*presented.hello.clone();
    let _ = shared.raft.send(Input::Link(PeerEvent::Accepted { connection, presented }));
    let Decision { rejected, frame } = wait(&decided, until)?;
    if let Some(reject) = &rejected {
        log_refused(shared, stream, Some(hello), &reject.message);
    }
    write_patiently(stream, &frame)?;
    if rejected.is_some() {
        return Ok(());
    }
    if hello.role == Role::Snapshot {
        return snapshots::serve(stream, reader, hello.from, shared);
    }
    debug!("peer={} connected", hello.from);
    let ended = Incoming::new(stream, reader, hello, shared).listen();
    if let Err(e) = &ended {
        warning!("connection from peer={} ended: {e}", hello.from);
    }
    ended
}

fn wait(decided: &Receiver<Decision>, until: Instant) -> io::Result<Decision> {
    let left = until.saturating_duration_since(Instant::now());
    decided.recv_timeout(left).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
}

/// An accepted connection is known to the raft loop until this is dropped.
struct Accepted<'a> {
    connection: ConnectionId,
    shared: &'a Shared,
}

impl<'a> Accepted<'a> {
    fn register(stream: &Arc<TcpStream>, shared: &'a Shared) -> (Accepted<'a>, Receiver<Decision>) {
        let (connection, decided) = shared.accepted.register(stream);
        (Accepted { connection, shared }, decided)
    }
}

impl Drop for Accepted<'_> {
    fn drop(&mut self) {
        let connection = self.connection;
        self.shared.accepted.forget(connection);
        let _ = self.shared.raft.send(Input::Link(PeerEvent::AcceptedClosed { connection }));
    }
}

/// The frames of a peer.
struct Incoming<'a> {
    stream: &'a TcpStream,
    reader: FrameReader,
    hello: &'a Hello,
    shared: &'a Shared,
    pongs: Pongs,
}

impl<'a> Incoming<'a> {
    fn new(
        stream: &'a TcpStream,
        mut reader: FrameReader,
        hello: &'a Hello,
        shared: &'a Shared,
    ) -> Incoming<'a> {
        reader.set_limit(PEER_FRAME_MAX);
        let pongs = Pongs::new(hello.lane, shared.clock.now_us());
        Incoming { stream, reader, hello, shared, pongs }
    }

    /// Takes what the peer sends until the connection ends.
    fn listen(&mut self) -> io::Result<()> {
        self.stream.set_read_timeout(Some(SILENCE_MAX))?;
        loop {
            while let Some(body) = self.reader.next_frame().map_err(io::Error::other)? {
                let frame = take_peer_frame(body).map_err(io::Error::other)?;
                let input = input_of(frame, self.hello.from, self.shared.node.id);
                match input.map_err(io::Error::other)? {
                    Some(input) => {
                        if self.shared.raft.send(input).is_err() {
                            return Ok(());
                        }
                    }
                    None => {
                        self.pongs.pinged(self.shared.clock.now_us());
                        self.answer()?;
                    }
                }
            }
            if self.pongs.is_due(self.shared.clock.now_us()) {
                self.answer()?;
            }
            let n = match read(self.stream, self.reader.space()) {
                Err(e) if is_timeout(&e) => {
                    let text = format!("silent for {} s", SILENCE_MAX.as_secs());
                    return Err(io::Error::new(e.kind(), text));
                }
                read => read?,
            };
            if n == 0 {
                return self.reader.finish().map_err(io::Error::other);
            }
            self.reader.filled(n);
        }
    }

    fn answer(&mut self) -> io::Result<()> {
        let (leader, address) = self.shared.node.known_leader();
        let mut pong = Vec::new();
        put_peer_frame(&mut pong, &PeerFrame::Pong { leader, address });
        write_patiently(self.stream, &pong)
    }
}

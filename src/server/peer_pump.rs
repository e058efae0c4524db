//! Writes to a dialed connection what [`Sender`] has queued, and reads the pongs, until the connection breaks.
//!
//! A write that blocks must not hide a dead peer, nor one that is alive behind a slow link. So no write
//! blocks for long, and between two of them the pongs that have arrived are read.

use super::Shared;
use super::logging::warning;
use super::peer_out::{Closing, Command};
use super::sockets::is_timeout;
use crate::env::real::{FAILED_WRITE_TAKES_NOTHING, WRITE_AT_ONCE};
use crate::node::{Bytes, ConnectionId, Fetched, Input, Outgoing, PeerEvent, Sender, Sign};
use crate::raft::NodeId;
use crate::wire::frame::FrameReader;
use crate::wire::peer::take_peer_frame;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How long one write may block. Where a write cannot be tried again, a peer that takes nothing for so
/// long is taken for dead.
const WRITE_TIMEOUT: Duration =
    if FAILED_WRITE_TAKES_NOTHING { Duration::from_millis(100) } else { Duration::from_secs(5) };
/// See the module.
pub(super) struct Pump<'a> {
    shared: &'a Shared,
    connection: ConnectionId,
    peer: NodeId,
    stream: &'a TcpStream,
    reader: FrameReader,
    sender: Sender<Bytes>,
}

impl<'a> Pump<'a> {
    /// `reader` has read the end of the handshake.
    pub(super) fn new(
        shared: &'a Shared,
        connection: ConnectionId,
        peer: NodeId,
        stream: &'a TcpStream,
        reader: FrameReader,
    ) -> io::Result<Pump<'a>> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let sender = Sender::new(shared.clock.now_us());
        Ok(Pump { shared, connection, peer, stream, reader, sender })
    }

    /// Fine when the raft loop has let go of the connection.
    pub(super) fn run(&mut self, inbox: &Receiver<Command>, closing: &Closing) -> io::Result<()> {
        while !closing.is_closed() {
            self.attend()?;
            // A ping does not wait for something to go with.
            let wait_us = self.sender.next_us().saturating_sub(self.shared.clock.now_us());
            let wait_us = if self.sender.is_empty() { wait_us } else { 0 };
            let mut next = match inbox.recv_timeout(Duration::from_micros(wait_us)) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            while let Some(command) = next {
                match command {
                    Command::Open => {}
                    Command::Hasten => self.hasten()?,
                    Command::Send(outgoing) => self.put(outgoing),
                    Command::Answer { outgoing, held } => {
                        self.put(outgoing);
                        drop(held);
                    }
                }
                next = if self.sender.takes_more() { inbox.try_recv().ok() } else { None };
            }
            self.flush(closing)?;
        }
        Ok(())
    }

    /// The connection has ended: what never left this node may be tried again.
    pub(super) fn give_back(self) {
        for id in self.sender.into_unsent() {
            let _ = self.shared.raft.send(Input::ForwardUnsent { id });
        }
    }

    fn put(&mut self, outgoing: Outgoing) {
        let Some(Fetched { told, queued }) = self.sender.put(outgoing, &self.shared.node.log)
        else {
            return;
        };
        let _ = self.shared.raft.send(Input::EntriesRead(told));
        if let Err(e) = queued {
            warning!("cannot read entries for peer={}: {e}", self.peer);
        }
    }

    fn flush(&mut self, closing: &Closing) -> io::Result<()> {
        while !closing.is_closed()
            && let Some(piece) = self.sender.queued().chunks(WRITE_AT_ONCE).next()
        {
            match self.stream.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sender.took(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_timeout(&e) && FAILED_WRITE_TAKES_NOTHING => {}
                Err(e) => {
                    let may_be_taken = if FAILED_WRITE_TAKES_NOTHING { 0 } else { piece.len() };
                    self.sender.took(may_be_taken);
                    return Err(e);
                }
            }
            if !self.sender.is_empty() {
                self.attend()?;
            }
        }
        Ok(())
    }

    /// Does what is due, after it was told what has arrived.
    fn attend(&mut self) -> io::Result<()> {
        let now_us = self.shared.clock.now_us();
        if now_us < self.sender.next_us() {
            return Ok(());
        }
        self.listen(now_us)?;
        let sign = self.sender.poll(now_us);
        self.act(sign)
    }

    fn act(&self, sign: Option<Sign>) -> io::Result<()> {
        match sign {
            None => {}
            Some(Sign::Silent) => self.tell(PeerEvent::Silent { connection: self.connection }),
            Some(Sign::Leader(leader, address)) => {
                self.tell(PeerEvent::LeaderNamed { leader, address });
            }
            Some(Sign::Dead(silent_us)) => {
                let text = format!("no sign of life for {} ms", silent_us / 1000);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
        Ok(())
    }

    fn hasten(&mut self) -> io::Result<()> {
        let now_us = self.shared.clock.now_us();
        self.listen(now_us)?;
        self.sender.hasten(now_us);
        Ok(())
    }

    /// Takes the pongs that have arrived, without waiting for any.
    fn listen(&mut self, now_us: u64) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let read = self.read_pongs(now_us);
        self.stream.set_nonblocking(false)?;
        read
    }

    fn read_pongs(&mut self, now_us: u64) -> io::Result<()> {
        loop {
            while let Some(body) = self.reader.next_frame().map_err(io::Error::other)? {
                let frame = take_peer_frame(body).map_err(io::Error::other)?;
                let sign = self.sender.heard_frame(frame, now_us).map_err(io::Error::other)?;
                self.act(sign)?;
            }
            match (&mut self.stream).read(self.reader.space()) {
                Ok(0) => return Err(io::Error::other("the peer closed the connection")),
                Ok(n) => {
                    self.reader.filled(n);
                    self.sender.heard(now_us);
                }
                Err(e) if is_timeout(&e) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn tell(&self, event: PeerEvent) {
        let _ = self.shared.raft.send(Input::Link(event));
    }
}

//! Writes to a dialed connection what comes in, and a ping now and then, until the connection breaks or
//! the peer shows no sign of life.
//!
//! A write that blocks must not hide a dead peer, nor one that is alive behind a slow link. So no write
//! blocks for long, and between two of them the pongs that have arrived are read. A ping cannot be
//! written in the middle of a frame: it waits behind it, and the peer answers what arrives meanwhile
//! unasked ([`super::peer_in`]).

use super::Shared;
use super::logging::warning;
use super::peer_out::{Closing, Command};
use super::sockets::is_timeout;
use crate::env::real::{FAILED_WRITE_TAKES_NOTHING, WRITE_AT_ONCE};
use crate::node::{
    ConnectionId, Due, Input, Keepalive, LOG_MESSAGE_BYTES, Outbox, Outgoing, PeerEvent,
    read_entries,
};
use crate::raft::{LogRead, NodeId};
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX};
use crate::wire::peer::{PeerFrame, take_peer_frame};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How long one write may block. Where a write cannot be tried again, a peer that takes nothing for so
/// long is taken for dead.
const WRITE_TIMEOUT: Duration =
    if FAILED_WRITE_TAKES_NOTHING { Duration::from_millis(100) } else { Duration::from_secs(5) };
/// Bytes encoded before they are written: bounds the buffer, a write this long is long enough.
const WRITE_BYTES: usize = 1 << 20;
const _: () = assert!(LOG_MESSAGE_BYTES < PEER_FRAME_MAX);

/// See the module.
pub(super) struct Pump<'a> {
    shared: &'a Shared,
    connection: ConnectionId,
    peer: NodeId,
    stream: &'a TcpStream,
    reader: FrameReader,
    keepalive: Keepalive,
    outbox: Outbox,
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
        let keepalive = Keepalive::new(shared.clock.now_us());
        let outbox = Outbox::default();
        Ok(Pump { shared, connection, peer, stream, reader, keepalive, outbox })
    }

    /// Fine when the raft loop has let go of the connection.
    pub(super) fn run(&mut self, inbox: &Receiver<Command>, closing: &Closing) -> io::Result<()> {
        while !closing.is_closed() {
            self.attend()?;
            // A ping does not wait for something to go with.
            let wait_us = self.keepalive.next_us().saturating_sub(self.shared.clock.now_us());
            let wait_us = if self.outbox.is_empty() { wait_us } else { 0 };
            let mut next = match inbox.recv_timeout(Duration::from_micros(wait_us)) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            while let Some(command) = next {
                match command {
                    Command::Open => {}
                    Command::Hasten => self.hasten()?,
                    Command::Send(outgoing) => self.encode(outgoing),
                    Command::Answer { outgoing, held } => {
                        self.encode(outgoing);
                        drop(held);
                    }
                }
                next = if self.outbox.held() < WRITE_BYTES { inbox.try_recv().ok() } else { None };
            }
            self.flush(closing)?;
        }
        Ok(())
    }

    /// The connection has ended: what never left this node may be tried again.
    pub(super) fn give_back(self) {
        for id in self.outbox.into_unsent() {
            let _ = self.shared.raft.send(Input::ForwardUnsent { id });
        }
    }

    fn encode(&mut self, outgoing: Outgoing) {
        match &outgoing {
            Outgoing::FromLog(read) => self.encode_from_log(read),
            _ => self.outbox.put(outgoing),
        }
    }

    fn encode_from_log(&mut self, read: &LogRead) {
        let (made, told) = read_entries(read, &self.shared.node.log);
        // Before the peer can answer.
        let _ = self.shared.raft.send(Input::EntriesRead(told));
        match made {
            Ok(Some(message)) => self.outbox.put_message(&message),
            Ok(None) => {}
            Err(e) => warning!("cannot read entries for peer={}: {e}", self.peer),
        }
    }

    fn flush(&mut self, closing: &Closing) -> io::Result<()> {
        while !closing.is_closed()
            && let Some(piece) = self.outbox.queued().chunks(WRITE_AT_ONCE).next()
        {
            match self.stream.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.outbox.took(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_timeout(&e) && FAILED_WRITE_TAKES_NOTHING => {}
                Err(e) => {
                    let may_be_taken = if FAILED_WRITE_TAKES_NOTHING { 0 } else { piece.len() };
                    self.outbox.took(may_be_taken);
                    return Err(e);
                }
            }
            if !self.outbox.is_empty() {
                self.attend()?;
            }
        }
        Ok(())
    }

    /// Does what the keepalive finds due, after it was told what has arrived.
    fn attend(&mut self) -> io::Result<()> {
        let now_us = self.shared.clock.now_us();
        if now_us < self.keepalive.next_us() {
            return Ok(());
        }
        self.listen(now_us)?;
        match self.keepalive.poll(now_us) {
            Due::Nothing => {}
            Due::Ping => self.outbox.put_frame(&PeerFrame::Ping),
            Due::Silent => self.tell(PeerEvent::Silent { connection: self.connection }),
            Due::Dead(silent_us) => {
                let text = format!("no sign of life for {} ms", silent_us / 1000);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
        Ok(())
    }

    /// What has arrived before there was doubt does not dispel it.
    fn hasten(&mut self) -> io::Result<()> {
        let now_us = self.shared.clock.now_us();
        self.listen(now_us)?;
        self.keepalive.hasten(now_us);
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
                let Ok(PeerFrame::Pong { leader, address }) = take_peer_frame(body) else {
                    return Err(io::Error::other("the peer sends what is no pong"));
                };
                self.keepalive.heard(true, now_us);
                if leader != 0 {
                    self.tell(PeerEvent::LeaderNamed { leader, address });
                }
            }
            match (&mut self.stream).read(self.reader.space()) {
                Ok(0) => return Err(io::Error::other("the peer closed the connection")),
                Ok(n) => {
                    self.reader.filled(n);
                    self.keepalive.heard(false, now_us);
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

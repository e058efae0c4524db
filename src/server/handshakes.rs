//! Handshakes of the native protocol on sockets: the dialing side of one, and how a refusal is told.

use super::Shared;
use super::logging::warning;
use super::sockets::read_by;
use crate::env::Random as _;
use crate::env::real::RealRandom;
use crate::wire::frame::{FrameReader, HANDSHAKE_FRAME_MAX, PREAMBLE};
use crate::wire::handshake::{Hello, Role};
use crate::wire::proof::{Answered, Dialer, Dialing, Greeting};
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The reader of a handshake.
pub(crate) fn handshake_reader() -> FrameReader {
    FrameReader::new(HANDSHAKE_FRAME_MAX)
}

/// The dialing side of a handshake between nodes: gives the answer, within so long. A later write may take as
/// long.
pub(super) fn shake_hands(
    mut stream: &TcpStream,
    reader: &mut FrameReader,
    greeting: Greeting,
    within: Duration,
) -> io::Result<Answered> {
    let until = Instant::now() + within;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(within))?;
    let (mut dialer, hello) = Dialer::new(greeting, RealRandom::default().bytes());
    let mut out = PREAMBLE.to_vec();
    out.extend_from_slice(&hello);
    loop {
        stream.write_all(&out)?;
        let body = read_one_frame(stream, reader, until)?;
        match dialer.heard(&body).map_err(|e| io::Error::other(e.to_string()))? {
            Dialing::Write(frame) => out = frame,
            Dialing::Over(answered) => return Ok(*answered),
        }
    }
}

/// Reads exactly one frame.
pub(crate) fn read_one_frame(
    stream: &TcpStream,
    reader: &mut FrameReader,
    until: Instant,
) -> io::Result<Vec<u8>> {
    loop {
        if let Some(body) = reader.next_frame().map_err(io::Error::other)? {
            return Ok(body.to_vec());
        }
        let n = read_by(stream, reader.space(), until)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        reader.filled(n);
    }
}

/// Says who was refused and why, seldom: whoever dials again and again must not fill the disk.
pub(super) fn log_refused(shared: &Shared, stream: &TcpStream, hello: Option<&Hello>, why: &str) {
    let Some(held_back) = shared.refusals.pass() else { return };
    let who = match hello {
        Some(Hello { role: Role::Peer | Role::Snapshot, from, .. }) => format!("node={from}"),
        Some(_) => "a client".to_string(),
        None => "a stranger".to_string(),
    };
    let address = stream.peer_addr().map_or_else(|_| "?".to_string(), |a| a.to_string());
    let more = match held_back {
        0 => String::new(),
        n => format!(" ({n} more refusals were not logged)"),
    };
    warning!("refused {who} address={address}: {why}{more}");
}

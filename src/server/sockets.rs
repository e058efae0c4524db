//! Reading and writing sockets that others may be slow at, or stop at.
//!
//! A stopped and continued process sees its timed reads and writes interrupted (signal(7)): that
//! never ends a connection here.

use crate::api::{Connection, WRITE_TIMEOUT_US};
use crate::env::real::{FAILED_WRITE_TAKES_NOTHING, WRITE_AT_ONCE};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long one write may block when somebody else's work waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1);
/// A client that does not take its answers for so long is cut off.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_micros(WRITE_TIMEOUT_US);
/// How often it is looked at whether it is to be cut off.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The send timeout of every accepted connection. Where a write cannot be tried again, there is
/// only one time-out, the last.
pub(crate) const SEND_TIMEOUT: Duration =
    if FAILED_WRITE_TAKES_NOTHING { PATIENCE } else { WRITE_TIMEOUT };

const _: () = assert!(PATIENCE.as_millis() < WRITE_TIMEOUT.as_millis());

/// Whether a timed read or write ran out of time.
pub(crate) fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Reads once.
pub(crate) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Reads once what comes before `until`. The bound is on the whole of what is waited for: whoever
/// sends a byte now and then gains nothing.
pub(crate) fn read_by(
    mut stream: &TcpStream,
    buffer: &mut [u8],
    until: Instant,
) -> io::Result<usize> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted || is_timeout(&e) => {}
            done => return done,
        }
    }
}

/// Takes what has arrived before its turn.
pub(crate) trait ReadAhead {
    /// Where to read into, if more is taken.
    fn space_ahead(&mut self) -> Option<&mut [u8]>;
    /// So many bytes of that hold what arrived.
    fn filled(&mut self, len: usize);
}

impl ReadAhead for Connection {
    fn space_ahead(&mut self) -> Option<&mut [u8]> {
        Connection::space_ahead(self)
    }

    fn filled(&mut self, len: usize) {
        Connection::filled(self, len);
    }
}

/// Whether the other side has closed the connection, as far as can be seen: behind bytes that nobody has read, it cannot.
/// So what has arrived is read ahead, as far as somebody takes it. Nobody else may read or write meanwhile.
pub(crate) fn has_left(stream: &TcpStream, ahead: &mut impl ReadAhead) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let left = loop {
        let (looked, takes) = match ahead.space_ahead() {
            Some(space) => (read(stream, space), true),
            None => (stream.peek(&mut [0]), false),
        };
        match looked {
            Ok(0) => break true,
            Ok(n) if takes => ahead.filled(n),
            Ok(_) => break false,
            Err(e) => break !is_timeout(&e) && e.kind() != io::ErrorKind::Interrupted,
        }
    };
    left || stream.set_nonblocking(false).is_err()
}

/// Writes all of it to an accepted connection, giving up on a client that takes nothing for
/// [`WRITE_TIMEOUT`]. Nobody else writes meanwhile.
pub(crate) fn write_patiently(stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    write_for(stream, bytes, WRITE_TIMEOUT)
}

fn write_for(stream: &TcpStream, bytes: &[u8], timeout: Duration) -> io::Result<()> {
    let mut since = Instant::now();
    let written = write_while(stream, bytes, |moved| {
        if moved {
            since = Instant::now();
        }
        (since.elapsed() >= timeout).then_some(())
    })?;
    written.map_err(|()| io::ErrorKind::TimedOut.into())
}

/// Writes all of it to an accepted connection. Now and then, when the client has taken some of it (`true`) or nothing for
/// a while, it is asked whether to go on; a reason to end is given back. Where a write cannot be tried again, the first
/// that takes nothing for [`WRITE_TIMEOUT`] is an error.
pub(crate) fn write_while<E>(
    mut stream: &TcpStream,
    mut bytes: &[u8],
    mut ends: impl FnMut(bool) -> Option<E>,
) -> io::Result<Result<(), E>> {
    let mut patient = false;
    while let Some(piece) = bytes.chunks(WRITE_AT_ONCE).next() {
        match stream.write(piece) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                if patient && let Some(why) = ends(true) {
                    return Ok(Err(why));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if is_timeout(&e) && FAILED_WRITE_TAKES_NOTHING => {
                // Sleeps from here on instead of looking every millisecond.
                if !patient {
                    stream.set_write_timeout(Some(LOOK_EVERY))?;
                    patient = true;
                }
                if let Some(why) = ends(false) {
                    return Ok(Err(why));
                }
            }
            Err(e) => return Err(e),
        }
    }
    if patient {
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::parts::socket_pair;
    use super::*;
    use std::thread;

    /// A slow-loris sends a byte every few milliseconds, so that no single read ever takes long.
    /// The deadline comes all the same.
    #[test]
    fn trickling_bytes_do_not_move_a_deadline() {
        let (ours, theirs) = socket_pair();
        let trickle = thread::spawn(move || {
            while (&theirs).write_all(b"x").is_ok() {
                thread::park_timeout(Duration::from_millis(5));
            }
        });
        let until = Instant::now() + Duration::from_millis(100);
        let e = loop {
            if let Err(e) = read_by(&ours, &mut [0; 8], until) {
                break e;
            }
        };
        assert!(is_timeout(&e) && Instant::now() >= until);
        drop(ours);
        trickle.join().unwrap();
    }

    /// A client is silent, then says something, then goes.
    #[test]
    fn a_client_that_has_left_is_noticed() {
        let (ours, theirs) = socket_pair();
        /// Takes so many bytes ahead, one at a time.
        struct Takes(usize, [u8; 1]);
        impl ReadAhead for Takes {
            fn space_ahead(&mut self) -> Option<&mut [u8]> {
                (self.0 > 0).then_some(&mut self.1)
            }
            fn filled(&mut self, len: usize) {
                self.0 -= len;
            }
        }
        let mut none = Takes(0, [0]);
        assert!(!has_left(&ours, &mut none));
        (&theirs).write_all(b"xyz").unwrap();
        assert!(!has_left(&ours, &mut none));
        drop(theirs);
        let mut two = Takes(2, [0]);
        let begun = Instant::now();
        while two.0 > 0 {
            assert!(!has_left(&ours, &mut two), "there is more to be read");
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
        let mut all = Takes(9, [0]);
        // The end is behind what it said, and arrives soon.
        while !has_left(&ours, &mut all) {
            assert!(begun.elapsed() < Duration::from_secs(10));
            thread::yield_now();
        }
        assert_eq!(all.0, 8);
    }

    /// A client reads nothing: the writer gives up in bounded time. One that reads slowly gets
    /// everything, and the socket is as it was.
    #[test]
    fn a_client_that_never_reads_is_given_up() {
        let bytes = vec![7; 16 << 20];
        let (ours, theirs) = socket_pair();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        let e = write_for(&ours, &bytes, Duration::from_millis(100)).unwrap_err();
        assert!(is_timeout(&e));
        drop(theirs);

        let (ours, theirs) = socket_pair();
        ours.set_write_timeout(Some(SEND_TIMEOUT)).unwrap();
        let before = ours.write_timeout().unwrap();
        let reader = thread::spawn(move || {
            let mut total = 0;
            let mut buffer = vec![0; 1 << 20];
            while let Ok(n @ 1..) = read(&theirs, &mut buffer) {
                total += n;
                thread::park_timeout(Duration::from_millis(1));
            }
            total
        });
        write_for(&ours, &bytes, Duration::from_secs(10)).unwrap();
        assert_eq!(ours.write_timeout().unwrap(), before);
        drop(ours);
        assert_eq!(reader.join().unwrap(), bytes.len());
    }
}

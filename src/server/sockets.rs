//! Reading and writing sockets that others may be slow at, or stop at.
//!
//! A stopped and continued process sees its timed reads and writes interrupted (signal(7)): that
//! never ends a connection here.

use crate::env::real::{FAILED_WRITE_TAKES_NOTHING, WRITE_AT_ONCE};
use crate::node::DEADLINE_US_MAX;
use crate::wire::frame::CLIENT_FRAME_MAX;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long one write may block when somebody else's work waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1);
/// A client that does not take its answers for so long is cut off.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Writes all of it to an accepted connection, giving up on a client that takes nothing for
/// [`WRITE_TIMEOUT`]. Nobody else writes meanwhile.
pub(crate) fn write_patiently(stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    write_for(stream, bytes, WRITE_TIMEOUT)
}

fn write_for(mut stream: &TcpStream, mut bytes: &[u8], timeout: Duration) -> io::Result<()> {
    let mut patient = false;
    while let Some(piece) = bytes.chunks(WRITE_AT_ONCE).next() {
        match stream.write(piece) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Sleeps from here on instead of looking every millisecond.
            Err(e) if is_timeout(&e) && !patient && FAILED_WRITE_TAKES_NOTHING => {
                stream.set_write_timeout(Some(timeout))?;
                patient = true;
            }
            Err(e) => return Err(e),
        }
    }
    if patient { stream.set_write_timeout(Some(SEND_TIMEOUT)) } else { Ok(()) }
}

/// A frame or command that has begun must be complete within so long, whole: an unfinished one
/// holds memory. The largest takes 1.1 s at 16 MiB over 128 Mbit/s; this allows 4.5 Mbit/s.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that begins no request for so long gives its place to another. Longer than any deadline
/// of a request, and than people and pools leave a connection alone that they still need.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Memory that a connection may hold for input it has not finished without asking.
const PARTIAL_FREE_BYTES: usize = 256 << 10;
/// What all client connections together may hold beyond that: some of the largest frames at once,
/// and a small part of a machine.
const PARTIAL_BYTES_MAX: usize = 256 << 20;

const _: () = {
    assert!(REQUEST_TIMEOUT.as_secs() < IDLE_TIMEOUT.as_secs());
    assert!(DEADLINE_US_MAX < IDLE_TIMEOUT.as_micros() as u64);
    assert!(8 * CLIENT_FRAME_MAX <= PARTIAL_BYTES_MAX);
};

/// What all client connections hold for unfinished input beyond [`PARTIAL_FREE_BYTES`] each.
#[derive(Debug, Default)]
pub(crate) struct PartialBytes(AtomicUsize);

/// How a client's input is waited for: the patience with it, and its share of [`PartialBytes`].
///
/// Invariant: `charged` is part of the sum in `budget` until this is dropped.
pub(crate) struct ClientInput<'a> {
    budget: &'a PartialBytes,
    charged: usize,
    /// When the request that is arriving must be complete; none when none has begun.
    until: Option<Instant>,
    /// The socket's read timeout is [`IDLE_TIMEOUT`].
    idle_set: bool,
    idle: Duration,
    request: Duration,
}

/// What is said to a client whose unfinished request no memory is left for.
pub(crate) const NO_ROOM: &str =
    "busy: the unfinished requests of all connections hold as much memory as they may";

impl<'a> ClientInput<'a> {
    pub(crate) fn new(budget: &'a PartialBytes) -> ClientInput<'a> {
        Self::with_patience(budget, IDLE_TIMEOUT, REQUEST_TIMEOUT)
    }

    fn with_patience(budget: &'a PartialBytes, idle: Duration, request: Duration) -> Self {
        ClientInput { budget, charged: 0, until: None, idle_set: false, idle, request }
    }

    /// Says what is held of a request that is not complete: whether it has `begun`, and the memory
    /// taken for it. `fresh` when a request was completed since the last call, so that what is
    /// held now is another one. False when there is no room for it.
    pub(crate) fn holds(&mut self, begun: bool, fresh: bool, memory: usize) -> bool {
        if !begun || fresh {
            self.until = None;
        }
        if begun && self.until.is_none() {
            self.until = Some(Instant::now() + self.request);
        }
        let charge = if begun { memory.saturating_sub(PARTIAL_FREE_BYTES) } else { 0 };
        if charge == self.charged {
            return true;
        }
        // Relaxed: the sum is a bound, nothing is ordered by it.
        self.budget.0.fetch_sub(self.charged, Ordering::Relaxed);
        self.charged = 0;
        if charge > 0 {
            let before = self.budget.0.fetch_add(charge, Ordering::Relaxed);
            self.charged = charge;
            return before.saturating_add(charge) <= PARTIAL_BYTES_MAX;
        }
        true
    }

    /// Reads once; a time-out when the request that has begun is overdue, or nothing has begun for
    /// [`IDLE_TIMEOUT`].
    pub(crate) fn read(&mut self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.until {
            self.idle_set = false;
            return read_by(stream, buffer, until);
        }
        if !self.idle_set {
            // Once, not with every read: most requests come in one piece.
            stream.set_read_timeout(Some(self.idle))?;
            self.idle_set = true;
        }
        read(stream, buffer)
    }
}

impl Drop for ClientInput<'_> {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.charged, Ordering::Relaxed);
    }
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

    /// A client begins a request and trickles it on for ever; another one is idle. The first is cut
    /// off at its deadline though bytes keep coming, the second after a longer time.
    #[test]
    fn a_request_that_has_begun_is_waited_for_less_than_an_idle_client() {
        let budget = PartialBytes::default();
        let (ours, theirs) = socket_pair();
        let trickle = thread::spawn(move || {
            while (&theirs).write_all(b"x").is_ok() {
                thread::park_timeout(Duration::from_millis(5));
            }
        });
        let started = Instant::now();
        let request = Duration::from_millis(100);
        let mut input = ClientInput::with_patience(&budget, Duration::from_secs(60), request);
        assert!(input.read(&ours, &mut [0; 8]).is_ok(), "it may begin late");
        let e = loop {
            assert!(input.holds(true, false, 100));
            if let Err(e) = input.read(&ours, &mut [0; 8]) {
                break e;
            }
        };
        assert!(is_timeout(&e) && started.elapsed() >= request);
        // Had it completed one request and begun the next, the next would have its own time.
        let until = input.until;
        assert!(input.holds(true, true, 100) && input.until > until);
        drop(ours);
        trickle.join().unwrap();

        let (ours, _theirs) = socket_pair();
        let idle = Duration::from_millis(100);
        let mut input = ClientInput::with_patience(&budget, idle, Duration::from_secs(60));
        assert!(input.holds(false, false, 0));
        assert!(is_timeout(&input.read(&ours, &mut [0; 8]).unwrap_err()));
    }

    /// Clients begin large requests and finish none. What they hold together is bounded; who holds
    /// little is not concerned, and what one held is free again when it is gone.
    #[test]
    fn unfinished_requests_share_a_bound() {
        let budget = PartialBytes::default();
        let most = PARTIAL_FREE_BYTES + PARTIAL_BYTES_MAX;
        let mut large = ClientInput::new(&budget);
        assert!(large.holds(true, false, most / 2));
        assert!(large.holds(true, false, most), "it alone may have all");
        assert!(ClientInput::new(&budget).holds(true, false, PARTIAL_FREE_BYTES));
        assert!(!ClientInput::new(&budget).holds(true, false, PARTIAL_FREE_BYTES + 1));
        assert!(large.holds(false, true, most), "what is complete is not unfinished");
        assert!(ClientInput::new(&budget).holds(true, false, most));
        assert!(large.holds(true, false, most));
        drop(large);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
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

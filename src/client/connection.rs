//! One connection to one node: dialing, writing, reading. The bytes are [`Channel`]'s.
//!
//! Left out: which node to dial and what to send again, which is the client's business.

use super::core::{Channel, Heard, Sent};
use super::error::{Cause, Error};
use crate::env::Random as _;
use crate::env::real::{FAILED_WRITE_TAKES_NOTHING, RealRandom, WRITE_AT_ONCE};
use crate::env::resolve::{connect_one, first_that, resolve};
use crate::wire::client::{Class, Request, Response};
use crate::wire::handshake::{Hello, Remembered, Welcome};
use crate::wire::proof::Greeting;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The shortest wait that is asked of the system, which takes zero for "for ever".
const WAIT_MIN: Duration = Duration::from_millis(1);

/// What a wait has brought.
#[derive(Debug)]
pub(super) enum Arrival {
    /// An answer.
    Answer(Response),
    /// Bytes that are no whole answer yet.
    Bytes,
    /// Nothing.
    Nothing,
}

/// A connection that has passed the handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    channel: Channel,
    /// When something was last sent.
    sent: Instant,
    address: String,
    welcome: Welcome,
}

impl Connection {
    /// Dials `address` (`HOST:PORT`) and shakes hands, all within `wait`, of which the name service may
    /// take half. All addresses that a name has are tried, each for its share of the time: behind one
    /// name may be several nodes, or several ways to one. `cluster` is the cluster meant, 0 for any.
    ///
    /// # Errors
    /// Nothing was asked of the node then; the class is `Unauthorised` for a wrong token,
    /// `Busy` when the node has no place for the connection, else `Unavailable`. Of several addresses
    /// the error is one after which dialing again may help, if there is one.
    pub fn dial(
        address: &str,
        token: &[u8],
        cluster: u64,
        wait: Duration,
    ) -> Result<Connection, Error> {
        let greeting = Greeting::of_client(Hello::of_client(cluster), token);
        Connection::dial_with(address, &greeting, wait)
    }

    /// The same with a greeting of one's own.
    pub(super) fn dial_with(
        address: &str,
        greeting: &Greeting,
        wait: Duration,
    ) -> Result<Connection, Error> {
        let until = Instant::now() + wait;
        let failed = |doing, source| Error::io(Class::Unavailable, address, doing, source);
        let resolved = resolve(address, wait / 2).map_err(|e| failed("resolve", e))?;
        let dialed = first_that(&resolved, until, |at, until| {
            let stream = connect_one(at, until).map_err(|e| failed("connect", e))?;
            Connection::begin(stream, address, greeting, until)
        });
        dialed.map_err(|errors| {
            let mut errors: Vec<Error> = errors.into_iter().map(|(_, error)| error).collect();
            let hopeful = errors.iter().position(|error| !error.bars_address());
            let at = hopeful.unwrap_or(errors.len().saturating_sub(1));
            let nowhere = || failed("connect", ErrorKind::AddrNotAvailable.into());
            if at < errors.len() { errors.swap_remove(at) } else { nowhere() }
        })
    }

    /// Shakes hands on a stream that was just connected.
    fn begin(
        stream: TcpStream,
        address: &str,
        greeting: &Greeting,
        until: Instant,
    ) -> Result<Connection, Error> {
        let failed = |doing, source| Error::io(Class::Unavailable, address, doing, source);
        // Small requests must not wait for acknowledgements of earlier ones.
        stream.set_nodelay(true).map_err(|e| failed("connect", e))?;
        let mut connection = Connection {
            stream,
            channel: Channel::with(greeting.clone(), RealRandom::default().bytes()),
            sent: Instant::now(),
            address: address.to_owned(),
            welcome: Welcome {
                version: 0,
                cluster: 0,
                node: 0,
                identity: 0,
                leader: 0,
                leader_address: String::new(),
                remembered: Remembered::default(),
            },
        };
        connection.shake_hands(until).map_err(|e| Error { class: surely(e.class), ..e })?;
        Ok(connection)
    }

    fn shake_hands(&mut self, until: Instant) -> Result<(), Error> {
        let started = Instant::now();
        self.flush(until)?;
        loop {
            match self.channel.heard() {
                Ok(Some(Heard::Welcome(welcome))) => {
                    self.welcome = welcome;
                    return Ok(());
                }
                Ok(_) if !self.channel.queued().is_empty() => self.flush(until)?,
                Ok(_) => {}
                Err(Cause::Rejected(reject)) => return Err(Error::rejected(&self.address, reject)),
                Err(cause) => return Err(Error::new(Class::Unavailable, &self.address, cause)),
            }
            if !self.fill(until)? {
                let cause = Cause::Silent { wait: started.elapsed() };
                return Err(Error::new(Class::Unavailable, &self.address, cause));
            }
        }
    }

    /// The address that was dialed.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the node said of itself and of the leader when it was dialed.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// For how long nothing has been sent.
    pub fn idle(&self) -> Duration {
        self.sent.elapsed()
    }

    /// Position in the stream up to which the network has taken, or may have taken, what was sent.
    pub fn handed(&self) -> u64 {
        self.channel.handed()
    }

    /// Queues a request under its own id, which is larger than those before.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub(super) fn queue(&mut self, request: &Request) -> Result<Sent, Error> {
        let failed = |cause| Error { class: Class::TooLarge, address: None, cause };
        self.channel.queue(request).map_err(failed)
    }

    /// Requests from this id on have surely not been handed to the network whole.
    pub(super) fn unsent_from(&self) -> u64 {
        self.channel.unsent_from()
    }

    /// Queues a request under a new id, which it puts into it; [`Connection::flush`] sends it.
    ///
    /// # Errors
    /// `TooLarge` when it fits no frame; the connection goes on without it.
    pub fn send(&mut self, request: &mut Request) -> Result<Sent, Error> {
        request.id = self.channel.next_id();
        self.queue(request)
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// The connection is of no further use then; [`Connection::handed`] says what was sent.
    pub fn flush(&mut self, until: Instant) -> Result<(), Error> {
        let left = until.saturating_duration_since(Instant::now());
        if self.flush_steadily(left, left)? {
            return Ok(());
        }
        Err(Error::io(Class::Unknown, &self.address, "send", ErrorKind::TimedOut.into()))
    }

    /// Sends what is queued. False when the network took nothing for `stall`, or all of it has taken
    /// longer than `within`: the connection is of no further use then.
    ///
    /// # Errors
    /// As [`Connection::flush`].
    pub(super) fn flush_steadily(
        &mut self,
        stall: Duration,
        within: Duration,
    ) -> Result<bool, Error> {
        let begun = Instant::now();
        self.sent = begun;
        while let Some(piece) = self.channel.queued().chunks(WRITE_AT_ONCE).next() {
            // What was taken in part is life: the next piece has its time anew.
            let wait = stall.min(within.saturating_sub(begun.elapsed())).max(WAIT_MIN);
            let result =
                self.stream.set_write_timeout(Some(wait)).and_then(|()| self.stream.write(piece));
            match result {
                Ok(0) => {
                    let source = ErrorKind::WriteZero.into();
                    return Err(Error::io(Class::Unknown, &self.address, "send", source));
                }
                Ok(n) => self.channel.took(n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    let piece_len = piece.len();
                    if !FAILED_WRITE_TAKES_NOTHING {
                        self.channel.took(piece_len);
                    }
                    if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
                        return Ok(false);
                    }
                    return Err(Error::io(Class::Unknown, &self.address, "send", e));
                }
            }
        }
        Ok(true)
    }

    /// The next answer; none when none is there until then.
    ///
    /// # Errors
    /// The connection is of no further use then, and what is open on it is in doubt.
    pub fn receive(&mut self, until: Instant) -> Result<Option<Response>, Error> {
        loop {
            if let Some(response) = self.received()? {
                return Ok(Some(response));
            }
            if !self.fill(until)? {
                return Ok(None);
            }
        }
    }

    /// Waits until something has arrived.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub(super) fn arrive(&mut self, until: Instant) -> Result<Arrival, Error> {
        if let Some(response) = self.received()? {
            return Ok(Arrival::Answer(response));
        }
        if !self.fill(until)? {
            return Ok(Arrival::Nothing);
        }
        Ok(self.received()?.map_or(Arrival::Bytes, Arrival::Answer))
    }

    /// The next answer that has arrived already; does not wait.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn received(&mut self) -> Result<Option<Response>, Error> {
        match self.channel.heard() {
            Ok(Some(Heard::Answer(response))) => Ok(Some(response)),
            Ok(_) => Ok(None),
            Err(cause) => Err(Error::new(Class::Unknown, &self.address, cause)),
        }
    }

    /// Reads once; false when nothing arrived until then.
    fn fill(&mut self, until: Instant) -> Result<bool, Error> {
        let result = self
            .stream
            .set_read_timeout(Some(remaining(until)))
            .and_then(|()| self.stream.read(self.channel.space()));
        match result {
            Ok(0) => {
                let source = ErrorKind::UnexpectedEof.into();
                Err(Error::io(Class::Unknown, &self.address, "connection closed", source))
            }
            Ok(n) => {
                self.channel.filled(n);
                Ok(true)
            }
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(false),
                ErrorKind::Interrupted => Ok(Instant::now() < until),
                _ => Err(Error::io(Class::Unknown, &self.address, "receive", e)),
            },
        }
    }
}

/// Before the handshake is done no request can have had an effect.
fn surely(class: Class) -> Class {
    if class == Class::Unknown { Class::Unavailable } else { class }
}

fn remaining(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(WAIT_MIN)
}

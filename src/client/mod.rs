//! The client library: leader discovery, retries, sessions. On `std::net`, without threads.
//!
//! A [`Client`] knows some addresses of a cluster and keeps one connection, to the leader where it
//! finds it. Everything that is decided is decided by [`Core`], which the simulator runs as well: whom
//! to ask, how long to wait, what is sent again. Here are the socket, the clock, and the calls by
//! name. Writes carry the stamp of a session unless [`Options::sessions`] is off, so that a write
//! whose answer was lost is sent again and still takes effect once.
//!
//! Left out: encryption, connection pools, and any caching of what was read.

mod backup;
mod connection;
mod core;
mod error;
mod members;
mod writer;

pub use backup::Backup;
pub use connection::Connection;
pub use core::{Channel, Core, Effect, Event, GRACE, Heard, Sent};
pub use error::{Cause, Error};

use crate::kv::{Found, Op, OpResult, Outcome, Page, Query, Range, Reply, Revision, Write};
use crate::wire::client::{
    Answer, Call, Class, Consistency, Failure, NO_REQUEST, NodeStatus, Request, Response,
};
use crate::wire::handshake::Hello;
use crate::wire::proof::Greeting;
use connection::Arrival;
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

/// How a client behaves.
#[derive(Clone)]
pub struct Options {
    /// How long a call may take, all retries included; an answer on its way is waited for
    /// [`GRACE`] longer. For many writes: how long without any of them being answered.
    pub timeout: Duration,
    /// How long dialing one address may take, with the handshake.
    pub connect_timeout: Duration,
    /// The token, or two with a line end between them while it is changed; empty when there is none.
    pub token: Vec<u8>,
    /// Whether writes carry a session's stamp and so may be sent again. Without it a write whose
    /// answer is lost stays unknown.
    pub sessions: bool,
    /// A connection on which nothing was sent for so long is dialed anew before it is used: a node
    /// closes it after ten minutes, and a write that meets the closed end would be in doubt.
    pub idle_max: Duration,
    /// It asks only how nodes are and who belongs to the cluster: a node whose places are all taken
    /// answers that as well, and refuses everything else.
    pub only_asks: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            token: Vec::new(),
            sessions: true,
            idle_max: Duration::from_secs(300),
            only_asks: false,
        }
    }
}

/// The token never reaches a log.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("token_bytes", &self.token.len())
            .field("sessions", &self.sessions)
            .field("idle_max", &self.idle_max)
            .field("only_asks", &self.only_asks)
            .finish()
    }
}

/// A client of one cluster.
#[derive(Debug)]
pub struct Client {
    core: Core,
    connection: Option<Connection>,
    /// The beginning of the core's time.
    begun: Instant,
    next_number: u64,
    /// What the core wants done.
    effects: VecDeque<Effect>,
}

impl Client {
    /// A client that dials when it is first used.
    pub fn new(addresses: &[String], options: Options) -> Client {
        // A fresh hasher of the standard library is keyed at random: enough to spread clients.
        let seed = RandomState::new().build_hasher().finish();
        Client {
            core: Core::new(addresses, options, seed),
            connection: None,
            begun: Instant::now(),
            next_number: 0,
            effects: VecDeque::new(),
        }
    }

    /// A client that is connected, to the leader if one is known.
    ///
    /// # Errors
    /// When no address takes it within [`Options::timeout`].
    pub fn connect(addresses: &[String], options: Options) -> Result<Client, Error> {
        let mut client = Client::new(addresses, options);
        let (number, timeout) = (client.number(), client.options().timeout);
        client.call(Event::Reach { number, timeout })?;
        Ok(client)
    }

    fn options(&self) -> &Options {
        self.core.options()
    }

    /// The node that is connected at present.
    pub fn address(&self) -> Option<&str> {
        self.core.address()
    }

    /// Every address this client knows of: those given, and those it has learned.
    pub fn known_addresses(&self) -> Vec<String> {
        self.core.known_addresses()
    }

    /// The connection alone, to send requests of one's own on.
    pub fn into_connection(self) -> Option<Connection> {
        self.connection
    }

    /// Ends the session, as far as that goes without waiting.
    pub fn close(mut self) {
        let (Some(session), Some(connection)) = (self.core.end_session(), &mut self.connection)
        else {
            return;
        };
        let mut request = Request { id: 0, deadline_ms: 0, call: Call::CloseSession { session } };
        // A session that is not closed is forgotten in time: failing here costs nothing.
        if connection.send(&mut request).is_ok() {
            let _ = connection.flush(Instant::now() + GRACE);
        }
    }

    // ---- calls ----

    /// Carries out a write, exactly once; see [`Client::write_stream`] for what is sent again.
    ///
    /// # Errors
    /// Class `Unknown` when it may or may not have taken effect; every other class says that it
    /// surely did not and will not.
    pub fn write(&mut self, write: Write) -> Result<Outcome, Error> {
        let mut outcome = None;
        let ended = self.write_stream(std::iter::once(write), |_, result| {
            outcome = Some(result);
            std::ops::ControlFlow::Continue(())
        });
        match (outcome, ended) {
            (Some(outcome), _) => outcome,
            (None, Err(error)) => Err(error),
            (None, Ok(())) => {
                let cause = Cause::Unexpected("a write without an outcome");
                Err(Error { class: Class::Unknown, address: None, cause })
            }
        }
    }

    /// Stores a value.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<Revision, Error> {
        let op = Op::Put { key: key.to_vec(), value: value.to_vec() };
        self.batch(vec![op]).map(|(revision, _)| revision)
    }

    /// Removes a key; says whether it was there.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn delete(&mut self, key: &[u8]) -> Result<(Revision, bool), Error> {
        let (revision, results) = self.batch(vec![Op::Delete { key: key.to_vec() }])?;
        match results.first() {
            Some(OpResult::Deleted { existed }) => Ok((revision, *existed)),
            _ => Err(self.unexpected(Class::Unknown, "to a delete")),
        }
    }

    /// Adds to a number; gives the new one.
    ///
    /// # Errors
    /// As [`Client::write`]; class `Invalid` when the value is no number or would overflow.
    pub fn increment(&mut self, key: &[u8], by: i64) -> Result<(Revision, i64), Error> {
        let (revision, results) = self.batch(vec![Op::Increment { key: key.to_vec(), by }])?;
        match results.first() {
            Some(OpResult::Number { value }) => Ok((revision, *value)),
            _ => Err(self.unexpected(Class::Unknown, "to an increment")),
        }
    }

    /// Does several things at once, without conditions. The results are empty when a retry found
    /// them too large to have been remembered.
    ///
    /// # Errors
    /// As [`Client::write`]; class `Invalid` when an increment cannot be done.
    pub fn batch(&mut self, ops: Vec<Op>) -> Result<(Revision, Vec<OpResult>), Error> {
        let invalid = |message: &str| Error {
            class: Class::Invalid,
            address: None,
            cause: Cause::Refused(message.to_owned()),
        };
        match self.write(Write { ops, ..Write::default() })? {
            Outcome::Done { revision, results } => Ok((revision, results)),
            Outcome::ResultsForgotten { revision } => Ok((revision, Vec::new())),
            Outcome::NotANumber { .. } => {
                Err(invalid("the value is not a whole number of 64 bits"))
            }
            Outcome::Overflow { .. } => Err(invalid("the number would leave its 64 bits")),
            Outcome::ResultsTooLarge { .. } => {
                let error = invalid("what was read is more than one answer may carry");
                Err(Error { class: Class::TooLarge, ..error })
            }
            _ => Err(self.unexpected(Class::Unknown, "to a write")),
        }
    }

    /// Reads a key; sees every write that was answered before.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Found>, Error> {
        match self.query(Query::Get { key: key.to_vec() })? {
            Reply::Value(found) => Ok(found),
            Reply::Page(_) => Err(self.unexpected(Class::Unavailable, "a page to a get")),
        }
    }

    /// Reads a page of keys, from one consistent cut that holds every write answered before.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn range(&mut self, range: Range) -> Result<Page, Error> {
        match self.query(Query::Range(range))? {
            Reply::Page(page) => Ok(page),
            Reply::Value(_) => Err(self.unexpected(Class::Unavailable, "a value to a range")),
        }
    }

    /// Counts the keys from `start` to before `end` (empty: no bound).
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn count(&mut self, start: &[u8], end: &[u8]) -> Result<u64, Error> {
        let (start, end) = (start.to_vec(), end.to_vec());
        self.range(Range { start, end, count_only: true, ..Range::default() }).map(|p| p.count)
    }

    /// A linearizable read.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn query(&mut self, query: Query) -> Result<Reply, Error> {
        let call = Call::Query { query, consistency: Consistency::Linearizable };
        match self.ask(call)? {
            Answer::Reply(reply) => Ok(reply),
            _ => Err(self.unexpected(Class::Unavailable, "to a query")),
        }
    }

    /// Asks whether a node answers.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn ping(&mut self) -> Result<(), Error> {
        match self.ask(Call::Ping)? {
            Answer::Pong => Ok(()),
            _ => Err(self.unexpected(Class::Unavailable, "to a ping")),
        }
    }

    /// What the node at `address` says of itself. Asks that one alone, once, within `wait`.
    ///
    /// # Errors
    /// When it does not answer in time, for whatever reason.
    pub fn status(&self, address: &str, wait: Duration) -> Result<NodeStatus, Error> {
        match self.ask_one(address, Call::Status, wait)? {
            Answer::Status(status) => Ok(status),
            _ => {
                let cause = Cause::Unexpected("to a question for the status");
                Err(Error::new(Class::Unavailable, address, cause))
            }
        }
    }

    /// Asks one node, once, over a connection of its own, what may be asked twice.
    fn ask_one(&self, address: &str, call: Call, wait: Duration) -> Result<Answer, Error> {
        let until = Instant::now() + wait;
        let only_asks = matches!(call, Call::Status);
        let hello = Hello { only_asks, ..Hello::of_client(self.core.cluster()) };
        let greeting = Greeting::of_client(hello, &self.options().token);
        let mut connection = Connection::dial_with(address, &greeting, wait)?;
        let mut request = Request { id: 0, deadline_ms: 0, call };
        match exchange(&mut connection, &mut request, until) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failure { class, message, .. })) => {
                Err(Error::new(class, address, Cause::Refused(message)))
            }
            Err(error) => Err(Error { class: Class::Unavailable, ..error }),
        }
    }

    /// The error for an answer of a wrong kind: `class` is `Unknown` where something may have been
    /// done.
    fn unexpected(&self, class: Class, what: &'static str) -> Error {
        let address = self.address().map(str::to_owned);
        Error { class, address, cause: Cause::Unexpected(what) }
    }

    // ---- what the core wants done ----

    fn ask(&mut self, call: Call) -> Result<Answer, Error> {
        self.ask_within(call, self.options().timeout)
    }

    fn ask_within(&mut self, call: Call, timeout: Duration) -> Result<Answer, Error> {
        let number = self.number();
        self.call(Event::Begin { number, call, timeout })
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// One call, until it is answered.
    fn call(&mut self, begin: Event) -> Result<Answer, Error> {
        self.tell(begin);
        let mut answer = None;
        loop {
            let gave_up = self.act(&mut |_, result| answer = Some(result));
            match (answer.take(), gave_up) {
                (Some(result), _) => return result,
                (None, Err(error)) => return Err(error),
                (None, Ok(())) => self.wait(),
            }
        }
    }

    fn tell(&mut self, event: Event) {
        let now_us = micros(self.begun.elapsed());
        self.effects.extend(self.core.handle(event, now_us));
    }

    /// Does what the core wants done, until it waits for something.
    fn act(&mut self, done: &mut dyn FnMut(u64, Result<Answer, Error>)) -> Result<(), Error> {
        let mut flush = None;
        loop {
            while let Some(effect) = self.effects.pop_front() {
                match effect {
                    Effect::Connect { address, cluster, within } => {
                        let Options { token, only_asks, .. } = self.core.options();
                        let hello = Hello { only_asks: *only_asks, ..Hello::of_client(cluster) };
                        let greeting = Greeting::of_client(hello, token);
                        let event = match Connection::dial_with(&address, &greeting, within) {
                            Ok(connection) => {
                                let welcome = connection.welcome().clone();
                                self.connection = Some(connection);
                                Event::Connected { welcome }
                            }
                            Err(error) => Event::ConnectFailed { error },
                        };
                        self.tell(event);
                    }
                    Effect::Send(request) => self.queue(&request),
                    Effect::Flush { stall, within } => flush = Some((stall, within)),
                    Effect::Close => (self.connection, flush) = (None, None),
                    Effect::Done { number, result } => done(number, result),
                    Effect::GaveUp { error } => return Err(error),
                }
            }
            let Some((stall, within)) = flush.take() else { return Ok(()) };
            let Some(connection) = &mut self.connection else { return Ok(()) };
            let event = match connection.flush_steadily(stall, within) {
                Ok(true) => Event::Flushed,
                Ok(false) => Event::Blocked { unsent_from: connection.unsent_from() },
                Err(error) => Event::Broke { error, unsent_from: connection.unsent_from() },
            };
            self.tell(event);
        }
    }

    fn queue(&mut self, request: &Request) {
        let Some(connection) = &mut self.connection else { return };
        if let Err(error) = connection.queue(request) {
            let failure = Failure { class: error.class, message: error.to_string(), leader: None };
            self.tell(Event::Answered {
                response: Response { id: request.id, result: Err(failure) },
            });
        }
    }

    /// Waits until something has arrived, or the core wants to be asked.
    fn wait(&mut self) {
        let now = Instant::now();
        let until = self.core.next_us().map_or(now, |us| self.begun + Duration::from_micros(us));
        let awaited = self.core.awaits_answers();
        let Some(connection) = self.connection.as_mut().filter(|_| awaited) else {
            std::thread::sleep(until.saturating_duration_since(now));
            return self.tell(Event::Time);
        };
        match connection.arrive(until) {
            Ok(Arrival::Answer(response)) => {
                self.tell(Event::Answered { response });
                // Those that came with it are taken in before anything is sent.
                while let Some(connection) = &mut self.connection
                    && let Some(next) = connection.received().transpose()
                {
                    match next {
                        Ok(response) => self.tell(Event::Answered { response }),
                        Err(error) => {
                            return self.tell(Event::Broke { error, unsent_from: u64::MAX });
                        }
                    }
                }
            }
            Ok(Arrival::Bytes) => self.tell(Event::Heard),
            Ok(Arrival::Nothing) => self.tell(Event::Time),
            Err(error) => self.tell(Event::Broke { error, unsent_from: u64::MAX }),
        }
    }
}

/// One question and its answer, on a connection that nothing is open on. Waits [`GRACE`] longer
/// than the deadline that it sends.
fn exchange(
    connection: &mut Connection,
    request: &mut Request,
    by: Instant,
) -> Result<Result<Answer, Failure>, Error> {
    let started = Instant::now();
    let left = by.saturating_duration_since(started);
    // 0 would leave it to the node.
    request.deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
    let sent = connection.send(request)?;
    connection.flush(by + GRACE)?;
    let cause = match connection.receive(by + GRACE)? {
        Some(response) if response.id == sent.id => return Ok(response.result),
        Some(Response { id: NO_REQUEST, result: Err(failure) }) => Cause::Refused(failure.message),
        Some(_) => Cause::Unexpected("an id that nobody asked"),
        None => Cause::Silent { wait: started.elapsed() },
    };
    Err(Error::new(Class::Unknown, connection.address(), cause))
}

/// In microseconds, as the core counts.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;

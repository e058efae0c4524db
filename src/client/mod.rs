//! The client library: leader discovery, retries, sessions. On `std::net`, without threads.
//!
//! A [`Client`] knows some addresses of a cluster and keeps one connection, to the leader where it
//! finds it: in the welcome of any node, in the failure of a node that cannot serve, or by dialing
//! the other members. What is sent again, and what is not, follows docs/protocol.md, "Failures", to
//! the letter; `writer` is the one place that decides it for writes, [`Client`] for everything
//! else. Writes carry the stamp of a session unless [`Options::sessions`] is off, so that a write
//! whose answer was lost is sent again and still takes effect once.
//!
//! Left out: encryption, connection pools, and any caching of what was read.

mod backoff;
mod backup;
mod connection;
mod error;
mod members;
mod writer;

pub use backup::Backup;
pub use connection::{Connection, Sent};
pub use error::{Cause, Error};

use crate::kv::{Found, Op, OpResult, Outcome, Page, Query, Range, Reply, Revision, Write};
use crate::wire::client::{
    Answer, Call, Class, Consistency, Failure, NO_REQUEST, NodeStatus, Request,
};
use backoff::Backoff;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much longer than the deadline that was sent an answer is waited for: the way there and back.
pub const GRACE: Duration = Duration::from_millis(200);

/// How long one node is given before another is asked, where asking twice does no harm. It doubles
/// with each attempt, for questions that take long.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Of a short time limit one attempt may take this part: a node that hangs must leave time for the
/// others.
const ATTEMPTS_MIN: u32 = 3;

/// How long an address that did not answer is not dialed just because a node names it as leader.
const AVOID: Duration = Duration::from_secs(2);

/// Most addresses that are kept, beside those given: more members than a cluster has.
const LEARNED_MAX: usize = 64;

/// How often the members are asked for by a client that is used: they come and go, and who else there
/// is must be known before the node that is connected is gone.
const MEMBERS_EVERY: Duration = Duration::from_millis(250);

/// How long the question for the members may take; it is asked in passing and may fail.
const MEMBERS_WAIT: Duration = Duration::from_millis(500);

/// How a client behaves.
#[derive(Clone)]
pub struct Options {
    /// How long a call may take, all retries included; an answer on its way is waited for
    /// [`GRACE`] longer. For many writes: how long without any of them being answered.
    pub timeout: Duration,
    /// How long dialing one address may take, with the handshake.
    pub connect_timeout: Duration,
    /// The shared secret; empty when there is none.
    pub token: Vec<u8>,
    /// Whether writes carry a session's stamp and so may be sent again. Without it a write whose
    /// answer is lost stays unknown.
    pub sessions: bool,
    /// A connection on which nothing was sent for so long is dialed anew before it is used: a node
    /// closes it after ten minutes, and a write that meets the closed end would be in doubt.
    pub idle_max: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            token: Vec::new(),
            sessions: true,
            idle_max: Duration::from_secs(300),
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
            .finish()
    }
}

/// A session of this client: see docs/protocol.md, "Sessions and exactly-once".
#[derive(Debug)]
struct Session {
    id: u64,
    next_sequence: u64,
}

/// A client of one cluster.
#[derive(Debug)]
pub struct Client {
    options: Options,
    given: Vec<String>,
    learned: Vec<String>,
    /// Addresses that will never take this client, with the reason.
    barred: Vec<(String, Arc<Error>)>,
    /// Where the leader is believed to be.
    leader: Option<String>,
    /// The last leader that could not be dialed, and when.
    avoid: Option<(String, Instant)>,
    /// Where the round through the addresses begins.
    first: usize,
    /// The cluster, once one has answered: a node of another one is never mistaken for it.
    cluster: u64,
    connection: Option<Connection>,
    session: Option<Session>,
    /// When the members were last asked for; none before anything was asked.
    members_at: Option<Instant>,
}

/// An exchange that gave no answer.
struct Lost {
    error: Error,
    /// Whether the whole request was handed to the network.
    handed: bool,
}

impl Client {
    /// A client that dials when it is first used.
    pub fn new(addresses: &[String], options: Options) -> Client {
        Client {
            options,
            given: addresses.to_vec(),
            learned: Vec::new(),
            barred: Vec::new(),
            leader: None,
            avoid: None,
            first: 0,
            cluster: 0,
            connection: None,
            session: None,
            members_at: None,
        }
    }

    /// A client that is connected, to the leader if one is known.
    ///
    /// # Errors
    /// When no address takes it within [`Options::timeout`].
    pub fn connect(addresses: &[String], options: Options) -> Result<Client, Error> {
        let mut client = Client::new(addresses, options);
        let until = Instant::now() + client.options.timeout;
        client.ensure_connection(until)?;
        Ok(client)
    }

    /// The node that is connected at present.
    pub fn address(&self) -> Option<&str> {
        self.connection.as_ref().map(Connection::address)
    }

    /// Every address this client knows of: those given, and those it has learned.
    pub fn known_addresses(&self) -> Vec<String> {
        self.addresses()
    }

    /// The connection alone, for who wants to send requests of its own.
    pub fn into_connection(self) -> Option<Connection> {
        self.connection
    }

    /// Ends the session, as far as that goes without waiting.
    pub fn close(mut self) {
        let (Some(session), Some(connection)) = (self.session.take(), &mut self.connection) else {
            return;
        };
        let call = Call::CloseSession { session: session.id };
        let mut request = Request { id: 0, deadline_ms: 0, call };
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
        match self.ask(call, true)? {
            Answer::Reply(reply) => Ok(reply),
            _ => Err(self.unexpected(Class::Unavailable, "to a query")),
        }
    }

    /// Asks whether a node answers.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn ping(&mut self) -> Result<(), Error> {
        match self.ask(Call::Ping, true)? {
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
        let mut connection = Connection::dial(address, &self.options.token, self.cluster, wait)?;
        let mut request = Request { id: 0, deadline_ms: 0, call };
        match exchange(&mut connection, &mut request, until) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(refused(&failure, address)),
            Err(lost) => Err(Error { class: Class::Unavailable, ..lost.error }),
        }
    }

    /// The error for an answer of a wrong kind: `class` is `Unknown` where something may have been
    /// done.
    fn unexpected(&self, class: Class, what: &'static str) -> Error {
        let address = self.address().map(str::to_owned);
        Error { class, address, cause: Cause::Unexpected(what) }
    }

    // ---- one question, asked until it is answered ----

    fn ask(&mut self, call: Call, repeatable: bool) -> Result<Answer, Error> {
        let until = Instant::now() + self.options.timeout;
        self.ask_until(call, repeatable, until)
    }

    /// Asks until there is an answer. What is not `repeatable` is asked again only when it surely
    /// was not carried out.
    fn ask_until(&mut self, call: Call, repeatable: bool, until: Instant) -> Result<Answer, Error> {
        let mut request = Request { id: 0, deadline_ms: 0, call };
        let mut backoff = Backoff::default();
        let mut attempt = self.first_attempt();
        let mut last: Option<Arc<Error>> = None;
        loop {
            if last.is_some() && Instant::now() >= until {
                let class = match last.as_ref().map(|e| e.class) {
                    Some(Class::Busy) => Class::Busy,
                    _ => Class::Unavailable,
                };
                return Err(Error::gave_up(class, self.options.timeout, last));
            }
            self.ensure_connection(until)?;
            self.refresh_members(until);
            let Some(connection) = &mut self.connection else { continue };
            let address = connection.address().to_owned();
            let by = if repeatable { until.min(Instant::now() + attempt) } else { until };
            attempt *= 2;
            let error = match exchange(connection, &mut request, by) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => {
                    let error = refused(&failure, &address);
                    match failure.class {
                        Class::Unavailable => self.go_elsewhere(failure.leader.as_ref()),
                        Class::Busy => {}
                        Class::Unknown if repeatable => {}
                        _ => return Err(error),
                    }
                    error
                }
                Err(lost) if lost.error.class == Class::TooLarge => return Err(lost.error),
                Err(lost) => {
                    self.go_elsewhere(None);
                    self.connection = None;
                    if lost.handed && !repeatable {
                        return Err(lost.error);
                    }
                    lost.error
                }
            };
            last = Some(Arc::new(error));
            pause(backoff.next(), until);
        }
    }

    /// How long the first attempt may take, where further ones do no harm.
    fn first_attempt(&self) -> Duration {
        (self.options.timeout / ATTEMPTS_MIN).min(ATTEMPT)
    }

    // ---- connections ----

    /// The node cannot serve: the next attempt goes to the leader it names, else to another node.
    fn go_elsewhere(&mut self, leader: Option<&(u64, String)>) {
        let here = self.address().map(str::to_owned);
        if let Some((_, address)) = leader.filter(|(_, a)| !a.is_empty() && !self.avoided(a)) {
            self.leader = Some(address.clone());
            if here.as_deref() != Some(address) {
                self.connection = None;
            }
            return;
        }
        self.leader = None;
        // The round goes on behind the node that was asked.
        let addresses = self.addresses();
        if let Some(at) = addresses.iter().position(|a| Some(a.as_str()) == here.as_deref()) {
            self.first = at + 1;
        }
        if addresses.len() > 1 {
            self.connection = None;
        }
    }

    fn avoided(&self, address: &str) -> bool {
        self.avoid.as_ref().is_some_and(|(a, at)| a == address && at.elapsed() < AVOID)
    }

    fn addresses(&self) -> Vec<String> {
        let learned = self.learned.iter().filter(|a| !self.given.contains(a));
        self.given.iter().chain(learned).cloned().collect()
    }

    /// Addresses to dial, in order: the leader, then all others from where the round stands.
    fn candidates(&self) -> Vec<String> {
        let mut all = self.addresses();
        if !all.is_empty() {
            let first = self.first % all.len();
            all.rotate_left(first);
        }
        if let Some(leader) = &self.leader {
            all.retain(|a| a != leader);
            all.insert(0, leader.clone());
        }
        all.retain(|a| !self.barred.iter().any(|(barred, _)| barred == a));
        all
    }

    /// Dials until there is a connection.
    fn ensure_connection(&mut self, until: Instant) -> Result<(), Error> {
        if self.connection.as_ref().is_some_and(|c| c.idle() < self.options.idle_max) {
            return Ok(());
        }
        self.connection = None;
        let mut backoff = Backoff::default();
        let mut last: Option<Arc<Error>> = None;
        loop {
            let candidates = self.candidates();
            if candidates.is_empty() {
                return Err(match self.barred.pop() {
                    Some((address, error)) => {
                        // It is told again to whoever asks again.
                        self.barred.push((address, Arc::clone(&error)));
                        Error::passed_on(&error)
                    }
                    None => {
                        let cause = Cause::NoAddress;
                        Error { class: Class::Unavailable, address: None, cause }
                    }
                });
            }
            let mut busy = None;
            for address in candidates {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() && last.is_some() {
                    break;
                }
                match self.dial(&address, left) {
                    Ok(connection) => {
                        let connection = self.follow(connection, until);
                        self.learn_from(&connection);
                        self.connection = Some(connection);
                        return Ok(());
                    }
                    Err(error) if error.class == Class::Unauthorised => return Err(error),
                    Err(error) => {
                        let error = self.note_failed(&address, error);
                        if error.class == Class::Busy {
                            busy = Some(Arc::clone(&error));
                        }
                        last = Some(error);
                    }
                }
            }
            // A full node stays full longer than a call waits, and dialing on makes it no better.
            if let Some(error) = busy {
                return Err(Error::passed_on(&error));
            }
            if Instant::now() >= until {
                return Err(Error::gave_up(Class::Unavailable, self.options.timeout, last));
            }
            pause(backoff.next(), until);
        }
    }

    fn dial(&self, address: &str, left: Duration) -> Result<Connection, Error> {
        let wait = self.options.connect_timeout.min(left);
        Connection::dial(address, &self.options.token, self.cluster, wait)
    }

    fn note_failed(&mut self, address: &str, error: Error) -> Arc<Error> {
        if self.leader.as_deref() == Some(address) {
            self.leader = None;
        }
        let error = Arc::new(error);
        self.avoid = Some((address.to_owned(), Instant::now()));
        if error.bars_address() && self.barred.len() < LEARNED_MAX {
            self.barred.push((address.to_owned(), Arc::clone(&error)));
        }
        error
    }

    /// Goes on to the leader that a node names; stays with the node when that fails.
    fn follow(&mut self, connection: Connection, until: Instant) -> Connection {
        let welcome = connection.welcome();
        let leader = welcome.leader_address.clone();
        let here = welcome.leader == welcome.node || leader == connection.address();
        let barred = self.barred.iter().any(|(a, _)| *a == leader);
        let left = until.saturating_duration_since(Instant::now());
        if leader.is_empty() || here || barred || self.avoided(&leader) || left.is_zero() {
            return connection;
        }
        match self.dial(&leader, left) {
            Ok(next) => next,
            Err(error) => {
                self.note_failed(&leader, error);
                connection
            }
        }
    }

    fn learn_from(&mut self, connection: &Connection) {
        let welcome = connection.welcome();
        if welcome.cluster != 0 {
            self.cluster = welcome.cluster;
        }
        self.learn_address(connection.address().to_owned());
        let address = welcome.leader_address.clone();
        if welcome.leader != 0 && welcome.leader == welcome.node {
            self.leader = Some(connection.address().to_owned());
        } else if !address.is_empty() {
            self.learn_address(address);
        }
    }

    fn learn_address(&mut self, address: String) {
        let known = self.given.contains(&address) || self.learned.contains(&address);
        if !known && !address.is_empty() && self.learned.len() < LEARNED_MAX {
            self.learned.push(address);
        }
    }

    // ---- sessions ----

    /// Opens a session if there is none. Nothing may be open on the connection.
    fn ensure_session(&mut self, until: Instant) -> Result<(), Error> {
        if self.session.is_some() {
            return Ok(());
        }
        match self.ask_until(Call::OpenSession, true, until)? {
            Answer::Outcome(Outcome::SessionOpened { session }) => {
                self.session = Some(Session { id: session, next_sequence: 1 });
            }
            _ => return Err(self.unexpected(Class::Unavailable, "to opening a session")),
        }
        self.ask_members(until);
        Ok(())
    }
}

/// One question and its answer, on a connection that nothing is open on. Waits [`GRACE`] longer
/// than the deadline that it sends.
fn exchange(
    connection: &mut Connection,
    request: &mut Request,
    by: Instant,
) -> Result<Result<Answer, Failure>, Lost> {
    let started = Instant::now();
    request.deadline_ms = deadline_ms(by.saturating_duration_since(started));
    let sent = match connection.send(request) {
        Ok(sent) => sent,
        Err(error) => return Err(Lost { error, handed: false }),
    };
    let lost =
        |connection: &Connection, error| Lost { error, handed: connection.handed() >= sent.end };
    connection.flush(by + GRACE).map_err(|e| lost(connection, e))?;
    match connection.receive(by + GRACE) {
        Ok(Some(response)) if response.id == sent.id => Ok(response.result),
        Ok(Some(response)) => {
            let error = stray(connection.address(), response.id, response.result.err());
            Err(lost(connection, error))
        }
        Ok(None) => {
            let cause = Cause::Silent { wait: started.elapsed() };
            let error = Error::new(Class::Unknown, connection.address(), cause);
            Err(lost(connection, error))
        }
        Err(error) => Err(lost(connection, error)),
    }
}

/// The error for an answer to no open request: about the connection, or out of place.
fn stray(address: &str, id: u64, failure: Option<Failure>) -> Error {
    match failure {
        Some(failure) if id == NO_REQUEST => {
            Error::new(Class::Unknown, address, Cause::Refused(failure.message))
        }
        _ => Error::new(Class::Unknown, address, Cause::Unexpected("an id that nobody asked")),
    }
}

fn refused(failure: &Failure, address: &str) -> Error {
    Error::new(failure.class, address, Cause::Refused(failure.message.clone()))
}

/// A deadline as requests carry it: 0 would leave it to the node.
fn deadline_ms(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1)
}

/// Sleeps, but not beyond `until`.
fn pause(wait: Duration, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    std::thread::sleep(wait.min(left));
}

#[cfg(test)]
pub(crate) mod tests;

//! Writes, one or a million: in flight together, sent again where that is safe, answered each once.
//!
//! The one place that decides what becomes of a write (docs/protocol.md, "Failures"). A write is
//! *in doubt* once a copy may have taken effect and was not answered with an outcome. A stamped one
//! is sent again with the same stamp until a copy is answered; an unstamped one in doubt is given
//! up as unknown. A refusal of a later copy does not end the doubt of an earlier one.
//!
//! Writes in flight together have no order on the wire, so two that name the same key are never in
//! flight together: they take effect in the order given. Left out: threads. What is in flight is
//! bounded so that all answers fit the buffers between client and node: neither can block the other.

use super::backoff::Backoff;
use super::{Cause, Client, Connection, Error, GRACE, Sent, deadline_ms, pause, refused, stray};
use crate::kv::limits::write_bytes;
use crate::kv::{Op, Outcome, SessionStamp, Write};
use crate::wire::client::{Answer, Call, Class, Request, Response};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most writes from the oldest unanswered to the newest: enough that the cluster always has a batch
/// to work on while another is on its way.
const WINDOW: u64 = 256;

/// As [`WINDOW`], for counting what is open.
const OPEN_MAX: usize = WINDOW as usize;

/// Most bytes of writes in flight, unless one alone is larger: a node's share for one client.
const WINDOW_BYTES: usize = 1 << 20;

/// Most bytes of remembered results that a session is asked to hold at a time.
const RESULTS_BYTES: u64 = 48 << 10;

/// What a session holds before it forgets by itself: docs/formats.md, "Session record".
const SESSION_RESULTS: u64 = 1024;
/// The same in bytes.
const SESSION_BYTES: u64 = 64 << 10;

/// What one remembered result takes at most: what the session adds, kind, revision and count, and
/// for each operation a kind and a number.
const RESULT_FIXED_BYTES: u64 = 48 + 1 + 10 + 5;
const RESULT_OP_BYTES: u64 = 1 + 10;

const _: () = assert!(WINDOW <= SESSION_RESULTS && RESULTS_BYTES < SESSION_BYTES);

/// A write that is not answered.
struct Pending {
    /// Its position in what the caller gave.
    index: usize,
    /// The call is always a write.
    request: Request,
    bytes: usize,
    /// Remembered result bytes of all writes before it, since the stream began.
    results_before: u64,
    keys: Vec<u64>,
    /// The stamp is this client's, to be renewed when it is surely safe.
    ours: bool,
    /// An earlier copy may have taken effect.
    doubt: bool,
    /// The copy that is open on the connection.
    open: Option<Sent>,
}

impl Pending {
    fn stamp(&self) -> Option<SessionStamp> {
        if let Call::Write(write) = &self.request.call { write.stamp } else { None }
    }
}

/// The writes of one stream that are taken and not answered.
///
/// Invariants: `by_id` holds exactly the open copies; `keys` holds the keys of `pending`, which
/// share none; all stamps of ours in `pending` are of one session; `queue` is sorted by position.
struct Flight<F> {
    answered: F,
    stopped: bool,
    pending: BTreeMap<u64, Pending>,
    by_id: HashMap<u64, u64>,
    keys: HashSet<u64>,
    bytes: usize,
    results: u64,
    next_ticket: u64,
    /// Most copies that are open at a time, from 1 to [`OPEN_MAX`]: halved when a connection breaks
    /// or a node is busy, one more with each answer. A node that dies of many gets few.
    open_max: usize,
    /// Taken and not in flight: the next one, before it those whose stamp is of no more use and of
    /// which no copy took effect.
    queue: VecDeque<(usize, Write)>,
    /// When a write was last answered, or the first one was taken after all were.
    progress: Instant,
    /// When something last arrived, or was sent while nothing was open.
    heard: Instant,
    /// How long a node may be silent with something open.
    patience: Duration,
    patience_first: Duration,
    backoff: Backoff,
    not_before: Option<Instant>,
    /// This node cannot serve; go on elsewhere as soon as nothing is open, at the leader named.
    elsewhere: Option<Option<(u64, String)>>,
    last: Option<Arc<Error>>,
}

impl Client {
    /// Carries out many writes, as many at a time as the cluster digests, and gives each one's
    /// outcome, in order. Each is atomic; all together are not. Writes that name the same key take
    /// effect in the order given.
    pub fn write_many(&mut self, writes: &[Write]) -> Vec<Result<Outcome, Error>> {
        let mut results: Vec<Option<Result<Outcome, Error>>> = Vec::new();
        results.resize_with(writes.len(), || None);
        let ended = self.write_stream(writes.iter().cloned(), |index, result| {
            if let Some(slot) = results.get_mut(index) {
                *slot = Some(result);
            }
            ControlFlow::Continue(())
        });
        let why = ended.err().map(Arc::new);
        let class = why.as_ref().map_or(Class::Unavailable, |e| match e.class {
            Class::Unknown => Class::Unavailable,
            class => class,
        });
        let timeout = self.options.timeout;
        let unsent = || Err(Error::gave_up(class, timeout, why.clone()));
        results.into_iter().map(|result| result.unwrap_or_else(unsent)).collect()
    }

    /// Carries out writes as they come from an iterator, which is asked for the next one only when
    /// there is room for it. `answered` gets each one's position and outcome, in any order; after
    /// it breaks no further writes are taken, and those in flight are still answered. A write that
    /// the caller has stamped keeps that stamp and is answered with whatever the cluster says.
    ///
    /// # Errors
    /// When no write was answered for [`super::Options::timeout`], or the cluster does not take
    /// this client. Every write that was taken has been answered then, with `Unknown` or as surely
    /// not applied; the rest were not taken.
    pub fn write_stream(
        &mut self,
        writes: impl IntoIterator<Item = Write>,
        answered: impl FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let now = Instant::now();
        let patience =
            if self.options.sessions { self.first_attempt() } else { self.options.timeout };
        let mut flight = Flight {
            answered,
            stopped: false,
            pending: BTreeMap::new(),
            by_id: HashMap::new(),
            keys: HashSet::new(),
            bytes: 0,
            results: 0,
            next_ticket: 0,
            open_max: OPEN_MAX,
            queue: VecDeque::new(),
            progress: now,
            heard: now,
            patience,
            patience_first: patience,
            backoff: Backoff::default(),
            not_before: None,
            elsewhere: None,
            last: None,
        };
        let mut source = writes.into_iter().enumerate().fuse();
        loop {
            flight.pull(&mut source);
            if flight.queue.is_empty() && flight.pending.is_empty() {
                return Ok(());
            }
            let until = flight.progress + self.options.timeout;
            let now = Instant::now();
            if now >= until && (flight.by_id.is_empty() || now >= until + GRACE) {
                return Err(flight.give_up(self, false));
            }
            if let Err(error) = self.ready(&mut flight, until) {
                // What no time was spent on is not "gave up after ..." but what it is.
                let at_once = !matches!(error.cause, Cause::GaveUp { .. });
                flight.last = Some(Arc::new(error));
                return Err(flight.give_up(self, at_once));
            }
            self.admit(&mut flight, &mut source);
            self.exchange_some(&mut flight, until);
        }
    }

    /// Makes sure of a connection, and of a session when the next write needs one.
    fn ready<F>(&mut self, flight: &mut Flight<F>, until: Instant) -> Result<(), Error>
    where
        F: FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
    {
        if flight.by_id.is_empty()
            && let Some(leader) = flight.elsewhere.take()
        {
            self.go_elsewhere(leader.as_ref());
        }
        self.ensure_connection(until)?;
        if flight.by_id.is_empty() {
            self.refresh_members(until);
        }
        // A session that is lost makes room for the next one when its last write is answered.
        let next = flight.queue.front();
        let stamped = next.is_some_and(|(_, write)| write.stamp.is_none()) && self.options.sessions;
        if stamped && flight.pending.is_empty() {
            self.ensure_session(until)?;
            self.ensure_connection(until)?;
        }
        Ok(())
    }

    /// Takes writes into the window while there is room.
    fn admit<F>(
        &mut self,
        flight: &mut Flight<F>,
        source: &mut impl Iterator<Item = (usize, Write)>,
    ) where
        F: FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
    {
        while flight.elsewhere.is_none() && !flight.waits() && flight.has_room() {
            flight.pull(source);
            let Some((_, write)) = flight.queue.front() else { return };
            let ours = write.stamp.is_none() && self.options.sessions;
            if !flight.fits(write) || (ours && self.session.is_none()) {
                return;
            }
            let Some((index, mut write)) = flight.queue.pop_front() else { return };
            if ours && let Some(session) = &mut self.session {
                let sequence = session.next_sequence;
                session.next_sequence += 1;
                let lowest = flight.pending.values().filter(|p| p.ours).find_map(Pending::stamp);
                let answered_below = lowest.map_or(sequence, |stamp| stamp.sequence);
                write.stamp = Some(SessionStamp { session: session.id, sequence, answered_below });
            }
            flight.take(index, write, ours);
        }
    }

    /// Sends what may be sent and waits for something to happen.
    fn exchange_some<F>(&mut self, flight: &mut Flight<F>, until: Instant)
    where
        F: FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
    {
        let Some(connection) = &mut self.connection else { return };
        if let Err(error) = flight.send(connection, until) {
            return self.lost(flight, error);
        }
        let now = Instant::now();
        if flight.by_id.is_empty() {
            if let Some(at) = flight.not_before {
                pause(at.saturating_duration_since(now), until);
            }
            return;
        }
        let silent_at = (flight.heard + flight.patience).min(until) + GRACE;
        let resend_at = flight.not_before.filter(|at| *at > now).unwrap_or(silent_at);
        match connection.receive(silent_at.min(resend_at)) {
            Ok(Some(first)) => {
                flight.heard = Instant::now();
                let mut next = Some(first);
                while let Some(response) = next {
                    if let Err(error) = self.answer(flight, response) {
                        return self.lost(flight, error);
                    }
                    let Some(connection) = &mut self.connection else { return };
                    next = match connection.received() {
                        Ok(response) => response,
                        Err(error) => return self.lost(flight, error),
                    };
                }
            }
            Ok(None) if Instant::now() >= silent_at => {
                let wait = flight.patience;
                flight.patience *= 2;
                let cause = Cause::Silent { wait };
                let error = Error::new(Class::Unknown, connection.address(), cause);
                self.lost(flight, error);
            }
            Ok(None) => {}
            Err(error) => self.lost(flight, error),
        }
    }

    /// The connection is of no more use: every copy that was handed to it is in doubt.
    fn lost<F>(&mut self, flight: &mut Flight<F>, error: Error)
    where
        F: FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
    {
        let handed = self.connection.as_ref().map_or(u64::MAX, Connection::handed);
        self.go_elsewhere(None);
        self.connection = None;
        let error = Arc::new(error);
        for (_, ticket) in std::mem::take(&mut flight.by_id) {
            let Some(pending) = flight.pending.get_mut(&ticket) else { continue };
            pending.doubt |= pending.open.is_some_and(|sent| sent.end <= handed);
            pending.open = None;
            if pending.doubt && pending.stamp().is_none() {
                let cause =
                    Cause::GaveUp { after: flight.heard.elapsed(), last: Some(error.clone()) };
                let address = error.address.clone();
                flight.finish(ticket, Err(Error { class: Class::Unknown, address, cause }));
            }
        }
        flight.last = Some(error);
        flight.elsewhere = None;
        flight.wait();
    }

    /// One answer. An error means that the connection is of no more use.
    fn answer<F>(&mut self, flight: &mut Flight<F>, response: Response) -> Result<(), Error>
    where
        F: FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
    {
        let address = self.address().unwrap_or_default().to_owned();
        let Some(ticket) = flight.by_id.remove(&response.id) else {
            return Err(stray(&address, response.id, response.result.err()));
        };
        let Some(pending) = flight.pending.get_mut(&ticket) else { return Ok(()) };
        pending.open = None;
        let failure = match response.result {
            Ok(Answer::Outcome(Outcome::SessionUnknown | Outcome::SequenceForgotten))
                if pending.ours =>
            {
                let stamp = pending.stamp();
                if self.session.as_ref().map(|s| s.id) == stamp.map(|s| s.session) {
                    self.session = None;
                }
                if pending.doubt {
                    let error = Error::new(Class::Unknown, &address, Cause::SessionLost);
                    flight.finish(ticket, Err(error));
                } else {
                    let error = Error::new(Class::Unavailable, &address, Cause::SessionLost);
                    flight.last = Some(Arc::new(error));
                    flight.renew(ticket);
                }
                return Ok(());
            }
            Ok(Answer::Outcome(outcome)) => {
                flight.finish(ticket, Ok(outcome));
                return Ok(());
            }
            Ok(_) => {
                // Put back, so that it is counted among what is in doubt.
                pending.open = Some(Sent { id: response.id, end: 0 });
                flight.by_id.insert(response.id, ticket);
                return Err(Error::new(Class::Unknown, &address, Cause::Unexpected("to a write")));
            }
            Err(failure) => failure,
        };
        let error = refused(&failure, &address);
        match failure.class {
            Class::Busy | Class::Unavailable => {
                if failure.class == Class::Unavailable {
                    let known = flight.elsewhere.take().flatten();
                    flight.elsewhere = Some(failure.leader.or(known));
                }
                flight.last = Some(Arc::new(error));
                flight.wait();
            }
            Class::Unknown => {
                pending.doubt = true;
                if pending.stamp().is_none() {
                    flight.finish(ticket, Err(error));
                } else {
                    flight.last = Some(Arc::new(error));
                    flight.wait();
                }
            }
            Class::TooLarge | Class::Invalid | Class::Unauthorised | Class::DiskFull => {
                let doubt = pending.doubt;
                let error = if doubt { uncertain(error) } else { error };
                flight.finish(ticket, Err(error));
            }
        }
        Ok(())
    }
}

fn uncertain(later: Error) -> Error {
    let address = later.address.clone();
    Error { class: Class::Unknown, address, cause: Cause::Uncertain(Box::new(later)) }
}

impl<F> Flight<F>
where
    F: FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
{
    /// Takes the next write from the source when none is waiting and there is room for it.
    fn pull(&mut self, source: &mut impl Iterator<Item = (usize, Write)>) {
        if self.queue.is_empty() && !self.stopped && self.has_room() {
            self.queue.extend(source.next());
            if self.pending.is_empty() {
                // However long the source took: the cluster's time begins now.
                self.progress = Instant::now();
            }
        }
    }

    fn waits(&self) -> bool {
        self.not_before.is_some_and(|at| at > Instant::now())
    }

    /// Something was refused or lost: nothing more is sent for a while, and less at a time.
    fn wait(&mut self) {
        if !self.waits() {
            self.open_max = (self.open_max / 2).max(1);
            self.not_before = Some(Instant::now() + self.backoff.next());
        }
    }

    fn has_room(&self) -> bool {
        let Some((lowest, first)) = self.pending.first_key_value() else { return true };
        self.next_ticket - lowest < WINDOW
            && self.bytes < WINDOW_BYTES
            && self.results - first.results_before < RESULTS_BYTES
    }

    /// Whether a write may be in flight together with those that are.
    fn fits(&self, write: &Write) -> bool {
        let Some((_, first)) = self.pending.first_key_value() else {
            return true;
        };
        self.bytes + write_bytes(write) <= WINDOW_BYTES
            && self.results - first.results_before + results_bytes(write) <= RESULTS_BYTES
            && key_hashes(write).iter().all(|key| !self.keys.contains(key))
    }

    fn take(&mut self, index: usize, write: Write, ours: bool) {
        let (bytes, keys) = (write_bytes(&write), key_hashes(&write));
        self.bytes += bytes;
        self.keys.extend(&keys);
        let results_before = self.results;
        self.results += results_bytes(&write);
        let request = Request { id: 0, deadline_ms: 0, call: Call::Write(write) };
        let pending =
            Pending { index, request, bytes, results_before, keys, ours, doubt: false, open: None };
        self.pending.insert(self.next_ticket, pending);
        self.next_ticket += 1;
    }

    fn remove(&mut self, ticket: u64) -> Option<Pending> {
        let pending = self.pending.remove(&ticket)?;
        self.bytes -= pending.bytes;
        for key in &pending.keys {
            self.keys.remove(key);
        }
        Some(pending)
    }

    fn finish(&mut self, ticket: u64, result: Result<Outcome, Error>) {
        self.progress = Instant::now();
        self.backoff.reset();
        self.patience = self.patience_first;
        self.last = None;
        self.open_max = (self.open_max + 1).min(OPEN_MAX);
        if let Some(pending) = self.remove(ticket)
            && (self.answered)(pending.index, result).is_break()
        {
            self.stopped = true;
        }
    }

    /// Its stamp is of no use and no copy took effect: it gets a new one, before what comes later.
    fn renew(&mut self, ticket: u64) {
        let Some(pending) = self.remove(ticket) else { return };
        if let Call::Write(mut write) = pending.request.call {
            write.stamp = None;
            let at = self.queue.partition_point(|(index, _)| *index < pending.index);
            self.queue.insert(at, (pending.index, write));
        }
    }

    /// Sends everything that is not open, unless a pause or a change of node is due.
    fn send(&mut self, connection: &mut Connection, until: Instant) -> Result<(), Error> {
        let open_max = self.open_max.min(self.pending.len());
        if self.waits() || self.elsewhere.is_some() || self.by_id.len() >= open_max {
            return Ok(());
        }
        self.not_before = None;
        let now = Instant::now();
        if self.by_id.is_empty() {
            self.heard = now;
        }
        let left = until.saturating_duration_since(now);
        let deadline = deadline_ms(self.patience.min(left));
        let mut frameless = Vec::new();
        let room = open_max - self.by_id.len();
        let idle = self.pending.iter_mut().filter(|(_, p)| p.open.is_none());
        for (ticket, pending) in idle.take(room) {
            pending.request.deadline_ms = deadline;
            match connection.send(&mut pending.request) {
                Ok(sent) => {
                    pending.open = Some(sent);
                    self.by_id.insert(sent.id, *ticket);
                }
                Err(error) => frameless.push((*ticket, error)),
            }
        }
        for (ticket, error) in frameless {
            self.finish(ticket, Err(error));
        }
        connection.flush(until + GRACE)
    }

    /// Answers everything that was taken; gives the reason.
    fn give_up(mut self, client: &mut Client, at_once: bool) -> Error {
        let handed = client.connection.as_ref().map_or(u64::MAX, Connection::handed);
        if !self.by_id.is_empty() {
            // What is still open would be answered on a connection that nobody listens to.
            client.connection = None;
        }
        let after = client.options.timeout;
        let last = self.last.take();
        let class = match last.as_ref().map(|e| e.class) {
            Some(
                class @ (Class::Busy | Class::Unauthorised | Class::Invalid | Class::TooLarge),
            ) => class,
            _ => Class::Unavailable,
        };
        let gave_up = |class| match &last {
            Some(error) if at_once && class == error.class => Error::passed_on(error),
            _ => Error::gave_up(class, after, last.clone()),
        };
        for pending in std::mem::take(&mut self.pending).into_values() {
            let doubt = pending.doubt || pending.open.is_some_and(|sent| sent.end <= handed);
            let class = if doubt { Class::Unknown } else { class };
            let _ = (self.answered)(pending.index, Err(gave_up(class)));
        }
        for (index, _) in self.queue.drain(..) {
            let _ = (self.answered)(index, Err(gave_up(class)));
        }
        gave_up(class)
    }
}

/// What the session will remember for a write, at most. One that reads counts as a whole window:
/// its answer may be large, and then nothing else should be in flight.
fn results_bytes(write: &Write) -> u64 {
    if write.ops.iter().any(|op| matches!(op, Op::Get { .. })) {
        return RESULTS_BYTES;
    }
    RESULT_FIXED_BYTES
        + write
            .ops
            .iter()
            .map(|op| if matches!(op, Op::Increment { .. }) { RESULT_OP_BYTES } else { 1 })
            .sum::<u64>()
}

/// Stand-ins for the keys of a write: two keys with one stand-in only wait for each other.
fn key_hashes(write: &Write) -> Vec<u64> {
    let hash = |key: &[u8]| {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    };
    let conditions = write.conditions.iter().map(|c| hash(&c.key));
    let mut hashes: Vec<u64> =
        conditions.chain(write.ops.iter().map(|op| hash(op.key()))).collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

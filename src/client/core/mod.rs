//! What a client decides: whom to ask, how long to wait, what may be sent again, and what is known
//! when it gives up. An event goes in, effects come out; time is an argument, in microseconds from
//! any beginning. The library runs it on sockets, the simulator on its network.
//!
//! There is one connection at a time. *Patience* is how long a node may say nothing, and how long one
//! attempt to dial may take; [`directory`] says when it grows. An answer sets it to a few times what
//! that answer took. So a node that is gone costs a moment, and a slow one is not given up in the end.
//!
//! A call is answered exactly once, by [`Effect::Done`]. What is sent again follows docs/protocol.md,
//! "Failures", to the letter: a stamped write in doubt is sent again with the same stamp until a copy is
//! answered; one without a stamp is given up as unknown. [`calls`] says what is under way together.
//!
//! [`Channel`] are the bytes of a connection. Left out: sockets, names and their addresses, threads.

mod answers;
mod backoff;
mod calls;
mod channel;
mod directory;
mod events;
#[cfg(test)]
mod tests;

use super::error::{Cause, Error};
use super::{Options, micros};
use crate::kv::SessionStamp;
use crate::wire::client::{Answer, Call, Class, Request};
use crate::wire::handshake::Welcome;
use backoff::Backoff;
use calls::{Calls, OPEN_MAX, Queued, Repeat};
pub use channel::{Channel, Heard, Sent};
use directory::{Directory, Round};
pub use events::{Effect, Event};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How much longer than the deadline that was sent an answer is waited for: the way there and back.
pub const GRACE: Duration = Duration::from_millis(200);
const GRACE_US: u64 = GRACE.as_micros() as u64;

/// The first patience, microseconds: with [`GRACE`] less than an election takes, so that the next
/// leader is asked as soon as there is one.
const PATIENCE_US: u64 = 400_000;

/// Of a short time limit the first attempt may take this part: a node that hangs must leave time for
/// the others.
const ATTEMPTS_MIN: u64 = 3;

/// Patience after an answer: so many times what it took.
const ANSWERS: u64 = 4;

/// Bytes that every link carries in a microsecond; the time for what is under way is given on top of
/// patience.
const BYTES_PER_US: u64 = 4;

/// How often the members are asked for by a client that is used, microseconds: they come and go, and
/// who else there is must be known before the node that is connected is gone.
const MEMBERS_EVERY_US: u64 = 250_000;

/// The shortest time that an attempt gets, microseconds.
const ATTEMPT_MIN_US: u64 = 1_000;

/// A request that is open on the connection.
#[derive(Clone, Copy, Debug)]
enum Open {
    /// A call, by its ticket.
    Call(u64),
    /// For a session; sent then.
    Session { sent_us: u64 },
    /// For the members, in passing.
    Members,
}

/// A session of this client: see docs/protocol.md, "Sessions and exactly-once".
#[derive(Debug)]
struct Session {
    id: u64,
    next_sequence: u64,
}

/// An attempt to connect.
#[derive(Debug)]
struct Dialing {
    address: String,
    begun_us: u64,
    within_us: u64,
    /// A node has named it as the leader, and stays connected until it answers.
    follows: bool,
}

/// See the module.
///
/// Invariant: `open` holds exactly the requests that were sent on the connection and not answered,
/// and a pending call's `open` is its id there.
#[derive(Debug)]
pub struct Core {
    options: Options,
    directory: Directory,
    /// The address of the node that is connected.
    here: Option<String>,
    dialing: Option<Dialing>,
    session: Option<Session>,
    calls: Calls,
    open: BTreeMap<u64, Open>,
    next_id: u64,
    /// How long calls may take without any of them being answered.
    timeout_us: u64,
    /// When a call was last answered, or the first one was taken after all were.
    progress_us: u64,
    /// When something last arrived, or was sent while nothing was open.
    heard_us: u64,
    /// When something was last sent.
    sent_us: u64,
    flush_begun_us: u64,
    /// The patience that the last answer showed to be right, or that the last call ended with.
    learned_us: u64,
    patience_us: u64,
    /// Most requests that are open at a time, from 1 to [`OPEN_MAX`]: halved when a connection
    /// breaks or a node is busy, one more with each answer. A node that dies of many gets few.
    open_max: usize,
    backoff: Backoff,
    /// Nothing is sent or dialed before.
    not_before_us: Option<u64>,
    /// This node cannot serve; go on elsewhere as soon as nothing is open, at the leader named.
    elsewhere: Option<Option<String>>,
    /// What went wrong last in the present calls.
    last: Option<Arc<Error>>,
    /// When the members are asked for next; none before anything was asked.
    members_due_us: Option<u64>,
    effects: Vec<Effect>,
}

impl Core {
    /// A client that knows these addresses. The seed spreads the pauses of many clients.
    pub fn new(addresses: &[String], options: Options, seed: u64) -> Core {
        Core {
            options,
            directory: Directory::new(addresses),
            here: None,
            dialing: None,
            session: None,
            calls: Calls::default(),
            open: BTreeMap::new(),
            next_id: 1,
            timeout_us: 0,
            progress_us: 0,
            heard_us: 0,
            sent_us: 0,
            flush_begun_us: 0,
            learned_us: 0,
            patience_us: PATIENCE_US,
            open_max: OPEN_MAX,
            backoff: Backoff::new(seed),
            not_before_us: None,
            elsewhere: None,
            last: None,
            members_due_us: None,
            effects: Vec::new(),
        }
    }

    /// How it behaves.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The node that is connected at present.
    pub fn address(&self) -> Option<&str> {
        self.here.as_deref()
    }

    /// Every address this client knows of: those given, and those it has learned.
    pub fn known_addresses(&self) -> Vec<String> {
        self.directory.all()
    }

    /// Those of them that may take this client, as far as its present calls know: the others have refused
    /// its token, or are of another cluster.
    pub fn open_addresses(&self) -> Vec<String> {
        self.directory.candidates()
    }

    /// The cluster, 0 before any node has told.
    pub fn cluster(&self) -> u64 {
        self.directory.cluster()
    }

    /// The session's id, which is of no more use here.
    pub fn end_session(&mut self) -> Option<u64> {
        self.session.take().map(|session| session.id)
    }

    /// How long a node may say nothing at present.
    pub fn patience(&self) -> Duration {
        Duration::from_micros(self.patience_us)
    }

    /// Whether no call is open.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether something is to be read from the connection.
    pub fn awaits_answers(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether one more call may be begun beside those that are open.
    pub fn has_room(&self) -> bool {
        self.calls.queue.is_empty() && self.calls.has_room()
    }

    /// When [`Event::Time`] is due; none while an event must come from elsewhere.
    pub fn next_us(&self) -> Option<u64> {
        if self.calls.is_empty() || self.dialing.is_some() {
            return None;
        }
        let end_us = self.until_us() + if self.open_calls() > 0 { GRACE_US } else { 0 };
        let silent_us = self.silent_us().unwrap_or(end_us);
        Some(end_us.min(silent_us).min(self.not_before_us.unwrap_or(end_us)))
    }

    /// Takes in what has happened by `now_us`, which never goes back.
    pub fn handle(&mut self, event: Event, now_us: u64) -> Vec<Effect> {
        match event {
            Event::Begin { number, call, timeout } => {
                let repeat = Repeat::of(&call, self.options.sessions);
                self.begin(Queued { number, call, repeat }, timeout, now_us);
            }
            Event::Reach { number, timeout } => {
                let queued = Queued { number, call: Call::Ping, repeat: Repeat::Reach };
                self.begin(queued, timeout, now_us);
            }
            Event::Connected { welcome } => self.connected(&welcome, now_us),
            Event::ConnectFailed { error } => self.connect_failed(error, now_us),
            // What was spent on writing is no silence.
            Event::Flushed => {
                self.heard_us = now_us.min(self.heard_us + now_us - self.flush_begun_us);
                self.flush_begun_us = now_us;
            }
            Event::Blocked { unsent_from } => {
                let wait = Duration::from_micros(now_us - self.flush_begun_us);
                self.lost(Cause::Blocked { wait }, unsent_from, true, now_us);
            }
            Event::Heard => self.heard_us = now_us,
            Event::Answered { response } => {
                self.heard_us = now_us;
                self.answered(response, now_us);
            }
            Event::Broke { error, unsent_from } => {
                self.lost(error.cause, unsent_from, false, now_us);
            }
            Event::Time => {}
        }
        self.advance(now_us);
        std::mem::take(&mut self.effects)
    }

    fn begin(&mut self, queued: Queued, timeout: Duration, now_us: u64) {
        if self.calls.is_empty() {
            self.timeout_us = micros(timeout);
            (self.progress_us, self.heard_us) = (now_us, now_us);
            self.patience_us =
                self.learned_us.min(self.timeout_us / ATTEMPTS_MIN).max(self.first_patience_us());
            self.open_max = OPEN_MAX;
            self.backoff.reset();
            (self.not_before_us, self.elsewhere, self.last) = (None, None, None);
            self.directory.begin();
            let idle_us = now_us.saturating_sub(self.sent_us);
            if self.here.is_some()
                && queued.repeat != Repeat::Here
                && idle_us >= micros(self.options.idle_max)
            {
                self.disconnect();
            }
        }
        self.calls.queue.push_back(queued);
    }

    fn first_patience_us(&self) -> u64 {
        PATIENCE_US.min(self.timeout_us / ATTEMPTS_MIN).max(ATTEMPT_MIN_US)
    }

    fn until_us(&self) -> u64 {
        self.progress_us + self.timeout_us
    }

    /// Requests whose answers a call waits for.
    fn open_calls(&self) -> usize {
        self.open.values().filter(|open| !matches!(open, Open::Members)).count()
    }

    /// When a node that says nothing is given up.
    fn silent_us(&self) -> Option<u64> {
        if self.open_calls() == 0 {
            return None;
        }
        let until_us = self.until_us();
        let open = |p: &&calls::Pending| p.open.is_some();
        let safe = self.calls.pending.values().filter(open).all(|p| p.repeat.is_safe());
        // To ask elsewhere may take nothing from a call that is asked once.
        let silent_us = if safe { self.heard_us + self.silence_us() } else { until_us };
        Some(silent_us.min(until_us) + GRACE_US)
    }

    fn silence_us(&self) -> u64 {
        self.patience_us + self.calls.open_bytes() / BYTES_PER_US
    }

    fn waits(&self, now_us: u64) -> bool {
        self.not_before_us.is_some_and(|at_us| at_us > now_us)
    }

    /// Something was refused or lost: nothing more is sent for a while, and less at a time.
    fn wait(&mut self, now_us: u64) {
        if !self.waits(now_us) {
            self.open_max = (self.open_max / 2).max(1);
            self.not_before_us = Some(now_us + self.backoff.next_us());
        }
    }

    // ---- what is to be done now ----

    fn advance(&mut self, now_us: u64) {
        if self.calls.is_empty() || self.dialing.is_some() {
            return;
        }
        let until_us = self.until_us();
        if now_us >= until_us && (self.open_calls() == 0 || now_us >= until_us + GRACE_US) {
            return self.give_up(false);
        }
        if let Some(silent_us) = self.silent_us()
            && now_us >= silent_us
        {
            let wait = Duration::from_micros(now_us - self.heard_us);
            self.lost(Cause::Silent { wait }, u64::MAX, true, now_us);
        }
        if self.open_calls() == 0
            && let Some(leader) = self.elsewhere.take()
        {
            self.go_elsewhere(leader);
        }
        if self.here.is_none() {
            self.fail_what_was_for_here();
        }
        if self.calls.is_empty() || self.waits(now_us) {
            return;
        }
        self.not_before_us = None;
        if self.here.is_none() {
            return self.dial(now_us);
        }
        let stamp = self.calls.queue.front().is_some_and(Queued::is_ours);
        if stamp && self.session.is_none() && self.calls.pending.is_empty() {
            return self.open_session(now_us);
        }
        self.admit(now_us);
        self.send(now_us);
    }

    fn disconnect(&mut self) {
        if self.here.take().is_some() {
            self.effects.push(Effect::Close);
        }
        self.open.clear();
        self.elsewhere = None;
    }

    /// The node cannot serve: the next attempt goes to the leader it names, else to another node.
    fn go_elsewhere(&mut self, leader: Option<String>) {
        let Some(here) = self.here.clone() else { return };
        let leaves = match leader {
            Some(address) => {
                self.directory.leads(&address);
                true
            }
            None => self.directory.go_on_behind(&here),
        };
        if leaves {
            self.disconnect();
        }
    }

    // ---- connecting ----

    fn dial(&mut self, now_us: u64) {
        let Some((address, sharers)) = self.directory.next() else {
            if self.directory.has_candidates() {
                self.directory.begin_round();
                return self.wait(now_us);
            }
            let nowhere =
                || Error { class: Class::Unavailable, address: None, cause: Cause::NoAddress };
            self.last = Some(self.directory.closed().unwrap_or_else(|| Arc::new(nowhere())));
            return self.give_up(true);
        };
        self.connect(address, sharers as u64, false, now_us);
    }

    fn connect(&mut self, address: String, sharers: u64, follows: bool, now_us: u64) {
        let share_us = self.until_us().saturating_sub(now_us) / sharers.max(1);
        let within_us = self.patience_us.min(micros(self.options.connect_timeout));
        let within_us = within_us.min(share_us).max(ATTEMPT_MIN_US);
        let within = Duration::from_micros(within_us);
        let cluster = self.directory.cluster();
        self.effects.push(Effect::Connect { address: address.clone(), cluster, within });
        self.dialing = Some(Dialing { address, begun_us: now_us, within_us, follows });
    }

    fn connected(&mut self, welcome: &Welcome, now_us: u64) {
        let Some(Dialing { address, follows, .. }) = self.dialing.take() else { return };
        self.directory.welcomed(&address, welcome);
        let leader = &welcome.leader_address;
        let named = welcome.leader != 0 && welcome.leader != welcome.node && *leader != address;
        self.here = Some(address);
        self.sent_us = now_us;
        if named && !follows && !self.calls.is_empty() && self.directory.may_follow(leader, now_us)
        {
            self.connect(leader.clone(), 1, true, now_us);
        }
    }

    fn connect_failed(&mut self, error: Error, now_us: u64) {
        let Some(Dialing { address, begun_us, within_us, .. }) = self.dialing.take() else {
            return;
        };
        let error = Arc::new(error);
        self.directory.dial_failed(&address, &error, now_us);
        self.last = Some(error);
        let round = self.directory.tried(&address, took_long(now_us - begun_us, within_us));
        // A node that is connected is asked before anybody waits.
        if self.end_round(round) && self.here.is_none() {
            match self.directory.full() {
                Some(full) => {
                    self.last = Some(full);
                    self.give_up(true);
                }
                None => self.wait(now_us),
            }
            self.directory.begin_round();
        }
    }

    /// Whether every address was tried.
    fn end_round(&mut self, round: Round) -> bool {
        match round {
            Round::GoesOn => return false,
            Round::Over => {}
            Round::OverLate => self.patience_us = (self.patience_us * 2).min(self.timeout_us),
        }
        true
    }

    /// An attempt at the node that is connected was no use.
    fn tried_here(&mut self, late: bool) {
        let Some(here) = &self.here else { return };
        let round = self.directory.tried(here, late);
        if self.end_round(round) {
            self.directory.begin_round();
        }
    }

    // ---- sending ----

    fn request_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// What a request that may be sent again is to be answered within.
    fn deadline_ms(&self, repeat: Repeat, now_us: u64) -> u32 {
        let left_us = self.until_us().saturating_sub(now_us);
        let wait_us = if repeat.is_safe() { self.patience_us.min(left_us) } else { left_us };
        // 0 would leave it to the node.
        u32::try_from(wait_us / 1_000).unwrap_or(u32::MAX).max(1)
    }

    fn open_session(&mut self, now_us: u64) {
        if !self.open.values().any(|open| matches!(open, Open::Session { .. })) {
            let call = Call::OpenSession;
            self.send_one(call, Repeat::Harmless, Open::Session { sent_us: now_us }, now_us);
            self.flush(now_us);
        }
    }

    fn send_one(&mut self, call: Call, repeat: Repeat, open: Open, now_us: u64) {
        if self.open.is_empty() {
            self.heard_us = now_us;
        }
        let id = self.request_id();
        self.open.insert(id, open);
        let deadline_ms = self.deadline_ms(repeat, now_us);
        self.effects.push(Effect::Send(Request { id, deadline_ms, call }));
    }

    fn flush(&mut self, now_us: u64) {
        (self.sent_us, self.flush_begun_us) = (now_us, now_us);
        let left_us = (self.until_us() + GRACE_US).saturating_sub(now_us);
        self.effects.push(Effect::Flush {
            stall: Duration::from_micros(self.silence_us().min(left_us)),
            within: Duration::from_micros(left_us),
        });
    }

    /// Begins calls while there is room.
    fn admit(&mut self, now_us: u64) {
        while self.elsewhere.is_none() && self.calls.has_room() {
            let Some(queued) = self.calls.queue.front() else { return };
            let ours = queued.is_ours();
            if !self.calls.fits(&queued.call) || (ours && self.session.is_none()) {
                return;
            }
            let Some(mut queued) = self.calls.queue.pop_front() else { return };
            if queued.repeat == Repeat::Reach {
                self.done(queued.number, Ok(Answer::Pong), now_us);
                continue;
            }
            if ours
                && let Some(session) = &mut self.session
                && let Call::Write(write) = &mut queued.call
            {
                let sequence = session.next_sequence;
                session.next_sequence += 1;
                let answered_below = self.calls.lowest_sequence().unwrap_or(sequence);
                write.stamp = Some(SessionStamp { session: session.id, sequence, answered_below });
            }
            self.calls.take(queued, ours);
        }
    }

    /// Sends every call that is not open, unless a change of node is due.
    fn send(&mut self, now_us: u64) {
        let open_max = self.open_max.min(self.calls.pending.len());
        let open = self.open_calls();
        if self.elsewhere.is_some() || open >= open_max {
            return;
        }
        let due_us = *self.members_due_us.get_or_insert(now_us + MEMBERS_EVERY_US);
        let asked = self.open.values().any(|open| matches!(open, Open::Members));
        if !asked && now_us >= due_us {
            self.members_due_us = Some(now_us + MEMBERS_EVERY_US);
            self.send_one(Call::Members, Repeat::Harmless, Open::Members, now_us);
        }
        if open == 0 {
            self.heard_us = now_us;
        }
        let idle = self.calls.pending.iter().filter(|(_, p)| p.open.is_none());
        let tickets: Vec<u64> = idle.take(open_max - open).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            let id = self.request_id();
            let Some(repeat) = self.calls.pending.get(&ticket).map(|p| p.repeat) else { continue };
            let deadline_ms = self.deadline_ms(repeat, now_us);
            let Some(pending) = self.calls.pending.get_mut(&ticket) else { continue };
            (pending.open, pending.sent_us) = (Some(id), now_us);
            (pending.request.id, pending.request.deadline_ms) = (id, deadline_ms);
            self.effects.push(Effect::Send(pending.request.clone()));
            self.open.insert(id, Open::Call(ticket));
        }
        self.flush(now_us);
    }

    /// The connection that some calls were meant for is not there any more.
    fn fail_what_was_for_here(&mut self) {
        let here =
            |(ticket, p): (&u64, &calls::Pending)| (p.repeat == Repeat::Here).then_some(*ticket);
        let tickets: Vec<u64> = self.calls.pending.iter().filter_map(here).collect();
        let mut numbers: Vec<u64> =
            tickets.into_iter().filter_map(|t| self.calls.remove(t)).map(|p| p.number).collect();
        self.calls.queue.retain(|queued| {
            let here = queued.repeat == Repeat::Here;
            numbers.extend(here.then_some(queued.number));
            !here
        });
        for number in numbers {
            let cause = self.last.clone().map_or(Cause::NoAddress, Cause::Shared);
            let error = Error { class: Class::Unavailable, address: None, cause };
            self.effects.push(Effect::Done { number, result: Err(error) });
        }
    }

    // ---- ends ----

    fn finish(&mut self, ticket: u64, result: Result<Answer, Error>, now_us: u64) {
        if let Some(pending) = self.calls.remove(ticket) {
            self.done(pending.number, result, now_us);
        }
    }

    fn done(&mut self, number: u64, result: Result<Answer, Error>, now_us: u64) {
        self.progress_us = now_us;
        self.backoff.reset();
        self.patience_us = self.learned_us.max(self.first_patience_us());
        self.directory.begin_round();
        self.last = None;
        self.open_max = (self.open_max + 1).min(OPEN_MAX);
        self.effects.push(Effect::Done { number, result });
    }

    /// Answers everything that was taken.
    fn give_up(&mut self, at_once: bool) {
        if self.open_calls() > 0 {
            // What is still open would be answered on a connection that nobody listens to.
            self.disconnect();
        }
        // A cluster that is slow and not gone is found in the next call.
        self.learned_us = self.learned_us.max(self.patience_us);
        let after = Duration::from_micros(self.timeout_us);
        let last = self.directory.refusal().or(self.last.take());
        let class = match last.as_ref().map(|e| e.class) {
            Some(
                class @ (Class::Busy | Class::Unauthorised | Class::Invalid | Class::TooLarge),
            ) => class,
            _ => Class::Unavailable,
        };
        // What no time was spent on is not "gave up after ..." but what it is.
        let gave_up = |class| match &last {
            Some(error) if at_once && class == error.class => Error::passed_on(error),
            _ => Error::gave_up(class, after, last.clone()),
        };
        let calls = std::mem::take(&mut self.calls);
        for pending in calls.pending.into_values() {
            let open = pending.open.is_some() && pending.may_be_in_doubt();
            let class = if pending.doubt || open { Class::Unknown } else { class };
            let result = Err(gave_up(class));
            self.effects.push(Effect::Done { number: pending.number, result });
        }
        for Queued { number, .. } in calls.queue {
            self.effects.push(Effect::Done { number, result: Err(gave_up(class)) });
        }
        self.effects.push(Effect::GaveUp { error: gave_up(class) });
    }
}

/// Whether an attempt has failed for want of time: the other end of a name may have used half of it.
fn took_long(took_us: u64, allowed_us: u64) -> bool {
    took_us >= allowed_us / 2
}

//! The nodes' side of connections with clients: [`api::Connection`], as a connection's thread drives it.
//!
//! A connection puts one set of requests at a time to the replica and goes on when all are answered.
//! Every request is answered once, at its deadline at the latest.

use super::checks::{Violation, violated};
use super::node::ClientId;
use super::places::Visitor;
use super::world::{Event, World};
use crate::api::answers::{AnswerSet, Brought};
use crate::api::{self, Encode, Step, WritePatience};
use crate::kv::{Reader as _, View as _};
use crate::node::{Answer, Answerer, Input, Request};
use crate::raft::{Index, NodeId};
use crate::wire::proof::NONCE_BYTES;

/// How late an answer may be behind its deadline: hops, and pauses of the process between them.
const LATE_US_MAX: u64 = 2_000_000;

/// One of so many writes to a client is taken late.
const SLOW_WRITES: (u64, u64) = (1, 12);
/// After so long, mostly much less.
const SLOW_WRITE_US: (u64, u64) = (200, 1_500_000);

/// A connection that a node serves.
#[derive(Debug)]
pub(super) struct Served {
    connection: api::Connection,
    /// Bytes that have arrived and were not read.
    arrived: Vec<u8>,
    /// The set that is under way.
    waits: Option<Waiting>,
    next_request: u64,
    /// What the client has not taken yet.
    writing: Option<(Vec<u8>, WritePatience)>,
    /// When what was written last arrives at the client.
    due_us: u64,
}

#[derive(Debug)]
struct Waiting {
    answers: AnswerSet,
    /// Whoever brings the last answer writes.
    direct: Option<DirectWrite>,
    /// A linearizable read is among them: what was committed when it was asked.
    committed: Option<Index>,
}

struct DirectWrite(Encode);

impl std::fmt::Debug for DirectWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectWrite")
    }
}

/// Something happens to a connection at its node.
#[derive(Debug)]
pub(super) enum ServedEvent {
    /// A client has dialed.
    Accepted,
    /// Bytes arrive.
    Bytes(Vec<u8>),
    /// The client has closed it.
    Gone,
    /// The node closes it: it gives way to others.
    TurnedOut,
    /// The client has taken what was written to it.
    Taken,
    /// All answers to the set that begins with this request are there.
    Settled { first: u64 },
    /// They must be there, at this time.
    Overdue { first: u64, at_us: u64 },
}

impl World {
    pub(super) fn on_served(
        &mut self,
        node: NodeId,
        connection: ClientId,
        event: ServedEvent,
    ) -> Result<(), Violation> {
        let now_us = self.now_us;
        let nonce = match event {
            ServedEvent::Accepted => self.dice.bytes(),
            _ => [0; NONCE_BYTES],
        };
        let over_cap = match event {
            ServedEvent::Accepted => self.take_place(node, Visitor::Client(connection))?,
            _ => false,
        };
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let local_us = n.local_us(now_us);
        let Some(up) = &mut n.up else { return Ok(()) };
        if let ServedEvent::Accepted = event {
            let state = std::sync::Arc::clone(&up.state);
            let made = api::Connection::new(state, over_cap, nonce, local_us);
            let (arrived, waits) = (Vec::new(), None);
            let (writing, next_request) = (None, 0);
            let made =
                Served { connection: made, arrived, waits, next_request, writing, due_us: 0 };
            up.served.insert(connection, made);
            return Ok(());
        }
        let Some(served) = up.served.get_mut(&connection) else { return Ok(()) };
        match event {
            ServedEvent::Accepted => {}
            ServedEvent::Bytes(bytes) => {
                served.arrived.extend(bytes);
                up.lobby.heard(Visitor::Client(connection), local_us);
                if served.waits.is_none() && served.writing.is_none() {
                    let load = std::sync::Arc::clone(&up.state.load);
                    let before = load.refused();
                    self.serve(node, connection)?;
                    if load.refused() > before {
                        self.count("requests refused because too many wait");
                    }
                }
            }
            ServedEvent::Taken => {
                let Some((bytes, patience)) = served.writing.take() else { return Ok(()) };
                if patience.ends(local_us, &up.state.answers).is_some() {
                    self.count("slow clients cut off for the memory of others");
                    self.close_to_client(node, connection);
                    return Ok(());
                }
                served.connection.written(bytes.clone());
                self.write_to_client(node, connection, bytes);
                return self.serve(node, connection);
            }
            ServedEvent::TurnedOut => self.close_to_client(node, connection),
            ServedEvent::Gone => {
                self.ends(node, connection);
                let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else {
                    return Ok(());
                };
                let under_way = up.state.load.under_way();
                if up.served.is_empty() && under_way > 0 {
                    let detail = format!("node {node}: {under_way}");
                    return violated("without connections nothing is under way", detail);
                }
            }
            ServedEvent::Settled { first } => {
                let waits = served.waits.take_if(|waits| waits.answers.first() == first);
                let Some(Waiting { mut answers, direct, committed }) = waits else {
                    return Ok(());
                };
                let answers = answers.take();
                let applied = up.reader.view().applied();
                let read = matches!(answers.last(), Some(Answer::Read(Ok(()))));
                if let Some(committed) = committed.filter(|&committed| read && applied < committed)
                {
                    let detail = format!("node {node} at {applied}, committed before: {committed}");
                    return violated("reads see what was committed before", detail);
                }
                match direct {
                    Some(DirectWrite(encode)) => {
                        let bytes = encode(answers);
                        self.count("answers written by who brings the last");
                        self.write_to_client(node, connection, bytes);
                    }
                    None => served.connection.answered(answers, local_us),
                }
                return self.serve(node, connection);
            }
            ServedEvent::Overdue { first, at_us } => {
                let late =
                    |waits: &Waiting| waits.answers.first() == first && waits.answers.missing() > 0;
                if served.waits.as_ref().is_some_and(late) {
                    if now_us > at_us {
                        // The process was paused, and has just woken.
                        let life = n.life;
                        self.await_answers(node, life, connection, first, now_us + LATE_US_MAX);
                        return Ok(());
                    }
                    let detail = format!("node {node}: {:?}", served.waits);
                    return violated("every request is answered by its deadline", detail);
                }
            }
        }
        Ok(())
    }

    /// A node has done with a connection: what that leaves behind is put to the replica, for nobody.
    pub(super) fn ends(&mut self, node: NodeId, connection: ClientId) {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let local_us = n.local_us(now_us);
        let Some(mut served) = n.up.as_mut().and_then(|up| up.forget_client(connection)) else {
            return;
        };
        let last: Vec<Request> =
            served.connection.ends(local_us).into_iter().map(|(_, r)| r).collect();
        if !last.is_empty() {
            self.ask_directly(node, last);
        }
    }

    fn served(&mut self, node: NodeId, connection: ClientId) -> Option<&mut Served> {
        self.nodes.get_mut(&node)?.up.as_mut()?.served.get_mut(&connection)
    }

    /// Does what a connection says, as far as it gets.
    fn serve(&mut self, node: NodeId, connection: ClientId) -> Result<(), Violation> {
        loop {
            let now_us = self.now_us;
            let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
            let (life, local_us) = (n.life, n.local_us(now_us));
            let Some(up) = &mut n.up else { return Ok(()) };
            if up.state.answers.is_short() {
                *self
                    .counters
                    .entry("requests while answers held nearly all they may")
                    .or_default() += 1;
            }
            let Some(served) = up.served.get_mut(&connection) else { return Ok(()) };
            let step = served.connection.next(local_us);
            up.lobby.shows(Visitor::Client(connection), served.connection.rank());
            match step {
                Step::Read { .. } if served.arrived.is_empty() => {
                    up.lobby.rests(Visitor::Client(connection));
                    return Ok(());
                }
                Step::Read { .. } => {
                    let space = served.connection.space();
                    let n = space.len().min(served.arrived.len());
                    space[..n].copy_from_slice(&served.arrived[..n]);
                    served.connection.filled(n);
                    served.arrived.drain(..n);
                }
                Step::Write(bytes) => {
                    let (slow, of) = SLOW_WRITES;
                    if self.dice.chance(slow, of) {
                        let delay_us = self.dice.log_between(SLOW_WRITE_US.0, SLOW_WRITE_US.1);
                        let Some(served) = self.served(node, connection) else { return Ok(()) };
                        served.writing = Some((bytes, WritePatience::new(local_us)));
                        let event = Event::Served { connection, event: ServedEvent::Taken };
                        self.schedule(delay_us, node, life, event);
                        return Ok(());
                    }
                    if bytes.starts_with(b"HTTP/") && up.lobby.is_over_cap(connection) {
                        self.count("pages told over the cap");
                    }
                    self.write_to_client(node, connection, bytes.clone());
                    if let Some(served) = self.served(node, connection) {
                        served.connection.written(bytes);
                    }
                }
                Step::Submit { requests, direct } => {
                    if direct.is_some() {
                        served.connection.answered_there();
                    }
                    self.submit(node, connection, requests, direct);
                    return Ok(());
                }
                // Whoever has left is not served any more.
                Step::Check => self.count("looks at whether a client has left"),
                // It is answered later, as everything is.
                Step::Rest { .. } => self.count("wrong tokens in AUTH"),
                Step::Look { address } => {
                    let there = self.machine_at(&address).map(Answerer::Node);
                    if let Some(served) = self.served(node, connection) {
                        served.connection.looked(there);
                    }
                }
                // The client hears of it as of any node that goes away.
                Step::Unreadable(e) => self.store_failed(node, "disk error in a read", &e)?,
                Step::Refuse { frame, .. } => {
                    self.ends(node, connection);
                    self.write_to_client(node, connection, frame);
                    return Ok(());
                }
                Step::Peer { .. } => {
                    return violated("a client is no node", format!("node {node}"));
                }
                Step::Close { why } => {
                    if let Some(why) = why {
                        return violated("clients keep to the protocol", why);
                    }
                    self.close_to_client(node, connection);
                    return Ok(());
                }
            }
        }
    }

    fn submit(
        &mut self,
        node: NodeId,
        connection: ClientId,
        requests: Vec<(u64, Request)>,
        direct: Option<Encode>,
    ) {
        let committed = self.cluster.committed();
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let last_us = requests.iter().map(|(deadline_us, _)| *deadline_us).max().unwrap_or(0);
        let overdue_us = n.global_us(last_us) + LATE_US_MAX;
        let life = n.life;
        let Some(up) = n.up.as_mut() else { return };
        let mut answers = AnswerSet::new(&up.state.answers);
        let Some(served) = up.served.get_mut(&connection) else { return };
        let (first, count) = (served.next_request, requests.len());
        served.next_request += count as u64;
        let reads = matches!(requests.last(), Some((_, Request::Read)));
        answers.open(first, count);
        served.waits = Some(Waiting {
            answers,
            direct: direct.map(DirectWrite),
            committed: reads.then_some(committed),
        });
        let numbered = (first..).zip(requests);
        let requests = numbered.map(|(n, (deadline_us, what))| (n, deadline_us, what)).collect();
        self.input(node, Input::Client { client: connection, requests });
        self.await_answers(node, life, connection, first, overdue_us);
    }

    /// All requests of a set must be answered by then.
    fn await_answers(
        &mut self,
        node: NodeId,
        life: u64,
        connection: ClientId,
        first: u64,
        at_us: u64,
    ) {
        let at_us = at_us.max(self.now_us);
        let event = Event::Served { connection, event: ServedEvent::Overdue { first, at_us } };
        self.schedule(at_us - self.now_us, node, life, event);
    }

    /// The replica answers a request of a connection.
    pub(super) fn served_answered(
        &mut self,
        node: NodeId,
        connection: ClientId,
        request: u64,
        answer: Answer,
    ) -> Result<(), Violation> {
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let life = n.life;
        // A request of the fault plan has no connection, and others may have ended.
        let Some(served) = n.up.as_mut().and_then(|up| up.served.get_mut(&connection)) else {
            return Ok(());
        };
        let told = answer.clone();
        let brought = served.waits.as_mut().map(|waits| waits.answers.put(request, answer));
        if matches!(brought, None | Some(Brought::Unwanted)) {
            let detail = format!(
                "node {node}: {told:?} to {request} of {connection}, which waits for {:?}",
                served.waits
            );
            return violated("every request is answered once", detail);
        }
        if let (Some(Brought::Last), Some(waits)) = (brought, &served.waits) {
            let (first, direct) = (waits.answers.first(), waits.direct.is_some());
            // The connection's thread goes on a while after it was woken.
            let delay_us = if direct { 0 } else { self.hop_us() };
            let event = Event::Served { connection, event: ServedEvent::Settled { first } };
            self.schedule(delay_us, node, life, event);
        }
        Ok(())
    }

    /// When what a node writes to a client now arrives there; in order.
    pub(super) fn due_at_client(
        &mut self,
        node: NodeId,
        connection: ClientId,
        delay_us: u64,
    ) -> u64 {
        let now_us = self.now_us;
        match self.served(node, connection) {
            Some(served) => {
                served.due_us = (now_us + delay_us).max(served.due_us + 1);
                served.due_us - now_us
            }
            None => delay_us,
        }
    }
}

//! The clients' side of the world: connections between clients and nodes, and what they carry.
//!
//! A connection delivers in order, both ways, until it breaks. It may break with part of what was sent
//! handed over, fall silent in either direction, or take no more bytes; a dial may be refused, or be
//! answered by nobody. In the quiet phase nothing of that happens.

use super::checks::{Violation, violated};
use super::clients::{ClientConnection, Sent, SimClient, write_of};
use super::node::ClientId;
use super::world::{ANY_LIFE, Event, World};
use crate::client::{Cause, Effect, Error, Event as CoreEvent};
use crate::kv::{Command, Query, Reader as _, Reply, Space, View as _};
use crate::node::{Answer, Input, Request, Verdict};
use crate::raft::NodeId;
use crate::wire::client::{self, Answer as Told, Call, Class, Failure, Response};
use crate::wire::handshake::{PROTOCOL_VERSIONS, Reject, RejectCode, Remembered, Welcome};
use std::io;
use std::time::Duration;

/// Mean pause of a client that is in a hurry.
const RUSH_THINK_US: u64 = 10_000;

/// Delays between a client and a node.
const DELAY_US: (u64, u64) = (40, 1_000);

/// Now and then a client is in a hurry and asks for an answer within so long, on the node's clock:
/// about as long as an answer takes.
const HURRY_US: (u64, u64) = (20_000, 500_000);

/// Something happens to a client.
#[derive(Debug)]
pub(super) enum ClientEvent {
    /// It may begin a call.
    Acts { turn: u64 },
    /// Its core wants to be told the time.
    Wakes,
    /// Its dial reaches a node.
    Knocks { dial: u64 },
    /// Something happens to its dial.
    Dialed { dial: u64, answer: Box<Result<(ClientConnection, Welcome), Error>> },
    /// Something happens to its connection.
    Arrives { connection: u64, event: Box<CoreEvent> },
    /// A node reads for it.
    Reads { request: u64 },
}

fn network(doing: &'static str, kind: io::ErrorKind) -> Error {
    Error { class: Class::Unknown, address: None, cause: Cause::Io { doing, source: kind.into() } }
}

impl World {
    pub(super) fn on_client(
        &mut self,
        node: NodeId,
        client: ClientId,
        event: ClientEvent,
    ) -> Result<(), Violation> {
        match event {
            ClientEvent::Acts { turn } => self.client_acts(client, turn),
            ClientEvent::Wakes => {
                let now_us = self.now_us;
                let c = &mut self.clients[client as usize];
                if c.wakes_at_us.is_none_or(|at_us| at_us > now_us) {
                    return Ok(());
                }
                c.wakes_at_us = None;
                self.client_told(client, vec![CoreEvent::Time])
            }
            ClientEvent::Knocks { dial } => {
                self.client_knocks(node, client, dial);
                Ok(())
            }
            ClientEvent::Dialed { dial, answer } => self.client_dialed(client, dial, *answer),
            ClientEvent::Arrives { connection, event } => {
                let c = &self.clients[client as usize];
                if c.connection.is_none_or(|c| c.number != connection) {
                    return Ok(());
                }
                self.client_told(client, vec![*event])
            }
            ClientEvent::Reads { request } => self.client_reads(node, client, request),
        }
    }

    fn client_in(&mut self, delay_us: u64, client: ClientId, event: ClientEvent) {
        self.schedule(delay_us, 0, ANY_LIFE, Event::Client { client, event });
    }

    fn client_acts(&mut self, client: ClientId, turn: u64) -> Result<(), Violation> {
        if self.clients[client as usize].turn != turn {
            return Ok(());
        }
        let think_us = if self.now_us < self.rush_until_us { RUSH_THINK_US } else { self.think_us };
        let think_us = self.dice.between(think_us / 4, think_us * 2);
        self.client_in(think_us, client, ClientEvent::Acts { turn });
        let read = self.quiet;
        let now_us = self.now_us;
        let c = &mut self.clients[client as usize];
        if c.is_busy() {
            return Ok(());
        }
        let events = c.begin(now_us, read);
        self.client_told(client, events)
    }

    /// Tells a client's core, and does what it wants done.
    fn client_told(&mut self, client: ClientId, events: Vec<CoreEvent>) -> Result<(), Violation> {
        let mut events: std::collections::VecDeque<CoreEvent> = events.into();
        while let Some(event) = events.pop_front() {
            let now_us = self.now_us;
            let effects = self.clients[client as usize].core.handle(event, now_us);
            self.clients[client as usize].follow_addresses();
            let mut requests = Vec::new();
            for effect in effects {
                let c = &mut self.clients[client as usize];
                match effect {
                    Effect::Connect { address, within, .. } => {
                        c.dials(&address)?;
                        self.client_dials(client, &address, within);
                    }
                    Effect::Send(request) => requests.push(request),
                    Effect::Flush { stall, .. } => {
                        let requests = std::mem::take(&mut requests);
                        if self.client_sends(client, requests, stall) {
                            events.push_front(CoreEvent::Flushed);
                        }
                    }
                    Effect::Close => c.connection = None,
                    Effect::Done { number, result } => {
                        c.done(now_us, number, result);
                        self.count("operations");
                    }
                    Effect::GaveUp { .. } => self.count("calls given up"),
                }
            }
        }
        let c = &mut self.clients[client as usize];
        if let Some(at_us) = c.core.next_us()
            && c.wakes_at_us.is_none_or(|wakes| wakes > at_us)
        {
            c.wakes_at_us = Some(at_us);
            let delay_us = at_us.saturating_sub(self.now_us);
            self.client_in(delay_us, client, ClientEvent::Wakes);
        }
        Ok(())
    }

    // ---- dialing ----

    fn client_dials(&mut self, client: ClientId, address: &str, within: Duration) {
        let c = &mut self.clients[client as usize];
        c.dial = (c.dial.0 + 1, true);
        let dial = c.dial.0;
        self.count("dials of clients");
        let silent = Box::new(Err(network("connect", io::ErrorKind::TimedOut)));
        let within_us = within.as_micros() as u64;
        self.client_in(within_us, client, ClientEvent::Dialed { dial, answer: silent });
        let unanswered = !self.quiet && self.dice.chance(1, 50);
        let there = self.machine_at(address).and_then(|id| self.nodes.get(&id));
        let node = there.filter(|n| n.up.is_some()).map(|n| (n.id, n.life));
        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
        match node {
            _ if unanswered => self.count("dials that nobody answers"),
            Some((node, life)) => {
                let event = Event::Client { client, event: ClientEvent::Knocks { dial } };
                self.schedule(delay_us, node, life, event);
            }
            // The machine is there, or is not.
            None if self.dice.chance(1, 2) => {
                let refused = Box::new(Err(network("connect", io::ErrorKind::ConnectionRefused)));
                self.client_in(delay_us, client, ClientEvent::Dialed { dial, answer: refused });
            }
            None => {}
        }
    }

    fn client_knocks(&mut self, node: NodeId, client: ClientId, dial: u64) {
        let rejects = !self.quiet && self.dice.chance(1, 60);
        let token = self.dice.chance(1, 2);
        let strange = self.quiet && self.nodes.get(&node).is_some_and(|n| !self.counts(n));
        let (leader, leader_address) = self.leader_hint(node).unwrap_or_default();
        let Some(n) = self.nodes.get(&node) else { return };
        let connection = ClientConnection {
            number: dial,
            node,
            life: n.life,
            gone: false,
            mute: false,
            deaf: false,
            due_us: (0, 0),
        };
        let (version, identity) = (PROTOCOL_VERSIONS.1, n.identity);
        let remembered = Remembered::default();
        let welcome =
            Welcome { version, cluster: 1, node, identity, leader, leader_address, remembered };
        let answer = if strange {
            Err(network("connect", io::ErrorKind::ConnectionReset))
        } else if rejects {
            let code = if token { RejectCode::Token } else { RejectCode::TooManyConnections };
            self.count(if token { "tokens refused" } else { "clients without a place" });
            Err(Error::rejected("", Reject { code, message: String::new() }))
        } else {
            Ok((connection, welcome))
        };
        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
        let answer = Box::new(answer);
        self.client_in(delay_us, client, ClientEvent::Dialed { dial, answer });
    }

    fn client_dialed(
        &mut self,
        client: ClientId,
        dial: u64,
        answer: Result<(ClientConnection, Welcome), Error>,
    ) -> Result<(), Violation> {
        let c = &mut self.clients[client as usize];
        if c.dial != (dial, true) {
            return Ok(());
        }
        c.dial.1 = false;
        let event = match answer {
            Ok((mut connection, welcome)) => {
                // It may have ended meanwhile.
                let there = self.nodes.get(&connection.node);
                connection.gone = there.is_none_or(|n| n.life != connection.life || n.up.is_none());
                c.connection = Some(connection);
                CoreEvent::Connected { welcome }
            }
            Err(error) => CoreEvent::ConnectFailed { error },
        };
        self.client_told(client, vec![event])
    }

    // ---- a connection ----

    /// A process has ended, and its connections with it; a machine without power says nothing.
    pub(super) fn end_client_connections(&mut self, node: NodeId, power_lost: bool) {
        for client in 0..self.clients.len() as u64 {
            let c = &mut self.clients[client as usize];
            let Some(connection) = c.connection.as_mut().filter(|c| c.node == node) else {
                continue;
            };
            connection.gone = true;
            if !power_lost {
                self.client_breaks(client, u64::MAX);
            }
        }
    }

    fn client_breaks(&mut self, client: ClientId, unsent_from: u64) {
        let Some(connection) = self.clients[client as usize].connection else { return };
        self.count("connections of clients broken");
        let error = network("receive", io::ErrorKind::ConnectionReset);
        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
        let event = Box::new(CoreEvent::Broke { error, unsent_from });
        let connection = connection.number;
        self.client_in(delay_us, client, ClientEvent::Arrives { connection, event });
    }

    /// Sends requests; false when the connection takes no more bytes, or breaks.
    fn client_sends(
        &mut self,
        client: ClientId,
        mut requests: Vec<client::Request>,
        stall: Duration,
    ) -> bool {
        let Some(mut connection) = self.clients[client as usize].connection else { return true };
        let mut flushed = true;
        if !self.quiet {
            connection.mute |= self.dice.chance(1, 300);
            connection.deaf |= self.dice.chance(1, 300);
            // Of some the last byte is handed over, of others it is not.
            if self.dice.chance(1, 100) {
                flushed = false;
                let taken = self.dice.below(requests.len() as u64 + 1) as usize;
                let unsent_from = requests.get(taken).map_or(u64::MAX, |r| r.id);
                // What was handed over may arrive or not.
                let arrive = self.dice.below(taken as u64 + 1) as usize;
                requests.truncate(arrive);
                if self.dice.chance(1, 2) {
                    self.client_breaks(client, unsent_from);
                } else {
                    self.count("writes of clients blocked");
                    let event = Box::new(CoreEvent::Blocked { unsent_from });
                    let connection = connection.number;
                    let stall_us = stall.as_micros() as u64;
                    self.client_in(stall_us, client, ClientEvent::Arrives { connection, event });
                }
            }
        }
        if connection.gone && flushed && self.nodes[&connection.node].up.is_some() {
            // The machine is back and knows nothing of the connection.
            flushed = false;
            self.client_breaks(client, u64::MAX);
        }
        if !(connection.gone || connection.mute) {
            self.client_requests(client, requests);
        }
        if let Some(kept) = &mut self.clients[client as usize].connection {
            (kept.deaf, kept.mute) = (connection.deaf, connection.mute || !flushed);
        }
        flushed
    }

    fn client_requests(&mut self, client: ClientId, requests: Vec<client::Request>) {
        let Some(connection) = self.clients[client as usize].connection else { return };
        let hurry = !self.quiet && (self.now_us < self.rush_until_us || self.dice.chance(1, 8));
        let hurry_us = hurry.then(|| self.dice.log_between(HURRY_US.0, HURRY_US.1));
        let committed = self.cluster.committed();
        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
        let due_us = (self.now_us + delay_us).max(connection.due_us.0 + 1);
        let arrives_us = self.nodes[&connection.node].local_us(due_us);
        let mut inputs = Vec::new();
        let mut answered = Vec::new();
        for client::Request { id, deadline_ms, call } in requests {
            self.count("requests");
            let mut key = None;
            let request = match call {
                Call::Write(write) => write_of(&Command::Write(write)),
                Call::OpenSession => write_of(&Command::OpenSession),
                Call::Query { query: Query::Get { key: asked }, .. } => {
                    key = Some(asked);
                    Request::Read
                }
                Call::Members => Request::Status,
                _ => {
                    answered.push(id);
                    continue;
                }
            };
            let c = &mut self.clients[client as usize];
            c.last_request += 1;
            let sent = Sent { connection: connection.number, id, key, committed };
            c.sent.insert(c.last_request, sent);
            let deadline_us = u64::from(deadline_ms) * 1_000;
            let deadline_us = hurry_us.map_or(deadline_us, |us| us.min(deadline_us));
            inputs.push((c.last_request, arrives_us + deadline_us, request));
        }
        if let Some(connection) = &mut self.clients[client as usize].connection {
            connection.due_us.0 = due_us;
        }
        let input = Event::Input(Input::Client { client, requests: inputs });
        self.schedule(due_us - self.now_us, connection.node, connection.life, input);
    }

    /// A node answers a request.
    pub(super) fn client_answered(
        &mut self,
        node: NodeId,
        client: ClientId,
        request: u64,
        answer: Answer,
    ) {
        // A request of the fault plan has no client that waits.
        if self.clients.get(client as usize).is_none_or(|c| !c.sent.contains_key(&request)) {
            return;
        }
        let result = match answer {
            Answer::Write(Verdict::Applied(outcome)) => Ok(Told::Outcome(outcome)),
            Answer::Read(Ok(())) => {
                // The connection's thread reads a while after it was told it may.
                let delay_us = self.hop_us();
                let life = self.nodes[&node].life;
                let event = ClientEvent::Reads { request };
                return self.schedule(delay_us, node, life, Event::Client { client, event });
            }
            Answer::Write(Verdict::NotApplied(refusal)) | Answer::Read(Err(refusal)) => {
                let (class, message) = (refusal.class(), refusal.to_string());
                Err(Failure { class, message, leader: self.leader_hint(node) })
            }
            Answer::Write(Verdict::Unknown(why)) => {
                Err(Failure { class: Class::Unknown, message: why.to_owned(), leader: None })
            }
            Answer::Status(status) => Ok(Told::Members(status.members())),
            Answer::Transfer(_) | Answer::Changed(_) | Answer::Flushed(_) => return,
        };
        self.answer_client(client, request, result);
    }

    fn answer_client(&mut self, client: ClientId, request: u64, result: Result<Told, Failure>) {
        let now_us = self.now_us;
        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
        let c = &mut self.clients[client as usize];
        let Some(Sent { connection: number, id, .. }) = c.sent.remove(&request) else { return };
        let Some(connection) = c.connection.as_mut().filter(|c| c.number == number) else { return };
        if connection.deaf {
            self.count("requests without an answer");
            return;
        }
        connection.due_us.1 = (now_us + delay_us).max(connection.due_us.1 + 1);
        let delay_us = connection.due_us.1 - now_us;
        let event = Box::new(CoreEvent::Answered { response: Response { id, result } });
        self.client_in(delay_us, client, ClientEvent::Arrives { connection: number, event });
    }

    fn leader_hint(&self, node: NodeId) -> Option<(NodeId, String)> {
        let raft = self.nodes.get(&node)?.up.as_ref()?.node.replica().raft();
        let member = raft.configuration().member(raft.leader()?)?;
        Some((member.id, member.address.clone()))
    }

    fn client_reads(
        &mut self,
        node: NodeId,
        client: ClientId,
        request: u64,
    ) -> Result<(), Violation> {
        let c = &self.clients[client as usize];
        let Some(Sent { key: Some(key), committed, .. }) = c.sent.get(&request) else {
            return Ok(());
        };
        let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else { return Ok(()) };
        let view = up.reader.view();
        if view.applied() < *committed {
            let applied = view.applied();
            let detail = format!("node {node} at {applied}, committed before: {committed}");
            return violated("reads see what was committed before", detail);
        }
        match view.get(Space::User, key) {
            Ok(found) => {
                self.answer_client(client, request, Ok(Told::Reply(Reply::Value(found))));
                Ok(())
            }
            // The client hears of it as of any node that goes away.
            Err(e) => self.store_failed(node, "disk error in a read", &e),
        }
    }

    /// Whether a client knows no node that serves: all that it knew were replaced meanwhile.
    pub(super) fn is_lost(&self, client: &SimClient) -> bool {
        let serves =
            |address: &String| self.nodes.values().any(|n| n.address == *address && self.counts(n));
        !client.core.known_addresses().iter().any(serves)
    }

    /// Whether every client was served since then.
    pub(super) fn are_served_since(&self, since_us: u64) -> bool {
        let served = |c: &SimClient| c.served_us.is_some_and(|at_us| at_us >= since_us);
        self.clients.iter().all(|c| served(c) || self.is_lost(c))
    }

    /// Clients begin at once, and hardly pause for a while.
    pub(super) fn rush(&mut self, for_us: u64) {
        self.rush_until_us = self.now_us + for_us;
        for client in 0..self.clients.len() as u64 {
            self.clients[client as usize].turn += 1;
            let turn = self.clients[client as usize].turn;
            let delay_us = self.dice.below(RUSH_THINK_US);
            self.client_in(delay_us, client, ClientEvent::Acts { turn });
        }
    }
}

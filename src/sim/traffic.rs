//! The clients' side of the world: connections between clients and nodes, and what they carry.
//!
//! A connection delivers in order, both ways, until it breaks. It may break with part of what was sent
//! handed over, fall silent in either direction, or take no more bytes; a dial may be refused, or be
//! answered by nobody. In the quiet phase nothing of that happens.

use super::checks::{Violation, violated};
use super::clients::{ClientConnection, SimClient};
use super::lines::LineEvent;
use super::node::{CLIENTS_TOKEN, ClientId};
use super::serving::ServedEvent;
use super::world::{ANY_LIFE, Event, World};
use crate::client::{Cause, Channel, Effect, Error, Event as CoreEvent, Heard};
use crate::kv::{Outcome, Reply};
use crate::raft::NodeId;
use crate::wire::client::{self, Answer, Class};
use std::io;
use std::time::Duration;

/// Mean pause of a client that is in a hurry.
const RUSH_THINK_US: u64 = 10_000;

/// Delays between a client and a node.
pub(super) const DELAY_US: (u64, u64) = (40, 1_000);

/// A node hears so much later that a client is gone which cannot reach it any more.
const DEAD_LINE_US: (u64, u64) = (1_000_000, 20_000_000);

/// Now and then a client is in a hurry and asks for an answer within so long, on the node's clock:
/// about as long as an answer takes. In milliseconds.
const HURRY_MS: (u64, u64) = (20, 500);

/// Something happens to a client.
#[derive(Debug)]
pub(super) enum ClientEvent {
    /// It may begin a call.
    Acts { turn: u64 },
    /// Its core wants to be told the time.
    Wakes,
    /// Its dial reaches a node.
    Knocks { connection: ClientId, first: Vec<u8> },
    /// Its dial fails.
    Lost { connection: ClientId, error: Error },
    /// Bytes arrive.
    Hears { connection: ClientId, bytes: Vec<u8> },
    /// Something happens to its connection.
    Arrives { connection: ClientId, event: Box<CoreEvent> },
}

fn network(doing: &'static str, kind: io::ErrorKind) -> Error {
    Error { class: Class::Unknown, address: None, cause: Cause::Io { doing, source: kind.into() } }
}

/// What of the answers is counted.
fn kind_of(result: &Result<Answer, Error>) -> Option<&'static str> {
    match result {
        Ok(Answer::Outcome(outcome)) => match outcome {
            Outcome::Done { results, .. } => {
                (results.len() > 1).then_some("writes of several operations")
            }
            Outcome::ConditionFalse { condition: 0, .. } => {
                Some("first conditions that were false")
            }
            Outcome::ConditionFalse { .. } => Some("later conditions that were false"),
            Outcome::NotANumber { .. } => Some("increments of no number"),
            Outcome::Overflow { .. } => Some("increments over the range"),
            _ => None,
        },
        Ok(Answer::Reply(Reply::Page(page))) => Some(match &page.cursor {
            Some(_) if page.items.is_empty() => "empty pages with a cursor",
            Some(_) => "pages with a cursor",
            None if page.items.is_empty() => "pages without items",
            None => "last pages",
        }),
        _ => None,
    }
}

impl World {
    pub(super) fn on_client(
        &mut self,
        node: NodeId,
        client: u64,
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
            ClientEvent::Knocks { connection, first } => {
                self.client_knocks(node, client, connection, first)
            }
            ClientEvent::Lost { connection, error } => self.client_lost(client, connection, error),
            ClientEvent::Hears { connection, bytes } => {
                self.client_hears(client, connection, &bytes)
            }
            ClientEvent::Arrives { connection, event } => {
                let c = &self.clients[client as usize];
                if c.connection.is_none_or(|c| c.number != connection) {
                    return Ok(());
                }
                self.client_told(client, vec![*event])
            }
        }
    }

    fn client_in(&mut self, delay_us: u64, client: u64, event: ClientEvent) {
        self.schedule(delay_us, 0, ANY_LIFE, Event::Client { client, event });
    }

    fn client_acts(&mut self, client: u64, turn: u64) -> Result<(), Violation> {
        if self.clients[client as usize].turn != turn {
            return Ok(());
        }
        let think_us = if self.now_us < self.rush_until_us { RUSH_THINK_US } else { self.think_us };
        let think_us = self.dice.between(think_us / 4, think_us * 2);
        self.client_in(think_us, client, ClientEvent::Acts { turn });
        let (read, committed) = (self.quiet, self.cluster.committed());
        let now_us = self.now_us;
        let c = &mut self.clients[client as usize];
        if c.is_busy() {
            return Ok(());
        }
        let events = c.begin(now_us, committed, read);
        self.client_told(client, events)
    }

    /// Tells a client's core, and does what it wants done.
    fn client_told(&mut self, client: u64, events: Vec<CoreEvent>) -> Result<(), Violation> {
        let mut events: std::collections::VecDeque<CoreEvent> = events.into();
        while let Some(event) = events.pop_front() {
            let now_us = self.now_us;
            let effects = self.clients[client as usize].core.handle(event, now_us);
            self.clients[client as usize].follow_addresses();
            let mut requests = Vec::new();
            for effect in effects {
                let c = &mut self.clients[client as usize];
                match effect {
                    Effect::Connect { address, cluster, within } => {
                        c.dials(&address)?;
                        self.client_dials(client, &address, cluster, within);
                    }
                    Effect::Send(request) => requests.push(request),
                    Effect::Flush { stall, .. } => {
                        let requests = std::mem::take(&mut requests);
                        if self.client_sends(client, requests, stall)? {
                            events.push_front(CoreEvent::Flushed);
                        }
                    }
                    Effect::Close => self.client_closes(client),
                    Effect::Done { number, result } => {
                        let kind = kind_of(&result);
                        c.done(now_us, number, result, &self.ledger)?;
                        self.count("operations");
                        kind.into_iter().for_each(|kind| self.count(kind));
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

    fn client_dials(&mut self, client: u64, address: &str, cluster: u64, within: Duration) {
        // The one before is read no more.
        self.client_closes(client);
        self.connections += 1;
        let connection = self.connections;
        let bad_token = !self.quiet && self.dice.chance(1, 120);
        let nonce = self.dice.bytes();
        let c = &mut self.clients[client as usize];
        c.dial = Some(connection);
        let token = if bad_token { b"another" } else { CLIENTS_TOKEN };
        c.channel = Channel::new(cluster, token, nonce);
        let first = c.channel.queued().to_vec();
        c.channel.took(first.len());
        self.count("dials of clients");
        let within_us = within.as_micros() as u64;
        let silent = network("connect", io::ErrorKind::TimedOut);
        self.client_in(within_us, client, ClientEvent::Lost { connection, error: silent });
        let unanswered = !self.quiet && self.dice.chance(1, 50);
        let there = self.machine_at(address).and_then(|id| self.nodes.get(&id));
        let node = there.filter(|n| n.up.is_some()).map(|n| (n.id, n.life));
        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
        match node {
            _ if unanswered => self.count("dials that nobody answers"),
            Some((node, life)) => {
                if bad_token {
                    self.count("tokens refused");
                }
                let event = ClientEvent::Knocks { connection, first };
                self.schedule(delay_us, node, life, Event::Client { client, event });
            }
            // The machine is there, or is not.
            None if self.dice.chance(1, 2) => {
                let error = network("connect", io::ErrorKind::ConnectionRefused);
                self.client_in(delay_us, client, ClientEvent::Lost { connection, error });
            }
            None => {}
        }
    }

    /// The dial of a client reaches a node, and with it the first bytes.
    fn client_knocks(
        &mut self,
        node: NodeId,
        client: u64,
        connection: ClientId,
        first: Vec<u8>,
    ) -> Result<(), Violation> {
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        if self.quiet && !self.counts(n) {
            let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
            let error = network("connect", io::ErrorKind::ConnectionReset);
            self.client_in(delay_us, client, ClientEvent::Lost { connection, error });
            return Ok(());
        }
        let life = n.life;
        let c = &mut self.clients[client as usize];
        if c.dial == Some(connection) {
            let (gone, mute, deaf, due_us) = (false, false, false, 0);
            let made =
                ClientConnection { number: connection, node, life, gone, mute, deaf, due_us };
            c.dialed = Some(made);
        } else {
            // It does not wait for that any more.
            let event = Event::Served { connection, event: ServedEvent::Gone };
            self.schedule(DELAY_US.1, node, life, event);
        }
        self.on_served(node, connection, ServedEvent::Accepted)?;
        if self.is_over_cap(node, connection) {
            self.count("clients without a place");
        }
        self.on_served(node, connection, ServedEvent::Bytes(first))
    }

    // ---- a connection ----

    /// Bytes of a node arrive at a client.
    fn client_hears(
        &mut self,
        client: u64,
        connection: ClientId,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let c = &mut self.clients[client as usize];
        let dials = c.dial == Some(connection);
        if !dials && c.connection.is_none_or(|c| c.number != connection) {
            return Ok(());
        }
        c.channel.feed(bytes);
        loop {
            let c = &mut self.clients[client as usize];
            let dials = c.dial == Some(connection);
            if !dials && c.connection.is_none_or(|c| c.number != connection) {
                return Ok(());
            }
            let event = match c.channel.heard() {
                Ok(None) if dials && !c.channel.queued().is_empty() => {
                    let proof = c.channel.queued().to_vec();
                    c.channel.took(proof.len());
                    if let Some(dialed) = c.dialed {
                        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
                        self.served_in(delay_us, &dialed, ServedEvent::Bytes(proof));
                    }
                    continue;
                }
                Ok(None) => return Ok(()),
                Ok(Some(Heard::Answer(response))) => CoreEvent::Answered { response },
                Ok(Some(Heard::Welcome(welcome))) => {
                    c.dial = None;
                    c.connection = c.dialed.take();
                    CoreEvent::Connected { welcome }
                }
                Err(Cause::Rejected(reject)) => {
                    (c.dial, c.dialed) = (None, None);
                    CoreEvent::ConnectFailed { error: Error::rejected("", reject) }
                }
                Err(cause) => return violated("nodes keep to the protocol", format!("{cause:?}")),
            };
            self.client_told(client, vec![event])?;
        }
    }

    /// A dial fails, or a connection ends.
    fn client_lost(
        &mut self,
        client: u64,
        connection: ClientId,
        error: Error,
    ) -> Result<(), Violation> {
        let c = &mut self.clients[client as usize];
        if c.dial == Some(connection) {
            c.dial = None;
            if let Some(dialed) = c.dialed.take() {
                self.served_in(DELAY_US.1, &dialed, ServedEvent::Gone);
            }
            return self.client_told(client, vec![CoreEvent::ConnectFailed { error }]);
        }
        Ok(())
    }

    /// A node writes to a client.
    pub(super) fn write_to_client(&mut self, node: NodeId, connection: ClientId, bytes: Vec<u8>) {
        if let Some(client) = self.lines.iter().position(|line| line.has(connection)) {
            let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
            let delay_us = self.due_at_client(node, connection, delay_us);
            return self.line_in(delay_us, client, LineEvent::Hears { connection, bytes });
        }
        let Some(client) = self.client_of(connection) else { return };
        let c = &self.clients[client as usize];
        if c.connection.is_some_and(|c| c.number == connection && c.deaf) {
            self.count("answers that do not arrive");
            return;
        }
        let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
        let delay_us = self.due_at_client(node, connection, delay_us);
        self.client_in(delay_us, client, ClientEvent::Hears { connection, bytes });
    }

    /// A node has closed a connection, behind what it wrote.
    pub(super) fn close_to_client(&mut self, node: NodeId, connection: ClientId) {
        if let Some(client) = self.lines.iter().position(|line| line.has(connection)) {
            let delay_us = self.due_at_client(node, connection, DELAY_US.1);
            self.line_in(delay_us, client, LineEvent::Lost { connection });
        }
        if let Some(client) = self.client_of(connection) {
            let delay_us = self.due_at_client(node, connection, DELAY_US.1);
            self.client_breaks(client, connection, u64::MAX, delay_us);
        }
        self.ends(node, connection);
    }

    /// The client at the other end, if it has not given the connection up.
    fn client_of(&self, connection: ClientId) -> Option<u64> {
        let has = |c: &&SimClient| {
            c.dial == Some(connection) || c.connection.is_some_and(|c| c.number == connection)
        };
        self.clients.iter().find(has).map(|c| c.id)
    }

    /// A process has ended, and its connections with it; a machine without power says nothing.
    pub(super) fn end_client_connections(&mut self, node: NodeId, power_lost: bool) {
        for client in 0..self.clients.len() as u64 {
            let c = &mut self.clients[client as usize];
            for connection in [&mut c.connection, &mut c.dialed] {
                if let Some(connection) = connection.as_mut().filter(|c| c.node == node) {
                    connection.gone = true;
                }
            }
            let connection = c.connection.filter(|c| c.node == node);
            if let Some(connection) = connection.filter(|_| !power_lost) {
                let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
                self.client_breaks(client, connection.number, u64::MAX, delay_us);
            }
        }
    }

    fn client_breaks(
        &mut self,
        client: u64,
        connection: ClientId,
        unsent_from: u64,
        delay_us: u64,
    ) {
        self.count("connections of clients broken");
        let error = network("receive", io::ErrorKind::ConnectionReset);
        let event = Box::new(CoreEvent::Broke { error, unsent_from });
        self.client_in(delay_us, client, ClientEvent::Arrives { connection, event });
    }

    /// The client has done with its connection.
    fn client_closes(&mut self, client: u64) {
        let Some(connection) = self.clients[client as usize].connection.take() else { return };
        if connection.gone {
            return;
        }
        let mut delay_us = (connection.due_us + 1).saturating_sub(self.now_us).max(DELAY_US.1);
        if connection.mute {
            // The node hears of it when its system gives the line up.
            delay_us += self.dice.log_between(DEAD_LINE_US.0, DEAD_LINE_US.1);
        }
        self.served_in(delay_us, &connection, ServedEvent::Gone);
    }

    fn served_in(&mut self, delay_us: u64, to: &ClientConnection, event: ServedEvent) {
        let event = Event::Served { connection: to.number, event };
        self.schedule(delay_us, to.node, to.life, event);
    }

    /// Sends requests; false when the connection takes no more bytes, or breaks.
    fn client_sends(
        &mut self,
        client: u64,
        mut requests: Vec<client::Request>,
        stall: Duration,
    ) -> Result<bool, Violation> {
        let Some(mut connection) = self.clients[client as usize].connection else {
            return Ok(true);
        };
        self.hurry(&mut requests);
        let channel = &mut self.clients[client as usize].channel;
        let mut ends = Vec::new();
        for request in &requests {
            match channel.queue(request) {
                Ok(_) => ends.push(channel.queued().len()),
                Err(cause) => {
                    return violated("a request fits a frame", format!("{cause:?}"));
                }
            }
        }
        let mut bytes = channel.queued().to_vec();
        *self.counters.entry("requests").or_default() += requests.len() as u64;
        let mut flushed = true;
        if !self.quiet {
            connection.mute |= self.dice.chance(1, 300);
            connection.deaf |= self.dice.chance(1, 300);
            // It takes some of them, or a part of one.
            if self.dice.chance(1, 100) {
                flushed = false;
                let anywhere = ends.is_empty() || self.dice.chance(1, 2);
                let taken = match anywhere {
                    true => self.dice.below(bytes.len() as u64 + 1) as usize,
                    false => *self.dice.pick(&ends),
                };
                let channel = &mut self.clients[client as usize].channel;
                channel.took(taken);
                let unsent_from = channel.unsent_from();
                // What was taken may arrive or not.
                let arrives = if self.dice.chance(1, 2) {
                    taken
                } else {
                    self.dice.below(taken as u64 + 1) as usize
                };
                bytes.truncate(arrives);
                if self.dice.chance(1, 2) {
                    let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
                    self.client_breaks(client, connection.number, unsent_from, delay_us);
                } else {
                    self.count("writes of clients blocked");
                    let event = Box::new(CoreEvent::Blocked { unsent_from });
                    let connection = connection.number;
                    let stall_us = stall.as_micros() as u64;
                    self.client_in(stall_us, client, ClientEvent::Arrives { connection, event });
                }
            }
        }
        if flushed {
            self.clients[client as usize].channel.took(bytes.len());
        }
        if connection.gone && flushed && self.nodes[&connection.node].up.is_some() {
            // The machine is back and knows nothing of the connection.
            flushed = false;
            let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
            self.client_breaks(client, connection.number, u64::MAX, delay_us);
        }
        if !(connection.gone || connection.mute || bytes.is_empty()) {
            let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
            connection.due_us = (self.now_us + delay_us).max(connection.due_us + 1);
            let delay_us = connection.due_us - self.now_us;
            self.served_in(delay_us, &connection, ServedEvent::Bytes(bytes));
        }
        if let Some(kept) = &mut self.clients[client as usize].connection {
            (kept.deaf, kept.mute) = (connection.deaf, connection.mute || !flushed);
            kept.due_us = connection.due_us;
        }
        Ok(flushed)
    }

    /// Now and then a client wants its answers soon.
    fn hurry(&mut self, requests: &mut [client::Request]) {
        let hurry = !self.quiet && (self.now_us < self.rush_until_us || self.dice.chance(1, 8));
        if hurry {
            let hurry_ms = self.dice.log_between(HURRY_MS.0, HURRY_MS.1) as u32;
            for request in requests {
                request.deadline_ms = request.deadline_ms.min(hurry_ms);
            }
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

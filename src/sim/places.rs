//! Places at the simulated nodes ([`Places`]), the guests that take them, and shortages.
//!
//! Every connection that a node accepts has a place there: those of the library's clients, of text clients, of other
//! nodes, of the impostor. A node has as many places as the run has clients, or few more. *Guests* come in bursts
//! and stay for a while: some say nothing or half a word, some ask how the node is, some show the token and then
//! say no more. So places run out, the least deserving go, and whoever comes then is over the cap. Now and then a
//! node's machine runs out of descriptors.
//!
//! What each connection has shown is written down here once more, beside the component, and each decision is
//! checked against that:
//!
//! - a newcomer gets a place that is free or that a stranger has;
//! - who is a node, or has shown the token, loses its place to nobody; in a shortage nodes stay;
//! - of those that may go the one goes that has shown the least;
//! - no more have a place, and no more are heard beyond the cap, than there are places;
//! - every place is given back.

use super::checks::{Violation, violated};
use super::dice::Dice;
use super::links::{Accepted, LinkEvent};
use super::network::End;
use super::node::{CLIENTS_TOKEN, ClientId, Up};
use super::serving::ServedEvent;
use super::world::{ANY_LIFE, Event, World};
use crate::api::places::{Arrived, OVER_CAP_MAX, Place, Places, Rank};
use crate::node::{PeerEvent, Pongs};
use crate::raft::NodeId;
use crate::wire::handshake::{Hello, Role};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pause between two bursts of guests, in microseconds.
const PAUSE_US: (u64, u64) = (1_500_000, 15_000_000);
/// How long a guest stays, in microseconds.
const STAY_US: (u64, u64) = (200_000, 10_000_000);
/// Guests of most bursts, and of one of so many that is a flood.
const GUESTS_MAX: u64 = 8;
const FLOOD: (u64, u64) = (1, 12);
const FLOOD_GUESTS: u64 = OVER_CAP_MAX as u64 + 16;
/// One of so many bursts is a shortage instead; closing some connections ends it mostly.
const SHORTAGE: (u64, u64) = (1, 6);

/// Who has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Visitor {
    /// A client, or a guest.
    Client(ClientId),
    /// A node, or the impostor: the number of the flow.
    Node(u64),
}

#[derive(Debug)]
struct Seat {
    number: u64,
    place: Arc<Place>,
    over_cap: bool,
    /// It was told to end.
    going: bool,
    /// What it has shown.
    shown: Rank,
}

/// The places of one node, and what is known of who has them.
#[derive(Debug)]
pub(super) struct Lobby {
    places: Places<Visitor>,
    seats: BTreeMap<Visitor, Seat>,
}

impl Lobby {
    pub(super) fn new(max: usize) -> Lobby {
        Lobby { places: Places::new(max), seats: BTreeMap::new() }
    }

    /// One has come, and gets a place or none; another one may have to go for it.
    fn arrive(
        &mut self,
        visitor: Visitor,
        now_us: u64,
    ) -> Result<(bool, Option<Visitor>), Violation> {
        let max = self.places.max(now_us);
        let with_place = || self.seats.values().filter(|seat| seat.has_place());
        let (taken, spare) = (with_place().count(), with_place().any(Seat::is_stranger));
        let Arrived { number, place, over_cap, shed } = self.places.arrive(visitor, now_us);
        if over_cap && (taken < max || spare) {
            let detail = format!("{visitor:?} of {taken} with {max} places: {:?}", self.seats);
            return violated("a newcomer gets a place that somebody can spare", detail);
        }
        if let Some(gone) = shed {
            self.goes(gone, |seat| seat.over_cap || seat.shown < Rank::Authenticated)?;
        }
        let (going, shown) = (false, Rank::Silent);
        self.seats.insert(visitor, Seat { number, place, over_cap, going, shown });
        let count = |test: fn(&Seat) -> bool| self.seats.values().filter(|s| test(s)).count();
        let (taken, beyond) = (count(Seat::has_place), count(Seat::is_heard_out));
        if taken > max || beyond > OVER_CAP_MAX {
            let detail = format!("{taken} of {max}, and {beyond} beside: {:?}", self.seats);
            return violated("no more connections than there are places", detail);
        }
        Ok((over_cap, shed))
    }

    /// One is told to end.
    fn goes(&mut self, gone: Visitor, may: fn(&Seat) -> bool) -> Result<(), Violation> {
        let Some(seat) = self.seats.get_mut(&gone).filter(|seat| !seat.going) else {
            return violated("nobody is told twice to end", format!("{gone:?}: {:?}", self.seats));
        };
        let (shown, over_cap) = (seat.shown, seat.over_cap);
        if shown == Rank::Node || !may(seat) {
            let detail = format!("{gone:?}: {:?}", self.seats);
            return violated("who has shown the token keeps its place", detail);
        }
        seat.going = true;
        let lesser = |seat: &Seat| {
            !seat.going && seat.over_cap == over_cap && seat.shown < shown && may(seat)
        };
        if self.seats.values().any(lesser) {
            let detail = format!("{gone:?}: {:?}", self.seats);
            return violated("who has shown the least goes first", detail);
        }
        Ok(())
    }

    /// What goes in a shortage.
    fn relieve(&mut self, spared: usize, now_us: u64) -> Result<Vec<Visitor>, Violation> {
        let shed = self.places.relieve(spared, now_us);
        for &gone in &shed {
            let Some(seat) = self.seats.get_mut(&gone).filter(|seat| !seat.going) else {
                return violated("nobody is told twice to end", format!("{gone:?}"));
            };
            seat.going = true;
            let shown = seat.shown;
            // All of a step go together: what stays has shown no less.
            let stays = |seat: &Seat| !seat.going && seat.shown < shown;
            let left: Vec<&Seat> = self.seats.values().filter(|seat| stays(seat)).collect();
            if shown == Rank::Node || !left.is_empty() {
                let detail = format!("{gone:?} at {shown:?}, and stay {left:?}");
                return violated("in a shortage strangers go first and nodes stay", detail);
            }
        }
        Ok(shed)
    }

    /// Bytes have come.
    pub(super) fn heard(&mut self, visitor: Visitor, now_us: u64) {
        if let Some(seat) = self.seats.get_mut(&visitor) {
            seat.place.heard(now_us);
            seat.shown = seat.shown.max(Rank::Unproven);
        }
    }

    /// Everything is answered.
    pub(super) fn rests(&mut self, visitor: Visitor) {
        if let Some(seat) = self.seats.get(&visitor) {
            seat.place.rests();
        }
    }

    /// It has shown so much.
    pub(super) fn shows(&mut self, visitor: Visitor, rank: Rank) {
        if let Some(seat) = self.seats.get_mut(&visitor) {
            seat.place.shows(rank);
            seat.shown = seat.shown.max(rank);
        }
    }

    /// It has ended.
    pub(super) fn leave(&mut self, visitor: Visitor) {
        if let Some(seat) = self.seats.remove(&visitor) {
            self.places.leave(seat.number);
        }
    }

    /// Whether a client has none of the places.
    pub(super) fn is_over_cap(&self, connection: ClientId) -> bool {
        self.seats.get(&Visitor::Client(connection)).is_some_and(|seat| seat.over_cap)
    }
}

impl Seat {
    fn has_place(&self) -> bool {
        !self.going && !self.over_cap && self.shown != Rank::Node
    }

    fn is_heard_out(&self) -> bool {
        !self.going && self.over_cap && self.shown != Rank::Node
    }

    fn is_stranger(&self) -> bool {
        self.shown <= Rank::Unproven
    }
}

/// What a guest says.
#[derive(Clone, Copy, Debug)]
enum Says {
    Nothing,
    Half,
    Asks,
    Token,
}

impl Says {
    fn bytes(self) -> Vec<u8> {
        match self {
            Says::Nothing => Vec::new(),
            Says::Half => b"PI".to_vec(),
            Says::Asks => b"GET /health HTTP/1.1\r\nhost: node\r\n\r\n".to_vec(),
            Says::Token => [b"AUTH ", CLIENTS_TOKEN, b"\r\n"].concat(),
        }
    }
}

impl World {
    /// A connection is accepted: whether it is over the cap. Who goes for it is closed.
    pub(super) fn take_place(&mut self, node: NodeId, visitor: Visitor) -> Result<bool, Violation> {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(false) };
        let local_us = n.local_us(now_us);
        let Some(up) = &mut n.up else { return Ok(false) };
        let (there, counted) = (up.served.len() + up.accepted.len(), up.lobby.places.open());
        if there != counted {
            let detail = format!("node {node}: {there} are there, {counted} have a place");
            return violated("every place is given back", detail);
        }
        let (over_cap, shed) = up.lobby.arrive(visitor, local_us)?;
        if let Some(gone) = shed {
            self.count(match over_cap {
                true => "connections beyond the cap closed",
                false => "connections closed for a newcomer",
            });
            self.turn_out(node, gone);
        }
        Ok(over_cap)
    }

    /// The node closes a connection that it has accepted; its thread finds out a little later.
    fn turn_out(&mut self, node: NodeId, visitor: Visitor) {
        let delay_us = self.hop_us();
        let life = self.nodes.get(&node).map_or(0, |n| n.life);
        let event = match visitor {
            Visitor::Client(connection) => {
                Event::Served { connection, event: ServedEvent::TurnedOut }
            }
            Visitor::Node(flow) => {
                Event::Link(LinkEvent::Lost { end: End::Acceptor, connection: 0, flow })
            }
        };
        self.schedule(delay_us, node, life, event);
    }

    fn up(&mut self, node: NodeId) -> Option<(&mut Up, u64)> {
        let now_us = self.now_us;
        let n = self.nodes.get_mut(&node)?;
        let local_us = n.local_us(now_us);
        Some((n.up.as_mut()?, local_us))
    }

    /// Bytes of another node have come.
    pub(super) fn heard_of(&mut self, node: NodeId, visitor: Visitor) {
        if let Some((up, local_us)) = self.up(node) {
            up.lobby.heard(visitor, local_us);
        }
    }

    /// Whoever dialed on that flow knows the token and says that it is a node.
    pub(super) fn shown_to_be_a_node(&mut self, node: NodeId, flow: u64, hello: &Hello) {
        let Some((up, local_us)) = self.up(node) else { return };
        if let Some(accepted) = up.accepted.get_mut(&flow).filter(|_| hello.role == Role::Peer) {
            accepted.pongs = Some(Pongs::new(hello.lane, local_us));
        }
        up.lobby.shows(Visitor::Node(flow), Rank::Node);
        if up.lobby.seats.get(&Visitor::Node(flow)).is_some_and(|seat| seat.over_cap) {
            self.count("nodes heard over the cap");
        }
    }

    /// Whether a client was told that there is no place.
    pub(super) fn is_over_cap(&self, node: NodeId, connection: ClientId) -> bool {
        let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
        up.is_some_and(|up| up.lobby.is_over_cap(connection))
    }

    /// A process has accepted a connection of another node.
    pub(super) fn accept(
        &mut self,
        node: NodeId,
        flow: u64,
        from: NodeId,
        patience_us: u64,
    ) -> Result<(), Violation> {
        let now_us = self.now_us;
        self.take_place(node, Visitor::Node(flow))?;
        if let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) {
            let (listener, welcome, heard_us, pongs) = (None, false, now_us, None);
            let accepted = Accepted { from, listener, welcome, heard_us, patience_us, pongs };
            up.accepted.insert(flow, accepted);
        }
        self.link(patience_us, node, LinkEvent::Silence { flow });
        Ok(())
    }

    /// An accepted connection is over at this end.
    pub(super) fn end_accepted(&mut self, node: NodeId, flow: u64, told: bool) {
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return };
        if up.accepted.remove(&flow).is_none() {
            return;
        }
        up.senders.remove(&flow);
        up.lobby.leave(Visitor::Node(flow));
        self.close(flow, End::Acceptor);
        if told {
            self.report(node, PeerEvent::AcceptedClosed { connection: flow });
        }
    }

    /// Guests come to a node, or its machine runs out of descriptors.
    pub(super) fn guests_come(&mut self) -> Result<(), Violation> {
        if self.quiet {
            return Ok(());
        }
        let pause_us = self.dice.log_between(PAUSE_US.0, PAUSE_US.1);
        self.schedule(pause_us, 0, ANY_LIFE, Event::Guests);
        let running: Vec<(NodeId, u64)> =
            self.nodes.values().filter(|n| n.up.is_some()).map(|n| (n.id, n.life)).collect();
        if running.is_empty() {
            return Ok(());
        }
        let mut dice = self.dice.split();
        let &(node, life) = dice.pick(&running);
        if dice.chance(SHORTAGE.0, SHORTAGE.1) {
            return self.shortage(node, &mut dice);
        }
        let flood = dice.chance(FLOOD.0, FLOOD.1);
        let guests = if flood { FLOOD_GUESTS } else { dice.between(1, GUESTS_MAX) };
        // Half of the bursts are of one kind.
        let kinds = [Says::Nothing, Says::Half, Says::Asks, Says::Token, Says::Token];
        let alike = dice.chance(1, 2).then(|| *dice.pick(&kinds));
        for _ in 0..guests {
            let says = alike.unwrap_or_else(|| *dice.pick(&kinds));
            self.connections += 1;
            let connection = self.connections;
            let comes_us = dice.log_between(100, 500_000);
            let event = |event| Event::Served { connection, event };
            self.schedule(comes_us, node, life, event(ServedEvent::Accepted));
            let bytes = says.bytes();
            if !bytes.is_empty() {
                let delay_us = comes_us + dice.log_between(1, 100_000);
                self.schedule(delay_us, node, life, event(ServedEvent::Bytes(bytes)));
            }
            let stay_us = dice.log_between(STAY_US.0, STAY_US.1);
            self.schedule(comes_us + stay_us, node, life, event(ServedEvent::Gone));
        }
        Ok(())
    }

    /// The machine gives a node no more descriptors, until enough is closed.
    fn shortage(&mut self, node: NodeId, dice: &mut Dice) -> Result<(), Violation> {
        self.count("shortages of descriptors");
        loop {
            let Some((up, local_us)) = self.up(node) else { return Ok(()) };
            let spared = if dice.chance(1, 2) { dice.below(3) as usize } else { 0 };
            let shed = up.lobby.relieve(spared, local_us)?;
            let ends = dice.chance(2, 3);
            if ends {
                up.lobby.places.relieved(local_us);
            }
            for gone in shed {
                let shown =
                    self.up(node).and_then(|(up, _)| Some(up.lobby.seats.get(&gone)?.shown));
                self.count(match shown {
                    Some(Rank::Served | Rank::Authenticated) => "clients closed in a shortage",
                    _ => "strangers closed in a shortage",
                });
                self.turn_out(node, gone);
            }
            if ends {
                return Ok(());
            }
        }
    }
}

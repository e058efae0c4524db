//! The simulated network: what happens to a message on its way.
//!
//! Messages of the consensus core may be lost, duplicated, delayed and overtaken: the protocol must
//! stand more than TCP does to it. Forwarded writes and their answers travel as on a connection: in
//! order, once, and lost together when the connection breaks.

use super::dice::Dice;
use crate::node::{Ask, Forward, Told, Verdict};
use crate::raft::{Index, Message, NodeId};
use std::collections::BTreeMap;

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// For the consensus core.
    Message(Message),
    /// A client's write for the leader.
    Forward(Forward),
    /// What became of it.
    ForwardAnswer {
        /// The forwarder's number.
        id: u64,
        /// What became of it.
        verdict: Verdict,
    },
    /// A follower fetches a snapshot.
    Ask(Ask),
    /// It is told.
    Told(Told),
    /// The sender's digest at an index.
    Digest {
        /// The index.
        index: Index,
        /// The digest.
        digest: u32,
    },
}

/// One direction between two nodes.
#[derive(Clone, Debug)]
pub struct Line {
    /// Nothing passes, and nobody is told.
    pub cut: bool,
    /// Of 1000 messages so many are lost.
    pub loss: u64,
    /// Of 1000 messages so many arrive twice.
    pub duplication: u64,
    /// Smallest and largest delay, in microseconds.
    pub delay_us: (u64, u64),
    /// Number of the present connection; what was sent on an earlier one does not arrive.
    pub connection: u64,
    /// Lives of sender and receiver between which there is a connection: only then is anything sent.
    pub up: Option<(u64, u64)>,
    /// Number of the sender's present attempts to connect; those with an earlier one are over.
    pub turn: u64,
    /// When the last packet of the connection arrives: later ones do not overtake it.
    ordered_until_us: u64,
}

/// Delays on a quiet local network, in microseconds.
pub const QUIET_DELAY_US: (u64, u64) = (80, 1_500);

impl Default for Line {
    fn default() -> Line {
        Line {
            cut: false,
            loss: 0,
            duplication: 0,
            delay_us: QUIET_DELAY_US,
            connection: 1,
            up: None,
            turn: 0,
            ordered_until_us: 0,
        }
    }
}

/// All directions.
#[derive(Debug)]
pub struct Network {
    lines: BTreeMap<(NodeId, NodeId), Line>,
    dice: Dice,
    /// Messages lost, duplicated, and stopped at a cut.
    pub lost: u64,
    /// Messages that arrived twice.
    pub duplicated: u64,
    /// Messages stopped at a cut.
    pub stopped: u64,
}

impl Network {
    /// A quiet network.
    pub fn new(dice: Dice) -> Network {
        let lines = BTreeMap::new();
        Network { lines, dice, lost: 0, duplicated: 0, stopped: 0 }
    }

    /// The line between two nodes.
    pub fn line(&mut self, from: NodeId, to: NodeId) -> &mut Line {
        self.lines.entry((from, to)).or_default()
    }

    /// Whether something is cut between the two, in either direction.
    pub fn is_cut(&mut self, one: NodeId, other: NodeId) -> bool {
        self.line(one, other).cut || self.line(other, one).cut
    }

    /// Makes every line quiet again; connections stay.
    pub fn heal(&mut self) {
        for line in self.lines.values_mut() {
            let Line { connection, up, turn, ordered_until_us, .. } = *line;
            *line = Line { connection, up, turn, ordered_until_us, ..Line::default() };
        }
    }

    /// Nothing is cut any more.
    pub fn reconnect(&mut self) {
        self.lines.values_mut().for_each(|line| line.cut = false);
    }

    /// When copies of a packet sent now arrive, and on which connection.
    pub fn arrivals(
        &mut self,
        now_us: u64,
        from: NodeId,
        to: NodeId,
        packet: &Packet,
    ) -> (u64, Vec<u64>) {
        let line = self.lines.entry((from, to)).or_default();
        let dice = &mut self.dice;
        let mut delay = || now_us + dice.log_between(line.delay_us.0, line.delay_us.1);
        if line.cut {
            self.stopped += 1;
            return (line.connection, Vec::new());
        }
        let first = delay();
        match packet {
            Packet::Message(_) => {
                let mut arrivals = vec![first];
                if line.duplication > 0 && dice.chance(line.duplication, 1000) {
                    self.duplicated += 1;
                    arrivals.push(now_us + dice.log_between(line.delay_us.0, 8 * line.delay_us.1));
                }
                if line.loss > 0 && dice.chance(line.loss, 1000) {
                    self.lost += 1;
                    arrivals.pop();
                }
                (line.connection, arrivals)
            }
            Packet::Forward(_)
            | Packet::ForwardAnswer { .. }
            | Packet::Ask(_)
            | Packet::Told(_)
            | Packet::Digest { .. } => {
                line.ordered_until_us = first.max(line.ordered_until_us + 1);
                (line.connection, vec![line.ordered_until_us])
            }
        }
    }
}

//! Checksums of what the raft loop gives: one for each kind of effect, so that a replay can say which differs.
//!
//! What has a byte form elsewhere is taken in that form, the rest as it prints itself. Equal effects have equal
//! checksums in one version of the program; nothing more is asked of them.

use super::super::frames::put_outgoing;
use super::super::peers::PeerEffect;
use super::super::raft_loop::{NodeEffects, Outgoing};
use super::super::words::{Answer, ReplyTo, Verdict};
use crate::kv::codec::put_outcome;
use crate::raft::codec::{put_configuration, put_entry};
use crate::raft::{Entry, Persist, SnapshotMark};
use crate::wire::frame::FRAME_HEADER_BYTES;
use crate::wire::handshake::take_answer;
use crate::wire::proof::Greeting;
use crc32fast::Hasher;
use std::fmt::{self, Write as _};

/// A kind of effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// For the connections with other nodes.
    Links,
    /// For the log writer: what is to be durable.
    Persist,
    /// For the applier: what is committed, and who waits for it.
    Apply,
    /// For the applier: to flush, or to hold for a repair.
    Store,
    /// For the log writer: what may be cut.
    Compact,
    /// For whoever fetches snapshots.
    Offer,
    /// Replicas differ.
    Difference,
    /// For clients and for followers that forwarded something.
    Answers,
    /// The configuration changed.
    Configuration,
    /// Term, role or leader changed.
    Role,
    /// For the peers.
    Sends,
}

const PARTS: [Part; 11] = [
    Part::Links,
    Part::Persist,
    Part::Apply,
    Part::Store,
    Part::Compact,
    Part::Offer,
    Part::Difference,
    Part::Answers,
    Part::Configuration,
    Part::Role,
    Part::Sends,
];

impl Part {
    pub(super) fn number(self) -> u8 {
        self as u8
    }

    pub(super) fn of(number: u8) -> Option<Part> {
        PARTS.get(usize::from(number)).copied()
    }
}

/// The checksum of one kind of effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Print {
    /// Which.
    pub part: Part,
    /// CRC-32 of it.
    pub crc: u32,
}

/// What is printed, or appended as bytes, goes into the checksum.
#[derive(Default)]
struct Sum {
    hasher: Hasher,
    scratch: Vec<u8>,
}

impl fmt::Write for Sum {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.hasher.update(text.as_bytes());
        Ok(())
    }
}

impl Sum {
    fn printed(&mut self, what: &impl fmt::Debug) {
        // A checksum takes everything.
        let _ = write!(self, "{what:?};");
    }

    fn bytes(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        put(&mut self.scratch);
        self.hasher.update(&self.scratch);
    }

    fn entries(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.bytes(|out| put_entry(out, entry));
        }
    }

    fn mark(&mut self, mark: &SnapshotMark) {
        self.printed(&(mark.index, mark.term));
        self.bytes(|out| put_configuration(out, &mark.configuration));
    }

    fn reply_to<C>(&mut self, reply_to: &ReplyTo<C>, name: &impl Fn(&C) -> u64) {
        match reply_to {
            ReplyTo::Client { client, request } => self.printed(&(0, name(client), request)),
            ReplyTo::Peer { node, id } => self.printed(&(1, node, id)),
        }
    }

    fn answers<C>(&mut self, answers: &[(ReplyTo<C>, Answer)], name: &impl Fn(&C) -> u64) {
        for (reply_to, answer) in answers {
            self.reply_to(reply_to, name);
            match answer {
                Answer::Write(Verdict::Applied(outcome)) => {
                    self.bytes(|out| put_outcome(out, outcome));
                }
                answer => self.printed(answer),
            }
        }
    }
}

/// Checksum of answers.
pub fn of_answers<C>(answers: &[(ReplyTo<C>, Answer)], name: &impl Fn(&C) -> u64) -> u32 {
    let mut sum = Sum::default();
    sum.answers(answers, name);
    sum.hasher.finalize()
}

/// The checksums of what the raft loop gives, of those kinds that there are, ascending.
pub fn of_effects<C>(effects: &NodeEffects<C>, name: &impl Fn(&C) -> u64) -> Vec<Print> {
    let NodeEffects { links, replica, sends } = effects;
    let mut prints = Vec::new();
    let mut part = |part: Part, there: bool, put: &dyn Fn(&mut Sum)| {
        if there {
            let mut sum = Sum::default();
            put(&mut sum);
            prints.push(Print { part, crc: sum.hasher.finalize() });
        }
    };
    part(Part::Links, !links.is_empty(), &|sum| links.iter().for_each(|link| put_link(sum, link)));
    part(Part::Persist, replica.persist.is_some(), &|sum| {
        if let Some(Persist { seq, hard_state, reset, entries }) = &replica.persist {
            sum.printed(&(seq, hard_state, reset.is_some()));
            reset.iter().for_each(|mark| sum.mark(mark));
            sum.entries(entries);
        }
    });
    part(Part::Apply, replica.apply.is_some(), &|sum| {
        if let Some(apply) = &replica.apply {
            sum.printed(&(apply.committed.first, apply.committed.last));
            sum.entries(&apply.committed.entries);
            for (index, reply_to) in &apply.waiters {
                sum.printed(index);
                sum.reply_to(reply_to, name);
            }
        }
    });
    let store = (replica.flush, replica.repair);
    part(Part::Store, store != (false, false), &|sum| sum.printed(&store));
    part(Part::Compact, replica.compact.is_some(), &|sum| sum.printed(&replica.compact));
    part(Part::Offer, replica.offer.is_some(), &|sum| sum.printed(&replica.offer));
    let difference = &replica.difference;
    part(Part::Difference, difference.is_some(), &|sum| sum.printed(difference));
    part(Part::Answers, !replica.answers.is_empty(), &|sum| sum.answers(&replica.answers, name));
    part(Part::Configuration, replica.configuration.is_some(), &|sum| {
        if let Some(configuration) = &replica.configuration {
            sum.bytes(|out| put_configuration(out, configuration));
        }
    });
    part(Part::Role, replica.role.is_some(), &|sum| sum.printed(&replica.role));
    part(Part::Sends, !sends.is_empty(), &|sum| {
        for (connection, outgoing) in sends {
            sum.printed(connection);
            if let Outgoing::FromLog(read) = outgoing {
                sum.printed(&(read.first, read.last, read.last_term));
            }
            match outgoing {
                Outgoing::Message(message) => sum.bytes(|out| {
                    crate::wire::peer::put_message(out, message);
                }),
                outgoing => sum.bytes(|out| put_outgoing(out, outgoing.clone())),
            }
        }
    });
    prints
}

/// Neither token nor secret is in a recording, nor the codes that are made of them.
fn put_link(sum: &mut Sum, link: &PeerEffect) {
    match link {
        PeerEffect::Dial { connection, peer, address, greeting } => {
            let Greeting { hello, keys, offers_in } = greeting.as_ref();
            let sealed = keys.secret.map(|secret| secret.sealed);
            sum.printed(&(connection, peer, address, hello, sealed, offers_in));
        }
        PeerEffect::Welcome { connection, frame } => {
            let answer = frame.get(FRAME_HEADER_BYTES..).map(take_answer);
            sum.printed(&(connection, answer));
        }
        PeerEffect::Reject { connection, reject, frame: _ } => sum.printed(&(connection, reject)),
        link => sum.printed(link),
    }
}

//! Requests that are put straight to a node's raft loop, without a client or a connection: bursts of writes
//! and reads, flushes, transfers.
//!
//! Each is remembered with the life of the node that was asked, and its answer is checked when it leaves the
//! component: that it is asked for and comes once; that a write which is called done stands in the log at the
//! revision that was named, and one that is called surely not applied stands nowhere, then or later; that a
//! read is released behind what was committed when it began; that what is called flushed would survive a loss
//! of power. At the end of a run no request may be without an answer whose deadline is over.

use super::checks::{Violation, violated};
use super::clients::filler;
use super::node::{ClientId, DATA};
use super::store::store_options;
use super::world::World;
use crate::env::Disk;
use crate::kv::{Command, LsmStore, Outcome, STORE_DIR, Write, decode_command};
use crate::node::{Answer, Input, Request, Verdict};
use crate::raft::{Index, NodeId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Whoever asks so, as the components see it.
pub(super) const DIRECT: ClientId = ClientId::MAX;

/// What such a request is to be answered within, on the node's clock.
const DEADLINE_US: u64 = 2_000_000;
/// An answer may come so late: ticks are some time apart, and a node with much to do is late with them.
const LATE_US: u64 = 1_000_000;

/// All that were made.
#[derive(Debug, Default)]
pub(super) struct DirectRequests {
    last: u64,
    open: BTreeMap<u64, Asked>,
}

#[derive(Debug)]
struct Asked {
    node: NodeId,
    life: u64,
    deadline_us: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Write(Arc<[u8]>),
    /// So much was committed when it was asked.
    Read(Index),
    /// So much was applied, as the raft loop knew.
    Flush(Index),
    /// To whom leadership is to go, if that was said.
    Transfer(Option<NodeId>),
    Other,
}

impl World {
    /// Writes at one node, and some reads among them.
    pub(super) fn burst(&mut self, node: NodeId, writes: u64) {
        let mut requests: Vec<Request> = (0..writes).map(|_| filler(&mut self.dice)).collect();
        if self.dice.chance(1, 2) {
            let every = self.dice.between(1, 8) as usize;
            requests.iter_mut().step_by(every).for_each(|request| *request = Request::Read);
        }
        self.ask_directly(node, requests);
    }

    /// Puts requests to a node, together.
    pub(super) fn ask_directly(&mut self, node: NodeId, requests: Vec<Request>) {
        let committed = self.cluster.committed();
        let Some(n) = self.nodes.get(&node) else { return };
        let Some(up) = &n.up else { return };
        let (life, deadline_us) = (n.life, n.local_us(self.now_us) + DEADLINE_US);
        let applied = up.node.replica().raft().applied_index();
        let mut numbered = Vec::with_capacity(requests.len());
        for request in requests {
            let what = match &request {
                Request::Write(command) => What::Write(Arc::clone(command)),
                Request::Read => What::Read(committed),
                Request::Flush { .. } => What::Flush(applied),
                Request::Transfer(to) => What::Transfer(*to),
                _ => What::Other,
            };
            self.direct.last += 1;
            self.direct.open.insert(self.direct.last, Asked { node, life, deadline_us, what });
            numbered.push((self.direct.last, deadline_us, request));
        }
        self.input(node, Input::Client { client: DIRECT, requests: numbered });
    }

    /// An answer leaves a node.
    pub(super) fn directly_answered(
        &mut self,
        node: NodeId,
        request: u64,
        answer: &Answer,
    ) -> Result<(), Violation> {
        let life = self.nodes.get(&node).map_or(0, |n| n.life);
        let asked = self.direct.open.remove(&request);
        let Some(asked) = asked.filter(|asked| (asked.node, asked.life) == (node, life)) else {
            let detail = format!("node {node}, life {life}: {request}: {answer:?}");
            return violated("a request is answered once", detail);
        };
        self.count("direct requests answered");
        let wrong = || {
            let detail = format!("node {node}: {asked:?}: {answer:?}");
            violated("an answer is to what was asked", detail)
        };
        match (&asked.what, answer) {
            (What::Write(command), Answer::Write(Verdict::Applied(outcome))) => {
                let Ok(Command::Write(write)) = decode_command(command) else { return Ok(()) };
                if !self.is_done(&write, outcome) {
                    return wrong();
                }
            }
            (What::Write(command), Answer::Write(Verdict::NotApplied(_))) => {
                self.count("direct writes refused");
                self.ledger.refused(command)?;
            }
            (What::Write(_), Answer::Write(Verdict::Unknown(_))) => {
                self.count("direct writes of unknown outcome");
            }
            (What::Read(_), Answer::Read(Err(_))) => {}
            (What::Read(committed), Answer::Read(Ok(()))) => {
                let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
                let applied = up.map_or(0, |up| up.applier.machine().applied());
                if applied < *committed {
                    let detail = format!("node {node} at {applied}, {committed} were committed");
                    return violated("a read is released behind what was committed", detail);
                }
            }
            (What::Flush(_), Answer::Flushed(Err(_))) => {}
            (What::Flush(applied), Answer::Flushed(Ok(index))) => {
                if index < applied {
                    return wrong();
                }
                self.check_flushed(node, *index)?;
            }
            (What::Transfer(to), Answer::Transfer(Ok(heir))) => {
                if to.is_some_and(|to| to != *heir) {
                    return wrong();
                }
            }
            (What::Transfer(_), Answer::Transfer(Err(_))) | (What::Other, _) => {}
            _ => return wrong(),
        }
        Ok(())
    }

    fn is_done(&self, write: &Write, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Done { revision, .. } => self.ledger.did(*revision, write),
            // Burst have no conditions, and no numbers that could be none.
            _ => false,
        }
    }

    /// What a node calls flushed is there after a loss of power, now.
    fn check_flushed(&mut self, node: NodeId, index: Index) -> Result<(), Violation> {
        let image_dice = self.dice.split();
        let mut options = store_options(&mut self.dice);
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        if n.store_is_hurt() || n.disk.has_trouble() {
            return Ok(());
        }
        (options.identity, options.must_exist) = (n.identity, true);
        let disk: Arc<dyn Disk> = Arc::new(n.disk.image(image_dice));
        let opened = LsmStore::open(disk, &Path::new(DATA).join(STORE_DIR), options);
        let held = opened.map(|(store, _)| store.applied());
        self.count("flushes looked at on the platter");
        match held {
            Ok(held) if held >= index => Ok(()),
            held => {
                let detail = format!("node {node} says {index}, its platter {held:?}");
                violated("what is called flushed is durable", detail)
            }
        }
    }

    /// Nobody waits for an answer whose time is over.
    pub(super) fn all_directly_answered(&self) -> Result<(), Violation> {
        let late = self.direct.open.iter().find(|(_, asked)| {
            let Some(n) = self.nodes.get(&asked.node) else { return false };
            let over_us = asked.deadline_us + LATE_US;
            n.life == asked.life && n.up.is_some() && n.local_us(self.now_us) > over_us
        });
        match late {
            None => Ok(()),
            Some((number, asked)) => {
                let detail = format!("{number}: {asked:?}");
                violated("every request is answered by its deadline", detail)
            }
        }
    }
}

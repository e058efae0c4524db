//! A state of the whole cluster, what must hold of it, and what must hold from one to the next.

use super::super::checks::{Violation, violated};
use super::local::{Local, Seen};
use super::prints::Prints;
use super::voters::{Decision, short_of_majority};
use super::{ALLOWANCES, NODES_MAX};
use crate::raft::canonical::{Names, entry_words};
use crate::raft::{
    AppendResult, Body, Configuration, Entry, HardState, Index, Message, NodeId, Payload, RoleName,
    Term,
};

/// A state: numbers of things that are kept in tables, so that it is small and quick to copy.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    /// The nodes, in the order of their ids.
    pub(super) nodes: [u32; NODES_MAX],
    pub(super) history: u32,
    /// How much of each allowance is used up.
    pub(super) spent: [u8; ALLOWANCES],
    /// Messages in flight, ascending, each once.
    pub(super) flight: Box<[u32]>,
}

impl World {
    /// The same with nothing in flight.
    pub(super) fn without_messages(&self) -> World {
        let World { nodes, history, spent, flight: _ } = *self;
        World { nodes, history, spent, flight: Box::default() }
    }
}

/// What happened before and must be known to judge what happens next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    /// Who led each term, from term 1; 0 for nobody.
    leaders: Vec<NodeId>,
    committed: Vec<Committed>,
    /// Open reads: node, its number, and what was known to be committed when it was asked.
    reads: Vec<(NodeId, u64, Index)>,
}

/// An entry that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    entry: Entry,
    /// It and all before it, content included.
    log: u64,
    /// The term in which it was committed.
    by: Term,
}

/// A node's state with everything that is asked of it more than once, side by side in memory.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) prints: Prints,
    term: Term,
    /// On its platter.
    hard: HardState,
    /// Requests that its disk has under way.
    pub(super) writes: usize,
    pub(super) seen: Seen,
    pub(super) local: Box<Local>,
}

/// What the bounds say about what may follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// The message's sender is durably in the last term.
    pub(super) sender_is_done: bool,
    /// The last term.
    pub(super) terms: Term,
    /// A follower that is removed may become one again, under the same leader.
    pub(super) followers_return: bool,
}

impl Node {
    pub(super) fn new(local: Local, prints: Prints) -> Node {
        Node {
            prints,
            term: local.raft.term(),
            hard: local.platter.hard,
            writes: local.pending.len(),
            seen: local.seen(),
            local: Box::new(local),
        }
    }

    pub(super) fn term(&self) -> Term {
        self.term
    }

    pub(super) fn leads(&self) -> bool {
        self.seen.role == RoleName::Leader
    }

    /// Whether it is durably in that term or beyond.
    pub(super) fn has_come_to(&self, term: Term) -> bool {
        self.hard.term >= term
    }

    /// Whether the message can never again have an effect here, whatever else happens. That it has none
    /// now is checked, not assumed (`ignored.rs`), and a test holds that it stays so.
    ///
    /// Everything compares with the term that is durable, below which no restart can fall:
    /// - an answer of a former term is not even refused;
    /// - a role that only campaigning in a term leads to (there is no other way to become candidate
    ///   or leader in it) is not reached again in that term, once it is over;
    /// - a refused vote could only take back one that was granted, whose voter has changed its mind.
    ///   The candidate has not won with it and is then where it was without it, so whatever follows
    ///   can follow when the granted one comes never or later (and has its place in flight);
    /// - a round that is known to be acknowledged is so for ever, as long as no follower that was
    ///   removed is made one again under the same leader: that takes two changes. Round 0 is none;
    /// - a request of a former term is answered with the present one, which is no news to its sender
    ///   when that has come as far as the bounds go;
    /// - who has voted for another refuses. As long as it may get to another term, it may still tell
    ///   that one in its answer.
    ///
    /// No rule asks who votes: votes and acknowledgements of nodes that do not are kept, and a node
    /// that has left answers like any other.
    pub(super) fn ignores(&self, message: &Message, outlook: Outlook) -> bool {
        let Outlook { sender_is_done, terms, followers_return } = outlook;
        let durable = self.hard.term;
        let old = message.term < durable;
        let in_term = message.term == durable && self.term() == durable;
        // Or so as long as it does not crash, and then a follower.
        let over = message.term <= durable && message.term < self.term();
        let role = self.seen.role;
        let neither = matches!(role, RoleName::Follower | RoleName::PreCandidate);
        let no_news = old && sender_is_done;
        match message.body {
            Body::PreVoteResponse { granted: true } => message.term <= durable,
            Body::VoteResponse { granted } => {
                over || in_term && (role != RoleName::Candidate || !granted)
            }
            Body::HeartbeatResponse { round } => {
                let raft = &self.local.raft;
                let known =
                    || round == 0 || !followers_return && raft.knows_round(message.from, round);
                over || in_term && (neither || self.leads() && known())
            }
            Body::AppendResponse { .. } => over || in_term && neither,
            Body::PreVoteResponse { granted: false }
            | Body::InstallSnapshot { .. }
            | Body::SnapshotResponse { .. }
            | Body::TimeoutNow
            | Body::ReadIndexResponse { .. } => old,
            Body::AppendEntries { .. } | Body::Heartbeat { .. } => no_news,
            Body::RequestVote { .. } => {
                let vote = self.hard.vote;
                let refuses = vote.is_some_and(|vote| vote != message.from);
                let last = sender_is_done || durable >= terms;
                no_news || message.term == durable && refuses && last
            }
            Body::RequestPreVote { .. } | Body::ReadIndex { .. } => false,
        }
    }
}

impl History {
    pub(super) fn words(&self, names: Names<'_>, words: &mut Vec<u64>) {
        words.push(self.leaders.len() as u64);
        words.extend(self.leaders.iter().map(|&id| names.of(id)));
        words.push(self.committed.len() as u64);
        for Committed { entry, log: _, by } in &self.committed {
            entry_words(entry, names, words);
            words.push(*by);
        }
        let mut reads: Vec<[u64; 3]> =
            self.reads.iter().map(|&(node, id, begun)| [names.of(node), id, begun]).collect();
        reads.sort_unstable();
        words.extend(reads.into_iter().flatten());
    }

    pub(super) fn committed(&self) -> Index {
        self.committed.len() as Index
    }

    /// Terms that were led.
    pub(super) fn elections(&self) -> usize {
        self.leaders.iter().filter(|&&id| id != 0).count()
    }

    pub(super) fn read_begins(&mut self, node: NodeId, id: u64) {
        self.reads.push((node, id, self.committed()));
    }

    /// Whoever asked a node that crashed gets no answer.
    pub(super) fn reads_end(&mut self, node: NodeId) {
        self.reads.retain(|read| read.0 != node);
    }

    pub(super) fn read_answered(
        &mut self,
        node: NodeId,
        id: u64,
        index: Option<Index>,
    ) -> Result<(), Violation> {
        let Some(at) = self.reads.iter().position(|read| (read.0, read.1) == (node, id)) else {
            return violated("a read is answered once", format!("read {id} at node {node}"));
        };
        let (.., begun) = self.reads.remove(at);
        match index {
            Some(index) if index < begun => violated(
                "freshness of reads",
                format!(
                    "read {id} at node {node} is served at {index}, {begun} was committed before it"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// Whether a node's move is news: cheap, because it nearly never is.
    pub(super) fn is_news(&self, id: NodeId, node: &Node, decisions: &[Decision]) -> bool {
        let known = |d: &Decision| {
            self.leaders.get(d.term as usize - 1) == Some(&id) && d.commit <= self.committed()
        };
        node.seen.commit > self.committed() || !decisions.iter().all(known)
    }

    /// Whether a read of that node is open.
    pub(super) fn reads_at(&self, id: NodeId) -> bool {
        self.reads.iter().any(|read| read.0 == id)
    }

    /// One node has moved, and has decided this on the way.
    pub(super) fn moved(
        &mut self,
        id: NodeId,
        decisions: &[Decision],
        nodes: &[&Node],
    ) -> Result<(), Violation> {
        for decision in decisions {
            self.leads(id, decision, nodes)?;
            self.commits(id, decision, nodes)?;
        }
        let commit = nodes[id as usize - 1].seen.commit;
        if commit <= self.committed() {
            return Ok(());
        }
        violated("a leader is the first to commit", format!("node {id} knows of {commit}"))
    }

    fn leads(&mut self, id: NodeId, by: &Decision, nodes: &[&Node]) -> Result<(), Violation> {
        let (term, at) = (by.term, by.term as usize - 1);
        if self.leaders.len() <= at {
            self.leaders.resize(at + 1, 0);
        }
        match std::mem::replace(&mut self.leaders[at], id) {
            0 => {}
            before if before == id => return Ok(()),
            before => {
                return violated(
                    "election safety",
                    format!("nodes {before} and {id} both lead term {term}"),
                );
            }
        }
        // Whom a node voted for in a term that it has left is not known any more.
        let voted = |voter: NodeId| {
            nodes.get(voter as usize - 1).is_some_and(|n| {
                n.hard.term > term || (n.hard.term, n.hard.vote) == (term, Some(id))
            })
        };
        match short_of_majority(&by.configuration, voted) {
            None => Ok(()),
            Some(who) => violated(
                "election evidence",
                format!("node {id} leads term {term}, by the votes of {who}"),
            ),
        }
    }

    fn commits(&mut self, id: NodeId, by: &Decision, nodes: &[&Node]) -> Result<(), Violation> {
        let Node { seen, local, .. } = nodes[id as usize - 1];
        let (term, commit) = (by.term, by.commit as usize);
        if by.commit <= self.committed() {
            return Ok(());
        }
        if seen.terms[commit - 1] != term {
            return violated(
                "commits an entry of its own term",
                format!("node {id} commits {commit} in term {term}, log {:?}", seen.terms),
            );
        }
        let entries = local.entries();
        for (at, &entry) in entries[..commit].iter().enumerate().skip(self.committed.len()) {
            let log = seen.log[at];
            let holds = |holder: NodeId| {
                nodes.get(holder as usize - 1).is_some_and(|n| n.seen.disk.get(at) == Some(&log))
            };
            if let Some(who) = short_of_majority(&by.configuration, holds) {
                return violated(
                    "commit evidence",
                    format!("node {id} commits {} in term {term}; it is held by {who}", at + 1),
                );
            }
            self.committed.push(Committed { entry: entry.clone(), log, by: term });
        }
        Ok(())
    }

    /// Configurations that are committed, from the first one.
    pub(super) fn configurations(&self) -> impl Iterator<Item = &Configuration> {
        self.committed.iter().filter_map(|c| match &c.entry.payload {
            Payload::Configuration(c) => Some(&**c),
            _ => None,
        })
    }

    /// What must hold of every state.
    pub(super) fn check(&self, nodes: &[&Node]) -> Result<(), Violation> {
        for (node, id) in nodes.iter().zip(1..) {
            let seen = &node.seen;
            for (at, committed) in self.committed.iter().enumerate() {
                let has = seen.log.get(at) == Some(&committed.log);
                if !has && seen.commit > at as Index {
                    return violated(
                        "state machine safety",
                        format!("node {id} has another entry {} than was committed", at + 1),
                    );
                }
                if !has && node.leads() && node.term() > committed.by {
                    return violated(
                        "leader completeness",
                        format!(
                            "node {id} leads term {} without entry {} of term {}",
                            node.term(),
                            at + 1,
                            committed.by
                        ),
                    );
                }
            }
            if seen.commit > self.committed() {
                return violated("commit is known", format!("node {id} is at {}", seen.commit));
            }
            for (other, other_id) in nodes.iter().zip(1..).take(id - 1) {
                let (a, b) = (seen, &other.seen);
                for at in 0..a.log.len().min(b.log.len()) {
                    if a.terms[at] == b.terms[at] && a.log[at] != b.log[at] {
                        return violated(
                            "log matching",
                            format!(
                                "nodes {other_id} and {id} differ up to {}, of term {}",
                                at + 1,
                                a.terms[at]
                            ),
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

/// A promise that is under way still stands, whatever its sender has gone through since.
pub(super) fn stands(message: &Message, sender: &Node) -> Result<(), Violation> {
    let hard = sender.hard;
    let stands = match message.body {
        Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true } => true,
        Body::RequestVote { .. } => {
            hard.term > message.term || (hard.term, hard.vote) == (message.term, Some(message.from))
        }
        Body::VoteResponse { granted: true } => {
            hard.term > message.term || (hard.term, hard.vote) == (message.term, Some(message.to))
        }
        _ => hard.term >= message.term,
    };
    if stands {
        return Ok(());
    }
    violated("vote durability", format!("{message:?} was sent, {hard:?} is on the platter"))
}

/// What a follower acknowledges to the leader of its term is what that leader has.
pub(super) fn acknowledges_what_is_there(
    message: &Message,
    sender: &Node,
    receiver: &Node,
) -> Result<(), Violation> {
    let Body::AppendResponse { result: AppendResult::Matched { index }, .. } = message.body else {
        return Ok(());
    };
    let Some(at) = (index as usize).checked_sub(1) else { return Ok(()) };
    if !receiver.leads() || receiver.term() != message.term {
        return Ok(());
    }
    if sender.seen.disk.get(at) == receiver.seen.log.get(at) {
        return Ok(());
    }
    violated("acknowledged is what the leader has", format!("{message:?}"))
}

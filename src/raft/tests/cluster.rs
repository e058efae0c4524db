//! Several cores, a network, disks and appliers, all in memory and moved one step at a time.
//!
//! The harness sees everything. After every step of a core it checks that core ([`Watch`]) and the
//! whole: election safety, log matching, leader completeness, state machine safety, promise
//! durability (what leaves a node is implied by its platter, and by every later state of it) and
//! commit evidence (an index that is committed for the first time is on a majority of platters).

use super::solo::Platter;
use crate::raft::invariants::Watch;
use crate::raft::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// No cluster has this much to say without time passing: a loop of messages.
const SETTLE_STEPS_MAX: usize = 200_000;
/// Entries per message when the log file is read, so that one read becomes several messages.
const LOG_READ_PIECE: Index = 3;

/// One node: a core, or none while it is down, and its surroundings.
pub(super) struct Node {
    pub(super) raft: Option<Raft>,
    pub(super) platter: Platter,
    /// Asked for and not on the platter.
    pub(super) pending: VecDeque<Persist>,
    /// On the platter, and the core was not told.
    unreported: Option<u64>,
    pub(super) log_reads: VecDeque<LogRead>,
    pub(super) to_apply: VecDeque<Committed>,
    /// Snapshots that leaders offered to it.
    pub(super) offers: Vec<Offer>,
    /// End of the last snapshot that its store took in.
    stored: Index,
    /// Reads that were not answered: the commit index that was known anywhere when they began.
    pub(super) reads: BTreeMap<ReadId, Index>,
    pub(super) answers: BTreeMap<ReadId, Option<Index>>,
    watch: Watch,
    seen_commit: Index,
    lives: u64,
}

/// The cluster and what its observer knows.
pub(super) struct Cluster {
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) net: Vec<Message>,
    /// Links that lose everything: (from, to).
    pub(super) cuts: BTreeSet<(NodeId, NodeId)>,
    pub(super) now_us: u64,
    /// Several events may pass before a core's effects are taken.
    pub(super) lazy: bool,
    /// Every leader there ever was.
    pub(super) leaders: BTreeMap<Term, NodeId>,
    /// Everything that is committed.
    pub(super) committed: Vec<Entry>,
    /// The term of the leader that committed it.
    committed_by: Vec<Term>,
    /// Every entry there ever was, with the term before it: log matching by induction.
    entries: BTreeMap<(Index, Term), (Term, Payload)>,
    votes: BTreeMap<(NodeId, Term), NodeId>,
    next_read: ReadId,
    seed: u64,
    tweak: fn(&mut Options),
}

impl Cluster {
    /// `n` voters with empty disks.
    pub(super) fn new(n: u64) -> Cluster {
        Cluster::of((1..=n).map(|id| (id, Platter::new(super::solo::voters(n)))), 1, |_| {})
    }

    /// Nodes that continue from what is on their disks.
    pub(super) fn of(
        platters: impl IntoIterator<Item = (NodeId, Platter)>,
        seed: u64,
        tweak: fn(&mut Options),
    ) -> Cluster {
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            net: Vec::new(),
            cuts: BTreeSet::new(),
            now_us: 1_000_000,
            lazy: false,
            leaders: BTreeMap::new(),
            committed: Vec::new(),
            committed_by: Vec::new(),
            entries: BTreeMap::new(),
            votes: BTreeMap::new(),
            next_read: 0,
            seed,
            tweak,
        };
        for (id, platter) in platters {
            cluster.learn_entries(platter.base_term, &platter.log);
            let node = Node {
                raft: None,
                platter,
                pending: VecDeque::new(),
                unreported: None,
                log_reads: VecDeque::new(),
                to_apply: VecDeque::new(),
                offers: Vec::new(),
                stored: 0,
                reads: BTreeMap::new(),
                answers: BTreeMap::new(),
                watch: Watch::default(),
                seen_commit: 0,
                lives: 0,
            };
            cluster.nodes.insert(id, node);
            cluster.restart(id);
        }
        cluster
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub(super) fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of that id")
    }

    /// The core of a node that is up.
    pub(super) fn raft(&self, id: NodeId) -> &Raft {
        self.nodes[&id].raft.as_ref().expect("the node is up")
    }

    pub(super) fn is_up(&self, id: NodeId) -> bool {
        self.nodes[&id].raft.is_some()
    }

    /// The leader of the greatest term among the nodes that are up.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let rafts = self.nodes.values().filter_map(|n| n.raft.as_ref());
        let leads = rafts.filter(|r| r.role() == RoleName::Leader);
        leads.max_by_key(|r| r.term()).map(Raft::id)
    }

    // ---- steps ----

    /// One event at one node, and what follows from it at once.
    pub(super) fn on<R>(
        &mut self,
        id: NodeId,
        event: impl FnOnce(&mut Raft, u64) -> R,
    ) -> Option<R> {
        let now_us = self.now_us;
        let answer = event(self.node(id).raft.as_mut()?, now_us);
        self.observe(id);
        if !self.lazy {
            self.absorb(id);
        }
        Some(answer)
    }

    /// Takes a core's effects and gives them to its surroundings.
    pub(super) fn absorb(&mut self, id: NodeId) {
        let Some(raft) = self.node(id).raft.as_mut() else { return };
        let ready = raft.ready();
        self.observe(id);
        if let Some(persist) = ready.persist {
            if let Some(first) = persist.entries.first() {
                let before = self.raft(id).term_at(first.index - 1).expect("what is before");
                self.learn_entries(before, &persist.entries);
            }
            self.node(id).pending.push_back(persist);
        }
        for message in ready.messages {
            self.send(message);
        }
        let node = self.node(id);
        node.log_reads.extend(ready.from_log);
        node.to_apply.extend(ready.committed);
        node.offers.extend(ready.offer);
        for answer in ready.reads {
            let begun = node.reads.remove(&answer.id).expect("a read is answered once");
            if let Some(index) = answer.index {
                assert!(index >= begun, "read {} at {index}, begun at {begun}", answer.id);
            }
            node.answers.insert(answer.id, answer.index);
        }
    }

    fn send(&mut self, message: Message) {
        self.check_promise(&message);
        if !self.cuts.contains(&(message.from, message.to)) {
            self.net.push(message);
        }
    }

    /// Delivers one message, unless its link is cut or nobody is there.
    pub(super) fn deliver(&mut self, at: usize) {
        let message = self.net.remove(at);
        if !self.cuts.contains(&(message.from, message.to)) && self.nodes.contains_key(&message.to)
        {
            self.on(message.to, |raft, now| raft.step(message, now));
        }
    }

    /// Writes a node's oldest request to its platter, without saying so.
    pub(super) fn write_one(&mut self, id: NodeId) {
        let node = self.node(id);
        if let Some(persist) = node.pending.pop_front() {
            node.platter.write(&persist, usize::MAX);
            node.unreported = Some(persist.seq);
        }
    }

    /// Tells a core what is on its platter.
    pub(super) fn report(&mut self, id: NodeId) {
        if let Some(seq) = self.node(id).unreported.take() {
            self.on(id, |raft, now| raft.persisted(seq, now));
        }
    }

    /// Reads the log file for one AppendEntries, as the documentation of [`LogRead`] says.
    pub(super) fn read_log(&mut self, id: NodeId) {
        let Some(read) = self.node(id).log_reads.pop_front() else { return };
        let platter = &self.node(id).platter;
        // Another log by now, or one that has forgotten its front.
        let changed =
            platter.term_at(read.last) != Some(read.last_term) || read.first <= platter.base;
        let message = (!changed).then(|| {
            let last = read.last.min(read.first + LOG_READ_PIECE - 1);
            let mut message = read.message.clone();
            if let Body::AppendEntries { entries, .. } = &mut message.body {
                *entries = platter.read(read.first, last);
            }
            message
        });
        let told = EntriesRead::of(&read, message.as_ref());
        self.on(id, |raft, now| raft.entries_read(&told, now));
        message.into_iter().for_each(|message| self.send(message));
    }

    /// Applies one batch.
    pub(super) fn apply_one(&mut self, id: NodeId) {
        let Some(batch) = self.node(id).to_apply.pop_front() else { return };
        let (first, last) = (batch.first, batch.last);
        let found = match batch.entries.is_empty() {
            true => self.node(id).platter.read(first, last),
            false => batch.entries,
        };
        assert_eq!(first, self.raft(id).applied_index() + 1, "applied in order, without a gap");
        assert_eq!(found.len() as Index, last + 1 - first);
        for (e, index) in found.iter().zip(first..) {
            assert_eq!(e, &self.committed[index as usize - 1], "state machine safety");
        }
        self.on(id, |raft, _| raft.applied(last));
    }

    /// `id` forgets its log up to `through`, which is in its store.
    pub(super) fn compact(&mut self, id: NodeId, through: Index) {
        self.write_all(id);
        self.on(id, |raft, _| raft.compact(through));
        let base_term = self.raft(id).term_at(through).expect("the base has a term");
        let platter = &mut self.node(id).platter;
        platter.log.drain(..(through - platter.base) as usize);
        (platter.base, platter.base_term) = (through, base_term);
        platter.applied = platter.applied.max(through);
    }

    /// The store of `id` takes in a snapshot of what is committed up to `index`.
    pub(super) fn install(&mut self, id: NodeId, index: Index) -> bool {
        let term = self.committed[index as usize - 1].term;
        let configuration = Arc::clone(self.raft(id).configuration());
        let node = self.node(id);
        node.stored = node.stored.max(index);
        // The applier passes over what the snapshot holds.
        node.to_apply.retain(|batch| batch.last > index);
        if let Some(batch) = node.to_apply.front_mut().filter(|batch| batch.first <= index) {
            let gone = (index + 1 - batch.first) as usize;
            batch.entries.drain(..gone.min(batch.entries.len()));
            batch.first = index + 1;
        }
        let mark = SnapshotMark { index, term, configuration };
        self.on(id, |raft, now| raft.install(mark, now)).expect("the node is up")
    }

    /// Time passes at `id` alone, if it is due.
    pub(super) fn tick(&mut self, id: NodeId) {
        if self.is_up(id) && self.raft(id).next_tick_us() <= self.now_us {
            self.on(id, |raft, now| raft.tick(now));
        }
    }

    /// Power loss: of the requests under way the first `writes` reached the platter, and of the
    /// next one the first `entries` entries.
    pub(super) fn crash(&mut self, id: NodeId, writes: usize, entries: Option<usize>) {
        let node = self.node(id);
        for (at, persist) in std::mem::take(&mut node.pending).iter().enumerate() {
            if at < writes {
                node.platter.write(persist, usize::MAX);
            } else if at == writes
                && let Some(entries) = entries
            {
                node.platter.write(persist, entries);
            }
        }
        node.raft = None;
        node.unreported = None;
        node.log_reads.clear();
        node.to_apply.clear();
        node.reads.clear();
    }

    /// The node continues from what is on its platter.
    pub(super) fn restart(&mut self, id: NodeId) {
        let (seed, tweak, now_us) = (self.seed, self.tweak, self.now_us);
        let node = self.node(id);
        assert!(node.raft.is_none(), "only what is down starts");
        node.lives += 1;
        let mut options = Options::new(id, (seed << 20) ^ (id << 10) ^ node.lives);
        tweak(&mut options);
        node.raft = Some(Raft::new(options, node.platter.restored(), now_us));
        node.watch = Watch::default();
        node.seen_commit = node.platter.applied.max(node.platter.base);
        self.observe(id);
    }

    // ---- longer moves ----

    /// Delivers, writes and applies until nothing is left to do at this moment.
    pub(super) fn settle(&mut self) {
        for _ in 0..SETTLE_STEPS_MAX {
            let busy = |n: &Node| {
                !n.pending.is_empty()
                    || n.unreported.is_some()
                    || !n.log_reads.is_empty()
                    || !n.to_apply.is_empty()
            };
            if let Some(id) = self.ids().into_iter().find(|id| busy(&self.nodes[id])) {
                self.write_all(id);
                self.read_log(id);
                self.apply_one(id);
            } else if !self.net.is_empty() {
                self.deliver(0);
            } else {
                return;
            }
        }
        panic!("messages go round in circles: {:?}", self.net);
    }

    /// The disk of `id` completes everything it was asked for.
    pub(super) fn write_all(&mut self, id: NodeId) {
        while !self.node(id).pending.is_empty() {
            self.write_one(id);
        }
        self.report(id);
    }

    /// Everything runs without faults for so long.
    pub(super) fn run(&mut self, us: u64) {
        let end = self.now_us + us;
        loop {
            self.settle();
            let due = self.nodes.values().filter_map(|n| n.raft.as_ref()).map(Raft::next_tick_us);
            let Some(next) = due.min().filter(|&next| next <= end) else { break };
            self.now_us = self.now_us.max(next);
            for id in self.ids() {
                self.tick(id);
            }
        }
        self.now_us = end;
    }

    /// Lets `id` stand for election while nobody else's timer runs; it must win.
    pub(super) fn elect(&mut self, id: NodeId) {
        self.now_us = self.now_us.max(self.raft(id).next_tick_us()) + 2 * super::solo::TIMEOUT_US;
        self.tick(id);
        self.settle();
        assert_eq!(self.leader(), Some(id), "node {id} is elected");
    }

    /// Proposes a command at `id`.
    pub(super) fn propose(&mut self, id: NodeId, command: &str) -> Result<Index, NotProposed> {
        let command: Arc<[u8]> = Arc::from(command.as_bytes());
        let refused = NotProposed::NotLeader { leader: None };
        self.on(id, |raft, _| raft.propose([command])).unwrap_or(Err(refused))
    }

    /// Begins a read at `id`.
    pub(super) fn read(&mut self, id: NodeId) -> ReadId {
        self.next_read += 1;
        let (read, begun) = (self.next_read, self.committed.len() as Index);
        if self.is_up(id) {
            self.node(id).reads.insert(read, begun);
            self.on(id, |raft, _| raft.read(read));
        }
        read
    }

    /// Cuts every link between the two groups, both ways.
    pub(super) fn part(&mut self, some: &[NodeId], others: &[NodeId]) {
        for &a in some {
            for &b in others {
                self.cuts.extend([(a, b), (b, a)]);
            }
        }
    }

    /// `id` cannot reach anybody, nor be reached.
    pub(super) fn isolate(&mut self, id: NodeId) {
        let others: Vec<NodeId> = self.ids().into_iter().filter(|&o| o != id).collect();
        self.part(&[id], &others);
    }

    /// Terms along the log that `id` has on its platter.
    pub(super) fn terms(&self, id: NodeId) -> Vec<Term> {
        self.nodes[&id].platter.log.iter().map(|e| e.term).collect()
    }

    // ---- what must hold ----

    fn learn_entries(&mut self, mut before: Term, new: &[Entry]) {
        for e in new {
            let known = self
                .entries
                .entry((e.index, e.term))
                .or_insert_with(|| (before, e.payload.clone()));
            assert_eq!(known, &(before, e.payload.clone()), "log matching at {}", e.index);
            before = e.term;
        }
    }

    fn observe(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(raft) = &node.raft else { return };
        node.watch.observe(raft).unwrap_or_else(|broken| panic!("{broken}"));
        let durable = raft.durable_index();
        // Behind a snapshot that was just installed the log is not written yet; the store has it.
        let stored = durable <= node.stored;
        let on_disk = node.platter.term_at(durable) == raft.term_at(durable);
        assert!(stored || on_disk, "durable is on disk");
        for persist in &node.pending {
            let first = persist.entries.first().map_or(Index::MAX, |e| e.index);
            assert!(
                stored || first > durable,
                "durable {durable} is about to be written over at {first}"
            );
        }
        let node = &self.nodes[&id];
        let Some(raft) = &node.raft else { return };
        if raft.role() == RoleName::Leader {
            let before = self.leaders.insert(raft.term(), id);
            assert!(before.is_none_or(|b| b == id), "election safety in term {}", raft.term());
            // What was committed before its term; a late leader of an old term knows no better.
            for (e, &by) in self.committed.iter().zip(&self.committed_by) {
                let has = before.is_some() || by > raft.term() || e.index < raft.first_index();
                assert!(has || raft.term_at(e.index) == Some(e.term), "leader completeness");
            }
        }
        let (commit, term) = (raft.commit_index(), raft.term());
        let leads = raft.role() == RoleName::Leader;
        let configuration = Arc::clone(raft.configuration());
        for index in node.seen_commit + 1..=commit {
            let at = raft.term_at(index);
            if let Some(e) = self.committed.get(index as usize - 1) {
                if index < raft.first_index() {
                    continue;
                }
                assert_eq!(at, Some(e.term), "state machine safety at {index}");
                continue;
            }
            assert!(leads, "node {id} knows that {index} is committed before any leader does");
            assert_eq!(raft.term_at(commit), Some(term), "committed by an entry of the term");
            let held = |n: NodeId| self.nodes[&n].platter.term_at(index) == at;
            assert!(configuration.majority(held), "commit evidence for {index} of term {at:?}");
            for other in self.nodes.values().filter_map(|n| n.raft.as_ref()) {
                let later = other.role() == RoleName::Leader && other.term() > term;
                assert!(!later || other.term_at(index) == at, "leader completeness");
            }
            let at = at.expect("what is committed is in the log");
            let payload = self.entries[&(index, at)].1.clone();
            self.committed.push(Entry { index, term: at, payload });
            self.committed_by.push(term);
        }
        self.node(id).seen_commit = commit;
    }

    /// What a message promises is on its sender's platter and stays there.
    fn check_promise(&mut self, message: &Message) {
        let (from, term) = (message.from, message.term);
        let node = &self.nodes[&from];
        let hard = node.platter.hard;
        match &message.body {
            Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true } => return,
            Body::RequestVote { .. } => {
                assert_eq!(hard, HardState { term, vote: Some(from) }, "own vote is durable");
            }
            Body::VoteResponse { granted: true } => {
                assert_eq!(hard, HardState { term, vote: Some(message.to) }, "vote is durable");
                let vote = *self.votes.entry((from, term)).or_insert(message.to);
                assert_eq!(vote, message.to, "one vote per node and term");
            }
            Body::AppendResponse { result: AppendResult::Matched { index }, .. } => {
                let stored = *index <= node.stored;
                let held = if stored { Some(0) } else { node.platter.term_at(*index) };
                assert!(held.is_some(), "{index} is acknowledged and not on the platter");
                for persist in &node.pending {
                    let first = persist.entries.first().map_or(Index::MAX, |e| e.index);
                    assert!(
                        stored || first > *index,
                        "acknowledged {index} is about to be written over"
                    );
                }
                if let Some(leader) = &self.nodes[&message.to].raft
                    && (leader.role(), leader.term()) == (RoleName::Leader, term)
                    && *index >= leader.first_index()
                    && !stored
                {
                    assert_eq!(leader.term_at(*index), held, "acknowledged what the leader has");
                }
            }
            _ => {}
        }
        assert!(hard.term >= term, "a term is shown that could be forgotten");
    }
}

//! One core by itself: the test plays its peers and its disk by hand.

use crate::raft::invariants::Watch;
use crate::raft::*;
use std::collections::VecDeque;
use std::sync::Arc;

/// The election timeout of every core in tests.
pub(super) const TIMEOUT_US: u64 = 500_000;
/// Their time between heartbeats.
pub(super) const HEARTBEAT_US: u64 = 100_000;

/// Nodes `1..=n`, all voting.
pub(super) fn voters(n: u64) -> Arc<Configuration> {
    Arc::new(Configuration::of_voters(1, (1..=n).map(member).collect()))
}

/// The member of that id.
pub(super) fn member(id: NodeId) -> Member {
    Member { id, identity: id * 11, address: format!("127.0.0.1:{}", 7100 + id) }
}

/// The one entry of that index and term that tests know.
pub(super) fn entry(index: Index, term: Term) -> Entry {
    let bytes = format!("{term}.{index}").into_bytes();
    Entry { index, term, payload: Payload::Command(Arc::from(bytes)) }
}

/// Entries from `first` on with these terms.
pub(super) fn entries(first: Index, terms: &[Term]) -> Vec<Entry> {
    terms.iter().zip(first..).map(|(&term, index)| entry(index, term)).collect()
}

/// What is on a node's disk.
#[derive(Clone, Debug)]
pub(super) struct Platter {
    pub(super) hard: HardState,
    pub(super) base: Index,
    pub(super) base_term: Term,
    pub(super) log: Vec<Entry>,
    /// What the store keeps of its own progress.
    pub(super) applied: Index,
    pub(super) genesis: Arc<Configuration>,
}

impl Platter {
    /// An empty disk of a member of `genesis`.
    pub(super) fn new(genesis: Arc<Configuration>) -> Platter {
        let hard = HardState::default();
        Platter { hard, base: 0, base_term: 0, log: Vec::new(), applied: 0, genesis }
    }

    /// A disk whose log has these terms, last seen in `term`.
    pub(super) fn of_terms(genesis: Arc<Configuration>, term: Term, terms: &[Term]) -> Platter {
        let mut platter = Platter::new(genesis);
        platter.hard.term = term;
        platter.log = entries(1, terms);
        platter
    }

    pub(super) fn last(&self) -> Index {
        self.base + self.log.len() as Index
    }

    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base {
            return Some(self.base_term);
        }
        let at = index.checked_sub(self.base + 1)?;
        self.log.get(at as usize).map(|e| e.term)
    }

    /// Writes a request, or of its entries only the first `entries_max`.
    pub(super) fn write(&mut self, persist: &Persist, entries_max: usize) {
        if let Some(hard) = persist.hard_state {
            assert!(hard.term >= self.hard.term, "a durable term went back");
            self.hard = hard;
        }
        if let Some(mark) = &persist.reset {
            (self.base, self.base_term) = (mark.index, mark.term);
            self.applied = self.applied.max(mark.index);
            self.log.clear();
            self.genesis = Arc::clone(&mark.configuration);
        }
        for e in persist.entries.iter().take(entries_max) {
            assert!(e.index > self.base && e.index <= self.last() + 1, "a gap in the log");
            self.log.truncate((e.index - self.base - 1) as usize);
            self.log.push(e.clone());
        }
    }

    pub(super) fn read(&self, first: Index, last: Index) -> Vec<Entry> {
        let from = (first - self.base - 1) as usize;
        self.log[from..=(last - self.base - 1) as usize].to_vec()
    }

    /// What recovery finds.
    pub(super) fn restored(&self) -> Restored {
        let mut runs: Vec<(Index, Term)> = Vec::new();
        let mut configurations = vec![(self.base, Arc::clone(&self.genesis))];
        for e in &self.log {
            if runs.last().is_none_or(|run| run.1 != e.term) {
                runs.push((e.index, e.term));
            }
            if let Payload::Configuration(c) = &e.payload {
                configurations.push((e.index, Arc::clone(c)));
            }
        }
        let (base, base_term) = (self.base, self.base_term);
        let log = RestoredLog { base, base_term, runs, last: self.last(), configurations };
        Restored { hard_state: self.hard, log, applied: self.applied }
    }
}

/// One core, its disk, and whatever it has to say.
pub(super) struct Solo {
    pub(super) raft: Raft,
    pub(super) platter: Platter,
    pub(super) pending: VecDeque<Persist>,
    /// Writes are done at once; else the test completes them.
    pub(super) disk_is_fast: bool,
    pub(super) handed: Vec<Committed>,
    pub(super) answers: Vec<ReadAnswer>,
    pub(super) from_log: Vec<LogRead>,
    pub(super) offers: Vec<Offer>,
    pub(super) now_us: u64,
    out: Vec<Message>,
    watch: Watch,
}

impl Solo {
    /// Node 1 of a cluster of three with an empty disk.
    pub(super) fn new() -> Solo {
        Solo::on(Platter::new(voters(3)))
    }

    /// Node 1, continuing from a disk.
    pub(super) fn on(platter: Platter) -> Solo {
        Solo::with(platter, |_| {})
    }

    /// Node 1 with other options.
    pub(super) fn with(platter: Platter, tweak: impl FnOnce(&mut Options)) -> Solo {
        let mut options = Options::new(1, 7);
        tweak(&mut options);
        let raft = Raft::new(options, platter.restored(), 0);
        Solo {
            raft,
            platter,
            pending: VecDeque::new(),
            disk_is_fast: true,
            handed: Vec::new(),
            answers: Vec::new(),
            from_log: Vec::new(),
            offers: Vec::new(),
            now_us: 0,
            out: Vec::new(),
            watch: Watch::default(),
        }
    }

    /// Node 1 of three, which has won term `hard.term + 1` with the vote of node 2.
    pub(super) fn leader(platter: Platter) -> Solo {
        Solo::leader_with(platter, |_| {})
    }

    pub(super) fn leader_with(platter: Platter, tweak: impl FnOnce(&mut Options)) -> Solo {
        let mut solo = Solo::with(platter, tweak);
        solo.become_leader();
        solo
    }

    /// Lets the core win an election with the votes of everybody.
    pub(super) fn become_leader(&mut self) {
        self.expire();
        let term = self.raft.term() + 1;
        let others: Vec<NodeId> =
            self.raft.configuration().members.iter().map(|m| m.id).filter(|&id| id != 1).collect();
        for &id in &others {
            self.step(id, term, Body::PreVoteResponse { granted: true });
        }
        for &id in &others {
            self.step(id, term, Body::VoteResponse { granted: true });
        }
        assert_eq!((self.raft.role(), self.raft.term()), (RoleName::Leader, term));
        self.take();
    }

    /// One event, and what follows from it.
    pub(super) fn event<R>(&mut self, event: impl FnOnce(&mut Raft, u64) -> R) -> R {
        let answer = event(&mut self.raft, self.now_us);
        self.settle();
        answer
    }

    /// A message from a peer; answers what the core sends in consequence.
    pub(super) fn step(&mut self, from: NodeId, term: Term, body: Body) -> Vec<Message> {
        self.event(|raft, now| raft.step(Message { from, to: 1, term, body }, now));
        self.take()
    }

    /// Time passes; the core is ticked when that is due.
    pub(super) fn pass(&mut self, us: u64) {
        let end = self.now_us + us;
        while self.raft.next_tick_us() <= end {
            self.now_us = self.now_us.max(self.raft.next_tick_us());
            self.event(|raft, now| raft.tick(now));
        }
        self.now_us = end;
    }

    /// Lets the election timer run out.
    pub(super) fn expire(&mut self) {
        self.now_us = self.now_us.max(self.raft.next_tick_us());
        self.event(|raft, now| raft.tick(now));
    }

    /// The disk completes its oldest request.
    pub(super) fn write_one(&mut self) {
        let persist = self.pending.pop_front().expect("something to write");
        self.platter.write(&persist, usize::MAX);
        self.event(|raft, now| raft.persisted(persist.seq, now));
    }

    /// What was sent since the last call.
    pub(super) fn take(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.out)
    }

    fn settle(&mut self) {
        loop {
            self.watch.observe(&self.raft).unwrap_or_else(|broken| panic!("{broken}"));
            let ready = self.raft.ready();
            self.watch.observe(&self.raft).unwrap_or_else(|broken| panic!("{broken}"));
            self.pending.extend(ready.persist);
            self.out.extend(ready.messages);
            self.from_log.extend(ready.from_log);
            self.offers.extend(ready.offer);
            self.answers.extend(ready.reads);
            if let Some(committed) = ready.committed {
                self.raft.applied(committed.last);
                self.handed.push(committed);
                continue;
            }
            match self.pending.pop_front() {
                Some(persist) if self.disk_is_fast => {
                    self.platter.write(&persist, usize::MAX);
                    self.raft.persisted(persist.seq, self.now_us);
                }
                Some(persist) => {
                    self.pending.push_front(persist);
                    return;
                }
                None => return,
            }
        }
    }
}

/// Entries that continue a log after `(prev_index, prev_term)`.
pub(super) fn append(prev: (Index, Term), terms: &[Term], commit: Index) -> Body {
    let (prev_index, prev_term) = prev;
    Body::AppendEntries {
        prev_index,
        prev_term,
        commit,
        round: 0,
        entries: entries(prev_index + 1, terms),
    }
}

/// A heartbeat that names the entry of that index and term as committed.
pub(super) fn heartbeat(commit: Index, commit_term: Term) -> Body {
    Body::Heartbeat { commit, commit_term, round: 0 }
}

/// What a follower says when it has everything up to `index`.
pub(super) fn matched(index: Index) -> Body {
    Body::AppendResponse { result: AppendResult::Matched { index }, round: 0 }
}

/// The bodies of messages.
pub(super) fn bodies(messages: &[Message]) -> Vec<&Body> {
    messages.iter().map(|m| &m.body).collect()
}

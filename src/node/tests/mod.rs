//! The components of a node driven by hand: several replicas with real logs on disks in memory,
//! and everything between them in queues that a test holds back, loses or delivers.
//!
//! After every step the harness checks what must hold in every schedule: no request is answered
//! twice, and no read is released before the node has applied what was committed anywhere when the
//! read began.

mod admin;
mod alone;
mod forwards;
mod holds;
mod life;
mod members;
mod reads;
mod restore;
mod schedule;
pub(crate) mod snapshot_transfer;
mod startup;
mod verify;
mod writes;

use super::link::read_entries;
use super::*;
use crate::kv::{Command, Limits, Machine, MemoryStore, Op, Outcome, Write, encode_command};
use crate::raft::{
    Configuration, Index, Member, Message, NodeId, Options, Persist, Raft, Restored, RestoredLog,
    RoleName,
};
use crate::wal::testdisk::TestDisk;
use crate::wal::{self, Wal};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

/// A client is the number of its node; its requests have numbers of their own.
type Client = NodeId;

/// Far away, but within what a test lets pass when it waits for everything.
const SOON_US: u64 = 2_000_000;
const ELECTION_US: u64 = 500_000;
/// Bound of every replica unless a test says otherwise: a few of the test's writes.
const INFLIGHT_BYTES: usize = 100_000;

/// What is between two nodes.
#[derive(Clone, Debug)]
enum Packet {
    Message(Message),
    Forward(Forward),
    Answer(u64, Verdict),
    Admin(AdminForward),
    AdminAnswer(u64, Result<NodeId, ChangeRefused>),
}

struct Node {
    replica: Replica<Client>,
    wal: Wal,
    disk: TestDisk,
    applier: Applier<MemoryStore, Client>,
    persists: VecDeque<Persist>,
    /// The log writer, or the applier, stands still.
    disk_held: bool,
    applier_held: bool,
    configurations: Vec<Arc<Configuration>>,
}

struct Cluster {
    nodes: BTreeMap<NodeId, Node>,
    net: VecDeque<(NodeId, NodeId, Packet)>,
    /// Links that lose everything, and links whose packets wait: (from, to).
    cuts: BTreeSet<(NodeId, NodeId)>,
    held: BTreeSet<(NodeId, NodeId)>,
    now_us: u64,
    asked: BTreeMap<u64, (NodeId, Index)>,
    answers: BTreeMap<u64, Answer>,
    next_request: u64,
    lives: u64,
    inflight_bytes_max: usize,
    /// What the flags of a node allow, where they are not the default.
    limits: BTreeMap<NodeId, Limits>,
    /// Members of the beginning.
    founders: u64,
}

fn put(key: &str, value: &str) -> Arc<[u8]> {
    let op = Op::Put { key: key.into(), value: value.into() };
    let mut bytes = Vec::new();
    encode_command(&Command::Write(Write { ops: vec![op], ..Write::default() }), &mut bytes);
    Arc::from(bytes)
}

fn identity_of(id: NodeId) -> u64 {
    id * 1000
}

impl Cluster {
    /// Nodes 1 to `count`, named by address only, as `--peers` does.
    fn new(count: u64) -> Cluster {
        Cluster::with_inflight(count, INFLIGHT_BYTES)
    }

    fn with_inflight(count: u64, inflight_bytes_max: usize) -> Cluster {
        let mut cluster = Cluster {
            nodes: BTreeMap::new(),
            net: VecDeque::new(),
            cuts: BTreeSet::new(),
            held: BTreeSet::new(),
            now_us: 1_000_000,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_request: 1,
            lives: 0,
            inflight_bytes_max,
            limits: BTreeMap::new(),
            founders: count,
        };
        for id in 1..=count {
            cluster.start(id, count, TestDisk::default());
        }
        cluster
    }

    /// A cluster with a leader that knows everything, and whose members know each other.
    fn led(count: u64) -> (Cluster, NodeId) {
        let mut cluster = Cluster::new(count);
        for id in 1..=count {
            for node in cluster.followers(id) {
                cluster.input(id, Input::PeerConnected { node, identity: identity_of(node) });
            }
        }
        let leader = cluster.elect();
        cluster.advance(200_000);
        (cluster, leader)
    }

    fn start(&mut self, id: NodeId, count: u64, disk: TestDisk) {
        self.lives += 1;
        let options = wal::Options { segment_bytes: 1 << 20, identity: id, must_exist: false };
        let (wal, recovered) =
            Wal::open(disk.shared(), &PathBuf::from(format!("/{id}/log")), options).unwrap();
        let members = (1..=count)
            .map(|id| Member { id, identity: 0, address: format!("host:{id}") })
            .collect();
        let mut configurations = vec![(0, Arc::new(Configuration::of_voters(7, members)))];
        configurations.extend(recovered.configurations.iter().cloned());
        let log = RestoredLog {
            base: recovered.first_index - 1,
            base_term: recovered.prev_term,
            runs: recovered.terms.clone(),
            last: recovered.last_index,
            configurations,
        };
        let restored = Restored { hard_state: recovered.hard_state, log, applied: 0 };
        let options = Options {
            election_timeout_us: ELECTION_US,
            append_bytes_max: 4096,
            ..Options::new(id, self.lives * 0x9e37_79b9)
        };
        let replica_options = ReplicaOptions {
            address: format!("host:{id}"),
            wal_limit_bytes: 1 << 40,
            inflight_bytes_max: self.inflight_bytes_max,
            limits: self.limits.get(&id).copied().unwrap_or_default(),
            batch_bytes_max: 4096,
            identity: identity_of(id),
            members_max: MEMBERS_MAX,
        };
        let raft = Raft::new(options, restored, self.now_us);
        let machine = Machine::open(MemoryStore::default()).unwrap();
        let first = Configuration::default();
        let node = Node {
            replica: Replica::new(raft, replica_options),
            applier: Applier::new(machine, wal.reader(), first),
            wal,
            disk,
            persists: VecDeque::new(),
            disk_held: false,
            applier_held: false,
            configurations: Vec::new(),
        };
        self.nodes.insert(id, node);
    }

    /// Kills a node and starts it again from what its log holds. Its clients are gone.
    fn restart(&mut self, id: NodeId) {
        let count = self.founders;
        let node = self.nodes.remove(&id).unwrap();
        let disk = node.disk.clone();
        drop(node);
        self.net.retain(|(from, to, _)| *from != id && *to != id);
        self.asked.retain(|_, (at, _)| *at != id);
        self.start(id, count, disk);
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    fn replica(&self, id: NodeId) -> &Replica<Client> {
        &self.nodes[&id].replica
    }

    // ---- one step ----

    /// Something happens at a node; its effects are taken at once.
    fn input(&mut self, id: NodeId, input: Input<Client>) {
        let now_us = self.now_us;
        self.node(id).replica.handle(input, now_us);
        self.take(id);
    }

    fn take(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let effects = node.replica.effects();
        node.persists.extend(effects.persist);
        effects.apply.into_iter().for_each(|apply| node.applier.handle(ApplyTask::Apply(apply)));
        node.configurations.extend(effects.configuration);
        let mut told_of_reads = Vec::new();
        for read in effects.from_log {
            let to = read.message.to;
            let (made, told) = read_entries(&read, &node.wal.reader());
            told_of_reads.push(told);
            if let Ok(Some(message)) = made {
                self.net.push_back((id, to, Packet::Message(message)));
            }
        }
        for message in effects.messages {
            self.net.push_back((id, message.to, Packet::Message(message)));
        }
        for (to, forward) in effects.forwards {
            self.net.push_back((id, to, Packet::Forward(forward)));
        }
        for (to, forward) in effects.admin {
            self.net.push_back((id, to, Packet::Admin(forward)));
        }
        self.answered(id, effects.answers);
        for told in told_of_reads {
            self.input(id, Input::EntriesRead(told));
        }
    }

    fn answered(&mut self, id: NodeId, answers: Vec<(ReplyTo<Client>, Answer)>) {
        for (reply_to, answer) in answers {
            match reply_to {
                ReplyTo::Client { client, request } => {
                    let Some(&(asked_at, committed)) = self.asked.get(&request) else { continue };
                    assert_eq!((client, id), (asked_at, id), "answered where it was asked");
                    if answer == Answer::Read(Ok(())) {
                        let applied = self.nodes[&id].applier.machine().applied();
                        assert!(applied >= committed, "read {request} is released too early");
                    }
                    let before = self.answers.insert(request, answer);
                    assert!(before.is_none(), "request {request} is answered twice");
                }
                ReplyTo::Peer { node, id: number } => {
                    let packet = match answer {
                        Answer::Write(verdict) => Packet::Answer(number, verdict),
                        Answer::Transfer(result) | Answer::Changed(result) => {
                            Packet::AdminAnswer(number, result)
                        }
                        other => panic!("peers ask for nothing like {other:?}"),
                    };
                    self.net.push_back((id, node, packet));
                }
            }
        }
    }

    /// The log writer does all it was asked for, as one batch.
    fn persist(&mut self, id: NodeId) -> bool {
        let node = self.node(id);
        let batch: Vec<Persist> = node.persists.drain(..).collect();
        if batch.is_empty() {
            return false;
        }
        let seq = node.wal.write(&batch).unwrap().seq;
        self.input(id, Input::Persisted { seq, log_bytes: 0 });
        true
    }

    /// The applier does one piece of work.
    fn apply(&mut self, id: NodeId) -> bool {
        let node = self.node(id);
        let Some(effects) = node.applier.step().unwrap() else { return false };
        self.answered(id, effects.answers);
        let index = effects.applied.unwrap().index;
        self.input(id, Input::Applied { index, flushed: 0 });
        true
    }

    /// Delivers the oldest packet of a link that is not held.
    fn deliver(&mut self) -> bool {
        let held = &self.held;
        let Some(at) = self.net.iter().position(|(from, to, _)| !held.contains(&(*from, *to)))
        else {
            return false;
        };
        let Some((from, to, packet)) = self.net.remove(at) else { return false };
        if !self.cuts.contains(&(from, to)) && self.nodes.contains_key(&to) {
            self.input(
                to,
                match packet {
                    Packet::Message(message) => Input::Peer(message),
                    Packet::Forward(forward) => Input::Forwarded { from, forward },
                    Packet::Answer(id, verdict) => Input::ForwardAnswered { from, id, verdict },
                    Packet::Admin(forward) => Input::AdminForwarded { from, forward },
                    Packet::AdminAnswer(id, result) => Input::AdminAnswered { from, id, result },
                },
            );
        }
        true
    }

    /// Goes on until nothing is left to do but wait.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut busy = self.deliver();
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                busy |= !self.nodes[&id].disk_held && self.persist(id);
                busy |= !self.nodes[&id].applier_held && self.apply(id);
            }
            if !busy {
                return;
            }
        }
        panic!("the nodes talk without end");
    }

    /// Lets so much time pass, with every tick in its place.
    fn advance(&mut self, us: u64) {
        let end = self.now_us + us;
        loop {
            self.settle();
            let next = self.nodes.values().map(|n| n.replica.next_tick_us()).min().unwrap_or(end);
            if next > end {
                break;
            }
            self.now_us = self.now_us.max(next);
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                if self.nodes[&id].replica.next_tick_us() <= self.now_us {
                    let now_us = self.now_us;
                    self.node(id).replica.tick(now_us);
                    self.take(id);
                }
            }
        }
        self.now_us = end;
    }

    /// Waits for a leader that knows what is committed.
    fn elect(&mut self) -> NodeId {
        for _ in 0..200 {
            self.advance(50_000);
            if let Some(leader) = self.leader() {
                return leader;
            }
        }
        panic!("no leader");
    }

    /// The leader of the greatest term.
    fn leader(&self) -> Option<NodeId> {
        let leads = |n: &&Node| n.replica.raft().leads_and_knows();
        let leaders = self.nodes.values().filter(leads).map(|n| n.replica.raft());
        leaders.max_by_key(|raft| raft.term()).map(Raft::id)
    }

    fn followers(&self, leader: NodeId) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|&id| id != leader).collect()
    }

    // ---- clients ----

    fn ask_all(&mut self, id: NodeId, whats: Vec<Request>, wait_us: u64) -> Vec<u64> {
        let committed = self.nodes.values().map(|n| n.replica.raft().commit_index()).max();
        let deadline_us = self.now_us + wait_us;
        let mut requests = Vec::new();
        for what in whats {
            let request = self.next_request;
            self.next_request += 1;
            self.asked.insert(request, (id, committed.unwrap_or(0)));
            requests.push((request, deadline_us, what));
        }
        let numbers = requests.iter().map(|r| r.0).collect();
        self.input(id, Input::Client { client: id, requests });
        numbers
    }

    fn ask(&mut self, id: NodeId, what: Request, wait_us: u64) -> u64 {
        self.ask_all(id, vec![what], wait_us)[0]
    }

    fn write(&mut self, id: NodeId, key: &str, wait_us: u64) -> u64 {
        self.ask(id, Request::Write(put(key, "v")), wait_us)
    }

    fn read(&mut self, id: NodeId, wait_us: u64) -> u64 {
        self.ask(id, Request::Read, wait_us)
    }

    fn answer(&self, request: u64) -> Option<&Answer> {
        self.answers.get(&request)
    }

    /// The revision of a write that must have been applied.
    fn revision(&self, request: u64) -> Index {
        match self.answer(request) {
            Some(Answer::Write(Verdict::Applied(Outcome::Done { revision, .. }))) => *revision,
            other => panic!("write {request} is not done: {other:?}"),
        }
    }

    fn refusal(&self, request: u64) -> Refusal {
        match self.answer(request) {
            Some(Answer::Write(Verdict::NotApplied(refusal))) => *refusal,
            other => panic!("write {request} is not refused: {other:?}"),
        }
    }

    fn is_unknown(&self, request: u64) -> bool {
        matches!(self.answer(request), Some(Answer::Write(Verdict::Unknown(_))))
    }

    fn inflight(&self, id: NodeId) -> usize {
        self.replica(id).inflight_bytes()
    }

    // ---- faults ----

    /// Nothing goes to or from a node.
    fn isolate(&mut self, id: NodeId) {
        for other in self.followers(id) {
            self.cuts.extend([(id, other), (other, id)]);
        }
    }

    fn heal(&mut self) {
        self.cuts.clear();
        self.held.clear();
    }

    /// Nothing that a node says leaves it, for now.
    fn hold_from(&mut self, id: NodeId) {
        let links: Vec<_> = self.followers(id).into_iter().map(|other| (id, other)).collect();
        self.held.extend(links);
    }

    /// Another node is made leader, and has committed.
    fn hand_over(&mut self, to: NodeId) {
        let from = self.leader().unwrap();
        self.ask(from, Request::Transfer(Some(to)), SOON_US);
        for _ in 0..100 {
            self.advance(10_000);
            if self.leader() == Some(to) {
                return;
            }
        }
        panic!("leadership does not pass to node {to}");
    }
}

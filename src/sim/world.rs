//! The simulated cluster: a clock, a queue of events, and one step at a time.
//!
//! Every component of every node is an actor. What one sends another arrives after a delay drawn
//! from the seed, so that completions overtake one another as threads would let them. One event is
//! handled at a time; after it every invariant is checked.

use super::checks::{Cluster, Platter, Violation, violated};
use super::clients::SimClient;
use super::dice::Dice;
use super::direct::{DIRECT, DirectRequests};
use super::disk::Trouble;
use super::faults::Fault;
use super::impostor::{IMPOSTOR, Impostor};
use super::late::mistakable;
use super::ledger::Ledger;
use super::lines::{LineClient, LineEvent};
use super::links::LinkEvent;
use super::network::Network;
use super::node::{ClientId, SimNode, Up};
use super::operator::{Changing, OPERATOR, Operator};
use super::recording::Recordings;
use super::serving::ServedEvent;
use super::snapshots::TransferEvent;
use super::store::empty_model;
use super::trace::{Step, Trace};
use super::traffic::ClientEvent;
use crate::kv::{Machine, MemoryStore, SessionBounds};
use crate::node::{
    Answer, ApplyEffects, ApplyTask, ClusterView, Input, LogEvent, MEMBERS_MAX, NodeEffects,
    Outgoing, PeerEvent, ReceiverEvent, Refusal, ReplyTo, Request, Verdict, cluster_of,
};
use crate::raft::{Configuration, Index, Member, NodeId, Payload, RoleName};
use crate::wire::handshake::Lane;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    Wake,
    Write,
    Written { seq: u64, log_bytes: u64 },
    Prepare,
    Apply,
    Applied(ApplyEffects<ClientId>),
    Store,
    Transfer(TransferEvent),
    Link(LinkEvent),
    Input(Input<ClientId>),
    Answer { client: ClientId, request: u64, answer: Box<Answer> },
    Client { client: u64, event: ClientEvent },
    Line { client: usize, event: LineEvent },
    Served { connection: ClientId, event: ServedEvent },
    Changing(Changing),
    Start,
    Resume,
    Fault,
    Impostor,
    Guests,
}

/// When, at which node (0: the world) and in which of its lives; equal times in order of arrival.
struct Scheduled {
    at_us: u64,
    order: u64,
    node: NodeId,
    life: u64,
    /// Elsewhere, since the queue moves its items about.
    event: Box<Event>,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        (self.at_us, self.order) == (other.at_us, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// A node looks into its inbox at least so often while a request lies there, wanted or not.
const QUEUED_US_MAX: u64 = 1_000_000;

/// The life of an event that concerns no process.
pub(super) const ANY_LIFE: u64 = u64::MAX;

/// The simulated cluster.
pub struct World {
    pub(super) now_us: u64,
    pub(super) dice: Dice,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    pub(super) nodes: BTreeMap<NodeId, SimNode>,
    pub(super) platters: BTreeMap<NodeId, Platter>,
    pub(super) network: Network,
    pub(super) clients: Vec<SimClient>,
    /// Clients that speak the text dialect.
    pub(super) lines: Vec<LineClient>,
    /// Who changes the members.
    pub(super) operator: Operator,
    /// The members that the cluster is formed of.
    pub(super) first: Vec<Member>,
    pub(super) cluster: Cluster,
    pub(super) trace: Trace,
    /// Recordings of the nodes, when somebody wants them.
    pub(super) recordings: Option<Recordings>,
    /// How often each thing happened.
    pub(super) counters: BTreeMap<&'static str, u64>,
    pub(super) fingerprints: BTreeMap<Index, u64>,
    /// The state machine over the map in memory, which every store must equal.
    pub(super) model: Machine<MemoryStore>,
    /// Connections of clients so far: each has a number of its own.
    pub(super) connections: ClientId,
    /// What the cluster has room for.
    pub(super) bounds: ClusterBounds,
    /// What the log says of every key at every index.
    pub(super) ledger: Ledger,
    /// A node that stopped for want of space, and where.
    pub(super) ended_by_full_disk: Option<(NodeId, &'static str)>,
    /// Requests without a client.
    pub(super) direct: DirectRequests,
    /// Mean pause of a client between calls.
    pub(super) think_us: u64,
    /// Until then clients hardly pause.
    pub(super) rush_until_us: u64,
    /// Clients read only, and begin nothing new once they have.
    pub(super) quiet: bool,
    /// An event of the fault plan is due.
    pub(super) fault_due: bool,
    /// The members' secret, once a member has sealed it.
    pub(super) sealed: Option<[u8; 32]>,
    /// Who is no member and says that it is one.
    pub(super) impostor: Impostor,
}

/// Bounds of the cluster, the same at every node. Production has room for thousands of sessions and for more members
/// than run here, and would never come to its bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClusterBounds {
    pub(super) sessions: SessionBounds,
    pub(super) members: usize,
    /// Clients of the run: a node has a place for each.
    pub(super) visitors: usize,
}

impl ClusterBounds {
    fn new(nodes: u64, dice: &mut Dice) -> ClusterBounds {
        let standard = SessionBounds::STANDARD;
        let sessions = SessionBounds {
            sessions: *dice.pick(&[1, 2, 3, 5, standard.sessions]),
            released_entries: *dice.pick(&[0, 2, 5, 20]),
            held_entries: *dice.pick(&[0, 3, 10, 40]),
            results: *dice.pick(&[2, 4, standard.results]),
            session_bytes: *dice.pick(&[150, standard.session_bytes, standard.session_bytes]),
            ..standard
        };
        let more = *dice.pick(&[1, 2, 3, MEMBERS_MAX]);
        ClusterBounds { sessions, members: nodes as usize + more, visitors: 0 }
    }
}

impl World {
    /// A cluster of that many nodes that were never started, and their clients.
    pub fn new(nodes: u64, clients: u64, keys: u64, print: bool, mut dice: Dice) -> World {
        let mut bounds = ClusterBounds::new(nodes, &mut dice.split());
        let member = |id| Member { id, identity: 0, address: format!("node-{id}:1") };
        let members: Vec<Member> = (1..=nodes).map(member).collect();
        let node = |id, dice: &mut Dice| {
            let address = format!("node-{id}:1");
            (id, SimNode::new(id, 0, address, dice.split()))
        };
        // A client is given some of the addresses.
        let lines = dice.below(3);
        bounds.visitors = (clients + lines) as usize;
        let known = dice.between(1, nodes) as usize;
        let known: Vec<String> = members.iter().map(|m| m.address.clone()).take(known).collect();
        let mut world = World {
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            nodes: (1..=nodes).map(|id| node(id, &mut dice)).collect(),
            platters: (1..=nodes).map(|id| (id, Platter::default())).collect(),
            network: Network::new(dice.split()),
            clients: (0..clients)
                .map(|id| SimClient::new(id, keys, &known, dice.split()))
                .collect(),
            lines: (0..lines).map(|n| LineClient::new(n, keys, dice.split())).collect(),
            operator: Operator::new(nodes),
            first: members.clone(),
            cluster: Cluster::begin(Configuration::of_voters(
                cluster_of(&members, None),
                members.clone(),
            )),
            trace: Trace::new(print),
            recordings: None,
            counters: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            model: empty_model(bounds.sessions),
            connections: 0,
            ledger: Ledger::new(bounds.sessions),
            bounds,
            ended_by_full_disk: None,
            direct: DirectRequests::default(),
            think_us: 400_000,
            rush_until_us: 0,
            quiet: false,
            fault_due: false,
            sealed: None,
            impostor: Impostor::new(&mut dice),
            dice,
        };
        world.cluster.members_max = Some(world.bounds.members);
        for id in 1..=nodes {
            let delay = world.dice.below(300_000);
            world.schedule(delay, id, ANY_LIFE, Event::Start);
        }
        for client in 0..world.lines.len() {
            world.line_in(1_000_000, client, LineEvent::Acts);
        }
        world.schedule(1_000_000, 0, ANY_LIFE, Event::Impostor);
        world.schedule(1_500_000, 0, ANY_LIFE, Event::Guests);
        world.keep_one_away();
        for client in 0..clients {
            let event = ClientEvent::Acts { turn: 0 };
            world.schedule(500_000, 0, ANY_LIFE, Event::Client { client, event });
        }
        world
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    pub(super) fn note(&mut self, node: NodeId, what: &'static str, words: [u64; 4]) {
        self.trace.step(Step { time_us: self.now_us, node, what, words });
    }

    pub(super) fn schedule(&mut self, delay_us: u64, node: NodeId, life: u64, event: Event) {
        self.order += 1;
        let at_us = self.now_us + delay_us;
        let order = self.order;
        let event = Box::new(event);
        self.queue.push(Reverse(Scheduled { at_us, order, node, life, event }));
    }

    /// The fault plan wants to be asked then.
    pub(super) fn schedule_fault(&mut self, delay_us: u64) {
        self.schedule(delay_us, 0, ANY_LIFE, Event::Fault);
    }

    /// A delay as between two threads: short, now and then long.
    pub(super) fn hop_us(&mut self) -> u64 {
        if self.dice.chance(1, 400) {
            self.dice.log_between(1_000, 60_000)
        } else {
            self.dice.between(2, 60)
        }
    }

    /// Puts an input into a replica's inbox, and wakes it if that is worth it.
    pub(super) fn input(&mut self, node: NodeId, input: Input<ClientId>) {
        let hop_us = self.hop_us();
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let (life, at_us) = (n.life, self.now_us + hop_us);
        let Some(up) = &mut n.up else { return };
        // News of the applier may wait until somebody wants them.
        if !matches!(input, Input::Applied { .. }) {
            up.queued_at_us.get_or_insert(self.now_us);
        }
        if up.inbox.push(input) {
            up.woken = true;
            self.wake_at(node, life, at_us);
        } else if up.inbox.is_asleep() {
            self.count("queued without a wake-up");
        }
    }

    /// What a node would act on at once is not in its inbox without a wake-up on its way, and nothing that
    /// somebody waits for stays there for long.
    fn check_wake_up(&self, node: NodeId) -> Result<(), Violation> {
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        let Some(up) = n.up.as_ref().filter(|_| n.paused_until_us <= self.now_us) else {
            return Ok(());
        };
        let wanted = up.node.wake_interest();
        let missed = |input: &Input<ClientId>| match input {
            Input::Client { requests, .. } => requests.iter().any(|(_, _, what)| {
                if matches!(what, Request::Write(_)) { wanted.writes } else { wanted.reads }
            }),
            Input::Rests { .. } => false,
            _ => true,
        };
        if !up.woken && up.inbox.iter().any(missed) {
            return violated("no wake-up is lost", format!("node {node}: {wanted:?}"));
        }
        // A process that was paused has not looked yet.
        let overdue = up.wakes_at_us.is_some_and(|at_us| at_us <= self.now_us);
        let late = up.queued_at_us.filter(|at_us| self.now_us > at_us + QUEUED_US_MAX && !overdue);
        if let Some(at_us) = late {
            return violated("a request is taken in time", format!("node {node}: of {at_us}"));
        }
        Ok(())
    }

    pub(super) fn wake_at(&mut self, node: NodeId, life: u64, at_us: u64) {
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return };
        if up.wakes_at_us.is_some_and(|at| at <= at_us) {
            return;
        }
        up.wakes_at_us = Some(at_us);
        // A timer that is due earlier than this looks again by itself.
        if up.wakes_queued_us.last().is_none_or(|&at| at > at_us) {
            up.wakes_queued_us.push(at_us);
            let delay_us = at_us.saturating_sub(self.now_us);
            self.schedule(delay_us, node, life, Event::Wake);
        }
    }

    /// Handles the next event that is due by then; false when there is none.
    pub fn step(&mut self, until_us: u64) -> Result<bool, Violation> {
        match self.queue.peek() {
            Some(Reverse(next)) if next.at_us <= until_us => {}
            _ => {
                self.now_us = self.now_us.max(until_us);
                return Ok(false);
            }
        }
        let Some(Reverse(Scheduled { at_us, node, life, event, .. })) = self.queue.pop() else {
            return Ok(false);
        };
        self.now_us = self.now_us.max(at_us);
        if life != ANY_LIFE {
            let Some(n) = self.nodes.get(&node) else { return Ok(true) };
            if n.life != life || n.up.is_none() {
                return Ok(true);
            }
            if n.paused_until_us > self.now_us {
                if let Some(n) = self.nodes.get_mut(&node) {
                    n.put_off.push((life, *event));
                }
                return Ok(true);
            }
        }
        self.handle(node, *event)?;
        self.check_wake_up(node)?;
        Ok(true)
    }

    fn handle(&mut self, node: NodeId, event: Event) -> Result<(), Violation> {
        match event {
            Event::Wake => self.wake(node),
            Event::Write => self.write(node),
            Event::Written { seq, log_bytes } => {
                self.written(node, seq, log_bytes);
                Ok(())
            }
            Event::Prepare => {
                self.prepare(node);
                Ok(())
            }
            Event::Apply => self.apply(node),
            Event::Applied(effects) => self.applied(node, effects),
            Event::Store => self.store(node),
            Event::Link(event) => self.on_link(node, event),
            Event::Changing(changing) => {
                self.changing(changing);
                Ok(())
            }
            Event::Transfer(event) => self.on_transfer(node, event),
            Event::Input(input) => {
                self.input(node, input);
                Ok(())
            }
            Event::Answer { client: OPERATOR, request, answer } => {
                self.change_answered(node, request, *answer)
            }
            Event::Answer { client, request, answer } => {
                self.served_answered(node, client, request, *answer)
            }
            Event::Client { client, event } => self.on_client(node, client, event),
            Event::Line { client, event } => self.on_line(client, event),
            Event::Served { connection, event } => self.on_served(node, connection, event),
            Event::Start => self.start(node),
            Event::Impostor => self.impostor_acts(),
            Event::Guests => self.guests_come(),
            Event::Resume => {
                self.resume(node);
                Ok(())
            }
            Event::Fault => {
                self.fault_due = true;
                Ok(())
            }
        }
    }

    // ---- the raft loop ----

    fn wake(&mut self, node: NodeId) -> Result<(), Violation> {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let (life, local_us) = (n.life, n.local_us(now_us));
        let Some(up) = &mut n.up else { return Ok(()) };
        up.wakes_queued_us.pop();
        if let Some(at_us) = up.wakes_at_us.take()
            && at_us > now_us
        {
            self.wake_at(node, life, at_us);
            return Ok(());
        }
        // Usually everything in the inbox, now and then a part of it.
        let all = up.inbox.len();
        let most =
            if self.dice.chance(1, 8) { self.dice.below(all as u64 + 1) as usize } else { all };
        let mut inputs = Vec::new();
        up.woken = false;
        up.inbox.take(most, &mut inputs);
        let take = inputs.len();
        up.queued_at_us = up.inbox.iter().next().map(|_| now_us);
        // Who has welcomed this process just now.
        let mut welcomed_by: Vec<NodeId> = Vec::new();
        for input in inputs {
            if let Input::Link(PeerEvent::Answered { connection, answered }) = &input
                && let Ok(welcome) = &answered.answer
                && let Some(dialed) = up.dialed.get(connection)
                && dialed.acceptor(&self.network) != Some(IMPOSTOR)
            {
                welcomed_by.push(welcome.node);
            }
            if let Input::Peer(message) = &input {
                up.heard_us.insert(message.from, now_us);
            }
            if let Input::Rests { until_us } = input {
                up.rests_until_us = until_us;
            }
            if let Input::Peer(message) = &input
                && let Some(what) = mistakable(up.node.replica().raft(), message)
            {
                *self.counters.entry(what).or_default() += 1;
            }
            if let Some(recordings) = &mut self.recordings {
                recordings.handled(node, local_us, &input, up.node.peers().secret());
            }
            up.node.handle(input, local_us);
        }
        up.node.tick(local_us);
        let effects = up.node.effects(local_us);
        if let Some(recordings) = &mut self.recordings {
            recordings.stepped(node, local_us, &effects);
        }
        let raft = up.node.replica().raft();
        let seen = [raft.term(), raft.commit_index(), raft.last_index(), take as u64];
        if let Err(detail) = up.watch.observe(raft) {
            return violated("core invariant", detail);
        }
        self.cluster.core_stepped(raft, life, &self.platters)?;
        let leads = raft.role() == RoleName::Leader;
        let elected = leads && !std::mem::replace(&mut up.led, leads);
        if elected {
            self.cluster.elected(raft, &self.platters)?;
        }
        up.led = leads;
        let now = up.node.replica().raft().configuration();
        if elected || up.led_by.as_ref() != Some(now) {
            (up.led_since_us, up.led_by) = (now_us, Some(Arc::clone(now)));
        }
        check_quorum(node, up, now_us)?;
        if let Some(persist) = &effects.replica.persist
            && leads
            && local_us < up.rests_until_us
            && persist.entries.iter().any(|entry| {
                entry.term == raft.term() && matches!(entry.payload, Payload::Command(_))
            })
        {
            let detail = format!("node {node} at {local_us} of {}", up.rests_until_us);
            return violated("nothing is proposed while the applier rests", detail);
        }
        if let Some(persist) = &effects.replica.persist {
            self.cluster.persists(raft, persist, &self.platters[&node])?;
        }
        self.cluster.configured(raft)?;
        let platter = &self.platters[&node];
        for (_, outgoing) in &effects.sends {
            if let Outgoing::Message(message) = outgoing {
                self.cluster.leaves(raft, message, platter)?;
            }
        }
        if let Some(difference) = &effects.replica.difference {
            return violated("replicas have equal digests", format!("{difference:?}"));
        }
        let joint = raft.configuration().is_joint();
        let leaves = joint && !raft.configuration().voters.contains(&node);
        self.check_old_copy(node, &welcomed_by)?;
        self.check_beliefs(node)?;
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let Some(up) = &mut n.up else { return Ok(()) };
        let next_local_us = up.node.next_tick_us();
        if !up.state.view().fits(&up.node) {
            up.state.publish(Arc::new(ClusterView::of(&up.node)));
        }
        up.woken = !up.inbox.sleep(up.node.wake_interest());
        let more = up.woken;
        let next_us = n.global_us(next_local_us).max(now_us + 1);
        self.note(node, "raft", seen);
        if elected && joint {
            self.count("joint configurations met by a new leader");
            if leaves {
                self.count("elections won by who is about to leave");
            }
        }
        self.count_changes()?;
        let next_us = if more { now_us + 20 } else { next_us };
        self.wake_at(node, life, next_us);
        self.act(node, effects)
    }

    fn act(&mut self, node: NodeId, effects: NodeEffects<ClientId>) -> Result<(), Violation> {
        let NodeEffects { links, replica: effects, sends } = effects;
        self.act_on_links(node, links)?;
        self.check_strangers(node)?;
        if effects.configuration.is_some() && !self.is_old_copy(node) {
            self.switch_off_old_copies();
        }
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else {
            return Ok(());
        };
        up.to_log.extend(effects.persist.map(LogEvent::Persist));
        up.to_log.extend(effects.compact.map(LogEvent::Compact));
        up.to_apply.extend(effects.repair.then_some(ApplyTask::Hold));
        up.to_apply.extend(effects.flush.then_some(ApplyTask::Flush));
        up.to_apply.extend(effects.apply.map(ApplyTask::Apply));
        self.start_writing(node);
        self.start_applying(node);
        for (connection, outgoing) in sends {
            self.send_on(node, connection, outgoing);
        }
        self.deliver(node, effects.answers)?;
        if let Some(offer) = effects.offer {
            self.tell_receiver(node, ReceiverEvent::Offered(offer))?;
        }
        Ok(())
    }

    pub(super) fn deliver(
        &mut self,
        node: NodeId,
        answers: Vec<(ReplyTo<ClientId>, Answer)>,
    ) -> Result<(), Violation> {
        let Some(life) = self.nodes.get(&node).map(|n| n.life) else { return Ok(()) };
        for (reply_to, answer) in answers {
            match (&answer, &reply_to) {
                (Answer::Write(Verdict::NotApplied(Refusal::DiskFull { .. })), _) => {
                    self.count("growth refused");
                }
                (
                    Answer::Write(Verdict::NotApplied(Refusal::TooLarge { .. })),
                    ReplyTo::Peer { .. },
                ) => self.count("too large for the leader, not for who forwarded it"),
                (Answer::Write(Verdict::NotApplied(Refusal::TooLarge { .. })), _) => {
                    self.count("too large");
                }
                _ => {}
            }
            match reply_to {
                ReplyTo::Client { client: DIRECT, request } => {
                    self.directly_answered(node, request, &answer)?;
                }
                ReplyTo::Client { client, request } => {
                    let delay_us = self.hop_us() + 50;
                    let answer = Box::new(answer);
                    self.schedule(delay_us, node, life, Event::Answer { client, request, answer });
                }
                ReplyTo::Peer { node: to, id } => {
                    let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
                    let connection = up.and_then(|up| up.node.peers().connection(to, Lane::Bulk));
                    let outgoing = Outgoing::answer(id, answer);
                    if let (Some(outgoing), Some(connection)) = (outgoing, connection) {
                        self.send_on(node, connection, outgoing);
                    }
                }
            }
        }
        Ok(())
    }

    // ---- the end ----

    /// The disk failed an operation: the power is gone, or the process stops by itself.
    pub(super) fn disk_failed(&mut self, node: NodeId, whose: &'static str) {
        let power = self.nodes[&node].disk.is_dark();
        if power {
            // A killed process leaves its writes to the system; a lost machine does not.
            let killed = self.dice.chance(1, 4);
            self.count(if killed { "killed within a write" } else { "power lost within a write" });
            self.stop(node, !killed);
        } else {
            let struck = self.nodes[&node].disk.last_struck();
            if matches!(struck, Some(Trouble::Full | Trouble::FullSync)) {
                let up = self.nodes[&node].up.as_ref();
                let since_us = up.and_then(|up| up.waits_since_us);
                // docs/operations.md, "A full disk": the log ends the node when it has waited in vain.
                if since_us.is_some_and(|since_us| self.now_us > since_us + LOG_WAITS_US) {
                    self.count("log waited for space in vain");
                } else {
                    self.ended_by_full_disk = Some((node, whose));
                }
            }
            self.count("stopped by a disk error");
            self.count(whose);
            let power_lost = self.dice.chance(1, 3);
            self.stop(node, power_lost);
        }
        let delay_us = self.dice.log_between(10_000, 3_000_000);
        self.schedule(delay_us, node, ANY_LIFE, Event::Start);
    }

    /// Whether some running node leads and knows what is committed.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let knows = |n: &SimNode| {
            n.up.as_ref().is_some_and(|up| up.node.replica().raft().leads_and_knows())
        };
        let leads = |n: &&SimNode| !(n.wiped || n.old_copy || n.cut_off) && knows(n);
        self.nodes.values().find(leads).map(|n| n.id)
    }

    /// The running node that leads the latest term.
    pub(super) fn newest_leader(&self) -> Option<NodeId> {
        let term = |n: &SimNode| {
            let raft = n.up.as_ref()?.node.replica().raft();
            (raft.role() == RoleName::Leader).then_some((raft.term(), n.id))
        };
        self.nodes.values().filter_map(term).max().map(|(_, id)| id)
    }

    /// Applies a fault.
    pub(super) fn fault(&mut self, fault: &Fault) -> Result<(), Violation> {
        self.note(fault.node(), fault.name(), fault.words());
        self.count(fault.name());
        fault.apply(self)
    }

    /// Starts a stopped node after that time.
    pub(super) fn start_in(&mut self, delay_us: u64, node: NodeId) {
        self.schedule(delay_us, node, ANY_LIFE, Event::Start);
    }
}

/// A log writer waits so long for space at least: two seconds, by a clock that runs fast.
const LOG_WAITS_US: u64 = 1_800_000;

/// A leader that has heard of no majority for so many election timeouts is none any more (thesis 6.2: within
/// one; its clock may be slow, and it looks with its heartbeats). Another configuration asks others.
const QUORUM_TIMEOUTS: u64 = 2;

fn check_quorum(node: NodeId, up: &Up, now_us: u64) -> Result<(), Violation> {
    let raft = up.node.replica().raft();
    let since_us = now_us.saturating_sub(QUORUM_TIMEOUTS * raft.options().election_timeout_us);
    if !up.led || up.led_since_us > since_us {
        return Ok(());
    }
    let heard = |id| id == node || up.heard_us.get(&id).is_some_and(|&at_us| at_us >= since_us);
    if raft.configuration().majority(heard) {
        return Ok(());
    }
    violated(
        "a leader without a majority steps down",
        format!(
            "node {node} since {}: {:?}, {:?}",
            up.led_since_us,
            up.heard_us,
            raft.configuration()
        ),
    )
}

//! The operator: a person who changes the members all the time, and the machines that join.
//!
//! What is done next, and when, the plans decide (`plans.rs`); here is whom it hits, and what
//! comes of the answers. A change is asked of some running node, which passes it on when another one
//! leads, and of another one when that came to nothing. A machine that joins asks with its identity until it is answered; then it begins with
//! an empty disk, and `node::Startup` makes the answer its identity (`startup.rs`).
//!
//! Nothing is begun that could leave a set of voters without a majority that can come back: the
//! operator knows which disks are lost ([`World::can_lose`]). Races remain, and a run knows when it
//! has lost one ([`World::is_hopeless`]).

use super::checks::{Platter, Violation, WENT_FIRST, can_serve, violated};
use super::node::{ClientId, SimNode};
use super::world::{ANY_LIFE, Event, World};
use crate::node::{Answer, Change, ChangeRefused, Input, Request};
use crate::raft::{Configuration, NodeId, NotProposed};
use std::collections::{BTreeMap, BTreeSet};

/// The operator as the components see it.
pub(super) const OPERATOR: ClientId = ClientId::MAX - 1;

/// Machines that are members or about to be.
const MEMBERS_MAX: usize = 7;
/// Times one change is asked for, and the pauses between, in microseconds.
const TRIES_MAX: u32 = 12;
const PAUSE_US: (u64, u64) = (20_000, 600_000);
/// What a change is to be answered within, and when a node that says nothing is given up.
const DEADLINE_US: u64 = 3_000_000;
const PATIENCE_US: u64 = 5_000_000;
/// Until then a request that nobody answered may still be carried out: the longest pause of a process
/// is shorter.
const FORGOTTEN_US: u64 = 9_000_000;

/// What the operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A machine asks to be taken in.
    Join,
    /// A machine is taken in that nobody has seen; perhaps it never comes.
    JoinUnseen,
    /// A learner is to vote at once.
    Promote,
    /// A member is removed.
    Remove,
    /// Whoever leads is removed.
    RemoveLeader,
    /// A machine is switched off, its node removed, and the machine switched on again.
    RemoveOff,
    /// A member that runs is replaced.
    Replace,
    /// A machine breaks and is replaced by one at its address.
    ReplaceInPlace,
    /// A node that cannot come back is replaced.
    ReplaceLost,
    /// A node that was removed is started again with its old disk.
    Knock,
    /// A node starts at another address.
    Move,
}

/// What the operator has to come back to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Changing {
    /// Ask, or ask again.
    Ask(u64),
    /// No answer came to so many questions.
    Lost(u64, u32),
    /// A machine asks to be taken in.
    Join(u64),
    /// A machine that was announced appears at this address.
    Appear(u64),
}

#[derive(Clone, Debug)]
struct Asked {
    change: Change,
    tries: u32,
    over: bool,
    last_us: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Operator {
    next: u64,
    asked: BTreeMap<u64, Asked>,
    /// Machines that ask to be taken in: identity and address.
    joiners: BTreeMap<u64, String>,
    addresses: u64,
    /// Ids that were to go, and those that were to vote: on demand.
    pub(super) to_remove: BTreeSet<NodeId>,
    pub(super) to_promote: BTreeSet<NodeId>,
}

impl Operator {
    /// For a cluster of so many first members.
    pub(super) fn new(nodes: u64) -> Operator {
        Operator {
            next: 0,
            asked: BTreeMap::new(),
            joiners: BTreeMap::new(),
            addresses: nodes,
            to_remove: BTreeSet::new(),
            to_promote: BTreeSet::new(),
        }
    }

    /// Whether nothing is open.
    pub(super) fn is_idle(&self) -> bool {
        self.joiners.is_empty() && self.asked.values().all(|asked| asked.over)
    }
}

fn address(number: u64) -> String {
    format!("node-{number}:1")
}

impl World {
    // ---- what can be lost ----

    /// Members that will never come back as they are now.
    fn lost(&self, configuration: &Configuration) -> Vec<NodeId> {
        let back = |n: &SimNode, address: &str| {
            let lost = n.gone || n.over || n.refuses || n.flipped || n.wiped || n.old_copy;
            !lost && n.address == address
        };
        let members = configuration.members.iter();
        let lost =
            |m: &&crate::raft::Member| !self.nodes.get(&m.id).is_some_and(|n| back(n, &m.address));
        members.filter(lost).map(|m| m.id).collect()
    }

    /// The same, and those that need somebody else to come back whole: their store is damaged.
    fn in_need(&self, configuration: &Configuration) -> Vec<NodeId> {
        let mut ids = self.lost(configuration);
        let members = configuration.members.iter().map(|m| m.id);
        ids.extend(members.filter(|id| self.nodes.get(id).is_some_and(SimNode::may_need_repair)));
        ids
    }

    /// Configurations that may be in force soon, whatever becomes of what is under way.
    fn futures(&self) -> Vec<Configuration> {
        let mut futures: Vec<Configuration> = self.cluster.possible();
        let open = self.operator.asked.values();
        let open = open.filter(|a| !a.over || a.last_us + FORGOTTEN_US > self.now_us);
        let open: Vec<&Change> = open.map(|a| &a.change).collect();
        for at in 0..futures.len() {
            let now = futures[at].clone();
            for change in &open {
                futures.extend(outcome(&now, change));
            }
        }
        for at in 0..futures.len() {
            let now = futures[at].clone();
            let lost = self.lost(&now);
            for learner in now.learners.iter().filter(|id| !lost.contains(id)) {
                futures.push(now.with_promoted(*learner));
            }
        }
        futures
    }

    /// Whether the cluster goes on in any case when that node never comes back.
    pub(super) fn can_lose(&self, node: NodeId) -> bool {
        self.futures().iter().all(|c| {
            let mut lost = self.in_need(c);
            lost.push(node);
            can_serve(c, &lost)
        })
    }

    fn can_change(&self, change: &Change) -> bool {
        self.futures()
            .iter()
            .filter_map(|now| outcome(now, change))
            .all(|next| can_serve(&next, &self.in_need(&next)))
    }

    /// Whether so many disks are lost that no majority can come back, or nobody has a store that is
    /// whole.
    pub(super) fn is_hopeless(&self) -> bool {
        self.cluster.possible().iter().any(|c| {
            let in_need = self.in_need(c);
            !can_serve(c, &self.lost(c)) || c.voters.iter().all(|id| in_need.contains(id))
        })
    }

    // ---- what is done ----

    /// Does it, if there is anybody to do it to.
    pub(super) fn operate(&mut self, what: Operation, at: u64) -> Result<(), Violation> {
        let Some(configuration) = self.cluster.configuration().cloned() else { return Ok(()) };
        let ids: Vec<NodeId> = configuration.members.iter().map(|m| m.id).collect();
        let id = ids[at as usize % ids.len()];
        let room = ids.len() + self.operator.joiners.len() < MEMBERS_MAX;
        let up = |id: NodeId| self.nodes.get(&id).is_some_and(|n| n.up.is_some());
        let force = at >> 32 & 3 == 0;
        match what {
            Operation::Join if room => {
                let at = self.new_address();
                self.appear(at);
            }
            Operation::JoinUnseen if room => {
                let number = self.new_address();
                self.ask(Change::Join { address: address(number), identity: 0 });
                if at & 1 == 0 {
                    let delay_us = self.dice.log_between(100_000, 4_000_000);
                    let appear = Event::Changing(Changing::Appear(number));
                    self.schedule(delay_us, 0, ANY_LIFE, appear);
                }
            }
            Operation::Promote => {
                let learners: Vec<NodeId> = configuration.learners.iter().copied().collect();
                let id = learners.get(at as usize % learners.len().max(1)).copied().unwrap_or(id);
                self.ask_if_safe(Change::Promote { id, force });
            }
            Operation::Remove => {
                // Whoever is not there is removed first, usually.
                let away = ids.iter().copied().find(|&id| !up(id)).filter(|_| at >> 34 & 1 == 0);
                self.ask_if_safe(Change::Remove { id: away.unwrap_or(id), force });
            }
            Operation::RemoveLeader => {
                if let Some(id) = self.newest_leader() {
                    self.ask_if_safe(Change::Remove { id, force });
                }
            }
            Operation::RemoveOff if up(id) && ids.len() > 1 => {
                self.stop(id, at >> 34 & 1 == 0);
                let delay_us = self.dice.log_between(2_000_000, 16_000_000);
                self.start_in(delay_us, id);
                self.ask_if_safe(Change::Remove { id, force });
            }
            Operation::Replace if room => {
                let number = self.new_address();
                self.ask(Change::Replace { old: id, address: address(number) });
            }
            Operation::ReplaceInPlace if room && up(id) && self.can_lose(id) => {
                self.count("machines broken");
                self.lose(id);
                let member = configuration.member(id);
                let address = member.map_or(String::new(), |m| m.address.clone());
                self.ask(Change::Replace { old: id, address });
            }
            Operation::ReplaceLost => {
                let lost = self.lost(&configuration);
                let learner = |id: &NodeId| configuration.learners.contains(id);
                let Some(&id) = lost.iter().find(|id| !learner(id)) else { return Ok(()) };
                let running = up(id);
                let own = configuration.member(id).map(|m| m.address.clone());
                if running || !room {
                    return Ok(());
                }
                let number = self.new_address();
                let address = own.filter(|_| at & 1 == 0).unwrap_or(address(number));
                if let Some(n) = self.nodes.get_mut(&id) {
                    n.gone = true;
                }
                self.ask(Change::Replace { old: id, address });
            }
            Operation::Knock => return self.knock(&configuration, at),
            // Whoever does not know the members yet could not be found, nor find them.
            Operation::Move
                if self.knows_members(id)
                    && self.can_lose(id)
                    && configuration.voters.len() > 2 =>
            {
                self.count("nodes moved");
                let number = self.new_address();
                self.stop(id, false);
                if let Some(n) = self.nodes.get_mut(&id) {
                    n.address = address(number);
                }
                let delay_us = self.dice.log_between(10_000, 1_000_000);
                self.start_in(delay_us, id);
            }
            _ => {}
        }
        Ok(())
    }

    fn knows_members(&self, id: NodeId) -> bool {
        let up = self.nodes.get(&id).and_then(|n| n.up.as_ref());
        let own = up.map(|up| up.node.replica().raft().configuration());
        own.is_some_and(|own| self.cluster.configuration().is_some_and(|c| **c == **own))
    }

    /// A node that is no member any more is started again.
    fn knock(&mut self, configuration: &Configuration, at: u64) -> Result<(), Violation> {
        let away = |n: &&SimNode| {
            let started = n.up.is_some() || n.gone || n.old_copy || n.refuses || n.life == 0;
            // Two first members with wiped disks may form a cluster anew (docs/architecture.md, "Limits").
            let others = || self.nodes.values().any(|o| o.id != n.id && o.wiped && !o.gone);
            !started && configuration.member(n.id).is_none() && !(n.wiped && others())
        };
        let away: Vec<NodeId> = self.nodes.values().filter(away).map(|n| n.id).collect();
        let Some(&id) = away.get(at as usize % away.len().max(1)) else { return Ok(()) };
        if let Some(n) = self.nodes.get_mut(&id) {
            if n.over && at >> 32 & 1 == 0 {
                // It has written down that it was removed.
                self.count("removed nodes that did not start");
                return Ok(());
            }
            n.over = false;
        }
        self.count("removed nodes started again");
        self.start(id)
    }

    fn new_address(&mut self) -> u64 {
        self.operator.addresses += 1;
        self.operator.addresses
    }

    /// A machine with an empty disk asks to be taken in.
    fn appear(&mut self, number: u64) {
        self.joins(address(number));
    }

    fn joins(&mut self, address: String) {
        let identity = self.dice.roll().max(1);
        self.operator.joiners.insert(identity, address);
        self.schedule(0, 0, ANY_LIFE, Event::Changing(Changing::Join(identity)));
    }

    fn ask_if_safe(&mut self, change: Change) {
        if self.can_change(&change) {
            self.ask(change);
        }
    }

    fn ask(&mut self, change: Change) {
        match change {
            Change::Remove { id, .. } => drop(self.operator.to_remove.insert(id)),
            Change::Promote { id, .. } => drop(self.operator.to_promote.insert(id)),
            Change::Join { .. } | Change::Replace { .. } => {}
        }
        self.operator.next += 1;
        let (request, last_us) = (self.operator.next, self.now_us);
        let asked = Asked { change, tries: 0, over: false, last_us };
        self.operator.asked.insert(request, asked);
        self.changing(Changing::Ask(request));
    }

    pub(super) fn changing(&mut self, changing: Changing) {
        match changing {
            Changing::Appear(number) => self.appear(number),
            Changing::Join(identity) => {
                let Some(address) = self.operator.joiners.get(&identity).cloned() else { return };
                self.ask(Change::Join { address, identity });
                let delay_us = self.dice.between(PATIENCE_US, 2 * PATIENCE_US);
                let again = Event::Changing(Changing::Join(identity));
                self.schedule(delay_us, 0, ANY_LIFE, again);
            }
            Changing::Lost(request, tries) => {
                let now = self.operator.asked.get(&request);
                if now.is_some_and(|asked| !asked.over && asked.tries == tries) {
                    self.count("changes without an answer");
                    self.ask_again(request);
                }
            }
            Changing::Ask(request) => {
                let leader = self.newest_leader().filter(|_| self.dice.chance(2, 3));
                let up = |n: &&SimNode| n.up.is_some();
                let running: Vec<NodeId> = self.nodes.values().filter(up).map(|n| n.id).collect();
                let Some(asked) = self.operator.asked.get_mut(&request).filter(|a| !a.over) else {
                    return;
                };
                asked.tries += 1;
                asked.last_us = self.now_us;
                let (tries, change) = (asked.tries, asked.change.clone());
                self.count("changes asked for");
                let lost = Event::Changing(Changing::Lost(request, tries));
                self.schedule(PATIENCE_US, 0, ANY_LIFE, lost);
                let any = running.get(self.dice.below(running.len() as u64) as usize).copied();
                let Some(node) = leader.or(any) else { return };
                let n = &self.nodes[&node];
                let (life, deadline_us) = (n.life, n.local_us(self.now_us) + DEADLINE_US);
                let requests = vec![(request, deadline_us, Request::Change(change))];
                let input = Input::Client { client: OPERATOR, requests };
                let delay_us = self.dice.log_between(40, 1_000);
                self.schedule(delay_us, node, life, Event::Input(input));
            }
        }
    }

    fn ask_again(&mut self, request: u64) {
        let calm = self.quiet;
        let Some(asked) = self.operator.asked.get_mut(&request) else { return };
        // A machine that joins asks anew by itself.
        let joins = matches!(asked.change, Change::Join { identity, .. } if identity != 0);
        asked.over = asked.tries >= TRIES_MAX || (joins && asked.tries > 4);
        let change = asked.change.clone();
        let unsafe_now = match change {
            Change::Remove { .. } | Change::Promote { .. } => !self.can_change(&change),
            Change::Join { .. } | Change::Replace { .. } => false,
        };
        if let Some(asked) = self.operator.asked.get_mut(&request) {
            asked.over |= unsafe_now || (calm && !matches!(change, Change::Join { .. }));
            if !asked.over {
                let delay_us = self.dice.log_between(PAUSE_US.0, PAUSE_US.1);
                self.schedule(delay_us, 0, ANY_LIFE, Event::Changing(Changing::Ask(request)));
            }
        }
    }

    /// What became of a change.
    pub(super) fn change_answered(
        &mut self,
        node: NodeId,
        request: u64,
        answer: Answer,
    ) -> Result<(), Violation> {
        let Answer::Changed(result) = answer else { return Ok(()) };
        self.trace_change(node, request, &result);
        let Some(asked) = self.operator.asked.get_mut(&request) else { return Ok(()) };
        let id = match result {
            Err(why) => {
                self.count(name_of(&why));
                let again = matches!(
                    why,
                    ChangeRefused::NotProposed(_)
                        | ChangeRefused::HandsOver { .. }
                        | ChangeRefused::Overwritten
                        | ChangeRefused::Unknown
                        | ChangeRefused::NoAnswer
                        | ChangeRefused::Answers { .. }
                        | ChangeRefused::Behind { .. }
                );
                if again {
                    self.ask_again(request);
                } else if let Some(asked) = self.operator.asked.get_mut(&request) {
                    asked.over = true;
                    if let Change::Join { identity, .. } = asked.change {
                        self.operator.joiners.remove(&identity);
                    }
                }
                return Ok(());
            }
            Ok(id) => id,
        };
        asked.over = true;
        match asked.change.clone() {
            Change::Join { identity: 0, .. } => self.count("nodes announced"),
            Change::Join { identity, .. } => return self.take_in(id, identity),
            Change::Replace { address, .. } => {
                let known = self.nodes.contains_key(&id)
                    || self.operator.joiners.values().any(|at| *at == address);
                self.count("replacements begun");
                // Now and then it never comes.
                if !known && !self.dice.chance(1, 16) {
                    self.joins(address);
                }
            }
            Change::Promote { .. } => self.count("promotions answered"),
            Change::Remove { .. } => self.count("removals answered"),
        }
        Ok(())
    }

    fn trace_change(&mut self, node: NodeId, request: u64, result: &Result<NodeId, ChangeRefused>) {
        let (what, id) = match result {
            Ok(id) => ("changed", *id),
            Err(why) => (name_of(why), 0),
        };
        self.note(node, what, [request, id, 0, 0]);
    }

    /// A machine has its id: it starts with an empty disk.
    fn take_in(&mut self, id: NodeId, identity: u64) -> Result<(), Violation> {
        let Some(address) = self.operator.joiners.remove(&identity) else { return Ok(()) };
        if self.nodes.contains_key(&id) {
            return violated("no id is given twice", format!("id {id}"));
        }
        self.count("nodes taken in");
        let dice = self.dice.split();
        self.nodes.insert(id, SimNode::new(id, identity, address, dice));
        self.platters.insert(id, Platter::default());
        let delay_us = self.dice.log_between(1_000, 1_000_000);
        self.start_in(delay_us, id);
        Ok(())
    }

    /// A node is about to stop.
    pub(super) fn count_open_change(&mut self, node: NodeId) {
        let open = |n: &SimNode| {
            n.up.as_ref().is_some_and(|up| up.led && !up.node.replica().raft().is_settled())
        };
        if self.nodes.get(&node).is_some_and(open) {
            self.count("changes open at a crash of the leader");
        }
    }

    /// What was committed of changes since the last look.
    pub(super) fn count_changes(&mut self) -> Result<(), Violation> {
        for (what, id) in self.cluster.take_news() {
            if what == WENT_FIRST && !self.operator.to_remove.contains(&id) {
                return violated("a member goes when its replacement votes", format!("node {id}"));
            }
            let what = match what {
                "learner votes" if self.operator.to_promote.contains(&id) => "promotions on demand",
                "learner votes" => "promotions by the leader",
                what => what,
            };
            self.count(what);
        }
        Ok(())
    }

    /// Whether a node is a member in force that runs, with its own disk.
    pub(super) fn counts(&self, n: &SimNode) -> bool {
        let member = self.cluster.configuration().and_then(|c| c.member(n.id));
        n.up.is_some()
            && !(n.wiped || n.old_copy || n.over || n.cut_off)
            && member.is_some_and(|m| m.identity == 0 || m.identity == n.identity)
    }

    /// Why the members are not settled, if they are not: a change is open, or somebody who runs has
    /// no vote.
    pub(super) fn unsettled(&self) -> Option<String> {
        if !self.operator.is_idle() {
            return Some("a change is asked for".to_string());
        }
        let configuration = self.cluster.configuration()?;
        let settles = self.nodes.values().filter(|n| self.counts(n)).all(|n| {
            n.up.as_ref().is_none_or(|up| {
                let raft = up.node.replica().raft();
                raft.is_settled() && **raft.configuration() == **configuration
            })
        });
        // One that was told its id a moment ago is still to start (seed 210013153).
        let comes = |n: &SimNode| {
            let never = n.gone || n.over || n.refuses || n.wiped || n.old_copy || n.cut_off;
            n.up.is_none() && !never
        };
        let waits = |id: &&NodeId| self.nodes.get(id).is_some_and(|n| self.counts(n) || comes(n));
        match configuration.learners.iter().find(waits) {
            Some(id) => Some(format!("learner {id} has no vote")),
            None if !settles || configuration.is_joint() => Some("a change is open".to_string()),
            None => None,
        }
    }
}

/// What a change can make of the voters; none when it leaves them as they are.
fn outcome(now: &Configuration, change: &Change) -> Option<Configuration> {
    let next = match *change {
        Change::Remove { id, .. } if now.member(id).is_some() => now.without(id),
        Change::Promote { id, .. } if now.learners.contains(&id) => now.with_promoted(id),
        _ => return None,
    };
    (!next.voters.is_empty()).then_some(next)
}

fn name_of(why: &ChangeRefused) -> &'static str {
    match why {
        ChangeRefused::NotProposed(NotProposed::NotLeader { .. }) => {
            "change refused: not the leader"
        }
        ChangeRefused::NotProposed(NotProposed::ChangeOpen) => "change refused: another is open",
        ChangeRefused::NotProposed(NotProposed::TooEarly) => "change refused: too early",
        ChangeRefused::NotProposed(NotProposed::Transferring) => "change refused: handing over",
        ChangeRefused::NotProposed(_) => "change refused: no successor",
        ChangeRefused::Damaged => "change refused: damaged",
        ChangeRefused::NoMember { .. } => "change refused: no member",
        ChangeRefused::WasRemoved { .. } => "change refused: removed before",
        ChangeRefused::AddressTaken { .. } => "change refused: address taken",
        ChangeRefused::SameNode { .. } => "change refused: a member under another name",
        ChangeRefused::ForeignNode { .. } => "change refused: of another cluster",
        ChangeRefused::ReplacedByVoter { .. } => "change refused: replaced by a voter",
        ChangeRefused::Replaces { .. } => "change refused: replaces another",
        ChangeRefused::NeedsMore { .. } => "change refused: needs more voters",
        ChangeRefused::Votes { .. } => "change refused: votes already",
        ChangeRefused::OnlyVoter { .. } => "change refused: the only voter",
        ChangeRefused::LosesQuorum { .. } => "change refused: loses the quorum",
        ChangeRefused::Behind { .. } => "change refused: behind",
        ChangeRefused::BeingReplaced { .. } => "change refused: being replaced",
        ChangeRefused::Answers { .. } => "change refused: it answers",
        ChangeRefused::TooMany { .. } => "change refused: too many",
        ChangeRefused::HandsOver { .. } => "change refused: hands over first",
        ChangeRefused::Overwritten => "change overwritten",
        ChangeRefused::Unknown => "change of unknown outcome",
        ChangeRefused::NoAnswer => "change passed on without an answer",
        ChangeRefused::Declined { .. } => "change declined by the leader",
    }
}

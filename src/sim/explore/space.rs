//! Which events a state allows, and where each of them leads.
//!
//! Nodes, messages and histories are kept in tables, once each, with their fingerprint under every
//! renaming of the nodes; what an event makes of a node is remembered, because the core is
//! deterministic and the same node meets the same event in very many states of the cluster.

use super::super::checks::{Violation, violated};
use super::ignored::Tried;
use super::local::{Act, Effects, Local, Rules, Step};
use super::prints::{MakeQuick, Print, Prints, Table, print, renamings};
use super::voters::{configuration, targets};
use super::world::{History, Node, Outlook, World, acknowledges_what_is_there, stands};
use super::{ALLOWANCES, Allowance, Bounds, NODES_MAX, UNBOUNDED};
use crate::raft::canonical::{Names, message_words};
use crate::raft::{Body, Configuration, Message, NodeId};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

/// One event of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Something happens to a node.
    At { node: u8, act: Act },
    /// A message arrives and stays in flight.
    Twice { node: u8, message: u32, heard_last: u8 },
    /// A message is lost.
    Lost { message: u32 },
}

/// A message with its fingerprints.
pub(super) struct Letter {
    pub(super) message: Message,
    prints: Prints,
}

/// What an event makes of a node.
struct Outcome {
    node: u32,
    /// By their numbers; none are left in `effects`.
    sent: Vec<u32>,
    effects: Effects,
    /// Entries that the node had are gone, and not by a crash.
    overwrote: bool,
}

/// Where an event leads.
pub(super) enum Next {
    /// To the state with this fingerprint; [`Space::reached`] is the state.
    To(Print),
    /// Nowhere new: whatever can follow can follow without it.
    Nothing,
    /// Over a bound.
    Cut(&'static str),
}

/// Everything that is the same for all states.
pub(super) struct Space {
    pub(super) bounds: Bounds,
    pub(super) names: Vec<Vec<u64>>,
    first: Arc<Configuration>,
    pub(super) nodes: Table<Node>,
    pub(super) letters: Table<Letter>,
    pub(super) tried: Tried,
    histories: Table<(History, Prints)>,
    outcomes: HashMap<(u32, Act), Rc<Outcome>, MakeQuick>,
    /// The state that [`Space::next`] led to, but for its messages, and these: most such states were
    /// met before and need no place of their own.
    draft: World,
    draft_flight: Vec<u32>,
    /// Events that were followed, by [`Allowance`].
    pub(super) used: [u64; ALLOWANCES],
    /// How often something worth mentioning was met.
    pub(super) sights: BTreeMap<&'static str, u64>,
}

impl Space {
    pub(super) fn new(bounds: Bounds) -> Space {
        let voters = bounds.voters.unwrap_or(bounds.nodes);
        Space {
            names: renamings(bounds.nodes, |id| class(&bounds, id)),
            first: Arc::new(configuration(bounds.nodes, ((1_u16 << voters) - 1) as u8)),
            nodes: Table::new(),
            letters: Table::new(),
            tried: Tried::default(),
            histories: Table::new(),
            outcomes: HashMap::default(),
            draft: World::default(),
            draft_flight: Vec::new(),
            used: [0; ALLOWANCES],
            sights: BTreeMap::new(),
            bounds,
        }
    }

    /// Different states of a node, and different messages.
    pub(super) fn parts(&self) -> (usize, usize) {
        (self.nodes.len(), self.letters.len())
    }

    /// Where everything begins: empty disks, nobody leads. Or, if the bounds say so, node 1 does.
    pub(super) fn beginning(&mut self) -> World {
        let mut nodes = [0; NODES_MAX];
        for (at, id) in (1..=self.bounds.nodes).enumerate() {
            nodes[at] = self.node(Local::new(id, &self.first.clone()));
        }
        let history = self.history(History::default());
        let mut world = World { nodes, history, spent: [0; ALLOWANCES], flight: Box::default() };
        if self.bounds.led {
            let writes = if self.bounds.writes == 0 { 0 } else { usize::MAX };
            let free = Bounds { in_flight: None, writes, ..self.bounds.clone() };
            let bounds = std::mem::replace(&mut self.bounds, free);
            self.goes(&mut world, 1, |_| Act::Campaign);
            self.writes_all(&mut world, 1);
            for id in 2..=electors(&self.bounds) {
                self.arrives(&mut world, 1, id);
                self.writes_all(&mut world, id);
                self.arrives(&mut world, id, 1);
            }
            self.writes_all(&mut world, 1);
            world = World { spent: [0; ALLOWANCES], ..world.without_messages() };
            (self.bounds, self.used) = (bounds, [0; ALLOWANCES]);
        }
        world
    }

    /// An event on the way to the beginning. Nothing follows one that breaks an invariant: the
    /// exploration then begins in front of it.
    fn goes(&mut self, world: &mut World, id: NodeId, act: impl Fn(&Node) -> Act) {
        let act = act(self.at(world, id));
        let sums = self.sums(world);
        if let Ok(Next::To(_)) = self.next(world, &sums, Event::At { node: id as u8, act }) {
            *world = self.reached();
        }
    }

    fn arrives(&mut self, world: &mut World, from: NodeId, to: NodeId) {
        let between = |m: &&u32| {
            let message = &self.letters.get(**m).message;
            (message.from, message.to) == (from, to)
        };
        if let Some(&message) = world.flight.iter().find(between) {
            self.goes(world, to, |_| Act::Step { message, heard_last: 0 });
        }
    }

    fn writes_all(&mut self, world: &mut World, id: NodeId) {
        if self.at(world, id).writes > 0 {
            self.goes(world, id, |node| Act::Persist { count: node.writes as u8, heard_last: 0 });
        }
    }

    fn node(&mut self, local: Local) -> u32 {
        let prints = self.prints(1, |names, words| local.words(names, words));
        self.nodes.number(prints[0], || Node::new(local, prints))
    }

    fn letter(&mut self, message: Message) -> u32 {
        let prints = self.prints(2, |names, words| message_words(&message, names, words));
        self.letters.number(prints[0], || Letter { message, prints })
    }

    fn history(&mut self, history: History) -> u32 {
        let prints = self.prints(3, |names, words| history.words(names, words));
        self.histories.number(prints[0], || (history, prints))
    }

    fn prints(&self, kind: u64, fill: impl Fn(Names<'_>, &mut Vec<u64>)) -> Prints {
        let (mut prints, mut words) = (Prints::default(), Vec::new());
        for (to, names) in prints.iter_mut().zip(&self.names) {
            words.clear();
            fill(Names(names), &mut words);
            *to = print(kind, &words);
        }
        prints
    }

    /// The sums that a state's fingerprint is the least of, without its history.
    pub(super) fn sums(&self, world: &World) -> Prints {
        let mut sums = Prints::default();
        self.ids().for_each(|id| add(&mut sums, &self.at(world, id).prints));
        world.flight.iter().for_each(|&m| add(&mut sums, &self.letters.get(m).prints));
        sums
    }

    /// The state under every renaming.
    fn renamed(&self, world: &World, sums: &Prints) -> Prints {
        let mut all = *sums;
        add(&mut all, &self.histories.get(world.history).1);
        all
    }

    /// The same for all states that differ only in which node is which.
    pub(super) fn print(&self, world: &World, sums: &Prints) -> Print {
        let all = self.renamed(world, sums);
        let several = if self.bounds.symmetry { self.names.len() } else { 1 };
        let least = all[..several].iter().min().copied().unwrap_or_default();
        least.wrapping_add(print(4, &packed(&world.spent)))
    }

    /// The nodes and what happened to them, whatever is under way: in flight, or held by its sender
    /// until its disk answers. `known` spares doing it twice for a node.
    #[cfg(test)]
    pub(super) fn situation(&self, world: &World, known: &mut BTreeMap<u32, Prints>) -> Print {
        let mut all = self.histories.get(world.history).1;
        for id in self.ids() {
            let number = world.nodes[id as usize - 1];
            let bare = known.entry(number).or_insert_with(|| {
                let mut local = Local::clone(&self.nodes.get(number).local);
                local.raft.let_go_of_held();
                self.prints(1, |names, words| local.words(names, words))
            });
            add(&mut all, bare);
        }
        all[..self.names.len()].iter().min().copied().unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn body(&self, message: u32) -> &Body {
        &self.letters.get(message).message.body
    }

    /// From whom it is to whom.
    #[cfg(test)]
    pub(super) fn ends(&self, message: u32) -> (NodeId, NodeId) {
        let Message { from, to, .. } = self.letters.get(message).message;
        (from, to)
    }

    #[cfg(test)]
    pub(super) fn leads(&self, world: &World, id: NodeId) -> bool {
        self.at(world, id).leads()
    }

    /// How many states differ from this one only in which node is which, itself among them.
    pub(super) fn namesakes(&self, world: &World) -> usize {
        let mut all = self.renamed(world, &self.sums(world));
        let all = &mut all[..self.names.len()];
        all.sort_unstable();
        all.chunk_by(|a, b| a == b).count()
    }

    /// The state that [`Space::next`] led to.
    pub(super) fn reached(&self) -> World {
        World { flight: self.draft_flight.as_slice().into(), ..self.draft.clone() }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        1..=self.bounds.nodes
    }

    pub(super) fn at(&self, world: &World, id: NodeId) -> &Node {
        self.nodes.get(world.nodes[id as usize - 1])
    }

    fn all(&self, world: &World) -> Vec<&Node> {
        self.ids().map(|id| self.at(world, id)).collect()
    }

    fn left(&self, world: &World, what: Allowance) -> bool {
        world.spent[what as usize] < self.bounds.allowed[what as usize]
    }

    /// What the bounds say about what may follow, given whether a message's sender has come as far as
    /// they go.
    pub(super) fn outlook(&self, sender_is_done: bool) -> Outlook {
        let followers_return = self.bounds.allowed[Allowance::Changes as usize] > 1;
        Outlook { sender_is_done, terms: self.bounds.terms, followers_return }
    }

    /// A message that is removed here and would not be after one more event, if there is any.
    #[cfg(test)]
    pub(super) fn comes_to_count(&self) -> Option<String> {
        let within = |node: u32| self.nodes.get(node).term() <= self.bounds.terms;
        for (&(before, act), outcome) in self.outcomes.iter().filter(|o| within(o.1.node)) {
            let (node, then) = (self.nodes.get(before), self.nodes.get(outcome.node));
            let to = node.local.raft.id();
            let letters = (0..self.letters.len() as u32).map(|m| &self.letters.get(m).message);
            for message in letters.filter(|message| message.to == to) {
                for outlook in [true, false].map(|done| self.outlook(done)) {
                    if node.ignores(message, outlook) && !then.ignores(message, outlook) {
                        return Some(format!("{message:?} after {act:?} at {:?}", node.seen));
                    }
                }
            }
        }
        None
    }

    /// Of whom it may matter that a leader has heard them last: a leader that is about to leave the
    /// cluster hands over. For all others 0 alone, for nobody.
    fn heard_last(node: &Node) -> Vec<u8> {
        let c = &node.seen.configuration;
        if !node.leads() || c.is_voter(node.local.raft.id()) || c.voters.len() < 2 {
            return vec![0];
        }
        c.voters.iter().map(|&id| id as u8).collect()
    }

    /// Every event that the bounds allow.
    pub(super) fn events(&self, world: &World) -> Vec<Event> {
        let mut events = Vec::new();
        for &message in &world.flight {
            let to = self.letters.get(message).message.to;
            let node = to as u8;
            for heard_last in Space::heard_last(self.at(world, to)) {
                events.push(Event::At { node, act: Act::Step { message, heard_last } });
                if self.bounds.once && self.left(world, Allowance::Duplicates) {
                    events.push(Event::Twice { node, message, heard_last });
                }
            }
            if self.left(world, Allowance::Drops) {
                events.push(Event::Lost { message });
            }
        }
        for id in self.ids() {
            let mut push = |act| events.push(Event::At { node: id as u8, act });
            self.acts_of_time(world, id, &mut push);
            self.acts_of_others(world, id, &mut push);
        }
        events
    }

    fn acts_of_time(&self, world: &World, id: NodeId, push: &mut impl FnMut(Act)) {
        let node = self.at(world, id);
        let peers = || self.ids().filter(|&peer| peer != id);
        if node.leads() {
            push(Act::Silence);
            if self.left(world, Allowance::Beats) {
                push(Act::Beat);
            }
            if self.left(world, Allowance::Resends) {
                push(Act::Late);
            }
            if self.left(world, Allowance::Breaks) {
                peers().for_each(|peer| push(Act::Break { peer: peer as u8 }));
            }
            if self.left(world, Allowance::Stalls) && !node.local.pending.is_empty() {
                let voters = &node.seen.configuration.voters;
                let successors = || peers().filter(|peer| voters.contains(peer));
                successors().for_each(|peer| push(Act::Stall { heard_last: peer as u8 }));
                if successors().next().is_none() {
                    push(Act::Stall { heard_last: 0 });
                }
            }
            return;
        }
        if node.term() < self.bounds.terms && self.left(world, Allowance::Timeouts) {
            push(if self.bounds.pre_votes { Act::Timer } else { Act::Campaign });
        }
        if self.bounds.pre_votes && node.local.raft.remembers_a_leader() {
            push(Act::Forget);
        }
        if self.left(world, Allowance::Beats) {
            push(Act::Beat);
        }
        if let Some(leader) = node.local.raft.leader()
            && self.left(world, Allowance::Breaks)
        {
            push(Act::Break { peer: leader as u8 });
        }
    }

    fn acts_of_others(&self, world: &World, id: NodeId, push: &mut impl FnMut(Act)) {
        let node = self.at(world, id);
        if node.leads() && self.left(world, Allowance::Entries) {
            push(Act::Propose { label: world.spent[Allowance::Entries as usize] + 1 });
        }
        if self.left(world, Allowance::Reads) {
            push(Act::Read { id: world.spent[Allowance::Reads as usize] + 1 });
        }
        if node.leads() && self.left(world, Allowance::Transfers) {
            self.ids().filter(|&to| to != id).for_each(|to| push(Act::Transfer { to: to as u8 }));
        }
        if node.leads() && self.left(world, Allowance::Changes) {
            let targets = targets(&self.bounds, &node.seen.configuration);
            targets.for_each(|voters| push(Act::Change { voters }));
        }
        let pending = &node.local.pending;
        for count in 1..=pending.len() as u8 {
            for heard_last in Space::heard_last(node) {
                push(Act::Persist { count, heard_last });
            }
        }
        if !self.left(world, Allowance::Crashes) {
            return;
        }
        let applied = [false, node.local.raft.applied_index() > node.local.platter.applied];
        for &flushed in &applied[..1 + usize::from(applied[1])] {
            for writes in 0..=pending.len() {
                let mut crash = |torn| push(Act::Crash { writes: writes as u8, torn, flushed });
                crash(None);
                let Some(next) = pending.get(writes) else { continue };
                // With nothing of it written it is the crash above, with all of it the next one.
                let from = usize::from(next.hard_state.is_none());
                (from..next.entries.len()).for_each(|entries| crash(Some(entries as u8)));
            }
        }
    }

    /// What the act costs.
    fn price(event: Event) -> Option<Allowance> {
        let Event::At { act, .. } = event else {
            return Some(match event {
                Event::Twice { .. } => Allowance::Duplicates,
                _ => Allowance::Drops,
            });
        };
        match act {
            Act::Timer | Act::Campaign => Some(Allowance::Timeouts),
            Act::Beat => Some(Allowance::Beats),
            Act::Late => Some(Allowance::Resends),
            Act::Break { .. } => Some(Allowance::Breaks),
            Act::Stall { .. } => Some(Allowance::Stalls),
            Act::Propose { .. } => Some(Allowance::Entries),
            Act::Read { .. } => Some(Allowance::Reads),
            Act::Transfer { .. } => Some(Allowance::Transfers),
            Act::Crash { .. } => Some(Allowance::Crashes),
            Act::Change { .. } => Some(Allowance::Changes),
            _ => None,
        }
    }

    /// Where an event leads from a state with these [`Space::sums`].
    pub(super) fn next(
        &mut self,
        world: &World,
        sums: &Prints,
        event: Event,
    ) -> Result<Next, Violation> {
        let (id, act, gone) = match event {
            Event::At { node, act: act @ Act::Step { message, .. } } => {
                (node, act, self.bounds.once.then_some(message))
            }
            Event::At { node, act } => (node, act, None),
            Event::Twice { node, message, heard_last } => {
                (node, Act::Step { message, heard_last }, None)
            }
            Event::Lost { message } => {
                let mut next = world.without_messages();
                next.spent[Allowance::Drops as usize] += 1;
                let mut sums = *sums;
                subtract(&mut sums, &self.letters.get(message).prints);
                self.draft_flight.clear();
                self.draft_flight.extend(world.flight.iter().filter(|&&m| m != message));
                return Ok(self.draw(next, &sums, event));
            }
        };
        let (slot, id) = (usize::from(id) - 1, NodeId::from(id));
        let before = world.nodes[slot];
        let outcome = self.outcome(before, act)?;
        let unchanged =
            outcome.node == before && outcome.sent.is_empty() && outcome.effects.answers.is_empty();
        // The same state with a message or an allowance less. As long as no bound on messages in flight
        // makes room valuable, whatever can follow it can follow the state as it is.
        if unchanged && (gone.is_none() || self.bounds.in_flight.is_none()) {
            return Ok(Next::Nothing);
        }
        let mut next = world.without_messages();
        next.nodes[slot] = outcome.node;
        if let Some(what) = Space::price(event)
            && self.bounds.allowed[what as usize] != UNBOUNDED
        {
            next.spent[what as usize] += 1;
        }
        if self.at(&next, id).term() > self.bounds.terms {
            return Ok(Next::Cut("terms"));
        }
        if self.at(&next, id).writes > self.bounds.writes {
            return Ok(Next::Cut("writes under way"));
        }
        let mut sums = *sums;
        self.put_in_flight(world, &next, &mut sums, id, gone, &outcome.sent);
        if self.bounds.in_flight.is_some_and(|max| self.draft_flight.len() > max) {
            return Ok(Next::Cut("messages in flight"));
        }
        subtract(&mut sums, &self.nodes.get(before).prints);
        add(&mut sums, &self.nodes.get(outcome.node).prints);
        self.remember(world, &mut next, id, act, &outcome)?;
        if outcome.overwrote {
            *self.sights.entry("entries overwritten").or_default() += 1;
        }
        Ok(self.draw(next, &sums, event))
    }

    fn draw(&mut self, next: World, sums: &Prints, event: Event) -> Next {
        let torn = matches!(event, Event::At { act: Act::Crash { torn: Some(_), .. }, .. });
        if let Some(what) = Space::price(event) {
            self.used[what as usize] += 1;
        }
        if torn {
            *self.sights.entry("writes torn").or_default() += 1;
        }
        let print = self.print(&next, sums);
        self.draft = next;
        Next::To(print)
    }

    /// Takes out what is gone and what has no effect any more, and puts in what was sent, keeping
    /// the sums. Only what `id` has to do with can have lost its effect.
    fn put_in_flight(
        &mut self,
        before: &World,
        world: &World,
        sums: &mut Prints,
        id: NodeId,
        gone: Option<u32>,
        sent: &[u32],
    ) {
        let mut flight = std::mem::take(&mut self.draft_flight);
        flight.clear();
        let stays = |m: u32| {
            let message = &self.letters.get(m).message;
            let touched = message.from == id || message.to == id;
            !touched || !self.bounds.pruning || {
                let (from, to) = (self.at(world, message.from), self.at(world, message.to));
                !to.ignores(message, self.outlook(from.has_come_to(self.bounds.terms)))
            }
        };
        for &m in &before.flight {
            if Some(m) != gone && stays(m) {
                flight.push(m);
            } else {
                subtract(sums, &self.letters.get(m).prints);
            }
        }
        for &m in sent {
            let Err(at) = flight.binary_search(&m) else { continue };
            if stays(m) {
                flight.insert(at, m);
                add(sums, &self.letters.get(m).prints);
            }
        }
        self.draft_flight = flight;
    }

    fn remember(
        &mut self,
        before: &World,
        world: &mut World,
        id: NodeId,
        act: Act,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        for &m in &outcome.sent {
            let message = &self.letters.get(m).message;
            let (from, to) = (self.at(world, message.from), self.at(world, message.to));
            acknowledges_what_is_there(message, from, to)?;
        }
        let Effects { answers, decisions, .. } = &outcome.effects;
        let history = &self.histories.get(before.history).0;
        let crashed = matches!(act, Act::Crash { .. }) && history.reads_at(id);
        let read = matches!(act, Act::Read { .. }) || !answers.is_empty();
        if !crashed && !read && !history.is_news(id, self.at(world, id), decisions) {
            return Ok(());
        }
        let mut history = history.clone();
        match act {
            Act::Read { id: read } => history.read_begins(id, u64::from(read)),
            Act::Crash { .. } => history.reads_end(id),
            _ => {}
        }
        history.moved(id, decisions, &self.all(world))?;
        for answer in answers {
            history.read_answered(id, answer.id, answer.index)?;
            let sight = match answer.index {
                Some(_) => "reads served",
                None => "reads refused",
            };
            *self.sights.entry(sight).or_default() += 1;
        }
        world.history = self.history(history);
        Ok(())
    }

    /// What must hold of every state.
    pub(super) fn check(&mut self, world: &World) -> Result<(), Violation> {
        let nodes = self.all(world);
        let history = &self.histories.get(world.history).0;
        history.check(&nodes)?;
        for &m in &world.flight {
            let message = &self.letters.get(m).message;
            stands(message, nodes[message.from as usize - 1])?;
        }
        let leaders = nodes.iter().filter(|n| n.leads()).count();
        let leader = |is: &dyn Fn(&Node) -> bool| nodes.iter().any(|n| n.leads() && is(n));
        let sights = [
            ("somebody leads", leaders > 0),
            ("two leaders at a time", leaders > 1),
            ("elections in two terms", history.elections() > 1),
            ("something committed", history.committed() > 0),
            ("the first entry known to all", nodes.iter().all(|n| n.seen.commit > 0)),
            ("everything at rest", world.flight.is_empty()),
            ("a leader that asks two majorities", leader(&|n| n.seen.configuration.is_joint())),
            (
                "a leader without a vote",
                leader(&|n| !n.seen.configuration.is_voter(n.local.raft.id())),
            ),
            ("C_old,new committed", history.configurations().any(Configuration::is_joint)),
            ("C_new committed", history.configurations().any(|c| !c.is_joint())),
        ];
        for (name, _) in sights.into_iter().filter(|sight| sight.1) {
            *self.sights.entry(name).or_default() += 1;
        }
        Ok(())
    }

    fn outcome(&mut self, node: u32, act: Act) -> Result<Rc<Outcome>, Violation> {
        if let Some(outcome) = self.outcomes.get(&(node, act)) {
            return Ok(Rc::clone(outcome));
        }
        let outcome = Rc::new(self.work_out(node, act)?);
        self.outcomes.insert((node, act), Rc::clone(&outcome));
        Ok(outcome)
    }

    /// What an event does to a node; an assertion that fails is a violation like any other.
    pub(super) fn act(
        &self,
        local: &Local,
        act: Act,
        message: Option<&Message>,
    ) -> Result<Step, Violation> {
        let Bounds { pre_votes: sticky, writes, plant, .. } = self.bounds;
        let rules = Rules { first: &self.first, sticky, quick: writes == 0, plant };
        let step = || local.act(act, message, rules);
        catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            violated("an assertion of the core", text.unwrap_or_default())
        })
    }

    fn work_out(&mut self, number: u32, act: Act) -> Result<Outcome, Violation> {
        let before = self.nodes.get(number);
        let message = match act {
            Act::Step { message, .. } => Some(&self.letters.get(message).message),
            _ => None,
        };
        let Step { local, mut effects } = self.act(&before.local, act, message)?;
        let kept = local.seen().log.starts_with(&before.seen.log);
        let overwrote = !kept && !matches!(act, Act::Crash { .. });
        // Without pre-votes in flight, how many are granted is an event of its own.
        let pre_votes = self.bounds.pre_votes;
        let flies = |m: &Message| {
            pre_votes
                || !matches!(m.body, Body::RequestPreVote { .. } | Body::PreVoteResponse { .. })
        };
        let sent = std::mem::take(&mut effects.sent);
        let sent = sent.into_iter().filter(flies).map(|m| self.letter(m)).collect();
        Ok(Outcome { node: self.node(local), sent, effects, overwrote })
    }
}

/// Nodes that elect node 1 when it leads in the beginning: no more than are needed.
fn electors(bounds: &Bounds) -> NodeId {
    bounds.voters.unwrap_or(bounds.nodes) / 2 + 1
}

/// Nodes of one class differ in nothing but their names in the beginning.
fn class(bounds: &Bounds, id: NodeId) -> u8 {
    let votes = id <= bounds.voters.unwrap_or(bounds.nodes);
    match bounds.led {
        true if id == 1 => 0,
        true if id <= electors(bounds) => 1,
        _ => 2 + u8::from(votes),
    }
}

fn add(sums: &mut Prints, prints: &Prints) {
    sums.iter_mut().zip(prints).for_each(|(sum, print)| *sum = sum.wrapping_add(*print));
}

fn subtract(sums: &mut Prints, prints: &Prints) {
    sums.iter_mut().zip(prints).for_each(|(sum, print)| *sum = sum.wrapping_sub(*print));
}

/// The same in two words.
fn packed(spent: &[u8; ALLOWANCES]) -> [u64; 2] {
    const { assert!(ALLOWANCES <= 16) };
    let word = |bytes: &[u8]| bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
    let (low, high) = spent.split_at(ALLOWANCES / 2);
    [word(low), word(high)]
}

//! Exhaustive exploration of the consensus core within small bounds.
//!
//! The seeded simulator tries long runs at random; this tries *every* run that is short enough:
//! breadth-first over all orders of messages, completions of the disk, timeouts, losses, duplicates
//! and crashes, with every invariant on every state. The first violation comes with a shortest path
//! to it. The core is the production core ([`crate::raft::Raft`]), one value per node.
//!
//! # What a state is
//!
//! The cores, their disks (what is written and what is asked to be), the messages in flight, and what
//! must be remembered to judge (who led which term, what was committed, which reads are open).
//! States are kept as fingerprints of 128 bits, equal for states that differ only in which node is
//! which. Clocks are no part of a state: whether a timer has run out is an event like any other (see
//! `raft/canonical.rs`).
//!
//! # What makes it small, and why nothing is lost
//!
//! - There are no lost messages: one that never arrives is never delivered. `drops` matter only
//!   together with a bound on messages in flight.
//! - Of equal messages one is in flight; `duplicates` make one arrive again.
//! - A message that its receiver can never again do anything but ignore is removed
//!   (`world::Node::ignores`), and an event that changes nothing is not followed. That the
//!   core does ignore such messages is checked at every state of a node (`ignored.rs`), that it goes
//!   on doing so by a test.
//! - A node that is down is a node that nothing arrives at: crash and restart are one event.
//! - Unless `pre_votes` is set, pre-votes are not sent: a node whose timer ran out may be granted them
//!   at any time, and no node remembers having heard a leader. Both only allow more.
//!
//! # Changes of the configuration
//!
//! A leader may be asked for any other set of voters; the way there is the core's (`Changes` counts
//! what it is asked for). Nodes that do not vote first are no members: nobody knows them until a change
//! takes them in, which keeps states few. What is committed, and who is elected, is judged by the
//! configuration that the leader had when it counted, half by half, with an arithmetic that is not the
//! core's (`voters.rs`). States are the same under renamings that keep the first voters among
//! themselves.
//!
//! Left out: snapshots, learners and changes of addresses, `Ready` taken after several events at once (it is taken
//! after each), and entries that span several AppendEntries because of their size.

mod ignored;
mod local;
mod prints;
mod space;
mod story;
#[cfg(test)]
mod tests;
mod voters;
mod world;

use super::checks::Violation;
use prints::{MakeQuick, Print};
use space::{Event, Next, Space};
use std::collections::{BTreeMap, HashSet};
use world::World;

/// Largest cluster: beyond it nothing ends.
pub const NODES_MAX: usize = 4;
/// Kinds of events of which only so many may happen in one run.
pub const ALLOWANCES: usize = 12;
/// As often as there is occasion.
pub const UNBOUNDED: u8 = u8::MAX;

/// A kind of event of which only so many may happen in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Election timers that run out, at any node.
    Timeouts,
    /// Proposals of a client.
    Entries,
    /// Reads of a client, at any node.
    Reads,
    /// Crashes, each with every part of what was being written.
    Crashes,
    /// Messages that arrive once more.
    Duplicates,
    /// Messages that make room for others.
    Drops,
    /// Heartbeats of a leader, or requests for a read index that are repeated.
    Beats,
    /// A leader takes what it has sent for lost, or a transfer for failed.
    Resends,
    /// Connections that break.
    Breaks,
    /// Attempts to hand leadership over.
    Transfers,
    /// A leader's disk that answers too late.
    Stalls,
    /// Changes of the configuration that a leader begins; C_new follows C_old,new for nothing.
    Changes,
}

impl Allowance {
    /// All, with the name of each and what it counts.
    pub const ALL: [(Allowance, &'static str, &'static str); ALLOWANCES] = [
        (
            Allowance::Timeouts,
            "timeouts",
            "election timers that run out; 'any' for no bound but the terms",
        ),
        (Allowance::Entries, "entries", "proposals of a client"),
        (Allowance::Reads, "reads", "reads of a client, at any node; needs --once"),
        (
            Allowance::Crashes,
            "crashes",
            "power failures of a node, with every part of a write torn",
        ),
        (Allowance::Duplicates, "duplicates", "with --once: messages that arrive once more"),
        (Allowance::Drops, "drops", "with --in-flight: messages that make room for others"),
        (Allowance::Beats, "beats", "heartbeats, or requests for a read index that are repeated"),
        (Allowance::Resends, "resends", "times a leader takes what it has sent for lost"),
        (Allowance::Breaks, "breaks", "connections that break"),
        (Allowance::Transfers, "transfers", "attempts to hand leadership over"),
        (Allowance::Stalls, "stalls", "times a leader's disk answers too late"),
        (Allowance::Changes, "changes", "changes of the configuration, to any other voters"),
    ];
}

/// A bug planted in the surroundings of the core, to show that it is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plant {
    /// None.
    #[default]
    None,
    /// A restart forgets the vote.
    ForgottenVotes,
    /// A restart forgets the last entry.
    LostEntry,
    /// The disk reports what it has not written.
    EarlyReports,
    /// The network raises the term of what arrives to the receiver's.
    ForgedTerms,
    /// A leader changes voters by one entry, without a joint configuration in between. That is safe
    /// for one voter at a time.
    DirectChanges,
    /// The same, and a leader does not wait until something of its own term is committed: the mistake
    /// of the thesis that was found in 2015.
    EarlyChanges,
}

impl Plant {
    /// All, with the name of each.
    pub const ALL: [(Plant, &'static str); 6] = [
        (Plant::ForgottenVotes, "forgotten-votes"),
        (Plant::LostEntry, "lost-entry"),
        (Plant::EarlyReports, "early-reports"),
        (Plant::ForgedTerms, "forged-terms"),
        (Plant::DirectChanges, "direct-changes"),
        (Plant::EarlyChanges, "early-changes"),
    ];

    fn changes_at_once(self) -> bool {
        matches!(self, Plant::DirectChanges | Plant::EarlyChanges)
    }
}

/// How far to explore.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Nodes: 1 to [`NODES_MAX`].
    pub nodes: u64,
    /// The first so many vote in the beginning, none for all. The others know who does and are no
    /// members: nobody sends them anything before a change takes them in.
    pub voters: Option<u64>,
    /// A change adds and removes at most so many voters, both together.
    pub differ: u32,
    /// In the beginning node 1 leads term 1, elected by as many as are needed, and nothing that it has
    /// sent since will ever arrive. How it came to that costs nothing.
    pub led: bool,
    /// No node gets beyond this term.
    pub terms: u64,
    /// By [`Allowance`].
    pub allowed: [u8; ALLOWANCES],
    /// A message is gone once it has arrived; else it may arrive again at any time, which merges so
    /// many states that more behaviour takes fewer of them.
    pub once: bool,
    /// Messages in flight at a time; none for as many as there are.
    pub in_flight: Option<usize>,
    /// Requests that a node's disk may have under way; 0 for disks that take no time, so that whatever
    /// waits for one happens in the same event.
    pub writes: usize,
    /// Pre-votes are messages like all others.
    pub pre_votes: bool,
    /// States that differ only in which node is which are one. Off only to check that.
    pub symmetry: bool,
    /// A message without effect for ever is removed. Off only to check that.
    pub pruning: bool,
    /// Ends the exploration unfinished.
    pub states_max: usize,
    /// A bug to find.
    pub plant: Plant,
}

impl Default for Bounds {
    /// Two elections and a crash among three nodes, each message any number of times: as much as
    /// ends within a minute or two. docs/simulation.md has the counts.
    fn default() -> Bounds {
        Bounds {
            nodes: 3,
            voters: None,
            led: false,
            differ: NODES_MAX as u32,
            terms: 2,
            allowed: [0; ALLOWANCES],
            once: false,
            in_flight: None,
            writes: usize::MAX,
            pre_votes: false,
            symmetry: true,
            pruning: true,
            states_max: usize::MAX,
            plant: Plant::None,
        }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Crashes, 1)
    }
}

impl Bounds {
    /// Allows so many of them; [`UNBOUNDED`] is for timeouts, which the terms bound.
    #[must_use]
    pub fn with(mut self, what: Allowance, count: u8) -> Bounds {
        self.allowed[what as usize] = count;
        self
    }

    /// Why these bounds bound nothing, if so.
    pub fn endless(&self) -> Option<&'static str> {
        let reads = self.allowed[Allowance::Reads as usize] > 0;
        (reads && !self.once).then_some(
            "reads have no end unless a message arrives once: a leader answers each copy of a request",
        )
    }
}

/// What an exploration has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Different states, up to the names of the nodes.
    pub states: usize,
    /// Different states when names count.
    pub named_states: u64,
    /// Events that were followed.
    pub transitions: u64,
    /// Events on the longest of the shortest paths.
    pub depth: usize,
    /// States of the last depth that were not followed yet.
    pub open: usize,
    /// Nothing within the bounds is left unexplored.
    pub exhausted: bool,
    /// Different states of one node.
    pub node_states: usize,
    /// Different messages.
    pub messages: usize,
    /// Events that were not followed because they exceed a bound, by its name.
    pub cut: BTreeMap<&'static str, u64>,
    /// States or events of note, by name. Of an [`Allowance`], under its name, the events that were
    /// followed.
    pub sights: BTreeMap<&'static str, u64>,
}

/// An invariant is broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which, and how.
    pub violation: Violation,
    /// The events that lead to it, in words; no other path is shorter. For a message that should have
    /// had no effect: to the state of its receiver, where it then arrives although it may not be in flight.
    pub path: Vec<String>,
    /// What was explored before.
    pub report: Report,
}

/// How each state was first reached: from which one, and by what.
type Arrivals = Vec<(u32, Event)>;

/// Explores everything within the bounds, breadth-first. `progress` is told after each depth.
///
/// # Errors
/// The first violation, with a shortest path to it.
pub fn explore(bounds: &Bounds, progress: impl FnMut(&Report)) -> Result<Report, Box<Failure>> {
    visit_telling(&mut Space::new(bounds.clone()), progress, |_, _| {})
}

/// The same in a space; every state is shown to `visitor`, once.
#[cfg(test)]
fn visit(space: &mut Space, visitor: impl FnMut(&Space, &World)) -> Result<Report, Box<Failure>> {
    visit_telling(space, |_| {}, visitor)
}

fn visit_telling(
    space: &mut Space,
    mut progress: impl FnMut(&Report),
    mut visitor: impl FnMut(&Space, &World),
) -> Result<Report, Box<Failure>> {
    let mut report = Report::default();
    let mut seen: HashSet<Print, MakeQuick> = HashSet::default();
    let mut arrivals = Arrivals::new();
    let states_max = space.bounds.states_max;
    let beginning = space.beginning();
    seen.insert(space.print(&beginning, &space.sums(&beginning)));
    report.states = 1;
    report.named_states = space.namesakes(&beginning) as u64;
    visitor(space, &beginning);
    space.met(&beginning, 0);
    let mut frontier = vec![(0_u32, beginning)];
    while !frontier.is_empty() {
        let mut found: Vec<(u32, World)> = Vec::new();
        for (from, world) in frontier {
            if report.states >= states_max {
                summarise(&mut report, space);
                return Ok(report);
            }
            let sums = space.sums(&world);
            for event in space.events(&world) {
                match space.next(&world, &sums, event) {
                    Ok(Next::To(print)) => {
                        report.transitions += 1;
                        if !seen.insert(print) {
                            continue;
                        }
                    }
                    Ok(Next::Nothing) => continue,
                    Ok(Next::Cut(bound)) => {
                        *report.cut.entry(bound).or_default() += 1;
                        continue;
                    }
                    Err(violation) => {
                        summarise(&mut report, space);
                        return Err(failure(violation, space, &arrivals, from, event, report));
                    }
                }
                let next = space.reached();
                report.states += 1;
                report.named_states += space.namesakes(&next) as u64;
                if let Err(violation) = space.check(&next) {
                    summarise(&mut report, space);
                    return Err(failure(violation, space, &arrivals, from, event, report));
                }
                visitor(space, &next);
                arrivals.push((from, event));
                space.met(&next, arrivals.len() as u32);
                found.push((arrivals.len() as u32, next));
            }
        }
        report.depth += usize::from(!found.is_empty());
        report.open = found.len();
        frontier = found;
        summarise(&mut report, space);
        if let Err((violation, at, last)) = space.ignored_has_no_effect() {
            return Err(failure(violation, space, &arrivals, at, last, report));
        }
        progress(&report);
    }
    report.exhausted = true;
    Ok(report)
}

fn summarise(report: &mut Report, space: &Space) {
    (report.node_states, report.messages) = space.parts();
    report.sights.clone_from(&space.sights);
    for (what, name, _) in Allowance::ALL {
        let used = space.used[what as usize];
        if used > 0 {
            report.sights.insert(name, used);
        }
    }
}

/// Tells the story again from the beginning.
fn failure(
    violation: Violation,
    space: &mut Space,
    arrivals: &Arrivals,
    mut from: u32,
    last: Event,
    report: Report,
) -> Box<Failure> {
    let mut events = vec![last];
    while let Some(&(before, event)) =
        (from as usize).checked_sub(1).and_then(|at| arrivals.get(at))
    {
        events.push(event);
        from = before;
    }
    Box::new(Failure { violation, path: retell(space, events.into_iter().rev()), report })
}

fn retell(space: &mut Space, events: impl Iterator<Item = Event>) -> Vec<String> {
    let mut world = space.beginning();
    let mut lines = Vec::new();
    for (event, number) in events.zip(1..) {
        let sums = space.sums(&world);
        let after = match space.next(&world, &sums, event) {
            Ok(Next::To(_)) => Some(space.reached()),
            _ => None,
        };
        lines.push(format!("{number:>4}. {}", space.describe(event, after.as_ref())));
        world = after.unwrap_or(world);
    }
    lines
}

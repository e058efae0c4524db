//! Configurations as the exploration sees them: the one it begins with, the changes it tries, and
//! what a majority is.
//!
//! It has an arithmetic of its own, so that a mistake in the core's is not taken for the rule.

use super::super::checks::{Violation, violated};
use super::{Bounds, NODES_MAX, Plant};
use crate::raft::{Configuration, Entry, Index, Member, NodeId, Payload, Raft, RoleName, Term};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A set of nodes: bit `id - 1` for node `id`.
pub(super) type Set = u8;
const _: () = assert!(NODES_MAX <= 8);

/// A leader was elected, or called more committed than before.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    /// The term that it leads.
    pub(super) term: Term,
    /// Up to here it calls the log committed.
    pub(super) commit: Index,
    /// The configuration in force when it counted. The one that it leaves the event with may be the
    /// next: whoever commits C_old,new appends C_new at once.
    pub(super) configuration: Arc<Configuration>,
}

/// The configuration in which exactly these vote, and nobody else belongs to the cluster. All are
/// known by id from the beginning: ids are never given twice.
pub(super) fn configuration(nodes: u64, voters: Set) -> Configuration {
    let member =
        |id| Member { id, identity: id, address: format!("node-{id}.invalid:{}", 7100 + id) };
    let members = (1..=nodes).filter(|id| voters & 1 << (id - 1) != 0).map(member).collect();
    Configuration { last_id: nodes, ..Configuration::of_voters(1, members) }
}

fn set(ids: &BTreeSet<NodeId>) -> Set {
    ids.iter().fold(0, |set, id| set | 1 << (id - 1))
}

/// Every set of voters that a change may lead to from this configuration.
pub(super) fn targets(bounds: &Bounds, now: &Configuration) -> impl Iterator<Item = Set> + use<> {
    let (now, differ) = (set(&now.voters), bounds.differ);
    (1..1 << bounds.nodes).filter(move |to: &Set| (1..=differ).contains(&(to ^ now).count_ones()))
}

/// The voter sets of a configuration: one, or two between two configurations.
fn halves(c: &Configuration) -> impl Iterator<Item = Set> + use<> {
    [set(&c.voters), set(&c.outgoing)].into_iter().filter(|&set| set != 0)
}

/// Whether these nodes are a majority of each voter set.
fn decide(c: &Configuration, nodes: Set) -> bool {
    halves(c).all(|half| 2 * (half & nodes).count_ones() > half.count_ones())
}

/// Nothing when the nodes for which `has` holds are a majority of each voter set, else who they are.
pub(super) fn short_of_majority(c: &Configuration, has: impl Fn(NodeId) -> bool) -> Option<String> {
    let ids = || (1..=NODES_MAX as NodeId).filter(|&id| has(id));
    let nodes = ids().fold(0, |set: Set, id| set | 1 << (id - 1));
    (!decide(c, nodes)).then(|| {
        let (voters, outgoing) = (&c.voters, &c.outgoing);
        format!("{:?} only; voters {voters:?}, outgoing {outgoing:?}", ids().collect::<Vec<_>>())
    })
}

/// Whether two decisions can be made without a common node, one in each configuration.
fn apart(a: &Configuration, b: &Configuration) -> bool {
    let everyone = (1 << NODES_MAX) - 1;
    (0..=everyone).any(|nodes| decide(a, nodes) && decide(b, everyone & !nodes))
}

/// What must hold of changes in a node's log, given the configuration in front of it.
pub(super) fn change_by_the_rules(
    raft: &Raft,
    log: &[&Entry],
    first: &Configuration,
    plant: Plant,
) -> Result<(), Violation> {
    let changes = log.iter().filter_map(|entry| match &entry.payload {
        Payload::Configuration(c) => Some((entry.index, entry.term, &**c)),
        _ => None,
    });
    let mut before = (0, first);
    let commit = raft.commit_index();
    let leads = |term| raft.role() == RoleName::Leader && term == raft.term();
    for (index, term, c) in changes {
        if leads(term) && before.0 > commit {
            return violated(
                "one change at a time",
                format!("{} and {index} are open, {commit} is committed", before.0),
            );
        }
        if !plant.changes_at_once() && apart(before.1, c) {
            return violated(
                "consecutive majorities intersect",
                format!("{:?} and {:?} of entries {} and {index}", before.1, c, before.0),
            );
        }
        let knows = log.get((commit as usize).wrapping_sub(1)).is_some_and(|e| e.term == term);
        if leads(term) && !knows && plant != Plant::EarlyChanges {
            return violated(
                "no change before the leader has committed in its term",
                format!("entry {index} of term {term}, {commit} is committed"),
            );
        }
        before = (index, c);
    }
    if *raft.configuration().as_ref() == *before.1 && raft.configuration_index() == before.0 {
        return Ok(());
    }
    violated(
        "the latest configuration in the log is in force",
        format!("{:?}, not {:?} of entry {}", raft.configuration(), before.1, before.0),
    )
}

/// Whether the core's invariants name what this plant is to do: what it leads to is looked for.
pub(super) fn is_planted(plant: Plant, invariant: &str) -> bool {
    let says = |name| invariant.starts_with(name);
    plant.changes_at_once() && says("consecutive majorities intersect")
        || plant == Plant::EarlyChanges && says("no change before the leader has committed")
}

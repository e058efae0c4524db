//! What is explored with every `cargo test`, that the reductions lose nothing, and that planted
//! bugs are found.
//!
//! The numbers of states are exact and mean nothing by themselves: a change of the core or of the
//! explorer changes them, and whoever makes it sees that and says why. That a number changed with a
//! change that should not touch the protocol is worth a look.

use super::local::Act;
use super::*;
use crate::raft::{Body, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Without faults, and no end of timeouts but that of the terms.
fn quiet(nodes: u64, terms: u64) -> Bounds {
    let allowed = [0; ALLOWANCES];
    Bounds { nodes, terms, allowed, ..Bounds::default() }.with(Allowance::Timeouts, UNBOUNDED)
}

/// Everything within the bounds holds; the report is compared with what was seen before.
fn exhausts(bounds: &Bounds, (states, depth): (usize, usize), sights: &[&str]) {
    let report = explore(bounds, |_| {}).unwrap_or_else(|failed| {
        panic!("{:?}\n{}", failed.violation, failed.path.join("\n"));
    });
    assert!(report.exhausted && report.open == 0);
    for name in sights {
        assert!(report.sights.contains_key(name), "never: {name}; but {:?}", report.sights);
    }
    assert_eq!((report.states, report.depth), (states, depth), "states and depth");
}

#[test]
fn two_elections_among_three_nodes() {
    // Any node stands in either term; every message is lost, late, overtaken or doubled at will.
    let bounds = quiet(3, 2).with(Allowance::Timeouts, 2);
    let sights = [
        "somebody leads",
        "two leaders at a time",
        "elections in two terms",
        "something committed",
        "the first entry known to all",
        "entries overwritten",
    ];
    exhausts(&bounds, (868_258, 34), &sights);
}

#[test]
fn two_elections_and_a_heartbeat() {
    // A heartbeat tells of what is committed, to followers of whose logs the leader knows too little.
    let bounds =
        Bounds { writes: 1, ..quiet(3, 2) }.with(Allowance::Timeouts, 2).with(Allowance::Beats, 1);
    exhausts(&bounds, (565_393, 35), &["beats", "entries overwritten", "something committed"]);
}

#[test]
fn two_nodes_with_an_entry_a_read_and_a_crash() {
    // Deep: a client writes and reads, power fails in the middle of any write.
    let bounds = Bounds { once: true, ..quiet(2, 2) }
        .with(Allowance::Entries, 1)
        .with(Allowance::Reads, 1)
        .with(Allowance::Crashes, 1);
    let sights = [
        "entries",
        "reads served",
        "reads refused",
        "crashes",
        "writes torn",
        "something committed",
        "the first entry known to all",
    ];
    exhausts(&bounds, (259_027, 33), &sights);
}

#[test]
fn two_nodes_with_a_transfer_a_stall_and_a_broken_connection() {
    // What only operators, slow disks and bad lines bring about.
    let bounds = Bounds { once: true, ..quiet(2, 2) }
        .with(Allowance::Transfers, 1)
        .with(Allowance::Stalls, 1)
        .with(Allowance::Breaks, 1)
        .with(Allowance::Resends, 1)
        .with(Allowance::Beats, 1);
    let sights = ["transfers", "stalls", "breaks", "resends", "beats", "elections in two terms"];
    exhausts(&bounds, (64_422, 27), &sights);
}

#[test]
fn one_node_by_itself() {
    // A majority of one: nothing but its own disk stands between it and its promises.
    let bounds = Bounds { once: true, ..quiet(1, 3) }
        .with(Allowance::Entries, 2)
        .with(Allowance::Reads, 1)
        .with(Allowance::Crashes, 2);
    exhausts(&bounds, (6_975, 14), &["reads served", "crashes", "something committed"]);
}

#[test]
fn three_nodes_with_pre_votes() {
    // Pre-votes fly like everything else, and nodes remember having heard a leader.
    let bounds = Bounds { once: true, pre_votes: true, ..quiet(3, 1) }.with(Allowance::Timeouts, 2);
    exhausts(&bounds, (381_674, 24), &["somebody leads", "something committed"]);
}

#[test]
fn an_exploration_that_gives_up_says_so() {
    // A bound on states is no bound of the protocol's: nothing is claimed to be exhausted.
    let report = explore(&Bounds { states_max: 100, ..quiet(3, 2) }, |_| {}).unwrap();
    assert!(!report.exhausted && report.states >= 100, "{report:?}");
}

#[test]
fn reads_without_an_end_are_noticed() {
    // A request that arrives again and again is answered each time: there is always a next state.
    let reads = quiet(2, 1).with(Allowance::Reads, 1);
    assert!(reads.endless().is_some());
    assert!(Bounds { once: true, ..reads }.endless().is_none());
    assert!(Bounds::default().endless().is_none());
}

// --- the reductions ---

/// Node `names[1]` is elected by `names[2]`; the fingerprints on the way.
fn election(symmetry: bool, names: &[u64]) -> Vec<Print> {
    type Pick = fn(&Body) -> bool;
    let (a, b) = (names[1], names[2]);
    let any: Pick = |_| true;
    let script: [(NodeId, Pick); 5] = [
        (a, any),
        (a, any),
        (b, |body| matches!(body, Body::RequestVote { .. })),
        (b, any),
        (a, |body| matches!(body, Body::VoteResponse { granted: true })),
    ];
    let mut space = Space::new(Bounds { symmetry, ..quiet(3, 1) });
    let mut world = space.beginning();
    let mut prints = Vec::new();
    for (at, (id, pick)) in script.into_iter().enumerate() {
        let wanted = |space: &Space, event: &Event| match *event {
            Event::At { node, act: Act::Step { message, .. } } => {
                at % 2 == 0 && u64::from(node) == id && pick(space.body(message))
            }
            Event::At { node, act: Act::Campaign } => at == 0 && u64::from(node) == id,
            Event::At { node, act: Act::Persist { .. } } => at % 2 == 1 && u64::from(node) == id,
            _ => false,
        };
        let event = space.events(&world).into_iter().find(|event| wanted(&space, event)).unwrap();
        let sums = space.sums(&world);
        let Ok(Next::To(print)) = space.next(&world, &sums, event) else {
            panic!("step {at} leads nowhere: {event:?}")
        };
        world = space.reached();
        // What is kept up to date from state to state is what one would work out anew.
        assert_eq!(print, space.print(&world, &space.sums(&world)), "step {at}");
        prints.push(print);
    }
    assert!(space.leads(&world, a));
    prints
}

#[test]
fn states_that_differ_in_names_alone_have_one_fingerprint() {
    // The same election with other candidates and voters, for all six of them.
    let plain = election(true, &[0, 1, 2, 3]);
    let different: BTreeSet<Print> = plain.iter().copied().collect();
    assert_eq!(different.len(), plain.len(), "and different states have different ones");
    for names in prints::renamings(3, |_| 0) {
        assert_eq!(election(true, &names), plain, "{names:?}");
        assert_eq!(
            election(false, &names) == election(false, &[0, 1, 2, 3]),
            names == [0, 1, 2, 3],
            "{names:?}: names count when they are to count"
        );
    }
}

#[test]
fn symmetry_merges_exactly_the_states_that_differ_in_names() {
    // Counted with names, there are as many states as the reduced exploration says there are, and
    // none is farther away: nothing in the core prefers one node to another.
    let crash = quiet(3, 1).with(Allowance::Timeouts, 2).with(Allowance::Crashes, 1);
    let busy = Bounds { once: true, writes: 1, ..quiet(3, 1) }
        .with(Allowance::Timeouts, 1)
        .with(Allowance::Stalls, 1)
        .with(Allowance::Transfers, 1)
        .with(Allowance::Reads, 1);
    for bounds in [crash, busy] {
        let reduced = explore(&bounds, |_| {}).unwrap();
        let full = explore(&Bounds { symmetry: false, ..bounds }, |_| {}).unwrap();
        assert!(reduced.exhausted && full.exhausted);
        assert!(reduced.states * 4 < full.states, "{} of {}", reduced.states, full.states);
        assert_eq!((reduced.named_states, reduced.depth), (full.states as u64, full.depth));
    }
}

/// Everything the nodes and the past can look like, whatever is under way.
fn situations(bounds: &Bounds) -> BTreeSet<Print> {
    let (mut situations, mut known) = (BTreeSet::new(), BTreeMap::new());
    let note = |space: &Space, world: &World| {
        situations.insert(space.situation(world, &mut known));
    };
    let report = visit(bounds, |_| {}, note).unwrap();
    assert!(report.exhausted);
    situations
}

#[test]
fn messages_that_are_removed_could_not_have_done_anything() {
    // With every message kept for ever the nodes get into the same situations, and into no others.
    let crash = quiet(2, 2).with(Allowance::Crashes, 1);
    let three = Bounds { writes: 1, ..quiet(3, 1) }.with(Allowance::Timeouts, 3);
    let reads = Bounds { once: true, ..quiet(2, 2) }.with(Allowance::Reads, 1);
    for bounds in [crash, three, reads] {
        let pruned = situations(&bounds);
        let kept = situations(&Bounds { pruning: false, ..bounds });
        println!("{} {}", pruned.len(), kept.len());
        assert!(pruned == kept, "{} situations, {} of them", pruned.len(), kept.len());
    }
}

// --- planted bugs ---

/// The bug is found, by this invariant, at the end of so many events.
fn finds(plant: Plant, bounds: &Bounds, invariant: &str, events: usize) {
    let failed = explore(&Bounds { plant, ..bounds.clone() }, |_| {}).unwrap_err();
    let path = failed.path.join("\n");
    assert_eq!(failed.violation.invariant, invariant, "{path}");
    assert_eq!(failed.path.len(), events, "{path}");
}

#[test]
fn a_vote_forgotten_on_restart_is_found() {
    // A candidate's timer runs out, its vote reaches the disk, the restart forgets it.
    finds(Plant::ForgottenVotes, &Bounds::default(), "vote durability", 3);
}

#[test]
fn an_entry_lost_on_restart_is_found() {
    // A follower acknowledges the first entry and loses it; the leader then counts it.
    finds(Plant::LostEntry, &Bounds::default(), "commit evidence", 10);
}

#[test]
fn a_disk_that_reports_too_early_is_found() {
    // The first request for a vote shows a term that its sender's platter does not hold.
    finds(Plant::EarlyReports, &Bounds::default(), "promise durability", 1);
}

#[test]
fn a_network_that_lies_about_terms_is_found() {
    // A vote of one term would pass for one of the next.
    finds(Plant::ForgedTerms, &Bounds::default(), "a message without effect has none", 4);
}

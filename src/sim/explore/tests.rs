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
    exhausts(&bounds, (200_201, 30), &sights);
}

#[test]
fn two_elections_and_a_heartbeat() {
    // A heartbeat tells of what is committed, to followers of whose logs the leader knows too little.
    let bounds =
        Bounds { writes: 1, ..quiet(3, 2) }.with(Allowance::Timeouts, 2).with(Allowance::Beats, 1);
    exhausts(&bounds, (193_893, 32), &["beats", "entries overwritten", "something committed"]);
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
    exhausts(&bounds, (310_619, 38), &sights);
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
    exhausts(&bounds, (148_926, 29), &sights);
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

const CHANGED: [&str; 4] = [
    "a leader that asks two majorities",
    "a leader without a vote",
    "C_old,new committed",
    "C_new committed",
];

#[test]
fn three_voters_change_with_two_elections() {
    // To any other voters, {1} and {1,2} among them, while leaders come and go at any moment of it.
    let bounds = Bounds { writes: 1, ..quiet(3, 2) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Changes, 1);
    exhausts(&bounds, (895_784, 45), &CHANGED);
}

#[test]
fn three_voters_change_and_one_crashes() {
    // A restart finds the configuration in the log. Disks take no time, else it does not end here.
    let bounds = Bounds { writes: 0, ..quiet(3, 2) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Crashes, 1)
        .with(Allowance::Changes, 1);
    exhausts(
        &bounds,
        (1_367_276, 34),
        &[&CHANGED[..], &["crashes", "entries overwritten"]].concat(),
    );
}

#[test]
fn two_voters_of_three_nodes_change_with_two_elections() {
    // {1,2} to {3}: none of the old ones votes then, and the new one knows nothing yet.
    let bounds = Bounds { voters: Some(2), writes: 1, ..quiet(3, 2) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Changes, 1);
    exhausts(&bounds, (106_687, 40), &CHANGED);
}

#[test]
fn one_voter_of_three_nodes_changes_while_disks_write() {
    // A cluster of one grows to three in one step, or moves to another node.
    let bounds = Bounds { voters: Some(1), writes: 1, ..quiet(3, 2) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Changes, 1);
    exhausts(&bounds, (44_984, 33), &CHANGED);
}

#[test]
fn a_leader_that_leaves_hands_over_to_any_that_stays() {
    // Both of those that stay may have been heard last, and no other node is ever told to campaign.
    let bounds = Bounds { writes: 0, ..quiet(3, 1) }
        .with(Allowance::Timeouts, 1)
        .with(Allowance::Changes, 1);
    let (mut space, mut told) = (Space::new(Bounds { symmetry: false, ..bounds }), BTreeSet::new());
    let note = |space: &Space, world: &World| {
        for &message in &world.flight {
            if let Body::TimeoutNow = space.body(message) {
                told.insert(space.ends(message));
            }
        }
    };
    visit(&mut space, note).unwrap();
    let pairs = [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)];
    assert_eq!(told, BTreeSet::from(pairs));
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
    let change = |voters, timeouts| {
        let bounds = Bounds { voters, writes: 0, ..quiet(3, u64::from(timeouts)) };
        bounds.with(Allowance::Timeouts, timeouts).with(Allowance::Changes, 1)
    };
    // Who votes first does not change places with who does not, and who leads first with nobody.
    let led = Bounds { led: true, terms: 2, ..change(None, 1) };
    let cases = [
        (crash, 6),
        (busy, 6),
        (change(None, 1), 6),
        (change(Some(2), 2), 2),
        (change(Some(1), 2), 2),
        (led, 1),
        (Bounds { nodes: 4, ..change(None, 1) }, 6),
    ];
    for (bounds, renamings) in cases {
        let reduced = explore(&bounds, |_| {}).unwrap();
        let full = explore(&Bounds { symmetry: false, ..bounds }, |_| {}).unwrap();
        assert!(reduced.exhausted && full.exhausted);
        let (few, all) = (reduced.states * renamings, full.states);
        assert!(few >= all && few * 3 <= all * 4, "{} of {all}", reduced.states);
        assert_eq!((reduced.named_states, reduced.depth), (full.states as u64, full.depth));
    }
}

#[test]
fn nodes_are_renamed_within_their_class_alone() {
    // A group each: what is renamed twice is renamed once in another way.
    for (nodes, voters, led, several) in
        [(3, 3, false, 6), (3, 2, false, 2), (4, 2, false, 4), (4, 4, false, 6), (4, 4, true, 2)]
    {
        let bounds = Bounds { voters: Some(voters), led, ..quiet(nodes, 1) };
        let all = Space::new(bounds).names;
        assert_eq!(all.len(), several, "{all:?}");
        assert!(all[0].is_sorted(), "the first leaves names as they are");
        let known: BTreeSet<&Vec<u64>> = all.iter().collect();
        for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (a, b))) {
            let both: Vec<u64> = a.iter().map(|&name| b[name as usize]).collect();
            assert!(known.contains(&both), "{a:?} {b:?}");
            let votes = |id: &u64| *id <= voters;
            assert!((1..=nodes).all(|id| votes(&id) == votes(&a[id as usize])));
        }
    }
}

/// Everything the nodes and the past can look like, whatever is under way.
fn situations(bounds: &Bounds) -> BTreeSet<Print> {
    let (mut situations, mut known) = (BTreeSet::new(), BTreeMap::new());
    let note = |space: &Space, world: &World| {
        situations.insert(space.situation(world, &mut known));
    };
    let mut space = Space::new(bounds.clone());
    let report = visit(&mut space, note).unwrap();
    assert!(report.exhausted);
    if bounds.pruning {
        assert_eq!(space.comes_to_count(), None, "what is removed once is removed for ever");
    }
    situations
}

#[test]
fn messages_that_are_removed_could_not_have_done_anything() {
    // With every message kept for ever the nodes get into the same situations, and into no others.
    let crash = quiet(2, 2).with(Allowance::Crashes, 1);
    let three = Bounds { writes: 1, ..quiet(3, 1) }.with(Allowance::Timeouts, 3);
    let reads = Bounds { once: true, ..quiet(2, 2) }.with(Allowance::Reads, 1);
    let quick = Bounds { writes: 0, ..quiet(2, 3) };
    let change = Bounds { writes: 0, ..quiet(3, 1) }.with(Allowance::Changes, 1);
    let grown = Bounds { voters: Some(1), writes: 1, ..quiet(2, 2) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Changes, 2);
    for bounds in [crash, three, reads, quick, change, grown] {
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

#[test]
fn two_voters_changed_at_once_are_found() {
    // Node 1 commits {1} by itself, and the others elect one of them that knows nothing of it.
    let bounds = Bounds { writes: 0, differ: 2, ..quiet(3, 2) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Changes, 1);
    finds(Plant::DirectChanges, &bounds, "leader completeness", 9);
}

/// Node 1 of four leads; two more elections and two changes of one voter each are to come. The bound on
/// messages lets the whole of it be explored.
fn history_of_2015() -> Bounds {
    Bounds { led: true, writes: 0, differ: 1, in_flight: Some(12), ..quiet(4, 3) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Changes, 2)
}

#[test]
fn the_mistake_of_2015_is_found() {
    // Node 1 removes 4 and tells nobody, node 2 removes another with the votes of three, and then 1
    // is elected by two of {1,2,3}.
    finds(Plant::EarlyChanges, &history_of_2015(), "leader completeness", 15);
}

#[test]
fn one_voter_changed_at_once_by_the_rule_of_2015_is_safe() {
    // The control: within the same bounds, and among three nodes without a bound on messages.
    let direct = |bounds| Bounds { plant: Plant::DirectChanges, ..bounds };
    let sights = ["changes", "C_new committed", "elections in two terms"];
    exhausts(&direct(history_of_2015()), (24_455, 26), &sights);
    let three = Bounds { writes: 0, differ: 1, ..quiet(3, 2) }
        .with(Allowance::Timeouts, 2)
        .with(Allowance::Changes, 2);
    exhausts(&direct(three), (92_069, 28), &sights);
}

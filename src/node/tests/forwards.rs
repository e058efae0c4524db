//! Writes that come to a follower and go on to the leader.

use super::*;

/// What `id` has sent to the leader and is still under way.
fn forwards_of(c: &Cluster, id: NodeId) -> Vec<(NodeId, Forward)> {
    let of = |(from, to, packet): &(NodeId, NodeId, Packet)| match packet {
        Packet::Forward(forward) if *from == id => Some((*to, forward.clone())),
        _ => None,
    };
    c.net.iter().filter_map(of).collect()
}

/// A client of a follower writes: the leader does it, the follower tells the client, once.
#[test]
fn a_follower_forwards_and_answers() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    let write = c.write(follower, "a", SOON_US);
    assert!(c.inflight(follower) > 0);
    c.settle();
    c.revision(write);
    assert_eq!((c.inflight(follower), c.inflight(leader)), (0, 0));
}

/// The link to the leader was not up: the write never left, and is sent again until it does.
#[test]
fn an_unsent_forward_is_sent_again() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    c.hold_from(follower);
    let write = c.write(follower, "a", SOON_US);
    for _ in 0..3 {
        let sent = forwards_of(&c, follower);
        assert_eq!(sent.len(), 1);
        c.net.retain(|(_, _, packet)| !matches!(packet, Packet::Forward(_)));
        c.input(follower, Input::ForwardUnsent { id: sent[0].1.id });
        assert_eq!(c.answer(write), None);
        assert_eq!(forwards_of(&c, follower), [], "not at once: that would spin");
        c.advance(20_000);
    }
    c.heal();
    c.advance(20_000);
    c.revision(write);
    assert_eq!(c.inflight(follower), 0);
}

/// Whoever is asked says that it does not lead. The follower asks again until the deadline, and
/// then the write surely had no effect.
#[test]
fn a_refusal_by_a_former_leader_is_retried_until_the_deadline() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    c.hold_from(follower);
    let write = c.write(follower, "a", 200_000);
    let mut tries = 0;
    while c.answer(write).is_none() {
        for (to, forward) in forwards_of(&c, follower) {
            tries += 1;
            assert!(forward.deadline_ms <= 200 && forward.deadline_ms > 0);
            let verdict = Verdict::NotApplied(Refusal::NotLeader);
            c.net.retain(|(_, _, packet)| !matches!(packet, Packet::Forward(_)));
            c.input(follower, Input::ForwardAnswered { from: to, id: forward.id, verdict });
        }
        c.advance(5_000);
    }
    assert!(tries > 3, "{tries}");
    assert_eq!(c.refusal(write), Refusal::Deadline);
    assert_eq!(c.inflight(follower), 0);
}

/// The connection breaks after the write went out. Whether the leader has it nobody knows; what it
/// says later comes too late.
#[test]
fn a_broken_connection_leaves_the_outcome_unknown() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    c.hold_from(leader);
    let write = c.write(follower, "a", SOON_US);
    c.settle();
    c.input(follower, Input::PeerLost { node: leader });
    assert!(c.is_unknown(write));
    assert_eq!(c.inflight(follower), 0);
    c.heal();
    c.advance(100_000);
    let applied = c.nodes[&follower].applier.machine().applied();
    assert_eq!(applied, c.replica(leader).raft().last_index(), "it did take effect");
}

/// Another peer is lost, or answers in the leader's place: neither says anything about the write.
#[test]
fn only_the_node_that_was_asked_is_believed() {
    let (mut c, leader) = Cluster::led(3);
    let [follower, other] = c.followers(leader)[..] else { panic!("three nodes") };
    c.hold_from(follower);
    let write = c.write(follower, "a", SOON_US);
    let id = forwards_of(&c, follower)[0].1.id;
    let verdict = Verdict::Applied(Outcome::Done { revision: 99, results: Vec::new() });
    c.input(follower, Input::ForwardAnswered { from: other, id, verdict: verdict.clone() });
    c.input(follower, Input::ForwardAnswered { from: leader, id: id + 1, verdict });
    c.input(follower, Input::PeerLost { node: other });
    assert_eq!(c.answer(write), None);
    c.heal();
    c.advance(50_000);
    assert!(c.revision(write) < 99);
}

/// No word comes back: at the deadline the outcome is unknown, and the answer that comes at last
/// is for nobody.
#[test]
fn a_forward_without_an_answer_is_unknown_at_its_deadline() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    c.held.insert((leader, follower));
    let write = c.write(follower, "a", 100_000);
    c.advance(150_000);
    assert!(c.is_unknown(write));
    assert_eq!(c.inflight(follower), 0);
    c.heal();
    c.advance(50_000);
}

/// A follower is asked as if it led, and knows the leader. It refuses: a chain of forwards could run
/// in a circle.
#[test]
fn a_write_is_forwarded_once_only() {
    let (mut c, leader) = Cluster::led(3);
    let [one, two] = c.followers(leader)[..] else { panic!("three nodes") };
    let forward = Forward { id: 5, deadline_ms: 1000, command: put("a", "v") };
    c.hold_from(two);
    c.input(two, Input::Forwarded { from: one, forward });
    let answers: Vec<_> = c
        .net
        .iter()
        .filter(|(from, _, p)| *from == two && matches!(p, Packet::Answer(..)))
        .collect();
    assert!(
        matches!(answers[..], [(_, to, Packet::Answer(5, Verdict::NotApplied(Refusal::NotLeader)))] if *to == one)
    );
    assert_eq!(forwards_of(&c, two), []);
}

/// A forwarded write waits on the leader while it hands leadership on. It is not forwarded further, but
/// given back, and its owner asks the new leader: nobody notices.
#[test]
fn a_forward_that_waits_on_a_former_leader_is_given_back() {
    let (mut c, old) = Cluster::led(3);
    let [owner, new] = c.followers(old)[..] else { panic!("three nodes") };
    c.held.insert((old, new));
    c.ask(old, Request::Transfer(Some(new)), SOON_US);
    let write = c.write(owner, "a", 60_000_000);
    c.settle();
    assert!(c.inflight(old) > 0, "it waits until the transfer is over");
    c.heal();
    c.advance(ELECTION_US / 2);
    assert_eq!(c.leader(), Some(new));
    c.advance(ELECTION_US / 2);
    c.revision(write);
    assert_eq!((c.inflight(old), c.inflight(owner), c.inflight(new)), (0, 0, 0));
}

/// The leader has a forward in its log, and one other node as well, when it is cut off. That node leads
/// then, and commits it. The owner has heard nothing and cannot know: its client is told so soon, and not
/// that the write had no effect.
#[test]
fn a_forward_to_a_leader_that_was_cut_off_is_unknown_soon() {
    let (mut c, old) = Cluster::led(3);
    let [owner, new] = c.followers(old)[..] else { panic!("three nodes") };
    c.held.extend([(old, owner), (new, old)]);
    let write = c.write(owner, "a", 60_000_000);
    c.settle();
    let last = c.replica(old).raft().last_index();
    assert_eq!(c.replica(new).raft().last_index(), last, "it has the write");
    c.net.clear();
    c.held.clear();
    c.isolate(old);
    c.advance(4 * ELECTION_US);
    assert_eq!(c.leader(), Some(new));
    assert!(c.is_unknown(write), "{:?}", c.answer(write));
    assert_eq!(c.inflight(owner), 0);
    assert!(c.nodes[&owner].applier.machine().applied() > last, "it did take effect");
    // The former leader is back and knows it, too late.
    c.heal();
    c.advance(ELECTION_US);
    assert!(c.is_unknown(write));
}

/// Another node leads, and the one that was asked answers in time: it is believed.
#[test]
fn a_former_leader_has_a_moment_to_answer() {
    let (mut c, old) = Cluster::led(3);
    let [owner, new] = c.followers(old)[..] else { panic!("three nodes") };
    c.held.insert((old, owner));
    let write = c.write(owner, "a", 60_000_000);
    c.settle();
    c.held.clear();
    c.held.extend([(old, owner), (old, new)]);
    c.advance(2 * ELECTION_US);
    let leads = |c: &Cluster| c.replica(owner).raft().leader().is_some_and(|id| id != old);
    while !leads(&c) {
        c.advance(10_000);
    }
    assert_eq!(c.answer(write), None);
    c.heal();
    c.settle();
    c.revision(write);
}

/// A follower leaves the deadline to the leader: the leader's own bound holds, neither "already
/// over" nor "never".
#[test]
fn a_forward_without_a_deadline_gets_the_leaders() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    let answers = |c: &Cluster| {
        c.net.iter().filter(|(_, to, p)| *to == follower && matches!(p, Packet::Answer(..))).count()
    };
    c.followers(leader).iter().for_each(|&f| c.node(f).disk_held = true);
    for (id, deadline_ms) in [(1, 0), (2, u32::MAX)] {
        let forward = Forward { id, deadline_ms, command: put("a", "v") };
        c.input(leader, Input::Forwarded { from: follower, forward });
    }
    c.held.insert((leader, follower));
    let third = c.followers(leader)[1];
    assert_ne!(third, follower);
    // Stays leader: the third node answers its heartbeats.
    c.advance(DEADLINE_US - 100_000);
    assert_eq!(answers(&c), 0);
    c.advance(200_000);
    assert_eq!(answers(&c), 1);
    c.advance(DEADLINE_US_MAX - DEADLINE_US);
    assert_eq!(answers(&c), 2);
}

/// A follower forwards, crashes and forwards another write in its next life, before the answer to
/// the first is there. That answer must not pass for one to the second.
#[test]
fn an_answer_to_a_former_life_is_not_taken() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    c.write(follower, "a", SOON_US);
    c.node(leader).applier_held = true;
    c.settle();
    c.restart(follower);
    c.node(follower).disk_held = true;
    c.advance(200_000);
    c.node(follower).disk_held = false;
    c.advance(200_000);
    c.held.insert((follower, leader));
    let second = c.write(follower, "b", SOON_US);
    assert_eq!(forwards_of(&c, follower).len(), 1, "it knows the leader and has sent it");
    c.node(leader).applier_held = false;
    c.advance(50_000);
    assert_eq!(c.answer(second), None, "the answer was to the first");
}

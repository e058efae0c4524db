//! What operators ask of a follower: it is passed to the leader, once, and answered once.

use super::*;

fn remove(id: NodeId) -> Request {
    Request::Change(Change::Remove { id, force: false })
}

/// What `id` has passed on and is still under way.
fn passed_on(c: &Cluster, id: NodeId) -> Vec<(NodeId, AdminForward)> {
    let of = |(from, to, packet): &(NodeId, NodeId, Packet)| match packet {
        Packet::Admin(forward) if *from == id => Some((*to, forward.clone())),
        _ => None,
    };
    c.net.iter().filter_map(of).collect()
}

fn no_answer() -> Answer {
    Answer::Changed(Err(ChangeRefused::NoAnswer))
}

/// An operator knows a follower only. It removes a member and hands leadership over, and is told what
/// the leader says: also why not.
#[test]
fn a_follower_passes_on_what_only_the_leader_can_do() {
    let (mut c, leader) = Cluster::led(3);
    let [one, other] = c.followers(leader)[..] else { panic!("three nodes") };
    let absurd = c.ask(one, remove(9), SOON_US);
    let transfer = c.ask(one, Request::Transfer(Some(9)), SOON_US);
    c.settle();
    let nobody = Answer::Changed(Err(ChangeRefused::NoMember { id: 9 }));
    assert_eq!(c.answer(absurd), Some(&nobody));
    let no_voter = ChangeRefused::NotProposed(crate::raft::NotProposed::NoVoter { id: 9 });
    assert_eq!(c.answer(transfer), Some(&Answer::Transfer(Err(no_voter))));
    let gone = c.ask(one, remove(other), SOON_US);
    c.advance(ELECTION_US);
    assert_eq!(c.answer(gone), Some(&Answer::Changed(Ok(other))));
    let transfer = c.ask(one, Request::Transfer(None), SOON_US);
    c.advance(ELECTION_US);
    assert_eq!(c.answer(transfer), Some(&Answer::Transfer(Ok(one))), "who takes over");
    assert_eq!(c.leader(), Some(one));
}

/// A follower is asked for its own removal. It does not pass that on: once it is done nobody answers a
/// node that is none any more. The operator is told who leads.
#[test]
fn a_node_does_not_pass_on_its_own_removal() {
    let (mut c, leader) = Cluster::led(3);
    let one = c.followers(leader)[0];
    let asked = c.ask(one, remove(one), SOON_US);
    let refused =
        ChangeRefused::NotProposed(crate::raft::NotProposed::NotLeader { leader: Some(leader) });
    assert_eq!(c.answer(asked), Some(&Answer::Changed(Err(refused))));
    assert_eq!(passed_on(&c, one), []);
}

/// Without a leader the operator is told so at once; so is a follower that asks one that does not lead.
#[test]
fn a_request_is_passed_on_once_only() {
    let (mut c, leader) = Cluster::led(3);
    let [one, two] = c.followers(leader)[..] else { panic!("three nodes") };
    c.hold_from(two);
    let what = Admin::Transfer(None);
    let forward = AdminForward { id: 5, deadline_ms: 1000, what };
    c.input(two, Input::AdminForwarded { from: one, forward });
    assert_eq!(passed_on(&c, two), []);
    let refused =
        ChangeRefused::NotProposed(crate::raft::NotProposed::NotLeader { leader: Some(leader) });
    let answers = c.net.iter().filter(|(from, to, packet)| {
        (*from, *to) == (two, one)
            && matches!(packet, Packet::AdminAnswer(5, Err(why)) if *why == refused)
    });
    assert_eq!(answers.count(), 1);
    c.isolate(one);
    c.advance(4 * ELECTION_US);
    let asked = c.ask(one, remove(two), SOON_US);
    let refused = ChangeRefused::NotProposed(crate::raft::NotProposed::NotLeader { leader: None });
    assert_eq!(c.answer(asked), Some(&Answer::Changed(Err(refused))));
}

/// It never left the follower: nothing was done. It left, and the connection broke: nobody knows. An
/// answer that comes later, or from somebody else, is for nobody.
#[test]
fn what_was_not_answered_is_unknown_and_what_did_not_leave_is_not() {
    let (mut c, leader) = Cluster::led(3);
    let [one, two] = c.followers(leader)[..] else { panic!("three nodes") };
    c.hold_from(one);
    let unsent = c.ask(one, remove(two), SOON_US);
    let id = passed_on(&c, one)[0].1.id;
    c.net.retain(|(_, _, packet)| !matches!(packet, Packet::Admin(_)));
    c.input(one, Input::ForwardUnsent { id });
    let refused =
        ChangeRefused::NotProposed(crate::raft::NotProposed::NotLeader { leader: Some(leader) });
    assert_eq!(c.answer(unsent), Some(&Answer::Changed(Err(refused))));

    let asked = c.ask(one, remove(two), SOON_US);
    let id = passed_on(&c, one)[0].1.id;
    c.input(one, Input::AdminAnswered { from: two, id, result: Ok(two) });
    c.input(one, Input::PeerLost { node: two });
    assert_eq!(c.answer(asked), None);
    c.input(one, Input::PeerLost { node: leader });
    assert_eq!(c.answer(asked), Some(&no_answer()));
    c.heal();
    c.advance(ELECTION_US);
    assert!(!c.replica(leader).raft().configuration().is_voter(two), "it was done");
}

/// The leader is cut off and another one elected: whoever asked hears soon that nobody knows, not at the
/// deadline; and at the deadline when there is no other leader.
#[test]
fn a_leader_that_says_nothing_is_not_waited_for_long() {
    let (mut c, leader) = Cluster::led(3);
    let [one, two] = c.followers(leader)[..] else { panic!("three nodes") };
    c.isolate(leader);
    let transfer = c.ask(one, Request::Transfer(Some(two)), 60_000_000);
    c.advance(4 * ELECTION_US);
    assert_ne!(c.leader(), Some(leader));
    let unknown = Answer::Transfer(Err(ChangeRefused::NoAnswer));
    assert_eq!(c.answer(transfer), Some(&unknown));

    let (mut c, leader) = Cluster::led(3);
    let one = c.followers(leader)[0];
    c.held.insert((leader, one));
    let asked = c.ask(one, remove(9), 100_000);
    c.advance(150_000);
    assert_eq!(c.answer(asked), Some(&no_answer()));
}

/// More than a person can ask for is refused, and does not grow without bound.
#[test]
fn requests_that_are_passed_on_are_bounded() {
    let (mut c, leader) = Cluster::led(3);
    let one = c.followers(leader)[0];
    c.hold_from(one);
    let asked: Vec<u64> = (0..100).map(|_| c.ask(one, remove(9), SOON_US)).collect();
    let refused = asked.iter().filter(|&&request| c.answer(request).is_some()).count();
    assert_eq!(refused, 100 - 64);
    c.heal();
    c.settle();
    assert!(asked.iter().all(|&request| c.answer(request).is_some()));
}

//! Linearizable reads (thesis 6.4): when one may be answered, when it must not be.

use super::cluster::Cluster;
use super::solo::*;
use crate::raft::*;

fn beats(messages: &[Message]) -> Vec<(NodeId, u64)> {
    let of = |m: &Message| match m.body {
        Body::Heartbeat { round, .. } => Some((m.to, round)),
        _ => None,
    };
    messages.iter().filter_map(of).collect()
}

fn ack(round: u64) -> Body {
    Body::HeartbeatResponse { round }
}

/// A leader in term 1 whose no-op is committed.
fn leader() -> Solo {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    solo.step(2, 1, matched(1));
    assert!(solo.raft.leads_and_knows());
    solo.take();
    solo
}

fn read(solo: &mut Solo, id: ReadId) -> Vec<Message> {
    solo.event(|raft, _| raft.read(id));
    solo.take()
}

/// A hundred reads wait while a round is under way; the next round answers them all.
#[test]
fn one_round_serves_every_read_that_waits() {
    let mut solo = leader();
    assert_eq!(beats(&read(&mut solo, 0)), [(2, 1), (3, 1)]);
    for id in 1..=100 {
        assert!(read(&mut solo, id).is_empty(), "no round of its own");
    }
    let sent = solo.step(2, 1, ack(1));
    assert_eq!(solo.answers, [ReadAnswer { id: 0, index: Some(1) }]);
    assert_eq!(beats(&sent), [(2, 2), (3, 2)], "one round for the hundred");
    solo.step(2, 1, ack(1));
    assert_eq!(solo.answers.len(), 1, "an acknowledgement of the round before says nothing");
    solo.step(3, 1, ack(2));
    assert_eq!(solo.answers.len(), 101);
}

/// A new leader does not know what is committed until its no-op is: no read is answered before,
/// whoever acknowledges whatever.
#[test]
fn no_read_is_answered_before_the_no_op_is_committed() {
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 1, &[1, 1]));
    assert!(beats(&read(&mut solo, 1)).is_empty());
    solo.step(2, 2, ack(0));
    solo.step(3, 2, ack(0));
    assert!(solo.answers.is_empty());
    solo.step(2, 2, matched(3));
    solo.step(2, 2, ack(1));
    assert_eq!(solo.answers, [ReadAnswer { id: 1, index: Some(3) }]);
}

/// The round's heartbeats were lost: the next heartbeat carries it again.
#[test]
fn a_lost_round_is_sent_again_with_the_heartbeat() {
    let mut solo = leader();
    read(&mut solo, 1);
    solo.step(2, 1, ack(0));
    solo.pass(HEARTBEAT_US);
    assert_eq!(beats(&solo.take()), [(2, 1), (3, 1)]);
    solo.step(2, 1, ack(1));
    assert_eq!(solo.answers.len(), 1);
}

/// An answer to AppendEntries that was sent after the read began confirms the round as well, also
/// when the follower refuses the entries: it followed this leader either way.
#[test]
fn any_answer_to_a_later_message_confirms_the_round() {
    let matched = AppendResult::Matched { index: 1 };
    let conflict = AppendResult::Conflict { prev_index: 1, hint_index: 0, hint_term: 0 };
    for result in [matched, conflict] {
        let mut solo = leader();
        read(&mut solo, 1);
        solo.step(3, 1, Body::AppendResponse { result, round: 1 });
        assert_eq!(solo.answers.len(), 1, "{result:?}");
    }
}

/// A leader alone in its partition does not know that it was deposed. It answers nothing, and
/// `None` once it gives up; the read at the new leader sees the new write.
#[test]
fn a_deposed_leader_in_a_partition_never_answers_a_read() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, "old").unwrap();
    cluster.run(HEARTBEAT_US);
    cluster.isolate(1);
    let stale = cluster.read(1);
    cluster.run(TIMEOUT_US / 2);
    assert_eq!(cluster.raft(1).role(), RoleName::Leader);
    assert!(cluster.nodes[&1].answers.is_empty(), "nobody confirms that it leads");
    cluster.run(3 * TIMEOUT_US);
    let leader = cluster.leader().unwrap();
    assert_ne!(leader, 1);
    assert_eq!(cluster.nodes[&1].answers[&stale], None);
    let index = cluster.propose(leader, "new").unwrap();
    cluster.run(HEARTBEAT_US);
    let fresh = cluster.read(leader);
    cluster.settle();
    assert_eq!(cluster.nodes[&leader].answers[&fresh], Some(index));
}

/// Answers after step-down are `None`: those of the round under way and those that waited.
#[test]
fn reads_fail_when_the_leader_steps_down() {
    let mut solo = leader();
    read(&mut solo, 1);
    read(&mut solo, 2);
    solo.step(3, 5, Body::HeartbeatResponse { round: 9 });
    let none = |id| ReadAnswer { id, index: None };
    assert_eq!(solo.answers, [none(1), none(2)]);
    read(&mut solo, 3);
    assert_eq!(solo.answers[2], none(3), "nobody to ask");
}

/// A leader alone in its cluster confirms itself.
#[test]
fn a_single_node_answers_reads_at_once() {
    let mut solo = Solo::on(Platter::new(voters(1)));
    solo.pass(0);
    read(&mut solo, 1);
    assert_eq!(solo.answers, [ReadAnswer { id: 1, index: Some(1) }]);
}

/// Every follower serves linearizable reads by asking the leader, and learns of the commit index
/// with the answer: it need not wait for a heartbeat.
#[test]
fn followers_read_through_the_leader_without_waiting_for_a_heartbeat() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.run(HEARTBEAT_US);
    let index = cluster.propose(1, "x").unwrap();
    cluster.settle();
    let now_us = cluster.now_us;
    for id in [2, 3] {
        let read = cluster.read(id);
        cluster.settle();
        assert_eq!(cluster.nodes[&id].answers[&read], Some(index));
        assert_eq!(cluster.raft(id).applied_index(), index);
    }
    assert_eq!(cluster.now_us, now_us);
}

/// A follower that asks while its leader's request is lost asks again, with the same number.
#[test]
fn a_lost_read_request_is_sent_again() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.run(HEARTBEAT_US);
    cluster.cuts.insert((2, 1));
    let read = cluster.read(2);
    cluster.settle();
    assert!(cluster.nodes[&2].answers.is_empty());
    cluster.cuts.clear();
    cluster.run(HEARTBEAT_US);
    assert_eq!(cluster.nodes[&2].answers[&read], Some(1));
}

fn forwarded_id(sent: &[Message]) -> u64 {
    let of = |m: &Message| match m.body {
        Body::ReadIndex { id } => Some(id),
        _ => None,
    };
    sent.iter().find_map(of).expect("a ReadIndex")
}

/// A follower asked the leader and restarted. The answer to its former life arrives while it waits
/// for another: it has another number, and the old index answers nothing.
#[test]
fn an_answer_to_a_former_life_is_ignored() {
    let follower = |platter, seed| {
        let mut solo = Solo::with(platter, |o| o.seed = seed);
        solo.step(2, 1, heartbeat(0, 0));
        solo
    };
    let mut solo = follower(Platter::new(voters(3)), 1);
    let before = forwarded_id(&read(&mut solo, 1));
    let mut solo = follower(solo.platter, 2);
    let now = forwarded_id(&read(&mut solo, 2));
    solo.step(2, 1, Body::ReadIndexResponse { id: before, index: Some(4) });
    solo.step(3, 1, Body::ReadIndexResponse { id: now, index: Some(4) });
    assert!(solo.answers.is_empty(), "neither an old answer nor a stranger's");
    solo.step(2, 1, Body::ReadIndexResponse { id: now, index: Some(7) });
    assert_eq!(solo.answers, [ReadAnswer { id: 2, index: Some(7) }]);
    solo.step(2, 1, Body::ReadIndexResponse { id: now, index: Some(9) });
    assert_eq!(solo.answers.len(), 1, "a duplicate answers nothing");
}

/// A read that began after a request was sent is not answered by that request.
#[test]
fn a_later_read_waits_for_a_request_of_its_own() {
    let mut solo = Solo::new();
    solo.step(2, 1, heartbeat(0, 0));
    let first = forwarded_id(&read(&mut solo, 1));
    assert!(read(&mut solo, 2).is_empty(), "one request at a time");
    let sent = solo.step(2, 1, Body::ReadIndexResponse { id: first, index: Some(3) });
    assert_eq!(solo.answers, [ReadAnswer { id: 1, index: Some(3) }]);
    assert_ne!(forwarded_id(&sent), first);
}

/// The node that is asked does not lead: the asker hears it at once. With a greater term it hears
/// that, too.
#[test]
fn whoever_does_not_lead_says_so() {
    let mut solo = Solo::on(Platter::of_terms(voters(3), 4, &[]));
    let sent = solo.step(2, 4, Body::ReadIndex { id: 8 });
    assert_eq!(bodies(&sent), [&Body::ReadIndexResponse { id: 8, index: None }]);
    let sent = solo.step(2, 3, Body::ReadIndex { id: 9 });
    assert_eq!(sent[0].term, 4);
    let mut solo = Solo::new();
    solo.step(2, 1, heartbeat(0, 0));
    let id = forwarded_id(&read(&mut solo, 1));
    solo.step(2, 2, Body::ReadIndexResponse { id, index: None });
    assert_eq!(solo.answers, [ReadAnswer { id: 1, index: None }]);
    assert_eq!((solo.raft.term(), solo.raft.leader()), (2, None));
}

/// More requests of followers than a leader keeps are dropped, and answered when they come again.
#[test]
fn the_leader_bounds_the_requests_of_followers() {
    let mut solo = leader();
    let bound = Options::new(1, 0).remote_reads_max as u64;
    for id in 0..3 * bound {
        solo.step(2, 1, Body::ReadIndex { id });
    }
    let answers = |sent: &[Message]| {
        sent.iter().filter(|m| matches!(m.body, Body::ReadIndexResponse { .. })).count() as u64
    };
    assert_eq!(answers(&solo.step(3, 1, ack(1))), 1, "the first went with the first round");
    assert_eq!(answers(&solo.step(3, 1, ack(2))), bound);
    assert_eq!(answers(&solo.step(3, 1, ack(3))), 0);
}

/// A read arrives at a candidate, and the vote that makes it the leader with it, before anything
/// else happens: the read is the leader's now and is answered.
#[test]
fn a_read_of_a_candidate_is_answered_by_the_leader_it_becomes() {
    let mut solo = Solo::new();
    solo.expire();
    solo.step(2, 1, Body::PreVoteResponse { granted: true });
    let vote = Body::VoteResponse { granted: true };
    solo.event(|raft, now| {
        raft.read(1);
        raft.step(Message { from: 2, to: 1, term: 1, body: vote }, now);
    });
    solo.step(2, 1, matched(1));
    solo.step(2, 1, ack(1));
    assert_eq!(solo.answers, [ReadAnswer { id: 1, index: Some(1) }]);
}

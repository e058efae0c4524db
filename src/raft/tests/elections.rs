//! Elections: PreVote, CheckQuorum, stickiness, hand-over and partitions.

use super::cluster::Cluster;
use super::solo::*;
use crate::raft::*;

fn led(n: u64) -> Cluster {
    let mut cluster = Cluster::new(n);
    cluster.elect(1);
    cluster.run(HEARTBEAT_US);
    cluster
}

fn terms(cluster: &Cluster) -> Vec<Term> {
    cluster.ids().into_iter().map(|id| cluster.raft(id).term()).collect()
}

/// Three nodes start together: within a few timeouts there is one leader, and it stays.
#[test]
fn a_fresh_cluster_finds_one_leader_and_keeps_it() {
    for n in [2, 3, 5, 7] {
        let mut cluster = Cluster::new(n);
        cluster.run(6 * TIMEOUT_US);
        let leader = cluster.leader();
        assert!(leader.is_some(), "{n} nodes");
        let elected = cluster.leaders.len();
        cluster.run(100 * TIMEOUT_US);
        assert_eq!((cluster.leader(), cluster.leaders.len()), (leader, elected), "{n} nodes");
    }
}

/// A single node needs nobody: it elects itself at its first tick and commits with its own disk,
/// and not before its disk is done.
#[test]
fn a_single_node_elects_itself_at_once_and_commits() {
    let mut solo = Solo::on(Platter::new(voters(1)));
    solo.disk_is_fast = false;
    solo.pass(0);
    assert_eq!(solo.raft.role(), RoleName::Candidate, "its own vote is not durable yet");
    solo.write_one();
    assert_eq!(solo.raft.role(), RoleName::Leader);
    assert_eq!(solo.raft.commit_index(), 0);
    solo.write_one();
    assert_eq!(solo.raft.commit_index(), 1);
    solo.disk_is_fast = true;
    solo.pass(20 * TIMEOUT_US);
    assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Leader, 1));
}

/// PreVote (thesis 9.6): a node that was cut off for long has not raised its term, and nobody
/// notices its return.
#[test]
fn a_node_that_comes_back_does_not_disturb() {
    let mut cluster = led(3);
    cluster.isolate(3);
    cluster.run(50 * TIMEOUT_US);
    assert_eq!(cluster.raft(3).role(), RoleName::PreCandidate);
    cluster.propose(1, "meanwhile").unwrap();
    cluster.cuts.clear();
    cluster.run(3 * TIMEOUT_US);
    assert_eq!((cluster.leader(), terms(&cluster)), (Some(1), vec![1, 1, 1]));
    assert_eq!(cluster.raft(3).applied_index(), 2);
}

/// A pre-vote is granted only by whoever would vote so: no leader heard, an up-to-date log, a term
/// that is not there yet. It changes nothing at the voter.
#[test]
fn a_pre_vote_changes_nothing() {
    let ask = Body::RequestPreVote { last_index: 0, last_term: 0 };
    let mut solo = Solo::new();
    let timer = solo.raft.next_tick_us();
    let sent = solo.step(2, 7, ask.clone());
    assert_eq!(
        (sent[0].term, &sent[0].body),
        (7, &Body::PreVoteResponse { granted: true }),
        "it names the term it is for"
    );
    assert_eq!(solo.raft.hard_state(), HardState::default());
    assert_eq!(solo.raft.next_tick_us(), timer);
    assert!(solo.pending.is_empty());
    let sent = solo.step(3, 7, ask);
    assert_eq!(bodies(&sent), [&Body::PreVoteResponse { granted: true }], "and to others alike");
}

/// A grant of an earlier campaign is for another term and counts for nothing now.
#[test]
fn a_pre_vote_of_another_term_does_not_count() {
    let mut solo = Solo::on(Platter::of_terms(voters(3), 4, &[]));
    solo.expire();
    for term in [1, 3, 4, 6, 9] {
        solo.step(2, term, Body::PreVoteResponse { granted: true });
        assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::PreCandidate, 4), "{term}");
    }
    solo.step(2, 5, Body::PreVoteResponse { granted: true });
    assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Candidate, 5));
}

/// CheckQuorum (thesis 6.2): a leader that cannot reach a majority gives up within two election
/// timeouts, in its own term.
#[test]
fn a_leader_without_a_majority_steps_down() {
    let mut cluster = led(5);
    cluster.part(&[1], &[2, 3]);
    cluster.run(10 * TIMEOUT_US);
    assert_eq!(cluster.leader(), Some(1), "three of five are a majority");
    cluster.cuts.clear();
    cluster.run(TIMEOUT_US);
    cluster.part(&[1, 2], &[3, 4, 5]);
    cluster.run(2 * TIMEOUT_US);
    assert_ne!(cluster.raft(1).role(), RoleName::Leader);
    assert_eq!(cluster.raft(1).term(), 1);
    cluster.run(4 * TIMEOUT_US);
    assert!([3, 4, 5].contains(&cluster.leader().unwrap()));
}

/// Stickiness (thesis 4.2.3): who hears a leader disregards a candidate of a later term: no vote,
/// not even the term. It is over when the leader was silent for an election timeout.
#[test]
fn who_hears_a_leader_disregards_candidates() {
    let vote = Body::RequestVote { last_index: 9, last_term: 9, transfer: false };
    let mut solo = Solo::new();
    solo.step(2, 1, heartbeat(0, 0));
    solo.now_us += TIMEOUT_US - 1;
    assert!(solo.step(3, 9, vote.clone()).is_empty());
    assert_eq!((solo.raft.term(), solo.raft.leader()), (1, Some(2)));
    solo.now_us += 1;
    assert_eq!(bodies(&solo.step(3, 9, vote.clone())), [&Body::VoteResponse { granted: true }]);

    let mut leader = Solo::leader(Platter::new(voters(3)));
    assert!(leader.step(3, 9, vote).is_empty());
    assert_eq!(leader.raft.role(), RoleName::Leader);
}

/// A node that has seen a later term refuses the leader. The leader hears of that term and gives
/// up, so that the node can take part again; there is one disturbance, not one a timeout.
#[test]
fn a_node_of_a_later_term_is_taken_back_in() {
    let mut cluster = Cluster::of(
        (1..=3).map(|id| (id, Platter::of_terms(voters(3), if id == 3 { 40 } else { 1 }, &[1]))),
        1,
        |_| {},
    );
    cluster.isolate(3);
    cluster.elect(1);
    cluster.cuts.clear();
    cluster.run(6 * TIMEOUT_US);
    assert!(cluster.leader().is_some());
    assert_eq!(cluster.raft(3).leader(), cluster.leader());
    let (leaders, terms_now) = (cluster.leaders.len(), terms(&cluster));
    cluster.run(20 * TIMEOUT_US);
    assert_eq!((cluster.leaders.len(), terms(&cluster)), (leaders, terms_now));
}

fn time_to_new_leader(cluster: &mut Cluster) -> u64 {
    let begun = cluster.now_us;
    while cluster.leader().is_none() {
        cluster.run(1000);
        assert!(cluster.now_us < begun + 20 * TIMEOUT_US, "no leader");
    }
    cluster.now_us - begun
}

/// The leader crashes and nothing tells the others: they wait out the election timeout.
#[test]
fn a_silent_crash_costs_an_election_timeout() {
    let mut cluster = led(3);
    cluster.crash(1, 0, None);
    cluster.run(TIMEOUT_US / 2);
    assert_eq!(cluster.leader(), None);
    assert!(time_to_new_leader(&mut cluster) <= 4 * TIMEOUT_US);
    assert_eq!(cluster.raft(cluster.leader().unwrap()).term(), 2);
}

/// The leader crashes and its connections are seen to break: a new leader stands within a quarter
/// of an election timeout, for many different timers.
#[test]
fn a_crash_that_is_seen_costs_a_fraction_of_it() {
    for seed in 0..50 {
        let platters = (1..=3).map(|id| (id, Platter::new(voters(3))));
        let mut cluster = Cluster::of(platters, seed, |_| {});
        cluster.elect(1);
        cluster.run(HEARTBEAT_US);
        cluster.crash(1, 0, None);
        for id in [2, 3] {
            cluster.on(id, |raft, now| raft.peer_lost(1, now));
        }
        assert!(time_to_new_leader(&mut cluster) <= TIMEOUT_US / 4, "seed {seed}");
    }
}

/// One connection broke and the leader lives: the others stick to it, and the node that lost it
/// comes back without a new term.
#[test]
fn a_broken_connection_alone_deposes_nobody() {
    let mut cluster = led(3);
    cluster.part(&[1], &[3]);
    cluster.on(3, |raft, now| raft.peer_lost(1, now));
    cluster.on(1, |raft, now| raft.peer_lost(3, now));
    cluster.run(HEARTBEAT_US * 3);
    assert_eq!(cluster.raft(3).role(), RoleName::PreCandidate);
    cluster.cuts.clear();
    cluster.run(2 * TIMEOUT_US);
    assert_eq!((cluster.leader(), terms(&cluster)), (Some(1), vec![1, 1, 1]));
    assert_eq!(cluster.raft(3).leader(), Some(1));
}

/// Partitions of every shape, for long: no term grows, and whoever can reach a majority both ways
/// leads or follows in peace (design: no term inflation).
#[test]
fn no_partition_inflates_terms() {
    type Links = &'static [(NodeId, NodeId)];
    let shapes: [(&str, Links, bool); 6] = [
        ("3 hears nothing", &[(1, 3), (2, 3)], true),
        ("3 reaches nobody", &[(3, 1), (3, 2)], true),
        ("3 does not hear the leader", &[(1, 3)], true),
        ("the leader does not hear 3", &[(3, 1)], true),
        ("leader and 3 are apart", &[(1, 3), (3, 1)], true),
        // It gives up (CheckQuorum), so that its heartbeats do not keep the others from electing.
        ("the leader hears nobody", &[(2, 1), (3, 1)], false),
    ];
    for (shape, cuts, stays) in shapes {
        let mut cluster = led(3);
        cluster.cuts.extend(cuts.iter().copied());
        cluster.run(100 * TIMEOUT_US);
        let highest = terms(&cluster).into_iter().max();
        assert!(highest <= Some(if stays { 1 } else { 2 }), "{shape}: {:?}", terms(&cluster));
        assert_eq!(cluster.leader() == Some(1), stays, "{shape}");
        let leader = cluster.leader().unwrap_or_else(|| panic!("{shape}: no leader"));
        let index = cluster.propose(leader, shape).unwrap();
        cluster.run(HEARTBEAT_US);
        assert_eq!(cluster.committed.len() as Index, index, "{shape}");
        cluster.cuts.clear();
        cluster.run(4 * TIMEOUT_US);
        for id in 1..=3 {
            assert_eq!(cluster.raft(id).applied_index(), index, "{shape}: node {id}");
        }
    }
}

/// A paused leader wakes up long after another was elected: its first tick takes its leadership.
#[test]
fn a_leader_that_slept_gives_up_on_waking() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    solo.step(2, 1, matched(1));
    solo.now_us += 100 * TIMEOUT_US;
    solo.event(|raft, now| raft.tick(now));
    assert_eq!(solo.raft.role(), RoleName::Follower);
}

/// Leadership is handed over (thesis 3.10): the successor is brought up to date first, proposals
/// are refused meanwhile, and it is elected though everybody hears the old leader.
#[test]
fn leadership_is_handed_over() {
    let mut cluster = led(3);
    cluster.propose(1, "x").unwrap();
    assert_eq!(cluster.on(1, |raft, now| raft.transfer(Some(3), now)), Some(Ok(3)));
    assert_eq!(cluster.propose(1, "y"), Err(NotProposed::Transferring));
    let again = cluster.on(1, |raft, now| raft.transfer(Some(2), now));
    assert_eq!(again, Some(Err(NotProposed::Transferring)));
    let told = |m: &Message| m.body == Body::TimeoutNow;
    assert!(!cluster.net.iter().any(told), "node 3 lacks an entry");
    cluster.settle();
    assert_eq!((cluster.leader(), terms(&cluster)), (Some(3), vec![2, 2, 2]));
    let refused = cluster.propose(1, "y");
    assert_eq!(refused, Err(NotProposed::NotLeader { leader: Some(3) }));
    cluster.propose(3, "y").unwrap();
    cluster.run(HEARTBEAT_US);
    assert_eq!(cluster.raft(1).applied_index(), 4);
}

/// The successor does not answer: after an election timeout the leader goes on as if nothing had
/// been asked.
#[test]
fn a_hand_over_that_fails_is_given_up() {
    let mut cluster = led(3);
    cluster.isolate(3);
    cluster.on(1, |raft, now| raft.transfer(Some(3), now)).unwrap().unwrap();
    cluster.run(TIMEOUT_US - HEARTBEAT_US);
    assert_eq!(cluster.propose(1, "x"), Err(NotProposed::Transferring));
    cluster.run(2 * HEARTBEAT_US);
    assert_eq!((cluster.propose(1, "x"), cluster.raft(1).term()), (Ok(2), 1));
}

/// A voter is down, and leadership is to go there: refused at once, and writes go on. Without a
/// name it goes to the one that is up, though the other was as far.
#[test]
fn leadership_is_not_handed_to_who_is_not_heard() {
    let mut cluster = led(3);
    cluster.isolate(3);
    cluster.run(2 * TIMEOUT_US);
    let to_three = cluster.on(1, |raft, now| raft.transfer(Some(3), now));
    assert_eq!(to_three, Some(Err(NotProposed::Unreachable { id: 3 })));
    assert!(cluster.propose(1, "x").is_ok());
    assert_eq!(cluster.on(1, |raft, now| raft.transfer(None, now)), Some(Ok(2)));
}

/// Leadership goes to voters only, and handing it to oneself is done already.
#[test]
fn leadership_goes_to_voters_only() {
    let mut configuration = Configuration::of_voters(1, (1..=3).map(member).collect());
    configuration.members.push(member(4));
    configuration.learners.insert(4);
    let mut solo = Solo::leader(Platter::new(std::sync::Arc::new(configuration)));
    let no = |id| Err(NotProposed::NoVoter { id });
    assert_eq!(solo.event(|r, now| r.transfer(Some(4), now)), no(4));
    assert_eq!(solo.event(|r, now| r.transfer(Some(9), now)), no(9));
    assert_eq!(solo.event(|r, now| r.transfer(Some(1), now)), Ok(1));
    assert_eq!(solo.raft.may_propose(), Ok(()));
    let mut alone = Solo::on(Platter::new(voters(1)));
    alone.pass(0);
    let nobody = Err(NotProposed::NoSuccessor);
    assert_eq!(alone.event(|r, now| r.transfer(None, now)), nobody);
    assert_eq!(alone.raft.may_propose(), Ok(()));
}

/// The successor is not named: it is one that was heard of late and has the most, not the one that
/// acknowledged last before it died.
#[test]
fn the_best_successor_is_alive_and_has_the_most() {
    let mut solo = Solo::leader(Platter::new(voters(5)));
    for (id, index) in [(2, 1), (4, 1), (5, 0), (3, 1)] {
        solo.now_us += 1000;
        solo.step(id, 1, matched(index));
    }
    for _ in 0..10 {
        solo.pass(HEARTBEAT_US);
        for id in [2, 5, 4] {
            solo.step(id, 1, Body::HeartbeatResponse { round: 0 });
        }
    }
    let to = solo.event(|raft, now| raft.transfer(None, now));
    assert!(to == Ok(2) || to == Ok(4), "{to:?}");
}

/// TimeoutNow counts only from the leader of the term, and never makes a learner stand.
#[test]
fn timeout_now_counts_only_from_the_leader() {
    let mut solo = Solo::new();
    solo.step(2, 1, heartbeat(0, 0));
    solo.step(3, 1, Body::TimeoutNow);
    assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Follower, 1));
    let sent = solo.step(2, 1, Body::TimeoutNow);
    assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Candidate, 2));
    let transfers = |m: &Message| matches!(m.body, Body::RequestVote { transfer: true, .. });
    assert!(sent.iter().all(transfers) && sent.len() == 2);

    let mut configuration = Configuration::of_voters(1, vec![member(2), member(3)]);
    configuration.members.insert(0, member(1));
    configuration.learners.insert(1);
    let mut learner = Solo::on(Platter::new(std::sync::Arc::new(configuration)));
    learner.step(2, 1, heartbeat(0, 0));
    learner.step(2, 1, Body::TimeoutNow);
    learner.pass(10 * TIMEOUT_US);
    assert_eq!((learner.raft.role(), learner.raft.term()), (RoleName::Follower, 1));
}

/// An election takes longer than a candidate's patience because its disk is slow: it does not
/// campaign again and again, but waits for its disk and is then elected.
#[test]
fn a_candidate_with_a_slow_disk_waits_for_it() {
    let mut solo = Solo::new();
    solo.expire();
    solo.disk_is_fast = false;
    solo.step(2, 1, Body::PreVoteResponse { granted: true });
    solo.pass(20 * TIMEOUT_US);
    assert!(solo.raft.term() <= 2, "term {}", solo.raft.term());
    assert!(solo.pending.len() <= 2);
    solo.disk_is_fast = true;
    while !solo.pending.is_empty() {
        solo.write_one();
    }
    solo.become_leader();
}

/// One member is gone for good. Of the others one has the longer log and a low term, the rest shorter logs
/// and a high term: only the first can win, in a term above theirs, of which nothing but refusals of its
/// pre-votes tells it. Were a pre-vote of an old term left unanswered, nobody would lead any more.
#[test]
fn the_longest_log_wins_from_the_lowest_term() {
    for n in [3, 5] {
        let disk = |id| match id {
            1 => (id, Platter::of_terms(voters(n), 2, &[1, 2, 2])),
            _ => (id, Platter::of_terms(voters(n), 9, &[1, 1])),
        };
        for seed in 1..=20 {
            let mut cluster = Cluster::of((1..=n).map(disk), seed, |_| {});
            // As many are gone as may be.
            (n / 2 + 2..=n).for_each(|id| cluster.isolate(id));
            cluster.run(20 * TIMEOUT_US);
            assert_eq!(cluster.leader(), Some(1), "{n} nodes, seed {seed}");
            assert!(cluster.raft(1).term() > 9);
        }
    }
}

/// Section 5.2: a node that has given its vote waits a whole election timeout for what comes of it, also when the term
/// was known before.
#[test]
fn a_voter_gives_its_candidate_time() {
    let mut solo = Solo::new();
    solo.step(2, 1, Body::HeartbeatResponse { round: 0 });
    solo.pass(TIMEOUT_US - 1);
    let request = Body::RequestVote { last_index: 0, last_term: 0, transfer: false };
    let answer = solo.step(3, 1, request);
    assert!(matches!(answer[..], [Message { body: Body::VoteResponse { granted: true }, .. }]));
    solo.pass(TIMEOUT_US - 1);
    assert_eq!((solo.raft.role(), solo.take().len()), (RoleName::Follower, 0));
    solo.pass(TIMEOUT_US + 1);
    assert_eq!(solo.raft.role(), RoleName::PreCandidate);
}

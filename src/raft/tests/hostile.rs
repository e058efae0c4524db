//! What peers say is data from outside: whatever it is, it trips no assertion (the core's own and
//! those of its invariants run after every message), and what is committed stays.

use super::solo::*;
use crate::raft::*;
use proptest::prelude::*;
use std::sync::Arc;

/// Small numbers meet what is there; great ones overflow what is not checked.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0..9u64,
        1 => Just(1 << 62),
        1 => Just((1 << 62) + 1),
        1 => Just(u64::MAX - 1),
        1 => Just(u64::MAX),
    ]
}

fn any_configuration() -> impl Strategy<Value = Arc<Configuration>> {
    let set = || proptest::collection::btree_set(1..5u64, 0..4);
    (set(), set(), set()).prop_map(|(voters, outgoing, learners)| {
        let members = (1..5).map(member).collect();
        let sets = Configuration { voters, outgoing, learners, ..Configuration::default() };
        Arc::new(Configuration { cluster: 1, members, last_id: 4, ..sets })
    })
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let payload = prop_oneof![
        4 => Just(Payload::Noop),
        4 => Just(Payload::Command(Arc::from(&b"lie"[..]))),
        1 => any_configuration().prop_map(Payload::Configuration),
    ];
    (number(), number(), payload).prop_map(|(index, term, payload)| Entry { index, term, payload })
}

/// Entries that follow `prev` with terms that mostly ascend, so that they get past the first look.
fn plausible_append() -> impl Strategy<Value = Body> {
    let steps = proptest::collection::vec((0..2u64, any_entry()), 0..5);
    (number(), number(), number(), number(), steps).prop_map(
        |(prev_index, prev_term, commit, round, steps)| {
            let (mut index, mut term) = (prev_index, prev_term);
            let follow = |(step, mut entry): (u64, Entry)| {
                index = index.wrapping_add(1);
                term = term.wrapping_add(step);
                (entry.index, entry.term) = (index, term);
                entry
            };
            let entries = steps.into_iter().map(follow).collect();
            Body::AppendEntries { prev_index, prev_term, commit, round, entries }
        },
    )
}

fn any_body() -> impl Strategy<Value = Body> {
    let anything = proptest::collection::vec(any_entry(), 0..4);
    let result = prop_oneof![
        number().prop_map(|index| AppendResult::Matched { index }),
        (number(), number(), number()).prop_map(|(prev_index, hint_index, hint_term)| {
            AppendResult::Conflict { prev_index, hint_index, hint_term }
        }),
    ];
    prop_oneof![
        4 => plausible_append(),
        1 => (number(), number(), number(), number(), anything).prop_map(
            |(prev_index, prev_term, commit, round, entries)| Body::AppendEntries {
                prev_index, prev_term, commit, round, entries,
            }),
        3 => (result, number()).prop_map(|(result, round)| Body::AppendResponse { result, round }),
        2 => (number(), number(), number()).prop_map(|(commit, commit_term, round)| {
            Body::Heartbeat { commit, commit_term, round }
        }),
        1 => number().prop_map(|round| Body::HeartbeatResponse { round }),
        2 => any::<bool>().prop_map(|granted| Body::VoteResponse { granted }),
        2 => any::<bool>().prop_map(|granted| Body::PreVoteResponse { granted }),
        1 => (number(), number()).prop_map(|(last_index, last_term)| {
            Body::RequestPreVote { last_index, last_term }
        }),
        1 => (number(), number(), any::<bool>()).prop_map(|(last_index, last_term, transfer)| {
            Body::RequestVote { last_index, last_term, transfer }
        }),
        1 => (number(), number(), any_configuration()).prop_map(
            |(last_index, last_term, configuration)| Body::InstallSnapshot {
                last_index, last_term, configuration,
            }),
        1 => (number(), any::<bool>()).prop_map(|(last_index, installed)| {
            Body::SnapshotResponse { last_index, installed }
        }),
        1 => Just(Body::TimeoutNow),
        1 => number().prop_map(|id| Body::ReadIndex { id }),
        1 => (number(), proptest::option::of(number()))
            .prop_map(|(id, index)| Body::ReadIndexResponse { id, index }),
    ]
}

#[derive(Clone, Debug)]
enum Event {
    /// A message, in the core's own term or that one off when the number is small.
    Hear(NodeId, u64, Body),
    Pass(u64),
    Write,
    Propose,
    Read,
    Transfer,
    Lost(NodeId),
}

fn event() -> impl Strategy<Value = Event> {
    let from = prop_oneof![4 => 2..4u64, 1 => 0..6u64];
    prop_oneof![
        16 => (from, number(), any_body()).prop_map(|(from, n, body)| Event::Hear(from, n, body)),
        2 => (0..2 * TIMEOUT_US).prop_map(Event::Pass),
        3 => Just(Event::Write),
        1 => Just(Event::Propose),
        1 => Just(Event::Read),
        1 => Just(Event::Transfer),
        1 => (1..4u64).prop_map(Event::Lost),
    ]
}

fn play(mut solo: Solo, fast: bool, events: Vec<Event>) {
    solo.disk_is_fast = fast;
    for event in events {
        match event {
            Event::Hear(from, n, body) => {
                let term = match n {
                    0..6 => solo.raft.term(),
                    6 => solo.raft.term().saturating_sub(1),
                    7 | 8 => solo.raft.term().saturating_add(1),
                    _ => n,
                };
                solo.step(from, term, body);
            }
            Event::Pass(us) => solo.pass(us),
            Event::Write if solo.pending.is_empty() => {}
            Event::Write => solo.write_one(),
            Event::Propose => {
                let _ = solo.event(|raft, _| raft.propose([Arc::from(&b"ours"[..])]));
            }
            Event::Read => solo.event(|raft, _| raft.read(1)),
            Event::Transfer => {
                let _ = solo.event(|raft, now| raft.transfer(None, now));
            }
            Event::Lost(peer) => solo.event(|raft, now| raft.peer_lost(peer, now)),
        }
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// A follower, with some of its log committed, hears anything at all.
    #[test]
    fn no_message_trips_a_follower(
        fast: bool,
        applied in 0..4u64,
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let mut platter = Platter::of_terms(voters(3), 4, &[1, 2, 2, 4]);
        platter.applied = applied;
        play(Solo::on(platter), fast, events);
    }

    /// A leader hears anything at all.
    #[test]
    fn no_message_trips_a_leader(
        fast: bool,
        base in 0..3u64,
        events in proptest::collection::vec(event(), 0..40),
    ) {
        let mut platter = Platter::of_terms(voters(3), 4, &[1, 2, 2, 4]);
        platter.base = base;
        platter.base_term = u64::from(base > 0);
        platter.log = entries(base + 1, &[1, 2, 2, 4]);
        play(Solo::leader(platter), fast, events);
    }
}

/// A peer claims the greatest term there is, behind which no other could come: it is not believed.
#[test]
fn an_absurd_term_is_not_believed() {
    for term in [u64::MAX, u64::MAX - 1, 1 << 63] {
        let mut solo = Solo::leader(Platter::new(voters(3)));
        for body in [append((0, 0), &[1], 0), Body::VoteResponse { granted: false }] {
            assert!(solo.step(2, term, body).is_empty());
        }
        assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Leader, 1));
    }
}

/// One faulty member says the latest term that is plausible, whatever it says beside. Nobody takes it over: in
/// the term behind it nobody could ever be elected. What an honest member can have missed is believed.
#[test]
fn no_member_takes_the_others_to_the_last_term() {
    let bodies = || {
        let vote = Body::RequestVote { last_index: 9, last_term: 9, transfer: true };
        let refused = [Body::VoteResponse { granted: false }, Body::HeartbeatResponse { round: 0 }];
        [append((0, 0), &[1], 0), heartbeat(0, 0), vote].into_iter().chain(refused)
    };
    for term in [NUMBER_MAX - 1, (1 << 40) + 1] {
        for body in bodies() {
            let mut solo = Solo::leader(Platter::new(voters(3)));
            solo.step(2, term, body);
            assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Leader, 1));
        }
    }
    let believed = bodies().filter(|body| !matches!(body, Body::VoteResponse { .. }));
    for body in believed {
        let mut solo = Solo::leader(Platter::new(voters(3)));
        solo.step(2, 1 << 32, body);
        assert_eq!(solo.raft.term(), 1 << 32);
        // Again and again it gets nowhere: a life takes over so many, and some more with time.
        solo.step(2, 2 << 32, heartbeat(0, 0));
        assert_eq!(solo.raft.term(), 1 << 32);
    }
}

/// Somebody who is no member, or has no vote, says a later term. A leader goes on, and so does who hears it;
/// answers end nobody's term at any time. Who hears no leader any more believes one that it does not know: its
/// own configuration may be the old one.
#[test]
fn who_has_no_vote_ends_no_term() {
    let answers = [
        Body::VoteResponse { granted: false },
        Body::PreVoteResponse { granted: false },
        Body::HeartbeatResponse { round: 0 },
        matched(1),
    ];
    let mut leader = Solo::leader(Platter::new(voters(3)));
    let mut follower = Solo::on(Platter::new(voters(3)));
    follower.step(2, 1, heartbeat(0, 0));
    for solo in [&mut leader, &mut follower] {
        let role = solo.raft.role();
        for body in answers.iter().cloned().chain([heartbeat(0, 0), append((0, 0), &[2], 0)]) {
            assert!(solo.step(9, 2, body).is_empty());
            assert_eq!((solo.raft.role(), solo.raft.term()), (role, 1));
        }
    }
    follower.pass(2 * TIMEOUT_US);
    let term = follower.raft.term();
    for body in answers {
        follower.step(9, term + 1, body);
        assert_eq!(follower.raft.term(), term);
    }
    follower.step(9, term + 1, heartbeat(0, 0));
    assert_eq!((follower.raft.term(), follower.raft.leader()), (term + 1, Some(9)));
}

/// A voter answers over and over, in a term one later each time, what nobody has asked it: the leader goes on, and so
/// do those who hear it. A candidate has asked, and learns that it is behind.
#[test]
fn answers_to_votes_that_nobody_asked_for_end_no_leader() {
    let mut leader = Solo::leader(Platter::new(voters(3)));
    let mut follower = Solo::on(Platter::new(voters(3)));
    follower.step(2, 1, heartbeat(0, 0));
    for term in 2..50 {
        for granted in [false, true] {
            assert!(leader.step(3, term, Body::VoteResponse { granted }).is_empty());
            assert!(follower.step(3, term, Body::VoteResponse { granted }).is_empty());
        }
    }
    assert_eq!((leader.raft.role(), leader.raft.term()), (RoleName::Leader, 1));
    assert_eq!((follower.raft.leader(), follower.raft.term()), (Some(2), 1));
    let mut candidate = Solo::on(Platter::new(voters(3)));
    candidate.expire();
    candidate.step(2, 1, Body::PreVoteResponse { granted: true });
    assert_eq!(candidate.raft.role(), RoleName::Candidate);
    let term = candidate.raft.term();
    candidate.step(3, term + 5, Body::VoteResponse { granted: false });
    assert_eq!((candidate.raft.role(), candidate.raft.term()), (RoleName::Follower, term + 5));
}

/// A leader of a later term sends other entries than those that are committed here. That cannot be
/// (Leader Completeness), so nothing of the message is taken, whatever follows behind them.
#[test]
fn entries_that_contradict_what_is_committed_are_refused() {
    let lies = [append((1, 1), &[1, 1, 1], 9), append((2, 1), &[1, 1], 9), append((2, 9), &[9], 9)];
    for lie in lies {
        let mut solo = Solo::new();
        solo.step(2, 2, append((0, 0), &[1, 2], 2));
        assert_eq!(solo.raft.commit_index(), 2);
        assert!(solo.step(3, 9, lie).is_empty());
        assert_eq!((solo.raft.last_index(), solo.raft.commit_index()), (2, 2));
        assert_eq!(solo.platter.log, entries(1, &[1, 2]));
    }
}

/// A follower claims to have more than there is: nothing is committed by that.
#[test]
fn a_match_behind_the_end_of_the_log_is_ignored() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    for index in [2, 100, u64::MAX] {
        solo.step(2, 1, matched(index));
        assert_eq!(solo.raft.commit_index(), 0);
        assert_eq!(solo.raft.progress()[0].match_index, 0);
    }
}

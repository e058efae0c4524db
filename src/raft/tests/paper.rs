//! Figure 2 of the extended paper, rule by rule, and the election restriction of section 5.4.1.

use super::solo::*;
use crate::raft::*;

const PRE: Body = Body::PreVoteResponse { granted: true };
const YES: Body = Body::VoteResponse { granted: true };
const NO: Body = Body::VoteResponse { granted: false };

fn on_terms(term: Term, terms: &[Term]) -> Solo {
    Solo::on(Platter::of_terms(voters(3), term, terms))
}

fn request_vote(last_index: Index, last_term: Term) -> Body {
    Body::RequestVote { last_index, last_term, transfer: false }
}

fn conflict(prev_index: Index, hint_index: Index, hint_term: Term) -> Body {
    let result = AppendResult::Conflict { prev_index, hint_index, hint_term };
    Body::AppendResponse { result, round: 0 }
}

/// A candidate in term 1.
fn candidate() -> (Solo, Vec<Message>) {
    let mut solo = Solo::new();
    solo.expire();
    let requests = solo.step(2, 1, PRE);
    assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Candidate, 1));
    (solo, requests)
}

fn appends(messages: &[Message], to: NodeId) -> Vec<(Index, Vec<Index>)> {
    let of = |m: &Message| match &m.body {
        Body::AppendEntries { prev_index, entries, .. } if m.to == to => {
            Some((*prev_index, entries.iter().map(|e| e.index).collect()))
        }
        _ => None,
    };
    messages.iter().filter_map(of).collect()
}

// ---- all servers ----

/// All servers: if commitIndex > lastApplied, apply, in order and each entry once.
#[test]
fn all_servers_apply_what_is_committed() {
    let mut solo = Solo::new();
    solo.step(2, 1, append((0, 0), &[1, 1, 1], 2));
    solo.step(2, 1, append((3, 1), &[1], 4));
    let handed: Vec<_> = solo.handed.iter().flat_map(|c| c.entries.clone()).collect();
    assert_eq!(handed, entries(1, &[1, 1, 1, 1]));
    assert_eq!(solo.raft.applied_index(), 4);
}

/// All servers: a request or response with a greater term sets currentTerm and makes a follower of
/// a leader; the new term is durable before an answer shows it. (But for an answer to a vote, for which only a candidate
/// has a use: `belief.rs`.)
#[test]
fn all_servers_follow_a_greater_term() {
    for body in [matched(1), Body::HeartbeatResponse { round: 0 }, append((0, 0), &[5], 0)] {
        let mut solo = Solo::leader(Platter::new(voters(3)));
        solo.disk_is_fast = false;
        let sent = solo.step(2, 5, body);
        assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Follower, 5));
        assert_eq!(solo.raft.hard_state().vote, None, "a new term begins without a vote");
        assert!(sent.iter().all(|m| m.term < 5), "term 5 is not durable yet: {sent:?}");
        while !solo.pending.is_empty() {
            solo.write_one();
        }
        assert_eq!(solo.platter.hard.term, 5);
    }
}

// ---- followers ----

/// Followers: respond to RPCs from candidates and leaders.
#[test]
fn followers_respond_to_candidates_and_leaders() {
    let mut solo = Solo::new();
    assert_eq!(bodies(&solo.step(2, 1, request_vote(0, 0))), [&YES]);
    assert_eq!(bodies(&solo.step(2, 1, heartbeat(0, 0))), [&Body::HeartbeatResponse { round: 0 }]);
    assert_eq!(bodies(&solo.step(2, 1, append((0, 0), &[1], 0))), [&matched(1)]);
    assert_eq!(solo.raft.leader(), Some(2));
}

/// Followers: an election timeout without AppendEntries from the current leader or granting a vote
/// begins an election (here its pre-vote); either of the two puts it off.
#[test]
fn followers_campaign_after_a_silent_election_timeout() {
    let mut solo = Solo::new();
    for _ in 0..50 {
        solo.step(2, 1, heartbeat(0, 0));
        solo.pass(TIMEOUT_US - 1);
        assert_eq!(solo.raft.role(), RoleName::Follower);
    }
    solo.pass(TIMEOUT_US + 1);
    assert_eq!(solo.raft.role(), RoleName::PreCandidate);

    let mut solo = Solo::new();
    for term in 1..50 {
        solo.step(2, term, request_vote(0, 0));
        solo.pass(TIMEOUT_US - 1);
        assert_eq!(solo.raft.role(), RoleName::Follower);
    }
}

/// Section 5.2: election timeouts are random in one to two times the smallest, and differ.
#[test]
fn election_timeouts_are_random_within_their_range() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let solo = Solo::with(Platter::new(voters(3)), |o| o.seed = seed);
        let wait = solo.raft.next_tick_us();
        assert!((TIMEOUT_US..2 * TIMEOUT_US).contains(&wait), "{wait}");
        seen.insert(wait);
    }
    assert!(seen.len() > 40, "they differ");
}

// ---- candidates ----

/// Candidates: on conversion, increment currentTerm, vote for self, reset the timer, ask all.
#[test]
fn candidates_begin_an_election() {
    let mut solo = on_terms(3, &[1, 3]);
    solo.expire();
    let timer = solo.raft.next_tick_us();
    solo.take();
    let sent = solo.step(2, 4, PRE);
    assert_eq!(solo.raft.hard_state(), HardState { term: 4, vote: Some(1) });
    assert_eq!(solo.platter.hard, solo.raft.hard_state());
    assert_ne!(solo.raft.next_tick_us(), timer);
    assert_eq!(sent.iter().map(|m| (m.to, m.term)).collect::<Vec<_>>(), [(2, 4), (3, 4)]);
    assert_eq!(bodies(&sent), [&request_vote(2, 3), &request_vote(2, 3)]);
}

/// Candidates: votes from a majority make a leader, not one vote less, and none counted twice.
#[test]
fn candidates_with_a_majority_lead() {
    let mut solo = Solo::on(Platter::new(voters(5)));
    solo.expire();
    solo.step(2, 1, PRE);
    solo.step(3, 1, PRE);
    assert_eq!(solo.raft.role(), RoleName::Candidate);
    solo.step(2, 1, YES);
    solo.step(2, 1, YES);
    solo.step(4, 1, NO);
    solo.step(9, 1, YES);
    assert_eq!(solo.raft.role(), RoleName::Candidate, "two votes of five, and a stranger's");
    solo.step(3, 1, YES);
    assert_eq!(solo.raft.role(), RoleName::Leader);
}

/// Candidates: AppendEntries from a new leader of the term makes a follower.
#[test]
fn candidates_follow_the_leader_of_their_term() {
    for body in [append((0, 0), &[1], 0), heartbeat(0, 0)] {
        let (mut solo, _) = candidate();
        solo.step(3, 1, body);
        assert_eq!((solo.raft.role(), solo.raft.leader()), (RoleName::Follower, Some(3)));
        assert_eq!(solo.raft.hard_state().vote, Some(1), "the vote of the term stays");
    }
}

/// Candidates: an election timeout begins a new election (again with its pre-vote).
#[test]
fn candidates_start_over_after_an_election_timeout() {
    let (mut solo, _) = candidate();
    solo.pass(2 * TIMEOUT_US);
    assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::PreCandidate, 1));
    solo.step(2, 2, PRE);
    assert_eq!((solo.raft.role(), solo.raft.term()), (RoleName::Candidate, 2));
}

// ---- leaders ----

/// Leaders: upon election send heartbeats at once, and again while idle.
#[test]
fn leaders_send_heartbeats_at_once_and_while_idle() {
    let (mut solo, _) = candidate();
    let sent = solo.step(2, 1, YES);
    let beats = |sent: &[Message]| {
        let beat = |m: &&Message| matches!(m.body, Body::Heartbeat { .. });
        sent.iter().filter(beat).map(|m| m.to).collect::<Vec<_>>()
    };
    assert_eq!(beats(&sent), [2, 3]);
    solo.step(2, 1, matched(1));
    for _ in 0..3 {
        solo.pass(HEARTBEAT_US);
        assert_eq!(beats(&solo.take()), [2, 3]);
    }
}

/// Leaders: a command is appended to the own log first, and answered once it is applied: here, the
/// entry is handed to the applier when it is committed, not before.
#[test]
fn leaders_append_commands_and_hand_them_on_when_committed() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    let command: std::sync::Arc<[u8]> = std::sync::Arc::from(&b"x"[..]);
    assert_eq!(solo.event(|r, _| r.propose([command.clone()])), Ok(2));
    assert_eq!(solo.raft.last_index(), 2);
    assert!(solo.handed.is_empty());
    solo.step(2, 1, matched(2));
    assert_eq!(solo.handed.len(), 1);
    assert_eq!(solo.handed[0].entries[1].payload, Payload::Command(command));
}

/// Leaders: nextIndex starts behind the last index, and a follower whose log lacks anything from
/// there is sent AppendEntries beginning at nextIndex.
#[test]
fn leaders_send_from_next_index() {
    let mut solo = on_terms(1, &[1, 1, 1]);
    solo.expire();
    solo.step(2, 2, PRE);
    let sent = solo.step(2, 2, YES);
    assert_eq!(appends(&sent, 3), [(3, vec![4])], "the no-op, behind everything it had");
}

/// Leaders: success moves nextIndex and matchIndex; inconsistency takes nextIndex back and tries
/// again.
#[test]
fn leaders_move_next_index_by_the_answers() {
    let mut solo = Solo::leader_with(Platter::of_terms(voters(3), 1, &[1, 1, 1]), |_| {});
    let sent = solo.step(2, 2, conflict(3, 1, 1));
    assert_eq!(
        appends(&sent, 2),
        [(1, vec![])],
        "what is behind it must be read from the log file"
    );
    solo.step(2, 2, matched(1));
    assert_eq!(solo.from_log[0].first, 2);
    let read = EntriesRead { to: 2, term: 2, first: 2, sent: Some((4, 300)) };
    solo.event(|raft, now| raft.entries_read(&read, now));
    solo.step(2, 2, matched(4));
    let progress = solo.raft.progress()[0];
    assert_eq!((progress.match_index, progress.state), (4, ProgressState::Replicate));
    let sent = solo.event(|r, _| r.propose([std::sync::Arc::from(&b"y"[..])]).map(|_| ()));
    assert_eq!(sent, Ok(()));
    assert_eq!(appends(&solo.take(), 2), [(4, vec![5])]);
}

/// Leaders (5.3, 5.4.2): N is committed when a majority has it and log[N].term = currentTerm.
#[test]
fn leaders_commit_only_entries_of_their_term_by_counting() {
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 2, &[1, 2]));
    solo.step(2, 3, matched(2));
    assert_eq!(solo.raft.commit_index(), 0, "a majority has 2, but it is of term 2");
    solo.step(2, 3, matched(3));
    assert_eq!(solo.raft.commit_index(), 3, "the no-op of term 3 commits what is before it");
}

/// Section 5.3: a leader never overwrites or deletes entries of its own log, whoever asks for it.
#[test]
fn leaders_never_overwrite_their_log() {
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 1, &[1, 1]));
    solo.step(2, 2, append((0, 0), &[2, 2, 2], 3));
    assert_eq!(solo.raft.last_index(), 3);
    assert_eq!(solo.raft.term_at(1), Some(1));
    assert_eq!(solo.raft.role(), RoleName::Leader);
}

// ---- RequestVote ----

/// RequestVote receiver 1: reply false if term < currentTerm, with the current term.
#[test]
fn request_vote_1_an_old_term_is_refused() {
    let mut solo = on_terms(4, &[]);
    let sent = solo.step(2, 3, request_vote(9, 3));
    assert_eq!((bodies(&sent), sent[0].term), (vec![&NO], 4));
    assert_eq!(solo.raft.hard_state(), HardState { term: 4, vote: None });
}

/// RequestVote receiver 2, first half: the vote goes to one candidate a term, however often it
/// asks, and to no other, also after a restart.
#[test]
fn request_vote_2_one_vote_a_term() {
    let mut solo = Solo::new();
    assert_eq!(bodies(&solo.step(2, 1, request_vote(0, 0))), [&YES]);
    assert_eq!(bodies(&solo.step(3, 1, request_vote(5, 1))), [&NO]);
    assert_eq!(bodies(&solo.step(2, 1, request_vote(0, 0))), [&YES], "the answer was lost");
    let mut solo = Solo::on(solo.platter);
    assert_eq!(bodies(&solo.step(3, 1, request_vote(5, 1))), [&NO]);
    assert_eq!(bodies(&solo.step(2, 1, request_vote(0, 0))), [&YES]);
    assert_eq!(bodies(&solo.step(3, 2, request_vote(0, 0))), [&YES], "a new term, a new vote");
}

/// RequestVote receiver 2, second half, and 5.4.1, the election restriction: the vote is given
/// only to a log that is at least as up to date: first the last term counts, then the length.
#[test]
fn request_vote_2_and_5_4_1_only_for_an_up_to_date_log() {
    let cases = [
        ((3, 3), true, "equal"),
        ((4, 3), true, "longer"),
        ((2, 3), false, "shorter"),
        ((1, 4), true, "shorter, with a later last term"),
        ((9, 2), false, "longer, with an earlier last term"),
        ((0, 0), false, "empty"),
    ];
    for ((last_index, last_term), granted, story) in cases {
        let mut solo = on_terms(3, &[1, 2, 3]);
        let sent = solo.step(2, 4, request_vote(last_index, last_term));
        assert_eq!(bodies(&sent), [&Body::VoteResponse { granted }], "{story}");
        let expected = HardState { term: 4, vote: granted.then_some(2) };
        assert_eq!(solo.platter.hard, expected, "{story}");

        let mut solo = on_terms(3, &[1, 2, 3]);
        let sent = solo.step(2, 4, Body::RequestPreVote { last_index, last_term });
        assert_eq!(bodies(&sent), [&Body::PreVoteResponse { granted }], "pre-vote: {story}");
        assert_eq!(solo.raft.hard_state(), HardState { term: 3, vote: None }, "changes nothing");
    }
}

// ---- AppendEntries ----

/// AppendEntries receiver 1: an old term is told the current one and changes nothing.
#[test]
fn append_entries_1_an_old_term_is_refused() {
    let mut solo = on_terms(4, &[1]);
    for body in [append((1, 1), &[3], 2), heartbeat(1, 1)] {
        let sent = solo.step(2, 3, body);
        assert_eq!((sent.len(), sent[0].term), (1, 4));
        assert!(!matches!(&sent[0].body, Body::AppendResponse { .. }), "nothing matched");
    }
    assert_eq!((solo.raft.last_index(), solo.raft.commit_index()), (1, 0));
    assert_eq!(solo.raft.leader(), None);
}

/// A leader counts on what a follower has acknowledged, and its disk is exchanged for an old copy that
/// ends in entries which were never committed. A heartbeat compares no entries: it commits here only
/// the very entry that it names, and what is before that.
#[test]
fn a_heartbeat_commits_only_what_this_log_holds() {
    // Index and term that the heartbeat names, on a log of the terms 1, 1, 2; what is committed then.
    let cases = [
        ((3, 3), 0, "another term: never committed here"),
        ((4, 3), 0, "missing: it was acknowledged by the disk of before"),
        ((2, 1), 2, "held, and with it all before it"),
        ((3, 2), 3, "held to the end"),
        ((0, 0), 0, "nothing named"),
    ];
    for ((commit, commit_term), expected, story) in cases {
        let mut solo = on_terms(2, &[1, 1, 2]);
        let sent = solo.step(2, 3, heartbeat(commit, commit_term));
        assert_eq!(bodies(&sent), [&Body::HeartbeatResponse { round: 0 }], "{story}");
        assert_eq!(solo.raft.commit_index(), expected, "{story}");
        assert_eq!(solo.raft.applied_index(), expected, "{story}");
    }
}

/// The leader's side of it: it names the term of the entry that the follower is known to match; of one
/// that its log has let go it cannot, and names none.
#[test]
fn a_heartbeat_names_the_term_of_what_is_committed() {
    let commits = |sent: &[Message], to: NodeId| {
        let of = |m: &Message| match m.body {
            Body::Heartbeat { commit, commit_term, .. } if m.to == to => {
                Some((commit, commit_term))
            }
            _ => None,
        };
        sent.iter().filter_map(of).collect::<Vec<_>>()
    };
    // Three entries of term 1, and the no-op of term 2.
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 1, &[1, 1, 1]));
    assert_eq!((solo.raft.term(), solo.raft.last_index()), (2, 4));
    solo.step(2, 2, matched(4));
    solo.step(3, 2, matched(2));
    solo.pass(HEARTBEAT_US);
    let sent = solo.take();
    assert_eq!((commits(&sent, 2), commits(&sent, 3)), (vec![(4, 2)], vec![(2, 1)]));
    solo.event(|raft, _| raft.compact(3));
    solo.pass(HEARTBEAT_US);
    let sent = solo.take();
    assert_eq!((commits(&sent, 2), commits(&sent, 3)), (vec![(4, 2)], vec![(0, 0)]));
}

/// AppendEntries receiver 2: no entry at prevLogIndex with prevLogTerm is a conflict.
#[test]
fn append_entries_2_the_entry_before_must_match() {
    let cases = [
        ((5, 3), conflict(5, 3, 2), "missing"),
        ((3, 3), conflict(3, 3, 2), "another term"),
        ((3, 1), conflict(3, 1, 1), "another term, a later one here: its whole run is skipped"),
    ];
    for (prev, expected, story) in cases {
        let mut solo = on_terms(3, &[1, 2, 2]);
        assert_eq!(bodies(&solo.step(2, 4, append(prev, &[4], 0))), [&expected], "{story}");
        assert_eq!(solo.raft.last_index(), 3, "{story}");
    }
}

/// AppendEntries receiver 3: an entry that conflicts is deleted with all that follow it.
#[test]
fn append_entries_3_conflicting_entries_are_deleted() {
    let mut solo = on_terms(3, &[1, 2, 2, 2]);
    assert_eq!(bodies(&solo.step(2, 4, append((1, 1), &[3], 0))), [&matched(2)]);
    assert_eq!(solo.platter.log, entries(1, &[1, 3]));
}

/// AppendEntries receivers 3 and 4: entries that are there already are left alone, and so is what
/// follows them: an old message, delivered late, takes nothing away.
#[test]
fn append_entries_4_only_what_is_new_is_appended() {
    let mut solo = Solo::new();
    solo.step(2, 1, append((0, 0), &[1, 1, 1], 0));
    assert_eq!(bodies(&solo.step(2, 1, append((0, 0), &[1, 1], 0))), [&matched(2)]);
    assert_eq!(solo.platter.log, entries(1, &[1, 1, 1]));
    assert_eq!(bodies(&solo.step(2, 1, append((1, 1), &[1, 1, 1], 0))), [&matched(4)]);
    assert_eq!(solo.platter.log, entries(1, &[1, 1, 1, 1]));
}

/// AppendEntries receiver 5: commitIndex = min(leaderCommit, index of last new entry); what lies
/// behind the message's entries may be another leader's.
#[test]
fn append_entries_5_commit_stops_at_the_last_new_entry() {
    let mut solo = on_terms(2, &[1, 1, 2, 2]);
    solo.step(2, 3, append((1, 1), &[1], 9));
    assert_eq!(solo.raft.commit_index(), 2);
    solo.step(2, 3, append((2, 1), &[3], 1));
    assert_eq!(solo.raft.commit_index(), 2, "it never goes back");
}

//! Replication: what must be durable before what, the races of asynchronous log writes, how fast
//! logs meet, what a slow applier costs, and configurations in the log.

use super::cluster::Cluster;
use super::solo::*;
use crate::raft::*;
use std::sync::Arc;

const YES: Body = Body::VoteResponse { granted: true };

pub(super) fn led(n: u64) -> Cluster {
    let mut cluster = Cluster::new(n);
    cluster.elect(1);
    cluster.run(HEARTBEAT_US);
    cluster
}

pub(super) fn propose(solo: &mut Solo, count: usize, bytes: usize) -> Vec<Message> {
    let command: Arc<[u8]> = vec![0; bytes].into();
    solo.event(|raft, _| raft.propose((0..count).map(|_| Arc::clone(&command)))).unwrap();
    solo.take()
}

/// Bytes of entries in messages to `to`.
pub(super) fn sent_bytes(messages: &[Message], to: NodeId) -> usize {
    let of = |m: &Message| match &m.body {
        Body::AppendEntries { entries, .. } if m.to == to => {
            entries.iter().map(Entry::weight).sum()
        }
        _ => 0,
    };
    messages.iter().map(of).sum()
}

// ---- durability ----

/// A vote leaves when it is durable, and not before; a crash in between has promised nothing.
#[test]
fn a_vote_leaves_when_it_is_durable() {
    let mut solo = Solo::new();
    solo.disk_is_fast = false;
    let vote = Body::RequestVote { last_index: 0, last_term: 0, transfer: false };
    assert!(solo.step(2, 1, vote.clone()).is_empty());
    let mut restarted = Solo::on(solo.platter.clone());
    assert_eq!(bodies(&restarted.step(3, 1, vote)), [&YES], "the vote was not given yet");
    solo.write_one();
    assert_eq!(bodies(&solo.take()), [&YES]);
}

/// An acknowledgement leaves when the entries are durable; one that is held back is dropped when
/// its term is over.
#[test]
fn an_acknowledgement_leaves_when_its_entries_are_durable() {
    let mut solo = Solo::new();
    solo.disk_is_fast = false;
    assert!(solo.step(2, 1, append((0, 0), &[1, 1], 0)).is_empty());
    assert!(solo.step(2, 1, append((2, 1), &[1], 0)).is_empty());
    solo.write_one();
    assert_eq!(bodies(&solo.take()), [&matched(2)]);
    solo.step(3, 2, heartbeat(0, 0));
    solo.write_one();
    assert_eq!(solo.raft.durable_index(), 3);
    assert!(solo.take().is_empty(), "term 1 is over");
    solo.write_one();
    assert_eq!(bodies(&solo.take()), [&Body::HeartbeatResponse { round: 0 }]);
}

/// Several messages of one leader wait for one write: one acknowledgement covers them.
#[test]
fn acknowledgements_that_wait_for_one_write_are_one() {
    let mut solo = Solo::new();
    solo.disk_is_fast = false;
    solo.raft.step(message(append((0, 0), &[1], 0)), 0);
    solo.raft.step(message(append((1, 1), &[1], 0)), 0);
    solo.raft.step(message(append((2, 1), &[1], 0)), 0);
    solo.event(|_, _| ());
    solo.write_one();
    assert_eq!(bodies(&solo.take()), [&matched(3)]);
}

fn message(body: Body) -> Message {
    Message { from: 2, to: 1, term: 1, body }
}

/// An entry is handed to the applier when it is committed *and* durable here.
#[test]
fn nothing_is_applied_before_it_is_durable_here() {
    let mut solo = Solo::new();
    solo.disk_is_fast = false;
    solo.step(2, 1, append((0, 0), &[1, 1], 2));
    assert_eq!(solo.raft.commit_index(), 2);
    assert!(solo.handed.is_empty());
    solo.write_one();
    assert_eq!(solo.raft.applied_index(), 2);
}

/// The leader's own disk is slow: followers commit without it, the leader counts itself only for
/// what is durable.
#[test]
fn the_leader_counts_itself_only_when_durable() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    solo.step(2, 1, matched(1));
    solo.disk_is_fast = false;
    propose(&mut solo, 1, 8);
    solo.step(2, 1, matched(2));
    assert_eq!(solo.raft.commit_index(), 1, "one of three, and a leader that does not know yet");
    solo.step(3, 1, matched(2));
    assert_eq!(solo.raft.commit_index(), 2, "two of three, without the leader");
    propose(&mut solo, 1, 8);
    solo.write_one();
    solo.write_one();
    assert_eq!(solo.raft.commit_index(), 2, "its own disk alone commits nothing");
    solo.step(3, 1, matched(3));
    assert_eq!(solo.raft.commit_index(), 3);
}

/// The leader's disk stalls for an election timeout: it keeps its followers quiet until then, and
/// hands over to one whose disk works. While its disk stalls it does not stand again.
#[test]
fn a_leader_whose_disk_stalls_hands_over() {
    let mut cluster = led(3);
    cluster.propose(1, "x").unwrap();
    let end = cluster.now_us + 2 * TIMEOUT_US;
    let mut led_until = 0;
    while cluster.now_us < end {
        cluster.now_us += 1000;
        for id in 1..=3 {
            cluster.tick(id);
        }
        while !cluster.net.is_empty() {
            cluster.deliver(0);
            for id in [2, 3] {
                cluster.write_all(id);
                cluster.apply_one(id);
            }
        }
        if cluster.raft(1).role() == RoleName::Leader {
            led_until = cluster.now_us;
        }
    }
    let led_for = led_until + 2 * TIMEOUT_US - end;
    assert!((TIMEOUT_US - 1000..TIMEOUT_US + HEARTBEAT_US).contains(&led_for), "{led_for} us");
    let leader = cluster.leader().unwrap();
    assert_ne!(leader, 1);
    assert_eq!(cluster.raft(leader).term(), 2);
    cluster.run(4 * TIMEOUT_US);
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.terms(1), [1, 1, 2]);
}

/// Entries are rewritten by a later leader while the disk still writes the old ones. The old write
/// completes: it makes nothing of the new term durable and no acknowledgement leaves.
#[test]
fn an_old_write_does_not_make_new_entries_durable() {
    let mut solo = Solo::new();
    solo.disk_is_fast = false;
    solo.step(2, 1, append((0, 0), &[1, 1, 1], 0));
    assert!(solo.step(3, 2, append((1, 1), &[2, 2], 0)).is_empty());
    solo.write_one();
    assert_eq!(solo.raft.durable_index(), 1);
    assert!(solo.take().is_empty());
    solo.write_one();
    assert_eq!(solo.raft.durable_index(), 3);
    assert_eq!(bodies(&solo.take()), [&matched(3)]);
}

/// The ABA race: entries of term 2 are written over by term 3 and come back with term 4, while the
/// disk is still busy with the first of the three writes. When it is done the platter holds just
/// what the log says, and is about to lose it: nothing is durable, so nothing is applied.
#[test]
fn entries_that_come_back_are_durable_only_by_their_last_write() {
    let mut solo = Solo::new();
    solo.disk_is_fast = false;
    solo.step(2, 2, append((0, 0), &[1, 2, 2], 0));
    solo.step(3, 3, append((1, 1), &[3], 0));
    solo.step(2, 4, append((1, 1), &[2, 2], 3));
    solo.write_one();
    assert_eq!(solo.platter.log, entries(1, &[1, 2, 2]));
    assert_eq!((solo.raft.durable_index(), solo.raft.applied_index()), (1, 1));
    assert!(solo.take().is_empty());
    solo.write_one();
    assert_eq!(solo.platter.log, entries(1, &[1, 3]), "a crash now would lose them");
    assert_eq!(solo.raft.applied_index(), 1);
    solo.write_one();
    assert_eq!((solo.raft.durable_index(), solo.raft.applied_index()), (3, 3));
    assert_eq!(bodies(&solo.take()), [&matched(3)]);
}

// ---- how fast logs meet ----

/// A follower has a thousand entries of terms the leader never saw, and lacks a thousand of the
/// leader's. Conflict hints skip a term each: the round trips follow the terms, not the entries.
#[test]
fn logs_meet_in_round_trips_bounded_by_terms() {
    let run = |terms: &[Term]| -> Vec<Term> {
        terms.iter().flat_map(|&t| std::iter::repeat_n(t, 200)).collect()
    };
    let (ours, theirs) = (run(&[1, 3, 5, 7, 9]), run(&[1, 2, 4, 6, 8]));
    let logs = [(1, 9, ours), (2, 9, run(&[1, 3, 5, 7, 9])), (3, 8, theirs)];
    let platters = logs.map(|(id, term, log)| (id, Platter::of_terms(voters(3), term, &log)));
    let mut cluster = Cluster::of(platters, 1, |_| {});
    cluster.isolate(3);
    cluster.elect(1);
    cluster.cuts.clear();
    let mut conflicts = 0;
    cluster.now_us += HEARTBEAT_US * 3;
    cluster.tick(1);
    for _ in 0..10_000 {
        let refuses = |m: &Message| {
            let refused = AppendResult::Conflict { prev_index: 0, hint_index: 0, hint_term: 0 };
            matches!(&m.body, Body::AppendResponse { result, .. }
                if std::mem::discriminant(result) == std::mem::discriminant(&refused))
        };
        for id in 1..=3 {
            cluster.write_all(id);
            cluster.read_log(id);
            cluster.apply_one(id);
        }
        if cluster.net.is_empty() {
            break;
        }
        conflicts += usize::from(refuses(&cluster.net[0]));
        cluster.deliver(0);
    }
    assert!((1..=5).contains(&conflicts), "{conflicts} conflicts for five terms");
    assert_eq!(cluster.terms(3), cluster.terms(1));
}

// ---- what a slow applier costs ----

/// The applier is slow: it owes at most so many bytes, and gets more when it has applied some.
#[test]
fn the_applier_owes_a_bounded_number_of_bytes() {
    let mut options = Options::new(1, 1);
    options.applying_bytes_max = 500;
    let mut raft = Raft::new(options, Platter::new(voters(3)).restored(), 0);
    for i in 0..100 {
        raft.step(message(append((i, i.min(1)), &[1], i + 1)), 0);
    }
    let seq = raft.ready().persist.unwrap().seq;
    raft.persisted(seq, 0);
    let (mut applied, mut owed) = (0, 0);
    while applied < 100 {
        match raft.ready().committed {
            Some(batch) => {
                assert_eq!(batch.first, applied + owed + 1);
                owed += batch.last + 1 - batch.first;
                assert!(owed * 50 <= 550, "{owed} entries are owed");
            }
            None => {
                assert!(owed > 0, "there is more");
                applied += owed;
                owed = 0;
                raft.applied(applied);
            }
        }
    }
}

/// The applier stands still while the leader sends on. The follower keeps no more entries in memory
/// than its budget: the applier reads the rest from the log file when it goes on.
#[test]
fn a_slow_applier_does_not_fill_the_memory() {
    let mut options = Options::new(1, 1);
    options.applying_bytes_max = 100;
    options.cache_bytes_max = 500;
    options.replay_entries_max = 30;
    let mut raft = Raft::new(options, Platter::new(voters(3)).restored(), 0);
    let mut batches = Vec::new();
    for i in 0..100 {
        raft.step(message(append((i, i.min(1)), &[1], i + 1)), 0);
        let ready = raft.ready();
        batches.extend(ready.committed);
        if let Some(persist) = ready.persist {
            raft.persisted(persist.seq, 0);
        }
    }
    let stuck = batches.last().unwrap().last;
    assert!(stuck < 10, "{stuck} entries are owed");
    while let Some(before) = batches.last().filter(|b| b.last < 100) {
        raft.applied(before.last);
        batches.extend(raft.ready().committed);
    }
    let in_memory: usize =
        batches.iter().filter(|b| b.first > stuck).map(|b| b.entries.len()).sum();
    assert!(in_memory <= 10, "{in_memory} entries of 50 bytes were kept in 500 bytes");
}

// ---- configurations ----

fn with_address(c: &Configuration, address: &str) -> Configuration {
    let mut c = c.clone();
    c.members[1].address = address.into();
    c
}

fn configuration_entry(index: Index, term: Term, c: &Configuration) -> Entry {
    Entry { index, term, payload: Payload::Configuration(Arc::new(c.clone())) }
}

/// Section 6: a configuration is in force from the moment it is in the log, and gone when a later
/// leader truncates it, also when it was restored from disk.
#[test]
fn a_configuration_is_in_force_when_appended_and_rolled_back_when_truncated() {
    let first = voters(3);
    let next = with_address(&first, "elsewhere:1");
    let mut solo = Solo::new();
    let body = Body::AppendEntries {
        prev_index: 0,
        prev_term: 0,
        commit: 0,
        round: 0,
        entries: vec![entry(1, 1), configuration_entry(2, 1, &next)],
    };
    solo.step(2, 1, body);
    assert_eq!(**solo.raft.configuration(), next);
    let mut solo = Solo::on(solo.platter);
    assert_eq!(**solo.raft.configuration(), next);
    solo.step(3, 2, append((1, 1), &[2], 0));
    assert_eq!(**solo.raft.configuration(), *first);
}

/// Joint consensus (section 6): elections and commitment need a majority of each half.
#[test]
fn a_joint_configuration_needs_both_majorities() {
    let mut joint = Configuration::of_voters(1, (1..=6).map(member).collect());
    joint.voters = [1, 2, 3].into();
    joint.outgoing = [4, 5, 6].into();
    let mut solo = Solo::on(Platter::new(Arc::new(joint)));
    solo.expire();
    let pre = Body::PreVoteResponse { granted: true };
    for id in [2, 3, 4] {
        solo.step(id, 1, pre.clone());
        assert_eq!(solo.raft.role(), RoleName::PreCandidate);
    }
    solo.step(5, 1, pre);
    for id in [5, 6, 4] {
        solo.step(id, 1, YES);
        assert_eq!(solo.raft.role(), RoleName::Candidate, "none of C_new but itself");
    }
    solo.step(2, 1, YES);
    assert_eq!(solo.raft.role(), RoleName::Leader);
    for id in [2, 3, 4] {
        solo.step(id, 1, matched(1));
        assert_eq!(solo.raft.commit_index(), 0, "one of C_old");
    }
    solo.step(6, 1, matched(1));
    assert_eq!(solo.raft.commit_index(), 1);
}

/// While a change of voters is not committed, reads are confirmed by both halves, and so is
/// leadership itself.
#[test]
fn reads_and_leadership_need_both_majorities() {
    let mut first = Configuration::of_voters(1, (1..=6).map(member).collect());
    first.voters = [1, 2, 3].into();
    first.learners = [4, 5, 6].into();
    let mut solo = Solo::leader(Platter::new(Arc::new(first.clone())));
    solo.step(2, 1, matched(1));
    let mut target = first;
    std::mem::swap(&mut target.voters, &mut target.learners);
    target.learners.clear();
    target.members.drain(..3);
    assert_eq!(solo.event(|raft, _| raft.propose_configuration(target)), Ok(2));
    solo.event(|raft, _| raft.read(1));
    for id in [2, 3, 4] {
        solo.step(id, 1, Body::HeartbeatResponse { round: 1 });
        assert!(solo.answers.is_empty());
    }
    solo.step(5, 1, Body::HeartbeatResponse { round: 1 });
    assert_eq!(solo.answers.len(), 1);
    for _ in 0..8 {
        solo.pass(HEARTBEAT_US);
        for id in [2, 3] {
            solo.step(id, 1, Body::HeartbeatResponse { round: 0 });
        }
    }
    assert_eq!(solo.raft.role(), RoleName::Follower, "no majority of C_new was heard");
}

/// One change at a time, and none before the leader has committed in its own term.
#[test]
fn a_configuration_is_proposed_one_at_a_time_after_the_no_op() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    let next = with_address(&voters(3), "elsewhere:1");
    let propose = |solo: &mut Solo, c: &Configuration| {
        solo.event(|raft, _| raft.propose_configuration(c.clone()))
    };
    assert_eq!(propose(&mut solo, &next), Err(NotProposed::TooEarly));
    solo.step(2, 1, matched(1));
    assert_eq!(propose(&mut solo, &next), Ok(2));
    assert_eq!(**solo.raft.configuration(), next);
    assert_eq!(propose(&mut solo, &voters(3)), Err(NotProposed::ChangeOpen));
    solo.step(2, 1, matched(2));
    assert_eq!(propose(&mut solo, &voters(3)), Ok(3));
    let mut follower = Solo::new();
    let refused = Err(NotProposed::NotLeader { leader: None });
    assert_eq!(propose(&mut follower, &next), refused);
}

/// A learner gets the log and counts for nothing.
#[test]
fn a_learner_gets_the_log_and_does_not_count() {
    let mut c = Configuration::of_voters(1, (1..=4).map(member).collect());
    c.voters.remove(&4);
    c.learners.insert(4);
    let mut solo = Solo::leader(Platter::new(Arc::new(c)));
    let sent = propose(&mut solo, 1, 8);
    assert_eq!(sent_bytes(&sent, 4), 0, "its first message was not answered");
    let sent = solo.step(4, 1, matched(1));
    assert!(sent_bytes(&sent, 4) > 0);
    solo.step(4, 1, matched(2));
    assert_eq!(solo.raft.commit_index(), 0);
    solo.step(2, 1, matched(2));
    assert_eq!(solo.raft.commit_index(), 2);
}

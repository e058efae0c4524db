//! Section 7 of the extended paper and its Figure 13: logs that forgot their front, snapshots
//! offered in its place, and logs that begin anew behind one.

use super::cluster::Cluster;
use super::solo::*;
use crate::raft::log::Log;
use crate::raft::*;
use std::sync::Arc;

fn mark(index: Index, term: Term) -> SnapshotMark {
    SnapshotMark { index, term, configuration: voters(3) }
}

fn installed(last_index: Index) -> Body {
    Body::SnapshotResponse { last_index, installed: true }
}

fn offer(last_index: Index, last_term: Term) -> Body {
    Body::InstallSnapshot { last_index, last_term, configuration: voters(3) }
}

fn conflict(prev_index: Index, hint_index: Index, hint_term: Term) -> Body {
    let result = AppendResult::Conflict { prev_index, hint_index, hint_term };
    Body::AppendResponse { result, round: 0 }
}

/// A disk whose log begins behind `base` of term `base_term` and goes on with these terms.
fn compacted(base: Index, base_term: Term, terms: &[Term]) -> Platter {
    let mut platter = Platter::new(voters(3));
    (platter.base, platter.base_term, platter.applied) = (base, base_term, base);
    platter.log = entries(base + 1, terms);
    platter.hard.term = terms.last().copied().unwrap_or(base_term);
    platter
}

fn install(solo: &mut Solo, mark: SnapshotMark) -> bool {
    solo.event(|raft, now| raft.install(mark, now))
}

/// What the leader says to node `to`, heartbeats left out.
fn told(messages: &[Message], to: NodeId) -> Vec<&Body> {
    let to_it = messages.iter().filter(|m| m.to == to).map(|m| &m.body);
    to_it.filter(|body| !matches!(body, Body::Heartbeat { .. })).collect()
}

fn progress(raft: &Raft, id: NodeId) -> PeerProgress {
    raft.progress().into_iter().find(|p| p.id == id).expect("it is sent to")
}

/// Previous index of an AppendEntries.
fn continues(body: &Body) -> Option<Index> {
    match body {
        Body::AppendEntries { prev_index, .. } => Some(*prev_index),
        _ => None,
    }
}

// ---- a whole cluster ----

/// Section 7: a follower that lags behind what the leader still has gets a snapshot, and entries
/// again behind it.
#[test]
fn a_follower_behind_a_compacted_log_is_offered_a_snapshot_and_goes_on_behind_it() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.run(HEARTBEAT_US);
    cluster.isolate(3);
    for n in 0..5 {
        cluster.propose(1, &format!("away {n}")).unwrap();
        cluster.settle();
    }
    let base = cluster.raft(1).applied_index();
    assert!(base > cluster.raft(3).last_index());
    cluster.compact(1, base);
    cluster.cuts.clear();
    cluster.run(TIMEOUT_US);
    let offers = std::mem::take(&mut cluster.node(3).offers);
    assert!(!offers.is_empty() && offers.iter().all(|o| (o.from, o.index) == (1, base)));
    assert_eq!(progress(cluster.raft(1), 3).state, ProgressState::Snapshot { index: base });
    // Meanwhile the others go on; the snapshot is what was offered.
    cluster.propose(1, "while it is fetched").unwrap();
    cluster.settle();
    assert!(cluster.install(3, base));
    cluster.settle();
    assert_eq!(progress(cluster.raft(1), 3).state, ProgressState::Replicate);
    cluster.propose(1, "behind it").unwrap();
    cluster.run(HEARTBEAT_US);
    assert_eq!(cluster.raft(3).first_index(), base + 1);
    assert_eq!(cluster.raft(3).applied_index(), cluster.raft(1).last_index());
    assert_eq!(cluster.raft(3).applied_index(), base + 2);
}

/// The no-op that opened the term is needed no more once it is committed: a leader without it
/// leads, reads and has its followers read.
#[test]
fn a_leader_that_compacted_its_own_no_op_still_leads_and_reads() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, "a").unwrap();
    cluster.run(HEARTBEAT_US);
    let base = cluster.raft(1).applied_index();
    cluster.compact(1, base);
    assert!(cluster.raft(1).term_at(1).is_none() && cluster.raft(1).leads_and_knows());
    let reads = [(1, cluster.read(1)), (2, cluster.read(2))];
    cluster.run(HEARTBEAT_US);
    for (node, read) in reads {
        assert_eq!(cluster.nodes[&node].answers[&read], Some(base), "read at {node}");
    }
    cluster.propose(1, "b").unwrap();
    cluster.run(4 * TIMEOUT_US);
    assert_eq!((cluster.leader(), cluster.raft(1).term()), (Some(1), 1));
    assert!(cluster.ids().iter().all(|&id| cluster.raft(id).applied_index() == base + 1));
}

/// All logs are empty behind their bases: the next leader is elected by what they remember of
/// their ends (section 5.4.1), and goes on from there, also after a power loss.
#[test]
fn logs_without_entries_elect_a_leader_and_go_on() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, "a").unwrap();
    cluster.run(HEARTBEAT_US);
    let base = cluster.raft(1).applied_index();
    for id in cluster.ids() {
        cluster.compact(id, base);
        cluster.crash(id, 0, None);
    }
    cluster.ids().into_iter().for_each(|id| cluster.restart(id));
    cluster.elect(2);
    let index = cluster.propose(2, "b").unwrap();
    assert_eq!(index, base + 2, "behind the no-op of the new term");
    cluster.run(HEARTBEAT_US);
    assert!(cluster.ids().iter().all(|&id| cluster.raft(id).applied_index() == index));
}

// ---- Figure 13, the receiver ----

/// Figure 13, step 6: the log has the snapshot's last entry, so what is behind it stays.
#[test]
fn what_is_behind_a_snapshot_whose_last_entry_the_log_has_is_retained() {
    let mut solo = Solo::new();
    solo.step(2, 2, append((0, 0), &[1, 1, 2, 2, 2], 0));
    assert!(install(&mut solo, mark(3, 2)));
    assert_eq!(bodies(&solo.take()), [&installed(3)]);
    assert_eq!((solo.raft.applied_index(), solo.raft.commit_index()), (3, 3));
    assert_eq!((solo.raft.last_index(), solo.raft.term_at(5)), (5, Some(2)));
    assert_eq!((solo.platter.base, solo.platter.last()), (0, 5), "nothing was written");
    solo.step(2, 2, heartbeat(5, 2));
    let handed: Vec<_> = solo.handed.iter().flat_map(|c| c.entries.clone()).collect();
    assert_eq!(handed, entries(4, &[2, 2]), "only what the snapshot lacks is applied");
}

/// Figure 13, step 7: the log has another entry at that place, or none: all of it goes.
#[test]
fn a_log_without_the_snapshots_last_entry_is_discarded() {
    for (terms, index) in [(&[1, 1, 1, 1, 1][..], 3), (&[1, 1][..], 7)] {
        let mut solo = Solo::on(Platter::of_terms(voters(3), 2, terms));
        solo.step(2, 2, heartbeat(0, 0));
        assert!(install(&mut solo, mark(index, 2)));
        assert_eq!(bodies(&solo.take()), [&installed(index)]);
        assert_eq!((solo.raft.first_index(), solo.raft.last_index()), (index + 1, index));
        assert_eq!(solo.raft.term_at(index), Some(2));
        let on_disk = (solo.platter.base, solo.platter.base_term, solo.platter.log.len());
        assert_eq!(on_disk, (index, 2, 0));
        let answers = solo.step(2, 2, append((index, 2), &[2], index + 1));
        assert_eq!(bodies(&answers), [&matched(index + 1)]);
        assert_eq!(solo.raft.applied_index(), index + 1);
    }
}

/// The retained entries are not on the disk yet, an acknowledgement waits for them, and they are
/// committed: they must neither go nor be acknowledged and then go.
#[test]
fn what_is_retained_may_still_be_on_its_way_to_the_disk() {
    let mut solo = Solo::new();
    solo.disk_is_fast = false;
    solo.step(2, 1, append((0, 0), &[1; 6], 6));
    assert_eq!((solo.raft.commit_index(), solo.raft.durable_index()), (6, 0));
    assert!(install(&mut solo, mark(3, 1)));
    assert_eq!((solo.raft.last_index(), solo.raft.durable_index()), (6, 3));
    assert_eq!(solo.take(), [], "what the disk has not got is not acknowledged");
    while !solo.pending.is_empty() {
        solo.write_one();
    }
    let messages = solo.take();
    assert!(bodies(&messages).contains(&&matched(6)) && bodies(&messages).contains(&&installed(3)));
    assert_eq!((solo.platter.last(), solo.platter.term_at(6)), (6, Some(1)));
    assert_eq!(solo.raft.applied_index(), 6);
    assert_eq!(bodies(&solo.step(2, 1, append((6, 1), &[], 6))), [&matched(6)]);
}

/// Leader Append-Only (Figure 3): a leader whose followers were faster than its own disk gets a
/// snapshot that it had asked for before it led; its log stays as it is.
#[test]
fn a_leader_that_installs_a_snapshot_keeps_its_log() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    solo.disk_is_fast = false;
    let commands = (0..4).map(|n| Arc::from(vec![n]));
    solo.event(|raft, _| raft.propose(commands)).unwrap();
    for follower in [2, 3] {
        solo.step(follower, 1, matched(5));
    }
    assert_eq!((solo.raft.commit_index(), solo.raft.durable_index()), (5, 1));
    assert!(install(&mut solo, mark(4, 1)));
    assert_eq!((solo.raft.role(), solo.raft.last_index()), (RoleName::Leader, 5));
    while !solo.pending.is_empty() {
        solo.write_one();
    }
    assert_eq!((solo.platter.last(), solo.raft.applied_index()), (5, 5));
}

/// A leader or candidate whose log has something else there was left behind by a later term: it
/// cannot go on with a log that is not the one it was elected, or stands, with.
#[test]
fn whoever_leads_or_stands_with_another_log_becomes_a_follower() {
    let platter = Platter::of_terms(voters(3), 2, &[1, 1, 1]);
    let leader = Solo::leader(platter.clone());
    let mut candidate = Solo::on(platter);
    candidate.expire();
    candidate.step(2, 3, Body::PreVoteResponse { granted: true });
    assert_eq!(candidate.raft.role(), RoleName::Candidate);
    for mut solo in [leader, candidate] {
        assert!(install(&mut solo, mark(2, 2)));
        assert_eq!((solo.raft.role(), solo.raft.leader()), (RoleName::Follower, None));
        assert_eq!((solo.raft.term(), solo.raft.last_index()), (3, 2));
        assert_eq!(solo.raft.hard_state().vote, Some(1), "its vote in the term stands");
        solo.step(3, 3, Body::VoteResponse { granted: true });
        assert_eq!(solo.raft.role(), RoleName::Follower, "a late vote changes nothing");
    }
}

/// Figure 13, step 5, and section 7: an old or repeated snapshot takes nothing back.
#[test]
fn an_install_never_goes_behind_what_was_applied() {
    let mut solo = Solo::new();
    solo.step(2, 1, append((0, 0), &[1; 6], 5));
    assert_eq!(solo.raft.applied_index(), 5);
    for old in [1, 4, 5] {
        assert!(!install(&mut solo, mark(old, 1)));
        assert_eq!((solo.raft.applied_index(), solo.raft.last_index()), (5, 6));
    }
    assert!(solo.pending.is_empty() && solo.platter.base == 0);
}

/// A batch that was handed to the applier comes back after a snapshot went beyond its beginning.
#[test]
fn what_the_applier_says_later_does_not_take_an_install_back() {
    let mut raft = Raft::new(Options::new(1, 7), Platter::new(voters(3)).restored(), 0);
    raft.step(Message { from: 2, to: 1, term: 1, body: append((0, 0), &[1; 5], 5) }, 0);
    let seq = raft.ready().persist.expect("entries to write").seq;
    raft.persisted(seq, 0);
    let handed = raft.ready().committed.expect("entries to apply");
    assert_eq!((handed.first, handed.last), (1, 5));
    assert!(raft.install(mark(3, 1), 0));
    assert_eq!(raft.applied_index(), 3);
    raft.applied(2);
    assert_eq!(raft.applied_index(), 3);
    raft.applied(5);
    assert_eq!((raft.applied_index(), raft.last_index()), (5, 5));
}

/// Section 5.1: a term that is seen, be it in a snapshot, is the present one from then on. The log
/// writer is told of both in one request, for a log never ends in a term that is still to come.
#[test]
fn a_snapshot_of_a_later_term_raises_the_term() {
    let mut solo = Solo::new();
    solo.step(2, 1, append((0, 0), &[1, 1], 1));
    solo.disk_is_fast = false;
    assert!(install(&mut solo, mark(4, 5)));
    assert_eq!((solo.raft.term(), solo.raft.leader()), (5, None));
    let hard = HardState { term: 5, vote: None };
    assert_eq!(solo.pending.len(), 1);
    assert_eq!(solo.pending[0].hard_state, Some(hard));
    assert_eq!(solo.pending[0].reset, Some(mark(4, 5)));
    solo.write_one();
    assert_eq!(solo.take(), [], "the leader of that term is not known yet");
    let restarted = Raft::new(Options::new(1, 8), solo.platter.restored(), 0);
    assert_eq!((restarted.term(), restarted.applied_index(), restarted.last_index()), (5, 4, 4));
}

/// Requests that the log writer was given before the reset make nothing durable behind it.
#[test]
fn an_older_write_says_nothing_about_the_log_behind_a_reset() {
    let mut solo = Solo::on(Platter::of_terms(voters(3), 1, &[1, 1]));
    solo.disk_is_fast = false;
    solo.step(2, 2, append((2, 1), &[2, 2, 2], 0));
    assert!(install(&mut solo, mark(4, 3)));
    solo.step(3, 3, append((4, 3), &[3], 0));
    let behind = |solo: &Solo| (solo.raft.durable_index(), solo.raft.last_index());
    assert_eq!(behind(&solo), (4, 5));
    solo.write_one();
    assert_eq!(behind(&solo), (4, 5), "index 5 of the old log is not that of the new one");
    while !solo.pending.is_empty() {
        solo.write_one();
    }
    assert_eq!(behind(&solo), (5, 5));
    assert_eq!((solo.platter.base, solo.platter.term_at(5)), (4, Some(3)));
}

// ---- offers ----

/// A follower that has everything already says so, durably, and takes no snapshot.
#[test]
fn an_offer_that_is_not_needed_is_answered_as_installed() {
    let mut solo = Solo::new();
    solo.step(2, 1, append((0, 0), &[1; 6], 5));
    assert_eq!(bodies(&solo.step(2, 1, offer(3, 1))), [&installed(5)]);
    solo.disk_is_fast = false;
    solo.step(2, 1, append((6, 1), &[1, 1], 8));
    assert_eq!(solo.step(2, 1, offer(7, 1)), [], "committed, and not on this disk yet");
    while !solo.pending.is_empty() {
        solo.write_one();
    }
    assert!(bodies(&solo.take()).contains(&&installed(8)));
    assert_eq!(solo.offers, []);
    assert_eq!(solo.step(2, 1, offer(9, 1)), []);
    assert_eq!(solo.offers, [Offer { from: 2, index: 9 }]);
}

/// Nobody but the leader of the present term offers anything.
#[test]
fn an_offer_of_an_old_or_second_leader_is_passed_over() {
    let mut solo = Solo::new();
    solo.step(2, 3, heartbeat(0, 0));
    solo.step(3, 2, offer(9, 1));
    solo.step(3, 3, offer(9, 1));
    assert_eq!((solo.offers.len(), solo.raft.leader(), solo.raft.term()), (0, Some(2), 3));
    solo.step(3, 4, offer(9, 1));
    assert_eq!(solo.offers, [Offer { from: 3, index: 9 }]);
    assert_eq!((solo.raft.leader(), solo.raft.term()), (Some(3), 4));
}

/// A leader without a follower's next entry waits in silence, announces the snapshot again after a
/// while, and goes on with entries behind what the follower then has, which may be more.
#[test]
fn a_leader_goes_on_with_entries_behind_what_was_installed() {
    let mut solo = Solo::leader(compacted(10, 1, &[1, 1]));
    let offered = solo.step(2, 2, conflict(12, 4, 1));
    assert_eq!(told(&offered, 2), [&offer(10, 1)]);
    let state = |solo: &Solo| (progress(&solo.raft, 2).state, progress(&solo.raft, 2).match_index);
    let waits = (ProgressState::Snapshot { index: 10 }, 0);
    assert_eq!(state(&solo), waits);
    let refused = Body::SnapshotResponse { last_index: 10, installed: false };
    for nothing_new in [conflict(12, 3, 1), refused, installed(99)] {
        assert_eq!(told(&solo.step(2, 2, nothing_new), 2), [] as [&Body; 0]);
        assert_eq!(state(&solo), waits);
    }
    // A snapshot has a connection of its own: that the other one broke says nothing about it.
    solo.event(|raft, now| raft.peer_lost(2, now));
    assert_eq!(state(&solo), waits);
    solo.take();
    solo.pass(TIMEOUT_US / 2 + HEARTBEAT_US);
    assert!(told(&solo.take(), 2).iter().all(|body| **body == offer(10, 1)));
    assert_eq!(state(&solo), waits);
    let sent = solo.step(2, 2, installed(12));
    assert_eq!(state(&solo), (ProgressState::Replicate, 12));
    assert_eq!(told(&sent, 2).into_iter().map(continues).collect::<Vec<_>>(), [Some(12)]);
    solo.step(2, 2, matched(13));
    assert_eq!(solo.raft.commit_index(), 13, "it counts like any other");
}

/// The snapshot is announced again after its patience, not never.
#[test]
fn an_announcement_that_was_lost_is_repeated() {
    let mut solo = Solo::leader(compacted(10, 1, &[1, 1]));
    solo.step(2, 2, conflict(12, 4, 1));
    solo.pass(TIMEOUT_US / 2 + HEARTBEAT_US);
    assert_eq!(told(&solo.take(), 2), [&offer(10, 1)]);
}

/// The leader compacted on while a follower fetched: behind what that brought there is a gap again.
#[test]
fn a_snapshot_that_is_too_old_by_now_is_followed_by_another() {
    let mut solo = Solo::leader(compacted(10, 1, &[1, 1]));
    solo.step(2, 2, conflict(12, 4, 1));
    solo.step(3, 2, matched(13));
    assert_eq!(solo.raft.applied_index(), 13);
    solo.event(|raft, _| raft.compact(12));
    assert_eq!(told(&solo.step(2, 2, installed(10)), 2), [&offer(12, 1)]);
    let sent = solo.step(2, 2, installed(12));
    assert_eq!(told(&sent, 2).into_iter().map(continues).collect::<Vec<_>>(), [Some(12)]);
}

// ---- where logs part at a base ----

/// Section 5.3 across a base: the follower's hint says that the logs part at the leader's base or
/// before it. Once a leader whose base is of a later term than the hint probed at its base for
/// ever, got the same hint for ever, and never offered what was needed.
#[test]
fn logs_that_part_at_the_leaders_base_take_a_snapshot() {
    for (hint_index, hint_term) in [(10, 2), (7, 2), (7, 3), (0, 0)] {
        let mut solo = Solo::leader(compacted(10, 3, &[3]));
        let answers = solo.step(2, 4, conflict(11, hint_index, hint_term));
        assert_eq!(told(&answers, 2), [&offer(10, 3)], "hint {hint_index} of {hint_term}");
    }
    // They agree at the base: entries do, from the log file.
    let mut solo = Solo::leader(compacted(10, 3, &[3]));
    let answers = solo.step(2, 4, conflict(11, 10, 3));
    assert_eq!(told(&answers, 2).into_iter().map(continues).collect::<Vec<_>>(), [Some(10)]);
    assert_eq!(told(&solo.step(2, 4, matched(10)), 2), [] as [&Body; 0]);
    let read = solo.from_log.last().expect("a message from the log file");
    assert_eq!((read.message.to, read.first, continues(&read.message.body)), (2, 11, Some(10)));
}

/// A follower's hint is never before its own base, which is committed; entries that overlap it are
/// taken from there on.
#[test]
fn a_follower_with_a_base_names_it_and_takes_what_is_behind_it() {
    let mut solo = Solo::on(compacted(5, 1, &[]));
    assert_eq!(bodies(&solo.step(2, 2, append((9, 2), &[2], 0))), [&conflict(9, 5, 1)]);
    assert_eq!(bodies(&solo.step(2, 2, append((3, 1), &[1; 4], 6))), [&matched(7)]);
    assert_eq!((solo.platter.base, solo.platter.last()), (5, 7));
    assert_eq!(solo.raft.applied_index(), 6);
    assert_eq!(
        bodies(&solo.step(2, 2, append((2, 1), &[1], 6))),
        [&matched(6)],
        "all of it is old"
    );
}

// ---- the log ----

/// Runs 1-3, 4-5 and 6-9 with terms 1, 2 and 5; configurations at 0, 3 and 7.
fn three_runs() -> Log {
    let configurations = [(0, 3), (3, 4), (7, 5)].map(|(at, n)| (at, voters(n))).to_vec();
    let runs = vec![(1, 1), (4, 2), (6, 5)];
    Log::new(RestoredLog { base: 0, base_term: 0, runs, last: 9, configurations }, 0)
}

/// Wherever a log is cut, inside a run, at its first or its last index or at the very end: what is
/// behind the cut is as it was, and what is before it is not there.
#[test]
fn compaction_keeps_terms_and_configurations_right_at_every_place() {
    let whole = three_runs();
    for through in 1..=9 {
        let mut log = three_runs();
        log.compact(through);
        log.assert_invariants();
        assert_eq!((log.base(), log.last_index(), log.last_term()), (through, 9, 5));
        for index in 0..=10 {
            let kept = whole.term_at(index).filter(|_| index >= through);
            assert_eq!(log.term_at(index), kept, "cut at {through}: term at {index}");
        }
        assert_eq!(log.configuration(), whole.configuration());
        assert_eq!(log.configuration_index(), 7);
        let at: Vec<Index> = log.configurations.iter().map(|c| c.0).collect();
        let expected: &[Index] = match through {
            1..=2 => &[0, 3, 7],
            3..=6 => &[3, 7],
            _ => &[7],
        };
        assert_eq!(at, expected, "the one in force at {through}, and those behind it");
        for (index, term) in (0..=10).flat_map(|i| (0..=6).map(move |t| (i, t))) {
            let (before, now) = (whole.last_agreeing(index, term), log.last_agreeing(index, term));
            let same = before == now;
            let in_front = before.0 < through && now.0 < through;
            assert!(same || in_front, "cut at {through}: {index} of {term}: {before:?}, {now:?}");
        }
        // It goes on in the same term and in another one, and is cut back to the base at most.
        for term in [5, 6] {
            let mut log = log.clone();
            log.append(entry(10, term));
            log.assert_invariants();
            assert_eq!((log.term_at(9), log.term_at(10)), (Some(5), Some(term)));
            log.truncate(through + 1);
            log.assert_invariants();
            assert_eq!(
                (log.last_index(), Some(log.last_term())),
                (through, whole.term_at(through))
            );
        }
    }
}

/// Cut in many steps or in one: the same; and what is gone already is not cut again.
#[test]
fn compaction_in_steps_is_compaction_at_once() {
    let parts = |log: &Log| (log.base, log.base_term, log.runs.clone(), log.configurations.clone());
    let mut steps = three_runs();
    for through in 1..=9 {
        steps.compact(through);
        let mut once = three_runs();
        once.compact(through);
        assert_eq!(parts(&steps), parts(&once), "at {through}");
        for nothing in [0, through - 1, through, 10] {
            once.compact(nothing);
            assert_eq!(parts(&steps), parts(&once), "{nothing} after {through}");
        }
    }
}

/// The entries in memory go with the rest, and no others.
#[test]
fn compaction_lets_go_of_entries_in_memory() {
    let mut solo = Solo::new();
    solo.step(2, 1, append((0, 0), &[1; 6], 6));
    solo.event(|raft, _| raft.compact(4));
    let log = &solo.raft.log;
    assert_eq!((log.cache_first(), log.cache.len()), (5, 2));
    assert_eq!(log.cache_bytes, log.cache.iter().map(Entry::weight).sum::<usize>());
    assert_eq!(
        (log.cached(4, 6, 1 << 20), log.cached(5, 6, 1 << 20)),
        (None, Some(entries(5, &[1, 1])))
    );
}

/// What the slowest member has, and the leader's own disk: that much may go without a snapshot.
#[test]
fn the_shared_index_is_that_of_the_slowest() {
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 1, &[1; 4]));
    assert_eq!(solo.raft.shared_index(), 0, "nothing is known of the followers");
    solo.step(2, 2, matched(5));
    assert_eq!(solo.raft.shared_index(), 0);
    solo.step(3, 2, matched(3));
    assert_eq!(solo.raft.shared_index(), 3);
    let mut follower = Solo::new();
    follower.step(2, 1, append((0, 0), &[1; 6], 4));
    assert_eq!(follower.raft.shared_index(), 4, "a follower knows what is committed");
}

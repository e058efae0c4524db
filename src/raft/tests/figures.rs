//! Figures 7 and 8 of the extended paper, on whole clusters.

use super::cluster::Cluster;
use super::solo::*;
use crate::raft::*;

/// Figure 7: a leader comes to power in term 8 while the followers' logs are any of (a)-(f):
/// entries missing, extra uncommitted ones, or both. It brings each of them to its own log.
#[test]
fn figure_7_the_leader_brings_every_follower_to_its_log() {
    let logs: [&[Term]; 7] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    let platters = (1..).zip(logs).map(|(id, terms)| {
        let term = if id == 1 { 7 } else { *terms.last().expect("no empty log") };
        (id, Platter::of_terms(voters(7), term, terms))
    });
    let mut cluster = Cluster::of(platters, 1, |_| {});
    cluster.elect(1);
    assert_eq!(cluster.raft(1).term(), 8);
    cluster.run(2 * HEARTBEAT_US);
    for id in 1..=7 {
        assert_eq!(cluster.terms(id), [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 8], "node {id}");
        assert_eq!(cluster.raft(id).applied_index(), 11, "node {id}");
    }
}

/// Figure 8 (a)-(c): S1 leads term 2 and replicates index 2 to S2 only; S5 leads term 3 with
/// another entry at index 2; S1 leads term 4 and brings its term-2 entry to S3, a majority.
/// The no-op of term 4 is at index 3 and has reached nobody.
fn figure_8_c() -> Cluster {
    let logs: [(Term, &[Term]); 5] =
        [(3, &[1, 2]), (2, &[1, 2]), (2, &[1]), (3, &[1]), (3, &[1, 3])];
    let platters =
        (1..).zip(logs).map(|(id, (term, terms))| (id, Platter::of_terms(voters(5), term, terms)));
    let mut cluster = Cluster::of(platters, 1, |o| {
        // One entry a message, so that index 2 can travel without index 3.
        o.append_bytes_max = 1;
        o.probe_bytes_max = 1;
        o.replay_entries_max = 1;
    });
    cluster.part(&[4, 5], &[1, 2, 3, 4, 5]);
    cluster.now_us += 2 * TIMEOUT_US;
    cluster.tick(1);
    // Everything is delivered but index 3 to whoever could append it.
    loop {
        for id in cluster.ids() {
            cluster.write_all(id);
            cluster.read_log(id);
        }
        let rafts = [2, 3].map(|id| (id, cluster.raft(id).last_index()));
        cluster.net.retain(|m| match &m.body {
            Body::AppendEntries { entries, .. }
                if entries.first().is_some_and(|e| e.index == 3) =>
            {
                rafts.contains(&(m.to, 1))
            }
            _ => true,
        });
        if cluster.net.is_empty() {
            break;
        }
        cluster.deliver(0);
    }
    assert_eq!((cluster.leader(), cluster.raft(1).term()), (Some(1), 4));
    assert_eq!(cluster.terms(3), [1, 2], "a majority holds the entry of term 2");
    assert_eq!(cluster.raft(1).commit_index(), 0, "which does not make it committed");
    cluster
}

/// Figure 8 (d): the entry of term 2 is on a majority; S1 crashes, S5 is elected with the entry of
/// term 3 and overwrites it everywhere. Had S1 counted replicas of an old term, this would have
/// undone a commit.
#[test]
fn figure_8_d_an_old_entry_on_a_majority_is_overwritten() {
    let mut cluster = figure_8_c();
    cluster.crash(1, 0, None);
    cluster.net.clear();
    cluster.cuts.clear();
    cluster.now_us += 2 * TIMEOUT_US;
    cluster.tick(5);
    cluster.settle();
    assert_eq!(cluster.raft(5).term(), 4, "it learns the term before it can ask for the next");
    cluster.elect(5);
    cluster.run(2 * HEARTBEAT_US);
    for id in 2..=5 {
        assert_eq!(cluster.terms(id), [1, 3, 5], "node {id}");
    }
    assert_eq!(cluster.committed.iter().map(|e| e.term).collect::<Vec<_>>(), [1, 3, 5]);
}

/// Figure 8 (e): S1 brings an entry of its own term to a majority before it crashes. That commits
/// the entry of term 2 too, and S5 cannot be elected any more.
#[test]
fn figure_8_e_an_entry_of_the_own_term_commits_what_is_before_it() {
    let mut cluster = figure_8_c();
    cluster.run(HEARTBEAT_US * 6);
    assert_eq!(cluster.committed.iter().map(|e| e.term).collect::<Vec<_>>(), [1, 2, 4]);
    cluster.crash(1, 0, None);
    cluster.net.clear();
    cluster.cuts.clear();
    cluster.now_us += 2 * TIMEOUT_US;
    cluster.tick(5);
    cluster.settle();
    assert_eq!(cluster.leader(), None, "S2 and S3 refuse S5: their last term is later");
    cluster.run(10 * TIMEOUT_US);
    assert!([2, 3].contains(&cluster.leader().expect("a leader")));
    assert_eq!(cluster.terms(5)[..3], [1, 2, 4]);
}

//! Linearizable reads: the harness checks at every release that the node has applied enough.

use super::*;

/// A read is released on the leader and on a follower, and on neither before its applier is there.
#[test]
fn a_read_waits_until_its_index_is_applied_here() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    for id in [leader, follower] {
        c.write(leader, "a", SOON_US);
        c.settle();
        c.node(id).applier_held = true;
        c.write(leader, "b", SOON_US);
        c.settle();
        let read = c.read(id, SOON_US);
        c.advance(50_000);
        assert_eq!(c.answer(read), None, "node {id} has not applied the second write");
        assert!(c.replica(id).wake_interest().applied);
        c.node(id).applier_held = false;
        c.advance(50_000);
        assert_eq!(c.answer(read), Some(&Answer::Read(Ok(()))));
        assert!(!c.replica(id).wake_interest().applied);
    }
}

/// While a round is under way more reads need not wake the leader; the next round serves them all.
#[test]
fn reads_that_come_during_a_round_share_the_next() {
    let (mut c, leader) = Cluster::led(3);
    assert!(c.replica(leader).wake_interest().reads);
    c.hold_from(leader);
    let first = c.read(leader, SOON_US);
    assert!(!c.replica(leader).wake_interest().reads);
    let more: Vec<u64> = (0..5).map(|_| c.read(leader, SOON_US)).collect();
    c.heal();
    c.settle();
    for read in [first].into_iter().chain(more) {
        assert_eq!(c.answer(read), Some(&Answer::Read(Ok(()))));
    }
    assert!(c.replica(leader).wake_interest().reads);
}

/// The leader is cut off with reads of its own under way, and a follower has asked it as well. A
/// new leader serves the follower's; the old leader says that it cannot, once it knows of no leader for
/// long, and serves again when it is back.
#[test]
fn reads_survive_a_change_of_leaders() {
    let (mut c, old) = Cluster::led(3);
    let follower = c.followers(old)[0];
    c.isolate(old);
    let reads = [c.read(old, 60_000_000), c.read(follower, 60_000_000)];
    c.advance(4 * ELECTION_US);
    assert_ne!(c.leader(), Some(old));
    let refused = Answer::Read(Err(Refusal::NoLeader));
    assert_eq!(c.answer(reads[0]), Some(&refused), "cut off, it must not serve");
    assert_eq!(c.answer(reads[1]), Some(&Answer::Read(Ok(()))));
    let at_once = c.read(old, 60_000_000);
    assert_eq!(c.answer(at_once), Some(&refused));
    c.heal();
    c.advance(2 * ELECTION_US);
    let read = c.read(old, 60_000_000);
    c.settle();
    assert_eq!(c.answer(read), Some(&Answer::Read(Ok(()))));
}

/// A minority refuses reads: at the deadline, with the reason it knows.
#[test]
fn a_minority_refuses_reads_at_the_deadline() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    c.isolate(leader);
    c.isolate(follower);
    let soon = c.read(leader, 200_000);
    let later = [c.read(leader, SOON_US), c.read(follower, SOON_US)];
    c.advance(250_000);
    assert_eq!(c.answer(soon), Some(&Answer::Read(Err(Refusal::Deadline))), "it still leads");
    c.advance(SOON_US);
    for read in later {
        assert_eq!(c.answer(read), Some(&Answer::Read(Err(Refusal::NoLeader))));
    }
}

/// The index is known but the applier stands still: the deadline holds there as well, and nothing
/// more is said when the applier goes on.
#[test]
fn a_read_that_waits_for_the_applier_has_a_deadline() {
    let (mut c, leader) = Cluster::led(3);
    c.node(leader).applier_held = true;
    c.write(leader, "a", SOON_US);
    c.settle();
    let read = c.read(leader, 100_000);
    c.advance(150_000);
    assert_eq!(c.answer(read), Some(&Answer::Read(Err(Refusal::Deadline))));
    c.node(leader).applier_held = false;
    c.advance(50_000);
}

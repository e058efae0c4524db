//! Writes on the leader: batches, deadlines, bounds, and leaders that change under them.

use super::*;
use crate::kv::TooLarge;

/// A client writes to the leader; it is told once, and only when its write can be read.
#[test]
fn a_write_is_answered_once_it_can_be_read() {
    let (mut c, leader) = Cluster::led(3);
    c.node(leader).applier_held = true;
    let write = c.write(leader, "a", SOON_US);
    c.settle();
    assert_eq!(c.replica(leader).raft().commit_index(), c.replica(leader).raft().last_index());
    assert_eq!(c.answer(write), None, "committed, but not applied");
    c.node(leader).applier_held = false;
    c.settle();
    assert_eq!(c.revision(write), c.replica(leader).raft().last_index());
    assert_eq!(c.inflight(leader), 0);
}

/// While a batch is under way new writes wait, and nobody is woken for them; then they go out
/// together, as one request to the log writer.
#[test]
fn one_batch_is_in_flight_and_the_rest_accumulates() {
    let (mut c, leader) = Cluster::led(3);
    c.node(leader).disk_held = true;
    c.hold_from(leader);
    assert!(c.replica(leader).wake_interest().writes);
    let before = c.replica(leader).raft().last_index();
    let first = c.write(leader, "a", SOON_US);
    assert_eq!(c.replica(leader).raft().last_index(), before + 1);
    assert!(!c.replica(leader).wake_interest().writes);
    let rest: Vec<u64> = (0..5).map(|i| c.write(leader, &i.to_string(), SOON_US)).collect();
    assert_eq!(c.replica(leader).raft().last_index(), before + 1, "they wait");
    assert_eq!(c.node(leader).persists.len(), 1);
    c.persist(leader);
    c.heal();
    while c.answer(first).is_none() {
        assert!(c.deliver() | c.apply(leader) | c.followers(leader).iter().any(|&f| c.persist(f)));
    }
    assert_eq!(c.node(leader).persists.len(), 1, "one request for all of them");
    assert_eq!(c.node(leader).persists[0].entries.len(), rest.len());
    c.node(leader).disk_held = false;
    c.settle();
    let revisions: Vec<Index> = rest.iter().map(|&write| c.revision(write)).collect();
    assert_eq!(revisions, (before + 2..before + 7).collect::<Vec<_>>(), "in their order");
    assert!(c.replica(leader).wake_interest().writes);
    assert_eq!(c.inflight(leader), 0);
}

/// The store has got more than it can put away, and the applier rests. The leader proposes nothing meanwhile,
/// so that a read finds everything applied that is committed, and is served at once. The writes that came go out
/// together when the rest is over, whoever wakes the loop then.
#[test]
fn nothing_is_proposed_while_the_applier_rests() {
    let (mut c, leader) = Cluster::led(3);
    let before = c.replica(leader).raft().last_index();
    let until_us = c.now_us + 40_000;
    c.input(leader, Input::Rests { until_us });
    assert!(!c.replica(leader).wake_interest().writes, "no write is worth waking for");
    let writes: Vec<u64> = ["a", "b"].iter().map(|key| c.write(leader, key, SOON_US)).collect();
    let read = c.read(leader, SOON_US);
    c.settle();
    assert_eq!(c.replica(leader).raft().last_index(), before);
    assert!(matches!(c.answer(read), Some(Answer::Read(Ok(())))), "{:?}", c.answer(read));
    assert_eq!(c.answer(writes[0]), None);
    assert!(c.replica(leader).next_tick_us() <= until_us);
    c.advance(40_000);
    c.settle();
    let revisions: Vec<Index> = writes.iter().map(|&write| c.revision(write)).collect();
    assert_eq!(revisions, [before + 1, before + 2]);
    assert!(c.replica(leader).wake_interest().writes);
}

/// A batch ends at its bound, and a command beyond the bound goes alone instead of never.
#[test]
fn a_command_larger_than_a_batch_goes_alone() {
    let (mut c, leader) = Cluster::led(3);
    let small = Request::Write(put("small", "v"));
    let huge = Request::Write(put("huge", &"x".repeat(20_000)));
    let whats = vec![small.clone(), huge, small];
    let before = c.replica(leader).raft().last_index();
    let writes = c.ask_all(leader, whats, SOON_US);
    assert_eq!(c.replica(leader).raft().last_index(), before + 1, "the huge one does not fit");
    c.settle();
    let revisions: Vec<Index> = writes.iter().map(|&write| c.revision(write)).collect();
    assert_eq!(revisions, [before + 1, before + 2, before + 3]);
}

/// The majority is gone. What was proposed may still take effect, so its outcome is unknown at the
/// deadline; what waited behind it surely has none. When the majority is back the proposed one
/// does take effect, and nobody is told a second time.
#[test]
fn a_deadline_tells_proposed_from_queued() {
    let (mut c, leader) = Cluster::led(3);
    let followers = c.followers(leader);
    followers.iter().for_each(|&f| c.node(f).disk_held = true);
    let proposed = c.write(leader, "a", 300_000);
    let queued = c.write(leader, "b", 300_000);
    c.advance(250_000);
    assert_eq!((c.answer(proposed), c.answer(queued)), (None, None));
    c.advance(100_000);
    assert!(c.is_unknown(proposed));
    assert_eq!(c.refusal(queued), Refusal::Deadline);
    assert!(c.inflight(leader) > 0, "the proposed one is still in the log");
    let term = c.replica(leader).raft().term();
    followers.iter().for_each(|&f| c.node(f).disk_held = false);
    c.advance(SOON_US);
    assert_eq!(c.replica(leader).raft().term(), term, "the same leader committed it");
    assert_eq!(c.nodes[&leader].applier.machine().applied(), c.replica(leader).raft().last_index());
    assert_eq!(c.inflight(leader), 0);
}

/// Nobody leads: a write waits until its deadline, but not longer than an election should take, and
/// surely has no effect. While that lasts the next ones are refused at once.
#[test]
fn without_a_leader_a_write_waits_for_an_election_and_has_no_effect() {
    let mut c = Cluster::new(3);
    (1..=3).for_each(|id| c.isolate(id));
    let write = c.write(1, "a", 60_000_000);
    c.advance(2 * ELECTION_US - 50_000);
    assert_eq!(c.answer(write), None, "somebody may be elected yet");
    c.advance(100_000);
    assert_eq!(c.refusal(write), Refusal::NoLeader);
    let at_once = c.write(1, "b", 60_000_000);
    assert_eq!(c.refusal(at_once), Refusal::NoLeader);
    assert_eq!(c.inflight(1), 0);
    c.heal();
    c.elect();
    c.advance(ELECTION_US);
    let write = c.write(1, "c", SOON_US);
    c.advance(ELECTION_US);
    c.revision(write);
}

/// Nobody leads yet: a write waits until its deadline and surely has no effect.
#[test]
fn without_a_leader_a_write_waits_and_has_no_effect() {
    let mut c = Cluster::new(3);
    (1..=3).for_each(|id| c.isolate(id));
    let write = c.write(1, "a", 300_000);
    let early = c.write(1, "b", 5_000_000);
    c.advance(400_000);
    assert_eq!(c.refusal(write), Refusal::NoLeader);
    assert_eq!(c.answer(early), None, "its time has not come");
    c.heal();
    c.elect();
    c.advance(100_000);
    c.revision(early);
    assert_eq!(c.inflight(1), 0);
}

/// A leader is cut off with a proposal that nobody has. The others go on without it, and when it
/// is back it learns that another entry took the place: surely not applied.
#[test]
fn a_proposal_that_another_leader_overwrote_surely_has_no_effect() {
    let (mut c, old) = Cluster::led(3);
    c.isolate(old);
    let lost = c.write(old, "a", 60_000_000);
    c.advance(3 * ELECTION_US);
    let new = c.leader().unwrap();
    assert_ne!(new, old);
    let kept = c.write(new, "b", SOON_US);
    c.advance(50_000);
    c.revision(kept);
    assert_eq!(c.answer(lost), None, "cut off, it cannot know");
    c.heal();
    c.advance(ELECTION_US);
    assert_eq!(c.refusal(lost), Refusal::Overwritten);
    assert_eq!(c.inflight(old), 0);
}

/// Three proposals of a leader are overwritten one by one, the last by the same node's own write
/// in a later term: two wait for one index, and each gets the answer that is its own.
#[test]
fn an_index_is_waited_for_by_term() {
    let (mut c, old) = Cluster::led(3);
    c.isolate(old);
    let before = c.replica(old).raft().last_index();
    let whats = ["a", "b", "c"].map(|key| Request::Write(put(key, "v"))).to_vec();
    let lost = c.ask_all(old, whats, 60_000_000);
    assert_eq!(c.replica(old).raft().last_index(), before + 3);
    c.advance(3 * ELECTION_US);
    assert_eq!(c.replica(c.leader().unwrap()).raft().last_index(), before + 1, "only a no-op");
    c.heal();
    c.advance(ELECTION_US);
    assert_eq!(c.refusal(lost[0]), Refusal::Overwritten);
    assert_eq!((c.answer(lost[1]), c.answer(lost[2])), (None, None));
    c.hand_over(old);
    assert_eq!(c.refusal(lost[1]), Refusal::Overwritten, "its own no-op is there");
    assert_eq!(c.answer(lost[2]), None);
    let new = c.write(old, "d", SOON_US);
    c.settle();
    assert_eq!(c.revision(new), before + 3);
    assert_eq!(c.refusal(lost[2]), Refusal::Overwritten);
    assert_eq!(c.inflight(old), 0);
}

/// A former leader's overwritten proposals are answered as unknown, and the index that would settle
/// the last of them is not reached for long. They are not charged meanwhile, or the node would
/// call itself busy for ever.
#[test]
fn overwritten_proposals_do_not_fill_the_bound() {
    let mut c = Cluster::with_inflight(3, 2_000);
    let old = c.elect();
    c.isolate(old);
    let whats: Vec<Request> = (0..10).map(|i| Request::Write(put(&i.to_string(), "v"))).collect();
    let lost = c.ask_all(old, whats, 3 * ELECTION_US);
    c.advance(4 * ELECTION_US);
    assert!(lost.iter().all(|&write| c.is_unknown(write)));
    assert!(c.inflight(old) > 1000);
    c.heal();
    c.advance(ELECTION_US);
    assert_eq!(c.inflight(old), 0);
    let write = c.write(old, "a", SOON_US);
    c.advance(50_000);
    c.revision(write);
}

/// A flood: what fits the bound is taken, the rest is refused at once and surely not applied; when
/// the first are answered there is room again.
#[test]
fn over_the_bound_is_busy_until_there_is_room() {
    let mut c = Cluster::with_inflight(3, 2_000);
    let leader = c.elect();
    c.hold_from(leader);
    let command = put("key", &"x".repeat(300));
    let whats = vec![Request::Write(Arc::clone(&command)); 10];
    let writes = c.ask_all(leader, whats, SOON_US);
    let taken = writes.iter().filter(|&&write| c.answer(write).is_none()).count();
    assert_eq!(taken, 2_000 / c.inflight(leader).div_euclid(taken));
    assert!(c.inflight(leader) <= 2_000);
    for &write in &writes[taken..] {
        assert_eq!(c.refusal(write), Refusal::Busy { bytes_max: 2_000 });
    }
    c.heal();
    c.advance(100_000);
    writes[..taken].iter().for_each(|&write| assert!(c.revision(write) > 0));
    assert_eq!(c.inflight(leader), 0);
    let again = c.ask(leader, Request::Write(command), SOON_US);
    c.settle();
    c.revision(again);
}

/// One write is larger than the whole bound: it is taken when it is the only one, and busy is said
/// only while there is something to wait for.
#[test]
fn a_write_larger_than_the_bound_is_taken_alone() {
    let mut c = Cluster::with_inflight(3, 1_000);
    let leader = c.elect();
    let huge = Request::Write(put("huge", &"x".repeat(3_000)));
    let writes = c.ask_all(leader, vec![huge.clone(), huge], SOON_US);
    assert_eq!(c.refusal(writes[1]), Refusal::Busy { bytes_max: 1_000 });
    c.settle();
    c.revision(writes[0]);
}

/// Writes of one byte are not free: each has its place in queues and maps.
#[test]
fn small_writes_are_bounded_as_well() {
    let mut c = Cluster::with_inflight(3, 10_000);
    let leader = c.elect();
    let mut session = Vec::new();
    encode_command(&Command::OpenSession, &mut session);
    let whats = vec![Request::Write(Arc::from(session)); 1_000];
    let writes = c.ask_all(leader, whats, SOON_US);
    let busy = writes.iter().filter(|&&w| c.answer(w).is_some()).count();
    assert!(busy > 900, "{busy}");
    c.settle();
    let Some(Answer::Write(Verdict::Applied(outcome))) = c.answer(writes[0]) else { panic!() };
    assert!(matches!(outcome, Outcome::SessionOpened { .. }));
    assert_eq!(c.inflight(leader), 0);
}

fn command(ops: Vec<Op>) -> Request {
    let mut bytes = Vec::new();
    encode_command(&Command::Write(Write { ops, ..Write::default() }), &mut bytes);
    Request::Write(Arc::from(bytes))
}

/// The leader's disk is full. Whatever would add data is refused, also when a follower forwards it;
/// deletes and sessions go on. With space again all do.
#[test]
fn on_a_full_disk_the_leader_refuses_what_adds_data_and_takes_deletes() {
    let (mut c, leader) = Cluster::led(3);
    let before = c.write(leader, "k", SOON_US);
    c.settle();
    let stored = c.revision(before);
    let key = || b"k".to_vec();
    let put = Op::Put { key: key(), value: b"v".to_vec() };
    let (delete, add) = (Op::Delete { key: key() }, Op::Increment { key: key(), by: 1 });
    c.input(leader, Input::DiskFull(true));
    let follower = c.followers(leader)[0];
    for node in [leader, follower] {
        let growing = vec![
            command(vec![put.clone()]),
            command(vec![add.clone()]),
            command(vec![delete.clone(), put.clone()]),
        ];
        let growing = c.ask_all(node, growing, SOON_US);
        let mut session = Vec::new();
        encode_command(&Command::OpenSession, &mut session);
        let session = Request::Write(Arc::from(session));
        let taken = vec![command(vec![delete.clone()]), session];
        let taken = c.ask_all(node, taken, SOON_US);
        c.settle();
        for write in growing {
            assert_eq!(c.refusal(write), Refusal::DiskFull { node: leader }, "at {node}");
        }
        assert!(c.revision(taken[0]) > stored, "at {node}");
        let opened = matches!(
            c.answer(taken[1]),
            Some(Answer::Write(Verdict::Applied(Outcome::SessionOpened { .. })))
        );
        assert!(opened, "at {node}");
        assert_eq!(c.inflight(node), 0);
    }
    // What a follower's disk is like is nobody's business but its own.
    c.input(leader, Input::DiskFull(false));
    c.input(follower, Input::DiskFull(true));
    for node in [leader, follower] {
        let write = c.ask(node, command(vec![put.clone()]), SOON_US);
        c.settle();
        c.revision(write);
    }
}

/// The flags of three nodes differ. A write that its node would take and the leader would not is
/// refused by the leader, with the limit named; one that the leader takes is held by all, and they start
/// again with it. Whoever leads next goes by its own flags.
#[test]
fn a_write_is_checked_against_the_limits_of_the_node_that_leads() {
    let (mut c, leader) = Cluster::led(3);
    let [large, small] = c.followers(leader)[..] else { panic!("three nodes") };
    for (id, value, batch) in
        [(leader, 3_000, 16_000), (large, 50_000, 80_000), (small, 100, 9_000)]
    {
        let limits = Limits::new(value, batch).unwrap();
        c.limits.insert(id, limits);
        c.restart(id);
    }
    c.elect();
    c.hand_over(leader);
    let write = |c: &mut Cluster, node, bytes| {
        let write = c.ask(node, Request::Write(put("k", &"x".repeat(bytes))), SOON_US);
        c.settle();
        write
    };
    let refused = write(&mut c, large, 3_001);
    let why = TooLarge::Value { bytes: 3_001, limit: 3_000 };
    assert_eq!(c.refusal(refused), Refusal::TooLarge { leader: None, why });
    let refused = write(&mut c, small, 101);
    let why = TooLarge::Value { bytes: 101, limit: 100 };
    assert_eq!(c.refusal(refused), Refusal::TooLarge { leader: None, why });
    let taken = write(&mut c, large, 3_000);
    c.revision(taken);
    c.hand_over(large);
    let taken = write(&mut c, large, 50_000);
    c.revision(taken);
    let last = c.replica(large).raft().last_index();
    for id in [leader, large, small] {
        assert_eq!(c.inflight(id), 0);
        c.restart(id);
        assert_eq!(c.replica(id).raft().last_index(), last, "node {id}");
    }
    c.elect();
    c.advance(ELECTION_US);
    for id in [leader, large, small] {
        assert!(c.nodes[&id].applier.machine().applied() > last, "node {id}");
    }
}

/// Bytes that are no command are refused wherever they come in, and never proposed.
#[test]
fn bytes_that_are_no_command_are_not_proposed() {
    let (mut c, leader) = Cluster::led(3);
    let last = c.replica(leader).raft().last_index();
    let follower = c.followers(leader)[0];
    for node in [leader, follower] {
        for bytes in [&b""[..], b"none"] {
            let write = c.ask(node, Request::Write(Arc::from(bytes)), SOON_US);
            c.settle();
            assert!(matches!(c.refusal(write), Refusal::Malformed(_)), "at {node}");
        }
    }
    let forward = Forward { id: 5, deadline_ms: 1000, command: Arc::from(*b"none") };
    c.held.insert((leader, follower));
    c.input(leader, Input::Forwarded { from: follower, forward });
    let answered = |(_, to, packet): &(NodeId, NodeId, Packet)| {
        let refused =
            |verdict: &Verdict| matches!(verdict, Verdict::NotApplied(Refusal::Malformed(_)));
        *to == follower && matches!(packet, Packet::Answer(5, verdict) if refused(verdict))
    };
    assert!(c.net.iter().any(answered));
    assert_eq!(c.replica(leader).raft().last_index(), last);
}

/// As long as the disk is full a flush may give space back: the store is asked for one each time
/// that is said, and not again when it is full no more.
#[test]
fn a_full_disk_asks_the_store_to_flush() {
    let (mut c, leader) = Cluster::led(1);
    let mut flushes = |full| {
        c.node(leader).replica.handle(Input::DiskFull(full), 0);
        c.node(leader).replica.effects().flush
    };
    assert_eq!([true, true, false].map(&mut flushes), [true, true, false]);
}

/// A leader is cut off with proposals. A snapshot of what the others did meanwhile takes the place of their
/// entries, and it may hold them: they are neither refused nor done, and the one behind the snapshot waits.
#[test]
fn a_write_that_a_snapshot_overtook_is_unknown() {
    let (mut c, old) = Cluster::led(3);
    c.isolate(old);
    let whats = ["a", "b", "c"].map(|key| Request::Write(put(key, "v"))).to_vec();
    let lost = c.ask_all(old, whats, 60_000_000);
    c.advance(3 * ELECTION_US);
    let new = c.leader().unwrap();
    let kept = c.write(new, "d", SOON_US);
    c.advance(50_000);
    let index = c.revision(kept);
    let raft = c.replica(new).raft();
    let term = raft.term_at(index).unwrap();
    let configuration = Arc::clone(raft.configuration());
    let mark = crate::raft::SnapshotMark { index, term, configuration };
    c.input(old, Input::Installed { mark });
    assert!(c.is_unknown(lost[0]) && c.is_unknown(lost[1]));
    assert_eq!(c.answer(lost[2]), None, "its index is still to come");
    assert_eq!(c.inflight(old), super::super::proposals::weight(&put("c", "v")));
}

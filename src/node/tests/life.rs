//! What a node learns and keeps: identities of members, its log after a restart, its status.

use super::*;
use crate::raft::{Committed, Entry, HardState, Payload};

/// Members are named by address only. When the leader has met them it writes their identities
/// down, in one configuration entry, and never again.
#[test]
fn identities_are_bound_once() {
    let mut c = Cluster::new(3);
    let leader = c.elect();
    c.advance(200_000);
    let alone: Vec<u64> =
        c.replica(leader).raft().configuration().members.iter().map(|m| m.identity).collect();
    assert_eq!(alone.iter().filter(|&&identity| identity != 0).count(), 1, "it knows itself");
    let before = c.replica(leader).raft().last_index();
    for _ in 0..3 {
        for node in c.followers(leader) {
            c.input(leader, Input::PeerConnected { node, identity: identity_of(node) });
            c.advance(50_000);
        }
    }
    let bound = |c: &Cluster, id: NodeId| {
        let members = &c.replica(id).raft().configuration().members;
        members.iter().all(|m| m.identity == identity_of(m.id))
    };
    assert!((1..=3).all(|id| bound(&c, id)));
    assert_eq!(c.replica(leader).raft().last_index(), before + 2, "one entry for each meeting");
    let heir = c.followers(leader)[0];
    c.hand_over(heir);
    c.advance(200_000);
    assert_eq!(c.replica(heir).raft().last_index(), before + 3, "a no-op, nothing to bind");
    assert_eq!(c.nodes[&heir].configurations.len(), 4, "each is told outside once");
}

/// A peer that names no identity, or another one than is bound, changes nothing.
#[test]
fn a_bound_identity_stays() {
    let mut c = Cluster::new(3);
    let leader = c.elect();
    c.advance(200_000);
    let node = c.followers(leader)[0];
    let before = c.replica(leader).raft().last_index();
    c.input(leader, Input::PeerConnected { node, identity: 0 });
    c.advance(100_000);
    assert_eq!(c.replica(leader).raft().last_index(), before, "zero is no identity");
    c.input(leader, Input::PeerConnected { node, identity: identity_of(node) });
    c.advance(100_000);
    c.input(leader, Input::PeerConnected { node, identity: 5 });
    c.advance(100_000);
    assert_eq!(c.replica(leader).raft().last_index(), before + 1);
    let configuration = c.replica(leader).raft().configuration();
    assert_eq!(configuration.member(node).map(|m| m.identity), Some(identity_of(node)));
}

/// A node is killed and comes back: its store is empty, and everything that was committed is
/// applied again from the log file. A read there sees all of it.
#[test]
fn a_restarted_node_replays_its_log() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    for i in 0..50 {
        c.write(leader, &format!("key{i}"), SOON_US);
        c.settle();
    }
    c.advance(200_000);
    c.restart(follower);
    assert_eq!(c.nodes[&follower].applier.machine().applied(), 0);
    let read = c.read(follower, SOON_US);
    c.advance(SOON_US / 2);
    assert_eq!(c.answer(read), Some(&Answer::Read(Ok(()))));
    let machine = c.nodes[&follower].applier.machine();
    let reader = machine.reader();
    let view = crate::kv::Reader::view(&reader);
    for i in 0..50 {
        let key = format!("key{i}");
        let found = crate::kv::View::get(&view, crate::kv::Space::User, key.as_bytes()).unwrap();
        assert!(found.is_some(), "{key}");
    }
}

/// A node of a cluster of one leads, writes, dies and comes back with all it had answered.
#[test]
fn a_single_node_needs_nobody() {
    let (mut c, leader) = Cluster::led(1);
    let write = c.write(leader, "a", SOON_US);
    c.settle();
    let revision = c.revision(write);
    c.restart(leader);
    c.elect();
    c.advance(50_000);
    assert!(c.nodes[&leader].applier.machine().applied() >= revision);
}

/// The applier cannot read a committed entry back. It says so, with the cause: whoever runs it
/// stops the node rather than leave a gap.
#[test]
fn an_entry_that_cannot_be_read_back_stops_the_applier() {
    let (mut c, leader) = Cluster::led(3);
    let node = c.node(leader);
    let first = node.applier.machine().applied() + 1;
    let committed = crate::raft::Committed { first, last: first, entries: Vec::new() };
    node.applier.handle(ApplyTask::Apply(Apply { committed, waiters: Vec::new(), alone: false }));
    let e = node.applier.step().unwrap_err();
    assert!(matches!(e, ApplyError::Log(_)), "{e}");
    assert!(std::error::Error::source(&e).is_some());
}

/// The store is damaged: a repair is asked for, and what is committed waits. A flush does not.
#[test]
fn entries_wait_for_a_repair_and_a_flush_does_not() {
    let (mut c, leader) = Cluster::led(1);
    let applier = &mut c.node(leader).applier;
    let applied = applier.machine().applied();
    let (first, last) = (applied + 1, applied + 1);
    let committed = crate::raft::Committed { first, last, entries: Vec::new() };
    applier.handle(ApplyTask::Hold);
    applier.handle(ApplyTask::Apply(Apply { committed, waiters: Vec::new(), alone: false }));
    applier.handle(ApplyTask::Flush);
    assert_eq!(applier.step().unwrap().unwrap().repair, Some(applied));
    assert!(matches!(applier.next_task(), Some(ApplyTask::Flush)));
    assert!(applier.step().unwrap().is_some_and(|done| done.repair.is_none()));
    assert!(applier.step().unwrap().is_none() && applier.is_holding());
}

/// Status is answered at once, and so is a transfer by the leader.
#[test]
fn status_and_transfer_are_answered_at_once() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    let asked = [
        c.ask(leader, Request::Status, SOON_US),
        c.ask(follower, Request::Status, SOON_US),
        c.ask(leader, Request::Transfer(Some(follower)), SOON_US),
    ];
    let leads = |request| match c.answer(request) {
        Some(Answer::Status(status)) => (status.id, status.role, status.leader),
        other => panic!("{other:?}"),
    };
    assert_eq!(leads(asked[0]), (leader, RoleName::Leader, Some(leader)));
    assert_eq!(leads(asked[1]), (follower, RoleName::Follower, Some(leader)));
    assert_eq!(c.answer(asked[2]), Some(&Answer::Transfer(Ok(follower))));
    let waiting = c.write(leader, "a", SOON_US);
    assert_eq!(c.answer(waiting), None, "leadership is being handed over");
    c.advance(ELECTION_US);
    assert_eq!(c.leader(), Some(follower));
    c.revision(waiting);
}

/// A node restarts with entries of a dead leader at the end of its log. While it replays what is
/// committed, the new leader replaces those: the replay reads again, and the node goes on.
#[test]
fn a_replay_that_meets_a_truncation_is_continued() {
    let disk = TestDisk::default();
    let options = wal::Options { segment_bytes: 1 << 20, identity: 1, must_exist: false };
    let (mut wal, _) = Wal::open(disk.shared(), &PathBuf::from("/log"), options).unwrap();
    let entry = |index: Index, term| {
        let payload = Payload::Command(put(&format!("key-{index}"), "value"));
        Entry { index, term, payload }
    };
    let persist = |seq, term, entries| {
        let hard_state = Some(HardState { term, vote: None });
        Persist { seq, hard_state, reset: None, entries }
    };
    wal.write(&[persist(1, 1, (1..=10).map(|index| entry(index, 1)).collect())]).unwrap();
    let machine = Machine::open(MemoryStore::default()).unwrap();
    let mut applier: Applier<_, Client> =
        Applier::new(machine, wal.reader(), Configuration::default());
    disk.before_read(move || {
        wal.write(&[persist(2, 2, vec![entry(6, 2)])]).unwrap();
    });
    let committed = Committed { first: 1, last: 5, entries: Vec::new() };
    applier.handle(ApplyTask::Apply(Apply { committed, waiters: Vec::new(), alone: false }));
    assert_eq!(applier.step().unwrap().unwrap().applied, Some(Applied { index: 5, flushed: 0 }));
    assert_eq!(applier.machine().applied(), 5);
}

/// Ten entries that each read a value come from the log file, and a client waits for the fourth and the last. A step
/// ends when so much was read, the next one goes on behind it, and each waiter is answered by the step that has its entry.
#[test]
fn a_step_that_reads_much_ends_early_and_the_next_goes_on() {
    let disk = TestDisk::default();
    let options = wal::Options { segment_bytes: 1 << 20, identity: 1, must_exist: false };
    let (mut wal, _) = Wal::open(disk.shared(), &PathBuf::from("/log"), options).unwrap();
    let read = Write { ops: vec![Op::Get { key: b"large".to_vec() }], ..Write::default() };
    let mut bytes = Vec::new();
    encode_command(&Command::Write(read), &mut bytes);
    let entries = (1..=11).map(|index| {
        let payload = match index {
            1 => Payload::Command(put("large", &"v".repeat(1000))),
            _ => Payload::Command(bytes.clone().into()),
        };
        Entry { index, term: 1, payload }
    });
    let entries: Vec<Entry> = entries.collect();
    let hard_state = Some(HardState { term: 1, vote: None });
    wal.write(&[Persist { seq: 1, hard_state, reset: None, entries: entries.clone() }]).unwrap();
    for in_memory in [Vec::new(), entries] {
        let machine = Machine::open(MemoryStore::default()).unwrap();
        let mut applier: Applier<_, Client> =
            Applier::new(machine, wal.reader(), Configuration::default()).in_steps_of(4000);
        let committed = Committed { first: 1, last: 11, entries: in_memory };
        let waits = |n| (n, ReplyTo::Client { client: n, request: n });
        let waiters = vec![waits(4), waits(11)];
        applier.handle(ApplyTask::Apply(Apply { committed, waiters, alone: false }));
        let mut steps = Vec::new();
        while let Some(effects) = applier.step().unwrap() {
            let answered = effects.answers.iter().map(|(to, answer)| match (to, answer) {
                (ReplyTo::Client { request, .. }, Answer::Write(Verdict::Applied(_))) => *request,
                other => panic!("{other:?}"),
            });
            steps.push((effects.applied.unwrap().index, answered.collect::<Vec<_>>()));
        }
        // The fourth is read, and kept for the answer.
        assert_eq!(steps, [(4, vec![4]), (8, vec![]), (11, vec![11])]);
    }
}

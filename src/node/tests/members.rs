//! Changes of the members as persons and joining nodes ask for them, and old copies of disks.

use super::super::boot::restored;
use super::verify::{DATA, Machines};
use super::*;
use crate::wal::Identity;
use std::path::Path;

fn join(address: &str, identity: u64) -> Request {
    Request::Change(Change::Join { address: address.to_string(), identity })
}

impl Cluster {
    /// What became of a change that had a second.
    fn change(&mut self, at: NodeId, what: Request) -> Result<NodeId, ChangeRefused> {
        let asked = self.ask(at, what, SOON_US);
        self.advance(1_000_000);
        match self.answer(asked) {
            Some(Answer::Changed(result)) => result.clone(),
            other => panic!("no answer to a change: {other:?}"),
        }
    }

    /// An empty node that knows the members of the beginning.
    fn begin(&mut self, id: NodeId) {
        let founders = self.founders;
        self.start(id, founders, TestDisk::default());
        let others = self.followers(id);
        for other in others {
            self.input(other, Input::PeerConnected { node: id, identity: identity_of(id) });
        }
    }

    fn voters(&self, at: NodeId) -> Vec<NodeId> {
        self.replica(at).raft().configuration().voters.iter().copied().collect()
    }
}

/// A node asks to be taken in, again and again: it gets one id, learns, and votes once it has caught
/// up. Another directory at its address is refused with the command that would replace it.
#[test]
fn a_node_joins_once_and_is_promoted_when_it_has_caught_up() {
    let (mut c, leader) = Cluster::led(3);
    assert_eq!(c.change(leader, join("host:4", identity_of(4))), Ok(4));
    assert_eq!(c.change(leader, join("host:4", identity_of(4))), Ok(4));
    assert_eq!(c.voters(leader), [1, 2, 3], "it was never heard");
    let Err(why) = c.change(leader, join("host:4", 5)) else { panic!("two at one address") };
    assert!(why.to_string().contains("member replace 4 host:4"), "{why}");
    c.begin(4);
    c.advance(1_000_000);
    assert_eq!(c.voters(leader), [1, 2, 3, 4]);
    assert_eq!(c.voters(4), [1, 2, 3, 4]);
    // Announced by somebody else first, and bound when it comes.
    assert_eq!(c.change(leader, join("host:5", 0)), Ok(5));
    assert_eq!(c.change(leader, join("host:5", 0)), Ok(5));
    assert_eq!(c.change(leader, join("host:5", identity_of(5))), Ok(5));
    let configuration = c.replica(leader).raft().configuration();
    assert_eq!(configuration.member(5).unwrap().identity, identity_of(5));
}

/// A member is replaced: the new one learns, and with its vote the old one is gone, in one joint step.
#[test]
fn a_replacement_takes_effect_in_one_step() {
    let (mut c, leader) = Cluster::led(3);
    let old = c.followers(leader)[0];
    let replace =
        |address: &str| Request::Change(Change::Replace { old, address: address.to_string() });
    let Err(why) = c.change(leader, replace(&format!("host:{old}"))) else { panic!("it lives") };
    assert_eq!(why, ChangeRefused::Answers { id: old });
    assert_eq!(c.change(leader, replace("host:4")), Ok(4));
    assert_eq!(c.change(leader, replace("host:4")), Ok(4));
    let other = c.change(leader, replace("host:5"));
    assert_eq!(other, Err(ChangeRefused::BeingReplaced { id: old, by: 4 }));
    assert_eq!(c.change(leader, join("host:4", identity_of(4))), Ok(4));
    c.begin(4);
    c.advance(1_000_000);
    let mut expected = vec![1, 2, 3, 4];
    expected.retain(|&id| id != old);
    assert_eq!(c.voters(leader), expected);
    let seen: Vec<usize> =
        c.nodes[&leader].configurations.iter().map(|now| now.voters.len()).collect();
    assert!(seen.iter().all(|&voters| voters == 3), "never fewer, never more: {seen:?}");
    let gone = c.change(leader, Request::Change(Change::Remove { id: old, force: false }));
    assert_eq!(gone, Err(ChangeRefused::WasRemoved { id: old }));
}

/// A node that has just died looks alive for an election timeout: a removal that would count on it
/// waits until it is known, and is refused. With force it is done, and then nothing can be.
#[test]
fn a_removal_does_not_count_on_a_node_that_has_just_died() {
    let (mut c, leader) = Cluster::led(3);
    let [dead, id] = c.followers(leader)[..] else { panic!("two followers") };
    c.isolate(dead);
    let remove = |force| Request::Change(Change::Remove { id, force });
    let refused = ChangeRefused::LosesQuorum { id, left: 2, reachable: 1 };
    assert_eq!(c.change(leader, remove(false)), Err(refused));
    assert_eq!(c.voters(leader), [1, 2, 3]);
    // The dead one may go: the two that are left can go on.
    let gone = Request::Change(Change::Remove { id: dead, force: false });
    assert_eq!(c.change(leader, gone), Ok(dead));
    c.isolate(id);
    let forced = c.ask(leader, remove(true), SOON_US);
    c.advance(3_000_000);
    let unknown = Answer::Changed(Err(ChangeRefused::Unknown));
    assert_eq!(c.answer(forced), Some(&unknown), "it was begun, and nobody is left to commit it");
}

/// A leader that is to go hands leadership over first; whoever leads then removes it.
#[test]
fn a_leader_that_is_removed_hands_over_first() {
    let (mut c, leader) = Cluster::led(3);
    let remove = Request::Change(Change::Remove { id: leader, force: false });
    let Err(ChangeRefused::HandsOver { to }) = c.change(leader, remove.clone()) else {
        panic!("it does not hand over")
    };
    assert_eq!(c.leader(), Some(to));
    assert_eq!(c.change(to, remove), Ok(leader));
    assert!(!c.voters(to).contains(&leader));
    // The last one stays.
    let other = *c.voters(to).iter().find(|&&id| id != to).unwrap();
    let gone = Request::Change(Change::Remove { id: other, force: false });
    assert_eq!(c.change(to, gone), Ok(other));
    let last = Request::Change(Change::Remove { id: to, force: true });
    assert_eq!(c.change(to, last), Err(ChangeRefused::OnlyVoter { id: to }));
}

/// A learner that has nothing is not promoted, and nobody is who votes or is no member.
#[test]
fn changes_are_refused_where_they_make_no_sense() {
    let (mut c, leader) = Cluster::led(3);
    let follower = c.followers(leader)[0];
    let promote = |id, force| Request::Change(Change::Promote { id, force });
    assert_eq!(c.change(leader, promote(9, false)), Err(ChangeRefused::NoMember { id: 9 }));
    let votes = Err(ChangeRefused::Votes { id: follower });
    assert_eq!(c.change(leader, promote(follower, true)), votes);
    assert_eq!(c.change(leader, join("host:4", 0)), Ok(4));
    let behind = Err(ChangeRefused::Behind { id: 4, entries: None });
    assert_eq!(c.change(leader, promote(4, false)), behind);
    assert_eq!(c.change(leader, promote(4, true)), behind, "one that is not there is no vote");
    // A learner that hears everything and lacks nothing may; but not where most voters are away.
    let [one, two] = c.followers(leader)[..] else { panic!("two followers") };
    c.begin(4);
    c.isolate(one);
    c.held.insert((4, leader));
    c.advance(100_000);
    let replace = |old| Request::Change(Change::Replace { old, address: "host:4".to_string() });
    assert_eq!(c.change(leader, replace(one)), Ok(4));
    assert_eq!(c.change(leader, replace(two)), Err(ChangeRefused::Replaces { id: 4, old: one }));
    let other = Request::Change(Change::Replace { old: one, address: format!("host:{two}") });
    let by = Err(ChangeRefused::BeingReplaced { id: one, by: 4 });
    assert_eq!(c.change(leader, other), by);
    let voter = Request::Change(Change::Replace { old: two, address: format!("host:{one}") });
    let takes_no_place = Err(ChangeRefused::ReplacedByVoter { old: two, id: one });
    assert_eq!(c.change(leader, voter), takes_no_place);
}

/// A learner whose disk is slower than the load is never ready by itself; a person may let it vote.
#[test]
fn a_learner_that_lags_a_little_is_promoted_when_somebody_asks() {
    let (mut c, leader) = Cluster::led(3);
    assert_eq!(c.change(leader, join("host:4", identity_of(4))), Ok(4));
    c.begin(4);
    c.node(4).disk_held = true;
    for round in 0..6 {
        c.write(leader, &format!("k{round}"), SOON_US);
        c.advance(2 * ELECTION_US);
        assert_eq!(c.voters(leader), [1, 2, 3], "each round takes longer than an election timeout");
        // One write of its disk, and the next takes as long.
        c.persist(4);
        c.write(leader, "more", SOON_US);
    }
    let promote = Request::Change(Change::Promote { id: 4, force: false });
    assert_eq!(c.change(leader, promote), Ok(4));
    assert_eq!(c.voters(leader), [1, 2, 3, 4]);
}

/// Members move: to a new address, two into each other's place, but not to where a third one is.
#[test]
fn a_member_moves_to_no_address_of_another() {
    let (mut c, leader) = Cluster::led(3);
    let [one, two] = c.followers(leader)[..] else { panic!("two followers") };
    let dials = |c: &mut Cluster, node, address: &str| {
        let (identity, address) = (identity_of(node), address.to_string());
        c.input(leader, Input::PeerDialed { node, identity, address });
    };
    let address = |c: &Cluster, node| {
        let configuration = c.replica(leader).raft().configuration();
        configuration.member(node).unwrap().address.clone()
    };
    dials(&mut c, one, &format!("host:{two}"));
    c.advance(100_000);
    assert_eq!(address(&c, one), format!("host:{one}"));
    dials(&mut c, two, &format!("host:{one}"));
    c.advance(100_000);
    assert_eq!(
        (address(&c, one), address(&c, two)),
        (format!("host:{two}"), format!("host:{one}"))
    );
    dials(&mut c, one, "elsewhere:1");
    c.advance(100_000);
    assert_eq!(address(&c, one), "elsewhere:1");
}

/// A survivor becomes a cluster of one; the machine stops at any operation on the way, and the same
/// again completes it. What was there is there.
#[test]
fn a_recovery_that_is_cut_off_anywhere_is_completed() {
    let data = Path::new(DATA);
    let mut node = Machines::new();
    node.lead();
    for n in 0..20u8 {
        let op = Op::Put { key: vec![b'k', n], value: vec![n; 100] };
        node.write(Write { ops: vec![op], ..Write::default() });
    }
    node.flush();
    let disk = node.disk();
    drop(node);
    let before = disk.ops();
    let rescued = recover(&disk.shared(), data, (77, [7; 32])).unwrap();
    assert_eq!((rescued.before, rescued.cluster, rescued.node), (5, 77, 1));
    assert_eq!((rescued.applied, rescued.last), (21, (21, 1)));
    let left_out: Vec<NodeId> = rescued.left_out.iter().map(|m| m.id).collect();
    assert_eq!(left_out, [2, 3]);
    let mut again = 0;
    for n in before..=disk.ops() {
        for seed in 0..3 {
            let crashed = disk.crashed(n, seed);
            let own = Identity::load(&crashed, data).unwrap().unwrap();
            let complete = own.cluster == 77 && {
                let opened = open(&crashed.shared(), super::verify::plan(data, &own), |_| {});
                opened.unwrap().recovered.last_index == 22
            };
            if !complete {
                again += 1;
                recover(&crashed.shared(), data, (78, [8; 32])).unwrap();
            }
            let own = Identity::load(&crashed, data).unwrap().unwrap();
            let opened = open(&crashed.shared(), super::verify::plan(data, &own), |_| {}).unwrap();
            let restored = restored(&own, &opened.recovered, 21);
            let (_, configuration) = restored.log.configurations.last().unwrap();
            assert_eq!((restored.log.last, configuration.cluster), (22, own.cluster));
            assert_eq!((configuration.members.len(), configuration.last_id), (1, 3));
            let mut raft = Raft::new(Options::new(1, 1), restored, 0);
            raft.tick(0);
            assert_eq!(raft.role(), RoleName::Candidate, "it needs nobody");
        }
    }
    assert!(again > 10, "{again}");
}

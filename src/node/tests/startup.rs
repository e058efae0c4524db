//! Who a node is: every combination of a directory, flags and answers that ends differently.

use super::*;
use crate::wal::{Identity, MembersSecret};
use crate::wire::client::{Class, Joined};
use crate::wire::handshake::{Reject, RejectCode};
use crate::wire::proof::Secret;

const OWN: u64 = 77;

fn options(advertise: &str, peers: &[&str], join: &[&str]) -> StartupOptions {
    let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    StartupOptions {
        data: "/data".to_string(),
        advertise: advertise.to_string(),
        peers: owned(peers),
        join: owned(join),
        backup: None,
        token: Vec::new(),
        secret: [6; 32],
        own: OWN,
        cluster: 9,
    }
}

fn first(peers: &[&str]) -> StartupOptions {
    options("a:1", peers, &[])
}

const THREE: [&str; 3] = ["a:1", "b:1", "c:1"];

/// The identity of a first member of three.
fn member() -> Identity {
    let mut startup = Startup::new(first(&THREE), None);
    let (end, stored) = run(&mut startup, |_| None);
    assert!(matches!(end, StartupEffect::Run(_)) && stored.len() == 1);
    Identity { created: true, ..stored[0].clone() }
}

/// Runs it to its end; `answer` says how each peer in turn rejects it. Gives what was stored on the way.
fn run(
    startup: &mut Startup,
    mut answer: impl FnMut(&str) -> Option<RejectCode>,
) -> (StartupEffect, Vec<Identity>) {
    let mut stored = Vec::new();
    loop {
        let event = match startup.next_effect() {
            StartupEffect::Say { .. } => continue,
            StartupEffect::Store(identity) => {
                stored.push(identity);
                StartupEvent::Stored
            }
            StartupEffect::AskPeer { address, .. } => {
                let reject = |code| Reject { code, message: "no".to_string() };
                StartupEvent::PeerAnswered(answer(&address).map(reject))
            }
            end => return (end, stored),
        };
        startup.handle(event);
    }
}

fn refusal(options: StartupOptions, found: Identity) -> String {
    let (end, stored) = run(&mut Startup::new(options, Some(found)), |_| None);
    assert_eq!(stored, [], "nothing is changed");
    match end {
        StartupEffect::Refuse(why) => why,
        other => panic!("{other:?}"),
    }
}

/// An empty directory, no flags: a cluster of one under a random name. With --peers: a member of a
/// cluster whose name all its members find by themselves.
#[test]
fn an_empty_directory_becomes_a_first_member() {
    let (end, stored) = run(&mut Startup::new(first(&[]), None), |_| panic!("nobody to ask"));
    let StartupEffect::Run(identity) = end else { panic!("{end:?}") };
    assert_eq!((identity.cluster, identity.node, identity.identity), (9, 1, OWN));
    assert_eq!(stored, [identity]);
    let one = member();
    let (end, _) = run(&mut Startup::new(options("c:1", &THREE, &[]), None), |_| None);
    let StartupEffect::Run(three) = end else { panic!("{end:?}") };
    assert_eq!((one.node, three.node, one.cluster), (1, 3, three.cluster));
    assert_eq!(cluster_of(&one.members, None), one.cluster);
    assert_ne!(cluster_of(&one.members, Some(5)), one.cluster);
}

/// Nothing runs as what is not durable.
#[test]
fn the_identity_is_durable_before_the_node_runs() {
    let mut startup = Startup::new(first(&[]), None);
    assert!(matches!(startup.next_effect(), StartupEffect::Store(_)));
    // An answer to something else is no answer.
    startup.handle(StartupEvent::Waited);
    startup.handle(StartupEvent::Stored);
    assert!(matches!(startup.next_effect(), StartupEffect::Run(_)));
}

/// A restart: the same node, whatever --peers says as long as it is what was said at first, or nothing.
#[test]
fn a_directory_goes_on_as_the_node_it_belongs_to() {
    for peers in [&THREE[..], &[]] {
        let (end, stored) = run(&mut Startup::new(first(peers), Some(member())), |_| None);
        assert_eq!((end, stored.len()), (StartupEffect::Run(member()), 0));
    }
    let why = refusal(first(&["a:1", "x:1"]), member());
    assert!(why.contains("formed of a:1,b:1,c:1, not of a:1,x:1"), "{why}");
    // It has moved: that is written down first.
    let moved = Identity { advertise: "z:9".to_string(), ..member() };
    let (end, stored) = run(&mut Startup::new(options("z:9", &[], &[]), Some(member())), |_| None);
    assert_eq!((end, stored), (StartupEffect::Run(moved.clone()), vec![moved]));
}

/// A verdict that was written down, or a restore that was not finished, keeps a node from starting.
#[test]
fn a_directory_that_is_of_no_use_is_refused() {
    let why = refusal(first(&[]), Identity { removed: true, ..member() });
    assert!(why.contains("was removed from its cluster"), "{why}");
    let why = refusal(first(&[]), Identity { denied: true, ..member() });
    assert!(why.contains("must not vote"), "{why}");
    let why = refusal(first(&[]), Identity { restoring: true, ..member() });
    assert!(why.contains("not finished"), "{why}");
    let why = refusal(StartupOptions { backup: Some(5), ..first(&[]) }, member());
    assert!(why.contains("not begun from this backup"), "{why}");
    let why = refusal(first(&[]), Identity { node: 0, ..member() });
    assert!(why.contains("has not taken it in yet"), "{why}");
}

/// --join beside the directory of a member: it goes on in its cluster, unless another one answers there.
#[test]
fn a_member_is_not_moved_to_another_cluster() {
    let options = || options("a:1", &[], &["x:1"]);
    let answers = [None, Some(("x:1".to_string(), member().cluster))];
    for found in answers {
        let mut startup = Startup::new(options(), Some(member()));
        assert!(matches!(startup.next_effect(), StartupEffect::AskCluster { .. }));
        startup.handle(StartupEvent::ClusterAnswered(found));
        assert_eq!(startup.next_effect(), StartupEffect::Run(member()));
    }
    let mut startup = Startup::new(options(), Some(member()));
    startup.next_effect();
    startup.handle(StartupEvent::ClusterAnswered(Some(("x:1".to_string(), 3))));
    let StartupEffect::Refuse(why) = startup.next_effect() else { panic!("it goes on") };
    assert!(why.contains("x:1 is in cluster 0000000000000003"), "{why}");
}

/// An empty directory under a member's name. A removal is committed, and one peer has not heard of that
/// yet: it still knows the identity of before. The one that knows of the removal is believed. Else the
/// disk was lost, and the node waits to be taken in as a new one. A peer that cannot say is passed over.
#[test]
fn a_peer_that_knows_of_a_removal_is_believed_over_one_that_is_behind() {
    use RejectCode::{NotFormed, Removed, WrongIdentity};
    let asked = |b: Option<RejectCode>, c: Option<RejectCode>| {
        run(&mut Startup::new(first(&THREE), None), |at| if at == "b:1" { b } else { c })
    };
    let (end, stored) = asked(Some(WrongIdentity), Some(Removed));
    let StartupEffect::Refuse(why) = end else { panic!("{end:?}") };
    assert!(why.contains("the node at c:1 says") && why.contains("--join c:1"), "{why}");
    assert_eq!(stored, []);
    for (b, c) in [(Some(WrongIdentity), None), (Some(NotFormed), Some(WrongIdentity))] {
        let (end, stored) = asked(b, c);
        let addresses = vec!["b:1".to_string(), "c:1".to_string()];
        assert_eq!(end, StartupEffect::Join { addresses, identity: OWN });
        assert_eq!((stored[0].node, stored[0].cluster, stored.len()), (0, 0, 1));
    }
    let (end, _) = asked(Some(NotFormed), None);
    assert!(matches!(end, StartupEffect::Run(Identity { node: 1, .. })));
}

/// A node that joins asks until it is answered, under one number, also after a crash; a wrong token is
/// the end. It becomes what the answer says, once that is durable.
#[test]
fn a_node_that_joins_asks_until_it_is_taken_in() {
    let options = || options("n:1", &[], &["a:1", "b:1"]);
    let mut startup = Startup::new(options(), None);
    let (asks, stored) = run(&mut startup, |_| panic!("nobody to ask"));
    let join = StartupEffect::Join {
        addresses: vec!["a:1".to_string(), "b:1".to_string()],
        identity: OWN,
    };
    assert_eq!(asks, join);
    let refused = |class| StartupEvent::NotJoined { class, why: "no".to_string() };
    let mut lines = 0;
    for _ in 0..3 {
        startup.handle(refused(Class::Unavailable));
        loop {
            let effect = startup.next_effect();
            match effect {
                StartupEffect::Say { .. } => lines += 1,
                StartupEffect::Wait(us) => {
                    assert_eq!(us, 500_000);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        startup.handle(StartupEvent::Waited);
        assert_eq!(startup.next_effect(), join);
    }
    assert_eq!(lines, 1, "the same is said once");
    let mut again = Startup::new(StartupOptions { own: 5, ..options() }, Some(stored[0].clone()));
    assert_eq!(run(&mut again, |_| None).0, join, "the same question after a crash");

    let secret = Some(Secret { bytes: [8; 32], sealed: true });
    let joined = Joined { cluster: 8, id: 4, first: member().members, secret };
    startup.handle(StartupEvent::Joined(joined));
    let (end, stored) = run(&mut startup, |_| None);
    let StartupEffect::Run(identity) = end else { panic!("{end:?}") };
    assert_eq!((identity.cluster, identity.node, identity.identity), (8, 4, OWN));
    assert_eq!(identity.secret, Some(MembersSecret { bytes: [8; 32], sealed: true }));
    assert_eq!(stored, [identity]);

    again.handle(refused(Class::Unauthorised));
    assert_eq!(again.next_effect(), StartupEffect::Refuse("no".to_string()));
}

//! Members come and go while the cluster serves: every command, with real processes.

use crate::support::cluster::{BINARY, Cluster, alone, flags, free_ports, kontiki};
use crate::support::load::{Run, while_loaded};
use crate::support::native::Native;
use crate::support::strace::missing;
use crate::support::{contents, http, say, wait_for};
use kontiki::wire::frame::{FRAME_HEADER_BYTES, PREAMBLE};
use kontiki::wire::handshake::{
    Hello, Reject, RejectCode, Role, put_hello, put_reject, take_answer,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

/// Writes acknowledged between one change and the next:
/// long enough for clients to hear of it.
const WRITES_BETWEEN: u64 = 3000;
const CLIENTS: u64 = 4;

/// Runs one command of the line client: exit code and what was printed on either stream.
fn cli(cluster: &Cluster, words: &str) -> (i32, String) {
    let run = cluster.cli().args(words.split_whitespace()).output().expect("kontiki cli");
    let text = [run.stdout, run.stderr].concat();
    (run.status.code().expect("an exit code"), String::from_utf8_lossy(&text).trim().to_owned())
}

fn good(cluster: &Cluster, words: &str) -> String {
    let (code, said) = cli(cluster, words);
    assert_eq!(code, 0, "{words}: {said}");
    said
}

/// Refused with this exit code and a line that says all of these.
fn refused(cluster: &Cluster, words: &str, exit: i32, parts: &[&str]) {
    let (code, said) = cli(cluster, words);
    assert_eq!(code, exit, "{words}: {said}");
    for part in parts {
        assert!(said.contains(part), "{words}: '{part}' is not in: {said}");
    }
    assert_eq!(said.lines().count(), 1, "{words}: one line, not: {said}");
}

/// Id and whether it votes, of each member by address.
fn members(cluster: &Cluster) -> BTreeMap<String, (u64, bool)> {
    let said = good(cluster, "members");
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[1].to_owned(), (words[0].parse().expect("an id"), words[3] == "voter"))
    };
    said.lines().map(row).collect()
}

/// Waits until exactly the nodes of these places are members, and vote.
fn wait_for_voters(cluster: &Cluster, places: &[usize]) {
    let mut expected: Vec<&String> = places.iter().map(|&p| &cluster.nodes[p].address).collect();
    expected.sort();
    wait_for("the members are as they are to be", || {
        let now = members(cluster);
        let all = now.keys().collect::<Vec<_>>() == expected;
        (all && now.values().all(|(_, votes)| *votes)).then_some(())
    });
}

fn id_of(cluster: &Cluster, place: usize) -> u64 {
    members(cluster)[&cluster.nodes[place].address].0
}

fn wait_for_log(cluster: &Cluster, node: usize, part: &str) {
    wait_for(part, || cluster.log(node).contains(part).then_some(()));
}

#[test]
fn one_node_grows_to_five_and_shrinks_to_one_under_load() {
    // Clients never stop while two commands make three nodes of one, four make five, and removals,
    // the leader's among them, lead back to one: no request fails, and what they saw has one
    // explanation.
    let mut cluster = Cluster::start(1);
    let run = Run::new(cluster.addresses());
    let (leaders, checked, sum) = while_loaded(&run, CLIENTS, || {
        let mut places = vec![0];
        run.more_writes(WRITES_BETWEEN);
        while places.len() < 5 {
            places.push(cluster.join());
            wait_for_voters(&cluster, &places);
            assert_eq!(id_of(&cluster, places.len() - 1), places.len() as u64);
            run.more_writes(WRITES_BETWEEN);
        }
        let mut leaders = 0;
        // The first node goes last but one: it is the one that clients were given.
        for round in 0..4 {
            let leader = cluster.leader();
            let gone = match round {
                1 | 2 => leader,
                _ => *places.iter().find(|&&p| p != leader && p != 0).expect("another one"),
            };
            leaders += usize::from(gone == leader);
            let id = id_of(&cluster, gone);
            good(&cluster, &format!("member remove {id}"));
            places.retain(|&p| p != gone);
            wait_for_voters(&cluster, &places);
            assert_ne!(cluster.wait_ended(gone), Some(0));
            wait_for_log(&cluster, gone, &format!("node {id} was removed from the cluster"));
            run.more_writes(WRITES_BETWEEN);
        }
        assert_eq!(places.len(), 1);
        leaders
    });
    assert!(checked.answered > 1000, "{checked:?}");
    say(
        "members",
        &format!(
            "1 -> 3 -> 5 -> 3 -> 1 in {:.1} s, {leaders} leaders removed; {} calls answered, none \
             failed; exact counter at {sum}; linearizable",
            run.elapsed().as_secs_f64(),
            checked.answered
        ),
    );
}

#[test]
fn a_dead_node_is_replaced_in_one_step() {
    // A machine is gone for good: another one takes its place, and the old one, should it come back,
    // is told.
    let mut cluster = Cluster::start(3);
    good(&cluster, "put city Oslo");
    let dead = cluster.follower();
    let old = id_of(&cluster, dead);
    cluster.kill(dead);
    // The new one is known before it runs.
    let new = cluster.join();
    let address = cluster.nodes[new].address.clone();
    cluster.kill(new);
    let replaced = good(&cluster, &format!("member replace {old} {address}"));
    let id = members(&cluster)[&address].0;
    assert_eq!(replaced, format!("OK {id}"));
    let again = good(&cluster, &format!("member replace {old} {address}"));
    assert_eq!(again, replaced, "asking again is the same");
    let before = members(&cluster);
    assert!(before.len() == 4 && !before[&address].1, "it has not caught up");
    cluster.relaunch(new);
    let places: Vec<usize> = (0..4).filter(|&place| place != dead).collect();
    wait_for_voters(&cluster, &places);
    cluster.wait_serving(new);
    cluster.relaunch(dead);
    assert_eq!(cluster.wait_ended(dead), Some(1));
    wait_for_log(&cluster, dead, &format!("node {old} was removed from the cluster"));
    // It knows from now on, also when nobody is there to tell it.
    let file = cluster.nodes[dead].log.clone();
    fs::write(file, "").expect("an empty log");
    cluster.relaunch(dead);
    assert_eq!(cluster.wait_ended(dead), Some(3));
    wait_for_log(&cluster, dead, "was removed from its cluster");
    assert_eq!(good(&cluster, "get city"), "Oslo");
    say("members", &format!("node {old} was replaced by node {id}"));
}

#[test]
fn a_removed_node_that_keeps_knocking_disturbs_nobody() {
    // It was away when it was removed, and comes back again and again with its old disk: nobody's
    // term moves, the leader stays, and each time it says why it ends.
    let mut cluster = Cluster::start(3);
    let away = cluster.follower();
    let id = id_of(&cluster, away);
    cluster.kill(away);
    let saved = cluster.dir.path().join("saved");
    copy(&cluster.nodes[away].data, &saved);
    good(&cluster, &format!("member remove {id}"));
    let leader = cluster.leader();
    let term = |cluster: &Cluster| {
        let said = good(cluster, "--json status");
        let (_, rest) = said.split_once("\"term\":").expect("a term");
        rest.split(',').next().expect("a number").to_owned()
    };
    let before = term(&cluster);
    for _ in 0..5 {
        // With the disk of before: what it was told is forgotten.
        fs::remove_dir_all(&cluster.nodes[away].data).expect("its directory");
        copy(&saved, &cluster.nodes[away].data);
        cluster.relaunch(away);
        assert_eq!(cluster.wait_ended(away), Some(1));
    }
    assert!(
        cluster.log(away).matches("was removed from the cluster. This node stops").count() >= 5
    );
    assert_eq!((cluster.leader(), term(&cluster)), (leader, before));
    say("members", "a removed node knocked 5 times");
}

#[test]
fn a_wiped_disk_is_noticed_and_one_command_puts_it_right() {
    // The same command line on an empty disk: the node is told that it is not the one that was, waits
    // without voting, and becomes a new node with one command of a person.
    let mut cluster = Cluster::start(3);
    good(&cluster, "put city Oslo");
    let wiped = cluster.follower();
    let (id, address) = (id_of(&cluster, wiped), cluster.nodes[wiped].address.clone());
    cluster.kill(wiped);
    fs::remove_dir_all(&cluster.nodes[wiped].data).expect("its directory");
    cluster.relaunch(wiped);
    let command = format!("member replace {id} {address}");
    wait_for_log(&cluster, wiped, &command);
    assert!(cluster.log(wiped).contains("its disk was wiped or exchanged"));
    assert!(!cluster.ended(wiped), "it waits");
    // The same words again, and still it is nobody.
    cluster.relaunch(wiped);
    wait_for_log(&cluster, wiped, "not taken in yet");
    assert_eq!(good(&cluster, &command), "OK 4");
    let places = [0, 1, 2];
    wait_for("the node has a new id", || {
        members(&cluster).get(&address).filter(|m| **m == (4, true)).map(|_| ())
    });
    wait_for_voters(&cluster, &places);
    cluster.wait_serving(wiped);
    // Another empty directory under the id that is gone gets no further: a write that is acknowledged
    // after the change says that the leader has committed it.
    good(&cluster, "put city Oslo");
    let other = cluster.dir.path().join("other");
    let own = std::mem::replace(&mut cluster.nodes[wiped].data, other.clone());
    cluster.relaunch(wiped);
    assert_eq!(cluster.wait_ended(wiped), Some(3));
    wait_for_log(&cluster, wiped, "in place of --peers");
    assert!(
        fs::read_dir(other)
            .is_ok_and(|mut files| files.all(|f| f.is_ok_and(|f| f.file_name() == "lock")))
    );
    cluster.nodes[wiped].data = own;
    // The very first command line is right for it from now on.
    cluster.restart(wiped);
    assert_eq!(good(&cluster, "get city"), "Oslo");
    say("members", &format!("wiped node {id} is node 4 now"));
}

#[test]
fn a_disk_that_was_wiped_in_a_power_failure_elects_nobody() {
    // All machines stop, and one comes back with an empty disk before anybody could tell it so. With
    // it, another one would be a majority, and might lack what the two had acknowledged: that one
    // does not let it in, though nobody leads who could say what is committed.
    let mut cluster = Cluster::start(3);
    good(&cluster, "put city Oslo");
    let (wiped, other) = (cluster.leader(), cluster.follower());
    let third = 3 - wiped - other;
    let (id, address) = (id_of(&cluster, wiped), cluster.nodes[wiped].address.clone());
    (0..3).for_each(|node| cluster.kill(node));
    fs::remove_dir_all(&cluster.nodes[wiped].data).expect("its directory");
    cluster.relaunch(wiped);
    // It has asked who knows it, in vain, and counts itself among the members.
    wait_for("it runs", || http::status(&cluster.nodes[wiped].address, "/health"));
    fs::write(&cluster.nodes[other].log, "").expect("an empty log");
    cluster.relaunch(other);
    assert_eq!(cluster.wait_ended(wiped), Some(1));
    wait_for_log(&cluster, wiped, &format!("member replace {id} {address}"));
    assert!(!cluster.log(other).contains("leads the cluster"), "elected by an empty disk");
    cluster.relaunch(third);
    cluster.wait_serving(other);
    assert_eq!(good(&cluster, "get city"), "Oslo");
    good(&cluster, &format!("member replace {id} {address}"));
    fs::remove_dir_all(&cluster.nodes[wiped].data).expect("its directory");
    let others = [other, third].map(|node| cluster.nodes[node].address.clone());
    cluster.relaunch_with(wiped, &format!("--join {}", others.join(",")));
    wait_for_voters(&cluster, &[0, 1, 2]);
}

#[test]
fn a_wiped_disk_is_told_where_all_others_were_replaced_in_place() {
    // Each machine got a new disk once, and none of the first nodes is left: at the addresses of the
    // usual line other nodes run. They know nevertheless that whoever takes an id of the first ones
    // is nobody, before it makes anything and when they come back later.
    let mut cluster = Cluster::start(3);
    let first = format!("--peers {}", cluster.addresses().join(","));
    for node in 0..3 {
        let (id, address) = (node + 1, cluster.nodes[node].address.clone());
        cluster.kill(node);
        wait_for("the node is to be replaced", || {
            (cli(&cluster, &format!("member replace {id} {address}")).0 == 0).then_some(())
        });
        fs::remove_dir_all(&cluster.nodes[node].data).expect("its directory");
        let others = [(node + 1) % 3, (node + 2) % 3].map(|n| cluster.nodes[n].address.clone());
        cluster.relaunch_with(node, &format!("--join {}", others.join(",")));
        // The new node has the address of the old one: as long as it has not caught up it knows that
        // one in its place.
        wait_for("the new node votes", || {
            let now = members(&cluster);
            let (id, _) = now[&address];
            (id == 4 + node as u64 && now.values().all(|(_, votes)| *votes)).then_some(())
        });
        // What is acknowledged now says that the change is committed: the next one may go.
        good(&cluster, "put city Oslo");
    }
    cluster.kill(0);
    fs::remove_dir_all(&cluster.nodes[0].data).expect("its directory");
    cluster.relaunch_with(0, &first);
    assert_eq!(cluster.wait_ended(0), Some(3));
    wait_for_log(&cluster, 0, "says: node 1 was removed from the cluster. Nothing was made");
    (0..3).for_each(|node| cluster.kill(node));
    cluster.relaunch(0);
    wait_for("it runs", || http::status(&cluster.nodes[0].address, "/health"));
    cluster.relaunch(1);
    assert_eq!(cluster.wait_ended(0), Some(1));
    // As long as nobody leads, nobody knows that its removal is committed.
    wait_for_log(&cluster, 0, &format!("node 2 at {} says: ", cluster.nodes[1].address));
    cluster.relaunch(2);
    cluster.wait_serving(2);
    assert_eq!(good(&cluster, "get city"), "Oslo");
}

#[test]
fn an_old_copy_of_a_disk_is_noticed() {
    // A machine is brought back from a copy of its disk: it has forgotten what it acknowledged since.
    let mut cluster = Cluster::start(3);
    let node = cluster.follower();
    let (id, address) = (id_of(&cluster, node), cluster.nodes[node].address.clone());
    cluster.kill(node);
    let saved = cluster.dir.path().join("saved");
    copy(&cluster.nodes[node].data, &saved);
    cluster.restart(node);
    for n in 0..50 {
        good(&cluster, &format!("put key{n} value"));
    }
    // Its peers remember what it has acknowledged to a leader, which need not be all of that yet.
    wait_for("it has acknowledged all of it", || {
        let mut all = (0..3).filter_map(|n| Native::new(&cluster.nodes[n].address).status().ok());
        let leader = all.find(|status| !status.peers.is_empty())?;
        let known = leader.peers.iter().find(|peer| peer.id == id)?;
        (known.match_index >= leader.commit).then_some(())
    });
    let held = members(&cluster).len();
    cluster.kill(node);
    fs::remove_dir_all(&cluster.nodes[node].data).expect("its directory");
    copy(&saved, &cluster.nodes[node].data);
    cluster.relaunch(node);
    assert_eq!(cluster.wait_ended(node), Some(1));
    wait_for_log(&cluster, node, "it is an old copy");
    assert!(cluster.log(node).contains(&format!("member replace {id} {address}")));
    // It stays away when nobody is left who remembers.
    (0..3).filter(|&n| n != node).for_each(|n| cluster.kill(n));
    (0..3).filter(|&n| n != node).for_each(|n| cluster.relaunch(n));
    (0..3).filter(|&n| n != node).for_each(|n| cluster.wait_serving(n));
    cluster.relaunch(node);
    assert_eq!(cluster.wait_ended(node), Some(3));
    wait_for_log(&cluster, node, "or an old copy of it, as this node was told before");
    // The way out that it names.
    fs::remove_dir_all(&cluster.nodes[node].data).expect("its directory");
    good(&cluster, &format!("member replace {id} {address}"));
    let others: Vec<String> =
        (0..3).filter(|&n| n != node).map(|n| cluster.nodes[n].address.clone()).collect();
    cluster.relaunch_with(node, &format!("--join {}", others.join(",")));
    wait_for_voters(&cluster, &[0, 1, 2]);
    assert_eq!(members(&cluster).len(), held);
    cluster.wait_serving(node);
    say("members", &format!("node {id} came back with an old copy, and is node 4 now"));
}

#[test]
fn changes_that_make_no_sense_are_refused_with_their_reason() {
    let mut cluster = Cluster::start(3);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let third = 3 - leader - follower;
    let (id, other) = (id_of(&cluster, follower), id_of(&cluster, third));
    let address = cluster.nodes[follower].address.clone();
    refused(&cluster, "member remove 9", 2, &["no member 9"]);
    refused(&cluster, &format!("member promote {id}"), 2, &["votes already"]);
    refused(&cluster, &format!("member join {address}"), 2, &[&address, &format!("member {id}")]);
    refused(&cluster, &format!("member replace {id} {address}"), 2, &["answers at that address"]);
    // Two names of one machine are not two members.
    let second_name = address.replace("127.0.0.1", "localhost");
    let one_node = [second_name.as_str(), &address, &format!("member {id}")];
    refused(&cluster, &format!("member join {second_name}"), 2, &one_node);
    refused(&cluster, &format!("member replace {other} {second_name}"), 2, &one_node);
    refused(&cluster, "member join nowhere", 2, &["HOST:PORT"]);
    refused(&cluster, "member leave 3", 2, &["join, promote, remove, replace"]);
    // A learner that never comes does no harm, and does not vote.
    assert_eq!(good(&cluster, "member join 127.0.0.1:1"), "OK 4");
    refused(&cluster, "member promote 4 --force", 2, &["cannot be reached"]);
    assert_eq!(good(&cluster, "member remove 4"), "OK 4");
    refused(&cluster, "member remove 4", 2, &["was removed before"]);
    assert_eq!(good(&cluster, "member join 127.0.0.1:1"), "OK 5", "ids are never given again");
    assert_eq!(good(&cluster, "member remove 5"), "OK 5");
    // One voter is away: without another one of three nobody could go on.
    cluster.kill(third);
    refused(
        &cluster,
        &format!("member remove {id}"),
        2,
        &["2 voters", "1 can be reached", "--force"],
    );
    good(&cluster, &format!("member remove {other}"));
    // A node that has a cluster of its own is not taken in, whoever asks.
    let single = Cluster::beside(&cluster, 1);
    let stranger = single.nodes[0].address.clone();
    refused(&cluster, &format!("member join {stranger}"), 2, &[&stranger, "another cluster"]);
    let own = id_of(&cluster, leader);
    let theirs = cluster.nodes[leader].address.clone();
    drop(single);
    let mut single = Cluster::beside(&cluster, 1);
    single.relaunch_with(0, &format!("--join {theirs}"));
    assert_eq!(single.wait_ended(0), Some(3));
    wait_for_log(&single, 0, "holds data of cluster");
    // The last one stays.
    good(&cluster, &format!("member remove {id}"));
    refused(&cluster, &format!("member remove {own}"), 2, &["is the only one that votes"]);
    assert_eq!(good(&cluster, "put still serves").split(' ').next(), Some("OK"));
}

#[test]
fn a_learner_that_is_always_a_little_behind_is_promoted_by_a_command() {
    // Its disk takes longer than an election timeout for each sync while writes go on: by itself it
    // would never vote.
    if let Some(why) = missing() {
        say("members", &format!("skipped: {why}"));
        return;
    }
    let mut cluster = Cluster::start(1);
    let address = cluster.nodes[0].address.clone();
    let load = kontiki(BINARY)
        .args(["bench", "-a", &address, "--clients", "1", "--rate", "50", "--seconds", "60"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("kontiki bench");
    let _ends = Ends(load);
    let slow = "strace -D -f -o /dev/null -e trace=fdatasync -e inject=fdatasync:delay_exit=800000";
    let learner = cluster.join_under(Some(flags(slow)));
    wait_for_log(&cluster, learner, "follows leader=1");
    wait_for("it has some of the log", || {
        let (code, said) = cli(&cluster, "member promote 2");
        assert!(code == 0 || said.contains("cannot be reached"), "{said}");
        (code == 0).then_some(())
    });
    wait_for_voters(&cluster, &[0, learner]);
}

#[test]
fn a_node_may_move_and_leadership_goes_where_it_is_sent() {
    // A follower comes back under another address, and then the leader does: members, clients and
    // peers find them.
    let mut cluster = Cluster::start(3);
    for _ in 0..2 {
        let node = cluster.follower();
        let id = id_of(&cluster, node);
        good(&cluster, &format!("transfer {id}"));
        wait_for("it leads", || (cluster.leader() == node).then_some(()));
        cluster.kill(node);
        let port = free_ports(1)[0];
        cluster.nodes[node].address = format!("127.0.0.1:{port}");
        cluster.relaunch_with(node, "");
        cluster.wait_serving(node);
        wait_for("the others know its address", || {
            (members(&cluster).get(&cluster.nodes[node].address)? == &(id, true)).then_some(())
        });
    }
    let leader = cluster.leader();
    good(&cluster, "transfer");
    wait_for("another one leads", || (cluster.leader() != leader).then_some(()));
}

#[test]
fn all_members_may_move_at_once() {
    // The whole network was numbered anew while the cluster was down: nobody is where the others
    // know it, node 1 is where node 2 was, and --join says where nodes run now.
    let mut cluster = Cluster::start(3);
    good(&cluster, "put city Oslo");
    let ids: Vec<u64> = (0..3).map(|node| id_of(&cluster, node)).collect();
    (0..3).for_each(|node| cluster.kill(node));
    let fresh = free_ports(2);
    cluster.nodes[0].address = cluster.nodes[1].address.clone();
    cluster.nodes[1].address = format!("127.0.0.1:{}", fresh[0]);
    cluster.nodes[2].address = format!("127.0.0.1:{}", fresh[1]);
    for node in 0..3 {
        let mut others = cluster.addresses();
        others.remove(node);
        cluster.relaunch_with(node, &format!("--join {}", others.join(",")));
    }
    (0..3).for_each(|node| cluster.wait_serving(node));
    wait_for("the addresses are written down", || {
        let now = members(&cluster);
        let there = |node: usize| now.get(&cluster.nodes[node].address) == Some(&(ids[node], true));
        (0..3).all(there).then_some(())
    });
    assert_eq!(good(&cluster, "get city"), "Oslo");
    // They are known: no hint is needed any more.
    (0..3).for_each(|node| cluster.kill(node));
    (0..3).for_each(|node| cluster.relaunch_with(node, ""));
    (0..3).for_each(|node| cluster.wait_serving(node));
    assert_eq!(good(&cluster, "get city"), "Oslo");
}

/// Takes a new node in and lets another one go; gives the new one's place.
fn exchange(cluster: &mut Cluster, old: usize) -> usize {
    let id = id_of(cluster, old);
    let new = cluster.join();
    cluster.wait_serving(new);
    let address = cluster.nodes[new].address.clone();
    wait_for("it votes", || members(cluster).get(&address).filter(|(_, votes)| *votes).map(drop));
    good(cluster, &format!("member remove {id}"));
    cluster.wait_ended(old);
    new
}

/// Starts a node that is away at another address.
fn back_elsewhere(cluster: &mut Cluster, node: usize, begins: &str) {
    cluster.nodes[node].address = format!("127.0.0.1:{}", free_ports(1)[0]);
    cluster.relaunch_with(node, begins);
}

#[test]
fn a_member_that_moved_finds_a_cluster_that_was_exchanged() {
    // A node comes back at another address; the leader was taken in meanwhile. Neither knows of the
    // other or where it is, until a third one says so. Then everybody whom the node knows is gone or
    // has moved, and so has the node: a person says where somebody runs (--join).
    let mut cluster = Cluster::start(3);
    good(&cluster, "put city Oslo");
    let away = 2;
    cluster.kill(away);
    let third = exchange(&mut cluster, 1);
    let leads = id_of(&cluster, third);
    wait_for("the new one leads", || {
        let _ = cli(&cluster, &format!("transfer {leads}"));
        (cluster.leader() == third).then_some(())
    });
    back_elsewhere(&mut cluster, away, "");
    cluster.wait_serving(away);
    wait_for_voters(&cluster, &[0, away, third]);

    cluster.kill(away);
    let fourth = exchange(&mut cluster, 0);
    cluster.kill(third);
    back_elsewhere(&mut cluster, third, "");
    cluster.wait_serving(third);
    let there = cluster.nodes[fourth].address.clone();
    back_elsewhere(&mut cluster, away, &format!("--join {there}"));
    cluster.wait_serving(away);
    wait_for_voters(&cluster, &[away, third, fourth]);
    assert_eq!(good(&cluster, "get city"), "Oslo");
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in contents(from) {
        let path = to.join(path.strip_prefix(from).expect("below it"));
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, bytes).expect("a copy");
    }
}

#[test]
fn a_survivor_of_a_lost_majority_becomes_a_cluster_of_one() {
    // Two of three machines are gone for ever. The third one does nothing by itself; with a command
    // that says what it costs it goes on with what it has, under a new name, and grows again.
    let mut cluster = Cluster::start(3);
    for n in 0..20 {
        good(&cluster, &format!("put key{n} value{n}"));
    }
    let survivor = cluster.follower();
    let others: Vec<usize> = (0..3).filter(|&n| n != survivor).collect();
    let (id, address) = (id_of(&cluster, survivor), cluster.nodes[survivor].address.clone());
    (0..3).for_each(|node| cluster.kill(node));
    let data = cluster.nodes[survivor].data.display().to_string();
    let inspect = |words: &[&str]| {
        let mut command = kontiki(BINARY);
        let done = command.arg("inspect").args(words).output().expect("kontiki inspect");
        let text = [done.stdout, done.stderr].concat();
        (done.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, said) = inspect(&["recover", &data]);
    assert!(code == Some(2) && said.contains("--i-accept-data-loss"), "{said}");
    assert_eq!(inspect(&["verify", &data]).0, Some(0));
    let (code, said) = inspect(&["recover", &data, "--i-accept-data-loss"]);
    assert_eq!(code, Some(0), "{said}");
    for part in [&format!("node {id} is a cluster of one"), "nobody can tell", &address] {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
    assert_eq!(inspect(&["verify", &data]).0, Some(0));
    cluster.relaunch_with(survivor, "");
    cluster.wait_serving(survivor);
    wait_for_voters(&cluster, &[survivor]);
    for n in 0..20 {
        assert_eq!(good(&cluster, &format!("get key{n}")), format!("value{n}"));
    }
    // The others belong to another cluster now, and do not come back by themselves.
    cluster.relaunch(others[0]);
    wait_for_log(&cluster, survivor, "refused node=");
    cluster.kill(others[0]);
    let new = cluster.join();
    wait_for_voters(&cluster, &[survivor, new]);
    assert_eq!(id_of(&cluster, new), 4, "ids go on");
    cluster.wait_serving(new);
    good(&cluster, "put city Oslo");
    say("members", &format!("node {id} of a lost cluster serves again, and node 4 joined it"));
}

#[test]
fn a_newcomer_follows_a_leader_it_has_never_heard_of() {
    // All founders are gone. A new node begins with them as the members that it knows, and has to
    // take the log from others; by entries, and by a snapshot.
    let mut cluster = Cluster::start(1);
    good(&cluster, "put city Oslo");
    let second = cluster.join();
    wait_for_voters(&cluster, &[0, second]);
    good(&cluster, "member remove 1");
    assert_ne!(cluster.wait_ended(0), Some(0));
    let third = cluster.join();
    wait_for_voters(&cluster, &[second, third]);
    good(&cluster, "compact");
    let fourth = cluster.join();
    wait_for_voters(&cluster, &[second, third, fourth]);
    cluster.wait_serving(fourth);
    let mut alone = kontiki(BINARY);
    let address = &cluster.nodes[fourth].address;
    let got = alone.args(["cli", "-a", address, "get", "city"]).output().expect("kontiki cli");
    assert_eq!(String::from_utf8_lossy(&got.stdout).trim(), "Oslo");
}

#[test]
fn versions_without_a_protocol_in_common_say_so() {
    // A node of a later version dials, and is told which versions are spoken here; and a peer of a
    // later version refuses this node, which passes on what it was told.
    let _one = alone();
    let home = tempfile::Builder::new().prefix("kontiki-test-").tempdir().expect("a directory");
    let later = TcpListener::bind("127.0.0.1:0").expect("a port");
    let theirs = later.local_addr().expect("its address").to_string();
    let own = format!("127.0.0.1:{}", free_ports(1)[0]);
    let log = home.path().join("log");
    let node = kontiki(BINARY)
        .args(["serve", "--listen", &own, "--peers", &format!("{own},{theirs}"), "--data"])
        .arg(home.path().join("data"))
        .stderr(fs::File::create(&log).expect("a log"))
        .spawn()
        .expect("kontiki serve");
    let _ends = Ends(node);
    thread::spawn(move || {
        let words = "this node speaks protocol versions 8 to 9, the dialer version 3: the dialer is too old";
        let reject = Reject { code: RejectCode::Version, message: words.to_owned() };
        let mut out = Vec::new();
        put_reject(&mut out, &reject);
        for stream in later.incoming().take(4) {
            let mut stream = stream.expect("a connection");
            let mut first = [0; 8];
            stream.read_exact(&mut first).expect("the preamble");
            stream.write_all(&out).expect("an answer");
        }
    });
    let mut stream = wait_for("the node listens", || TcpStream::connect(&own).ok());
    let hello = Hello {
        version_min: 8,
        version_max: 9,
        role: Role::Peer,
        from: 2,
        to: 1,
        identity: 5,
        address: theirs,
        ..Hello::of_client(1)
    };
    let mut out = PREAMBLE.to_vec();
    put_hello(&mut out, &hello);
    stream.write_all(&out).expect("a hello");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("a reject, and the end");
    let Ok(Err(reject)) = take_answer(&answer[FRAME_HEADER_BYTES..]) else { panic!("let in") };
    assert_eq!(reject.code, RejectCode::Version);
    let words =
        "this node speaks protocol version 3, the dialer versions 8 to 9: this node is too old";
    assert!(reject.message.contains(words), "{}", reject.message);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("what the peer said", || {
        said()
            .contains("versions 8 to 9, the dialer version 3: the dialer is too old")
            .then_some(())
    });
    assert!(said().contains(words), "and what it refused itself: {}", said());
}

/// Ends the process also when the test fails.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

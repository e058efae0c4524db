//! Links that are slow, or deliver late: what was sent once arrives once, and condemns nobody.

use crate::support::cluster::{Cluster, Setup};
use crate::support::native::Native;
use crate::support::text::{Reply, Text, array};
use crate::support::{say, wait_for};
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Keys of one large write, and their length: 3.9 MB, close to the largest that is taken.
const KEYS: usize = 15_600;
const KEY_BYTES: usize = 250;

/// What a large write takes on the wire, within a hundredth.
const LARGE_BYTES: usize = KEYS * (KEY_BYTES + 4);

fn behind_proxies() -> (Cluster, usize) {
    let cluster = Cluster::with(3, Setup { proxies: true, ..Setup::default() });
    let leader = cluster.leader();
    (cluster, leader)
}

fn id(node: usize) -> u64 {
    node as u64 + 1
}

fn others(of: usize) -> [usize; 2] {
    [(of + 1) % 3, (of + 2) % 3]
}

/// Slows every link between nodes down, for the connections of now as well.
fn slow_down_all(cluster: &Cluster, rate: usize) {
    for node in 0..3 {
        for from in others(node) {
            cluster.proxy(node).slow_down(id(from), rate);
        }
    }
}

/// One write of many keys.
fn large() -> Vec<u8> {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("{n:0width$}", width = KEY_BYTES)).collect();
    let mut words: Vec<&[u8]> = vec![b"DEL"];
    words.extend(keys.iter().map(String::as_bytes));
    array(&words)
}

fn applied(cluster: &Cluster, node: usize) -> Option<u64> {
    Native::new(&cluster.nodes[node].address).status().ok().map(|status| status.applied)
}

#[test]
fn a_hello_that_comes_late_condemns_nobody() {
    // The follower dials the leader, and its Hello is under way for longer than it waits. It dials
    // anew and goes on; writes go on, too. Then the old Hello arrives and tells of a past that is long
    // gone. The follower serves on, is needed for a majority, and starts again.
    let (mut cluster, leader) = behind_proxies();
    let [follower, third] = others(leader);
    let mut client = Text::connect(&cluster.nodes[leader].address).expect("a connection");
    let proxy = cluster.proxy(leader).clone();
    proxy.hold_next_hello(id(follower), Duration::from_millis(3500));
    proxy.cut(id(follower));
    let begun = Instant::now();
    let mut writes = 0;
    let mut write = |client: &mut Text| {
        assert_eq!(client.line(&format!("SET k{writes} x")).unwrap(), Reply::ok());
        writes += 1;
    };
    while proxy.hellos_delivered(id(follower)) == 0 {
        write(&mut client);
        thread::sleep(Duration::from_millis(20));
        assert!(begun.elapsed() < Duration::from_secs(15), "the follower never dialed again");
    }
    // Of what the leader makes of it the next writes know.
    for _ in 0..50 {
        write(&mut client);
        thread::sleep(Duration::from_millis(20));
    }
    for node in 0..3 {
        let log = cluster.log(node);
        assert!(!log.contains("aside"), "node {}: somebody is set aside", node + 1);
        assert!(!cluster.ended(node), "node {} ended", node + 1);
    }
    cluster.kill(third);
    assert_eq!(client.line("SET without-the-third x").unwrap(), Reply::ok());
    cluster.relaunch(third);
    cluster.restart(follower);
    cluster.restart(follower);
}

#[test]
fn a_follower_behind_a_slow_link_catches_up_in_the_time_that_the_bytes_take() {
    // Two large writes go to a follower at a megabyte a second. It has them about when the link has
    // carried them once: nothing is sent again because it takes its time.
    const RATE: usize = 1_000_000;
    const WRITES: usize = 2;
    let (cluster, leader) = behind_proxies();
    let [follower, _] = others(leader);
    let proxy = cluster.proxy(follower);
    let elections = cluster.elections();
    proxy.slow_down(id(leader), RATE);
    let before = proxy.bytes(id(leader));
    let mut client = Text::connect(&cluster.nodes[leader].address).expect("a connection");
    let begun = Instant::now();
    let command = large();
    for _ in 0..WRITES {
        client.send(&command).expect("a write");
        assert_eq!(client.reply().expect("a reply"), Reply::Integer(0));
    }
    let last = applied(&cluster, leader).expect("the leader's state");
    wait_for("the follower catches up", || applied(&cluster, follower).filter(|at| *at >= last));
    let (took, bytes) = (begun.elapsed(), proxy.bytes(id(leader)) - before);
    let payload = WRITES * LARGE_BYTES;
    say("links", &format!("a slow follower took {took:?} and {bytes} bytes for {payload}"));
    assert!(took.as_secs_f64() < 2.0 * (payload as f64 / RATE as f64) + 2.0, "{took:?}");
    assert!(bytes < payload + payload / 4 + (256 << 10), "{bytes} bytes for {payload}");
    assert_eq!(cluster.elections(), elections);
}

#[test]
fn large_writes_in_turn_over_slow_links_take_as_long_as_their_bytes_do() {
    // Seven writes of 3.9 MB, one after the other, over links of 12.5 MB/s: the last one is no slower
    // than the first.
    const RATE: usize = 12_500_000;
    let (cluster, leader) = behind_proxies();
    let elections = cluster.elections();
    slow_down_all(&cluster, RATE);
    let before: usize = others(leader).iter().map(|&n| cluster.proxy(n).bytes(id(leader))).sum();
    let mut client = Text::connect(&cluster.nodes[leader].address).expect("a connection");
    let command = large();
    let mut times = Vec::new();
    for _ in 0..7 {
        let begun = Instant::now();
        client.send(&command).expect("a write");
        assert_eq!(client.reply().expect("a reply"), Reply::Integer(0));
        times.push(begun.elapsed());
    }
    let last = applied(&cluster, leader).expect("the leader's state");
    for node in others(leader) {
        wait_for("the followers catch up", || applied(&cluster, node).filter(|at| *at >= last));
    }
    let after: usize = others(leader).iter().map(|&n| cluster.proxy(n).bytes(id(leader))).sum();
    let (bytes, payload) = (after - before, 2 * 7 * LARGE_BYTES);
    say(
        "links",
        &format!("large writes over slow links: {times:.2?}, {bytes} bytes for {payload}"),
    );
    assert_eq!(cluster.elections(), elections);
    assert!(times.iter().all(|took| *took < Duration::from_secs(3)), "{times:?}");
    assert!(bytes < payload + payload / 4, "{bytes} bytes for {payload}");
}

#[test]
fn a_large_value_over_a_slow_link_deposes_nobody() {
    // A value of a megabyte takes a second to each follower. The leader's heartbeats come meanwhile.
    const RATE: usize = 1_000_000;
    let (cluster, leader) = behind_proxies();
    slow_down_all(&cluster, RATE);
    let elections = cluster.elections();
    let mut client = Text::connect(&cluster.nodes[leader].address).expect("a connection");
    let value = vec![b'x'; 1_040_000];
    let mut times = Vec::new();
    for n in 0..3 {
        let begun = Instant::now();
        let reply = client.command(&[b"SET", format!("large-{n}").as_bytes(), &value]);
        assert_eq!(reply.unwrap(), Reply::ok());
        times.push(begun.elapsed());
    }
    say("links", &format!("values of a megabyte over a megabyte a second: {times:.2?}"));
    assert_eq!(cluster.elections(), elections, "somebody else was elected");
    assert!(times.iter().all(|took| *took < Duration::from_secs(4)), "{times:?}");
}

#[test]
fn a_name_with_two_addresses_of_which_the_first_is_dead_is_reached() {
    // Nobody listens at the first address of the name by which the nodes know one another, and by
    // which a client asks.
    let hosts = "127.0.0.1 localhost\n::1 two-addresses\n127.0.0.1 two-addresses\n";
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("hosts");
    fs::write(&file, hosts).expect("a file of hosts");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", file.display());
    let wrapper: Vec<String> =
        ["unshare", "-m", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    match Command::new(&wrapper[0]).args(&wrapper[1..]).arg("true").output() {
        Ok(ended) if ended.status.success() => {}
        Ok(ended) => {
            let why = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
            return say("links", &format!("skipped: names cannot be made here: {why}"));
        }
        Err(e) => return say("links", &format!("skipped: unshare cannot be run: {e}")),
    }
    let name = Some("two-addresses".to_owned());
    let setup = Setup { wrapper: wrapper.clone(), name, ..Setup::default() };
    let cluster = Cluster::with(3, setup);
    let port = cluster.nodes[0].address.rsplit(':').next().expect("a port").to_owned();
    let put = Command::new(&wrapper[0])
        .args(&wrapper[1..])
        .args([crate::support::cluster::BINARY, "cli", "-a", &format!("two-addresses:{port}")])
        .args(["--timeout-ms", "5000", "put", "a", "1"])
        .output()
        .expect("kontiki cli");
    assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
}

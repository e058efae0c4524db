//! Nodes whose system gives them few descriptors, and strangers who take all they get.

use crate::support::cluster::{BINARY, Cluster, Setup, flags, kontiki};
use crate::support::text::{Reply, Text};
use crate::support::{PATIENCE, http, say, wait_for};
use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// Less than the sockets of the strangers, by far.
const DESCRIPTORS: usize = 256;
const STRANGERS: usize = 400;
/// Writes of this length make segments and tables come and go: with the flags below one each 50.
const VALUE_BYTES: usize = 20_000;
const WRITES: usize = 600;
const SMALL: &str = "--memtable 1MiB --wal-limit 4MiB";

/// Starts a node under a limit of descriptors; or why there is none here.
fn limited(descriptors: usize) -> Result<Vec<String>, String> {
    if cfg!(windows) {
        return Err("Windows sets no limit of descriptors".to_owned());
    }
    let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let wrapper = vec!["sh".to_owned(), "-c".to_owned(), script];
    match Command::new("sh").args(&wrapper[1..]).arg("true").output() {
        Ok(told) if told.status.success() => Ok(wrapper),
        other => Err(format!("no limit can be set: {other:?}")),
    }
}

/// Connections that say nothing. Whether each is taken is the node's business.
fn strangers(address: &str, count: usize) -> Vec<TcpStream> {
    let address = address.parse().expect("an address");
    (0..count)
        .filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(3)).ok())
        .collect()
}

/// Whether the other side has closed it.
fn has_ended(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a mode");
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn write(client: &mut Text, key: &str) {
    let reply = client.command(&[b"SET", key.as_bytes(), &[b'x'; VALUE_BYTES]]);
    assert_eq!(reply.expect("a reply"), Reply::ok(), "{key}");
}

fn status_of(cluster: &Cluster, node: usize) -> (Option<i32>, String) {
    let told = kontiki(BINARY)
        .args(["cli", "-a", &cluster.nodes[node].address, "--json", "status"])
        .output()
        .expect("kontiki cli");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    (told.status.code(), text + &String::from_utf8_lossy(&told.stderr))
}

#[test]
fn strangers_that_take_all_descriptors_stop_nothing() {
    // A node may have 256 descriptors and 400 strangers come who say nothing. A client that was there before goes
    // on to write, through flushes, compactions and new segments; others come and are served; the node says how
    // it is, what limits it and what helps, and does not fill its log.
    let wrapper = match limited(DESCRIPTORS) {
        Ok(wrapper) => wrapper,
        Err(why) => return say("descriptors", &format!("skipped: {why}")),
    };
    let mut cluster = Cluster::with(1, Setup { flags: flags(SMALL), wrapper, ..Setup::default() });
    let address = cluster.nodes[0].address.clone();
    let mut client = Text::connect(&address).expect("a connection");
    write(&mut client, "before");
    let crowd = strangers(&address, STRANGERS);
    let begun = Instant::now();
    for n in 0..WRITES {
        write(&mut client, &format!("key {n}"));
        if n % 100 == 0 {
            assert_eq!(http::status(&address, "/health"), Some(200));
            let mut another = Text::connect(&address).expect("a connection");
            assert_eq!(another.line("GET before").unwrap(), Reply::Bulk(vec![b'x'; VALUE_BYTES]));
        }
    }
    let took = begun.elapsed();
    assert!(!cluster.ended(0));
    let (code, status) = status_of(&cluster, 0);
    assert!(code == Some(0) && status.contains("connections at most"), "{code:?} {status}");
    let log = cluster.log(0);
    assert!(log.contains("the limit of descriptors is 256: at most "), "{log}");
    assert!(log.contains("ulimit -n") && log.contains("LimitNOFILE="), "{log}");
    assert!(log.contains("was closed for a newcomer"), "{log}");
    assert!(log.lines().count() < 60, "{log}");
    let (_, metrics) = http::get(&address, "/metrics").expect("metrics");
    let flushed = metrics
        .lines()
        .find_map(|line| line.strip_prefix("kontiki_store_flushed_bytes_total "))
        .and_then(|bytes| bytes.parse::<f64>().ok());
    assert!(flushed.expect("flushes are counted") > 4e6, "{metrics}");
    let ended = crowd.iter().filter(|stranger| has_ended(stranger)).count();
    assert!(ended > STRANGERS / 2, "{ended}");
    say(
        "descriptors",
        &format!("{WRITES} writes beside {STRANGERS} strangers in {took:?}, {ended} closed"),
    );
}

#[test]
fn strangers_at_every_node_keep_no_member_out() {
    // Three nodes with few descriptors and a crowd at each. One is ended by force and comes again: the others
    // take it in, it takes them, writes go on all the while, and everybody who leads goes on to lead.
    let wrapper = match limited(DESCRIPTORS) {
        Ok(wrapper) => wrapper,
        Err(why) => return say("descriptors", &format!("skipped: {why}")),
    };
    let mut cluster = Cluster::with(3, Setup { flags: flags(SMALL), wrapper, ..Setup::default() });
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let mut client = Text::connect(&cluster.nodes[leader].address).expect("a connection");
    // What has said something is not taken for one of the crowd.
    write(&mut client, "before");
    let elections = cluster.elections();
    let mut crowd = Vec::new();
    for address in cluster.addresses() {
        crowd.extend(strangers(&address, STRANGERS));
    }
    (0..100).for_each(|n| write(&mut client, &format!("first {n}")));
    cluster.kill(follower);
    (0..100).for_each(|n| write(&mut client, &format!("second {n}")));
    cluster.relaunch(follower);
    let leaders = cluster.nodes[leader].address.clone();
    let late = cluster.nodes[follower].address.clone();
    wait_for("the follower is back", || {
        crowd.extend(strangers(&leaders, 20));
        crowd.extend(strangers(&late, 20));
        assert!(!cluster.ended(follower));
        (http::status(&late, "/health") == Some(200)).then_some(())
    });
    (0..100).for_each(|n| write(&mut client, &format!("third {n}")));
    (0..3).for_each(|node| assert!(!cluster.ended(node), "node {}", node + 1));
    assert_eq!(cluster.elections(), elections, "a leader with clients only has no reason to stop");
}

#[test]
fn a_node_that_runs_out_of_descriptors_sheds_connections_and_goes_on() {
    // While a node runs its limit is set below what it has open: nothing can be opened any more, neither a table nor
    // a segment nor the next connection. It closes strangers, then idle clients, until it can; whoever is busy goes on,
    // and the node comes back to all connections later.
    if Command::new("prlimit").arg("--version").output().is_err() {
        return say("descriptors", "skipped: there is no prlimit here");
    }
    let mut cluster = Cluster::with(1, Setup { flags: flags(SMALL), ..Setup::default() });
    let address = cluster.nodes[0].address.clone();
    let mut client = Text::connect(&address).expect("a connection");
    write(&mut client, "before");
    let idle: Vec<Text> = (0..40)
        .map(|_| {
            let mut idle = Text::connect(&address).expect("a connection");
            assert_eq!(idle.line("PING").unwrap(), Reply::Simple("PONG".into()));
            idle
        })
        .collect();
    let crowd = strangers(&address, 60);
    wait_for("all are taken", || {
        let (_, metrics) = http::get(&address, "/metrics")?;
        let open = metrics.lines().find_map(|l| l.strip_prefix("kontiki_connections "))?;
        (open.parse::<f64>().ok()? >= 101.0).then_some(())
    });
    let pid = cluster.pid(0).to_string();
    let set = Command::new("prlimit").args(["--pid", &pid, "--nofile=64:"]).output();
    assert!(set.expect("prlimit").status.success());
    let begun = Instant::now();
    let mut n = 0;
    // Until every stranger is gone, and as many writes as make everything come and go.
    while n < WRITES || !crowd.iter().all(has_ended) {
        write(&mut client, &format!("key {n}"));
        n += 1;
        assert!(begun.elapsed() < 3 * PATIENCE, "the strangers are still there after {n} writes");
    }
    assert!(!cluster.ended(0));
    assert_eq!(http::status(&address, "/health"), Some(200));
    let log = cluster.log(0);
    let named = "the system gives this process no more descriptors";
    assert!(log.contains(named) && log.contains("ulimit -n"), "{log}");
    assert!(log.lines().count() < 100, "{log}");
    let gone = idle.iter().filter(|idle| has_ended(&idle.stream)).count();
    say(
        "descriptors",
        &format!("{n} writes in {:?}; {gone} of 40 idle clients closed", begun.elapsed()),
    );
}

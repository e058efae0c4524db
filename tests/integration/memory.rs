//! What clients can make a node hold in memory, seen as the resident memory of its process.

use crate::support::cluster::{Cluster, Setup, flags};
use crate::support::text::{Reply, Text, array};
use crate::support::{PATIENCE, http, process, say, wait_for};
use kontiki::client::Connection;
use kontiki::kv::{Op, Outcome, Query, Range, Write};
use kontiki::wire::client::{Answer, Call, Consistency, Request};
use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const VALUE_BYTES: usize = 1 << 20;
/// Clients that ask for such values and take none.
const DEAF: usize = 150;
/// What answers may hold that nobody takes (`kontiki_answer_bytes_max`) is 64 MiB. A value is in memory twice while it
/// becomes an answer, and the allocator keeps what it was given back. Without the bound it would be 300 MiB and more.
const STORM_MIB_MAX: u64 = 3 * 64;
/// What may stay of it beside one and a half times what there was before: the memtable, which gets the value meanwhile, and
/// what the heaps of other threads keep at their ends.
const STAYS_MIB_MAX: u64 = 16;
/// Writes that read [`READS`] values each, and are applied again at the next start. Kept, they would be 800 MiB.
const READING_WRITES: u64 = 200;
const READS: usize = 4;
const REPLAY_MIB_MAX: u64 = 150;

/// Resident memory of a process now and at most so far, in MiB, where the system says so.
fn resident_mib(pid: u32) -> Option<(u64, u64)> {
    Some((process::status(pid, "VmRSS:")? >> 10, process::status(pid, "VmHWM:")? >> 10))
}

fn dial(address: &str) -> Connection {
    Connection::dial(address, b"", 0, PATIENCE).expect("a connection")
}

fn put_value(address: &str) {
    let mut client = Text::connect(address).expect("a connection");
    let value = vec![b'x'; VALUE_BYTES];
    assert_eq!(client.command(&[b"SET", b"large", &value]).unwrap(), Reply::ok());
}

#[test]
fn clients_that_take_no_answers_share_a_bound_of_memory() {
    // 150 clients ask for twenty values of 1 MiB each and take none. What the node holds for them is bounded; somebody
    // else is served meanwhile; when they are cut off it is free again.
    let cluster = Cluster::start(1);
    let (address, pid) = (cluster.nodes[0].address.clone(), cluster.pid(0));
    let Some((before, _)) = resident_mib(pid) else {
        return say("memory", "skipped: the system does not tell the memory of a process");
    };
    put_value(&address);
    let ask = array(&[b"GET", b"large"]).repeat(20);
    let deaf: Vec<TcpStream> = (0..DEAF)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).expect("a connection");
            stream.write_all(&ask).expect("a few bytes");
            stream
        })
        .collect();
    let held = || {
        let (_, page) = http::get(&address, "/metrics")?;
        let line = page.lines().find_map(|l| l.strip_prefix("kontiki_answer_bytes "))?;
        line.parse::<f64>().ok()
    };
    wait_for("answers are held", || held().filter(|&bytes| bytes > 32e6));
    let mut client = Text::connect(&address).expect("a connection");
    for n in 0..50 {
        assert_eq!(client.line(&format!("SET polite {n}")).unwrap(), Reply::ok());
        let read = client.line("GET polite").unwrap();
        assert_eq!(read, Reply::Bulk(n.to_string().into_bytes()));
    }
    wait_for("they are given up", || held().filter(|&bytes| bytes == 0.0));
    // A client that reads gets everything again, however much it asks for at once.
    for _ in 0..20 {
        let read = client.line("GET large").unwrap();
        assert!(matches!(read, Reply::Bulk(value) if value.len() == VALUE_BYTES));
    }
    let (_, most) = resident_mib(pid).expect("as before");
    assert!(most < before + STORM_MIB_MAX, "{before} MiB before, {most} at most");
    drop(deaf);
    let after = wait_for("what they took is given back", || {
        let (now, _) = resident_mib(pid).expect("as before");
        (now <= before * 3 / 2 + STAYS_MIB_MAX).then_some(now)
    });
    say(
        "memory",
        &format!("{DEAF} deaf clients: {before} MiB before, {most} at most, {after} after"),
    );
}

#[test]
fn a_log_of_commands_that_read_is_applied_again_in_little_memory() {
    // Commands of a few bytes read 4 MiB each. A client is told what each has found; the node applies all of them again
    // at its next start, for nobody.
    let flags = flags("--wal-limit 256MiB");
    let mut cluster = Cluster::with(1, Setup { flags, ..Setup::default() });
    let address = cluster.nodes[0].address.clone();
    if resident_mib(cluster.pid(0)).is_none() {
        return say("memory", "skipped: the system does not tell the memory of a process");
    }
    put_value(&address);
    let mut client = dial(&address);
    for id in 1..=READING_WRITES {
        let ops = vec![Op::Get { key: b"large".to_vec() }; READS];
        let call = Call::Write(Write { ops, ..Write::default() });
        client.send(&mut Request { id, deadline_ms: 10_000, call }).expect("it is sent");
        client.flush(Instant::now() + PATIENCE).expect("it is taken");
        let response = client.receive(Instant::now() + PATIENCE).expect("no end");
        match response.expect("an answer").result {
            Ok(Answer::Outcome(Outcome::Done { results, .. })) => assert_eq!(results.len(), READS),
            other => panic!("{other:?}"),
        }
    }
    let (_, served) = resident_mib(cluster.pid(0)).expect("as before");
    cluster.kill(0);
    let begun = Instant::now();
    cluster.relaunch(0);
    wait_for("it serves", || (http::status(&address, "/health") == Some(200)).then_some(()));
    let (_, most) = resident_mib(cluster.pid(0)).expect("as before");
    assert!(most < REPLAY_MIB_MAX, "{most} MiB to apply again what took {served}");
    say("memory", &format!("{most} MiB at most, {:?} to apply again", begun.elapsed()));
}

#[test]
fn nothing_is_counted_for_a_client_that_has_left() {
    // A client asks for the count of everything 500 times and leaves. Its connection ends at once, and not when all of
    // that is counted.
    let cluster = Cluster::start(1);
    let address = cluster.nodes[0].address.clone();
    let mut client = dial(&address);
    for batch in 0..40u64 {
        let op = |n| Op::Put { key: format!("key {batch:03} {n:05}").into_bytes(), value: vec![] };
        let call = Call::Write(Write { ops: (0..10_000).map(op).collect(), ..Write::default() });
        let id = batch + 1;
        client.send(&mut Request { id, deadline_ms: 10_000, call }).expect("it is sent");
        client.flush(Instant::now() + PATIENCE).expect("it is taken");
        let response = client.receive(Instant::now() + PATIENCE).expect("no end");
        assert!(matches!(response.expect("an answer").result, Ok(Answer::Outcome(_))));
    }
    let count = |id| {
        let query = Query::Range(Range { count_only: true, ..Range::default() });
        let call = Call::Query { query, consistency: Consistency::Stale };
        Request { id, deadline_ms: 60_000, call }
    };
    client.send(&mut count(100)).expect("it is sent");
    client.flush(Instant::now() + PATIENCE).expect("it is taken");
    let begun = Instant::now();
    client.receive(Instant::now() + PATIENCE).expect("no end").expect("an answer");
    let one = begun.elapsed();
    drop(client);
    let connections = || {
        let (_, page) = http::get(&address, "/metrics")?;
        let line = page.lines().find_map(|l| l.strip_prefix("kontiki_connections "))?;
        line.parse::<f64>().ok()
    };
    // The one that asks for the page is one.
    wait_for("the first one has ended", || connections().filter(|&open| open == 1.0));
    let mut client = dial(&address);
    for id in 1..=500 {
        client.send(&mut count(id)).expect("it is sent");
    }
    client.flush(Instant::now() + PATIENCE).expect("it is taken");
    drop(client);
    let begun = Instant::now();
    wait_for("the connection has ended", || connections().filter(|&open| open == 1.0));
    let took = begun.elapsed();
    let most = (50 * one).max(Duration::from_secs(1));
    assert!(took < most, "{took:?} until 500 counts were given up, one takes {one:?}");
    say("memory", &format!("one count {one:?}; 500 were given up after {took:?}"));
}

//! Clients that misbehave by doing nothing cost the others nothing.

use crate::support::cluster::{Cluster, Setup};
use crate::support::text::{Reply, Text, array};
use crate::support::{http, say};
use kontiki::client::Connection;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The longest that one write of another client may take meanwhile: much more than it does, much
/// less than the time for which a client that does not read is put up with.
const LATENCY_MAX: Duration = Duration::from_secs(2);
const IDLE_CONNECTIONS: usize = 500;
const CONNECTIONS_MAX: usize = 8;

/// Writes and reads for a while; the longest that one of them took.
fn longest(address: &str, count: usize) -> Duration {
    let mut client = Text::connect(address).expect("a connection");
    let mut longest = Duration::ZERO;
    for n in 0..count {
        let begun = Instant::now();
        assert_eq!(client.line(&format!("SET polite {n}")).unwrap(), Reply::ok());
        let read = client.line("GET polite").unwrap();
        assert_eq!(read, Reply::Bulk(n.to_string().into_bytes()));
        longest = longest.max(begun.elapsed());
    }
    longest
}

/// Sends writes, or reads of a long value, until nothing more is taken.
fn never_reads(address: &str, command: &[u8]) -> (TcpStream, usize) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let bytes = command.repeat(1000);
    let mut sent = 0;
    loop {
        match stream.write(&bytes) {
            Ok(n) => sent += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            // Cut off is fine as well.
            Err(_) => break,
        }
        assert!(sent < 1 << 30, "the node takes for ever from a client that never reads");
    }
    (stream, sent)
}

#[test]
fn who_never_reads_holds_up_nobody() {
    // One client pipelines small writes, another reads of a large value, and neither takes an
    // answer. A third one is served on each node all the while.
    let cluster = Cluster::start(3);
    let leader = &cluster.nodes[cluster.leader()].address;
    let alone = longest(leader, 50);
    let mut client = Text::connect(leader).expect("a connection");
    let large = vec![b'x'; 512 << 10];
    assert_eq!(client.command(&[b"SET", b"large", &large]).unwrap(), Reply::ok());
    let (_writer, written) = never_reads(leader, &array(&[b"SET", b"rude", b"1"]));
    let (_reader, read) = never_reads(leader, &array(&[b"GET", b"large"]));
    for address in cluster.addresses() {
        let took = longest(&address, 100);
        assert!(took < LATENCY_MAX, "{address}: {took:?}");
        say(
            "slow_clients",
            &format!(
                "{address}: at most {took:?} beside clients that sent {written} and {read} bytes and \
                 read nothing (alone: {alone:?})"
            ),
        );
    }
}

#[test]
fn idle_connections_do_not_stop_service() {
    // Five hundred connections that say nothing, or half a word.
    let cluster = Cluster::start(3);
    let address = &cluster.nodes[cluster.leader()].address;
    let idle: Vec<TcpStream> = (0..IDLE_CONNECTIONS)
        .map(|n| {
            let mut stream = TcpStream::connect(address).expect("a connection");
            let half: &[u8] = [&b""[..], b"SE", b"*2\r\n$3\r\nGET", b"\xf0KT", b"GET / HT"][n % 5];
            stream.write_all(half).expect("some bytes");
            stream
        })
        .collect();
    let took = longest(address, 100);
    assert!(took < LATENCY_MAX, "{took:?}");
    say("slow_clients", &format!("at most {took:?} beside {} idle connections", idle.len()));
}

#[test]
fn connections_over_the_limit_get_one_clear_error() {
    // A node that serves eight: further ones are told so in the dialect they speak, and those that say
    // nothing are sent away; when one leaves, the next is served.
    let flags = vec!["--max-connections".to_owned(), CONNECTIONS_MAX.to_string()];
    let cluster = Cluster::with(1, Setup { flags, ..Setup::default() });
    let address = &cluster.nodes[0].address;
    // Connections of the harness that are closed may count for a moment more.
    let connect = || {
        crate::support::wait_for("a place", || {
            let mut client = Text::connect(address).ok()?;
            (client.line("PING").ok()? == Reply::Simple("PONG".into())).then_some(client)
        })
    };
    let mut clients: Vec<Text> = (0..CONNECTIONS_MAX).map(|_| connect()).collect();
    let limit = format!("{CONNECTIONS_MAX} connections are the limit (--max-connections)");
    for _ in 0..20 {
        let mut more = Text::connect(address).expect("a connection");
        let told = more.line("PING");
        let clear = matches!(&told, Ok(Reply::Error(text)) if text.contains(&limit));
        assert!(clear, "{told:?}");
        assert_eq!(more.rest().unwrap_or_default(), b"", "one error, then the end");
        let told = Connection::dial(address, b"", 0, Duration::from_secs(5)).expect_err("no place");
        assert!(told.to_string().contains(&limit), "{told}");
        let (code, body) = http::get(address, "/").expect("an answer");
        assert!(code == 503 && body.contains(&limit), "{code} {body}");
        // Whoever watches the node must not take it for dead.
        assert_eq!(http::status(address, "/health"), Some(200));
        assert_eq!(http::status(address, "/metrics"), Some(200));
    }
    let status = cluster.cli().arg("status").output().expect("kontiki cli");
    let row = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && row.contains("serving"), "{row}");
    let members = cluster.cli().args(["get", "a"]).output().expect("kontiki cli");
    assert_eq!(members.status.code(), Some(5), "anything else is refused as busy");
    let silent = Text::connect(address).and_then(|mut silent| silent.rest());
    assert_eq!(silent.expect("an end"), b"", "who says nothing is sent away");
    for client in &mut clients {
        assert_eq!(client.line("PING").unwrap(), Reply::Simple("PONG".into()));
    }
    clients.pop();
    connect();
    say(
        "slow_clients",
        &format!("60 connections beyond {CONNECTIONS_MAX} refused, each with one error"),
    );
}

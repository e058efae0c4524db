//! One client that opens sessions without end, and what that is to the others.

use crate::support::cluster::Cluster;
use crate::support::native::{Native, Trouble};
use crate::support::{PATIENCE, say, wait_for};
use kontiki::client::Connection;
use kontiki::kv::{Op, Outcome, SessionBounds, SessionStamp, Write};
use kontiki::wire::client::{Answer, Call, Class, Request};
use std::time::{Duration, Instant};

/// Sessions that one connection may hold (docs/protocol.md).
const HELD_MAX: u64 = 16;

fn write(session: u64, sequence: u64) -> Call {
    let stamp = Some(SessionStamp { session, sequence, answered_below: sequence });
    let ops = vec![Op::Increment { key: b"n".to_vec(), by: 1 }];
    Call::Write(Write { stamp, ops, ..Write::default() })
}

fn opened(client: &mut Native) -> Result<u64, Trouble> {
    match client.call(Call::OpenSession)? {
        Answer::Outcome(Outcome::SessionOpened { session }) => Ok(session),
        other => panic!("{other:?}"),
    }
}

/// Asks for one session more than a connection may hold, at once; how many it got.
fn open_all(address: &str) -> u64 {
    let until = Instant::now() + PATIENCE;
    let mut connection = Connection::dial(address, b"", 0, PATIENCE).expect("a connection");
    for id in 1..=HELD_MAX + 1 {
        let mut request = Request { id, deadline_ms: 10_000, call: Call::OpenSession };
        connection.send(&mut request).expect("it is sent");
    }
    connection.flush(until).expect("it is taken");
    let mut got = 0;
    for _ in 0..=HELD_MAX {
        match connection.receive(until).expect("no end").expect("an answer").result {
            Ok(Answer::Outcome(Outcome::SessionOpened { .. })) => got += 1,
            Err(failure) => {
                assert_eq!(failure.class, Class::Busy);
                assert!(
                    failure.message.contains("one connection holds 16 sessions"),
                    "{failure:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    got
}

#[test]
fn one_client_takes_no_sessions_from_others_and_keeps_nobody_out() {
    // A client opens a session and is silent. Another one comes with one connection after the other, opens as many
    // sessions on each as it may, and leaves; in all more than there are places. Then the first one writes, and a new
    // one gets a session, too.
    let cluster = Cluster::start(3);
    let address = cluster.nodes[cluster.leader()].address.clone();
    let mut silent = Native::new(&address);
    let session = opened(&mut silent).expect("a session");
    let connections = SessionBounds::STANDARD.sessions as u64 / HELD_MAX + 20;
    let begun = Instant::now();
    let all: u64 = (0..connections).map(|_| open_all(&address)).sum();
    let took = begun.elapsed();
    assert_eq!(all, connections * HELD_MAX, "whoever comes anew gets some again");
    let told = silent.call(write(session, 1)).expect("an answer");
    assert!(matches!(told, Answer::Outcome(Outcome::Done { .. })), "{told:?}");
    let follower = &cluster.nodes[(cluster.leader() + 1) % 3].address;
    let mut other = Native::new(follower);
    let session = wait_for("a session", || opened(&mut other).ok());
    let told = other.call(write(session, 1)).expect("an answer");
    assert!(matches!(told, Answer::Outcome(Outcome::Done { .. })), "{told:?}");
    say("sessions", &format!("{all} sessions by {connections} connections in {took:?}"));
}

#[test]
fn who_holds_every_place_is_in_nobodys_way_once_it_leaves() {
    // As many connections as it takes hold every place. One more session is refused, with what helps; when they have
    // left there is a place.
    let cluster = Cluster::start(1);
    let address = cluster.nodes[0].address.clone();
    let max = SessionBounds::STANDARD.sessions as u64;
    let mut holders = Vec::new();
    for _ in 0..max / HELD_MAX {
        let mut holder = Native::new(&address);
        for _ in 0..HELD_MAX {
            opened(&mut holder).expect("a session");
        }
        holders.push(holder);
    }
    let mut late = Native::new(&address);
    let Err(Trouble::Refused(why)) = opened(&mut late) else { panic!("4097 sessions") };
    assert!(why.starts_with("busy: 4096 sessions are the limit"), "{why}");
    drop(holders);
    let begun = Instant::now();
    wait_for("a session", || opened(&mut late).ok());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    say("sessions", &format!("a place after {took:?}"));
}

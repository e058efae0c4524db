//! Connections between nodes: each test holds the far end, and most take the raft loop's place.

use super::super::connections::Connections;
use super::super::inbox::RaftEvents;
use super::super::peer_in::SILENCE_MAX;
use super::super::peer_out::{self, Command};
use super::parts::{
    PEER, accepted, decide, node_one, running_node_one, serve, socket_pair, wait_for, wait_for_end,
    wait_for_link,
};
use super::{Shared, next_frame, present, welcome_of};
use crate::api::tests::SECRET;
use crate::kv::limits::MAX_BATCH_BYTES_CEILING;
use crate::node::{ConnectionId, Forward, Input, Outgoing, PeerEffect, PeerEvent};
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX};
use crate::wire::handshake::{self, Hello, Lane, Reject, RejectCode, Role, Welcome};
use crate::wire::peer::{self, PeerFrame, put_peer_frame, take_peer_frame};
use crate::wire::proof::{Greeting, Listener, Presented};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// The connection of most tests.
const CONNECTION: ConnectionId = 5;

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// The peer's side of a handshake that node 1 dials.
fn read_hello(mut stream: &TcpStream) -> (FrameReader, Presented) {
    let mut reader = FrameReader::new(PEER_FRAME_MAX);
    while !reader.preamble().unwrap() {
        let n = stream.read(reader.space()).unwrap();
        reader.filled(n);
    }
    let hello = next_frame(stream, &mut reader).unwrap();
    let (listener, challenge) = Listener::new(&hello, &[2; 32]).unwrap();
    stream.write_all(&challenge).unwrap();
    let proof = next_frame(stream, &mut reader).unwrap();
    let presented = listener.proof(&proof, b"").unwrap();
    let hello = &presented.hello;
    assert_eq!((hello.from, hello.to, hello.role), (1, PEER, Role::Peer));
    (reader, presented)
}

fn welcome(stream: &TcpStream, presented: &Presented) {
    answer(stream, presented, &Ok(welcome_of(PEER, 22)));
}

fn answer(mut stream: &TcpStream, presented: &Presented, answer: &Result<Welcome, Reject>) {
    stream.write_all(&presented.answer(answer, Some(&SECRET))).unwrap();
}

fn send(mut stream: &TcpStream, frame: &PeerFrame) {
    let mut out = Vec::new();
    put_peer_frame(&mut out, frame);
    stream.write_all(&out).unwrap();
}

fn pong(leader: u64, address: &str) -> PeerFrame {
    PeerFrame::Pong { leader, address: address.to_string() }
}

fn frame(stream: &TcpStream, reader: &mut FrameReader) -> Option<PeerFrame> {
    next_frame(stream, reader).map(|body| take_peer_frame(&body).unwrap())
}

/// A forward of so many bytes.
fn forward(id: u64, bytes: usize) -> Command {
    let command = Arc::from(vec![7; bytes]);
    Command::Send(Outgoing::Forward(Forward { id, deadline_ms: 9, command }))
}

/// A connection that node 1 has dialed and uses, and its far end.
fn dialed() -> (Arc<Shared>, RaftEvents, Sender<Command>, TcpStream, FrameReader) {
    let (listener, address) = listener();
    let (shared, mut events) = node_one(&address, 10);
    let greeting = shared.node.view().others[&PEER].greeting.clone();
    let hello = Hello { role: Role::Peer, ..greeting.hello };
    let greeting = Greeting { hello, ..greeting };
    let (sender, _) = peer_out::start(&shared, CONNECTION, PEER, address, greeting).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let (reader, presented) = read_hello(&stream);
    welcome(&stream, &presented);
    let answer = wait_for_link(&shared, &mut events, |event| match event {
        PeerEvent::Answered { connection: CONNECTION, answered } => Some(answered.answer.clone()),
        _ => None,
    });
    assert_eq!(answer, Ok(welcome_of(PEER, 22)));
    sender.send(Command::Open).unwrap();
    (shared, events, sender, stream, reader)
}

/// Why the dialed connection ends.
fn end(shared: &Shared, events: &mut RaftEvents) -> String {
    wait_for_link(shared, events, |event| match event {
        PeerEvent::Closed { connection: CONNECTION, why } => Some(why.clone()),
        _ => None,
    })
}

/// The peer's machine loses power: its end swallows everything, closes nothing and answers nothing.
#[test]
fn a_peer_that_vanished_is_noticed() {
    let (shared, mut events, sender, stream, mut reader) = dialed();
    sender.send(forward(3, 10)).unwrap();
    assert_eq!(frame(&stream, &mut reader), Some(PeerFrame::Ping));
    assert!(matches!(frame(&stream, &mut reader), Some(PeerFrame::Forward(f)) if f.id == 3));
    let why = end(&shared, &mut events);
    assert!(why.starts_with("no sign of life for 3"), "{why}");
    // What is sent before the raft loop has heard of it comes back.
    sender.send(forward(4, 10)).unwrap();
    let back = |i: &Input<_>| matches!(i, Input::ForwardUnsent { id: 4 });
    assert!(wait_for(&shared, &mut events, back));
}

/// The peer closes: noticed with the next ping at the latest, though nothing is to be sent.
#[test]
fn a_peer_that_closes_is_noticed_without_traffic() {
    let (shared, mut events, _sender, stream, mut reader) = dialed();
    assert_eq!(frame(&stream, &mut reader), Some(PeerFrame::Ping));
    drop(stream);
    end(&shared, &mut events);
}

/// A peer sends what is no pong on a connection on which only pongs are sent: it ends.
#[test]
fn a_peer_that_sends_what_is_no_pong_is_not_listened_to() {
    let (shared, mut events, _sender, stream, _) = dialed();
    send(&stream, &PeerFrame::Ping);
    assert_eq!(end(&shared, &mut events), "the peer sends what is no pong");
}

/// A pong says who leads, for a node that has never heard of it.
#[test]
fn a_pong_names_the_leader() {
    let (shared, mut events, _sender, stream, _) = dialed();
    send(&stream, &pong(3, "host:3"));
    let told = wait_for_link(&shared, &mut events, |event| match event {
        PeerEvent::LeaderNamed { leader, address } => Some((*leader, address.clone())),
        _ => None,
    });
    assert_eq!(told, (3, "host:3".to_string()));
}

/// Nobody is there, or it is no node: said once, and no more of the connection.
#[test]
fn a_connection_that_is_not_made_is_told() {
    let (listener, address) = listener();
    let (shared, mut events) = node_one(&address, 10);
    let greeting = shared.node.view().others[&PEER].greeting.clone();
    let start = |address: &str| {
        let (greeting, address) = (greeting.clone(), address.to_string());
        peer_out::start(&shared, CONNECTION, PEER, address, greeting).unwrap()
    };
    let _first = start("no port");
    end(&shared, &mut events);
    let _second = start(&address);
    drop(listener.accept().unwrap());
    end(&shared, &mut events);
    drop(listener);
    let _third = start(&address);
    end(&shared, &mut events);
}

/// The peer refuses: the raft loop is told what it says.
#[test]
fn a_rejection_is_told() {
    let (listener, address) = listener();
    let (shared, mut events) = node_one(&address, 10);
    let greeting = shared.node.view().others[&PEER].greeting.clone();
    let hello = Hello { role: Role::Peer, ..greeting.hello };
    let greeting = Greeting { hello, ..greeting };
    let (_sender, _) = peer_out::start(&shared, CONNECTION, PEER, address, greeting).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let (_, presented) = read_hello(&stream);
    let reject = Reject { code: RejectCode::Removed, message: "gone".to_string() };
    answer(&stream, &presented, &Err(reject.clone()));
    let answered = wait_for_link(&shared, &mut events, |event| match event {
        PeerEvent::Answered { connection: CONNECTION, answered } => Some(answered.clone()),
        _ => None,
    });
    assert_eq!(answered.answer, Err(reject));
    assert!(answered.proven.token && answered.proven.member);
}

/// A write blocks because the peer is gone with its buffers full: noticed as soon as ever. Of the
/// forwards that waited, the one that had begun to leave may have arrived; the others come back.
#[test]
fn a_blocked_write_does_not_hide_a_dead_peer() {
    let (shared, mut events, sender, _stream, _) = dialed();
    let started = Instant::now();
    // More than the buffers of both ends hold.
    let last = 4;
    for id in 1..=last {
        sender.send(forward(id, 16 << 20)).unwrap();
    }
    let mut back = Vec::new();
    let mut why = None;
    assert!(wait_for(&shared, &mut events, |input| {
        match input {
            Input::ForwardUnsent { id } => back.push(*id),
            Input::Link(PeerEvent::Closed { why: is, .. }) => why = Some(is.clone()),
            _ => {}
        }
        why.is_some() && back.contains(&last)
    }));
    assert!(why.is_some_and(|why| why.starts_with("no sign of life")));
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(!back.contains(&1), "it had begun to leave");
}

/// A write takes long because the link is slow. The peer answers what arrives: it is alive.
#[test]
fn a_blocked_write_does_not_hide_a_sign_of_life() {
    let (_shared, _events, sender, stream, mut reader) = dialed();
    let bytes = 16 << 20;
    (1..=4).for_each(|id| sender.send(forward(id, bytes)).unwrap());
    // To the end: what was blocked may take its time, too.
    let (over, read) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let stream = &stream;
        scope.spawn(move || {
            let pause = Duration::from_millis(500);
            while read.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                send(stream, &pong(0, ""));
            }
        });
        let over = over;
        thread::sleep(Duration::from_secs(5));
        let mut next = 1;
        while next <= 4 {
            match frame(stream, &mut reader).expect("it is kept") {
                PeerFrame::Forward(forward) => {
                    assert_eq!((forward.id, forward.command.len()), (next, bytes));
                    next += 1;
                }
                other => assert_eq!(other, PeerFrame::Ping),
            }
        }
        drop(over);
    });
}

/// A connection in doubt is asked at once, and found silent soon after. It stays in use.
#[test]
fn a_hastened_connection_that_is_silent_is_told_and_stays() {
    let (shared, mut events, sender, stream, mut reader) = dialed();
    assert_eq!(frame(&stream, &mut reader), Some(PeerFrame::Ping));
    send(&stream, &pong(0, ""));
    sender.send(Command::Hasten).unwrap();
    assert_eq!(frame(&stream, &mut reader), Some(PeerFrame::Ping));
    wait_for_link(&shared, &mut events, |event| {
        matches!(event, PeerEvent::Silent { connection: CONNECTION }).then_some(())
    });
    sender.send(forward(3, 10)).unwrap();
    let mut arrives = || matches!(frame(&stream, &mut reader), Some(PeerFrame::Forward(_)));
    assert!((0..9).any(|_| arrives()));
}

/// The raft loop lets go of a connection whose write is blocked: it ends at once, not when the peer
/// takes something.
#[test]
fn a_connection_is_closed_in_the_middle_of_a_write() {
    let (listener, address) = listener();
    let (shared, mut events) = node_one(&address, 10);
    let mut connections = Connections::new(Arc::clone(&shared));
    let greeting = shared.node.view().others[&PEER].greeting.clone();
    let hello = Hello { role: Role::Peer, ..greeting.hello };
    let greeting = Greeting { hello, ..greeting };
    let (connection, peer) = (CONNECTION, PEER);
    connections.act(PeerEffect::Dial { connection, peer, address, greeting: Box::new(greeting) });
    let (stream, _) = listener.accept().unwrap();
    let (_, presented) = read_hello(&stream);
    welcome(&stream, &presented);
    wait_for_link(&shared, &mut events, |event| {
        matches!(event, PeerEvent::Answered { connection: CONNECTION, .. }).then_some(())
    });
    connections.act(PeerEffect::Open { connection, peer, lane: Lane::Bulk });
    assert!(shared.bulk_senders.read().unwrap().contains_key(&PEER));
    for id in 1..=4 {
        let Command::Send(outgoing) = forward(id, 16 << 20) else { unreachable!() };
        connections.transmit(connection, outgoing);
    }
    // Something has left.
    stream.peek(&mut [0]).unwrap();
    connections.act(PeerEffect::Close { connection });
    assert!(shared.bulk_senders.read().unwrap().is_empty());
    let back = |i: &Input<_>| matches!(i, Input::ForwardUnsent { id: 4 });
    assert!(wait_for(&shared, &mut events, back));
    while !matches!((&stream).read(&mut [0; 1 << 16]), Ok(0) | Err(_)) {}
}

/// With a raft loop that runs. The peer welcomes the node and falls silent, while nobody leads: after a
/// few heartbeats another connection is made beside the first, which stays until that one is welcomed.
#[test]
fn a_silent_connection_is_replaced_when_another_one_is_welcomed() {
    let (listener, address) = listener();
    let _shared = running_node_one(&address);
    let next = |lane| {
        loop {
            let (stream, _) = listener.accept().unwrap();
            let (reader, presented) = read_hello(&stream);
            if presented.hello.lane == lane {
                return (stream, reader, presented);
            }
        }
    };
    let (first, mut first_reader, presented) = next(Lane::Control);
    welcome(&first, &presented);
    let (second, _, presented) = next(Lane::Control);
    send(&first, &pong(0, ""));
    assert!(frame(&first, &mut first_reader).is_some(), "it is in use");
    welcome(&second, &presented);
    while frame(&first, &mut first_reader).is_some() {}
    // And when the peer closes it is dialed again.
    drop(second);
    let (third, _, presented) = next(Lane::Control);
    welcome(&third, &presented);
}

// ---- accepted connections ----

/// A connection that node 1 serves, with the handshake done, and its far end.
fn dial(
    shared: &Arc<Shared>,
    events: &mut RaftEvents,
    lane: Lane,
) -> (ConnectionId, TcpStream, TcpStream, FrameReader) {
    let (ours, theirs) = socket_pair();
    let watched = ours.try_clone().unwrap();
    let served = Arc::clone(shared);
    thread::spawn(move || serve(ours, &served));
    let mut reader = present(&theirs, Role::Peer, lane);
    let (connection, presented) = accepted(shared, events);
    let said = &presented.hello;
    assert_eq!((said.from, said.identity, said.lane), (PEER, 22, lane));
    decide(shared, connection, &presented, Ok(welcome_of(1, 11)));
    let answer = next_frame(&theirs, &mut reader).unwrap();
    assert_eq!(handshake::take_answer(&answer).unwrap(), Ok(welcome_of(1, 11)));
    (connection, watched, theirs, reader)
}

/// A peer that dialed asks for a sign of life and gets one; the reads of that connection have a
/// bound, and its end is told to the raft loop.
#[test]
fn pings_are_answered_and_silence_is_bounded() {
    let (shared, mut events) = node_one("host:2", 10);
    let (connection, watched, theirs, mut reader) = dial(&shared, &mut events, Lane::Control);
    for _ in 0..3 {
        send(&theirs, &PeerFrame::Ping);
        assert_eq!(frame(&theirs, &mut reader), Some(pong(0, "")));
    }
    assert_eq!(watched.read_timeout().unwrap(), Some(SILENCE_MAX));
    drop(theirs);
    wait_for_end(&shared, &mut events, connection);
}

/// A large frame trickles in. The ping behind it cannot arrive yet: what arrives is answered.
#[test]
fn a_frame_that_takes_long_is_a_sign_of_life() {
    let (shared, mut events) = node_one("host:2", 10);
    let (_, _, theirs, mut reader) = dial(&shared, &mut events, Lane::Bulk);
    let command = Arc::from(vec![0; 1 << 20]);
    let mut out = Vec::new();
    put_peer_frame(&mut out, &PeerFrame::Forward(peer::Forward { id: 1, deadline_ms: 0, command }));
    theirs.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut pieces = out.chunks(1000);
    let answered = loop {
        (&theirs).write_all(pieces.next().expect("it is answered before")).unwrap();
        if let Some(frame) = frame(&theirs, &mut reader) {
            break frame;
        }
    };
    assert_eq!(answered, pong(0, ""));
}

/// Who is not let in is told why, by the raft loop's decision or for want of the token.
#[test]
fn who_is_not_let_in_is_told() {
    let (shared, mut events) = node_one("host:2", 10);
    let (ours, theirs) = socket_pair();
    let served = Arc::clone(&shared);
    let serving = thread::spawn(move || serve(ours, &served));
    let mut reader = present(&theirs, Role::Peer, Lane::Control);
    let (connection, presented) = accepted(&shared, &mut events);
    let reject = Reject { code: RejectCode::Removed, message: "gone".to_string() };
    decide(&shared, connection, &presented, Err(reject.clone()));
    let answer = next_frame(&theirs, &mut reader).unwrap();
    assert_eq!(handshake::take_answer(&answer).unwrap(), Err(reject));
    serving.join().unwrap().unwrap();
    wait_for_end(&shared, &mut events, connection);
}

/// The raft loop parts with a peer that it has let in.
#[test]
fn an_accepted_connection_is_closed() {
    let (shared, mut events) = node_one("host:2", 10);
    let (connection, _, theirs, mut reader) = dial(&shared, &mut events, Lane::Control);
    let (_, _, other, mut others_reader) = dial(&shared, &mut events, Lane::Control);
    Connections::new(Arc::clone(&shared)).act(PeerEffect::Part { connection });
    wait_for_end(&shared, &mut events, connection);
    assert_eq!(frame(&theirs, &mut reader), None);
    send(&other, &PeerFrame::Ping);
    assert_eq!(frame(&other, &mut others_reader), Some(pong(0, "")));
}

/// A peer sends what makes no sense at this end: the connection ends, and that is all.
#[test]
fn a_pong_that_nobody_asked_for_ends_the_connection() {
    let (shared, mut events) = node_one("host:2", 10);
    let (connection, _, theirs, mut reader) = dial(&shared, &mut events, Lane::Control);
    send(&theirs, &pong(0, ""));
    wait_for_end(&shared, &mut events, connection);
    assert_eq!(frame(&theirs, &mut reader), None);
}

/// A peer forwards a write that no client can have made: it would not fit the log. The connection
/// ends; the node does not.
#[test]
fn an_impossible_forward_ends_the_connection() {
    let (shared, mut events) = node_one("host:2", 10);
    let (of, _, theirs, _) = dial(&shared, &mut events, Lane::Bulk);
    let command = Arc::from(vec![0; 2 * MAX_BATCH_BYTES_CEILING + 1]);
    let mut out = Vec::new();
    put_peer_frame(&mut out, &PeerFrame::Forward(peer::Forward { id: 1, deadline_ms: 0, command }));
    // The node may close before it has taken all of it.
    let _ = (&theirs).write_all(&out);
    assert!(wait_for(&shared, &mut events, |input| {
        assert!(!matches!(input, Input::Forwarded { .. }));
        matches!(input, Input::Link(PeerEvent::AcceptedClosed { connection }) if *connection == of)
    }));
}

//! The server's threads against sockets that tests hold the other end of.

pub(crate) mod parts;

use self::parts::{BIG_KEY, BIG_VALUE_BYTES, PEER, node_one, socket_pair, wait_for};
use super::connection::OUT_BYTES_MAX;
use super::peers::Outgoing;
use super::pulse::SILENCE_MAX;
use super::{Shared, listener, members, native, peers};
use crate::kv::{Query, Reply};
use crate::node::{Configurations, Forward, Input};
use crate::raft::{Configuration, Member};
use crate::wire::client::{Answer, Call, Consistency, Request, put_request, take_response};
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX, PREAMBLE};
use crate::wire::handshake::{self, Hello, PROTOCOL_VERSIONS, RejectCode, Role, Welcome};
use crate::wire::peer::{self, PeerFrame, put_peer_frame, take_peer_frame};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// The next frame that comes.
fn next_frame(mut stream: &TcpStream, reader: &mut FrameReader) -> Option<Vec<u8>> {
    loop {
        if let Some(body) = reader.next_frame().unwrap() {
            return Some(body.to_vec());
        }
        match stream.read(reader.space()) {
            Ok(n @ 1..) => reader.filled(n),
            _ => return None,
        }
    }
}

/// The peer's side of a handshake that node 1 dials.
fn welcome(stream: &TcpStream) -> FrameReader {
    let mut reader = FrameReader::new(PEER_FRAME_MAX);
    while !reader.preamble().unwrap() {
        let n = (&mut &*stream).read(reader.space()).unwrap();
        reader.filled(n);
    }
    let hello = handshake::take_hello(&next_frame(stream, &mut reader).unwrap()).unwrap();
    assert_eq!((hello.from, hello.to, hello.role), (1, PEER, Role::Peer));
    let welcome = Welcome {
        version: PROTOCOL_VERSIONS.1,
        cluster: 7,
        node: PEER,
        identity: 22,
        leader: 0,
        leader_address: String::new(),
    };
    let mut out = Vec::new();
    handshake::put_welcome(&mut out, &welcome);
    (&mut &*stream).write_all(&out).unwrap();
    reader
}

/// What a dialer sends first.
fn hello(role: Role) -> Vec<u8> {
    hello_of(role, 22)
}

/// The same of a peer that has this disk.
fn hello_of(role: Role, identity: u64) -> Vec<u8> {
    hello_at(role, identity, "")
}

/// The same, and is reached there.
fn hello_at(role: Role, identity: u64, address: &str) -> Vec<u8> {
    let peer = role == Role::Peer;
    let hello = Hello {
        version_min: PROTOCOL_VERSIONS.0,
        version_max: PROTOCOL_VERSIONS.1,
        role,
        cluster: if peer { 7 } else { 0 },
        from: if peer { PEER } else { 0 },
        to: 0,
        identity: if peer { identity } else { 0 },
        to_identity: 0,
        address: address.to_string(),
        token: Vec::new(),
        term: 0,
        last_index: 0,
    };
    let mut out = PREAMBLE.to_vec();
    handshake::put_hello(&mut out, &hello);
    out
}

/// A connection that node 1 serves, with the handshake done, and its far end.
fn dial(shared: &Arc<Shared>, role: Role) -> (TcpStream, TcpStream, FrameReader) {
    dial_with(shared, hello(role))
}

fn dial_with(shared: &Arc<Shared>, hello: Vec<u8>) -> (TcpStream, TcpStream, FrameReader) {
    let (ours, theirs) = socket_pair();
    let watched = ours.try_clone().unwrap();
    let shared = Arc::clone(shared);
    thread::spawn(move || native::serve(&ours, &hello, &shared, false));
    let mut reader = FrameReader::new(PEER_FRAME_MAX);
    let answer = next_frame(&theirs, &mut reader).unwrap();
    assert_eq!(handshake::take_answer(&answer).unwrap().unwrap().node, 1);
    (watched, theirs, reader)
}

/// The peer's machine loses power: its end swallows everything, closes nothing and answers nothing.
/// The sender notices by the pongs that are missing, says so, and dials again.
#[test]
fn a_peer_that_vanished_is_noticed_and_dialed_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (shared, mut events) = node_one(&address, 10);
    let link = peers::spawn(&shared, PEER);
    let (first, _) = listener.accept().unwrap();
    welcome(&first);
    let connected =
        |input: &Input<_>| matches!(input, Input::PeerConnected { node: PEER, identity: 22, .. });
    assert!(wait_for(&shared, &mut events, connected));
    assert!(wait_for(&shared, &mut events, |i| matches!(i, Input::PeerLost { node: PEER })));
    let (second, _) = listener.accept().unwrap();
    let mut reader = welcome(&second);
    assert!(wait_for(&shared, &mut events, connected));
    // The link works: a forward arrives, behind the first ping.
    let forward = Forward { id: 3, deadline_ms: 9, command: Arc::from(&b"abc"[..]) };
    link.send(Outgoing::Forward(forward)).unwrap();
    let frame = |reader: &mut FrameReader| take_peer_frame(&next_frame(&second, reader).unwrap());
    assert_eq!(frame(&mut reader).unwrap(), PeerFrame::Ping);
    let is_forward = |f| matches!(f, PeerFrame::Forward(f) if f.id == 3);
    assert!((0..3).any(|_| is_forward(frame(&mut reader).unwrap())));
}

/// The peer closes: noticed with the next ping at the latest, though nothing is to be sent.
#[test]
fn a_peer_that_closes_is_noticed_without_traffic() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (shared, mut events) = node_one(&address, 10);
    let _link = peers::spawn(&shared, PEER);
    let (first, _) = listener.accept().unwrap();
    welcome(&first);
    drop(first);
    assert!(wait_for(&shared, &mut events, |i| matches!(i, Input::PeerLost { node: PEER })));
    drop(listener.accept().unwrap());
}

fn pong(leader: u64, address: &str) -> PeerFrame {
    PeerFrame::Pong { leader, address: address.to_string() }
}

/// A peer that dialed asks for a sign of life and gets one; the reads of that connection have a
/// bound, and its end is told to the raft loop.
#[test]
fn pings_are_answered_and_silence_is_bounded() {
    let (shared, mut events) = node_one("host:2", 10);
    let (watched, theirs, mut reader) = dial(&shared, Role::Peer);
    let mut ping = Vec::new();
    put_peer_frame(&mut ping, &PeerFrame::Ping);
    for _ in 0..3 {
        (&theirs).write_all(&ping).unwrap();
        let body = next_frame(&theirs, &mut reader).unwrap();
        assert_eq!(take_peer_frame(&body).unwrap(), pong(0, ""));
    }
    assert_eq!(watched.read_timeout().unwrap(), Some(SILENCE_MAX));
    drop(theirs);
    assert!(wait_for(&shared, &mut events, |i| matches!(i, Input::PeerLost { node: PEER })));
}

/// A peer was let in while nobody was known under its id; then the log says that another disk is the
/// member's. What it goes on to vote must not count: the connection ends.
#[test]
fn a_peer_that_turns_out_to_have_another_disk_is_parted_with() {
    let (shared, mut events) = node_one("host:2", 10);
    let (_, theirs, mut reader) = dial(&shared, Role::Peer);
    let dialed = |i: &Input<_>| matches!(i, Input::PeerDialed { node: PEER, identity: 22, .. });
    assert!(wait_for(&shared, &mut events, dialed));
    // The disk that is the member's comes from another machine, while that one runs.
    let (_, member, mut members_reader) = dial_with(&shared, hello_of(Role::Peer, 99));
    let dialed = |i: &Input<_>| matches!(i, Input::PeerDialed { node: PEER, identity: 99, .. });
    assert!(wait_for(&shared, &mut events, dialed));
    let now = shared.configuration();
    let bound = |identity| {
        let members = now.members.iter().map(|m| match m.id {
            PEER => Member { identity, ..m.clone() },
            _ => m.clone(),
        });
        Configurations::settled(Arc::new(Configuration::of_voters(7, members.collect())))
    };
    let mut ping = Vec::new();
    put_peer_frame(&mut ping, &PeerFrame::Ping);
    (&theirs).write_all(&ping).unwrap();
    assert!(next_frame(&theirs, &mut reader).is_some(), "it may be the member");
    *shared.configurations.write().unwrap() = bound(99);
    members::part_with_strangers(&shared);
    assert!(wait_for(&shared, &mut events, |i| matches!(i, Input::PeerLost { node: PEER })));
    assert_eq!(next_frame(&theirs, &mut reader), None);
    (&member).write_all(&ping).unwrap();
    assert!(next_frame(&member, &mut members_reader).is_some(), "it is the member");
}

/// Somebody has copied a node's directory, and runs the copy beside the original at another address: as
/// long as that is connected the copy is turned away. A second connection of the node itself is not.
#[test]
fn a_copy_that_runs_beside_its_original_is_turned_away() {
    let (shared, mut events) = node_one("host:2", 10);
    let (_, original, _) = dial(&shared, Role::Peer);
    let dialed = |i: &Input<_>| matches!(i, Input::PeerDialed { node: PEER, .. });
    assert!(wait_for(&shared, &mut events, dialed));
    let copy = || {
        let (ours, theirs) = socket_pair();
        let hello = hello_at(Role::Peer, 22, "elsewhere:2");
        let shared = Arc::clone(&shared);
        thread::spawn(move || native::serve(&ours, &hello, &shared, false));
        let answer = next_frame(&theirs, &mut FrameReader::new(PEER_FRAME_MAX)).unwrap();
        (theirs, handshake::take_answer(&answer).unwrap())
    };
    let reject = copy().1.unwrap_err();
    assert_eq!(reject.code, RejectCode::WrongNode);
    assert!(reject.message.contains("runs at : one of the two has a copy"), "{}", reject.message);
    let (_, again, _) = dial(&shared, Role::Peer);
    assert!(wait_for(&shared, &mut events, dialed));
    drop((original, again));
    assert!(wait_for(&shared, &mut events, |i| matches!(i, Input::PeerLost { node: PEER })));
    // It has moved: there was no copy.
    assert!(copy().1.is_ok());
}

/// A peer sends what makes no sense at this end: the connection ends, and that is all.
#[test]
fn a_pong_that_nobody_asked_for_ends_the_connection() {
    let (shared, mut events) = node_one("host:2", 10);
    let (_, theirs, mut reader) = dial(&shared, Role::Peer);
    let mut out = Vec::new();
    put_peer_frame(&mut out, &pong(0, ""));
    (&theirs).write_all(&out).unwrap();
    assert!(wait_for(&shared, &mut events, |i| matches!(i, Input::PeerLost { node: PEER })));
    assert_eq!(next_frame(&theirs, &mut reader), None);
}

/// Clients have taken every connection there is. One more is told why it is refused, each in its
/// dialect; a peer is served all the same, or clients could take the cluster's majority away.
#[test]
fn over_the_cap_clients_are_told_and_peers_are_served() {
    let (shared, mut events) = node_one("host:2", 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let theirs = Arc::clone(&shared);
    thread::spawn(move || listener::run(&listener, &theirs));
    let dial = |first: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(first).unwrap();
        stream
    };
    let all = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let welcomed = |stream: &TcpStream| {
        let body = next_frame(stream, &mut FrameReader::new(PEER_FRAME_MAX)).unwrap();
        handshake::take_answer(&body).unwrap().map(|welcome| welcome.node)
    };
    let first = dial(&hello(Role::Client));
    assert_eq!(welcomed(&first).unwrap(), 1);
    let why = "busy: 1 connections are the limit (--max-connections)";
    assert_eq!(all(dial(b"PING\r\n")), format!("-ERR {why}\r\n"));
    let page = all(dial(b"GET /health HTTP/1.1\r\n\r\n"));
    assert!(page.starts_with("HTTP/1.1 503 ") && page.ends_with(&format!("{why}\n")), "{page}");
    let reject = welcomed(&dial(&hello(Role::Client))).unwrap_err();
    assert_eq!((reject.code, reject.message.as_str()), (RejectCode::TooManyConnections, why));
    let peer = dial(&hello(Role::Peer));
    assert_eq!(welcomed(&peer).unwrap(), 1);
    drop(peer);
    assert!(wait_for(&shared, &mut events, |i| matches!(i, Input::PeerLost { node: PEER })));
    drop(first);
    // The place is given back as soon as the node notices.
    while all(dial(b"QUIT\r\n")) != "+OK\r\n" {
        thread::yield_now();
    }
}

/// A client sends a thousand reads of a large value in one go before it reads a byte. The answers
/// are written as they are made, many more than the node may hold, and each arrives in its place.
#[test]
fn more_answers_than_are_held_at_once_all_arrive() {
    let (shared, _events) = node_one("host:2", 10);
    let (_, theirs, mut reader) = dial(&shared, Role::Client);
    let mut out = Vec::new();
    let query = Query::Get { key: BIG_KEY.to_vec() };
    let count = 1_000;
    assert!(count as usize * BIG_VALUE_BYTES > 10 * OUT_BYTES_MAX);
    for id in 1..=count {
        let call = Call::Query { query: query.clone(), consistency: Consistency::Stale };
        put_request(&mut out, &Request { id, deadline_ms: 0, call });
    }
    (&theirs).write_all(&out).unwrap();
    for id in 1..=count {
        let response = take_response(&next_frame(&theirs, &mut reader).unwrap()).unwrap();
        assert_eq!(response.id, id);
        let Ok(Answer::Reply(Reply::Value(Some(found)))) = response.result else { panic!("{id}") };
        assert_eq!(found.value.len(), BIG_VALUE_BYTES);
    }
}

/// A peer forwards a write that no client can have made: it would not fit the log. The connection
/// ends; the node does not.
#[test]
fn an_impossible_forward_ends_the_connection() {
    let (shared, mut events) = node_one("host:2", 10);
    let (_, theirs, mut reader) = dial(&shared, Role::Peer);
    let command = Arc::from(vec![0; 20 << 20]);
    let mut out = Vec::new();
    put_peer_frame(&mut out, &PeerFrame::Forward(peer::Forward { id: 1, deadline_ms: 0, command }));
    // The node may close before it has taken all of it.
    let _ = (&theirs).write_all(&out);
    assert!(wait_for(&shared, &mut events, |input| {
        assert!(!matches!(input, Input::Forwarded { .. }));
        matches!(input, Input::PeerLost { node: PEER })
    }));
    assert_eq!(next_frame(&theirs, &mut reader), None);
}

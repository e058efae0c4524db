//! The server's threads against sockets that tests hold the other end of.

pub(crate) mod parts;
mod peers;

use self::parts::{PEER, accepted, decide, node_one, serve, socket_pair, wait_for_end};
use super::{Shared, listener};
use crate::api::OUT_BYTES_MAX;
use crate::api::tests::{BIG_KEY, BIG_VALUE_BYTES};
use crate::kv::{Query, Reply};
use crate::node::ConnectionId;
use crate::wire::client::{Answer, Call, Consistency, Request, put_request, take_response};
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX, PREAMBLE};
use crate::wire::handshake::{
    self, Hello, Lane, PROTOCOL_VERSIONS, RejectCode, Remembered, Role, Welcome,
};
use crate::wire::proof::{Dialer, Dialing, Greeting, Keys};
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

/// How a node welcomes another one.
fn welcome_of(node: u64, identity: u64) -> Welcome {
    Welcome {
        version: PROTOCOL_VERSIONS.1,
        cluster: 7,
        node,
        identity,
        leader: 0,
        leader_address: String::new(),
        remembered: Remembered::default(),
    }
}

/// Dials: says Hello, and shows what there is to show; the answer is still to come.
fn present(mut stream: &TcpStream, role: Role, lane: Lane) -> FrameReader {
    let (mut dialer, hello) = Dialer::new(greeting(role, lane), [1; 32]);
    stream.write_all(&[&PREAMBLE[..], &hello].concat()).unwrap();
    let mut reader = FrameReader::new(PEER_FRAME_MAX);
    let challenge = next_frame(stream, &mut reader).unwrap();
    let Ok(Dialing::Write(proof)) = dialer.heard(&challenge) else { panic!("no challenge") };
    stream.write_all(&proof).unwrap();
    reader
}

fn greeting(role: Role, lane: Lane) -> Greeting {
    let client = Hello::of_client(0);
    let hello = match role {
        Role::Client => client,
        _ => {
            let address = "host:2".to_string();
            Hello { role, cluster: 7, from: PEER, identity: 22, address, lane, ..client }
        }
    };
    Greeting { hello, keys: Keys::default(), offers_in: None }
}

/// A connection that node 1 serves, with the handshake done, and its far end.
fn dial_as_client(shared: &Arc<Shared>) -> (TcpStream, FrameReader) {
    let (ours, theirs) = socket_pair();
    let shared = Arc::clone(shared);
    thread::spawn(move || serve(ours, &shared));
    let mut reader = present(&theirs, Role::Client, Lane::Control);
    let answer = next_frame(&theirs, &mut reader).unwrap();
    assert_eq!(handshake::take_answer(&answer).unwrap().unwrap().node, 1);
    (theirs, reader)
}

/// Clients have taken every connection there is. One more is told why it is refused, each in its
/// dialect; a peer is served all the same, or clients could take the cluster's majority away, and so is
/// whoever only asks how the node is.
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
    let welcomed = |stream: &TcpStream, reader: &mut FrameReader| {
        let body = next_frame(stream, reader).unwrap();
        handshake::take_answer(&body).unwrap().map(|welcome| welcome.node)
    };
    let present = |role| {
        let stream = dial(b"");
        let reader = present(&stream, role, Lane::Control);
        (stream, reader)
    };
    let (first, mut reader) = present(Role::Client);
    assert_eq!(welcomed(&first, &mut reader).unwrap(), 1);
    let why = "busy: 1 connections are the limit (--max-connections)";
    assert_eq!(all(dial(b"PING\r\n")), format!("-ERR {why}\r\n"));
    let page = all(dial(b"GET / HTTP/1.1\r\n\r\n"));
    assert!(page.starts_with("HTTP/1.1 503 ") && page.ends_with(&format!("{why}\n")), "{page}");
    let page = all(dial(b"GET /metrics HTTP/1.1\r\n\r\n"));
    assert!(
        page.starts_with("HTTP/1.1 200 ") && page.contains("kontiki_connections_max 1\n"),
        "{page}"
    );
    let (refused, mut reader) = present(Role::Client);
    let reject = welcomed(&refused, &mut reader).unwrap_err();
    assert_eq!((reject.code, reject.message.as_str()), (RejectCode::TooManyConnections, why));
    let (peer, mut reader) = present(Role::Peer);
    let (connection, presented): (ConnectionId, _) = accepted(&shared, &mut events);
    decide(&shared, connection, &presented, Ok(welcome_of(1, 11)));
    assert_eq!(welcomed(&peer, &mut reader).unwrap(), 1);
    drop(peer);
    wait_for_end(&shared, &mut events, connection);
    drop(first);
    // The place is given back as soon as the node notices.
    while all(dial(b"QUIT\r\n")) != "+OK\r\n" {
        thread::yield_now();
    }
}

/// Strangers hold every place. A client that comes is served, and the strangers go, those that have said nothing
/// first.
#[test]
fn strangers_make_room_for_a_client() {
    let (shared, _events) = node_one("host:2", 3);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let theirs = Arc::clone(&shared);
    thread::spawn(move || listener::run(&listener, &theirs));
    let ended = |mut stream: &TcpStream| matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_));
    let mut strangers: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut clients = Vec::new();
    while let Some(stranger) = strangers.first() {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"PING\r\n").unwrap();
        let mut answer = [0; 7];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
        assert!(ended(stranger));
        strangers.remove(0);
        clients.push(client);
    }
    // All three are clients now.
    let mut one_more = TcpStream::connect(address).unwrap();
    one_more.write_all(b"PING\r\n").unwrap();
    let mut text = String::new();
    one_more.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("-ERR busy: 3 connections are the limit"), "{text}");
    for mut client in clients {
        client.write_all(b"PING\r\n").unwrap();
        client.read_exact(&mut [0; 7]).unwrap();
    }
}

/// A client sends a thousand reads of a large value in one go before it reads a byte. The answers
/// are written as they are made, many more than the node may hold, and each arrives in its place.
#[test]
fn more_answers_than_are_held_at_once_all_arrive() {
    let (shared, _events) = node_one("host:2", 10);
    let (theirs, mut reader) = dial_as_client(&shared);
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

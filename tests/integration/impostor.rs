//! Who is no member, against real nodes: it knows the token and every id and identity, as any client may.

use crate::support::cluster::{Cluster, Setup};
use crate::support::{say, wait_for};
use kontiki::client::Connection;
use kontiki::wire::client::{Answer, Call, NodeStatus, Request};
use kontiki::wire::frame::{FRAME_HEADER_BYTES, FrameReader, HANDSHAKE_FRAME_MAX, PREAMBLE};
use kontiki::wire::handshake::{Hello, Reject, RejectCode, Remembered, Role, Welcome};
use kontiki::wire::proof::{Dialer, Dialing, Greeting, Keys, Listener, Secret};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const TOKEN: &[u8] = b"correct horse battery staple";
const FAR: u64 = 1 << 40;

/// What a node says of itself to any client that has the token.
fn status(address: &str) -> Option<NodeStatus> {
    let until = Instant::now() + Duration::from_secs(5);
    let mut client = Connection::dial(address, TOKEN, 0, Duration::from_secs(5)).ok()?;
    client.send(&mut Request { id: 0, deadline_ms: 0, call: Call::Status }).ok()?;
    client.flush(until).ok()?;
    match client.receive(until).ok()??.result {
        Ok(Answer::Status(status)) => Some(status),
        _ => None,
    }
}

fn next_frame(stream: &mut TcpStream, reader: &mut FrameReader) -> Option<Vec<u8>> {
    loop {
        if let Some(body) = reader.next_frame().expect("sound frames") {
            return Some(body.to_vec());
        }
        match stream.read(reader.space()) {
            Ok(n @ 1..) => reader.filled(n),
            _ => return None,
        }
    }
}

/// A secret of its own, since it has not got the members'.
fn keys() -> Keys {
    let secret = Some(Secret { bytes: [9; 32], sealed: true });
    Keys { token: TOKEN.to_vec(), secret }
}

/// Says a Hello as a member, with a right proof of the token; how that is answered.
fn pose(address: &str, hello: Hello) -> Result<Welcome, Reject> {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let greeting = Greeting { hello, keys: keys(), offers_in: Some(1) };
    let (mut dialer, hello) = Dialer::new(greeting, [1; 32]);
    let mut out = [&PREAMBLE[..], &hello].concat();
    let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
    loop {
        stream.write_all(&out).expect("it is taken");
        let body = next_frame(&mut stream, &mut reader).expect("an answer");
        match dialer.heard(&body).expect("an answer that makes sense") {
            Dialing::Write(frame) => out = frame,
            Dialing::Over(answered) => return answered.answer,
        }
    }
}

/// The members' secret of a node, as its data directory has it.
fn secret_of(cluster: &Cluster, node: usize) -> Option<[u8; 32]> {
    let record = fs::read(cluster.nodes[node].data.join("identity-a")).ok()?;
    let (rest, secret) = record.split_at(record.len() - 32);
    (rest.last() == Some(&2)).then(|| secret.try_into().expect("32 bytes"))
}

#[test]
fn an_impostor_is_not_let_in_and_learns_nothing() {
    // Three nodes with a token. A client reads the id and the identity of a member, and says Hello in its
    // name: that it remembers more of the node's disk than there is. Then a member is killed, and
    // its port bound: who dials there is told that it was removed, and that its disk is an old one.
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    fs::write(&file, TOKEN).expect("the token");
    let flags = vec!["--token-file".to_owned(), file.display().to_string()];
    let mut cluster = Cluster::with(3, Setup { flags, ..Setup::default() });
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address.clone()).collect();
    let all: Vec<NodeStatus> = addresses
        .iter()
        .map(|address| wait_for("a node says how it is", || status(address)))
        .collect();
    let secret = wait_for("all members hold one secret", || {
        let secrets: Vec<_> = (0..3).map(|node| secret_of(&cluster, node)).collect();
        (secrets[0].is_some() && secrets.iter().all(|secret| *secret == secrets[0]))
            .then(|| secrets[0])
            .flatten()
    });
    let (target, member) = (&all[0], &all[1]);
    let hello = Hello {
        role: Role::Peer,
        from: member.id,
        to: target.id,
        identity: member.identity,
        to_identity: target.identity,
        address: member.address.clone(),
        remembered: Remembered { identity: target.identity, term: FAR, index: FAR },
        ..Hello::of_client(target.cluster)
    };
    for _ in 0..20 {
        let reject = pose(&addresses[0], hello.clone()).expect_err("it is no member");
        assert_eq!(reject.code, RejectCode::Unproven, "{reject}");
    }
    assert!(status(&addresses[0]).expect("it serves").term < FAR, "no term comes of it");

    // The port of a dead member.
    let dead = 2;
    cluster.kill(dead);
    let listener = TcpListener::bind(&addresses[dead]).expect("its port is free");
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut told = 0;
    while told < 12 && Instant::now() < deadline {
        let (mut stream, _) = listener.accept().expect("it is dialed");
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let mut preamble = [0; PREAMBLE.len()];
        if stream.read_exact(&mut preamble).is_err() {
            continue;
        }
        let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
        let Some(first) = next_frame(&mut stream, &mut reader) else { continue };
        let (listening, challenge) = Listener::new(&first, &[2; 32]).expect("a hello");
        seen.extend_from_slice(&first);
        stream.write_all(&challenge).expect("it is taken");
        let Some(proof) = next_frame(&mut stream, &mut reader) else { continue };
        seen.extend_from_slice(&proof);
        let presented = listening.proof(&proof, TOKEN).expect("it knows the token");
        let hello = &presented.hello;
        let message = "so it is".to_owned();
        let answer = match told % 3 {
            0 => Err(Reject { code: RejectCode::Removed, message }),
            1 => Err(Reject { code: RejectCode::WrongIdentity, message }),
            _ => Ok(Welcome {
                version: 3,
                cluster: hello.cluster,
                node: hello.to,
                identity: hello.to_identity,
                leader: 0,
                leader_address: String::new(),
                remembered: Remembered { identity: hello.identity, term: FAR, index: FAR },
            }),
        };
        told += usize::from(hello.role == Role::Peer);
        stream.write_all(&presented.answer(&answer, keys().secret.as_ref())).expect("it is taken");
        // Nothing comes behind it: the connection is not used.
        reader.set_limit(1 << 20);
        if let Some(more) = next_frame(&mut stream, &mut reader) {
            panic!("{} bytes of kind {:#x} for who is no member", more.len(), more[0]);
        }
    }
    assert!(told >= 12, "it was dialed {told} times");
    let has = |what: &[u8]| seen.windows(what.len()).any(|window| window == what);
    assert!(!has(&TOKEN[..8]) && !has(&secret[..8]), "neither secret crosses the wire");
    assert!(seen.len() > 12 * FRAME_HEADER_BYTES);
    for (node, address) in addresses.iter().enumerate().filter(|(node, _)| *node != dead) {
        wait_for("the others serve", || status(address));
        assert!(!cluster.ended(node), "node {node} runs");
    }
    drop(listener);
    cluster.restart(dead);
    wait_for("the member is back", || status(&addresses[dead]));
    let log = (0..3).map(|node| cluster.log(node)).collect::<Vec<_>>().concat();
    let printed: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!log.contains("correct horse") && !log.contains(&printed[..16]), "no secret is logged");
    say("impostor", &format!("20 Hellos refused, {told} answers not believed"));
}

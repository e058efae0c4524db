//! Frames as a whole: round trips, damage of every kind, memory, and the examples of the docs.

use super::client::*;
use super::frame::*;
use super::handshake::*;
use super::peer::*;
use super::proof::{Dialer, Dialing, Greeting, Listener};
use super::samples;
use crate::kv::{Condition, Test};
use crate::kv::{Found, Op, OpResult, Outcome, Query, Reply, SessionStamp, Write};
use crate::raft::codec::{Input, Malformed, put_entry};
use crate::raft::{Body, Entry, Message, Payload};
use proptest::prelude::*;
use std::sync::Arc;

const CASES: u32 = 200;

/// The body of the one frame in `bytes`.
fn body_of(bytes: &[u8]) -> Vec<u8> {
    let mut reader = FrameReader::new(PEER_FRAME_MAX);
    reader.feed(bytes);
    let body = reader.next_frame().unwrap().unwrap().to_vec();
    assert_eq!(reader.next_frame(), Ok(None));
    assert_eq!(reader.finish(), Ok(()));
    body
}

/// Decodes a body as whatever its kind says and encodes that again; the error of its decoder.
fn recode(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::new();
    match body.first() {
        Some(&kind::HELLO) => put_hello(&mut out, &take_hello(body)?),
        Some(&(kind::WELCOME | kind::REJECT)) => {
            let mut input = Input(body);
            let answer = take_answer_fields(&mut input)?;
            input.end("handshake answer length")?;
            samples::put_answer(&mut out, &answer);
        }
        Some(kind::MESSAGE..=kind::ADMIN_ANSWER) => {
            put_peer_frame(&mut out, &take_peer_frame(body)?);
        }
        Some(&kind::REQUEST) => {
            put_request(&mut out, &take_request(body)?);
        }
        Some(&kind::RESPONSE) => put_response(&mut out, &take_response(body)?),
        _ => return Err(Malformed("kind")),
    }
    Ok(out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() })]

    /// Both ends of a handshake see the same hello and the same answer.
    #[test]
    fn handshakes_round_trip(hello in samples::hello(), answer in samples::handshake_answer()) {
        let mut out = Vec::new();
        put_hello(&mut out, &hello);
        prop_assert_eq!(take_hello(&body_of(&out)).unwrap(), hello);
        out.clear();
        samples::put_answer(&mut out, &answer);
        prop_assert_eq!(take_answer(&body_of(&out)).unwrap(), answer);
    }

    /// A node sees the request that the client made, and the client the node's response.
    #[test]
    fn calls_round_trip(request in samples::request(), response in samples::response()) {
        let mut out = Vec::new();
        let len = put_request(&mut out, &request);
        let body = body_of(&out);
        prop_assert_eq!(len, body.len());
        prop_assert_eq!(request_id(&body), request.id);
        prop_assert_eq!(take_request(&body).unwrap(), request);
        out.clear();
        put_response(&mut out, &response);
        prop_assert_eq!(take_response(&body_of(&out)).unwrap(), response);
    }

    /// Every message of the core arrives as it left, and a batch that was encoded for the log
    /// gives the very same frame.
    #[test]
    fn peer_frames_round_trip(frame in samples::peer_frame()) {
        let mut out = Vec::new();
        let len = put_peer_frame(&mut out, &frame);
        let body = body_of(&out);
        prop_assert_eq!(len, body.len());
        prop_assert_eq!(&take_peer_frame(&body).unwrap(), &frame);
        if let PeerFrame::Message(message) = &frame
            && let &Body::AppendEntries { prev_index, prev_term, commit, round, ref entries } = &message.body
        {
            prop_assert_eq!(append_len(entries), body.len());
            let &Message { from, to, term, .. } = message;
            let head = AppendHead { from, to, term, prev_index, prev_term, commit, round };
            let mut encoded = Vec::new();
            for entry in entries {
                put_entry(&mut encoded, entry);
            }
            let mut other = Vec::new();
            put_append_encoded(&mut other, &head, entries.len(), &encoded);
            prop_assert_eq!(other, out);
        }
    }

    /// A connection that breaks anywhere: a cut frame is waited for, never given out; a body that
    /// is cut (and sealed again by a liar) is refused at every length.
    #[test]
    fn every_cut_is_waited_for_or_refused(bytes in samples::any_frame()) {
        for len in 0..bytes.len() {
            let mut reader = FrameReader::new(PEER_FRAME_MAX);
            reader.feed(&bytes[..len]);
            prop_assert_eq!(reader.next_frame(), Ok(None));
            prop_assert_eq!(reader.finish().is_err(), len > 0);
        }
        let body = &bytes[FRAME_HEADER_BYTES..];
        for len in 0..body.len() {
            prop_assert!(recode(&body[..len]).is_err(), "length {}", len);
        }
        let longer = [body, &[0]].concat();
        prop_assert!(recode(&longer).is_err(), "a byte too many");
    }

    /// Bytes arrive in pieces of any size; the frames come out the same, and nothing is left.
    #[test]
    fn frames_come_out_however_they_are_cut(
        frames in proptest::collection::vec(samples::any_frame(), 1..6),
        piece in 1usize..64,
    ) {
        let stream = frames.concat();
        let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
        let mut bodies = Vec::new();
        for bytes in stream.chunks(piece) {
            reader.space()[..bytes.len()].copy_from_slice(bytes);
            reader.filled(bytes.len());
            while let Some(body) = reader.next_frame().unwrap() {
                bodies.push(body.to_vec());
            }
        }
        prop_assert_eq!(reader.finish(), Ok(()));
        let expected: Vec<_> = frames.iter().map(|f| f[FRAME_HEADER_BYTES..].to_vec()).collect();
        prop_assert_eq!(bodies, expected);
    }

    /// A body with a few bytes changed, sealed with a right CRC by a liar: refused, or taken for
    /// something that has exactly one form. Never a panic.
    #[test]
    fn a_mutated_body_is_refused_or_has_one_form(
        bytes in samples::any_frame(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut body = bytes[FRAME_HEADER_BYTES..].to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(again) = recode(&body) {
            let again = &again[FRAME_HEADER_BYTES..];
            // Two forms lose something on purpose: a later version's hello has fields that this
            // one does not know, and the sets of a configuration have no order.
            if !matches!(body[0], kind::HELLO | kind::MESSAGE) {
                prop_assert_eq!(again, &body);
            }
            prop_assert_eq!(&recode(again).unwrap()[FRAME_HEADER_BYTES..], again);
        }
    }

    /// A frame with one bit flipped never gives out a body: its CRC, its length or its bound stops
    /// it, or the reader waits for bytes that a longer length promised.
    #[test]
    fn a_flipped_bit_is_never_given_out(bytes in samples::any_frame(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = bytes;
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut reader = FrameReader::new(PEER_FRAME_MAX);
        reader.feed(&bytes);
        prop_assert!(!matches!(reader.next_frame(), Ok(Some(_))), "byte {}", at);
    }

    /// Noise in place of frames: an error or waiting, within the memory of what arrived.
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
        reader.feed(&noise);
        let _ = reader.preamble();
        while let Ok(Some(_)) = reader.next_frame() {}
        prop_assert!(reader.memory() <= 16 << 10);
        let _ = recode(&noise);
        for first in 0..0x30 {
            let _ = recode(&[&[first], &noise[..]].concat());
        }
    }
}

/// A stranger announces 4 GiB: refused from the eight bytes alone, with both numbers named, and
/// without memory for it. The largest frame allowed is waited for, one byte more is not.
#[test]
fn an_announced_giant_fails_at_once() {
    let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
    reader.feed(&[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
    let error = reader.next_frame().unwrap_err();
    assert_eq!(error.to_string(), "frame of 4294967295 bytes announced, the limit is 4096");
    assert!(reader.memory() <= 16 << 10);
    assert_eq!(reader.next_frame(), Err(error), "the error stays");

    for (more, refused) in [(0, false), (1, true)] {
        let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
        let announced = (CLIENT_FRAME_MAX + more) as u32;
        reader.feed(&announced.to_le_bytes());
        reader.feed(&[0; 4]);
        assert_eq!(reader.next_frame().is_err(), refused);
        assert!(reader.memory() <= 16 << 10, "memory comes with bytes, not with promises");
    }
}

/// Counts and lengths inside a body that promise more than there is are refused before memory is
/// taken: a list of four thousand million operations in a body of a few bytes.
#[test]
fn an_announced_list_beyond_the_body_is_refused() {
    let call = Call::Write(Write::default());
    let mut out = Vec::new();
    put_request(&mut out, &Request { id: 1, deadline_ms: 0, call });
    let mut body = body_of(&out);
    let len = body.len();
    body[len - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(take_request(&body), Err(Malformed("operation count")));
    assert_eq!(request_id(&body), 1, "the refusal can still name the request");
}

/// More operations than a write may have are refused although the body has them all.
#[test]
fn a_write_of_too_many_parts_is_refused() {
    for (more, refused) in [(0, false), (1, true)] {
        let ops = vec![Op::Delete { key: Vec::new() }; super::kv::WRITE_PARTS_MAX + more];
        let call = Call::Write(Write { ops, ..Write::default() });
        let mut out = Vec::new();
        put_request(&mut out, &Request { id: 1, deadline_ms: 0, call });
        assert_eq!(take_request(&body_of(&out)).is_err(), refused);
    }
}

/// One large frame passes; its memory is given back when the connection is quiet again.
#[test]
fn memory_for_a_large_frame_is_given_back() {
    let mut out = Vec::new();
    put_frame(&mut out, |out| out.resize(out.len() + CLIENT_FRAME_MAX, 7));
    let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
    let mut left = &out[..];
    let mut seen = 0;
    while !left.is_empty() {
        let space = reader.space();
        assert!(!space.is_empty());
        let len = space.len().min(left.len());
        space[..len].copy_from_slice(&left[..len]);
        reader.filled(len);
        left = &left[len..];
        assert!(reader.memory() <= CLIENT_FRAME_MAX + (64 << 10), "{}", reader.memory());
        while let Some(body) = reader.next_frame().unwrap() {
            seen += body.len();
        }
    }
    assert_eq!(seen, CLIENT_FRAME_MAX);
    reader.space();
    assert!(reader.memory() <= 256 << 10);
}

/// The preamble may trickle in; a wrong byte is named as soon as it is there.
#[test]
fn the_preamble_is_checked_byte_by_byte() {
    for len in 0..PREAMBLE.len() {
        let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
        reader.feed(&PREAMBLE[..len]);
        assert_eq!(reader.preamble(), Ok(false));
    }
    let check = |bytes: &[u8]| {
        let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
        reader.feed(bytes);
        reader.preamble()
    };
    assert_eq!(check(&PREAMBLE), Ok(true));
    assert_eq!(check(b"GET "), Err(FrameError::NotNative { position: 0 }));
    assert_eq!(check(b"\xF0KX"), Err(FrameError::NotNative { position: 2 }));
    assert_eq!(check(b"\xF0KTK\x02\0\0\0"), Err(FrameError::FrameVersion { version: 2 }));
    assert_eq!(check(b"\xF0KTK\x01\0\0\x01"), Err(FrameError::NotNative { position: 7 }));
}

/// Empty and damaged frames are told apart.
#[test]
fn an_empty_frame_and_a_bad_crc_are_refused() {
    let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
    reader.feed(&[0; 8]);
    assert_eq!(reader.next_frame(), Err(FrameError::Empty));
    let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
    reader.feed(&[1, 0, 0, 0, 0, 0, 0, 0, b'x']);
    let computed = crc32fast::hash(b"x");
    assert_eq!(reader.next_frame(), Err(FrameError::BadCrc { stated: 0, computed }));
}

/// An answer that no client would take is replaced: a read failed for its size, but of a write
/// nothing may be claimed.
#[test]
fn an_answer_beyond_the_bound_becomes_a_failure() {
    let value = vec![0; CLIENT_FRAME_MAX];
    let found = Some(Found { value, revision: 1 });
    let read = Answer::Reply(Reply::Value(found.clone()));
    let results = vec![OpResult::Got { found }];
    let write = Answer::Outcome(Outcome::Done { revision: 9, results });
    for (answer, class) in [(read, Class::TooLarge), (write, Class::Unknown)] {
        let mut out = vec![1, 2, 3];
        put_response(&mut out, &Response { id: 5, result: Ok(answer) });
        assert_eq!(out[..3], [1, 2, 3], "what was in the buffer stays");
        let response = take_response(&body_of(&out[3..])).unwrap();
        assert_eq!((response.id, response.result.unwrap_err().class), (5, class));
    }
}

/// What no sender may send is refused: entries with a gap, terms that shrink or pass the leader's,
/// numbers at the end of arithmetic, a message from nobody.
#[test]
fn impossible_messages_are_refused() {
    let entry = |index, term| Entry { index, term, payload: Payload::Noop };
    let append = |term, prev_index, entries| Message {
        from: 1,
        to: 2,
        term,
        body: Body::AppendEntries { prev_index, prev_term: 3, commit: 0, round: 0, entries },
    };
    let heartbeat = |from, term| {
        let body = Body::Heartbeat { commit: 0, commit_term: 0, round: 0 };
        Message { from, to: 2, term, body }
    };
    let cases = [
        (append(5, 7, vec![entry(8, 3), entry(9, 5)]), None),
        (append(5, 7, vec![entry(9, 3)]), Some("entry index")),
        (append(5, 7, vec![entry(8, 4), entry(8, 4)]), Some("entry index")),
        (append(5, 7, vec![entry(8, 2)]), Some("entry term")),
        (append(5, 7, vec![entry(8, 6)]), Some("entry term")),
        (append(5, POSITION_MAX, vec![entry(POSITION_MAX + 1, 5)]), Some("entry index")),
        (append(5, u64::MAX, vec![entry(0, 5)]), Some("previous index")),
        (heartbeat(1, u64::MAX), Some("term")),
        (heartbeat(0, 1), Some("message without sender or receiver")),
    ];
    for (message, refused) in cases {
        let mut out = Vec::new();
        put_message(&mut out, &message);
        let error = take_peer_frame(&body_of(&out)).err();
        assert_eq!(error, refused.map(Malformed), "{message:?}");
    }
}

/// Peers pass on what operators ask of a leader, and nothing else that clients ask.
#[test]
fn an_admin_frame_carries_nothing_but_what_a_leader_does() {
    let calls = [Call::Ping, Call::Compact, Call::Backup, Call::OpenSession];
    for call in calls {
        let mut out = Vec::new();
        put_peer_frame(&mut out, &PeerFrame::Admin(Admin { id: 1, deadline_ms: 1, call }));
        assert_eq!(take_peer_frame(&body_of(&out)).err(), Some(Malformed("admin call")));
    }
}

/// Numbers of classes are for ever.
#[test]
fn class_numbers_are_frozen() {
    let numbers: Vec<u8> = Class::ALL.iter().map(|c| c.number()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    for class in Class::ALL {
        assert_eq!(class.surely_not_applied(), class != Class::Unknown);
    }
}

/// The examples of docs/protocol.md, by name.
fn examples() -> Vec<(&'static str, Vec<u8>)> {
    let mut list: Vec<(&'static str, Vec<u8>)> = vec![("preamble", PREAMBLE.to_vec())];
    let mut add = |name, put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        list.push((name, out));
    };
    // A whole handshake: the client's random number counts up from 0, the node's from 32.
    let greeting = Greeting::of_client(Hello::of_client(0), b"raft");
    let (mut dialer, hello) = Dialer::new(greeting, std::array::from_fn(|i| i as u8));
    let nonce = std::array::from_fn(|i| 32 + i as u8);
    let (listener, challenge) = Listener::new(&hello[FRAME_HEADER_BYTES..], &nonce).unwrap();
    let heard = dialer.heard(&challenge[FRAME_HEADER_BYTES..]);
    let Ok(Dialing::Write(proof)) = heard else { panic!("{heard:?}") };
    let presented = listener.proof(&proof[FRAME_HEADER_BYTES..], b"raft").unwrap();
    let welcome = Ok(Welcome {
        version: 3,
        cluster: 0x0123_4567_89AB_CDEF,
        node: 2,
        identity: 0x1122,
        leader: 1,
        leader_address: "127.0.0.1:7101".into(),
        remembered: Remembered::default(),
    });
    let welcome = presented.answer(&welcome, None);
    for (name, frame) in
        [("hello", hello), ("challenge", challenge), ("proof", proof), ("welcome", welcome)]
    {
        add(name, &|out| out.extend_from_slice(&frame));
    }
    let reject = Reject { code: RejectCode::Token, message: "the token is wrong".into() };
    add("reject", &|out| put_reject(out, &reject));
    let put = Op::Put { key: b"city".to_vec(), value: b"Oslo".to_vec() };
    let write = Write {
        stamp: Some(SessionStamp { session: 9, sequence: 3, answered_below: 2 }),
        conditions: vec![Condition { key: b"city".to_vec(), test: Test::Absent }],
        ops: vec![put],
    };
    let write = Request { id: 1, deadline_ms: 5000, call: Call::Write(write) };
    add("write", &|out| {
        put_request(out, &write);
    });
    let done = Outcome::Done { revision: 12, results: vec![OpResult::Put] };
    let done = Response { id: 1, result: Ok(Answer::Outcome(done)) };
    add("outcome", &|out| put_response(out, &done));
    let get = Call::Query {
        query: Query::Get { key: b"city".to_vec() },
        consistency: Consistency::Linearizable,
    };
    let get = Request { id: 2, deadline_ms: 0, call: get };
    add("get", &|out| {
        put_request(out, &get);
    });
    let value = Reply::Value(Some(Found { value: b"Oslo".to_vec(), revision: 12 }));
    let value = Response { id: 2, result: Ok(Answer::Reply(value)) };
    add("value", &|out| put_response(out, &value));
    let failure = Failure {
        class: Class::Unavailable,
        message: "no leader".into(),
        leader: Some((1, "127.0.0.1:7101".into())),
    };
    let failure = Response { id: 3, result: Err(failure) };
    add("failure", &|out| put_response(out, &failure));
    let entry = Entry { index: 2, term: 1, payload: Payload::Command(Arc::from(&b"abc"[..])) };
    let body = Body::AppendEntries {
        prev_index: 1,
        prev_term: 1,
        commit: 1,
        round: 7,
        entries: vec![entry],
    };
    let append = Message { from: 1, to: 2, term: 1, body };
    add("append", &|out| {
        put_message(out, &append);
    });
    let body = Body::Heartbeat { commit: 2, commit_term: 1, round: 7 };
    let heartbeat = Message { from: 1, to: 2, term: 1, body };
    add("heartbeat", &|out| {
        put_message(out, &heartbeat);
    });
    let call = Call::Transfer { to: Some(2) };
    add("admin", &|out| {
        let admin = Admin { id: 9, deadline_ms: 5000, call: call.clone() };
        put_peer_frame(out, &PeerFrame::Admin(admin));
    });
    add("admin-answer", &|out| {
        let answer = AdminAnswer { id: 9, result: Ok(2) };
        put_peer_frame(out, &PeerFrame::AdminAnswer(answer));
    });
    add("ping", &|out| {
        put_peer_frame(out, &PeerFrame::Ping);
    });
    add("pong", &|out| {
        let address = "10.0.0.1:7101".to_string();
        put_peer_frame(out, &PeerFrame::Pong { leader: 1, address });
    });
    list
}

/// The bytes of the docs are the bytes of the code: each example, under its name, to the last byte.
#[test]
fn the_examples_of_the_docs_are_frozen() {
    let page = include_str!("../../docs/protocol.md");
    for (name, expected) in examples() {
        let marker = format!("<!-- example: {name} -->\n```hex\n");
        let (_, block) = page.split_once(&marker).unwrap_or_else(|| panic!("no example {name}"));
        let (block, _) = block.split_once("```").unwrap();
        let digits: String =
            block.lines().map(|line| line.split(';').next().unwrap().replace(' ', "")).collect();
        assert_eq!(digits.len() % 2, 0, "{name}");
        let bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
            .collect();
        assert_eq!(bytes, expected, "{name}");
    }
    let shown = page.matches("<!-- example: ").count();
    assert_eq!(shown, examples().len(), "every example of the page is checked");
}

/// A client keeps many small requests under way: reads become larger, so that all of them are heard soon. Then it
/// has few, and the memory is given back. A dialer that is not known yet gets no more than the first buffer.
#[test]
fn reads_grow_with_what_arrives_and_shrink_again() {
    let mut frame = Vec::new();
    put_request(&mut frame, &Request { id: 1, deadline_ms: 0, call: Call::Ping });
    let stream = || frame.iter().copied().cycle();
    let mut next = stream();
    let mut turn = |reader: &mut FrameReader, most: usize| {
        if reader.memory() == 0 {
            next = stream();
        }
        let space = reader.space();
        let len = space.len().min(most);
        space.iter_mut().take(len).for_each(|byte| *byte = next.next().unwrap());
        reader.filled(len);
        while reader.next_frame().unwrap().is_some() {}
        len
    };
    let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
    let lens: Vec<usize> = (0..8).map(|_| turn(&mut reader, usize::MAX)).collect();
    assert_eq!(lens[0], 4 << 10);
    assert!(lens.is_sorted() && lens[7] > 200 << 10, "{lens:?}");
    assert_eq!(reader.memory(), 256 << 10);
    for _ in 0..200 {
        turn(&mut reader, frame.len());
    }
    assert_eq!(reader.memory(), 4 << 10);
    let mut unknown = FrameReader::new(HANDSHAKE_FRAME_MAX);
    for _ in 0..8 {
        turn(&mut unknown, usize::MAX);
    }
    assert!(unknown.memory() <= 20 << 10, "{}", unknown.memory());
}

//! The dialects of clients, and the handshake.

use super::mutation::{Form, framed, pieces};
use super::{OUT_BYTES_MAX, Target, words};
use crate::api::NodeState;
use crate::api::tests::{Driver, Stopped, greeting, handshake, state, state_with_token};
use crate::kv::{Command, Op, OpResult, Outcome, decode_command};
use crate::node::{Answer, Refusal, Request, Verdict};
use crate::sim::dice::Dice;
use crate::wire::client::Response;
use crate::wire::frame::{CLIENT_FRAME_MAX, FRAME_HEADER_BYTES, FrameReader, PREAMBLE};
use crate::wire::handshake::Role;
use crate::wire::proof::Dialer;
use crate::wire::samples;
use std::sync::Arc;

/// Examples of a strategy that the codecs' tests use.
const EXAMPLES: usize = 60;

/// What a replica says. What it is asked for must be something that it can read.
fn answer(request: &Request) -> Answer {
    let bytes = match request {
        Request::Write(bytes) => bytes,
        Request::Read => return Answer::Read(Ok(())),
        Request::Status => return Answer::Status(Box::new(crate::api::tests::status(false))),
        Request::Transfer(_) => return Answer::Transfer(Ok(2)),
        Request::Change(_) => return Answer::Changed(Ok(4)),
        Request::Flush { .. } => return Answer::Flushed(Ok(1)),
    };
    let outcome = match decode_command(bytes).expect("a command that the log could hold") {
        Command::OpenSession => Outcome::SessionOpened { session: 5 },
        Command::CloseSession { .. } => Outcome::SessionUnknown,
        Command::ReleaseSession { .. } => Outcome::SessionReleased,
        Command::Write(write) if write.stamp.is_some() => Outcome::SessionUnknown,
        Command::Write(write) if write.ops.iter().all(|op| matches!(op, Op::Put { .. })) => {
            Outcome::Done { revision: 7, results: vec![OpResult::Put; write.ops.len()] }
        }
        Command::Write(write) if write.ops.iter().all(|op| matches!(op, Op::Delete { .. })) => {
            let deleted = OpResult::Deleted { existed: true };
            Outcome::Done { revision: 7, results: vec![deleted; write.ops.len()] }
        }
        _ => return Answer::Write(Verdict::NotApplied(Refusal::NoLeader)),
    };
    Answer::Write(Verdict::Applied(outcome))
}

/// Sends a stream in pieces; gives the connection and how it ended.
fn sent(state: &Arc<NodeState>, stream: &[u8], dice: &mut Dice) -> (Driver, Stopped) {
    let mut driver = Driver::new(Arc::clone(state), dice.chance(1, 20));
    driver.answer = answer;
    let mut stopped = driver.send(&[]);
    for piece in pieces(stream, dice) {
        if !matches!(stopped, Stopped::Reads(_)) {
            break;
        }
        stopped = driver.send(piece);
    }
    assert!(driver.out.len() <= OUT_BYTES_MAX, "{} bytes of answers", driver.out.len());
    assert_eq!(state.load.under_way(), 0);
    (driver, stopped)
}

/// The responses of a connection to a client that has sent its handshake along: none of it is looked at.
fn responses(driver: &mut Driver) -> Vec<Response> {
    let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
    reader.feed(&driver.out);
    let frame = |reader: &mut FrameReader| {
        reader.next_frame().unwrap().map_or(0, |body| FRAME_HEADER_BYTES + body.len())
    };
    let handshake = frame(&mut reader) + frame(&mut reader);
    driver.out.drain(..handshake);
    driver.responses()
}

fn end_of(stopped: &Stopped) -> String {
    match stopped {
        Stopped::Reads(_) => "reads".to_string(),
        other => words(&format!("{other:?}")),
    }
}

/// Frames behind a handshake.
pub(super) struct Native(Arc<NodeState>);

impl Target for Native {
    const NAME: &'static str = "native";
    const FORM: Form = Form::Body;

    fn examples() -> Vec<Vec<u8>> {
        samples::bodies(samples::request_frame(), EXAMPLES)
    }

    fn new() -> Native {
        Native(state())
    }

    fn take(&mut self, inputs: &[Vec<u8>], dice: &mut Dice) -> String {
        let stream = [handshake(b""), framed(inputs, dice)].concat();
        let (mut driver, stopped) = sent(&self.0, &stream, dice);
        // The handshake's two answers, and then only responses that a client can read.
        let responses = if driver.out.is_empty() { Vec::new() } else { responses(&mut driver) };
        let classes: Vec<String> = responses
            .iter()
            .map(|response| match &response.result {
                Ok(_) => "ok".to_string(),
                Err(failure) => words(&failure.message),
            })
            .collect();
        let last = classes.last().cloned().unwrap_or_default();
        format!("{}: {last}", end_of(&stopped))
    }
}

/// The Hello of one that does not know the token.
fn said(dice: &mut Dice) -> Vec<u8> {
    let role = *dice.pick(&[Role::Client, Role::Peer, Role::Snapshot]);
    Dialer::new(greeting(role, b"guess"), [4; 32]).1
}

/// What comes before anything is known of a dialer.
pub(super) struct Handshake(Arc<NodeState>);

impl Target for Handshake {
    const NAME: &'static str = "handshake";
    const FORM: Form = Form::Body;

    fn examples() -> Vec<Vec<u8>> {
        let mut bodies = samples::bodies(samples::handshake_frame(), EXAMPLES);
        // Hello and proof of one that knows it.
        let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
        reader.feed(&handshake(b"secret")[PREAMBLE.len()..]);
        while let Some(body) = reader.next_frame().unwrap() {
            bodies.push(body.to_vec());
        }
        bodies
    }

    fn new() -> Handshake {
        Handshake(state_with_token(b"secret"))
    }

    fn take(&mut self, inputs: &[Vec<u8>], dice: &mut Dice) -> String {
        // A right Hello brings it to the proof.
        let hello = if dice.chance(1, 2) { said(dice) } else { Vec::new() };
        let stream = [&PREAMBLE[..], &hello, &framed(inputs, dice)].concat();
        let (_, stopped) = sent(&self.0, &stream, dice);
        assert!(!matches!(stopped, Stopped::Peer), "nobody has proved anything");
        end_of(&stopped)
    }
}

/// Lines and arrays.
pub(super) struct Text(Arc<NodeState>);

impl Target for Text {
    const NAME: &'static str = "text";
    const FORM: Form = Form::Lines;

    fn examples() -> Vec<Vec<u8>> {
        let lines: [&[u8]; 14] = [
            b"PING\r\n",
            b"SET a 1\r\n",
            b"set \"a b\" 'c d'\n",
            b"GET a\r\n",
            b"DEL a b c\r\n",
            b"AUTH x\r\n",
            b"ECHO \"\\x41\\n\"\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$5\r\nvalue\r\n",
            b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n",
            b"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n",
            b"*0\r\n",
            b"COMMAND DOCS\r\n",
            b"QUIT\r\n",
        ];
        lines.iter().map(|line| line.to_vec()).collect()
    }

    fn new() -> Text {
        Text(state())
    }

    fn take(&mut self, inputs: &[Vec<u8>], dice: &mut Dice) -> String {
        let (driver, stopped) = sent(&self.0, &inputs.concat(), dice);
        let out = &driver.out;
        // A first line that names HTTP is answered as such.
        let whole = out.is_empty() || out.ends_with(b"\r\n") || out.starts_with(b"HTTP/");
        assert!(whole, "half an answer");
        let from = out[..out.len().saturating_sub(2)].iter().rposition(|&b| b == b'\n');
        let last = String::from_utf8_lossy(&out[from.map_or(0, |at| at + 1)..]).into_owned();
        format!("{}: {}", end_of(&stopped), words(last.trim_end()))
    }
}

/// Requests for pages.
pub(super) struct Http(Arc<NodeState>);

impl Target for Http {
    const NAME: &'static str = "http";
    const FORM: Form = Form::Lines;

    fn examples() -> Vec<Vec<u8>> {
        let requests: [&[u8]; 8] = [
            b"GET /health HTTP/1.1\r\nHost: host\r\n\r\n",
            b"HEAD /health/leader HTTP/1.0\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nOrigin: http://x\r\n\r\n",
            b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nSET a",
            b"GET http://host:1/health HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ];
        requests.iter().map(|request| request.to_vec()).collect()
    }

    fn new() -> Http {
        Http(state_with_token(b"secret"))
    }

    fn take(&mut self, inputs: &[Vec<u8>], dice: &mut Dice) -> String {
        // The first words decide that it is HTTP.
        let stream = [b"GET /health HTTP/1.1\r\n\r\n", &inputs.concat()[..]].concat();
        let (driver, stopped) = sent(&self.0, &stream, dice);
        assert!(driver.sets.iter().flatten().all(|r| !matches!(r, Request::Write(_))));
        let text = String::from_utf8_lossy(&driver.out);
        let codes: Vec<&str> = text.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
        let last = codes.last().map(|line| line.trim_end()).unwrap_or_default();
        format!("{}: {last}", end_of(&stopped))
    }
}

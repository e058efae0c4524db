//! Wrong words, used things, damaged files, bytes that mean nothing: each gets one clear error, and
//! nothing else happens.

use crate::support::cluster::{BINARY, Cluster, Setup, alone, free_ports, kontiki};
use crate::support::process::resident;
use crate::support::text::{Reply, Text, array};
use crate::support::{Dice, contents, http, say, wait_for};
use kontiki::client::Connection;
use kontiki::kv::{Op, Write as KvWrite};
use kontiki::wire::client::{Answer, Call, Class, NO_REQUEST, Request, put_request, take_response};
use kontiki::wire::frame::{
    FRAME_HEADER_BYTES, FrameReader, HANDSHAKE_FRAME_MAX, PREAMBLE, put_frame,
};
use kontiki::wire::handshake::{Hello, RejectCode, take_answer};
use kontiki::wire::proof::{Dialer, Dialing, Greeting};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

/// Rounds of all bad inputs, so that memory that is not given back shows.
const ROUNDS: usize = 20;
/// Rounds before memory is looked at: the allocator of the system keeps in each of its arenas (eight a
/// core) what one connection has needed, and threads take arenas in turn.
const ROUNDS_FIRST: usize = 40;
/// How much a node may grow meanwhile: buffers of some connections, never what was announced.
const GROWTH_MAX: u64 = 8 << 20;
/// One value above the largest, bytes.
const TOO_LARGE: usize = (1 << 20) + 1;

// ---- before it serves ----

fn serve(words: &[&str]) -> Output {
    kontiki(BINARY).arg("serve").args(words).output().expect("kontiki serve")
}

/// The one line that the process ended with.
fn complaint(ended: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "one line, not: {said}");
    said
}

#[test]
fn a_wrong_flag_names_the_nearest_one() {
    // Nothing is opened or made for it.
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let said = complaint(&serve(&["--data", &data.display().to_string(), "--lisen", "x:1"]), 2);
    assert!(said.contains("--lisen") && said.contains("did you mean --listen?"), "{said}");
    let said = complaint(&serve(&["--max-value", "many"]), 2);
    assert!(said.contains("flag --max-value"), "{said}");
    assert!(!data.exists());
    say("bad_input", &format!("a wrong flag: {}", said.trim()));
}

#[test]
fn what_is_in_use_is_refused() {
    // A port, then a data directory; the node that has them does not notice.
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let other = cluster.dir.path().join("other");
    let (other, own) = (other.display().to_string(), node.data.display().to_string());
    let said = complaint(&serve(&["--data", &other, "--listen", &node.address]), 3);
    assert!(said.contains("cannot listen on") && said.contains(&node.address), "{said}");
    assert!(!Path::new(&other).exists(), "nothing is made for a node that cannot listen");
    say("bad_input", &format!("a used port: {}", said.trim()));
    let address = format!("127.0.0.1:{}", free_ports(1)[0]);
    let said = complaint(&serve(&["--data", &own, "--listen", &address]), 3);
    assert!(said.contains("in use") && said.contains(&own), "{said}");
    // Somebody takes the lock for a remnant and removes it. Windows does not let him.
    if fs::remove_file(Path::new(&own).join("lock")).is_ok() {
        let said = complaint(&serve(&["--data", &own, "--listen", &address]), 3);
        assert!(said.contains("in use") && said.contains(&own), "{said}");
    }
    say("bad_input", &format!("a used directory: {}", said.trim()));
    assert_eq!(http::status(&node.address, "/health"), Some(200));
}

/// Every file below a directory with the hash of its content.
fn hashes(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let hash = |bytes: Vec<u8>| {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        hasher.finish()
    };
    contents(dir).into_iter().map(|(path, bytes)| (path, hash(bytes))).collect()
}

#[test]
fn a_flipped_byte_in_the_log_is_found_and_left_alone() {
    // One byte in the middle of the log: the node names file and offset, changes nothing on disk, and
    // starts again when the byte is put right.
    let mut cluster = Cluster::start(1);
    let mut client = Text::connect(&cluster.nodes[0].address).expect("a connection");
    for n in 0..200 {
        assert_eq!(client.line(&format!("SET damaged-{n:03} value")).unwrap(), Reply::ok());
    }
    cluster.kill(0);
    let log = cluster.nodes[0].data.join("log");
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).expect("a log file");
        bytes.windows(11).position(|window| window == b"damaged-100").map(|at| (bytes, at))
    };
    let (path, (mut bytes, at)) = hashes(&log)
        .into_keys()
        .find_map(|path| holds(&path).map(|found| (path, found)))
        .expect("the write is in the log");
    bytes[at] ^= 1;
    fs::write(&path, &bytes).expect("the log file");
    let before = hashes(&cluster.nodes[0].data);
    let begun = Instant::now();
    let words = cluster.words(0);
    let ended = kontiki(BINARY).args(&words).output().expect("kontiki serve");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(3), "{said}");
    let said = said.lines().last().unwrap_or_default();
    assert!(said.contains(&path.display().to_string()), "{said}");
    // The offset is that of the batch that holds the byte.
    let offset = said.split("offset ").nth(1).and_then(|rest| rest.split(':').next());
    let offset: usize = offset.and_then(|o| o.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    assert!(offset <= at && at - offset < 1 << 16, "{at} is not in the batch at {offset}");
    assert_eq!(hashes(&cluster.nodes[0].data), before, "nothing is changed on disk");
    say("bad_input", &format!("a flipped byte, in {:?}: {said}", begun.elapsed()));
    bytes[at] ^= 1;
    fs::write(&path, &bytes).expect("the log file");
    cluster.restart(0);
    let mut client = Text::connect(&cluster.nodes[0].address).expect("a connection");
    assert_eq!(client.line("GET damaged-199").unwrap(), Reply::bulk(b"value"));
}

// ---- on the port ----

/// A client's side of a handshake: what it writes behind the challenge is still to be written.
fn handshake(stream: &mut TcpStream) -> Vec<u8> {
    let greeting = Greeting::of_client(Hello::of_client(0), b"");
    let (mut dialer, hello) = Dialer::new(greeting, [1; 32]);
    stream.write_all(&[&PREAMBLE[..], &hello].concat()).expect("a hello");
    let mut challenge = vec![0; FRAME_HEADER_BYTES + 1 + 2 + 32];
    stream.read_exact(&mut challenge).expect("a challenge");
    match dialer.heard(&challenge[FRAME_HEADER_BYTES..]) {
        Ok(Dialing::Write(proof)) => proof,
        other => panic!("a challenge, not {other:?}"),
    }
}

/// Sends bytes behind a handshake and gives all that comes back until the end.
fn answer_behind(address: &str, bytes: &[u8], close: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let proof = handshake(&mut stream);
    answer_on(stream, &[&proof, bytes].concat(), close)
}

/// Sends bytes on a connection of their own and gives all that comes back until the end.
fn answer_to(address: &str, bytes: &[u8], close: bool) -> Vec<u8> {
    answer_on(TcpStream::connect(address).expect("a connection"), bytes, close)
}

fn answer_on(mut stream: TcpStream, bytes: &[u8], close: bool) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    // The other side may close before it has taken everything.
    let _ = stream.write_all(bytes);
    if close {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return answer,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            // Closed with bytes of ours unread: the end as well.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return answer,
            Err(e) => panic!("no end after {} bytes: {e}", answer.len()),
        }
    }
}

/// The bodies of the frames in an answer.
fn frames(answer: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
    reader.feed(answer);
    let mut bodies = Vec::new();
    while let Some(body) = reader.next_frame().expect("sound frames") {
        bodies.push(body.to_vec());
    }
    bodies
}

fn one_line(answer: &[u8], begin: &str) {
    let text = String::from_utf8_lossy(answer);
    let fine = text.starts_with(begin) && text.ends_with("\r\n") && text.lines().count() == 1;
    assert!(fine, "one line that begins {begin:?}, not {text:?}");
}

/// The message of the one Reject.
fn rejected(answer: &[u8]) -> String {
    match &frames(answer)[..] {
        [body] => {
            let reject = take_answer(body).expect("a handshake's answer").expect_err("a reject");
            assert_eq!(reject.code, RejectCode::Malformed, "{}", reject.message);
            reject.message
        }
        other => panic!("one frame, not {other:?}"),
    }
}

/// The message of the one failure behind the welcome that is about the connection.
fn failed(answer: &[u8]) -> String {
    match &frames(answer)[..] {
        [welcome, body] => {
            assert!(take_answer(welcome).is_ok_and(|answer| answer.is_ok()), "a welcome");
            let response = take_response(body).expect("a response");
            let failure = response.result.expect_err("a failure");
            assert_eq!((response.id, failure.class), (NO_REQUEST, Class::Invalid));
            failure.message
        }
        other => panic!("a welcome and one frame, not {other:?}"),
    }
}

fn all_bad_inputs(address: &str, dice: &mut Dice) -> Vec<String> {
    let mut said = Vec::new();
    // Bytes that mean nothing, one line of them, and without any line.
    let mut garbage: Vec<u8> = (0..100_000).map(|_| 0x80 | dice.below(64) as u8).collect();
    one_line(&answer_to(address, &garbage, true), "-ERR Protocol error: ");
    garbage.truncate(100);
    garbage.push(b'\n');
    one_line(&answer_to(address, &garbage, true), "-ERR unknown command ");

    // Four gigabytes, announced in each dialect.
    one_line(
        &answer_to(address, b"*2\r\n$3\r\nGET\r\n$4294967296\r\n", false),
        "-ERR Protocol error: ",
    );
    one_line(&answer_to(address, b"*4294967295\r\n", false), "-ERR Protocol error: ");
    let mut huge = PREAMBLE.to_vec();
    huge.extend_from_slice(&[0xff; 8]);
    said.push(format!("4 GiB as the first frame: {}", rejected(&answer_to(address, &huge, false))));
    let mut huge = Vec::new();
    huge.extend_from_slice(&[0xff; 8]);
    said.push(format!(
        "4 GiB after the handshake: {}",
        failed(&answer_behind(address, &huge, false))
    ));

    // A frame with a wrong checksum, one of no kind, and one that ends too early.
    let mut wrong = Vec::new();
    let at = wrong.len();
    let call = Call::Ping;
    put_request(&mut wrong, &Request { id: 7, deadline_ms: 0, call });
    wrong[at + 4] ^= 1;
    said.push(format!("a wrong checksum: {}", failed(&answer_behind(address, &wrong, false))));
    let mut odd = Vec::new();
    put_frame(&mut odd, |body| body.extend_from_slice(&[0x77, 1, 2, 3]));
    said.push(format!("a frame of no kind: {}", failed(&answer_behind(address, &odd, false))));
    let mut torn = Vec::new();
    let put = Op::Put { key: b"torn".to_vec(), value: vec![b'x'; 1000] };
    let call = Call::Write(KvWrite { ops: vec![put], ..KvWrite::default() });
    put_request(&mut torn, &Request { id: 7, deadline_ms: 0, call });
    torn.truncate(torn.len() - 500);
    assert_eq!(
        frames(&answer_behind(address, &torn, true)).len(),
        1,
        "the welcome and nothing else"
    );

    // A value above the limit, in both dialects. The native connection goes on.
    let value = vec![b'x'; TOO_LARGE];
    let answer = answer_to(address, &array(&[b"SET", b"large", &value]), true);
    one_line(&answer, "-ERR Protocol error: invalid bulk length");
    let until = Instant::now() + Duration::from_secs(10);
    let mut native = Connection::dial(address, b"", 0, Duration::from_secs(5)).expect("native");
    let mut ask = |call| {
        native.send(&mut Request { id: 0, deadline_ms: 0, call }).expect("it fits a frame");
        native.flush(until).expect("it is sent");
        native.receive(until).expect("an answer").expect("in time").result
    };
    let put = Op::Put { key: b"large".to_vec(), value };
    let refused = ask(Call::Write(KvWrite { ops: vec![put], ..KvWrite::default() }));
    let refused = refused.expect_err("too large");
    assert_eq!(refused.class, Class::TooLarge, "{}", refused.message);
    said.push(format!("a value too large: {}", refused.message));
    assert_eq!(ask(Call::Ping), Ok(Answer::Pong));
    said
}

#[test]
fn bytes_without_meaning_cost_one_connection_and_no_memory() {
    // Garbage, announcements of 4 GiB, torn frames, values too large, again and again: each is
    // answered once, somebody else is served all the while, and memory does not grow.
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    let address = &cluster.nodes[leader].address;
    let mut polite = Text::connect(address).expect("a connection");
    let mut dice = Dice::new(1);
    let serve = |polite: &mut Text, n: usize| {
        assert_eq!(polite.line(&format!("SET polite {n}")).unwrap(), Reply::ok());
        let read = polite.line("GET polite").unwrap();
        assert_eq!(read, Reply::Bulk(n.to_string().into_bytes()));
    };
    let mut said = Vec::new();
    for _ in 0..ROUNDS_FIRST {
        said = all_bad_inputs(address, &mut dice);
        serve(&mut polite, 0);
    }
    let before = resident(cluster.pid(leader));
    for n in 1..=ROUNDS {
        all_bad_inputs(address, &mut dice);
        serve(&mut polite, n);
    }
    assert_eq!(polite.line("GET torn").unwrap(), Reply::Nil);
    assert_eq!(polite.line("GET large").unwrap(), Reply::Nil);
    assert_eq!(cluster.leader(), leader, "nobody lost the leadership for it");
    let after = resident(cluster.pid(leader));
    said.iter().for_each(|line| say("bad_input", line));
    match before.zip(after) {
        Some((before, after)) => {
            say("bad_input", &format!("memory: {} KiB, then {} KiB", before >> 10, after >> 10));
            assert!(after < before + GROWTH_MAX, "from {before} to {after} bytes");
        }
        None => say("bad_input", "memory: this system does not tell it"),
    }
}

#[test]
fn a_client_cannot_flood_the_log() {
    // A client breaks the protocol some hundred times. Each connection ends with a line of the log, of which
    // a burst is written and then one a second, with the number of those that were not.
    let cluster = Cluster::start(1);
    let began = Instant::now();
    let mut garbage = Vec::new();
    put_frame(&mut garbage, |body| body.extend_from_slice(&[0x77, 1, 2, 3]));
    let times = 400;
    for _ in 0..times {
        failed(&answer_behind(&cluster.nodes[0].address, &garbage, false));
    }
    let closed = |log: &str| log.lines().filter(|line| line.contains("closed: ")).count();
    let lines = closed(&cluster.log(0));
    let most = 32 + began.elapsed().as_secs() as usize;
    assert!(lines >= 10 && lines <= most && most < times, "{lines} lines, {most} at most");
    // The next one, in a second or so, says how many there were.
    wait_for("the log says what it left out", || {
        failed(&answer_behind(&cluster.nodes[0].address, &garbage, false));
        cluster.log(0).contains("more like this were not logged").then_some(())
    });
    say("bad_input", &format!("{times} connections that make no sense: {lines} lines"));
}

#[test]
fn a_wrong_token_opens_nothing() {
    // A node with a token, asked without, with a wrong one, and with the right one, in each dialect.
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    fs::write(&file, "correct horse\n").expect("the token");
    let flags = vec!["--token-file".to_owned(), file.display().to_string()];
    let cluster = Cluster::with(1, Setup { flags, ..Setup::default() });
    let address = &cluster.nodes[0].address;
    let mut client = Text::connect(address).expect("a connection");
    assert!(client.line("SET key value").unwrap().is_error("NOAUTH"));
    assert!(client.line("AUTH wrong").unwrap().is_error("WRONGPASS"));
    assert!(client.line("GET key").unwrap().is_error("NOAUTH"));
    assert_eq!(client.line("AUTH \"correct horse\"").unwrap(), Reply::ok());
    assert_eq!(client.line("GET key").unwrap(), Reply::Nil);
    let dial = |token: &[u8]| Connection::dial(address, token, 0, Duration::from_secs(5));
    for token in [&b""[..], b"wrong"] {
        let error = dial(token).expect_err("the token is wrong");
        assert_eq!(error.class, Class::Unauthorised, "{error}");
    }
    dial(b"correct horse").expect("the right token");
    let cli = |words: &[&str]| cluster.cli().args(words).output().expect("kontiki cli");
    let ended = cli(&["get", "key"]);
    assert_eq!(ended.status.code(), Some(6), "{}", String::from_utf8_lossy(&ended.stderr));
    let ended = cli(&["--token-file", &file.display().to_string(), "get", "key"]);
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    say("bad_input", "a wrong token: NOAUTH, WRONGPASS, a reject, exit code 6");
}

#[test]
fn a_node_beyond_loopback_wants_a_token() {
    let _one = alone();
    let port = free_ports(1)[0].to_string();
    let listen = format!("0.0.0.0:{port}");
    let advertise = format!("127.0.0.1:{port}");
    let said = complaint(&serve(&["--listen", &listen, "--advertise", &advertise]), 2);
    assert!(said.contains("--token-file"), "{said}");
    wait_for("the port is free", || std::net::TcpListener::bind(&advertise).ok());
}

//! Connections without sockets: bytes go in, a made-up replica answers, bytes come out.

mod room;

use super::*;
use crate::kv::{
    Command, Committed, Found, Limits, LsmStore, Machine, Op, OpResult, Outcome, Query,
    Reply as KvReply, StoreOptions, Write, decode_command, encode_command,
};
use crate::node::{
    ClusterView, Node, PeersOptions, Refusal, Replica, ReplicaOptions, Status, Verdict, to_keep,
};
use crate::raft::{self, Configuration, HardState, Member, Raft, Restored, RestoredLog, RoleName};
use crate::wal::testdisk::TestDisk;
use crate::wal::{self, Identity, Wal};
use crate::wire::client::{
    self as wire, Answer as Reply, Call, Change, Class, Consistency, Response, put_request,
    take_response,
};
use crate::wire::frame::{FRAME_HEADER_BYTES, PREAMBLE};
use crate::wire::handshake::{Lane, RejectCode, Role, take_answer};
use crate::wire::proof::{Dialer, Dialing, Greeting, Listener, Secret};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

const NONCE: [u8; 32] = [3; 32];
const STEPS_MAX: usize = 1 << 20;
pub(crate) const SECRET: Secret = Secret { bytes: [5; 32], sealed: true };
/// The one key of the store, and how long its value is.
pub(crate) const BIG_KEY: &[u8] = b"big";
pub(crate) const BIG_VALUE_BYTES: usize = 100 << 10;

/// Node 1 of a cluster of two, whose node 2 is at `address`, and what its connections look at.
pub(crate) fn node_of_two<C: Clone>(
    address: &str,
    connections_max: usize,
    now_us: u64,
) -> (NodeState, Node<C>) {
    let member = |id, address: &str| Member { id, identity: 0, address: address.to_string() };
    let members = vec![member(1, "host:1"), member(2, address)];
    let options =
        wal::Options { segment_bytes: wal::SEGMENT_BYTES_MIN, identity: 1, must_exist: false };
    let (log, _) = Wal::open(TestDisk::default().shared(), Path::new("/log"), options).unwrap();
    let store =
        LsmStore::open(TestDisk::default().shared(), Path::new("/store"), StoreOptions::new(1));
    let mut machine = Machine::open(store.unwrap().0).unwrap();
    let op = Op::Put { key: BIG_KEY.to_vec(), value: vec![b'v'; BIG_VALUE_BYTES] };
    let mut put = Vec::new();
    encode_command(&Command::Write(Write { ops: vec![op], ..Write::default() }), &mut put);
    machine.apply([(1, Committed::Command(&put))]).unwrap();
    let first = Arc::new(Configuration::of_voters(7, members.clone()));
    let (runs, configurations) = (Vec::new(), vec![(0, first)]);
    let restored_log = RestoredLog { base: 0, base_term: 0, runs, last: 0, configurations };
    let restored = Restored { hard_state: HardState::default(), log: restored_log, applied: 0 };
    let replica_options = ReplicaOptions {
        inflight_bytes_max: 1 << 20,
        limits: Limits::default(),
        batch_bytes_max: 1 << 20,
        identity: 11,
        wal_limit_bytes: 1 << 30,
        members_max: crate::node::MEMBERS_MAX,
        address: "host:1".to_string(),
    };
    let peers_options = PeersOptions {
        identity: 11,
        address: "host:1".to_string(),
        token: Vec::new(),
        secret: SECRET,
        seeds: Vec::new(),
    };
    let core = Raft::new(raft::Options::new(1, 1), restored, now_us);
    let node = Node::new(Replica::new(core, replica_options), peers_options, now_us);
    let identity = Identity {
        cluster: 7,
        node: 1,
        identity: 11,
        created: true,
        restoring: false,
        removed: false,
        denied: false,
        advertise: "host:1".to_string(),
        members,
        secret: Some(to_keep(SECRET)),
    };
    let state = NodeState {
        address: "host:1".to_string(),
        connections_set: connections_max,
        connections_max: AtomicUsize::new(connections_max),
        ..NodeState::of(&identity, machine.reader(), log.reader(), ClusterView::of(&node))
    };
    (state, node)
}

/// What the connections of such a node look at.
pub(crate) fn state() -> Arc<NodeState> {
    Arc::new(node_of_two::<u64>("host:2", 10, 0).0)
}

pub(crate) fn state_with_token(token: &[u8]) -> Arc<NodeState> {
    Arc::new(NodeState { token: token.to_vec(), ..node_of_two::<u64>("host:2", 10, 0).0 })
}

/// A client of one connection, and the replica behind it.
pub(crate) struct Driver {
    connection: Connection,
    /// What the node has written.
    pub(crate) out: Vec<u8>,
    /// What was put to the replica, set by set.
    pub(crate) sets: Vec<Vec<Request>>,
    /// Answers that were written by who brought the last of them.
    pub(crate) direct: usize,
    pub(crate) answer: fn(&Request) -> Answer,
    answerer: Option<Answerer>,
    /// How long it was to do nothing.
    pub(super) rested_us: u64,
    /// How often it was looked at whether the client is there.
    checks: usize,
}

/// What stops a driver.
#[derive(Debug, PartialEq)]
pub(crate) enum Stopped {
    Reads(Option<u64>),
    Closed(Option<String>),
    Refused(RejectCode),
    Peer,
}

/// A replica at which everything succeeds.
fn fine(request: &Request) -> Answer {
    match request {
        Request::Write(bytes) => {
            // A delete finds its key.
            let Ok(Command::Write(write)) = decode_command(bytes) else { panic!("{bytes:?}") };
            let result = |op: &Op| match op {
                Op::Delete { key } => OpResult::Deleted { existed: key == b"gone" },
                _ => OpResult::Put,
            };
            let results = write.ops.iter().map(result).collect();
            Answer::Write(Verdict::Applied(Outcome::Done { revision: 9, results }))
        }
        Request::Read => Answer::Read(Ok(())),
        Request::Status => Answer::Status(Box::new(status(true))),
        Request::Transfer(_) => Answer::Transfer(Ok(2)),
        Request::Change(_) => Answer::Changed(Ok(4)),
        Request::Flush { .. } => Answer::Flushed(Ok(1)),
    }
}

pub(crate) fn status(leads_and_knows: bool) -> Status {
    let member = |id| Member { id, identity: id, address: format!("host:{id}") };
    Status {
        id: 1,
        role: RoleName::Leader,
        hurt: false,
        repairing: false,
        leads_and_knows,
        leader: Some(1),
        term: 4,
        commit: 3,
        applied: 2,
        last_index: 5,
        configuration: Arc::new(Configuration::of_voters(7, vec![member(1), member(2)])),
        peers: Vec::new(),
    }
}

impl Driver {
    pub(crate) fn new(state: Arc<NodeState>, over_cap: bool) -> Driver {
        Driver {
            connection: Connection::new(state, over_cap, NONCE, 0),
            out: Vec::new(),
            sets: Vec::new(),
            direct: 0,
            answer: fine,
            answerer: None,
            rested_us: 0,
            checks: 0,
        }
    }

    /// One that has said hello.
    pub(super) fn native(state: Arc<NodeState>) -> Driver {
        let mut driver = Driver::new(state, false);
        driver.present(greeting(Role::Client, b""));
        let welcome = take_answer(&driver.body()).unwrap().unwrap();
        assert_eq!((welcome.node, welcome.identity, welcome.cluster), (1, 11, 7));
        driver
    }

    /// Says Hello, and shows what there is to show.
    fn present(&mut self, greeting: Greeting) -> Stopped {
        let (mut dialer, hello) = Dialer::new(greeting, [4; 32]);
        self.send(&[&PREAMBLE[..], &hello].concat());
        let Ok(Dialing::Write(proof)) = dialer.heard(&self.body()) else { panic!("no challenge") };
        self.send(&proof)
    }

    /// The body of the one frame that was written.
    fn body(&mut self) -> Vec<u8> {
        let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
        reader.feed(&std::mem::take(&mut self.out));
        reader.next_frame().unwrap().unwrap().to_vec()
    }

    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> Stopped {
        for _ in 0..STEPS_MAX {
            match self.connection.next(5) {
                Step::Read { until_us } if bytes.is_empty() => return Stopped::Reads(until_us),
                Step::Read { .. } => {
                    let space = self.connection.space();
                    let n = space.len().min(bytes.len());
                    space[..n].copy_from_slice(&bytes[..n]);
                    self.connection.filled(n);
                    bytes = &bytes[n..];
                }
                Step::Write(bytes) => {
                    assert!(!bytes.is_empty());
                    self.out.extend_from_slice(&bytes);
                    self.connection.written(bytes);
                }
                Step::Submit { requests, direct } => {
                    let requests: Vec<Request> = requests.into_iter().map(|(_, r)| r).collect();
                    let answers: Vec<Answer> = requests.iter().map(self.answer).collect();
                    self.sets.push(requests);
                    match direct {
                        // Both ways say the same.
                        Some(encode) if self.sets.len().is_multiple_of(2) => {
                            self.connection.answered_there();
                            self.out.extend(encode(answers));
                            self.direct += 1;
                        }
                        _ => self.connection.answered(answers, 5),
                    }
                }
                Step::Check => self.checks += 1,
                Step::Rest { us, .. } => self.rested_us += us,
                Step::Look { .. } => self.connection.looked(self.answerer.clone()),
                Step::Unreadable(e) => panic!("{e}"),
                Step::Refuse { reject, .. } => return Stopped::Refused(reject.code),
                Step::Peer { .. } => return Stopped::Peer,
                Step::Close { why } => return Stopped::Closed(why),
            }
        }
        panic!("it goes round in a circle")
    }

    pub(crate) fn responses(&mut self) -> Vec<Response> {
        let mut reader = FrameReader::new(CLIENT_FRAME_MAX);
        reader.feed(&std::mem::take(&mut self.out));
        let mut all = Vec::new();
        while let Some(body) = reader.next_frame().unwrap() {
            all.push(take_response(body).unwrap());
        }
        reader.finish().unwrap();
        all
    }

    pub(super) fn text(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.out)).unwrap()
    }
}

/// All that a client writes in a handshake: the nodes of these tests always give the same challenge.
pub(crate) fn handshake(token: &[u8]) -> Vec<u8> {
    let (mut dialer, hello) = Dialer::new(greeting(Role::Client, token), [4; 32]);
    let challenge = Listener::new(&hello[FRAME_HEADER_BYTES..], &NONCE).unwrap().1;
    let heard = dialer.heard(&challenge[FRAME_HEADER_BYTES..]);
    let Ok(Dialing::Write(proof)) = heard else { panic!("{heard:?}") };
    [&PREAMBLE[..], &hello, &proof].concat()
}

pub(crate) fn greeting(role: Role, token: &[u8]) -> Greeting {
    let from = if role.is_node() { 2 } else { 0 };
    let hello = Hello { role, from, lane: Lane::Control, ..Hello::of_client(7) };
    Greeting::of_client(hello, token)
}

pub(super) fn request(id: u64, call: Call) -> Vec<u8> {
    let mut out = Vec::new();
    put_request(&mut out, &wire::Request { id, deadline_ms: 0, call });
    out
}

pub(super) fn put(key: &str) -> Call {
    let op = Op::Put { key: key.as_bytes().to_vec(), value: b"v".to_vec() };
    Call::Write(Write { ops: vec![op], ..Write::default() })
}

pub(super) fn get(key: &[u8], consistency: Consistency) -> Call {
    Call::Query { query: Query::Get { key: key.to_vec() }, consistency }
}

/// Requests that arrive together are one set, the read index for all reads last; each is answered in
/// its place. What needs nobody is not put to the replica.
#[test]
fn what_arrives_together_is_one_set() {
    let mut client = Driver::native(state());
    let calls = [
        put("a"),
        get(BIG_KEY, Consistency::Linearizable),
        Call::Ping,
        get(b"none", Consistency::Stale),
        put("b"),
        get(b"none", Consistency::Linearizable),
        Call::Members,
    ];
    let bytes: Vec<u8> = (1..).zip(calls).flat_map(|(id, call)| request(id, call)).collect();
    assert_eq!(client.send(&bytes), Stopped::Reads(None));
    assert_eq!(client.sets.len(), 1);
    let kinds: Vec<_> = client.sets[0].iter().map(std::mem::discriminant).collect();
    let wanted = [&Request::Write(Arc::from([])), &Request::Status, &Request::Read];
    let [write, status, read] = wanted.map(std::mem::discriminant);
    assert_eq!(kinds, [write, write, status, read]);
    let responses = client.responses();
    assert_eq!(responses.iter().map(|r| r.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    let found = |response: &Response| match &response.result {
        Ok(Reply::Reply(KvReply::Value(found))) => found.as_ref().map(|f: &Found| f.value.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(found(&responses[1]), Some(BIG_VALUE_BYTES));
    assert_eq!((found(&responses[3]), found(&responses[5])), (None, None));
    assert_eq!(responses[2].result, Ok(Reply::Pong));
    assert!(matches!(&responses[6].result, Ok(Reply::Members(m)) if m.members.len() == 2));
}

/// However the bytes are cut, the client gets the same: in all three dialects.
#[test]
fn the_answers_do_not_depend_on_how_the_bytes_arrive() {
    let native: Vec<u8> = [put("a"), get(BIG_KEY, Consistency::Linearizable), put("b"), Call::Ping]
        .into_iter()
        .zip(1..)
        .flat_map(|(call, id)| request(id, call))
        .collect();
    let native = [handshake(b""), native].concat();
    let text =
        b"SET a 1\r\nset b 2\r\nGET none\r\nDEL gone\r\n*1\r\n$4\r\nPING\r\nNONSENSE\r\nGET x\r\n";
    let http =
        b"GET /health HTTP/1.1\r\n\r\nGET /health/leader HTTP/1.1\r\n\r\nHEAD /no HTTP/1.1\r\n\r\n";
    for stream in [&native[..], text, http] {
        let mut whole = Driver::new(state(), false);
        whole.send(stream);
        assert!(whole.out.len() > 40);
        for step in [1, 2, 7, 64] {
            let mut cut = Driver::new(state(), false);
            for piece in stream.chunks(step) {
                assert!(matches!(cut.send(piece), Stopped::Reads(_)));
            }
            assert_eq!(cut.out, whole.out, "{step} bytes at a time");
        }
    }
}

/// Commands of one connection take effect in their order: a run of writes is one write, since several under
/// way have no order; then comes a run of reads. The last write need not wake the connection's thread.
#[test]
fn text_commands_take_effect_in_their_order() {
    let mut client = Driver::new(state(), false);
    client.send(b"SET a 1\r\nSET b 2\r\nGET none\r\nGET big\r\nPING\r\nDEL gone\r\n");
    let lengths: Vec<usize> = client.sets.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1, 1, 1]);
    let big = "v".repeat(BIG_VALUE_BYTES);
    let wanted = format!("+OK\r\n+OK\r\n$-1\r\n${BIG_VALUE_BYTES}\r\n{big}\r\n+PONG\r\n:1\r\n");
    assert_eq!(client.text(), wanted);
    assert_eq!(client.direct, 0, "answers to what came before would be overtaken");
    client.send(b"SET c 3\r\nSET d 4\r\n");
    assert_eq!((client.direct, client.text().as_str()), (1, "+OK\r\n+OK\r\n"));
    client.send(b"DEL gone none gone\r\nDEL none\r\nPING\r\nDEL gone\r\nSET e 5\r\n");
    assert_eq!(client.text(), ":2\r\n:0\r\n+PONG\r\n:1\r\n+OK\r\n");
    let sets = client.sets.len();
    client.send(format!("SET f {0}\r\n", "x".repeat(60 << 10)).repeat(3).as_bytes());
    assert_eq!((client.sets.len(), client.text().as_str()), (sets + 3, "+OK\r\n+OK\r\n+OK\r\n"));
    assert_eq!(client.send(b"GET none\r\nQUIT\r\nGET none\r\n"), Stopped::Closed(None));
    assert_eq!(client.text(), "$-1\r\n+OK\r\n");
}

/// A person must show the token before anything is done, and in time. Each wrong one costs a pause.
#[test]
fn a_text_client_shows_the_token_first() {
    let mut client = Driver::new(state_with_token(b"secret"), false);
    let until = Stopped::Reads(Some(60_000_005));
    assert_eq!(client.send(b"SET a 1\r\nAUTH wrong\r\n"), until);
    assert!(client.sets.is_empty());
    assert_eq!(client.text(), "-NOAUTH Authentication required.\r\n-WRONGPASS invalid token\r\n");
    client.send(b"AUTH a\r\nAUTH b\r\nAUTH c\r\n");
    assert_eq!((client.rested_us, client.text().matches("WRONGPASS").count()), (4_000_000, 3));
    let mut stranger = Driver::new(state_with_token(b"secret"), false);
    assert_eq!(stranger.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$16385\r\n"), Stopped::Closed(None));
    assert!(stranger.text().contains("unauthenticated bulk length"));
    assert_eq!(client.send(b"AUTH secret\r\nSET a 1\r\n"), Stopped::Reads(None));
    assert_eq!((client.sets.len(), client.text().as_str()), (1, "+OK\r\n+OK\r\n"));
}

/// A page makes a browser post commands, with a path longer than any first line that is waited for, in a
/// lower-case method, by HTTP/2, or behind a line that looks like a command. None is carried out.
#[test]
fn what_a_browser_sends_is_no_command() {
    let long = "a".repeat(5000);
    let body = "SET a 1\r\n".repeat(3);
    for request in [
        format!("POST /{long} HTTP/1.1\r\nHost: x\r\nContent-Length: 27\r\n\r\n{body}"),
        format!("post / HTTP/1.1\r\nHost: x\r\n\r\n{body}"),
        format!("GET /{long} HTTP/1.1\r\n\r\n{body}"),
        format!("GET / HTTP/1.10\r\nHost: x\r\n\r\n{body}"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{body}"),
        format!("PING\r\nPOST / HTTP/1.1\r\n{body}"),
        format!("PING\r\nhOST: x\r\n{body}"),
        format!("GET a\r\nHost: x\r\n{body}"),
    ] {
        for step in [1, 4096, request.len()] {
            let mut client = Driver::new(state(), false);
            let ends = request.as_bytes().chunks(step).map(|piece| client.send(piece));
            let closed = ends.into_iter().any(|end| matches!(end, Stopped::Closed(_)));
            let begin: String = request.chars().take(20).collect();
            assert!(closed, "{begin}");
            // A question of a person's that came before is answered.
            let writes = |r: &Request| matches!(r, Request::Write(_));
            assert!(!client.sets.iter().flatten().any(writes), "{begin}");
        }
    }
}

/// The health is for everybody. All else wants the token, or without one a name that is this node's: another may
/// be one that a web page has made resolve to this machine.
#[test]
fn pages_are_for_who_may_see_them() {
    let status = |state: Arc<NodeState>, path: &str, header: &str| {
        let mut client = Driver::new(state, false);
        client.send(format!("GET {path} HTTP/1.1\r\n{header}\r\n").as_bytes());
        client.text().split(' ').nth(1).map(str::to_string).unwrap_or_default()
    };
    for own in
        ["host:1", "HOST", "localhost", "localhost:80", "127.0.0.1:7101", "[::1]:7101", "[::1]"]
    {
        assert_eq!(status(state(), "/metrics", &format!("Host: {own}\r\n")), "200", "{own}");
    }
    assert_eq!(status(state(), "/metrics", ""), "200");
    for other in ["evil.example", "host.evil.example:1", "localhost.evil:80", ""] {
        assert_eq!(status(state(), "/metrics", &format!("Host: {other}\r\n")), "421", "{other}");
        assert_ne!(status(state(), "/health", &format!("Host: {other}\r\n")), "421", "{other}");
    }
    assert_eq!(status(state(), "/health", "Host: host:1\r\nHost: evil\r\n"), "400");
    let secret = || state_with_token(b"secret");
    assert_eq!(status(secret(), "/metrics", "Host: any\r\n"), "401");
    assert_eq!(status(secret(), "/metrics", "Authorization: Bearer wrong\r\n"), "401");
    assert_eq!(status(secret(), "/nothing", ""), "401");
    assert_eq!(status(secret(), "/metrics", "authorization: bearer secret\r\n"), "200");
    assert_ne!(status(secret(), "/health", "Host: any\r\n"), "401");
}

/// What cannot be read ends the connection behind the answers to what came before.
#[test]
fn nonsense_ends_the_connection_behind_the_answers() {
    let mut client = Driver::native(state());
    let mut bad = request(2, Call::Ping);
    let end = bad.len() - 1;
    bad[end] ^= 1;
    let bytes = [request(1, put("a")), bad].concat();
    assert!(matches!(client.send(&bytes), Stopped::Closed(Some(_))));
    let responses = client.responses();
    assert!(matches!(responses[0], Response { id: 1, result: Ok(Reply::Outcome(_)) }));
    assert_eq!(responses[1].result.as_ref().unwrap_err().class, Class::Invalid);
    assert_eq!(responses.len(), 2);

    let mut client = Driver::new(state(), false);
    assert_eq!(client.send(b"PING\r\n*x\r\nPING\r\n"), Stopped::Closed(None));
    let text = client.text();
    assert!(text.starts_with("+PONG\r\n-ERR ") && text.matches('\n').count() == 2, "{text}");
}

/// Who is let in, and who is another node; at the cap only nodes are.
#[test]
fn the_first_words_decide() {
    let state = state_with_token(b"secret");
    let says = |over_cap, first: &[u8]| {
        let mut driver = Driver::new(Arc::clone(&state), over_cap);
        (driver.send(first), driver.out)
    };
    let presents = |over_cap, role, token: &[u8]| {
        let mut driver = Driver::new(Arc::clone(&state), over_cap);
        (driver.present(greeting(role, token)), driver)
    };
    assert_eq!(presents(false, Role::Client, b"secret").0, Stopped::Reads(None));
    for (role, token) in [(Role::Client, &b""[..]), (Role::Peer, b""), (Role::Client, b"secreT")] {
        let refused = Stopped::Refused(RejectCode::Token);
        assert_eq!(presents(false, role, token).0, refused);
    }
    for over_cap in [false, true] {
        assert_eq!(presents(over_cap, Role::Peer, b"secret").0, Stopped::Peer);
        assert_eq!(presents(over_cap, Role::Snapshot, b"secret").0, Stopped::Peer);
    }
    let (stopped, mut told) = presents(true, Role::Client, b"secret");
    let reject = take_answer(&told.body()).unwrap().unwrap_err();
    assert_eq!((stopped, reject.code), (Stopped::Closed(None), RejectCode::TooManyConnections));
    let broken = [&PREAMBLE[..], b"\x05\0\0\0????12345"].concat();
    assert_eq!(says(false, &broken).0, Stopped::Refused(RejectCode::Malformed));
    assert_eq!(says(false, b"").0, Stopped::Reads(Some(FIRST_BYTES_TIMEOUT_US)));
    assert_eq!(says(true, b"").0, Stopped::Reads(Some(OVER_CAP_TIMEOUT_US)));
    let until = Stopped::Reads(Some(5 + HANDSHAKE_TIMEOUT_US));
    assert_eq!(says(false, &PREAMBLE).0, until);
}

/// Every place is taken. Whoever only asks how the node is is answered all the same, in each dialect that asks such
/// things, and nothing else is done for it.
#[test]
fn at_the_cap_who_asks_how_the_node_is_is_answered() {
    let page = |path: &str| {
        let mut client = Driver::new(state(), true);
        let stopped = client.send(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
        assert_eq!(stopped, Stopped::Closed(None), "one request, although it would be kept");
        client.text()[..12].to_owned()
    };
    for path in ["/health", "/health/leader", "/metrics"] {
        assert_eq!(page(path), "HTTP/1.1 200", "{path}");
    }
    assert_eq!(page("/kv/a"), "HTTP/1.1 503");
    let mut client = Driver::new(state(), true);
    let hello = Hello { only_asks: true, ..Hello::of_client(7) };
    let until = Stopped::Reads(Some(5 + HANDSHAKE_TIMEOUT_US));
    assert_eq!(client.present(Greeting::of_client(hello, b"")), until);
    client.out.clear();
    let mut out = Vec::new();
    let query = Query::Get { key: BIG_KEY.to_vec() };
    let consistency = Consistency::Stale;
    let calls =
        [Call::Status, Call::Members, Call::Query { query, consistency }, Call::OpenSession];
    for (id, call) in (1..).zip(calls) {
        put_request(&mut out, &wire::Request { id, deadline_ms: 0, call });
    }
    assert_eq!(client.send(&out), until, "it ends in time");
    let responses = client.responses();
    assert!(matches!(responses[0].result, Ok(Reply::Status(_))));
    assert!(matches!(responses[1].result, Ok(Reply::Members(_))));
    for refused in &responses[2..] {
        let failure = refused.result.as_ref().unwrap_err();
        assert_eq!(
            (failure.class, failure.message.as_str()),
            (Class::Busy, state().full().as_str())
        );
    }
    assert_eq!(client.sets.concat(), [Request::Status, Request::Status]);
}

/// The machine gives fewer connections than the flags allow: status and the refusal of one more say so.
#[test]
fn fewer_connections_than_were_asked_for_are_named() {
    let state = state();
    assert_eq!(state.status(&status(true)).state, "serving");
    state.connections_max.store(3, Ordering::Relaxed);
    assert_eq!(state.status(&status(true)).state, "serving, 3 connections at most");
    let full = state.full();
    assert!(
        full.contains("3 connections are the limit") && full.contains("--max-connections is 10")
    );
}

/// A connection is ranked by what it has shown: bytes, a whole request, the token.
#[test]
fn the_rank_of_a_connection_follows_what_it_shows() {
    let ranks = |token: &[u8], said: &[&[u8]]| {
        let mut client = Driver::new(state_with_token(token), false);
        let mut ranks = vec![client.connection.rank()];
        for bytes in said {
            client.send(bytes);
            ranks.push(client.connection.rank());
        }
        ranks
    };
    use places::Rank::{Authenticated, Served, Silent, Unproven};
    assert_eq!(ranks(b"", &[b"PI", b"NG\r\n"]), [Silent, Unproven, Served]);
    let auth: [&[u8]; 3] = [b"PING\r\n", b"AUTH wrong\r\n", b"AUTH secret\r\n"];
    assert_eq!(ranks(b"secret", &auth), [Silent, Unproven, Unproven, Authenticated]);
    let health: [&[u8]; 2] = [b"GET /health HT", b"TP/1.1\r\n\r\n"];
    assert_eq!(ranks(b"secret", &health), [Silent, Unproven, Served]);
    let native = handshake(b"secret");
    let (preamble, rest) = native.split_at(PREAMBLE.len());
    assert_eq!(ranks(b"secret", &[preamble, rest]), [Silent, Unproven, Authenticated]);
    assert_eq!(ranks(b"", &[&handshake(b"")]), [Silent, Served]);
}

/// A health check asks the replica, step by step: a leader must still lead when a majority has
/// confirmed that reads can be served.
#[test]
fn a_leader_is_asked_twice() {
    let page = |answer: fn(&Request) -> Answer| {
        let mut client = Driver { answer, ..Driver::new(state(), false) };
        client.send(b"GET /health/leader HTTP/1.1\r\n\r\n");
        (client.sets.concat(), client.text())
    };
    let (asked, text) = page(fine);
    assert_eq!(asked, [Request::Status, Request::Read, Request::Status]);
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("ok: leads\n"), "{text}");
    let (asked, text) = page(|_| Answer::Status(Box::new(status(false))));
    assert_eq!(asked, [Request::Status]);
    assert!(text.ends_with("not the leader: another node leads, or none\n"), "{text}");
    let (asked, text) = page(|request| match request {
        Request::Read => Answer::Read(Err(Refusal::NoLeader)),
        other => fine(other),
    });
    assert_eq!(asked, [Request::Status, Request::Read]);
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("no leader is known"), "{text}");
}

/// A backup begins like a linearizable read, then the store is flushed; its pieces need nobody.
#[test]
fn a_backup_begins_behind_every_write_that_was_answered() {
    let mut client = Driver::native(state());
    client.send(&[request(1, put("a")), request(2, Call::Backup), request(3, Call::Ping)].concat());
    let asked: Vec<_> = client.sets.iter().skip(1).cloned().collect();
    assert_eq!(asked, [vec![Request::Read], vec![Request::Flush { cut: false }]]);
    let responses = client.responses();
    assert_eq!(responses.len(), 3);
    // Nothing was flushed at this replica: the store does not reach as far as it says.
    assert_eq!(responses[1].result.as_ref().unwrap_err().class, Class::Unavailable);
    client.answer = |request| match request {
        Request::Flush { .. } => Answer::Flushed(Ok(0)),
        other => fine(other),
    };
    let piece = Call::Piece { table: 77, offset: 0, len: 10 };
    client.send(&[request(4, Call::Backup), request(5, piece)].concat());
    let responses = client.responses();
    assert!(matches!(&responses[0].result, Ok(Reply::Backup { manifest }) if !manifest.is_empty()));
    assert_eq!(responses[1].result.as_ref().unwrap_err().class, Class::Invalid);
    client.answer = |_| Answer::Read(Err(Refusal::NoLeader));
    client.send(&request(6, Call::Backup));
    assert_eq!(client.responses()[0].result.as_ref().unwrap_err().class, Class::Unavailable);
}

/// A person names the address of a node that is a member already: nothing is asked of the replica.
#[test]
fn who_answers_at_a_new_members_address_is_looked_at() {
    let mut client = Driver::native(state());
    let join = |id, address: &str| {
        let address = address.to_string();
        request(id, Call::Change(Change::Join { address, identity: 0 }))
    };
    client.answerer = Some(Answerer::Node(2));
    client.send(&[request(1, put("a")), join(2, "elsewhere:2"), join(3, "nowhere")].concat());
    let responses = client.responses();
    assert_eq!(responses.iter().map(|r| r.id).collect::<Vec<_>>(), [1, 2, 3]);
    for response in &responses[1..] {
        assert_eq!(response.result.as_ref().unwrap_err().class, Class::Invalid);
    }
    assert_eq!(client.sets.concat().len(), 1);
    client.answerer = None;
    client.send(&join(4, "elsewhere:2"));
    let joined = |client: &mut Driver| match client.responses().remove(0).result {
        Ok(Reply::Joined(joined)) => (joined.id, joined.secret),
        other => panic!("{other:?}"),
    };
    assert_eq!(joined(&mut client), (4, None), "somebody else has asked for it");
    client.send(&request(
        5,
        Call::Change(Change::Join { address: "elsewhere:2".into(), identity: 5 }),
    ));
    let (4, Some(masked)) = joined(&mut client) else { panic!("it has asked for itself") };
    assert!(masked.bytes != SECRET.bytes && masked.sealed, "it is masked");
    // Who votes has it already, whoever asks under its number.
    client.answer = |_| Answer::Changed(Ok(2));
    client.send(&request(6, Call::Change(Change::Join { address: "host:2".into(), identity: 5 })));
    assert_eq!(joined(&mut client), (2, None));
}

/// A read whose round served a more patient one, and ended too late for it, is refused.
#[test]
fn a_read_that_was_confirmed_too_late_is_refused() {
    let mut client = Driver::native(state());
    let mut bytes = Vec::new();
    for (id, deadline_ms) in [(1, 1), (2, 5_000)] {
        let call = get(b"none", Consistency::Linearizable);
        put_request(&mut bytes, &wire::Request { id, deadline_ms, call });
    }
    let space = client.connection.space();
    space[..bytes.len()].copy_from_slice(&bytes);
    client.connection.filled(bytes.len());
    let Step::Submit { requests, .. } = client.connection.next(0) else { panic!() };
    assert_eq!(requests, [(5_000_000, Request::Read)]);
    client.connection.answered(vec![Answer::Read(Ok(()))], 1_000);
    client.send(b"");
    let responses = client.responses();
    assert_eq!(responses[0].result.as_ref().unwrap_err().class, Class::Unavailable);
    assert_eq!(responses[1].result, Ok(Reply::Reply(KvReply::Value(None))));
}

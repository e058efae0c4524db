//! Connections that speak the native protocol: the handshake, and what clients ask. Nodes go on in
//! [`super::peer_in`].

use super::backup::Backups;
use super::connection::{OUT_BYTES_MAX, Session, command_request, failure};
use super::logging::{info, warning};
use super::sockets::{ClientInput, NO_ROOM, read_by, write_patiently};
use super::{Shared, lock, members, peer_in};
use crate::kv::machine::RESULT_BYTES_MAX;
use crate::kv::{Command, Op, Outcome, Piece, Query};
use crate::node::{Answer, Request, Status, Verdict};
use crate::raft::NotProposed;
use crate::wire::client::{
    self, Answer as Reply, Call, Class, Consistency, Failure, NO_REQUEST, NodeStatus, PeerStatus,
    Response,
};
use crate::wire::frame::{CLIENT_FRAME_MAX, FrameReader, HANDSHAKE_FRAME_MAX, PREAMBLE};
use crate::wire::handshake::{self, Hello, Local, Reject, Remembered, Role, Welcome};
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A dialer that has not said hello within so long, from its first byte, is sent away.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests of one connection that are answered together.
const TOGETHER_MAX: usize = 1024;
/// Writes among them that read: each may be answered with [`RESULT_BYTES_MAX`] and a value.
const READING_WRITES_MAX: usize = 4;

const _: () = assert!(READING_WRITES_MAX * RESULT_BYTES_MAX <= CLIENT_FRAME_MAX);
/// The reader of a handshake.
pub(crate) fn handshake_reader() -> FrameReader {
    FrameReader::new(HANDSHAKE_FRAME_MAX)
}

/// The dialing side of a handshake between nodes: says Hello and gives the answer, within so long. A later
/// write may take as long.
pub(super) fn shake_hands(
    mut stream: &TcpStream,
    reader: &mut FrameReader,
    hello: &Hello,
    within: Duration,
) -> io::Result<Result<Welcome, Reject>> {
    let until = Instant::now() + within;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(within))?;
    let mut out = PREAMBLE.to_vec();
    handshake::put_hello(&mut out, hello);
    stream.write_all(&out)?;
    let answer = read_one_frame(stream, reader, until)?;
    handshake::take_answer(&answer).map_err(|e| io::Error::other(e.to_string()))
}

/// Reads exactly one frame.
pub(crate) fn read_one_frame(
    stream: &TcpStream,
    reader: &mut FrameReader,
    until: Instant,
) -> io::Result<Vec<u8>> {
    loop {
        if let Some(body) = reader.next_frame().map_err(io::Error::other)? {
            return Ok(body.to_vec());
        }
        let n = read_by(stream, reader.space(), until)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        reader.filled(n);
    }
}

pub(crate) fn serve(
    stream: &TcpStream,
    first: &[u8],
    shared: &Arc<Shared>,
    over_cap: bool,
) -> io::Result<()> {
    let mut reader = handshake_reader();
    reader.feed(first);
    let until = Instant::now() + HANDSHAKE_TIMEOUT;
    let hello = match read_hello(stream, &mut reader, until)? {
        Ok(hello) => hello,
        Err(reject) => {
            log_refused(shared, stream, None, &reject.message);
            return send_reject(stream, &reject);
        }
    };
    if hello.role.is_node() {
        return peer_in::serve(stream, reader, &hello, until, shared);
    }
    let local = Local {
        cluster: shared.cluster,
        node: shared.id,
        identity: shared.identity,
        token: &shared.token,
    };
    let version = match handshake::admit(&hello, &local) {
        Ok(version) => version,
        Err(reject) => {
            log_refused(shared, stream, Some(&hello), &reject.message);
            return send_reject(stream, &reject);
        }
    };
    if over_cap {
        return send_reject(stream, &Reject::no_place(shared.full()));
    }
    let (leader, leader_address) = shared.known_leader();
    let welcome = Welcome {
        version,
        cluster: shared.cluster,
        node: shared.id,
        identity: shared.identity,
        leader,
        leader_address,
        remembered: Remembered::default(),
    };
    let mut out = Vec::new();
    handshake::put_welcome(&mut out, &welcome);
    write_patiently(stream, &out)?;
    reader.set_limit(CLIENT_FRAME_MAX);
    serve_client(stream, reader, shared)
}

/// Says who was refused and why, seldom: whoever dials again and again must not fill the disk.
pub(super) fn log_refused(shared: &Shared, stream: &TcpStream, hello: Option<&Hello>, why: &str) {
    let Some(held_back) = shared.refusals.pass(Instant::now()) else { return };
    let who = match hello {
        Some(Hello { role: Role::Peer | Role::Snapshot, from, .. }) => format!("node={from}"),
        Some(_) => "a client".to_string(),
        None => "a stranger".to_string(),
    };
    let address = stream.peer_addr().map_or_else(|_| "?".to_string(), |a| a.to_string());
    let more = match held_back {
        0 => String::new(),
        n => format!(" ({n} more refusals were not logged)"),
    };
    warning!("refused {who} address={address}: {why}{more}");
}

fn read_hello(
    stream: &TcpStream,
    reader: &mut FrameReader,
    until: Instant,
) -> io::Result<Result<Hello, Reject>> {
    let malformed = |e: String| Ok(Err(Reject::malformed(e)));
    let mut preamble = false;
    loop {
        if !preamble {
            match reader.preamble() {
                Ok(done) => preamble = done,
                Err(e) => return malformed(e.to_string()),
            }
        }
        if preamble {
            match reader.next_frame() {
                Ok(Some(body)) => {
                    return match handshake::take_hello(body) {
                        Ok(hello) => Ok(Ok(hello)),
                        Err(e) => malformed(e.to_string()),
                    };
                }
                Ok(None) => {}
                Err(e) => return malformed(e.to_string()),
            }
        }
        let n = read_by(stream, reader.space(), until)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        reader.filled(n);
    }
}

pub(super) fn send_reject(stream: &TcpStream, reject: &Reject) -> io::Result<()> {
    let mut out = Vec::new();
    handshake::put_reject(&mut out, reject);
    write_patiently(stream, &out)
}

// ---- clients ----

/// What an answer is made of, once the raft loop has answered.
enum Work {
    Ready(Result<Reply, Failure>),
    /// Read when its turn comes: pages are not piled up.
    Stale(Query),
    /// Begins a backup, when its turn comes.
    Backup {
        deadline_us: u64,
    },
    /// Read when its turn comes.
    Piece(Piece),
    Asked(Asked),
}

enum Asked {
    Write,
    /// A linearizable read, and when it must be answered.
    Query {
        query: Query,
        deadline_us: u64,
    },
    Status,
    Members,
    Transfer,
    Compact,
    Join,
    Change,
}

fn serve_client(
    stream: &TcpStream,
    mut reader: FrameReader,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let mut session = Session::new(Arc::clone(shared));
    let mut backups = Backups::new(shared);
    let mut input = ClientInput::new(&shared.partial);
    let mut out = Vec::new();
    // A request was completed since the last read.
    let mut fresh = false;
    loop {
        let mut requests = Vec::new();
        let mut reading_writes = 0;
        let mut full = false;
        let broken = loop {
            if requests.len() == TOGETHER_MAX || reading_writes == READING_WRITES_MAX {
                full = true;
                break None;
            }
            match reader.next_frame() {
                Ok(Some(body)) => match client::take_request(body) {
                    Ok(request) => {
                        reading_writes += usize::from(reads(&request.call));
                        requests.push(request);
                    }
                    Err(e) => break Some((client::request_id(body), e.to_string())),
                },
                Ok(None) => break None,
                Err(e) => break Some((NO_REQUEST, e.to_string())),
            }
        };
        if !requests.is_empty() {
            fresh = true;
            answer_all(&mut session, &mut backups, requests, stream, &mut out)?;
        }
        if let Some((id, message)) = broken {
            info!("client connection closed: {message}");
            let result = Err(failure(Class::Invalid, message));
            client::put_response(&mut out, &Response { id, result });
            return write_patiently(stream, &out);
        }
        write_patiently(stream, &out)?;
        out.clear();
        out.shrink_to(OUT_BYTES_MAX);
        if full {
            continue;
        }
        let begun = reader.finish().is_err();
        if !input.holds(begun, std::mem::take(&mut fresh), reader.memory()) {
            let result = Err(failure(Class::Busy, NO_ROOM.to_string()));
            client::put_response(&mut out, &Response { id: NO_REQUEST, result });
            return write_patiently(stream, &out);
        }
        let n = input.read(stream, reader.space())?;
        if n == 0 {
            return Ok(());
        }
        reader.filled(n);
    }
}

/// Whether it is a write whose answer carries values.
fn reads(call: &Call) -> bool {
    matches!(call, Call::Write(write) if write.ops.iter().any(|op| matches!(op, Op::Get { .. })))
}

/// Submits everything in one message; all linearizable reads share one read index.
fn answer_all(
    session: &mut Session,
    backups: &mut Backups,
    requests: Vec<client::Request>,
    stream: &TcpStream,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let mut asked = Vec::new();
    let mut work = Vec::with_capacity(requests.len());
    let mut read_by_us: Option<u64> = None;
    for request in requests {
        let deadline_us = session.deadline_us(request.deadline_ms);
        let mut ask = |what, kind| {
            asked.push((deadline_us, what));
            Work::Asked(kind)
        };
        let item = match request.call {
            Call::Write(write) => ask(command_request(&Command::Write(write)), Asked::Write),
            Call::OpenSession => ask(command_request(&Command::OpenSession), Asked::Write),
            Call::CloseSession { session } => {
                ask(command_request(&Command::CloseSession { session }), Asked::Write)
            }
            Call::Query { query, consistency: Consistency::Linearizable } => {
                read_by_us = Some(read_by_us.map_or(deadline_us, |at| at.max(deadline_us)));
                Work::Asked(Asked::Query { query, deadline_us })
            }
            Call::Query { query, consistency: Consistency::Stale } => Work::Stale(query),
            Call::Ping => Work::Ready(Ok(Reply::Pong)),
            Call::Status => ask(Request::Status, Asked::Status),
            Call::Members => ask(Request::Status, Asked::Members),
            Call::Transfer { to } => ask(Request::Transfer(to), Asked::Transfer),
            call @ (Call::Join { .. }
            | Call::Promote { .. }
            | Call::Remove { .. }
            | Call::Replace { .. }) => {
                let joins = matches!(call, Call::Join { .. });
                match members::change_of(&session.shared, call) {
                    Ok(change) if joins => ask(Request::Change(change), Asked::Join),
                    Ok(change) => ask(Request::Change(change), Asked::Change),
                    Err(failure) => Work::Ready(Err(failure)),
                }
            }
            Call::Compact => ask(Request::Flush { cut: true }, Asked::Compact),
            Call::Backup => Work::Backup { deadline_us },
            Call::Piece { table, offset, len } => {
                Work::Piece(Piece { table, offset, len: len as usize })
            }
        };
        work.push((request.id, item));
    }
    if let Some(deadline_us) = read_by_us {
        asked.push((deadline_us, Request::Read));
    }
    let mut answers = if asked.is_empty() { Vec::new() } else { session.call(asked) };
    let asked_until_us = session.shared.clock.now_us();
    let may_read = if read_by_us.is_some() { answers.pop() } else { None };
    let mut answers = answers.into_iter();
    for (id, item) in work {
        let result = match item {
            Work::Ready(result) => result,
            Work::Stale(query) => session.query(&query).map(Reply::Reply),
            Work::Backup { deadline_us } => backups.begin(session, deadline_us),
            Work::Piece(piece) => backups.piece(session, piece),
            // The round that serves the most patient read may have ended too late for this one.
            Work::Asked(Asked::Query { deadline_us, .. }) if asked_until_us >= deadline_us => {
                let message = "the read was not confirmed before its deadline".to_string();
                Err(failure(Class::Unavailable, message))
            }
            Work::Asked(Asked::Query { query, .. }) => match &may_read {
                Some(Answer::Read(Ok(()))) => session.query(&query).map(Reply::Reply),
                Some(Answer::Read(Err(refusal))) => Err(session.shared.refused(*refusal)),
                _ => Err(stopping()),
            },
            Work::Asked(kind) => match answers.next() {
                Some(answer) => reply_of(session, &kind, answer),
                None => Err(stopping()),
            },
        };
        client::put_response(out, &Response { id, result });
        if out.len() > OUT_BYTES_MAX {
            write_patiently(stream, out)?;
            out.clear();
        }
    }
    Ok(())
}

fn stopping() -> Failure {
    failure(Class::Unknown, "the node is stopping".to_string())
}

fn reply_of(session: &Session, asked: &Asked, answer: Answer) -> Result<Reply, Failure> {
    match answer {
        Answer::Write(Verdict::Applied(Outcome::Malformed)) => {
            Err(failure(Class::Invalid, "the replicated command makes no sense".to_string()))
        }
        Answer::Write(Verdict::Applied(outcome)) => Ok(Reply::Outcome(outcome)),
        Answer::Write(Verdict::NotApplied(refusal)) => Err(session.shared.refused(refusal)),
        Answer::Write(Verdict::Unknown(why)) => Err(failure(Class::Unknown, why.to_string())),
        Answer::Status(status) => Ok(match asked {
            Asked::Members => Reply::Members(status.members()),
            _ => Reply::Status(node_status(&session.shared, &status)),
        }),
        Answer::Changed(result) => {
            members::reply_of(&session.shared, matches!(asked, Asked::Join), result)
        }
        Answer::Transfer(Ok(_)) => Ok(Reply::Ok),
        Answer::Transfer(Err(why)) => {
            Err(failure(members::class_of_refusal(&why), why.to_string()))
        }
        Answer::Flushed(Ok(_)) => Ok(Reply::Ok),
        Answer::Flushed(Err(refusal)) => Err(session.shared.refused(refusal)),
        Answer::Read(_) => Err(stopping()),
    }
}

/// What cannot be done as it was asked is not asked again, here or elsewhere.
pub(super) fn class_of(why: NotProposed) -> Class {
    match why {
        NotProposed::NoSuccessor
        | NotProposed::NoVoter { .. }
        | NotProposed::Unreachable { .. } => Class::Invalid,
        NotProposed::NotLeader { .. }
        | NotProposed::Transferring
        | NotProposed::ChangeOpen
        | NotProposed::TooEarly => Class::Unavailable,
    }
}

pub(crate) fn node_status(shared: &Shared, status: &Status) -> NodeStatus {
    let fetches = lock(&shared.fetching).as_ref().map(ToString::to_string);
    let peer = |p: &crate::raft::PeerProgress| PeerStatus {
        id: p.id,
        match_index: p.match_index,
        reachable: p.reachable,
    };
    NodeStatus {
        id: shared.id,
        identity: shared.identity,
        cluster: shared.cluster,
        address: shared.address.clone(),
        role: status.own_role(),
        leader: status.leader,
        term: status.term,
        commit: status.commit,
        applied: status.applied,
        last_index: status.last_index,
        first_index: shared.log.first_index(),
        log_bytes: shared.log_bytes.load(Ordering::Relaxed),
        connections: u32::try_from(shared.connections.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
        version: env!("CARGO_PKG_VERSION").to_string(),
        peers: status.peers.iter().map(peer).collect(),
        state: status.words(shared.reader.is_disk_full(), fetches),
    }
}

//! Connections that speak the native protocol: clients, and the inbound half of a peer link.

use super::backup::Backups;
use super::connection::{OUT_BYTES_MAX, Session, command_request, failure};
use super::logging::{debug, info, warning};
use super::peers::Outgoing;
use super::pulse::SILENCE_MAX;
use super::sockets::{ClientInput, NO_ROOM, is_timeout, read, read_by, write_patiently};
use super::{ClientHandle, Inbound, Shared, lock, members, snapshots};
use crate::kv::bytes::Input as KvInput;
use crate::kv::codec::take_outcome;
use crate::kv::limits::MAX_BATCH_BYTES_CEILING;
use crate::kv::machine::RESULT_BYTES_MAX;
use crate::kv::{Command, Op, Outcome, Piece, Query};
use crate::node::{Answer, Forward, Input, Promise, Refusal, Request, Standing, Status, Verdict};
use crate::raft::{Member, NodeId, NotProposed, RoleName};
use crate::wire::client::{
    self, Answer as Reply, Call, Class, Consistency, Failure, MemberInfo, MemberRole, Members,
    NO_REQUEST, NodeStatus, PeerStatus, Response,
};
use crate::wire::frame::{CLIENT_FRAME_MAX, FrameReader, HANDSHAKE_FRAME_MAX, PEER_FRAME_MAX};
use crate::wire::handshake::{self, Hello, Local, Reject, RejectCode, Role, Welcome};
use crate::wire::peer::{ForwardResult, PeerFrame, put_peer_frame, take_peer_frame};
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A dialer that has not said hello within so long, from its first byte, is sent away.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests of one connection that are answered together.
const TOGETHER_MAX: usize = 1024;
/// Writes among them that read: each may be answered with [`RESULT_BYTES_MAX`] and a value.
const READING_WRITES_MAX: usize = 4;

const _: () = assert!(READING_WRITES_MAX * RESULT_BYTES_MAX <= CLIENT_FRAME_MAX);
/// A forwarded write is of a client, in the form of the log, which a segment must hold.
const FORWARD_BYTES_MAX: usize = 2 * MAX_BATCH_BYTES_CEILING;

/// Reads exactly one frame, as the dialing side of a handshake does.
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
    let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
    reader.feed(first);
    let until = Instant::now() + HANDSHAKE_TIMEOUT;
    let hello = match read_hello(stream, &mut reader, until)? {
        Ok(hello) => hello,
        Err(reject) => {
            log_refused(shared, stream, None, &reject.message);
            return send_reject(stream, &reject);
        }
    };
    let local = Local {
        cluster: shared.cluster,
        node: shared.id,
        identity: shared.identity,
        token: &shared.token,
    };
    let version = match handshake::admit(&hello, &local) {
        Ok(version) => version,
        Err(reject) => {
            // The node that it looks for may have been replaced at its address, and so may all others
            // that it knows: whoever is there must be the one to tell it what it is.
            let sought_another = hello.role.is_node() && reject.code == RejectCode::WrongNode;
            let told = sought_another.then(|| not_let_in(shared, &hello)).flatten();
            let reject = told.unwrap_or(reject);
            log_refused(shared, stream, Some(&hello), &reject.message);
            return send_reject(stream, &reject);
        }
    };
    if hello.role == Role::Client && over_cap {
        let reject = Reject { code: RejectCode::TooManyConnections, message: shared.full() };
        return send_reject(stream, &reject);
    }
    if hello.role.is_node()
        && let Some(reject) = not_let_in(shared, &hello)
    {
        log_refused(shared, stream, Some(&hello), &reject.message);
        return send_reject(stream, &reject);
    }
    let (leader, leader_address) = shared.known_leader();
    let welcome = Welcome {
        version,
        cluster: shared.cluster,
        node: shared.id,
        identity: shared.identity,
        leader,
        leader_address,
    };
    let mut out = Vec::new();
    handshake::put_welcome(&mut out, &welcome);
    write_patiently(stream, &out)?;
    match hello.role {
        Role::Client => {
            reader.set_limit(CLIENT_FRAME_MAX);
            serve_client(stream, reader, shared)
        }
        Role::Snapshot => snapshots::serve(stream, reader, hello.from, shared),
        Role::Peer => {
            stream.set_read_timeout(Some(SILENCE_MAX))?;
            reader.set_limit(PEER_FRAME_MAX);
            serve_peer(stream, reader, &hello, shared)
        }
    }
}

/// Why a node that dials is not let in, whatever its handshake says.
fn not_let_in(shared: &Shared, hello: &Hello) -> Option<Reject> {
    let id = hello.from;
    let standing = shared.configurations().standing(id, hello.identity);
    let (code, message) = match standing {
        Standing::Member => match shared.is_aside(id, Some(hello.identity)) {
            Some(why) => (RejectCode::OldCopy, why),
            None => (RejectCode::WrongNode, twin_of(shared, hello)?),
        },
        // One that was taken in later than anything this node has heard of may even lead: a node
        // that joins begins with the members of long ago (paper section 6, thesis 4.1).
        Standing::Newer => return None,
        Standing::Foreign => {
            let message = format!("the dialer is not the node {id} of the configuration");
            (RejectCode::WrongIdentity, message)
        }
        Standing::Removed => {
            (RejectCode::Removed, format!("node {id} was removed from the cluster"))
        }
    };
    Some(Reject { code, message })
}

/// Whether a peer with the same directory is connected that is reached elsewhere: then one of the two has
/// a copy, and each of them could give the vote that they have together.
fn twin_of(shared: &Shared, hello: &Hello) -> Option<String> {
    let inbound = lock(&shared.inbound);
    let twin = inbound.get(&(hello.from, hello.identity))?;
    (twin.address != hello.address).then(|| {
        format!(
            "node {} with this very data directory runs at {}: one of the two has a copy, and has to be \
             stopped",
            hello.from, twin.address
        )
    })
}

/// Says who was refused and why, seldom: whoever dials again and again must not fill the disk.
fn log_refused(shared: &Shared, stream: &TcpStream, hello: Option<&Hello>, why: &str) {
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
    let malformed = |message: String| Ok(Err(Reject { code: RejectCode::Malformed, message }));
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

fn send_reject(stream: &TcpStream, reject: &Reject) -> io::Result<()> {
    let mut out = Vec::new();
    handshake::put_reject(&mut out, reject);
    write_patiently(stream, &out)
}

// ---- peers ----

fn serve_peer(
    stream: &TcpStream,
    mut reader: FrameReader,
    hello: &Hello,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let from = hello.from;
    let disk = (from, hello.identity);
    let number = {
        let number = shared.inbound_so_far.fetch_add(1, Ordering::Relaxed);
        let (address, stream) = (hello.address.clone(), stream.try_clone()?);
        lock(&shared.inbound).insert(disk, Inbound { number, address, stream });
        number
    };
    // The members may have changed since it was let in, and nobody knew of this connection then.
    let ended = match not_let_in(shared, hello) {
        Some(reject) => Err(io::Error::other(reject.message)),
        None => listen_to(stream, &mut reader, hello, shared),
    };
    if let Err(e) = &ended {
        warning!("connection from peer={from} ended: {e}");
    }
    // A newer connection from the same peer makes the end of this one meaningless. It cannot come
    // before all is said of this one: a newcomer would be forgotten that is there.
    let mut all = lock(&shared.inbound);
    if all.get(&disk).is_some_and(|inbound| inbound.number == number) {
        all.remove(&disk);
        members::forget_newcomer(shared, from);
        let _ = shared.raft.send(Input::PeerLost { node: from });
    }
    drop(all);
    ended
}

/// Tells who has dialed, and takes what it sends until the connection ends.
fn listen_to(
    stream: &TcpStream,
    reader: &mut FrameReader,
    hello: &Hello,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let from = hello.from;
    let promise = Promise { term: hello.term, index: hello.last_index };
    let (node, identity, address) = (from, hello.identity, hello.address.clone());
    let _ = shared.raft.send(Input::PeerDialed { node, identity, address, promise });
    debug!("peer={from} connected");
    members::answer(shared, from, &hello.address);
    let configuration = shared.configuration();
    let of_other = |m: &&Member| m.id != from && m.address == hello.address;
    if let Some(other) = configuration.members.iter().find(of_other)
        && configuration.member(from).is_some_and(|m| m.address != hello.address)
    {
        warning!(
            "peer={from} says that it is reached at {}, which is the address of member {}: it has to be \
             started with an --advertise of its own",
            hello.address,
            other.id
        );
    }
    if let Some(link) = shared.links.read().unwrap_or_else(PoisonError::into_inner).get(&from) {
        let _ = link.send(Outgoing::Nudge);
    }
    read_peer(stream, reader, from, shared)
}

fn read_peer(
    stream: &TcpStream,
    reader: &mut FrameReader,
    from: NodeId,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let mut pong = Vec::new();
    loop {
        while let Some(body) = reader.next_frame().map_err(io::Error::other)? {
            let input: Input<ClientHandle> = match take_peer_frame(body)
                .map_err(io::Error::other)?
            {
                PeerFrame::Message(message) => {
                    if message.from != from || message.to != shared.id {
                        let text = "a message that is not between the two ends of the connection";
                        return Err(io::Error::other(text));
                    }
                    Input::Peer(message)
                }
                PeerFrame::Forward(forward) => {
                    let (id, command) = (forward.id, forward.command);
                    if command.len() > FORWARD_BYTES_MAX {
                        return Err(io::Error::other("a forwarded write no client can have made"));
                    }
                    let forward = Forward { id, deadline_ms: forward.deadline_ms, command };
                    Input::Forwarded { from, forward }
                }
                PeerFrame::ForwardAnswer(answer) => {
                    let verdict = verdict_of(from, answer.result).map_err(io::Error::other)?;
                    Input::ForwardAnswered { from, id: answer.id, verdict }
                }
                PeerFrame::Digest { index, digest } => Input::Digest { node: from, index, digest },
                PeerFrame::Ping => {
                    let (leader, address) = shared.known_leader();
                    pong.clear();
                    put_peer_frame(&mut pong, &PeerFrame::Pong { leader, address });
                    write_patiently(stream, &pong)?;
                    continue;
                }
                PeerFrame::Pong { .. } => {
                    return Err(io::Error::other("a pong that nobody asked for"));
                }
            };
            if shared.raft.send(input).is_err() {
                return Ok(());
            }
        }
        let n = match read(stream, reader.space()) {
            Err(e) if is_timeout(&e) => {
                let text = format!("silent for {} s", SILENCE_MAX.as_secs());
                return Err(io::Error::new(e.kind(), text));
            }
            read => read?,
        };
        if n == 0 {
            return reader.finish().map_err(io::Error::other);
        }
        reader.filled(n);
    }
}

fn verdict_of(from: NodeId, result: ForwardResult) -> Result<Verdict, crate::kv::bytes::Malformed> {
    Ok(match result {
        ForwardResult::Applied(bytes) => {
            let mut input = KvInput(&bytes);
            let outcome = take_outcome(&mut input)?;
            Verdict::Applied(outcome)
        }
        ForwardResult::Refused { class: Class::Busy, .. } => {
            Verdict::NotApplied(Refusal::LeaderBusy)
        }
        ForwardResult::Refused { class: Class::DiskFull, .. } => {
            Verdict::NotApplied(Refusal::DiskFull { node: from })
        }
        ForwardResult::Refused { class: Class::Unknown, .. } => {
            Verdict::Unknown("the leader does not know what became of it")
        }
        ForwardResult::Refused { .. } => Verdict::NotApplied(Refusal::NotLeader),
    })
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
            Call::Write(write) => match session.write_request(write) {
                Ok(what) => ask(what, Asked::Write),
                Err(failure) => Work::Ready(Err(failure)),
            },
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
            Asked::Members => Reply::Members(all_members(&status)),
            _ => Reply::Status(node_status(&session.shared, &status)),
        }),
        Answer::Changed(result) => {
            members::reply_of(&session.shared, matches!(asked, Asked::Join), result)
        }
        Answer::Transfer(Ok(_)) => Ok(Reply::Ok),
        Answer::Transfer(Err(why)) => Err(failure(class_of(why), why.to_string())),
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

fn role_of(status: &Status, id: NodeId) -> MemberRole {
    if status.leader == Some(id) {
        MemberRole::Leader
    } else if status.configuration.is_voter(id) {
        MemberRole::Follower
    } else {
        MemberRole::Learner
    }
}

fn all_members(status: &Status) -> Members {
    let of = |m: &crate::raft::Member| MemberInfo {
        id: m.id,
        address: m.address.clone(),
        role: role_of(status, m.id),
        voter: status.configuration.is_voter(m.id),
        replaces: status.configuration.replaces.get(&m.id).copied(),
    };
    Members { members: status.configuration.members.iter().map(of).collect() }
}

pub(crate) fn node_status(shared: &Shared, status: &Status) -> NodeStatus {
    let role = match status.role {
        RoleName::Leader => MemberRole::Leader,
        _ if status.configuration.is_voter(shared.id) => MemberRole::Follower,
        _ => MemberRole::Learner,
    };
    let state = match (status.role, status.leader) {
        (RoleName::Leader, _) if status.leads_and_knows => "serving",
        (RoleName::Leader, _) => "taking over",
        (RoleName::Follower, Some(_)) => "following",
        _ => "no leader known",
    };
    let state = if shared.reader.is_disk_full() { "disk full" } else { state };
    let fetching = lock(&shared.fetching).as_ref().map(snapshots::Fetching::words);
    let state = if status.repairing { "repairing its store" } else { state };
    let state = fetching.map_or(state.to_string(), |words| format!("{state}, {words}"));
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
        role,
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
        state,
    }
}

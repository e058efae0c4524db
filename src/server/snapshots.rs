//! Snapshots over sockets: a connection of their own, one question and one answer at a time.
//!
//! The fetching thread is started when the leader offers a snapshot and lives until one was handed
//! to the applier, or none is needed any more. It rests after every answer as long as that took, so
//! that other traffic hardly notices. What to ask and what to do with the answer is decided by
//! [`Fetch`]; what to answer, by [`Source`].

use super::logging::{info, warning};
use super::native::read_one_frame;
use super::pulse::handshake_reader;
use super::sockets::write_patiently;
use super::{ApplyQueue, Shared, fatal, lock};
use crate::env::is_out_of_space;
use crate::kv::{Piece, Reader as _, StoreError, View as _};
use crate::node::{Ask, Fetch, Next, Source, Told, Work};
use crate::raft::{NodeId, Offer};
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX, PREAMBLE};
use crate::wire::handshake::{self, Hello, PROTOCOL_VERSION, Role};
use crate::wire::snapshot::{SnapshotFrame, put_snapshot_frame, take_snapshot_frame};
use std::io::{self, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// An answer takes no longer, or the connection is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever fetches asks again within so long, merging included.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before another connection.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The same while the disk is full.
const SPACE_PAUSE: Duration = Duration::from_secs(2);
/// Longest rest after an answer.
const REST_MAX: Duration = Duration::from_millis(50);

/// Gives a snapshot to a node that fetches one.
pub(crate) fn serve(
    stream: &TcpStream,
    mut reader: FrameReader,
    from: NodeId,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    reader.set_limit(PEER_FRAME_MAX);
    let mut source = Source::new(shared.reader.clone());
    info!("gives a snapshot to node={from}");
    loop {
        let body = read_one_frame(stream, &mut reader, Instant::now() + ASK_TIMEOUT)?;
        let ask = match take_snapshot_frame(&body).map_err(io::Error::other)? {
            SnapshotFrame::Begin { index } => Ask::Begin { index },
            SnapshotFrame::Piece { table, offset, len } => {
                Ask::Piece(Piece { table, offset, len: len as usize })
            }
            _ => return Err(io::Error::other("an answer where a question is expected")),
        };
        let told = match source.answer(ask) {
            Ok(told) => told,
            Err(e) => {
                // What cannot be read is not passed on; the other end asks elsewhere.
                shared.store_unreadable(&e);
                return Err(io::Error::other(e));
            }
        };
        let frame = match told {
            Told::Begins { manifest } => SnapshotFrame::Begins { manifest },
            Told::Piece { piece: Piece { table, offset, .. }, bytes } => {
                SnapshotFrame::Bytes { table, offset, bytes }
            }
            Told::Gone => SnapshotFrame::Gone,
        };
        let mut out = Vec::new();
        put_snapshot_frame(&mut out, &frame);
        write_patiently(stream, &out)?;
    }
}

/// The leader offers a snapshot: fetches it, unless one is on its way.
pub(crate) fn offered(shared: &Arc<Shared>, offer: Offer, applier: &ApplyQueue) {
    // The one that is on its way looks here before each connection: the leader may have changed.
    if lock(&shared.fetching).replace(offer).is_some() {
        return;
    }
    let (theirs, applier) = (Arc::clone(shared), applier.clone());
    let builder = thread::Builder::new().name("snapshot".into());
    if let Err(e) = builder.spawn(move || fetch(&theirs, offer, &applier)) {
        fatal(format_args!("cannot start a thread: {e}"));
    }
}

fn fetch(shared: &Arc<Shared>, mut offer: Offer, applier: &ApplyQueue) {
    info!("needs a snapshot from node={} index={}", offer.from, offer.index);
    let disk = Arc::clone(&shared.disk);
    let mut fetch = Fetch::new(disk, &shared.data, shared.reader.clone(), offer.index);
    let started = Instant::now();
    let mut was_full = false;
    loop {
        offer = lock(&shared.fetching).unwrap_or(offer);
        fetch.aim(offer.index);
        match attempt(shared, offer.from, &mut fetch) {
            Ok(Some(snapshot)) => {
                let index = snapshot.applied();
                let bytes = fetch.progress().map_or(0, |(all, _)| all);
                let ms = started.elapsed().as_millis();
                info!("fetched a snapshot index={index} bytes={bytes} ms={ms}");
                stop_on_error(fetch.discard());
                // The applier says when it is done with it.
                let _ = applier.send(Work::Install { snapshot, index });
                return;
            }
            Ok(None) => {}
            Err(e) if is_out_of_space(&e) => {
                if !was_full {
                    warning!(
                        "no space for a snapshot from node={}, to be resumed: {e}",
                        offer.from
                    );
                }
                was_full = true;
                thread::sleep(SPACE_PAUSE);
            }
            Err(e) => {
                warning!("a snapshot from node={} was cut off, to be resumed: {e}", offer.from);
            }
        }
        if shared.reader.view().applied() >= offer.index {
            // Its log came all the same.
            stop_on_error(fetch.discard());
            *lock(&shared.fetching) = None;
            return;
        }
        thread::sleep(RETRY_PAUSE);
    }
}

/// A full disk sets a fetch back. Whatever else the own disk does to it, it may do to everything.
fn stop_unless_full<T>(result: Result<T, StoreError>, fetch: &mut Fetch) -> io::Result<T> {
    match result {
        Err(e) if e.is_out_of_space() => {
            fetch.set_back();
            Err(io::Error::new(io::ErrorKind::StorageFull, e))
        }
        result => Ok(stop_on_error(result)),
    }
}

/// Whatever the own disk does to a snapshot, it may do to everything else.
fn stop_on_error<T>(result: Result<T, StoreError>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => fatal(format_args!("cannot take in a snapshot, the node stops: {e}")),
    }
}

/// Fetches over one connection; none when the other side has nothing to give.
fn attempt(
    shared: &Shared,
    from: NodeId,
    fetch: &mut Fetch,
) -> io::Result<Option<crate::kv::Staged>> {
    let (mut stream, mut reader) = dial(shared, from)?;
    let mut next = Next::Ask(fetch.begin());
    loop {
        match next {
            Next::Ask(ask) => {
                let asked = Instant::now();
                let told = ask_for(&mut stream, &mut reader, ask)?;
                let gone = told == Told::Gone;
                let taken = fetch.told(told);
                stop_unless_full(taken, fetch)?;
                if gone {
                    return Ok(None);
                }
                thread::sleep(asked.elapsed().min(REST_MAX));
            }
            Next::Again => {}
            Next::Done(snapshot) => return Ok(Some(snapshot)),
        }
        let went_on = fetch.go_on();
        next = stop_unless_full(went_on, fetch)?;
    }
}

fn ask_for(stream: &mut TcpStream, reader: &mut FrameReader, ask: Ask) -> io::Result<Told> {
    let frame = match ask {
        Ask::Begin { index } => SnapshotFrame::Begin { index },
        Ask::Piece(Piece { table, offset, len }) => {
            SnapshotFrame::Piece { table, offset, len: u32::try_from(len).unwrap_or(u32::MAX) }
        }
    };
    let mut out = Vec::new();
    put_snapshot_frame(&mut out, &frame);
    stream.write_all(&out)?;
    let body = read_one_frame(stream, reader, Instant::now() + ANSWER_TIMEOUT)?;
    match take_snapshot_frame(&body).map_err(io::Error::other)? {
        SnapshotFrame::Begins { manifest } => Ok(Told::Begins { manifest }),
        SnapshotFrame::Bytes { table, offset, bytes } => {
            Ok(Told::Piece { piece: Piece { table, offset, len: bytes.len() }, bytes })
        }
        SnapshotFrame::Gone => Ok(Told::Gone),
        _ => Err(io::Error::other("a question where an answer is expected")),
    }
}

fn dial(shared: &Shared, to: NodeId) -> io::Result<(TcpStream, FrameReader)> {
    let configuration = shared.configuration();
    let Some(member) = configuration.member(to) else {
        return Err(io::Error::other("it is not a member"));
    };
    let address = member.address.to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::other("its address has no host"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let hello = Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        role: Role::Snapshot,
        cluster: shared.cluster,
        from: shared.id,
        to,
        identity: shared.identity,
        to_identity: member.identity,
        address: shared.address.clone(),
        token: shared.token.clone(),
    };
    let mut out = PREAMBLE.to_vec();
    handshake::put_hello(&mut out, &hello);
    stream.write_all(&out)?;
    let mut reader = handshake_reader();
    let answer = read_one_frame(&stream, &mut reader, Instant::now() + ANSWER_TIMEOUT)?;
    match handshake::take_answer(&answer) {
        Ok(Ok(_)) => {
            reader.set_limit(PEER_FRAME_MAX);
            Ok((stream, reader))
        }
        Ok(Err(reject)) => Err(io::Error::other(reject.message)),
        Err(e) => Err(io::Error::other(e.to_string())),
    }
}

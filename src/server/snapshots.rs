//! Snapshots over sockets: a connection of their own, one question and one answer at a time.
//!
//! The fetching thread is started when the leader offers a snapshot and lives until one was handed
//! to the applier, or none is needed any more. It rests after every answer as long as that took, so
//! that other traffic hardly notices. What to ask and what to do with the answer is decided by
//! [`Fetch`]; what to answer, by [`Source`].

use super::connection::Session;
use super::logging::{info, warning};
use super::native::{handshake_reader, read_one_frame};
use super::sockets::write_patiently;
use super::{ApplyQueue, Shared, fatal, lock};
use crate::env::is_out_of_space;
use crate::env::resolve::connect;
use crate::kv::{Piece, Reader as _, StoreError, View as _};
use crate::node::{Ask, Fetch, Next, Request, Source, Told, Work};
use crate::raft::{Index, NodeId, Offer};
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX, PREAMBLE};
use crate::wire::handshake;
use crate::wire::snapshot::{SnapshotFrame, put_snapshot_frame, take_snapshot_frame};
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::TcpStream;
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
/// So many of these at most, when it fails again and again.
const RETRY_PAUSES_MAX: u32 = 25;
/// Different failures of one fetch that are logged.
const TROUBLES_MAX: usize = 20;
/// The same while the disk is full.
const SPACE_PAUSE: Duration = Duration::from_secs(2);
/// Longest rest after an answer.
const REST_MAX: Duration = Duration::from_millis(50);

/// A snapshot on its way here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetching {
    /// The latest offer.
    offer: Offer,
    /// The store is damaged: any member that has enough will do.
    repairs: bool,
    /// Bytes of all of it, and of what is missing; none before that is known.
    progress: Option<(u64, u64)>,
}

impl Fetching {
    /// How far it is, for a person.
    pub(crate) fn words(&self) -> String {
        match self.progress {
            None => "waiting for a snapshot".to_string(),
            Some((_, 0)) => "installing a snapshot".to_string(),
            Some((all, missing)) => {
                let here = all - missing;
                let percent = u128::from(here) * 100 / u128::from(all.max(1));
                format!("fetching a snapshot: {here} of {all} bytes, {percent}%")
            }
        }
    }
}

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
    let mut session = Session::new(Arc::clone(shared));
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
        make_durable(ask, &mut session, shared);
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

/// What is asked for may be applied here and not in tables yet.
fn make_durable(ask: Ask, session: &mut Session, shared: &Shared) {
    let Ask::Begin { index } = ask else { return };
    let applied = shared.reader.view().applied();
    if index <= applied && shared.reader.export().applied() < index {
        let flush = Request::Flush { cut: false };
        session.call(vec![(session.deadline_us(0), flush)]);
    }
}

/// The leader offers a snapshot: fetches it, unless one is on its way.
pub(crate) fn offered(shared: &Arc<Shared>, offer: Offer, applier: &ApplyQueue) {
    // The one that is on its way looks here before each connection: the leader may have changed.
    {
        let mut fetching = lock(&shared.fetching);
        if let Some(fetching) = fetching.as_mut() {
            // A damaged store needs what it needs, whoever leads.
            let index = if fetching.repairs { fetching.offer.index } else { 0 };
            fetching.offer = Offer { index: offer.index.max(index), ..offer };
            return;
        }
        *fetching = Some(Fetching { offer, repairs: false, progress: None });
    }
    start(shared, applier);
}

/// The store is damaged, and holds everything up to `index`: fetches a snapshot that reaches as far,
/// from whoever has one.
pub(crate) fn repair(shared: &Arc<Shared>, index: Index, applier: &ApplyQueue) {
    let offer = Offer { from: 0, index };
    {
        let mut fetching = lock(&shared.fetching);
        if let Some(fetching) = fetching.as_mut() {
            fetching.repairs = true;
            fetching.offer.index = fetching.offer.index.max(index);
            return;
        }
        *fetching = Some(Fetching { offer, repairs: true, progress: None });
    }
    start(shared, applier);
}

fn start(shared: &Arc<Shared>, applier: &ApplyQueue) {
    let (theirs, applier) = (Arc::clone(shared), applier.clone());
    let builder = thread::Builder::new().name("snapshot".into());
    if let Err(e) = builder.spawn(move || fetch(&theirs, &applier)) {
        fatal(format_args!("cannot start a thread: {e}"));
    }
}

fn fetch(shared: &Arc<Shared>, applier: &ApplyQueue) {
    let disk = Arc::clone(&shared.disk);
    let mut fetch = Fetch::new(disk, &shared.data, shared.reader.clone(), 0);
    let started = Instant::now();
    let mut troubles = BTreeSet::new();
    let mut told = None;
    let mut was_full = false;
    for round in 0.. {
        let Some(Fetching { offer, repairs, .. }) = *lock(&shared.fetching) else { return };
        let from = if repairs { shared.other_node(round) } else { offer.from };
        if told.replace(repairs) != Some(repairs) {
            let why = if repairs { "to repair the store" } else { "to go on" };
            info!("needs a snapshot {why} from node={from} index={}", offer.index);
        }
        fetch.aim(offer.index);
        match attempt(shared, from, &mut fetch) {
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
                    warning!("no space for a snapshot from node={from}, to be resumed: {e}");
                }
                was_full = true;
                thread::sleep(SPACE_PAUSE);
            }
            Err(e) => {
                // Not every time: a damaged store is repaired when somebody can, hours later perhaps.
                if troubles.len() < TROUBLES_MAX && troubles.insert((from, e.to_string())) {
                    warning!("a snapshot from node={from} did not come, to be tried again: {e}");
                }
            }
        }
        if shared.reader.view().applied() >= offer.index {
            // Its log came all the same, unless that is what must be replaced.
            let mut fetching = lock(&shared.fetching);
            if fetching.as_ref().is_some_and(|now| !now.repairs) {
                stop_on_error(fetch.discard());
                *fetching = None;
                return;
            }
        }
        thread::sleep(RETRY_PAUSE * (1 + round / 4).min(RETRY_PAUSES_MAX));
    }
}

impl Shared {
    /// The others in turn, whoever they are; 0 when there is none.
    fn other_node(&self, round: u32) -> NodeId {
        let others: Vec<NodeId> = self.others().into_iter().collect();
        others.get(round as usize % others.len().max(1)).copied().unwrap_or(0)
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
                if let Some(fetching) = lock(&shared.fetching).as_mut() {
                    fetching.progress = fetch.progress();
                }
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
    let view = shared.view();
    let mut last = io::Error::other("there is no such member");
    let Some(other) = view.others.get(&to) else { return Err(last) };
    let reached = other.addresses.iter().find_map(|address| {
        let stream = connect(address, CONNECT_TIMEOUT);
        stream.map_err(|e| last = e).ok()
    });
    let Some(mut stream) = reached else { return Err(last) };
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut out = PREAMBLE.to_vec();
    handshake::put_hello(&mut out, &other.hello);
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

//! Snapshots over sockets: the thread that fetches one, and what a peer reader does when another node
//! fetches one here.
//!
//! Whom to dial, what to ask, when to give up and what to do with an answer is decided by
//! [`SnapshotReceiver`]; what to answer, by [`SnapshotSender`].

use super::connection::Session;
use super::handshakes::{handshake_reader, read_one_frame, shake_hands};
use super::logging::{Kind, Level, info};
use super::sockets::{is_timeout, read_by, write_patiently};
use super::{ApplyQueue, Shared, fatal, lock};
use crate::env::resolve::connect;
use crate::kv::StoreError;
use crate::node::{
    ApplyTask, DEADLINE_US, ReceiverEffect, ReceiverEvent, Request, SNAPSHOT_IDLE_US,
    SNAPSHOT_SILENCE_US, SenderEffect, SnapshotReceiver, SnapshotRequest, SnapshotResponse,
    SnapshotSender, request_frame, request_of, response_frame, response_of,
};
use crate::raft::NodeId;
use crate::wire::frame::{FrameReader, PEER_FRAME_MAX};
use crate::wire::snapshot::{SnapshotFrame, put_snapshot_frame};
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// What the receiver says.
static SAID: Kind = Kind::new();
/// A handshake, and a write of a question, take no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_micros(SNAPSHOT_SILENCE_US);

/// Gives a snapshot to a node that fetches one.
pub(crate) fn serve(
    stream: &TcpStream,
    mut reader: FrameReader,
    from: NodeId,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    reader.set_limit(PEER_FRAME_MAX);
    let mut sender = SnapshotSender::new(shared.node.reader.clone());
    let mut session = Session::new(Arc::clone(shared));
    let mut told = false;
    loop {
        let until = Instant::now() + Duration::from_micros(SNAPSHOT_IDLE_US);
        let body = read_one_frame(stream, &mut reader, until)?;
        let request = request_of(&body).map_err(io::Error::other)?;
        let response = match sender.asked(request) {
            SenderEffect::Send(response) => response,
            SenderEffect::Flush => {
                let flush = Request::Flush { cut: false };
                session.call(vec![(shared.clock.now_us() + DEADLINE_US, flush)]);
                sender.flushed().unwrap_or(SnapshotResponse::Gone)
            }
            SenderEffect::Unreadable(e) => {
                shared.store_unreadable(&e);
                SnapshotResponse::Gone
            }
        };
        let frame = response_frame(response);
        if matches!(frame, SnapshotFrame::Begins { .. }) && !std::mem::replace(&mut told, true) {
            info!("gives a snapshot to node={from}");
        }
        let mut out = Vec::new();
        put_snapshot_frame(&mut out, &frame);
        write_patiently(stream, &out)?;
    }
}

/// The thread that fetches.
pub(crate) fn run(
    mut receiver: SnapshotReceiver,
    inbox: &Receiver<ReceiverEvent>,
    applier: &ApplyQueue,
    shared: &Shared,
) {
    let mut connection: Option<Connection> = None;
    let lost = |e: io::Error| ReceiverEvent::Lost { why: e.to_string() };
    loop {
        for event in inbox.try_iter() {
            stop_on_error(receiver.handle(event, shared.clock.now_us()));
        }
        let effect = receiver.poll(&shared.node.view().other_ids(), shared.clock.now_us());
        *lock(&shared.node.fetching) = receiver.progress();
        let event = match stop_on_error(effect) {
            ReceiverEffect::Dial { sender } => match Connection::dial(shared, sender) {
                Ok(made) => {
                    connection = Some(made);
                    Some(ReceiverEvent::Connected)
                }
                Err(e) => Some(lost(e)),
            },
            ReceiverEffect::Send(request) => {
                let sent = connection.as_mut().map_or(Ok(()), |open| open.send(request));
                sent.err().map(lost)
            }
            ReceiverEffect::Close => {
                connection = None;
                None
            }
            // The applier says when it is done with it.
            ReceiverEffect::Install { snapshot, index } => {
                let _ = applier.send(ApplyTask::Install { snapshot, index });
                None
            }
            ReceiverEffect::Say { warning, text } => {
                let level = if warning { Level::Warn } else { Level::Info };
                SAID.log(level, format_args!("{text}"));
                None
            }
            ReceiverEffect::Wait { until_us } => {
                let wait_us = until_us.saturating_sub(shared.clock.now_us());
                let wait = Duration::from_micros(wait_us);
                match &mut connection {
                    Some(open) => match open.read(Instant::now() + wait) {
                        Err(e) if is_timeout(&e) => None,
                        read => Some(read.unwrap_or_else(lost)),
                    },
                    None => match inbox.recv_timeout(wait) {
                        Ok(event) => Some(event),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => return,
                    },
                }
            }
        };
        if let Some(event) = event {
            stop_on_error(receiver.handle(event, shared.clock.now_us()));
        }
    }
}

/// Whatever the own disk does to a snapshot, it may do to everything else.
fn stop_on_error<T>(result: Result<T, StoreError>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => fatal(format_args!("cannot take in a snapshot, the node stops: {e}")),
    }
}

/// A connection with a node that gives a snapshot.
struct Connection {
    stream: TcpStream,
    reader: FrameReader,
}

impl Connection {
    fn dial(shared: &Shared, to: NodeId) -> io::Result<Connection> {
        let view = shared.node.view();
        let mut last = io::Error::other("there is no such member");
        let Some(other) = view.others.get(&to) else { return Err(last) };
        let reached = other.addresses.iter().find_map(|address| {
            let stream = connect(address, CONNECT_TIMEOUT);
            stream.map_err(|e| last = e).ok()
        });
        let Some(stream) = reached else { return Err(last) };
        let mut reader = handshake_reader();
        let greeting = other.greeting.clone();
        let answered = shake_hands(&stream, &mut reader, greeting, HANDSHAKE_TIMEOUT)?;
        answered.is_let_in(&view.keys).map_err(io::Error::other)?;
        reader.set_limit(PEER_FRAME_MAX);
        Ok(Connection { stream, reader })
    }

    fn send(&mut self, request: SnapshotRequest) -> io::Result<()> {
        let mut out = Vec::new();
        put_snapshot_frame(&mut out, &request_frame(request));
        self.stream.write_all(&out)
    }

    /// Reads once, until then at most.
    fn read(&mut self, until: Instant) -> io::Result<ReceiverEvent> {
        let n = read_by(&self.stream, self.reader.space(), until)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        self.reader.filled(n);
        let Some(body) = self.reader.next_frame().map_err(io::Error::other)? else {
            return Ok(ReceiverEvent::Heard);
        };
        let response = response_of(body).map_err(io::Error::other)?;
        Ok(ReceiverEvent::Answered(response))
    }
}

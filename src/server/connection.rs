//! The thread of a connection that was accepted: it does what [`api::Connection`] says, step by step.
//!
//! A connection's requests go to the raft loop as one message; the thread waits for the answers, or
//! reads on while whoever brings the last of them writes them ([`super::mailbox`]). Reads it then serves
//! itself, from the store, without another hop.

use super::handshakes::log_refused;
use super::logging::{Level, debug, info, log};
use super::mailbox::{Encode, Mailbox};
use super::sockets::{has_left, read, read_by, write_patiently, write_while};
use super::{ClientHandle, Shared, fatal, peer_in};
use crate::api::places::{Place, Rank};
use crate::api::{self, IDLE_TIMEOUT_US, Step, StoreTrouble, WritePatience};
use crate::client::{Cause, Connection, Error};
use crate::env::Random as _;
use crate::env::real::{FAILED_WRITE_TAKES_NOTHING, RealRandom};
use crate::kv::StoreError;
use crate::node::{Answer, Answerer, Input, Request, Verdict};
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a new node may take to say who it is, when somebody else asks to take it in. One that is
/// not there yet is no reason to refuse.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// Serves a connection until it ends, and says at its `place` what it shows of itself. `over_cap` when it is one
/// more than there may be.
pub(crate) fn serve(
    stream: &Arc<TcpStream>,
    shared: &Arc<Shared>,
    place: &Place,
    over_cap: bool,
) -> io::Result<()> {
    let now_us = || shared.clock.now_us();
    let nonce = RealRandom::default().bytes();
    let mut connection = api::Connection::new(Arc::clone(&shared.node), over_cap, nonce, now_us());
    let mut session = Session::new(Arc::clone(shared));
    let served = serve_steps(stream, shared, place, &mut connection, &mut session);
    session.settle();
    let last = connection.ends(now_us());
    if !last.is_empty() {
        session.submit(last, None);
    }
    served
}

/// Does what the connection says, until it ends.
fn serve_steps(
    stream: &Arc<TcpStream>,
    shared: &Arc<Shared>,
    place: &Place,
    connection: &mut api::Connection,
    session: &mut Session,
) -> io::Result<()> {
    let now_us = || shared.clock.now_us();
    let mut patience = Patience::default();
    loop {
        let step = connection.next(now_us());
        // Before anything is answered: whoever has an answer keeps its place.
        place.shows(connection.rank());
        if !matches!(step, Step::Read { .. }) {
            session.settle();
        }
        match step {
            Step::Read { until_us } => {
                place.rests();
                let until = until_us.map(|at_us| instant(at_us, now_us()));
                let n = patience.read(stream, connection.space(), until)?;
                if n == 0 {
                    return Ok(());
                }
                place.heard(now_us());
                connection.filled(n);
            }
            Step::Write(bytes) => {
                let mut patience = WritePatience::new(now_us());
                let written = write_while(stream, &bytes, |moved| {
                    if moved {
                        patience.moved(now_us());
                    }
                    patience.ends(now_us(), &shared.node.answers)
                })?;
                if let Err(why) = written {
                    info!("client connection closed: {why}");
                    return Ok(());
                }
                connection.written(bytes);
            }
            // Only where whoever answers can see at once that a client does not take it.
            Step::Submit { requests, direct: Some(encode) } if FAILED_WRITE_TAKES_NOTHING => {
                session.call_direct(requests, stream, encode);
                connection.answered_there();
            }
            Step::Submit { requests, .. } => {
                let answers = session.call(requests);
                connection.answered(answers, now_us());
            }
            Step::Check => {
                if has_left(stream, connection) {
                    debug!(
                        "client connection closed: it has left, and what it asked for is not done"
                    );
                    return Ok(());
                }
            }
            Step::Rest { us, why } => {
                log_refused(shared, stream, None, &why);
                std::thread::sleep(Duration::from_micros(us));
            }
            Step::Look { address } => connection.looked(look(shared, &address)),
            Step::Unreadable(e) => shared.store_unreadable(&e),
            Step::Refuse { hello, reject, frame } => {
                log_refused(shared, stream, hello.as_deref(), &reject.message);
                return write_patiently(stream, &frame);
            }
            Step::Peer { presented, reader, until_us } => {
                place.shows(Rank::Node);
                let until = instant(until_us, now_us());
                return peer_in::serve(stream, reader, presented, until, shared);
            }
            Step::Close { why } => {
                if let Some(why) = why {
                    info!("client connection closed: {why}");
                }
                return Ok(());
            }
        }
    }
}

fn instant(at_us: u64, now_us: u64) -> Instant {
    Instant::now() + Duration::from_micros(at_us.saturating_sub(now_us))
}

/// Who answers there, if anybody does at once.
fn look(shared: &Shared, address: &str) -> Option<Answerer> {
    match Connection::dial(address, &shared.node.token, shared.node.cluster, LOOK_TIMEOUT) {
        Ok(connection) => Some(Answerer::Node(connection.welcome().node)),
        Err(Error { cause: Cause::Rejected(reject), .. }) => Answerer::of_reject(reject),
        Err(_) => None,
    }
}

/// How a client is waited for.
#[derive(Default)]
struct Patience {
    /// The socket's read timeout is [`IDLE_TIMEOUT_US`].
    idle_set: bool,
}

impl Patience {
    /// Reads once; a time-out when that time has come, or nothing comes for [`IDLE_TIMEOUT_US`].
    fn read(
        &mut self,
        stream: &TcpStream,
        buffer: &mut [u8],
        until: Option<Instant>,
    ) -> io::Result<usize> {
        if let Some(until) = until {
            self.idle_set = false;
            return read_by(stream, buffer, until);
        }
        if !self.idle_set {
            // Once, not with every read: most requests come in one piece.
            stream.set_read_timeout(Some(Duration::from_micros(IDLE_TIMEOUT_US)))?;
            self.idle_set = true;
        }
        read(stream, buffer)
    }
}

/// One client's way to the raft loop.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    next_request: u64,
    /// Answers may be on their way that somebody else writes.
    direct: bool,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>) -> Session {
        let mailbox = Mailbox::new(&shared.node.answers);
        Session { shared, mailbox, next_request: 0, direct: false }
    }

    /// Submits requests as one message, and waits until each is answered, in their order. The
    /// replica answers every request, at the latest at its deadline.
    pub(crate) fn call(&mut self, requests: Vec<(u64, Request)>) -> Vec<Answer> {
        self.submit(requests, None);
        self.mailbox.wait()
    }

    /// Submits writes as one message and does not wait: whoever brings the last answer writes what
    /// `encode` makes of them to the socket. For answers that are small.
    pub(crate) fn call_direct(
        &mut self,
        requests: Vec<(u64, Request)>,
        stream: &Arc<TcpStream>,
        encode: Encode,
    ) {
        self.direct = true;
        self.submit(requests, Some((Arc::clone(stream), encode)));
    }

    /// Waits until the answers to [`Session::call_direct`] are written.
    pub(crate) fn settle(&mut self) {
        if std::mem::take(&mut self.direct) {
            self.mailbox.wait();
        }
    }

    fn submit(&mut self, requests: Vec<(u64, Request)>, direct: Option<(Arc<TcpStream>, Encode)>) {
        let first = self.next_request;
        let count = requests.len();
        self.next_request += count as u64;
        let numbered = (first..).zip(requests);
        let requests = numbered.map(|(n, (deadline_us, what))| (n, deadline_us, what)).collect();
        self.mailbox.open(first, count, direct);
        let client = ClientHandle(Arc::clone(&self.mailbox));
        if self.shared.raft.send(Input::Client { client, requests }).is_err() {
            for number in (first..).take(count) {
                let answer = Answer::Write(Verdict::Unknown("the node is stopping"));
                if let Some(last) = self.mailbox.put(number, answer) {
                    last.write();
                }
            }
        }
    }
}

impl Shared {
    /// The store could not be read: the node ends, or has it repaired ([`api::NodeState::trouble`]).
    pub(crate) fn store_unreadable(&self, e: &StoreError) {
        match self.node.trouble(e) {
            StoreTrouble::Fatal => {
                fatal(format_args!("the store cannot be read, the node stops: {e}"))
            }
            StoreTrouble::Damaged => {
                let line = self.node.damaged_line();
                log(Level::Error, format_args!("{line}; the damage is never served: {e}"));
                let _ = self.raft.send(Input::Damaged);
            }
            StoreTrouble::Known => {}
        }
    }

    /// Damage may have been met behind the scenes.
    pub(crate) fn damage_met(&self) {
        if let Some(e) = self.node.reader.damage() {
            self.store_unreadable(&e);
        }
    }
}

//! What clients say to a node, without a socket: bytes go in, requests for the replica and bytes come out.
//!
//! A [`Connection`] begins with its first byte. It finds out which of three dialects the client speaks
//! (frames, a Redis client's text or a person's lines, HTTP), takes the requests that arrived together,
//! has them put to the replica in one message and turns the answers into bytes. It does one thing after
//! the other: [`Connection::next`] says what is to be done now ([`Step`]), and whoever drives it does
//! that and says what came of it.
//!
//! | step                | what came of it                                            |
//! |---------------------|------------------------------------------------------------|
//! | [`Step::Read`]      | [`Connection::space`], [`Connection::filled`]              |
//! | [`Step::Write`]     | [`Connection::written`]                                    |
//! | [`Step::Submit`]    | [`Connection::answered`], or [`Connection::answered_there`] |
//! | [`Step::Look`]      | [`Connection::looked`]                                     |
//! | [`Step::Rest`], [`Step::Check`] | nothing                                        |
//!
//! ```text
//! bytes ─> dialect ─> Turn: requests ─> Step::Submit ─> answers ─> Turn: replies ─> dialect ─> bytes
//! ```
//!
//! So that no client holds much memory, nothing is read while a turn is under way, and what is read from
//! the store for it is written before more is. So that all of them together do not, what is not sent yet is part of a
//! budget that they share ([`NodeState::answers`]): a read whose answer finds no room there is answered *busy*. Nothing is
//! read for a client that has left, or behind a deadline: scans and counts are done in pieces, between which both are
//! looked at. What a connection may look at beside its bytes is
//! [`NodeState`]: who the node is, what its store holds, who leads.
//!
//! Left out: threads, sockets and time-outs of single writes (`server`), and what is done with a request
//! (`node`).

pub mod answers;
pub mod budget;
mod holding;
mod http;
mod load;
mod metrics;
mod native;
mod patience;
pub mod places;
pub mod ration;
mod replies;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod turn;

pub use load::Load;
pub use patience::{IDLE_TIMEOUT_US, REQUEST_TIMEOUT_US, TooSlow, WRITE_TIMEOUT_US, WritePatience};
pub use state::{NodeState, StoreTrouble};

use crate::kv::StoreError;
use crate::node::{Answer, Answerer, Request};
use crate::wire::frame::{CLIENT_FRAME_MAX, FrameReader, HANDSHAKE_FRAME_MAX};
use crate::wire::handshake::{self, Hello, Local, Reject, Remembered, Welcome};
use crate::wire::proof::{Listener, Nonce, Presented};
use crate::wire::sniff::{Dialect, sniff};
use crate::wire::text::reply::put_error;
use http::Http;
use native::Native;
use patience::{NO_ROOM, PARTIAL_FREE_BYTES, Patience};
use places::Rank;
use std::sync::Arc;
use text::Text;

/// Answers collected before they are written: what one connection may hold beside one page.
pub const OUT_BYTES_MAX: usize = 1 << 20;
/// What a large answer has beside its keys and values: more than any but one of many small ones.
const LARGE_ANSWER_BESIDE_BYTES: usize = 1 << 10;
/// Memory for answers that a connection keeps when all are written.
const OUT_BYTES_KEPT: usize = 64 << 10;
/// Whoever has not said what it wants within so long is sent away; a person may type slowly.
const FIRST_BYTES_TIMEOUT_US: u64 = 60_000_000;
/// Those beyond the cap of connections must be quick: the places are few.
const OVER_CAP_TIMEOUT_US: u64 = 2_000_000;
/// A dialer that has not said hello within so long, from its first byte, is sent away.
const HANDSHAKE_TIMEOUT_US: u64 = 10_000_000;
/// Memory up to which requests are read ahead while others are under way: what a connection may hold in any case.
const READ_AHEAD_BYTES_MAX: usize = PARTIAL_FREE_BYTES;
/// Bytes read at once where no frame says how much comes: a request, mostly. Thousands of connections may wait with as much
/// memory each, and what lies between what others keep is not given back by the allocator when they have left.
const READ_BYTES: usize = 4 << 10;
/// As many, for a client that may send commands and keeps filling that: all that it has under way is heard soon.
const READ_BYTES_MAX: usize = 256 << 10;

/// Turns the answers to a set of requests, in their order, into the bytes for the client.
pub type Encode = Box<dyn FnOnce(Vec<Answer>) -> Vec<u8> + Send>;

/// What is to be done for a connection now.
pub enum Step {
    /// Read once into [`Connection::space`], until then; without a time for as long as a client may be
    /// idle ([`IDLE_TIMEOUT_US`]). When the time is over, or the client has gone, the connection ends.
    Read {
        /// In microseconds on the node's clock.
        until_us: Option<u64>,
    },
    /// Write these bytes, all of them.
    Write(Vec<u8>),
    /// Put requests to the replica as one message, each with its deadline on the node's clock. Every one
    /// is answered.
    Submit {
        /// The requests.
        requests: Vec<(u64, Request)>,
        /// The answers are small: whoever brings the last may write what this makes of them, while more
        /// is read here. Nothing else is done for the connection before that is written.
        direct: Option<Encode>,
    },
    /// Say why, seldom, and do nothing for so long; then go on.
    Rest {
        /// In microseconds.
        us: u64,
        /// For the log.
        why: String,
    },
    /// Much work is still to be done for it: if the client has closed the connection, that ends here.
    Check,
    /// Find out who answers at an address; it may be nobody.
    Look {
        /// `HOST:PORT`.
        address: String,
    },
    /// The store could not be read: see [`NodeState::trouble`].
    Unreadable(StoreError),
    /// Tell the dialer why it is not let in, and end.
    Refuse {
        /// What it said, if that could be read.
        hello: Option<Box<Hello>>,
        /// The answer.
        reject: Reject,
        /// Its frame.
        frame: Vec<u8>,
    },
    /// It is another node, and knows the token: the rest is the matter of the links between nodes.
    Peer {
        /// What it said, and shows.
        presented: Box<Presented>,
        /// Has read that, and perhaps more.
        reader: FrameReader,
        /// When the handshake must be over.
        until_us: u64,
    },
    /// End; with a reason if the client did what it may not.
    Close {
        /// The reason, for the log.
        why: Option<String>,
    },
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Read { until_us } => write!(f, "Read {{ until_us: {until_us:?} }}"),
            Step::Write(bytes) => write!(f, "Write({} bytes)", bytes.len()),
            Step::Submit { requests, .. } => write!(f, "Submit({requests:?})"),
            Step::Rest { us, why } => write!(f, "Rest({us} us: {why})"),
            Step::Check => f.write_str("Check"),
            Step::Look { address } => write!(f, "Look({address})"),
            Step::Unreadable(e) => write!(f, "Unreadable({e})"),
            Step::Refuse { reject, .. } => write!(f, "Refuse({reject:?})"),
            Step::Peer { presented, .. } => write!(f, "Peer({presented:?})"),
            Step::Close { why } => write!(f, "Close({why:?})"),
        }
    }
}

/// What the client speaks.
#[derive(Debug)]
enum Phase {
    /// Not known yet: the bytes so far.
    First(Vec<u8>),
    /// Frames, before the Hello and between it and the proof.
    Hello {
        reader: FrameReader,
        preamble: bool,
        listener: Option<Listener>,
    },
    Native(Box<Native>),
    Text(Box<Text>),
    Http(Http),
    Closed,
}

/// One connection of a client; see the module.
#[derive(Debug)]
pub struct Connection {
    state: Arc<NodeState>,
    phase: Phase,
    /// It came when every place was taken: it is told so, unless it is a node.
    over_cap: bool,
    /// The random number of its handshake, if it comes to one.
    nonce: Nonce,
    /// When it must have said what it is.
    until_us: u64,
    patience: Patience,
    /// What is read where there is no [`FrameReader`], and how much at once.
    buffer: Vec<u8>,
    read_bytes: usize,
    /// To be written.
    out: Vec<u8>,
    /// Ends once that is written.
    closing: Option<Option<String>>,
}

impl Connection {
    /// One that was accepted just now, when every place was taken (`over_cap`) or not. The number is random and
    /// new.
    #[must_use]
    pub fn new(state: Arc<NodeState>, over_cap: bool, nonce: Nonce, now_us: u64) -> Connection {
        let timeout_us = if over_cap { OVER_CAP_TIMEOUT_US } else { FIRST_BYTES_TIMEOUT_US };
        Connection {
            patience: Patience::new(&state),
            state,
            phase: Phase::First(Vec::new()),
            over_cap,
            nonce,
            until_us: now_us + timeout_us,
            buffer: Vec::new(),
            read_bytes: READ_BYTES,
            out: Vec::new(),
            closing: None,
        }
    }

    /// Where to read into, behind a [`Step::Read`]; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.phase {
            Phase::Hello { reader, .. } => reader.space(),
            Phase::Native(native) => native.reader().space(),
            _ => {
                self.buffer.resize(self.read_bytes, 0);
                self.buffer.shrink_to(self.read_bytes);
                &mut self.buffer
            }
        }
    }

    /// What it has shown of itself so far.
    pub fn rank(&self) -> Rank {
        let asks_for_token = !self.state.token.is_empty();
        match &self.phase {
            Phase::First(bytes) if bytes.is_empty() => Rank::Silent,
            Phase::Native(_) if asks_for_token => Rank::Authenticated,
            Phase::Native(_) => Rank::Served,
            Phase::Text(text) if text.is_authorised() && asks_for_token => Rank::Authenticated,
            Phase::Text(text) if text.is_authorised() && text.was_served() => Rank::Served,
            Phase::Http(http) if http.was_served() => Rank::Served,
            _ => Rank::Unproven,
        }
    }

    /// Where to read into at a [`Step::Check`], what has arrived behind the requests that are under way: behind it the
    /// end of the connection shows. None when enough is read ahead.
    pub fn space_ahead(&mut self) -> Option<&mut [u8]> {
        match &mut self.phase {
            Phase::Native(native) => native.space_ahead(READ_AHEAD_BYTES_MAX),
            _ => None,
        }
    }

    /// The first `len` bytes of [`Connection::space`] hold what arrived.
    pub fn filled(&mut self, len: usize) {
        match &mut self.phase {
            Phase::First(bytes) => bytes.extend_from_slice(&self.buffer[..len]),
            Phase::Hello { reader, .. } => reader.filled(len),
            Phase::Native(native) => native.reader().filled(len),
            Phase::Text(text) => {
                let more = len == self.buffer.len() && text.is_authorised();
                if more {
                    self.read_bytes = (2 * len).min(READ_BYTES_MAX);
                } else if len < self.read_bytes / 4 {
                    self.read_bytes = (self.read_bytes / 2).max(READ_BYTES);
                }
                text.feed(&self.buffer[..len]);
            }
            Phase::Http(http) => http.feed(&self.buffer[..len]),
            Phase::Closed => {}
        }
    }

    /// The answers to what was submitted, in its order.
    pub fn answered(&mut self, answers: Vec<Answer>, now_us: u64) {
        match &mut self.phase {
            Phase::Native(native) => native.turn().answered(answers, now_us),
            Phase::Text(text) => text.turn().answered(answers, now_us),
            Phase::Http(http) => http.answered(&answers),
            _ => {}
        }
    }

    /// The answers to what was submitted are written by whoever brings the last of them.
    pub fn answered_there(&mut self) {
        if let Phase::Text(text) = &mut self.phase {
            text.turn().clear();
        }
    }

    /// Who answered at the address of a [`Step::Look`].
    pub fn looked(&mut self, answerer: Option<Answerer>) {
        if let Phase::Native(native) = &mut self.phase {
            native.looked(answerer, &self.state);
        }
    }

    /// It has ended: requests that the replica is to have of it, each with its deadline. Nobody waits for the answers.
    pub fn ends(&mut self, now_us: u64) -> Vec<(u64, Request)> {
        let Phase::Native(native) = &mut self.phase else { return Vec::new() };
        let deadline_us = state::deadline_us(0, now_us);
        native.releases().map(|released| (deadline_us, turn::command(&released))).collect()
    }

    /// All of a [`Step::Write`] is written; its buffer is used again.
    pub fn written(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        bytes.shrink_to(OUT_BYTES_KEPT);
        self.out = bytes;
    }

    /// What is to be done now.
    pub fn next(&mut self, now_us: u64) -> Step {
        loop {
            if self.out.len() > OUT_BYTES_MAX {
                return Step::Write(std::mem::take(&mut self.out));
            }
            if let Some(why) = self.closing.clone() {
                if !self.out.is_empty() {
                    return Step::Write(std::mem::take(&mut self.out));
                }
                self.phase = Phase::Closed;
                return Step::Close { why };
            }
            let (out, state) = (&mut self.out, &self.state);
            let progress = match &mut self.phase {
                Phase::First(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.begin(bytes, now_us)
                }
                Phase::Hello { .. } => self.hello(),
                Phase::Native(native) => native.next(state, out, now_us),
                Phase::Text(text) => text.next(state, out, now_us),
                Phase::Http(http) => http.next(state, out, now_us),
                Phase::Closed => Progress::Close(None),
            };
            match progress {
                Progress::Goes => {}
                Progress::Do(step) => return step,
                Progress::Close(why) => self.closing = Some(why),
                Progress::Flush => return Step::Write(std::mem::take(&mut self.out)),
                Progress::Wait(Wait::Until(until_us)) => {
                    return Step::Read { until_us: Some(until_us) };
                }
                Progress::Wait(Wait::Request { begun, fresh, memory, by_us }) => {
                    match self.patience.with(begun, fresh, memory, now_us) {
                        Some(until_us) => return Step::Read { until_us: by_us.or(until_us) },
                        None => {
                            match &self.phase {
                                Phase::Text(_) => {
                                    put_error(&mut self.out, &format!("ERR {NO_ROOM}"));
                                }
                                _ => native::put_no_room(&mut self.out),
                            }
                            self.closing = Some(None);
                        }
                    }
                }
            }
        }
    }

    /// Finds out what the client speaks.
    fn begin(&mut self, bytes: Vec<u8>, now_us: u64) -> Progress {
        let full = self.over_cap.then(|| self.state.full());
        match (sniff(&bytes), full) {
            (Dialect::NeedMore, _) => {
                self.phase = Phase::First(bytes);
                return Progress::Wait(Wait::Until(self.until_us));
            }
            (Dialect::Native, _) => {
                let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
                reader.feed(&bytes);
                self.until_us = now_us + HANDSHAKE_TIMEOUT_US;
                self.buffer = Vec::new();
                self.phase = Phase::Hello { reader, preamble: false, listener: None };
            }
            (Dialect::Http, full) => {
                let until_us = match full {
                    Some(_) => self.until_us,
                    None => now_us + http::IDLE_TIMEOUT_US,
                };
                self.phase = Phase::Http(Http::new(bytes, full, until_us));
            }
            (Dialect::Text, Some(full)) => {
                put_error(&mut self.out, &format!("ERR {full}"));
                return Progress::Close(None);
            }
            (Dialect::Text, None) => {
                self.phase = Phase::Text(Box::new(Text::new(&bytes, &self.state, now_us)));
            }
        }
        Progress::Goes
    }

    /// Takes the Hello, and then the proof.
    fn hello(&mut self) -> Progress {
        let Phase::Hello { reader, preamble, listener } = &mut self.phase else {
            return Progress::Goes;
        };
        let wait = Progress::Wait(Wait::Until(self.until_us));
        if !*preamble {
            match reader.preamble() {
                Ok(true) => *preamble = true,
                Ok(false) => return wait,
                Err(e) => return refuse(None, Reject::malformed(e.to_string())),
            }
        }
        let body = match reader.next_frame() {
            Ok(Some(body)) => body,
            Ok(None) if self.out.is_empty() => return wait,
            Ok(None) => return Progress::Flush,
            Err(e) => return refuse(None, Reject::malformed(e.to_string())),
        };
        let Some(heard) = listener.take() else {
            match Listener::new(body, &self.nonce) {
                Ok((heard, challenge)) => {
                    *listener = Some(heard);
                    self.out.extend_from_slice(&challenge);
                    return Progress::Goes;
                }
                Err(reject) => return refuse(None, reject),
            }
        };
        let hello = Box::new(heard.hello().clone());
        let proof = heard.proof(body, &self.state.token);
        let Phase::Hello { reader, .. } = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Progress::Goes;
        };
        match proof {
            Err(reject) => refuse(Some(hello), reject),
            Ok(presented) if hello.role.is_node() => {
                let presented = Box::new(presented);
                Progress::Do(Step::Peer { presented, reader, until_us: self.until_us })
            }
            Ok(presented) => self.client(&presented, reader),
        }
    }

    /// A client has shown the token.
    fn client(&mut self, presented: &Presented, mut reader: FrameReader) -> Progress {
        let (state, hello) = (&self.state, &presented.hello);
        let (cluster, node, identity) = (state.cluster, state.id, state.identity);
        if let Err(reject) = handshake::addressed(hello, &Local { cluster, node, identity }) {
            let frame = presented.answer(&Err(reject.clone()), None);
            return Progress::Do(Step::Refuse { hello: Some(hello.clone()), reject, frame });
        }
        if self.over_cap && !hello.only_asks {
            let reject = Err(Reject::no_place(state.full()));
            self.out.extend_from_slice(&presented.answer(&reject, None));
            return Progress::Close(None);
        }
        let (leader, leader_address) = state.known_leader();
        let welcome = Ok(Welcome {
            version: presented.version,
            cluster,
            node,
            identity,
            leader,
            leader_address,
            remembered: Remembered::default(),
        });
        self.out.extend_from_slice(&presented.answer(&welcome, None));
        reader.set_limit(CLIENT_FRAME_MAX);
        let full = self.over_cap.then(|| (state.full(), self.until_us));
        let native = Native::new(reader, state, presented.pad(), full);
        self.phase = Phase::Native(Box::new(native));
        Progress::Goes
    }
}

/// Makes room for a large answer, and no more: what grows by doubling would hold twice its bytes.
fn make_room(out: &mut Vec<u8>, bytes: usize) {
    if bytes > OUT_BYTES_KEPT {
        out.reserve_exact(bytes + LARGE_ANSWER_BESIDE_BYTES);
    }
}

/// Tells a dialer that has not shown the token why it is not let in.
fn refuse(hello: Option<Box<Hello>>, reject: Reject) -> Progress {
    let mut frame = Vec::new();
    handshake::put_reject(&mut frame, &reject);
    Progress::Do(Step::Refuse { hello, reject, frame })
}

/// What a dialect has come to.
enum Progress {
    /// It goes on at once.
    Goes,
    /// Something is to be done first.
    Do(Step),
    /// What there is is to be written first.
    Flush,
    /// Everything is written, and more bytes are needed.
    Wait(Wait),
    /// The connection ends once everything is written; with a reason for the log.
    Close(Option<String>),
}

enum Wait {
    /// Until then.
    Until(u64),
    /// As [`Patience`] says: whether a request has begun, whether one was completed since the last
    /// time, and the memory that is held for it; or until a time of its own.
    Request { begun: bool, fresh: bool, memory: usize, by_us: Option<u64> },
}

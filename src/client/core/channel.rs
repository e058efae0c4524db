//! The bytes of a connection to a node, without its socket: the handshake, requests out, answers in.
//!
//! It knows exactly how much was handed to the network: a request whose last byte was not is surely not
//! applied, any other is in doubt when the connection ends.

use super::super::error::Cause;
use crate::wire::client::{Answer, Request, Response, put_request, take_response};
use crate::wire::frame::{CLIENT_FRAME_MAX, FrameReader, HANDSHAKE_FRAME_MAX, PREAMBLE};
use crate::wire::handshake::{Hello, Welcome};
use crate::wire::proof::{Dialer, Dialing, Greeting, JoinedPad, Nonce, Secret};
use std::collections::VecDeque;

/// Bytes of the output buffer that are kept between flushes.
const OUT_KEPT_MAX: usize = 1 << 20;

/// A request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its id on this connection.
    pub id: u64,
    /// Its last byte's position in the stream: in doubt once [`Channel::handed`] reaches it.
    pub end: u64,
}

/// What a node has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It has let the client in.
    Welcome(Welcome),
    /// It has answered a request.
    Answer(Response),
}

/// See the module.
#[derive(Debug)]
pub struct Channel {
    reader: FrameReader,
    /// While the handshake is under way.
    dialer: Option<Dialer>,
    /// Unmasks what a node that joins is told.
    pad: Option<JoinedPad>,
    out: Vec<u8>,
    /// How much of `out` the network has taken.
    at: usize,
    /// How much of the requests it has taken.
    handed: u64,
    /// What is not handed over whole, in the order of the stream.
    unsent: VecDeque<Sent>,
    /// The last id that was used.
    last_id: u64,
}

impl Channel {
    /// One whose first words are to be written. `cluster` is the cluster meant, 0 for any. The number is random
    /// and new.
    #[must_use]
    pub fn new(cluster: u64, token: &[u8], nonce: Nonce) -> Channel {
        Channel::with(Greeting::of_client(Hello::of_client(cluster), token), nonce)
    }

    /// The same with a greeting of one's own.
    #[must_use]
    pub fn with(greeting: Greeting, nonce: Nonce) -> Channel {
        let (dialer, hello) = Dialer::new(greeting, nonce);
        let mut out = PREAMBLE.to_vec();
        out.extend_from_slice(&hello);
        Channel {
            reader: FrameReader::new(HANDSHAKE_FRAME_MAX),
            dialer: Some(dialer),
            pad: None,
            out,
            at: 0,
            handed: 0,
            unsent: VecDeque::new(),
            last_id: 0,
        }
    }

    /// Space to read into.
    pub fn space(&mut self) -> &mut [u8] {
        self.reader.space()
    }

    /// The first `len` bytes of [`Channel::space`] hold what arrived.
    pub fn filled(&mut self, len: usize) {
        self.reader.filled(len);
    }

    /// Adds bytes that were read elsewhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.reader.feed(bytes);
    }

    /// What the node has said next, if that is here. During the handshake it may leave more to be written.
    ///
    /// # Errors
    /// It does not let the client in, or says what makes no sense: the connection is of no further use.
    pub fn heard(&mut self) -> Result<Option<Heard>, Cause> {
        let Some(body) = self.reader.next_frame().map_err(Cause::Frame)? else { return Ok(None) };
        let Some(dialer) = &mut self.dialer else {
            let mut response = take_response(body).map_err(Cause::Malformed)?;
            if let (Ok(Answer::Joined(joined)), Some(pad)) = (&mut response.result, &self.pad)
                && let Some(Secret { bytes, .. }) = &mut joined.secret
            {
                *bytes = pad.mask(bytes);
            }
            return Ok(Some(Heard::Answer(response)));
        };
        match dialer.heard(body).map_err(Cause::Malformed)? {
            Dialing::Write(frame) => {
                self.out.extend_from_slice(&frame);
                Ok(None)
            }
            Dialing::Over(answered) => {
                let welcome = answered.answer.map_err(Cause::Rejected)?;
                self.reader.set_limit(CLIENT_FRAME_MAX);
                (self.dialer, self.pad, self.handed) = (None, Some(answered.pad), 0);
                Ok(Some(Heard::Welcome(welcome)))
            }
        }
    }

    /// Queues a request under its own id, which is larger than those before.
    ///
    /// # Errors
    /// [`Cause::Frameless`] when it fits no frame; the connection goes on without it.
    pub fn queue(&mut self, request: &Request) -> Result<Sent, Cause> {
        self.last_id = request.id;
        let start = self.out.len();
        let bytes = put_request(&mut self.out, request);
        if bytes > CLIENT_FRAME_MAX {
            self.out.truncate(start);
            return Err(Cause::Frameless { bytes, limit: CLIENT_FRAME_MAX });
        }
        let end = self.handed + (self.out.len() - self.at) as u64;
        let sent = Sent { id: request.id, end };
        self.unsent.push_back(sent);
        Ok(sent)
    }

    /// An id that no request had.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.last_id + 1
    }

    /// What is to be written.
    #[must_use]
    pub fn queued(&self) -> &[u8] {
        &self.out[self.at..]
    }

    /// The network has taken so many bytes more of [`Channel::queued`], or may have.
    pub fn took(&mut self, bytes: usize) {
        self.at += bytes;
        self.handed += bytes as u64;
        while self.unsent.front().is_some_and(|sent| sent.end <= self.handed) {
            self.unsent.pop_front();
        }
        if self.at == self.out.len() {
            self.at = 0;
            self.out.clear();
            self.out.shrink_to(OUT_KEPT_MAX);
        }
    }

    /// Position in the stream of requests up to which the network has taken it, or may have.
    #[must_use]
    pub fn handed(&self) -> u64 {
        self.handed
    }

    /// Requests from this id on have surely not been handed to the network whole.
    #[must_use]
    pub fn unsent_from(&self) -> u64 {
        self.unsent.front().map_or(u64::MAX, |sent| sent.id)
    }
}

//! The frame: length, CRC, body. The only place where native bytes become bounded pieces.
//!
//! A dialer sends the eight bytes of the [`PREAMBLE`] once; then both sides send frames. The
//! length is checked against a bound before memory is taken for it; which bound holds depends on
//! how far the connection is trusted. Any error here means that the stream is lost: close it.
//! docs/protocol.md, "Preamble" and "Frame", are the specification.

use std::fmt;

/// First byte of a native connection: neither ASCII nor the start of a UTF-8 text anyone types, so
/// that lines, RESP and HTTP are never taken for it.
pub const NATIVE_FIRST_BYTE: u8 = 0xF0;

/// Version of preamble and frame. The handshake settles the version of everything inside frames.
pub const FRAME_VERSION: u16 = 1;

/// What a dialer sends first: mark, version, two zero bytes.
pub const PREAMBLE: [u8; 8] = {
    let version = FRAME_VERSION.to_le_bytes();
    [NATIVE_FIRST_BYTE, b'K', b'T', b'K', version[0], version[1], 0, 0]
};

/// Bytes before a frame's body: `u32` length of the body, `u32` CRC-32 of the body.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Largest body before the handshake is done: a stranger gets next to no memory.
pub const HANDSHAKE_FRAME_MAX: usize = 4 << 10;

/// Largest body to and from a client: room for the largest batch that can be configured, small
/// enough that one connection cannot hurt the node.
pub const CLIENT_FRAME_MAX: usize = 16 << 20;

/// Largest body between peers: one entry made of the largest client frame, or a batch of entries.
pub const PEER_FRAME_MAX: usize = 32 << 20;

const _: () = assert!(HANDSHAKE_FRAME_MAX < CLIENT_FRAME_MAX);
// An entry or a forwarded write holds one client write in the form of the log; that form may be
// somewhat longer than the client's, and has a header. Twice is ample.
const _: () = assert!(2 * CLIENT_FRAME_MAX <= PEER_FRAME_MAX);
const _: () = assert!(PEER_FRAME_MAX + FRAME_HEADER_BYTES + READ_SPACE_MIN < u32::MAX as usize);

/// First buffer of a reader: most connections never need more, and there may be thousands.
const BUFFER_FIRST: usize = 4 << 10;

/// A reader whose reads keep filling its buffer doubles it up to here, so that a client with much under way is
/// heard soon; reads that fill an eighth halve it. Only a longer frame makes it larger, and that is given back after.
const BUFFER_KEPT_MAX: usize = 256 << 10;

/// A read always gets at least this much space.
const READ_SPACE_MIN: usize = 2 << 10;

const _: () = assert!(READ_SPACE_MIN < BUFFER_FIRST && BUFFER_FIRST < BUFFER_KEPT_MAX);

/// The first byte of a body: what it is.
pub mod kind {
    /// [`crate::wire::handshake::Hello`].
    pub const HELLO: u8 = 0x01;
    /// [`crate::wire::handshake::Welcome`].
    pub const WELCOME: u8 = 0x02;
    /// [`crate::wire::handshake::Reject`].
    pub const REJECT: u8 = 0x03;
    /// The listener's random number ([`crate::wire::proof`]).
    pub const CHALLENGE: u8 = 0x04;
    /// What the dialer shows ([`crate::wire::proof`]).
    pub const PROOF: u8 = 0x05;
    /// A [`crate::raft::Message`].
    pub const MESSAGE: u8 = 0x10;
    /// [`crate::wire::peer::Forward`].
    pub const FORWARD: u8 = 0x11;
    /// [`crate::wire::peer::ForwardAnswer`].
    pub const FORWARD_ANSWER: u8 = 0x12;
    /// [`crate::wire::peer::PeerFrame::Ping`].
    pub const PING: u8 = 0x13;
    /// [`crate::wire::peer::PeerFrame::Pong`].
    pub const PONG: u8 = 0x14;
    /// [`crate::wire::peer::PeerFrame::Digest`].
    pub const DIGEST: u8 = 0x15;
    /// [`crate::wire::peer::Admin`].
    pub const ADMIN: u8 = 0x16;
    /// [`crate::wire::peer::AdminAnswer`].
    pub const ADMIN_ANSWER: u8 = 0x17;
    /// [`crate::wire::client::Request`].
    pub const REQUEST: u8 = 0x20;
    /// [`crate::wire::client::Response`].
    pub const RESPONSE: u8 = 0x21;
}

/// Why a byte stream is not (any more) a stream of frames. The connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The first bytes are not the native preamble.
    NotNative {
        /// The first byte that differs, counted from 0.
        position: usize,
    },
    /// The preamble names a version of the frame that this build does not know.
    FrameVersion {
        /// The version named.
        version: u16,
    },
    /// The length of a body is above the bound. Nothing was allocated for it.
    TooLong {
        /// Bytes announced.
        announced: u32,
        /// Bytes allowed at this point of the connection.
        limit: usize,
    },
    /// A body of no bytes has no kind.
    Empty,
    /// The body is not what was sent.
    BadCrc {
        /// CRC-32 in the frame's header.
        stated: u32,
        /// CRC-32 of the body that arrived.
        computed: u32,
    },
    /// The stream ended within a preamble or a frame.
    CutOff {
        /// Bytes that arrived of it.
        have: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::NotNative { position } => {
                write!(f, "not a native connection: byte {position} of the preamble is wrong")
            }
            FrameError::FrameVersion { version } => {
                write!(f, "frame version {version}, this side knows {FRAME_VERSION}")
            }
            FrameError::TooLong { announced, limit } => {
                write!(f, "frame of {announced} bytes announced, the limit is {limit}")
            }
            FrameError::Empty => write!(f, "frame of 0 bytes"),
            FrameError::BadCrc { stated, computed } => {
                write!(f, "frame with CRC {computed:08x}, its header says {stated:08x}")
            }
            FrameError::CutOff { have } => write!(f, "stream ended {have} bytes into a frame"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Appends a frame whose body `body` writes: encoded once, in place; length and CRC are patched
/// behind it. Gives the length of the body, for the caller to hold against the receiver's bound.
///
/// # Panics
/// When the body is 4 GiB or longer: every bound lies far below, so that is our own bug.
pub fn put_frame(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    body(out);
    let (head, body) = out[start..].split_at_mut(FRAME_HEADER_BYTES);
    // invariant: what is encoded was checked against the limits before
    let len = u32::try_from(body.len()).expect("limits keep every frame below 4 GiB");
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    body.len()
}

/// Collects the bytes of one direction of a connection and gives out every complete frame.
///
/// Use: fill [`FrameReader::space`] from the socket, say how much with [`FrameReader::filled`],
/// then call [`FrameReader::next_frame`] until it gives none. Invariants: `start <= end <=
/// buffer.len()`; as long as the caller drains it between reads the buffer stays below the bound
/// of a frame plus [`FRAME_HEADER_BYTES`] and one read, and it grows with bytes that arrived, never
/// with bytes that were announced.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// First byte not given out yet.
    start: usize,
    /// End of the bytes that arrived.
    end: usize,
    /// Bytes of the last read.
    last_read: usize,
    /// Largest body accepted at present.
    limit: usize,
}

impl FrameReader {
    /// A reader that accepts bodies of up to `limit` bytes.
    pub fn new(limit: usize) -> FrameReader {
        FrameReader { buffer: Vec::new(), start: 0, end: 0, last_read: 0, limit }
    }

    /// Accepts bodies of up to `limit` bytes from now on: after the handshake.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Space to read into: never empty when every complete frame was taken out before.
    pub fn space(&mut self) -> &mut [u8] {
        let full = self.end == self.buffer.len() && self.end > 0;
        let held = self.buffer.len();
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if held > BUFFER_KEPT_MAX {
                self.buffer = Vec::new();
            }
        }
        let few = self.last_read.max(self.end - self.start) < held / 8;
        if few && held > BUFFER_FIRST && !self.buffer.is_empty() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            self.buffer.truncate(held / 2);
            self.buffer.shrink_to_fit();
        }
        // Not for a dialer that may send only short frames yet.
        let most = BUFFER_KEPT_MAX.min(self.limit);
        if full && self.last_read > 0 && held < most {
            self.make_room(2 * held - (self.end - self.start));
        }
        if self.buffer.len() - self.end < READ_SPACE_MIN {
            self.make_room(READ_SPACE_MIN);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `len` bytes of [`FrameReader::space`] hold what arrived.
    pub fn filled(&mut self, len: usize) {
        assert!(len <= self.buffer.len() - self.end, "more bytes than the space had");
        self.end += len;
        self.last_read = len;
    }

    /// Adds bytes that were read elsewhere; memory grows by their number at most twofold.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.buffer.len() - self.end < bytes.len() {
            self.make_room(bytes.len());
        }
        self.buffer[self.end..][..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Moves what is held to the front and grows until `room` more bytes fit.
    fn make_room(&mut self, room: usize) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let need = self.end + room;
        if need > self.buffer.len() {
            let bound = self.limit + FRAME_HEADER_BYTES + READ_SPACE_MIN;
            let len = (2 * self.buffer.len()).clamp(BUFFER_FIRST, bound.max(BUFFER_FIRST));
            self.buffer.reserve_exact(len.max(need) - self.buffer.len());
            self.buffer.resize(len.max(need), 0);
        }
    }

    /// Takes the dialer's preamble; false while it is not complete.
    pub fn preamble(&mut self) -> Result<bool, FrameError> {
        let held = &self.buffer[self.start..self.end];
        let mark = &PREAMBLE[..4];
        if let Some(position) = held.iter().zip(mark).position(|(have, want)| have != want) {
            return Err(FrameError::NotNative { position });
        }
        let Some(held) = held.first_chunk::<8>() else { return Ok(false) };
        let version = u16::from_le_bytes([held[4], held[5]]);
        if version != FRAME_VERSION {
            return Err(FrameError::FrameVersion { version });
        }
        if let Some(position) = (6..8).find(|&i| held[i] != 0) {
            return Err(FrameError::NotNative { position });
        }
        self.start += PREAMBLE.len();
        Ok(true)
    }

    /// The body of the next complete frame: at least one byte, CRC checked. After an error every
    /// call gives the same error.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let held = &self.buffer[self.start..self.end];
        let Some(head) = held.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let announced = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let stated = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let len = announced as usize;
        if len > self.limit {
            return Err(FrameError::TooLong { announced, limit: self.limit });
        }
        if len == 0 {
            return Err(FrameError::Empty);
        }
        let Some(body) = held[FRAME_HEADER_BYTES..].get(..len) else { return Ok(None) };
        let computed = crc32fast::hash(body);
        if stated != computed {
            return Err(FrameError::BadCrc { stated, computed });
        }
        let body_start = self.start + FRAME_HEADER_BYTES;
        self.start = body_start + len;
        Ok(Some(&self.buffer[body_start..self.start]))
    }

    /// The stream has ended: an error when that was within a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.end - self.start {
            0 => Ok(()),
            have => Err(FrameError::CutOff { have }),
        }
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}

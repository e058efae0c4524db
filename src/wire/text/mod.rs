//! The text dialect: RESP2 arrays of bulk strings from Redis clients, and lines that people type.
//!
//! [`TextReader`] cuts a byte stream into commands (lists of words), [`command`] gives words a
//! meaning, [`reply`] writes answers. Errors are worded as Redis words them, because client
//! libraries match on them. Left out: RESP3 and inline answers of another form; somebody at telnet
//! reads RESP well enough.

pub mod command;
pub mod reply;
mod words;

pub use command::TextCommand;
pub use words::split_words;

use super::frame::CLIENT_FRAME_MAX;
use super::kv::WRITE_PARTS_MAX;
use std::fmt;

/// Longest typed line, and longest line that announces a count or a length; Redis has the same.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// Most words of one command: as many keys and values as a write may have.
pub const WORDS_MAX: usize = 2 * WRITE_PARTS_MAX + 1;

/// Most bytes of one command's words: what a native client may send in one frame.
pub const COMMAND_BYTES_MAX: usize = CLIENT_FRAME_MAX;

const _: () = assert!(LINE_BYTES_MAX < COMMAND_BYTES_MAX);

/// The same of a client that has not shown the token where one is asked for: `AUTH` needs three words. Redis
/// has about the same.
pub const UNTRUSTED_WORDS_MAX: usize = 10;
/// Longest line of such a client, and most bytes of one command's words.
pub const UNTRUSTED_BYTES_MAX: usize = 16 << 10;

/// A buffer that a large word made longer than this is given back when it is empty: there may be
/// thousands of connections.
const BUFFER_KEPT_MAX: usize = 256 << 10;

/// The stream does not follow the protocol: to be answered with this text, then closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// A typed line has no end within [`LINE_BYTES_MAX`].
    LineTooLong,
    /// A typed line's quotes do not pair up.
    UnbalancedQuotes,
    /// The line with the number of words has no end within [`LINE_BYTES_MAX`].
    CountLineTooLong,
    /// The number of words is not a number or above [`WORDS_MAX`].
    BadCount,
    /// A word does not begin with `$`.
    NotABulk(u8),
    /// The line with the length of a word has no end within [`LINE_BYTES_MAX`].
    LengthLineTooLong,
    /// The length of a word is not a number or above the bound.
    BadLength,
    /// All words together are above [`COMMAND_BYTES_MAX`].
    CommandTooLong,
    /// A word is longer than announced.
    NoEndOfBulk,
    /// The number of words is above [`UNTRUSTED_WORDS_MAX`], before the token was shown.
    UntrustedCount,
    /// A line or all words together are above [`UNTRUSTED_BYTES_MAX`], before the token was shown.
    UntrustedLength,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ERR Protocol error: ")?;
        match self {
            TextError::LineTooLong => f.write_str("too big inline request"),
            TextError::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            TextError::CountLineTooLong => f.write_str("too big mbulk count string"),
            TextError::BadCount => f.write_str("invalid multibulk length"),
            TextError::NotABulk(byte) => {
                write!(f, "expected '$', got '{}'", byte.escape_ascii())
            }
            TextError::LengthLineTooLong => f.write_str("too big bulk count string"),
            TextError::BadLength => f.write_str("invalid bulk length"),
            TextError::CommandTooLong => write!(f, "command above {COMMAND_BYTES_MAX} bytes"),
            TextError::NoEndOfBulk => f.write_str("expected CRLF after a bulk string"),
            TextError::UntrustedCount => f.write_str("unauthenticated multibulk length"),
            TextError::UntrustedLength => f.write_str("unauthenticated bulk length"),
        }
    }
}

impl std::error::Error for TextError {}

/// Collects bytes and gives out every complete command.
///
/// Use: [`TextReader::feed`] what a read brought, then [`TextReader::next_command`] until it gives
/// none. Memory stays within a command's bound and one read, and grows with bytes that
/// arrived, never with bytes that were announced. Invariant: `start` and `scanned` lie within
/// the buffer.
#[derive(Debug)]
pub struct TextReader {
    buffer: Vec<u8>,
    /// First byte not used yet.
    start: usize,
    /// No line feed lies between `start` and here: a line that trickles in is searched once.
    scanned: usize,
    /// The array whose words are arriving.
    array: Option<Array>,
    bulk_bytes_max: usize,
    /// The client has shown the token, or need not.
    trusted: bool,
    error: Option<TextError>,
}

/// An array of which some words are still to come.
#[derive(Debug)]
struct Array {
    words: Vec<Vec<u8>>,
    /// Words to come, at least one.
    left: usize,
    /// Length of the word that is arriving, once announced.
    bulk: Option<usize>,
    /// Bytes of all words announced so far.
    bytes: usize,
}

impl TextReader {
    /// A reader that accepts words of up to `bulk_bytes_max` bytes.
    pub fn new(bulk_bytes_max: usize) -> TextReader {
        TextReader {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            array: None,
            bulk_bytes_max,
            trusted: true,
            error: None,
        }
    }

    /// Whether the client has shown the token: before, what it sends has bounds that are much smaller.
    pub fn set_trusted(&mut self, trusted: bool) {
        self.trusted = trusted;
    }

    /// Adds what a read brought.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned = self.scanned.saturating_sub(self.start);
            self.start = 0;
            if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEPT_MAX {
                self.buffer = Vec::new();
            }
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The words of the next complete command, at least one. After an error every call gives the
    /// same error.
    pub fn next_command(&mut self) -> Result<Option<Vec<Vec<u8>>>, TextError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let result = self.parse();
        self.error = result.as_ref().err().copied();
        result
    }

    fn parse(&mut self) -> Result<Option<Vec<Vec<u8>>>, TextError> {
        loop {
            if self.array.is_some() {
                return self.parse_array();
            }
            match self.buffer.get(self.start) {
                None => return Ok(None),
                Some(b'*') => {
                    let Some(line) = self.line(TextError::CountLineTooLong)? else {
                        return Ok(None);
                    };
                    let count = number(&line[1..]).ok_or(TextError::BadCount)?;
                    // Redis skips an empty array and the nil array.
                    if let Ok(left @ 1..) = usize::try_from(count) {
                        if left > WORDS_MAX {
                            return Err(TextError::BadCount);
                        }
                        if !self.trusted && left > UNTRUSTED_WORDS_MAX {
                            return Err(TextError::UntrustedCount);
                        }
                        self.array = Some(Array { words: Vec::new(), left, bulk: None, bytes: 0 });
                    }
                }
                Some(_) => {
                    let Some(line) = self.line(TextError::LineTooLong)? else { return Ok(None) };
                    let words = split_words(line).ok_or(TextError::UnbalancedQuotes)?;
                    if !words.is_empty() {
                        return Ok(Some(words));
                    }
                }
            }
        }
    }

    fn parse_array(&mut self) -> Result<Option<Vec<Vec<u8>>>, TextError> {
        let Some(mut array) = self.array.take() else { return Ok(None) };
        while array.left > 0 {
            let Some(len) = array.bulk else {
                match self.buffer.get(self.start) {
                    None => break,
                    Some(b'$') => {}
                    Some(&byte) => return Err(TextError::NotABulk(byte)),
                }
                let Some(line) = self.line(TextError::LengthLineTooLong)? else { break };
                let len = number(&line[1..]).and_then(|len| usize::try_from(len).ok());
                let len = len.filter(|&len| len <= self.bulk_bytes_max);
                let len = len.ok_or(TextError::BadLength)?;
                array.bytes += len;
                if !self.trusted && array.bytes > UNTRUSTED_BYTES_MAX {
                    return Err(TextError::UntrustedLength);
                }
                if array.bytes > COMMAND_BYTES_MAX {
                    return Err(TextError::CommandTooLong);
                }
                array.bulk = Some(len);
                continue;
            };
            let held = &self.buffer[self.start..];
            let end = held.get(len..).unwrap_or_default();
            if !b"\r\n".starts_with(&end[..end.len().min(2)]) {
                return Err(TextError::NoEndOfBulk);
            }
            if end.len() < 2 {
                break;
            }
            array.words.push(held[..len].to_vec());
            array.bulk = None;
            array.left -= 1;
            self.start += len + 2;
            self.scanned = self.start;
        }
        if array.left == 0 {
            return Ok(Some(array.words));
        }
        self.array = Some(array);
        Ok(None)
    }

    /// The line at `start` without its end, once it is complete.
    fn line(&mut self, too_long: TextError) -> Result<Option<&[u8]>, TextError> {
        self.scanned = self.scanned.max(self.start);
        let found = self.buffer[self.scanned..].iter().position(|&b| b == b'\n');
        let end = found.map_or(self.buffer.len(), |at| self.scanned + at);
        self.scanned = end;
        if !self.trusted && end - self.start >= UNTRUSTED_BYTES_MAX {
            return Err(TextError::UntrustedLength);
        }
        if end - self.start >= LINE_BYTES_MAX {
            return Err(too_long);
        }
        if found.is_none() {
            return Ok(None);
        }
        let line = &self.buffer[self.start..end];
        self.start = end + 1;
        self.scanned = self.start;
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }

    /// Whether a command has begun that is not complete.
    pub fn begun(&self) -> bool {
        self.array.is_some() || self.start < self.buffer.len()
    }

    /// Bytes of memory held for what is incomplete.
    pub fn memory(&self) -> usize {
        let words = self.array.as_ref().map_or(0, |a| {
            a.words.capacity() * size_of::<Vec<u8>>() + a.words.iter().map(Vec::len).sum::<usize>()
        });
        self.buffer.capacity() + words
    }
}

/// A decimal number and nothing else, as Redis reads counts and lengths.
fn number(text: &[u8]) -> Option<i64> {
    if text.first() == Some(&b'+') {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;

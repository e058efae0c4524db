//! The records of a recording as bytes: each with its length, its number and checksums.
//!
//! A process is killed in the middle of a write: then the last record ends early, which is no fault. So that this is
//! told from damage, a record's head has a checksum of its own: what it says of the length can be believed before
//! the rest is there.

use crate::raft::NodeId;
use crate::raft::codec::Malformed;
use std::fmt;

/// What a recording begins with: its name and the version of the format.
pub const MAGIC: [u8; 8] = *b"kontrec\x01";

/// What the name of a recording ends with.
pub const EXTENSION: &str = "rec";

/// Name of the recording of a node's life.
pub fn file_name(node: NodeId, life: u64) -> String {
    format!("kontiki-{node}-{life:04}.{EXTENSION}")
}

/// Which life of the node a file of that name is the recording of; none for another file.
pub fn life_of(name: &str, node: NodeId) -> Option<u64> {
    let life = name.strip_prefix(&format!("kontiki-{node}-"))?;
    life.strip_suffix(EXTENSION)?.strip_suffix('.')?.parse().ok()
}

/// Longest body of a record: the largest frame of a peer, or a set of requests of one connection, with room to spare.
pub const RECORD_BYTES_MAX: usize = 256 << 20;

/// Length of a record's head: length, checksum of the body, checksum of the head.
const HEAD_BYTES: usize = 12;

/// Makes a recording: the bytes of what was put and not taken yet.
#[derive(Debug)]
pub struct RecordWriter {
    bytes: Vec<u8>,
    /// Number of the next record.
    number: u64,
    /// Bytes of the whole recording so far.
    total: u64,
}

impl Default for RecordWriter {
    fn default() -> RecordWriter {
        RecordWriter { bytes: MAGIC.to_vec(), number: 0, total: MAGIC.len() as u64 }
    }
}

impl RecordWriter {
    /// Adds a record with this body.
    pub fn put(&mut self, body: &[u8]) {
        let before = self.bytes.len();
        put_record(&mut self.bytes, self.number, body);
        self.total += (self.bytes.len() - before) as u64;
        self.number += 1;
    }

    /// Bytes of the whole recording so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that were not taken yet.
    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Takes them.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Appends a record with this number, from 0, and body.
fn put_record(out: &mut Vec<u8>, number: u64, body: &[u8]) {
    let (len, crc) = (body.len() as u32, crc32fast::hash(body));
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&head_crc(number, len, crc).to_le_bytes());
    out.extend_from_slice(body);
}

/// Over the number, too, which is not written: a record in another one's place is damage.
fn head_crc(number: u64, len: u32, crc: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    hasher.update(&crc.to_le_bytes());
    hasher.finalize()
}

/// A recording that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordingError {
    /// It does not begin like one.
    Foreign,
    /// It is of another version of the format.
    Version {
        /// Which.
        version: u8,
    },
    /// It was changed since it was written: no end of a process leaves this.
    Damaged {
        /// Where the record begins.
        offset: u64,
        /// The record's number, from 0.
        number: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordingError::Foreign => {
                f.write_str("it is no recording: kontiki serve --record makes them")
            }
            RecordingError::Version { version } => write!(
                f,
                "it has version {version} of the format and this kontiki knows {}: replay it with the \
                 kontiki that recorded it",
                MAGIC[7]
            ),
            RecordingError::Damaged { offset, number, what } => write!(
                f,
                "record {number} at offset {offset} is damaged ({what}): the file was changed since it was \
                 written; take another copy of it"
            ),
        }
    }
}

impl std::error::Error for RecordingError {}

/// How a recording ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Behind a whole record.
    Whole,
    /// Within a record, so many bytes into it: the process was killed, or still runs.
    Torn {
        /// Bytes of the record that are there.
        bytes: u64,
    },
}

/// Gives out the records of a file.
#[derive(Clone, Debug)]
pub struct RecordReader<'a> {
    bytes: &'a [u8],
    offset: usize,
    number: u64,
}

impl<'a> RecordReader<'a> {
    /// A reader of a whole file's bytes.
    ///
    /// # Errors
    /// It is no recording, or of another version. A file that ends within the first eight bytes is an empty one.
    pub fn new(bytes: &'a [u8]) -> Result<RecordReader<'a>, RecordingError> {
        let (name, version) = MAGIC.split_at(7);
        let have = &bytes[..bytes.len().min(7)];
        if have != &name[..have.len()] {
            return Err(RecordingError::Foreign);
        }
        match bytes.get(7) {
            Some(&found) if found != version[0] => {
                return Err(RecordingError::Version { version: found });
            }
            _ => {}
        }
        Ok(RecordReader { bytes, offset: bytes.len().min(MAGIC.len()), number: 0 })
    }

    /// The number of the record that was given out last, from 0.
    pub fn number(&self) -> u64 {
        self.number.saturating_sub(1)
    }

    /// The body of the next record; or how the file ends.
    ///
    /// # Errors
    /// [`RecordingError::Damaged`].
    pub fn next_body(&mut self) -> Result<Result<&'a [u8], Ending>, RecordingError> {
        let rest = &self.bytes[self.offset..];
        let damaged = |what| RecordingError::Damaged {
            offset: self.offset as u64,
            number: self.number,
            what,
        };
        let torn = Ok(Err(Ending::Torn { bytes: rest.len() as u64 }));
        if rest.is_empty() {
            return Ok(Err(Ending::Whole));
        }
        let Some((head, behind)) = rest.split_at_checked(HEAD_BYTES) else { return torn };
        let field = |at: usize| {
            let b = &head[at..];
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        let (len, crc) = (field(0), field(4));
        if field(8) != head_crc(self.number, len, crc) {
            // A power loss leaves zeros where the file had grown and nothing was written yet.
            return if rest.iter().all(|&b| b == 0) { torn } else { Err(damaged("its head")) };
        }
        if len as usize > RECORD_BYTES_MAX {
            return Err(damaged("its length"));
        }
        let Some(body) = behind.get(..len as usize) else { return torn };
        if crc32fast::hash(body) != crc {
            return Err(damaged("its checksum"));
        }
        self.offset += HEAD_BYTES + body.len();
        self.number += 1;
        Ok(Ok(body))
    }

    /// The record that was given out last is whole and yet none.
    #[must_use]
    pub fn malformed(&self, Malformed(what): Malformed) -> RecordingError {
        RecordingError::Damaged { offset: self.offset as u64, number: self.number(), what }
    }
}

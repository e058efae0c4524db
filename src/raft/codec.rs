//! The byte form of entries and configurations, one for the log file and for the wire.
//!
//! docs/formats.md, "Entry" and "Configuration", are the specification. All integers are little
//! endian. Decoding trusts nothing: every length is checked against what is there before memory is
//! taken, and a refusal names the field.

use super::types::{Entry, NodeId, Payload};
use super::{Configuration, Member};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Bytes that do not decode: what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A cursor over bytes from outside.
#[derive(Clone, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed(what))?;
        self.0 = tail;
        Ok(head)
    }

    /// The next byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.bytes(1, what)?[0])
    }

    /// The next two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        let b = self.bytes(2, what)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }

    /// The next four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let b = self.bytes(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// The next eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let b = self.bytes(8, what)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    /// A `u32` length and that many bytes.
    pub fn blob(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.u32(what)? as usize;
        self.bytes(len, what)
    }

    /// Refuses left-over bytes.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

const KIND_NOOP: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_CONFIGURATION: u8 = 2;

/// Bytes of an encoded entry before its payload: index, term, kind, payload length.
pub const ENTRY_HEADER_BYTES: usize = 8 + 8 + 1 + 4;

/// Bytes that [`put_entry`] writes for this entry.
pub fn entry_len(entry: &Entry) -> usize {
    ENTRY_HEADER_BYTES
        + match &entry.payload {
            Payload::Noop => 0,
            Payload::Command(bytes) => bytes.len(),
            Payload::Configuration(c) => configuration_len(c),
        }
}

/// Appends the entry's byte form.
pub fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(&entry.index.to_le_bytes());
    out.extend_from_slice(&entry.term.to_le_bytes());
    match &entry.payload {
        Payload::Noop => {
            out.push(KIND_NOOP);
            put_len(out, 0);
        }
        Payload::Command(bytes) => {
            out.push(KIND_COMMAND);
            put_len(out, bytes.len());
            out.extend_from_slice(bytes);
        }
        Payload::Configuration(c) => {
            out.push(KIND_CONFIGURATION);
            put_len(out, configuration_len(c));
            put_configuration(out, c);
        }
    }
}

/// Reads one entry.
pub fn take_entry(input: &mut Input<'_>) -> Result<Entry, Malformed> {
    let index = input.u64("entry index")?;
    let term = input.u64("entry term")?;
    let kind = input.u8("entry kind")?;
    let payload = input.blob("entry payload")?;
    let payload = match kind {
        KIND_NOOP if payload.is_empty() => Payload::Noop,
        KIND_COMMAND => Payload::Command(Arc::from(payload)),
        KIND_CONFIGURATION => {
            let mut inner = Input(payload);
            let c = take_configuration(&mut inner)?;
            inner.end("configuration length")?;
            Payload::Configuration(Arc::new(c))
        }
        _ => return Err(Malformed("entry kind")),
    };
    Ok(Entry { index, term, payload })
}

fn configuration_len(c: &Configuration) -> usize {
    let members: usize = c.members.iter().map(|m| 8 + 8 + 4 + m.address.len()).sum();
    let sets = c.voters.len() + c.outgoing.len() + c.learners.len();
    8 + 4 + members + 3 * 4 + 8 * sets + 4 + 16 * c.replaces.len() + 8
}

/// Appends the configuration's byte form.
pub fn put_configuration(out: &mut Vec<u8>, c: &Configuration) {
    out.extend_from_slice(&c.cluster.to_le_bytes());
    put_len(out, c.members.len());
    for m in &c.members {
        out.extend_from_slice(&m.id.to_le_bytes());
        out.extend_from_slice(&m.identity.to_le_bytes());
        put_len(out, m.address.len());
        out.extend_from_slice(m.address.as_bytes());
    }
    for set in [&c.voters, &c.outgoing, &c.learners] {
        put_len(out, set.len());
        for id in set {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    put_len(out, c.replaces.len());
    for (new, old) in &c.replaces {
        out.extend_from_slice(&new.to_le_bytes());
        out.extend_from_slice(&old.to_le_bytes());
    }
    out.extend_from_slice(&c.last_id.to_le_bytes());
}

/// Reads one configuration and checks the invariants of its type.
pub fn take_configuration(input: &mut Input<'_>) -> Result<Configuration, Malformed> {
    let cluster = input.u64("cluster id")?;
    let count = input.u32("member count")?;
    let mut members: Vec<Member> = Vec::new();
    for _ in 0..count {
        let id = input.u64("member id")?;
        let identity = input.u64("member identity")?;
        let address = input.blob("member address")?;
        let address = std::str::from_utf8(address).map_err(|_| Malformed("member address"))?;
        if id == 0 || members.last().is_some_and(|last| last.id >= id) {
            return Err(Malformed("member order"));
        }
        members.push(Member { id, identity, address: address.to_string() });
    }
    let mut sets: [BTreeSet<NodeId>; 3] = Default::default();
    for set in &mut sets {
        for _ in 0..input.u32("set size")? {
            let id = input.u64("set member")?;
            if !members.iter().any(|m| m.id == id) || !set.insert(id) {
                return Err(Malformed("set member"));
            }
        }
    }
    let [voters, outgoing, learners] = sets;
    let mut replaces = BTreeMap::new();
    for _ in 0..input.u32("replacement count")? {
        let new = input.u64("replacement")?;
        if replaces.insert(new, input.u64("replaced member")?).is_some() {
            return Err(Malformed("replacement"));
        }
    }
    let last_id = input.u64("greatest member id")?;
    let c = Configuration { cluster, members, voters, outgoing, learners, replaces, last_id };
    if c.is_valid() { Ok(c) } else { Err(Malformed("member sets")) }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("limits keep every length below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Entry> {
        let members = vec![
            Member { id: 1, identity: 7, address: "127.0.0.1:7101".into() },
            Member { id: 2, identity: 0, address: "host:1".into() },
        ];
        let c = Arc::new(Configuration::of_voters(9, members));
        vec![
            Entry { index: 1, term: 1, payload: Payload::Noop },
            Entry { index: 2, term: 1, payload: Payload::Command(Arc::from(&b"abc"[..])) },
            Entry { index: 3, term: 2, payload: Payload::Configuration(c) },
        ]
    }

    /// Every entry comes back as it went in, and its stated length is its length.
    #[test]
    fn entries_round_trip() {
        for entry in sample() {
            let mut out = Vec::new();
            put_entry(&mut out, &entry);
            assert_eq!(out.len(), entry_len(&entry));
            let mut input = Input(&out);
            assert_eq!(take_entry(&mut input).unwrap(), entry);
            input.end("rest").unwrap();
        }
    }

    /// A cut-off entry is refused at every length, never read past its end.
    #[test]
    fn a_cut_entry_is_refused() {
        for entry in sample() {
            let mut out = Vec::new();
            put_entry(&mut out, &entry);
            for len in 0..out.len() {
                assert!(take_entry(&mut Input(&out[..len])).is_err(), "length {len}");
            }
        }
    }

    /// The bytes are frozen: docs/formats.md shows this very entry.
    #[test]
    fn the_entry_format_is_frozen() {
        let mut out = Vec::new();
        put_entry(&mut out, &sample()[1]);
        let expected =
            [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 0, 0, b'a', b'b', b'c'];
        assert_eq!(out, expected);
    }
}

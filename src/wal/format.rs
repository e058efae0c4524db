//! The bytes of a segment: its header, the frame of a batch, the records in it.
//!
//! docs/formats.md, "Log", is the specification. Nothing here does input or output; every length
//! is checked against what is there before it is believed.

use crate::raft::codec::{self, Input, Malformed};
use crate::raft::{Configuration, Entry, HardState, Index, Term};
use std::sync::Arc;

/// A batch begins at a multiple of this within its segment: the unit in which disks tear, so that
/// writing one batch never touches a sector that holds another.
pub(super) const ALIGN_BYTES: u64 = 512;

/// Writes reach to the end of such a page with zeros, so that no page has to be read before it is
/// written and the place of the next batch is blank even in a recycled segment.
pub(super) const PAGE_BYTES: u64 = 4096;

/// CRC, length and sequence number before the records of a batch.
pub(super) const BATCH_HEADER_BYTES: usize = 4 + 4 + 8;

/// The part of a segment's header that every header has.
pub(super) const HEADER_FIXED_BYTES: usize = 104;

/// No header is larger: room for thousands of members, and little enough to read on trust.
pub(super) const HEADER_BYTES_MAX: usize = 1 << 20;

/// First bytes of every segment.
pub(super) const MAGIC: [u8; 8] = *b"kontlog\n";

/// Version of the format.
pub(super) const VERSION: u32 = 1;

/// First bytes of an end mark.
const END_MAGIC: [u8; 8] = *b"kontend\n";

const RECORD_HARD_STATE: u8 = 1;
const RECORD_ENTRY: u8 = 2;
const RECORD_FIRST_SEGMENT: u8 = 3;

/// Bytes of an entry's record beside the entry.
pub(super) const ENTRY_RECORD_BYTES: usize = 1;

/// The kind byte of an entry that holds a configuration (docs/formats.md, "Entry").
const ENTRY_KIND_CONFIGURATION: u8 = 2;

const _: () = assert!(PAGE_BYTES.is_multiple_of(ALIGN_BYTES));
const _: () = assert!(HEADER_FIXED_BYTES <= ALIGN_BYTES as usize);
const _: () = assert!(BATCH_HEADER_BYTES <= ALIGN_BYTES as usize);

/// The next multiple of [`ALIGN_BYTES`].
pub(super) fn aligned(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGN_BYTES)
}

/// Where the batches of a segment end at the latest: its last sector is kept for the end mark.
pub(super) fn data_end(segment_bytes: u64) -> u64 {
    segment_bytes.saturating_sub(ALIGN_BYTES)
}

/// Where the zeros end that follow a header or batch which ends at `end`.
pub(super) fn padded(end: u64, data_end: u64) -> u64 {
    (aligned(end) + BATCH_HEADER_BYTES as u64).next_multiple_of(PAGE_BYTES).min(data_end)
}

/// What a segment's header says of the log in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The log goes on where the segment before ended.
    Continue,
    /// The log ends at `prev`; entries behind it in older segments are void.
    Truncate,
    /// The log in front is void; a snapshot reaches to `prev`.
    Reset,
}

/// A segment's header: all that must survive when the segments in front of it are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) start: Start,
    /// The log's identity; seeds every checksum.
    pub(super) identity: u64,
    /// The segment's number, from 1, without gaps.
    pub(super) number: u64,
    /// Length of the segment's file.
    pub(super) bytes: u64,
    /// Sequence number of its first batch.
    pub(super) first_seq: u64,
    /// Number of the oldest segment that is part of the log.
    pub(super) first_segment: u64,
    /// Index and term of the entry before the segment's first.
    pub(super) prev: (Index, Term),
    pub(super) hard_state: HardState,
    /// The latest configuration at or before `prev`, and where it stood.
    pub(super) configuration: Option<(Index, Arc<Configuration>)>,
}

impl Header {
    /// The header's bytes, without padding.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ALIGN_BYTES as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        let start: u32 = match self.start {
            Start::Continue => 0,
            Start::Truncate => 1,
            Start::Reset => 2,
        };
        out.extend_from_slice(&start.to_le_bytes());
        for word in [
            self.identity,
            self.number,
            self.bytes,
            self.first_seq,
            self.first_segment,
            self.prev.0,
            self.prev.1,
            self.hard_state.term,
            self.hard_state.vote.unwrap_or(0),
            self.configuration.as_ref().map_or(0, |(index, _)| *index),
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        debug_assert_eq!(out.len(), HEADER_FIXED_BYTES);
        if let Some((_, configuration)) = &self.configuration {
            codec::put_configuration(&mut out, configuration);
        }
        // A header over 4 GiB would be refused by its reader; HEADER_BYTES_MAX is checked before.
        let len = u32::try_from(out.len()).unwrap_or(u32::MAX);
        out[16..20].copy_from_slice(&len.to_le_bytes());
        let crc = header_crc(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Length that the first bytes of a header claim for the whole of it, when that is possible.
    pub(super) fn claimed_len(head: &[u8]) -> Option<usize> {
        let mut input = Input(head);
        let magic = input.bytes(8, "").ok()?;
        input.bytes(8, "").ok()?;
        let len = input.u32("").ok()? as usize;
        (magic == MAGIC && (HEADER_FIXED_BYTES..=HEADER_BYTES_MAX).contains(&len)).then_some(len)
    }

    /// Reads a header of exactly the claimed length.
    pub(super) fn decode(bytes: &[u8]) -> Result<Header, HeaderFault> {
        let bad = HeaderFault::Malformed;
        let mut input = Input(bytes);
        input.bytes(8, "magic").map_err(bad)?;
        let version = input.u32("version").map_err(bad)?;
        let crc = input.u32("checksum").map_err(bad)?;
        if crc != header_crc(bytes) {
            return Err(bad(Malformed("header checksum")));
        }
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        Header::decode_rest(&mut input).map_err(bad)
    }

    fn decode_rest(input: &mut Input<'_>) -> Result<Header, Malformed> {
        input.u32("header length")?;
        let start = match input.u32("start")? {
            0 => Start::Continue,
            1 => Start::Truncate,
            2 => Start::Reset,
            _ => return Err(Malformed("start")),
        };
        let mut word = || input.u64("header");
        let identity = word()?;
        let number = word()?;
        let bytes = word()?;
        let first_seq = word()?;
        let first_segment = word()?;
        let prev = (word()?, word()?);
        let (term, vote) = (word()?, word()?);
        let configuration_index = word()?;
        let configuration = if input.0.is_empty() {
            None
        } else {
            Some((configuration_index, Arc::new(codec::take_configuration(input)?)))
        };
        input.end("header length")?;
        if number == 0 || first_segment == 0 || first_segment > number || first_seq == 0 {
            return Err(Malformed("header numbers"));
        }
        let hard_state = HardState { term, vote: (vote != 0).then_some(vote) };
        Ok(Header {
            start,
            identity,
            number,
            bytes,
            first_seq,
            first_segment,
            prev,
            hard_state,
            configuration,
        })
    }
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    Malformed(Malformed),
    /// Sound, but of a version that this program does not know.
    Version(u32),
}

fn header_crc(header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.get(..12).unwrap_or_default());
    hasher.update(header.get(16..).unwrap_or_default());
    hasher.finalize()
}

/// Where a batch lies; seeds its checksum, so that bytes from anywhere else never pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) identity: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

impl Place {
    /// The checksum of a batch at this place; `body` is all of it behind the checksum.
    fn crc(self, body: &[u8]) -> u32 {
        let mut seed = [0; 24];
        seed[..8].copy_from_slice(&self.identity.to_le_bytes());
        seed[8..16].copy_from_slice(&self.segment.to_le_bytes());
        seed[16..].copy_from_slice(&self.offset.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&seed);
        hasher.update(body);
        hasher.finalize()
    }
}

/// The frame's fields before the records.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchHeader {
    pub(super) crc: u32,
    /// Bytes of records; never zero.
    pub(super) len: usize,
    pub(super) seq: u64,
}

impl BatchHeader {
    /// Reads the fields, `None` when there are too few bytes. A blank header has length zero.
    pub(super) fn decode(bytes: &[u8]) -> Option<BatchHeader> {
        let mut input = Input(bytes);
        let crc = input.u32("").ok()?;
        let len = input.u32("").ok()? as usize;
        Some(BatchHeader { crc, len, seq: input.u64("").ok()? })
    }

    /// Bytes of the whole batch.
    pub(super) fn total(&self) -> usize {
        BATCH_HEADER_BYTES + self.len
    }
}

/// Fills in the header of a batch whose records follow [`BATCH_HEADER_BYTES`] of room.
pub(super) fn seal_batch(batch: &mut [u8], place: Place, seq: u64) {
    let len = (batch.len() - BATCH_HEADER_BYTES) as u32; // segments are far below 4 GiB
    batch[4..8].copy_from_slice(&len.to_le_bytes());
    batch[8..16].copy_from_slice(&seq.to_le_bytes());
    let crc = place.crc(&batch[4..]);
    batch[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Whether a whole batch (header and records) is what was written at this place.
pub(super) fn batch_is_sound(batch: &[u8], place: Place) -> bool {
    match BatchHeader::decode(batch) {
        Some(header) => {
            header.len > 0 && batch.len() == header.total() && header.crc == place.crc(&batch[4..])
        }
        None => false,
    }
}

/// The end mark of the segment that is named by its place: the segment behind it was begun.
/// Exactly a sector, so that it is there whole or not at all.
pub(super) fn end_mark(place: Place) -> [u8; ALIGN_BYTES as usize] {
    let mut mark = [0; ALIGN_BYTES as usize];
    mark[..8].copy_from_slice(&END_MAGIC);
    mark[8..12].copy_from_slice(&place.crc(&END_MAGIC).to_le_bytes());
    mark
}

/// Whether a sector where batch `seq` is due, and no sound one is, held one that fitted into it.
/// A sector is written whole or not at all: such a batch cannot be torn, it was damaged.
pub(super) fn sector_is_rotten(sector: &[u8], place: Place, seq: u64) -> bool {
    let fits = |header: &BatchHeader| {
        header.len > 0 && header.total() <= sector.len() && header.seq == seq
    };
    if BatchHeader::decode(sector).is_some_and(|header| fits(&header)) {
        return true;
    }
    // The header itself may have rotted. One bit of it is found by its repair.
    let mut repaired = sector.to_vec();
    for bit in 0..BATCH_HEADER_BYTES.min(sector.len()) * 8 {
        repaired[bit / 8] ^= 1 << (bit % 8);
        if let Some(header) = BatchHeader::decode(&repaired)
            && fits(&header)
            && batch_is_sound(&repaired[..header.total()], place)
        {
            return true;
        }
        repaired[bit / 8] ^= 1 << (bit % 8);
    }
    false
}

/// Appends a hard-state record.
pub(super) fn put_hard_state(out: &mut Vec<u8>, hard_state: HardState) {
    out.push(RECORD_HARD_STATE);
    out.extend_from_slice(&hard_state.term.to_le_bytes());
    out.extend_from_slice(&hard_state.vote.unwrap_or(0).to_le_bytes());
}

/// Appends an entry record.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.push(RECORD_ENTRY);
    codec::put_entry(out, entry);
}

/// Appends the record that the log now begins with this segment.
pub(super) fn put_first_segment(out: &mut Vec<u8>, number: u64) {
    out.push(RECORD_FIRST_SEGMENT);
    out.extend_from_slice(&number.to_le_bytes());
}

/// One record of a batch.
#[derive(Clone, Debug)]
pub(super) enum Record<'a> {
    HardState(HardState),
    Entry(RawEntry<'a>),
    FirstSegment(u64),
}

/// An entry whose payload has not been copied yet.
#[derive(Clone, Debug)]
pub(super) struct RawEntry<'a> {
    pub(super) index: Index,
    pub(super) term: Term,
    pub(super) is_configuration: bool,
    bytes: &'a [u8],
}

impl RawEntry<'_> {
    /// The entry itself.
    pub(super) fn decode(&self) -> Result<Entry, Malformed> {
        codec::take_entry(&mut Input(self.bytes))
    }
}

/// Reads the records of a sound batch one by one.
#[derive(Debug)]
pub(super) struct Records<'a>(Input<'a>);

impl<'a> Records<'a> {
    /// Of a whole batch, header included.
    pub(super) fn of(batch: &'a [u8]) -> Records<'a> {
        Records(Input(batch.get(BATCH_HEADER_BYTES..).unwrap_or_default()))
    }

    /// The next record, or none at the end.
    pub(super) fn take(&mut self) -> Result<Option<Record<'a>>, Malformed> {
        let input = &mut self.0;
        if input.0.is_empty() {
            return Ok(None);
        }
        Ok(Some(match input.u8("record type")? {
            RECORD_HARD_STATE => {
                let (term, vote) = (input.u64("term")?, input.u64("vote")?);
                Record::HardState(HardState { term, vote: (vote != 0).then_some(vote) })
            }
            RECORD_ENTRY => {
                let whole = input.0;
                let index = input.u64("entry index")?;
                let term = input.u64("entry term")?;
                let is_configuration = input.u8("entry kind")? == ENTRY_KIND_CONFIGURATION;
                input.blob("entry payload")?;
                let bytes = &whole[..whole.len() - input.0.len()];
                Record::Entry(RawEntry { index, term, is_configuration, bytes })
            }
            RECORD_FIRST_SEGMENT => Record::FirstSegment(input.u64("first segment")?),
            _ => return Err(Malformed("record type")),
        }))
    }
}
